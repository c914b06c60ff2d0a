//! The published configurations: sizes against the numbers known of the releases, and every key broken once.

use hadal_ir::module::{Inst, InstKind};
use hadal_ir::ops::map::{Map, MapFn};
use hadal_ir::ops::{Cast, Op};
use hadal_models::config_reader::Config;
use hadal_models::stats::{Stats, cost, stats};
use hadal_models::{Activations, BuildOptions, Error, Model, Planned, Result, build, recognise};
use hadal_types::DType;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::path::PathBuf;

fn text(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/configs").join(format!("{name}.json"));
    std::fs::read_to_string(path).unwrap()
}

fn parse(text: &str) -> Config {
    Config::parse("config.json", text.as_bytes()).unwrap()
}

fn planned(text: &str) -> Result<Model> {
    build(&parse(text), &Planned, &BuildOptions::default())
}

fn sizes(name: &str) -> (Model, Stats) {
    let model = planned(&text(name)).unwrap();
    hadal_ir::verify::module(&model.module).unwrap();
    assert!(model.unread.is_empty(), "{name}: {:?}", model.unread);
    let stats = stats(&model);
    (model, stats)
}

/// Configuration, family, parameters, state bytes per token in bf16, functions.
const RELEASES: [(&str, &str, u64, u64, &[&str]); 12] = [
    ("deepseek-llm-7b-chat", "llama", 6_910_365_696, 491_520, &["layer", "main_all", "main"]),
    ("deepseek-coder-1.3b-instruct", "llama", 1_346_471_936, 196_608, &["layer", "main_all", "main"]),
    ("deepseek-r1-distill-qwen-1.5b", "qwen2", 1_777_088_000, 28_672, &["layer", "main_all", "main"]),
    ("deepseek-r1-0528-qwen3-8b", "qwen3", 8_190_735_360, 147_456, &["layer", "main_all", "main"]),
    ("deepseek-moe-16b", "deepseek-moe", 16_375_728_128, 229_376, &["dense_layer", "moe_layer", "main_all", "main"]),
    ("deepseek-v2-lite", "deepseek-v2", 15_706_484_224, 31_104, &["dense_layer", "moe_layer", "main_all", "main"]),
    ("deepseek-v2", "deepseek-v2", 235_741_434_880, 69_120, &["dense_layer", "moe_layer", "main_all", "main"]),
    ("deepseek-v2.5", "deepseek-v2", 235_741_434_880, 69_120, &["dense_layer", "moe_layer", "main_all", "main"]),
    (
        "deepseek-r1",
        "deepseek-v3",
        671_026_419_200,
        70_272,
        &["dense_layer", "moe_layer", "main_all", "main", "main_hidden", "mtp", "draft_fill", "draft"],
    ),
    (
        "deepseek-v3.2",
        "deepseek-v3.2",
        671_877_944_064,
        85_888,
        &["dense_layer", "moe_layer", "main_all", "main", "main_hidden", "mtp", "draft_fill", "draft"],
    ),
    (
        "deepseek-v4-flash",
        "deepseek-v4",
        284_334_567_511,
        6880,
        &[
            "hashed_window_layer",
            "hashed_rows4_layer",
            "rows128_layer",
            "rows4_layer",
            "main_all",
            "main",
            "main_hidden",
            "window_layer",
            "mtp",
            "draft_fill",
            "draft",
        ],
    ),
    (
        "deepseek-v4-pro",
        "deepseek-v4",
        1_572_999_528_803,
        9848,
        &[
            "hashed_rows128_layer",
            "hashed_rows4_layer",
            "rows128_layer",
            "rows4_layer",
            "main_all",
            "main",
            "main_hidden",
            "window_layer",
            "mtp",
            "draft_fill",
            "draft",
        ],
    ),
];

#[test]
fn sizes_are_the_published_ones() {
    for (name, family, parameters, state, funcs) in RELEASES {
        let (model, stats) = sizes(name);
        assert_eq!(model.name, family, "{name}");
        assert_eq!(stats.main, parameters, "{name}");
        assert_eq!(stats.state_bytes_per_token(DType::BF16), state, "{name}");
        assert_eq!(stats.state_bytes_per_token(DType::F32), 2 * state, "{name}");
        assert_eq!(model.module.funcs.iter().map(|f| f.name.as_str()).collect::<Vec<_>>(), funcs, "{name}");
    }
}

