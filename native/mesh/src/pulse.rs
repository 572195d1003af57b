//! What is known of the peer of a pooled connection without asking it, for anybody: the task of the
//! connection writes it, and callers look, without a lock.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::config::Config;

/// The halves of [`Pulse::writers`].
const TURN_SHIFT: u32 = 32;
const WRITERS: u64 = (1 << TURN_SHIFT) - 1;

#[derive(Debug)]
pub(crate) struct Pulse {
    begin: Instant,
    /// When the peer was last heard of, in milliseconds since the beginning.
    heard_ms: AtomicU64,
    /// Whether it has to be asked, or does not answer, as the connection's task knows.
    is_silent: AtomicBool,
    /// Streams of users on the present carrier on which bytes are being handed to the stack, in the
    /// lower half; which of the carriers that is in the upper one.
    writers: AtomicU64,
    /// Whether there were such bytes since the task looked.
    has_written: AtomicBool,
    /// Whether whoever writes has to wake the connection's task.
    is_resting: AtomicBool,
    /// Silence after which it is asked before it is used; 0 for never.
    probe_after_ms: u64,
    /// Somebody wants it to be watched, and asked if it has rested.
    wanted: Notify,
    /// It has been heard of, or the connection is over.
    settled: Notify,
}

impl Pulse {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            begin: Instant::now(),
            heard_ms: AtomicU64::new(0),
            is_silent: AtomicBool::new(false),
            writers: AtomicU64::new(0),
            has_written: AtomicBool::new(false),
            is_resting: AtomicBool::new(false),
            probe_after_ms: config.probe_after_ms(),
            wanted: Notify::new(),
            settled: Notify::new(),
        }
    }

    /// Whether the peer has to be heard of before it is used. Takes no lock.
    pub(crate) fn is_doubtful(&self, now: Instant) -> bool {
        self.is_silent() || self.has_rested(now)
    }

    /// Whether nothing has come for so long that it has.
    pub(crate) fn has_rested(&self, now: Instant) -> bool {
        // Relaxed: a time alone, which orders nothing.
        let heard = self.heard_ms.load(Ordering::Relaxed);
        self.probe_after_ms > 0 && self.ms_at(now).saturating_sub(heard) >= self.probe_after_ms
    }

    /// The same, as far as the connection's task has noticed. Needs no clock.
    pub(crate) fn is_silent(&self) -> bool {
        self.is_silent.load(Ordering::Relaxed)
    }

    /// Which of the carriers is in use.
    pub(crate) fn turn(&self) -> u32 {
        turn(self.writers.load(Ordering::SeqCst))
    }

    /// Another carrier is in use from now on; whoever writes on the former one is of no interest.
    pub(crate) fn next_turn(&self) {
        let next = u64::from(self.turn().wrapping_add(1)) << TURN_SHIFT;
        self.writers.store(next, Ordering::SeqCst);
        self.has_written.store(false, Ordering::SeqCst);
    }

    /// A user's bytes are about to be handed to the stack, on the carrier of this turn: the peer owes
    /// an answer, and the connection's task has to watch it from now on.
    pub(crate) fn begin_writing(&self, of: u32) {
        // In one order for all: either the task sees who writes, or he sees that it rests.
        let is_seen = !self.count_writers(of, |writers| writers + 1)
            || !self.is_resting.load(Ordering::SeqCst);
        if !is_seen {
            self.wanted.notify_one();
        }
    }

    pub(crate) fn end_writing(&self, of: u32) {
        if self.turn() == of {
            // Before the count, so that the task sees one of both.
            self.has_written.store(true, Ordering::SeqCst);
        }
        self.count_writers(of, |writers| writers.saturating_sub(1));
    }

    /// `false`: that carrier is not in use any more.
    fn count_writers(&self, of: u32, change: impl Fn(u64) -> u64) -> bool {
        let change = |writers| (turn(writers) == of).then(|| change(writers));
        self.writers.fetch_update(Ordering::SeqCst, Ordering::SeqCst, change).is_ok()
    }

    /// Whether users' bytes are being handed to the stack, or have been since [`Pulse::take_written`].
    pub(crate) fn is_written_to(&self) -> bool {
        let writers = self.writers.load(Ordering::SeqCst);
        writers & WRITERS != 0 || self.has_written.load(Ordering::SeqCst)
    }

    /// Whether they have been.
    pub(crate) fn take_written(&self) -> bool {
        self.has_written.swap(false, Ordering::SeqCst)
    }

    /// Whether whoever writes has to wake the connection's task from now on.
    pub(crate) fn note_rest(&self, is_resting: bool) {
        self.is_resting.store(is_resting, Ordering::SeqCst);
    }

    /// The peer has to be asked, or does not answer. From now on an address that a caller gives
    /// counts: it may have moved.
    pub(crate) fn fall_silent(&self) {
        self.is_silent.store(true, Ordering::Relaxed);
    }

    /// Resolves when somebody wants the peer to be watched. Only for the connection's task.
    pub(crate) async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// Silence after which it is asked before it is used; none for never.
    pub(crate) fn probe_after(&self) -> Option<Duration> {
        Some(Duration::from_millis(self.probe_after_ms)).filter(|time| !time.is_zero())
    }

    /// Has the peer asked, and resolves when it was heard of or the connection `is_over`. What
    /// bounds that is the connection's task.
    pub(crate) async fn settled(&self, is_over: impl Fn() -> bool) {
        let settled = self.settled.notified();
        tokio::pin!(settled);
        // Before the look, so that no news is missed.
        settled.as_mut().enable();
        if self.is_doubtful(Instant::now()) && !is_over() {
            self.wanted.notify_one();
            settled.await;
        }
    }

    /// The connection is over: nobody waits for its peer any more.
    pub(crate) fn end(&self) {
        self.settled.notify_waiters();
    }

    /// The peer was heard of.
    pub(crate) fn beat(&self) {
        self.heard_ms.store(self.ms_at(Instant::now()), Ordering::Relaxed);
        self.is_silent.store(false, Ordering::Relaxed);
        self.settled.notify_waiters();
    }

    /// Milliseconds from the beginning until `now`.
    pub(crate) fn ms_at(&self, now: Instant) -> u64 {
        u64::try_from((now - self.begin).as_millis()).unwrap_or(u64::MAX)
    }
}

