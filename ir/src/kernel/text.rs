//! The text form of kernels: `Display` prints it, [`parse`] reads it back, equal and stably.
//!
//! ```text
//! kernel @scale
//! symbols T
//! param x : bf16[T, 256] read
//! param y : f32[T, 256] write
//! grid T
//! {
//!   %0 = grid 0 : i64
//!   %1 = const 0 : i64
//!   %2 = const 256 : i64
//!   %3 = const 0.5 : f32
//!   %4 = splat %3 : f32x8
//!   for serial %5 = %1 to %2 step 8 {
//!     %6 = load x[%0, %5] : bf16x8
//!     %7 = cast %6 : f32x8
//!     %8 = mul %7, %4 : f32x8
//!     store y[%0, %5] = %8
//!   }
//! }
//! ```
//!
//! Loops and choices name their results first: `%9 = for serial %4 = %0 to %1 step 1 carry %5 = %2 { … yield %8 }`.
//! The printer numbers values in order of definition; the parser takes any names in digits and numbers them so.

mod parse;

pub use parse::{ParseError, parse};

use super::*;
use std::fmt::{Display, Formatter, Result};

impl Display for Kernel {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        writeln!(f, "kernel @{}", self.name)?;
        self.nameless().fmt(f)
    }
}

/// A kernel's text but for its first line.
struct Nameless<'a>(&'a Kernel);

impl Display for Nameless<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Nameless(kernel) = self;
        if !kernel.symbols.is_empty() {
            writeln!(f, "symbols {}", commas(&kernel.symbols))?;
        }
        for p in &kernel.params {
            write!(f, "param {} : {}[{}] {}", p.name, p.dtype, commas(&p.shape), p.access.name())?;
            writeln!(f, "{}", if p.align == 1 { String::new() } else { format!(" align {}", p.align) })?;
        }
        if !kernel.grid.is_empty() {
            writeln!(f, "grid {}", commas(&kernel.grid))?;
        }
        f.write_str("{\n")?;
        kernel.print_block(f, &kernel.body, 1)?;
        f.write_str("}\n")
    }
}

/// Items separated by commas.
fn commas<T: Display>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

