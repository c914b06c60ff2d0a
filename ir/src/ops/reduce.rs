//! `reduce %x {kind = sum, axes = [1]}`: sum, maximum or minimum over axes, which disappear.
//!
//! The sum of nothing is 0, the maximum of nothing -∞ (for integers, the smallest one).
//!
//! - C1: the axes exist, ascending, none twice.
//! - C2: the operand holds numbers, or truth values for `max` (any) and `min` (all); not `u4` or `i4`.

use super::*;
use crate::tensor::{Data, coordinates, position};
use hadal_types::DType;

/// How elements are combined.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ReduceKind {
    /// Addition.
    Sum,
    /// The largest.
    Max,
    /// The smallest.
    Min,
}

impl ReduceKind {
    const ALL: [(ReduceKind, &'static str); 3] =
        [(ReduceKind::Sum, "sum"), (ReduceKind::Max, "max"), (ReduceKind::Min, "min")];
}

/// See the module documentation.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Reduce {
    /// How elements are combined.
    pub kind: ReduceKind,
    /// The axes that disappear, ascending.
    pub axes: Vec<usize>,
}

impl OpDef for Reduce {
    const MNEMONICS: &'static [&'static str] = &["reduce"];
    const TIER: Tier = Tier::Primitive;

    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        let name = ReduceKind::ALL.iter().find(|(k, _)| *k == self.kind).expect("all kinds are listed").1;
        vec![("kind", Attr::Word(name.into())), ("axes", Attr::list(self.axes.iter().copied()))]
    }

    fn from_attrs(_: &str, attrs: &mut Attrs) -> Result<Self, AttrError> {
        let kind = attrs.take("kind").ok_or(AttrError::Missing("kind"))?;
        let text = kind.to_string();
        let kind = ReduceKind::ALL.iter().find(|(_, n)| *n == text).map(|(k, _)| *k);
        let kind = kind.ok_or(AttrError::Wrong { name: "kind", expected: "sum, max or min", found: text })?;
        Ok(Reduce { kind, axes: attrs.get("axes")? })
    }

    fn infer(&self, args: &[TensorType]) -> Result<TensorType, Violation> {
        arity(args, 1)?;
        ensure!(self.axes.is_sorted_by(|a, b| a < b), "C1", "axes {:?} are not ascending", self.axes);
        for axis in &self.axes {
            axis_in(&args[0], *axis)?;
        }
        let bool_sum = args[0].dtype == DType::Bool && self.kind == ReduceKind::Sum;
        ensure!(!bool_sum, "C2", "a sum of truth values");
        ensure!(!matches!(args[0].dtype, DType::U4 | DType::I4), "C2", "{:?} of {}", self.kind, args[0].dtype);
        let kept = args[0].shape.iter().enumerate().filter(|(i, _)| !self.axes.contains(i));
        Ok(TensorType { dtype: args[0].dtype, shape: kept.map(|(_, d)| d.clone()).collect() })
    }

    fn eval(&self, args: &[&Tensor], out: &TensorType, shape: &[usize], _: &Bindings) -> Tensor {
        let x = args[0];
        let n = shape.iter().product();
        let mut at = Vec::new();
        let mut target = |i: usize| {
            coordinates(&x.shape, i, &mut at);
            let kept: Vec<usize> =
                at.iter().enumerate().filter(|(a, _)| !self.axes.contains(a)).map(|(_, c)| *c).collect();
            position(shape, &kept)
        };
        match &x.data {
            Data::Real(v) => {
                let (start, f): (f64, fn(f64, f64) -> f64) = match self.kind {
                    ReduceKind::Sum => (0.0, |a, b| a + b),
                    ReduceKind::Max => (f64::NEG_INFINITY, f64::max),
                    ReduceKind::Min => (f64::INFINITY, f64::min),
                };
                let mut values = vec![start; n];
                for (i, e) in v.iter().enumerate() {
                    let t = target(i);
                    values[t] = f(values[t], *e);
                }
                Tensor::real(out.dtype, shape, values)
            }
            Data::Int(v) => {
                let (low, high) = if out.dtype == DType::Bool { (0, 1) } else { (i64::MIN, i64::MAX) };
                let (start, f): (i64, fn(i64, i64) -> i64) = match self.kind {
                    ReduceKind::Sum => (0, i64::wrapping_add),
                    ReduceKind::Max => (low, i64::max),
                    ReduceKind::Min => (high, i64::min),
                };
                let mut values = vec![start; n];
                for (i, e) in v.iter().enumerate() {
                    let t = target(i);
                    values[t] = f(values[t], *e);
                }
                Tensor::int(out.dtype, shape, values)
            }
        }
    }

    fn flops(&self, args: &[TensorType], _: &TensorType, bindings: &Bindings) -> f64 {
        args[0].count(bindings).unwrap_or(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::testing::*;
    use super::*;

    fn op(kind: ReduceKind, axes: &[usize]) -> Reduce {
        Reduce { kind, axes: axes.to_vec() }
    }

    #[test]
    fn reduces_chosen_axes() {
        let x = Tensor::real(DType::F32, &[2, 3], vec![1., 5., 2., 4., 0., 3.]);
        assert_eq!(run(op(ReduceKind::Sum, &[1]), &[&x]).unwrap().reals(), [8., 7.]);
        assert_eq!(run(op(ReduceKind::Max, &[0]), &[&x]).unwrap().reals(), [4., 5., 3.]);
        assert_eq!(run(op(ReduceKind::Min, &[0, 1]), &[&x]).unwrap().reals(), [0.]);
    }

    #[test]
    fn constraints() {
        let x = wave(&[2, 3]);
        assert_eq!(run(op(ReduceKind::Sum, &[2]), &[&x]).unwrap_err().constraint, "C1");
        assert_eq!(run(op(ReduceKind::Sum, &[1, 0]), &[&x]).unwrap_err().constraint, "C1");
        let truth = Tensor::int(DType::Bool, &[2], vec![0, 1]);
        assert_eq!(run(op(ReduceKind::Sum, &[0]), &[&truth]).unwrap_err().constraint, "C2");
        assert_eq!(run(op(ReduceKind::Max, &[0]), &[&truth]).unwrap().ints(), [1]);
    }
}
