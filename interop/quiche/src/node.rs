//! The peer's sockets and its one thread, which serves all connections and carries out commands.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::error::Error;
use std::hash::{BuildHasher, Hasher};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use lines::{ALPN, Args, Batch, CONNECT_TIME, Node, Outcome, SEND_TIME, Tally};
use quiche::{Config, ConnectionId, Header, RecvInfo, Shutdown};

use crate::link::{Link, said};

/// As nodes in the field grant.
const PEER_BIDI_STREAMS: u64 = 100;
const PEER_UNI_STREAMS: u64 = 3;
/// Of each stream, and of all of a connection.
const STREAM_WINDOW: u64 = 1024 * 1024;
const WINDOW: u64 = 8 * STREAM_WINDOW;
/// The search for the path MTU goes as far as an Ethernet would let it.
const PAYLOAD_BYTES: usize = 1_452;
const CID_BYTES: usize = 16;
/// Connection ids that the other end may hold, so that either may move.
const CIDS: u64 = 8;
/// Packets taken in from one socket, or sent of one connection, before others have their turn.
const PACKETS_AT_ONCE: usize = 256;
/// How long to wait for a packet before commands and timers are looked at.
const LOOK: Duration = Duration::from_millis(1);
/// How long the last packets may take to leave.
const LEAVE_TIME: Duration = Duration::from_millis(100);

/// The peer: a handle to its thread.
pub(crate) struct Quiche {
    orders: SyncSender<Order>,
}

/// Where the answer to an order goes.
pub(crate) struct Answer<T>(SyncSender<Outcome<T>>);

impl<T> Answer<T> {
    pub(crate) fn give(self, outcome: Outcome<T>) {
        // Whoever has asked may have lost patience.
        self.0.try_send(outcome).ok();
    }
}

enum Order {
    Connect(u16, Answer<()>),
    Send(Batch, Answer<()>),
    Open(Vec<u8>, Answer<()>),
    ShutDown(Shutdown, u64, Answer<()>),
    Close(u64, Answer<()>),
    Rebind(Answer<u16>),
    Ping(Answer<()>),
}

impl Quiche {
    /// Listens, and says at which port.
    pub(crate) fn start(args: Args, tally: Arc<Tally>) -> Result<(Self, u16), Box<dyn Error>> {
        let socket = bind()?;
        let port = socket.local_addr()?.port();
        let driver = Driver::new(socket, args, tally)?;
        let (orders, arriving) = sync_channel(1);
        // Never joined: it ends with the process.
        thread::spawn(move || driver.run(&arriving));
        Ok((Self { orders }, port))
    }

    /// Closes the newest connection, and lets that be said.
    pub(crate) fn leave(&self) {
        if self.close(0).is_ok() {
            thread::sleep(LEAVE_TIME);
        }
    }

    fn ask<T>(&self, time: Duration, order: impl FnOnce(Answer<T>) -> Order) -> Outcome<T> {
        let (answer, outcome) = sync_channel(1);
        // One command at a time: an order that is still there has not been looked at in all its time.
        self.orders.try_send(order(Answer(answer))).map_err(|error| error.to_string())?;
        outcome.recv_timeout(time).map_err(|error| error.to_string())?
    }
}

impl Node for Quiche {
    fn connect(&self, port: u16) -> Outcome {
        self.ask(CONNECT_TIME, |answer| Order::Connect(port, answer))
    }

    fn send(&self, batch: Batch) -> Outcome {
        self.ask(SEND_TIME, |answer| Order::Send(batch, answer))
    }

    fn open(&self, data: Vec<u8>) -> Outcome {
        self.ask(CONNECT_TIME, |answer| Order::Open(data, answer))
    }

    fn reset(&self, code: u64) -> Outcome {
        self.ask(CONNECT_TIME, |answer| Order::ShutDown(Shutdown::Write, code, answer))
    }

    fn stop(&self, code: u64) -> Outcome {
        self.ask(CONNECT_TIME, |answer| Order::ShutDown(Shutdown::Read, code, answer))
    }

    fn close(&self, code: u64) -> Outcome {
        self.ask(CONNECT_TIME, |answer| Order::Close(code, answer))
    }

    fn rebind(&self) -> Outcome<u16> {
        self.ask(CONNECT_TIME, Order::Rebind)
    }

