//! Transcendental functions as polynomials of basic operations (being written).
use hadal_ir::kernel::Kernel;
/// Replaces exp, log, sin, cos and tanh by basic operations.
pub fn expand(kernel: &Kernel) -> Kernel {
    kernel.clone()
}
