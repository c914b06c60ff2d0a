//! Streaming of tensors: one, or many of one type stacked under a new leading axis.
//!
//! A stack is what the experts of a layer become: hundreds of tensors, perhaps in several files, read in order from
//! the maps. Nothing is copied but what the reader asks for.

use super::{Checkpoint, TensorRef};
use crate::error::{Error, Result};
use hadal_types::DType;
use std::io::{self, Write};

/// The bytes of a tensor or of a stack, in order.
#[derive(Clone, Debug)]
pub struct TensorSource<'a> {
    dtype: DType,
    shape: Vec<usize>,
    parts: Vec<TensorRef<'a>>,
}

impl<'a> TensorSource<'a> {
    /// One tensor as it is.
    pub fn single(tensor: TensorRef<'a>) -> Self {
        TensorSource { dtype: tensor.dtype, shape: tensor.shape.to_vec(), parts: vec![tensor] }
    }

    /// Element format.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Sizes, the stacking axis first where there is one.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The tensors it is made of, in order.
    pub fn parts(&self) -> &[TensorRef<'a>] {
        &self.parts
    }

    /// Bytes in all.
    pub fn byte_len(&self) -> u64 {
        self.parts.iter().map(|p| p.bytes.len() as u64).sum()
    }

    /// Runs of bytes in order: one for each tensor.
    pub fn chunks(&self) -> impl ExactSizeIterator<Item = &'a [u8]> + '_ {
        self.parts.iter().map(|p| p.bytes)
    }

    /// All the bytes in one slice, where there is only one tensor.
    pub fn contiguous(&self) -> Option<&'a [u8]> {
        match self.parts.as_slice() {
            [only] => Some(only.bytes),
            _ => None,
        }
    }

    /// Writes all the bytes in order.
    pub fn write_to(&self, out: &mut impl Write) -> io::Result<()> {
        self.chunks().try_for_each(|bytes| out.write_all(bytes))
    }

    /// Fills `out` from byte `offset` on, and returns how many bytes there were.
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> usize {
        let mut filled = 0;
        let mut skip = offset;
        for bytes in self.chunks() {
            match bytes.get(usize::try_from(skip).unwrap_or(usize::MAX)..) {
                Some(rest) => {
                    let n = rest.len().min(out.len() - filled);
                    out[filled..filled + n].copy_from_slice(&rest[..n]);
                    filled += n;
                    skip = 0;
                }
                None => skip -= bytes.len() as u64,
            }
        }
        filled
    }
}

pub(super) fn stack<'a>(
    checkpoint: &'a Checkpoint,
    names: impl IntoIterator<Item = impl AsRef<str>>,
) -> Result<TensorSource<'a>> {
    // One at a time, so that an absurdly long stack ends at the first tensor that is not there.
    let mut parts: Vec<TensorRef<'a>> = Vec::new();
    for name in names {
        let part = checkpoint.require(name.as_ref())?;
        if let Some(first) = parts.first().filter(|p| (p.dtype, p.shape) != (part.dtype, part.shape)) {
            return Err(Error::Stack {
                dir: checkpoint.place().into(),
                tensor: name.as_ref().into(),
                expected: first.describe(),
                found: part.describe(),
            });
        }
        parts.push(part);
    }
    let Some(first) = parts.first() else {
        return Err(Error::NoSuchTensor { dir: checkpoint.place().into(), tensor: "(a stack of none)".into() });
    };
    let shape = std::iter::once(parts.len()).chain(first.shape.iter().copied()).collect();
    Ok(TensorSource { dtype: first.dtype, shape, parts })
}
