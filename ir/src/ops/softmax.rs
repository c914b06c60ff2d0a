//! `softmax %x`: `exp(x - max) / Σ exp(x - max)` over the last axis.
//!
//! A row of only -∞ is zeros: nothing is chosen where nothing can be. So the maximum counts as at least -1e30, and the
//! sum as at least 1, which it is wherever an element is above that.
//!
//! - C1: `x` is f32 with at least one axis.

use super::*;
use crate::ops::map::MapFn;
use crate::ops::reduce::ReduceKind;
use hadal_types::DType;

/// What is not above this counts as -∞.
pub(super) const NOTHING: f64 = -1e30;

/// See the module documentation.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Softmax;

impl OpDef for Softmax {
    const MNEMONICS: &'static [&'static str] = &["softmax"];
    const TIER: Tier = Tier::Composite;

    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        Vec::new()
    }

    fn from_attrs(_: &str, _: &mut Attrs) -> Result<Self, AttrError> {
        Ok(Softmax)
    }

    fn infer(&self, args: &[TensorType]) -> Result<TensorType, Violation> {
        arity(args, 1)?;
        ensure!(args[0].dtype == DType::F32 && args[0].rank() >= 1, "C1", "softmax of {}", args[0]);
        Ok(args[0].clone())
    }

    fn eval(&self, args: &[&Tensor], out: &TensorType, shape: &[usize], _: &Bindings) -> Tensor {
        let n = shape[shape.len() - 1];
        let mut values = Vec::with_capacity(args[0].len());
        for row in args[0].reals().chunks(n.max(1)) {
            let max = row.iter().copied().fold(NOTHING, f64::max);
            let exps: Vec<f64> = row.iter().map(|v| libm::exp(v - max)).collect();
            let sum: f64 = exps.iter().sum();
            let sum = if 1.0 > sum { 1.0 } else { sum };
            values.extend(exps.iter().map(|e| e / sum));
        }
        Tensor::real(out.dtype, shape, values)
    }

    fn decompose(&self, b: &mut Builder, args: &[ValueId]) -> Option<ValueId> {
        let shape = b.ty(args[0]).shape.clone();
        let last = shape.len() - 1;
        let rows: Vec<usize> = (0..last).collect();
        let max = b.reduce(ReduceKind::Max, &[last], args[0]);
        let least = b.scalar_like(max, NOTHING);
        let max = b.map(MapFn::Max, &[max, least]);
        let max = b.broadcast(max, &shape, &rows);
        let shifted = b.map(MapFn::Sub, &[args[0], max]);
        let exps = b.map(MapFn::Exp, &[shifted]);
        let sum = b.reduce(ReduceKind::Sum, &[last], exps);
        // The order of operands keeps a sum that is not a number.
        let one = b.scalar_like(sum, 1.0);
        let sum = b.map(MapFn::Max, &[one, sum]);
        let sum = b.broadcast(sum, &shape, &rows);
        Some(b.map(MapFn::Div, &[exps, sum]))
    }

    fn flops(&self, args: &[TensorType], _: &TensorType, bindings: &Bindings) -> f64 {
        5.0 * args[0].count(bindings).unwrap_or(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::testing::*;
    use super::*;

    #[test]
    fn sums_to_one_and_equals_its_decomposition() {
        let x = wave(&[3, 4]);
        let y = run(Softmax, &[&x]).unwrap();
        assert!((y.reals()[..4].iter().sum::<f64>() - 1.0).abs() < 1e-12);
        assert_close(&y, &run_decomposed(Softmax, &[&x]), 1e-12);
    }

    #[test]
    fn nothing_to_choose_from_is_zeros() {
        let inf = f64::NEG_INFINITY;
        let x = Tensor::real(DType::F32, &[3, 2], vec![inf, inf, inf, -1e9, -5e8, f64::NAN]);
        for y in [run(Softmax, &[&x]).unwrap(), run_decomposed(Softmax, &[&x])] {
            assert_eq!(y.reals()[..4], [0., 0., 0., 1.]);
            assert!(y.reals()[4].is_nan() && y.reals()[5].is_nan());
        }
        assert_eq!(run(Softmax, &[&wave(&[2, 0])]).unwrap().len(), 0);
    }

    #[test]
    fn constraints() {
        assert_eq!(run(Softmax, &[&wave(&[])]).unwrap_err().constraint, "C1");
    }
}
