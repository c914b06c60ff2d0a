//! The GGUF container: metadata by key, tensors by name, then the data.
//!
//! ```text
//! "GGUF", version u32, tensors u64, keys u64
//! key:    text, type u32, value                        text = length u64, bytes
//! tensor: text, axes u32, sizes u64…, format u32, offset u64      innermost size first
//! padding to the alignment, data
//! ```
//!
//! Every count is held against the bytes that are left before anything is allocated for it, and every tensor's bytes
//! against the file before they can be reached. No two tensors share bytes, so that what is made of them is bounded by
//! the file.

use crate::checkpoint::blocks::BlockFormat;
use crate::checkpoint::recipe::Layout;
use crate::error::{Error, Result};
use hadal_types::DType;
use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::path::Path;

/// Most axes of a tensor.
const MAX_AXES: u32 = 4;

/// Longest key or name, in bytes.
const MAX_NAME: u64 = 1 << 12;

/// The tensor of divisors of frequencies.
const FREQUENCIES: &str = "rope_freqs.weight";

/// A value of the metadata.
#[derive(Clone, PartialEq, Debug)]
pub enum Value {
    /// Any whole number.
    Int(i128),
    /// A real.
    Real(f64),
    /// A truth value.
    Bool(bool),
    /// A text; bytes that are no UTF-8 are replaced.
    Text(String),
    /// Whole numbers or truth values.
    Ints(Vec<i64>),
    /// Reals.
    Reals(Vec<f32>),
    /// Texts.
    Texts(Vec<String>),
}

/// A tensor as the file declares it, checked.
#[derive(Clone, PartialEq, Debug)]
pub struct Declared {
    /// Its name.
    pub name: String,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Element format.
    pub layout: Layout,
    /// Its bytes in the file.
    pub range: Range<usize>,
}

impl Declared {
    /// Rows: all axes but the last together.
    pub fn rows(&self) -> usize {
        self.shape[..self.shape.len() - 1].iter().product()
    }

    /// The last axis.
    pub fn columns(&self) -> usize {
        self.shape[self.shape.len() - 1]
    }
}

/// What a file says before its data.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Head {
    /// The metadata.
    pub metadata: BTreeMap<String, Value>,
    /// The tensors, in file order, but for the next.
    pub tensors: Vec<Declared>,
    /// What the frequencies of pairs are divided by, which files keep as a tensor.
    pub frequencies: Option<Vec<f32>>,
}

