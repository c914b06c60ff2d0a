//! Runs kernels slowly and says what is wrong with them: the reference for every code generator.
//!
//! A grid index runs after the other. Inside one, a loop over warps makes a thread of each iteration, which runs until
//! it waits for others; which one goes on is drawn from a seed. That order alone would hide races, so every element of a
//! writable buffer remembers who wrote it and who read it, and threads carry vector clocks that barriers join: two
//! accesses of which one writes, not ordered by barriers, are a race, as are accesses of two grid indices of which one
//! writes. Elements also remember whether they were ever written. What is asynchronous (`teams`) happens as late as it
//! may: when it is waited for. Until then nobody may touch what it writes, or write what it reads.

mod arith;
mod memory;
mod teams;

pub use memory::Buffer;

use super::*;
use arith::{binary, cast, compare, dot_step, fma, matrix, unary};
use hadal_types::Bindings;
use memory::{Memory, Who};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use teams::{Barrier, Copied, Multiplied, Product};

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
    #[error(
        "a vector of packed 4-bit elements begins inside a byte, or a product inside of a row: {buffer}[{}]",
        list(at)
    )]
    Misaligned { buffer: String, at: Vec<i64> },
    #[error("division by zero")]
    DivisionByZero,
    #[error("no warp goes on: {}", waiting.join("; "))]
    Deadlock { waiting: Vec<String> },
    #[error("{count} copies and products are never waited for")]
    Unfinished { count: usize },
    #[error("{buffer}[{}] is read by a product, but was written without `fence_async` after it", list(at))]
    NoFence { buffer: String, at: Vec<i64> },
    #[error("a sum of a product that is not settled, or was used before, is used")]
    OpenSum,
    #[error("warp {warp} does not take part in the products of its warpgroup")]
    Diverges { warp: i64 },
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
    run_seeded(kernel, symbols, args, (range, steps), 0)
}

