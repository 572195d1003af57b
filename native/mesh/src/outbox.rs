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
mod tests;
