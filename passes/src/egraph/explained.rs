//! Why a choice is as it is: what each chosen op won against, and what became of each law.
//!
//! The runner-up of an op is the best choice without it; what a law lost by is the best choice that has it behind some
//! op. Both are found by the same quick choice, kept from one node, or held to one.

use super::choose::{choose, choose_with};
use super::problem::{Candidate, Choice, Problem};
use super::rebuild::Letters;
use super::space::Space;
use super::{Head, PhaseReport};
use crate::explain::{Explanation, Form, LawUse, Miss, RunnerUp};
use crate::rules::Phase;
use egg::Id;
use hadal_ir::{Bindings, Func, Op};
use std::collections::BTreeSet;

/// Most nodes that are tried for one law.
const TRIED: usize = 48;

pub(super) fn explain(
    space: &Space,
    problem: &Problem,
    (choice, cost): (&Choice, f64),
    (phases, reports): (&'static [Phase], &[PhaseReport]),
    (old, bindings): (&Func, &Bindings),
) -> Explanation {
    let asked = Asked { space, problem, choice, letters: Letters::of(old, space) };
    let order = problem.order(choice);
    let forms = order.iter().filter_map(|class| asked.form(*class)).collect();
    let rules = phases.iter().flat_map(|p| p.themes).flat_map(|t| t.rules);
    let mut seen = BTreeSet::new();
    let allowed = rules.filter(|r| space.context.laws.allows(r) && seen.insert(r.name));
    let fired = |law| reports.iter().filter_map(|p| p.fired.get(law)).sum();
    let laws = allowed.map(|r| asked.law(r.name, fired(r.name), &order)).collect();
    let batch = space.context.batch;
    Explanation { func: old.name.clone(), bindings: bindings.clone(), batch, cost, forms, laws }
}

struct Asked<'a> {
    space: &'a Space<'a>,
    problem: &'a Problem,
    choice: &'a Choice,
    letters: Letters,
}

impl Asked<'_> {
    fn origin(&self, class: Id) -> Vec<String> {
        self.space.graph[self.space.graph.find(class)].data.origin.iter().cloned().collect()
    }

    fn lost(&self, class: usize, candidate: &Candidate, cost: f64) -> RunnerUp {
        RunnerUp {
            text: self.problem.text(self.space, class, candidate, &self.letters),
            laws: candidate.laws.clone(),
            cost,
        }
    }

    /// A chosen op, if it is work of its own.
    fn form(&self, class: usize) -> Option<Form> {
        let chosen = self.problem.chosen(self.choice, class)?;
        let Head::Op(op) = &chosen.node.head else { return None };
        let work = chosen.own > 0.0 && !op.is_view() && !matches!(op, Op::Map(_) | Op::Cast(_) | Op::CausalMask(_));
        if !work {
            return None;
        }
        Some(Form {
            text: self.problem.text(self.space, class, chosen, &self.letters),
            origin: self.origin(self.problem.ids[class]),
            laws: chosen.laws.clone(),
            own: chosen.own,
            runner_up: self.runner_up(class),
        })
    }

    /// The best choice without the op chosen for a class. It is named by what it computes instead: the value of that
    /// class, or the first one on the way to the results that is there in both.
    fn runner_up(&self, class: usize) -> Option<RunnerUp> {
        let mut without = self.problem.clone();
        without.forbid(self.choice, class);
        let (other, _, cost) = choose(&without)?;
        let computed = without.order(&other);
        let mut at = class;
        while !computed.contains(&at) {
            let order = self.problem.order(self.choice);
            let reads = |i: &&usize| self.problem.chosen(self.choice, **i).is_some_and(|c| c.args.contains(&at));
            at = *order.iter().find(reads)?;
        }
        Some(self.lost(at, without.chosen(&other, at)?, cost))
    }

    fn law(&self, law: &'static str, fired: usize, order: &[usize]) -> LawUse {
        let has = |c: &Candidate| c.laws.iter().any(|l| l == law);
        let chosen = order.iter().filter(|i| self.problem.chosen(self.choice, **i).is_some_and(has)).count();
        let at = self.space.fired_at.iter().filter(|(l, _)| *l == law);
        let places: BTreeSet<String> = at.flat_map(|(_, class)| self.origin(*class)).collect();
        let misses = self.space.misses.borrow();
        let misses: BTreeSet<Miss> = misses
            .iter()
            .filter(|(l, class, _)| *l == law && !self.space.fired_at.contains(&(law, *class)))
            .map(|(_, class, reason)| Miss { origin: self.origin(*class), reason: reason.clone() })
            .collect();
        LawUse {
            law,
            fired,
            places: places.into_iter().collect(),
            chosen,
            lost: if fired > 0 && chosen == 0 { self.best_with(has) } else { None },
            misses: misses.into_iter().collect(),
        }
    }

    /// The best choice found with a candidate that `has` what is asked for.
    fn best_with(&self, has: impl Fn(&Candidate) -> bool) -> Option<RunnerUp> {
        let all = self.problem.candidates.iter().enumerate();
        let all = all.flat_map(|(class, cs)| cs.iter().enumerate().map(move |(i, c)| (class, i, c)));
        let tried = all.filter(|(_, _, c)| has(c)).take(TRIED);
        let costs = tried.filter_map(|(class, i, c)| {
            let (_, cost) = choose_with(self.problem, self.choice, class, i)?;
            Some((class, c, cost))
        });
        let (class, c, cost) = costs.min_by(|a, b| a.2.total_cmp(&b.2))?;
        Some(self.lost(class, c, cost))
    }
}
