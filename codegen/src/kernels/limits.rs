//! Kernels that reach a machine's limits and compute nothing of use: what other kernels are measured against. They go
//! through the same back end, so the figures are what generated code can reach and not what the data sheet says.

use hadal_ir::kernel::{Access, Buf, Builder, Kernel, LoopKind, ReduceOp, Value};
use hadal_types::DType;

/// Independent chains of multiply-adds: more than any core has in flight.
const CHAINS: usize = 12;

/// Operations of one step of [`multiply_adds`]: chains of four lanes, a multiply-add counting two.
pub const STEP_FLOPS: f64 = 2.0 * 4.0 * CHAINS as f64;

/// `steps` steps of independent f32x4 multiply-adds in registers, on 16 elements.
pub fn multiply_adds(steps: i64) -> Kernel {
    let mut b = Builder::new("peak");
    let x = b.param("x", DType::F32, [16i64], Access::Read);
    let y = b.param("y", DType::F32, [1i64], Access::Write);
    b.grid([1i64]);
    let (zero, end) = (b.const_i64(0), b.const_i64(steps));
    let four = b.const_i64(4);
    let (p, q) = (b.load(x, &[zero], 4), b.load(x, &[four], 4));
    let step = |b: &mut Builder, _: Value, sums: &[Value]| sums.iter().map(|s| b.fma(*s, p, q)).collect();
    let sums = b.for_loop(zero, end, 1, LoopKind::Serial, &[p; CHAINS], step);
    total(b, y, sums)
}

/// Adds up an array of `words` f32, a multiple of 32, so many times.
pub fn read(words: i64, times: i64) -> Kernel {
    let mut b = Builder::new("read");
    let x = b.param("x", DType::F32, [words], Access::Read);
    let y = b.param("y", DType::F32, [1i64], Access::Write);
    b.grid([1i64]);
    let (zero, end, rounds, none) = (b.const_i64(0), b.const_i64(words), b.const_i64(times), b.const_f32(0.0));
    let none = b.splat(none, 4);
    let sums = b.for_loop(zero, rounds, 1, LoopKind::Serial, &[none; 8], |b, _, sums| {
        b.for_loop(zero, end, 32, LoopKind::Serial, sums, |b, i, sums| {
            let add = |(j, sum): (usize, &_)| {
                let offset = b.const_i64(4 * j as i64);
                let at = b.add(i, offset);
                let v = b.load(x, &[at], 4);
                b.add(*sum, v)
            };
            sums.iter().enumerate().map(add).collect()
        })
    });
    total(b, y, sums)
}

/// Stores the sum of all, so that none of them can be left out.
fn total(mut b: Builder, y: Buf, sums: Vec<Value>) -> Kernel {
    let zero = b.const_i64(0);
    let sum = sums.into_iter().reduce(|a, c| b.add(a, c)).expect("some chains");
    let sum = b.reduce_lanes(ReduceOp::Add, sum);
    b.store(y, &[zero], sum);
    b.finish()
}
