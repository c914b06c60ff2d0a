//! What a compiled program is, as plain data.
//!
//! The compiler fills these types and the runtime obeys them. There is no op name the runtime would interpret: a
//! program is kernels, the memory they work on, and the order of their launches. Text meant for people (origins, facts)
//! is carried along for `info` and never acted upon.

use hadal_types::{Bindings, DType, Definitions, Dim, Sym, TensorType};
use serde::{Deserialize, Serialize};

/// Alignment of every kernel in the code section, weight in the weights section and buffer in the arena.
pub const ALIGN: u64 = 64;

/// Everything the runtime knows about a compiled program.
///
/// `target`, `kernels`, `entries` and `arena_bytes` are one [`Level`]: in a file the one to be preferred, in memory the
/// one that was [chosen](Manifest::choose).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The compiler that wrote this, with its version: `hadal 0.1.0`.
    pub producer: String,
    /// The machine the code needs.
    pub target: Target,
    /// The model, for generation and for people.
    pub model: Model,
    /// Machine code, one per distinct kernel.
    pub kernels: Vec<Kernel>,
    /// Constant tensors: the checkpoint's, and those computed at compile time.
    pub weights: Vec<Weight>,
    /// Files other than this one that hold weights.
    pub files: Vec<ExternalFile>,
    /// Memory one sequence owns between calls.
    pub states: Vec<State>,
    /// Symbols whose values follow from `P` and `T`.
    pub definitions: Definitions,
    /// What can be called.
    pub entries: Vec<Entry>,
    /// Bytes of working memory that the launches of any one entry share.
    pub arena_bytes: u64,
    /// Things worth showing in `info`: name and value, in order (`rewrites`, `compile time`, …).
    pub facts: Vec<(String, String)>,
    /// The same program for other machines, which use the same weights and states; to be preferred in this order.
    pub others: Vec<Level>,
}

/// A program for one class of machines.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Level {
    /// The machine the code needs.
    pub target: Target,
    /// As [`Manifest::kernels`].
    pub kernels: Vec<Kernel>,
    /// As [`Manifest::entries`].
    pub entries: Vec<Entry>,
    /// As [`Manifest::arena_bytes`].
    pub arena_bytes: u64,
}

/// The machine that code needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Architecture as Rust spells it: `x86_64`, `aarch64`.
    pub arch: String,
    /// CPU features as Rust spells them (`avx2`, `fma`, …), all of which must be present.
    pub features: Vec<String>,
}

/// [`Target::arch`] of code for GPUs, as Rust spells it.
pub const GPU: &str = "nvptx64";

impl Target {
    /// Whether the code is for a GPU. Its features then are the architecture and the version of PTX: `sm_90a`, `ptx84`.
    pub fn is_gpu(&self) -> bool {
        self.arch == GPU
    }
}

/// The model, as far as generation and people need to know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Model {
    /// A short name, usually the checkpoint's folder.
    pub name: String,
    /// The architecture in words, for people only.
    pub architecture: String,
    /// Rows of the logits; every token id is below it.
    pub vocab: u64,
    /// Most tokens one sequence can hold (`P + T` never exceeds it).
    pub max_context: u64,
    /// Most new tokens (`T`) one call can take.
    pub max_chunk: u64,
    /// Begin-of-sequence token.
    pub bos: Option<u32>,
    /// Tokens that end generation.
    pub stop: Vec<u32>,
    /// How the checkpoint asks to be sampled.
    pub sampling: SamplingDefaults,
}

/// The checkpoint's `generation_config`, as far as it says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SamplingDefaults {
    /// Softmax temperature; 0 is greedy.
    pub temperature: Option<f32>,
    /// Keep this many most likely tokens.
    pub top_k: Option<u32>,
    /// Keep the most likely tokens that together reach this probability.
    pub top_p: Option<f32>,
    /// Keep tokens at least this fraction as likely as the likeliest.
    pub min_p: Option<f32>,
}

