//! Element formats.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// How one element is stored. Text names follow safetensors where it has one (`f8e4m3` is OCP e4m3fn).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum DType {
    /// Truth value, one byte, 0 or 1.
    Bool,
    /// Unsigned byte.
    U8,
    /// Signed byte.
    I8,
    /// 32-bit signed integer.
    I32,
    /// 64-bit signed integer; also the type of positions and indices in kernels.
    I64,
    /// IEEE double.
    F64,
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    BF16,
    /// OCP 8-bit float, 4 exponent and 3 mantissa bits, no infinities, max 448.
    F8E4M3,
    /// OCP 8-bit power-of-two scale: the value is 2^(byte-127), 255 is NaN.
    F8E8M0,
    /// OCP 4-bit float, 2 exponent and 1 mantissa bits; two elements a byte, element 2j in the low nibble.
    F4E2M1,
    /// Unsigned 4-bit integer, two a byte as [`DType::F4E2M1`]. Like [`DType::I4`] a storage format of weights: it is
    /// loaded and cast, never computed with.
    U4,
    /// Signed 4-bit integer in two's complement, two a byte.
    I4,
}

impl DType {
    /// Every format, in declaration order.
    pub const ALL: [DType; 14] = [
        DType::Bool,
        DType::U8,
        DType::I8,
        DType::I32,
        DType::I64,
        DType::F64,
        DType::F32,
        DType::F16,
        DType::BF16,
        DType::F8E4M3,
        DType::F8E8M0,
        DType::F4E2M1,
        DType::U4,
        DType::I4,
    ];

    /// Bits one element occupies.
    pub const fn bits(self) -> u64 {
        match self {
            DType::F4E2M1 | DType::U4 | DType::I4 => 4,
            DType::Bool | DType::U8 | DType::I8 | DType::F8E4M3 | DType::F8E8M0 => 8,
            DType::F16 | DType::BF16 => 16,
            DType::I32 | DType::F32 => 32,
            DType::I64 | DType::F64 => 64,
        }
    }

    /// Bytes `count` elements occupy, rounded up to a whole byte.
    pub const fn bytes(self, count: u64) -> u64 {
        (count * self.bits()).div_ceil(8)
    }

    /// Whether two elements share a byte.
    pub const fn is_packed(self) -> bool {
        self.bits() < 8
    }

    /// Whether values are real numbers (rather than integers or truth values).
    pub const fn is_float(self) -> bool {
        matches!(
            self,
            DType::F64 | DType::F32 | DType::F16 | DType::BF16 | DType::F8E4M3 | DType::F8E8M0 | DType::F4E2M1
        )
    }

    /// Whether values are signed or unsigned integers (truth values are not).
    pub const fn is_int(self) -> bool {
        matches!(self, DType::U8 | DType::I8 | DType::I32 | DType::I64 | DType::U4 | DType::I4)
    }

    /// The name in IR text.
    pub const fn name(self) -> &'static str {
        match self {
            DType::Bool => "bool",
            DType::U8 => "u8",
            DType::I8 => "i8",
            DType::I32 => "i32",
            DType::I64 => "i64",
            DType::F64 => "f64",
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::F8E4M3 => "f8e4m3",
            DType::F8E8M0 => "f8e8m0",
            DType::F4E2M1 => "f4e2m1",
            DType::U4 => "u4",
            DType::I4 => "i4",
        }
    }

    /// `value` rounded to this format (nearest even, saturating in the 8- and 4-bit floats).
    pub fn round(self, value: f64) -> f64 {
        use crate::minifloat as m;
        match self {
            DType::F64 => value,
            DType::F32 => value as f32 as f64,
            DType::F16 => half::f16::from_f64(value).to_f64(),
            DType::BF16 => half::bf16::from_f64(value).to_f64(),
            DType::F8E4M3 => m::e4m3_to_f32(m::e4m3_from_f64(value)) as f64,
            DType::F8E8M0 => m::e8m0_to_f32(m::e8m0_from_f64(value)) as f64,
            DType::F4E2M1 => m::e2m1_to_f32(m::e2m1_from_f64(value)) as f64,
            DType::Bool => (value != 0.0) as u8 as f64,
            DType::U8 | DType::I8 | DType::I32 | DType::I64 | DType::U4 | DType::I4 => value.trunc(),
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DType {
    type Err = ();
    fn from_str(s: &str) -> Result<Self, ()> {
        DType::ALL.into_iter().find(|d| d.name() == s).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for d in DType::ALL {
            assert_eq!(d.name().parse(), Ok(d));
        }
    }

    #[test]
    fn packed_bytes_round_up() {
        assert_eq!(DType::F4E2M1.bytes(3), 2);
        assert_eq!(DType::I4.bytes(3), 2);
        assert_eq!(DType::BF16.bytes(3), 6);
    }
}
