//! What the parser makes of a text: names of registers and variables are resolved, opcodes are still words.

use std::collections::HashMap;

use crate::types::{Space, Type};

/// A register of a function, numbered in order of first use.
pub(crate) type Register = u32;

/// A variable of a module.
pub(crate) type Symbol = u32;

#[derive(Clone, Debug)]
pub(crate) enum Operand {
    Register(Register),
    /// `%tid.x` and its like.
    Special(Box<str>),
    /// An integer, sign-extended.
    Integer(u64),
    Float32(u32),
    Float64(u64),
    Variable(Symbol, i64),
    /// A label (resolved to an instruction) or the name of a function.
    Name(Box<str>, u32),
    Label(u32),
    Vector(Vec<Operand>),
    /// `[base + offset]`, with coordinates for tensors.
    Address {
        base: Base,
        offset: i64,
        coordinates: Vec<Operand>,
    },
    /// `a|b`.
    Pair(Box<Operand>, Box<Operand>),
    /// `!p`.
    Not(Box<Operand>),
    /// `_`.
    Sink,
    /// The parentheses of calls.
    List(Vec<Operand>),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Base {
    Nothing,
    Register(Register),
    Variable(Symbol),
}

#[derive(Clone, Debug)]
pub(crate) struct RawInst {
    pub line: u32,
    /// The predicate, and whether it is negated.
    pub guard: Option<(Register, bool)>,
    pub opcode: Box<str>,
    pub operands: Vec<Operand>,
}

#[derive(Clone, Debug)]
pub(crate) struct Variable {
    pub name: Box<str>,
    pub space: Space,
    pub align: u32,
    /// In bytes; of an external array of shared memory 0.
    pub size: u64,
    pub external: bool,
    pub init: Vec<u8>,
    /// Addresses of other variables in the initial bytes: where, whose, plus what, how many bytes.
    pub addresses: Vec<(usize, Box<str>, i64, u32)>,
}

/// The directives that bound a launch.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Bounds {
    pub max_threads: Option<[u32; 3]>,
    pub required_threads: Option<[u32; 3]>,
    pub required_cluster: Option<[u32; 3]>,
    pub max_registers: Option<u32>,
    pub explicit_cluster: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Function {
    pub name: Box<str>,
    pub line: u32,
    pub entry: bool,
    pub params: Vec<Symbol>,
    pub returns: Vec<Symbol>,
    pub registers: Vec<Type>,
    pub register_names: Vec<Box<str>>,
    pub insts: Vec<RawInst>,
    pub bounds: Bounds,
    /// Variables declared inside.
    pub locals: Vec<Symbol>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Text {
    /// Ten times the PTX version: 84 for 8.4.
    pub version: u32,
    /// The number of the target: 90 for `sm_90a`.
    pub target: u32,
    /// Whether the target ends in `a`.
    pub specific: bool,
    pub variables: Vec<Variable>,
    pub functions: Vec<Function>,
    pub by_name: HashMap<Box<str>, usize>,
}
