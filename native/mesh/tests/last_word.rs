//! A peer whose answers are late, and that refuses the dial which is to replace its connection.

#![allow(clippy::disallowed_methods, reason = "tokio's test macro blocks, on a thread of the test")]
#![allow(clippy::expect_used, reason = "how a test fails")]

mod common;
#[path = "common/path.rs"]
mod path;
#[path = "common/wait.rs"]
mod wait;

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use common::{listen, next};
use mesh::{Address, Config, Mesh, Plain, Sent, Settings, Target, Verification};
use path::{Fate, Way, path};
use wait::until;

/// The bit that tells the packets of a handshake from those after it (RFC 9000, section 17.2).
const LONG_HEADER: u8 = 0x80;

/// What the path lets through.
#[derive(Clone, Copy, Default)]
enum Stage {
    #[default]
    Everything,
    /// Datagrams of a connection that is made wait, on either way.
    Handshakes,
    /// The same; the server has answered a dial. The client's next question on the connection that
    /// is made, which it asks when it has been refused, lets everything through.
    Refusal,
}

fn judge(stage: &mut Stage, way: Way, datagram: &[u8]) -> Fate {
    let is_short = datagram.first().is_some_and(|byte| byte & LONG_HEADER == 0);
    match (*stage, way, is_short) {
        (Stage::Everything, _, _) | (Stage::Handshakes | Stage::Refusal, Way::ToServer, false) => {
            Fate::Passes
        }
        (Stage::Handshakes | Stage::Refusal, Way::ToClient, false) => {
            *stage = Stage::Refusal;
            Fate::Passes
        }
        (Stage::Refusal, Way::ToServer, true) => {
            *stage = Stage::Everything;
            Fate::Releases
        }
        (Stage::Handshakes, _, true) | (Stage::Refusal, Way::ToClient, true) => Fate::Waits,
    }
}

/// A listener that is full refuses the dial, and is no less alive: what waits in its socket, or on
/// the way there, it acknowledges a moment later.
#[tokio::test]
async fn a_peer_that_refuses_a_second_dial_is_listened_to_for_a_moment() {
    let mut settings = Settings::default();
    settings.transport.set("max_connections", 1).expect("a limit");
    let (listener, server) = listen(settings);
    let stage = Arc::new(Mutex::new(Stage::default()));
    let judged = stage.clone();
    let judge =
        move |way, datagram: &[u8]| judge(&mut judged.lock().expect("a stage"), way, datagram);
    let near = path(server, judge).await;
    let mut config = Config::default();
    config.set("ack_timeout_ms", 200).expect("a timeout");
    let runtime = tokio::runtime::Handle::current();
    let mesh: Mesh<Plain> =
        Mesh::new(config, None, Verification::None, runtime, |_| {}).expect("a pool");
    let target = Target { address: Address::from(near), given: Box::default() };
    let dial = mesh.connect(b"node", target);
    let (dialled, _accepted) = tokio::join!(dial, next(|waiter| listener.request(1, waiter)));
    let stream = dialled.expect("a connection");
    let send = || stream.send(Bytes::from_static(b"message").into());
    assert!(matches!(send(), Ok(Sent::Accepted)));
    assert!(until(|| mesh.stats().delivered == 1).await);
    *stage.lock().expect("a stage") = Stage::Handshakes;
    assert!(matches!(send(), Ok(Sent::Accepted)));
    assert!(until(|| mesh.stats().dial_failures.contains_key("refused")).await);
    // One look later than the message's arrival, the peer is known to be there.
    assert!(until(|| mesh.stats().recoveries == 1 || !mesh.stats().closes.is_empty()).await);
    assert!(until(|| mesh.stats().delivered + mesh.stats().unconfirmed == 2).await);
    let stats = mesh.stats();
    assert!(stats.closes.is_empty(), "{:?}", stats.closes);
    assert_eq!((stats.suspicions, stats.recoveries, stats.unconfirmed), (1, 1, 0));
}
