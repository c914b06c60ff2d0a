//! What addresses a table by hashes of the last few tokens: everything that is known before any token is.
//!
//! Tokens that differ only in case, accents or spaces count as one (`classes`). The last `k+1` classes make one number
//! `R_k = u_0 M_0 ⊕ … ⊕ u_k M_k` with odd multipliers `M`, drawn at random for each layer, and each of `h` heads takes
//! it modulo a prime of its own. Primes are never used twice in a model, so that what collides in one head does not in
//! another. See sheet `engram`; the graph is [`crate::blocks::engram`].

mod classes;
mod generator;

pub use classes::{Classes, Vocabulary};

use generator::Generator;

/// How the tables of a model are addressed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hashing {
    /// Layers that have a table.
    pub layers: Vec<usize>,
    /// Primes of the `n`-grams are the first ones from here on: for `n = 2, 3, …`, which says how long they get.
    pub sizes: Vec<u64>,
    /// Heads `h` for each length.
    pub heads: usize,
    /// Token that stands before the first one.
    pub pad: usize,
    /// Where the random multipliers start.
    pub seed: u64,
    /// How many classes the tables were made for, where that is said.
    pub classes: Option<usize>,
}

/// What is drawn for a layer starts so much further.
const LAYER_STRIDE: u64 = 10007;

impl Hashing {
    /// Tokens `N` in the longest n-gram.
    pub fn longest(&self) -> usize {
        self.sizes.len() + 1
    }

    /// Rows `C = (N-1) h` that a token reads from a layer's table.
    pub fn columns(&self) -> usize {
        self.sizes.len() * self.heads
    }

    /// For each layer the primes of its columns, in their order: by length, then by head.
    pub fn primes(&self) -> Vec<Vec<u64>> {
        let mut used = std::collections::BTreeSet::new();
        let mut next = |from: u64| {
            let prime = (from..).find(|n| is_prime(*n) && !used.contains(n)).expect("there is no last prime");
            used.insert(prime);
            prime
        };
        let layer = |_| {
            let mut columns = Vec::with_capacity(self.columns());
            for size in &self.sizes {
                let mut from = *size;
                for _ in 0..self.heads {
                    let prime = next(from);
                    columns.push(prime);
                    from = prime + 1;
                }
            }
            columns
        };
        self.layers.iter().map(layer).collect()
    }

    /// The multipliers of `layer` where tokens make `classes` classes: odd, and so small that no class times one of
    /// them overflows.
    pub fn multipliers(&self, layer: usize, classes: usize) -> Vec<i64> {
        let bound = (i64::MAX as u64 / classes.max(1) as u64 / 2).max(1);
        let mut g = Generator::new(self.seed.wrapping_add(LAYER_STRIDE.wrapping_mul(layer as u64)));
        (0..self.longest()).map(|_| g.up_to(bound - 1) as i64 * 2 + 1).collect()
    }
}

fn is_prime(n: u64) -> bool {
    n > 1 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published values of the sheet.
    #[test]
    fn the_large_model() {
        let h = Hashing { layers: vec![1, 14], sizes: vec![16_000_000; 3], heads: 8, pad: 2, seed: 0, classes: None };
        assert_eq!((h.longest(), h.columns()), (4, 24));
        assert_eq!(h.multipliers(1, 99_092), [76632096046245, 4839876093313, 35959672319349, 73987337458391]);
        assert_eq!(h.multipliers(14, 99_092), [67716810739261, 51510806800915, 30921347202721, 82619226485591]);
        let primes = h.primes();
        assert_eq!(primes[0][..8], [57, 79, 81, 97, 121, 129, 133, 183].map(|p| 16_000_000 + p));
        assert_eq!(primes[1][16..], [781, 799, 813, 819, 841, 877, 879, 889].map(|p| 16_000_000 + p));
        let rows: Vec<u64> = primes.iter().map(|p| p.iter().sum()).collect();
        assert_eq!(rows, [384_006_168, 384_016_682]);
    }

    #[test]
    fn no_prime_is_used_twice() {
        let h = Hashing { layers: vec![0, 5], sizes: vec![1, 12], heads: 3, pad: 0, seed: 7, classes: None };
        assert_eq!(h.primes(), [[2, 3, 5, 13, 17, 19], [7, 11, 23, 29, 31, 37]]);
    }
}
