//! The options of a connection or listener of a caller's own, with their defaults and bounds.

use std::sync::Arc;
use std::time::Duration;

use quinn::{IdleTimeout, TransportConfig, VarInt};

use crate::config::{BadOption, Bounds, LONGEST_MS, MIB, keep_alive, options, size};
use crate::farewell::Windows;
use crate::joined;
use crate::tls::{ALPN, Identity};
use crate::verify::Verification;

/// Most streams that a peer may be granted: what quinn sets aside for each is memory for nothing.
const MAX_STREAMS: u64 = 65_536;
/// What `receive_window_bytes` is unless it is set; the pool's connections always have it.
pub(crate) const RECEIVE_WINDOW: u32 = 8 * 1024 * 1024;

/// Unacknowledged bytes that quinn would hold for any connection: 100 ms of 100 MB/s.
const LARGEST_SEND_WINDOW: u64 = 10_000_000;
/// As much as the processor's caches hold: on a short path, more is slower (docs/design.md, "The
/// connection's task", has what was measured).
const LEAST_SEND_WINDOW: u64 = MIB;
/// The fastest path that one connection is to fill, 10 Gbit/s.
const SEND_BYTES_PER_MS: u64 = 1_250_000;

/// How much may be under way to a peer that answers after `rtt`: what the path holds, in bounds.
pub(crate) fn send_window(rtt: Duration) -> u64 {
    let ms = u64::try_from(rtt.as_millis()).unwrap_or(u64::MAX);
    ms.saturating_mul(SEND_BYTES_PER_MS).clamp(LEAST_SEND_WINDOW, LARGEST_SEND_WINDOW)
}

options! {
    /// The numeric options of a connection or listener, all within their bounds.
    Transport {
    /// Silence after which a connection is given up, in milliseconds; the lower of this and the
    /// peer's own holds (RFC 9000, section 10.1).
    idle_timeout_ms: 60_000, 100 => LONGEST_MS;
    /// How often an idle connection is kept alive, in milliseconds; 0 for never.
    keep_alive_interval_ms: 20_000, 0 => LONGEST_MS;
    /// How long a handshake may take, in milliseconds.
    handshake_idle_timeout_ms: 10_000, 1 => LONGEST_MS;
    /// Bidirectional streams that the peer may have open at once.
    peer_bidi_stream_count: 100, 0 => MAX_STREAMS;
    /// Unidirectional streams that the peer may have open at once.
    peer_unidi_stream_count: 3, 0 => MAX_STREAMS;
    /// The longest protocol frame that is put together, header included, and the longest message
    /// of `macula-mesh/1`, in bytes.
    max_frame_bytes: 16 * MIB, 8 => 4_096 * MIB;
    /// Bytes of unfinished frames above 64 KiB of all streams of one connection together; a frame
    /// that finds no room is refused. One alone always may.
    max_unfinished_bytes: 64 * MIB, 65_536 => 65_536 * MIB;
    /// Bytes of all streams of one connection that a peer may send before they have been read: memory
    /// that it may pin here.
    receive_window_bytes: RECEIVE_WINDOW as u64, 65_536 => 1_024 * MIB;
    /// UDP socket buffers, each direction, in bytes; the kernel may grant less.
    udp_buffer_bytes: 4 * MIB, 65_536 => 1_024 * MIB;
    /// Listener: connections that wait to be accepted; more are refused, or closed where their
    /// handshakes were under way.
    backlog: 128, 1 => 65_536;
    /// Listener: connections open at once; more are refused.
    max_connections: 10_000, 1 => 1_000_000;
    /// Listener: connections open at once from one IP address (of IPv6, one /64 network); more are
    /// refused.
    max_connections_per_address: 1_000, 1 => 1_000_000;
    /// Listener: handshakes under way at once; more are refused.
    max_handshakes: 1_024, 1 => 65_536;
    /// Listener: handshakes under way at once from one IP address (of IPv6, one /64 network); more
    /// are refused.
    max_handshakes_per_address: 256, 1 => 65_536;
    /// Listener: handshakes under way above which a client must show that it receives at its
    /// address before anything is kept for it (Retry, RFC 9000, section 8.1.2).
    retry_above_handshakes: 128, 0 => 65_536;
    }
}

