//! Choosing one op per class, and the function that follows.
//!
//! A shared op is paid once, so the cost of a choice is the sum over what the roots reach. Finding the cheapest choice
//! is hard in general; here two beginnings (what was written, and the choice that is cheapest if nothing were shared)
//! are each improved by changing one class at a time while that helps, and the cheaper end is taken. Ties go to the
//! earlier beginning and the smaller node, so the result depends on the input alone.

use super::cost::Costs;
use super::{Graph, Head, Node};
use crate::edit::Edit;
use egg::{Id, Language};
use hadal_ir::ops::Contract;
use hadal_ir::target::Target;
use hadal_ir::{Bindings, Func, InstKind, Op, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// A node, by position, for each class that has a usable one.
pub(super) type Choice = BTreeMap<Id, Node>;

/// Values that must be computed: results, next states, arguments of calls.
pub(super) fn roots(func: &Func) -> Vec<ValueId> {
    let calls = func.insts.iter().filter(|i| matches!(i.kind, InstKind::Call(_)));
    let mut out: Vec<ValueId> = calls.flat_map(|i| i.args.iter().copied()).collect();
    out.extend(func.results.iter().map(|(_, v)| *v));
    out.extend(func.states.iter().map(|s| s.next));
    out
}

/// The nodes of a class that may be chosen, each with its own cost.
pub(super) type Options = BTreeMap<Id, Vec<(Node, f64)>>;

/// Ops as they were written, over the classes that they are in by now.
fn written(graph: &Graph, originals: &BTreeSet<Node>) -> BTreeSet<Node> {
    originals.iter().map(|n| n.clone().map_children(|c| graph.find(c))).collect()
}

/// What may be chosen, and what each costs.
pub(super) fn options(graph: &Graph, originals: &BTreeSet<Node>, target: &Target, bindings: &Bindings) -> Options {
    let costs = Costs::of(graph, target, bindings);
    let written = written(graph, originals);
    let mut options = Options::new();
    for class in graph.classes() {
        let mut nodes: Vec<Node> = class.nodes.iter().map(|n| n.clone().map_children(|c| graph.find(c))).collect();
        nodes.sort();
        nodes.dedup();
        // Contractions gathered only to be nested otherwise are no kernels.
        let usable =
            |n: &Node| n.args.len() <= 2 || written.contains(n) || !matches!(n.head, Head::Op(Op::Contract(_)));
        nodes.retain(usable);
        let priced = nodes.into_iter().map(|n| (n.clone(), costs.own(class.id, &n)));
        options.insert(class.id, priced.collect());
    }
    options
}

/// The cheapest choice found, with the cost of what was written and its own.
pub(super) fn choose(
    graph: &Graph,
    originals: &BTreeSet<Node>,
    roots: &[Id],
    target: &Target,
    bindings: &Bindings,
) -> (Choice, f64, f64) {
    let options = options(graph, originals, target, bindings);
    choose_among(&options, &written(graph, originals), roots)
}

fn choose_among(options: &Options, written: &BTreeSet<Node>, roots: &[Id]) -> (Choice, f64, f64) {
    let cheapest = greedy(options, &BTreeSet::new());
    let first = greedy(options, written);
    let before = total(options, &first, roots);
    let mut best: Option<(Choice, f64)> = None;
    for start in [first, cheapest] {
        let (choice, cost) = improve(options, start, roots);
        if best.as_ref().is_none_or(|(_, known)| cost < known * (1.0 - 1e-9)) {
            best = Some((choice, cost));
        }
    }
    let (choice, after) = best.expect("there are two beginnings");
    (choice, before, after)
}

/// Bottom up, the node with the least cost of all below it as if nothing were shared; `preferred` nodes before others.
fn greedy(options: &Options, preferred: &BTreeSet<Node>) -> Choice {
    let mut best: BTreeMap<Id, (bool, f64, Node)> = BTreeMap::new();
    let mut changed = true;
    while std::mem::take(&mut changed) {
        for (class, nodes) in options {
            for (node, own) in nodes {
                let below: Option<f64> = node.args.iter().map(|a| best.get(a).map(|b| b.1)).sum();
                let Some(below) = below else { continue };
                let (other, cost) = (!preferred.contains(node), own + below);
                let better = match best.get(class) {
                    None => true,
                    Some((o, c, _)) => (other, cost) < (*o, *c * (1.0 - 1e-12)) && (other, cost) != (*o, *c),
                };
                if better {
                    best.insert(*class, (other, cost, node.clone()));
                    changed = true;
                }
            }
        }
    }
    best.into_iter().map(|(class, (_, _, node))| (class, node)).collect()
}

/// The cost of everything that `roots` reach, each class once; infinite where the choice runs in a circle.
pub(super) fn total(options: &Options, choice: &Choice, roots: &[Id]) -> f64 {
    let mut state: BTreeMap<Id, bool> = BTreeMap::new();
    let mut sum = 0.0;
    for root in roots {
        if !visit(options, choice, *root, &mut state, &mut sum) {
            return f64::INFINITY;
        }
    }
    sum
}

/// Adds what `class` and all below it cost; `state` is false while a class is being visited. False on a circle.
fn visit(options: &Options, choice: &Choice, class: Id, state: &mut BTreeMap<Id, bool>, sum: &mut f64) -> bool {
    match state.get(&class) {
        Some(done) => return *done,
        None => state.insert(class, false),
    };
    let Some(node) = choice.get(&class) else { return false };
    let priced = options[&class].iter().find(|(n, _)| n == node);
    *sum += priced.map_or(f64::INFINITY, |(_, own)| *own);
    let ok = node.args.iter().all(|a| visit(options, choice, *a, state, sum));
    state.insert(class, true);
    ok
}

/// The classes that `roots` reach, in order.
fn reached(choice: &Choice, roots: &[Id]) -> BTreeSet<Id> {
    let mut out = BTreeSet::new();
    let mut queue: Vec<Id> = roots.to_vec();
    while let Some(class) = queue.pop() {
        if out.insert(class) {
            queue.extend(choice.get(&class).into_iter().flat_map(|n| n.args.iter().copied()));
        }
    }
    out
}

/// Changes one class at a time while the total falls.
fn improve(options: &Options, mut choice: Choice, roots: &[Id]) -> (Choice, f64) {
    let mut cost = total(options, &choice, roots);
    let mut changed = true;
    while std::mem::take(&mut changed) {
        for class in reached(&choice, roots) {
            if options[&class].len() < 2 {
                continue;
            }
            for (node, _) in &options[&class] {
                if choice.get(&class) == Some(node) {
                    continue;
                }
                let old = choice.insert(class, node.clone());
                let now = total(options, &choice, roots);
                if now < cost * (1.0 - 1e-9) || (cost.is_infinite() && now.is_finite()) {
                    cost = now;
                    changed = true;
                } else if let Some(old) = old {
                    choice.insert(class, old);
                }
            }
        }
    }
    (choice, cost)
}

/// The function that computes what `old` does by the chosen nodes. Calls stay in order.
pub(super) fn rebuild(old: &Func, graph: &Graph, classes: &BTreeMap<ValueId, Id>, choice: &Choice) -> Func {
    let (edit, map) = Edit::like(old);
    let mut builder =
        Rebuild { old, graph, classes, choice, edit, map, done: BTreeMap::new(), letters: hints(old, graph, classes) };
    for (i, inst) in old.insts.iter().enumerate() {
        if let InstKind::Call(_) = inst.kind {
            builder.call(i);
        }
    }
    for root in roots(old) {
        builder.value(root);
    }
    let Rebuild { edit, map, .. } = builder;
    edit.finish(old, &map)
}

struct Rebuild<'a> {
    old: &'a Func,
    graph: &'a Graph,
    classes: &'a BTreeMap<ValueId, Id>,
    choice: &'a Choice,
    edit: Edit,
    map: Vec<Option<ValueId>>,
    done: BTreeMap<Id, ValueId>,
    letters: BTreeMap<Id, Vec<char>>,
}

