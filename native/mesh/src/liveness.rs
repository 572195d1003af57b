//! Whether the peer of a pooled connection is still there. QUIC itself finds out by its idle
//! timeout alone, after a minute; here it takes seconds, and messages not yet sent are kept back.
//!
//! Silence alone proves nothing: a peer that owes us nothing is silent, and one whose application
//! reads slowly owes us nothing but the acknowledgement of a ping. So when something is outstanding
//! and nothing at all has come for half of `ack_timeout_ms`, the peer is asked; after the whole of
//! it, the connection is suspect: another is dialled, while this one is still listened to. It is
//! dead when it is silent even after that dial, whatever came of it: a living peer may have refused
//! it, and what the network says of it may be of others, or forged. The dial goes where callers say
//! that the peer is by now.
//!
//! When the network says that nobody is at the peer's port, the peer is asked, too, and messages
//! wait for its answer; but anybody can make it say so, and no connection ends by it (RFC 9000,
//! section 14.2.1).
//!
//! A connection from which nothing has come for `probe_after_ms` is asked before it is used.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

use crate::Error;
use crate::keep_alive::ping;
use crate::outbox::Outbox;
use crate::pooled::{Context, LastUse};
use crate::pulse::Pulse;
use crate::refusals::Hints;
use crate::settings::RECEIVE_WINDOW;
use crate::whereabouts::{Fresh, Redial, Whereabouts};

/// Looks within one time of patience: by so much later than due is silence noticed at worst.
const LOOKS: u32 = 8;
/// The same within one `probe_after_ms`, while nothing is outstanding. Each is a wake-up of every
/// pooled connection.
const RESTING_LOOKS: u32 = 4;
/// How long a peer that stood still, and may have just answered a dial, may take to answer here,
/// too, besides some round trips: what waits in its socket comes first, and an acknowledgement may
/// be delayed (by 25 ms as a rule, RFC 9000, section 18.2).
const LAST_WORD: Duration = Duration::from_millis(200);
const LAST_ROUND_TRIPS: u32 = 3;
/// Between looks at a rested connection that nobody wants to be checked: there is nothing to see.
const SELDOM: Duration = Duration::from_secs(3_600);
/// The first look for the answer to a ping, on a path of no length at all.
const FIRST_LOOK: Duration = Duration::from_millis(1);
/// How much longer each next look for it waits.
const GROWTH: u32 = 2;
/// By so much later than due a timer may go off at any time.
const UNPUNCTUALITY: Duration = Duration::from_millis(5);

/// What a connection's task is told.
pub(crate) enum News {
    /// [`Vigil::holds`] has another answer, or [`Vigil::rests`] has begun to say so.
    Changed,
    /// The peer does not answer; the connection that takes this one's place, if one could be made.
    Dead(Option<Box<Fresh>>),
}

/// The watch over one QUIC connection, kept by the task that sends on it.
pub(crate) struct Vigil<'a> {
    carrier: &'a quinn::Connection,
    hints: Hints,
    outbox: &'a Outbox,
    pulse: &'a Pulse,
    last_use: &'a LastUse,
    context: &'a Context,
    whereabouts: &'a Whereabouts,
    node: &'a [u8],
    /// Silence that makes a connection suspect; zero for never.
    patience: Duration,
    /// What had been heard when we last looked ([`heard`]).
    heard: u64,
    /// STREAM frames sent when we last looked.
    sent: u64,
    /// Whether users' bytes that were written before may not have been acknowledged yet.
    owes_users: bool,
    /// Since when we have been listening in vain.
    since: Instant,
    /// When the peer last answered while messages were kept back.
    answered: Option<Instant>,
    stage: Stage<'a>,
    timer: Pin<Box<Sleep>>,
}

enum Stage<'a> {
    /// The peer owes us nothing.
    Resting,
    /// Something is outstanding.
    Listening,
    /// It was asked; the time until the next look. `holds`: nothing more is sent until it answers.
    Asked { gap: Duration, holds: bool },
    /// It has not answered in time.
    Suspect(Redial<'a>),
    /// The dial is over. If the peer says nothing on this connection until then, the one that the
    /// dial gave takes its place, or none.
    LastWord { fresh: Option<Box<Fresh>>, until: Instant },
}

