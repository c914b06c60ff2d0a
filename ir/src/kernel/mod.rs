//! Kernel IR: what one launch does, as structured loops over typed buffers and SSA values.
//!
//! A [`Kernel`] runs once per *grid index*. It names buffers in global memory (parameters), the symbols whose
//! values it needs, and a body of nested blocks. The same text feeds every code generator; [`interpret`] is the
//! reference that says what it means, [`verify`] says whether it is well formed, [`text`] prints and parses it.
//! `docs/src/design/kernel-ir.md` is the page to read first.
//!
//! # Layout of the data
//!
//! Values are numbers into one arena of types ([`Kernel::values`]); statements nest in plain vectors. Every value
//! is defined exactly once, and the arena is in order of definition (a loop's results come after its body), so
//! equal kernels compare equal and printing is stable.
//!
//! # Meaning of operations
//!
//! - Integers wrap; `div` and `rem` truncate and fault on zero; shift counts are taken modulo the width.
//! - `min(a, b)` is `a < b ? a : b` and `max(a, b)` is `a > b ? a : b`, floats included: where an operand is NaN
//!   the result is `b`. One instruction on every target.
//! - f32 arithmetic rounds once per operation; `fma` rounds once. A NaN result has no particular bits.
//! - `cast` of a float to an integer truncates and saturates, NaN gives 0. To a narrower float it rounds to nearest
//!   even; the 8- and 4-bit formats saturate. Any format goes to f32 exactly (i64, i32 and f64 round).
//! - `bitcast` between formats of different widths regroups lanes: the first lane holds the lowest bits. Packed formats
//!   are only its operand: pairs of lanes are bytes again, as they lay in memory.
//! - `dot(a, b, c)` adds to each lane of `c` the products of as many neighbouring lanes of `a` and `b` ([`dot_group`]).
//!   Bytes: the sum wraps at 32 bits, nothing saturates. bf16: two steps of multiply-add, the odd lanes first, each
//!   rounded once to nearest even; operands that are subnormal count as zero of their sign, and so does a result
//!   whose magnitude, rounded as if exponents had no limit, is below 2^-126. It is what AVX-512's instruction does.
//! - `matrix(a, b, c)` adds to a tile of 16 by 8 sums the products of 16 rows of `a` and 8 rows of `b`, 32 bf16 each
//!   ([`matrix_place`] says which lane is which element). It has two steps, of which each adds the exact products of 16
//!   elements of a row in f64, then the sum so far, and rounds once to f32. What a GPU's tensor cores compute differs from
//!   that by the rounding of sums inside of a step.
//! - `lookup` takes from a table of sixteen bytes the one that the low four bits of each lane number.
//! - `zip_low` and `zip_high` take lanes of two vectors in turn, from their first or their second halves: four rounds
//!   of both turn sixteen vectors of sixteen lanes.
//! - `rank` counts for each lane those before it that are true: where it goes if what is true is put side by side.
//! - A lane reduction combines halves, `x[i] ∘ x[i + n/2]`, until one lane is left. One of `rows` combines neighbours of
//!   each row of a tile of sums, `x[i] ∘ x[i + 1]`, until one of eight is left.

pub mod arbitrary;
mod build;
pub mod interpret;
pub mod text;
pub mod verify;

#[cfg(test)]
mod tests;

pub use build::Builder;

use hadal_types::{DType, Dim, Sym};
use std::fmt;

/// The type of an SSA value: a scalar (one lane) or a vector.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ValueType {
    /// Format of each lane.
    pub elem: DType,
    /// Number of lanes, a power of two.
    pub lanes: u32,
}

impl ValueType {
    /// 64-bit index.
    pub const INDEX: ValueType = ValueType::scalar(DType::I64);

    /// One lane of `elem`.
    pub const fn scalar(elem: DType) -> Self {
        ValueType { elem, lanes: 1 }
    }

    /// `lanes` lanes of `elem`.
    pub const fn vector(elem: DType, lanes: u32) -> Self {
        ValueType { elem, lanes }
    }

    /// The same number of lanes in another format.
    pub const fn with_elem(self, elem: DType) -> Self {
        ValueType { elem, lanes: self.lanes }
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.lanes {
            1 => write!(f, "{}", self.elem),
            n => write!(f, "{}x{n}", self.elem),
        }
    }
}

