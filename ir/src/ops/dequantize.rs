//! `dequantize %q, %s {block = [128, 128]}`: `out[i, j] = q[i, j] · s[i / 128, j / 128]`, in f32; with a third operand
//! `%m` of the scales' shape, `q[i, j] · s[i / 128, j / 128] + m[i / 128, j / 128]`.
//!
//! `block` has one entry per axis; blocks at the end of an axis may be short. DeepSeek-V3's `weight_scale_inv` is
//! such a multiplier (sheet `deepseek-v3`, "Quantised form"). Scales may be dequantised themselves: formats of four
//! bits and fewer keep small integers for each block of 32, with a real for eight of them.
//!
//! - C1: `q` and `s` have one rank, and `block` as many entries, each at least 1.
//! - C2: every `s` axis is the `q` axis divided by the block, rounded up; only where the block is 1 may the size be
//!   symbolic.
//! - C3: all are numbers, scales and offsets reals.
//! - C4: there are two operands, or three of which the last has the shape of the second.

use super::*;
use crate::tensor::{coordinates, position};
use hadal_types::DType;
#[cfg(test)]
use hadal_types::Dim;

/// See the module documentation.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Dequantize {
    /// Elements of each axis that share a scale.
    pub block: Vec<usize>,
}

impl OpDef for Dequantize {
    const MNEMONICS: &'static [&'static str] = &["dequantize"];
    const TIER: Tier = Tier::Primitive;

    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        vec![("block", Attr::list(self.block.iter().copied()))]
    }

    fn from_attrs(_: &str, attrs: &mut Attrs) -> Result<Self, AttrError> {
        Ok(Dequantize { block: attrs.get("block")? })
    }

    fn infer(&self, args: &[TensorType]) -> Result<TensorType, Violation> {
        ensure!(matches!(args.len(), 2 | 3), "C4", "{} operands", args.len());
        let (q, s) = (&args[0], &args[1]);
        let fits = q.rank() == s.rank() && q.rank() == self.block.len() && !self.block.contains(&0);
        ensure!(fits, "C1", "blocks {:?} for {q} and {s}", self.block);
        for ((q_size, s_size), block) in q.shape.iter().zip(&s.shape).zip(&self.block) {
            let blocks = match *block {
                1 => Some(q_size.clone()),
                block => q_size.as_const().map(|n| (n.max(0) as usize).div_ceil(block).into()),
            };
            ensure!(
                blocks.is_some_and(|n| n == *s_size),
                "C2",
                "{s} does not hold one scale per block {:?} of {q}",
                self.block
            );
        }
        ensure!(s.dtype.is_float() && q.dtype != DType::Bool, "C3", "{} scaled by {}", q.dtype, s.dtype);
        if let Some(m) = args.get(2) {
            ensure!(m.shape == s.shape, "C4", "offsets {m} for scales {s}");
            ensure!(m.dtype.is_float(), "C3", "offsets are {}", m.dtype);
        }
        Ok(q.with_dtype(DType::F32))
    }

    fn eval(&self, args: &[&Tensor], out: &TensorType, shape: &[usize], _: &Bindings) -> Tensor {
        let (q, s) = (args[0], args[1]);
        let mut at = Vec::new();
        let values = (0..q.len()).map(|i| {
            coordinates(shape, i, &mut at);
            at.iter_mut().zip(&self.block).for_each(|(c, b)| *c /= b);
            let block = position(&s.shape, &at);
            q.at(i) * s.reals()[block] + args.get(2).map_or(0.0, |m| m.reals()[block])
        });
        Tensor::real(out.dtype, shape, values.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::testing::*;
    use super::*;

    #[test]
    fn edge_blocks_are_short() {
        let q = Tensor::real(DType::F8E4M3, &[1, 3], vec![1., 2., 4.]);
        let s = Tensor::real(DType::F32, &[1, 2], vec![10., 100.]);
        assert_eq!(run(Dequantize { block: vec![1, 2] }, &[&q, &s]).unwrap().reals(), [10., 20., 400.]);
    }

    #[test]
    fn offsets_are_added() {
        let q = Tensor::int(DType::U4, &[1, 3], vec![15, 0, 2]);
        let s = Tensor::real(DType::F16, &[1, 2], vec![0.5, 3.]);
        let m = Tensor::real(DType::F16, &[1, 2], vec![-1., 10.]);
        let op = || Dequantize { block: vec![1, 2] };
        assert_eq!(run(op(), &[&q, &s, &m]).unwrap().reals(), [6.5, -1., 16.]);
        assert_eq!(run(op(), &[&q]).unwrap_err().constraint, "C4");
        let one = Tensor::real(DType::F16, &[1, 1], vec![1.]);
        assert_eq!(run(op(), &[&q, &s, &one]).unwrap_err().constraint, "C4");
        assert_eq!(run(op(), &[&q, &s, &Tensor::int(DType::I8, &[1, 2], vec![1, 1])]).unwrap_err().constraint, "C3");
    }

    #[test]
    fn constraints() {
        let (q, s) = (wave(&[2, 3]), wave(&[1, 2]));
        assert_eq!(run(Dequantize { block: vec![2] }, &[&q, &s]).unwrap_err().constraint, "C1");
        assert_eq!(run(Dequantize { block: vec![2, 1] }, &[&q, &s]).unwrap_err().constraint, "C2");
        let symbolic = |a: &str| TensorType::new(DType::F32, [Dim::from(hadal_types::Sym::new(a).unwrap()), 3.into()]);
        let scales = TensorType::new(DType::F32, [Dim::from(hadal_types::Sym::T), 2.into()]);
        let op = Dequantize { block: vec![1, 2] };
        assert!(op.infer(&[symbolic("T"), scales.clone()]).is_ok());
        assert_eq!(op.infer(&[symbolic("P"), scales.clone()]).unwrap_err().constraint, "C2");
        let coarse = Dequantize { block: vec![2, 2] };
        assert_eq!(coarse.infer(&[symbolic("T"), scales]).unwrap_err().constraint, "C2");
        let ints = Tensor::int(DType::I32, &[1, 2], vec![1, 1]);
        assert_eq!(run(Dequantize { block: vec![2, 2] }, &[&q, &ints]).unwrap_err().constraint, "C3");
    }
}
