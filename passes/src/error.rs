//! Why passes refuse a module.

use hadal_ir::verify::Faults;
use hadal_ir::{Sym, TensorType};

/// Why a module cannot be compiled.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum Error {
    /// The module given is malformed.
    #[error("the module is malformed:\n{0}")]
    Malformed(Faults),
    /// A pass made a malformed module: a bug in the pass.
    #[error("pass `{pass}` made a malformed module:\n{faults}")]
    Broken {
        /// The pass.
        pass: &'static str,
        /// What is wrong with its result.
        faults: Faults,
    },
    /// No pass has this name.
    #[error("there is no pass `{0}`")]
    UnknownPass(String),
    /// No law has this name.
    #[error("there is no law `{0}`")]
    UnknownLaw(String),
    /// A value that is too large, and no law that gets around it.
    #[error("@{func} computes `{value}`, which does not fit into the {room} bytes of memory that are left for it")]
    NoRoom {
        /// The function.
        func: String,
        /// The value.
        value: String,
        /// Bytes that are left for values.
        room: u64,
    },
    /// Nothing that the laws make of a function has a cost that is a number.
    #[error("@{func} cannot be computed at a finite cost: its sizes are too large or unknown")]
    NoChoice {
        /// The function.
        func: String,
    },
    /// A size depends on a symbol that has no range.
    #[error("symbol `{sym}` of {ty} has no range")]
    NoRange {
        /// The symbol.
        sym: Sym,
        /// Where it stands.
        ty: TensorType,
    },
    /// A buffer larger than any machine can address.
    #[error("{ty} needs more bytes than can be addressed")]
    TooLarge {
        /// Its type.
        ty: TensorType,
    },
    /// A state whose next value is neither itself nor rows appended to it.
    #[error("state `{0}` is replaced by something other than itself with rows appended")]
    NotAppended(String),
    /// Rows appended to something that no call can leave changed: an input, a weight or a working buffer.
    #[error("kernel @{0} appends rows to something that is not a state")]
    AppendedElsewhere(String),
    /// A state appended to twice in one entry.
    #[error("state `{state}` is appended to twice in entry `{entry}`")]
    AppendedTwice {
        /// Full name.
        state: String,
        /// The entry.
        entry: String,
    },
    /// A state's old value is read after rows were appended in its place.
    #[error("kernel @{kernel} reads the old rows of state `{state}` after new ones were appended")]
    ReadAfterAppend {
        /// Full name.
        state: String,
        /// The reader.
        kernel: String,
    },
    /// One state or weight declared with two types.
    #[error("`{name}` is {first} in one place and {second} in another")]
    Disagree {
        /// Full name.
        name: String,
        /// A type.
        first: TensorType,
        /// Another.
        second: TensorType,
    },
    /// A weight, or a row of a state, whose size depends on a symbol.
    #[error("weight or state row `{name}` has the symbolic type {ty}")]
    Symbolic {
        /// Full name.
        name: String,
        /// Its type.
        ty: TensorType,
    },
    /// The module was not cut into kernels first.
    #[error("@{0} computes outside of kernels; fuse first")]
    NotFused(String),
    /// A fold is given something other than weights.
    #[error("fold @{0} is given something that is not computed from weights alone")]
    FoldOfValues(String),
    /// A plan that contradicts itself: a bug in the planner.
    #[error("the plan of `{entry}` is wrong: {what}")]
    BadPlan {
        /// The entry.
        entry: String,
        /// What is wrong.
        what: String,
    },
}
