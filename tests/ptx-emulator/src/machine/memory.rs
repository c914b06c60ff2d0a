//! Loads, stores and atomics: where an address lies, whether it may be accessed, and what orders the access.

use super::Machine;
use super::clock::{Clock, Level};
use super::shadow::{Accessor, Conflict, OPERATION, Shadow, Stamp};
use super::warp::{Warp, lanes};
use crate::decode::CALL_PARAMS;
use crate::fault::{FaultKind, Run, Trouble, trouble_at};
use crate::program::{Address, AtomicOp, Op, Order, Scope};
use crate::types::{Space, Type, mask, sign_extend};

/// Where the windows of other spaces lie among generic addresses; a shared address is the low half in it.
pub(super) const SHARED_WINDOW: u64 = 0x4000_0000_0000;
const LOCAL_WINDOW: u64 = 0x5000_0000_0000;
const PARAM_WINDOW: u64 = 0x6000_0000_0000;
const WINDOW: u64 = 1 << 32;
const PAGE: u64 = 4096;

/// The generic address of an address of a space.
pub(super) fn to_generic(space: Space, address: u64) -> u64 {
    match space {
        Space::Shared | Space::SharedCluster => SHARED_WINDOW + (address & mask(32)),
        Space::Local => LOCAL_WINDOW + (address & mask(32)),
        Space::Param => PARAM_WINDOW + (address & mask(32)),
        _ => address,
    }
}

/// The space of a generic address and the address in it.
pub(super) fn from_generic(address: u64) -> (Space, u64) {
    let inside = |window: u64| address >= window && address < window + WINDOW;
    if inside(SHARED_WINDOW) {
        (Space::Shared, address - SHARED_WINDOW)
    } else if inside(LOCAL_WINDOW) {
        (Space::Local, address - LOCAL_WINDOW)
    } else if inside(PARAM_WINDOW) {
        (Space::Param, address - PARAM_WINDOW)
    } else {
        (Space::Global, address)
    }
}

/// Memory that an access means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Target {
    /// An allocation and the place in it, with the address.
    Global {
        index: usize,
        offset: usize,
        address: u64,
    },
    Shared {
        slot: usize,
        offset: u32,
    },
    Local {
        offset: u32,
    },
    Param {
        offset: u32,
    },
}

impl Target {
    /// Some bytes further on.
    pub(super) fn plus(self, bytes: u32) -> Target {
        match self {
            Target::Global { index, offset, address } => {
                Target::Global { index, offset: offset + bytes as usize, address: address + u64::from(bytes) }
            }
            Target::Shared { slot, offset } => Target::Shared { slot, offset: offset + bytes },
            Target::Local { offset } => Target::Local { offset: offset + bytes },
            Target::Param { offset } => Target::Param { offset: offset + bytes },
        }
    }
}

/// To what something is released: a word, for those whom a scope includes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct SyncKey {
    /// Slot and cluster of a block's memory, or nothing for global memory.
    owner: Option<(usize, u32)>,
    address: u64,
    /// A block or cluster, or the device.
    scope: (u8, u64),
}