fn turn(writers: u64) -> u32 {
    u32::try_from(writers >> TURN_SHIFT).unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tokio's test macro blocks, on a thread of the test")]
mod tests {
    use std::sync::atomic::AtomicBool;

    use futures_util::FutureExt;
    use tokio::time::sleep;

    use super::*;

    const SHORT: Duration = Duration::from_millis(1);

    fn pulse(probe_after_ms: u64, ack_timeout_ms: u64) -> Pulse {
        let mut config = Config::default();
        config.set("probe_after_ms", probe_after_ms).expect("a time");
        config.set("ack_timeout_ms", ack_timeout_ms).expect("a time");
        Pulse::new(&config)
    }

    async fn until_doubtful(pulse: &Pulse) {
        while !pulse.is_doubtful(Instant::now()) {
            sleep(SHORT).await;
        }
    }

    #[tokio::test]
    async fn whoever_waits_for_a_doubtful_peer_has_it_asked_and_is_told_when_it_answers() {
        let pulse = pulse(1, 1_000);
        until_doubtful(&pulse).await;
        let answer = async {
            pulse.wanted.notified().await;
            pulse.beat();
        };
        tokio::join!(pulse.settled(|| false), answer);
    }

    #[tokio::test]
    async fn whoever_waits_for_a_doubtful_peer_is_told_when_the_connection_is_over() {
        let (pulse, is_over) = (pulse(1, 1_000), AtomicBool::new(false));
        until_doubtful(&pulse).await;
        let end = async {
            pulse.wanted.notified().await;
            is_over.store(true, Ordering::Relaxed);
            pulse.end();
        };
        tokio::join!(pulse.settled(|| is_over.load(Ordering::Relaxed)), end);
    }

    #[test]
    fn nobody_is_doubtful_where_nobody_is_to_be_asked() {
        let (never, unbounded) = (pulse(0, 1_000), pulse(1, 0));
        let begin = Instant::now();
        while begin.elapsed() < 2 * SHORT {}
        assert!(!never.is_doubtful(Instant::now()) && !unbounded.is_doubtful(Instant::now()));
    }
    #[test]
    fn who_writes_is_seen_by_the_task_and_wakes_it_when_it_rests_but_on_a_former_carrier() {
        let pulse = pulse(1_000, 1_000);
        let first = pulse.turn();
        let is_woken = || pulse.wanted().now_or_never().is_some();
        pulse.begin_writing(first);
        assert!(!is_woken() && pulse.is_written_to());
        pulse.end_writing(first);
        assert!(pulse.is_written_to() && pulse.take_written() && !pulse.is_written_to());
        pulse.note_rest(true);
        pulse.begin_writing(first);
        assert!(is_woken());
        pulse.next_turn();
        assert!(!pulse.is_written_to());
        pulse.end_writing(first);
        pulse.begin_writing(first);
        assert!(!is_woken() && !pulse.is_written_to());
        pulse.begin_writing(pulse.turn());
        assert!(is_woken() && pulse.is_written_to());
    }
}
