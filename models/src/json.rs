//! JSON from outside: read with a size limit, and refused where it is ambiguous.
//!
//! `serde_json` alone keeps the last of two equal keys. In a configuration that hides an edit, and in a checkpoint
//! header it hides a tensor, so here a repeated key is an error. Nesting is limited by `serde_json` (128 levels).

use crate::error::{Error, Result};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

/// Reads a whole file of at most `limit` bytes.
pub(crate) fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let failed = |source| Error::Io { file: path.into(), doing: "reading", source };
    // A pipe without a writer would be waited for without end.
    if path.metadata().map_err(failed)?.file_type().is_fifo() {
        return Err(failed(std::io::Error::other("a pipe, not a file")));
    }
    let mut bytes = Vec::new();
    // One byte more than allowed tells a file at the limit from a longer one, even one that grows meanwhile.
    File::open(path).map_err(failed)?.take(limit + 1).read_to_end(&mut bytes).map_err(failed)?;
    match bytes.len() as u64 > limit {
        true => Err(Error::FileTooLarge { file: path.into(), limit }),
        false => Ok(bytes),
    }
}

/// Parses `bytes` as one JSON object without repeated keys; `file` is for messages.
pub(crate) fn parse_object(file: &Path, bytes: &[u8]) -> Result<Map<String, Value>> {
    let Strict(value) =
        serde_json::from_slice(bytes).map_err(|e| Error::Json { file: file.into(), reason: e.to_string() })?;
    match value {
        Value::Object(map) => Ok(map),
        other => Err(Error::Json { file: file.into(), reason: format!("expected an object, found {}", shown(&other)) }),
    }
}

/// A value as a message shows it: its kind, and itself where that is short.
pub(crate) fn shown(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(b) => b.to_string(),
        Value::Number(n) => n.to_string(),
        Value::String(s) if s.chars().count() <= 60 => format!("{s:?}"),
        Value::String(s) => format!("{:?}…", s.chars().take(60).collect::<String>()),
        Value::Array(items) => match &items[..] {
            few if few.len() <= 3 && !few.iter().any(Value::is_array) => {
                format!("[{}]", few.iter().map(shown).collect::<Vec<_>>().join(", "))
            }
            _ => format!("a list of {}", items.len()),
        },
        Value::Object(map) => format!("an object with {} keys", map.len()),
    }
}

/// A JSON value none of whose objects repeats a key.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> std::result::Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, v: bool) -> std::result::Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_u64<E>(self, v: u64) -> std::result::Result<Value, E> {
        Ok(v.into())
    }

    fn visit_i64<E>(self, v: i64) -> std::result::Result<Value, E> {
        Ok(v.into())
    }

    fn visit_f64<E: serde::de::Error>(self, v: f64) -> std::result::Result<Value, E> {
        Number::from_f64(v).map(Value::Number).ok_or_else(|| E::custom(format!("{v} is not a finite number")))
    }

    fn visit_str<E>(self, v: &str) -> std::result::Result<Value, E> {
        Ok(Value::String(v.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(Strict(item)) = seq.next_element()? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> std::result::Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            let Strict(value) = access.next_value()?;
            if map.contains_key(&key) {
                return Err(A::Error::custom(format!("the key {} appears twice", shown(&key.into()))));
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}
