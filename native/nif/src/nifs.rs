//! The functions of `macula_gateway_mesh_nif`. Each decodes, calls `mesh`, and encodes; what takes
//! longer than a lock is spawned and answered by a message.

use mesh::{Error, Event, Handles, Identity, Mesh, NodeId, Sent};
use rustler::{Atom, Binary, Encoder, Env, NifResult, ResourceArc, Term};

use crate::reply::{Reply, notify};
use crate::resources::{ConnectionResource, PoolResource, Resources, StreamResource};
use crate::{address, atoms, data, options, runtime, terms};

type Pool = ResourceArc<PoolResource>;
type Connection = ResourceArc<ConnectionResource>;
type Stream = ResourceArc<StreamResource>;

/// `pool_open(Options) -> {ok, Pool} | {error, Reason}`. The caller becomes the owner: the pool
/// closes when it dies, and it gets `{mesh_event, _}`. Reads files, hence dirty.
#[rustler::nif(schedule = "DirtyIo")]
fn pool_open<'a>(env: Env<'a>, map: Term<'a>) -> NifResult<Term<'a>> {
    let options = match options::read(env, map)? {
        Ok(options) => options,
        Err(error) => return Ok(error),
    };
    let files = options.certificate;
    let identity = match files.map(|(cert, key)| Identity::load(&cert, &key)).transpose() {
        Ok(identity) => identity,
        Err(bad) => return Ok(terms::bad_certificate(env, &bad)),
    };
    let Ok(runtime) = runtime::start(options.workers) else {
        return Ok((atoms::error(), atoms::runtime_failed()).encode(env));
    };
    let owner = env.pid();
    let observer = move |event| match event {
        Event::Unverified => notify(owner, atoms::mesh_event(), atoms::unverified()),
    };
    match Mesh::new(options.config, identity, runtime.clone(), observer) {
        Ok(mesh) => {
            let pool = ResourceArc::new(PoolResource(mesh));
            env.monitor(&pool, &owner);
            Ok((atoms::ok(), pool).encode(env))
        }
        Err(error) => Ok(terms::error(env, &error)),
    }
}

/// `pool_checkout(Pool, NodeId) -> {ok, Stream} | miss`.
#[rustler::nif]
fn pool_checkout<'a>(env: Env<'a>, pool: Pool, node: Binary<'a>) -> Term<'a> {
    match pool.0.checkout(node.as_slice()) {
        Some(stream) => (atoms::ok(), stream).encode(env),
        None => atoms::miss().encode(env),
    }
}

/// `pool_connect(Pool, NodeId, Address, Token) -> ok | {error, Reason}`. After `ok`, the caller
/// gets `{mesh_connected, Token, {ok, Stream} | {error, Reason}}`.
#[rustler::nif]
fn pool_connect<'a>(
    env: Env<'a>,
    pool: Pool,
    node: Binary<'a>,
    address: Term<'a>,
    token: Term<'a>,
) -> NifResult<Term<'a>> {
    let Some(target) = address::target(address) else {
        return Ok(bad_address(env, address));
    };
    let pending = pool.0.connect(node.as_slice(), target);
    let reply = Reply::new(atoms::mesh_connected(), env.pid(), token);
    spawn(async move {
        let outcome = pending.await;
        reply.send(|env| match outcome {
            Ok(stream) => (atoms::ok(), stream).encode(env),
            Err(error) => terms::connect_failed(env, &error),
        });
    })?;
    Ok(atoms::ok().encode(env))
}

/// `pool_send(Pool, NodeId, Address, Message) -> ok`. What is not taken is counted.
#[rustler::nif]
fn pool_send<'a>(pool: Pool, node: Binary<'a>, address: Term<'a>, message: Binary<'a>) -> Atom {
    // The pool has counted the loss, and nobody is waiting to hear of it.
    pool.0.send(node.as_slice(), data::bytes(&message), || address::target(address)).ok();
    atoms::ok()
}

/// `pool_remove(Pool, NodeId) -> boolean()`.
#[rustler::nif]
fn pool_remove(pool: Pool, node: Binary<'_>) -> bool {
    pool.0.remove(node.as_slice())
}

/// `pool_info(Pool, NodeId) -> {ok, Info} | not_found`. Takes the connection's lock, which its
/// driver may hold for a while, hence dirty.
#[rustler::nif(schedule = "DirtyCpu")]
fn pool_info<'a>(env: Env<'a>, pool: Pool, node: Binary<'a>) -> NifResult<Term<'a>> {
    match pool.0.info(node.as_slice()) {
        Some(info) => Ok((atoms::ok(), terms::info(env, &info)?).encode(env)),
        None => Ok(atoms::not_found().encode(env)),
    }
}

/// `pool_list(Pool) -> [{NodeId, Info}]`, the most recently used first.
#[rustler::nif(schedule = "DirtyCpu")]
fn pool_list<'a>(env: Env<'a>, pool: Pool) -> NifResult<Term<'a>> {
    let mut list = Vec::new();
    for (node, info) in pool.0.list() {
        list.push((binary(env, &node), terms::info(env, &info)?).encode(env));
    }
    Ok(list.encode(env))
}

/// `pool_stats(Pool) -> map()`.
#[rustler::nif]
fn pool_stats<'a>(env: Env<'a>, pool: Pool) -> NifResult<Term<'a>> {
    let tasks = runtime::handle().map_or(0, |runtime| runtime.metrics().num_alive_tasks());
    terms::stats(env, &pool.0.stats(), tasks)
}

