//! Keep-alives for a peer that gives a connection up sooner than quinn's own, at our interval,
//! come: quinn does not tell what the peer declared.

use std::convert::Infallible;
use std::time::Duration;

use quinn::VarInt;
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::handshake::PeerParameters;

/// Keep-alives sent within one idle timeout, so that one may be lost.
pub(crate) const KEEP_ALIVES_PER_TIMEOUT: u32 = 3;
/// The least time between two of them: a peer that names a shorter timeout has no connection from
/// anybody who is not next to it.
const LEAST_KEEP_ALIVE: Duration = Duration::from_millis(50);

/// Keeps `carrier` alive whose peer needs more than quinn's keep-alives every `own`; without these,
/// nobody wants any. Never resolves.
pub(crate) fn keep_alive(
    carrier: &quinn::Connection,
    own: Option<Duration>,
    receive_window: u32,
) -> impl Future<Output = Infallible> {
    // Before the future, which every connection keeps.
    let ticks = ticks(carrier, own);
    async move {
        let Some(mut ticks) = ticks else {
            return std::future::pending().await;
        };
        loop {
            ticks.tick().await;
            ping(carrier, receive_window);
        }
    }
}

fn ticks(carrier: &quinn::Connection, own: Option<Duration>) -> Option<Box<Interval>> {
    let own = own?;
    let peer_timeout = PeerParameters::of(carrier).idle_timeout?;
    let needed = LEAST_KEEP_ALIVE.max(peer_timeout / KEEP_ALIVES_PER_TIMEOUT);
    // In a box: most connections do not need it.
    let mut ticks = (own > needed).then(|| Box::new(interval(needed)))?;
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    Some(ticks)
}

/// Makes the peer acknowledge something. quinn has no ping to call, but a receive window larger
/// than the connection's own is a MAX_DATA frame, which elicits an acknowledgement (RFC 9000,
/// section 13.2); giving the byte back is only noted, and sends nothing.
pub(crate) fn ping(carrier: &quinn::Connection, receive_window: u32) {
    carrier.set_receive_window(VarInt::from_u32(receive_window.saturating_add(1)));
    carrier.set_receive_window(VarInt::from_u32(receive_window));
}
