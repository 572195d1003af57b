//! A connection of a caller's own, dialled or accepted. Its task takes in the streams that the
//! peer opens, keeps it alive and notices its end.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quinn::VarInt;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::address::{Address, Resolver, canonical};
use crate::budget::Budget;
use crate::byte_stream::{ByteStream, Ends, Reader};
use crate::dial::Dialer;
use crate::endpoint::Endpoint;
use crate::farewell;
use crate::handshake::PeerParameters;
use crate::joined::{self, MESH_ALPN, MessageReader};
use crate::keep_alive::keep_alive;
use crate::rendezvous::{Rendezvous, Request, RequestId, Waiter};
use crate::retirements::bound_retirements;
use crate::scope::Scope;
use crate::settings::{Settings, Transport};
use crate::stream::Stream;
use crate::unfinished::Room;
use crate::verify::PeerIdentity;
use crate::{Config, Error};

/// How long after the peer has closed a connection its streams may be asked for that had arrived
/// before: until then they hold memory, the socket and the client's place.
const REMAINS_TIME: Duration = Duration::from_secs(5);

/// A handle to a connection.
#[derive(Clone, Debug)]
pub struct Connection(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Nothing once the connection has ended, so that a forgotten handle keeps no socket open.
    carrier: Mutex<Option<quinn::Connection>>,
    streams: Rendezvous<Stream>,
    ended: watch::Receiver<Option<Error>>,
    facts: Facts,
    budget: Arc<Budget>,
    scope: Arc<Scope>,
    max_frame_bytes: usize,
    /// Unidirectional streams that the peer may have under way at once, when they carry messages.
    message_streams: usize,
    unfinished: Arc<Room>,
}

/// What is settled by the handshake.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Where the peer was at the time.
    pub remote: SocketAddr,
    /// Where we are; the address as far as the system tells.
    pub local: SocketAddr,
    /// The application protocol agreed on (RFC 7301).
    pub alpn: Vec<u8>,
    /// The name that a client asked for.
    pub server_name: Option<String>,
    /// Who the peer has shown itself to be.
    pub identity: Option<PeerIdentity>,
}

/// Counters of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// UDP datagrams sent.
    pub sent_datagrams: u64,
    /// Their payload bytes.
    pub sent_bytes: u64,
    /// UDP datagrams received.
    pub received_datagrams: u64,
    /// Their payload bytes.
    pub received_bytes: u64,
    /// Bytes queued for its streams and not yet handed to the stack.
    pub pending_bytes: usize,
}

impl Traffic {
    pub(crate) fn of(carrier: &quinn::Connection, pending_bytes: usize) -> Self {
        let stats = carrier.stats();
        Self {
            sent_datagrams: stats.udp_tx.datagrams,
            sent_bytes: stats.udp_tx.bytes,
            received_datagrams: stats.udp_rx.datagrams,
            received_bytes: stats.udp_rx.bytes,
            pending_bytes,
        }
    }
}

/// Dials connections of callers' own, all through one socket.
#[derive(Debug)]
pub struct Client {
    endpoint: Arc<Endpoint>,
    resolver: Resolver,
    scope: Arc<Scope>,
}

impl Client {
    /// Nothing is bound before the first dial.
    pub fn new(runtime: tokio::runtime::Handle) -> Self {
        let config = Config::default();
        Self {
            endpoint: Arc::new(Endpoint::new(config.udp_buffer_bytes(), || {})),
            resolver: Resolver::new(),
            scope: Arc::new(Scope::new(&config, runtime)),
        }
    }

    /// A connection to `address`, within `timeout`.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn connect(
        &self,
        address: &Address,
        settings: Settings,
        timeout: Duration,
    ) -> Result<Connection, Error> {
        let transport = settings.transport.clone();
        let (endpoint, resolver) = (self.endpoint.clone(), self.resolver.clone());
        let dialer = Dialer::new(endpoint, resolver, settings, 1, timeout)?;
        let carrier = dialer.dial(address, &[]).await?;
        let local = self.endpoint.local_address().ok_or(Error::Cancelled)?;
        let facts = Facts::of(&carrier, local);
        Ok(Connection::start(carrier, facts, self.scope.clone(), &transport, ()))
    }
}

impl Facts {
    /// Of a client's or a server's connection through a socket at `local`.
    pub(crate) fn of(carrier: &quinn::Connection, local: SocketAddr) -> Self {
        let ip = carrier.local_ip().unwrap_or_else(|| local.ip());
        let PeerParameters { alpn, server_name, .. } = PeerParameters::of(carrier);
        Self {
            remote: canonical(carrier.remote_address()),
            local: canonical(SocketAddr::new(ip, local.port())),
            alpn,
            server_name,
            identity: PeerIdentity::of(carrier),
        }
    }
}

