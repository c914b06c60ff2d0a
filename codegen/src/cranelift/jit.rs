//! Runs compiled kernels in this process, for tests and for measuring candidates.
//!
//! Unsafe, as calls into LLVM are and nothing else in this crate: memory is mapped writable, filled, and made
//! executable (never both at once).

use super::CompiledKernel;
use crate::Error;
use hadal_ir::kernel::interpret::Buffer;
use hadal_ir::kernel::{Access, Kernel};
use hadal_types::{Bindings, Dim};
use std::io;

/// The kernel ABI.
type Entry = unsafe extern "C" fn(*const *mut u8, *const i64, i64, i64, *mut u8);

/// A kernel in executable memory.
pub struct JitFn {
    memory: *mut libc::c_void,
    bytes: usize,
}

// SAFETY: the mapping is immutable after construction and owned by this value alone.
unsafe impl Send for JitFn {}
// SAFETY: as above; running code does not change the mapping.
unsafe impl Sync for JitFn {}

impl JitFn {
    /// Copies the code into executable memory.
    pub fn new(kernel: &CompiledKernel) -> Result<JitFn, Error> {
        let bytes = kernel.code.len().max(1);
        let failed = || Error::Memory(io::Error::last_os_error());
        // SAFETY: a fresh anonymous mapping aliases nothing.
        let memory = unsafe {
            let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0)
        };
        if memory == libc::MAP_FAILED {
            return Err(failed());
        }
        let jit = JitFn { memory, bytes };
        // SAFETY: the mapping is writable and at least as long as the code; afterwards it is only read and executed.
        let protected = unsafe {
            std::ptr::copy_nonoverlapping(kernel.code.as_ptr(), memory.cast::<u8>(), kernel.code.len());
            libc::mprotect(memory, bytes, libc::PROT_READ | libc::PROT_EXEC)
        };
        if protected == 0 { Ok(jit) } else { Err(failed()) }
    }

    /// Runs grid indices `lo..hi`.
    ///
    /// # Safety
    ///
    /// `args` point to the kernel's buffers, in the order of its parameters, as large as their shapes under `symbols`
    /// (which are in the kernel's order); `scratch` is aligned to 64 bytes and as large as the kernel says. Buffers
    /// that are written overlap no other.
    pub unsafe fn call(&self, args: &[*mut u8], symbols: &[i64], lo: i64, hi: i64, scratch: *mut u8) {
        // SAFETY: the memory holds a function of this signature; the caller vouches for the arguments.
        unsafe {
            let entry: Entry = std::mem::transmute(self.memory);
            entry(args.as_ptr(), symbols.as_ptr(), lo, hi, scratch);
        }
    }
}

impl Drop for JitFn {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length, and no call can outlive the borrow of `self`.
        unsafe {
            libc::munmap(self.memory, self.bytes);
        }
    }
}

/// Zeroed memory aligned to 64 bytes, for scratch and buffers.
pub struct Aligned {
    units: Vec<Unit>,
    bytes: usize,
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Unit([u8; 64]);

impl Aligned {
    /// `bytes` zeros.
    pub fn new(bytes: usize) -> Aligned {
        Aligned { units: vec![Unit([0; 64]); bytes.div_ceil(64).max(1)], bytes }
    }

    /// A copy of `bytes`.
    pub fn from_bytes(bytes: &[u8]) -> Aligned {
        let mut out = Aligned::new(bytes.len());
        out.as_mut_slice().copy_from_slice(bytes);
        out
    }

    /// The address of the first byte.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.units.as_mut_ptr().cast()
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: units are plain bytes without padding, and there are at least `bytes` of them.
        unsafe { std::slice::from_raw_parts(self.units.as_ptr().cast(), self.bytes) }
    }

    /// The bytes, writable.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.units.as_mut_ptr().cast(), self.bytes) }
    }
}

/// Compiles a kernel for this machine and runs it on the interpreter's buffers, so that the two can be compared.
/// The grid is cut at `cuts`, as threads would cut it. Buffers must have the sizes that the shapes say.
pub fn run(kernel: &Kernel, symbols: &Bindings, args: &mut [Buffer], cuts: &[i64]) -> Result<(), Error> {
    run_compiled(kernel, &super::compile(kernel, &super::Processor::X86_64_V3)?, symbols, args, cuts)
}

/// As [`run`], with code that is there and that this machine can run.
pub fn run_compiled(
    kernel: &Kernel,
    compiled: &CompiledKernel,
    symbols: &Bindings,
    args: &mut [Buffer],
    cuts: &[i64],
) -> Result<(), Error> {
    let jit = JitFn::new(compiled)?;
    let size = |dim: &Dim| dim.eval(symbols).unwrap_or(0).max(0);
    for (param, arg) in kernel.params.iter().zip(args.iter()) {
        let count: i64 = param.shape.iter().map(size).product();
        assert!(arg.bytes.len() as u64 >= param.dtype.bytes(count as u64), "{} is too short", param.name);
    }
    assert_eq!(args.len(), kernel.params.len(), "one buffer per parameter");
    let values: Vec<i64> = kernel.symbols.iter().map(|s| symbols.get(s).copied().unwrap_or(0)).collect();
    let count = kernel.grid.iter().map(size).product();
    let mut scratch = Aligned::new(size(&compiled.scratch_bytes) as usize);
    let mut memory: Vec<Aligned> = args.iter().map(|a| Aligned::from_bytes(&a.bytes)).collect();
    let pointers: Vec<*mut u8> = memory.iter_mut().map(Aligned::as_mut_ptr).collect();
    let mut lo = 0;
    for hi in cuts.iter().copied().filter(|c| (0..count).contains(c)).chain([count]) {
        // SAFETY: sizes are checked above, scratch is as large as the kernel says, and buffers are apart.
        unsafe { jit.call(&pointers, &values, lo, hi, scratch.as_mut_ptr()) };
        lo = hi.max(lo);
    }
    for ((arg, memory), param) in args.iter_mut().zip(&memory).zip(&kernel.params) {
        arg.bytes.copy_from_slice(memory.as_slice());
        if param.access != Access::Read {
            arg.initialised.fill(true);
        }
    }
    Ok(())
}
