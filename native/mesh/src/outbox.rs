//! The bounded queue of messages to one peer. Erlang schedulers put messages in without ever
//! waiting; one task takes them out. It outlives the dial before it and the change from one QUIC
//! connection to the next behind it, so a message is queued once and never moved.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::Error;
use crate::budget::{Budget, Reservation};
use crate::config::Load;
use crate::entry::{Entry, Payload};
use crate::line::{Line, Waiting};
use crate::message::Message;
use crate::queue::{Departed, Queue};

/// What may wait for one peer while many share the pool's watermark: enough for its turn to
/// come again before all of it has gone.
const LOW_BYTES: usize = 256 * 1024;
/// The part of the watermark that has to be free before senders in line are let in: each time wakes
/// a process, and that costs as much as many messages.
const FREE_PART: usize = 4;

/// How much one outbox may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Accepted and not yet settled.
    pub(crate) outstanding: Load,
    /// Bytes above which senders wait.
    pub(crate) watermark_bytes: usize,
    /// Bytes of all outboxes together above which a watermark is no more than [`LOW_BYTES`].
    pub(crate) pool_watermark_bytes: usize,
}

/// How a message was taken.
#[derive(Debug)]
pub enum Sent {
    /// It is queued, and will be sent.
    Accepted,
    /// It waits for room; the receiver learns when it is queued, or why it never will be. A
    /// receiver that sees its sender dropped knows that the outbox has gone.
    Waiting(oneshot::Receiver<Result<(), Error>>),
}

/// What the task that empties an outbox has to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Take a message.
    Message,
    /// Nothing more: the outbox is empty and stays so.
    Drained,
}

/// What an outbox still held when it was closed.
#[derive(Debug)]
pub(crate) struct Remains {
    /// Messages of which nothing was sent, the oldest first.
    pub(crate) queued: VecDeque<Entry>,
    /// How many were taken out and never settled.
    pub(crate) taken: usize,
    /// Those who wait for room, to be told.
    pub(crate) line: Line,
    /// To be dropped when all of them have been counted.
    pub(crate) reservation: Reservation,
}

#[derive(Debug)]
pub(crate) struct Outbox {
    state: Mutex<State>,
    /// Wakes the one task that takes messages out.
    wake: Notify,
    /// Tells that no more messages are taken.
    farewell: Notify,
    /// Whether messages are still taken: what callers look at before they take the lock.
    is_open: AtomicBool,
    limits: Limits,
    budget: Arc<Budget>,
}

#[derive(Debug)]
struct State {
    queue: Queue,
    /// Bytes in the queue at which the task is woken.
    alarm_bytes: usize,
    line: Line,
    /// Bytes that have gone since somebody was last let in from the line.
    passed_bytes: usize,
    /// Whether room is kept for the first in line, whose turn has come.
    keeps_room: bool,
    /// Accepted and neither acknowledged nor dropped: what is queued and what is in flight.
    outstanding: Load,
    phase: Phase,
    /// Who has taken over what was left. Not kept alive: a forgotten handle would keep all that come
    /// after it.
    heir: Weak<Outbox>,
}

/// An outbox that is about to take over what another has left.
pub(crate) struct Heir<'a> {
    outbox: &'a Arc<Outbox>,
    state: MutexGuard<'a, State>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    /// Messages go in and out.
    Open,
    /// Messages go out only; the error is why no more go in.
    Draining(Error),
    /// Nothing goes in or out.
    Closed(Error),
}

impl Outbox {
    pub(crate) fn new(limits: Limits, budget: Arc<Budget>) -> Self {
        let state = State {
            queue: Queue::default(),
            alarm_bytes: 0,
            line: Line::new(),
            passed_bytes: 0,
            keeps_room: false,
            outstanding: Load::default(),
            phase: Phase::Open,
            heir: Weak::new(),
        };
        Self {
            state: Mutex::new(state),
            wake: Notify::new(),
            farewell: Notify::new(),
            is_open: AtomicBool::new(true),
            limits,
            budget,
        }
    }

    /// Queues a message up to the outbox's full limits, but for what is kept. Never waits.
    pub(crate) fn push(&self, message: Payload<'_>) -> Result<(), Error> {
        let load = Load { messages: 1, bytes: message.len() };
        let mut state = self.open(load)?;
        let kept_for = if state.keeps_room { state.line.first() } else { None };
        let kept_bytes = kept_for.map_or(0, |first| first.bytes);
        self.accept_at_once(&state, load, self.limits.outstanding.bytes - kept_bytes)?;
        self.join(&mut state, message);
        Ok(())
    }

