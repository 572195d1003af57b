//! Streams.

use std::sync::Arc;

use mesh::{Error, Packet, Sent};
use rustler::{Atom, Encoder, Env, LocalPid, NifResult, Term};

use super::{Connection, Stream, spawn};
use crate::direct::direct;
use crate::inlet::{Inlet, Mode, Refusal, Source, end_error};
use crate::library::Held;
use crate::readers::{Patience, RequestId};
use crate::reply::Reply;
use crate::resources::{Caller, ConnectionResource, StreamResource};
use crate::{atoms, data, terms};

/// Flags of `async_shutdown_stream/3`, as nodes in the field know them.
const GRACEFUL: u32 = 0x1;
const ABORT_SEND: u32 = 0x2;
const ABORT_RECEIVE: u32 = 0x4;
const IMMEDIATE: u32 = 0x8;

/// `stream_send(Stream, Data) -> ok | {error, Reason} | wait`. `wait`: nothing was taken, there
/// is no room now.
fn stream_send<'a>(env: Env<'a>, [stream, data]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let stream: &Held<StreamResource> = stream.decode()?;
    Ok(match stream.stream.try_send(data::payload(data)?) {
        Ok(()) => atoms::ok().encode(env),
        Err(Error::QueueFull | Error::PoolQueueFull) => atoms::wait().encode(env),
        Err(error) => terms::error(env, &error),
    })
}

direct!(stream_send / 2);

/// `stream_send_wait(Stream, Data, Token) -> ok | {error, Reason} | wait`. After `wait`, the
/// caller gets `{mesh_sent, Token, ok | {error, Reason}}`; when it dies before its turn, nothing is
/// sent.
#[rustler::nif]
fn stream_send_wait<'a>(
    env: Env<'a>,
    stream: Stream,
    data: Term<'a>,
    token: Term<'a>,
) -> NifResult<Term<'a>> {
    let turn = match stream.stream.send(data::payload(data)?) {
        Ok(Sent::Accepted) => return Ok(atoms::ok().encode(env)),
        Ok(Sent::Waiting(turn)) => turn,
        Err(error) => return Ok(terms::error(env, &error)),
    };
    let reply = Reply::new(atoms::mesh_sent(), env.pid(), token);
    let caller = Caller::of(env);
    spawn(async move {
        let outcome = tokio::select! {
            outcome = turn => outcome.unwrap_or(Err(Error::Cancelled)),
            // The message leaves the line with its turn.
            () = caller.gone() => {
                stream.stream.note_gone();
                return reply.forget();
            }
        };
        reply.send(|env| match outcome {
            Ok(()) => atoms::ok().encode(env),
            Err(error) => terms::error(env, &error),
        });
    })?;
    Ok(atoms::wait().encode(env))
}

/// `stream_async_send(Stream, Data) -> ok | {error, Reason}`; `{error, send_queue_full}` when
/// there is no room now, at this peer or in the pool.
#[rustler::nif]
fn stream_async_send<'a>(
    env: Env<'a>,
    stream: &'a Held<StreamResource>,
    data: Term<'a>,
) -> NifResult<Term<'a>> {
    Ok(match stream.stream.async_send(data::payload(data)?) {
        Ok(()) => atoms::ok().encode(env),
        Err(Error::PoolQueueFull) => terms::error(env, &Error::QueueFull),
        Err(error) => terms::error(env, &error),
    })
}

/// `connection_open_stream(Connection, Token) -> ok`. The caller gets `{mesh_opened, Token,
/// {ok, Stream} | {error, Reason}}` and owns the stream; when it dies before, none is opened.
#[rustler::nif]
fn connection_open_stream<'a>(
    env: Env<'a>,
    connection: Connection,
    token: Term<'a>,
) -> NifResult<Atom> {
    let owner = env.pid();
    let reply = Reply::new(atoms::mesh_opened(), owner, token);
    let caller = Caller::of(env);
    spawn(async move {
        let opening = async {
            match &**connection {
                ConnectionResource::Pooled(pooled) => pooled.open_stream().await,
                ConnectionResource::Own(own, _) => own.open_stream().await,
            }
        };
        let opened = tokio::select! {
            opened = opening => opened,
            // His place in the line for the peer's credit goes with him.
            () = caller.gone() => return reply.forget(),
        };
        let opened = opened
            .and_then(|stream| StreamResource::owned(stream, owner, false).ok_or(Error::Cancelled));
        reply.send(|env| match opened {
            Ok(stream) => (atoms::ok(), stream).encode(env),
            Err(error) => terms::error(env, &error),
        });
    })?;
    Ok(atoms::ok())
}

