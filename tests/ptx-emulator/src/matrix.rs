//! Shapes and formats of matrix products.

use std::sync::LazyLock;

use crate::float::exact::{E4M3, E5M2, F16, F64, Format, Rounding, TF32};
use crate::float::format::convert;
use crate::program::Src;
use crate::report::FlopKind;

/// The values of all codes of eight bits.
fn values(format: Format) -> [f64; 256] {
    std::array::from_fn(|code| {
        let bits = convert(code as u64, format, F64, Rounding::Nearest, false);
        f64::from_bits(bits)
    })
}

static E4M3_VALUES: LazyLock<[f64; 256]> = LazyLock::new(|| values(E4M3));
static E5M2_VALUES: LazyLock<[f64; 256]> = LazyLock::new(|| values(E5M2));

/// What an element of a factor is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    F16,
    Bf16,
    Tf32,
    E4m3,
    E5m2,
    S8,
    U8,
}

impl Kind {
    pub(crate) fn parse(word: &str) -> Option<Kind> {
        Some(match word {
            "f16" => Kind::F16,
            "bf16" => Kind::Bf16,
            "tf32" => Kind::Tf32,
            "e4m3" => Kind::E4m3,
            "e5m2" => Kind::E5m2,
            "s8" => Kind::S8,
            "u8" => Kind::U8,
            _ => return None,
        })
    }

    pub(crate) fn bytes(self) -> u32 {
        match self {
            Kind::F16 | Kind::Bf16 => 2,
            Kind::Tf32 => 4,
            _ => 1,
        }
    }

    pub(crate) fn is_integer(self) -> bool {
        matches!(self, Kind::S8 | Kind::U8)
    }

    pub(crate) fn is_fp8(self) -> bool {
        matches!(self, Kind::E4m3 | Kind::E5m2)
    }

    /// The value of a code. Of a tf32 the low 13 bits are ignored.
    pub(crate) fn value(self, code: u32) -> f64 {
        let wide = |format: Format, bits: u32| -> f64 {
            f64::from_bits(convert(u64::from(bits), format, F64, Rounding::Nearest, false))
        };
        match self {
            Kind::S8 => f64::from(code as u8 as i8),
            Kind::U8 => f64::from(code as u8),
            Kind::F16 => wide(F16, code & 0xffff),
            Kind::Bf16 => f64::from(f32::from_bits(code << 16)),
            Kind::Tf32 => wide(TF32, code >> 13),
            Kind::E4m3 => E4M3_VALUES[code as usize & 0xff],
            Kind::E5m2 => E5M2_VALUES[code as usize & 0xff],
        }
    }

    pub(crate) fn flops(self) -> FlopKind {
        match self {
            Kind::F16 | Kind::Bf16 => FlopKind::TensorHalf,
            Kind::Tf32 => FlopKind::TensorTf32,
            Kind::E4m3 | Kind::E5m2 => FlopKind::TensorFp8,
            Kind::S8 | Kind::U8 => FlopKind::TensorInt8,
        }
    }
}

/// What sums are kept in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sum {
    F32,
    F16,
    S32,
}

/// A product `d = a · b + c` of `m × k` and `k × n`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Product {
    pub m: u32,
    pub n: u32,
    pub k: u32,
    pub a: Kind,
    pub b: Kind,
    pub sum: Sum,
    pub saturate: bool,
}

impl Product {
    /// Operations of the whole product.
    pub(crate) fn flops(&self) -> u64 {
        2 * u64::from(self.m) * u64::from(self.n) * u64::from(self.k)
    }
}

/// A factor in shared memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix {
    pub descriptor: Src,
    /// Whether its rows lie across: `k` is not the fast direction.
    pub transposed: bool,
}

/// The left factor of a product of a warpgroup.
#[derive(Clone, Debug)]
pub(crate) enum Fragment {
    Registers(Box<[Src]>),
    Shared(Matrix),
}
