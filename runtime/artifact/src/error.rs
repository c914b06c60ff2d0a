//! What can be wrong with a compiled file, and with writing one.

use crate::ABI_VERSION;
use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why a file was refused or could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No payload: another program, the bare runner, or one whose payload was cut off by `strip`.
    #[error(
        "{}",
        if *elf {
            "this program carries no compiled model: either it never had one, or `strip`, a packer or an incomplete \
             copy removed the payload after the program itself; compile again and do not strip the result"
        } else {
            "not a compiled model: the file does not end in a hadal trailer"
        }
    )]
    NoPayload {
        /// Whether it is an ELF program.
        elf: bool,
    },
    /// The payload's head says how long the file was, and it is not.
    #[error(
        "the file {}: {len} bytes, {expected} when it was written",
        if len < expected { "is truncated" } else { "goes on after its end" }
    )]
    Truncated {
        /// Length found.
        len: u64,
        /// Length when it was written.
        expected: u64,
    },
    /// Written by a newer or older compiler.
    #[error(
        "the file has format version {found}, this program reads version {ABI_VERSION}: {}",
        if *found > ABI_VERSION { "it is newer than this program; use a newer hadal" }
        else { "it is older than this program; compile the model again" }
    )]
    Version {
        /// Version in the file.
        found: u32,
    },
    /// A part lies outside the file or overlaps another.
    #[error("the file is damaged: {part} does not lie where it can")]
    Bounds {
        /// Which part.
        part: Part,
    },
    /// A part's bytes are not those that were written.
    #[error("the file is damaged: the checksum of {part} does not match")]
    Checksum {
        /// Which part.
        part: Part,
    },
    /// The manifest's bytes are not a manifest.
    #[error("the file is damaged: the manifest cannot be decoded")]
    Decode,
    /// The manifest contradicts itself.
    #[error("the manifest is inconsistent: {}{}", faults[0], more(faults.len()))]
    Inconsistent {
        /// All that is wrong, at least one; the search ends after [`Fault::MAX`].
        faults: Vec<Fault>,
    },
    /// The part handed to the writer is not as long as the manifest says.
    #[error("{part} has {found} bytes where the manifest promises {expected}")]
    Length {
        /// Which part.
        part: Part,
        /// Bytes the manifest promises.
        expected: u64,
        /// Bytes delivered.
        found: u64,
    },
    /// No room for the file.
    #[error("no space left for {}: it needs {needed} bytes", path.display())]
    DiskFull {
        /// File being written.
        path: PathBuf,
        /// Its whole length.
        needed: u64,
    },
    /// The target exists and is not a file that may be replaced.
    #[error("{} exists and is not a regular file", path.display())]
    NotAFile {
        /// The target.
        path: PathBuf,
    },
    /// Anything else the system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// File concerned.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

fn more(faults: usize) -> String {
    if faults > 1 { format!(" (and {} more)", faults - 1) } else { String::new() }
}

/// A part of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// The machine code.
    Code,
    /// The plan.
    Manifest,
    /// A tokenizer file or the like.
    Blob(String),
    /// All weights together.
    Weights,
    /// One weight.
    Weight(String),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Part::Code => f.write_str("the code"),
            Part::Manifest => f.write_str("the manifest"),
            Part::Blob(name) => write!(f, "`{name}`"),
            Part::Weights => f.write_str("the weights"),
            Part::Weight(name) => write!(f, "weight `{name}`"),
        }
    }
}

