//! Runs PTX of kernels on the emulator.

use hadal_codegen::gpu::ENTRY;
use hadal_codegen::processor::{CompiledKernel, Processor};
use hadal_ir::kernel::interpret::Buffer;
use hadal_types::Bindings;
use ptx_emulator::{Fault, Launch, Memory, Module, Options, Report};

/// Blocks of a launch: fewer warps than most grids have indices.
const BLOCKS: u32 = 2;

/// Runs a kernel on the buffers; what it did not write stays as it was.
pub fn run(
    code: &CompiledKernel,
    kernel: &hadal_ir::kernel::Kernel,
    symbols: &Bindings,
    buffers: &mut [Buffer],
    options: &Options,
) -> Result<Report, Box<Fault>> {
    let text = std::str::from_utf8(&code.code).expect("PTX is text");
    let module = Module::parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let block = code.block.expect("code for a GPU");
    let mut memory = Memory::new();
    let sizes: Vec<usize> = kernel.params.iter().map(|p| (p.dtype.bits() as usize / 8).max(1)).collect();
    let addresses: Vec<u64> = buffers.iter().map(|b| memory.allocate(b.bytes.len())).collect();
    for ((buffer, address), size) in buffers.iter().zip(&addresses).zip(&sizes) {
        for (i, bytes) in buffer.bytes.chunks(*size).enumerate() {
            if buffer.initialised.get(i * elements(buffer, *size)) == Some(&true) {
                memory.write(address + (i * size) as u64, bytes);
            }
        }
    }
    let list = |memory: &mut Memory, all: &mut dyn Iterator<Item = i64>| {
        let bytes: Vec<u8> = all.flat_map(i64::to_le_bytes).collect();
        memory.upload(&bytes)
    };
    let args = list(&mut memory, &mut addresses.iter().map(|a| *a as i64));
    let symbol_values = list(&mut memory, &mut kernel.symbols.iter().map(|s| symbols[s]));
    let indices = i64::from(BLOCKS * block.indices);
    let scratch = code.scratch_bytes.eval(symbols).expect("all symbols have values") * indices;
    let scratch = memory.allocate(scratch as usize);
    let launch = Launch { dynamic_shared: block.shared_bytes * block.indices, ..Launch::new(BLOCKS, block.threads()) };
    let launch = launch.arg(args).arg(symbol_values).arg(scratch);
    let entry = module.kernel(ENTRY).expect("an entry");
    let report = ptx_emulator::run(entry, &launch, &mut memory, options)?;
    for ((buffer, address), size) in buffers.iter_mut().zip(&addresses).zip(&sizes) {
        for (i, bytes) in buffer.bytes.chunks_mut(*size).enumerate() {
            if let Some(found) = memory.read(address + (i * size) as u64, bytes.len()) {
                bytes.copy_from_slice(&found);
            }
        }
    }
    Ok(report)
}

/// Elements in as many bytes: two where they are packed.
fn elements(buffer: &Buffer, size: usize) -> usize {
    if buffer.initialised.len() > buffer.bytes.len() / size { 2 } else { 1 }
}

/// Asks `ptxas`, where the variable `PTXAS` names it, whether a text is PTX, and whether it has registers enough.
pub fn assemble(ptx: &str) {
    let Some(ptxas) = std::env::var_os("PTXAS") else { return };
    let target = ptx.lines().find_map(|l| l.strip_prefix(".target ")).expect("a target").trim();
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), ptx).expect("written");
    let mut command = std::process::Command::new(ptxas);
    command.args(["-v", "-o", "/dev/null", &format!("-arch={target}")]).arg(file.path());
    let output = command.output().expect("ptxas starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let spills = said.contains("spill") && !said.contains("0 bytes spill stores, 0 bytes spill loads");
    assert!(output.status.success() && !spills, "{said}\n{ptx}");
}

/// The kernel as it is where all buffers lie at multiples of 16 bytes, as those of the emulator do.
pub fn aligned(kernel: &hadal_ir::kernel::Kernel) -> hadal_ir::kernel::Kernel {
    let mut kernel = kernel.clone();
    kernel.params.iter_mut().for_each(|p| p.align = 16);
    kernel
}

/// A kernel's PTX on all buffers, which must be without fault.
pub fn emulated(kernel: &hadal_ir::kernel::Kernel, symbols: &Bindings, args: &[Buffer]) -> Vec<Buffer> {
    let target = Processor::SM_90A;
    let code = hadal_codegen::compile(kernel, &target, false).unwrap_or_else(|e| panic!("{e}\n{kernel}"));
    let mut buffers = args.to_vec();
    let ran = run(&code, kernel, symbols, &mut buffers, &Options::default());
    ran.unwrap_or_else(|fault| panic!("{}: {fault}\n{kernel}\n{}", target.name, String::from_utf8_lossy(&code.code)));
    buffers
}
