//! Text to tokens, tokens to text, conversations to prompts; all from the checkpoint's own files.

mod stream;
mod template;

pub use stream::Stream;
pub use template::{Message, Template};

use crate::Program;
use hadal_artifact::blob;
use serde_json::Value;
use tokenizers::{DecoderWrapper, Tokenizer};

/// What can be wrong with tokenizer files, or with text given to them.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// The model was compiled from a checkpoint without one.
    #[error("the model has no tokenizer, as its checkpoint had none; give token ids instead: --tokens 1,2,3")]
    NoTokenizer,
    /// `tokenizer.json` is not understood.
    #[error(
        "the compiled file's tokenizer.json cannot be used: {message}; give token ids instead (--tokens 1,2,3), or \
         compile again with a working tokenizer.json"
    )]
    Tokenizer {
        /// What the library said.
        message: String,
    },
    /// Tokens do not stand for bytes, as those of all models this runtime is for do.
    #[error(
        "the compiled file's tokenizer.json cannot be used: only byte-level tokenizers and those of SentencePiece are \
         supported; give token ids instead: --tokens 1,2,3"
    )]
    NotByteLevel,
    /// `tokenizer_config.json` is not understood.
    #[error("the compiled file's tokenizer_config.json cannot be used: {message}")]
    Config {
        /// What is wrong.
        message: String,
    },
    /// The model was compiled from a checkpoint without one.
    #[error("the model has no chat template; use a plain prompt")]
    NoTemplate,
    /// The template is broken, or refuses the conversation.
    #[error("chat template: {message}")]
    Template {
        /// What it said, or where it failed.
        message: String,
    },
    /// The tokenizer refuses a text.
    #[error("the text cannot be tokenized: {message}")]
    Encode {
        /// What the library said.
        message: String,
    },
}

/// A tokenizer and what belongs to it.
pub struct Text {
    tokenizer: Tokenizer,
    /// Added in front of a plain prompt where the tokenizer itself adds none.
    begin: Option<u32>,
    /// The token `tokenizer_config.json` names as the end of a text.
    end: Option<u32>,
    template: Option<Template>,
    /// Bytes of all tokens, one after the other, and where each ends; special tokens have none.
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

impl Text {
    /// From the blobs of a compiled file.
    pub fn of(program: &Program) -> Result<Text, TextError> {
        let tokenizer = program.blob(blob::TOKENIZER).ok_or(TextError::NoTokenizer)?;
        Text::new(tokenizer, program.blob(blob::TOKENIZER_CONFIG), program.blob(blob::CHAT_TEMPLATE))
    }

    /// From the bytes of `tokenizer.json`, `tokenizer_config.json` and a template file, which goes before a template in
    /// the configuration.
    pub fn new(tokenizer: &[u8], config: Option<&[u8]>, template: Option<&[u8]>) -> Result<Text, TextError> {
        let tokenizer =
            Tokenizer::from_bytes(tokenizer).map_err(|e| TextError::Tokenizer { message: e.to_string() })?;
        let spelling = tokenizer.get_decoder().and_then(spelling).ok_or(TextError::NotByteLevel)?;
        let config: Value = match config {
            Some(bytes) => serde_json::from_slice(bytes).map_err(|e| TextError::Config { message: e.to_string() })?,
            None => Value::Null,
        };
        let id = |field| special(&config, field).and_then(|s| tokenizer.token_to_id(s));
        let adds_begin = config["add_bos_token"].as_bool().unwrap_or(false);
        let begin = if adds_begin { id("bos_token") } else { None };
        let end = id("eos_token");
        let source = match template {
            Some(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
            None => template_in(&config),
        };
        let template = source.map(|s| Template::new(s, &config)).transpose()?;
        let (bytes, ends) = token_bytes(&tokenizer, spelling);
        Ok(Text { tokenizer, begin, end, template, bytes, ends })
    }

    /// Tokens of a plain prompt, beginning as the model expects it.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let mut tokens = self.tokens(text, true)?;
        if let Some(begin) = self.begin.filter(|b| tokens.first() != Some(b)) {
            tokens.insert(0, begin);
        }
        Ok(tokens)
    }

    /// Tokens of a conversation, ready for the model's turn. The template writes all special tokens itself.
    pub fn encode_chat(&self, messages: &[Message]) -> Result<Vec<u32>, TextError> {
        let template = self.template.as_ref().ok_or(TextError::NoTemplate)?;
        self.tokens(&template.render(messages)?, false)
    }

