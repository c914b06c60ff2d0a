//! Executes PTX on a model of a GPU, for targets from `sm_80` to `sm_90a`, and finds what a GPU would hide: races,
//! missing fences, memory and registers that nothing wrote, addresses that are off, waits that never end.
//!
//! ```
//! use ptx_emulator::{Launch, Memory, Module, Options, run};
//!
//! let text = "
//!     .version 8.4
//!     .target sm_90a
//!     .address_size 64
//!     .visible .entry double(.param .u64 data) {
//!         .reg .b32 %r<3>;
//!         .reg .b64 %rd<4>;
//!         ld.param.u64 %rd1, [data];
//!         mov.u32 %r1, %tid.x;
//!         mul.wide.u32 %rd2, %r1, 4;
//!         add.s64 %rd3, %rd1, %rd2;
//!         ld.global.u32 %r2, [%rd3];
//!         add.s32 %r2, %r2, %r2;
//!         st.global.u32 [%rd3], %r2;
//!         ret;
//!     }";
//! let module = Module::parse(text)?;
//! let mut memory = Memory::new();
//! let data = memory.upload(&21u32.to_le_bytes());
//! let kernel = module.kernel("double").ok_or("no such kernel")?;
//! let report = run(kernel, &Launch::new(1, 1).arg(data), &mut memory, &Options::default())?;
//! assert_eq!(memory.read_u32(data, 1), Some(vec![42]));
//! assert_eq!(report.global_read, 4);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The crate knows PTX and nothing else: it shares no code with any compiler, so that an error of one cannot hide in
//! the other.

mod alu;
mod decode;
mod error;
mod fault;
mod float;
mod launch;
mod lex;
mod machine;
mod matrix;
mod memory;
mod module;
mod parse;
mod program;
mod report;
mod syntax;
mod tensor_map;
mod types;

pub use error::{Error, ErrorKind};
pub use fault::{Fault, FaultKind, Other, Place};
pub use float::{bf16_to_f32, e4m3_to_f32, e5m2_to_f32, f16_to_f32, f32_to_bf16, f32_to_e4m3, f32_to_e5m2, f32_to_f16};
pub use launch::{Launch, Options, Param};
pub use machine::run;
pub use memory::Memory;
pub use module::{Kernel, Module};
pub use report::{FlopKind, Report};
pub use tensor_map::{Element, Swizzle, TENSOR_MAP_BYTES, TensorMap};
pub use types::{Space, Type};
