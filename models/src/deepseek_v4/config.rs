//! `config.json` of `DeepseekV4ForCausalLM`, as published, as transformers writes it, and in the spelling of the
//! repository's own code.

use crate::blocks::assembly::Frame;
use crate::blocks::mhc::Hyper;
use crate::blocks::mlp::Gated;
use crate::blocks::moe::{Choice, Groups, Moe, Parts, Score};
use crate::blocks::rope::{Rope, Scaling};
use crate::blocks::shared_kv::SharedKv;
use crate::config_reader::Object;
use crate::error::Result;
use crate::formats::{Plan, Scheme};
use hadal_types::DType;

/// What is quantised, in the names of the releases.
static SCHEME: Scheme = Scheme {
    fp8: &[
        "attn.wq_a.",
        "attn.wq_b.",
        "attn.wkv.",
        "attn.wo_a.",
        "attn.wo_b.",
        "indexer.wq_b.",
        "shared_experts.",
        ".e_proj.",
        ".h_proj.",
    ],
    not_fp8: &[],
    fp4: &["ffn.experts."],
    wide: &["hc_", ".ape", "attn_sink", "gate.bias"],
    integers: &["tid2eid"],
    scale: ".scale",
    narrow_scales: true,
};

/// A DeepSeek-V4 model.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    pub(super) frame: Frame,
    pub(super) attention: SharedKv,
    /// Tokens in a compressed row of each layer, 0 where there are none; those of layers for multi-token prediction follow.
    pub(super) ratios: Vec<usize>,
    pub(super) index: Option<Index>,
    /// Rotation in layers with a window only.
    pub(super) near: Rope,
    /// Rotation in layers with compressed rows.
    pub(super) far: Rope,
    pub(super) moe: Moe,
    /// The first layers, whose experts a table chooses by token.
    pub(super) hashed: usize,
    pub(super) hyper: Hyper,
}

/// Sizes of the selection of compressed rows.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Index {
    /// Heads of index queries.
    pub heads: usize,
    /// Their size.
    pub head_dim: usize,
    /// Rows that a query keeps.
    pub kept: usize,
}

/// The ratio of layers that select among their compressed rows, which overlap; others see all of them.
pub(super) const SELECTED: usize = 4;

/// Whether `o` is a configuration of the repository's own code.
pub(crate) fn is_reference(o: &Object<'_>) -> bool {
    ["dim", "n_layers", "compress_ratios", "n_hash_layers"].iter().all(|k| o.has(k)) && !o.has("kv_source_layers")
}

impl Config {
    /// Reads it strictly.
    pub fn read(o: &Object<'_>) -> Result<Config> {
        if o.bool_or("attention_bias", false)? {
            return Err(o.error("attention_bias", "false"));
        }
        o.str_in_or("topk_method", &["noaux_tc"], "noaux_tc")?;
        if !o.bool_or("norm_topk_prob", true)? {
            return Err(o.error("norm_topk_prob", "true, as the weights of chosen experts are divided by their sum"));
        }
        // Copies of one release disagree; entries of `compress_ratios` behind the last layer count.
        o.ignore(&["num_nextn_predict_layers", "router_jitter_noise"]);
        if o.bool_or("mlp_bias", false)? {
            return Err(o.error("mlp_bias", "false"));
        }
        let frame = Frame { plan: Plan::read_with(o, &SCHEME)?, ..Frame::read_sizes(o)? };
        let yarn = stretch(o)?;
        // Magnitudes are left alone, which transformers says by a factor of 1.
        yarn.ignore(&["type", "rope_theta", "partial_rotary_factor"]);
        if yarn.optional_f64("attention_factor")?.is_some_and(|f| f != 1.0) {
            return Err(yarn.error("attention_factor", "1"));
        }
        yarn.require_str_in(if yarn.has("rope_type") { "rope_type" } else { "type" }, &["yarn"])?;
        let scaling = scaling(&yarn, "factor", "original_max_position_embeddings")?;
        Config::sizes(o, false, frame, scaling)
    }

