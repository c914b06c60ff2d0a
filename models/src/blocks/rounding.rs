//! Rounding of activations to e4m3, one scale for every row and block of neighbouring channels (sheet `deepseek-v3`,
//! "Quantised form"):
//!
//! ```text
//! s = max(max |x|, 1e-4) / 448       over a block, perhaps up to the next power of two
//! q = e4m3(x / s),   x ≈ q · s
//! ```
//!
//! Written at each product, of whatever that product reads: of `K` experts each has a rounded copy of its own. That
//! copies of a row round alike, and that rounding may move to where a value is made, is for the optimiser to find.

use super::Block;
use crate::formats::Rounding;
use hadal_ir::module::ValueId;
use hadal_ir::ops::map::MapFn;
use hadal_ir::ops::reduce::ReduceKind;
use hadal_types::{DType, Dim};

/// The largest value of e4m3.
const E4M3_MAX: f64 = 448.0;

/// The least magnitude that a scale is made for, so that rows of zeros have one.
const FLOOR: f64 = 1e-4;

/// A value as it is multiplied: elements in e4m3, and the scale of each block of the last axis in f32.
#[derive(Clone, Copy, Debug)]
pub struct Quantised {
    /// The elements.
    pub values: ValueId,
    /// Their scales.
    pub scales: ValueId,
}

/// `x` with the blocks of its last axis scaled to e4m3 and rounded. The last block may be short.
pub fn quantise(f: &mut Block<'_>, x: ValueId, to: Rounding) -> Quantised {
    let shape = f.shape(x).to_vec();
    let last = shape.len() - 1;
    let n = f.size(x, last);
    let block = to.block.min(n);
    let blocks = n.div_ceil(block);
    let with_last = |sizes: &[usize]| {
        let sizes = sizes.iter().map(|n| Dim::from(*n));
        shape[..last].iter().cloned().chain(sizes).collect::<Vec<Dim>>()
    };
    let grouped_shape = with_last(&[blocks, block]);

    // Zeros behind a short block change no maximum.
    let missing = blocks * block - n;
    let whole = match missing {
        0 => x,
        _ => {
            let zero = f.scalar(0.0);
            let zeros = f.broadcast(zero, &with_last(&[missing]), &[]);
            f.concat(&[x, zeros], last)
        }
    };
    let grouped = f.reshape(whole, &grouped_shape);
    let sizes = f.map(MapFn::Abs, &[grouped]);
    let largest = f.reduce(ReduceKind::Max, &[last + 1], sizes);
    let floor = f.scalar_like(largest, FLOOR);
    let largest = f.map(MapFn::Max, &[largest, floor]);
    let limit = f.scalar_like(largest, E4M3_MAX);
    let mut scales = f.map(MapFn::Div, &[largest, limit]);
    if to.pow2 {
        scales = pow2_ceil(f, scales);
    }

    let each = each_scale(f, scales, x, block);
    let scaled = f.map(MapFn::Div, &[x, each]);
    Quantised { values: f.cast(scaled, DType::F8E4M3), scales }
}

/// The least powers of two that are not below `x`.
fn pow2_ceil(f: &mut Block<'_>, x: ValueId) -> ValueId {
    let near = f.cast(x, DType::F8E8M0);
    let near = f.cast(near, DType::F32);
    let twice = f.add(near, near);
    let below = f.map(MapFn::Lt, &[near, x]);
    f.map(MapFn::Select, &[below, twice, near])
}

/// The value that `q` stands for, with `block` neighbours of its last axis under one scale.
pub fn dequantise(f: &mut Block<'_>, q: Quantised, block: usize) -> ValueId {
    let each = each_scale(f, q.scales, q.values, block);
    let values = f.cast(q.values, DType::F32);
    f.mul(values, each)
}

/// `x` rounded, as f32 again.
pub fn rounded(f: &mut Block<'_>, x: ValueId, to: Rounding) -> ValueId {
    let q = quantise(f, x, to);
    dequantise(f, q, to.block)
}

/// `scales`, each repeated for the elements of `x` that are under it.
fn each_scale(f: &mut Block<'_>, scales: ValueId, x: ValueId, block: usize) -> ValueId {
    let (from, to) = (f.shape(scales).to_vec(), f.shape(x).to_vec());
    let last = to.len() - 1;
    let (n, blocks) = (f.size(x, last), f.size(scales, last));
    let block = block.min(n);
    let mut grouped = from.clone();
    grouped.push(block.into());
    let mut flat = from;
    flat[last] = (blocks * block).into();
    let dims: Vec<usize> = (0..=last).collect();
    let each = f.broadcast(scales, &grouped, &dims);
    let each = f.reshape(each, &flat);
    if blocks * block == n { each } else { f.slice(each, last, 0, n, 1) }
}
