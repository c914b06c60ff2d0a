//! `config.json` of `Qwen2ForCausalLM` and `Qwen3ForCausalLM`.

use crate::blocks::assembly::Frame;
use crate::blocks::attention::Attention;
use crate::blocks::rope::AttnFactor;
use crate::config_reader::Object;
use crate::error::Result;
use crate::llama;

/// Which Qwen; no key but the name says what it implies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Generation {
    /// Biases on q, k and v.
    Second,
    /// A norm over each q and k head; biases only where `attention_bias` says so.
    Third,
}

/// A Qwen model.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    pub(super) frame: Frame,
    pub(super) attention: Attention,
    pub(super) mlp_width: usize,
}

impl Config {
    /// Reads it strictly.
    pub fn read(o: &Object<'_>, attn_factor: AttnFactor, generation: Generation) -> Result<Config> {
        let frame = Frame::read(o)?;
        let (bias, head_norm) = match generation {
            Generation::Second => {
                o.ignore(&["attention_bias"]);
                ([true, false], None)
            }
            Generation::Third => {
                let bias = o.bool_or("attention_bias", false)?;
                ([bias, bias], Some(frame.eps))
            }
        };
        Ok(Config {
            attention: llama::attention(o, &frame, attn_factor, bias, head_norm)?,
            mlp_width: o.require_usize_in("intermediate_size", 1..=1 << 20)?,
            frame,
        })
    }
}