/// What a block of a launch on a GPU has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// Warps.
    pub warps: u32,
    /// Grid indices that a block computes at a time: one for each warp, or one that all of them share.
    pub indices: u32,
    /// Bytes of shared memory of a grid index.
    pub shared_bytes: u32,
}

/// One piece of machine code:
/// `extern "C" fn(args: *const *mut u8, symbols: *const i64, lo: i64, hi: i64, scratch: *mut u8)`,
/// or for a GPU the text of PTX with an entry of three addresses, those of args, symbols and scratch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kernel {
    /// Name, unique in the program.
    pub name: String,
    /// First byte, counted from the start of the code section; a multiple of [`ALIGN`].
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// Scratch memory each worker needs; on a GPU each warp, of global memory.
    pub scratch_bytes: u64,
    /// How a GPU launches it.
    pub block: Option<Block>,
    /// Symbols whose values the code reads, in the order of its `symbols` argument.
    pub symbols: Vec<Sym>,
    /// Parameters in the order of its `args` argument.
    pub params: Vec<Param>,
    /// Where it came from, for people: model paths and laws.
    pub origin: String,
}

/// One buffer a kernel works on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Param {
    /// Name in the kernel's text.
    pub name: String,
    /// What the kernel does to it.
    pub access: Access,
    /// Format and shape; its size bounds what the kernel touches from the argument's address on.
    pub ty: TensorType,
}

/// What a kernel does to a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    /// Only loads.
    Read,
    /// Only stores.
    Write,
    /// Both.
    ReadWrite,
}

impl Access {
    /// Whether anything is stored.
    pub fn writes(self) -> bool {
        self != Access::Read
    }
}

/// A constant tensor, in the layout its kernels want.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Weight {
    /// Name: the checkpoint's where it is a checkpoint tensor.
    pub name: String,
    /// Element format.
    pub dtype: DType,
    /// Sizes.
    pub shape: Vec<u64>,
    /// Length in bytes.
    pub bytes: u64,
    /// Where the bytes are.
    pub place: Place,
    /// Whether a call reads only some rows of it, as of embeddings.
    pub by_rows: bool,
}

/// Where a weight's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// In the weights section, from `offset` on, a multiple of [`ALIGN`].
    Embedded {
        /// Counted from the start of the section.
        offset: u64,
    },
    /// In another file.
    External {
        /// Which of [`Manifest::files`].
        file: u32,
        /// Counted from the start of that file; at least a multiple of the element's size.
        offset: u64,
    },
}

/// A file beside this one that holds weights: a second file of ours, or a shard of the original checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExternalFile {
    /// Path, relative to the folder of the compiled file unless absolute.
    pub path: String,
    /// Its exact size.
    pub bytes: u64,
    /// Bytes at its start that `header_checksum` covers (a safetensors header with its length).
    pub header_bytes: u64,
    /// [`checksum`](crate::checksum) of those bytes, so that another file of the same size is not taken for it.
    pub header_checksum: u64,
}

/// Memory one sequence owns between calls, for instance cached rows: zero at first.
///
/// A call's new rows go behind those held. Where `held` is a number the state is a window: only so many rows are kept,
/// the last ones, and kernels are given the address of the oldest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Name.
    pub name: String,
    /// Element format.
    pub dtype: DType,
    /// Sizes of one row (of one token).
    pub row_shape: Vec<u64>,
    /// Rows held when `P` tokens are.
    pub held: Dim,
    /// Rows there is room for; of a window more than it keeps, so that rows need not move at every call.
    pub rows: u64,
    /// Rows of one page; equal to `rows` where the state is contiguous.
    pub page_rows: u64,
    /// Bytes of the whole state.
    pub bytes: u64,
}

