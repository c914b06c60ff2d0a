//! Everything that can be wrong with a model on disk, as facts.

use std::path::PathBuf;

/// Shorthand for this crate's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What is wrong, where, and what would be right.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("{}: {doing} failed: {source}", file.display())]
    Io {
        /// The file or folder.
        file: PathBuf,
        /// What was attempted: `reading`, `mapping`, …
        doing: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A text file is longer than any honest one.
    #[error("{}: longer than {limit} bytes, which no such file needs", file.display())]
    FileTooLarge {
        /// The file.
        file: PathBuf,
        /// Bytes accepted.
        limit: u64,
    },
    /// A file is not the JSON object it should be.
    #[error("{}: not a valid JSON object: {reason}", file.display())]
    Json {
        /// The file.
        file: PathBuf,
        /// The parser's finding, with line and column.
        reason: String,
    },
    /// A configuration key is missing or has a value that cannot be used.
    #[error("{}: `{key}`: expected {expected}, found {found}", file.display())]
    ConfigKey {
        /// The configuration file.
        file: PathBuf,
        /// Dotted path of the key: `rope_scaling.factor`.
        key: String,
        /// What would be accepted.
        expected: String,
        /// What is there.
        found: String,
    },
}
