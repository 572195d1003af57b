//! A way between a client and a server that can be made mute.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::net::UdpSocket;

/// The longest UDP datagram.
const MAX_DATAGRAM: usize = 65_535;

/// Carries datagrams between a client and `server`; nothing goes back while `is_mute`.
pub(crate) async fn path(server: SocketAddr, is_mute: Arc<AtomicBool>) -> SocketAddr {
    let near = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a socket");
    let far = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a socket");
    far.connect(server).await.expect("a server");
    let address = near.local_addr().expect("an address");
    tokio::spawn(async move {
        let (mut there, mut back) = (vec![0; MAX_DATAGRAM], vec![0; MAX_DATAGRAM]);
        let mut client = None;
        loop {
            tokio::select! {
                Ok((length, from)) = near.recv_from(&mut there) => {
                    client = Some(from);
                    far.send(there.get(..length).unwrap_or_default()).await.ok();
                }
                Ok(length) = far.recv(&mut back) => match client {
                    Some(client) if !is_mute.load(Ordering::Relaxed) => {
                        near.send_to(back.get(..length).unwrap_or_default(), client).await.ok();
                    }
                    _ => {}
                },
            }
        }
    });
    address
}
