//! Rows that states keep: as they are, or in a narrow format with a scale for every block of neighbouring channels.
//!
//! ```text
//! s = scale(max(max |x|, least) / limit)     over a block; a power of two, or rounded to e4m3
//! kept: x / s in the narrow format, and s    so x ≈ kept · s
//! ```
//!
//! What is kept may be read by other functions: its parts are passed to them as they are stored.

use super::Block;
use hadal_ir::module::ValueId;
use hadal_ir::ops::map::MapFn;
use hadal_ir::ops::reduce::ReduceKind;
use hadal_ir::ops::{Constant, Dequantize};
use hadal_types::{DType, Dim, TensorType};

/// A narrow format for rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Narrow {
    /// Of the elements.
    pub values: DType,
    /// Neighbours that share a scale.
    pub block: usize,
    /// Of the scales: powers of two are rounded up.
    pub scales: DType,
    /// The scales of a row that a state keeps take a multiple of so many columns.
    pub aligned: usize,
}

impl Narrow {
    /// The largest element.
    fn limit(self) -> f64 {
        if self.values == DType::F4E2M1 { 6.0 } else { 448.0 }
    }

    /// The least magnitude that a scale is made for, so that rows of zeros have one.
    fn least(self) -> f64 {
        match (self.values, self.scales) {
            (DType::F4E2M1, DType::F8E4M3) => 6.0 * 2f64.powi(-9),
            (DType::F4E2M1, _) => 6.0 * 2f64.powi(-126),
            _ => 1e-4,
        }
    }
}

/// Rows as they are kept.
#[derive(Clone, Debug)]
pub struct Kept {
    values: ValueId,
    /// The scales, and how many neighbours share one.
    scales: Option<(ValueId, usize)>,
}

impl Kept {
    /// Rounds `x`, `[.., n]`.
    pub fn round(f: &mut Block<'_>, x: ValueId, to: Narrow) -> Kept {
        let shape = f.shape(x).to_vec();
        let last = shape.len() - 1;
        let n = f.size(x, last);
        let block = to.block.min(n);
        let blocks = n.div_ceil(block);
        let ending = |sizes: &[usize]| {
            let sizes = sizes.iter().map(|n| Dim::from(*n));
            shape[..last].iter().cloned().chain(sizes).collect::<Vec<Dim>>()
        };
        // Zeros behind a short block change no maximum.
        let whole = match blocks * block - n {
            0 => x,
            missing => {
                let zero = f.scalar(0.0);
                let zeros = f.broadcast(zero, &ending(&[missing]), &[]);
                f.concat(&[x, zeros], last)
            }
        };
        let grouped = f.reshape(whole, &ending(&[blocks, block]));
        let sizes = f.map(MapFn::Abs, &[grouped]);
        let largest = f.reduce(ReduceKind::Max, &[last + 1], sizes);
        let least = f.scalar_like(largest, to.least());
        let largest = f.map(MapFn::Max, &[largest, least]);
        let limit = f.scalar_like(largest, to.limit());
        let mut scales = f.map(MapFn::Div, &[largest, limit]);
        if to.scales == DType::F8E8M0 {
            scales = f.map(MapFn::Pow2Ceil, &[scales]);
        }
        let scales = f.cast(scales, to.scales);

        let dims: Vec<usize> = (0..=last).collect();
        let each = f.cast(scales, DType::F32);
        let each = f.broadcast(each, &ending(&[blocks, block]), &dims);
        let each = f.reshape(each, &ending(&[blocks * block]));
        let each = if blocks * block == n { each } else { f.slice(each, last, 0, n, 1) };
        let scaled = f.map(MapFn::Div, &[x, each]);
        Kept { values: f.cast(scaled, to.values), scales: Some((scales, block)) }
    }

    /// The rows of the state `name` so far, with `rows` behind them. It holds `held` rows: as many as tokens or groups of
    /// them, or a number, which makes a window. Scales are a state of their own, `name_scale`, whose columns behind the last
    /// scale mean nothing.
    pub fn append(f: &mut Block<'_>, name: &str, held: impl Into<Dim>, rows: ValueId, to: Option<Narrow>) -> Kept {
        let (held, name) = (held.into(), format!("{}{name}", f.path));
        let Some(to) = to else {
            let dtype = f.state_dtype;
            return Kept { values: f.append_to(&name, held, rows, dtype), scales: None };
        };
        let new = Kept::round(f, rows, to);
        let values = f.append_to(&name, held.clone(), new.values, to.values);
        let append = |(scales, block)| {
            let (count, new_rows) = (f.size(scales, 1), f.shape(scales)[0].clone());
            let scales = match count.next_multiple_of(to.aligned) - count {
                0 => scales,
                missing => {
                    let one = f.op(Constant::scalar(1.0, to.scales), &[]);
                    let ones = f.broadcast(one, &[new_rows, missing.into()], &[]);
                    f.concat(&[scales, ones], 1)
                }
            };
            let all = f.append_to(&format!("{name}_scale"), held, scales, to.scales);
            (first(f, all, count), block)
        };
        Kept { values, scales: new.scales.map(append) }
    }

