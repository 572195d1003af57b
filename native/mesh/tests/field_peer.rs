//! A peer as nodes in the field are: it speaks `macula` and no more, and returns no stream credit.
//! Its connection is replaced again and again, and what else is on it goes on.

#![allow(clippy::disallowed_methods, reason = "tokio's test macro blocks, on a thread of the test")]
#![allow(clippy::expect_used, reason = "how a test fails")]

#[path = "common/field.rs"]
mod field;
#[path = "common/wait.rs"]
mod wait;

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use mesh::{Address, Config, Error, Mesh, Plain, PooledConnection, Received, Sent};
use mesh::{Snapshot, Target, Verification};
use tokio::sync::mpsc;
use tokio::time::timeout;
use wait::until;

/// How long anything here may take at most.
const PATIENCE: Duration = Duration::from_secs(10);
const NODE: &[u8] = b"node";

/// A pool and a server that grants so many streams to each connection. What arrives on them is
/// acknowledged, and stays there.
struct Scene {
    mesh: Mesh<Plain>,
    address: SocketAddr,
    /// Connections in the order in which they were made.
    accepted: mpsc::Receiver<quinn::Connection>,
}

impl Scene {
    fn new(streams: u32, options: &[(&str, u64)]) -> Self {
        let (server, address) = field::server(mesh::ALPN, streams);
        let mut config = Config::default();
        config.set("stream_credit_timeout_ms", 1).expect("a timeout");
        for (key, value) in options {
            assert_eq!(config.set(key, *value), Ok(true));
        }
        let runtime = tokio::runtime::Handle::current();
        let mesh = Mesh::new(config, None, Verification::None, runtime, |_| {}).expect("a pool");
        let (sender, accepted) = mpsc::channel(10_000);
        tokio::spawn(accept_all(server, sender));
        Self { mesh, address, accepted }
    }

    fn target(&self) -> Target {
        Target { address: Address::from(self.address), given: Box::default() }
    }

    async fn connect(&mut self) -> (PooledConnection, quinn::Connection) {
        self.mesh.connect(NODE, self.target()).await.expect("a connection");
        let pooled = self.mesh.info(NODE).expect("it is there").connection;
        (pooled, self.next_accepted().await)
    }

    async fn next_accepted(&mut self) -> quinn::Connection {
        timeout(PATIENCE, self.accepted.recv()).await.expect("in time").expect("a connection")
    }

    fn send(&self, messages: usize) {
        for _ in 0..messages {
            let message = Bytes::from_static(b"message");
            self.mesh.send(NODE, message.into(), || Some(self.target())).expect("accepted");
        }
    }

    async fn nothing_is_left(&self) {
        self.eventually(|stats| stats.tasks == 0).await;
    }

    async fn eventually(&self, holds: impl Fn(&Snapshot) -> bool) {
        assert!(until(|| holds(&self.mesh.stats())).await, "{:?}", self.mesh.stats());
    }
}

async fn accept_all(server: quinn::Endpoint, accepted: mpsc::Sender<quinn::Connection>) {
    while let Some(incoming) = server.accept().await {
        if let Ok(connection) = incoming.await
            && accepted.send(connection).await.is_err()
        {
            return;
        }
    }
}

async fn receive(stream: &mut quinn::RecvStream) -> Bytes {
    let read = timeout(PATIENCE, stream.read_chunk(usize::MAX, true)).await.expect("in time");
    read.expect("no error").expect("something").bytes
}

#[tokio::test]
async fn a_stream_of_a_user_goes_on_over_the_connection_that_was_replaced() {
    let mut scene = Scene::new(4, &[("linger_ms", 20)]);
    let (pooled, first) = scene.connect().await;
    let near = pooled.open_stream().await.expect("a stream");
    assert!(matches!(near.send(Bytes::from_static(b"before").into()), Ok(Sent::Accepted)));
    let (_answers, mut far) = first.accept_bi().await.expect("a stream");
    assert_eq!(receive(&mut far).await, "before");
    scene.send(12);
    // The one after it has nothing but messages, and goes when it has lingered.
    let second = scene.next_accepted().await;
    timeout(PATIENCE, second.closed()).await.expect("replaced, too");
    assert!(matches!(near.send(Bytes::from_static(b"after").into()), Ok(Sent::Accepted)));
    assert_eq!(receive(&mut far).await, "after");
    drop(near);
    timeout(PATIENCE, first.closed()).await.expect("nobody holds it any more");
}

