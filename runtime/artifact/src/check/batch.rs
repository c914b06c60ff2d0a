//! Whether a version that says so can run for a batch: every address of every sequence lies inside.
//!
//! Sizes are checked with the rest, for one new token and for as many as the version has. What is left is that memory
//! that sequences share is nothing but rows, so that a row ends where the next one begins, and that shared launches
//! know nothing of a sequence.

use crate::manifest::row_bytes;
use crate::{BatchFault, Entry, Kernel, Launch, Manifest, Space, Version};
use hadal_types::{Dim, Sym};

/// Most sequences of one launch.
const MOST: i64 = 1 << 12;

/// What is wrong with it, and with which launch.
pub(super) fn check(manifest: &Manifest, entry: &Entry, version: &Version) -> Option<(Option<usize>, BatchFault)> {
    if !version.batches {
        let stray = |l: &Launch| l.each || l.args.iter().any(|a| a.space == Space::Own);
        return version.launches.iter().position(stray).map(|i| (Some(i), BatchFault::Stray));
    }
    if !version.symbols.iter().any(|r| r.sym == Sym::T && (1..=MOST).contains(&r.hi)) {
        return Some((None, BatchFault::Tokens));
    }
    if entry.inputs.iter().chain(&entry.outputs).any(|p| row_bytes(&p.ty).is_none()) {
        return Some((None, BatchFault::Rows));
    }
    version.launches.iter().enumerate().find_map(|(i, l)| {
        let kernel = manifest.kernels.get(l.kernel as usize)?;
        Some((Some(i), check_launch(kernel, l)?))
    })
}

fn check_launch(kernel: &Kernel, launch: &Launch) -> Option<BatchFault> {
    let tokens_only = |d: &Dim| d.terms().iter().all(|(s, _)| *s == Sym::T);
    let params = || launch.args.iter().zip(&kernel.params);
    if !launch.each {
        let knows = kernel.symbols.iter().any(|s| *s != Sym::T)
            || !launch.grid.iter().all(tokens_only)
            || !kernel.params.iter().all(|p| p.ty.shape.iter().all(tokens_only));
        let owned = |s: Space| matches!(s, Space::State(_) | Space::Own);
        if knows || params().any(|(a, _)| owned(a.space)) {
            return Some(BatchFault::Shared);
        }
    }
    let in_rows = params().all(|(a, p)| match a.space {
        Space::Arena | Space::Input(_) | Space::Output(_) => row_bytes(&p.ty).is_some(),
        Space::Weight(_) | Space::State(_) | Space::Own => true,
    });
    (!in_rows).then_some(BatchFault::Rows)
}
