//! The cheapest choice there is, by branch and bound: to measure what the quick choice of `extract` gives away.
//!
//! A class that is needed is paid once, with the node chosen for it. Some classes are needed whatever is chosen: those
//! that every way to compute a root goes through. What has been decided plus the cheapest node of every class that is
//! needed by now is a lower bound; a branch whose bound is not below the best choice known is cut. The quick choice is
//! the first one known, so the result is never worse.
//!
//! Effort is limited by branches explored, never by the clock. Where that ends the search, what is left of it still
//! gives a lower bound.

use super::extract::{self, Choice};
use super::{Context, MAX_OPS, Node, build, saturate};
use crate::bounds::Bounds;
use crate::canonicalise::{self, Fired};
use crate::{Options, specialise};
use egg::Id;
use hadal_ir::target::Target;
use hadal_ir::{Bindings, Func, FuncKind, Module};
use std::collections::{BTreeMap, BTreeSet};

/// Most branches explored for one function.
pub const BUDGET: usize = 20_000;

/// How far the quick choice of one function is from the best.
#[derive(Clone, PartialEq, Debug)]
pub struct Gap {
    /// The function, as specialised.
    pub func: String,
    /// Seconds by the cost model of the quick choice, the one the pipeline makes.
    pub greedy: f64,
    /// Seconds of the cheapest choice found.
    pub exact: f64,
    /// Seconds that no choice is below; `exact` where that is proven.
    pub bound: f64,
    /// Whether nothing is cheaper than `exact`; otherwise the budget ended before the search did.
    pub proven: bool,
    /// Branches explored.
    pub explored: usize,
    /// Classes that the results may need.
    pub classes: usize,
}

/// The gap of each function that `rewrite` would look at, in the pipeline's order.
pub fn gap(module: &Module, target: &Target, options: &Options) -> Vec<Gap> {
    let (module, _) = canonicalise::run(&specialise::run(module), options);
    let graphs = module.funcs.iter().filter(|f| f.kind == FuncKind::Graph && f.insts.len() <= MAX_OPS);
    let of = |f: &Func| {
        let bounds = Bounds::of(&module, &f.name, options);
        let context = Context { target, bounds: &bounds, laws: &options.laws, limits: options.limits };
        of_func(f, &context, &options.typical(&module, &f.name), BUDGET)
    };
    graphs.map(of).collect()
}

fn of_func(func: &Func, context: &Context, bindings: &Bindings, budget: usize) -> Gap {
    let (mut graph, classes) = build(func);
    let originals: BTreeSet<Node> = graph.classes().flat_map(|c| c.nodes.iter().cloned()).collect();
    saturate(&mut graph, context, &mut Fired::new());
    let roots: Vec<Id> = extract::roots(func).into_iter().map(|r| graph.find(classes[&r])).collect();
    let (choice, _, greedy) = extract::choose(&graph, &originals, &roots, context.target, bindings);
    let options = extract::options(&graph, &originals, context.target, bindings);
    let problem = Problem::of(&options, &roots);
    let found = problem.solve(choice, greedy, budget);
    // Priced the way the quick choice is, not by the search's own sums.
    let exact = extract::total(&options, &found.choice, &roots);
    let bound = found.bound.min(exact);
    let proven = bound >= exact * (1.0 - EQUAL);
    let (explored, classes) = (found.explored, problem.ids.len());
    Gap { func: func.name.clone(), greedy, exact, bound, proven, explored, classes }
}

/// Costs nearer than this, relatively, are equal.
const EQUAL: f64 = 1e-9;

/// Classes by position.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Set(Vec<u64>);

impl Set {
    fn empty(n: usize) -> Set {
        Set(vec![0; n.div_ceil(64)])
    }

    fn full(n: usize) -> Set {
        let mut out = Set::empty(n);
        (0..n).for_each(|i| out.insert(i));
        out
    }

    fn insert(&mut self, i: usize) {
        self.0[i / 64] |= 1 << (i % 64);
    }

    fn contains(&self, i: usize) -> bool {
        self.0[i / 64] >> (i % 64) & 1 == 1
    }

    fn unite(&mut self, other: &Set) {
        self.0.iter_mut().zip(&other.0).for_each(|(a, b)| *a |= b);
    }

    fn intersect(&mut self, other: &Set) {
        self.0.iter_mut().zip(&other.0).for_each(|(a, b)| *a &= b);
    }

    /// Those of `self` that `other` lacks.
    fn without<'a>(&'a self, other: &'a Set) -> impl Iterator<Item = usize> + 'a {
        self.0.iter().zip(&other.0).enumerate().flat_map(|(w, (a, b))| {
            let mut rest = a & !b;
            std::iter::from_fn(move || {
                let bit = (rest != 0).then(|| rest.trailing_zeros() as usize)?;
                rest &= rest - 1;
                Some(w * 64 + bit)
            })
        })
    }
}

