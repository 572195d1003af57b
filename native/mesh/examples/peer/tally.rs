//! What this peer has seen: counters, which messages came, and a way to wait for a counter.
//!
//! It has never heard of QUIC; `behaviour.rs` and `node.rs` tell it what happened.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::File;
use std::io::Write;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::indices::{INDEX_LIMIT, Indices};
use crate::message::{Class, Message};

/// How many missing indices one answer names.
const MISSING_SHOWN: usize = 20;

/// The counters, as the `stats` command prints them.
#[derive(Clone, Default)]
pub(crate) struct Counters {
    pub(crate) connections_opened: u64,
    pub(crate) connections_open: u64,
    pub(crate) connections_closed: u64,
    pub(crate) closed_by_peer: u64,
    pub(crate) closed_by_timeout: u64,
    /// Application error codes that the other ends closed with, and how often.
    pub(crate) close_codes: BTreeMap<u64, u64>,
    /// Refused on purpose, or failed: no common ALPN name, no certificate, given up.
    pub(crate) handshakes_refused: u64,
    pub(crate) client_certificates: u64,
    /// Bidirectional streams accepted.
    pub(crate) streams: u64,
    pub(crate) uni_streams: u64,
    pub(crate) streams_reset: u64,
    pub(crate) stop_sending: u64,
    /// Streams read to their end.
    pub(crate) messages: u64,
    /// All bytes of those messages, frame headers included.
    pub(crate) bytes: u64,
    pub(crate) framed: u64,
    pub(crate) distinct: u64,
    pub(crate) duplicates: u64,
    pub(crate) corrupt: u64,
    pub(crate) unframed: u64,
    /// The most bidirectional streams that any one connection brought.
    pub(crate) max_streams_per_connection: u64,
}

/// A counter's name and how to read it.
pub(crate) type Field = (&'static str, fn(&Counters) -> u64);

/// Every counter that is one number, in the order of `stats`.
pub(crate) const FIELDS: [Field; 19] = [
    ("connections_opened", |c| c.connections_opened),
    ("connections_open", |c| c.connections_open),
    ("connections_closed", |c| c.connections_closed),
    ("closed_by_peer", |c| c.closed_by_peer),
    ("closed_by_timeout", |c| c.closed_by_timeout),
    ("handshakes_refused", |c| c.handshakes_refused),
    ("client_certificates", |c| c.client_certificates),
    ("streams", |c| c.streams),
    ("uni_streams", |c| c.uni_streams),
    ("streams_reset", |c| c.streams_reset),
    ("stop_sending", |c| c.stop_sending),
    ("messages", |c| c.messages),
    ("bytes", |c| c.bytes),
    ("framed", |c| c.framed),
    ("distinct", |c| c.distinct),
    ("duplicates", |c| c.duplicates),
    ("corrupt", |c| c.corrupt),
    ("unframed", |c| c.unframed),
    ("max_streams_per_connection", |c| c.max_streams_per_connection),
];

/// Who ended a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The other end's application, with this code.
    PeerApplication(u64),
    /// The other end's transport.
    PeerTransport,
    /// Nobody: nothing came for too long.
    Timeout,
    /// We did.
    Local,
}

/// What was seen so far, shared by the data path and the commands.
#[derive(Default)]
pub(crate) struct Tally {
    // A std mutex: nothing awaits inside, and each update is some nanoseconds.
    seen: Mutex<Seen>,
    goal_reached: Condvar,
}

#[derive(Default)]
struct Seen {
    counters: Counters,
    indices: Indices,
    last_message: Option<Vec<u8>>,
    log: Option<File>,
    /// What the one waiter waits for; taken away when reached, so that it is woken once.
    goal: Option<Goal>,
    waits_abandoned: bool,
}

#[derive(Clone, Copy)]
struct Goal {
    read: fn(&Counters) -> u64,
    at_least: u64,
}

impl Tally {
    /// What is seen goes to `log`, too, where it outlives this process: a line for each message, its
    /// index or `corrupt`.
    pub(crate) fn logging(log: Option<File>) -> Self {
        Self { seen: Mutex::new(Seen { log, ..Seen::default() }), ..Self::default() }
    }

    /// Changes the counters, and wakes the waiter if that reaches its goal.
    pub(crate) fn count(&self, change: impl FnOnce(&mut Counters)) {
        self.update(|seen| change(&mut seen.counters));
    }

    /// Takes a whole message.
    pub(crate) fn take(&self, message: Message) {
        self.update(|seen| seen.take(message));
    }

    /// Takes the end of a connection.
    pub(crate) fn connection_ended(&self, ending: Ending) {
        self.count(|counters| counters.connection_ended(ending));
    }