/// `stream_receive(Stream, Id, Token, DoesWait) -> wait | active | look | {error, Reason}`. After
/// `wait`, the caller gets `{mesh_received, Token, {ok, Data} | {error, Reason} | look}`, with
/// `{error, timeout}` at once if it does not wait and there is nothing. After `active`, data comes
/// as messages to the owner, and `{mesh_received, Token, look}` once that is over. `look`: there
/// may be messages of when the stream was active, which come first; when none is left, the caller
/// asks again.
#[rustler::nif]
fn stream_receive<'a>(
    env: Env<'a>,
    stream: Stream,
    id: u64,
    token: Term<'a>,
    does_wait: bool,
) -> NifResult<Term<'a>> {
    let Some(inlet) = &stream.inlet else {
        return Ok(terms::error(env, &Error::StreamClosed));
    };
    start_reading(&stream)?;
    let mut reply = Reply::quiet(atoms::mesh_received(), env.pid(), token);
    let patience = if does_wait { Patience::Waits } else { Patience::Polls };
    if does_wait && !inlet.is_owned_by(env.pid()) {
        cancel_with_caller(env, inlet, id, &mut reply)?;
    }
    Ok(match inlet.request(&stream, id, reply, patience) {
        Ok(Source::Answer) => atoms::wait().encode(env),
        Ok(Source::Messages) => atoms::active().encode(env),
        Ok(Source::Mailbox) => atoms::look().encode(env),
        Err(Refusal::TooManyReaders) => terms::refusal(env, mesh::Refusal::TooManyWait),
        Err(_) => match inlet.received_end() {
            Some(end) => end_error(env, &end),
            None => terms::error(env, &Error::StreamClosed),
        },
    })
}

/// Takes the request back when its caller dies, for whom the stream would be held. An owner's death
/// ends all of it.
fn cancel_with_caller(
    env: Env<'_>,
    inlet: &Arc<Inlet>,
    id: RequestId,
    reply: &mut Reply,
) -> NifResult<()> {
    let (caller, inlet, settled) = (Caller::of(env), inlet.clone(), reply.settled());
    spawn(async move {
        tokio::select! {
            () = settled => {}
            () = caller.gone() => drop(inlet.cancel_request(id)),
        }
    })
}

/// `stream_look_again(Stream) -> ok`: the caller was told to look, and has found one message.
#[rustler::nif]
fn stream_look_again(stream: Stream) -> NifResult<Atom> {
    stream.inlet.as_ref().ok_or(rustler::Error::BadArg)?.look_again();
    Ok(atoms::ok())
}

/// `stream_cancel_receive(Stream, Id) -> boolean()`. `false`: too late, the message comes.
#[rustler::nif]
fn stream_cancel_receive(stream: Stream, id: u64) -> bool {
    stream.inlet.as_ref().is_some_and(|inlet| inlet.cancel_request(id))
}

/// `stream_set_active(Stream, true | false | once | 1..16#ffff) -> ok | {error, Reason}`.
#[rustler::nif]
fn stream_set_active<'a>(env: Env<'a>, stream: Stream, value: Term<'a>) -> NifResult<Term<'a>> {
    let mode = mode(value).ok_or(rustler::Error::BadArg)?;
    let Some(inlet) = &stream.inlet else {
        return Ok(terms::error(env, &Error::StreamClosed));
    };
    start_reading(&stream)?;
    Ok(match inlet.set_mode(stream.clone(), mode) {
        Ok(()) => atoms::ok().encode(env),
        Err(_) => terms::error(env, &Error::StreamClosed),
    })
}

