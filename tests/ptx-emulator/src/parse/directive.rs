//! Directives: version and target, variables, functions and their bounds.

use std::collections::HashMap;

use super::{Family, MAX_REGISTERS, MAX_VARIABLES, Named, Parser, new_register};
use crate::error::{ErrorKind, Result, syntax, unsupported};
use crate::lex::Token;
use crate::syntax::{Bounds, Function, Operand, Symbol, Variable};
use crate::types::{Space, Type};

/// No variable is larger.
const MAX_SIZE: u64 = 1 << 30;

impl Parser<'_> {
    /// A directive of the module.
    pub(super) fn directive(&mut self, word: &str, line: &mut u32) -> Result<()> {
        match word {
            ".version" => {
                self.at += 1;
                let Token::Number(text) = self.next()? else { return syntax("a version", self.shown()) };
                let (major, minor) = text.split_once('.').unwrap_or((text, "0"));
                self.text.version = match (major.parse::<u32>(), minor.parse::<u32>()) {
                    (Ok(major @ 1..100), Ok(minor @ 0..10)) => major * 10 + minor,
                    _ => return syntax("a version", text),
                };
                Ok(())
            }
            ".target" => {
                self.at += 1;
                loop {
                    let target = self.word()?;
                    if let Some(number) = target.strip_prefix("sm_") {
                        self.text.specific = number.ends_with('a');
                        let number = number.strip_suffix('a').unwrap_or(number);
                        self.text.target = number
                            .parse()
                            .map_err(|_| ErrorKind::Syntax { expected: "a target".into(), found: target.into() })?;
                    } else if target != "debug" {
                        return unsupported(format!(".target {target}"));
                    }
                    if !self.takes(',') {
                        return Ok(());
                    }
                }
            }
            ".address_size" => {
                self.at += 1;
                match self.integer()? {
                    64 => Ok(()),
                    other => unsupported(format!(".address_size {other}")),
                }
            }
            ".file" | ".loc" => {
                self.at += 1;
                self.skip_line();
                Ok(())
            }
            ".pragma" => self.skip_statement(),
            ".section" => self.skip_section(),
            _ => self.declaration(line),
        }
    }

    fn skip_statement(&mut self) -> Result<()> {
        while !self.takes(';') {
            self.next()?;
        }
        Ok(())
    }

    fn skip_section(&mut self) -> Result<()> {
        while !self.takes('}') {
            self.next()?;
        }
        Ok(())
    }

    /// A directive inside of a function.
    pub(super) fn inner_directive(&mut self, word: &str, function: &mut Function) -> Result<()> {
        match word {
            ".loc" | ".file" => {
                self.at += 1;
                self.skip_line();
                Ok(())
            }
            ".pragma" => self.skip_statement(),
            ".reg" => {
                self.at += 1;
                self.registers(function)
            }
            ".local" | ".shared" | ".param" | ".global" | ".const" => {
                for symbol in self.variables(false, false)? {
                    function.locals.push(symbol);
                }
                Ok(())
            }
            _ => unsupported(word),
        }
    }

    fn registers(&mut self, function: &mut Function) -> Result<()> {
        let word = self.word()?;
        let Some(ty) = word.strip_prefix('.').and_then(Type::parse) else {
            return unsupported(format!(".reg {word}"));
        };
        loop {
            let name = self.word()?;
            if self.takes('<') {
                let count = self.integer()?;
                self.expect('>')?;
                if count > MAX_REGISTERS as u64 {
                    return Err(ErrorKind::Limit { what: "registers", limit: MAX_REGISTERS });
                }
                let family = Family { count, ty, members: HashMap::new() };
                if self.scopes[self.scope].families.insert(name.into(), family).is_some() {
                    return Err(ErrorKind::Redeclared { name: name.into() });
                }
            } else {
                let register = new_register(function, name, ty)?;
                self.declare(name, Named::Register(register))?;
            }
            if self.takes(';') {
                return Ok(());
            }
            self.expect(',')?;
        }
    }

    fn declare(&mut self, name: &str, named: Named) -> Result<()> {
        match self.scopes[self.scope].names.insert(name.into(), named) {
            None => Ok(()),
            Some(_) => Err(ErrorKind::Redeclared { name: name.into() }),
        }
    }

    /// A variable or function of the module.
    fn declaration(&mut self, line: &mut u32) -> Result<()> {
        let mut external = false;
        loop {
            match self.peek() {
                Some(Token::Word(".visible" | ".weak" | ".common")) => self.at += 1,
                Some(Token::Word(".extern")) => {
                    external = true;
                    self.at += 1;
                }
                Some(Token::Word(".entry")) => return self.function(true, external, line),
                Some(Token::Word(".func")) => return self.function(false, external, line),
                Some(Token::Word(".global" | ".const" | ".shared")) => {
                    self.variables(external, true)?;
                    return Ok(());
                }
                _ => return unsupported(self.shown()),
            }
        }
    }

    /// `.shared .align 16 .b8 name[64] = {…}, …;`
    fn variables(&mut self, external: bool, module: bool) -> Result<Vec<Symbol>> {
        let space = match self.word()? {
            ".global" => Space::Global,
            ".const" => Space::Const,
            ".shared" => Space::Shared,
            ".local" => Space::Local,
            _ => Space::Param,
        };
        if external && space != Space::Shared {
            return unsupported("an external variable outside of shared memory");
        }
        let (ty, lanes, align) = self.variable_type()?;
        let mut found = Vec::new();
        loop {
            let name = self.word()?;
            let mut count = 1u64;
            let mut open = false;
            while self.takes('[') {
                if self.takes(']') {
                    open = true;
                    continue;
                }
                count = count.checked_mul(self.integer()?).filter(|&n| n <= MAX_SIZE).ok_or(too_large())?;
                self.expect(']')?;
            }
            let mut variable = Variable {
                name: name.into(),
                space,
                align,
                size: if open { 0 } else { count * u64::from(lanes * ty.bytes()) },
                external,
                init: Vec::new(),
                addresses: Vec::new(),
            };
            if self.takes('=') {
                self.initialiser(&mut variable, ty)?;
                if open {
                    variable.size = variable.init.len() as u64;
                }
            }
            if variable.size > MAX_SIZE {
                return Err(too_large());
            }
            if open && !external && variable.init.is_empty() {
                return syntax("a size", "[]");
            }
            if !module && matches!(space, Space::Global | Space::Const) && self.scope != 0 {
                return unsupported("a global variable inside of a function");
            }
            found.push(self.add_variable(variable)?);
            if self.takes(';') {
                return Ok(found);
            }
            self.expect(',')?;
        }
    }

    /// Alignment and type; `.v4` multiplies.
    fn variable_type(&mut self) -> Result<(Type, u32, u32)> {
        let (mut lanes, mut align) = (1, None);
        loop {
            let word = self.word()?;
            match word {
                ".align" => {
                    let value = self.integer()?;
                    if !value.is_power_of_two() || value > 1 << 16 {
                        return syntax("an alignment", value.to_string());
                    }
                    align = Some(value as u32);
                }
                ".v2" => lanes = 2,
                ".v4" => lanes = 4,
                ".attribute" => return unsupported(".attribute"),
                // The state space a pointer parameter points to.
                ".ptr" | ".global" | ".const" | ".shared" | ".local" => {}
                _ => {
                    let Some(ty) = word.strip_prefix('.').and_then(Type::parse).filter(|&t| t != Type::Pred) else {
                        return unsupported(word);
                    };
                    while let Some(Token::Word(".ptr" | ".global" | ".const" | ".shared" | ".local" | ".align")) =
                        self.peek()
                    {
                        // Of the pointer's target, not of the parameter.
                        if self.word()? == ".align" {
                            self.integer()?;
                        }
                    }
                    return Ok((ty, lanes, align.unwrap_or(lanes * ty.bytes())));
                }
            }
        }
    }

    fn initialiser(&mut self, variable: &mut Variable, ty: Type) -> Result<()> {
        let bytes = ty.bytes() as usize;
        let mut depth = 0;
        loop {
            if self.takes('{') {
                depth += 1;
                continue;
            }
            if let Some(Token::Word(word)) = self.peek() {
                self.at += 1;
                let mut name = word;
                if word == "generic" {
                    self.expect('(')?;
                    name = self.word()?;
                    self.expect(')')?;
                }
                let offset = self.offset()?;
                variable.addresses.push((variable.init.len(), name.into(), offset, ty.bytes()));
                variable.init.resize(variable.init.len() + bytes, 0);
            } else if self.peek() != Some(Token::Mark('}')) {
                let negated = self.takes('-');
                let Token::Number(text) = self.next()? else { return syntax("a value", self.shown()) };
                let bits = match super::operand::number(text)? {
                    Operand::Integer(v) if negated => v.wrapping_neg(),
                    Operand::Integer(v) => v,
                    Operand::Float32(v) => u64::from(v) ^ u64::from(negated) << 31,
                    Operand::Float64(v) if ty == Type::F32 => u64::from((f64::from_bits(v) as f32).to_bits()),
                    Operand::Float64(v) => v ^ u64::from(negated) << 63,
                    _ => return syntax("a value", text),
                };
                variable.init.extend_from_slice(&bits.to_le_bytes()[..bytes.min(8)]);
            }
            if variable.init.len() as u64 > MAX_SIZE {
                return Err(too_large());
            }
            while depth > 0 && self.takes('}') {
                depth -= 1;
            }
            if depth == 0 {
                break;
            }
            if !self.takes(',') && self.peek() != Some(Token::Mark('{')) {
                return syntax("`,` or `}`", self.shown());
            }
        }
        if variable.size != 0 && variable.init.len() as u64 > variable.size {
            return syntax(format!("{} bytes", variable.size), format!("{} bytes", variable.init.len()));
        }
        Ok(())
    }

    fn add_variable(&mut self, variable: Variable) -> Result<Symbol> {
        if self.text.variables.len() >= MAX_VARIABLES {
            return Err(ErrorKind::Limit { what: "variables", limit: MAX_VARIABLES });
        }
        let symbol = self.text.variables.len() as Symbol;
        self.declare(&variable.name.clone(), Named::Variable(symbol))?;
        self.text.variables.push(variable);
        Ok(symbol)
    }

    /// Parameters in parentheses; they live in the scope that is open.
    fn parameters(&mut self) -> Result<Vec<Symbol>> {
        let mut found = Vec::new();
        self.expect('(')?;
        if self.takes(')') {
            return Ok(found);
        }
        loop {
            let word = self.word()?;
            if word != ".param" {
                return unsupported(format!("a parameter in {word}"));
            }
            let (ty, lanes, align) = self.variable_type()?;
            let name = self.word()?;
            let mut size = u64::from(lanes * ty.bytes());
            if self.takes('[') {
                size = size.checked_mul(self.integer()?).filter(|&n| n <= 1 << 16).ok_or(too_large())?;
                self.expect(']')?;
            }
            found.push(self.add_variable(Variable {
                name: name.into(),
                space: Space::Param,
                align,
                size,
                external: false,
                init: Vec::new(),
                addresses: Vec::new(),
            })?);
            if self.takes(')') {
                return Ok(found);
            }
            self.expect(',')?;
        }
    }

    fn function(&mut self, entry: bool, external: bool, line: &mut u32) -> Result<()> {
        self.at += 1;
        *line = self.line();
        self.open_scope()?;
        let mut returns = Vec::new();
        if self.peek() == Some(Token::Mark('(')) {
            returns = self.parameters()?;
        }
        let name = self.word()?;
        let mut function = Function {
            name: name.into(),
            line: *line,
            entry,
            params: Vec::new(),
            returns,
            registers: Vec::new(),
            register_names: Vec::new(),
            insts: Vec::new(),
            bounds: Bounds::default(),
            locals: Vec::new(),
        };
        if self.peek() == Some(Token::Mark('(')) {
            function.params = self.parameters()?;
        }
        self.bounds(&mut function.bounds)?;
        if self.takes(';') {
            // A declaration; the definition must follow, or a call finds nothing.
            if external {
                return unsupported(format!("the external function {name}"));
            }
            self.scopes.truncate(1);
            (self.scope, self.depth) = (0, 0);
            return Ok(());
        }
        self.expect('{')?;
        self.body(&mut function, line)?;
        (self.scope, self.depth) = (0, 0);
        if self.text.by_name.insert(name.into(), self.text.functions.len()).is_some() {
            return Err(ErrorKind::Redeclared { name: name.into() });
        }
        self.text.functions.push(function);
        Ok(())
    }

    fn bounds(&mut self, bounds: &mut Bounds) -> Result<()> {
        while let Some(Token::Word(word)) = self.peek() {
            self.at += 1;
            match word {
                ".maxntid" => bounds.max_threads = Some(self.triple()?),
                ".reqntid" => bounds.required_threads = Some(self.triple()?),
                ".reqnctapercluster" => bounds.required_cluster = Some(self.triple()?),
                ".explicitcluster" => bounds.explicit_cluster = true,
                ".maxnreg" => bounds.max_registers = Some(self.integer()? as u32),
                ".minnctapersm" | ".maxnctapersm" | ".maxclusterrank" => {
                    self.integer()?;
                }
                ".noreturn" => {}
                ".pragma" => self.skip_statement()?,
                _ => return unsupported(word),
            }
        }
        Ok(())
    }

    fn triple(&mut self) -> Result<[u32; 3]> {
        let mut found = [1; 3];
        for (index, value) in found.iter_mut().enumerate() {
            if index > 0 && !self.takes(',') {
                break;
            }
            let number = self.integer()?;
            *value = u32::try_from(number)
                .map_err(|_| ErrorKind::Syntax { expected: "a size".into(), found: number.to_string() })?;
        }
        Ok(found)
    }
}

fn too_large() -> ErrorKind {
    ErrorKind::Limit { what: "bytes of a variable", limit: MAX_SIZE as usize }
}
