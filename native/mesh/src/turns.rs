//! Those who wait, in the order in which they came. Who has gone leaves in passing: a few are
//! looked at with each that comes, so that nobody has to look at all of them at once. Plain data.

use std::collections::BTreeMap;

/// How many are looked at in one go. More than one, so that those who have gone leave faster than
/// others come; few, since a caller's thread does it.
pub(crate) const LOOKS: usize = 16;

#[derive(Debug)]
pub(crate) struct Turns<T> {
    waiting: BTreeMap<u64, T>,
    /// How many have come.
    came: u64,
    /// From where on one is looked at next.
    look: u64,
}

impl<T> Turns<T> {
    pub(crate) fn new() -> Self {
        Self { waiting: BTreeMap::new(), came: 0, look: 0 }
    }

    /// Puts one behind the others.
    pub(crate) fn push(&mut self, one: T) {
        self.waiting.insert(self.came, one);
        self.came += 1;
    }

    pub(crate) fn first(&self) -> Option<&T> {
        self.waiting.first_key_value().map(|(_, first)| first)
    }

    pub(crate) fn pop(&mut self) -> Option<T> {
        self.waiting.pop_first().map(|(_, first)| first)
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Takes out the last one of this kind: who goes again at once is found at once, whoever waits
    /// before him.
    pub(crate) fn take(&mut self, is_wanted: impl Fn(&T) -> bool) -> Option<T> {
        let (&place, _) = self.waiting.iter().rev().find(|(_, one)| is_wanted(one))?;
        self.waiting.remove(&place)
    }

    /// Looks at some, in turn; returns those who have gone.
    pub(crate) fn part_with(&mut self, has_gone: impl Fn(&T) -> bool) -> Vec<T> {
        let mut gone = Vec::new();
        for _ in 0..LOOKS {
            let Some((&place, one)) = self.waiting.range(self.look..).next() else {
                self.look = 0;
                break;
            };
            self.look = place + 1;
            if has_gone(one) {
                gone.extend(self.waiting.remove(&place));
            }
        }
        gone
    }

    /// All of them.
    pub(crate) fn into_all(self) -> impl Iterator<Item = T> {
        self.waiting.into_values()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn the_last_who_came_is_found_at_the_first_look() {
        let mut turns = Turns::new();
        (0..100).for_each(|one| turns.push(one));
        let looks = Cell::new(0);
        let is_last = |one: &i32| {
            looks.set(looks.get() + 1);
            *one == 99
        };
        assert_eq!(turns.take(is_last), Some(99));
        assert_eq!(looks.get(), 1);
    }
}
