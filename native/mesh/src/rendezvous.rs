//! Where things that arrive meet those who wait for them, whichever comes first. Exact about
//! giving up: whoever takes his request back learns whether he was in time, so nothing is lost
//! between an arrival and a timeout.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::turns::Turns;

/// Somebody who waits. Dropped unused when he takes his request back.
pub trait Waiter<T>: Send {
    /// Takes what has arrived, on whatever thread brings it, without blocking; gives it back when
    /// the process behind has gone.
    fn meet(self: Box<Self>, item: T) -> Option<T>;

    /// Whether the process behind has gone, so that he need not wait.
    fn is_gone(&self) -> bool {
        false
    }

    /// He will get nothing.
    fn refuse(self: Box<Self>, why: Refusal);
}

/// Why somebody who asks will get nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Nothing will arrive any more.
    Closed,
    /// Too many wait already.
    TooManyWait,
}

/// The number of a request, chosen by who makes it.
pub type RequestId = u64;

#[derive(Debug)]
pub(crate) struct Rendezvous<T> {
    state: Mutex<State<T>>,
    capacity: usize,
    /// Tells that after the end nothing is there any more.
    emptied: Notify,
}

struct State<T> {
    items: VecDeque<T>,
    /// Items for which somebody who waits is being looked for.
    offered: usize,
    waiters: Turns<(RequestId, Box<dyn Waiter<T>>)>,
    is_over: bool,
    is_closed: bool,
}

/// Requests that may wait at once. Each is a process that waits, or one that asked many times.
const MAX_WAITERS: usize = 65_536;

/// What became of a request.
pub enum Request<T> {
    /// Something was there; the waiter was not used.
    Served(T, Box<dyn Waiter<T>>),
    /// The waiter will be called.
    Waiting,
    /// The waiter was refused.
    Refused(Refusal),
}

impl<T> Rendezvous<T> {
    /// At most `capacity` items wait for somebody.
    pub(crate) fn new(capacity: usize) -> Self {
        let state = State {
            items: VecDeque::new(),
            offered: 0,
            waiters: Turns::new(),
            is_over: false,
            is_closed: false,
        };
        Self { state: Mutex::new(state), capacity, emptied: Notify::new() }
    }

    /// Brings an item to the first who waits, or lets it wait.
    ///
    /// # Errors
    /// The item, when there is no room for it or nobody will come any more.
    pub(crate) fn offer(&self, item: T) -> Result<(), T> {
        let mut item = item;
        self.lock().offered += 1;
        loop {
            // Given free for each, since those who have gone may be very many.
            let mut state = self.lock();
            if let Some((_, waiter)) = state.waiters.pop() {
                match waiter.meet(item) {
                    Some(returned) => item = returned,
                    None => {
                        state.offered -= 1;
                        self.look_if_emptied(&state);
                        return Ok(());
                    }
                }
                continue;
            }
            state.offered -= 1;
            if state.is_closed || state.items.len() >= self.capacity {
                self.look_if_emptied(&state);
                return Err(item);
            }
            state.items.push_back(item);
            return Ok(());
        }
    }

    /// Asks for one item.
    pub(crate) fn request(&self, id: RequestId, waiter: Box<dyn Waiter<T>>) -> Request<T> {
        let mut state = self.lock();
        if let Some(item) = state.items.pop_front() {
            self.look_if_emptied(&state);
            return Request::Served(item, waiter);
        }
        // To be dropped outside the lock.
        let gone = state.waiters.part_with(|(_, waiter)| waiter.is_gone());
        let why = if state.is_over {
            Refusal::Closed
        } else if state.waiters.len() >= MAX_WAITERS {
            Refusal::TooManyWait
        } else {
            state.waiters.push((id, waiter));
            drop(state);
            return Request::Waiting;
        };
        drop(state);
        drop(gone);
        waiter.refuse(why);
        Request::Refused(why)
    }

    /// Takes a request back. `false`: too late, its waiter was called or dropped.
    pub(crate) fn cancel(&self, id: RequestId) -> bool {
        self.lock().waiters.take(|(waiting, _)| *waiting == id).is_some()
    }

    /// Items that nobody has got.
    pub(crate) fn waiting(&self) -> usize {
        self.lock().left()
    }

    fn look_if_emptied(&self, state: &State<T>) {
        if state.is_over && state.left() == 0 {
            self.emptied.notify_one();
        }
    }

    /// Nothing more will arrive. What has arrived is still there for who asks for it, until it is
    /// closed.
    pub(crate) fn end(&self) {
        let mut state = self.lock();
        state.is_over = true;
        let waiters = std::mem::replace(&mut state.waiters, Turns::new());
        drop(state);
        for (_, waiter) in waiters.into_all() {
            waiter.refuse(Refusal::Closed);
        }
    }

    /// Nothing more will arrive or be asked for; returns what nobody has asked for.
    pub(crate) fn close(&self) -> VecDeque<T> {
        self.end();
        let mut state = self.lock();
        state.is_closed = true;
        self.emptied.notify_one();
        std::mem::take(&mut state.items)
    }

    /// Resolves when nothing is there any more, after the end. One may wait for that.
    pub(crate) async fn emptied(&self) {
        while self.waiting() > 0 {
            self.emptied.notified().await;
        }
    }

