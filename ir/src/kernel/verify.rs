//! Says whether a kernel is well formed, and everything that is wrong with it where it is not.
//!
//! Checked: names and symbols are declared, every value is defined once, in order, and used where it is visible;
//! operands and results have the types their operation wants; indices match ranks and accesses match declarations;
//! loops and choices give what their blocks yield. What depends on sizes (bounds, races, division by zero, barriers
//! under divergent control) is found by the interpreter.

use super::*;
use std::collections::BTreeSet;

/// One mistake and where it is.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("kernel @{kernel}, {place}: {fault}")]
pub struct VerifyError {
    /// The kernel's name.
    pub kernel: String,
    /// The parameter or the statement, as it prints.
    pub place: String,
    /// What is wrong.
    pub fault: Fault,
}

/// What can be wrong.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message documents it")]
pub enum Fault {
    #[error("`{name}` is not a name (letters, digits and underscores)")]
    BadName { name: String },
    #[error("the name {name} is taken")]
    DuplicateName { name: String },
    #[error("{name} is aligned to {align}, which is no power of two up to 4096")]
    BadAlign { name: String, align: u32 },
    #[error("symbol {symbol} is not declared")]
    UnknownSymbol { symbol: Sym },
    #[error("value {value} is not defined here")]
    Undefined { value: Value },
    #[error("value {found} is defined where {expected} is due")]
    OutOfOrder { expected: Value, found: Value },
    #[error("{defined} values are defined but {declared} have types")]
    WrongCount { defined: usize, declared: usize },
    #[error("{ty} is not a type: lanes are a power of two up to 1024")]
    BadType { ty: ValueType },
    #[error("operand {value} has type {found}, expected {expected}")]
    Operand { value: Value, expected: String, found: ValueType },
    #[error("the result has type {found}, expected {expected}")]
    ResultType { expected: String, found: ValueType },
    #[error("no cast from {from} to {to}; go through f32")]
    NoCast { from: DType, to: DType },
    #[error("no dot product of {a} and {b} into {c}: two bf16 into each f32, or four bytes into each i32")]
    NoDot { a: ValueType, b: ValueType, c: ValueType },
    #[error("the grid has {rank} dimensions, not a number {dim}")]
    GridDim { dim: u32, rank: usize },
    #[error("{buffer} has {expected} dimensions, indexed with {found}")]
    Rank { buffer: String, expected: usize, found: usize },
    #[error("{buffer} is {access}")]
    Access { buffer: String, access: &'static str },
    #[error("{buffer} holds {expected}, not {found}")]
    ElementType { buffer: String, expected: DType, found: DType },
    #[error("a vector of {runs} indices for {ty}: it is for a multiple of its lanes, of whole bytes")]
    Runs { ty: ValueType, runs: u32 },
    #[error("a fill without a mask")]
    FillWithoutMask,
    #[error("packed 4-bit elements are stored in unmasked vectors of two lanes or more")]
    PackedStore,
    #[error("buffer number {index} does not exist")]
    NoBuffer { index: u32 },
    #[error("allocation {buffer} is used where it does not live")]
    DeadAlloc { buffer: String },
    #[error("allocation {buffer} is brought into being {times} times")]
    AllocTimes { buffer: String, times: usize },
    #[error("the size of {buffer} is not affine in the symbols")]
    AllocSize { buffer: String },
    #[error("local allocation {buffer} is private but used by concurrent iterations; make it shared")]
    SharedLocal { buffer: String },
    #[error("shared allocation {buffer} stands inside a concurrent loop")]
    SharedInThread { buffer: String },
    #[error("stride {step} is not positive")]
    Step { step: i64 },
    #[error("an unrolled loop needs constant bounds and at most {limit} iterations")]
    UnrollBounds { limit: i64 },
    #[error("a {kind} loop carries nothing")]
    ConcurrentCarry { kind: &'static str },
    #[error("{expected} values are due, {found} are given")]
    ValueCount { expected: usize, found: usize },
    #[error("a copy goes from a parameter to a shared allocation, in runs of 4, 8 or 16 bytes")]
    CopyRuns,
    #[error("it is for the warps of a block, and stands in no loop over warps")]
    NoWarps,
    #[error("{buffer} is {expected}")]
    Barrier { buffer: String, expected: &'static str },
    #[error("registers are a multiple of 8 from 24 to 240, not {count}")]
    Registers { count: u32 },
    #[error(
        "no product by {b} of depth {depth}, panels {panels:?}, with {results} results: both factors bf16 or both f8e4m3, a \
         depth of 32 to 128 bytes (bf16 values by panels 512), panels whole groups of eight rows and as long as the depth, \
         1 to 32 results"
    )]
    NoWgmma { b: DType, depth: u32, panels: Option<u32>, results: usize },
    #[error("{buffer} is no shared allocation of one dimension with swizzle 128")]
    NoTile { buffer: String },
}

/// Unrolled loops run at most this many iterations.
pub const MAX_UNROLL: i64 = 4096;

/// All mistakes of a kernel; none if it is well formed.
pub fn verify(kernel: &Kernel) -> Vec<VerifyError> {
    let mut v = Verifier {
        kernel,
        errors: Vec::new(),
        place: "the header".into(),
        defined: 0,
        visible: vec![false; kernel.values.len()],
        constants: vec![None; kernel.values.len()],
        alive: vec![None; kernel.allocs.len()],
        born: vec![0; kernel.allocs.len()],
        concurrent: 0,
    };
    v.header();
    let yields = v.block(&kernel.body);
    v.place = "the body".into();
    if yields != 0 {
        v.fault(Fault::ValueCount { expected: 0, found: yields });
    }
    if v.defined != kernel.values.len() {
        v.fault(Fault::WrongCount { defined: v.defined, declared: kernel.values.len() });
    }
    for (alloc, times) in kernel.allocs.iter().zip(v.born.clone()) {
        if times != 1 {
            v.fault(Fault::AllocTimes { buffer: alloc.name.clone(), times });
        }
    }
    v.errors
}

struct Verifier<'a> {
    kernel: &'a Kernel,
    errors: Vec<VerifyError>,
    place: String,
    defined: usize,
    visible: Vec<bool>,
    constants: Vec<Option<i64>>,
    /// Nesting of concurrent loops where each allocation came alive.
    alive: Vec<Option<usize>>,
    born: Vec<usize>,
    concurrent: usize,
}

