//! What `mesh` tells, as Erlang terms: errors, infos and statistics, each in one place.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh::{BadCertificate, CertificateFault, Error, Fault, Info, clock};
use mesh::{ListenerStats, Refusal, Snapshot, Traffic, Undelivered};
use rustler::types::tuple::make_tuple;
use rustler::{Atom, Encoder, Env, NifResult, Term};

use crate::resources::Resources;
use crate::{atoms, events};

const US_PER_S: i64 = 1_000_000;

/// `Reason` of `{error, Reason}`: an atom, or `{Atom, Detail}`.
pub(crate) fn reason<'a>(env: Env<'a>, error: &Error) -> Term<'a> {
    let detailed = |name: Atom, code: u64| (name, code).encode(env);
    match error {
        Error::BadAddress => atoms::bad_address().encode(env),
        Error::BadNode => atoms::bad_node_id().encode(env),
        Error::BadMessage => atoms::bad_message().encode(env),
        Error::ConnectTimeout | Error::SendTimeout => atoms::timeout().encode(env),
        Error::NameNotFound => atoms::nxdomain().encode(env),
        Error::InvalidServerName => atoms::invalid_server_name().encode(env),
        Error::Unverified(fault) => (atoms::unverified(), unverified(*fault)).encode(env),
        Error::Refused | Error::PortClosed => atoms::refused().encode(env),
        Error::TlsAlert(alert) => detailed(atoms::tls_alert(), u64::from(*alert)),
        Error::VersionMismatch => atoms::version_mismatch().encode(env),
        Error::Transport(code) => detailed(atoms::transport_error(), *code),
        Error::ClosedByPeer(code) => detailed(atoms::closed_by_peer(), *code),
        Error::Reset => atoms::reset().encode(env),
        Error::IdleTimeout => atoms::idle_timeout().encode(env),
        Error::Dead => (atoms::dead(), atoms::ack_timeout()).encode(env),
        Error::NoCredit => atoms::no_stream_credit().encode(env),
        Error::Socket(kind) => (atoms::socket_error(), posix(*kind)).encode(env),
        Error::TooManyDials => atoms::too_many_dials().encode(env),
        Error::BackingOff => atoms::backing_off().encode(env),
        Error::Removed => atoms::removed().encode(env),
        Error::Evicted => atoms::evicted().encode(env),
        Error::PoolClosed => atoms::pool_closed().encode(env),
        Error::StreamClosed => atoms::closed().encode(env),
        Error::Stopped(code) => detailed(atoms::stopped(), *code),
        Error::QueueFull => atoms::send_queue_full().encode(env),
        Error::PoolQueueFull => atoms::pool_queue_full().encode(env),
        Error::MessageTooLarge => atoms::message_too_large().encode(env),
        Error::Cancelled => atoms::cancelled().encode(env),
    }
}

/// Why somebody was not believed.
fn unverified(fault: Fault) -> Atom {
    match fault {
        Fault::NoCertificate => atoms::no_certificate(),
        Fault::BadCertificate => atoms::bad_peer_certificate(),
        Fault::UnknownIssuer => atoms::unknown_issuer(),
        Fault::Expired => atoms::expired(),
        Fault::NotValidYet => atoms::not_valid_yet(),
        Fault::Revoked => atoms::revoked(),
        Fault::WrongName => atoms::wrong_name(),
        Fault::WrongPurpose => atoms::wrong_purpose(),
        Fault::BadSignature => atoms::bad_signature(),
        Fault::KeyNotProven => atoms::key_not_proven(),
        Fault::WrongKey => atoms::wrong_key(),
    }
}

/// `{error, Reason}`.
pub(crate) fn error<'a>(env: Env<'a>, error: &Error) -> Term<'a> {
    (atoms::error(), reason(env, error)).encode(env)
}

/// `{error, closed | too_many_waiters}`.
pub(crate) fn refusal(env: Env<'_>, why: Refusal) -> Term<'_> {
    match why {
        Refusal::Closed => error(env, &Error::StreamClosed),
        Refusal::TooManyWait => (atoms::error(), atoms::too_many_waiters()).encode(env),
    }
}

/// `{error, {connect_failed, Reason}}`.
pub(crate) fn connect_failed<'a>(env: Env<'a>, error: &Error) -> Term<'a> {
    (atoms::error(), (atoms::connect_failed(), reason(env, error))).encode(env)
}

/// `{error, Reason}` of a message that is not known to have arrived.
pub(crate) fn undelivered<'a>(env: Env<'a>, why: &Undelivered) -> Term<'a> {
    match why {
        Undelivered::NotConnected(error) => connect_failed(env, error),
        Undelivered::NotSent(cause) => error(env, cause),
        Undelivered::Unconfirmed(error) => {
            (atoms::error(), (atoms::unconfirmed(), reason(env, error))).encode(env)
        }
    }
}

