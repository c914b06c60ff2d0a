//! Integer and bit instructions.

use super::{Chosen, Function, Mode, no_more};
use crate::error::{Result, unsupported};
use crate::types::{Type, mask, sign_extend};

/// Integers as registers hold them.
trait Bits: Copy {
    fn of(register: u64) -> Self;
    fn bits(self) -> u64;
}

macro_rules! bits {
    ($($t:ty, $unsigned:ty);*) => { $(impl Bits for $t {
        fn of(register: u64) -> $t { register as $t }
        fn bits(self) -> u64 { self as $unsigned as u64 }
    })* };
}
bits!(u8, u8; i8, u8; u16, u16; i16, u16; u32, u32; i32, u32; u64, u64; i64, u64);

/// The function of a body that is written once for all integer types.
macro_rules! each {
    ($ty:expr, $T:ident, $f:expr) => {
        each!($ty, $T, $f, U16 B16 => u16, S16 => i16, U32 B32 => u32, S32 => i32, U64 B64 => u64, S64 => i64)
    };
    ($ty:expr, $T:ident, $f:expr, $($($name:ident)+ => $t:ty),*) => {
        match $ty {
            $($(Type::$name)|+ => {
                #[allow(dead_code, reason = "not every body names its type")]
                type $T = $t;
                let f: Function = $f;
                Some(f)
            })*
            _ => None,
        }
    };
}

/// Products of twice the width.
macro_rules! wide {
    ($ty:expr, $T:ident, $W:ident, $f:expr) => {
        match $ty {
            Type::U16 => {
                type $T = u16;
                type $W = u32;
                let f: Function = $f;
                Some(f)
            }
            Type::S16 => {
                type $T = i16;
                type $W = i32;
                let f: Function = $f;
                Some(f)
            }
            Type::U32 => {
                type $T = u32;
                type $W = u64;
                let f: Function = $f;
                Some(f)
            }
            Type::S32 => {
                type $T = i32;
                type $W = i64;
                let f: Function = $f;
                Some(f)
            }
            _ => None,
        }
    };
}

/// High halves of products.
macro_rules! high {
    ($ty:expr, $T:ident, $W:ident, $n:ident, $f:expr) => {
        match $ty {
            Type::U16 => {
                type $T = u16;
                type $W = u32;
                const $n: u32 = 16;
                let f: Function = $f;
                Some(f)
            }
            Type::S16 => {
                type $T = i16;
                type $W = i32;
                const $n: u32 = 16;
                let f: Function = $f;
                Some(f)
            }
            Type::U32 => {
                type $T = u32;
                type $W = u64;
                const $n: u32 = 32;
                let f: Function = $f;
                Some(f)
            }
            Type::S32 => {
                type $T = i32;
                type $W = i64;
                const $n: u32 = 32;
                let f: Function = $f;
                Some(f)
            }
            Type::U64 => {
                type $T = u64;
                type $W = u128;
                const $n: u32 = 64;
                let f: Function = $f;
                Some(f)
            }
            Type::S64 => {
                type $T = i64;
                type $W = i128;
                const $n: u32 = 64;
                let f: Function = $f;
                Some(f)
            }
            _ => None,
        }
    };
}

