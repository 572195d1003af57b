//! A node that is removed in the very moment in which its connection is lost.

#![allow(clippy::disallowed_methods, reason = "tokio's test macro blocks, on a thread of the test")]
#![allow(clippy::expect_used, reason = "how a test fails")]

#[path = "common/field.rs"]
mod field;
#[path = "common/wait.rs"]
mod wait;

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::task::{Context, Wake, Waker};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use mesh::{Address, Config, Mesh, Plain, Sent, Target, Verification};
use wait::until;

const NODE: &[u8] = b"node";
/// How long a removal is waited for that the pool's lock keeps from its end.
const HELD_UP: Duration = Duration::from_millis(200);

/// Removes the node when it is woken, and goes on when that is done or held up.
struct Remover {
    mesh: Arc<Mesh<Plain>>,
    was_there: mpsc::Sender<bool>,
    woken: Mutex<bool>,
}

impl Wake for Remover {
    fn wake(self: Arc<Self>) {
        let mut woken = self.woken.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut *woken, true) {
            return;
        }
        let (begins, begun) = mpsc::sync_channel(1);
        let (done, is_done) = mpsc::sync_channel(1);
        let remover = self.clone();
        thread::spawn(move || {
            begins.send(()).ok();
            let was_there = remover.mesh.remove(NODE);
            remover.was_there.send(was_there).ok();
            done.send(()).ok();
        });
        begun.recv().ok();
        is_done.recv_timeout(HELD_UP).ok();
    }
}

/// Whoever waits for room is told of a loss when the slot has ended, and before what it has left
/// gets another connection.
#[tokio::test]
async fn a_node_that_is_removed_as_its_connection_is_lost_is_not_dialled_again() {
    // Nothing that is queued leaves: there is no stream for it.
    let (server, address) = field::server(mesh::ALPN, 0);
    let mut config = Config::default();
    config.set("send_watermark_bytes", 1).expect("a watermark");
    config.set("stream_credit_timeout_ms", 60_000).expect("a timeout");
    let runtime = tokio::runtime::Handle::current();
    let mesh: Mesh<Plain> =
        Mesh::new(config, None, Verification::None, runtime, |_| {}).expect("a pool");
    let mesh = Arc::new(mesh);
    let target = Target { address: Address::from(address), given: Box::default() };
    let dial = mesh.connect(NODE, target);
    let accept = async { server.accept().await.expect("a dial").await.expect("a handshake") };
    let (dialled, accepted) = tokio::join!(dial, accept);
    let stream = dialled.expect("a connection");
    let message = || Bytes::from_static(b"message").into();
    assert!(matches!(stream.send(message()), Ok(Sent::Accepted)));
    // Above the watermark. The first in line may get in when the connection is lost.
    let _first = stream.send(message()).expect("in line");
    let Ok(Sent::Waiting(turn)) = stream.send(message()) else {
        unreachable!("there is no room");
    };
    let (was_there, outcome) = mpsc::channel();
    let remover = Remover { mesh: mesh.clone(), was_there, woken: Mutex::default() };
    let waker = Waker::from(Arc::new(remover));
    let mut turn = pin!(turn);
    assert!(turn.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    accepted.close(0_u32.into(), b"");
    assert!(until(|| mesh.stats().tasks == 0).await, "the node has not gone");
    assert_eq!(outcome.recv(), Ok(true), "it was there");
    assert_eq!((mesh.size(), mesh.stats().dialing), (0, 0));
}
