//! Processors to make code for, and what both CPU code generators give.
//!
//! A level is a set of features that came together in processors; a compiled file may hold code for several, and the
//! best one that the processor has is taken when it starts.

use crate::gpu::{self, Block};
use hadal_artifact::has_feature;
use hadal_ir::kernel::Kernel;
use hadal_types::Dim;

/// A processor to make code for: an architecture and the features that the code may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Processor {
    /// What the level is called.
    pub name: &'static str,
    /// As Rust spells it.
    pub arch: &'static str,
    /// As Rust spells them.
    pub features: &'static [&'static str],
}

impl Processor {
    /// Any x86-64 processor since 2013 (Haswell) or 2015 (Excavator): 256-bit vectors.
    pub const X86_64_V3: Processor = Processor {
        name: "x86-64-v3",
        arch: "x86_64",
        features: &[
            "sse3", "ssse3", "sse4.1", "sse4.2", "popcnt", "avx", "avx2", "fma", "f16c", "bmi1", "bmi2", "lzcnt",
        ],
    };

    /// 512-bit vectors: servers since 2017 (Skylake-X), AMD since 2022 (Zen 4).
    pub const X86_64_V4: Processor = Processor {
        name: "x86-64-v4",
        arch: "x86_64",
        features: &[
            "sse3", "ssse3", "sse4.1", "sse4.2", "popcnt", "avx", "avx2", "fma", "f16c", "bmi1", "bmi2", "lzcnt",
            "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl",
        ],
    };

    /// With dot products of bf16 and of bytes, and permutations of bytes: Sapphire Rapids (2023) and Zen 4 (2022).
    pub const X86_64_V4_DOT: Processor = Processor {
        name: "x86-64-v4-dot",
        arch: "x86_64",
        features: &[
            "sse3",
            "ssse3",
            "sse4.1",
            "sse4.2",
            "popcnt",
            "avx",
            "avx2",
            "fma",
            "f16c",
            "bmi1",
            "bmi2",
            "lzcnt",
            "avx512f",
            "avx512bw",
            "avx512cd",
            "avx512dq",
            "avx512vl",
            "avx512vnni",
            "avx512bf16",
            "avx512vbmi",
        ],
    };

    /// Any 64-bit ARM processor: 128-bit vectors.
    pub const AARCH64_NEON: Processor = Processor { name: "aarch64-neon", arch: "aarch64", features: &["neon"] };

    /// Every level of processors, the better ones of an architecture last.
    pub const LEVELS: [Processor; 4] = [Self::X86_64_V3, Self::X86_64_V4, Self::X86_64_V4_DOT, Self::AARCH64_NEON];

    /// A100. Of a GPU the features are the architecture and the version of PTX, as LLVM spells them; the oldest driver
    /// that takes this version is the oldest that code runs with.
    pub const SM_80: Processor = Processor { name: "sm_80", arch: GPU, features: &["sm_80", "ptx78"] };
    /// L4, L40 and RTX 4000, with instructions for FP8.
    pub const SM_89: Processor = Processor { name: "sm_89", arch: GPU, features: &["sm_89", "ptx81"] };
    /// H100, H200, H800 and H20, with what only they have.
    pub const SM_90A: Processor = Processor { name: "sm_90a", arch: GPU, features: &["sm_90a", "ptx84"] };

    /// Every GPU, the older ones first.
    pub const GPUS: [Processor; 3] = [Self::SM_80, Self::SM_89, Self::SM_90A];

    /// Whether this is a GPU.
    pub fn is_gpu(&self) -> bool {
        self.arch == GPU
    }

    /// Bytes of shared memory that a block can have; nothing on a processor.
    pub fn shared_bytes(&self) -> u32 {
        match self.name {
            "sm_80" => 163 << 10,
            "sm_89" => 99 << 10,
            "sm_90a" => 227 << 10,
            _ => 0,
        }
    }

    /// Whether code for this level may use a feature.
    pub fn has(&self, feature: &str) -> bool {
        self.features.contains(&feature)
    }

    /// Bits of the widest vector registers; on a GPU, of what all lanes of a warp access at once.
    pub fn vector_bits(&self) -> u32 {
        match self.arch {
            GPU => 4096,
            "x86_64" if self.has("avx512f") => 512,
            "x86_64" if self.has("avx2") => 256,
            _ => 128,
        }
    }

    /// Whether this machine can run code for the level.
    pub fn is_here(&self) -> bool {
        self.arch == std::env::consts::ARCH && self.features.iter().all(|f| has_feature(f))
    }
}

/// The architecture of GPUs, as Rust spells it.
const GPU: &str = "nvptx64";

/// One kernel's code.
#[derive(Clone, Debug)]
pub struct CompiledKernel {
    /// The kernel's name.
    pub name: String,
    /// Machine code, entry at the start; runs anywhere aligned to 64 bytes. For a GPU the text of PTX.
    pub code: Vec<u8>,
    /// Scratch bytes a worker needs, an affine form of the symbols; on a GPU a warp, of global memory.
    pub scratch_bytes: Dim,
    /// How a GPU launches it.
    pub block: Option<Block>,
    /// Assembler text, where it was asked for.
    pub disassembly: Option<String>,
}

impl CompiledKernel {
    /// What is known of a kernel's code without making it.
    pub fn of(kernel: &Kernel, target: &Processor, code: Vec<u8>) -> Result<CompiledKernel, crate::Error> {
        let name = kernel.name.clone();
        let (scratch_bytes, block) = match target.is_gpu() {
            true => {
                let (block, scratch_bytes) = gpu::memory(kernel, target)?;
                (scratch_bytes, Some(block))
            }
            false => (kernel.scratch_bytes().unwrap_or_default(), None),
        };
        Ok(CompiledKernel { name, code, scratch_bytes, block, disassembly: None })
    }
}

/// Kernels one after the other in one blob.
#[derive(Clone, Debug, Default)]
pub struct Packed {
    /// The code.
    pub code: Vec<u8>,
    /// Where each kernel begins, in the order given; multiples of 64.
    pub offsets: Vec<usize>,
}

/// Lays kernels out at 64-byte boundaries. The space between is filled with traps.
pub fn pack<'a>(kernels: impl IntoIterator<Item = &'a CompiledKernel>) -> Packed {
    let mut packed = Packed::default();
    for kernel in kernels {
        packed.code.resize(packed.code.len().next_multiple_of(64), 0xcc);
        packed.offsets.push(packed.code.len());
        packed.code.extend(&kernel.code);
    }
    packed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_grow() {
        for pair in Processor::LEVELS.windows(2).filter(|p| p[0].arch == p[1].arch) {
            assert!(pair[0].features.iter().all(|f| pair[1].has(f)), "{} within {}", pair[0].name, pair[1].name);
            assert!(pair[0].is_here() || !pair[1].is_here());
        }
    }
}