/// One contradiction in a manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A list has two things of one name.
    #[error("two {kind} are called `{name}`")]
    Duplicate {
        /// `kernels`, `weights`, …
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// The model's limits make no sense, or a token id is not below the vocabulary's size.
    #[error("the model's {field} is {value}")]
    Model {
        /// Which field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// Something does not lie inside the memory it belongs to, or is misaligned there.
    #[error("{kind} `{name}` does not fit where it is placed")]
    Placement {
        /// `kernel`, `weight` or `state`.
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// A symbol is defined by itself, twice, or by what is not there.
    #[error("the definitions of symbols make no sense")]
    Definitions,
    /// An entry's symbol is given twice, has an empty or negative range, or there are too many of them.
    #[error("entry `{entry}`: the ranges of its symbols are not usable")]
    Symbols {
        /// The entry.
        entry: String,
    },
    /// Not every call fits exactly one version, or it matters to the states which.
    #[error("entry `{entry}`: {what}")]
    Versions {
        /// The entry.
        entry: String,
        /// What is wrong with them.
        what: VersionFault,
    },
    /// A size uses a symbol that the entry does not have.
    #[error("entry `{entry}`: {place} uses a symbol the entry does not have")]
    UnknownSymbol {
        /// The entry.
        entry: String,
        /// A port's or kernel's name.
        place: String,
    },
    /// A launch names a kernel that is not there.
    #[error("entry `{entry}`, launch {launch}: there is no kernel {kernel}")]
    NoKernel {
        /// The entry.
        entry: String,
        /// Position of the launch.
        launch: usize,
        /// The index.
        kernel: u32,
    },
    /// A launch has not as many arguments as its kernel has parameters.
    #[error("entry `{entry}`, launch {launch}: {found} arguments for {expected} parameters")]
    ArgCount {
        /// The entry.
        entry: String,
        /// Position of the launch.
        launch: usize,
        /// Parameters of the kernel.
        expected: usize,
        /// Arguments of the launch.
        found: usize,
    },
    /// An argument names a weight, state, input or output that is not there, is misaligned, would be written though it
    /// is read-only, or is smaller than what the kernel touches.
    #[error("entry `{entry}`, launch {launch}, argument {arg}: {what}")]
    Arg {
        /// The entry.
        entry: String,
        /// Position of the launch.
        launch: usize,
        /// Position of the argument.
        arg: usize,
        /// What is wrong with it.
        what: ArgFault,
    },
    /// A version is said to run for batches, but could not.
    #[error(
        "entry `{entry}`, version {version}{}: {what}",
        launch.map_or(String::new(), |l| format!(", launch {l}"))
    )]
    Batch {
        /// The entry.
        entry: String,
        /// Position of the version.
        version: usize,
        /// Position of the launch, if it is one that is wrong.
        launch: Option<usize>,
        /// What is wrong with it.
        what: BatchFault,
    },
}

impl Fault {
    /// The search for faults ends after this many.
    pub const MAX: usize = 50;
}

/// What is wrong with the versions of an entry; they are counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VersionFault {
    /// None, or more than anyone would make.
    #[error("it has {0} versions")]
    Count(usize),
    /// A version's ranges are not within the entry's.
    #[error("the ranges of version {0} are not within its own")]
    Range(usize),
    /// Two versions for the same call.
    #[error("versions {0} and {1} are for the same sizes")]
    Overlap(usize, usize),
    /// No version for some calls.
    #[error("there are sizes that no version is for")]
    Gap,
    /// A version gives new rows to other states than the first.
    #[error("version {0} writes other states than the first")]
    States(usize),
}

/// What is wrong with an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgFault {
    /// The index is past the end of its list.
    #[error("there is no such buffer")]
    NoSuchBuffer,
    /// The kernel stores to a weight or an input.
    #[error("the kernel would write to read-only memory")]
    ReadOnly,
    /// The offset is not a multiple of the element's size.
    #[error("the offset is not aligned to the element")]
    Misaligned,
    /// Past the end for some values of the symbols.
    #[error("the kernel would reach past the end of the buffer")]
    OutOfBounds,
}

/// What keeps a version from running for a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchFault {
    /// It runs for none, but says what each sequence has.
    #[error("something is each sequence's, but it does not run for batches")]
    Stray,
    /// No number of tokens, or one that nobody would compute at once.
    #[error("it runs for batches, but not for several tokens")]
    Tokens,
    /// Something shared is not a row for each sequence.
    #[error("what sequences share is not a row for each")]
    Rows,
    /// A launch for all sequences uses what each has: states, memory, numbers other than that of tokens.
    #[error("a launch for all sequences uses what each has for itself")]
    Shared,
}