#[test]
fn the_largest_is_counted_part_by_part() {
    let (model, s) = sizes("deepseek-r1");
    assert_eq!((s.mtp, s.mtp_copies), (11_610_068_224, 13_463_426_304 - 11_610_068_224));
    assert_eq!(s.scales, 41_540_496);
    assert_eq!(s.mtp_state_elements, 576);
    // 8 of 256 experts in 58 layers, and one row of the embedding.
    let idle = 58 * 248 * 3 * 7168 * 2048 + (129_280 - 1) * 7168;
    assert_eq!(s.active, s.main - idle);
    // All tensors of the release, its scales among them.
    assert_eq!(model.expected_tensors().len(), 91_991);
}

#[test]
fn an_indexer_adds_its_own() {
    let ((model, s), (_, base)) = (sizes("deepseek-v3.2"), sizes("deepseek-r1"));
    let indexer = 8192 * 1536 + 128 * 7168 + 64 * 7168 + 256;
    assert_eq!((s.main - base.main, s.mtp - base.mtp), (61 * indexer, indexer));
    // The release's own index of its tensors: all elements, scales among them, and how many there are.
    assert_eq!((s.stored_elements(), s.tensors), (685_396_921_376, 92_425));
    assert_eq!(model.expected_tensors().len(), 92_425);
    assert_eq!((s.state_elements, s.mtp_state_elements), (61 * (576 + 128), 576 + 128));
}

#[test]
fn streams_and_experts_in_fp4_are_counted() {
    for (name, active, tensors) in [("flash", 13_270_105_705, 69_187), ("pro", 48_852_409_205, 145_116)] {
        let (model, s) = sizes(&format!("deepseek-v4-{name}"));
        // The number of tensors is that of the release's own index.
        assert_eq!((s.active, s.tensors, s.mtp_copies), (active, tensors, 0), "{name}");
        // Nearly all weights are experts', of half a byte each.
        let fp4 = s.bytes.iter().find(|(d, _)| *d == DType::F4E2M1).unwrap().1;
        assert!(2 * fp4 > s.main * 9 / 10, "{name}");
        // The repository's own form of the configuration is the same model.
        let (theirs, t) = sizes(&format!("deepseek-v4-{name}.inference"));
        assert_eq!((theirs.name, t.main, t.active, t.tensors), (model.name, s.main, s.active, s.tensors));
        for func in model.module.funcs.iter().filter(|f| f.name.ends_with("_layer")) {
            assert_eq!(theirs.module.func(&func.name), Some(func), "{name}");
        }
    }
}

#[test]
fn states_are_counted_in_their_own_formats() {
    let built = |name: &str, activations| {
        let options = BuildOptions { state_dtype: DType::BF16, activations, ..BuildOptions::default() };
        stats(&build(&parse(&text(name)), &Planned, &options).unwrap()).state_bytes
    };
    assert_eq!(built("deepseek-r1", Activations::F32), 61 * 576 * 2);
    assert_eq!(built("deepseek-r1", Activations::Fp8), 70_272);
    assert_eq!(built("deepseek-v3.2", Activations::F32), 61 * (576 + 128) * 2);
    // An index key is 128 elements of one byte, and a scale in f32.
    assert_eq!(built("deepseek-v3.2", Activations::Fp8), 78_324);
    // Rows of 584 bytes and index keys of 68, for every 4 tokens or 128.
    assert_eq!(built("deepseek-v4-flash", Activations::F32), 6880);
    for activations in [Activations::Cache, Activations::Fp8] {
        assert_eq!(built("deepseek-v4-flash", activations), (21 * (584 + 68) * 32 + 20 * 584) / 128);
        assert_eq!(built("deepseek-v4-flash", activations), 3514);
        assert_eq!(built("deepseek-v4-pro", activations), 5031);
    }
}

