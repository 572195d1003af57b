//! Messages under way over one QUIC connection: from the queue to the peer's acknowledgement.

use crate::Error;
use crate::byte_stream::Outgoing;
use crate::config::Load;
use crate::joined::Encoder;
use crate::message::{Message, Receipt, Undelivered};

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

/// Messages and the stream for them.
pub(crate) struct Flight {
    pub(crate) kind: Kind,
    pub(crate) messages: Vec<Message>,
    pub(crate) stream: Outgoing,
    /// Its place in the order of departure.
    pub(crate) number: u64,
    /// Whether the messages are kept until it lands, to be sent again if it does not.
    pub(crate) keeps: bool,
}

/// How messages fared.
pub(crate) struct Landing {
    pub(crate) kind: Kind,
    pub(crate) load: Load,
    pub(crate) number: u64,
    pub(crate) cargo: Cargo,
    pub(crate) outcome: Result<(), Error>,
}

/// What is held of messages under way.
#[derive(Debug)]
pub(crate) enum Cargo {
    /// Who is to be told.
    Receipts(Vec<Receipt>),
    /// The messages themselves.
    Messages(Vec<Message>),
}

impl Aloft {
    pub(crate) fn of(&mut self, kind: Kind) -> &mut usize {
        match kind {
            Kind::Single => &mut self.singles,
            Kind::Piece => &mut self.pieces,
            Kind::Large => &mut self.large,
        }
    }
}

impl Flight {
    /// Takes the messages all the way: written, finished, and acknowledged whole.
    pub(crate) async fn fly(self) -> Landing {
        let Self { kind, messages, mut stream, number, keeps } = self;
        let load =
            Load { messages: messages.len(), bytes: messages.iter().map(Message::len).sum() };
        let mut encoder = Encoder::new(kind);
        let mut receipts = Vec::new();
        let mut kept = Vec::new();
        for message in messages {
            let (data, receipt) = message.into_parts();
            if keeps {
                encoder.add(data.clone());
                kept.push(Message::from_parts(data, receipt));
            } else {
                encoder.add(data);
                receipts.extend(receipt);
            }
        }
        let cargo = if keeps { Cargo::Messages(kept) } else { Cargo::Receipts(receipts) };
        let outcome = async {
            stream.write_chunks(encoder.finish()).await?;
            stream.finish().await
        };
        Landing { kind, load, number, cargo, outcome: outcome.await }
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
            Self::Messages(messages) => {
                messages.into_iter().filter_map(|message| message.into_parts().1).collect()
            }
        }
    }
}
