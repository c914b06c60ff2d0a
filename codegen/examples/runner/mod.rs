//! Runs compiled kernels on buffers of small numbers and takes the time of the fastest run.
#![allow(dead_code, reason = "shared by several examples")]

use hadal_codegen::cranelift::jit::{Aligned, JitFn};
use hadal_codegen::cranelift::{self};
use hadal_codegen::processor::{CompiledKernel, Processor};
use hadal_ir::Bindings;
use hadal_ir::kernel::Kernel;
use hadal_types::{DType, Dim};

/// Processor seconds of this thread: other programs do not count.
pub fn now() -> f64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut t) };
    t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
}

/// Which code generator and level to measure.
#[derive(Clone, Debug)]
pub struct Backend {
    /// What to call it.
    pub name: String,
    /// The level.
    pub target: Processor,
    /// Whether LLVM makes the code.
    pub llvm: bool,
}

impl Backend {
    /// Cranelift, and where it is built in LLVM for every level that this machine can run.
    pub fn all() -> Vec<Backend> {
        let mut all = vec![Backend { name: "cranelift".into(), target: Processor::X86_64_V3, llvm: false }];
        if cfg!(feature = "llvm-backend") {
            let levels = Processor::LEVELS.into_iter().filter(Processor::is_here);
            all.extend(levels.map(|target| Backend { name: format!("llvm {}", target.name), target, llvm: true }));
        }
        all
    }

    /// The one that `HADAL_BACKEND` asks for: `cranelift`, `llvm` (the best level) or `llvm LEVEL`.
    pub fn chosen() -> Backend {
        let name = std::env::var("HADAL_BACKEND").unwrap_or_else(|_| "cranelift".into());
        let found = Backend::all().into_iter().rev().find(|b| b.name.starts_with(&name));
        found.unwrap_or_else(|| panic!("no back end is called {name}"))
    }

    /// Code for a kernel.
    pub fn compile(&self, kernel: &Kernel, disassembly: bool) -> CompiledKernel {
        #[cfg(feature = "llvm-backend")]
        if self.llvm {
            let options = hadal_codegen::llvm::Options { disassembly };
            return hadal_codegen::llvm::compile(kernel, &self.target, options).unwrap_or_else(|e| panic!("{e}"));
        }
        cranelift::compile_with(kernel, &self.target, disassembly).unwrap_or_else(|e| panic!("{e}"))
    }
}

/// A compiled kernel with buffers.
pub struct Runner {
    /// Seconds that compiling took.
    pub compile_seconds: f64,
    jit: JitFn,
    args: Vec<Aligned>,
    formats: Vec<DType>,
    symbols: Vec<i64>,
    grid: i64,
    scratch: Aligned,
}

impl Runner {
    /// Compiles a kernel and makes its buffers. `HADAL_ASM` prints the code.
    pub fn new(backend: &Backend, kernel: &Kernel, bindings: &Bindings) -> Runner {
        let start = now();
        let compiled = backend.compile(kernel, std::env::var_os("HADAL_ASM").is_some());
        let compile_seconds = now() - start;
        if let Some(text) = &compiled.disassembly {
            println!("{kernel}\n{text}");
        }
        let size = |d: &Dim| d.eval(bindings).expect("bound").max(0);
        let bytes = |p: &hadal_ir::kernel::Param| p.dtype.bytes(p.shape.iter().map(size).product::<i64>() as u64);
        let args = kernel.params.iter().map(|p| {
            let mut memory = Aligned::new(bytes(p) as usize);
            // Small numbers in every format; indices spread.
            let (unit, step) = (p.dtype.bits().div_ceil(8) as usize, 37usize);
            for (i, b) in memory.as_mut_slice().chunks_mut(unit).enumerate() {
                match p.dtype {
                    DType::F32 => b.copy_from_slice(&(((i * step) % 61) as f32 / 61.0 - 0.5).to_le_bytes()),
                    DType::BF16 => b.copy_from_slice(&(0x3c00u16 + (i % 7) as u16).to_le_bytes()),
                    DType::F16 => b.copy_from_slice(&(0x3000u16 + (i % 7) as u16).to_le_bytes()),
                    DType::F8E4M3 => b[0] = 0x20 + (i % 16) as u8,
                    // Row numbers of a selection.
                    DType::I64 => b.copy_from_slice(&((i as i64 * 40_503) % 32_768).to_le_bytes()),
                    DType::I32 => b.copy_from_slice(&((i as i32 * 7) % 16).to_le_bytes()),
                    _ => b[0] = 127,
                }
            }
            memory
        });
        Runner {
            compile_seconds,
            jit: JitFn::new(&compiled).expect("maps"),
            args: args.collect(),
            formats: kernel.params.iter().map(|p| p.dtype).collect(),
            symbols: kernel.symbols.iter().map(|s| bindings[s]).collect(),
            grid: kernel.grid.iter().map(size).product(),
            scratch: Aligned::new(size(&compiled.scratch_bytes) as usize),
        }
    }

    /// Replaces the elements of the parameter of this format, the only one.
    pub fn set(&mut self, dtype: DType, bytes: &[u8]) {
        let of = self.formats.iter().position(|d| *d == dtype).expect("a parameter of this format");
        self.args[of].as_mut_slice()[..bytes.len()].copy_from_slice(bytes);
    }

    /// Runs the whole grid.
    pub fn run(&mut self) {
        let pointers: Vec<*mut u8> = self.args.iter_mut().map(Aligned::as_mut_ptr).collect();
        // SAFETY: buffers and scratch have the sizes that the kernel declares under these symbols, and are apart.
        unsafe { self.jit.call(&pointers, &self.symbols, 0, self.grid, self.scratch.as_mut_ptr()) }
    }

    /// Seconds of the fastest of several runs.
    pub fn time(&mut self) -> f64 {
        self.run();
        let start = now();
        let mut best = f64::INFINITY;
        let mut runs = 0;
        while runs < 5 || (now() - start < 0.5 && runs < 200) {
            if std::env::var_os("HADAL_COLD").is_some() {
                self.args.iter().for_each(|a| forget(a.as_slice()));
            }
            let t = now();
            self.run();
            best = best.min(now() - t);
            runs += 1;
        }
        best
    }
}

/// Drops memory from all caches, as when other launches have run since it was read.
fn forget(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes.chunks(64) {
        // SAFETY: the line is mapped; its contents stay.
        unsafe { std::arch::x86_64::_mm_clflush(line.as_ptr()) };
    }
    let _ = bytes;
}
