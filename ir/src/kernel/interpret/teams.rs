//! What warps of a block do together: barriers, copies that are waited for, products of tiles.

use super::arith::products;
use super::*;

/// A barrier that completes a phase when all have arrived.
#[derive(Clone, Debug)]
pub(super) struct Barrier {
    expected: u32,
    arrived: u32,
    /// Number of the phase that is not complete.
    phase: u64,
    /// What those who have arrived knew.
    gathered: Vec<u32>,
    /// What was known at the end of the latest phases of either parity.
    complete: [Vec<u32>; 2],
}

impl Barrier {
    pub fn new(expected: u32) -> Barrier {
        Barrier { expected, arrived: 0, phase: 0, gathered: Vec::new(), complete: Default::default() }
    }

    fn arrive(&mut self, clock: &[u32]) {
        join(&mut self.gathered, clock);
        self.arrived += 1;
        if self.arrived >= self.expected {
            self.complete[(self.phase & 1) as usize] = std::mem::take(&mut self.gathered);
            self.phase += 1;
            self.arrived = 0;
        }
    }

    /// What is known after a phase of this parity, if it is complete.
    fn passed(&self, parity: u64) -> Option<&[u32]> {
        (self.phase & 1 != parity).then_some(&self.complete[parity as usize])
    }
}

/// A product's statement and the first elements of its factors.
pub(super) type Multiplied = (usize, u64, u64);

/// Elements on their way to shared memory.
pub(super) struct Copied {
    to: usize,
    elements: Vec<(u64, u64)>,
}

/// A product that is not settled.
pub(super) struct Product {
    id: u64,
    sums: Vec<Lanes>,
    columns: usize,
    format: DType,
    /// Sixteen rows of the warp, and eight for each result.
    factors: [Factor; 2],
    depth: u64,
}

/// A factor of a product that is not settled.
enum Factor {
    /// Rows of elements.
    Values(Vec<Vec<u64>>),
    /// Where it is in memory, in runs of a first element and a length: rows, or where there are panels what is summed over,
    /// panel by panel.
    Tile { memory: usize, runs: Vec<(u64, u64)>, across: bool },
}

impl Factor {
    fn reads(&self, memory: usize, run: (u64, u64)) -> bool {
        matches!(self, Factor::Tile { memory: own, runs, .. } if *own == memory && runs.contains(&run))
    }
}

fn join(clock: &mut Vec<u32>, other: &[u32]) {
    clock.resize(clock.len().max(other.len()), 0);
    clock.iter_mut().zip(other).for_each(|(a, b)| *a = (*a).max(*b));
}

impl Thread {
    pub(super) fn learn(&mut self, slot: usize, clock: u32) {
        self.clock.resize(self.clock.len().max(slot + 1), 0);
        self.clock[slot] = self.clock[slot].max(clock);
    }

    pub(super) fn join(&mut self, other: &[u32]) {
        join(&mut self.clock, other);
    }
}

