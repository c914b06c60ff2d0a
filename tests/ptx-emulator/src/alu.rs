//! Instructions that map the operands of a lane to one result: a function pointer chosen once, when decoded.
//!
//! Registers hold values extended with zeros to 64 bits, whatever their type; every function returns them so.

pub(crate) mod compare;
pub(crate) mod convert;
mod float;
mod int;

use crate::error::{Result, unsupported};
use crate::float::exact::{BF16, F16, F32, F64, Format, Rounding};
use crate::report::Flops;
use crate::types::Type;

/// What a function needs to know beside its operands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mode {
    pub op: float::FloatOp,
    pub format: Format,
    pub rounding: Rounding,
    pub flush: bool,
    pub saturate: bool,
    pub relu: bool,
    pub nan: bool,
    pub xorsign: bool,
    pub table: u8,
}

pub(crate) type Function = fn(Mode, u64, u64, u64) -> u64;

/// A chosen function with the types of its operands and result.
#[derive(Clone, Debug)]
pub(crate) struct Chosen {
    pub function: Function,
    pub mode: Mode,
    pub operands: Vec<Type>,
    pub result: Type,
    pub flops: Option<Flops>,
}

impl Chosen {
    fn new(function: Function, operands: &[Type], result: Type) -> Chosen {
        Chosen { function, mode: Mode::default(), operands: operands.to_vec(), result, flops: None }
    }
}

impl Default for Mode {
    fn default() -> Mode {
        Mode {
            op: float::FloatOp::Add,
            format: F32,
            rounding: Rounding::Nearest,
            flush: false,
            saturate: false,
            relu: false,
            nan: false,
            xorsign: false,
            table: 0,
        }
    }
}

/// The format of a floating-point type, and whether a register holds two.
pub(crate) fn format_of(ty: Type) -> Option<(Format, bool)> {
    Some(match ty {
        Type::F16 => (F16, false),
        Type::F16x2 => (F16, true),
        Type::Bf16 => (BF16, false),
        Type::Bf16x2 => (BF16, true),
        Type::F32 => (F32, false),
        Type::F64 => (F64, false),
        _ => return None,
    })
}

/// The rounding of a modifier for floating-point results.
pub(crate) fn rounding(word: &str) -> Option<Rounding> {
    Some(match word {
        "rn" => Rounding::Nearest,
        "rna" => Rounding::NearestAway,
        "rz" => Rounding::Zero,
        "rm" => Rounding::Down,
        "rp" => Rounding::Up,
        _ => return None,
    })
}

/// The function of an opcode, given as its words; nothing if this module does not know the first.
pub(crate) fn choose(words: &[&str]) -> Result<Option<Chosen>> {
    if words[0] == "prmt" {
        return int::permute(words);
    }
    let [_, .., last] = words else { return Ok(None) };
    let Some(ty) = Type::parse(last) else { return Ok(None) };
    let chosen = if ty.is_float() { float::choose(words, ty)? } else { None };
    if chosen.is_some() {
        return Ok(chosen);
    }
    int::choose(words, ty)
}

/// Refuses modifiers that were not understood.
fn no_more(words: &[&str], rest: &[&str]) -> Result<()> {
    if rest.is_empty() { Ok(()) } else { unsupported(words.join(".")) }
}

pub(crate) use float::flush;
pub(crate) use int::insert;
