//! Connections and streams of MsQuic. Each handle is closed by whoever owns it: connections by the
//! list of all of them, streams by their own last event, as MsQuic asks for.
#![allow(unsafe_code, reason = "the crate hands out and takes in raw handles and buffers")]

use std::ffi::c_void;
use std::net::{Ipv4Addr, SocketAddr};
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lines::{
    ALPN, Args, Batch, CONNECT_TIME, Coded, Counter, Inbox, Node, Outcome, Room, SEND_TIME,
    STREAMS_AT_ONCE, Tally,
};
use msquic::ffi::HQUIC;
use msquic::{
    Addr, Api, BufferRef, CertificateFile, Configuration, Connection, ConnectionEvent,
    ConnectionRef, ConnectionShutdownFlags, Credential, CredentialConfig, CredentialFlags,
    Listener, ListenerEvent, Registration, RegistrationConfig, SendFlags, Settings, Status,
    StatusCode, Stream, StreamEvent, StreamOpenFlags, StreamRef, StreamShutdownFlags,
    StreamStartFlags,
};

/// As nodes in the field grant.
const PEER_BIDI_STREAMS: u16 = 100;
const PEER_UNI_STREAMS: u16 = 3;
/// QUIC_PARAM_CONN_FORCE_KEY_UPDATE of msquicp.h.
const FORCE_KEY_UPDATE: u32 = 0x8500_0000;
/// QUIC_PARAM_CONN_LOCAL_ADDRESS of msquic.h.
const LOCAL_ADDRESS: u32 = 0x0500_0001;

const INVALID_STATE: u32 = StatusCode::QUIC_STATUS_INVALID_STATE as u32;
/// How long nothing must arrive before a move. It is long beside a delayed acknowledgement.
const SILENCE: Duration = Duration::from_millis(150);
/// Between two attempts at new keys.
const KEY_UPDATE_PAUSE: Duration = Duration::from_millis(5);

/// The library and its two configurations.
pub(crate) struct Stack {
    server: Arc<Configuration>,
    client: Configuration,
    // Last: it waits for all that was made of it.
    registration: Registration,
}

impl Stack {
    pub(crate) fn new(args: &Args) -> Result<Self, Status> {
        let registration = Registration::new(&RegistrationConfig::default())?;
        let idle = u64::try_from(args.idle_timeout.as_millis()).unwrap_or(u64::MAX);
        let settings = Settings::new()
            .set_IdleTimeoutMs(idle)
            .set_PeerBidiStreamCount(PEER_BIDI_STREAMS)
            .set_PeerUnidiStreamCount(PEER_UNI_STREAMS);
        let alpn = [BufferRef::from(ALPN)];
        let server = Configuration::open(&registration, &alpn, Some(&settings))?;
        let files = CertificateFile::new(args.key.clone(), args.cert.clone());
        let identity = CredentialConfig::new()
            .set_credential_flags(CredentialFlags::NO_CERTIFICATE_VALIDATION)
            .set_credential(Credential::CertificateFile(files));
        server.load_credential(&identity)?;
        let client = Configuration::open(&registration, &alpn, Some(&settings))?;
        let anybody = CredentialConfig::new_client()
            .set_credential_flags(CredentialFlags::NO_CERTIFICATE_VALIDATION);
        client.load_credential(&anybody)?;
        Ok(Self { server: Arc::new(server), client, registration })
    }
}

/// The peer.
pub(crate) struct MsQuic<'a> {
    stack: &'a Stack,
    shared: Arc<Shared>,
}

/// What the callbacks share.
struct Shared {
    args: Args,
    tally: Arc<Tally>,
    room: Room,
    connections: Mutex<Vec<Arc<Connection>>>,
    /// The stream that was opened last, by whomever, while its handle is valid.
    newest_stream: Mutex<Option<StreamHandle>>,
}

/// A stream's handle, which its own last event closes.
#[derive(Clone, Copy, PartialEq, Eq)]
struct StreamHandle(HQUIC);

// SAFETY: MsQuic's calls on a handle are made from any thread (docs/API.md of MsQuic).
unsafe impl Send for StreamHandle {}

