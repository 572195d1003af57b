//! The attacks. Each ends by itself: it is bounded in how much and in how long.

use std::error::Error;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use quinn::{
    ClientConfig, Connection, ConnectionError, Endpoint, RecvStream, SendStream, TransportConfig,
    VarInt,
};
use tokio::net::UdpSocket;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::args::{Args, Attack};
use crate::initial;
use crate::tls;
use crate::wire::{self, Pen, Rewritten, Script};

/// What the listener holds up by design is given up after so long.
const STANDSTILL: Duration = Duration::from_secs(2);
/// How long anything else may take: a handshake, a stream, what fills windows.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long all that one connection does may take: less than the tests wait.
const ATTACK: Duration = Duration::from_secs(100);
/// Streams that a listener grants, unless it was told otherwise.
const BIDI_STREAMS: u64 = 100;
const UNI_STREAMS: u64 = 3;
/// A stream behind as many as any listener may grant.
const FAR_STREAM: u64 = 1_000_000;
/// So that answers that are not read are soon held up.
const OWN_WINDOW: VarInt = VarInt::from_u32(64 * 1024);
/// The error code of all that is given up.
const CODE: VarInt = VarInt::from_u32(7);
/// Packets without data for each that has some: quinn hands ten to the system at once.
const EMPTY_BETWEEN: usize = 9;
/// Bytes handed to quinn at once.
const WRITE_BYTES: usize = 65_536;
/// The number of the connection id behind those that a listener issues at once: quinn lets it be
/// retired, and issues none for it, of which this side's quinn would have too many.
const NEXT_ID: u64 = 5;
/// What a protocol frame begins with: version, type, flags, reserved.
const FRAME: [u8; 4] = [1, 1, 0, 0];
const HEADER_BYTES: usize = 8;
/// The bits of a stream's number that say that only its opener sends (RFC 9000, section 2.1), and
/// the distance of two numbers of one kind.
const UNIDIRECTIONAL: u64 = 2;
const KINDS: u64 = 4;

/// What became of the attack, and what is held on to.
#[derive(Default)]
pub(crate) struct Held {
    connections: Vec<Connection>,
    streams: Vec<(SendStream, RecvStream)>,
    connected: usize,
    failed: usize,
    /// How the last connection that has ended did.
    ended: Option<ConnectionError>,
    /// What the attack counts.
    done: u64,
}

impl Held {
    /// As an Erlang map.
    pub(crate) fn outcome(&self) -> String {
        let ended = match &self.ended {
            None => "none".to_owned(),
            Some(ConnectionError::ConnectionClosed(close)) => {
                format!("{{transport,{}}}", u64::from(close.error_code))
            }
            Some(ConnectionError::ApplicationClosed(close)) => {
                format!("{{application,{}}}", close.error_code)
            }
            Some(ConnectionError::TimedOut) => "timeout".to_owned(),
            Some(_) => "other".to_owned(),
        };
        let (connected, failed, done) = (self.connected, self.failed, self.done);
        let closed = self.connections.iter().filter(|c| c.close_reason().is_some()).count();
        format!(
            "#{{connected=>{connected},failed=>{failed},closed=>{closed},ended=>{ended},done=>{done}}}"
        )
    }

    fn absorb(&mut self, other: Self) {
        self.connections.extend(other.connections);
        self.streams.extend(other.streams);
        self.connected += other.connected;
        self.failed += other.failed;
        self.ended = other.ended.or_else(|| self.ended.take());
        self.done += other.done;
    }
}

/// Begins the attack; what became of it comes when it is over.
pub(crate) fn attack(runtime: &Runtime, args: &Args) -> Result<Receiver<Held>, Box<dyn Error>> {
    let attacker = Attacker::new(runtime, args)?;
    let (attack, connections, count, size) = (args.attack, args.connections, args.count, args.size);
    let (done, outcome) = sync_channel(1);
    runtime.spawn(async move {
        let mut held = Held::default();
        let mut parts = JoinSet::new();
        for _ in 0..connections {
            let attacker = attacker.clone();
            parts.spawn(async move { attacker.one(attack, count, size).await });
        }
        while let Some(part) = parts.join_next().await {
            held.absorb(part.unwrap_or_default());
        }
        // Nobody waits any more when the program has ended.
        done.send(held).ok();
    });
    Ok(outcome)
}

