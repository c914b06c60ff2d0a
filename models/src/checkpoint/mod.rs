//! Checkpoints: named tensors in mapped safetensors files.
//!
//! [`Checkpoint::open`] finds the files (an index with its shards, numbered shards, or single files), maps them, and
//! believes nothing: every header is checked against its file before a tensor can be reached, so that whatever holds
//! a [`TensorRef`] may index its bytes by its shape. [`check`](check()) compares the tensors with those a model wants
//! and reports every difference at once. [`TensorSource`] streams one tensor, or a stack of tensors, without copying
//! it whole.
//!
//! Bytes are little-endian, row-major and not aligned: offsets in these files follow no alignment.
//!
//! Not every tensor lies in a file as it is wanted. One that has a `Recipe` is made of stored bytes while it is
//! written, and never held whole; [`Packed`] weights of few bits are read as the planes that kernels dequantise.

pub(crate) mod blocks;
mod check;
mod copies;
mod fp4;
mod header;
mod locate;
mod nvfp4;
mod overlay;
mod packed;
pub(crate) mod recipe;
mod renamed;
mod rounding;
mod source;

pub use blocks::BlockFormat;
pub use check::{Expected, Found, Report, Wanted, Wrong, check};
pub use header::{Entry, MAX_HEADER, parse_header};
pub use packed::{Level, Over, Packed, Plane};
pub use rounding::{Quantize, WeightOnly};
pub use source::TensorSource;

use crate::error::{Error, Result};
use hadal_types::DType;
use recipe::Recipe;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::fs::File;
use std::io::{self, Write};
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};

/// The formats read, by their safetensors names.
const FORMATS: [(&str, DType); 12] = [
    ("F64", DType::F64),
    ("F32", DType::F32),
    ("F16", DType::F16),
    ("BF16", DType::BF16),
    ("F8_E4M3", DType::F8E4M3),
    ("F8_E8M0", DType::F8E8M0),
    ("F4", DType::F4E2M1),
    ("I64", DType::I64),
    ("I32", DType::I32),
    ("I8", DType::I8),
    ("U8", DType::U8),
    ("BOOL", DType::Bool),
];

pub(crate) fn format_names() -> String {
    FORMATS.map(|(name, _)| name).join(", ")
}

/// The tensors of a model on disk (or embedded in the program), by name.
#[derive(Debug)]
pub struct Checkpoint {
    place: PathBuf,
    files: Vec<Store>,
    tensors: BTreeMap<String, Located>,
    packed: BTreeMap<String, Packed>,
}

/// One tensor of a [`Checkpoint`].
#[derive(Clone, Copy, Debug)]
pub struct TensorRef<'a> {
    /// Element format.
    pub dtype: DType,
    /// Sizes, outermost first; for packed formats in elements.
    pub shape: &'a [usize],
    /// Exactly the bytes that `dtype` and `shape` need; none where it is made of others.
    pub bytes: &'a [u8],
    /// The file that holds it.
    pub file: &'a Path,
    /// Where `bytes` begin in that file.
    pub offset: u64,
    /// How it is made, and of what.
    made: Option<(&'a Recipe, &'a [Store])>,
}

impl<'a> TensorRef<'a> {
    /// Number of elements.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no bytes of its own in a file.
    pub fn is_made(&self) -> bool {
        self.made.is_some()
    }

    /// Writes exactly the bytes that `dtype` and `shape` need.
    pub fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        match self.made {
            Some((recipe, files)) => recipe.write(files, out),
            None => out.write_all(self.bytes),
        }
    }

    /// These bytes, where what they are made of can be said in them.
    pub fn data(&self) -> io::Result<Cow<'a, [u8]>> {
        let Some((recipe, files)) = self.made else { return Ok(Cow::Borrowed(self.bytes)) };
        let mut bytes = Vec::new();
        recipe.write(files, &mut bytes)?;
        Ok(Cow::Owned(bytes))
    }

    /// Format and shape as messages show them: `bf16[64, 32]`.
    pub fn describe(&self) -> String {
        describe(self.dtype, self.shape)
    }
}

pub(crate) fn describe(format: impl std::fmt::Display, shape: &[usize]) -> String {
    format!("{format}{shape:?}")
}

/// A file.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) path: PathBuf,
    pub(crate) bytes: Bytes,
}

#[derive(Debug)]
pub(crate) enum Bytes {
    Mapped(memmap2::Mmap),
    Held(Cow<'static, [u8]>),
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Held(bytes) => bytes,
        }
    }
}

/// A tensor and where it is.
#[derive(Debug)]
pub(crate) struct Located {
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
    pub(crate) place: Place,
    /// The tensor whose planes or scales these are: it is there in place of them.
    pub(crate) of: Option<String>,
}

#[derive(Debug)]
pub(crate) enum Place {
    /// Bytes of a file.
    File(usize, Range<usize>),
    /// Made of others.
    Made(Recipe),
}

impl Checkpoint {
    /// Opens the checkpoint in the folder `path`, or the single safetensors file `path`.
    ///
    /// In a folder, `model.safetensors.index.json` names the shards; without it, every `*.safetensors` file belongs to
    /// the checkpoint, except `golden.safetensors` (a test's expectations).
    ///
    /// The files are mapped: they must not be shortened while the checkpoint is in use.
    pub fn open(path: impl AsRef<Path>) -> Result<Checkpoint> {
        let path = path.as_ref();
        if path.is_file() {
            return Checkpoint::from_stores(path, vec![map(path)?]);
        }
        let located = locate::locate(path)?;
        let stores = located.files.iter().map(|name| map(&path.join(name))).collect::<Result<_>>()?;
        let checkpoint = Checkpoint::from_stores(path, stores)?;
        located.confirm(&checkpoint)?;
        Ok(checkpoint)
    }

