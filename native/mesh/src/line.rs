//! The senders that wait for room in an outbox, in their order. Plain data.

use std::collections::VecDeque;

use tokio::sync::oneshot;

use crate::Error;
use crate::config::Load;
use crate::message::{Message, Undelivered};

/// Senders that may wait for room at one peer. Each is a process that waits, so this is reached
/// only by a leak of such processes.
const MOST: usize = 65_536;
/// Senders that may have gone and still be in line: what they left is memory that no bound counts.
const FEW: usize = 8;

#[derive(Debug)]
pub(crate) struct Line {
    waiting: VecDeque<Waiting>,
    /// How many there may be before those are taken out whose senders have gone.
    sweep_at: usize,
}

/// One sender, and the message for which there is no room yet.
#[derive(Debug)]
pub(crate) struct Waiting {
    message: Message,
    /// Who is to be told that the message is queued, unless he waits for what becomes of it.
    turn: Option<oneshot::Sender<Result<(), Error>>>,
}

impl Line {
    pub(crate) fn new() -> Self {
        Self { waiting: VecDeque::new(), sweep_at: FEW }
    }

    /// Puts a sender behind the others; his message comes back if there are too many.
    pub(crate) fn push(&mut self, sender: Waiting) -> Result<(), Message> {
        if self.waiting.len() >= self.sweep_at {
            self.waiting.retain(Waiting::is_wanted);
            // Not before as many more have come as are there: each costs a look or two.
            self.sweep_at = (2 * self.waiting.len()).clamp(FEW, MOST);
        }
        if self.waiting.len() >= MOST {
            return Err(sender.message);
        }
        self.waiting.push_back(sender);
        Ok(())
    }

    /// What the first one's message counts for; those before him whose senders have gone were never
    /// accepted, and leave.
    pub(crate) fn first(&mut self) -> Option<Load> {
        while self.waiting.front().is_some_and(|first| !first.is_wanted()) {
            self.waiting.pop_front();
        }
        self.waiting.front().map(|first| first.message.load())
    }

    /// Takes the first one out.
    pub(crate) fn pop(&mut self) -> Option<Waiting> {
        self.waiting.pop_front()
    }

    /// Whether nobody waits, or is not known to have gone.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Ends the line: everybody in it is told why.
    pub(crate) fn close(self, reason: &Error) {
        for Waiting { message, turn } in self.waiting {
            if let Some(turn) = turn {
                // A sender that has gone needs no answer.
                turn.send(Err(reason.clone())).ok();
            }
            message.fail(Undelivered::NotSent(reason.clone()));
        }
    }
}

impl Waiting {
    /// One who is told when his message is queued.
    pub(crate) fn for_room(message: Message, turn: oneshot::Sender<Result<(), Error>>) -> Self {
        Self { message, turn: Some(turn) }
    }

    /// One who waits for what becomes of his message.
    pub(crate) fn for_fate(message: Message) -> Self {
        Self { message, turn: None }
    }

    /// Tells him that his message is queued, and gives it.
    pub(crate) fn let_in(self) -> Message {
        if let Some(turn) = self.turn {
            turn.send(Ok(())).ok();
        }
        self.message
    }

    /// Whether somebody still wants the message sent.
    fn is_wanted(&self) -> bool {
        self.message.is_wanted() && !self.turn.as_ref().is_some_and(oneshot::Sender::is_closed)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn senders_that_have_gone_do_not_stay() {
        let mut line = Line::new();
        let (turn, mut told) = oneshot::channel();
        let stays = Bytes::from_static(b"stays");
        assert!(line.push(Waiting::for_room(stays.clone().into(), turn)).is_ok());
        for _ in 0..MOST {
            let (turn, gone) = oneshot::channel();
            drop(gone);
            assert!(line.push(Waiting::for_room(Bytes::new().into(), turn)).is_ok());
            let (withdrawn, confirmation) = Message::confirmed(Bytes::new());
            assert!(line.push(Waiting::for_fate(withdrawn)).is_ok());
            assert!(confirmation.withdraw(Error::SendTimeout).is_some());
            assert!(line.waiting.len() <= FEW);
        }
        assert_eq!(line.first(), Some(Load { messages: 1, bytes: stays.len() }));
        assert_eq!(line.pop().map(|first| first.let_in().data), Some(stays));
        assert_eq!(told.try_recv(), Ok(Ok(())));
        assert_eq!(line.first(), None);
        assert!(line.is_empty());
    }

    #[test]
    fn no_more_than_so_many_wait() {
        let mut line = Line::new();
        let mut waiting = Vec::new();
        let mut next = || {
            let (message, confirmation) = Message::confirmed(Bytes::new());
            waiting.push(confirmation);
            Waiting::for_fate(message)
        };
        for _ in 0..MOST {
            assert!(line.push(next()).is_ok());
        }
        assert!(line.push(next()).is_err());
    }
}
