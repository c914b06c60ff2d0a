//! The function that follows from a choice, written as the one before was: with its names and letters where they fit.

use super::problem::{Candidate, Choice, Problem, roots};
use super::space::Space;
use super::{Graph, Head, Node};
use crate::edit::{Edit, Trail};
use egg::Id;
use hadal_ir::ops::Contract;
use hadal_ir::{Func, InstKind, Op, ValueId};
use std::collections::BTreeMap;

/// The function that computes what `old` does by the chosen nodes. Calls stay in order.
pub(super) fn rebuild(old: &Func, space: &Space, problem: &Problem, choice: &Choice) -> Func {
    let (edit, map) = Edit::like(old);
    let (graph, classes) = (&space.graph, &space.classes);
    let chosen = (0..problem.ids.len()).filter_map(|i| Some((problem.ids[i], problem.chosen(choice, i)?)));
    let (choice, letters) = (chosen.collect(), Letters::of(old, space));
    let mut builder = Rebuild { old, graph, classes, choice, edit, map, done: BTreeMap::new(), letters };
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
    choice: BTreeMap<Id, &'a Candidate>,
    edit: Edit,
    map: Vec<Option<ValueId>>,
    done: BTreeMap<Id, ValueId>,
    letters: Letters,
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
        let candidate = self.choice[&class];
        let node = &candidate.node;
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
                let op = self.letters.readable(op, class, node);
                let name = self.classes.iter().find(|(_, c)| self.graph.find(**c) == class);
                let name = name.and_then(|(v, _)| self.old.values[v.index()].name.clone());
                self.edit.op(op, args, &Trail { origin: &origin, laws: &candidate.laws }, name.as_deref())
            }
        };
        self.done.insert(class, new);
        new
    }
}

/// The letters that the axes of each class had in the function as it was written: those of contractions, and what
/// follows for operands and results of ops that keep axes.
pub(super) struct Letters(BTreeMap<Id, Vec<char>>);

impl Letters {
    pub fn of(old: &Func, space: &Space) -> Letters {
        let (graph, classes) = (&space.graph, &space.classes);
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
        Letters(out)
    }

    /// The op with letters that its operands had in the function as it was written, as far as they do not clash.
    pub fn readable(&self, op: &Op, class: Id, node: &Node) -> Op {
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
            for (letter, hint) in letters.chars().zip(self.0.get(at).into_iter().flatten()) {
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
            Op::Contract(c) => {
                Contract { inputs: c.inputs.iter().map(|i| rename(i)).collect(), output: rename(&c.output) }.into()
            }
            Op::Attention(a) => a.renamed(rename).into(),
            other => other.clone(),
        }
    }
}
