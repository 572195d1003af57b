//! The way of received bytes to a process: who owns the stream, whether it wants data as messages
//! or asks for it, and the one task that reads. Everything that the owner is told of a stream is
//! posted under one lock, so that after a pause nothing more comes, and what came is in order.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::{iter, mem};

use mesh::{Error, Packet, Reader, Received, SendEnd};
use rustler::env::SavedTerm;
use rustler::{Encoder, Env, LocalPid, Monitor, NewBinary, OwnedEnv, ResourceArc, Term};
use tokio::sync::Notify;

use crate::library::Held;
use crate::readers::{Patience, Readers, RequestId};
use crate::reply::{Quiet, Reply};
use crate::resources::{NO_ERROR, StreamResource};
use crate::{atoms, events, runtime, terms};

type Handle = ResourceArc<Held<StreamResource>>;

/// How the owner gets data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// By asking.
    Passive,
    /// One message, then by asking.
    Once,
    /// So many messages, then a `passive` message, then by asking.
    Count(u32),
    /// As messages.
    Active,
}

pub(crate) struct Inlet {
    state: Mutex<State>,
    /// Wakes the reading task.
    changed: Notify,
}

struct State {
    owner: LocalPid,
    monitor: Option<Monitor>,
    mode: Mode,
    readers: Readers,
    /// Those who have found the stream active, and wait for messages: they are told to look again
    /// when no more may come.
    watchers: Readers,
    /// Data that was posted may still be in the owner's mailbox.
    has_posted: bool,
    packet: Option<Packet>,
    /// Held while messages are to come, which must name the stream; without it, a stream that
    /// nobody holds is closed.
    handle: Option<Handle>,
    /// Whether the owner is told of more than it asks for.
    has_events: bool,
    /// The stream is being handed over: nobody gets anything meanwhile.
    is_paused: bool,
    received_end: Option<Received>,
    send_end: Option<SendEnd>,
    /// The owner has ended the sending half and is to be told when that is done, and when both are.
    awaits_send_end: bool,
    is_send_end_told: bool,
    is_closed: bool,
    is_closed_told: bool,
    /// What to stop the peer with once the inlet is closed.
    stop_code: u64,
}

