//! The time of day as it was when it was first asked for, and what has passed since: nobody sets
//! this clock.

use std::sync::LazyLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

static BEGIN: LazyLock<(Instant, SystemTime)> =
    LazyLock::new(|| (Instant::now(), SystemTime::now()));

/// The time on this clock.
pub fn now() -> SystemTime {
    at(Instant::now())
}

/// The time on this clock at `instant`, in whole seconds since the epoch.
pub(crate) fn seconds_at(instant: Instant) -> u64 {
    at(instant).duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn at(instant: Instant) -> SystemTime {
    let (begin, time) = *BEGIN;
    time + instant.saturating_duration_since(begin)
}
