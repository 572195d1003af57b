//! Messages under way over one QUIC connection: from the queue to the peer's acknowledgement.

use std::slice;

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;

use crate::Error;
use crate::byte_stream::Outgoing;
use crate::config::Load;
use crate::entry::Entry;
use crate::joined::Encoder;
use crate::message::{Message, Receipt, Undelivered};

/// How often messages are sent again at most: what a peer refuses by closing the connection would
/// end each that follows.
const MOST_RETURNS: u8 = 4;

/// The kinds of flights, each with its own bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One message to a node of the field.
    Single,
    /// Messages to one of ours, together.
    Piece,
    /// A large message to one of ours.
    Large,
}

/// How many flights of each kind are under way.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Aloft {
    pub(crate) singles: usize,
    pub(crate) pieces: usize,
    pub(crate) large: usize,
}

/// Messages, written for the wire, and the stream for them.
pub(crate) struct Flight {
    pub(crate) kind: Kind,
    load: Load,
    /// Its place in the order of departure.
    number: u64,
    cargo: Cargo,
    /// Whether the messages are kept until they have arrived, to be sent again if they do not.
    keeps: bool,
    /// What is still to be handed to the stack.
    chunks: Chunks,
    /// Given back once the next flight may be written.
    pen: Option<OwnedSemaphorePermit>,
    stream: Outgoing,
}

/// What is written: one message as it is, without a vector of its own, or what has been joined.
enum Chunks {
    One([Bytes; 1]),
    Many(Vec<Bytes>),
}

impl Chunks {
    fn as_mut(&mut self) -> &mut [Bytes] {
        match self {
            Self::One(chunk) => chunk,
            Self::Many(chunks) => chunks,
        }
    }
}

/// How messages fared.
pub(crate) struct Landing {
    pub(crate) kind: Kind,
    /// What of it is settled.
    pub(crate) load: Load,
    pub(crate) number: u64,
    cargo: Cargo,
    keeps: bool,
    /// Bytes that the stack has not taken, of which nothing was sent.
    unwritten: usize,
    pub(crate) outcome: Result<(), Error>,
}

/// What goes over the next connection when one is lost.
#[derive(Default)]
pub(crate) struct Survivors {
    pub(crate) entries: Vec<Entry>,
    /// Messages among them that may have arrived.
    pub(crate) repeated: usize,
}

/// What is held of messages under way.
#[derive(Debug)]
enum Cargo {
    /// Who is to be told.
    Receipts(Vec<Receipt>),
    /// The message itself, without a vector of its own.
    Message(Message),
    /// The messages themselves.
    Entries(Vec<Entry>),
}

impl Aloft {
    pub(crate) fn is_none(self) -> bool {
        self.singles + self.pieces + self.large == 0
    }

    pub(crate) fn of(&mut self, kind: Kind) -> &mut usize {
        match kind {
            Kind::Single => &mut self.singles,
            Kind::Piece => &mut self.pieces,
            Kind::Large => &mut self.large,
        }
    }
}

impl Flight {
    /// One message to a node of the field. `keeps`: it is kept until it lands, to be sent again if
    /// it does not.
    pub(crate) fn single(number: u64, message: Message, keeps: bool, stream: Outgoing) -> Self {
        let load = message.load();
        let chunks = Chunks::One([message.data.clone()]);
        let cargo = Cargo::Message(message);
        Self { kind: Kind::Single, load, number, cargo, keeps, chunks, pen: None, stream }
    }

    /// Messages to one of ours. `keeps`: as above. `pen`: what only one flight is written with.
    pub(crate) fn joined(
        kind: Kind,
        number: u64,
        mut entries: Vec<Entry>,
        keeps: bool,
        stream: Outgoing,
        pen: OwnedSemaphorePermit,
    ) -> Self {
        let load = total(&entries);
        let chunks = Chunks::Many(encoded(kind, &mut entries));
        let cargo = Cargo::Entries(entries);
        Self { kind, load, number, cargo, keeps, chunks, pen: Some(pen), stream }
    }

    /// Takes the messages all the way: written, finished, and acknowledged whole.
    pub(crate) async fn fly(mut self) -> Landing {
        let lost = self.stream.lost();
        let outcome = async {
            tokio::select! {
                biased;
                written = self.write() => written?,
                // Of what the peer has stopped nothing more is sent, so nothing is acknowledged; with
                // the send window full of it, quinn would never tell whoever writes.
                error = lost => return Err(error),
            }
            self.depart();
            self.stream.acknowledged().await
        };
        let outcome = outcome.await;
        self.land(outcome)
    }