/// What a read gave, with the data in an Erlang binary already.
enum Delivery {
    Data { env: OwnedEnv, binary: SavedTerm, offset: u64, length: usize },
    End(Received),
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
        let state = State {
            owner,
            monitor: None,
            mode: Mode::Passive,
            readers: Readers::default(),
            watchers: Readers::default(),
            has_posted: false,
            packet: None,
            handle: None,
            has_events,
            is_paused: false,
            received_end: None,
            send_end: None,
            awaits_send_end: false,
            is_send_end_told: false,
            is_closed: false,
            is_closed_told: false,
            stop_code: NO_ERROR,
        };
        Self { state: Mutex::new(state), changed: Notify::new() }
    }

    pub(crate) fn set_monitor(&self, monitor: Monitor) {
        self.lock().monitor = Some(monitor);
    }

    /// Whether it has ever had an owner that lived.
    pub(crate) fn is_owned(&self) -> bool {
        self.lock().monitor.is_some()
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
        let released = state.set_mode(mode, handle);
        drop(state);
        drop(released);
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
        id: RequestId,
        reply: Quiet,
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
        if reply.is_to(&state.owner) && mem::take(&mut state.has_posted) {
            return Ok(Source::Mailbox);
        }
        if has_ended {
            return Err(Refusal::Closed);
        }
        if !state.readers.add(id, reply, patience) {
            return Err(Refusal::TooManyReaders);
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
        let handle = handle.filter(|_| state.has_events && !state.is_closed_told);
        let released = mem::replace(&mut state.handle, handle);
        let readers = state.readers.take_all();
        state.dismiss_watchers();
        drop(state);
        drop(released);
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
        let is_owed = state.has_events && !is_told;
        state.awaits_send_end |= is_owed;
        let released = if is_owed { state.handle.replace(handle) } else { Some(handle) };
        drop(state);
        drop(released);
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
            // Who asks from here on may do so because something has come, which this look misses.
            self.lock().readers.look();
            if let Poll::Ready(received) = receiving.as_mut().poll(context) {
                return Poll::Ready(Some(received));
            }
            let late = self.lock().readers.take_looked_for();
            late.into_iter().for_each(tell_timeout);
            interrupted.as_mut().poll(context).map(|()| None)
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
        let released = state.tell_ends();
        drop(state);
        drop(released);
    }

    /// Lets the reading go on, and tells the owner what it could not be told before.
    fn catch_up(self: &Arc<Self>) {
        self.changed.notify_one();
        let inlet = self.clone();
        if self.lock().owes()
            && let Some(runtime) = runtime::handle()
        {
            // Only a thread of the runtime may post.
            runtime.spawn(async move {
                let released = inlet.lock().tell_ends();
                drop(released);
            });
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
        let released = match reader {
            Some(reader) => state.answer(reader, delivery),
            None => match state.handle.clone().filter(|_| state.wants_messages()) {
                Some(handle) => state.post(handle, delivery),
                None => return Some(delivery),
            },
        };
        drop(state);
        drop(released);
        None
    }

    /// A std mutex, because nothing awaits inside. Handles are dropped outside: the last one
    /// closes the inlet.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn wants_answers(&self) -> bool {
        !self.readers.is_empty() && !self.is_paused
    }

    fn wants_messages(&self) -> bool {
        self.mode != Mode::Passive && !self.is_paused
    }

    /// Returns a handle to be dropped outside the lock, as the others do.
    #[must_use]
    fn set_mode(&mut self, mode: Mode, handle: Handle) -> Option<Handle> {
        self.mode = mode;
        if mode == Mode::Passive {
            self.dismiss_watchers();
            drop_later(self.rest(), handle)
        } else if self.is_closed_told {
            Some(handle)
        } else {
            self.has_events = true;
            self.handle.replace(handle)
        }
    }

    #[must_use]
    fn count_down(&mut self, handle: &Handle) -> Option<Handle> {
        match self.mode {
            Mode::Once => self.mode = Mode::Passive,
            Mode::Count(0 | 1) => {
                self.mode = Mode::Passive;
                events::post(&self.owner, atoms::passive(), handle, events::undefined);
            }
            Mode::Count(left) => self.mode = Mode::Count(left - 1),
            Mode::Active | Mode::Passive => {}
        }
        if self.mode != Mode::Passive {
            return None;
        }
        self.dismiss_watchers();
        self.rest()
    }

    /// No more messages with data come to those who wait for them.
    fn dismiss_watchers(&mut self) {
        for watcher in self.watchers.take_all() {
            watcher.send_later(|env| atoms::look().encode(env));
        }
    }

    /// Turned passive: no message is to come, unless those of the ends that the owner waits for.
    #[must_use]
    fn rest(&mut self) -> Option<Handle> {
        if self.awaits_send_end && !self.is_closed_told { None } else { self.handle.take() }
    }

    /// Answers a reader; at the end, those behind him too.
    #[must_use]
    fn answer(&mut self, reader: Reply, delivery: Delivery) -> Option<Handle> {
        match delivery {
            Delivery::Data { env, binary, .. } => {
                reader.send_in(env, |env| (atoms::ok(), binary.load(env)).encode(env));
                None
            }
            Delivery::End(end) => {
                for reader in iter::once(reader).chain(self.readers.take_all()) {
                    reader.send(|env| end_error(env, &end));
                }
                self.end_receiving(end)
            }
        }
    }

    /// Tells the owner by a message.
    #[must_use]
    fn post(&mut self, handle: Handle, delivery: Delivery) -> Option<Handle> {
        let released = match delivery {
            Delivery::Data { mut env, binary, offset, length } => {
                env.send_and_clear(&self.owner, |env| {
                    let detail = events::data_detail(env, offset, length);
                    (atoms::quic(), binary.load(env), &handle, detail).encode(env)
                })
                .ok();
                self.has_posted = true;
                self.count_down(&handle)
            }
            Delivery::End(end) => self.end_receiving(end),
        };
        drop_later(released, handle)
    }

    #[must_use]
    fn end_receiving(&mut self, end: Received) -> Option<Handle> {
        if let Some(handle) = self.handle.as_ref().filter(|_| self.wants_messages()) {
            match &end {
                Received::Finished => {
                    let what = atoms::peer_send_shutdown();
                    events::post(&self.owner, what, handle, events::undefined);
                }
                Received::Reset(code) => {
                    let (what, code) = (atoms::peer_send_aborted(), *code);
                    events::post(&self.owner, what, handle, |env| code.encode(env));
                }
                Received::TooLong(bytes) => {
                    let (what, bytes) = (atoms::frame_too_large(), *bytes);
                    events::post(&self.owner, what, handle, |env| bytes.encode(env));
                }
                Received::Data { .. } | Received::Lost(_) => {}
            }
        }
        self.received_end = Some(end);
        self.dismiss_watchers();
        self.tell_ends()
    }

    /// Both halves have ended.
    fn is_over(&self) -> bool {
        self.send_end.is_some() && (self.received_end.is_some() || self.is_closed)
    }

    /// Something has ended that the owner has not been told of, and may be told now.
    fn owes(&self) -> bool {
        let is_owed = (self.send_end.is_some() && !self.is_send_end_told)
            || (self.is_over() && !self.is_closed_told);
        is_owed && self.handle.is_some() && !self.is_paused
    }

    /// Tells the owner of the end of the sending half, and of both.
    #[must_use]
    fn tell_ends(&mut self) -> Option<Handle> {
        if !self.owes() {
            return None;
        }
        let handle = self.handle.take()?;
        if !mem::replace(&mut self.is_send_end_told, true) {
            self.tell_send_end(&handle);
        }
        if self.is_over() {
            let what = atoms::stream_closed();
            let lost = self.lost();
            events::post(&self.owner, what, &handle, |env| events::closed_detail(env, lost));
            self.is_closed_told = true;
            return Some(handle);
        }
        self.handle = Some(handle);
        if self.mode == Mode::Passive { self.rest() } else { None }
    }

    fn tell_send_end(&self, handle: &Handle) {
        match &self.send_end {
            Some(SendEnd::Stopped(code)) => {
                let code = *code;
                let what = atoms::peer_receive_aborted();
                events::post(&self.owner, what, handle, |env| code.encode(env));
            }
            Some(SendEnd::Finished | SendEnd::Reset) => {
                let is_graceful = self.send_end == Some(SendEnd::Finished);
                let what = atoms::send_shutdown_complete();
                events::post(&self.owner, what, handle, |env| is_graceful.encode(env));
            }
            Some(SendEnd::Lost(_)) | None => {}
        }
    }

    /// The loss of the connection, if that is how a half has ended.
    fn lost(&self) -> Option<&Error> {
        match (&self.received_end, &self.send_end) {
            (Some(Received::Lost(error)), _) | (_, Some(SendEnd::Lost(error))) => Some(error),
            _ => None,
        }
    }
}

