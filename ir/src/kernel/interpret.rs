//! Runs kernels slowly and says what is wrong with them: the reference for every code generator.
//!
//! A grid index runs after the other. Inside one, a `thread` loop makes one thread per iteration, and all threads
//! take each statement together (a branch taken by some is run with the others idle). That order alone would hide
//! races, so every element of a writable buffer remembers who wrote it and who read it, and threads carry vector
//! clocks that barriers join: two accesses of which one writes, not ordered by barriers, are a race, as are accesses
//! of two grid indices of which one writes. Elements also remember whether they were ever written.

mod arith;
mod memory;

pub use memory::Buffer;

use super::*;
use arith::{binary, cast, compare, dot_step, fma, matrix, unary};
use hadal_types::Bindings;
use memory::{Memory, Who};
use std::ops::Range;

/// What goes wrong when a kernel runs.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("kernel @{kernel}, grid index {grid}, {statement}: {fault}")]
pub struct RunError {
    /// The kernel's name.
    pub kernel: String,
    /// Flattened grid index.
    pub grid: i64,
    /// The statement's first line.
    pub statement: String,
    /// What happened.
    pub fault: RunFault,
}

/// Kinds of trouble.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message documents it")]
pub enum RunFault {
    #[error("the kernel is not well formed: {0}")]
    Malformed(String),
    #[error("{expected} buffers are due, {found} are given")]
    ArgumentCount { expected: usize, found: usize },
    #[error("symbol {symbol} has no value")]
    NoSymbol { symbol: Sym },
    #[error("{buffer} has {expected} elements, {found} are given")]
    ArgumentSize { buffer: String, expected: u64, found: u64 },
    #[error("{buffer} is too large")]
    TooLarge { buffer: String },
    #[error("{buffer}[{}] is out of bounds: dimension {dim} has {extent} elements, index {index}", list(at))]
    OutOfBounds { buffer: String, at: Vec<i64>, dim: usize, index: i64, extent: i64 },
    #[error("{buffer}[{}] is read but was never written", list(at))]
    Uninitialised { buffer: String, at: Vec<i64> },
    #[error("{buffer}[{}] is accessed by {who} and {other} at the same time, and one writes", list(at))]
    Race { buffer: String, at: Vec<i64>, who: String, other: String },
    #[error("a vector of packed 4-bit elements begins inside a byte: {buffer}[{}]", list(at))]
    Misaligned { buffer: String, at: Vec<i64> },
    #[error("division by zero")]
    DivisionByZero,
    #[error("only {arrived} of {expected} threads reach the barrier")]
    DivergentBarrier { arrived: usize, expected: usize },
    #[error("{count} asynchronous copies are never waited for")]
    UnfinishedCopies { count: usize },
    #[error("a commit or wait for asynchronous copies of which there are none")]
    NoCopies,
    #[error("more than {limit} steps")]
    Steps { limit: u64 },
}

fn list(at: &[i64]) -> String {
    at.iter().map(i64::to_string).collect::<Vec<_>>().join(", ")
}

/// Statements a run may take, unless told otherwise.
pub const DEFAULT_STEPS: u64 = 1 << 32;

/// Runs all grid indices. `args` are in the order of the parameters.
pub fn run(kernel: &Kernel, symbols: &Bindings, args: &mut [Buffer]) -> Result<(), Box<RunError>> {
    run_range(kernel, symbols, args, 0..i64::MAX, DEFAULT_STEPS)
}

