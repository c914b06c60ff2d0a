//! Random models of every family, compiled, against the graph interpreter.
//!
//! A configuration with arbitrary sizes and options, a checkpoint of random numbers for it, and a prompt cut at random
//! places: what the compiled program computes (prefill in chunks, decode, logits of all rows, multi-token prediction)
//! must be what the interpreter makes of the graph as the model file built it, before any pass. Everything lies between
//! the two: rewriting, fusion, planning, kernels, machine code, the compiled file, the runtime.
//!
//! The cases are the same in every run; `HADAL_CASES=1000` tries more of them.

use hadal::driver::build_model;
use hadal::{Input, Options};
use hadal_ir::interpret::Interpreter;
use hadal_ir::{Bindings, DType, Sym, Tensor};
use hadal_models::{Activations, Model};
use hadal_tests::random_checkpoint::{Stored, write};
use hadal_tests::{Numbers, call, load, session};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::RngSeed;
use serde_json::{Value, json};

/// Largest difference, as a share of the largest logit: rounding in f32 through a few layers stays ten times below.
const TOLERANCE: f64 = 2e-4;

/// The same where inputs of products are rounded to bf16 (8 bits): a value on an edge may fall to either side. Measured:
/// 8.2e-3 at most in 2565 comparisons of models with `HADAL_CASES=150`, half of them below 1e-7.
const IN_BF16: f64 = 2e-2;

/// One model and what is done with it.
#[derive(Clone, Debug)]
struct Case {
    config: Value,
    stored: Stored,
    seed: u64,
    max_chunk: usize,
    /// New tokens of each call; 1 is a decode.
    cuts: Vec<usize>,
    threads: usize,
    activations: Activations,
}

/// Lays the keys of `b` over those of `a`.
fn merge(mut a: Value, b: Value) -> Value {
    let keys = a.as_object_mut().expect("an object");
    keys.extend(b.as_object().expect("an object").clone());
    a
}

fn rope(kinds: &'static [&'static str]) -> impl Strategy<Value = Value> {
    (prop::sample::select(kinds), 1.0..8.0f64, 8..64u32, prop::option::of(0.3..1.2f64)).prop_map(|(kind, factor, original, mscale)| {
        let scaling = match kind {
            "none" => Value::Null,
            "linear" => json!({"type": "linear", "factor": factor}),
            "llama3" => json!({"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": original}),
            _ => {
                let mut yarn = json!({"type": "yarn", "factor": factor, "original_max_position_embeddings": original,
                    "beta_fast": 32, "beta_slow": 1});
                if let Some(m) = mscale {
                    yarn = merge(yarn, json!({"mscale": m, "mscale_all_dim": m}));
                }
                yarn
            }
        };
        json!({"rope_scaling": scaling})
    })
}

/// A size, mostly small, sometimes beyond every block and vector of a kernel.
fn size(small: std::ops::Range<usize>, large: usize) -> impl Strategy<Value = usize> {
    let end = small.end;
    prop_oneof![5 => small, 1 => end..large]
}

