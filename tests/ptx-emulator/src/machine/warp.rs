//! A warp: registers, and groups of lanes that are at the same instruction.
//!
//! Of several groups the one at the lowest instruction runs, so that lanes that took different ways meet where those
//! join; groups at the same instruction become one. A group that ran long while others could is put aside for a
//! while. Instructions that need lanes together wait for them here, wherever those are: convergence is only ever
//! assumed where an instruction asks for it, so no order of groups can make a program hang that would not.

use super::Machine;
use super::clock::{Clock, View, Views};
use crate::fault::{FaultKind, Run, trouble};
use crate::memory::Bitmap;
use crate::program::{Inst, Op, Program, Reg, Src};

/// Turns of a group before others come first.
const STREAK: u32 = 2048;

/// What a group waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wait {
    None,
    /// For other lanes of the warp.
    Lanes(u32),
    /// At a numbered barrier, at which it arrived in this generation.
    Barrier {
        id: u32,
        generation: u64,
    },
    Cluster {
        generation: u64,
    },
    /// For the end of a phase.
    Mbarrier {
        address: u32,
        phase: u64,
    },
    /// For the copies of some lanes.
    Bulk {
        left: u32,
        read: bool,
    },
    /// For the other warps at the product of this number.
    Warpgroup(u64),
    /// For so many registers to be free.
    Registers(u32),
}

/// Lanes at the same instruction.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub pc: u32,
    pub mask: u32,
    pub wait: Wait,
    /// Where calls return to.
    pub stack: Vec<u32>,
}

/// What an instruction did to the lanes that executed it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    Next,
    Jump(u32),
    Call(u32),
    Return,
    Exit,
    /// The instruction is tried again when the wait is over.
    Retry(Wait),
    /// The next one follows when the wait is over.
    Wait(Wait),
}

/// What a lane has of fences.
#[derive(Clone, Debug, Default)]
pub(crate) struct LaneSync {
    /// What it knew at its last fence of at least each scope, and when that was.
    pub fenced: [Option<(View, u32)>; 3],
    /// What strong reads saw for each scope, which the next fence makes known.
    pub seen: [Option<Clock>; 3],
}

/// What products have to do with a register.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RegisterUse {
    /// The step of the last access by anything else.
    pub touched: u32,
    /// Products that write it and are not settled.
    pub sums: u16,
    /// Products that read it and are not settled.
    pub factors: u16,
}

#[derive(Debug)]
pub(crate) struct Warp {
    pub slot: usize,
    pub number: u32,
    pub groups: Vec<Group>,
    pub regs: Vec<[u64; 32]>,
    pub defined: Vec<u32>,
    /// Empty where a kernel has no products.
    pub uses: Vec<RegisterUse>,
    /// Steps of this warp, for `uses`, and the last `wgmma.fence`.
    pub step: u32,
    pub fence_step: Option<u32>,
    pub views: Views,
    pub sync: Vec<LaneSync>,
    pub local: Vec<u8>,
    pub local_written: Bitmap,
    /// Lanes that have not ended.
    pub live: u32,
    pub copies: Vec<super::copy::LaneCopies>,
    /// The generation of the cluster's barrier at which lanes arrived, and how many times.
    pub cluster_arrived: [Option<u64>; 32],
    pub max_registers: u32,
    /// The instruction that runs, for faults.
    pub pc: u32,
    streak: u32,
}

/// The lanes of a mask.
pub(crate) fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut left = mask;
    std::iter::from_fn(move || {
        let lane = (left != 0).then(|| left.trailing_zeros() as usize)?;
        left &= left - 1;
        Some(lane)
    })
}

impl Warp {
    pub(crate) fn new(program: &Program, slot: usize, number: u32, lanes: u32, cluster: u32, first: u32) -> Warp {
        let live = crate::types::mask(lanes) as u32;
        let count = program.registers.len();
        Warp {
            slot,
            number,
            groups: vec![Group { pc: 0, mask: live, wait: Wait::None, stack: Vec::new() }],
            regs: vec![[0; 32]; count],
            defined: vec![0; count],
            uses: if program.products { vec![RegisterUse::default(); count] } else { Vec::new() },
            step: 0,
            fence_step: None,
            views: Views::new(cluster, first),
            sync: vec![LaneSync::default(); 32],
            local: vec![0xa5; 32 * program.local_bytes as usize],
            local_written: Bitmap::new(32 * program.local_bytes as usize, false),
            live,
            copies: vec![super::copy::LaneCopies::default(); 32],
            cluster_arrived: [None; 32],
            max_registers: program.start_registers,
            pc: 0,
            streak: 0,
        }
    }

