//! From an address to a connection: its names are looked up, its addresses raced, and all of it
//! ends by one deadline.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, TransportConfig};
use rustls::pki_types::ServerName;
use tokio::sync::Semaphore;
use tokio::time::{Duration, Instant, sleep, timeout_at};

use crate::Error;
use crate::address::{Address, Resolver, canonical};
use crate::endpoint::{Endpoint, Granted};
use crate::farewell::{self, IMPOSTOR};
use crate::handshake::Observed;
use crate::refusals::Hints;
use crate::settings::Settings;
use crate::tls;
use crate::verify::{Verdict, Verification};

/// The Connection Attempt Delay (RFC 8305, section 5): how long one address has a head start
/// over the next.
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Dials peers with one set of options.
#[derive(Debug)]
pub(crate) struct Dialer {
    /// Each peer's address has one of these.
    endpoint: Arc<Endpoint>,
    more_endpoints: Vec<Arc<Endpoint>>,
    resolver: Resolver,
    settings: Settings,
    tls: tls::Client,
    transport: Arc<TransportConfig>,
    turns: Semaphore,
    timeout: Duration,
}

impl Dialer {
    /// # Errors
    /// What is wrong with the identity or the roots of `settings`.
    pub(crate) fn new(
        endpoint: Arc<Endpoint>,
        resolver: Resolver,
        settings: Settings,
        max_dials: usize,
        timeout: Duration,
    ) -> Result<Self, Error> {
        let tls = tls::Client::new(&settings)?;
        let transport = Arc::new(settings.transport.quinn());
        Ok(Self {
            endpoint,
            more_endpoints: Vec::new(),
            resolver,
            settings,
            tls,
            transport,
            turns: Semaphore::new(max_dials),
            timeout,
        })
    }

    /// Spreads peers over more endpoints.
    pub(crate) fn with_more_endpoints(self, more_endpoints: Vec<Arc<Endpoint>>) -> Self {
        Self { more_endpoints, ..self }
    }

    /// A connection to `node` at `address`, by the deadline that begins now.
    pub(crate) async fn dial(
        &self,
        address: &Address,
        node: &[u8],
    ) -> Result<quinn::Connection, Error> {
        let deadline = Instant::now() + self.timeout;
        let verdict = Verdict::default();
        let dialled = timeout_at(deadline, self.attempt(address, node, &verdict)).await;
        // That somebody else answered at one address says more than that nobody did at another.
        dialled.unwrap_or_else(|_| Err(verdict.fault().map_or(Error::ConnectTimeout, Error::from)))
    }

    /// Whether who answers has to prove anything.
    pub(crate) fn verifies(&self) -> bool {
        !matches!(self.settings.verification, Verification::None)
    }

    /// The buffers of a socket that is bound.
    pub(crate) fn granted(&self) -> Granted {
        let bound = self.endpoints().map(Endpoint::granted);
        bound.max_by_key(|granted| granted.receive_bytes).unwrap_or_default()
    }

    /// Where we are on a connection of ours.
    pub(crate) fn local_address(&self, connection: &quinn::Connection) -> Option<SocketAddr> {
        let bound = self.endpoint(connection.remote_address()).local_address()?;
        let ip = connection.local_ip().unwrap_or_else(|| bound.ip());
        Some(canonical(SocketAddr::new(ip, bound.port())))
    }

    /// Hints that the peer of a connection of ours is not there any more.
    pub(crate) fn hints(&self, connection: &quinn::Connection) -> Hints {
        self.endpoint(connection.remote_address()).hints(connection)
    }

    /// Closes all connections.
    pub(crate) async fn close(&self) {
        join_all(self.endpoints().map(Endpoint::close)).await;
    }

    /// The endpoint for a peer's address, always the same one.
    fn endpoint(&self, address: SocketAddr) -> &Endpoint {
        let mut hasher = DefaultHasher::new();
        canonical(address).hash(&mut hasher);
        let count = u64::try_from(1 + self.more_endpoints.len()).unwrap_or(u64::MAX);
        let index = usize::try_from(hasher.finish() % count).unwrap_or_default();
        self.endpoints().nth(index).unwrap_or(&self.endpoint)
    }

    fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        std::iter::once(&self.endpoint).chain(&self.more_endpoints).map(|endpoint| &**endpoint)
    }

    async fn attempt(
        &self,
        address: &Address,
        node: &[u8],
        verdict: &Verdict,
    ) -> Result<quinn::Connection, Error> {
        // Before its turn: who waits for a name server keeps nobody from dialling an address.
        let addresses = self.resolver.resolve(address).await?;
        let _turn = self.turns.acquire().await.map_err(|_| Error::Cancelled)?;
        let server_name = match &self.settings.server_name {
            Some(name) => Some(name.clone()),
            None => Some(address.server_name()).filter(|name| self.needs_name() || is_valid(name)),
        };
        self.race(addresses, server_name.as_deref(), node, verdict).await
    }

    /// Whether the certificate has to be of the host's name.
    fn needs_name(&self) -> bool {
        matches!(self.settings.verification, Verification::Peer { check_name: true, .. })
    }

    /// The configuration of one dial: each learns for itself why it was refused.
    fn client_config(&self, verdict: Verdict) -> Result<ClientConfig, Error> {
        let tls = self.tls.config(verdict);
        let quic = QuicClientConfig::try_from(tls).map_err(|_| Error::Cancelled)?;
        let mut client = ClientConfig::new(Arc::new(Observed(Arc::new(quic))));
        client.transport_config(self.transport.clone());
        Ok(client)
    }

    /// A connection to a node, of which this is the name and the id, at one of its addresses. Without
    /// a name, none is indicated.
    async fn connect(
        &self,
        config: ClientConfig,
        address: SocketAddr,
        (server_name, node): (Option<&str>, &[u8]),
        verdict: &Verdict,
    ) -> Result<quinn::Connection, Error> {
        let server_name = server_name.map_or_else(|| address.ip().to_string(), str::to_owned);
        let connection = self.endpoint(address).connect(config, address, &server_name).await?;
        if let Verification::Key(rule) = self.settings.verification {
            // Before anything is sent: whoever it is, it learns nothing from us.
            if let Err(fault) = rule.check_server(&connection, node) {
                farewell::close(&connection, IMPOSTOR);
                verdict.set(fault);
                return Err(fault.into());
            }
        }
        Ok(connection)
    }

    /// The first connection that any of `addresses` gives, each tried a little after the one
    /// before it, or at once when that one has failed.
    async fn race(
        &self,
        addresses: Vec<SocketAddr>,
        server_name: Option<&str>,
        node: &[u8],
        verdict: &Verdict,
    ) -> Result<quinn::Connection, Error> {
        let config = self.client_config(verdict.clone())?;
        let connect = |address| self.connect(config.clone(), address, (server_name, node), verdict);
        let mut addresses = addresses.into_iter();
        let mut attempts = FuturesUnordered::new();
        let is_own = |error: &_| matches!(error, Error::NameNotFound | Error::Socket(_));
        let mut last = Error::NameNotFound;
        loop {
            attempts.extend(addresses.next().map(connect));
            let more = addresses.len() > 0;
            tokio::select! {
                outcome = attempts.next() => match outcome {
                    Some(Ok(connection)) => return Ok(connection),
                    // That nobody is at one address says nothing of who has answered at another.
                    Some(Err(Error::PortClosed)) if !is_own(&last) => {}
                    Some(Err(error)) => last = verdict.fault().map_or(error, Error::from),
                    None => return Err(last),
                },
                () = sleep(ATTEMPT_DELAY), if more => {}
            }
        }
    }
}

