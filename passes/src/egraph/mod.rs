//! `rewrite`: alternatives by law, chosen by cost. The only place that knows egg.
//!
//! ```text
//! k = contract(c, U); attention(q, k, …)     ->     attention(contract(q, U), c, …)      where that costs less
//! ```
//!
//! Each function is rewritten on its own: its ops go into an e-graph, calls and inputs are leaves around it. The laws
//! of [`EXPLORED`](crate::rules::EXPLORED) are applied to everything, round by round, until nothing is new or a
//! limit of nodes or rounds is met (never of time, so that the same input gives the same output). What a law makes is
//! first simplified by the canonical laws. Then `extract` picks one op per class so that the whole costs least, at
//! sizes typical for the entry that the function belongs to.
//!
//! Classes carry their type, whether they follow from weights alone, and the places in the model they came from. Two
//! classes of different types are never united: that would be a bug of the law, and stops with its name.
//!
//! Reassociating: sums may be taken in another order.

mod cost;
mod exact;
mod extract;

pub use exact::{BUDGET, Gap, gap};

use crate::bounds::Bounds;
use crate::canonicalise::{Fired, canonical};
use crate::edit::mentions_symbols;
use crate::rule::{Rule, Site, Term, V};
use crate::rules::{self, LawSet};
use egg::{Analysis, DidMerge, EGraph, Id, Language};
use hadal_ir::ops::Contract;
use hadal_ir::target::Target;
use hadal_ir::{Bindings, Dim, Func, InstKind, Op, TensorType, ValueId};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

/// When to stop looking for alternatives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Most e-nodes.
    pub nodes: usize,
    /// Most rounds.
    pub rounds: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { nodes: 20_000, rounds: 12 }
    }
}

/// Why the search stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// Nothing new could be found.
    Saturated,
    /// Too many nodes.
    Nodes,
    /// Too many rounds.
    Rounds,
}

/// What happened to one function.
#[derive(Clone, PartialEq, Debug)]
pub struct Search {
    /// Its name.
    pub func: String,
    /// E-nodes at the end.
    pub nodes: usize,
    /// Classes at the end.
    pub classes: usize,
    /// Rounds made.
    pub rounds: usize,
    /// Why there were no more.
    pub stop: Stop,
    /// Seconds by the cost model of what was written.
    pub before: f64,
    /// Seconds by the cost model of what was chosen.
    pub after: f64,
}

/// An op over classes, or a value that comes from outside.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Node {
    head: Head,
    args: Vec<Id>,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Head {
    Input(ValueId),
    Op(Op),
}

impl Language for Node {
    type Discriminant = &'static str;

    fn discriminant(&self) -> &'static str {
        match &self.head {
            Head::Input(_) => "input",
            Head::Op(op) => op.mnemonic(),
        }
    }

    fn matches(&self, other: &Self) -> bool {
        self.head == other.head && self.args.len() == other.args.len()
    }

    fn children(&self) -> &[Id] {
        &self.args
    }

    fn children_mut(&mut self) -> &mut [Id] {
        &mut self.args
    }
}

/// What is known of a class.
#[derive(Clone, Debug)]
struct Fact {
    ty: TensorType,
    /// Follows from weights and constants alone.
    constant: bool,
    /// Places in the model.
    origin: BTreeSet<String>,
}

/// Types and constness of inputs, for new nodes.
#[derive(Clone, Debug, Default)]
struct Facts {
    inputs: BTreeMap<ValueId, (TensorType, bool)>,
}

impl Analysis<Node> for Facts {
    type Data = Fact;

    fn make(graph: &mut EGraph<Node, Self>, node: &Node, _: Id) -> Fact {
        match &node.head {
            Head::Input(v) => {
                let (ty, constant) = graph.analysis.inputs[v].clone();
                Fact { ty, constant, origin: BTreeSet::new() }
            }
            Head::Op(op) => {
                let types: Vec<TensorType> = node.args.iter().map(|a| graph[*a].data.ty.clone()).collect();
                let ty = op.infer(&types).expect("terms are checked before they are added");
                let constant = !mentions_symbols(op) && node.args.iter().all(|a| graph[*a].data.constant);
                Fact { ty, constant, origin: BTreeSet::new() }
            }
        }
    }

