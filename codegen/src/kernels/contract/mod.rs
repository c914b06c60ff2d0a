//! Product-sums of two operands: matrix times vector, matrix times matrix, batched, per expert, with block-scaled
//! weights, and an elementwise epilogue.
//!
//! [`Desc`] says what is computed, as addresses in parameters: chains of views, casts, block scales and gathers over
//! parameters are composed into affine forms of the contraction's letters ([`view`]), never materialised.
//! [`schedule`] chooses how; [`emit`] writes the kernel. Where an index chooses the weights of each row, as a router
//! chooses experts, rows that choose the same are put together first (`grouped.rs`).
//!
//! **Numbers.** Products are added by fused multiply-add into f32. The dot form keeps `lanes` partial sums (lane `i`
//! takes summed elements `i, i + lanes, …`, in order) and combines halves at the end; the outer form adds in order.
//! Block scales: the dot form sums the unscaled products of a block, then adds that sum times the scale; the outer form
//! scales each element first, and so does the packed form, but for pairs of bf16, which are summed by group, unscaled.
//! Nothing of this depends on the tile, so a row has the same bits whatever `T` is and
//! however the grid is cut.
//! Exception: a kernel for steps, with [`STEP`](hadal_ir::module::STEP) tokens at most, may sum in more lanes
//! (`schedule`), and then in another order, which is the same for one token and for several; and where the columns of a
//! grid index share their scales, it multiplies these into the other operand's rows first, once for all of them, and
//! sums what has its scale already.
//!
//! Pairs: where both operands are bf16, or the streamed one becomes it exactly, and the level has instructions for it,
//! two neighbouring products are added at a time, as the kernel IR's `dot` says.
//!
//! Quads: where rows are `i8` with scales and the streamed operand has eight bits or four with scales, and lies in
//! panels, products of bytes are added exactly while no scale changes; such sums are multiplied with both scales and
//! added in the order of the groups (`laid`).
//!
//! **Bound.** One row: reading the streamed operand once. Many rows: multiply-adds; a block of columns is converted to
//! f32 once (if it is not stored so) and stays in the second-level cache while all rows pass. Measurements:
//! `docs/perf/kernels-cpu.md`.

pub mod desc;
pub mod emit;
pub mod env;
pub mod epilogue;
mod grouped;
mod laid;
mod merged;
mod packed;
mod pipeline;
pub mod schedule;
pub(super) mod tiles;
pub mod variants;
pub mod view;

#[cfg(test)]
pub(crate) mod tests;

pub use desc::Desc;
pub use schedule::Schedule;

use super::{Generated, Ranges, Target};
use hadal_ir::Func;

/// What a function computes and how, if it is a product-sum.
fn select(func: &Func, ranges: &Ranges, target: &Target) -> Option<(Schedule, Desc)> {
    let mut desc = Desc::of(func)?.within(ranges);
    if target.is_warp() {
        desc = desc.merged();
    }
    let grouped = desc.grouped().and_then(|grouped| Some((schedule::select(&grouped, target)?, grouped)));
    grouped.or_else(|| Some((schedule::select(&desc, target)?, desc)))
}

/// The parameters of which a product-sum reads panels in place, and how many neighbours these keep together.
pub fn panels(func: &Func, ranges: &Ranges, target: &Target) -> Vec<(usize, i64)> {
    let Some(desc) = Desc::of(func) else { return Vec::new() };
    let wanted = [1, 0].into_iter().find_map(|streamed| {
        let wanted = laid::wanted(&desc, streamed, target)?;
        let reading = wanted.iter().try_fold(func.clone(), |f, (p, group)| hadal_ir::panels::reading(&f, *p, *group));
        let (schedule, _) = select(&reading?, ranges, target)?;
        (schedule.form == schedule::Form::Laid).then_some(wanted)
    });
    wanted.unwrap_or_default()
}

/// The kernels of a product-sum that give the same bits, the preferred one first; `None` for other functions.
pub fn generate(func: &Func, ranges: &Ranges, target: &Target) -> Option<Box<dyn Iterator<Item = Generated>>> {
    let (chosen, desc) = select(func, ranges, target)?;
    let (first, target) = (chosen.clone(), target.clone());
    let others = std::iter::once_with({
        let desc = desc.clone();
        move || variants::variants(&desc, &chosen, &target)
    });
    Some(Box::new(std::iter::once(first).chain(others.flatten()).map(move |s| {
        let kernel = emit::emit(&desc, &s);
        Generated { kernel, generator: "contract", schedule: s.show(&desc) }
    })))
}