/// `{error, {bad_certificate, Path, Reason}}`, the path a binary.
pub(crate) fn bad_certificate<'a>(env: Env<'a>, bad: &BadCertificate) -> Term<'a> {
    let fault = match bad.fault {
        CertificateFault::Unreadable(kind) => posix(kind),
        CertificateFault::NotPem => atoms::not_pem(),
        CertificateFault::NoCertificate => atoms::no_certificate(),
        CertificateFault::NoPrivateKey => atoms::no_private_key(),
        CertificateFault::InvalidCertificate => atoms::invalid_certificate(),
        CertificateFault::InvalidKey => atoms::invalid_key(),
        CertificateFault::KeyMismatch => atoms::key_mismatch(),
    };
    let path = events::binary(env, bad.path.as_os_str().as_bytes());
    (atoms::error(), (atoms::bad_certificate(), path, fault)).encode(env)
}

/// The POSIX name that Erlang users know an I/O error by.
fn posix(kind: ErrorKind) -> Atom {
    match kind {
        ErrorKind::NotFound => atoms::enoent(),
        ErrorKind::PermissionDenied => atoms::eacces(),
        ErrorKind::IsADirectory => atoms::eisdir(),
        ErrorKind::AddrInUse => atoms::eaddrinuse(),
        ErrorKind::AddrNotAvailable => atoms::eaddrnotavail(),
        ErrorKind::ConnectionRefused => atoms::econnrefused(),
        ErrorKind::QuotaExceeded => atoms::emfile(),
        ErrorKind::FileTooLarge => atoms::efbig(),
        ErrorKind::NetworkUnreachable => atoms::enetunreach(),
        ErrorKind::HostUnreachable => atoms::ehostunreach(),
        ErrorKind::NotConnected => atoms::enotconn(),
        ErrorKind::WouldBlock => atoms::eagain(),
        _ => atoms::eio(),
    }
}

/// `{inet:ip_address(), inet:port_number()}`.
pub(crate) fn socket_address<'a>(env: Env<'a>, address: SocketAddr) -> Term<'a> {
    let parts: Vec<Term<'a>> = match address.ip() {
        IpAddr::V4(ip) => ip.octets().iter().map(|octet| octet.encode(env)).collect(),
        IpAddr::V6(ip) => ip.segments().iter().map(|segment| segment.encode(env)).collect(),
    };
    (make_tuple(env, &parts), address.port()).encode(env)
}

/// The map of `get_connection_info/2`.
pub(crate) fn info<'a>(
    env: Env<'a>,
    info: &Info<Resources>,
    clock: ErlangClock,
) -> NifResult<Term<'a>> {
    let figures = &info.figures;
    let state = if figures.busy { atoms::busy() } else { atoms::idle() };
    // The external form was made from a term by this library.
    let given = env.binary_to_term(&info.given).map(|(term, _)| term);
    map(
        env,
        &[
            (atoms::connection(), info.connection.encode(env)),
            (atoms::stream(), info.stream.encode(env)),
            (atoms::address(), given.unwrap_or_else(|| atoms::undefined().encode(env))),
            (atoms::last_used(), clock.seconds(info.last_used).encode(env)),
            (atoms::state(), state.encode(env)),
            (atoms::peername(), socket_address(env, figures.remote)),
            (atoms::opened_at(), clock.seconds(figures.opened_at).encode(env)),
            (atoms::rtt_us(), microseconds(figures.rtt).encode(env)),
            (atoms::mtu_bytes(), figures.mtu.encode(env)),
            (atoms::lost_packets(), figures.lost_packets.encode(env)),
            (atoms::sent_bytes(), figures.sent_bytes.encode(env)),
            (atoms::received_bytes(), figures.received_bytes.encode(env)),
            (atoms::outstanding_messages(), figures.outstanding.messages.encode(env)),
            (atoms::outstanding_bytes(), figures.outstanding.bytes.encode(env)),
            (atoms::streams(), figures.user_streams.encode(env)),
        ],
    )
}

