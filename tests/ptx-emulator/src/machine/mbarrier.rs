//! Barrier objects in shared memory: phases that end when all arrivals and bytes are in.

use super::Machine;
use super::clock::{Clock, Component, Level};
use super::memory::Target;
use super::shadow::Stamp;
use super::warp::{Outcome, Wait, Warp, lanes};
use crate::fault::{FaultKind, Run, trouble_at};
use crate::program::{Address, Op, Phase, Scope};
use crate::types::Space;

/// Counts of arrivals and bytes have 20 bits.
const MOST: u32 = (1 << 20) - 1;

#[derive(Clone, Debug)]
pub(crate) struct Mbarrier {
    /// Arrivals of a phase.
    pub count: u32,
    /// Arrivals that are missing.
    pub pending: u32,
    /// Bytes that are missing; fewer than none if copies were faster than the expectation.
    pub bytes: i64,
    /// Phases that ended.
    pub phase: u64,
    clock: Clock,
    done: Clock,
    /// Its time is the number of phases that ended.
    pub component: Component,
    /// Who made it, and whether that passed a fence for barriers.
    pub init: Stamp,
    pub fenced: bool,
}

impl Mbarrier {
    /// Ends a phase if nothing is missing.
    fn settle(&mut self) {
        if self.pending == 0 && self.bytes == 0 {
            self.phase += 1;
            self.pending = self.count;
            self.clock.raise(self.component, self.phase as u32);
            self.done = self.clock.clone();
        }
    }

    /// Something that completed by itself adds what it did to the phase.
    pub(super) fn arrive_after(&mut self, component: Component, time: u32) -> bool {
        self.clock.raise_known(component, time);
        let fits = self.pending > 0;
        self.pending = self.pending.saturating_sub(1);
        self.settle();
        fits
    }

    pub(super) fn complete_bytes(&mut self, bytes: u32) {
        self.bytes -= i64::from(bytes);
        self.settle();
    }
}

