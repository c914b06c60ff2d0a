//! Asynchronous copies: of words, in bulk, of tensors.

use super::args::Builder;
use super::memory::{atomic_op, policy, space};
use crate::error::{Result, operand, unsupported};
use crate::program::{AtomicOp, Completion, Op, Reduction};
use crate::syntax::Operand;
use crate::types::{Space, Type};

pub(super) fn copy(b: &mut Builder, words: &[&str]) -> Result<Op> {
    match words {
        ["cp", "async", "commit_group"] => Ok(Op::CopyCommit),
        ["cp", "async", "wait_group"] => Ok(Op::CopyWait { left: small(b)? }),
        ["cp", "async", "wait_all"] => Ok(Op::CopyWait { left: 0 }),
        ["cp", "async", "mbarrier", "arrive", rest @ .., "b64"] => {
            let (extra, rest) = match rest {
                ["noinc", rest @ ..] => (false, rest),
                rest => (true, rest),
            };
            let at = match rest {
                [] => Space::Generic,
                [word] => space(word).unwrap_or(Space::Generic),
                _ => return unsupported(words.join(".")),
            };
            Ok(Op::CopyArrive { space: at, address: b.address_in(at)?, extra })
        }
        ["cp", "async", "bulk", "commit_group"] => Ok(Op::BulkCommit),
        ["cp", "async", "bulk", "wait_group"] => Ok(Op::BulkWait { left: small(b)?, read: false }),
        ["cp", "async", "bulk", "wait_group", "read"] => Ok(Op::BulkWait { left: small(b)?, read: true }),
        ["cp", "async", "bulk", "prefetch", rest @ ..] => prefetch(b, words, rest),
        ["cp", "async", "bulk", "tensor", rest @ ..] => tensor(b, words, rest, false),
        ["cp", "reduce", "async", "bulk", "tensor", rest @ ..] => tensor(b, words, rest, true),
        ["cp", "async", "bulk", to, from, rest @ ..] => bulk(b, words, to, from, rest, None),
        ["cp", "reduce", "async", "bulk", to, from, rest @ .., op, ty] => {
            let rest = rest.strip_suffix(&["noftz"]).unwrap_or(rest);
            let (op, rest) = match atomic_op(op) {
                Some(op) => (Some(op), rest),
                None => (None, rest),
            };
            let (Some(op), Some(ty)) = (op, Type::parse(ty)) else { return unsupported(words.join(".")) };
            if !super::memory::atomic_fits(op, ty) {
                return unsupported(words.join("."));
            }
            bulk(b, words, to, from, rest, Some((op, ty)))
        }
        ["cp", "async", cache @ ("ca" | "cg"), to, "global", rest @ ..] => words_copy(b, words, cache, to, rest),
        _ => unsupported(words.join(".")),
    }
}

/// A number of groups.
fn small(b: &mut Builder) -> Result<u32> {
    let value = b.constant()?;
    u32::try_from(value).or_else(|_| operand("a number of groups", "a small one", value.to_string()))
}

fn words_copy(b: &mut Builder, words: &[&str], cache: &str, to: &str, rest: &[&str]) -> Result<Op> {
    if !matches!(to, "shared" | "shared::cta") {
        return unsupported(words.join("."));
    }
    let mut hint = false;
    for word in rest {
        match *word {
            "L2::64B" | "L2::128B" | "L2::256B" => {}
            "L2::cache_hint" => hint = true,
            _ => return unsupported(words.join(".")),
        }
    }
    let to = b.address_in(Space::Shared)?;
    let from = b.address_in(Space::Global)?;
    let bytes = match (b.constant()?, cache) {
        (16, _) => 16,
        (bytes @ (4 | 8), "ca") => bytes as u32,
        (bytes, _) => return operand("the size of a copy", "4, 8 or 16 (`.cg`: 16)", bytes.to_string()),
    };
    let (mut given, mut ignore) = (None, None);
    if b.left() > usize::from(hint) {
        let next = b.next()?;
        let predicate = b.width(next) == Some(1);
        if predicate {
            ignore = Some(b.s_of(next, Type::Pred, false)?);
        } else {
            given = Some(b.s_of(next, Type::U32, false)?);
        }
    }
    policy(b, hint)?;
    Ok(Op::CopyAsync { to, from, bytes, given, ignore })
}

/// Modifiers of bulk copies after the spaces.
#[derive(Default)]
struct Bulk {
    barrier: bool,
    group: bool,
    multicast: bool,
    hint: bool,
}

