//! The way of received bytes to a process: who owns the stream, whether it wants data as messages
//! or asks for it, and the one task that reads. Everything that the owner is told of a stream is
//! posted under one lock, so that after a pause nothing more comes, and what came is in order.

mod state;

use std::future::poll_fn;
use std::mem;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use mesh::{Error, Packet, Reader, Received, SendEnd};
use rustler::{Encoder, LocalPid, Monitor};
use tokio::sync::Notify;

use self::state::{Delivery, Handle, Locked, State};
pub(crate) use self::state::{Mode, end_error};
use crate::readers::{Patience, RequestId};
use crate::reply::Reply;
use crate::{atoms, runtime, terms};

pub(crate) struct Inlet {
    state: Mutex<State>,
    /// Wakes the reading task.
    changed: Notify,
}

/// Where who asks for data finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// It is his answer.
    Answer,
    /// It comes as messages. His answer comes when that is over.
    Messages,
    /// Some may have come as messages, which is before what is still to be read. No answer comes.
    Mailbox,
}

/// Why an inlet does not do as it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    NotOwner,
    NoProcess,
    TooManyReaders,
    Closed,
}

impl Inlet {
    /// The owner is told of events if `has_events`, or once the stream is made active.
    pub(crate) fn new(owner: LocalPid, has_events: bool) -> Self {
        let state = State::new(owner, has_events);
        Self { state: Mutex::new(state), changed: Notify::new() }
    }

    pub(crate) fn set_monitor(&self, monitor: Monitor) {
        self.lock().monitor = Some(monitor);
    }

    /// Whether it has ever had an owner that lived.
    pub(crate) fn is_owned(&self) -> bool {
        self.lock().monitor.is_some()
    }

    pub(crate) fn is_owned_by(&self, pid: LocalPid) -> bool {
        self.lock().owner == pid
    }

    /// Whether `monitor` is that of the present owner: of the first one, it may come down before
    /// it has been noted here.
    pub(crate) fn is_monitored_by(&self, monitor: &Monitor) -> bool {
        self.lock().monitor.as_ref().is_none_or(|present| present == monitor)
    }

    /// Sets how the owner gets data.
    pub(crate) fn set_mode(self: &Arc<Self>, handle: Handle, mode: Mode) -> Result<(), Refusal> {
        let mut state = self.lock();
        if state.is_closed {
            return Err(Refusal::Closed);
        }
        state.set_mode(mode, handle);
        drop(state);
        self.catch_up();
        Ok(())
    }

    pub(crate) fn set_packet(&self, packet: Packet) {
        self.lock().packet = Some(packet);
        self.changed.notify_one();
    }

    /// `caller` is about to hand the stream over, and gets nothing more of it. It stays the owner
    /// until it has given the stream, and when it dies before that the stream closes.
    pub(crate) fn pause(
        &self,
        caller: LocalPid,
        has_heir: impl FnOnce() -> bool,
    ) -> Result<(), Refusal> {
        let mut state = self.lock();
        if state.owner != caller {
            return Err(Refusal::NotOwner);
        }
        if !has_heir() {
            return Err(Refusal::NoProcess);
        }
        state.is_paused = true;
        drop(state);
        self.changed.notify_one();
        Ok(())
    }

    /// Gives the paused stream to `owner`, and goes on; returns the monitor of the one before.
    /// Locked from before the new owner can die, or its death would not be known as that.
    pub(crate) fn give(
        self: &Arc<Self>,
        caller: LocalPid,
        owner: LocalPid,
        monitor: impl FnOnce() -> Option<Monitor>,
    ) -> Result<Option<Monitor>, Refusal> {
        let mut state = self.lock();
        if state.owner != caller {
            return Err(Refusal::NotOwner);
        }
        let monitor = monitor().ok_or(Refusal::NoProcess)?;
        state.owner = owner;
        state.is_paused = false;
        let former = state.monitor.replace(monitor);
        let early = state.readers.take_of(&owner);
        drop(state);
        for reader in early {
            // What it was given along with the stream comes first.
            reader.send_later(|env| atoms::look().encode(env));
        }
        self.catch_up();
        Ok(former)
    }

