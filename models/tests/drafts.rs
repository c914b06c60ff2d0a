//! Heads that draft blocks of tokens, in the graph interpreter, against what was recorded of them; and how
//! configurations describe them.

mod common;

use common::{Fixture, argmax, folder, ids};
use hadal_ir::Tensor;
use hadal_models::config_reader::Config;
use hadal_models::stats::stats;
use hadal_models::{BuildOptions, Model, Planned, build};
use hadal_types::DType;
use serde_json::{Value, json};

/// The stages are given the prompt in pieces of `sizes`, which are taken in turn, then a token at a time; a draft
/// follows each.
fn drafts(name: &str, sizes: &[usize]) {
    let f = Fixture::open(name, BuildOptions { max_context: Some(128), ..BuildOptions::default() });
    let weights = f.weights();
    let mut it = f.start(&weights);
    let (prompt, greedy) = (f.tokens("input_ids"), f.tokens("greedy"));
    let mut past = 0;
    for size in sizes.iter().cycle() {
        let size = (*size).min(prompt.len() - past);
        let read = f.read(&mut it, "logits", past, &prompt[past..past + size]);
        f.run(&mut it, "draft_fill", [past, size], &[read["hidden"].clone()]);
        past += size;
        if past == prompt.len() {
            break;
        }
    }
    let (logits, confidence) = (f.golden("dspark_logits"), f.golden("dspark_confidence"));
    let drafted = f.golden("dspark_ids");
    let (block, vocab, d) = (drafted.shape[1], f.model.vocab, f.model.hidden);
    for (k, newest) in greedy.iter().enumerate() {
        if k > 0 {
            let step = f.read(&mut it, "decode", past, &greedy[k - 1..k]);
            f.run(&mut it, "draft_fill", [past, 1], &[step["hidden"].clone()]);
            past += 1;
        }
        let draft = f.run(&mut it, "draft", [past, 1], &[ids(&[*newest])]);
        let (rows, states) = (&draft["logits"], &draft["states"]);
        let mut before = *newest;
        for i in 0..block {
            let row = |t: &Tensor, n: usize| Tensor::real(DType::F32, &[1, n], t.reals()[i * n..][..n].to_vec());
            let args = [ids(&[before]), row(rows, vocab), row(states, d)];
            let chosen = f.run(&mut it, "markov", [0, 1], &args);
            let at = k * block + i;
            let found = &chosen["logits"];
            f.compare("dspark_logits", found.reals(), &logits.reals()[at * vocab..][..vocab]);
            f.compare("dspark_confidence", chosen["confidence"].reals(), &confidence.reals()[at..=at]);
            before = argmax(found.reals());
            assert_eq!(before, drafted.ints()[at], "{name}: dspark_ids[{k}, {i}]");
        }
    }
}

#[test]
fn of_v41() {
    drafts("v41-like", &[52]);
    drafts("v41-like", &[3, 10, 1]);
    drafts("v41-fp8fp4-like", &[5]);
}

#[test]
fn of_v4() {
    drafts("variant-v4-dspark", &[37]);
    drafts("variant-v4-dspark", &[2, 7, 1]);
    drafts("variant-v4-dspark-fp4", &[5]);
}

/// V4-Flash as it is published with a draft head: three stages, which the copies' count of layers that predict does not
/// say.
fn with_a_head() -> Value {
    let file = std::fs::read(folder("configs/deepseek-v4-flash.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&file).unwrap();
    config["compress_ratios"].as_array_mut().unwrap().extend([json!(0), json!(0)]);
    let head = json!({
        "dspark_block_size": 5, "dspark_noise_token_id": 128799, "dspark_target_layer_ids": [40, 41, 42],
        "dspark_markov_rank": 256,
    });
    config.as_object_mut().unwrap().extend(head.as_object().unwrap().clone());
    config
}

fn planned(config: &Value) -> hadal_models::Result<Model> {
    build(&Config::parse("config.json", config.to_string().as_bytes())?, &Planned, &BuildOptions::default())
}

#[test]
fn the_release_of_v4_with_a_head() {
    let model = planned(&with_a_head()).unwrap();
    hadal_ir::verify::module(&model.module).unwrap();
    assert!(model.unread.is_empty(), "{:?}", model.unread);
    let entries: Vec<&str> = model.module.entries.iter().map(|e| e.name.as_str()).collect();
    assert_eq!(entries, ["logits", "prefill", "decode", "draft_fill", "draft", "markov"]);
    // The main model is the one without a head.
    let mut plain = with_a_head();
    plain["dspark_block_size"] = Value::Null;
    plain["compress_ratios"].as_array_mut().unwrap().truncate(44);
    assert_eq!(stats(&model).main, stats(&planned(&plain).unwrap()).main);
    let shape = |name: &str| &model.params.iter().find(|p| p.name == name).unwrap_or_else(|| panic!("{name}")).ty;
    assert_eq!(shape("mtp.0.main_proj.weight").to_string(), "f8e4m3[4096, 12288]");
    assert_eq!(shape("mtp.2.markov_head.markov_w1.weight").to_string(), "bf16[129280, 256]");
    assert_eq!(shape("mtp.2.confidence_head.proj.weight").to_string(), "bf16[1, 4352]");
    assert_eq!(shape("mtp.2.hc_head_fn").to_string(), "f32[4, 16384]");
}

#[test]
fn heads_that_do_not_fit_are_refused() {
    let ratios = with_a_head()["compress_ratios"].as_array().unwrap().len();
    for (key, value, expected) in [
        ("dspark_target_layer_ids", json!([40, 43]), "rising numbers of layers below 43"),
        ("dspark_target_layer_ids", json!([]), "rising numbers of layers below 43"),
        ("dspark_noise_token_id", json!(129280), "from 0 to 129279"),
        ("dspark_markov_rank", Value::Null, "dspark_markov_rank"),
        ("dspark_block_size", json!(0), "from 1 to 256"),
    ] {
        let mut config = with_a_head();
        config[key] = value;
        let error = planned(&config).unwrap_err().to_string();
        assert!(error.contains(key) && error.contains(expected), "{error}");
    }
    let mut config = with_a_head();
    config["compress_ratios"][ratios - 1] = json!(4);
    let error = planned(&config).unwrap_err().to_string();
    assert!(error.contains("windows only"), "{error}");
}
