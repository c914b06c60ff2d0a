//! Laws that merge products of one input.

use crate::rule::Rule;

/// The laws of this file.
pub const RULES: &[Rule] = &[];
