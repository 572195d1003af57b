//! What Erlang terms refer to: pools, connections, streams and listeners. A resource is a handle;
//! what it refers to ends by itself, and the handle then says so.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mesh::{ByteStream, Connection, Error, Handles, Listener, Mesh, PooledConnection, Stream};
use rustler::{Encoder, Env, LocalPid, Monitor, Resource, ResourceArc};
use tokio::sync::Notify;

use crate::inlet::Inlet;
use crate::library::{Held, hold};
use crate::settings::Files;
use crate::{atoms, events, runtime};

/// The application error code of connections that we close without being told one.
pub(crate) const NO_ERROR: u64 = 0;

/// The pool's handles, as Erlang holds them.
pub(crate) struct Resources;

impl Handles for Resources {
    type Connection = ResourceArc<Held<ConnectionResource>>;
    type Stream = ResourceArc<Held<StreamResource>>;

    fn connection(connection: PooledConnection) -> Self::Connection {
        hold(ConnectionResource::Pooled(connection))
    }

    fn stream(stream: Stream) -> Self::Stream {
        hold(StreamResource { stream, inlet: None })
    }
}

/// A pool. It closes when its owner dies, or when nobody holds it any more.
pub(crate) struct PoolResource(pub(crate) Mesh<Resources>);

#[rustler::resource_impl(register = false)]
impl Resource for Held<PoolResource> {
    fn down<'a>(&'a self, _env: Env<'a>, _owner: LocalPid, _monitor: Monitor) {
        if let Some(runtime) = runtime::handle() {
            runtime.spawn(self.0.close());
        }
    }
}

/// A connection: a pooled one has no owner; one of a process's own closes with that process.
pub(crate) enum ConnectionResource {
    Pooled(PooledConnection),
    Own(Connection, Mutex<Owner>),
}

/// The process that a connection belongs to.
pub(crate) struct Owner {
    pub(crate) pid: LocalPid,
    pub(crate) monitor: Option<Monitor>,
    /// It has closed the connection itself, and is not told of its end.
    pub(crate) has_closed: bool,
}

impl Owner {
    /// Whether `monitor` is that of the present owner: of the first one, it may come down before
    /// it has been noted here.
    fn is_monitored_by(&self, monitor: &Monitor) -> bool {
        self.monitor.as_ref().is_none_or(|present| present == monitor)
    }
}

#[rustler::resource_impl(register = false)]
impl Resource for Held<ConnectionResource> {
    fn down<'a>(&'a self, _env: Env<'a>, _owner: LocalPid, monitor: Monitor) {
        if let ConnectionResource::Own(connection, owner) = &**self
            && lock(owner).is_monitored_by(&monitor)
            && let Some(runtime) = runtime::handle()
        {
            // On a thread that may wait for the connection's lock.
            let connection = connection.clone();
            runtime.spawn(async move { connection.close(NO_ERROR) });
        }
    }
}

impl ConnectionResource {
    /// Makes `pid` the owner of `connection`, from a thread of the runtime. `None`: the process
    /// has gone.
    pub(crate) fn owned(connection: Connection, pid: LocalPid) -> Option<ResourceArc<Held<Self>>> {
        let owner = Owner { pid, monitor: None, has_closed: false };
        let resource = hold(Self::Own(connection.clone(), Mutex::new(owner)));
        let monitor = resource.monitor(None, &pid)?;
        if let Some(owner) = resource.owner() {
            lock(owner).monitor = Some(monitor);
        }
        Some(resource)
    }

    /// From here on the owner is told of the connection's end: not before it has been told of the
    /// connection.
    pub(crate) fn watch(handle: &ResourceArc<Held<Self>>) {
        if let Self::Own(connection, _) = &***handle
            && let Some(runtime) = runtime::handle()
        {
            let (ended, watched) = (connection.ended(), handle.clone());
            runtime.spawn(async move { watched.announce(&watched, &ended.await) });
        }
    }

    pub(crate) fn owner(&self) -> Option<&Mutex<Owner>> {
        match self {
            Self::Pooled(_) => None,
            Self::Own(_, owner) => Some(owner),
        }
    }

    pub(crate) fn remote_address(&self) -> SocketAddr {
        match self {
            Self::Pooled(connection) => connection.remote_address(),
            Self::Own(connection, _) => connection.remote_address(),
        }
    }