/// All options of a connection or listener.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The numeric ones.
    pub transport: Transport,
    /// What we show when the other side asks who we are; a listener must have it.
    pub identity: Option<Identity>,
    /// Application protocols, the preferred first (RFC 7301).
    pub alpn: Vec<Vec<u8>>,
    /// How the other side has to prove who it is.
    pub verification: Verification,
    /// The name to ask for and to verify, if it is not the host's (RFC 6066, section 3).
    pub server_name: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            transport: Transport::default(),
            identity: None,
            alpn: vec![ALPN.to_vec()],
            verification: Verification::None,
            server_name: None,
        }
    }
}

impl Transport {
    /// As [`crate::Config::settle`].
    ///
    /// # Errors
    /// [`BadOption`] when keep-alives would come too late to keep anything alive.
    pub fn settle(&mut self, has_keep_alive: bool) -> Result<(), BadOption> {
        self.keep_alive_interval_ms =
            keep_alive(self.keep_alive_interval_ms, self.idle_timeout_ms, has_keep_alive)?;
        Ok(())
    }

    pub(crate) fn quinn(&self) -> TransportConfig {
        let idle = Duration::from_millis(self.idle_timeout_ms);
        let mut transport = TransportConfig::default();
        transport
            .max_idle_timeout(IdleTimeout::try_from(idle).ok())
            .keep_alive_interval(self.keep_alive_interval())
            .max_concurrent_bidi_streams(streams(self.peer_bidi_stream_count))
            .max_concurrent_uni_streams(streams(self.peer_unidi_stream_count))
            .receive_window(VarInt::from_u32(self.receive_window()))
            .congestion_controller_factory(Arc::new(Windows::default()))
            .datagram_receive_buffer_size(None);
        transport
    }

    pub(crate) fn keep_alive_interval(&self) -> Option<Duration> {
        (self.keep_alive_interval_ms > 0)
            .then(|| Duration::from_millis(self.keep_alive_interval_ms))
    }

    /// The option's bound is less than a u32 holds.
    pub(crate) fn receive_window(&self) -> u32 {
        u32::try_from(self.receive_window_bytes).unwrap_or(u32::MAX)
    }

    pub(crate) fn handshake_timeout(&self) -> Duration {
        Duration::from_millis(self.handshake_idle_timeout_ms)
    }

    pub(crate) fn max_frame_bytes(&self) -> usize {
        size(self.max_frame_bytes)
    }

    pub(crate) fn max_unfinished_bytes(&self) -> usize {
        size(self.max_unfinished_bytes)
    }

    /// Streams of a peer that may wait to be accepted.
    pub(crate) fn max_streams(&self) -> usize {
        size(self.peer_bidi_stream_count.saturating_add(self.peer_unidi_stream_count)).max(1)
    }

    /// The same of streams with messages of `macula-mesh/1`: what was granted before the protocol
    /// was known is not taken back.
    pub(crate) fn message_streams(&self) -> usize {
        size(self.peer_unidi_stream_count.max(u64::from(joined::STREAMS)))
    }

    pub(crate) fn backlog(&self) -> usize {
        size(self.backlog)
    }

    pub(crate) fn max_connections(&self) -> usize {
        size(self.max_connections)
    }

    pub(crate) fn max_connections_per_address(&self) -> usize {
        size(self.max_connections_per_address)
    }

    pub(crate) fn max_handshakes(&self) -> usize {
        size(self.max_handshakes)
    }

    pub(crate) fn max_handshakes_per_address(&self) -> usize {
        size(self.max_handshakes_per_address)
    }

    pub(crate) fn retry_above_handshakes(&self) -> usize {
        size(self.retry_above_handshakes)
    }

    pub(crate) fn udp_buffer_bytes(&self) -> usize {
        size(self.udp_buffer_bytes)
    }
}

fn streams(count: u64) -> VarInt {
    VarInt::from_u64(count).unwrap_or(VarInt::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_much_may_be_under_way_as_the_path_holds_within_bounds() {
        let window = |us| send_window(Duration::from_micros(us));
        assert_eq!(window(0), LEAST_SEND_WINDOW);
        assert_eq!(window(800), LEAST_SEND_WINDOW);
        assert_eq!(window(4_000), 5_000_000);
        assert_eq!(window(80_000), LARGEST_SEND_WINDOW);
        assert_eq!(send_window(Duration::MAX), LARGEST_SEND_WINDOW);
    }
}
