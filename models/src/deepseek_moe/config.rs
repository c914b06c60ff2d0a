//! `config.json` of `DeepseekForCausalLM`.

use crate::blocks::assembly::Frame;
use crate::blocks::attention::Attention;
use crate::blocks::moe::{FeedForward, MoeRules};
use crate::blocks::rope::AttnFactor;
use crate::config_reader::Object;
use crate::error::Result;
use crate::llama;

const RULES: MoeRules =
    MoeRules { scores: &["softmax"], choices: &["greedy"], scale_normalised: false, explicit: false };

/// A DeepSeekMoE model.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    pub(super) frame: Frame,
    pub(super) attention: Attention,
    pub(super) feed_forward: FeedForward,
}

impl Config {
    /// Reads it strictly.
    pub fn read(o: &Object<'_>, attn_factor: AttnFactor) -> Result<Config> {
        let frame = Frame::read(o)?;
        let bias = o.bool_or("attention_bias", false)?;
        Ok(Config {
            attention: llama::attention(o, &frame, attn_factor, [bias, bias], None)?,
            feed_forward: FeedForward::read(o, &RULES)?,
            frame,
        })
    }
}
