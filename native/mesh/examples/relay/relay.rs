//! The relay: one socket for all clients, and one towards the server for each of them, as a NAT
//! has. Packets are judged when they come (`fate.rs`), wait in one queue, and are sent by one task.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use crate::fate::{self, Direction, Fate};
use crate::faults::Faults;
use crate::queue::{Packet, Queue};

/// What is asked of the kernel, in each direction, so that what is lost is lost here on purpose.
const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;
/// Clients at once, each with a socket; the one that has been silent longest makes place.
const MOST_FLOWS: usize = 64;
/// No UDP packet is longer.
const LONGEST_PACKET: usize = 65_535;

/// One client: its address, and the socket that the server knows it by.
pub(crate) struct Flow {
    client: SocketAddr,
    /// A std mutex, because nothing awaits inside.
    upstream: Mutex<Upstream>,
}

struct Upstream {
    socket: Arc<UdpSocket>,
    reading: AbortHandle,
}

/// What has become of the packets of one direction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    pub(crate) received: u64,
    pub(crate) sent: u64,
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    pub(crate) reordered: u64,
    pub(crate) corrupted: u64,
    pub(crate) too_long: u64,
    pub(crate) blacked_out: u64,
    /// There was no room in the queue.
    pub(crate) overflowed: u64,
    /// The kernel did not take them.
    pub(crate) unsent: u64,
}

/// One direction: its faults, and what they did.
#[derive(Default)]
pub(crate) struct Way {
    pub(crate) faults: Faults,
    pub(crate) counters: Counters,
    /// Packets since the start: the number of the next one.
    number: u64,
}

/// The relay, shared by its tasks and whoever commands it.
pub(crate) struct Relay {
    seed: u64,
    server: SocketAddr,
    downstream: UdpSocket,
    /// A std mutex, because nothing awaits inside.
    state: Mutex<State>,
    has_packets: Notify,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) up: Way,
    pub(crate) down: Way,
    pub(crate) queue: Queue,
    /// A packet has left the queue and is not counted yet.
    is_sending: bool,
    pub(crate) rebinds: u64,
    /// The one that was silent longest first.
    pub(crate) flows: VecDeque<Arc<Flow>>,
}

