//! Which ops share a kernel.

use super::emit::kernel;
use crate::edit::mentions_symbols;
use hadal_ir::fusion::row_axes;
use hadal_ir::module::Inst;
use hadal_ir::target::Target;
use hadal_ir::{DType, Func, InstKind, Op, ValueId};
use petgraph::algo::has_path_connecting;
use petgraph::graph::{DiGraph, NodeIndex};
use std::collections::{BTreeMap, BTreeSet};

/// The instructions of a function, cut into kernels.
pub(super) struct Grouping<'a> {
    pub func: &'a Func,
    pub definitions: Vec<Option<usize>>,
    /// By instruction: its group, which is the number of some member; `None` for calls and what is carried.
    pub group: Vec<Option<usize>>,
    /// By instruction: values that it reads, seen through what is carried.
    reads: Vec<Vec<Read>>,
    /// By value: whether a call, a result or a state needs it in memory.
    pub demanded: Vec<bool>,
    /// By value: whether it follows from weights and constants alone.
    pub constant: Vec<bool>,
    /// Whether products multiply floats of eight bits as they are.
    floats: bool,
}

/// A value that an instruction reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Read {
    value: ValueId,
    /// Whether nothing is carried in between.
    direct: bool,
}

impl<'a> Grouping<'a> {
    pub fn of(func: &'a Func, target: &Target) -> Self {
        let definitions = func.definitions();
        let mut this = Grouping {
            func,
            definitions,
            group: vec![None; func.insts.len()],
            reads: Vec::new(),
            demanded: vec![false; func.values.len()],
            constant: vec![false; func.values.len()],
            floats: target.flops.f8.is_some(),
        };
        this.find_demanded();
        this.find_constant();
        let mut inline = BTreeSet::new();
        let attended = this.attended(&mut inline);
        for (i, inst) in func.insts.iter().enumerate() {
            let carried = |op: &Op| {
                let result = inst.results[0];
                this.is_carried(op, &inst.args) || inline.contains(&result) || this.is_narrow_factor(op, inst)
            };
            let computed = matches!(&inst.kind, InstKind::Op(op) if !carried(op));
            let read_whole = |v: &ValueId| this.demanded[v.index()] || attended.contains(v);
            let pinned = matches!(&inst.kind, InstKind::Op(_)) && read_whole(&inst.results[0]);
            this.group[i] = (computed || pinned).then_some(i);
        }
        this.reads = func.insts.iter().map(|inst| this.reads_of(&inst.args)).collect();
        this.join_elementwise();
        this.join_epilogues();
        this.join_rows();
        this
    }