/// Runs the flattened grid indices that fall in `range`, in at most `steps` statements.
pub fn run_range(
    kernel: &Kernel,
    symbols: &Bindings,
    args: &mut [Buffer],
    range: Range<i64>,
    steps: u64,
) -> Result<(), Box<RunError>> {
    let header = |fault| Box::new(RunError { kernel: kernel.name.clone(), grid: 0, statement: "start".into(), fault });
    if let Some(error) = super::verify::verify(kernel).first() {
        return Err(header(RunFault::Malformed(error.to_string())));
    }
    if args.len() != kernel.params.len() {
        return Err(header(RunFault::ArgumentCount { expected: kernel.params.len(), found: args.len() }));
    }
    let dims = |shape: &[Dim]| -> Result<Vec<i64>, RunFault> {
        shape.iter().map(|d| d.eval(symbols).map_err(|symbol| RunFault::NoSymbol { symbol })).collect()
    };
    let grid = dims(&kernel.grid).map_err(header)?;
    let count = grid.iter().fold(1i64, |n, d| n.saturating_mul((*d).max(0)));
    let mut params = Vec::new();
    for (param, arg) in kernel.params.iter().zip(args.iter_mut()) {
        let shape = dims(&param.shape).map_err(header)?;
        let track = param.access != Access::Read;
        let memory = Memory::of_param(&param.name, param.dtype, shape, std::mem::take(arg), track);
        params.push(memory.map_err(header)?);
    }
    let mut machine = Machine {
        kernel,
        symbols,
        params,
        allocs: kernel.allocs.iter().map(|_| None).collect(),
        coords: Vec::new(),
        grid: 0,
        seq: 0,
        base: 0,
        slots: 0,
        steps,
        limit: steps,
        mbarriers: Vec::new(),
        statement: None,
    };
    let mut result = Ok(());
    for index in range.start.max(0)..range.end.min(count) {
        result = machine.grid_index(index, &grid);
        if result.is_err() {
            break;
        }
    }
    for (arg, memory) in args.iter_mut().zip(machine.params) {
        *arg = memory.buffer;
    }
    result.map_err(|fault| {
        let statement = machine.statement.map_or("start".into(), |s| kernel.stmt_line(s));
        Box::new(RunError { kernel: kernel.name.clone(), grid: machine.grid, statement, fault })
    })
}

/// A value's lanes as raw bits.
#[derive(Clone, Debug)]
enum Lanes {
    One(u64),
    Many(Vec<u64>),
}

impl Lanes {
    fn of(lanes: u32, f: impl Fn(usize) -> u64) -> Lanes {
        match lanes {
            1 => Lanes::One(f(0)),
            n => Lanes::Many((0..n as usize).map(f).collect()),
        }
    }

    fn lane(&self, i: usize) -> u64 {
        match self {
            Lanes::One(x) => *x,
            Lanes::Many(v) => v[i],
        }
    }
}

struct Copy {
    to: (Buf, u64),
    bits: Vec<u64>,
    by: Who,
}

struct Thread {
    values: Vec<Lanes>,
    /// Number within the grid index.
    slot: usize,
    /// For each thread of this grid index, the last step of it that is ordered before now.
    clock: Vec<u32>,
    /// Iteration of the nearest enclosing warpgroup loop.
    warpgroup: Option<(usize, i64)>,
    /// Storage of local allocations made inside a concurrent loop.
    locals: Vec<Option<Memory>>,
    open: Vec<Copy>,
    committed: Vec<Vec<Copy>>,
}

struct Machine<'a> {
    kernel: &'a Kernel,
    symbols: &'a Bindings,
    params: Vec<Memory>,
    allocs: Vec<Option<Memory>>,
    coords: Vec<i64>,
    grid: i64,
    /// Counts accesses.
    seq: u64,
    /// Accesses before this one are ordered before everything now: there was a single thread since.
    base: u64,
    slots: usize,
    steps: u64,
    limit: u64,
    mbarriers: Vec<(u32, Copy)>,
    statement: Option<&'a Stmt>,
}

type Step = Result<(), RunFault>;

impl<'a> Machine<'a> {
    fn grid_index(&mut self, index: i64, grid: &[i64]) -> Step {
        self.grid = index;
        self.coords = vec![0; grid.len()];
        let mut rest = index;
        for (coord, extent) in self.coords.iter_mut().zip(grid).rev() {
            *coord = rest % extent;
            rest /= extent;
        }
        (self.slots, self.base) = (1, self.seq);
        let mut threads = vec![Thread {
            values: vec![Lanes::One(0); self.kernel.values.len()],
            slot: 0,
            clock: vec![1],
            warpgroup: None,
            locals: Vec::new(),
            open: Vec::new(),
            committed: Vec::new(),
        }];
        self.block(&self.kernel.body, &mut threads, &[0])?;
        self.no_copies_left(&threads)?;
        self.allocs.iter_mut().for_each(|a| *a = None);
        Ok(())
    }

