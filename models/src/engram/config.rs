//! `config.json` of `EngramDemo`: the constants of the demonstration's script.

use crate::blocks::assembly::Frame;
use crate::blocks::engram::Mixed;
use crate::config_reader::Object;
use crate::error::Result;
use crate::formats::Plan;
use crate::ngram::Hashing;
use hadal_types::DType;

/// An Engram demonstration.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    pub(super) frame: Frame,
    pub(super) hashing: Hashing,
    pub(super) engram: Mixed,
    /// Equal streams `n` that the residual is kept in.
    pub(super) streams: usize,
}

/// Positions do not matter here; this many are planned for where nobody says.
const MAX_POSITION: usize = 1 << 20;

impl Config {
    /// Reads it strictly.
    pub fn read(o: &Object<'_>) -> Result<Config> {
        let (b, e) = (o.require_object("backbone")?, o.require_object("engram")?);
        let vocab = b.require_usize_in("vocab_size", 1..=1 << 24)?;
        let layers = b.require_usize_in("num_layers", 1..=1024)?;
        let longest = e.require_usize_in("max_ngram_size", 2..=16)?;
        let heads = e.require_usize_in("n_head_per_ngram", 1..=256)?;
        let joined = e.require_usize_in("n_embed_per_ngram", 1..=1 << 18)?;
        if !joined.is_multiple_of(heads) {
            return Err(e.error("n_embed_per_ngram", format!("a multiple of n_head_per_ngram ({heads})")));
        }
        let sizes = e.usize_list("engram_vocab_size")?.unwrap_or_default();
        if sizes.len() != longest - 1 || sizes.iter().any(|s| !(1..=1 << 31).contains(s)) {
            return Err(e.error("engram_vocab_size", format!("{} sizes, as max_ngram_size is {longest}", longest - 1)));
        }
        let ids = e.usize_list("layer_ids")?.unwrap_or_default();
        if ids.iter().enumerate().any(|(i, l)| *l >= layers || ids[..i].contains(l)) {
            return Err(e.error("layer_ids", format!("different layers below {layers}")));
        }
        let frame = Frame {
            vocab,
            hidden: b.require_usize_in("hidden_size", 1..=1 << 18)?,
            layers,
            eps: 0.0,
            tied: false,
            max_position: b.optional_usize_in("max_position_embeddings", 1..=1 << 30)?.unwrap_or(MAX_POSITION),
            bos: None,
            eos: Vec::new(),
            plan: Plan { dtype: DType::F32, ..Plan::read(o)? },
        };
        Ok(Config {
            streams: b.require_usize_in("hc_mult", 1..=64)?,
            engram: Mixed {
                width: joined / heads,
                taps: e.require_usize_in("kernel_size", 1..=64)?,
                dilation: longest,
            },
            hashing: Hashing {
                layers: ids,
                sizes: sizes.into_iter().map(|s| s as u64).collect(),
                heads,
                pad: e.require_usize_in("pad_id", 0..=vocab - 1)?,
                seed: e.optional_usize_in("seed", 0..=1 << 40)?.unwrap_or(0) as u64,
                classes: None,
            },
            frame,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config_reader;
    use serde_json::{Value, json};

    fn read(change: impl Fn(&mut Value)) -> Result<Config> {
        let mut config = json!({
            "engram": { "engram_vocab_size": [50, 60], "max_ngram_size": 3, "n_embed_per_ngram": 8, "n_head_per_ngram": 2,
                "layer_ids": [1], "pad_id": 2, "kernel_size": 4 },
            "backbone": { "hidden_size": 16, "hc_mult": 4, "vocab_size": 100, "num_layers": 2 },
        });
        change(&mut config);
        Config::read(&config_reader::Config::parse("config.json", config.to_string().as_bytes())?.object())
    }

    #[test]
    fn sizes_have_to_fit_together() {
        assert_eq!(read(|_| ()).unwrap().engram, Mixed { width: 4, taps: 4, dilation: 3 });
        for (part, key, value) in [
            ("engram", "engram_vocab_size", json!([50])),
            ("engram", "engram_vocab_size", json!([50, 0])),
            ("engram", "n_embed_per_ngram", json!(9)),
            ("engram", "layer_ids", json!([2])),
            ("engram", "layer_ids", json!([1, 1])),
            ("engram", "pad_id", json!(100)),
            ("engram", "max_ngram_size", json!(1)),
            ("backbone", "hc_mult", json!(0)),
        ] {
            let error = read(|c| c[part][key] = value.clone()).unwrap_err().to_string();
            assert!(error.contains(key), "{key} {value}: {error}");
        }
    }
}
