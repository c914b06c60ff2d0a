//! Which tokens count as one: those whose texts are equal but for case, accents, compatibility forms and spaces.
//!
//! Classes are numbered in the order in which they first occur among tokens 0, 1, 2, …, and multipliers depend on how
//! many there are, so one token that is taken for another moves every address. So this does, step by step, what the
//! `tokenizers` library does, in the same version of Unicode (that of its own normalisation tables): a token is decoded
//! alone, and of its text the NFKC, then the NFD form is taken, combining marks are dropped, letters made small, runs
//! of space, tab, CR and LF made one space, and spaces at both ends stripped, unless it is only that one space.
//! Nothing left, the text counts as it is; where it is part of a character only, the token's own spelling does.

use crate::error::{Error, Result};
use crate::json::parse_object;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use unicode_normalization_alignments::UnicodeNormalization;
use unicode_normalization_alignments::char::is_combining_mark;

/// The class of each token.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Classes {
    /// By token.
    of: Vec<u32>,
}

/// What a model is told of its tokenizer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Vocabulary {
    /// The contents of `tokenizer.json`.
    Tokenizer(std::sync::Arc<[u8]>),
    /// The classes themselves, where they are known without one.
    Classes(Classes),
}

impl Vocabulary {
    /// The classes of its tokens.
    pub fn classes(&self) -> Result<Classes> {
        match self {
            Vocabulary::Tokenizer(file) => Classes::read(file),
            Vocabulary::Classes(known) => Ok(known.clone()),
        }
    }
}

/// Most tokens of a vocabulary.
const MAX_TOKENS: usize = 1 << 24;

impl Classes {
    /// The classes `of` tokens 0, 1, 2, ….
    pub fn new(of: Vec<u32>) -> Classes {
        Classes { of }
    }

    /// The classes of the tokens of a byte-level `tokenizer.json`.
    pub fn read(file: &[u8]) -> Result<Classes> {
        let wrong = |why: &str| Error::Tokenizer { reason: why.to_owned() };
        let json = Value::Object(parse_object(Path::new("tokenizer.json"), file)?);
        if !decodes_bytes(&json["decoder"]) {
            return Err(wrong("its decoder is not ByteLevel, so that its tokens are no bytes"));
        }
        let mut tokens: BTreeMap<usize, &str> = BTreeMap::new();
        let vocab = json["model"]["vocab"].as_object().ok_or_else(|| wrong("`model.vocab` is not an object"))?;
        let own = vocab.iter().map(|(token, id)| (Some(token.as_str()), id));
        let added = json["added_tokens"].as_array().into_iter().flatten();
        let added = added.map(|t| (t["content"].as_str(), &t["id"]));
        for (token, id) in own.chain(added) {
            let id = id.as_u64().and_then(|id| usize::try_from(id).ok()).filter(|id| *id < MAX_TOKENS);
            let (Some(token), Some(id)) = (token, id) else {
                return Err(wrong("a token has no number, or no text"));
            };
            tokens.insert(id, token);
        }
        // A number that no token has is decoded to nothing.
        let count = tokens.last_key_value().map_or(0, |(id, _)| id + 1);
        let chars = byte_chars();
        let mut seen = HashMap::new();
        let class = |id| {
            let next = seen.len() as u32;
            *seen.entry(key(tokens.get(&id).copied().unwrap_or(""), &chars)).or_insert(next)
        };
        Ok(Classes { of: (0..count).map(class).collect() })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.of.iter().max().map_or(0, |last| *last as usize + 1)
    }

    /// The class of each token of a vocabulary of `tokens`; those that the tokenizer lacks, and so never makes, are of
    /// class 0.
    pub fn table(&self, tokens: usize) -> Vec<i64> {
        (0..tokens).map(|t| self.of.get(t).map_or(0, |c| i64::from(*c))).collect()
    }
}

fn decodes_bytes(decoder: &Value) -> bool {
    match decoder["type"].as_str() {
        Some("Sequence") => decoder["decoders"].as_array().is_some_and(|all| all.iter().any(decodes_bytes)),
        kind => kind == Some("ByteLevel"),
    }
}

/// The byte that each character of a byte-level vocabulary stands for: printable ones for themselves, the others in
/// order for those from 256 on.
fn byte_chars() -> HashMap<char, u8> {
    let plain = |b: &u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let others = (0..=255u8).filter(|b| !plain(b)).zip(256u32..);
    let named = (0..=255u8).filter(plain).map(|b| (char::from(b), b));
    named.chain(others.map(|(b, c)| (char::from_u32(c).expect("below the surrogates"), b))).collect()
}