impl fmt::Debug for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An SSA value: an index into [`Kernel::values`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value(pub u32);

impl Value {
    /// Position in the arena.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "%{}", self.0)
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A buffer: a parameter or an allocation of this kernel.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Buf {
    /// Index into [`Kernel::params`].
    Param(u32),
    /// Index into [`Kernel::allocs`].
    Alloc(u32),
}

/// What a kernel does with a parameter.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Access {
    /// Only loads. Nothing else writes the buffer while the kernel runs.
    Read,
    /// Only stores; every element read later by someone else is stored.
    Write,
    /// Loads and stores: states, and buffers updated in place.
    ReadWrite,
}

/// A buffer in global memory, row-major.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Param {
    /// Name, unique among the kernel's buffers.
    pub name: String,
    /// Element format.
    pub dtype: DType,
    /// Sizes, outermost first; none for a single element.
    pub shape: Vec<Dim>,
    /// What the kernel does with it.
    pub access: Access,
    /// What its address is a multiple of in bytes, besides its elements' size: a fact about every launch.
    pub align: u32,
}

/// Where an allocation lives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Space {
    /// Private to the grid index, or to the warp where the allocation stands inside of a loop over warps.
    Local,
    /// Common to the warps of a grid index.
    Shared,
    /// Barriers, common to the warps of a grid index: each element completes a *phase* whenever so many warps have arrived,
    /// and begins the next one. Elements are i64 that only [`TeamOp::Arrive`] and [`TeamOp::Wait`] touch.
    Barrier(u32),
}

/// How a shared tile's 16-byte units are permuted within rows, so that a column is read without bank conflicts.
/// Transparent to indices: only code generators look at it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum Swizzle {
    /// Plain row-major.
    #[default]
    None,
    /// Within 32 bytes.
    B32,
    /// Within 64 bytes.
    B64,
    /// Within 128 bytes.
    B128,
}

/// A buffer that lives while its block runs; uninitialised at the start.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Alloc {
    /// Name, unique among the kernel's buffers.
    pub name: String,
    /// Element format.
    pub dtype: DType,
    /// Sizes; at most one of them depends on symbols.
    pub shape: Vec<Dim>,
    /// Where it lives.
    pub space: Space,
    /// Layout of shared tiles.
    pub swizzle: Swizzle,
}

/// How the iterations of a loop run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum LoopKind {
    /// One after the other.
    Serial,
    /// One after the other, expanded by the code generator; bounds are constants.
    Unroll,
    /// One per warp of a block, all at the same time; carries nothing. Four neighbours, from a multiple of four on, are a
    /// *warpgroup*. On a CPU one after the other.
    Warp,
}

/// A constant. Floats are kept as bits so that equality is exact.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Const {
    /// Truth value.
    Bool(bool),
    /// 32-bit integer.
    I32(i32),
    /// 64-bit integer.
    I64(i64),
    /// Bits of an f32.
    F32(u32),
}

impl Const {
    /// Its format.
    pub const fn dtype(self) -> DType {
        match self {
            Const::Bool(_) => DType::Bool,
            Const::I32(_) => DType::I32,
            Const::I64(_) => DType::I64,
            Const::F32(_) => DType::F32,
        }
    }
}

/// Operations of one operand, lane by lane.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum UnaryOp {
    /// Negation.
    Neg,
    /// Absolute value.
    Abs,
    /// Complement of every bit, or of a truth value.
    Not,
    /// Square root, correctly rounded.
    Sqrt,
    /// Towards minus infinity.
    Floor,
    /// The smallest power of two that is not below; see the map of this name.
    Pow2Ceil,
    /// e to the power.
    Exp,
    /// 2 to the power; 0 where that is less than the smallest normal number. One instruction of GPUs.
    Exp2,
    /// Natural logarithm.
    Log,
    /// Sine of radians.
    Sin,
    /// Cosine of radians.
    Cos,
    /// Hyperbolic tangent.
    Tanh,
    /// Error function.
    Erf,
}

