//! Connections and streams of s2n-quic: a task for each, which the commands reach by handles.

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use lines::{
    Args, Batch, CONNECT_TIME, Coded, Counter, Inbox, Node, Outcome, SEND_TIME, STREAMS_AT_ONCE,
    Tally,
};
use s2n_quic::client::Connect;
use s2n_quic::connection::{Error as ConnectionError, Handle, StreamAcceptor};
use s2n_quic::provider::limits::Limits;
use s2n_quic::provider::tls;
use s2n_quic::stream::{BidirectionalStream, Error as StreamError, SendStream};
use s2n_quic::{Client, Connection, Server, application};
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{interval, sleep, timeout};

/// As nodes in the field grant.
const PEER_BIDI_STREAMS: u64 = 100;
const PEER_UNI_STREAMS: u64 = 3;
/// How long the last packets may take to leave.
const LEAVE_TIME: Duration = Duration::from_millis(100);
/// How often a stream is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// Commands to a stream that wait.
const ORDERS: usize = 4;

/// The peer.
pub(crate) struct S2n<'a> {
    runtime: &'a Runtime,
    shared: Arc<Shared>,
}

/// What the tasks share.
struct Shared {
    args: Args,
    tally: Arc<Tally>,
    newest: Mutex<Option<Handle>>,
    newest_stream: Mutex<Option<mpsc::Sender<Order>>>,
}

/// What a stream is told to do.
enum Order {
    Reset(u64),
    Stop(u64),
}

impl<'a> S2n<'a> {
    pub(crate) fn new(runtime: &'a Runtime, args: Args, tally: Arc<Tally>) -> Self {
        let shared =
            Shared { args, tally, newest: Mutex::default(), newest_stream: Mutex::default() };
        Self { runtime, shared: Arc::new(shared) }
    }

    /// Listens, and says at which port.
    pub(crate) fn listen(&self) -> Result<u16, Box<dyn Error>> {
        let _context = self.runtime.enter();
        let args = &self.shared.args;
        let tls = tls::default::Server::builder()
            .with_certificate(Path::new(&args.cert), Path::new(&args.key))?
            .with_application_protocols([lines::ALPN].iter())?
            .build()?;
        let mut server = Server::builder()
            .with_tls(tls)?
            .with_io(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?
            .with_limits(self.limits()?)?
            .start()?;
        let port = server.local_addr()?.port();
        let shared = self.shared.clone();
        self.runtime.spawn(async move {
            while let Some(connection) = server.accept().await {
                shared.opened(connection);
            }
        });
        Ok(port)
    }

    /// Closes the newest connection, and lets that be said.
    pub(crate) fn leave(&self) {
        if let Some(handle) = lock(&self.shared.newest).take() {
            handle.close(application::Error::UNKNOWN);
            std::thread::sleep(LEAVE_TIME);
        }
    }

    fn limits(&self) -> Result<Limits, Box<dyn Error>> {
        Ok(Limits::new()
            .with_max_idle_timeout(self.shared.args.idle_timeout)?
            .with_max_open_remote_bidirectional_streams(PEER_BIDI_STREAMS)?
            .with_max_open_remote_unidirectional_streams(PEER_UNI_STREAMS)?)
    }

    async fn dial(&self, port: u16) -> Result<(), Box<dyn Error>> {
        let tls = tls::default::Client::builder()
            .with_certificate(Path::new(&self.shared.args.ca))?
            .with_application_protocols([lines::ALPN].iter())?
            .build()?;
        let client = Client::builder()
            .with_tls(tls)?
            .with_io(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?
            .with_limits(self.limits()?)?
            .start()?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let connect = Connect::new(address).with_server_name("localhost");
        let connection = timeout(CONNECT_TIME, client.connect(connect)).await??;
        self.shared.opened(connection);
        Ok(())
    }

    fn newest(&self) -> Outcome<Handle> {
        lock(&self.shared.newest).clone().ok_or_else(|| "no connection".to_owned())
    }

    fn order(&self, order: Order) -> Outcome {
        let newest = lock(&self.shared.newest_stream).clone().ok_or("no stream")?;
        newest.try_send(order).map_err(|_| "the stream has ended".to_owned())
    }

    async fn send_all(&self, batch: Batch) -> Outcome {
        let room = Arc::new(Semaphore::new(STREAMS_AT_ONCE));
        let mut sending = JoinSet::new();
        for writes in batch.streams {
            let seat = room.clone().acquire_owned().await.map_err(|error| error.to_string())?;
            let mut handle = self.newest()?;
            let stream = handle.open_bidirectional_stream().await.map_err(said)?;
            let shared = self.shared.clone();
            sending.spawn(async move {
                let outcome = shared.send_stream(stream, writes, batch.pause).await;
                drop(seat);
                outcome
            });
        }
        while let Some(outcome) = sending.join_next().await {
            outcome.map_err(|error| error.to_string())??;
        }
        Ok(())
    }
}

impl Node for S2n<'_> {
    fn connect(&self, port: u16) -> Outcome {
        self.runtime.block_on(self.dial(port)).map_err(|error| error.to_string())
    }

    fn send(&self, batch: Batch) -> Outcome {
        self.runtime.block_on(async {
            let late = |_| "the other end does not finish its streams".to_owned();
            timeout(SEND_TIME, self.send_all(batch)).await.map_err(late)?
        })
    }

    fn open(&self, data: Vec<u8>) -> Outcome {
        let opening = async {
            let mut handle = self.newest()?;
            let mut stream = handle.open_bidirectional_stream().await.map_err(said)?;
            stream.send(Bytes::from(data)).await.map_err(said)?;
            self.runtime.spawn(self.shared.clone().attend(stream, true));
            Ok(())
        };
        let late = |_| "no credit for a stream".to_owned();
        self.runtime.block_on(async { timeout(CONNECT_TIME, opening).await.map_err(late)? })
    }

    fn reset(&self, code: u64) -> Outcome {
        self.order(Order::Reset(code))
    }

    fn stop(&self, code: u64) -> Outcome {
        self.order(Order::Stop(code))
    }

    fn close(&self, code: u64) -> Outcome {
        self.newest()?.close(error_code(code));
        Ok(())
    }
}

impl Shared {
    fn opened(self: &Arc<Self>, connection: Connection) {
        let (handle, acceptor) = connection.split();
        *lock(&self.newest) = Some(handle.clone());
        self.tally.count(Counter::ConnectionsOpened);
        tokio::spawn(self.clone().accept_streams(acceptor, handle));
    }

