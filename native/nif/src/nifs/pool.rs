//! Pools.

use std::time::Duration;

use mesh::{Error, Event, Identity, Mesh};
use rustler::{Atom, Binary, Encoder, Env, NifResult, Term};

use super::{Pool, spawn};
use crate::direct::direct;
use crate::library::{Held, hold};
use crate::reply::{Reply, notify};
use crate::resources::{Caller, PoolResource};
use crate::terms::ErlangClock;
use crate::{address, atoms, data, events, options, runtime, terms};

/// The longest node id: what is hashed in a tenth of a millisecond, since that is done under the
/// pool's lock. Those in use have 32 bytes.
const MAX_NODE_ID: usize = 65_536;

/// `pool_open(Options) -> {ok, Pool, LingerMs} | {error, Reason}`. The caller becomes the owner:
/// the pool closes when it dies, and it gets `{mesh_event, _}`. Reads files, hence dirty.
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
    let linger_ms = options.config.linger_ms();
    let observer = move |event| match event {
        Event::Unverified => notify(owner, atoms::mesh_event(), atoms::unverified()),
        Event::SocketLost => notify(owner, atoms::mesh_event(), atoms::socket_lost()),
    };
    match Mesh::new(options.config, identity, options.verification, runtime.clone(), observer) {
        Ok(mesh) => {
            let pool = hold(PoolResource(mesh));
            env.monitor(&pool, &owner);
            Ok((atoms::ok(), pool, linger_ms).encode(env))
        }
        Err(error) => Ok(terms::error(env, &error)),
    }
}

/// `pool_checkout(Pool, NodeId) -> {ok, Stream} | miss`.
fn pool_checkout<'a>(env: Env<'a>, [pool, node]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let (pool, node): (&Held<PoolResource>, Binary<'a>) = (pool.decode()?, node.decode()?);
    Ok(match known(&node).and_then(|node| pool.0.checkout(node)) {
        Some(stream) => (atoms::ok(), stream).encode(env),
        None => atoms::miss().encode(env),
    })
}

direct!(pool_checkout / 2);

/// `pool_connect(Pool, NodeId, Address, Token) -> ok | {error, Reason}`; of any node id. After
/// `ok`, the caller gets `{mesh_connected, Token, {ok, Stream} | {error, Reason}}`.
#[rustler::nif]
fn pool_connect<'a>(
    env: Env<'a>,
    pool: Pool,
    node: Term<'a>,
    address: Term<'a>,
    token: Term<'a>,
) -> NifResult<Term<'a>> {
    let node = node.decode::<Binary<'a>>().ok();
    let Some(node) = node.as_ref().and_then(known) else {
        return Ok(terms::connect_failed(env, &Error::BadNode));
    };
    let Some(target) = address::target(address) else {
        return Ok(bad_address(env, address));
    };
    let pending = pool.0.connect(node, target);
    let reply = Reply::new(atoms::mesh_connected(), env.pid(), token);
    pool.0.attend(async move {
        let outcome = pending.await;
        reply.send(|env| match outcome {
            Ok(stream) => (atoms::ok(), stream).encode(env),
            Err(error) => terms::connect_failed(env, &error),
        });
    });
    Ok(atoms::ok().encode(env))
}

/// `pool_send(Pool, NodeId, Address, Message) -> ok | closed`; of any node id and message. What is
/// not taken is counted; `closed`: nothing was done, the pool is closed.
fn pool_send<'a>(
    env: Env<'a>,
    [pool, node, address, message]: [Term<'a>; 4],
) -> NifResult<Term<'a>> {
    let pool: &Held<PoolResource> = pool.decode()?;
    let Ok(message) = data::payload(message) else {
        pool.0.refuse(&Error::BadMessage);
        return Ok(atoms::ok().encode(env));
    };
    let (node, target) = (node.decode::<Binary<'a>>().ok(), || address::target(address));
    let Some(node) = node.as_ref().and_then(known) else {
        pool.0.refuse(&Error::BadNode);
        return Ok(atoms::ok().encode(env));
    };
    Ok(match pool.0.send(node, message, target) {
        Err(Error::PoolClosed) => atoms::closed().encode(env),
        // The pool has counted any other loss, and nobody is waiting to hear of it.
        Ok(()) | Err(_) => atoms::ok().encode(env),
    })
}

