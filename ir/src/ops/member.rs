//! `member %i {len = P+T}`: `out[.., s]` is whether `s` occurs in the row `i[.., :]`, a truth value for each of `len`
//! positions.
//!
//! What a model writes to say "masked by a selection": `top_k` chooses, `member` makes a mask of it. Negative indices
//! and those from `len` on stand for nothing.
//!
//! - C1: there is an axis.
//! - C2: indices are integers.

use super::*;
use hadal_types::{DType, Dim};

/// See the module documentation.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Member {
    /// How many positions there are.
    pub len: Dim,
}

impl OpDef for Member {
    const MNEMONICS: &'static [&'static str] = &["member"];
    const TIER: Tier = Tier::Primitive;

    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        vec![("len", (&self.len).into())]
    }

    fn from_attrs(_: &str, attrs: &mut Attrs) -> Result<Self, AttrError> {
        Ok(Member { len: attrs.get("len")? })
    }

    fn infer(&self, args: &[TensorType]) -> Result<TensorType, Violation> {
        arity(args, 1)?;
        ensure!(args[0].rank() >= 1, "C1", "a scalar has no last axis");
        ensure!(args[0].dtype.is_int(), "C2", "indices are {}", args[0].dtype);
        let mut shape = args[0].shape.clone();
        *shape.last_mut().expect("there is an axis") = self.len.clone();
        Ok(TensorType { dtype: DType::Bool, shape })
    }

    fn eval(&self, args: &[&Tensor], out: &TensorType, shape: &[usize], _: &Bindings) -> Tensor {
        let (k, len) = (args[0].shape[shape.len() - 1], shape[shape.len() - 1]);
        let mut values = vec![0; shape.iter().product()];
        for (n, i) in args[0].ints().iter().enumerate() {
            if let Some(s) = usize::try_from(*i).ok().filter(|s| *s < len) {
                values[n / k * len + s] = 1;
            }
        }
        Tensor::int(out.dtype, shape, values)
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
    fn marks_what_was_chosen() {
        let i = Tensor::int(DType::I32, &[2, 3], vec![3, 1, 1, -1, 4, 0]);
        let y = run(Member { len: 4.into() }, &[&i]).unwrap();
        assert_eq!((y.dtype, y.ints()), (DType::Bool, [0, 1, 0, 1, 1, 0, 0, 0].as_slice()));
        let none = Tensor::int(DType::I32, &[1, 0], vec![]);
        assert_eq!(run(Member { len: 2.into() }, &[&none]).unwrap().ints(), [0, 0]);
        assert_eq!(run(Member { len: 0.into() }, &[&i]).unwrap().len(), 0);
    }

    #[test]
    fn constraints() {
        let op = Member { len: 4.into() };
        assert_eq!(run(op.clone(), &[&Tensor::int(DType::I32, &[], vec![0])]).unwrap_err().constraint, "C1");
        assert_eq!(run(op, &[&wave(&[2])]).unwrap_err().constraint, "C2");
    }
}
