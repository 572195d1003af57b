//! Messages from the runtime to Erlang processes.

use mesh::Error;
use rustler::env::SavedTerm;
use rustler::{Atom, Encoder, Env, LocalPid, OwnedEnv, Term};

use crate::terms;

/// The promise of exactly one message `{Tag, Token, Result}` to one process. It is kept by
/// sending; a promise that is dropped, because its task was stopped or has panicked, sends
/// `{error, cancelled}`. It is sent and dropped on threads of the runtime only: the VM allows
/// such messages from no thread of its own.
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
    pub(crate) fn send<F>(mut self, encode: F)
    where
        F: for<'a> FnOnce(Env<'a>) -> Term<'a>,
    {
        self.post(encode);
    }

    fn post<F>(&mut self, encode: F)
    where
        F: for<'a> FnOnce(Env<'a>) -> Term<'a>,
    {
        let Some((mut env, saved)) = self.token.take() else {
            return;
        };
        let tag = self.tag;
        // A process that has gone needs no message.
        env.send_and_clear(&self.to, |env| (tag, saved.load(env), encode(env)).encode(env)).ok();
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.post(|env| terms::error(env, &Error::Cancelled));
    }
}

/// Sends `{Tag, What}`, from a thread of the runtime or of the VM.
pub(crate) fn notify(to: LocalPid, tag: Atom, what: Atom) {
    let Some(runtime) = crate::runtime::handle() else {
        return;
    };
    runtime.spawn(async move {
        OwnedEnv::new().send_and_clear(&to, |env| (tag, what).encode(env)).ok();
    });
}