impl<'a> MsQuic<'a> {
    pub(crate) fn new(stack: &'a Stack, args: Args, tally: Arc<Tally>) -> Self {
        let shared = Arc::new(Shared {
            args,
            tally,
            room: Room::default(),
            connections: Mutex::default(),
            newest_stream: Mutex::default(),
        });
        Self { stack, shared }
    }

    pub(crate) fn listen(&self) -> Result<Door, Status> {
        let (shared, server) = (self.shared.clone(), self.stack.server.clone());
        let listener = Listener::open(&self.stack.registration, move |_, event| {
            if let ListenerEvent::NewConnection { connection, .. } = event {
                connection.set_callback_handler(shared.clone().connection_handler());
                connection.set_configuration(&server)?;
                // SAFETY: the handle is ours from here on, and this is its only owner.
                let owned = unsafe { Connection::from_raw(connection.as_raw()) };
                lock(&shared.connections).push(Arc::new(owned));
            }
            Ok(())
        })?;
        let address = Addr::from(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        listener.start(&[BufferRef::from(ALPN)], Some(&address))?;
        Ok(Door(listener))
    }

    /// Closes all connections; waits until MsQuic has let go of them.
    pub(crate) fn leave(&self) {
        let connections = std::mem::take(&mut *lock(&self.shared.connections));
        for connection in &connections {
            connection.shutdown(ConnectionShutdownFlags::NONE, 0);
        }
        drop(connections);
    }

    fn newest(&self) -> Outcome<Arc<Connection>> {
        lock(&self.shared.connections).last().cloned().ok_or_else(|| "no connection".to_owned())
    }

    /// Opens a stream, which leaves the room when the other end has finished or is gone.
    fn open_stream(&self, is_in_room: bool) -> Outcome<StreamHandle> {
        let connection = self.newest()?;
        let mut handler = StreamHandler::new(self.shared.clone(), true);
        handler.is_in_room = is_in_room;
        let mut newest = lock(&self.shared.newest_stream);
        let stream = Stream::open(&connection, StreamOpenFlags::NONE, handler.callback());
        let stream = stream.map_err(|status| status.to_string())?;
        stream.start(StreamStartFlags::NONE).map_err(|status| status.to_string())?;
        // SAFETY: the stream's last event closes the handle.
        let handle = StreamHandle(unsafe { stream.into_raw() });
        *newest = Some(handle);
        Ok(handle)
    }

    fn with_newest_stream(&self, act: impl FnOnce(&Stream) -> Result<(), Status>) -> Outcome {
        // Held meanwhile, so that the handle stays valid.
        let newest = lock(&self.shared.newest_stream);
        let handle = newest.as_ref().ok_or("no stream")?;
        handle.borrow(act).map_err(|status| status.to_string())
    }
}

impl StreamHandle {
    fn borrow<T>(self, act: impl FnOnce(&Stream) -> T) -> T {
        // SAFETY: whoever has the handle sees to it that the last event has not come.
        let stream = unsafe { Stream::from_raw(self.0) };
        let result = act(&stream);
        // SAFETY: it was borrowed; its owner closes it.
        unsafe { stream.into_raw() };
        result
    }
}

impl Node for MsQuic<'_> {
    fn connect(&self, port: u16) -> Outcome {
        let shared = self.shared.clone();
        let opened = shared.tally.get(Counter::ConnectionsOpened);
        let handler = shared.clone().connection_handler();
        let connection = Connection::open(&self.stack.registration, handler)
            .map_err(|status| status.to_string())?;
        connection
            .start(&self.stack.client, "127.0.0.1", port)
            .map_err(|status| status.to_string())?;
        lock(&shared.connections).push(Arc::new(connection));
        match shared.tally.wait(Counter::ConnectionsOpened, opened + 1, CONNECT_TIME) {
            true => Ok(()),
            false => Err("no connection in time".to_owned()),
        }
    }

    fn send(&self, batch: Batch) -> Outcome {
        let deadline = Instant::now() + SEND_TIME;
        let left = || deadline.saturating_duration_since(Instant::now());
        for writes in batch.streams {
            if !self.shared.room.enter(STREAMS_AT_ONCE, left()) {
                return Err("the other end does not finish its streams".to_owned());
            }
            let stream = self.open_stream(true)?;
            let last = writes.len() - 1;
            for (index, data) in writes.into_iter().enumerate() {
                if index > 0 {
                    std::thread::sleep(batch.pause);
                }
                // Valid: the stream cannot end before FIN was sent, unless the connection does.
                stream.borrow(|stream| send(stream, data, index == last))?;
            }
        }
        match self.shared.room.wait_until_empty(left()) {
            true => Ok(()),
            false => Err("the other end does not finish its streams".to_owned()),
        }
    }

