//! The UDP socket of outgoing connections, and its rebuilding when it has died. One endpoint serves
//! many peers: one per dial costs a socket and a task each, and wedges a node in the end.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quinn::VarInt;
use quinn::{AsyncUdpSocket, ClientConfig, ConnectError, Connecting, ServerConfig};
use socket2::{Domain, Protocol, Socket, Type};

use crate::Error;
use crate::refusals::{Hints, Refusals};
use crate::reset::ResetKeys;
#[cfg(target_os = "linux")]
use crate::socket::Listening;

/// Nobody listens to what the network says.
#[cfg(not(target_os = "linux"))]
type Listening = ();

/// How long the last CONNECTION_CLOSE packets may take to leave. quinn keeps a closed connection
/// for three probe timeouts (RFC 9000, section 10.2), which nobody has to wait for.
const FAREWELL: Duration = Duration::from_millis(100);

pub(crate) struct Endpoint {
    buffer_bytes: usize,
    state: Mutex<State>,
    /// Beside the state, which is locked while a socket is bound.
    granted: Mutex<Granted>,
    refusals: Arc<Refusals>,
    /// Called when the socket was found dead.
    on_loss: Box<dyn Fn() + Send + Sync>,
}

/// The socket buffers that the kernel has granted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Granted {
    pub(crate) receive_bytes: usize,
    pub(crate) send_bytes: usize,
}

#[derive(Debug)]
enum State {
    /// No connection was wanted yet, or the socket has died.
    Unbound,
    Bound(Bound),
    Closed,
}

#[derive(Debug)]
struct Bound {
    endpoint: quinn::Endpoint,
    _listening: Listening,
}

impl Endpoint {
    /// Nothing is bound before the first dial. `on_loss` must not block.
    pub(crate) fn new(buffer_bytes: usize, on_loss: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            buffer_bytes,
            state: Mutex::new(State::Unbound),
            granted: Mutex::default(),
            refusals: Arc::default(),
            on_loss: Box::new(on_loss),
        }
    }

    /// Makes a connection, on a new socket if the old one has died.
    pub(crate) async fn connect(
        &self,
        config: ClientConfig,
        address: SocketAddr,
        server_name: &str,
    ) -> Result<quinn::Connection, Error> {
        let watched = self.refusals.watch(address);
        let connecting = self.begin(config, address, server_name)?;
        tokio::select! {
            biased;
            outcome = connecting => Ok(outcome?),
            () = watched.refused() => Err(Error::PortClosed),
        }
    }

    fn begin(
        &self,
        config: ClientConfig,
        address: SocketAddr,
        server_name: &str,
    ) -> Result<Connecting, Error> {
        let endpoint = self.bound()?;
        match endpoint.connect_with(config.clone(), address, server_name) {
            // quinn's driver ends on a socket error and only this tells.
            Err(ConnectError::EndpointStopping) => {
                self.discard(&endpoint);
                let endpoint = self.bound()?;
                Ok(endpoint.connect_with(config, address, server_name)?)
            }
            outcome => Ok(outcome?),
        }
    }

    /// Hints that the peer of `connection` is not there any more.
    pub(crate) fn hints(&self, connection: &quinn::Connection) -> Hints {
        self.refusals.hints(connection.remote_address())
    }

    /// Closes what is still open and waits a moment for the packets to leave.
    pub(crate) async fn close(&self) {
        let state = std::mem::replace(&mut *self.lock(), State::Closed);
        let State::Bound(Bound { endpoint, .. }) = state else {
            return;
        };
        endpoint.close(VarInt::from_u32(0), &[]);
        // A timeout is no failure: the peers time out too.
        tokio::time::timeout(FAREWELL, endpoint.wait_idle()).await.ok();
    }

    /// The buffers of the socket, or of the last one; nothing before the first dial.
    pub(crate) fn granted(&self) -> Granted {
        *self.granted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the socket is bound, if it is.
    pub(crate) fn local_address(&self) -> Option<SocketAddr> {
        match &*self.lock() {
            State::Bound(bound) => bound.endpoint.local_addr().ok(),
            State::Unbound | State::Closed => None,
        }
    }

    pub(crate) fn bound(&self) -> Result<quinn::Endpoint, Error> {
        let mut state = self.lock();
        match &*state {
            State::Bound(bound) => Ok(bound.endpoint.clone()),
            State::Closed => Err(Error::PoolClosed),
            State::Unbound => {
                let (bound, granted) = bind(self.buffer_bytes, &self.refusals)?;
                *self.granted.lock().unwrap_or_else(PoisonError::into_inner) = granted;
                let endpoint = bound.endpoint.clone();
                *state = State::Bound(bound);
                Ok(endpoint)
            }
        }
    }

    /// Gives a dead socket up, unless somebody else has done so already.
    fn discard(&self, dead: &quinn::Endpoint) {
        let is_first = {
            let mut state = self.lock();
            let is_there = matches!(&*state, State::Bound(bound) if is_same(&bound.endpoint, dead));
            if is_there {
                *state = State::Unbound;
            }
            is_there
        };
        if is_first {
            (self.on_loss)();
        }
    }

    /// A std mutex, because nothing awaits inside.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Two sockets alive at the same time have two ports.
fn is_same(one: &quinn::Endpoint, other: &quinn::Endpoint) -> bool {
    one.local_addr().ok() == other.local_addr().ok()
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint").field("state", &self.state).finish_non_exhaustive()
    }
}

