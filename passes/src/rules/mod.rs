//! The laws, by theme. [`CANONICAL`] are directed simplifications, applied wherever they fire; those of [`PHASES`] open
//! alternatives among which the cost model chooses. Which of them all are used is a [`LawSet`].

pub mod attention;
pub mod contraction;
pub mod elementwise;
pub mod layout;
pub mod masks;
pub mod merge;
pub mod moe;
pub mod norm_rope;
pub mod product;
pub mod quantisation;
pub mod repeats;
pub mod shared_expert;
pub mod slices;
pub mod sparsity;
pub mod words;

use crate::Error;
use crate::rule::{NumericClass, Rule};
use std::collections::BTreeSet;

/// Laws that speak of one thing.
#[derive(Clone, Copy, Debug)]
pub struct Theme {
    /// Name, as in reports.
    pub name: &'static str,
    /// What its laws are about, in a line.
    pub doc: &'static str,
    /// The laws.
    pub rules: &'static [Rule],
}

/// Simplifications: the right side never costs more.
pub const CANONICAL: &[Theme] = &[
    Theme { name: "layout", doc: "views of views, and what views do to ops", rules: layout::RULES },
    Theme { name: "elementwise", doc: "elementwise functions, casts and masks", rules: elementwise::RULES },
    Theme { name: "product", doc: "views of operands become letters of contractions", rules: product::RULES },
    Theme { name: "repeats", doc: "what is done to every copy is done once", rules: repeats::RULES },
    Theme { name: "masks", doc: "what selections and comparisons of positions hide", rules: masks::RULES },
];

/// A part of the search: laws that are applied together, to saturation or to a limit.
#[derive(Clone, Copy, Debug)]
pub struct Phase {
    /// Name, as in reports.
    pub name: &'static str,
    /// What it looks for, in a line.
    pub doc: &'static str,
    /// Laws by theme.
    pub themes: &'static [Theme],
    /// When it ends.
    pub limits: PhaseLimits,
}

/// When a phase ends, and when a law is too eager for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PhaseLimits {
    /// Most e-nodes that it may add.
    pub nodes: usize,
    /// Most rounds.
    pub rounds: usize,
    /// Most matches of one law in one round; a law with more is banned for the rest of the phase.
    pub matches: usize,
}

/// Enough for a layer many times over.
const USUAL: PhaseLimits = PhaseLimits { nodes: 10_000, rounds: 12, matches: 2_000 };

/// Laws that open alternatives, in the order in which they are tried; each phase keeps what those before it found.
pub const PHASES: &[Phase] = &[
    Phase {
        name: "quantisation",
        doc: "where values are rounded to narrow formats, and how often",
        themes: &[Theme { name: "quantisation", doc: "rounding and scales", rules: quantisation::RULES }],
        limits: USUAL,
    },
    Phase {
        name: "moe",
        doc: "routed experts",
        themes: &[Theme { name: "moe", doc: "experts and their choice", rules: moe::RULES }],
        limits: USUAL,
    },
    Phase {
        name: "algebra",
        doc: "the order and nesting of products",
        themes: &[
            Theme { name: "contraction", doc: "work moved between contractions", rules: contraction::RULES },
            Theme { name: "norm-rope", doc: "norms, rotations and scales around products", rules: norm_rope::RULES },
        ],
        limits: USUAL,
    },
    Phase {
        name: "attention",
        doc: "attention as one op over sets of rows, and what the sets are",
        themes: &[
            Theme { name: "attention", doc: "finding attention", rules: attention::RULES },
            Theme { name: "sparsity", doc: "masks, selections and unions of rows", rules: sparsity::RULES },
        ],
        limits: USUAL,
    },
];

/// A search of its own on what the others chose: it speaks of siblings, not of alternatives of one value.
pub const MERGING: &[Phase] = &[Phase {
    name: "merge",
    doc: "several products of one input as one",
    themes: &[Theme { name: "merge", doc: "products of one input", rules: merge::RULES }],
    limits: USUAL,
}];

/// Laws for parts of results, where nobody wants the rest: not simplifications by themselves.
pub const PARTS: &[Theme] = &[Theme { name: "slices", doc: "a part is computed from parts", rules: slices::RULES }];

/// Every theme, canonical ones first.
pub fn themes() -> impl Iterator<Item = &'static Theme> {
    CANONICAL.iter().chain(PARTS).chain(PHASES.iter().chain(MERGING).flat_map(|p| p.themes))
}

/// Every law, once.
pub fn all() -> impl Iterator<Item = &'static Rule> {
    let mut seen = BTreeSet::new();
    themes().flat_map(|theme| theme.rules).filter(move |rule| seen.insert(rule.name))
}

/// The law called `name`.
pub fn law(name: &str) -> Option<&'static Rule> {
    all().find(|r| r.name == name)
}

/// Which laws may be used. The default is all but approximate ones.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct LawSet {
    allowed: BTreeSet<&'static str>,
}

impl Default for LawSet {
    fn default() -> Self {
        LawSet { allowed: all().filter(|r| r.class != NumericClass::Approximate).map(|r| r.name).collect() }
    }
}

impl LawSet {
    /// These laws and no others.
    pub fn only<'n>(names: impl IntoIterator<Item = &'n str>) -> Result<LawSet, Error> {
        LawSet { allowed: BTreeSet::new() }.with(names)
    }

    /// These laws as well: the way to allow approximate ones.
    pub fn with<'n>(mut self, names: impl IntoIterator<Item = &'n str>) -> Result<LawSet, Error> {
        for name in names {
            self.allowed.insert(known(name)?);
        }
        Ok(self)
    }

    /// Without these laws.
    pub fn without<'n>(mut self, names: impl IntoIterator<Item = &'n str>) -> Result<LawSet, Error> {
        for name in names {
            self.allowed.remove(known(name)?);
        }
        Ok(self)
    }

    /// Whether a law may be used.
    pub fn allows(&self, rule: &Rule) -> bool {
        self.allowed.contains(rule.name)
    }

    /// The names, in order.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.allowed.iter().copied()
    }
}

fn known(name: &str) -> Result<&'static str, Error> {
    law(name).map(|r| r.name).ok_or_else(|| Error::UnknownLaw(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_of_laws_are_made_by_name() {
        let usual = LawSet::default();
        assert!(usual.names().count() > 30);
        let fewer = usual.clone().without(["slice-all", "nest-contractions"]).unwrap();
        assert!(!fewer.allows(law("slice-all").unwrap()) && fewer.allows(law("slice-slice").unwrap()));
        assert_eq!(fewer.with(["slice-all", "nest-contractions"]).unwrap(), usual);
        let one = LawSet::only(["slice-all"]).unwrap();
        assert_eq!(one.names().collect::<Vec<_>>(), ["slice-all"]);
        assert_eq!(usual.without(["no-such-law"]), Err(Error::UnknownLaw("no-such-law".to_owned())));
    }

    #[test]
    fn phases_have_names_of_their_own() {
        let names: Vec<&str> = PHASES.iter().chain(MERGING).map(|p| p.name).collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
    }
}
