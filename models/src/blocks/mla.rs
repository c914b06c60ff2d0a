//! Multi-head latent attention (DeepSeek-V2, section 2.1; sheet `deepseek-v3`, "MLA, naive form").
//!
//! Keys and values of a token are linear in one latent row `c` shared by all heads, which is what the state keeps,
//! besides one rotated key shared by all heads:
//!
//! ```text
//! q^h = [q_n ; rope(q_r)]          from n Wq, or from norm(n Wqa) Wqb
//! [u ; r] = n Wkva,   c = norm(u),   k_r = rope(r)
//! k^h_j = [U_h c_j ; k_r_j],   v^h_j = R_h c_j          with [U_h ; R_h] the rows of head h in kv_b_proj
//! o^h = softmax(scale · q^h k^hᵀ + causal) v^h,   y = [o^1 … o^H] Wo
//! ```
//!
//! This is the expanded form. That `U` and `R` may move to the query's side, so that keys need no expanding, is for the
//! optimiser to find.

use super::Block;
use super::rope::{Angles, AttnFactor, Rope, mscale, scaling_object};
use crate::config_reader::Object;
use crate::error::Result;
use hadal_ir::module::ValueId;
use hadal_ir::ops::{CausalMask, Softmax};
use hadal_types::{DType, Dim, Sym};

/// The norms on latent rows keep this epsilon whatever `rms_norm_eps` says, as in the releases' code.
const LATENT_EPS: f64 = 1e-6;

/// Sizes and variants of multi-head latent attention.
#[derive(Clone, PartialEq, Debug)]
pub struct Mla {
    /// Heads `H`.
    pub heads: usize,
    /// Size of the query's latent row, where queries have one.
    pub q_rank: Option<usize>,
    /// Size of the latent row of keys and values.
    pub kv_rank: usize,
    /// Part of a head that does not turn.
    pub nope: usize,
    /// Size of a head's value.
    pub value: usize,
    /// Whether the projections from and to the hidden state have biases.
    pub bias: bool,
    /// Factor on scores.
    pub scale: f64,
    /// Rotation of the part that turns.
    pub rope: Rope,
}

impl Mla {
    /// Reads the sizes.
    pub fn read(o: &Object<'_>, attn_factor: AttnFactor) -> Result<Mla> {
        let (nope, turning) = (
            o.require_usize_in("qk_nope_head_dim", 1..=1 << 14)?,
            o.require_usize_in("qk_rope_head_dim", 2..=1 << 14)?,
        );
        if !turning.is_multiple_of(2) {
            return Err(o.error("qk_rope_head_dim", "an even size, which rotation needs"));
        }
        // Derived sizes that newer files write down.
        o.ignore(&["qk_head_dim", "head_dim", "num_key_value_heads"]);
        let interleaved = o.bool_or("rope_interleave", true)?;
        Ok(Mla {
            heads: o.require_usize_in("num_attention_heads", 1..=1 << 12)?,
            // The releases write null, the V3 repository's own files 0.
            q_rank: o.optional_usize_in("q_lora_rank", 0..=1 << 18)?.filter(|n| *n > 0),
            kv_rank: o.require_usize_in("kv_lora_rank", 1..=1 << 18)?,
            nope,
            value: o.require_usize_in("v_head_dim", 1..=1 << 14)?,
            bias: o.bool_or("attention_bias", false)?,
            scale: Mla::scale(nope + turning, o)?,
            rope: Rope::read(o, turning, interleaved, attn_factor)?,
        })
    }

    /// `(dn + dr)^(-1/2)`, times YaRN's magnitude squared where the configuration gives `mscale_all_dim`.
    fn scale(head: usize, o: &Object<'_>) -> Result<f64> {
        let plain = (head as f64).powf(-0.5);
        let Some(s) = scaling_object(o)? else { return Ok(plain) };
        match s.f64_or("mscale_all_dim", 0.0)? {
            0.0 => Ok(plain),
            all => Ok(plain * mscale(s.require_positive("factor")?, all).powi(2)),
        }
    }
}

