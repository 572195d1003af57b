//! A message that has been given to the pool, as its sender has it.

use std::sync::Arc;
use std::time::Duration;

use crate::message::{Confirmation, Fate, Undelivered};
use crate::outbox::Outbox;
use crate::stats::Stats;

/// A message whose sender waits for what becomes of it. Dropped before that is known, it withdraws
/// the message if that waits to be sent.
#[derive(Debug)]
pub struct Delivery {
    outbox: Arc<Outbox>,
    confirmation: Confirmation,
    stats: Arc<Stats>,
    /// It is known what became of the message.
    is_over: bool,
}

impl Delivery {
    pub(crate) fn new(outbox: Arc<Outbox>, confirmation: Confirmation, stats: Arc<Stats>) -> Self {
        Self { outbox, confirmation, stats, is_over: false }
    }

    /// `Ok` once the peer's transport has acknowledged the whole message. One that waits to be sent
    /// after `patience` is withdrawn.
    ///
    /// # Errors
    /// Why the message is not known to have arrived.
    pub async fn within(mut self, patience: Duration) -> Result<(), Undelivered> {
        let outcome = self.confirmation.within(patience).await;
        self.is_over = true;
        match outcome {
            Fate::Told(result) => result,
            Fate::Withdrawn(undelivered) => {
                self.note_withdrawal(&undelivered);
                Err(undelivered)
            }
        }
    }

    fn note_withdrawal(&self, undelivered: &Undelivered) {
        match undelivered {
            Undelivered::Unconfirmed(_) => self.stats.unconfirmed.add(1),
            Undelivered::NotConnected(cause) | Undelivered::NotSent(cause) => {
                self.stats.dropped.add(cause, 1);
            }
        }
        self.outbox.note_withdrawal();
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if !self.is_over
            && let Some(undelivered) = self.confirmation.abandon()
        {
            self.note_withdrawal(&undelivered);
        }
    }
}
