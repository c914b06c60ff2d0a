//! `reshape %x {shape = [T, 4, 16]}`: the same elements in row-major order under another shape.
//!
//! - C1: both shapes have the same number of elements, for every value of the symbols.

use super::*;
use hadal_types::Dim;

/// See the module documentation.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Reshape {
    /// The result's shape.
    pub shape: Vec<Dim>,
}

/// An element count as a constant and the symbolic factors, each without its constant content.
fn count(shape: &[Dim]) -> (i128, Vec<Dim>) {
    let mut constant: i128 = 1;
    let mut factors = Vec::new();
    for d in shape {
        let coefficients = d.terms().iter().map(|(_, k)| *k).chain([d.constant()]);
        let content = if d.terms().is_empty() { d.constant() } else { coefficients.fold(0, gcd) };
        constant = constant.saturating_mul(content as i128);
        if !d.terms().is_empty() {
            factors.extend(d.div_exact(content));
        }
    }
    factors.sort();
    (constant, factors)
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a.saturating_abs() } else { gcd(b, a % b) }
}

impl OpDef for Reshape {
    const MNEMONICS: &'static [&'static str] = &["reshape"];
    const TIER: Tier = Tier::Primitive;
    const VIEW: bool = true;

    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        vec![("shape", Attr::list(&self.shape))]
    }

    fn from_attrs(_: &str, attrs: &mut Attrs) -> Result<Self, AttrError> {
        Ok(Reshape { shape: attrs.get("shape")? })
    }

    fn infer(&self, args: &[TensorType]) -> Result<TensorType, Violation> {
        arity(args, 1)?;
        let same = count(&args[0].shape) == count(&self.shape);
        ensure!(same, "C1", "{} does not have as many elements as {:?}", args[0], self.shape);
        Ok(TensorType { dtype: args[0].dtype, shape: self.shape.clone() })
    }

    fn eval(&self, args: &[&Tensor], _: &TensorType, shape: &[usize], _: &Bindings) -> Tensor {
        args[0].pick(shape, |i| i)
    }
}

#[cfg(test)]
mod tests {
    use super::testing::*;
    use super::*;
    use hadal_types::{DType, Sym};

    #[test]
    fn keeps_order() {
        let x = wave(&[2, 6]);
        let y = run(Reshape { shape: vec![3.into(), 4.into()] }, &[&x]).unwrap();
        assert_eq!((y.shape.as_slice(), y.reals()), ([3, 4].as_slice(), x.reals()));
    }

    #[test]
    fn counts_symbolically() {
        let t = Dim::from(Sym::T);
        let from = TensorType::new(DType::F32, [t.clone(), 8.into()]);
        let to = |shape: Vec<Dim>| Reshape { shape }.infer(std::slice::from_ref(&from)).map_err(|v| v.constraint);
        assert!(to(vec![t.clone(), 2.into(), 4.into()]).is_ok());
        assert!(to(vec![t.clone() * 8]).is_ok());
        assert!(to(vec![t.clone() * 4, 2.into()]).is_ok());
        assert_eq!(to(vec![t.clone() + 1, 8.into()]), Err("C1"));
        assert_eq!(to(vec![8.into()]), Err("C1"));
    }
}
