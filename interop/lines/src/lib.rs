//! What all peers in Rust share: the command line, the lines on standard input and their answers,
//! the frames and the counters. It has never heard of QUIC: a stack is a [`Node`].

mod args;
mod command;
mod frame;
mod room;
mod tally;

pub use args::{Args, Mode};
pub use command::{Batch, Node, Outcome, run};
pub use frame::{Inbox, frame};
pub use room::Room;
pub use tally::{Coded, Counter, Tally};

/// The one application protocol.
pub const ALPN: &str = "macula";
/// Streams that the other end may have open at once, as nodes in the field grant, and of which one
/// of ours.
pub const STREAMS_AT_ONCE: usize = 100;
/// How long a connection may take to be made.
pub const CONNECT_TIME: std::time::Duration = std::time::Duration::from_secs(5);
/// How long a batch of streams may take.
pub const SEND_TIME: std::time::Duration = std::time::Duration::from_secs(120);
