//! `concat %a, %b {axis = 1}`: joins along one axis.
//!
//! - C1: at least one operand; the axis exists.
//! - C2: operands have one format, one rank, and equal sizes on the other axes.

use super::*;
use crate::tensor::Data;

/// See the module documentation.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Concat {
    /// The axis along which operands follow each other.
    pub axis: usize,
}

impl OpDef for Concat {
    const MNEMONICS: &'static [&'static str] = &["concat"];
    const TIER: Tier = Tier::Primitive;
    const VIEW: bool = true;

    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        vec![("axis", self.axis.into())]
    }

    fn from_attrs(_: &str, attrs: &mut Attrs) -> Result<Self, AttrError> {
        Ok(Concat { axis: attrs.get("axis")? })
    }

    fn infer(&self, args: &[TensorType]) -> Result<TensorType, Violation> {
        ensure!(!args.is_empty(), "C1", "no operands");
        axis_in(&args[0], self.axis)?;
        let mut out = args[0].clone();
        for a in &args[1..] {
            let same = a.dtype == out.dtype
                && a.rank() == out.rank()
                && (0..a.rank()).all(|i| i == self.axis || a.shape[i] == out.shape[i]);
            ensure!(same, "C2", "{a} does not continue {} along axis {}", args[0], self.axis);
            out.shape[self.axis] = out.shape[self.axis].clone() + a.shape[self.axis].clone();
        }
        Ok(out)
    }

    fn eval(&self, args: &[&Tensor], out: &TensorType, shape: &[usize], _: &Bindings) -> Tensor {
        let outer: usize = shape[..self.axis].iter().product();
        let chunk = |t: &Tensor| t.shape[self.axis..].iter().product::<usize>();
        let pieces = (0..outer).flat_map(|o| args.iter().map(move |t| (*t, o * chunk(t)..(o + 1) * chunk(t))));
        let data = match &args[0].data {
            Data::Real(_) => Data::Real(pieces.flat_map(|(t, r)| t.reals()[r].to_vec()).collect()),
            Data::Int(_) => Data::Int(pieces.flat_map(|(t, r)| t.ints()[r].to_vec()).collect()),
        };
        Tensor { dtype: out.dtype, shape: shape.to_vec(), data }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::*;
    use super::*;

    #[test]
    fn joins_rows_and_columns() {
        let a = Tensor::real(hadal_types::DType::F32, &[2, 1], vec![1., 2.]);
        let b = Tensor::real(hadal_types::DType::F32, &[2, 2], vec![3., 4., 5., 6.]);
        assert_eq!(run(Concat { axis: 1 }, &[&a, &b]).unwrap().reals(), [1., 3., 4., 2., 5., 6.]);
        assert_eq!(run(Concat { axis: 0 }, &[&a, &a]).unwrap().shape, [4, 1]);
    }

    #[test]
    fn constraints() {
        let (a, b) = (wave(&[2, 1]), wave(&[3, 2]));
        assert_eq!(run(Concat { axis: 2 }, &[&a]).unwrap_err().constraint, "C1");
        assert_eq!(run(Concat { axis: 0 }, &[]).unwrap_err().constraint, "C1");
        assert_eq!(run(Concat { axis: 1 }, &[&a, &b]).unwrap_err().constraint, "C2");
    }
}