/// The map of `get_stats/1`.
pub(crate) fn stats<'a>(
    env: Env<'a>,
    stats: &Snapshot,
    runtime_tasks: usize,
) -> NifResult<Term<'a>> {
    map(
        env,
        &[
            (atoms::size(), stats.size.encode(env)),
            (atoms::limit(), stats.limit.encode(env)),
            (atoms::dialing(), stats.dialing.encode(env)),
            (atoms::failing(), stats.failing.encode(env)),
            (atoms::tasks(), stats.tasks.encode(env)),
            (atoms::runtime_tasks(), runtime_tasks.encode(env)),
            (atoms::hits(), stats.hits.encode(env)),
            (atoms::misses(), stats.misses.encode(env)),
            (atoms::dials(), stats.dials.encode(env)),
            (atoms::dial_failures(), causes(env, &stats.dial_failures)?),
            (atoms::connections_opened(), stats.connections.encode(env)),
            (atoms::renewals(), stats.renewals.encode(env)),
            (atoms::probes(), stats.probes.encode(env)),
            (atoms::suspicions(), stats.suspicions.encode(env)),
            (atoms::recoveries(), stats.recoveries.encode(env)),
            (atoms::evictions(), stats.evictions.encode(env)),
            (atoms::removals(), stats.removals.encode(env)),
            (atoms::closes(), causes(env, &stats.closes)?),
            (atoms::messages_accepted(), stats.accepted.encode(env)),
            (atoms::bytes_accepted(), stats.accepted_bytes.encode(env)),
            (atoms::messages_delivered(), stats.delivered.encode(env)),
            (atoms::bytes_delivered(), stats.delivered_bytes.encode(env)),
            (atoms::messages_dropped(), causes(env, &stats.dropped)?),
            (atoms::messages_unconfirmed(), stats.unconfirmed.encode(env)),
            (atoms::messages_redelivered(), stats.redelivered.encode(env)),
            (atoms::outstanding_messages(), stats.outstanding.messages.encode(env)),
            (atoms::outstanding_bytes(), stats.outstanding.bytes.encode(env)),
            (atoms::stream_bytes(), stats.stream_bytes.encode(env)),
            (atoms::panics(), stats.panics.encode(env)),
            (atoms::udp_receive_buffer_bytes(), stats.udp_receive_buffer_bytes.encode(env)),
            (atoms::udp_send_buffer_bytes(), stats.udp_send_buffer_bytes.encode(env)),
        ],
    )
}

/// The map of `listener_stats/1`.
pub(crate) fn listener_stats<'a>(env: Env<'a>, stats: &ListenerStats) -> NifResult<Term<'a>> {
    map(
        env,
        &[
            (atoms::connections(), stats.connections.encode(env)),
            (atoms::handshakes(), stats.handshakes.encode(env)),
            (atoms::waiting(), stats.waiting.encode(env)),
            (atoms::refused_by_cause(), causes(env, &stats.refused)?),
        ],
    )
}

/// The counters of `getstat/2`.
pub(crate) fn traffic<'a>(env: Env<'a>, traffic: &Traffic) -> NifResult<Term<'a>> {
    map(
        env,
        &[
            (atoms::send_cnt(), traffic.sent_datagrams.encode(env)),
            (atoms::recv_cnt(), traffic.received_datagrams.encode(env)),
            (atoms::send_oct(), traffic.sent_bytes.encode(env)),
            (atoms::recv_oct(), traffic.received_bytes.encode(env)),
            (atoms::send_pend(), traffic.pending_bytes.encode(env)),
        ],
    )
}

/// Counts by cause. The causes are names in this library's code, so they make no atoms at will.
fn causes<'a>(env: Env<'a>, counts: &BTreeMap<&'static str, u64>) -> NifResult<Term<'a>> {
    let pairs: NifResult<Vec<_>> = counts
        .iter()
        .map(|(name, count)| Ok((Atom::from_bytes(env, name.as_bytes())?, count.encode(env))))
        .collect();
    map(env, &pairs?)
}

pub(crate) fn map<'a>(env: Env<'a>, pairs: &[(Atom, Term<'a>)]) -> NifResult<Term<'a>> {
    Term::map_from_pairs(env, pairs)
}

/// What the VM takes for the time of day: by default it follows the system's clock slowly when that
/// is set, for as long as months.
#[derive(Clone, Copy)]
pub(crate) struct ErlangClock {
    /// By how many seconds it is ahead of this library's.
    ahead: i64,
}

impl ErlangClock {
    /// By the time that it shows now, in microseconds since the epoch.
    pub(crate) fn showing(now_us: i64) -> Self {
        let ahead_us = now_us.saturating_sub(since_epoch(clock::now(), Duration::as_micros));
        let half = ahead_us.signum() * (US_PER_S / 2);
        Self { ahead: ahead_us.saturating_add(half) / US_PER_S }
    }

    /// As `erlang:system_time(second)`.
    fn seconds(self, time: SystemTime) -> i64 {
        let seconds = since_epoch(time, |since| since.as_secs().into());
        seconds.saturating_add(self.ahead)
    }
}

fn since_epoch(time: SystemTime, unit: impl Fn(&Duration) -> u128) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(unit(&since)).unwrap_or(i64::MAX)
}

fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
