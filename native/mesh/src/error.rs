//! What can go wrong, one variant per decision that a caller can take.

use std::io;

use quinn::{ConnectError, ConnectionError, VarInt};
use thiserror::Error as Describe;

use crate::verify::Fault;

/// Why a connection could not be made, why it ended, or why a message was not taken.
#[derive(Clone, Debug, PartialEq, Eq, Describe)]
pub enum Error {
    /// The address has none of the forms that a node holds.
    #[error("not an address")]
    BadAddress,
    /// The node id is none, or longer than any.
    #[error("not a node id")]
    BadNode,
    /// What was to be sent is no bytes.
    #[error("not a message")]
    BadMessage,
    /// The dial's deadline passed.
    #[error("the connect timeout passed")]
    ConnectTimeout,
    /// The host name has no address.
    #[error("the host name has no address")]
    NameNotFound,
    /// The host name cannot stand in a TLS server name indication (RFC 6066, section 3).
    #[error("the host name is not a valid server name")]
    InvalidServerName,
    /// The other side did not prove who it is.
    #[error("not verified: {0}")]
    Unverified(#[from] Fault),
    /// The peer refused the connection (CONNECTION_REFUSED, RFC 9000, section 20.1).
    #[error("the connection was refused")]
    Refused,
    /// The network says that nobody listens at the peer's port: told as a refusal, too.
    #[error("nobody listens there")]
    PortClosed,
    /// The TLS handshake failed with this alert (RFC 9001, section 4.8; RFC 8446, section 6).
    #[error("TLS alert {0}")]
    TlsAlert(u8),
    /// Peer and we have no QUIC version in common.
    #[error("no common QUIC version")]
    VersionMismatch,
    /// One side broke the protocol; the code is that of RFC 9000, section 20.1.
    #[error("transport error {0:#x}")]
    Transport(u64),
    /// The peer closed the connection with this application error code.
    #[error("closed by the peer with code {0}")]
    ClosedByPeer(u64),
    /// The peer no longer knows the connection (stateless reset, RFC 9000, section 10.3).
    #[error("reset by the peer")]
    Reset,
    /// Nothing came from the peer for the negotiated idle timeout.
    #[error("idle timeout")]
    IdleTimeout,
    /// The peer has acknowledged nothing for the time of the option `ack_timeout_ms`.
    #[error("the peer does not answer")]
    Dead,
    /// The peer returned no stream credit and could not be dialled anew.
    #[error("the peer gives no stream credit back")]
    NoCredit,
    /// The UDP socket could not be had, or failed.
    #[error("UDP socket: {0}")]
    Socket(io::ErrorKind),
    /// As many dials are waiting as the options allow.
    #[error("too many dials are pending")]
    TooManyDials,
    /// The node's last dial has failed, and it is too soon for another one.
    #[error("too soon after a failed dial")]
    BackingOff,
    /// The node was removed from the pool.
    #[error("removed from the pool")]
    Removed,
    /// The connection made place for another one.
    #[error("evicted from the pool")]
    Evicted,
    /// The pool is closed, or closing.
    #[error("the pool is closed")]
    PoolClosed,
    /// The stream was closed by its owner.
    #[error("the stream is closed")]
    StreamClosed,
    /// The peer does not want what this stream carries (STOP_SENDING, RFC 9000, section 19.5).
    #[error("the peer stopped the stream with code {0}")]
    Stopped(u64),
    /// As much is waiting for this peer as the options allow.
    #[error("the peer's queue is full")]
    QueueFull,
    /// As much is waiting for all peers together as the options allow.
    #[error("the pool's queues are full")]
    PoolQueueFull,
    /// The message is larger than a peer's queue may ever be.
    #[error("the message is too large")]
    MessageTooLarge,
    /// The message's deadline passed before anything of it was sent.
    #[error("the deadline for sending passed")]
    SendTimeout,
    /// The work was given up before it had an outcome.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// The error's name in statistics; variants that carry a code share one name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::BadAddress => "bad_address",
            Self::BadNode => "bad_node_id",
            Self::BadMessage => "bad_message",
            Self::ConnectTimeout => "timeout",
            Self::NameNotFound => "nxdomain",
            Self::InvalidServerName => "invalid_server_name",
            Self::Unverified(_) => "unverified",
            Self::Refused | Self::PortClosed => "refused",
            Self::TlsAlert(_) => "tls_alert",
            Self::VersionMismatch => "version_mismatch",
            Self::Transport(_) => "transport_error",
            Self::ClosedByPeer(_) => "closed_by_peer",
            Self::Reset => "reset",
            Self::IdleTimeout => "idle_timeout",
            Self::Dead => "dead",
            Self::NoCredit => "no_stream_credit",
            Self::Socket(_) => "socket_error",
            Self::TooManyDials => "too_many_dials",
            Self::BackingOff => "backing_off",
            Self::Removed => "removed",
            Self::Evicted => "evicted",
            Self::PoolClosed => "pool_closed",
            Self::StreamClosed => "closed",
            Self::Stopped(_) => "stopped",
            Self::QueueFull => "send_queue_full",
            Self::PoolQueueFull => "pool_queue_full",
            Self::MessageTooLarge => "message_too_large",
            Self::SendTimeout => "send_timeout",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether the peer has ended the connection, or made us end it: it was there.
    pub(crate) fn is_by_peer(&self) -> bool {
        matches!(self, Self::Reset | Self::ClosedByPeer(_) | Self::Transport(_) | Self::TlsAlert(_))
    }

    /// Whether the connection was lost, as opposed to given up by us.
    pub(crate) fn is_loss(&self) -> bool {
        matches!(
            self,
            Self::Transport(_)
                | Self::ClosedByPeer(_)
                | Self::Reset
                | Self::IdleTimeout
                | Self::Dead
                | Self::Socket(_)
                | Self::TlsAlert(_)
        )
    }
}

/// No more file descriptors in the system, and for this process: the same numbers on all systems
/// that the library runs on.
const ENFILE: i32 = 23;
const EMFILE: i32 = 24;
/// CONNECTION_REFUSED (RFC 9000, section 20.1).
const CONNECTION_REFUSED: u64 = 0x2;
/// INTERNAL_ERROR (RFC 9000, section 20.1); quinn reports the loss of its socket so.
const INTERNAL_ERROR: u64 = 0x1;
/// First and last of the CRYPTO_ERROR codes; the low byte is the TLS alert (RFC 9001, 4.8).
const CRYPTO_ERRORS: std::ops::RangeInclusive<u64> = 0x100..=0x1ff;

impl From<ConnectionError> for Error {
    fn from(error: ConnectionError) -> Self {
        match error {
            ConnectionError::VersionMismatch => Self::VersionMismatch,
            ConnectionError::TransportError(ours) => match u64::from(ours.code) {
                // Only the endpoint driver's end makes quinn accuse itself.
                INTERNAL_ERROR => Self::Socket(io::ErrorKind::NotConnected),
                code => transport(code),
            },
            ConnectionError::ConnectionClosed(theirs) => transport(theirs.error_code.into()),
            ConnectionError::ApplicationClosed(theirs) => {
                Self::ClosedByPeer(theirs.error_code.into_inner())
            }
            ConnectionError::Reset => Self::Reset,
            ConnectionError::TimedOut => Self::IdleTimeout,
            ConnectionError::LocallyClosed => Self::Cancelled,
            ConnectionError::CidsExhausted => Self::Socket(io::ErrorKind::QuotaExceeded),
        }
    }
}

impl From<ConnectError> for Error {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::InvalidServerName(_) => Self::InvalidServerName,
            ConnectError::InvalidRemoteAddress(_) => Self::Socket(io::ErrorKind::AddrNotAvailable),
            ConnectError::CidsExhausted => Self::Socket(io::ErrorKind::QuotaExceeded),
            ConnectError::UnsupportedVersion => Self::VersionMismatch,
            ConnectError::EndpointStopping | ConnectError::NoDefaultClientConfig => {
                Self::Socket(io::ErrorKind::NotConnected)
            }
        }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Socket(kind(&error))
    }
}

