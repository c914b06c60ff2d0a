//! A checkpoint under the names that transformers writes is the same model: every tensor of a fixture is renamed,
//! experts are put together, and what is read of it under the release's names is compared.

use hadal_models::checkpoint::{Checkpoint, check};
use hadal_models::config_reader::Config;
use hadal_models::{BuildOptions, Planned, build};
use hadal_types::DType;
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn theirs(name: &str) -> String {
    let swaps = [
        ("attn.indexer.compressor.", "self_attn.compressor.indexer."),
        ("attn.indexer.wq_b", "self_attn.compressor.indexer.q_b_proj"),
        ("attn.indexer.weights_proj", "self_attn.compressor.indexer.scorer.weights_proj"),
        ("attn.attn_sink", "self_attn.sinks"),
        ("ffn.gate.bias", "mlp.gate.e_score_correction_bias"),
        ("ffn.gate.", "mlp.gate."),
        ("ffn.shared_experts.w1", "mlp.shared_experts.gate_proj"),
        ("ffn.shared_experts.w2", "mlp.shared_experts.down_proj"),
        ("ffn.shared_experts.w3", "mlp.shared_experts.up_proj"),
        (".attn_norm", ".input_layernorm"),
        (".ffn_norm", ".post_attention_layernorm"),
        (".attn.", ".self_attn."),
        ("wq_a", "q_a_proj"),
        (".q_norm", ".q_a_norm"),
        ("wq_b", "q_b_proj"),
        ("wkv", "kv_proj"),
        ("wgate", "gate_proj"),
        ("wo_a", "o_a_proj"),
        ("wo_b", "o_b_proj"),
        (".ape", ".position_bias"),
        ("compressor.norm", "compressor.kv_norm"),
        ("indexer.norm", "indexer.kv_norm"),
        ("hc_attn_", "attn_hc."),
        ("hc_ffn_", "ffn_hc."),
    ];
    match name {
        "embed.weight" => "model.embed_tokens.weight".into(),
        "head.weight" => "lm_head.weight".into(),
        _ if name.starts_with("hc_head_") => name.replace("hc_head_", "model.hc_head.hc_"),
        _ => format!("model.{}", swaps.iter().fold(name.to_owned(), |n, (from, to)| n.replace(from, to))),
    }
}

fn dtype(d: DType) -> Dtype {
    match d {
        DType::BF16 => Dtype::BF16,
        DType::I64 => Dtype::I64,
        _ => Dtype::F32,
    }
}

/// The fixture's tensors under the other names, without those for multi-token prediction.
fn renamed(checkpoint: &Checkpoint, layers: usize, experts: usize) -> Tensors {
    let mut out = Tensors::new();
    for (name, t) in checkpoint.tensors().filter(|(n, _)| !n.starts_with("mtp.") && !n.contains(".experts.")) {
        out.insert(theirs(name), (dtype(t.dtype), t.shape.to_vec(), t.bytes.to_vec()));
    }
    for layer in 0..layers {
        for (parts, whole) in [(&["w1", "w3"][..], "gate_up_proj"), (&["w2"][..], "down_proj")] {
            let (mut bytes, mut shape) = (Vec::new(), Vec::new());
            for expert in 0..experts {
                for part in parts {
                    let t = checkpoint.require(&format!("layers.{layer}.ffn.experts.{expert}.{part}.weight")).unwrap();
                    bytes.extend(t.bytes);
                    shape = vec![experts, t.shape[0] * parts.len(), t.shape[1]];
                }
            }
            out.insert(format!("model.layers.{layer}.mlp.experts.{whole}"), (Dtype::BF16, shape, bytes));
        }
    }
    out
}

