//! Messages whole in one packet each, for peers that take a chunk for a message.
//!
//! quinn fills every packet to its end, so of many small messages that wait at once, each on a
//! stream of its own, about every fifth would begin in one packet and end in the next. A receiver
//! gets it in two chunks when the packets do not come together, and nodes in the field lose it
//! (DESIGN: "Two kinds of peer"). So no more is handed to quinn at a time than one packet holds.
//! What is lost on the way and sent again may still be cut.

use std::future::poll_fn;
use std::mem::replace;
use std::task::Poll;
use std::time::Duration;

use tokio::task::yield_now;
use tokio::time::{Instant, sleep};

/// What a packet holds besides messages: its header and tag (RFC 9000, section 17.3.1, and RFC
/// 9001, section 5.3), and an ACK frame.
const RESERVE_BYTES: usize = 96;
/// What comes with a message: the heads of a STREAM and of a STOP_SENDING frame (RFC 9000,
/// sections 19.8 and 19.5), 7 and 6 bytes up to the 2^28th stream.
const HEAD_BYTES: usize = 13;
/// How long quinn's driver may take to send what it can send now.
const SOON: Duration = Duration::from_micros(200);
/// How often to look when it cannot: the path or the peer does not take more.
const LATER: Duration = Duration::from_millis(1);
/// How long to wait at most: a frame of a stream that the peer has stopped is never sent, and a
/// path that takes nothing for so long fills its packets as it will.
const LATEST: Duration = Duration::from_millis(20);

/// The packet that is being filled on one connection.
#[derive(Debug, Default)]
pub(crate) struct Packing {
    /// Room that is left in it, in bytes.
    room: usize,
    /// What a packet holds at most, in bytes.
    size: usize,
    /// STREAM frames sent when the messages in it are.
    frames: u64,
    /// STREAM frames sent when last looked.
    sent: u64,
}

impl Packing {
    /// Whether a message of so many bytes still fits.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        bytes + HEAD_BYTES <= self.room
    }

    /// Whether a message of so many bytes is larger than a packet, so that nothing keeps it whole.
    pub(crate) fn is_beyond(&self, bytes: usize) -> bool {
        bytes + HEAD_BYTES + RESERVE_BYTES > self.size
    }

    /// Whether a message of so many bytes need not wait, as things were when last looked.
    pub(crate) fn takes(&self, bytes: usize) -> bool {
        self.sent >= self.frames || self.has_room(bytes) || self.is_beyond(bytes)
    }

    /// Begins the next one.
    pub(crate) fn begin(&mut self) {
        self.room = self.size.saturating_sub(RESERVE_BYTES);
        // What has not left yet, since nobody waited for it, is still to come.
        self.frames = self.frames.max(self.sent);
    }

    /// Adds a message to it, or to the next one, which is only begun when this one has left.
    pub(crate) fn add(&mut self, carrier: &quinn::Connection, bytes: usize) {
        if !self.has_room(bytes) {
            // Otherwise somebody has just waited, and looked.
            if self.is_beyond(bytes) {
                self.look(carrier);
            }
            self.begin();
        }
        self.room = self.room.saturating_sub(bytes + HEAD_BYTES);
        // A message larger than a packet takes one for each part, at least.
        self.frames += u64::try_from(bytes.div_ceil(self.size.max(1)).max(1)).unwrap_or(u64::MAX);
    }

    /// Whether the messages in it have left, after quinn's driver had its turn.
    pub(crate) async fn is_gone(&mut self, carrier: &quinn::Connection) -> bool {
        give_way().await;
        self.look(carrier);
        self.sent >= self.frames
    }

    /// Resolves when the messages in it have left, or should have.
    pub(crate) async fn left(&mut self, carrier: &quinn::Connection) {
        if self.is_gone(carrier).await {
            return;
        }
        let begin = Instant::now();
        while self.sent < self.frames && begin.elapsed() < LATEST {
            if begin.elapsed() < SOON {
                yield_now().await;
            } else {
                // In a box: each idle connection would keep a place for it.
                Box::pin(sleep(LATER)).await;
            }
            self.look(carrier);
        }
        // Frames that will never leave are waited for once, and not with each packet from here on.
        self.frames = self.sent;
    }

    /// Learns what has left by now. quinn's figures are many, and each look copies all of them.
    pub(crate) fn look(&mut self, carrier: &quinn::Connection) {
        let stats = carrier.stats();
        self.size = usize::from(stats.path.current_mtu);
        self.sent = stats.frame_tx.stream;
    }
}

/// Lets tasks that can go on do so first, of which quinn's driver is one. tokio's own way of that
/// looks at all sockets before: a system call, where each packet costs little more than one.
pub(crate) async fn give_way() {
    let mut has_given = false;
    poll_fn(|context| {
        if replace(&mut has_given, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
