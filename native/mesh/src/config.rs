//! Every option of the pool: its name, its default, its bounds. Whoever needs a number takes it
//! from here; whoever documents one copies it from here.

use std::num::NonZeroUsize;
use std::ops::{Add, AddAssign, SubAssign};
use std::time::Duration;

use thiserror::Error;

use crate::backoff::Backoff;
use crate::keep_alive::KEEP_ALIVES_PER_TIMEOUT;
use crate::settings::Transport;

/// An option was refused: the name of the option and the value that it may not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("option {key} cannot be {value}")]
pub struct BadOption {
    /// The option's name, as a caller writes it.
    pub key: &'static str,
    /// The value that was refused.
    pub value: u64,
}

/// One numeric option: what a caller may set it to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// The option's name, as a caller writes it.
    pub key: &'static str,
    /// The value when nothing is said.
    pub default: u64,
    /// The least value.
    pub min: u64,
    /// The greatest value.
    pub max: u64,
}

macro_rules! options {
    ($(#[$about:meta])* $name:ident {
        $($(#[$doc:meta])* $key:ident: $default:expr, $min:expr => $max:expr;)*
        $(@plain { $($(#[$plain_doc:meta])* $plain:ident: $type:ty,)* })?
    }) => {
        $(#[$about])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name {
            $($(#[$doc])* pub(crate) $key: u64,)*
            $($($(#[$plain_doc])* pub $plain: $type,)*)?
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($key: $default,)* $($($plain: <$type>::default(),)*)? }
            }
        }

        impl $name {
            /// Every numeric option with its default and its bounds, in the order of this page.
            pub const OPTIONS: &'static [Bounds] = &[
                $(Bounds { key: stringify!($key), default: $default, min: $min, max: $max },)*
            ];

            /// Sets one option by name. `Ok(false)`: there is none of that name.
            ///
            /// # Errors
            /// [`BadOption`] when the value is out of the option's bounds.
            pub fn set(&mut self, key: &str, value: u64) -> Result<bool, BadOption> {
                match key {
                    $(stringify!($key) => {
                        if !($min..=$max).contains(&value) {
                            return Err(BadOption { key: stringify!($key), value });
                        }
                        self.$key = value;
                        Ok(true)
                    })*
                    _ => Ok(false),
                }
            }
        }
    };
}
pub(crate) use options;

pub(crate) const MIB: u64 = 1024 * 1024;
/// An hour: longer timeouts are mistakes in the unit.
pub(crate) const LONGEST_MS: u64 = 3_600_000;

options! {
    /// The options of a pool, all within their bounds.
    Config {
    /// How many connections the pool keeps open at most.
    max_mesh_connections: 1_000, 1 => 1_000_000;
    /// How long a dial may take, name look-up included, in milliseconds.
    connect_timeout_ms: 5_000, 1 => LONGEST_MS;
    /// Silence after which a connection is given up, in milliseconds; the lower of this and the
    /// peer's own holds (RFC 9000, section 10.1).
    idle_timeout_ms: 60_000, 100 => LONGEST_MS;
    /// Silence after which the peer of a pooled connection is suspected to be dead, in
    /// milliseconds, when a message is outstanding; 0 for never.
    ack_timeout_ms: 3_000, 0 => LONGEST_MS;
    /// Silence after which a pooled connection is checked before it is used, in milliseconds; 0,
    /// or when `ack_timeout_ms` is 0, for never.
    probe_after_ms: 30_000, 0 => LONGEST_MS;
    /// How often an idle connection is kept alive, in milliseconds; 0 for never.
    keep_alive_interval_ms: 20_000, 0 => LONGEST_MS;
    /// How long a connection that leaves the pool may take to get its queue out, in milliseconds.
    linger_ms: 1_000, 0 => 60_000;
    /// Messages accepted for one peer and neither acknowledged nor dropped, at most.
    queue_max_messages: 65_536, 1 => 16_777_216;
    /// The same in bytes; also the greatest size of one message.
    queue_max_bytes: 32 * MIB, 1_024 => 4_096 * MIB;
    /// Messages accepted for all peers together and neither acknowledged nor dropped, at most.
    pool_queue_max_messages: 1_048_576, 1 => 268_435_456;
    /// The same in bytes.
    pool_queue_max_bytes: 256 * MIB, 1_024 => 65_536 * MIB;
    /// Bytes outstanding at one peer above which `send/2` waits and `async_send/2` is refused.
    send_watermark_bytes: 4 * MIB, 1 => 4_096 * MIB;
    /// Bytes outstanding at all peers together above which the same holds for each peer with more
    /// than 256 KiB.
    pool_send_watermark_bytes: 16 * MIB, 1 => 65_536 * MIB;
    /// Dials under way at once; more wait for their turn within their own deadline.
    max_concurrent_dials: 1_024, 1 => 65_536;
    /// Dials under way or waiting for their turn; more are refused.
    max_pending_dials: 16_384, 1 => 1_048_576;
    /// How long a node whose dial has failed is not dialled for a message alone, in milliseconds;
    /// doubled with each failure in a row. 0: no delay.
    dial_backoff_min_ms: 100, 0 => LONGEST_MS;
    /// The longest such delay, in milliseconds, unless the least one is longer.
    dial_backoff_max_ms: 10_000, 1 => LONGEST_MS;
    /// How long to wait, in milliseconds, for a peer that has never given a stream credit back,
    /// before its connection is replaced.
    stream_credit_timeout_ms: 200, 1 => LONGEST_MS;
    /// UDP socket buffers, each direction, in bytes; the kernel may grant less. Small ones lose
    /// packets in bursts.
    udp_buffer_bytes: 4 * MIB, 65_536 => 1_024 * MIB;
    /// UDP sockets, each with a task of its own that sends and receives; peers are spread over them
    /// by their addresses. One is enough until that task keeps a whole core busy.
    endpoints: 1, 1 => 256;
    @plain {
        /// What becomes of messages that were under way when their connection was lost.
        redelivery: Redelivery,
    }
    }
}

/// What becomes of messages that were under way when their connection was lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Redelivery {
    /// They may have arrived, and are not sent again.
    #[default]
    AtMostOnce,
    /// They are sent again, and may arrive twice.
    AtLeastOnce,
}

impl Config {
    /// Checks what one option demands of another, and fits a keep-alive interval that was not
    /// asked for to an idle timeout that was.
    ///
    /// # Errors
    /// [`BadOption`] when keep-alives would come too late to keep anything alive.
    pub fn settle(&mut self, has_keep_alive: bool) -> Result<(), BadOption> {
        self.keep_alive_interval_ms =
            keep_alive(self.keep_alive_interval_ms, self.idle_timeout_ms, has_keep_alive)?;
        Ok(())
    }

    pub(crate) fn max_connections(&self) -> NonZeroUsize {
        NonZeroUsize::new(size(self.max_mesh_connections)).unwrap_or(NonZeroUsize::MIN)
    }

    pub(crate) fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms)
    }

    pub(crate) fn ack_timeout(&self) -> Duration {
        Duration::from_millis(self.ack_timeout_ms)
    }

    /// Never, if nobody is ever suspected: then nothing would bound the wait for the answer.
    pub(crate) fn probe_after_ms(&self) -> u64 {
        if self.ack_timeout_ms == 0 { 0 } else { self.probe_after_ms }
    }

    pub(crate) fn keep_alive_interval(&self) -> Option<Duration> {
        self.transport().keep_alive_interval()
    }

    /// The transport of pooled connections. Peers may open the unidirectional streams that nodes
    /// in the field count on, and no others: answers come on streams of our own.
    pub(crate) fn transport(&self) -> Transport {
        Transport {
            idle_timeout_ms: self.idle_timeout_ms,
            keep_alive_interval_ms: self.keep_alive_interval_ms,
            peer_bidi_stream_count: 0,
            udp_buffer_bytes: self.udp_buffer_bytes,
            ..Transport::default()
        }
    }

    /// The option `linger_ms`.
    pub fn linger_ms(&self) -> u64 {
        self.linger_ms
    }

    pub(crate) fn linger(&self) -> Duration {
        Duration::from_millis(self.linger_ms)
    }

    pub(crate) fn queue_limits(&self) -> Load {
        Load { messages: size(self.queue_max_messages), bytes: size(self.queue_max_bytes) }
    }

    pub(crate) fn pool_queue_limits(&self) -> Load {
        Load {
            messages: size(self.pool_queue_max_messages),
            bytes: size(self.pool_queue_max_bytes),
        }
    }

    pub(crate) fn send_watermark_bytes(&self) -> usize {
        size(self.send_watermark_bytes)
    }

    pub(crate) fn pool_send_watermark_bytes(&self) -> usize {
        size(self.pool_send_watermark_bytes)
    }

    pub(crate) fn max_concurrent_dials(&self) -> usize {
        size(self.max_concurrent_dials)
    }

    pub(crate) fn max_pending_dials(&self) -> usize {
        size(self.max_pending_dials)
    }

    pub(crate) fn dial_backoff(&self) -> Backoff {
        let delay = Duration::from_millis;
        Backoff::new(delay(self.dial_backoff_min_ms), delay(self.dial_backoff_max_ms))
    }

    pub(crate) fn stream_credit_timeout(&self) -> Duration {
        Duration::from_millis(self.stream_credit_timeout_ms)
    }

    pub(crate) fn endpoints(&self) -> usize {
        size(self.endpoints)
    }

    pub(crate) fn udp_buffer_bytes(&self) -> usize {
        size(self.udp_buffer_bytes)
    }
}

/// The keep-alive interval to go with an idle timeout, both in milliseconds.
pub(crate) fn keep_alive(value: u64, idle_timeout: u64, is_given: bool) -> Result<u64, BadOption> {
    match value < idle_timeout {
        true => Ok(value),
        false if is_given => Err(BadOption { key: "keep_alive_interval_ms", value }),
        false => Ok(idle_timeout / u64::from(KEEP_ALIVES_PER_TIMEOUT)),
    }
}

/// An amount of messages: how many, and their payload bytes together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// How many messages.
    pub messages: usize,
    /// Their payload bytes.
    pub bytes: usize,
}

impl Load {
    /// Whether neither is more than that of `limit`.
    pub(crate) fn is_within(self, limit: Self) -> bool {
        self.messages <= limit.messages && self.bytes <= limit.bytes
    }
}

impl AddAssign for Load {
    fn add_assign(&mut self, more: Self) {
        self.messages += more.messages;
        self.bytes += more.bytes;
    }
}

impl Add for Load {
    type Output = Self;

    fn add(mut self, more: Self) -> Self {
        self += more;
        self
    }
}

impl SubAssign for Load {
    fn sub_assign(&mut self, less: Self) {
        self.messages -= less.messages;
        self.bytes -= less.bytes;
    }
}

pub(crate) fn size(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Transport;

    #[test]
    fn every_option_takes_its_bounds_and_refuses_what_lies_beyond() {
        for bounds in Config::OPTIONS {
            let mut config = Config::default();
            assert_eq!(config.set(bounds.key, bounds.min), Ok(true));
            assert_eq!(config.set(bounds.key, bounds.max), Ok(true));
            let above = BadOption { key: bounds.key, value: bounds.max + 1 };
            assert_eq!(config.set(bounds.key, above.value), Err(above));
            if let Some(value) = bounds.min.checked_sub(1) {
                let below = BadOption { key: bounds.key, value };
                assert_eq!(config.set(bounds.key, value), Err(below));
            }
        }
    }

    #[test]
    fn the_defaults_are_within_their_bounds_and_agree_with_each_other() {
        for bounds in Config::OPTIONS {
            assert!((bounds.min..=bounds.max).contains(&bounds.default), "{bounds:?}");
        }
        let mut config = Config::default();
        assert_eq!(config.settle(true), Ok(()));
        assert_eq!(config, Config::default());
    }

    fn grouped(number: u64) -> String {
        match number {
            0..1_000 => number.to_string(),
            _ => format!("{},{:03}", grouped(number / 1_000), number % 1_000),
        }
    }

    #[test]
    fn the_readme_tells_every_default_and_every_bound() {
        let readme = include_str!("../../../README.md");
        let tables = readme.split_once("### Of `macula_quic:listen/2`").expect("two tables");
        for (table, options) in [(tables.0, Config::OPTIONS), (tables.1, Transport::OPTIONS)] {
            for Bounds { key, default, min, max } in options {
                let [default, min, max] = [*default, *min, *max].map(grouped);
                let row = format!("| `{key}` | {default} | {min} to {max} |");
                assert!(table.contains(&row), "{row}");
            }
        }
    }

    #[test]
    fn an_unknown_option_is_told_apart_from_a_bad_one() {
        assert_eq!(Config::default().set("realm", 1), Ok(false));
    }

    #[test]
    fn a_keep_alive_that_comes_after_the_idle_timeout_is_refused_if_it_was_asked_for() {
        let mut config = Config::default();
        assert_eq!(config.set("idle_timeout_ms", 9_000), Ok(true));
        let late = BadOption { key: "keep_alive_interval_ms", value: 20_000 };
        assert_eq!(config.settle(true), Err(late));
        assert_eq!(config.settle(false), Ok(()));
        assert_eq!(config.keep_alive_interval(), Some(Duration::from_secs(3)));
    }
}