    pub(crate) fn local_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Pooled(connection) => connection.local_address(),
            Self::Own(connection, _) => Some(connection.facts().local),
        }
    }

    /// Tells the owner that the connection has ended, and why; locked, so that who hands it over
    /// has got the messages before or not at all.
    fn announce(&self, handle: &ResourceArc<Held<Self>>, error: &Error) {
        let Some(owner) = self.owner() else { return };
        let owner = lock(owner);
        if owner.has_closed {
            return;
        }
        let pid = owner.pid;
        match error {
            Error::ClosedByPeer(code) => {
                let code = *code;
                events::post(&pid, atoms::shutdown(), handle, |env| code.encode(env));
            }
            Error::Cancelled => {}
            _ => {
                let what = atoms::transport_shutdown();
                events::post(&pid, what, handle, |env| events::connection_end(env, error));
            }
        }
        events::post(&pid, atoms::closed(), handle, |env| events::connection_end(env, error));
    }
}

/// A stream. One of plain bytes belongs to a process, and closes when that dies or when nobody
/// holds the stream any more; the pooled ones have no owner.
pub(crate) struct StreamResource {
    pub(crate) stream: Stream,
    pub(crate) inlet: Option<Arc<Inlet>>,
}

#[rustler::resource_impl(register = false)]
impl Resource for Held<StreamResource> {
    fn down<'a>(&'a self, _env: Env<'a>, _owner: LocalPid, monitor: Monitor) {
        if self.inlet.as_ref().is_some_and(|inlet| inlet.is_monitored_by(&monitor)) {
            self.lose_owner();
        }
    }
}

impl StreamResource {
    /// Makes `pid` the owner of `stream`, from a thread of the runtime. `None`: the process has
    /// gone.
    pub(crate) fn owned(
        stream: Stream,
        pid: LocalPid,
        has_events: bool,
    ) -> Option<ResourceArc<Held<Self>>> {
        let inlet = Arc::new(Inlet::new(pid, has_events));
        let watch = inlet.clone();
        let bytes = stream.bytes()?;
        let ended = bytes.sending_ended();
        if bytes.is_unidirectional() {
            inlet.receive_only();
        }
        let resource = hold(Self { stream, inlet: Some(inlet.clone()) });
        inlet.set_monitor(resource.monitor(None, &pid)?);
        if let Some(runtime) = runtime::handle() {
            runtime.spawn(async move { watch.sending_ended(ended.await) });
        }
        Some(resource)
    }
}

impl StreamResource {
    /// Its owner has died: what is queued still goes out, and nothing more is read.
    pub(crate) fn lose_owner(&self) {
        self.stream.close();
        if let Some(inlet) = &self.inlet {
            inlet.close(None, NO_ERROR);
        }
        self.stop_reading(NO_ERROR);
    }

    /// Reads no more, on a thread that may wait for the connection's lock, unless the stream is
    /// being read: who does then stops himself.
    pub(crate) fn stop_reading(&self, code: u64) {
        let reader = self.stream.bytes().and_then(ByteStream::take_reader);
        if let (Some(reader), Some(runtime)) = (reader, runtime::handle()) {
            runtime.spawn(async move { reader.stop(code) });
        }
    }
}

impl Drop for StreamResource {
    fn drop(&mut self) {
        let Some(inlet) = &self.inlet else { return };
        inlet.close(None, NO_ERROR);
        // One that could not be given to anybody is still there for the next.
        if inlet.is_owned() {
            self.stop_reading(NO_ERROR);
        }
    }
}

/// Who waits for a dial of his own, for his turn to send, or for what becomes of his message: all
/// of them end with him.
pub(crate) struct Caller(Notify);

impl Caller {
    /// The process that calls, watched.
    pub(crate) fn of(env: Env<'_>) -> ResourceArc<Held<Self>> {
        let caller = hold(Self(Notify::new()));
        env.monitor(&caller, &env.pid());
        caller
    }

    /// Resolves when it has died.
    pub(crate) async fn gone(&self) {
        self.0.notified().await;
    }
}

#[rustler::resource_impl(register = false)]
impl Resource for Held<Caller> {
    fn down<'a>(&'a self, _env: Env<'a>, _caller: LocalPid, _monitor: Monitor) {
        self.0.notify_one();
    }
}

/// A listener. It closes when its owner dies, or when nobody holds it any more.
pub(crate) struct ListenerResource {
    pub(crate) listener: Listener,
    pub(crate) owner: Mutex<Owner>,
    /// Where its certificate and key came from.
    pub(crate) files: Option<Files>,
    /// Held while these are read again: what was read first is shown first.
    pub(crate) reloading: Mutex<()>,
}

#[rustler::resource_impl(register = false)]
impl Resource for Held<ListenerResource> {
    fn down<'a>(&'a self, _env: Env<'a>, _owner: LocalPid, monitor: Monitor) {
        if lock(&self.owner).is_monitored_by(&monitor) {
            self.listener.let_go();
        }
    }
}

/// A std mutex, because nothing awaits inside.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