/// Something that can be called: `prefill`, `decode`, `logits`, `mtp`, …
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Name.
    pub name: String,
    /// The symbols and the values each may take. Besides, `P + T` never exceeds the model's context.
    pub symbols: Vec<SymbolRange>,
    /// Buffers the caller provides to be read.
    pub inputs: Vec<Port>,
    /// Buffers the caller provides to be written.
    pub outputs: Vec<Port>,
    /// Ways to compute it, each for part of the symbols' values; together for all, no two for the same ones.
    pub versions: Vec<Version>,
}

/// How an entry is computed for some values of its symbols.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Version {
    /// For which: the symbols of the entry, in its order.
    pub symbols: Vec<SymbolRange>,
    /// Kernels to run, in order.
    pub launches: Vec<Launch>,
    /// Whether it also runs for a batch: one new token for each of several sequences, at most as many as the version
    /// has tokens.
    ///
    /// Then row `b` of what is shared belongs to sequence `b`: inputs, outputs and [`Space::Arena`]. Launches run once,
    /// `T` being the number of sequences, or for [each](Launch::each) of them.
    pub batches: bool,
    /// Weight bytes that one call with the fewest new tokens reads, for bandwidth figures (experts not chosen do not
    /// count).
    pub weight_bytes_read: Option<u64>,
    /// Floating-point operations of such a call.
    pub flops: Option<u64>,
}

/// The values a symbol may take in an entry or a version, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SymbolRange {
    /// The symbol.
    pub sym: Sym,
    /// Least value.
    pub lo: i64,
    /// Largest value.
    pub hi: i64,
}

/// `T = 1`, `P in 0..4095`.
impl std::fmt::Display for SymbolRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.lo == self.hi {
            true => write!(f, "{} = {}", self.sym, self.lo),
            false => write!(f, "{} in {}..{}", self.sym, self.lo, self.hi),
        }
    }
}

/// A named input or output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Port {
    /// Name: `tokens`, `logits`, `hidden`.
    pub name: String,
    /// Format and shape.
    pub ty: TensorType,
}

/// One kernel run over a whole grid.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Launch {
    /// Which of [`Manifest::kernels`].
    pub kernel: u32,
    /// One per parameter of the kernel.
    pub args: Vec<Arg>,
    /// Extents; the product is the number of grid indices.
    pub grid: Vec<Dim>,
    /// Whether it runs in a batch for each sequence alone: with one new token, its own symbols and states, and the
    /// sequence's row of what is shared.
    pub each: bool,
}

/// The address a kernel gets for one parameter: `offset` bytes into `space`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arg {
    /// The memory.
    pub space: Space,
    /// Bytes from its start.
    pub offset: u64,
}

impl Arg {
    /// The start of `space`.
    pub fn of(space: Space) -> Arg {
        Arg { space, offset: 0 }
    }

    /// `offset` bytes into the arena, in memory that each sequence has for itself.
    pub fn own(offset: u64) -> Arg {
        Arg { space: Space::Own, offset }
    }

    /// `offset` bytes into the arena.
    pub fn arena(offset: u64) -> Arg {
        Arg { space: Space::Arena, offset }
    }
}

/// Memory an argument can point to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Space {
    /// Working memory of the call.
    Arena,
    /// One of [`Manifest::weights`].
    Weight(u32),
    /// One of [`Manifest::states`].
    State(u32),
    /// One of the entry's inputs.
    Input(u32),
    /// One of the entry's outputs.
    Output(u32),
    /// Working memory of the call like [`Space::Arena`], in the same bytes; in a batch, memory that each sequence has
    /// for itself.
    Own,
}

impl Manifest {
    /// The machines that there is code for, those to be preferred first.
    pub fn targets(&self) -> impl Iterator<Item = &Target> {
        std::iter::once(&self.target).chain(self.others.iter().map(|l| &l.target))
    }

