//! Executes instructions of single lanes, and hands all others to where they are executed.

use super::Machine;
use super::memory::{SHARED_WINDOW, from_generic, to_generic};
use super::warp::{Outcome, Warp, copy_local, lanes};
use crate::alu;
use crate::fault::{FaultKind, Run, trouble, trouble_at};
use crate::program::{Bool, Inst, Op, Special};
use crate::types::{Space, mask, sign_extend};

impl Machine<'_> {
    /// Executes an instruction for some lanes of a group.
    pub(super) fn execute(&mut self, warp: &mut Warp, inst: &Inst, active: u32, group: usize) -> Run<Outcome> {
        self.registers(warp, inst, active)?;
        match &inst.op {
            Op::Nothing => {}
            Op::Alu { function, mode, d, s } => {
                let [a, b, c] = [warp.read(s[0]), warp.read(s[1]), warp.read(s[2])];
                let out = &mut warp.regs[*d as usize];
                for lane in lanes(active) {
                    out[lane] = function(*mode, a[lane], b[lane], c[lane]);
                }
            }
            Op::Move { d, a } => {
                let values = warp.read(*a);
                warp.write(*d, active, &values);
            }
            Op::Branch { target } => return Ok(Outcome::Jump(*target)),
            Op::Compare { .. } | Op::SetTo { .. } | Op::Select { .. } => self.compare(warp, &inst.op, active),
            Op::Load { .. } => self.load(warp, &inst.op, active)?,
            Op::Store { .. } => self.store(warp, &inst.op, active)?,
            Op::Atomic { .. } => self.atomic(warp, &inst.op, active)?,
            Op::Special { d, which } => self.special(warp, *d, *which, active),
            Op::Approx { which, flush, d, a } => {
                let input = warp.read(*a);
                for lane in lanes(active) {
                    let format = crate::float::exact::F32;
                    let x = if *flush { alu::flush(format, input[lane]) } else { input[lane] };
                    let x = f32::from_bits(x as u32);
                    let y = if self.options.perturb { which.perturbed(x, self.random.share()) } else { which.of(x) };
                    let y = u64::from(y.to_bits());
                    warp.regs[*d as usize][lane] = if *flush { alu::flush(format, y) } else { y };
                }
            }
            Op::Insert { d, s, bits } => {
                let [a, b, pos, len] = [0, 1, 2, 3].map(|i| warp.read(s[i]));
                for lane in lanes(active) {
                    let value = alu::insert(a[lane], b[lane], pos[lane], len[lane], *bits);
                    warp.regs[*d as usize][lane] = value;
                }
            }
            Op::Convert { conversion, d, extend, a, b } => {
                let (a, b) = (warp.read(*a), warp.read(*b));
                for lane in lanes(active) {
                    let mut value = conversion.apply(a[lane], b[lane]);
                    if *extend > 0 {
                        value = sign_extend(value, conversion.to.bits()) as u64 & mask(*extend);
                    }
                    warp.regs[*d as usize][lane] = value;
                }
            }
            Op::Pack { d, parts, bits } => {
                let mut values = [0; 32];
                for (index, part) in parts.iter().enumerate() {
                    let part = warp.read(*part);
                    for lane in lanes(active) {
                        values[lane] |= (part[lane] & mask(*bits)) << (index as u32 * bits);
                    }
                }
                warp.write(*d, active, &values);
            }
            Op::Unpack { d, a, bits } => {
                let whole = warp.read(*a);
                for (index, d) in d.iter().enumerate() {
                    let Some(d) = d else { continue };
                    for lane in lanes(active) {
                        warp.regs[*d as usize][lane] = whole[lane] >> (index as u32 * bits) & mask(*bits);
                    }
                }
            }
            Op::Carry { d, a, b, carry, subtract, takes, gives, bits } => {
                let (a, b) = (warp.read(*a), warp.read(*b));
                for lane in lanes(active) {
                    let mut carried = if *takes { u128::from(warp.regs[*carry as usize][lane]) } else { 0 };
                    let (x, mut y) = (u128::from(a[lane]), u128::from(b[lane]));
                    if *subtract {
                        // The flag is a carry here too: set where nothing was borrowed.
                        y = u128::from(!b[lane] & mask(*bits));
                        carried = if *takes { carried } else { 1 };
                    }
                    let sum = x + y + carried;
                    warp.regs[*d as usize][lane] = sum as u64 & mask(*bits);
                    if *gives {
                        warp.regs[*carry as usize][lane] = (sum >> bits) as u64 & 1;
                    }
                }
            }
            Op::ToGeneric { d, a, space } => {
                let a = warp.read(*a);
                for lane in lanes(active) {
                    warp.regs[*d as usize][lane] = to_generic(*space, a[lane]);
                }
            }
            Op::FromGeneric { d, a, space } => {
                let a = warp.read(*a);
                for lane in lanes(active) {
                    let (found, address) = from_generic(a[lane]);
                    let fits = found == *space
                        || matches!(
                            (found, *space),
                            (Space::Global, Space::Const) | (Space::Shared, Space::SharedCluster)
                        );
                    if !fits {
                        let message = format!("an address of {found} memory turned into one of {space} memory");
                        return trouble_at(FaultKind::OutOfBounds, 1 << lane, found, address, message);
                    }
                    warp.regs[*d as usize][lane] = address;
                }
            }
            Op::IsSpace { d, a, space } => {
                let a = warp.read(*a);
                for lane in lanes(active) {
                    warp.regs[*d as usize][lane] = u64::from(from_generic(a[lane]).0 == *space);
                }
            }
            Op::MapBlock { d, a, rank, generic } => {
                let (a, rank) = (warp.read(*a), warp.read(*rank));
                for lane in lanes(active) {
                    if self.peer(warp.slot, rank[lane] as u32).is_none() {
                        let message = format!("rank {} of a smaller cluster", rank[lane]);
                        return trouble(FaultKind::OutOfBounds, 1 << lane, message);
                    }
                    let offset = a[lane] & 0xff_ffff;
                    let window = if *generic { SHARED_WINDOW } else { 0 };
                    warp.regs[*d as usize][lane] = window | (rank[lane] + 1) << 24 | offset;
                }
            }
            Op::BlockRank { d, a } => {
                let a = warp.read(*a);
                let own = u64::from(self.blocks[warp.slot].rank);
                for lane in lanes(active) {
                    let rank = a[lane] >> 24 & 0xff;
                    warp.regs[*d as usize][lane] = if rank == 0 { own } else { rank - 1 };
                }
            }
            Op::Call { target, give, .. } => {
                copy_local(warp, active, give.iter().copied());
                return Ok(Outcome::Call(*target));
            }
            Op::Return => return Ok(Outcome::Return),
            Op::Exit => return Ok(Outcome::Exit),
            Op::Trap => return trouble(FaultKind::Trap, active, "the kernel trapped"),
            Op::Fence { .. }
            | Op::FenceAsync { .. }
            | Op::FenceBarrierInit
            | Op::Shuffle { .. }
            | Op::Vote { .. }
            | Op::Match { .. }
            | Op::Reduce { .. }
            | Op::ActiveMask { .. }
            | Op::Elect { .. }
            | Op::WarpSync { .. }
            | Op::Barrier { .. }
            | Op::BarrierReduce { .. }
            | Op::ClusterArrive { .. }
            | Op::ClusterWait => return self.synchronise(warp, &inst.op, active, group),
            Op::BarrierInit { .. }
            | Op::BarrierInvalidate { .. }
            | Op::BarrierArrive { .. }
            | Op::BarrierExpect { .. }
            | Op::BarrierComplete { .. }
            | Op::BarrierTest { .. }
            | Op::BarrierPending { .. } => return self.mbarrier(warp, &inst.op, active),
            Op::CopyAsync { .. } | Op::CopyCommit | Op::CopyWait { .. } | Op::CopyArrive { .. } => {
                self.copy(warp, &inst.op, active)?;
            }
            Op::BulkCopy { .. }
            | Op::TensorLoad { .. }
            | Op::TensorStore { .. }
            | Op::BulkCommit
            | Op::BulkWait { .. } => return self.bulk(warp, &inst.op, active),
            Op::LoadMatrix { .. } | Op::StoreMatrix { .. } | Op::Mma { .. } => {
                return self.matrix(warp, &inst.op, active);
            }
            Op::WgmmaFence | Op::WgmmaCommit | Op::WgmmaWait { .. } | Op::Wgmma { .. } | Op::SetMaxRegisters { .. } => {
                return self.warpgroup(warp, inst, active);
            }
        }
        Ok(Outcome::Next)
    }

    fn compare(&mut self, warp: &mut Warp, op: &Op, active: u32) {
        match op {
            Op::Compare { comparison, p, q, a, b, with } => {
                let (a, b) = (warp.read(*a), warp.read(*b));
                let third = with.map(|(operation, c, negate)| (operation, warp.read(c), u64::from(negate)));
                for lane in lanes(active) {
                    let holds = comparison.holds(a[lane], b[lane]);
                    let join = |x: bool| match &third {
                        None => x,
                        Some((operation, c, negate)) => {
                            let c = (c[lane] ^ negate) & 1 == 1;
                            match operation {
                                Bool::And => x && c,
                                Bool::Or => x || c,
                                Bool::Xor => x != c,
                            }
                        }
                    };
                    if let Some(p) = p {
                        warp.regs[*p as usize][lane] = u64::from(join(holds));
                    }
                    if let Some(q) = q {
                        warp.regs[*q as usize][lane] = u64::from(join(!holds));
                    }
                }
            }
            Op::SetTo { comparison, d, a, b, ones } => {
                let (a, b) = (warp.read(*a), warp.read(*b));
                for lane in lanes(active) {
                    let holds = comparison.holds(a[lane], b[lane]);
                    warp.regs[*d as usize][lane] = if holds { *ones } else { 0 };
                }
            }
            Op::Select { d, a, b, p } => {
                let (a, b, p) = (warp.read(*a), warp.read(*b), warp.read(*p));
                for lane in lanes(active) {
                    warp.regs[*d as usize][lane] = if p[lane] & 1 == 1 { a[lane] } else { b[lane] };
                }
            }
            _ => {}
        }
    }

    fn special(&mut self, warp: &mut Warp, d: u32, which: Special, active: u32) {
        let block = &self.blocks[warp.slot];
        let cluster = &self.clusters[block.cluster];
        let launch = self.launch;
        let size = launch.cluster.iter().product::<u32>();
        for lane in lanes(active) {
            let l = lane as u32;
            let value = match which {
                Special::Tid(axis) => {
                    let thread = warp.number * 32 + l;
                    let [x, y, _] = launch.block;
                    [thread % x, thread / x % y, thread / x / y][axis]
                }
                Special::Ntid(axis) => launch.block[axis],
                Special::Ctaid(axis) => block.id[axis],
                Special::Nctaid(axis) => launch.grid[axis],
                Special::Clusterid(axis) => cluster.at[axis],
                Special::Nclusterid(axis) => launch.grid[axis] / launch.cluster[axis],
                Special::ClusterCtaid(axis) => block.id[axis] % launch.cluster[axis],
                Special::ClusterNctaid(axis) => launch.cluster[axis],
                Special::ClusterRank => block.rank,
                Special::ClusterSize => size,
                Special::Lane => l,
                Special::Warp => warp.number,
                Special::Warps => block.warps.len() as u32,
                Special::Multiprocessor => (cluster.index * size + block.rank) % self.options.multiprocessors.max(1),
                Special::Multiprocessors => self.options.multiprocessors,
                Special::Grid => 0,
                Special::Clock => self.steps as u32,
                Special::LanesEq => 1 << l,
                Special::LanesLt => (1 << l) - 1,
                Special::LanesLe => (((1u64 << l) << 1) - 1) as u32,
                Special::LanesGt => !((((1u64 << l) << 1) - 1) as u32),
                Special::LanesGe => !((1 << l) - 1),
                Special::DynamicShared => launch.dynamic_shared,
                Special::TotalShared => self.shared_bytes,
                Special::ExplicitCluster => u32::from(size > 1 || self.program.bounds.explicit_cluster),
            };
            warp.regs[d as usize][lane] = u64::from(value);
        }
    }
}
