//! `rewrite`: alternatives by law, chosen by cost. The only place that knows egg.
//!
//! ```text
//! k = contract(c, U); attention(q, k, …)     ->     attention(contract(q, U), c, …)      where that costs less
//! ```
//!
//! Each function is rewritten on its own: its ops go into an e-graph, calls and inputs are leaves around it. The laws
//! of each [phase](crate::rules::PHASES) are applied to everything, round by round, until nothing is new or a limit is
//! met (never of time, so that the same input gives the same output). What a law makes is first simplified by the
//! canonical laws. Then `problem` holds the choice to be made, one op per class, `cost` prices it, at sizes typical for
//! the entry that the function belongs to, `choose` makes it so that the whole costs least, and `rebuild` writes it
//! down. A second, smaller search on the result merges products of one input.
//!
//! Classes carry their type, whether they follow from weights alone, and the places in the model they came from; nodes
//! carry the laws that made them. Two classes of different types are never united: that would be a bug of the law, and
//! stops with its name.
//!
//! Reassociating: sums may be taken in another order.

mod attended;
mod choose;
mod cost;
mod exact;
mod explained;
mod preferences;
mod problem;
mod rebuild;
mod saturate;
mod space;
#[cfg(test)]
mod tests;
mod view;

pub use exact::{BUDGET, Gap, gap};
pub use preferences::{Preference, Preferences};

use crate::bounds::Bounds;
use crate::canonicalise::Fired;
use crate::edit::mentions_symbols;
use crate::explain::Explanation;
use crate::rules::{self, LawSet, Phase};
use crate::{Error, Options};
use choose::choose;
use cost::Costs;
use egg::{Analysis, DidMerge, EGraph, Id, Language};
use hadal_ir::target::Target;
use hadal_ir::{Bindings, Func, Op, TensorType, ValueId};
use problem::Problem;
use rebuild::Letters;
use space::Space;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// When to stop looking for alternatives, whatever a phase would allow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Most e-nodes.
    pub nodes: usize,
    /// Most rounds of a phase.
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

/// What one phase did with one function.
#[derive(Clone, PartialEq, Debug)]
pub struct PhaseReport {
    /// Its name.
    pub phase: &'static str,
    /// E-nodes at its end.
    pub nodes: usize,
    /// Classes at its end.
    pub classes: usize,
    /// Rounds made.
    pub rounds: usize,
    /// Why there were no more.
    pub stop: Stop,
    /// Laws that made more than their share of matches in a round, and were left out from then on.
    pub banned: Vec<&'static str>,
    /// How often each of its laws added something new.
    pub fired: Fired,
    /// How long it took.
    pub time: Duration,
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
    /// Rounds made, of all phases.
    pub rounds: usize,
    /// Why there were no more: of the first phase that was cut short, if any.
    pub stop: Stop,
    /// Seconds by the cost model of what was written.
    pub before: f64,
    /// Seconds by the cost model of what was chosen.
    pub after: f64,
    /// The sizes it was costed for.
    pub bindings: Bindings,
    /// Bytes of the weights that have to be computed when compiling, as chosen.
    pub folded_bytes: f64,
    /// Values that would not fit into memory together with what else is there, by their text, so that a choice
    /// without them was made.
    pub too_large: Vec<String>,
    /// What each phase did.
    pub phases: Vec<PhaseReport>,
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

/// A value from outside.
#[derive(Clone, Debug)]
struct Outside {
    ty: TensorType,
    weight: bool,
    state: bool,
    /// Always what `top_k` chose: see [`Site::chosen`](crate::rule::Site::chosen).
    chosen: bool,
}

/// What is known of values from outside, for new nodes.
#[derive(Clone, Debug, Default)]
struct Facts {
    inputs: BTreeMap<ValueId, Outside>,
}

impl Analysis<Node> for Facts {
    type Data = Fact;

