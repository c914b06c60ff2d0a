//! What each code generator reaches at each level: multiply-adds and dot products in registers, and one row times a
//! matrix of each weight format, in cache and from memory.
//!
//! `cargo run --release -p hadal-codegen --features llvm --example cpu_peaks [-- FILTER]`

mod runner;

use hadal_codegen::kernels::limits;
use hadal_ir::Bindings;
use hadal_ir::kernel::{Access, Builder, Kernel, LoopKind, ReduceOp, Value};
use hadal_types::DType;
use runner::{Backend, Runner};

/// How the row of activations meets the weights.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    /// Weights become f32.
    Float,
    /// Weights become bf16, as the row is.
    Bf16,
    /// Bytes.
    Int,
}

/// One row by `n` rows of weights of length `k`, `rows` of them at once, in steps of `lanes` weights.
fn row(weights: DType, form: Form, n: i64, k: i64, rows: i64, lanes: u32) -> Kernel {
    let mut b = Builder::new("row");
    let (x_ty, sum_ty) = match form {
        Form::Float => (DType::F32, DType::F32),
        Form::Bf16 => (DType::BF16, DType::F32),
        Form::Int => (DType::U8, DType::I32),
    };
    let x = b.param("x", x_ty, [k], Access::Read);
    let w = b.param("w", weights, [n, k], Access::Read);
    let y = b.param("y", sum_ty, [n], Access::Write);
    let g = b.grid([n / rows])[0];
    let (zero, end, each) = (b.const_i64(0), b.const_i64(k), b.const_i64(rows));
    let at = b.mul(g, each);
    let none = if form == Form::Int { b.const_i32(0) } else { b.const_f32(0.0) };
    let none = b.splat(none, lanes / [1, 2, 4][form as usize]);
    let step = |b: &mut Builder, i: Value, sums: &[Value]| {
        let xs = b.load(x, &[i], lanes);
        let mut next = Vec::new();
        for (r, sum) in sums.iter().enumerate() {
            let r = b.const_i64(r as i64);
            let at = b.add(at, r);
            let v = b.load(w, &[at, i], lanes);
            next.push(match form {
                Form::Float => {
                    let v = b.cast(v, DType::F32);
                    b.fma(v, xs, *sum)
                }
                Form::Bf16 => {
                    let v = b.cast(v, DType::BF16);
                    b.dot(v, xs, *sum)
                }
                Form::Int => {
                    let v = b.cast(v, DType::I8);
                    b.dot(xs, v, *sum)
                }
            });
        }
        next
    };
    let sums = b.for_loop(zero, end, lanes as i64, LoopKind::Serial, &vec![none; rows as usize], step);
    for (r, sum) in sums.into_iter().enumerate() {
        let r = b.const_i64(r as i64);
        let at = b.add(at, r);
        let sum = b.reduce_lanes(ReduceOp::Add, sum);
        b.store(y, &[at], sum);
    }
    b.finish()
}

/// How often a tile is computed.
const TIMES: i64 = 64;

/// A tile of `rows` by `vectors` registers of sums over a length of `k`, from packed operands in cache. Groups of
/// neighbouring factors are one 32-bit word; a word of a row meets the words of all columns.
fn tile(form: Form, k: i64, rows: i64, vectors: i64, lanes: u32) -> Kernel {
    let mut b = Builder::new("tile");
    let (word, sum_ty) = match form {
        Form::Float => (DType::F32, DType::F32),
        Form::Bf16 => (DType::I32, DType::F32),
        Form::Int => (DType::I32, DType::I32),
    };
    let columns = vectors * lanes as i64;
    let x = b.param("x", word, [k, rows], Access::Read);
    let w = b.param("w", word, [k, columns], Access::Read);
    let y = b.param("y", sum_ty, [TIMES, rows, columns], Access::Write);
    let g = b.grid([TIMES])[0];
    let (zero, end) = (b.const_i64(0), b.const_i64(k));
    let none = if form == Form::Int { b.const_i32(0) } else { b.const_f32(0.0) };
    let none = b.splat(none, lanes);
    let starts: Vec<Value> = (0..vectors).map(|v| b.const_i64(v * lanes as i64)).collect();
    let rows: Vec<Value> = (0..rows).map(|r| b.const_i64(r)).collect();
    let step = |b: &mut Builder, i: Value, sums: &[Value]| {
        let ws: Vec<Value> = starts.iter().map(|v| b.load(w, &[i, *v], lanes)).collect();
        let mut next = sums.to_vec();
        for (r, sums) in rows.iter().zip(next.chunks_mut(ws.len())) {
            let one = b.load(x, &[i, *r], 1);
            let xs = b.splat(one, lanes);
            for (w, sum) in ws.iter().zip(sums) {
                *sum = match form {
                    Form::Float => b.fma(xs, *w, *sum),
                    Form::Bf16 => {
                        let (x, w) = (b.bitcast(xs, DType::BF16), b.bitcast(*w, DType::BF16));
                        b.dot(x, w, *sum)
                    }
                    Form::Int => {
                        let (x, w) = (b.bitcast(xs, DType::U8), b.bitcast(*w, DType::I8));
                        b.dot(x, w, *sum)
                    }
                };
            }
        }
        next
    };
    let sums = b.for_loop(zero, end, 1, LoopKind::Serial, &vec![none; rows.len() * starts.len()], step);
    for (r, sums) in rows.iter().zip(sums.chunks(starts.len())) {
        for (v, sum) in starts.iter().zip(sums) {
            b.store(y, &[g, *r, *v], *sum);
        }
    }
    b.finish()
}

