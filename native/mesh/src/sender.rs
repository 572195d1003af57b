//! What is sent next over one QUIC connection, and how it fared. To a node of the field each
//! message gets a stream of its own, to one of ours many share one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use crate::Error;
use crate::byte_stream::Outgoing;
use crate::config::{Load, Redelivery};
use crate::credit::Credit;
use crate::entry::Entry;
use crate::flight::{Aloft, Flight, Kind, Landing, Survivors};
use crate::handshake::PeerParameters;
use crate::joined::{LARGE_BYTES, MESH_ALPN, PIECE_BYTES, STREAMS_PER_KIND};
use crate::outbox::{Next, Outbox};
use crate::packing::{Packing, give_way};
use crate::pooled::{Context, ROUND_TRIPS_FOR_CREDIT};
use crate::stats::Stats;

/// Messages of one connection that are on their way at once. More would cost a peer with much
/// credit memory for streams and gain nothing.
const MAX_IN_FLIGHT: usize = 1_024;
/// Bytes that quinn is given on streams of their own before its driver gets a turn: until then
/// nothing leaves, and the peer, whose credit may be used up by then, has nothing to do.
const TURN_BYTES: usize = 64 * 1024;
/// Messages of one piece from which on they come in a stream. While they do, waking the task for a
/// few of them costs their senders more than all the rest: it looks again after a while, or when
/// enough have piled up.
const STREAM_MESSAGES: usize = 16;
/// How long messages of a stream may pile up: the timer's granularity.
const PILE_TIME: Duration = Duration::from_millis(1);
/// How many bytes of them are enough. No more than make a message large: one that may fly although
/// small ones may not wakes the task whatever it last waited for.
const PILE_BYTES: usize = 128 * 1024;
const _: () = assert!(PILE_BYTES <= LARGE_BYTES);

/// What can be done next about the queue.
pub(crate) enum Turn {
    Send(Flight),
    /// Nothing is left to be sent after all.
    Nothing,
    NoCredit,
    Drained,
}

/// The sending over one QUIC connection.
pub(crate) struct Sender<'a> {
    carrier: &'a quinn::Connection,
    outbox: &'a Outbox,
    stats: &'a Stats,
    /// Set when any message has arrived.
    has_delivered: &'a AtomicBool,
    /// Whether the peer is one of ours.
    speaks_mesh: bool,
    /// Streams that the peer granted at first.
    granted: u64,
    /// How long to wait for stream credit.
    patience: Duration,
    redelivery: Redelivery,
    credit: Credit,
    packet: Packing,
    /// Payload bytes of the message behind the last one taken, if there was any then.
    next_bytes: Option<usize>,
    /// Bytes given to quinn since its driver had its last turn.
    given_bytes: usize,
    /// Until when messages may pile up, since they come in a stream.
    piles_until: Option<Instant>,
    /// None before the first piece.
    pen: Option<Arc<Semaphore>>,
    departed: u64,
    aloft: Aloft,
    /// What has survived the connection, by its place in the order of departure.
    stranded: BTreeMap<u64, Vec<Entry>>,
}

impl<'a> Sender<'a> {
    pub(crate) fn new(
        carrier: &'a quinn::Connection,
        outbox: &'a Outbox,
        context: &'a Context,
        has_delivered: &'a AtomicBool,
        patience: Duration,
    ) -> Self {
        let peer = PeerParameters::of(carrier);
        Self {
            carrier,
            outbox,
            stats: &context.scope.stats,
            has_delivered,
            speaks_mesh: peer.alpn == MESH_ALPN,
            granted: peer.bidi_streams,
            // Who grants nothing in the handshake may do so behind it.
            patience: if peer.bidi_streams == 0 {
                patience.max(carrier.rtt() * ROUND_TRIPS_FOR_CREDIT)
            } else {
                patience
            },
            redelivery: context.config.redelivery,
            credit: Credit::new(),
            packet: Packing::default(),
            next_bytes: None,
            given_bytes: 0,
            piles_until: None,
            pen: None,
            departed: 0,
            aloft: Aloft::default(),
            stranded: BTreeMap::new(),
        }
    }

    /// Whether nothing is under way.
    pub(crate) fn is_resting(&self) -> bool {
        self.aloft.is_none()
    }

    /// Whether the peer grants no stream at all: it would not on another connection either.
    pub(crate) fn is_barren(&self) -> bool {
        self.granted == 0
    }

    /// Whether the peer has never returned stream credit, and all that it granted is used up. One
    /// that has ever returned any is only slow.
    pub(crate) fn is_exhausted(&self) -> bool {
        !self.speaks_mesh && self.aloft.is_none() && self.credit.used() <= self.granted
    }

