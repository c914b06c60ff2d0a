//! `config.json` of `DeepseekV41ForCausalLM`, which has the model of text inside `text_config`; and the flat configuration of
//! the repository's own code, which spells many keys in another way.

use super::plan::{self, Candidates, Keys, Layer};
use crate::blocks::assembly::Frame;
use crate::blocks::engram;
use crate::blocks::mhc::Hyper;
use crate::blocks::mlp::Gated;
use crate::blocks::moe::{Choice, Groups, Moe, Parts, Score};
use crate::blocks::rope::{Rope, Scaling};
use crate::blocks::shared_kv::SharedKv;
use crate::config_reader::Object;
use crate::error::Result;
use crate::formats::{Plan, Scheme};
use crate::ngram::Hashing;
use hadal_ir::module::{Counter, Module};
use hadal_types::{DType, Definition, Sym};

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

/// A DeepSeek-V4.1 model.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    pub(super) frame: Frame,
    pub(super) attention: SharedKv,
    /// Rotation in layers with a window only, of trailing channels.
    pub(super) near: Rope,
    /// Rotation in layers with compressed rows.
    pub(super) far: Rope,
    pub(super) index: Index,
    /// What each layer attends to.
    pub(super) layers: Vec<Layer>,
    pub(super) hyper: Hyper,
    pub(super) moe: Moe,
    pub(super) engram: Option<Engram>,
    pub(super) draft: Option<Draft>,
}

/// Sizes of the selection.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Index {
    /// Heads of index queries.
    pub heads: usize,
    /// Their size.
    pub head_dim: usize,
    /// Rows that a query keeps.
    pub kept: usize,
    /// Candidate blocks, where there are any.
    pub blocks: Option<Blocks>,
}

/// Blocks of rows that selections stay within.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Blocks {
    /// Rows in one.
    pub size: usize,
    /// Blocks that a query keeps.
    pub kept: usize,
}

impl Blocks {
    /// The symbol that counts the blocks of the rows that `counter` counts.
    pub fn counted(self, module: &mut Module, counter: Counter) -> Sym {
        let sym = Sym::new(&format!("B{}", self.size)).expect("a size of at most seven digits");
        let by = self.size as i64;
        module.define(sym, Definition::Quotient { of: counter.all() + (by - 1), by }).expect("rows are counted before");
        sym
    }
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
    /// Experts of a stage, and how many of them a token passes.
    pub experts: [usize; 2],
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
        let scaling = scaling(&yarn, "factor", "original_max_position_embeddings")?;
        Config::sizes(&text, false, frame, scaling)
    }

    /// Reads a configuration of the repository's own code.
    pub(crate) fn read_reference(o: &Object<'_>) -> Result<Config> {
        let plan = Plan {
            dtype: DType::BF16,
            block: (o.str_in_or("dtype", &["bf16", "fp8"], "fp8")? == "fp8").then_some([32, 32]),
            pow2: o.optional_str_in("scale_fmt", &["ue8m0"])?.is_some(),
            fp4: o.optional_str_in("expert_dtype", &["fp4", "fp8"])? != Some("fp8"),
            scheme: &SCHEME,
        };
        if o.optional_f64("gate_temp")?.is_some_and(|t| t != 1.0) {
            return Err(o.error("gate_temp", "1, as no release divides its scores"));
        }
        let vocab = o.require_usize_in("vocab_size", 1..=1 << 24)?;
        let frame = Frame {
            vocab,
            hidden: o.require_usize_in("dim", 1..=1 << 18)?,
            layers: o.require_usize_in("n_layers", 1..=1024)?,
            eps: o.positive_or("norm_eps", 1e-20)?,
            tied: false,
            max_position: o.usize_or("max_seq_len", 1 << 20)?,
            bos: None,
            eos: Vec::new(),
            plan,
        };
        let scaling = scaling(o, "rope_factor", "original_seq_len")?;
        Config::sizes(o, true, frame, scaling)
    }

    /// Reads what both forms have, with the keys of the repository's `own` or the published one.
    fn sizes(o: &Object<'_>, own: bool, frame: Frame, stretch: Scaling) -> Result<Config> {
        let key = |published: &'static str, theirs: &'static str| if own { theirs } else { published };
        let near = o.positive_or("rope_theta", 10000.0)?;
        let far = o.positive_or("compress_rope_theta", 160000.0)?;
        if far <= 1.0 {
            return Err(o.error("compress_rope_theta", "a number greater than 1, which yarn needs"));
        }
        let head_dim = o.require_usize_in("head_dim", 1..=1 << 14)?;
        let turning_key = key("qk_rope_head_dim", "rope_head_dim");
        let turning = o.require_usize_in(turning_key, 2..=head_dim)?;
        if !turning.is_multiple_of(2) {
            return Err(o.error(turning_key, "an even size, which rotation needs"));
        }
        let rope = |theta, scaling| Rope { dim: turning, theta, scaling, interleaved: true };
        let heads_key = key("num_attention_heads", "n_heads");
        let heads = o.require_usize_in(heads_key, 1..=1 << 12)?;
        if o.usize_or("num_key_value_heads", 1)? != 1 {
            return Err(o.error("num_key_value_heads", "1, as one row is key and value of all heads"));
        }
        let groups = o.require_usize_in("o_groups", 1..=heads)?;
        if !heads.is_multiple_of(groups) {
            return Err(o.error("o_groups", format!("a divisor of {heads_key} ({heads})")));
        }
        let attention = SharedKv {
            heads,
            head_dim,
            q_rank: o.require_usize_in("q_lora_rank", 1..=1 << 18)?,
            groups: [groups, o.require_usize_in("o_lora_rank", 1..=1 << 18)?],
            window: o.require_usize_in(key("sliding_window", "window_size"), 1..=1 << 20)?,
            unit: false,
            eps: frame.eps,
        };
        let (near, far) = (rope(near, Scaling::None), rope(far, stretch));

        let draft = Draft::read(o, &frame, key)?;
        let keys = Keys {
            ratios: "compress_ratios",
            sources: key("kv_source_layer_ids", "kv_source_layers"),
            selecting: key("index_source_layer_ids", "index_source_layers"),
            candidates: key("candidate_source_layer_id", "candidate_source_layer"),
        };
        let layers = plan::read(o, keys, frame.layers, draft.as_ref().map_or(0, |d| d.stages))?;
        let index = Index {
            heads: o.require_usize_in("index_n_heads", 1..=1 << 12)?,
            head_dim: o.require_usize_in("index_head_dim", turning..=1 << 14)?,
            kept: o.require_usize_in("index_topk", 1..=1 << 24)?,
            blocks: match o.optional_usize_in("candidate_block_size", 1..=1 << 20)? {
                None => None,
                Some(size) => Some(Blocks { size, kept: o.require_usize_in("candidate_topk_blocks", 1..=1 << 24)? }),
            },
        };
        let chosen = |l: &Layer| matches!(l, Layer::Compressed { candidates, .. } if *candidates != Candidates::Apart);
        if index.blocks.is_none() && layers.iter().any(chosen) {
            return Err(o.error("candidate_block_size", format!("a size, as {} is there", keys.candidates)));
        }
        let engram = Engram::read(o, &frame, key)?;
        let hyper = Hyper::read(o, frame.eps)?;
        let moe = experts(o, key)?;
        Ok(Config { attention, near, far, index, layers, hyper, moe, engram, draft, frame })
    }
}