    /// The counters as they are now.
    pub(crate) fn counters(&self) -> Counters {
        self.lock().counters.clone()
    }

    /// The beginning of the message that was whole last.
    pub(crate) fn last_message(&self) -> Option<Vec<u8>> {
        self.lock().last_message.clone()
    }

    /// The first few indices below `end` that never came.
    pub(crate) fn missing(&self, end: u64) -> Vec<u64> {
        let seen = self.lock();
        (0..end).filter(|index| !seen.indices.contains(*index)).take(MISSING_SHOWN).collect()
    }

    /// Forgets everything but which connections are open and who waits.
    pub(crate) fn reset(&self) {
        let mut seen = self.lock();
        seen.counters =
            Counters { connections_open: seen.counters.connections_open, ..Counters::default() };
        seen.indices = Indices::default();
        seen.last_message = None;
    }

    /// Blocks this thread until a counter is `at_least` so much; `false` when `time` passed before.
    /// One thread at a time.
    pub(crate) fn wait(&self, (_, read): Field, at_least: u64, time: Duration) -> bool {
        let mut seen = self.lock();
        seen.goal = Some(Goal { read, at_least });
        seen.drop_reached_goal();
        let (mut seen, _) = self
            .goal_reached
            .wait_timeout_while(seen, time, |seen| seen.is_waited_for())
            .unwrap_or_else(PoisonError::into_inner);
        seen.goal.take().is_none()
    }

    /// Ends the wait under way, and every later one at once.
    pub(crate) fn abandon_waits(&self) {
        self.lock().waits_abandoned = true;
        self.goal_reached.notify_all();
    }