    /// Whether there is room for one more flight. With none for large messages, those behind one
    /// wait with it.
    pub(crate) fn may_fly(&self) -> bool {
        if !self.speaks_mesh {
            return self.aloft.singles < MAX_IN_FLIGHT;
        }
        let is_large = self.outbox.next_bytes().is_some_and(|bytes| bytes >= LARGE_BYTES);
        let under_way = if is_large { self.aloft.large } else { self.aloft.pieces };
        under_way < STREAMS_PER_KIND
    }

    /// Messages and the stream for them. Cancelled at any point, it has taken no message. `waits`: the
    /// outbox is drained, or what is next may not fly; it resolves when that may have changed. `rests`:
    /// a message that is there now has to be seen by others first.
    pub(crate) async fn turn(&mut self, waits: bool, rests: bool) -> Result<Turn, Error> {
        if waits {
            self.outbox.nudged().await;
            return Ok(Turn::Nothing);
        }
        match self.outbox.next().await {
            Next::Drained => return Ok(Turn::Drained),
            Next::Message if rests => return Ok(Turn::Nothing),
            Next::Message => {}
        }
        // Only this task takes messages out, and there was one.
        if self.speaks_mesh { self.joined().await } else { self.alone().await }
    }

    /// Many messages on one stream, or a large one.
    async fn joined(&mut self) -> Result<Turn, Error> {
        if let Some(deadline) = self.piles_until {
            Box::pin(self.outbox.pile(PILE_BYTES, deadline)).await;
        }
        let pen = self.pen().await?;
        if !self.may_fly() {
            // What was next has been withdrawn, and what is next now is large.
            return Ok(Turn::Nothing);
        }
        let send = self.carrier.open_uni().await?;
        let piece = self.outbox.take_piece(LARGE_BYTES, PIECE_BYTES);
        let messages: usize = piece.iter().map(|entry| entry.load().messages).sum();
        self.piles_until = (messages >= STREAM_MESSAGES).then(|| Instant::now() + PILE_TIME);
        let is_large = piece.first().is_some_and(|first| first.load().bytes >= LARGE_BYTES);
        let kind = if is_large { Kind::Large } else { Kind::Piece };
        let stream = Outgoing::new(send);
        if piece.is_empty() {
            return Ok(Turn::Nothing); // Their senders have withdrawn all of them.
        }
        let number = self.departure(kind);
        Ok(Turn::Send(Flight::joined(kind, number, piece, self.keeps(), stream, pen)))
    }

    /// What only one flight at a time is written with: a piece all of it, a large message until the
    /// peer can tell that it is one. The peer reads pieces one after the other, and nothing that is
    /// behind a stream of which it does not know what it is: were such a stream, with a small window,
    /// given a part of that before its turn, the window would never open again.
    async fn pen(&mut self) -> Result<OwnedSemaphorePermit, Error> {
        let pen = self.pen.get_or_insert_with(|| Arc::new(Semaphore::new(1))).clone();
        match pen.clone().try_acquire_owned() {
            Ok(permit) => Ok(permit),
            // In a box, as what is rare below.
            Err(_) => Box::pin(pen.acquire_owned()).await.map_err(|_| Error::Cancelled),
        }
    }

    /// One message on a stream of its own.
    async fn alone(&mut self) -> Result<Turn, Error> {
        if self.given_bytes >= TURN_BYTES {
            self.given_bytes = 0;
            give_way().await;
        }
        // Otherwise its sender has withdrawn it, and nothing is queued.
        let Some(mut bytes) = self.outbox.next_bytes() else { return Ok(Turn::Nothing) };
        if !self.packet.has_room(bytes) && !self.packet.is_beyond(bytes) {
            self.packet.left(self.carrier).await;
            self.given_bytes = 0;
        }
        let opened = match self.carrier.open_bi().now_or_never() {
            Some(opened) => opened,
            // In a box, as is what is rare above: each idle connection would keep a place for it.
            None => match Box::pin(timeout(self.patience, self.credit.wait(self.carrier))).await {
                Ok(opened) => {
                    // Other streams may have been sent on meanwhile.
                    self.packet.look(self.carrier);
                    // And another message may be next.
                    let next = self.outbox.next_bytes().filter(|next| self.packet.takes(*next));
                    bytes = next.unwrap_or(bytes);
                    opened
                }
                // Its sender may have waited no longer than we have.
                Err(_) if self.outbox.next_bytes().is_none() => return Ok(Turn::Nothing),
                Err(_) => return Ok(Turn::NoCredit),
            },
        };
        Ok(self.single(opened?, bytes).map_or(Turn::Nothing, Turn::Send))
    }

