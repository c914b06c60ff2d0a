//! `config.json` of `DeepseekV41ForCausalLM`, which has the model of text inside `text_config`; and the flat configuration of
//! the repository's own code, which spells many keys in another way.

use super::plan::{self, Candidates, Keys, Layer};
use crate::blocks::assembly::Frame;
use crate::blocks::engram;
use crate::blocks::mhc::Hyper;
use crate::blocks::moe::Moe;
use crate::blocks::rope::Scaling;
use crate::blocks::selection::{Blocks, Selection};
use crate::blocks::shared_kv::SharedKv;
use crate::config_reader::{Object, Spelling};
use crate::error::Result;
use crate::formats::{Own, Plan, Scheme};
use crate::ngram::Hashing;

/// What is quantised, where the configuration says that anything is.
static SCHEME: Scheme = Scheme {
    fp8: &[
        "attn.wq_a.",
        "attn.wq_b.",
        "attn.wkv.",
        "attn.wo_a.",
        "attn.wo_b.",
        "indexer.wq_b.",
        "shared_experts.",
        "main_proj.",
        "engram.wkv.",
        "engram.embed.",
    ],
    not_fp8: &[],
    fp4: &["ffn.experts."],
    wide: &["hc_attn_", "hc_ffn_", "attn_sink", "gate.bias"],
    integers: &[],
    scale: ".scale",
    narrow_scales: true,
};

/// What the repository's own code takes for granted.
static OWN: Own = Own { dtype: "fp8", block: 32, fp4: true, scheme: &SCHEME, eps: 1e-20, max_position: 1 << 20 };

/// A DeepSeek-V4.1 model.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    pub(super) frame: Frame,
    pub(super) attention: SharedKv,
    pub(super) selection: Selection,
    /// Candidate blocks, where there are any.
    pub(super) blocks: Option<Blocks>,
    /// What each layer attends to.
    pub(super) layers: Vec<Layer>,
    pub(super) hyper: Hyper,
    pub(super) moe: Moe,
    pub(super) engram: Option<Engram>,
    pub(super) draft: Option<Draft>,
}

/// The memory of n-grams.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Engram {
    /// How its tables are addressed, and the layers that have one.
    pub hashing: Hashing,
    /// Rows of each table.
    pub rows: Vec<usize>,
    /// A row, and how it is read.
    pub gate: engram::Gated,
}

/// The draft head.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Draft {
    /// Its layers.
    pub stages: usize,
    /// Tokens of a draft.
    pub block: usize,
    /// Stands for tokens that are not chosen yet.
    pub noise: usize,
    /// Layers whose inputs it reads.
    pub targets: Vec<usize>,
    /// Rank of what a token asks of the next.
    pub rank: usize,
    /// The experts of a stage.
    pub experts: Moe,
}

/// Whether `o` is a configuration of the repository's own code.
pub(crate) fn is_reference(o: &Object<'_>) -> bool {
    ["dim", "n_layers", "compress_ratios", "kv_source_layers"].iter().all(|k| o.has(k))
}

impl Config {
    /// Reads it strictly. What concerns images only is passed over.
    pub fn read(o: &Object<'_>) -> Result<Config> {
        o.ignore(&["transformers_version", "pad_token_id", "image_token_id", "vision_config"]);
        let text = o.require_object("text_config")?;
        text.optional_str_in("model_type", &["deepseek_v41_text"])?;
        if text.bool_or("attention_bias", false)? {
            return Err(text.error("attention_bias", "false"));
        }
        let sizes = Frame::read_sizes(&text)?;
        let frame = Frame {
            bos: o.token_ids("bos_token_id", sizes.vocab)?.and_then(|ids| ids.first().copied()).or(sizes.bos),
            eos: o.token_ids("eos_token_id", sizes.vocab)?.unwrap_or(sizes.eos),
            plan: Plan::read_with(o, &SCHEME)?,
            ..sizes
        };
        let yarn = text.require_object("rope_scaling")?;
        yarn.require_str_in(if yarn.has("rope_type") { "rope_type" } else { "type" }, &["yarn"])?;
        let original = yarn.require_usize("original_max_position_embeddings")?;
        let scaling = Scaling::yarn(&yarn, yarn.require_positive("factor")?, original)?;
        Config::sizes(&text, Spelling::Published, frame, scaling)
    }

    /// Reads a configuration of the repository's own code.
    pub(crate) fn read_reference(o: &Object<'_>) -> Result<Config> {
        if o.optional_f64("gate_temp")?.is_some_and(|t| t != 1.0) {
            return Err(o.error("gate_temp", "1, as no release divides its scores"));
        }
        Config::sizes(o, Spelling::Own, Frame::read_own(o, &OWN)?, Scaling::own_yarn(o)?)
    }

