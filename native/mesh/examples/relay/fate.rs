//! What becomes of a packet. Pure: the fate of the n-th packet of a direction follows from the
//! seed, the faults that are set and the packet's length, so a run can be repeated.

use std::time::Duration;

use crate::faults::{Faults, PER_MILLE};

/// How far a reordered packet is held back: long enough for others to overtake it, short against
/// any timeout.
const HOLD_BACK: Duration = Duration::from_millis(10);

/// Where packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From a client to the server.
    Up,
    /// From the server to a client.
    Down,
}

/// What becomes of one packet.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The direction is shut.
    BlackedOut,
    /// It is longer than the direction lets through.
    TooLong,
    /// Lost by chance.
    Lost,
    /// It goes on.
    Forward(Passage),
}

/// How a packet goes on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Passage {
    /// When, from now.
    pub(crate) delay: Duration,
    /// When a copy of it goes, if one does.
    pub(crate) copy: Option<Duration>,
    /// Which byte is changed, and by which bits.
    pub(crate) corruption: Option<(usize, u8)>,
    /// Others may overtake it on purpose.
    pub(crate) is_held_back: bool,
}

/// The fate of the packet with this number, of `length` bytes.
pub(crate) fn of(
    seed: u64,
    direction: Direction,
    number: u64,
    length: usize,
    faults: &Faults,
) -> Fate {
    if faults.blackout {
        return Fate::BlackedOut;
    }
    if faults.mtu != 0 && length > faults.mtu {
        return Fate::TooLong;
    }
    let mut dice = Dice::new(seed, direction, number);
    // All are thrown, whatever the first ones say: a fault that is switched on later changes
    // nothing about the others.
    let is_lost = dice.hits(faults.loss);
    let is_duplicated = dice.hits(faults.duplicate);
    let is_held_back = dice.hits(faults.reorder);
    let is_corrupted = dice.hits(faults.corrupt);
    let (place, bits) = (dice.below(length), dice.bits());
    let delays = [dice.delay(faults), dice.delay(faults)];
    if is_lost {
        return Fate::Lost;
    }
    let [delay, copy] = delays;
    Fate::Forward(Passage {
        delay: if is_held_back { delay + HOLD_BACK } else { delay },
        copy: is_duplicated.then_some(copy),
        corruption: (is_corrupted && length > 0).then_some((place, bits)),
        is_held_back,
    })
}

/// Random numbers: `SplitMix64` (Steele, Lea, Flood: Fast splittable pseudorandom number
/// generators, 2014), begun anew for each packet.
struct Dice(u64);

/// The increment of `SplitMix64`.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

impl Dice {
    fn new(seed: u64, direction: Direction, number: u64) -> Self {
        let side = match direction {
            Direction::Up => 0,
            Direction::Down => 1,
        };
        let mut dice = Self(seed);
        let start = dice.next() ^ number.wrapping_mul(GAMMA) ^ side;
        Self(start)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GAMMA);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn hits(&mut self, per_mille: u32) -> bool {
        self.next() % u64::from(PER_MILLE) < u64::from(per_mille)
    }

    /// Less than `end`; 0 when that is 0.
    fn below(&mut self, end: usize) -> usize {
        let end = u64::try_from(end).unwrap_or(u64::MAX);
        usize::try_from(self.next() % end.max(1)).unwrap_or_default()
    }

    /// Bits to change in a byte: at least one.
    fn bits(&mut self) -> u8 {
        let [low, ..] = self.next().to_le_bytes();
        low.max(1)
    }

