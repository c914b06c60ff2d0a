//! Tensor maps, which kernels pass on unread.
//!
//! Hardware's encoding is secret, so ours is private too: what counts is that a kernel hands 128 bytes from a
//! parameter to a copy.

use crate::error::{ErrorKind, Result, operand};

/// The type of an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the driver")]
pub enum Element {
    U8,
    U16,
    U32,
    S32,
    U64,
    S64,
    F16,
    F32,
    F64,
    Bf16,
    Tf32,
}

impl Element {
    const ALL: [Element; 11] = [
        Element::U8,
        Element::U16,
        Element::U32,
        Element::S32,
        Element::U64,
        Element::S64,
        Element::F16,
        Element::F32,
        Element::F64,
        Element::Bf16,
        Element::Tf32,
    ];

    /// Bytes of an element.
    pub fn bytes(self) -> u32 {
        match self {
            Element::U8 => 1,
            Element::U16 | Element::F16 | Element::Bf16 => 2,
            Element::U32 | Element::S32 | Element::F32 | Element::Tf32 => 4,
            Element::U64 | Element::S64 | Element::F64 => 8,
        }
    }

    fn is_float(self) -> bool {
        matches!(self, Element::F16 | Element::F32 | Element::F64 | Element::Bf16 | Element::Tf32)
    }
}

/// How 16-byte pieces are exchanged in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swizzle {
    /// Not at all.
    None,
    /// Within 32 bytes.
    B32,
    /// Within 64 bytes.
    B64,
    /// Within 128 bytes.
    B128,
}

impl Swizzle {
    /// Where what belongs at an address of shared memory lies.
    pub fn apply(self, address: u32) -> u32 {
        let bits = match self {
            Swizzle::None => return address,
            Swizzle::B32 => 1,
            Swizzle::B64 => 3,
            Swizzle::B128 => 7,
        };
        address ^ (address >> 7 & bits) << 4
    }

    /// Bytes within which pieces are exchanged.
    pub fn span(self) -> u32 {
        match self {
            Swizzle::None => 16,
            Swizzle::B32 => 32,
            Swizzle::B64 => 64,
            Swizzle::B128 => 128,
        }
    }
}

/// A tensor in global memory with the box that copies take of it. The first dimension is the innermost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMap {
    /// The address of the first element, a multiple of 16.
    pub base: u64,
    /// The elements' type.
    pub element: Element,
    /// Elements in each of one to five dimensions.
    pub sizes: Vec<u64>,
    /// Bytes from one to the next in each dimension but the first, multiples of 16.
    pub strides: Vec<u64>,
    /// Elements of a box in each dimension, at most 256.
    pub box_sizes: Vec<u32>,
    /// Every how many elements one is copied, in each dimension.
    pub element_strides: Vec<u32>,
    /// How the box lies in shared memory.
    pub swizzle: Swizzle,
    /// Whether elements outside of the tensor are NaN instead of zero.
    pub nan_outside: bool,
}

/// The size of an encoded map.
pub const TENSOR_MAP_BYTES: usize = 128;
/// The shared memory that a block can have.
const MAX_BOX: u32 = 227 << 10;
const MAGIC: u32 = 0x7e50_4d41;

impl TensorMap {
    /// A matrix of rows that follow each other, with boxes of some rows and columns.
    pub fn matrix(base: u64, element: Element, rows: u64, columns: u64, box_rows: u32, box_columns: u32) -> TensorMap {
        TensorMap {
            base,
            element,
            sizes: vec![columns, rows],
            strides: vec![columns * u64::from(element.bytes())],
            box_sizes: vec![box_columns, box_rows],
            element_strides: vec![1, 1],
            swizzle: Swizzle::None,
            nan_outside: false,
        }
    }

    /// The map with another swizzle.
    pub fn swizzled(mut self, swizzle: Swizzle) -> TensorMap {
        self.swizzle = swizzle;
        self
    }

    /// How many elements of a box are copied in each dimension.
    pub fn copied(&self) -> Vec<u32> {
        self.box_sizes.iter().zip(&self.element_strides).map(|(b, s)| b.div_ceil((*s).max(1))).collect()
    }

    /// How many bytes a box takes in shared memory.
    pub fn box_bytes(&self) -> u32 {
        let elements = self.copied().iter().fold(1u32, |n, size| n.saturating_mul(*size));
        elements.saturating_mul(self.element.bytes())
    }

    /// The rules that the driver checks when it encodes a map.
    pub fn check(&self) -> std::result::Result<(), String> {
        self.rules().map_err(|e| e.to_string())
    }

