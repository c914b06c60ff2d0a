//! The lightning indexer (DeepSeek-V3.2, "DeepSeek Sparse Attention"; sheet `deepseek-v32`): a small attention that
//! says which keys the large one sees.
//!
//! ```text
//! q^h = rope(r Wqb)_h,   k = rope(layernorm(x Wk))         r is the query's latent row; leading channels turn
//! w = x Ww · H^(-1/2) d^(-1/2)                             one weight per head, of either sign
//! I[t, s] = Σ_h w[t, h] · relu(q^h_t · k_s)                for s ≤ t
//! mask[t, s] = s is among the K largest of I[t, ·]
//! ```
//!
//! Where activations are rounded, `q^h` and `k` are too, with one scale each and after a Hadamard rotation, which
//! spreads what is large over all channels: `rot(q) · rot(k) = q · k`, so it is left out where nothing is rounded.
//!
//! That the mask is a selection, and that what it hides needs no reading, is for the optimiser to find.

use super::Block;
use super::rope::Angles;
use super::rounding::{Quantised, dequantise, quantise, rounded};
use crate::config_reader::Object;
use crate::error::Result;
use crate::formats::{Activations, Code, Rounding};
use hadal_ir::module::ValueId;
use hadal_ir::ops::map::MapFn;
use hadal_ir::ops::{CausalMask, Constant, Member, Rope as RopeOp, TopK};
use hadal_types::{DType, Dim, Sym};

/// Of the norm on keys, whatever `rms_norm_eps` says.
const KEY_EPS: f64 = 1e-6;

/// Sizes and variants of an indexer.
#[derive(Clone, PartialEq, Debug)]
pub struct Indexer {
    /// Heads `H`.
    pub heads: usize,
    /// Size `d` of a head.
    pub head_dim: usize,
    /// Keys `K` that a query keeps.
    pub kept: usize,
    /// Leading channels that turn.
    pub turning: usize,
    /// Whether pairs are neighbours rather than halves of what turns. They need not be as in the large attention.
    pub interleaved: bool,
}

impl Indexer {
    /// Reads the sizes; `turning` channels turn in the large attention, by the same angles.
    pub fn read(o: &Object<'_>, turning: usize) -> Result<Indexer> {
        let head_dim = o.require_usize_in("index_head_dim", 1..=1 << 14)?;
        if head_dim < turning {
            return Err(o.error("index_head_dim", format!("at least qk_rope_head_dim ({turning})")));
        }
        Ok(Indexer {
            heads: o.require_usize_in("index_n_heads", 1..=1 << 12)?,
            head_dim,
            kept: o.require_usize_in("index_topk", 1..=1 << 24)?,
            turning,
            interleaved: o.bool_or("indexer_rope_interleave", false)?,
        })
    }
}

/// The keys that each query sees, `bool [T, S]`. States: `index_k` `[P, d]`, as it is multiplied; where that is
/// rounded, `index_k_scale` `[P, 1]` too.
pub fn indexer(f: &mut Block<'_>, ix: &Indexer, x: ValueId, from: ValueId, angles: Angles) -> ValueId {
    let (h, d) = (ix.heads, ix.head_dim);
    let (t, s) = (Dim::from(Sym::T), Dim::from(Sym::P) + Sym::T);
    f.within("indexer", |f| {
        let q = f.linear(from, "wq_b", h * d, false);
        let q = f.reshape(q, &[t, h.into(), d.into()]);
        let q = turn(f, ix, q, angles);
        let k = f.linear(x, "wk", d, false);
        let k = f.layer_norm(k, "k_norm", KEY_EPS);
        let k = turn(f, ix, k, angles);
        let (q, k) = match f.formats().activations {
            Activations::F32 | Activations::Bf16 | Activations::Int8 => (q, f.remember("index_k", k)),
            Activations::Cache | Activations::Fp8 => {
                let to = Rounding { block: d, to: Code::E4M3 { pow2: f.formats().plan.pow2 } };
                let (q, k) = (rotate(f, q), rotate(f, k));
                let k = quantise(f, k, to);
                let values = f.remember_as("index_k", k.values, DType::F8E4M3);
                let scales = f.remember_as("index_k_scale", k.scales, DType::F32);
                (rounded(f, q, to), dequantise(f, Quantised { values, scales }, d))
            }
        };
        let weights = f.linear(x, "weights_proj", h, false);
        let weights = f.mul_scalar(weights, ((h * d) as f64).powf(-0.5));

        let matches = f.contract("thd,sd->ths", &[q, k]);
        let zero = f.scalar_like(matches, 0.0);
        let matches = f.map(MapFn::Max, &[matches, zero]);
        let scores = f.contract("ths,th->ts", &[matches, weights]);
        let scores = f.op(CausalMask { query: 0, key: 1 }, &[scores]);
        let chosen = f.op(TopK { k: ix.kept }, &[scores]);
        f.op(Member { len: s }, &[chosen])
    })
}

