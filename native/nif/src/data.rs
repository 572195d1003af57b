//! Payloads on their way in. Small ones are copied; large ones stay the Erlang binaries that they
//! are, kept alive until the network stack has let go of them.

use std::ptr::{NonNull, null_mut};

use bytes::Bytes;
use mesh::Payload;
use rustler::codegen_runtime::c_int;
use rustler::sys::{ErlNifIOVec, enif_free_iovec, enif_inspect_iovec, enif_make_list_from_array};
use rustler::{Binary, NifResult, Term};

/// Where keeping a binary becomes cheaper than copying it to where another core has to fetch it.
const KEEP_FROM_BYTES: usize = 4 * 1024;

/// The payload, to be copied when it is taken, or kept. To be made before the call looks at any
/// other binary: keeping one that has room to grow moves its bytes to where it has none, and those
/// of another term that is part of it.
pub(crate) fn payload(data: Term<'_>) -> NifResult<Payload<'_>> {
    let kept = match data.decode::<Binary<'_>>()?.len() {
        KEEP_FROM_BYTES.. => Kept::new(data),
        _ => None,
    };
    Ok(match kept {
        Some(kept) => Payload::Shared(Bytes::from_owner(kept)),
        // Looked at anew: it may have been moved.
        None => Payload::Borrowed(data.decode::<Binary<'_>>()?.as_slice()),
    })
}

/// An Erlang binary in an I/O vector of the VM, which holds a reference to it. An environment of
/// its own does the same and is dearer.
struct Kept(NonNull<Vector>);

/// The documented part of `ErlNifIOVec` (erl_nif.h), whose fields rustler does not show.
#[repr(C)]
struct Vector {
    count: c_int,
    size: usize,
    parts: *const Part,
}

/// `SysIOVec`, which is the system's `iovec`.
#[repr(C)]
struct Part {
    start: *const u8,
    length: usize,
}

impl Kept {
    #[allow(unsafe_code, reason = "rustler does not wrap I/O vectors")]
    fn new(data: Term<'_>) -> Option<Self> {
        let (env, items) = (data.get_env(), [data.as_c_arg()]);
        let mut vector: *mut ErlNifIOVec = null_mut();
        // SAFETY: the list and the rest of it are terms of the call's environment. Given none to
        // live in, the vector is made to be freed by us, and refers to what is not on a heap. No
        // slice of a binary is in use, which this may move.
        let is_made = unsafe {
            let list = enif_make_list_from_array(env.as_c_arg(), items.as_ptr(), 1);
            let mut rest = list;
            enif_inspect_iovec(null_mut(), 1, list, &raw mut rest, &raw mut vector) != 0
        };
        let kept = Self(NonNull::new(vector.cast()).filter(|_| is_made)?);
        // What is none of one part is freed again.
        kept.part().is_some().then_some(kept)
    }

    #[allow(unsafe_code, reason = "as above")]
    fn part(&self) -> Option<&[u8]> {
        // SAFETY: the VM has filled the vector, which is not changed any more, with as many parts as
        // it says. What a part refers to is counted, never moves or changes, and lives as long.
        unsafe {
            let Vector { count: 1, size: _, parts } = *self.0.as_ref() else { return None };
            let Part { start, length } = *parts;
            Some(std::slice::from_raw_parts(start, length))
        }
    }
}

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        self.part().unwrap_or_default()
    }
}

impl Drop for Kept {
    #[allow(unsafe_code, reason = "as above")]
    fn drop(&mut self) {
        // SAFETY: it was made to be freed by us, and is freed once, on whatever thread.
        unsafe { enif_free_iovec(self.0.as_ptr().cast()) };
    }
}

#[allow(unsafe_code, reason = "a raw pointer is neither Send nor Sync by itself")]
// SAFETY: the bytes are immutable, and any thread may free the vector.
unsafe impl Send for Kept {}

#[allow(unsafe_code, reason = "a raw pointer is neither Send nor Sync by itself")]
// SAFETY: shared access only reads immutable bytes and the vector that leads to them.
unsafe impl Sync for Kept {}
