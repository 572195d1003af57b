//! A UDP socket for quinn that also hears what the network answers in a peer's place (Linux,
//! IP_RECVERR): quinn's own never does, and a dial to a closed port runs into its deadline.
//!
//! Two things follow from asking for such messages, and are dealt with here. Each is also a pending
//! error of the socket, which the next call gets, whatever peer it is for: so that datagram is
//! sent once more. And each makes epoll report an error that tokio takes for a closed writing half,
//! for good: so a full socket is looked at again after a while where tokio cannot say when.

use std::io::{self, ErrorKind, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use nix::libc::{EBADF, ECONNREFUSED, EINVAL, ENOTSOCK, SO_EE_ORIGIN_ICMP, SO_EE_ORIGIN_ICMP6};
use nix::sys::socket::sockopt::{Ipv4RecvErr, Ipv6RecvErr};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt};
use quinn::udp::{RecvMeta, Transmit, UdpSocketState};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::io::{Interest, Ready};
use tokio::net::UdpSocket;
use tokio::task::{AbortHandle, yield_now};
use tokio::time::sleep;

use crate::refusals::Refusals;

/// How often to look whether a full socket has room, when only that tells: the granularity of
/// tokio's clock.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// Bytes of the offending datagram that are of interest: its first packet's connection id.
const QUOTE_BYTES: usize = 64;
/// Room for what the kernel tells with it: who has sent the message, and what the socket wants to
/// know of each datagram.
const CONTROL_BYTES: usize = 512;
/// Messages read in a row before other tasks get their turn, and errors of the socket after which
/// it has died.
const BATCH: usize = 64;

#[derive(Debug)]
pub(crate) struct Socket {
    io: UdpSocket,
    state: UdpSocketState,
    /// The last datagram found no room in the kernel's buffer.
    is_full: AtomicBool,
    refusals: Arc<Refusals>,
}

/// The task that reads the messages; it ends with this.
#[derive(Debug)]
pub(crate) struct Listening(AbortHandle);

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Socket {
    /// Takes `socket` over, within the context of a runtime.
    pub(crate) fn new(
        socket: std::net::UdpSocket,
        refusals: Arc<Refusals>,
    ) -> io::Result<(Arc<Self>, Listening)> {
        let state = UdpSocketState::new((&socket).into())?;
        setsockopt(&socket, Ipv4RecvErr, &true)?;
        if socket.local_addr()?.is_ipv6() {
            setsockopt(&socket, Ipv6RecvErr, &true)?;
        }
        let io = UdpSocket::from_std(socket)?;
        let socket = Arc::new(Self { io, state, is_full: AtomicBool::new(false), refusals });
        let listening = tokio::spawn(socket.clone().listen()).abort_handle();
        Ok((socket, Listening(listening)))
    }

    /// Reads messages of the network until it is dropped, or the socket has died.
    async fn listen(self: Arc<Self>) {
        while self.io.ready(Interest::ERROR).await.is_ok() {
            for _ in 0..BATCH {
                match self.io.try_io(Interest::ERROR, || self.read_error()) {
                    Ok(Some((address, quoted))) => self.refusals.refuse(address, &quoted),
                    Ok(None) => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(_) => sleep(LOOK_AGAIN).await,
                }
            }
            // Whoever floods us with messages keeps no other task from its turn.
            yield_now().await;
        }
    }

    /// The next message; where a datagram went and how it began, if nobody listens there.
    fn read_error(&self) -> io::Result<Option<(SocketAddr, Vec<u8>)>> {
        let mut quote = [0; QUOTE_BYTES];
        let mut control = nix::cmsg_space!([u8; CONTROL_BYTES]);
        let (address, bytes, is_refusal) = {
            let mut buffers = [IoSliceMut::new(&mut quote)];
            let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
            let fd = self.io.as_raw_fd();
            let message = recvmsg::<SockaddrStorage>(fd, &mut buffers, Some(&mut control), flags)?;
            let is_refusal = message.cmsgs()?.any(|control| is_refusal(&control));
            (message.address.as_ref().and_then(socket_address), message.bytes, is_refusal)
        };
        let quoted = quote.get(..bytes).unwrap_or_default().to_vec();
        Ok(address.filter(|_| is_refusal).map(|address| (address, quoted)))
    }

    fn send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        match self.state.try_send((&self.io).into(), transmit) {
            // Perhaps the pending error, which is gone now. This datagram's own comes again, and
            // is passed over by `send`: QUIC bears losses.
            Err(error) if error.kind() != ErrorKind::WouldBlock => {
                self.state.send((&self.io).into(), transmit)
            }
            outcome => outcome,
        }
    }

    /// Calls `receive` until it has received something, or there is nothing.
    fn poll_receiving(
        &self,
        context: &mut Context<'_>,
        mut receive: impl FnMut() -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        let mut errors = 0;
        loop {
            ready!(self.io.poll_recv_ready(context))?;
            match self.io.try_io(Interest::READABLE, &mut receive) {
                // There is nothing, and `ready` waits; or it was a pending one, and is gone now.
                Err(error) if !is_own(&error) => {}
                Err(_) if errors < BATCH => errors += 1,
                // Or it stays, and the socket has died.
                outcome => return Poll::Ready(outcome),
            }
        }
    }

    /// Resolves when there may be room in a socket that was full.
    async fn has_room(self: Arc<Self>) -> io::Result<()> {
        let ready = self.io.ready(Interest::WRITABLE).await?;
        if ready & Ready::WRITABLE == Ready::EMPTY {
            sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Poller { socket: self, waiting: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.refusals.note_sent(transmit.destination, transmit.contents);
        let sent = self.io.try_io(Interest::WRITABLE, || self.send(transmit));
        let is_full = sent.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
        // Relaxed: a hint, and whoever misses it only tries in vain.
        if self.is_full.load(Ordering::Relaxed) != is_full {
            self.is_full.store(is_full, Ordering::Relaxed);
        }
        sent
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let count =
            ready!(self.poll_receiving(context, || {
                self.state.recv((&self.io).into(), buffers, meta)
            }))?;
        self.refusals.note_received(meta.iter().take(count).map(|meta| meta.addr));
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.state.gro_segments()
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }
}

type Waiting = Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>;

/// Waits for room on behalf of one connection.
struct Poller {
    socket: Arc<Socket>,
    waiting: Option<Waiting>,
}

impl UdpPoller for Poller {
    fn poll_writable(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let socket = &self.socket;
        if self.waiting.is_none() && !socket.is_full.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        let room = socket.clone();
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(room.has_room()));
        let outcome = ready!(waiting.as_mut().poll(context));
        self.waiting = None;
        Poll::Ready(outcome)
    }
}

