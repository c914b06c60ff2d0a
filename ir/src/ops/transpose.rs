//! `transpose %x {perm = [1, 0]}`: result axis `i` is operand axis `perm[i]`.
//!
//! - C1: `perm` names every operand axis once.

use super::*;
use crate::tensor::{coordinates, position};

/// See the module documentation.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Transpose {
    /// The operand axis of each result axis.
    pub perm: Vec<usize>,
}

impl OpDef for Transpose {
    const MNEMONICS: &'static [&'static str] = &["transpose"];
    const TIER: Tier = Tier::Primitive;
    const VIEW: bool = true;

    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        vec![("perm", Attr::list(self.perm.iter().copied()))]
    }

    fn from_attrs(_: &str, attrs: &mut Attrs) -> Result<Self, AttrError> {
        Ok(Transpose { perm: attrs.get("perm")? })
    }

    fn infer(&self, args: &[TensorType]) -> Result<TensorType, Violation> {
        arity(args, 1)?;
        let mut sorted = self.perm.clone();
        sorted.sort_unstable();
        ensure!(sorted.iter().copied().eq(0..args[0].rank()), "C1", "{:?} does not permute {}", self.perm, args[0]);
        Ok(TensorType { dtype: args[0].dtype, shape: self.perm.iter().map(|p| args[0].shape[*p].clone()).collect() })
    }

    fn eval(&self, args: &[&Tensor], _: &TensorType, shape: &[usize], _: &Bindings) -> Tensor {
        let (mut at, mut from) = (Vec::new(), vec![0; shape.len()]);
        args[0].pick(shape, |i| {
            coordinates(shape, i, &mut at);
            self.perm.iter().zip(&at).for_each(|(p, c)| from[*p] = *c);
            position(&args[0].shape, &from)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::testing::*;
    use super::*;

    #[test]
    fn swaps_axes() {
        let x = Tensor::real(hadal_types::DType::F32, &[2, 3], (0..6).map(f64::from).collect());
        assert_eq!(run(Transpose { perm: vec![1, 0] }, &[&x]).unwrap().reals(), [0., 3., 1., 4., 2., 5.]);
    }

    #[test]
    fn constraints() {
        let x = wave(&[2, 3]);
        assert_eq!(run(Transpose { perm: vec![0, 0] }, &[&x]).unwrap_err().constraint, "C1");
        assert_eq!(run(Transpose { perm: vec![0] }, &[&x]).unwrap_err().constraint, "C1");
    }
}
