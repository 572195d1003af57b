//! The UDP socket of all outgoing connections, and its rebuilding when it has died. One endpoint
//! for all peers: one per dial costs a socket and a task each, and wedges a node in the end.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quinn::{ClientConfig, ConnectError, Connecting, EndpointConfig, ServerConfig, VarInt};
use socket2::{Domain, Protocol, Socket, Type};

use crate::Error;

/// How long the last CONNECTION_CLOSE packets may take to leave. quinn keeps a closed connection
/// for three probe timeouts (RFC 9000, section 10.2), which nobody has to wait for.
const FAREWELL: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(crate) struct Endpoint {
    buffer_bytes: usize,
    state: Mutex<State>,
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
    Bound(quinn::Endpoint, Granted),
    Closed,
}

impl Endpoint {
    /// Nothing is bound before the first dial.
    pub(crate) fn new(buffer_bytes: usize) -> Self {
        Self { buffer_bytes, state: Mutex::new(State::Unbound) }
    }

    /// Begins a handshake, on a new socket if the old one has died.
    pub(crate) fn connect(
        &self,
        config: ClientConfig,
        address: SocketAddr,
        server_name: &str,
    ) -> Result<Connecting, Error> {
        let endpoint = self.bound()?;
        match endpoint.connect_with(config.clone(), address, server_name) {
            // quinn's driver ends on a socket error and only this tells.
            Err(ConnectError::EndpointStopping) => {
                self.discard();
                let endpoint = self.bound()?;
                Ok(endpoint.connect_with(config, address, server_name)?)
            }
            outcome => Ok(outcome?),
        }
    }

    /// Closes what is still open and waits a moment for the packets to leave.
    pub(crate) async fn close(&self) {
        let state = std::mem::replace(&mut *self.lock(), State::Closed);
        let State::Bound(endpoint, _) = state else {
            return;
        };
        endpoint.close(VarInt::from_u32(0), &[]);
        // A timeout is no failure: the peers time out too.
        tokio::time::timeout(FAREWELL, endpoint.wait_idle()).await.ok();
    }

    /// The socket's buffers; nothing before the first dial.
    pub(crate) fn granted(&self) -> Granted {
        match &*self.lock() {
            State::Bound(_, granted) => *granted,
            State::Unbound | State::Closed => Granted::default(),
        }
    }

    /// Where the socket is bound, if it is.
    pub(crate) fn local_address(&self) -> Option<SocketAddr> {
        match &*self.lock() {
            State::Bound(endpoint, _) => endpoint.local_addr().ok(),
            State::Unbound | State::Closed => None,
        }
    }

    pub(crate) fn bound(&self) -> Result<quinn::Endpoint, Error> {
        let mut state = self.lock();
        match &*state {
            State::Bound(endpoint, _) => Ok(endpoint.clone()),
            State::Closed => Err(Error::PoolClosed),
            State::Unbound => {
                let (endpoint, granted) = bind(self.buffer_bytes)?;
                *state = State::Bound(endpoint.clone(), granted);
                Ok(endpoint)
            }
        }
    }

    fn discard(&self) {
        let mut state = self.lock();
        if matches!(*state, State::Bound(..)) {
            *state = State::Unbound;
        }
    }

    /// A std mutex, because nothing awaits inside.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bind(buffer_bytes: usize) -> io::Result<(quinn::Endpoint, Granted)> {
    bind_at((Ipv6Addr::UNSPECIFIED, 0).into(), buffer_bytes, None)
        .or_else(|_| bind_at((Ipv4Addr::UNSPECIFIED, 0).into(), buffer_bytes, None))
}

/// An endpoint at `address`. The unspecified IPv6 address stands for both families: IPv4 peers
/// appear there as mapped addresses (RFC 3493, section 3.7).
pub(crate) fn bind_at(
    address: SocketAddr,
    buffer_bytes: usize,
    server: Option<ServerConfig>,
) -> io::Result<(quinn::Endpoint, Granted)> {
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
    let runtime = quinn::default_runtime().ok_or(io::ErrorKind::Unsupported)?;
    let config = EndpointConfig::default();
    Ok((quinn::Endpoint::new(config, server, socket.into(), runtime)?, granted))
}
