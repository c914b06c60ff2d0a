//! Block formats of GGUF files: 32 or 256 elements of a row share scales, and codes and scales lie interleaved.
//!
//! Kernels read plain tensors, so a stored weight is taken apart into *planes*: codes, scales, offsets, and where these
//! are small integers themselves, what multiplies them. An element is
//!
//! ```text
//! w = code · scale + offset            scale = s · d,  offset = o · m   in the formats with 256 elements ("K")
//! ```
//!
//! which is what ggml computes, to the bit in f32: products of codes and scales have at most 24 significant bits. Codes
//! of 5 and 6 bits and those that stand for an entry of a table are widened to 8 bits, those of 2 and 3 bits to 4; the
//! values stay the same.

use hadal_types::DType;
use hadal_types::minifloat::{e2m1_to_f32, e8m0_to_f32};

/// Most elements of a block.
pub const MAX_BLOCK: usize = 256;

/// Most groups of a block that have a scale of their own.
const MAX_GROUPS: usize = 16;

/// A block format, by ggml's name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(non_camel_case_types, reason = "the names that everybody knows these formats by")]
pub enum BlockFormat {
    /// 4 bits, symmetric.
    Q4_0,
    /// 4 bits and an offset.
    Q4_1,
    /// 5 bits, symmetric.
    Q5_0,
    /// 5 bits and an offset.
    Q5_1,
    /// 8 bits.
    Q8_0,
    /// 2 bits, scales and offsets of 4.
    Q2_K,
    /// 3 bits, scales of 6.
    Q3_K,
    /// 4 bits, scales and offsets of 6.
    Q4_K,
    /// 5 bits, scales and offsets of 6.
    Q5_K,
    /// 6 bits, scales of 8.
    Q6_K,
    /// 4 bits that choose from a table.
    IQ4_NL,
    /// The same, with scales of 6.
    IQ4_XS,
    /// e2m1 with scales that are powers of two.
    MXFP4,
}

/// What a block format is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// Elements of a block.
    pub elements: usize,
    /// Bytes of a block.
    pub bytes: usize,
    /// Elements that share a scale.
    pub group: usize,
    /// Format of the codes once they are taken apart.
    pub codes: DType,
    /// Format of the scales, or of what multiplies them.
    pub scale: DType,
    /// Format of scales that are multiplied themselves.
    pub inner: Option<DType>,
    /// Whether there are offsets.
    pub offsets: bool,
}

/// The values that ggml's non-linear 4-bit formats choose from.
const TABLE: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// A block taken apart.
pub struct Unpacked {
    /// One per element; those of packed floats as bits.
    pub codes: [i8; MAX_BLOCK],
    /// Scales of groups, where these are multiplied themselves.
    pub scales: [i8; MAX_GROUPS],
    /// Offsets of groups, likewise.
    pub offsets: [i8; MAX_GROUPS],
    /// The block's scale as stored: f16, or a byte.
    pub scale: [u8; 2],
    /// The block's offset as it is added: f16.
    pub offset: [u8; 2],
}

impl BlockFormat {
    /// The format with ggml's number for it.
    pub fn of_ggml(number: u32) -> Option<BlockFormat> {
        use BlockFormat::*;
        Some(match number {
            2 => Q4_0,
            3 => Q4_1,
            6 => Q5_0,
            7 => Q5_1,
            8 => Q8_0,
            10 => Q2_K,
            11 => Q3_K,
            12 => Q4_K,
            13 => Q5_K,
            14 => Q6_K,
            20 => IQ4_NL,
            23 => IQ4_XS,
            39 => MXFP4,
            _ => return None,
        })
    }