    fn make(graph: &mut EGraph<Node, Self>, node: &Node, _: Id) -> Fact {
        let (ty, constant) = match &node.head {
            Head::Input(v) => {
                let outside = &graph.analysis.inputs[v];
                (outside.ty.clone(), outside.weight)
            }
            Head::Op(op) => {
                let types: Vec<TensorType> = node.args.iter().map(|a| graph[*a].data.ty.clone()).collect();
                let ty = op.infer(&types).expect("terms are checked before they are added");
                (ty, !mentions_symbols(op) && node.args.iter().all(|a| graph[*a].data.constant))
            }
        };
        Fact { ty, constant, origin: BTreeSet::new() }
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
    /// Bytes of memory that values of the function can have at its largest sizes.
    pub room: f64,
    /// Sequences at once.
    pub batch: u64,
    /// Whether to keep what an explanation needs.
    pub explain: bool,
}

impl<'a> Context<'a> {
    /// With all of the machine's memory for values.
    pub fn of(target: &'a Target, bounds: &'a Bounds, options: &'a Options) -> Self {
        let (laws, limits, explain) = (&options.laws, options.limits, options.explain);
        Context { target, bounds, laws, limits, room: target.memory_bytes as f64, batch: options.batch, explain }
    }
}

/// Rewrites one function for the sizes in `bindings`. One with more than some thousand ops stays as it is.
pub fn func(
    old: &Func,
    context: &Context,
    bindings: &Bindings,
    fired: &mut Fired,
) -> Result<(Func, Search, Option<Explanation>), Error> {
    if old.insts.len() > MAX_OPS {
        let search = Search { stop: Stop::Nodes, ..Search::nothing(&old.name, bindings) };
        return Ok((old.clone(), search, None));
    }
    let (new, mut search, mut explanation) = search(old, rules::PHASES, context, bindings)?;
    let merging = rules::MERGING.iter().flat_map(|p| p.themes).flat_map(|t| t.rules);
    let new = match merging.filter(|r| context.laws.allows(r)).count() {
        0 => new,
        _ => {
            let (merged, more, explained) = self::search(&new, rules::MERGING, context, bindings)?;
            search.then(more);
            if let (Some(all), Some(more)) = (&mut explanation, explained) {
                all.then(more);
            }
            merged
        }
    };
    for (law, n) in search.phases.iter().flat_map(|p| &p.fired) {
        *fired.entry(law).or_default() += n;
    }
    Ok((new, search, explanation))
}

/// One search: alternatives, the choice, and what follows from it.
fn search(
    old: &Func,
    phases: &'static [Phase],
    context: &Context,
    bindings: &Bindings,
) -> Result<(Func, Search, Option<Explanation>), Error> {
    let mut space = Space::of(old, context);
    let reports = space.saturate(phases);
    let mut problem = Problem::of(&space, old);
    let costs = Costs::of(&space, bindings);
    costs.price(&mut problem);
    let largest = context.bounds.largest();
    let mut too_large = Vec::new();
    let (choice, before, after) = loop {
        let chosen = choose(&problem);
        let found = chosen.map(|(choice, before, after)| {
            let excess = problem.largest_excess(&space, &choice, &largest, context.room);
            (choice, before, after, excess)
        });
        match found {
            Some((choice, before, after, None)) => break (choice, before, after),
            Some((choice, _, _, Some(class))) => {
                too_large.extend(
                    problem.chosen(&choice, class).map(|c| problem.text(&space, class, c, &Letters::of(old, &space))),
                );
                problem.forbid(&choice, class);
            }
            None => {
                let func = old.name.clone();
                return Err(match too_large.pop() {
                    Some(value) => Error::NoRoom { func, value, room: context.room as u64 },
                    None => Error::NoChoice { func },
                });
            }
        }
    };
    let explanation = context
        .explain
        .then(|| explained::explain(&space, &problem, (&choice, after), (phases, &reports), (old, bindings)));
    let new = rebuild::rebuild(old, &space, &problem, &choice);
    let search = Search {
        nodes: space.graph.total_number_of_nodes(),
        classes: space.graph.number_of_classes(),
        rounds: reports.iter().map(|p| p.rounds).sum(),
        stop: reports.iter().map(|p| p.stop).find(|s| *s != Stop::Saturated).unwrap_or(Stop::Saturated),
        before,
        after,
        folded_bytes: problem.folded_bytes(&space, &choice),
        too_large,
        phases: reports,
        ..Search::nothing(&old.name, bindings)
    };
    Ok((new, search, explanation))
}

impl Search {
    fn nothing(func: &str, bindings: &Bindings) -> Search {
        Search {
            func: func.to_owned(),
            nodes: 0,
            classes: 0,
            rounds: 0,
            stop: Stop::Saturated,
            before: 0.0,
            after: 0.0,
            bindings: bindings.clone(),
            folded_bytes: 0.0,
            too_large: Vec::new(),
            phases: Vec::new(),
        }
    }

    /// Adds a later search on what this one chose.
    fn then(&mut self, later: Search) {
        self.rounds += later.rounds;
        self.stop = if self.stop == Stop::Saturated { later.stop } else { self.stop };
        self.after = later.after;
        self.folded_bytes = later.folded_bytes;
        self.too_large.extend(later.too_large);
        self.phases.extend(later.phases);
    }
}