    fn tokens(&self, text: &str, special: bool) -> Result<Vec<u32>, TextError> {
        let encoding = self.tokenizer.encode_fast(text, special);
        let encoding = encoding.map_err(|e| TextError::Encode { message: e.to_string() })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The bytes `token` stands for; none for special and unknown tokens.
    pub fn bytes(&self, token: u32) -> &[u8] {
        let at = token as usize;
        let Some(end) = self.ends.get(at) else { return &[] };
        let start = if at == 0 { 0 } else { self.ends[at - 1] };
        &self.bytes[start as usize..*end as usize]
    }

    /// The text of `tokens`, without special ones.
    pub fn decode(&self, tokens: &[u32]) -> String {
        let bytes: Vec<u8> = tokens.iter().flat_map(|t| self.bytes(*t)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The end-of-text token of the tokenizer's configuration.
    pub fn end(&self) -> Option<u32> {
        self.end
    }

    /// Whether conversations can be encoded.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }
}

/// How tokens spell bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spelling {
    /// Each byte as a printable character.
    Characters,
    /// As text, with `▁` for a blank; what no other token spells byte by byte, as `<0x0A>`.
    Pieces,
}

fn spelling(decoder: &DecoderWrapper) -> Option<Spelling> {
    match decoder {
        DecoderWrapper::ByteLevel(_) => Some(Spelling::Characters),
        DecoderWrapper::Sequence(s) => match s.get_decoders() {
            [DecoderWrapper::ByteLevel(_)] => Some(Spelling::Characters),
            all => all.iter().any(|d| matches!(d, DecoderWrapper::ByteFallback(_))).then_some(Spelling::Pieces),
        },
        _ => None,
    }
}

/// A special token's text, which is either a string or an object.
fn special<'a>(config: &'a Value, field: &str) -> Option<&'a str> {
    let value = &config[field];
    value.as_str().or_else(|| value["content"].as_str())
}

/// The template in the configuration: a string, or a list of named ones of which `default` is taken.
fn template_in(config: &Value) -> Option<String> {
    let template = &config["chat_template"];
    let named = || template.as_array()?.iter().find(|t| t["name"] == "default")?["template"].as_str();
    template.as_str().or_else(named).map(str::to_string)
}

/// Bytes of every token.
fn token_bytes(tokenizer: &Tokenizer, spelling: Spelling) -> (Vec<u8>, Vec<u32>) {
    let added = tokenizer.get_added_tokens_decoder();
    let vocab = tokenizer.get_vocab(true);
    let count = vocab.values().max().map_or(0, |id| *id as usize + 1);
    let mut tokens: Vec<(u32, &String)> = vocab.iter().map(|(token, id)| (*id, token)).collect();
    tokens.sort_unstable();
    let mut bytes = Vec::new();
    let mut ends = vec![0; count.min(1 << 24)];
    let mut next = 0;
    for (id, token) in tokens {
        let id = id as usize;
        if id >= ends.len() {
            break;
        }
        ends[next..id].fill(bytes.len() as u32);
        if !added.get(&(id as u32)).is_some_and(|a| a.special) {
            match spelled(token, spelling) {
                Some(of) => bytes.extend(of),
                // Added tokens are spelled as they are.
                None => bytes.extend_from_slice(token.as_bytes()),
            }
        }
        ends[id] = bytes.len() as u32;
        next = id + 1;
    }
    (bytes, ends)
}

/// The bytes of a token of the vocabulary; `None` where its characters stand for none.
fn spelled(token: &str, spelling: Spelling) -> Option<Vec<u8>> {
    if spelling == Spelling::Characters {
        return token.chars().map(byte_of).collect();
    }
    let byte = token.strip_prefix("<0x").and_then(|t| t.strip_suffix('>')).filter(|t| t.len() == 2);
    Some(match byte.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
        Some(byte) => vec![byte],
        None => token.replace('▁', " ").into_bytes(),
    })
}

/// The byte that a character of a byte-level vocabulary stands for: printable Latin-1 for itself, and the 68 others in
/// order from U+0100 on.
fn byte_of(c: char) -> Option<u8> {
    match c as u32 {
        n @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => Some(n as u8),
        n @ 0x100..=0x120 => Some((n - 0x100) as u8),
        n @ 0x121..=0x142 => Some((n - 0x121 + 0x7f) as u8),
        0x143 => Some(0xad),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_one_character() {
        let mut bytes: Vec<u8> = (0..0x200).filter_map(char::from_u32).filter_map(byte_of).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!((byte_of('Ġ'), byte_of('Ċ'), byte_of('é')), (Some(b' '), Some(b'\n'), Some(0xe9)));
    }

    #[test]
    fn pieces_are_text_and_single_bytes() {
        let of = |t| spelled(t, Spelling::Pieces).unwrap();
        assert_eq!(
            [of("▁caf▁é"), of("<0x0A>"), of("<0x0A"), of("<0xZZ>")],
            [" caf é".into(), vec![10], "<0x0A".into(), "<0xZZ>".into()]
        );
        assert_eq!(spelled("▁", Spelling::Characters), None);
    }
}