/// The fixture's configuration as transformers writes it.
fn rewritten(config: &Value) -> Value {
    let mut c = config.clone();
    let object = c.as_object_mut().unwrap();
    let layers = object["num_hidden_layers"].as_u64().unwrap() as usize;
    let ratios = object.remove("compress_ratios").unwrap();
    let kinds = ratios.as_array().unwrap()[..layers].iter().map(|r| match r.as_u64().unwrap() {
        0 => "sliding_attention",
        4 => "compressed_sparse_attention",
        _ => "heavily_compressed_attention",
    });
    let kinds: Vec<&str> = kinds.collect();
    let hashed = object.remove("num_hash_layers").unwrap().as_u64().unwrap() as usize;
    let turning = object.remove("qk_rope_head_dim").unwrap().as_f64().unwrap();
    let part = turning / object["head_dim"].as_f64().unwrap();
    let mut yarn = object.remove("rope_scaling").unwrap();
    yarn["rope_type"] = "yarn".into();
    yarn["rope_theta"] = object["compress_rope_theta"].clone();
    yarn["attention_factor"] = 1.0.into();
    object.insert("layer_types".into(), json!(kinds));
    object
        .insert("compress_rates".into(), json!({"compressed_sparse_attention": 4, "heavily_compressed_attention": 8}));
    let experts: Vec<&str> = (0..layers).map(|l| if l < hashed { "hash_moe" } else { "moe" }).collect();
    object.insert("mlp_layer_types".into(), json!(experts));
    object.insert("partial_rotary_factor".into(), json!(part));
    let main = json!({"rope_type": "default", "rope_theta": object["rope_theta"], "partial_rotary_factor": part});
    object.insert("rope_parameters".into(), json!({"main": main, "compress": yarn}));
    c
}

/// Kinds of layers become ratios, and ratios tell kinds apart.
#[test]
fn kinds_and_ratios_that_disagree_are_refused() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/v4-flash-like");
    let config: Value = serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap();
    let read = |change: &dyn Fn(&mut Value)| {
        let mut theirs = rewritten(&config);
        change(&mut theirs);
        let parsed = Config::parse("config.json", theirs.to_string().as_bytes()).unwrap();
        build(&parsed, &Planned, &BuildOptions::default()).map(|_| ()).map_err(|e| e.to_string())
    };
    let ratios = config["compress_ratios"].clone();
    assert_eq!(read(&|c| c["compress_ratios"] = ratios.clone()), Ok(()));
    let refused = |key: &str, change: &dyn Fn(&mut Value)| {
        let error = read(change).expect_err(key);
        assert!(error.contains(&format!("`{key}`: expected ")), "{error}");
    };
    let (selecting, heavy) = ("compressed_sparse_attention", "heavily_compressed_attention");
    for rate in [0, 8, 128] {
        refused(&format!("compress_rates.{selecting}"), &|c| c["compress_rates"][selecting] = rate.into());
    }
    for rate in [0, 4] {
        refused(&format!("compress_rates.{heavy}"), &|c| c["compress_rates"][heavy] = rate.into());
    }
    refused("compress_ratios", &|c| {
        c["compress_ratios"] = ratios.clone();
        c["compress_ratios"][1] = 16.into();
    });
    refused("compress_ratios", &|c| {
        c["compress_ratios"] = ratios.clone();
        c["compress_rates"][heavy] = 16.into();
    });
    refused("compress_ratios", &|c| {
        c["compress_ratios"] = ratios.clone();
        c["layer_types"].as_array_mut().unwrap().pop();
    });
}

#[test]
fn names_and_keys_of_transformers_are_the_same_model() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/v4-flash-like");
    let original = Checkpoint::open(&dir).unwrap();
    let text = std::fs::read(dir.join("config.json")).unwrap();
    let config: Value = serde_json::from_slice(&text).unwrap();
    let tensors = renamed(&original, 5, 11);
    let views = tensors.iter().map(|(n, (d, shape, bytes))| (n, TensorView::new(*d, shape.clone(), bytes).unwrap()));
    let checkpoint = Checkpoint::from_memory([("file", serialize(views, None).unwrap())]).unwrap();
    for (name, t) in original.tensors().filter(|(n, _)| !n.starts_with("mtp.")) {
        let found = checkpoint.require(name).unwrap();
        assert_eq!((found.dtype, found.shape), (t.dtype, t.shape), "{name}");
        assert!(found.bytes == t.bytes, "{name}");
    }

    let theirs = Config::parse("config.json", rewritten(&config).to_string().as_bytes()).unwrap();
    let model = build(&theirs, &checkpoint, &BuildOptions::default()).unwrap();
    assert!(model.unread.is_empty(), "{:?}", model.unread);
    check(&checkpoint, &model.expected_tensors()).unwrap();
    let ours = build(&Config::parse("config.json", &text).unwrap(), &original, &BuildOptions::default()).unwrap();
    for func in model.module.funcs.iter().filter(|f| f.name.ends_with("_layer") || f.name == "main") {
        assert_eq!(Some(func), ours.module.func(&func.name));
    }
}
