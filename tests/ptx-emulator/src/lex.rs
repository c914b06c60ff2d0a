//! Tokens of PTX text.

use crate::error::{Error, ErrorKind};

/// A token; words hold their dots, `::` and a leading `%` or `$`, so that an opcode is one word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Token<'a> {
    Word(&'a str),
    Number(&'a str),
    Text(&'a str),
    Mark(char),
}

impl Token<'_> {
    pub(crate) fn shown(&self) -> String {
        match self {
            Token::Word(w) | Token::Number(w) => (*w).to_owned(),
            Token::Text(t) => format!("\"{t}\""),
            Token::Mark(c) => c.to_string(),
        }
    }
}

/// Splits a text into tokens with their lines.
pub(crate) fn tokens(text: &str) -> Result<Vec<(Token<'_>, u32)>, Error> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let mut at = 0;
    let mut line = 1u32;
    let error = |line: u32, at: usize, expected: &str| {
        let end = text[at..].find('\n').map_or(text.len(), |n| at + n);
        let shown: String = text[at..end].chars().take(60).collect();
        let found = shown.chars().next().map(String::from).unwrap_or_default();
        Err(Error { line, text: shown, kind: ErrorKind::Syntax { expected: expected.to_owned(), found } })
    };
    while at < bytes.len() {
        let byte = bytes[at];
        match byte {
            b'\n' => {
                line += 1;
                at += 1;
            }
            b' ' | b'\t' | b'\r' | 0x0c => at += 1,
            b'/' if bytes.get(at + 1) == Some(&b'/') => {
                while at < bytes.len() && bytes[at] != b'\n' {
                    at += 1;
                }
            }
            b'/' if bytes.get(at + 1) == Some(&b'*') => {
                let Some(length) = text[at + 2..].find("*/") else { return error(line, at, "`*/` after `/*`") };
                let end = at + 2 + length + 2;
                line += bytes[at..end].iter().filter(|&&b| b == b'\n').count() as u32;
                at = end;
            }
            b'"' => {
                let Some(length) = text[at + 1..].find(['"', '\n']).filter(|n| bytes[at + 1 + n] == b'"') else {
                    return error(line, at, "a closing quote");
                };
                found.push((Token::Text(&text[at + 1..at + 1 + length]), line));
                at += length + 2;
            }
            b'0'..=b'9' => {
                let start = at;
                while at < bytes.len() && (bytes[at].is_ascii_alphanumeric() || bytes[at] == b'.') {
                    at += 1;
                }
                found.push((Token::Number(&text[start..at]), line));
            }
            b'a'..=b'z' | b'A'..=b'Z' | b'_' | b'$' | b'%' | b'.' => {
                let start = at;
                at += 1;
                loop {
                    match bytes.get(at) {
                        Some(b) if b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$' | b'.') => at += 1,
                        Some(b':')
                            if bytes.get(at + 1) == Some(&b':')
                                && bytes.get(at + 2).is_some_and(|b| b.is_ascii_alphabetic()) =>
                        {
                            at += 2
                        }
                        _ => break,
                    }
                }
                found.push((Token::Word(&text[start..at]), line));
            }
            b',' | b';' | b':' | b'[' | b']' | b'{' | b'}' | b'(' | b')' | b'<' | b'>' | b'+' | b'-' | b'|' | b'!'
            | b'@' | b'=' | b'~' => {
                found.push((Token::Mark(byte as char), line));
                at += 1;
            }
            _ => return error(line, at, "PTX"),
        }
    }
    Ok(found)
}
