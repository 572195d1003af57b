//! The options of a pool, from the map that a node's supervisor hands down. The map is the whole
//! configuration of the node, so keys that are not ours are none of our business.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use mesh::{BadCertificate, BadOption, Config, Redelivery, Verification};
use rustler::types::map::MapIterator;
use rustler::{Atom, Binary, Encoder, Env, NifResult, Term};

use crate::runtime::MAX_WORKERS;
use crate::settings::bad_option;
use crate::{atoms, settings, terms};

/// What `pool_open/1` is told.
pub(crate) struct Options {
    pub(crate) config: Config,
    /// Certificate and key file; they exist.
    pub(crate) certificate: Option<(PathBuf, PathBuf)>,
    pub(crate) workers: Option<usize>,
    pub(crate) verification: Verification,
}

/// Reads the map; `Err` holds `{error, {bad_option, Key, Value}}`.
pub(crate) fn read<'a>(env: Env<'a>, map: Term<'a>) -> NifResult<Result<Options, Term<'a>>> {
    let pairs = MapIterator::new(map).ok_or(rustler::Error::BadArg)?;
    let mut options = Options {
        config: Config::default(),
        certificate: None,
        workers: None,
        verification: Verification::None,
    };
    match verification(map) {
        Ok(Ok(verification)) => options.verification = verification,
        Ok(Err(bad)) => return Ok(Err(terms::bad_certificate(env, &bad))),
        Err((key, value)) => return Ok(Err(bad_option(env, key.encode(env), value))),
    }
    for (key, value) in pairs {
        if options.set(key, value).is_none() {
            return Ok(Err(bad_option(env, key, value)));
        }
    }
    let has_keep_alive = map.map_get(atoms::keep_alive_interval_ms()).is_ok();
    Ok(match options.config.settle(has_keep_alive) {
        Ok(()) => Ok(options),
        Err(BadOption { key, value }) => {
            let key = Atom::from_bytes(env, key.as_bytes())?.encode(env);
            Err(bad_option(env, key, value.encode(env)))
        }
    })
}

impl Options {
    /// Takes one option; `None` when its value is bad.
    fn set(&mut self, key: Term<'_>, value: Term<'_>) -> Option<()> {
        if atoms::certificate() == key {
            self.certificate = certificate(value)?;
        } else if atoms::runtime_workers() == key {
            let workers = value.decode().ok().filter(|workers| (1..=MAX_WORKERS).contains(workers));
            self.workers = Some(workers?);
        } else if atoms::redelivery() == key {
            self.config.redelivery = redelivery(value)?;
        } else if let Some(name) = option_name(key) {
            self.config.set(name, value.decode().ok()?).ok()?;
        }
        Some(())
    }
}

/// What `verify`, `cacertfile` and `verify_hostname` ask for; `Err` holds the one that is bad.
fn verification(map: Term<'_>) -> Result<Result<Verification, BadCertificate>, (Atom, Term<'_>)> {
    let ca_file = match map.map_get(atoms::cacertfile()) {
        Ok(value) if atoms::undefined() != value => {
            Some(settings::path(value).ok_or((atoms::cacertfile(), value))?)
        }
        _ => None,
    };
    let check_name = match map.map_get(atoms::verify_hostname()) {
        Ok(value) => value.decode().map_err(|_| (atoms::verify_hostname(), value))?,
        Err(_) => true,
    };
    let Ok(rule) = map.map_get(atoms::verify()) else {
        return Ok(Ok(Verification::None));
    };
    settings::pool_verification(rule, ca_file.as_deref(), check_name).ok_or((atoms::verify(), rule))
}

fn redelivery(value: Term<'_>) -> Option<Redelivery> {
    if atoms::at_most_once() == value {
        Some(Redelivery::AtMostOnce)
    } else {
        (atoms::at_least_once() == value).then_some(Redelivery::AtLeastOnce)
    }
}

/// The name of the option that `key` is, if it is one of the pool's.
fn option_name(key: Term<'_>) -> Option<&'static str> {
    let name = key.is_atom().then(|| key.atom_to_string().ok())??;
    Config::OPTIONS.iter().map(|bounds| bounds.key).find(|known| *known == name)
}

/// `undefined` or `{CertFile, KeyFile}`, both binaries.
fn certificate(value: Term<'_>) -> Option<Option<(PathBuf, PathBuf)>> {
    if atoms::undefined() == value {
        return Some(None);
    }
    let (cert_file, key_file) = value.decode::<(Binary<'_>, Binary<'_>)>().ok()?;
    // Not every file's name is UTF-8.
    let path = |name: &Binary<'_>| OsStr::from_bytes(name.as_slice()).into();
    Some(Some((path(&cert_file), path(&key_file))))
}
