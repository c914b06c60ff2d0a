//! Which launches of a plan several sequences share. See `docs/src/design/batching.md`.
//!
//! In a batch each sequence has one new token. A launch is *shared* where its kernel treats tokens apart
//! ([`crate::rows`]): it runs once, row `b` being that of sequence `b`. Any other runs for *each* sequence alone, with
//! its states. What shared launches touch lies in memory of the batch, a row for each sequence: all of it is rows of
//! tokens, since the kernel's types say so. Working memory that none of them touches is each sequence's own.
//!
//! A sequence's numbers are those of a call for its token alone: rows that are apart do not know of each other, and
//! everything else is such a call.

use crate::rows::{are_apart, token_bytes};
use hadal_ir::module::STEP;
use hadal_ir::plan::{Place, Plan, Program};
use hadal_ir::{Func, Sym, TensorType};
use std::collections::BTreeMap;

/// How a plan runs for several sequences.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Batching {
    /// By launch: whether it runs for each sequence alone.
    pub each: Vec<bool>,
    /// By buffer: whether each sequence has its own.
    pub own: Vec<bool>,
}

/// How `plan` runs for several sequences; `None` where it is not for several tokens of a step, or where what the caller
/// gives and gets is not a row for each.
pub fn batching(program: &Program, plan: &Plan) -> Option<Batching> {
    let tokens = plan.ranges.get(&Sym::T)?;
    if tokens.min == tokens.max || tokens.max > STEP {
        return None;
    }
    let mut ports = plan.inputs.iter().chain(&plan.outputs);
    if !ports.all(|p| token_bytes(&p.ty).is_some()) {
        return None;
    }
    let mut apart: BTreeMap<&str, bool> = BTreeMap::new();
    let mut each = Vec::new();
    let mut own = vec![true; plan.buffers.len()];
    for launch in &plan.launches {
        let kernel = program.module.func(&launch.kernel)?;
        let values = kernel.params.iter().chain(kernel.results.iter().map(|(_, r)| r));
        let mut rows = launch.args.iter().zip(values).map(|(place, v)| (*place, kernel.ty(*v)));
        let shared = rows.all(|(place, ty)| sharable(place, ty))
            && *apart.entry(&launch.kernel).or_insert_with(|| has_rows(kernel) && are_apart(kernel));
        each.push(!shared);
        if shared {
            for place in &launch.args {
                if let Place::Buffer(b) = place {
                    own[*b] = false;
                }
            }
        }
    }
    Some(Batching { each, own })
}

/// Whether something is the same for all sequences, or has a row for each.
fn sharable(place: Place, ty: &TensorType) -> bool {
    match place {
        Place::Weight(_) | Place::Fold(_) => true,
        Place::State(_) => false,
        Place::Buffer(_) | Place::Input(_) | Place::Output(_) => token_bytes(ty).is_some(),
    }
}

/// Whether all that a kernel writes has tokens.
fn has_rows(kernel: &Func) -> bool {
    kernel.results.iter().all(|(_, r)| token_bytes(kernel.ty(*r)).is_some())
}