/// What tokens of one class have in common.
fn key(token: &str, chars: &HashMap<char, u8>) -> String {
    let bytes: Option<Vec<u8>> = token.chars().map(|c| chars.get(&c).copied()).collect();
    // Special tokens are spelt as they are.
    let bytes = bytes.unwrap_or_else(|| token.as_bytes().to_vec());
    match std::str::from_utf8(&bytes) {
        Ok(text) if !text.contains(char::REPLACEMENT_CHARACTER) => match normal_form(text) {
            normal if normal.is_empty() => text.to_owned(),
            normal => normal,
        },
        _ => token.to_owned(),
    }
}

/// Stands for a text that is one space, while others are stripped.
const ONE_SPACE: &str = "\u{e000}";

fn normal_form(text: &str) -> String {
    let text: String = text.nfkc().map(|(c, _)| c).collect();
    let letters = text.nfd().map(|(c, _)| c).filter(|c| !is_combining_mark(*c)).flat_map(char::to_lowercase);
    let mut out = String::with_capacity(text.len());
    let mut spaced = false;
    for c in letters {
        let space = matches!(c, ' ' | '\t' | '\r' | '\n');
        if !(space && spaced) {
            out.push(if space { ' ' } else { c });
        }
        spaced = space;
    }
    if out == " " { out } else { out.trim().replace(ONE_SPACE, " ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes(tokens: &[&str], special: &[&str]) -> Vec<u32> {
        let chars: HashMap<u8, char> = byte_chars().into_iter().map(|(c, b)| (b, c)).collect();
        let spelt = tokens.iter().map(|t| t.bytes().map(|b| chars[&b]).collect::<String>());
        let vocab: serde_json::Map<String, Value> = spelt.zip(0..).map(|(t, i): (_, u64)| (t, i.into())).collect();
        let added: Vec<Value> = (tokens.len() as u64..)
            .zip(special)
            .map(|(id, t)| serde_json::json!({ "id": id, "content": t, "special": true }))
            .collect();
        let file = serde_json::json!({
            "added_tokens": added, "decoder": { "type": "ByteLevel" }, "model": { "type": "BPE", "vocab": vocab },
        });
        Classes::read(file.to_string().as_bytes()).unwrap().of
    }

    #[test]
    fn texts_that_look_alike_are_one() {
        // Case, accents (composed or not) and leading spaces; ligatures and wide letters.
        assert_eq!(classes(&["the", " The", "THÉ", "fi", "ﬁ", "Ａ", "a"], &[]), [0, 0, 0, 1, 1, 2, 2]);
        // All spaces are one, and not nothing; other spaces are stripped, and count as they are when nothing is left.
        assert_eq!(classes(&[" ", "\n\n", " \t", "\u{a0}", "\u{2003}x", "x", "\u{301}", "\u{300}"], &[])[..4], [0; 4]);
        assert_eq!(classes(&["\u{2003}x", "x", "\u{301}", "\u{300}"], &[]), [0, 0, 1, 2]);
        assert_eq!(classes(&["ς", "Σ", "σ"], &["<｜x｜>", "<｜X｜>"]), [0, 1, 1, 2, 2]);
    }

    #[test]
    fn parts_of_characters_are_themselves() {
        let chars: HashMap<u8, char> = byte_chars().into_iter().map(|(c, b)| (b, c)).collect();
        let part = chars[&0xc3].to_string();
        assert_eq!(key(&part, &byte_chars()), part);
        assert_eq!(key("Ġ", &byte_chars()), " ");
    }

    #[test]
    fn other_tokenizers_are_refused() {
        for file in [
            r#"{"model": {"vocab": {}}}"#,
            r#"{"decoder": {"type": "Metaspace"}, "model": {"vocab": {"a": 0}}}"#,
            r#"{"decoder": {"type": "ByteLevel"}, "model": {"vocab": [["a", 0]]}}"#,
            r#"{"decoder": {"type": "ByteLevel"}, "model": {"vocab": {"a": -1}}}"#,
            r#"{"decoder": {"type": "ByteLevel"}, "model": {"vocab": {"a": 99999999999}}}"#,
            r#"{"decoder": {"type": "ByteLevel"}, "added_tokens": [{"id": 0}], "model": {"vocab": {}}}"#,
            "[",
        ] {
            assert!(Classes::read(file.as_bytes()).is_err(), "{file}");
        }
    }

    #[test]
    fn tables_reach_as_far_as_the_vocabulary() {
        let c = Classes::new(vec![0, 1, 0, 2]);
        assert_eq!((c.count(), c.table(6)), (3, vec![0, 1, 0, 2, 0, 0]));
    }
}
