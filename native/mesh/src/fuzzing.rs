//! What holds of every decoder, whatever it is given: one function each, which panics where it does
//! not. They are the bodies of the fuzz targets in `fuzz/`, and `cargo test` runs them on the seeds
//! there and on what it makes of them. They are here because the decoders are private.

use std::collections::BTreeMap;
use std::path::Path;
use std::str::from_utf8;
use std::time::Duration;

use bytes::Bytes;
use quinn::Side;
use quinn_proto::transport_parameters::TransportParameters;
use rustls::pki_types::CertificateDer;

use crate::address::Address;
use crate::config::{BadOption, Bounds, Config};
use crate::first_packet::ends_connection;
use crate::frames::{Frames, Packet};
use crate::handshake::PeerParameters;
use crate::joined::{Breach, Cutter, Encoder};
use crate::retirements;
use crate::settings::{Settings, Transport};
use crate::tls::{self, Identity};
use crate::unfinished::Room;
use crate::verify::{PeerIdentity, Verification};

/// What a target does with an input: it panics where its claim does not hold.
pub type Claim = fn(&[u8]);

/// All of them, by the names of their folders of seeds.
pub const TARGETS: &[(&str, Claim)] = &[
    ("address", address),
    ("options", options),
    ("frames", frames),
    ("messages", messages),
    ("parameters", parameters),
    ("first_packet", first_packet),
    ("retirements", retirements),
    ("pem", pem),
    ("der", der),
];