    pub(crate) fn read(&self, src: Src) -> [u64; 32] {
        match src {
            Src::Reg(reg) => self.regs[reg as usize],
            Src::Imm(value) => [value; 32],
        }
    }

    pub(crate) fn lane(&self, src: Src, lane: usize) -> u64 {
        match src {
            Src::Reg(reg) => self.regs[reg as usize][lane],
            Src::Imm(value) => value,
        }
    }

    pub(crate) fn write(&mut self, reg: Reg, mask: u32, values: &[u64; 32]) {
        let slot = &mut self.regs[reg as usize];
        if mask == u32::MAX {
            *slot = *values;
        } else {
            for lane in lanes(mask) {
                slot[lane] = values[lane];
            }
        }
    }

    /// A value that must be the same in all lanes.
    pub(crate) fn uniform(&self, src: Src, mask: u32, what: &str) -> Run<u64> {
        let value = self.lane(src, mask.trailing_zeros() as usize & 31);
        let differs = lanes(mask).filter(|&l| self.lane(src, l) != value).fold(0, |m, l| m | 1u32 << l);
        if differs != 0 {
            return trouble(FaultKind::Divergence, differs, format!("{what} differs between lanes"));
        }
        Ok(value)
    }

    /// Nothing if all lanes that live are here, or what to wait for.
    pub(crate) fn together(&self, mask: u32) -> Option<Outcome> {
        (mask != self.live).then_some(Outcome::Retry(Wait::Lanes(self.live)))
    }

    /// The same for instructions that need whole warps.
    pub(crate) fn whole(&self, mask: u32) -> Run<Option<Outcome>> {
        if self.live != u32::MAX {
            return trouble(FaultKind::Divergence, !self.live, "an instruction of whole warps, of which lanes ended");
        }
        Ok(self.together(mask))
    }

    /// The group that runs next.
    fn next_group(&mut self) -> Option<usize> {
        if let [group] = &self.groups[..] {
            return (group.wait == Wait::None).then_some(0);
        }
        let ready = |g: &&(usize, &Group)| g.1.wait == Wait::None;
        let lowest = self.groups.iter().enumerate().filter(|g| ready(&g)).min_by_key(|g| g.1.pc)?.0;
        self.streak += 1;
        if self.streak > STREAK {
            // Every other window goes to the groups that are further on.
            if self.streak > 2 * STREAK {
                self.streak = 0;
            }
            return self.groups.iter().enumerate().filter(|g| ready(&g)).max_by_key(|g| g.1.pc).map(|g| g.0);
        }
        Some(lowest)
    }

    /// Joins a group with another that came to the same instruction.
    fn merge(&mut self, index: usize) {
        let Group { pc, wait, .. } = self.groups[index];
        if wait != Wait::None {
            return;
        }
        let joins = |g: &Group| matches!(g.wait, Wait::None | Wait::Lanes(_)) && g.pc == pc;
        let other = (0..self.groups.len())
            .find(|&o| o != index && joins(&self.groups[o]) && self.groups[o].stack == self.groups[index].stack);
        if let Some(other) = other {
            let mask = self.groups[other].mask;
            self.groups[index].mask |= mask;
            self.groups.swap_remove(other);
            self.streak = 0;
        }
    }
}