/// Why rest is over.
enum Cause {
    /// Something is outstanding.
    Owed,
    /// Somebody writes on a stream, or wants to use a connection that has rested.
    Wanted,
    /// The network says that nobody is there.
    Hint,
    /// It is time for a look.
    None,
}

/// Why a wait is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Woken {
    /// It is time for a look.
    InTime,
    /// It has been for long, so the silence was perhaps our own: this process has been standing still,
    /// or had no processor.
    Late,
    /// The network says that nobody is there.
    Hint,
}

impl<'a> Vigil<'a> {
    /// Begins with the peer just heard of.
    pub(crate) fn new(
        carrier: &'a quinn::Connection,
        outbox: &'a Outbox,
        pulse: &'a Pulse,
        last_use: &'a LastUse,
        context: &'a Context,
        whereabouts: &'a Whereabouts,
        node: &'a [u8],
    ) -> Self {
        pulse.beat();
        let mut vigil = Self {
            carrier,
            hints: context.dialer.hints(carrier),
            outbox,
            pulse,
            last_use,
            context,
            whereabouts,
            node,
            patience: context.config.ack_timeout(),
            heard: 0,
            sent: 0,
            owes_users: false,
            since: Instant::now(),
            answered: None,
            stage: Stage::Resting,
            timer: Box::pin(sleep(Duration::ZERO)),
        };
        vigil.has_heard();
        vigil.rest();
        vigil
    }

    /// Whether nothing more may be sent on this connection: it may be dead.
    pub(crate) fn holds(&self) -> bool {
        !matches!(self.stage, Stage::Resting | Stage::Listening | Stage::Asked { holds: false, .. })
    }

    /// Whether a message that comes has to be seen here before it is sent: the peer may have to be
    /// asked first.
    pub(crate) fn rests(&self) -> bool {
        matches!(self.stage, Stage::Resting) && !self.patience.is_zero()
    }

    /// Watches until there are news. Cancelled at any point, nothing is lost.
    pub(crate) async fn next(&mut self) -> News {
        if self.patience.is_zero() {
            return std::future::pending().await;
        }
        loop {
            let news = match self.stage {
                Stage::Resting => self.while_resting().await,
                Stage::Listening => self.while_listening().await,
                Stage::Asked { gap, holds } => self.while_asked(gap, holds).await,
                Stage::Suspect(_) => self.while_suspect().await,
                Stage::LastWord { until, .. } => self.while_last_word(until).await,
            };
            if let Some(news) = news {
                return news;
            }
        }
    }

    async fn while_resting(&mut self) -> Option<News> {
        self.pulse.note_rest(true);
        let (outbox, pulse) = (self.outbox, self.pulse);
        let is_owed = poll_fn(|_| match outbox.is_idle() && !pulse.is_written_to() {
            // Whoever queues a message wakes the task; who writes is told of below.
            true => Poll::Pending,
            false => Poll::Ready(()),
        });
        let cause = tokio::select! {
            biased;
            // Before what it may come with, or it would be told once more at the next rest.
            () = self.pulse.wanted() => Cause::Wanted,
            () = is_owed => Cause::Owed,
            () = self.hints.given() => Cause::Hint,
            () = &mut self.timer => Cause::None,
        };
        self.pulse.note_rest(false);
        self.has_heard();
        self.since = Instant::now();
        match cause {
            Cause::None => {
                if self.pulse.has_rested(Instant::now()) {
                    self.pulse.fall_silent();
                }
                self.rest();
            }
            Cause::Owed | Cause::Wanted if !self.pulse.is_doubtful(Instant::now()) => {
                self.listen();
            }
            Cause::Owed | Cause::Wanted | Cause::Hint => {
                self.ask(true);
                return Some(News::Changed);
            }
        }
        None
    }

