//! `gather %x, %i {axis = 0, batch = 0}`: elements or rows of one axis, chosen by indices.
//!
//! With no batch axes `out[.., j.., ..] = x[.., i[j..], ..]`: the axis is replaced by the axes of `i`. The first
//! `batch` axes are common to both operands: `gather %p, %e {axis = 1, batch = 1}` is `out[t, k] = p[t, e[t, k]]`. An
//! index outside the axis (negative, or too large) gives zeros, as the contraction with a one-hot matrix would. So a
//! gather is total, on an empty axis too, and places that a selection leaves over hold -1.
//!
//! - C1: the axis exists, and is not a batch axis.
//! - C2: `batch` leading axes have equal sizes in both operands.
//! - C3: indices are integers.

use super::*;
use crate::tensor::{Data, coordinates, position};

/// See the module documentation.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Gather {
    /// The axis that indices choose from.
    pub axis: usize,
    /// Leading axes common to both operands.
    pub batch: usize,
}

impl OpDef for Gather {
    const MNEMONICS: &'static [&'static str] = &["gather"];
    const TIER: Tier = Tier::Primitive;

    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        let mut attrs = vec![("axis", self.axis.into())];
        if self.batch > 0 {
            attrs.push(("batch", self.batch.into()));
        }
        attrs
    }

    fn from_attrs(_: &str, attrs: &mut Attrs) -> Result<Self, AttrError> {
        Ok(Gather { axis: attrs.get("axis")?, batch: attrs.get_or("batch", 0)? })
    }

    fn infer(&self, args: &[TensorType]) -> Result<TensorType, Violation> {
        arity(args, 2)?;
        let (x, i) = (&args[0], &args[1]);
        axis_in(x, self.axis)?;
        ensure!(self.batch <= self.axis, "C1", "axis {} is one of {} batch axes", self.axis, self.batch);
        let same = self.batch <= i.rank() && x.shape[..self.batch] == i.shape[..self.batch];
        ensure!(same, "C2", "{x} and {i} do not share {} leading axes", self.batch);
        ensure!(i.dtype.is_int(), "C3", "indices are {}", i.dtype);
        let chosen = i.shape[self.batch..].iter();
        let shape = x.shape[..self.axis].iter().chain(chosen).chain(&x.shape[self.axis + 1..]).cloned().collect();
        Ok(TensorType { dtype: x.dtype, shape })
    }

    fn eval(&self, args: &[&Tensor], _: &TensorType, shape: &[usize], _: &Bindings) -> Tensor {
        let (x, i) = (args[0], args[1]);
        let chosen = i.shape.len() - self.batch;
        let mut at = Vec::new();
        let sources = (0..shape.iter().product()).map(|n| {
            coordinates(shape, n, &mut at);
            let index: Vec<usize> =
                at[..self.batch].iter().chain(&at[self.axis..self.axis + chosen]).copied().collect();
            let row = usize::try_from(i.ints()[position(&i.shape, &index)]).ok();
            let row = row.filter(|r| *r < x.shape[self.axis])?;
            at.splice(self.axis..self.axis + chosen, [row]);
            Some(position(&x.shape, &at))
        });
        let data = match &x.data {
            Data::Real(v) => Data::Real(sources.map(|s| s.map_or(0.0, |s| v[s])).collect()),
            Data::Int(v) => Data::Int(sources.map(|s| s.map_or(0, |s| v[s])).collect()),
        };
        Tensor { dtype: x.dtype, shape: shape.to_vec(), data }
    }

    fn flops(&self, _: &[TensorType], _: &TensorType, _: &Bindings) -> f64 {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::testing::*;
    use super::*;
    use hadal_types::DType;

    #[test]
    fn takes_rows_and_zeros_outside() {
        let x = Tensor::real(DType::F32, &[3, 2], (0..6).map(f64::from).collect());
        let i = Tensor::int(DType::I32, &[2], vec![2, 3]);
        assert_eq!(run(Gather { axis: 0, batch: 0 }, &[&x, &i]).unwrap().reals(), [4., 5., 0., 0.]);
        let i = Tensor::int(DType::I32, &[2], vec![-1, 1]);
        assert_eq!(run(Gather { axis: 0, batch: 0 }, &[&x, &i]).unwrap().reals(), [0., 0., 2., 3.]);
        let none = Tensor::real(DType::F32, &[0, 1], vec![]);
        assert_eq!(run(Gather { axis: 0, batch: 0 }, &[&none, &i]).unwrap().reals(), [0., 0.]);
    }

    #[test]
    fn takes_along_a_batched_axis() {
        let x = Tensor::real(DType::F32, &[2, 3], (0..6).map(f64::from).collect());
        let i = Tensor::int(DType::I32, &[2, 1], vec![2, 0]);
        let y = run(Gather { axis: 1, batch: 1 }, &[&x, &i]).unwrap();
        assert_eq!((y.shape.as_slice(), y.reals()), ([2, 1].as_slice(), [2., 3.].as_slice()));
    }

    #[test]
    fn constraints() {
        let x = wave(&[2, 3]);
        let i = Tensor::int(DType::I32, &[3], vec![0, 0, 0]);
        assert_eq!(run(Gather { axis: 2, batch: 0 }, &[&x, &i]).unwrap_err().constraint, "C1");
        assert_eq!(run(Gather { axis: 0, batch: 1 }, &[&x, &i]).unwrap_err().constraint, "C1");
        assert_eq!(run(Gather { axis: 1, batch: 1 }, &[&x, &i]).unwrap_err().constraint, "C2");
        assert_eq!(run(Gather { axis: 0, batch: 0 }, &[&x, &x]).unwrap_err().constraint, "C3");
    }
}
