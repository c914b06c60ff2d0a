//! What an op costs: the greater of its work at the machine's peak and its traffic, and a launch.
//!
//! Work runs at the peak of the widest operand, as operands lie in memory: a dequantised weight counts as the bytes
//! that it is read as. Weights and states come from memory; what is computed comes from the cache where it fits there.
//!
//! Views, casts, dequantisation and gathers of weights are done by whoever reads them, so they cost nothing but the
//! bytes their source has; a concat, whose reader has to ask for every element where it comes from, costs its traffic.
//! Elementwise ops are mostly done by a neighbour: they cost their traffic, and a launch only where no neighbour can
//! (see `problem`). Rows that are gathered cost the rows, not the whole that they are taken from; attention has a file
//! of its own. What follows from
//! weights alone is computed when compiling: it costs the bytes that have to be stored and read. A stack joined from
//! weights, of which rows are gathered, costs all of its bytes: the whole is stored anew, however little is read of it.
//!
//! For a batch of sequences, weights and what follows from them alone are read once; work, states and everything else
//! that is read or written is there once for each. Of gathered weights each sequence wants other rows.

use super::problem::{Candidate, Problem};
use super::space::Space;
use super::{Fact, Head, Node};
use hadal_ir::{Bindings, DType, Op, TensorType};

/// What reading all of a class takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Read {
    /// Bytes from memory.
    pub memory: f64,
    /// Bytes from the cache.
    pub cache: f64,
    /// The format they are in.
    pub format: DType,
}

impl Read {
    fn bytes(self) -> f64 {
        self.memory + self.cache
    }

    pub fn times(self, k: f64) -> Read {
        Read { memory: self.memory * k, cache: self.cache * k, ..self }
    }

    fn plus(self, other: Read) -> Read {
        let wider = if other.format.bits() > self.format.bits() { other.format } else { self.format };
        Read { memory: self.memory + other.memory, cache: self.cache + other.cache, format: wider }
    }
}

/// Prices of the nodes of one e-graph, for some sizes of each sequence.
pub(super) struct Costs<'a> {
    pub(super) space: &'a Space<'a>,
    pub(super) bindings: &'a Bindings,
}

impl<'a> Costs<'a> {
    pub fn of(space: &'a Space<'a>, bindings: &'a Bindings) -> Self {
        Costs { space, bindings }
    }

    /// Gives every candidate its price.
    pub fn price(&self, problem: &mut Problem) {
        let reads = self.reads(problem);
        for class in 0..problem.ids.len() {
            for i in 0..problem.candidates[class].len() {
                let (own, on_the_way) = self.own(problem, class, i, &reads);
                let fact = self.fact(problem, class);
                let c = &problem.candidates[class][i];
                // Joined weights are laid out anew when compiling.
                let carried = |op: &Op| !matches!(op, Op::Concat(_)) && self.is_carried(problem, op, &c.args);
                let carried = matches!(&c.node.head, Head::Op(op) if carried(op));
                let c = &mut problem.candidates[class][i];
                (c.own, c.carried) = (own, carried);
                c.alone = if on_the_way { self.space.context.target.launch_seconds } else { 0.0 };
                let Head::Op(op) = &c.node.head else { continue };
                let computed = !fact.constant && !matches!(op, Op::Append(_)) && !op.is_view();
                let rows = computed && !matches!(op, Op::Attention(_) | Op::Constant(_) | Op::Iota(_));
                (c.joins_readers, c.joins_operands) = (rows, rows && !matches!(op, Op::Contract(_)));
            }
        }
    }

