//! `slice %x {axis = 1, start = 0, len = 8, step = 2}`: elements `start, start+step, …` of one axis, `len` of them.
//!
//! - C1: the axis exists.
//! - C2: `step` is at least 1, and the last element exists wherever the sizes are known.

use super::*;
use crate::tensor::{coordinates, position};
use hadal_types::Dim;

/// See the module documentation.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Slice {
    /// The axis that is cut.
    pub axis: usize,
    /// The first element.
    pub start: Dim,
    /// How many.
    pub len: Dim,
    /// The distance between them.
    pub step: usize,
}

impl OpDef for Slice {
    const MNEMONICS: &'static [&'static str] = &["slice"];
    const TIER: Tier = Tier::Primitive;
    const VIEW: bool = true;

    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        let mut attrs = vec![("axis", self.axis.into()), ("start", (&self.start).into()), ("len", (&self.len).into())];
        if self.step != 1 {
            attrs.push(("step", self.step.into()));
        }
        attrs
    }

    fn from_attrs(_: &str, attrs: &mut Attrs) -> Result<Self, AttrError> {
        Ok(Slice {
            axis: attrs.get("axis")?,
            start: attrs.get("start")?,
            len: attrs.get("len")?,
            step: attrs.get_or("step", 1)?,
        })
    }

    fn infer(&self, args: &[TensorType]) -> Result<TensorType, Violation> {
        arity(args, 1)?;
        axis_in(&args[0], self.axis)?;
        ensure!(self.step >= 1, "C2", "step {}", self.step);
        let step = i64::try_from(self.step).unwrap_or(i64::MAX);
        // Room left after the last element; known when every symbol cancels.
        let last = self.start.clone() + (self.len.clone() - 1i64) * step;
        if let Some(room) = (args[0].shape[self.axis].clone() - last - 1i64).as_const() {
            ensure!(room >= 0 || self.len.is(0), "C2", "{} elements from {} exceed {}", self.len, self.start, args[0]);
        }
        let negative = |d: &Dim| d.as_const().is_some_and(|n| n < 0);
        ensure!(!negative(&self.start) && !negative(&self.len), "C2", "start {} len {}", self.start, self.len);
        let mut shape = args[0].shape.clone();
        shape[self.axis] = self.len.clone();
        Ok(TensorType { dtype: args[0].dtype, shape })
    }

    fn eval(&self, args: &[&Tensor], _: &TensorType, shape: &[usize], bindings: &Bindings) -> Tensor {
        let start = self.start.eval(bindings).expect("every symbol is bound").max(0) as usize;
        let mut at = Vec::new();
        args[0].pick(shape, |i| {
            coordinates(shape, i, &mut at);
            at[self.axis] = start + at[self.axis] * self.step;
            position(&args[0].shape, &at)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::testing::*;
    use super::*;

    fn op(axis: usize, start: i64, len: i64, step: usize) -> Slice {
        Slice { axis, start: start.into(), len: len.into(), step }
    }

    #[test]
    fn takes_every_second() {
        let x = Tensor::real(hadal_types::DType::F32, &[2, 4], (0..8).map(f64::from).collect());
        assert_eq!(run(op(1, 1, 2, 2), &[&x]).unwrap().reals(), [1., 3., 5., 7.]);
        assert_eq!(run(op(0, 1, 1, 1), &[&x]).unwrap().reals(), [4., 5., 6., 7.]);
    }

    #[test]
    fn constraints() {
        let x = wave(&[2, 4]);
        assert_eq!(run(op(2, 0, 1, 1), &[&x]).unwrap_err().constraint, "C1");
        assert_eq!(run(op(1, 2, 3, 1), &[&x]).unwrap_err().constraint, "C2");
        assert_eq!(run(op(1, 0, 1, 0), &[&x]).unwrap_err().constraint, "C2");
        assert_eq!(run(op(1, -1, 1, 1), &[&x]).unwrap_err().constraint, "C2");
    }
}
