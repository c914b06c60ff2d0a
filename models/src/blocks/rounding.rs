//! Rounding of activations, one scale for every row and block of neighbouring channels. To e4m3 (sheet `deepseek-v3`,
//! "Quantised form") or to integers:
//!
//! ```text
//! s = max(max |x|, 1e-4) / 448       over a block, perhaps up to the next power of two
//! q = e4m3(x / s),   x ≈ q · s
//!
//! s = max(max |x|, 1e-30) / 127      over a block
//! q = ⌊x / s + 1/2⌋,   x ≈ q · s
//! ```
//!
//! Written at each product, of whatever that product reads: of `K` experts each has a rounded copy of its own. That
//! copies of a row round alike, and that rounding may move to where a value is made, is for the optimiser to find.

use super::Block;
use crate::formats::{Code, Rounding};
use hadal_ir::module::ValueId;
use hadal_ir::ops::Dequantize;
use hadal_ir::ops::map::MapFn;
use hadal_ir::ops::reduce::ReduceKind;
use hadal_types::{DType, Dim};

/// The largest value of e4m3.
const E4M3_MAX: f64 = 448.0;

/// The largest integer: the least one has no opposite.
const INT8_MAX: f64 = 127.0;

/// The least magnitude that a scale is made for, so that rows of zeros have one.
const FLOOR: f64 = 1e-4;

/// The same for integers: their inverse is still a number.
const INT8_FLOOR: f64 = 1e-30;

/// A value as it is multiplied: elements in e4m3 or integers, and the scale of each block of the last axis in f32.
#[derive(Clone, Copy, Debug)]
pub struct Quantised {
    /// The elements.
    pub values: ValueId,
    /// Their scales.
    pub scales: ValueId,
}

/// `x` with the blocks of its last axis scaled and rounded. The last block may be short.
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
    let (floor, limit) = if to.to == Code::I8 { (INT8_FLOOR, INT8_MAX) } else { (FLOOR, E4M3_MAX) };
    let floor = f.scalar_like(largest, floor);
    let largest = f.map(MapFn::Max, &[largest, floor]);
    let limit = f.scalar_like(largest, limit);
    let mut scales = f.map(MapFn::Div, &[largest, limit]);
    if to.to == (Code::E4M3 { pow2: true }) {
        scales = f.map(MapFn::Pow2Ceil, &[scales]);
    }

    let dims: Vec<usize> = (0..=last).collect();
    let each = f.broadcast(scales, &grouped_shape, &dims);
    let each = f.reshape(each, &with_last(&[blocks * block]));
    let each = if missing == 0 { each } else { f.slice(each, last, 0, n, 1) };
    let scaled = f.map(MapFn::Div, &[x, each]);
    let values = match to.to {
        Code::E4M3 { .. } => f.cast(scaled, DType::F8E4M3),
        Code::I8 => {
            let half = f.scalar_like(scaled, 0.5);
            let above = f.add(scaled, half);
            let nearest = f.map(MapFn::Floor, &[above]);
            f.cast(nearest, DType::I8)
        }
    };
    Quantised { values, scales }
}

/// The value that `q` stands for, with `block` neighbours of its last axis under one scale.
pub fn dequantise(f: &mut Block<'_>, q: Quantised, block: usize) -> ValueId {
    let last = f.shape(q.values).len() - 1;
    let mut blocks = vec![1; last];
    blocks.push(block.min(f.size(q.values, last)));
    f.op(Dequantize { block: blocks }, &[q.values, q.scales])
}

/// `x` rounded, as f32 again.
pub fn rounded(f: &mut Block<'_>, x: ValueId, to: Rounding) -> ValueId {
    let q = quantise(f, x, to);
    dequantise(f, q, to.block)
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;
    use crate::formats::{Activations, Formats, Plan, Planned};
    use hadal_ir::interpret::eval_func;
    use hadal_ir::{Bindings, Sym, Tensor, TensorType};

    /// What `make` makes of `x`, whose first axis is `T`.
    pub fn evaluate(x: &Tensor, make: impl Fn(&mut Block<'_>, ValueId) -> ValueId) -> Tensor {
        let plan = Plan::plain(DType::F32);
        let formats = Formats { oracle: &Planned, plan, activations: Activations::Fp8 };
        let mut f = Block::new("f", &formats, "", DType::F32);
        let mut shape: Vec<Dim> = x.shape.iter().map(|n| Dim::from(*n)).collect();
        shape[0] = Sym::T.into();
        let x_value = f.param("x", TensorType { dtype: x.dtype, shape });
        let y = make(&mut f, x_value);
        f.result("y", y);
        let bindings: Bindings = [(Sym::T, x.shape[0] as i64)].into();
        eval_func(&f.finish().unwrap(), std::slice::from_ref(x), &bindings).unwrap().remove(0)
    }
}

#[cfg(test)]
mod tests {
    use super::testing::evaluate;
    use super::*;
    use hadal_ir::Tensor;

    #[test]
    fn every_block_has_its_scale_the_short_last_one_too() {
        let x = Tensor::real(DType::F32, &[2, 5], vec![448.0, 1.0, 17.0, -0.5, 100.0, 0.0, 0.0, 1e-5, -896.0, 4.48]);
        let scales = |pow2| evaluate(&x, |f, x| quantise(f, x, Rounding { block: 2, to: Code::E4M3 { pow2 } }).scales);
        assert_eq!(scales(false).reals(), [1.0, 17.0 / 448.0, 100.0 / 448.0, 1e-4 / 448.0, 2.0, 4.48 / 448.0]);
        assert_eq!(scales(true).reals(), [1.0, 2f64.powi(-4), 0.25, 2f64.powi(-22), 2.0, 2f64.powi(-6)]);
        // 17 · 16 = 272 lies half-way between 256 and 288, 100 · 4 between 384 and 416: both go to the even one.
        let y = evaluate(&x, |f, x| rounded(f, x, Rounding { block: 2, to: Code::E4M3 { pow2: true } }));
        assert_eq!(y.reals()[..5], [448.0, 1.0, 16.0, -0.5, 96.0]);
        assert_eq!(y.reals()[5..], [0.0, 0.0, 0.0, -896.0, 4.5]);
    }

    #[test]
    fn a_block_may_be_longer_than_the_row() {
        let x = Tensor::real(DType::F32, &[1, 2, 3], vec![1.0, 2.0, 7.0, 0.0, -3.5, 0.875]);
        let y = evaluate(&x, |f, x| rounded(f, x, Rounding { block: 128, to: Code::E4M3 { pow2: true } }));
        assert_eq!(y, x);
    }

    #[test]
    fn integers_reach_127_on_both_sides() {
        let x = Tensor::real(DType::F32, &[1, 6], vec![254.0, -254.0, 1.0, 2.9, 0.0, 0.0]);
        let to = Rounding { block: 2, to: Code::I8 };
        let codes = evaluate(&x, |f, x| quantise(f, x, to).values);
        assert_eq!((0..6).map(|i| codes.at(i)).collect::<Vec<_>>(), [127.0, -127.0, 44.0, 127.0, 0.0, 0.0]);
        let y = evaluate(&x, |f, x| rounded(f, x, to));
        assert_eq!(y.reals()[..2], [254.0, -254.0]);
        assert!((y.at(3) - 2.9).abs() < 1e-6 && (y.at(2) - 1.0).abs() < 0.5 * 2.9 / 127.0);
    }
}
