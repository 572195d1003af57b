//! How the VM calls the functions of which there is a call for each message: as by the attribute
//! `rustler::nif`, but that their arguments go on the stack. The attribute sets aside a vector for
//! them, and that costs as much as the message's place in its queue.

use std::panic::{UnwindSafe, catch_unwind};

use rustler::codegen_runtime::handle_nif_result;
use rustler::sys::{ErlNifEnv, ErlNifTerm};
use rustler::{Env, NifResult, Term};

/// Makes `fn name(Env, [Term; ARITY]) -> NifResult<Term>` a function of the library.
macro_rules! direct {
    ($name:ident / $arity:literal) => {
        rustler::codegen_runtime::inventory::submit!(rustler::Nif {
            name: concat!(stringify!($name), "\0").as_ptr().cast(),
            arity: $arity,
            flags: 0,
            raw_func: {
                #[allow(unsafe_code, reason = "what the VM calls")]
                unsafe extern "C" fn call(
                    env: *mut rustler::sys::ErlNifEnv,
                    _arity: rustler::codegen_runtime::c_int,
                    arguments: *const rustler::sys::ErlNifTerm,
                ) -> rustler::sys::ErlNifTerm {
                    // SAFETY: the VM gives its environment, and as many arguments as it was told.
                    unsafe { $crate::direct::call::<$arity>(env, arguments.cast(), $name) }
                }
                call
            },
        });
    };
}

pub(crate) use direct;

/// Calls `function` with the arguments that are there.
///
/// # Safety
/// `env` is what the VM has given for this call, and so is what `arguments` points to.
#[allow(unsafe_code, reason = "what the VM has given is known by its address alone")]
pub(crate) unsafe fn call<const ARITY: usize>(
    env: *mut ErlNifEnv,
    arguments: *const [ErlNifTerm; ARITY],
    function: impl for<'a> Fn(Env<'a>, [Term<'a>; ARITY]) -> NifResult<Term<'a>> + UnwindSafe,
) -> ErlNifTerm {
    let lifetime = ();
    // SAFETY: by what is said above.
    let (env, arguments) = unsafe { (Env::new(&lifetime, env), &*arguments) };
    // SAFETY: they are terms of that environment.
    let terms = arguments.map(|term| unsafe { Term::new(env, term) });
    let result = catch_unwind(move || function(env, terms));
    // SAFETY: what it gives goes to the VM at once.
    unsafe { handle_nif_result(result, env).apply(env) }
}
