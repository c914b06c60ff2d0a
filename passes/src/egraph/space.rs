//! The e-graph of one function: built from its ops, grown by laws, with the laws that made each node.

use super::view::{Misses, View, id, v};
use super::{Context, Facts, Graph, Head, Node, Outside};
use crate::canonicalise::{Fired, canonical};
use crate::rule::{Rule, Term, V};
use crate::watch::{Watched, extend, leaves};
use egg::{Id, Language};
use hadal_ir::ops::Contract;
use hadal_ir::{Func, InstKind, Op, ValueId};
use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Alternatives for all values of a function.
pub(super) struct Space<'a> {
    pub graph: Graph,
    pub context: &'a Context<'a>,
    /// The class of each value of the function.
    pub classes: BTreeMap<ValueId, Id>,
    /// How each node came to be. Only ever looked up, so its order does not matter.
    made: HashMap<Node, Made>,
    simple: Vec<&'static Rule>,
    /// Why laws did not apply, where that is to be explained.
    pub misses: RefCell<Misses>,
    /// Where laws added something.
    pub fired_at: BTreeSet<(&'static str, Id)>,
}

/// How a node came to be.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Made {
    /// By whoever wrote the function.
    pub written: bool,
    /// The laws behind it, each once, in the order in which they were first needed.
    pub laws: Vec<String>,
}

/// What new nodes inherit.
#[derive(Clone, Debug, Default)]
pub(super) struct Heritage {
    pub origin: BTreeSet<String>,
    pub laws: Vec<String>,
}

/// Deepest chain of simplifications of one new op.
const DEPTH: usize = 16;

impl<'a> Space<'a> {
    /// The function as it was written.
    pub fn of(func: &Func, context: &'a Context<'a>) -> Self {
        let mut facts = Facts::default();
        let mut outside: Vec<ValueId> = func.params.clone();
        outside.extend(func.weights.iter().map(|w| w.value));
        outside.extend(func.states.iter().map(|s| s.value));
        let calls = func.insts.iter().filter(|i| matches!(i.kind, InstKind::Call(_)));
        outside.extend(calls.flat_map(|i| i.results.iter().copied()));
        for v in &outside {
            let weight = func.weights.iter().any(|w| w.value == *v);
            let state = func.states.iter().any(|s| s.value == *v);
            let chosen = func.params.iter().position(|p| p == v).is_some_and(|p| context.bounds.chosen(p));
            facts.inputs.insert(*v, Outside { ty: func.ty(*v).clone(), weight, state, chosen });
        }
        let mut graph = Graph::new(facts);
        let (mut classes, mut made) = (BTreeMap::new(), HashMap::new());
        for v in outside {
            let node = Node { head: Head::Input(v), args: vec![] };
            made.insert(node.clone(), Made { written: true, laws: vec![] });
            classes.insert(v, graph.add(node));
        }
        for inst in &func.insts {
            if let InstKind::Op(op) = &inst.kind {
                let node = Node { head: Head::Op(spelled(op)), args: inst.args.iter().map(|a| classes[a]).collect() };
                made.entry(node.clone()).or_insert_with(|| Made { written: true, laws: inst.laws.clone() });
                let class = graph.add(node);
                graph[class].data.origin.extend(inst.origin.iter().cloned());
                classes.insert(inst.results[0], class);
            }
        }
        graph.rebuild();
        let simple = canonical(context.laws);
        Space { graph, context, classes, made, simple, misses: RefCell::default(), fired_at: BTreeSet::new() }
    }

    /// How a node of the graph came to be.
    pub fn made(&self, node: &Node) -> Made {
        self.made.get(node).cloned().unwrap_or_default()
    }

    /// Restores the graph's invariants after unions.
    pub fn rebuild(&mut self) {
        self.graph.rebuild();
        let mut made: HashMap<Node, Made> = HashMap::with_capacity(self.made.len());
        for (node, how) in std::mem::take(&mut self.made) {
            let known = made.entry(node.map_children(|c| self.graph.find(c)));
            known
                .and_modify(|k| {
                    // What was written stays so; of two derivations the shorter is the better story.
                    let key = |m: &Made| (!m.written, m.laws.len(), m.laws.clone());
                    if key(&how) < key(k) {
                        *k = how.clone();
                    }
                })
                .or_insert(how);
        }
        self.made = made;
    }