impl Machine<'_> {
    pub(super) fn address(&self, warp: &Warp, address: &Address, lane: usize) -> u64 {
        let base = address.base.map_or(0, |reg| warp.regs[reg as usize][lane]);
        let sum = base.wrapping_add(address.offset);
        if address.narrow { sum & mask(32) } else { sum }
    }

    /// The memory of an access of one lane.
    pub(super) fn resolve(&mut self, warp: &Warp, lane: usize, space: Space, address: u64, bytes: u32) -> Run<Target> {
        let lanes = 1 << lane;
        if !address.is_multiple_of(u64::from(bytes.max(1))) {
            let message = format!("the address is no multiple of {bytes}");
            return trouble_at(FaultKind::Misaligned, lanes, space, address, message);
        }
        let (space, inner) = if space == Space::Generic { from_generic(address) } else { (space, address) };
        let outside = |message: String| trouble_at(FaultKind::OutOfBounds, lanes, space, inner, message);
        match space {
            Space::Shared | Space::SharedCluster => {
                let (slot, offset) = self.shared_place(warp.slot, inner, lanes)?;
                if space == Space::Shared && slot != warp.slot && address == inner {
                    return outside("memory of another block, by an instruction for that of its own".into());
                }
                let size = self.blocks[slot].shared.len() as u32;
                if offset.checked_add(bytes).is_none_or(|end| end > size) {
                    return outside(format!("{bytes} bytes; the block has {size}"));
                }
                Ok(Target::Shared { slot, offset })
            }
            Space::Local => {
                let size = u64::from(self.program.local_bytes);
                if inner.checked_add(u64::from(bytes)).is_none_or(|end| end > size) {
                    return outside(format!("{bytes} bytes; the thread has {size}"));
                }
                Ok(Target::Local { offset: inner as u32 })
            }
            Space::Param if inner >= CALL_PARAMS => self.resolve(warp, lane, Space::Local, inner - CALL_PARAMS, bytes),
            Space::Param => {
                let size = self.params.len() as u64;
                if inner.checked_add(u64::from(bytes)).is_none_or(|end| end > size) {
                    return outside(format!("{bytes} bytes; the parameters have {size}"));
                }
                Ok(Target::Param { offset: inner as u32 })
            }
            _ => match self.memory.find(inner, bytes as usize) {
                Some((index, offset)) => Ok(Target::Global { index, offset, address: inner }),
                None => outside(format!("{bytes} bytes; {}", self.memory.near(inner))),
            },
        }
    }

    /// Block and offset of a shared address.
    pub(super) fn shared_place(&self, slot: usize, address: u64, lanes: u32) -> Run<(usize, u32)> {
        let offset = (address & 0xff_ffff) as u32;
        let rank = address >> 24;
        let found = if rank == 0 { Some(slot) } else { self.peer(slot, (rank - 1).min(u64::from(u32::MAX)) as u32) };
        match found {
            Some(found) if !self.blocks[found].done => Ok((found, offset)),
            Some(_) => {
                let message = "memory of a block that ended";
                trouble_at(FaultKind::OutOfBounds, lanes, Space::SharedCluster, address, message)
            }
            None => {
                let message = "no memory of this cluster";
                trouble_at(FaultKind::OutOfBounds, lanes, Space::SharedCluster, address, message)
            }
        }
    }

    pub(super) fn stamp(&self, warp: &Warp, lane: usize, strong: bool) -> Stamp {
        Stamp {
            who: warp.views.first + lane as u32,
            cluster: warp.views.cluster,
            time: warp.views.now,
            pc: warp.pc,
            strong,
            asynchronous: false,
        }
    }

    /// Checks an access against those before it, and marks it.
    pub(super) fn shadowed(
        &mut self,
        warp: &Warp,
        lane: usize,
        target: Target,
        (bytes, write): (u32, bool),
        stamp: Stamp,
        level: Level,
    ) -> Run<()> {
        if !self.options.races {
            return Ok(());
        }
        let by = Accessor { views: &warp.views, lane: lane as u32, level, stamp, operations: &self.operations };
        let access = |shadow: &mut Shadow, at: u32, length: u32| {
            if write { shadow.write(at, length, &by) } else { shadow.read(at, length, &by) }
        };
        let (outcome, space, shown) = match target {
            Target::Shared { slot, offset } => {
                (access(&mut self.blocks[slot].shadow, offset, bytes), Space::Shared, u64::from(offset))
            }
            Target::Global { address, .. } => {
                let mut outcome = Ok(());
                let mut at = address;
                while outcome.is_ok() && at < address + u64::from(bytes) {
                    let within = at % PAGE;
                    let take = (PAGE - within).min(address + u64::from(bytes) - at);
                    let page = self.pages.entry(at / PAGE).or_insert_with(|| Shadow::new(PAGE as usize));
                    outcome = access(page, within as u32, take as u32);
                    at += take;
                }
                (outcome, Space::Global, address)
            }
            _ => return Ok(()),
        };
        outcome.or_else(|conflict| self.conflict(conflict, lane, space, shown, write, level))
    }

    fn conflict(
        &self,
        conflict: Conflict,
        lane: usize,
        space: Space,
        address: u64,
        write: bool,
        level: Level,
    ) -> Run<()> {
        let Conflict { other, wrote, unfenced } = conflict;
        let verb = if write { "write" } else { "read" };
        let (kind, message) = if unfenced {
            let fence =
                if level == Level::FencedGlobal { "fence.proxy.async" } else { "fence.proxy.async.shared::cta" };
            (FaultKind::MissingProxyFence, format!("an asynchronous {verb} after an ordinary write without `{fence}`"))
        } else {
            (FaultKind::Race, format!("a {verb} that nothing orders behind an earlier access"))
        };
        let access = if wrote { "write" } else { "read" };
        Err(Box::new(Trouble {
            kind,
            message,
            lanes: 1 << lane,
            address: Some((space, address)),
            other: Some((other.pc, self.who(other), access)),
        }))
    }

    /// A stamp's owner, in words.
    fn who(&self, stamp: Stamp) -> String {
        let threads = super::block::padded(self.launch.block.iter().product());
        let size = self.launch.cluster.iter().product::<u32>();
        let base = if size == 1 { format!("block {}", stamp.cluster) } else { format!("cluster {}", stamp.cluster) };
        if stamp.who & OPERATION != 0 || stamp.who >= size * threads {
            return format!("an asynchronous operation of {base}");
        }
        let (rank, thread) = (stamp.who / threads, stamp.who % threads);
        let block = if size == 1 { String::new() } else { format!(" block {rank}") };
        format!("{base}{block} warp {} lane {}", thread / 32, thread % 32)
    }

    /// Bytes of memory, which must have been written.
    pub(super) fn fetch(&mut self, warp: &Warp, lane: usize, target: Target, into: &mut [u8]) -> Run<()> {
        let n = into.len();
        let unwritten = |space: Space, address: u64| {
            let message = format!("{n} bytes, not all of which were written");
            trouble_at(FaultKind::UninitialisedMemory, 1 << lane, space, address, message)
        };
        match target {
            Target::Global { index, offset, address } => {
                let allocation = &self.memory.allocations[index];
                if !allocation.written.all(offset, n) {
                    return unwritten(Space::Global, address);
                }
                into.copy_from_slice(&allocation.bytes[offset..offset + n]);
            }
            Target::Shared { slot, offset } => {
                let block = &self.blocks[slot];
                if !block.written.all(offset as usize, n) {
                    return unwritten(Space::Shared, u64::from(offset));
                }
                into.copy_from_slice(&block.shared[offset as usize..offset as usize + n]);
            }
            Target::Local { offset } => {
                let at = lane * self.program.local_bytes as usize + offset as usize;
                if !warp.local_written.all(at, n) {
                    return unwritten(Space::Local, u64::from(offset));
                }
                into.copy_from_slice(&warp.local[at..at + n]);
            }
            Target::Param { offset } => into.copy_from_slice(&self.params[offset as usize..offset as usize + n]),
        }
        Ok(())
    }

    pub(super) fn put(&mut self, warp: &mut Warp, lane: usize, target: Target, bytes: &[u8]) -> Run<()> {
        let n = bytes.len();
        match target {
            Target::Global { index, offset, address } => {
                let allocation = &mut self.memory.allocations[index];
                if allocation.constant {
                    let message = "a write to a variable of constant memory";
                    return trouble_at(FaultKind::ReadOnly, 1 << lane, Space::Const, address, message);
                }
                allocation.bytes[offset..offset + n].copy_from_slice(bytes);
                allocation.written.set(offset, n);
            }
            Target::Shared { slot, offset } => {
                let block = &mut self.blocks[slot];
                block.shared[offset as usize..offset as usize + n].copy_from_slice(bytes);
                block.written.set(offset as usize, n);
                if !block.mbarriers.is_empty() {
                    // What is written over is a barrier no more.
                    let first = (offset & !7).saturating_sub(0);
                    for at in (first..offset + n as u32).step_by(8) {
                        block.mbarriers.remove(&at);
                    }
                }
            }
            Target::Local { offset } => {
                let at = lane * self.program.local_bytes as usize + offset as usize;
                warp.local[at..at + n].copy_from_slice(bytes);
                warp.local_written.set(at, n);
            }
            Target::Param { offset } => {
                let message = "a write to a parameter of the kernel";
                return trouble_at(FaultKind::ReadOnly, 1 << lane, Space::Param, u64::from(offset), message);
            }
        }
        Ok(())
    }

    pub(super) fn load(&mut self, warp: &mut Warp, op: &Op, active: u32) -> Run<()> {
        let Op::Load { space, address, d, ty, widths, order, scope } = op else { return Ok(()) };
        let each = ty.bytes();
        let total = each * d.len() as u32;
        let strong = *order != Order::Weak;
        let mut touched = Touched::default();
        for lane in lanes(active) {
            let at = self.address(warp, address, lane);
            let target = self.resolve(warp, lane, *space, at, total)?;
            let stamp = self.stamp(warp, lane, strong);
            self.shadowed(warp, lane, target, (total, false), stamp, Level::Known)?;
            let mut bytes = [0; 16];
            self.fetch(warp, lane, target, &mut bytes[..total as usize])?;
            touched.add(target);
            for (index, d) in d.iter().enumerate() {
                let Some(d) = d else { continue };
                let mut value = [0; 8];
                let from = index * each as usize;
                value[..each as usize].copy_from_slice(&bytes[from..from + each as usize]);
                let value = u64::from_le_bytes(value);
                let value = if ty.is_signed() { sign_extend(value, ty.bits()) as u64 & mask(*widths) } else { value };
                warp.regs[*d as usize][lane] = value;
            }
            if strong {
                self.acquire_at(warp, lane, target, *order, *scope);
            }
        }
        self.count(&touched, total, false, warp.pc);
        Ok(())
    }

    pub(super) fn store(&mut self, warp: &mut Warp, op: &Op, active: u32) -> Run<()> {
        let Op::Store { space, address, s, ty, order, scope } = op else { return Ok(()) };
        let each = ty.bytes() as usize;
        let total = (each * s.len()) as u32;
        let strong = *order != Order::Weak;
        let mut touched = Touched::default();
        for lane in lanes(active) {
            let at = self.address(warp, address, lane);
            let target = self.resolve(warp, lane, *space, at, total)?;
            let mut bytes = [0; 16];
            for (index, s) in s.iter().enumerate() {
                let value = warp.lane(*s, lane).to_le_bytes();
                bytes[index * each..(index + 1) * each].copy_from_slice(&value[..each]);
            }
            let bytes = &bytes[..total as usize];
            let stamp = self.stamp(warp, lane, strong);
            if let Err(found) = self.shadowed(warp, lane, target, (total, true), stamp, Level::Known) {
                // Lanes that write the same in one instruction are in no conflict.
                let mut there = [0; 16];
                let there = &mut there[..total as usize];
                let twin = self.same_instruction(warp, &found, active) && self.fetch(warp, lane, target, there).is_ok();
                if !twin || there != bytes {
                    return Err(found);
                }
            }
            self.put(warp, lane, target, bytes)?;
            touched.add(target);
            if strong {
                self.release_at(warp, lane, target, *order, *scope, true);
            }
        }
        self.count(&touched, total, true, warp.pc);
        Ok(())
    }

    /// Whether a race is between lanes of a warp at this instruction.
    fn same_instruction(&self, warp: &Warp, found: &Trouble, active: u32) -> bool {
        found.other.as_ref().is_some_and(|(pc, who, access)| {
            let twins = lanes(active).any(|l| *who == self.who(self.stamp(warp, l, false)));
            *pc == warp.pc && *access == "write" && twins
        })
    }

    pub(super) fn atomic(&mut self, warp: &mut Warp, op: &Op, active: u32) -> Run<()> {
        let Op::Atomic { op, space, address, d, s, ty, order, scope } = op else { return Ok(()) };
        let bytes = ty.bytes();
        let mut touched = Touched::default();
        // Any order is allowed; the seed chooses where it begins.
        let turn = self.random.below(32) as u32;
        for lane in lanes(active.rotate_right(turn)).map(|l| (l + turn as usize) % 32) {
            let at = self.address(warp, address, lane);
            let target = self.resolve(warp, lane, *space, at, bytes)?;
            if !matches!(target, Target::Global { .. } | Target::Shared { .. }) {
                let message = "an atomic on memory that is neither global nor shared";
                return trouble_at(FaultKind::OutOfBounds, 1 << lane, *space, at, message);
            }
            let stamp = self.stamp(warp, lane, true);
            self.shadowed(warp, lane, target, (bytes, true), stamp, Level::Known)?;
            let mut old = [0; 8];
            self.fetch(warp, lane, target, &mut old[..bytes as usize])?;
            let old = u64::from_le_bytes(old);
            let new = combine(*op, *ty, old, warp.lane(s[0], lane), warp.lane(s[1], lane));
            self.put(warp, lane, target, &new.to_le_bytes()[..bytes as usize])?;
            if let Some(d) = d {
                warp.regs[*d as usize][lane] = old;
            }
            touched.add(target);
            self.acquire_at(warp, lane, target, *order, *scope);
            self.release_at(warp, lane, target, *order, *scope, false);
        }
        self.count(&touched, bytes, true, warp.pc);
        Ok(())
    }

    /// The keys of a word, for the scopes up to one.
    fn keys(&self, warp: &Warp, target: Target, scope: Scope) -> Vec<SyncKey> {
        let block = &self.blocks[warp.slot];
        let cluster = &self.clusters[block.cluster];
        let (owner, address) = match target {
            Target::Shared { slot, offset } => (Some((slot, cluster.index)), u64::from(offset)),
            Target::Global { address, .. } => (None, address),
            _ => return Vec::new(),
        };
        let size = self.launch.cluster.iter().product::<u32>();
        let number = u64::from(cluster.index) * u64::from(size) + u64::from(block.rank);
        let scopes =
            [(Scope::Block, (0, number)), (Scope::Cluster, (1, u64::from(cluster.index))), (Scope::Device, (2, 0))];
        let wanted = scopes.into_iter().filter(|(s, _)| *s <= scope);
        wanted.map(|(_, scope)| SyncKey { owner, address, scope }).collect()
    }

    fn acquire_at(&mut self, warp: &mut Warp, lane: usize, target: Target, order: Order, scope: Scope) {
        let acquires = matches!(order, Order::Acquire | Order::AcquireRelease);
        for key in self.keys(warp, target, scope) {
            let Some(clock) = self.released.get(&key) else { continue };
            if acquires {
                warp.views.acquire(1 << lane, clock);
            } else {
                let seen = &mut warp.sync[lane].seen[key.scope.0 as usize];
                seen.get_or_insert_with(|| Clock::new(warp.views.cluster)).join(clock);
            }
        }
    }

    /// A plain store ends what was released before; an atomic carries it on.
    fn release_at(&mut self, warp: &mut Warp, lane: usize, target: Target, order: Order, scope: Scope, ends: bool) {
        if ends {
            for key in self.keys(warp, target, Scope::Device) {
                self.released.remove(&key);
            }
        }
        let mut own = None;
        if matches!(order, Order::Release | Order::AcquireRelease) {
            let clock = own.insert(Clock::new(warp.views.cluster));
            warp.views.release(1 << lane, clock);
        }
        for key in self.keys(warp, target, scope) {
            let clock = match (&own, &warp.sync[lane].fenced[key.scope.0 as usize]) {
                (Some(own), _) => own.clone(),
                (None, Some((view, time))) => {
                    let mut clock = Clock::new(warp.views.cluster);
                    warp.views.release_view(lane as u32, view, *time, &mut clock);
                    clock
                }
                (None, None) => continue,
            };
            self.released.entry(key).or_insert_with(|| Clock::new(warp.views.cluster)).join(&clock);
        }
    }

    /// A fence of memory for some lanes.
    pub(super) fn fence(&mut self, warp: &mut Warp, scope: Scope, active: u32) {
        for lane in lanes(active) {
            for level in 0..=scope as usize {
                if let Some(seen) = warp.sync[lane].seen[level].take() {
                    warp.views.acquire(1 << lane, &seen);
                }
            }
            for level in 0..=scope as usize {
                warp.sync[lane].fenced[level] = Some((warp.views.view(lane as u32), warp.views.now));
            }
        }
        warp.views.now += 1;
    }

    pub(super) fn count(&mut self, touched: &Touched, bytes: u32, write: bool, pc: u32) {
        let report = &mut self.report;
        let (global, sectors, shared) = if write {
            (&mut report.global_written, &mut report.global_written_sectors, &mut report.shared_written)
        } else {
            (&mut report.global_read, &mut report.global_read_sectors, &mut report.shared_read)
        };
        if touched.globals > 0 {
            *global += touched.globals as u64 * u64::from(bytes);
            let mut found: Vec<u64> = touched.global[..touched.globals].iter().map(|a| a / 32).collect();
            found.sort_unstable();
            found.dedup();
            *sectors += found.len() as u64;
        }
        let words = &touched.shared[..touched.shareds];
        if !words.is_empty() {
            *shared += words.len() as u64 * u64::from(bytes);
            let conflicts = bank_conflicts(words, bytes);
            if conflicts > 0 {
                report.bank_conflicts += conflicts;
                let line = self.program.insts[pc as usize].line;
                *report.bank_conflicts_by_line.entry(line).or_default() += conflicts;
            }
        }
    }
}

