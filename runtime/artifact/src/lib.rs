//! The compiled file: what is in it, how it is written, and how it is read by someone who does not trust it.
//!
//! Layout (`docs/src/design/artifact.md`):
//!
//! `runner ELF │ pad 64 KiB │ code │ pad │ manifest │ blobs │ pad 64 KiB │ weights │ pad │ 64-byte trailer`
//!
//! [`Manifest`] is the plan as plain data, [`write()`] puts a file together and replaces the target atomically, and
//! [`parse`] finds the parts again and refuses, with the reason, anything that is damaged, truncated, stripped,
//! foreign, of another version, or inconsistent. This crate is where compiler and runtime meet, so it depends on
//! neither.

mod behind;
mod check;
mod error;
mod format;
mod manifest;
mod read;
mod write;

pub use check::check;
pub use error::{ArgFault, BatchFault, Error, Fault, Part, VersionFault};
pub use manifest::*;
pub use read::{Artifact, parse};
pub use write::{Parts, WeightWriter, write, write_to};

/// Version of the file format and of the kernel ABI; a reader takes exactly its own.
pub const ABI_VERSION: u32 = 5;

/// What a runner has somewhere in its bytes: a name, and the version it reads, little-endian.
pub const fn runner_mark() -> [u8; 32] {
    let (name, version) = (*b"hadal: the runner, of version   ", ABI_VERSION.to_le_bytes());
    let mut mark = name;
    let mut i = 0;
    while i < version.len() {
        mark[28 + i] = version[i];
        i += 1;
    }
    mark
}

/// Names of the blobs the runtime looks for, bytes as in the checkpoint.
pub mod blob {
    /// The `tokenizers` library's description of the tokenizer.
    pub const TOKENIZER: &str = "tokenizer.json";
    /// Options around it: which begin token to add, the chat template, special tokens by name.
    pub const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
    /// The chat template, where it is a file of its own.
    pub const CHAT_TEMPLATE: &str = "chat_template.jinja";
    /// Sampling defaults as the checkpoint has them, for people; [`Model::sampling`](crate::Model) is what counts.
    pub const GENERATION_CONFIG: &str = "generation_config.json";
}

/// The checksum used throughout the format: XXH3-64, chosen because verifying weights should run at the speed of the
/// disk, and because 64 bits of an error-detecting hash suffice where no adversary is kept out.
pub fn checksum(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}

#[cfg(test)]
mod tests;