/// The kind of an I/O error, also where the standard library has none: for the lack of file
/// descriptors, of this process or of the system.
pub(crate) fn kind(error: &io::Error) -> io::ErrorKind {
    match error.raw_os_error() {
        Some(ENFILE | EMFILE) => io::ErrorKind::QuotaExceeded,
        _ => error.kind(),
    }
}

impl From<quinn::WriteError> for Error {
    fn from(error: quinn::WriteError) -> Self {
        match error {
            quinn::WriteError::Stopped(code) => stopped(code),
            quinn::WriteError::ConnectionLost(error) => error.into(),
            quinn::WriteError::ClosedStream | quinn::WriteError::ZeroRttRejected => {
                Self::StreamClosed
            }
        }
    }
}

impl From<quinn::StoppedError> for Error {
    fn from(error: quinn::StoppedError) -> Self {
        match error {
            quinn::StoppedError::ConnectionLost(error) => error.into(),
            quinn::StoppedError::ZeroRttRejected => Self::StreamClosed,
        }
    }
}

fn stopped(code: VarInt) -> Error {
    Error::Stopped(code.into_inner())
}

fn transport(code: u64) -> Error {
    if code == CONNECTION_REFUSED {
        return Error::Refused;
    }
    if CRYPTO_ERRORS.contains(&code) {
        // The low byte alone: the range above leaves nothing else.
        return Error::TlsAlert(code.to_be_bytes().last().copied().unwrap_or_default());
    }
    Error::Transport(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crypto_error_is_told_as_its_tls_alert() {
        assert_eq!(transport(0x178), Error::TlsAlert(120));
    }

    #[test]
    fn a_refusal_is_told_apart_from_other_transport_errors() {
        assert_eq!(transport(0x2), Error::Refused);
        assert_eq!(transport(0xa), Error::Transport(0xa));
    }
}