impl Connection {
    /// Starts the connection's task; `lease` is dropped when that ends.
    pub(crate) fn start(
        carrier: quinn::Connection,
        facts: Facts,
        scope: Arc<Scope>,
        transport: &Transport,
        lease: impl Send + 'static,
    ) -> Self {
        let (end, ended) = watch::channel(None);
        let connection = Self(Arc::new(Inner {
            carrier: Mutex::new(Some(carrier.clone())),
            streams: Rendezvous::new(transport.max_streams()),
            ended,
            facts,
            budget: scope.connection_budget(),
            max_frame_bytes: transport.max_frame_bytes(),
            message_streams: transport.message_streams(),
            unfinished: Room::new(transport.max_unfinished_bytes()),
            scope,
        }));
        let (own, receive_window) = (transport.keep_alive_interval(), transport.receive_window());
        let task = connection.clone();
        connection.0.scope.tasks.spawn(async move {
            let error = tokio::select! {
                error = task.take_in(&carrier) => error,
                never = keep_alive(&carrier, own, receive_window) => match never {},
                never = bound_retirements(&carrier) => match never {},
            };
            drop(carrier);
            task.lock().take();
            let streams = &task.0.streams;
            streams.end();
            if matches!(error, Error::ClosedByPeer(_)) && streams.waiting() > 0 {
                end.send_replace(Some(error));
                timeout(REMAINS_TIME, streams.emptied()).await.ok();
                drop(streams.close());
                drop(lease);
            } else {
                // In any case: one that is given back later would hold its own connection for good.
                drop(streams.close());
                drop(lease);
                end.send_replace(Some(error));
            }
        });
        connection
    }

    /// What the handshake has settled.
    pub fn facts(&self) -> &Facts {
        &self.0.facts
    }

    /// Where the peer is now.
    pub fn remote_address(&self) -> SocketAddr {
        let now = self.lock().as_ref().map(quinn::Connection::remote_address);
        now.map_or(self.0.facts.remote, canonical)
    }

    /// Opens a bidirectional stream; waits for stream credit.
    ///
    /// # Errors
    /// Why the connection is gone.
    pub async fn open_stream(&self) -> Result<Stream, Error> {
        let carrier = self.lock().clone().ok_or_else(|| self.end())?;
        let (send, recv) = carrier.open_bi().await.map_err(Error::from)?;
        Ok(self.stream(Some(send), recv))
    }

    /// Asks for one stream that the peer has opened or will open.
    pub fn request_stream(
        &self,
        id: RequestId,
        waiter: Box<dyn Waiter<Stream>>,
    ) -> Request<Stream> {
        self.0.streams.request(id, waiter)
    }

    /// Takes a stream back whose taker has gone: it is there for the next, if there is room.
    pub fn give_back(&self, stream: Stream) {
        // One without a place is reset by dropping it.
        drop(self.0.streams.offer(stream));
    }

    /// Takes a request for a stream back. `false`: too late, it is answered.
    pub fn cancel_request(&self, id: RequestId) -> bool {
        self.0.streams.cancel(id)
    }

    /// Closes the connection at once with an application error code; what is not acknowledged
    /// may be lost, and streams that nobody has asked for are.
    pub fn close(&self, code: u64) {
        let carrier = self.lock().clone();
        match carrier {
            Some(carrier) => {
                farewell::close(&carrier, VarInt::from_u64(code).unwrap_or(VarInt::MAX));
            }
            None => drop(self.0.streams.close()),
        }
    }

    /// Resolves with the reason when the connection has ended; [`Error::Cancelled`] when we have
    /// closed it.
    pub fn ended(&self) -> impl Future<Output = Error> + Send + use<> {
        let mut ended = self.0.ended.clone();
        async move {
            match ended.wait_for(Option::is_some).await {
                Ok(error) => error.clone().unwrap_or(Error::Cancelled),
                Err(_) => Error::Cancelled,
            }
        }
    }

    /// The connection's counters; `None` when it has ended.
    pub fn traffic(&self) -> Option<Traffic> {
        Some(Traffic::of(self.lock().as_ref()?, self.0.budget.used().bytes))
    }

    /// Takes in the streams that the peer opens, also those that had arrived at the end and were
    /// not taken in yet: what is in them is acknowledged.
    async fn take_in(&self, carrier: &quinn::Connection) -> Error {
        let mut messages = None;
        if self.0.facts.alpn == MESH_ALPN {
            carrier.set_max_concurrent_uni_streams(VarInt::from_u32(joined::STREAMS));
        }
        loop {
            let stream = tokio::select! {
                Ok((send, recv)) = carrier.accept_bi() => self.stream(Some(send), recv),
                Ok(recv) = carrier.accept_uni() => {
                    if self.0.facts.alpn != MESH_ALPN {
                        self.stream(None, recv)
                    } else if let Some(first) = self.join(&mut messages, recv) {
                        first
                    } else {
                        continue;
                    }
                }
                else => return carrier.closed().await.into(),
            };
            // More than are granted cannot come; one without a place is reset by dropping it.
            drop(self.0.streams.offer(stream));
        }
    }