    /// Asks for the next data, in place of a message, behind others who have asked.
    /// [`Source::Mailbox`] is told once, until [`Inlet::look_again`] or more is posted. While the
    /// stream is being handed over nobody is answered, and its new owner then with `look`.
    pub(crate) fn request(
        &self,
        handle: &Handle,
        id: RequestId,
        reply: Reply,
        patience: Patience,
    ) -> Result<Source, Refusal> {
        let mut state = self.lock();
        if state.is_closed {
            return Err(Refusal::Closed);
        }
        let has_ended = state.received_end.is_some();
        if state.mode != Mode::Passive && !has_ended {
            let has_room = state.watchers.add(id, reply, Patience::Waits);
            return if has_room { Ok(Source::Messages) } else { Err(Refusal::TooManyReaders) };
        }
        // Nothing more is posted from here on, so who looks finds all of it.
        if reply.to() == state.owner && mem::take(&mut state.has_posted) {
            return Ok(Source::Mailbox);
        }
        if has_ended {
            return Err(Refusal::Closed);
        }
        if !state.readers.add(id, reply, patience) {
            return Err(Refusal::TooManyReaders);
        }
        if state.needs_handle() {
            state.handle = Some(handle.clone());
        }
        drop(state);
        self.changed.notify_one();
        Ok(Source::Answer)
    }

    /// The owner has found data in its mailbox, where there may be more.
    pub(crate) fn look_again(&self) {
        self.lock().has_posted = true;
    }

    /// Takes a request back. `false`: too late, it is answered.
    pub(crate) fn cancel_request(&self, id: RequestId) -> bool {
        let mut state = self.lock();
        if state.watchers.cancel(id) {
            return true;
        }
        let is_cancelled = state.readers.cancel(id);
        drop(state);
        // What came now would be held for nobody.
        self.changed.notify_one();
        is_cancelled
    }

    /// How reading has ended, if it has.
    pub(crate) fn received_end(&self) -> Option<Received> {
        self.lock().received_end.clone()
    }

    /// Ends the reading; the peer is stopped with `code`. `handle`: the owner is still to be told
    /// how the sending half has ended, and of the end of both.
    pub(crate) fn close(self: &Arc<Self>, handle: Option<Handle>, code: u64) {
        let mut state = self.lock();
        if !mem::replace(&mut state.is_closed, true) {
            state.stop_code = code;
        }
        match handle {
            Some(handle) => state.handle = Some(handle),
            // Nobody is there to be told.
            None => state.has_events = false,
        }
        let readers = state.readers.take_all();
        state.dismiss_watchers();
        drop(state);
        for reader in readers {
            reader.send_later(|env| terms::error(env, &Error::StreamClosed));
        }
        self.catch_up();
    }

    /// The sending half is about to end on the owner's order, who is to be told, if it has not ended
    /// before.
    pub(crate) fn expect_send_end(self: &Arc<Self>, handle: Handle) {
        let mut state = self.lock();
        let is_told = state.is_send_end_told && (state.is_closed_told || !state.is_over());
        state.awaits_send_end |= state.has_events && !is_told;
        state.handle = Some(handle);
        drop(state);
        self.catch_up();
    }

    /// Reads until the stream ends or is closed. Run by one task.
    pub(crate) async fn read(self: Arc<Self>, mut reader: Reader) {
        self.deliver_all(&mut reader).await;
        let code = self.lock().stop_code;
        reader.stop(code);
    }

