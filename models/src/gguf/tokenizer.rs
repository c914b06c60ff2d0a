//! The tokenizer of a GGUF file as `tokenizer.json` and `tokenizer_config.json`, which compiled files carry.
//!
//! Two kinds are known. Byte-level BPE (`gpt2`) has its vocabulary and merges in the file, and the name of a rule by
//! which text is cut before: the rules below are those of the models' own `tokenizer.json`. SentencePiece BPE (`llama`)
//! has scores instead of merges: two pieces that make a third merge the sooner the higher its score.

use super::read::{Head, Value};
use crate::error::{Error, Result};
use serde_json::{Map, Value as Json, json};
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// Longest piece, in characters, that merges are looked for.
const MAX_PIECE: usize = 128;

/// Kinds of tokens, by number.
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER: i64 = 4;
const BYTE: i64 = 6;

/// Contractions, words, numbers, other signs, blanks: the cut of GPT-2.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// How text is cut before it is merged.
struct Cut {
    names: &'static [&'static str],
    /// Each cuts what the ones before have left.
    patterns: &'static [&'static str],
    /// Whether digits stand alone after those.
    digits: bool,
    /// Whether GPT-2's cut comes last.
    gpt2: bool,
    /// Whether a piece that is a token is not merged from others.
    whole: bool,
    /// Whether text is normalised (NFC) first.
    nfc: bool,
}

const PLAIN: Cut = Cut { names: &[], patterns: &[], digits: false, gpt2: false, whole: false, nfc: false };

const CUTS: [Cut; 8] = [
    Cut {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2", "dbrx", "smaug-bpe"],
        patterns: &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        whole: true,
        ..PLAIN
    },
    Cut {
        names: &["qwen2", "deepseek-r1-qwen", "megrez"],
        patterns: &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        nfc: true,
        ..PLAIN
    },
    Cut {
        names: &["deepseek-v3"],
        patterns: &[
            r"\p{N}{1,3}",
            "[一-龥぀-ゟ゠-ヿ]+",
            r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
        ],
        ..PLAIN
    },
    Cut {
        names: &["deepseek-llm"],
        // The original writes out the letters that have a case, as of an older Unicode.
        patterns: &[
            r"[\r\n]",
            r"\s?[\p{Lu}\p{Ll}\p{Lt}]+",
            r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
            r"\s+$",
            "[一-龥ࠀ-一가-퟿]+",
        ],
        digits: true,
        ..PLAIN
    },
    Cut {
        names: &["deepseek-coder"],
        patterns: &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+"],
        digits: true,
        ..PLAIN
    },
    Cut { names: &["smollm", "starcoder", "refact", "command-r", "codeshell"], digits: true, gpt2: true, ..PLAIN },
    Cut { names: &["gpt-2", "gpt2", "phi-2", "olmo"], gpt2: true, ..PLAIN },
    Cut { names: &["default"], patterns: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"], ..PLAIN },
];

/// The files of a tokenizer.
#[derive(Clone, PartialEq, Debug)]
pub struct Texts {
    /// `tokenizer.json`.
    pub tokenizer: Vec<u8>,
    /// `tokenizer_config.json`, the chat template within.
    pub config: Vec<u8>,
}

/// The tokenizer that the metadata describe, if they do.
pub fn translate(file: &Path, head: &Head) -> Result<Option<Texts>> {
    let get = |key: &str| head.metadata.get(&format!("tokenizer.ggml.{key}"));
    let wrong = |key: &str, expected: &str, found: &str| Error::ConfigKey {
        file: file.into(),
        key: format!("tokenizer.ggml.{key}"),
        expected: expected.into(),
        found: found.into(),
    };
    let Some(Value::Texts(tokens)) = get("tokens") else { return Ok(None) };
    let kinds = match get("token_type") {
        Some(Value::Ints(kinds)) if kinds.len() == tokens.len() => kinds.clone(),
        None => vec![1; tokens.len()],
        Some(_) => return Err(wrong("token_type", &format!("{} numbers", tokens.len()), "another list")),
    };
    let mut ids: HashMap<&str, usize> = HashMap::with_capacity(tokens.len());
    for (id, token) in tokens.iter().enumerate() {
        if let Some(first) = ids.insert(token, id) {
            return Err(wrong("tokens", "each token once", &format!("number {first} again as {id}")));
        }
    }
    let model = match get("model") {
        Some(Value::Text(t)) => t.as_str(),
        _ => "",
    };
    let spelled = |key: &str| match get(key) {
        Some(Value::Int(id)) => usize::try_from(*id).ok().and_then(|id| tokens.get(id)).map(String::as_str),
        _ => None,
    };
    let flag = |key: &str| match get(key) {
        Some(Value::Bool(b)) => Some(*b),
        _ => None,
    };
    let begins;
    let own = match model {
        "gpt2" => {
            let name = match get("pre") {
                Some(Value::Text(t)) => t.as_str(),
                _ => "default",
            };
            let Some(cut) = CUTS.iter().find(|c| c.names.contains(&name)) else {
                let known: Vec<&str> = CUTS.iter().flat_map(|c| c.names).copied().collect();
                return Err(wrong("pre", &format!("one of {}", known.join(", ")), &format!("{:.60?}", name)));
            };
            let merges = match get("merges") {
                Some(Value::Texts(merges)) => merges,
                _ => return Err(wrong("merges", "a list of texts", "none")),
            };
            begins = cut.whole;
            byte_level(cut, &ids, merges)
                .map_err(|m| wrong("merges", "pairs of tokens that make a token", &format!("{m:.60?}")))?
        }
        "llama" => {
            begins = true;
            let scores = match get("scores") {
                Some(Value::Reals(scores)) if scores.len() == tokens.len() => scores,
                _ => return Err(wrong("scores", &format!("{} numbers", tokens.len()), "none, or another list")),
            };
            pieces(tokens, &kinds, scores, &ids, flag("add_space_prefix").unwrap_or(true))
        }
        other => return Err(wrong("model", "\"gpt2\" or \"llama\"", &format!("{other:.60?}"))),
    };
    let added =
        tokens.iter().zip(&kinds).enumerate().filter(|(_, (_, kind))| matches!(**kind, UNKNOWN | CONTROL | USER));
    let added = added.map(|(id, (token, kind))| {
        json!({ "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": *kind != USER })
    });
    let mut tokenizer = Map::new();
    tokenizer.insert("version".into(), json!("1.0"));
    for key in ["truncation", "padding", "post_processor"] {
        tokenizer.insert(key.into(), Json::Null);
    }
    tokenizer.insert("added_tokens".into(), Json::Array(added.collect()));
    tokenizer.extend(own);

    let mut config = Map::new();
    for (key, id) in [
        ("bos_token", "bos_token_id"),
        ("eos_token", "eos_token_id"),
        ("pad_token", "padding_token_id"),
        ("unk_token", "unknown_token_id"),
    ] {
        spelled(id).into_iter().for_each(|t| drop(config.insert(key.into(), json!(t))));
    }
    config.insert("add_bos_token".into(), json!(flag("add_bos_token").unwrap_or(begins)));
    if let Some(Value::Text(template)) = head.metadata.get("tokenizer.chat_template") {
        config.insert("chat_template".into(), json!(template));
    }
    let bytes = |o: Map<String, Json>| Json::Object(o).to_string().into_bytes();
    Ok(Some(Texts { tokenizer: bytes(tokenizer), config: bytes(config) }))
}

fn vocabulary<'a>(ids: impl Iterator<Item = (&'a str, usize)>) -> Json {
    Json::Object(ids.map(|(token, id)| (token.to_owned(), json!(id))).collect())
}

