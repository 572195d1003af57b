//! What the network says in a peer's place: ICMP messages that nobody listens at a port.
//!
//! Such messages can be forged (RFC 9000, section 14.2.1), so one counts only if it quotes a
//! datagram that we have sent to that address to open a connection: its connection id is 20 random
//! bytes, which nobody knows who has not seen the datagram. It counts against dials alone, and
//! only as long as nothing has come from that address itself. For a connection that is made, any
//! such message is only a hint to ask the peer.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;

use crate::address::canonical;
use crate::lock::lock;

/// Datagrams to one address that are remembered, the last ones. A message comes one round trip
/// after its datagram, and those of a dial that is not answered are sent again.
const MAX_OPENINGS: usize = 32;
/// The bit that tells the packets of a handshake from those after it (RFC 9000, section 17.2).
const LONG_HEADER: u8 = 0x80;
/// Where the length of the destination connection id stands (RFC 9000, section 17.2), and where
/// the part begins that is the same in each datagram of a dial: the version.
const ID_LENGTH_AT: usize = 5;
const VERSION_AT: usize = 1;

/// The dials of one endpoint that wait for their first answer, and its connections.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    /// How many dials there are, so that datagrams are looked at only while there are any.
    waiting: AtomicUsize,
    places: Mutex<HashMap<SocketAddr, Place>>,
    connections: Mutex<HashMap<SocketAddr, Vec<Arc<Notify>>>>,
}

/// A connection that is given hints.
#[derive(Debug)]
pub(crate) struct Hints {
    refusals: Arc<Refusals>,
    address: SocketAddr,
    given: Arc<Notify>,
}

/// The dials to one address.
#[derive(Debug, Default)]
struct Place {
    /// What identifies the datagrams sent to it.
    openings: VecDeque<Vec<u8>>,
    dials: Vec<Arc<Notify>>,
}

/// One dial that waits.
#[derive(Debug)]
pub(crate) struct Watched {
    refusals: Arc<Refusals>,
    address: SocketAddr,
    refused: Arc<Notify>,
}

impl Refusals {
    /// Watches a dial to `address`, which must not have begun yet.
    pub(crate) fn watch(self: &Arc<Self>, address: SocketAddr) -> Watched {
        let address = canonical(address);
        let refused = Arc::new(Notify::new());
        self.lock().entry(address).or_default().dials.push(refused.clone());
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Watched { refusals: self.clone(), address, refused }
    }

    /// Gives hints about the peer at `address`.
    pub(crate) fn hints(self: &Arc<Self>, address: SocketAddr) -> Hints {
        let address = canonical(address);
        let given = Arc::new(Notify::new());
        lock(&self.connections).entry(address).or_default().push(given.clone());
        Hints { refusals: self.clone(), address, given }
    }

    /// Notes a datagram that is about to be sent.
    pub(crate) fn note_sent(&self, to: SocketAddr, datagram: &[u8]) {
        if self.is_idle() {
            return;
        }
        let Some(opening) = opening(datagram) else {
            return;
        };
        if let Some(place) = self.lock().get_mut(&canonical(to))
            && !place.openings.iter().any(|known| known == opening)
        {
            place.openings.truncate(MAX_OPENINGS - 1);
            place.openings.push_front(opening.to_vec());
        }
    }

    /// Notes that datagrams have come from these addresses: whoever is there listens.
    pub(crate) fn note_received(&self, from: impl Iterator<Item = SocketAddr>) {
        if self.is_idle() {
            return;
        }
        let mut places = self.lock();
        for address in from {
            if let Some(place) = places.get_mut(&canonical(address)) {
                place.dials.clear();
            }
        }
    }

    /// Takes the news that nobody listens where a datagram that begins with `quoted` was sent to.
    pub(crate) fn refuse(&self, address: SocketAddr, quoted: &[u8]) {
        let address = canonical(address);
        let Some(opening) = opening(quoted) else {
            for connection in lock(&self.connections).get(&address).into_iter().flatten() {
                connection.notify_one();
            }
            return;
        };
        if let Some(place) = self.lock().get_mut(&address)
            && place.openings.iter().any(|known| known == opening)
        {
            for dial in place.dials.drain(..) {
                dial.notify_one();
            }
        }
    }