/// An address that was read is the one that its parts spell, in every form.
pub fn address(data: &[u8]) {
    let Some(address) = from_utf8(data).ok().and_then(Address::parse) else {
        return;
    };
    let (host, port) = (address.server_name(), address.port());
    assert!(port > 0 && !host.is_empty() && host.len() <= 255, "{address:?}");
    assert!(host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:".contains(&b)), "{host}");
    let authority =
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let expected = Some(address);
    assert_eq!(Address::new(&host, port), expected);
    assert_eq!(Address::parse(&authority), expected);
    assert_eq!(Address::parse(&format!("https://{authority}/a?b#c")), expected);
    // No other machine can be meant by it, nor anybody's name in front of it.
    assert_eq!(Address::parse(&format!("http://{authority}")), None);
    assert_eq!(Address::parse(&format!("somebody@{authority}")), None);
    assert_eq!(Address::parse(&format!("{authority}x")), None);
}

/// Every value by its key: what `Debug` shows is all there is.
macro_rules! values_of {
    ($options:ty, $value:expr) => {{
        let shown = format!("{:?}", $value);
        <$options>::OPTIONS
            .iter()
            .filter_map(|bounds| Some((bounds.key, shown_value(&shown, bounds.key)?)))
            .collect::<BTreeMap<&str, u64>>()
    }};
}

macro_rules! options_of {
    ($options:ty, $input:expr) => {{
        let mut options = <$options>::default();
        let mut expected = values_of!($options, options);
        let has_keep_alive = $input.byte() % 2 == 1;
        while let Some(which) = $input.next() {
            let value = $input.number();
            let Some(bounds) = <$options>::OPTIONS.get(usize::from(which)) else {
                assert_eq!(options.set(&which.to_string(), value), Ok(false));
                continue;
            };
            let is_within = (bounds.min..=bounds.max).contains(&value);
            let refusal = BadOption { key: bounds.key, value };
            let outcome = if is_within { Ok(true) } else { Err(refusal) };
            assert_eq!(options.set(bounds.key, value), outcome);
            if is_within {
                expected.insert(bounds.key, value);
            }
        }
        assert_eq!(values_of!($options, options), expected);
        check_settled(options.settle(has_keep_alive), has_keep_alive, &mut expected);
        assert_eq!(values_of!($options, options), expected);
        check_bounds(<$options>::OPTIONS, &expected);
        options
    }};
}

/// An option takes what is within its bounds and nothing else, and no other option with it.
pub fn options(data: &[u8]) {
    let mut input = Input(data);
    if input.byte() % 2 == 0 {
        let config = options_of!(Config, input);
        config.transport().quinn();
    } else {
        let transport = options_of!(Transport, input);
        transport.quinn();
    }
}

fn shown_value(shown: &str, key: &str) -> Option<u64> {
    let (_, rest) = shown.split_once(&format!(" {key}: "))?;
    rest.split([',', ' ']).next()?.parse().ok()
}

fn check_settled(
    outcome: Result<(), BadOption>,
    is_given: bool,
    values: &mut BTreeMap<&'static str, u64>,
) {
    let (key, idle) = ("keep_alive_interval_ms", values.get("idle_timeout_ms").copied());
    let (idle, value) = (idle.unwrap_or(0), values.get(key).copied().unwrap_or(0));
    match outcome {
        Ok(()) if value < idle => {}
        Ok(()) => {
            assert!(!is_given, "an interval that was asked for was changed");
            values.insert(key, idle / 3);
        }
        Err(bad) => {
            assert!(is_given && value >= idle);
            assert_eq!(bad, BadOption { key, value });
        }
    }
}

fn check_bounds(options: &[Bounds], values: &BTreeMap<&str, u64>) {
    assert_eq!(options.len(), values.len());
    for bounds in options {
        let value = values.get(bounds.key).copied().unwrap_or(u64::MAX);
        assert!((bounds.min..=bounds.max).contains(&value), "{bounds:?}: {value}");
    }
}

/// However a stream is cut, its frames come out as they went in, no byte is lost or made up, and
/// what is too long is told once its header is there.
pub fn frames(data: &[u8]) {
    let mut input = Input(data);
    let max_bytes = usize::from(input.byte()) + 8;
    let cuts = input.cuts();
    let stream = input.0;
    let mut expected = Vec::new();
    let mut rest = stream;
    let mut too_long = None;
    while let [1, _, _, _, a, b, c, d, ..] = rest {
        let length = 8 + u64::from(u32::from_be_bytes([*a, *b, *c, *d]));
        let frame = usize::try_from(length).ok().filter(|length| *length <= max_bytes);
        let Some(frame) = frame else {
            too_long = Some(length);
            break;
        };
        let Some((first, others)) = rest.split_at_checked(frame) else { break };
        expected.push(first.to_vec());
        rest = others;
    }
    let is_raw = rest.first().is_some_and(|first| *first != 1);

    let mut frames = Frames::new(Packet::Macula, max_bytes, Room::new(max_bytes));
    let mut delivered = Vec::new();
    let mut refused = None;
    for part in parts(stream, &cuts) {
        frames.push(part);
        while refused.is_none() {
            match frames.next() {
                Ok(Some(parts)) => delivered.push(parts.concat()),
                Ok(None) => break,
                Err(bad) => refused = Some(bad.0),
            }
        }
    }
    let passed = delivered.split_off(expected.len().min(delivered.len())).concat();
    assert_eq!(delivered, expected);
    assert_eq!(refused, too_long);
    if is_raw {
        assert_eq!(passed, rest);
    } else {
        assert!(passed.is_empty());
        assert_eq!(frames.held(), rest.len());
        assert_eq!(frames.rest().concat(), rest);
    }
}

/// The same of joined messages; and a stream that was written by us is read as what was written.
pub fn messages(data: &[u8]) {
    let mut input = Input(data);
    let max_bytes = usize::from(input.byte());
    let cuts = input.cuts();
    let stream = input.0;
    let mut expected = Vec::new();
    let mut rest = stream;
    let mut too_long = None;
    while let Some((length, behind)) = variable_length(rest) {
        let message = usize::try_from(length).ok().filter(|length| *length <= max_bytes);
        let Some(message) = message else {
            too_long = Some(Breach::TooLong(length));
            break;
        };
        let Some((first, others)) = behind.split_at_checked(message) else { break };
        expected.push(Bytes::copy_from_slice(first));
        rest = others;
    }
    let (delivered, breach, is_within) = cut(stream, &cuts, max_bytes);
    assert_eq!(delivered, expected);
    assert_eq!(breach, too_long);
    assert!(breach.is_some() || is_within != rest.is_empty());

    let mut encoder = Encoder::new(false);
    expected.iter().for_each(|message| encoder.add(message.clone()));
    let chunks = encoder.finish().concat();
    let (kind, written) = chunks.split_first().unwrap_or((&0, &[]));
    assert_eq!(*kind, 0);
    assert_eq!(cut(written, &cuts, max_bytes), (expected, None, false));
}

fn cut(stream: &[u8], cuts: &[u8], max_bytes: usize) -> (Vec<Bytes>, Option<Breach>, bool) {
    let mut cutter = Cutter::new(max_bytes);
    let mut delivered = Vec::new();
    for part in parts(stream, cuts) {
        cutter.push(part);
        loop {
            match cutter.next() {
                Ok(Some(parts)) => delivered.push(Bytes::from(parts.concat())),
                Ok(None) => break,
                Err(breach) => return (delivered, Some(breach), true),
            }
        }
    }
    (delivered, None, cutter.is_within_message())
}

/// A variable-length integer and what follows it (RFC 9000, section 16).
fn variable_length(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let size = 1_usize << (bytes.first()? >> 6);
    let (encoded, rest) = bytes.split_at_checked(size)?;
    let value = encoded.iter().fold(0_u64, |value, byte| (value << 8) | u64::from(*byte));
    // Without the two bits that tell the size.
    let mask = (1_u64 << (8 * size - 2)) - 1;
    Some((value & mask, rest))
}

/// What we read of a peer's transport parameters is what it has sent (RFC 9000, section 18), by way
/// of a stack that takes them apart and puts them together again.
pub fn parameters(data: &[u8]) {
    let mut input = Input(data);
    let side = if input.byte() % 2 == 0 { Side::Client } else { Side::Server };
    let sent = input.0;
    let Ok(read) = TransportParameters::read(side, &mut &*sent) else {
        return;
    };
    let found = PeerParameters::read(&read);
    let mut expected = PeerParameters::default();
    let mut rest = sent;
    while let Some((id, behind)) = variable_length(rest) {
        let Some((length, behind)) = variable_length(behind) else { break };
        let Some((value, others)) =
            usize::try_from(length).ok().and_then(|length| behind.split_at_checked(length))
        else {
            break;
        };
        match (id, variable_length(value)) {
            (0x01, Some((idle, _))) if idle > 0 => {
                expected.idle_timeout = Some(Duration::from_millis(idle));
            }
            (0x08, Some((streams, _))) => expected.bidi_streams = streams,
            _ => {}
        }
        rest = others;
    }
    assert_eq!(found, expected);
}

/// Whether a first packet ends its connection is read as it was written (RFC 9000, section 19): by
/// the frames before a CONNECTION_CLOSE, up to one that has no place there or is cut off.
pub fn first_packet(data: &[u8]) {
    let mut input = Input(data);
    let cut_at = usize::from(input.byte()) * 4;
    let mut frames = Vec::new();
    let mut close_at = None;
    while let Some(kind) = input.next() {
        match kind % 8 {
            0 => frames.push(0x00),
            1 => frames.push(0x01),
            2 | 3 => ack(&mut frames, kind % 8, &mut input),
            4 | 5 => {
                let length = input.byte();
                frames.push(0x06);
                integers(&mut frames, [input.number(), u64::from(length)]);
                // As much like a close as can be.
                frames.extend(std::iter::repeat_n(0x1c, usize::from(length)));
            }
            6 => {
                close_at.get_or_insert(frames.len());
                frames.extend([0x1c | (input.byte() & 1), 0, 0, 0]);
            }
            _ => {
                frames.push(0x08);
                break;
            }
        }
    }
    frames.truncate(cut_at);
    let expected = close_at.is_some_and(|at| at < frames.len());
    assert_eq!(ends_connection(&frames), expected, "{frames:?}");
    // Whatever else it may be.
    ends_connection(data);
}

/// As many connection ids are retired as was written (RFC 9000, section 19), whatever other frames
/// there are, up to one that takes the rest of the packet or is cut off.
pub fn retirements(data: &[u8]) {
    let mut input = Input(data);
    let cut_at = usize::from(input.byte()) * 4;
    let (mut frames, mut retired_at) = (Vec::new(), Vec::new());
    while let Some(kind) = input.next() {
        match kind % 16 {
            0 => frames.push(0x00),
            1 => frames.push(input.one_of(&[0x01, 0x1e, 0x1f])),
            2 | 3 => ack(&mut frames, kind % 8, &mut input),
            4..8 => {
                retired_at.push(frames.len());
                numbers(&mut frames, 0x19, 1, &mut input);
            }
            8 => {
                let kind = input.one_of(&[0x10, 0x12, 0x13, 0x14, 0x16, 0x17]);
                numbers(&mut frames, kind, 1, &mut input);
            }
            9 => {
                let kind = input.one_of(&[0x05, 0x11, 0x15]);
                numbers(&mut frames, kind, 2, &mut input);
            }
            10 => numbers(&mut frames, 0x04, 3, &mut input),
            11 => numbers(&mut frames, 0xaf, 4, &mut input),
            12 => {
                // Each kind of frame with data, and how many numbers are before the length.
                let kinds = [(0x06, 1), (0x07, 0), (0x0a, 1), (0x0f, 2), (0x1c, 2), (0x1d, 1)];
                let (kind, count) = input.one_of(&kinds);
                numbers(&mut frames, kind, count, &mut input);
                let length = input.byte();
                integers(&mut frames, [u64::from(length)]);
                // As much like retirements as can be.
                frames.extend(std::iter::repeat_n(0x19, usize::from(length)));
            }
            13 => {
                numbers(&mut frames, 0x18, 2, &mut input);
                let length = input.byte() % 21;
                frames.push(length);
                frames.extend(std::iter::repeat_n(0x19, usize::from(length) + 16));
            }
            14 => {
                frames.push(0x1a | (input.byte() & 1));
                frames.extend([0x19; 8]);
            }
            _ => {
                frames.extend([0x08, 4, 0x19, 0x19]);
                break;
            }
        }
    }
    frames.truncate(cut_at);
    let expected = retired_at.into_iter().filter(|at| *at < frames.len()).count();
    let counted = retirements::retirements(&frames);
    assert_eq!(usize::try_from(counted), Ok(expected), "{frames:?}");
    // Whatever else it may be.
    retirements::retirements(data);
}

fn ack(frames: &mut Vec<u8>, kind: u8, input: &mut Input<'_>) {
    let ranges = u64::from(input.byte() % 4);
    frames.push(kind);
    integers(frames, [input.number(), input.number(), ranges, input.number()]);
    let counts = if kind == 3 { 3 } else { 0 };
    (0..2 * ranges + counts).for_each(|_| integers(frames, [input.number()]));
}

/// A frame that begins with so many numbers.
fn numbers(frames: &mut Vec<u8>, kind: u64, count: u8, input: &mut Input<'_>) {
    integers(frames, [kind]);
    (0..count).for_each(|_| integers(frames, [input.number()]));
}

/// Variable-length integers (RFC 9000, section 16), each in the shortest length.
fn integers<const N: usize>(bytes: &mut Vec<u8>, numbers: [u64; N]) {
    for number in numbers {
        let number = number & ((1 << 62) - 1);
        // The first two bits of so many bytes.
        let (size, length) = match number {
            0..64 => (1, 0),
            64..16_384 => (2, 1 << 14),
            16_384..1_073_741_824 => (4, 2 << 30),
            _ => (8, 3 << 62),
        };
        bytes.extend((number | length).to_be_bytes().iter().skip(size_of::<u64>() - size));
    }
}

/// A certificate and key that were accepted can be shown, also as DER; roots that were accepted can
/// be trusted.
pub fn pem(data: &[u8]) {
    let mut input = Input(data);
    let size = usize::from(input.byte()) * 256 + usize::from(input.byte());
    let (cert, key) = input.0.split_at_checked(size).unwrap_or((input.0, &[]));
    let path = Path::new("text");
    if let Ok(identity) = Identity::from_pem((cert, path), (key, path)) {
        assert_shown(identity);
    }
    if let Ok(roots) = tls::roots_from_pem(cert, path) {
        assert!(!roots.is_empty());
        let verification =
            Verification::Peer { roots: roots.into(), check_name: true, max_depth: 1 };
        let settings = Settings { verification, ..Settings::default() };
        assert!(tls::Client::new(&settings).is_ok());
    }
}

/// The same of DER; and whose key a certificate names is what its public key says.
pub fn der(data: &[u8]) {
    let mut input = Input(data);
    let size = usize::from(input.byte()) * 256 + usize::from(input.byte());
    let (cert, key) = input.0.split_at_checked(size).unwrap_or((input.0, &[]));
    if let Ok(identity) = Identity::from_der(vec![cert.to_vec()], key.to_vec()) {
        assert_shown(identity);
    }
    if let Some(peer) = PeerIdentity::read(&CertificateDer::from(cert)) {
        assert_eq!(peer.certificate, cert);
        if let Some(ed25519) = peer.ed25519 {
            assert!(cert.windows(ed25519.len()).any(|window| window == ed25519));
        }
    }
}

fn assert_shown(identity: Identity) {
    let settings = Settings { identity: Some(identity), ..Settings::default() };
    assert!(tls::server_config(&settings).is_ok());
    assert!(tls::Client::new(&settings).is_ok());
}

/// `stream` in parts of these sizes, over and over; whole without any.
fn parts(stream: &[u8], cuts: &[u8]) -> Vec<Bytes> {
    let mut rest = Bytes::copy_from_slice(stream);
    let mut parts = Vec::new();
    for size in cuts.iter().map(|cut| usize::from(*cut) + 1).cycle() {
        if rest.len() <= size {
            break;
        }
        parts.push(rest.split_to(size));
    }
    parts.push(rest);
    parts
}

/// Takes decisions from the front of the data.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn byte(&mut self) -> u8 {
        self.next().unwrap_or(0)
    }

    fn number(&mut self) -> u64 {
        (0..size_of::<u64>()).fold(0, |number, _| (number << 8) | u64::from(self.byte()))
    }

    fn one_of<T: Copy + Default>(&mut self, all: &[T]) -> T {
        let which = usize::from(self.byte()).checked_rem(all.len()).unwrap_or_default();
        all.get(which).copied().unwrap_or_default()
    }

    /// Sizes of parts, led by how many.
    fn cuts(&mut self) -> Vec<u8> {
        let count = self.byte() % 16;
        (0..count).map_while(|_| self.next()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;

    /// One change of an input: at a place, to a byte; in place of the one there, before it, or
    /// without it.
    type Edit = (Index, u8, u8);

    fn seeds(target: &str) -> Vec<Vec<u8>> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(target);
        let files = fs::read_dir(&folder).expect("a folder of seeds");
        let seeds = files.map(|file| fs::read(file.expect("a seed").path()).expect("a seed"));
        seeds.chain([vec![]]).collect()
    }

    fn edit(mut input: Vec<u8>, edits: Vec<Edit>) -> Vec<u8> {
        for (place, kind, byte) in edits {
            let place = place.index(input.len() + 1);
            match kind {
                0 if place < input.len() => input[place] = byte,
                1 if place < input.len() => drop(input.remove(place)),
                2 => input.truncate(place),
                _ => input.insert(place, byte),
            }
        }
        input
    }

    #[test]
    fn every_seed_holds() {
        for (name, target) in TARGETS {
            seeds(name).iter().for_each(|seed| target(seed));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16_000))]

        #[test]
        fn what_becomes_of_a_seed_holds(
            target in prop::sample::select(TARGETS),
            seed in any::<Index>(),
            edits in prop::collection::vec((any::<Index>(), 0..5_u8, any::<u8>()), 0..12),
        ) {
            let seeds = seeds(target.0);
            let seed = seed.get(&seeds).clone();
            (target.1)(&edit(seed, edits));
        }
    }
}
