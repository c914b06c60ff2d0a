//! DeepSeek-V4.1 in the graph interpreter, against everything that was recorded of it: logits of prompts whole, in
//! pieces and token by token; numbers of rows, selections and memories on the way; and the levels of rounding. Drafts
//! are in `drafts.rs`.

mod common;

use common::{Fixture, Running, argmax, folder};
use hadal_models::config_reader::Config;
use hadal_models::stats::stats;
use hadal_models::{Activations, BuildOptions, Model, Planned, Vocabulary, build};

const FIXTURES: [&str; 2] = ["v41-like", "v41-fp8fp4-like"];

fn open(name: &str, options: BuildOptions) -> Fixture {
    Fixture::open(name, BuildOptions { max_context: Some(128), ..options })
}

/// The logits of the prompt in pieces of these sizes, which are taken in turn.
fn pieces(f: &Fixture, it: &mut Running<'_>, sizes: &[usize]) -> Vec<f64> {
    let prompt = f.tokens("input_ids");
    let (mut past, mut all) = (0, vec![]);
    for size in sizes.iter().cycle() {
        let size = (*size).min(prompt.len() - past);
        let found = f.read(it, "logits", past, &prompt[past..past + size]);
        all.extend(found["logits"].reals());
        past += size;
        if past == prompt.len() {
            break;
        }
    }
    all
}

#[test]
fn logits_and_what_is_computed_on_the_way() {
    for name in FIXTURES {
        let f = open(name, BuildOptions { inner: true, ..BuildOptions::default() });
        let weights = f.weights();
        let mut it = f.start(&weights);
        let found = f.read(&mut it, "logits", 0, &f.tokens("input_ids"));
        let mut kinds = std::collections::BTreeMap::new();
        for (result, value) in found.0.iter().filter(|(n, _)| n != "hidden") {
            let expected = f.golden(result);
            match value.dtype.is_float() {
                true => f.compare(result, value.reals(), expected.reals()),
                false => assert_eq!(value.ints(), expected.ints(), "{name}: {result}"),
            }
            *kinds.entry(result.split('_').next().unwrap()).or_insert(0) += 1;
        }
        let recorded = |kind: &str| f.golden.tensors().filter(|(n, _)| n.split('_').next() == Some(kind)).count();
        for kind in ["hash", "engram", "kept", "candidates"] {
            assert_eq!(kinds.get(kind), Some(&recorded(kind)), "{name}: {kind}");
        }

        let hashing = f.model.hashing.as_ref().unwrap();
        for (layer, primes) in hashing.layers.iter().zip(hashing.primes()) {
            let primes: Vec<i64> = primes.into_iter().map(|p| p as i64).collect();
            assert_eq!(primes, f.golden(&format!("primes_{layer}")).ints(), "{name}");
            let drawn = f.model.made[&format!("engram.{layer}.multipliers")].as_ref().unwrap();
            assert_eq!(drawn.ints(), f.golden(&format!("multipliers_{layer}")).ints(), "{name}");
        }
        let classes = f.model.made["engram.classes"].as_ref().unwrap();
        assert_eq!(classes.ints(), f.golden("compressed_lookup").ints(), "{name}");
    }
}

#[test]
fn token_by_token_and_in_pieces() {
    for name in FIXTURES {
        let f = open(name, BuildOptions::default());
        let weights = f.weights();
        let (expected, prompt) = (f.golden("logits"), f.tokens("input_ids"));
        for sizes in [&[1][..], &[7], &[2, 3, 1, 11], &[40, 1], &[13, 4, 9]] {
            let mut it = f.start(&weights);
            let logits = pieces(&f, &mut it, sizes);
            f.compare(&format!("{name} in pieces of {sizes:?}"), &logits, expected.reals());
        }
        let mut it = f.start(&weights);
        let (greedy, rows) = (f.golden("greedy"), f.golden("greedy_logits"));
        let mut last = f.read(&mut it, "prefill", 0, &prompt);
        for (i, token) in greedy.ints().iter().enumerate() {
            let row = &last["logits"];
            f.compare("greedy_logits", row.reals(), &rows.reals()[i * f.model.vocab..][..f.model.vocab]);
            assert_eq!(argmax(row.reals()), *token, "{name}: greedy[{i}]");
            last = f.read(&mut it, "decode", prompt.len() + i, &[*token]);
        }
    }
}

/// Rounding is discontinuous: that all is close says that every value falls to the same side as in the other code.
#[test]
fn levels_of_rounding() {
    for (activations, recorded) in [(Activations::Cache, "logits_cachequant"), (Activations::Fp8, "logits_actquant")] {
        let f = open("v41-fp8fp4-like", BuildOptions { activations, ..BuildOptions::default() });
        let weights = f.weights();
        let expected = f.golden(recorded);
        for sizes in [&[46][..], &[1], &[3, 8]] {
            let mut it = f.start(&weights);
            let logits = pieces(&f, &mut it, sizes);
            f.compare(recorded, &logits, expected.reals());
        }
    }
}