impl Kernel {
    /// The text but for the first line, which has the name: all that code is made from.
    pub fn nameless(&self) -> impl Display + '_ {
        Nameless(self)
    }

    /// The first line of a statement as it prints, for messages.
    pub(super) fn stmt_line(&self, stmt: &Stmt) -> String {
        struct Line<'a>(&'a Kernel, &'a Stmt);
        impl Display for Line<'_> {
            fn fmt(&self, f: &mut Formatter<'_>) -> Result {
                match self.1 {
                    // Only the heads: bodies may be long.
                    Stmt::For(l) => write!(f, "for {} {} = {} to {}", l.kind.name(), l.var, l.lo, l.hi),
                    Stmt::If(c) => write!(f, "if {}", c.cond),
                    stmt => self.0.print_stmt(f, stmt, 0),
                }
            }
        }
        Line(self, stmt).to_string()
    }

    fn print_block(&self, f: &mut Formatter<'_>, block: &Block, depth: usize) -> Result {
        for stmt in &block.stmts {
            write!(f, "{:1$}", "", 2 * depth)?;
            self.print_stmt(f, stmt, depth)?;
            f.write_str("\n")?;
        }
        if !block.yields.is_empty() {
            writeln!(f, "{:2$}yield {}", "", commas(&block.yields), 2 * depth)?;
        }
        Ok(())
    }

    fn print_stmt(&self, f: &mut Formatter<'_>, stmt: &Stmt, depth: usize) -> Result {
        let indent = 2 * depth;
        match stmt {
            Stmt::Let(value, op) => self.print_let(f, *value, op),
            Stmt::Store { place, value, mask } => {
                write!(f, "store {} = {value}", self.place_text(place))?;
                mask.map_or(Ok(()), |m| write!(f, " mask {m}"))
            }
            Stmt::Prefetch(place) => write!(f, "prefetch {}", self.place_text(place)),
            Stmt::Alloc(i) => match self.allocs.get(*i as usize) {
                Some(a) => {
                    write!(f, "alloc {} : {}[{}] {}", a.name, a.dtype, commas(&a.shape), a.space)?;
                    match a.swizzle {
                        Swizzle::None => Ok(()),
                        s => write!(f, " swizzle {}", s.bytes()),
                    }
                }
                None => write!(f, "alloc ?{i}"),
            },
            Stmt::For(l) => {
                if !l.results.is_empty() {
                    write!(f, "{} = ", commas(&l.results))?;
                }
                write!(f, "for {} {} = {} to {} step {}", l.kind.name(), l.var, l.lo, l.hi, l.step)?;
                for (i, (inner, init)) in l.carried.iter().zip(&l.init).enumerate() {
                    write!(f, "{} {inner} = {init}", if i == 0 { " carry" } else { "," })?;
                }
                f.write_str(" {\n")?;
                self.print_block(f, &l.body, depth + 1)?;
                write!(f, "{:indent$}}}", "")
            }
            Stmt::If(c) => {
                if !c.results.is_empty() {
                    write!(f, "{} = ", commas(&c.results))?;
                }
                writeln!(f, "if {} {{", c.cond)?;
                self.print_block(f, &c.then, depth + 1)?;
                if c.otherwise != Block::default() {
                    writeln!(f, "{:indent$}}} else {{", "")?;
                    self.print_block(f, &c.otherwise, depth + 1)?;
                }
                write!(f, "{:indent$}}}", "")
            }
            Stmt::Team(op) => match op {
                TeamOp::Arrive(place) => write!(f, "arrive {}", self.place_text(place)),
                TeamOp::Wait { place, parity } => write!(f, "wait {} parity {parity}", self.place_text(place)),
                TeamOp::Commit => f.write_str("commit"),
                TeamOp::AwaitCopies(n) => write!(f, "await_copies pending {n}"),
                TeamOp::FenceAsync => f.write_str("fence_async"),
                TeamOp::Registers(n) => write!(f, "registers {n}"),
            },
            Stmt::Copy(c) => {
                let [to, from] = [&c.to, &c.from].map(|p| self.place_text(p));
                write!(f, "copy {to} = {from} lanes {}", c.lanes)?;
                c.counts.map_or(Ok(()), |v| write!(f, " counts {v}"))
            }
            Stmt::Wgmma(w) => {
                let a = match &w.a {
                    WgmmaRows::Tile(place) => self.place_text(place),
                    WgmmaRows::Values(values) => commas(values),
                };
                write!(f, "{} = wgmma {a} by {}", commas(&w.results), self.place_text(&w.b))?;
                w.panels.map_or(Ok(()), |n| write!(f, " panels {n}"))?;
                write!(f, " depth {}", w.depth)?;
                if w.sums.is_empty() { Ok(()) } else { write!(f, " sums {}", commas(&w.sums)) }
            }
            Stmt::Settle(s) if s.open.is_empty() => write!(f, "settle pending {}", s.pending),
            Stmt::Settle(s) => {
                write!(f, "{} = settle pending {} of {}", commas(&s.results), s.pending, commas(&s.open))
            }
        }
    }

    fn print_let(&self, f: &mut Formatter<'_>, value: Value, op: &Op) -> Result {
        write!(f, "{value} = ")?;
        match op {
            Op::Const(c) => write!(f, "const {c}")?,
            Op::GridIndex(d) => write!(f, "grid {d}")?,
            Op::Symbol(s) => write!(f, "symbol {s}")?,
            Op::Unary(op, a) => write!(f, "{} {a}", op.name())?,
            Op::Binary(op, a, b) => write!(f, "{} {a}, {b}", op.name())?,
            Op::Compare(op, a, b) => write!(f, "{} {a}, {b}", op.name())?,
            Op::Fma(a, b, c) => write!(f, "fma {a}, {b}, {c}")?,
            Op::Dot(a, b, c) => write!(f, "dot {a}, {b}, {c}")?,
            Op::Matrix(a, b, c) => write!(f, "matrix {a}, {b}, {c}")?,
            Op::Lookup(table, a) => {
                write!(f, "lookup x")?;
                table.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
                write!(f, ", {a}")?;
            }
            Op::Zip(Half::Low, a, b) => write!(f, "zip_low {a}, {b}")?,
            Op::Zip(Half::High, a, b) => write!(f, "zip_high {a}, {b}")?,
            Op::Select(c, a, b) => write!(f, "select {c}, {a}, {b}")?,
            Op::Cast(a) => write!(f, "cast {a}")?,
            Op::Bitcast(a) => write!(f, "bitcast {a}")?,
            Op::Splat(a) => write!(f, "splat {a}")?,
            Op::Extract(a, lane) => write!(f, "extract {a}, {lane}")?,
            Op::Iota => write!(f, "iota")?,
            Op::Rank(a) => write!(f, "rank {a}")?,
            Op::Rows(op, a) => write!(f, "rows {} {a}", op.name())?,
            Op::Reduce(op, a) => write!(f, "reduce {} {a}", op.binary().name())?,
            Op::Load { place, mask, fill } => {
                write!(f, "load {}", self.place_text(place))?;
                mask.map_or(Ok(()), |m| write!(f, " mask {m}"))?;
                fill.map_or(Ok(()), |v| write!(f, " fill {v}"))?;
            }
        }
        match self.values.get(value.index()) {
            Some(ty) => write!(f, " : {ty}"),
            None => f.write_str(" : ?"),
        }
    }

    fn place_text(&self, place: &Place) -> String {
        let name = match place.buf {
            Buf::Param(i) => self.params.get(i as usize).map(|p| p.name.as_str()),
            Buf::Alloc(i) => self.allocs.get(i as usize).map(|a| a.name.as_str()),
        };
        format!("{}[{}]", name.unwrap_or("?"), commas(&place.index))
    }
}

