//! Attention without a score matrix in memory: scores of a block of rows, an online softmax, a rescaled sum of values.
//!
//! ```text
//! m[r], l[r] = the sink, 1             or -1e29, 0 without one
//! for each set, for each block of 32:  rows = some queries × heads that share their keys
//!   s[r, j] = Σ_terms q[r] · k[j]      one dot product in the lanes of a register, running on through all terms
//!   m'      = max(m[r], max_j s)       hidden keys count as -1e30
//!   p[r, j] = exp(s[r, j] - m')        which is 0 where hidden
//!   l[r]    = l[r] · exp(m - m') + Σ_j p
//!   o[r]    = o[r] · exp(m - m') + Σ_j p[r, j] · v[j]
//! o[r] / max(l[r], 1) goes through the epilogue: l is at least 1 but where nothing was seen
//! ```
//!
//! **Rows.** Heads that appear in no key, no value and nothing that says what is seen (grouped queries, latent
//! attention) are processed together with neighbouring queries, so a key read once serves all rows of a tile. Queries
//! whose rows are told by memory (intervals, masks, selections) each have a tile of their own, with more heads.
//!
//! Queries are scaled and laid out first, terms one after the other; their number is known when the kernel runs, so
//! rows beyond the last one cost nothing but what fills up a tile.
//!
//! **Parts.** Keys and values may be joined from parts, column by column, each in a buffer and format of its own, with
//! scales or without. Of keys each part is a term. What has scales or eight bits, and on narrow registers all that many
//! rows share, is converted to f32 for a block of rows at a time; the rest is converted where it is multiplied.
//!
//! **Keys turned.** Prompts on wide registers write the keys of a block column by column first: lanes of scores are
//! keys then, and a score is added column by column (`turned.rs`).
//!
//! **What is seen.** All and causal sets run from the first row to the last that any row of the tile sees; intervals
//! from the first bound to the second. Of masks and selections the numbers of the rows seen are written to a list, 32
//! places at a time, and the block reads its keys and values through it: nothing is gathered in memory, and what is not
//! seen is not read. Only causal blocks may hold rows that some rows of the tile do not see, so only those that do
//! choose between sums element by element: a hidden value does not count even where it is no number.
//!
//! **Numbers.** There is a block for every 32 rows from the first that may be seen, or places of a selection, whatever
//! the number of new tokens and wherever rows of a window stand; a block that a row cannot see multiplies by one and
//! adds zeros. Sets follow each other as written. So a row has the same bits alone, in a chunk, and however the grid is
//! cut: `T = 1` and more agree within an entry, unless the form of the graph differs between the two; where keys are
//! turned, prompts add the products of a score in another order than steps. Rows that a selection lists in another
//! order are summed in another order.
//!
//! Lanes of scores that are added are those of the machine's registers (four or sixteen), the same in all schedules.
//! The lanes of a tile's scores are added together, as many scores at once as there are lanes, in the order in which
//! one would be added alone.
//!
//! **Memory.** Few rows ask for the next block of consecutive keys and values while they compute one: a line or so at
//! each load, since what is asked for in a burst holds up the loads behind it.
//!
//! **Warpgroups.** Prompts whose keys and values are bf16 are pipelines on Hopper (`pipeline.rs`): the same online softmax,
//! for 128 rows and 64 keys at once, in tensor cores.
//!
//! **Bound.** Multiply-adds, down to two heads or so that share a latent row. Measurements: `docs/perf/attention.md`.
//!
//! Left to the loop generator: operands that are gathered, scaled by blocks of rows or with offsets, or not consecutive
//! along what is summed.

mod block;
pub mod desc;
pub mod emit;
pub mod pipeline;
pub mod schedule;
mod turned;

#[cfg(test)]
mod tests;

pub use desc::Desc;
pub use schedule::Schedule;

use super::{Generated, Ranges, Target};
use hadal_ir::Func;

/// The kernels of an attention, which give the same bits, the preferred one first; `None` for other functions.
pub fn generate(func: &Func, ranges: &Ranges, target: &Target) -> Option<Box<dyn Iterator<Item = Generated>>> {
    let desc = Desc::of(func)?;
    if let Some(s) = pipeline::schedule(&desc, ranges, target) {
        let (kernel, schedule) = (pipeline::emit(&desc, &s), s.show(&desc));
        return Some(Box::new(std::iter::once(Generated { kernel, generator: "attention", schedule })));
    }
    let schedules = schedule::candidates(&desc, ranges, target);
    Some(Box::new(schedules.into_iter().map(move |s| {
        let kernel = emit::emit(&desc, &s);
        Generated { kernel, generator: "attention", schedule: s.show(&desc) }
    })))
}
