//! The choice to be made: for each class that the results may need, the nodes that can compute it.
//!
//! A shared op is paid once, so what a choice costs is the sum over what the roots reach. To it comes a launch for each
//! elementwise op that no neighbour can do on the way: fusion joins it with what computes one of its operands, or, row
//! by row, with what reads it. Elementwise ops that have only each other share one launch.

use super::rebuild::Letters;
use super::space::{Made, Space};
use super::{Head, Node};
use egg::{Id, Language};
use hadal_ir::{Bindings, DType, Func, InstKind, Op, TensorType, ValueId};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Deref, Range};
use std::rc::Rc;

/// A node that may be chosen for its class: what does not depend on sizes.
#[derive(Debug)]
pub(super) struct Form {
    pub node: Node,
    /// Operands, by position of their classes.
    pub args: Vec<usize>,
    /// Types of the operands.
    pub types: Vec<TensorType>,
    /// Whether it stands in the function as it was written.
    pub written: bool,
    /// The laws behind it.
    pub laws: Vec<String>,
}

/// A form with its price.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub form: Rc<Form>,
    /// Whether whoever reads its result does it, so that it never lies in memory.
    pub carried: bool,
    /// Seconds that it adds.
    pub own: f64,
    /// Seconds that it adds where no neighbour can do it on the way.
    pub alone: f64,
    /// Whether elementwise ops on its result are done on the way.
    pub joins_readers: bool,
    /// Whether elementwise ops on its operands are done on the way.
    pub joins_operands: bool,
}

impl Candidate {
    /// Without a price.
    pub fn of(form: Form) -> Candidate {
        let form = Rc::new(form);
        Candidate { form, carried: false, own: 0.0, alone: 0.0, joins_readers: false, joins_operands: false }
    }
}

impl Deref for Candidate {
    type Target = Form;

    fn deref(&self) -> &Form {
        &self.form
    }
}

/// See the module documentation.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    /// Classes by position.
    pub ids: Vec<Id>,
    /// By class: what may be chosen, in a fixed order.
    pub candidates: Vec<Vec<Candidate>>,
    /// Classes that must be computed.
    pub roots: Vec<usize>,
}

/// By class: the candidate chosen, where there is one.
pub(super) type Choice = Vec<Option<usize>>;

/// Values that must be computed: results, next states, arguments of calls.
pub(super) fn roots(func: &Func) -> Vec<ValueId> {
    let calls = func.insts.iter().filter(|i| matches!(i.kind, InstKind::Call(_)));
    let mut out: Vec<ValueId> = calls.flat_map(|i| i.args.iter().copied()).collect();
    out.extend(func.results.iter().map(|(_, v)| *v));
    out.extend(func.states.iter().map(|s| s.next));
    out
}

impl Problem {
    /// All choices there are for what `func` must compute. Without prices yet.
    pub fn of(space: &Space, func: &Func) -> Problem {
        let graph = &space.graph;
        let roots: Vec<Id> = roots(func).into_iter().map(|r| graph.find(space.classes[&r])).collect();
        let mut reachable: BTreeMap<Id, Vec<(Node, Made)>> = BTreeMap::new();
        let mut open: Vec<Id> = roots.clone();
        while let Some(class) = open.pop() {
            if let Entry::Vacant(new) = reachable.entry(class) {
                let nodes = new.insert(usable(space, class));
                open.extend(nodes.iter().flat_map(|(n, _)| &n.args).copied());
            }
        }
        let at: BTreeMap<Id, usize> = reachable.keys().enumerate().map(|(i, id)| (*id, i)).collect();
        let form = |(node, made): (Node, Made)| {
            let args = node.args.iter().map(|a| at[a]).collect();
            let types = node.args.iter().map(|a| graph[*a].data.ty.clone()).collect();
            Candidate::of(Form { node, args, types, written: made.written, laws: made.laws })
        };
        let (ids, nodes): (Vec<Id>, Vec<Vec<(Node, Made)>>) = reachable.into_iter().unzip();
        let candidates = nodes.into_iter().map(|nodes| nodes.into_iter().map(form).collect()).collect();
        let roots = roots.iter().map(|r| at[r]).collect::<BTreeSet<usize>>().into_iter().collect();
        Problem { ids, candidates, roots }
    }