/// The socket of outgoing connections: at no address in particular, and of both families, if this
/// machine has both.
fn bind(buffer_bytes: usize, refusals: &Arc<Refusals>) -> Result<(Bound, Granted), Error> {
    let open = |address| {
        let (socket, granted) = open(address, buffer_bytes)?;
        let (socket, listening) = listen(socket, refusals.clone())?;
        // Nobody looks for a client again: its port is another one after a restart.
        let config = ResetKeys::fresh()?.endpoint_config(address)?;
        let runtime = runtime()?;
        let endpoint = quinn::Endpoint::new_with_abstract_socket(config, None, socket, runtime)?;
        Ok::<_, Error>((Bound { endpoint, _listening: listening }, granted))
    };
    open((Ipv6Addr::UNSPECIFIED, 0).into()).or_else(|_| open((Ipv4Addr::UNSPECIFIED, 0).into()))
}

#[cfg(target_os = "linux")]
fn listen(
    socket: UdpSocket,
    refusals: Arc<Refusals>,
) -> io::Result<(Arc<dyn AsyncUdpSocket>, Listening)> {
    let (socket, listening) = crate::socket::Socket::new(socket, refusals)?;
    Ok((socket, listening))
}

/// What nobody tells elsewhere.
#[cfg(not(target_os = "linux"))]
fn listen(
    socket: UdpSocket,
    _refusals: Arc<Refusals>,
) -> io::Result<(Arc<dyn AsyncUdpSocket>, Listening)> {
    Ok((runtime()?.wrap_udp_socket(socket)?, ()))
}

/// A listening endpoint at `address`, which its peers know again by `keys`.
pub(crate) fn bind_server(
    address: SocketAddr,
    buffer_bytes: usize,
    server: ServerConfig,
    keys: &ResetKeys,
) -> Result<quinn::Endpoint, Error> {
    let (socket, _) = open(address, buffer_bytes)?;
    let config = keys.endpoint_config(socket.local_addr()?)?;
    Ok(quinn::Endpoint::new(config, Some(server), socket, runtime()?)?)
}

/// Whether this machine has sockets of both families, at any port.
pub(crate) fn has_both_families() -> bool {
    open((Ipv6Addr::UNSPECIFIED, 0).into(), 0).is_ok()
}

/// A socket at `address`. The unspecified IPv6 address stands for both families: IPv4 peers
/// appear there as mapped addresses (RFC 3493, section 3.7).
fn open(address: SocketAddr, buffer_bytes: usize) -> io::Result<(UdpSocket, Granted)> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.bind(&address.into())?;
    // The kernel grants what its limits allow, and a smaller buffer still works.
    socket.set_recv_buffer_size(buffer_bytes).ok();
    socket.set_send_buffer_size(buffer_bytes).ok();
    let granted = Granted {
        receive_bytes: socket.recv_buffer_size().unwrap_or_default(),
        send_bytes: socket.send_buffer_size().unwrap_or_default(),
    };
    Ok((socket.into(), granted))
}

fn runtime() -> io::Result<Arc<dyn quinn::Runtime>> {
    quinn::default_runtime().ok_or_else(|| ErrorKind::Unsupported.into())
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tokio's test macro blocks, on a thread of the test")]
mod tests {
    use super::*;

    /// Schedulers of the VM ask.
    #[tokio::test]
    async fn buffers_are_told_while_a_socket_is_bound() {
        let endpoint = Endpoint::new(65_536, || {});
        endpoint.bound().expect("a socket");
        let (told, asked) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let state = endpoint.lock();
            scope.spawn(|| told.send(endpoint.granted().send_bytes > 0));
            let answer = asked.recv_timeout(Duration::from_secs(10));
            drop(state);
            assert_eq!(answer, Ok(true));
        });
    }
}
