//! Instructions of single lanes: arithmetic, moves, comparisons, jumps.

use super::args::Builder;
use super::last_type;
use crate::alu;
use crate::alu::compare::Comparison;
use crate::alu::convert::Conversion;
use crate::error::{Result, operand, unsupported};
use crate::float::approx::Approx;
use crate::program::{Bool, Op, Special, Src};
use crate::syntax::Operand;
use crate::types::Type;

const ZERO: Src = Src::Imm(0);

pub(super) fn instruction(b: &mut Builder, words: &[&str]) -> Result<Op> {
    match words {
        ["bra"] | ["bra", "uni"] => Ok(Op::Branch { target: b.label()? }),
        ["ret"] | ["ret", "uni"] => Ok(Op::Return),
        ["exit"] => Ok(Op::Exit),
        ["trap"] | ["brkpt"] => Ok(Op::Trap),
        ["nanosleep", "u32"] => {
            b.s(Type::U32)?;
            Ok(Op::Nothing)
        }
        ["griddepcontrol", "launch_dependents" | "wait"] => Ok(Op::Nothing),
        ["pmevent"] => {
            b.constant()?;
            Ok(Op::Nothing)
        }
        ["mov", ty] => mov(b, ty),
        ["selp", ty] => {
            let Some(ty) = Type::parse(ty).filter(|&t| t != Type::Pred) else { return unsupported(words.join(".")) };
            b.passes = true;
            let (d, x, y) = (b.d(ty)?, b.s(ty)?, b.s(ty)?);
            let p = b.s(Type::Pred)?;
            Ok(Op::Select { d, a: x, b: y, p })
        }
        ["setp", ..] => setp(b, words),
        ["set", ..] => set(b, words),
        ["cvt", "pack", ..] => unsupported(words.join(".")),
        ["cvt", ..] => {
            let conversion = Conversion::parse(words)?;
            let (d, width) = b.d_wide(container(conversion.to))?;
            let extend = if conversion.to.is_signed() { width } else { 0 };
            let from = container(conversion.from);
            let x = if conversion.from.is_float() { b.s(from)? } else { b.s_wide(from)? };
            let y = if conversion.takes_two() { b.s(from)? } else { ZERO };
            Ok(Op::Convert { conversion, d, extend, a: x, b: y })
        }
        ["bfi", ty @ ("b32" | "b64")] => {
            let ty = if *ty == "b32" { Type::B32 } else { Type::B64 };
            let d = b.d(ty)?;
            let s = [b.s(ty)?, b.s(ty)?, b.s(Type::U32)?, b.s(Type::U32)?];
            Ok(Op::Insert { d, s, bits: ty.bits() })
        }
        ["add" | "addc" | "sub" | "subc", .., "cc", _] | ["addc" | "subc", _] => {
            let ty = last_type(words)?;
            if words.len() > 3 || ty.is_float() || !matches!(ty.bits(), 32 | 64) {
                return unsupported(words.join("."));
            }
            let (d, x, y) = (b.d(ty)?, b.s(ty)?, b.s(ty)?);
            let (takes, gives) = (words[0].ends_with('c'), words[1] == "cc");
            let carry = b.carry;
            if takes {
                b.reads.push(carry);
            }
            if gives {
                b.writes.push(carry);
            }
            let subtract = words[0].starts_with("sub");
            Ok(Op::Carry { d, a: x, b: y, carry, subtract, takes, gives, bits: ty.bits() })
        }
        ["ex2" | "lg2" | "rcp" | "rsqrt" | "sqrt" | "sin" | "cos" | "tanh", "approx", ..] => approx(b, words),
        ["lop3", "b32"] => {
            let Some(mut chosen) = alu::choose(words)? else { return unsupported(words.join(".")) };
            let d = b.d(Type::B32)?;
            let s = [b.s(Type::B32)?, b.s(Type::B32)?, b.s(Type::B32)?];
            chosen.mode.table = b.constant()? as u8;
            Ok(Op::Alu { function: chosen.function, mode: chosen.mode, d, s })
        }
        _ => {
            let Some(chosen) = alu::choose(words)? else { return unsupported(words.join(".")) };
            let d = b.d(chosen.result)?;
            let mut s = [ZERO; 3];
            for (slot, ty) in s.iter_mut().zip(&chosen.operands) {
                *slot = b.s(*ty)?;
            }
            b.float(chosen.flops);
            Ok(Op::Alu { function: chosen.function, mode: chosen.mode, d, s })
        }
    }
}

/// The bits a value of a conversion has in a register.
fn container(ty: Type) -> Type {
    match ty {
        Type::E4m3x2 | Type::E5m2x2 => Type::B16,
        Type::Tf32 => Type::B32,
        other => other,
    }
}

fn approx(b: &mut Builder, words: &[&str]) -> Result<Op> {
    let which = match words[0] {
        "ex2" => Approx::Exp2,
        "lg2" => Approx::Log2,
        "rcp" => Approx::Reciprocal,
        "rsqrt" => Approx::ReciprocalRoot,
        "sqrt" => Approx::Root,
        "sin" => Approx::Sine,
        "cos" => Approx::Cosine,
        _ => Approx::Tanh,
    };
    let flush = match &words[2..] {
        ["f32"] => false,
        ["ftz", "f32"] => true,
        _ => return unsupported(words.join(".")),
    };
    Ok(Op::Approx { which, flush, d: b.d(Type::F32)?, a: b.s(Type::F32)? })
}

