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

/// Other addresses that are dialled at most before a peer has to be heard of: callers may disagree.
const MOST_TRIED: usize = 3;

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
    /// Where a caller says it is, the last one whose word was new.
    suggested: Option<Target>,
    /// Dialled, in this order.
    tried: Vec<Target>,
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

    /// Where the peer most likely is.
    pub(crate) fn newest(&self) -> Target {
        self.lock().newest().clone()
    }

    /// Where the last dial went.
    pub(crate) fn last_tried(&self) -> Target {
        let state = self.lock();
        let last = state.search.as_deref().and_then(|search| search.tried.last());
        last.unwrap_or(&state.known).clone()
    }

    /// Dials `node` where nobody has, or else where it most likely is.
    pub(crate) fn redial<'a>(&self, dialer: &'a Dialer, node: &'a [u8]) -> Redial<'a> {
        let target = {
            let mut state = self.lock();
            let target = state.untried().unwrap_or(state.newest()).clone();
            state.search.get_or_insert_default().tried.push(target.clone());
            target
        };
        Box::pin(async move {
            let connection = dialer.dial(&target.address, node).await?;
            Ok(Box::new(Fresh { connection, target }))
        })
    }

    /// The dial is given up for the sake of another. That of where the peer was may come again.
    pub(crate) fn interrupt(&self) {
        let mut state = self.lock();
        let State { known, search: Some(search) } = &mut *state else { return };
        search.tried.pop_if(|last| last.address == known.address);
    }

    /// A caller says that the peer, which is silent, is at `target`.
    pub(crate) fn suggest(&self, target: Target) {
        let mut state = self.lock();
        let search = state.search.as_deref();
        let is_old = search.is_some_and(|search| {
            let known = search.tried.iter().chain(&search.suggested);
            search.tried.len() >= MOST_TRIED || is_among(&target, known)
        });
        if !is_old && target.address != state.known.address {
            state.search.get_or_insert_default().suggested = Some(target);
        }
    }

    /// Whether a caller has said where it is, and nobody has dialled there.
    pub(crate) fn is_suggested(&self) -> bool {
        self.lock().suggested().is_some()
    }

    /// Whether there is any address that nobody has dialled.
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
    fn newest(&self) -> &Target {
        let suggested = self.search.as_deref().and_then(|search| search.suggested.as_ref());
        suggested.unwrap_or(&self.known)
    }

    fn suggested(&self) -> Option<&Target> {
        let Search { suggested, tried } = self.search.as_deref()?;
        suggested.as_ref().filter(|suggested| !is_among(suggested, tried))
    }

    fn untried(&self) -> Option<&Target> {
        let tried = self.search.as_deref().map_or(&[][..], |search| &search.tried);
        self.suggested().or_else(|| Some(&self.known).filter(|known| !is_among(known, tried)))
    }
}

/// Callers may write one address in many ways.
fn is_among<'a>(target: &Target, targets: impl IntoIterator<Item = &'a Target>) -> bool {
    targets.into_iter().any(|other| other.address == target.address)
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

    fn newest(whereabouts: &Whereabouts) -> Box<[u8]> {
        whereabouts.newest().given
    }

    /// Dials, and tells where that goes; nobody waits for it.
    fn dialled(whereabouts: &Whereabouts, dialer: &Dialer) -> Box<[u8]> {
        drop(whereabouts.redial(dialer, b"node"));
        whereabouts.last_tried().given
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
        assert_eq!((newest(&whereabouts), whereabouts.given()), (at(2).given, at(1).given));
        whereabouts.confirm();
        assert!(!whereabouts.is_suggested());
        assert_eq!(newest(&whereabouts), at(1).given);
    }

    #[test]
    fn where_a_dial_has_found_it_is_known() {
        let whereabouts = Whereabouts::new(at(1));
        whereabouts.suggest(at(2));
        whereabouts.moved(at(2));
        assert!(!whereabouts.is_suggested());
        assert_eq!((newest(&whereabouts), whereabouts.given()), (at(2).given, at(2).given));
    }

    #[test]
    fn callers_who_disagree_have_each_address_dialled_once() {
        let (whereabouts, dialer) = (Whereabouts::new(at(1)), dialer());
        assert_eq!(dialled(&whereabouts, &dialer), at(1).given);
        whereabouts.suggest(at(2));
        whereabouts.interrupt();
        assert_eq!(dialled(&whereabouts, &dialer), at(2).given);
        whereabouts.suggest(at(1));
        whereabouts.suggest(at(2));
        assert!(!whereabouts.is_suggested(), "both are known");
        assert!(whereabouts.is_untried(), "that of the first has had no outcome");
        assert_eq!(dialled(&whereabouts, &dialer), at(1).given);
        assert!(!whereabouts.is_untried());
        // And not very many.
        (3..100).for_each(|port| whereabouts.suggest(at(port)));
        assert_eq!(dialled(&whereabouts, &dialer), at(99).given);
        whereabouts.suggest(at(100));
        assert!(!whereabouts.is_untried());
    }
}