    fn merge(&mut self, a: &mut Fact, b: Fact) -> DidMerge {
        assert_eq!(a.ty, b.ty, "classes of two types were united");
        let before = (a.constant, a.origin.len());
        a.constant |= b.constant;
        let (b_constant, b_origins) = (b.constant, b.origin.len());
        a.origin.extend(b.origin);
        DidMerge((a.constant, a.origin.len()) != before, (a.constant, a.origin.len()) != (b_constant, b_origins))
    }
}

type Graph = EGraph<Node, Facts>;

/// What laws see of the e-graph; remembers which classes they looked through.
struct View<'a> {
    graph: &'a Graph,
    bounds: &'a Bounds,
    seen: RefCell<BTreeSet<V>>,
}

impl<'a> View<'a> {
    fn of(graph: &'a Graph, bounds: &'a Bounds) -> Self {
        View { graph, bounds, seen: RefCell::default() }
    }
}

fn id(v: V) -> Id {
    Id::from(v.0 as usize)
}

fn v(id: Id) -> V {
    V(usize::from(id) as u32)
}

impl Site for View<'_> {
    fn ty(&self, at: V) -> &TensorType {
        &self.graph[id(at)].data.ty
    }

    fn forms(&self, at: V) -> Vec<(&Op, Vec<V>)> {
        self.seen.borrow_mut().insert(at);
        let form = |n: &'_ Node| n.args.iter().map(|a| v(*a)).collect();
        let ops = self.graph[id(at)].nodes.iter().filter_map(move |n| match &n.head {
            Head::Op(op) => Some((op, form(n))),
            Head::Input(_) => None,
        });
        ops.collect()
    }

    fn readers(&self, at: V) -> Vec<(V, &Op, Vec<V>)> {
        self.seen.borrow_mut().insert(at);
        let at = self.graph.find(id(at));
        let mut out = Vec::new();
        for class in self.graph.classes() {
            for node in class.nodes.iter().filter(|n| n.args.iter().any(|a| self.graph.find(*a) == at)) {
                if let Head::Op(op) = &node.head {
                    out.push((v(class.id), op, node.args.iter().map(|a| v(*a)).collect()));
                }
            }
        }
        out.sort();
        out
    }

    fn constant(&self, at: V) -> bool {
        self.graph[id(at)].data.constant
    }

    fn upper(&self, size: &Dim) -> Option<i64> {
        self.bounds.upper(size)
    }

    fn lower(&self, size: &Dim) -> Option<i64> {
        self.bounds.lower(size)
    }
}

/// Ops of the longest function that is looked at: many times a layer's. Choosing walks down chains of ops by recursion.
const MAX_OPS: usize = 2000;

/// What a search is told besides the function.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The machine to cost for.
    pub target: &'a Target,
    /// What is known of sizes.
    pub bounds: &'a Bounds,
    /// The laws that may be used.
    pub laws: &'a LawSet,
    /// When to stop.
    pub limits: Limits,
}

/// Rewrites one function for the sizes in `bindings`. One with more than some thousand ops stays as it is.
pub fn func(old: &Func, context: &Context, bindings: &Bindings, fired: &mut Fired) -> (Func, Search) {
    let (mut graph, classes) = build(old);
    if old.insts.len() > MAX_OPS {
        let (nodes, classes) = (graph.total_number_of_nodes(), graph.number_of_classes());
        let search =
            Search { func: old.name.clone(), nodes, classes, rounds: 0, stop: Stop::Nodes, before: 0.0, after: 0.0 };
        return (old.clone(), search);
    }
    let originals: BTreeSet<Node> = graph.classes().flat_map(|c| c.nodes.iter().cloned()).collect();
    let (rounds, stop) = saturate(&mut graph, context, fired);
    let roots: Vec<Id> = extract::roots(old).into_iter().map(|r| graph.find(classes[&r])).collect();
    let (choice, before, after) = extract::choose(&graph, &originals, &roots, context.target, bindings);
    let new = extract::rebuild(old, &graph, &classes, &choice);
    let search = Search {
        func: old.name.clone(),
        nodes: graph.total_number_of_nodes(),
        classes: graph.number_of_classes(),
        rounds,
        stop,
        before,
        after,
    };
    (new, search)
}