    fn no_copies_left(&self, threads: &[Thread]) -> Step {
        let own = threads.iter().map(|t| t.open.len() + t.committed.iter().map(Vec::len).sum::<usize>()).sum::<usize>();
        match own + self.mbarriers.len() {
            0 => Ok(()),
            count => Err(RunFault::UnfinishedCopies { count }),
        }
    }

    fn block(&mut self, block: &'a Block, threads: &mut [Thread], active: &[usize]) -> Step {
        if active.is_empty() {
            return Ok(());
        }
        for stmt in &block.stmts {
            self.statement = Some(stmt);
            let cost = active.len() as u64;
            self.steps = self.steps.checked_sub(cost).ok_or(RunFault::Steps { limit: self.limit })?;
            self.stmt(stmt, threads, active)?;
        }
        Ok(())
    }

    fn stmt(&mut self, stmt: &'a Stmt, threads: &mut [Thread], active: &[usize]) -> Step {
        match stmt {
            Stmt::Let(value, op) => {
                for &t in active {
                    let lanes = self.op(op, self.kernel.ty(*value), &mut threads[t])?;
                    threads[t].values[value.index()] = lanes;
                }
            }
            Stmt::Store { place, value, mask } => {
                let lanes = self.kernel.ty(*value).lanes;
                for &t in active {
                    let thread = &mut threads[t];
                    for lane in 0..lanes as usize {
                        if mask.is_none_or(|m| thread.values[m.index()].lane(lane) != 0) {
                            let flat = self.locate(place, thread, lane, lanes)?;
                            let bits = thread.values[value.index()].lane(lane);
                            let who = self.now(thread);
                            self.memory(place.buf, &mut thread.locals).write(flat, bits, &who, &thread.clock)?;
                        }
                    }
                }
            }
            Stmt::Prefetch(_) => {}
            Stmt::Alloc(i) => self.alloc(*i, threads, active)?,
            Stmt::For(l) if l.kind.is_concurrent() => self.concurrent(l, threads, active)?,
            Stmt::For(l) => self.serial(l, threads, active)?,
            Stmt::If(c) => {
                let (yes, no): (Vec<usize>, Vec<usize>) =
                    active.iter().partition(|&&t| threads[t].values[c.cond.index()].lane(0) != 0);
                for (block, chosen) in [(&c.then, yes), (&c.otherwise, no)] {
                    self.block(block, threads, &chosen)?;
                    chosen.iter().for_each(|&t| threads[t].copy_values(&block.yields, &c.results));
                }
            }
            Stmt::Barrier(scope) => self.barrier(*scope, threads, active)?,
            Stmt::AsyncCopy { to, from, count, completion } => {
                for &t in active {
                    let thread = &mut threads[t];
                    let mut bits = Vec::new();
                    for lane in 0..*count as usize {
                        let (who, flat) = (self.now(thread), self.locate(from, thread, lane, *count)?);
                        bits.push(self.memory(from.buf, &mut thread.locals).read(flat, &who, &thread.clock)?);
                        let (who, flat) = (self.now(thread), self.locate(to, thread, lane, *count)?);
                        self.memory(to.buf, &mut thread.locals).begin_copy(flat, &who, &thread.clock)?;
                    }
                    let first = self.locate(to, thread, 0, *count)?;
                    let copy = Copy { to: (to.buf, first), bits, by: self.now(thread) };
                    match completion {
                        Completion::Group => thread.open.push(copy),
                        Completion::Mbarrier(n) => self.mbarriers.push((*n, copy)),
                    }
                }
            }
            Stmt::AsyncCommit => {
                for &t in active {
                    let group = std::mem::take(&mut threads[t].open);
                    threads[t].committed.push(group);
                }
            }
            Stmt::AsyncWait { completion: Completion::Group, pending } => {
                for &t in active {
                    let thread = &mut threads[t];
                    let done = thread.committed.len().saturating_sub(*pending as usize);
                    let copies: Vec<Copy> = thread.committed.drain(..done).flatten().collect();
                    copies.into_iter().for_each(|c| self.deliver(c));
                }
            }
            Stmt::AsyncWait { completion: Completion::Mbarrier(n), .. } => {
                let all = std::mem::take(&mut self.mbarriers);
                let (done, rest): (Vec<_>, Vec<_>) = all.into_iter().partition(|(m, _)| m == n);
                self.mbarriers = rest;
                for (_, copy) in done {
                    // Whoever waits sees what was copied, whoever issued it.
                    active.iter().for_each(|&t| threads[t].learn(copy.by.slot, copy.by.clock));
                    self.deliver(copy);
                }
            }
            Stmt::Mma(m) => {
                for &t in active {
                    self.mma(m, &mut threads[t])?;
                }
            }
        }
        Ok(())
    }