    /// The next message, if it fits into the packet that is being filled and there is a stream for
    /// it at once.
    pub(crate) fn follow(&mut self) -> Option<Flight> {
        let bytes = self.next_bytes.filter(|bytes| self.packet.has_room(*bytes))?;
        if !self.may_fly() {
            return None;
        }
        // An error is told again by the next turn.
        self.single(self.carrier.open_bi().now_or_never()?.ok()?, bytes)
    }

    /// Whether the packet that was filled has left and messages for the next one wait. Nothing else
    /// is looked at meanwhile.
    pub(crate) async fn goes_on(&mut self) -> bool {
        let may_follow = self.next_bytes.is_some_and(|bytes| !self.packet.is_beyond(bytes));
        let goes_on = may_follow && self.may_fly() && self.packet.is_gone(self.carrier).await;
        if goes_on {
            self.packet.begin();
            self.given_bytes = 0;
        }
        goes_on
    }

    /// The message of which it was found whether a packet holds it.
    fn single(
        &mut self,
        (send, recv): (quinn::SendStream, quinn::RecvStream),
        bytes: usize,
    ) -> Option<Flight> {
        self.credit.use_up(recv);
        let stream = Outgoing::new(send);
        self.next_bytes = None;
        // Otherwise its sender has withdrawn it, and the stream is given up.
        let (message, next_bytes) = self.outbox.take_of(bytes)?;
        self.next_bytes = next_bytes;
        self.packet.add(self.carrier, message.len());
        self.given_bytes += message.len();
        let number = self.departure(Kind::Single);
        Some(Flight::single(number, message, self.keeps(), stream))
    }

    /// The number of a flight that departs.
    fn departure(&mut self, kind: Kind) -> u64 {
        self.departed += 1;
        *self.aloft.of(kind) += 1;
        self.departed
    }

    /// Whether messages are kept until they have arrived.
    fn keeps(&self) -> bool {
        self.redelivery == Redelivery::AtLeastOnce
    }

    /// Books how messages fared: all at once, for each is a few nanoseconds of work. Whoever is told
    /// of his message finds it counted.
    pub(crate) fn land(&mut self, mut landings: Vec<Landing>) {
        let mut delivered = Load::default();
        let mut unconfirmed = Load::default();
        for landing in &mut landings {
            *self.aloft.of(landing.kind) -= 1;
            if landing.outcome.is_ok() {
                delivered += landing.load;
                continue;
            }
            let Survivors { entries, repeated } = landing.survivors();
            self.stats.redelivered.add(repeated);
            unconfirmed += landing.load;
            if !entries.is_empty() {
                // Outstanding still.
                self.stranded.insert(landing.number, entries);
            }
        }
        if self.aloft.is_none() {
            self.credit.rest();
        }
        if delivered.messages > 0 {
            self.has_delivered.store(true, Ordering::Relaxed);
        }
        self.stats.delivered.add(delivered.messages);
        self.stats.delivered_bytes.add(delivered.bytes);
        self.stats.unconfirmed.add(unconfirmed.messages);
        landings.into_iter().for_each(Landing::tell);
        self.outbox.settle(delivered + unconfirmed);
    }

