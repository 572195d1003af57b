//! Where the peer of a slot is to be found: where it was dialled, and where callers say it is since
//! it has fallen silent. What a caller says counts for the next dial alone: a peer that answers
//! after all is where it was.

use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::Error;
use crate::address::Address;
use crate::dial::Dialer;
use crate::mesh::Target;

/// A connection that takes another's place.
pub(crate) struct Fresh {
    pub(crate) connection: quinn::Connection,
    /// Where it was dialled.
    pub(crate) target: Target,
}

/// A dial for one. In a box, for in most connections' lives it never comes to it.
pub(crate) type Redial<'a> = Pin<Box<dyn Future<Output = Result<Box<Fresh>, Error>> + Send + 'a>>;

/// Other addresses that count before a peer has to be heard of: callers may disagree, and each new
/// one ends the dial of another.
const MOST_OTHERS: usize = 3;

#[derive(Debug)]
pub(crate) struct Whereabouts(Mutex<State>);

#[derive(Debug)]
struct State {
    known: Target,
    /// In a box, for most slots never have one.
    search: Option<Box<Search>>,
}

/// What there is of a peer's whereabouts since it was last heard of.
#[derive(Debug, Default)]
struct Search {
    /// Where callers say it is, beside where it was; the last one whose word was new at last.
    suggested: Vec<Target>,
    /// The last one of those that are too many, for a dial after all of these.
    beyond: Option<Target>,
    /// Where dials went, in their order: the last one may be under way.
    tried: Vec<Target>,
    /// Where dials went that were given up for the sake of others, in this order.
    put_off: Vec<Target>,
}

impl Whereabouts {
    pub(crate) fn new(target: Target) -> Self {
        Self(Mutex::new(State { known: target, search: None }))
    }

    /// The address of the last dial that has succeeded, or of the first one, in its caller's own form.
    pub(crate) fn given(&self) -> Box<[u8]> {
        self.lock().known.given.clone()
    }

    /// Where that dial went.
    pub(crate) fn address(&self) -> Address {
        self.lock().known.address.clone()
    }

    /// Where the next dial goes when the connection has ended so: where nobody has looked yet, as far
    /// as there is such an address. But who ended it himself was where he was dialled, whatever
    /// callers said while he was silent.
    pub(crate) fn after(&self, end: &Error) -> Target {
        let state = self.lock();
        if end.is_by_peer() { state.known.clone() } else { state.next().clone() }
    }

    /// Where dials went since the peer was last heard of, or the one did before.
    pub(crate) fn tried(&self) -> Vec<Address> {
        let state = self.lock();
        let addresses =
            |tried: &[Target]| tried.iter().map(|target| target.address.clone()).collect();
        match state.search.as_deref() {
            Some(search) if !search.tried.is_empty() => addresses(&search.tried),
            _ => vec![state.known.address.clone()],
        }
    }

    /// Dials `node` there.
    pub(crate) fn redial<'a>(&self, dialer: &'a Dialer, node: &'a [u8]) -> Redial<'a> {
        let target = self.lock().begin();
        Box::pin(async move {
            let connection = dialer.dial(&target.address, node).await?;
            Ok(Box::new(Fresh { connection, target }))
        })
    }

    /// The dial is given up for the sake of another; it comes again.
    pub(crate) fn interrupt(&self) {
        if let Some(search) = &mut self.lock().search {
            search.put_off.extend(search.tried.pop());
        }
    }

    /// A caller says that the peer, which is silent, is at `target`.
    pub(crate) fn suggest(&self, target: Target) {
        let mut state = self.lock();
        let suggested = state.search.as_deref().map_or(&[][..], |search| &search.suggested);
        if is_among(&target, suggested) || target.address == state.known.address {
            return;
        }
        let Search { suggested, beyond, .. } = &mut **state.search.get_or_insert_default();
        match suggested.len() < MOST_OTHERS {
            true => suggested.push(target),
            false => *beyond = Some(target),
        }
    }

    /// Whether a caller has said where it is, and no dial has begun there.
    pub(crate) fn is_suggested(&self) -> bool {
        self.lock().suggested().is_some()
    }

    /// Whether there is any address of which no dial has had an outcome.
    pub(crate) fn is_untried(&self) -> bool {
        self.lock().untried().is_some()
    }

    /// The peer was heard of: it is where it was dialled.
    pub(crate) fn confirm(&self) {
        self.lock().search = None;
    }

    /// A dial of `target` has found it.
    pub(crate) fn moved(&self, target: Target) {
        *self.lock() = State { known: target, search: None };
    }