/// A node that may be chosen for its class.
struct Candidate {
    node: Node,
    own: f64,
    args: Vec<usize>,
    /// Classes that any way to compute the operands goes through.
    needs: Set,
}

/// The choice to be made, over the classes that the roots may reach.
struct Problem {
    ids: Vec<Id>,
    candidates: Vec<Vec<Candidate>>,
    /// By class: the least that any of its nodes costs.
    cheapest: Vec<f64>,
    /// What is needed whatever is chosen.
    required: Set,
}

/// Candidates for a class by position, each with what the bound rises by.
type Ways = Vec<(f64, usize)>;

/// The best of a search.
struct Found {
    choice: Choice,
    cost: f64,
    /// The least bound of what was not explored.
    bound: f64,
    explored: usize,
    budget: usize,
}

/// A branch: what is decided, and what is needed by now.
#[derive(Clone)]
struct Branch {
    chosen: Vec<Option<usize>>,
    needed: Set,
    decided: Set,
    bound: f64,
}

impl Problem {
    fn of(options: &extract::Options, roots: &[Id]) -> Problem {
        let mut reachable: BTreeSet<Id> = BTreeSet::new();
        let mut open: Vec<Id> = roots.to_vec();
        while let Some(class) = open.pop() {
            if reachable.insert(class) {
                open.extend(options[&class].iter().flat_map(|(n, _)| n.args.iter().copied()));
            }
        }
        let ids: Vec<Id> = reachable.into_iter().collect();
        let at: BTreeMap<Id, usize> = ids.iter().enumerate().map(|(i, id)| (*id, i)).collect();
        let n = ids.len();
        let candidate = |(node, own): &(Node, f64)| Candidate {
            node: node.clone(),
            own: *own,
            args: node.args.iter().map(|a| at[a]).collect(),
            needs: Set::empty(n),
        };
        let candidates = ids.iter().map(|id| options[id].iter().map(candidate).collect()).collect();
        let mut this = Problem { ids, candidates, cheapest: vec![0.0; n], required: Set::empty(n) };
        let required = this.prune();
        for (i, candidates) in this.candidates.iter().enumerate() {
            this.cheapest[i] = candidates.iter().map(|c| c.own).fold(f64::INFINITY, f64::min);
        }
        roots.iter().for_each(|r| this.required.unite(&required[at[r]]));
        this
    }

    /// Finds what each class requires, and drops nodes that need their own class.
    fn prune(&mut self) -> Vec<Set> {
        let n = self.ids.len();
        loop {
            // From above: a finite way to compute a class never goes through less than this.
            let mut required = vec![Set::full(n); n];
            let mut changed = true;
            while std::mem::take(&mut changed) {
                for i in 0..n {
                    let mut all = Set::full(n);
                    for candidate in &mut self.candidates[i] {
                        candidate.needs = Set::empty(n);
                        candidate.args.iter().for_each(|a| candidate.needs.unite(&required[*a]));
                        all.intersect(&candidate.needs);
                    }
                    all.insert(i);
                    if all != required[i] {
                        required[i] = all;
                        changed = true;
                    }
                }
            }
            let before: usize = self.candidates.iter().map(Vec::len).sum();
            for (i, candidates) in self.candidates.iter_mut().enumerate() {
                candidates.retain(|c| !c.needs.contains(i));
            }
            if self.candidates.iter().map(Vec::len).sum::<usize>() == before {
                return required;
            }
        }
    }

    fn solve(&self, choice: Choice, cost: f64, budget: usize) -> Found {
        let n = self.ids.len();
        let bound = self.required.without(&Set::empty(n)).map(|i| self.cheapest[i]).sum();
        let branch = Branch { chosen: vec![None; n], needed: self.required.clone(), decided: Set::empty(n), bound };
        let mut found = Found { choice, cost, bound: f64::INFINITY, explored: 0, budget };
        self.explore(branch, &mut found);
        found
    }

    /// What the bound rises by where `candidate` is taken for class `i`.
    fn rise(&self, branch: &Branch, i: usize, candidate: &Candidate) -> f64 {
        let more: f64 = candidate.needs.without(&branch.needed).map(|x| self.cheapest[x]).sum();
        candidate.own - self.cheapest[i] + more
    }

    /// Whether taking `candidate` for class `i` would make it need itself.
    fn closes_circle(&self, branch: &Branch, i: usize, candidate: &Candidate) -> bool {
        let mut seen = Set::empty(self.ids.len());
        let mut open: Vec<usize> = candidate.args.clone();
        while let Some(class) = open.pop() {
            if class == i {
                return true;
            }
            if !seen.contains(class) {
                seen.insert(class);
                open.extend(branch.chosen[class].iter().flat_map(|c| &self.candidates[class][*c].args));
            }
        }
        false
    }