impl Machine<'_> {
    pub(super) fn team_op(&mut self, op: &TeamOp, thread: &mut Thread) -> Step {
        match op {
            TeamOp::Arrive(place) => {
                let (barriers, i) = self.barrier(place, thread)?;
                self.barriers[barriers][i].arrive(&thread.clock);
                thread.clock[thread.slot] += 1;
            }
            TeamOp::Wait { place, parity } => {
                let (barriers, i) = self.barrier(place, thread)?;
                let parity = thread.int(*parity) as u64 & 1;
                match self.barriers[barriers][i].passed(parity) {
                    Some(known) => thread.join(known),
                    None => thread.state = State::Waits(barriers, i, parity),
                }
            }
            TeamOp::Commit => thread.committed.push(std::mem::take(&mut thread.copies)),
            TeamOp::AwaitCopies(pending) => {
                let done = thread.committed.len().saturating_sub(*pending as usize);
                let who = self.now(thread);
                for copied in thread.committed.drain(..done).flatten() {
                    for (flat, bits) in copied.elements {
                        self.heap[copied.to].end_copy(flat, bits, &who);
                    }
                }
            }
            TeamOp::FenceAsync => {
                self.fences[thread.slot].push(thread.clock[thread.slot]);
                thread.clock[thread.slot] += 1;
            }
            TeamOp::Registers(_) => {}
        }
        Ok(())
    }

    /// Lets those go on whose phase is complete.
    pub(super) fn wake(&self, threads: &mut [Thread]) {
        for thread in threads {
            if let State::Waits(barriers, i, parity) = thread.state
                && let Some(known) = self.barriers[barriers][i].passed(parity)
            {
                thread.join(known);
                thread.state = State::Ready;
            }
        }
    }

    pub(super) fn what_it_waits_for(&self, thread: &Thread) -> Option<String> {
        let State::Waits(barriers, i, parity) = thread.state else { return None };
        let of =
            |a: usize| matches!(self.kernel.allocs[a].space, Space::Barrier(_)) && thread.allocs[a] == Some(barriers);
        let name = (0..thread.allocs.len()).find(|a| of(*a)).map_or("?", |a| &self.kernel.allocs[a].name);
        let Barrier { arrived, expected, .. } = self.barriers[barriers][i];
        let warp = thread.warp.unwrap_or_default();
        Some(format!("warp {warp} waits for {name}[{i}] parity {parity}, where {arrived} of {expected} have arrived"))
    }

    fn barrier(&mut self, place: &Place, thread: &Thread) -> Result<(usize, usize), RunFault> {
        let Buf::Alloc(a) = place.buf else { unreachable!("verified: barriers are allocations") };
        let alloc = &self.kernel.allocs[a as usize];
        let at: Vec<i64> = place.index.iter().map(|v| thread.int(*v)).collect();
        let shape = alloc.shape.iter().map(|d| d.eval(self.symbols));
        let shape: Vec<i64> = shape.collect::<Result<_, Sym>>().map_err(|symbol| RunFault::NoSymbol { symbol })?;
        let flat = memory::locate(&alloc.name, &shape, &at)?;
        Ok((thread.allocs[a as usize].expect("verified: allocations live where they are used"), flat as usize))
    }

    pub(super) fn copy(&mut self, c: &AsyncCopy, thread: &mut Thread) -> Step {
        let runs = c.to.index.last().map_or(1, |v| self.kernel.ty(*v).lanes);
        let run = (c.lanes / runs) as usize;
        let mut elements = Vec::new();
        for lane in 0..c.lanes as usize {
            let count = c.counts.map_or(i64::MAX, |v| thread.values[v.index()].lane(lane / run) as i64);
            let mut bits = 0;
            if ((lane % run) as i64) < count {
                let (who, flat) = (self.now(thread), self.locate(&c.from, thread, lane, c.lanes)?);
                bits = self.memory(c.from.buf, thread).read(flat, &who, &thread.clock)?;
            }
            let (who, flat) = (self.now(thread), self.locate(&c.to, thread, lane, c.lanes)?);
            self.memory(c.to.buf, thread).begin_copy(flat, &who, &thread.clock)?;
            elements.push((flat, bits));
        }
        let to = self.place_of(c.to.buf, thread);
        thread.copies.push(Copied { to, elements });
        Ok(())
    }

    fn place_of(&self, buf: Buf, thread: &Thread) -> usize {
        match buf {
            Buf::Alloc(a) => thread.allocs[a as usize].expect("verified: allocations live where they are used"),
            Buf::Param(_) => unreachable!("verified: copies and products are of allocations"),
        }
    }

    pub(super) fn wgmma(&mut self, w: &Wgmma, thread: &mut Thread) -> Step {
        let format = self.kernel.buffer(w.b.buf).1;
        let warp = thread.warp.unwrap_or_default();
        let (pitch, depth) = (128 * 8 / format.bits(), u64::from(w.depth));
        let start = |machine: &mut Self, place: &Place, within: u64| {
            let (to, first) = (machine.place_of(place.buf, thread), machine.locate(place, thread, 0, 1)?);
            let bytes = format.bytes(first);
            if bytes % 1024 >= 128 || !bytes.is_multiple_of(WGMMA_STEP) || bytes % 128 + within > 128 {
                return Err(machine.heap[to].misaligned(first));
            }
            Ok((to, first))
        };
        let (columns, bytes) = (8 * w.results.len() as u64, format.bytes(depth));
        let mut firsts = [0; 2];
        let a = match &w.a {
            WgmmaRows::Tile(place) => {
                let (memory, first) = start(self, place, bytes)?;
                firsts[0] = first;
                // Of rows a warp has its quarter.
                let own = 16 * (warp as u64 % 4);
                let runs = (own..own + 16).map(|row| (first + row * pitch, depth)).collect();
                Factor::Tile { memory, runs, across: false }
            }
            WgmmaRows::Values(values) => {
                let mut rows = vec![vec![0; 8 * values.len()]; 16];
                for (i, value) in values.iter().enumerate() {
                    for lane in 0..WGMMA_VALUES.lanes {
                        let (row, column) = matrix_place(2, lane);
                        rows[row as usize][8 * i + column as usize] = thread.values[value.index()].lane(lane as usize);
                    }
                }
                Factor::Values(rows)
            }
        };
        let (memory, first) = start(self, &w.b, if w.panels.is_some() { 128 } else { bytes })?;
        firsts[1] = first;
        let runs = match w.panels {
            None => (0..columns).map(|row| (first + row * pitch, depth)).collect(),
            Some(apart) => {
                let of = |at: u64| {
                    let panel = first + at / 64 * u64::from(apart);
                    (0..depth).map(move |k| (panel + k * pitch, (columns - at).min(64)))
                };
                (0..columns).step_by(64).flat_map(of).collect()
            }
        };
        let factors = [a, Factor::Tile { memory, runs, across: w.panels.is_some() }];
        let who = self.now(thread);
        for factor in &factors {
            let Factor::Tile { memory, runs, .. } = factor else { continue };
            for flat in runs.iter().flat_map(|(first, count)| *first..first + count) {
                let memory = &mut self.heap[*memory];
                memory.is_inside(flat)?;
                if let Some((slot, clock)) = memory.begin_read(flat, &who, &thread.clock)? {
                    let known = thread.clock.get(slot).copied().unwrap_or_default();
                    let fence = self.fences.get(slot).and_then(|f| f[f.partition_point(|c| *c < clock)..].first());
                    if fence.is_none_or(|fence| *fence > known) {
                        return Err(memory.no_fence(flat));
                    }
                }
            }
        }
        let key = (thread.parent, warp / 4);
        let all = self.warpgroups.entry(key).or_default();
        let this = (w as *const Wgmma as usize, firsts[0], firsts[1]);
        if all.len() <= thread.issued {
            all.push(this);
        } else if all[thread.issued] != this {
            return Err(RunFault::Diverges { warp });
        }
        thread.issued += 1;
        self.products += 1;
        let id = self.products;
        let sums = w.sums.iter().map(|v| thread.values[v.index()].clone()).collect();
        let columns = w.results.len();
        thread.products.push(Product { id, sums, columns, format, factors, depth });
        for (i, v) in w.results.iter().enumerate() {
            thread.values[v.index()] = Lanes::Open(id, i);
        }
        Ok(())
    }

    /// Whether all warps of each warpgroup have taken part in all of its products.
    pub(super) fn all_multiplied(&mut self, parent: usize, threads: &[Thread]) -> Step {
        let warps: Vec<&Thread> = threads.iter().filter(|t| t.parent == parent && t.warp.is_some()).collect();
        for ((_, warpgroup), all) in std::mem::take(&mut self.warpgroups) {
            let of = |warp: i64| warps.iter().rev().find(|t| t.warp == Some(warp));
            for warp in 4 * warpgroup..4 * warpgroup + 4 {
                if of(warp).is_none_or(|t| t.issued != all.len()) {
                    return Err(RunFault::Diverges { warp });
                }
            }
        }
        Ok(())
    }

    pub(super) fn settle(&mut self, s: &Settle, thread: &mut Thread) -> Step {
        let done = thread.products.len().saturating_sub(s.pending as usize);
        let who = self.now(thread);
        for product in thread.products.drain(..done).collect::<Vec<_>>() {
            let mut factors = [Vec::new(), Vec::new()];
            for (rows, factor) in factors.iter_mut().zip(product.factors) {
                let (memory, runs, across) = match factor {
                    Factor::Values(values) => {
                        *rows = values;
                        continue;
                    }
                    Factor::Tile { memory, runs, across } => (memory, runs, across),
                };
                let read: Vec<Vec<u64>> = runs
                    .iter()
                    .map(|run| {
                        let open = thread.products.iter().any(|p| p.factors.iter().any(|f| f.reads(memory, *run)));
                        (run.0..run.0 + run.1).map(|flat| self.heap[memory].end_read(flat, &who, open)).collect()
                    })
                    .collect();
                *rows = if !across {
                    read
                } else {
                    let column = |panel: &[Vec<u64>], i: usize| panel.iter().map(|row| row[i]).collect::<Vec<u64>>();
                    let panels = read.chunks(product.depth as usize);
                    panels.flat_map(|panel| (0..panel[0].len()).map(|i| column(panel, i))).collect()
                };
            }
            let mut sums = Vec::new();
            for sum in &product.sums {
                sums.push(thread.take_settled(sum)?);
            }
            let results = (0..product.columns).map(|i| {
                let columns = &factors[1][8 * i..8 * i + 8];
                Lanes::Many(products(product.format, (&factors[0], columns), |lane| {
                    sums.get(i).map_or(0, |s| s.lane(lane))
                }))
            });
            thread.settled.insert(product.id, results.collect());
        }
        let results: Result<Vec<Lanes>, RunFault> =
            s.open.iter().map(|v| thread.take_settled(&thread.values[v.index()].clone())).collect();
        for (v, lanes) in s.results.iter().zip(results?) {
            thread.values[v.index()] = lanes;
        }
        Ok(())
    }
}

impl Thread {
    /// A sum that is known, or is the result of a product that is settled, which is used once.
    fn take_settled(&mut self, lanes: &Lanes) -> Result<Lanes, RunFault> {
        let Lanes::Open(id, i) = lanes else { return Ok(lanes.clone()) };
        let all = self.settled.get_mut(id).ok_or(RunFault::OpenSum)?;
        let taken = std::mem::replace(&mut all[*i], Lanes::Open(*id, *i));
        if all.iter().all(|l| matches!(l, Lanes::Open(..))) {
            self.settled.remove(id);
        }
        if matches!(taken, Lanes::Open(..)) { Err(RunFault::OpenSum) } else { Ok(taken) }
    }
}
