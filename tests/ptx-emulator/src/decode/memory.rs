//! Loads, stores, atomics and what turns addresses of one space into those of another.

use super::args::Builder;
use super::last_type;
use crate::error::{Result, operand, unsupported};
use crate::program::{AtomicOp, Op, Order, Scope, Src};
use crate::syntax::Operand;
use crate::types::{Space, Type};

/// Modifiers that loads, stores and atomics share.
pub(super) struct Access {
    pub space: Space,
    pub order: Order,
    pub scope: Scope,
    pub lanes: usize,
    pub hint: bool,
    /// What none of them is.
    rest: Vec<String>,
}

pub(super) fn space(word: &str) -> Option<Space> {
    Some(match word {
        "global" => Space::Global,
        "shared" | "shared::cta" => Space::Shared,
        "shared::cluster" => Space::SharedCluster,
        "local" => Space::Local,
        "const" => Space::Const,
        "param" | "param::entry" | "param::func" => Space::Param,
        _ => return None,
    })
}

pub(super) fn scope(word: &str) -> Option<Scope> {
    Some(match word {
        "cta" => Scope::Block,
        "cluster" => Scope::Cluster,
        "gpu" | "sys" | "gl" => Scope::Device,
        _ => return None,
    })
}

fn modifiers(words: &[&str]) -> Access {
    let mut found = Access {
        space: Space::Generic,
        order: Order::Weak,
        scope: Scope::Device,
        lanes: 1,
        hint: false,
        rest: Vec::new(),
    };
    for word in words {
        if let Some(s) = space(word) {
            found.space = s;
        } else if let Some(s) = scope(word) {
            found.scope = s;
        } else {
            match *word {
                "weak" => {}
                "relaxed" | "volatile" => found.order = Order::Relaxed,
                "acquire" => found.order = Order::Acquire,
                "release" => found.order = Order::Release,
                "acq_rel" => found.order = Order::AcquireRelease,
                "v2" => found.lanes = 2,
                "v4" => found.lanes = 4,
                "ca" | "cg" | "cs" | "lu" | "cv" | "wb" | "wt" | "nc" => {}
                "L1::evict_normal"
                | "L1::evict_unchanged"
                | "L1::evict_first"
                | "L1::evict_last"
                | "L1::no_allocate"
                | "L2::64B"
                | "L2::128B"
                | "L2::256B" => {}
                "L2::cache_hint" => found.hint = true,
                other => found.rest.push(other.to_owned()),
            }
        }
    }
    found
}

fn only_known(words: &[&str], access: &Access) -> Result<()> {
    if access.rest.is_empty() { Ok(()) } else { unsupported(words.join(".")) }
}

/// A cache policy, which changes nothing here.
pub(super) fn policy(b: &mut Builder, given: bool) -> Result<()> {
    if given {
        b.s(Type::B64)?;
    }
    Ok(())
}

pub(super) fn load(b: &mut Builder, words: &[&str]) -> Result<Op> {
    let ty = last_type(words)?;
    let access = modifiers(&words[1..words.len() - 1]);
    only_known(words, &access)?;
    let valid = matches!(access.order, Order::Weak | Order::Relaxed | Order::Acquire);
    if !valid || ty == Type::Pred || ty == Type::B128 || ty.bits() as usize * access.lanes > 128 {
        return unsupported(words.join("."));
    }
    let elements = b.elements()?;
    if elements.len() != access.lanes {
        return operand("the destination", access.lanes.to_string(), elements.len().to_string());
    }
    let (mut d, mut widths) = (Vec::new(), ty.bits());
    for element in elements {
        if matches!(element, Operand::Sink) {
            d.push(None);
            continue;
        }
        widths = b.width(element).unwrap_or(widths);
        d.push(Some(b.d_of(element, ty, true)?));
    }
    let (address, space) = address_in(b, access.space)?;
    policy(b, access.hint)?;
    Ok(Op::Load { space, address, d: d.into(), ty, widths, order: access.order, scope: access.scope })
}

pub(super) fn store(b: &mut Builder, words: &[&str]) -> Result<Op> {
    let ty = last_type(words)?;
    let access = modifiers(&words[1..words.len() - 1]);
    only_known(words, &access)?;
    let valid = matches!(access.order, Order::Weak | Order::Relaxed | Order::Release);
    if !valid || ty == Type::Pred || ty == Type::B128 || ty.bits() as usize * access.lanes > 128 {
        return unsupported(words.join("."));
    }
    let (address, space) = address_in(b, access.space)?;
    if space == Space::Const {
        return unsupported(words.join("."));
    }
    let elements = b.elements()?;
    if elements.len() != access.lanes {
        return operand("the source", access.lanes.to_string(), elements.len().to_string());
    }
    let s = elements.iter().map(|e| b.s_of(e, ty, true)).collect::<Result<Vec<_>>>()?;
    policy(b, access.hint)?;
    Ok(Op::Store { space, address, s: s.into(), ty, order: access.order, scope: access.scope })
}

/// An address, whose variable must be in the space of the instruction.
fn address_in(b: &mut Builder, space: Space) -> Result<(crate::program::Address, Space)> {
    let (address, variable) = b.address()?;
    match variable {
        Some(found) if found == space || space == Space::SharedCluster && found == Space::Shared => {
            Ok((address, space))
        }
        // A generic access takes variables of global memory by their addresses, which are the same.
        Some(Space::Global | Space::Const) if space == Space::Generic => Ok((address, space)),
        Some(found) => operand("the address", space.to_string(), found.to_string()),
        None => Ok((address, space)),
    }
}