/// What every family has.
fn common() -> impl Strategy<Value = Value> {
    let dtypes = prop::sample::select(&["bfloat16", "bfloat16", "float32", "float16"][..]);
    (size(17..90, 600), 1..=3usize, size(5..80, 300), dtypes, any::<bool>()).prop_map(
        |(vocab, layers, width, dtype, tied)| {
            json!({"vocab_size": vocab, "num_hidden_layers": layers, "intermediate_size": width, "torch_dtype": dtype,
            "tie_word_embeddings": tied, "hidden_act": "silu", "max_position_embeddings": 512, "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0})
        },
    )
}

fn dense() -> impl Strategy<Value = Value> {
    let families = [("LlamaForCausalLM", "llama"), ("Qwen2ForCausalLM", "qwen2"), ("Qwen3ForCausalLM", "qwen3")];
    let sizes = (1..=3usize, 1..=3usize, size(1..10, 70), size(6..70, 300), any::<bool>(), any::<bool>());
    let rope = rope(&["none", "linear", "llama3", "yarn"]);
    (prop::sample::select(families.to_vec()), common(), rope, sizes).prop_map(|(family, common, rope, sizes)| {
        let (groups, shared, half, hidden, bias, mlp_bias) = sizes;
        let hidden = if family.1 == "qwen2" { groups * shared * 2 * half } else { hidden };
        let keys = json!({"architectures": [family.0], "model_type": family.1, "hidden_size": hidden,
            "num_attention_heads": groups * shared, "num_key_value_heads": groups, "head_dim": 2 * half,
            "attention_bias": bias, "mlp_bias": mlp_bias});
        merge(merge(common, rope), keys)
    })
}

/// Experts: groups, experts in each, groups kept, experts a token, width, shared experts, first layer with experts.
fn experts(least_per_group: usize) -> impl Strategy<Value = Value> {
    let sizes = (1..=4usize, least_per_group..=4, any::<prop::sample::Index>(), any::<prop::sample::Index>());
    (sizes, size(4..40, 140), 0..=2usize, 0..=2usize, 1..=2usize, any::<bool>(), 0.5..3.0f64).prop_map(
        |((groups, each, kept, chosen), width, shared, first, every, normalise, factor)| {
            let kept = 1 + kept.index(groups);
            let chosen = 1 + chosen.index(kept * each);
            json!({"n_group": groups, "n_routed_experts": groups * each, "topk_group": kept,
                "num_experts_per_tok": chosen, "moe_intermediate_size": width, "n_shared_experts": shared,
                "first_k_dense_replace": first, "moe_layer_freq": every, "norm_topk_prob": normalise,
                "routed_scaling_factor": factor})
        },
    )
}

fn mixture() -> impl Strategy<Value = Value> {
    let sizes = (1..=3usize, 1..=2usize, 1..=8usize);
    (common(), rope(&["none", "linear", "yarn"]), experts(1), sizes).prop_map(|(common, rope, experts, sizes)| {
        let (groups, shared, half) = sizes;
        let heads = groups * shared;
        let keys = json!({"architectures": ["DeepseekForCausalLM"], "model_type": "deepseek",
            "hidden_size": heads * 2 * half, "num_attention_heads": heads, "num_key_value_heads": groups,
            "scoring_func": "softmax"});
        let mut all = merge(merge(merge(common, rope), experts), keys);
        for key in ["n_group", "topk_group", "routed_scaling_factor"] {
            all.as_object_mut().expect("an object").remove(key);
        }
        all
    })
}

fn latent() -> impl Strategy<Value = Value> {
    let q_rank = prop::option::of(size(3..50, 140));
    let sizes = (size(8..90, 300), 1..=5usize, q_rank, size(3..60, 200), size(1..20, 70), 1..=8usize, size(1..24, 70));
    (rope(&["none", "yarn", "yarn"]), sizes, any::<bool>()).prop_map(|(rope, sizes, bias)| {
        let (hidden, heads, q_rank, kv_rank, nope, half, value) = sizes;
        let keys = json!({"hidden_size": hidden, "num_attention_heads": heads, "num_key_value_heads": heads,
            "q_lora_rank": q_rank, "kv_lora_rank": kv_rank, "qk_nope_head_dim": nope, "qk_rope_head_dim": 2 * half,
            "v_head_dim": value, "attention_bias": bias});
        merge(rope, keys)
    })
}

fn second() -> impl Strategy<Value = Value> {
    (common(), latent(), experts(1), any::<bool>()).prop_map(|(common, latent, experts, limited)| {
        let method = if limited { "group_limited_greedy" } else { "greedy" };
        let keys = json!({"architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2",
            "scoring_func": "softmax", "topk_method": method});
        merge(merge(merge(common, latent), experts), keys)
    })
}

fn third() -> impl Strategy<Value = Value> {
    let blocks = prop::option::of((prop::sample::select(vec![[128, 128], [16, 16], [24, 8]]), any::<bool>()));
    (common(), latent(), experts(2), 0..=1usize, blocks).prop_map(|(common, latent, experts, mtp, blocks)| {
        let quantised = blocks.map(|(size, ue8m0)| {
            let scale = if ue8m0 { "ue8m0" } else { "float" };
            json!({"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": size,
                "scale_fmt": scale})
        });
        let keys = json!({"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3",
            "scoring_func": "sigmoid", "topk_method": "noaux_tc", "num_nextn_predict_layers": mtp,
            "quantization_config": quantised, "tie_word_embeddings": false});
        merge(merge(merge(common, latent), experts), keys)
    })
}

/// The third with an indexer, which keeps fewer keys than there are, or more.
fn sparse() -> impl Strategy<Value = Value> {
    let indexer = (1..=6usize, prop_oneof![Just(0usize), 1..40usize], 1..=30usize, any::<bool>());
    (third(), size(3..50, 140), indexer).prop_map(|(base, q_rank, (heads, still, kept, interleaved))| {
        let turning = base["qk_rope_head_dim"].as_u64().expect("a size") as usize;
        let keys = json!({"architectures": ["DeepseekV32ForCausalLM"], "model_type": "deepseek_v32",
            "q_lora_rank": q_rank, "index_n_heads": heads, "index_head_dim": turning + still, "index_topk": kept,
            "indexer_rope_interleave": interleaved});
        merge(base, keys)
    })
}

fn case(config: impl Strategy<Value = Value>) -> impl Strategy<Value = Case> {
    let cuts = prop::collection::vec(prop_oneof![4 => Just(1usize), 4 => 2..=9usize, 1 => 10..=80usize], 1..=6);
    let stored = prop_oneof![4 => Just(Stored::Announced), 1 => Just(Stored::Mixed)];
    let activations = prop_oneof![3 => Just(Activations::F32), 1 => Just(Activations::Bf16)];
    (config, stored, any::<u64>(), cuts, 0..=8usize, 1..=3usize, activations).prop_map(
        |(config, stored, seed, cuts, room, threads, activations)| {
            let max_chunk = cuts.iter().max().copied().unwrap_or(1) + room;
            Case { config, stored, seed, max_chunk, cuts, threads, activations }
        },
    )
}

/// Rows of the interpreter: logits and hidden states of all of the prompt, and of the MTP layer where there is one.
struct Reference {
    logits: Vec<f64>,
    hidden: Vec<f64>,
    mtp: Option<Vec<f64>>,
}

fn ids(tokens: &[u32]) -> Tensor {
    Tensor::int(DType::I32, &[tokens.len()], tokens.iter().map(|t| *t as i64).collect())
}

fn interpret(model: &Model, input: &Input, tokens: &[u32]) -> Reference {
    let weights = model.weights(input.checkpoint.as_ref().expect("a checkpoint"));
    let mut interpreter = Interpreter::new(&model.module, &weights);
    let mut run = |entry: &str, args: &[Tensor]| {
        let bindings = Bindings::from([(Sym::P, 0), (Sym::T, args[0].len() as i64)]);
        let func = &model.module.entry(entry)?.func;
        Some(interpreter.run(func, "", args, &bindings).expect("evaluates"))
    };
    let all = run("logits", &[ids(tokens)]).expect("an entry");
    let (logits, hidden) = (all[0].reals().to_vec(), all[1].reals().to_vec());
    let n = tokens.len() - 1;
    let rows = Tensor::real(DType::F32, &[n, model.hidden], hidden[..n * model.hidden].to_vec());
    let mtp = run("mtp", &[ids(&tokens[1..]), rows]).map(|r| r[0].reals().to_vec());
    Reference { logits, hidden, mtp }
}

fn close(what: &str, found: &[f32], expected: &[f64], tolerance: f64) -> Result<(), TestCaseError> {
    prop_assert_eq!(found.len(), expected.len(), "{}", what);
    let largest = expected.iter().fold(1f64, |m, v| m.max(v.abs()));
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        let off = (*a as f64 - b).abs();
        // Written so that NaN fails.
        prop_assert!(off <= tolerance * largest, "{what}, element {i}: {a} should be {b}, off by {off:e}");
    }
    Ok(())
}

/// New tokens of calls that together take `total`: as many as a version of `prefill` takes at most, and one more, in
/// turn. So both sides of every border between versions are run, one after the other. None where there is one version.
fn across_borders(program: &hadal_runtime::Program, total: usize) -> Vec<usize> {
    let Some(entry) = program.manifest().entry("prefill") else { return vec![] };
    let most = entry.range(Sym::T).map_or(1, |r| r.hi);
    let ends = entry.versions.iter().flat_map(|v| &v.symbols).filter(|r| r.sym == Sym::T && r.hi < most).map(|r| r.hi);
    let mut sizes: Vec<usize> = ends.flat_map(|n| [n as usize, n as usize + 1]).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let held = entry.versions.iter().flat_map(|v| &v.symbols).filter(|r| r.sym == Sym::P && r.lo > 0).map(|r| r.lo);
    let mut held: Vec<usize> = held.map(|n| n as usize).filter(|n| *n < total).collect();
    held.sort_unstable();
    let (mut out, mut at, mut next) = (Vec::new(), 0, 0);
    while at < total && !(sizes.is_empty() && held.is_empty()) {
        let size = if sizes.is_empty() { most as usize } else { sizes[next % sizes.len()] };
        // A call begins exactly where another version begins.
        let border = held.iter().find(|n| **n > at).map_or(total, |n| *n);
        let n = size.min(border - at).min(most as usize);
        out.push(n);
        (at, next) = (at + n, next + 1);
    }
    out
}

/// Whether the compiled program agrees with the interpreter on `reference`, the checkpoint's seed.
fn holds(case: &Case, reference: u64) -> Result<(), TestCaseError> {
    let dir = tempfile::tempdir().expect("a folder");
    let other = |e: Box<dyn std::error::Error>| TestCaseError::fail(e.to_string());
    write(dir.path(), &case.config, case.stored, case.seed).map_err(other)?;
    let total: usize = case.cuts.iter().sum::<usize>().max(2);
    let options = Options {
        max_context: Some(total + 1),
        max_chunk: case.max_chunk,
        activations: case.activations,
        ..Options::default()
    };
    let tolerance = if case.activations == Activations::Bf16 { IN_BF16 } else { TOLERANCE };
    let close = |what: &str, found: &[f32], expected: &[f64]| close(what, found, expected, tolerance);
    let fail = |e: hadal::Failure| TestCaseError::fail(e.to_string());
    let input = Input::open(dir.path()).map_err(fail)?;
    let model = build_model(&input, &Options { max_chunk: total, ..options.clone() }).map_err(fail)?;
    let program = load(&input, &options).map_err(fail)?;

    let mut numbers = Numbers(case.seed);
    let tokens: Vec<u32> = (0..total).map(|_| numbers.below(model.vocab) as u32).collect();
    write(&dir.path().join("reference"), &case.config, case.stored, reference).map_err(other)?;
    let expected = interpret(&model, &Input::open(&dir.path().join("reference")).map_err(fail)?, &tokens);
    let (v, d) = (model.vocab, model.hidden);

    let (mut last, mut all) = (session(&program, case.threads), session(&program, case.threads));
    let mut hidden: Vec<f32> = Vec::new();
    let mut at = 0;
    for (i, n) in case.cuts.iter().enumerate() {
        let entry = if *n == 1 { "decode" } else { "prefill" };
        let range = at..at + n;
        let row = call(&mut last, entry, &tokens[range.clone()], &[]);
        close(
            &format!("{entry} {i}, tokens {range:?}"),
            &row[0],
            &expected.logits[(range.end - 1) * v..range.end * v],
        )?;
        let rows = call(&mut all, "logits", &tokens[range.clone()], &[]);
        close(&format!("logits {i}, tokens {range:?}"), &rows[0], &expected.logits[range.start * v..range.end * v])?;
        close(&format!("hidden {i}, tokens {range:?}"), &rows[1], &expected.hidden[range.start * d..range.end * d])?;
        hidden.extend(&rows[1]);
        at += n;
    }
    let (mut borders, mut at) = (session(&program, case.threads), 0);
    for n in across_borders(&program, total) {
        let row = call(&mut borders, "prefill", &tokens[at..at + n], &[]);
        at += n;
        close(&format!("prefill of {n} up to {at}"), &row[0], &expected.logits[(at - 1) * v..at * v])?;
    }
    if let Some(expected) = &expected.mtp {
        let mut s = session(&program, case.threads);
        let mut at = 0;
        while at + 1 < case.cuts.iter().sum() {
            let n = case.max_chunk.min(case.cuts.iter().sum::<usize>() - 1 - at);
            let rows = call(&mut s, "mtp", &tokens[at + 1..at + 1 + n], &[&hidden[at * d..(at + n) * d]]);
            close(&format!("mtp, rows {at}.."), &rows[0], &expected[at * v..(at + n) * v])?;
            at += n;
        }
    }
    Ok(())
}

fn settings(cases: u32) -> ProptestConfig {
    let cases = std::env::var("HADAL_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(cases);
    ProptestConfig {
        cases,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(1),
        max_shrink_iters: 40,
        ..ProptestConfig::default()
    }
}

macro_rules! families {
    ($($test:ident $config:ident $cases:literal;)+) => {
        $(proptest! {
            #![proptest_config(settings($cases))]
            #[test]
            fn $test(case in case($config())) {
                holds(&case, case.seed)?;
            }
        })+
    };
}

families! {
    dense_models dense 40;
    mixtures_of_experts mixture 25;
    second_generation second 30;
    third_generation third 40;
    with_an_indexer sparse 40;
}

/// The comparison sees other weights.
#[test]
fn a_difference_is_seen() {
    let mut runner = proptest::test_runner::TestRunner::new(settings(1));
    let case = case(third()).new_tree(&mut runner).expect("a case").current();
    holds(&case, case.seed).expect("the same weights");
    let error = holds(&case, case.seed + 1).expect_err("other weights").to_string();
    assert!(error.contains("off by"), "{error}");
}
