//! One message on its way, and the promise to tell its sender what became of it.
//!
//! A message waits, is under way, is given up, or is withdrawn. Whoever takes it out of a queue and
//! whoever gives up waiting for it settle between them, by one atomic exchange, whether anything of
//! it will be sent; so a sender who is told that nothing was sent can rely on it. What came back
//! from a lost connection waits again, and may have arrived.

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
/// Its sender has taken it back while it waited.
const WITHDRAWN: u8 = 2;
/// It waits to be sent again.
const CAME_BACK: u8 = 3;
/// It will not be sent any more; its sender is about to be told.
const GIVEN_UP: u8 = 4;

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

    /// The same of a message of which something was sent before.
    fn after_all(self) -> Self {
        match self {
            Self::NotConnected(error) | Self::NotSent(error) | Self::Unconfirmed(error) => {
                Self::Unconfirmed(error)
            }
        }
    }
}

/// A payload, and the promise to its sender if there is one.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) data: Bytes,
    receipt: Option<Receipt>,
    /// How often it has come back from a connection that was lost.
    returns: u8,
}

/// What becomes of a message while somebody waits for that.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is known.
    Told(Result<(), Undelivered>),
    /// It has been taken back.
    Withdrawn(Undelivered),
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
        (Self { data, receipt: Some(receipt), returns: 0 }, Confirmation { stage, outcome })
    }

    /// One message of a batch, which has come back so often.
    pub(crate) fn of_batch(data: Bytes, returns: u8) -> Self {
        Self { data, receipt: None, returns }
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
        self.leave_for(UNDER_WAY)
    }

    /// Leaves the queue for good; [`Message::fail`] is to follow. `false`: it was withdrawn.
    pub(crate) fn give_up(&self) -> bool {
        self.leave_for(GIVEN_UP)
    }

    fn leave_for(&self, stage: u8) -> bool {
        self.receipt.as_ref().is_none_or(|receipt| {
            receipt.exchange(WAITS, stage) || receipt.exchange(CAME_BACK, stage)
        })
    }

    /// Goes back to a queue: nothing of it was sent, this time. `false`: its sender has been told
    /// that it may have arrived, or has gone, and does not count on it any more.
    pub(crate) fn stay_behind(&self) -> bool {
        self.receipt.as_ref().is_none_or(|receipt| {
            let is_awaited = receipt.outcome.as_ref().is_some_and(|sender| !sender.is_closed());
            let stage = if self.returns > 0 { CAME_BACK } else { WAITS };
            is_awaited && receipt.exchange(UNDER_WAY, stage)
        })
    }

    /// Goes back to a queue, to be sent again.
    pub(crate) fn turn_back(&mut self) {
        self.returns = self.returns.saturating_add(1);
        if let Some(receipt) = &self.receipt {
            receipt.exchange(UNDER_WAY, CAME_BACK);
        }
    }

    /// How often it has come back: more than never, and it may have arrived.
    pub(crate) fn returns(&self) -> u8 {
        self.returns
    }

    /// Nothing more becomes of it; `why`, unless something of it was sent before.
    pub(crate) fn fail(self, why: Undelivered) {
        if let Some(receipt) = self.receipt {
            let why = if self.returns > 0 { why.after_all() } else { why };
            receipt.tell(Err(why));
        }
    }

    /// Who is to be told.
    pub(crate) fn into_receipt(self) -> Option<Receipt> {
        self.receipt
    }
}

impl From<Bytes> for Message {
    /// A message whose sender is told nothing.
    fn from(data: Bytes) -> Self {
        Self { data, receipt: None, returns: 0 }
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
                UNDER_WAY | CAME_BACK => Undelivered::Unconfirmed(Error::Cancelled),
                _ => Undelivered::NotSent(Error::Cancelled),
            };
            sender.send(Err(why)).ok();
        }
    }
}

impl Confirmation {
    /// What became of the message, within `patience`. If it waits then, it is withdrawn.
    pub(crate) async fn within(&mut self, patience: Duration) -> Fate {
        let unknown = |error| Err(Undelivered::Unconfirmed(error));
        Fate::Told(match timeout(patience, &mut self.outcome).await {
            // A receipt tells even when it is dropped.
            Ok(told) => told.unwrap_or_else(|_| unknown(Error::Cancelled)),
            Err(_) => match self.withdraw(Error::SendTimeout) {
                Some(withdrawn) => return Fate::Withdrawn(withdrawn),
                // What is told in a moment is what was counted.
                None if self.stage.load(Ordering::Acquire) == GIVEN_UP => {
                    let told = (&mut self.outcome).await;
                    told.unwrap_or_else(|_| unknown(Error::Cancelled))
                }
                None => self.outcome.try_recv().unwrap_or_else(|_| unknown(Error::SendTimeout)),
            },
        })
    }

    /// Nobody waits any more: takes the message back, unless it is known what became of it.
    pub(crate) fn abandon(&mut self) -> Option<Undelivered> {
        if self.outcome.try_recv().is_ok() { None } else { self.withdraw(Error::Cancelled) }
    }

