//! `cp.async`: copies of words by lanes, which happen as late as they may.
//!
//! Until its lane waits for it, a copy owns what it will write and read. Then it counts as written by that lane.

use super::Machine;
use super::clock::{Component, Level};
use super::memory::{Target, Touched};
use super::shadow::{OPERATION, Stamp};
use super::tensor::Transfer;
use super::warp::{Warp, lanes};
use crate::fault::{FaultKind, Run, Trouble, trouble, trouble_at};
use crate::program::Op;
use crate::types::Space;

/// A copy that a lane asked for.
#[derive(Clone, Debug)]
pub(crate) struct WordCopy {
    to: Target,
    from: Target,
    bytes: u32,
    /// How many come from the source; the rest are zeros.
    given: u32,
    operation: u32,
}

/// Bulk copies of a lane that a group tells the end of.
#[derive(Clone, Debug)]
pub(crate) struct BulkGroup {
    /// Reads of shared memory, and writes.
    pub operations: Vec<(u32, u32)>,
}

/// What a lane has on the way.
#[derive(Clone, Debug, Default)]
pub(crate) struct LaneCopies {
    open: Vec<WordCopy>,
    groups: Vec<Vec<WordCopy>>,
    /// Components of reads and writes of bulk copies.
    pub components: Option<(Component, Component)>,
    pub bulk_open: Vec<(u32, u32)>,
    pub bulk_groups: Vec<BulkGroup>,
    /// Groups that were committed in all, and those that were waited for.
    pub bulk_committed: u32,
    pub bulk_waited: u32,
}

/// Something that completes by itself.
#[derive(Debug)]
pub(crate) enum Pending {
    /// Copies of words, after which a barrier is told.
    Words {
        slot: usize,
        warp: u32,
        lane: usize,
        copies: Vec<WordCopy>,
        barrier: (usize, u32),
        component: Component,
    },
    Transfer(Box<Transfer>),
}

impl Pending {
    /// Whether it uses the memory of a block.
    pub(crate) fn touches(&self, slot: usize) -> bool {
        match self {
            Pending::Words { slot: s, .. } => *s == slot,
            Pending::Transfer(transfer) => transfer.touches(slot),
        }
    }

    pub(crate) fn describe(&self) -> &'static str {
        match self {
            Pending::Words { .. } => "a `cp.async`",
            Pending::Transfer(_) => "a bulk copy",
        }
    }
}

impl Warp {
    pub(super) fn copies_left(&self) -> bool {
        self.copies.iter().any(|c| {
            let bulk = !c.bulk_open.is_empty() || c.bulk_committed > c.bulk_waited;
            bulk || !c.open.is_empty() || c.groups.iter().any(|g| !g.is_empty())
        })
    }
}

