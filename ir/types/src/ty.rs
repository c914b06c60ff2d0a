//! Tensor types.

use crate::{Bindings, DType, Dim, Sym};
use serde::{Deserialize, Serialize};
use std::fmt;

/// An element format and a shape, row-major. Prints as `f32[T, 256]`; a scalar is `f32[]`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TensorType {
    /// Element format.
    pub dtype: DType,
    /// Sizes, outermost first.
    pub shape: Vec<Dim>,
}

impl TensorType {
    /// The type with `dtype` and `shape`.
    pub fn new(dtype: DType, shape: impl IntoIterator<Item = impl Into<Dim>>) -> Self {
        TensorType { dtype, shape: shape.into_iter().map(Into::into).collect() }
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// The same shape with another element format.
    pub fn with_dtype(&self, dtype: DType) -> Self {
        TensorType { dtype, shape: self.shape.clone() }
    }

    /// Sizes under `bindings`; `Err` names a symbol that has no value.
    pub fn eval_shape(&self, bindings: &Bindings) -> Result<Vec<usize>, Sym> {
        self.shape.iter().map(|d| Ok(d.eval(bindings)?.max(0) as usize)).collect()
    }

    /// Elements under `bindings`, as a float so that planned sizes of any magnitude fit.
    pub fn count(&self, bindings: &Bindings) -> Result<f64, Sym> {
        self.shape.iter().try_fold(1.0, |n, d| Ok(n * d.eval(bindings)?.max(0) as f64))
    }

    /// The type with the symbols in `bindings` replaced by their values.
    pub fn substitute(&self, bindings: &Bindings) -> Self {
        TensorType { dtype: self.dtype, shape: self.shape.iter().map(|d| d.substitute(bindings)).collect() }
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.dtype)?;
        for (i, d) in self.shape.iter().enumerate() {
            write!(f, "{}{d}", if i > 0 { ", " } else { "" })?;
        }
        f.write_str("]")
    }
}

impl fmt::Debug for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