fn mov(b: &mut Builder, ty: &str) -> Result<Op> {
    let Some(ty) = Type::parse(ty) else { return unsupported(format!("mov.{ty}")) };
    b.passes = true;
    let to = b.next()?;
    let from = b.next()?;
    match (to, from) {
        (Operand::Vector(elements), from) => {
            let bits = part(ty, elements.len())?;
            let mut d = Vec::new();
            for element in elements {
                d.push(match element {
                    Operand::Sink => None,
                    element => Some(b.d_of(element, plain(bits), false)?),
                });
            }
            Ok(Op::Unpack { d: d.into(), a: b.s_of(from, ty, false)?, bits })
        }
        (to, Operand::Vector(elements)) => {
            let bits = part(ty, elements.len())?;
            let parts = elements.iter().map(|e| b.s_of(e, plain(bits), false)).collect::<Result<Vec<_>>>()?;
            Ok(Op::Pack { d: b.d_of(to, ty, false)?, parts: parts.into(), bits })
        }
        (to, Operand::Special(name)) => {
            let which = special(name).map_or_else(|| b.undeclared(name), Ok)?;
            let wide = matches!(&**name, "%clock64" | "%globaltimer" | "%gridid");
            if ty.bits()
                != if wide {
                    64
                } else if which == Special::ExplicitCluster {
                    1
                } else {
                    32
                }
            {
                return operand(&**name, if wide { ".u64" } else { ".u32" }, ty.to_string());
            }
            Ok(Op::Special { d: b.d_of(to, ty, false)?, which })
        }
        (to, from) => Ok(Op::Move { d: b.d_of(to, ty, false)?, a: b.s_of(from, ty, false)? }),
    }
}

/// The width of a part of a register.
fn part(ty: Type, count: usize) -> Result<u32> {
    match (ty.bits(), count) {
        (bits @ (16 | 32 | 64), 2 | 4) if bits / count as u32 >= 8 => Ok(bits / count as u32),
        _ => operand("a vector", format!("parts of {ty}"), count.to_string()),
    }
}

fn plain(bits: u32) -> Type {
    match bits {
        8 => Type::B8,
        16 => Type::B16,
        32 => Type::B32,
        _ => Type::B64,
    }
}

fn special(name: &str) -> Option<Special> {
    let axis = |letter: &str| ["x", "y", "z"].iter().position(|a| *a == letter);
    if let Some((name, letter)) = name.split_once('.') {
        let axis = axis(letter)?;
        return Some(match name {
            "%tid" => Special::Tid(axis),
            "%ntid" => Special::Ntid(axis),
            "%ctaid" => Special::Ctaid(axis),
            "%nctaid" => Special::Nctaid(axis),
            "%clusterid" => Special::Clusterid(axis),
            "%nclusterid" => Special::Nclusterid(axis),
            "%cluster_ctaid" => Special::ClusterCtaid(axis),
            "%cluster_nctaid" => Special::ClusterNctaid(axis),
            _ => return None,
        });
    }
    Some(match name {
        "%cluster_ctarank" => Special::ClusterRank,
        "%cluster_nctarank" => Special::ClusterSize,
        "%laneid" => Special::Lane,
        "%warpid" => Special::Warp,
        "%nwarpid" => Special::Warps,
        "%smid" => Special::Multiprocessor,
        "%nsmid" => Special::Multiprocessors,
        "%gridid" => Special::Grid,
        "%clock" | "%clock64" | "%globaltimer" | "%globaltimer_lo" | "%globaltimer_hi" | "%clock_hi" => Special::Clock,
        "%lanemask_eq" => Special::LanesEq,
        "%lanemask_lt" => Special::LanesLt,
        "%lanemask_le" => Special::LanesLe,
        "%lanemask_gt" => Special::LanesGt,
        "%lanemask_ge" => Special::LanesGe,
        "%dynamic_smem_size" => Special::DynamicShared,
        "%total_smem_size" => Special::TotalShared,
        "%is_explicit_cluster" => Special::ExplicitCluster,
        _ => return None,
    })
}

/// The comparison of an opcode's words, with the joining operation.
fn comparison(words: &[&str], ty: Type) -> Result<(Comparison, Option<Bool>)> {
    let mut flush = false;
    let mut with = None;
    let [name, rest @ ..] = words else { return unsupported("a comparison without a name") };
    for word in rest {
        match *word {
            "ftz" => flush = true,
            "and" => with = Some(Bool::And),
            "or" => with = Some(Bool::Or),
            "xor" => with = Some(Bool::Xor),
            _ => return unsupported(words.join(".")),
        }
    }
    Ok((Comparison::parse(name, ty, flush)?, with))
}

fn setp(b: &mut Builder, words: &[&str]) -> Result<Op> {
    let ty = last_type(words)?;
    let (comparison, with) = comparison(&words[1..words.len() - 1], ty)?;
    let (p, q) = b.d_pair(Type::Pred)?;
    let (x, y) = (b.s(ty)?, b.s(ty)?);
    let with = match with {
        Some(operation) => {
            let (c, negated) = b.predicate()?;
            Some((operation, c, negated))
        }
        None => None,
    };
    Ok(Op::Compare { comparison, p, q, a: x, b: y, with })
}

fn set(b: &mut Builder, words: &[&str]) -> Result<Op> {
    let ty = last_type(words)?;
    if words.len() < 4 {
        return unsupported(words.join("."));
    }
    let to = words[words.len() - 2];
    let ones = match to {
        "u32" | "s32" => 0xffff_ffff,
        "f32" => u64::from(1f32.to_bits()),
        _ => return unsupported(words.join(".")),
    };
    let (comparison, with) = comparison(&words[1..words.len() - 2], ty)?;
    if with.is_some() {
        return unsupported(words.join("."));
    }
    let d = b.d(Type::B32)?;
    let (x, y) = (b.s(ty)?, b.s(ty)?);
    Ok(Op::SetTo { comparison, d, a: x, b: y, ones })
}