pub(super) fn choose(words: &[&str], ty: Type) -> Result<Option<Chosen>> {
    let rest = &words[1..words.len() - 1];
    let known = |f: Option<Function>| match f {
        Some(f) => Ok(f),
        None => unsupported(words.join(".")),
    };
    let plain = |f: Option<Function>, count: usize| -> Result<Option<Chosen>> {
        no_more(words, rest)?;
        Ok(Some(Chosen::new(known(f)?, &vec![ty; count], ty)))
    };
    match (words[0], rest) {
        ("add" | "sub", ["sat"]) if ty == Type::S32 => {
            let f: Function = if words[0] == "add" {
                |_, a, b, _| (a as i32).saturating_add(b as i32).bits()
            } else {
                |_, a, b, _| (a as i32).saturating_sub(b as i32).bits()
            };
            Ok(Some(Chosen::new(f, &[ty; 2], ty)))
        }
        ("add" | "min" | "max", []) if matches!(ty, Type::U16x2 | Type::S16x2) => {
            let f: Function = match (words[0], ty) {
                ("add", _) => |_, a, b, _| halves(a, b, |x, y| x.wrapping_add(y)),
                ("min", Type::U16x2) => |_, a, b, _| halves(a, b, |x, y| x.min(y)),
                ("max", Type::U16x2) => |_, a, b, _| halves(a, b, |x, y| x.max(y)),
                ("min", _) => |_, a, b, _| halves(a, b, |x, y| (x as i16).min(y as i16) as u16),
                _ => |_, a, b, _| halves(a, b, |x, y| (x as i16).max(y as i16) as u16),
            };
            Ok(Some(Chosen::new(f, &[ty; 2], ty)))
        }
        ("add", _) => plain(each!(ty, T, |_, a, b, _| T::of(a).wrapping_add(T::of(b)).bits()), 2),
        ("sub", _) => plain(each!(ty, T, |_, a, b, _| T::of(a).wrapping_sub(T::of(b)).bits()), 2),
        ("mul", ["lo"]) => {
            let f = each!(ty, T, |_, a, b, _| T::of(a).wrapping_mul(T::of(b)).bits());
            Ok(Some(Chosen::new(known(f)?, &[ty; 2], ty)))
        }
        ("mul", ["hi"]) => {
            let f = high!(ty, T, W, N, |_, a, b, _| (((T::of(a) as W * T::of(b) as W) >> N) as T).bits());
            Ok(Some(Chosen::new(known(f)?, &[ty; 2], ty)))
        }
        ("mul", ["wide"]) => {
            let f = wide!(ty, T, W, |_, a, b, _| (W::from(T::of(a)) * W::from(T::of(b))).bits());
            Ok(Some(Chosen::new(known(f)?, &[ty; 2], doubled(ty))))
        }
        ("mad", ["lo"]) => {
            let f = each!(ty, T, |_, a, b, c| T::of(a).wrapping_mul(T::of(b)).wrapping_add(T::of(c)).bits());
            Ok(Some(Chosen::new(known(f)?, &[ty; 3], ty)))
        }
        ("mad", ["hi"]) => {
            let f = high!(ty, T, W, N, |_, a, b, c| (((T::of(a) as W * T::of(b) as W) >> N) as T)
                .wrapping_add(T::of(c))
                .bits());
            Ok(Some(Chosen::new(known(f)?, &[ty; 3], ty)))
        }
        ("mad", ["wide"]) => {
            let f = wide!(ty, T, W, |_, a, b, c| (W::from(T::of(a)) * W::from(T::of(b))).wrapping_add(W::of(c)).bits());
            Ok(Some(Chosen::new(known(f)?, &[ty, ty, doubled(ty)], doubled(ty))))
        }
        ("mul24" | "mad24", ["lo"]) if ty.bits() == 32 => {
            let f: Function = match ty {
                Type::S32 => |_, a, b, c| {
                    (sign_extend(a, 24).wrapping_mul(sign_extend(b, 24)) as u32).wrapping_add(c as u32).bits()
                },
                _ => |_, a, b, c| ((a & 0xff_ffff) * (b & 0xff_ffff)).wrapping_add(c) & mask(32),
            };
            let count = if words[0] == "mul24" { 2 } else { 3 };
            Ok(Some(Chosen::new(f, &vec![ty; count], ty)))
        }
        // Division by zero has no defined result; all ones is what hardware gives for unsigned ones.
        ("div", _) => plain(
            each!(ty, T, |_, a, b, _| T::of(a)
                .checked_div(T::of(b))
                .map_or(if b == 0 { (!0u64 as T).bits() } else { a }, Bits::bits)),
            2,
        ),
        ("rem", _) => plain(
            each!(ty, T, |_, a, b, _| T::of(a).checked_rem(T::of(b)).map_or(if b == 0 { a } else { 0 }, Bits::bits)),
            2,
        ),
        ("min", _) => plain(each!(ty, T, |_, a, b, _| T::of(a).min(T::of(b)).bits()), 2),
        ("max", _) => plain(each!(ty, T, |_, a, b, _| T::of(a).max(T::of(b)).bits()), 2),
        ("sad", _) => {
            plain(each!(ty, T, |_, a, b, c| T::of(c).wrapping_add(T::of(a).abs_diff(T::of(b)) as T).bits()), 3)
        }
        ("abs", _) => plain(
            each!(ty, T, |_, a, _, _| T::of(a).wrapping_abs().bits(),
            S16 => i16, S32 => i32, S64 => i64),
            1,
        ),
        ("neg", _) => plain(
            each!(ty, T, |_, a, _, _| T::of(a).wrapping_neg().bits(),
            S16 => i16, S32 => i32, S64 => i64),
            1,
        ),
        ("and", _) => logic(words, rest, ty, |_, a, b, _| a & b, 2),
        ("or", _) => logic(words, rest, ty, |_, a, b, _| a | b, 2),
        ("xor", _) => logic(words, rest, ty, |_, a, b, _| a ^ b, 2),
        ("not", _) if ty == Type::Pred => logic(words, rest, ty, |_, a, _, _| a ^ 1, 1),
        ("not", _) => plain(each!(ty, T, |_, a, _, _| (!T::of(a)).bits()), 1),
        ("cnot", _) => plain(each!(ty, T, |_, a, _, _| u64::from(a == 0)), 1),
        ("lop3", _) if ty == Type::B32 => plain(Some(lop3), 3),
        ("shl", _) => shift(
            words,
            rest,
            each!(ty, T, |_, a, b, _| { if b >= u64::from(T::BITS) { 0 } else { (T::of(a) << b).bits() } }),
            ty,
        ),
        ("shr", _) => shift(
            words,
            rest,
            each!(ty, T, |_, a, b, _| {
                let by = (b as u32).min(T::BITS);
                (T::of(a) >> by.min(T::BITS - 1)).bits() & if by == T::BITS && T::MIN == 0 { 0 } else { u64::MAX }
            }),
            ty,
        ),
        ("shf", [direction @ ("l" | "r"), mode @ ("wrap" | "clamp")]) if ty == Type::B32 => {
            let f: Function = match (*direction, *mode) {
                ("l", "wrap") => |_, a, b, c| funnel(a, b) << (c & 31) >> 32,
                ("l", _) => |_, a, b, c| funnel(a, b) << (c & mask(32)).min(32) >> 32 & mask(32),
                (_, "wrap") => |_, a, b, c| funnel(a, b) >> (c & 31) & mask(32),
                _ => |_, a, b, c| funnel(a, b) >> (c & mask(32)).min(32) & mask(32),
            };
            Ok(Some(Chosen::new(f, &[ty, ty, Type::U32], ty)))
        }
        ("popc", _) if ty.bits() >= 32 => counting(words, rest, |_, a, _, _| u64::from(a.count_ones()), ty),
        ("clz", _) if ty == Type::B32 => counting(words, rest, |_, a, _, _| u64::from((a as u32).leading_zeros()), ty),
        ("clz", _) if ty == Type::B64 => counting(words, rest, |_, a, _, _| u64::from(a.leading_zeros()), ty),
        ("brev", _) => plain(each!(ty, T, |_, a, _, _| T::of(a).reverse_bits().bits(), B32 => u32, B64 => u64), 1),
        ("bfind", [] | ["shiftamt"]) => {
            let f: Function = match (ty, rest.is_empty()) {
                (Type::U32, true) => |_, a, _, _| highest(a, 32).map_or(mask(32), u64::from),
                (Type::S32, true) => |_, a, _, _| highest(a ^ sign(a, 32), 32).map_or(mask(32), u64::from),
                (Type::U64, true) => |_, a, _, _| highest(a, 64).map_or(mask(32), u64::from),
                (Type::S64, true) => |_, a, _, _| highest(a ^ sign(a, 64), 64).map_or(mask(32), u64::from),
                (Type::U32, _) => |_, a, _, _| highest(a, 32).map_or(mask(32), |n| u64::from(31 - n)),
                (Type::S32, _) => |_, a, _, _| highest(a ^ sign(a, 32), 32).map_or(mask(32), |n| u64::from(31 - n)),
                (Type::U64, _) => |_, a, _, _| highest(a, 64).map_or(mask(32), |n| u64::from(63 - n)),
                (Type::S64, _) => |_, a, _, _| highest(a ^ sign(a, 64), 64).map_or(mask(32), |n| u64::from(63 - n)),
                _ => return unsupported(words.join(".")),
            };
            Ok(Some(Chosen::new(f, &[ty], Type::U32)))
        }
        ("bfe", _) => {
            no_more(words, rest)?;
            let f: Function = match ty {
                Type::U32 => |_, a, b, c| extract(a, b, c, 32, false),
                Type::S32 => |_, a, b, c| extract(a, b, c, 32, true),
                Type::U64 => |_, a, b, c| extract(a, b, c, 64, false),
                Type::S64 => |_, a, b, c| extract(a, b, c, 64, true),
                _ => return unsupported(words.join(".")),
            };
            Ok(Some(Chosen::new(f, &[ty, Type::U32, Type::U32], ty)))
        }
        ("bmsk", [mode @ ("clamp" | "wrap")]) if ty == Type::B32 => {
            let f: Function = if *mode == "clamp" {
                |_, a, b, _| if a >= 32 { 0 } else { mask(b.min(32) as u32) << a & mask(32) }
            } else {
                |_, a, b, _| mask((b & 31) as u32) << (a & 31) & mask(32)
            };
            Ok(Some(Chosen::new(f, &[ty; 2], ty)))
        }
        ("szext", [mode @ ("clamp" | "wrap")]) => {
            let f: Function = match (*mode, ty) {
                ("clamp", Type::S32) => |_, a, b, _| if b >= 32 { a } else { extend(a, b as u32, true) },
                ("clamp", Type::U32) => |_, a, b, _| if b >= 32 { a } else { extend(a, b as u32, false) },
                ("wrap", Type::S32) => |_, a, b, _| extend(a, b as u32 & 31, true),
                ("wrap", Type::U32) => |_, a, b, _| extend(a, b as u32 & 31, false),
                _ => return unsupported(words.join(".")),
            };
            Ok(Some(Chosen::new(f, &[ty, Type::U32], ty)))
        }
        ("dp4a" | "dp2a", _) => dot(words),
        _ => Ok(None),
    }
}

