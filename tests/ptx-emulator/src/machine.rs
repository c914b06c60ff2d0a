//! Runs a kernel: clusters that are on the machine, and who of them goes next.
//!
//! Warps are interleaved in slices whose order and length come from a seed. What completes by itself does so when no
//! warp can go on (and now and then otherwise, or a program that polls would wait forever), in random order.

pub(crate) mod block;
pub(crate) mod clock;
mod copy;
mod matrix;
mod mbarrier;
mod memory;
mod scalar;
mod shadow;
mod sync;
mod tensor;
mod warp;
mod wgmma;

use std::collections::HashMap;

use crate::fault::{Fault, FaultKind, Other, Place, Run, Trouble, trouble};
use crate::launch::{Launch, Options, Random};
use crate::memory::Memory;
use crate::module::Kernel;
use crate::program::Program;
use crate::report::Report;
use block::{Block, Cluster};
use shadow::{Operations, Shadow};
use warp::{Wait, Warp};

/// A warp runs at most so many instructions before another may.
const SLICE: usize = 96;
/// Every so many slices something asynchronous completes although warps could go on.
const IMPATIENCE: u64 = 101;
const MAX_SHARED: u32 = 227 << 10;

pub(crate) struct Machine<'a> {
    pub kernel: Kernel<'a>,
    pub program: &'a Program,
    pub launch: &'a Launch,
    pub options: &'a Options,
    pub memory: &'a mut Memory,
    pub params: Vec<u8>,
    pub shared_bytes: u32,
    /// Shadows of pages of global memory.
    pub pages: HashMap<u64, Shadow>,
    /// What was released to addresses.
    pub released: HashMap<memory::SyncKey, clock::Clock>,
    pub blocks: Vec<Block>,
    pub clusters: Vec<Cluster>,
    /// By cluster of the grid.
    pub operations: Vec<Operations>,
    pub random: Random,
    pub report: Report,
    pub counts: Vec<(u64, u64)>,
    pub steps: u64,
}

/// Runs a kernel to its end.
pub fn run(kernel: Kernel<'_>, launch: &Launch, memory: &mut Memory, options: &Options) -> Result<Report, Box<Fault>> {
    memory.load(kernel.module);
    let program = kernel.program;
    let mut machine = Machine {
        kernel,
        program,
        launch,
        options,
        memory,
        params: Vec::new(),
        shared_bytes: program.dynamic_shared.saturating_add(launch.dynamic_shared),
        pages: HashMap::new(),
        released: HashMap::new(),
        blocks: Vec::new(),
        clusters: Vec::new(),
        operations: Vec::new(),
        random: Random::new(options.seed),
        report: Report::default(),
        counts: vec![(0, 0); program.insts.len()],
        steps: 0,
    };
    machine.check().map_err(|t| machine.fault(*t, None, 0))?;
    machine.all_clusters()?;
    Ok(machine.finish())
}

impl<'a> Machine<'a> {
    fn threads(&self) -> u32 {
        self.launch.block.iter().product()
    }

