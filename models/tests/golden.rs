//! Every fixture's graph, run in the graph interpreter, against the outputs recorded for it.

mod common;

use common::{Fixture, Running, argmax, ids};
use hadal_ir::Tensor;
use hadal_models::config_reader::Config;
use hadal_models::{Activations, AttnFactor, BuildOptions, MtpInput};
use hadal_types::DType;
use std::path::PathBuf;

/// Compares what the MTP layer makes of the `hidden` states of `prompt` with the recorded tensor `name`.
fn predicts_further(f: &Fixture, it: &mut Running<'_>, prompt: &[i64], hidden: &Tensor, name: &str) {
    let n = prompt.len() - 1;
    let mut shape = hidden.shape.clone();
    shape[0] = n;
    let hidden = hidden.reals()[..shape.iter().product()].to_vec();
    let hidden = Tensor::real(DType::F32, &shape, hidden);
    let logits = f.run(it, "mtp", [0, n], &[ids(&prompt[1..]), hidden]);
    f.compare(name, logits["logits"].reals(), f.golden(name).reals());
}

/// Logits of the prompt where inputs of products with block-scaled weights are rounded: all at once, and of the last
/// tokens one by one through the states.
fn rounds_activations(name: &str) {
    let f = Fixture::open(name, BuildOptions { activations: Activations::Fp8, ..BuildOptions::default() });
    let weights = f.weights();
    let mut it = f.start(&weights);
    let (prompt, golden) = (f.tokens("input_ids"), f.golden("logits_actquant"));
    let all = f.read(&mut it, "logits", 0, &prompt);
    f.compare("logits_actquant", all["logits"].reals(), golden.reals());

    let mut it = f.start(&weights);
    let head = prompt.len() - 3;
    f.read(&mut it, "prefill", 0, &prompt[..head]);
    for i in head..prompt.len() {
        let row = f.read(&mut it, "decode", i, &prompt[i..i + 1]);
        f.compare("one row", row["logits"].reals(), &golden.reals()[i * f.model.vocab..(i + 1) * f.model.vocab]);
    }
}

/// Logits of the prompt, then of each greedy token through the states, then of the MTP layer where there is one.
fn passes(name: &str) {
    let f = Fixture::open(name, BuildOptions::default());
    let weights = f.weights();
    let (prompt, greedy) = (f.tokens("input_ids"), f.tokens("greedy"));
    let mut it = f.start(&weights);
    let all = f.read(&mut it, "logits", 0, &prompt);
    f.compare("logits", all["logits"].reals(), f.golden("logits").reals());

    let rows = f.golden.tensor("greedy_logits").map(|_| f.golden("greedy_logits"));
    let vocab = f.model.vocab;
    let mut last = all["logits"].reals()[(prompt.len() - 1) * vocab..].to_vec();
    for i in 0..greedy.len().min(8) {
        if i > 0 {
            let step = f.read(&mut it, "decode", prompt.len() + i - 1, &greedy[i - 1..i]);
            last = step["logits"].reals().to_vec();
        }
        if let Some(rows) = &rows {
            f.compare(&format!("greedy_logits[{i}]"), &last, &rows.reals()[i * vocab..(i + 1) * vocab]);
        }
        assert_eq!(argmax(&last), greedy[i], "greedy[{i}]");
    }

    if f.golden.tensor("mtp_logits").is_some() {
        predicts_further(&f, &mut it, &prompt, &all["hidden"], "mtp_logits");
    }
}

