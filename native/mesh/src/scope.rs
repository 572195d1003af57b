//! What connections and streams need of their surroundings: tasks that end with them, room for
//! what waits to be sent, and how long to linger.

use std::sync::Arc;
use std::time::Duration;

use crate::Config;
use crate::budget::Budget;
use crate::outbox::{Limits, Outbox};
use crate::stats::Stats;
use crate::tasks::Tasks;

#[derive(Debug)]
pub(crate) struct Scope {
    pub(crate) tasks: Tasks,
    pub(crate) stats: Arc<Stats>,
    pub(crate) budget: Arc<Budget>,
    /// What the streams of users may hold together, on connections of a pool.
    pub(crate) stream_budget: Arc<Budget>,
    limits: Limits,
    pub(crate) linger: Duration,
}

impl Scope {
    pub(crate) fn new(config: &Config, runtime: tokio::runtime::Handle) -> Self {
        let stats = Arc::new(Stats::default());
        Self {
            tasks: Tasks::new(runtime, stats.clone()),
            stats,
            budget: Arc::new(Budget::new(config.pool_queue_limits())),
            stream_budget: Arc::new(Budget::new(config.pool_queue_limits())),
            limits: Limits {
                outstanding: config.queue_limits(),
                watermark_bytes: config.send_watermark_bytes(),
                pool_watermark_bytes: config.pool_send_watermark_bytes(),
            },
            linger: config.linger(),
        }
    }

    /// A queue of messages to one peer.
    pub(crate) fn message_outbox(&self) -> Outbox {
        Outbox::new(self.limits, self.budget.clone())
    }

    /// A queue of bytes of one stream, within `budget`.
    pub(crate) fn stream_outbox(&self, budget: Arc<Budget>) -> Outbox {
        Outbox::new(Limits { pool_watermark_bytes: usize::MAX, ..self.limits }, budget)
    }

    /// What all streams of one connection may hold together.
    pub(crate) fn connection_budget(&self) -> Arc<Budget> {
        Arc::new(Budget::new(self.limits.outstanding))
    }
}
