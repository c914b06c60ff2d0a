//! `top_k %x {k = 8}`: the indices (i32) of the `k` largest elements of the last axis, largest first; of equal ones the
//! lower index first. Values are had by `gather`.
//!
//! -∞ and NaN are never chosen. Where fewer than `k` can be, because of that or because the axis is shorter, the places
//! left over, which come last, hold -1: `gather` makes zeros of them, and `member` and a selection of `attention` skip
//! them.
//!
//! - C1: there is an axis.
//! - C2: `k` is at least 1.
//! - C3: the operand holds numbers.

use super::*;
use hadal_types::DType;

/// See the module documentation.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TopK {
    /// How many.
    pub k: usize,
}

impl OpDef for TopK {
    const MNEMONICS: &'static [&'static str] = &["top_k"];
    const TIER: Tier = Tier::Primitive;

    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        vec![("k", self.k.into())]
    }

    fn from_attrs(_: &str, attrs: &mut Attrs) -> Result<Self, AttrError> {
        Ok(TopK { k: attrs.get("k")? })
    }

    fn infer(&self, args: &[TensorType]) -> Result<TensorType, Violation> {
        arity(args, 1)?;
        ensure!(args[0].rank() >= 1, "C1", "a scalar has no last axis");
        ensure!(self.k >= 1, "C2", "k = {} of {}", self.k, args[0]);
        ensure!(args[0].dtype != DType::Bool, "C3", "top-k of truth values");
        let mut shape = args[0].shape.clone();
        *shape.last_mut().expect("there is an axis") = self.k.into();
        Ok(TensorType { dtype: DType::I32, shape })
    }

    fn eval(&self, args: &[&Tensor], out: &TensorType, shape: &[usize], _: &Bindings) -> Tensor {
        let n = args[0].shape[shape.len() - 1];
        let mut values = Vec::new();
        for row in 0..shape[..shape.len() - 1].iter().product() {
            // Zeros are equal whatever their sign.
            let at = |i: usize| args[0].at(row * n + i) + 0.0;
            let mut order: Vec<usize> = (0..n).filter(|i| at(*i) > f64::NEG_INFINITY).collect();
            order.sort_by(|a, b| at(*b).total_cmp(&at(*a)).then(a.cmp(b)));
            values.extend((0..self.k).map(|j| order.get(j).map_or(-1, |i| *i as i64)));
        }
        Tensor::int(out.dtype, shape, values)
    }

    fn flops(&self, args: &[TensorType], _: &TensorType, bindings: &Bindings) -> f64 {
        args[0].count(bindings).unwrap_or(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::testing::*;
    use super::*;

    #[test]
    fn ties_go_to_the_lower_index() {
        let x = Tensor::real(DType::F32, &[2, 4], vec![1., 3., 3., 2., 0., 0., -1., 5.]);
        assert_eq!(run(TopK { k: 2 }, &[&x]).unwrap().ints(), [1, 2, 3, 0]);
        let odd = Tensor::real(DType::F32, &[3], vec![f64::NAN, -0.0, 0.0]);
        assert_eq!(run(TopK { k: 2 }, &[&odd]).unwrap().ints(), [1, 2]);
    }

    #[test]
    fn what_cannot_be_chosen_leaves_places_over() {
        let hidden = Tensor::real(DType::F32, &[2, 3], vec![f64::NEG_INFINITY, 4., f64::NAN, 1., 2., 3.]);
        assert_eq!(run(TopK { k: 4 }, &[&hidden]).unwrap().ints(), [1, -1, -1, -1, 2, 1, 0, -1]);
        let none = Tensor::real(DType::F32, &[2, 0], vec![]);
        assert_eq!(run(TopK { k: 1 }, &[&none]).unwrap().ints(), [-1, -1]);
    }

    #[test]
    fn constraints() {
        assert_eq!(run(TopK { k: 1 }, &[&wave(&[])]).unwrap_err().constraint, "C1");
        assert_eq!(run(TopK { k: 0 }, &[&wave(&[2])]).unwrap_err().constraint, "C2");
        assert_eq!(run(TopK { k: 1 }, &[&Tensor::int(DType::Bool, &[1], vec![0])]).unwrap_err().constraint, "C3");
    }
}
