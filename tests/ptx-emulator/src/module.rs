//! A module: its text, its kernels decoded, its variables placed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::decode;
use crate::error::{Error, ErrorKind};
use crate::parse;
use crate::program::Program;
use crate::syntax::{Symbol, Text};
use crate::types::Space;

/// Where variables of modules lie in global memory; each module has a piece of its own.
const VARIABLES: u64 = 0x1000_0000_0000;
const PIECE: u64 = 1 << 32;
/// What the variables of a module may take.
const MOST: u64 = 1 << 30;

static NEXT: AtomicU64 = AtomicU64::new(0);

/// PTX that was read and understood.
#[derive(Debug)]
pub struct Module {
    pub(crate) id: u64,
    pub(crate) lines: Vec<Box<str>>,
    text: Text,
    addresses: HashMap<Symbol, u64>,
    kernels: Vec<Program>,
}

/// A kernel of a module.
#[derive(Clone, Copy, Debug)]
pub struct Kernel<'a> {
    pub(crate) module: &'a Module,
    pub(crate) program: &'a Program,
}

impl Module {
    /// Reads PTX. Whatever is not understood is an error: no instruction is skipped.
    pub fn parse(source: &str) -> Result<Module, Error> {
        let text = parse::parse(source)?;
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let at = |line: u32| move |kind: ErrorKind| Error { line, text: parse::statement(source, line), kind };
        let mut addresses = HashMap::new();
        let mut next = VARIABLES + (id % (1 << 12)) * PIECE;
        for (symbol, variable) in text.variables.iter().enumerate() {
            if matches!(variable.space, Space::Global | Space::Const) {
                next = next.next_multiple_of(u64::from(variable.align).max(16));
                addresses.insert(symbol as Symbol, next);
                // A gap, so that running off one variable is not the next.
                next += variable.size + 256;
                if next > VARIABLES + (id % (1 << 12)) * PIECE + MOST {
                    return Err(at(1)(ErrorKind::Limit { what: "bytes of variables", limit: MOST as usize }));
                }
            }
        }
        let kernels = decode::kernels(&text, &addresses).map_err(|(line, kind)| at(line)(kind))?;
        Ok(Module { id, lines: source.lines().map(|l| l.trim().into()).collect(), text, addresses, kernels })
    }

    /// The kernel of a name.
    pub fn kernel(&self, name: &str) -> Option<Kernel<'_>> {
        let program = self.kernels.iter().find(|k| k.name == name)?;
        Some(Kernel { module: self, program })
    }

    /// The names of all kernels, in the order of the text.
    pub fn kernels(&self) -> impl Iterator<Item = &str> {
        self.kernels.iter().map(|k| k.name.as_str())
    }

    /// The address of a variable in global or constant memory.
    pub fn variable(&self, name: &str) -> Option<u64> {
        let symbol = self.text.variables.iter().position(|v| &*v.name == name)?;
        self.addresses.get(&(symbol as Symbol)).copied()
    }

    /// A line of the text.
    pub(crate) fn line(&self, line: u32) -> &str {
        self.lines.get(line.saturating_sub(1) as usize).map_or("", |l| l)
    }

    /// Where each variable lies and what it holds at first; those of `.const` must not be written.
    pub(crate) fn variables(&self) -> Vec<(u64, Vec<u8>, bool)> {
        let mut found = Vec::new();
        for (&symbol, &address) in &self.addresses {
            let variable = &self.text.variables[symbol as usize];
            let mut bytes = variable.init.clone();
            bytes.resize(variable.size as usize, 0);
            for (at, name, offset, width) in &variable.addresses {
                let value = self.variable(name).unwrap_or(0).wrapping_add_signed(*offset).to_le_bytes();
                let width = *width as usize;
                if let Some(slot) = bytes.get_mut(*at..*at + width) {
                    slot.copy_from_slice(&value[..width]);
                }
            }
            found.push((address, bytes, variable.space == Space::Const));
        }
        found
    }
}

impl Kernel<'_> {
    /// Bytes of shared memory that the kernel declares.
    pub fn static_shared(&self) -> u32 {
        self.program.static_shared
    }

    /// Offset, size and alignment of each parameter.
    pub fn params(&self) -> &[(u32, u32, u32)] {
        &self.program.params
    }
}