/// One who attacks, by connections of his own.
#[derive(Clone)]
struct Attacker {
    endpoint: Endpoint,
    tls: Arc<quinn::crypto::rustls::QuicClientConfig>,
    server: SocketAddr,
}

impl Attacker {
    fn new(runtime: &Runtime, args: &Args) -> Result<Self, Box<dyn Error>> {
        let _context = runtime.enter();
        Ok(Self {
            endpoint: Endpoint::client((args.from, 0).into())?,
            tls: tls::client_config(args)?,
            server: (Ipv4Addr::LOCALHOST, args.port).into(),
        })
    }

    /// What one of the connections does, or one of those who begin handshakes.
    async fn one(self, attack: Attack, count: u64, size: u32) -> Held {
        let mut held = Held::default();
        if attack == Attack::Hellos {
            self.hellos(&mut held, count).await;
            return held;
        }
        if attack == Attack::Farewells {
            self.farewells(&mut held, count).await.ok();
            return held;
        }
        let pen = match attack {
            Attack::Repeats => Pen::Script(repeats(count)),
            Attack::Gaps => Pen::Script(gaps(count)),
            Attack::Sparse => Pen::Script(sparse(count)),
            Attack::Crumbs => Pen::Script(crumbs(count)),
            Attack::Stray => Pen::Script(stray()),
            Attack::Retirements => Pen::Script(retirements(count)),
            _ => Pen::Honest,
        };
        let Some(connection) = self.connect(&mut held, &pen).await else {
            return held;
        };
        let work = async {
            match (attack, pen) {
                (Attack::Knock, _) => knock(&connection, &mut held).await,
                (Attack::Unis, _) => unis(&connection, &mut held, count).await,
                (Attack::Resets, _) => resets(&connection, &mut held, count).await,
                (Attack::Stops, _) => stops(&connection, &mut held, count).await,
                (Attack::Frames, _) => frames(&connection, &mut held, size).await,
                // A standstill is what flow control is for.
                (Attack::Unread, _) => {
                    timeout(PATIENCE, unread(&connection, &mut held)).await.ok().flatten()
                }
                (Attack::Deaf, _) => deaf(&connection, &mut held, count, size).await,
                (_, Pen::Script(script)) => recite(&connection, &mut held, &script).await,
                _ => None,
            }
        };
        timeout(ATTACK, work).await.ok();
        held.ended = connection.close_reason();
        held.connections.push(connection);
        held
    }

    async fn connect(&self, held: &mut Held, pen: &Pen) -> Option<Connection> {
        let rewritten = Rewritten { honest: self.tls.clone(), pen: pen.clone() };
        let mut config = ClientConfig::new(Arc::new(rewritten));
        let mut transport = TransportConfig::default();
        transport.stream_receive_window(OWN_WINDOW).receive_window(OWN_WINDOW);
        transport.keep_alive_interval(Some(STANDSTILL)).mtu_discovery_config(None);
        config.transport_config(Arc::new(transport));
        let dialled = match self.endpoint.connect_with(config, self.server, "localhost") {
            Ok(connecting) => timeout(PATIENCE, connecting).await,
            Err(_) => return None,
        };
        match dialled {
            Ok(Ok(connection)) => {
                held.connected += 1;
                Some(connection)
            }
            Ok(Err(error)) => {
                held.failed += 1;
                held.ended = Some(error);
                None
            }
            Err(_) => {
                held.failed += 1;
                None
            }
        }
    }

