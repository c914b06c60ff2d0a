//! What can go wrong while a kernel runs.

use std::fmt;

use crate::types::Space;

/// A statement of the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The line, counted from one.
    pub line: u32,
    /// The statement as it stands there.
    pub text: String,
}

/// The other access of a race.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Other {
    /// Where.
    pub place: Place,
    /// Who: a thread, or an asynchronous operation.
    pub who: String,
    /// `read` or `write`.
    pub access: &'static str,
}

/// The kinds of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FaultKind {
    /// The launch does not fit the kernel or the machine.
    Launch,
    /// An address outside of every allocation, or of the variable's memory.
    OutOfBounds,
    /// An address that is not a multiple of what the instruction wants.
    Misaligned,
    /// A write to memory that must not be written.
    ReadOnly,
    /// Memory is read that nothing wrote.
    UninitialisedMemory,
    /// A register is read that nothing wrote.
    UninitialisedRegister,
    /// Two accesses that nothing orders.
    Race,
    /// Accesses by different proxies with an order but no proxy fence between them.
    MissingProxyFence,
    /// A register is used while a product that is not settled owns it, or without `wgmma.fence`.
    UnsettledRegister,
    /// Nothing can run any more.
    Deadlock,
    /// More steps than [`crate::Options::max_steps`].
    StepLimit,
    /// Lanes that an instruction wants together are not.
    Divergence,
    /// A barrier object is used in a way that it does not allow.
    Barrier,
    /// A descriptor, tensor map or shape that the instruction does not take.
    Descriptor,
    /// `setmaxnreg` against its rules.
    Registers,
    /// `trap` or `brkpt`.
    Trap,
    /// Asynchronous work is left when a block ends.
    Unfinished,
}

/// Why a run was stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What kind of fault.
    pub kind: FaultKind,
    /// What happened, with the values.
    pub message: String,
    /// The kernel.
    pub kernel: String,
    /// Where; of a deadlock the first that waits.
    pub place: Place,
    /// The block's index in the grid.
    pub block: [u32; 3],
    /// The warp in the block.
    pub warp: u32,
    /// The lanes at fault, one bit each.
    pub lanes: u32,
    /// The address.
    pub address: Option<(Space, u64)>,
    /// The other access of a race.
    pub other: Option<Other>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [x, y, z] = self.block;
        write!(
            f,
            "{:?}: {}\n  {}: line {}: `{}`",
            self.kind, self.message, self.kernel, self.place.line, self.place.text
        )?;
        write!(f, "\n  block ({x}, {y}, {z}), warp {}, lanes {:#010x}", self.warp, self.lanes)?;
        if let Some((space, address)) = self.address {
            write!(f, ", {space} address {address:#x}")?;
        }
        if let Some(other) = &self.other {
            let Other { place, who, access } = other;
            write!(f, "\n  against the {access} by {who} at line {}: `{}`", place.line, place.text)?;
        }
        Ok(())
    }
}

impl std::error::Error for Fault {}

/// A fault before it is known where it is.
#[derive(Debug)]
pub(crate) struct Trouble {
    pub kind: FaultKind,
    pub message: String,
    pub lanes: u32,
    pub address: Option<(Space, u64)>,
    /// The other access: its instruction, who, which.
    pub other: Option<(u32, String, &'static str)>,
}

pub(crate) type Run<T> = Result<T, Box<Trouble>>;

pub(crate) fn trouble<T>(kind: FaultKind, lanes: u32, message: impl Into<String>) -> Run<T> {
    Err(Box::new(Trouble { kind, message: message.into(), lanes, address: None, other: None }))
}

pub(crate) fn trouble_at<T>(
    kind: FaultKind,
    lanes: u32,
    space: Space,
    address: u64,
    message: impl Into<String>,
) -> Run<T> {
    Err(Box::new(Trouble { kind, message: message.into(), lanes, address: Some((space, address)), other: None }))
}
