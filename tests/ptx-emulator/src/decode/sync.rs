//! Barriers, fences, and what lanes of a warp do together.

use super::args::Builder;
use super::last_type;
use super::memory::{atomic_op, scope, space};
use crate::error::{Result, unsupported};
use crate::program::{AtomicOp, Bool, Op, Phase, Scope, ShuffleMode, Src, VoteMode};
use crate::syntax::Operand;
use crate::types::{Space, Type};

pub(super) fn fence(words: &[&str]) -> Result<Op> {
    Ok(match words {
        ["membar", level] => match scope(level) {
            Some(scope) => Op::Fence { scope },
            None => return unsupported(words.join(".")),
        },
        ["fence", "proxy", "async"] => Op::FenceAsync { shared: true, global: true },
        ["fence", "proxy", "async", "global"] => Op::FenceAsync { shared: false, global: true },
        ["fence", "proxy", "async", "shared::cta" | "shared::cluster"] => {
            Op::FenceAsync { shared: true, global: false }
        }
        ["fence", "mbarrier_init", "release", "cluster"] => Op::FenceBarrierInit,
        ["fence", level] | ["fence", "sc" | "acq_rel", level] => match scope(level) {
            Some(scope) => Op::Fence { scope },
            None => return unsupported(words.join(".")),
        },
        _ => return unsupported(words.join(".")),
    })
}

pub(super) fn barrier(b: &mut Builder, words: &[&str]) -> Result<Op> {
    let kept: Vec<&str> = words.iter().copied().filter(|w| *w != "cta").collect();
    match &kept[..] {
        ["bar", "warp", "sync"] => Ok(Op::WarpSync { mask: b.s(Type::B32)? }),
        ["bar", kind @ ("sync" | "arrive")]
        | ["barrier", kind @ ("sync" | "arrive")]
        | ["barrier", kind @ ("sync" | "arrive"), "aligned"] => {
            let id = b.s(Type::U32)?;
            let count = if b.left() > 0 { Some(b.s(Type::U32)?) } else { None };
            if *kind == "arrive" && count.is_none() {
                return unsupported("an arrival without a number of threads");
            }
            let aligned = kept[0] == "bar" || kept.len() == 3;
            Ok(Op::Barrier { id, count, wait: *kind == "sync", aligned })
        }
        ["bar" | "barrier", "red", rest @ ..] => {
            let (mode, ty) = match rest {
                ["popc", "u32"] | ["popc", "aligned", "u32"] => (None, Type::U32),
                ["and", "pred"] | ["and", "aligned", "pred"] => (Some(Bool::And), Type::Pred),
                ["or", "pred"] | ["or", "aligned", "pred"] => (Some(Bool::Or), Type::Pred),
                _ => return unsupported(words.join(".")),
            };
            let d = b.d(ty)?;
            let id = b.s(Type::U32)?;
            let count = if b.left() > 1 { Some(b.s(Type::U32)?) } else { None };
            let (a, negate) = b.predicate()?;
            Ok(Op::BarrierReduce { id, count, d, a, negate, mode })
        }
        ["barrier", "cluster", "arrive", rest @ ..] => match rest {
            [] | ["aligned"] | ["release"] | ["release", "aligned"] => Ok(Op::ClusterArrive { relaxed: false }),
            ["relaxed"] | ["relaxed", "aligned"] => Ok(Op::ClusterArrive { relaxed: true }),
            _ => unsupported(words.join(".")),
        },
        ["barrier", "cluster", "wait", "acquire", "aligned"]
        | ["barrier", "cluster", "wait", "acquire" | "aligned"]
        | ["barrier", "cluster", "wait"] => Ok(Op::ClusterWait),
        _ => unsupported(words.join(".")),
    }
}

