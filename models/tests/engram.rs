//! The Engram demonstration in the graph interpreter, against what was recorded of it: constants, numbers of rows, what
//! is added to the streams, and logits, of prompts whole and in pieces.

mod common;

use common::{Fixture, argmax, folder, recorded};
use hadal_models::checkpoint::Checkpoint;
use hadal_models::config_reader::Config;
use hadal_models::ngram::Classes;
use hadal_models::{BuildOptions, Error, Planned, Vocabulary, build};

/// Options with the classes that were recorded, as there is no tokenizer.
fn options(name: &str) -> BuildOptions {
    let file = Checkpoint::open(folder(name).join("golden.safetensors")).unwrap();
    let classes = recorded(&file, "compressed_lookup").ints().iter().map(|c| *c as u32).collect();
    let vocabulary = Some(Vocabulary::Classes(Classes::new(classes)));
    BuildOptions { vocabulary, inner: true, max_context: Some(128), ..BuildOptions::default() }
}

fn passes(name: &str) {
    let f = Fixture::open(name, options(name));
    let model = &f.model;
    let hashing = model.hashing.as_ref().unwrap();
    for (layer, primes) in hashing.layers.iter().zip(hashing.primes()) {
        let primes: Vec<i64> = primes.into_iter().map(|p| p as i64).collect();
        assert_eq!(primes, f.golden(&format!("primes_{layer}")).ints(), "{name}");
        let drawn = model.made[&format!("engram.{layer}.multipliers")].as_ref().unwrap();
        assert_eq!(drawn.ints(), f.golden(&format!("multipliers_{layer}")).ints(), "{name}");
    }

    let weights = f.weights();
    let prompt = f.tokens("input_ids");
    let mut it = f.start(&weights);
    let all = f.read(&mut it, "logits", 0, &prompt);
    assert_eq!(all.0.len(), 1 + 2 * hashing.layers.len());
    for (result, found) in &all.0 {
        let expected = f.golden(result);
        match found.dtype.is_float() {
            true => f.compare(result, found.reals(), expected.reals()),
            false => assert_eq!(found.ints(), expected.ints(), "{name}: {result}"),
        }
    }

    let (greedy, rows) = (f.golden("greedy"), f.golden("greedy_logits"));
    for (i, token) in greedy.ints().iter().enumerate().skip(1) {
        let last = f.read(&mut it, "decode", prompt.len() + i - 1, &greedy.ints()[i - 1..i]);
        let row = &rows.reals()[i * model.vocab..][..model.vocab];
        f.compare("greedy_logits", last["logits"].reals(), row);
        assert_eq!(argmax(last["logits"].reals()), *token, "{name}: greedy[{i}]");
    }

    // In pieces shorter and longer than n-grams and the convolution's reach.
    for size in [1, 2, 3, 7] {
        let mut it = f.start(&weights);
        for (i, piece) in prompt.chunks(size).enumerate() {
            let found = f.read(&mut it, "logits", i * size, piece);
            let whole = &all["logits"].reals()[i * size * model.vocab..][..piece.len() * model.vocab];
            f.compare("a piece", found["logits"].reals(), whole);
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
    let dir = folder("engram");
    let (config, checkpoint) = (Config::read(&dir).unwrap(), Checkpoint::open(&dir).unwrap());
    let options = BuildOptions::default();
    let planned = build(&config, &Planned, &options).unwrap();
    assert!(planned.made.values().all(Option::is_none));
    let model = build(&config, &checkpoint, &options).unwrap();
    let error = model.check_made().unwrap_err();
    assert!(matches!(&error, Error::NoTokenizer { .. }) && error.to_string().contains("tokenizer.json"), "{error}");
    let wrong = Some(Vocabulary::Tokenizer(br#"{"model": {"vocab": {}}}"#.as_slice().into()));
    let error = build(&config, &checkpoint, &BuildOptions { vocabulary: wrong, ..options }).unwrap_err();
    assert!(matches!(error, Error::Tokenizer { .. }), "{error}");
}
