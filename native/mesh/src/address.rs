//! Every written form of a peer's address, and the socket addresses that it stands for.

use std::fmt;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;

use http::uri::Authority;
use tokio::sync::Semaphore;

use crate::Error;

/// The port of a mesh peer whose address names none.
const DEFAULT_PORT: u16 = 4433;
/// Socket addresses of one name that are tried at most: enough for any real host, and a bound on
/// what one DNS answer makes us do.
const MAX_ADDRESSES: usize = 16;
/// Name look-ups at once. Each holds a thread for as long as the system's resolver likes, which
/// no deadline of ours can end.
const MAX_LOOKUPS: usize = 16;
/// The longest host name (RFC 1035, section 2.3.4).
const MAX_NAME_BYTES: usize = 255;

/// Where a peer listens: a host, by number or by name, and a UDP port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    host: Host,
    port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Host {
    Ip(IpAddr),
    Name(Box<str>),
}

impl Address {
    /// The address of a host given by name or number (`"::1"`, `"[::1]"`, `"host"`) and a port.
    /// `None`: it is no host, or the port is 0.
    pub fn new(host: &str, port: u16) -> Option<Self> {
        let host = parse_host(host)?;
        (port != 0).then_some(Self { host, port })
    }

    /// Reads `host`, `host:port`, `[v6]:port`, a bare IP address, or an `https` URL of these, with
    /// or without a path. The port defaults to 4433. `None`: it is none of them.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(host) = parse_ip(text) {
            return Some(Self { host: Host::Ip(host), port: DEFAULT_PORT });
        }
        let authority: Authority = authority_of(text)?.parse().ok()?;
        if authority.as_str().contains('@') {
            return None;
        }
        let port = match authority.port() {
            Some(port) => port.as_u16(),
            // Something follows the host, and it is no port.
            None if authority.as_str() != authority.host() => return None,
            None => DEFAULT_PORT,
        };
        Self::new(authority.host(), port)
    }

    /// The name for TLS server name indication: the host, without port or brackets.
    pub(crate) fn server_name(&self) -> String {
        match &self.host {
            Host::Ip(ip) => ip.to_string(),
            Host::Name(name) => name.to_string(),
        }
    }
}

#[cfg(any(test, feature = "fuzzing"))]
impl Address {
    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(ip) => SocketAddr::new(*ip, self.port).fmt(f),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        let address = canonical(address);
        Self { host: Host::Ip(address.ip()), port: address.port() }
    }
}

/// The part of a URL or a bare address that names host and port.
fn authority_of(text: &str) -> Option<&str> {
    let rest = match text.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => rest,
        Some(_) => return None,
        None => return Some(text),
    };
    rest.split(['/', '?', '#']).next()
}

fn parse_host(host: &str) -> Option<Host> {
    if let Some(ip) = parse_ip(host) {
        return Some(Host::Ip(ip));
    }
    let is_name = !host.is_empty()
        && host.len() <= MAX_NAME_BYTES
        && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    // Case makes no difference (RFC 4343).
    is_name.then(|| Host::Name(host.to_ascii_lowercase().into()))
}

fn parse_ip(host: &str) -> Option<IpAddr> {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    let ip: IpAddr = bare.parse().ok()?;
    Some(ip.to_canonical())
}

/// An IPv4 address that came mapped into IPv6 (RFC 4291, section 2.5.5.2) as what it is.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Turns addresses into socket addresses, with the system's own resolver.
#[derive(Clone, Debug)]
pub(crate) struct Resolver {
    lookups: Arc<Semaphore>,
}

impl Resolver {
    pub(crate) fn new() -> Self {
        Self { lookups: Arc::new(Semaphore::new(MAX_LOOKUPS)) }
    }

    /// All socket addresses of `address` in the order in which they are to be tried.
    pub(crate) async fn resolve(&self, address: &Address) -> Result<Vec<SocketAddr>, Error> {
        let name = match &address.host {
            Host::Ip(ip) => return Ok(vec![SocketAddr::new(*ip, address.port)]),
            Host::Name(name) => name.clone(),
        };
        let turn = self.lookups.clone().acquire_owned().await.map_err(|_| Error::Cancelled)?;
        let port = address.port;
        let lookup = tokio::task::spawn_blocking(move || {
            // Held until the resolver is done, even when nobody waits for it any more: that is
            // what bounds the threads a dead name server can hold.
            let _turn = turn;
            (&*name, port).to_socket_addrs().map(Iterator::collect)
        });
        match lookup.await {
            Ok(Ok(found)) => non_empty(interleave(found)),
            Ok(Err(_)) => Err(Error::NameNotFound),
            Err(_) => Err(Error::Cancelled),
        }
    }
}

