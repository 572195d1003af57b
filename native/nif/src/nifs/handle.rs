//! What streams, connections and listeners have in common.

use std::net::SocketAddr;

use mesh::Error;
use rustler::{Atom, Encoder, Env, LocalPid, NifResult, Term};

use super::{Connection, Listener, Stream};
use crate::resources::{ConnectionResource, NO_ERROR, lock};
use crate::{atoms, terms};

/// `handle_close(Stream | Connection | Listener) -> ok | dirty`. A stream sends what is queued,
/// then FIN, and reads no more; an owner that is told of events is still told how the sending ends,
/// and of the end of both halves. `dirty`: it is no stream, and is left to `handle_close_dirty/1`.
#[rustler::nif]
fn handle_close(handle: Term<'_>) -> NifResult<Atom> {
    let Ok(stream) = handle.decode::<Stream>() else {
        return Ok(atoms::dirty());
    };
    if let Some(inlet) = &stream.inlet {
        inlet.close(Some(stream.clone()), NO_ERROR);
    }
    stream.stop_reading(NO_ERROR);
    stream.stream.close();
    Ok(atoms::ok())
}

/// `handle_close_dirty(Connection | Listener) -> ok`. Takes the lock of a connection, or of all
/// that wait to be accepted.
#[rustler::nif(schedule = "DirtyCpu")]
fn handle_close_dirty(handle: Term<'_>) -> NifResult<Atom> {
    match handle.decode::<Connection>() {
        Ok(connection) => close(&connection, NO_ERROR, true),
        Err(_) => handle.decode::<Listener>()?.listener.close(),
    }
    Ok(atoms::ok())
}

/// `connection_shutdown(Connection, Code) -> ok`. The owner is told when it is done. Takes the
/// connection's lock, hence dirty.
#[rustler::nif(schedule = "DirtyCpu")]
fn connection_shutdown(connection: Connection, code: u64) -> Atom {
    close(&connection, code, false);
    atoms::ok()
}

fn close(connection: &Connection, code: u64, is_silent: bool) {
    match &***connection {
        ConnectionResource::Pooled(pooled) => pooled.close(),
        ConnectionResource::Own(own, owner) => {
            lock(owner).has_closed |= is_silent;
            own.close(code);
        }
    }
}

/// `handle_peername(Stream | Connection) -> {ok, {IpAddress, Port}} | dirty`. `dirty`: to be asked
/// of [`handle_peername_dirty`], since the peer of such a connection may move, and where it is now
/// is behind the connection's lock.
#[rustler::nif]
fn handle_peername<'a>(env: Env<'a>, handle: Term<'a>) -> NifResult<Term<'a>> {
    let address = match handle.decode::<Stream>() {
        Ok(stream) => stream.stream.remote_address(),
        Err(_) => match &**handle.decode::<Connection>()? {
            ConnectionResource::Pooled(pooled) => pooled.remote_address(),
            ConnectionResource::Own(..) => return Ok(atoms::dirty().encode(env)),
        },
    };
    Ok(known(env, address))
}

/// `handle_peername_dirty(Connection) -> {ok, {IpAddress, Port}}`.
#[rustler::nif(schedule = "DirtyCpu")]
fn handle_peername_dirty(env: Env<'_>, connection: Connection) -> Term<'_> {
    known(env, connection.remote_address())
}

/// `handle_sockname(Stream | Connection | Listener) -> {ok, {IpAddress, Port}} | {error, Reason} |
/// dirty`. `dirty`: to be asked of [`handle_sockname_dirty`], which takes the lock of a pooled
/// connection.
#[rustler::nif]
fn handle_sockname<'a>(env: Env<'a>, handle: Term<'a>) -> NifResult<Term<'a>> {
    let address = if let Ok(stream) = handle.decode::<Stream>() {
        match stream.stream.bytes() {
            Some(bytes) => Some(bytes.local_address()),
            None => return Ok(atoms::dirty().encode(env)),
        }
    } else if let Ok(connection) = handle.decode::<Connection>() {
        if let ConnectionResource::Pooled(_) = **connection {
            return Ok(atoms::dirty().encode(env));
        }
        connection.local_address()
    } else {
        handle.decode::<Listener>()?.listener.local_addresses().first().copied()
    };
    Ok(known_or_closed(env, address))
}

/// `handle_sockname_dirty(Stream | Connection) -> {ok, {IpAddress, Port}} | {error, Reason}`.
#[rustler::nif(schedule = "DirtyCpu")]
fn handle_sockname_dirty<'a>(env: Env<'a>, handle: Term<'a>) -> NifResult<Term<'a>> {
    let address = match handle.decode::<Stream>() {
        Ok(stream) => stream.stream.local_address(),
        Err(_) => handle.decode::<Connection>()?.local_address(),
    };
    Ok(known_or_closed(env, address))
}

fn known(env: Env<'_>, address: SocketAddr) -> Term<'_> {
    (atoms::ok(), terms::socket_address(env, address)).encode(env)
}

fn known_or_closed(env: Env<'_>, address: Option<SocketAddr>) -> Term<'_> {
    address.map_or_else(|| terms::error(env, &Error::StreamClosed), |address| known(env, address))
}

/// `handle_give(Connection | Listener, Pid) -> ok | {error, not_owner | noproc}`.
#[rustler::nif]
fn handle_give<'a>(env: Env<'a>, handle: Term<'a>, pid: LocalPid) -> NifResult<Term<'a>> {
    if let Ok(listener) = handle.decode::<Listener>() {
        return Ok(give(env, &listener, &listener.owner, pid));
    }
    let connection = handle.decode::<Connection>()?;
    match connection.owner() {
        Some(owner) => Ok(give(env, &connection, owner, pid)),
        None => Ok((atoms::error(), atoms::not_owner()).encode(env)),
    }
}

fn give<'a, R: rustler::Resource>(
    env: Env<'a>,
    resource: &rustler::ResourceArc<R>,
    owner: &std::sync::Mutex<crate::resources::Owner>,
    pid: LocalPid,
) -> Term<'a> {
    let former = {
        // Locked from before the new owner can die, or its death would not be known as that.
        let mut owner = lock(owner);
        if owner.pid != env.pid() {
            return (atoms::error(), atoms::not_owner()).encode(env);
        }
        let Some(monitor) = env.monitor(resource, &pid) else {
            return (atoms::error(), atoms::noproc()).encode(env);
        };
        owner.pid = pid;
        owner.monitor.replace(monitor)
    };
    if let Some(former) = former {
        env.demonitor(resource, &former);
    }
    atoms::ok().encode(env)
}
