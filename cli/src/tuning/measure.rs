//! Times of kernels that must write the same, on one thread, taken in turn.

use crate::failure::Failure;
use hadal_codegen::cranelift::jit::{Aligned, JitFn};
use hadal_codegen::processor::CompiledKernel;
use hadal_ir::Bindings;
use hadal_ir::kernel::{Access, Kernel, Param};
use hadal_runtime::Rng;
use hadal_types::{DType, Dim};
use std::time::Instant;

/// Most bytes of all buffers: larger functions are not measured.
const ROOM: u64 = 4 << 30;

/// Seconds that the runs of one function's kernels may take, beyond two of each.
const SECONDS: f64 = 0.5;

/// Most runs of a kernel.
const RUNS: usize = 25;

/// Most bytes that are read between two runs: more than caches hold.
const FAR: u64 = 96 << 20;

/// Kernels of one function, with memory to run in.
pub struct Bench {
    kernels: Vec<(JitFn, Aligned)>,
    args: Vec<Aligned>,
    /// By argument: whether it is written.
    written: Vec<bool>,
    symbols: Vec<i64>,
    grid: Vec<i64>,
    /// Read between runs.
    far: Aligned,
}

impl Bench {
    /// Buffers of the sizes given, with small numbers in them. Between two runs a
    /// model reads its other weights, of `between` bytes, so that those of a kernel are where these leave them. `None`
    /// where buffers would need too much memory.
    pub fn new(
        kernels: Vec<(&Kernel, &CompiledKernel)>,
        sizes: &Bindings,
        between: u64,
    ) -> Result<Option<Bench>, Failure> {
        let Some((first, _)) = kernels.first() else { return Ok(None) };
        let size = |d: &Dim| d.eval(sizes).unwrap_or(0).max(0);
        let count = |p: &Param| p.shape.iter().map(|d| size(d) as u64).try_fold(1, u64::checked_mul);
        let bytes = |p: &Param| count(p).map(|n| p.dtype.bytes(n));
        let Some(total) = first.params.iter().map(bytes).try_fold(0u64, |sum, b| sum.checked_add(b?)) else {
            return Ok(None);
        };
        let scratch: u64 = kernels.iter().map(|(_, c)| size(&c.scratch_bytes) as u64).sum();
        if total.saturating_add(scratch) > ROOM {
            return Ok(None);
        }
        // Indices choose among the rows of what is largest.
        let largest = first.params.iter().filter(|p| p.shape.len() > 1).max_by_key(|p| bytes(p));
        let rows = largest.and_then(|p| p.shape.first()).map_or(1, size).max(1);
        let mut rng = Rng::new(1);
        let args = first.params.iter().map(|p| {
            let mut memory = Aligned::new(bytes(p).unwrap_or(0) as usize);
            fill(&mut rng, p.dtype, rows, memory.as_mut_slice());
            memory
        });
        let args = args.collect();
        let compiled = |(kernel, code): &(&Kernel, &CompiledKernel)| {
            let jit = JitFn::new(code).map_err(|e| Failure::failed(format!("tuning: {e}")))?;
            let grid: i64 = kernel.grid.iter().map(size).product();
            Ok((jit, Aligned::new(size(&code.scratch_bytes) as usize), grid))
        };
        let all = kernels.iter().map(compiled).collect::<Result<Vec<_>, Failure>>()?;
        let mut far = Aligned::new(between.min(FAR) as usize);
        far.as_mut_slice().fill(1);
        Ok(Some(Bench {
            grid: all.iter().map(|(_, _, grid)| *grid).collect(),
            kernels: all.into_iter().map(|(jit, scratch, _)| (jit, scratch)).collect(),
            args,
            written: first.params.iter().map(|p| p.access != Access::Read).collect(),
            symbols: first.symbols.iter().map(|s| sizes.get(s).copied().unwrap_or(0)).collect(),
            far,
        }))
    }

