//! The cheapest choice there is, by branch and bound: to measure what the quick choice gives away.
//!
//! A class that is needed is paid once, with the node chosen for it. Some classes are needed whatever is chosen: those
//! that every way to compute a root goes through. What has been decided plus the cheapest node of every class that is
//! needed by now is a lower bound; a branch whose bound is not below the best choice known is cut. The quick choice is
//! the first one known, so the result is never worse; nodes that cannot be part of anything as cheap are dropped at
//! once, which makes more classes needed whatever is chosen.
//!
//! Effort is limited by branches explored, never by the clock. Where that ends the search, what is left of it still
//! gives a lower bound.
//!
//! The launches of elementwise ops that no neighbour does on the way are counted where a choice is complete, and in the
//! bound only where no choice could spare them.

use super::choose::{EQUAL, choose};
use super::cost::Costs;
use super::problem::{Choice, Problem};
use super::space::Space;
use super::{Context, MAX_OPS};
use crate::bounds::Reached;
use crate::pass::run_passes;
use crate::pipeline::before_rewrite;
use crate::{Error, Options, rules};
use hadal_ir::target::Target;
use hadal_ir::{Bindings, Func, FuncKind, Module};

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
pub fn gap(module: &Module, target: &Target, options: &Options) -> Result<Vec<Gap>, Error> {
    let (module, _) = run_passes(module, before_rewrite(options), target, options)?;
    let graphs = module.funcs.iter().filter(|f| f.kind == FuncKind::Graph && f.insts.len() <= MAX_OPS);
    let reached = Reached::of(&module);
    let of = |f: &Func| {
        let bounds = reached.bounds(&f.name, options);
        let context = Context::of(target, &bounds, options);
        of_func(f, &context, &reached.typical(&f.name, options), BUDGET)
    };
    Ok(graphs.filter_map(of).collect())
}

fn of_func(func: &Func, context: &Context, bindings: &Bindings, budget: usize) -> Option<Gap> {
    let mut space = Space::of(func, context);
    space.saturate(rules::PHASES);
    let mut problem = Problem::of(&space, func);
    Costs::of(&space, bindings).price(&mut problem);
    let (choice, _, greedy) = choose(&problem)?;
    let search = Search::of(&problem, greedy);
    let found = search.solve(choice, greedy, budget);
    let exact = problem.total(&found.choice);
    let bound = found.bound.min(exact);
    let proven = bound >= exact * (1.0 - EQUAL);
    let (explored, classes) = (found.explored, problem.ids.len());
    Some(Gap { func: func.name.clone(), greedy, exact, bound, proven, explored, classes })
}

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

/// A candidate as the search sees it.
struct Way {
    /// Its position in the problem.
    at: usize,
    own: f64,
    args: Vec<usize>,
    /// Classes that any way to compute the operands goes through.
    needs: Set,
}

/// What does not change during the search.
struct Search<'a> {
    problem: &'a Problem,
    candidates: Vec<Vec<Way>>,
    /// By class: the least that any of its candidates costs.
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

