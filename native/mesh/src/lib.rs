//! A bounded pool of QUIC connections to the nodes of a mesh, kept by node id.
//!
//! It knows nothing of Erlang: the NIF crate beside it turns terms into calls of [`Mesh`] and
//! outcomes into messages. The way of a message through it:
//!
//! 1. [`Mesh::send`] finds the peer's slot in the pool (`pool`), or opens one, whose task begins
//!    to dial (`dial`, `address`, `endpoint`, `tls`).
//! 2. The message waits in the slot's bounded queue (`outbox`), before and after the dial alike.
//! 3. The slot's task (`tenancy`, `pooled`) opens a stream for it, or joins it with others on one
//!    (`joined`), writes it, and counts it when the peer has acknowledged it.
//!
//! [`Listener`], [`Client`] and [`Connection`] are the other half: connections and streams of a
//! caller's own. The protocol is QUIC v1 (RFC 9000) with TLS 1.3 (RFC 9001), application protocol
//! `macula-mesh/1` or `macula`.

mod address;
mod backoff;
mod batch;
mod broken;
mod budget;
mod byte_stream;
mod census;
pub mod clock;
mod config;
mod connection;
mod credit;
mod delivery;
mod dial;
mod endpoint;
mod entry;
mod error;
mod farewell;
#[cfg(test)]
#[path = "../tests/common/field.rs"]
mod field;
mod first_packet;
mod flight;
mod frames;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod handshake;
#[cfg(test)]
#[path = "../examples/attacker/initial.rs"]
mod initial;
mod joined;
mod keep_alive;
mod line;
mod listener;
mod liveness;
mod lock;
mod mesh;
mod message;
mod outbox;
mod packing;
mod parts;
mod pool;
mod pooled;
mod pulse;
mod queue;
mod quic_frames;
mod refusals;
mod rendezvous;
mod reset;
mod resident;
mod retirements;
mod scope;
mod seated;
mod sender;
mod settings;
mod slots;
#[cfg(target_os = "linux")]
mod socket;
mod spare;
mod stats;
mod stream;
mod tasks;
mod tenancy;
mod tls;
mod trail;
mod turns;
mod unfinished;
mod unshared;
mod verify;
mod whereabouts;

pub use address::Address;
pub use byte_stream::{ByteStream, Reader, Received, SendEnd, StreamReader};
pub use config::{BadOption, Bounds, Config, Load, Redelivery};
pub use connection::{Client, Connection, Facts, Traffic};
pub use delivery::Delivery;
pub use entry::Payload;
pub use error::Error;
pub use frames::Packet;
pub use joined::{MESH_ALPN, MessageReader};
pub use listener::{Listener, ListenerEvent, ListenerStats, Place};
pub use mesh::{Event, Mesh, NodeId, Target};
pub use message::Undelivered;
pub use outbox::Sent;
pub use pooled::{Figures, PooledConnection};
pub use rendezvous::{Refusal, Request, RequestId, Waiter};
pub use resident::{Handles, Info, Plain};
pub use settings::{Settings, Transport};
pub use stats::Snapshot;
pub use stream::Stream;
pub use tls::{
    ALPN, BadCertificate, CertificateFault, Identity, load_roots, shared_roots, system_roots,
};
pub use verify::{Fault, KeyRule, PeerIdentity, Verification};
