//! The bounded pool of slots: who is being dialled, who is ready, and who goes when there is one
//! too many. Plain data: no network, no task, no clock. It is generic over what a slot holds, so
//! it is tested with integers.

use std::collections::HashMap;
use std::hash::Hash;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lru::LruCache;

/// What a victim is chosen by, besides its last use.
pub(crate) trait Occupant {
    /// Whether nothing would be interrupted if this one had to go.
    fn is_idle(&self) -> bool;
}

/// The identity of one slot. A node id may get many slots in its time; news about one of them
/// must never be taken for news about its successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ticket(u64);

/// What the pool holds for a key.
#[derive(Debug)]
pub(crate) enum Slot<D, R> {
    /// A dial is under way.
    Dialing(D),
    /// A connection is ready; asking for it made it the most recently used.
    Ready(R),
    /// Nothing.
    Vacant,
}

/// Slots by key, at most `limit` of them ready, in exact order of use.
///
/// Dialling slots are not counted against the limit: a dial that fails must evict nobody, and
/// one that has not succeeded yet must not either. The caller bounds them by [`Pool::dialing`].
#[derive(Debug)]
pub(crate) struct Pool<K: Hash + Eq, D, R> {
    limit: NonZeroUsize,
    dialing: HashMap<K, (Ticket, D)>,
    /// With [`room`] for more than the limit, of which it never evicts by itself.
    ready: LruCache<K, (Ticket, R)>,
    issued: u64,
    latest: Latest,
}

/// Which slot was used last: who uses that again changes nothing in the order of use, and need not
/// come to the pool to say so.
#[derive(Clone, Debug, Default)]
pub(crate) struct Latest(Arc<AtomicU64>);

impl Latest {
    /// Whether no other slot has been used since this one.
    pub(crate) fn is(&self, ticket: Ticket) -> bool {
        self.0.load(Ordering::Relaxed) == ticket.0
    }

    fn set(&self, ticket: Ticket) {
        // To write what is there already would take the line from another core.
        if !self.is(ticket) {
            self.0.store(ticket.0, Ordering::Relaxed);
        }
    }
}

/// How many of the least recently used connections are looked at for an idle one. Beyond that
/// many busy ones in a row, the oldest goes: the search stays O(1) whatever the pool's size.
pub(crate) const VICTIM_SEARCH: usize = 128;

impl<K: Hash + Eq + Clone, D, R: Occupant> Pool<K, D, R> {
    /// An empty pool that keeps at most `limit` ready slots.
    pub(crate) fn new(limit: NonZeroUsize) -> Self {
        Self {
            limit,
            dialing: HashMap::new(),
            ready: LruCache::new(room(limit)),
            issued: 0,
            latest: Latest::default(),
        }
    }

