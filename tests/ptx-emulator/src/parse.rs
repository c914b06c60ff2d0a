//! From tokens to [`Text`]: scopes, registers, variables, labels.
//!
//! Blocks are flattened while they are read, with a stack of scopes instead of recursion. Nothing here knows an
//! instruction.

mod directive;
mod operand;

use std::collections::HashMap;

use crate::error::{Error, ErrorKind, Result, syntax};
use crate::lex::{Token, tokens};
use crate::syntax::{Function, Operand, RawInst, Register, Symbol, Text};
use crate::types::Type;

const MAX_DEPTH: usize = 64;
const MAX_REGISTERS: usize = 1 << 17;
const MAX_VARIABLES: usize = 1 << 16;

/// What a name stands for.
#[derive(Clone, Copy)]
enum Named {
    Register(Register),
    Variable(Symbol),
}

/// `%r<7>`: names that are made as they are used.
struct Family {
    count: u64,
    ty: Type,
    members: HashMap<u64, Register>,
}

#[derive(Default)]
struct Scope {
    parent: Option<usize>,
    names: HashMap<Box<str>, Named>,
    families: HashMap<Box<str>, Family>,
    labels: HashMap<Box<str>, u32>,
}

struct Parser<'a> {
    tokens: Vec<(Token<'a>, u32)>,
    at: usize,
    text: Text,
    /// The first is the module's; the others are those of the function that is read.
    scopes: Vec<Scope>,
    scope: usize,
    depth: usize,
}

/// Reads a module.
pub(crate) fn parse(source: &str) -> std::result::Result<Text, Error> {
    let mut parser = Parser {
        tokens: tokens(source)?,
        at: 0,
        text: Text::default(),
        scopes: vec![Scope::default()],
        scope: 0,
        depth: 0,
    };
    let mut line = 1;
    let outcome = parser.module(&mut line);
    outcome.map_err(|kind| Error { line, text: statement(source, line), kind })?;
    Ok(parser.text)
}

