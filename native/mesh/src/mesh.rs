//! The pool of real connections: who asks for a peer gets the connection that is there, joins the
//! dial under way, or begins one. Each slot has one task, which dials, serves and cleans up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::address::{Address, Resolver};
use crate::clock;
use crate::config::BadOption;
use crate::delivery::Delivery;
use crate::dial::Dialer;
use crate::endpoint::Endpoint;
use crate::entry::Payload;
use crate::joined::MESH_ALPN;
use crate::message::{Message, Undelivered};
use crate::outbox::Outbox;
use crate::pool::Slot;
use crate::pooled::Context;
use crate::resident::{Handles, Info};
use crate::scope::Scope;
use crate::settings::Settings;
use crate::slots::{Claim, Occasion, Shared, Slots};
use crate::stats::Snapshot;
use crate::tls::{ALPN, Identity};
use crate::verify::Verification;
use crate::{Config, Error};

/// Who a peer is: any bytes; 32 in practice. Shared by all that is kept of one connection.
pub type NodeId = Arc<[u8]>;

/// Where a peer is to be found.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its address.
    pub address: Address,
    /// The address in the caller's own form, which [`Info`] gives back; this crate never looks
    /// inside.
    pub given: Box<[u8]>,
}

/// What the pool tells its owner unasked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The first dial has begun, and no dial of this pool verifies who answers.
    Unverified,
    /// The UDP socket has died, and all connections with it; the next dial binds another.
    SocketLost,
}

/// What a request that began with a silent peer may take beyond the time for silence and for a
/// dial: with the default times, it is answered before a `gen_server:call` of ten seconds gives up.
const SPARE: Duration = Duration::from_secs(1);

/// A bounded pool of connections by node id. Dropping it closes it.
pub struct Mesh<T: Handles>(Arc<Shared<T>>);

impl<T: Handles> Mesh<T> {
    /// An empty pool whose tasks run on `runtime`. `observer` must not block.
    ///
    /// # Errors
    /// [`Error::Unverified`] when the roots of `verification` are of no use.
    pub fn new(
        config: Config,
        identity: Option<Identity>,
        verification: Verification,
        runtime: Handle,
        observer: impl Fn(Event) + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let observer: Arc<dyn Fn(Event) + Send + Sync> = Arc::new(observer);
        let endpoint = || {
            let witness = observer.clone();
            let on_loss = move || witness(Event::SocketLost);
            Arc::new(Endpoint::new(config.udp_buffer_bytes(), on_loss))
        };
        let more_endpoints = (1..config.endpoints()).map(|_| endpoint()).collect();
        let settings = Settings {
            transport: config.transport(),
            identity,
            verification,
            alpn: vec![MESH_ALPN.to_vec(), ALPN.to_vec()],
            ..Settings::default()
        };
        let context = Context {
            dialer: Dialer::new(
                endpoint(),
                Resolver::new(),
                settings,
                config.max_concurrent_dials(),
                config.connect_timeout(),
            )?
            .with_more_endpoints(more_endpoints),
            scope: Scope::new(&config, runtime),
            config,
        };
        Ok(Self(Shared::new(context, observer)))
    }

    /// The stream of a live pooled connection, which thereby is used. `None`: there is none, or
    /// its peer has to be asked first whether it is still there.
    pub fn checkout(&self, node: &[u8]) -> Option<T::Stream> {
        // Before the lock, as little as a look at a clock takes.
        let now = Instant::now();
        let second = clock::seconds_at(now);
        let mut slots = self.0.lock();
        let Slot::Ready(resident) = slots.pool.lookup(node) else {
            return None;
        };
        if !resident.is_alive() || resident.connection.is_doubtful(now.into()) {
            return None;
        }
        let stream = resident.checkout(second);
        slots.hits += 1;
        Some(stream)
    }

    /// The stream of a connection to `node`, dialled at `target` if there is none, or if its peer is
    /// silent. The request is made now, the future only waits for its outcome: dropping it disturbs
    /// nobody.
    ///
    /// # Errors
    /// Why there is no connection.
    pub fn connect(
        &self,
        node: &[u8],
        target: Target,
    ) -> impl Future<Output = Result<T::Stream, Error>> + Send + use<T> {
        let shared = self.0.clone();
        let claim = shared.claim(node, target.clone(), false);
        let is_doubtful = matches!(claim, Ok(Claim::Doubtful(_)));
        let config = &shared.context.config;
        // Silence, one dial, and a last word. A search at several addresses may go on after that.
        let most = config.ack_timeout() + config.connect_timeout() + SPARE;
        let outcome = Self::outcome(shared, claim, node.into(), target);
        async move {
            match is_doubtful {
                true => timeout(most, outcome).await.unwrap_or(Err(Error::ConnectTimeout)),
                false => outcome.await,
            }
        }
    }

