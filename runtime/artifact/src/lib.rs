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

mod check;
mod error;
mod features;
mod format;
mod manifest;
mod read;
mod write;

pub use check::check;
pub use error::{ArgFault, BatchFault, Error, Fault, Part, VersionFault};
pub use features::has_feature;
pub use manifest::*;
pub use read::{Artifact, parse};
pub use write::{Parts, WeightWriter, write, write_to};

/// Version of the file format and of the kernel ABI; a reader takes exactly its own.
pub const ABI_VERSION: u32 = 6;

/// What a runner has once in its bytes, before the version it reads, little-endian.
pub const RUNNER_NAME: [u8; 28] = *b"hadal: a runner, of version ";

/// Name and version.
pub const fn runner_mark() -> [u8; 32] {
    let (mut mark, version) = ([0; 32], ABI_VERSION.to_le_bytes());
    let (name, number) = mark.split_at_mut(RUNNER_NAME.len());
    name.copy_from_slice(&RUNNER_NAME);
    number.copy_from_slice(&version);
    mark
}

/// Whether a file is a compiled one, by how it ends.
pub fn is_compiled(file: &[u8]) -> bool {
    file.len().checked_sub(format::TRAILER_BYTES).is_some_and(|at| format::Trailer::decode(&file[at..]).is_some())
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
