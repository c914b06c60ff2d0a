//! The laws, by theme. [`CANONICAL`] are directed simplifications, applied wherever they fire; [`EXPLORED`] open
//! alternatives among which the cost model chooses.

pub mod attention;
pub mod contraction;
pub mod elementwise;
pub mod layout;
pub mod product;

use crate::rule::Rule;

/// Simplifications: the right side never costs more.
pub const CANONICAL: &[&[Rule]] = &[layout::RULES, elementwise::RULES, product::RULES];

/// Laws that open alternatives.
pub const EXPLORED: &[&[Rule]] = &[contraction::RULES, attention::RULES];

/// Every law.
pub fn all() -> impl Iterator<Item = &'static Rule> {
    CANONICAL.iter().chain(EXPLORED).flat_map(|theme| theme.iter())
}