    fn is_idle(&self) -> bool {
        // Relaxed: a dial is watched before it begins, by the thread that begins it.
        self.waiting.load(Ordering::Relaxed) == 0
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, Place>> {
        lock(&self.places)
    }
}

impl Hints {
    /// Resolves when the network says that nobody is there. Anybody can make it say so.
    pub(crate) async fn given(&self) {
        self.given.notified().await;
    }
}

impl Drop for Hints {
    fn drop(&mut self) {
        let mut connections = lock(&self.refusals.connections);
        if let Some(here) = connections.get_mut(&self.address) {
            here.retain(|given| !Arc::ptr_eq(given, &self.given));
            if here.is_empty() {
                connections.remove(&self.address);
            }
        }
    }
}

impl Watched {
    /// Resolves when nobody listens where the dial goes; never, if that is not known.
    pub(crate) async fn refused(&self) {
        self.refused.notified().await;
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.refusals.waiting.fetch_sub(1, Ordering::Relaxed);
        let mut places = self.refusals.lock();
        if let Some(place) = places.get_mut(&self.address) {
            place.dials.retain(|dial| !Arc::ptr_eq(dial, &self.refused));
            if place.dials.is_empty() {
                places.remove(&self.address);
            }
        }
    }
}

/// What the datagrams that open one connection have in common, and no other's: the version and the
/// destination connection id.
fn opening(datagram: &[u8]) -> Option<&[u8]> {
    let is_long = datagram.first()? & LONG_HEADER != 0;
    let id_bytes = usize::from(*datagram.get(ID_LENGTH_AT)?);
    datagram.get(VERSION_AT..ID_LENGTH_AT + 1 + id_bytes).filter(|_| is_long)
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tokio's test macro blocks, on a thread of the test")]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const ADDRESS: ([u8; 4], u16) = ([127, 0, 0, 1], 4433);

    /// The beginning of a packet of version 1 to this connection id.
    fn packet(first: u8, id: u8) -> Vec<u8> {
        [&[first, 0, 0, 0, 1, 20][..], &[id; 20], b"the rest"].concat()
    }

    fn watch() -> (Arc<Refusals>, Watched, SocketAddr) {
        let refusals = Arc::new(Refusals::default());
        let watched = refusals.watch(ADDRESS.into());
        refusals.note_sent(ADDRESS.into(), &packet(0xc0, 1));
        (refusals, watched, ADDRESS.into())
    }

    fn is_refused(watched: &Watched) -> bool {
        watched.refused().now_or_never().is_some()
    }

    #[test]
    fn a_message_that_quotes_the_dial_s_datagram_refuses_it() {
        let (refusals, watched, address) = watch();
        // Sent again, a datagram differs in what is protected of its first byte.
        refusals.refuse(address, &packet(0xc3, 1));
        assert!(is_refused(&watched));
    }

    #[test]
    fn a_message_that_quotes_anything_else_is_taken_for_forged() {
        let (refusals, watched, address) = watch();
        let short_header = packet(0x40, 1);
        for quoted in [&packet(0xc0, 2)[..], &short_header, &packet(0xc0, 1)[..10], b""] {
            refusals.refuse(address, quoted);
        }
        refusals.refuse(([127, 0, 0, 1], 4434).into(), &packet(0xc0, 1));
        assert!(!is_refused(&watched));
    }

    #[test]
    fn a_dial_that_has_been_answered_cannot_be_refused() {
        let (refusals, watched, address) = watch();
        refusals.note_received(std::iter::once(address));
        refusals.refuse(address, &packet(0xc0, 1));
        assert!(!is_refused(&watched));
    }

    #[test]
    fn all_dials_to_the_address_are_refused_and_none_is_left_behind() {
        let (refusals, first, address) = watch();
        let second = refusals.watch(address);
        refusals.refuse(address, &packet(0xc0, 1));
        assert!(is_refused(&first) && is_refused(&second));
        drop((first, second));
        assert!(refusals.lock().is_empty() && refusals.is_idle());
    }

    #[test]
    fn a_connection_is_given_a_hint_whoever_it_comes_from() {
        let refusals = Arc::new(Refusals::default());
        let hints = refusals.hints(ADDRESS.into());
        refusals.refuse(([127, 0, 0, 1], 4434).into(), &packet(0x40, 1));
        assert!(hints.given().now_or_never().is_none(), "of another address");
        refusals.refuse(ADDRESS.into(), &packet(0x40, 1));
        assert!(hints.given().now_or_never().is_some());
        drop(hints);
        assert!(lock(&refusals.connections).is_empty());
    }

    #[test]
    fn only_so_many_datagrams_are_remembered() {
        let (refusals, _watched, address) = watch();
        for id in 0..=u8::MAX {
            refusals.note_sent(address, &packet(0xc0, id));
        }
        assert_eq!(refusals.lock().get(&address).map(|place| place.openings.len()), Some(32));
    }
}
