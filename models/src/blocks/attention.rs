//! Attention whose query heads share fewer key/value heads (GQA; MHA and MQA are its ends).

use super::Block;
use super::rope::{Angles, Rope};
use hadal_ir::module::ValueId;
use hadal_ir::ops::{CausalMask, Softmax};
use hadal_types::{Dim, Sym};

/// Sizes and variants of grouped-query attention.
#[derive(Clone, PartialEq, Debug)]
pub struct Attention {
    /// Query heads `H`.
    pub heads: usize,
    /// Key/value heads `G`, which divide `H`.
    pub groups: usize,
    /// Size `h` of a head.
    pub head_dim: usize,
    /// Whether q, k and v have biases.
    pub qkv_bias: bool,
    /// Whether the output projection has one.
    pub output_bias: bool,
    /// Epsilon of the norm over each q and k head, where there is one (Qwen3).
    pub head_norm: Option<f64>,
    /// Rotation.
    pub rope: Rope,
}

/// `softmax(q kᵀ / √h + causal) v`, then the output projection. Query head `a` reads key/value head `a / (H/G)`.
///
/// States: `k` (after norm and rotation) and `v`, `[P, G, h]`.
pub fn attention(f: &mut Block<'_>, a: &Attention, x: ValueId, angles: Angles) -> ValueId {
    let (g, h, repeats) = (a.groups, a.head_dim, a.heads / a.groups);
    let t = Dim::from(Sym::T);
    f.within("self_attn", |f| {
        let q = f.linear(x, "q_proj", a.heads * h, a.qkv_bias);
        let k = f.linear(x, "k_proj", g * h, a.qkv_bias);
        let v = f.linear(x, "v_proj", g * h, a.qkv_bias);
        let mut q = f.reshape(q, &[t.clone(), a.heads.into(), h.into()]);
        let mut k = f.reshape(k, &[t.clone(), g.into(), h.into()]);
        let v = f.reshape(v, &[t.clone(), g.into(), h.into()]);
        if let Some(eps) = a.head_norm {
            (q, k) = (f.norm(q, "q_norm", eps), f.norm(k, "k_norm", eps));
        }
        let q = a.rope.turn(f, q, angles);
        let k = a.rope.turn(f, k, angles);
        let q = f.reshape(q, &[t.clone(), g.into(), repeats.into(), h.into()]);
        let (k, v) = (f.remember("k", k), f.remember("v", v));

        let scores = f.contract("tgrd,sgd->grts", &[q, k]);
        let scores = f.mul_scalar(scores, (h as f64).powf(-0.5));
        let scores = f.op(CausalMask { query: 2, key: 3 }, &[scores]);
        let weights = f.op(Softmax, &[scores]);
        let mixed = f.contract("grts,sgd->tgrd", &[weights, v]);
        let mixed = f.reshape(mixed, &[t, (a.heads * h).into()]);
        let d = f.size(x, 1);
        f.linear(mixed, "o_proj", d, a.output_bias)
    })
}
