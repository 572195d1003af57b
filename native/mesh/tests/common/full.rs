//! Waiting until a window is full.

use std::time::Duration;

use tokio::time::sleep;

/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(5);
/// Looks that find nothing more sent. A machine that stands still is one look.
const LOOKS: usize = 10;

/// Looks until `sent` bytes are `least` or more, and do not grow any more.
pub(crate) async fn full(least: u64, sent: impl Fn() -> u64) {
    let (mut before, mut looks) = (sent(), 0);
    while looks < LOOKS {
        sleep(PAUSE).await;
        let now = sent();
        looks = if now == before && now >= least { looks + 1 } else { 0 };
        before = now;
    }
}
