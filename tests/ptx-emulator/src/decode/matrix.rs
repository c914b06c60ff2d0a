//! Matrix instructions: fragments, products of a warp, products of a warpgroup.

use super::args::Builder;
use super::memory::space;
use crate::error::{Result, operand, unsupported};
use crate::matrix::{Fragment, Kind, Matrix, Product, Sum};
use crate::program::{Op, Src};
use crate::report::Flops;
use crate::syntax::Operand;
use crate::types::{Space, Type};

pub(super) fn fragments(b: &mut Builder, words: &[&str]) -> Result<Op> {
    let [_, "sync", "aligned", "m8n8", count, rest @ .., "b16"] = words else { return unsupported(words.join(".")) };
    let count = match *count {
        "x1" => 1,
        "x2" => 2,
        "x4" => 4,
        _ => return unsupported(words.join(".")),
    };
    let (transposed, rest) = match rest {
        ["trans", rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let at = match rest {
        [] => Space::Generic,
        [word] => match space(word) {
            Some(Space::Shared) => Space::Shared,
            _ => return unsupported(words.join(".")),
        },
        _ => return unsupported(words.join(".")),
    };
    if words[0] == "ldmatrix" {
        let d = b.destinations(count, Type::B32)?;
        Ok(Op::LoadMatrix { space: at, address: b.address_in(at)?, d, transposed })
    } else {
        let address = b.address_in(at)?;
        Ok(Op::StoreMatrix { space: at, address, s: b.sources(count, Type::B32)?, transposed })
    }
}

/// `m16n8k16` and its like.
fn shape(word: &str) -> Option<(u32, u32, u32)> {
    let (m, rest) = word.strip_prefix('m')?.split_once('n')?;
    let (n, k) = rest.split_once('k')?;
    Some((m.parse().ok()?, n.parse().ok()?, k.parse().ok()?))
}

fn sum(word: &str) -> Option<Sum> {
    Some(match word {
        "f32" => Sum::F32,
        "f16" => Sum::F16,
        "s32" => Sum::S32,
        _ => return None,
    })
}

/// Whether factors of these kinds make such a sum.
fn fits(product: &Product) -> bool {
    let Product { a, b, sum, .. } = *product;
    match sum {
        Sum::S32 => a.is_integer() && b.is_integer(),
        Sum::F16 => a == Kind::F16 && b == Kind::F16 || a.is_fp8() && b.is_fp8(),
        Sum::F32 => a == b && matches!(a, Kind::F16 | Kind::Bf16 | Kind::Tf32) || a.is_fp8() && b.is_fp8(),
    }
}

pub(super) fn mma(b: &mut Builder, words: &[&str]) -> Result<Op> {
    let ["mma", "sync", "aligned", dims, "row", "col", rest @ ..] = words else {
        return unsupported(words.join("."));
    };
    let (saturate, rest) = match rest {
        ["satfinite", rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let ([d, x, y, c], Some((m, n, k))) = (rest, shape(dims)) else { return unsupported(words.join(".")) };
    let (Some(sum), Some(x), Some(y)) = (sum(d).filter(|_| d == c), Kind::parse(x), Kind::parse(y)) else {
        return unsupported(words.join("."));
    };
    let product = Product { m, n, k, a: x, b: y, sum, saturate };
    let shaped = match x {
        Kind::F16 | Kind::Bf16 => matches!(k, 8 | 16),
        Kind::Tf32 => matches!(k, 4 | 8),
        Kind::S8 | Kind::U8 => matches!(k, 16 | 32),
        Kind::E4m3 | Kind::E5m2 => k == 32,
    };
    if (m, n) != (16, 8) || !shaped || !fits(&product) || saturate && sum != Sum::S32 {
        return unsupported(words.join("."));
    }
    // Four bytes of a row for each lane of four, eight rows; twice as many below.
    let a_registers = (m * k * x.bytes() / 128) as usize;
    let b_registers = (n * k * y.bytes() / 128) as usize;
    let (sums, ty) = match sum {
        Sum::F32 => (4, Type::F32),
        Sum::S32 => (4, Type::S32),
        Sum::F16 => (2, Type::B32),
    };
    let d = b.destinations(sums, ty)?;
    let x = b.sources(a_registers, Type::B32)?;
    let y = b.sources(b_registers, Type::B32)?;
    let c = b.sources(sums, ty)?;
    b.float(Some(Flops { kind: product.a.flops(), each: (product.flops() / 32) as u32 }));
    Ok(Op::Mma { product, d, a: x, b: y, c })
}

pub(super) fn wgmma(b: &mut Builder, words: &[&str]) -> Result<Op> {
    match words {
        ["wgmma", "fence", "sync", "aligned"] => return Ok(Op::WgmmaFence),
        ["wgmma", "commit_group", "sync", "aligned"] => return Ok(Op::WgmmaCommit),
        ["wgmma", "wait_group", "sync", "aligned"] => {
            let left = b.constant()?;
            if left > 7 {
                return operand("a number of groups", "0 to 7", left.to_string());
            }
            return Ok(Op::WgmmaWait { left: left as u32 });
        }
        _ => {}
    }
    let ["wgmma", "mma_async", "sync", "aligned", dims, d, rest @ ..] = words else {
        return unsupported(words.join("."));
    };
    let (saturate, rest) = match rest {
        ["satfinite", rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let (saturate, rest) = match rest {
        [x, y, "satfinite"] => (true, &[*x, *y][..]),
        _ => (saturate, rest),
    };
    let ([x, y], Some((m, n, k))) = (rest, shape(dims)) else { return unsupported(words.join(".")) };
    let (Some(sum), Some(x), Some(y)) = (sum(d), Kind::parse(x), Kind::parse(y)) else {
        return unsupported(words.join("."));
    };
    let product = Product { m, n, k, a: x, b: y, sum, saturate };
    let columns = match sum {
        // Integer products leave some widths out.
        Sum::S32 => matches!(n, 8 | 16 | 24 | 32) || n.is_multiple_of(16) && (48..=256).contains(&n),
        _ => n.is_multiple_of(8) && (8..=256).contains(&n),
    };
    if m != 64 || k * x.bytes() != 32 || !columns || !fits(&product) || saturate && sum != Sum::S32 {
        return unsupported(words.join("."));
    }
    let (count, ty) = match sum {
        Sum::F32 => (n / 2, Type::F32),
        Sum::S32 => (n / 2, Type::S32),
        Sum::F16 => (n / 4, Type::B32),
    };
    let d = b.destinations(count as usize, ty)?;
    // Sums are read too, but only where the scale says so: the executor looks.
    let from_registers = matches!(b.peek(), Some(Operand::Vector(_)));
    let a_registers = if from_registers { Some(b.sources(4, Type::B32)?) } else { None };
    let a_descriptor = if from_registers { Src::Imm(0) } else { b.s(Type::B64)? };
    let b_descriptor = b.s(Type::B64)?;
    let scale_d = match b.peek() {
        Some(Operand::Integer(_)) => (b.s(Type::Pred)?, false),
        _ => b.predicate()?,
    };
    let sign = |b: &mut Builder| match b.constant()? as i64 {
        1 => Ok(false),
        -1 => Ok(true),
        other => operand("a sign", "1 or -1", other.to_string()),
    };
    let negate = if sum == Sum::S32 { [false; 2] } else { [sign(b)?, sign(b)?] };
    let across = |b: &mut Builder| match b.constant()? {
        0 => Ok(false),
        1 => Ok(true),
        other => operand("a transposition", "0 or 1", other.to_string()),
    };
    let mut transposed = [false; 2];
    if x.bytes() == 2 && b.left() > 0 {
        if !from_registers {
            transposed[0] = across(b)?;
        }
        transposed[1] = across(b)?;
    }
    b.float(Some(Flops { kind: product.a.flops(), each: (product.flops() / 128) as u32 }));
    let a = match a_registers {
        Some(registers) => Fragment::Registers(registers),
        None => Fragment::Shared(Matrix { descriptor: a_descriptor, transposed: transposed[0] }),
    };
    let factor = Matrix { descriptor: b_descriptor, transposed: transposed[1] };
    Ok(Op::Wgmma { product, d, a, b: factor, scale_d, negate })
}

pub(super) fn registers(b: &mut Builder, words: &[&str]) -> Result<Op> {
    let ["setmaxnreg", kind @ ("inc" | "dec"), "sync", "aligned", "u32"] = words else {
        return unsupported(words.join("."));
    };
    let count = b.constant()?;
    if !(24..=256).contains(&count) || !count.is_multiple_of(8) {
        return operand("a number of registers", "a multiple of 8 from 24 to 256", count.to_string());
    }
    Ok(Op::SetMaxRegisters { count: count as u32, increase: *kind == "inc" })
}