    /// Reads what both forms have.
    fn sizes(o: &Object<'_>, spelling: Spelling, frame: Frame, stretch: Scaling) -> Result<Config> {
        let attention = SharedKv::read(o, spelling, frame.eps, false, stretch)?;
        let moe = Moe::read_everywhere(o, spelling)?;
        let draft = Draft::read(o, &frame, &moe, spelling)?;
        let keys = Keys {
            ratios: "compress_ratios",
            sources: spelling.key("kv_source_layer_ids", "kv_source_layers"),
            selecting: spelling.key("index_source_layer_ids", "index_source_layers"),
            candidates: spelling.key("candidate_source_layer_id", "candidate_source_layer"),
        };
        let layers = plan::read(o, keys, frame.layers, draft.as_ref().map_or(0, |d| d.stages))?;
        let blocks = Blocks::read(o)?;
        let chosen = |l: &Layer| matches!(l, Layer::Compressed { candidates, .. } if *candidates != Candidates::Apart);
        if blocks.is_none() && layers.iter().any(chosen) {
            return Err(o.error("candidate_block_size", format!("a size, as {} is there", keys.candidates)));
        }
        Ok(Config {
            selection: Selection::read(o, attention.far.dim, false)?,
            attention,
            blocks,
            layers,
            engram: Engram::read(o, &frame, spelling)?,
            hyper: Hyper::read(o, frame.eps)?,
            moe: moe.among(moe.experts, moe.per_token),
            draft,
            frame,
        })
    }
}

impl Draft {
    /// Reads the draft head, if there is one.
    fn read(o: &Object<'_>, frame: &Frame, moe: &Moe, spelling: Spelling) -> Result<Option<Draft>> {
        let key = |published, own| spelling.key(published, own);
        let stages = o.optional_usize_in(key("num_nextn_predict_layers", "n_mtp_layers"), 0..=16)?.unwrap_or(0);
        if stages == 0 {
            return Ok(None);
        }
        let targets_key = key("dspark_target_layer_ids", "dspark_target_layers");
        let targets = o.usize_list(targets_key)?.unwrap_or_default();
        if targets.is_empty() || !targets.is_sorted_by(|a, b| a < b) || targets.iter().any(|l| *l >= frame.layers) {
            return Err(o.error(targets_key, format!("rising numbers of layers below {}", frame.layers)));
        }
        let experts = o.require_usize_in("dspark_n_routed_experts", 1..=4096)?;
        let per_token = key("dspark_num_experts_per_tok", "dspark_n_activated_experts");
        Ok(Some(Draft {
            stages,
            targets,
            block: o.require_usize_in("dspark_block_size", 1..=256)?,
            noise: o.require_usize_in(key("dspark_noise_token_id", "dspark_noise_id"), 0..=frame.vocab - 1)?,
            rank: o.require_usize_in("dspark_markov_rank", 1..=1 << 18)?,
            experts: moe.among(experts, o.require_usize_in(per_token, 1..=experts)?),
        }))
    }
}

impl Engram {
    /// Reads the tables, if there are any.
    fn read(o: &Object<'_>, frame: &Frame, spelling: Spelling) -> Result<Option<Engram>> {
        let key = |published, own| spelling.key(published, own);
        let layers_key = key("engram_layer_ids", "engram_layers");
        let layers = o.usize_list(layers_key)?.unwrap_or_default();
        if layers.is_empty() {
            return Ok(None);
        }
        if !layers.is_sorted_by(|a, b| a < b) || layers.iter().any(|l| *l >= frame.layers) {
            return Err(o.error(layers_key, format!("rising numbers of layers below {}", frame.layers)));
        }
        let longest = o.require_usize_in("engram_max_ngram_size", 2..=16)?;
        let size = o.require_usize_in("engram_vocab_size", 1..=1 << 31)? as u64;
        let pad = o.require_usize_in(key("engram_pad_token_id", "engram_pad_id"), 0..=frame.vocab - 1)?;
        let heads = o.require_usize_in("engram_n_heads", 1..=256)?;
        let classes = o.optional_usize("engram_compressed_vocab_size")?;
        let hashing = Hashing { layers, sizes: vec![size; longest - 1], heads, pad, seed: 0, classes };
        let rows: Vec<usize> = hashing.primes().iter().map(|p| p.iter().sum::<u64>() as usize).collect();
        if o.usize_list("engram_num_embeddings")?.is_some_and(|given| given != rows) {
            return Err(
                o.error("engram_num_embeddings", format!("{rows:?}, the sums of the primes that hashes are taken by"))
            );
        }
        Ok(Some(Engram {
            hashing,
            rows,
            gate: engram::Gated {
                width: o.require_usize_in("engram_head_dim", 1..=1 << 16)?,
                block: 32,
                eps: frame.eps,
            },
        }))
    }
}