/// Operations of two operands, lane by lane.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum BinaryOp {
    /// Sum.
    Add,
    /// Difference.
    Sub,
    /// Product.
    Mul,
    /// Quotient.
    Div,
    /// Remainder of an integer division, with the sign of the dividend.
    Rem,
    /// The smaller one.
    Min,
    /// The larger one.
    Max,
    /// Bitwise and, or of truth values.
    And,
    /// Bitwise or, or of truth values.
    Or,
    /// Bitwise exclusive or, or of truth values.
    Xor,
    /// Shift left.
    Shl,
    /// Shift right, copying the sign.
    Shr,
    /// Shift right, filling with zeros.
    Ushr,
}

/// Comparisons, lane by lane; every one but `Ne` is false for NaN.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum CompareOp {
    /// Equal.
    Eq,
    /// Not equal.
    Ne,
    /// Less.
    Lt,
    /// Less or equal.
    Le,
    /// Greater.
    Gt,
    /// Greater or equal.
    Ge,
}

/// How lanes are combined by a reduction.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ReduceOp {
    /// Sum.
    Add,
    /// Product.
    Mul,
    /// Smallest.
    Min,
    /// Largest.
    Max,
}

impl ReduceOp {
    /// The operation that combines two lanes.
    pub const fn binary(self) -> BinaryOp {
        match self {
            ReduceOp::Add => BinaryOp::Add,
            ReduceOp::Mul => BinaryOp::Mul,
            ReduceOp::Min => BinaryOp::Min,
            ReduceOp::Max => BinaryOp::Max,
        }
    }
}

/// An element, or the first of a run of elements along the last dimension.
///
/// The last index may be a vector of m lanes, in an access of a multiple of m lanes: each of its lanes begins a run of as
/// many elements as there are for each. Not of packed formats.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Place {
    /// The buffer.
    pub buf: Buf,
    /// One index per dimension.
    pub index: Vec<Value>,
}

/// Half of a vector.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Half {
    /// The first lanes.
    Low,
    /// The last lanes.
    High,
}

impl Half {
    /// Its first lane in a vector of so many.
    pub fn first(self, lanes: u32) -> u32 {
        match self {
            Half::Low => 0,
            Half::High => lanes / 2,
        }
    }
}

/// What computes a value.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Op {
    /// A constant scalar.
    Const(Const),
    /// The coordinate of this grid index in one dimension of the grid.
    GridIndex(u32),
    /// The value of a symbol.
    Symbol(Sym),
    /// Lane-wise, one operand.
    Unary(UnaryOp, Value),
    /// Lane-wise, two operands of one type.
    Binary(BinaryOp, Value, Value),
    /// Lane-wise comparison giving `bool` lanes.
    Compare(CompareOp, Value, Value),
    /// `a * b + c`, rounded once.
    Fma(Value, Value, Value),
    /// Products of groups of neighbouring lanes, added to the last operand.
    Dot(Value, Value, Value),
    /// Products of rows of the first two operands, added to a tile of sums.
    Matrix(Value, Value, Value),
    /// The bytes of a table that lanes number by their low four bits.
    Lookup([u8; 16], Value),
    /// Lanes of two vectors in turn, from the halves that come first, or from those that come last.
    Zip(Half, Value, Value),
    /// The second operand where the first is true, else the third.
    Select(Value, Value, Value),
    /// Conversion to another format.
    Cast(Value),
    /// The same bits as another format, in as many lanes as they make.
    Bitcast(Value),
    /// A scalar in every lane.
    Splat(Value),
    /// One lane.
    Extract(Value, u32),
    /// 0, 1, 2, … by lane.
    Iota,
    /// How many of the lanes before are true.
    Rank(Value),
    /// All lanes combined.
    Reduce(ReduceOp, Value),
    /// The eight elements of each row of a tile of sums combined, in all of them.
    Rows(ReduceOp, Value),
    /// Consecutive elements. Lanes where the mask is false touch no memory and take `fill` (zero without one).
    Load {
        /// First element.
        place: Place,
        /// Lanes to read; all without one.
        mask: Option<Value>,
        /// Value of masked-off lanes.
        fill: Option<Value>,
    },
}

/// How many lanes of `a` and `b` make one lane of the sum `c` in a dot product; `None` where there is no such product.
pub fn dot_group(a: DType, b: DType, c: DType) -> Option<u32> {
    match (a, b, c) {
        (DType::BF16, DType::BF16, DType::F32) => Some(2),
        (DType::U8 | DType::I8, DType::I8, DType::I32) => Some(4),
        _ => None,
    }
}

