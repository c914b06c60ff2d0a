//! The text form of the graph IR: printing, and parsing of what may be hostile.
//!
//! ```text
//! symbols P in 0..511, T in 1..512
//! func @block(%x: f32[T, 8]) -> (y: f32[T, 8]) {
//!   weight %0 = "mlp.weight" : bf16[8, 8]
//!   state %1 = "k" : f32[P, 8]
//!   %2 = append %1, %x : f32[P+T, 8]
//!   %3 = contract %x, %0 {spec = "td,fd->tf"} : f32[T, 8] from "mlp" by "nest-contractions"
//!   next %1 = %2
//!   return %3
//! }
//! entry decode = @block where T = 1
//! ```
//!
//! `//` begins a comment. Names are letters, digits, `_` and `.`.

mod lex;
mod parse;
mod plan;
mod print;

pub use parse::{ParseError, parse_module};
pub use plan::parse_program;
pub use print::{print_func, print_module};

#[cfg(test)]
mod tests;
