//! How long a node that could not be dialled is left alone, before a message alone is reason
//! enough to dial it again. Plain data: no clock of its own, no task.
//!
//! Each failure in a row doubles the delay, from the least to the greatest. A part of it is left
//! to chance, so that nodes that have lost the same peer do not all come back to it at once. Where
//! nobody has looked for the node yet, it may be found, and is dialled at once; callers who write
//! one address in many ways, or who disagree, make no new place with each dial.

use std::time::{Duration, Instant};

use lru::LruCache;
use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use ring::rand::{SecureRandom, SystemRandom};

use crate::address::Address;

/// Nodes whose failures are remembered; beyond that, those not tried for the longest time are
/// forgotten, and the next message dials them as if they were new.
const MAX_FAILING: usize = 16_384;
/// Nodes that are forgotten with one failure, at most: the pool is locked meanwhile.
const MOST_FORGOTTEN: usize = 8;
/// Places of a node that are remembered. Beyond that, no place is a new one.
const MOST_PLACES: usize = 4;
/// Doublings that are counted: more than any two delays within their bounds are apart.
const MAX_DOUBLINGS: u32 = 31;
/// The part of a delay that is left to chance, as a divisor: half of it ("equal jitter").
const JITTER: u32 = 2;

/// What stands for a node, or an address: they may be of any length, and those of nodes long gone
/// are none of the pool's connections, which are bounded.
type Digest = [u8; SHA256_OUTPUT_LEN];

/// Nodes whose last dial has failed.
#[derive(Debug)]
pub(crate) struct Backoff {
    least: Duration,
    greatest: Duration,
    /// Unbounded, since a bounded one sets all its memory aside at once.
    failing: LruCache<Digest, Failing>,
}

#[derive(Debug)]
struct Failing {
    /// Where it was dialled.
    places: Vec<Digest>,
    /// Failures in a row.
    failures: u32,
    until: Instant,
}

impl Backoff {
    /// Delays from `least`, which is 0 for none at all, to `greatest`.
    pub(crate) fn new(least: Duration, greatest: Duration) -> Self {
        Self { least, greatest: greatest.max(least), failing: LruCache::unbounded() }
    }

    /// When `node` may be dialled at `address`, if that is not now.
    pub(crate) fn until(&self, node: &[u8], address: &Address, now: Instant) -> Option<Instant> {
        let failing = self.failing.peek(&of(node)).filter(|failing| failing.until > now)?;
        failing.was_dialled_at(&place(address)).then_some(failing.until)
    }

    /// Dials of `node` at these addresses have failed, which counts as one failure; `before` it so
    /// many in a row that are forgotten here.
    pub(crate) fn failed(&mut self, node: &[u8], at: &[Address], now: Instant, before: u32) {
        self.failed_with(node, at, now, before, chance());
    }

    /// A dial of `node` has succeeded; returns how many had failed in a row, which are forgotten.
    pub(crate) fn succeeded(&mut self, node: &[u8]) -> u32 {
        if self.failing.is_empty() {
            return 0;
        }
        self.failing.pop(&of(node)).map_or(0, |failing| failing.failures)
    }

    /// How many nodes are remembered.
    pub(crate) fn failing(&self) -> usize {
        self.failing.len()
    }

    /// Whether the failure that is longest ago tells nothing any more.
    fn is_oldest_forgotten(&self, now: Instant) -> bool {
        self.failing.peek_lru().is_some_and(|(_, last)| last.until + self.greatest <= now)
    }

