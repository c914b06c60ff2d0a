//! Every fixture's graph, run in the graph interpreter, against the outputs recorded for it.

use hadal_ir::interpret::Interpreter;
use hadal_ir::{Bindings, Sym, Tensor};
use hadal_models::checkpoint::{Checkpoint, check};
use hadal_models::config_reader::Config;
use hadal_models::{Activations, AttnFactor, BuildOptions, Model, ModelWeights, MtpInput, build};
use hadal_types::DType;
use std::path::PathBuf;

struct Fixture {
    checkpoint: Checkpoint,
    golden: Checkpoint,
    model: Model,
    tolerance: f64,
}

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

fn open(name: &str, options: &BuildOptions) -> Fixture {
    let dir = folder(name);
    let config = Config::read(&dir).unwrap();
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let model = build(&config, &checkpoint, options).unwrap();
    hadal_ir::verify::module(&model.module).unwrap();
    check(&checkpoint, &model.expected_tensors()).unwrap();
    assert!(model.unread.is_empty(), "{:?}", model.unread);
    let golden = Checkpoint::open(dir.join("golden.safetensors")).unwrap();
    let facts: serde_json::Value = serde_json::from_slice(&std::fs::read(dir.join("golden.json")).unwrap()).unwrap();
    // The demo's expectations name no bound of their own: take the fixtures'.
    let tolerance = facts["tolerance"]["atol_f32"].as_f64().unwrap_or(2e-4);
    Fixture { checkpoint, golden, model, tolerance }
}

impl Fixture {
    fn golden(&self, name: &str) -> Tensor {
        let t = self.golden.require(name).unwrap();
        Tensor::from_bytes(t.dtype, t.shape, t.bytes).unwrap()
    }

    fn tokens(&self, name: &str) -> Vec<i64> {
        self.golden(name).ints().to_vec()
    }

    fn compare(&self, what: &str, found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len(), "{what}");
        let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(worst <= self.tolerance, "{what}: off by {worst:e}, allowed {:e}", self.tolerance);
    }

    /// Runs an entry's function on `tokens` after `past` others.
    fn run(
        &self,
        it: &mut Interpreter<'_, ModelWeights<'_>>,
        entry: &str,
        past: usize,
        args: &[Tensor],
    ) -> Vec<Tensor> {
        let bindings: Bindings = [(Sym::T, args[0].len() as i64), (Sym::P, past as i64)].into();
        let func = &self.model.module.entry(entry).unwrap().func;
        it.run(func, "", args, &bindings).unwrap()
    }

    /// Compares what the MTP layer makes of the `hidden` states of `prompt` with the recorded tensor `name`.
    fn predicts_further(
        &self,
        it: &mut Interpreter<'_, ModelWeights<'_>>,
        prompt: &[i64],
        hidden: &Tensor,
        name: &str,
    ) {
        let n = prompt.len() - 1;
        let mut shape = hidden.shape.clone();
        shape[0] = n;
        let hidden = hidden.reals()[..shape.iter().product()].to_vec();
        let hidden = Tensor::real(DType::F32, &shape, hidden);
        let logits = self.run(it, "mtp", 0, &[ids(&prompt[1..]), hidden]);
        self.compare(name, logits[0].reals(), self.golden(name).reals());
    }
}

fn ids(tokens: &[i64]) -> Tensor {
    Tensor::int(DType::I32, &[tokens.len()], tokens.to_vec())
}

/// Logits of the prompt where inputs of products with block-scaled weights are rounded: all at once, and of the last
/// tokens one by one through the states.
fn rounds_activations(name: &str) {
    let f = open(name, &BuildOptions { activations: Activations::Fp8, ..BuildOptions::default() });
    let weights = f.model.weights(&f.checkpoint);
    let mut it = Interpreter::new(&f.model.module, &weights);
    let (prompt, golden) = (f.tokens("input_ids"), f.golden("logits_actquant"));
    let all = f.run(&mut it, "logits", 0, &[ids(&prompt)]);
    f.compare("logits_actquant", all[0].reals(), golden.reals());

    let mut it = Interpreter::new(&f.model.module, &weights);
    let head = prompt.len() - 3;
    f.run(&mut it, "prefill", 0, &[ids(&prompt[..head])]);
    for i in head..prompt.len() {
        let row = f.run(&mut it, "decode", i, &[ids(&prompt[i..i + 1])]);
        f.compare("one row", row[0].reals(), &golden.reals()[i * f.model.vocab..(i + 1) * f.model.vocab]);
    }
}