    /// Gives back to the queue what has survived the connection.
    pub(crate) fn end(&mut self) {
        let stranded = std::mem::take(&mut self.stranded);
        self.outbox.restore(stranded.into_values().flatten());
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tokio's test macro blocks, on a thread of the test")]
mod tests {
    use std::pin::pin;

    use bytes::Bytes;

    use super::*;
    use crate::address::{Address, Resolver};
    use crate::dial::Dialer;
    use crate::endpoint::Endpoint;
    use crate::field;
    use crate::message::{Confirmation, Message};
    use crate::scope::Scope;
    use crate::settings::Settings;
    use crate::{ALPN, Config};

    const AT_ONCE: Duration = Duration::from_millis(1);
    const PATIENCE: Duration = Duration::from_secs(10);

    /// A connection to a peer that grants so many streams and returns none by itself.
    struct Scene {
        context: Context,
        carrier: quinn::Connection,
        outbox: Outbox,
        has_delivered: AtomicBool,
        peer: (quinn::Endpoint, quinn::Connection),
    }

    impl Scene {
        async fn new(streams: u32) -> Self {
            let config = Config::default();
            let endpoint = Arc::new(Endpoint::new(65_536, || {}));
            let settings = Settings { alpn: vec![ALPN.to_vec()], ..Settings::default() };
            let dialer = Dialer::new(endpoint, Resolver::new(), settings, 1, PATIENCE);
            let scope = Scope::new(&config, tokio::runtime::Handle::current());
            let context = Context { dialer: dialer.expect("a dialer"), scope, config };
            let (peer, address) = field::server(ALPN, streams);
            let address = Address::from(address);
            let accept = async { peer.accept().await.expect("a dial").await.expect("a handshake") };
            let (dialled, accepted) = tokio::join!(context.dialer.dial(&address, b"node"), accept);
            Self {
                carrier: dialled.expect("a connection"),
                outbox: context.scope.message_outbox(),
                has_delivered: AtomicBool::new(false),
                context,
                peer: (peer, accepted),
            }
        }

        /// Waits so long for credit.
        fn sender(&self, patience: Duration) -> Sender<'_> {
            Sender::new(&self.carrier, &self.outbox, &self.context, &self.has_delivered, patience)
        }

        fn queue(&self, bytes: usize) -> Confirmation {
            let (message, confirmation) = Message::confirmed(Bytes::from(vec![0; bytes]));
            assert!(self.outbox.deliver(message).is_ok());
            confirmation
        }
    }

    #[tokio::test]
    async fn no_stream_is_opened_for_a_message_that_was_withdrawn_before() {
        let scene = Scene::new(1).await;
        let mut sender = scene.sender(AT_ONCE);
        assert!(scene.queue(10).withdraw(Error::SendTimeout).is_some());
        assert!(matches!(sender.turn(false, false).await, Ok(Turn::Nothing)));
        assert_eq!(sender.credit.used(), 0);
        assert_eq!(scene.outbox.outstanding(), Load::default());
    }

    #[tokio::test]
    async fn a_message_for_a_peer_that_may_have_to_be_asked_first_stays_in_its_queue() {
        let scene = Scene::new(1).await;
        let mut sender = scene.sender(AT_ONCE);
        let _message = scene.queue(10);
        assert!(matches!(sender.turn(false, true).await, Ok(Turn::Nothing)));
        assert_eq!(scene.outbox.next_bytes(), Some(10));
        assert!(matches!(sender.turn(false, false).await, Ok(Turn::Send(_))));
    }

    #[tokio::test]
    async fn credit_that_nobody_waits_for_any_more_is_not_missed() {
        let scene = Scene::new(1).await;
        let mut sender = scene.sender(AT_ONCE);
        let _first = scene.queue(10);
        assert!(matches!(sender.turn(false, false).await, Ok(Turn::Send(_))));
        let second = scene.queue(10);
        let mut turn = pin!(sender.turn(false, false));
        assert!(turn.as_mut().now_or_never().is_none());
        assert!(second.withdraw(Error::SendTimeout).is_some());
        scene.outbox.note_withdrawal();
        assert!(matches!(turn.await, Ok(Turn::Nothing)));
    }

    #[tokio::test]
    async fn a_stream_that_was_opened_in_vain_has_used_up_credit_and_no_other_message_goes_by_it() {
        let scene = Scene::new(2).await;
        let mut sender = scene.sender(AT_ONCE);
        // As if the other one were credit that has come back.
        sender.granted = 1;
        let _first = scene.queue(10);
        assert!(matches!(sender.turn(false, false).await, Ok(Turn::Send(_))));
        sender.aloft = Aloft::default();
        assert!(sender.is_exhausted());
        let measured = scene.queue(10);
        let _behind = scene.queue(1_000);
        assert!(measured.withdraw(Error::SendTimeout).is_some());
        let opened = sender.carrier.open_bi().await.expect("a stream");
        assert!(sender.single(opened, 10).is_none());
        assert_eq!(scene.outbox.next_bytes(), Some(1_000));
        assert!(!sender.is_exhausted());
    }

    /// Senders who give up would use up the credit of a peer that returns little.
    #[tokio::test]
    async fn credit_that_comes_late_is_for_whatever_is_next_by_then() {
        let scene = Scene::new(1).await;
        let mut sender = scene.sender(PATIENCE);
        let _first = scene.queue(10);
        let Ok(Turn::Send(flight)) = sender.turn(false, false).await else {
            unreachable!("there is credit for one");
        };
        sender.land(vec![flight.fly().await]);
        let measured = scene.queue(10);
        let mut turn = pin!(sender.turn(false, false));
        assert!(turn.as_mut().now_or_never().is_none());
        let _behind = scene.queue(1_090);
        assert!(measured.withdraw(Error::SendTimeout).is_some());
        drop(scene.peer.1.accept_bi().await);
        assert!(matches!(turn.await, Ok(Turn::Send(_))));
        assert_eq!(scene.outbox.next_bytes(), None);
    }
}
