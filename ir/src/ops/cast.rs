//! `cast %x {to = bf16}`: another element format. Reals round to nearest even; reals to integers truncate and
//! saturate, integers to integers wrap; a truth value becomes 0 or 1.
//!
//! - C1: no cast to a truth value (compare instead), nor to integers of four bits, which only weights are stored in.

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
        ensure!(!matches!(self.to, DType::Bool | DType::U4 | DType::I4), "C1", "a cast to {}", self.to);
        Ok(args[0].with_dtype(self.to))
    }

    fn eval(&self, args: &[&Tensor], _: &TensorType, shape: &[usize], _: &Bindings) -> Tensor {
        let x = args[0];
        // f32 is the working format: widening to it loses nothing, and the reference keeps its extra precision. What is
        // rounded further is an f32 first, so that it lies on the same edges as in kernels.
        let narrow = |v: f64| if x.dtype == DType::F32 { v as f32 as f64 } else { v };
        let round = |v: f64| if self.to == DType::F32 { v } else { self.to.round(narrow(v)) };
        match (&x.data, self.to.is_float()) {
            (Data::Int(v), false) => Tensor::int(self.to, shape, v.iter().map(|x| wrap(self.to, *x)).collect()),
            (Data::Real(v), false) => Tensor::int(self.to, shape, v.iter().map(|x| saturate(self.to, *x)).collect()),
            (_, true) => Tensor::real(self.to, shape, (0..x.len()).map(|i| round(x.at(i))).collect()),
        }
    }
}

/// `x` modulo the size of an integer format.
pub(crate) fn wrap(to: DType, x: i64) -> i64 {
    match to {
        DType::U8 => x as u8 as i64,
        DType::I8 => x as i8 as i64,
        DType::I32 => x as i32 as i64,
        _ => x,
    }
}

/// `x` towards zero, and at most what an integer format holds.
fn saturate(to: DType, x: f64) -> i64 {
    match to {
        DType::U8 => x as u8 as i64,
        DType::I8 => x as i8 as i64,
        DType::I32 => x as i32 as i64,
        _ => x as i64,
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
        let big = Tensor::real(DType::F32, &[1], vec![3e9]);
        assert_eq!(run(Cast { to: DType::I32 }, &[&big]).unwrap().ints(), [i32::MAX as i64]);
        let wide = Tensor::int(DType::I64, &[1], vec![5_000_000_000]);
        assert_eq!(run(Cast { to: DType::I32 }, &[&wide]).unwrap().ints(), [705_032_704]);
    }

    #[test]
    fn edges_are_those_of_f32() {
        // Half-way between 16 and 18 but for what an f32 does not hold.
        let x = Tensor::real(DType::F32, &[1], vec![17.0 + 1e-9]);
        assert_eq!(run(Cast { to: DType::F8E4M3 }, &[&x]).unwrap().reals(), [16.0]);
        assert_eq!(run(Cast { to: DType::F32 }, &[&x]).unwrap(), x);
        let wide = Tensor::real(DType::F64, &[1], vec![17.0 + 1e-9]);
        assert_eq!(run(Cast { to: DType::F8E4M3 }, &[&wide]).unwrap().reals(), [18.0]);
    }

    #[test]
    fn constraints() {
        assert_eq!(run(Cast { to: DType::Bool }, &[&wave(&[1])]).unwrap_err().constraint, "C1");
    }
}
