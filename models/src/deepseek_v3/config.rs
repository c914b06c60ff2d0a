//! `config.json` of `DeepseekV3ForCausalLM`.

use crate::blocks::assembly::Frame;
use crate::blocks::mla::Mla;
use crate::blocks::moe::{FeedForward, MoeRules};
use crate::blocks::rope::AttnFactor;
use crate::config_reader::Object;
use crate::error::Result;

const RULES: MoeRules =
    MoeRules { scores: &["sigmoid"], choices: &["noaux_tc"], scale_normalised: true, explicit: true };

/// A DeepSeek-V3 model.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    pub(crate) frame: Frame,
    pub(crate) attention: Mla,
    pub(crate) feed_forward: FeedForward,
    pub(crate) mtp_layers: usize,
}

impl Config {
    /// Reads it strictly.
    pub fn read(o: &Object<'_>, attn_factor: AttnFactor) -> Result<Config> {
        if o.has("index_topk") {
            return Err(o.error("index_topk", "no such key: sparse attention is another architecture"));
        }
        Config::read_common(o, attn_factor)
    }

    /// Reads what the generations with this graph share.
    pub(crate) fn read_common(o: &Object<'_>, attn_factor: AttnFactor) -> Result<Config> {
        Ok(Config {
            frame: Frame::read(o)?,
            attention: Mla::read(o, attn_factor)?,
            feed_forward: FeedForward::read(o, &RULES)?,
            mtp_layers: o.optional_usize_in("num_nextn_predict_layers", 0..=8)?.unwrap_or(0),
        })
    }
}
