//! Programs for GPUs without one: PTX on the emulator, which also finds races, faults and what was never written.

use hadal_artifact::{ALIGN, Access, Kernel, Target};
use hadal_codegen::gpu::ENTRY;
use hadal_runtime::{Call, Device, Launch, Loaded, Recorded};
use ptx_emulator::{Memory, Module, Options};
use std::alloc::Layout;
use std::sync::Arc;

/// Blocks of a launch: with more than one, warps of different blocks share the grid, as they do on a GPU.
const BLOCKS: u32 = 2;

/// A device whose memory is that of this process. Every launch runs in memory of its own, so that a kernel that leaves
/// its arguments is noticed.
pub struct Emulator;

fn layout(bytes: usize) -> Option<Layout> {
    Layout::from_size_align(bytes.max(1), ALIGN as usize).ok()
}

impl Device for Emulator {
    fn name(&self) -> String {
        "emulated GPU".to_owned()
    }

    fn runs(&self, target: &Target) -> bool {
        target.is_gpu()
    }

    fn allocate(&self, bytes: usize) -> Result<*mut u8, String> {
        // SAFETY: it has at least one byte.
        let start = layout(bytes).map_or(std::ptr::null_mut(), |l| unsafe { std::alloc::alloc_zeroed(l) });
        if start.is_null() { Err("out of memory".to_owned()) } else { Ok(start) }
    }

    unsafe fn free(&self, address: *mut u8, bytes: usize) {
        if let Some(layout) = layout(bytes) {
            // SAFETY: the caller's promise.
            unsafe { std::alloc::dealloc(address, layout) }
        }
    }

    unsafe fn write(&self, to: *mut u8, bytes: &[u8]) -> Result<(), String> {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        Ok(())
    }

    unsafe fn read(&self, from: *const u8, into: &mut [u8]) -> Result<(), String> {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    unsafe fn copy(&self, from: *const u8, to: *mut u8, bytes: usize) -> Result<(), String> {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(from, to, bytes) };
        Ok(())
    }

    fn load(&self, all: &[(&Kernel, &[u8])]) -> Result<Arc<dyn Loaded>, String> {
        let modules = all.iter().map(|(kernel, code)| {
            let failed = |e: &dyn std::fmt::Display| format!("kernel @{}: {e}", kernel.name);
            let text = std::str::from_utf8(code).map_err(|e| failed(&e))?;
            Ok(((*kernel).clone(), Module::parse(text).map_err(|e| failed(&e))?))
        });
        Ok(Arc::new(Modules(modules.collect::<Result<_, String>>()?)))
    }
}

#[derive(Clone)]
struct Modules(Arc<[(Kernel, Module)]>);

impl Loaded for Modules {
    fn record(&self, launches: &[Launch]) -> Result<Box<dyn Recorded>, String> {
        Ok(Box::new(Launches { modules: self.clone(), launches: launches.to_vec() }))
    }
}

struct Launches {
    modules: Modules,
    launches: Vec<Launch>,
}

impl Recorded for Launches {
    unsafe fn run(&mut self, call: Call<'_>) -> Result<(), String> {
        for (number, l) in self.launches.iter().enumerate() {
            let (kernel, module) = &self.modules.0[l.kernel];
            let arguments = call.arguments[l.arguments..].iter().zip(&kernel.params).enumerate();
            let arguments = arguments.map(|(i, (start, p))| (*start, (call.bytes)(number, i), p.access));
            let arguments: Vec<(*mut u8, usize, Access)> = arguments.collect();
            let symbols = &call.symbols[l.symbols..][..kernel.symbols.len()];
            // SAFETY: the caller's promise.
            unsafe { launch(kernel, module, &arguments, symbols) }
                .map_err(|e| format!("kernel @{}: {e}", kernel.name))?;
        }
        Ok(())
    }
}

/// Runs a kernel over its whole grid.
///
/// # Safety
///
/// The bytes of every argument are there, and those that the kernel writes are used by nobody else meanwhile. They may
/// overlap.
unsafe fn launch(
    kernel: &Kernel,
    module: &Module,
    arguments: &[(*mut u8, usize, Access)],
    symbols: &[i64],
) -> Result<(), String> {
    let entry = module.kernel(ENTRY).ok_or("its code has no entry")?;
    let block = kernel.block.ok_or("it says nothing of blocks")?;
    let mut memory = Memory::new();
    let upload = |memory: &mut Memory, (start, bytes, access): (*mut u8, usize, Access)| match access {
        Access::Write => memory.allocate(bytes),
        // SAFETY: the caller promises that these bytes are there.
        Access::Read | Access::ReadWrite => memory.upload(unsafe { std::slice::from_raw_parts(start, bytes) }),
    };
    let addresses: Vec<u64> = arguments.iter().map(|a| upload(&mut memory, *a)).collect();
    let list = |memory: &mut Memory, words: &[u64]| {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        memory.upload(&bytes)
    };
    let args = list(&mut memory, &addresses);
    let symbols: Vec<u64> = symbols.iter().map(|s| *s as u64).collect();
    let symbols = list(&mut memory, &symbols);
    let indices = u64::from(BLOCKS * block.indices);
    let scratch = memory.allocate((kernel.scratch_bytes * indices) as usize);
    let launch = ptx_emulator::Launch {
        dynamic_shared: block.shared_bytes * block.indices,
        ..ptx_emulator::Launch::new(BLOCKS, block.warps * 32)
    };
    let launch = launch.arg(args).arg(symbols).arg(scratch);
    ptx_emulator::run(entry, &launch, &mut memory, &Options::default()).map_err(|fault| fault.to_string())?;
    for ((start, bytes, access), address) in arguments.iter().zip(addresses) {
        if !access.writes() {
            continue;
        }
        // SAFETY: as above, and nobody else writes them.
        let target = unsafe { std::slice::from_raw_parts_mut(*start, *bytes) };
        if let Some(bytes) = memory.read(address, *bytes) {
            target.copy_from_slice(&bytes);
            continue;
        }
        // What nobody reads need not be written.
        for (i, byte) in target.iter_mut().enumerate() {
            *byte = memory.read(address + i as u64, 1).map_or(*byte, |b| b[0]);
        }
    }
    Ok(())
}
