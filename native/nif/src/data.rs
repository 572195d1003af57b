//! Payloads on their way in. Small ones are copied; large ones stay the Erlang binaries that they
//! are, kept alive until the network stack has let go of them.

use bytes::Bytes;
use mesh::Payload;
use rustler::{Binary, Env, OwnedEnv};

/// Where keeping a binary becomes cheaper than copying it: an environment to keep it in costs as
/// much as copying about this many bytes.
const KEEP_FROM_BYTES: usize = 8 * 1024;

/// The payload, to be copied when it is taken, or kept.
pub(crate) fn payload<'a>(binary: &'a Binary<'_>) -> Payload<'a> {
    if binary.len() < KEEP_FROM_BYTES {
        return Payload::Borrowed(binary.as_slice());
    }
    match Kept::new(binary) {
        Some(kept) => Payload::Shared(Bytes::from_owner(kept)),
        None => Payload::Borrowed(binary.as_slice()),
    }
}

/// An Erlang binary in an environment of its own.
struct Kept {
    /// Holds a reference to the binary for as long as it lives.
    _env: OwnedEnv,
    start: *const u8,
    length: usize,
}

impl Kept {
    fn new(binary: &Binary<'_>) -> Option<Self> {
        let env = OwnedEnv::new();
        let saved = env.save(*binary);
        let (start, length) = env.run(|env: Env<'_>| {
            let copy = saved.load(env).decode::<Binary<'_>>().ok()?;
            Some((copy.as_slice().as_ptr(), copy.len()))
        })?;
        Some(Self { _env: env, start, length })
    }
}

impl AsRef<[u8]> for Kept {
    #[allow(unsafe_code, reason = "keeping a binary alive is what makes its bytes outlive a call")]
    fn as_ref(&self) -> &[u8] {
        // SAFETY: binaries of this size are reference-counted and never move or change; the
        // environment holds a reference from before `start` was read until this is dropped.
        unsafe { std::slice::from_raw_parts(self.start, self.length) }
    }
}

#[allow(unsafe_code, reason = "a raw pointer is neither Send nor Sync by itself")]
// SAFETY: the bytes are immutable, and an environment may be freed by any thread.
unsafe impl Send for Kept {}

#[allow(unsafe_code, reason = "a raw pointer is neither Send nor Sync by itself")]
// SAFETY: shared access only reads immutable bytes; the environment is not touched.
unsafe impl Sync for Kept {}