    /// Makes the code for another machine the one that counts, by its number in [`Manifest::targets`]; the one that
    /// counted takes its place. There is no change where there is no such number.
    pub fn choose(&mut self, number: usize) {
        let Some(level) = number.checked_sub(1).and_then(|i| self.others.get_mut(i)) else { return };
        std::mem::swap(&mut self.target, &mut level.target);
        std::mem::swap(&mut self.kernels, &mut level.kernels);
        std::mem::swap(&mut self.entries, &mut level.entries);
        std::mem::swap(&mut self.arena_bytes, &mut level.arena_bytes);
    }

    /// The entry called `name`.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|e| e.name == name)
    }

    /// The ranges of symbols that do not follow from others, in words: `T = 1`, `P in 0..4095`.
    pub fn free_ranges(&self, ranges: &[SymbolRange]) -> Vec<String> {
        ranges.iter().filter(|r| !self.definitions.has(r.sym)).map(SymbolRange::to_string).collect()
    }

    /// Bytes of states that do not grow: windows of the last rows.
    pub fn window_bytes(&self) -> u64 {
        self.states.iter().filter_map(|s| s.window()?.checked_mul(s.row_bytes()?)).sum()
    }

    /// Bytes that the states grow by with every token, on average and rounded down.
    pub fn state_bytes_per_token(&self) -> u64 {
        let of = |s: &State| self.definitions.per_token(&s.held) * s.row_bytes().unwrap_or(0) as f64;
        (self.states.iter().map(of).sum::<f64>() + 1e-6) as u64
    }

    /// Bytes of the weights section: the end of the last embedded weight.
    pub fn embedded_bytes(&self) -> u64 {
        let ends = self.weights.iter().map(|w| match w.place {
            Place::Embedded { offset } => offset.saturating_add(w.bytes),
            Place::External { .. } => 0,
        });
        ends.max().unwrap_or(0)
    }

    /// Puts every embedded weight at its offset, one after the other in order.
    pub fn place_embedded_weights(&mut self) {
        let mut next = 0u64;
        for w in &mut self.weights {
            if let Place::Embedded { offset } = &mut w.place {
                *offset = next;
                next = next.saturating_add(w.bytes).next_multiple_of(ALIGN);
            }
        }
    }
}

impl State {
    /// How many rows a window keeps; `None` of a state that keeps all.
    pub fn window(&self) -> Option<u64> {
        self.held.as_const().and_then(|n| u64::try_from(n).ok())
    }

    /// Bytes of one row, `None` where that overflows.
    pub fn row_bytes(&self) -> Option<u64> {
        byte_count(self.dtype, &self.row_shape)
    }
}

impl Entry {
    /// The range of `sym`, if the entry knows it.
    pub fn range(&self, sym: Sym) -> Option<SymbolRange> {
        self.symbols.iter().copied().find(|r| r.sym == sym)
    }

    /// The position of the input called `name`.
    pub fn input(&self, name: &str) -> Option<usize> {
        self.inputs.iter().position(|p| p.name == name)
    }

    /// The position of the output called `name`.
    pub fn output(&self, name: &str) -> Option<usize> {
        self.outputs.iter().position(|p| p.name == name)
    }

    /// The version for these values of the symbols, in the order of [`Entry::symbols`].
    pub fn version_for(&self, values: &[i64]) -> Option<usize> {
        let fits = |v: &Version| v.symbols.iter().zip(values).all(|(r, x)| (r.lo..=r.hi).contains(x));
        self.versions.iter().position(fits)
    }
}

impl Version {
    /// The symbols with their values in calls and in batches, where there is one new token too.
    pub fn sizes(&self, definitions: &Definitions) -> Vec<SymbolRange> {
        let mut symbols = self.symbols.clone();
        let Some(tokens) = symbols.iter_mut().find(|r| self.batches && r.sym == Sym::T && r.lo > 1) else {
            return symbols;
        };
        tokens.lo = 1;
        for (sym, definition) in definitions.iter() {
            let of = |sym| symbols.iter().find(|r| r.sym == sym).map(|r| (r.lo, r.hi));
            let range = definitions.range(definition, of);
            if let Some(((lo, hi), r)) = range.zip(symbols.iter_mut().find(|r| r.sym == *sym)) {
                (r.lo, r.hi) = (lo, hi);
            }
        }
        symbols
    }