    /// The checkpoint made of these safetensors files in memory, each with the name that messages use.
    pub fn from_memory(
        files: impl IntoIterator<Item = (impl Into<PathBuf>, impl Into<Cow<'static, [u8]>>)>,
    ) -> Result<Checkpoint> {
        let held = |(path, bytes): (_, _)| Store { path: Into::into(path), bytes: Bytes::Held(Into::into(bytes)) };
        Checkpoint::from_stores(Path::new("(memory)"), files.into_iter().map(held).collect())
    }

    fn from_stores(place: &Path, files: Vec<Store>) -> Result<Checkpoint> {
        let mut tensors: BTreeMap<String, Located> = BTreeMap::new();
        for (file, store) in files.iter().enumerate() {
            for Entry { name, dtype, shape, range } in parse_header(&store.path, &store.bytes)? {
                match tensors.entry(name) {
                    Slot::Vacant(slot) => {
                        slot.insert(Located { dtype, shape, place: Place::File(file, range), of: None });
                    }
                    Slot::Occupied(slot) => {
                        let first = files[slot.get().place.file()].path.clone();
                        return Err(Error::Repeated { tensor: slot.key().clone(), first, second: store.path.clone() });
                    }
                }
            }
        }
        renamed::recognise(&mut tensors);
        fp4::recognise(&mut tensors);
        let packed = nvfp4::find(&mut tensors);
        Ok(Checkpoint { place: place.into(), files, tensors, packed })
    }

    /// The checkpoint made of these tensors in these files.
    pub(crate) fn of_parts(
        place: &Path,
        files: Vec<Store>,
        tensors: BTreeMap<String, Located>,
        packed: BTreeMap<String, Packed>,
    ) -> Checkpoint {
        Checkpoint { place: place.into(), files, tensors, packed }
    }

    /// The folder or file it was opened from.
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// The files, in the order they were read.
    pub fn files(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.files.iter().map(|f| f.path.as_path())
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there is no tensor at all.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// The tensor called `name`, if there is one.
    pub fn tensor(&self, name: &str) -> Option<TensorRef<'_>> {
        self.tensors.get(name).map(|t| self.resolve(t))
    }

    /// The tensor called `name`.
    pub fn require(&self, name: &str) -> Result<TensorRef<'_>> {
        self.tensor(name).ok_or_else(|| Error::NoSuchTensor { dir: self.place.clone(), tensor: name.into() })
    }

    /// Every tensor, in order of name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = (&str, TensorRef<'_>)> {
        self.tensors.iter().map(|(name, t)| (name.as_str(), self.resolve(t)))
    }

    /// The bytes of the tensor called `name`, to be streamed.
    pub fn source(&self, name: &str) -> Result<TensorSource<'_>> {
        Ok(TensorSource::single(self.require(name)?))
    }

    /// The tensors called `names`, all of one type, under a new leading axis in that order.
    pub fn stack(&self, names: impl IntoIterator<Item = impl AsRef<str>>) -> Result<TensorSource<'_>> {
        source::stack(self, names)
    }

    /// What a graph's weight of this name reads: a tensor, or with `{a..b}` in the name a stack of them.
    pub fn weight(&self, name: &str) -> Result<TensorSource<'_>> {
        match hadal_ir::module::stack_range(name) {
            Some((head, range, tail)) => self.stack(range.map(|i| format!("{head}{i}{tail}"))),
            None => self.source(name),
        }
    }

    /// How the weight `name` is packed, where it is: its planes are tensors of their own then.
    pub fn packed(&self, name: &str) -> Option<Packed> {
        self.packed.get(name).copied()
    }

    /// The tensor that `name` is a plane of, or the scales; itself for any other.
    pub(crate) fn origin<'a>(&'a self, name: &'a str) -> &'a str {
        self.tensors.get(name).and_then(|t| t.of.as_deref()).unwrap_or(name)
    }

    fn resolve<'a>(&'a self, t: &'a Located) -> TensorRef<'a> {
        let file = &self.files[t.place.file()];
        let (range, made) = match &t.place {
            Place::File(_, range) => (range.clone(), None),
            Place::Made(recipe) => {
                let start = recipe.source().range.start;
                (start..start, Some((recipe, &self.files[..])))
            }
        };
        let (dtype, shape, offset) = (t.dtype, &t.shape[..], range.start as u64);
        TensorRef { dtype, shape, bytes: &file.bytes[range], file: &file.path, offset, made }
    }
}

impl Place {
    fn file(&self) -> usize {
        match self {
            Place::File(file, _) => *file,
            Place::Made(recipe) => recipe.source().file,
        }
    }
}

pub(crate) fn map(path: &Path) -> Result<Store> {
    let failed = |doing| move |source| Error::Io { file: path.into(), doing, source };
    let file = File::open(path).map_err(failed("opening"))?;
    // SAFETY: the map is read-only and only ever seen as plain bytes, for which any content is valid. Another process
    // that shortens the file meanwhile makes reads fault; `open` documents that it must not, as no copy is made.
    let bytes = unsafe { memmap2::Mmap::map(&file) }.map_err(failed("mapping"))?;
    Ok(Store { path: path.into(), bytes: Bytes::Mapped(bytes) })
}
