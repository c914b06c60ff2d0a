//! Blocks and clusters that are on the machine.

use std::collections::HashMap;

use super::Machine;
use super::clock::{Clock, Component, Shared};
use super::copy::Pending;
use super::mbarrier::Mbarrier;
use super::shadow::{Operations, Shadow};
use super::warp::Warp;
use super::wgmma::Warpgroup;
use crate::fault::{FaultKind, Run, trouble};
use crate::memory::Bitmap;

/// Registers of a multiprocessor.
const REGISTERS: u32 = 1 << 16;

/// A numbered barrier of a block.
#[derive(Clone, Debug, Default)]
pub(crate) struct Named {
    pub arrived: u32,
    /// Threads that must arrive; all that live where no number is given.
    pub expected: Option<u32>,
    pub generation: u64,
    pub clock: Clock,
    /// What the last generation released.
    pub done: Shared,
    /// True predicates of a reduction so far, and of the last generation with the number of threads.
    pub votes: u32,
    pub counted: (u32, u32),
}

/// A block with its shared memory.
#[derive(Debug)]
pub(crate) struct Block {
    /// In the grid.
    pub id: [u32; 3],
    /// In the cluster.
    pub rank: u32,
    /// The slot of its cluster.
    pub cluster: usize,
    pub shared: Vec<u8>,
    pub written: Bitmap,
    pub shadow: Shadow,
    /// A warp that runs is not here.
    pub warps: Vec<Option<Box<Warp>>>,
    pub barriers: Vec<Named>,
    pub mbarriers: HashMap<u32, Mbarrier>,
    pub warpgroups: Vec<Warpgroup>,
    pub live_lanes: u32,
    /// Registers that `setmaxnreg` has left over.
    pub free_registers: u32,
    pub done: bool,
}

/// The barrier of a cluster.
#[derive(Clone, Debug, Default)]
pub(crate) struct ClusterBarrier {
    pub arrived: u32,
    pub generation: u64,
    pub clock: Clock,
    pub done: Shared,
}

#[derive(Debug)]
pub(crate) struct Cluster {
    /// Of the grid.
    pub index: u32,
    pub at: [u32; 3],
    /// The slots of its blocks.
    pub first: usize,
    pub live_blocks: u32,
    pub live_lanes: u32,
    pub barrier: ClusterBarrier,
    pub next_component: Component,
    pub pending: Vec<Pending>,
}

/// Threads of a block, counted in whole warps.
pub(crate) fn padded(threads: u32) -> u32 {
    threads.next_multiple_of(32)
}