    fn alloc(&mut self, i: u32, threads: &mut [Thread], active: &[usize]) -> Step {
        let alloc = &self.kernel.allocs[i as usize];
        let sizes = alloc.shape.iter().map(|d| d.eval(self.symbols));
        let shape: Vec<i64> = sizes.collect::<Result<_, Sym>>().map_err(|symbol| RunFault::NoSymbol { symbol })?;
        if threads.len() == 1 && threads[0].slot == 0 {
            self.allocs[i as usize] = Some(Memory::new(&alloc.name, alloc.dtype, shape)?);
            return Ok(());
        }
        for &t in active {
            let memory = Memory::new(&alloc.name, alloc.dtype, shape.clone())?;
            let locals = &mut threads[t].locals;
            locals.resize_with(self.kernel.allocs.len(), || None);
            locals[i as usize] = Some(memory);
        }
        Ok(())
    }

    fn serial(&mut self, l: &'a For, threads: &mut [Thread], active: &[usize]) -> Step {
        let mut running = active.to_vec();
        let mut counter: Vec<i128> = active.iter().map(|&t| threads[t].int(l.lo) as i128).collect();
        active.iter().for_each(|&t| threads[t].copy_values(&l.init, &l.carried));
        loop {
            let goes_on = |(t, i): (usize, i128)| (i < threads[t].int(l.hi) as i128).then_some((t, i));
            let pairs: Vec<(usize, i128)> =
                running.iter().copied().zip(counter.iter().copied()).filter_map(goes_on).collect();
            (running, counter) = pairs.into_iter().unzip();
            if running.is_empty() {
                break;
            }
            for (&t, i) in running.iter().zip(&mut counter) {
                threads[t].values[l.var.index()] = Lanes::One(*i as i64 as u64);
                *i += l.step as i128;
            }
            self.steps = self.steps.checked_sub(1).ok_or(RunFault::Steps { limit: self.limit })?;
            self.block(&l.body, threads, &running)?;
            running.iter().for_each(|&t| threads[t].copy_values(&l.body.yields, &l.carried));
        }
        active.iter().for_each(|&t| threads[t].copy_values(&l.carried, &l.results));
        Ok(())
    }

    fn concurrent(&mut self, l: &'a For, threads: &mut [Thread], active: &[usize]) -> Step {
        let mut children = Vec::new();
        let mut parents = Vec::new();
        for &t in active {
            let parent = &threads[t];
            let (lo, hi) = (parent.int(l.lo), parent.int(l.hi));
            for (n, i) in (lo..hi).step_by(l.step as usize).enumerate() {
                self.steps = self.steps.checked_sub(64).ok_or(RunFault::Steps { limit: self.limit })?;
                let mut values = parent.values.clone();
                values[l.var.index()] = Lanes::One(i as u64);
                let warpgroup = if l.kind == LoopKind::Warpgroup { Some((t, n as i64)) } else { parent.warpgroup };
                children.push(Thread {
                    values,
                    slot: self.slots,
                    clock: parent.clock.clone(),
                    warpgroup,
                    locals: Vec::new(),
                    open: Vec::new(),
                    committed: Vec::new(),
                });
                parents.push(t);
                self.slots += 1;
            }
        }
        for child in &mut children {
            child.clock.resize(self.slots, 0);
            child.clock[child.slot] = 1;
        }
        let all: Vec<usize> = (0..children.len()).collect();
        self.block(&l.body, &mut children, &all)?;
        let own = |t: &Thread| t.open.len() + t.committed.iter().map(Vec::len).sum::<usize>();
        match children.iter().map(own).sum() {
            0 => {}
            count => return Err(RunFault::UnfinishedCopies { count }),
        }
        if threads.len() == 1 {
            (self.base, self.slots) = (self.seq, threads[0].slot + 1);
            return Ok(());
        }
        for (child, parent) in children.iter().zip(parents) {
            threads[parent].join(&child.clock);
        }
        Ok(())
    }