    /// `chance`: which part of what is left to it, in 1 / 2^32.
    fn failed_with(&mut self, node: &[u8], at: &[Address], now: Instant, before: u32, chance: u32) {
        if self.least.is_zero() {
            return;
        }
        let node = of(node);
        // A failure long after the last delay tells nothing about those before it.
        let last = self.failing.pop(&node).filter(|last| now < last.until + self.greatest);
        let (row, places) = last.map_or((before, Vec::new()), |last| (last.failures, last.places));
        let delay = self.least.saturating_mul(1 << row.min(MAX_DOUBLINGS)).min(self.greatest);
        let random = delay / JITTER;
        let spared = random.mul_f64(f64::from(chance) / f64::from(u32::MAX));
        let until = now + delay - spared;
        let mut failing = Failing { places, failures: row.saturating_add(1), until };
        failing.note(at);
        self.failing.put(node, failing);
        for _ in 0..MOST_FORGOTTEN {
            if self.failing.len() > MAX_FAILING || self.is_oldest_forgotten(now) {
                self.failing.pop_lru();
            }
        }
    }
}

impl Failing {
    fn was_dialled_at(&self, place: &Digest) -> bool {
        self.places.len() >= MOST_PLACES || self.places.contains(place)
    }

    fn note(&mut self, at: &[Address]) {
        for place in at.iter().map(place) {
            if !self.was_dialled_at(&place) {
                self.places.push(place);
            }
        }
    }
}

/// Not of what the caller wrote.
fn place(address: &Address) -> Digest {
    of(address.to_string().as_bytes())
}

fn of(bytes: &[u8]) -> Digest {
    let mut sum = [0; SHA256_OUTPUT_LEN];
    sum.copy_from_slice(digest(&SHA256, bytes).as_ref());
    sum
}