impl std::fmt::Debug for Poller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Poller").finish_non_exhaustive()
    }
}

/// Whether an error is about the socket itself, and nothing that the network has said of a peer.
fn is_own(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|number| [EBADF, EINVAL, ENOTSOCK].contains(&number))
}

/// ICMP's port unreachable, in either version.
fn is_refusal(control: &ControlMessageOwned) -> bool {
    let (ControlMessageOwned::Ipv4RecvErr(error, _) | ControlMessageOwned::Ipv6RecvErr(error, _)) =
        control
    else {
        return false;
    };
    let is_of_the_network = [SO_EE_ORIGIN_ICMP, SO_EE_ORIGIN_ICMP6].contains(&error.ee_origin);
    is_of_the_network && i32::try_from(error.ee_errno) == Ok(ECONNREFUSED)
}

fn socket_address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = storage.as_sockaddr_in().map(|address| SocketAddr::V4((*address).into()));
    v4.or_else(|| storage.as_sockaddr_in6().map(|address| SocketAddr::V6((*address).into())))
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tokio's test macro blocks, on a thread of the test")]
mod tests {
    use std::future::poll_fn;
    use std::net::Ipv4Addr;
    use std::task::Waker;

    use futures_util::FutureExt;

    use super::*;

    fn bound() -> std::net::UdpSocket {
        std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket")
    }

    fn transmit(destination: SocketAddr) -> Transmit<'static> {
        Transmit { destination, ecn: None, contents: b"hello", segment_size: None, src_ip: None }
    }

    /// A socket, and an address where nobody listens.
    fn socket() -> (Arc<Socket>, Listening, SocketAddr) {
        let (socket, listening) = Socket::new(bound(), Arc::default()).expect("a socket");
        (socket, listening, bound().local_addr().expect("an address"))
    }

    /// Each message of the network is an error of the next call, and is about another peer.
    #[tokio::test]
    async fn a_datagram_gets_out_right_after_one_that_nobody_took() {
        let (socket, _listening, closed) = socket();
        let peer = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a peer");
        let live = transmit(peer.local_addr().expect("its address"));
        socket.io.writable().await.expect("room");
        for _ in 0..10 {
            socket.try_send(&transmit(closed)).expect("sent");
            socket.try_send(&live).expect("sent");
            let mut buffer = [0; 16];
            assert_eq!(peer.recv(&mut buffer).await.expect("a datagram"), b"hello".len());
        }
    }

    /// Or it would keep a core busy for good.
    #[tokio::test]
    async fn a_socket_that_only_fails_has_died_and_one_of_which_peers_are_gone_has_not() {
        let (socket, _listening, _) = socket();
        let here = socket.local_addr().expect("an address");
        bound().send_to(b"hello", here).expect("sent");
        socket.io.readable().await.expect("a datagram");
        let broken = || Err(io::Error::from_raw_os_error(EBADF));
        let died = poll_fn(|context| socket.poll_receiving(context, broken)).await;
        assert_eq!(died.map_err(|error| error.raw_os_error()), Err(Some(EBADF)));
        let mut errors = 0;
        let recovers = || {
            errors += 1;
            let refused = io::Error::from_raw_os_error(ECONNREFUSED);
            if errors < BATCH + 10 { Err(refused) } else { Ok(1) }
        };
        yield_now().await;
        let received = socket.poll_receiving(&mut Context::from_waker(Waker::noop()), recovers);
        assert!(matches!(received, Poll::Ready(Ok(1))));
    }

    /// The error that the network's message leaves in tokio is there for good. Whoever took it for
    /// room in the kernel's buffer would turn round and round as long as there is none.
    #[tokio::test]
    async fn a_full_socket_is_waited_for_although_the_network_has_spoken() {
        let (socket, _listening, closed) = socket();
        while !socket.io.ready(Interest::WRITABLE).await.expect("a state").is_write_closed() {
            socket.try_send(&transmit(closed)).expect("sent");
            yield_now().await;
        }
        let full = || Err::<(), _>(ErrorKind::WouldBlock.into());
        socket.io.try_io(Interest::WRITABLE, full).expect_err("full, as it is told");
        socket.is_full.store(true, Ordering::Relaxed);
        let mut poller = socket.create_io_poller();
        let mut room = poll_fn(|context| poller.as_mut().poll_writable(context));
        assert!((&mut room).now_or_never().is_none(), "no room yet");
        room.await.expect("looked at again");
    }
}
