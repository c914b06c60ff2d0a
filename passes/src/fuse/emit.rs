//! Kernel functions out of groups, and what is left of the graph function.

use super::group::Grouping;
use crate::edit::{unite, without_dead_code};
use hadal_ir::module::{State, Weight};
use hadal_ir::text::print_func;
use hadal_ir::{Call, Func, FuncKind, Inst, InstKind, Op, ValueId};
use petgraph::Direction;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The kernels of a module, each once.
#[derive(Default)]
pub(super) struct Kernels {
    funcs: Vec<Func>,
    by_text: HashMap<(bool, String), String>,
    names: BTreeSet<String>,
    /// Whether those to come are for steps.
    pub steps: bool,
}

impl Kernels {
    /// Takes over a kernel or fold that was there before.
    pub fn keep(&mut self, func: &Func) {
        self.names.insert(func.name.clone());
        self.funcs.push(func.clone());
    }

    /// The name of a kernel equal to `func`, which is added if there is none.
    fn add(&mut self, mut func: Func) -> String {
        // Laws say where an op came from, not what it is: kernels that differ in them alone are one.
        let mut plain = func.clone();
        plain.insts.iter_mut().for_each(|i| i.laws.clear());
        let key = (self.steps, print_func(&plain));
        if let Some(known) = self.by_text.get(&key) {
            return known.clone();
        }
        let base = base_name(&func);
        let numbered = (2..).map(|n| format!("{base}_{n}"));
        let free = std::iter::once(base.clone()).chain(numbered).find(|n| !self.names.contains(n));
        func.name = free.expect("numbers do not run out");
        self.names.insert(func.name.clone());
        self.by_text.insert(key, func.name.clone());
        self.funcs.push(func);
        self.funcs.last().expect("just pushed").name.clone()
    }

    pub fn into_funcs(self) -> Vec<Func> {
        self.funcs
    }
}

/// The kernel function of a group, without a name, and the values of the graph that are its parameters.
pub(super) fn kernel(grouping: &Grouping, members: &[usize]) -> (Func, Vec<ValueId>) {
    let kind = if grouping.is_fold(members) { FuncKind::Fold } else { FuncKind::Kernel };
    let mut copy =
        Copier { grouping, members, out: Func { kind, ..Func::default() }, map: BTreeMap::new(), params: vec![] };
    for i in members {
        copy.inst(*i);
    }
    let results = grouping.results(members);
    for (n, r) in results.iter().enumerate() {
        let name = if results.len() == 1 { "out".to_owned() } else { format!("out{n}") };
        copy.out.results.push((name, copy.map[r]));
    }
    (without_dead_code(&copy.out), copy.params)
}

struct Copier<'a> {
    grouping: &'a Grouping<'a>,
    members: &'a [usize],
    out: Func,
    map: BTreeMap<ValueId, ValueId>,
    params: Vec<ValueId>,
}

impl Copier<'_> {
    fn inst(&mut self, i: usize) -> ValueId {
        let func = self.grouping.func;
        let inst = &func.insts[i];
        let args = inst.args.iter().map(|a| self.value(*a)).collect();
        let result = self.out.add_value(func.ty(inst.results[0]).clone(), None);
        let (kind, laws) = (inst.kind.clone(), inst.laws.clone());
        self.out.insts.push(Inst { args, results: vec![result], origin: vec![], laws, kind });
        self.map.insert(inst.results[0], result);
        result
    }

    fn value(&mut self, v: ValueId) -> ValueId {
        if let Some(known) = self.map.get(&v) {
            return *known;
        }
        let func = self.grouping.func;
        let carried = |i: &usize| {
            let op = matches!(func.insts[*i].kind, InstKind::Op(_));
            op && (self.grouping.group[*i].is_none() || self.members.contains(i))
        };
        if let Some(i) = self.grouping.definitions[v.index()].filter(carried) {
            return self.inst(i);
        }
        let param = self.out.add_value(func.ty(v).clone(), Some(format!("p{}", self.params.len())));
        self.out.params.push(param);
        self.params.push(v);
        self.map.insert(v, param);
        param
    }
}

/// What the graph function keeps: calls of its kernels in an order that respects dependencies, and reshapes.
pub(super) fn graph(func: &Func, grouping: &Grouping, kernels: &mut Kernels) -> Func {
    let mut keeper = Keeper::new(func, grouping);
    let groups: BTreeMap<usize, Vec<usize>> = grouping
        .groups()
        .into_iter()
        .map(|members| (grouping.group[members[0]].expect("members have a group"), members))
        .collect();
    for node in order(grouping) {
        match groups.get(&node) {
            None => keeper.call(node),
            Some(members) => {
                let (kernel, params) = kernel(grouping, members);
                let name = kernels.add(kernel);
                keeper.launch(name, members, &params);
            }
        }
    }
    keeper.finish()
}

