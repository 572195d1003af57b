//! One message on its way, and the promise to tell its sender what became of it.
//!
//! A message waits, is under way, or is withdrawn. Whoever takes it out of a queue and whoever
//! gives up waiting for it settle between them, by one atomic exchange, whether anything of it
//! will be sent; so a sender who is told that nothing was sent can rely on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use bytes::Bytes;
use thiserror::Error as Describe;
use tokio::sync::oneshot;
use tokio::time::{Duration, timeout};

use crate::Error;
use crate::config::Load;

/// Nothing of the message has been sent.
const WAITS: u8 = 0;
/// Some of it may have been sent.
const UNDER_WAY: u8 = 1;
/// Nothing of it has been sent, and nothing will be.
const WITHDRAWN: u8 = 2;

/// Why a message is not known to have arrived.
#[derive(Clone, Debug, PartialEq, Eq, Describe)]
pub enum Undelivered {
    /// Nothing of it was sent, because there was no connection.
    #[error("not connected: {0}")]
    NotConnected(Error),
    /// Nothing of it was sent.
    #[error("not sent: {0}")]
    NotSent(Error),
    /// It was sent, in part at least, and may have arrived.
    #[error("unconfirmed: {0}")]
    Unconfirmed(Error),
}

impl Undelivered {
    /// What happened.
    pub fn cause(&self) -> &Error {
        match self {
            Self::NotConnected(error) | Self::NotSent(error) | Self::Unconfirmed(error) => error,
        }
    }
}

/// A payload, and the promise to its sender if there is one.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) data: Bytes,
    receipt: Option<Receipt>,
}

/// The promise to tell one sender what became of a message. Dropped, it tells that nobody knows.
#[derive(Debug)]
pub(crate) struct Receipt {
    stage: Arc<AtomicU8>,
    /// Nothing once it is told.
    outcome: Option<oneshot::Sender<Result<(), Undelivered>>>,
}

/// What a sender holds of his message.
#[derive(Debug)]
pub(crate) struct Confirmation {
    stage: Arc<AtomicU8>,
    outcome: oneshot::Receiver<Result<(), Undelivered>>,
}

impl Message {
    /// A message whose sender is told whether it has arrived.
    pub(crate) fn confirmed(data: Bytes) -> (Self, Confirmation) {
        let stage = Arc::new(AtomicU8::new(WAITS));
        let (sender, outcome) = oneshot::channel();
        let receipt = Receipt { stage: stage.clone(), outcome: Some(sender) };
        (Self { data, receipt: Some(receipt) }, Confirmation { stage, outcome })
    }

    /// Its payload bytes.
    pub(crate) fn len(&self) -> usize {
        self.data.len()
    }

    /// What it counts for.
    pub(crate) fn load(&self) -> Load {
        Load { messages: 1, bytes: self.len() }
    }

    /// Whether its sender has not withdrawn it.
    pub(crate) fn is_wanted(&self) -> bool {
        self.receipt.as_ref().is_none_or(|receipt| receipt.stage() != WITHDRAWN)
    }

    /// Leaves the queue to be sent. `false`: it was withdrawn.
    pub(crate) fn set_off(&self) -> bool {
        self.receipt.as_ref().is_none_or(|receipt| receipt.exchange(WAITS, UNDER_WAY))
    }

    /// Goes back to a queue, to be sent again.
    pub(crate) fn turn_back(&self) {
        if let Some(receipt) = &self.receipt {
            receipt.exchange(UNDER_WAY, WAITS);
        }
    }

    /// Nothing more becomes of it.
    pub(crate) fn fail(self, why: Undelivered) {
        if let Some(receipt) = self.receipt {
            receipt.tell(Err(why));
        }
    }

    /// Its payload, and who is to be told.
    pub(crate) fn into_parts(self) -> (Bytes, Option<Receipt>) {
        (self.data, self.receipt)
    }

    /// The reverse of [`Message::into_parts`].
    pub(crate) fn from_parts(data: Bytes, receipt: Option<Receipt>) -> Self {
        Self { data, receipt }
    }
}

