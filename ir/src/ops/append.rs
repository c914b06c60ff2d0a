//! `append %state, %rows`: the rows of a state followed by new ones, `[P, …]` and `[T, …]` to `[P+T, …]`.
//!
//! The same as joining along axis 0, but said of a state: the old value is given up, and the rows are written behind it
//! in place. New real rows are rounded to the state's format. Behind a window, which has a fixed size, it is `[W, …]`
//! and `[T, …]` to `[W+T, …]`.
//!
//! - C1: both have at least one axis and equal sizes on all but the first.
//! - C2: both are reals, or of one format.

use super::*;
use hadal_types::DType;

/// See the module documentation.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Append;

impl OpDef for Append {
    const MNEMONICS: &'static [&'static str] = &["append"];
    const TIER: Tier = Tier::Primitive;

    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        Vec::new()
    }

    fn from_attrs(_: &str, _: &mut Attrs) -> Result<Self, AttrError> {
        Ok(Append)
    }

    fn infer(&self, args: &[TensorType]) -> Result<TensorType, Violation> {
        arity(args, 2)?;
        let (old, new) = (&args[0], &args[1]);
        let same = old.rank() == new.rank() && old.rank() >= 1 && old.shape[1..] == new.shape[1..];
        ensure!(same, "C1", "{new} does not continue {old}");
        let suits = old.dtype == new.dtype || old.dtype.is_float() && new.dtype.is_float();
        ensure!(suits, "C2", "{} after {}", new.dtype, old.dtype);
        let mut out = old.clone();
        out.shape[0] = old.shape[0].clone() + new.shape[0].clone();
        Ok(out)
    }

    fn eval(&self, args: &[&Tensor], out: &TensorType, shape: &[usize], _: &Bindings) -> Tensor {
        if !out.dtype.is_float() {
            return Tensor::int(out.dtype, shape, [args[0].ints(), args[1].ints()].concat());
        }
        // As in `cast`, f32 is the working format and keeps the reference's extra precision.
        let round = |v: &f64| if out.dtype == DType::F32 { *v } else { out.dtype.round(*v) };
        let values = args[0].reals().iter().copied().chain(args[1].reals().iter().map(round));
        Tensor::real(out.dtype, shape, values.collect())
    }

    fn flops(&self, _: &[TensorType], _: &TensorType, _: &Bindings) -> f64 {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::testing::*;
    use super::*;

    #[test]
    fn rounds_new_rows_only() {
        let old = Tensor::real(DType::BF16, &[1, 1], vec![1.5]);
        let new = Tensor::real(DType::F32, &[1, 1], vec![1.003]);
        assert_eq!(run(Append, &[&old, &new]).unwrap().reals(), [1.5, 1.0]);
    }

    #[test]
    fn constraints() {
        assert_eq!(run(Append, &[&wave(&[1, 2]), &wave(&[1, 3])]).unwrap_err().constraint, "C1");
        let (a, b) = (Tensor::int(DType::I32, &[1], vec![4]), Tensor::int(DType::I32, &[2], vec![5, 6]));
        assert_eq!(run(Append, &[&a, &b]).unwrap().ints(), [4, 5, 6]);
        assert_eq!(run(Append, &[&a, &Tensor::int(DType::I64, &[1], vec![0])]).unwrap_err().constraint, "C2");
        assert_eq!(run(Append, &[&a, &wave(&[1])]).unwrap_err().constraint, "C2");
    }
}