impl<'a> Machine<'a> {
    /// Runs until the budget is spent or nothing of the warp can go on.
    pub(super) fn run_warp(&mut self, warp: &mut Warp, budget: u32) -> Run<()> {
        for _ in 0..budget {
            let Some(index) = warp.next_group() else { return Ok(()) };
            let Group { pc, mask, .. } = warp.groups[index];
            warp.pc = pc;
            // Every function ends with a return, so there is an instruction.
            let inst = &self.program.insts[pc as usize];
            let active = match inst.guard {
                None => mask,
                Some((reg, negate)) => {
                    if warp.defined[reg as usize] & mask != mask {
                        return self.undefined(reg, mask & !warp.defined[reg as usize]);
                    }
                    let values = &warp.regs[reg as usize];
                    lanes(mask).fold(0, |m, l| m | ((values[l] as u32 & 1) ^ u32::from(negate)) << l)
                }
            };
            if active == 0 {
                warp.groups[index].pc += 1;
                if warp.groups.len() > 1 {
                    warp.merge(index);
                }
                continue;
            }
            if self.options.uniform_branches && active != mask {
                let branches = matches!(inst.op, Op::Branch { .. } | Op::Return | Op::Exit | Op::Call { .. });
                if branches {
                    return trouble(FaultKind::Divergence, active, "a branch that not all lanes take");
                }
            }
            let outcome = self.execute(warp, inst, active, index)?;
            let counted = !matches!(outcome, Outcome::Retry(_));
            if counted {
                let count = &mut self.counts[pc as usize];
                count.0 += 1;
                count.1 += u64::from(active.count_ones());
            }
            self.steps += 1;
            if self.steps > self.options.max_steps {
                return trouble(FaultKind::StepLimit, active, format!("more than {} steps", self.options.max_steps));
            }
            self.follow(warp, index, active, outcome)?;
        }
        Ok(())
    }

    /// Moves lanes on.
    fn follow(&mut self, warp: &mut Warp, mut index: usize, active: u32, outcome: Outcome) -> Run<()> {
        if outcome == Outcome::Next {
            warp.groups[index].pc += 1;
            if warp.groups.len() > 1 {
                warp.merge(index);
            }
            return Ok(());
        }
        if warp.groups[index].mask != active {
            // The lanes that the guard left out go on.
            let mut others = warp.groups[index].clone();
            others.mask &= !active;
            others.pc += 1;
            warp.groups[index].mask = active;
            warp.groups.push(others);
            let last = warp.groups.len() - 1;
            // Waits of the merged are none of ours, and ours is set below.
            let before = warp.groups[index].pc;
            warp.groups[index].pc = u32::MAX;
            warp.merge(last);
            index = warp.groups.iter().position(|g| g.pc == u32::MAX).unwrap_or(0);
            warp.groups[index].pc = before;
        }
        let group = &mut warp.groups[index];
        match outcome {
            Outcome::Next => {}
            Outcome::Jump(target) => group.pc = target,
            Outcome::Call(target) => {
                group.stack.push(group.pc);
                group.pc = target;
            }
            Outcome::Return if group.stack.is_empty() => return self.exit(warp, index),
            Outcome::Return => {
                let call = group.stack.pop().unwrap_or(0);
                group.pc = call + 1;
                let mask = group.mask;
                if let Op::Call { take, .. } = &self.program.insts[call as usize].op {
                    copy_local(warp, mask, take.iter().map(|&(into, from, size)| (from, into, size)));
                }
            }
            Outcome::Exit => return self.exit(warp, index),
            Outcome::Retry(wait) | Outcome::Wait(wait) => {
                group.wait = wait;
                return Ok(());
            }
        }
        warp.merge(index);
        Ok(())
    }

    fn exit(&mut self, warp: &mut Warp, index: usize) -> Run<()> {
        let group = warp.groups.swap_remove(index);
        warp.live &= !group.mask;
        self.lanes_done(warp.slot, group.mask.count_ones());
        // Lanes that wait for all that live look again.
        for other in &mut warp.groups {
            if matches!(other.wait, Wait::Lanes(_)) {
                other.wait = Wait::None;
            }
        }
        Ok(())
    }