    /// Adds a message stream to the one that stands for them all, which the first one opens.
    fn join(
        &self,
        messages: &mut Option<mpsc::Sender<quinn::RecvStream>>,
        recv: quinn::RecvStream,
    ) -> Option<Stream> {
        let id = recv.id().into();
        let recv = match messages {
            None => recv,
            Some(messages) => match messages.try_send(recv) {
                // Nobody holds the stream that stood for them; this one opens another.
                Err(TrySendError::Closed(recv)) => recv,
                // More are not under way than are granted, and for these there is room.
                Ok(()) | Err(TrySendError::Full(_)) => return None,
            },
        };
        let (sender, arrivals) = mpsc::channel(self.0.message_streams);
        drop(sender.try_send(recv));
        *messages = Some(sender);
        let reader = MessageReader::new(arrivals, self.clone(), self.0.max_frame_bytes);
        Some(self.start_stream(None, Reader::Messages(reader), id))
    }

    fn stream(&self, send: Option<quinn::SendStream>, recv: quinn::RecvStream) -> Stream {
        let id = recv.id().into();
        let room = self.0.unfinished.clone();
        self.start_stream(send, Reader::stream_in(recv, self.0.max_frame_bytes, room), id)
    }

    fn start_stream(&self, send: Option<quinn::SendStream>, reader: Reader, id: u64) -> Stream {
        let ends = Ends { local: self.0.facts.local, remote: self.0.facts.remote };
        let budget = self.0.budget.clone();
        ByteStream::start(&self.0.scope, budget, ends, send, Some(reader), id, None).into()
    }

    fn end(&self) -> Error {
        self.0.ended.borrow().clone().unwrap_or(Error::Cancelled)
    }

    /// A std mutex, because nothing awaits inside.
    fn lock(&self) -> MutexGuard<'_, Option<quinn::Connection>> {
        self.0.carrier.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tokio's test macro blocks, on a thread of the test")]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::runtime::Handle;

    use super::*;
    use crate::listener::{Listener, Place};
    use crate::rendezvous::Refusal;
    use crate::tls::Identity;

    /// Who asks only for what is there already.
    struct Nobody;

    impl Waiter<Connection> for Nobody {
        fn meet(self: Box<Self>, item: Connection) -> Option<Connection> {
            Some(item)
        }

        fn refuse(self: Box<Self>, _why: Refusal) {}
    }

    async fn accepted(listener: &Listener) -> Connection {
        while listener.stats().waiting == 0 {
            tokio::task::yield_now().await;
        }
        match listener.request(1, Box::new(Nobody)) {
            Request::Served(connection, _) => connection,
            _ => panic!("nothing is there"),
        }
    }

    /// What it has sent and nobody has read is kept, too, and for how long is up to the client.
    #[tokio::test]
    async fn who_has_closed_a_connection_keeps_his_place_until_nothing_is_kept_of_it() {
        let certified = rcgen::generate_simple_self_signed(["peer".into()]).expect("a certificate");
        let chain = vec![certified.cert.der().to_vec()];
        let identity = Identity::from_der(chain, certified.signing_key.serialize_der());
        let mut settings = Settings { identity: identity.ok(), ..Settings::default() };
        settings.transport.set("max_connections", 1).expect("a limit");
        let place = Place::At(vec![(Ipv4Addr::LOCALHOST, 0).into()]);
        let listener = Listener::bind(&place, settings, Handle::current(), |_| {});
        let listener = listener.expect("a listener");
        let address = listener.local_addresses().first().copied().expect("an address").into();
        let client = Client::new(Handle::current());
        let dial = || client.connect(&address, Settings::default(), Duration::from_secs(60));
        let first = dial().await.expect("a connection");
        let server = accepted(&listener).await;
        // As quinn's driver does while the connection drains.
        let kept = server.lock().clone().expect("it is open");
        first.close(0);
        assert_eq!(server.ended().await, Error::ClosedByPeer(0));
        assert_eq!(listener.stats().connections, 0);
        assert_eq!(dial().await.err(), Some(Error::Refused));
        drop(kept);
        while let Err(error) = dial().await {
            assert_eq!(error, Error::Refused);
        }
    }

    /// Each look-up holds a thread, and all of the VM share them.
    #[tokio::test]
    async fn dials_of_one_client_take_turns_at_looking_up_names() {
        let client = Client::new(Handle::current());
        // Which the system's resolver refuses by itself.
        let name = Address::new("no..name", 1).expect("an address");
        let dial = |within| client.connect(&name, Settings::default(), within);
        let turns = client.resolver.turns();
        let soon = Duration::from_millis(200);
        assert_eq!(dial(soon).await.err(), Some(Error::ConnectTimeout));
        drop(turns);
        assert_eq!(dial(Duration::from_secs(60)).await.err(), Some(Error::NameNotFound));
    }
}