    pub(super) fn fact<'p>(&'p self, problem: &Problem, class: usize) -> &'p Fact {
        &self.space.graph[problem.ids[class]].data
    }

    pub(super) fn count(&self, ty: &TensorType) -> f64 {
        ty.count(self.bindings).unwrap_or(f64::INFINITY)
    }

    /// Bytes of one sequence.
    fn size(&self, ty: &TensorType) -> f64 {
        self.count(ty) * ty.dtype.bits() as f64 / 8.0
    }

    pub(super) fn batch(&self) -> f64 {
        self.space.context.batch as f64
    }

    /// Bytes of a class, of all sequences.
    fn bytes(&self, fact: &Fact) -> f64 {
        self.size(&fact.ty) * if fact.constant { 1.0 } else { self.batch() }
    }

    /// Bytes of a value that is computed: in the cache, where it fits.
    fn computed(&self, bytes: f64, format: DType) -> Read {
        match bytes <= self.space.context.target.cache_bytes as f64 {
            true => Read { memory: 0.0, cache: bytes, format },
            false => Read { memory: bytes, cache: 0.0, format },
        }
    }

    pub(super) fn traffic(&self, read: Read) -> f64 {
        self.space.context.target.traffic(read.memory, read.cache)
    }

    /// What reading each class takes, the cheapest way that there is. Sources may stand anywhere; reads only get
    /// cheaper, so this ends.
    fn reads(&self, problem: &Problem) -> Vec<Read> {
        let inputs = &self.space.graph.analysis.inputs;
        let in_memory = |node: &Node| match &node.head {
            Head::Input(v) => inputs[v].weight || inputs[v].state,
            Head::Op(op) => matches!(op, Op::Append(_)),
        };
        let whole = |class: usize| {
            let fact = self.fact(problem, class);
            let (bytes, format) = (self.bytes(fact), fact.ty.dtype);
            let kept = fact.constant || problem.candidates[class].iter().any(|c| in_memory(&c.node));
            if kept { Read { memory: bytes, cache: 0.0, format } } else { self.computed(bytes, format) }
        };
        let mut reads: Vec<Read> = (0..problem.ids.len()).map(whole).collect();
        let mut changed = true;
        while std::mem::take(&mut changed) {
            for class in 0..problem.ids.len() {
                for i in 0..problem.candidates[class].len() {
                    let Some(read) = self.through(problem, class, i, &reads) else { continue };
                    let known = &mut reads[class];
                    let narrower = read.format.bits() < known.format.bits();
                    if self.traffic(read) < self.traffic(*known) || narrower {
                        let format = if narrower { read.format } else { known.format };
                        *known = if self.traffic(read) < self.traffic(*known) { read } else { *known };
                        known.format = format;
                        changed = true;
                    }
                }
            }
        }
        reads
    }

    /// Whether a class is weights joined from several: all of them are stored anew, however few rows a call takes.
    fn is_joined(&self, problem: &Problem, class: usize) -> bool {
        let joins = |c: &Candidate| match &c.node.head {
            Head::Op(Op::Concat(_)) => true,
            Head::Op(Op::Dequantize(_)) => self.is_joined(problem, c.args[0]),
            _ => false,
        };
        self.fact(problem, class).constant && problem.candidates[class].iter().any(joins)
    }

    /// Whether an op is done by whoever reads its result.
    fn is_carried(&self, problem: &Problem, op: &Op, args: &[usize]) -> bool {
        match op {
            Op::Constant(_) | Op::Iota(_) => true,
            Op::Cast(_) | Op::Dequantize(_) | Op::Gather(_) => self.fact(problem, args[0]).constant,
            op => op.is_view(),
        }
    }

    /// What reading the result of a candidate takes, where that is less than the result as it is.
    fn through(&self, problem: &Problem, class: usize, i: usize, reads: &[Read]) -> Option<Read> {
        let c = &problem.candidates[class][i];
        let Head::Op(op) = &c.node.head else { return None };
        if !self.is_carried(problem, op, &c.args) {
            return None;
        }
        let Fact { ty, constant, .. } = self.fact(problem, class);
        // A part of the source, at most the whole.
        let part = |arg: usize| {
            let from = self.fact(problem, arg);
            let source = self.count(&from.ty);
            let parts = if from.constant && !constant { self.batch() } else { 1.0 };
            reads[arg].times(if source > 0.0 { (parts * self.count(ty) / source).min(1.0) } else { 0.0 })
        };
        Some(match op {
            Op::Constant(_) | Op::Iota(_) => Read { memory: 0.0, cache: 0.0, format: ty.dtype },
            Op::Concat(_) => c.args[1..].iter().fold(reads[c.args[0]], |sum, a| sum.plus(reads[*a])),
            _ => part(c.args[0]),
        })
    }

    /// Seconds that a candidate adds to a function, and whether it needs a neighbour to be done on the way.
    fn own(&self, problem: &Problem, class: usize, i: usize, reads: &[Read]) -> (f64, bool) {
        let target = self.space.context.target;
        let c = &problem.candidates[class][i];
        let fact = self.fact(problem, class);
        let Head::Op(op) = &c.node.head else { return (0.0, false) };
        let out = self.computed(self.bytes(fact), fact.ty.dtype);
        if matches!(op, Op::Concat(_)) && !fact.constant {
            return (self.traffic(out), false);
        }
        // Part of a product's row is no row: elementwise ops on it are not done on the product's way.
        let product =
            |arg: usize| problem.candidates[arg].iter().any(|c| matches!(c.node.head, Head::Op(Op::Contract(_))));
        if matches!(op, Op::Slice(s) if s.axis > 0) && !fact.constant && product(c.args[0]) {
            return (self.traffic(out), false);
        }
        if matches!(op, Op::Gather(_)) && self.is_joined(problem, c.args[0]) {
            return (self.traffic(reads[c.args[0]]), false);
        }
        if self.is_carried(problem, op, &c.args) {
            return (0.0, false);
        }
        if fact.constant {
            return (target.seconds(0.0, target.traffic(out.bytes(), 0.0)), false);
        }
        let types = &c.types;
        let read = |a: usize| reads[c.args[a]];
        let all = c.args.iter().map(|a| reads[*a]);
        let (compute, reading) = match op {
            Op::Attention(_) => self.attention(problem, class, i, reads),
            _ => {
                let formats: Vec<DType> = match op {
                    Op::Contract(_) => all.clone().map(|r| r.format).collect(),
                    _ => Vec::new(),
                };
                let compute = self.batch() * op.flops(types, &fact.ty, self.bindings) / target.peak(&formats);
                let reading: f64 = match op {
                    // As many rows as are taken, or the whole once.
                    Op::Gather(_) => {
                        let source = self.size(&types[0]);
                        let rows = if source > 0.0 { (self.size(&fact.ty) / source).min(1.0) } else { 0.0 };
                        self.traffic(read(0).times(rows)) + self.traffic(read(1))
                    }
                    _ => all.map(|r| self.traffic(r)).sum(),
                };
                (compute, reading)
            }
        };
        match op {
            // Only the new rows are read and written.
            Op::Append(_) => {
                let written = target.traffic(self.batch() * self.size(&types[1]), 0.0);
                (target.seconds(0.0, self.traffic(read(1)) + written), false)
            }
            Op::Map(_) | Op::Cast(_) | Op::CausalMask(_) => {
                (target.seconds(compute, reading + self.traffic(out)) - target.launch_seconds, true)
            }
            _ => (target.seconds(compute, reading + self.traffic(out)), false),
        }
    }
}
