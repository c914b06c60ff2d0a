//! Checkpoints whose tensors are not as announced: other formats, mixed formats, tensors left out or added.

use hadal_ir::interpret::{Interpreter, WeightSource};
use hadal_ir::{Bindings, Sym, Tensor};
use hadal_models::checkpoint::{Checkpoint, check};
use hadal_models::config_reader::Config;
use hadal_models::{BuildOptions, CheckpointWeights, Error, Model, build};
use hadal_types::{DType, TensorType};
use serde_json::{Map, Value, json};
use std::path::PathBuf;

/// Tensors by name, to be changed and made a checkpoint of.
type Tensors = Vec<(String, Tensor)>;

fn fixture(name: &str) -> (Config, Tensors) {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name);
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let tensors = checkpoint.tensors();
    let decoded = tensors.map(|(n, t)| (n.to_owned(), Tensor::from_bytes(t.dtype, t.shape, t.bytes).unwrap()));
    (Config::read(dir).unwrap(), decoded.collect())
}

/// The fixture's configuration with some keys changed.
fn with(config: &Config, keys: &[(&str, Value)]) -> Config {
    let mut text: Value = serde_json::from_slice(&std::fs::read(config.file()).unwrap()).unwrap();
    keys.iter().for_each(|(key, value)| text[*key] = value.clone());
    Config::parse("config.json", text.to_string().as_bytes()).unwrap()
}

fn checkpoint(tensors: &Tensors) -> Checkpoint {
    let names = [
        (DType::BF16, "BF16"),
        (DType::F16, "F16"),
        (DType::F32, "F32"),
        (DType::F8E4M3, "F8_E4M3"),
        (DType::F8E8M0, "F8_E8M0"),
    ];
    let (mut header, mut data) = (Map::new(), Vec::new());
    for (name, t) in tensors {
        let start = data.len();
        data.extend(t.to_bytes());
        let dtype = names.iter().find(|(d, _)| *d == t.dtype).unwrap().1;
        header.insert(name.clone(), json!({"dtype": dtype, "shape": t.shape, "data_offsets": [start, data.len()]}));
    }
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.bytes());
    file.extend(data);
    Checkpoint::from_memory([("m.safetensors", file)]).unwrap()
}

fn model(config: &Config, checkpoint: &Checkpoint) -> Model {
    let model = build(config, checkpoint, &BuildOptions::default()).unwrap();
    hadal_ir::verify::module(&model.module).unwrap();
    model
}

fn logits(config: &Config, checkpoint: &Checkpoint) -> Vec<f64> {
    let model = model(config, checkpoint);
    check(checkpoint, &model.expected_tensors()).unwrap();
    let weights = CheckpointWeights(checkpoint);
    let bindings: Bindings = [(Sym::T, 5), (Sym::P, 0)].into();
    let tokens = Tensor::int(DType::I32, &[5], vec![5, 40, 7, 100, 3]);
    let results = Interpreter::new(&model.module, &weights).run("main_all", "", &[tokens], &bindings).unwrap();
    results[0].reals().to_vec()
}

fn recast(tensors: &mut Tensors, to: DType, which: impl Fn(&str) -> bool) {
    tensors.iter_mut().filter(|(n, _)| which(n)).for_each(|(_, t)| t.dtype = to);
}

fn mismatch(config: &Config, tensors: &Tensors) -> String {
    let checkpoint = checkpoint(tensors);
    let error = check(&checkpoint, &model(config, &checkpoint).expected_tensors()).unwrap_err();
    assert!(matches!(error, Error::Mismatch(_)));
    error.to_string()
}

#[test]
fn wider_formats_change_nothing() {
    let (config, tensors) = fixture("deepseek-moe-16b");
    let plain = logits(&config, &checkpoint(&tensors));
    // All wider; one layer wider; one expert wider, as fine-tuning of chosen experts leaves them.
    let all: fn(&str) -> bool = |_| true;
    for which in [all, |n| n.contains("layers.2."), |n| n.contains("layers.1.mlp.experts.3.")] {
        let mut wide = tensors.clone();
        recast(&mut wide, DType::F32, which);
        assert!(logits(&config, &checkpoint(&wide)) == plain);
    }
}

#[test]
fn layers_stored_differently_are_different_functions() {
    let (config, mut tensors) = fixture("deepseek-moe-16b");
    recast(&mut tensors, DType::F32, |n| n.contains("layers.2.mlp.experts.5.up_proj"));
    let model = model(&config, &checkpoint(&tensors));
    let names: Vec<&str> = model.module.funcs.iter().map(|f| f.name.as_str()).collect();
    assert_eq!(names, ["dense_layer", "moe_layer", "moe_layer_2", "main_all", "main"]);
    let param = |name: &str| model.params.iter().find(|p| p.name.contains(name)).unwrap().ty.dtype;
    assert_eq!(param("layers.2.mlp.experts.{0..12}.up_proj"), DType::F32);
    assert_eq!(param("layers.2.mlp.experts.{0..12}.gate_proj"), DType::BF16);
}

#[test]
fn scales_may_be_exponents_only() {
    let (config, mut tensors) = fixture("v31-fp8-ue8m0");
    let plain = logits(&config, &checkpoint(&tensors));
    recast(&mut tensors, DType::F8E8M0, |n| n.ends_with("_scale_inv"));
    assert!(logits(&config, &checkpoint(&tensors)) == plain);
}

