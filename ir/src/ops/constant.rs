//! `constant {value = 0.5, dtype = f32}`: a scalar; `constant {values = [1.0, 2.0], dtype = f32}`: a vector.
//!
//! - C1: integer formats hold whole numbers within their range (i64: within ±2^53), and `bool` 0 or 1.

use super::*;
use crate::attr::Real;
use hadal_types::DType;

/// See the module documentation.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Constant {
    /// The elements.
    pub values: Vec<Real>,
    /// Whether it is a scalar (then there is one element) rather than a vector.
    pub scalar: bool,
    /// The format.
    pub dtype: DType,
}

impl Constant {
    /// A scalar.
    pub fn scalar(value: f64, dtype: DType) -> Constant {
        Constant { values: vec![Real(value)], scalar: true, dtype }
    }

    /// A vector of f32.
    pub fn vector(values: impl IntoIterator<Item = f64>) -> Constant {
        Constant { values: values.into_iter().map(Real).collect(), scalar: false, dtype: DType::F32 }
    }
}

impl OpDef for Constant {
    const MNEMONICS: &'static [&'static str] = &["constant"];
    const TIER: Tier = Tier::Primitive;

    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        let value = match self.scalar {
            true => ("value", self.values[0].into()),
            false => ("values", Attr::list(self.values.iter().copied())),
        };
        vec![value, ("dtype", self.dtype.into())]
    }

    fn from_attrs(_: &str, attrs: &mut Attrs) -> Result<Self, AttrError> {
        let dtype = attrs.get("dtype")?;
        let scalar = attrs.0.iter().any(|(n, _)| n == "value");
        let values = if scalar { vec![attrs.get("value")?] } else { attrs.get("values")? };
        Ok(Constant { values, scalar, dtype })
    }

    fn infer(&self, args: &[TensorType]) -> Result<TensorType, Violation> {
        arity(args, 0)?;
        for Real(v) in &self.values {
            let (low, high) = match self.dtype {
                DType::Bool => (0.0, 1.0),
                DType::U8 => (0.0, 255.0),
                DType::I8 => (-128.0, 127.0),
                DType::U4 => (0.0, 15.0),
                DType::I4 => (-8.0, 7.0),
                DType::I32 => (i32::MIN as f64, i32::MAX as f64),
                // Held as a real, which has 53 bits.
                _ => (-9007199254740992.0, 9007199254740992.0),
            };
            let fits = self.dtype.is_float() || (v.fract() == 0.0 && (low..=high).contains(v));
            ensure!(fits, "C1", "{v} as {}", self.dtype);
        }
        let shape = if self.scalar { vec![] } else { vec![self.values.len()] };
        Ok(TensorType::new(self.dtype, shape))
    }

    fn eval(&self, _: &[&Tensor], out: &TensorType, shape: &[usize], _: &Bindings) -> Tensor {
        let values = self.values.iter().map(|v| v.0);
        match out.dtype.is_float() {
            true => Tensor::real(out.dtype, shape, values.collect()),
            false => Tensor::int(out.dtype, shape, values.map(|v| v as i64).collect()),
        }
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
    fn scalars_and_vectors() {
        assert_eq!(run(Constant::scalar(0.5, DType::F32), &[]).unwrap().shape, [0usize; 0]);
        assert_eq!(run(Constant::vector([1., 2.]), &[]).unwrap().reals(), [1., 2.]);
        assert_eq!(run(Constant::scalar(0.5, DType::I32), &[]).unwrap_err().constraint, "C1");
        assert_eq!(run(Constant::scalar(2.0, DType::Bool), &[]).unwrap_err().constraint, "C1");
    }
}