    /// The corner points of the [values](Version::sizes) the symbols can take together, with `P + T <= max_context`;
    /// none where that leaves nothing. Symbols that follow from others are taken at their largest. A size that grows
    /// with every symbol is largest at one of them.
    pub fn corners(&self, max_context: u64, definitions: &Definitions) -> Vec<Bindings> {
        let context = i64::try_from(max_context).unwrap_or(i64::MAX);
        let symbols = self.sizes(definitions);
        let mut corners = vec![Bindings::new()];
        for r in &symbols {
            let ends = if definitions.has(r.sym) { [r.hi, r.hi] } else { [r.lo, r.hi] };
            let ends = &ends[usize::from(ends[0] == ends[1])..];
            let split = |b: &Bindings| -> Vec<Bindings> {
                ends.iter().map(|v| b.clone().into_iter().chain([(r.sym, *v)]).collect()).collect()
            };
            corners = corners.iter().flat_map(split).collect();
        }
        let least = |sym| symbols.iter().find(|r| r.sym == sym).map(|r| r.lo);
        if let (Some(least_p), Some(least_t)) = (least(Sym::P), least(Sym::T)) {
            // A corner outside the context gives way to the points where its two edges meet the limit.
            let within = |b: Bindings| -> Vec<Bindings> {
                let (p, t) = (b[&Sym::P], b[&Sym::T]);
                if p.saturating_add(t) <= context {
                    return vec![b];
                }
                let at = |p: i64, t: i64| {
                    let moved = b.iter().map(|(s, v)| (*s, *v)).chain([(Sym::P, p), (Sym::T, t)]).collect();
                    (p >= least_p && t >= least_t).then_some(moved)
                };
                let (along_p, along_t) = (at(context.saturating_sub(t), t), at(p, context.saturating_sub(p)));
                along_p.into_iter().chain(along_t).collect()
            };
            corners = corners.into_iter().flat_map(within).collect();
        }
        corners.sort();
        corners.dedup();
        corners
    }
}

/// Bytes of each token's row, where a tensor of type `ty` has as many rows as there are new tokens, and no other
/// symbol.
pub fn row_bytes(ty: &TensorType) -> Option<u64> {
    let symbolic: Vec<&Dim> = ty.shape.iter().filter(|d| d.as_const().is_none()).collect();
    let [size] = symbolic[..] else { return None };
    let ([(Sym::T, 1..)], 0) = (size.terms(), size.constant()) else { return None };
    let one = Bindings::from([(Sym::T, 1)]);
    let shape: Option<Vec<u64>> = ty.shape.iter().map(|d| u64::try_from(d.eval(&one).ok()?).ok()).collect();
    let bits = shape?.iter().try_fold(ty.dtype.bits(), |n, d| n.checked_mul(*d))?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

/// Bytes of a tensor, `None` where that overflows.
pub(crate) fn byte_count(dtype: DType, shape: &[u64]) -> Option<u64> {
    let count = shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d))?;
    Some(count.checked_mul(dtype.bits())?.div_ceil(8))
}

/// Bytes of a tensor of type `ty` under `bindings`, negative sizes counting as none; `None` where that overflows or a
/// symbol has no value.
pub fn tensor_bytes(ty: &TensorType, bindings: &Bindings) -> Option<u64> {
    let count = ty.shape.iter().try_fold(1u64, |n, d| n.checked_mul(d.eval(bindings).ok()?.max(0) as u64))?;
    Some(count.checked_mul(ty.dtype.bits())?.div_ceil(8))
}
