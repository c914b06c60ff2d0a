//! Operands: registers, numbers, addresses, vectors.

use super::{Named, Parser};
use crate::error::{ErrorKind, Result, syntax};
use crate::lex::Token;
use crate::syntax::{Base, Function, Operand};

const MAX_ELEMENTS: usize = 256;

impl Parser<'_> {
    pub(super) fn operand(&mut self, function: &mut Function) -> Result<Operand> {
        match self.peek() {
            Some(Token::Mark('[')) => self.address(function),
            Some(Token::Mark('{')) => {
                self.at += 1;
                Ok(Operand::Vector(self.elements('}', function)?))
            }
            Some(Token::Mark('(')) => {
                self.at += 1;
                Ok(Operand::List(self.elements(')', function)?))
            }
            _ => {
                let first = self.plain(function)?;
                if !self.takes('|') {
                    return Ok(first);
                }
                Ok(Operand::Pair(Box::new(first), Box::new(self.plain(function)?)))
            }
        }
    }

    /// Plain operands up to a closing mark.
    fn elements(&mut self, close: char, function: &mut Function) -> Result<Vec<Operand>> {
        let mut found = Vec::new();
        if self.takes(close) {
            return Ok(found);
        }
        loop {
            found.push(self.plain(function)?);
            if found.len() > MAX_ELEMENTS {
                return Err(ErrorKind::Limit { what: "elements of a vector", limit: MAX_ELEMENTS });
            }
            if self.takes(close) {
                return Ok(found);
            }
            self.expect(',')?;
        }
    }

    /// An operand without brackets.
    fn plain(&mut self, function: &mut Function) -> Result<Operand> {
        match self.next()? {
            Token::Mark('!') => {
                let name = self.word()?;
                Ok(Operand::Not(Box::new(Operand::Register(self.register(name, function)?))))
            }
            Token::Mark('-') => match self.next()? {
                Token::Number(text) => match number(text)? {
                    Operand::Integer(value) => Ok(Operand::Integer(value.wrapping_neg())),
                    Operand::Float32(bits) => Ok(Operand::Float32(bits ^ 1 << 31)),
                    Operand::Float64(bits) => Ok(Operand::Float64(bits ^ 1 << 63)),
                    other => Ok(other),
                },
                other => syntax("a number", other.shown()),
            },
            Token::Number(text) => number(text),
            Token::Word("_") => Ok(Operand::Sink),
            Token::Word("WARP_SZ") => Ok(Operand::Integer(32)),
            Token::Word(word) => Ok(match self.named(word, function)? {
                Some(Named::Register(register)) => Operand::Register(register),
                Some(Named::Variable(symbol)) => Operand::Variable(symbol, self.offset()?),
                None if word.starts_with('%') => Operand::Special(word.into()),
                None => Operand::Name(word.into(), self.scope as u32),
            }),
            other => syntax("an operand", other.shown()),
        }
    }

    /// `[base]`, `[base + n]`, `[n]`, `[base, {coordinates}]`.
    fn address(&mut self, function: &mut Function) -> Result<Operand> {
        self.expect('[')?;
        let (base, mut offset) = match self.plain(function)? {
            Operand::Register(register) => (Base::Register(register), 0),
            Operand::Variable(symbol, offset) => (Base::Variable(symbol), offset),
            Operand::Integer(value) => (Base::Nothing, value as i64),
            Operand::Name(name, _) => return Err(ErrorKind::Undeclared { name: name.into() }),
            Operand::Special(name) => return Err(ErrorKind::Undeclared { name: name.into() }),
            _ => return syntax("an address", self.shown()),
        };
        offset = offset.wrapping_add(self.offset()?);
        let mut coordinates = Vec::new();
        if self.takes(',') {
            self.expect('{')?;
            coordinates = self.elements('}', function)?;
        }
        self.expect(']')?;
        Ok(Operand::Address { base, offset, coordinates })
    }

    /// `+ n`, `+ -n`, `- n` or nothing.
    pub(super) fn offset(&mut self) -> Result<i64> {
        let negated = match self.peek() {
            Some(Token::Mark('+')) => {
                self.at += 1;
                self.takes('-')
            }
            Some(Token::Mark('-')) => {
                self.at += 1;
                true
            }
            _ => return Ok(0),
        };
        let value = self.integer()? as i64;
        Ok(if negated { value.wrapping_neg() } else { value })
    }

    /// An integer, perhaps with a sign.
    pub(super) fn integer(&mut self) -> Result<u64> {
        let negated = self.takes('-');
        match self.next()? {
            Token::Number(text) => match number(text)? {
                Operand::Integer(value) => Ok(if negated { value.wrapping_neg() } else { value }),
                _ => syntax("an integer", text),
            },
            other => syntax("an integer", other.shown()),
        }
    }
}

/// The value of a literal.
pub(super) fn number(text: &str) -> Result<Operand> {
    let bad = || ErrorKind::Syntax { expected: "a number".into(), found: text.into() };
    let lower = text.to_ascii_lowercase();
    if let Some(digits) = lower.strip_prefix("0f").filter(|d| d.len() == 8) {
        return u32::from_str_radix(digits, 16).map(Operand::Float32).map_err(|_| bad());
    }
    if let Some(digits) = lower.strip_prefix("0d").filter(|d| d.len() == 16) {
        return u64::from_str_radix(digits, 16).map(Operand::Float64).map_err(|_| bad());
    }
    if lower.contains('.') {
        return lower.parse::<f64>().map(|v| Operand::Float64(v.to_bits())).map_err(|_| bad());
    }
    let digits = lower.strip_suffix('u').unwrap_or(&lower);
    let parsed = if let Some(digits) = digits.strip_prefix("0x") {
        u64::from_str_radix(digits, 16)
    } else if let Some(digits) = digits.strip_prefix("0b") {
        u64::from_str_radix(digits, 2)
    } else if digits.len() > 1 && digits.starts_with('0') {
        u64::from_str_radix(&digits[1..], 8)
    } else {
        digits.parse()
    };
    parsed.map(Operand::Integer).map_err(|_| bad())
}
