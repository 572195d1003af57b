//! Listeners and connections of a process's own.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;

use mesh::{Client, Error, Identity, ListenerEvent, Place, Refusal, Request, Waiter};
use once_cell::sync::OnceCell;
use rustler::{Atom, Encoder, Env, LocalPid, NifResult, OwnedEnv, Term};

use super::{Connection, Listener, spawn};
use crate::events;
use crate::library::hold;
use crate::reply::Reply;
use crate::resources::{
    Caller, ConnectionResource, ListenerResource, NO_ERROR, Owner, StreamResource, lock,
};
use crate::{address, atoms, runtime, settings, terms};

/// Dials all connections of processes' own.
static CLIENT: OnceCell<Client> = OnceCell::new();

/// Requests to accept that nobody can take back.
const NO_REQUEST: u64 = 0;

/// `quic_listen(Place, Options) -> {ok, Listener} | {error, Reason}`; `Place` is a port or a list
/// of `{IpAddress, Port}`. The caller becomes the owner. Reads files, hence dirty.
#[rustler::nif(schedule = "DirtyIo")]
fn quic_listen<'a>(env: Env<'a>, place: Term<'a>, options: Term<'a>) -> NifResult<Term<'a>> {
    let place = match address::number(place) {
        Some(port) => Place::Everywhere(port),
        None => match address::sockets(place) {
            Some(addresses) => Place::At(addresses),
            None => return Ok(bad_address(env, place)),
        },
    };
    let (settings, files) = match settings::read(env, options) {
        Ok(settings) => settings,
        Err(refused) => return Ok(refused),
    };
    if settings.identity.is_none() {
        return Ok((atoms::error(), atoms::no_certificate()).encode(env));
    }
    let Ok(runtime) = runtime::start(None) else {
        return Ok((atoms::error(), atoms::runtime_failed()).encode(env));
    };
    let owner = env.pid();
    let observer = move |event| match event {
        ListenerEvent::SocketLost(address) => report(owner, atoms::socket_lost(), address),
        ListenerEvent::SocketRebuilt(address) => report(owner, atoms::socket_rebuilt(), address),
    };
    let listener = match mesh::Listener::bind(&place, settings, runtime.clone(), observer) {
        Ok(listener) => listener,
        Err(error) => return Ok(terms::error(env, &error)),
    };
    let owner = Mutex::new(Owner { pid: owner, monitor: None, has_closed: false });
    let resource = hold(ListenerResource { listener, owner, files, reloading: Mutex::default() });
    lock(&resource.owner).monitor = env.monitor(&resource, &env.pid());
    Ok((atoms::ok(), resource).encode(env))
}

/// `listener_reload(Listener) -> ok | {error, Reason}`: reads the certificate's files again.
#[rustler::nif(schedule = "DirtyIo")]
fn listener_reload<'a>(env: Env<'a>, listener: Listener) -> Term<'a> {
    if listener.listener.is_closed() {
        return terms::error(env, &Error::StreamClosed);
    }
    let Some((cert, key)) = &listener.files else {
        return (atoms::error(), atoms::no_certificate()).encode(env);
    };
    let _turn = lock(&listener.reloading);
    match Identity::load(cert, key) {
        Ok(identity) => match listener.listener.set_identity(identity) {
            Ok(()) => atoms::ok().encode(env),
            Err(error) => terms::error(env, &error),
        },
        Err(bad) => terms::bad_certificate(env, &bad),
    }
}

/// `listener_stats(Listener) -> map()`.
#[rustler::nif]
fn listener_stats<'a>(env: Env<'a>, listener: Listener) -> NifResult<Term<'a>> {
    terms::listener_stats(env, &listener.listener.stats())
}

/// `listener_accept(Listener, Id, Token) -> ok`. The caller gets `{mesh_accepted, Token,
/// {ok, Connection} | {error, closed | too_many_waiters}}` and owns the connection.
#[rustler::nif]
fn listener_accept<'a>(
    env: Env<'a>,
    listener: Listener,
    id: u64,
    token: Term<'a>,
) -> NifResult<Atom> {
    let reply = Reply::quiet(atoms::mesh_accepted(), env.pid(), token);
    let request = listener.listener.request(id, Box::new(Accepting(reply)));
    // The waiter tells the caller of a refusal.
    serve(request, move |connection| listener.listener.give_back(connection))?;
    Ok(atoms::ok())
}

/// `listener_cancel_accept(Listener, Id) -> boolean()`. `false`: too late, the message comes.
#[rustler::nif]
fn listener_cancel_accept(listener: Listener, id: u64) -> bool {
    listener.listener.cancel_request(id)
}