#[test]
fn a_conversion_without_scales_is_plain() {
    let (config, mut tensors) = fixture("v3-fp8");
    tensors.retain(|(n, _)| !n.ends_with("_scale_inv"));
    // Announced as scaled and in e4m3: the scales are missing.
    let text = mismatch(&config, &tensors);
    assert!(text.contains("96 missing") && text.contains("kv_b_proj.weight_scale_inv: f32"), "{text}");
    // Converted: no scales are wanted, whatever is announced.
    recast(&mut tensors, DType::BF16, |n| n.contains("_proj"));
    let converted = checkpoint(&tensors);
    assert!(check(&converted, &model(&config, &converted).expected_tensors()).is_ok());
    // In e4m3 with nothing announced: read as they are.
    recast(&mut tensors, DType::F8E4M3, |n| n.contains("o_proj"));
    let bare = checkpoint(&tensors);
    let config = with(&config, &[("quantization_config", Value::Null)]);
    assert!(check(&bare, &model(&config, &bare).expected_tensors()).is_ok());
}

#[test]
fn prediction_layers_may_be_left_out() {
    let (config, mut tensors) = fixture("v3");
    let entries = |tensors: &Tensors| -> Vec<String> {
        let checkpoint = checkpoint(tensors);
        let model = model(&config, &checkpoint);
        check(&checkpoint, &model.expected_tensors()).unwrap();
        model.module.entries.into_iter().map(|e| e.name).collect()
    };
    let drafting = ["logits", "prefill", "decode", "prefill_hidden", "mtp", "draft_fill", "draft"];
    let sorted = |tensors: &Tensors| entries(tensors).into_iter().collect::<std::collections::BTreeSet<_>>();
    let of = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(sorted(&tensors), of(&drafting));
    tensors.retain(|(n, _)| !n.ends_with("3.embed_tokens.weight") && !n.ends_with("shared_head.head.weight"));
    assert_eq!(sorted(&tensors), of(&drafting));
    tensors.retain(|(n, _)| !n.starts_with("model.layers.3."));
    assert_eq!(sorted(&tensors), of(&["logits", "prefill", "decode"]));
}

#[test]
fn everything_wrong_is_reported_together() {
    let (config, mut tensors) = fixture("llama-dense");
    tensors.retain(|(n, _)| n != "model.norm.weight");
    tensors.push(("model.layers.0.self_attn.q_proj.bias".into(), Tensor::real(DType::BF16, &[84], vec![0.0; 84])));
    let i = tensors.iter().position(|(n, _)| n == "model.layers.1.mlp.up_proj.weight").unwrap();
    tensors[i].1.shape.reverse();
    let text = mismatch(&config, &tensors);
    assert!(text.contains("1 missing, 1 extra, 1 misshapen, 0 of a wrong format"), "{text}");
}

#[test]
fn a_shared_head_may_be_stored_all_the_same() {
    let (config, mut tensors) = fixture("r1-distill-qwen");
    let plain = logits(&config, &checkpoint(&tensors));
    let embedding = tensors.iter().find(|(n, _)| n == "model.embed_tokens.weight").unwrap().1.clone();
    tensors.push(("lm_head.weight".into(), embedding));
    assert!(logits(&config, &checkpoint(&tensors)) == plain);
    let untied = with(&config, &[("tie_word_embeddings", json!(false))]);
    tensors.pop();
    assert!(mismatch(&untied, &tensors).contains("missing: lm_head.weight: bf16|f16|f32[304, 96]"));
}

#[test]
fn biases_are_used_where_the_configuration_has_them() {
    let (config, mut tensors) = fixture("llama-dense");
    let plain = logits(&config, &checkpoint(&tensors));
    let biased = with(&config, &[("attention_bias", json!(true)), ("mlp_bias", json!(true))]);
    for layer in 0..4 {
        for (part, n) in [("q", 84), ("k", 84), ("v", 84), ("o", 84)]
            .map(|(p, n)| (format!("self_attn.{p}"), n))
            .into_iter()
            .chain([("mlp.gate".into(), 148), ("mlp.up".into(), 148), ("mlp.down".into(), 84)])
        {
            tensors
                .push((format!("model.layers.{layer}.{part}_proj.bias"), Tensor::real(DType::F32, &[n], vec![0.0; n])));
        }
    }
    assert!(logits(&biased, &checkpoint(&tensors)) == plain);
    let last = tensors.iter_mut().find(|(n, _)| n == "model.layers.3.mlp.down_proj.bias").unwrap();
    last.1 = Tensor::real(DType::F32, &[84], vec![0.5; 84]);
    assert!(logits(&biased, &checkpoint(&tensors)) != plain);
}

#[test]
fn weights_are_written_in_the_format_asked_for() {
    let (_, mut tensors) = fixture("deepseek-moe-16b");
    recast(&mut tensors, DType::F32, |n| n.contains("layers.1.mlp.experts.1.up_proj"));
    let checkpoint = checkpoint(&tensors);
    let weights = CheckpointWeights(&checkpoint);
    let name = "model.layers.1.mlp.experts.{0..3}.up_proj.weight";
    let wide = TensorType::new(DType::F32, [3usize, 36, 72]);
    let mut bytes = Vec::new();
    weights.write_to(name, &wide, &mut bytes).unwrap();
    assert_eq!(Tensor::from_bytes(DType::F32, &[3, 36, 72], &bytes).unwrap(), weights.weight(name, &wide).unwrap());
    let narrow = wide.with_dtype(DType::BF16);
    let error = weights.write_to(name, &narrow, &mut Vec::new()).unwrap_err();
    assert_eq!(error, "`model.layers.1.mlp.experts.1.up_proj.weight` is stored as f32, which bf16 cannot hold");
    assert!(weights.weight("model.layers.9.x", &wide).unwrap_err().contains("no tensor"));
    assert!(weights.weight("model.norm.weight", &wide).unwrap_err().contains("does not make"));
}