/// Whether TLS takes it for a server name: a host's name need not be one, as `node.1` is not.
fn is_valid(name: &str) -> bool {
    ServerName::try_from(name).is_ok()
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tokio's test macro blocks, on a thread of the test")]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
    use std::pin::pin;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::FutureExt;
    use tokio::time::timeout;

    use super::*;
    use crate::broken::break_socket;
    use crate::field;
    use crate::verify::{KeyRule, PeerIdentity};

    fn dialer(connect_timeout_ms: u64) -> Dialer {
        dialer_with(connect_timeout_ms, || {})
    }

    fn dialer_with(connect_timeout_ms: u64, on_loss: impl Fn() + Send + Sync + 'static) -> Dialer {
        let endpoint = Arc::new(Endpoint::new(65_536, on_loss));
        let timeout = Duration::from_millis(connect_timeout_ms);
        Dialer::new(endpoint, Resolver::new(), Settings::default(), 1, timeout).expect("a dialer")
    }

    /// What a peer grants.
    const STREAMS: u32 = 100;

    /// A peer that accepts every connection, for as long as it is kept.
    fn peer() -> quinn::Endpoint {
        let (endpoint, _) = field::server(tls::ALPN, STREAMS);
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
        let connection =
            dialer(60_000).race(vec![silent, live], None, &[], &Verdict::default()).await;
        assert_eq!(connection.expect("a connection").remote_address().port(), live.port());
    }

    #[tokio::test]
    async fn the_deadline_fires_when_no_address_answers() {
        let (_socket, silent) = silent();
        let outcome = dialer(50).dial(&Address::from(silent), &[]).await;
        assert_eq!(outcome.err(), Some(Error::ConnectTimeout));
    }

    #[tokio::test]
    async fn a_turn_that_never_comes_is_bounded_by_the_deadline() {
        let dialer = dialer(100);
        let _turn = dialer.turns.acquire().await.expect("the only turn");
        let peer = peer();
        let live = Address::from(peer.local_addr().expect("an address"));
        assert_eq!(dialer.dial(&live, &[]).await.err(), Some(Error::ConnectTimeout));
    }

    #[tokio::test]
    async fn who_has_no_turn_is_not_dialled() {
        let dialer = dialer(60_000);
        let (peer, (_socket, silent)) = (peer(), silent());
        let live = Address::from(peer.local_addr().expect("an address"));
        let silent = Address::from(silent);
        let mut first = pin!(dialer.dial(&silent, &[]));
        assert!(first.as_mut().now_or_never().is_none());
        assert_eq!(dialer.turns.available_permits(), 0);
        let mut second = pin!(dialer.dial(&live, &[]));
        // It would take a few milliseconds.
        let early = timeout(Duration::from_millis(50), async {
            tokio::select! {
                _ = &mut first => unreachable!("nobody answers"),
                _ = &mut second => {}
            }
        });
        assert!(early.await.is_err(), "two at once");
        assert_eq!(peer.open_connections(), 0);
        first.set(dialer.dial(&silent, &[]));
        assert!(second.await.is_ok());
    }

    #[tokio::test]
    async fn who_waits_for_a_name_has_no_turn() {
        let dialer = dialer(60_000);
        // As many as look names up at once: none of them ends.
        let _lookups = dialer.resolver.turns();
        let (named, peer) = (Address::new("localhost", 1).expect("a name"), peer());
        let mut first = pin!(dialer.dial(&named, &[]));
        assert!(first.as_mut().now_or_never().is_none());
        let live = Address::from(peer.local_addr().expect("an address"));
        assert!(dialer.dial(&live, &[]).await.is_ok());
        assert!(first.now_or_never().is_none());
    }

    #[tokio::test]
    async fn another_node_at_one_address_does_not_hide_the_right_one_at_the_next() {
        let (wrong, right) = (peer(), peer());
        let addresses = [&wrong, &right].map(|peer| peer.local_addr().expect("an address"));
        let any = dialer(60_000).dial(&addresses[1].into(), &[]).await.expect("a connection");
        let hash = PeerIdentity::of(&any).expect("a certificate").spki_sha256;
        let verification = Verification::Key(KeyRule::SpkiSha256(hash));
        let settings = Settings { verification, ..Settings::default() };
        let endpoint = Arc::new(Endpoint::new(65_536, || {}));
        let patience = Duration::from_secs(60);
        let dialer =
            Dialer::new(endpoint, Resolver::new(), settings, 1, patience).expect("a dialer");
        let dialled = dialer
            .race(addresses.to_vec(), None, &[], &Verdict::default())
            .await
            .expect("the right one");
        assert_eq!(canonical(dialled.remote_address()), addresses[1]);
    }

    #[tokio::test]
    async fn a_dead_socket_is_told_of_once_and_rebuilt() {
        let peer = peer();
        let live = Address::from(peer.local_addr().expect("an address"));
        let losses = Arc::new(AtomicUsize::new(0));
        let counter = losses.clone();
        let dialer = dialer_with(5_000, move || {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        let first = dialer.dial(&live, &[]).await.expect("a connection");
        break_socket(&dialer.endpoint.bound().expect("the endpoint"));
        first.closed().await;
        for _ in 0..2 {
            assert!(dialer.dial(&live, &[]).await.is_ok());
        }
        assert_eq!(losses.load(Ordering::Relaxed), 1);
    }

    /// An address of this machine where nobody listens.
    fn closed(ip: IpAddr) -> SocketAddr {
        let socket = UdpSocket::bind((ip, 0)).expect("a socket");
        socket.local_addr().expect("its address")
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_closed_port_is_refused_of_either_family() {
        let dialer = dialer(60_000);
        for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)] {
            let closed = Address::from(closed(ip));
            assert_eq!(dialer.dial(&closed, &[]).await.err(), Some(Error::PortClosed), "{ip}");
        }
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_closed_port_is_told_though_this_machine_could_not_dial_another_address() {
        let nowhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let addresses = vec![nowhere, closed(Ipv4Addr::LOCALHOST.into())];
        let dialled = dialer(60_000).race(addresses, None, &[], &Verdict::default()).await;
        assert_eq!(dialled.err(), Some(Error::PortClosed));
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_refused_address_makes_room_for_the_next_at_once() {
        let peer = peer();
        let live = peer.local_addr().expect("an address");
        let port = closed(Ipv4Addr::LOCALHOST.into()).port();
        // With a head start each, these alone would take 50 seconds.
        let mut addresses: Vec<_> =
            (0..200).map(|n| SocketAddr::from(([127, 0, 0, n + 1], port))).collect();
        addresses.push(live);
        let dialer = dialer(60_000);
        let connection = timeout(
            Duration::from_secs(20),
            dialer.race(addresses, None, &[], &Verdict::default()),
        )
        .await;
        let connection = connection.expect("no head starts").expect("a connection");
        assert_eq!(connection.remote_address().port(), live.port());
    }

    /// Passes datagrams on between one client and `peer`, and has its front door for a while.
    async fn relay(front: tokio::net::UdpSocket, back: &tokio::net::UdpSocket, peer: SocketAddr) {
        let mut client = None;
        let (mut out, mut home) = ([0; 65_536], [0; 65_536]);
        loop {
            tokio::select! {
                Ok((bytes, from)) = front.recv_from(&mut out) => {
                    client = Some(from);
                    back.send_to(&out[..bytes], peer).await.ok();
                }
                Ok(bytes) = back.recv(&mut home) => if let Some(client) = client {
                    front.send_to(&home[..bytes], client).await.ok();
                },
            }
        }
    }

    /// While the port is closed, the network says of each datagram that nobody is there: a message
    /// that anybody on the way can forge, and no reason to give a connection up.
    #[tokio::test]
    async fn a_connection_outlives_a_moment_in_which_its_port_is_closed() {
        let peer = peer();
        let live = peer.local_addr().expect("an address");
        let local = (Ipv4Addr::LOCALHOST, 0);
        let back = tokio::net::UdpSocket::bind(local).await.expect("a socket");
        let front = tokio::net::UdpSocket::bind(local).await.expect("a socket");
        let place = front.local_addr().expect("its address");
        let (dialer, address) = (dialer(60_000), Address::from(place));
        let dialled = async {
            let connection = dialer.dial(&address, &[]).await.expect("a connection");
            let mut stream = connection.open_uni().await.expect("a stream");
            stream.finish().expect("open");
            assert_eq!(stream.stopped().await, Ok(None), "the handshake is over for both");
            connection
        };
        let dialled = tokio::select! {
            () = relay(front, &back, live) => unreachable!("it never ends"),
            dialled = dialled => dialled,
        };
        let mut stream = dialled.open_uni().await.expect("a stream");
        stream.write_all(b"into the void").await.expect("room");
        stream.finish().expect("open");
        // Sent, answered by the network alone, and so sent again.
        let sent = dialled.stats().udp_tx.datagrams;
        while dialled.stats().udp_tx.datagrams < sent + 4 {
            assert_eq!(dialled.close_reason(), None);
            sleep(Duration::from_millis(1)).await;
        }
        let front = tokio::net::UdpSocket::bind(place).await.expect("the port again");
        tokio::select! {
            () = relay(front, &back, live) => unreachable!("it never ends"),
            stopped = stream.stopped() => assert_eq!(stopped, Ok(None), "delivered"),
        }
    }

    #[tokio::test]
    async fn the_peer_s_transport_parameters_are_known() {
        let peer = peer();
        let live = Address::from(peer.local_addr().expect("an address"));
        let connection = dialer(5_000).dial(&live, &[]).await.expect("a connection");
        let parameters = crate::handshake::PeerParameters::of(&connection);
        assert_eq!(parameters.bidi_streams, u64::from(STREAMS));
        // quinn's default.
        assert_eq!(parameters.idle_timeout, Some(Duration::from_secs(30)));
    }
}
