//! What the search can say about its choice, as plain data: made where [`Options::explain`](crate::Options) asks for
//! it.
//!
//! Chains of laws need none of this: they are on the ops themselves ([`hadal_ir::Inst::laws`]). This is what is not in
//! the result: what else there was, and why it was not taken.

use hadal_ir::Bindings;

/// One function of one version of an entry.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Explanation {
    /// The function, as specialised.
    pub func: String,
    /// The sizes that it was costed for.
    pub bindings: Bindings,
    /// The sequences that it was costed for.
    pub batch: u64,
    /// Seconds of the whole function as chosen.
    pub cost: f64,
    /// Ops that are work of their own, as chosen, in order.
    pub forms: Vec<Form>,
    /// Every explored law that was allowed, by name.
    pub laws: Vec<LawUse>,
}

/// An op that was chosen.
#[derive(Clone, PartialEq, Debug)]
pub struct Form {
    /// The op with its attributes and types.
    pub text: String,
    /// Places in the model that it came from.
    pub origin: Vec<String>,
    /// The laws behind it, each once, in the order in which they were first needed; none if it was written so.
    pub laws: Vec<String>,
    /// Seconds of it alone.
    pub own: f64,
    /// The best choice without it, where there is one.
    pub runner_up: Option<RunnerUp>,
}

/// A form that lost.
#[derive(Clone, PartialEq, Debug)]
pub struct RunnerUp {
    /// The op with its attributes and types: of the same value, or of the first one on the way to the results that is
    /// computed in both.
    pub text: String,
    /// The laws behind it.
    pub laws: Vec<String>,
    /// Seconds of the whole function with it.
    pub cost: f64,
}

/// What became of a law in a function.
#[derive(Clone, PartialEq, Debug)]
pub struct LawUse {
    /// Its name.
    pub law: &'static str,
    /// How often it added something new.
    pub fired: usize,
    /// Places in the model where it did.
    pub places: Vec<String>,
    /// How many chosen ops have it behind them.
    pub chosen: usize,
    /// The best choice with a form that has it behind it, where it fired but none was chosen.
    pub lost: Option<RunnerUp>,
    /// Where its pattern was there but a side condition failed, and why.
    pub misses: Vec<Miss>,
}

/// A law that found its pattern, but not what else it needs.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Miss {
    /// Places in the model.
    pub origin: Vec<String>,
    /// The reason, with the values found.
    pub reason: String,
}

impl Explanation {
    /// Adds a later search on what this one chose: its forms are those of the result.
    pub(crate) fn then(&mut self, later: Explanation) {
        self.cost = later.cost;
        let known = std::mem::replace(&mut self.forms, later.forms);
        for form in &mut self.forms {
            // Of what lost in either search the better one.
            // The same op of the same place: letters may have changed.
            let word = |text: &str| text.split_whitespace().next().map(str::to_owned);
            let same = |k: &&Form| k.origin == form.origin && k.own == form.own && word(&k.text) == word(&form.text);
            let same = known.iter().find(same);
            let same = same.and_then(|k| k.runner_up.clone());
            if let Some(other) = same
                && form.runner_up.as_ref().is_none_or(|r| other.cost < r.cost)
            {
                form.runner_up = Some(other);
            }
        }
        self.laws.extend(later.laws);
    }
}
