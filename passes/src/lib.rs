//! Passes: from a model's graph to a program. Specialise per entry, canonicalise, rewrite by cost in an e-graph, cut
//! into kernels, plan memory.
//!
//! Everything between the steps is the graph IR, so every step can be checked by evaluating before and after. The only
//! place that knows of egg is the private module `egraph`. Machines are known by [`hadal_ir::target`] alone, models not
//! at all.

pub mod bounds;
pub mod canonicalise;
mod chosen;
mod edit;
pub mod egraph;
pub mod elide;
mod error;
pub mod explain;
pub mod fuse;
pub mod panels;
pub mod pass;
pub mod pipeline;
pub mod plan;
pub mod rows;
pub mod rule;
pub mod rules;
pub mod share;
pub mod simulate;
pub mod specialise;
pub mod steps;
pub mod versions;
mod watch;

pub use egraph::{Gap, gap};
pub use error::Error;
pub use pass::{PASSES, Pass, PassReport, run_passes};
pub use pipeline::{Fused, Options, compile, optimise};
pub use rules::LawSet;
