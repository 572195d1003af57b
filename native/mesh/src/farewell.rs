//! Closing a connection so that its peer hears of it.
//!
//! quinn holds a CONNECTION_CLOSE back like data while the congestion window is full and anything
//! else is pending, and a closed connection processes no acknowledgement that would make room: the
//! peer then learns nothing before its idle timeout. A close elicits no acknowledgement and is not
//! congestion controlled (RFC 9002, section 7). So the controller here is quinn's own, but for a
//! window that opens with the last packet.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use quinn::VarInt;
use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics, CubicConfig};
use quinn_proto::RttEstimator;

/// The code of what ends without an error, and of streams that are given up: nodes in the field
/// give it no meaning.
pub(crate) const NO_ERROR: VarInt = VarInt::from_u32(0);
/// The code for a peer that does not hold the right key: the TLS alert access_denied as QUIC would
/// carry it (RFC 9001, section 4.8), from the application since TLS has been passed.
pub(crate) const IMPOSTOR: VarInt = VarInt::from_u32(0x131);

/// Closes a connection, whatever it has under way.
pub(crate) fn close(connection: &quinn::Connection, code: VarInt) {
    if let Ok(window) = connection.congestion_state().into_any().downcast::<Window>() {
        window.is_open.store(true, Ordering::Relaxed);
    }
    connection.close(code, &[]);
}

/// Makes [`Window`]s.
#[derive(Debug, Default)]
pub(crate) struct Windows(Arc<CubicConfig>);

impl ControllerFactory for Windows {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let inner = self.0.clone().build(now, current_mtu);
        Box::new(Window { inner, is_open: Arc::default() })
    }
}

/// The congestion window of a connection.
struct Window {
    inner: Box<dyn Controller>,
    /// Shared by all copies: nothing more is sent but the last packet.
    is_open: Arc<AtomicBool>,
}

impl Controller for Window {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        self.inner.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        largest_packet_num_acked: Option<u64>,
    ) {
        self.inner.on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        self.inner.on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        match self.is_open.load(Ordering::Relaxed) {
            true => u64::MAX,
            false => self.inner.window(),
        }
    }

    fn metrics(&self) -> ControllerMetrics {
        self.inner.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self { inner: self.inner.clone_box(), is_open: self.is_open.clone() })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
