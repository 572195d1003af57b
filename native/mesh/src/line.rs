//! The senders that wait for room in an outbox, in their order. Plain data.

use tokio::sync::oneshot;

use crate::Error;
use crate::config::Load;
use crate::message::{Message, Undelivered};
use crate::turns::Turns;

/// Senders that may wait for room at one peer. Each is a process that waits, so this is reached
/// only by a leak of such processes.
const MOST: usize = 65_536;

#[derive(Debug)]
pub(crate) struct Line {
    waiting: Turns<Waiting>,
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
        Self { waiting: Turns::new() }
    }

    /// Puts a sender behind the others; his message comes back if there are too many.
    pub(crate) fn push(&mut self, sender: Waiting) -> Result<(), Message> {
        self.part_with_gone();
        if self.waiting.len() >= MOST {
            return Err(sender.message);
        }
        self.waiting.push(sender);
        Ok(())
    }

    /// Parts with some senders who have gone: what they left is memory that no bound counts. Whoever
    /// goes calls it, too, since nobody may come after him.
    pub(crate) fn part_with_gone(&mut self) {
        self.waiting.part_with(|sender| !sender.is_wanted());
    }

    /// What the first one's message counts for; those before him whose senders have gone were never
    /// accepted, and leave.
    pub(crate) fn first(&mut self) -> Option<Load> {
        while !self.waiting.first()?.is_wanted() {
            self.waiting.pop();
        }
        self.waiting.first().map(|first| first.message.load())
    }

    /// Takes the first one out.
    pub(crate) fn pop(&mut self) -> Option<Waiting> {
        self.waiting.pop()
    }

    /// Whether nobody waits, or is not known to have gone.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Ends the line: who still wants his message sent is told why it is not. Before, `count` gets the
    /// number of those who wait for what becomes of it; the others have not given it out of hand.
    pub(crate) fn close(self, reason: &Error, count: impl FnOnce(usize)) {
        let wanted = |waiting: &Waiting| waiting.is_wanted() && waiting.message.give_up();
        let turned_away: Vec<_> = self.waiting.into_all().filter(wanted).collect();
        count(turned_away.iter().filter(|waiting| waiting.turn.is_none()).count());
        for Waiting { message, turn } in turned_away {
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
    use crate::turns::LOOKS;

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
            assert!(line.waiting.len() <= LOOKS);
        }
        assert_eq!(line.first(), Some(Load { messages: 1, bytes: stays.len() }));
        assert_eq!(line.pop().map(|first| first.let_in().data), Some(stays));
        assert_eq!(told.try_recv(), Ok(Ok(())));
        assert_eq!(line.first(), None);
        assert!(line.is_empty());
    }

    #[test]
    fn nor_do_they_when_nobody_comes_after_them() {
        let mut line = Line::new();
        let (stays, _turn) = oneshot::channel();
        assert!(line.push(Waiting::for_room(Bytes::new().into(), stays)).is_ok());
        let (mut turns, mut confirmations) = (Vec::new(), Vec::new());
        for _ in 0..100 {
            let (turn, told) = oneshot::channel();
            assert!(line.push(Waiting::for_room(Bytes::new().into(), turn)).is_ok());
            turns.push(told);
            let (message, confirmation) = Message::confirmed(Bytes::new());
            assert!(line.push(Waiting::for_fate(message)).is_ok());
            confirmations.push(confirmation);
        }
        for (turn, confirmation) in turns.into_iter().zip(confirmations) {
            drop(turn);
            line.part_with_gone();
            assert!(confirmation.withdraw(Error::SendTimeout).is_some());
            line.part_with_gone();
        }
        assert_eq!(line.waiting.len(), 1);
    }

    #[test]
    fn nor_do_they_after_many_have_waited() {
        let mut line = Line::new();
        let waiting = || {
            let (turn, told) = oneshot::channel();
            (Waiting::for_room(Bytes::new().into(), turn), told)
        };
        let (senders, told): (Vec<_>, Vec<_>) = (0..MOST / 2).map(|_| waiting()).unzip();
        senders.into_iter().for_each(|sender| assert!(line.push(sender).is_ok()));
        while line.waiting.len() > 1 {
            assert!(line.pop().is_some());
        }
        for _ in 0..MOST {
            assert!(line.push(waiting().0).is_ok());
            assert!(line.waiting.len() <= LOOKS);
        }
        drop(told);
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