    /// What is there for `key`; a ready slot becomes the most recently used.
    pub(crate) fn lookup<Q>(&mut self, key: &Q) -> Slot<&mut D, &mut R>
    where
        K: std::borrow::Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        if let Some((ticket, resident)) = self.ready.get_mut(key) {
            self.latest.set(*ticket);
            return Slot::Ready(resident);
        }
        match self.dialing.get_mut(key) {
            Some((_, dial)) => Slot::Dialing(dial),
            None => Slot::Vacant,
        }
    }

    /// Makes the ready slot `ticket` of `key` the most recently used.
    pub(crate) fn touch<Q>(&mut self, key: &Q, ticket: Ticket) -> Option<&mut R>
    where
        K: std::borrow::Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.ready.peek(key).filter(|(there, _)| *there == ticket)?;
        self.latest.set(ticket);
        self.ready.get_mut(key).map(|(_, resident)| resident)
    }

    /// The ready slot of `key`, without using it.
    pub(crate) fn peek<Q>(&self, key: &Q) -> Option<&R>
    where
        K: std::borrow::Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.ready.peek(key).map(|(_, resident)| resident)
    }

    /// Opens a dialling slot for `key`, in place of whatever was there.
    pub(crate) fn begin(&mut self, key: K, dial: D) -> Ticket {
        self.ready.pop(&key);
        self.issued += 1;
        let ticket = Ticket(self.issued);
        self.dialing.insert(key, (ticket, dial));
        ticket
    }

    /// Turns the dialling slot `ticket` of `key` into a ready one and returns the victim, if the
    /// pool is over its limit now.
    ///
    /// # Errors
    /// `resident` itself, when the slot has gone in the meantime.
    pub(crate) fn admit(
        &mut self,
        key: &K,
        ticket: Ticket,
        resident: R,
    ) -> Result<Option<(K, R)>, R> {
        if self.dialing.get(key).is_none_or(|(there, _)| *there != ticket) {
            return Err(resident);
        }
        self.dialing.remove(key);
        self.ready.put(key.clone(), (ticket, resident));
        self.latest.set(ticket);
        Ok(self.evict(Some(key)))
    }

    /// Removes the slot `ticket` of `key`, whatever its state; `false` when it had gone already.
    pub(crate) fn leave(&mut self, key: &K, ticket: Ticket) -> bool {
        if self.ready.peek(key).is_some_and(|(there, _)| *there == ticket) {
            return self.ready.pop(key).is_some();
        }
        self.dialing.get(key).is_some_and(|(there, _)| *there == ticket)
            && self.dialing.remove(key).is_some()
    }

    /// Removes whatever is there for `key`.
    pub(crate) fn remove<Q>(&mut self, key: &Q) -> Slot<D, R>
    where
        K: std::borrow::Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        if let Some((_, resident)) = self.ready.pop(key) {
            return Slot::Ready(resident);
        }
        match self.dialing.remove(key) {
            Some((_, dial)) => Slot::Dialing(dial),
            None => Slot::Vacant,
        }
    }

    /// Sets the limit. The pool may be beyond it, until it has parted with as many. Beyond the room
    /// that there is, all that is ready moves, once.
    pub(crate) fn set_limit(&mut self, limit: NonZeroUsize) {
        self.limit = limit;
        if limit < self.ready.cap() {
            return;
        }
        let mut wider = LruCache::new(room(limit));
        while let Some((key, slot)) = self.ready.pop_lru() {
            wider.put(key, slot);
        }
        self.ready = wider;
    }

    /// Takes out one ready slot if there are too many.
    pub(crate) fn part_with_one(&mut self) -> Option<(K, R)> {
        self.evict(None)
    }

    /// Empties the pool.
    pub(crate) fn clear(&mut self) -> (Vec<D>, Vec<R>) {
        let dialing = self.dialing.drain().map(|(_, (_, dial))| dial).collect();
        let ready = std::iter::from_fn(|| self.ready.pop_lru()).map(|(_, (_, r))| r).collect();
        (dialing, ready)
    }

    /// Ready slots, the most recently used first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &R)> {
        self.ready.iter().map(|(key, (_, resident))| (key, resident))
    }

    /// Which slot was used last.
    pub(crate) fn latest(&self) -> Latest {
        self.latest.clone()
    }

    /// How many slots are ready.
    pub(crate) fn ready(&self) -> usize {
        self.ready.len()
    }

    /// How many slots are dialling.
    pub(crate) fn dialing(&self) -> usize {
        self.dialing.len()
    }

    /// How many slots may be ready.
    pub(crate) fn limit(&self) -> NonZeroUsize {
        self.limit
    }

    /// Takes out one ready slot if there are too many: the least recently used idle one, else
    /// the least recently used, never `newcomer`.
    fn evict(&mut self, newcomer: Option<&K>) -> Option<(K, R)> {
        if self.ready.len() <= self.limit.get() {
            return None;
        }
        let mut candidates =
            self.ready.iter().rev().filter(|(key, _)| Some(*key) != newcomer).take(VICTIM_SEARCH);
        let oldest = candidates.next()?;
        let victim = std::iter::once(oldest)
            .chain(candidates)
            .find(|(_, (_, resident))| resident.is_idle())
            .unwrap_or(oldest)
            .0
            .clone();
        self.ready.pop(&victim).map(|(_, resident)| (victim, resident))
    }
}