pub(super) fn warp(b: &mut Builder, words: &[&str]) -> Result<Op> {
    match words {
        ["shfl", "sync", mode, "b32"] => {
            let mode = match *mode {
                "up" => ShuffleMode::Up,
                "down" => ShuffleMode::Down,
                "bfly" => ShuffleMode::Butterfly,
                "idx" => ShuffleMode::Index,
                _ => return unsupported(words.join(".")),
            };
            let (Some(d), p) = b.d_pair(Type::B32)? else { return unsupported("a shuffle without a result") };
            let s = [b.s(Type::B32)?, b.s(Type::B32)?, b.s(Type::B32)?];
            Ok(Op::Shuffle { mode, d, p, s, mask: b.s(Type::B32)? })
        }
        ["vote", "sync", mode, ty] => {
            let (mode, ty) = match (*mode, *ty) {
                ("all", "pred") => (VoteMode::All, Type::Pred),
                ("any", "pred") => (VoteMode::Any, Type::Pred),
                ("uni", "pred") => (VoteMode::Uniform, Type::Pred),
                ("ballot", "b32") => (VoteMode::Ballot, Type::B32),
                _ => return unsupported(words.join(".")),
            };
            let d = b.d(ty)?;
            let (a, negate) = b.predicate()?;
            Ok(Op::Vote { mode, d, a, negate, mask: b.s(Type::B32)? })
        }
        ["match", kind @ ("any" | "all"), "sync", "b32" | "b64"] => {
            let ty = last_type(words)?;
            let (Some(d), p) = b.d_pair(Type::B32)? else { return unsupported("a match without a result") };
            let a = b.s(ty)?;
            Ok(Op::Match { all: *kind == "all", d, p, a, mask: b.s(Type::B32)? })
        }
        ["redux", "sync", op, ty] => {
            let Some(op) =
                atomic_op(op).filter(|o| !matches!(o, AtomicOp::Exch | AtomicOp::Cas | AtomicOp::Inc | AtomicOp::Dec))
            else {
                return unsupported(words.join("."));
            };
            let bitwise = matches!(op, AtomicOp::And | AtomicOp::Or | AtomicOp::Xor);
            let ty = match (*ty, bitwise) {
                ("b32", true) => Type::B32,
                ("u32", false) => Type::U32,
                ("s32", false) => Type::S32,
                _ => return unsupported(words.join(".")),
            };
            let (d, a) = (b.d(ty)?, b.s(ty)?);
            Ok(Op::Reduce { op, signed: ty == Type::S32, d, a, mask: b.s(Type::B32)? })
        }
        ["activemask", "b32"] => Ok(Op::ActiveMask { d: b.d(Type::B32)? }),
        ["elect", "sync"] => {
            let (d, Some(p)) = b.d_pair(Type::B32)? else { return unsupported("an election without a predicate") };
            Ok(Op::Elect { d, p, mask: b.s(Type::B32)? })
        }
        _ => unsupported(words.join(".")),
    }
}

pub(super) fn mbarrier(b: &mut Builder, words: &[&str]) -> Result<Op> {
    let mut at = Space::Generic;
    let (mut relaxed, mut parity, mut expects, mut complete) = (false, false, false, true);
    if words.last() != Some(&"b64") || words.len() < 3 {
        return unsupported(words.join("."));
    }
    for word in &words[2..] {
        match *word {
            "b64" | "acquire" | "release" => {}
            "relaxed" => relaxed = true,
            "parity" => parity = true,
            "expect_tx" => expects = true,
            "noComplete" => complete = false,
            word => match (space(word), scope(word)) {
                (Some(s @ (Space::Shared | Space::SharedCluster)), _) => at = s,
                (_, Some(Scope::Block | Scope::Cluster)) => {}
                _ => return unsupported(words.join(".")),
            },
        }
    }
    let plain = !parity && !expects && complete;
    match words[1] {
        "init" if plain => {
            let address = b.address_in(at)?;
            Ok(Op::BarrierInit { space: at, address, count: b.s(Type::U32)? })
        }
        "inval" if plain => Ok(Op::BarrierInvalidate { space: at, address: b.address_in(at)? }),
        "arrive" | "arrive_drop" if !parity => {
            let d = match b.peek() {
                Some(Operand::Sink) => {
                    b.next()?;
                    None
                }
                Some(Operand::Address { .. }) => None,
                _ => Some(b.d(Type::B64)?),
            };
            if at == Space::SharedCluster && d.is_some() {
                return unsupported("an arrival at another block that gives a state");
            }
            let address = b.address_in(at)?;
            let (mut count, mut expect) = (Src::Imm(1), None);
            if expects {
                expect = Some(b.s(Type::U32)?);
            } else if b.left() > 0 {
                count = b.s(Type::U32)?;
            } else if !complete {
                return unsupported("`.noComplete` without a count");
            }
            let drop = words[1] == "arrive_drop";
            Ok(Op::BarrierArrive { space: at, address, d, count, expect, complete, drop, relaxed })
        }
        // The modifier `.expect_tx` and the instruction are spelt alike.
        "expect_tx" if !parity => {
            let address = b.address_in(at)?;
            Ok(Op::BarrierExpect { space: at, address, bytes: b.s(Type::U32)? })
        }
        "complete_tx" if plain => {
            let address = b.address_in(at)?;
            Ok(Op::BarrierComplete { space: at, address, bytes: b.s(Type::U32)? })
        }
        kind @ ("test_wait" | "try_wait") if !expects && complete => {
            let d = b.d(Type::Pred)?;
            let address = b.address_in(at)?;
            if at == Space::SharedCluster {
                return unsupported("a wait at another block");
            }
            let phase = if parity { Phase::Parity(b.s(Type::U32)?) } else { Phase::State(b.s(Type::B64)?) };
            if kind == "try_wait" && b.left() > 0 {
                b.s(Type::U32)?;
            }
            Ok(Op::BarrierTest { space: at, address, d, phase, blocks: kind == "try_wait", relaxed })
        }
        "pending_count" if plain => Ok(Op::BarrierPending { d: b.d(Type::U32)?, a: b.s(Type::B64)? }),
        _ => unsupported(words.join(".")),
    }
}
