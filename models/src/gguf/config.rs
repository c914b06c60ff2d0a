//! The configuration that a GGUF file's metadata describes, in the words of `config.json`, which models read.

use super::read::{Head, Value};
use super::tensors::Heads;
use crate::blocks::rope::{Rope, Scaling};
use crate::error::{Error, Result};
use serde_json::{Map, Value as Json, json};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;

/// An architecture as files name it.
struct Architecture {
    name: &'static str,
    model_type: &'static str,
    class: &'static str,
    /// Whether queries and keys are stored for pairs of neighbours.
    neighbours: bool,
}

const ARCHITECTURES: [Architecture; 5] = [
    Architecture { name: "llama", model_type: "llama", class: "LlamaForCausalLM", neighbours: true },
    Architecture { name: "qwen2", model_type: "qwen2", class: "Qwen2ForCausalLM", neighbours: false },
    Architecture { name: "qwen3", model_type: "qwen3", class: "Qwen3ForCausalLM", neighbours: false },
    Architecture { name: "deepseek", model_type: "deepseek", class: "DeepseekForCausalLM", neighbours: true },
    Architecture { name: "deepseek2", model_type: "deepseek_v2", class: "DeepseekV2ForCausalLM", neighbours: false },
];

/// Keys below the architecture's name that say nothing about what is computed, or repeat what tensors say.
const PASSED_OVER: [&str; 5] = [
    "vocab_size",
    "rope.dimension_count",
    "rope.scaling.finetuned",
    "attention.group_count",
    "interleave_moe_layer_step",
];

/// Configuration and heads, for reading the tensors.
pub fn translate(file: &Path, head: &Head) -> Result<(Map<String, Json>, Heads)> {
    let m = Metadata { file, head, prefix: String::new(), seen: RefCell::default() };
    let known = || ARCHITECTURES.map(|a| a.name).join(", ");
    let name = m.text("general.architecture")?.unwrap_or_default();
    let Some(arch) = ARCHITECTURES.iter().find(|a| a.name == name) else {
        return Err(m.wrong("general.architecture", &format!("one of {}", known())));
    };
    let m = Metadata { prefix: format!("{}.", arch.name), ..m };
    let mut o = Map::new();
    let mut set = |key: &str, value: Json| drop(o.insert(key.into(), value));
    set("architectures", json!([arch.class]));
    set("model_type", json!(arch.model_type));
    set("hidden_act", json!("silu"));
    set("vocab_size", json!(m.rows_of("token_embd.weight")?));
    set("tie_word_embeddings", json!(m.tensor("output.weight").is_none()));
    for (key, name) in [
        ("hidden_size", "embedding_length"),
        ("num_hidden_layers", "block_count"),
        ("max_position_embeddings", "context_length"),
        ("intermediate_size", "feed_forward_length"),
        ("num_attention_heads", "attention.head_count"),
    ] {
        set(key, json!(m.require_int(name)?));
    }
    set("rms_norm_eps", shortest(m.require_real("attention.layer_norm_rms_epsilon")?));
    let theta = m.real("rope.freq_base")?.unwrap_or(10000.0);
    set("rope_theta", shortest(theta));
    if let Some(id) = m.int("tokenizer.ggml.bos_token_id")? {
        set("bos_token_id", json!(id));
    }
    let mut ends = Vec::new();
    for name in ["eos_token_id", "eot_token_id", "eom_token_id"] {
        ends.extend(m.int(&format!("tokenizer.ggml.{name}"))?.filter(|id| !ends.contains(id)));
    }
    if !ends.is_empty() {
        set("eos_token_id", json!(ends));
    }
    let count = m.require_int("attention.head_count")?;
    let mut turning = 0;
    if arch.name == "deepseek2" {
        turning = latent_attention(&m, &mut set)?;
    } else {
        set("num_key_value_heads", json!(m.int("attention.head_count_kv")?.unwrap_or(count)));
        let hidden = m.require_int("embedding_length")?;
        let size = m.int("attention.key_length")?.unwrap_or(hidden / count.max(1));
        if m.int("attention.value_length")?.is_some_and(|n| n != size) {
            return Err(m.wrong("attention.value_length", &format!("{size}, as keys have")));
        }
        turning = turning.max(size);
        set("head_dim", json!(size));
        if arch.name != "qwen2" {
            set("attention_bias", json!(m.tensor("blk.0.attn_output.bias").is_some()));
        }
        if arch.name == "llama" {
            set("mlp_bias", json!(m.tensor("blk.0.ffn_up.bias").is_some()));
            if m.int("expert_count")?.is_some_and(|n| n > 0) {
                return Err(m.wrong("expert_count", "0: llama models with experts are not supported"));
            }
        }
    }
    if m.int("rope.dimension_count")?.is_some_and(|n| n != turning) {
        return Err(m.wrong("rope.dimension_count", &format!("{turning}, as whole heads turn")));
    }
    if arch.name.starts_with("deepseek") {
        experts(&m, arch.name == "deepseek2", &mut set)?;
    }
    if let Some(scaling) = scaling(&m, theta, turning, arch.name == "deepseek2")? {
        set("rope_scaling", scaling);
    }
    let heads = Heads {
        neighbours: arch.neighbours.then_some(turning as usize),
        count: count as usize,
        layers: m.require_int("block_count")? as usize,
        experts: m.int("expert_count")?.unwrap_or(0) as usize,
    };
    for key in m.unseen() {
        o.insert(key, json!("(metadata)"));
    }
    Ok((o, heads))
}