    fn delay(&mut self, faults: &Faults) -> Duration {
        let jitter = u64::try_from(faults.jitter.as_micros()).unwrap_or(u64::MAX);
        faults.delay + Duration::from_micros(self.next() % jitter.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKETS: u64 = 100_000;

    fn fates(seed: u64, direction: Direction, faults: &Faults) -> Vec<Fate> {
        (0..PACKETS).map(|number| of(seed, direction, number, 1_200, faults)).collect()
    }

    fn share(fates: &[Fate], test: impl Fn(&Fate) -> bool) -> f64 {
        let hits = u32::try_from(fates.iter().filter(|fate| test(fate)).count()).unwrap();
        f64::from(hits) / f64::from(u32::try_from(fates.len()).unwrap())
    }

    fn passage(fate: &Fate) -> Option<&Passage> {
        match fate {
            Fate::Forward(passage) => Some(passage),
            _ => None,
        }
    }

    #[test]
    fn the_seed_repeats_everything_and_another_one_does_not() {
        let faults = Faults { loss: 300, duplicate: 300, corrupt: 300, ..Faults::default() };
        let first = fates(7, Direction::Up, &faults);
        assert_eq!(first, fates(7, Direction::Up, &faults));
        assert_ne!(first, fates(8, Direction::Up, &faults));
        assert_ne!(first, fates(7, Direction::Down, &faults));
    }

    #[test]
    fn each_fault_strikes_as_often_as_it_is_set_to_and_none_alone() {
        let faults =
            Faults { loss: 100, duplicate: 50, reorder: 20, corrupt: 10, ..Faults::default() };
        let fates = fates(1, Direction::Down, &faults);
        let near = |share: f64, expected: f64| assert!((share - expected).abs() < expected / 4.0);
        near(share(&fates, |fate| *fate == Fate::Lost), 0.1);
        let passed = |test: fn(&Passage) -> bool| {
            share(&fates, |fate| passage(fate).is_some_and(test)) / 0.9
        };
        near(passed(|passage| passage.copy.is_some()), 0.05);
        near(passed(|passage| passage.is_held_back), 0.02);
        near(passed(|passage| passage.corruption.is_some()), 0.01);
        near(passed(|passage| passage.copy.is_some() && passage.is_held_back), 0.001);
    }

    #[test]
    fn without_faults_everything_passes_at_once_and_unchanged() {
        let plain =
            Passage { delay: Duration::ZERO, copy: None, corruption: None, is_held_back: false };
        let fates = fates(3, Direction::Up, &Faults::default());
        assert!(fates.iter().all(|fate| passage(fate) == Some(&plain)));
    }

    #[test]
    fn delays_are_from_the_delay_to_the_jitter_beyond_it() {
        let (delay, jitter) = (Duration::from_millis(20), Duration::from_millis(10));
        let faults = Faults { delay, jitter, duplicate: 500, ..Faults::default() };
        let fates = fates(4, Direction::Up, &faults);
        let all: Vec<_> = fates.iter().filter_map(passage).collect();
        assert!(all.iter().all(|passage| (delay..delay + jitter).contains(&passage.delay)));
        assert!(all.iter().filter_map(|passage| passage.copy).all(|copy| copy < delay + jitter));
        let early =
            share(&fates, |fate| passage(fate).is_some_and(|p| p.delay < delay + jitter / 2));
        assert!((early - 0.5).abs() < 0.05);
    }

    #[test]
    fn a_corruption_changes_at_least_one_bit_of_a_byte_that_is_there() {
        let faults = Faults { corrupt: PER_MILLE, ..Faults::default() };
        for number in 0..PACKETS {
            let Fate::Forward(Passage { corruption: Some((place, bits)), .. }) =
                of(5, Direction::Up, number, 3, &faults)
            else {
                panic!("not corrupted");
            };
            assert!(place < 3 && bits != 0);
        }
    }

    #[test]
    fn blackout_and_mtu_are_certain() {
        let shut = Faults { blackout: true, ..Faults::default() };
        assert_eq!(of(6, Direction::Up, 0, 0, &shut), Fate::BlackedOut);
        let narrow = Faults { mtu: 1_252, ..Faults::default() };
        assert_eq!(of(6, Direction::Up, 0, 1_253, &narrow), Fate::TooLong);
        assert!(passage(&of(6, Direction::Up, 0, 1_252, &narrow)).is_some());
    }
}