impl Rebuild<'_> {
    fn call(&mut self, i: usize) {
        let inst = &self.old.insts[i];
        if self.map[inst.results.first().map_or(0, |r| r.index())].is_some() && !inst.results.is_empty() {
            return;
        }
        let args = inst.args.iter().map(|a| self.value(*a)).collect();
        for (r, new) in inst.results.iter().zip(self.edit.call(self.old, inst, args)) {
            self.map[r.index()] = Some(new);
        }
    }

    fn value(&mut self, v: ValueId) -> ValueId {
        let new = match self.map[v.index()] {
            Some(known) => known,
            None => self.class(self.graph.find(self.classes[&v])),
        };
        self.map[v.index()] = Some(new);
        new
    }

    fn class(&mut self, class: Id) -> ValueId {
        if let Some(known) = self.done.get(&class) {
            return *known;
        }
        let node = &self.choice[&class];
        let new = match &node.head {
            Head::Input(v) => {
                // A call further down computes it: bring that forward.
                let by_call = |i: &usize| self.old.insts[*i].results.contains(v);
                if let Some(i) = (0..self.old.insts.len()).find(by_call) {
                    self.call(i);
                }
                self.map[v.index()].expect("inputs are there from the start")
            }
            Head::Op(op) => {
                let args = node.args.iter().map(|a| self.class(*a)).collect();
                let origin: Vec<String> = self.graph[class].data.origin.iter().cloned().collect();
                let op = readable(op, class, node, &self.letters);
                let name = self.classes.iter().find(|(_, c)| self.graph.find(**c) == class);
                let name = name.and_then(|(v, _)| self.old.values[v.index()].name.clone());
                self.edit.op(op, args, &origin, name.as_deref())
            }
        };
        self.done.insert(class, new);
        new
    }
}