    async fn outcome(
        shared: Arc<Shared<T>>,
        mut claim: Result<Claim<T>, Error>,
        node: NodeId,
        target: Target,
    ) -> Result<T::Stream, Error> {
        let mut pending = loop {
            match claim? {
                Claim::Ready(stream) => return Ok(stream),
                Claim::Pending(pending) => break pending,
                Claim::Doubtful(connection) => {
                    connection.settled().await;
                    // Dialled in vain just now, and there.
                    if connection.outbox().refusal() == Some(Error::Dead)
                        && connection.whereabouts().tried().contains(&target.address)
                    {
                        return Err(Error::Dead);
                    }
                    claim = shared.claim(&node, target.clone(), true);
                }
            }
        };
        let outcome = pending.wait_for(Option::is_some).await.map_err(|_| Error::Cancelled)?;
        outcome.clone().unwrap_or(Err(Error::Cancelled))
    }

    /// Queues a message for `node`, which is dialled if there is no connection; `target` is only
    /// asked for then, or if the peer is silent. Never waits. A message that is refused is counted
    /// by cause, unless the pool is closed.
    ///
    /// # Errors
    /// Why the message was not taken.
    pub fn send(
        &self,
        node: &[u8],
        message: Payload<'_>,
        target: impl Fn() -> Option<Target>,
    ) -> Result<(), Error> {
        let give = |outbox: &Outbox| outbox.push(message.clone());
        let bytes = message.len();
        match self.0.place(node, target, bytes, Occasion::Message(bytes), give) {
            Ok(_) => Ok(()),
            Err(refusal) => Err(self.0.refused(&refusal)),
        }
    }

    /// Queues a message for `node`, behind others if there is no room, whose sender waits for what
    /// becomes of it. For the rest as [`Mesh::send`].
    ///
    /// # Errors
    /// Why the message was not taken.
    pub fn deliver(
        &self,
        node: &[u8],
        message: Payload<'_>,
        target: impl Fn() -> Option<Target>,
    ) -> Result<Delivery, Undelivered> {
        let bytes = message.len();
        let (message, confirmation) = Message::confirmed(message.into_bytes());
        let mut message = Some(message);
        let give = |outbox: &Outbox| match message.take().map(|message| outbox.deliver(message)) {
            Some(Err((error, back))) => {
                message = Some(back);
                Err(error)
            }
            _ => Ok(()),
        };
        match self.0.place(node, target, bytes, Occasion::Asked, give) {
            Ok(outbox) => {
                let stats = self.0.context.scope.stats.clone();
                Ok(Delivery::new(outbox, confirmation, stats))
            }
            Err(refusal) => {
                self.0.refused(&refusal);
                Err(refusal)
            }
        }
    }

    /// Counts a message that was refused before it came here.
    pub fn refuse(&self, cause: &Error) {
        self.0.context.scope.stats.refused(cause);
    }

    /// Runs a task that waits for the outcome of [`Mesh::connect`] or [`Mesh::deliver`] and passes
    /// it on: closing the pool ends such waiting, and is over when the last of these tasks is.
    pub fn attend(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.context.scope.tasks.attend(task);
    }

    /// Takes `node` out of the pool: what is queued for it still goes out, bounded by the linger
    /// time, then its connection closes. `false`: it was not there.
    pub fn remove(&self, node: &[u8]) -> bool {
        let slot = {
            let mut slots = self.0.lock();
            let slot = slots.pool.remove(node);
            // Locked: a slot that ends now must know that its messages are to go nowhere else.
            match &slot {
                Slot::Ready(resident) => resident.connection.outbox().drain(Error::Removed),
                Slot::Dialing(dial) => dial.outbox.drain(Error::Removed),
                Slot::Vacant => return false,
            }
            slot
        };
        let Context { scope, .. } = &*self.0.context;
        scope.stats.removals.add(1);
        if let Slot::Dialing(dial) = slot {
            // As many as wait are to be woken: nothing for a caller's thread.
            scope.tasks.detach(async move { dial.give_up(Error::Removed) });
        }
        true
    }

    /// What is known of the connection to `node`. This is no use of it.
    pub fn info(&self, node: &[u8]) -> Option<Info<T>> {
        let card = self.0.lock().pool.peek(node)?.card();
        card.info()
    }