    /// The candidate chosen for a class.
    pub fn chosen<'p>(&'p self, choice: &Choice, class: usize) -> Option<&'p Candidate> {
        self.candidates[class].get(choice[class]?)
    }

    /// The cost of everything that the roots reach; infinite where something is missing or the choice runs in a circle.
    pub fn total(&self, choice: &Choice) -> f64 {
        Walk::new(self).total(choice)
    }

    /// The classes that a choice computes, operands before what uses them; empty where it cannot be.
    pub fn order(&self, choice: &Choice) -> Vec<usize> {
        let mut walk = Walk::new(self);
        if walk.run(choice) { walk.order } else { Vec::new() }
    }

    /// Takes a candidate away from a class, and what can no longer be computed without it.
    pub fn forbid(&mut self, choice: &Choice, class: usize) {
        if let Some(c) = choice[class] {
            self.candidates[class].remove(c);
        }
        loop {
            let lost: Vec<bool> = self.candidates.iter().map(Vec::is_empty).collect();
            let before: usize = self.candidates.iter().map(Vec::len).sum();
            self.candidates.iter_mut().for_each(|cs| cs.retain(|c| c.args.iter().all(|a| !lost[*a])));
            if self.candidates.iter().map(Vec::len).sum::<usize>() == before {
                return;
            }
        }
    }

    /// The class whose value is the largest where the values that are there at once, at sizes `largest`, need more than
    /// `room` bytes; `None` where all is well, or where the sizes are not known.
    pub fn largest_excess(&self, space: &Space, choice: &Choice, largest: &Bindings, room: f64) -> Option<usize> {
        let order = self.order(choice);
        let mut last = vec![0; self.ids.len()];
        for (at, i) in order.iter().enumerate() {
            self.chosen(choice, *i)?.args.iter().for_each(|a| last[*a] = at);
        }
        self.roots.iter().for_each(|r| last[*r] = order.len());
        // A view keeps what it looks at.
        for i in order.iter().rev() {
            let c = self.chosen(choice, *i)?;
            if c.carried {
                c.args.iter().for_each(|a| last[*a] = last[*a].max(last[*i]));
            }
        }
        let bytes: Vec<f64> = (0..self.ids.len()).map(|i| self.held_bytes(space, choice, i, largest)).collect();
        let mut live: Vec<usize> = Vec::new();
        for (at, i) in order.iter().enumerate() {
            live.push(*i);
            if live.iter().map(|l| bytes[*l]).sum::<f64>() > room {
                // Of equal ones the first: its position is a stable key.
                return live.into_iter().max_by(|a, b| bytes[*a].total_cmp(&bytes[*b]).then(b.cmp(a)));
            }
            live.retain(|l| last[*l] > at);
        }
        None
    }

    /// Bytes that the result of a class takes in working buffers of all sequences: none for what is an input, a view, a
    /// state, folded, or done on the way by a neighbour.
    fn held_bytes(&self, space: &Space, choice: &Choice, class: usize, sizes: &Bindings) -> f64 {
        let fact = &space.graph[self.ids[class]].data;
        let Some(c) = self.chosen(choice, class).filter(|c| !c.carried && !fact.constant) else { return 0.0 };
        match &c.node.head {
            Head::Input(_) | Head::Op(Op::Append(_) | Op::Map(_) | Op::Cast(_) | Op::CausalMask(_)) => 0.0,
            Head::Op(_) => {
                let elements = space.context.batch as f64 * fact.ty.count(sizes).unwrap_or(0.0);
                elements * fact.ty.dtype.bits() as f64 / 8.0
            }
        }
    }

    /// Bytes of what has to be computed from weights when compiling.
    pub fn folded_bytes(&self, space: &Space, choice: &Choice) -> f64 {
        let of = |i: usize| {
            let fact = &space.graph[self.ids[i]].data;
            let folded = self.chosen(choice, i).is_some_and(|c| matches!(c.node.head, Head::Op(_)) && !c.carried);
            let bytes = fact.ty.count(&Bindings::new()).unwrap_or(0.0) * fact.ty.dtype.bits() as f64 / 8.0;
            if fact.constant && folded { bytes } else { 0.0 }
        };
        self.order(choice).into_iter().map(of).sum()
    }

    /// A candidate as text, with the types of its operands and result, and with the letters of the function as written.
    pub fn text(&self, space: &Space, class: usize, candidate: &Candidate, letters: &Letters) -> String {
        let ty = |id: &Id| space.graph[*id].data.ty.to_string();
        let operand = |id: &Id| {
            let known = &space.graph[*id].data.ty;
            let format = if space.graph[*id].data.constant { stored_format(space, *id) } else { None };
            TensorType { dtype: format.unwrap_or(known.dtype), ..known.clone() }.to_string()
        };
        let args: Vec<String> = candidate.node.args.iter().map(operand).collect();
        let out = ty(&self.ids[class]);
        match &candidate.node.head {
            Head::Input(_) => out,
            Head::Op(op) => {
                let op = letters.readable(op, self.ids[class], &candidate.node);
                let attrs: Vec<String> = op.attrs().iter().map(|(name, a)| format!("{name} = {a}")).collect();
                let attrs = if attrs.is_empty() { String::new() } else { format!(" {{{}}}", attrs.join(", ")) };
                format!("{} {}{attrs} : {out}", op.mnemonic(), args.join(", "))
            }
        }
    }
}

