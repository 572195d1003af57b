//! Messages from the runtime to Erlang processes.

use mesh::Error;
use rustler::env::SavedTerm;
use rustler::{Atom, Encoder, Env, LocalPid, OwnedEnv, Term};

use crate::{runtime, terms};

/// The promise of exactly one message `{Tag, Token, Result}` to one process. It is kept by
/// sending; a promise that is dropped, because its task was stopped or has panicked, sends
/// `{error, cancelled}`. The VM allows such messages from no thread of its own, so sending is for
/// threads of the runtime; the rest is for any thread.
pub(crate) struct Reply {
    tag: Atom,
    to: LocalPid,
    /// The environment and in it the token; nothing once the message has gone.
    token: Option<(OwnedEnv, SavedTerm)>,
}

impl Reply {
    pub(crate) fn new(tag: Atom, to: LocalPid, token: Term<'_>) -> Self {
        let env = OwnedEnv::new();
        let saved = env.save(token);
        Self { tag, to, token: Some((env, saved)) }
    }

    /// Sends the result that `encode` makes.
    pub(crate) fn send<F>(self, encode: F)
    where
        F: for<'a> FnOnce(Env<'a>) -> Term<'a>,
    {
        self.send_in(OwnedEnv::new(), encode);
    }

    /// Sends the result that `encode` makes of what is in `env`.
    pub(crate) fn send_in<F>(mut self, mut env: OwnedEnv, encode: F)
    where
        F: for<'a> FnOnce(Env<'a>) -> Term<'a>,
    {
        let Some((own, saved)) = self.token.take() else {
            return;
        };
        let tag = self.tag;
        // A process that has gone needs no message.
        env.send_and_clear(&self.to, |env| {
            let token = own.run(|own| saved.load(own).in_env(env));
            (tag, token, encode(env)).encode(env)
        })
        .ok();
    }

    /// Sends the result that `encode` makes, from any thread.
    pub(crate) fn send_later<F>(self, encode: F)
    where
        F: for<'a> FnOnce(Env<'a>) -> Term<'a> + Send + 'static,
    {
        if let Some(runtime) = runtime::handle() {
            runtime.spawn(async move { self.send(encode) });
        }
    }

    /// Sends nothing: who was promised the message does not wait for it any more.
    pub(crate) fn forget(mut self) {
        self.token = None;
    }

    /// Who was promised the message.
    pub(crate) fn to(&self) -> LocalPid {
        self.to
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        let token = self.token.take();
        if token.is_some() {
            let kept = Self { tag: self.tag, to: self.to, token };
            kept.send_later(|env| terms::error(env, &Error::Cancelled));
        }
    }
}

/// A promise that may be broken in silence: dropped, it is forgotten.
pub(crate) struct Quiet(Option<Reply>);

impl Quiet {
    pub(crate) fn new(reply: Reply) -> Self {
        Self(Some(reply))
    }

    /// Whether it was given to this process.
    pub(crate) fn is_to(&self, pid: &LocalPid) -> bool {
        self.0.as_ref().is_some_and(|reply| reply.to == *pid)
    }

    /// Whether the process that was promised the message is still there.
    pub(crate) fn is_awaited(&self) -> bool {
        let token = self.0.as_ref().and_then(|reply| Some((reply.to, reply.token.as_ref()?)));
        token.is_some_and(|(to, (env, _))| env.run(|env| to.is_alive(env)))
    }

    /// The promise itself, to be kept.
    pub(crate) fn keep(mut self) -> Option<Reply> {
        self.0.take()
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        if let Some(reply) = self.0.take() {
            reply.forget();
        }
    }
}

/// Sends `{Tag, What}`, from any thread.
pub(crate) fn notify(to: LocalPid, tag: Atom, what: Atom) {
    if let Some(runtime) = runtime::handle() {
        runtime.spawn(async move {
            OwnedEnv::new().send_and_clear(&to, |env| (tag, what).encode(env)).ok();
        });
    }
}
