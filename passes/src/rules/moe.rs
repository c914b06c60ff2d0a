//! Laws of routed experts.

use crate::rule::Rule;

/// The laws of this file.
pub const RULES: &[Rule] = &[];