    /// The rules of a launch.
    fn check(&mut self) -> Run<()> {
        let refuse = |message: String| trouble(FaultKind::Launch, 0, message);
        let (launch, program) = (self.launch, self.program);
        let size = |d: [u32; 3]| d.iter().try_fold(1u32, |n, &x| n.checked_mul(x));
        let Some(threads @ 1..=1024) = size(launch.block) else {
            return refuse(format!("a block of {:?} threads; 1 to 1024 fit", launch.block));
        };
        let Some(1..) = size(launch.grid) else { return refuse(format!("a grid of {:?}", launch.grid)) };
        let Some(1..=16) = size(launch.cluster) else {
            return refuse(format!("a cluster of {:?} blocks", launch.cluster));
        };
        if launch.grid.iter().zip(launch.cluster).any(|(g, c)| !g.is_multiple_of(c)) {
            return refuse(format!("the grid {:?} is no multiple of the cluster {:?}", launch.grid, launch.cluster));
        }
        if let Some(wanted) = program.bounds.required_cluster
            && wanted != launch.cluster
        {
            return refuse(format!("the kernel wants clusters of {wanted:?}, not {:?}", launch.cluster));
        }
        if let Some(wanted) = program.bounds.required_threads
            && wanted != launch.block
        {
            return refuse(format!("the kernel wants {wanted:?} threads, not {:?}", launch.block));
        }
        if let Some(most) = program.bounds.max_threads.and_then(size)
            && threads > most
        {
            return refuse(format!("the kernel takes at most {most} threads, not {threads}"));
        }
        if self.shared_bytes > MAX_SHARED {
            return refuse(format!("{} bytes of shared memory; {MAX_SHARED} fit", self.shared_bytes));
        }
        if launch.params.len() != program.params.len() {
            return refuse(format!("{} parameters, the kernel has {}", launch.params.len(), program.params.len()));
        }
        self.params = vec![0; program.param_bytes as usize];
        for (index, (param, &(at, size, _))) in launch.params.iter().zip(&program.params).enumerate() {
            if param.0.len() != size as usize {
                return refuse(format!("parameter {index} has {} bytes, the kernel's {size}", param.0.len()));
            }
            self.params[at as usize..(at + size) as usize].copy_from_slice(&param.0);
        }
        self.report.shared_bytes = self.shared_bytes;
        Ok(())
    }

    fn all_clusters(&mut self) -> Result<(), Box<Fault>> {
        let grid = self.launch.grid;
        let shape = self.launch.cluster;
        let counts = [grid[0] / shape[0], grid[1] / shape[1], grid[2] / shape[2]];
        let total = u64::from(counts[0]) * u64::from(counts[1]) * u64::from(counts[2]);
        let mut next = 0u64;
        let mut slices = 0u64;
        // Warps that are not done, as slot and number.
        let mut alive: Vec<(usize, usize)> = Vec::new();
        loop {
            let running = self.clusters.iter().filter(|c| c.live_blocks > 0).count();
            if next < total && (running as u32) < self.options.resident.max(1) {
                let at = [
                    (next % u64::from(counts[0])) as u32,
                    (next / u64::from(counts[0]) % u64::from(counts[1])) as u32,
                    (next / u64::from(counts[0]) / u64::from(counts[1])) as u32,
                ];
                self.start_cluster(next as u32, at, &mut alive);
                next += 1;
                continue;
            }
            if alive.is_empty() {
                return Ok(());
            }
            slices += 1;
            if slices.is_multiple_of(IMPATIENCE) {
                self.complete_one()?;
            }
            match self.pick(&alive)? {
                Some(index) => {
                    let (slot, number) = alive[index];
                    let budget = 1 + self.random.below(SLICE) as u32;
                    if self.slice(slot, number, budget)? {
                        alive.swap_remove(index);
                    }
                }
                None => {
                    if !self.complete_one()? {
                        return Err(self.deadlock(&alive));
                    }
                }
            }
        }
    }

    /// A warp that can go on.
    fn pick(&mut self, alive: &[(usize, usize)]) -> Result<Option<usize>, Box<Fault>> {
        let start = self.random.below(alive.len());
        for offset in 0..alive.len() {
            let index = (start + offset) % alive.len();
            let (slot, number) = alive[index];
            let Some(mut warp) = self.blocks[slot].warps[number].take() else { continue };
            let ready = self.poll(&mut warp);
            self.blocks[slot].warps[number] = Some(warp);
            if ready {
                return Ok(Some(index));
            }
        }
        Ok(None)
    }

    /// Runs a warp for a while; whether it is done.
    fn slice(&mut self, slot: usize, number: usize, budget: u32) -> Result<bool, Box<Fault>> {
        let Some(mut warp) = self.blocks[slot].warps[number].take() else { return Ok(true) };
        let outcome = self.run_warp(&mut warp, budget);
        let done = warp.groups.is_empty();
        let outcome = match outcome {
            Ok(()) if done => self.warp_done(&warp),
            other => other,
        };
        if let Err(trouble) = outcome {
            let pc = warp.pc;
            return Err(self.fault(*trouble, Some(&warp), pc));
        }
        self.blocks[slot].warps[number] = Some(warp);
        Ok(done)
    }

