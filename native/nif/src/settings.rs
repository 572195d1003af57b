//! The option lists of connections and listeners, `[{Key, Value}]`. Unlike a pool's map, a list
//! is for us alone: a key that is not known is refused by name.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mesh::{BadCertificate, Identity, KeyRule, Settings, Transport, Verification};
use mesh::{load_roots, shared_roots, system_roots};
use rustler::{Binary, Encoder, Env, Term};

use crate::address::text;
use crate::{atoms, terms};

/// Certificates besides its own that a peer may show, unless told otherwise.
const DEFAULT_DEPTH: usize = 10;
/// The longest path that the kernel takes, without the zero at its end.
const MAX_PATH: usize = 4_095;

/// Why a list of options is refused, as `{error, Reason}`.
pub(crate) type Refused<'a> = Term<'a>;

/// The options as they are given; files are read when all of them are known.
#[derive(Default)]
struct Given {
    transport: Transport,
    cert: Option<Vec<Vec<u8>>>,
    key: Option<Vec<u8>>,
    certfile: Option<PathBuf>,
    keyfile: Option<PathBuf>,
    cacertfile: Option<PathBuf>,
    alpn: Option<Vec<Vec<u8>>>,
    verify: Verify,
    server_name: Option<String>,
    skip_name: bool,
    depth: Option<usize>,
    has_keep_alive: bool,
}

#[derive(Default)]
enum Verify {
    #[default]
    None,
    Peer,
    Key(KeyRule),
}

/// Certificate and key file of an option list.
pub(crate) type Files = (PathBuf, PathBuf);

/// Reads a list of options, and the files that it names; tells those of the certificate too, so
/// that they can be read again. Blocks.
pub(crate) fn read<'a>(
    env: Env<'a>,
    mut list: Term<'a>,
) -> Result<(Settings, Option<Files>), Refused<'a>> {
    let mut given = Given::default();
    while !list.is_empty_list() {
        let (option, rest) = list.list_get_cell().map_err(|_| bad_options(env, list))?;
        let Ok((key, value)) = option.decode::<(Term<'a>, Term<'a>)>() else {
            return Err(refused(env, atoms::unknown_option(), option));
        };
        match given.set(key, value) {
            Some(true) => {}
            Some(false) => return Err(refused(env, atoms::unknown_option(), key)),
            None => return Err(bad_option(env, key, value)),
        }
        list = rest;
    }
    let has_keep_alive = given.has_keep_alive;
    if let Err(bad) = given.transport.settle(has_keep_alive) {
        let value = bad.value.encode(env);
        return Err(bad_option(env, atoms::keep_alive_interval_ms().encode(env), value));
    }
    let files = given.files();
    let settings = given.settings().map_err(|bad| terms::bad_certificate(env, &bad))?;
    Ok((settings, files))
}

impl Given {
    /// Takes one option; `Some(false)`: there is none of that name; `None`: its value is bad.
    fn set(&mut self, key: Term<'_>, value: Term<'_>) -> Option<bool> {
        let name = key.is_atom().then(|| key.atom_to_string().ok()).flatten();
        match name.as_deref().unwrap_or_default() {
            "cert" => match file_name(value) {
                Some(path) => self.certfile = Some(path),
                None => self.cert = Some(certificates(value)?),
            },
            "key" => match file_name(value) {
                Some(path) => self.keyfile = Some(path),
                None => self.key = Some(private_key(value)?),
            },
            "certfile" => self.certfile = Some(path(value)?),
            "keyfile" => self.keyfile = Some(path(value)?),
            "cacertfile" => self.cacertfile = Some(path(value)?),
            "alpn" => self.alpn = Some(protocols(value)?),
            "verify" => self.verify = verify(value)?,
            "depth" => self.depth = Some(value.decode().ok()?),
            "server_name_indication" if atoms::disable() == value => self.skip_name = true,
            "server_name_indication" => self.server_name = Some(text(value)?),
            name => {
                self.has_keep_alive |= name == "keep_alive_interval_ms";
                return set_transport(&mut self.transport, name, value);
            }
        }
        Some(true)
    }

    /// A certificate file alone holds the key too.
    fn files(&self) -> Option<Files> {
        let cert = self.certfile.clone()?;
        let key = self.keyfile.clone().unwrap_or_else(|| cert.clone());
        Some((cert, key))
    }

    fn settings(self) -> Result<Settings, BadCertificate> {
        let files = self.files();
        let identity = match (self.cert, self.key, files) {
            (Some(chain), Some(key), _) => Some(Identity::from_der(chain, key)?),
            (_, _, Some((cert, key))) => Some(Identity::load(&cert, &key)?),
            _ => None,
        };
        let verification = match self.verify {
            Verify::None => Verification::None,
            Verify::Key(rule) => Verification::Key(rule),
            Verify::Peer => Verification::Peer {
                roots: shared_roots(match self.cacertfile.as_deref().map(load_roots) {
                    Some(roots) => roots?,
                    None => system_roots(),
                }),
                check_name: !self.skip_name,
                max_depth: self.depth.unwrap_or(DEFAULT_DEPTH),
            },
        };
        let mut settings = Settings {
            transport: self.transport,
            identity,
            verification,
            server_name: self.server_name,
            ..Settings::default()
        };
        if let Some(alpn) = self.alpn {
            settings.alpn = alpn;
        }
        Ok(settings)
    }
}