/// The format in which a weight is stored that is multiplied by scales as it is read: through views of it.
fn stored_format(space: &Space, class: Id) -> Option<DType> {
    let (mut open, mut seen) = (vec![class], BTreeSet::new());
    while let Some(class) = open.pop().map(|id| space.graph.find(id)).filter(|_| seen.len() < 100) {
        if !seen.insert(class) {
            continue;
        }
        for node in &space.graph[class].nodes {
            match &node.head {
                Head::Op(Op::Dequantize(_)) => return Some(space.graph[node.args[0]].data.ty.dtype),
                Head::Op(op) if op.is_view() => open.extend(node.args.first()),
                _ => {}
            }
        }
    }
    None
}

/// The nodes of a class that can be kernels, or parts of them.
fn usable(space: &Space, class: Id) -> Vec<(Node, Made)> {
    let graph = &space.graph;
    let mut nodes: Vec<Node> = graph[class].nodes.iter().map(|n| n.clone().map_children(|c| graph.find(c))).collect();
    nodes.sort();
    nodes.dedup();
    let made = nodes.into_iter().map(|n| {
        let made = space.made(&n);
        (n, made)
    });
    // Contractions gathered only to be nested otherwise are no kernels.
    let gathered = |n: &Node| n.args.len() > 2 && matches!(n.head, Head::Op(Op::Contract(_)));
    made.filter(|(n, made)| made.written || !gathered(n)).collect()
}

/// Walks over what choices reach: the candidates of all classes one behind another, since so many choices are tried.
pub(super) struct Walk<'a> {
    roots: &'a [usize],
    /// By class: its first candidate, and at the end how many there are.
    first: Vec<usize>,
    forms: Vec<Step>,
    /// Operands of all candidates.
    args: Vec<u32>,
    /// By class: where the visit began and ended, as numbers that grow from walk to walk.
    begun: Vec<u32>,
    ended: Vec<u32>,
    joined: Vec<u32>,
    number: u32,
    order: Vec<usize>,
    /// Of those, the elementwise ops.
    loose: Vec<usize>,
}

/// What walks ask of a [`Candidate`].
struct Step {
    own: f64,
    alone: f64,
    joins_readers: bool,
    joins_operands: bool,
    args: Range<usize>,
}

