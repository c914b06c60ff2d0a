//! What a kernel needs of a GPU.
//!
//! Its code is a module of PTX with one entry, [`ENTRY`], which takes three addresses of global memory: those of the
//! buffers' addresses, of the symbols' values (i64), and of scratch memory, of which every grid index that is computed at
//! a time has a piece. Any number of blocks computes the whole grid.

use crate::Error;
use crate::processor::Processor;
use hadal_ir::kernel::{self, Access, Buf, Const, Kernel, LoopKind, Op, Place, Space, Stmt, Swizzle};
use hadal_types::Dim;
use std::collections::{BTreeSet, HashMap};

/// The name of every kernel's entry.
pub const ENTRY: &str = "kernel";

/// What a block of a launch has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Block {
    /// Warps.
    pub warps: u32,
    /// Grid indices that a block computes at a time: one for each warp, or one that all of them share.
    pub indices: u32,
    /// Bytes of shared memory of a grid index; a launch asks for them as many times as there are indices in a block.
    pub shared_bytes: u32,
}

/// Warps of a block where nothing speaks against it.
const WARPS: u32 = 8;

/// Most warps of a block.
const MAX_WARPS: u32 = 32;

/// Blocks that share the memory of a multiprocessor: teams and tiles have larger ones. Registers are as many as the
/// assembler wants; what it is held to it spills rather than asking for less at a time.
fn resident(kernel: &Kernel) -> u32 {
    let mut teams = false;
    visit(&kernel.body, 0, &mut |stmt, _| teams |= matches!(stmt, Stmt::For(l) if l.kind == LoopKind::Warp));
    if teams || kernel.is_for_warps() { 1 } else { 2 }
}

impl Block {
    /// Threads.
    pub fn threads(self) -> u32 {
        self.warps * 32
    }
}

/// The warps that share a grid index, where a kernel has loops over them: as many as each loop has iterations.
pub(crate) fn team(kernel: &Kernel) -> Result<Option<u32>, Error> {
    let mut constants = HashMap::new();
    let (mut teams, mut other) = (BTreeSet::new(), false);
    visit(&kernel.body, 0, &mut |stmt, _| match stmt {
        Stmt::Let(value, Op::Const(Const::I64(x))) => {
            constants.insert(*value, *x);
        }
        Stmt::For(l) if l.kind == LoopKind::Warp => {
            let bounds = [l.lo, l.hi].map(|v| constants.get(&v).copied());
            match bounds {
                [Some(0), Some(n)] if l.step == 1 && (1..=i64::from(MAX_WARPS)).contains(&n) => {
                    teams.insert(n as u32);
                }
                _ => other = true,
            }
        }
        _ => {}
    });
    let refused = |what| Err(Error::Unsupported { kernel: kernel.name.clone(), what });
    // What all warps do at once: reading what none of them writes.
    let mut alone = true;
    let written = |place: &Place| match place.buf {
        Buf::Param(i) => kernel.params[i as usize].access != Access::Read,
        Buf::Alloc(_) => true,
    };
    visit(&kernel.body, 0, &mut |stmt, depth| {
        alone &= depth > 0
            || match stmt {
                Stmt::Store { .. } => false,
                Stmt::Let(_, Op::Load { place, .. }) => !written(place),
                _ => true,
            };
    });
    match (teams.len(), other) {
        (0, false) => Ok(None),
        (1, false) if alone => Ok(teams.first().copied()),
        (1, false) => refused("stores, or loads of what is stored, beside loops over warps"),
        _ => refused("loops over warps that differ, or are more than 32"),
    }
}

/// Calls `f` with all statements, in order, and how many loops over warps they stand in.
fn visit(block: &kernel::Block, depth: u32, f: &mut impl FnMut(&Stmt, u32)) {
    for stmt in &block.stmts {
        f(stmt, depth);
        match stmt {
            Stmt::For(l) => visit(&l.body, depth + u32::from(l.kind == LoopKind::Warp), f),
            Stmt::If(c) => [&c.then, &c.otherwise].into_iter().for_each(|b| visit(b, depth, f)),
            _ => {}
        }
    }
}

/// Which allocations each warp of a team has for itself: those inside of loops over warps.
pub(crate) fn private(kernel: &Kernel) -> Vec<bool> {
    let mut out = vec![false; kernel.allocs.len()];
    visit(&kernel.body, 0, &mut |stmt, depth| {
        if let Stmt::Alloc(i) = stmt {
            out[*i as usize] = depth > 0;
        }
    });
    out
}

/// A kernel's blocks, and bytes of global memory for each of their grid indices. Allocations of fixed size are in shared
/// memory if a grid index's fit, in blocks as large as there is room for.
pub fn memory(kernel: &Kernel, target: &Processor) -> Result<(Block, Dim), Error> {
    let team = team(kernel)?;
    let mut fixed = 0u64;
    let mut scratch = Dim::default();
    for (alloc, private) in kernel.allocs.iter().zip(private(kernel)) {
        let times = if private { team.unwrap_or(1) } else { 1 };
        let bytes = alloc.bytes().unwrap_or_default();
        match bytes.as_const() {
            Some(n) => fixed = fixed.saturating_add((n.max(0) as u64).saturating_mul(times.into())),
            None => scratch = scratch + bytes * i64::from(times),
        }
    }
    let room = u64::from(target.shared_bytes() / resident(kernel));
    let in_shared = |a: &kernel::Alloc| matches!(a.space, Space::Barrier(_)) || a.swizzle != Swizzle::None;
    if fixed > room && kernel.allocs.iter().any(in_shared) {
        let what = "barriers and tiles of products for which shared memory does not suffice";
        return Err(Error::Unsupported { kernel: kernel.name.clone(), what });
    }
    let (shared, scratch) = match fixed {
        n if n > room => (0, scratch + i64::try_from(n).unwrap_or(i64::MAX)),
        n => (n as u32, scratch),
    };
    let most = (room / u64::from(shared.max(1))).min(WARPS.into()) as u32;
    let (warps, indices) = team.map_or((most, most), |team| (team, 1));
    Ok((Block { warps, indices, shared_bytes: shared }, scratch))
}
