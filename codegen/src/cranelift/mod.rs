//! Kernel IR to position-independent x86-64 code by Cranelift.
//!
//! Registers are 128 bits wide; wider vectors are several of them, narrower ones the low lanes of one. Code calls
//! nothing and refers to nothing outside itself, so kernels are packed into one blob by concatenation.
//!
//! What makes it fast, all measured (see the tests in `codegen/tests/`): loads from `read` parameters are marked
//! movable where no branch guards them, so that arithmetic does not queue behind all loads of an unrolled tile and
//! spill; index arithmetic is kept as affine forms, so that constant distances become displacements and what does
//! not depend on the innermost loop is computed outside; loops test at the bottom.
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
use hadal_types::Dim;

/// A processor to make code for: an architecture and the features that the code may use.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CpuTarget {
    /// As Rust spells it.
    pub arch: &'static str,
    /// As Rust spells them.
    pub features: &'static [&'static str],
}

impl CpuTarget {
    /// Any x86-64 processor since 2013 (Haswell) or 2015 (Excavator).
    pub const X86_64_V3: CpuTarget = CpuTarget {
        arch: "x86_64",
        features: &["sse3", "ssse3", "sse4.1", "sse4.2", "popcnt", "avx", "avx2", "fma", "bmi1", "bmi2", "lzcnt"],
    };
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

/// Makes code for a kernel.
pub fn compile(kernel: &Kernel, target: &CpuTarget) -> Result<CompiledKernel, Error> {
    compile_with(kernel, target, false)
}

/// As [`compile`], with assembler text.
pub fn compile_with(kernel: &Kernel, target: &CpuTarget, disassembly: bool) -> Result<CompiledKernel, Error> {
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
    Ok(CompiledKernel {
        name: kernel.name.clone(),
        code: code.code_buffer().to_vec(),
        scratch_bytes: kernel.scratch_bytes().unwrap_or_default(),
        disassembly: code.vcode.clone(),
    })
}

/// The text of Cranelift's own representation, before optimisation.
pub fn clif_text(kernel: &Kernel, target: &CpuTarget) -> Result<String, Error> {
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
    lower::lower(&crate::math::expand(kernel), isa)
}

fn isa_for(kernel: &Kernel, target: &CpuTarget) -> Result<OwnedTargetIsa, Error> {
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
    for feature in target.features {
        let name = format!("has_{}", feature.replace('.', ""));
        builder.set(&name, "true").map_err(|e| backend(format!("{name}: {e}")))?;
    }
    builder.finish(settings::Flags::new(flags)).map_err(|e| backend(e.to_string()))
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