    /// Whether any group can run; those whose wait is over are freed.
    pub(super) fn poll(&mut self, warp: &mut Warp) -> bool {
        let mut ready = false;
        for index in 0..warp.groups.len() {
            let (wait, mask) = (warp.groups[index].wait, warp.groups[index].mask);
            let over = match wait {
                Wait::None => true,
                Wait::Lanes(_) => false,
                Wait::Barrier { id, generation } => {
                    let barrier = &self.blocks[warp.slot].barriers[id as usize];
                    if barrier.generation == generation {
                        false
                    } else {
                        warp.views.settle(mask, &barrier.done);
                        self.barrier_result(warp, index, id);
                        warp.groups[index].pc += 1;
                        true
                    }
                }
                Wait::Cluster { generation } => {
                    let barrier = &self.clusters[self.blocks[warp.slot].cluster].barrier;
                    if barrier.generation == generation {
                        false
                    } else {
                        warp.views.learn(mask, &barrier.done);
                        warp.groups[index].pc += 1;
                        true
                    }
                }
                Wait::Mbarrier { address, phase } => {
                    self.blocks[warp.slot].mbarriers.get(&address).is_none_or(|b| b.phase != phase)
                }
                Wait::Bulk { left, read } => self.bulk_done(warp, mask, left, read),
                Wait::Warpgroup(count) => {
                    let group = &self.blocks[warp.slot].warpgroups[warp.number as usize / 4];
                    let met = group.counts.iter().all(|&c| c >= count);
                    if met {
                        warp.groups[index].pc += 1;
                    }
                    met
                }
                Wait::Registers(wanted) => self.blocks[warp.slot].free_registers >= wanted,
            };
            if over {
                warp.groups[index].wait = Wait::None;
                ready = true;
            }
        }
        if ready && warp.groups.len() > 1 {
            let mut index = 0;
            while index < warp.groups.len() {
                warp.merge(index);
                index += 1;
            }
        }
        ready
    }

    pub(super) fn undefined<T>(&self, reg: Reg, mask: u32) -> Run<T> {
        let name = &self.program.registers[reg as usize];
        trouble(FaultKind::UninitialisedRegister, mask, format!("{name} was not written"))
    }

    /// Checks and marks the registers of an instruction.
    #[inline]
    pub(super) fn registers(&self, warp: &mut Warp, inst: &Inst, active: u32) -> Run<()> {
        let mut defined = active;
        for &reg in &inst.reads {
            defined &= warp.defined[reg as usize];
        }
        if defined != active && !inst.passes {
            for &reg in &inst.reads {
                if active & !warp.defined[reg as usize] != 0 {
                    return self.undefined(reg, active & !warp.defined[reg as usize]);
                }
            }
        }
        if !warp.uses.is_empty() {
            warp.step += 1;
            if !matches!(inst.op, Op::Wgmma { .. }) {
                self.touch(warp, inst, active)?;
            }
        }
        // Sums may be read too, which only the product itself knows.
        if matches!(inst.op, Op::Wgmma { .. }) {
            return Ok(());
        }
        for &reg in &inst.writes {
            let slot = &mut warp.defined[reg as usize];
            *slot = *slot & !active | defined;
        }
        Ok(())
    }

    fn touch(&self, warp: &mut Warp, inst: &Inst, active: u32) -> Run<()> {
        for (registers, writes) in [(&inst.reads, false), (&inst.writes, true)] {
            for &reg in registers {
                let step = warp.step;
                let used = &mut warp.uses[reg as usize];
                if used.sums > 0 || (writes && used.factors > 0) {
                    let name = &self.program.registers[reg as usize];
                    let verb = if writes { "written" } else { "read" };
                    let message = format!("{name} is {verb} while a product that is not settled uses it");
                    return trouble(FaultKind::UnsettledRegister, active, message);
                }
                used.touched = step;
            }
        }
        Ok(())
    }
}

/// Copies between variables of local memory.
pub(super) fn copy_local(warp: &mut Warp, mask: u32, pieces: impl Iterator<Item = (u32, u32, u32)>) {
    let size = warp.local.len() / 32;
    for (from, to, bytes) in pieces {
        for lane in lanes(mask) {
            let (from, to) = (lane * size + from as usize, lane * size + to as usize);
            for index in 0..bytes as usize {
                warp.local[to + index] = warp.local[from + index];
                if warp.local_written.all(from + index, 1) {
                    warp.local_written.set(to + index, 1);
                }
            }
        }
    }
}