impl From<Bytes> for Message {
    /// A message whose sender is told nothing.
    fn from(data: Bytes) -> Self {
        Self { data, receipt: None }
    }
}

impl Receipt {
    pub(crate) fn tell(mut self, outcome: Result<(), Undelivered>) {
        if let Some(sender) = self.outcome.take() {
            // A sender that has gone needs no answer.
            sender.send(outcome).ok();
        }
    }

    fn stage(&self) -> u8 {
        self.stage.load(Ordering::Acquire)
    }

    fn exchange(&self, from: u8, to: u8) -> bool {
        exchange(&self.stage, from, to)
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if let Some(sender) = self.outcome.take() {
            let why = match self.stage() {
                UNDER_WAY => Undelivered::Unconfirmed(Error::Cancelled),
                _ => Undelivered::NotSent(Error::Cancelled),
            };
            sender.send(Err(why)).ok();
        }
    }
}

impl Confirmation {
    /// What became of the message, within `patience`. If nothing has been sent of it by then, it
    /// is withdrawn.
    pub(crate) async fn within(&mut self, patience: Duration) -> Result<(), Undelivered> {
        match timeout(patience, &mut self.outcome).await {
            // A receipt tells even when it is dropped.
            Ok(told) => told.unwrap_or(Err(Undelivered::Unconfirmed(Error::Cancelled))),
            Err(_) if self.withdraw() => Err(Undelivered::NotSent(Error::SendTimeout)),
            Err(_) => {
                self.outcome.try_recv().unwrap_or(Err(Undelivered::Unconfirmed(Error::SendTimeout)))
            }
        }
    }

    /// Nobody waits any more: takes the message back. `false`: it is under way, or it is known what
    /// became of it.
    pub(crate) fn abandon(&mut self) -> bool {
        self.outcome.try_recv().is_err() && self.withdraw()
    }

    /// Takes the message back. `false`: it is under way.
    pub(crate) fn withdraw(&self) -> bool {
        exchange(&self.stage, WAITS, WITHDRAWN)
    }
}

fn exchange(stage: &AtomicU8, from: u8, to: u8) -> bool {
    stage.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tokio's test macro blocks, on a thread of the test")]
mod tests {
    use super::*;

    fn message() -> (Message, Confirmation) {
        Message::confirmed(Bytes::from_static(b"payload"))
    }

    #[tokio::test]
    async fn a_message_that_waits_too_long_is_withdrawn_and_never_sets_off() {
        let (message, mut confirmation) = message();
        let outcome = confirmation.within(Duration::ZERO).await;
        assert_eq!(outcome, Err(Undelivered::NotSent(Error::SendTimeout)));
        assert!(!message.is_wanted());
        assert!(!message.set_off());
    }

    #[tokio::test]
    async fn a_message_under_way_cannot_be_withdrawn() {
        let (message, mut confirmation) = message();
        assert!(message.set_off());
        let outcome = confirmation.within(Duration::ZERO).await;
        assert_eq!(outcome, Err(Undelivered::Unconfirmed(Error::SendTimeout)));
        assert!(message.is_wanted());
    }

    #[tokio::test]
    async fn a_message_that_is_dropped_tells_whether_it_had_set_off() {
        let (waiting, mut confirmation) = message();
        drop(waiting);
        let outcome = confirmation.within(Duration::MAX).await;
        assert_eq!(outcome, Err(Undelivered::NotSent(Error::Cancelled)));
        let (sent, mut confirmation) = message();
        assert!(sent.set_off());
        drop(sent);
        let outcome = confirmation.within(Duration::MAX).await;
        assert_eq!(outcome, Err(Undelivered::Unconfirmed(Error::Cancelled)));
    }

    #[tokio::test]
    async fn a_message_that_turned_back_is_waiting_again() {
        let (message, mut confirmation) = message();
        assert!(message.set_off());
        message.turn_back();
        assert!(message.set_off());
        let (_, receipt) = message.into_parts();
        receipt.expect("its receipt").tell(Ok(()));
        assert_eq!(confirmation.within(Duration::MAX).await, Ok(()));
    }
}
