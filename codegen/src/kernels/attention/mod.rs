//! Attention without a score matrix in memory: scores of a block of keys, an online softmax, a rescaled sum of values.
//!
//! ```text
//! for each block of 32 keys:          rows = some queries × heads that share their keys
//!   s[r, j] = Σ_terms q[r] · k[j]     one dot product in four lanes, running on through all terms
//!   m'      = max(m[r], max_j s)      hidden keys count as -1e30
//!   p[r, j] = exp(s[r, j] - m')       and 0 where hidden
//!   l[r]    = l[r] · exp(m - m') + Σ_j p
//!   o[r]    = o[r] · exp(m - m') + Σ_j p[r, j] · v[j]
//! o[r] / l[r] goes through the epilogue
//! ```
//!
//! **Rows.** Heads that appear in no key and no value letter (grouped queries, latent attention) are processed together
//! with neighbouring queries, so a key read once serves all rows of a tile. Blocks of keys that all rows must not see
//! are not visited.
//!
//! **Numbers.** Blocks begin at multiples of 32 keys, whatever the number of new tokens; a block that a row cannot see
//! multiplies by one and adds zeros. So a row has the same bits alone, in a chunk, and however the grid is cut.
//!
//! **Bound.** One query: reading keys and values once. Many: multiply-adds. Measurements: `docs/perf/kernels-cpu.md`.

pub mod desc;
pub mod emit;
pub mod schedule;

#[cfg(test)]
mod tests;

pub use desc::Desc;
pub use schedule::Schedule;

use super::{Error, Generated, Target};
use hadal_ir::Func;

/// The kernel of an attention; `None` for other functions.
pub fn generate(func: &Func, _target: &Target) -> Option<Result<Generated, Error>> {
    let desc = Desc::of(func)?;
    let schedule = schedule::select(&desc)?;
    let kernel = emit::emit(&desc, &schedule);
    Some(Ok(Generated { kernel, generator: "attention", schedule: schedule.show(&desc) }))
}
