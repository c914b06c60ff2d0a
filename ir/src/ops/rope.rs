//! `rope %x, %cos, %sin {interleaved = true}`: rotates pairs of the last axis by a position-dependent angle.
//!
//! `x` is `[T, …, D]`, `cos` and `sin` `[T, D/2]`. Pair `i` is `(2i, 2i+1)` when interleaved, else `(i, i + D/2)`;
//! `(a, b)` becomes `(a·cos - b·sin, b·cos + a·sin)`, in place order.
//!
//! - C1: `x` is f32, has at least two axes, and an even constant last size.
//! - C2: `cos` and `sin` are f32 `[T, D/2]`.

use super::*;
use crate::ops::map::MapFn;
use hadal_types::DType;

/// See the module documentation.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Rope {
    /// Whether pairs are neighbours rather than halves.
    pub interleaved: bool,
}

impl OpDef for Rope {
    const MNEMONICS: &'static [&'static str] = &["rope"];
    const TIER: Tier = Tier::Composite;

    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        vec![("interleaved", self.interleaved.into())]
    }

    fn from_attrs(_: &str, attrs: &mut Attrs) -> Result<Self, AttrError> {
        Ok(Rope { interleaved: attrs.get("interleaved")? })
    }

    fn infer(&self, args: &[TensorType]) -> Result<TensorType, Violation> {
        arity(args, 3)?;
        let x = &args[0];
        let size = x.shape.last().and_then(|d| d.as_const()).filter(|n| n % 2 == 0);
        ensure!(x.dtype == DType::F32 && x.rank() >= 2 && size.is_some(), "C1", "rope of {x}");
        let table = TensorType::new(DType::F32, [x.shape[0].clone(), (size.unwrap_or(0) / 2).into()]);
        ensure!(args[1] == table && args[2] == table, "C2", "{} and {} where {table} is needed", args[1], args[2]);
        Ok(x.clone())
    }

    fn eval(&self, args: &[&Tensor], out: &TensorType, shape: &[usize], _: &Bindings) -> Tensor {
        let (x, cos, sin) = (args[0].reals(), args[1].reals(), args[2].reals());
        let d = shape[shape.len() - 1];
        let half = d / 2;
        let rows_per_token = shape[1..shape.len() - 1].iter().product::<usize>();
        let mut values = x.to_vec();
        for row in 0..x.len().checked_div(d).unwrap_or(0) {
            let token = row / rows_per_token;
            for i in 0..half {
                let (a, b) = if self.interleaved { (2 * i, 2 * i + 1) } else { (i, i + half) };
                let (c, s) = (cos[token * half + i], sin[token * half + i]);
                values[row * d + a] = x[row * d + a] * c - x[row * d + b] * s;
                values[row * d + b] = x[row * d + b] * c + x[row * d + a] * s;
            }
        }
        Tensor::real(out.dtype, shape, values)
    }

    fn decompose(&self, b: &mut Builder, args: &[ValueId]) -> Option<ValueId> {
        let shape = b.ty(args[0]).shape.clone();
        let last = shape.len() - 1;
        let half = shape[last].as_const()? / 2;
        let (start, step) = if self.interleaved { (1, 2) } else { (half, 1) };
        let first = b.slice(args[0], last, 0, half, step);
        let second = b.slice(args[0], last, start, half, step);
        let mut half_shape = shape.clone();
        half_shape[last] = half.into();
        let cos = b.broadcast(args[1], &half_shape, &[0, last]);
        let sin = b.broadcast(args[2], &half_shape, &[0, last]);
        let [ac, bs] = [b.map(MapFn::Mul, &[first, cos]), b.map(MapFn::Mul, &[second, sin])];
        let [bc, as_] = [b.map(MapFn::Mul, &[second, cos]), b.map(MapFn::Mul, &[first, sin])];
        let first = b.map(MapFn::Sub, &[ac, bs]);
        let second = b.map(MapFn::Add, &[bc, as_]);
        if !self.interleaved {
            return Some(b.concat(&[first, second], last));
        }
        let mut pair_shape = half_shape;
        pair_shape.push(1.into());
        let pairs = [b.reshape(first, &pair_shape), b.reshape(second, &pair_shape)];
        let pairs = b.concat(&pairs, last + 1);
        Some(b.reshape(pairs, &shape))
    }

    fn flops(&self, args: &[TensorType], _: &TensorType, bindings: &Bindings) -> f64 {
        3.0 * args[0].count(bindings).unwrap_or(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::testing::*;
    use super::*;

    #[test]
    fn rotates_and_equals_its_decomposition() {
        let (x, cos, sin) = (wave(&[2, 3, 4]), wave(&[2, 2]), wave(&[2, 2]));
        for interleaved in [false, true] {
            let op = Rope { interleaved };
            let y = run(op.clone(), &[&x, &cos, &sin]).unwrap();
            assert_close(&y, &run_decomposed(op, &[&x, &cos, &sin]), 1e-12);
        }
        // A quarter turn: (1, 0) becomes (0, 1).
        let quarter = |v: f64| Tensor::real(DType::F32, &[1, 1], vec![v]);
        let x = Tensor::real(DType::F32, &[1, 2], vec![1., 0.]);
        let y = run(Rope { interleaved: true }, &[&x, &quarter(0.), &quarter(1.)]).unwrap();
        assert_eq!(y.reals(), [0., 1.]);
    }

    #[test]
    fn constraints() {
        let op = Rope { interleaved: false };
        let table = wave(&[2, 2]);
        assert_eq!(run(op.clone(), &[&wave(&[2, 3]), &table, &table]).unwrap_err().constraint, "C1");
        assert_eq!(run(op, &[&wave(&[3, 4]), &table, &table]).unwrap_err().constraint, "C2");
    }
}
