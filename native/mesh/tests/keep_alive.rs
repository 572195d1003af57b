//! Connections whose ends have agreed on less than one of them would wait for.

#![allow(clippy::disallowed_methods, reason = "tokio's test macro blocks, on a thread of the test")]
#![allow(clippy::expect_used, reason = "how a test fails")]

mod common;
#[path = "common/full.rs"]
mod full;

use std::time::Duration;

use bytes::Bytes;
use common::{PATIENCE, listen, next};
use full::full;
use mesh::{Address, Client, Connection, Listener, Settings};
use tokio::time::timeout;

/// Three times as long as the impatient end waits.
const REST: Duration = Duration::from_secs(3);

/// A machine that stands still for most of a second ends a connection rightly, but not each.
const TRIES: usize = 10;

/// What the peer may send unread, and much more than that.
const WINDOW_BYTES: u64 = 65_536;
const BULK_BYTES: usize = 1_000_000;

/// An end that gives up after a second, and does nothing against it.
fn impatient() -> Settings {
    let mut settings = Settings::default();
    settings.transport.set("idle_timeout_ms", 1_000).expect("a timeout");
    settings.transport.set("keep_alive_interval_ms", 0).expect("no keep-alives");
    settings
}

/// Both ends of a connection, and the listener, which is to be kept.
async fn pair(server: Settings, client: Settings) -> (Listener, Connection, Connection) {
    let (listener, address) = listen(server);
    let dialler = Client::new(tokio::runtime::Handle::current());
    let address = Address::from(address);
    let dial = dialler.connect(&address, client, PATIENCE);
    let (dialled, accepted) = tokio::join!(dial, next(|waiter| listener.request(1, waiter)));
    (listener, dialled.expect("a connection"), accepted)
}

/// Whether a connection does, both ends of which rest. Then one opens a stream.
async fn outlives_a_rest(server: Settings, client: Settings) -> bool {
    let (_listener, dialled, accepted) = pair(server, client).await;
    if timeout(REST, dialled.ended()).await.is_ok() {
        return false;
    }
    let Ok(stream) = dialled.open_stream().await else { return false };
    if stream.send(Bytes::from_static(b"hello").into()).is_err() {
        return false;
    }
    let _stream = next(|waiter| accepted.request_stream(1, waiter)).await;
    true
}

async fn one_outlives_a_rest(server: Settings, client: Settings) -> bool {
    for _ in 0..TRIES {
        if outlives_a_rest(server.clone(), client.clone()).await {
            return true;
        }
    }
    false
}

#[tokio::test]
async fn a_dialled_connection_is_kept_alive_for_a_peer_that_would_not_wait() {
    assert!(one_outlives_a_rest(impatient(), Settings::default()).await);
}

#[tokio::test]
async fn an_accepted_connection_is_kept_alive_for_a_client_that_would_not_wait() {
    assert!(one_outlives_a_rest(Settings::default(), impatient()).await);
}

/// A keep-alive is a larger window, by one byte: what a peer may pin stays what it was.
#[tokio::test]
async fn a_keep_alive_grants_no_more_than_the_connection_s_own_window() {
    let mut client = Settings::default();
    client.transport.set("receive_window_bytes", WINDOW_BYTES).expect("a window");
    let (_listener, _dialled, accepted) = pair(impatient(), client).await;
    let stream = accepted.open_stream().await.expect("a stream");
    stream.send(Bytes::from(vec![0; BULK_BYTES]).into()).expect("taken");
    let sent = || accepted.traffic().map_or(0, |traffic| traffic.sent_bytes);
    timeout(PATIENCE, full(WINDOW_BYTES, sent)).await.expect("a full window");
    assert!(sent() < 2 * WINDOW_BYTES, "{}", sent());
}