/// Random bits; without any, the whole delay holds.
fn chance() -> u32 {
    let mut bits = [0; 4];
    match SystemRandom::new().fill(&mut bits) {
        Ok(()) => u32::from_be_bytes(bits),
        Err(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use super::*;

    const LEAST: Duration = Duration::from_millis(100);
    const GREATEST: Duration = Duration::from_millis(1_000);

    fn at(port: u16) -> Address {
        Address::from(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
    }

    fn here() -> [Address; 1] {
        [at(1)]
    }

    fn node(number: usize) -> [u8; size_of::<usize>()] {
        number.to_be_bytes()
    }

    /// The delay after one more failure at `now`, which ends it.
    fn fail(backoff: &mut Backoff, now: &mut Instant, chance: u32) -> Duration {
        backoff.failed_with(&node(1), &here(), *now, 0, chance);
        let until = backoff.until(&node(1), &at(1), *now).expect("a delay");
        until - std::mem::replace(now, until)
    }

    #[test]
    fn each_failure_in_a_row_doubles_the_delay_up_to_the_greatest() {
        let (mut backoff, mut now) = (Backoff::new(LEAST, GREATEST), Instant::now());
        let delays: Vec<_> = (0..40).map(|_| fail(&mut backoff, &mut now, 0).as_millis()).collect();
        assert_eq!(delays[..5], [100, 200, 400, 800, 1_000]);
        assert!(delays[5..].iter().all(|delay| *delay == 1_000));
    }

    #[test]
    fn half_of_a_delay_at_most_is_left_to_chance() {
        let (mut backoff, mut now) = (Backoff::new(LEAST, GREATEST), Instant::now());
        assert_eq!(fail(&mut backoff, &mut now, u32::MAX), LEAST / 2);
        let random: Vec<_> = (0..64)
            .map(|number| {
                backoff.failed(&node(number), &here(), now, 0);
                backoff.until(&node(number), &at(1), now).expect("a delay") - now
            })
            .collect();
        assert!(random.iter().all(|delay| (LEAST / 2..=GREATEST).contains(delay)));
        assert!(random.iter().any(|delay| *delay != random[0]), "all the same: {random:?}");
    }

    #[test]
    fn a_success_ends_it() {
        let (mut backoff, mut now) = (Backoff::new(LEAST, GREATEST), Instant::now());
        fail(&mut backoff, &mut now, 0);
        fail(&mut backoff, &mut now, 0);
        assert_eq!(backoff.succeeded(&node(1)), 2);
        assert_eq!((backoff.until(&node(1), &at(1), now), backoff.failing()), (None, 0));
        assert_eq!(fail(&mut backoff, &mut now, 0), LEAST);
        assert_eq!(backoff.succeeded(&node(2)), 0);
    }

    #[test]
    fn a_success_that_was_in_vain_does_not() {
        let (mut backoff, mut now) = (Backoff::new(LEAST, GREATEST), Instant::now());
        for number in 0..3 {
            fail(&mut backoff, &mut now, 0);
            assert_eq!(backoff.succeeded(&node(1)), 1);
            backoff.failed_with(&node(1), &here(), now, number, 0);
            assert_eq!(backoff.succeeded(&node(1)), number + 1);
        }
    }

    #[test]
    fn a_failure_long_after_the_last_one_begins_anew() {
        let (mut backoff, mut now) = (Backoff::new(LEAST, GREATEST), Instant::now());
        fail(&mut backoff, &mut now, 0);
        fail(&mut backoff, &mut now, 0);
        now += GREATEST;
        assert_eq!(fail(&mut backoff, &mut now, 0), LEAST);
    }

    #[test]
    fn another_address_may_be_tried_at_once_but_not_very_many() {
        let (mut backoff, now) = (Backoff::new(LEAST, GREATEST), Instant::now());
        let delay = |backoff: &Backoff, port| {
            backoff.until(&node(1), &at(port), now).map(|until| (until - now).as_millis())
        };
        for (port, delays) in [(1, 100), (2, 200), (1, 400), (2, 800), (3, 1_000), (4, 1_000)] {
            let is_new = !backoff.failing.iter().any(|(_, last)| last.places.len() >= port.into());
            assert_eq!(delay(&backoff, port).is_none(), is_new);
            backoff.failed_with(&node(1), &[at(port)], now, 0, 0);
            assert_eq!(delay(&backoff, port), Some(delays));
            assert_eq!(delay(&backoff, 1), Some(delays));
        }
        assert_eq!(delay(&backoff, 5), Some(1_000));
        let name = |text| Address::parse(text).expect("an address");
        backoff.failed(&node(2), &[name("https://host/path"), at(9)], now, 0);
        assert!(backoff.until(&node(2), &name("host:4433"), now).is_some());
        assert!(backoff.until(&node(2), &at(9), now).is_some());
        assert_eq!(backoff.until(&node(2), &name("host:4434"), now), None);
    }

    #[test]
    fn only_so_many_nodes_are_remembered_the_last_ones() {
        let (mut backoff, now) = (Backoff::new(LEAST, GREATEST), Instant::now());
        for number in 0..=MAX_FAILING {
            backoff.failed(&node(number), &here(), now, 0);
        }
        assert_eq!(backoff.failing(), MAX_FAILING);
        assert_eq!(backoff.until(&node(0), &at(1), now), None);
        assert!(backoff.until(&node(1), &at(1), now).is_some());
    }

    #[test]
    fn nodes_whose_failures_tell_nothing_any_more_are_forgotten_with_the_next_ones() {
        let (mut backoff, now) = (Backoff::new(LEAST, GREATEST), Instant::now());
        for number in 0..10 {
            backoff.failed(&node(number), &here(), now, 0);
        }
        backoff.failed(&node(10), &here(), now + LEAST + 2 * GREATEST, 0);
        assert_eq!(backoff.failing(), 11 - MOST_FORGOTTEN);
        backoff.failed(&node(10), &here(), now + LEAST + 2 * GREATEST, 0);
        assert_eq!(backoff.failing(), 1);
    }

    #[test]
    fn with_no_least_delay_there_is_none() {
        let (mut backoff, now) = (Backoff::new(Duration::ZERO, GREATEST), Instant::now());
        backoff.failed(&node(1), &here(), now, 0);
        assert_eq!((backoff.until(&node(1), &at(1), now), backoff.failing()), (None, 0));
    }
}
