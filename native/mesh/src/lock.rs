//! Taking a std mutex, for those who hold several. One that a panic has poisoned is taken, too.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A std mutex, because nothing awaits inside.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