    fn open(&self, data: Vec<u8>) -> Outcome {
        let stream = self.open_stream(false)?;
        stream.borrow(|stream| send(stream, data, false))
    }

    fn reset(&self, code: u64) -> Outcome {
        self.with_newest_stream(|stream| stream.shutdown(StreamShutdownFlags::ABORT_SEND, code))
    }

    fn stop(&self, code: u64) -> Outcome {
        self.with_newest_stream(|stream| stream.shutdown(StreamShutdownFlags::ABORT_RECEIVE, code))
    }

    fn close(&self, code: u64) -> Outcome {
        self.newest()?.shutdown(ConnectionShutdownFlags::NONE, code);
        Ok(())
    }

    fn key_update(&self) -> Outcome {
        let connection = self.newest()?;
        let deadline = Instant::now() + CONNECT_TIME;
        loop {
            // SAFETY: the parameter has no value.
            let updated =
                unsafe { Api::set_param(connection.as_raw(), FORCE_KEY_UPDATE, 0, ptr::null()) };
            match updated {
                // The update before has not been acknowledged yet (RFC 9001, section 6.1).
                Err(status) if status.0 == INVALID_STATE && Instant::now() < deadline => {
                    std::thread::sleep(KEY_UPDATE_PAUSE);
                }
                updated => return updated.map_err(|status| status.to_string()),
            }
        }
    }

    fn rebind(&self) -> Outcome<u16> {
        let connection = self.newest()?;
        wait_for_silence(&connection)?;
        let address = Addr::from(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        let length = u32::try_from(size_of::<Addr>()).unwrap_or(0);
        // SAFETY: the value is an address of this length, which MsQuic copies.
        unsafe {
            let value = ptr::from_ref(&address).cast::<c_void>();
            Api::set_param(connection.as_raw(), LOCAL_ADDRESS, length, value)
        }
        .map_err(|status| status.to_string())?;
        let local = connection.get_local_addr().map_err(|status| status.to_string())?;
        local.as_socket().map(|address| address.port()).ok_or_else(|| "no address".to_owned())
    }
}

impl Shared {
    fn connection_handler(
        self: Arc<Self>,
    ) -> impl FnMut(ConnectionRef, ConnectionEvent) -> Result<(), Status> + 'static {
        move |_, event| {
            match event {
                ConnectionEvent::Connected { .. } => self.tally.count(Counter::ConnectionsOpened),
                ConnectionEvent::PeerStreamStarted { stream, .. } => {
                    self.tally.count(Counter::Streams);
                    // SAFETY: the stream's last event closes the handle.
                    let handle = StreamHandle(unsafe { stream.as_raw() });
                    *lock(&self.newest_stream) = Some(handle);
                    let handler = StreamHandler::new(self.clone(), false);
                    stream.set_callback_handler(handler.callback());
                }
                ConnectionEvent::ShutdownInitiatedByPeer { error_code } => {
                    self.tally.count_code(Coded::Close, error_code);
                }
                ConnectionEvent::ShutdownInitiatedByTransport { status, .. }
                    if status.0 == Status::new(StatusCode::QUIC_STATUS_CONNECTION_IDLE).0 =>
                {
                    self.tally.count(Counter::ClosedByTimeout);
                }
                ConnectionEvent::ShutdownComplete { .. } => {
                    self.tally.count(Counter::ConnectionsClosed);
                }
                _ => {}
            }
            Ok(())
        }
    }
}

/// What is done on one stream.
struct StreamHandler {
    shared: Arc<Shared>,
    inbox: Inbox,
    is_ours: bool,
    is_in_room: bool,
}

impl StreamHandler {
    fn new(shared: Arc<Shared>, is_ours: bool) -> Self {
        let inbox = Inbox::new(shared.tally.clone(), shared.args.has_old_habit());
        Self { shared, inbox, is_ours, is_in_room: false }
    }