/// Latent attention and its output projection.
pub fn mla(f: &mut Block<'_>, a: &Mla, x: ValueId, angles: Angles) -> ValueId {
    f.within("self_attn", |f| {
        let from = query_row(f, a, x);
        attend(f, a, x, from, angles, None)
    })
}

/// What queries are made of: their latent row after its norm, or `x` itself where they have none.
pub fn query_row(f: &mut Block<'_>, a: &Mla, x: ValueId) -> ValueId {
    let Some(rank) = a.q_rank else { return x };
    let latent = f.linear(x, "q_a_proj", rank, a.bias);
    f.norm(latent, "q_a_layernorm", LATENT_EPS)
}

/// The same with queries made of `from`, which see the keys that `mask`, `bool [T, S]`, holds true for, and of those
/// the ones up to their own. States: `ckv` `[P, c]` after its norm, `k_rope` `[P, dr]` after rotation.
pub fn attend(f: &mut Block<'_>, a: &Mla, x: ValueId, from: ValueId, angles: Angles, mask: Option<ValueId>) -> ValueId {
    let (h, c, dn, dr, dv) = (a.heads, a.kv_rank, a.nope, a.rope.dim, a.value);
    let (t, s) = (Dim::from(Sym::T), Dim::from(Sym::P) + Sym::T);
    let name = if a.q_rank.is_some() { "q_b_proj" } else { "q_proj" };
    let q = f.linear(from, name, h * (dn + dr), false);
    let q = f.reshape(q, &[t.clone(), h.into(), (dn + dr).into()]);
    let q_nope = f.slice(q, 2, 0, dn, 1);
    let q_rope = f.slice(q, 2, dn, dr, 1);
    let q_rope = a.rope.turn(f, q_rope, angles);
    let q = f.concat(&[q_nope, q_rope], 2);

    let latent = f.linear(x, "kv_a_proj_with_mqa", c + dr, a.bias);
    let k_rope = f.slice(latent, 1, c, dr, 1);
    let k_rope = a.rope.turn(f, k_rope, angles);
    let latent = f.slice(latent, 1, 0, c, 1);
    let latent = f.norm(latent, "kv_a_layernorm", LATENT_EPS);
    // Rounding, where products have it, treats rows one by one: done before they are kept, it is done once a token.
    let latent = f.operand(latent, "kv_b_proj");
    let latent = f.cast(latent, DType::F32);
    let (latent, k_rope) = (f.remember("ckv", latent), f.remember("k_rope", k_rope));

    let kv = f.matrix("kv_b_proj", &[h * (dn + dv), c]);
    let kv = f.reshape(kv, &[h.into(), (dn + dv).into(), c.into()]);
    let (up, read) = (f.slice(kv, 1, 0, dn, 1), f.slice(kv, 1, dn, dv, 1));
    let k_nope = f.contract("sc,hnc->shn", &[latent, up]);
    let k_rope = f.broadcast(k_rope, &[s, h.into(), dr.into()], &[0, 2]);
    let k = f.concat(&[k_nope, k_rope], 2);
    let v = f.contract("sc,hvc->shv", &[latent, read]);

    let scores = f.contract("thd,shd->hts", &[q, k]);
    let scores = f.mul_scalar(scores, a.scale);
    let mut scores = f.op(CausalMask { query: 1, key: 2 }, &[scores]);
    if let Some(mask) = mask {
        let shape = f.shape(scores).to_vec();
        let mask = f.broadcast(mask, &shape, &[1, 2]);
        scores = f.only(mask, scores);
    }
    let weights = f.op(Softmax, &[scores]);
    let mixed = f.contract("hts,shv->thv", &[weights, v]);
    let mixed = f.reshape(mixed, &[t, (h * dv).into()]);
    let d = f.size(x, 1);
    f.linear(mixed, "o_proj", d, a.bias)
}
