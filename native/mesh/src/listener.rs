//! Listening sockets: the taking in of clients, and the rebuilding of a socket that has died.
//! Connections that got in belong to whoever accepts them, and outlive the listener.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Incoming, ServerConfig, TimeSource};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::address::canonical;
use crate::broken::break_socket;
use crate::census::{Census, Refusal, Visit, Visitors};
use crate::clock;
use crate::connection::{Connection, Facts};
use crate::endpoint;
use crate::farewell::{self, IMPOSTOR, NO_ERROR};
use crate::first_packet::Screened;
use crate::lock::lock;
use crate::rendezvous::{Rendezvous, Request, RequestId, Waiter};
use crate::reset::ResetKeys;
use crate::scope::Scope;
use crate::seated::seated;
use crate::settings::Settings;
use crate::stats::Causes;
use crate::tls::{self, Identity};
use crate::verify::{Fault, Verification};
use crate::{Config, Error};

/// How long to wait before a dead socket is bound again, if that has failed.
const REBIND_DELAY: Duration = Duration::from_millis(500);
/// How often to look whether a socket still has its port.
const PORT_LOOKS: Duration = Duration::from_secs(1);

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Every address of this machine, IPv6 and IPv4, at one port; 0 picks one.
    Everywhere(u16),
    /// These addresses.
    At(Vec<SocketAddr>),
}

/// What a listener tells its owner unasked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerEvent {
    /// The socket at this address has died; it is being bound again.
    SocketLost(SocketAddr),
    /// The socket at this address works again.
    SocketRebuilt(SocketAddr),
}

/// Counters of a listener.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListenerStats {
    /// Connections open that got in by this listener.
    pub connections: usize,
    /// Handshakes under way, and those that came to nothing until all memory of them is given back.
    pub handshakes: usize,
    /// Connections that wait to be accepted.
    pub waiting: usize,
    /// Clients turned away, by cause.
    pub refused: std::collections::BTreeMap<&'static str, u64>,
}

/// A listener. Closing it, or dropping its last handle, ends the taking in of clients.
#[derive(Debug)]
pub struct Listener(Arc<Inner>);

struct Inner {
    /// Those of the doors, whose lock may be held for long.
    addresses: Vec<SocketAddr>,
    doors: Mutex<Vec<Door>>,
    connections: Rendezvous<Connection>,
    settings: Settings,
    server: Mutex<ServerConfig>,
    /// Of the first identity: whoever knows us by them must find them again.
    reset_keys: ResetKeys,
    census: Census,
    refused: Causes,
    scope: Arc<Scope>,
    closed: watch::Sender<bool>,
    observer: Box<dyn Fn(ListenerEvent) + Send + Sync>,
}

/// One listening socket; without an endpoint while it is being bound again.
#[derive(Clone, Debug)]
struct Door {
    address: SocketAddr,
    endpoint: Option<quinn::Endpoint>,
}

impl Listener {
    /// Listens. `observer` must not block, nor close the listener, and is called no more once that
    /// is closed.
    ///
    /// # Errors
    /// [`Error::Socket`] when a socket cannot be bound, [`Error::Unverified`] when the identity
    /// or the roots are of no use.
    pub fn bind(
        place: &Place,
        settings: Settings,
        runtime: tokio::runtime::Handle,
        observer: impl Fn(ListenerEvent) + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let server = server_config(&settings)?;
        let identity = settings.identity.as_ref().ok_or(Fault::NoCertificate)?;
        let reset_keys = identity.reset_keys();
        let doors = bind(place, &server, &reset_keys, &settings, &runtime)?;
        let (closed, _) = watch::channel(false);
        let inner = Arc::new(Inner {
            connections: Rendezvous::new(settings.transport.backlog()),
            settings,
            server: Mutex::new(server),
            reset_keys,
            census: Census::default(),
            refused: Causes::default(),
            scope: Arc::new(Scope::new(&Config::default(), runtime)),
            closed,
            observer: Box::new(observer),
            addresses: doors.iter().map(|door| door.address).collect(),
            doors: Mutex::new(doors.clone()),
        });
        for (index, door) in doors.into_iter().enumerate() {
            inner.scope.tasks.spawn(inner.clone().attend(index, door.address));
        }
        Ok(Self(inner))
    }

