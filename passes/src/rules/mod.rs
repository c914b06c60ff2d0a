//! The laws, by theme. [`CANONICAL`] are directed simplifications, applied wherever they fire; [`EXPLORED`] open
//! alternatives among which the cost model chooses.

pub mod elementwise;
pub mod layout;
pub mod product;

use crate::rule::Rule;

/// Simplifications: the right side never costs more.
pub const CANONICAL: &[&[Rule]] = &[layout::RULES, elementwise::RULES, product::RULES];
