//! hadal's intermediate representations: the tensor graph and the kernel IR, each with a text form, a verifier and
//! an interpreter that later stages are checked against. Knows no compiler back end and no device.

pub mod attr;
pub mod builder;
pub mod fusion;
pub mod interpret;
pub mod kernel;
pub mod layout_fold;
pub mod module;
pub mod ops;
pub mod panels;
pub mod plan;
pub mod storage;
pub mod target;
pub mod tensor;
pub mod text;
pub mod verify;

pub use builder::Builder;
pub use hadal_types::{Bindings, DType, Definition, Definitions, Dim, Sym, TensorType};
pub use module::{Call, Entry, Func, FuncKind, Inst, InstKind, Module, Range, ValueId};
pub use ops::Op;
pub use tensor::Tensor;
