//! What a stream's owner has been and may be told, and who reads beside it. Plain data under the
//! lock of the inlet: nothing here awaits. What is posted here is posted by threads of the runtime,
//! as the VM wants it.

use std::iter;
use std::ops::{Deref, DerefMut};
use std::sync::MutexGuard;

use mesh::{Error, Packet, Received, SendEnd};
use rustler::env::SavedTerm;
use rustler::{Encoder, Env, LocalPid, Monitor, NewBinary, OwnedEnv, ResourceArc, Term};

use crate::library::Held;
use crate::readers::Readers;
use crate::reply::Reply;
use crate::resources::{NO_ERROR, StreamResource};
use crate::{atoms, events, terms};

pub(super) type Handle = ResourceArc<Held<StreamResource>>;

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

pub(super) struct State {
    pub(super) owner: LocalPid,
    pub(super) monitor: Option<Monitor>,
    pub(super) mode: Mode,
    pub(super) readers: Readers,
    /// Those who have found the stream active, and wait for messages: they are told to look again
    /// when no more may come.
    pub(super) watchers: Readers,
    /// Data that was posted may still be in the owner's mailbox.
    pub(super) has_posted: bool,
    pub(super) packet: Option<Packet>,
    /// Held while it is needed; without it, a stream that nobody holds is closed.
    pub(super) handle: Option<Handle>,
    /// Whether the owner is told of more than it asks for.
    pub(super) has_events: bool,
    /// The stream is being handed over: nobody gets anything meanwhile.
    pub(super) is_paused: bool,
    pub(super) received_end: Option<Received>,
    pub(super) send_end: Option<SendEnd>,
    /// The owner has ended the sending half and is to be told when that is done, and when both are.
    pub(super) awaits_send_end: bool,
    pub(super) is_send_end_told: bool,
    pub(super) is_closed: bool,
    pub(super) is_closed_told: bool,
    /// What to stop the peer with once the inlet is closed.
    pub(super) stop_code: u64,
}

/// What a read gave, with the data in an Erlang binary already.
pub(super) enum Delivery {
    Data { env: OwnedEnv, binary: SavedTerm, offset: u64, length: usize },
    End(Received),
}

impl State {
    /// The owner is told of events if `has_events`, or once the stream is made active.
    pub(super) fn new(owner: LocalPid, has_events: bool) -> Self {
        Self {
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
        }
    }

    pub(super) fn wants_answers(&self) -> bool {
        !self.readers.is_empty() && !self.is_paused
    }

    pub(super) fn wants_messages(&self) -> bool {
        self.mode != Mode::Passive && !self.is_paused
    }

    /// Whether messages may come, which must name the stream. Of a passive one whose own end has been
    /// told, only while somebody reads, who may reach the peer's.
    pub(super) fn needs_handle(&self) -> bool {
        let may_end = !self.is_send_end_told || self.is_over() || !self.readers.is_empty();
        let is_awaited = self.mode != Mode::Passive || self.is_closed;
        self.has_events && !self.is_closed_told && (is_awaited || (self.awaits_send_end && may_end))
    }

    pub(super) fn set_mode(&mut self, mode: Mode, handle: Handle) {
        self.mode = mode;
        if self.mode == Mode::Passive {
            self.dismiss_watchers();
        } else {
            self.has_events = true;
            self.handle = Some(handle);
        }
    }

    fn count_down(&mut self, handle: &Handle) {
        match self.mode {
            Mode::Once => self.mode = Mode::Passive,
            Mode::Count(0 | 1) => {
                self.mode = Mode::Passive;
                events::post(&self.owner, atoms::passive(), handle, events::undefined);
            }
            Mode::Count(left) => self.mode = Mode::Count(left - 1),
            Mode::Active | Mode::Passive => {}
        }
        if self.mode == Mode::Passive {
            self.dismiss_watchers();
            self.tell_ends();
        }
    }

    /// No more messages with data come to those who wait for them.
    pub(super) fn dismiss_watchers(&mut self) {
        for watcher in self.watchers.take_all() {
            watcher.send_later(|env| atoms::look().encode(env));
        }
    }

    /// Answers a reader; at the end, those behind him too.
    pub(super) fn answer(&mut self, reader: Reply, delivery: Delivery) {
        match delivery {
            Delivery::Data { env, binary, .. } => {
                reader.send_in(env, |env| (atoms::ok(), binary.load(env)).encode(env));
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
    pub(super) fn post(&mut self, handle: &Handle, delivery: Delivery) {
        match delivery {
            Delivery::Data { mut env, binary, offset, length } => {
                env.send_and_clear(&self.owner, |env| {
                    let detail = events::data_detail(env, offset, length);
                    (atoms::quic(), binary.load(env), handle, detail).encode(env)
                })
                .ok();
                self.has_posted = true;
                self.count_down(handle);
            }
            Delivery::End(end) => self.end_receiving(end),
        }
    }

    fn end_receiving(&mut self, end: Received) {
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
        self.tell_ends();
    }

    /// Both halves have ended.
    pub(super) fn is_over(&self) -> bool {
        self.send_end.is_some() && (self.received_end.is_some() || self.is_closed)
    }

    /// Something has ended that the owner has not been told of, and may be told now.
    pub(super) fn owes(&self) -> bool {
        let is_owed = (self.send_end.is_some() && !self.is_send_end_told)
            || (self.is_over() && !self.is_closed_told);
        is_owed && self.handle.is_some() && !self.is_paused
    }

    /// Tells the owner of the end of the sending half, and of both.
    pub(super) fn tell_ends(&mut self) {
        let Some(handle) = self.handle.clone().filter(|_| self.owes()) else { return };
        if !self.is_send_end_told && !self.will_hear_of_loss() {
            self.is_send_end_told = true;
            self.tell_send_end(&handle);
        }
        if self.is_over() {
            let lost = self.lost();
            events::post(&self.owner, atoms::stream_closed(), &handle, |env| {
                events::closed_detail(env, lost)
            });
            self.is_closed_told = true;
        }
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
            // Who does not read might never hear of the loss otherwise.
            Some(SendEnd::Lost(_)) if self.awaits_send_end && !self.is_over() => {
                let what = atoms::send_shutdown_complete();
                events::post(&self.owner, what, handle, |env| false.encode(env));
            }
            Some(SendEnd::Lost(_)) | None => {}
        }
    }

    /// Whether the owner hears of the loss of the connection behind all data, as long as he gets all
    /// that comes.
    fn will_hear_of_loss(&self) -> bool {
        let is_lost = matches!(self.send_end, Some(SendEnd::Lost(_)));
        is_lost && self.mode == Mode::Active && !self.is_over()
    }

    /// The loss of the connection, if that is how a half has ended.
    fn lost(&self) -> Option<&Error> {
        match (&self.received_end, &self.send_end) {
            (Some(Received::Lost(error)), _) | (_, Some(SendEnd::Lost(error))) => Some(error),
            _ => None,
        }
    }
}

/// The state, locked. With it goes the handle that is not needed any more, once the lock is given
/// back: the last one closes the inlet.
pub(super) struct Locked<'a> {
    state: MutexGuard<'a, State>,
    /// Dropped after the guard, which stands before it.
    released: Option<Handle>,
}

impl<'a> Locked<'a> {
    pub(super) fn new(state: MutexGuard<'a, State>) -> Self {
        Self { state, released: None }
    }
}

impl Deref for Locked<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        if !self.state.needs_handle() {
            self.released = self.state.handle.take();
        }
    }
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
