//! The vocabulary every hadal crate shares: number formats, symbolic sizes and tensor types.
//!
//! Nothing here knows about graphs, kernels or files. The runtime depends on this crate alone (through the
//! artefact format), so it stays small and free of compiler dependencies.

mod definition;
mod dim;
mod dtype;
pub mod minifloat;
mod ty;

pub use definition::{Definition, Definitions, Misdefined};
pub use dim::{Bindings, Dim, Sym};
pub use dtype::DType;
pub use ty::TensorType;
