//! `cvt`: between integers, floats, and the packed small formats.

use super::{float::flush, rounding};
use crate::error::{Result, unsupported};
use crate::float::exact::{self, BF16, E4M3, E5M2, F16, F32, F64, Format, Rounding, TF32, Value};
use crate::types::{Type, mask, sign_extend};

/// A conversion.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conversion {
    pub to: Type,
    pub from: Type,
    rounding: Rounding,
    /// Whether a float is rounded to an integral value.
    integral: bool,
    flush: bool,
    saturate: bool,
    relu: bool,
    /// Saturates to the largest number.
    finite: bool,
}

/// Whether a source is two registers.
impl Conversion {
    pub(crate) fn takes_two(&self) -> bool {
        self.from == Type::F32 && matches!(self.to, Type::F16x2 | Type::Bf16x2 | Type::E4m3x2 | Type::E5m2x2)
    }

    pub(crate) fn parse(words: &[&str]) -> Result<Conversion> {
        let bad = || unsupported(words.join("."));
        let [.., to, from] = words else { return bad() };
        let (Some(to), Some(from)) = (Type::parse(to), Type::parse(from)) else { return bad() };
        let mut found = Conversion {
            to,
            from,
            rounding: Rounding::Nearest,
            integral: false,
            flush: false,
            saturate: false,
            relu: false,
            finite: false,
        };
        let mut rounds = false;
        for word in &words[1..words.len() - 2] {
            match *word {
                "ftz" => found.flush = true,
                "sat" => found.saturate = true,
                "relu" => found.relu = true,
                "satfinite" => found.finite = true,
                "rni" | "rzi" | "rmi" | "rpi" => {
                    found.integral = true;
                    found.rounding = rounding(&word[..2]).unwrap_or(Rounding::Nearest);
                }
                word => match rounding(word) {
                    Some(r) => (found.rounding, rounds) = (r, true),
                    None => return bad(),
                },
            }
        }
        let integer = |ty: Type| !ty.is_float() && !small(ty) && !matches!(ty, Type::Pred | Type::B128);
        let fits = match (to, from) {
            (Type::E4m3x2 | Type::E5m2x2, Type::F32 | Type::F16x2) => found.finite && rounds,
            (Type::F16x2, Type::E4m3x2 | Type::E5m2x2 | Type::F32) | (Type::Bf16x2, Type::F32) => rounds,
            (Type::Tf32, Type::F32) => rounds,
            (to, from) if integer(to) && integer(from) => !rounds && !found.integral,
            (to, from) if integer(to) => scalar_format(from).is_some() && found.integral,
            (to, from) if integer(from) => scalar_format(to).is_some() && rounds,
            (to, from) => scalar_format(to).is_some() && scalar_format(from).is_some(),
        };
        let narrows = scalar_format(to)
            .zip(scalar_format(from))
            .is_some_and(|(t, f)| t.mantissa < f.mantissa || t.exponent < f.exponent);
        if !fits || (narrows && !rounds) {
            return bad();
        }
        Ok(found)
    }