    /// Reads a configuration of the repository's own code.
    pub(crate) fn read_reference(o: &Object<'_>) -> Result<Config> {
        let vocab = o.require_usize_in("vocab_size", 1..=1 << 24)?;
        let plan = Plan {
            block: (o.str_in_or("dtype", &["bf16", "fp8"], "fp8")? == "fp8").then_some([128, 128]),
            pow2: o.optional_str_in("scale_fmt", &["ue8m0"])?.is_some(),
            fp4: o.optional_str_in("expert_dtype", &["fp4", "fp8"])? == Some("fp4"),
            scheme: &SCHEME,
            ..Plan::plain(DType::BF16)
        };
        let frame = Frame {
            vocab,
            hidden: o.require_usize_in("dim", 1..=1 << 18)?,
            layers: o.require_usize_in("n_layers", 1..=1024)?,
            eps: o.positive_or("norm_eps", 1e-6)?,
            tied: false,
            max_position: o.usize_or("max_seq_len", 1 << 20)?,
            bos: None,
            eos: Vec::new(),
            plan,
        };
        let scaling = scaling(o, "rope_factor", "original_seq_len")?;
        Config::sizes(o, true, frame, scaling)
    }

    /// Reads what both forms have, with the keys of the repository's `own` or the published ones.
    fn sizes(o: &Object<'_>, own: bool, frame: Frame, stretch: Scaling) -> Result<Config> {
        let key = |published: &'static str, theirs: &'static str| if own { theirs } else { published };
        let head_dim = o.require_usize_in("head_dim", 3..=1 << 14)?;
        let turning_key = key("qk_rope_head_dim", "rope_head_dim");
        // Transformers may write the part of a head instead.
        let part = o.optional_f64("partial_rotary_factor")?.filter(|_| !o.has(turning_key));
        let turning = match part.map(|part| (part * head_dim as f64) as usize) {
            Some(turning @ 2..) if turning < head_dim => turning,
            Some(_) => return Err(o.error("partial_rotary_factor", "a part of head_dim")),
            None => o.require_usize_in(turning_key, 2..=head_dim - 1)?,
        };
        if !turning.is_multiple_of(2) {
            return Err(o.error(turning_key, "an even size, which rotation needs"));
        }
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
            unit: true,
            eps: frame.eps,
        };
        let far = o.positive_or("compress_rope_theta", 160_000.0)?;
        if far <= 1.0 {
            return Err(o.error("compress_rope_theta", "a number greater than 1, which yarn needs"));
        }
        let rope = |theta, scaling| Rope { dim: turning, theta, scaling, interleaved: true };

        let ratios = ratios(o, frame.layers)?;
        let index = match ratios.contains(&SELECTED) {
            false => None,
            true => Some(Index {
                heads: o.require_usize_in("index_n_heads", 1..=1 << 12)?,
                head_dim: o.require_usize_in("index_head_dim", turning..=1 << 14)?,
                kept: o.require_usize_in("index_topk", 1..=1 << 24)?,
            }),
        };
        let hyper = Hyper::read(o, frame.eps)?;
        Ok(Config {
            attention,
            ratios,
            index,
            near: rope(o.positive_or("rope_theta", 10_000.0)?, Scaling::None),
            far: rope(far, stretch),
            moe: experts(o, key)?,
            hashed: hashed(o, key("num_hash_layers", "n_hash_layers"), frame.layers)?,
            hyper,
            frame,
        })
    }
}

/// Where the stretch of compressed rows is: `rope_scaling`, or what transformers makes of it.
fn stretch<'a>(o: &Object<'a>) -> Result<Object<'a>> {
    if o.has("rope_scaling") {
        return o.require_object("rope_scaling");
    }
    let parameters = o.require_object("rope_parameters")?;
    match parameters.has("compress") {
        true => {
            parameters.ignore(&["main"]);
            parameters.require_object("compress")
        }
        false => Ok(parameters),
    }
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

