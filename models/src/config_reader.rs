//! Strict reading of a published `config.json`.
//!
//! A model's `config.rs` asks for each key by name and type; every refusal names the file, the dotted key, what would
//! be accepted and what is there. `null` counts as absent, as it does where these files are written. Sizes have a
//! floor and a ceiling, so that later arithmetic on shapes cannot overflow and nothing is allocated for a nonsense
//! configuration. Which keys were asked for is recorded: [`Config::unread`] lists the rest, so that a key that would
//! change the model cannot be passed over in silence.
//!
//! ```
//! # use hadal_models::config_reader::Config;
//! let config = Config::parse("config.json", br#"{"hidden_size": 64, "rope_scaling": {"factor": 4}, "new": 1}"#)?;
//! let root = config.object();
//! assert_eq!(root.require_usize("hidden_size")?, 64);
//! assert_eq!(root.f64_or("rms_norm_eps", 1e-6)?, 1e-6);
//! let rope = root.optional_object("rope_scaling")?.expect("just written");
//! assert_eq!(rope.require_f64("factor")?, 4.0);
//! assert_eq!(config.unread(), ["new"]);
//! let error = root.require_usize("new_size").unwrap_err().to_string();
//! assert_eq!(error, "config.json: `new_size`: expected a whole number from 1 to 2147483648, found no such key");
//! # Ok::<(), hadal_models::Error>(())
//! ```

use crate::error::{Error, Result};
use crate::json;
use serde_json::{Map, Value};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

/// Largest accepted size or count: no published model comes within a factor of a hundred.
pub const MAX_SIZE: usize = 1 << 31;

/// Largest accepted configuration file, in bytes.
pub const MAX_FILE: u64 = 16 << 20;

/// Most items accepted in a list.
const MAX_LIST: usize = 1 << 20;

/// A parsed configuration file and the keys asked for so far.
#[derive(Debug)]
pub struct Config {
    file: PathBuf,
    root: Map<String, Value>,
    seen: RefCell<BTreeSet<String>>,
}

impl Config {
    /// Reads `path`, or `config.json` in it where it is a folder.
    pub fn read(path: impl AsRef<Path>) -> Result<Config> {
        let path = path.as_ref();
        let file = if path.is_dir() { path.join("config.json") } else { path.to_path_buf() };
        let bytes = json::read_limited(&file, MAX_FILE)?;
        Config::parse(file, &bytes)
    }

    /// Parses `bytes`; `file` is for messages.
    pub fn parse(file: impl Into<PathBuf>, bytes: &[u8]) -> Result<Config> {
        Config::parse_within(file, bytes, MAX_FILE)
    }

    /// Parses at most `limit` bytes; `file` is for messages.
    pub fn parse_within(file: impl Into<PathBuf>, bytes: &[u8], limit: u64) -> Result<Config> {
        let file = file.into();
        if bytes.len() as u64 > limit {
            return Err(Error::FileTooLarge { file, limit });
        }
        let root = json::parse_object(&file, bytes)?;
        Ok(Config { file, root, seen: RefCell::default() })
    }

    /// The outermost object.
    pub fn object(&self) -> Object<'_> {
        Object { config: self, prefix: String::new(), map: &self.root }
    }

    /// The file it came from.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Dotted paths of keys that have a value and that nobody asked for or [ignored](Object::ignore), in file order.
    /// Keys inside an object that nobody asked for are not listed one by one.
    pub fn unread(&self) -> Vec<String> {
        fn walk(map: &Map<String, Value>, prefix: &str, seen: &BTreeSet<String>, out: &mut Vec<String>) {
            for (key, value) in map.iter().filter(|(_, v)| !v.is_null()) {
                let path = format!("{prefix}{key}");
                match value {
                    _ if !seen.contains(&path) => out.push(path),
                    Value::Object(inner) if !seen.contains(&format!("{path}.*")) => {
                        walk(inner, &format!("{path}."), seen, out)
                    }
                    _ => {}
                }
            }
        }
        let mut out = Vec::new();
        walk(&self.root, "", &self.seen.borrow(), &mut out);
        out
    }
}

