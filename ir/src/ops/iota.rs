//! `iota {len = T, start = P}`: `start, start+1, …`, `len` of them, as i32. Positions are `iota {len = T, start = P}`.

use super::*;
use hadal_types::{DType, Dim};

/// See the module documentation.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Iota {
    /// How many.
    pub len: Dim,
    /// The first.
    pub start: Dim,
}

impl OpDef for Iota {
    const MNEMONICS: &'static [&'static str] = &["iota"];
    const TIER: Tier = Tier::Primitive;

    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        vec![("len", (&self.len).into()), ("start", (&self.start).into())]
    }

    fn from_attrs(_: &str, attrs: &mut Attrs) -> Result<Self, AttrError> {
        Ok(Iota { len: attrs.get("len")?, start: attrs.get_or("start", Dim::default())? })
    }

    fn infer(&self, args: &[TensorType]) -> Result<TensorType, Violation> {
        arity(args, 0)?;
        Ok(TensorType::new(DType::I32, [self.len.clone()]))
    }

    fn eval(&self, _: &[&Tensor], out: &TensorType, shape: &[usize], bindings: &Bindings) -> Tensor {
        let start = self.start.eval(bindings).expect("every symbol is bound");
        Tensor::int(out.dtype, shape, (start..start + shape[0] as i64).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::testing::*;
    use super::*;
    use hadal_types::Sym;

    #[test]
    fn counts_from_a_symbol() {
        let op = Iota { len: 3.into(), start: Sym::P.into() };
        assert_eq!(run_bound(op, &[], &Bindings::from([(Sym::P, 7)])).unwrap().ints(), [7, 8, 9]);
        assert_eq!(run(Iota { len: 1.into(), start: 0.into() }, &[&wave(&[1])]).unwrap_err().constraint, "C0");
    }
}