/// `compress_ratios`; or, as transformers has it, the kind of each layer and the ratio of each kind. Where there are both, they
/// say the same.
fn ratios(o: &Object<'_>, layers: usize) -> Result<Vec<usize>> {
    const KINDS: [&str; 3] = ["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"];
    let by_kind: Option<Vec<usize>> = match o.str_list("layer_types")? {
        None => None,
        Some(kinds) => {
            let rates = o.optional_object("compress_rates")?;
            let rate = |kind, default| rates.as_ref().map_or(Ok(default), |r| r.usize_or(kind, default));
            let known = [0, rate(KINDS[1], SELECTED)?, rate(KINDS[2], 128)?];
            // Layers are told apart by their ratios from here on.
            let refused = |kind, expected| Err(rates.as_ref().unwrap_or(o).error(kind, expected));
            if known[1] != SELECTED {
                return refused(KINDS[1], "4, the only ratio at which rows overlap and are selected");
            }
            if [0, SELECTED].contains(&known[2]) {
                return refused(KINDS[2], "a ratio but 0 and 4, which other kinds of layers have");
            }
            let of = |kind: &str| KINDS.iter().position(|k| *k == kind).map(|i| known[i]);
            let Some(ratios) = kinds.iter().map(|kind| of(kind)).collect() else {
                return Err(o.error("layer_types", format!("a list of {}", KINDS.join(", "))));
            };
            Some(ratios)
        }
    };
    let (key, ratios) = match (o.usize_list("compress_ratios")?, by_kind) {
        (Some(ratios), Some(by_kind)) if by_kind.iter().take(layers).ne(ratios.iter().take(layers)) => {
            let expected = format!("{by_kind:?}, as layer_types and compress_rates say");
            return Err(o.error("compress_ratios", expected));
        }
        (Some(ratios), _) => ("compress_ratios", ratios),
        (None, by_kind) => ("layer_types", by_kind.unwrap_or_default()),
    };
    let further = 0..=8;
    if !ratios.len().checked_sub(layers).is_some_and(|n| further.contains(&n)) || ratios.iter().any(|r| *r > 1 << 20) {
        return Err(
            o.error(key, format!("a ratio for each of {layers} layers, and for those that predict further tokens"))
        );
    }
    Ok(ratios)
}

/// How many of the first layers choose experts by token.
fn hashed(o: &Object<'_>, key: &str, layers: usize) -> Result<usize> {
    let Some(kinds) = o.str_list("mlp_layer_types")?.filter(|_| !o.has(key)) else {
        return o.require_usize_in(key, 0..=layers);
    };
    let hashed = kinds.iter().take_while(|k| **k == "hash_moe").count();
    match kinds.len() == layers && kinds[hashed..].iter().all(|k| *k == "moe") {
        true => Ok(hashed),
        false => {
            Err(o.error("mlp_layer_types", format!("\"hash_moe\" for the first of {layers} layers, then \"moe\"")))
        }
    }
}

/// The experts, which every layer has.
fn experts(o: &Object<'_>, key: impl Fn(&'static str, &'static str) -> &'static str) -> Result<Moe> {
    let experts = o.require_usize_in("n_routed_experts", 1..=4096)?;
    let width = o.require_usize_in(key("moe_intermediate_size", "moe_inter_dim"), 1..=1 << 20)?;
    let expert = Gated { gate: "w1", up: "w3", down: "w2", limit: Gated::read_limit(o)? };
    let scores = ["sqrtsoftplus", "sigmoid"];
    let score = match o.str_in_or(key("scoring_func", "score_func"), &scores, scores[0])? {
        "sigmoid" => Score::Sigmoid,
        _ => Score::SqrtSoftplus,
    };
    Ok(Moe {
        experts,
        per_token: o.require_usize_in(key("num_experts_per_tok", "n_activated_experts"), 1..=experts)?,
        width,
        shared_width: width * o.optional_usize_in("n_shared_experts", 0..=1024)?.unwrap_or(0),
        parts: Parts { whole: "ffn", bias: "bias", expert, weighs_inner: true },
        score,
        choice: Choice::Biased(Groups { count: 1, kept: 1 }),
        normalise: true,
        factor: o.f64_or(key("routed_scaling_factor", "route_scale"), 1.0)?,
        first: 0,
        every: 1,
    })
}
