//! What is sent while other messages are on their way to a peer of ours.

#![allow(clippy::disallowed_methods, reason = "tokio's test macro blocks, on a thread of the test")]
#![allow(clippy::expect_used, reason = "how a test fails")]

#[path = "common/field.rs"]
mod field;
#[path = "common/path.rs"]
mod path;
#[path = "common/wait.rs"]
mod wait;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use mesh::{Address, Config, MESH_ALPN, Mesh, Plain, Target, Verification};
use path::{mute_while, path};
use tokio::time::timeout;
use wait::until;

/// How long anything here may take at most.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pieces that are under way at most.
const PIECES: usize = 4;
/// From how many bytes on a message is large.
const LARGE_BYTES: usize = 128 * 1024;
/// What the streams of pieces and of large messages begin with.
const ORDERED: u8 = 0;
const LARGE: u8 = 1;

/// What the next stream that arrives begins with.
async fn next_kind(accepted: &quinn::Connection) -> u8 {
    let kind = async {
        let mut stream = accepted.accept_uni().await.expect("a stream");
        let mut kind = [0];
        stream.read_exact(&mut kind).await.expect("its kind");
        kind
    };
    let [kind] = timeout(PATIENCE, kind).await.expect("in time");
    kind
}

/// On a long path, a large message would begin a round trip late.
#[tokio::test]
async fn a_large_message_waits_for_no_small_one_that_is_on_its_way() {
    let (server, address) = field::server(MESH_ALPN, 0);
    let is_mute = Arc::new(AtomicBool::new(false));
    let near = path(address, mute_while(&is_mute)).await;
    let mut config = Config::default();
    config.set("ack_timeout_ms", 0).expect("a timeout");
    let runtime = tokio::runtime::Handle::current();
    let mesh: Mesh<Plain> =
        Mesh::new(config, None, Verification::None, runtime, |_| {}).expect("a pool");
    let target = Target { address: Address::from(near), given: Box::default() };
    let dial = mesh.connect(b"node", target);
    let accept = async { server.accept().await.expect("a dial").await.expect("a handshake") };
    let (dialled, accepted) = tokio::join!(dial, accept);
    let stream = dialled.expect("a connection");
    let send = |bytes| stream.send(Bytes::from(vec![0; bytes]).into()).expect("accepted");
    send(1);
    assert_eq!(next_kind(&accepted).await, ORDERED);
    assert!(until(|| mesh.stats().delivered == 1).await);
    is_mute.store(true, Ordering::Relaxed);
    for _ in 0..PIECES {
        send(1);
        assert_eq!(next_kind(&accepted).await, ORDERED);
    }
    send(LARGE_BYTES);
    assert_eq!(next_kind(&accepted).await, LARGE);
    assert_eq!(mesh.stats().delivered, 1);
}
