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
    /// Memory and first elements of rows, sixteen of the warp and eight for each result.
    rows: [(usize, Vec<u64>); 2],
    depth: u64,
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
        let format = self.kernel.buffer(w.a.buf).1;
        let warp = thread.warp.unwrap_or_default();
        let pitch = 128 * 8 / format.bits();
        let mut firsts = [0; 2];
        let mut rows = [(0, Vec::new()), (0, Vec::new())];
        let counts = [64, 8 * w.results.len() as u64];
        for (i, place) in [&w.a, &w.b].into_iter().enumerate() {
            let (to, first) = (self.place_of(place.buf, thread), self.locate(place, thread, 0, 1)?);
            let bytes = format.bytes(first);
            let within = bytes % 128 + format.bytes(w.depth.into()) <= 128;
            if bytes % 1024 >= 128 || !bytes.is_multiple_of(WGMMA_STEP) || !within {
                return Err(self.heap[to].misaligned(first));
            }
            // Of rows a warp has its quarter.
            let all = if i == 0 { 16 * (warp as u64 % 4)..16 * (warp as u64 % 4) + 16 } else { 0..counts[1] };
            rows[i] = (to, all.map(|row| first + row * pitch).collect());
            firsts[i] = first;
        }
        let who = self.now(thread);
        for (to, rows) in &rows {
            for flat in rows.iter().flat_map(|row| *row..*row + u64::from(w.depth)) {
                let memory = &mut self.heap[*to];
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
        let (columns, depth) = (w.results.len(), w.depth.into());
        thread.products.push(Product { id, sums, columns, format, rows, depth });
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
            for (factors, (to, rows)) in factors.iter_mut().zip(&product.rows) {
                for row in rows {
                    let open = |p: &Product| p.rows.iter().any(|(other, rows)| other == to && rows.contains(row));
                    let open = thread.products.iter().any(open);
                    let bits = (*row..*row + product.depth).map(|flat| self.heap[*to].end_read(flat, &who, open));
                    factors.push(bits.collect::<Vec<u64>>());
                }
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