/// Floats print as the shortest decimal that reads back, NaNs with unusual bits in hexadecimal.
impl Display for Const {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match *self {
            Const::Bool(x) => write!(f, "{x}"),
            Const::I32(x) => write!(f, "{x}"),
            Const::I64(x) => write!(f, "{x}"),
            Const::F32(bits) => match f32::from_bits(bits) {
                x if x.is_nan() && bits == f32::NAN.to_bits() => f.write_str("nan"),
                x if x.is_nan() => write!(f, "{bits:#010x}"),
                x => write!(f, "{x:?}"),
            },
        }
    }
}

impl Display for Space {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Space::Local => f.write_str("local"),
            Space::Shared => f.write_str("shared"),
            Space::Barrier(n) => write!(f, "barrier {n}"),
        }
    }
}

macro_rules! names {
    ($type:ident { $($variant:ident = $name:literal),* $(,)? }) => {
        impl $type {
            /// Every variant.
            pub const ALL: &[$type] = &[$($type::$variant),*];

            /// The word in kernel text.
            pub const fn name(self) -> &'static str {
                match self {
                    $($type::$variant => $name,)*
                }
            }
        }
    };
}

names!(Access { Read = "read", Write = "write", ReadWrite = "read_write" });
names!(LoopKind { Serial = "serial", Unroll = "unroll", Warp = "warp" });
names!(UnaryOp {
    Neg = "neg",
    Abs = "abs",
    Not = "not",
    Sqrt = "sqrt",
    Floor = "floor",
    Pow2Ceil = "pow2_ceil",
    Exp = "exp",
    Exp2 = "exp2",
    Log = "log",
    Sin = "sin",
    Cos = "cos",
    Tanh = "tanh",
    Erf = "erf",
});
names!(BinaryOp {
    Add = "add",
    Sub = "sub",
    Mul = "mul",
    Div = "div",
    Rem = "rem",
    Min = "min",
    Max = "max",
    And = "and",
    Or = "or",
    Xor = "xor",
    Shl = "shl",
    Shr = "shr",
    Ushr = "ushr",
});
names!(CompareOp { Eq = "eq", Ne = "ne", Lt = "lt", Le = "le", Gt = "gt", Ge = "ge" });
names!(ReduceOp { Add = "add", Mul = "mul", Min = "min", Max = "max" });

impl Swizzle {
    /// Bytes within which units are permuted; 0 for none.
    pub const fn bytes(self) -> u32 {
        match self {
            Swizzle::None => 0,
            Swizzle::B32 => 32,
            Swizzle::B64 => 64,
            Swizzle::B128 => 128,
        }
    }
}
