//! Parsing of plans. [`crate::plan::Program`] prints itself; this reads that text back, except the module, which is a
//! text of its own.

use super::ParseError;
use super::lex::Token;
use super::parse::{Parser, Result};
use crate::plan::{Buffer, Fold, Launch, Place, Plan, Port, Program, State, Weight};

/// Parses what a program prints: weights, folds, states and plans. The result's module is empty.
pub fn parse_program(text: &str) -> std::result::Result<Program, ParseError> {
    let mut p = Parser::new(text)?;
    let mut program = Program::default();
    loop {
        let at = p.at;
        match p.next() {
            Token::End => return Ok(program),
            Token::Word(w) if w == "plan" => program.plans.push(p.plan()?),
            Token::Word(w) if w == format!("weight{}", program.weights.len()) => {
                let port = p.named()?;
                program.weights.push(Weight { name: port.name, ty: port.ty });
            }
            Token::Word(w) if w == format!("fold{}", program.folds.len()) => program.folds.push(p.fold()?),
            Token::Word(w) if w == format!("state{}", program.states.len()) => {
                p.punct("=")?;
                let name = p.string()?;
                p.punct(":")?;
                let held = p.dim()?;
                p.keyword("in")?;
                let rows = p.int()?;
                p.keyword("x")?;
                program.states.push(State { name, row: p.ty()?, held, rows });
            }
            other => {
                return Err(p.error(
                    at,
                    "the next weight, fold or state by number, `plan` or the end",
                    other.describe(),
                ));
            }
        }
    }
}

impl Parser {
    fn keyword(&mut self, word: &str) -> Result<()> {
        if self.eat_word(word) { Ok(()) } else { Err(self.expected(format!("`{word}`"))) }
    }

    fn count<T: TryFrom<i64>>(&mut self) -> Result<T> {
        let at = self.at;
        let n = self.int()?;
        T::try_from(n).map_err(|_| self.error(at, "a number that is not negative", n.to_string()))
    }

    /// `= "name" : type`
    fn named(&mut self) -> Result<Port> {
        self.punct("=")?;
        let name = self.string()?;
        self.punct(":")?;
        Ok(Port { name, ty: self.ty()? })
    }

    fn places(&mut self) -> Result<Vec<Place>> {
        let mut out = Vec::new();
        self.punct("(")?;
        while !self.eat(")") {
            out.push(self.place()?);
            if !self.eat(",") {
                self.punct(")")?;
                break;
            }
        }
        Ok(out)
    }

    fn place(&mut self) -> Result<Place> {
        let at = self.at;
        let word = self.word("a place such as `b0` or `weight3`")?;
        let digits = word.find(|c: char| c.is_ascii_digit()).unwrap_or(word.len());
        let place = match (&word[..digits], word[digits..].parse()) {
            ("b", Ok(i)) => Place::Buffer(i),
            ("weight", Ok(i)) => Place::Weight(i),
            ("fold", Ok(i)) => Place::Fold(i),
            ("state", Ok(i)) => Place::State(i),
            ("in", Ok(i)) => Place::Input(i),
            ("out", Ok(i)) => Place::Output(i),
            _ => return Err(self.error(at, "a place such as `b0` or `weight3`", format!("`{word}`"))),
        };
        Ok(place)
    }

    fn fold(&mut self) -> Result<Fold> {
        self.punct("=")?;
        let func = self.func_name()?;
        let args = self.places()?;
        self.keyword("result")?;
        let result = self.count()?;
        self.punct(":")?;
        Ok(Fold { func, result, args, ty: self.ty()? })
    }