    /// A std mutex, because nothing awaits inside.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> State<T> {
    fn left(&self) -> usize {
        self.items.len() + self.offered
    }
}

impl<T: std::fmt::Debug> std::fmt::Debug for State<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("items", &self.items)
            .field("waiters", &self.waiters.len())
            .field("is_closed", &self.is_closed)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    type Log = Arc<Mutex<Vec<(u64, u32)>>>;

    /// A waiter that writes down what it gets, or returns it.
    struct Writer {
        name: u64,
        log: Log,
        is_gone: bool,
    }

    impl Waiter<u32> for Writer {
        fn meet(self: Box<Self>, item: u32) -> Option<u32> {
            if self.is_gone {
                return Some(item);
            }
            self.log.lock().expect("the log").push((self.name, item));
            None
        }

        fn is_gone(&self) -> bool {
            self.is_gone
        }

        fn refuse(self: Box<Self>, _why: Refusal) {
            self.log.lock().expect("the log").push((self.name, REFUSED));
        }
    }

    const REFUSED: u32 = 0;

    fn waiter(name: u64, log: &Log, is_gone: bool) -> Box<dyn Waiter<u32>> {
        Box::new(Writer { name, log: log.clone(), is_gone })
    }

    #[test]
    fn arrivals_and_waiters_meet_in_their_order() {
        let log = Log::default();
        let meeting = Rendezvous::new(2);
        assert_eq!(meeting.offer(1), Ok(()));
        assert_eq!(meeting.offer(2), Ok(()));
        assert_eq!(meeting.offer(3), Err(3));
        assert!(matches!(meeting.request(0, waiter(0, &log, false)), Request::Served(1, _)));
        assert!(matches!(meeting.request(0, waiter(0, &log, false)), Request::Served(2, _)));
        for name in [10, 11] {
            assert!(matches!(meeting.request(name, waiter(name, &log, false)), Request::Waiting));
        }
        assert_eq!(meeting.offer(4), Ok(()));
        assert_eq!(meeting.offer(5), Ok(()));
        assert_eq!(*log.lock().expect("the log"), vec![(10, 4), (11, 5)]);
    }

    #[test]
    fn an_item_for_a_process_that_has_gone_goes_to_the_next() {
        let log = Log::default();
        let meeting = Rendezvous::new(1);
        meeting.request(1, waiter(1, &log, true));
        meeting.request(2, waiter(2, &log, false));
        assert_eq!(meeting.offer(7), Ok(()));
        assert_eq!(*log.lock().expect("the log"), vec![(2, 7)]);
    }

    #[test]
    fn a_request_is_taken_back_in_time_or_not_at_all() {
        let log = Log::default();
        let meeting = Rendezvous::new(1);
        meeting.request(1, waiter(1, &log, false));
        assert!(meeting.cancel(1));
        assert_eq!(meeting.offer(7), Ok(()));
        assert!(log.lock().expect("the log").is_empty());
        assert!(!meeting.cancel(1));
    }

    #[test]
    fn what_had_arrived_at_the_end_is_still_there() {
        let log = Log::default();
        let meeting = Rendezvous::new(2);
        assert_eq!(meeting.offer(1), Ok(()));
        meeting.end();
        // Taken, and given back by a process that has gone.
        assert!(matches!(meeting.request(1, waiter(1, &log, true)), Request::Served(1, _)));
        assert_eq!(meeting.offer(1), Ok(()));
        assert!(matches!(meeting.request(2, waiter(2, &log, false)), Request::Served(1, _)));
        let late = meeting.request(3, waiter(3, &log, false));
        assert!(matches!(late, Request::Refused(Refusal::Closed)));
    }

    #[test]
    fn closing_refuses_everyone() {
        let log = Log::default();
        let meeting = Rendezvous::new(1);
        meeting.request(1, waiter(1, &log, false));
        assert_eq!(meeting.close(), []);
        assert_eq!(meeting.offer(2), Err(2));
        let late = meeting.request(2, waiter(2, &log, false));
        assert!(matches!(late, Request::Refused(Refusal::Closed)));
        assert_eq!(*log.lock().expect("the log"), vec![(1, REFUSED), (2, REFUSED)]);
    }

    #[test]
    fn those_who_have_gone_make_room_behind_one_who_waits() {
        let log = Log::default();
        let meeting = Rendezvous::new(1);
        let most = u64::try_from(MAX_WAITERS).expect("a number");
        for id in 0..3 * most {
            let asked = meeting.request(id, waiter(id, &log, id > 0));
            assert!(matches!(asked, Request::Waiting));
            assert!(meeting.lock().waiters.len() <= 3);
        }
        assert_eq!(meeting.offer(7), Ok(()));
        assert_eq!(*log.lock().expect("the log"), vec![(0, 7)]);
    }

    #[test]
    fn no_more_wait_than_there_is_room_for() {
        let log = Log::default();
        let meeting = Rendezvous::new(1);
        let most = u64::try_from(MAX_WAITERS).expect("a number");
        for id in 0..most {
            assert!(matches!(meeting.request(id, waiter(id, &log, false)), Request::Waiting));
        }
        let refused = meeting.request(most, waiter(most, &log, false));
        assert!(matches!(refused, Request::Refused(Refusal::TooManyWait)));
        assert_eq!(*log.lock().expect("the log"), vec![(most, REFUSED)]);
    }
}