    /// The rows of a state that stays as it is.
    pub fn held(f: &mut Block<'_>, name: &str, held: impl Into<Dim>, n: usize, to: Option<Narrow>) -> Kept {
        let (held, name) = (held.into(), format!("{}{name}", f.path));
        let values = TensorType::new(to.map_or(f.state_dtype, |to| to.values), [held.clone(), n.into()]);
        let values = f.state(&name, values);
        let scales = to.map(|to| {
            let block = to.block.min(n);
            let count = n.div_ceil(block);
            let stored = TensorType::new(to.scales, [held, count.next_multiple_of(to.aligned).into()]);
            let all = f.state(&format!("{name}_scale"), stored);
            (first(f, all, count), block)
        });
        Kept { values, scales }
    }

    /// Rows of `n` channels that the caller passes.
    pub fn param(f: &mut Block<'_>, name: &str, rows: impl Into<Dim>, n: usize, to: Option<Narrow>) -> Kept {
        let rows = rows.into();
        let values = TensorType::new(to.map_or(f.state_dtype, |to| to.values), [rows.clone(), n.into()]);
        let values = f.param(name, values);
        let scales = to.map(|to| {
            let block = to.block.min(n);
            let scales = TensorType::new(to.scales, [rows, n.div_ceil(block).into()]);
            (f.param(&format!("{name}_scale"), scales), block)
        });
        Kept { values, scales }
    }

    /// Gives the parts out under the names that [`Kept::param`] has for them.
    pub fn result(&self, f: &mut Block<'_>, name: &str) {
        f.result(name, self.values);
        if let Some((scales, _)) = self.scales {
            f.result(&format!("{name}_scale"), scales);
        }
    }

    /// The rows in f32.
    pub fn read(&self, f: &mut Block<'_>) -> ValueId {
        match self.scales {
            None => f.cast(self.values, DType::F32),
            Some((scales, of)) => {
                let mut block = vec![1; f.shape(self.values).len()];
                *block.last_mut().expect("rows have channels") = of;
                f.op(Dequantize { block }, &[self.values, scales])
            }
        }
    }
}

/// The first `count` columns.
fn first(f: &mut Block<'_>, x: ValueId, count: usize) -> ValueId {
    if f.size(x, 1) == count { x } else { f.slice(x, 1, 0, count, 1) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::rounding::testing::evaluate;
    use hadal_ir::Tensor;

    fn rounded(x: &[f64], to: Narrow) -> Vec<f64> {
        let x = Tensor::real(DType::F32, &[1, x.len()], x.to_vec());
        evaluate(&x, |f, x| Kept::round(f, x, to).read(f)).reals().to_vec()
    }

    #[test]
    fn scales_are_powers_of_two_or_not() {
        let pow2 = Narrow { values: DType::F4E2M1, block: 4, scales: DType::F8E8M0, aligned: 1 };
        // The largest is 12, so the scale is 2: ties go to the even code, the short last block has a scale of its own.
        assert_eq!(rounded(&[12.0, 0.5, 1.5, -5.0, 3.0], pow2), [12.0, 0.0, 2.0, -4.0, 3.0]);
        let fine = Narrow { scales: DType::F8E4M3, ..pow2 };
        // 13 / 6 as an e4m3 is 2.25.
        assert_eq!(rounded(&[13.0, 2.25, 0.0, -1.0], fine), [13.5, 2.25, 0.0, -1.125]);
    }

    #[test]
    fn rows_of_nothing_have_a_scale() {
        for (values, scales) in
            [(DType::F4E2M1, DType::F8E8M0), (DType::F4E2M1, DType::F8E4M3), (DType::F8E4M3, DType::F8E8M0)]
        {
            assert_eq!(rounded(&[0.0; 3], Narrow { values, block: 2, scales, aligned: 1 }), [0.0; 3]);
        }
    }
}
