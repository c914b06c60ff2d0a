//! Rewrite rules as data, and the little they may know of the graph they look at.
//!
//! A rule looks at one op and the ops behind its operands through a [`Site`] and says what the op equals. The same rule
//! serves the canonicaliser, where every value has one definition, and the e-graph, where it may have many. No rule can
//! be listed without an example on which it must fire, and on which both sides are evaluated for random sizes.

use hadal_ir::{Dim, Op, TensorType};

/// A value in a graph or a class in an e-graph.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct V(pub u32);

/// What a rule makes: something there already, or an op over such.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Term {
    /// An existing value.
    Old(V),
    /// A new op.
    New(Op, Vec<Term>),
}

impl Term {
    /// A new op.
    pub fn new(op: impl Into<Op>, args: impl IntoIterator<Item = Term>) -> Term {
        Term::New(op.into(), args.into_iter().collect())
    }

    /// The type of the term, or `None` where an op refuses its operands.
    pub fn ty(&self, site: &dyn Site) -> Option<TensorType> {
        match self {
            Term::Old(v) => Some(site.ty(*v).clone()),
            Term::New(op, args) => {
                let types: Option<Vec<TensorType>> = args.iter().map(|a| a.ty(site)).collect();
                op.infer(&types?).ok()
            }
        }
    }
}

/// What a rule can see.
pub trait Site {
    /// The type of a value.
    fn ty(&self, v: V) -> &TensorType;
    /// The ops known to compute it, with their operands; none for inputs.
    fn forms(&self, v: V) -> Vec<(&Op, Vec<V>)>;
    /// The ops known to use it: result, op and operands, in a fixed order. Where a function is still being built, those
    /// built so far.
    fn readers(&self, v: V) -> Vec<(V, &Op, Vec<V>)>;
    /// Whether it follows from weights and constants alone.
    fn constant(&self, v: V) -> bool;
    /// The most that a size can be; `None` where that is not known.
    fn upper(&self, size: &Dim) -> Option<i64>;
    /// The least that a size can be; `None` where that is not known.
    fn lower(&self, size: &Dim) -> Option<i64>;
    /// Whether a value from outside always holds what `top_k` chose, wherever that was, or some of it: along the last
    /// axis no number that is not negative stands twice.
    fn chosen(&self, _v: V) -> bool {
        false
    }
    /// Says why a law that found its pattern does not apply all the same, for users who ask. Only spelled out where
    /// somebody listens.
    fn miss(&self, _reason: &dyn Fn() -> String) {}
}

/// How the two sides of a law compare.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum NumericClass {
    /// The same bits.
    Exact,
    /// Equal in real arithmetic; sums may be taken in another order or nesting.
    Reassociating,
    /// Only close. Off unless asked for.
    Approximate,
}

/// A law with its direction.
pub struct Rule {
    /// Name, as in logs.
    pub name: &'static str,
    /// The law in words or symbols.
    pub law: &'static str,
    /// How far the sides may differ.
    pub class: NumericClass,
    /// A function with symbolic sizes in which the rule fires.
    pub example: &'static str,
    /// What the op equals by this law. Terms must have the op's type; one that is refused by [`Term::ty`] is passed
    /// over.
    pub apply: fn(&dyn Site, &Op, &[V]) -> Vec<Term>,
}

impl std::fmt::Debug for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.name)
    }
}
