//! `broadcast %x {shape = [T, 8], dims = [1]}`: repeats `x` along the result axes that `dims` does not name.
//!
//! Operand axis `i` becomes result axis `dims[i]`.
//!
//! - C1: one entry in `dims` per operand axis, ascending, each a result axis.
//! - C2: the named result axes have the operand's sizes.

use super::*;
use crate::tensor::{coordinates, position};
use hadal_types::Dim;

/// See the module documentation.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Broadcast {
    /// The result's shape.
    pub shape: Vec<Dim>,
    /// The result axis of each operand axis.
    pub dims: Vec<usize>,
}

impl OpDef for Broadcast {
    const MNEMONICS: &'static [&'static str] = &["broadcast"];
    const TIER: Tier = Tier::Primitive;
    const VIEW: bool = true;

    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        vec![("shape", Attr::list(&self.shape)), ("dims", Attr::list(self.dims.iter().copied()))]
    }

    fn from_attrs(_: &str, attrs: &mut Attrs) -> Result<Self, AttrError> {
        Ok(Broadcast { shape: attrs.get("shape")?, dims: attrs.get("dims")? })
    }

    fn infer(&self, args: &[TensorType]) -> Result<TensorType, Violation> {
        arity(args, 1)?;
        let ok = self.dims.len() == args[0].rank()
            && self.dims.is_sorted_by(|a, b| a < b)
            && self.dims.iter().all(|d| *d < self.shape.len());
        ensure!(ok, "C1", "dims {:?} do not place the axes of {} in {:?}", self.dims, args[0], self.shape);
        for (size, d) in args[0].shape.iter().zip(&self.dims) {
            ensure!(*size == self.shape[*d], "C2", "axis {d} is {} for an operand axis of {size}", self.shape[*d]);
        }
        Ok(TensorType { dtype: args[0].dtype, shape: self.shape.clone() })
    }

    fn eval(&self, args: &[&Tensor], _: &TensorType, shape: &[usize], _: &Bindings) -> Tensor {
        let mut at = Vec::new();
        args[0].pick(shape, |i| {
            coordinates(shape, i, &mut at);
            let from: Vec<usize> = self.dims.iter().map(|d| at[*d]).collect();
            position(&args[0].shape, &from)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::testing::*;
    use super::*;

    fn op(shape: &[i64], dims: &[usize]) -> Broadcast {
        Broadcast { shape: shape.iter().map(|n| Dim::from(*n)).collect(), dims: dims.to_vec() }
    }

    #[test]
    fn repeats() {
        let x = Tensor::real(hadal_types::DType::F32, &[2], vec![1., 2.]);
        assert_eq!(run(op(&[2, 2], &[0]), &[&x]).unwrap().reals(), [1., 1., 2., 2.]);
        assert_eq!(run(op(&[2, 2], &[1]), &[&x]).unwrap().reals(), [1., 2., 1., 2.]);
    }

    #[test]
    fn constraints() {
        let x = wave(&[2]);
        assert_eq!(run(op(&[2, 2], &[2]), &[&x]).unwrap_err().constraint, "C1");
        assert_eq!(run(op(&[2, 2], &[]), &[&x]).unwrap_err().constraint, "C1");
        assert_eq!(run(op(&[3, 2], &[0]), &[&x]).unwrap_err().constraint, "C2");
    }
}
