//! Defects on purpose, in no build but that of `make sanitize`, which proves by them that it would
//! see one that is none.

use std::hint::black_box;

/// How many times a defect is made: one leaked piece may be found by chance in what is left on a
/// stack.
const TIMES: usize = 100;
const BYTES: usize = 64;

/// Makes the defect that the environment names.
pub(crate) fn commit() {
    match std::env::var("MACULA_DEFECT").as_deref() {
        Ok("leak") => (0..TIMES).for_each(|_| leak()),
        Ok("overrun") => overrun(),
        _ => {}
    }
}

#[inline(never)]
fn leak() {
    std::mem::forget(black_box(vec![1_u8; BYTES]));
}

#[inline(never)]
#[allow(unsafe_code, reason = "safe code cannot do this, which is why it is worth watching for")]
fn overrun() {
    let mut bytes = vec![0_u8; BYTES];
    let start = black_box(bytes.as_mut_ptr());
    // SAFETY: it is not. One byte behind the end is written, into what a checked allocator keeps
    // free there.
    unsafe { start.add(BYTES).write(1) };
    black_box(bytes);
}
