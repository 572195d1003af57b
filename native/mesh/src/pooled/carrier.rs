//! The QUIC connection beneath a pooled one: carries its messages until it is over, and makes way
//! for another when its peer returns no stream credit, or is dead.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use quinn::ConnectionError;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

use super::{Carrier, Inner, PooledConnection};
use crate::Error;
use crate::farewell::{self, NO_ERROR};
use crate::flight::{Flight, Kind, Landing};
use crate::keep_alive::keep_alive;
use crate::liveness::{News, Vigil};
use crate::retirements::bound_retirements;
use crate::sender::{Sender, Turn};
use crate::settings::{RECEIVE_WINDOW, send_window};
use crate::trail::Trail;
use crate::whereabouts::Fresh;

/// A receiver reads what its transport has acknowledged a little later, and what it has not read
/// when we close is lost: nothing is closed this soon after its last message.
const CLOSE_GRACE: Duration = Duration::from_millis(50);
/// The least time to wait for credit from a peer known to return none: its transport may be late
/// by the delayed acknowledgement of RFC 9000, section 13.2.1.
const LEAST_PATIENCE: Duration = Duration::from_millis(5);
/// Replaced connections of one peer that linger at once; the next one waits for a place. One on
/// which users had streams is closed after the last of them, if there is none then.
const MAX_RETIRED: usize = 64;
/// Packets filled in a row, of messages to a node of the field, before anything else is looked at:
/// that costs as much as filling one.
const PACKETS_AT_ONCE: usize = 16;
/// How long credit may take that comes at all, from a peer that has given none back so far.
pub(crate) const ROUND_TRIPS_FOR_CREDIT: u32 = 3;

/// Why a QUIC connection no longer carries messages.
enum End {
    Lost(Error),
    /// Everything went out, or the time to linger is over.
    Drained,
    /// No stream credit comes back.
    Exhausted,
    /// There never was any.
    Barren,
    /// The peer is dead, or was: another connection to it takes this one's place.
    Superseded(Box<Fresh>),
}

/// What sends the messages of a pooled connection over one carrier.
struct Carriage<'a> {
    pooled: &'a PooledConnection,
    carrier: &'a quinn::Connection,
    sender: Sender<'a>,
    /// In boxes: even an empty set has room for one of what it holds.
    flights: FuturesUnordered<BoxFuture<'static, Landing>>,
    trail: Trail,
    last_landing: Option<Instant>,
    is_drained: bool,
    /// How many more may be filled before anything else is looked at.
    packets: usize,
    /// At last, for it goes last.
    vigil: Vigil<'a>,
}

impl PooledConnection {
    /// Carries messages until the connection is over, and tells why it is.
    pub(crate) async fn serve(&self, node: &[u8]) -> Error {
        let mut patience = self.0.context.config.stream_credit_timeout();
        let mut places = None;
        // One for all carriers: the time to linger does not begin anew with each.
        let mut linger_over = pin!(self.linger_over());
        while let Some(carrier) = self.carrier() {
            let mut carriage = Carriage::new(self, &carrier, patience, node);
            let end = carriage.run(linger_over.as_mut()).await;
            drop(carriage);
            match end {
                End::Lost(error) => return error,
                End::Superseded(fresh) => {
                    drop(self.replace_by(*fresh));
                    continue;
                }
                End::Drained => break,
                End::Barren => return Error::NoCredit,
                End::Exhausted => {}
            }
            let stats = &self.0.context.scope.stats;
            stats.dials.add(1);
            let dialled = tokio::select! {
                biased;
                dialled = self.0.whereabouts.redial(&self.0.context.dialer, node) => Some(dialled),
                () = &mut linger_over => None,
            };
            match dialled {
                Some(Ok(fresh)) => {
                    stats.connections.add(1);
                    stats.renewals.add(1);
                    patience = LEAST_PATIENCE.max(carrier.rtt() * ROUND_TRIPS_FOR_CREDIT);
                    let former = self.replace_by(*fresh);
                    let places =
                        places.get_or_insert_with(|| Arc::new(Semaphore::new(MAX_RETIRED)));
                    tokio::select! {
                        biased;
                        () = Box::pin(self.retire(former, places)) => {}
                        () = &mut linger_over => break,
                    }
                }
                Some(Err(error)) => {
                    stats.dial_failures.add(&error, 1);
                    return Error::NoCredit;
                }
                None => {
                    stats.dial_failures.add(&self.refusal(), 1);
                    break;
                }
            }
        }
        self.refusal()
    }

    /// Lets a replaced connection linger, so that its peer can read what it has acknowledged; as
    /// long as users have streams on it, it stays, unless the pooled connection ends before.
    async fn retire(&self, carrier: Option<Carrier>, places: &Arc<Semaphore>) {
        let Some(Carrier { connection, users }) = carrier else { return };
        let users = users.filter(|users| !users.streams.is_empty());
        let place = match &users {
            None => places.clone().acquire_owned().await.ok(),
            // They may stay for long, and messages do not wait for them.
            Some(_) => None,
        };
        let places = places.clone();
        let linger = self.0.context.scope.linger.max(CLOSE_GRACE);
        let pooled = self.clone();
        self.0.context.scope.tasks.spawn(async move {
            let lingering = async {
                if let Some(users) = users {
                    users.streams.wait().await;
                }
                if let Some(_place) = place.or_else(|| places.try_acquire_owned().ok()) {
                    sleep(linger).await;
                }
            };
            tokio::select! {
                _ = connection.closed() => {}
                () = lingering => {}
                () = pooled.linger_over() => {}
                () = pooled.tend(&connection) => {}
            }
            farewell::close(&connection, NO_ERROR);
        });
    }