/// One JSON object of a [`Config`], and its getters.
///
/// `require_*` refuse an absent key, `optional_*` return `None`, `*_or` return a default. A *usize* is a whole number
/// from 1 to [`MAX_SIZE`], a *count* may also be 0.
#[derive(Clone, Debug)]
pub struct Object<'a> {
    config: &'a Config,
    prefix: String,
    map: &'a Map<String, Value>,
}

/// How a configuration spells keys that have two names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Spelling {
    /// As published with checkpoints.
    Published,
    /// As the repositories' own code does.
    Own,
}

impl Spelling {
    /// The one of two names that it has for a key.
    pub fn key(self, published: &'static str, own: &'static str) -> &'static str {
        match self {
            Spelling::Published => published,
            Spelling::Own => own,
        }
    }
}

impl<'a> Object<'a> {
    /// Whether `key` is there and not null. Does not count as reading it.
    pub fn has(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(|v| !v.is_null())
    }

    /// The keys present with a value, in file order. Does not count as reading them.
    pub fn keys(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.map.iter().filter(|(_, v)| !v.is_null()).map(|(k, _)| k.as_str())
    }

    /// Declares that `keys` do not matter to the model (training or generation settings), whatever they hold.
    pub fn ignore(&self, keys: &[&str]) {
        let mut seen = self.config.seen.borrow_mut();
        for key in keys {
            seen.insert(self.path(key));
            seen.insert(format!("{}.*", self.path(key)));
        }
    }

    /// A number from 1 to [`MAX_SIZE`].
    pub fn require_usize(&self, key: &str) -> Result<usize> {
        self.require(key, &whole(&(1..=MAX_SIZE)), self.optional_usize(key))
    }

    /// A number from 1 to [`MAX_SIZE`], or `default` where there is none.
    pub fn usize_or(&self, key: &str, default: usize) -> Result<usize> {
        Ok(self.optional_usize(key)?.unwrap_or(default))
    }

    /// A number from 1 to [`MAX_SIZE`], if there is one.
    pub fn optional_usize(&self, key: &str) -> Result<Option<usize>> {
        self.optional_usize_in(key, 1..=MAX_SIZE)
    }

    /// A number from 0 to [`MAX_SIZE`].
    pub fn require_count(&self, key: &str) -> Result<usize> {
        self.require_usize_in(key, 0..=MAX_SIZE)
    }

    /// A number from 0 to [`MAX_SIZE`], or `default` where there is none.
    pub fn count_or(&self, key: &str, default: usize) -> Result<usize> {
        Ok(self.optional_usize_in(key, 0..=MAX_SIZE)?.unwrap_or(default))
    }

    /// A whole number in `range`.
    pub fn require_usize_in(&self, key: &str, range: RangeInclusive<usize>) -> Result<usize> {
        self.require(key, &whole(&range), self.optional_usize_in(key, range.clone()))
    }

    /// A whole number in `range`, if there is one.
    pub fn optional_usize_in(&self, key: &str, range: RangeInclusive<usize>) -> Result<Option<usize>> {
        let expected = whole(&range);
        self.value(key).map(|v| usize_of(v, &range).ok_or_else(|| self.wrong(key, &expected, v))).transpose()
    }

    /// A finite number; whole numbers are accepted.
    pub fn require_f64(&self, key: &str) -> Result<f64> {
        self.require(key, "a number", self.optional_f64(key))
    }

    /// A finite number, or `default` where there is none.
    pub fn f64_or(&self, key: &str, default: f64) -> Result<f64> {
        Ok(self.optional_f64(key)?.unwrap_or(default))
    }

    /// A finite number, if there is one.
    pub fn optional_f64(&self, key: &str) -> Result<Option<f64>> {
        self.value(key).map(|v| v.as_f64().ok_or_else(|| self.wrong(key, "a number", v))).transpose()
    }

    /// A finite number greater than zero: scales, bases and epsilons.
    pub fn require_positive(&self, key: &str) -> Result<f64> {
        self.require(key, "a number greater than 0", self.optional_positive(key))
    }