    fn explore(&self, mut branch: Branch, found: &mut Found) {
        if found.explored >= found.budget {
            found.bound = found.bound.min(branch.bound);
            return;
        }
        found.explored += 1;
        loop {
            // The class whose cheapest continuation raises the bound most; one with a single continuation at once.
            let mut pick: Option<(f64, usize, Ways)> = None;
            for i in branch.needed.without(&branch.decided) {
                let mut ways = Ways::new();
                for (c, candidate) in self.candidates[i].iter().enumerate() {
                    let rise = self.rise(&branch, i, candidate);
                    let promising = branch.bound + rise < found.cost * (1.0 - EQUAL);
                    if promising && !self.closes_circle(&branch, i, candidate) {
                        ways.push((rise, c));
                    }
                }
                // Stable: equal ones stay in the order of their nodes.
                ways.sort_by(|a, b| a.0.total_cmp(&b.0));
                let Some((least, _)) = ways.first().copied() else { return };
                let forced = ways.len() == 1;
                if forced || pick.as_ref().is_none_or(|(best, _, _)| least > *best) {
                    pick = Some((least, i, ways));
                }
                if forced {
                    break;
                }
            }
            let Some((_, i, ways)) = pick else {
                let chosen = branch.chosen.iter().enumerate().filter_map(|(i, c)| c.map(|c| (i, c)));
                found.choice = chosen.map(|(i, c)| (self.ids[i], self.candidates[i][c].node.clone())).collect();
                found.cost = branch.bound;
                return;
            };
            if let [(rise, c)] = ways[..] {
                self.take(&mut branch, i, c, rise);
                continue;
            }
            for (rise, c) in ways {
                if branch.bound + rise < found.cost * (1.0 - EQUAL) {
                    let mut next = branch.clone();
                    self.take(&mut next, i, c, rise);
                    self.explore(next, found);
                }
            }
            return;
        }
    }

    fn take(&self, branch: &mut Branch, i: usize, c: usize, rise: f64) {
        branch.chosen[i] = Some(c);
        branch.decided.insert(i);
        branch.needed.unite(&self.candidates[i][c].needs);
        branch.bound += rise;
    }
}

#[cfg(test)]
mod tests {
    use super::super::Head;
    use super::*;
    use hadal_ir::ValueId;

    /// A random problem of `n` classes, with shared parts and circles; the last class is the root.
    fn random(n: usize, mut seed: u64) -> (extract::Options, Vec<Id>) {
        let mut next = |most: usize| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) as usize % most
        };
        let mut options = extract::Options::new();
        let mut name = 0;
        for class in 0..n {
            let nodes = 1 + next(3);
            let of = |k: usize, next: &mut dyn FnMut(usize) -> usize, name: &mut u32| {
                // The first node looks back only, so that there is always some choice.
                let within = if k == 0 { class } else { n };
                let args = if within == 0 { 0 } else { next(4) };
                let args = (0..args).map(|_| Id::from(next(within))).collect();
                *name += 1;
                (Node { head: Head::Input(ValueId(*name)), args }, next(20) as f64)
            };
            options.insert(Id::from(class), (0..nodes).map(|k| of(k, &mut next, &mut name)).collect());
        }
        (options, vec![Id::from(n - 1)])
    }

    /// The cheapest of all choices there are.
    fn by_trying(options: &extract::Options, roots: &[Id], choice: &mut Choice, from: usize) -> f64 {
        let Some(nodes) = options.get(&Id::from(from)) else { return extract::total(options, choice, roots) };
        let mut best = f64::INFINITY;
        for (node, _) in nodes {
            choice.insert(Id::from(from), node.clone());
            best = best.min(by_trying(options, roots, choice, from + 1));
        }
        best
    }

    #[test]
    fn the_best_of_all_choices_is_found() {
        for seed in 0..400 {
            let (options, roots) = random(3 + seed as usize % 6, seed);
            let best = by_trying(&options, &roots, &mut Choice::new(), 0);
            let problem = Problem::of(&options, &roots);
            let found = problem.solve(Choice::new(), f64::INFINITY, BUDGET);
            assert_eq!(found.cost, best, "seed {seed}");
            assert_eq!(extract::total(&options, &found.choice, &roots), best, "seed {seed}");
        }
    }

    #[test]
    fn an_ended_budget_leaves_a_bound() {
        let mut ended = 0;
        for seed in 0..200 {
            let (options, roots) = random(9, seed);
            let best = by_trying(&options, &roots, &mut Choice::new(), 0);
            let found = Problem::of(&options, &roots).solve(Choice::new(), f64::INFINITY, 2);
            assert!(found.bound.min(found.cost) <= best && best <= found.cost, "seed {seed}");
            ended += usize::from(found.bound.is_finite());
        }
        assert!(ended > 0);
    }
}
