//! Kernel IR to machine code. Knows no graph op and no device; the artifact crate says what comes out.

pub mod cpu;
pub mod cranelift;
pub mod kernels;
#[cfg(feature = "llvm-backend")]
pub mod llvm;
pub mod math;

use hadal_ir::kernel::verify::VerifyError;

/// Why a kernel could not be compiled.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel is not well formed.
    #[error("{} mistakes, the first: {}", .0.len(), .0[0])]
    Malformed(Vec<VerifyError>),
    /// This code generator has no code for something.
    #[error("kernel @{kernel}: no CPU code for {what}")]
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