fn bulk_modifiers(words: &[&str], rest: &[&str]) -> Result<Bulk> {
    let mut found = Bulk::default();
    for word in rest {
        match *word {
            "mbarrier::complete_tx::bytes" => found.barrier = true,
            "bulk_group" => found.group = true,
            "multicast::cluster" => found.multicast = true,
            "L2::cache_hint" => found.hint = true,
            _ => return unsupported(words.join(".")),
        }
    }
    if found.barrier == found.group || (found.multicast && found.group) {
        return unsupported(words.join("."));
    }
    Ok(found)
}

fn bulk(
    b: &mut Builder,
    words: &[&str],
    to: &str,
    from: &str,
    rest: &[&str],
    reduce: Option<(AtomicOp, Type)>,
) -> Result<Op> {
    let modifiers = bulk_modifiers(words, rest)?;
    let (to_space, from_space) = match (space(to), space(from)) {
        (Some(Space::SharedCluster | Space::Shared), Some(Space::Global)) if modifiers.barrier && reduce.is_none() => {
            (Space::SharedCluster, Space::Global)
        }
        (Some(Space::SharedCluster), Some(Space::Shared)) if modifiers.barrier => (Space::SharedCluster, Space::Shared),
        (Some(Space::Global), Some(Space::Shared)) if modifiers.group => (Space::Global, Space::Shared),
        _ => return unsupported(words.join(".")),
    };
    let to = b.address_in(to_space)?;
    let from = b.address_in(from_space)?;
    let bytes = b.s(Type::U32)?;
    let done =
        if modifiers.barrier { Completion::Barrier(b.address_in(Space::SharedCluster)?) } else { Completion::Group };
    let blocks = if modifiers.multicast { Some(b.s(Type::U16)?) } else { None };
    policy(b, modifiers.hint)?;
    Ok(Op::BulkCopy { to, to_space, from, from_space, bytes, done, blocks, reduce })
}

fn rank(word: &str) -> Option<usize> {
    match word {
        "1d" => Some(1),
        "2d" => Some(2),
        "3d" => Some(3),
        "4d" => Some(4),
        "5d" => Some(5),
        _ => None,
    }
}

fn tensor(b: &mut Builder, words: &[&str], rest: &[&str], reduces: bool) -> Result<Op> {
    let [dims, to, from, rest @ ..] = rest else { return unsupported(words.join(".")) };
    let Some(rank) = rank(dims) else { return unsupported(words.join(".")) };
    let mut reduction = Reduction::Store;
    let mut others = Vec::new();
    for word in rest {
        match *word {
            "tile" => {}
            word => match atomic_op(word) {
                Some(op) if reduces && op != AtomicOp::Exch && op != AtomicOp::Cas => reduction = Reduction::Op(op),
                _ => others.push(word),
            },
        }
    }
    let modifiers = bulk_modifiers(words, &others)?;
    match (space(to), space(from)) {
        (Some(Space::SharedCluster | Space::Shared), Some(Space::Global)) if modifiers.barrier && !reduces => {
            let to = b.address_in(Space::SharedCluster)?;
            let (map, at) = b.tensor(rank)?;
            let barrier = b.address_in(Space::SharedCluster)?;
            let blocks = if modifiers.multicast { Some(b.s(Type::U16)?) } else { None };
            policy(b, modifiers.hint)?;
            Ok(Op::TensorLoad { to, map, at, barrier, blocks })
        }
        (Some(Space::Global), Some(Space::Shared)) if modifiers.group => {
            if reduces == (reduction == Reduction::Store) {
                return unsupported(words.join("."));
            }
            let (map, at) = b.tensor(rank)?;
            let from = b.address_in(Space::Shared)?;
            policy(b, modifiers.hint)?;
            Ok(Op::TensorStore { from, map, at, reduce: reduction })
        }
        _ => unsupported(words.join(".")),
    }
}

fn prefetch(b: &mut Builder, words: &[&str], rest: &[&str]) -> Result<Op> {
    let hint = rest.last() == Some(&"L2::cache_hint");
    match rest {
        ["L2", "global", ..] => {
            b.address_in(Space::Global)?;
            b.s(Type::U32)?;
        }
        ["tensor", dims, "L2", "global", ..] => {
            let Some(rank) = rank(dims) else { return unsupported(words.join(".")) };
            if !matches!(b.peek(), Some(Operand::Address { .. })) {
                return unsupported(words.join("."));
            }
            b.tensor(rank)?;
        }
        _ => return unsupported(words.join(".")),
    }
    policy(b, hint)?;
    Ok(Op::Nothing)
}