/// Groups and calls, each after what it reads, otherwise as they stood.
fn order(grouping: &Grouping) -> Vec<usize> {
    let (graph, nodes) = grouping.dependencies();
    let last: BTreeMap<usize, usize> =
        (0..grouping.group.len()).filter_map(|i| Some((grouping.group[i]?, i))).collect();
    let key = |n: usize| (last.get(&n).copied().unwrap_or(n), n);
    let mut waiting: BTreeMap<usize, usize> =
        nodes.iter().map(|(n, at)| (*n, graph.neighbors_directed(*at, Direction::Incoming).count())).collect();
    let mut ready: BTreeSet<(usize, usize)> =
        waiting.iter().filter(|(_, count)| **count == 0).map(|(n, _)| key(*n)).collect();
    let mut out = Vec::new();
    while let Some((_, n)) = ready.pop_first() {
        out.push(n);
        for next in graph.neighbors(nodes[&n]) {
            let next = graph[next];
            let count = waiting.get_mut(&next).expect("every node waits");
            *count -= 1;
            if *count == 0 {
                ready.insert(key(next));
            }
        }
    }
    debug_assert_eq!(out.len(), nodes.len(), "groups do not depend on each other in a circle");
    out
}

struct Keeper<'a> {
    func: &'a Func,
    grouping: &'a Grouping<'a>,
    out: Func,
    map: BTreeMap<ValueId, ValueId>,
}

impl<'a> Keeper<'a> {
    fn new(func: &'a Func, grouping: &'a Grouping<'a>) -> Self {
        let mut this = Keeper { func, grouping, out: Func::default(), map: BTreeMap::new() };
        this.out.name = func.name.clone();
        this.out.params = func.params.iter().map(|p| this.define(*p)).collect();
        for w in &func.weights {
            let value = this.define(w.value);
            this.out.weights.push(Weight { value, name: w.name.clone() });
        }
        for s in &func.states {
            let value = this.define(s.value);
            this.out.states.push(State { value, name: s.name.clone(), next: value });
        }
        this
    }

    fn define(&mut self, old: ValueId) -> ValueId {
        let value = &self.func.values[old.index()];
        let new = self.out.add_value(value.ty.clone(), value.name.clone());
        self.map.insert(old, new);
        new
    }

    /// A value in memory, reshaped where needed.
    fn value(&mut self, v: ValueId) -> ValueId {
        if let Some(known) = self.map.get(&v) {
            return *known;
        }
        let i = self.grouping.definitions[v.index()].expect("inputs are defined");
        let inst = &self.func.insts[i];
        let base = self.value(inst.args[0]);
        let result = self.define(v);
        self.out.insts.push(Inst { args: vec![base], results: vec![result], ..inst.clone() });
        result
    }

    fn call(&mut self, i: usize) {
        let inst = &self.func.insts[i];
        let args = inst.args.iter().map(|a| self.value(*a)).collect();
        let results = inst.results.iter().map(|r| self.define(*r)).collect();
        self.out.insts.push(Inst { args, results, ..inst.clone() });
    }

    fn launch(&mut self, name: String, members: &[usize], params: &[ValueId]) {
        let args = params.iter().map(|p| self.value(*p)).collect();
        let results = self.grouping.results(members).into_iter().map(|r| self.define(r)).collect();
        let mut origin = Vec::new();
        members.iter().for_each(|i| unite(&mut origin, &self.func.insts[*i].origin));
        let kind = InstKind::Call(Call { func: name, prefix: String::new() });
        self.out.insts.push(Inst { kind, args, results, origin, laws: vec![] });
    }

    fn finish(mut self) -> Func {
        for (n, s) in self.func.states.iter().enumerate() {
            self.out.states[n].next = self.value(s.next);
        }
        for (name, v) in &self.func.results {
            let value = self.value(*v);
            self.out.results.push((name.clone(), value));
        }
        self.out
    }
}

/// A name that says what a kernel does: its ops but for what is carried, and the shape of its contraction.
fn base_name(func: &Func) -> String {
    let mut words: Vec<String> = Vec::new();
    for inst in &func.insts {
        let InstKind::Op(op) = &inst.kind else { continue };
        let word = match op {
            Op::Contract(c) => {
                let dtype = inst.args.last().map_or("", |a| root_dtype(func, *a));
                format!("contract_{dtype}_{}", c.inputs.join("_"))
            }
            Op::Constant(_) | Op::Iota(_) | Op::Dequantize(_) | Op::Cast(_) => continue,
            op if op.is_view() => continue,
            op => op.mnemonic().to_owned(),
        };
        words.push(word);
    }
    if words.is_empty() {
        let carried = func.insts.iter().rev().find_map(|i| match &i.kind {
            InstKind::Op(op) if !matches!(op, Op::Constant(_)) => Some(op.mnemonic().to_owned()),
            _ => None,
        });
        words.push(carried.unwrap_or_else(|| "constant".to_owned()));
    }
    words.dedup();
    let long = words.len() > 4;
    words.truncate(4);
    let name = words.join("_").to_lowercase();
    let fold = if func.kind == FuncKind::Fold { "fold_" } else { "" };
    format!("{fold}{name}{}", if long { "_etc" } else { "" })
}

/// The format in which an operand lies in memory.
fn root_dtype(func: &Func, value: ValueId) -> &'static str {
    match func.insts.iter().find(|i| i.results[0] == value) {
        Some(inst) if !inst.args.is_empty() => root_dtype(func, inst.args[0]),
        _ => func.ty(value).dtype.name(),
    }
}