    /// What a node inherits that `law` makes of `root`, having looked through the classes `seen`.
    pub fn heritage(&self, law: &Rule, class: Id, root: &Node, term: &Term, seen: &[V]) -> Heritage {
        let mut origin = self.graph[class].data.origin.clone();
        let leaves = leaves(term);
        let through = seen.iter().filter(|at| !leaves.contains(at));
        through.for_each(|at| origin.extend(self.graph[id(*at)].data.origin.iter().cloned()));
        let mut laws = self.made(root).laws;
        self.parts(term, seen).iter().for_each(|name| extend(&mut laws, name));
        extend(&mut laws, law.name);
        Heritage { origin, laws }
    }

    /// Adds a term, simplified by the canonical laws, unless it is there already.
    pub fn add(&mut self, term: &Term, heritage: &Heritage, fired: &mut Fired) -> Id {
        self.add_within(term, heritage, 0, fired)
    }

    fn add_within(&mut self, term: &Term, heritage: &Heritage, depth: usize, fired: &mut Fired) -> Id {
        let (op, args) = match term {
            Term::Old(at) => return self.graph.find(id(*at)),
            Term::New(op, args) => (op, args),
        };
        let args: Vec<Id> = args.iter().map(|a| self.add_within(a, heritage, depth, fired)).collect();
        let mut node = Node { head: Head::Op(spelled(op)), args };
        if let Some(known) = self.graph.lookup(&mut node) {
            // Of two derivations the shorter is the better story.
            if let Some(how) = self.made.get_mut(&node).filter(|m| !m.written && heritage.laws.len() < m.laws.len()) {
                how.laws.clone_from(&heritage.laws);
            }
            return known;
        }
        if depth < DEPTH
            && let Some((rule, simpler, more)) = self.simplified(op, &node.args, heritage)
        {
            let before = self.graph.total_size();
            let made = self.add_within(&simpler, &more, depth + 1, fired);
            if self.graph.total_size() > before {
                *fired.entry(rule.name).or_default() += 1;
            }
            return made;
        }
        self.made.insert(node.clone(), Made { written: false, laws: heritage.laws.clone() });
        let class = self.graph.add(node);
        self.graph[class].data.origin = heritage.origin.clone();
        class
    }

    /// What the first canonical law that fires makes of an op.
    fn simplified(&self, op: &Op, args: &[Id], heritage: &Heritage) -> Option<(&'static Rule, Term, Heritage)> {
        let readers = OnceCell::new();
        let operands: Vec<V> = args.iter().map(|a| v(*a)).collect();
        let view = View { graph: &self.graph, bounds: self.context.bounds, readers: &readers };
        for rule in &self.simple {
            let view = Watched::new(&view, None);
            let found = (rule.apply)(&view, op, &operands).into_iter().find(|t| t.ty(&view).is_some());
            let Some(term) = found else { continue };
            let mut laws = heritage.laws.clone();
            self.parts(&term, &view.seen()).iter().for_each(|name| extend(&mut laws, name));
            extend(&mut laws, rule.name);
            return Some((rule, term, Heritage { origin: heritage.origin.clone(), laws }));
        }
        None
    }

    /// Laws behind the nodes that a law looked through on its way to `term`: in each class, one whose operands it kept
    /// or looked at.
    fn parts(&self, term: &Term, seen: &[V]) -> Vec<String> {
        let leaves = leaves(term);
        let mut laws = Vec::new();
        for at in seen.iter().filter(|at| !leaves.contains(at)) {
            let known = |a: &Id| leaves.contains(&v(*a)) || seen.contains(&v(*a));
            let nodes = self.graph[id(*at)].nodes.iter().filter(|n| !n.args.is_empty() && n.args.iter().all(known));
            let made = nodes.map(|n| self.made(n).laws).min_by_key(|laws| (laws.len(), laws.clone()));
            made.into_iter().flatten().for_each(|name| extend(&mut laws, &name));
        }
        laws
    }
}

/// The op with canonical letters, so that equal contractions are one node.
pub(super) fn spelled(op: &Op) -> Op {
    let Op::Contract(c) = op else { return op.clone() };
    let mut seen: Vec<char> = Vec::new();
    for l in c.inputs.iter().flat_map(|i| i.chars()) {
        if !seen.contains(&l) {
            seen.push(l);
        }
    }
    let names: BTreeMap<char, char> = seen.into_iter().zip(('a'..='z').chain('A'..='Z')).collect();
    let rename = |s: &String| s.chars().map(|l| names[&l]).collect();
    Contract { inputs: c.inputs.iter().map(rename).collect(), output: rename(&c.output) }.into()
}