impl Search<'_> {
    /// The search for something cheaper than `known`.
    fn of(problem: &Problem, known: f64) -> Search<'_> {
        let n = problem.ids.len();
        let certain = certainly_alone(problem);
        let way = |class: usize, at: usize| {
            let c = &problem.candidates[class][at];
            let own = c.own + if certain[class] { c.alone } else { 0.0 };
            Way { at, own, args: c.args.clone(), needs: Set::empty(n) }
        };
        let ways = |class: usize| (0..problem.candidates[class].len()).map(|at| way(class, at)).collect();
        let candidates = (0..n).map(ways).collect();
        let mut this = Search { problem, candidates, cheapest: vec![0.0; n], required: Set::empty(n) };
        loop {
            let required = this.prune();
            for (i, candidates) in this.candidates.iter().enumerate() {
                this.cheapest[i] = candidates.iter().map(|c| c.own).fold(f64::INFINITY, f64::min);
            }
            this.required = Set::empty(n);
            problem.roots.iter().for_each(|r| this.required.unite(&required[*r]));
            if !this.fix(known) {
                return this;
            }
        }
    }

    /// Drops candidates that cannot be part of anything as cheap as the choice known; whether there were any.
    fn fix(&mut self, known: f64) -> bool {
        let n = self.candidates.len();
        let (required, cheapest) = (&self.required, &self.cheapest);
        let base: f64 = required.without(&Set::empty(n)).map(|i| cheapest[i]).sum();
        let before: usize = self.candidates.iter().map(Vec::len).sum();
        for (i, candidates) in self.candidates.iter_mut().enumerate() {
            let paid = if required.contains(i) { cheapest[i] } else { 0.0 };
            candidates.retain(|c| {
                let more: f64 = c.needs.without(required).map(|x| cheapest[x]).sum();
                base - paid + c.own + more <= known * (1.0 + EQUAL)
            });
        }
        self.candidates.iter().map(Vec::len).sum::<usize>() < before
    }

    /// Finds what each class requires, and drops nodes that need their own class.
    fn prune(&mut self) -> Vec<Set> {
        let n = self.candidates.len();
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
        let n = self.candidates.len();
        let bound = self.required.without(&Set::empty(n)).map(|i| self.cheapest[i]).sum();
        let branch = Branch { chosen: vec![None; n], needed: self.required.clone(), decided: Set::empty(n), bound };
        let mut found = Found { choice, cost, bound: f64::INFINITY, explored: 0, budget };
        self.explore(branch, &mut found);
        found
    }

    /// What the bound rises by where `candidate` is taken for class `i`.
    fn rise(&self, branch: &Branch, i: usize, candidate: &Way) -> f64 {
        let more: f64 = candidate.needs.without(&branch.needed).map(|x| self.cheapest[x]).sum();
        candidate.own - self.cheapest[i] + more
    }

    /// Whether taking `candidate` for class `i` would make it need itself.
    fn closes_circle(&self, branch: &Branch, i: usize, candidate: &Way) -> bool {
        let mut seen = Set::empty(self.candidates.len());
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
                let at = |(i, c): (usize, &Option<usize>)| c.map(|c| self.candidates[i][c].at);
                let choice: Choice = branch.chosen.iter().enumerate().map(at).collect();
                let cost = self.problem.total(&choice);
                if cost < found.cost * (1.0 - EQUAL) {
                    (found.choice, found.cost) = (choice, cost);
                } else {
                    // Dearer than its bound: another completion of this branch may lie between.
                    found.bound = found.bound.min(branch.bound);
                }
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

/// By class: whether its elementwise ops have a launch of their own in every choice: no neighbour could do them on the
/// way, however far it is through other elementwise ops, and none of them comes before.
fn certainly_alone(problem: &Problem) -> Vec<bool> {
    let mut joined = vec![false; problem.ids.len()];
    let mut grew = true;
    while std::mem::take(&mut grew) {
        for class in 0..joined.len() {
            for c in &problem.candidates[class] {
                let above = |a: &usize| {
                    problem.candidates[*a].iter().any(|b| b.joins_readers && (b.alone == 0.0 || joined[*a]))
                };
                if !joined[class] && c.args.iter().any(above) {
                    (joined[class], grew) = (true, true);
                }
                if c.joins_operands && (c.alone == 0.0 || joined[class]) {
                    for a in &c.args {
                        grew |= !joined[*a];
                        joined[*a] = true;
                    }
                }
            }
        }
    }
    let waits = |a: &usize| problem.candidates[*a].iter().any(|b| b.alone > 0.0);
    let first = |class: usize| !problem.candidates[class].iter().any(|c| c.args.iter().any(waits));
    (0..joined.len()).map(|class| !joined[class] && first(class)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::problem::{Candidate, Form};
    use super::super::{Head, Node};
    use super::*;
    use egg::Id;
    use hadal_ir::ValueId;

    /// A random problem of `n` classes, with shared parts and circles; the last class is the root.
    fn random(n: usize, mut seed: u64) -> Problem {
        let mut next = |most: usize| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) as usize % most
        };
        let mut candidates = Vec::new();
        let mut name = 0;
        for class in 0..n {
            let of = |k: usize, next: &mut dyn FnMut(usize) -> usize, name: &mut u32| {
                // The first one looks back only, so that there is always some choice.
                let within = if k == 0 { class } else { n };
                let args = if within == 0 { 0 } else { next(4) };
                let args: Vec<usize> = (0..args).map(|_| next(within)).collect();
                *name += 1;
                let node =
                    Node { head: Head::Input(ValueId(*name)), args: args.iter().map(|a| Id::from(*a)).collect() };
                let form = Form { node, args, types: vec![], written: false, laws: vec![] };
                Candidate {
                    own: next(20) as f64,
                    alone: if next(3) == 0 { next(5) as f64 } else { 0.0 },
                    joins_readers: next(2) == 0,
                    joins_operands: next(4) == 0,
                    ..Candidate::of(form)
                }
            };
            let nodes = 1 + next(3);
            candidates.push((0..nodes).map(|k| of(k, &mut next, &mut name)).collect());
        }
        Problem { ids: (0..n).map(Id::from).collect(), candidates, roots: vec![n - 1] }
    }

    /// The cost of the cheapest of all choices there are.
    fn by_trying(problem: &Problem, choice: &mut Choice, from: usize) -> f64 {
        let Some(candidates) = problem.candidates.get(from) else { return problem.total(choice) };
        let mut best = f64::INFINITY;
        for i in 0..candidates.len() {
            choice[from] = Some(i);
            best = best.min(by_trying(problem, choice, from + 1));
        }
        best
    }

    #[test]
    fn the_best_of_all_choices_is_found() {
        let mut proven = 0;
        for seed in 0..400 {
            let problem = random(3 + seed as usize % 6, seed);
            let none: Choice = vec![None; problem.ids.len()];
            let best = by_trying(&problem, &mut none.clone(), 0);
            let known = if seed % 2 == 0 { f64::INFINITY } else { choose(&problem).unwrap().2 };
            let start = if seed % 2 == 0 { none } else { choose(&problem).unwrap().0 };
            let found = Search::of(&problem, known).solve(start, known, BUDGET);
            // Where the bound reaches the cost, it is the best; where it does not, it is at least below it.
            assert!(found.bound.min(found.cost) <= best && best <= found.cost, "seed {seed}");
            assert_eq!(problem.total(&found.choice), found.cost, "seed {seed}");
            if found.bound >= found.cost {
                assert_eq!(found.cost, best, "seed {seed}");
                proven += 1;
            }
        }
        assert!(proven > 300, "{proven}");
    }

    #[test]
    fn an_ended_budget_leaves_a_bound() {
        let mut ended = 0;
        for seed in 0..200 {
            let problem = random(9, seed);
            let none: Choice = vec![None; problem.ids.len()];
            let best = by_trying(&problem, &mut none.clone(), 0);
            let found = Search::of(&problem, f64::INFINITY).solve(none, f64::INFINITY, 2);
            assert!(found.bound.min(found.cost) <= best && best <= found.cost, "seed {seed}");
            ended += usize::from(found.bound.is_finite());
        }
        assert!(ended > 0);
    }

    #[test]
    fn the_quick_choice_is_a_choice() {
        for seed in 0..400 {
            let problem = random(3 + seed as usize % 6, seed);
            let best = by_trying(&problem, &mut vec![None; problem.ids.len()], 0);
            let (choice, _, cost) = choose(&problem).unwrap();
            assert!(best <= cost && cost.is_finite() && cost == problem.total(&choice), "seed {seed}");
        }
    }
}