/// The parts of `tokenizer.json` for byte-level BPE, or the first merge that makes no token.
fn byte_level(
    cut: &Cut,
    ids: &HashMap<&str, usize>,
    merges: &[String],
) -> std::result::Result<Map<String, Json>, String> {
    let makes = |merge: &&String| {
        let parts = merge.split_once(' ');
        parts.is_some_and(|(a, b)| [a, b, &format!("{a}{b}")].iter().all(|t| ids.contains_key(t)))
    };
    if let Some(bad) = merges.iter().find(|m| !makes(m)) {
        return Err(bad.clone());
    }
    let split = |pattern: &&str| json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false });
    let mut steps: Vec<Json> = cut.patterns.iter().map(split).collect();
    if cut.digits {
        steps.push(json!({ "type": "Digits", "individual_digits": true }));
    }
    steps.push(json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": cut.gpt2 }));
    let mut out = Map::new();
    out.insert("normalizer".into(), if cut.nfc { json!({ "type": "NFC" }) } else { Json::Null });
    out.insert("pre_tokenizer".into(), json!({ "type": "Sequence", "pretokenizers": steps }));
    out.insert(
        "decoder".into(),
        json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true }),
    );
    out.insert(
        "model".into(),
        json!({ "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": cut.whole,
            "vocab": vocabulary(ids.iter().map(|(t, id)| (*t, *id))), "merges": merges }),
    );
    Ok(out)
}

/// The parts of `tokenizer.json` for SentencePiece BPE.
fn pieces(
    tokens: &[String],
    kinds: &[i64],
    scores: &[f32],
    ids: &HashMap<&str, usize>,
    prefix: bool,
) -> Map<String, Json> {
    let merged =
        |id: &usize| !matches!(kinds[*id], UNKNOWN | CONTROL | BYTE) && tokens[*id].chars().count() <= MAX_PIECE;
    let mut merges: Vec<(f32, usize, String)> = Vec::new();
    for id in (0..tokens.len()).filter(merged) {
        let token = &tokens[id];
        let mut own: Vec<(usize, usize, usize)> = Vec::new();
        for (at, _) in token.char_indices().skip(1) {
            let (a, b) = token.split_at(at);
            if let (Some(a), Some(b)) = (ids.get(a), ids.get(b)) {
                own.push((*a, *b, at));
            }
        }
        own.sort_unstable();
        merges.extend(own.into_iter().map(|(_, _, at)| (scores[id], id, format!("{} {}", &token[..at], &token[at..]))));
    }
    // Highest score first; of equal ones the earlier token.
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let mut seen = HashSet::new();
    let merges: Vec<String> = merges.into_iter().map(|m| m.2).filter(|m| seen.insert(m.clone())).collect();
    let unknown = kinds.iter().position(|k| *k == UNKNOWN).map(|id| tokens[id].clone());
    let blanks = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
    let first = prefix.then(|| json!({ "type": "Prepend", "prepend": "▁" }));
    let mut out = Map::new();
    out.insert(
        "normalizer".into(),
        json!({ "type": "Sequence", "normalizers": first.into_iter().chain([blanks]).collect::<Vec<_>>() }),
    );
    out.insert("pre_tokenizer".into(), Json::Null);
    out.insert(
        "decoder".into(),
        json!({ "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "▁" }, "content": " " }, { "type": "ByteFallback" }, { "type": "Fuse" },
            { "type": "Strip", "content": " ", "start": usize::from(prefix), "stop": 0 }] }),
    );
    out.insert(
        "model".into(),
        json!({ "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocabulary(ids.iter().map(|(t, id)| (*t, *id))), "merges": merges }),
    );
    out
}
