//! The parser.

use super::super::*;
use std::collections::HashMap;

/// What is wrong with a text, and where (counted from 1).
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("line {line}, column {column}: expected {expected}, found {found}")]
pub struct ParseError {
    /// Line.
    pub line: usize,
    /// Column in bytes.
    pub column: usize,
    /// What would have been right.
    pub expected: String,
    /// What stands there.
    pub found: String,
}

type Result<T> = std::result::Result<T, ParseError>;

/// Reads one kernel. The result is what the text says, not necessarily well formed: see [`super::super::verify`].
pub fn parse(text: &str) -> Result<Kernel> {
    let mut p = Parser { text, at: 0, kernel: empty(), values: HashMap::new(), buffers: HashMap::new(), depth: 0 };
    p.kernel()?;
    Ok(p.kernel)
}

/// Blocks nested deeper than this are refused.
const MAX_DEPTH: usize = 64;

fn empty() -> Kernel {
    Kernel {
        name: String::new(),
        symbols: Vec::new(),
        params: Vec::new(),
        grid: Vec::new(),
        values: Vec::new(),
        allocs: Vec::new(),
        body: Block::default(),
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    kernel: Kernel,
    values: HashMap<&'a str, Value>,
    buffers: HashMap<&'a str, Buf>,
    depth: usize,
}

impl<'a> Parser<'a> {
    fn kernel(&mut self) -> Result<()> {
        self.punct("kernel")?;
        self.punct("@")?;
        self.kernel.name = self.ident("the kernel's name")?.to_string();
        if self.eat("symbols") {
            self.kernel.symbols = self.list(Self::symbol)?;
        }
        while self.eat("param") {
            let name = self.new_buffer(Buf::Param(self.kernel.params.len() as u32))?;
            self.punct(":")?;
            let dtype = self.dtype()?;
            let shape = self.shape()?;
            let access = self.choice("read, write or read_write", Access::ALL, Access::name)?;
            let align = if self.eat("align") { self.number("bytes")? } else { 1 };
            self.kernel.params.push(Param { name, dtype, shape, access, align });
        }
        if self.eat("grid") {
            self.kernel.grid = self.list(Self::dim)?;
        }
        self.kernel.body = self.block()?;
        if self.peek().is_empty() { Ok(()) } else { Err(self.expected("the end of the text")) }
    }

    fn block(&mut self) -> Result<Block> {
        if self.depth == MAX_DEPTH {
            return Err(self.expected(format!("at most {MAX_DEPTH} nested blocks")));
        }
        self.depth += 1;
        self.punct("{")?;
        let mut block = Block::default();
        while !self.eat("}") {
            if self.eat("yield") {
                block.yields = self.list(Self::value)?;
                self.punct("}")?;
                break;
            }
            let stmt = self.stmt()?;
            block.stmts.push(stmt);
        }
        self.depth -= 1;
        Ok(block)
    }

    fn stmt(&mut self) -> Result<Stmt> {
        let start = self.at;
        let mut names = Vec::new();
        if self.peek() == "%" {
            names = self.list(Self::value_name)?;
            self.punct("=")?;
        }
        let at = self.at;
        let word = self.ident("a statement")?;
        match word {
            "for" => self.for_stmt(names),
            "if" => self.if_stmt(names),
            "wgmma" => self.wgmma(names),
            "settle" => self.settle(names),
            _ if !names.is_empty() => {
                if names.len() > 1 {
                    self.at = at;
                    return Err(self.expected("for, if, wgmma or settle, which alone have several results"));
                }
                let op = self.op(word, at)?;
                self.punct(":")?;
                let ty = self.value_type()?;
                let value = self.define(names[0], ty)?;
                Ok(Stmt::Let(value, op))
            }
            "store" => {
                let place = self.place()?;
                self.punct("=")?;
                let value = self.value()?;
                let mask = self.optional("mask")?;
                Ok(Stmt::Store { place, value, mask })
            }
            "prefetch" => Ok(Stmt::Prefetch(self.place()?)),
            "alloc" => self.alloc(),
            "arrive" => Ok(Stmt::Team(TeamOp::Arrive(self.place()?))),
            "wait" => {
                let place = self.place()?;
                self.punct("parity")?;
                Ok(Stmt::Team(TeamOp::Wait { place, parity: self.value()? }))
            }
            "commit" => Ok(Stmt::Team(TeamOp::Commit)),
            "await_copies" => {
                self.punct("pending")?;
                Ok(Stmt::Team(TeamOp::AwaitCopies(self.number("a number of groups")?)))
            }
            "fence_async" => Ok(Stmt::Team(TeamOp::FenceAsync)),
            "registers" => Ok(Stmt::Team(TeamOp::Registers(self.number("a number of registers")?))),
            "copy" => {
                let to = self.place()?;
                self.punct("=")?;
                let from = self.place()?;
                self.punct("lanes")?;
                let lanes = self.number("a number of elements")?;
                let counts = self.optional("counts")?;
                Ok(Stmt::Copy(Box::new(AsyncCopy { to, from, lanes, counts })))
            }
            _ => Err(self.expected_at(
                start,
                "a value, for, if, store, prefetch, alloc, arrive, wait, copy, commit, await_copies, fence_async, \
                 registers, wgmma or settle",
            )),
        }
    }

    fn for_stmt(&mut self, names: Vec<&'a str>) -> Result<Stmt> {
        let kind = self.choice("serial, unroll or warp", LoopKind::ALL, LoopKind::name)?;
        let var_name = self.value_name()?;
        self.punct("=")?;
        let lo = self.value()?;
        self.punct("to")?;
        let hi = self.value()?;
        self.punct("step")?;
        let step = self.number("a stride")?;
        let var = self.define(var_name, ValueType::INDEX)?;
        let (mut carried, mut init) = (Vec::new(), Vec::new());
        if self.eat("carry") {
            loop {
                let name = self.value_name()?;
                self.punct("=")?;
                let first = self.value()?;
                carried.push(self.define(name, self.kernel.ty(first))?);
                init.push(first);
                if !self.eat(",") {
                    break;
                }
            }
        }
        let body = self.block()?;
        if names.len() != init.len() {
            return Err(self.expected(format!("{} results for {} carried values", init.len(), init.len())));
        }
        let results = self.define_all(&names, &init)?;
        Ok(Stmt::For(Box::new(For { kind, var, lo, hi, step, carried, init, body, results })))
    }

    fn if_stmt(&mut self, names: Vec<&'a str>) -> Result<Stmt> {
        let cond = self.value()?;
        let then = self.block()?;
        let otherwise = if self.eat("else") { self.block()? } else { Block::default() };
        if names.len() != then.yields.len() {
            return Err(self.expected(format!("{} results for {} yielded values", names.len(), then.yields.len())));
        }
        let results = self.define_all(&names, &then.yields)?;
        Ok(Stmt::If(Box::new(If { cond, then, otherwise, results })))
    }

    fn alloc(&mut self) -> Result<Stmt> {
        let index = self.kernel.allocs.len() as u32;
        let name = self.new_buffer(Buf::Alloc(index))?;
        self.punct(":")?;
        let dtype = self.dtype()?;
        let shape = self.shape()?;
        self.skip();
        let at = self.at;
        let space = match self.ident("local, shared or barrier")? {
            "local" => Space::Local,
            "shared" => Space::Shared,
            "barrier" => Space::Barrier(self.number("a number of arrivals")?),
            _ => return Err(self.expected_at(at, "local, shared or barrier")),
        };
        let mut swizzle = Swizzle::None;
        if self.eat("swizzle") {
            let at = self.at;
            swizzle = match self.number("a number of bytes")? {
                32 => Swizzle::B32,
                64 => Swizzle::B64,
                128 => Swizzle::B128,
                0i64.. | i64::MIN..0 => return Err(self.expected_at(at, "32, 64 or 128")),
            };
        }
        self.kernel.allocs.push(Alloc { name, dtype, shape, space, swizzle });
        Ok(Stmt::Alloc(index))
    }

    fn wgmma(&mut self, names: Vec<&'a str>) -> Result<Stmt> {
        let a = match self.peek() {
            "%" => WgmmaRows::Values(self.list(Self::value)?),
            _ => WgmmaRows::Tile(self.place()?),
        };
        self.punct("by")?;
        let b = self.place()?;
        let panels = if self.eat("panels") { Some(self.number("a number of elements")?) } else { None };
        self.punct("depth")?;
        let depth = self.number("a number of elements")?;
        let sums = if self.eat("sums") { self.list(Self::value)? } else { Vec::new() };
        let results = names.into_iter().map(|name| self.define(name, MATRIX[2])).collect::<Result<_>>()?;
        Ok(Stmt::Wgmma(Box::new(Wgmma { results, sums, a, b, panels, depth })))
    }

    fn settle(&mut self, names: Vec<&'a str>) -> Result<Stmt> {
        self.punct("pending")?;
        let pending = self.number("a number of products")?;
        let open = if self.eat("of") { self.list(Self::value)? } else { Vec::new() };
        if names.len() != open.len() {
            return Err(self.expected(format!("{} results for {} values", open.len(), open.len())));
        }
        let results = self.define_all(&names, &open)?;
        Ok(Stmt::Settle(Box::new(Settle { results, open, pending })))
    }

    fn op(&mut self, word: &str, at: usize) -> Result<Op> {
        if let Some(op) = UnaryOp::ALL.iter().find(|o| o.name() == word) {
            return Ok(Op::Unary(*op, self.value()?));
        }
        if let Some(op) = BinaryOp::ALL.iter().find(|o| o.name() == word) {
            let [a, b] = self.operands()?;
            return Ok(Op::Binary(*op, a, b));
        }
        if let Some(op) = CompareOp::ALL.iter().find(|o| o.name() == word) {
            let [a, b] = self.operands()?;
            return Ok(Op::Compare(*op, a, b));
        }
        Ok(match word {
            "const" => Op::Const(self.constant()?),
            "grid" => Op::GridIndex(self.number("a dimension of the grid")?),
            "symbol" => Op::Symbol(self.symbol()?),
            "fma" => {
                let [a, b, c] = self.operands()?;
                Op::Fma(a, b, c)
            }
            "dot" => {
                let [a, b, c] = self.operands()?;
                Op::Dot(a, b, c)
            }
            "matrix" => {
                let [a, b, c] = self.operands()?;
                Op::Matrix(a, b, c)
            }
            "lookup" => {
                let table = self.table()?;
                self.punct(",")?;
                Op::Lookup(table, self.value()?)
            }
            name @ ("zip_low" | "zip_high") => {
                let half = if name == "zip_low" { Half::Low } else { Half::High };
                let [a, b] = self.operands()?;
                Op::Zip(half, a, b)
            }
            "select" => {
                let [c, a, b] = self.operands()?;
                Op::Select(c, a, b)
            }
            "cast" => Op::Cast(self.value()?),
            "bitcast" => Op::Bitcast(self.value()?),
            "splat" => Op::Splat(self.value()?),
            "extract" => {
                let a = self.value()?;
                self.punct(",")?;
                Op::Extract(a, self.number("a lane")?)
            }
            "iota" => Op::Iota,
            "rank" => Op::Rank(self.value()?),
            "reduce" => {
                let op = self.choice("add, mul, min or max", ReduceOp::ALL, ReduceOp::name)?;
                Op::Reduce(op, self.value()?)
            }
            "rows" => {
                let op = self.choice("add, mul, min or max", ReduceOp::ALL, ReduceOp::name)?;
                Op::Rows(op, self.value()?)
            }
            "load" => {
                let place = self.place()?;
                let mask = self.optional("mask")?;
                let fill = self.optional("fill")?;
                Op::Load { place, mask, fill }
            }
            _ => return Err(self.expected_at(at, "an operation")),
        })
    }

    /// The constant and, without consuming it, its format from the type that follows.
    fn constant(&mut self) -> Result<Const> {
        self.skip();
        let start = self.at;
        let rest = &self.text[start..];
        let len = rest.find(|c: char| c.is_whitespace() || c == ':').unwrap_or(rest.len());
        let word = &rest[..len];
        self.at += len;
        let after = self.at;
        self.punct(":")?;
        let ty = self.value_type()?;
        self.at = after;
        let parsed = match ty.elem {
            DType::Bool => word.parse().ok().map(Const::Bool),
            DType::I32 => word.parse().ok().map(Const::I32),
            DType::I64 => word.parse().ok().map(Const::I64),
            DType::F32 => match word.strip_prefix("0x") {
                Some(hex) => u32::from_str_radix(hex, 16).ok(),
                None if word == "nan" => Some(f32::NAN.to_bits()),
                None => word.parse().ok().map(f32::to_bits),
            }
            .map(Const::F32),
            DType::U8
            | DType::I8
            | DType::F64
            | DType::F16
            | DType::BF16
            | DType::F8E4M3
            | DType::F8E8M0
            | DType::F4E2M1
            | DType::U4
            | DType::I4 => None,
        };
        parsed.ok_or_else(|| self.expected_at(start, format!("a constant of a type that has them ({ty})")))
    }

    /// Sixteen bytes in hexadecimal after an x.
    fn table(&mut self) -> Result<[u8; 16]> {
        const EXPECTED: &str = "a table: x and 32 hexadecimal digits";
        self.skip();
        let at = self.at;
        let word = self.ident(EXPECTED)?;
        let digits = word.strip_prefix('x').filter(|d| d.len() == 32 && d.bytes().all(|b| b.is_ascii_hexdigit()));
        let bits = digits.and_then(|d| u128::from_str_radix(d, 16).ok());
        bits.map(u128::to_be_bytes).ok_or_else(|| self.expected_at(at, EXPECTED))
    }

    fn place(&mut self) -> Result<Place> {
        self.skip();
        let at = self.at;
        let name = self.ident("a buffer")?;
        let Some(buf) = self.buffers.get(name).copied() else {
            return Err(self.expected_at(at, "the name of a buffer"));
        };
        self.punct("[")?;
        let index = if self.peek() == "]" { Vec::new() } else { self.list(Self::value)? };
        self.punct("]")?;
        Ok(Place { buf, index })
    }

    fn operands<const N: usize>(&mut self) -> Result<[Value; N]> {
        let mut out = [Value(0); N];
        for (i, slot) in out.iter_mut().enumerate() {
            if i > 0 {
                self.punct(",")?;
            }
            *slot = self.value()?;
        }
        Ok(out)
    }

    fn optional(&mut self, word: &str) -> Result<Option<Value>> {
        if self.eat(word) { self.value().map(Some) } else { Ok(None) }
    }

    fn value(&mut self) -> Result<Value> {
        self.skip();
        let at = self.at;
        let name = self.value_name()?;
        self.values.get(name).copied().ok_or_else(|| self.expected_at(at, "a value defined above"))
    }

    fn value_name(&mut self) -> Result<&'a str> {
        self.skip();
        let start = self.at;
        self.punct("%")?;
        let digits = self.text[self.at..].bytes().take_while(u8::is_ascii_digit).count();
        if digits == 0 {
            return Err(self.expected_at(start, "a value (% and a number)"));
        }
        self.at += digits;
        Ok(&self.text[self.at - digits..self.at])
    }

    fn define(&mut self, name: &'a str, ty: ValueType) -> Result<Value> {
        let value = Value(self.kernel.values.len() as u32);
        if self.values.insert(name, value).is_some() {
            return Err(self.expected(format!("a new name before this (%{name} is defined twice)")));
        }
        self.kernel.values.push(ty);
        Ok(value)
    }

    fn define_all(&mut self, names: &[&'a str], like: &[Value]) -> Result<Vec<Value>> {
        names.iter().zip(like).map(|(name, v)| self.define(name, self.kernel.ty(*v))).collect()
    }

    fn new_buffer(&mut self, buf: Buf) -> Result<String> {
        self.skip();
        let at = self.at;
        let name = self.ident("a name")?;
        if self.buffers.insert(name, buf).is_some() {
            return Err(self.expected_at(at, "a name that is not taken"));
        }
        Ok(name.to_string())
    }

    fn value_type(&mut self) -> Result<ValueType> {
        self.skip();
        let at = self.at;
        let word = self.ident("a type")?;
        // The longest format name that begins the word; what is left is nothing or xN.
        let found = DType::ALL.into_iter().filter(|d| word.starts_with(d.name())).max_by_key(|d| d.name().len());
        let ty = found.and_then(|elem| match &word[elem.name().len()..] {
            "" => Some(ValueType::scalar(elem)),
            rest => Some(ValueType::vector(elem, rest.strip_prefix('x')?.parse().ok().filter(|n| *n > 1)?)),
        });
        ty.ok_or_else(|| self.expected_at(at, "a type such as f32 or i64x4"))
    }

    fn dtype(&mut self) -> Result<DType> {
        self.skip();
        let at = self.at;
        let word = self.ident("a format")?;
        word.parse().map_err(|()| self.expected_at(at, "a format such as f32 or bf16"))
    }

    fn shape(&mut self) -> Result<Vec<Dim>> {
        self.punct("[")?;
        let shape = if self.peek() == "]" { Vec::new() } else { self.list(Self::dim)? };
        self.punct("]")?;
        Ok(shape)
    }

    /// `2*P+T-1`: terms of a number, a symbol, or a number times a symbol.
    fn dim(&mut self) -> Result<Dim> {
        let mut sum = Dim::from(0i64);
        let mut negative = self.eat("-");
        loop {
            let term = if self.peek().starts_with(|c: char| c.is_ascii_digit()) {
                let k: i64 = self.number("a size")?;
                if self.eat("*") { Dim::from(self.symbol()?) * k } else { Dim::from(k) }
            } else {
                Dim::from(self.symbol()?)
            };
            sum = if negative { sum - term } else { sum + term };
            negative = match self.peek() {
                "+" => false,
                "-" => true,
                _ => return Ok(sum),
            };
            let sign = self.peek();
            self.punct(sign)?;
        }
    }

    fn symbol(&mut self) -> Result<Sym> {
        self.skip();
        let at = self.at;
        let name = self.ident("a symbol")?;
        Sym::new(name).ok_or_else(|| self.expected_at(at, "a symbol of at most eight letters and digits"))
    }

    fn choice<T: Copy>(&mut self, expected: &str, all: &[T], name: fn(T) -> &'static str) -> Result<T> {
        self.skip();
        let at = self.at;
        let word = self.ident(expected)?;
        all.iter().copied().find(|x| name(*x) == word).ok_or_else(|| self.expected_at(at, expected))
    }

    fn list<T>(&mut self, item: fn(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let mut out = vec![item(self)?];
        while self.eat(",") {
            out.push(item(self)?);
        }
        Ok(out)
    }

    // ---- tokens: identifiers, numbers and single punctuation marks ----

    fn skip(&mut self) {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
    }

    fn peek(&mut self) -> &'a str {
        self.skip();
        let rest = &self.text[self.at..];
        let word = rest.bytes().take_while(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.')).count();
        match rest.chars().next() {
            None => "",
            Some(_) if word > 0 => &rest[..word],
            Some(c) => &rest[..c.len_utf8()],
        }
    }

    fn eat(&mut self, token: &str) -> bool {
        let found = self.peek() == token;
        if found {
            self.at += token.len();
        }
        found
    }

    fn punct(&mut self, token: &str) -> Result<()> {
        if self.eat(token) { Ok(()) } else { Err(self.expected(format!("`{token}`"))) }
    }

    fn ident(&mut self, expected: &str) -> Result<&'a str> {
        let token = self.peek();
        if !token.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
            return Err(self.expected(expected));
        }
        self.at += token.len();
        Ok(token)
    }

    fn number<T: std::str::FromStr>(&mut self, expected: &str) -> Result<T> {
        self.skip();
        let start = self.at;
        let negative = self.eat("-");
        let token = self.peek();
        let text = if negative { format!("-{token}") } else { token.to_string() };
        match text.parse() {
            Ok(n) => {
                self.at += token.len();
                Ok(n)
            }
            Err(_) => Err(self.expected_at(start, expected)),
        }
    }

    fn expected(&mut self, what: impl Into<String>) -> ParseError {
        self.expected_at(self.at, what)
    }

    fn expected_at(&mut self, at: usize, what: impl Into<String>) -> ParseError {
        self.at = at;
        let token = self.peek();
        let found = match token.char_indices().nth(40) {
            _ if token.is_empty() => "the end of the text".to_string(),
            Some((cut, _)) => format!("`{}…`", &token[..cut]),
            None => format!("`{token}`"),
        };
        let before = &self.text[..self.at];
        ParseError {
            line: before.matches('\n').count() + 1,
            column: self.at - before.rfind('\n').map_or(0, |i| i + 1) + 1,
            expected: what.into(),
            found,
        }
    }
}