    /// Hands all to the stack. The pen goes with the first chunk of a large message, which is its kind
    /// and its length.
    async fn write(&mut self) -> Result<(), Error> {
        let chunks = self.chunks.as_mut();
        match chunks.split_first_mut() {
            Some((first, others)) if self.kind == Kind::Large => {
                self.stream.write_chunks(slice::from_mut(first)).await?;
                self.pen = None;
                self.stream.write_chunks(others).await
            }
            _ => self.stream.write_chunks(chunks).await,
        }
    }

    /// Resolves when the peer has acknowledged all of what is written, or never will.
    pub(crate) fn acknowledged(&self) -> impl Future<Output = Result<(), Error>> + Send + use<> {
        self.stream.acknowledged()
    }

    /// Writes and finishes, if that can be done at once; it is still to be acknowledged.
    pub(crate) fn take_off(&mut self) -> bool {
        let is_away = self.stream.try_write(self.chunks.as_mut());
        if is_away {
            self.depart();
        }
        is_away
    }

    /// All is written.
    fn depart(&mut self) {
        self.pen = None;
        self.stream.finish();
        if !self.keeps {
            self.cargo = Cargo::Receipts(self.cargo.take().into_receipts());
        }
    }

    pub(crate) fn land(self, outcome: Result<(), Error>) -> Landing {
        let Self { kind, load, number, cargo, keeps, mut chunks, .. } = self;
        let unwritten = chunks.as_mut().iter().map(Bytes::len).sum();
        Landing { kind, load, number, cargo, keeps, unwritten, outcome }
    }
}

impl Landing {
    /// We have closed its connection, and this is why; what the peer has said before still counts.
    pub(crate) fn ascribe_to(&mut self, why: &Error) {
        if self.is_cut_off() {
            self.outcome = Err(why.clone());
        }
    }

    /// Whether its connection has ended under it.
    fn is_cut_off(&self) -> bool {
        !matches!(self.outcome, Ok(()) | Err(Error::Stopped(_)))
    }

    /// Takes out what the end of its connection has left: that of which nothing was sent, and the rest
    /// if the connection was lost and it is to be sent again.
    pub(crate) fn survivors(&mut self) -> Survivors {
        if !self.is_cut_off() {
            return Survivors::default();
        }
        let is_lost = self.outcome.as_ref().is_err_and(Error::is_loss);
        let entries = match self.cargo.take() {
            Cargo::Entries(entries) => entries,
            Cargo::Message(message) => vec![Entry::Single(message)],
            receipts @ Cargo::Receipts(_) => {
                self.cargo = receipts;
                return Survivors::default();
            }
        };
        let may_return =
            is_lost && self.keeps && entries.iter().all(|entry| entry.returns() < MOST_RETURNS);
        let (mut sent, mut unsent) = part(self.kind, entries, self.unwritten);
        if may_return {
            let repeated = total(&sent).messages;
            sent.iter_mut().for_each(Entry::turn_back);
            // Their places are kept: who has given up has his sent all the same.
            unsent.iter_mut().filter(|entry| !entry.stay_behind()).for_each(Entry::turn_back);
            sent.append(&mut unsent);
            self.load = Load::default();
            return Survivors { entries: sent, repeated };
        }
        let (unsent, given_up): (Vec<_>, Vec<_>) = unsent.into_iter().partition(Entry::stay_behind);
        sent.extend(given_up);
        self.load = total(&sent);
        self.cargo = Cargo::Entries(sent);
        Survivors { entries: unsent, repeated: 0 }
    }

    /// Tells everyone who waits what became of his message.
    pub(crate) fn tell(self) {
        let outcome = self.outcome.map_err(Undelivered::Unconfirmed);
        for receipt in self.cargo.into_receipts() {
            receipt.tell(outcome.clone());
        }
    }
}

impl Cargo {
    fn take(&mut self) -> Self {
        std::mem::replace(self, Self::Receipts(Vec::new()))
    }

    fn into_receipts(self) -> Vec<Receipt> {
        match self {
            Self::Receipts(receipts) => receipts,
            Self::Message(message) => message.into_receipt().into_iter().collect(),
            Self::Entries(entries) => entries.into_iter().filter_map(receipt).collect(),
        }
    }
}