    /// The op of an instruction that is not a call.
    fn op(&self, inst: usize) -> Option<&'a Op> {
        match &self.func.insts[inst].kind {
            InstKind::Op(op) => Some(op),
            InstKind::Call(_) => None,
        }
    }

    /// The groups in order of their last member, each with its members in order.
    pub fn groups(&self) -> Vec<Vec<usize>> {
        let mut members: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (i, g) in self.group.iter().enumerate() {
            if let Some(g) = g {
                members.entry(*g).or_default().push(i);
            }
        }
        let mut groups: Vec<Vec<usize>> = members.into_values().collect();
        groups.sort_by_key(|m| m.last().copied());
        groups
    }

    /// `value` seen through reshapes that stand between the graph's calls.
    pub fn below_reshapes(&self, mut value: ValueId) -> ValueId {
        while let Some(i) = self.definitions[value.index()] {
            match self.op(i) {
                Some(Op::Reshape(_)) => value = self.func.insts[i].args[0],
                _ => break,
            }
        }
        value
    }

    fn find_demanded(&mut self) {
        let func = self.func;
        let calls = func.insts.iter().filter(|i| matches!(i.kind, InstKind::Call(_)));
        let demanded: Vec<ValueId> = calls
            .flat_map(|i| i.args.iter().copied())
            .chain(func.results.iter().map(|(_, v)| *v))
            .chain(func.states.iter().map(|s| s.next))
            .collect();
        for v in demanded {
            let base = self.below_reshapes(v);
            self.demanded[base.index()] = true;
        }
    }

    /// What attention reads and is joined from parts, perhaps seen through views: kernels for attention read rows in
    /// one place. Without them sums would be taken in an order that depends on where rows stand. Keys and values may be
    /// joined column by column, and kept narrow with scales: `inline` gets what is read as it lies.
    fn attended(&self, inline: &mut BTreeSet<ValueId>) -> BTreeSet<ValueId> {
        let mut pinned = BTreeSet::new();
        for inst in &self.func.insts {
            let InstKind::Op(Op::Attention(attention)) = &inst.kind else { continue };
            let rows: Vec<ValueId> = attention
                .sets
                .iter()
                .zip(attention.split(&inst.args))
                .flat_map(|(set, args)| {
                    let value = 2 * set.terms.len();
                    args.iter().enumerate().filter(move |(i, _)| i % 2 == 1 && *i < value || *i == value)
                })
                .map(|(_, v)| *v)
                .collect();
            for arg in &inst.args {
                let columns = rows.contains(arg);
                let mut queue = vec![*arg];
                while let Some(value) = queue.pop() {
                    let Some(i) = self.definitions[value.index()] else { continue };
                    let args = &self.func.insts[i].args;
                    match self.op(i) {
                        Some(Op::Concat(_)) if columns && self.by_column(i) => queue.extend(args),
                        Some(Op::Concat(_)) => {
                            pinned.insert(value);
                        }
                        Some(Op::Dequantize(d)) if columns && args.len() == 2 => {
                            let (last, others) = d.block.split_last().unzip();
                            // In vectors that share a scale.
                            let of_rows =
                                others.is_some_and(|o| o.iter().all(|n| *n == 1)) && last.is_some_and(|n| n % 16 == 0);
                            if of_rows && self.only_attended(value, &rows) {
                                inline.insert(value);
                            }
                        }
                        Some(op) if op.is_view() => queue.extend(args.first()),
                        _ => {}
                    }
                }
            }
        }
        pinned
    }

    /// Whether an instruction joins columns, whose numbers are known.
    fn by_column(&self, inst: usize) -> bool {
        let Some(Op::Concat(c)) = self.op(inst) else { return false };
        let shapes = self.func.insts[inst].args.iter().map(|a| &self.func.ty(*a).shape);
        shapes.into_iter().all(|s| c.axis + 1 == s.len() && s[c.axis].as_const().is_some())
    }

    /// Whether nothing but these keys and values of attention is made of `value`.
    fn only_attended(&self, value: ValueId, rows: &[ValueId]) -> bool {
        let attention = |i: usize| matches!(self.op(i), Some(Op::Attention(_)));
        let users = (0..self.func.insts.len()).filter(|i| self.func.insts[*i].args.contains(&value));
        !self.demanded[value.index()]
            && users.into_iter().all(|i| match self.op(i) {
                Some(_) if attention(i) => rows.contains(&value),
                Some(op) if op.is_view() || self.by_column(i) => {
                    self.only_attended(self.func.insts[i].results[0], rows)
                }
                _ => false,
            })
    }

    fn find_constant(&mut self) {
        for w in &self.func.weights {
            self.constant[w.value.index()] = true;
        }
        for inst in &self.func.insts {
            if let InstKind::Op(op) = &inst.kind {
                let result = inst.results[0];
                let sized = self.func.ty(result).shape.iter().all(|d| d.as_const().is_some());
                let fixed = sized && !mentions_symbols(op);
                self.constant[result.index()] = fixed && inst.args.iter().all(|a| self.constant[a.index()]);
            }
        }
    }

    /// Whether an op is repeated in each kernel that reads it rather than computed on its own.
    fn is_carried(&self, op: &Op, args: &[ValueId]) -> bool {
        match op {
            Op::Constant(_) | Op::Iota(_) => true,
            // Products multiply integers as they are; for others it is one multiplication.
            Op::Dequantize(_) if self.func.ty(args[0]).dtype == DType::I8 => true,
            Op::Cast(_) | Op::Dequantize(_) | Op::Gather(_) => self.is_weight(args[0]),
            // Weights are joined once, when compiling.
            Op::Concat(_) => !args.iter().all(|a| self.is_weight(*a)),
            _ => op.is_view(),
        }
    }

    /// Whether an instruction dequantises what nothing but products read, which multiply it as it is.
    fn is_narrow_factor(&self, op: &Op, inst: &Inst) -> bool {
        let narrow = matches!(op, Op::Dequantize(_)) && self.func.ty(inst.args[0]).dtype == DType::F8E4M3;
        self.floats && narrow && self.only_multiplied(inst.results[0])
    }

    fn only_multiplied(&self, value: ValueId) -> bool {
        let mut users = self.func.insts.iter().enumerate().filter(|(_, inst)| inst.args.contains(&value));
        !self.demanded[value.index()]
            && users.all(|(i, inst)| match self.op(i) {
                Some(Op::Contract(_)) => true,
                Some(op) if op.is_view() => self.only_multiplied(inst.results[0]),
                _ => false,
            })
    }

    /// Whether a value is a weight seen through carried ops, or weights joined.
    fn is_weight(&self, value: ValueId) -> bool {
        match self.definitions[value.index()] {
            None => self.func.weights.iter().any(|w| w.value == value),
            Some(i) => {
                let args = &self.func.insts[i].args;
                let of_weight = |op: &Op| match op {
                    Op::Concat(_) => args.iter().all(|a| self.is_weight(*a)),
                    op => self.is_carried(op, args) && self.is_weight(args[0]),
                };
                self.op(i).is_some_and(|op| !args.is_empty() && of_weight(op))
            }
        }
    }

    fn reads_of(&self, args: &[ValueId]) -> Vec<Read> {
        let mut out: Vec<Read> = Vec::new();
        let mut queue: Vec<Read> = args.iter().map(|a| Read { value: *a, direct: true }).collect();
        while let Some(read) = queue.pop() {
            match self.definitions[read.value.index()] {
                Some(i) if self.group[i].is_none() && self.op(i).is_some() => {
                    let through = |a: &ValueId| Read { value: *a, direct: false };
                    queue.extend(self.func.insts[i].args.iter().map(through));
                }
                _ if !out.contains(&read) => out.push(read),
                _ => {}
            }
        }
        out.sort_by_key(|r| (r.value, r.direct));
        out
    }

    /// Where a value is read: instructions that are in groups, or calls; each with the directness of the reading.
    fn readers(&self, value: ValueId) -> impl Iterator<Item = (usize, bool)> + '_ {
        let in_kernels = (0..self.reads.len()).filter(|i| self.group[*i].is_some() || self.op(*i).is_none());
        in_kernels.flat_map(move |i| self.reads[i].iter().filter(move |r| r.value == value).map(move |r| (i, r.direct)))
    }

    /// Whether all that reads `value` are instructions of `group`.
    fn only_read_by(&self, value: ValueId, group: usize) -> bool {
        !self.demanded[value.index()] && self.readers(value).all(|(i, _)| self.group[i] == Some(group))
    }

    /// The values of a group that others need.
    pub fn results(&self, members: &[usize]) -> Vec<ValueId> {
        let results = members.iter().map(|i| self.func.insts[*i].results[0]);
        results
            .filter(|r| {
                let outside = |(i, _): (usize, bool)| !members.contains(&i);
                self.demanded[r.index()] || self.readers(*r).any(outside)
            })
            .collect()
    }

    /// Whether a group is computed when compiling.
    pub fn is_fold(&self, members: &[usize]) -> bool {
        members.iter().all(|i| self.constant[self.func.insts[*i].results[0].index()])
    }

    fn members(&self, group: usize) -> Vec<usize> {
        (0..self.group.len()).filter(|i| self.group[*i] == Some(group)).collect()
    }

    fn join(&mut self, a: usize, b: usize) {
        let (from, to) = (a.min(b), a.max(b));
        for g in self.group.iter_mut().filter(|g| **g == Some(from)) {
            *g = Some(to);
        }
    }

    /// Elementwise ops of one shape, where one reads the other directly and nothing else does.
    fn join_elementwise(&mut self) {
        let elementwise = |this: &Self, i: usize| matches!(this.op(i), Some(Op::Map(_) | Op::Cast(_)));
        let mut changed = true;
        while std::mem::take(&mut changed) {
            for i in (0..self.func.insts.len()).rev() {
                let Some(mine) = self.group[i].filter(|_| elementwise(self, i)) else { continue };
                for Read { value, direct } in self.reads[i].clone() {
                    let Some(p) = self.definitions[value.index()].filter(|p| direct && elementwise(self, *p)) else {
                        continue;
                    };
                    let Some(other) = self.group[p].filter(|g| *g != mine) else { continue };
                    let result = self.func.insts[i].results[0];
                    let fits = self.func.ty(value).shape == self.func.ty(result).shape
                        && self.constant[value.index()] == self.constant[result.index()]
                        && self.only_read_by(value, mine);
                    if fits {
                        self.join(mine, other);
                        changed = true;
                        break;
                    }
                }
            }
        }
    }

    /// A contraction and the elementwise ops on its result, all of which must follow from it.
    fn join_epilogues(&mut self) {
        for k in (0..self.func.insts.len()).rev() {
            if !matches!(self.op(k), Some(Op::Contract(_))) || self.group[k].is_none() {
                continue;
            }
            let value = self.func.insts[k].results[0];
            let Some((reader, _)) = self.readers(value).next() else { continue };
            let Some(group) = self.group[reader].filter(|g| self.only_read_by(value, *g)) else { continue };
            if self.readers(value).any(|(_, direct)| !direct) {
                continue;
            }
            let mut reached = BTreeSet::from([value]);
            let follows = self.members(group).into_iter().all(|i| {
                let inst = &self.func.insts[i];
                let same = self.func.ty(inst.results[0]).shape == self.func.ty(value).shape;
                let elementwise = matches!(self.op(i), Some(Op::Map(_) | Op::Cast(_)));
                let follows = same && elementwise && inst.args.iter().any(|a| reached.contains(a));
                reached.insert(inst.results[0]);
                follows
            });
            if follows && self.results(&self.members(group)).len() == 1 {
                self.join(k, group);
            }
        }
    }

    /// Producers and consumers that keep their rows.
    fn join_rows(&mut self) {
        let mut refused = BTreeSet::new();
        let mut changed = true;
        while std::mem::take(&mut changed) {
            for i in 0..self.func.insts.len() {
                for Read { value, .. } in self.reads[i].clone() {
                    let Some(p) = self.definitions[value.index()] else { continue };
                    let (Some(producer), Some(consumer)) = (self.group[p], self.group[i]) else { continue };
                    if producer == consumer || refused.contains(&(producer, consumer)) {
                        continue;
                    }
                    if self.rows_stay(producer, consumer) && self.stays_acyclic(producer, consumer) {
                        self.join(producer, consumer);
                        changed = true;
                        refused.clear();
                    } else {
                        refused.insert((producer, consumer));
                    }
                }
            }
        }
    }

    fn rows_stay(&self, producer: usize, consumer: usize) -> bool {
        let (p, c) = (self.members(producer), self.members(consumer));
        let mut all: Vec<usize> = p.iter().chain(&c).copied().collect();
        all.sort_unstable();
        let special = |i: &usize| matches!(self.op(*i), Some(Op::Contract(_) | Op::Attention(_)));
        if all.iter().any(special) || self.is_fold(&p) != self.is_fold(&c) {
            return false;
        }
        let rows = |members: &[usize]| row_axes(&kernel(self, members).0);
        rows(&all) >= rows(&p).min(rows(&c))
    }

    /// Whether no path leads from one group through others to the other.
    fn stays_acyclic(&self, producer: usize, consumer: usize) -> bool {
        let (mut graph, nodes) = self.dependencies();
        let (p, c) = (nodes[&producer], nodes[&consumer]);
        while let Some(edge) = graph.find_edge(p, c) {
            graph.remove_edge(edge);
        }
        !has_path_connecting(&graph, p, c, None)
    }

    /// Groups and calls, with an edge from each to those that read it.
    pub fn dependencies(&self) -> (DiGraph<usize, ()>, BTreeMap<usize, NodeIndex>) {
        let mut graph = DiGraph::new();
        let mut nodes = BTreeMap::new();
        let node_of = |i: usize| self.group[i].or_else(|| self.op(i).is_none().then_some(i));
        for i in 0..self.func.insts.len() {
            if let Some(n) = node_of(i) {
                nodes.entry(n).or_insert_with(|| graph.add_node(n));
            }
        }
        for i in 0..self.func.insts.len() {
            let Some(to) = node_of(i) else { continue };
            for read in &self.reads[i] {
                if let Some(from) = self.definitions[read.value.index()].and_then(node_of)
                    && from != to
                {
                    graph.update_edge(nodes[&from], nodes[&to], ());
                }
            }
        }
        // What reads the old rows of a state goes before what writes behind them, where it can.
        for s in &self.func.states {
            let Some(writer) = self.definitions[s.next.index()].and_then(node_of) else { continue };
            let mut old: Vec<usize> = self.readers(s.value).filter_map(|(i, _)| node_of(i)).collect();
            old.dedup();
            for reader in old {
                let (r, w) = (nodes[&reader], nodes[&writer]);
                if r != w && !has_path_connecting(&graph, w, r, None) {
                    graph.update_edge(r, w, ());
                }
            }
        }
        (graph, nodes)
    }
}