    /// What is known of each connection, the most recently used first.
    pub fn list(&self) -> Vec<(NodeId, Info<T>)> {
        // Others wait for the lock: no more than is needed is looked at, and nothing is made.
        let cards: Vec<_> = {
            let slots = self.0.lock();
            slots.pool.iter().map(|(node, resident)| (node.clone(), resident.card())).collect()
        };
        cards.into_iter().filter_map(|(node, card)| Some((node, card.info()?))).collect()
    }

    /// How many connections are in the pool.
    pub fn size(&self) -> usize {
        self.0.lock().pool.ready()
    }

    /// Sets how many connections the pool may keep; those that are too many go.
    ///
    /// # Errors
    /// [`BadOption`] when `limit` is out of the bounds of the option `max_mesh_connections`.
    pub fn set_limit(&self, limit: u64) -> Result<(), BadOption> {
        let mut config = Config::default();
        config.set("max_mesh_connections", limit)?;
        self.0.lock().pool.set_limit(config.max_connections());
        loop {
            // Locked for each anew: they may be very many, and others wait.
            let victim = self.0.lock().pool.part_with_one();
            let Some((_, victim)) = victim else { return Ok(()) };
            self.0.evict(&victim);
        }
    }

    /// The pool's figures.
    pub fn stats(&self) -> Snapshot {
        let context = &self.0.context;
        let (size, dialing, limit, failing, hits, misses) = {
            let slots = self.0.lock();
            let Slots { pool, backoff, hits, misses, .. } = &*slots;
            (pool.ready(), pool.dialing(), pool.limit(), backoff.failing(), *hits, *misses)
        };
        let granted = context.dialer.granted();
        let accepted = context.scope.budget.accepted();
        // Before what has become of messages: that is counted before they cease to be outstanding.
        let outstanding = context.scope.budget.used();
        Snapshot {
            size,
            dialing,
            limit: limit.get(),
            failing,
            hits,
            misses,
            tasks: context.scope.tasks.count(),
            outstanding,
            stream_bytes: context.scope.stream_budget.used().bytes,
            accepted: accepted.messages,
            accepted_bytes: accepted.bytes,
            udp_receive_buffer_bytes: granted.receive_bytes,
            udp_send_buffer_bytes: granted.send_bytes,
            ..context.scope.stats.snapshot()
        }
    }

    /// Closes the pool: queued messages go out, bounded by the linger time, then every
    /// connection closes. Resolves when nothing of the pool is left.
    pub fn close(&self) -> impl Future<Output = ()> + Send + use<T> {
        self.0.clone().close()
    }
}

impl<T: Handles> Drop for Mesh<T> {
    fn drop(&mut self) {
        self.0.context.scope.tasks.detach(self.0.clone().close());
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tokio's test macro blocks, on a thread of the test")]
mod tests {
    use std::sync::mpsc;

    use bytes::Bytes;

    use super::*;
    use crate::address::Address;
    use crate::resident::Plain;
    use crate::{ALPN, field};

    const PATIENCE: Duration = Duration::from_secs(10);

    /// Whoever is about to queue the message that a slot was opened for may lose his processor: the
    /// slot's connection could be there and evicted before he has it back.
    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_message_is_in_its_queue_before_the_dial_for_it_begins() {
        let (server, address) = field::server(ALPN, 100);
        tokio::spawn(async move {
            let mut accepted = Vec::new();
            while let Some(incoming) = server.accept().await {
                accepted.extend(incoming.await);
            }
        });
        let target = move || Target { address: Address::from(address), given: Box::default() };
        let mut config = Config::default();
        config.set("max_mesh_connections", 1).expect("a limit");
        let runtime = Handle::current();
        let mesh = Mesh::<Plain>::new(config, None, Verification::None, runtime, |_| {});
        let mesh = Arc::new(mesh.expect("a pool"));
        let others_come_and_go = || {
            let (mesh, (done, is_done)) = (mesh.clone(), mpsc::channel());
            tokio::spawn(async move {
                for other in [b"first", b"other"] {
                    mesh.connect(other, target()).await.expect("a connection");
                }
                done.send(()).ok();
            });
            is_done.recv_timeout(PATIENCE).expect("in time");
        };
        let message = Bytes::from_static(b"message");
        let occasion = Occasion::Message(message.len());
        let give = |outbox: &Outbox| {
            others_come_and_go();
            outbox.push(message.clone().into())
        };
        let placed = mesh.0.place(b"node", || Some(target()), message.len(), occasion, give);
        assert!(placed.is_ok());
        let delivered = async {
            while mesh.stats().delivered == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, delivered).await.expect("it arrives");
    }
}