    /// Where it listens; nowhere, once it is closed.
    pub fn local_addresses(&self) -> &[SocketAddr] {
        if self.is_closed() { &[] } else { &self.0.addresses }
    }

    /// Asks for one connection that has got in or will.
    pub fn request(
        &self,
        id: RequestId,
        waiter: Box<dyn Waiter<Connection>>,
    ) -> Request<Connection> {
        self.0.connections.request(id, waiter)
    }

    /// Takes a request back. `false`: too late, it is answered.
    pub fn cancel_request(&self, id: RequestId) -> bool {
        self.0.connections.cancel(id)
    }

    /// Takes a connection back whose taker has gone: it is there for the next, or closed.
    pub fn give_back(&self, connection: Connection) {
        self.0.let_in(connection);
    }

    /// Shows another certificate to clients from now on; connections go on as they are.
    ///
    /// # Errors
    /// [`Error::Unverified`] when it is of no use.
    pub fn set_identity(&self, identity: Identity) -> Result<(), Error> {
        let settings = Settings { identity: Some(identity), ..self.0.settings.clone() };
        let crypto = server_crypto(&settings)?;
        // Before the configuration, and for as long: no door shows an older one afterwards.
        let doors = lock(&self.0.doors);
        let mut server = lock(&self.0.server);
        // The rest stays: who has been sent a Retry has a token of it.
        server.crypto = crypto;
        for endpoint in doors.iter().filter_map(|door| door.endpoint.as_ref()) {
            endpoint.set_server_config(Some(server.clone()));
        }
        Ok(())
    }

    /// Whether it takes in no more clients.
    pub fn is_closed(&self) -> bool {
        *self.0.closed.borrow()
    }

    /// The listener's counters, also of connections that have outlived it.
    pub fn stats(&self) -> ListenerStats {
        let Visitors { handshakes, connections, .. } = self.0.census.all();
        ListenerStats {
            connections,
            handshakes,
            waiting: self.0.connections.waiting(),
            refused: self.0.refused.values(),
        }
    }

    /// Takes in no more clients. Connections that were accepted go on, and keep the socket; those
    /// that were not are closed, which may have to wait for their locks.
    pub fn close(&self) {
        self.0.close();
    }

    /// Closes on the runtime, from a thread that must not wait.
    pub fn let_go(&self) {
        let inner = self.0.clone();
        self.0.scope.tasks.detach(async move { inner.close() });
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.let_go();
    }
}

impl Inner {
    fn close(&self) {
        self.closed.send_replace(true);
        for connection in self.connections.close() {
            connection.close(NO_ERROR.into());
        }
        for endpoint in lock(&self.doors).drain(..).filter_map(|door| door.endpoint) {
            endpoint.set_server_config(None);
        }
    }

    /// Takes in clients at one door until the listener is closed.
    async fn attend(self: Arc<Self>, index: usize, address: SocketAddr) {
        let mut closed = self.closed.subscribe();
        let closing = async move {
            // The sender lives as long as the listener does.
            closed.wait_for(|closed| *closed).await.ok();
        };
        tokio::pin!(closing);
        loop {
            let incoming = tokio::select! {
                biased;
                () = &mut closing => return,
                incoming = self.arrival(index) => incoming,
            };
            if let Some(incoming) = incoming {
                self.clone().meet(incoming, address);
                continue;
            }
            self.tell(ListenerEvent::SocketLost(address));
            // Given back before it is bound again: its last holder keeps the address.
            self.place(index, None);
            let endpoint = tokio::select! {
                biased;
                () = &mut closing => return,
                endpoint = self.rebuild(address) => endpoint,
            };
            self.place(index, Some(endpoint));
            self.tell(ListenerEvent::SocketRebuilt(address));
        }
    }

    fn tell(&self, event: ListenerEvent) {
        // Borrowed until it is told: who closes waits for that.
        let is_closed = self.closed.borrow();
        if !*is_closed {
            (self.observer)(event);
        }
    }