/// The e-graph of a function, and the class of each value.
fn build(func: &Func) -> (Graph, BTreeMap<ValueId, Id>) {
    let mut facts = Facts::default();
    let mut outside: Vec<ValueId> = func.params.clone();
    outside.extend(func.weights.iter().map(|w| w.value));
    outside.extend(func.states.iter().map(|s| s.value));
    let calls = func.insts.iter().filter(|i| matches!(i.kind, InstKind::Call(_)));
    outside.extend(calls.flat_map(|i| i.results.iter().copied()));
    for v in &outside {
        let constant = func.weights.iter().any(|w| w.value == *v);
        facts.inputs.insert(*v, (func.ty(*v).clone(), constant));
    }
    let mut graph = Graph::new(facts);
    let mut classes: BTreeMap<ValueId, Id> = BTreeMap::new();
    for v in outside {
        classes.insert(v, graph.add(Node { head: Head::Input(v), args: vec![] }));
    }
    for inst in &func.insts {
        if let InstKind::Op(op) = &inst.kind {
            let args = inst.args.iter().map(|a| classes[a]).collect();
            let class = graph.add(Node { head: Head::Op(spelled(op)), args });
            graph[class].data.origin.extend(inst.origin.iter().cloned());
            classes.insert(inst.results[0], class);
        }
    }
    graph.rebuild();
    (graph, classes)
}

