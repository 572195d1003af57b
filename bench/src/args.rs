//! The command line: a command, then `--key value` pairs.

use std::collections::HashMap;
use std::str::FromStr;

/// A command and its options.
pub(crate) struct Args {
    pub(crate) command: String,
    options: HashMap<String, String>,
}

impl Args {
    /// Reads the words after the program's name.
    pub(crate) fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let command = words.next().ok_or("no command")?;
        let mut options = HashMap::new();
        while let Some(word) = words.next() {
            let key = word.strip_prefix("--").ok_or_else(|| format!("no option: {word}"))?;
            let value = words.next().ok_or_else(|| format!("{word}: value missing"))?;
            options.insert(key.to_owned(), value);
        }
        Ok(Self { command, options })
    }

    /// The value of an option that must be given.
    pub(crate) fn get<T: FromStr>(&self, key: &str) -> Result<T, String> {
        let value = self.options.get(key).ok_or_else(|| format!("--{key} is missing"))?;
        value.parse().map_err(|_| format!("--{key} cannot be {value}"))
    }

    /// The value of an option that may be left out.
    pub(crate) fn find<T: FromStr>(&self, key: &str) -> Result<Option<T>, String> {
        self.options.contains_key(key).then(|| self.get(key)).transpose()
    }

    /// The same with a default.
    pub(crate) fn get_or<T: FromStr>(&self, key: &str, default: T) -> Result<T, String> {
        Ok(self.find(key)?.unwrap_or(default))
    }
}