    fn callback(mut self) -> impl FnMut(StreamRef, StreamEvent) -> Result<(), Status> + 'static {
        move |stream, event| {
            self.handle(&stream, event);
            Ok(())
        }
    }

    fn handle(&mut self, stream: &StreamRef, event: StreamEvent) {
        let tally = &self.shared.tally;
        match event {
            StreamEvent::Receive { buffers, .. } => {
                // As the Erlang binding of nodes in the field: an event is one chunk.
                let chunk: Vec<u8> =
                    buffers.iter().flat_map(|buffer| buffer.as_bytes()).copied().collect();
                self.inbox.take(&chunk);
                if self.shared.args.is_echo() && !self.is_ours && !chunk.is_empty() {
                    // A stream that the other end refuses takes no more.
                    send(stream, chunk, false).ok();
                }
            }
            StreamEvent::PeerSendShutdown => {
                self.inbox.finish();
                self.end(stream);
            }
            StreamEvent::PeerSendAborted { error_code } => {
                tally.count_code(Coded::Reset, error_code);
                self.end(stream);
            }
            StreamEvent::PeerReceiveAborted { error_code } => {
                tally.count_code(Coded::Stop, error_code);
            }
            StreamEvent::SendComplete { client_context, .. } => {
                // SAFETY: it is what `send` has made of a box, and comes once.
                drop(unsafe { Box::from_raw(client_context.cast::<Sending>().cast_mut()) });
            }
            StreamEvent::ShutdownComplete { .. } => {
                self.end(stream);
                // SAFETY: only compared.
                let handle = StreamHandle(unsafe { stream.as_raw() });
                lock(&self.shared.newest_stream).take_if(|newest| *newest == handle);
                // SAFETY: the last event; nobody uses the handle after it, nor this handler.
                drop(unsafe { Stream::from_raw(stream.as_raw()) });
            }
            _ => {}
        }
    }

    /// The other end's half is over; ours, too.
    fn end(&mut self, stream: &StreamRef) {
        if !self.is_ours {
            // One that has ended already needs no end.
            stream.shutdown(StreamShutdownFlags::GRACEFUL, 0).ok();
        }
        if std::mem::take(&mut self.is_in_room) {
            self.shared.room.leave();
        }
    }
}

/// MsQuic keeps what its old socket has received, and after a move takes it for the peer's own move
/// to a path which no socket is left for (the TODO at QUIC_PARAM_CONN_LOCAL_ADDRESS in MsQuic's
/// connection.c). A move while packets are under way so ends every second connection.
fn wait_for_silence(connection: &Connection) -> Outcome {
    let received = || {
        let stats = connection.get_stats_v2().map_err(|status| status.to_string())?;
        Ok::<_, String>(stats.RecvTotalPackets)
    };
    let deadline = Instant::now() + CONNECT_TIME;
    let mut before = received()?;
    while Instant::now() < deadline {
        std::thread::sleep(SILENCE);
        let after = received()?;
        if after == before {
            return Ok(());
        }
        before = after;
    }
    Err("the other end never falls silent".to_owned())
}

/// Bytes that MsQuic sends; they must stay until it says so.
struct Sending {
    _data: Vec<u8>,
    buffer: [BufferRef; 1],
}

fn send(stream: &Stream, data: Vec<u8>, is_last: bool) -> Outcome {
    let buffer = [BufferRef::from(data.as_slice())];
    let sending = Box::into_raw(Box::new(Sending { _data: data, buffer }));
    let flags = if is_last { SendFlags::FIN } else { SendFlags::NONE };
    // SAFETY: the box stays until SendComplete hands it back.
    let sent = unsafe { stream.send(&(*sending).buffer, flags, sending.cast::<c_void>()) };
    sent.map_err(|status| {
        // SAFETY: MsQuic has not taken it.
        drop(unsafe { Box::from_raw(sending) });
        status.to_string()
    })
}

/// A listener that listens.
pub(crate) struct Door(Listener);

impl Door {
    pub(crate) fn port(&self) -> Result<u16, Status> {
        let address = self.0.get_local_addr()?;
        Ok(address.as_socket().map_or(0, |address| address.port()))
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// A std mutex: what is done inside is short, and MsQuic does not call back from it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
