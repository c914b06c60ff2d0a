//! Attention of prompts by warpgroups: the interpreter of kernels has the sums, the emulator what the interpreter has.
#![cfg(feature = "llvm-backend")]

mod kernels;

use hadal_codegen::compile;
use hadal_codegen::kernels::Ranges;
use hadal_codegen::processor::{CompiledKernel, Processor};
use hadal_ir::kernel::Kernel;
use hadal_ir::kernel::interpret::{Buffer, run};
use hadal_ir::{Func, Range, Tensor, interpret};
use hadal_types::{Bindings, Sym};
use kernels::gpu;
use kernels::ways::{PIPELINE, arguments, call, emulated, emulated_result, every_part_is_needed, func};
use ptx_emulator::FlopKind;

/// The attention of queries that share keys, `[heads, queries of each, columns of keys, columns of values]`.
fn grouped(q: &str, [g, h, d, e]: [i64; 4], rows: &str) -> Func {
    attention(
        &format!("%q: {q}[T, {g}, {h}, {d}], %k: bf16[P+T, {g}, {d}], %v: bf16[P+T, {g}, {e}]"),
        &format!("%q, %k, %v {{sets = [\"tghd,sgd sge {rows}\"], output = \"tghe\", scale = 0.3}}"),
        &format!("T, {g}, {h}, {e}"),
    )
}

fn attention(params: &str, call: &str, shape: &str) -> Func {
    func(&format!(
        "symbols P in 0..4096, T in 1..4096\nkernel @k({params}) -> (y: f32[{shape}]) {{\n  \
         %y = attention {call} : f32[{shape}]\n  return %y\n}}\n"
    ))
}

/// Of a row's elements the largest there is.
fn largest(rows: &[f64]) -> f64 {
    rows.iter().fold(0.0, |most, x| x.abs().max(most))
}

fn check(func: &Func, calls: &[(i64, i64)]) {
    let made = PIPELINE.of(func);
    for (t, p) in calls {
        let bindings = call(*t, *p);
        let args = arguments(func, &bindings, false);
        let expected = &interpret::eval_func(func, &args, &bindings).expect("it runs")[0];
        let [interpreted, emulated] = both(func, &args, &bindings);
        let most = largest(expected.reals());
        for i in 0..expected.len() {
            let (e, k, m) = (expected.at(i), f64::from(interpreted[i]), f64::from(emulated[i]));
            let bound = 2e-6 * (most + e.abs());
            assert!((k - e).abs() <= bound, "{t} after {p}, {i}: {k} for {e}\n{}", made.schedule);
            assert!((m - k).abs() <= bound, "{t} after {p}, {i}: emulated {m} for {k}\n{}", made.schedule);
        }
    }
}

fn code(kernel: &Kernel) -> CompiledKernel {
    compile(kernel, &Processor::SM_90A, false).unwrap_or_else(|e| panic!("{e}\n{kernel}"))
}

/// What the interpreter of kernels and the emulator make of it.
fn both(func: &Func, args: &[Tensor], bindings: &Bindings) -> [Vec<f32>; 2] {
    let kernel = PIPELINE.of(func).kernel;
    gpu::assemble(std::str::from_utf8(&code(&kernel).code).expect("PTX is text"));
    let result = func.ty(func.results[0].1);
    let count = result.eval_shape(bindings).expect("sizes").iter().product();
    let mut buffers: Vec<Buffer> = args.iter().map(|t| Buffer::from_bytes(t.dtype, t.to_bytes())).collect();
    buffers.push(Buffer::uninit(result.dtype, count));
    let emulated = gpu::emulated(&kernel, bindings, &buffers);
    run(&kernel, bindings, &mut buffers).unwrap_or_else(|e| panic!("{e}\n{kernel}"));
    [buffers, emulated].map(|all| all.last().expect("a result").to_f32())
}

#[test]
fn heads_that_share_keys_are_rows_of_a_tile() {
    for (q, sizes, rows, calls) in [
        // Each head by itself, and all heads; several tiles and blocks.
        ("f32", [2, 1, 64, 64], "causal", &[(1, 0), (130, 70), (300, 0)][..]),
        ("f32", [1, 8, 128, 128], "causal", &[(17, 0), (40, 129)]),
        // As many heads as do not divide a tile's rows.
        ("f32", [2, 7, 64, 64], "causal", &[(37, 60)]),
        // Columns that end within a panel, and bf16.
        ("bf16", [1, 4, 72, 40], "causal", &[(33, 31)]),
        ("bf16", [3, 2, 192, 128], "all", &[(9, 5), (70, 130)]),
        ("f32", [1, 2, 24, 8], "all", &[(64, 0)]),
    ] {
        check(&grouped(q, sizes, rows), calls);
    }
}

#[test]
fn sinks_terms_and_columns_that_are_both() {
    check(
        &attention(
            "%q: f32[T, 4, 72], %k: bf16[P+T, 72], %s: f32[4]",
            "%q, %k, %k, %s {sets = [\"thd,sd sd causal\"], output = \"thd\", sink = true, scale = 0.1}",
            "T, 4, 72",
        ),
        &[(5, 0), (70, 40)],
    );
}

/// Each wait, arrival, fence and wait for copies or products, and each swizzle, is needed.
#[test]
fn whatever_is_left_out_is_noticed() {
    // Two tiles for some grid indices, and so more blocks of keys than there are places.
    let func = grouped("f32", [1, 128, 16, 16], "causal");
    let (kernel, bindings) = (PIPELINE.of(&func).kernel, call(66, 80));
    let right = |code: &CompiledKernel, seed| emulated_result(&kernel, code, &func, &bindings, seed);
    let expected = right(&code(&kernel), 0).expect("it runs");
    every_part_is_needed(&code(&kernel), |code, seed| right(code, seed).is_ok_and(|y| y == expected));
}

/// Keys and values are read once for all rows of a tile, and multiplied in as many parts as queries and weights have.
#[test]
fn keys_and_values_are_read_once_for_a_tile() {
    let [t, p, h, d] = [96, 352, 8, 128];
    for (q, bytes, parts) in [("bf16", 2, 1), ("f32", 4, 3)] {
        let func = grouped(q, [1, h, d, d], "all");
        // As many grid indices as there are tiles.
        let ranges = Ranges::from([(Sym::T, Range { min: 1, max: t })]);
        let kernel = PIPELINE.within(&func, &ranges).kernel;
        let report = emulated(&kernel, &code(&kernel), &func, &call(t, p), 1).expect("it runs");
        let near = |found: f64, expected: i64| {
            assert!((found / expected as f64 - 1.0).abs() < 0.05, "{q}: {found} {expected}")
        };
        near(report.flops[&FlopKind::TensorHalf] as f64, 2 * t * h * (t + p) * d * (parts + 3));
        near(report.global_read as f64, t * h * d * bytes + t * h / 128 * 2 * (t + p) * d * 2);
        near(report.global_written as f64, t * h * d * 4);
    }
}