/// Both at once, of which the caller's own is known not to be the last.
fn drop_later(held: Option<Handle>, callers: Handle) -> Option<Handle> {
    drop(callers);
    held
}

/// There is nothing for who does not wait.
fn tell_timeout(reader: Reply) {
    reader.send(|env| (atoms::error(), atoms::timeout()).encode(env));
}

/// `{error, Reason}` of a read at or after the end of a stream.
pub(crate) fn end_error<'a>(env: Env<'a>, end: &Received) -> Term<'a> {
    let detailed = |name: rustler::Atom, detail: u64| (atoms::error(), (name, detail)).encode(env);
    match end {
        Received::Data { .. } | Received::Finished => terms::error(env, &Error::StreamClosed),
        Received::Reset(code) => detailed(atoms::peer_send_aborted(), *code),
        Received::TooLong(bytes) => detailed(atoms::frame_too_large(), *bytes),
        Received::Lost(error) => terms::error(env, error),
    }
}

impl From<Received> for Delivery {
    /// Joins the data into one Erlang binary, outside of any lock.
    fn from(received: Received) -> Self {
        let Received::Data { parts, offset } = received else {
            return Self::End(received);
        };
        let length = parts.iter().map(bytes::Bytes::len).sum();
        let env = OwnedEnv::new();
        let binary = env.run(|inside| {
            let mut binary = NewBinary::new(inside, length);
            let mut rest = binary.as_mut_slice();
            for part in &parts {
                let (place, others) = rest.split_at_mut(part.len());
                place.copy_from_slice(part);
                rest = others;
            }
            env.save(Term::from(binary))
        });
        Self::Data { env, binary, offset, length }
    }
}