const ARITHMETIC: &[DType] = &[DType::F32, DType::I32, DType::I64];
const INTEGER: &[DType] = &[DType::I32, DType::I64];
const LOGICAL: &[DType] = &[DType::I32, DType::I64, DType::Bool];
const FLOAT: &[DType] = &[DType::F32];
const WORDS: &[DType] = &[DType::F32, DType::I32];
const BYTES: &[DType] = &[DType::U8, DType::I8];
const CODES: &[DType] = &[DType::U8, DType::I8, DType::U4, DType::I4, DType::F4E2M1];

impl Verifier<'_> {
    fn fault(&mut self, fault: Fault) {
        let (kernel, place) = (self.kernel.name.clone(), self.place.clone());
        self.errors.push(VerifyError { kernel, place, fault });
    }

    fn header(&mut self) {
        let k = self.kernel;
        let mut names = BTreeSet::new();
        let buffers = k.params.iter().map(|p| &p.name).chain(k.allocs.iter().map(|a| &a.name));
        for (i, name) in [&k.name].into_iter().chain(buffers).enumerate() {
            let head = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
            if !head || !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.')) {
                self.fault(Fault::BadName { name: name.clone() });
            }
            if i > 0 && !names.insert(name.as_str()) {
                self.fault(Fault::DuplicateName { name: name.clone() });
            }
        }
        for p in &k.params {
            if !p.align.is_power_of_two() || p.align > 4096 {
                self.fault(Fault::BadAlign { name: p.name.clone(), align: p.align });
            }
        }
        for (i, symbol) in k.symbols.iter().enumerate() {
            if k.symbols[..i].contains(symbol) {
                self.fault(Fault::DuplicateName { name: symbol.to_string() });
            }
        }
        for dim in k.params.iter().flat_map(|p| &p.shape).chain(&k.grid).chain(k.allocs.iter().flat_map(|a| &a.shape)) {
            dim.terms().iter().for_each(|(s, _)| self.symbol(*s));
        }
        for ty in &k.values {
            if !ty.lanes.is_power_of_two() || ty.lanes > 1024 {
                self.fault(Fault::BadType { ty: *ty });
            }
        }
        for alloc in &k.allocs {
            if alloc.bytes().is_none() {
                self.fault(Fault::AllocSize { buffer: alloc.name.clone() });
            }
        }
    }

    fn symbol(&mut self, symbol: Sym) {
        if !self.kernel.symbols.contains(&symbol) {
            self.fault(Fault::UnknownSymbol { symbol });
        }
    }

    /// Checks a block in a scope of its own and gives the number of values it yields.
    fn block(&mut self, block: &Block) -> usize {
        self.scoped_block(block, &[]);
        block.yields.len()
    }

    /// Checks a block whose yields must have the types of `like`.
    fn scoped_block(&mut self, block: &Block, like: &[Value]) {
        let before = self.visible.clone();
        let alive = self.alive.clone();
        for stmt in &block.stmts {
            self.stmt(stmt);
        }
        for (i, y) in block.yields.iter().enumerate() {
            if let (Some(found), Some(want)) = (self.operand(*y), like.get(i).and_then(|v| self.type_of(*v)))
                && found != want
            {
                self.fault(Fault::Operand { value: *y, expected: want.to_string(), found });
            }
        }
        self.visible = before;
        self.alive = alive;
    }

    fn type_of(&self, value: Value) -> Option<ValueType> {
        self.kernel.values.get(value.index()).copied()
    }

    fn define(&mut self, value: Value) {
        let expected = Value(self.defined as u32);
        if value != expected {
            self.fault(Fault::OutOfOrder { expected, found: value });
        }
        self.defined += 1;
        if let Some(slot) = self.visible.get_mut(value.index()) {
            *slot = true;
        }
    }

    fn operand(&mut self, value: Value) -> Option<ValueType> {
        if self.visible.get(value.index()) == Some(&true) {
            return self.type_of(value);
        }
        self.fault(Fault::Undefined { value });
        None
    }

    fn want(&mut self, value: Value, expected: ValueType) {
        if let Some(found) = self.operand(value)
            && found != expected
        {
            self.fault(Fault::Operand { value, expected: expected.to_string(), found });
        }
    }

    fn want_elem(&mut self, value: Value, elems: &[DType]) -> Option<ValueType> {
        let found = self.operand(value)?;
        if !elems.contains(&found.elem) {
            let expected = elems.iter().map(|e| e.name()).collect::<Vec<_>>().join(" or ");
            self.fault(Fault::Operand { value, expected, found });
        }
        Some(found)
    }

    fn stmt(&mut self, stmt: &Stmt) {
        self.place = self.kernel.stmt_line(stmt);
        match stmt {
            Stmt::Let(value, op) => {
                if let Some(ty) = self.type_of(*value) {
                    self.op(op, ty);
                }
                if let (Op::Const(Const::I64(x)), Some(slot)) = (op, self.constants.get_mut(value.index())) {
                    *slot = Some(*x);
                }
                self.define(*value);
            }
            Stmt::Store { place, value, mask } => {
                let Some(ty) = self.operand(*value) else { return };
                let dtype = self.access_lanes(place, false, ty);
                if let Some((buffer, expected)) = dtype
                    && expected != ty.elem
                {
                    self.fault(Fault::ElementType { buffer, expected, found: ty.elem });
                }
                if let Some(mask) = mask {
                    self.want(*mask, ty.with_elem(DType::Bool));
                }
                if ty.elem.is_packed() && (ty.lanes == 1 || mask.is_some()) {
                    self.fault(Fault::PackedStore);
                }
            }
            Stmt::Prefetch(place) => {
                let _ = self.access(place, true);
            }
            Stmt::Alloc(i) => {
                let Some(alloc) = self.kernel.allocs.get(*i as usize) else {
                    return self.fault(Fault::NoBuffer { index: *i });
                };
                self.alive[*i as usize] = Some(self.concurrent);
                self.born[*i as usize] += 1;
                if alloc.space != Space::Local && self.concurrent > 0 {
                    self.fault(Fault::SharedInThread { buffer: alloc.name.clone() });
                }
            }
            Stmt::For(l) => self.for_stmt(l),
            Stmt::If(c) => {
                self.want(c.cond, ValueType::scalar(DType::Bool));
                for block in [&c.then, &c.otherwise] {
                    if block.yields.len() != c.results.len() {
                        self.fault(Fault::ValueCount { expected: c.results.len(), found: block.yields.len() });
                    }
                    self.scoped_block(block, &c.results);
                }
                c.results.iter().for_each(|r| self.define(*r));
            }
            Stmt::Team(op) => self.team_op(op),
            Stmt::Copy(c) => self.copy(c),
            Stmt::Wgmma(w) => self.wgmma(w),
            Stmt::Settle(s) => {
                self.in_warps();
                if s.results.len() != s.open.len() {
                    self.fault(Fault::ValueCount { expected: s.results.len(), found: s.open.len() });
                }
                s.open.iter().for_each(|v| self.want(*v, MATRIX[2]));
                s.results.iter().for_each(|v| self.define_sum(*v));
            }
        }
    }

    fn in_warps(&mut self) {
        if self.concurrent == 0 {
            self.fault(Fault::NoWarps);
        }
    }

    fn define_sum(&mut self, value: Value) {
        if let Some(found) = self.type_of(value).filter(|ty| *ty != MATRIX[2]) {
            self.fault(Fault::ResultType { expected: MATRIX[2].to_string(), found });
        }
        self.define(value);
    }

    fn team_op(&mut self, op: &TeamOp) {
        self.in_warps();
        match op {
            TeamOp::Arrive(place) => self.barrier(place),
            TeamOp::Wait { place, parity } => {
                self.barrier(place);
                self.want(*parity, ValueType::INDEX);
            }
            TeamOp::Registers(count) if !count.is_multiple_of(8) || !(24..=240).contains(count) => {
                self.fault(Fault::Registers { count: *count });
            }
            TeamOp::Commit | TeamOp::AwaitCopies(_) | TeamOp::FenceAsync | TeamOp::Registers(_) => {}
        }
    }

    fn barrier(&mut self, place: &Place) {
        let space = self.alloc(place.buf).map(|a| a.space);
        if let Some((buffer, _)) = self.place(place, 1)
            && !matches!(space, Some(Space::Barrier(_)))
        {
            self.fault(Fault::Barrier { buffer, expected: "no barrier" });
        }
    }

    fn alloc(&self, buf: Buf) -> Option<&Alloc> {
        match buf {
            Buf::Param(_) => None,
            Buf::Alloc(i) => self.kernel.allocs.get(i as usize),
        }
    }

    fn copy(&mut self, c: &AsyncCopy) {
        self.in_warps();
        let runs = [&c.to, &c.from].map(|p| p.index.last().and_then(|v| self.type_of(*v)).map_or(1, |ty| ty.lanes));
        let (to, from) = (self.access_runs(&c.to, false, runs[0]), self.access_runs(&c.from, true, runs[1]));
        let shared = self.alloc(c.to.buf).is_some_and(|a| a.space == Space::Shared);
        if let (Some((buffer, expected)), Some((_, found))) = (to, from) {
            if expected != found {
                self.fault(Fault::ElementType { buffer, expected, found });
            }
            let bits = u64::from(c.lanes / runs[0]) * found.bits();
            let whole = c.lanes.is_multiple_of(runs[0]) && runs[0] == runs[1] && !found.is_packed();
            if !shared || matches!(c.from.buf, Buf::Alloc(_)) || !whole || ![32, 64, 128].contains(&bits) {
                self.fault(Fault::CopyRuns);
            }
        }
        if let Some(counts) = c.counts {
            self.want(counts, ValueType::vector(DType::I64, runs[0]));
        }
    }

    fn wgmma(&mut self, w: &Wgmma) {
        self.in_warps();
        let mut format = |place: &Place| {
            let tile = |a: &Alloc| a.space == Space::Shared && a.swizzle == Swizzle::B128 && a.shape.len() == 1;
            let tile = self.alloc(place.buf).is_some_and(tile);
            let (buffer, dtype) = self.access(place, true)?;
            if !tile {
                self.fault(Fault::NoTile { buffer });
            }
            Some(dtype)
        };
        let b = format(&w.b);
        let a = match &w.a {
            WgmmaRows::Tile(place) => format(place),
            WgmmaRows::Values(values) => {
                values.iter().for_each(|v| self.want(*v, WGMMA_VALUES));
                (values.len() == w.depth as usize / 8).then_some(WGMMA_VALUES.elem)
            }
        };
        if let Some(b) = b {
            let bytes = b.bytes(w.depth.into());
            let whole = w.depth > 0 && bytes.is_multiple_of(WGMMA_STEP);
            let rows = match (&w.a, w.panels) {
                (WgmmaRows::Values(_), Some(_)) => bytes <= 512,
                _ => bytes <= 128,
            };
            // Groups of eight rows of 128 bytes, as many as there are elements of a row of the other factor.
            let apart = |n: u32| n.is_multiple_of(512) && (64 * w.depth..=128 << 10).contains(&n);
            let fits = match b {
                DType::BF16 => w.panels.is_none_or(apart),
                b => b == DType::F8E4M3 && w.panels.is_none(),
            };
            if a != Some(b) || !whole || !rows || !fits || !(1..=32).contains(&w.results.len()) {
                self.fault(Fault::NoWgmma { b, depth: w.depth, panels: w.panels, results: w.results.len() });
            }
        }
        if !w.sums.is_empty() && w.sums.len() != w.results.len() {
            self.fault(Fault::ValueCount { expected: w.results.len(), found: w.sums.len() });
        }
        w.sums.iter().for_each(|v| self.want(*v, MATRIX[2]));
        w.results.iter().for_each(|v| self.define_sum(*v));
    }

    fn for_stmt(&mut self, l: &For) {
        self.want(l.lo, ValueType::INDEX);
        self.want(l.hi, ValueType::INDEX);
        l.init.iter().for_each(|v| {
            self.operand(*v);
        });
        if l.step <= 0 {
            self.fault(Fault::Step { step: l.step });
        } else if l.kind == LoopKind::Unroll {
            let [lo, hi] = [l.lo, l.hi].map(|v| self.constants.get(v.index()).copied().flatten());
            let trips = lo.zip(hi).map(|(lo, hi)| (hi as i128 - lo as i128 + l.step as i128 - 1) / l.step as i128);
            if trips.is_none_or(|n| n > MAX_UNROLL as i128) {
                self.fault(Fault::UnrollBounds { limit: MAX_UNROLL });
            }
        }
        if l.kind == LoopKind::Warp && !l.init.is_empty() {
            self.fault(Fault::ConcurrentCarry { kind: l.kind.name() });
        }
        for found in [l.carried.len(), l.results.len(), l.body.yields.len()] {
            if found != l.init.len() {
                self.fault(Fault::ValueCount { expected: l.init.len(), found });
            }
        }
        for (init, inner) in l.init.iter().zip(l.carried.iter().zip(&l.results)) {
            for v in [inner.0, inner.1] {
                if let (Some(expected), Some(found)) = (self.type_of(*init), self.type_of(*v))
                    && expected != found
                {
                    self.fault(Fault::Operand { value: *v, expected: expected.to_string(), found });
                }
            }
        }
        let outer = self.visible.clone();
        self.define(l.var);
        if self.type_of(l.var).is_some_and(|t| t != ValueType::INDEX) {
            self.fault(Fault::ResultType { expected: "i64".into(), found: self.kernel.ty(l.var) });
        }
        l.carried.iter().for_each(|v| self.define(*v));
        self.concurrent += (l.kind == LoopKind::Warp) as usize;
        self.scoped_block(&l.body, &l.carried);
        self.concurrent -= (l.kind == LoopKind::Warp) as usize;
        self.visible = outer;
        l.results.iter().for_each(|r| self.define(*r));
    }

    /// Checks a place of a vector, which may be runs; gives the buffer's name and format.
    fn access_lanes(&mut self, place: &Place, reads: bool, ty: ValueType) -> Option<(String, DType)> {
        let runs = place.index.last().and_then(|v| self.type_of(*v)).map_or(1, |ty| ty.lanes);
        if runs > 1 && (!ty.lanes.is_multiple_of(runs) || ty.elem.is_packed()) {
            self.fault(Fault::Runs { ty, runs });
        }
        self.access_runs(place, reads, runs)
    }

    /// Checks a place of one run.
    fn access(&mut self, place: &Place, reads: bool) -> Option<(String, DType)> {
        self.access_runs(place, reads, 1)
    }

    /// Checks indices; gives the buffer's name and format.
    fn place(&mut self, place: &Place, runs: u32) -> Option<(String, DType)> {
        for (i, v) in place.index.iter().enumerate() {
            let last = i + 1 == place.index.len();
            self.want(*v, ValueType::vector(DType::I64, if last { runs } else { 1 }));
        }
        let k = self.kernel;
        let (count, index) = match place.buf {
            Buf::Param(i) => (k.params.len(), i),
            Buf::Alloc(i) => (k.allocs.len(), i),
        };
        if index as usize >= count {
            self.fault(Fault::NoBuffer { index });
            return None;
        }
        let (name, dtype, shape) = k.buffer(place.buf);
        let buffer = name.to_string();
        if shape.len() != place.index.len() {
            self.fault(Fault::Rank { buffer: buffer.clone(), expected: shape.len(), found: place.index.len() });
        }
        Some((buffer, dtype))
    }

    fn access_runs(&mut self, place: &Place, reads: bool, runs: u32) -> Option<(String, DType)> {
        let (buffer, dtype) = self.place(place, runs)?;
        let k = self.kernel;
        match place.buf {
            Buf::Param(i) => {
                let access = k.params[i as usize].access;
                let denied = match access {
                    Access::Read => !reads,
                    Access::Write => reads,
                    Access::ReadWrite => false,
                };
                if denied {
                    self.fault(Fault::Access { buffer: buffer.clone(), access: access.name() });
                }
            }
            Buf::Alloc(i) => match self.alive[i as usize] {
                None => self.fault(Fault::DeadAlloc { buffer: buffer.clone() }),
                Some(depth) if depth != self.concurrent && k.allocs[i as usize].space == Space::Local => {
                    self.fault(Fault::SharedLocal { buffer: buffer.clone() });
                }
                Some(_) if matches!(k.allocs[i as usize].space, Space::Barrier(_)) => {
                    self.fault(Fault::Barrier { buffer: buffer.clone(), expected: "a barrier" });
                }
                Some(_) => {}
            },
        }
        Some((buffer, dtype))
    }

    fn op(&mut self, op: &Op, ty: ValueType) {
        // What the result must be, where operands decide it.
        let expected = match op {
            Op::Const(c) => Some(ValueType::scalar(c.dtype())),
            Op::GridIndex(d) => {
                if *d as usize >= self.kernel.grid.len() {
                    self.fault(Fault::GridDim { dim: *d, rank: self.kernel.grid.len() });
                }
                Some(ValueType::INDEX)
            }
            Op::Symbol(s) => {
                self.symbol(*s);
                Some(ValueType::INDEX)
            }
            Op::Unary(op, a) => {
                let elems = match op {
                    UnaryOp::Neg | UnaryOp::Abs => ARITHMETIC,
                    UnaryOp::Not => LOGICAL,
                    UnaryOp::Sqrt
                    | UnaryOp::Floor
                    | UnaryOp::Pow2Ceil
                    | UnaryOp::Exp
                    | UnaryOp::Exp2
                    | UnaryOp::Log
                    | UnaryOp::Sin
                    | UnaryOp::Cos
                    | UnaryOp::Tanh
                    | UnaryOp::Erf => FLOAT,
                };
                self.want_elem(*a, elems)
            }
            Op::Binary(op, a, b) => {
                let elems = match op {
                    BinaryOp::Add | BinaryOp::Sub | BinaryOp::Mul => ARITHMETIC,
                    BinaryOp::Div | BinaryOp::Min | BinaryOp::Max => ARITHMETIC,
                    BinaryOp::Rem | BinaryOp::Shl | BinaryOp::Shr | BinaryOp::Ushr => INTEGER,
                    BinaryOp::And | BinaryOp::Or | BinaryOp::Xor => LOGICAL,
                };
                self.same(*a, &[*b], elems)
            }
            Op::Compare(_, a, b) => self.same(*a, &[*b], ARITHMETIC).map(|t| t.with_elem(DType::Bool)),
            Op::Fma(a, b, c) => self.same(*a, &[*b, *c], FLOAT),
            Op::Dot(a, b, c) => {
                if let (Some(a), Some(b), Some(c)) = (self.operand(*a), self.operand(*b), self.operand(*c)) {
                    let group = dot_group(a.elem, b.elem, c.elem);
                    if a.lanes != b.lanes || group.is_none_or(|n| c.lanes.checked_mul(n) != Some(a.lanes)) {
                        self.fault(Fault::NoDot { a, b, c });
                    }
                }
                self.type_of(*c)
            }
            Op::Matrix(a, b, c) => {
                [a, b, c].into_iter().zip(MATRIX).for_each(|(v, ty)| self.want(*v, ty));
                Some(MATRIX[2])
            }
            Op::Lookup(_, a) => {
                if !BYTES.contains(&ty.elem) {
                    self.fault(Fault::ResultType { expected: "u8 or i8 lanes".into(), found: ty });
                }
                self.want_elem(*a, CODES).map(|t| t.with_elem(ty.elem))
            }
            Op::Zip(_, a, b) => {
                let result = self.same(*a, &[*b], WORDS);
                if result.is_some_and(|t| t.lanes < 2) {
                    self.fault(Fault::ResultType { expected: "two lanes or more".into(), found: ty });
                }
                result
            }
            Op::Select(c, a, b) => {
                let result = self.same(*a, &[*b], &DType::ALL);
                if let Some(t) = result {
                    self.want(*c, t.with_elem(DType::Bool));
                }
                result
            }
            Op::Cast(a) => self.operand(*a).map(|from| {
                if !can_cast(from.elem, ty.elem) {
                    self.fault(Fault::NoCast { from: from.elem, to: ty.elem });
                }
                from.with_elem(ty.elem)
            }),
            Op::Bitcast(a) => self.operand(*a).map(|from| {
                let bits = |t: ValueType| t.elem.bits() * t.lanes as u64;
                let whole = from.elem != DType::Bool && ty.elem != DType::Bool && !ty.elem.is_packed();
                if bits(from) != bits(ty) || !whole {
                    let expected = format!("another format, {} bits in all", bits(from));
                    self.fault(Fault::ResultType { expected, found: ty });
                }
                ty
            }),
            Op::Splat(a) => {
                self.want(*a, ValueType::scalar(ty.elem));
                None
            }
            Op::Extract(a, lane) => self.operand(*a).map(|from| {
                if *lane >= from.lanes {
                    let expected = format!("more than {lane} lanes");
                    self.fault(Fault::Operand { value: *a, expected, found: from });
                }
                ValueType::scalar(from.elem)
            }),
            Op::Iota => {
                if !INTEGER.contains(&ty.elem) {
                    self.fault(Fault::ResultType { expected: "i32 or i64 lanes".into(), found: ty });
                }
                None
            }
            Op::Rank(a) => self.want_elem(*a, &[DType::Bool]).map(|t| t.with_elem(DType::I64)),
            Op::Rows(_, a) => {
                self.want(*a, MATRIX[2]);
                Some(MATRIX[2])
            }
            Op::Reduce(_, a) => self.want_elem(*a, ARITHMETIC).map(|t| ValueType::scalar(t.elem)),
            Op::Load { place, mask, fill } => {
                if let Some(mask) = mask {
                    self.want(*mask, ty.with_elem(DType::Bool));
                }
                match fill {
                    Some(_) if mask.is_none() => self.fault(Fault::FillWithoutMask),
                    Some(fill) => self.want(*fill, ty),
                    None => {}
                }
                self.access_lanes(place, true, ty).map(|(_, dtype)| ty.with_elem(dtype))
            }
        };
        if let Some(expected) = expected
            && expected != ty
        {
            self.fault(Fault::ResultType { expected: expected.to_string(), found: ty });
        }
    }

    fn same(&mut self, first: Value, others: &[Value], elems: &[DType]) -> Option<ValueType> {
        let ty = self.want_elem(first, elems);
        for v in others {
            match ty {
                Some(ty) => self.want(*v, ty),
                None => {
                    self.operand(*v);
                }
            }
        }
        ty
    }
}

/// Whether `cast` goes from one format to another in one step: to and from f32, and between integers and truth values.
pub fn can_cast(from: DType, to: DType) -> bool {
    let whole = |d: DType| d.is_int() || d == DType::Bool;
    !matches!(to, DType::U4 | DType::I4) && (from == DType::F32 || to == DType::F32 || (whole(from) && whole(to)))
}
