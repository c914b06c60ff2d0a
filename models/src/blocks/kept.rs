//! Rows that states keep: as they are, or in a narrow format with a scale for every block of neighbouring channels.
//!
//! ```text
//! s = scale(max(max |x|, least) / limit)     over a block; a power of two, or rounded to e4m3
//! kept: x / s in the narrow format, and s    so x ≈ kept · s
//! ```
//!
//! Channels at the end may stay as they are. Values, scales and the rest are states of their own: `name`, `name_scale`,
//! `name_rest`.
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
    /// The scales of a row take a multiple of so many columns, of which those behind the last scale mean nothing.
    pub aligned: usize,
    /// Channels at the end that are not rounded.
    pub rest: usize,
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
    rest: Option<ValueId>,
}

impl Kept {
    /// Rounds `x`, `[.., n]`.
    pub fn round(f: &mut Block<'_>, x: ValueId, to: Narrow) -> Kept {
        let last = f.shape(x).len() - 1;
        let n = f.size(x, last) - to.rest;
        let rest = (to.rest > 0).then(|| f.slice(x, last, n, to.rest, 1));
        let x = first(f, x, n);
        let shape = f.shape(x).to_vec();
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
        let scales = match blocks.next_multiple_of(to.aligned) - blocks {
            0 => scales,
            missing => {
                let one = f.op(Constant::scalar(1.0, to.scales), &[]);
                let ones = f.broadcast(one, &ending(&[missing]), &[]);
                f.concat(&[scales, ones], last)
            }
        };
        Kept { values: f.cast(scaled, to.values), scales: Some((scales, block)), rest }
    }

    /// The rows of the state `name` so far, with `rows` behind them. It holds `held` rows: as many as tokens or groups
    /// of them, or a number, which makes a window.
    pub fn append(f: &mut Block<'_>, name: &str, held: impl Into<Dim>, rows: ValueId, to: Option<Narrow>) -> Kept {
        let (held, name) = (held.into(), format!("{}{name}", f.path));
        let new = match to {
            None => Kept { values: rows, scales: None, rest: None },
            Some(to) => Kept::round(f, rows, to),
        };
        let mut append = |of: &str, rows, dtype: Option<DType>| {
            let dtype = dtype.unwrap_or(f.state_dtype);
            f.append_to(&format!("{name}{of}"), held.clone(), rows, dtype)
        };
        Kept {
            values: append("", new.values, to.map(|to| to.values)),
            scales: new.scales.map(|(scales, block)| (append("_scale", scales, to.map(|to| to.scales)), block)),
            rest: new.rest.map(|rest| append("_rest", rest, None)),
        }
    }

    /// The rows, of `n` channels, of a state that stays as it is.
    pub fn held(f: &mut Block<'_>, name: &str, held: impl Into<Dim>, n: usize, to: Option<Narrow>) -> Kept {
        let name = format!("{}{name}", f.path);
        Kept::given(f.state_dtype, held.into(), n, to, |of, ty| f.state(&format!("{name}{of}"), ty))
    }

    /// Rows of `n` channels that the caller passes.
    pub fn param(f: &mut Block<'_>, name: &str, rows: impl Into<Dim>, n: usize, to: Option<Narrow>) -> Kept {
        Kept::given(f.state_dtype, rows.into(), n, to, |of, ty| f.param(&format!("{name}{of}"), ty))
    }

    /// Rows whose parts `give` gives, told what is added to their names, and their types.
    fn given(
        plain: DType,
        rows: Dim,
        n: usize,
        to: Option<Narrow>,
        mut give: impl FnMut(&str, TensorType) -> ValueId,
    ) -> Kept {
        let ty = |dtype, n: usize| TensorType::new(dtype, [rows.clone(), n.into()]);
        let Some(to) = to else { return Kept { values: give("", ty(plain, n)), scales: None, rest: None } };
        let n = n - to.rest;
        let block = to.block.min(n);
        let columns = n.div_ceil(block).next_multiple_of(to.aligned);
        Kept {
            values: give("", ty(to.values, n)),
            scales: Some((give("_scale", ty(to.scales, columns)), block)),
            rest: (to.rest > 0).then(|| give("_rest", ty(plain, to.rest))),
        }
    }

    /// Gives the parts out under the names that [`Kept::param`] has for them.
    pub fn result(&self, f: &mut Block<'_>, name: &str) {
        let scales = self.scales.map(|(scales, _)| ("_scale", scales));
        for (of, part) in [Some(("", self.values)), scales, self.rest.map(|rest| ("_rest", rest))].into_iter().flatten()
        {
            f.result(&format!("{name}{of}"), part);
        }
    }

    /// The rows in f32.
    pub fn read(&self, f: &mut Block<'_>) -> ValueId {
        let Some((scales, of)) = self.scales else { return f.cast(self.values, DType::F32) };
        let last = f.shape(self.values).len() - 1;
        let scales = first(f, scales, f.size(self.values, last).div_ceil(of));
        let mut block = vec![1; last];
        block.push(of);
        let values = f.op(Dequantize { block }, &[self.values, scales]);
        let Some(rest) = self.rest else { return values };
        let rest = f.cast(rest, DType::F32);
        f.concat(&[values, rest], last)
    }
}

/// The first `count` channels.
fn first(f: &mut Block<'_>, x: ValueId, count: usize) -> ValueId {
    let last = f.shape(x).len() - 1;
    if f.size(x, last) == count { x } else { f.slice(x, last, 0, count, 1) }
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
        let pow2 = Narrow { values: DType::F4E2M1, block: 4, scales: DType::F8E8M0, aligned: 1, rest: 0 };
        // The largest is 12, so the scale is 2: ties go to the even code, the short last block has a scale of its own.
        assert_eq!(rounded(&[12.0, 0.5, 1.5, -5.0, 3.0], pow2), [12.0, 0.0, 2.0, -4.0, 3.0]);
        let fine = Narrow { scales: DType::F8E4M3, ..pow2 };
        // 13 / 6 as an e4m3 is 2.25.
        assert_eq!(rounded(&[13.0, 2.25, 0.0, -1.0], fine), [13.5, 2.25, 0.0, -1.125]);
    }

    #[test]
    fn channels_at_the_end_may_stay_as_they_are() {
        let to = Narrow { values: DType::F4E2M1, block: 2, scales: DType::F8E8M0, aligned: 4, rest: 2 };
        assert_eq!(rounded(&[12.0, 5.0, 2.5, 5.1, -0.3], to), [12.0, 4.0, 2.0, 5.1, -0.3]);
    }

    #[test]
    fn rows_of_nothing_have_a_scale() {
        for (values, scales) in
            [(DType::F4E2M1, DType::F8E8M0), (DType::F4E2M1, DType::F8E4M3), (DType::F8E4M3, DType::F8E8M0)]
        {
            assert_eq!(rounded(&[0.0; 3], Narrow { values, block: 2, scales, aligned: 1, rest: 0 }), [0.0; 3]);
        }
    }
}
