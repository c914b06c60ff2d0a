//! Plans: an entry flattened into kernel launches over planned memory. Plain data, made by passes, turned into an
//! artefact by the command. See `docs/src/design/program.md`.

use crate::module::{Module, Range, sizes, within};
use hadal_types::{Bindings, Dim, Sym, TensorType};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Alignment of every buffer in the arena.
pub const ALIGN: u64 = 64;

/// A whole program: kernels, what they work on, and one plan per version of an entry.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Program {
    /// The fused module: `kernel` and `fold` functions, and the graph functions that call them.
    pub module: Module,
    /// Tensors of the checkpoint, each once, in order of first use.
    pub weights: Vec<Weight>,
    /// Tensors computed from weights when compiling, each once. Later ones may use earlier ones.
    pub folds: Vec<Fold>,
    /// Tensors that live between calls, each once.
    pub states: Vec<State>,
    /// One plan per version of an entry.
    pub plans: Vec<Plan>,
}

/// A tensor of the checkpoint, or a stack of them.
#[derive(Clone, PartialEq, Debug)]
pub struct Weight {
    /// Full name; `{0..64}` in it makes a stack (see [`crate::module::expand_weight_name`]).
    pub name: String,
    /// Format and shape, without symbols.
    pub ty: TensorType,
}

/// A tensor computed from weights alone.
#[derive(Clone, PartialEq, Debug)]
pub struct Fold {
    /// The `fold` function.
    pub func: String,
    /// Which of its results.
    pub result: usize,
    /// Its arguments: weights and earlier folds.
    pub args: Vec<Place>,
    /// Format and shape, without symbols.
    pub ty: TensorType,
}

/// A tensor that lives between calls; rows are added behind those it holds, of which a window keeps the last.
#[derive(Clone, PartialEq, Debug)]
pub struct State {
    /// Full name.
    pub name: String,
    /// Format and shape of one row.
    pub row: TensorType,
    /// How many rows it holds when `P` tokens are held.
    pub held: Dim,
    /// Rows there must be room for, new ones included.
    pub rows: i64,
}

impl State {
    /// How many rows a window keeps; `None` of a state that keeps all.
    pub fn window(&self) -> Option<i64> {
        self.held.as_const()
    }
}

/// A named input or output.
#[derive(Clone, PartialEq, Debug)]
pub struct Port {
    /// Name.
    pub name: String,
    /// Format and shape.
    pub ty: TensorType,
}

/// Memory a launch works on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Place {
    /// [`Plan::buffers`] by position.
    Buffer(usize),
    /// [`Program::weights`] by position.
    Weight(usize),
    /// [`Program::folds`] by position.
    Fold(usize),
    /// [`Program::states`] by position: the old rows, then the new ones.
    State(usize),
    /// [`Plan::inputs`] by position.
    Input(usize),
    /// [`Plan::outputs`] by position.
    Output(usize),
}

/// Working memory that one value occupies for a while.
#[derive(Clone, PartialEq, Debug)]
pub struct Buffer {
    /// Format and shape of the value.
    pub ty: TensorType,
    /// First byte in the arena.
    pub offset: u64,
    /// Bytes at the largest sizes the entry allows.
    pub bytes: u64,
    /// The launch that writes it.
    pub first: usize,
    /// The last launch that reads it.
    pub last: usize,
}

impl Buffer {
    /// Whether the two are ever needed at the same time.
    pub fn overlaps_in_time(&self, other: &Buffer) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// Whether the two share bytes.
    pub fn overlaps_in_space(&self, other: &Buffer) -> bool {
        self.offset < other.offset + other.bytes && other.offset < self.offset + self.bytes
    }
}

/// One kernel, launched once.
#[derive(Clone, PartialEq, Debug)]
pub struct Launch {
    /// The kernel function.
    pub kernel: String,
    /// One per parameter of the kernel, then one per result.
    pub args: Vec<Place>,
    /// Places in the model it came from, with the layer's prefix.
    pub origin: Vec<String>,
}

/// What one version of an entry runs.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Plan {
    /// The entry's name.
    pub entry: String,
    /// Values the symbols may take.
    pub ranges: BTreeMap<Sym, Range>,
    /// Most rows a state can hold: `P + T` never exceeds it.
    pub max_context: i64,
    /// What the caller gives.
    pub inputs: Vec<Port>,
    /// What the caller receives.
    pub outputs: Vec<Port>,
    /// Working memory.
    pub buffers: Vec<Buffer>,
    /// Bytes of working memory in all.
    pub arena_bytes: u64,
    /// The most bytes needed by any one launch: no plan could use less.
    pub lower_bound: u64,
    /// What runs, in order.
    pub launches: Vec<Launch>,
}