#[test]
fn only_inputs_of_scaled_weights_are_rounded() {
    let options = BuildOptions { activations: Activations::Fp8, ..BuildOptions::default() };
    for name in
        ["deepseek-r1", "deepseek-v3.2", "deepseek-v3-repo-inference-config_671b", "deepseek-v3.2-exp.inference"]
    {
        let model = build(&parse(&text(name)), &Planned, &options).unwrap();
        hadal_ir::verify::module(&model.module).unwrap();
        for func in &model.module.funcs {
            let scaled = func.weights.iter().filter(|w| w.name.ends_with("_scale_inv")).count();
            let casts = |i: &&Inst| matches!(i.kind, InstKind::Op(Op::Cast(Cast { to: DType::F8E4M3 })));
            let rounded = func.insts.iter().filter(casts).count();
            // Each product rounds its input, and an indexer its queries and keys.
            let indexer = 2 * func.weights.iter().filter(|w| w.name.ends_with("indexer.k_norm.weight")).count();
            assert_eq!(rounded, scaled + indexer, "{name}: @{}", func.name);
        }
    }
    let error = build(&parse(&text("deepseek-v2")), &Planned, &options).unwrap_err().to_string();
    assert!(error.contains("`quantization_config`: expected block-scaled fp8 weights"), "{error}");
}

#[test]
fn costs_follow_tokens_and_context() {
    let (model, s) = sizes("deepseek-r1-distill-qwen-1.5b");
    let at = |tokens, past| {
        let entry = if tokens == 1 { "decode" } else { "prefill" };
        cost(&model.module, entry, tokens, past).unwrap()
    };
    // Two operations for each active parameter, and little else without context.
    let per_parameter = at(1, 0).flops / s.active as f64;
    assert!((1.99..2.01).contains(&per_parameter), "{per_parameter}");
    // Scores and mixing: 4 · H · h for every token attended to, and some for mask and softmax.
    let per_context = (at(1, 1001).flops - at(1, 1).flops) / 1000.0 / 28.0;
    assert!((4.0 * 1536.0..4.1 * 1536.0).contains(&per_context), "{per_context}");
    assert_eq!(at(1, 100).state_bytes_read, 100.0 * s.state_bytes_per_token(DType::F32) as f64);
    assert_eq!(at(7, 100).state_bytes_written, 7.0 * s.state_bytes_per_token(DType::F32) as f64);
    assert_eq!(at(1, 0).weight_bytes, 2.0 * s.active as f64);
    assert!(cost(&model.module, "nothing", 1, 0).is_none());
}

#[test]
fn graphs_do_not_grow_with_depth() {
    let mut deep: Value = serde_json::from_str(&text("deepseek-r1")).unwrap();
    deep["num_hidden_layers"] = json!(5);
    let (shallow, deep) = (planned(&deep.to_string()).unwrap(), sizes("deepseek-r1").0);
    assert_eq!(shallow.module.func("moe_layer"), deep.module.func("moe_layer"));
    assert_eq!(shallow.module.funcs.len(), deep.module.funcs.len());
}

#[test]
fn the_text_form_keeps_every_graph() {
    for (name, ..) in RELEASES {
        let (model, _) = sizes(name);
        let text = hadal_ir::text::print_module(&model.module);
        let parsed = hadal_ir::text::parse_module(&text).unwrap();
        assert!(hadal_ir::text::print_module(&parsed) == text, "{name}");
    }
}

#[test]
fn reference_configurations_describe_the_releases() {
    for (name, release) in
        [("671b", "deepseek-r1"), ("v3.1", "deepseek-r1"), ("236b", "deepseek-v2"), ("16b", "deepseek-v2-lite")]
    {
        let (model, s) = sizes(&format!("deepseek-v3-repo-inference-config_{name}"));
        let (theirs, t) = sizes(release);
        assert_eq!((s.main, s.active, s.state_elements), (t.main, t.active, t.state_elements), "{name}");
        // 236b is the V2.5 form, whose magnitudes differ from V2's; the smallest one has no groups to close.
        if name != "236b" {
            assert_eq!(model.module.func("dense_layer"), theirs.module.func("dense_layer"), "{name}");
            assert_eq!(model.module.func("moe_layer").is_some(), theirs.module.func("moe_layer").is_some());
        }
    }
    // V3.2's own form of them; without `max_seq_len` it takes 16384, which is stretched as in the release.
    let ((model, s), (theirs, t)) = (sizes("deepseek-v3.2-exp.inference"), sizes("deepseek-v3.2"));
    assert_eq!((model.name, s.main, s.state_elements), (theirs.name, t.main, t.state_elements));
    for name in ["dense_layer", "moe_layer"] {
        assert_eq!(model.module.func(name), theirs.module.func(name), "{name}");
    }
    let (ours, theirs) = (sizes("deepseek-v3-repo-inference-config_671b").0, sizes("deepseek-r1").0);
    assert_eq!(ours.module.func("moe_layer"), theirs.module.func("moe_layer"));
}

