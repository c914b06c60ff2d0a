//! Products of a warpgroup, which happen when they are waited for, and registers that warps hand on.

use super::Machine;
use super::clock::{Component, Level};
use super::matrix::{a_place, codes, rounded};
use super::memory::Target;
use super::warp::{Outcome, Wait, Warp};
use crate::fault::{FaultKind, Run, trouble, trouble_at};
use crate::matrix::{Fragment, Kind, Matrix, Product, Sum};
use crate::program::{Inst, Op};
use crate::tensor_map::Swizzle;
use crate::types::Space;

/// A product of one warp that is not settled.
#[derive(Clone, Debug)]
struct Open {
    warp: u32,
    pc: u32,
    group: u32,
    a: Option<u64>,
    b: u64,
    scale: bool,
    operation: u32,
}

/// What four warps do together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Warpgroup {
    /// Products of each warp so far.
    pub counts: [u64; 4],
    committed: [u32; 4],
    open: Vec<Open>,
    component: Option<Component>,
}

impl Warpgroup {
    pub(super) fn pending(&self, warp: u32) -> bool {
        self.open.iter().any(|o| o.warp == warp)
    }
}

/// A matrix descriptor taken apart.
struct Layout {
    start: u32,
    leading: u32,
    stride: u32,
    base: u32,
    swizzle: Swizzle,
}

impl Layout {
    fn parse(descriptor: u64) -> Option<Layout> {
        let field = |at: u32| ((descriptor >> at & 0x3fff) << 4) as u32;
        let reserved =
            (descriptor >> 14 & 3) | (descriptor >> 30 & 3) | (descriptor >> 46 & 7) | (descriptor >> 52 & 0x3ff);
        let swizzle = [Swizzle::None, Swizzle::B128, Swizzle::B64, Swizzle::B32][(descriptor >> 62) as usize];
        (reserved == 0).then(|| Layout {
            start: field(0),
            leading: field(16),
            stride: field(32),
            base: (descriptor >> 49 & 7) as u32,
            swizzle,
        })
    }

    /// Where the byte at `fast` bytes along the direction that lies together and `slow` rows across it is. `fast`
    /// is `k` of a factor as it is wanted, and its other index of one that lies across.
    fn place(&self, fast: u32, slow: u32, across: bool) -> u32 {
        let span = self.swizzle.span();
        let (row, group) = (slow % 8, slow / 8);
        let address = match (self.swizzle, across) {
            // Eight rows of 16 bytes; `leading` along, `stride` across, the other way round if it lies across.
            (Swizzle::None, false) => {
                self.start + fast / 16 * self.leading + group * self.stride + row * 16 + fast % 16
            }
            (Swizzle::None, true) => self.start + fast / 16 * self.stride + group * self.leading + row * 16 + fast % 16,
            (_, false) => self.start + group * self.stride + row * span + fast,
            (_, true) => self.start + fast / span * self.leading + group * self.stride + row * span + fast % span,
        };
        match self.swizzle {
            Swizzle::None => address,
            swizzle => {
                let shifted = address.wrapping_sub(self.base << 7);
                address ^ (swizzle.apply(shifted) ^ shifted)
            }
        }
    }
}