    /// The next client at a door; `None`: its socket has died, or the listener is closed.
    async fn arrival(&self, index: usize) -> Option<Incoming> {
        let door = lock(&self.doors).get(index).cloned()?;
        let endpoint = door.endpoint?;
        tokio::select! {
            biased;
            // quinn's driver ends on a socket error, and only this tells.
            incoming = endpoint.accept() => incoming,
            () = port_lost(&endpoint, door.address.port()) => {
                break_socket(&endpoint);
                None
            }
        }
    }

    fn place(&self, index: usize, endpoint: Option<quinn::Endpoint>) {
        let mut doors = lock(&self.doors);
        let Some(door) = doors.get_mut(index) else { return };
        if let Some(endpoint) = &endpoint {
            // The certificate may have changed while it was bound, when it was at no door.
            endpoint.set_server_config(Some(lock(&self.server).clone()));
        }
        door.endpoint = endpoint;
    }

    async fn rebuild(&self, address: SocketAddr) -> quinn::Endpoint {
        loop {
            let server = lock(&self.server).clone();
            let buffer_bytes = self.settings.transport.udp_buffer_bytes();
            let keys = &self.reset_keys;
            if let Ok(endpoint) = endpoint::bind_server(address, buffer_bytes, server, keys) {
                return endpoint;
            }
            sleep(REBIND_DELAY).await;
        }
    }

    /// Lets a client in, asks it to come again with a proof of its address, or turns it away.
    fn meet(self: Arc<Self>, incoming: Incoming, local: SocketAddr) {
        let ip = canonical(incoming.remote_address()).ip();
        let is_proven = incoming.remote_address_validated() || !incoming.may_retry();
        let waiting = self.connections.waiting();
        let visit = match self.census.admit(ip, is_proven, waiting, &self.settings.transport) {
            Ok(visit) => visit,
            Err(Refusal::Unproven) => {
                // An error says that it may not be asked, which was checked.
                drop(incoming.retry());
                return;
            }
            Err(Refusal::Full(cause)) => {
                self.refused.count(cause);
                incoming.refuse();
                return;
            }
        };
        let host = self.clone();
        self.scope.tasks.spawn(async move { host.welcome(incoming, local, visit).await });
    }

    async fn welcome(&self, incoming: Incoming, local: SocketAddr, visit: Visit) {
        let transport = &self.settings.transport;
        let server = seated(&lock(&self.server), visit.seat());
        let handshake = async { Ok::<_, Error>(incoming.accept_with(server)?.await?) };
        let carrier = match timeout(transport.handshake_timeout(), handshake).await {
            Ok(Ok(carrier)) => carrier,
            Ok(Err(_)) => return self.refused.count("handshake_failed"),
            Err(_) => return self.refused.count("handshake_timeout"),
        };
        visit.shake_hands();
        if let Verification::Key(rule) = self.settings.verification
            && rule.check_client(&carrier).is_err()
        {
            self.refused.count("wrong_key");
            farewell::close(&carrier, IMPOSTOR);
            return;
        }
        let facts = Facts::of(&carrier, local);
        let scope = self.scope.clone();
        self.let_in(Connection::start(carrier, facts, scope, transport, visit));
    }

    fn let_in(&self, connection: Connection) {
        if let Err(connection) = self.connections.offer(connection) {
            // A closed listener takes nobody in, however few wait.
            if !*self.closed.borrow() {
                self.refused.count("backlog");
            }
            connection.close(NO_ERROR.into());
        }
    }
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener").field("doors", &self.doors).finish_non_exhaustive()
    }
}

fn server_crypto(settings: &Settings) -> Result<Arc<Screened>, Error> {
    let tls = tls::server_config(settings)?;
    let quic = QuicServerConfig::try_from(tls).map_err(|_| Error::Cancelled)?;
    Ok(Arc::new(Screened(Arc::new(quic))))
}

fn server_config(settings: &Settings) -> Result<ServerConfig, Error> {
    let mut server = ServerConfig::with_crypto(server_crypto(settings)?);
    server.transport_config(Arc::new(settings.transport.quinn()));
    server.time_source(Arc::new(Steady));
    Ok(server)
}

/// The clock for the age of Retry tokens (RFC 9000, section 8.1.3): no client is turned away
/// because somebody sets the machine's.
struct Steady;

