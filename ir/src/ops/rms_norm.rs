//! `rms_norm %x, %w {eps = 1e-6}`: `out = x · rsqrt(mean(x²) + eps) · w` over the last axis, in f32.
//!
//! - C1: `x` is f32 with at least one axis, whose last size is a constant.
//! - C2: `w` is a vector of that size, of reals.

use super::*;
use crate::attr::Real;
use crate::ops::map::MapFn;
use crate::ops::reduce::ReduceKind;
use hadal_types::DType;

/// See the module documentation.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RmsNorm {
    /// Added to the mean square.
    pub eps: Real,
}

impl OpDef for RmsNorm {
    const MNEMONICS: &'static [&'static str] = &["rms_norm"];
    const TIER: Tier = Tier::Composite;

    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        vec![("eps", self.eps.into())]
    }

    fn from_attrs(_: &str, attrs: &mut Attrs) -> Result<Self, AttrError> {
        Ok(RmsNorm { eps: attrs.get("eps")? })
    }

    fn infer(&self, args: &[TensorType]) -> Result<TensorType, Violation> {
        arity(args, 2)?;
        let (x, w) = (&args[0], &args[1]);
        let size = x.shape.last().and_then(|d| d.as_const());
        ensure!(x.dtype == DType::F32 && size.is_some(), "C1", "rms_norm of {x}");
        ensure!(w.dtype.is_float() && w.rank() == 1 && w.shape.last() == x.shape.last(), "C2", "weight {w} for {x}");
        Ok(x.clone())
    }

    fn eval(&self, args: &[&Tensor], out: &TensorType, shape: &[usize], _: &Bindings) -> Tensor {
        let (x, w) = (args[0].reals(), args[1].reals());
        let n = w.len();
        let mut values = Vec::with_capacity(x.len());
        for row in x.chunks(n.max(1)) {
            let mean = row.iter().map(|v| v * v).sum::<f64>() / n as f64;
            let scale = 1.0 / (mean + self.eps.0).sqrt();
            values.extend(row.iter().zip(w).map(|(v, w)| v * scale * w));
        }
        Tensor::real(out.dtype, shape, values)
    }

    fn decompose(&self, b: &mut Builder, args: &[ValueId]) -> Option<ValueId> {
        let (x, w) = (args[0], args[1]);
        let ty = b.ty(x).clone();
        let last = ty.rank() - 1;
        let n = ty.shape[last].as_const()?;
        let square = b.map(MapFn::Mul, &[x, x]);
        let sum = b.reduce(ReduceKind::Sum, &[last], square);
        let mean = b.mul_scalar(sum, 1.0 / n as f64);
        let shifted = b.add_scalar(mean, self.eps.0);
        let scale = b.map(MapFn::Rsqrt, &[shifted]);
        let scale = b.broadcast(scale, &ty.shape, &(0..last).collect::<Vec<_>>());
        let w = b.cast(w, DType::F32);
        let w = b.broadcast(w, &ty.shape, &[last]);
        let normed = b.map(MapFn::Mul, &[x, scale]);
        Some(b.map(MapFn::Mul, &[normed, w]))
    }

    fn flops(&self, args: &[TensorType], _: &TensorType, bindings: &Bindings) -> f64 {
        4.0 * args[0].count(bindings).unwrap_or(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::testing::*;
    use super::*;

    const OP: RmsNorm = RmsNorm { eps: Real(1e-6) };

    #[test]
    fn normalises_and_equals_its_decomposition() {
        let (x, w) = (wave(&[2, 3, 5]), wave(&[5]));
        let y = run(OP, &[&x, &w]).unwrap();
        assert_close(&y, &run_decomposed(OP, &[&x, &w]), 1e-12);
        let ones = Tensor::real(DType::BF16, &[2], vec![1., 1.]);
        let unit = run(OP, &[&Tensor::real(DType::F32, &[1, 2], vec![3., 3.]), &ones]).unwrap();
        assert!((unit.reals()[0] - 1.0).abs() < 1e-6);
    }

    #[test]
    fn constraints() {
        let ints = Tensor::int(DType::I32, &[2], vec![0, 0]);
        assert_eq!(run(OP, &[&ints, &wave(&[2])]).unwrap_err().constraint, "C1");
        assert_eq!(run(OP, &[&wave(&[2, 3]), &wave(&[2])]).unwrap_err().constraint, "C2");
    }
}
