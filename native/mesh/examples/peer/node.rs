//! The node: its UDP socket, its open connections, and the mode that new ones get.

use std::collections::HashMap;
use std::error::Error;
use std::fs::File;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quinn::crypto::rustls::QuicServerConfig;
use quinn::{
    Connection, ConnectionError, Endpoint, EndpointConfig, Incoming, ServerConfig, TokioRuntime,
    TransportConfig, VarInt,
};
use rustls::pki_types::CertificateDer;
use socket2::{Domain, Protocol, Socket, Type};

use crate::args::Args;
use crate::behaviour::{self, Mode};
use crate::tally::{Ending, Tally};
use crate::tls;

/// What is asked of the kernel, in each direction; it may grant less. The system's usual 208 KiB
/// loses thousands of packets under load.
const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;
/// What nodes in the field grant.
const UNI_STREAMS: VarInt = VarInt::from_u32(3);
/// Small, so that a slow reader soon holds up the sender: per stream, and over all of a connection.
const SLOW_WINDOW_BYTES: VarInt = VarInt::from_u32(64 * 1024);

/// All that commands and connections share.
pub(crate) struct Node {
    pub(crate) tally: Arc<Tally>,
    // Std mutexes: nothing awaits inside.
    mode: Mutex<Mode>,
    /// By quinn's stable id, which is unique among the living.
    connections: Mutex<HashMap<usize, Connection>>,
    /// What the newest connection presented, DER.
    certificate: Mutex<Option<Vec<u8>>>,
}

/// How connections are accepted: as usual, or with small windows for a slow reader.
pub(crate) struct Profiles {
    usual: Arc<ServerConfig>,
    slow: Arc<ServerConfig>,
}

impl Profiles {
    /// Reads or makes the certificate.
    pub(crate) fn new(args: &Args) -> Result<Self, Box<dyn Error>> {
        let tls = tls::server_config(args)?;
        let mut slow = transport(args);
        slow.stream_receive_window(SLOW_WINDOW_BYTES).receive_window(SLOW_WINDOW_BYTES);
        Ok(Self { usual: profile(&tls, transport(args)), slow: profile(&tls, slow) })
    }

    fn of(&self, mode: Mode) -> &Arc<ServerConfig> {
        match mode {
            Mode::Slow(_) => &self.slow,
            _ => &self.usual,
        }
    }
}

/// Opens the UDP socket, within a runtime.
pub(crate) fn bind(args: &Args, profiles: &Profiles) -> Result<Endpoint, Box<dyn Error>> {
    let address = SocketAddr::new(args.address, args.port);
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.set_send_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.bind(&address.into()).map_err(|error| format!("{address}: {error}"))?;
    Ok(Endpoint::new(
        EndpointConfig::default(),
        Some(ServerConfig::clone(&profiles.usual)),
        socket.into(),
        Arc::new(TokioRuntime),
    )?)
}

fn profile(tls: &Arc<QuicServerConfig>, transport: TransportConfig) -> Arc<ServerConfig> {
    let mut config = ServerConfig::with_crypto(tls.clone());
    config.transport_config(Arc::new(transport));
    Arc::new(config)
}

fn transport(args: &Args) -> TransportConfig {
    let mut transport = TransportConfig::default();
    // RFC 9000, section 18.2: an idle timeout of 0 is none.
    let idle_timeout = VarInt::from_u32(args.idle_timeout_ms);
    let keep_alive = Some(args.keep_alive).filter(|interval| !interval.is_zero());
    transport
        .max_concurrent_bidi_streams(args.bidi_streams.into())
        .max_concurrent_uni_streams(UNI_STREAMS)
        .max_idle_timeout(Some(idle_timeout.into()))
        .keep_alive_interval(keep_alive);
    transport
}

impl Node {
    /// A node that nobody has dialled yet.
    pub(crate) fn new(mode: Mode, log: Option<File>) -> Self {
        Self {
            tally: Arc::new(Tally::logging(log)),
            mode: Mutex::new(mode),
            connections: Mutex::default(),
            certificate: Mutex::default(),
        }
    }

    /// Sets the mode of connections that come from now on.
    pub(crate) fn set_mode(&self, mode: Mode) {
        *lock(&self.mode) = mode;
    }

    /// Closes all open connections with an application error code, and says how many.
    pub(crate) fn close_all(&self, code: VarInt) -> usize {
        let connections = lock(&self.connections);
        for connection in connections.values() {
            connection.close(code, b"");
        }
        connections.len()
    }

    /// What the newest connection presented, DER.
    pub(crate) fn certificate(&self) -> Option<Vec<u8>> {
        lock(&self.certificate).clone()
    }

    /// Accepts until the endpoint closes, a task per connection.
    pub(crate) async fn serve(self: Arc<Self>, endpoint: Endpoint, profiles: Profiles) {
        while let Some(incoming) = endpoint.accept().await {
            let mode = *lock(&self.mode);
            if mode == Mode::Refuse {
                incoming.refuse();
                self.tally.count(|counters| counters.handshakes_refused += 1);
                continue;
            }
            let profile = Arc::clone(profiles.of(mode));
            tokio::spawn(Arc::clone(&self).attend(incoming, profile, mode));
        }
    }

    /// One connection, from its first packet to its end.
    async fn attend(self: Arc<Self>, incoming: Incoming, profile: Arc<ServerConfig>, mode: Mode) {
        let Ok(connection) = accept(incoming, profile).await else {
            self.tally.count(|counters| counters.handshakes_refused += 1);
            return;
        };
        self.opened(&connection);
        let reason = behaviour::serve(&connection, mode, &self.tally).await;
        lock(&self.connections).remove(&connection.stable_id());
        self.tally.connection_ended(ending(&reason));
    }

    fn opened(&self, connection: &Connection) {
        let certificate = certificate(connection);
        let presented = u64::from(certificate.is_some());
        *lock(&self.certificate) = certificate;
        lock(&self.connections).insert(connection.stable_id(), connection.clone());
        self.tally.count(|counters| {
            counters.connections_opened += 1;
            counters.connections_open += 1;
            counters.client_certificates += presented;
        });
    }
}

async fn accept(
    incoming: Incoming,
    profile: Arc<ServerConfig>,
) -> Result<Connection, ConnectionError> {
    incoming.accept_with(profile)?.await
}

fn certificate(connection: &Connection) -> Option<Vec<u8>> {
    let identity = connection.peer_identity()?;
    let chain = identity.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    chain.first().map(|leaf| leaf.to_vec())
}

fn ending(reason: &ConnectionError) -> Ending {
    match reason {
        ConnectionError::ApplicationClosed(close) => {
            Ending::PeerApplication(close.error_code.into_inner())
        }
        ConnectionError::ConnectionClosed(_) | ConnectionError::Reset => Ending::PeerTransport,
        ConnectionError::TimedOut => Ending::Timeout,
        ConnectionError::LocallyClosed
        | ConnectionError::TransportError(_)
        | ConnectionError::VersionMismatch
        | ConnectionError::CidsExhausted => Ending::Local,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
