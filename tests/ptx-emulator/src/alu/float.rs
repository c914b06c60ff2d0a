//! Floating-point arithmetic.
//!
//! The usual cases of f32 and f64 are those of the host, whose additions, products and fused products are rounded
//! as IEEE 754 says; everything else goes through [`exact`].

use super::{Chosen, Function, Mode, format_of, rounding};
use crate::error::{Result, unsupported};
use crate::float::exact::{self, F32, Rounding, Value};
use crate::report::{FlopKind, Flops};
use crate::types::Type;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FloatOp {
    Add,
    Sub,
    Mul,
    Fma,
    Div,
    Rcp,
    Sqrt,
    Min,
    Max,
    Neg,
    Abs,
    CopySign,
}

use FloatOp::*;

pub(super) fn choose(words: &[&str], ty: Type) -> Result<Option<Chosen>> {
    let (op, count) = match words[0] {
        "add" => (Add, 2),
        "sub" => (Sub, 2),
        "mul" => (Mul, 2),
        "fma" | "mad" => (Fma, 3),
        "div" => (Div, 2),
        "rcp" => (Rcp, 1),
        "sqrt" => (Sqrt, 1),
        "min" => (Min, 2),
        "max" => (Max, 2),
        "neg" => (Neg, 1),
        "abs" => (Abs, 1),
        "copysign" => (CopySign, 2),
        _ => return Ok(None),
    };
    let Some((format, packed)) = format_of(ty) else { return unsupported(words.join(".")) };
    let mut mode = Mode { op, format, ..Mode::default() };
    let mut rounds = false;
    for word in &words[1..words.len() - 1] {
        match *word {
            "ftz" => mode.flush = true,
            "sat" if matches!(op, Add | Sub | Mul | Fma) => mode.saturate = true,
            "relu" if op == Fma => mode.relu = true,
            "NaN" if matches!(op, Min | Max) => mode.nan = true,
            "xorsign" if matches!(op, Min | Max) => mode.xorsign = true,
            "abs" if mode.xorsign => {}
            // Approximate divisions stand in by the rounded one.
            "approx" | "full" if op == Div && ty == Type::F32 => rounds = true,
            word => match rounding(word) {
                Some(r) if r != Rounding::NearestAway && !matches!(op, Min | Max | Neg | Abs | CopySign) => {
                    mode.rounding = r;
                    rounds = true;
                }
                _ => return unsupported(words.join(".")),
            },
        }
    }
    if matches!(op, Fma | Div | Rcp | Sqrt) && !rounds {
        return unsupported(format!("{} without a rounding", words.join(".")));
    }
    let usual = mode.rounding == Rounding::Nearest && !mode.flush && !mode.saturate && !mode.relu && !mode.xorsign;
    let function: Function = match (op, ty) {
        (Add, Type::F32) if usual => |_, a, b, _| single(f(a) + f(b)),
        (Sub, Type::F32) if usual => |_, a, b, _| single(f(a) - f(b)),
        (Mul, Type::F32) if usual => |_, a, b, _| single(f(a) * f(b)),
        (Fma, Type::F32) if usual => |_, a, b, c| single(f(a).mul_add(f(b), f(c))),
        (Div, Type::F32) if usual => |_, a, b, _| single(f(a) / f(b)),
        (Sqrt, Type::F32) if usual => |_, a, _, _| single(f(a).sqrt()),
        (Add, Type::F64) if usual => |_, a, b, _| double(d(a) + d(b)),
        (Sub, Type::F64) if usual => |_, a, b, _| double(d(a) - d(b)),
        (Mul, Type::F64) if usual => |_, a, b, _| double(d(a) * d(b)),
        (Fma, Type::F64) if usual => |_, a, b, c| double(d(a).mul_add(d(b), d(c))),
        (Div, Type::F64) if usual => |_, a, b, _| double(d(a) / d(b)),
        (Sqrt, Type::F64) if usual => |_, a, _, _| double(d(a).sqrt()),
        _ if packed => |m, a, b, c| {
            let high = general(m, a >> 16 & 0xffff, b >> 16 & 0xffff, c >> 16 & 0xffff);
            general(m, a & 0xffff, b & 0xffff, c & 0xffff) | high << 16
        },
        _ => general,
    };
    let each = match op {
        Fma => 2,
        Add | Sub | Mul | Div | Rcp | Sqrt => 1,
        _ => 0,
    };
    let kind = match ty {
        Type::F64 => FlopKind::F64,
        Type::F32 => FlopKind::F32,
        _ => FlopKind::Half,
    };
    let flops = (each > 0).then_some(Flops { kind, each: if packed { 2 * each } else { each } });
    Ok(Some(Chosen { function, mode, operands: vec![ty; count], result: ty, flops }))
}

