//! What a launch is given.

use crate::tensor_map::TensorMap;

/// The machine that is modelled, and what is checked on it.
#[derive(Clone, Debug)]
pub struct Options {
    /// Chooses the order in which warps run and copies complete.
    pub seed: u64,
    /// Whether accesses that nothing orders are faults, in shared and global memory.
    pub races: bool,
    /// Whether every branch must be taken by all lanes of a warp or none.
    pub uniform_branches: bool,
    /// After so many instructions of warps the run ends with a fault.
    pub max_steps: u64,
    /// How many clusters (blocks, where there are none) are on the machine at a time. Kernels whose blocks wait for
    /// each other need all that do.
    pub resident: u32,
    /// Moves the results of approximate functions by up to the promised error.
    pub perturb: bool,
    /// Adds products of eight-bit floats with so many bits after the point of the largest, as some hardware does.
    pub fp8_accumulation_bits: Option<u32>,
    /// The value of `%nsmid`; `%smid` is below.
    pub multiprocessors: u32,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            seed: 0,
            races: true,
            uniform_branches: false,
            max_steps: 1 << 32,
            resident: 1,
            perturb: false,
            fp8_accumulation_bits: None,
            multiprocessors: 132,
        }
    }
}

/// A parameter of a kernel, as bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param(pub(crate) Vec<u8>);

macro_rules! from {
    ($($t:ty)*) => { $(impl From<$t> for Param {
        fn from(value: $t) -> Param { Param(value.to_le_bytes().to_vec()) }
    })* };
}
from!(u8 i8 u16 i16 u32 i32 u64 i64 f32 f64);

impl From<&TensorMap> for Param {
    fn from(map: &TensorMap) -> Param {
        Param(map.encode().to_vec())
    }
}

impl From<Vec<u8>> for Param {
    fn from(bytes: Vec<u8>) -> Param {
        Param(bytes)
    }
}

/// A launch of a kernel.
#[derive(Clone, Debug)]
pub struct Launch {
    /// Blocks in each direction.
    pub grid: [u32; 3],
    /// Blocks of a cluster in each direction.
    pub cluster: [u32; 3],
    /// Threads of a block in each direction.
    pub block: [u32; 3],
    /// Bytes of shared memory beyond those that the kernel declares.
    pub dynamic_shared: u32,
    /// The parameters in order.
    pub params: Vec<Param>,
}

impl Launch {
    /// Blocks of threads in one direction, without clusters.
    pub fn new(blocks: u32, threads: u32) -> Launch {
        Launch { grid: [blocks, 1, 1], cluster: [1; 3], block: [threads, 1, 1], dynamic_shared: 0, params: Vec::new() }
    }

    /// The launch with one more parameter.
    pub fn arg(mut self, param: impl Into<Param>) -> Launch {
        self.params.push(param.into());
        self
    }
}

/// xorshift64*: for choices that only need to be various and repeatable.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        // A seed of zero would stay zero, and near seeds should differ at once.
        let mut mixed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        Random((mixed ^ mixed >> 31) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Less than `limit`, which is not zero.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (((self.next() >> 32) * limit as u64) >> 32) as usize
    }

    /// From -1 to 1.
    pub(crate) fn share(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}