    /// Until what this returns has gone, nobody else puts anything in or takes anything out.
    pub(crate) fn as_heir(self: &Arc<Self>) -> Heir<'_> {
        Heir { outbox: self, state: self.lock() }
    }

    /// Leaves the unsent messages that it had when it ended to `heir`, with their room in the pool, up
    /// to the peer's limits there, and returns those that found no room, or are not wanted any more.
    /// They come before what the heir has not begun to send: they are older.
    pub(crate) fn bequeath(
        &self,
        heir: Heir<'_>,
        entries: VecDeque<Entry>,
        reservation: &mut Reservation,
    ) -> VecDeque<Entry> {
        let Heir { outbox: heir, mut state } = heir;
        let mut refused = VecDeque::new();
        let mut left = 0;
        // First: what is withdrawn from now on is told to the heir. Locked behind it, as nowhere the
        // other way round.
        self.lock().heir = Arc::downgrade(heir);
        for entry in entries {
            if entry.is_wanted() && heir.takes_over(&state, entry.load()) {
                reservation.transfer(entry.load());
                heir.enqueue(&mut state, entry);
                left += 1;
            } else {
                refused.push_back(entry);
            }
        }
        state.queue.bring_forward(left);
        if left > 0 {
            // What is first by now may fly though what was could not.
            heir.wake.notify_one();
        }
        refused
    }

    /// Queues a message up to the watermark. Never waits.
    pub(crate) fn try_send(&self, message: Payload<'_>) -> Result<(), Error> {
        let load = Load { messages: 1, bytes: message.len() };
        let mut state = self.open(load)?;
        if !state.line.is_empty() {
            return Err(Error::QueueFull);
        }
        self.accept_at_once(&state, load, self.watermark_bytes())?;
        self.join(&mut state, message);
        Ok(())
    }

    /// Queues a message up to the watermark, or puts it in line for the room behind that.
    pub(crate) fn send(&self, message: Payload<'_>) -> Result<Sent, Error> {
        let load = Load { messages: 1, bytes: message.len() };
        let mut state = self.open(load)?;
        if self.accepts_before_nobody(&state, load) {
            self.join(&mut state, message);
            return Ok(Sent::Accepted);
        }
        let (turn, outcome) = oneshot::channel();
        let message = message.into_bytes().into();
        self.line_up(&mut state, Waiting::for_room(message, turn)).map_err(|(error, _)| error)?;
        Ok(Sent::Waiting(outcome))
    }

    /// Queues a message whose sender waits for what becomes of it, up to the watermark or in line
    /// for the room behind that.
    ///
    /// # Errors
    /// Why it was not taken, and the message itself.
    pub(crate) fn deliver(&self, message: Message) -> Result<(), (Error, Message)> {
        let mut state = match self.open(message.load()) {
            Ok(state) => state,
            Err(error) => return Err((error, message)),
        };
        if self.accepts_before_nobody(&state, message.load()) {
            self.enqueue(&mut state, Entry::Single(message));
            return Ok(());
        }
        self.line_up(&mut state, Waiting::for_fate(message))
    }

    /// A sender that waited for room has gone, and with it its turn.
    pub(crate) fn note_gone(&self) {
        self.lock().line.part_with_gone();
    }

    /// One message in the queue, or in line for it, was withdrawn by its sender, or in that of an heir
    /// which is still there. Once half of them are, they are taken out.
    pub(crate) fn note_withdrawal(&self) {
        let mut heir = self.note_own_withdrawal();
        while let Some(outbox) = heir {
            heir = outbox.note_own_withdrawal();
        }
    }

    /// As above, but leaves it to the heir if there is one.
    fn note_own_withdrawal(&self) -> Option<Arc<Self>> {
        let mut state = self.lock();
        if let Some(heir) = state.heir.upgrade() {
            return Some(heir);
        }
        state.line.part_with_gone();
        let freed = state.queue.note_withdrawal();
        if freed.messages > 0 {
            self.release(&mut state, freed);
        }
        None
    }

    /// Takes the oldest queued message out if it has so many bytes; it stays outstanding until it is
    /// settled. With it comes [`Outbox::next_bytes`] of those behind it.
    pub(crate) fn take_of(&self, bytes: usize) -> Option<(Message, Option<usize>)> {
        let mut state = self.lock();
        let message = loop {
            if self.front_bytes(&mut state)? != bytes {
                return None;
            }
            match state.queue.pop_message()? {
                Departed::Wanted(message) => break message,
                Departed::Withdrawn(load) => self.release(&mut state, load),
            }
        };
        let next = self.front_bytes(&mut state);
        Some((message, next))
    }

    /// Puts back what had been taken and not settled, before all others.
    pub(crate) fn restore(&self, entries: impl DoubleEndedIterator<Item = Entry>) {
        let mut state = self.lock();
        for entry in entries.rev() {
            state.queue.push_front(entry);
        }
    }

    /// Resolves when there is a message to take, or when there never will be one again. Only the
    /// outbox's one task waits here: a wake-up has one receiver.
    pub(crate) async fn next(&self) -> Next {
        loop {
            {
                let mut state = self.lock();
                state.alarm_bytes = 0;
                if !state.queue.is_empty() {
                    return Next::Message;
                }
                if state.phase != Phase::Open && state.line.is_empty() {
                    return Next::Drained;
                }
                state.queue.rest();
            }
            self.wake.notified().await;
        }
    }

    /// Has the task that takes messages out look again whether it is done.
    pub(crate) fn nudge(&self) {
        self.wake.notify_one();
    }

    /// Resolves when the task is to look again. Only where it would call [`Outbox::next`] otherwise.
    pub(crate) async fn nudged(&self) {
        self.wake.notified().await;
    }

    /// Resolves when the outbox begins to drain, or is closed.
    pub(crate) async fn draining(&self) {
        let mut farewell = pin!(self.farewell.notified());
        // Before the look: who waits from now on is told.
        farewell.as_mut().enable();
        if self.refusal().is_none() {
            farewell.await;
        }
    }

    /// Takes the oldest queued messages out, to travel together; the oldest alone if it is large.
    /// They stay outstanding until they are settled. `large_bytes`: which are.
    pub(crate) fn take_piece(&self, large_bytes: usize, most_bytes: usize) -> Vec<Entry> {
        let mut state = self.lock();
        let mut piece = Vec::new();
        let mut bytes = 0;
        while let Some(front) = state.queue.front() {
            let (next, returns) = (front.load().bytes, front.returns());
            // A batch is never that large: it stops growing before.
            let is_large = next >= large_bytes;
            let fits = !is_large && bytes + next <= most_bytes;
            // What has come back so often shares its fate with no other.
            if piece.first().is_some_and(|first: &Entry| !fits || first.returns() != returns) {
                break;
            }
            match state.queue.pop() {
                Some(Departed::Wanted(entry)) => piece.push(entry),
                Some(Departed::Withdrawn(load)) => {
                    self.release(&mut state, load);
                    continue;
                }
                None => break,
            }
            bytes += next;
            if is_large {
                break;
            }
        }
        piece
    }

    /// Payload bytes of the message that is next.
    pub(crate) fn next_bytes(&self) -> Option<usize> {
        self.front_bytes(&mut self.lock())
    }

    /// Lets messages pile up until `deadline`, or until `enough_bytes` are there. Cancelled, it
    /// leaves no trace but that [`Outbox::next`] is called before the next sleep.
    pub(crate) async fn pile(&self, enough_bytes: usize, deadline: Instant) {
        let piling = async {
            while self.is_piling(enough_bytes) {
                self.wake.notified().await;
            }
        };
        // The deadline is as good as the alarm.
        timeout_at(deadline, piling).await.ok();
    }

    fn is_piling(&self, enough_bytes: usize) -> bool {
        let mut state = self.lock();
        state.alarm_bytes = enough_bytes;
        state.phase == Phase::Open
            && state.line.is_empty()
            && state.queue.load().bytes < enough_bytes
    }

    /// Messages that were taken are done with; lets the next in line in.
    pub(crate) fn settle(&self, load: Load) {
        if load.messages == 0 {
            return;
        }
        let mut state = self.lock();
        // After `close`, everything outstanding has been settled in one go.
        if matches!(state.phase, Phase::Closed(_)) {
            return;
        }
        self.release(&mut state, load);
    }

    /// Takes no more messages and lets those that it has go out.
    pub(crate) fn drain(&self, reason: Error) {
        let mut state = self.lock();
        if state.phase == Phase::Open {
            state.phase = Phase::Draining(reason);
            self.is_open.store(false, Ordering::Release);
            drop(state);
            self.wake.notify_one();
            self.farewell.notify_waiters();
        }
    }

    /// Whether messages are still taken.
    pub(crate) fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Acquire)
    }

    /// Why no more messages are taken, if so.
    pub(crate) fn refusal(&self) -> Option<Error> {
        match &self.lock().phase {
            Phase::Open => None,
            Phase::Draining(reason) | Phase::Closed(reason) => Some(reason.clone()),
        }
    }

    /// Ends the outbox: those who wait for room are told `reason`. A draining outbox keeps the reason
    /// of its draining.
    pub(crate) fn close(&self, reason: Error) {
        self.end(reason.clone()).line.close(&reason, |_| {});
    }

    /// As [`Outbox::close`], but returns what was left. Those who wait for room are still to be told:
    /// they may be very many, and who calls may have locked what others need.
    pub(crate) fn end(&self, reason: Error) -> Remains {
        let mut state = self.lock();
        self.is_open.store(false, Ordering::Release);
        match state.phase.clone() {
            Phase::Open => state.phase = Phase::Closed(reason),
            Phase::Draining(first) => state.phase = Phase::Closed(first),
            Phase::Closed(_) => {}
        }
        // Nothing of an outbox that is closed already.
        let load = std::mem::take(&mut state.outstanding);
        let reservation = Reservation::of(&self.budget, load);
        let (queued, left) = state.queue.take_all();
        let line = std::mem::replace(&mut state.line, Line::new());
        drop(state);
        self.farewell.notify_waiters();
        Remains { queued, taken: load.messages.saturating_sub(left.messages), line, reservation }
    }

    /// Whether nothing is queued, in flight, or waiting.
    pub(crate) fn is_idle(&self) -> bool {
        let state = self.lock();
        state.outstanding.messages == 0 && state.line.is_empty()
    }

    /// How much is queued or in flight.
    pub(crate) fn outstanding(&self) -> Load {
        self.lock().outstanding
    }

    fn open(&self, message: Load) -> Result<MutexGuard<'_, State>, Error> {
        let state = self.lock();
        match &state.phase {
            Phase::Open if message.bytes > self.limits.outstanding.bytes => {
                Err(Error::MessageTooLarge)
            }
            Phase::Open => Ok(state),
            Phase::Draining(reason) | Phase::Closed(reason) => Err(reason.clone()),
        }
    }

    /// Reserves room, up to `bytes`. An outbox with nothing in it has room for anything that is not
    /// too large: so every sender gets its turn, even below a low watermark or beside outboxes that
    /// have used the pool's budget up.
    fn accept(&self, state: &State, load: Load, bytes: usize) -> Result<(), Error> {
        if state.outstanding.messages == 0 {
            self.budget.accept(load);
            return Ok(());
        }
        if !self.fits(state, load, bytes) {
            return Err(Error::QueueFull);
        }
        if self.budget.try_accept(load) { Ok(()) } else { Err(Error::PoolQueueFull) }
    }

    /// As [`Outbox::accept`], for a sender that does not wait if there is no room: many outboxes with
    /// one message each get no more, together, than the pool's budget once more.
    fn accept_at_once(&self, state: &State, load: Load, bytes: usize) -> Result<(), Error> {
        if state.outstanding.messages > 0 {
            return self.accept(state, load, bytes);
        }
        if self.budget.try_accept_beyond(load) { Ok(()) } else { Err(Error::PoolQueueFull) }
    }

    /// Reserves room up to the watermark, unless others wait for that.
    fn accepts_before_nobody(&self, state: &State, load: Load) -> bool {
        state.line.is_empty() && self.accept(state, load, self.watermark_bytes()).is_ok()
    }

    /// As [`Outbox::accept`], of what the pool has room for already.
    fn takes_over(&self, state: &State, load: Load) -> bool {
        let is_first = state.outstanding.messages == 0;
        state.phase == Phase::Open
            && (is_first || self.fits(state, load, self.limits.outstanding.bytes))
    }

    /// Whether the peer's bounds, with this one in bytes, leave room.
    fn fits(&self, state: &State, load: Load, bytes: usize) -> bool {
        let most = self.limits.outstanding.messages;
        state.outstanding.messages.saturating_add(load.messages) <= most
            && state.outstanding.bytes.saturating_add(load.bytes) <= bytes
    }

    /// Bytes above which senders wait. One peer alone may have enough for a long path; what many have
    /// together should stay in the processor's cache.
    fn watermark_bytes(&self) -> usize {
        let Limits { outstanding, watermark_bytes, pool_watermark_bytes } = self.limits;
        let watermark_bytes = watermark_bytes.min(outstanding.bytes);
        if self.budget.seems_beyond(pool_watermark_bytes) {
            watermark_bytes.min(LOW_BYTES)
        } else {
            watermark_bytes
        }
    }

    /// Payload bytes of the message that is next, past those that have been withdrawn.
    fn front_bytes(&self, state: &mut State) -> Option<usize> {
        while !state.queue.front()?.is_wanted() {
            if let Some(Departed::Withdrawn(freed)) = state.queue.pop() {
                self.release(state, freed);
            }
        }
        state.queue.front().map(Entry::first_bytes)
    }

    /// Gives room back, and lets the next in line have it.
    fn release(&self, state: &mut State, load: Load) {
        state.outstanding -= load;
        self.budget.settle(load);
        if !state.line.is_empty() {
            self.serve(state, load.bytes);
        }
        // The last in line may have gone unserved, and with it what the task was waiting for.
        if state.phase != Phase::Open && state.queue.is_empty() {
            self.wake.notify_one();
        }
    }

    /// Queues a message of which nobody waits for what becomes of it.
    fn join(&self, state: &mut State, message: Payload<'_>) {
        let load = Load { messages: 1, bytes: message.len() };
        self.put(state, load, |queue| queue.join(message));
    }

    fn enqueue(&self, state: &mut State, entry: Entry) {
        self.put(state, entry.load(), |queue| queue.push_back(entry));
    }

    /// Queues so much, and wakes the task if it waits for that.
    fn put(&self, state: &mut State, load: Load, put: impl FnOnce(&mut Queue)) {
        let is_enough = |State { queue, alarm_bytes, .. }: &State| {
            !queue.is_empty() && queue.load().bytes >= *alarm_bytes
        };
        let was_enough = is_enough(state);
        state.outstanding += load;
        put(&mut state.queue);
        // The task empties the queue before it sleeps: only the first message has to wake it.
        if !was_enough && is_enough(state) {
            self.wake.notify_one();
        }
    }

    /// Puts a sender in line for room; the task has to make some.
    fn line_up(&self, state: &mut State, sender: Waiting) -> Result<(), (Error, Message)> {
        if state.line.is_empty() {
            (state.passed_bytes, state.keeps_room) = (0, false);
        }
        state.line.push(sender).map_err(|message| (Error::QueueFull, message))?;
        if state.alarm_bytes > 0 {
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Lets those in line in, in their order, as far as there is room below the watermark, once a part
    /// of it is free; where others keep it used up, as much as that part each time a watermark has gone
    /// out past them. The first needs no such room: a message beyond the watermark would wait for ever.
    fn serve(&self, state: &mut State, freed_bytes: usize) {
        let watermark = self.watermark_bytes();
        let part = watermark / FREE_PART;
        state.passed_bytes = state.passed_bytes.saturating_add(freed_bytes);
        let is_due = state.passed_bytes >= watermark;
        if !is_due && state.outstanding.bytes > watermark - part {
            return;
        }
        let bytes = state.outstanding.bytes.saturating_add(part).max(watermark);
        let bytes = bytes.min(self.limits.outstanding.bytes);
        let Some(first) = state.line.first() else { return };
        if !self.accepts_first(state, first, is_due) {
            // Or what comes in meanwhile would take each room before it is enough.
            state.keeps_room = true;
            return;
        }
        self.let_in(state);
        while let Some(next) = state.line.first()
            && self.accept(state, next, bytes).is_ok()
        {
            self.let_in(state);
        }
    }

    /// Reserves room for the first in line, whose turn has come. `is_due`: others have gone past him,
    /// and a full pool does not hold him up either.
    fn accepts_first(&self, state: &State, load: Load, is_due: bool) -> bool {
        let bytes = self.limits.outstanding.bytes;
        let is_accepted = self.accept(state, load, bytes).is_ok();
        is_accepted
            || is_due && self.fits(state, load, bytes) && self.budget.try_accept_beyond(load)
    }

    /// Queues the message of the first in line, for which room is reserved.
    fn let_in(&self, state: &mut State) {
        (state.passed_bytes, state.keeps_room) = (0, false);
        if let Some(first) = state.line.pop() {
            self.enqueue(state, Entry::Single(first.let_in()));
        }
    }

    /// A std mutex, because nothing awaits inside.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.close(Error::Cancelled);
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tokio's test macro blocks, on a thread of the test")]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use bytes::Bytes;
    use futures_util::FutureExt;

    use super::*;

    impl Outbox {
        /// Takes the oldest queued message out, whatever its size.
        fn take(&self) -> Option<(Message, Option<usize>)> {
            self.take_of(self.next_bytes()?)
        }
    }

    const ROOMY: Load = Load { messages: 100, bytes: 1_000 };

    fn outbox(limit: Load, watermark_bytes: usize, budget: Load) -> (Outbox, Arc<Budget>) {
        let budget = Arc::new(Budget::new(budget));
        let limits =
            Limits { outstanding: limit, watermark_bytes, pool_watermark_bytes: usize::MAX };
        (Outbox::new(limits, budget.clone()), budget)
    }

    fn message(bytes: usize) -> Payload<'static> {
        Bytes::from(vec![0; bytes]).into()
    }

    fn count(entries: &VecDeque<Entry>) -> usize {
        entries.iter().map(|entry| entry.load().messages).sum()
    }

    #[test]
    fn refuses_what_exceeds_the_peers_share() {
        let (outbox, _) = outbox(Load { messages: 2, bytes: 100 }, 100, ROOMY);
        assert_eq!(outbox.push(message(101)), Err(Error::MessageTooLarge));
        assert_eq!(outbox.push(message(90)), Ok(()));
        assert_eq!(outbox.push(message(11)), Err(Error::QueueFull));
        assert_eq!(outbox.push(message(10)), Ok(()));
        assert_eq!(outbox.push(message(0)), Err(Error::QueueFull));
    }

    #[test]
    fn refuses_what_exceeds_the_pools_share_and_gives_it_back() {
        let (outbox, budget) = outbox(ROOMY, 1_000, Load { messages: 2, bytes: 50 });
        assert_eq!(outbox.push(message(40)), Ok(()));
        assert_eq!(outbox.push(message(20)), Err(Error::PoolQueueFull));
        assert_eq!(outbox.take().map(|(m, _)| m.len()), Some(40));
        outbox.settle(Load { messages: 1, bytes: 40 });
        assert_eq!(budget.used(), Load::default());
        assert_eq!(outbox.push(message(20)), Ok(()));
        assert_eq!(outbox.push(message(20)), Ok(()));
        drop(outbox);
        assert_eq!(budget.used(), Load::default());
    }

    #[test]
    fn a_sender_waits_above_the_watermark_and_gets_its_turn() {
        let (outbox, _) = outbox(ROOMY, 10, ROOMY);
        assert!(matches!(outbox.send(message(10)), Ok(Sent::Accepted)));
        assert_eq!(outbox.try_send(message(1)), Err(Error::QueueFull));
        let Ok(Sent::Waiting(mut turn)) = outbox.send(message(20)) else {
            panic!("the second message must wait");
        };
        assert!(turn.try_recv().is_err());
        assert!(outbox.take().is_some());
        outbox.settle(Load { messages: 1, bytes: 10 });
        assert_eq!(turn.try_recv(), Ok(Ok(())));
        assert_eq!(outbox.take().map(|(m, _)| m.len()), Some(20));
    }

    #[test]
    fn senders_in_line_are_let_in_together_once_a_quarter_is_free() {
        let (outbox, _) = outbox(ROOMY, 100, ROOMY);
        for _ in 0..10 {
            assert_eq!(outbox.push(message(10)), Ok(()));
        }
        let [mut first, mut second] =
            [outbox.send(message(1)), outbox.send(message(2))].map(|sent| {
                let Ok(Sent::Waiting(turn)) = sent else { panic!("no room is left") };
                turn
            });
        outbox.settle(Load { messages: 2, bytes: 20 });
        assert!(first.try_recv().is_err());
        outbox.settle(Load { messages: 1, bytes: 10 });
        assert_eq!((first.try_recv(), second.try_recv()), (Ok(Ok(())), Ok(Ok(()))));
    }

    /// Lets a peer take messages of so many bytes, each followed by one of a sender that does not
    /// wait, until the sender in line is let in; `None`: he never is.
    fn served_after(
        outbox: &Outbox,
        bytes: usize,
        turn: &mut oneshot::Receiver<Result<(), Error>>,
    ) -> Option<usize> {
        (1..1_000).find(|_| {
            assert!(outbox.take().is_some());
            outbox.settle(Load { messages: 1, bytes });
            // The others never let the outbox run empty, and take what room they get.
            while outbox.push(message(bytes)).is_ok() && outbox.outstanding().messages < 4 {}
            turn.try_recv().is_ok()
        })
    }

    #[test]
    fn a_message_beyond_the_watermark_gets_in_beside_others_that_keep_coming() {
        let (outbox, _) = outbox(ROOMY, 100, ROOMY);
        assert_eq!([outbox.push(message(10)), outbox.push(message(10))], [Ok(()), Ok(())]);
        let Ok(Sent::Waiting(mut turn)) = outbox.send(message(500)) else {
            panic!("it is beyond the watermark");
        };
        let Ok(Sent::Waiting(mut next)) = outbox.send(message(500)) else {
            panic!("somebody is before it");
        };
        assert_eq!(served_after(&outbox, 10, &mut turn), Some(1));
        assert!(next.try_recv().is_err(), "one at a time");
    }

    #[test]
    fn who_needs_all_the_room_gets_it_though_others_keep_coming() {
        let (outbox, _) = outbox(ROOMY, 100, ROOMY);
        assert_eq!([outbox.push(message(10)), outbox.push(message(10))], [Ok(()), Ok(())]);
        let Ok(Sent::Waiting(mut turn)) = outbox.send(message(ROOMY.bytes)) else {
            panic!("it is beyond the watermark");
        };
        assert!(served_after(&outbox, 10, &mut turn).is_some());
    }

    /// An outbox that senders who do not wait have filled up to its limit, by tens of bytes.
    fn flooded(budget: Load) -> (Outbox, Arc<Budget>) {
        let (outbox, budget) = outbox(Load { messages: 100, bytes: 200 }, 100, budget);
        while outbox.push(message(10)).is_ok() {}
        (outbox, budget)
    }

    #[test]
    fn those_in_line_get_their_turn_in_a_flood_after_a_watermark_of_others() {
        let (outbox, _) = flooded(ROOMY);
        assert_eq!(outbox.outstanding().bytes, 200);
        let mut turns = [10, 10, 50].map(|bytes| {
            let Ok(Sent::Waiting(turn)) = outbox.send(message(bytes)) else {
                panic!("the watermark is used up")
            };
            turn
        });
        let mut served = || {
            (1..100).find(|_| {
                assert!(outbox.take().is_some());
                outbox.settle(Load { messages: 1, bytes: 10 });
                while outbox.push(message(10)).is_ok() {}
                turns.iter_mut().any(|turn| turn.try_recv().is_ok())
            })
        };
        assert_eq!([served(), served()], [Some(10), Some(10)]);
        // Five times as large as what goes at a time: room is kept for it.
        assert_eq!(served(), Some(10 + 4));
        assert!(outbox.outstanding().bytes <= 200);
        // And for nobody, when nobody waits.
        while outbox.push(message(1)).is_ok() {}
        assert_eq!(outbox.outstanding().bytes, 200);
    }

    #[test]
    fn room_that_was_kept_for_a_sender_who_has_gone_is_there_for_others() {
        let (outbox, _) = flooded(ROOMY);
        let [turn, _next] = [150, 10].map(|bytes| {
            let Ok(Sent::Waiting(turn)) = outbox.send(message(bytes)) else {
                panic!("the watermark is used up")
            };
            turn
        });
        for _ in 0..10 {
            assert!(outbox.take().is_some());
            outbox.settle(Load { messages: 1, bytes: 10 });
        }
        assert_eq!(outbox.push(message(10)), Err(Error::QueueFull));
        drop(turn);
        outbox.note_gone();
        // But for that of the next in line.
        assert_eq!(outbox.push(message(91)), Err(Error::QueueFull));
        assert_eq!(outbox.push(message(90)), Ok(()));
    }

    #[test]
    fn a_full_pool_does_not_hold_up_the_first_in_line_for_ever() {
        let (outbox, budget) = flooded(Load { messages: 1_000, bytes: 200 });
        let Ok(Sent::Waiting(mut turn)) = outbox.send(message(20)) else {
            panic!("the watermark is used up")
        };
        let served = (1..100).find(|_| {
            assert!(outbox.take().is_some());
            outbox.settle(Load { messages: 1, bytes: 10 });
            // Others of the pool take each room.
            while budget.try_accept(Load { messages: 1, bytes: 10 }) {}
            turn.try_recv().is_ok()
        });
        // Long before nothing is outstanding.
        assert_eq!(served, Some(10));
    }

    #[test]
    fn while_others_have_much_outstanding_the_watermark_is_low() {
        let roomy = Load { messages: 100, bytes: 10 * LOW_BYTES };
        let (one, budget) = outbox(roomy, 4 * LOW_BYTES, roomy);
        let limits = Limits { pool_watermark_bytes: 2 * LOW_BYTES, ..one.limits };
        let other = Outbox::new(limits, budget);
        let much = Load { messages: 1, bytes: 2 * LOW_BYTES };
        assert_eq!(one.push(message(much.bytes)), Ok(()));
        assert_eq!(other.try_send(message(LOW_BYTES)), Ok(()));
        assert_eq!(other.try_send(message(1)), Err(Error::QueueFull));
        one.settle(much);
        assert_eq!(other.try_send(message(LOW_BYTES)), Ok(()));
        assert_eq!(other.try_send(message(1)), Ok(()));
    }

    #[test]
    fn first_messages_beyond_the_budget_are_as_many_as_it_allows_once_more() {
        let limit = Load { messages: 3, bytes: 1_000 };
        let budget = Arc::new(Budget::new(limit));
        let limits = Limits {
            outstanding: ROOMY,
            watermark_bytes: usize::MAX,
            pool_watermark_bytes: usize::MAX,
        };
        let outboxes: Vec<_> = (0..7).map(|_| Outbox::new(limits, budget.clone())).collect();
        let taken: Vec<_> = outboxes.iter().map(|outbox| outbox.push(message(100))).collect();
        assert_eq!(taken[..6], [const { Ok(()) }; 6]);
        assert_eq!(taken[6], Err(Error::PoolQueueFull));
        assert_eq!(outboxes[6].try_send(message(100)), Err(Error::PoolQueueFull));
        // Who would wait, for there is nothing here whose landing could wake him, is served.
        assert!(matches!(outboxes[6].send(message(100)), Ok(Sent::Accepted)));
        assert_eq!(budget.used(), Load { messages: 7, bytes: 700 });
        let large = Arc::new(Budget::new(Load { messages: 3, bytes: 10 }));
        assert_eq!(Outbox::new(limits, large).push(message(900)), Ok(()));
    }

    #[tokio::test]
    async fn a_queue_that_was_long_leaves_no_room_behind() {
        let (many, bytes) = (1_000, 1_000 * 2_048);
        let roomy = Load { messages: 2 * many, bytes: 2 * bytes };
        let (outbox, _) = outbox(roomy, bytes, roomy);
        for _ in 0..many {
            assert_eq!(outbox.push(message(2_048)), Ok(()));
        }
        let turns: Vec<_> = (0..many).map(|_| outbox.send(message(2_048))).collect();
        assert!(turns.iter().all(|turn| matches!(turn, Ok(Sent::Waiting(_)))));
        while let Some((message, _)) = outbox.take() {
            outbox.settle(message.load());
        }
        assert_eq!(outbox.next().now_or_never(), None);
        assert_eq!(outbox.lock().queue.capacity(), 0);
    }

    #[test]
    fn what_has_come_back_does_not_travel_with_what_has_not() {
        let (outbox, _) = outbox(ROOMY, 1_000, ROOMY);
        assert_eq!(outbox.push(message(1)), Ok(()));
        let mut piece = outbox.take_piece(1_000, 1_000);
        piece.iter_mut().for_each(Entry::turn_back);
        outbox.restore(piece.into_iter());
        assert_eq!(outbox.push(message(2)), Ok(()));
        let loads = |piece: Vec<Entry>| piece.iter().map(|e| e.load().bytes).collect::<Vec<_>>();
        assert_eq!(loads(outbox.take_piece(1_000, 1_000)), vec![1]);
        assert_eq!(loads(outbox.take_piece(1_000, 1_000)), vec![2]);
    }

    #[test]
    fn the_message_of_a_sender_that_has_gone_is_not_sent() {
        let (outbox, _) = outbox(ROOMY, 1, ROOMY);
        assert!(matches!(outbox.send(message(5)), Ok(Sent::Accepted)));
        drop(outbox.send(message(6)));
        let Ok(Sent::Waiting(mut turn)) = outbox.send(message(7)) else {
            panic!("the third message must wait");
        };
        assert!(outbox.take().is_some());
        outbox.settle(Load { messages: 1, bytes: 5 });
        assert_eq!(turn.try_recv(), Ok(Ok(())));
        assert_eq!(outbox.take().map(|(m, _)| m.len()), Some(7));
    }

    #[test]
    fn a_draining_outbox_lets_out_what_it_has_and_takes_nothing() {
        let (outbox, _) = outbox(ROOMY, 1_000, ROOMY);
        assert_eq!(outbox.push(message(1)), Ok(()));
        outbox.drain(Error::Evicted);
        assert_eq!(outbox.push(message(1)), Err(Error::Evicted));
        assert!(outbox.take().is_some());
        outbox.settle(Load { messages: 1, bytes: 1 });
        assert!(outbox.is_idle());
    }

    #[test]
    fn closing_tells_what_was_not_sent_from_what_may_have_arrived() {
        let (outbox, budget) = outbox(ROOMY, 3, ROOMY);
        for _ in 0..3 {
            assert_eq!(outbox.push(message(1)), Ok(()));
        }
        let Ok(Sent::Waiting(mut turn)) = outbox.send(message(1)) else {
            panic!("the fourth message must wait");
        };
        assert!(outbox.take().is_some());
        let Remains { queued, taken, line, reservation } = outbox.end(Error::Reset);
        assert_eq!((count(&queued), taken), (2, 1));
        // Not while who has ended it may have locked something.
        assert!(turn.try_recv().is_err());
        line.close(&Error::Reset, |_| {});
        assert_eq!(turn.try_recv(), Ok(Err(Error::Reset)));
        // The task may still settle what it had taken.
        outbox.settle(Load { messages: 1, bytes: 1 });
        assert_eq!(budget.used(), Load { messages: 3, bytes: 3 });
        drop(reservation);
        assert_eq!(budget.used(), Load::default());
        assert_eq!(outbox.push(message(1)), Err(Error::Reset));
    }

    #[test]
    fn messages_that_go_to_another_outbox_are_held_by_the_budget_all_the_while() {
        let (lost, budget) = outbox(ROOMY, 1_000, ROOMY);
        let heir = Outbox::new(
            Limits { outstanding: Load { messages: 2, bytes: 1_000 }, ..lost.limits },
            budget.clone(),
        );
        // Each by itself: a batch would go or stay as a whole.
        for bytes in [300, 200, 100] {
            let (message, _) = Message::confirmed(Bytes::from(vec![0; bytes]));
            assert!(lost.deliver(message).is_ok());
        }
        let Remains { queued, mut reservation, .. } = lost.end(Error::Reset);
        let heir = Arc::new(heir);
        let refused = lost.bequeath(heir.as_heir(), queued, &mut reservation);
        assert_eq!(count(&refused), 1);
        assert_eq!(budget.used(), Load { messages: 3, bytes: 600 });
        drop(reservation);
        assert_eq!(budget.used(), Load { messages: 2, bytes: 500 });
        assert_eq!(heir.outstanding(), budget.used());
    }

    #[test]
    fn what_is_left_to_another_outbox_comes_before_what_is_sent_to_that() {
        let (lost, budget) = outbox(ROOMY, 1_000, ROOMY);
        let heir = Arc::new(Outbox::new(lost.limits, budget));
        assert_eq!(lost.push(Payload::Borrowed(b"before")), Ok(()));
        let Remains { queued, mut reservation, .. } = lost.end(Error::Reset);
        let inherits = heir.as_heir();
        thread::scope(|scope| {
            let (begins, begun) = mpsc::channel();
            let sender = heir.clone();
            scope.spawn(move || {
                begins.send(()).ok();
                assert_eq!(sender.push(Payload::Borrowed(b"behind")), Ok(()));
            });
            assert_eq!(begun.recv(), Ok(()));
            assert_eq!(count(&lost.bequeath(inherits, queued, &mut reservation)), 0);
        });
        let taken = std::iter::from_fn(|| Some(heir.take()?.0.data));
        assert_eq!(taken.collect::<Vec<_>>(), ["before", "behind"]);
    }

    /// Whose connection only drains has a successor, to which newer messages have gone.
    #[test]
    fn what_is_left_to_another_outbox_comes_before_what_that_has_not_begun_to_send() {
        let (lost, budget) = outbox(ROOMY, 1_000, ROOMY);
        let heir = Arc::new(Outbox::new(lost.limits, budget));
        // Each by itself, not in a batch.
        let deliver = |outbox: &Outbox, data: &'static str| {
            assert!(outbox.deliver(Message::confirmed(data.into()).0).is_ok());
        };
        ["first", "second"].into_iter().for_each(|data| deliver(&lost, data));
        ["begun", "third", "fourth"].into_iter().for_each(|data| deliver(&heir, data));
        let take = || Some(heir.take()?.0.data);
        assert_eq!(take().as_deref(), Some(b"begun".as_slice()));
        let Remains { queued, mut reservation, .. } = lost.end(Error::Reset);
        assert_eq!(count(&lost.bequeath(heir.as_heir(), queued, &mut reservation)), 0);
        let taken: Vec<_> = std::iter::from_fn(take).collect();
        assert_eq!(taken, ["first", "second", "third", "fourth"]);
    }

    #[test]
    fn what_is_withdrawn_after_it_went_to_another_outbox_gives_its_room_back_there() {
        let (lost, budget) = outbox(ROOMY, 1_000, ROOMY);
        let heir = Arc::new(Outbox::new(lost.limits, budget.clone()));
        let (message, confirmation) = Message::confirmed(Bytes::from_static(b"lost"));
        assert!(lost.deliver(message).is_ok());
        let Remains { queued, mut reservation, .. } = lost.end(Error::Reset);
        assert_eq!(count(&lost.bequeath(heir.as_heir(), queued, &mut reservation)), 0);
        assert!(confirmation.withdraw(Error::SendTimeout).is_some());
        // All that its sender knows is where it was.
        lost.note_withdrawal();
        assert_eq!(budget.used(), Load::default());
        assert!(heir.is_idle());
    }

    #[test]
    fn small_messages_join_a_batch_and_come_out_in_their_order() {
        let (outbox, _) = outbox(ROOMY, 1_000, ROOMY);
        for bytes in [3, 0, 5] {
            assert_eq!(outbox.push(message(bytes)), Ok(()));
        }
        assert_eq!(outbox.next_bytes(), Some(3));
        assert_eq!(outbox.take().map(|(m, _)| m.len()), Some(3));
        let piece = outbox.take_piece(1_000, 1_000);
        assert_eq!(piece.len(), 1);
        assert_eq!(piece[0].load(), Load { messages: 2, bytes: 5 });
        outbox.restore(piece.into_iter());
        assert_eq!(outbox.take().map(|(m, _)| m.len()), Some(0));
        assert_eq!(outbox.take().map(|(m, _)| m.len()), Some(5));
        assert!(outbox.take().is_none());
    }

    #[test]
    fn a_withdrawn_message_is_passed_over_and_gives_its_room_back() {
        let (outbox, budget) = outbox(Load { messages: 2, bytes: 100 }, 100, ROOMY);
        let (first, confirmation) = Message::confirmed(Bytes::from_static(b"first"));
        assert!(outbox.deliver(first).is_ok());
        assert_eq!(outbox.push(message(1)), Ok(()));
        assert_eq!(outbox.push(message(1)), Err(Error::QueueFull));
        assert!(confirmation.withdraw(Error::SendTimeout).is_some());
        outbox.note_withdrawal();
        assert_eq!(outbox.push(message(1)), Ok(()));
        assert_eq!(outbox.take_piece(100, 100)[0].load(), Load { messages: 2, bytes: 2 });
        assert_eq!(budget.used(), Load { messages: 2, bytes: 2 });
    }

    #[test]
    fn no_other_message_is_taken_than_the_one_that_was_measured() {
        let (outbox, _) = outbox(ROOMY, 1_000, ROOMY);
        let (small, confirmation) = Message::confirmed(Bytes::from_static(b"small"));
        assert!(outbox.deliver(small).is_ok());
        assert_eq!(outbox.push(message(900)), Ok(()));
        let measured = outbox.next_bytes().expect("it is there");
        assert!(confirmation.withdraw(Error::SendTimeout).is_some());
        assert!(outbox.take_of(measured).is_none());
        assert_eq!(outbox.outstanding(), Load { messages: 1, bytes: 900 });
        assert_eq!(outbox.take_of(900).map(|(m, _)| m.len()), Some(900));
    }

    #[tokio::test]
    async fn messages_pile_up_until_enough_are_there_or_somebody_waits() {
        let (outbox, _) = outbox(ROOMY, 10, ROOMY);
        let outbox = Arc::new(outbox);
        let late = Instant::now() + std::time::Duration::from_secs(60);
        assert_eq!(outbox.push(message(1)), Ok(()));
        let piling = tokio::spawn({
            let outbox = outbox.clone();
            async move { outbox.pile(5, late).await }
        });
        tokio::task::yield_now().await;
        assert_eq!(outbox.push(message(4)), Ok(()));
        piling.await.expect("piled up");
        let piling = tokio::spawn({
            let outbox = outbox.clone();
            async move { outbox.pile(100, late).await }
        });
        tokio::task::yield_now().await;
        assert!(matches!(outbox.send(message(9)), Ok(Sent::Waiting(_))));
        piling.await.expect("somebody waits");
    }
}
