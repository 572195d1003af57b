//! The messages `{quic, What, Handle, Detail}` to owners. docs/messages.md lists them for users.

use mesh::{Error, Facts, PeerIdentity};
use rustler::{Atom, Encoder, Env, LocalPid, NewBinary, OwnedEnv, Term};

use crate::atoms;
use crate::terms::{self, map};

/// No flags: the end of a stream is a message of its own.
const NO_FLAGS: u32 = 0;
/// The flag of a stream on which only the peer sends, as nodes in the field know it.
const UNIDIRECTIONAL: u32 = 1;

/// Posts `{quic, What, Handle, Detail}` from a thread of the runtime. A process that has gone
/// needs no message.
pub(crate) fn post<W, H, D>(to: &LocalPid, what: W, handle: &H, detail: D)
where
    W: Encoder,
    H: Encoder,
    D: for<'a> FnOnce(Env<'a>) -> Term<'a>,
{
    let mut env = OwnedEnv::new();
    env.send_and_clear(to, |env| (atoms::quic(), what, handle, detail(env)).encode(env)).ok();
}

pub(crate) fn undefined(env: Env<'_>) -> Term<'_> {
    atoms::undefined().encode(env)
}

/// `#{absolute_offset, len, flags}` of data.
pub(crate) fn data_detail(env: Env<'_>, offset: u64, length: usize) -> Term<'_> {
    details(
        env,
        &[
            (atoms::absolute_offset(), offset.encode(env)),
            (atoms::len(), length.encode(env)),
            (atoms::flags(), NO_FLAGS.encode(env)),
        ],
    )
}

/// `#{conn, flags}` of a new stream.
pub(crate) fn stream_detail<'a, C: Encoder>(
    env: Env<'a>,
    connection: &C,
    is_unidirectional: bool,
) -> Term<'a> {
    let flags = if is_unidirectional { UNIDIRECTIONAL } else { NO_FLAGS };
    details(env, &[(atoms::conn(), connection.encode(env)), (atoms::flags(), flags.encode(env))])
}

/// `#{remote_addr, local_addr, alpn, server_name, identity}` of a connection.
pub(crate) fn connection_detail<'a>(env: Env<'a>, facts: &Facts) -> Term<'a> {
    let name = facts.server_name.as_ref();
    let identity = facts.identity.as_ref();
    details(
        env,
        &[
            (atoms::remote_addr(), terms::socket_address(env, facts.remote)),
            (atoms::local_addr(), terms::socket_address(env, facts.local)),
            (atoms::alpn(), binary(env, &facts.alpn)),
            (atoms::server_name(), name.map_or(undefined(env), |name| name.encode(env))),
            (atoms::identity(), identity.map_or(undefined(env), |known| peer(env, known))),
        ],
    )
}

/// `#{certificate, spki_sha256, ed25519}` of a peer.
fn peer<'a>(env: Env<'a>, identity: &PeerIdentity) -> Term<'a> {
    let ed25519 = identity.ed25519.as_ref();
    details(
        env,
        &[
            (atoms::certificate(), binary(env, &identity.certificate)),
            (atoms::spki_sha256(), binary(env, &identity.spki_sha256)),
            (atoms::ed25519(), ed25519.map_or(undefined(env), |key| binary(env, key))),
        ],
    )
}

/// `#{is_conn_shutdown, is_shutdown_by_app, status}` of a closed stream.
pub(crate) fn closed_detail<'a>(env: Env<'a>, lost: Option<&Error>) -> Term<'a> {
    let status = match lost {
        Some(error) => terms::reason(env, error),
        None => atoms::ok().encode(env),
    };
    details(
        env,
        &[
            (atoms::is_conn_shutdown(), lost.is_some().encode(env)),
            (atoms::is_shutdown_by_app(), is_ours(lost).encode(env)),
            (atoms::status(), status),
        ],
    )
}

/// `#{is_app_closing, status}` of a closed connection, or the same of its transport's end.
pub(crate) fn connection_end<'a>(env: Env<'a>, error: &Error) -> Term<'a> {
    details(
        env,
        &[
            (atoms::is_app_closing(), is_ours(Some(error)).encode(env)),
            (atoms::status(), terms::reason(env, error)),
        ],
    )
}

/// We have closed it ourselves.
pub(crate) fn is_ours(error: Option<&Error>) -> bool {
    matches!(error, Some(Error::Cancelled | Error::StreamClosed))
}

pub(crate) fn binary<'a>(env: Env<'a>, bytes: &[u8]) -> Term<'a> {
    let mut binary = NewBinary::new(env, bytes.len());
    binary.as_mut_slice().copy_from_slice(bytes);
    binary.into()
}

/// A map cannot fail: its keys are distinct atoms.
fn details<'a>(env: Env<'a>, pairs: &[(Atom, Term<'a>)]) -> Term<'a> {
    map(env, pairs).unwrap_or_else(|_| undefined(env))
}