impl Machine<'_> {
    /// The barrier object of a lane's address, in whatever block.
    pub(super) fn barrier_at(&mut self, warp: &Warp, lane: usize, space: Space, address: u64) -> Run<(usize, u32)> {
        let target = self.resolve(warp, lane, space, address, 8)?;
        let Target::Shared { slot, offset } = target else {
            return trouble_at(FaultKind::Barrier, 1 << lane, space, address, "a barrier outside of shared memory");
        };
        if !self.blocks[slot].mbarriers.contains_key(&offset) {
            let message = "there is no barrier here, or none any more";
            return trouble_at(FaultKind::Barrier, 1 << lane, space, address, message);
        }
        let stamp = self.stamp(warp, lane, true);
        self.shadowed(warp, lane, target, (8, false), stamp, Level::Known)?;
        Ok((slot, offset))
    }

    /// The same for copies, which see a barrier only after a fence.
    pub(super) fn barrier_for_copy(&mut self, warp: &Warp, lane: usize, address: u64) -> Run<(usize, u32)> {
        let (slot, offset) = self.barrier_at(warp, lane, Space::SharedCluster, address)?;
        let barrier = &self.blocks[slot].mbarriers[&offset];
        let Stamp { who, cluster, time, .. } = barrier.init;
        let seen = barrier.fenced || warp.views.knows(lane as u32, Level::FencedShared, cluster, who, time);
        if self.options.races && !seen {
            let message = "a copy signals a barrier that no `fence.mbarrier_init` or proxy fence made visible to it";
            return trouble_at(FaultKind::MissingProxyFence, 1 << lane, Space::Shared, u64::from(offset), message);
        }
        Ok((slot, offset))
    }

    pub(super) fn mbarrier(&mut self, warp: &mut Warp, op: &Op, active: u32) -> Run<Outcome> {
        match op {
            Op::BarrierInit { space, address, count } => {
                for lane in lanes(active) {
                    self.init_barrier(warp, lane, *space, address, warp.lane(*count, lane) as u32)?;
                }
            }
            Op::BarrierInvalidate { space, address } => {
                for lane in lanes(active) {
                    let at = self.address(warp, address, lane);
                    let (slot, offset) = self.barrier_at(warp, lane, *space, at)?;
                    let stamp = self.stamp(warp, lane, false);
                    let target = Target::Shared { slot, offset };
                    self.shadowed(warp, lane, target, (8, true), stamp, Level::Known)?;
                    self.blocks[slot].mbarriers.remove(&offset);
                }
            }
            Op::BarrierArrive { space, address, d, count, expect, complete, drop, relaxed } => {
                for lane in lanes(active) {
                    let at = self.address(warp, address, lane);
                    let (slot, offset) = self.barrier_at(warp, lane, *space, at)?;
                    let expect = expect.map_or(0, |e| warp.lane(e, lane) as u32);
                    let count = warp.lane(*count, lane) as u32;
                    let state = self.arrive(warp, lane, (slot, offset), count, expect, (*complete, *drop, *relaxed))?;
                    if let Some(d) = d {
                        warp.regs[*d as usize][lane] = state;
                    }
                }
            }
            Op::BarrierExpect { space, address, bytes } => {
                for lane in lanes(active) {
                    let at = self.address(warp, address, lane);
                    let (slot, offset) = self.barrier_at(warp, lane, *space, at)?;
                    let bytes = warp.lane(*bytes, lane) as u32;
                    self.expect_bytes(lane, slot, offset, bytes)?;
                }
            }
            Op::BarrierComplete { space, address, bytes } => {
                for lane in lanes(active) {
                    let at = self.address(warp, address, lane);
                    let (slot, offset) = self.barrier_at(warp, lane, *space, at)?;
                    let bytes = warp.lane(*bytes, lane) as u32;
                    if let Some(barrier) = self.blocks[slot].mbarriers.get_mut(&offset) {
                        barrier.complete_bytes(bytes);
                    }
                }
            }
            Op::BarrierPending { d, a } => {
                let states = warp.read(*a);
                warp.write(*d, active, &states.map(|s| s & u64::from(MOST)));
            }
            Op::BarrierTest { space, address, d, phase, blocks, relaxed } => {
                return self.test_barrier(warp, *space, address, (*d, *phase, *blocks, *relaxed), active);
            }
            _ => {}
        }
        Ok(Outcome::Next)
    }

    fn init_barrier(&mut self, warp: &mut Warp, lane: usize, space: Space, address: &Address, count: u32) -> Run<()> {
        let at = self.address(warp, address, lane);
        let target = self.resolve(warp, lane, space, at, 8)?;
        let Target::Shared { slot, offset } = target else {
            return trouble_at(FaultKind::Barrier, 1 << lane, space, at, "a barrier outside of shared memory");
        };
        if slot != warp.slot {
            return trouble_at(FaultKind::Barrier, 1 << lane, space, at, "a barrier made in another block");
        }
        if count == 0 || count > MOST {
            let message = format!("a barrier of {count} arrivals; 1 to {MOST} are allowed");
            return trouble_at(FaultKind::Barrier, 1 << lane, space, at, message);
        }
        let stamp = self.stamp(warp, lane, false);
        self.shadowed(warp, lane, target, (8, true), stamp, Level::Known)?;
        self.put(warp, lane, target, &[0; 8])?;
        let cluster = self.blocks[slot].cluster;
        let component = self.new_component(cluster);
        let barrier = Mbarrier {
            count,
            pending: count,
            bytes: 0,
            phase: 0,
            clock: self.new_clock(warp),
            done: self.new_clock(warp),
            component,
            init: stamp,
            fenced: false,
        };
        self.blocks[slot].mbarriers.insert(offset, barrier);
        // A proxy fence later covers this and not what is written after it.
        warp.views.now += 1;
        Ok(())
    }

    fn expect_bytes(&mut self, lane: usize, slot: usize, offset: u32, bytes: u32) -> Run<()> {
        let Some(barrier) = self.blocks[slot].mbarriers.get_mut(&offset) else { return Ok(()) };
        barrier.bytes += i64::from(bytes);
        if bytes > MOST || barrier.bytes > i64::from(MOST) {
            let message = format!("a barrier that expects {} bytes; {MOST} fit", barrier.bytes);
            return trouble_at(FaultKind::Barrier, 1 << lane, Space::Shared, u64::from(offset), message);
        }
        Ok(())
    }

    fn arrive(
        &mut self,
        warp: &mut Warp,
        lane: usize,
        (slot, offset): (usize, u32),
        count: u32,
        expect: u32,
        (complete, drop, relaxed): (bool, bool, bool),
    ) -> Run<u64> {
        self.expect_bytes(lane, slot, offset, expect)?;
        let Some(barrier) = self.blocks[slot].mbarriers.get_mut(&offset) else { return Ok(0) };
        if count == 0 || count > barrier.pending {
            let message = format!("{count} arrivals at a barrier that misses {}", barrier.pending);
            return trouble_at(FaultKind::Barrier, 1 << lane, Space::Shared, u64::from(offset), message);
        }
        if !complete && count == barrier.pending {
            let message = "an arrival with `.noComplete` that completes the phase";
            return trouble_at(FaultKind::Barrier, 1 << lane, Space::Shared, u64::from(offset), message);
        }
        let state = barrier.phase << 32 | u64::from(barrier.pending);
        if !relaxed {
            warp.views.release(1 << lane, &mut barrier.clock);
        } else if let Some((view, time)) = &warp.sync[lane].fenced[Scope::Cluster as usize] {
            warp.views.release_view(lane as u32, view, *time, &mut barrier.clock);
        }
        if drop {
            barrier.count -= count.min(barrier.count);
        }
        barrier.pending -= count;
        barrier.settle();
        Ok(state)
    }

    fn test_barrier(
        &mut self,
        warp: &mut Warp,
        space: Space,
        address: &Address,
        (d, phase, blocks, relaxed): (u32, Phase, bool, bool),
        active: u32,
    ) -> Run<Outcome> {
        let mut ready = 0u32;
        let mut first = None;
        let mut found = [(0, 0); 32];
        for lane in lanes(active) {
            let at = self.address(warp, address, lane);
            let (slot, offset) = self.barrier_at(warp, lane, space, at)?;
            let barrier = &self.blocks[slot].mbarriers[&offset];
            let over = match phase {
                Phase::Parity(parity) => barrier.phase & 1 != warp.lane(parity, lane) & 1,
                Phase::State(state) => barrier.phase > warp.lane(state, lane) >> 32,
            };
            ready |= u32::from(over) << lane;
            first = first.or(Some(Wait::Mbarrier { address: offset, phase: barrier.phase }));
            found[lane] = (slot, offset);
        }
        if let (true, 0, Some(wait)) = (blocks, ready, first) {
            return Ok(Outcome::Retry(wait));
        }
        let mut left = ready;
        while left != 0 {
            let lane = left.trailing_zeros() as usize;
            let same = lanes(left).filter(|&l| found[l] == found[lane]).fold(0, |m, l| m | 1u32 << l);
            let (slot, offset) = found[lane];
            let barrier = &self.blocks[slot].mbarriers[&offset];
            if relaxed {
                for lane in lanes(same) {
                    warp.sync[lane].seen[Scope::Cluster as usize]
                        .get_or_insert_with(|| Clock::new(warp.views.cluster))
                        .join(&barrier.done);
                }
            } else {
                warp.views.acquire(same, &barrier.done);
            }
            left &= !same;
        }
        let mut values = [0; 32];
        for lane in lanes(ready) {
            values[lane] = 1;
        }
        warp.write(d, active, &values);
        Ok(Outcome::Next)
    }
}
