//! The faults of one direction, and how they are written: `loss=50 delay=20 mtu=1252`.

use std::time::Duration;

/// A fault that strikes so often always strikes.
pub(crate) const PER_MILLE: u32 = 1_000;
/// Longer delays are mistakes in the unit, and would fill the queue.
const LONGEST_DELAY_MS: u64 = 10_000;

/// What befalls the packets of one direction. Nothing, at first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Faults {
    /// How many of a thousand are lost.
    pub(crate) loss: u32,
    /// How many of a thousand go twice.
    pub(crate) duplicate: u32,
    /// How many of a thousand are held back, so that others overtake them.
    pub(crate) reorder: u32,
    /// How many of a thousand have a byte changed.
    pub(crate) corrupt: u32,
    /// How long all are on their way.
    pub(crate) delay: Duration,
    /// How much longer some are: up to this, evenly.
    pub(crate) jitter: Duration,
    /// Longer ones, in bytes of UDP payload, are dropped; 0 for none.
    pub(crate) mtu: usize,
    /// Nothing passes.
    pub(crate) blackout: bool,
}

impl Faults {
    /// Sets what these words say and leaves the others as they are. `None`: one of them says
    /// nothing.
    pub(crate) fn with<'a>(mut self, words: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        for word in words {
            let (name, value) = word.split_once('=')?;
            match name {
                "loss" => self.loss = chance(value)?,
                "duplicate" => self.duplicate = chance(value)?,
                "reorder" => self.reorder = chance(value)?,
                "corrupt" => self.corrupt = chance(value)?,
                "delay" => self.delay = milliseconds(value)?,
                "jitter" => self.jitter = milliseconds(value)?,
                "mtu" => self.mtu = value.parse().ok()?,
                "blackout" => self.blackout = value.parse().ok()?,
                _ => return None,
            }
        }
        Some(self)
    }
}

fn chance(value: &str) -> Option<u32> {
    value.parse().ok().filter(|chance| *chance <= PER_MILLE)
}

fn milliseconds(value: &str) -> Option<Duration> {
    let milliseconds = value.parse().ok().filter(|time| *time <= LONGEST_DELAY_MS)?;
    Some(Duration::from_millis(milliseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_set_what_they_name_and_nothing_else() {
        let words =
            "loss=1 duplicate=2 reorder=3 corrupt=1000 delay=5 jitter=6 mtu=7 blackout=true";
        let all = Faults::default().with(words.split(' ')).unwrap();
        assert_eq!((all.loss, all.duplicate, all.reorder, all.corrupt), (1, 2, 3, 1_000));
        assert_eq!((all.delay.as_millis(), all.jitter.as_millis()), (5, 6));
        assert_eq!((all.mtu, all.blackout), (7, true));
        assert_eq!(all.clone().with([]), Some(all.clone()));
        assert_eq!(all.clone().with(["loss=9"]), Some(Faults { loss: 9, ..all }));
    }

    #[test]
    fn words_without_sense_are_refused() {
        for word in
            ["", "loss", "loss=", "loss=-1", "loss=1001", "delay=10001", "blackout=1", "x=1"]
        {
            assert_eq!(Faults::default().with([word]), None, "{word}");
        }
    }
}
