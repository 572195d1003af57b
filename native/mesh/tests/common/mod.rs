//! What the tests on real sockets share: a listener, and waiting for what arrives at it.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use mesh::{Identity, Listener, Place, Refusal, Request, Settings, Waiter};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// How long anything here may take at most.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Somebody who waits for one connection or stream.
struct Waiting<T>(mpsc::Sender<T>);

impl<T: Send> Waiter<T> for Waiting<T> {
    fn meet(self: Box<Self>, item: T) -> Option<T> {
        self.0.try_send(item).err().map(|refused| refused.into_inner())
    }

    fn refuse(self: Box<Self>, _why: Refusal) {}
}

/// The next arrival.
pub(crate) async fn next<T: Send + 'static>(
    request: impl FnOnce(Box<dyn Waiter<T>>) -> Request<T>,
) -> T {
    let (sender, mut receiver) = mpsc::channel(1);
    if let Request::Served(item, _) = request(Box::new(Waiting(sender))) {
        return item;
    }
    timeout(PATIENCE, receiver.recv()).await.expect("in time").expect("an arrival")
}

/// A listener on loopback, with a certificate of its own, and its address.
pub(crate) fn listen(settings: Settings) -> (Listener, SocketAddr) {
    let certified = rcgen::generate_simple_self_signed(["peer".into()]).expect("a certificate");
    let chain = vec![certified.cert.der().to_vec()];
    let identity = Identity::from_der(chain, certified.signing_key.serialize_der());
    let mut settings = Settings { identity: identity.ok(), ..settings };
    settings.transport.set("max_frame_bytes", 100_000).expect("a limit");
    let place = Place::At(vec![(Ipv4Addr::LOCALHOST, 0).into()]);
    let runtime = tokio::runtime::Handle::current();
    let listener = Listener::bind(&place, settings, runtime, |_| {}).expect("a listener");
    let address = *listener.local_addresses().first().expect("an address");
    (listener, address)
}
