//! Kernel IR to code by LLVM: position-independent code for wide vectors (AVX2, AVX-512 with its dot products, NEON), and
//! PTX for GPUs.
//!
//! A kernel becomes the text of a module (`emit`, `ops`, `memory`, `convert`, and `warp` and `teams` for what is different on GPUs),
//! LLVM makes an object or PTX of it (`machine`), and `object` takes code and constants out of an object. The pages to
//! read first are `docs/src/design/cpu-code.md` and `docs/src/design/gpu-code.md`.
//!
//! Results have the bits that the interpreter gives for the expanded kernel, as Cranelift's have: nothing is contracted
//! or reassociated. What LLVM reports becomes an [`Error`]. Each compilation has a context of its own, so any number of
//! threads may compile; the same kernel gives the same bytes.

mod barriers;
mod convert;
mod emit;
mod machine;
mod memory;
mod multiples;
mod object;
mod ops;
mod teams;
mod types;
mod warp;
mod warp_memory;

use crate::Error;
use crate::math::{Kept, expand_but};
use crate::processor::{CompiledKernel, Processor};
use hadal_ir::kernel::{Kernel, verify};
use hadal_types::DType;

/// What is asked of the code generator.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Options {
    /// Whether assembler text is wanted.
    pub disassembly: bool,
}

/// Makes code for a kernel.
pub fn compile(kernel: &Kernel, target: &Processor, options: Options) -> Result<CompiledKernel, Error> {
    let failed = |message: String| Error::Backend { kernel: kernel.name.clone(), message };
    let text = module(kernel, target)?;
    if target.is_gpu() {
        let ptx = machine::ptx(&text, target).map_err(failed)?;
        let disassembly = options.disassembly.then(|| ptx.clone());
        return Ok(CompiledKernel { disassembly, ..CompiledKernel::of(kernel, target, ptx.into_bytes())? });
    }
    let made = machine::compile(&text, target, options.disassembly).map_err(failed)?;
    let code = object::code(&made.object).map_err(|e| match e {
        object::Fault::Foreign(target) => Error::Relocation { kernel: kernel.name.clone(), target },
        object::Fault::Broken(message) => failed(message),
    })?;
    Ok(CompiledKernel { disassembly: made.assembly, ..CompiledKernel::of(kernel, target, code)? })
}

/// The library and its version, which a shared one can change without this program being built again.
pub fn version() -> String {
    let (major, minor, patch) = inkwell::support::get_llvm_version();
    format!("llvm {major}.{minor}.{patch}")
}

/// The text of LLVM's own representation, before or after its passes.
pub fn llvm_ir_text(kernel: &Kernel, target: &Processor, optimised: bool) -> Result<String, Error> {
    let text = module(kernel, target)?;
    if !optimised {
        return Ok(text);
    }
    machine::optimised(&text, target).map_err(|message| Error::Backend { kernel: kernel.name.clone(), message })
}

fn module(kernel: &Kernel, target: &Processor) -> Result<String, Error> {
    let mistakes = verify::verify(kernel);
    if !mistakes.is_empty() {
        return Err(Error::Malformed(mistakes));
    }
    if target.is_gpu() {
        return warp::emit(&expand_but(kernel, Kept { exp2: true, ..Kept::default() }), target);
    }
    crate::without_warps(kernel)?;
    let kept: &[DType] = match (target.has("avx512bf16"), target.has("avx512vnni")) {
        (true, true) => &[DType::BF16, DType::I8],
        (true, false) => &[DType::BF16],
        (false, true) => &[DType::I8],
        (false, false) => &[],
    };
    emit::emit(&expand_but(kernel, Kept { dots: kept, ..Kept::default() }), target)
}