impl Machine<'_> {
    /// An operation that is not done.
    pub(super) fn new_operation(&mut self, cluster: u32, component: Component) -> u32 {
        let done = &mut self.operations[cluster as usize].done;
        done.push((component, None));
        done.len() as u32 - 1
    }

    pub(super) fn operation_stamp(&self, warp: &Warp, operation: u32, asynchronous: bool) -> Stamp {
        Stamp {
            who: operation | OPERATION,
            cluster: warp.views.cluster,
            time: 0,
            pc: warp.pc,
            strong: false,
            asynchronous,
        }
    }

    pub(super) fn copy(&mut self, warp: &mut Warp, op: &Op, active: u32) -> Run<()> {
        match op {
            Op::CopyAsync { to, from, bytes, given, ignore } => {
                let mut touched = Touched::default();
                for lane in lanes(active) {
                    let given = match (given, ignore) {
                        (Some(given), _) => warp.lane(*given, lane) as u32,
                        (_, Some(ignore)) if warp.lane(*ignore, lane) & 1 == 1 => 0,
                        _ => *bytes,
                    };
                    if given > *bytes {
                        let message = format!("{given} bytes of a source for a copy of {bytes}");
                        return trouble(FaultKind::OutOfBounds, 1 << lane, message);
                    }
                    let (to, from) = (self.address(warp, to, lane), self.address(warp, from, lane));
                    self.start_words(warp, lane, (to, from), (*bytes, given), &mut touched)?;
                }
                self.count(&touched, *bytes, false, warp.pc);
            }
            Op::CopyCommit => {
                for lane in lanes(active) {
                    let open = std::mem::take(&mut warp.copies[lane].open);
                    warp.copies[lane].groups.push(open);
                }
            }
            Op::CopyWait { left } => {
                for lane in lanes(active) {
                    let state = &mut warp.copies[lane];
                    // Waiting for all takes those that no group has.
                    let mut due: Vec<WordCopy> = Vec::new();
                    let keep = (*left as usize).min(state.groups.len());
                    let end = state.groups.len() - keep;
                    due.extend(state.groups.drain(..end).flatten());
                    if *left == 0 && self.waits_for_all(warp.pc) {
                        due.append(&mut warp.copies[lane].open);
                    }
                    self.finish_words(warp, lane, &due)?;
                }
            }
            Op::CopyArrive { space, address, extra } => {
                for lane in lanes(active) {
                    self.arrive_after_words(warp, lane, *space, self.address(warp, address, lane), *extra)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn waits_for_all(&self, pc: u32) -> bool {
        let opcode = self.program.insts[pc as usize].opcode;
        &*self.program.opcodes[opcode as usize] == "cp.async.wait_all"
    }

    fn start_words(
        &mut self,
        warp: &mut Warp,
        lane: usize,
        (to, from): (u64, u64),
        (bytes, given): (u32, u32),
        touched: &mut Touched,
    ) -> Run<()> {
        let to = self.resolve(warp, lane, Space::Shared, to, bytes)?;
        // With nothing to read the source may be anywhere.
        let from = if given == 0 {
            Target::Param { offset: 0 }
        } else {
            if !from.is_multiple_of(u64::from(bytes)) {
                let message = format!("the address is no multiple of {bytes}");
                return trouble_at(FaultKind::Misaligned, 1 << lane, Space::Global, from, message);
            }
            let Some((index, offset)) = self.memory.find(from, given as usize) else {
                let message = format!("{given} bytes; {}", self.memory.near(from));
                return trouble_at(FaultKind::OutOfBounds, 1 << lane, Space::Global, from, message);
            };
            Target::Global { index, offset, address: from }
        };
        let operation = match warp.copies[lane].open.first() {
            Some(copy) => copy.operation,
            None => self.new_operation(warp.views.cluster, warp.views.first + lane as u32),
        };
        let stamp = self.operation_stamp(warp, operation, false);
        self.shadowed(warp, lane, to, (bytes, true), stamp, Level::Known)?;
        if given > 0 {
            self.shadowed(warp, lane, from, (given, false), stamp, Level::Known)?;
            touched.add(from);
        }
        self.report.shared_written += u64::from(bytes);
        warp.copies[lane].open.push(WordCopy { to, from, bytes, given, operation });
        Ok(())
    }

    fn perform(&mut self, warp: &mut Warp, lane: usize, copy: &WordCopy) -> Run<()> {
        let mut bytes = [0; 16];
        let n = copy.bytes as usize;
        if copy.given > 0 {
            self.fetch(warp, lane, copy.from, &mut bytes[..copy.given as usize])?;
        }
        self.put(warp, lane, copy.to, &bytes[..n])
    }

    /// Copies that a lane waited for are its own writes from now on.
    fn finish_words(&mut self, warp: &mut Warp, lane: usize, copies: &[WordCopy]) -> Run<()> {
        let cluster = warp.views.cluster as usize;
        for copy in copies {
            if self.operations[cluster].done[copy.operation as usize].1.is_none() {
                self.perform(warp, lane, copy)?;
            }
        }
        for copy in copies {
            let component = warp.views.first + lane as u32;
            let done = &mut self.operations[cluster].done[copy.operation as usize];
            if done.1.is_none() {
                *done = (component, Some(warp.views.now));
            } else if done.0 != component {
                // A barrier was told of it before; its lane knows now too.
                let (component, time) = (done.0, done.1.unwrap_or(0));
                warp.views.completed(1 << lane, component, time);
            }
        }
        Ok(())
    }

    fn arrive_after_words(&mut self, warp: &mut Warp, lane: usize, space: Space, at: u64, extra: bool) -> Run<()> {
        let barrier = self.barrier_at(warp, lane, space, at)?;
        if extra && let Some(b) = self.blocks[barrier.0].mbarriers.get_mut(&barrier.1) {
            b.pending += 1;
        }
        let state = &mut warp.copies[lane];
        // From here on the barrier tells of them, not a wait of the lane.
        let copies: Vec<WordCopy> = state.groups.drain(..).flatten().chain(state.open.drain(..)).collect();
        let cluster = self.blocks[warp.slot].cluster;
        let component = self.new_component(cluster);
        let pending = Pending::Words { slot: warp.slot, warp: warp.number, lane, copies, barrier, component };
        self.clusters[cluster].pending.push(pending);
        Ok(())
    }

    /// Completes one of what is on the way, if anything is.
    pub(super) fn complete_one(&mut self) -> Result<bool, Box<crate::fault::Fault>> {
        let total: usize = self.clusters.iter().map(|c| c.pending.len()).sum();
        if total == 0 {
            return Ok(false);
        }
        let mut chosen = self.random.below(total);
        for cluster in 0..self.clusters.len() {
            let count = self.clusters[cluster].pending.len();
            if chosen < count {
                let pending = self.clusters[cluster].pending.swap_remove(chosen);
                let (pc, slot) = pending.origin();
                self.complete(pending).map_err(|t: Box<Trouble>| {
                    let mut fault = self.fault(*t, None, pc);
                    fault.block = self.blocks[slot].id;
                    fault
                })?;
                return Ok(true);
            }
            chosen -= count;
        }
        Ok(false)
    }

    fn complete(&mut self, pending: Pending) -> Run<()> {
        match pending {
            Pending::Transfer(transfer) => self.complete_transfer(&transfer),
            Pending::Words { slot, warp, lane, copies, barrier, component } => {
                let Some(mut owner) = self.blocks[slot].warps[warp as usize].take() else { return Ok(()) };
                let index = owner.views.cluster as usize;
                let mut outcome = Ok(());
                for copy in &copies {
                    outcome = outcome.and_then(|()| self.perform(&mut owner, lane, copy));
                    self.operations[index].done[copy.operation as usize] = (component, Some(1));
                }
                self.blocks[slot].warps[warp as usize] = Some(owner);
                outcome?;
                let found = self.blocks[barrier.0].mbarriers.get_mut(&barrier.1);
                if found.is_some_and(|b| b.arrive_after(component, 1)) {
                    return Ok(());
                }
                trouble(FaultKind::Barrier, 1 << lane, "copies arrive at a barrier that misses nobody")
            }
        }
    }
}

impl Pending {
    /// The instruction and the block that asked for it.
    fn origin(&self) -> (u32, usize) {
        match self {
            Pending::Words { slot, .. } => (0, *slot),
            Pending::Transfer(transfer) => (transfer.pc, transfer.slot),
        }
    }
}
