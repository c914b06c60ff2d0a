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
    /// A safetensors file contradicts itself, its length or the format.
    #[error("{}{}: expected {expected}, found {found}; the file is damaged or incomplete, copy or download it again",
        file.display(), of_tensor(tensor))]
    Damaged {
        /// The file.
        file: PathBuf,
        /// The tensor whose entry is wrong, where one is to blame.
        tensor: Option<String>,
        /// What the format asks for.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A tensor is stored in an element format that cannot be read.
    #[error("{}: tensor `{tensor}` is stored as {found}, which is not supported; convert the checkpoint to one of {}",
        file.display(), crate::checkpoint::format_names())]
    UnknownFormat {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The format's name in the file.
        found: String,
    },
    /// A tensor of a GGUF file is stored in blocks that cannot be read.
    #[error("{}: tensor `{tensor}` is stored in ggml's format number {format}, which is not supported; quantise the model to \
        one of Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K, IQ4_NL, IQ4_XS and MXFP4, or keep it in F16, BF16 or F32",
        file.display())]
    UnknownBlocks {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// ggml's number for the format.
        format: u32,
    },
    /// A folder holds no safetensors file.
    #[error("{}: no safetensors file here (found {found}); give the folder that holds config.json and \
        model.safetensors, and convert other weight formats to safetensors first", dir.display())]
    NoTensors {
        /// The folder.
        dir: PathBuf,
        /// What the folder holds instead.
        found: String,
    },
    /// Shards that the index or the shards' own numbering asks for are not there.
    #[error("{}: {} of {total} shards missing: {}; download them into the same folder",
        dir.display(), missing.len(), listed(missing))]
    ShardsMissing {
        /// The folder.
        dir: PathBuf,
        /// File names, in order.
        missing: Vec<String>,
        /// Shards there should be.
        total: usize,
    },
    /// An adapter holds tensors that do not replace any of the base checkpoint.
    #[error("{}: not an adapter for {}: {}", dir.display(), base.display(), misfits(unknown, misshapen))]
    Adapter {
        /// The adapter.
        dir: PathBuf,
        /// The base checkpoint.
        base: PathBuf,
        /// Tensors that the base does not have.
        unknown: Vec<String>,
        /// Tensors of another shape, each with both.
        misshapen: Vec<String>,
    },
    /// The index names something that cannot be a shard beside it.
    #[error("{}: `{tensor}`: expected the name of a file in the same folder, found {found}", index.display())]
    IndexEntry {
        /// The index file.
        index: PathBuf,
        /// The tensor with the bad entry.
        tensor: String,
        /// The entry.
        found: String,
    },
    /// The index places tensors in shards that do not hold them.
    #[error("{}: {} tensors are not in the shard named for them: {}; index and shards come from different \
        downloads, fetch both again", index.display(), misplaced.len(), listed(misplaced))]
    Misplaced {
        /// The index file.
        index: PathBuf,
        /// Tensor and shard, as `NAME in FILE`.
        misplaced: Vec<String>,
    },
    /// Two files hold the same tensor.
    #[error("tensor `{tensor}` is both in {} and in {}; remove the file that does not belong to the checkpoint",
        first.display(), second.display())]
    Repeated {
        /// The tensor.
        tensor: String,
        /// The file read first.
        first: PathBuf,
        /// The other one.
        second: PathBuf,
    },
    /// A tensor asked for by name is not in the checkpoint.
    #[error("{}: no tensor `{tensor}`", dir.display())]
    NoSuchTensor {
        /// The checkpoint's folder.
        dir: PathBuf,
        /// The name.
        tensor: String,
    },
    /// Tensors that should stack into one differ.
    #[error("{}: tensor `{tensor}`: expected {expected} like the first of its stack, found {found}", dir.display())]
    Stack {
        /// The checkpoint's folder.
        dir: PathBuf,
        /// The first tensor that differs.
        tensor: String,
        /// Type of the stack's first tensor.
        expected: String,
        /// This one's type.
        found: String,
    },
    /// The sizes of a configuration do not fit together in a way that no single key is to blame for.
    #[error("{}: the sizes do not fit together: {source}", file.display())]
    Graph {
        /// The configuration file.
        file: PathBuf,
        /// The op that cannot be built.
        source: Box<hadal_ir::builder::BuildError>,
    },
    /// A tokenizer does not say what a model has to know of it.
    #[error("tokenizer.json: {reason}")]
    Tokenizer {
        /// What is wrong.
        reason: String,
    },
    /// A weight that follows from the tokenizer cannot be made without it.
    #[error("`{weight}` is made from the tokenizer: put the model's tokenizer.json beside config.json")]
    NoTokenizer {
        /// The weight.
        weight: String,
    },
    /// The checkpoint's tensors are not the model's.
    #[error("{0}")]
    Mismatch(Box<crate::checkpoint::Report>),
}

fn of_tensor(tensor: &Option<String>) -> String {
    tensor.as_ref().map_or_else(String::new, |name| format!(": tensor `{name}`"))
}

fn misfits(unknown: &[String], misshapen: &[String]) -> String {
    let mut parts = Vec::new();
    if !unknown.is_empty() {
        parts.push(format!("{} tensors that the base does not have: {}", unknown.len(), listed(unknown)));
    }
    if !misshapen.is_empty() {
        parts.push(format!("{} of another shape: {}", misshapen.len(), listed(misshapen)));
    }
    parts.join("; ")
}

/// The first twenty, and how many more there are.
pub(crate) fn listed(names: &[String]) -> String {
    const SHOWN: usize = 20;
    let mut out = names[..names.len().min(SHOWN)].join(", ");
    if names.len() > SHOWN {
        out += &format!(" … and {} more", names.len() - SHOWN);
    }
    out
}