    /// A std mutex, because nothing awaits inside.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn next(&self) -> &Target {
        let search = self.search.as_deref();
        let newest =
            || search.and_then(|search| search.beyond.as_ref().or(search.suggested.last()));
        self.untried().or_else(newest).unwrap_or(&self.known)
    }

    /// What callers have said goes first, and what was put off behind it, the newest of each.
    fn untried(&self) -> Option<&Target> {
        let Some(search) = self.search.as_deref() else { return Some(&self.known) };
        let put_off = || search.put_off.last();
        let known = || Some(&self.known).filter(|known| !is_among(known, &search.tried));
        self.suggested().or_else(put_off).or_else(known)
    }

    fn suggested(&self) -> Option<&Target> {
        let Search { suggested, tried, put_off, .. } = self.search.as_deref()?;
        let is_new = |target: &&Target| !is_among(target, tried) && !is_among(target, put_off);
        suggested.iter().rev().find(is_new)
    }

    /// A dial begins.
    fn begin(&mut self) -> Target {
        let target = self.next().clone();
        let Search { tried, put_off, .. } = &mut **self.search.get_or_insert_default();
        put_off.retain(|other| other.address != target.address);
        tried.push(target.clone());
        target
    }
}

/// Callers may write one address in many ways.
fn is_among(target: &Target, targets: &[Target]) -> bool {
    targets.iter().any(|other| other.address == target.address)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::address::Resolver;
    use crate::endpoint::Endpoint;
    use crate::settings::Settings;

    fn at(port: u16) -> Target {
        let address = Address::from(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        Target { address, given: port.to_string().into_bytes().into() }
    }

    /// Where the next dial goes, which begins; nobody waits for it.
    fn dialled(whereabouts: &Whereabouts, dialer: &Dialer) -> Box<[u8]> {
        let next = whereabouts.after(&Error::Dead);
        drop(whereabouts.redial(dialer, b"node"));
        assert_eq!(whereabouts.tried().last(), Some(&next.address));
        next.given
    }

    fn dialer() -> Dialer {
        let endpoint = Arc::new(Endpoint::new(65_536, || {}));
        Dialer::new(endpoint, Resolver::new(), Settings::default(), 1, Duration::ZERO)
            .expect("a dialer")
    }

    #[test]
    fn what_a_caller_says_counts_until_the_peer_is_heard_of() {
        let whereabouts = Whereabouts::new(at(1));
        whereabouts.suggest(at(1));
        assert!(!whereabouts.is_suggested(), "known already");
        whereabouts.suggest(at(2));
        assert!(whereabouts.is_suggested());
        assert_eq!(
            (whereabouts.after(&Error::Dead).given, whereabouts.given()),
            (at(2).given, at(1).given)
        );
        assert_eq!(whereabouts.after(&Error::Reset).given, at(1).given);
        whereabouts.confirm();
        assert!(!whereabouts.is_suggested());
        assert_eq!(whereabouts.after(&Error::Dead).given, at(1).given);
    }

    #[test]
    fn where_a_dial_has_found_it_is_known() {
        let whereabouts = Whereabouts::new(at(1));
        whereabouts.suggest(at(2));
        whereabouts.moved(at(2));
        assert!(!whereabouts.is_suggested());
        assert_eq!(
            (whereabouts.after(&Error::Dead).given, whereabouts.given()),
            (at(2).given, at(2).given)
        );
        assert_eq!(whereabouts.tried(), [at(2).address]);
    }

    #[test]
    fn callers_who_disagree_have_each_address_dialled_the_last_one_first() {
        let (whereabouts, dialer) = (Whereabouts::new(at(1)), dialer());
        whereabouts.suggest(at(2));
        whereabouts.suggest(at(3));
        whereabouts.suggest(at(2));
        for port in [3, 2, 1] {
            assert!(whereabouts.is_untried());
            assert_eq!(dialled(&whereabouts, &dialer), at(port).given);
        }
        assert!(!whereabouts.is_untried());
        assert_eq!(whereabouts.tried(), [3, 2, 1].map(|port| at(port).address));
        // And not very many.
        (4..100).for_each(|port| whereabouts.suggest(at(port)));
        assert_eq!(dialled(&whereabouts, &dialer), at(4).given);
        assert!(!whereabouts.is_untried());
        assert_eq!(whereabouts.after(&Error::Dead).given, at(99).given, "for who comes after");
    }

    #[test]
    fn a_dial_that_was_given_up_for_another_comes_again_after_it() {
        let (whereabouts, dialer) = (Whereabouts::new(at(1)), dialer());
        assert_eq!(dialled(&whereabouts, &dialer), at(1).given);
        let mut interruptions = 0;
        for port in 2..100 {
            whereabouts.suggest(at(port));
            if whereabouts.is_suggested() {
                interruptions += 1;
                whereabouts.interrupt();
                assert_eq!(dialled(&whereabouts, &dialer), at(port).given);
            }
            // Whoever repeats what was said before ends no dial.
            (1..port).for_each(|port| whereabouts.suggest(at(port)));
            assert!(!whereabouts.is_suggested());
        }
        assert_eq!(interruptions, MOST_OTHERS);
        for port in [3, 2, 1] {
            assert!(whereabouts.is_untried());
            assert_eq!(dialled(&whereabouts, &dialer), at(port).given);
        }
        assert!(!whereabouts.is_untried());
    }
}