impl Machine<'_> {
    pub(super) fn start_cluster(&mut self, index: u32, at: [u32; 3], alive: &mut Vec<(usize, usize)>) {
        let shape = self.launch.cluster;
        let size = shape.iter().product::<u32>();
        let threads = self.threads();
        // A slot of a cluster that ended can be used again.
        let slot = self.clusters.iter().position(|c| c.live_blocks == 0).unwrap_or(self.clusters.len());
        let first = slot * size as usize;
        let cluster = Cluster {
            index,
            at,
            first,
            live_blocks: size,
            live_lanes: size * threads,
            barrier: ClusterBarrier { clock: Clock::new(index), ..ClusterBarrier::default() },
            next_component: size * padded(threads),
            pending: Vec::new(),
        };
        if slot == self.clusters.len() {
            self.clusters.push(cluster);
        } else {
            self.clusters[slot] = cluster;
        }
        self.operations.resize(self.operations.len().max(index as usize + 1), Operations::default());
        for rank in 0..size {
            let inside = [rank % shape[0], rank / shape[0] % shape[1], rank / shape[0] / shape[1]];
            let id = [0, 1, 2].map(|axis| at[axis] * shape[axis] + inside[axis]);
            let block = self.new_block(slot, index, rank, id);
            let position = first + rank as usize;
            for number in 0..block.warps.len() {
                alive.push((position, number));
            }
            if position == self.blocks.len() {
                self.blocks.push(block);
            } else {
                self.blocks[position] = block;
            }
            self.report.blocks += 1;
        }
    }

    fn new_block(&mut self, cluster: usize, index: u32, rank: u32, id: [u32; 3]) -> Block {
        let threads = self.threads();
        let count = padded(threads) / 32;
        let slot = cluster * self.launch.cluster.iter().product::<u32>() as usize + rank as usize;
        let named = Named { clock: Clock::new(index), ..Named::default() };
        let warps = (0..count).map(|number| {
            let lanes = (threads - number * 32).min(32);
            let first = rank * padded(threads) + number * 32;
            Some(Box::new(Warp::new(self.program, slot, number, lanes, index, first)))
        });
        Block {
            id,
            rank,
            cluster,
            shared: vec![0xa5; self.shared_bytes as usize],
            written: Bitmap::new(self.shared_bytes as usize, false),
            shadow: Shadow::new(self.shared_bytes as usize),
            warps: warps.collect(),
            barriers: vec![named; 16],
            mbarriers: HashMap::new(),
            warpgroups: vec![Warpgroup::default(); count.div_ceil(4) as usize],
            live_lanes: threads,
            free_registers: REGISTERS.saturating_sub(padded(threads) * self.program.start_registers),
            done: false,
        }
    }

    /// A component for something that completes by itself.
    pub(super) fn new_component(&mut self, cluster: usize) -> Component {
        let cluster = &mut self.clusters[cluster];
        cluster.next_component += 1;
        cluster.next_component - 1
    }

    /// The slot of a block of the same cluster.
    pub(super) fn peer(&self, slot: usize, rank: u32) -> Option<usize> {
        let cluster = &self.clusters[self.blocks[slot].cluster];
        let size = self.launch.cluster.iter().product::<u32>();
        (rank < size).then(|| cluster.first + rank as usize)
    }

    /// Lanes ended: barriers that wait for all that live may be complete now.
    pub(super) fn lanes_done(&mut self, slot: usize, count: u32) {
        let block = &mut self.blocks[slot];
        block.live_lanes -= count;
        let live = block.live_lanes;
        for barrier in &mut block.barriers {
            if barrier.arrived > 0 && barrier.expected.is_none() && barrier.arrived >= live {
                barrier.complete();
            }
        }
        let cluster = &mut self.clusters[block.cluster];
        cluster.live_lanes -= count;
        if cluster.barrier.arrived > 0 && cluster.barrier.arrived >= cluster.live_lanes {
            cluster.barrier.complete();
        }
    }

    pub(super) fn warp_done(&mut self, warp: &Warp) -> Run<()> {
        if warp.copies_left() {
            return trouble(FaultKind::Unfinished, u32::MAX, "a warp ends with copies that nothing waited for");
        }
        let slot = warp.slot;
        let group = &self.blocks[slot].warpgroups[warp.number as usize / 4];
        if group.pending(warp.number) {
            return trouble(FaultKind::Unfinished, u32::MAX, "a warp ends with products that nothing waited for");
        }
        if self.blocks[slot].live_lanes > 0 {
            return Ok(());
        }
        let counts = |g: &Warpgroup| g.counts.iter().any(|c| *c != g.counts[0]);
        if let Some(group) = self.blocks[slot].warpgroups.iter().position(counts) {
            let message = format!("the warps of warpgroup {group} took part in different numbers of products");
            return trouble(FaultKind::Divergence, u32::MAX, message);
        }
        let block = &self.blocks[slot];
        let registers = |number: usize| {
            let other = block.warps[number].as_deref();
            other.map_or(warp.max_registers, |w| w.max_registers)
        };
        for first in (0..block.warps.len()).step_by(4) {
            let end = (first + 4).min(block.warps.len());
            if (first..end).any(|n| registers(n) != registers(first)) {
                let message = format!("the warps of warpgroup {} set different numbers of registers", first / 4);
                return trouble(FaultKind::Registers, u32::MAX, message);
            }
        }
        self.block_done(slot)
    }

    fn block_done(&mut self, slot: usize) -> Run<()> {
        let cluster = self.blocks[slot].cluster;
        for pending in &self.clusters[cluster].pending {
            if pending.touches(slot) {
                let message = format!("a block ends while {} uses its shared memory", pending.describe());
                return trouble(FaultKind::Unfinished, u32::MAX, message);
            }
        }
        let block = &mut self.blocks[slot];
        block.done = true;
        block.shared = Vec::new();
        block.shadow = Shadow::default();
        block.mbarriers = HashMap::new();
        self.clusters[cluster].live_blocks -= 1;
        Ok(())
    }
}

impl Named {
    pub(super) fn complete(&mut self) {
        let cluster = self.clock.cluster;
        self.done = std::mem::replace(&mut self.clock, Clock::new(cluster)).share();
        self.counted = (self.votes, self.arrived);
        (self.arrived, self.votes, self.expected) = (0, 0, None);
        self.generation += 1;
    }
}

impl ClusterBarrier {
    pub(super) fn complete(&mut self) {
        let cluster = self.clock.cluster;
        self.done = std::mem::replace(&mut self.clock, Clock::new(cluster)).share();
        self.arrived = 0;
        self.generation += 1;
    }
}