    pub(crate) fn place(&self, pc: u32) -> Place {
        let line = self.program.insts.get(pc as usize).map_or(0, |i| i.line);
        Place { line, text: self.kernel.module.line(line).to_owned() }
    }

    pub(crate) fn fault(&self, trouble: Trouble, warp: Option<&Warp>, pc: u32) -> Box<Fault> {
        let block = warp.map_or([0; 3], |w| self.blocks[w.slot].id);
        Box::new(Fault {
            kind: trouble.kind,
            message: trouble.message,
            kernel: self.program.name.clone(),
            place: self.place(pc),
            block,
            warp: warp.map_or(0, |w| w.number),
            lanes: trouble.lanes,
            address: trouble.address,
            other: trouble.other.map(|(pc, who, access)| Other { place: self.place(pc), who, access }),
        })
    }

    /// Nothing can go on: who waits for what.
    fn deadlock(&mut self, alive: &[(usize, usize)]) -> Box<Fault> {
        let mut lines = Vec::new();
        let mut first: Option<(usize, usize, u32, u32)> = None;
        for &(slot, number) in alive {
            let Some(warp) = &self.blocks[slot].warps[number] else { continue };
            for group in &warp.groups {
                first = first.or(Some((slot, number, group.pc, group.mask)));
                if lines.len() < 24 {
                    let place = self.place(group.pc);
                    let [x, y, z] = self.blocks[slot].id;
                    let wait = self.waits_for(warp, &group.wait);
                    lines.push(format!(
                        "block ({x}, {y}, {z}) warp {number} lanes {:#010x} at line {}: {wait}",
                        group.mask, place.line
                    ));
                }
            }
        }
        let (slot, number, pc, lanes) = first.unwrap_or((0, 0, 0, 0));
        let trouble = Trouble {
            kind: FaultKind::Deadlock,
            message: format!("nothing can go on:\n  {}", lines.join("\n  ")),
            lanes,
            address: None,
            other: None,
        };
        let warp = self.blocks.get_mut(slot).and_then(|b| b.warps.get_mut(number)).and_then(Option::take);
        self.fault(trouble, warp.as_deref(), pc)
    }

    fn waits_for(&self, warp: &Warp, wait: &Wait) -> String {
        match wait {
            Wait::None => "ready".into(),
            Wait::Lanes(mask) => format!("waits for lanes {mask:#010x} to come to the same instruction"),
            Wait::Barrier { id, .. } => {
                let barrier = &self.blocks[warp.slot].barriers[*id as usize];
                let expected = barrier.expected.map_or("all".into(), |n| n.to_string());
                format!("waits at barrier {id}, where {} of {expected} threads are", barrier.arrived)
            }
            Wait::Cluster { .. } => "waits for the barrier of the cluster".into(),
            Wait::Mbarrier { address, .. } => {
                let state = match self.blocks[warp.slot].mbarriers.get(address) {
                    Some(b) => format!("phase {}, {} arrivals and {} bytes missing", b.phase, b.pending, b.bytes),
                    None => "no barrier".into(),
                };
                format!("waits for the mbarrier at {address:#x}: {state}")
            }
            Wait::Bulk { left, .. } => format!("waits for bulk copies until {left} groups are left"),
            Wait::Warpgroup(count) => format!("waits for its warpgroup at product {count}"),
            Wait::Registers(wanted) => {
                let free = self.blocks[warp.slot].free_registers;
                format!("waits for {wanted} registers, of which {free} are free")
            }
        }
    }

    fn finish(mut self) -> Report {
        for (inst, &(warps, lanes)) in self.program.insts.iter().zip(&self.counts) {
            if warps == 0 {
                continue;
            }
            self.report.warp_instructions += warps;
            self.report.lane_instructions += lanes;
            let name = &self.program.opcodes[inst.opcode as usize];
            *self.report.instructions.entry(name.to_string()).or_default() += warps;
            if let Some(flops) = inst.flops {
                *self.report.flops.entry(flops.kind).or_default() += lanes * u64::from(flops.each);
            }
        }
        self.report
    }
}