/// The op with canonical letters, so that equal contractions are one node.
fn spelled(op: &Op) -> Op {
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

/// Applies every law everywhere until nothing is new.
fn saturate(graph: &mut Graph, context: &Context, fired: &mut Fired) -> (usize, Stop) {
    let (limits, simple) = (context.limits, canonical(context.laws));
    let explored = rules::PHASES.iter().flat_map(|p| p.themes).flat_map(|theme| theme.rules);
    let explored: Vec<&'static Rule> = explored.filter(|r| context.laws.allows(r)).collect();
    for round in 0..limits.rounds {
        let mut found: Vec<(&'static Rule, Id, Term, BTreeSet<String>)> = Vec::new();
        let mut order: Vec<Id> = graph.classes().map(|c| c.id).collect();
        order.sort_unstable();
        for class in order {
            for node in &graph[class].nodes {
                let Head::Op(op) = &node.head else { continue };
                let args: Vec<V> = node.args.iter().map(|a| v(*a)).collect();
                for rule in &explored {
                    let view = View::of(graph, context.bounds);
                    for term in (rule.apply)(&view, op, &args).into_iter().filter(|t| t.ty(&view).is_some()) {
                        let mut origin = graph[class].data.origin.clone();
                        let leaves = leaves(&term);
                        for through in view.seen.borrow().difference(&leaves) {
                            origin.extend(graph[id(*through)].data.origin.iter().cloned());
                        }
                        found.push((*rule, class, term, origin));
                    }
                }
            }
        }
        let mut new = false;
        for (rule, class, term, origin) in found {
            let before = graph.total_size();
            let made = add(graph, &simple, context.bounds, &term, &origin, 0, fired);
            assert_eq!(graph[made].data.ty, graph[class].data.ty, "law `{}` changes the type", rule.name);
            let united = graph.union(made, class);
            if united || graph.total_size() > before {
                *fired.entry(rule.name).or_default() += 1;
                new = true;
            }
            if graph.total_size() > limits.nodes {
                graph.rebuild();
                return (round + 1, Stop::Nodes);
            }
        }
        graph.rebuild();
        if !new {
            return (round + 1, Stop::Saturated);
        }
    }
    (limits.rounds, Stop::Rounds)
}

fn leaves(term: &Term) -> BTreeSet<V> {
    match term {
        Term::Old(v) => BTreeSet::from([*v]),
        Term::New(_, args) => args.iter().flat_map(leaves).collect(),
    }
}

/// Deepest chain of simplifications of one new op.
const DEPTH: usize = 16;

/// Adds a term, simplified by the canonical laws, unless it is there already.
fn add(
    graph: &mut Graph,
    simple: &[&'static Rule],
    bounds: &Bounds,
    term: &Term,
    origin: &BTreeSet<String>,
    depth: usize,
    fired: &mut Fired,
) -> Id {
    let (op, args) = match term {
        Term::Old(at) => return graph.find(id(*at)),
        Term::New(op, args) => (op, args),
    };
    let args: Vec<Id> = args.iter().map(|a| add(graph, simple, bounds, a, origin, depth, fired)).collect();
    if depth < DEPTH {
        let view = View::of(graph, bounds);
        let operands: Vec<V> = args.iter().map(|a| v(*a)).collect();
        let simpler = simple
            .iter()
            .find_map(|r| Some((r, (r.apply)(&view, op, &operands).into_iter().find(|t| t.ty(&view).is_some())?)));
        if let Some((rule, simpler)) = simpler {
            let before = graph.total_size();
            let made = add(graph, simple, bounds, &simpler, origin, depth + 1, fired);
            if graph.total_size() > before {
                *fired.entry(rule.name).or_default() += 1;
            }
            return made;
        }
    }
    let mut node = Node { head: Head::Op(spelled(op)), args };
    if let Some(known) = graph.lookup(&mut node) {
        return known;
    }
    let class = graph.add(node);
    graph[class].data.origin = origin.clone();
    class
}

#[cfg(test)]
mod tests {
    use super::*;
    use hadal_ir::text::parse_module;
    use hadal_ir::{Sym, Tensor};

    fn noise(ty: &TensorType, bindings: &Bindings, seed: usize) -> Tensor {
        let shape = ty.eval_shape(bindings).unwrap();
        let n: usize = shape.iter().product();
        let values = (0..n).map(|i| ((i * 7919 + seed * 104729 + 13) % 1009) as f64 / 500.0 - 1.0);
        Tensor::real(ty.dtype, &shape, values.map(|v| ty.dtype.round(v)).collect())
    }

    /// Evaluates all nodes of all classes, each over any values found for its operands: all must agree.
    fn every_node_agrees(text: &str, bindings: &Bindings) -> usize {
        let module = parse_module(text).unwrap();
        let (mut graph, _) = build(&module.funcs[0]);
        let target = Target::by_name("cpu").unwrap();
        let (bounds, laws, limits) = (Bounds::default(), LawSet::default(), Limits::default());
        let context = Context { target: &target, bounds: &bounds, laws: &laws, limits };
        let (_, stop) = saturate(&mut graph, &context, &mut Fired::new());
        assert_eq!(stop, Stop::Saturated);
        let mut values: BTreeMap<Id, Tensor> = BTreeMap::new();
        let mut checked: BTreeSet<Node> = BTreeSet::new();
        let mut changed = true;
        while std::mem::take(&mut changed) {
            for class in graph.classes() {
                for node in &class.nodes {
                    let args: Option<Vec<&Tensor>> = node.args.iter().map(|a| values.get(&graph.find(*a))).collect();
                    let Some(args) = args.filter(|_| !checked.contains(node)) else { continue };
                    let value = match &node.head {
                        Head::Input(v) => noise(&class.data.ty, bindings, v.index()),
                        Head::Op(op) => op.eval(&args, &class.data.ty, bindings),
                    };
                    if let Some(known) = values.get(&class.id) {
                        assert_eq!(known.shape, value.shape);
                        for i in 0..known.len() {
                            let (x, y) = (known.at(i), value.at(i));
                            assert!(x == y || (x - y).abs() < 1e-9 * (1.0 + x.abs()), "{node:?}: {x} and {y}");
                        }
                    } else {
                        values.insert(class.id, value);
                    }
                    checked.insert(node.clone());
                    changed = true;
                }
            }
        }
        assert!(graph.classes().all(|c| c.nodes.iter().all(|n| checked.contains(n))));
        graph.total_number_of_nodes()
    }

    const LATENT: &str = r#"symbols P in 0..9, T in 1..9
        func @f(%x: f32[T, 5], %qr: f32[T, 2, 2], %c: f32[P+T, 3], %r: f32[P+T, 2]) -> (o: f32[T, 4]) {
          weight %wq = "q" : f32[6, 5]
          weight %w = "kv_b" : f32[8, 3]
          weight %wo = "o" : f32[4, 2]
          %q0 = contract %x, %wq {spec = "td,fd->tf"} : f32[T, 6]
          %q1 = reshape %q0 {shape = [T, 2, 3]} : f32[T, 2, 3]
          %q = concat %q1, %qr {axis = 2} : f32[T, 2, 5]
          %kv0 = contract %c, %w {spec = "sc,fc->sf"} : f32[P+T, 8]
          %kv = reshape %kv0 {shape = [P+T, 2, 4]} : f32[P+T, 2, 4]
          %kn = slice %kv {axis = 2, start = 0, len = 3} : f32[P+T, 2, 3]
          %v = slice %kv {axis = 2, start = 3, len = 1} : f32[P+T, 2, 1]
          %rb = broadcast %r {shape = [P+T, 2, 2], dims = [0, 2]} : f32[P+T, 2, 2]
          %k = concat %kn, %rb {axis = 2} : f32[P+T, 2, 5]
          %s0 = contract %q, %k {spec = "thd,shd->hts"} : f32[2, T, P+T]
          %f = constant {value = 0.4, dtype = f32} : f32[]
          %fb = broadcast %f {shape = [2, T, P+T], dims = []} : f32[2, T, P+T]
          %s1 = mul %s0, %fb : f32[2, T, P+T]
          %s2 = causal_mask %s1 {query = 1, key = 2} : f32[2, T, P+T]
          %p = softmax %s2 : f32[2, T, P+T]
          %o = contract %p, %v {spec = "hts,shv->thv"} : f32[T, 2, 1]
          %of = reshape %o {shape = [T, 2]} : f32[T, 2]
          %y = contract %of, %wo {spec = "td,fd->tf"} : f32[T, 4]
          return %y
        }"#;

    #[test]
    fn all_that_is_found_is_equal() {
        for (p, t) in [(0, 1), (0, 4), (3, 2), (5, 1)] {
            let nodes = every_node_agrees(LATENT, &Bindings::from([(Sym::P, p), (Sym::T, t)]));
            assert!((60..300).contains(&nodes), "{nodes} nodes");
        }
    }

    #[test]
    fn limits_are_kept() {
        let module = parse_module(LATENT).unwrap();
        let target = Target::by_name("cpu").unwrap();
        let bindings = Bindings::from([(Sym::P, 5), (Sym::T, 1)]);
        let (bounds, laws) = (Bounds::default(), LawSet::default());
        let stop = |limits| {
            let context = Context { target: &target, bounds: &bounds, laws: &laws, limits };
            func(&module.funcs[0], &context, &bindings, &mut Fired::new()).1.stop
        };
        assert_eq!(stop(Limits { nodes: 40, rounds: 12 }), Stop::Nodes);
        assert_eq!(stop(Limits { nodes: 20_000, rounds: 1 }), Stop::Rounds);
        assert_eq!(stop(Limits::default()), Stop::Saturated);
    }
}