    /// A finite number greater than zero, or `default` where there is none.
    pub fn positive_or(&self, key: &str, default: f64) -> Result<f64> {
        Ok(self.optional_positive(key)?.unwrap_or(default))
    }

    /// A finite number greater than zero, if there is one.
    pub fn optional_positive(&self, key: &str) -> Result<Option<f64>> {
        let positive = |v: &Value| v.as_f64().filter(|x| *x > 0.0);
        self.value(key).map(|v| positive(v).ok_or_else(|| self.wrong(key, "a number greater than 0", v))).transpose()
    }

    /// `true` or `false`.
    pub fn require_bool(&self, key: &str) -> Result<bool> {
        self.require(key, "true or false", self.optional_bool(key))
    }

    /// `true` or `false`, or `default` where there is none.
    pub fn bool_or(&self, key: &str, default: bool) -> Result<bool> {
        Ok(self.optional_bool(key)?.unwrap_or(default))
    }

    /// `true` or `false`, if there is one.
    pub fn optional_bool(&self, key: &str) -> Result<Option<bool>> {
        self.value(key).map(|v| v.as_bool().ok_or_else(|| self.wrong(key, "true or false", v))).transpose()
    }

    /// A text.
    pub fn require_str(&self, key: &str) -> Result<&'a str> {
        self.require(key, "a text", self.optional_str(key))
    }

    /// A text, or `default` where there is none.
    pub fn str_or<'d>(&self, key: &str, default: &'d str) -> Result<&'d str>
    where
        'a: 'd,
    {
        Ok(self.optional_str(key)?.unwrap_or(default))
    }

    /// A text, if there is one.
    pub fn optional_str(&self, key: &str) -> Result<Option<&'a str>> {
        self.value(key).map(|v| v.as_str().ok_or_else(|| self.wrong(key, "a text", v))).transpose()
    }

    /// One of `choices`.
    pub fn require_str_in(&self, key: &str, choices: &[&str]) -> Result<&'a str> {
        self.require(key, &one_of(choices), self.optional_str_in(key, choices))
    }

    /// One of `choices`, or `default` where there is none.
    pub fn str_in_or<'d>(&self, key: &str, choices: &[&str], default: &'d str) -> Result<&'d str>
    where
        'a: 'd,
    {
        Ok(self.optional_str_in(key, choices)?.unwrap_or(default))
    }

    /// One of `choices`, if there is one.
    pub fn optional_str_in(&self, key: &str, choices: &[&str]) -> Result<Option<&'a str>> {
        let chosen = |v: &'a Value| v.as_str().filter(|s| choices.contains(s));
        self.value(key).map(|v| chosen(v).ok_or_else(|| self.wrong(key, &one_of(choices), v))).transpose()
    }

    /// An object.
    pub fn require_object(&self, key: &str) -> Result<Object<'a>> {
        self.require(key, "an object", self.optional_object(key))
    }

    /// An object, if there is one.
    pub fn optional_object(&self, key: &str) -> Result<Option<Object<'a>>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let map = value.as_object().ok_or_else(|| self.wrong(key, "an object", value))?;
        Ok(Some(Object { config: self.config, prefix: format!("{}.", self.path(key)), map }))
    }

    /// A list of whole numbers from 0 to [`MAX_SIZE`], if there is one; a single number is a list of one.
    pub fn usize_list(&self, key: &str) -> Result<Option<Vec<usize>>> {
        self.list(key, &whole(&(0..=MAX_SIZE)), |v| usize_of(v, &(0..=MAX_SIZE)))
    }

    /// Rising numbers below `layers`, which may be none.
    pub fn rising(&self, key: &str, layers: usize) -> Result<Vec<usize>> {
        let numbers = self.usize_list(key)?.unwrap_or_default();
        match numbers.is_sorted_by(|a, b| a < b) && numbers.iter().all(|n| *n < layers) {
            true => Ok(numbers),
            false => Err(self.error(key, format!("rising numbers of layers below {layers}"))),
        }
    }

    /// Ids of tokens of a vocabulary of `vocab`, if there are any; a single id is a list of one.
    pub fn token_ids(&self, key: &str, vocab: usize) -> Result<Option<Vec<usize>>> {
        let below = |ids: &Vec<usize>| ids.iter().all(|id| *id < vocab);
        let ids = self.usize_list(key)?;
        let known = ids.as_ref().is_none_or(below);
        let expected = || format!("ids of tokens, which are below the vocabulary's size ({vocab})");
        if known { Ok(ids) } else { Err(self.error(key, expected())) }
    }

    /// A list of numbers, if there is one; a single number is a list of one.
    pub fn f64_list(&self, key: &str) -> Result<Option<Vec<f64>>> {
        self.list(key, "a number", Value::as_f64)
    }

    /// A list of texts, if there is one; a single text is a list of one.
    pub fn str_list(&self, key: &str) -> Result<Option<Vec<&'a str>>> {
        self.list(key, "a text", Value::as_str)
    }

    /// The error that `key` should have been `expected`, for conditions that only the model knows
    /// (`"a multiple of num_attention_heads (32)"`).
    pub fn error(&self, key: &str, expected: impl Into<String>) -> Error {
        let found = self.map.get(key).map_or_else(|| "no such key".into(), json::shown);
        Error::ConfigKey { file: self.config.file.clone(), key: self.path(key), expected: expected.into(), found }
    }

    fn list<T>(&self, key: &str, of: &str, item: impl Fn(&'a Value) -> Option<T>) -> Result<Option<Vec<T>>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let Value::Array(items) = value else {
            let single = item(value).map(|v| vec![v]);
            return single.map(Some).ok_or_else(|| self.wrong(key, &format!("{of}, or a list of such"), value));
        };
        if items.len() > MAX_LIST {
            return Err(self.wrong(key, &format!("a list of at most {MAX_LIST}"), value));
        }
        let read = |(i, v)| item(v).ok_or_else(|| self.wrong(&format!("{key}[{i}]"), of, v));
        items.iter().enumerate().map(read).collect::<Result<_>>().map(Some)
    }

    /// The value of `key` unless absent or null; the key counts as read either way.
    fn value(&self, key: &str) -> Option<&'a Value> {
        self.config.seen.borrow_mut().insert(self.path(key));
        self.map.get(key).filter(|v| !v.is_null())
    }

    fn require<T>(&self, key: &str, expected: &str, found: Result<Option<T>>) -> Result<T> {
        found?.ok_or_else(|| self.error(key, expected))
    }

    fn wrong(&self, key: &str, expected: &str, found: &Value) -> Error {
        Error::ConfigKey {
            file: self.config.file.clone(),
            key: self.path(key),
            expected: expected.into(),
            found: json::shown(found),
        }
    }

    fn path(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }
}

