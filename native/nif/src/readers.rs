//! The processes that wait in `recv/2` for data of one stream, in their order.

use std::collections::VecDeque;
use std::mem;

use rustler::LocalPid;

use crate::reply::Reply;

/// The number of a request, chosen by who makes it.
pub(crate) type RequestId = u64;

/// Processes that may wait at a stream: more than anybody lets read one stream.
const MAX_READERS: usize = 1_024;

/// Those who wait. One that has died meanwhile is passed over, and leaves when there is no room.
#[derive(Default)]
pub(crate) struct Readers(VecDeque<Waiting>);

struct Waiting {
    id: RequestId,
    reply: Reply,
    patience: Patience,
}

/// How long a reader waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// Until he takes his request back.
    Waits,
    /// Not at all: he wants what is there.
    Polls,
    /// As that, and a look for data has begun since he asked.
    IsLookedFor,
}

impl Readers {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `false`: too many wait already.
    pub(crate) fn add(&mut self, id: RequestId, reply: Reply, patience: Patience) -> bool {
        if self.0.len() >= MAX_READERS {
            self.0.retain(|waiting| waiting.reply.is_awaited());
        }
        let has_room = self.0.len() < MAX_READERS;
        if has_room {
            self.0.push_back(Waiting { id, reply, patience });
        }
        has_room
    }

    /// A look for data begins.
    pub(crate) fn look(&mut self) {
        for waiting in self.0.iter_mut().filter(|waiting| waiting.patience == Patience::Polls) {
            waiting.patience = Patience::IsLookedFor;
        }
    }

    /// Those who do not wait, and for whom the look that has ended has found nothing.
    pub(crate) fn take_looked_for(&mut self) -> Vec<Reply> {
        self.take(|waiting| waiting.patience == Patience::IsLookedFor)
    }

    /// Those who do not wait.
    pub(crate) fn take_polls(&mut self) -> Vec<Reply> {
        self.take(|waiting| waiting.patience != Patience::Waits)
    }

    /// The first who still waits.
    pub(crate) fn next(&mut self) -> Option<Reply> {
        while let Some(first) = self.0.pop_front() {
            if first.reply.is_awaited() {
                return Some(first.reply.owe());
            }
        }
        None
    }

    /// Takes a request back. `false`: it is not there any more.
    pub(crate) fn cancel(&mut self, id: RequestId) -> bool {
        let place = self.0.iter().position(|waiting| waiting.id == id);
        place.and_then(|place| self.0.remove(place)).is_some()
    }

    /// Those of one process.
    pub(crate) fn take_of(&mut self, pid: &LocalPid) -> Vec<Reply> {
        self.take(|waiting| waiting.reply.to() == *pid)
    }

    pub(crate) fn take_all(&mut self) -> Vec<Reply> {
        self.take(|_| true)
    }

    fn take(&mut self, is_meant: impl Fn(&Waiting) -> bool) -> Vec<Reply> {
        if !self.0.iter().any(&is_meant) {
            return Vec::new();
        }
        let (meant, others): (VecDeque<_>, _) =
            mem::take(&mut self.0).into_iter().partition(is_meant);
        self.0 = others;
        meant.into_iter().map(|waiting| waiting.reply.owe()).collect()
    }
}