fn main() {
    let filter = std::env::args().nth(1).unwrap_or_default();
    let none = Bindings::new();
    let mut compiled = Vec::new();
    for backend in Backend::all().into_iter().filter(|b| b.name.contains(&filter)) {
        let lanes = if backend.llvm { backend.target.vector_bits() / 32 } else { 4 };
        let steps = 2_000_000;
        let peak = |kernel: &Kernel, lanes: u32| {
            steps as f64 * limits::step_flops(lanes) / Runner::new(&backend, kernel, &none).time() / 1e9
        };
        println!("{}, {} bits", backend.name, 32 * lanes);
        println!("  f32 multiply-add {:7.1} GFLOP/s", peak(&limits::multiply_adds(steps, lanes), lanes));
        if backend.target.has("avx512bf16") {
            for (name, factors) in [
                ("bf16 dot        ", (DType::BF16, DType::BF16, DType::F32)),
                ("u8·i8 dot       ", (DType::U8, DType::I8, DType::I32)),
            ] {
                let (kernel, group) = limits::dots(steps, factors, lanes).expect("a product");
                println!("  {name} {:7.1} GFLOP/s", peak(&kernel, lanes * group));
            }
        }
        for (name, form, group) in
            [("f32", Form::Float, 1.0), ("bf16 dot", Form::Bf16, 2.0), ("u8·i8 dot", Form::Int, 4.0)]
        {
            if form != Form::Float && !backend.target.has("avx512bf16") {
                continue;
            }
            let shape = if lanes == 16 { (12, 2) } else { (4, 2) };
            let kernel = tile(form, 256, shape.0, shape.1, lanes);
            let flops = 512.0 * TIMES as f64 * (shape.0 * shape.1 * lanes as i64) as f64 * group;
            let rate = flops / Runner::new(&backend, &kernel, &none).time() / 1e9;
            println!("  tile {} by {} registers, {name:10} {rate:7.1} GFLOP/s", shape.0, shape.1);
        }
        let words = 64i64 << 20;
        let read = 4.0 * words as f64 / Runner::new(&backend, &limits::read(words, 1, lanes), &none).time();
        println!("  read             {:7.1} GB/s", read / 1e9);
        println!("  one row by {:24} {:>12} {:>12}  bytes", "", "cache GB/s", "memory GB/s");
        let forms = [
            (DType::F32, Form::Float),
            (DType::BF16, Form::Float),
            (DType::F16, Form::Float),
            (DType::F8E4M3, Form::Float),
            (DType::F4E2M1, Form::Float),
            (DType::I8, Form::Float),
            (DType::I4, Form::Float),
            (DType::BF16, Form::Bf16),
            (DType::F8E4M3, Form::Bf16),
            (DType::F4E2M1, Form::Bf16),
            (DType::I8, Form::Int),
            (DType::I4, Form::Int),
        ];
        for (dtype, form) in forms {
            if form != Form::Float && !backend.target.has("avx512bf16") {
                continue;
            }
            let mut gigabytes = |n: i64, rows: i64, lanes: u32| {
                let kernel = row(dtype, form, n, 2048, rows, lanes);
                let mut runner = Runner::new(&backend, &kernel, &none);
                compiled.push(runner.compile_seconds);
                dtype.bytes(n as u64 * 2048) as f64 / runner.time() / 1e9
            };
            // The best of a few tiles, in 256 KiB and in 256 MiB.
            let n = 128 * 8 / dtype.bits() as i64;
            let mut best = (0.0, 0.0, (0, 0));
            for (rows, wide) in [(2, 64), (4, 64), (4, 32), (8, 16), (4, 16), (8, 8)] {
                if wide < lanes {
                    continue;
                }
                let cache = gigabytes(n, rows, wide);
                if cache > best.0 {
                    best = (cache, 0.0, (rows, wide));
                }
            }
            let (rows, wide) = best.2;
            best.1 = gigabytes(n * 1024, rows, wide);
            let name = format!("{dtype} {}", ["as f32", "by bf16", "by bytes"][form as usize]);
            println!("    {name:31} {:12.1} {:12.1}  {rows} rows of {wide}", best.0, best.1);
        }
        let total: f64 = compiled.iter().sum();
        println!("  {:.1} ms a kernel to compile", 1e3 * total / compiled.len() as f64);
        compiled.clear();
    }
}