/// The highest bit that is set.
fn highest(a: u64, bits: u32) -> Option<u32> {
    (a & mask(bits)).checked_ilog2()
}

/// All ones if the value is negative.
fn sign(a: u64, bits: u32) -> u64 {
    (sign_extend(a, bits) >> 63) as u64
}

fn halves(a: u64, b: u64, f: impl Fn(u16, u16) -> u16) -> u64 {
    u64::from(f(a as u16, b as u16)) | u64::from(f((a >> 16) as u16, (b >> 16) as u16)) << 16
}

fn funnel(low: u64, high: u64) -> u64 {
    (low & mask(32)) | high << 32
}

fn extend(a: u64, bits: u32, signed: bool) -> u64 {
    if bits == 0 {
        return 0;
    }
    if signed { sign_extend(a, bits) as u64 & mask(32) } else { a & mask(bits) }
}

fn doubled(ty: Type) -> Type {
    match ty {
        Type::U16 => Type::U32,
        Type::S16 => Type::S32,
        Type::U32 => Type::U64,
        _ => Type::S64,
    }
}

fn logic(words: &[&str], rest: &[&str], ty: Type, f: Function, count: usize) -> Result<Option<Chosen>> {
    no_more(words, rest)?;
    match ty {
        Type::Pred | Type::B16 | Type::B32 | Type::B64 => Ok(Some(Chosen::new(f, &vec![ty; count], ty))),
        _ => unsupported(words.join(".")),
    }
}

