//! From an address to a connection: its names are looked up, its addresses raced, and all of it
//! ends by one deadline.

use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, IdleTimeout, TransportConfig, VarInt};
use tokio::sync::Semaphore;
use tokio::time::{Duration, Instant, sleep, timeout_at};

use crate::address::{Address, Resolver};
use crate::endpoint::Endpoint;
use crate::handshake::Observed;
use crate::tls::{self, Identity};
use crate::{Config, Error};

/// The Connection Attempt Delay (RFC 8305, section 5): how long one address has a head start
/// over the next.
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// Bidirectional streams that a peer may open towards us: none, since answers come on streams of
/// our own, and quinn keeps memory for each stream that is allowed.
const PEER_BIDI_STREAMS: u32 = 0;
/// Unidirectional streams that a peer may open towards us: what nodes in the field count on.
const PEER_UNI_STREAMS: u32 = 3;
/// Bytes of all streams of one connection that a peer may send before we have read them: memory
/// that it may pin here.
pub(crate) const RECEIVE_WINDOW: u32 = 8 * 1024 * 1024;

/// Dials peers through one endpoint.
#[derive(Debug)]
pub(crate) struct Dialer {
    endpoint: Endpoint,
    resolver: Resolver,
    client: ClientConfig,
    turns: Semaphore,
    timeout: Duration,
}

impl Dialer {
    pub(crate) fn new(config: &Config, identity: Option<Identity>) -> Result<Self, Error> {
        Ok(Self {
            endpoint: Endpoint::new(config.udp_buffer_bytes()),
            resolver: Resolver::new(),
            client: client_config(config, identity)?,
            turns: Semaphore::new(config.max_concurrent_dials()),
            timeout: config.connect_timeout(),
        })
    }

    /// A connection to `address`, by the deadline that begins now.
    pub(crate) async fn dial(&self, address: &Address) -> Result<quinn::Connection, Error> {
        let deadline = Instant::now() + self.timeout;
        timeout_at(deadline, self.attempt(address))
            .await
            .unwrap_or(Err(Error::ConnectTimeout))
    }

    /// Closes all connections.
    pub(crate) async fn close(&self) {
        self.endpoint.close().await;
    }

    async fn attempt(&self, address: &Address) -> Result<quinn::Connection, Error> {
        let _turn = self.turns.acquire().await.map_err(|_| Error::Cancelled)?;
        let addresses = self.resolver.resolve(address).await?;
        self.race(addresses, &address.server_name()).await
    }

    /// The first connection that any of `addresses` gives, each tried a little after the one
    /// before it, or at once when that one has failed.
    async fn race(
        &self,
        addresses: Vec<SocketAddr>,
        server_name: &str,
    ) -> Result<quinn::Connection, Error> {
        let connect = |address| {
            let connecting = self
                .endpoint
                .connect(self.client.clone(), address, server_name);
            async move { Ok::<_, Error>(connecting?.await?) }
        };
        let mut addresses = addresses.into_iter();
        let mut attempts = FuturesUnordered::new();
        let mut last = Error::NameNotFound;
        loop {
            attempts.extend(addresses.next().map(connect));
            let more = addresses.len() > 0;
            tokio::select! {
                outcome = attempts.next() => match outcome {
                    Some(Ok(connection)) => return Ok(connection),
                    Some(Err(error)) => last = error,
                    None => return Err(last),
                },
                () = sleep(ATTEMPT_DELAY), if more => {}
            }
        }
    }
}

fn client_config(config: &Config, identity: Option<Identity>) -> Result<ClientConfig, Error> {
    let tls = tls::client_config(identity).map_err(|_| Error::Cancelled)?;
    let quic = QuicClientConfig::try_from(tls).map_err(|_| Error::Cancelled)?;
    let mut client = ClientConfig::new(Arc::new(Observed(Arc::new(quic))));
    client.transport_config(Arc::new(transport(config)));
    Ok(client)
}

