//! `cast %x {to = bf16}`: another element format. Reals round to nearest even; reals to integers truncate; a truth
//! value becomes 0 or 1.
//!
//! - C1: no cast to a truth value (compare instead).

use super::*;
use crate::tensor::Data;
use hadal_types::DType;

/// See the module documentation.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Cast {
    /// The result's format.
    pub to: DType,
}

impl OpDef for Cast {
    const MNEMONICS: &'static [&'static str] = &["cast"];
    const TIER: Tier = Tier::Primitive;

    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        vec![("to", self.to.into())]
    }

    fn from_attrs(_: &str, attrs: &mut Attrs) -> Result<Self, AttrError> {
        Ok(Cast { to: attrs.get("to")? })
    }

    fn infer(&self, args: &[TensorType]) -> Result<TensorType, Violation> {
        arity(args, 1)?;
        ensure!(self.to != DType::Bool, "C1", "a cast to bool");
        Ok(args[0].with_dtype(self.to))
    }

    fn eval(&self, args: &[&Tensor], _: &TensorType, shape: &[usize], _: &Bindings) -> Tensor {
        let x = args[0];
        // f32 is the working format: widening to it loses nothing, and the reference keeps its extra precision.
        let round = |v: f64| if self.to == DType::F32 { v } else { self.to.round(v) };
        match (&x.data, self.to.is_float()) {
            (Data::Int(v), false) => Tensor::int(self.to, shape, v.clone()),
            (Data::Real(v), false) => Tensor::int(self.to, shape, v.iter().map(|x| *x as i64).collect()),
            (_, true) => Tensor::real(self.to, shape, (0..x.len()).map(|i| round(x.at(i))).collect()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::*;
    use super::*;

    #[test]
    fn rounds_to_the_format() {
        let x = Tensor::real(DType::F32, &[2], vec![1.003, -2.7]);
        assert_eq!(run(Cast { to: DType::BF16 }, &[&x]).unwrap().reals(), [1.0, -2.703125]);
        assert_eq!(run(Cast { to: DType::I32 }, &[&x]).unwrap().ints(), [1, -2]);
    }

    #[test]
    fn constraints() {
        assert_eq!(run(Cast { to: DType::Bool }, &[&wave(&[1])]).unwrap_err().constraint, "C1");
    }
}