direct!(pool_send / 4);

/// `pool_deliver(Pool, NodeId, Address, Message, TimeoutMs, Token) -> ok | closed | {error,
/// Reason}`; of any node id. After `ok`, the caller gets `{mesh_delivered, Token, ok | {error,
/// Reason}}`; when it dies before anything has been sent, nothing will be. `closed`: nothing was
/// done, the pool is closed.
#[rustler::nif]
fn pool_deliver<'a>(
    env: Env<'a>,
    pool: Pool,
    node: Term<'a>,
    address: Term<'a>,
    message: Term<'a>,
    timeout_ms: u64,
    token: Term<'a>,
) -> NifResult<Term<'a>> {
    let message = data::payload(message)?;
    let (node, target) = (node.decode::<Binary<'a>>().ok(), || address::target(address));
    let Some(node) = node.as_ref().and_then(known) else {
        pool.0.refuse(&Error::BadNode);
        return Ok(terms::connect_failed(env, &Error::BadNode));
    };
    let delivery = match pool.0.deliver(node, message, target) {
        Ok(delivery) => delivery,
        Err(refusal) if *refusal.cause() == Error::PoolClosed => {
            return Ok(atoms::closed().encode(env));
        }
        Err(refusal) if *refusal.cause() == Error::BadAddress => {
            return Ok(bad_address(env, address));
        }
        Err(refusal) => return Ok(terms::undelivered(env, &refusal)),
    };
    let reply = Reply::new(atoms::mesh_delivered(), env.pid(), token);
    let caller = Caller::of(env);
    pool.0.attend(async move {
        let outcome = tokio::select! {
            outcome = delivery.within(Duration::from_millis(timeout_ms)) => outcome,
            // With it goes the delivery, and the message if nothing of that has been sent.
            () = caller.gone() => return reply.forget(),
        };
        reply.send(|env| match outcome {
            Ok(()) => atoms::ok().encode(env),
            Err(why) => terms::undelivered(env, &why),
        });
    });
    Ok(atoms::ok().encode(env))
}

/// `pool_remove(Pool, NodeId) -> boolean()`; of any term.
#[rustler::nif]
fn pool_remove(pool: Pool, node: Term<'_>) -> bool {
    node.decode().is_ok_and(|node| known(&node).is_some_and(|node| pool.0.remove(node)))
}

/// `pool_info(Pool, NodeId, SystemTimeUs) -> {ok, Info} | not_found`; of any term. Takes the
/// connection's lock, which its driver may hold for a while, hence dirty.
#[rustler::nif(schedule = "DirtyCpu")]
fn pool_info<'a>(
    env: Env<'a>,
    pool: Pool,
    node: Term<'a>,
    system_time_us: i64,
) -> NifResult<Term<'a>> {
    let clock = ErlangClock::showing(system_time_us);
    let node = node.decode::<Binary<'a>>().ok();
    match node.as_ref().and_then(known).and_then(|node| pool.0.info(node)) {
        Some(info) => Ok((atoms::ok(), terms::info(env, &info, clock)?).encode(env)),
        None => Ok(atoms::not_found().encode(env)),
    }
}

/// `pool_list(Pool, SystemTimeUs) -> [{NodeId, Info}]`, the most recently used first.
#[rustler::nif(schedule = "DirtyCpu")]
fn pool_list<'a>(env: Env<'a>, pool: Pool, system_time_us: i64) -> NifResult<Term<'a>> {
    let clock = ErlangClock::showing(system_time_us);
    let mut list = Vec::new();
    for (node, info) in pool.0.list() {
        list.push((events::binary(env, &node), terms::info(env, &info, clock)?).encode(env));
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
    #[cfg(feature = "defects")]
    crate::defects::commit();
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
/// the pool is left, and all who waited for it have their answers.
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

/// A node id that one of the pool may have.
fn known<'b>(node: &'b Binary<'_>) -> Option<&'b [u8]> {
    Some(node.as_slice()).filter(|id| id.len() <= MAX_NODE_ID)
}

fn bad_address<'a>(env: Env<'a>, address: Term<'a>) -> Term<'a> {
    let reason = (atoms::connect_failed(), (atoms::bad_address(), address));
    (atoms::error(), reason).encode(env)
}
