//! Weights rounded to few bits when compiling: the compiled program computes what the graph says on the rounded weights, and
//! rounding costs about what was measured once.

use hadal::golden::verify;
use hadal::{Input, Options, compile};
use hadal_ir::interpret::Interpreter;
use hadal_ir::{Bindings, Sym, Tensor};
use hadal_models::Activations;
use hadal_models::checkpoint::WeightOnly;
use hadal_runtime::Program;
use hadal_tests::{call, demo_folder, fixture, session};
use hadal_types::DType;
use std::path::Path;

const INT8: WeightOnly = WeightOnly { codes: DType::I8, group: 128 };
const INT4: WeightOnly = WeightOnly { codes: DType::I4, group: 32 };

fn compiled_is_interpreted(folder: &Path, to: WeightOnly, activations: Activations) {
    let input = Input::open(folder).and_then(|i| i.quantized(Some(to))).unwrap_or_else(|e| panic!("{e}"));
    let options = Options { max_context: Some(32), activations, ..Options::default() };
    let compiled = compile(&input, &options).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let (_file, path) = compiled.in_memory(&input).expect("it fits into memory");
    let mut sequence = session(&Program::open(&path).expect("it opens"), 2);
    let tokens = [3, 14, 15, 92, 65, 35, 89];
    let logits = call(&mut sequence, "logits", &tokens, &[]).swap_remove(0);

    let model = &compiled.model;
    let checkpoint = input.checkpoint.as_ref().expect("weights");
    assert!(model.params.iter().any(|p| p.name.ends_with(".codes") && p.ty.dtype == to.codes));
    let weights = model.weights(checkpoint);
    let ids = Tensor::int(DType::I32, &[tokens.len()], tokens.iter().map(|t| i64::from(*t)).collect());
    let bindings: Bindings = [(Sym::T, tokens.len() as i64), (Sym::P, 0)].into();
    let func = &model.module.entry("logits").expect("an entry").func;
    let expected = Interpreter::new(&model.module, &weights).run(func, "", &[ids], &bindings).expect("it evaluates");
    let worst = logits.iter().zip(expected[0].reals()).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
    assert!(worst <= 2e-4, "{}: off by {worst:e}", folder.display());
}

#[test]
fn what_is_compiled_is_what_was_rounded() {
    for name in ["llama-dense", "r1-distill-qwen", "v2-lite", "v3", "v3-fp8"] {
        for to in [INT8, INT4] {
            compiled_is_interpreted(&fixture(name), to, Activations::F32);
            // There elements are half as large as the largest of their group, and so half-way between two integers: the
            // last bit decides, which the interpreter has more of.
            if name != "v2-lite" {
                compiled_is_interpreted(&fixture(name), to, Activations::Int8);
            }
        }
    }
}

/// Largest error of logits on the demo, whose logits have a standard deviation of 4.3: half as much again as measured.
#[test]
fn rounding_costs_what_it_did() {
    let cases = [
        (INT8, Activations::F32, 0.11, 60),
        (INT4, Activations::F32, 3.0, 50),
        (INT8, Activations::Int8, 3.0, 55),
        (INT4, Activations::Int8, 3.5, 50),
    ];
    for (to, activations, bound, least) in cases {
        let options = Options { quantize: Some(to), activations, ..Options::default() };
        let outcome = verify(&demo_folder(), &options, 2).unwrap_or_else(|e| panic!("{e}"));
        assert!(outcome.pass && outcome.checks[0].tensor == "logits");
        let worst = outcome.checks[0].max_abs_error;
        println!("{to:?} {activations:?}: {worst} {:?}", outcome.greedy);
        // Nothing would be rounded if there were no error.
        assert!(worst > 1e-3 && worst <= bound, "{to:?}: {worst}");
        assert!(outcome.greedy.is_some_and(|(hits, _)| hits >= least), "{outcome:#?}");
    }
}