    async fn accept_streams(self: Arc<Self>, mut acceptor: StreamAcceptor, mut handle: Handle) {
        let end = loop {
            match acceptor.accept_bidirectional_stream().await {
                Ok(Some(stream)) => {
                    self.tally.count(Counter::Streams);
                    tokio::spawn(self.clone().attend(stream, false));
                }
                // Silence is no error to who accepts; what is asked for next tells.
                Ok(None) => break handle.ping().err(),
                Err(error) => break Some(error),
            }
        };
        match end {
            Some(ConnectionError::Application { error, .. }) => {
                self.tally.count_code(Coded::Close, error.into());
            }
            Some(ConnectionError::IdleTimerExpired { .. }) => {
                self.tally.count(Counter::ClosedByTimeout);
            }
            _ => {}
        }
        self.tally.count(Counter::ConnectionsClosed);
    }

    /// Sends on a stream of ours, and reads until the other end has finished.
    async fn send_stream(
        self: Arc<Self>,
        stream: BidirectionalStream,
        writes: Vec<Vec<u8>>,
        pause: Duration,
    ) -> Outcome {
        let (mut receive, mut send) = stream.split();
        for data in writes {
            send.send(Bytes::from(data)).await.map_err(said)?;
            if !pause.is_zero() {
                sleep(pause).await;
            }
        }
        send.finish().map_err(said)?;
        let mut inbox = Inbox::new(self.tally.clone(), false);
        while let Some(chunk) = receive.receive().await.map_err(said)? {
            inbox.take(&chunk);
        }
        inbox.finish();
        Ok(())
    }

    /// Does on a stream what the mode says, and what it is told to.
    async fn attend(self: Arc<Self>, stream: BidirectionalStream, is_ours: bool) {
        let (orders, mut told) = mpsc::channel(ORDERS);
        *lock(&self.newest_stream) = Some(orders);
        let (mut receive, mut send) = stream.split();
        let mut inbox = Inbox::new(self.tally.clone(), self.args.has_old_habit());
        let (mut is_reading, mut is_sending) = (true, true);
        let mut looks = interval(LOOK);
        while is_reading || is_sending {
            tokio::select! {
                received = receive.receive(), if is_reading => {
                    let chunk = self.take(received, &mut inbox);
                    is_reading = chunk.is_some();
                    if is_ours || !is_sending {
                        continue;
                    }
                    // A stream that the other end refuses takes no more.
                    is_sending = match chunk {
                        Some(chunk) if self.args.is_echo() => send.send(chunk).await.is_ok(),
                        Some(_) => true,
                        None => {
                            send.finish().ok();
                            false
                        }
                    };
                }
                Some(order) = told.recv() => match order {
                    Order::Reset(code) => {
                        send.reset(error_code(code)).ok();
                        is_sending = false;
                    }
                    Order::Stop(code) => {
                        receive.stop_sending(error_code(code)).ok();
                        is_reading = false;
                    }
                },
                // s2n-quic tells of STOP_SENDING only who sends.
                _ = looks.tick(), if is_sending => {
                    if let Poll::Ready(Err(error)) = poll_once(&mut send) {
                        if let StreamError::StreamReset { error, .. } = error {
                            self.tally.count_code(Coded::Stop, error.into());
                        }
                        is_sending = false;
                    }
                }
            }
        }
    }

    /// Takes what was read; `None`: the other end's half is over.
    fn take(
        &self,
        received: Result<Option<Bytes>, StreamError>,
        inbox: &mut Inbox,
    ) -> Option<Bytes> {
        match received {
            Ok(Some(chunk)) => {
                inbox.take(&chunk);
                Some(chunk)
            }
            Ok(None) => {
                inbox.finish();
                None
            }
            Err(StreamError::StreamReset { error, .. }) => {
                self.tally.count_code(Coded::Reset, error.into());
                None
            }
            Err(_) => None,
        }
    }
}

fn poll_once(send: &mut SendStream) -> Poll<Result<usize, StreamError>> {
    send.poll_send_ready(&mut Context::from_waker(Waker::noop()))
}

/// A code beyond what QUIC can say is none.
fn error_code(code: u64) -> application::Error {
    application::Error::new(code).unwrap_or(application::Error::UNKNOWN)
}

fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// A std mutex: nothing awaits inside.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
