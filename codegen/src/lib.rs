//! Kernel IR to machine code, and to PTX. Knows no graph op and no device; the artifact crate says what comes out.

pub mod cranelift;
pub mod gpu;
pub mod kernels;
#[cfg(feature = "llvm-backend")]
pub mod llvm;
pub mod math;
pub mod processor;

use hadal_ir::kernel::verify::VerifyError;
use processor::Processor;

/// Why a kernel could not be compiled.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel is not well formed.
    #[error("{} mistakes, the first: {}", .0.len(), .0[0])]
    Malformed(Vec<VerifyError>),
    /// This code generator has no code for something.
    #[error("kernel @{kernel}: no code for {what}")]
    Unsupported {
        /// The kernel.
        kernel: String,
        /// What it asks for.
        what: &'static str,
    },
    /// The code would call or refer to something outside itself.
    #[error("kernel @{kernel}: the code refers to {target} outside itself")]
    Relocation {
        /// The kernel.
        kernel: String,
        /// What it refers to.
        target: String,
    },
    /// The compiler library failed.
    #[error("kernel @{kernel}: {message}")]
    Backend {
        /// The kernel.
        kernel: String,
        /// What it says.
        message: String,
    },
    /// Memory for code could not be had.
    #[error("no executable memory: {0}")]
    Memory(std::io::Error),
}

/// Refuses a kernel that is written for the lanes of a warp, for processors that have none.
fn without_warps(kernel: &hadal_ir::kernel::Kernel) -> Result<(), Error> {
    match kernel.is_for_warps() {
        true => Err(Error::Unsupported { kernel: kernel.name.clone(), what: "tiles and runs of a warp but on GPUs" }),
        false => Ok(()),
    }
}

/// Levels that this build makes code for, the best one of each architecture first: without LLVM only the first of
/// x86-64.
pub fn levels() -> Vec<Processor> {
    let all = Processor::LEVELS.into_iter().rev();
    all.filter(|l| cfg!(feature = "llvm-backend") || *l == Processor::X86_64_V3).collect()
}

/// Code for a kernel by the code generator for the level: Cranelift for the first of x86-64, LLVM for all others.
pub fn compile(
    kernel: &hadal_ir::kernel::Kernel,
    target: &Processor,
    disassembly: bool,
) -> Result<processor::CompiledKernel, Error> {
    #[cfg(feature = "llvm-backend")]
    if by_llvm(target) {
        return llvm::compile(kernel, target, llvm::Options { disassembly });
    }
    if target.is_gpu() {
        return Err(Error::Unsupported { kernel: kernel.name.clone(), what: "GPUs in a build without LLVM" });
    }
    cranelift::compile_with(kernel, target, disassembly)
}

/// Everything that the code for a kernel depends on besides its text: the code generator for the level with its sources
/// and libraries, and the features that it may use. The same text and the same maker give the same code.
pub fn maker(target: &Processor) -> String {
    #[cfg(feature = "llvm-backend")]
    let library = by_llvm(target).then(llvm::version);
    #[cfg(not(feature = "llvm-backend"))]
    let library: Option<String> = None;
    let by = library.as_deref().unwrap_or("cranelift");
    format!("{by} {} {} {}", env!("HADAL_CODEGEN_SOURCES"), target.arch, target.features.join(","))
}

/// Whether LLVM makes the code for a level.
#[cfg(feature = "llvm-backend")]
fn by_llvm(target: &Processor) -> bool {
    *target != Processor::X86_64_V3
}
