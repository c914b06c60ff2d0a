//! Which values are held in scratch memory rather than computed where they are read.
//!
//! A value is held if it is dear and read in more than one *context*: by loops that walk it differently, so that the
//! work would be done again. Elementwise uses of one value in one loop are one context, as equal nodes are shared.
//! Selections (`top_k`), their masks (`member`) and literal vectors are held always: no index expression computes them.

use hadal_ir::ops::Op;
use hadal_ir::ops::map::MapFn;
use hadal_ir::{Func, InstKind, ValueId};
use std::collections::BTreeSet;

/// Cost of an element, in simple operations, from which on it is not computed twice.
const DEAR: u32 = 10;

/// A way in which a value is read: instruction, operand, and which of the instruction's own contexts.
type Context = (usize, usize, usize);

/// The values to hold.
pub fn held(func: &Func) -> BTreeSet<ValueId> {
    let costs = costs(func);
    let mut contexts: Vec<BTreeSet<Context>> = vec![BTreeSet::new(); func.values.len()];
    for (i, (_, v)) in func.results.iter().enumerate() {
        contexts[v.index()].insert((usize::MAX, i, 0));
    }
    let mut held = BTreeSet::new();
    for (n, inst) in func.insts.iter().enumerate().rev() {
        let InstKind::Op(op) = &inst.kind else { continue };
        let v = inst.results[0];
        let mut own = std::mem::take(&mut contexts[v.index()]);
        if own.is_empty() {
            continue;
        }
        let hold = match op {
            Op::TopK(_) | Op::Member(_) => true,
            Op::Constant(c) => c.values.len() > 1,
            Op::Reduce(_) | Op::Contract(_) => own.len() > 1,
            _ => own.len() > 1 && costs[v.index()] >= DEAR,
        };
        if hold {
            held.insert(v);
            own = BTreeSet::from([(n, usize::MAX, 0)]);
        }
        for (a, arg) in inst.args.iter().enumerate() {
            let to = &mut contexts[arg.index()];
            match (op, a) {
                (Op::Map(_) | Op::Cast(_), _) | (Op::Dequantize(_), 0) => to.extend(&own),
                // Read once for every element that is chosen.
                (Op::TopK(_), _) => to.extend([(n, a, 0), (n, a, 1)]),
                _ => to.extend((0..own.len().min(2)).map(|i| (n, a, i))),
            }
        }
    }
    held
}

/// The cost of one element of each value, where reductions are taken to be computed already.
fn costs(func: &Func) -> Vec<u32> {
    let mut costs = vec![1u32; func.values.len()];
    for inst in &func.insts {
        let InstKind::Op(op) = &inst.kind else { continue };
        let operands = inst.args.iter().map(|a| costs[a.index()]).fold(0, u32::saturating_add);
        costs[inst.results[0].index()] = match op {
            Op::Map(map) => operands.saturating_add(map_cost(map.f)),
            Op::Cast(_) | Op::Dequantize(_) => operands.saturating_add(1),
            Op::Gather(_) => operands.saturating_add(2),
            Op::Constant(_) => 0,
            Op::Reduce(_) | Op::Contract(_) | Op::TopK(_) | Op::Member(_) | Op::Iota(_) => 1,
            _ => operands,
        };
    }
    costs
}

/// The cost of a function of one element.
fn map_cost(f: MapFn) -> u32 {
    use MapFn::*;
    match f {
        Exp | Log | Log1p | Sin | Cos | Tanh | Erf | Sigmoid => DEAR,
        Sqrt | Rsqrt | Div | Rem => 4,
        Pow2Ceil => 3,
        Neg | Abs | Floor | Not | Add | Sub | Mul | Max | Min | Lt | Le | Eq | And | Or | Xor | Select => 1,
    }
}
