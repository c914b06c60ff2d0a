//! What attention costs: the rows that its queries see.
//!
//! A set of selected rows costs as many rows as there are places, each read once for all heads that share it; an
//! interval the rows between its ends, which are evaluated where they are plain arithmetic on positions. Whatever is
//! seen otherwise is read once. An operand that is both key and value is read once.

use super::Head;
use super::cost::{Costs, Read};
use super::problem::Problem;
use hadal_ir::ops::Attention;
use hadal_ir::ops::OpDef;
use hadal_ir::ops::attention::{Role, Visible};
use hadal_ir::{DType, Op, Tensor, TensorType};
use std::collections::BTreeSet;

/// Most positions that are evaluated to find the ends of intervals.
const POSITIONS: f64 = 65536.0;

/// Deepest arithmetic that is evaluated.
const DEPTH: usize = 16;

impl Costs<'_> {
    /// Seconds of arithmetic and of reading operands.
    pub(super) fn attention(&self, problem: &Problem, class: usize, i: usize, reads: &[Read]) -> (f64, f64) {
        let c = &problem.candidates[class][i];
        let Head::Op(Op::Attention(a)) = &c.node.head else { return (0.0, 0.0) };
        let out = self.fact(problem, class).ty.clone();
        let types = &c.types;
        let operands = a.operands();
        let (mut work, mut reading) = (0.0, 0.0);
        let mut read = BTreeSet::new();
        for (n, set) in a.sets.iter().enumerate() {
            let mine: Vec<usize> = (0..operands.len()).filter(|o| operands[*o].set == n).collect();
            let (seen, spanned) = self.share_of_rows(problem, a, n, &c.args, types);
            let alone = Attention { sets: vec![set.clone()], sink: false, ..a.clone() };
            let of_set: Vec<TensorType> = mine.iter().map(|o| types[*o].clone()).collect();
            work += seen * alone.flops(&of_set, &out, self.bindings);
            for o in mine.into_iter().filter(|o| read.insert((n, c.args[*o]))) {
                let rows = matches!(operands[o].role, Role::Key | Role::Value);
                reading += self.traffic(self.repeated(reads[c.args[o]], if rows { spanned } else { 1.0 }));
            }
        }
        if a.sink {
            reading += c.args.last().map_or(0.0, |s| self.traffic(reads[*s]));
        }
        let products =
            (0..operands.len()).filter(|o| matches!(operands[*o].role, Role::Query | Role::Key | Role::Value));
        let formats: Vec<DType> = products.map(|o| reads[c.args[o]].format).collect();
        (self.batch() * work / self.space.context.target.peak(&formats), reading)
    }

    /// Of the rows of a set: how many a query sees on average, where that is less than the op itself counts; and how
    /// many are read for all queries, a row read twice counting two.
    fn share_of_rows(
        &self,
        problem: &Problem,
        a: &Attention,
        set: usize,
        args: &[usize],
        types: &[TensorType],
    ) -> (f64, f64) {
        let operands = a.operands();
        let of = |role: Role| (0..operands.len()).find(|o| operands[*o].set == set && operands[*o].role == role);
        let Some(key) = of(Role::Key) else { return (1.0, 1.0) };
        let size = |o: usize, at: usize| types[o].shape[at].eval(self.bindings).unwrap_or(0).max(0) as f64;
        let rows = size(key, 0);
        if rows == 0.0 {
            return (1.0, 0.0);
        }
        match (&a.sets[set].rows, of(Role::Selection), of(Role::Low), of(Role::High)) {
            (Visible::Selected(letters), Some(ids), _, _) => {
                // Where keys have the heads that selections differ in, a place stands for a row of one head only.
                let shared =
                    letters.char_indices().filter(|(at, l)| *at > 0 && operands[key].letters[1..].contains(*l));
                let heads: f64 = shared.filter(|(at, _)| at + 1 < letters.len()).map(|(at, _)| size(ids, at)).product();
                (1.0, self.count(&types[ids]) / heads.max(1.0) / rows)
            }
            (Visible::Interval(..), _, Some(low), Some(high)) => {
                let ends = |o: usize| {
                    let all = self.evaluated(problem, args[o], 0)?;
                    let all: Vec<f64> = (0..all.len()).map(|i| all.at(i).clamp(0.0, rows)).collect();
                    (!all.is_empty()).then_some(all)
                };
                let (Some(low), Some(high)) = (ends(low), ends(high)) else { return (1.0, 1.0) };
                let mean = |all: &[f64]| all.iter().sum::<f64>() / all.len() as f64;
                let first = low.iter().copied().fold(f64::INFINITY, f64::min);
                let last = high.iter().copied().fold(0.0, f64::max);
                let share = |n: f64| (n / rows).clamp(0.0, 1.0);
                (share(mean(&high) - mean(&low)), share(last - first))
            }
            _ => (1.0, 1.0),
        }
    }

    /// Reading a source so many times, one sequence after the other: what fits into the cache comes from memory once.
    fn repeated(&self, read: Read, times: f64) -> Read {
        let fits = read.memory / self.batch() <= self.space.context.target.cache_bytes as f64;
        let again = (times - 1.0).max(0.0);
        match fits && again > 0.0 {
            true => Read { cache: read.cache * times + read.memory * again, ..read },
            false => read.times(times),
        }
    }

    /// The value of a class that is plain arithmetic on positions.
    fn evaluated(&self, problem: &Problem, class: usize, depth: usize) -> Option<Tensor> {
        let ty = &self.fact(problem, class).ty;
        if depth > DEPTH || self.count(ty) > POSITIONS {
            return None;
        }
        problem.candidates[class].iter().find_map(|c| {
            let Head::Op(op) = &c.node.head else { return None };
            let plain = op.is_view() || matches!(op, Op::Constant(_) | Op::Iota(_) | Op::Map(_) | Op::Cast(_));
            let args: Vec<Tensor> = match plain {
                true => c.args.iter().map(|a| self.evaluated(problem, *a, depth + 1)).collect::<Option<_>>()?,
                false => return None,
            };
            Some(op.eval(&args.iter().collect::<Vec<_>>(), ty, self.bindings))
        })
    }
}