/// The operands of [`Op::Matrix`]: rows of two factors, and a tile of sums.
pub const MATRIX: [ValueType; 3] =
    [ValueType::vector(DType::BF16, 512), ValueType::vector(DType::BF16, 256), ValueType::vector(DType::F32, 128)];

/// Row and column of a lane of an operand of [`Op::Matrix`], by the operand's number. Each 32nd of a vector is one of
/// eight rows' quarter, that of row n of `a` and of `c` followed by that of row n + 8: lanes as a warp holds them.
pub const fn matrix_place(operand: usize, lane: u32) -> (u32, u32) {
    // Lanes of an operand in each quarter of a row, and of a 32nd.
    let (run, runs) = [(8, 2), (8, 1), (2, 2)][operand];
    let (quarter, second) = (lane / run / runs, lane / run % runs);
    (quarter / 4 + 8 * second, quarter % 4 * run + lane % run)
}

/// Statements followed by the values the block gives to what encloses it.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Block {
    /// In order of execution.
    pub stmts: Vec<Stmt>,
    /// Next carried values of a loop, or results of an `if`.
    pub yields: Vec<Value>,
}

/// What warps tell each other, and wait for. See [`Space::Barrier`].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum TeamOp {
    /// One arrival of this warp: all it did before is done before what follows a wait for this phase.
    Arrive(Place),
    /// Waits until the phase of this parity is complete; the first phase has parity 0. Only the lowest bit counts.
    Wait {
        /// The barrier.
        place: Place,
        /// Lowest bit of the number of the phase.
        parity: Value,
    },
    /// Ends the current group of this warp's copies.
    Commit,
    /// Waits until at most so many of this warp's groups of copies are unfinished.
    AwaitCopies(u32),
    /// What this warp wrote to shared memory before, copies that it waited for included, can be read by a [`Wgmma`] after
    /// the next barrier.
    FenceAsync,
    /// How many registers each thread of the warp has from here on: a multiple of 8 from 24 to 240, the same for all warps
    /// of a warpgroup, in the one branch that it takes. Says nothing about what is computed.
    Registers(u32),
}

/// An asynchronous copy of as many runs as `from` and `to` have, into zero bytes and up.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct AsyncCopy {
    /// Where runs are written, in a shared allocation.
    pub to: Place,
    /// Where they are read, in a parameter.
    pub from: Place,
    /// Elements of all runs together.
    pub lanes: u32,
    /// How many elements of each run are read, zeros for the rest; all without one.
    pub counts: Option<Value>,
}

/// A product of tiles in shared memory by the four warps of a warpgroup: of 64 rows of `a`, of which each warp has sixteen
/// in order, and 8 rows of `b` for each result. The results are *open* until they are settled: nothing but another product
/// may use them, and the tiles are read at any time until then.
///
/// Rows are as long as the swizzle of their allocations, 128 bytes, and are multiplied from the places' elements on. A
/// step takes 32 bytes of each: the exact products are added in f64, then the sum so far, and rounded once to f32.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Wgmma {
    /// Sums of this warp's rows, by eight columns, as [`Op::Matrix`] has them.
    pub results: Vec<Value>,
    /// What they are added to; zeros without.
    pub sums: Vec<Value>,
    /// The warpgroup's rows.
    pub a: WgmmaRows,
    /// First element of the columns.
    pub b: Place,
    /// Where columns lie across: rows of `b` are what is summed over, 64 columns each, and so many elements after the
    /// first of 64 columns is that of the next 64. Of bf16.
    pub panels: Option<u32>,
    /// Elements of a row.
    pub depth: u32,
}

/// The first factor of a [`Wgmma`].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum WgmmaRows {
    /// From an element of a tile on.
    Tile(Place),
    /// This warp's rows as [`WGMMA_VALUES`], eight elements of each row after the other.
    Values(Vec<Value>),
}

/// Sixteen rows of eight elements, in the order that [`Op::Matrix`] has sums.
pub const WGMMA_VALUES: ValueType = ValueType::vector(DType::BF16, 128);

/// Bytes of a row that a step of [`Wgmma`] multiplies.
pub const WGMMA_STEP: u64 = 32;

