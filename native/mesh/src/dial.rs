//! From an address to a connection: its names are looked up, its addresses raced, and all of it
//! ends by one deadline.

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
        let server_name = address.server_name();
        let connect = |address| {
            let connecting = self
                .endpoint
                .connect(self.client.clone(), address, &server_name);
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