    /// Its sizes.
    pub const fn shape(self) -> Shape {
        use BlockFormat::*;
        const fn small(bytes: usize, codes: DType, offsets: bool) -> Shape {
            Shape { elements: 32, bytes, group: 32, codes, scale: DType::F16, inner: None, offsets }
        }
        const fn large(bytes: usize, group: usize, codes: DType, inner: DType, offsets: bool) -> Shape {
            Shape { elements: 256, bytes, group, codes, scale: DType::F16, inner: Some(inner), offsets }
        }
        match self {
            Q4_0 => small(18, DType::I4, false),
            Q4_1 => small(20, DType::U4, true),
            Q5_0 => small(22, DType::I8, false),
            Q5_1 => small(24, DType::I8, true),
            Q8_0 => small(34, DType::I8, false),
            IQ4_NL => small(18, DType::I8, false),
            MXFP4 => Shape { scale: DType::F8E8M0, ..small(17, DType::F4E2M1, false) },
            Q2_K => large(84, 16, DType::U4, DType::U8, true),
            Q3_K => large(110, 16, DType::I4, DType::I8, false),
            Q4_K => large(144, 32, DType::U4, DType::U8, true),
            Q5_K => large(176, 32, DType::I8, DType::U8, true),
            Q6_K => large(210, 16, DType::I8, DType::I8, false),
            IQ4_XS => large(136, 32, DType::I8, DType::I8, false),
        }
    }

    /// Takes a block of `shape().bytes` bytes apart.
    pub fn unpack(self, block: &[u8], out: &mut Unpacked) {
        use BlockFormat::*;
        let u16_at = |at: usize| [block[at], block[at + 1]];
        let negated = |at: usize| [block[at], block[at + 1] ^ 0x80];
        // Codes of 16 bytes: low halves first.
        let halves = |codes: &mut [i8], from: usize, value: &dyn Fn(u8, usize) -> i8| {
            for i in 0..16 {
                codes[i] = value(block[from + i] & 15, i);
                codes[i + 16] = value(block[from + i] >> 4, i + 16);
            }
        };
        let high = |from: usize, i: usize| (block[from + i / 8] >> (i % 8) & 1) << 4;
        match self {
            Q4_0 => {
                out.scale = u16_at(0);
                halves(&mut out.codes, 2, &|q, _| q as i8 - 8);
            }
            Q4_1 => {
                (out.scale, out.offset) = (u16_at(0), u16_at(2));
                halves(&mut out.codes, 4, &|q, _| q as i8);
            }
            Q5_0 => {
                out.scale = u16_at(0);
                halves(&mut out.codes, 6, &|q, i| (q | high(2, i)) as i8 - 16);
            }
            Q5_1 => {
                (out.scale, out.offset) = (u16_at(0), u16_at(2));
                halves(&mut out.codes, 8, &|q, i| (q | high(4, i)) as i8);
            }
            Q8_0 => {
                out.scale = u16_at(0);
                (0..32).for_each(|i| out.codes[i] = block[2 + i] as i8);
            }
            IQ4_NL => {
                out.scale = u16_at(0);
                halves(&mut out.codes, 2, &|q, _| TABLE[q as usize]);
            }
            MXFP4 => {
                out.scale = [block[0], 0];
                halves(&mut out.codes, 1, &|q, _| q as i8);
            }
            Q2_K => {
                (out.scale, out.offset) = (u16_at(80), negated(82));
                for (g, both) in block[..16].iter().enumerate() {
                    (out.scales[g], out.offsets[g]) = ((both & 15) as i8, (both >> 4) as i8);
                }
                quarters(&block[16..80], &mut out.codes, |q, _| q as i8);
            }
            Q3_K => {
                out.scale = u16_at(108);
                let packed = &block[96..108];
                for g in 0..16 {
                    let low = packed[g % 8] >> (4 * (g / 8)) & 15;
                    let top = packed[8 + g % 4] >> (2 * (g / 4)) & 3;
                    out.scales[g] = (low | top << 4) as i8 - 32;
                }
                // A bit that is not set takes four away.
                let missing = |i: usize| 4 * (1 - (block[i % 32] >> (i / 32) & 1) as i8);
                quarters(&block[32..96], &mut out.codes, |q, i| q as i8 - missing(i));
            }
            Q4_K | Q5_K => {
                (out.scale, out.offset) = (u16_at(0), negated(2));
                six_bits(&block[4..16], out);
                let codes = &block[if self == Q5_K { 48 } else { 16 }..];
                for i in 0..256 {
                    let (group, place) = (i / 32, i % 32);
                    let q = codes[32 * (group / 2) + place] >> (4 * (group % 2)) & 15;
                    let top = if self == Q5_K { (block[16 + place] >> group & 1) << 4 } else { 0 };
                    out.codes[i] = (q | top) as i8;
                }
            }
            Q6_K => {
                out.scale = u16_at(208);
                (0..16).for_each(|g| out.scales[g] = block[192 + g] as i8);
                for i in 0..256 {
                    let (half, quarter, place) = (i / 128, i % 128 / 32, i % 32);
                    let low = block[64 * half + 32 * (quarter % 2) + place] >> (4 * (quarter / 2)) & 15;
                    let top = block[128 + 32 * half + place] >> (2 * quarter) & 3;
                    out.codes[i] = (low | top << 4) as i8 - 32;
                }
            }
            IQ4_XS => {
                out.scale = u16_at(0);
                let tops = u16::from_le_bytes(u16_at(2));
                for g in 0..8 {
                    let low = block[4 + g / 2] >> (4 * (g % 2)) & 15;
                    let top = (tops >> (2 * g) & 3) as u8;
                    out.scales[g] = (low | top << 4) as i8 - 32;
                    halves(&mut out.codes[32 * g..], 8 + 16 * g, &|q, _| TABLE[q as usize]);
                }
            }
        }
    }

