//! What an op costs: the greater of its work at the machine's peak and its traffic at the machine's bandwidth, and a
//! launch.
//!
//! Views, casts, dequantisation and gathers of weights are done by whoever reads them, so they cost nothing but the
//! bytes their source has; a concat, whose reader has to ask for every element where it comes from, costs its traffic.
//! Elementwise ops are mostly done by a neighbour: they cost their traffic, not a launch. What
//! follows from weights alone is computed when compiling: it costs the bytes that have to be stored and read.

use super::{Graph, Head, Node};
use egg::Id;
use hadal_ir::target::Target;
use hadal_ir::{Bindings, Op, TensorType};
use std::collections::BTreeMap;

/// Costs of the nodes of one e-graph.
pub(super) struct Costs<'a> {
    graph: &'a Graph,
    target: &'a Target,
    bindings: &'a Bindings,
    /// By class: bytes that reading all of it takes, and bits per element where that is less than its format's.
    reads: BTreeMap<Id, (f64, f64)>,
}

impl<'a> Costs<'a> {
    pub fn of(graph: &'a Graph, target: &'a Target, bindings: &'a Bindings) -> Self {
        let mut this = Costs { graph, target, bindings, reads: BTreeMap::new() };
        let mut order: Vec<Id> = graph.classes().map(|c| c.id).collect();
        order.sort_unstable();
        for class in &order {
            let ty = &graph[*class].data.ty;
            let bits = ty.dtype.bits() as f64;
            this.reads.insert(*class, (this.count(ty) * bits / 8.0, bits));
        }
        // Sources may stand anywhere; bytes only shrink, so this ends.
        let mut changed = true;
        while std::mem::take(&mut changed) {
            for class in &order {
                for node in &graph[*class].nodes {
                    let (bytes, bits) = this.through(*class, node);
                    let known = this.reads.get_mut(class).expect("every class is there");
                    if bytes < known.0 || bits < known.1 {
                        *known = (bytes.min(known.0), bits.min(known.1));
                        changed = true;
                    }
                }
            }
        }
        this
    }

    fn count(&self, ty: &TensorType) -> f64 {
        ty.count(self.bindings).unwrap_or(f64::INFINITY)
    }

    /// Whether an op is done by whoever reads its result.
    fn is_carried(&self, op: &Op, node: &Node) -> bool {
        match op {
            Op::Constant(_) | Op::Iota(_) => true,
            Op::Cast(_) | Op::Dequantize(_) | Op::Gather(_) => self.graph[node.args[0]].data.constant,
            op => op.is_view(),
        }
    }

    /// What reading the result of `node` takes.
    fn through(&self, class: Id, node: &Node) -> (f64, f64) {
        let ty = &self.graph[class].data.ty;
        let own = ty.dtype.bits() as f64;
        let whole = (self.count(ty) * own / 8.0, own);
        let Head::Op(op) = &node.head else { return whole };
        if !self.is_carried(op, node) {
            return whole;
        }
        let of = |i: usize| self.reads[&self.graph.find(node.args[i])];
        match op {
            Op::Constant(_) | Op::Iota(_) => (0.0, own),
            Op::Broadcast(_) => of(0),
            Op::Concat(_) => {
                let parts = (0..node.args.len()).map(of);
                parts.fold((0.0, 0.0), |a, b| (a.0 + b.0, f64::max(a.1, b.1)))
            }
            _ => {
                let (bytes, bits) = of(0);
                // A part, at most the whole.
                ((self.count(ty) * bits / 8.0).min(bytes.max(self.count(ty) * bits / 8.0)), bits)
            }
        }
    }

    /// Seconds that `node` of `class` adds to a function.
    pub fn own(&self, class: Id, node: &Node) -> f64 {
        let Head::Op(op) = &node.head else { return 0.0 };
        let fact = &self.graph[class].data;
        let size = |ty: &TensorType| self.count(ty) * ty.dtype.bits() as f64 / 8.0;
        let out = size(&fact.ty);
        if matches!(op, Op::Concat(_)) && !fact.constant {
            return self.target.traffic(out, 0.0);
        }
        if self.is_carried(op, node) {
            return 0.0;
        }
        if fact.constant {
            return self.target.seconds(0.0, self.target.traffic(out, 0.0));
        }
        let types: Vec<TensorType> = node.args.iter().map(|a| self.graph[*a].data.ty.clone()).collect();
        let flops = op.flops(&types, &fact.ty, self.bindings);
        let read: f64 = node.args.iter().map(|a| self.reads[&self.graph.find(*a)].0).sum();
        let peak = match op {
            Op::Contract(_) | Op::Attention(_) => self.target.peak(&types.iter().map(|t| t.dtype).collect::<Vec<_>>()),
            _ => self.target.peak(&[]),
        };
        let seconds = self.target.seconds(flops / peak, self.target.traffic(read + out, 0.0));
        match op {
            Op::Map(_) | Op::Cast(_) | Op::CausalMask(_) => seconds - self.target.launch_seconds,
            // Only the new rows are written.
            Op::Append(_) => self.target.seconds(0.0, self.target.traffic(2.0 * size(&types[1]), 0.0)),
            _ => seconds,
        }
    }
}