    async fn linger_over(&self) {
        self.0.outbox.draining().await;
        // In a box, for it comes once.
        Box::pin(sleep(self.0.context.scope.linger)).await;
    }

    /// What a connection needs beside its messages. Never resolves.
    async fn tend(&self, carrier: &quinn::Connection) {
        let own = self.0.context.config.keep_alive_interval();
        tokio::join!(
            keep_alive(carrier, own, RECEIVE_WINDOW),
            bound_retirements(carrier),
            turn_away_strays(carrier)
        );
    }
}

impl<'a> Carriage<'a> {
    fn new(
        pooled: &'a PooledConnection,
        carrier: &'a quinn::Connection,
        patience: Duration,
        node: &'a [u8],
    ) -> Self {
        let Inner { outbox, pulse, last_use, context, whereabouts, has_delivered, .. } = &*pooled.0;
        carrier.set_send_window(send_window(carrier.rtt()));
        Self {
            pooled,
            carrier,
            sender: Sender::new(carrier, outbox, context, has_delivered, patience),
            flights: FuturesUnordered::new(),
            trail: Trail::new(),
            last_landing: None,
            is_drained: false,
            packets: 0,
            vigil: Vigil::new(carrier, outbox, pulse, last_use, context, whereabouts, node),
        }
    }

    /// Sends what is queued: to a node of the field each message on a stream of its own, to one of
    /// ours many on one.
    async fn run(&mut self, mut linger_over: Pin<&mut impl Future<Output = ()>>) -> End {
        let mut lost = pin!(self.carrier.closed());
        let mut tending = pin!(self.pooled.tend(self.carrier));
        let (error, fresh) = loop {
            // Not in the select below, whose outcome each idle connection would keep a place for.
            while self.packets > 0 {
                self.fill_packet().await;
            }
            if self.is_drained && self.sender.is_resting() && self.pooled.is_idle() {
                grace(self.last_landing).await;
                return End::Drained;
            }
            self.pooled.0.last_use.date_sending();
            let rests = self.vigil.rests();
            // For a landing, or for what may fly beside those that are aloft.
            let waits = self.is_drained || !self.sender.may_fly();
            tokio::select! {
                biased;
                error = &mut lost => break (error.into(), None),
                () = &mut linger_over => {
                    farewell::close(self.carrier, NO_ERROR);
                    self.wind_up(&self.pooled.refusal()).await;
                    return End::Drained;
                }
                Some(landing) = self.flights.next() => self.land(vec![landing]),
                landings = self.trail.landed() => self.land(landings),
                // Before the turn, which must not use what may be dead.
                news = self.vigil.next() => if let News::Dead(fresh) = news {
                    self.pooled.note_death();
                    farewell::close(self.carrier, NO_ERROR);
                    break (Error::Dead, fresh);
                },
                turn = self.sender.turn(waits, rests), if !self.vigil.holds() => match turn {
                    Ok(turn) => if let Some(end) = self.take(turn) {
                        return end;
                    },
                    Err(error) => break (error, None),
                },
                () = &mut tending => {}
            }
        };
        self.wind_up(&error).await;
        fresh.map_or(End::Lost(error), End::Superseded)
    }

    /// What the turn has brought; an end if it is one.
    fn take(&mut self, turn: Turn) -> Option<End> {
        match turn {
            Turn::Send(flight) if flight.kind == Kind::Single => {
                self.packets = PACKETS_AT_ONCE - 1;
                self.send_off(Some(flight));
            }
            Turn::Send(flight) => self.flights.push(flight.fly().boxed()),
            Turn::Drained => self.is_drained = true,
            Turn::NoCredit if self.sender.is_exhausted() => {
                // A user who has a stream has had credit.
                let has_users = self.pooled.0.user_streams.load(Ordering::Relaxed) > 0;
                let is_barren = self.sender.is_barren() && !has_users;
                return Some(if is_barren { End::Barren } else { End::Exhausted });
            }
            Turn::NoCredit | Turn::Nothing => {}
        }
        None
    }

    async fn fill_packet(&mut self) {
        let first = if self.sender.goes_on().await { self.sender.follow() } else { None };
        self.packets = if first.is_some() { self.packets - 1 } else { 0 };
        self.send_off(first);
    }

    /// Sends a message off to a node of the field, and those that share its packet.
    fn send_off(&mut self, mut next: Option<Flight>) {
        while let Some(flight) = next {
            self.flights.extend(self.trail.send_off(flight).map(|left| left.fly().boxed()));
            next = self.sender.follow();
        }
    }

    fn land(&mut self, landings: Vec<Landing>) {
        self.sender.land(landings);
        self.last_landing = Some(Instant::now());
    }

    /// The connection is over. The outcome of each flight is known now: acknowledged before, or never.
    async fn wind_up(&mut self, error: &Error) {
        let mut landings = self.trail.end();
        while let Some(landing) = self.flights.next().await {
            landings.push(landing);
        }
        if let Some(ConnectionError::LocallyClosed) = self.carrier.close_reason() {
            landings.iter_mut().for_each(|landing| landing.ascribe_to(error));
        }
        self.sender.land(landings);
        self.sender.end();
    }
}

/// The peer may still be reading what it has acknowledged.
async fn grace(last_landing: Option<Instant>) {
    if let Some(last) = last_landing {
        sleep(CLOSE_GRACE.saturating_sub(last.elapsed())).await;
    }
}

/// Has the peer told that nobody reads the streams that it opens. Unread, each would be memory that
/// it pins here.
async fn turn_away_strays(carrier: &quinn::Connection) {
    while let Ok(mut stray) = carrier.accept_uni().await {
        // One that has ended already needs no answer.
        stray.stop(NO_ERROR).ok();
    }
    std::future::pending().await
}
