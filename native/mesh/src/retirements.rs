//! Connection ids that a peer retires. quinn issues another for each (RFC 9000, section 5.1.1) and
//! keeps it until the peer has acknowledged the frame that it went out in; a peer that goes on
//! retiring, and acknowledges nothing, would have it keep them without end. Nor is there a bound to
//! the retirements that wait for quinn's endpoint, of which one packet holds hundreds.
//!
//! quinn counts them, but only afterwards, and wakes nobody to look. So they are counted where
//! packets are decrypted; one with too many is none, and the connection's task closes.

use std::convert::Infallible;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use futures_util::task::AtomicWaker;
use quinn::VarInt;
use quinn::crypto::CryptoError;
use tokio::time::Instant;

use crate::farewell;
use crate::handshake;
use crate::quic_frames::{RETIRE_CONNECTION_ID, kind, pass};

/// The code for a peer that retires more ids than anybody needs: behind those of `joined.rs`.
const TOO_MANY: VarInt = VarInt::from_u32(0x4d04);
/// How many may be retired at once, and for each second: a peer retires one when it moves, or its
/// NAT forgets it, and some a few in a row.
const ALLOWANCE: u64 = 1_000;
const PER_SECOND: u64 = 1;

/// The connection ids that the peer of one connection has retired.
#[derive(Debug)]
pub(crate) struct Retirements {
    begin: Instant,
    /// In a box, for most peers retire none.
    counted: Mutex<Option<Box<Counted>>>,
    are_too_many: AtomicBool,
    /// Who is to close the connection.
    closer: AtomicWaker,
}

/// What was counted, and in which packets.
#[derive(Debug, Default)]
struct Counted {
    count: u64,
    /// The number behind the newest one.
    next: u64,
    /// Which of the 128 before the newest one there were, as quinn keeps them.
    before: u128,
}

impl Default for Retirements {
    fn default() -> Self {
        Self {
            begin: Instant::now(),
            counted: Mutex::default(),
            are_too_many: AtomicBool::default(),
            closer: AtomicWaker::default(),
        }
    }
}

impl Retirements {
    /// Looks into a packet of this number that has been decrypted.
    ///
    /// # Errors
    /// When it has too many.
    pub(crate) fn look_into(&self, number: u64, packet: &[u8]) -> Result<(), CryptoError> {
        let more = retirements(packet);
        if more == 0 {
            return Ok(());
        }
        let count = self.lock().get_or_insert_default().add(number, more);
        if !is_excessive(count, self.begin.elapsed()) {
            return Ok(());
        }
        self.are_too_many.store(true, Ordering::Release);
        self.closer.wake();
        Err(CryptoError)
    }

    /// A std mutex, because nothing awaits inside.
    fn lock(&self) -> MutexGuard<'_, Option<Box<Counted>>> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counted {
    /// Counts what a packet has, unless it was counted before: anybody on the way can send it again.
    fn add(&mut self, number: u64, more: u64) -> u64 {
        let is_first = match number.checked_sub(self.next) {
            Some(skipped) => {
                let shift = u32::try_from(skipped).unwrap_or(u32::MAX);
                self.before = (self.before << 1 | 1).checked_shl(shift).unwrap_or(0);
                self.next = number + 1;
                true
            }
            None => {
                let back = u32::try_from(self.next - 1 - number).unwrap_or(u32::MAX);
                // Neither the newest itself, nor what is older than quinn takes any.
                let place =
                    back.checked_sub(1).and_then(|bit| 1_u128.checked_shl(bit)).unwrap_or(0);
                let is_first = place & !self.before != 0;
                self.before |= place;
                is_first
            }
        };
        if is_first {
            self.count = self.count.saturating_add(more);
        }
        self.count
    }
}

/// Closes `carrier` when its peer retires too many ids. Never resolves.
pub(crate) fn bound_retirements(
    carrier: &quinn::Connection,
) -> impl Future<Output = Infallible> + use<'_> {
    let retirements = handshake::retirements(carrier);
    poll_fn(move |context| {
        retirements.closer.register(context.waker());
        if retirements.are_too_many.load(Ordering::Acquire) {
            farewell::close(carrier, TOO_MANY);
        }
        Poll::Pending
    })
}

fn is_excessive(count: u64, age: Duration) -> bool {
    count > ALLOWANCE + PER_SECOND * age.as_secs()
}

/// How many connection ids a packet retires.
pub(crate) fn retirements(mut packet: &[u8]) -> u64 {
    let mut count = 0;
    while let Some(kind) = kind(&mut packet) {
        count += u64::from(kind == RETIRE_CONNECTION_ID);
        if pass(kind, &mut packet).is_none() {
            break;
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_ids_may_be_retired_at_once_and_then_as_many_as_time_allows() {
        let day = Duration::from_secs(86_400);
        assert!(!is_excessive(ALLOWANCE, Duration::ZERO));
        assert!(is_excessive(ALLOWANCE + 1, Duration::ZERO));
        assert!(!is_excessive(ALLOWANCE + 86_400, day));
        assert!(is_excessive(ALLOWANCE + 86_401, day));
    }

    #[test]
    fn retirements_are_found_among_other_frames_and_not_in_data() {
        assert_eq!(retirements(&[]), 0);
        assert_eq!(retirements(&[0x19, 5, 0x01, 0, 0, 0x19, 0x40, 6, 0x40, 0x19, 7]), 3);
        assert_eq!(retirements(&[0x0a, 4, 2, 0x19, 0x19, 0x19, 5]), 1);
        assert_eq!(retirements(&[0x08, 4, 0x19, 5]), 0);
    }

    #[test]
    fn a_packet_beyond_what_may_be_retired_is_none() {
        let retirements = Retirements::default();
        let packet = [0x19, 5].repeat(500);
        assert!(retirements.look_into(0, &packet).is_ok());
        assert!(retirements.look_into(1, &[0x01]).is_ok());
        assert!(retirements.look_into(2, &packet).is_ok());
        // Which it would be for nobody who has been there for 500 seconds.
        assert!(retirements.look_into(3, &packet).is_err());
        assert!(retirements.are_too_many.load(Ordering::Acquire));
        assert!(retirements.look_into(4, &[0x01]).is_ok());
    }

    /// Else anybody on the way could have a connection closed whose peer has moved.
    #[test]
    fn what_is_sent_again_by_others_is_counted_once() {
        let mut counted = Counted::default();
        let numbers = [5, 5, 3, 3, 5, 6, 3, 200, 5, 73, 73, 72, 200, 1_000, 873, 873, 872, 1_000];
        let counts = numbers.map(|number| counted.add(number, 1));
        let expected = [1, 1, 2, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 8, 8, 9, 9];
        assert_eq!(counts, expected);
    }
}