    fn barrier(&mut self, scope: Scope, threads: &mut [Thread], active: &[usize]) -> Step {
        let groups: Vec<Vec<usize>> = match scope {
            Scope::Block if active.len() != threads.len() => {
                return Err(RunFault::DivergentBarrier { arrived: active.len(), expected: threads.len() });
            }
            Scope::Block | Scope::Named(_) => vec![active.to_vec()],
            Scope::Warpgroup => {
                let mut groups: std::collections::BTreeMap<_, Vec<usize>> = Default::default();
                active.iter().for_each(|&t| groups.entry(threads[t].warpgroup).or_default().push(t));
                for (key, group) in &groups {
                    let expected = threads.iter().filter(|t| t.warpgroup == *key).count();
                    if group.len() != expected {
                        return Err(RunFault::DivergentBarrier { arrived: group.len(), expected });
                    }
                }
                groups.into_values().collect()
            }
        };
        for group in groups {
            let mut joined = Vec::new();
            for &t in &group {
                let clock = &threads[t].clock;
                joined.resize(joined.len().max(clock.len()), 0);
                joined.iter_mut().zip(clock).for_each(|(a, b): (&mut u32, _)| *a = (*a).max(*b));
            }
            for &t in &group {
                threads[t].clock.clone_from(&joined);
                let slot = threads[t].slot;
                threads[t].clock[slot] += 1;
            }
        }
        Ok(())
    }

    fn deliver(&mut self, copy: Copy) {
        let memory = match copy.to.0 {
            Buf::Param(i) => Some(&mut self.params[i as usize]),
            Buf::Alloc(i) => self.allocs[i as usize].as_mut(),
        };
        if let Some(memory) = memory {
            copy.bits.iter().zip(copy.to.1..).for_each(|(bits, flat)| memory.finish_copy(flat, *bits));
        }
    }

    fn mma(&mut self, m: &Mma, thread: &mut Thread) -> Step {
        let read = |machine: &mut Self, thread: &mut Thread, place: &Place, row: u32, column: u32| {
            let flat = machine.locate_tile(place, thread, row, column)?;
            let who = machine.now(thread);
            let dtype = machine.kernel.buffer(place.buf).1;
            let bits = machine.memory(place.buf, &mut thread.locals).read(flat, &who, &thread.clock)?;
            Ok::<f64, RunFault>(f32::from_bits(cast(dtype, DType::F32, bits) as u32) as f64)
        };
        for row in 0..m.m {
            for column in 0..m.n {
                let mut sum = read(self, thread, &m.d, row, column)?;
                for k in 0..m.k {
                    let (b_row, b_column) = if m.b_rows_are_k { (k, column) } else { (column, k) };
                    sum += read(self, thread, &m.a, row, k)? * read(self, thread, &m.b, b_row, b_column)?;
                }
                let (flat, who) = (self.locate_tile(&m.d, thread, row, column)?, self.now(thread));
                let bits = (sum as f32).to_bits() as u64;
                self.memory(m.d.buf, &mut thread.locals).write(flat, bits, &who, &thread.clock)?;
            }
        }
        Ok(())
    }

    fn now(&mut self, thread: &Thread) -> Who {
        self.seq += 1;
        Who { grid: self.grid, slot: thread.slot, clock: thread.clock[thread.slot], seq: self.seq, base: self.base }
    }

