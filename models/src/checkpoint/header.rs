//! The safetensors header: eight bytes of length, a JSON object, then the data.
//!
//! The rules are those of the format's reference implementation (data without holes or overlaps, from the end of the
//! header to the end of the file), and in addition no name may appear twice. The header is read by hand rather than
//! with that implementation because its errors name neither file nor tensor.

use super::FORMATS;
use crate::error::{Error, Result};
use hadal_types::DType;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::path::Path;

/// Longest accepted header in bytes, the reference implementation's limit.
pub const MAX_HEADER: u64 = 100_000_000;

/// One tensor as a header declares it, checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The tensor's name.
    pub name: String,
    /// Element format.
    pub dtype: DType,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Its bytes in the file.
    pub range: Range<usize>,
}

/// Checks the safetensors file whose whole content is `bytes`, and lists its tensors in order of their data.
///
/// `file` is for messages. Only the header is read, however long the file is.
pub fn parse_header(file: &Path, bytes: &[u8]) -> Result<Vec<Entry>> {
    let (start, declared) = declared_entries(file, bytes)?;
    let mut end = start;
    let mut names = HashSet::with_capacity(declared.len());
    let mut entries = Vec::with_capacity(declared.len());
    for (name, raw) in &declared {
        let wrong = |expected: String, found: String| damaged(file, Some(name), expected, found);
        if !names.insert(name.as_str()) {
            return Err(wrong("each name once in the header".into(), "it twice".into()));
        }
        let [from, to] = raw.data_offsets;
        let range = locate(start, bytes.len(), from, to).ok_or_else(|| {
            wrong(
                format!("bytes in order and within the data (0..{})", bytes.len() - start),
                format!("bytes {from}..{to}"),
            )
        })?;
        if range.start != end {
            let expected = format!("its data at byte {}, where the tensor before ends", end - start);
            return Err(wrong(expected, format!("it at byte {from}")));
        }
        end = range.end;
        let dtype = format_of(&raw.dtype).ok_or_else(|| Error::UnknownFormat {
            file: file.into(),
            tensor: shorten(name),
            found: shorten(&raw.dtype),
        })?;
        if byte_size(dtype, &raw.shape) != Some(range.len()) {
            let needed = match byte_size(dtype, &raw.shape) {
                Some(n) => format!("{n} bytes for {dtype}{:?}", raw.shape),
                None => format!("a size that fits in memory and whole bytes for {dtype}{:?}", raw.shape),
            };
            return Err(wrong(shorten(&needed), format!("{} bytes", range.len())));
        }
        entries.push(Entry { name: name.clone(), dtype, shape: raw.shape.clone(), range });
    }
    match end == bytes.len() {
        true => Ok(entries),
        false => Err(damaged(
            file,
            None,
            format!("{} bytes of data as the header's tensors add up to", end - start),
            format!("{} bytes", bytes.len() - start),
        )),
    }
}

/// Where the data begins, and the header's entries in order of their data.
fn declared_entries(file: &Path, bytes: &[u8]) -> Result<(usize, Vec<(String, RawEntry)>)> {
    let found = || match bytes {
        [] => "an empty file".into(),
        _ if bytes.starts_with(b"version https://git-lfs") => "a Git LFS pointer instead of the file".into(),
        _ => format!("a file of {} bytes", bytes.len()),
    };
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(damaged(file, None, "8 bytes with the header's length".into(), found()));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        let expected = format!("a header length up to {MAX_HEADER} in the first 8 bytes");
        return Err(damaged(file, None, expected, format!("{length} in {}", found())));
    }
    let Some(header) = usize::try_from(length).ok().and_then(|n| rest.get(..n)) else {
        return Err(damaged(file, None, format!("a header of {length} bytes"), found()));
    };
    let bad_json = |reason: String| damaged(file, None, "a JSON object as header".into(), reason);
    let header_text = std::str::from_utf8(header).map_err(|e| bad_json(format!("no text ({e})")))?;
    let Declared(mut entries) = serde_json::from_str(header_text).map_err(|e| bad_json(shorten(&e.to_string())))?;
    entries.sort_by_key(|(_, raw)| raw.data_offsets);
    Ok((8 + header.len(), entries))
}

/// The part of the file at `from..to` of the data that begins at `start`, if it is one.
fn locate(start: usize, len: usize, from: u64, to: u64) -> Option<Range<usize>> {
    let place = |offset| start.checked_add(usize::try_from(offset).ok()?).filter(|at| *at <= len);
    let (from, to) = (place(from)?, place(to)?);
    (from <= to).then_some(from..to)
}

fn byte_size(dtype: DType, shape: &[usize]) -> Option<usize> {
    let count = shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d as u64))?;
    let bits = count.checked_mul(dtype.bits())?;
    usize::try_from(bits / 8).ok().filter(|_| bits % 8 == 0)
}

fn format_of(name: &str) -> Option<DType> {
    FORMATS.iter().find(|(n, _)| *n == name).map(|(_, dtype)| *dtype)
}

fn damaged(file: &Path, tensor: Option<&String>, expected: String, found: String) -> Error {
    Error::Damaged { file: file.into(), tensor: tensor.map(|n| shorten(n)), expected, found }
}

/// Text from a file as a message may show it: no control characters, no thousands of them.
fn shorten(text: &str) -> String {
    let mut shown: String = text.chars().take(200).flat_map(char::escape_debug).collect();
    shown = shown.replace("\\\"", "\"").replace("\\'", "'");
    if text.chars().nth(200).is_some() {
        shown.push('…');
    }
    shown
}

/// A tensor's entry, not yet believed.
#[derive(Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [u64; 2],
}

/// The header's entries in file order, repeated names included; the free-form `__metadata__` is passed over.
struct Declared(Vec<(String, RawEntry)>);

impl<'de> Deserialize<'de> for Declared {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(DeclaredVisitor).map(Declared)
    }
}

struct DeclaredVisitor;

impl<'de> Visitor<'de> for DeclaredVisitor {
    type Value = Vec<(String, RawEntry)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
            } else {
                let raw = map.next_value_seed(Named(&name))?;
                entries.push((name, raw));
            }
        }
        Ok(entries)
    }
}

/// Reads an entry, and names the tensor in errors.
struct Named<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Named<'_> {
    type Value = RawEntry;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<RawEntry, D::Error> {
        RawEntry::deserialize(deserializer).map_err(|e| D::Error::custom(format!("tensor `{}`: {e}", self.0)))
    }
}