#[tokio::test]
async fn who_has_finished_his_half_gets_the_answer_over_the_connection_that_was_replaced() {
    let mut scene = Scene::new(4, &[("linger_ms", 20)]);
    let (pooled, first) = scene.connect().await;
    let near = pooled.open_stream().await.expect("a stream");
    assert!(matches!(near.send(Bytes::from_static(b"question").into()), Ok(Sent::Accepted)));
    near.close();
    let (mut answers, mut far) = first.accept_bi().await.expect("a stream");
    assert_eq!(receive(&mut far).await, "question");
    let bytes = near.bytes().expect("plain bytes");
    timeout(PATIENCE, bytes.sending_ended()).await.expect("acknowledged");
    scene.send(12);
    let second = scene.next_accepted().await;
    timeout(PATIENCE, second.closed()).await.expect("replaced, too");
    answers.write_all(b"answer").await.expect("written");
    answers.finish().expect("finished");
    let mut reader = bytes.take_reader().expect("a reader");
    let Received::Data { parts, .. } = reader.receive().await else {
        unreachable!("the answer was cut off");
    };
    assert_eq!(parts.concat(), b"answer");
    assert_eq!(reader.receive().await, Received::Finished);
    timeout(PATIENCE, first.closed()).await.expect("nobody holds it any more");
}

#[tokio::test]
async fn who_waits_for_a_stream_is_told_at_once_that_the_node_is_removed() {
    let mut scene = Scene::new(0, &[("linger_ms", 60_000)]);
    let (pooled, _first) = scene.connect().await;
    let opening = tokio::spawn(async move { pooled.open_stream().await.err() });
    tokio::task::yield_now().await;
    assert_eq!(scene.mesh.info(NODE).map(|info| info.figures.user_streams), Some(0));
    assert!(scene.mesh.remove(NODE));
    let told = timeout(PATIENCE, opening).await.expect("in time").expect("no panic");
    assert_eq!(told, Some(Error::Removed));
    scene.nothing_is_left().await;
}

#[tokio::test]
async fn who_waits_for_a_stream_gets_one_of_the_next_connection() {
    let mut scene = Scene::new(2, &[]);
    let (pooled, _first) = scene.connect().await;
    scene.send(2);
    // All credit is used up.
    scene.eventually(|stats| stats.delivered >= 2).await;
    let opening = tokio::spawn(async move { pooled.open_stream().await });
    scene.send(1);
    let opened = timeout(PATIENCE, opening).await.expect("in time").expect("no panic");
    assert!(opened.is_ok());
}

#[tokio::test]
async fn a_removed_node_goes_with_its_last_stream_of_a_user() {
    let mut scene = Scene::new(4, &[("linger_ms", 60_000)]);
    let (pooled, first) = scene.connect().await;
    let near = pooled.open_stream().await.expect("a stream");
    assert!(matches!(near.send(Bytes::from_static(b"last").into()), Ok(Sent::Accepted)));
    let (_answers, mut far) = first.accept_bi().await.expect("a stream");
    assert!(scene.mesh.remove(NODE));
    assert_eq!(receive(&mut far).await, "last");
    drop(near);
    timeout(PATIENCE, first.closed()).await.expect("nobody holds it any more");
    scene.nothing_is_left().await;
}

#[tokio::test]
async fn whom_the_pool_has_parted_with_is_not_dialled_anew_for_what_is_left() {
    let options = [("linger_ms", 60_000), ("stream_credit_timeout_ms", 60_000)];
    let mut scene = Scene::new(0, &[&options[..], &[("max_mesh_connections", 1)]].concat());
    let (_, first) = scene.connect().await;
    scene.send(1);
    scene.mesh.connect(b"another", scene.target()).await.expect("a connection");
    assert!(!scene.mesh.remove(NODE), "it was evicted");
    first.close(0_u32.into(), b"");
    scene.eventually(|stats| !stats.dropped.is_empty()).await;
    let stats = scene.mesh.stats();
    assert_eq!((stats.dials, stats.dialing, stats.evictions), (2, 0, 1), "{stats:?}");
    assert!(scene.mesh.info(b"another").is_some());
}

#[tokio::test]
async fn a_message_that_no_queue_would_take_dials_nobody() {
    let options = [("max_mesh_connections", 1), ("queue_max_bytes", 70_000)];
    let mut scene = Scene::new(4, &options);
    let _connections = scene.connect().await;
    let too_large = || Bytes::from(vec![0; 70_001]).into();
    let target = || Some(scene.target());
    let refusal = Error::MessageTooLarge;
    assert_eq!(scene.mesh.send(b"another", too_large(), target), Err(refusal.clone()));
    let undelivered = scene.mesh.deliver(b"another", too_large(), target).err();
    assert_eq!(undelivered.map(|undelivered| undelivered.cause().clone()), Some(refusal));
    let stats = scene.mesh.stats();
    assert_eq!((stats.dials, stats.dialing, stats.size), (1, 0, 1), "{stats:?}");
    assert_eq!(stats.dropped.get("message_too_large"), Some(&2));
}