    fn plan(&mut self) -> Result<Plan> {
        let entry = self.word("the entry's name")?;
        let ranges = if self.eat_word("where") { self.ranges()? } else { Default::default() };
        self.keyword("context")?;
        let mut plan = Plan {
            entry,
            ranges,
            max_context: self.int()?,
            inputs: Vec::new(),
            outputs: Vec::new(),
            buffers: Vec::new(),
            arena_bytes: 0,
            lower_bound: 0,
            launches: Vec::new(),
        };
        self.punct("{")?;
        loop {
            let at = self.at;
            match self.next() {
                Token::Punct("}") => return Ok(plan),
                Token::Word(w) if w == format!("in{}", plan.inputs.len()) => plan.inputs.push(self.named()?),
                Token::Word(w) if w == format!("out{}", plan.outputs.len()) => plan.outputs.push(self.named()?),
                Token::Word(w) if w == "arena" => {
                    plan.arena_bytes = self.count()?;
                    self.keyword("bytes")?;
                    self.punct(",")?;
                    self.keyword("at")?;
                    self.keyword("least")?;
                    plan.lower_bound = self.count()?;
                }
                Token::Word(w) if w == format!("b{}", plan.buffers.len()) => plan.buffers.push(self.buffer()?),
                Token::Int(n) if n == plan.launches.len() as i64 => {
                    self.punct(":")?;
                    let kernel = self.func_name()?;
                    let args = self.places()?;
                    plan.launches.push(Launch { kernel, args, origin: self.origins()? });
                }
                other => {
                    return Err(self.error(at, "the next port, buffer or launch by number, or `}`", other.describe()));
                }
            }
        }
    }

    /// `= 0..128 for 0..3 : type`
    fn buffer(&mut self) -> Result<Buffer> {
        self.punct("=")?;
        let offset: u64 = self.count()?;
        self.punct("..")?;
        let at = self.at;
        let end: u64 = self.count()?;
        let bytes =
            end.checked_sub(offset).ok_or_else(|| self.error(at, "an end behind the offset", end.to_string()))?;
        self.keyword("for")?;
        let first = self.count()?;
        self.punct("..")?;
        let last = self.count()?;
        self.punct(":")?;
        Ok(Buffer { ty: self.ty()?, offset, bytes, first, last })
    }

    fn origins(&mut self) -> Result<Vec<String>> {
        let mut out = Vec::new();
        if self.eat_word("from") {
            out.push(self.string()?);
            while self.eat(",") {
                out.push(self.string()?);
            }
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = r#"weight0 = "model.{0..4}.weight" : bf16[4, 8, 8]
fold0 = @fold_0(weight0) result 0 : f32[8]
state0 = "k" : P in 16 x f32[8]
plan decode where P in 0..15, T = 1 context 16 {
  in0 = "tokens" : i32[1]
  out0 = "logits" : f32[1, 8]
  arena 96 bytes, at least 64
  b0 = 0..32 for 0..1 : f32[P+1, 8]
  b1 = 64..96 for 0..1 : f32[8]
  0: @contract(in0, weight0, fold0, state0, b0, b1) from "layers.0.mlp", "layers.0"
  1: @add(b0, b1, out0)
}
"#;

    #[test]
    fn prints_what_it_parsed() {
        let program = parse_program(SAMPLE).unwrap();
        assert_eq!(program.to_string(), SAMPLE);
        assert_eq!(program.plans[0].buffers[1].bytes, 32);
    }

    #[track_caller]
    fn fails(from: &str, to: &str, line: usize, message: &str) {
        let error = parse_program(&SAMPLE.replacen(from, to, 1)).unwrap_err();
        assert!(error.line == line && error.to_string().contains(message), "{error}");
    }

    #[test]
    fn errors_have_a_place() {
        fails("weight0 =", "weight1 =", 1, "the next weight");
        fails("result 0", "result -1", 2, "not negative");
        fails("16 x f32", "16 f32", 3, "`x`");
        fails("b1 = 64..96", "b1 = 96..64", 9, "behind the offset");
        fails("(b0, b1, out0)", "(b0, c1, out0)", 11, "a place");
        fails("1: @add", "2: @add", 11, "the next port, buffer or launch");
    }
}
