//! Conversions of small formats.

use super::exact::{BF16, E4M3, E5M2, F16, F32, Format, Rounding};

/// From one format to another.
pub(crate) fn convert(bits: u64, from: Format, to: Format, rounding: Rounding, saturate: bool) -> u64 {
    to.encode(from.decode(bits), rounding, saturate)
}

fn widen(bits: u64, from: Format) -> f32 {
    f32::from_bits(convert(bits, from, F32, Rounding::Nearest, false) as u32)
}

fn narrow(value: f32, to: Format, saturate: bool) -> u64 {
    convert(u64::from(value.to_bits()), F32, to, Rounding::Nearest, saturate)
}

/// The value of a binary16 code.
pub fn f16_to_f32(bits: u16) -> f32 {
    widen(u64::from(bits), F16)
}

/// The value of a bfloat16 code.
pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The value of an E4M3 code; 0x7f and 0xff are NaN.
pub fn e4m3_to_f32(bits: u8) -> f32 {
    widen(u64::from(bits), E4M3)
}

/// The value of an E5M2 code.
pub fn e5m2_to_f32(bits: u8) -> f32 {
    widen(u64::from(bits), E5M2)
}

/// The nearest binary16 code, ties to even.
pub fn f32_to_f16(value: f32) -> u16 {
    narrow(value, F16, false) as u16
}

/// The nearest bfloat16 code, ties to even.
pub fn f32_to_bf16(value: f32) -> u16 {
    narrow(value, BF16, false) as u16
}

/// The nearest E4M3 code, ties to even, what is too large at the largest number.
pub fn f32_to_e4m3(value: f32) -> u8 {
    narrow(value, E4M3, true) as u8
}

/// The nearest E5M2 code, ties to even, what is too large at the largest number.
pub fn f32_to_e5m2(value: f32) -> u8 {
    narrow(value, E5M2, true) as u8
}