/// Sizes of latent attention; returns how much of a head turns.
fn latent_attention(m: &Metadata<'_>, set: &mut impl FnMut(&str, Json)) -> Result<i64> {
    let turning = m.require_int("rope.dimension_count")?;
    let rank = m.require_int("attention.kv_lora_rank")?;
    // Files made for attention on latent rows give those as the sizes of keys and values, and heads beside.
    let size = |own: &str, plain: &str| Ok(m.int(own)?.or(m.int(plain)?));
    let (key, value) = (
        size("attention.key_length_mla", "attention.key_length")?,
        size("attention.value_length_mla", "attention.value_length")?,
    );
    let (Some(key), Some(value)) = (key, value) else {
        return Err(m.wrong("attention.key_length", "the size of a head's key, and that of its value"));
    };
    if key <= turning {
        return Err(m.wrong("attention.key_length", &format!("more than the {turning} that turn")));
    }
    let _ = (m.int("attention.key_length")?, m.int("attention.value_length")?, m.int("attention.head_count_kv")?);
    set("qk_rope_head_dim", json!(turning));
    set("qk_nope_head_dim", json!(key - turning));
    set("v_head_dim", json!(value));
    set("kv_lora_rank", json!(rank));
    m.int("attention.q_lora_rank")?.filter(|n| *n > 0).into_iter().for_each(|n| set("q_lora_rank", json!(n)));
    Ok(turning)
}

/// Experts and how they are chosen.
fn experts(m: &Metadata<'_>, latent: bool, set: &mut impl FnMut(&str, Json)) -> Result<()> {
    let Some(count) = m.int("expert_count")?.filter(|n| *n > 0) else { return Ok(()) };
    set("n_routed_experts", json!(count));
    set("num_experts_per_tok", json!(m.require_int("expert_used_count")?));
    set("moe_intermediate_size", json!(m.require_int("expert_feed_forward_length")?));
    set("n_shared_experts", json!(m.int("expert_shared_count")?.unwrap_or(0)));
    set("first_k_dense_replace", json!(m.int("leading_dense_block_count")?.unwrap_or(0)));
    let sigmoid = match m.int("expert_gating_func")? {
        None | Some(0 | 1) => false,
        Some(2) if latent => true,
        Some(_) => return Err(m.wrong("expert_gating_func", if latent { "1 or 2" } else { "1" })),
    };
    let normalise = m.flag("expert_weights_norm")?.unwrap_or(false);
    let factor = m.real("expert_weights_scale")?.filter(|f| *f != 0.0).unwrap_or(1.0);
    let groups = m.int("expert_group_count")?.filter(|n| *n > 1);
    let kept = m.int("expert_group_used_count")?.unwrap_or(1);
    if let Some(groups) = groups {
        set("n_group", json!(groups));
        set("topk_group", json!(kept));
    }
    set("norm_topk_prob", json!(normalise));
    set("routed_scaling_factor", shortest(factor));
    if latent {
        let biased = m.any_tensor(".exp_probs_b.bias");
        set("scoring_func", json!(if sigmoid { "sigmoid" } else { "softmax" }));
        let method = match (biased, groups) {
            (true, _) => "noaux_tc",
            (false, Some(_)) => "group_limited_greedy",
            (false, None) => "greedy",
        };
        set("topk_method", json!(method));
        if biased && sigmoid {
            set("architectures", json!(["DeepseekV3ForCausalLM"]));
            set("model_type", json!("deepseek_v3"));
        }
    }
    Ok(())
}

