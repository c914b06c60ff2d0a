//! The decoded form: what runs. Registers are indices, labels are positions, nothing is looked up by name.

use crate::alu::compare::Comparison;
use crate::alu::convert::Conversion;
use crate::alu::{Function, Mode};
use crate::float::approx::Approx;
use crate::matrix::{Fragment, Matrix, Product};
use crate::report::Flops;
use crate::syntax::Bounds;
use crate::types::{Space, Type};

pub(crate) type Reg = u32;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Src {
    Reg(Reg),
    Imm(u64),
}

/// `base + offset`; 32-bit bases wrap at 32 bits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Address {
    pub base: Option<Reg>,
    pub offset: u64,
    pub narrow: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Bool {
    And,
    Or,
    Xor,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Special {
    Tid(usize),
    Ntid(usize),
    Ctaid(usize),
    Nctaid(usize),
    Clusterid(usize),
    Nclusterid(usize),
    ClusterCtaid(usize),
    ClusterNctaid(usize),
    ClusterRank,
    ClusterSize,
    Lane,
    Warp,
    Warps,
    Multiprocessor,
    Multiprocessors,
    Grid,
    Clock,
    LanesEq,
    LanesLt,
    LanesLe,
    LanesGt,
    LanesGe,
    DynamicShared,
    TotalShared,
    ExplicitCluster,
}

/// The order an access gives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Order {
    Weak,
    Relaxed,
    Acquire,
    Release,
    AcquireRelease,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Scope {
    Block,
    Cluster,
    Device,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum AtomicOp {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Inc,
    Dec,
    Exch,
    Cas,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ShuffleMode {
    Up,
    Down,
    Butterfly,
    Index,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum VoteMode {
    All,
    Any,
    Uniform,
    Ballot,
}

/// What a wait on an mbarrier asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Phase {
    State(Src),
    Parity(Src),
}

/// How a bulk copy tells that it is done.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Completion {
    Barrier(Address),
    Group,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reduction {
    Store,
    Op(AtomicOp),
}

#[derive(Clone, Debug)]
pub(crate) enum Op {
    Nothing,
    Alu {
        function: Function,
        mode: Mode,
        d: Reg,
        s: [Src; 3],
    },
    Approx {
        which: Approx,
        flush: bool,
        d: Reg,
        a: Src,
    },
    Insert {
        d: Reg,
        s: [Src; 4],
        bits: u32,
    },
    /// `extend` is the width to which a signed result is extended, if it is narrower than its register.
    Convert {
        conversion: Conversion,
        d: Reg,
        extend: u32,
        a: Src,
        b: Src,
    },
    Move {
        d: Reg,
        a: Src,
    },
    Pack {
        d: Reg,
        parts: Box<[Src]>,
        bits: u32,
    },
    Unpack {
        d: Box<[Option<Reg>]>,
        a: Src,
        bits: u32,
    },
    Select {
        d: Reg,
        a: Src,
        b: Src,
        p: Src,
    },
    Special {
        d: Reg,
        which: Special,
    },
    Compare {
        comparison: Comparison,
        p: Option<Reg>,
        q: Option<Reg>,
        a: Src,
        b: Src,
        with: Option<(Bool, Src, bool)>,
    },
    SetTo {
        comparison: Comparison,
        d: Reg,
        a: Src,
        b: Src,
        ones: u64,
    },
    Carry {
        d: Reg,
        a: Src,
        b: Src,
        carry: Reg,
        subtract: bool,
        takes: bool,
        gives: bool,
        bits: u32,
    },
    ToGeneric {
        d: Reg,
        a: Src,
        space: Space,
    },
    FromGeneric {
        d: Reg,
        a: Src,
        space: Space,
    },
    IsSpace {
        d: Reg,
        a: Src,
        space: Space,
    },
    MapBlock {
        d: Reg,
        a: Src,
        rank: Src,
        generic: bool,
    },
    BlockRank {
        d: Reg,
        a: Src,
    },
    Branch {
        target: u32,
    },
    Call {
        target: u32,
        give: Box<[(u32, u32, u32)]>,
        take: Box<[(u32, u32, u32)]>,
    },
    Return,
    Exit,
    Trap,
    Load {
        space: Space,
        address: Address,
        d: Box<[Option<Reg>]>,
        ty: Type,
        widths: u32,
        order: Order,
        scope: Scope,
    },
    Store {
        space: Space,
        address: Address,
        s: Box<[Src]>,
        ty: Type,
        order: Order,
        scope: Scope,
    },
    Atomic {
        op: AtomicOp,
        space: Space,
        address: Address,
        d: Option<Reg>,
        s: [Src; 2],
        ty: Type,
        order: Order,
        scope: Scope,
    },
    Fence {
        scope: Scope,
    },
    FenceAsync {
        shared: bool,
        global: bool,
    },
    FenceBarrierInit,
    Shuffle {
        mode: ShuffleMode,
        d: Reg,
        p: Option<Reg>,
        s: [Src; 3],
        mask: Src,
    },
    Vote {
        mode: VoteMode,
        d: Reg,
        a: Src,
        negate: bool,
        mask: Src,
    },
    Match {
        all: bool,
        d: Reg,
        p: Option<Reg>,
        a: Src,
        mask: Src,
    },
    Reduce {
        op: AtomicOp,
        signed: bool,
        d: Reg,
        a: Src,
        mask: Src,
    },
    ActiveMask {
        d: Reg,
    },
    Elect {
        d: Option<Reg>,
        p: Reg,
        mask: Src,
    },
    WarpSync {
        mask: Src,
    },
    Barrier {
        id: Src,
        count: Option<Src>,
        wait: bool,
        aligned: bool,
    },
    BarrierReduce {
        id: Src,
        count: Option<Src>,
        d: Reg,
        a: Src,
        negate: bool,
        mode: Option<Bool>,
    },
    ClusterArrive {
        relaxed: bool,
    },
    ClusterWait,
    BarrierInit {
        space: Space,
        address: Address,
        count: Src,
    },
    BarrierInvalidate {
        space: Space,
        address: Address,
    },
    BarrierArrive {
        space: Space,
        address: Address,
        d: Option<Reg>,
        count: Src,
        expect: Option<Src>,
        complete: bool,
        drop: bool,
        relaxed: bool,
    },
    BarrierExpect {
        space: Space,
        address: Address,
        bytes: Src,
    },
    BarrierComplete {
        space: Space,
        address: Address,
        bytes: Src,
    },
    BarrierTest {
        space: Space,
        address: Address,
        d: Reg,
        phase: Phase,
        blocks: bool,
        relaxed: bool,
    },
    BarrierPending {
        d: Reg,
        a: Src,
    },
    CopyAsync {
        to: Address,
        from: Address,
        bytes: u32,
        given: Option<Src>,
        ignore: Option<Src>,
    },
    CopyCommit,
    CopyWait {
        left: u32,
    },
    CopyArrive {
        space: Space,
        address: Address,
        extra: bool,
    },
    BulkCopy {
        to: Address,
        to_space: Space,
        from: Address,
        from_space: Space,
        bytes: Src,
        done: Completion,
        blocks: Option<Src>,
        reduce: Option<(AtomicOp, Type)>,
    },
    TensorLoad {
        to: Address,
        map: Address,
        at: Box<[Src]>,
        barrier: Address,
        blocks: Option<Src>,
    },
    TensorStore {
        from: Address,
        map: Address,
        at: Box<[Src]>,
        reduce: Reduction,
    },
    BulkCommit,
    BulkWait {
        left: u32,
        read: bool,
    },
    LoadMatrix {
        space: Space,
        address: Address,
        d: Box<[Reg]>,
        transposed: bool,
    },
    StoreMatrix {
        space: Space,
        address: Address,
        s: Box<[Src]>,
        transposed: bool,
    },
    Mma {
        product: Product,
        d: Box<[Reg]>,
        a: Box<[Src]>,
        b: Box<[Src]>,
        c: Box<[Src]>,
    },
    WgmmaFence,
    WgmmaCommit,
    WgmmaWait {
        left: u32,
    },
    Wgmma {
        product: Product,
        d: Box<[Reg]>,
        a: Fragment,
        b: Matrix,
        scale_d: (Src, bool),
        negate: [bool; 2],
    },
    SetMaxRegisters {
        count: u32,
        increase: bool,
    },
}

#[derive(Clone, Debug)]
pub(crate) struct Inst {
    pub op: Op,
    pub guard: Option<(Reg, bool)>,
    pub line: u32,
    pub opcode: u32,
    /// Registers read, the guard among them.
    pub reads: Box<[Reg]>,
    pub writes: Box<[Reg]>,
    /// Whether registers that nothing wrote make the result undefined instead of being a fault.
    pub passes: bool,
    pub flops: Option<Flops>,
}

/// A kernel with the functions that it calls.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub name: String,
    pub insts: Vec<Inst>,
    /// Their names, for messages.
    pub registers: Vec<Box<str>>,
    pub opcodes: Vec<Box<str>>,
    pub params: Vec<(u32, u32, u32)>,
    pub param_bytes: u32,
    pub local_bytes: u32,
    pub static_shared: u32,
    /// Where dynamic shared memory begins.
    pub dynamic_shared: u32,
    pub bounds: Bounds,
    /// Whether registers can be owned by products.
    pub products: bool,
    /// Registers that each thread has at first: as many as the bounds of the kernel allow.
    pub start_registers: u32,
}