    fn memory<'m>(&'m mut self, buf: Buf, locals: &'m mut [Option<Memory>]) -> &'m mut Memory {
        let own = match buf {
            Buf::Param(i) => return &mut self.params[i as usize],
            Buf::Alloc(i) => i as usize,
        };
        let private = locals.get_mut(own).and_then(Option::as_mut);
        private.or(self.allocs[own].as_mut()).expect("verified: allocations live where they are used")
    }

    /// The flat index of a lane of an access.
    fn locate(&mut self, place: &Place, thread: &mut Thread, lane: usize, lanes: u32) -> Result<u64, RunFault> {
        let mut at: Vec<i64> = place.index.iter().map(|v| thread.int(*v)).collect();
        let runs = place.index.last().map_or(1, |last| self.kernel.ty(*last).lanes);
        let run = (lanes / runs) as usize;
        if let (Some(last), Some(index)) = (at.last_mut(), place.index.last()) {
            *last = thread.values[index.index()].lane(lane / run) as i64;
            *last = last.saturating_add((lane % run) as i64);
        } else if lane > 0 {
            at.push(lane as i64);
        }
        self.memory(place.buf, &mut thread.locals).locate(at, runs == 1 && lanes > 1 && lane == 0)
    }

    fn locate_tile(&mut self, place: &Place, thread: &mut Thread, row: u32, column: u32) -> Result<u64, RunFault> {
        let mut at: Vec<i64> = place.index.iter().map(|v| thread.int(*v)).collect();
        let n = at.len();
        at[n - 2] = at[n - 2].saturating_add(row as i64);
        at[n - 1] = at[n - 1].saturating_add(column as i64);
        self.memory(place.buf, &mut thread.locals).locate(at, false)
    }

