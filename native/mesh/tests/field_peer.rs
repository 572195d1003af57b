//! A peer as nodes in the field are: it speaks `macula` and no more, and returns no stream credit.
//! Its connection is replaced again and again, and what else is on it goes on.

#![allow(clippy::disallowed_methods, reason = "tokio's test macro blocks, on a thread of the test")]
#![allow(clippy::expect_used, reason = "how a test fails")]

#[path = "common/field.rs"]
mod field;

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use mesh::{Address, Config, Mesh, Plain, PooledConnection, Received, Sent, Target, Verification};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

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
        let (server, address) = field::server(streams);
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
        let ended = async {
            while self.mesh.stats().tasks > 0 {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, ended).await.expect("all tasks end");
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
    assert_eq!(told, Some(mesh::Error::Removed));
    scene.nothing_is_left().await;
}

#[tokio::test]
async fn who_waits_for_a_stream_gets_one_of_the_next_connection() {
    let mut scene = Scene::new(2, &[]);
    let (pooled, _first) = scene.connect().await;
    scene.send(2);
    let delivered = async {
        while scene.mesh.stats().delivered < 2 {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, delivered).await.expect("all credit is used up");
    let opening = tokio::spawn(async move { pooled.open_stream().await });
    scene.send(1);
    let opened = timeout(PATIENCE, opening).await.expect("in time").expect("no panic");
    assert!(opened.is_ok());
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
    assert_eq!(other.try_send(much()), Err(mesh::Error::PoolQueueFull));
    let third = pooled.open_stream().await.expect("a stream");
    assert_eq!(third.try_send(much()), Err(mesh::Error::PoolQueueFull));
    assert_eq!(scene.mesh.stats().stream_bytes, 8_000_000);
    assert_eq!(scene.mesh.stats().outstanding.bytes, 0);
}
