//! The processes that wait in `recv/2` for data of one stream, in their order.

use std::collections::VecDeque;
use std::mem;

use rustler::LocalPid;

use crate::reply::{Quiet, Reply};

/// The number of a request, chosen by who makes it.
pub(crate) type RequestId = u64;

/// Processes that may wait at a stream: more than anybody lets read one stream.
const MAX_READERS: usize = 1_024;

/// Those who wait. One that has died meanwhile is passed over, and leaves when there is no room.
#[derive(Default)]
pub(crate) struct Readers(VecDeque<(RequestId, Quiet)>);

impl Readers {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `false`: too many wait already.
    pub(crate) fn add(&mut self, id: RequestId, reply: Quiet) -> bool {
        if self.0.len() >= MAX_READERS {
            self.0.retain(|(_, reply)| reply.is_awaited());
        }
        let has_room = self.0.len() < MAX_READERS;
        if has_room {
            self.0.push_back((id, reply));
        }
        has_room
    }

    /// The first who still waits.
    pub(crate) fn next(&mut self) -> Option<Reply> {
        while let Some((_, reply)) = self.0.pop_front() {
            if reply.is_awaited() {
                return reply.keep();
            }
        }
        None
    }

    /// Takes a request back. `false`: it is not there any more.
    pub(crate) fn cancel(&mut self, id: RequestId) -> bool {
        let place = self.0.iter().position(|(waiting, _)| *waiting == id);
        place.and_then(|place| self.0.remove(place)).is_some()
    }

    /// Those of one process.
    pub(crate) fn take_of(&mut self, pid: &LocalPid) -> Vec<Reply> {
        let (its, others): (VecDeque<_>, _) =
            mem::take(&mut self.0).into_iter().partition(|(_, reply)| reply.is_to(pid));
        self.0 = others;
        its.into_iter().filter_map(|(_, reply)| reply.keep()).collect()
    }

    pub(crate) fn take_all(&mut self) -> impl Iterator<Item = Reply> + use<> {
        mem::take(&mut self.0).into_iter().filter_map(|(_, reply)| reply.keep())
    }
}