/// How many slots the table of ready ones is made for: twice as many as there may be, of which one
/// is too many while a victim is chosen. So a full pool goes on without growing its table: where a
/// slot was, a mark may stay, and these would fill what is made for just as many.
fn room(limit: NonZeroUsize) -> NonZeroUsize {
    let most = limit.saturating_add(1);
    most.saturating_add(most.get())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use proptest::prelude::*;

    use super::*;

    /// A connection as the pool sees one: who it is, and whether it is busy.
    #[derive(Clone, Debug)]
    struct Toy {
        id: u64,
        busy: Rc<Cell<bool>>,
    }

    impl Occupant for Toy {
        fn is_idle(&self) -> bool {
            !self.busy.get()
        }
    }

    type Pool = super::Pool<u8, (), Toy>;

    fn pool(limit: usize) -> Pool {
        Pool::new(NonZeroUsize::new(limit).expect("a limit"))
    }

    fn toy(id: u64) -> Toy {
        Toy { id, busy: Rc::default() }
    }

    fn insert(pool: &mut Pool, key: u8, toy: Toy) -> Option<u8> {
        let ticket = pool.begin(key, ());
        pool.admit(&key, ticket, toy).expect("its slot").map(|(key, _)| key)
    }

    #[test]
    fn evicts_the_least_recently_used() {
        let mut pool = pool(2);
        assert_eq!(insert(&mut pool, 1, toy(1)), None);
        assert_eq!(insert(&mut pool, 2, toy(2)), None);
        assert!(matches!(pool.lookup(&1), Slot::Ready(_)));
        assert_eq!(insert(&mut pool, 3, toy(3)), Some(2));
    }

    #[test]
    fn an_idle_connection_goes_before_an_older_busy_one() {
        let mut pool = pool(2);
        let busy = toy(1);
        busy.busy.set(true);
        insert(&mut pool, 1, busy);
        insert(&mut pool, 2, toy(2));
        assert_eq!(insert(&mut pool, 3, toy(3)), Some(2));
    }

    #[test]
    fn when_all_are_busy_the_oldest_goes_and_never_the_newcomer() {
        let mut pool = pool(1);
        let busy = toy(1);
        busy.busy.set(true);
        insert(&mut pool, 1, busy);
        assert_eq!(insert(&mut pool, 2, toy(2)), Some(1));
    }

    #[test]
    fn a_dial_evicts_nobody_until_it_has_succeeded() {
        let mut pool = pool(1);
        insert(&mut pool, 1, toy(1));
        let ticket = pool.begin(2, ());
        assert_eq!((pool.ready(), pool.dialing()), (1, 1));
        assert!(pool.leave(&2, ticket));
        assert!(pool.peek(&1).is_some());
    }

    #[test]
    fn news_of_an_old_slot_does_not_touch_its_successor() {
        let mut pool = pool(2);
        let old = pool.begin(1, ());
        assert!(matches!(pool.remove(&1), Slot::Dialing(())));
        let new = pool.begin(1, ());
        assert!(pool.admit(&1, old, toy(1)).is_err());
        assert!(!pool.leave(&1, old));
        assert!(pool.admit(&1, new, toy(2)).is_ok());
        assert!(!pool.leave(&1, old));
        assert!(pool.leave(&1, new));
    }

    /// The same pool, written as slowly and plainly as can be.
    #[derive(Default)]
    struct Naive {
        limit: usize,
        dialing: Vec<(u8, u64)>,
        /// In order of use, the oldest first.
        ready: Vec<(u8, Toy)>,
    }

    impl Naive {
        fn forget(&mut self, key: u8) {
            self.dialing.retain(|(there, _)| *there != key);
            self.ready.retain(|(there, _)| *there != key);
        }

        fn evict(&mut self, newcomer: Option<u8>) -> Option<u8> {
            if self.ready.len() <= self.limit {
                return None;
            }
            let others = || self.ready.iter().filter(|(key, _)| Some(*key) != newcomer);
            let victim = others().find(|(_, toy)| toy.is_idle()).or_else(|| others().next())?.0;
            self.forget(victim);
            Some(victim)
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Begin(u8),
        Admit(u8),
        Fail(u8),
        Lookup(u8),
        Busy(u8, bool),
        Remove(u8),
        Limit(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let key = 0..12_u8;
        prop_oneof![
            4 => key.clone().prop_map(Step::Begin),
            4 => key.clone().prop_map(Step::Admit),
            1 => key.clone().prop_map(Step::Fail),
            4 => key.clone().prop_map(Step::Lookup),
            3 => (key.clone(), any::<bool>()).prop_map(|(key, busy)| Step::Busy(key, busy)),
            1 => key.prop_map(Step::Remove),
            1 => (1..6_usize).prop_map(Step::Limit),
        ]
    }

    proptest! {
        #[test]
        fn behaves_as_a_naive_list_does(steps in prop::collection::vec(step(), 1..200)) {
            let mut pool = pool(3);
            let mut naive = Naive { limit: 3, ..Naive::default() };
            let mut tickets: HashMap<u8, Ticket> = HashMap::new();
            for (id, step) in (0_u64..).zip(steps) {
                match step {
                    Step::Begin(key) => {
                        tickets.insert(key, pool.begin(key, ()));
                        naive.forget(key);
                        naive.dialing.push((key, id));
                    }
                    Step::Admit(key) => {
                        let Some(ticket) = tickets.get(&key) else { continue };
                        let newcomer = toy(id);
                        let admitted = pool.admit(&key, *ticket, newcomer.clone());
                        let is_dialing = naive.dialing.iter().any(|(there, _)| *there == key);
                        prop_assert_eq!(admitted.is_ok(), is_dialing);
                        if let Ok(victim) = admitted {
                            naive.forget(key);
                            naive.ready.push((key, newcomer));
                            let expected = naive.evict(Some(key));
                            prop_assert_eq!(victim.map(|(key, _)| key), expected);
                        }
                    }
                    Step::Fail(key) => {
                        let Some(ticket) = tickets.get(&key) else { continue };
                        let known = naive.dialing.iter().any(|(there, _)| *there == key)
                            || naive.ready.iter().any(|(there, _)| *there == key);
                        prop_assert_eq!(pool.leave(&key, *ticket), known);
                        naive.forget(key);
                    }
                    Step::Lookup(key) => {
                        let found = match pool.lookup(&key) {
                            Slot::Ready(toy) => Some(toy.id),
                            Slot::Dialing(()) | Slot::Vacant => None,
                        };
                        let place = naive.ready.iter().position(|(there, _)| *there == key);
                        prop_assert_eq!(found, place.map(|place| naive.ready[place].1.id));
                        if let Some(place) = place {
                            let used = naive.ready.remove(place);
                            naive.ready.push(used);
                        }
                    }
                    Step::Busy(key, busy) => {
                        if let Some(toy) = pool.peek(&key) {
                            toy.busy.set(busy);
                        }
                    }
                    Step::Remove(key) => {
                        pool.remove(&key);
                        naive.forget(key);
                    }
                    Step::Limit(limit) => {
                        pool.set_limit(NonZeroUsize::new(limit).expect("a limit"));
                        naive.limit = limit;
                        let expected: Vec<u8> = std::iter::from_fn(|| naive.evict(None)).collect();
                        let victims: Vec<u8> =
                            std::iter::from_fn(|| pool.part_with_one()).map(|(key, _)| key).collect();
                        prop_assert_eq!(victims, expected);
                    }
                }
                prop_assert!(pool.ready() <= pool.limit().get());
                prop_assert_eq!(pool.dialing(), naive.dialing.len());
                let order: Vec<u64> = pool.iter().map(|(_, toy)| toy.id).collect();
                let expected: Vec<u64> = naive.ready.iter().rev().map(|(_, toy)| toy.id).collect();
                prop_assert_eq!(order, expected);
            }
        }
    }
}
