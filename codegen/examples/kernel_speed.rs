//! How fast Cranelift's code is, as shares of what this machine can do in 128-bit registers.
//!
//! `cargo run -p hadal-codegen --example kernel_speed [--asm NAME]`: the code that runs is the same in every profile.

use hadal_codegen::cranelift::{Processor, compile_with, jit};
use hadal_ir::kernel::*;
use hadal_types::DType;
use std::time::Instant;

/// Independent chains of multiply-adds in registers: the peak.
fn peak(steps: i64) -> Kernel {
    let mut b = Builder::new("peak");
    let y = b.param("y", DType::F32, [32], Access::Write);
    b.grid([1]);
    let (zero, n) = (b.const_i64(0), b.const_i64(steps));
    let (one, tiny) = (b.const_f32(1.0), b.const_f32(1e-9));
    let (one, tiny) = (b.splat(one, 32), b.splat(tiny, 32));
    let acc = b.for_loop(zero, n, 1, LoopKind::Serial, &[tiny], |b, _, c| vec![b.fma(c[0], one, tiny)]);
    b.store(y, &[zero], acc[0]);
    b.finish()
}

/// Sums a buffer: the read bandwidth.
fn read(n: usize) -> Kernel {
    let mut b = Builder::new("read");
    let x = b.param("x", DType::F32, [n], Access::Read);
    let y = b.param("y", DType::F32, [32], Access::Write);
    b.grid([1]);
    let (zero, end, init) = (b.const_i64(0), b.const_i64(n as i64), b.const_f32(0.0));
    let init = b.splat(init, 32);
    let sum = b.for_loop(zero, end, 32, LoopKind::Serial, &[init], |b, i, c| {
        let v = b.load(x, &[i], 32);
        vec![b.add(c[0], v)]
    });
    b.store(y, &[zero], sum[0]);
    b.finish()
}

/// `c[i, j] = Σ a[i, k] b[j, k]` in tiles of rows by columns, vectors along k.
fn product(m: usize, n: usize, k: usize, tile: (usize, usize), lanes: u32, format: DType) -> Kernel {
    let mut b = Builder::new(format!("product_{}x{}_{format}", tile.0, tile.1));
    let x = b.param("x", DType::F32, [m, k], Access::Read);
    let w = b.param("w", format, [n, k], Access::Read);
    let y = b.param("y", DType::F32, [m, n], Access::Write);
    let g = b.grid([n / tile.1, m / tile.0]);
    let (rows, columns) = (b.const_i64(tile.0 as i64), b.const_i64(tile.1 as i64));
    let (i0, j0) = (b.mul(g[1], rows), b.mul(g[0], columns));
    let (zero, end, init) = (b.const_i64(0), b.const_i64(k as i64), b.const_f32(0.0));
    let init = vec![b.splat(init, lanes); tile.0 * tile.1];
    let at = |b: &mut Builder, base: Value, i: usize| {
        let i = b.const_i64(i as i64);
        b.add(base, i)
    };
    let sums = b.for_loop(zero, end, lanes as i64, LoopKind::Serial, &init, |b, p, c| {
        let mut next = c.to_vec();
        let rows: Vec<Value> = (0..tile.0)
            .map(|i| {
                let i = at(b, i0, i);
                b.load(x, &[i, p], lanes)
            })
            .collect();
        for j in 0..tile.1 {
            let column = at(b, j0, j);
            let v = b.load(w, &[column, p], lanes);
            let v = b.cast(v, DType::F32);
            for (i, row) in rows.iter().enumerate() {
                let acc = i * tile.1 + j;
                next[acc] = b.fma(*row, v, next[acc]);
            }
        }
        next
    });
    for (n, sum) in sums.into_iter().enumerate() {
        let (i, j) = (at(&mut b, i0, n / tile.1), at(&mut b, j0, n % tile.1));
        let sum = b.reduce_lanes(ReduceOp::Add, sum);
        b.store(y, &[i, j], sum);
    }
    b.finish()
}

/// Best of several runs over the whole grid, in seconds.
fn seconds(kernel: &Kernel, rounds: usize) -> f64 {
    let wanted = std::env::args().skip_while(|a| a != "--asm").nth(1);
    let compiled = compile_with(kernel, &Processor::X86_64_V3, true).unwrap_or_else(|e| panic!("{e}"));
    if wanted.is_some_and(|w| kernel.name == w) {
        println!("{}", compiled.disassembly.as_deref().unwrap_or(""));
    }
    let jit = jit::JitFn::new(&compiled).unwrap_or_else(|e| panic!("{e}"));
    let size = |shape: &[hadal_types::Dim]| shape.iter().filter_map(|d| d.as_const()).product::<i64>();
    let mut buffers: Vec<jit::Aligned> = kernel
        .params
        .iter()
        .map(|p| {
            let mut memory = jit::Aligned::new(p.dtype.bytes(size(&p.shape) as u64) as usize);
            memory.as_mut_slice().fill(0x31);
            memory
        })
        .collect();
    let pointers: Vec<*mut u8> = buffers.iter_mut().map(jit::Aligned::as_mut_ptr).collect();
    let mut scratch = jit::Aligned::new(compiled.scratch_bytes.as_const().unwrap_or(0) as usize);
    let mut best = f64::INFINITY;
    for _ in 0..rounds {
        let start = Instant::now();
        // SAFETY: buffers have the sizes of their shapes, and all sizes are constant.
        unsafe { jit.call(&pointers, &[], 0, size(&kernel.grid), scratch.as_mut_ptr()) };
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

fn main() {
    let steps = 1_000_000;
    let peak = 32.0 * 2.0 * steps as f64 / seconds(&peak(steps), 20);
    println!("peak of 128-bit multiply-add: {:.1} GFLOP/s", peak / 1e9);
    for (tile, lanes, format) in [
        ((4, 2), 4, DType::F32),
        ((2, 4), 4, DType::F32),
        ((3, 3), 4, DType::F32),
        ((4, 2), 4, DType::BF16),
        ((4, 2), 8, DType::BF16),
        ((4, 2), 16, DType::F8E4M3),
    ] {
        let (m, n, k) = (48, 48, 512);
        let kernel = product(m, n, k, tile, lanes, format);
        let speed = 2.0 * (m * n * k) as f64 / seconds(&kernel, 500);
        println!("{} lanes {lanes}: {:.2} of peak", kernel.name, speed / peak);
    }
    let bandwidth = (64 << 20) as f64 * 4.0 / seconds(&read(64 << 20), 5);
    println!("read: {:.1} GB/s", bandwidth / 1e9);
    let k = 4096;
    for (format, rows, lanes) in [
        (DType::F32, 4, 8),
        (DType::BF16, 1, 32),
        (DType::BF16, 4, 8),
        (DType::BF16, 2, 16),
        (DType::F16, 2, 16),
        (DType::F8E4M3, 2, 16),
        (DType::F8E4M3, 1, 32),
        (DType::F8E4M3, 1, 16),
        (DType::F8E4M3, 4, 8),
    ] {
        let bytes = 128 << 20;
        let n = (bytes * 8 / format.bits()) as usize / k;
        let kernel = product(1, n, k, (1, rows), lanes, format);
        let speed = bytes as f64 / seconds(&kernel, 5);
        println!("{} lanes {lanes}: {:.2} of read bandwidth", kernel.name, speed / bandwidth);
    }
}
