//! Every code generator that is built, for every level that this machine can run.

use hadal_codegen::Error;
use hadal_codegen::cranelift::{self, jit};
use hadal_codegen::processor::{CompiledKernel, Processor};
use hadal_ir::kernel::Kernel;
use hadal_ir::kernel::interpret::Buffer;
use hadal_types::Bindings;

/// A code generator for a level.
pub struct Machine {
    /// What to call it in messages.
    pub name: &'static str,
    /// Makes code.
    pub compile: fn(&Kernel, &Processor) -> Result<CompiledKernel, Error>,
    /// The level.
    pub target: Processor,
}

/// All of them.
pub fn machines() -> Vec<Machine> {
    let first = Machine { name: "Cranelift", compile: cranelift::compile, target: Processor::X86_64_V3 };
    std::iter::once(first).chain(others()).collect()
}

#[cfg(not(feature = "llvm-backend"))]
fn others() -> impl Iterator<Item = Machine> {
    std::iter::empty()
}

#[cfg(feature = "llvm-backend")]
fn others() -> impl Iterator<Item = Machine> {
    Processor::LEVELS.into_iter().filter(Processor::is_here).map(|target| Machine {
        name: target.name,
        compile: |kernel, target| hadal_codegen::llvm::compile(kernel, target, Default::default()),
        target,
    })
}

/// Runs a kernel by all of them, each on its own copy of the buffers.
pub fn run_all(kernel: &Kernel, symbols: &Bindings, args: &[Buffer], cuts: &[i64]) -> Vec<(&'static str, Vec<Buffer>)> {
    let run = |machine: Machine| {
        let mut buffers = args.to_vec();
        let fail = |e: Error| -> ! { panic!("{}: {e}\n{kernel}", machine.name) };
        let code = (machine.compile)(kernel, &machine.target).unwrap_or_else(|e| fail(e));
        jit::run_compiled(kernel, &code, symbols, &mut buffers, cuts).unwrap_or_else(|e| fail(e));
        (machine.name, buffers)
    };
    let gpu = emulated_gpu(kernel, symbols, args);
    machines().into_iter().map(run).chain(emulated(kernel, symbols, args)).chain(gpu).collect()
}

#[cfg(not(feature = "llvm-backend"))]
fn emulated_gpu(_: &Kernel, _: &Bindings, _: &[Buffer]) -> Vec<(&'static str, Vec<Buffer>)> {
    Vec::new()
}

/// The same for a GPU, with buffers that may lie anywhere, and with such that are known to be aligned.
#[cfg(feature = "llvm-backend")]
fn emulated_gpu(kernel: &Kernel, symbols: &Bindings, args: &[Buffer]) -> Vec<(&'static str, Vec<Buffer>)> {
    use super::gpu::{aligned, emulated};
    let together = emulated(&aligned(kernel), symbols, args);
    vec![("a GPU", emulated(kernel, symbols, args)), ("a GPU, aligned", together)]
}

#[cfg(not(feature = "llvm-backend"))]
fn emulated(_: &Kernel, _: &Bindings, _: &[Buffer]) -> Option<(&'static str, Vec<Buffer>)> {
    None
}

/// The same for the processor that this machine is not, where it can be emulated.
#[cfg(feature = "llvm-backend")]
fn emulated(kernel: &Kernel, symbols: &Bindings, args: &[Buffer]) -> Option<(&'static str, Vec<Buffer>)> {
    static THERE: std::sync::LazyLock<bool> = std::sync::LazyLock::new(super::emulated::is_there);
    if !*THERE {
        return None;
    }
    let (target, mut buffers) = (Processor::AARCH64_NEON, args.to_vec());
    let code = hadal_codegen::llvm::compile(kernel, &target, Default::default());
    let code = code.unwrap_or_else(|e| panic!("{}: {e}\n{kernel}", target.name));
    let ran = super::emulated::run(kernel, &code, symbols, &mut buffers);
    ran.unwrap_or_else(|e| panic!("{}: {e}\n{kernel}", target.name));
    Some((target.name, buffers))
}