    /// Elements of a row of blocks as reals.
    pub fn decode(self, row: &[u8], out: &mut Vec<f32>) {
        let shape = self.shape();
        let mut unpacked = Unpacked::default();
        for block in row.chunks_exact(shape.bytes) {
            self.unpack(block, &mut unpacked);
            let half = |bits: [u8; 2]| half::f16::from_le_bytes(bits).to_f32();
            let scale = match shape.scale {
                DType::F8E8M0 => e8m0_to_f32(unpacked.scale[0]),
                _ => half(unpacked.scale),
            };
            let offset = if shape.offsets { half(unpacked.offset) } else { 0.0 };
            let groups = shape.elements / shape.group;
            for (g, codes) in unpacked.codes[..shape.elements].chunks(shape.group).enumerate().take(groups) {
                let small = |of: &[i8]| if shape.inner.is_some() { f32::from(of[g]) } else { 1.0 };
                let (scale, offset) = (scale * small(&unpacked.scales), offset * small(&unpacked.offsets));
                out.extend(codes.iter().map(|code| {
                    let code = match shape.codes {
                        DType::F4E2M1 => e2m1_to_f32(*code as u8),
                        _ => f32::from(*code),
                    };
                    if shape.offsets { code * scale + offset } else { code * scale }
                }));
            }
        }
    }
}

/// Codes of two bits: in each half of 128 elements, neighbours are in one place of neighbouring bytes.
fn quarters(packed: &[u8], codes: &mut [i8; MAX_BLOCK], value: impl Fn(u8, usize) -> i8) {
    for (i, code) in codes.iter_mut().enumerate() {
        let (half, shift, place) = (i / 128, i % 128 / 32, i % 32);
        *code = value(packed[32 * half + place] >> (2 * shift) & 3, i);
    }
}

/// Eight scales and eight offsets of six bits in twelve bytes: of the last four, the upper two bits are above the first
/// four.
fn six_bits(packed: &[u8], out: &mut Unpacked) {
    for g in 0..4 {
        let (s, o, both) = (packed[g], packed[4 + g], packed[8 + g]);
        (out.scales[g], out.offsets[g]) = ((s & 63) as i8, (o & 63) as i8);
        out.scales[g + 4] = (both & 15 | s >> 6 << 4) as i8;
        out.offsets[g + 4] = (both >> 4 | o >> 6 << 4) as i8;
    }
}

impl Default for Unpacked {
    fn default() -> Unpacked {
        let (groups, none) = ([0; MAX_GROUPS], [0; 2]);
        Unpacked { codes: [0; MAX_BLOCK], scales: groups, offsets: groups, scale: none, offset: none }
    }
}