/// Waits until at most `pending` of this warp's products are open. Each result is what the product whose result is given
/// has computed.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Settle {
    /// Sums that may be used.
    pub results: Vec<Value>,
    /// Results of a product.
    pub open: Vec<Value>,
    /// Products that may stay open, the latest ones.
    pub pending: u32,
}

/// One step of a block.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Stmt {
    /// Defines a value.
    Let(Value, Op),
    /// Writes consecutive elements; masked-off lanes touch no memory.
    Store {
        /// First element.
        place: Place,
        /// What to write.
        value: Value,
        /// Lanes to write; all without one.
        mask: Option<Value>,
    },
    /// Asks for the element's cache line ahead of time. It may lie outside the buffer: nothing is read, and nothing
    /// depends on it.
    Prefetch(Place),
    /// Brings an allocation into being, uninitialised. Index into [`Kernel::allocs`].
    Alloc(u32),
    /// A loop.
    For(Box<For>),
    /// A choice.
    If(Box<If>),
    /// Tells other warps something, or waits for them.
    Team(TeamOp),
    /// Starts a copy to shared memory.
    Copy(Box<AsyncCopy>),
    /// Starts a product of tiles.
    Wgmma(Box<Wgmma>),
    /// Waits for products.
    Settle(Box<Settle>),
}

/// `var` runs from `lo` while below `hi` in steps of `step`. Each carried value starts as its `init` and becomes
/// what the body yields; after the last iteration it is the result.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct For {
    /// How iterations run.
    pub kind: LoopKind,
    /// The counter, an i64.
    pub var: Value,
    /// First value of the counter.
    pub lo: Value,
    /// Bound, exclusive.
    pub hi: Value,
    /// Positive stride.
    pub step: i64,
    /// Values carried from one iteration to the next, inside the body.
    pub carried: Vec<Value>,
    /// Where they start.
    pub init: Vec<Value>,
    /// The iteration.
    pub body: Block,
    /// What the carried values are at the end.
    pub results: Vec<Value>,
}

/// Runs one of two blocks; the results are what it yields.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct If {
    /// A scalar truth value.
    pub cond: Value,
    /// Where true.
    pub then: Block,
    /// Where false.
    pub otherwise: Block,
    /// What the chosen block yields.
    pub results: Vec<Value>,
}

/// One launch.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Kernel {
    /// Name, an identifier.
    pub name: String,
    /// Symbols whose values the launch passes, in this order.
    pub symbols: Vec<Sym>,
    /// Buffers in global memory, in the order of the launch's arguments.
    pub params: Vec<Param>,
    /// Number of grid indices along each dimension; the product is the number of runs, the last varies fastest.
    pub grid: Vec<Dim>,
    /// Types of all values, in order of definition.
    pub values: Vec<ValueType>,
    /// Allocations, each brought into being by one [`Stmt::Alloc`].
    pub allocs: Vec<Alloc>,
    /// What one grid index does.
    pub body: Block,
}

/// Alignment in bytes of every allocation.
pub const ALLOC_ALIGN: u64 = 64;

/// Alignment in bytes of allocations that are swizzled: eight rows.
pub const SWIZZLE_ALIGN: u64 = 1024;

impl Kernel {
    /// The type of a value.
    pub fn ty(&self, value: Value) -> ValueType {
        self.values[value.index()]
    }

    /// Name, format and shape of a buffer.
    pub fn buffer(&self, buf: Buf) -> (&str, DType, &[Dim]) {
        match buf {
            Buf::Param(i) => {
                let p = &self.params[i as usize];
                (&p.name, p.dtype, &p.shape)
            }
            Buf::Alloc(i) => {
                let a = &self.allocs[i as usize];
                (&a.name, a.dtype, &a.shape)
            }
        }
    }

    /// Whether it multiplies tiles, accesses runs or has warps wait for each other: what is written for GPUs.
    pub fn is_for_warps(&self) -> bool {
        fn of(kernel: &Kernel, block: &Block) -> bool {
            let runs = |place: &Place| place.index.last().is_some_and(|v| kernel.ty(*v).lanes > 1);
            block.stmts.iter().any(|stmt| match stmt {
                Stmt::Let(_, Op::Matrix(..) | Op::Rank(_) | Op::Rows(..)) => true,
                Stmt::Let(_, Op::Load { place, .. }) | Stmt::Store { place, .. } => runs(place),
                Stmt::For(l) => of(kernel, &l.body),
                Stmt::If(c) => of(kernel, &c.then) || of(kernel, &c.otherwise),
                Stmt::Team(_) | Stmt::Copy(_) | Stmt::Wgmma(_) | Stmt::Settle(_) => true,
                Stmt::Alloc(i) => matches!(kernel.allocs[*i as usize].space, Space::Barrier(_)),
                Stmt::Let(..) | Stmt::Prefetch(_) => false,
            })
        }
        of(self, &self.body)
    }

