//! What Erlang terms refer to: pools, connections and streams. A resource is a handle; what it
//! refers to ends by itself, and the handle then says so.

use mesh::{Handles, Mesh, PooledConnection, Stream};
use rustler::{Env, LocalPid, Monitor, Resource, ResourceArc};

use crate::runtime;

/// The pool's handles, as Erlang holds them.
pub(crate) struct Resources;

impl Handles for Resources {
    type Connection = ResourceArc<ConnectionResource>;
    type Stream = ResourceArc<StreamResource>;

    fn connection(connection: PooledConnection) -> Self::Connection {
        ResourceArc::new(ConnectionResource(connection))
    }

    fn stream(stream: Stream) -> Self::Stream {
        ResourceArc::new(StreamResource(stream))
    }
}

/// A pool. It closes when its owner dies, or when nobody holds it any more.
pub(crate) struct PoolResource(pub(crate) Mesh<Resources>);

#[rustler::resource_impl]
impl Resource for PoolResource {
    fn down<'a>(&'a self, _env: Env<'a>, _owner: LocalPid, _monitor: Monitor) {
        if let Some(runtime) = runtime::handle() {
            runtime.spawn(self.0.close());
        }
    }
}

/// A pooled connection.
pub(crate) struct ConnectionResource(pub(crate) PooledConnection);

#[rustler::resource_impl]
impl Resource for ConnectionResource {}

/// A stream. One that a process opened closes when that process dies; the pooled ones have no
/// owner.
pub(crate) struct StreamResource(pub(crate) Stream);

#[rustler::resource_impl]
impl Resource for StreamResource {
    fn down<'a>(&'a self, _env: Env<'a>, _owner: LocalPid, _monitor: Monitor) {
        self.0.close();
    }
}
