//! Messages from the runtime to Erlang processes.

use mesh::Error;
use rustler::env::SavedTerm;
use rustler::{Atom, Encoder, Env, LocalPid, OwnedEnv, Term};
use tokio::sync::oneshot;

use crate::{atoms, runtime, terms};

/// The promise of exactly one message `{Tag, Token, Result}` to one process. It is kept by
/// sending; a promise that is dropped, because its task was stopped or has panicked, sends that the
/// work was `cancelled`, unless it is not owed. The VM allows such messages from no thread of its
/// own, so sending is for threads of the runtime; the rest is for any thread.
pub(crate) struct Reply {
    tag: Atom,
    to: LocalPid,
    /// The environment and in it the token; nothing once the message has gone.
    token: Option<(OwnedEnv, SavedTerm)>,
    is_owed: bool,
    /// Dropped with the promise.
    until_settled: Option<oneshot::Sender<()>>,
}

impl Reply {
    pub(crate) fn new(tag: Atom, to: LocalPid, token: Term<'_>) -> Self {
        let env = OwnedEnv::new();
        let saved = env.save(token);
        Self { tag, to, token: Some((env, saved)), is_owed: true, until_settled: None }
    }

    /// A promise that may be broken in silence, until it is owed.
    pub(crate) fn quiet(tag: Atom, to: LocalPid, token: Term<'_>) -> Self {
        let mut reply = Self::new(tag, to, token);
        reply.is_owed = false;
        reply
    }

    /// From here on it is to be kept.
    pub(crate) fn owe(mut self) -> Self {
        self.is_owed = true;
        self
    }

    /// Resolves when the promise has been kept or broken.
    pub(crate) fn settled(&mut self) -> impl Future<Output = ()> + Send + use<> {
        let (until_settled, settled) = oneshot::channel();
        self.until_settled = Some(until_settled);
        async move { drop(settled.await) }
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

    /// Whether he is still there.
    pub(crate) fn is_awaited(&self) -> bool {
        self.token.as_ref().is_some_and(|(env, _)| env.run(|env| self.to.is_alive(env)))
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        let token = self.token.take().filter(|_| self.is_owed);
        if token.is_none() {
            return;
        }
        let kept = Self { token, until_settled: self.until_settled.take(), ..*self };
        let is_dial = self.tag == atoms::mesh_connected();
        let told = if is_dial { terms::connect_failed } else { terms::error };
        kept.send_later(move |env| told(env, &Error::Cancelled));
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