    /// Bytes of scratch memory one worker needs for all allocations, each aligned to [`ALLOC_ALIGN`]; an upper bound
    /// where sizes depend on symbols. `None` where a size is no affine form.
    pub fn scratch_bytes(&self) -> Option<Dim> {
        self.allocs.iter().try_fold(Dim::from(0i64), |sum, a| Some(sum + a.bytes()?))
    }
}

impl Alloc {
    /// What its address is a multiple of, in bytes.
    pub fn align(&self) -> u64 {
        if self.swizzle == Swizzle::None { ALLOC_ALIGN } else { SWIZZLE_ALIGN }
    }

    /// Bytes including padding to the alignment; `None` where the size is no affine form.
    pub fn bytes(&self) -> Option<Dim> {
        let count = self.shape.iter().try_fold(Dim::from(1i64), |n, d| n.checked_mul(d))?;
        let bits = count * self.dtype.bits() as i64;
        let align = self.align() as i64;
        Some(match bits.as_const() {
            Some(n) => Dim::from((n.max(0) as u64).div_ceil(8).next_multiple_of(self.align()) as i64),
            None => bits.div_exact(8).unwrap_or(bits) + (align - 1),
        })
    }
}

impl Op {
    /// Calls `f` with every operand.
    pub fn for_each_operand(&self, mut f: impl FnMut(Value)) {
        self.clone().map_operands(|v| {
            f(v);
            v
        });
    }

    /// The same operation with operands replaced by what `f` gives.
    pub fn map_operands(self, mut f: impl FnMut(Value) -> Value) -> Op {
        match self {
            Op::Const(_) | Op::GridIndex(_) | Op::Symbol(_) | Op::Iota => self,
            Op::Unary(op, a) => Op::Unary(op, f(a)),
            Op::Binary(op, a, b) => Op::Binary(op, f(a), f(b)),
            Op::Compare(op, a, b) => Op::Compare(op, f(a), f(b)),
            Op::Fma(a, b, c) => Op::Fma(f(a), f(b), f(c)),
            Op::Dot(a, b, c) => Op::Dot(f(a), f(b), f(c)),
            Op::Matrix(a, b, c) => Op::Matrix(f(a), f(b), f(c)),
            Op::Lookup(table, a) => Op::Lookup(table, f(a)),
            Op::Zip(half, a, b) => Op::Zip(half, f(a), f(b)),
            Op::Select(c, a, b) => Op::Select(f(c), f(a), f(b)),
            Op::Cast(a) => Op::Cast(f(a)),
            Op::Bitcast(a) => Op::Bitcast(f(a)),
            Op::Splat(a) => Op::Splat(f(a)),
            Op::Rank(a) => Op::Rank(f(a)),
            Op::Extract(a, lane) => Op::Extract(f(a), lane),
            Op::Reduce(op, a) => Op::Reduce(op, f(a)),
            Op::Rows(op, a) => Op::Rows(op, f(a)),
            Op::Load { place, mask, fill } => {
                let place = place.map(&mut f);
                Op::Load { place, mask: mask.map(&mut f), fill: fill.map(&mut f) }
            }
        }
    }
}

impl Wgmma {
    /// The places of factors in shared memory.
    pub fn tiles(&self) -> impl Iterator<Item = &Place> {
        let rows = match &self.a {
            WgmmaRows::Tile(place) => Some(place),
            WgmmaRows::Values(_) => None,
        };
        rows.into_iter().chain([&self.b])
    }
}

impl Place {
    /// The same place with indices replaced by what `f` gives.
    pub fn map(self, f: impl FnMut(Value) -> Value) -> Place {
        Place { buf: self.buf, index: self.index.into_iter().map(f).collect() }
    }
}