/// `listener_async_accept(Listener) -> ok | {error, closed | too_many_waiters}`. The caller gets
/// `{quic, new_conn, Connection, Facts}` and `{quic, connected, Connection, Facts}`, and owns the
/// connection.
#[rustler::nif]
fn listener_async_accept(env: Env<'_>, listener: Listener) -> NifResult<Term<'_>> {
    let request = listener.listener.request(NO_REQUEST, Box::new(Announcing(env.pid())));
    let back = move |connection| listener.listener.give_back(connection);
    Ok(asked(env, serve(request, back)?))
}

/// `quic_connect(Address, Options, TimeoutMs, Token) -> ok | {error, Reason}`. The caller gets
/// `{mesh_opened, Token, {ok, Connection} | {error, Reason}}` and owns the connection. Reads
/// files, hence dirty.
#[rustler::nif(schedule = "DirtyIo")]
fn quic_connect<'a>(
    env: Env<'a>,
    target: Term<'a>,
    options: Term<'a>,
    timeout_ms: u64,
    token: Term<'a>,
) -> NifResult<Term<'a>> {
    let Some(target) = address::target(target) else {
        return Ok(bad_address(env, target));
    };
    let settings = match settings::read(env, options) {
        Ok((settings, _)) => settings,
        Err(refused) => return Ok(refused),
    };
    let Ok(runtime) = runtime::start(None) else {
        return Ok((atoms::error(), atoms::runtime_failed()).encode(env));
    };
    let client = CLIENT.get_or_init(|| Client::new(runtime.clone()));
    let owner = env.pid();
    let reply = Reply::new(atoms::mesh_opened(), owner, token);
    let timeout = Duration::from_millis(timeout_ms);
    let caller = Caller::of(env);
    spawn(async move {
        let outcome = tokio::select! {
            outcome = client.connect(&target.address, settings, timeout) => outcome,
            () = caller.gone() => return reply.forget(),
        };
        let outcome = outcome.and_then(|connection| {
            watched(connection.clone(), owner).ok_or_else(|| {
                // Its process died in this moment, and nobody else would ever close it.
                connection.close(NO_ERROR);
                Error::Cancelled
            })
        });
        reply.send(|env| match outcome {
            Ok(connection) => (atoms::ok(), connection).encode(env),
            Err(error) => terms::error(env, &error),
        });
    })?;
    Ok(atoms::ok().encode(env))
}

/// `connection_accept_stream(Connection, Id, Token) -> ok | {error, not_accepting}`. The caller
/// gets `{mesh_accepted, Token, {ok, Stream} | {error, closed | too_many_waiters}}` and owns the
/// stream.
#[rustler::nif]
fn connection_accept_stream<'a>(
    env: Env<'a>,
    connection: Connection,
    id: u64,
    token: Term<'a>,
) -> NifResult<Term<'a>> {
    let ConnectionResource::Own(own, _) = &**connection else {
        return Ok((atoms::error(), atoms::not_accepting()).encode(env));
    };
    let reply = Reply::quiet(atoms::mesh_accepted(), env.pid(), token);
    let (request, own) = (own.request_stream(id, Box::new(Accepting(reply))), own.clone());
    // The waiter tells the caller of a refusal.
    serve(request, move |stream| own.give_back(stream))?;
    Ok(atoms::ok().encode(env))
}

/// `connection_cancel_accept(Connection, Id) -> boolean()`. `false`: too late, the message comes.
#[rustler::nif]
fn connection_cancel_accept(connection: Connection, id: u64) -> bool {
    match &**connection {
        ConnectionResource::Own(own, _) => own.cancel_request(id),
        ConnectionResource::Pooled(_) => false,
    }
}

/// `connection_async_accept_stream(Connection) -> ok | {error, not_accepting | closed |
/// too_many_waiters}`. The caller gets `{quic, new_stream, Stream, #{conn, flags}}` and owns the
/// stream.
#[rustler::nif]
fn connection_async_accept_stream(env: Env<'_>, connection: Connection) -> NifResult<Term<'_>> {
    let ConnectionResource::Own(own, _) = &**connection else {
        return Ok((atoms::error(), atoms::not_accepting()).encode(env));
    };
    let waiter = AnnouncingStream { to: env.pid(), connection: connection.clone() };
    let (request, own) = (own.request_stream(NO_REQUEST, Box::new(waiter)), own.clone());
    Ok(asked(env, serve(request, move |stream| own.give_back(stream))?))
}

/// `connection_traffic(Connection) -> {ok, map()} | {error, closed}`. Takes the connection's lock,
/// hence dirty.
#[rustler::nif(schedule = "DirtyCpu")]
fn connection_traffic<'a>(env: Env<'a>, connection: Connection) -> NifResult<Term<'a>> {
    let traffic = match &**connection {
        ConnectionResource::Pooled(pooled) => pooled.traffic(),
        ConnectionResource::Own(own, _) => own.traffic(),
    };
    match traffic {
        Some(traffic) => Ok((atoms::ok(), terms::traffic(env, &traffic)?).encode(env)),
        None => Ok(terms::error(env, &Error::StreamClosed)),
    }
}