/// Sets a numeric option; as [`Given::set`].
fn set_transport(transport: &mut Transport, name: &str, value: Term<'_>) -> Option<bool> {
    if !Transport::OPTIONS.iter().any(|bounds| bounds.key == name) {
        return Some(false);
    }
    transport.set(name, value.decode().ok()?).ok()
}

/// The pool's verification: `none`, `peer`, `{spki_sha256, Hash}`, `{node_id, spki_sha256}` or
/// `{node_id, ed25519}`, and the CA file of `peer`. Blocks. `None`: it is none of these.
pub(crate) fn pool_verification(
    rule: Term<'_>,
    ca_file: Option<&Path>,
    check_name: bool,
) -> Option<Result<Verification, BadCertificate>> {
    let roots = || ca_file.map_or_else(|| Ok(system_roots()), load_roots);
    Some(match verify(rule)? {
        Verify::None => Ok(Verification::None),
        Verify::Key(rule) => Ok(Verification::Key(rule)),
        Verify::Peer => roots().map(|roots| Verification::Peer {
            roots: Arc::new(roots),
            check_name,
            max_depth: DEFAULT_DEPTH,
        }),
    })
}

fn verify(value: Term<'_>) -> Option<Verify> {
    if let Ok((kind, rule)) = value.decode::<(Term<'_>, Term<'_>)>() {
        return Some(Verify::Key(if atoms::spki_sha256() == kind {
            KeyRule::SpkiSha256(rule.decode::<Binary<'_>>().ok()?.as_slice().try_into().ok()?)
        } else if atoms::node_id() != kind {
            return None;
        } else if atoms::spki_sha256() == rule {
            KeyRule::NodeSpkiSha256
        } else if atoms::ed25519() == rule {
            KeyRule::NodeEd25519
        } else {
            return None;
        }));
    }
    match value.atom_to_string().ok()?.as_str() {
        "none" | "verify_none" => Some(Verify::None),
        "peer" | "verify_peer" => Some(Verify::Peer),
        _ => None,
    }
}

/// A file's name where DER may stand too, as nodes in the field have it. DER begins with a sequence
/// (0x30) and its length, behind which no text goes on: a certificate's length is no UTF-8, and in
/// a key, the byte after it is a control character.
fn file_name(value: Term<'_>) -> Option<PathBuf> {
    text(value)
        .filter(|name| !name.is_empty() && !name.chars().any(char::is_control))
        .map(PathBuf::from)
}

/// One DER certificate or a chain of them, the own first.
fn certificates(value: Term<'_>) -> Option<Vec<Vec<u8>>> {
    let der = |term: Term<'_>| Some(term.decode::<Binary<'_>>().ok()?.as_slice().to_vec());
    let chain: Vec<_> = match der(value) {
        Some(certificate) => vec![certificate],
        None => list(value)?.into_iter().map(der).collect::<Option<_>>()?,
    };
    (!chain.is_empty()).then_some(chain)
}

/// A DER key, or `{Type, Der}` as `ssl` has it.
fn private_key(value: Term<'_>) -> Option<Vec<u8>> {
    let der = value.decode::<(Term<'_>, Term<'_>)>().map_or(value, |(_type, der)| der);
    Some(der.decode::<Binary<'_>>().ok()?.as_slice().to_vec())
}

/// Protocol names as strings or binaries, the preferred first; 1 to 255 bytes each (RFC 7301,
/// section 3.1).
fn protocols(value: Term<'_>) -> Option<Vec<Vec<u8>>> {
    let names: Vec<Vec<u8>> = list(value)?
        .into_iter()
        .map(|name| Some(text(name)?.into_bytes()).filter(|name| (1..=255).contains(&name.len())))
        .collect::<Option<_>>()?;
    (!names.is_empty()).then_some(names)
}

/// The name of a file, as a binary, which need not be UTF-8, or a list of characters.
pub(crate) fn path(value: Term<'_>) -> Option<PathBuf> {
    let name = match value.decode::<Binary<'_>>() {
        Ok(raw) => OsStr::from_bytes(raw.as_slice()).to_owned(),
        Err(_) => text(value)?.into(),
    };
    let is_name = (1..=MAX_PATH).contains(&name.len()) && !name.as_bytes().contains(&0);
    is_name.then(|| name.into())
}

/// The elements of a short proper list.
fn list(mut list: Term<'_>) -> Option<Vec<Term<'_>>> {
    const MOST: usize = 64;
    let mut elements = Vec::new();
    while !list.is_empty_list() {
        let (head, tail) = list.list_get_cell().ok()?;
        elements.push(head);
        if elements.len() > MOST {
            return None;
        }
        list = tail;
    }
    Some(elements)
}

pub(crate) fn bad_option<'a>(env: Env<'a>, key: Term<'a>, value: Term<'a>) -> Refused<'a> {
    (atoms::error(), (atoms::bad_option(), key, value)).encode(env)
}

fn bad_options<'a>(env: Env<'a>, rest: Term<'a>) -> Refused<'a> {
    refused(env, atoms::bad_options(), rest)
}

fn refused<'a>(env: Env<'a>, why: rustler::Atom, what: Term<'a>) -> Refused<'a> {
    (atoms::error(), (why, what)).encode(env)
}