/// A line of the text, shortened.
pub(crate) fn statement(source: &str, line: u32) -> String {
    let shown = source.lines().nth(line.saturating_sub(1) as usize).unwrap_or("").trim();
    shown.chars().take(120).collect()
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<Token<'a>> {
        self.tokens.get(self.at).map(|t| t.0)
    }

    fn peek_at(&self, ahead: usize) -> Option<Token<'a>> {
        self.tokens.get(self.at + ahead).map(|t| t.0)
    }

    fn line(&self) -> u32 {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |t| t.1)
    }

    fn next(&mut self) -> Result<Token<'a>> {
        let token = self.peek();
        self.at += 1;
        token.ok_or(ErrorKind::Syntax { expected: "more".into(), found: "the end".into() })
    }

    fn takes(&mut self, mark: char) -> bool {
        let taken = self.peek() == Some(Token::Mark(mark));
        self.at += usize::from(taken);
        taken
    }

    fn expect(&mut self, mark: char) -> Result<()> {
        if self.takes(mark) { Ok(()) } else { syntax(format!("`{mark}`"), self.shown()) }
    }

    fn word(&mut self) -> Result<&'a str> {
        match self.peek() {
            Some(Token::Word(word)) => {
                self.at += 1;
                Ok(word)
            }
            _ => syntax("a name", self.shown()),
        }
    }

    fn shown(&self) -> String {
        self.peek().map_or("the end".into(), |t| t.shown())
    }

    /// Skips what stands on the line of the last token.
    fn skip_line(&mut self) {
        let line = self.tokens[self.at - 1].1;
        while self.tokens.get(self.at).is_some_and(|t| t.1 == line) {
            self.at += 1;
        }
    }

    fn module(&mut self, line: &mut u32) -> Result<()> {
        while let Some(token) = self.peek() {
            *line = self.line();
            let Token::Word(word) = token else { return syntax("a directive", self.shown()) };
            self.directive(word, line)?;
        }
        if self.text.version == 0 {
            return syntax("`.version` and `.target`", "the end");
        }
        Ok(())
    }

    /// The body of a function, from after its `{`.
    fn body(&mut self, function: &mut Function, line: &mut u32) -> Result<()> {
        let outermost = self.depth;
        self.open_scope()?;
        loop {
            *line = self.line();
            match self.peek() {
                Some(Token::Mark('{')) => {
                    self.at += 1;
                    self.open_scope()?;
                }
                Some(Token::Mark('}')) => {
                    self.at += 1;
                    self.scope = self.scopes[self.scope].parent.unwrap_or(0);
                    self.depth -= 1;
                    if self.depth == outermost {
                        break;
                    }
                }
                Some(Token::Mark(';')) => self.at += 1,
                Some(Token::Word(word)) if self.peek_at(1) == Some(Token::Mark(':')) => {
                    let target = function.insts.len() as u32;
                    if self.scopes[self.scope].labels.insert(word.into(), target).is_some() {
                        return Err(ErrorKind::Redeclared { name: word.into() });
                    }
                    self.at += 2;
                }
                Some(Token::Word(word)) if word.starts_with('.') => self.inner_directive(word, function)?,
                Some(_) => {
                    let inst = self.instruction(function)?;
                    function.insts.push(inst);
                }
                None => return syntax("`}`", "the end"),
            }
        }
        self.resolve_labels(function, line)?;
        self.scopes.truncate(1);
        self.scope = 0;
        Ok(())
    }

    fn open_scope(&mut self) -> Result<()> {
        if self.depth >= MAX_DEPTH {
            return Err(ErrorKind::Limit { what: "nested blocks", limit: MAX_DEPTH });
        }
        self.scopes.push(Scope { parent: Some(self.scope), ..Scope::default() });
        self.scope = self.scopes.len() - 1;
        self.depth += 1;
        Ok(())
    }

    fn instruction(&mut self, function: &mut Function) -> Result<RawInst> {
        let line = self.line();
        let guard = if self.takes('@') {
            let negated = self.takes('!');
            let name = self.word()?;
            let register = self.register(name, function)?;
            if function.registers[register as usize] != Type::Pred {
                return crate::error::operand("the guard", ".pred", function.registers[register as usize].to_string());
            }
            Some((register, negated))
        } else {
            None
        };
        let opcode = self.word()?;
        let mut operands = Vec::new();
        if !self.takes(';') {
            loop {
                operands.push(self.operand(function)?);
                if self.takes(';') {
                    break;
                }
                self.expect(',')?;
            }
        }
        Ok(RawInst { line, guard, opcode: opcode.into(), operands })
    }

    /// The register of a name, which must be one.
    fn register(&mut self, name: &str, function: &mut Function) -> Result<Register> {
        match self.named(name, function)? {
            Some(Named::Register(register)) => Ok(register),
            _ => Err(ErrorKind::Undeclared { name: name.into() }),
        }
    }

    /// What a name stands for in the scopes that are open.
    fn named(&mut self, name: &str, function: &mut Function) -> Result<Option<Named>> {
        let digits = name.len() - name.bytes().rev().take_while(u8::is_ascii_digit).count();
        let (prefix, number) = name.split_at(digits);
        let number = if number.len() > 1 && number.starts_with('0') { None } else { number.parse::<u64>().ok() };
        let mut scope = Some(self.scope);
        while let Some(index) = scope {
            let here = &mut self.scopes[index];
            if let Some(&named) = here.names.get(name) {
                return Ok(Some(named));
            }
            if let (Some(number), Some(family)) = (number, here.families.get_mut(prefix))
                && number < family.count
            {
                if let Some(&register) = family.members.get(&number) {
                    return Ok(Some(Named::Register(register)));
                }
                let register = new_register(function, name, family.ty)?;
                family.members.insert(number, register);
                return Ok(Some(Named::Register(register)));
            }
            scope = here.parent;
        }
        Ok(None)
    }

    /// Labels may be used before they stand, so they are resolved when the function is read.
    fn resolve_labels(&mut self, function: &mut Function, line: &mut u32) -> Result<()> {
        for inst in &mut function.insts {
            *line = inst.line;
            let call = inst.opcode.starts_with("call");
            for operand in &mut inst.operands {
                let Operand::Name(name, scope) = operand else { continue };
                if call {
                    continue;
                }
                let mut at = Some(*scope as usize);
                let label = loop {
                    let Some(index) = at else { return Err(ErrorKind::Undeclared { name: name.clone().into() }) };
                    if let Some(&label) = self.scopes[index].labels.get(name) {
                        break label;
                    }
                    at = self.scopes[index].parent;
                };
                *operand = Operand::Label(label);
            }
        }
        Ok(())
    }
}

fn new_register(function: &mut Function, name: &str, ty: Type) -> Result<Register> {
    if function.registers.len() >= MAX_REGISTERS {
        return Err(ErrorKind::Limit { what: "registers", limit: MAX_REGISTERS });
    }
    function.registers.push(ty);
    function.register_names.push(name.into());
    Ok(function.registers.len() as Register - 1)
}
