//! Comparisons of `setp`, `set` and their like.

use crate::alu::float::flush;
use crate::error::{Result, unsupported};
use crate::float::exact::{F32, Value};
use crate::types::{Type, sign_extend};
use std::cmp::Ordering;

/// A comparison of two values of a type.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Comparison {
    ty: Type,
    /// Whether less, equal and greater satisfy it.
    wants: [bool; 3],
    /// Whether a NaN does.
    unordered: bool,
    flush: bool,
}

impl Comparison {
    /// The comparison of a word like `ltu`.
    pub(crate) fn parse(word: &str, ty: Type, flush: bool) -> Result<Comparison> {
        let (wants, unordered) = match word {
            "eq" => ([false, true, false], false),
            "ne" => ([true, false, true], false),
            "lt" | "lo" => ([true, false, false], false),
            "le" | "ls" => ([true, true, false], false),
            "gt" | "hi" => ([false, false, true], false),
            "ge" | "hs" => ([false, true, true], false),
            "equ" => ([false, true, false], true),
            "neu" => ([true, false, true], true),
            "ltu" => ([true, false, false], true),
            "leu" => ([true, true, false], true),
            "gtu" => ([false, false, true], true),
            "geu" => ([false, true, true], true),
            "num" => ([true, true, true], false),
            "nan" => ([false, false, false], true),
            _ => return unsupported(format!("the comparison {word}")),
        };
        let ordered = matches!(word, "eq" | "ne" | "lt" | "le" | "gt" | "ge");
        let unsigned = matches!(word, "lo" | "ls" | "hi" | "hs");
        let fits = match ty {
            Type::B16 | Type::B32 | Type::B64 => matches!(word, "eq" | "ne"),
            Type::U16 | Type::U32 | Type::U64 => ordered || unsigned,
            Type::S16 | Type::S32 | Type::S64 => ordered,
            Type::F16 | Type::Bf16 | Type::F32 | Type::F64 => !unsigned,
            _ => false,
        };
        if !fits {
            return unsupported(format!("the comparison {word} of {ty}"));
        }
        Ok(Comparison { ty, wants, unordered, flush })
    }

    /// Whether it holds.
    pub(crate) fn holds(&self, a: u64, b: u64) -> bool {
        let order = match self.ty {
            Type::F32 => {
                let [a, b] = if self.flush { [flush(F32, a), flush(F32, b)] } else { [a, b] };
                f32::from_bits(a as u32).partial_cmp(&f32::from_bits(b as u32))
            }
            Type::F64 => f64::from_bits(a).partial_cmp(&f64::from_bits(b)),
            ty if ty.is_float() => {
                let (format, _) = super::format_of(ty).unwrap_or((F32, false));
                match (format.decode(a), format.decode(b)) {
                    (Value::Nan, _) | (_, Value::Nan) => None,
                    _ => {
                        let wide = |x| {
                            f32::from_bits(crate::float::format::convert(
                                x,
                                format,
                                F32,
                                crate::float::exact::Rounding::Nearest,
                                false,
                            ) as u32)
                        };
                        wide(a).partial_cmp(&wide(b))
                    }
                }
            }
            ty if ty.is_signed() => Some(sign_extend(a, ty.bits()).cmp(&sign_extend(b, ty.bits()))),
            _ => Some(a.cmp(&b)),
        };
        match order {
            None => self.unordered,
            Some(Ordering::Less) => self.wants[0],
            Some(Ordering::Equal) => self.wants[1],
            Some(Ordering::Greater) => self.wants[2],
        }
    }
}