/// `x`, `[T, …, d]`, with its leading channels turned.
fn turn(f: &mut Block<'_>, ix: &Indexer, x: ValueId, angles: Angles) -> ValueId {
    let axis = f.shape(x).len() - 1;
    let turned = f.slice(x, axis, 0, ix.turning, 1);
    let turned = f.op(RopeOp { interleaved: ix.interleaved }, &[turned, angles.cos, angles.sin]);
    if ix.turning == ix.head_dim {
        return turned;
    }
    let rest = f.slice(x, axis, ix.turning, ix.head_dim - ix.turning, 1);
    f.concat(&[turned, rest], axis)
}

/// `x H_d d^(-1/2)` over the last axis, with the Hadamard matrix `H_2n = H_2 ⊗ H_n`. There is one for powers of two;
/// heads of other sizes, which no release has, are left as they are.
pub(crate) fn rotate(f: &mut Block<'_>, x: ValueId) -> ValueId {
    let last = f.shape(x).len() - 1;
    let d = f.size(x, last);
    if !d.is_power_of_two() || d == 1 {
        return x;
    }
    let two = f.op(Constant::vector([1.0, 1.0, 1.0, -1.0]), &[]);
    let two = f.reshape(two, &[2.into(), 2.into()]);
    let mut matrix = two;
    for n in (2..=d.ilog2()).map(|power| 1_usize << power) {
        matrix = f.contract("ab,ij->aibj", &[two, matrix]);
        matrix = f.reshape(matrix, &[n.into(), n.into()]);
    }
    let spec = if last == 1 { "ti,ij->tj" } else { "thi,ij->thj" };
    let y = f.contract(spec, &[x, matrix]);
    f.mul_scalar(y, (d as f64).powf(-0.5))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::rounding::testing::evaluate;
    use hadal_ir::Tensor;

    #[test]
    fn rotation_keeps_products() {
        let (a, b) = ([1.0, -2.0, 0.5, 3.0, 0.0, 0.25, -1.0, 7.0], [2.0, 1.0, -4.0, 0.0, 1.5, 3.0, -2.0, 0.125]);
        let x = Tensor::real(DType::F32, &[2, 8], [a, b].concat());
        let y = evaluate(&x, rotate);
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let (ra, rb) = y.reals().split_at(8);
        assert!((dot(ra, rb) - dot(&a, &b)).abs() < 1e-12, "{y:?}");
        // The first row of the matrix is all ones, the second alternates.
        assert!((ra[0] - a.iter().sum::<f64>() / 8f64.sqrt()).abs() < 1e-12);
        let alternating = a.iter().enumerate().map(|(i, v)| if i % 2 == 0 { *v } else { -v }).sum::<f64>();
        assert!((ra[1] - alternating / 8f64.sqrt()).abs() < 1e-12);
        // There is no such matrix of size 3.
        let x = Tensor::real(DType::F32, &[1, 3], vec![1.0, 2.0, 3.0]);
        assert_eq!(evaluate(&x, rotate), x);
    }
}