fn f(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

fn d(bits: u64) -> f64 {
    f64::from_bits(bits)
}

fn single(value: f32) -> u64 {
    if value.is_nan() { F32.nan() } else { u64::from(value.to_bits()) }
}

fn double(value: f64) -> u64 {
    if value.is_nan() { exact::F64.nan() } else { value.to_bits() }
}

/// Zero of the same sign for what is too small to be normal.
pub(crate) fn flush(format: exact::Format, bits: u64) -> u64 {
    let sign = 1 << (format.bits() - 1);
    if bits & !sign < 1 << format.mantissa { bits & sign } else { bits }
}

fn general(mode: Mode, a: u64, b: u64, c: u64) -> u64 {
    let format = mode.format;
    let sign = 1u64 << (format.bits() - 1);
    let [a, b, c] = if mode.flush { [a, b, c].map(|x| flush(format, x)) } else { [a, b, c] };
    let (x, y) = (format.decode(a), format.decode(b));
    let value = match mode.op {
        Neg => return if x == Value::Nan { format.nan() } else { a ^ sign },
        Abs => return if x == Value::Nan { format.nan() } else { a & !sign },
        CopySign => return (b & !sign) | (a & sign),
        Min | Max => return extreme(mode, a, b),
        Add => exact::add(x, y, mode.rounding),
        Sub => exact::add(x, exact::negate(y), mode.rounding),
        Mul => exact::multiply(x, y),
        Fma => exact::add(exact::multiply(x, y), format.decode(c), mode.rounding),
        Div => exact::divide(x, y),
        Rcp => exact::divide(exact::from_integer(1), x),
        Sqrt => exact::square_root(x),
    };
    let mut bits = format.encode(value, mode.rounding, false);
    if mode.flush {
        bits = flush(format, bits);
    }
    if mode.saturate {
        let one = format.encode(exact::from_integer(1), Rounding::Nearest, false);
        bits = if value == Value::Nan || bits & sign != 0 { 0 } else { bits.min(one) };
    }
    if mode.relu && value != Value::Nan && bits & sign != 0 {
        bits = 0;
    }
    bits
}

/// Of a NaN and a number the number, unless asked otherwise; -0 is less than +0.
fn extreme(mode: Mode, a: u64, b: u64) -> u64 {
    let format = mode.format;
    let sign = 1u64 << (format.bits() - 1);
    let nan = |x: u64| format.decode(x) == Value::Nan;
    let (mut x, mut y) = (a, b);
    if mode.xorsign {
        (x, y) = (a & !sign, b & !sign);
    }
    let chosen = match (nan(x), nan(y)) {
        (true, true) => return format.nan(),
        (true, false) | (false, true) if mode.nan => return format.nan(),
        (true, false) => y,
        (false, true) => x,
        _ => {
            let key = |bits: u64| if bits & sign != 0 { -((bits & !sign) as i128) - 1 } else { bits as i128 };
            if (key(x) <= key(y)) == (mode.op == Min) { x } else { y }
        }
    };
    if mode.xorsign { chosen | ((a ^ b) & sign) } else { chosen }
}
