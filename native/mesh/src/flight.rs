//! Messages under way over one QUIC connection: from the queue to the peer's acknowledgement.

use bytes::Bytes;

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
    /// What is still to be handed to the stack.
    chunks: Chunks,
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
    pub(crate) load: Load,
    pub(crate) number: u64,
    pub(crate) cargo: Cargo,
    pub(crate) outcome: Result<(), Error>,
}

impl Landing {
    /// Whether the messages, kept for that, go over the next connection once more.
    pub(crate) fn is_to_be_repeated(&self) -> bool {
        let Cargo::Entries(entries) = &self.cargo else { return false };
        let may_return = entries.iter().all(|entry| entry.returns() < MOST_RETURNS);
        may_return && self.outcome.as_ref().is_err_and(Error::is_loss)
    }
}

/// What is held of messages under way.
#[derive(Debug)]
pub(crate) enum Cargo {
    /// Who is to be told.
    Receipts(Vec<Receipt>),
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
        let cargo = if keeps {
            Cargo::Entries(vec![Entry::Single(message)])
        } else {
            Cargo::Receipts(message.into_receipt().into_iter().collect())
        };
        Self { kind: Kind::Single, load, number, cargo, chunks, stream }
    }

    /// Messages to one of ours. `keeps`: as above.
    pub(crate) fn joined(
        kind: Kind,
        number: u64,
        entries: Vec<Entry>,
        keeps: bool,
        stream: Outgoing,
    ) -> Self {
        let mut load = Load::default();
        let mut encoder = Encoder::new(kind == Kind::Large);
        let mut receipts = Vec::new();
        let mut kept = Vec::new();
        for entry in entries {
            load += entry.load();
            match entry {
                Entry::Batch(mut batch) => {
                    encoder.add_batch(batch.seal());
                    if keeps {
                        kept.push(Entry::Batch(batch));
                    }
                }
                Entry::Single(message) => {
                    encoder.add(message.data.clone());
                    if keeps {
                        kept.push(Entry::Single(message));
                    } else {
                        receipts.extend(message.into_receipt());
                    }
                }
            }
        }
        let cargo = if keeps { Cargo::Entries(kept) } else { Cargo::Receipts(receipts) };
        Self { kind, load, number, cargo, chunks: Chunks::Many(encoder.finish()), stream }
    }

    /// Takes the messages all the way: written, finished, and acknowledged whole.
    pub(crate) async fn fly(mut self) -> Landing {
        let lost = self.stream.lost();
        let outcome = async {
            tokio::select! {
                biased;
                written = self.stream.write_chunks(self.chunks.as_mut()) => written?,
                // Of what the peer has stopped nothing more is sent, so nothing is acknowledged; with
                // the send window full of it, quinn would never tell whoever writes.
                error = lost => return Err(error),
            }
            self.stream.finish();
            self.stream.acknowledged().await
        };
        let outcome = outcome.await;
        self.land(outcome)
    }

    /// Resolves when the peer has acknowledged all of what is written, or never will.
    pub(crate) fn acknowledged(&self) -> impl Future<Output = Result<(), Error>> + Send + use<> {
        self.stream.acknowledged()
    }

    /// Writes and finishes, if that can be done at once; it is still to be acknowledged.
    pub(crate) fn take_off(&mut self) -> bool {
        let is_away = self.stream.try_write(self.chunks.as_mut());
        if is_away {
            self.stream.finish();
        }
        is_away
    }

    pub(crate) fn land(self, outcome: Result<(), Error>) -> Landing {
        let Self { kind, load, number, cargo, .. } = self;
        Landing { kind, load, number, cargo, outcome }
    }
}

impl Cargo {
    /// Tells everyone who waits that his message has arrived.
    pub(crate) fn delivered(self) {
        for receipt in self.receipts() {
            receipt.tell(Ok(()));
        }
    }

    /// Tells everyone who waits that his message may not have arrived.
    pub(crate) fn unconfirmed(self, why: &Error) {
        for receipt in self.receipts() {
            receipt.tell(Err(Undelivered::Unconfirmed(why.clone())));
        }
    }

    fn receipts(self) -> Vec<Receipt> {
        match self {
            Self::Receipts(receipts) => receipts,
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