/// The experts of the main layers.
fn experts(o: &Object<'_>, key: impl Fn(&'static str, &'static str) -> &'static str) -> Result<Moe> {
    let experts = o.require_usize_in("n_routed_experts", 1..=4096)?;
    let per_token = o.require_usize_in(key("num_experts_per_tok", "n_activated_experts"), 1..=experts)?;
    let width = o.require_usize_in(key("moe_intermediate_size", "moe_inter_dim"), 1..=1 << 20)?;
    let scores = ["sqrtsoftplus", "sigmoid", "softmax"];
    o.optional_str_in("topk_method", &["noaux_tc"])?;
    Ok(Moe {
        experts,
        per_token,
        width,
        shared_width: width * o.optional_usize_in("n_shared_experts", 0..=1024)?.unwrap_or(1),
        parts: Parts {
            whole: "ffn",
            bias: "bias",
            expert: Gated { gate: "w1", up: "w3", down: "w2", limit: Gated::read_limit(o)? },
            weighs_inner: true,
        },
        score: match o.str_in_or(key("scoring_func", "score_func"), &scores, scores[0])? {
            "sigmoid" => Score::Sigmoid,
            "softmax" => Score::Softmax,
            _ => Score::SqrtSoftplus,
        },
        choice: Choice::Biased(Groups { count: 1, kept: 1 }),
        // One expert's weight is not divided by itself.
        normalise: o.bool_or("norm_topk_prob", true)? && per_token > 1,
        factor: o.f64_or(key("routed_scaling_factor", "route_scale"), 1.0)?,
        first: 0,
        every: 1,
    })
}

/// The stretch for long contexts, which changes no magnitude.
fn scaling(o: &Object<'_>, factor: &str, original: &str) -> Result<Scaling> {
    Ok(Scaling::Yarn {
        factor: o.require_positive(factor)?,
        original: o.require_usize(original)? as f64,
        beta_fast: o.positive_or("beta_fast", 32.0)?,
        beta_slow: o.positive_or("beta_slow", 1.0)?,
        truncate: true,
        magnitude: 1.0,
    })
}

impl Draft {
    /// Reads the draft head, if there is one.
    fn read(
        o: &Object<'_>,
        frame: &Frame,
        key: impl Fn(&'static str, &'static str) -> &'static str,
    ) -> Result<Option<Draft>> {
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
            experts: [experts, o.require_usize_in(per_token, 1..=experts)?],
        }))
    }
}

impl Engram {
    /// Reads the tables, if there are any.
    fn read(
        o: &Object<'_>,
        frame: &Frame,
        key: impl Fn(&'static str, &'static str) -> &'static str,
    ) -> Result<Option<Engram>> {
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
