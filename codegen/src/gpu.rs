//! What a kernel needs of a GPU.
//!
//! Its code is a module of PTX with one entry, [`ENTRY`], which takes three addresses of global memory: those of the
//! buffers' addresses, of the symbols' values (i64), and of scratch memory, of which every warp of the launch has a
//! piece. Any number of blocks computes the whole grid.

use crate::processor::Processor;
use hadal_ir::kernel::Kernel;
use hadal_types::Dim;

/// The name of every kernel's entry.
pub const ENTRY: &str = "kernel";

/// What a block of a launch has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Block {
    /// Warps, each of which computes one grid index after the other.
    pub warps: u32,
    /// Bytes of shared memory of one warp; a launch asks for them as many times as there are warps.
    pub shared_bytes: u32,
}

/// Warps of a block where nothing speaks against it.
const WARPS: u32 = 8;

/// Blocks that a multiprocessor has room for at least: registers and shared memory are shared out so. Tiles of sums need
/// more registers than half of them.
pub(crate) fn resident(kernel: &Kernel) -> u32 {
    if kernel.is_for_warps() { 1 } else { 2 }
}

impl Block {
    /// Threads.
    pub fn threads(self) -> u32 {
        self.warps * 32
    }
}

/// A kernel's blocks, and bytes of global memory for each of their warps. Allocations of fixed size are in shared memory
/// if a warp's fit, in blocks as large as there is room for.
pub fn memory(kernel: &Kernel, target: &Processor) -> (Block, Dim) {
    let mut fixed = 0u64;
    let mut scratch = Dim::default();
    for bytes in kernel.allocs.iter().map(|a| a.bytes().unwrap_or_default()) {
        match bytes.as_const() {
            Some(n) => fixed = fixed.saturating_add(n.max(0) as u64),
            None => scratch = scratch + bytes,
        }
    }
    let room = u64::from(target.shared_bytes() / resident(kernel));
    match fixed {
        n if n > room => {
            let all = scratch + i64::try_from(n).unwrap_or(i64::MAX);
            (Block { warps: WARPS, shared_bytes: 0 }, all)
        }
        n => {
            let warps = (room / n.max(1)).min(u64::from(WARPS)) as u32;
            (Block { warps, shared_bytes: n as u32 }, scratch)
        }
    }
}
