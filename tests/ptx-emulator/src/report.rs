//! What a launch did, counted.

use std::collections::BTreeMap;

/// Kinds of arithmetic, by the unit that does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FlopKind {
    /// f32 outside of tensor cores.
    F32,
    /// f64 outside of tensor cores.
    F64,
    /// f16 and bf16 outside of tensor cores.
    Half,
    /// `dp4a` and `dp2a`.
    IntegerDot,
    /// f16 and bf16 products of tensor cores.
    TensorHalf,
    /// tf32 products of tensor cores.
    TensorTf32,
    /// Products of eight-bit floats of tensor cores.
    TensorFp8,
    /// Products of bytes of tensor cores.
    TensorInt8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flops {
    pub kind: FlopKind,
    /// For each lane.
    pub each: u32,
}

/// The counts of a launch. A fused product counts as two operations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Instructions of warps, by opcode as written.
    pub instructions: BTreeMap<String, u64>,
    /// Instructions of warps.
    pub warp_instructions: u64,
    /// Instructions times active lanes.
    pub lane_instructions: u64,
    /// Arithmetic by kind.
    pub flops: BTreeMap<FlopKind, u64>,
    /// Bytes of global memory that lanes and copies asked for.
    pub global_read: u64,
    /// Bytes of global memory that lanes and copies wrote.
    pub global_written: u64,
    /// Sectors of 32 bytes that reads touched, each counted once for a warp's instruction or a copy's row.
    pub global_read_sectors: u64,
    /// Sectors of 32 bytes that writes touched.
    pub global_written_sectors: u64,
    /// Bytes of shared memory that lanes and copies read.
    pub shared_read: u64,
    /// Bytes of shared memory that lanes and copies wrote.
    pub shared_written: u64,
    /// Passes over the banks of shared memory beyond the least that each access takes.
    pub bank_conflicts: u64,
    /// Bank conflicts by line of the text.
    pub bank_conflicts_by_line: BTreeMap<u32, u64>,
    /// Blocks that ran.
    pub blocks: u64,
    /// Shared memory of a block, static and dynamic.
    pub shared_bytes: u32,
}