fn shift(words: &[&str], rest: &[&str], f: Option<Function>, ty: Type) -> Result<Option<Chosen>> {
    no_more(words, rest)?;
    match f {
        Some(f) => Ok(Some(Chosen::new(f, &[ty, Type::U32], ty))),
        None => unsupported(words.join(".")),
    }
}

fn counting(words: &[&str], rest: &[&str], f: Function, ty: Type) -> Result<Option<Chosen>> {
    no_more(words, rest)?;
    Ok(Some(Chosen::new(f, &[ty], Type::U32)))
}

fn lop3(mode: Mode, a: u64, b: u64, c: u64) -> u64 {
    let mut result = 0;
    for index in 0..8u32 {
        if mode.table >> index & 1 == 1 {
            let pick = |x: u64, bit: u32| if index >> bit & 1 == 1 { x } else { !x };
            result |= pick(a, 2) & pick(b, 1) & pick(c, 0);
        }
    }
    result & mask(32)
}

/// `len` bits of `a` from `pos`; bits beyond the top are the sign.
fn extract(a: u64, pos: u64, len: u64, bits: u32, signed: bool) -> u64 {
    let (pos, len) = ((pos & 255) as u32, (len & 255) as u32);
    if len == 0 {
        return 0;
    }
    let wide = if signed { i128::from(sign_extend(a, bits)) } else { i128::from(a) };
    let field = wide >> pos.min(127);
    let len = len.min(bits);
    let field = field as u64 & mask(len);
    let top = pos + len;
    let sign = if signed && top <= bits {
        sign_extend(field, len) as u64
    } else if signed {
        // The sign comes from the top bit of the value.
        (wide >> pos.min(127)) as u64
    } else {
        field
    };
    sign & mask(bits)
}

/// `b` with `len` bits of `a` put at `pos`.
pub(crate) fn insert(a: u64, b: u64, pos: u64, len: u64, bits: u32) -> u64 {
    let (pos, len) = ((pos & 255) as u32, (len & 255) as u32);
    if pos >= bits || len == 0 {
        return b;
    }
    let field = mask(len.min(bits)) << pos;
    ((b & !field) | (a << pos & field)) & mask(bits)
}