impl<'a> Walk<'a> {
    pub fn new(problem: &'a Problem) -> Self {
        let n = problem.ids.len();
        let (mut first, mut forms, mut args) = (vec![0], Vec::new(), Vec::new());
        for candidates in &problem.candidates {
            for c in candidates {
                let start = args.len();
                args.extend(c.args.iter().map(|a| *a as u32));
                let (own, alone, args) = (c.own, c.alone, start..args.len());
                forms.push(Step { own, alone, joins_readers: c.joins_readers, joins_operands: c.joins_operands, args });
            }
            first.push(forms.len());
        }
        let (begun, ended, joined) = (vec![0; n], vec![0; n], vec![0; n]);
        let (order, loose) = (Vec::new(), Vec::new());
        Walk { roots: &problem.roots, first, forms, args, begun, ended, joined, number: 0, order, loose }
    }

    /// What is chosen for a class.
    #[inline]
    fn chosen(&self, choice: &Choice, class: usize) -> Option<&Step> {
        self.forms[self.first[class]..self.first[class + 1]].get(choice[class]?)
    }

    #[inline]
    fn args(&self, of: &Step) -> impl Iterator<Item = usize> {
        self.args[of.args.clone()].iter().map(|a| *a as usize)
    }

    /// See [`Problem::total`].
    pub fn total(&mut self, choice: &Choice) -> f64 {
        if !self.run(choice) {
            return f64::INFINITY;
        }
        let (mut sum, mut loose) = (0.0, std::mem::take(&mut self.loose));
        loose.clear();
        for (i, c) in self.order.iter().filter_map(|i| Some((*i, self.chosen(choice, *i)?))) {
            sum += c.own;
            if c.alone > 0.0 {
                loose.push(i);
            }
        }
        if !loose.is_empty() {
            self.join(choice, &loose);
            let alone = loose.iter().filter(|i| self.joined[**i] != self.number);
            for c in alone.filter_map(|i| self.chosen(choice, *i)) {
                // Of elementwise ops that are joined with each other alone, the first has the launch.
                let waits = |a| self.joined[a] != self.number && self.chosen(choice, a).is_some_and(|c| c.alone > 0.0);
                sum += if self.args(c).any(waits) { 0.0 } else { c.alone };
            }
        }
        self.loose = loose;
        sum
    }

    /// Marks what is done on the way of an op that has a launch of its own, be it through other elementwise ops.
    fn join(&mut self, choice: &Choice, loose: &[usize]) {
        let mut joined = std::mem::take(&mut self.joined);
        // What has a launch of its own has it whatever is joined.
        for c in self.order.iter().filter_map(|i| self.chosen(choice, *i)) {
            if c.alone == 0.0 && c.joins_operands {
                self.args(c).for_each(|a| joined[a] = self.number);
            }
        }
        let mut grew = true;
        while std::mem::take(&mut grew) {
            for i in loose {
                let Some(c) = self.chosen(choice, *i) else { continue };
                let launched = |joined: &[u32], at: usize, c: &Step| c.alone == 0.0 || joined[at] == self.number;
                let above = |a| self.chosen(choice, a).is_some_and(|c| c.joins_readers && launched(&joined, a, c));
                if joined[*i] != self.number && self.args(c).any(above) {
                    joined[*i] = self.number;
                    grew = true;
                }
                if c.joins_operands && launched(&joined, *i, c) {
                    for a in self.args(c) {
                        grew |= joined[a] != self.number;
                        joined[a] = self.number;
                    }
                }
            }
        }
        self.joined = joined;
    }

    /// False on a circle, or where nothing is chosen.
    fn run(&mut self, choice: &Choice) -> bool {
        self.number += 1;
        self.order.clear();
        self.roots.iter().all(|r| self.visit(choice, *r))
    }

    fn visit(&mut self, choice: &Choice, class: usize) -> bool {
        if self.begun[class] == self.number {
            return self.ended[class] == self.number;
        }
        self.begun[class] = self.number;
        let Some(args) = self.chosen(choice, class).map(|c| c.args.clone()) else { return false };
        for i in args {
            if !self.visit(choice, self.args[i] as usize) {
                return false;
            }
        }
        self.ended[class] = self.number;
        self.order.push(class);
        true
    }
}