fn usize_of(value: &Value, range: &RangeInclusive<usize>) -> Option<usize> {
    usize::try_from(value.as_u64()?).ok().filter(|n| range.contains(n))
}

fn whole(range: &RangeInclusive<usize>) -> String {
    format!("a whole number from {} to {}", range.start(), range.end())
}

fn one_of(choices: &[&str]) -> String {
    let quoted: Vec<String> = choices.iter().map(|c| format!("{c:?}")).collect();
    match quoted.as_slice() {
        [only] => only.clone(),
        _ => format!("one of {}", quoted.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config::parse("c.json", text.as_bytes()).expect("a valid object")
    }

    fn message<T: std::fmt::Debug>(result: Result<T>) -> String {
        result.expect_err("must be refused").to_string()
    }

    #[test]
    fn values_are_read_by_type() {
        let c = config(r#"{"n": 8, "z": 0, "e": 1e-06, "b": true, "s": "silu", "l": [1, 2], "one": 7, "nil": null}"#);
        let o = c.object();
        assert_eq!(o.require_usize("n").unwrap(), 8);
        assert_eq!(o.require_count("z").unwrap(), 0);
        assert_eq!(o.require_f64("e").unwrap(), 1e-6);
        assert_eq!(o.require_f64("n").unwrap(), 8.0);
        assert_eq!(o.require_positive("e").unwrap(), 1e-6);
        assert!(o.require_bool("b").unwrap());
        assert_eq!(o.require_str_in("s", &["silu", "gelu"]).unwrap(), "silu");
        assert_eq!(o.usize_list("l").unwrap().unwrap(), [1, 2]);
        assert_eq!(o.usize_list("one").unwrap().unwrap(), [7]);
        assert_eq!(o.str_list("s").unwrap().unwrap(), ["silu"]);
    }

    #[test]
    fn null_is_absent() {
        let c = config(r#"{"n": null}"#);
        let o = c.object();
        assert!(!o.has("n"));
        assert_eq!(o.usize_or("n", 3).unwrap(), 3);
        assert!(o.optional_object("n").unwrap().is_none());
        assert_eq!(message(o.require_bool("n")), "c.json: `n`: expected true or false, found null");
        assert!(c.unread().is_empty());
    }

    #[test]
    fn every_wrong_value_is_refused_with_its_place() {
        let c = config(
            r#"{"zero": 0, "neg": -1, "frac": 1.5, "exp": 1e-06, "huge": 2147483649, "over": 99999999999999999999,
                "text": "8", "list": [1, "x"], "inner": {"factor": "two"}}"#,
        );
        let o = c.object();
        for key in ["zero", "neg", "frac", "exp", "huge", "over", "text", "list", "inner", "absent"] {
            let m = message(o.require_usize(key));
            assert!(
                m.starts_with(&format!("c.json: `{key}`: expected a whole number from 1 to 2147483648, found")),
                "{m}"
            );
        }
        for key in ["zero", "neg", "text"] {
            assert!(message(o.require_positive(key)).contains("greater than 0"));
        }
        assert_eq!(
            message(o.usize_list("list")),
            "c.json: `list[1]`: expected a whole number from 0 to 2147483648, found \"x\""
        );
        assert_eq!(
            message(o.usize_list("neg")),
            "c.json: `neg`: expected a whole number from 0 to 2147483648, or a list of such, found -1"
        );
        assert_eq!(
            message(o.require_str_in("text", &["softmax", "sigmoid"])),
            "c.json: `text`: expected one of \"softmax\", \"sigmoid\", found \"8\""
        );
        let inner = o.require_object("inner").unwrap();
        assert_eq!(message(inner.require_f64("factor")), "c.json: `inner.factor`: expected a number, found \"two\"");
        assert_eq!(message(o.optional_object("text")), "c.json: `text`: expected an object, found \"8\"");
        assert!(message(o.optional_bool("zero")).contains("true or false"));
    }

    #[test]
    fn unread_keys_are_listed_by_path() {
        let c = config(r#"{"a": 1, "b": {"x": 1, "y": 2}, "c": {"z": 1}, "d": {"w": 1}, "e": null}"#);
        let o = c.object();
        assert_eq!(c.unread(), ["a", "b", "c", "d"]);
        o.require_usize("a").unwrap();
        o.require_object("b").unwrap().require_usize("x").unwrap();
        o.ignore(&["c"]);
        assert_eq!(c.unread(), ["b.y", "d"]);
    }

    #[test]
    fn bad_files_are_refused() {
        let parse = |bytes: &[u8]| message(Config::parse("c.json", bytes));
        for text in ["", "{", "[1]", "null", r#"{"a": NaN}"#, r#"{"a": 1e999}"#, r#"{"a": 1} x"#, "\u{feff}{}"] {
            assert!(parse(text.as_bytes()).starts_with("c.json: not a valid JSON object"), "{text}");
        }
        assert!(parse(b"{\"\xff\": 1}").contains("not a valid JSON"));
        assert!(parse(br#"{"a": 1, "b": {"k": 1, "k": 2}}"#).contains("\"k\" appears twice"));
        assert!(parse("[".repeat(100_000).as_bytes()).contains("recursion limit"));
        assert!(parse(&vec![b' '; MAX_FILE as usize + 1]).contains("longer than"));
        assert!(message(Config::read("/nonexistent/config.json")).contains("/nonexistent/config.json: reading failed"));
    }
}
