//! The one tokio runtime of the VM. The first pool, listener or connection of a caller's own starts
//! it; it never ends, because Erlang terms may hold handles for as long as the VM lives.

use std::io;
use std::thread::available_parallelism;

use once_cell::sync::OnceCell;
use tokio::runtime::{Builder, Handle, Runtime};

/// Most threads for file and name look-ups; `mesh` bounds its look-ups below this.
const MAX_BLOCKING_THREADS: usize = 32;
/// Worker threads that an option may ask for.
pub(crate) const MAX_WORKERS: usize = 256;

static RUNTIME: OnceCell<Runtime> = OnceCell::new();

/// The runtime, started with `workers` threads if it does not run yet. Who comes later shares it,
/// and his wish for another number has no effect.
pub(crate) fn start(workers: Option<usize>) -> io::Result<&'static Handle> {
    let runtime = RUNTIME.get_or_try_init(|| {
        Builder::new_multi_thread()
            .worker_threads(workers.unwrap_or_else(default_workers))
            .max_blocking_threads(MAX_BLOCKING_THREADS)
            .thread_name("mesh")
            .enable_all()
            .build()
    })?;
    Ok(runtime.handle())
}

/// The runtime, if it runs: whoever holds a resource of ours can count on that.
pub(crate) fn handle() -> Option<&'static Handle> {
    RUNTIME.get().map(Runtime::handle)
}

/// One worker for two cores: on machines shared with busy schedulers, more workers only take
/// work from each other (0.95 against 0.53 million messages a second on two cores).
fn default_workers() -> usize {
    available_parallelism().map_or(1, |cores| cores.get().div_ceil(2)).min(MAX_WORKERS)
}