impl Relay {
    /// Binds the clients' socket, within a runtime.
    pub(crate) fn bind(seed: u64, port: u16, server: SocketAddr) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            seed,
            server,
            downstream: socket(port)?,
            state: Mutex::default(),
            has_packets: Notify::new(),
        }))
    }

    /// The port that clients send to.
    pub(crate) fn port(&self) -> io::Result<u16> {
        Ok(self.downstream.local_addr()?.port())
    }

    /// Takes what clients send, for as long as the process lives.
    pub(crate) async fn listen(self: Arc<Self>) {
        let mut buffer = vec![0; LONGEST_PACKET];
        loop {
            // An error here is about a packet sent before: a client that has gone.
            if let Ok((length, client)) = self.downstream.recv_from(&mut buffer).await
                && let Ok(flow) = self.flow(client)
            {
                self.admit(&flow, Direction::Up, buffer.get(..length).unwrap_or_default());
            }
        }
    }

    /// Sends what is due, for as long as the process lives.
    pub(crate) async fn deliver(self: Arc<Self>) {
        loop {
            match self.next() {
                Ok(packet) => self.send(packet).await,
                Err(Some(due)) => tokio::select! {
                    () = sleep_until(due) => {}
                    () = self.has_packets.notified() => {}
                },
                Err(None) => self.has_packets.notified().await,
            }
        }
    }

    fn next(&self) -> Result<Packet, Option<Instant>> {
        let mut state = self.lock();
        let next = state.queue.pop(Instant::now());
        state.is_sending = next.is_ok();
        next
    }

    /// Gives every client another port towards the server; what the server still sends to the
    /// former ones is lost, as behind a NAT that has forgotten them. Says how many.
    pub(crate) fn rebind(self: &Arc<Self>) -> io::Result<usize> {
        let flows: Vec<_> = self.lock().flows.iter().cloned().collect();
        for flow in &flows {
            let fresh = self.upstream(flow)?;
            let former = std::mem::replace(&mut *flow.lock(), fresh);
            former.reading.abort();
        }
        self.lock().rebinds += 1;
        Ok(flows.len())
    }

    /// A std mutex, because nothing awaits inside.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn flow(self: &Arc<Self>, client: SocketAddr) -> io::Result<Arc<Flow>> {
        let mut state = self.lock();
        let place = state.flows.iter().position(|flow| flow.client == client);
        let known = place.and_then(|place| state.flows.remove(place));
        let flow = match known {
            Some(flow) => flow,
            None => self.open(client)?,
        };
        if state.flows.len() >= MOST_FLOWS
            && let Some(silent) = state.flows.pop_front()
        {
            silent.lock().reading.abort();
        }
        state.flows.push_back(flow.clone());
        Ok(flow)
    }

    fn open(self: &Arc<Self>, client: SocketAddr) -> io::Result<Arc<Flow>> {
        let socket = Arc::new(socket(0)?);
        // Nothing reads yet: the reading task needs the flow that it belongs to.
        let reading = tokio::spawn(async {}).abort_handle();
        let flow = Arc::new(Flow { client, upstream: Mutex::new(Upstream { socket, reading }) });
        let upstream = self.upstream(&flow)?;
        *flow.lock() = upstream;
        Ok(flow)
    }

    /// A new socket towards the server, and the task that reads it. That holds its flow and ends
    /// with it: by being aborted.
    fn upstream(self: &Arc<Self>, flow: &Arc<Flow>) -> io::Result<Upstream> {
        let socket = Arc::new(socket(0)?);
        let (relay, flow, server) = (self.clone(), flow.clone(), socket.clone());
        let reading = tokio::spawn(async move {
            let mut buffer = vec![0; LONGEST_PACKET];
            loop {
                if let Ok((length, from)) = server.recv_from(&mut buffer).await
                    && from == relay.server
                {
                    let bytes = buffer.get(..length).unwrap_or_default();
                    relay.admit(&flow, Direction::Down, bytes);
                }
            }
        });
        Ok(Upstream { socket, reading: reading.abort_handle() })
    }

    /// Judges a packet, and puts it on its way.
    fn admit(&self, flow: &Arc<Flow>, direction: Direction, bytes: &[u8]) {
        let now = Instant::now();
        let mut state = self.lock();
        let way = state.way(direction);
        let fate = fate::of(self.seed, direction, way.number, bytes.len(), &way.faults);
        way.number += 1;
        way.counters.received += 1;
        let passage = match fate {
            Fate::Forward(passage) => passage,
            Fate::BlackedOut => return way.counters.blacked_out += 1,
            Fate::TooLong => return way.counters.too_long += 1,
            Fate::Lost => return way.counters.lost += 1,
        };
        let mut bytes = bytes.to_vec();
        if let Some((place, bits)) = passage.corruption
            && let Some(byte) = bytes.get_mut(place)
        {
            *byte ^= bits;
            way.counters.corrupted += 1;
        }
        way.counters.reordered += u64::from(passage.is_held_back);
        way.counters.duplicated += u64::from(passage.copy.is_some());
        for delay in passage.copy.into_iter().chain([passage.delay]) {
            let packet = Packet { flow: flow.clone(), direction, bytes: bytes.clone() };
            if !state.queue.push(now + delay, packet) {
                state.way(direction).counters.overflowed += 1;
            }
        }
        self.has_packets.notify_one();
    }

    async fn send(&self, packet: Packet) {
        let Packet { flow, direction, bytes } = packet;
        let sent = match direction {
            Direction::Down => self.downstream.send_to(&bytes, flow.client).await,
            Direction::Up => {
                let socket = flow.lock().socket.clone();
                socket.send_to(&bytes, self.server).await
            }
        };
        let mut state = self.lock();
        state.is_sending = false;
        let counters = &mut state.way(direction).counters;
        match sent {
            Ok(_) => counters.sent += 1,
            Err(_) => counters.unsent += 1,
        }
    }
}

impl State {
    /// Packets on their way.
    pub(crate) fn queued(&self) -> usize {
        self.queue.len() + usize::from(self.is_sending)
    }

    pub(crate) fn way(&mut self, direction: Direction) -> &mut Way {
        match direction {
            Direction::Up => &mut self.up,
            Direction::Down => &mut self.down,
        }
    }
}

impl Flow {
    fn lock(&self) -> MutexGuard<'_, Upstream> {
        self.upstream.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Not connected: a server that has gone and come back must not be told of as an error.
fn socket(port: u16) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    // The kernel grants what its limits allow.
    socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.set_send_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into())?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket.into())
}
