//! What can go wrong when a compiled file is loaded or run.

use std::io;
use std::path::PathBuf;

/// Why a program could not be loaded or a call not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused something about a file.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not a usable compiled model.
    #[error("{}: {source}", path.display())]
    Artifact {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: hadal_artifact::Error,
    },
    /// Compiled for another architecture.
    #[error("compiled for {needed}, but this machine is {found}; compile the model again for this machine")]
    Architecture {
        /// Architecture of the code.
        needed: String,
        /// Architecture of the machine.
        found: &'static str,
    },
    /// The CPU lacks something the code uses.
    #[error(
        "compiled for CPUs with {}, which this one does not have; compile the model again for this machine",
        missing.join(", ")
    )]
    CpuFeatures {
        /// All that is missing.
        missing: Vec<String>,
    },
    /// A file with weights is not the one that was there when the model was compiled.
    #[error("{} is not the weights file this model was compiled with: {what}", path.display())]
    OtherWeights {
        /// The file.
        path: PathBuf,
        /// In what it differs.
        what: WeightsDiffer,
    },
    /// Functions or weights handed over do not match the manifest.
    #[error("the manifest has {expected} {what}, {found} were given")]
    Parts {
        /// `kernels` or `weights`.
        what: &'static str,
        /// How many the manifest has.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// A state is paged, which this executor cannot address.
    #[error("state `{name}` is paged, which this version cannot run")]
    Paged {
        /// The state.
        name: String,
    },
    /// Memory for states or working space could not be had.
    #[error(
        "no memory for {bytes} bytes of {what} ({source}); compiled with a smaller --max-context, the model needs less"
    )]
    Memory {
        /// What it was for.
        what: &'static str,
        /// How much.
        bytes: u64,
        /// What the system said.
        source: io::Error,
    },
    /// The program has no entry of that name.
    #[error("the model has no entry `{name}`; it has {}", has.join(", "))]
    NoEntry {
        /// The name.
        name: String,
        /// Entries there are.
        has: Vec<String>,
    },
    /// An entry lacks an input or output of the shape a caller relies on.
    #[error("entry `{entry}` has no {port} as needed here")]
    NoPort {
        /// The entry.
        entry: String,
        /// Name and type, in words.
        port: &'static str,
    },
    /// Too many or too few new tokens for one call.
    #[error("entry `{entry}` takes {lo} to {hi} new tokens a call, not {found}")]
    Tokens {
        /// The entry.
        entry: String,
        /// Fewest.
        lo: i64,
        /// Most.
        hi: i64,
        /// Asked for.
        found: usize,
    },
    /// The sequence would grow beyond the context it was compiled for.
    #[error(
        "{held} tokens held and {new} new ones exceed the context of {max}; shorten the prompt, or compile with a \
         larger --max-context"
    )]
    Context {
        /// Tokens already held.
        held: u64,
        /// New tokens.
        new: u64,
        /// Most the model can hold.
        max: u64,
    },
    /// Too few tokens held for an entry that continues.
    #[error("entry `{entry}` needs at least {least} tokens held, not {held}; run another entry first")]
    Held {
        /// The entry.
        entry: String,
        /// Fewest.
        least: u64,
        /// Tokens already held.
        held: u64,
    },
    /// A token id outside the vocabulary.
    #[error("token {token} is not below the vocabulary's size, {vocab}")]
    Token {
        /// The token.
        token: i64,
        /// Size of the vocabulary.
        vocab: u64,
    },
    /// No version of an entry runs for several sequences.
    #[error(
        "entry `{entry}` takes one token a call, so that several sequences cannot share it; compile the model with a \
         --max-chunk above 2"
    )]
    NoBatch {
        /// The entry.
        entry: String,
    },
    /// What a device says that could not do what it was asked for.
    #[error("{0}")]
    Device(String),
    /// A device that was asked for is not there, or cannot run any level of the program.
    #[error("{device}: {reason}")]
    NoDevice {
        /// The device, as it was asked for.
        device: String,
        /// Why not.
        reason: String,
    },
    /// A session that runs another program than its batch.
    #[error("sequence {number} of the batch is of another program")]
    OtherProgram {
        /// Its position in the batch.
        number: usize,
    },
    /// A batch needs a token and logits for each sequence.
    #[error(
        "{sequences} sequences with {tokens} tokens and room for {logits} logits: one and {vocab} are needed for each"
    )]
    Batch {
        /// Sequences given.
        sequences: usize,
        /// Tokens given.
        tokens: usize,
        /// Logits that there is room for.
        logits: usize,
        /// Logits of one sequence.
        vocab: usize,
    },
    /// A buffer handed to a call is missing or has the wrong size or alignment.
    #[error("entry `{entry}`, `{port}`: {found} bytes given, {expected} expected (aligned to the element)")]
    Buffer {
        /// The entry.
        entry: String,
        /// The port.
        port: String,
        /// Bytes expected.
        expected: u64,
        /// Bytes given; 0 where the buffer is missing.
        found: u64,
    },
    /// The states an entry works on hold different numbers of tokens.
    #[error("entry `{entry}` works on states that hold different numbers of tokens")]
    Uneven {
        /// The entry.
        entry: String,
    },
    /// More tokens are to be taken back than a window still has the rows for.
    #[error(
        "state `{state}` keeps its last rows only and cannot go back to {tokens} tokens, but to {least} at least, or to none"
    )]
    Forgotten {
        /// The state.
        state: String,
        /// Tokens to go back to.
        tokens: u64,
        /// The fewest it can go back to.
        least: u64,
    },
    /// No logit is a number, so that there is nothing to sample from.
    #[error("the model's output is not a number; the weights or the compiled code are broken")]
    NotANumber,
    /// A sampling setting outside its range.
    #[error("{name} must be {must}, not {found}")]
    Setting {
        /// Which.
        name: &'static str,
        /// What it must be.
        must: &'static str,
        /// What it is.
        found: f32,
    },
    /// A prompt of no tokens.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// Tokenizer or chat template.
    #[cfg(feature = "text")]
    #[error(transparent)]
    Text(#[from] crate::text::TextError),
}

/// In what a weights file differs from the one compiled against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WeightsDiffer {
    /// Another size.
    #[error("it has {found} bytes instead of {expected}")]
    Size {
        /// Bytes then.
        expected: u64,
        /// Bytes now.
        found: u64,
    },
    /// Another header.
    #[error("its header is another one")]
    Header,
}
