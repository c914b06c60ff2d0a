//! `config.json` of `LlamaForCausalLM`.

use crate::blocks::assembly::Frame;
use crate::blocks::attention::Attention;
use crate::blocks::rope::{AttnFactor, Rope};
use crate::config_reader::Object;
use crate::error::Result;

/// A Llama model.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    pub(super) frame: Frame,
    pub(super) attention: Attention,
    pub(super) mlp_width: usize,
    pub(super) mlp_bias: bool,
}

impl Config {
    /// Reads it strictly.
    pub fn read(o: &Object<'_>, attn_factor: AttnFactor) -> Result<Config> {
        let frame = Frame::read(o)?;
        let bias = o.bool_or("attention_bias", false)?;
        Ok(Config {
            attention: attention(o, &frame, attn_factor, [bias, bias], None)?,
            mlp_width: o.require_usize_in("intermediate_size", 1..=1 << 20)?,
            mlp_bias: o.bool_or("mlp_bias", false)?,
            frame,
        })
    }
}

/// Reads the sizes of grouped-query attention. `bias` is for q, k and v, and for the output.
pub(crate) fn attention(
    o: &Object<'_>,
    frame: &Frame,
    attn_factor: AttnFactor,
    bias: [bool; 2],
    head_norm: Option<f64>,
) -> Result<Attention> {
    let heads = o.require_usize_in("num_attention_heads", 1..=1 << 12)?;
    let groups = o.optional_usize_in("num_key_value_heads", 1..=1 << 12)?.unwrap_or(heads);
    if !heads.is_multiple_of(groups) {
        return Err(o.error("num_key_value_heads", format!("a divisor of num_attention_heads ({heads})")));
    }
    let head_dim = match o.optional_usize_in("head_dim", 1..=1 << 14)? {
        Some(given) => given,
        None if frame.hidden.is_multiple_of(heads) => frame.hidden / heads,
        None => return Err(o.error("head_dim", format!("a size, as {heads} heads do not divide hidden_size"))),
    };
    if !head_dim.is_multiple_of(2) {
        return Err(o.error(
            "head_dim",
            format!("an even head size, which rotation needs (hidden_size / heads is {head_dim})"),
        ));
    }
    let rope = Rope::read(o, head_dim, false, attn_factor)?;
    let [qkv_bias, output_bias] = bias;
    Ok(Attention { heads, groups, head_dim, qkv_bias, output_bias, head_norm, rope })
}
