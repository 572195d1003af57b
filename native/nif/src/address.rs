//! The address terms that a node holds; what they mean as text is decided in `mesh::Address`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use mesh::{Address, Target};
use rustler::types::tuple::get_tuple;
use rustler::{Binary, Term};

/// The longest text taken for an address: a URL with a path, generously.
const MAX_TEXT: usize = 2_048;
/// Addresses of one listener.
const MAX_SOCKETS: usize = 64;

/// Reads `{IpTuple, Port}`, `{Host, Port}`, or a text with host and perhaps port or an endpoint
/// URL; texts are binaries or lists of characters. `None`: it is none of them.
pub(crate) fn target(term: Term<'_>) -> Option<Target> {
    let address = match text(term) {
        Some(text) => Address::parse(&text)?,
        None => pair(term)?,
    };
    Some(Target { address, given: term.to_binary().as_slice().into() })
}

fn pair(term: Term<'_>) -> Option<Address> {
    let (host, port) = term.decode::<(Term<'_>, Term<'_>)>().ok()?;
    let port = number(port)?;
    match text(host) {
        Some(host) => Address::new(&host, port),
        None => Address::new(&ip(host)?.to_string(), port),
    }
}

/// Reads a list of `{IpAddress, Port}`, the port 0 too. `None`: it is none, or too long.
pub(crate) fn sockets(mut list: Term<'_>) -> Option<Vec<SocketAddr>> {
    let mut addresses = Vec::new();
    while !list.is_empty_list() {
        let (head, tail) = list.list_get_cell().ok()?;
        let (host, port) = head.decode::<(Term<'_>, Term<'_>)>().ok()?;
        addresses.push(SocketAddr::new(ip(host)?, number(port)?));
        if addresses.len() > MAX_SOCKETS {
            return None;
        }
        list = tail;
    }
    (!addresses.is_empty()).then_some(addresses)
}

fn ip(term: Term<'_>) -> Option<IpAddr> {
    let parts = get_tuple(term).ok()?;
    if let Some(octets) = numbers::<u8, 4>(&parts) {
        return Some(Ipv4Addr::from(octets).into());
    }
    numbers::<u16, 8>(&parts).map(|segments| Ipv6Addr::from(segments).into())
}

fn numbers<T: TryFrom<u32>, const N: usize>(terms: &[Term<'_>]) -> Option<[T; N]> {
    let numbers: Option<Vec<T>> = terms.iter().map(|term| number(*term)).collect();
    numbers?.try_into().ok()
}

/// By way of `u32`: rustler decodes the narrower types by cutting bits off, and {127,0,0,257}
/// would be the machine itself.
pub(crate) fn number<T: TryFrom<u32>>(term: Term<'_>) -> Option<T> {
    T::try_from(term.decode().ok()?).ok()
}

/// A short text: a binary or a list of characters.
pub(crate) fn text(term: Term<'_>) -> Option<String> {
    if let Ok(binary) = term.decode::<Binary<'_>>() {
        let short = Some(binary.as_slice()).filter(|bytes| bytes.len() <= MAX_TEXT)?;
        return std::str::from_utf8(short).ok().map(str::to_owned);
    }
    characters(term)
}

/// A list of characters, read no further than a text may be long.
fn characters(mut list: Term<'_>) -> Option<String> {
    let mut text = String::new();
    while !list.is_empty_list() {
        let (head, tail) = list.list_get_cell().ok()?;
        text.push(char::from_u32(head.decode().ok()?)?);
        if text.len() > MAX_TEXT {
            return None;
        }
        list = tail;
    }
    Some(text)
}