    async fn deliver_all(&self, reader: &mut Reader) {
        while self.wanted().await {
            if let Some(packet) = self.lock().packet.take() {
                reader.set_packet(packet);
            }
            let Some(received) = self.receive(reader).await else { continue };
            let mut delivery = Some(Delivery::from(received));
            // Between the read and now, the owner may have turned passive.
            while let Some(pending) = delivery.take() {
                let Some(held) = self.deliver(pending) else { break };
                if !self.wanted().await {
                    return;
                }
                delivery = Some(held);
            }
            if self.received_end().is_some() {
                return;
            }
        }
    }

    /// What comes next, or nothing when the reading is to end, or to go on in another way. Who does
    /// not wait is told when there is nothing.
    async fn receive(&self, reader: &mut Reader) -> Option<Received> {
        let mut receiving = pin!(reader.receive());
        let mut interrupted = pin!(self.interrupted());
        poll_fn(|context| {
            // First: who asks from here on wakes this task, though it be running.
            if interrupted.as_mut().poll(context).is_ready() {
                return Poll::Ready(None);
            }
            // Who asks behind this may do so because something has come, which this look misses.
            self.lock().readers.look();
            if let Poll::Ready(received) = receiving.as_mut().poll(context) {
                return Poll::Ready(Some(received));
            }
            let late = self.lock().readers.take_looked_for();
            if !late.is_empty() {
                late.into_iter().for_each(tell_timeout);
                // Perhaps nobody wants anything any more.
                self.changed.notify_one();
            }
            Poll::Pending
        })
        .await
    }

    /// Only the peer sends: there is no end of our half to be told.
    pub(crate) fn receive_only(&self) {
        let mut state = self.lock();
        state.send_end = Some(SendEnd::Finished);
        state.is_send_end_told = true;
    }

    /// The sending half has ended; tells the owner.
    pub(crate) fn sending_ended(&self, end: SendEnd) {
        let mut state = self.lock();
        state.send_end = Some(end);
        state.tell_ends();
    }

    /// Lets the reading go on, and tells the owner what it could not be told before.
    fn catch_up(self: &Arc<Self>) {
        self.changed.notify_one();
        let inlet = self.clone();
        if self.lock().owes()
            && let Some(runtime) = runtime::handle()
        {
            // Only a thread of the runtime may post.
            runtime.spawn(async move { inlet.lock().tell_ends() });
        }
    }

    /// Resolves when somebody wants data: `true`; or when nobody will any more: `false`.
    async fn wanted(&self) -> bool {
        loop {
            let late = {
                let mut state = self.lock();
                if state.is_closed {
                    return false;
                }
                if state.wants_answers() || state.wants_messages() {
                    return true;
                }
                // It is being handed over, if anybody has asked.
                state.readers.take_polls()
            };
            late.into_iter().for_each(tell_timeout);
            self.changed.notified().await;
        }
    }

    /// Resolves when the reading is to end, or to go on in another way.
    async fn interrupted(&self) {
        loop {
            {
                let state = self.lock();
                let is_wanted = state.wants_answers() || state.wants_messages();
                if state.is_closed || state.packet.is_some() || !is_wanted {
                    return;
                }
            }
            self.changed.notified().await;
        }
    }

    /// Gives data to who wants it; returns it when nobody does.
    fn deliver(&self, delivery: Delivery) -> Option<Delivery> {
        let mut state = self.lock();
        if state.is_closed {
            return None;
        }
        let reader = if state.wants_answers() { state.readers.next() } else { None };
        match reader {
            Some(reader) => state.answer(reader, delivery),
            None => match state.handle.clone().filter(|_| state.wants_messages()) {
                Some(handle) => state.post(&handle, delivery),
                None => return Some(delivery),
            },
        }
        None
    }

    /// A std mutex, because nothing awaits inside.
    fn lock(&self) -> Locked<'_> {
        Locked::new(self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// There is nothing for who does not wait.
fn tell_timeout(reader: Reply) {
    reader.send(|env| (atoms::error(), atoms::timeout()).encode(env));
}
