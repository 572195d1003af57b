//! Which indices were seen: a bit each, as long as the largest of them needs. Tested in `tally.rs`.

/// Indices that can be told apart: 8 MiB of bits. `tally.rs` takes a larger one for corrupt.
pub(crate) const INDEX_LIMIT: u64 = 64 * 1024 * 1024;

/// A set of indices below [`INDEX_LIMIT`].
#[derive(Default)]
pub(crate) struct Indices {
    words: Vec<u64>,
}

impl Indices {
    /// Whether `index` is new. One beyond the limit never is.
    pub(crate) fn insert(&mut self, index: u64) -> bool {
        if index >= INDEX_LIMIT {
            return false;
        }
        let Some((place, bit)) = locate(index) else {
            return false;
        };
        if place >= self.words.len() {
            self.words.resize(place + 1, 0);
        }
        let Some(word) = self.words.get_mut(place) else {
            return false;
        };
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }

    /// Whether `index` was ever inserted.
    pub(crate) fn contains(&self, index: u64) -> bool {
        locate(index)
            .and_then(|(place, bit)| self.words.get(place).map(|word| word & bit != 0))
            .unwrap_or(false)
    }
}

fn locate(index: u64) -> Option<(usize, u64)> {
    let place = usize::try_from(index / u64::from(u64::BITS)).ok()?;
    Some((place, 1 << (index % u64::from(u64::BITS))))
}
