//! Kernels that this process's threads do not run: those for GPUs.

use hadal_artifact::{Access, Kernel, Target};

/// What runs kernels of another machine than this processor.
///
/// Memory of a session stays in this process: a launch is given addresses here, and brings data there and back itself.
pub trait Device: Send + Sync {
    /// Whether it runs code for a target.
    fn runs(&self, target: &Target) -> bool;

    /// Runs a kernel over its whole grid. `code` is its own, `symbols` are in the kernel's order.
    ///
    /// # Safety
    ///
    /// The bytes of every argument are there for the time of the call, and those that the kernel writes are written by
    /// nobody else meanwhile. Arguments may overlap.
    unsafe fn launch(
        &self,
        kernel: &Kernel,
        code: &[u8],
        arguments: &[Argument],
        symbols: &[i64],
    ) -> Result<(), String>;
}

/// A buffer that a kernel works on.
#[derive(Clone, Copy, Debug)]
pub struct Argument {
    /// Its first byte.
    pub start: *mut u8,
    /// Bytes.
    pub bytes: usize,
    /// What the kernel does to it.
    pub access: Access,
}