fn non_empty(addresses: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, Error> {
    if addresses.is_empty() { Err(Error::NameNotFound) } else { Ok(addresses) }
}

/// Alternates address families, IPv6 first, keeping the resolver's order within each
/// (RFC 8305, section 4).
fn interleave(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let (v6, v4): (Vec<_>, Vec<_>) = addresses.into_iter().partition(SocketAddr::is_ipv6);
    let (mut v6, mut v4) = (v6.into_iter(), v4.into_iter());
    let mut mixed = Vec::new();
    while mixed.len() < MAX_ADDRESSES {
        let pair = [v6.next(), v4.next()];
        if pair.iter().all(Option::is_none) {
            break;
        }
        mixed.extend(pair.into_iter().flatten());
    }
    mixed
}

#[cfg(test)]
impl Resolver {
    /// All turns, for a test that wants nobody to have one.
    pub(crate) fn turns(&self) -> tokio::sync::OwnedSemaphorePermit {
        let most = u32::try_from(MAX_LOOKUPS).expect("a number");
        self.lookups.clone().try_acquire_many_owned(most).expect("all turns")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(host: &str, port: u16) -> Option<Address> {
        let address = Address::new(host, port);
        assert!(address.is_some(), "{host}");
        address
    }

    #[test]
    fn reads_every_form_seen_in_the_field() {
        for (text, host, port) in [
            ("host:4434", "host", 4434),
            ("host", "host", DEFAULT_PORT),
            ("[::1]:4434", "::1", 4434),
            ("[::1]", "::1", DEFAULT_PORT),
            ("::1", "::1", DEFAULT_PORT),
            ("127.0.0.1:4434", "127.0.0.1", 4434),
            ("127.0.0.1", "127.0.0.1", DEFAULT_PORT),
            ("https://host:4434", "host", 4434),
            ("https://host:443", "host", 443),
            ("https://host", "host", DEFAULT_PORT),
            ("https://host/a/path?q=1#f", "host", DEFAULT_PORT),
            ("HTTPS://node-1.example_x.org:9/", "node-1.example_x.org", 9),
            ("https://[fe80::2]:4434/x", "fe80::2", 4434),
            ("Host", "hoST", DEFAULT_PORT),
            ("[::ffff:127.0.0.1]:1", "127.0.0.1", 1),
        ] {
            assert_eq!(Address::parse(text), address(host, port), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_address() {
        let long = "a".repeat(MAX_NAME_BYTES + 1);
        for text in [
            "",
            ":",
            ":4433",
            "host:",
            "host:0",
            "host:65536",
            "host:http",
            "ho st",
            "host\n",
            "http://host",
            "https://",
            "https:///path",
            "user@host",
            "https://user@host:1",
            "host:1:2",
            "[::1",
            "[::1]4433",
            "h\u{f6}st",
            "a/b",
            &long,
        ] {
            assert_eq!(Address::parse(text), None, "{text:?}");
        }
        for (host, port) in [("host:1", 1), ("", 1), ("host", 0), ("a/b", 1), ("a b", 1)] {
            assert_eq!(Address::new(host, port), None, "{host:?}");
        }
    }

    #[test]
    fn families_take_turns_and_ipv6_begins() {
        let socket = |text: &str| text.parse().expect("a socket address");
        let mixed = interleave(vec![
            socket("1.1.1.1:1"),
            socket("2.2.2.2:1"),
            socket("[::1]:1"),
            socket("[::2]:1"),
            socket("[::3]:1"),
        ]);
        let expected: Vec<SocketAddr> =
            ["[::1]:1", "1.1.1.1:1", "[::2]:1", "2.2.2.2:1", "[::3]:1"].map(socket).to_vec();
        assert_eq!(mixed, expected);
    }
}
