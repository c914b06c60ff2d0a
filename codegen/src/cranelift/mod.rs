//! Kernel IR to position-independent x86-64 code by Cranelift.
//!
//! Registers are 128 bits wide; wider vectors are several of them, narrower ones the low lanes of one. Code calls
//! nothing and refers to nothing outside itself, so kernels are packed into one blob by concatenation.
//!
//! What makes it fast, all measured (see the tests in `codegen/tests/`): loads from `read` parameters are marked
//! movable where no branch guards them, so that arithmetic does not queue behind all loads of an unrolled tile and
//! spill; index arithmetic is kept as affine forms, so that constant distances become displacements and what does
//! not depend on the innermost loop is computed outside; loops test at the top, so that
//! what a body computes has one use.
//!
//! A `read` parameter must not overlap memory that the same launch writes. Scratch memory is aligned to 64 bytes.

mod convert;
pub mod jit;
mod lanes;
mod lower;
mod memory;

use crate::Error;
use cranelift_codegen::isa::{self, OwnedTargetIsa};
use cranelift_codegen::settings::{self, Configurable};
use hadal_ir::kernel::{Kernel, verify};

pub use crate::processor::{CompiledKernel, Packed, Processor, pack};

/// Makes code for a kernel.
pub fn compile(kernel: &Kernel, target: &Processor) -> Result<CompiledKernel, Error> {
    compile_with(kernel, target, false)
}

/// As [`compile`], with assembler text.
pub fn compile_with(kernel: &Kernel, target: &Processor, disassembly: bool) -> Result<CompiledKernel, Error> {
    let isa = isa_for(kernel, target)?;
    let mut context = lowered(kernel, &isa)?;
    context.set_disasm(disassembly);
    let backend = |message: String| Error::Backend { kernel: kernel.name.clone(), message };
    let code = context
        .compile(&*isa, &mut Default::default())
        .map_err(|e| backend(format!("{}: {}", e.inner, context_text(&e.func.to_string()))))?;
    if let Some(reloc) = code.buffer.relocs().first() {
        return Err(Error::Relocation { kernel: kernel.name.clone(), target: format!("{:?}", reloc.target) });
    }
    let made = CompiledKernel::of(kernel, target, code.code_buffer().to_vec())?;
    Ok(CompiledKernel { disassembly: code.vcode.clone(), ..made })
}

/// The text of Cranelift's own representation, before optimisation.
pub fn clif_text(kernel: &Kernel, target: &Processor) -> Result<String, Error> {
    Ok(lowered(kernel, &isa_for(kernel, target)?)?.func.display().to_string())
}

/// The beginning of a function's text, enough to recognise it in a message.
fn context_text(text: &str) -> String {
    text.lines().take(3).collect::<Vec<_>>().join(" ")
}

fn lowered(kernel: &Kernel, isa: &OwnedTargetIsa) -> Result<cranelift_codegen::Context, Error> {
    let mistakes = verify::verify(kernel);
    if !mistakes.is_empty() {
        return Err(Error::Malformed(mistakes));
    }
    crate::without_warps(kernel)?;
    lower::lower(&crate::math::expand(kernel), isa)
}

fn isa_for(kernel: &Kernel, target: &Processor) -> Result<OwnedTargetIsa, Error> {
    let backend = |message: String| Error::Backend { kernel: kernel.name.clone(), message };
    let mut flags = settings::builder();
    for (name, value) in [
        ("opt_level", "speed"),
        ("is_pic", "true"),
        ("unwind_info", "false"),
        ("enable_probestack", "false"),
        ("enable_verifier", if cfg!(debug_assertions) { "true" } else { "false" }),
    ] {
        flags.set(name, value).map_err(|e| backend(e.to_string()))?;
    }
    let mut builder = isa::lookup_by_name(target.arch).map_err(|e| backend(e.to_string()))?;
    // Cranelift makes no use of conversions of halves, and has no name for them.
    for feature in target.features.iter().filter(|f| **f != "f16c") {
        let name = format!("has_{}", feature.replace('.', ""));
        builder.set(&name, "true").map_err(|e| backend(format!("{name}: {e}")))?;
    }
    builder.finish(settings::Flags::new(flags)).map_err(|e| backend(e.to_string()))
}