    /// The best time of each kernel; `None` for one that writes other bits than the first.
    pub fn seconds(mut self) -> Vec<Option<f64>> {
        let before: Vec<Vec<u8>> = self.args.iter().map(|a| a.as_slice().to_vec()).collect();
        let mut best = vec![Some(f64::INFINITY); self.kernels.len()];
        let mut expected: Option<Vec<Vec<u8>>> = None;
        for (i, best) in best.iter_mut().enumerate() {
            for ((arg, before), _) in self.args.iter_mut().zip(&before).zip(&self.written).filter(|(_, w)| **w) {
                arg.as_mut_slice().copy_from_slice(before);
            }
            self.run(i);
            let written = self.args.iter().zip(&self.written).filter(|(_, w)| **w);
            let found: Vec<Vec<u8>> = written.map(|(a, _)| a.as_slice().to_vec()).collect();
            if *expected.get_or_insert_with(|| found.clone()) != found {
                *best = None;
            }
        }
        let start = Instant::now();
        for round in 0..RUNS {
            let least = best.iter().flatten().copied().fold(f64::INFINITY, f64::min);
            // Those that are behind are not run again and again.
            let behind = if round < 5 { 1.5 } else { 1.1 };
            for (i, best) in best.iter_mut().enumerate() {
                let Some(before) = best.filter(|b| round < 2 || *b < least * behind) else { continue };
                self.spoil();
                *best = Some(before.min(self.run(i)));
            }
            if round > 0 && start.elapsed().as_secs_f64() > SECONDS {
                break;
            }
        }
        best
    }

    /// Processor seconds of one run: what other programs take does not count.
    fn run(&mut self, i: usize) -> f64 {
        let args: Vec<*mut u8> = self.args.iter_mut().map(Aligned::as_mut_ptr).collect();
        let (jit, scratch) = &mut self.kernels[i];
        let start = processor_seconds();
        // SAFETY: buffers are as large as the parameters' shapes at these symbols, scratch as the kernel says; they are
        // apart, and the kernels have the same parameters.
        unsafe { jit.call(&args, &self.symbols, 0, self.grid[i], scratch.as_mut_ptr()) };
        processor_seconds() - start
    }

    /// Takes what the last run left out of the caches.
    fn spoil(&self) {
        std::hint::black_box(self.far.as_slice().iter().step_by(64).fold(0u8, |sum, b| sum.wrapping_add(*b)));
    }
}

/// Processor seconds of this thread.
fn processor_seconds() -> f64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
}

/// Small numbers of a format, indices below `rows`.
fn fill(rng: &mut Rng, dtype: DType, rows: i64, memory: &mut [u8]) {
    let mut next = || rng.next_u64();
    match dtype {
        DType::F32 => memory.chunks_exact_mut(4).for_each(|b| {
            b.copy_from_slice(&(((next() % 2001) as f32 - 1000.0) / 1000.0).to_le_bytes());
        }),
        DType::BF16 | DType::F16 => memory.chunks_exact_mut(2).for_each(|b| {
            let x = ((next() % 129) as f32 - 64.0) / 64.0;
            let bits =
                if dtype == DType::BF16 { half::bf16::from_f32(x).to_bits() } else { half::f16::from_f32(x).to_bits() };
            b.copy_from_slice(&bits.to_le_bytes());
        }),
        DType::I64 => memory.chunks_exact_mut(8).for_each(|b| {
            b.copy_from_slice(&((next() % rows as u64) as i64).to_le_bytes());
        }),
        DType::I32 => memory.chunks_exact_mut(4).for_each(|b| {
            b.copy_from_slice(&((next() % rows as u64) as i32).to_le_bytes());
        }),
        DType::Bool => memory.iter_mut().for_each(|b| *b = (next() & 1) as u8),
        // One half to two.
        DType::F8E8M0 => memory.iter_mut().for_each(|b| *b = 126 + (next() % 3) as u8),
        // Codes of which none is infinite or no number.
        DType::F8E4M3 => memory.iter_mut().for_each(|b| *b = (next() as u8) & 0xbf),
        _ => memory.chunks_mut(8).for_each(|b| b.copy_from_slice(&next().to_le_bytes()[..b.len()])),
    }
}