macro_rules! fixtures {
    ($($test:ident $folder:literal),+ $(,)?) => {
        $(#[test] fn $test() { passes($folder) })+
    };
}

fixtures! {
    llama_dense "llama-dense",
    coder_linear_rope "coder-linear-rope",
    r1_distill_llama "r1-distill-llama",
    r1_distill_qwen "r1-distill-qwen",
    r1_0528_qwen3 "r1-0528-qwen3",
    deepseek_moe_16b "deepseek-moe-16b",
    v2_lite "v2-lite",
    v2 "v2",
    v3 "v3",
    v3_fp8 "v3-fp8",
    v31_fp8_ue8m0 "v31-fp8-ue8m0",
    v32 "v32",
    v32_fp8 "variant-v32-fp8",
    nsa "nsa",
    nsa_uneven "variant-nsa-uneven",
    nsa_gaps "variant-nsa-gaps",
    nsa_short "variant-nsa-short",
    v4 "v4-flash-like",
    v4_fp4 "v4-fp4",
    v4_with_a_draft_head "variant-v4-dspark",
    v4_fp4_with_a_draft_head "variant-v4-dspark-fp4",
    v3_nvfp4 "variant-v3-nvfp4",
    llama_nvfp4 "variant-llama-nvfp4",
    the_demo "../../models/demo",
}

#[test]
fn activations_in_fp8() {
    rounds_activations("v3-fp8");
    rounds_activations("v31-fp8-ue8m0");
    rounds_activations("variant-v32-fp8");
    rounds_activations("v4-fp4");
    rounds_activations("variant-v4-dspark-fp4");
}

#[test]
fn the_other_reading_of_hidden_states() {
    for name in ["v3", "v31-fp8-ue8m0", "variant-v3-mtp2", "v32"] {
        let f = Fixture::open(name, BuildOptions { mtp_input: MtpInput::Raw, ..BuildOptions::default() });
        let weights = f.weights();
        let mut it = f.start(&weights);
        let prompt = f.tokens("input_ids");
        let found = f.read(&mut it, "logits", 0, &prompt);
        predicts_further(&f, &mut it, &prompt, &found["hidden"], "mtp_logits_prenorm");
    }
}

#[test]
fn a_prompt_in_chunks_gives_the_same_last_logits() {
    let f = Fixture::open("llama-dense", BuildOptions::default());
    let weights = f.weights();
    let prompt = f.tokens("input_ids");
    let mut it = f.start(&weights);
    let (head, tail) = prompt.split_at(17);
    f.read(&mut it, "prefill", 0, head);
    let last = f.read(&mut it, "prefill", head.len(), tail);
    let all = f.golden("logits");
    f.compare("last row", last["logits"].reals(), &all.reals()[(prompt.len() - 1) * f.model.vocab..]);
}

/// Windows, open groups and compressed rows hold what the next call needs wherever the last one ended.
#[test]
fn any_split_of_a_prompt_gives_the_same_logits() {
    let splits: [&[usize]; 5] =
        [&[1, 1, 1, 1, 1, 1, 1, 1, 1], &[3, 1, 7, 2, 9], &[4, 4, 4, 8, 8], &[20, 1, 1], &[6, 5, 13]];
    for (name, activations, golden) in [
        ("v4-flash-like", Activations::F32, "logits"),
        ("v4-fp4", Activations::F32, "logits"),
        ("v4-fp4", Activations::Fp8, "logits_actquant"),
        ("nsa", Activations::F32, "logits"),
        ("variant-nsa-uneven", Activations::F32, "logits"),
        ("variant-nsa-gaps", Activations::F32, "logits"),
    ] {
        let f = Fixture::open(name, BuildOptions { activations, ..BuildOptions::default() });
        let weights = f.weights();
        let (prompt, golden) = (f.tokens("input_ids"), f.golden(golden));
        for sizes in splits {
            let mut it = f.start(&weights);
            let mut at = 0;
            for size in sizes.iter().copied().chain([prompt.len() - sizes.iter().sum::<usize>()]) {
                let rows = f.read(&mut it, "logits", at, &prompt[at..at + size]);
                let expected = &golden.reals()[at * f.model.vocab..(at + size) * f.model.vocab];
                f.compare(&format!("{name} after {at} of {sizes:?}"), rows["logits"].reals(), expected);
                at += size;
            }
        }
    }
}

#[test]
fn the_other_reading_of_attn_factor() {
    let f = Fixture::open("r1-0528-qwen3", BuildOptions { attn_factor: AttnFactor::Apply, ..BuildOptions::default() });
    let weights = f.weights();
    let mut it = f.start(&weights);
    let all = f.read(&mut it, "logits", 0, &f.tokens("input_ids"));
    f.compare("logits_attn_factor", all["logits"].reals(), f.golden("logits_attn_factor").reals());
}

#[test]
fn narrow_states_cost_little() {
    for name in ["llama-dense", "v2-lite"] {
        let options = BuildOptions { state_dtype: DType::BF16, ..BuildOptions::default() };
        let mut f = Fixture::open(name, options);
        let weights = f.weights();
        let mut it = f.start(&weights);
        let all = f.read(&mut it, "logits", 0, &f.tokens("input_ids"));
        assert!(it.states.values().all(|s| s.dtype == DType::BF16));
        // Between rounding nothing and rounding everything to bf16.
        let expected = f.golden("logits");
        let worst = all["logits"].reals().iter().zip(expected.reals()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(worst > f.tolerance, "{name}: {worst}");
        f.tolerance = 0.2;
        f.compare(name, all["logits"].reals(), expected.reals());
    }
}

/// Every fixture of one of these families below the folder `HADAL_FIXTURES`.
#[test]
#[ignore = "needs a folder of fixtures in HADAL_FIXTURES"]
fn fixtures_elsewhere() {
    let root = PathBuf::from(std::env::var("HADAL_FIXTURES").expect("HADAL_FIXTURES names a folder"));
    let mut names: Vec<PathBuf> = std::fs::read_dir(root).unwrap().map(|e| e.unwrap().path()).collect();
    names.sort();
    for dir in names.iter().filter(|d| Config::read(d).is_ok_and(|c| hadal_models::recognise(&c).is_ok())) {
        println!("{}", dir.display());
        passes(dir.to_str().unwrap());
    }
}
