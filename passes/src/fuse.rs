//! `fuse`: cuts every function into kernels, each one launch. See `docs/src/design/program.md`.
//!
//! ```text
//! func @f(%x: f32[T, 8]) -> (y: f32[T, 8]) {      kernel @add_rms_norm(…) -> (…) { add; rms_norm }
//!   add; rms_norm; contract; reshape         ->   kernel @contract_bf16_td_fd(…) -> (…) { contract }
//! }                                               func @f(…) { call; call; reshape }
//! ```
//!
//! Needs nothing on entry. On exit graph functions hold only calls and `reshape`, and equal kernels are one function.
//! Exact: every op is still there, in some kernel.
//!
//! Views, constants, and casts, dequantisation and gathers of weights are *carried*: never computed on their own but
//! repeated in each kernel that reads them. So is dequantisation of what products multiply as it is: integers of eight
//! bits, and floats of eight bits where the target has a peak for them; such values are handed on at a byte each. What attention reads is put together before, but for columns of keys and
//! values that lie in parts or are kept narrow with scales. All other ops begin as kernels of their own, which are then
//! joined:
//!
//! 1. elementwise ops of one shape, where one is only used by the other;
//! 2. a contraction with the elementwise ops on its result;
//! 3. anything but contractions and attention, where the joined kernel still has as many independent rows
//!    ([`hadal_ir::fusion`]) as either part.
//!
//! What follows from weights alone becomes a `fold`, computed when compiling.
//!
//! Entries for steps ([`hadal_ir::module::STEP`]) share no kernels with others: what is generated for a few tokens is
//! not what is generated for many.

mod emit;
mod group;

use crate::bounds::Reached;
use emit::Kernels;
use group::Grouping;
use hadal_ir::target::Target;
use hadal_ir::{FuncKind, Module};

/// See the module documentation.
pub fn run(module: &Module, target: &Target) -> Module {
    let mut kernels = Kernels::default();
    let mut graphs = Vec::new();
    let reached = Reached::of(module);
    for func in &module.funcs {
        if func.kind != FuncKind::Graph {
            kernels.keep(func);
            continue;
        }
        let grouping = Grouping::of(func, target);
        let entries = reached.by(&func.name);
        kernels.steps = !entries.is_empty() && entries.iter().all(|e| module.is_step(e));
        graphs.push(emit::graph(func, &grouping, &mut kernels));
    }
    let funcs = kernels.into_funcs().into_iter().chain(graphs).collect();
    Module { funcs, ..module.clone() }
}