    /// The converted value, of the destination's width. `b` is the second register, which becomes the low half.
    pub(crate) fn apply(&self, a: u64, b: u64) -> u64 {
        let half = |format: Format, x: u64| self.float(F32, format, x);
        match (self.to, self.from) {
            (Type::F16x2, Type::F32) => half(F16, b) | half(F16, a) << 16,
            (Type::Bf16x2, Type::F32) => half(BF16, b) | half(BF16, a) << 16,
            (Type::E4m3x2, Type::F32) => half(E4M3, b) | half(E4M3, a) << 8,
            (Type::E5m2x2, Type::F32) => half(E5M2, b) | half(E5M2, a) << 8,
            (Type::E4m3x2 | Type::E5m2x2, _) => {
                let to = if self.to == Type::E4m3x2 { E4M3 } else { E5M2 };
                self.float(F16, to, a & 0xffff) | self.float(F16, to, a >> 16 & 0xffff) << 8
            }
            (Type::F16x2, from) => {
                let from = if from == Type::E4m3x2 { E4M3 } else { E5M2 };
                self.float(from, F16, a & 0xff) | self.float(from, F16, a >> 8 & 0xff) << 16
            }
            // The bits of a tf32 are those of the f32 with its low bits clear.
            (Type::Tf32, _) => self.float(F32, TF32, a) << 13,
            (to, from) => match (scalar_format(to), scalar_format(from)) {
                (Some(to), Some(from)) => self.float(from, to, a),
                (Some(format), None) => {
                    let value = integer_value(from, a);
                    let bits = format.encode(exact::from_integer(value), self.rounding, false);
                    if self.saturate { clamp_unit(format, bits) } else { bits }
                }
                (None, Some(format)) => self.integral(format, a),
                (None, None) => {
                    let value = integer_value(from, a);
                    let value = if self.saturate { clamp(to, value) } else { value };
                    value as u64 & mask(to.bits())
                }
            },
        }
    }

    fn float(&self, from: Format, to: Format, bits: u64) -> u64 {
        let bits = bits & mask(from.bits());
        let bits = if self.flush && from == F32 { flush(from, bits) } else { bits };
        let mut value = from.decode(bits);
        if let (true, Value::Finite(finite)) = (self.integral, value) {
            // Of what is too large to have a fraction nothing changes.
            if finite.exp < 0 {
                let whole = exact::integer(finite, self.rounding).unwrap_or(0);
                value = match exact::from_integer(whole) {
                    Value::Finite(f) => Value::Finite(exact::Finite { negative: finite.negative, ..f }),
                    other => other,
                };
            }
        }
        if self.relu && matches!(value, Value::Infinite(true) | Value::Finite(exact::Finite { negative: true, .. })) {
            return 0;
        }
        let mut result = to.encode(value, self.rounding, self.finite);
        if self.flush && to == F32 {
            result = flush(to, result);
        }
        if self.saturate { clamp_unit(to, result) } else { result }
    }

    fn integral(&self, format: Format, bits: u64) -> u64 {
        let bits = bits & mask(format.bits());
        let bits = if self.flush && format == F32 { flush(format, bits) } else { bits };
        let whole = match format.decode(bits) {
            Value::Nan => 0,
            Value::Infinite(negative) => {
                if negative {
                    i128::MIN
                } else {
                    i128::MAX
                }
            }
            Value::Finite(f) => {
                exact::integer(f, self.rounding).unwrap_or(if f.negative { i128::MIN } else { i128::MAX })
            }
        };
        clamp(self.to, whole) as u64 & mask(self.to.bits())
    }
}

fn small(ty: Type) -> bool {
    matches!(ty, Type::E4m3 | Type::E5m2 | Type::E4m3x2 | Type::E5m2x2 | Type::Tf32)
}

fn scalar_format(ty: Type) -> Option<Format> {
    match ty {
        Type::F16 => Some(F16),
        Type::Bf16 => Some(BF16),
        Type::F32 => Some(F32),
        Type::F64 => Some(F64),
        _ => None,
    }
}

fn integer_value(ty: Type, bits: u64) -> i128 {
    let bits = bits & mask(ty.bits());
    if ty.is_signed() { i128::from(sign_extend(bits, ty.bits())) } else { i128::from(bits) }
}

fn clamp(ty: Type, value: i128) -> i128 {
    let bits = ty.bits();
    if ty.is_signed() {
        value.clamp(-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    } else {
        value.clamp(0, (1 << bits) - 1)
    }
}

/// Clamped to 0 … 1, NaN at 0.
fn clamp_unit(format: Format, bits: u64) -> u64 {
    let one = format.encode(exact::from_integer(1), Rounding::Nearest, false);
    let negative = bits >> (format.bits() - 1) & 1 == 1;
    if negative || format.decode(bits) == Value::Nan { 0 } else { bits.min(one) }
}
