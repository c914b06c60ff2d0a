//! Kernels that reach a machine's limits and compute nothing of use: what other kernels are measured against. They go
//! through the same back ends, so the figures are what generated code can reach and not what the data sheet says.

use hadal_ir::kernel::{Access, Buf, Builder, Kernel, LoopKind, ReduceOp, Value, dot_group};
use hadal_types::DType;

/// Independent chains of operations: more than any core has in flight.
const CHAINS: usize = 12;

/// Operations of one step of [`multiply_adds`] with vectors of so many lanes, a multiply-add counting two.
pub fn step_flops(lanes: u32) -> f64 {
    2.0 * f64::from(lanes) * CHAINS as f64
}

/// `steps` steps of independent multiply-adds of f32 vectors in registers.
pub fn multiply_adds(steps: i64, lanes: u32) -> Kernel {
    let mut b = Builder::new("peak");
    let x = b.param("x", DType::F32, [2 * i64::from(lanes)], Access::Read);
    let y = b.param("y", DType::F32, [1i64], Access::Write);
    b.grid([1i64]);
    let (zero, end, second) = (b.const_i64(0), b.const_i64(steps), b.const_i64(i64::from(lanes)));
    let (p, q) = (b.load(x, &[zero], lanes), b.load(x, &[second], lanes));
    let step = |b: &mut Builder, _: Value, sums: &[Value]| sums.iter().map(|s| b.fma(*s, p, q)).collect();
    let sums = b.for_loop(zero, end, 1, LoopKind::Serial, &[p; CHAINS], step);
    total(b, y, sums)
}

/// `steps` steps of independent dot products of groups of neighbours into `lanes` sums, in registers: as many
/// operations a step as [`step_flops`] says, times the group. `None` where such factors have no dot product.
pub fn dots(steps: i64, (left, right, sum): (DType, DType, DType), lanes: u32) -> Option<(Kernel, u32)> {
    let group = dot_group(left, right, sum)?;
    let mut b = Builder::new("dots");
    let factors = i64::from(lanes * group);
    let p = b.param("x", left, [factors], Access::Read);
    let q = b.param("z", right, [factors], Access::Read);
    let y = b.param("y", sum, [1i64], Access::ReadWrite);
    b.grid([1i64]);
    let (zero, end) = (b.const_i64(0), b.const_i64(steps));
    let (p, q, first) = (b.load(p, &[zero], lanes * group), b.load(q, &[zero], lanes * group), b.load(y, &[zero], 1));
    let first = b.splat(first, lanes);
    let step = |b: &mut Builder, _: Value, sums: &[Value]| sums.iter().map(|s| b.dot(p, q, *s)).collect();
    let sums = b.for_loop(zero, end, 1, LoopKind::Serial, &[first; CHAINS], step);
    Some((total(b, y, sums), group))
}

/// Adds up an array of `words` f32, a multiple of eight vectors of so many lanes, so many times.
pub fn read(words: i64, times: i64, lanes: u32) -> Kernel {
    let mut b = Builder::new("read");
    let x = b.param("x", DType::F32, [words], Access::Read);
    let y = b.param("y", DType::F32, [1i64], Access::Write);
    b.grid([1i64]);
    let (zero, end, rounds, none) = (b.const_i64(0), b.const_i64(words), b.const_i64(times), b.const_f32(0.0));
    let none = b.splat(none, lanes);
    let lanes = i64::from(lanes);
    let sums = b.for_loop(zero, rounds, 1, LoopKind::Serial, &[none; 8], |b, _, sums| {
        b.for_loop(zero, end, 8 * lanes, LoopKind::Serial, sums, |b, i, sums| {
            let add = |(j, sum): (usize, &_)| {
                let offset = b.const_i64(lanes * j as i64);
                let at = b.add(i, offset);
                let v = b.load(x, &[at], lanes as u32);
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
