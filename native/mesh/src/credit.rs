//! Stream credit of peers that get a stream per message, and what brings it back.
//!
//! A peer grants a stream anew when both halves of an old one are over: ours, and its own, once we
//! have acknowledged the end of that. With all credit used up we send nothing, and quinn delays an
//! acknowledgement that is all there is to be sent (RFC 9000, section 13.2.1): 25 ms for each
//! hundred messages. So whoever waits for credit sends a frame, and the acknowledgement goes with
//! it: at the moment when the peer is seen to have ended its half of some of the streams.

use std::collections::VecDeque;

use quinn::{ConnectionError, RecvStream, SendStream};
use tokio::pin;
use tokio::time::{Duration, Instant, sleep_until};

use crate::farewell::NO_ERROR;
use crate::keep_alive::ping;
use crate::settings::RECEIVE_WINDOW;

/// Of how many streams one shows when the peer has ended its half.
const MARK_EVERY: u64 = 25;
/// Such streams at most. Others are refused, and tell nothing.
const MAX_MARKS: usize = 4;
/// The least time between two frames that are sent though no stream has shown anything.
const LEAST_NUDGE: Duration = Duration::from_millis(1);
/// The longest: each such frame in vain doubles it.
const LONGEST_GAP: Duration = Duration::from_secs(1);

/// What is known of a peer's credit.
pub(crate) struct Credit {
    used: u64,
    /// Whether it has been waited for since everything was last at rest.
    is_short: bool,
    /// The peer's halves of some streams, whose ends are waited for.
    marks: VecDeque<RecvStream>,
    /// When the waiting began, or a frame was last sent though no stream had shown anything.
    waits_since: Option<Instant>,
    /// How long to wait for a sign before the next such frame; twice as long each time. A peer that
    /// stands still would have the congestion window filled with them, and quinn then sends not
    /// even a CONNECTION_CLOSE.
    gap: Duration,
}

impl Credit {
    pub(crate) fn new() -> Self {
        Self {
            used: 0,
            is_short: false,
            marks: VecDeque::new(),
            waits_since: None,
            gap: LEAST_NUDGE,
        }
    }

    /// How many streams were opened.
    pub(crate) fn used(&self) -> u64 {
        self.used
    }

    /// A stream was opened; nobody reads an answer on it. Said at once, the peer's credit can
    /// return (RFC 9000, section 3.5); while it is short, of some streams it is said later.
    pub(crate) fn use_up(&mut self, mut answer: RecvStream) {
        self.used += 1;
        self.waits_since = None;
        self.gap = LEAST_NUDGE;
        let is_mark = self.is_short && self.used.is_multiple_of(MARK_EVERY);
        if is_mark && self.marks.len() < MAX_MARKS {
            self.marks.push_back(answer);
        } else {
            answer.stop(NO_ERROR).ok();
        }
    }

    /// Nothing is under way any more. If something waits for credit, the rest is over soon, and what
    /// is known of the peer holds.
    pub(crate) fn rest(&mut self) {
        if self.waits_since.is_some() {
            return;
        }
        self.is_short = false;
        // Dropped, they are refused.
        self.marks.clear();
    }

    /// A stream, once there is credit for one. Cancelled, it loses none.
    pub(crate) async fn wait(
        &mut self,
        carrier: &quinn::Connection,
    ) -> Result<(SendStream, RecvStream), ConnectionError> {
        self.is_short = true;
        let opening = carrier.open_bi();
        pin!(opening);
        loop {
            let since = *self.waits_since.get_or_insert_with(Instant::now);
            tokio::select! {
                biased;
                opened = &mut opening => return opened,
                () = marked_end(&mut self.marks) => {}
                () = sleep_until(since + self.gap.max(carrier.rtt())) => {
                    // Dropped, they are refused: a peer may wait for that.
                    self.marks.clear();
                    self.waits_since = None;
                    self.gap = (self.gap * 2).min(LONGEST_GAP);
                }
            }
            ping(carrier, RECEIVE_WINDOW);
        }
    }
}

/// Resolves when the first of the marked streams has ended, however it has.
async fn marked_end(marks: &mut VecDeque<RecvStream>) {
    let Some(first) = marks.front_mut() else { return std::future::pending().await };
    // An answer is read to its end, and thrown away.
    while let Ok(Some(_)) = first.read_chunk(usize::MAX, true).await {}
    marks.pop_front();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Or a sender in bulk, all of whose messages land while it waits, would find no marked stream
    /// the next time either, and wait for a timer after each hundred.
    #[test]
    fn whoever_waits_for_credit_is_not_at_rest() {
        let mut credit = Credit { is_short: true, ..Credit::new() };
        credit.waits_since = Some(Instant::now());
        credit.rest();
        assert!(credit.is_short);
        credit.waits_since = None;
        credit.rest();
        assert!(!credit.is_short);
    }
}