/// The same with an order of warps that depends on the seed.
pub fn run_seeded(
    kernel: &Kernel,
    symbols: &Bindings,
    args: &mut [Buffer],
    (range, steps): (Range<i64>, u64),
    seed: u64,
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
    let mut code = Vec::new();
    flatten(&kernel.body, &mut code);
    let mut machine = Machine {
        kernel,
        symbols,
        code,
        params,
        heap: Vec::new(),
        barriers: Vec::new(),
        coords: Vec::new(),
        grid: 0,
        seq: 0,
        base: 0,
        fences: Vec::new(),
        products: 0,
        kept: (0, 0),
        warpgroups: BTreeMap::new(),
        steps,
        limit: steps,
        seed,
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

/// One step of a thread: statements in a row, with jumps for what is nested.
#[derive(Clone, Copy)]
enum Inst<'a> {
    /// A statement without statements inside.
    Plain(&'a Stmt),
    /// Starts a loop one iteration after the other, or goes on there if it has none.
    Enter(&'a For, usize),
    /// After an iteration: the next one, which begins there, or the results.
    Next(&'a For, usize),
    /// Goes on there if the condition is false.
    Branch(&'a If, usize),
    /// What a branch yields are the results; goes on there.
    Give(&'a If, &'a Block, usize),
    /// Starts a thread for each iteration, and goes on there after all of them.
    Fork(&'a For, usize),
    /// The end of a thread.
    End,
}

fn flatten<'a>(block: &'a Block, code: &mut Vec<(Option<&'a Stmt>, Inst<'a>)>) {
    for stmt in &block.stmts {
        let head = code.len();
        let about = Some(stmt);
        match stmt {
            Stmt::For(l) => {
                code.push((about, Inst::End));
                flatten(&l.body, code);
                let concurrent = l.kind == LoopKind::Warp;
                code.push((about, if concurrent { Inst::End } else { Inst::Next(l, head + 1) }));
                let after = code.len();
                code[head].1 = if concurrent { Inst::Fork(l, after) } else { Inst::Enter(l, after) };
            }
            Stmt::If(c) => {
                code.push((about, Inst::End));
                flatten(&c.then, code);
                let then = code.len();
                code.push((about, Inst::End));
                code[head].1 = Inst::Branch(c, then + 1);
                flatten(&c.otherwise, code);
                let after = code.len() + 1;
                code.push((about, Inst::Give(c, &c.otherwise, after)));
                code[then].1 = Inst::Give(c, &c.then, after);
            }
            stmt => code.push((about, Inst::Plain(stmt))),
        }
    }
}

/// A value's lanes as raw bits.
#[derive(Clone, Debug)]
enum Lanes {
    One(u64),
    Many(Vec<u64>),
    /// So many eight columns of a product that may not be settled.
    Open(u64, usize),
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
            // Asked for before it is used.
            Lanes::Open(..) => 0,
        }
    }
}

/// What a thread does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Ready,
    /// Waits for the end of so many threads, to go on there.
    Joins(usize, usize),
    /// Waits for a phase to be complete: which barriers, which of them, parity.
    Waits(usize, usize, u64),
    Done,
}

struct Thread {
    at: usize,
    state: State,
    parent: usize,
    values: Vec<Lanes>,
    /// Number within the grid index.
    slot: usize,
    /// For each thread of this grid index, the last step of it that is ordered before now.
    clock: Vec<u32>,
    /// Iteration of the nearest enclosing loop over warps.
    warp: Option<i64>,
    /// Where allocations are: numbers of memory, or of barriers.
    allocs: Vec<Option<usize>>,
    copies: Vec<Copied>,
    committed: Vec<Vec<Copied>>,
    products: Vec<Product>,
    settled: HashMap<u64, Vec<Lanes>>,
    /// Products so far.
    issued: usize,
}

struct Machine<'a> {
    kernel: &'a Kernel,
    symbols: &'a Bindings,
    code: Vec<(Option<&'a Stmt>, Inst<'a>)>,
    params: Vec<Memory>,
    heap: Vec<Memory>,
    barriers: Vec<Vec<Barrier>>,
    coords: Vec<i64>,
    grid: i64,
    /// Counts accesses.
    seq: u64,
    /// Accesses before this one are ordered before everything now: there was a single thread since.
    base: u64,
    /// For each thread, its steps after which what it wrote can be read by products.
    fences: Vec<Vec<u32>>,
    /// Products so far.
    products: u64,
    /// Memory and barriers of the first thread, while there are others.
    kept: (usize, usize),
    /// What the warps of a warpgroup multiply, one after the other.
    warpgroups: BTreeMap<(usize, i64), Vec<Multiplied>>,
    steps: u64,
    limit: u64,
    seed: u64,
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
        self.base = self.seq;
        self.fences = vec![Vec::new()];
        self.heap.clear();
        self.barriers.clear();
        let mut threads = vec![Thread {
            at: 0,
            state: State::Ready,
            parent: 0,
            values: vec![Lanes::One(0); self.kernel.values.len()],
            slot: 0,
            clock: vec![1],
            warp: None,
            allocs: vec![None; self.kernel.allocs.len()],
            copies: Vec::new(),
            committed: Vec::new(),
            products: Vec::new(),
            settled: HashMap::new(),
            issued: 0,
        }];
        while let Some(next) = self.next(&threads)? {
            while threads.get(next).is_some_and(|t| t.state == State::Ready) {
                self.step(next, &mut threads)?;
            }
            self.wake(&mut threads);
        }
        Ok(())
    }

    /// A thread that goes on; none when all have ended.
    fn next(&mut self, threads: &[Thread]) -> Result<Option<usize>, RunFault> {
        if threads[0].state == State::Ready {
            return Ok(Some(0));
        }
        let ready: Vec<usize> = (0..threads.len()).filter(|t| threads[*t].state == State::Ready).collect();
        if ready.is_empty() {
            if threads[0].state == State::Done {
                return Ok(None);
            }
            let waiting = threads.iter().filter_map(|t| self.what_it_waits_for(t)).collect();
            return Err(RunFault::Deadlock { waiting });
        }
        // Without a seed the first one; otherwise a step of a linear congruence.
        let drawn = (self.seed >> 33) as usize;
        if self.seed != 0 {
            self.seed = self.seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407) | 1 << 40;
        }
        Ok(Some(ready[drawn % ready.len()]))
    }

    fn step(&mut self, t: usize, threads: &mut Vec<Thread>) -> Step {
        let Some((stmt, inst)) = self.code.get(threads[t].at).copied() else {
            return self.end(t, threads);
        };
        self.statement = stmt;
        self.steps = self.steps.checked_sub(1).ok_or(RunFault::Steps { limit: self.limit })?;
        let thread = &mut threads[t];
        thread.at += 1;
        match inst {
            Inst::Plain(stmt) => self.stmt(stmt, thread)?,
            Inst::Enter(l, after) => {
                if thread.int(l.lo) < thread.int(l.hi) {
                    thread.copy_values(&l.init, &l.carried);
                    thread.values[l.var.index()] = Lanes::One(thread.int(l.lo) as u64);
                } else {
                    thread.copy_values(&l.init, &l.results);
                    thread.at = after;
                }
            }
            Inst::Next(l, start) => {
                thread.copy_values(&l.body.yields, &l.carried);
                match thread.int(l.var).checked_add(l.step).filter(|i| *i < thread.int(l.hi)) {
                    Some(i) => {
                        thread.values[l.var.index()] = Lanes::One(i as u64);
                        thread.at = start;
                    }
                    None => thread.copy_values(&l.carried, &l.results),
                }
            }
            Inst::Branch(c, otherwise) => {
                if thread.values[c.cond.index()].lane(0) == 0 {
                    thread.at = otherwise;
                }
            }
            Inst::Give(c, block, after) => {
                thread.copy_values(&block.yields, &c.results);
                thread.at = after;
            }
            Inst::Fork(l, after) => self.fork(l, after, t, threads)?,
            Inst::End => self.end(t, threads)?,
        }
        Ok(())
    }

    fn fork(&mut self, l: &'a For, after: usize, t: usize, threads: &mut Vec<Thread>) -> Step {
        let (lo, hi) = (threads[t].int(l.lo), threads[t].int(l.hi));
        if t == 0 {
            self.kept = (self.heap.len(), self.barriers.len());
        }
        let mut children = 0;
        for i in (lo..hi).step_by(l.step as usize) {
            self.steps = self.steps.checked_sub(64).ok_or(RunFault::Steps { limit: self.limit })?;
            let parent = &threads[t];
            let slot = self.fences.len();
            self.fences.push(Vec::new());
            let mut child = Thread {
                at: parent.at,
                state: State::Ready,
                parent: t,
                values: parent.values.clone(),
                slot,
                clock: parent.clock.clone(),
                warp: Some(i),
                allocs: parent.allocs.clone(),
                copies: Vec::new(),
                committed: Vec::new(),
                products: Vec::new(),
                settled: HashMap::new(),
                issued: 0,
            };
            child.values[l.var.index()] = Lanes::One(i as u64);
            child.learn(slot, 1);
            threads.push(child);
            children += 1;
        }
        threads[t].at = after;
        if children > 0 {
            threads[t].state = State::Joins(children, after);
        }
        Ok(())
    }

    fn end(&mut self, t: usize, threads: &mut Vec<Thread>) -> Step {
        let thread = &mut threads[t];
        thread.state = State::Done;
        let copies = thread.copies.len() + thread.committed.iter().map(Vec::len).sum::<usize>();
        match copies + thread.products.len() {
            0 => {}
            count => return Err(RunFault::Unfinished { count }),
        }
        thread.values = Vec::new();
        if t == 0 {
            return Ok(());
        }
        let (parent, clock) = (thread.parent, std::mem::take(&mut thread.clock));
        threads[parent].join(&clock);
        let State::Joins(left, after) = threads[parent].state else { return Ok(()) };
        threads[parent].state = if left > 1 { State::Joins(left - 1, after) } else { State::Ready };
        if left > 1 {
            return Ok(());
        }
        self.all_multiplied(parent, threads)?;
        if parent == 0 {
            threads.truncate(1);
            self.base = self.seq;
            self.fences.truncate(1);
            self.heap.truncate(self.kept.0);
            self.barriers.truncate(self.kept.1);
            threads[0].clock.truncate(1);
        }
        Ok(())
    }

    fn stmt(&mut self, stmt: &'a Stmt, thread: &mut Thread) -> Step {
        match stmt {
            Stmt::Let(value, op) => {
                let lanes = self.op(op, self.kernel.ty(*value), thread)?;
                thread.values[value.index()] = lanes;
            }
            Stmt::Store { place, value, mask } => {
                thread.is_settled(*value)?;
                let lanes = self.kernel.ty(*value).lanes;
                for lane in 0..lanes as usize {
                    if mask.is_none_or(|m| thread.values[m.index()].lane(lane) != 0) {
                        let flat = self.locate(place, thread, lane, lanes)?;
                        let bits = thread.values[value.index()].lane(lane);
                        let who = self.now(thread);
                        self.memory(place.buf, thread).write(flat, bits, &who, &thread.clock)?;
                    }
                }
            }
            Stmt::Prefetch(_) => {}
            Stmt::Alloc(i) => self.alloc(*i, thread)?,
            Stmt::Team(op) => self.team_op(op, thread)?,
            Stmt::Copy(c) => self.copy(c, thread)?,
            Stmt::Wgmma(w) => self.wgmma(w, thread)?,
            Stmt::Settle(s) => self.settle(s, thread)?,
            Stmt::For(_) | Stmt::If(_) => unreachable!("flattened"),
        }
        Ok(())
    }

    fn alloc(&mut self, i: u32, thread: &mut Thread) -> Step {
        let alloc = &self.kernel.allocs[i as usize];
        let sizes = alloc.shape.iter().map(|d| d.eval(self.symbols));
        let shape: Vec<i64> = sizes.collect::<Result<_, Sym>>().map_err(|symbol| RunFault::NoSymbol { symbol })?;
        // One that a loop brings into being again takes the place of the former.
        let old = thread.allocs[i as usize];
        if let Space::Barrier(arrivals) = alloc.space {
            let count = memory::count(&alloc.name, &shape)?;
            let new = vec![Barrier::new(arrivals); count as usize];
            let at = old.unwrap_or(self.barriers.len());
            self.barriers.resize_with(self.barriers.len().max(at + 1), Vec::new);
            self.barriers[at] = new;
            thread.allocs[i as usize] = Some(at);
            return Ok(());
        }
        let new = Memory::new(&alloc.name, alloc.dtype, shape)?;
        match old {
            Some(at) => self.heap[at] = new,
            None => {
                thread.allocs[i as usize] = Some(self.heap.len());
                self.heap.push(new);
            }
        }
        Ok(())
    }

    fn now(&mut self, thread: &Thread) -> Who {
        self.seq += 1;
        Who { grid: self.grid, slot: thread.slot, clock: thread.clock[thread.slot], seq: self.seq, base: self.base }
    }

    fn memory(&mut self, buf: Buf, thread: &Thread) -> &mut Memory {
        match buf {
            Buf::Param(i) => &mut self.params[i as usize],
            Buf::Alloc(i) => {
                let at = thread.allocs[i as usize].expect("verified: allocations live where they are used");
                &mut self.heap[at]
            }
        }
    }

    /// The flat index of a lane of an access.
    fn locate(&mut self, place: &Place, thread: &Thread, lane: usize, lanes: u32) -> Result<u64, RunFault> {
        let mut at: Vec<i64> = place.index.iter().map(|v| thread.int(*v)).collect();
        let runs = place.index.last().map_or(1, |last| self.kernel.ty(*last).lanes);
        let run = (lanes / runs) as usize;
        if let (Some(last), Some(index)) = (at.last_mut(), place.index.last()) {
            *last = thread.values[index.index()].lane(lane / run) as i64;
            *last = last.saturating_add((lane % run) as i64);
        } else if lane > 0 {
            at.push(lane as i64);
        }
        self.memory(place.buf, thread).locate(at, runs == 1 && lanes > 1 && lane == 0)
    }

    fn op(&mut self, op: &Op, ty: ValueType, thread: &Thread) -> Result<Lanes, RunFault> {
        let mut settled = Ok(());
        op.for_each_operand(|v| settled = settled.clone().and(thread.is_settled(v)));
        settled?;
        let kernel = self.kernel;
        let elem = |v: Value| kernel.ty(v).elem;
        if let Op::Load { place, mask, fill } = op {
            let mut out = Vec::with_capacity(ty.lanes as usize);
            for lane in 0..ty.lanes as usize {
                let on = mask.is_none_or(|m| thread.values[m.index()].lane(lane) != 0);
                out.push(if on {
                    let flat = self.locate(place, thread, lane, ty.lanes)?;
                    let who = self.now(thread);
                    self.memory(place.buf, thread).read(flat, &who, &thread.clock)?
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
            Op::Rank(a) => {
                let mask = get(*a);
                Lanes::of(ty.lanes, |i| (0..i).filter(|j| mask.lane(*j) != 0).count() as u64)
            }
            Op::Rows(op, a) => {
                // Neighbours, then pairs of them, then halves of the row.
                let mut lanes: Vec<u64> = (0..MATRIX[2].lanes as usize).map(|i| get(*a).lane(i)).collect();
                let row = |lane: usize| matrix_place(2, lane as u32).0;
                let column = |lane: usize| matrix_place(2, lane as u32).1;
                for step in [1, 2, 4] {
                    let of = |lane: usize, column_of: u32| {
                        let found = (0..lanes.len()).find(|i| row(*i) == row(lane) && column(*i) == column_of);
                        lanes[found.expect("rows have eight columns")]
                    };
                    let pair = |lane: usize| (of(lane, column(lane) & !step), of(lane, column(lane) | step));
                    let pairs: Vec<(u64, u64)> = (0..lanes.len()).map(pair).collect();
                    lanes = pairs.into_iter().map(|(x, y)| binary(op.binary(), ty.elem, x, y)).collect();
                }
                Lanes::Many(lanes)
            }
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

    fn is_settled(&self, value: Value) -> Step {
        if matches!(self.values[value.index()], Lanes::Open(..)) { Err(RunFault::OpenSum) } else { Ok(()) }
    }

    /// Assigns all at once, so that values may change places.
    fn copy_values(&mut self, from: &[Value], to: &[Value]) {
        let new: Vec<Lanes> = from.iter().map(|v| self.values[v.index()].clone()).collect();
        to.iter().zip(new).for_each(|(v, lanes)| self.values[v.index()] = lanes);
    }
}
