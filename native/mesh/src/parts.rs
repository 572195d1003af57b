//! Bytes of one stream that have arrived and were not delivered yet. A part keeps the memory alive
//! in which it has come, that of a packet, of which a peer can fill the rest with padding. So what
//! is small is copied. Pure data.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// A part below this size is copied to those before it: a peer can send a byte in each packet.
const CRUMB_BYTES: usize = 512;

/// Parts for which there is room though none is there. A stream that has brought a large frame in
/// small packets would hold more for as long as it is open, and no bound counts that.
const RESTING_PARTS: usize = 64;

/// Bytes in their order.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    parts: VecDeque<Bytes>,
    /// What follows the parts.
    crumbs: BytesMut,
    held: usize,
}

impl Parts {
    /// Adds what has arrived.
    pub(crate) fn push(&mut self, data: Bytes) {
        if data.is_empty() {
            return;
        }
        let is_crumb = self.held > 0 && data.len() < CRUMB_BYTES;
        self.held += data.len();
        if is_crumb {
            self.crumbs.extend_from_slice(&data);
            return;
        }
        self.sweep_up();
        self.parts.push_back(data);
    }

    /// How many there are.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// All of them, one by one.
    pub(crate) fn bytes(&self) -> impl Iterator<Item = u8> {
        self.parts.iter().flat_map(|part| part.iter()).chain(&self.crumbs).copied()
    }

    /// Takes all of them out.
    pub(crate) fn take_all(&mut self) -> Vec<Bytes> {
        self.sweep_up();
        self.held = 0;
        // With the room that they needed.
        std::mem::take(&mut self.parts).into()
    }

    /// Takes so many of the first out, or all if there are fewer.
    pub(crate) fn take(&mut self, length: usize) -> Vec<Bytes> {
        self.sweep_up();
        let mut taken = Vec::new();
        let mut missing = length.min(self.held);
        self.held -= missing;
        while missing > 0 {
            let Some(front) = self.parts.front_mut() else { break };
            let part = front.split_to(missing.min(front.len()));
            missing -= part.len();
            taken.push(part);
            if front.is_empty() {
                self.parts.pop_front();
            }
        }
        if self.parts.is_empty() && self.parts.capacity() > RESTING_PARTS {
            self.parts = VecDeque::new();
        }
        taken
    }

    /// Makes a part of the crumbs.
    fn sweep_up(&mut self) {
        if !self.crumbs.is_empty() {
            // All of their memory goes with them, as much as they have ever needed.
            self.parts.push_back(std::mem::take(&mut self.crumbs).freeze());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    /// Bytes whose memory is known to be alive as long as there are two of the counter.
    fn arrived(data: &[u8], counter: &Arc<()>) -> Bytes {
        struct Owner(Vec<u8>, #[allow(dead_code, reason = "counted by being there")] Arc<()>);
        impl AsRef<[u8]> for Owner {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }
        Bytes::from_owner(Owner(data.to_vec(), counter.clone()))
    }

    proptest! {
        #[test]
        fn bytes_come_out_as_they_went_in_and_keep_little_of_what_they_came_in(
            sizes in prop::collection::vec(prop_oneof![0..9_usize, 500..1_500_usize], 1..90),
            takes in prop::collection::vec(0..5_000_usize, 1..90),
        ) {
            let counter = Arc::new(());
            let mut parts = Parts::default();
            let (mut sent, mut received) = (Vec::new(), Vec::new());
            for ((size, fill), take) in sizes.iter().zip(0_u8..).zip(takes.iter().cycle()) {
                let data = vec![fill; *size];
                parts.push(arrived(&data, &counter));
                sent.extend(data);
                if take % 3 == 0 {
                    received.extend(parts.take(*take).concat());
                }
                prop_assert_eq!(parts.held(), sent.len() - received.len());
                // Besides one that is there in part, and one that came first.
                let kept = Arc::strong_count(&counter) - 1;
                prop_assert!(kept <= 2 + parts.held() / CRUMB_BYTES, "{kept} of {}", parts.held());
                prop_assert!(parts.bytes().eq(sent[received.len()..].iter().copied()));
            }
            received.extend(parts.take_all().concat());
            prop_assert_eq!(received, sent);
            prop_assert_eq!(Arc::strong_count(&counter), 1);
        }
    }

    #[test]
    fn what_has_gone_out_leaves_no_room_behind() {
        let mut parts = Parts::default();
        for _ in 0..10_000 {
            parts.push(Bytes::from_static(b"a crumb"));
        }
        assert_eq!(parts.take_all().concat(), b"a crumb".repeat(10_000));
        assert_eq!(parts.crumbs.capacity(), 0);
    }

    #[test]
    fn nor_do_many_parts_however_they_have_gone_out() {
        let takings: [fn(&mut Parts) -> Vec<Bytes>; 2] =
            [Parts::take_all, |parts| parts.take(usize::MAX)];
        for take in takings {
            let mut parts = Parts::default();
            for _ in 0..1_000 {
                parts.push(Bytes::from_static(&[0; CRUMB_BYTES]));
            }
            assert_eq!(take(&mut parts).len(), 1_000);
            assert!(parts.parts.capacity() <= RESTING_PARTS);
        }
    }
}