    fn rules(&self) -> Result<()> {
        let rank = self.sizes.len();
        if !(1..=5).contains(&rank) {
            return operand("the rank", "1 to 5", rank.to_string());
        }
        if self.strides.len() + 1 != rank || self.box_sizes.len() != rank || self.element_strides.len() != rank {
            return operand("the lists of a tensor map", format!("{rank} dimensions"), "others");
        }
        if !self.base.is_multiple_of(16) {
            return operand("the base", "a multiple of 16", format!("{:#x}", self.base));
        }
        for &size in &self.sizes {
            if size == 0 || size > 1 << 32 {
                return operand("a size", "1 to 2^32", size.to_string());
            }
        }
        for &stride in &self.strides {
            if !stride.is_multiple_of(16) || stride >= 1 << 40 {
                return operand("a stride", "a multiple of 16 below 2^40", stride.to_string());
            }
        }
        for &size in &self.box_sizes {
            if !(1..=256).contains(&size) {
                return operand("a box", "1 to 256", size.to_string());
            }
        }
        for &stride in &self.element_strides {
            if !(1..=8).contains(&stride) {
                return operand("an element stride", "1 to 8", stride.to_string());
            }
        }
        if self.box_bytes() > MAX_BOX {
            return operand("a box", format!("at most {MAX_BOX} bytes"), self.box_bytes().to_string());
        }
        let inner = self.copied()[0] * self.element.bytes();
        if !inner.is_multiple_of(16) {
            return operand("the inner row of a box", "a multiple of 16 bytes", inner.to_string());
        }
        if self.swizzle != Swizzle::None && inner > self.swizzle.span() {
            return operand(
                "the inner row of a box",
                format!("at most the swizzle's {}", self.swizzle.span()),
                inner.to_string(),
            );
        }
        if self.nan_outside && !self.element.is_float() {
            return operand("NaN outside", "an element of floating point", format!("{:?}", self.element));
        }
        Ok(())
    }

    /// The bytes of a kernel parameter.
    pub fn encode(&self) -> [u8; TENSOR_MAP_BYTES] {
        let mut words = vec![MAGIC];
        let element = Element::ALL.iter().position(|e| *e == self.element).unwrap_or(0);
        words.push(element as u32 | (self.swizzle as u32) << 8 | u32::from(self.nan_outside) << 16);
        words.push(self.sizes.len() as u32);
        let mut wide = |value: u64| words.extend([value as u32, (value >> 32) as u32]);
        wide(self.base);
        for index in 0..5 {
            wide(self.sizes.get(index).copied().unwrap_or(0));
        }
        for index in 0..4 {
            wide(self.strides.get(index).copied().unwrap_or(0));
        }
        for index in 0..5 {
            // Box sizes are at most 256, element strides at most 8; worse is refused when decoded.
            let size = self.box_sizes.get(index).copied().unwrap_or(0).min(0xffff);
            let stride = self.element_strides.get(index).copied().unwrap_or(0).min(0xffff);
            words.push(size | stride << 16);
        }
        let mut bytes = [0; TENSOR_MAP_BYTES];
        for (slot, word) in bytes.chunks_exact_mut(4).zip(words) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// The map of a parameter's bytes, if they are one.
    pub fn decode(bytes: &[u8]) -> std::result::Result<TensorMap, String> {
        let word = |index: usize| {
            bytes.get(4 * index..4 * index + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        };
        let wide = |index: usize| u64::from(word(index)) | u64::from(word(index + 1)) << 32;
        if bytes.len() != TENSOR_MAP_BYTES || word(0) != MAGIC {
            return Err("these bytes are no tensor map".into());
        }
        let rank = word(2) as usize;
        if !(1..=5).contains(&rank) {
            return Err(format!("a tensor map of rank {rank}"));
        }
        let Some(&element) = Element::ALL.get((word(1) & 255) as usize) else {
            return Err("a tensor map of an unknown element".into());
        };
        let map = TensorMap {
            base: wide(3),
            element,
            sizes: (0..rank).map(|i| wide(5 + 2 * i)).collect(),
            strides: (0..rank - 1).map(|i| wide(15 + 2 * i)).collect(),
            box_sizes: (0..rank).map(|i| word(23 + i) & 0xffff).collect(),
            element_strides: (0..rank).map(|i| word(23 + i) >> 16).collect(),
            swizzle: match word(1) >> 8 & 255 {
                0 => Swizzle::None,
                1 => Swizzle::B32,
                2 => Swizzle::B64,
                _ => Swizzle::B128,
            },
            nan_outside: word(1) >> 16 & 1 == 1,
        };
        map.rules().map_err(|e: ErrorKind| e.to_string())?;
        Ok(map)
    }
}