    async fn while_listening(&mut self) -> Option<News> {
        let woken = self.awake().await;
        let has_heard = self.has_heard();
        if has_heard || woken == Woken::Late {
            self.since = Instant::now();
        }
        self.note_users(has_heard);
        if woken == Woken::Hint {
            let holds = self.believes_hints();
            self.ask(holds);
            return holds.then_some(News::Changed);
        }
        if self.since.elapsed() >= self.patience / 2 {
            self.ask(false);
        } else if self.is_even() {
            self.rest();
            return Some(News::Changed);
        } else {
            self.wait(self.patience / LOOKS);
        }
        None
    }

    async fn while_asked(&mut self, gap: Duration, holds: bool) -> Option<News> {
        let woken = self.awake().await;
        if self.has_heard() {
            self.note_users(true);
            if holds {
                self.answered = Some(Instant::now());
            }
            self.listen();
            return holds.then_some(News::Changed);
        }
        match woken {
            Woken::InTime => {}
            Woken::Late => {
                // It was we who were not there.
                self.since = Instant::now();
                self.ask(holds);
                return None;
            }
            // It has been asked, but more was to be sent meanwhile.
            Woken::Hint if !holds && self.believes_hints() => {
                self.pulse.fall_silent();
                self.stage = Stage::Asked { gap, holds: true };
                return Some(News::Changed);
            }
            Woken::Hint => return None,
        }
        if self.since.elapsed() >= self.patience {
            self.suspect();
            return Some(News::Changed);
        }
        let gap = (gap * GROWTH).min(self.patience / LOOKS);
        self.stage = Stage::Asked { gap, holds };
        self.wait(gap);
        None
    }

    async fn while_suspect(&mut self) -> Option<News> {
        let Stage::Suspect(dial) = &mut self.stage else {
            return None;
        };
        let outcome = tokio::select! {
            // Before a look, which might give up for another what has just succeeded.
            biased;
            outcome = dial => Some(outcome),
            () = &mut self.timer => None,
        };
        if self.has_heard() {
            return Some(self.recover());
        }
        match outcome {
            Some(Ok(fresh)) => self.hear_out(Some(fresh)),
            Some(Err(error)) => {
                self.context.scope.stats.dial_failures.add(&error, 1);
                match self.whereabouts.is_untried() {
                    true => self.dial(),
                    false => self.hear_out(None),
                }
            }
            None if self.whereabouts.is_suggested() => {
                self.give_up_dial();
                self.whereabouts.interrupt();
                self.dial();
            }
            None => self.wait(self.patience / LOOKS),
        }
        None
    }

    async fn while_last_word(&mut self, until: Instant) -> Option<News> {
        let due = self.timer.deadline();
        self.timer.as_mut().await;
        if self.has_heard() {
            return Some(self.recover());
        }
        let Stage::LastWord { fresh, .. } = &mut self.stage else {
            return None;
        };
        if due.elapsed() >= LAST_WORD / 2 {
            // It was we who were not there.
            let fresh = fresh.take();
            self.hear_out(fresh);
            return None;
        }
        if Instant::now() < until {
            self.wait(LAST_WORD / LOOKS);
            return None;
        }
        if fresh.is_none() && self.whereabouts.is_suggested() {
            self.dial();
            return None;
        }
        let fresh = fresh.take();
        if fresh.is_some() {
            // Without one, the slot ends, and counts that itself.
            let stats = &self.context.scope.stats;
            stats.connections.add(1);
            stats.closes.add(&Error::Dead, 1);
        }
        Some(News::Dead(fresh))
    }

    /// Of users' bytes the stack does not tell whether they are acknowledged: they are taken for so
    /// when the peer was heard of since the last look, and no more of them have left in that time.
    fn note_users(&mut self, has_heard: bool) {
        let sent = self.carrier.stats().frame_tx.stream;
        if std::mem::replace(&mut self.sent, sent) == sent && has_heard {
            self.owes_users = false;
        }
        // After that: they may not have left yet.
        self.owes_users |= self.pulse.take_written();
    }

    /// Whether the peer owes nothing.
    fn is_even(&self) -> bool {
        self.outbox.is_idle() && !self.owes_users && !self.pulse.is_written_to()
    }