/// `pool_size(Pool) -> non_neg_integer()`.
#[rustler::nif]
fn pool_size(pool: Pool) -> usize {
    pool.0.size()
}

/// `pool_set_limit(Pool, Limit) -> ok | {error, {bad_option, max_mesh_connections, Limit}}`. May
/// have to part with many connections, hence dirty.
#[rustler::nif(schedule = "DirtyCpu")]
fn pool_set_limit<'a>(env: Env<'a>, pool: Pool, limit: Term<'a>) -> Term<'a> {
    match limit.decode().ok().and_then(|limit| pool.0.set_limit(limit).ok()) {
        Some(()) => atoms::ok().encode(env),
        None => {
            let reason = (atoms::bad_option(), atoms::max_mesh_connections(), limit);
            (atoms::error(), reason).encode(env)
        }
    }
}

/// `pool_close(Pool, Token) -> ok`. The caller gets `{mesh_closed, Token, ok}` when nothing of
/// the pool is left.
#[rustler::nif]
fn pool_close<'a>(env: Env<'a>, pool: Pool, token: Term<'a>) -> NifResult<Atom> {
    let closing = pool.0.close();
    let reply = Reply::new(atoms::mesh_closed(), env.pid(), token);
    spawn(async move {
        closing.await;
        reply.send(|env| atoms::ok().encode(env));
    })?;
    Ok(atoms::ok())
}

/// `stream_send(Stream, Data) -> ok | {error, Reason} | wait`. `wait`: nothing was taken, there
/// is no room now.
#[rustler::nif]
fn stream_send<'a>(env: Env<'a>, stream: Stream, data: Binary<'a>) -> Term<'a> {
    match stream.0.try_send(data::bytes(&data)) {
        Ok(()) => atoms::ok().encode(env),
        Err(Error::QueueFull | Error::PoolQueueFull) => atoms::wait().encode(env),
        Err(error) => terms::error(env, &error),
    }
}

/// `stream_send_wait(Stream, Data, Token) -> ok | {error, Reason} | wait`. After `wait`, the
/// caller gets `{mesh_sent, Token, ok | {error, Reason}}`.
#[rustler::nif]
fn stream_send_wait<'a>(
    env: Env<'a>,
    stream: Stream,
    data: Binary<'a>,
    token: Term<'a>,
) -> NifResult<Term<'a>> {
    let turn = match stream.0.send(data::bytes(&data)) {
        Ok(Sent::Accepted) => return Ok(atoms::ok().encode(env)),
        Ok(Sent::Waiting(turn)) => turn,
        Err(error) => return Ok(terms::error(env, &error)),
    };
    let reply = Reply::new(atoms::mesh_sent(), env.pid(), token);
    spawn(async move {
        let outcome = turn.await.unwrap_or(Err(Error::Cancelled));
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
fn stream_async_send<'a>(env: Env<'a>, stream: Stream, data: Binary<'a>) -> Term<'a> {
    match stream.0.try_send(data::bytes(&data)) {
        Ok(()) => atoms::ok().encode(env),
        Err(Error::PoolQueueFull) => terms::error(env, &Error::QueueFull),
        Err(error) => terms::error(env, &error),
    }
}

/// `handle_close(Stream | Connection) -> ok`.
#[rustler::nif]
fn handle_close(handle: Term<'_>) -> NifResult<Atom> {
    if let Ok(stream) = handle.decode::<Stream>() {
        stream.0.close();
    } else {
        handle.decode::<Connection>()?.0.close();
    }
    Ok(atoms::ok())
}

/// `handle_peername(Stream | Connection) -> {ok, {IpAddress, Port}}`.
#[rustler::nif]
fn handle_peername<'a>(env: Env<'a>, handle: Term<'a>) -> NifResult<Term<'a>> {
    let address = match handle.decode::<Stream>() {
        Ok(stream) => stream.0.remote_address(),
        Err(_) => handle.decode::<Connection>()?.0.remote_address(),
    };
    Ok((atoms::ok(), terms::socket_address(env, address)).encode(env))
}

/// `connection_open_stream(Connection, Token) -> ok`. The caller gets `{mesh_opened, Token,
/// {ok, Stream} | {error, Reason}}` and owns the stream: it closes when the caller dies.
#[rustler::nif]
fn connection_open_stream<'a>(
    env: Env<'a>,
    connection: Connection,
    token: Term<'a>,
) -> NifResult<Atom> {
    let owner = env.pid();
    let reply = Reply::new(atoms::mesh_opened(), owner, token);
    spawn(async move {
        match connection.0.open_stream().await {
            Ok(stream) => {
                let stream = Resources::stream(stream);
                if stream.monitor(None, &owner).is_none() {
                    stream.0.close();
                }
                reply.send(|env| (atoms::ok(), stream).encode(env));
            }
            Err(error) => reply.send(|env| terms::error(env, &error)),
        }
    })?;
    Ok(atoms::ok())
}

fn spawn(task: impl Future<Output = ()> + Send + 'static) -> NifResult<()> {
    let runtime = runtime::handle().ok_or(rustler::Error::BadArg)?;
    runtime.spawn(task);
    Ok(())
}

fn bad_address<'a>(env: Env<'a>, address: Term<'a>) -> Term<'a> {
    let reason = (atoms::connect_failed(), (atoms::bad_address(), address));
    (atoms::error(), reason).encode(env)
}

fn binary<'a>(env: Env<'a>, node: &NodeId) -> Binary<'a> {
    let mut binary = rustler::NewBinary::new(env, node.len());
    binary.as_mut_slice().copy_from_slice(node);
    binary.into()
}