    fn ping(&self) -> Outcome {
        self.ask(CONNECT_TIME, Order::Ping)
    }
}

struct Driver {
    args: Args,
    tally: Arc<Tally>,
    server: Config,
    client: Config,
    /// The newest is the one that is waited at.
    sockets: Vec<UdpSocket>,
    links: Vec<Link>,
    /// Whose a connection id is.
    ids: HashMap<Vec<u8>, usize>,
    /// Who waits for a handshake.
    dialling: Option<Answer<()>>,
}

impl Driver {
    fn new(socket: UdpSocket, args: Args, tally: Arc<Tally>) -> Result<Self, Box<dyn Error>> {
        let mut server = config(&args)?;
        server.load_cert_chain_from_pem_file(&args.cert)?;
        server.load_priv_key_from_pem_file(&args.key)?;
        let mut client = config(&args)?;
        client.load_verify_locations_from_file(&args.ca)?;
        client.verify_peer(true);
        Ok(Self {
            args,
            tally,
            server,
            client,
            sockets: vec![socket],
            links: Vec::new(),
            ids: HashMap::new(),
            dialling: None,
        })
    }

    fn run(mut self, orders: &Receiver<Order>) {
        let mut packet = vec![0; usize::from(u16::MAX)];
        loop {
            match orders.try_recv() {
                Ok(order) => self.obey(order),
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return,
            }
            self.receive(&mut packet);
            for index in 0..self.links.len() {
                self.attend(index);
            }
            self.flush(&mut packet);
        }
    }

    fn obey(&mut self, order: Order) {
        let newest = self.links.last_mut().ok_or_else(|| "no connection".to_owned());
        match order {
            Order::Connect(port, answer) => match self.connect(port) {
                Ok(()) => self.dialling = Some(answer),
                Err(error) => answer.give(Err(error.to_string())),
            },
            Order::Send(batch, answer) => match newest {
                Ok(link) => link.send(batch, answer),
                Err(error) => answer.give(Err(error)),
            },
            Order::Open(data, answer) => answer.give(newest.and_then(|link| link.open(vec![data]))),
            Order::ShutDown(direction, code, answer) => {
                answer.give(newest.and_then(|link| link.shut_down(direction, code)));
            }
            Order::Close(code, answer) => {
                let close = |link: &mut Link| link.quic.close(true, code, &[]).map_err(said);
                answer.give(newest.and_then(close));
            }
            Order::Ping(answer) => {
                let ping = |link: &mut Link| link.quic.send_ack_eliciting().map_err(said);
                answer.give(newest.and_then(ping));
            }
            Order::Rebind(answer) => answer.give(self.rebind().map_err(|error| error.to_string())),
        }
    }

    fn connect(&mut self, port: u16) -> Result<(), Box<dyn Error>> {
        let socket = bind()?;
        let id = new_id();
        let server = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let scid = ConnectionId::from_ref(&id);
        let local = socket.local_addr()?;
        let quic = quiche::connect(Some("localhost"), &scid, local, server, &mut self.client)?;
        self.sockets.push(socket);
        self.add(quic, id);
        Ok(())
    }

    fn rebind(&mut self) -> Result<u16, Box<dyn Error>> {
        let socket = bind()?;
        let local = socket.local_addr()?;
        let link = self.links.last_mut().ok_or("no connection")?;
        link.quic.migrate_source(local)?;
        // Who has moved hears nothing at the old address. quiche ends a connection over packets there
        // that bear a connection id which it has retired meanwhile.
        self.sockets.pop();
        self.sockets.push(socket);
        Ok(local.port())
    }

    fn add(&mut self, quic: quiche::Connection, id: Vec<u8>) {
        self.ids.insert(id, self.links.len());
        self.links.push(Link::new(quic, self.args.clone(), self.tally.clone()));
    }

    /// Takes in what has arrived, and waits a little for the first of it.
    fn receive(&mut self, packet: &mut [u8]) {
        let mut arrived = Vec::new();
        for (index, socket) in self.sockets.iter().enumerate() {
            let is_newest = index + 1 == self.sockets.len();
            // Only the newest is waited at; a socket that cannot be read is empty.
            socket.set_nonblocking(!is_newest).ok();
            for _ in 0..PACKETS_AT_ONCE {
                let Ok((length, from)) = socket.recv_from(packet) else { break };
                socket.set_nonblocking(true).ok();
                arrived.push((index, from, packet.get(..length).unwrap_or_default().to_vec()));
            }
        }
        for (index, from, mut data) in arrived {
            self.take(index, from, &mut data);
        }
    }

