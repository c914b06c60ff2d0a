//! Arithmetic on raw bits, one lane at a time.

use super::super::*;
use crate::ops::map::pow2_ceil;
use hadal_types::minifloat as mini;
use half::{bf16, f16};

fn f(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

fn bits(x: f32) -> u64 {
    x.to_bits() as u64
}

/// A 32- or 64-bit integer as i64.
fn int(elem: DType, bits: u64) -> i64 {
    match elem {
        DType::I32 => bits as i32 as i64,
        _ => bits as i64,
    }
}

/// The bits of an integer wrapped to its width.
fn wrap(elem: DType, x: i64) -> u64 {
    match elem {
        DType::Bool => (x & 1) as u64,
        DType::I32 => x as u32 as u64,
        _ => x as u64,
    }
}

pub(super) fn unary(op: UnaryOp, elem: DType, a: u64) -> u64 {
    // The functions below are evaluated in f64 and rounded once.
    let wide = |g: fn(f64) -> f64| bits(g(f(a) as f64) as f32);
    match (op, elem) {
        (UnaryOp::Neg, DType::F32) => a ^ 0x8000_0000,
        (UnaryOp::Abs, DType::F32) => a & 0x7fff_ffff,
        (UnaryOp::Neg, _) => wrap(elem, int(elem, a).wrapping_neg()),
        (UnaryOp::Abs, _) => wrap(elem, int(elem, a).wrapping_abs()),
        (UnaryOp::Not, _) => wrap(elem, !int(elem, a)),
        (UnaryOp::Sqrt, _) => bits(f(a).sqrt()),
        (UnaryOp::Floor, _) => bits(f(a).floor()),
        (UnaryOp::Pow2Ceil, _) => wide(pow2_ceil),
        (UnaryOp::Exp, _) => wide(libm::exp),
        (UnaryOp::Exp2, _) => wide(|x| if x < f64::from(f32::MIN_EXP - 1) { 0.0 } else { libm::exp2(x) }),
        (UnaryOp::Log, _) => wide(libm::log),
        (UnaryOp::Sin, _) => wide(libm::sin),
        (UnaryOp::Cos, _) => wide(libm::cos),
        (UnaryOp::Tanh, _) => wide(libm::tanh),
        (UnaryOp::Erf, _) => wide(libm::erf),
    }
}

/// Integer divisors are not zero.
pub(super) fn binary(op: BinaryOp, elem: DType, a: u64, b: u64) -> u64 {
    if elem == DType::F32 {
        let (x, y) = (f(a), f(b));
        return bits(match op {
            BinaryOp::Add => x + y,
            BinaryOp::Sub => x - y,
            BinaryOp::Mul => x * y,
            BinaryOp::Div => x / y,
            BinaryOp::Min => return if x < y { a } else { b },
            BinaryOp::Max => return if x > y { a } else { b },
            BinaryOp::Rem
            | BinaryOp::And
            | BinaryOp::Or
            | BinaryOp::Xor
            | BinaryOp::Shl
            | BinaryOp::Shr
            | BinaryOp::Ushr => unreachable!("verified: no bit operations on f32"),
        });
    }
    let (x, y) = (int(elem, a), int(elem, b));
    let count = (y as u32) & (elem.bits() as u32 - 1);
    let result = match op {
        BinaryOp::Add => x.wrapping_add(y),
        BinaryOp::Sub => x.wrapping_sub(y),
        BinaryOp::Mul => x.wrapping_mul(y),
        BinaryOp::Div => x.wrapping_div(y),
        BinaryOp::Rem => x.wrapping_rem(y),
        BinaryOp::Min => x.min(y),
        BinaryOp::Max => x.max(y),
        BinaryOp::And => x & y,
        BinaryOp::Or => x | y,
        BinaryOp::Xor => x ^ y,
        BinaryOp::Shl => x << count,
        BinaryOp::Shr => x >> count,
        BinaryOp::Ushr => (a >> count) as i64,
    };
    wrap(elem, result)
}

pub(super) fn compare(op: CompareOp, elem: DType, a: u64, b: u64) -> bool {
    fn holds<T: PartialOrd>(op: CompareOp, x: T, y: T) -> bool {
        match op {
            CompareOp::Eq => x == y,
            CompareOp::Ne => x != y,
            CompareOp::Lt => x < y,
            CompareOp::Le => x <= y,
            CompareOp::Gt => x > y,
            CompareOp::Ge => x >= y,
        }
    }
    match elem {
        DType::F32 => holds(op, f(a), f(b)),
        _ => holds(op, int(elem, a), int(elem, b)),
    }
}

pub(super) fn fma(a: u64, b: u64, c: u64) -> u64 {
    bits(f(a).mul_add(f(b), f(c)))
}

/// A tile of sums, with the products of rows added: in each of two steps those of four elements of every quarter.
pub(super) fn matrix([a, b, c]: [&dyn Fn(usize) -> u64; 3]) -> Vec<u64> {
    let rows = |operand: usize, get: &dyn Fn(usize) -> u64| {
        let mut rows = vec![[0f64; 32]; if operand == 0 { 16 } else { 8 }];
        for lane in 0..MATRIX[operand].lanes {
            let (row, column) = matrix_place(operand, lane);
            rows[row as usize][column as usize] = bf16::from_bits(get(lane as usize) as u16).to_f64();
        }
        rows
    };
    let (a, b) = (rows(0, a), rows(1, b));
    let sum = |lane: u32| {
        let (row, column) = matrix_place(2, lane);
        let (a, b) = (&a[row as usize], &b[column as usize]);
        (0..2).fold(f(c(lane as usize)), |sum, step| {
            // Pairs of each quarter, then the next ones: the order in which hardware numbers them.
            let places = (0..16).map(|i| i / 2 % 4 * 8 + 4 * step + i / 8 * 2 + i % 2);
            (f64::from(sum) + places.map(|k| a[k] * b[k]).sum::<f64>()) as f32
        })
    };
    (0..MATRIX[2].lanes).map(|lane| bits(sum(lane))).collect()
}

/// Sixteen rows times eight columns, added to sums whose lanes are those of [`Op::Matrix`].
pub(super) fn products(
    format: DType,
    (rows, columns): (&[Vec<u64>], &[Vec<u64>]),
    sum: impl Fn(usize) -> u64,
) -> Vec<u64> {
    let values = |rows: &[Vec<u64>]| -> Vec<Vec<f64>> {
        let value = |x: &u64| f64::from(f(cast(format, DType::F32, *x)));
        rows.iter().map(|row| row.iter().map(value).collect()).collect()
    };
    let (a, b) = (values(rows), values(columns));
    let step = (WGMMA_STEP * 8 / format.bits()) as usize;
    let total = |lane: u32| {
        let (row, column) = matrix_place(2, lane);
        let pairs = a[row as usize].chunks(step).zip(b[column as usize].chunks(step));
        pairs.fold(f(sum(lane as usize)), |sum, (a, b)| {
            (f64::from(sum) + a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>()) as f32
        })
    };
    (0..MATRIX[2].lanes).map(|lane| bits(total(lane))).collect()
}

/// One product of a dot product added to the sum.
pub(super) fn dot_step(elem: DType, a: u64, b: u64, sum: u64) -> u64 {
    if elem != DType::BF16 {
        let a = if elem == DType::U8 { a as u8 as i32 } else { a as i8 as i32 };
        return (sum as i32).wrapping_add(a * b as i8 as i32) as u32 as u64;
    }
    let flush = |x: f32| if x.abs() < f32::MIN_POSITIVE { 0f32.copysign(x) } else { x };
    let [a, b] = [a, b].map(|x| flush(bf16::from_bits(x as u16).to_f32()));
    let sum = flush(f(sum));
    let result = a.mul_add(b, sum);
    // Where rounding made it the smallest normal number, it may have been smaller before: see without a limit.
    if result.abs() == f32::MIN_POSITIVE {
        let lift = 2f32.powi(64);
        let (small, large) = if a.abs() < b.abs() { (a, b) } else { (b, a) };
        if (small * lift).mul_add(large, sum * lift).abs() < f32::MIN_POSITIVE * lift {
            return bits(0f32.copysign(result));
        }
    }
    bits(flush(result))
}

/// A conversion that [`super::super::verify::can_cast`] allows.
pub(super) fn cast(from: DType, to: DType, x: u64) -> u64 {
    if from == to {
        return x;
    }
    let whole = match from {
        DType::Bool | DType::U8 => x as u8 as i64,
        DType::I8 => x as i8 as i64,
        DType::U4 => (x & 15) as i64,
        DType::I4 => ((x & 15) ^ 8) as i64 - 8,
        DType::I32 => x as i32 as i64,
        DType::I64 => x as i64,
        DType::F64 | DType::F32 | DType::F16 | DType::BF16 | DType::F8E4M3 | DType::F8E8M0 | DType::F4E2M1 => {
            return from_f32(to, to_f32(from, x));
        }
    };
    match to {
        DType::Bool => (whole != 0) as u64,
        DType::U8 | DType::I8 => whole as u8 as u64,
        DType::I32 => whole as u32 as u64,
        DType::I64 => whole as u64,
        DType::U4 | DType::I4 => unreachable!("nothing is cast to them"),
        DType::F64 | DType::F32 | DType::F16 | DType::BF16 | DType::F8E4M3 | DType::F8E8M0 | DType::F4E2M1 => {
            from_f32(to, whole as f32)
        }
    }
}

fn to_f32(from: DType, x: u64) -> f32 {
    match from {
        DType::F64 => f64::from_bits(x) as f32,
        DType::F16 => f16::from_bits(x as u16).to_f32(),
        DType::BF16 => bf16::from_bits(x as u16).to_f32(),
        DType::F8E4M3 => mini::e4m3_to_f32(x as u8),
        DType::F8E8M0 => mini::e8m0_to_f32(x as u8),
        DType::F4E2M1 => mini::e2m1_to_f32(x as u8),
        DType::F32 | DType::Bool | DType::U8 | DType::I8 | DType::I32 | DType::I64 | DType::U4 | DType::I4 => f(x),
    }
}

fn from_f32(to: DType, x: f32) -> u64 {
    match to {
        DType::Bool => (x != 0.0) as u64,
        DType::U8 => x as u8 as u64,
        DType::I8 => x as i8 as u8 as u64,
        DType::I32 => x as i32 as u32 as u64,
        DType::I64 => x as i64 as u64,
        DType::F64 => (x as f64).to_bits(),
        DType::F32 => bits(x),
        DType::F16 => f16::from_f32(x).to_bits() as u64,
        DType::BF16 => bf16::from_f32(x).to_bits() as u64,
        DType::F8E4M3 => mini::e4m3_from_f32(x) as u64,
        DType::F8E8M0 => mini::e8m0_from_f64(x as f64) as u64,
        DType::F4E2M1 => mini::e2m1_from_f64(x as f64) as u64,
        DType::U4 | DType::I4 => unreachable!("nothing is cast to them"),
    }
}
