//! Parsing. Types and names are checked here; the verifier does the rest.

use super::lex::{Spanned, Token, tokens};
use crate::attr::{Attr, Attrs};
use crate::module::*;
use crate::ops::Op;
use hadal_types::{DType, Definition, Dim, Misdefined, Sym, TensorType};
use std::collections::{BTreeMap, HashMap};

/// Where and why text is not a module.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
#[error("line {line}, column {column}: expected {expected}, found {found}")]
pub struct ParseError {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What should stand there.
    pub expected: String,
    /// What does.
    pub found: String,
}

/// Longest text that is read, far beyond any real module.
const MAX_BYTES: usize = 64 << 20;
/// Deepest nesting of attribute lists.
const MAX_DEPTH: usize = 8;

/// Parses a module. The result still has to pass [`crate::verify::module`].
pub fn parse_module(text: &str) -> Result<Module> {
    let mut p = Parser::new(text)?;
    let mut module = Module::default();
    loop {
        match p.peek().clone() {
            Token::End => return Ok(module),
            Token::Word(w) if w == "symbols" => {
                p.next();
                p.symbols(&mut module)?;
            }
            Token::Word(w) if w == "func" => module.funcs.push(p.func(FuncKind::Graph)?),
            Token::Word(w) if w == "kernel" => module.funcs.push(p.func(FuncKind::Kernel)?),
            Token::Word(w) if w == "fold" => module.funcs.push(p.func(FuncKind::Fold)?),
            Token::Word(w) if w == "entry" => module.entries.push(p.entry()?),
            _ => return Err(p.expected("`symbols`, `func`, `kernel`, `fold`, `entry` or the end")),
        }
    }
}

pub(super) struct Parser {
    tokens: Vec<Spanned>,
    pub(super) at: usize,
}

pub(super) type Result<T> = std::result::Result<T, ParseError>;

impl Parser {
    /// A parser at the start of `text`.
    pub(super) fn new(text: &str) -> Result<Parser> {
        if text.len() > MAX_BYTES {
            let found = format!("{} bytes", text.len());
            return Err(ParseError { line: 1, column: 1, expected: format!("at most {MAX_BYTES} bytes"), found });
        }
        Ok(Parser { tokens: tokens(text)?, at: 0 })
    }

    pub(super) fn peek(&self) -> &Token {
        &self.tokens[self.at].token
    }

    pub(super) fn next(&mut self) -> Token {
        let token = self.peek().clone();
        if self.at + 1 < self.tokens.len() {
            self.at += 1;
        }
        token
    }

    pub(super) fn expected(&self, expected: impl Into<String>) -> ParseError {
        self.error(self.at, expected, self.peek().describe())
    }

    pub(super) fn error(&self, at: usize, expected: impl Into<String>, found: impl Into<String>) -> ParseError {
        let Spanned { line, column, .. } = self.tokens[at];
        ParseError { line, column, expected: expected.into(), found: found.into() }
    }

    pub(super) fn eat(&mut self, punct: &str) -> bool {
        let found = matches!(self.peek(), Token::Punct(p) if *p == punct);
        if found {
            self.next();
        }
        found
    }

    pub(super) fn punct(&mut self, punct: &str) -> Result<()> {
        if self.eat(punct) { Ok(()) } else { Err(self.expected(format!("`{punct}`"))) }
    }

    pub(super) fn eat_word(&mut self, word: &str) -> bool {
        let found = matches!(self.peek(), Token::Word(w) if w == word);
        if found {
            self.next();
        }
        found
    }

    pub(super) fn word(&mut self, what: &str) -> Result<String> {
        match self.peek().clone() {
            Token::Word(w) => {
                self.next();
                Ok(w)
            }
            _ => Err(self.expected(what)),
        }
    }

    fn value(&mut self) -> Result<(usize, String)> {
        match self.peek().clone() {
            Token::Value(v) => {
                self.next();
                Ok((self.at - 1, v))
            }
            _ => Err(self.expected("a value such as `%x`")),
        }
    }

    pub(super) fn func_name(&mut self) -> Result<String> {
        match self.peek().clone() {
            Token::Func(f) => {
                self.next();
                Ok(f)
            }
            _ => Err(self.expected("a function such as `@main`")),
        }
    }

    pub(super) fn string(&mut self) -> Result<String> {
        match self.peek().clone() {
            Token::Str(s) => {
                self.next();
                Ok(s)
            }
            _ => Err(self.expected("a quoted string")),
        }
    }

