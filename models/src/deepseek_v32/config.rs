//! `config.json` of `DeepseekV32ForCausalLM`: V3's, and the indexer's sizes.

use crate::blocks::indexer::Indexer;
use crate::blocks::rope::AttnFactor;
use crate::config_reader::Object;
use crate::deepseek_v3;
use crate::error::Result;

/// A DeepSeek-V3.2 model.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    pub(super) base: deepseek_v3::Config,
    pub(super) indexer: Indexer,
}

impl Config {
    /// Reads it strictly.
    pub fn read(o: &Object<'_>, attn_factor: AttnFactor) -> Result<Config> {
        Config::extend(o, deepseek_v3::Config::read_common(o, attn_factor)?)
    }

    /// Reads a configuration in the repository's own form.
    pub(crate) fn read_reference(o: &Object<'_>) -> Result<Config> {
        Config::extend(o, deepseek_v3::Config::read_reference(o)?)
    }

    fn extend(o: &Object<'_>, base: deepseek_v3::Config) -> Result<Config> {
        if base.attention.q_rank.is_none() {
            return Err(o.error("q_lora_rank", "a size, as the indexer reads the query's latent row"));
        }
        let indexer = Indexer::read(o, base.attention.rope.dim)?;
        Ok(Config { base, indexer })
    }
}