impl TimeSource for Steady {
    fn now(&self) -> SystemTime {
        clock::now()
    }
}

fn bind(
    place: &Place,
    server: &ServerConfig,
    reset_keys: &ResetKeys,
    settings: &Settings,
    runtime: &tokio::runtime::Handle,
) -> Result<Vec<Door>, Error> {
    let _context = runtime.enter();
    let buffer_bytes = settings.transport.udp_buffer_bytes();
    let open = |address: SocketAddr| -> Result<Door, Error> {
        let server = server.clone();
        let endpoint = endpoint::bind_server(address, buffer_bytes, server, reset_keys)?;
        Ok(Door { address: canonical(endpoint.local_addr()?), endpoint: Some(endpoint) })
    };
    match place {
        Place::Everywhere(port) => {
            let both = open(SocketAddr::from((Ipv6Addr::UNSPECIFIED, *port)));
            let door = match both {
                Err(_) if !endpoint::has_both_families() => {
                    open((Ipv4Addr::UNSPECIFIED, *port).into())
                }
                both => both,
            };
            Ok(vec![door?])
        }
        Place::At(addresses) => addresses.iter().copied().map(open).collect(),
    }
}

/// Resolves when the socket of `endpoint` has another port, or none. The kernel can take it away,
/// as `ss --kill` has it do; no read fails then, nothing comes any more, and whatever is sent next
/// gives the socket a port that no client knows.
async fn port_lost(endpoint: &quinn::Endpoint, port: u16) {
    while endpoint.local_addr().map_or(true, |now| now.port() == port) {
        sleep(PORT_LOOKS).await;
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tokio's test macro blocks, on a thread of the test")]
mod tests {
    use bytes::Bytes;
    use futures_util::FutureExt;
    use tokio::net::UdpSocket;
    use tokio::sync::mpsc;

    use super::*;
    use crate::byte_stream::SendEnd;
    use crate::connection::Client;
    use crate::initial::closed_in_its_second_packet;

    /// How long a lock is held that somebody else waits for.
    const HELD_UP: Duration = Duration::from_millis(200);

    fn identity() -> Identity {
        let certified = rcgen::generate_simple_self_signed(["node".into()]).expect("a certificate");
        let chain = vec![certified.cert.der().to_vec()];
        Identity::from_der(chain, certified.signing_key.serialize_der()).expect("an identity")
    }

    /// A dial that is taken back at once sends nothing but its end, and so may anybody. What were
    /// kept for it until the idle timeout, no limit would count.
    #[tokio::test]
    async fn a_connection_that_ends_with_its_first_packet_leaves_nothing() {
        let settings = Settings { identity: Some(identity()), ..Settings::default() };
        let place = Place::At(vec![(Ipv4Addr::LOCALHOST, 0).into()]);
        let listener = Listener::bind(&place, settings, tokio::runtime::Handle::current(), |_| {})
            .expect("a listener");
        let address = *listener.local_addresses().first().expect("an address");
        let client = Client::new(tokio::runtime::Handle::current());
        let patience = Duration::from_secs(60);
        let address = address.into();
        let dial = client.connect(&address, Settings::default(), patience);
        // On this one thread, nothing has left yet.
        assert!(dial.now_or_never().is_none());
        while listener.stats().refused.is_empty() {
            tokio::task::yield_now().await;
        }
        let endpoint = lock(&listener.0.doors).first().expect("a door").endpoint.clone();
        let endpoint = endpoint.expect("an endpoint");
        // Less than the idle timeout.
        timeout(patience / 2, endpoint.wait_idle()).await.expect("nothing is left");
        assert_eq!(listener.stats().connections, 0);
    }

    /// Nobody has to show where he is for it, and quinn keeps each for seconds.
    #[tokio::test]
    async fn a_connection_that_ends_with_its_second_packet_counts_as_long_as_it_is_kept() {
        const FEW: u8 = 3;
        let mut settings = Settings { identity: Some(identity()), ..Settings::default() };
        settings.transport.set("retry_above_handshakes", FEW.into()).expect("a limit");
        let place = Place::At(vec![(Ipv4Addr::LOCALHOST, 0).into()]);
        let mut transport = settings.transport.quinn();
        // Three probe timeouts are longer than this test can take.
        transport.initial_rtt(Duration::from_secs(3_600));
        let listener = Listener::bind(&place, settings, tokio::runtime::Handle::current(), |_| {})
            .expect("a listener");
        lock(&listener.0.server).transport_config(Arc::new(transport));
        let address = *listener.local_addresses().first().expect("an address");
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a socket");
        let knock = async |number| {
            let datagram = closed_in_its_second_packet([number; 8]).expect("a datagram");
            socket.send_to(&datagram, address).await.expect("sent");
        };
        for number in 0..FEW {
            knock(number).await;
        }
        let failed = || listener.stats().refused.get("handshake_failed").copied();
        while failed() < Some(FEW.into()) {
            tokio::task::yield_now().await;
        }
        let ListenerStats { connections, handshakes, .. } = listener.stats();
        assert_eq!((connections, handshakes), (0, FEW.into()));
        knock(FEW).await;
        let mut answer = [0];
        socket.recv(&mut answer).await.expect("an answer");
        // A Retry packet (RFC 9000, section 17.2.5), but for the bits that mean nothing in it.
        assert_eq!(answer.map(|first| first & 0xb0), [0xb0]);
        assert_eq!(failed(), Some(FEW.into()));
    }

    #[tokio::test]
    async fn a_dead_socket_is_told_of_and_bound_again_at_the_same_address() {
        let settings = Settings { identity: Some(identity()), ..Settings::default() };
        let (events, mut told) = mpsc::channel(2);
        let place = Place::At(vec![(Ipv4Addr::LOCALHOST, 0).into()]);
        let listener =
            Listener::bind(&place, settings, tokio::runtime::Handle::current(), move |event| {
                events.try_send(event).expect("room for two events");
            })
            .expect("a listener");
        let address = *listener.local_addresses().first().expect("an address");
        let endpoint = lock(&listener.0.doors).first().expect("a door").endpoint.clone();
        break_socket(&endpoint.expect("an endpoint"));
        assert_eq!(told.recv().await, Some(ListenerEvent::SocketLost(address)));
        assert_eq!(told.recv().await, Some(ListenerEvent::SocketRebuilt(address)));
        assert_eq!(listener.local_addresses(), [address]);
    }

    /// Schedulers of the VM ask.
    #[tokio::test]
    async fn where_a_listener_is_takes_no_lock_to_tell() {
        let settings = Settings { identity: Some(identity()), ..Settings::default() };
        let place = Place::At(vec![(Ipv4Addr::LOCALHOST, 0).into()]);
        let listener = Listener::bind(&place, settings, tokio::runtime::Handle::current(), |_| {})
            .expect("a listener");
        let (told, asked) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let doors = lock(&listener.0.doors);
            scope.spawn(|| told.send(listener.local_addresses().len()));
            let answer = asked.recv_timeout(Duration::from_secs(10));
            drop(doors);
            assert_eq!(answer, Ok(1));
        });
    }

    #[tokio::test]
    async fn a_certificate_that_comes_while_a_socket_is_bound_anew_is_shown_by_it() {
        let settings = Settings { identity: Some(identity()), ..Settings::default() };
        let place = Place::At(vec![(Ipv4Addr::LOCALHOST, 0).into()]);
        let runtime = tokio::runtime::Handle::current();
        let listener =
            Listener::bind(&place, settings, runtime.clone(), |_| {}).expect("a listener");
        let inner = &listener.0;
        let fresh = inner.rebuild((Ipv4Addr::LOCALHOST, 0).into()).await;
        let address = fresh.local_addr().expect("an address");
        let certified = rcgen::generate_simple_self_signed(["next".into()]).expect("a certificate");
        let shown = certified.cert.der().to_vec();
        let next = Identity::from_der(vec![shown.clone()], certified.signing_key.serialize_der());
        listener.set_identity(next.expect("an identity")).expect("another certificate");
        // On this one thread, nobody has come to the door yet.
        lock(&inner.doors).first_mut().expect("a door").address = address;
        inner.place(0, Some(fresh));
        let client = Client::new(runtime);
        let patience = Duration::from_secs(60);
        let dialled = client.connect(&address.into(), Settings::default(), patience).await;
        let identity = dialled.expect("a connection").facts().identity.clone();
        assert_eq!(identity.expect("its certificate").certificate, shown);
    }

    /// The doors are taken away in the moment in which one is looked for a client.
    #[tokio::test]
    async fn who_closes_a_listener_is_not_told_that_its_sockets_have_died() {
        let settings = Settings { identity: Some(identity()), ..Settings::default() };
        let (events, mut told) = mpsc::channel(2);
        let place = Place::At(vec![(Ipv4Addr::LOCALHOST, 0).into()]);
        let runtime = tokio::runtime::Handle::current();
        let listener = Listener::bind(&place, settings, runtime, move |event| {
            events.try_send(event).expect("room for two events");
        })
        .expect("a listener");
        let (is_held, held) = std::sync::mpsc::channel();
        let inner = listener.0.clone();
        let closing = std::thread::spawn(move || {
            let mut doors = lock(&inner.doors);
            is_held.send(()).expect("somebody waits");
            std::thread::sleep(HELD_UP);
            // As `close` does it.
            inner.closed.send_replace(true);
            doors.clear();
        });
        held.recv().expect("the lock is held");
        // On this one thread, nobody has come to the door yet.
        tokio::task::yield_now().await;
        closing.join().expect("no panic");
        assert_eq!(told.try_recv().ok(), None);
    }

    /// One that comes before another, but to the doors after it, would stay there.
    #[tokio::test]
    async fn a_certificate_is_another_one_only_together_with_what_the_doors_show() {
        let settings = Settings { identity: Some(identity()), ..Settings::default() };
        let place = Place::At(vec![(Ipv4Addr::LOCALHOST, 0).into()]);
        let listener = Listener::bind(&place, settings, tokio::runtime::Handle::current(), |_| {})
            .expect("a listener");
        let crypto = || lock(&listener.0.server).crypto.clone();
        let first = crypto();
        std::thread::scope(|scope| {
            let doors = lock(&listener.0.doors);
            let change = scope.spawn(|| listener.set_identity(identity()));
            // In vain, for as long as the change has to wait for the doors.
            std::thread::sleep(HELD_UP);
            let is_unchanged = Arc::ptr_eq(&first, &crypto());
            drop(doors);
            assert_eq!(change.join().expect("no panic"), Ok(()));
            assert!(is_unchanged);
        });
        assert!(!Arc::ptr_eq(&first, &crypto()));
    }

    /// Whoever knew a socket that has died says more only to hear that it is not known any more.
    #[tokio::test]
    async fn connections_of_a_dead_socket_are_reset_by_its_successor_whatever_the_certificate() {
        let settings = Settings { identity: Some(identity()), ..Settings::default() };
        let (events, mut told) = mpsc::channel(2);
        let place = Place::At(vec![(Ipv4Addr::LOCALHOST, 0).into()]);
        let runtime = tokio::runtime::Handle::current();
        let listener = Listener::bind(&place, settings, runtime.clone(), move |event| {
            events.try_send(event).expect("room for two events");
        })
        .expect("a listener");
        let address = *listener.local_addresses().first().expect("an address");
        let client = Client::new(runtime);
        let patience = Duration::from_secs(60);
        let dialled = client.connect(&address.into(), Settings::default(), patience).await;
        let connection = dialled.expect("a connection");
        // What is acknowledged shows that the handshake is over for both.
        let first = connection.open_stream().await.expect("a stream");
        first.send(Bytes::from_static(b"hello").into()).expect("taken");
        first.close();
        assert_eq!(first.bytes().expect("of bytes").sending_ended().await, SendEnd::Finished);
        listener.set_identity(identity()).expect("another certificate");
        let endpoint = lock(&listener.0.doors).first().expect("a door").endpoint.clone();
        break_socket(&endpoint.expect("an endpoint"));
        assert_eq!(told.recv().await, Some(ListenerEvent::SocketLost(address)));
        assert_eq!(told.recv().await, Some(ListenerEvent::SocketRebuilt(address)));
        let stream = connection.open_stream().await.expect("a stream");
        stream.send(Bytes::from_static(b"still there?").into()).expect("taken");
        assert_eq!(connection.ended().await, Error::Reset);
    }
}