    /// One datagram after the other, each of which has an id of its own: whence it comes, and how
    /// many came before.
    async fn farewells(&self, held: &mut Held, count: u64) -> io::Result<()> {
        let socket = UdpSocket::bind((self.endpoint.local_addr()?.ip(), 0)).await?;
        let port = u64::from(socket.local_addr()?.port());
        for number in 0..count {
            let id = ((number << u16::BITS) | port).to_be_bytes();
            let datagram = initial::closed_in_its_second_packet(id);
            socket.send_to(&datagram.ok_or(ErrorKind::Unsupported)?, self.server).await?;
            held.done += 1;
        }
        Ok(())
    }

    /// One handshake after the other, none of which is finished.
    async fn hellos(&self, held: &mut Held, count: u64) {
        for _ in 0..count {
            held.done += 1;
            // To this side it looks finished: what would finish it is written over.
            if let Some(connection) = self.connect(held, &Pen::Mute).await {
                held.ended = timeout(2 * STANDSTILL, connection.closed()).await.ok();
            }
        }
    }
}

async fn knock(connection: &Connection, held: &mut Held) -> Option<()> {
    let (mut send, recv) = connection.open_bi().await.ok()?;
    send.write_all(&frame(1, 1)).await.ok()?;
    send.finish().ok()?;
    held.streams.push((send, recv));
    held.done += 1;
    timeout(STANDSTILL, connection.closed()).await.ok()?;
    None
}

async fn unis(connection: &Connection, held: &mut Held, count: u64) -> Option<()> {
    for _ in 0..count {
        let mut send = timeout(STANDSTILL / 4, connection.open_uni()).await.ok()?.ok()?;
        send.write_all(&frame(1, 1)).await.ok()?;
        send.finish().ok()?;
        held.done += 1;
    }
    Some(())
}

async fn resets(connection: &Connection, held: &mut Held, count: u64) -> Option<()> {
    for _ in 0..count {
        let (mut send, mut recv) = timeout(PATIENCE, connection.open_bi()).await.ok()?.ok()?;
        send.write_all(&frame(100, 100)).await.ok()?;
        send.reset(CODE).ok()?;
        recv.stop(CODE).ok()?;
        held.done += 1;
    }
    Some(())
}

async fn stops(connection: &Connection, held: &mut Held, count: u64) -> Option<()> {
    for _ in 0..count {
        let (mut send, mut recv) = timeout(PATIENCE, connection.open_bi()).await.ok()?.ok()?;
        send.write_all(&frame(100, 100)).await.ok()?;
        recv.stop(CODE).ok()?;
        send.finish().ok()?;
        held.done += 1;
    }
    Some(())
}

/// Fills packets with data that is never sent: the script is, in its place.
async fn recite(connection: &Connection, held: &mut Held, script: &Script) -> Option<()> {
    // All that the listener may speak of has to be open here.
    for _ in 0..BIDI_STREAMS {
        held.streams.push(connection.open_bi().await.ok()?);
    }
    let before = script.left();
    let sent = || u64::try_from(before - script.left()).unwrap_or(u64::MAX);
    let chunk = vec![0; WRITE_BYTES];
    for (send, _) in &mut held.streams {
        while script.left() > 0 {
            let outcome = timeout(STANDSTILL, send.write_all(&chunk)).await;
            held.done = sent();
            match outcome {
                Ok(Ok(())) => {}
                // Held up, or stopped by the listener: the next stream may do.
                _ => break,
            }
        }
        if connection.close_reason().is_some() {
            break;
        }
    }
    held.done = sent();
    Some(())
}

/// One byte, and then `count` times that its answer is not wanted.
fn repeats(count: u64) -> Arc<Script> {
    let stops = (0..count).map(|_| wire::stop_sending(0, CODE.into_inner()));
    Script::new(wire::packets([wire::stream(0, 0, &[0])].into_iter().chain(stops)))
}

/// `count` single bytes a stream, none of which touches another.
fn gaps(count: u64) -> Arc<Script> {
    Script::new(wire::packets(scattered(count)))
}