/// What a warp's instruction touched, for the counts.
#[derive(Default)]
pub(super) struct Touched {
    global: [u64; 32],
    globals: usize,
    shared: [u32; 32],
    shareds: usize,
}

impl Touched {
    pub(super) fn add(&mut self, target: Target) {
        match target {
            Target::Global { address, .. } => {
                self.global[self.globals] = address;
                self.globals += 1;
            }
            Target::Shared { offset, .. } => {
                self.shared[self.shareds] = offset;
                self.shareds += 1;
            }
            _ => {}
        }
    }
}

/// Passes beyond one for each group of lanes that fills the banks once.
pub(super) fn bank_conflicts(offsets: &[u32], bytes: u32) -> u64 {
    let words = bytes.div_ceil(4);
    let together = 32 / words.max(1) as usize;
    let mut extra = 0;
    for phase in offsets.chunks(together.max(1)) {
        let mut found: Vec<u32> = phase.iter().flat_map(|o| (0..words).map(move |w| o / 4 + w)).collect();
        found.sort_unstable();
        found.dedup();
        let mut banks = [0u64; 32];
        for word in found {
            banks[word as usize % 32] += 1;
        }
        extra += banks.iter().max().copied().unwrap_or(1).max(1) - 1;
    }
    extra
}

/// The new value of an atomic.
pub(super) fn combine(op: AtomicOp, ty: Type, old: u64, a: u64, b: u64) -> u64 {
    let bits = ty.bits();
    let float = |packed: bool, format| {
        let one = |x: u64, y: u64| {
            use crate::float::exact::{self, Format, Rounding};
            let format: Format = format;
            format.encode(exact::add(format.decode(x), format.decode(y), Rounding::Nearest), Rounding::Nearest, false)
        };
        if packed { one(old & 0xffff, a & 0xffff) | one(old >> 16, a >> 16) << 16 } else { one(old, a) }
    };
    let less = if ty.is_signed() { sign_extend(old, bits) < sign_extend(a, bits) } else { old < a };
    match (op, crate::alu::format_of(ty)) {
        (AtomicOp::Add, Some((format, packed))) => float(packed, format),
        (AtomicOp::Add, None) => old.wrapping_add(a) & mask(bits),
        (AtomicOp::Min, _) => {
            if less {
                old
            } else {
                a
            }
        }
        (AtomicOp::Max, _) => {
            if less {
                a
            } else {
                old
            }
        }
        (AtomicOp::And, _) => old & a,
        (AtomicOp::Or, _) => old | a,
        (AtomicOp::Xor, _) => old ^ a,
        (AtomicOp::Inc, _) => {
            if old >= a {
                0
            } else {
                old + 1
            }
        }
        (AtomicOp::Dec, _) => {
            if old == 0 || old > a {
                a
            } else {
                old - 1
            }
        }
        (AtomicOp::Exch, _) => a,
        (AtomicOp::Cas, _) => {
            if old == a {
                b
            } else {
                old
            }
        }
    }
}
