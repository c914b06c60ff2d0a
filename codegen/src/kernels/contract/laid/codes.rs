//! Codes of eight and four bits: words of a line become what is multiplied.
//!
//! A word of 32 bits has four bytes or eight nibbles of one column. With products of bytes by fours a line is one
//! register of bytes without sign, or two: the even nibbles of all words and the odd ones. Otherwise it is a vector of
//! f32 for each element of a word, in its order.

use super::super::schedule::Schedule;
use super::super::view::Access;
use super::LANES;
use hadal_ir::kernel::{Builder, CompareOp, Value};
use hadal_types::DType;

/// Twice the value of each code of e2m1, and twelve.
pub const E2M1: [u8; 16] = [12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0];

/// Elements of a word; `None` for formats that are no such codes.
pub fn word(codes: DType) -> Option<i64> {
    match codes {
        DType::I8 | DType::U8 | DType::F8E4M3 => Some(4),
        DType::I4 | DType::U4 | DType::F4E2M1 => Some(8),
        _ => None,
    }
}

/// What is added to a code, so that it has no sign.
pub fn bias(codes: DType) -> i32 {
    match codes {
        DType::I8 => 128,
        DType::I4 => 8,
        DType::F4E2M1 => 12,
        _ => 0,
    }
}

/// What a code stands for is so many times what is multiplied.
pub fn unit(codes: DType) -> f32 {
    if codes == DType::F4E2M1 { 0.5 } else { 1.0 }
}

/// A line of codes, or of what is multiplied as it is.
#[derive(Clone, Copy)]
pub struct Line {
    codes: DType,
    quads: bool,
    pairs: bool,
    words: Value,
    /// Of what was looked up: the second pairs of all words, where `words` are the first.
    second: Option<Value>,
}

/// How many vectors a line becomes, each of which meets factors of its own.
pub fn vectors(w: &Access, quads: bool, pairs: bool) -> i64 {
    match w.dtype {
        DType::F32 => 1,
        DType::BF16 => 2 - i64::from(pairs),
        DType::F8E4M3 if pairs => 2,
        dtype if quads => 1 + i64::from(dtype.is_packed()),
        dtype => word(dtype).unwrap_or(1),
    }
}

fn all(b: &mut Builder, word: u32) -> Value {
    let word = b.const_i32(word as i32);
    b.splat(word, LANES as u32)
}

impl Line {
    /// Of what was loaded.
    pub fn new(b: &mut Builder, s: &Schedule, loaded: Value) -> Line {
        let (codes, quads, pairs) = (b.ty(loaded).elem, s.quads, s.pairs);
        if codes == DType::F8E4M3 && s.lookups {
            // Four bf16 to a word, which is what one look-up gives; they are taken apart by moving bytes.
            let halves = b.cast(loaded, DType::F32);
            let halves = b.cast(halves, DType::BF16);
            let both = b.bitcast(halves, DType::I64);
            let by = b.const_i64(32);
            let by = b.splat(by, LANES as u32);
            let second = b.ushr(both, by);
            let [words, second] = [both, second].map(|x| b.cast(x, DType::I32));
            return Line { codes: DType::BF16, quads, pairs, words, second: Some(second) };
        }
        let mut words = b.bitcast(loaded, DType::I32);
        let flip = match codes {
            DType::I8 if quads => 0x8080_8080,
            DType::I4 if quads => 0x8888_8888,
            _ => 0,
        };
        if flip != 0 {
            let flip = all(b, flip);
            words = b.xor(words, flip);
        }
        Line { codes, quads, pairs, words, second: None }
    }

    /// One of its vectors.
    pub fn vector(&self, b: &mut Builder, i: i64) -> Value {
        if let Some(second) = self.second {
            let each = if self.pairs { 1 } else { 2 };
            let words = if i < each { self.words } else { second };
            return Line { words, second: None, ..*self }.vector(b, i % each);
        }
        match (self.codes, self.quads) {
            (DType::BF16, _) if self.pairs => b.bitcast(self.words, DType::BF16),
            (DType::F32, _) => b.bitcast(self.words, DType::F32),
            // Two bf16 to a word: f32 is the upper half of each, with zeros below.
            (DType::BF16, _) => {
                let upper = if i == 0 { self.shifted(b, 16) } else { self.masked(b, self.words, 0xffff_0000) };
                b.bitcast(upper, DType::F32)
            }
            (DType::F4E2M1, true) => {
                let codes = self.nibbles(b, i);
                b.lookup(E2M1, codes, DType::U8)
            }
            (codes, true) if codes.is_packed() => self.nibbles(b, i),
            (_, true) => b.bitcast(self.words, DType::U8),
            (DType::F4E2M1, false) => {
                let codes = self.nibbles(b, i % 2);
                let bytes = b.lookup(E2M1.map(|x| x.wrapping_sub(12)), codes, DType::I8);
                let bytes = b.bitcast(bytes, DType::I32);
                Line { codes: DType::I8, words: bytes, ..*self }.element(b, i / 2)
            }
            (DType::F8E4M3, false) => self.small_float(b, i),
            (_, false) => self.element(b, i),
        }
    }

    /// An element of e4m3 as f32: its bits under f32's exponent, times the difference of the biases, exactly; NaN
    /// apart.
    fn small_float(&self, b: &mut Builder, i: i64) -> Value {
        let top = self.shifted(b, 24 - 8 * i as u32);
        let four = all(b, 4);
        let moved = b.shr(top, four);
        let bits = self.masked(b, moved, 0x87f0_0000);
        let largest = all(b, 0x07f0_0000);
        let magnitude = b.and(bits, largest);
        let nan = b.compare(CompareOp::Eq, magnitude, largest);
        let small = b.bitcast(bits, DType::F32);
        let scale = b.const_f32(f32::from_bits((120 + 127) << 23));
        let scale = b.splat(scale, LANES as u32);
        let x = b.mul(small, scale);
        let none = b.const_f32(f32::NAN);
        let none = b.splat(none, LANES as u32);
        b.select(nan, none, x)
    }

    /// The even nibbles of all words, or the odd ones, as bytes.
    fn nibbles(&self, b: &mut Builder, i: i64) -> Value {
        let four = all(b, 4);
        let words = if i == 0 { self.words } else { b.ushr(self.words, four) };
        let nibbles = self.masked(b, words, 0x0f0f_0f0f);
        b.bitcast(nibbles, DType::U8)
    }

    /// An element of each word as f32.
    fn element(&self, b: &mut Builder, i: i64) -> Value {
        let bits = self.codes.bits() as i64;
        let (above, below) = (32 - bits * (i + 1), 32 - bits);
        let whole = if matches!(self.codes, DType::U8 | DType::U4) {
            let by = all(b, (bits * i) as u32);
            let low = if i == 0 { self.words } else { b.ushr(self.words, by) };
            if above == 0 { low } else { self.masked(b, low, (1 << bits) - 1) }
        } else {
            let high = self.shifted(b, above as u32);
            let by = all(b, below as u32);
            b.shr(high, by)
        };
        b.cast(whole, DType::F32)
    }

    fn shifted(&self, b: &mut Builder, left: u32) -> Value {
        let by = all(b, left);
        if left == 0 { self.words } else { b.shl(self.words, by) }
    }

    fn masked(&self, b: &mut Builder, words: Value, mask: u32) -> Value {
        let mask = all(b, mask);
        b.and(words, mask)
    }
}
