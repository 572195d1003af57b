//! What the VM does with this library, and what of it must outlast that.
//!
//! Purging `macula_gateway_mesh_nif` takes the library from its module, and with it every resource
//! type of which no object lives. The library itself stays mapped (`build.rs`), and the runtime's
//! tasks go on to make connections and streams: of a type that is gone, were it not kept. Loading
//! the module once more makes new types; handles from before are of the old ones, and no longer
//! taken.

use std::ops::Deref;
use std::sync::{PoisonError, RwLock};

use rustler::codegen_runtime::ResourceRegistration;
use rustler::{Atom, Env, Resource, ResourceArc, Term};

use crate::atoms;
use crate::resources::{
    Caller, ConnectionResource, ListenerResource, PoolResource, StreamResource,
};

/// Which resource types are the present ones: written when the module is loaded, read by whoever
/// makes a resource, which may be a task from before that. rustler itself knows of no second load.
/// It asks for names that last as long as the program; here are all of them, so that they are not
/// taken for leaks.
static TYPES: RwLock<Vec<&'static str>> = RwLock::new(Vec::new());

/// What is in a resource: something, but for the objects that only keep their type alive. No term
/// leads to one of those.
pub(crate) struct Held<T>(Option<T>);

impl<T> Deref for Held<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().unwrap_or_else(|| unreachable!("nobody has a handle to nothing"))
    }
}

/// Makes a resource, on any thread.
pub(crate) fn hold<T>(value: T) -> ResourceArc<Held<T>>
where
    Held<T>: Resource,
{
    let _types = TYPES.read().unwrap_or_else(PoisonError::into_inner);
    ResourceArc::new(Held(Some(value)))
}

/// Registers the resource types: the VM calls it while it loads the module.
pub(crate) fn load<'a>(env: Env<'a>, _info: Term<'a>) -> bool {
    let mut names = TYPES.write().unwrap_or_else(PoisonError::into_inner);
    register::<PoolResource>(env, "pool", &mut names)
        && register::<ConnectionResource>(env, "connection", &mut names)
        && register::<StreamResource>(env, "stream", &mut names)
        && register::<ListenerResource>(env, "listener", &mut names)
        && register::<Caller>(env, "caller", &mut names)
}

/// Registers a resource type under a name that no load has used before. When callers are about to
/// load the module while it is purged, OTP 25 now and then leaves the former types behind; types of
/// the same name would then be refused until the VM ends.
fn register<T>(env: Env<'_>, noun: &str, names: &mut Vec<&'static str>) -> bool
where
    Held<T>: Resource,
{
    let name = &*format!("{noun} {}", names.len()).leak();
    names.push(name);
    ResourceRegistration::new::<Held<T>>().with_name(name).register(env).is_ok()
}

/// `keep_types() -> ok`: makes the present resource types last as long as the VM. The module calls
/// it as soon as it has loaded the library, before which there can be no object.
#[rustler::nif]
fn keep_types() -> Atom {
    let _types = TYPES.read().unwrap_or_else(PoisonError::into_inner);
    keep_type::<PoolResource>();
    keep_type::<ConnectionResource>();
    keep_type::<StreamResource>();
    keep_type::<ListenerResource>();
    keep_type::<Caller>();
    atoms::ok()
}

fn keep_type<T>()
where
    Held<T>: Resource,
{
    std::mem::forget(ResourceArc::new(Held::<T>(None)));
}
