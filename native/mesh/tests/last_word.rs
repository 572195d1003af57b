//! A peer whose answers are late, and that refuses the dial which is to replace its connection.

#![allow(clippy::disallowed_methods, reason = "tokio's test macro blocks, on a thread of the test")]
#![allow(clippy::expect_used, reason = "how a test fails")]

mod common;
#[path = "common/wait.rs"]
mod wait;

use std::net::{Ipv4Addr, SocketAddr};

use bytes::Bytes;
use common::{listen, next};
use mesh::{Address, Config, Mesh, Plain, Sent, Settings, Target, Verification};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use wait::until;

/// The longest UDP datagram.
const MAX_DATAGRAM: usize = 65_535;
/// The bit that tells the packets of a handshake from those after it (RFC 9000, section 17.2).
const LONG_HEADER: u8 = 0x80;

/// Carries datagrams between a client and `server`. While `holds`, those of a connection that is
/// made are kept back, on either way.
async fn path(server: SocketAddr, mut holds: watch::Receiver<bool>) -> SocketAddr {
    let near = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a socket");
    let far = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a socket");
    far.connect(server).await.expect("a server");
    let address = near.local_addr().expect("an address");
    tokio::spawn(async move {
        let (mut there, mut back) = (vec![0; MAX_DATAGRAM], vec![0; MAX_DATAGRAM]);
        let (mut held_there, mut held_back) = (Vec::new(), Vec::new());
        let is_short = |datagram: &[u8]| datagram.first().is_some_and(|b| b & LONG_HEADER == 0);
        let (length, mut client) = near.recv_from(&mut there).await.expect("a client");
        far.send(there.get(..length).unwrap_or_default()).await.ok();
        loop {
            tokio::select! {
                Ok((length, from)) = near.recv_from(&mut there) => {
                    client = from;
                    let datagram = there.get(..length).unwrap_or_default();
                    if is_short(datagram) && *holds.borrow() {
                        held_there.push(datagram.to_vec());
                    } else {
                        far.send(datagram).await.ok();
                    }
                }
                Ok(length) = far.recv(&mut back) => {
                    let datagram = back.get(..length).unwrap_or_default();
                    if is_short(datagram) && *holds.borrow() {
                        held_back.push(datagram.to_vec());
                    } else {
                        near.send_to(datagram, client).await.ok();
                    }
                }
                Ok(()) = holds.changed() => if !*holds.borrow_and_update() {
                    for datagram in held_there.drain(..) {
                        far.send(&datagram).await.ok();
                    }
                    for datagram in held_back.drain(..) {
                        near.send_to(&datagram, client).await.ok();
                    }
                },
            }
        }
    });
    address
}

/// A listener that is full refuses the dial, and is no less alive: what waits in its socket, or on
/// the way there, it acknowledges a moment later.
#[tokio::test]
async fn a_peer_that_refuses_a_second_dial_is_listened_to_for_a_moment() {
    let mut settings = Settings::default();
    settings.transport.set("max_connections", 1).expect("a limit");
    let (listener, server) = listen(settings);
    let (holds, held) = watch::channel(false);
    let near = path(server, held).await;
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
    holds.send_replace(true);
    assert!(matches!(send(), Ok(Sent::Accepted)));
    assert!(until(|| mesh.stats().dial_failures.contains_key("refused")).await);
    holds.send_replace(false);
    // One look later than the message's arrival, the peer is known to be there.
    assert!(until(|| mesh.stats().recoveries == 1 || !mesh.stats().closes.is_empty()).await);
    assert!(until(|| mesh.stats().delivered + mesh.stats().unconfirmed == 2).await);
    let stats = mesh.stats();
    assert!(stats.closes.is_empty(), "{:?}", stats.closes);
    assert_eq!((stats.suspicions, stats.recoveries, stats.unconfirmed), (1, 1, 0));
}
