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

#[derive(Debug)]
pub(crate) struct Whereabouts(Mutex<State>);

#[derive(Debug)]
struct State {
    known: Target,
    /// In a box, for most slots never have one.
    elsewhere: Option<Box<Elsewhere>>,
}

#[derive(Debug)]
struct Elsewhere {
    target: Target,
    /// Whether a dial there has begun.
    is_tried: bool,
}

impl Whereabouts {
    pub(crate) fn new(target: Target) -> Self {
        Self(Mutex::new(State { known: target, elsewhere: None }))
    }

    /// The address of the last dial that has succeeded, or of the first one, in its caller's own form.
    pub(crate) fn given(&self) -> Box<[u8]> {
        self.lock().known.given.clone()
    }

    /// Where that dial went.
    pub(crate) fn address(&self) -> Address {
        self.lock().known.address.clone()
    }

    /// Where the next dial is to go.
    pub(crate) fn newest(&self) -> Target {
        let state = self.lock();
        state.elsewhere.as_deref().map_or(&state.known, |elsewhere| &elsewhere.target).clone()
    }

    /// Dials `node` there.
    pub(crate) fn redial<'a>(&self, dialer: &'a Dialer, node: &'a [u8]) -> Redial<'a> {
        if let Some(elsewhere) = &mut self.lock().elsewhere {
            elsewhere.is_tried = true;
        }
        let target = self.newest();
        Box::pin(async move {
            let connection = dialer.dial(&target.address, node).await?;
            Ok(Box::new(Fresh { connection, target }))
        })
    }

    /// A caller says that the peer, which is silent, is at `target`.
    pub(crate) fn suggest(&self, target: Target) {
        let mut state = self.lock();
        let newest = state.elsewhere.as_deref().map_or(&state.known, |there| &there.target);
        if newest.given != target.given {
            state.elsewhere = Some(Box::new(Elsewhere { target, is_tried: false }));
        }
    }

    /// Whether a caller has said where it is, and nobody has dialled there.
    pub(crate) fn is_untried(&self) -> bool {
        self.lock().elsewhere.as_deref().is_some_and(|elsewhere| !elsewhere.is_tried)
    }

    /// The peer was heard of: it is where it was dialled.
    pub(crate) fn confirm(&self) {
        self.lock().elsewhere = None;
    }

    /// A dial of `target` has found it.
    pub(crate) fn moved(&self, target: Target) {
        *self.lock() = State { known: target, elsewhere: None };
    }

    /// A std mutex, because nothing awaits inside.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use super::*;

    fn at(port: u16) -> Target {
        let address = Address::from(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        Target { address, given: port.to_string().into_bytes().into() }
    }

    fn newest(whereabouts: &Whereabouts) -> Box<[u8]> {
        whereabouts.newest().given
    }

    #[test]
    fn what_a_caller_says_counts_until_the_peer_is_heard_of() {
        let whereabouts = Whereabouts::new(at(1));
        assert!(!whereabouts.is_untried());
        whereabouts.suggest(at(1));
        assert!(!whereabouts.is_untried(), "known already");
        whereabouts.suggest(at(2));
        assert!(whereabouts.is_untried());
        assert_eq!((newest(&whereabouts), whereabouts.given()), (at(2).given, at(1).given));
        whereabouts.confirm();
        assert!(!whereabouts.is_untried());
        assert_eq!(newest(&whereabouts), at(1).given);
    }

    #[test]
    fn where_a_dial_has_found_it_is_known() {
        let whereabouts = Whereabouts::new(at(1));
        whereabouts.suggest(at(2));
        whereabouts.moved(at(2));
        assert!(!whereabouts.is_untried());
        assert_eq!((newest(&whereabouts), whereabouts.given()), (at(2).given, at(2).given));
    }
}
