//! `causal_mask %s {query = 1, key = 2}`: -∞ where the key comes after the query, else `s`.
//!
//! Keys are all positions so far, queries the newest of them: query `t` of `T` stands at position `t + (S - T)` and
//! sees keys up to that one.
//!
//! - C1: both axes exist and differ.
//! - C2: `s` is f32.

use super::*;
use crate::ops::map::MapFn;
use crate::tensor::coordinates;
use hadal_types::DType;

/// See the module documentation.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CausalMask {
    /// The axis of queries.
    pub query: usize,
    /// The axis of keys.
    pub key: usize,
}

impl OpDef for CausalMask {
    const MNEMONICS: &'static [&'static str] = &["causal_mask"];
    const TIER: Tier = Tier::Composite;

    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        vec![("query", self.query.into()), ("key", self.key.into())]
    }

    fn from_attrs(_: &str, attrs: &mut Attrs) -> Result<Self, AttrError> {
        Ok(CausalMask { query: attrs.get("query")?, key: attrs.get("key")? })
    }

    fn infer(&self, args: &[TensorType]) -> Result<TensorType, Violation> {
        arity(args, 1)?;
        axis_in(&args[0], self.query)?;
        axis_in(&args[0], self.key)?;
        ensure!(self.query != self.key, "C1", "query and key are both axis {}", self.key);
        ensure!(args[0].dtype == DType::F32, "C2", "a mask over {}", args[0].dtype);
        Ok(args[0].clone())
    }

    fn eval(&self, args: &[&Tensor], out: &TensorType, shape: &[usize], _: &Bindings) -> Tensor {
        let x = args[0].reals();
        let mut at = Vec::new();
        let values = (0..x.len()).map(|i| {
            coordinates(shape, i, &mut at);
            let hidden = at[self.key] + shape[self.query] > at[self.query] + shape[self.key];
            if hidden { f64::NEG_INFINITY } else { x[i] }
        });
        Tensor::real(out.dtype, shape, values.collect())
    }

    fn decompose(&self, b: &mut Builder, args: &[ValueId]) -> Option<ValueId> {
        let shape = b.ty(args[0]).shape.clone();
        let (t, s) = (shape[self.query].clone(), shape[self.key].clone());
        let queries = b.iota(t.clone(), s.clone() - t);
        let keys = b.iota(s, 0);
        let queries = b.broadcast(queries, &shape, &[self.query]);
        let keys = b.broadcast(keys, &shape, &[self.key]);
        let visible = b.map(MapFn::Le, &[keys, queries]);
        let hidden = b.scalar(f64::NEG_INFINITY);
        let hidden = b.broadcast(hidden, &shape, &[]);
        Some(b.map(MapFn::Select, &[visible, args[0], hidden]))
    }
}

#[cfg(test)]
mod tests {
    use super::testing::*;
    use super::*;

    #[test]
    fn newest_queries_see_their_past() {
        let x = Tensor::real(DType::F32, &[2, 3], vec![1.; 6]);
        let op = CausalMask { query: 0, key: 1 };
        let y = run(op.clone(), &[&x]).unwrap();
        assert_eq!(y.reals(), [1., 1., f64::NEG_INFINITY, 1., 1., 1.]);
        assert_eq!(y, run_decomposed(op, &[&x]));
    }

    #[test]
    fn constraints() {
        let op = |query, key| CausalMask { query, key };
        assert_eq!(run(op(0, 2), &[&wave(&[2, 3])]).unwrap_err().constraint, "C1");
        assert_eq!(run(op(1, 1), &[&wave(&[2, 3])]).unwrap_err().constraint, "C1");
        assert_eq!(run(op(0, 1), &[&Tensor::int(DType::I32, &[1, 1], vec![0])]).unwrap_err().constraint, "C2");
    }
}