impl Machine<'_> {
    pub(super) fn warpgroup(&mut self, warp: &mut Warp, inst: &Inst, active: u32) -> Run<Outcome> {
        if let Some(outcome) = warp.whole(active)? {
            return Ok(outcome);
        }
        let index = warp.number as usize / 4;
        let quarter = warp.number as usize % 4;
        if self.blocks[warp.slot].warps.len() < 4 * index + 4 {
            return trouble(FaultKind::Divergence, active, "a warpgroup that has not four warps");
        }
        match &inst.op {
            Op::WgmmaFence => warp.fence_step = Some(warp.step),
            Op::WgmmaCommit => self.blocks[warp.slot].warpgroups[index].committed[quarter] += 1,
            Op::WgmmaWait { left } => self.settle(warp, index, *left)?,
            Op::Wgmma { .. } => return self.start_product(warp, inst, index),
            Op::SetMaxRegisters { count, increase } => {
                let bound = self.program.bounds;
                if bound.max_threads.is_none() && bound.required_threads.is_none() && bound.max_registers.is_none() {
                    let message = "`setmaxnreg` in a kernel without a bound of its threads, where it is ignored";
                    return trouble(FaultKind::Registers, active, message);
                }
                return self.set_registers(warp, *count, *increase);
            }
            _ => {}
        }
        Ok(Outcome::Next)
    }

    fn start_product(&mut self, warp: &mut Warp, inst: &Inst, index: usize) -> Run<Outcome> {
        let Op::Wgmma { product, d, a, b, scale_d, .. } = &inst.op else { return Ok(Outcome::Next) };
        let scale = (warp.uniform(scale_d.0, u32::MAX, "the scale of sums")? & 1 == 1) != scale_d.1;
        let Some(fence) = warp.fence_step else {
            return trouble(FaultKind::UnsettledRegister, u32::MAX, "a product before the first `wgmma.fence`");
        };
        if scale {
            for &reg in d {
                if warp.defined[reg as usize] != u32::MAX {
                    return self.undefined(reg, !warp.defined[reg as usize]);
                }
            }
        }
        let factors: Vec<u32> = match a {
            Fragment::Registers(s) => s
                .iter()
                .filter_map(|s| match s {
                    crate::program::Src::Reg(r) => Some(*r),
                    crate::program::Src::Imm(_) => None,
                })
                .collect(),
            Fragment::Shared(_) => Vec::new(),
        };
        for &reg in d.iter().chain(&factors) {
            let used = warp.uses[reg as usize];
            if used.touched > fence {
                let name = &self.program.registers[reg as usize];
                let message = format!("{name} was used after the last `wgmma.fence`");
                return trouble(FaultKind::UnsettledRegister, u32::MAX, message);
            }
            if factors.contains(&reg) && used.sums > 0 {
                let name = &self.program.registers[reg as usize];
                let message = format!("{name} is a factor while a product that is not settled writes it");
                return trouble(FaultKind::UnsettledRegister, u32::MAX, message);
            }
        }
        let a_descriptor = match a {
            Fragment::Shared(m) => Some(warp.uniform(m.descriptor, u32::MAX, "a descriptor")?),
            Fragment::Registers(_) => None,
        };
        let b_descriptor = warp.uniform(b.descriptor, u32::MAX, "a descriptor")?;
        let cluster = self.blocks[warp.slot].cluster;
        let component = match self.blocks[warp.slot].warpgroups[index].component {
            Some(component) => component,
            None => self.new_component(cluster),
        };
        self.blocks[warp.slot].warpgroups[index].component = Some(component);
        let quarter = warp.number as usize % 4;
        let group = self.blocks[warp.slot].warpgroups[index].committed[quarter] + 1;
        let operation = self.new_operation(warp.views.cluster, component);
        if let (Some(descriptor), Fragment::Shared(m)) = (a_descriptor, a) {
            // It is the warpgroup that multiplies: nothing says which rows are read for which warp.
            self.reads_factor(warp, operation, (descriptor, m), product.a, 0..64, product.k)?;
        }
        self.reads_factor(warp, operation, (b_descriptor, b), product.b, 0..product.n, product.k)?;
        for &reg in d {
            warp.defined[reg as usize] = u32::MAX;
            warp.uses[reg as usize].sums = warp.uses[reg as usize].sums.saturating_add(1);
        }
        for &reg in &factors {
            warp.uses[reg as usize].factors = warp.uses[reg as usize].factors.saturating_add(1);
        }
        let warpgroup = &mut self.blocks[warp.slot].warpgroups[index];
        warpgroup.open.push(Open {
            warp: warp.number,
            pc: warp.pc,
            group,
            a: a_descriptor,
            b: b_descriptor,
            scale,
            operation,
        });
        warpgroup.counts[quarter] += 1;
        Ok(Outcome::Wait(Wait::Warpgroup(warpgroup.counts[quarter])))
    }

    /// Checks and marks what a product will read of shared memory: rows (of `a`; columns of `b`) along `k`.
    fn reads_factor(
        &mut self,
        warp: &Warp,
        operation: u32,
        (descriptor, matrix): (u64, &Matrix),
        kind: Kind,
        rows: std::ops::Range<u32>,
        k: u32,
    ) -> Run<()> {
        let Some(layout) = Layout::parse(descriptor) else {
            return trouble(FaultKind::Descriptor, u32::MAX, format!("{descriptor:#018x} is no matrix descriptor"));
        };
        let size = kind.bytes();
        let stamp = self.operation_stamp(warp, operation, true);
        // All lanes take part, so what is read must be in order for each.
        let witnesses = warp.views.distinct();
        let (slow, fast) =
            if matrix.transposed { (0..k, rows.start * size..rows.end * size) } else { (rows, 0..k * size) };
        for slow in slow {
            for fast in fast.clone().step_by(16) {
                let offset = layout.place(fast, slow, matrix.transposed);
                let block = &self.blocks[warp.slot];
                let inside = offset as usize + 16 <= block.shared.len();
                if !inside {
                    let message = format!("a factor of a product; the block has {} bytes", block.shared.len());
                    return trouble_at(FaultKind::OutOfBounds, u32::MAX, Space::Shared, u64::from(offset), message);
                }
                let target = Target::Shared { slot: warp.slot, offset };
                for &lane in &witnesses {
                    self.shadowed(warp, lane, target, (16, false), stamp, Level::FencedShared)?;
                }
                if !self.blocks[warp.slot].written.all(offset as usize, 16) {
                    let message = "a factor of a product that nothing wrote";
                    return trouble_at(
                        FaultKind::UninitialisedMemory,
                        u32::MAX,
                        Space::Shared,
                        u64::from(offset),
                        message,
                    );
                }
            }
        }
        Ok(())
    }

    /// Waits until a number of groups are left: their products happen now, those of all four warps.
    fn settle(&mut self, warp: &mut Warp, index: usize, left: u32) -> Run<()> {
        let quarter = warp.number as usize % 4;
        let slot = warp.slot;
        let due = self.blocks[slot].warpgroups[index].committed[quarter].saturating_sub(left);
        let mut open = Vec::new();
        self.blocks[slot].warpgroups[index].open.retain(|o| {
            let over = o.group <= due;
            if over {
                open.push(o.clone());
            }
            !over
        });
        let component = self.blocks[slot].warpgroups[index].component;
        let cluster = warp.views.cluster as usize;
        for product in &open {
            if product.warp == warp.number {
                self.perform_product(warp, product)?;
            } else if let Some(mut other) = self.blocks[slot].warps[product.warp as usize].take() {
                let outcome = self.perform_product(&mut other, product);
                self.blocks[slot].warps[product.warp as usize] = Some(other);
                outcome?;
            }
            let done = &mut self.operations[cluster].done[product.operation as usize];
            done.1 = Some(product.group);
        }
        // Registers are free for a warp when it waited itself.
        for used in 0..warp.uses.len() {
            let RegisterCounts { sums, factors } = self.owned(warp, index, used as u32);
            warp.uses[used].sums = sums;
            warp.uses[used].factors = factors;
        }
        if let Some(component) = component {
            warp.views.completed(u32::MAX, component, due);
        }
        Ok(())
    }

    /// How many open products of a warp use a register.
    fn owned(&self, warp: &Warp, index: usize, reg: u32) -> RegisterCounts {
        let mut found = RegisterCounts { sums: 0, factors: 0 };
        let uses = warp.uses[reg as usize];
        if uses.sums == 0 && uses.factors == 0 {
            return found;
        }
        for open in self.blocks[warp.slot].warpgroups[index].open.iter().filter(|o| o.warp == warp.number) {
            if let Op::Wgmma { d, a, .. } = &self.program.insts[open.pc as usize].op {
                found.sums += u16::from(d.contains(&reg));
                if let Fragment::Registers(s) = a {
                    let uses = |s: &crate::program::Src| matches!(s, crate::program::Src::Reg(r) if *r == reg);
                    found.factors += u16::from(s.iter().any(uses));
                }
            }
        }
        found
    }

    fn factor(&self, slot: usize, descriptor: u64, matrix: &Matrix, kind: Kind, row: u32, k: u32) -> f64 {
        let Some(layout) = Layout::parse(descriptor) else { return 0.0 };
        let size = kind.bytes();
        let offset =
            if matrix.transposed { layout.place(row * size, k, true) } else { layout.place(k * size, row, false) }
                as usize;
        let mut code = [0; 4];
        code[..size as usize].copy_from_slice(&self.blocks[slot].shared[offset..offset + size as usize]);
        kind.value(u32::from_le_bytes(code))
    }

    fn perform_product(&mut self, warp: &mut Warp, open: &Open) -> Run<()> {
        let program = self.program;
        let Op::Wgmma { product, d, a, b, negate, .. } = &program.insts[open.pc as usize].op else { return Ok(()) };
        let Product { n, k, .. } = *product;
        let (columns, depth) = (n as usize, k as usize);
        let sign = |negated: bool| if negated { -1.0 } else { 1.0 };
        let first = warp.number % 4 * 16;
        let mut left = vec![0.0; 16 * depth];
        match a {
            Fragment::Registers(s) => {
                for lane in 0..32u32 {
                    for (register, source) in s.iter().enumerate() {
                        let bits = warp.lane(*source, lane as usize) as u32;
                        for (element, code) in codes(product.a, bits).enumerate() {
                            let (row, column) = a_place(product.a, lane, register as u32, element as u32);
                            left[row as usize * depth + column as usize] = sign(negate[0]) * product.a.value(code);
                        }
                    }
                }
            }
            Fragment::Shared(m) => {
                for row in 0..16 {
                    for at in 0..k {
                        let value = self.factor(warp.slot, open.a.unwrap_or(0), m, product.a, first + row, at);
                        left[(row * k + at) as usize] = sign(negate[0]) * value;
                    }
                }
            }
        }
        let mut right = vec![0.0; depth * columns];
        for column in 0..n {
            for at in 0..k {
                let value = self.factor(warp.slot, open.b, b, product.b, column, at);
                right[(column * k + at) as usize] = sign(negate[1]) * value;
            }
        }
        let halves = if product.sum == Sum::F16 { 2 } else { 1 };
        for (register, &reg) in d.iter().enumerate() {
            for lane in 0..32 {
                let mut value = 0;
                for half in 0..halves {
                    let element = register * halves + half;
                    let row = lane / 4 + 8 * (element / 2 % 2);
                    let column = 8 * (element / 4) + lane % 4 * 2 + element % 2;
                    let (row, column) = (row * depth, column * depth);
                    let factors = (&left[row..row + depth], &right[column..column + depth]);
                    let start = if open.scale { warp.regs[reg as usize][lane] >> (16 * half) } else { 0 };
                    value |= rounded(product, start, factors, self.options) << (16 * half);
                }
                warp.regs[reg as usize][lane] = value;
            }
        }
        Ok(())
    }

    /// Registers are handed on between the warps of a block.
    fn set_registers(&mut self, warp: &mut Warp, count: u32, increase: bool) -> Run<Outcome> {
        let now = warp.max_registers;
        let free = &mut self.blocks[warp.slot].free_registers;
        if increase != (count > now) && count != now {
            let message = format!("{count} registers, where the warp has {now}");
            return trouble(FaultKind::Registers, u32::MAX, message);
        }
        if increase {
            let wanted = (count - now) * 32;
            if *free < wanted {
                return Ok(Outcome::Retry(Wait::Registers(wanted)));
            }
            *free -= wanted;
        } else {
            *free += (now - count) * 32;
        }
        warp.max_registers = count;
        Ok(Outcome::Next)
    }
}

struct RegisterCounts {
    sums: u16,
    factors: u16,
}
