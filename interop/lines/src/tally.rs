//! What this peer has seen, and a way to wait for it.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Counter {
    /// Handshakes completed.
    ConnectionsOpened,
    /// Connections that have ended, however.
    ConnectionsClosed,
    /// Connections that were silent for too long.
    ClosedByTimeout,
    /// Streams that the other end has opened.
    Streams,
    /// Streams that the other end has finished.
    Finished,
    /// Intact frames.
    Messages,
    /// Intact frames of an index that is new.
    Distinct,
    /// Intact frames of an index that is not.
    Duplicates,
    /// Frames that are not intact.
    Corrupt,
    /// RESET_STREAM.
    Resets,
    /// STOP_SENDING.
    Stops,
    /// CONNECTION_CLOSE of the application.
    Closes,
}

/// What comes with an error code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Coded {
    /// RESET_STREAM.
    Reset,
    /// STOP_SENDING.
    Stop,
    /// CONNECTION_CLOSE of the application.
    Close,
}

const COUNTERS: [(Counter, &str); 12] = [
    (Counter::ConnectionsOpened, "connections_opened"),
    (Counter::ConnectionsClosed, "connections_closed"),
    (Counter::ClosedByTimeout, "closed_by_timeout"),
    (Counter::Streams, "streams"),
    (Counter::Finished, "finished"),
    (Counter::Messages, "messages"),
    (Counter::Distinct, "distinct"),
    (Counter::Duplicates, "duplicates"),
    (Counter::Corrupt, "corrupt"),
    (Counter::Resets, "resets"),
    (Counter::Stops, "stops"),
    (Counter::Closes, "closes"),
];

const CODED: [(Coded, Counter, &str); 3] = [
    (Coded::Reset, Counter::Resets, "reset_codes"),
    (Coded::Stop, Counter::Stops, "stop_codes"),
    (Coded::Close, Counter::Closes, "close_codes"),
];

/// The counters of a process.
#[derive(Debug, Default)]
pub struct Tally {
    // A std mutex: each update is short.
    seen: Mutex<Seen>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Seen {
    counts: BTreeMap<Counter, u64>,
    codes: BTreeMap<Coded, BTreeMap<u64, u64>>,
    indices: HashSet<u64>,
}

impl Tally {
    /// One more.
    pub fn count(&self, counter: Counter) {
        self.update(|seen| seen.count(counter));
    }

    /// One more, with its error code.
    pub fn count_code(&self, what: Coded, code: u64) {
        self.update(|seen| {
            *seen.codes.entry(what).or_default().entry(code).or_default() += 1;
            for (_, counter, _) in CODED.iter().filter(|(coded, ..)| *coded == what) {
                seen.count(*counter);
            }
        });
    }

    /// An intact frame.
    pub fn take(&self, index: u64) {
        self.update(|seen| {
            seen.count(Counter::Messages);
            let is_new = seen.indices.insert(index);
            seen.count(if is_new { Counter::Distinct } else { Counter::Duplicates });
        });
    }

    /// How many there are now.
    pub fn get(&self, counter: Counter) -> u64 {
        self.lock().get(counter)
    }

    /// Whether the counter gets there in time.
    pub fn wait(&self, counter: Counter, least: u64, time: Duration) -> bool {
        let is_missing = |seen: &mut Seen| seen.get(counter) < least;
        let waited = self.changed.wait_timeout_while(self.lock(), time, is_missing);
        let (seen, _) = waited.unwrap_or_else(PoisonError::into_inner);
        seen.get(counter) >= least
    }

    /// `{Tag, #{...}}`.
    pub(crate) fn term(&self, tag: &str) -> String {
        let seen = self.lock();
        let counts =
            COUNTERS.iter().map(|(counter, name)| format!("{name}=>{}", seen.get(*counter)));
        let codes = CODED.iter().map(|(coded, _, name)| {
            let codes = seen.codes.get(coded).into_iter().flatten();
            let codes: Vec<String> =
                codes.map(|(code, count)| format!("{code}=>{count}")).collect();
            format!("{name}=>#{{{}}}", codes.join(","))
        });
        format!("{{{tag},#{{{}}}}}", counts.chain(codes).collect::<Vec<_>>().join(","))
    }

    fn update(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    fn count(&mut self, counter: Counter) {
        *self.counts.entry(counter).or_default() += 1;
    }

    fn get(&self, counter: Counter) -> u64 {
        self.counts.get(&counter).copied().unwrap_or_default()
    }
}

impl Counter {
    pub(crate) fn named(name: &str) -> Option<Self> {
        COUNTERS.iter().find(|(_, own)| *own == name).map(|(counter, _)| *counter)
    }
}