/// Reads the head of a file whose whole content is `bytes`; `file` is for messages.
pub fn read_head(file: &Path, bytes: &[u8]) -> Result<Head> {
    let mut r = Reader { file, bytes, at: 0 };
    if r.take(4, "the letters GGUF")? != b"GGUF" {
        return Err(r.damaged(None, "the letters GGUF at the beginning", "others"));
    }
    let version = r.u32("a version")?;
    if !matches!(version, 2 | 3) {
        let swapped = matches!(version.swap_bytes(), 1..=3);
        let found = if swapped { "a file for big-endian machines".into() } else { format!("version {version}") };
        return Err(r.damaged(None, "version 2 or 3 of GGUF", &found));
    }
    let tensors = r.count(24, "a number of tensors")?;
    let keys = r.count(13, "a number of keys")?;
    let mut metadata = BTreeMap::new();
    for _ in 0..keys {
        let key = r.name("a key")?;
        let kind = r.u32("the type of a value")?;
        let value = r.value(&key, kind)?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(r.damaged(None, "each key once", &format!("`{key}` twice")));
        }
    }
    let alignment = match metadata.get("general.alignment") {
        None => 32,
        Some(Value::Int(n)) if (1..=1 << 16).contains(n) && *n % 8 == 0 => *n as usize,
        Some(_) => {
            return Err(r.damaged(None, "`general.alignment` to be a multiple of 8, at most 65536", "another value"));
        }
    };
    let mut declared = Vec::with_capacity(tensors);
    let mut names = HashSet::with_capacity(tensors);
    for _ in 0..tensors {
        let (name, shape, format, offset) = r.tensor()?;
        if !names.insert(name.clone()) {
            return Err(r.damaged(Some(&name), "each name once", "it twice"));
        }
        declared.push((name, shape, format, offset));
    }
    let start = r.at.next_multiple_of(alignment);
    let place = |(name, shape, format, offset): (String, Vec<usize>, u32, u64)| {
        let layout = layout_of(format).ok_or_else(|| Error::UnknownBlocks {
            file: file.into(),
            tensor: name.clone(),
            format,
        })?;
        let (columns, rows) = (shape[shape.len() - 1], shape[..shape.len() - 1].iter().product::<usize>());
        let Some(size) = layout.row_bytes(columns).and_then(|n| n.checked_mul(rows)) else {
            return Err(r.damaged(Some(&name), "rows of whole blocks", &format!("rows of {columns} elements")));
        };
        let from = usize::try_from(offset).ok().and_then(|o| start.checked_add(o));
        let range = from.and_then(|from| Some(from..from.checked_add(size)?)).filter(|r| r.end <= bytes.len());
        let Some(range) = range.filter(|r| (r.start - start).is_multiple_of(alignment)) else {
            let data = bytes.len().saturating_sub(start);
            let found = format!("{size} bytes at byte {offset}");
            return Err(r.damaged(
                Some(&name),
                &format!("its bytes within the {data} of the data, aligned to {alignment}"),
                &found,
            ));
        };
        Ok(Declared { name, shape, layout, range })
    };
    let tensors: Vec<Declared> = declared.into_iter().map(place).collect::<Result<_>>()?;
    let mut order: Vec<&Declared> = tensors.iter().collect();
    order.sort_by_key(|t| t.range.start);
    if let Some([first, second]) = order.array_windows().find(|[a, b]| b.range.start < a.range.end) {
        let found = format!("some that `{}` has too", shown(&first.name));
        return Err(r.damaged(Some(&second.name), "bytes of its own", &found));
    }
    let (tables, tensors): (Vec<_>, Vec<_>) = tensors.into_iter().partition(|t| t.name == FREQUENCIES);
    let frequencies = tables.first().map(|t| {
        let stored = &bytes[t.range.clone()];
        let plain = t.layout == Layout::Plain(DType::F32);
        stored.as_chunks::<4>().0.iter().filter(|_| plain).map(|b| f32::from_le_bytes(*b)).collect()
    });
    Ok(Head { metadata, tensors, frequencies })
}

fn layout_of(format: u32) -> Option<Layout> {
    Some(Layout::Plain(match format {
        0 => DType::F32,
        1 => DType::F16,
        24 => DType::I8,
        26 => DType::I32,
        27 => DType::I64,
        28 => DType::F64,
        30 => DType::BF16,
        other => return BlockFormat::of_ggml(other).map(Layout::Blocks),
    }))
}

