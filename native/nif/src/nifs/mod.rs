//! The functions of `macula_gateway_mesh_nif`. Each decodes, calls `mesh`, and encodes; what takes
//! longer than a lock is spawned and answered by a message.

mod handle;
mod pool;
mod quic;
mod stream;

use rustler::{NifResult, ResourceArc};

use crate::library::Held;
use crate::resources::{ConnectionResource, ListenerResource, PoolResource, StreamResource};
use crate::runtime;

type Pool = ResourceArc<Held<PoolResource>>;
type Connection = ResourceArc<Held<ConnectionResource>>;
type Stream = ResourceArc<Held<StreamResource>>;
type Listener = ResourceArc<Held<ListenerResource>>;

/// Runs a task. There is a runtime, since there is a resource.
fn spawn(task: impl Future<Output = ()> + Send + 'static) -> NifResult<()> {
    let runtime = runtime::handle().ok_or(rustler::Error::BadArg)?;
    runtime.spawn(task);
    Ok(())
}
