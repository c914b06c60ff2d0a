//! Every fixture's graph, optimised, against the same graph as its model file built it, both in the interpreter: a
//! prompt in two calls, then decoding, on the machine at hand and on one where other forms are chosen, with all laws
//! and with random sets of them.
//!
//! Nothing but rewriting lies between the two sides, so they must agree far below what f32 kernels are allowed. Formats
//! narrower than f32 still round where a value crosses a tie.

use hadal::Options;
use hadal::driver::{build_model, pass_options};
use hadal_ir::interpret::Interpreter;
use hadal_ir::target::Target;
use hadal_ir::{Bindings, DType, Module, Sym, Tensor};
use hadal_models::{Activations, ModelWeights};
use hadal_passes::{LawSet, optimise, rules};
use hadal_tests::{demo_folder, fixture, on_all_cores, root};
use std::path::{Path, PathBuf};

/// Largest difference as a share of the largest value, by the interpreter's own rounding of f64 through some layers.
const TOLERANCE: f64 = 1e-9;

/// The same where values are rounded to eight bits on the way: what crosses a tie moves by a sixteenth of itself.
const ROUNDED: f64 = 2e-2;

fn fixtures() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root().join("tests/fixtures")).expect("a readable folder");
    let mut all: Vec<PathBuf> = entries.map(|e| e.expect("an entry").path()).collect();
    all.retain(|p| p.join("config.json").is_file());
    all.sort();
    all.push(demo_folder());
    all
}

/// A small generator of numbers, the same everywhere.
struct Draw(u64);

impl Draw {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }
}

/// About half, or all but a few, of the laws.
fn some_laws(draw: &mut Draw) -> LawSet {
    let keep = [1, 7][draw.below(2) as usize];
    let names: Vec<&str> = rules::all().map(|r| r.name).filter(|_| draw.below(keep + 1) > 0).collect();
    let usual = LawSet::default();
    let names: Vec<&str> = names.into_iter().filter(|n| usual.names().any(|u| u == *n)).collect();
    LawSet::only(names).expect("names of laws")
}

/// Outputs of two calls with the prompt and three with one token, each the last row's logits.
fn outputs(module: &Module, weights: &ModelWeights<'_>, vocab: i64) -> Vec<Vec<f64>> {
    let mut interpreter = Interpreter::new(module, weights);
    let mut past = 0;
    let mut run = |entry: &str, n: usize| {
        let ids: Vec<i64> = (0..n as i64).map(|i| (7 + 13 * (past + i) * (past + i)) % vocab).collect();
        let bindings = Bindings::from([(Sym::P, past), (Sym::T, n as i64)]);
        let args = [Tensor::int(DType::I32, &[n], ids)];
        let version = module.version(entry, &bindings).expect("a version for these sizes");
        let out = interpreter.run(&version.func, "", &args, &bindings).expect("evaluates");
        past += n as i64;
        out[0].reals().to_vec()
    };
    vec![run("prefill", 9), run("prefill", 4), run("decode", 1), run("decode", 1), run("logits", 3)]
}

fn compare(what: &str, expected: &[Vec<f64>], found: &[Vec<f64>], tolerance: f64) {
    for (i, (e, f)) in expected.iter().zip(found).enumerate() {
        assert_eq!(e.len(), f.len(), "{what}, call {i}");
        let scale = e.iter().fold(1e-3f64, |m, v| m.max(v.abs()));
        let worst = e.iter().zip(f).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(worst <= tolerance * scale, "{what}, call {i}: off by {:e} of the largest value", worst / scale);
    }
}

fn holds(dir: &Path, activations: Activations, tolerance: f64, draw: &mut Draw) {
    let input = hadal::golden::open(dir).expect("a checkpoint");
    let options = Options { max_chunk: 16, max_context: Some(64), activations, ..Options::default() };
    let model = build_model(&input, &options).expect("a model");
    let weights = model.weights(input.checkpoint.as_ref().expect("tensors"));
    let expected = outputs(&model.module, &weights, model.vocab as i64);
    let name = dir.file_name().expect("a name").to_string_lossy().into_owned();
    let (cpu, gpu) = (Target::by_name("cpu").unwrap(), Target::by_name("h200").unwrap());
    let cases =
        [(&cpu, LawSet::default()), (&gpu, LawSet::default()), (&cpu, some_laws(draw)), (&gpu, some_laws(draw))];
    for (target, laws) in cases {
        let missing: Vec<&str> = rules::all().filter(|r| !laws.allows(r)).map(|r| r.name).collect();
        let what = format!("{name} on {}, without {missing:?}", target.name);
        let options = hadal_passes::Options { laws, ..pass_options(&model) };
        let fused = optimise(&model.module, target, &options).unwrap_or_else(|e| panic!("{what}: {e}"));
        compare(&what, &expected, &outputs(&fused.optimised, &weights, model.vocab as i64), tolerance);
        compare(&format!("{what}, fused"), &expected, &outputs(&fused.module, &weights, model.vocab as i64), tolerance);
    }
}

#[test]
fn what_is_chosen_equals_what_was_written() {
    let fixtures = fixtures().into_iter().enumerate().collect();
    on_all_cores(fixtures, |(i, dir)| holds(&dir, Activations::F32, TOLERANCE, &mut Draw(20 + i as u64)));
}

#[test]
fn the_same_with_activations_rounded() {
    let mut draw = Draw(21);
    for name in ["v3-fp8", "v31-fp8-ue8m0"] {
        holds(&fixture(name), Activations::Fp8, ROUNDED, &mut draw);
    }
}