struct Reader<'a> {
    file: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn damaged(&self, tensor: Option<&str>, expected: &str, found: &str) -> Error {
        let tensor = tensor.map(shown);
        Error::Damaged { file: self.file.into(), tensor, expected: expected.into(), found: found.into() }
    }

    fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8]> {
        let Some(found) = self.bytes.get(self.at..).and_then(|rest| rest.get(..n)) else {
            return Err(self.damaged(None, &format!("{what} at byte {}", self.at), "the end of the file"));
        };
        self.at += n;
        Ok(found)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N, what)?);
        Ok(out)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A count of things of at least `least` bytes each, all of which must still fit into the file.
    fn count(&mut self, least: usize, what: &str) -> Result<usize> {
        let n = self.u64(what)?;
        let room = (self.bytes.len() - self.at) / least;
        match usize::try_from(n).ok().filter(|n| *n <= room) {
            Some(n) => Ok(n),
            None => Err(self.damaged(None, &format!("{what} that fits into the file"), &n.to_string())),
        }
    }

    fn text(&mut self, what: &str) -> Result<String> {
        let n = self.count(1, what)?;
        Ok(String::from_utf8_lossy(self.take(n, what)?).into_owned())
    }

    fn name(&mut self, what: &str) -> Result<String> {
        let start = self.at;
        let text = self.text(what)?;
        match text.is_empty() || text.len() as u64 > MAX_NAME {
            true => Err(self.damaged(
                None,
                &format!("{what} of 1 to {MAX_NAME} bytes at byte {start}"),
                &format!("{}", text.len()),
            )),
            false => Ok(text),
        }
    }

    fn value(&mut self, key: &str, kind: u32) -> Result<Value> {
        if kind != 9 {
            return self.single(key, kind);
        }
        let inner = self.u32("the type of a list")?;
        let what = format!("the length of `{}`", shown(key));
        Ok(match inner {
            6 => {
                let n = self.count(4, &what)?;
                Value::Reals(
                    self.take(4 * n, &what)?.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
                )
            }
            8 => {
                let n = self.count(8, &what)?;
                Value::Texts((0..n).map(|_| self.text(&what)).collect::<Result<_>>()?)
            }
            _ => {
                let n = self.count(1, &what)?;
                let one = |r: &mut Self| match r.single(key, inner)? {
                    Value::Int(i) => i64::try_from(i).map_err(|_| r.damaged(None, &what, "too large a number")),
                    Value::Bool(b) => Ok(b.into()),
                    _ => Err(r.damaged(
                        None,
                        &format!("`{}` to be a list of numbers or texts", shown(key)),
                        "another list",
                    )),
                };
                Value::Ints((0..n).map(|_| one(self)).collect::<Result<_>>()?)
            }
        })
    }

    fn single(&mut self, key: &str, kind: u32) -> Result<Value> {
        let what = format!("the value of `{}`", shown(key));
        Ok(match kind {
            0 => Value::Int(self.array::<1>(&what)?[0].into()),
            1 => Value::Int((self.array::<1>(&what)?[0] as i8).into()),
            2 => Value::Int(u16::from_le_bytes(self.array(&what)?).into()),
            3 => Value::Int(i16::from_le_bytes(self.array(&what)?).into()),
            4 => Value::Int(self.u32(&what)?.into()),
            5 => Value::Int(i32::from_le_bytes(self.array(&what)?).into()),
            6 => Value::Real(f32::from_le_bytes(self.array(&what)?).into()),
            7 => Value::Bool(self.array::<1>(&what)?[0] != 0),
            8 => Value::Text(self.text(&what)?),
            10 => Value::Int(self.u64(&what)?.into()),
            11 => Value::Int(i64::from_le_bytes(self.array(&what)?).into()),
            12 => Value::Real(f64::from_le_bytes(self.array(&what)?)),
            other => return Err(self.damaged(None, &format!("a type for `{}`", shown(key)), &other.to_string())),
        })
    }

    fn tensor(&mut self) -> Result<(String, Vec<usize>, u32, u64)> {
        let name = self.name("the name of a tensor")?;
        let axes = self.u32("a number of axes")?;
        if !(1..=MAX_AXES).contains(&axes) {
            return Err(self.damaged(Some(&name), &format!("1 to {MAX_AXES} axes"), &axes.to_string()));
        }
        let mut shape = Vec::new();
        for _ in 0..axes {
            let n = self.u64("a size")?;
            shape.push(usize::try_from(n).ok().filter(|n| (1..=1 << 40).contains(n)).ok_or_else(|| {
                self.damaged(Some(&name), "sizes of at least 1 that fit into memory", &n.to_string())
            })?);
        }
        if shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d as u64)).is_none_or(|n| n > 1 << 48) {
            return Err(self.damaged(Some(&name), "a size that fits into memory", &format!("{shape:?}")));
        }
        shape.reverse();
        Ok((name, shape, self.u32("a format")?, self.u64("an offset")?))
    }
}

/// A name from a file as a message may show it.
pub(super) fn shown(name: &str) -> String {
    name.chars().take(100).flat_map(char::escape_debug).collect()
}