fn receipt(entry: Entry) -> Option<Receipt> {
    match entry {
        Entry::Batch(_) => None,
        Entry::Single(message) => message.into_receipt(),
    }
}

fn total(entries: &[Entry]) -> Load {
    entries.iter().fold(Load::default(), |load, entry| load + entry.load())
}

/// Messages to one of ours as they travel.
fn encoded(kind: Kind, entries: &mut [Entry]) -> Vec<Bytes> {
    let mut encoder = Encoder::new(kind == Kind::Large);
    for entry in entries {
        match entry {
            Entry::Batch(batch) => encoder.add_batch(batch.seal()),
            Entry::Single(message) => encoder.add(message.data.clone()),
        }
    }
    encoder.finish()
}

/// Parts messages of which something may have been sent from those of which nothing was: they are
/// wholly within the last `unwritten` bytes.
fn part(kind: Kind, entries: Vec<Entry>, unwritten: usize) -> (Vec<Entry>, Vec<Entry>) {
    let written = |entry: &Entry| match kind {
        Kind::Single => entry.load().bytes,
        Kind::Piece | Kind::Large => entry.joined_bytes(),
    };
    let mut left = unwritten;
    let (mut sent, mut unsent) = (Vec::new(), Vec::new());
    for mut entry in entries.into_iter().rev() {
        let bytes = written(&entry);
        if bytes > left
            && let Entry::Batch(batch) = &mut entry
        {
            unsent.extend(batch.split_off(left).map(Entry::Batch));
        }
        if bytes > left || left == 0 {
            sent.push(entry)
        } else {
            unsent.push(entry)
        }
        left = left.saturating_sub(bytes);
    }
    sent.reverse();
    unsent.reverse();
    (sent, unsent)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::batch::{Batch, joined_bytes};

    /// Messages, each filled with its number, alone or together with those before them.
    fn entries(messages: &[(usize, bool)]) -> Vec<Entry> {
        let mut entries = Vec::new();
        for ((size, joins), fill) in messages.iter().zip(0_u8..) {
            let data = vec![fill; *size];
            let is_added = match entries.last_mut() {
                Some(Entry::Batch(batch)) if *joins => batch.add(&data),
                _ => false,
            };
            if is_added {
                continue;
            }
            entries.push(match joins {
                true => Entry::Batch(Batch::of(&data, false)),
                false => Entry::Single(Bytes::from(data).into()),
            });
        }
        entries
    }

    fn messages(entries: Vec<Entry>) -> Vec<Bytes> {
        let mut messages = Vec::new();
        for entry in entries {
            match entry {
                Entry::Batch(mut batch) => {
                    messages.extend(std::iter::from_fn(|| batch.pop()).map(|message| message.data));
                }
                Entry::Single(message) => messages.push(message.data),
            }
        }
        messages
    }

    proptest! {
        #[test]
        fn messages_of_which_nothing_was_sent_are_told_from_those_before_them(
            sizes in prop::collection::vec((0..400_usize, any::<bool>()), 1..60),
            place in any::<prop::sample::Index>(),
        ) {
            let mut all = entries(&sizes);
            let written: usize = encoded(Kind::Piece, &mut all).iter().map(Bytes::len).sum();
            let unwritten = place.index(written + 1);
            // What is behind the first byte of the stream and those of the messages before it.
            let mut begin = 1;
            let mut sent_count = 0;
            for (size, _) in &sizes {
                if begin < written - unwritten || unwritten == 0 {
                    sent_count += 1;
                }
                begin += joined_bytes(*size);
            }
            prop_assert_eq!(begin, written);
            let load = total(&all);
            let (sent, unsent) = part(Kind::Piece, all, unwritten);
            prop_assert_eq!(load, total(&sent) + total(&unsent));
            let (sent, unsent) = (messages(sent), messages(unsent));
            prop_assert_eq!(sent.len(), sent_count);
            let whole: Vec<_> = sent.into_iter().chain(unsent).collect();
            prop_assert_eq!(whole, messages(entries(&sizes)));
        }
    }

    /// Three messages together, of which the stack has taken the first and half of the second.
    fn landing(keeps: bool, returns: u8, outcome: Error) -> Landing {
        let mut all = entries(&[(10, true), (10, true), (10, true)]);
        for _ in 0..returns {
            all.iter_mut().for_each(Entry::turn_back);
        }
        let load = Load { messages: 3, bytes: 30 };
        let (cargo, unwritten) = (Cargo::Entries(all), joined_bytes(10) + 5);
        let (kind, outcome) = (Kind::Piece, Err(outcome));
        Landing { kind, load, number: 1, cargo, keeps, unwritten, outcome }
    }

    /// How many messages survive, and how often they have come back; how many of them may have
    /// arrived; how many are settled.
    fn survivors(mut landing: Landing) -> (Vec<(usize, u8)>, usize, usize) {
        let Survivors { entries, repeated } = landing.survivors();
        let settled = landing.load.messages;
        landing.tell();
        let survivors = entries.iter().map(|entry| (entry.load().messages, entry.returns()));
        (survivors.collect(), repeated, settled)
    }

    #[test]
    fn what_was_not_sent_survives_the_connection_and_the_rest_if_it_is_kept() {
        let of = |keeps, returns, error| survivors(landing(keeps, returns, error));
        assert_eq!(of(false, 0, Error::Reset), (vec![(1, 0)], 0, 2));
        assert_eq!(of(false, 0, Error::Dead), (vec![(1, 0)], 0, 2));
        assert_eq!(of(true, 0, Error::Reset), (vec![(2, 1), (1, 0)], 2, 0));
        // What came back so often before is not sent again, but what was not sent is no repetition.
        assert_eq!(of(true, MOST_RETURNS, Error::Reset), (vec![(1, MOST_RETURNS)], 0, 2));
        // The peer does not want them.
        assert_eq!(of(true, 0, Error::Stopped(1)), (vec![], 0, 3));
        // We have ended the connection: nothing is sent again, but what was not sent is known.
        assert_eq!(of(true, 0, Error::Evicted), (vec![(1, 0)], 0, 2));
    }

    #[test]
    fn what_the_peer_has_said_of_a_message_counts_more_than_its_death() {
        let ended = |outcome: Result<(), Error>| {
            let mut landing = landing(true, 0, Error::Cancelled);
            landing.outcome = outcome;
            landing.ascribe_to(&Error::Dead);
            landing.outcome.clone()
        };
        assert_eq!(ended(Ok(())), Ok(()));
        assert_eq!(ended(Err(Error::Stopped(1))), Err(Error::Stopped(1)));
        assert_eq!(ended(Err(Error::Cancelled)), Err(Error::Dead));
    }

    #[test]
    fn of_what_was_not_sent_survives_what_somebody_counts_on() {
        let (waited, _confirmation) = Message::confirmed(Bytes::from_static(b"waited for"));
        let (left, _) = Message::confirmed(Bytes::from_static(b"left alone"));
        let mut all = [Entry::Single(waited), Entry::Single(left)];
        assert!(all.iter_mut().all(|entry| entry.set_off()));
        let unwritten = 2 * joined_bytes(10) + 1;
        let mut landing = landing(false, 0, Error::Reset);
        landing = Landing { cargo: Cargo::Entries(all.into()), unwritten, ..landing };
        assert_eq!(survivors(landing), (vec![(1, 0)], 0, 1));
    }

    #[test]
    fn what_is_sent_again_keeps_its_order_though_some_have_given_up() {
        let (waited, _confirmation) = Message::confirmed(Bytes::from_static(b"waited for"));
        let (left, _) = Message::confirmed(Bytes::from_static(b"left alone"));
        let sent = Message::from(Bytes::from_static(b"begun, too"));
        let all = [sent, waited, left].map(Entry::Single);
        assert!(all.iter().all(Entry::set_off));
        let unwritten = 2 * joined_bytes(10) + 1;
        let landing = landing(true, 0, Error::Reset);
        let mut landing = Landing { cargo: Cargo::Entries(all.into()), unwritten, ..landing };
        let Survivors { entries, repeated } = landing.survivors();
        // Of one message only, something was sent.
        assert_eq!((repeated, landing.load), (1, Load::default()));
        assert_eq!(entries.iter().map(Entry::returns).collect::<Vec<_>>(), [1, 0, 1]);
        assert_eq!(messages(entries), ["begun, too", "waited for", "left alone"]);
    }

    #[test]
    fn a_message_of_its_own_was_not_sent_if_the_stack_has_taken_nothing_of_it() {
        for (size, unwritten, is_sent) in [(5, 5, false), (5, 4, true), (5, 0, true), (0, 0, true)]
        {
            let (sent, unsent) = part(Kind::Single, entries(&[(size, false)]), unwritten);
            assert_eq!((sent.len(), unsent.len()), if is_sent { (1, 0) } else { (0, 1) });
        }
    }
}
