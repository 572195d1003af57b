//! The last packet of a connection, on a path that has swallowed everything before it.

#![allow(clippy::disallowed_methods, reason = "tokio's test macro blocks, on a thread of the test")]
#![allow(clippy::expect_used, reason = "how a test fails")]

mod common;
#[path = "common/full.rs"]
mod full;
#[path = "common/path.rs"]
mod path;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use common::{PATIENCE, listen, next};
use full::full;
use mesh::{Address, Client, Error, Settings, Traffic};
use path::{mute_while, path};
use tokio::time::timeout;

/// More than any congestion window at first, and less than that (RFC 9002, section 7.2).
const BULK_BYTES: usize = 1_000_000;
const WINDOW_BYTES: u64 = 10_000;

#[tokio::test]
async fn a_close_gets_through_although_the_congestion_window_is_full() {
    let (listener, server) = listen(Settings::default());
    let is_mute = Arc::new(AtomicBool::new(false));
    let near = path(server, mute_while(&is_mute)).await;
    let client = Client::new(tokio::runtime::Handle::current());
    let address = Address::from(near);
    let dial = client.connect(&address, Settings::default(), PATIENCE);
    let (dialled, accepted) = tokio::join!(dial, next(|waiter| listener.request(1, waiter)));
    let connection = dialled.expect("a connection");
    // What comes from there confirms the handshake, too: no packets but those of data are left.
    let greeting = accepted.open_stream().await.expect("a stream");
    greeting.send(Bytes::from_static(b"hello").into()).expect("taken");
    let _greeted = next(|waiter| connection.request_stream(1, waiter)).await;
    let stream = connection.open_stream().await.expect("a stream");
    is_mute.store(true, Ordering::Relaxed);
    stream.send(Bytes::from(vec![0; BULK_BYTES]).into()).expect("taken");
    let sent = || connection.traffic().as_ref().map_or(0, |t: &Traffic| t.sent_bytes);
    timeout(PATIENCE, full(WINDOW_BYTES, sent)).await.expect("a full window");
    connection.close(7);
    let end = timeout(PATIENCE, accepted.ended()).await.expect("the close");
    assert_eq!(end, Error::ClosedByPeer(7));
}