    pub(super) fn int(&mut self) -> Result<i64> {
        let negative = self.eat("-");
        match self.peek().clone() {
            Token::Int(n) => {
                self.next();
                Ok(if negative { -n } else { n })
            }
            _ => Err(self.expected("an integer")),
        }
    }

    pub(super) fn ranges(&mut self) -> Result<BTreeMap<Sym, Range>> {
        let mut out = BTreeMap::new();
        loop {
            let (sym, range) = self.range()?;
            out.insert(sym, range);
            if !self.eat(",") {
                return Ok(out);
            }
        }
    }

    fn range(&mut self) -> Result<(Sym, Range)> {
        let at = self.at;
        let name = self.word("a symbol")?;
        let sym = Sym::new(&name).ok_or_else(|| self.error(at, "a symbol of at most 8 letters", &name))?;
        let range = if self.eat("=") {
            let n = self.int()?;
            Range { min: n, max: n }
        } else if self.eat_word("in") {
            let min = self.int()?;
            self.punct("..")?;
            Range { min, max: self.int()? }
        } else {
            return Err(self.expected("`=` or `in`"));
        };
        Ok((sym, range))
    }

    /// `P in 0..8, T in 1..8, C = P / 4, N = growth C`
    fn symbols(&mut self, module: &mut Module) -> Result<()> {
        loop {
            let at = self.at;
            let sym = self.sym()?;
            self.at = at + 1;
            match self.definition()? {
                Some(definition) => {
                    let wrong = |e: Misdefined| self.error(at, "a definition", format!("`{sym}`, which {e}"));
                    module.definitions.add(sym, definition).map_err(wrong)?;
                }
                None => {
                    self.at = at;
                    let (sym, range) = self.range()?;
                    module.symbols.insert(sym, range);
                }
            }
            if !self.eat(",") {
                break;
            }
        }
        follow(&module.definitions, &mut module.symbols);
        Ok(())
    }

    /// `= P / 4`, `= (P+T) / 4`, `= growth C`; `None` where it is something else.
    fn definition(&mut self) -> Result<Option<Definition>> {
        if !self.eat("=") {
            return Ok(None);
        }
        if self.eat_word("growth") {
            return Ok(Some(Definition::Growth { of: self.sym()? }));
        }
        let of = match self.eat("(") {
            true => {
                let of = self.dim()?;
                self.punct(")")?;
                of
            }
            false => match (self.peek().clone(), self.tokens.get(self.at + 1).map(|t| &t.token)) {
                (Token::Word(_), _) => Dim::from(self.sym()?),
                (Token::Int(n), Some(Token::Punct("*"))) => {
                    self.next();
                    self.next();
                    Dim::from(self.sym()?) * n
                }
                _ => return Ok(None),
            },
        };
        self.punct("/")?;
        Ok(Some(Definition::Quotient { of, by: self.int()? }))
    }

    fn entry(&mut self) -> Result<Entry> {
        self.next();
        let name = self.word("the entry's name")?;
        self.punct("=")?;
        let func = self.func_name()?;
        let ranges = if self.eat_word("where") { self.ranges()? } else { BTreeMap::new() };
        Ok(Entry { name, func, ranges })
    }

    pub(super) fn dim(&mut self) -> Result<Dim> {
        let mut sum = Dim::default();
        let mut negative = self.eat("-");
        loop {
            let at = self.at;
            let term = match self.next() {
                Token::Int(n) if self.eat("*") => Dim::from(self.sym()?) * n,
                Token::Int(n) => Dim::from(n),
                Token::Word(w) => Dim::from(Sym::new(&w).ok_or_else(|| self.error(at, "a symbol", format!("`{w}`")))?),
                other => return Err(self.error(at, "a size", other.describe())),
            };
            sum = if negative { sum - term } else { sum + term };
            negative = if self.eat("+") {
                false
            } else if self.eat("-") {
                true
            } else {
                return Ok(sum);
            };
        }
    }

    fn sym(&mut self) -> Result<Sym> {
        let at = self.at;
        let w = self.word("a symbol")?;
        Sym::new(&w).ok_or_else(|| self.error(at, "a symbol", format!("`{w}`")))
    }