/// How frequencies are stretched, where they are.
fn scaling(m: &Metadata<'_>, theta: f64, turning: i64, latent: bool) -> Result<Option<Json>> {
    let kind = m.text("rope.scaling.type")?.unwrap_or("linear");
    let factor_key = if m.has("rope.scaling.factor") { "rope.scaling.factor" } else { "rope.scale_linear" };
    // Zero stands for no factor.
    let factor = m.real(factor_key)?.filter(|f| *f != 0.0 && *f != 1.0 && kind != "none");
    if factor.is_some_and(|f| f < 0.0) {
        return Err(m.wrong(factor_key, "a number greater than 0"));
    }
    let original = m.int("rope.scaling.original_context_length")?;
    if m.head.frequencies.is_some() {
        if !matches!(kind, "none" | "linear") {
            return Err(m.wrong("rope.scaling.type", "none or linear, as there is a tensor of divisors too"));
        }
        if factor.is_some() {
            return Err(m.wrong(factor_key, "1, as there is a tensor of divisors too"));
        }
        return Ok(Some(llama3(m, theta, turning, original)?));
    }
    let mut o = Map::new();
    match (kind, factor) {
        ("none" | "linear" | "yarn", None) => return Ok(None),
        ("linear", Some(factor)) => {
            o.insert("type".into(), json!("linear"));
            o.insert("factor".into(), shortest(factor));
        }
        ("yarn", Some(factor)) => {
            o.insert("type".into(), json!("yarn"));
            o.insert("factor".into(), shortest(factor));
            original.into_iter().for_each(|n| drop(o.insert("original_max_position_embeddings".into(), json!(n))));
            for (key, name) in
                [("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow"), ("attn_factor", "attn_factor")]
            {
                let given = m.real(&format!("rope.scaling.{name}"))?;
                given.into_iter().for_each(|x| drop(o.insert(key.into(), shortest(x))));
            }
            // The file has a tenth of what all published models give for both magnitudes.
            if let Some(x) = m.real("rope.scaling.yarn_log_multiplier")?.filter(|x| latent && *x != 0.0) {
                for key in ["mscale", "mscale_all_dim"] {
                    o.insert(key.into(), shortest(f64::from((x * 10.0) as f32)));
                }
            }
        }
        _ => return Err(m.wrong("rope.scaling.type", "none, linear or yarn")),
    }
    Ok(Some(Json::Object(o)))
}

/// The scaling behind a table of divisors, one for each pair: that of Llama 3, or none that is known.
fn llama3(m: &Metadata<'_>, theta: f64, turning: i64, original: Option<i64>) -> Result<Json> {
    let wrong = |found: String| {
        Err(Error::Damaged {
            file: m.file.into(),
            tensor: Some("rope_freqs.weight".into()),
            expected: "the divisors of Llama 3's scaling for each pair of a head".into(),
            found,
        })
    };
    let Some(divisors) = m.head.frequencies.as_ref().filter(|d| d.len() as i64 * 2 == turning) else {
        return wrong("another table".into());
    };
    let factor = divisors.iter().fold(1.0f32, |m, d| m.max(*d));
    let original = original.unwrap_or(8192);
    let rope = |scaling| Rope { dim: turning as usize, theta, scaling, interleaved: false }.frequencies();
    let scaling = Scaling::Llama3 { factor, low: 1.0, high: 4.0, original: original as f32 };
    let mut pairs = rope(Scaling::None).into_iter().zip(rope(scaling)).zip(divisors.iter().copied());
    let differs = |((plain, stretched), d): &((f32, f32), f32)| (plain / stretched - d).abs() > 1e-4 * d.abs();
    if let Some(((plain, stretched), divisor)) = pairs.find(differs) {
        return wrong(format!("{divisor} where it would be {}", plain / stretched));
    }
    Ok(
        json!({ "rope_type": "llama3", "factor": shortest(factor.into()), "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": original }),
    )
}

