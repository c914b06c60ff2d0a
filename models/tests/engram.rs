//! The Engram demonstration in the graph interpreter, against what was recorded of it: constants, numbers of rows, what is
//! added to the streams, and logits, of prompts whole and in pieces.

use hadal_ir::interpret::Interpreter;
use hadal_ir::{Bindings, Sym, Tensor};
use hadal_models::checkpoint::{Checkpoint, check};
use hadal_models::config_reader::Config;
use hadal_models::ngram::Classes;
use hadal_models::{BuildOptions, Error, Model, ModelWeights, Planned, Vocabulary, build};
use hadal_types::DType;
use std::path::{Path, PathBuf};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

fn golden(file: &Checkpoint, name: &str) -> Tensor {
    let t = file.require(name).unwrap();
    Tensor::from_bytes(t.dtype, t.shape, t.bytes).unwrap()
}

fn run(
    it: &mut Interpreter<'_, ModelWeights<'_>>,
    model: &Model,
    entry: &str,
    past: usize,
    tokens: &[i64],
) -> Vec<(String, Tensor)> {
    let bindings: Bindings = [(Sym::T, tokens.len() as i64), (Sym::P, past as i64)].into();
    let func = &model.module.entry(entry).unwrap().func;
    let names = model.module.func(func).unwrap().results.iter().map(|(n, _)| n.clone());
    let ids = Tensor::int(DType::I32, &[tokens.len()], tokens.to_vec());
    names.zip(it.run(func, "", &[ids], &bindings).unwrap()).collect()
}

fn close(what: &str, found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(worst <= 2e-4, "{what}: off by {worst:e}");
}

fn open(name: &str) -> (Config, Checkpoint, Checkpoint, BuildOptions) {
    let dir = folder(name);
    let file = Checkpoint::open(dir.join("golden.safetensors")).unwrap();
    let classes = golden(&file, "compressed_lookup").ints().iter().map(|c| *c as u32).collect();
    let vocabulary = Some(Vocabulary::Classes(Classes::new(classes)));
    let options = BuildOptions { vocabulary, inner: true, max_context: Some(128), ..BuildOptions::default() };
    (Config::read(&dir).unwrap(), Checkpoint::open(&dir).unwrap(), file, options)
}

fn passes(name: &str) {
    let (config, checkpoint, file, options) = open(name);
    let model = build(&config, &checkpoint, &options).unwrap();
    hadal_ir::verify::module(&model.module).unwrap();
    check(&checkpoint, &model.expected_tensors()).unwrap();
    assert!(model.unread.is_empty(), "{:?}", model.unread);

    let hashing = model.hashing.as_ref().unwrap();
    for (layer, primes) in hashing.layers.iter().zip(hashing.primes()) {
        let primes: Vec<i64> = primes.into_iter().map(|p| p as i64).collect();
        assert_eq!(primes, golden(&file, &format!("primes_{layer}")).ints(), "{name}");
        let drawn = model.made[&format!("engram.{layer}.multipliers")].as_ref().unwrap();
        assert_eq!(drawn.ints(), golden(&file, &format!("multipliers_{layer}")).ints(), "{name}");
    }

    let weights = model.weights(&checkpoint);
    let prompt = golden(&file, "input_ids").ints().to_vec();
    let mut it = Interpreter::new(&model.module, &weights);
    let all = run(&mut it, &model, "logits", 0, &prompt);
    assert_eq!(all.len(), 1 + 2 * hashing.layers.len());
    for (result, found) in &all {
        let expected = golden(&file, result);
        match found.dtype.is_float() {
            true => close(result, found.reals(), expected.reals()),
            false => assert_eq!(found.ints(), expected.ints(), "{name}: {result}"),
        }
    }

    let (greedy, rows) = (golden(&file, "greedy"), golden(&file, "greedy_logits"));
    for (i, token) in greedy.ints().iter().enumerate().skip(1) {
        let last = run(&mut it, &model, "decode", prompt.len() + i - 1, &greedy.ints()[i - 1..i]).remove(0).1;
        let row = &rows.reals()[i * model.vocab..][..model.vocab];
        close("greedy_logits", last.reals(), row);
        let best = (0..model.vocab).max_by(|a, b| last.reals()[*a].total_cmp(&last.reals()[*b])).unwrap();
        assert_eq!(best as i64, *token, "{name}: greedy[{i}]");
    }

    // In pieces shorter and longer than n-grams and the convolution's reach.
    for size in [1, 2, 3, 7] {
        let mut it = Interpreter::new(&model.module, &weights);
        for (i, piece) in prompt.chunks(size).enumerate() {
            let found = run(&mut it, &model, "logits", i * size, piece);
            let whole = &all[0].1.reals()[i * size * model.vocab..][..piece.len() * model.vocab];
            close("a piece", found[0].1.reals(), whole);
        }
    }
}

#[test]
fn all_that_is_recorded() {
    for name in ["engram", "variant-engram-4grams", "variant-engram-one"] {
        passes(name);
    }
}

#[test]
fn without_its_tokenizer_it_is_only_looked_at() {
    let (config, checkpoint, _, options) = open("engram");
    let options = BuildOptions { vocabulary: None, ..options };
    let planned = build(&config, &Planned, &options).unwrap();
    assert!(planned.made.values().all(Option::is_none));
    let model = build(&config, &checkpoint, &options).unwrap();
    let error = model.check_made().unwrap_err();
    assert!(matches!(&error, Error::NoTokenizer { .. }) && error.to_string().contains("tokenizer.json"), "{error}");
    let wrong = Some(Vocabulary::Tokenizer(br#"{"model": {"vocab": {}}}"#.as_slice().into()));
    let error = build(&config, &checkpoint, &BuildOptions { vocabulary: wrong, ..options }).unwrap_err();
    assert!(matches!(error, Error::Tokenizer { .. }), "{error}");
}