    pub(super) fn ty(&mut self) -> Result<TensorType> {
        let at = self.at;
        let w = self.word("a type such as `f32[T, 8]`")?;
        let dtype: DType = w.parse().map_err(|()| self.error(at, "an element format", format!("`{w}`")))?;
        self.punct("[")?;
        let mut shape = Vec::new();
        while !self.eat("]") {
            shape.push(self.dim()?);
            if !self.eat(",") {
                self.punct("]")?;
                break;
            }
        }
        Ok(TensorType { dtype, shape })
    }

    fn attr(&mut self, depth: usize) -> Result<Attr> {
        if depth > MAX_DEPTH {
            return Err(self.expected("no deeper list"));
        }
        match self.peek().clone() {
            Token::Str(s) => {
                self.next();
                Ok(Attr::Str(s))
            }
            Token::Real(x) => {
                self.next();
                Ok(Attr::Real(x))
            }
            Token::Punct("[") => {
                self.next();
                let mut items = Vec::new();
                while !self.eat("]") {
                    items.push(self.attr(depth + 1)?);
                    if !self.eat(",") {
                        self.punct("]")?;
                        break;
                    }
                }
                Ok(Attr::List(items))
            }
            Token::Punct("-") => match self.tokens.get(self.at + 1).map(|t| t.token.clone()) {
                Some(Token::Real(x)) => {
                    self.at += 2;
                    Ok(Attr::Real(-x))
                }
                Some(Token::Word(w)) if w == "inf" => {
                    self.at += 2;
                    Ok(Attr::Real(f64::NEG_INFINITY))
                }
                _ => Ok(Attr::Dim(self.dim()?)),
            },
            Token::Word(w) if w == "inf" || w == "NaN" => {
                self.next();
                Ok(Attr::Real(if w == "inf" { f64::INFINITY } else { f64::NAN }))
            }
            Token::Word(w) => {
                let then = self.tokens.get(self.at + 1).map(|t| t.token.clone());
                if matches!(then, Some(Token::Punct("+" | "-"))) {
                    return Ok(Attr::Dim(self.dim()?));
                }
                self.next();
                Ok(Attr::Word(w))
            }
            Token::Int(_) => Ok(Attr::Dim(self.dim()?)),
            _ => Err(self.expected("an attribute")),
        }
    }

    fn attrs(&mut self) -> Result<Attrs> {
        let mut out = Attrs::default();
        if self.eat("{") {
            while !self.eat("}") {
                let name = self.word("an attribute's name")?;
                self.punct("=")?;
                out.0.push((name, self.attr(0)?));
                if !self.eat(",") {
                    self.punct("}")?;
                    break;
                }
            }
        }
        Ok(out)
    }

    fn func(&mut self, kind: FuncKind) -> Result<Func> {
        self.next();
        let mut f = Body { func: Func { kind, name: self.func_name()?, ..Func::default() }, names: HashMap::new() };
        self.punct("(")?;
        while !self.eat(")") {
            let (at, name) = self.value()?;
            self.punct(":")?;
            let value = f.define(self, at, name)?;
            f.func.values[value.index()].ty = self.ty()?;
            f.func.params.push(value);
            if !self.eat(",") {
                self.punct(")")?;
                break;
            }
        }
        self.punct("->")?;
        self.punct("(")?;
        let mut results = Vec::new();
        while !self.eat(")") {
            let name = self.word("a result's name")?;
            self.punct(":")?;
            results.push((name, self.at, self.ty()?));
            if !self.eat(",") {
                self.punct(")")?;
                break;
            }
        }
        self.punct("{")?;
        loop {
            match self.peek().clone() {
                Token::Word(w) if w == "weight" || w == "state" => {
                    self.next();
                    let (at, name) = self.value()?;
                    self.punct("=")?;
                    let label = self.string()?;
                    self.punct(":")?;
                    let ty = self.ty()?;
                    let value = f.define(self, at, name)?;
                    f.func.values[value.index()].ty = ty;
                    match w.as_str() {
                        "weight" => f.func.weights.push(Weight { value, name: label }),
                        _ => f.func.states.push(State { value, name: label, next: value }),
                    }
                }
                Token::Word(w) if w == "next" => {
                    self.next();
                    let at = self.at;
                    let state = self.used(&f)?;
                    self.punct("=")?;
                    let next = self.used(&f)?;
                    let Some(s) = f.func.states.iter_mut().find(|s| s.value == state) else {
                        return Err(self.error(at, "a state", "another value"));
                    };
                    s.next = next;
                }
                Token::Word(w) if w == "return" => {
                    self.next();
                    break;
                }
                Token::Word(w) if w == "call" => self.inst(&mut f, Vec::new())?,
                Token::Value(_) => {
                    let mut results = vec![self.value()?];
                    while self.eat(",") {
                        results.push(self.value()?);
                    }
                    self.punct("=")?;
                    self.inst(&mut f, results)?;
                }
                _ => return Err(self.expected("an instruction, `next` or `return`")),
            }
        }
        for (i, (name, at, ty)) in results.into_iter().enumerate() {
            if i > 0 {
                self.punct(",")?;
            }
            let value = self.used(&f)?;
            if *f.func.ty(value) != ty {
                return Err(self.error(
                    at,
                    format!("{}, the type of the value returned", f.func.ty(value)),
                    ty.to_string(),
                ));
            }
            f.func.results.push((name, value));
        }
        self.punct("}")?;
        Ok(f.func)
    }