/// A real that was an f32, as it was written: 1e-5 rather than 9.999999747e-6.
fn shortest(x: f64) -> Json {
    let short = (x as f32).to_string().parse::<f64>().ok().filter(|s| *s as f32 == x as f32);
    json!(short.unwrap_or(x))
}

/// The metadata, read by names below the architecture's.
struct Metadata<'a> {
    file: &'a Path,
    head: &'a Head,
    prefix: String,
    seen: RefCell<BTreeSet<String>>,
}

impl<'a> Metadata<'a> {
    fn full(&self, key: &str) -> String {
        if key.starts_with("general.") || key.starts_with("tokenizer.") {
            key.into()
        } else {
            format!("{}{key}", self.prefix)
        }
    }

    fn value(&self, key: &str) -> Option<&'a Value> {
        let full = self.full(key);
        let value = self.head.metadata.get(&full);
        self.seen.borrow_mut().insert(full);
        value
    }

    fn has(&self, key: &str) -> bool {
        self.head.metadata.contains_key(&self.full(key))
    }

    fn wrong(&self, key: &str, expected: &str) -> Error {
        let key = self.full(key);
        let found = match self.head.metadata.get(&key) {
            None => "no such key".into(),
            Some(Value::Text(t)) => format!("{:?}", t.chars().take(60).collect::<String>()),
            Some(Value::Int(i)) => i.to_string(),
            Some(Value::Real(x)) => x.to_string(),
            Some(Value::Bool(b)) => b.to_string(),
            Some(_) => "a list".into(),
        };
        Error::ConfigKey { file: self.file.into(), key, expected: expected.into(), found }
    }

    fn int(&self, key: &str) -> Result<Option<i64>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Int(i)) if (0..=1 << 40).contains(i) => Ok(Some(*i as i64)),
            // The same number for every layer.
            Some(Value::Ints(all))
                if all.first().is_some_and(|n| (0..=1 << 40).contains(n) && all.iter().all(|m| m == n)) =>
            {
                Ok(all.first().copied())
            }
            Some(_) => Err(self.wrong(key, "a whole number")),
        }
    }

    fn require_int(&self, key: &str) -> Result<i64> {
        self.int(key)?.filter(|n| *n > 0).ok_or_else(|| self.wrong(key, "a whole number greater than 0"))
    }

    fn real(&self, key: &str) -> Result<Option<f64>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Real(x)) if x.is_finite() => Ok(Some(*x)),
            Some(Value::Int(i)) => Ok(Some(*i as f64)),
            Some(_) => Err(self.wrong(key, "a number")),
        }
    }

    fn require_real(&self, key: &str) -> Result<f64> {
        self.real(key)?.ok_or_else(|| self.wrong(key, "a number"))
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(_) => Err(self.wrong(key, "true or false")),
        }
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Text(t)) => Ok(Some(t)),
            Some(_) => Err(self.wrong(key, "a text")),
        }
    }

    fn tensor(&self, name: &str) -> Option<&super::read::Declared> {
        self.head.tensors.iter().find(|t| t.name == name)
    }

    fn any_tensor(&self, end: &str) -> bool {
        self.head.tensors.iter().any(|t| t.name.ends_with(end))
    }

    fn rows_of(&self, name: &str) -> Result<usize> {
        let missing = || Error::NoSuchTensor { dir: self.file.into(), tensor: name.into() };
        self.tensor(name).map(|t| t.rows()).ok_or_else(missing)
    }

    /// Keys below the architecture's name that nobody asked for.
    fn unseen(&self) -> Vec<String> {
        let seen = self.seen.borrow();
        let own = self.head.metadata.keys().filter(|k| k.starts_with(&self.prefix) && !seen.contains(*k));
        own.filter(|k| !PASSED_OVER.contains(&&k[self.prefix.len()..])).cloned().collect()
    }
}
