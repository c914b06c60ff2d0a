//! Tokens.

use super::ParseError;

/// A token's content.
#[derive(Clone, PartialEq, Debug)]
pub enum Token {
    /// Letters, digits, `_`, `.`, not beginning with a digit.
    Word(String),
    /// `%name` or `%3`.
    Value(String),
    /// `@name`.
    Func(String),
    /// Unsigned digits.
    Int(i64),
    /// Unsigned number with a point or an exponent.
    Real(f64),
    /// A quoted string, unescaped.
    Str(String),
    /// Punctuation.
    Punct(&'static str),
    /// The end of the text.
    End,
}

impl Token {
    /// How an error message names it.
    pub fn describe(&self) -> String {
        match self {
            Token::Word(w) => format!("`{w}`"),
            Token::Value(v) => format!("`%{v}`"),
            Token::Func(f) => format!("`@{f}`"),
            Token::Int(n) => format!("`{n}`"),
            Token::Real(x) => format!("`{x:?}`"),
            Token::Str(s) => format!("{s:?}"),
            Token::Punct(p) => format!("`{p}`"),
            Token::End => "the end of the text".into(),
        }
    }
}

/// A token and where it begins (1-based).
#[derive(Clone, Debug)]
pub struct Spanned {
    /// What it is.
    pub token: Token,
    /// Line.
    pub line: usize,
    /// Column, in characters.
    pub column: usize,
}

const PUNCTUATION: [&str; 17] = ["->", "..", "(", ")", "{", "}", "[", "]", ",", ":", "=", "+", "-", "*", ";", "<", "/"];

/// Splits text into tokens; the last is [`Token::End`].
pub fn tokens(text: &str) -> Result<Vec<Spanned>, ParseError> {
    let mut out = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let mut rest = line;
        loop {
            rest = rest.trim_start();
            if rest.is_empty() || rest.starts_with("//") {
                break;
            }
            let column = line[..line.len() - rest.len()].chars().count() + 1;
            let (token, used) = token(rest).map_err(|found| ParseError {
                line: number + 1,
                column,
                expected: "a token".into(),
                found,
            })?;
            out.push(Spanned { token, line: number + 1, column });
            rest = &rest[used..];
        }
    }
    let line = text.lines().count().max(1);
    out.push(Spanned { token: Token::End, line, column: text.lines().last().map_or(1, |l| l.chars().count() + 1) });
    Ok(out)
}

fn word_len(s: &str) -> usize {
    s.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '.')).unwrap_or(s.len())
}

fn token(s: &str) -> Result<(Token, usize), String> {
    let first = s.chars().next().expect("not empty");
    match first {
        '%' | '@' => {
            let n = word_len(&s[1..]);
            if n == 0 {
                return Err(format!("`{first}` without a name"));
            }
            let name = s[1..1 + n].to_owned();
            Ok((if first == '%' { Token::Value(name) } else { Token::Func(name) }, 1 + n))
        }
        '"' => string(s),
        c if c.is_ascii_digit() => number(s),
        c if c.is_ascii_alphabetic() || c == '_' => {
            let n = word_len(s);
            Ok((Token::Word(s[..n].to_owned()), n))
        }
        _ => match PUNCTUATION.iter().find(|p| s.starts_with(**p)) {
            Some(p) => Ok((Token::Punct(p), p.len())),
            None => Err(format!("`{first}`")),
        },
    }
}

fn string(s: &str) -> Result<(Token, usize), String> {
    let mut out = String::new();
    let mut chars = s.char_indices().skip(1);
    while let Some((i, c)) = chars.next() {
        match c {
            '"' => return Ok((Token::Str(out), i + 1)),
            '\\' => match chars.next() {
                Some((_, c @ ('"' | '\\' | '\''))) => out.push(c),
                Some((_, 'n')) => out.push('\n'),
                Some((_, 't')) => out.push('\t'),
                Some((_, 'r')) => out.push('\r'),
                Some((_, '0')) => out.push('\0'),
                Some((start, 'u')) => {
                    // `\u{41}`, as Rust prints characters that are not printable.
                    let body = s[start + 1..].strip_prefix('{').and_then(|b| b.split_once('}')).map(|(hex, _)| hex);
                    let code = body.filter(|h| h.len() <= 6).and_then(|h| u32::from_str_radix(h, 16).ok());
                    let (Some(hex), Some(c)) = (body, code.and_then(char::from_u32)) else {
                        return Err("a malformed escape".into());
                    };
                    out.push(c);
                    chars.by_ref().take(hex.len() + 2).for_each(drop);
                }
                _ => return Err("an unknown escape".into()),
            },
            c => out.push(c),
        }
    }
    Err("a string without an end".into())
}

fn number(s: &str) -> Result<(Token, usize), String> {
    let digits = |s: &str| s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len());
    let mut n = digits(s);
    let mut real = false;
    // `0..5` is a range, `0.5` a real.
    if s[n..].starts_with('.') && s[n + 1..].starts_with(|c: char| c.is_ascii_digit()) {
        real = true;
        n += 1 + digits(&s[n + 1..]);
    }
    if s[n..].starts_with(['e', 'E']) {
        let sign = usize::from(s[n + 1..].starts_with(['+', '-']));
        let exponent = digits(&s[n + 1 + sign..]);
        if exponent > 0 {
            real = true;
            n += 1 + sign + exponent;
        }
    }
    let text = &s[..n];
    let token = match real {
        true => text.parse().map(Token::Real).map_err(|_| format!("`{text}`"))?,
        false => text.parse().map(Token::Int).map_err(|_| format!("`{text}`, which is too large"))?,
    };
    Ok((token, n))
}