fn published() -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(folder("configs/deepseek-v4.1-flash.json")).unwrap()).unwrap()
}

fn planned(value: &serde_json::Value, options: &BuildOptions) -> hadal_models::Result<Model> {
    let config = Config::parse("config.json", value.to_string().as_bytes()).unwrap();
    build(&config, &Planned, options)
}

#[test]
fn the_release() {
    let cache = BuildOptions { activations: Activations::Cache, ..BuildOptions::default() };
    let model = planned(&published(), &cache).unwrap();
    hadal_ir::verify::module(&model.module).unwrap();
    assert!(model.unread.is_empty(), "{:?}", model.unread);
    let s = stats(&model);
    // The sheet: 552 B and 196.6 B in tables; 890 B a token; a window is 67,584 B a layer, an open token of a source
    // 4096 B.
    assert_eq!(s.tables, (384_006_168 + 384_016_682) * 256);
    let billions = |n: u64| (n as f64 / 1e9).round();
    assert_eq!([s.main - s.tables, s.active].map(billions), [552.0, 16.0]);
    assert_eq!(s.state_bytes, 890);
    assert_eq!(s.window_bytes, 40 * 67_584 + 3 * 4096 + 3 * 4);
    // One function for all layers that compute the same.
    let names: Vec<&str> = model.module.funcs.iter().map(|f| f.name.as_str()).collect();
    let kinds = ["window_layer", "source_layer_by_2", "reading_layer_by_2", "source_layer_by_1"];
    let more = ["reading_layer_by_1", "selecting_layer_by_1", "memory", "memory_2", "main_all", "main"];
    let drafts = ["stage_fill", "draft_fill", "stage", "draft", "markov"];
    assert_eq!(names, [&kinds[..], &more, &drafts].concat());
}

#[test]
fn the_repository_s_own_configuration_is_the_same_model() {
    let mut flat = serde_json::Map::new();
    for (key, value) in published()["text_config"].as_object().unwrap() {
        let own = match key.as_str() {
            "hidden_size" => "dim",
            "num_hidden_layers" => "n_layers",
            "num_attention_heads" => "n_heads",
            "moe_intermediate_size" => "moe_inter_dim",
            "num_experts_per_tok" => "n_activated_experts",
            "scoring_func" => "score_func",
            "routed_scaling_factor" => "route_scale",
            "qk_rope_head_dim" => "rope_head_dim",
            "sliding_window" => "window_size",
            "kv_source_layer_ids" => "kv_source_layers",
            "index_source_layer_ids" => "index_source_layers",
            "candidate_source_layer_id" => "candidate_source_layer",
            "engram_layer_ids" => "engram_layers",
            "engram_pad_token_id" => "engram_pad_id",
            "num_nextn_predict_layers" => "n_mtp_layers",
            "dspark_target_layer_ids" => "dspark_target_layers",
            "dspark_noise_token_id" => "dspark_noise_id",
            "dspark_num_experts_per_tok" => "dspark_n_activated_experts",
            "model_type" | "rope_scaling" | "max_position_embeddings" | "rms_norm_eps" => continue,
            same => same,
        };
        flat.insert(own.into(), value.clone());
    }
    let more = serde_json::json!({
        "dtype": "fp8", "scale_fmt": "ue8m0", "expert_dtype": "fp4", "rope_factor": 16, "original_seq_len": 65536,
        "beta_fast": 32, "beta_slow": 1, "gate_temp": 1.0,
    });
    flat.extend(more.as_object().unwrap().clone());
    let options = BuildOptions::default();
    let own = planned(&flat.clone().into(), &options).unwrap();
    let text = hadal_ir::text::print_module;
    for (own, other) in text(&own.module).lines().zip(text(&planned(&published(), &options).unwrap().module).lines()) {
        assert_eq!(own, other);
    }
    flat["gate_temp"] = 2.0.into();
    assert!(planned(&flat.into(), &options).unwrap_err().to_string().contains("gate_temp"));
}

#[test]
fn tables_for_other_tokens_are_refused() {
    let dir = folder("v41-like");
    let mut value: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap();
    let vocabulary = Some(Vocabulary::Tokenizer(std::fs::read(dir.join("tokenizer.json")).unwrap().into()));
    let options = BuildOptions { vocabulary, ..BuildOptions::default() };
    value["text_config"]["engram_compressed_vocab_size"] = 253.into();
    let error = planned(&value, &options).unwrap_err().to_string();
    assert!(error.contains("254 classes") && error.contains("for 253"), "{error}");
    value["text_config"]["engram_num_embeddings"][1] = 349.into();
    assert!(planned(&value, &options).unwrap_err().to_string().contains("engram_num_embeddings"));
}