    fn take(&mut self, socket: usize, from: SocketAddr, data: &mut [u8]) {
        let Some(Ok(to)) = self.sockets.get(socket).map(UdpSocket::local_addr) else { return };
        let Ok(header) = Header::from_slice(data, CID_BYTES) else { return };
        let known = self.ids.get(header.dcid.as_ref()).copied();
        let index = match known {
            Some(index) => index,
            None if header.ty == quiche::Type::Initial && socket == 0 => {
                let id = new_id();
                let scid = ConnectionId::from_ref(&id);
                let Ok(quic) = quiche::accept(&scid, None, to, from, &mut self.server) else {
                    return;
                };
                let index = self.links.len();
                // The first packets all bear the client's choice.
                self.ids.insert(header.dcid.to_vec(), index);
                self.add(quic, id);
                index
            }
            None => return,
        };
        if let Some(link) = self.links.get_mut(index) {
            // What cannot be read is as good as lost.
            link.quic.recv(data, RecvInfo { from, to }).ok();
            // A batch of packets may hold more data than one reading of the streams.
            link.attend();
        }
    }

    fn attend(&mut self, index: usize) {
        let Some(link) = self.links.get_mut(index).filter(|link| !link.is_over()) else { return };
        if link.quic.timeout_instant().is_some_and(|due| due <= Instant::now()) {
            link.quic.on_timeout();
        }
        link.attend();
        if link.has_opened() {
            while link.quic.scids_left() > 0 {
                let id = new_id();
                let is_taken = link.quic.new_scid(&ConnectionId::from_ref(&id), token(), false);
                if is_taken.is_err() {
                    break;
                }
                self.ids.insert(id, index);
            }
            if let Some(answer) = self.dialling.take() {
                answer.give(Ok(()));
            }
        }
    }

    fn flush(&mut self, packet: &mut [u8]) {
        for link in self.links.iter_mut().filter(|link| !link.is_over()) {
            for _ in 0..PACKETS_AT_ONCE {
                let Ok((length, info)) = link.quic.send(packet) else { break };
                let is_from = |socket: &&UdpSocket| {
                    socket.local_addr().is_ok_and(|address| address == info.from)
                };
                let Some(socket) = self.sockets.iter().find(is_from) else { continue };
                // What the socket does not take is as good as lost.
                socket.send_to(packet.get(..length).unwrap_or_default(), info.to).ok();
            }
        }
    }
}

fn bind() -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.set_read_timeout(Some(LOOK))?;
    Ok(socket)
}

fn config(args: &Args) -> Result<Config, quiche::Error> {
    let mut config = Config::new(quiche::PROTOCOL_VERSION)?;
    config.set_application_protos(&[ALPN.as_bytes()])?;
    let idle = u64::try_from(args.idle_timeout.as_millis()).unwrap_or(u64::MAX);
    config.set_max_idle_timeout(idle);
    config.set_max_recv_udp_payload_size(PAYLOAD_BYTES);
    config.set_max_send_udp_payload_size(PAYLOAD_BYTES);
    config.discover_pmtu(true);
    config.set_initial_max_data(WINDOW);
    config.set_initial_max_stream_data_bidi_local(STREAM_WINDOW);
    config.set_initial_max_stream_data_bidi_remote(STREAM_WINDOW);
    config.set_initial_max_stream_data_uni(STREAM_WINDOW);
    config.set_initial_max_streams_bidi(PEER_BIDI_STREAMS);
    config.set_initial_max_streams_uni(PEER_UNI_STREAMS);
    config.set_active_connection_id_limit(CIDS);
    config.enable_pacing(false);
    Ok(config)
}

/// Nobody has to be unable to guess it: this peer has no enemies.
fn new_id() -> Vec<u8> {
    token().to_be_bytes().to_vec()
}

/// 128 bits that are not used twice.
fn token() -> u128 {
    let half = || u128::from(RandomState::new().build_hasher().finish());
    (half() << u64::BITS) | half()
}
