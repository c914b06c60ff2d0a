//! Evaluation of one set of rows, for one row of the result at a time.

use super::{RowSet, Visible};
use crate::tensor::{Tensor, position};
use std::collections::BTreeMap;

/// A row of the result: its query, how many there are, and the position of each letter.
pub(super) struct Query {
    pub at: usize,
    pub of: usize,
    pub places: BTreeMap<char, usize>,
}

/// A set with its operands.
pub(super) struct Rows<'a> {
    pub set: &'a RowSet,
    pub args: &'a [&'a Tensor],
}

impl Rows<'_> {
    /// The operand's position where letters that the result lacks are at `s`.
    fn position(&self, operand: usize, letters: &str, query: &Query, s: usize) -> usize {
        let at: Vec<usize> = letters.chars().map(|c| query.places.get(&c).copied().unwrap_or(s)).collect();
        position(&self.args[operand].shape[..at.len()], &at)
    }

    /// The elements along the operand's last axis.
    fn row(&self, operand: usize, letters: &str, query: &Query, s: usize) -> &[f64] {
        let tensor = self.args[operand];
        let width = tensor.shape[letters.len() - 1];
        let start = self.position(operand, &letters[..letters.len() - 1], query, s) * width;
        &tensor.reals()[start..start + width]
    }

    /// The numbers of the rows that a query sees, in order.
    pub fn seen(&self, query: &Query) -> Vec<usize> {
        let value = 2 * self.set.terms.len();
        let count = self.args[value].shape[0];
        let int =
            |operand: usize, letters: &str, s| self.args[operand].ints()[self.position(operand, letters, query, s)];
        match &self.set.rows {
            Visible::All => (0..count).collect(),
            Visible::Causal => (0..count).filter(|s| s + query.of <= query.at + count).collect(),
            Visible::Interval(lo, hi) => {
                let seen = int(value + 1, lo, 0)..int(value + 2, hi, 0);
                (0..count).filter(|s| seen.contains(&(*s as i64))).collect()
            }
            Visible::Masked(letters) => (0..count).filter(|s| int(value + 1, letters, *s) != 0).collect(),
            Visible::Selected(letters) => {
                let places = self.args[value + 1].shape[letters.len() - 1];
                let rows = (0..places).filter_map(|j| usize::try_from(int(value + 1, letters, j)).ok());
                rows.filter(|s| *s < count).collect()
            }
        }
    }

    pub fn score(&self, query: &Query, s: usize) -> f64 {
        let terms = self.set.terms.iter().enumerate().map(|(i, (q, k))| {
            let (q, k) = (self.row(2 * i, q, query, s), self.row(2 * i + 1, k, query, s));
            q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>()
        });
        terms.sum()
    }

    pub fn value(&self, query: &Query, s: usize) -> &[f64] {
        self.row(2 * self.set.terms.len(), &self.set.value, query, s)
    }
}
