//! Laws of norms, rotations and scales around products.

use crate::rule::Rule;

/// The laws of this file.
pub const RULES: &[Rule] = &[];