pub(super) fn permute(words: &[&str]) -> Result<Option<Chosen>> {
    let f: Function = match words {
        ["prmt", "b32"] => |_, a, b, c| bytes_by(a, b, |i| (c >> (4 * i)) as u32 & 15),
        ["prmt", "b32", mode] => match *mode {
            "f4e" => |_, a, b, c| bytes_by(a, b, |i| c as u32 % 4 + i),
            "b4e" => |_, a, b, c| bytes_by(a, b, |i| (c as u32 % 4).wrapping_sub(i) & 7),
            "rc8" => |_, a, b, c| bytes_by(a, b, |_| c as u32 % 4),
            "ecl" => |_, a, b, c| bytes_by(a, b, |i| i.max(c as u32 % 4)),
            "ecr" => |_, a, b, c| bytes_by(a, b, |i| i.min(c as u32 % 4)),
            "rc16" => |_, a, b, c| bytes_by(a, b, |i| (c as u32 & 1) * 2 + i % 2),
            _ => return unsupported(words.join(".")),
        },
        _ => return unsupported(words.join(".")),
    };
    Ok(Some(Chosen::new(f, &[Type::B32; 3], Type::B32)))
}

/// Four bytes chosen among eight; bit 3 of a choice spreads its sign.
fn bytes_by(a: u64, b: u64, choose: impl Fn(u32) -> u32) -> u64 {
    let all = funnel(a, b).to_le_bytes();
    let mut result = 0;
    for index in 0..4 {
        let choice = choose(index);
        let byte = all[(choice & 7) as usize];
        let byte = if choice & 8 != 0 { ((byte as i8) >> 7) as u8 } else { byte };
        result |= u64::from(byte) << (8 * index);
    }
    result
}

fn byte(x: u64, index: u32, signed: bool) -> i64 {
    let byte = (x >> (8 * index)) as u8;
    if signed { i64::from(byte as i8) } else { i64::from(byte) }
}

fn half(x: u64, index: u32, signed: bool) -> i64 {
    let half = (x >> (16 * index)) as u16;
    if signed { i64::from(half as i16) } else { i64::from(half) }
}

fn dot4<const A: bool, const B: bool>(_: Mode, a: u64, b: u64, c: u64) -> u64 {
    let sum: i64 = (0..4).map(|i| byte(a, i, A) * byte(b, i, B)).sum();
    (c as i64).wrapping_add(sum) as u64 & mask(32)
}

fn dot2<const A: bool, const B: bool, const HIGH: bool>(_: Mode, a: u64, b: u64, c: u64) -> u64 {
    let from = if HIGH { 2 } else { 0 };
    let sum: i64 = (0..2).map(|i| half(a, i, A) * byte(b, from + i, B)).sum();
    (c as i64).wrapping_add(sum) as u64 & mask(32)
}

fn dot(words: &[&str]) -> Result<Option<Chosen>> {
    let (f, a, b): (Function, _, _) = match words {
        ["dp4a", a, b] => match (*a, *b) {
            ("u32", "u32") => (dot4::<false, false>, false, false),
            ("u32", "s32") => (dot4::<false, true>, false, true),
            ("s32", "u32") => (dot4::<true, false>, true, false),
            ("s32", "s32") => (dot4::<true, true>, true, true),
            _ => return unsupported(words.join(".")),
        },
        ["dp2a", mode @ ("lo" | "hi"), a, b] => match (*a, *b, *mode) {
            ("u32", "u32", "lo") => (dot2::<false, false, false>, false, false),
            ("u32", "s32", "lo") => (dot2::<false, true, false>, false, true),
            ("s32", "u32", "lo") => (dot2::<true, false, false>, true, false),
            ("s32", "s32", "lo") => (dot2::<true, true, false>, true, true),
            ("u32", "u32", _) => (dot2::<false, false, true>, false, false),
            ("u32", "s32", _) => (dot2::<false, true, true>, false, true),
            ("s32", "u32", _) => (dot2::<true, false, true>, true, false),
            ("s32", "s32", _) => (dot2::<true, true, true>, true, true),
            _ => return unsupported(words.join(".")),
        },
        _ => return unsupported(words.join(".")),
    };
    let ty = |signed: bool| if signed { Type::S32 } else { Type::U32 };
    let result = ty(a || b);
    let mut chosen = Chosen::new(f, &[ty(a), ty(b), result], result);
    chosen.flops = Some(crate::report::Flops { kind: crate::report::FlopKind::IntegerDot, each: 8 });
    Ok(Some(chosen))
}