    fn used(&mut self, f: &Body) -> Result<ValueId> {
        let (at, name) = self.value()?;
        f.names.get(&name).copied().ok_or_else(|| self.error(at, "a value defined above", format!("`%{name}`")))
    }

    fn operands(&mut self, f: &Body) -> Result<Vec<ValueId>> {
        let mut args = Vec::new();
        if matches!(self.peek(), Token::Value(_)) {
            args.push(self.used(f)?);
            while self.eat(",") {
                args.push(self.used(f)?);
            }
        }
        Ok(args)
    }

    fn inst(&mut self, f: &mut Body, results: Vec<(usize, String)>) -> Result<()> {
        let at = self.at;
        let mnemonic = self.word("an op")?;
        let (kind, args) = if mnemonic == "call" {
            let func = self.func_name()?;
            self.punct("(")?;
            let args = self.operands(f)?;
            self.punct(")")?;
            let prefix = if self.eat_word("at") { self.string()? } else { String::new() };
            (InstKind::Call(Call { func, prefix }), args)
        } else {
            let args = self.operands(f)?;
            let attrs = self.attrs()?;
            let op = Op::from_text(&mnemonic, attrs)
                .ok_or_else(|| self.error(at, "an op", format!("`{mnemonic}`")))?
                .map_err(|e| self.error(at, format!("a well-formed `{mnemonic}`"), e.to_string()))?;
            (InstKind::Op(op), args)
        };
        let mut types = Vec::new();
        if self.eat(":") {
            types.push(self.ty()?);
            while self.eat(",") {
                types.push(self.ty()?);
            }
        }
        if let InstKind::Op(op) = &kind {
            let operands: Vec<TensorType> = args.iter().map(|a| f.func.ty(*a).clone()).collect();
            let ty = op
                .infer(&operands)
                .map_err(|v| self.error(at, format!("operands fit for `{mnemonic}`"), v.to_string()))?;
            if types.is_empty() {
                types.push(ty.clone());
            }
            if types != [ty.clone()] {
                return Err(self.error(at, format!("type {ty}"), format!("{}", types[0])));
            }
        }
        if types.len() != results.len() {
            let found = format!("{} result(s) and {} type(s)", results.len(), types.len());
            return Err(self.error(at, "one type per result", found));
        }
        let origin = self.names_after("from")?;
        let laws = self.names_after("by")?;
        let mut ids = Vec::new();
        for ((name_at, name), ty) in results.into_iter().zip(types) {
            let value = f.define(self, name_at, name)?;
            f.func.values[value.index()].ty = ty;
            ids.push(value);
        }
        f.func.insts.push(Inst { kind, args, results: ids, origin, laws });
        Ok(())
    }

    /// Strings after `keyword`, or none where it does not stand.
    fn names_after(&mut self, keyword: &str) -> Result<Vec<String>> {
        let mut out = Vec::new();
        if self.eat_word(keyword) {
            out.push(self.string()?);
            while self.eat(",") {
                out.push(self.string()?);
            }
        }
        Ok(out)
    }
}

struct Body {
    func: Func,
    names: HashMap<String, ValueId>,
}

impl Body {
    fn define(&mut self, p: &Parser, at: usize, name: String) -> Result<ValueId> {
        if self.names.contains_key(&name) {
            return Err(p.error(at, "a new name", format!("`%{name}`, which is defined above")));
        }
        let numbered = name.starts_with(|c: char| c.is_ascii_digit());
        let value = self.func.add_value(TensorType::new(DType::F32, [0]), (!numbered).then(|| name.clone()));
        self.names.insert(name, value);
        Ok(value)
    }
}
