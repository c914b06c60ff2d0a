//! `config.json` of `DeepseekV2ForCausalLM`.

use crate::blocks::assembly::Frame;
use crate::blocks::mla::Mla;
use crate::blocks::moe::{FeedForward, MoeRules};
use crate::blocks::rope::AttnFactor;
use crate::config_reader::Object;
use crate::error::Result;

/// The released code either divides by the sum or multiplies by `routed_scaling_factor`, never both, save with
/// `noaux_tc`, which its later users brought in.
const RULES: MoeRules = MoeRules {
    scores: &["softmax", "sigmoid"],
    choices: &["greedy", "group_limited_greedy", "noaux_tc"],
    scale_normalised: false,
    explicit: false,
};

/// A DeepSeek-V2 model.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    pub(super) frame: Frame,
    pub(super) attention: Mla,
    pub(super) feed_forward: FeedForward,
}

impl Config {
    /// Reads it strictly.
    pub fn read(o: &Object<'_>, attn_factor: AttnFactor) -> Result<Config> {
        if !o.bool_or("use_mla", true)? {
            return Err(o.error("use_mla", "true: models of this type without latent attention are not supported"));
        }
        Ok(Config {
            frame: Frame::read(o)?,
            attention: Mla::read(o, attn_factor)?,
            feed_forward: FeedForward::read(o, &RULES)?,
        })
    }
}
