//! A path between a client and a server, on which a test says what becomes of each datagram.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::net::UdpSocket;

/// The longest UDP datagram.
const MAX_DATAGRAM: usize = 65_535;

/// Where a datagram goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    ToServer,
    ToClient,
}

/// What becomes of a datagram.
#[derive(Clone, Copy)]
#[allow(dead_code, reason = "no test has all of these")]
pub(crate) enum Fate {
    Passes,
    IsLost,
    /// It waits until another one releases it.
    Waits,
    /// It passes, and then what waits does, in its order.
    Releases,
}

/// Nothing goes back while `is_mute`.
#[allow(dead_code, reason = "not every test has it")]
pub(crate) fn mute_while(is_mute: &Arc<AtomicBool>) -> impl FnMut(Way, &[u8]) -> Fate + use<> {
    let is_mute = is_mute.clone();
    move |way, _| match way {
        Way::ToClient if is_mute.load(Ordering::Relaxed) => Fate::IsLost,
        _ => Fate::Passes,
    }
}

/// Carries datagrams between a client and `server`; the address for the client to send to.
pub(crate) async fn path(
    server: SocketAddr,
    mut judge: impl FnMut(Way, &[u8]) -> Fate + Send + 'static,
) -> SocketAddr {
    let near = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a socket");
    let far = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a socket");
    far.connect(server).await.expect("a server");
    let address = near.local_addr().expect("an address");
    tokio::spawn(async move {
        let (mut there, mut back) = (vec![0; MAX_DATAGRAM], vec![0; MAX_DATAGRAM]);
        let (mut client, mut waiting) = (None, Vec::new());
        loop {
            let (way, datagram) = tokio::select! {
                Ok((length, from)) = near.recv_from(&mut there) => {
                    client = Some(from);
                    (Way::ToServer, there.get(..length).unwrap_or_default())
                }
                Ok(length) = far.recv(&mut back) => {
                    (Way::ToClient, back.get(..length).unwrap_or_default())
                }
            };
            let mut passing = Vec::new();
            match judge(way, datagram) {
                Fate::Passes => passing.push((way, datagram.to_vec())),
                Fate::IsLost => {}
                Fate::Waits => waiting.push((way, datagram.to_vec())),
                Fate::Releases => {
                    passing.push((way, datagram.to_vec()));
                    passing.append(&mut waiting);
                }
            }
            for (way, datagram) in passing {
                match (way, client) {
                    (Way::ToServer, _) => drop(far.send(&datagram).await),
                    (Way::ToClient, Some(client)) => drop(near.send_to(&datagram, client).await),
                    (Way::ToClient, None) => {}
                }
            }
        }
    });
    address
}
