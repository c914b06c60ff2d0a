//! What would be chosen at other sizes: alternatives are found once, and priced for each size asked about.

use super::choose::choose;
use super::cost::Costs;
use super::problem::{Choice, Problem};
use super::space::Space;
use super::{Context, Head, MAX_OPS};
use crate::rules;
use hadal_ir::{Bindings, Func};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::rc::Rc;

/// The alternatives of one function.
///
/// Merging of products, a search of its own on what is chosen, is left out: it hardly depends on sizes.
pub struct Preferences<'a> {
    space: Space<'a>,
    problem: Problem,
    /// With prices, for sizes asked about before.
    priced: RefCell<BTreeMap<Bindings, Rc<Problem>>>,
}

/// A choice.
#[derive(Clone, PartialEq, Debug)]
pub struct Preference {
    /// Equal for equal choices, whatever the sizes; the same in every run.
    pub id: u64,
    /// Seconds at the sizes it was made for.
    pub cost: f64,
    choice: Choice,
}

impl<'a> Preferences<'a> {
    /// Finds the alternatives; `None` for a function too long to be looked at.
    pub fn of(func: &Func, context: &'a Context<'a>) -> Option<Self> {
        if func.insts.len() > MAX_OPS {
            return None;
        }
        let mut space = Space::of(func, context);
        space.saturate(rules::PHASES);
        let problem = Problem::of(&space, func);
        Some(Preferences { space, problem, priced: RefCell::default() })
    }

    /// The best choice found at some sizes; `None` where the function cannot be computed.
    pub fn best(&self, bindings: &Bindings) -> Option<Preference> {
        let problem = self.priced(bindings);
        let (choice, _, cost) = choose(&problem)?;
        let mut hasher = DefaultHasher::new();
        for class in problem.order(&choice) {
            let Some(c) = problem.chosen(&choice, class) else { continue };
            if let Head::Op(op) = &c.node.head {
                (class, op.mnemonic(), op, &c.args).hash(&mut hasher);
            }
        }
        Some(Preference { id: hasher.finish(), cost, choice })
    }

    /// Seconds of a choice at other sizes than those it was made for.
    pub fn cost(&self, preference: &Preference, bindings: &Bindings) -> f64 {
        self.priced(bindings).total(&preference.choice)
    }

    fn priced(&self, bindings: &Bindings) -> Rc<Problem> {
        let price = || {
            let mut problem = self.problem.clone();
            Costs::of(&self.space, bindings).price(&mut problem);
            Rc::new(problem)
        };
        self.priced.borrow_mut().entry(bindings.clone()).or_insert_with(price).clone()
    }
}