    /// It answers after all. The dial, or the connection that it gave, is dropped, and so closed.
    fn recover(&mut self) -> News {
        self.context.scope.stats.recoveries.add(1);
        self.give_up_dial();
        self.listen();
        News::Changed
    }

    /// Whether a hint keeps messages back: not when the peer has just shown that one was wrong, or who
    /// forges them could keep all back.
    fn believes_hints(&self) -> bool {
        self.answered.is_none_or(|answered| answered.elapsed() >= self.patience / LOOKS)
    }

    /// Counts a dial, or the connection that it gave, that is about to be dropped.
    fn give_up_dial(&self) {
        if matches!(self.stage, Stage::Suspect(_) | Stage::LastWord { fresh: Some(_), .. }) {
            self.context.scope.stats.dial_failures.add(&Error::Cancelled, 1);
        }
    }

    /// The peer owes us nothing.
    fn rest(&mut self) {
        self.stage = Stage::Resting;
        let probe_after = self.pulse.probe_after();
        self.wait(probe_after.map_or(SELDOM, |probe_after| probe_after / RESTING_LOOKS));
    }

    /// Something is outstanding from now on, or again.
    fn listen(&mut self) {
        self.since = Instant::now();
        self.stage = Stage::Listening;
        self.wait(self.patience / LOOKS);
    }

    fn ask(&mut self, holds: bool) {
        if holds {
            self.pulse.fall_silent();
        }
        self.context.scope.stats.probes.add(1);
        ping(self.carrier, RECEIVE_WINDOW);
        let gap = FIRST_LOOK.max(self.carrier.rtt());
        self.stage = Stage::Asked { gap, holds };
        self.wait(gap.min(self.patience / LOOKS));
    }

    fn suspect(&mut self) {
        self.context.scope.stats.suspicions.add(1);
        self.pulse.fall_silent();
        self.dial();
    }

    fn dial(&mut self) {
        self.context.scope.stats.dials.add(1);
        self.stage = Stage::Suspect(self.whereabouts.redial(&self.context.dialer, self.node));
        self.wait(self.patience / LOOKS);
    }

    /// The dial is over: asks the peer once more.
    fn hear_out(&mut self, fresh: Option<Box<Fresh>>) {
        ping(self.carrier, RECEIVE_WINDOW);
        let rtt = fresh.as_deref().map_or(self.carrier, |fresh| &fresh.connection).rtt();
        let until = Instant::now() + LAST_WORD + rtt * LAST_ROUND_TRIPS;
        self.stage = Stage::LastWord { fresh, until };
        self.wait(FIRST_LOOK);
    }

    fn wait(&mut self, time: Duration) {
        self.timer.as_mut().reset(Instant::now() + time.max(FIRST_LOOK));
    }

    /// Waits for the time of the next look, or for a hint.
    async fn awake(&mut self) -> Woken {
        let due = self.timer.deadline();
        tokio::select! {
            biased;
            () = self.hints.given() => Woken::Hint,
            () = &mut self.timer => match due.elapsed() >= (self.patience / 2).max(UNPUNCTUALITY) {
                true => Woken::Late,
                false => Woken::InTime,
            },
        }
    }

    /// Whether the peer was heard of since the last time that this was asked: at each look, however
    /// long the task waits for the peer besides.
    fn has_heard(&mut self) -> bool {
        self.last_use.date_sending();
        let heard = heard(self.carrier);
        let has_heard = std::mem::replace(&mut self.heard, heard) != heard;
        if has_heard {
            self.pulse.beat();
            self.whereabouts.confirm();
        }
        has_heard
    }
}

impl Drop for Vigil<'_> {
    /// The connection may end in another way meanwhile.
    fn drop(&mut self) {
        self.give_up_dial();
    }
}

/// Counts what only the peer can have sent, and only now: whoever is there acknowledges, keeps
/// alive, or sends. Datagrams would not do: others can forge or repeat them, and what is in those
/// is no frame (RFC 9000, section 10.1, likewise lets only packets that were processed successfully
/// keep a connection alive).
fn heard(carrier: &quinn::Connection) -> u64 {
    let frames = carrier.stats().frame_rx;
    frames.acks + frames.ping + frames.stream
}
