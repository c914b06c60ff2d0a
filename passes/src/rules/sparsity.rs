//! Laws of masks, selections and unions of row sets.

use crate::rule::Rule;

/// The laws of this file.
pub const RULES: &[Rule] = &[];
