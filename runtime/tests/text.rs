//! Tokenizer and streaming on the demo checkpoint's files.

#![cfg(feature = "text")]

use hadal_runtime::text::{Message, Stream, Text, TextError};
use proptest::prelude::*;
use std::path::PathBuf;
use std::sync::LazyLock;

fn demo(file: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/demo").join(file);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

static TEXT: LazyLock<Text> =
    LazyLock::new(|| Text::new(&demo("tokenizer.json"), Some(&demo("tokenizer_config.json")), None).unwrap());

/// The library's own, as a second opinion.
static REFERENCE: LazyLock<tokenizers::Tokenizer> =
    LazyLock::new(|| tokenizers::Tokenizer::from_bytes(demo("tokenizer.json")).unwrap());

fn golden(name: &str) -> Vec<u32> {
    let bytes = demo("golden.safetensors");
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let data = tensors.tensor(name).unwrap().data().to_vec();
    data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32).collect()
}

#[test]
fn the_golden_prompt_and_its_continuation() {
    let record: serde_json::Value = serde_json::from_slice(&demo("golden.json")).unwrap();
    assert_eq!(TEXT.encode(record["prompt"].as_str().unwrap()).unwrap(), golden("input_ids"));
    assert_eq!(TEXT.decode(&golden("greedy")), record["greedy_text"].as_str().unwrap());
    assert_eq!(TEXT.end(), Some(1));
}

#[test]
fn a_begin_token_is_added_once() {
    let plain = TEXT.encode("A king").unwrap();
    assert_eq!(plain[0], 0);
    assert_eq!(TEXT.encode("<｜begin▁of▁sentence｜>A king").unwrap(), plain);
    let config = br#"{"add_bos_token": false, "bos_token": "<x>"}"#;
    let without = Text::new(&demo("tokenizer.json"), Some(config), None).unwrap();
    assert_eq!(without.encode("A king").unwrap(), plain[1..]);
}

#[test]
fn conversations_follow_the_template() {
    let turns = [Message::new("system", "Once."), Message::new("user", "Tell me a story.")];
    let tokens = TEXT.encode_chat(&turns).unwrap();
    assert_eq!(tokens[0], 0);
    assert_eq!(tokens, TEXT.encode("Once.<｜User｜>Tell me a story.<｜Assistant｜>").unwrap());
    assert_eq!(tokens.iter().filter(|t| **t == 0).count(), 1);
    let bare = Text::new(&demo("tokenizer.json"), None, None).unwrap();
    assert!(matches!(bare.encode_chat(&turns), Err(TextError::NoTemplate)));
}

#[test]
fn broken_files_are_refused() {
    let whole = demo("tokenizer.json");
    assert!(matches!(Text::new(&whole[..5000], None, None), Err(TextError::Tokenizer { .. })));
    assert!(matches!(Text::new(&whole, Some(b"{"), None), Err(TextError::Config { .. })));
    assert!(matches!(Text::new(&whole, None, Some(b"{% for")), Err(TextError::Template { .. })));
    let other = String::from_utf8(whole).unwrap().replace(
        r#""decoder": {
    "type": "ByteLevel""#,
        r#""decoder": {
    "type": "Metaspace", "replacement": "_", "prepend_scheme": "never", "split": false"#,
    );
    let refused = Text::new(other.as_bytes(), None, None);
    assert!(matches!(refused, Err(TextError::NotByteLevel)), "{:?}", refused.err());
}

fn streamed(tokens: &[u32]) -> String {
    let mut stream = Stream::new(&TEXT);
    let mut all: String = tokens.iter().map(|t| stream.push(*t).to_string()).collect();
    all.push_str(stream.finish());
    all
}

#[test]
fn characters_come_whole() {
    let said = "日本語 🦊 naïve — “fine”\n";
    let tokens = TEXT.encode(said).unwrap();
    assert!(tokens.len() > 20, "the vocabulary is English, so these characters take several tokens each");
    let mut stream = Stream::new(&TEXT);
    let pieces: Vec<String> = tokens.iter().map(|t| stream.push(*t).to_string()).collect();
    assert!(pieces.iter().all(|p| !p.contains('\u{fffd}')), "{pieces:?}");
    assert_eq!(pieces.concat(), said);
    assert_eq!(stream.finish(), "");
    // Cut inside the fox.
    let fox = TEXT.encode("🦊").unwrap();
    assert_eq!(streamed(&fox[..fox.len() - 1]), "\u{fffd}");
}

proptest! {
    #[test]
    fn any_text_comes_back(text in "\\PC{0,40}") {
        let tokens = TEXT.encode(&text).unwrap();
        prop_assert_eq!(streamed(&tokens), text);
    }

    /// Any tokens at all, most of them no valid text: pieces add up to what the library decodes.
    #[test]
    fn any_tokens_stream_to_what_they_decode_to(tokens in prop::collection::vec(0..1792u32, 0..30)) {
        let expected = REFERENCE.decode(&tokens, true).unwrap();
        prop_assert_eq!(&streamed(&tokens), &expected);
        prop_assert_eq!(&TEXT.decode(&tokens), &expected);
    }
}