/// The same bytes, each in a packet of its own, with [`EMPTY_BETWEEN`] that say nothing before the
/// next: as many as leave here, and so arrive there, at once.
fn sparse(count: u64) -> Arc<Script> {
    let empty = vec![wire::nothing(); EMPTY_BETWEEN];
    Script::new(scattered(count).flat_map(|byte| [vec![byte], empty.clone()].concat()))
}

fn scattered(count: u64) -> impl Iterator<Item = Vec<u8>> {
    let streams = all_streams();
    (0..count).flat_map(move |index| {
        streams.clone().into_iter().map(move |id| wire::stream(id, 2 * index + 1, &[0]))
    })
}

/// `count` bytes of one long frame a stream, each byte in a packet of its own; and all again, for
/// those that were lost.
fn crumbs(count: u64) -> Arc<Script> {
    let mut data = frame(u32::MAX >> 12, 0);
    data.resize(usize::try_from(count).unwrap_or(usize::MAX), 0);
    let once = (0_u64..).zip(data).map(|(offset, byte)| wire::stream(0, offset, &[byte]));
    let once: Vec<Vec<u8>> = once.collect();
    Script::new([once.clone(), once].concat())
}

/// One byte on a stream beyond all that a listener grants.
fn stray() -> Arc<Script> {
    Script::new([wire::stream(KINDS * FAR_STREAM, 0, &[0])])
}

/// `count` full packets that retire one connection id.
fn retirements(count: u64) -> Arc<Script> {
    let retirement = wire::retire_connection_id(NEXT_ID);
    let packet = retirement.repeat(wire::PACKET_BYTES / retirement.len());
    Script::new((0..count).map(|_| packet.clone()))
}

fn all_streams() -> Vec<u64> {
    let bidi = (0..BIDI_STREAMS).map(|index| KINDS * index);
    let uni = (0..UNI_STREAMS).map(|index| KINDS * index + UNIDIRECTIONAL);
    bidi.chain(uni).collect()
}

async fn frames(connection: &Connection, held: &mut Held, size: u32) -> Option<()> {
    let announced = size.saturating_sub(u32::try_from(HEADER_BYTES).ok()?);
    let almost = frame(announced, announced.saturating_sub(1));
    let mut sending = JoinSet::new();
    for _ in 0..BIDI_STREAMS {
        let (mut send, recv) = connection.open_bi().await.ok()?;
        let almost = almost.clone();
        sending.spawn(async move {
            let sent = timeout(PATIENCE / 2, send.write_all(&almost)).await;
            (matches!(sent, Ok(Ok(()))), send, recv)
        });
    }
    while let Some(outcome) = sending.join_next().await {
        let (is_sent, send, recv) = outcome.ok()?;
        held.done += u64::from(is_sent);
        held.streams.push((send, recv));
    }
    Some(())
}

async fn unread(connection: &Connection, held: &mut Held) -> Option<()> {
    let chunk = vec![0; WRITE_BYTES];
    for _ in 0..BIDI_STREAMS {
        let (mut send, recv) = connection.open_bi().await.ok()?;
        while let Ok(Ok(())) = timeout(STANDSTILL / 4, send.write_all(&chunk)).await {
            held.done += 1;
        }
        held.streams.push((send, recv));
        if connection.close_reason().is_some() {
            return None;
        }
    }
    Some(())
}

async fn deaf(connection: &Connection, held: &mut Held, count: u64, size: u32) -> Option<()> {
    let request = frame(size, size);
    let (mut send, recv) = connection.open_bi().await.ok()?;
    for _ in 0..count {
        if timeout(PATIENCE, send.write_all(&request)).await.ok()?.is_err() {
            break;
        }
        held.done += 1;
    }
    held.streams.push((send, recv));
    Some(())
}

/// A protocol frame that says that it has `announced` bytes of payload, and has `size`.
fn frame(announced: u32, size: u32) -> Vec<u8> {
    let mut frame = FRAME.to_vec();
    frame.extend(announced.to_be_bytes());
    frame.resize(HEADER_BYTES + usize::try_from(size).unwrap_or_default(), 0);
    frame
}