impl Plan {
    /// The states that are given new rows.
    pub fn appended(&self) -> BTreeSet<usize> {
        let states = self.launches.iter().flat_map(|l| l.args.iter().enumerate().map(move |(i, a)| (&l.args[..i], a)));
        // What a launch writes stands behind what it reads.
        let written = states.filter_map(|(before, a)| match a {
            Place::State(s) if before.contains(a) => Some(*s),
            _ => None,
        });
        written.collect()
    }
}

impl Program {
    /// The plan of an entry's first version.
    pub fn plan(&self, entry: &str) -> Option<&Plan> {
        self.versions(entry).next()
    }

    /// The plans of all versions of an entry, in order.
    pub fn versions(&self, entry: &str) -> impl Iterator<Item = &Plan> {
        self.plans.iter().filter(move |p| p.entry == entry)
    }

    /// The plan of the version of an entry for these values of its symbols, if it has one.
    pub fn plan_for(&self, entry: &str, values: &Bindings) -> Option<&Plan> {
        self.versions(entry).find(|p| within(&p.ranges, values))
    }

    /// The values that symbols take where `kernel` is launched (see [`sizes`]).
    pub fn ranges(&self, kernel: &str) -> BTreeMap<Sym, Range> {
        let mut all: BTreeMap<Sym, Range> = BTreeMap::new();
        for plan in self.plans.iter().filter(|p| p.launches.iter().any(|l| l.kernel == kernel)) {
            for (sym, range) in sizes(&self.module.definitions, &plan.ranges) {
                let known = all.entry(sym).or_insert(range);
                *known = Range { min: known.min.min(range.min), max: known.max.max(range.max) };
            }
        }
        all
    }

    /// Bytes of working memory that every entry can share.
    pub fn arena_bytes(&self) -> u64 {
        self.plans.iter().map(|p| p.arena_bytes).max().unwrap_or(0)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Buffer(i) => write!(f, "b{i}"),
            Place::Weight(i) => write!(f, "weight{i}"),
            Place::Fold(i) => write!(f, "fold{i}"),
            Place::State(i) => write!(f, "state{i}"),
            Place::Input(i) => write!(f, "in{i}"),
            Place::Output(i) => write!(f, "out{i}"),
        }
    }
}

fn list<T: fmt::Display>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

/// Everything but the kernels themselves: weights, folds, states and plans.
impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, w) in self.weights.iter().enumerate() {
            writeln!(f, "weight{i} = {:?} : {}", w.name, w.ty)?;
        }
        for (i, fold) in self.folds.iter().enumerate() {
            writeln!(f, "fold{i} = @{}({}) result {} : {}", fold.func, list(&fold.args), fold.result, fold.ty)?;
        }
        for (i, s) in self.states.iter().enumerate() {
            writeln!(f, "state{i} = {:?} : {} in {} x {}", s.name, s.held, s.rows, s.row)?;
        }
        self.plans.iter().try_for_each(|p| write!(f, "{p}"))
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "plan {}", self.entry)?;
        for (i, (sym, range)) in self.ranges.iter().enumerate() {
            let is = if range.min == range.max { "=" } else { "in" };
            write!(f, "{} {sym} {is} {range}", if i > 0 { "," } else { " where" })?;
        }
        writeln!(f, " context {} {{", self.max_context)?;
        for (kind, ports) in [("in", &self.inputs), ("out", &self.outputs)] {
            for (i, p) in ports.iter().enumerate() {
                writeln!(f, "  {kind}{i} = {:?} : {}", p.name, p.ty)?;
            }
        }
        writeln!(f, "  arena {} bytes, at least {}", self.arena_bytes, self.lower_bound)?;
        for (i, b) in self.buffers.iter().enumerate() {
            let (end, ty) = (b.offset + b.bytes, &b.ty);
            writeln!(f, "  b{i} = {}..{end} for {}..{} : {ty}", b.offset, b.first, b.last)?;
        }
        for (i, l) in self.launches.iter().enumerate() {
            write!(f, "  {i}: @{}({})", l.kernel, list(&l.args))?;
            if !l.origin.is_empty() {
                let origin: Vec<String> = l.origin.iter().map(|o| format!("{o:?}")).collect();
                write!(f, " from {}", origin.join(", "))?;
            }
            writeln!(f)?;
        }
        writeln!(f, "}}")
    }
}