/// The letters that the axes of each class had in the function as it was written: those of contractions, and what
/// follows for operands and results of ops that keep axes.
fn hints(old: &Func, graph: &Graph, classes: &BTreeMap<ValueId, Id>) -> BTreeMap<Id, Vec<char>> {
    let mut out: BTreeMap<Id, Vec<char>> = BTreeMap::new();
    let ops = || old.insts.iter().filter_map(|i| if let InstKind::Op(op) = &i.kind { Some((i, op)) } else { None });
    for (inst, op) in ops() {
        if let Op::Contract(c) = op {
            let operands = inst.args.iter().zip(&c.inputs).chain([(&inst.results[0], &c.output)]);
            for (v, letters) in operands {
                out.entry(graph.find(classes[v])).or_insert_with(|| letters.chars().collect());
            }
        }
    }
    let keeps_axes = |op: &Op| !matches!(op, Op::Contract(_) | Op::Transpose(_) | Op::Reshape(_));
    for (inst, _) in ops().collect::<Vec<_>>().into_iter().rev().filter(|(_, op)| keeps_axes(op)) {
        let Some(known) = out.get(&graph.find(classes[&inst.results[0]])).cloned() else { continue };
        for a in inst.args.iter().filter(|a| old.ty(**a).rank() == known.len()) {
            out.entry(graph.find(classes[a])).or_insert_with(|| known.clone());
        }
    }
    out
}

/// The op with letters that its operands had in the function as it was written, as far as they do not clash.
fn readable(op: &Op, class: Id, node: &Node, hints: &BTreeMap<Id, Vec<char>>) -> Op {
    let spelled: Vec<&str> = match op {
        Op::Contract(c) => c.inputs.iter().map(String::as_str).collect(),
        Op::Attention(a) => a.operands().into_iter().map(|o| o.letters).collect(),
        _ => return op.clone(),
    };
    let output = match op {
        Op::Contract(c) => Some(c.output.as_str()),
        _ => None,
    };
    let mut names: BTreeMap<char, char> = BTreeMap::new();
    let known = output.map(|o| (&class, o)).into_iter().chain(node.args.iter().zip(spelled.iter().copied()));
    for (at, letters) in known {
        for (letter, hint) in letters.chars().zip(hints.get(at).into_iter().flatten()) {
            if !names.values().any(|n| n == hint) {
                names.entry(letter).or_insert(*hint);
            }
        }
    }
    for l in spelled.iter().flat_map(|s| s.chars()) {
        if !names.contains_key(&l) {
            let free = ('a'..='z').chain('A'..='Z').find(|f| !names.values().any(|n| n == f));
            let Some(fresh) = free else { return op.clone() };
            names.insert(l, fresh);
        }
    }
    let rename = |s: &str| s.chars().map(|l| names[&l]).collect::<String>();
    match op {
        Op::Contract(c) => Contract { inputs: c.inputs.iter().map(|s| rename(s)).collect(), output: rename(&c.output) }.into(),
        Op::Attention(a) => a.renamed(rename).into(),
        other => other.clone(),
    }
}
