//! What can be wrong with a text before anything runs.

use thiserror::Error;

/// Why a text is not a module that can be executed. Every error names its line, counted from one.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("line {line}: {kind} in `{text}`")]
pub struct Error {
    /// The line of the PTX text.
    pub line: u32,
    /// The statement, shortened.
    pub text: String,
    /// What is wrong.
    pub kind: ErrorKind,
}

/// The kinds of [`struct@Error`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ErrorKind {
    /// The text is not PTX.
    #[error("expected {expected}, found `{found}`")]
    Syntax {
        /// What the grammar wants here.
        expected: String,
        /// What stands here.
        found: String,
    },
    /// A name is used that nothing declares.
    #[error("`{name}` is not declared")]
    Undeclared {
        /// The name.
        name: String,
    },
    /// A name is declared twice in a scope.
    #[error("`{name}` is declared twice")]
    Redeclared {
        /// The name.
        name: String,
    },
    /// PTX, perhaps, but nothing that this crate executes.
    #[error("{what} is not supported")]
    Unsupported {
        /// The instruction, modifier or directive.
        what: String,
    },
    /// An operand does not fit its instruction.
    #[error("{what}: expected {expected}, found {found}")]
    Operand {
        /// Which operand.
        what: String,
        /// What the instruction takes.
        expected: String,
        /// What is given.
        found: String,
    },
    /// The module says it is for a machine or version that lacks the instruction.
    #[error("{what} needs {needs}, the module states {states}")]
    TooNew {
        /// The instruction or modifier.
        what: String,
        /// The minimum.
        needs: String,
        /// What `.version` or `.target` says.
        states: String,
    },
    /// A limit against texts that would exhaust memory.
    #[error("more than {limit} {what}")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// A function that can call itself, which needs a stack that this crate does not have.
    #[error("`{name}` can call itself, which is not supported")]
    Recursion {
        /// The function.
        name: String,
    },
}

pub(crate) type Result<T> = std::result::Result<T, ErrorKind>;

pub(crate) fn unsupported<T>(what: impl Into<String>) -> Result<T> {
    Err(ErrorKind::Unsupported { what: what.into() })
}

pub(crate) fn operand<T>(what: impl Into<String>, expected: impl Into<String>, found: impl Into<String>) -> Result<T> {
    Err(ErrorKind::Operand { what: what.into(), expected: expected.into(), found: found.into() })
}

pub(crate) fn syntax<T>(expected: impl Into<String>, found: impl Into<String>) -> Result<T> {
    Err(ErrorKind::Syntax { expected: expected.into(), found: found.into() })
}