    fn update(&self, change: impl FnOnce(&mut Seen)) {
        let mut seen = self.lock();
        change(&mut seen);
        if seen.drop_reached_goal() {
            self.goal_reached.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    fn take(&mut self, message: Message) {
        self.counters.messages += 1;
        // A message is 64 MiB at most.
        self.counters.bytes += u64::try_from(message.length()).unwrap_or(u64::MAX);
        match message.class() {
            Class::Framed(index) if index < INDEX_LIMIT => self.take_index(index),
            Class::Framed(_) | Class::Corrupt => {
                self.counters.corrupt += 1;
                self.note("corrupt");
            }
            Class::Unframed => self.counters.unframed += 1,
        }
        self.last_message = Some(message.into_beginning());
    }

    /// One write for each line: one that was begun is whole, however this process ends.
    fn note(&mut self, line: impl Display) {
        if let Some(log) = &mut self.log
            && let Err(error) = log.write_all(format!("{line}\n").as_bytes())
        {
            eprintln!("peer: log: {error}");
        }
    }

    fn take_index(&mut self, index: u64) {
        self.note(index);
        self.counters.framed += 1;
        if self.indices.insert(index) {
            self.counters.distinct += 1;
        } else {
            self.counters.duplicates += 1;
        }
    }

    fn is_waited_for(&self) -> bool {
        self.goal.is_some() && !self.waits_abandoned
    }

    fn drop_reached_goal(&mut self) -> bool {
        let counters = &self.counters;
        let reached = self.goal.take_if(|goal| (goal.read)(counters) >= goal.at_least);
        reached.is_some()
    }
}

impl Counters {
    fn connection_ended(&mut self, ending: Ending) {
        self.connections_closed += 1;
        self.connections_open = self.connections_open.saturating_sub(1);
        match ending {
            Ending::PeerApplication(code) => {
                self.closed_by_peer += 1;
                *self.close_codes.entry(code).or_default() += 1;
            }
            Ending::PeerTransport => self.closed_by_peer += 1,
            Ending::Timeout => self.closed_by_timeout += 1,
            Ending::Local => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(10);
    const LATE: Duration = Duration::from_secs(30);

    fn frame(index: u64, fill_bytes: usize) -> Vec<u8> {
        let payload = u32::try_from(8 + fill_bytes).unwrap();
        let mut frame = vec![1, 7, 0, 0];
        frame.extend(payload.to_be_bytes());
        frame.extend(index.to_be_bytes());
        frame.extend((0..fill_bytes).map(|position| {
            u8::try_from((index + u64::try_from(position).unwrap()) % 256).unwrap()
        }));
        frame
    }

    fn take(tally: &Tally, bytes: &[u8], chunk_bytes: usize) {
        let mut message = Message::default();
        for chunk in bytes.chunks(chunk_bytes) {
            message.push(chunk);
        }
        tally.take(message);
    }

    fn field(name: &str) -> Field {
        *FIELDS.iter().find(|field| field.0 == name).unwrap()
    }

    #[test]
    fn knows_an_intact_frame_however_it_is_cut() {
        let tally = Tally::default();
        let sizes = [0, 1, 255, 256, 4_080, 4_096, 4_352, 100_000];
        for (index, fill_bytes) in (250..).zip(sizes) {
            let frame = frame(index, fill_bytes);
            for chunk_bytes in [1, 3, 8, 15, 16, 17, 1_200, 4_097, usize::MAX] {
                take(&tally, &frame, chunk_bytes);
            }
        }
        let counters = tally.counters();
        assert_eq!((counters.framed, counters.corrupt), (72, 0));
        assert_eq!((counters.distinct, counters.duplicates), (8, 64));
    }

    #[test]
    fn notices_any_one_wrong_byte_of_the_fill() {
        let intact = frame(3, 9_000);
        for wrong in [16, 17, 271, 272, 4_111, 4_112, 9_015] {
            let tally = Tally::default();
            let mut frame = intact.clone();
            frame[wrong] ^= 1;
            take(&tally, &frame, 1_000);
            assert_eq!(tally.counters().corrupt, 1, "byte {wrong}");
        }
    }

    #[test]
    fn takes_a_wrong_length_or_two_frames_in_one_stream_for_corrupt() {
        let tally = Tally::default();
        let whole = frame(1, 100);
        take(&tally, &whole[..whole.len() - 1], 50);
        take(&tally, &[whole.clone(), frame(2, 100)].concat(), usize::MAX);
        take(&tally, &[1, 0, 0, 0, 0, 0, 0, 0], usize::MAX);
        take(&tally, &frame(INDEX_LIMIT, 4), usize::MAX);
        assert_eq!(tally.counters().corrupt, 4);
        assert_eq!(tally.counters().framed, 0);
    }

    #[test]
    fn takes_what_has_no_frame_header_for_unframed() {
        let tally = Tally::default();
        for bytes in [&b""[..], b"hello", &[1, 0, 0], &[2, 0, 0, 0, 0, 0, 0, 0]] {
            take(&tally, bytes, usize::MAX);
        }
        assert_eq!(tally.counters().unframed, 4);
        assert_eq!(tally.counters().messages, 4);
        assert_eq!(tally.counters().bytes, 16);
    }

    #[test]
    fn names_the_first_missing_indices() {
        let tally = Tally::default();
        for index in (0..1_000).filter(|index| index % 64 != 0) {
            take(&tally, &frame(index, 1), usize::MAX);
        }
        take(&tally, &frame(INDEX_LIMIT - 1, 1), usize::MAX);
        assert_eq!(tally.missing(200), [0, 64, 128, 192]);
        assert_eq!(tally.missing(u64::MAX).len(), MISSING_SHOWN);
        assert_eq!(tally.missing(0), [] as [u64; 0]);
    }

    #[test]
    fn keeps_the_beginning_of_the_last_message() {
        let tally = Tally::default();
        assert_eq!(tally.last_message(), None);
        take(&tally, &[5; 3 * 4_096], 1_000);
        assert_eq!(tally.last_message(), Some(vec![5; 4_096]));
        take(&tally, &[1, 2, 3], 1);
        assert_eq!(tally.last_message(), Some(vec![1, 2, 3]));
    }

    #[test]
    fn a_wait_ends_when_the_counter_gets_there() {
        let tally = Tally::default();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| tally.wait(field("messages"), 3, LATE));
            for _ in 0..3 {
                take(&tally, b"x", 1);
            }
            assert!(waiter.join().unwrap());
        });
        assert!(tally.wait(field("messages"), 3, LATE));
        assert!(!tally.wait(field("messages"), 4, SOON));
    }

    #[test]
    fn abandoned_waits_end_at_once() {
        let tally = Tally::default();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| tally.wait(field("messages"), 1, LATE));
            tally.abandon_waits();
            assert!(!waiter.join().unwrap());
        });
        assert!(!tally.wait(field("messages"), 1, LATE));
    }

    #[test]
    fn a_reset_forgets_all_but_the_open_connections() {
        let tally = Tally::default();
        tally.count(|counters| counters.connections_open = 2);
        take(&tally, &frame(0, 5), usize::MAX);
        tally.connection_ended(Ending::PeerApplication(9));
        assert_eq!(tally.counters().close_codes.get(&9), Some(&1));
        tally.reset();
        assert_eq!(tally.counters().connections_open, 1);
        assert_eq!(tally.counters().messages, 0);
        assert_eq!(tally.missing(1), [0]);
        assert_eq!(tally.last_message(), None);
    }
}
