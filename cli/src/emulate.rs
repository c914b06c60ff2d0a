//! Programs for GPUs without one: PTX on the emulator, which also finds races, faults and what was never written.

use hadal_artifact::{Access, Kernel, Target};
use hadal_codegen::gpu::ENTRY;
use hadal_runtime::{Argument, Device};
use ptx_emulator::{Launch, Memory, Module, Options};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// Blocks of a launch: with more than one, warps of different blocks share the grid, as they do on a GPU.
const BLOCKS: u32 = 2;

/// Runs every launch in memory of its own, so that a kernel that leaves its arguments is noticed.
#[derive(Default)]
pub struct Emulator {
    /// By where their text is.
    modules: Mutex<HashMap<usize, Arc<Module>>>,
}

impl Emulator {
    fn module(&self, code: &[u8]) -> Result<Arc<Module>, String> {
        let mut modules = self.modules.lock().map_err(|_| "another launch panicked")?;
        if let Some(module) = modules.get(&(code.as_ptr() as usize)) {
            return Ok(module.clone());
        }
        let text = std::str::from_utf8(code).map_err(|_| "its code is no text")?;
        let module = Arc::new(Module::parse(text).map_err(|e| e.to_string())?);
        modules.insert(code.as_ptr() as usize, module.clone());
        Ok(module)
    }
}

impl Device for Emulator {
    fn runs(&self, target: &Target) -> bool {
        target.arch == "nvptx64"
    }

    unsafe fn launch(
        &self,
        kernel: &Kernel,
        code: &[u8],
        arguments: &[Argument],
        symbols: &[i64],
    ) -> Result<(), String> {
        let module = self.module(code)?;
        let entry = module.kernel(ENTRY).ok_or("its code has no entry")?;
        let block = kernel.block.ok_or("it says nothing of blocks")?;
        let mut memory = Memory::new();
        let upload = |memory: &mut Memory, a: &Argument| match a.access {
            Access::Write => memory.allocate(a.bytes),
            // SAFETY: the caller promises that these bytes are there.
            Access::Read | Access::ReadWrite => memory.upload(unsafe { std::slice::from_raw_parts(a.start, a.bytes) }),
        };
        let addresses: Vec<u64> = arguments.iter().map(|a| upload(&mut memory, a)).collect();
        let list = |memory: &mut Memory, words: &[u64]| {
            let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
            memory.upload(&bytes)
        };
        let args = list(&mut memory, &addresses);
        let symbols: Vec<u64> = symbols.iter().map(|s| *s as u64).collect();
        let symbols = list(&mut memory, &symbols);
        let warps = u64::from(BLOCKS * block.warps);
        let scratch = memory.allocate((kernel.scratch_bytes * warps) as usize);
        let launch =
            Launch { dynamic_shared: block.shared_bytes * block.warps, ..Launch::new(BLOCKS, block.warps * 32) };
        let launch = launch.arg(args).arg(symbols).arg(scratch);
        ptx_emulator::run(entry, &launch, &mut memory, &Options::default()).map_err(|fault| fault.to_string())?;
        for (a, address) in arguments.iter().zip(addresses).filter(|(a, _)| a.access.writes()) {
            // SAFETY: as above, and nobody else writes them.
            let target = unsafe { std::slice::from_raw_parts_mut(a.start, a.bytes) };
            if let Some(bytes) = memory.read(address, a.bytes) {
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
}
