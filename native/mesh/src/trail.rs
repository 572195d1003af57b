//! Flights that are written whole and wait for their acknowledgement.

use std::collections::VecDeque;
use std::pin::Pin;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::time::{Duration, Instant, Sleep, sleep};

use crate::Error;
use crate::flight::{Flight, Landing};

/// When to look at all flights that wait for their acknowledgement, though the oldest has not got
/// its own: first after so long, then each time after twice as long.
const FIRST_LOOK: Duration = Duration::from_millis(10);
/// The longest time between two such looks.
const LAST_LOOK: Duration = Duration::from_secs(1);

/// Flights for which there is room though none is under way: as many as most peers give credit for.
/// More would be memory that every connection that was busy once holds for as long as it is pooled.
const RESTING_FLIGHTS: usize = 128;

/// They are in the order of departure.
///
/// A future that waits for each would cost more than its message does, so only the oldest is waited
/// for. Acknowledgements mostly come in order; when the oldest has landed, the next are looked at.
/// Now and then all are, so that one that is late holds up nobody's account for long.
pub(crate) struct Trail {
    flights: VecDeque<Flight>,
    oldest: Option<BoxFuture<'static, Result<(), Error>>>,
    /// Goes off when it is time for a look, or to see that it is not yet: setting it anew for each
    /// flight would cost more than that.
    /// There is none before the first flight, for many a connection has none of this kind.
    timer: Option<Pin<Box<Sleep>>>,
    patience: Duration,
    /// Or the last look.
    last_landing: Instant,
}

impl Trail {
    pub(crate) fn new() -> Self {
        Self {
            flights: VecDeque::new(),
            oldest: None,
            timer: None,
            patience: FIRST_LOOK,
            last_landing: Instant::now(),
        }
    }

    /// Sends a flight off. It comes back if the stack does not take all of it at once.
    pub(crate) fn send_off(&mut self, mut flight: Flight) -> Option<Flight> {
        if !flight.take_off() {
            return Some(flight);
        }
        if self.flights.is_empty() {
            self.patience = FIRST_LOOK;
            self.last_landing = Instant::now();
            match &mut self.timer {
                Some(timer) if timer.is_elapsed() => {
                    timer.as_mut().reset(self.last_landing + FIRST_LOOK);
                }
                Some(_) => {}
                none @ None => *none = Some(Box::pin(sleep(FIRST_LOOK))),
            }
        }
        self.flights.push_back(flight);
        None
    }

    /// Resolves with the flights that have landed, once some have. Cancelled, it loses none.
    pub(crate) async fn landed(&mut self) -> Vec<Landing> {
        loop {
            let (Some(first), Some(timer)) = (self.flights.front(), &mut self.timer) else {
                if self.flights.capacity() > RESTING_FLIGHTS {
                    self.flights = VecDeque::new();
                }
                return std::future::pending().await;
            };
            let oldest = self.oldest.get_or_insert_with(|| first.acknowledged().boxed());
            let landings = tokio::select! {
                biased;
                outcome = oldest => {
                    self.oldest = None;
                    let mut landings = Vec::new();
                    landings.extend(self.flights.pop_front().map(|first| first.land(outcome)));
                    self.follow(&mut landings);
                    landings
                }
                () = timer => self.look_if_due(),
            };
            if !landings.is_empty() {
                self.patience = FIRST_LOOK;
                self.last_landing = Instant::now();
                return landings;
            }
        }
    }

    /// All that are left, once the connection is over: each has landed by now, or never will.
    pub(crate) fn end(&mut self) -> Vec<Landing> {
        self.oldest = None;
        let lost = |flight: Flight| {
            let outcome = flight.acknowledged().now_or_never();
            flight.land(outcome.unwrap_or(Err(Error::Cancelled)))
        };
        self.flights.drain(..).map(lost).collect()
    }

    /// Lands those behind the oldest that are acknowledged, too.
    fn follow(&mut self, landings: &mut Vec<Landing>) {
        while let Some(next) = self.flights.front() {
            let Some(outcome) = next.acknowledged().now_or_never() else { return };
            landings.extend(self.flights.pop_front().map(|next| next.land(outcome)));
        }
    }

    fn look_if_due(&mut self) -> Vec<Landing> {
        let now = Instant::now();
        let landings = if now < self.last_landing + self.patience {
            Vec::new()
        } else {
            self.patience = (self.patience * 2).min(LAST_LOOK);
            self.last_landing = now;
            self.look()
        };
        if let Some(timer) = &mut self.timer {
            timer.as_mut().reset(self.last_landing + self.patience);
        }
        landings
    }

    /// Lands all that are acknowledged, but for the oldest, which is waited for.
    fn look(&mut self) -> Vec<Landing> {
        let mut landings = Vec::new();
        let oldest = self.flights.pop_front();
        for _ in 0..self.flights.len() {
            let Some(flight) = self.flights.pop_front() else { break };
            match flight.acknowledged().now_or_never() {
                Some(outcome) => landings.push(flight.land(outcome)),
                None => self.flights.push_back(flight),
            }
        }
        if let Some(oldest) = oldest {
            self.flights.push_front(oldest);
        }
        landings
    }
}