fn transport(config: &Config) -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(IdleTimeout::try_from(config.idle_timeout()).ok())
        .keep_alive_interval(config.keep_alive_interval())
        .max_concurrent_bidi_streams(VarInt::from_u32(PEER_BIDI_STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(PEER_UNI_STREAMS))
        .receive_window(VarInt::from_u32(RECEIVE_WINDOW))
        .datagram_receive_buffer_size(None);
    transport
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::net::{Ipv4Addr, UdpSocket};
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use quinn::crypto::rustls::QuicServerConfig;
    use quinn::udp::{RecvMeta, Transmit};
    use quinn::{AsyncUdpSocket, UdpPoller};
    use rustls::pki_types::PrivatePkcs8KeyDer;

    use super::*;

    fn dialer(connect_timeout_ms: u64) -> Dialer {
        let mut config = Config::default();
        config
            .set("connect_timeout_ms", connect_timeout_ms)
            .expect("a timeout");
        Dialer::new(&config, None).expect("a dialer")
    }

    /// A peer that accepts every connection, for as long as it is kept.
    fn peer() -> quinn::Endpoint {
        let certified = rcgen::generate_simple_self_signed(["peer".into()]).expect("a certificate");
        let key = PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key.into())
            .expect("a server");
        tls.alpn_protocols = vec![tls::ALPN.to_vec()];
        let quic = QuicServerConfig::try_from(tls).expect("a QUIC server");
        let config = quinn::ServerConfig::with_crypto(Arc::new(quic));
        let endpoint = quinn::Endpoint::server(config, (Ipv4Addr::LOCALHOST, 0).into());
        let endpoint = endpoint.expect("an endpoint");
        let accepting = endpoint.clone();
        tokio::spawn(async move {
            while let Some(incoming) = accepting.accept().await {
                tokio::spawn(async move {
                    if let Ok(connection) = incoming.await {
                        connection.closed().await;
                    }
                });
            }
        });
        endpoint
    }

    /// A socket that never answers, for as long as it is kept.
    fn silent() -> (UdpSocket, SocketAddr) {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
        let address = socket.local_addr().expect("its address");
        (socket, address)
    }

    #[tokio::test]
    async fn a_silent_address_does_not_keep_the_next_one_from_winning() {
        let peer = peer();
        let (_socket, silent) = silent();
        let live = peer.local_addr().expect("an address");
        let connection = dialer(60_000).race(vec![silent, live], "peer").await;
        assert_eq!(
            connection.expect("a connection").remote_address().port(),
            live.port()
        );
    }

    #[tokio::test]
    async fn the_deadline_fires_when_no_address_answers() {
        let (_socket, silent) = silent();
        let outcome = dialer(50).dial(&Address::from(silent)).await;
        assert_eq!(outcome.err(), Some(Error::ConnectTimeout));
    }

    #[tokio::test]
    async fn a_turn_that_never_comes_is_bounded_by_the_deadline() {
        let mut config = Config::default();
        config.set("max_concurrent_dials", 1).expect("a limit");
        config.set("connect_timeout_ms", 100).expect("a timeout");
        let dialer = Dialer::new(&config, None).expect("a dialer");
        let _turn = dialer.turns.acquire().await.expect("the only turn");
        let peer = peer();
        let live = Address::from(peer.local_addr().expect("an address"));
        assert_eq!(dialer.dial(&live).await.err(), Some(Error::ConnectTimeout));
    }

    /// A socket that fails as one whose network device has gone.
    #[derive(Debug)]
    struct Broken;

    impl AsyncUdpSocket for Broken {
        fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
            Box::pin(Broken)
        }

        fn try_send(&self, _: &Transmit<'_>) -> io::Result<()> {
            Err(io::ErrorKind::NetworkDown.into())
        }

        fn poll_recv(
            &self,
            _: &mut Context<'_>,
            _: &mut [io::IoSliceMut<'_>],
            _: &mut [RecvMeta],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Err(io::ErrorKind::NetworkDown.into()))
        }

        fn local_addr(&self) -> io::Result<SocketAddr> {
            Ok((Ipv4Addr::LOCALHOST, 0).into())
        }
    }

    impl UdpPoller for Broken {
        fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn the_socket_is_rebuilt_after_its_driver_has_ended() {
        let peer = peer();
        let live = Address::from(peer.local_addr().expect("an address"));
        let dialer = dialer(5_000);
        let first = dialer.dial(&live).await.expect("a connection");
        let bound = dialer.endpoint.bound().expect("the endpoint");
        bound
            .rebind_abstract(Arc::new(Broken))
            .expect("another socket");
        drop(bound);
        first.closed().await;
        assert!(dialer.dial(&live).await.is_ok());
    }

    #[tokio::test]
    async fn the_peer_s_transport_parameters_are_known() {
        let peer = peer();
        let live = Address::from(peer.local_addr().expect("an address"));
        let connection = dialer(5_000).dial(&live).await.expect("a connection");
        let parameters = crate::handshake::PeerParameters::of(&connection);
        // quinn's defaults: 100 streams and 30 seconds.
        assert_eq!(parameters.bidi_streams, 100);
        assert_eq!(parameters.idle_timeout, Some(Duration::from_secs(30)));
    }
}