/// A connection of a process that waits for it.
fn watched(connection: mesh::Connection, owner: LocalPid) -> Option<Connection> {
    let connection = ConnectionResource::owned(connection, owner)?;
    ConnectionResource::watch(&connection);
    Some(connection)
}

fn bad_address<'a>(env: Env<'a>, given: Term<'a>) -> Term<'a> {
    (atoms::error(), (atoms::bad_address(), given)).encode(env)
}

/// Hands over what was there already, from a thread that may post messages. `back` takes it if the
/// process has died since it asked.
fn serve<T: Send + 'static>(
    request: Request<T>,
    back: impl FnOnce(T) + Send + 'static,
) -> NifResult<Option<Refusal>> {
    match request {
        Request::Served(item, waiter) => {
            spawn(async move {
                if let Some(item) = waiter.meet(item) {
                    back(item);
                }
            })?;
            Ok(None)
        }
        Request::Waiting => Ok(None),
        Request::Refused(why) => Ok(Some(why)),
    }
}

/// What is answered at once to who asks for a message.
fn asked(env: Env<'_>, refusal: Option<Refusal>) -> Term<'_> {
    refusal.map_or_else(|| atoms::ok().encode(env), |why| terms::refusal(env, why))
}

fn report(owner: LocalPid, what: Atom, address: SocketAddr) {
    events::post(&owner, what, &Socket(address), events::undefined);
}

/// `{IpAddress, Port}` in place of a handle.
struct Socket(SocketAddr);

impl Encoder for Socket {
    fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
        terms::socket_address(env, self.0)
    }
}

/// A process that waits for one connection or stream.
struct Accepting(Reply);

impl Accepting {
    fn accept<T, R>(self, item: T, own: impl FnOnce(LocalPid) -> Option<R>) -> Option<T>
    where
        R: Encoder,
    {
        let reply = self.0.owe();
        match own(reply.to()) {
            Some(resource) => {
                reply.send(|env| (atoms::ok(), resource).encode(env));
                None
            }
            None => {
                reply.forget();
                Some(item)
            }
        }
    }

    fn turn_away(self, why: Refusal) {
        self.0.owe().send_later(move |env| terms::refusal(env, why));
    }
}

impl Waiter<mesh::Connection> for Accepting {
    fn meet(self: Box<Self>, item: mesh::Connection) -> Option<mesh::Connection> {
        let connection = item.clone();
        self.accept(item, |pid| watched(connection, pid))
    }

    fn is_gone(&self) -> bool {
        !self.0.is_awaited()
    }

    fn refuse(self: Box<Self>, why: Refusal) {
        self.turn_away(why);
    }
}

impl Waiter<mesh::Stream> for Accepting {
    fn meet(self: Box<Self>, item: mesh::Stream) -> Option<mesh::Stream> {
        let stream = item.clone();
        self.accept(item, |pid| StreamResource::owned(stream, pid, false))
    }

    fn is_gone(&self) -> bool {
        !self.0.is_awaited()
    }

    fn refuse(self: Box<Self>, why: Refusal) {
        self.turn_away(why);
    }
}

/// Whether a process has gone, asked on any thread.
fn is_gone(pid: LocalPid) -> bool {
    !OwnedEnv::new().run(|env| pid.is_alive(env))
}

/// A process that wants to be told of one connection.
struct Announcing(LocalPid);

impl Waiter<mesh::Connection> for Announcing {
    fn meet(self: Box<Self>, item: mesh::Connection) -> Option<mesh::Connection> {
        let Some(connection) = ConnectionResource::owned(item.clone(), self.0) else {
            return Some(item);
        };
        for what in [atoms::new_conn(), atoms::connected()] {
            let facts = item.facts();
            events::post(&self.0, what, &connection, |env| events::connection_detail(env, facts));
        }
        ConnectionResource::watch(&connection);
        None
    }

    fn is_gone(&self) -> bool {
        is_gone(self.0)
    }

    fn refuse(self: Box<Self>, _why: Refusal) {}
}

/// A process that wants to be told of one stream.
struct AnnouncingStream {
    to: LocalPid,
    connection: Connection,
}

impl Waiter<mesh::Stream> for AnnouncingStream {
    fn meet(self: Box<Self>, item: mesh::Stream) -> Option<mesh::Stream> {
        let is_unidirectional = item.bytes().is_some_and(|bytes| bytes.is_unidirectional());
        let Some(stream) = StreamResource::owned(item.clone(), self.to, true) else {
            return Some(item);
        };
        events::post(&self.to, atoms::new_stream(), &stream, |env| {
            events::stream_detail(env, &self.connection, is_unidirectional)
        });
        None
    }

    fn is_gone(&self) -> bool {
        is_gone(self.to)
    }

    fn refuse(self: Box<Self>, _why: Refusal) {}
}