pub(super) fn atomic_op(word: &str) -> Option<AtomicOp> {
    Some(match word {
        "add" => AtomicOp::Add,
        "min" => AtomicOp::Min,
        "max" => AtomicOp::Max,
        "and" => AtomicOp::And,
        "or" => AtomicOp::Or,
        "xor" => AtomicOp::Xor,
        "inc" => AtomicOp::Inc,
        "dec" => AtomicOp::Dec,
        "exch" => AtomicOp::Exch,
        "cas" => AtomicOp::Cas,
        _ => return None,
    })
}

/// Whether an operation exists for a type.
pub(super) fn atomic_fits(op: AtomicOp, ty: Type) -> bool {
    match op {
        AtomicOp::Add => matches!(
            ty,
            Type::U32
                | Type::S32
                | Type::U64
                | Type::F16x2
                | Type::Bf16x2
                | Type::F16
                | Type::Bf16
                | Type::F32
                | Type::F64
        ),
        AtomicOp::Min | AtomicOp::Max => matches!(ty, Type::U32 | Type::S32 | Type::U64 | Type::S64),
        AtomicOp::And | AtomicOp::Or | AtomicOp::Xor => matches!(ty, Type::B32 | Type::B64),
        AtomicOp::Inc | AtomicOp::Dec => ty == Type::U32,
        AtomicOp::Exch => matches!(ty, Type::B32 | Type::B64),
        AtomicOp::Cas => matches!(ty, Type::B16 | Type::B32 | Type::B64),
    }
}

pub(super) fn atomic(b: &mut Builder, words: &[&str]) -> Result<Op> {
    let ty = last_type(words)?;
    let mut access = modifiers(&words[1..words.len() - 1]);
    access.rest.retain(|w| w != "noftz");
    if access.order == Order::Weak {
        access.order = Order::Relaxed;
    }
    let [op] = &access.rest[..] else { return unsupported(words.join(".")) };
    let Some(op) = atomic_op(op).filter(|&op| atomic_fits(op, ty)) else { return unsupported(words.join(".")) };
    if access.lanes != 1
        || !matches!(access.space, Space::Generic | Space::Global | Space::Shared | Space::SharedCluster)
    {
        return unsupported(words.join("."));
    }
    let d = if words[0] == "red" {
        if matches!(op, AtomicOp::Exch | AtomicOp::Cas) {
            return unsupported(words.join("."));
        }
        None
    } else if matches!(b.peek(), Some(Operand::Sink)) {
        b.next()?;
        None
    } else {
        Some(b.d(ty)?)
    };
    let (address, space) = address_in(b, access.space)?;
    let first = b.s(ty)?;
    let second = if op == AtomicOp::Cas { b.s(ty)? } else { Src::Imm(0) };
    policy(b, access.hint)?;
    Ok(Op::Atomic { op, space, address, d, s: [first, second], ty, order: access.order, scope: access.scope })
}

pub(super) fn address(b: &mut Builder, words: &[&str]) -> Result<Op> {
    match words {
        ["cvta", "to", from, ty @ ("u64" | "u32")] => {
            let (Some(space), Some(ty)) = (space(from), Type::parse(ty)) else { return unsupported(words.join(".")) };
            Ok(Op::FromGeneric { d: b.d(ty)?, a: b.s(ty)?, space })
        }
        ["cvta", from, "u64"] => {
            let Some(space) = space(from) else { return unsupported(words.join(".")) };
            Ok(Op::ToGeneric { d: b.d(Type::U64)?, a: b.s(Type::U64)?, space })
        }
        ["isspacep", of] => {
            let Some(space) = space(of) else { return unsupported(words.join(".")) };
            Ok(Op::IsSpace { d: b.d(Type::Pred)?, a: b.s(Type::B64)?, space })
        }
        ["mapa", rest @ .., ty @ ("u32" | "u64")] if matches!(rest, [] | ["shared::cluster"]) => {
            let Some(ty) = Type::parse(ty) else { return unsupported(words.join(".")) };
            let (d, a) = (b.d(ty)?, b.s(ty)?);
            Ok(Op::MapBlock { d, a, rank: b.s(Type::U32)?, generic: rest.is_empty() })
        }
        ["getctarank", "shared::cluster", ty @ ("u32" | "u64")] | ["getctarank", ty @ ("u32" | "u64")] => {
            let Some(ty) = Type::parse(ty) else { return unsupported(words.join(".")) };
            Ok(Op::BlockRank { d: b.d(Type::U32)?, a: b.s(ty)? })
        }
        _ => unsupported(words.join(".")),
    }
}

/// What only asks for speed.
pub(super) fn hint(b: &mut Builder, words: &[&str]) -> Result<Op> {
    match words {
        ["prefetch", "tensormap"] | ["prefetch", "param" | "const", "tensormap"] => b.address().map(|_| ())?,
        ["prefetch", "global", "L1" | "L2" | "L2::evict_last" | "L2::evict_normal"]
        | ["prefetch", "L1" | "L2"]
        | ["prefetchu", "L1"] => b.address().map(|_| ())?,
        ["createpolicy", "fractional", _, "b64"] => {
            let d = b.d(Type::B64)?;
            if b.left() > 0 {
                b.s(Type::F32)?;
            }
            return Ok(Op::Move { d, a: Src::Imm(0) });
        }
        _ => return unsupported(words.join(".")),
    }
    Ok(Op::Nothing)
}