/// Logits of the prompt, then of each greedy token through the states, then of the MTP layer where there is one.
fn passes(name: &str) {
    let f = open(name, &BuildOptions::default());
    let weights = f.model.weights(&f.checkpoint);
    let (prompt, greedy) = (f.tokens("input_ids"), f.tokens("greedy"));
    let mut it = Interpreter::new(&f.model.module, &weights);
    let all = f.run(&mut it, "logits", 0, &[ids(&prompt)]);
    f.compare("logits", all[0].reals(), f.golden("logits").reals());

    let rows = f.golden.tensor("greedy_logits").map(|_| f.golden("greedy_logits"));
    let vocab = f.model.vocab;
    let mut last = all[0].reals()[(prompt.len() - 1) * vocab..].to_vec();
    for i in 0..greedy.len().min(8) {
        if i > 0 {
            let step = f.run(&mut it, "decode", prompt.len() + i - 1, &[ids(&greedy[i - 1..i])]);
            last = step[0].reals().to_vec();
        }
        if let Some(rows) = &rows {
            f.compare(&format!("greedy_logits[{i}]"), &last, &rows.reals()[i * vocab..(i + 1) * vocab]);
        }
        let best = (0..vocab).max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap();
        assert_eq!(best as i64, greedy[i], "greedy[{i}]");
    }

    if f.golden.tensor("mtp_logits").is_some() {
        f.predicts_further(&mut it, &prompt, &all[1], "mtp_logits");
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
    the_demo "../../models/demo",
}

#[test]
fn activations_in_fp8() {
    rounds_activations("v3-fp8");
    rounds_activations("v31-fp8-ue8m0");
    rounds_activations("variant-v32-fp8");
    rounds_activations("v4-fp4");
}

#[test]
fn the_other_reading_of_hidden_states() {
    for name in ["v3", "v31-fp8-ue8m0", "variant-v3-mtp2", "v32"] {
        let f = open(name, &BuildOptions { mtp_input: MtpInput::Raw, ..BuildOptions::default() });
        let weights = f.model.weights(&f.checkpoint);
        let mut it = Interpreter::new(&f.model.module, &weights);
        let prompt = f.tokens("input_ids");
        let hidden = f.run(&mut it, "logits", 0, &[ids(&prompt)]).remove(1);
        f.predicts_further(&mut it, &prompt, &hidden, "mtp_logits_prenorm");
    }
}

#[test]
fn a_prompt_in_chunks_gives_the_same_last_logits() {
    let f = open("llama-dense", &BuildOptions::default());
    let weights = f.model.weights(&f.checkpoint);
    let prompt = f.tokens("input_ids");
    let mut it = Interpreter::new(&f.model.module, &weights);
    let (head, tail) = prompt.split_at(17);
    f.run(&mut it, "prefill", 0, &[ids(head)]);
    let last = f.run(&mut it, "prefill", head.len(), &[ids(tail)]);
    let all = f.golden("logits");
    f.compare("last row", last[0].reals(), &all.reals()[(prompt.len() - 1) * f.model.vocab..]);
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
        let f = open(name, &BuildOptions { activations, ..BuildOptions::default() });
        let weights = f.model.weights(&f.checkpoint);
        let (prompt, golden) = (f.tokens("input_ids"), f.golden(golden));
        for sizes in splits {
            let mut it = Interpreter::new(&f.model.module, &weights);
            let mut at = 0;
            for size in sizes.iter().copied().chain([prompt.len() - sizes.iter().sum::<usize>()]) {
                let rows = f.run(&mut it, "logits", at, &[ids(&prompt[at..at + size])]);
                let expected = &golden.reals()[at * f.model.vocab..(at + size) * f.model.vocab];
                f.compare(&format!("{name} after {at} of {sizes:?}"), rows[0].reals(), expected);
                at += size;
            }
        }
    }
}

#[test]
fn the_other_reading_of_attn_factor() {
    let f = open("r1-0528-qwen3", &BuildOptions { attn_factor: AttnFactor::Apply, ..BuildOptions::default() });
    let weights = f.model.weights(&f.checkpoint);
    let mut it = Interpreter::new(&f.model.module, &weights);
    let all = f.run(&mut it, "logits", 0, &[ids(&f.tokens("input_ids"))]);
    f.compare("logits_attn_factor", all[0].reals(), f.golden("logits_attn_factor").reals());
}

#[test]
fn narrow_states_cost_little() {
    for name in ["llama-dense", "v2-lite"] {
        let options = BuildOptions { state_dtype: DType::BF16, ..BuildOptions::default() };
        let mut f = open(name, &options);
        let weights = f.model.weights(&f.checkpoint);
        let mut it = Interpreter::new(&f.model.module, &weights);
        let all = f.run(&mut it, "logits", 0, &[ids(&f.tokens("input_ids"))]);
        assert!(it.states.values().all(|s| s.dtype == DType::BF16));
        // Between rounding nothing and rounding everything to bf16.
        let expected = f.golden("logits");
        let worst = all[0].reals().iter().zip(expected.reals()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(worst > f.tolerance, "{name}: {worst}");
        f.tolerance = 0.2;
        f.compare(name, all[0].reals(), expected.reals());
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