    /// Takes the message back, because of `cause`. `None`: it is under way.
    pub(crate) fn withdraw(&self, cause: Error) -> Option<Undelivered> {
        if exchange(&self.stage, WAITS, WITHDRAWN) {
            Some(Undelivered::NotSent(cause))
        } else if exchange(&self.stage, CAME_BACK, WITHDRAWN) {
            Some(Undelivered::Unconfirmed(cause))
        } else {
            None
        }
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
        let fate = confirmation.within(Duration::ZERO).await;
        assert_eq!(fate, Fate::Withdrawn(Undelivered::NotSent(Error::SendTimeout)));
        assert!(!message.is_wanted());
        assert!(!message.set_off());
    }

    #[tokio::test]
    async fn a_message_under_way_cannot_be_withdrawn() {
        let (message, mut confirmation) = message();
        assert!(message.set_off());
        let fate = confirmation.within(Duration::ZERO).await;
        assert_eq!(fate, Fate::Told(Err(Undelivered::Unconfirmed(Error::SendTimeout))));
        assert!(message.is_wanted());
    }

    #[tokio::test]
    async fn a_message_that_is_dropped_tells_whether_it_had_set_off() {
        let (waiting, mut confirmation) = message();
        drop(waiting);
        let fate = confirmation.within(Duration::MAX).await;
        assert_eq!(fate, Fate::Told(Err(Undelivered::NotSent(Error::Cancelled))));
        let (sent, mut confirmation) = message();
        assert!(sent.set_off());
        drop(sent);
        let fate = confirmation.within(Duration::MAX).await;
        assert_eq!(fate, Fate::Told(Err(Undelivered::Unconfirmed(Error::Cancelled))));
    }

    #[tokio::test]
    async fn a_message_that_came_back_sets_off_again() {
        let (mut message, mut confirmation) = message();
        assert!(message.set_off());
        message.turn_back();
        assert!(message.set_off());
        message.into_receipt().expect("its receipt").tell(Ok(()));
        assert_eq!(confirmation.within(Duration::MAX).await, Fate::Told(Ok(())));
    }

    #[tokio::test]
    async fn a_message_that_stayed_behind_is_known_not_to_have_been_sent() {
        let (message, mut confirmation) = message();
        assert!(message.set_off());
        assert!(message.stay_behind());
        let fate = confirmation.within(Duration::ZERO).await;
        assert_eq!(fate, Fate::Withdrawn(Undelivered::NotSent(Error::SendTimeout)));
        assert!(!message.set_off());
    }

    #[tokio::test]
    async fn a_message_that_came_back_may_have_arrived_though_it_stays_behind_later() {
        let (mut message, mut confirmation) = message();
        assert!(message.set_off());
        message.turn_back();
        assert!(message.set_off());
        assert!(message.stay_behind());
        let fate = confirmation.within(Duration::ZERO).await;
        assert_eq!(fate, Fate::Withdrawn(Undelivered::Unconfirmed(Error::SendTimeout)));
    }

    #[tokio::test]
    async fn who_gives_up_while_his_message_is_given_up_is_told_what_became_of_it() {
        let (message, mut confirmation) = message();
        assert!(message.give_up());
        let mut fate = std::pin::pin!(confirmation.within(Duration::ZERO));
        assert!(timeout(Duration::from_millis(10), &mut fate).await.is_err());
        message.fail(Undelivered::NotSent(Error::Evicted));
        assert_eq!(fate.await, Fate::Told(Err(Undelivered::NotSent(Error::Evicted))));
    }

    #[test]
    fn a_message_that_nobody_waits_for_any_more_does_not_stay_behind() {
        let (message, confirmation) = message();
        assert!(message.set_off());
        drop(confirmation);
        assert!(!message.stay_behind());
    }

    #[tokio::test]
    async fn a_message_that_came_back_may_have_arrived_whatever_becomes_of_it() {
        let came_back = || {
            let (mut message, confirmation) = message();
            assert!(message.set_off());
            message.turn_back();
            (message, confirmation)
        };
        let (kept, mut confirmation) = came_back();
        let fate = confirmation.within(Duration::ZERO).await;
        assert_eq!(fate, Fate::Withdrawn(Undelivered::Unconfirmed(Error::SendTimeout)));
        assert!(!kept.set_off());
        let (failed, mut confirmation) = came_back();
        failed.fail(Undelivered::NotConnected(Error::ConnectTimeout));
        let fate = confirmation.within(Duration::MAX).await;
        assert_eq!(fate, Fate::Told(Err(Undelivered::Unconfirmed(Error::ConnectTimeout))));
        let (dropped, mut confirmation) = came_back();
        drop(dropped);
        let fate = confirmation.within(Duration::MAX).await;
        assert_eq!(fate, Fate::Told(Err(Undelivered::Unconfirmed(Error::Cancelled))));
    }
}