/// `stream_set_packet(Stream, macula | raw) -> ok | {error, Reason}`. For the bytes that have not
/// been read yet.
#[rustler::nif]
fn stream_set_packet<'a>(env: Env<'a>, stream: Stream, value: Term<'a>) -> NifResult<Term<'a>> {
    let packet = if atoms::macula() == value {
        Packet::Macula
    } else if atoms::raw() == value {
        Packet::Raw
    } else {
        return Err(rustler::Error::BadArg);
    };
    match &stream.inlet {
        Some(inlet) => {
            inlet.set_packet(packet);
            Ok(atoms::ok().encode(env))
        }
        None => Ok(terms::error(env, &Error::StreamClosed)),
    }
}

/// `stream_shutdown(Stream, Flags, Code) -> ok`.
#[rustler::nif]
fn stream_shutdown(stream: Stream, flags: u32, code: u64) -> Atom {
    if let Some(inlet) = &stream.inlet
        && flags & (ABORT_RECEIVE | IMMEDIATE) != 0
    {
        inlet.close(Some(stream.clone()), code);
        stream.stop_reading(code);
    } else if let Some(inlet) = &stream.inlet {
        inlet.expect_send_end(stream.clone());
    }
    match stream.stream.bytes() {
        Some(bytes) if flags & (ABORT_SEND | IMMEDIATE) != 0 => bytes.reset(code),
        Some(bytes) if flags & GRACEFUL != 0 || flags & ABORT_RECEIVE == 0 => bytes.finish(),
        Some(_) => {}
        None => stream.stream.close(),
    }
    atoms::ok()
}

/// `stream_pause(Stream, Heir) -> ok | {error, not_owner | noproc | closed}`: the caller is about
/// to hand the stream over, and gets nothing more of it.
#[rustler::nif]
fn stream_pause<'a>(env: Env<'a>, stream: Stream, heir: LocalPid) -> Term<'a> {
    let Some(inlet) = &stream.inlet else {
        return terms::error(env, &Error::StreamClosed);
    };
    match inlet.pause(env.pid(), || heir.is_alive(env)) {
        Ok(()) => atoms::ok().encode(env),
        Err(Refusal::NoProcess) => (atoms::error(), atoms::noproc()).encode(env),
        Err(_) => (atoms::error(), atoms::not_owner()).encode(env),
    }
}

/// `stream_give(Stream, Heir) -> ok | {error, not_owner}`: hands a paused stream over. When the
/// heir has died since, that has the consequences of an owner's death.
#[rustler::nif]
fn stream_give<'a>(env: Env<'a>, stream: Stream, heir: LocalPid) -> NifResult<Term<'a>> {
    let inlet = stream.inlet.as_ref().ok_or(rustler::Error::BadArg)?;
    match inlet.give(env.pid(), heir, || env.monitor(&stream, &heir)) {
        Ok(former) => {
            if let Some(former) = former {
                env.demonitor(&stream, &former);
            }
        }
        Err(Refusal::NoProcess) => stream.lose_owner(),
        Err(_) => return Ok((atoms::error(), atoms::not_owner()).encode(env)),
    }
    Ok(atoms::ok().encode(env))
}

/// Starts the stream's reading task, once.
fn start_reading(stream: &Stream) -> NifResult<()> {
    let reader = stream.stream.bytes().and_then(|bytes| bytes.take_reader());
    if let (Some(reader), Some(inlet)) = (reader, &stream.inlet) {
        spawn(Inlet::read(inlet.clone(), reader))?;
    }
    Ok(())
}

fn mode(value: Term<'_>) -> Option<Mode> {
    // By way of `u32`: rustler would cut 65,537 down to 1.
    if let Ok(count) = value.decode::<u32>() {
        let count = u16::try_from(count).ok()?;
        return (count > 0).then_some(Mode::Count(count.into()));
    }
    match value.atom_to_string().ok()?.as_str() {
        "true" => Some(Mode::Active),
        "false" => Some(Mode::Passive),
        "once" => Some(Mode::Once),
        _ => None,
    }
}
