//! Operands in order, checked against types while they are taken.

use super::Placement;
use crate::error::{ErrorKind, Result, operand, unsupported};
use crate::program::{Address, Reg, Src};
use crate::report::Flops;
use crate::syntax::{Base, Function, Operand, Symbol, Text};
use crate::types::{Space, Type, mask};

/// What an instruction is made from, and the registers that it turned out to use.
pub(super) struct Builder<'a> {
    pub text: &'a Text,
    function: &'a Function,
    placement: &'a Placement<'a>,
    first: Reg,
    pub carry: Reg,
    start: u32,
    operands: &'a [Operand],
    at: usize,
    pub reads: Vec<Reg>,
    pub writes: Vec<Reg>,
    pub passes: bool,
    pub flops: Option<Flops>,
}

impl<'a> Builder<'a> {
    pub(super) fn new(
        text: &'a Text,
        function: &'a Function,
        placement: &'a Placement<'a>,
        first: Reg,
        carry: Reg,
        start: u32,
        operands: &'a [Operand],
    ) -> Builder<'a> {
        Builder {
            text,
            function,
            placement,
            first,
            carry,
            start,
            operands,
            at: 0,
            reads: Vec::new(),
            writes: Vec::new(),
            passes: false,
            flops: None,
        }
    }

    pub(super) fn left(&self) -> usize {
        self.operands.len().saturating_sub(self.at)
    }

    pub(super) fn peek(&self) -> Option<&'a Operand> {
        self.operands.get(self.at)
    }

    pub(super) fn next(&mut self) -> Result<&'a Operand> {
        let Some(next) = self.operands.get(self.at) else {
            return operand("the operands", format!("at least {}", self.at + 1), self.operands.len().to_string());
        };
        self.at += 1;
        Ok(next)
    }

    /// All that are left.
    pub(super) fn rest(&mut self) -> &'a [Operand] {
        let rest = &self.operands[self.at.min(self.operands.len())..];
        self.at = self.operands.len();
        rest
    }

    pub(super) fn finish(&self, words: &[&str]) -> Result<()> {
        if self.left() == 0 {
            return Ok(());
        }
        operand(words.join("."), format!("{} operands", self.at), self.operands.len().to_string())
    }

    pub(super) fn place(&self, symbol: Symbol) -> Option<u64> {
        self.placement.of(symbol)
    }

    fn type_of(&self, register: Reg) -> Type {
        self.function.registers[register as usize]
    }

    fn read_register(&mut self, register: Reg) -> Reg {
        self.reads.push(register + self.first);
        register + self.first
    }

    fn write_register(&mut self, register: Reg) -> Reg {
        self.writes.push(register + self.first);
        register + self.first
    }

    fn check(&self, register: Reg, ty: Type, wider: bool) -> Result<()> {
        let have = self.type_of(register);
        let predicate = (have == Type::Pred) == (ty == Type::Pred);
        let fits = predicate && (have.bits() == ty.bits() || (wider && have.bits() > ty.bits()));
        if fits {
            return Ok(());
        }
        operand(&*self.function.register_names[register as usize], ty.to_string(), have.to_string())
    }

    /// A destination.
    pub(super) fn d(&mut self, ty: Type) -> Result<Reg> {
        let next = self.next()?;
        self.d_of(next, ty, false)
    }

    /// A destination that may be wider than the type, with its width.
    pub(super) fn d_wide(&mut self, ty: Type) -> Result<(Reg, u32)> {
        let next = self.next()?;
        let d = self.d_of(next, ty, true)?;
        Ok((d, self.type_of(d - self.first).bits()))
    }

    pub(super) fn d_of(&mut self, from: &Operand, ty: Type, wider: bool) -> Result<Reg> {
        match from {
            Operand::Register(register) => {
                self.check(*register, ty, wider)?;
                Ok(self.write_register(*register))
            }
            other => operand("a destination", "a register", shown(other)),
        }
    }

    /// `d|p`, where either may be missing.
    pub(super) fn d_pair(&mut self, ty: Type) -> Result<(Option<Reg>, Option<Reg>)> {
        let (d, p) = match self.next()? {
            Operand::Pair(d, p) => (&**d, Some(&**p)),
            other => (other, None),
        };
        let mut one = |o: &Operand, ty| match o {
            Operand::Sink => Ok(None),
            o => self.d_of(o, ty, false).map(Some),
        };
        let d = one(d, ty)?;
        let p = match p {
            Some(p) => one(p, Type::Pred)?,
            None => None,
        };
        Ok((d, p))
    }

    pub(super) fn s(&mut self, ty: Type) -> Result<Src> {
        let next = self.next()?;
        self.s_of(next, ty, false)
    }

    /// A source of which only the low bits count.
    pub(super) fn s_wide(&mut self, ty: Type) -> Result<Src> {
        let next = self.next()?;
        self.s_of(next, ty, true)
    }

    pub(super) fn s_of(&mut self, from: &Operand, ty: Type, wider: bool) -> Result<Src> {
        let bits = ty.bits();
        Ok(match from {
            Operand::Register(register) => {
                self.check(*register, ty, wider)?;
                Src::Reg(self.read_register(*register))
            }
            Operand::Integer(value) if ty == Type::Pred => Src::Imm(u64::from(*value != 0)),
            // Integers are values of an integer type; a float takes its bits from a float literal.
            Operand::Integer(value) if !ty.is_float() => Src::Imm(value & mask(bits)),
            Operand::Float32(value) if bits == 32 => Src::Imm(u64::from(*value)),
            Operand::Float64(value) if bits == 64 => Src::Imm(*value),
            Operand::Float64(value) if ty == Type::F32 => {
                Src::Imm(u64::from((f64::from_bits(*value) as f32).to_bits()))
            }
            Operand::Float32(value) if ty == Type::F64 => Src::Imm(f64::from(f32::from_bits(*value)).to_bits()),
            Operand::Variable(symbol, offset) if bits >= 32 && !ty.is_float() => {
                let Some(place) = self.place(*symbol) else { return self.unplaced(*symbol) };
                Src::Imm(place.wrapping_add_signed(*offset) & mask(bits))
            }
            other => return operand("a source", ty.to_string(), shown(other)),
        })
    }

    fn unplaced<T>(&self, symbol: Symbol) -> Result<T> {
        unsupported(format!("the variable {} here", self.text.variables[symbol as usize].name))
    }

    /// A predicate, perhaps negated.
    pub(super) fn predicate(&mut self) -> Result<(Src, bool)> {
        match self.next()? {
            Operand::Not(inner) => Ok((self.s_of(inner, Type::Pred, false)?, true)),
            other => Ok((self.s_of(other, Type::Pred, false)?, false)),
        }
    }

    /// A number that the text must give.
    pub(super) fn constant(&mut self) -> Result<u64> {
        match self.next()? {
            Operand::Integer(value) => Ok(*value),
            other => operand("an operand", "a constant", shown(other)),
        }
    }

    /// `[…]` without coordinates; the space of a variable in it, if it has one.
    pub(super) fn address(&mut self) -> Result<(Address, Option<Space>)> {
        let next = self.next()?;
        let (address, coordinates, space) = self.address_of(next)?;
        if !coordinates.is_empty() {
            return operand("an address", "no coordinates", coordinates.len().to_string());
        }
        Ok((address, space))
    }

    /// An address that must be in a space.
    pub(super) fn address_in(&mut self, space: Space) -> Result<Address> {
        let (address, found) = self.address()?;
        match found {
            Some(found) if found != space && space != Space::SharedCluster => {
                operand("an address", space.to_string(), found.to_string())
            }
            _ => Ok(address),
        }
    }

    /// `[map, {coordinates}]`.
    pub(super) fn tensor(&mut self, rank: usize) -> Result<(Address, Box<[Src]>)> {
        let next = self.next()?;
        let (address, coordinates, _) = self.address_of(next)?;
        if coordinates.len() != rank {
            return operand("the coordinates", rank.to_string(), coordinates.len().to_string());
        }
        let at = coordinates.iter().map(|c| self.s_of(c, Type::S32, false)).collect::<Result<Vec<_>>>()?;
        Ok((address, at.into()))
    }

    fn address_of(&mut self, from: &'a Operand) -> Result<(Address, &'a [Operand], Option<Space>)> {
        let Operand::Address { base, offset, coordinates } = from else {
            return operand("an operand", "an address", shown(from));
        };
        let (base, offset, narrow, space) = match base {
            Base::Nothing => (None, *offset as u64, false, None),
            Base::Register(register) => {
                let bits = self.type_of(*register).bits();
                if !matches!(bits, 32 | 64) {
                    return operand("an address", "a register of 32 or 64 bits", bits.to_string());
                }
                (Some(self.read_register(*register)), *offset as u64, bits == 32, None)
            }
            Base::Variable(symbol) => {
                let Some(place) = self.place(*symbol) else { return self.unplaced(*symbol) };
                let space = self.text.variables[*symbol as usize].space;
                (None, place.wrapping_add_signed(*offset), false, Some(space))
            }
        };
        Ok((Address { base, offset, narrow }, coordinates, space))
    }

    /// The elements of a vector, or one operand.
    pub(super) fn elements(&mut self) -> Result<&'a [Operand]> {
        Ok(match self.next()? {
            Operand::Vector(elements) => elements,
            other => std::slice::from_ref(other),
        })
    }

    /// A vector of sources.
    pub(super) fn sources(&mut self, count: usize, ty: Type) -> Result<Box<[Src]>> {
        let elements = self.vector(count)?;
        let found = elements.iter().map(|e| self.s_of(e, ty, false)).collect::<Result<Vec<_>>>()?;
        Ok(found.into())
    }

    /// A vector of destinations.
    pub(super) fn destinations(&mut self, count: usize, ty: Type) -> Result<Box<[Reg]>> {
        let elements = self.vector(count)?;
        let found = elements.iter().map(|e| self.d_of(e, ty, false)).collect::<Result<Vec<_>>>()?;
        Ok(found.into())
    }

    fn vector(&mut self, count: usize) -> Result<&'a [Operand]> {
        let elements = self.elements()?;
        if elements.len() == count {
            return Ok(elements);
        }
        operand("a vector", format!("{count} elements"), elements.len().to_string())
    }

    /// The instruction that a label stands before.
    pub(super) fn label(&mut self) -> Result<u32> {
        match self.next()? {
            Operand::Label(label) => Ok(self.start + label),
            other => operand("a target", "a label", shown(other)),
        }
    }

    pub(super) fn float(&mut self, flops: Option<Flops>) {
        self.flops = flops;
    }

    pub(super) fn undeclared<T>(&self, name: &str) -> Result<T> {
        Err(ErrorKind::Undeclared { name: name.into() })
    }

    pub(super) fn width(&self, of: &Operand) -> Option<u32> {
        match of {
            Operand::Register(register) => Some(self.type_of(*register).bits()),
            _ => None,
        }
    }
}

pub(super) fn shown(of: &Operand) -> String {
    match of {
        Operand::Register(_) => "a register".into(),
        Operand::Special(name) => name.to_string(),
        Operand::Integer(value) => format!("{}", *value as i64),
        Operand::Float32(bits) => format!("0f{bits:08X}"),
        Operand::Float64(bits) => format!("0d{bits:016X}"),
        Operand::Variable(..) => "a variable".into(),
        Operand::Name(name, _) => name.to_string(),
        Operand::Label(_) => "a label".into(),
        Operand::Vector(v) => format!("a vector of {}", v.len()),
        Operand::Address { .. } => "an address".into(),
        Operand::Pair(..) => "a pair".into(),
        Operand::Not(_) => "a negated predicate".into(),
        Operand::Sink => "_".into(),
        Operand::List(_) => "a list".into(),
    }
}
