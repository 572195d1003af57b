//! Waiting for what must come true.

use std::time::Duration;

use tokio::time::{sleep, timeout};

/// How long anything may take at most.
const PATIENCE: Duration = Duration::from_secs(10);

/// Looks until it is so; `false`: it never was.
#[must_use]
pub(crate) async fn until(is_so: impl Fn() -> bool) -> bool {
    let waiting = async {
        while !is_so() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, waiting).await.is_ok()
}