#[test]
fn other_generations_are_refused_by_name() {
    for name in ["deepseek-ocr", "janus-pro-7b.partial", "deepseek-vl2"] {
        let error = recognise(&parse(&text(name))).unwrap_err().to_string();
        let key = error.contains("`architectures`: expected one of \"LlamaForCausalLM\"")
            || error.contains("`model_type`: expected one of \"llama\"");
        assert!(key, "{name}: {error}");
    }
}

/// One change of a configuration, the key to be blamed, and a part of what should have been.
type Break = (&'static str, Value, &'static str, &'static str);

fn refused(name: &str, breaks: &[Break]) {
    for (path, value, key, expected) in breaks {
        let mut config: Value = serde_json::from_str(&text(name)).unwrap();
        let mut at = &mut config;
        for part in path.split('.') {
            at = &mut at[part];
        }
        *at = value.clone();
        let error =
            planned(&config.to_string()).err().unwrap_or_else(|| panic!("{name}: {path} = {value} was accepted"));
        let Error::ConfigKey { key: found_key, expected: found, .. } = &error else { panic!("{path}: {error}") };
        assert_eq!(found_key, key, "{path} = {value}: {error}");
        assert!(found.contains(expected), "{path} = {value}: {error}");
    }
}

#[test]
fn dense_keys_are_strict() {
    refused(
        "deepseek-llm-7b-chat",
        &[
            ("architectures", json!(["GPT2LMHeadModel"]), "architectures", "\"LlamaForCausalLM\""),
            ("model_type", json!("qwen2"), "model_type", "\"llama\""),
            ("hidden_act", json!("gelu"), "hidden_act", "\"silu\""),
            ("hidden_act", json!(true), "hidden_act", "\"silu\""),
            ("vocab_size", json!(0), "vocab_size", "from 1 to"),
            ("vocab_size", json!(1e30), "vocab_size", "from 1 to"),
            ("hidden_size", json!("4096"), "hidden_size", "from 1 to"),
            ("hidden_size", json!(1u64 << 40), "hidden_size", "from 1 to"),
            ("num_hidden_layers", json!(100_000), "num_hidden_layers", "1024"),
            ("intermediate_size", json!(null), "intermediate_size", "from 1 to"),
            ("num_attention_heads", json!(-1), "num_attention_heads", "from 1 to"),
            ("num_key_value_heads", json!(5), "num_key_value_heads", "divisor of num_attention_heads (32)"),
            ("head_dim", json!(127), "head_dim", "even"),
            ("max_position_embeddings", json!(2.5), "max_position_embeddings", "whole number"),
            ("rms_norm_eps", json!(0), "rms_norm_eps", "greater than 0"),
            ("rope_theta", json!(-10000.0), "rope_theta", "greater than 0"),
            ("attention_bias", json!("no"), "attention_bias", "true or false"),
            ("mlp_bias", json!(1), "mlp_bias", "true or false"),
            ("tie_word_embeddings", json!(0), "tie_word_embeddings", "true or false"),
            ("torch_dtype", json!("int8"), "torch_dtype", "\"bfloat16\""),
            ("use_sliding_window", json!(true), "use_sliding_window", "false"),
            ("layer_types", json!(["full_attention", "sliding_attention"]), "layer_types", "\"full_attention\" only"),
            ("partial_rotary_factor", json!(0.5), "partial_rotary_factor", "1"),
            ("rope_scaling", json!({"type": "dynamic", "factor": 2.0}), "rope_scaling.type", "\"yarn\""),
            ("rope_scaling", json!({"rope_type": "longrope", "type": "linear"}), "rope_scaling.rope_type", "\"yarn\""),
            ("rope_scaling", json!({"factor": 2.0}), "rope_scaling.type", "\"yarn\""),
            ("rope_scaling", json!({"type": "linear"}), "rope_scaling.factor", "greater than 0"),
            ("rope_scaling", json!({"type": "linear", "factor": 0}), "rope_scaling.factor", "greater than 0"),
            ("rope_scaling", json!({"type": "llama3", "factor": 8}), "rope_scaling.low_freq_factor", "greater than 0"),
            ("rope_scaling", json!("yarn"), "rope_scaling", "an object"),
            ("quantization_config", json!({"quant_method": "gptq"}), "quantization_config.quant_method", "\"fp8\""),
        ],
    );
    refused("deepseek-r1-0528-qwen3-8b", &[("rope_theta", json!(1), "rope_theta", "greater than 1")]);
}

#[test]
fn expert_keys_are_strict() {
    refused(
        "deepseek-v2",
        &[
            ("use_mla", json!(false), "use_mla", "true"),
            ("kv_lora_rank", json!(null), "kv_lora_rank", "from 1 to"),
            ("q_lora_rank", json!("none"), "q_lora_rank", "from 0 to"),
            ("qk_rope_head_dim", json!(63), "qk_rope_head_dim", "even"),
            ("qk_nope_head_dim", json!(null), "qk_nope_head_dim", "from 1 to"),
            ("v_head_dim", json!(0), "v_head_dim", "from 1 to"),
            ("scoring_func", json!("tanh"), "scoring_func", "\"softmax\""),
            ("topk_method", json!("random"), "topk_method", "\"group_limited_greedy\""),
            ("n_group", json!(7), "n_group", "divisor of n_routed_experts (160)"),
            ("topk_group", json!(9), "topk_group", "n_group (8)"),
            ("num_experts_per_tok", json!(161), "num_experts_per_tok", "160"),
            ("moe_layer_freq", json!(0), "moe_layer_freq", "from 1 to"),
            ("first_k_dense_replace", json!(-1), "first_k_dense_replace", "from 0 to"),
            ("moe_intermediate_size", json!(null), "moe_intermediate_size", "from 1 to"),
            ("n_shared_experts", json!(-2), "n_shared_experts", "from 0 to"),
            ("norm_topk_prob", json!("yes"), "norm_topk_prob", "true or false"),
            ("routed_scaling_factor", json!("16"), "routed_scaling_factor", "a number"),
            ("n_routed_experts", json!(1 << 20), "n_routed_experts", "4096"),
        ],
    );
    refused(
        "deepseek-r1",
        &[
            ("scoring_func", json!("softmax"), "scoring_func", "\"sigmoid\""),
            ("topk_method", json!("greedy"), "topk_method", "\"noaux_tc\""),
            ("norm_topk_prob", json!(null), "norm_topk_prob", "true or false"),
            ("routed_scaling_factor", json!(null), "routed_scaling_factor", "a number"),
            ("n_group", json!(256), "n_group", "leaves 2 or more"),
            ("index_topk", json!(2048), "index_topk", "no such key"),
            ("num_nextn_predict_layers", json!(9), "num_nextn_predict_layers", "from 0 to 8"),
            ("quantization_config.fmt", json!("e5m2"), "quantization_config.fmt", "\"e4m3\""),
            ("quantization_config.scale_fmt", json!("fp4"), "quantization_config.scale_fmt", "\"ue8m0\""),
            (
                "quantization_config.activation_scheme",
                json!("static"),
                "quantization_config.activation_scheme",
                "dynamic",
            ),
            (
                "quantization_config.weight_block_size",
                json!(null),
                "quantization_config.weight_block_size",
                "two sizes",
            ),
            (
                "quantization_config.weight_block_size",
                json!([128]),
                "quantization_config.weight_block_size",
                "two sizes",
            ),
            ("quantization_config.weight_block_size", json!([128, 0]), "quantization_config.weight_block_size", "two"),
        ],
    );
    refused(
        "deepseek-v3.2",
        &[
            ("index_topk", json!(null), "index_topk", "from 1 to"),
            ("index_n_heads", json!(0), "index_n_heads", "from 1 to"),
            ("index_head_dim", json!(32), "index_head_dim", "at least qk_rope_head_dim (64)"),
            ("indexer_rope_interleave", json!("half"), "indexer_rope_interleave", "true or false"),
            ("q_lora_rank", json!(null), "q_lora_rank", "a size"),
            ("model_type", json!("deepseek_v3"), "model_type", "\"deepseek_v32\""),
        ],
    );
    refused("deepseek-moe-16b", &[("scoring_func", json!("sigmoid"), "scoring_func", "\"softmax\"")]);
}

#[test]
fn limits_of_gates_are_not_negative() {
    let expected = "a number greater than 0";
    refused("deepseek-v4-flash", &[("swiglu_limit", json!(-3.0), "swiglu_limit", expected)]);
    let key = "text_config.swiglu_limit";
    refused("deepseek-v4.1-flash", &[(key, json!(-3.0), key, expected)]);
}

/// Scores of a softmax are shares already, where the generation's own code divides all others by their sum; the next
/// generation divides wherever it says so, but never one weight by itself, in the main layers or in the drafting ones.
#[test]
fn weights_of_experts_are_divided_as_each_generation_does() {
    let divided = |name: &str, func: &str, changes: &[(&str, Value)]| {
        let mut config: Value = serde_json::from_str(&text(name)).unwrap();
        let inner = config.get("text_config").is_some();
        let keys = if inner { &mut config["text_config"] } else { &mut config };
        changes.iter().for_each(|(key, value)| keys[*key] = value.clone());
        let model = planned(&config.to_string()).unwrap();
        // Nothing else that is divided there is a real number.
        let func = model.module.func(func).unwrap();
        let divides = |i: &&Inst| matches!(i.kind, InstKind::Op(Op::Map(Map { f: MapFn::Div })));
        func.insts.iter().filter(divides).any(|i| func.values[i.results[0].index()].ty.dtype.is_float())
    };
    let (v4, v41) = ("deepseek-v4-flash", "deepseek-v4.1-flash");
    let (rows, stage) = ("rows4_layer", "stage");
    let softmax = ("scoring_func", json!("softmax"));
    let one = ("num_experts_per_tok", json!(1));
    assert!(divided(v4, rows, &[]));
    assert!(divided(v4, rows, std::slice::from_ref(&one)));
    assert!(!divided(v4, rows, std::slice::from_ref(&softmax)));
    refused(v4, &[("norm_topk_prob", json!(false), "norm_topk_prob", "divided by their sum")]);
    assert!(divided(v41, stage, &[softmax]));
    assert!(divided(v41, stage, &[one]));
    assert!(!divided(v41, stage, &[("dspark_num_experts_per_tok", json!(1))]));
    assert!(!divided(v41, stage, &[("norm_topk_prob", json!(false))]));
}

#[test]
fn keys_nobody_reads_are_listed() {
    let mut config: Value = serde_json::from_str(&text("deepseek-v2-lite")).unwrap();
    config["hyper_connections"] = json!(4);
    assert_eq!(planned(&config.to_string()).unwrap().unread, ["hyper_connections"]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any keys, wherever they stand, may hold anything: the answer is a sound graph or an error.
    #[test]
    fn no_configuration_panics(
        release in 0..RELEASES.len(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), value()), 1..4),
    ) {
        let mut config: Value = serde_json::from_str(&text(RELEASES[release].0)).unwrap();
        for (key, new) in changes {
            let object = config.as_object_mut().unwrap();
            let key = object.keys().nth(key.index(object.len())).unwrap().clone();
            match object[&key].as_object_mut() {
                Some(inner) if new.is_number() => inner.values_mut().for_each(|v| *v = new.clone()),
                _ => drop(object.insert(key, new)),
            }
        }
        if let Ok(model) = planned(&config.to_string()) {
            hadal_ir::verify::module(&model.module).unwrap();
            stats(&model);
        }
    }
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (0u64..20).prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (0..63).prop_map(|n| Value::from(1u64 << n)),
        "[a-z_]{0,8}".prop_map(Value::from),
        prop::collection::vec(0u64..300, 0..4).prop_map(Value::from),
        Just(json!({"type": "yarn", "factor": 1e-300, "mscale_all_dim": 1e300})),
    ]
}
