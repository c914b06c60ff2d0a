//! `sinkhorn %x {rounds = 20, eps = 1e-6}`: makes the matrices of the last two axes nearly doubly stochastic (sheet
//! `mhc`).
//!
//! ```text
//! C = softmax over the last axis of x, + eps;   C = C / (column sums + eps)
//! (rounds - 1) times:   C = C / (row sums + eps);   C = C / (column sums + eps)
//! ```
//!
//! Row sums are over the last axis, column sums over the one before. It ends on columns, so these sum to 1 up to `eps`.
//!
//! - C1: `x` is f32 with at least two axes, the last two of constant size.
//! - C2: `rounds` is 1 to 1000, and `eps` a finite number above zero.

use super::*;
use crate::attr::Real;
use crate::ops::map::MapFn;
use crate::ops::reduce::ReduceKind;
use hadal_types::DType;

/// See the module documentation.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Sinkhorn {
    /// How often columns are normalised.
    pub rounds: usize,
    /// Added to the softmax and to every sum.
    pub eps: Real,
}

impl OpDef for Sinkhorn {
    const MNEMONICS: &'static [&'static str] = &["sinkhorn"];
    const TIER: Tier = Tier::Composite;

    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        vec![("rounds", self.rounds.into()), ("eps", self.eps.into())]
    }

    fn from_attrs(_: &str, attrs: &mut Attrs) -> Result<Self, AttrError> {
        Ok(Sinkhorn { rounds: attrs.get("rounds")?, eps: attrs.get("eps")? })
    }

    fn infer(&self, args: &[TensorType]) -> Result<TensorType, Violation> {
        arity(args, 1)?;
        let x = &args[0];
        let sized = x.rank() >= 2 && x.shape[x.rank() - 2..].iter().all(|d| d.as_const().is_some());
        ensure!(x.dtype == DType::F32 && sized, "C1", "sinkhorn of {x}");
        let above_zero = self.eps.0.is_finite() && self.eps.0 > 0.0;
        ensure!((1..=1000).contains(&self.rounds) && above_zero, "C2", "{} rounds with {}", self.rounds, self.eps.0);
        Ok(x.clone())
    }

    fn eval(&self, args: &[&Tensor], out: &TensorType, shape: &[usize], bindings: &Bindings) -> Tensor {
        let eps = self.eps.0;
        let [rows, columns] = [shape[shape.len() - 2], shape[shape.len() - 1]];
        let mut values = Softmax.eval(args, out, shape, bindings).reals().to_vec();
        values.iter_mut().for_each(|v| *v += eps);
        for matrix in values.chunks_mut((rows * columns).max(1)) {
            for round in 0..self.rounds {
                for row in matrix.chunks_mut(columns).filter(|_| round > 0) {
                    let sum: f64 = row.iter().sum();
                    row.iter_mut().for_each(|v| *v /= sum + eps);
                }
                for column in 0..columns {
                    let sum: f64 = matrix.iter().skip(column).step_by(columns).sum();
                    matrix.iter_mut().skip(column).step_by(columns).for_each(|v| *v /= sum + eps);
                }
            }
        }
        Tensor::real(out.dtype, shape, values)
    }

    fn decompose(&self, b: &mut Builder, args: &[ValueId]) -> Option<ValueId> {
        let shape = b.ty(args[0]).shape.clone();
        let (row, column) = (shape.len() - 1, shape.len() - 2);
        let mut c = b.op(Softmax, &[args[0]]);
        c = b.add_scalar(c, self.eps.0);
        let normalised = |b: &mut Builder, c: ValueId, axis: usize| {
            let kept: Vec<usize> = (0..shape.len()).filter(|d| *d != axis).collect();
            let sum = b.reduce(ReduceKind::Sum, &[axis], c);
            let sum = b.add_scalar(sum, self.eps.0);
            let sum = b.broadcast(sum, &shape, &kept);
            b.map(MapFn::Div, &[c, sum])
        };
        for round in 0..self.rounds {
            if round > 0 {
                c = normalised(b, c, row);
            }
            c = normalised(b, c, column);
        }
        Some(c)
    }

    fn flops(&self, args: &[TensorType], _: &TensorType, bindings: &Bindings) -> f64 {
        (4.0 * self.rounds as f64 + 4.0) * args[0].count(bindings).unwrap_or(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::testing::*;
    use super::*;

    fn op(rounds: usize) -> Sinkhorn {
        Sinkhorn { rounds, eps: Real(1e-6) }
    }

    #[test]
    fn is_nearly_doubly_stochastic_and_equals_its_decomposition() {
        let x = wave(&[3, 4, 4]);
        let y = run(op(20), &[&x]).unwrap();
        assert_close(&y, &run_decomposed(op(20), &[&x]), 1e-12);
        for matrix in y.reals().chunks(16) {
            for i in 0..4 {
                let row: f64 = matrix[4 * i..][..4].iter().sum();
                let column: f64 = matrix.iter().skip(i).step_by(4).sum();
                assert!((column - 1.0).abs() < 1e-5, "{column}");
                assert!((row - 1.0).abs() < 1e-2, "{row}");
            }
        }
    }

    #[test]
    fn one_round_is_a_softmax_and_its_columns() {
        let x = Tensor::real(DType::F32, &[2, 2], vec![0., 0., 0., libm::log(3.0)]);
        let y = run(Sinkhorn { rounds: 1, eps: Real(1e-30) }, &[&x]).unwrap();
        // Rows (1/2, 1/2) and (1/4, 3/4), whose columns sum to 3/4 and 5/4.
        assert_close(&y, &Tensor::real(DType::F32, &[2, 2], vec![2. / 3., 0.4, 1. / 3., 0.6]), 1e-12);
        assert_close(&y, &run_decomposed(Sinkhorn { rounds: 1, eps: Real(1e-30) }, &[&x]), 1e-12);
        assert_eq!(run(op(2), &[&wave(&[0, 4, 4])]).unwrap().len(), 0);
    }

    #[test]
    fn constraints() {
        assert_eq!(run(op(2), &[&wave(&[3])]).unwrap_err().constraint, "C1");
        assert_eq!(run(op(0), &[&wave(&[3, 3])]).unwrap_err().constraint, "C2");
        assert_eq!(run(Sinkhorn { rounds: 2, eps: Real(0.0) }, &[&wave(&[3, 3])]).unwrap_err().constraint, "C2");
    }
}
