//! Processors to make code for, and what both CPU code generators give.
//!
//! A level is a set of features that came together in processors; a compiled file may hold code for several, and the
//! best one that the processor has is taken when it starts.

use hadal_artifact::has_feature;
use hadal_types::Dim;

/// A processor to make code for: an architecture and the features that the code may use.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CpuTarget {
    /// What the level is called.
    pub name: &'static str,
    /// As Rust spells it.
    pub arch: &'static str,
    /// As Rust spells them.
    pub features: &'static [&'static str],
}

impl CpuTarget {
    /// Any x86-64 processor since 2013 (Haswell) or 2015 (Excavator): 256-bit vectors.
    pub const X86_64_V3: CpuTarget = CpuTarget {
        name: "x86-64-v3",
        arch: "x86_64",
        features: &[
            "sse3", "ssse3", "sse4.1", "sse4.2", "popcnt", "avx", "avx2", "fma", "f16c", "bmi1", "bmi2", "lzcnt",
        ],
    };

    /// 512-bit vectors: servers since 2017 (Skylake-X), AMD since 2022 (Zen 4).
    pub const X86_64_V4: CpuTarget = CpuTarget {
        name: "x86-64-v4",
        arch: "x86_64",
        features: &[
            "sse3", "ssse3", "sse4.1", "sse4.2", "popcnt", "avx", "avx2", "fma", "f16c", "bmi1", "bmi2", "lzcnt",
            "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl",
        ],
    };

    /// With dot products of bf16 and of bytes, and permutations of bytes: Sapphire Rapids (2023) and Zen 4 (2022).
    pub const X86_64_V4_DOT: CpuTarget = CpuTarget {
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
    pub const AARCH64_NEON: CpuTarget = CpuTarget { name: "aarch64-neon", arch: "aarch64", features: &["neon"] };

    /// Every level, the better ones of an architecture last.
    pub const LEVELS: [CpuTarget; 4] = [Self::X86_64_V3, Self::X86_64_V4, Self::X86_64_V4_DOT, Self::AARCH64_NEON];

    /// Whether code for this level may use a feature.
    pub fn has(&self, feature: &str) -> bool {
        self.features.contains(&feature)
    }

    /// Bits of the widest vector registers.
    pub fn vector_bits(&self) -> u32 {
        match self.arch {
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

/// One kernel's code.
#[derive(Clone, Debug)]
pub struct CompiledKernel {
    /// The kernel's name.
    pub name: String,
    /// Machine code, entry at the start; runs anywhere aligned to 64 bytes.
    pub code: Vec<u8>,
    /// Scratch bytes a worker needs, an affine form of the symbols.
    pub scratch_bytes: Dim,
    /// Assembler text, where it was asked for.
    pub disassembly: Option<String>,
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
        for pair in CpuTarget::LEVELS.windows(2).filter(|p| p[0].arch == p[1].arch) {
            assert!(pair[0].features.iter().all(|f| pair[1].has(f)), "{} within {}", pair[0].name, pair[1].name);
            assert!(pair[0].is_here() || !pair[1].is_here());
        }
    }
}