    fn op(&mut self, op: &Op, ty: ValueType, thread: &mut Thread) -> Result<Lanes, RunFault> {
        let kernel = self.kernel;
        let elem = |v: Value| kernel.ty(v).elem;
        if let Op::Load { place, mask, fill } = op {
            let mut out = Vec::with_capacity(ty.lanes as usize);
            for lane in 0..ty.lanes as usize {
                let on = mask.is_none_or(|m| thread.values[m.index()].lane(lane) != 0);
                out.push(if on {
                    let flat = self.locate(place, thread, lane, ty.lanes)?;
                    let who = self.now(thread);
                    self.memory(place.buf, &mut thread.locals).read(flat, &who, &thread.clock)?
                } else {
                    fill.map_or(0, |f| thread.values[f.index()].lane(lane))
                });
            }
            return Ok(if ty.lanes == 1 { Lanes::One(out[0]) } else { Lanes::Many(out) });
        }
        let get = |v: Value| &thread.values[v.index()];
        Ok(match op {
            Op::Const(c) => Lanes::One(match *c {
                Const::Bool(x) => x as u64,
                Const::I32(x) => x as u32 as u64,
                Const::I64(x) => x as u64,
                Const::F32(bits) => bits as u64,
            }),
            Op::GridIndex(d) => Lanes::One(self.coords[*d as usize] as u64),
            Op::Symbol(s) => Lanes::One(*self.symbols.get(s).ok_or(RunFault::NoSymbol { symbol: *s })? as u64),
            Op::Unary(op, a) => {
                let a = get(*a);
                Lanes::of(ty.lanes, |i| unary(*op, ty.elem, a.lane(i)))
            }
            Op::Binary(op, a, b) => {
                let (a, b) = (get(*a), get(*b));
                let divides = matches!(op, BinaryOp::Div | BinaryOp::Rem) && ty.elem != DType::F32;
                if divides && (0..ty.lanes as usize).any(|i| b.lane(i) == 0) {
                    return Err(RunFault::DivisionByZero);
                }
                Lanes::of(ty.lanes, |i| binary(*op, ty.elem, a.lane(i), b.lane(i)))
            }
            Op::Compare(op, a, b) => {
                let (x, y) = (get(*a), get(*b));
                Lanes::of(ty.lanes, |i| compare(*op, elem(*a), x.lane(i), y.lane(i)) as u64)
            }
            Op::Fma(a, b, c) => {
                let (a, b, c) = (get(*a), get(*b), get(*c));
                Lanes::of(ty.lanes, |i| fma(a.lane(i), b.lane(i), c.lane(i)))
            }
            Op::Dot(a, b, c) => {
                let ([a_elem, b_elem], [a, b, c]) = ([a, b].map(|v| elem(*v)), [a, b, c].map(|v| get(*v)));
                let group = dot_group(a_elem, b_elem, ty.elem).unwrap_or(1) as usize;
                Lanes::of(ty.lanes, |i| {
                    let pairs = (group * i..group * (i + 1)).rev().map(|j| (a.lane(j), b.lane(j)));
                    pairs.fold(c.lane(i), |sum, (x, y)| dot_step(a_elem, x, y, sum))
                })
            }
            Op::Matrix(a, b, c) => {
                let operands = [a, b, c].map(|v| get(*v));
                let [a, b, c] = operands.map(|x| move |lane: usize| x.lane(lane));
                Lanes::Many(matrix([&a, &b, &c]))
            }
            Op::Lookup(table, a) => {
                let x = get(*a);
                Lanes::of(ty.lanes, |i| table[x.lane(i) as usize & 15] as u64)
            }
            Op::Zip(half, a, b) => {
                let (a, b, first) = (get(*a), get(*b), half.first(ty.lanes) as usize);
                Lanes::of(ty.lanes, |i| if i % 2 == 0 { a.lane(first + i / 2) } else { b.lane(first + i / 2) })
            }
            Op::Select(c, a, b) => {
                let (c, a, b) = (get(*c), get(*a), get(*b));
                Lanes::of(ty.lanes, |i| if c.lane(i) != 0 { a.lane(i) } else { b.lane(i) })
            }
            Op::Cast(a) => {
                let x = get(*a);
                Lanes::of(ty.lanes, |i| cast(elem(*a), ty.elem, x.lane(i)))
            }
            Op::Bitcast(a) => {
                let (x, from, to) = (get(*a), elem(*a).bits() as usize, ty.elem.bits() as usize);
                let mask = |bits: usize| u64::MAX >> (64 - bits);
                Lanes::of(ty.lanes, |i| match to / from {
                    0 => x.lane(i * to / from) >> (i * to % from) & mask(to),
                    n => (0..n).fold(0, |bits, j| bits | (x.lane(i * n + j) & mask(from)) << (j * from)),
                })
            }
            Op::Splat(a) => {
                let x = get(*a).lane(0);
                Lanes::of(ty.lanes, |_| x)
            }
            Op::Extract(a, lane) => Lanes::One(get(*a).lane(*lane as usize)),
            Op::Iota => Lanes::of(ty.lanes, |i| i as u64),
            Op::Reduce(op, a) => {
                let mut lanes: Vec<u64> = (0..kernel.ty(*a).lanes as usize).map(|i| get(*a).lane(i)).collect();
                while lanes.len() > 1 {
                    let upper = lanes.split_off(lanes.len() / 2);
                    lanes.iter_mut().zip(upper).for_each(|(x, y)| *x = binary(op.binary(), ty.elem, *x, y));
                }
                Lanes::One(lanes[0])
            }
            Op::Load { .. } => unreachable!("handled above"),
        })
    }
}

impl Thread {
    fn int(&self, value: Value) -> i64 {
        self.values[value.index()].lane(0) as i64
    }

    /// Assigns all at once, so that values may change places.
    fn copy_values(&mut self, from: &[Value], to: &[Value]) {
        let new: Vec<Lanes> = from.iter().map(|v| self.values[v.index()].clone()).collect();
        to.iter().zip(new).for_each(|(v, lanes)| self.values[v.index()] = lanes);
    }

    fn learn(&mut self, slot: usize, clock: u32) {
        if self.clock.len() <= slot {
            self.clock.resize(slot + 1, 0);
        }
        self.clock[slot] = self.clock[slot].max(clock);
    }

    fn join(&mut self, other: &[u32]) {
        other.iter().enumerate().for_each(|(slot, clock)| self.learn(slot, *clock));
    }
}