#[tokio::test]
async fn a_dial_counts_until_it_is_over_though_its_node_was_removed() {
    let silent = std::net::UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0)).expect("a socket");
    let mut scene = Scene::new(4, &[("linger_ms", 500), ("max_pending_dials", 1)]);
    scene.address = silent.local_addr().expect("its address");
    scene.send(1);
    assert!(scene.mesh.remove(NODE));
    // Its message still waits for it.
    let message = Bytes::from_static(b"message");
    let send = || scene.mesh.send(b"another", message.clone().into(), || Some(scene.target()));
    assert_eq!(send(), Err(Error::TooManyDials));
    scene.nothing_is_left().await;
    assert_eq!(send(), Ok(()));
}

#[tokio::test]
async fn a_dial_that_was_taken_back_before_it_began_has_not_failed() {
    let mut scene = Scene::new(4, &[("linger_ms", 0), ("dial_backoff_min_ms", 4_000)]);
    for _ in 0..50 {
        drop(scene.mesh.connect(NODE, scene.target()));
        assert!(scene.mesh.remove(NODE));
    }
    scene.nothing_is_left().await;
    let stats = scene.mesh.stats();
    assert_eq!((stats.dials, stats.dial_failures.len()), (0, 0), "{stats:?}");
    // Nobody is there.
    let closed = std::net::UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0)).expect("a socket");
    scene.address = closed.local_addr().expect("its address");
    drop(closed);
    scene.mesh.connect(NODE, scene.target()).await.expect_err("refused");
    // It would be dialled in a while.
    scene.send(1);
    assert!(scene.mesh.remove(NODE));
    scene.nothing_is_left().await;
    let stats = scene.mesh.stats();
    assert_eq!(stats.dials, 1);
    assert_eq!(stats.dial_failures.values().sum::<u64>(), 1, "{stats:?}");
    assert_eq!(stats.dropped.get("removed"), Some(&1));
}

#[tokio::test]
async fn the_time_to_linger_does_not_begin_anew_with_each_connection() {
    // To let all of it out takes seconds: a few milliseconds for each connection.
    let mut scene = Scene::new(1, &[("linger_ms", 100)]);
    let _connections = scene.connect().await;
    scene.send(2_000);
    assert!(scene.mesh.remove(NODE));
    scene.nothing_is_left().await;
    let stats = scene.mesh.stats();
    assert!(stats.dropped.get("removed").is_some_and(|dropped| *dropped > 0), "{stats:?}");
}

#[tokio::test]
async fn who_waits_for_room_on_a_stream_is_told_when_the_pool_closes() {
    let mut scene = Scene::new(4, &[("linger_ms", 20), ("send_watermark_bytes", 1)]);
    let (pooled, first) = scene.connect().await;
    let near = pooled.open_stream().await.expect("a stream");
    // More than is taken unread.
    let much = Bytes::from(vec![0; 4_000_000]);
    assert!(matches!(near.send(much.clone().into()), Ok(Sent::Accepted)));
    let Ok(Sent::Waiting(turn)) = near.send(much.into()) else {
        unreachable!("there is no room");
    };
    let _unread = first.accept_bi().await.expect("a stream");
    // On a connection that has been replaced.
    scene.send(4);
    let _second = scene.next_accepted().await;
    timeout(PATIENCE, scene.mesh.close()).await.expect("closed");
    let told = timeout(PATIENCE, turn).await.expect("told");
    assert!(!matches!(told, Ok(Ok(()))));
}

#[tokio::test]
async fn streams_that_the_peer_opens_are_turned_away() {
    let mut scene = Scene::new(4, &[]);
    let (_pooled, first) = scene.connect().await;
    for _ in 0..10 {
        let opening = timeout(PATIENCE, first.open_uni());
        let mut stream = opening.await.expect("in time").expect("a stream");
        let stopped = async {
            stream.write_all(b"unwanted").await.ok();
            stream.stopped().await
        };
        let code = timeout(PATIENCE, stopped).await.expect("in time").expect("a connection");
        assert_eq!(code.map(quinn::VarInt::into_inner), Some(0));
    }
}

#[tokio::test]
async fn users_streams_share_the_pools_bound() {
    let options = [("pool_queue_max_bytes", 5_000_000), ("send_watermark_bytes", 10_000_000)];
    let mut scene = Scene::new(4, &options);
    let (pooled, _first) = scene.connect().await;
    // More than is taken unread; a stream with nothing in it may have one message, up to twice the
    // bound.
    let much = || Bytes::from(vec![0; 4_000_000]).into();
    let one = pooled.open_stream().await.expect("a stream");
    assert_eq!(one.try_send(much()), Ok(()));
    let other = pooled.open_stream().await.expect("a stream");
    assert_eq!(other.try_send(much()), Ok(()));
    assert_eq!(scene.mesh.stats().stream_bytes, 8_000_000);
    assert_eq!(other.try_send(much()), Err(Error::PoolQueueFull));
    let third = pooled.open_stream().await.expect("a stream");
    assert_eq!(third.try_send(much()), Err(Error::PoolQueueFull));
    assert_eq!(scene.mesh.stats().stream_bytes, 8_000_000);
    assert_eq!(scene.mesh.stats().outstanding.bytes, 0);
}
