//! Products in the tensor cores of a warp, and in those of a warpgroup: the emulator has the bits of the interpreter, which
//! has the sums.
#![cfg(feature = "llvm-backend")]

mod kernels;

use hadal_codegen::compile;
use hadal_codegen::kernels::Generated;
use hadal_codegen::processor::{CompiledKernel, Processor};
use hadal_ir::kernel::Access;
use hadal_ir::kernel::interpret::{Buffer, run};
use hadal_ir::{Func, Tensor, interpret};
use hadal_types::Bindings;
use kernels::gpu;
use kernels::ways::{PIPELINE, TILES, Way, arguments, call, emulated, emulated_result, every_part_is_needed, func};
use ptx_emulator::{FaultKind, FlopKind, Options};

/// Weights of a format, with scales for blocks of rows and columns.
type Weights = (&'static str, Option<[i64; 2]>);

/// `y[t, n] = gate(x w) g` with rows of a format, which may have scales for so many neighbours.
fn product((x, x_group): (&str, Option<i64>), (w, scales): Weights, [n, k]: [i64; 2]) -> Func {
    let (mut params, mut body) = (format!("%x: {x}[T, {k}], %w: {w}[{n}, {k}], %g: f32[T, {n}]"), String::new());
    let (mut left, mut right) = ("%x", "%w");
    if let Some([rows, columns]) = scales {
        let blocks = [(n + rows - 1) / rows, (k + columns - 1) / columns];
        params += &format!(", %s: f32[{}, {}]", blocks[0], blocks[1]);
        body += &format!("  %dw = dequantize %w, %s {{block = [{rows}, {columns}]}} : f32[{n}, {k}]\n");
        right = "%dw";
    }
    if let Some(group) = x_group {
        params += &format!(", %xs: f32[T, {}]", (k + group - 1) / group);
        body += &format!("  %dx = dequantize %x, %xs {{block = [1, {group}]}} : f32[T, {k}]\n");
        left = "%dx";
    }
    func(&format!(
        "symbols P in 0..64, T in 1..4096\nkernel @k({params}) -> (y: f32[T, {n}]) {{\n{body}  \
         %c = contract {left}, {right} {{spec = \"td,fd->tf\"}} : f32[T, {n}]\n  %y = mul %c, %g : f32[T, {n}]\n  \
         return %y\n}}\n"
    ))
}

/// Columns of heads, whose weights have scales of blocks that do not end where heads do.
fn heads([h, d, k]: [i64; 3]) -> Func {
    let (n, groups) = (h * d, (k + 127) / 128);
    func(&format!(
        "symbols P in 0..64, T in 1..4096\nkernel @k(%x: f8e4m3[T, {k}], %xs: f32[T, {groups}], %w: f8e4m3[{n}, {k}], \
         %s: f32[{}, {groups}]) -> (y: f32[T, {h}, {d}]) {{\n  \
         %dx = dequantize %x, %xs {{block = [1, 128]}} : f32[T, {k}]\n  \
         %dw = dequantize %w, %s {{block = [128, 128]}} : f32[{n}, {k}]\n  \
         %r = reshape %dw {{shape = [{h}, {d}, {k}]}} : f32[{h}, {d}, {k}]\n  \
         %y = contract %dx, %r {{spec = \"tc,hdc->thd\"}} : f32[T, {h}, {d}]\n  return %y\n}}\n",
        (n + 127) / 128
    ))
}

/// Of each head a product with weights that are stored by columns: what absorbs a projection.
fn by_columns(x: &str, [h, d, c]: [i64; 3]) -> Func {
    func(&format!(
        "symbols P in 0..64, T in 1..4096\nkernel @k(%x: {x}[T, {h}, {d}], %w: bf16[{h}, {d}, {c}]) -> (y: f32[T, {h}, {c}]) \
         {{\n  %y = contract %x, %w {{spec = \"thd,hdc->thc\"}} : f32[T, {h}, {c}]\n  return %y\n}}\n"
    ))
}

/// Rows times the weights that they choose.
fn experts(x: &str, w: &str, [e, choices, n, k]: [i64; 4]) -> Func {
    func(&format!(
        "symbols P in 0..64, T in 1..4096\nkernel @k(%x: {x}[T, {k}], %w: {w}[{e}, {n}, {k}], %e: i32[T, {choices}]) \
         -> (y: f32[T, {choices}, {n}]) {{\n  %1 = gather %w, %e {{axis = 0}} : {w}[T, {choices}, {n}, {k}]\n  \
         %y = contract %x, %1 {{spec = \"td,tkfd->tkf\"}} : f32[T, {choices}, {n}]\n  return %y\n}}\n"
    ))
}

/// The same with scales for blocks of either side.
fn scaled_experts([e, choices, n, k]: [i64; 4]) -> Func {
    let (blocks, groups) = ((n + 127) / 128, (k + 127) / 128);
    func(&format!(
        "symbols P in 0..64, T in 1..4096\nkernel @k(%x: f8e4m3[T, {k}], %xs: f32[T, {groups}], %w: f8e4m3[{e}, {n}, {k}], \
         %s: f32[{e}, {blocks}, {groups}], %e: i32[T, {choices}]) -> (y: f32[T, {choices}, {n}]) {{\n  \
         %dx = dequantize %x, %xs {{block = [1, 128]}} : f32[T, {k}]\n  \
         %dw = dequantize %w, %s {{block = [1, 128, 128]}} : f32[{e}, {n}, {k}]\n  \
         %1 = gather %dw, %e {{axis = 0}} : f32[T, {choices}, {n}, {k}]\n  \
         %y = contract %dx, %1 {{spec = \"td,tkfd->tkf\"}} : f32[T, {choices}, {n}]\n  return %y\n}}\n"
    ))
}

fn tiles(func: &Func) -> Generated {
    TILES.of(func)
}

/// What the interpreter of kernels and the emulator make of it, which is the same.
fn found(way: Way, func: &Func, made: &Generated, args: &[Tensor], bindings: &Bindings) -> Tensor {
    let kernel = &made.kernel;
    let result = func.ty(func.results[0].1);
    let shape = result.eval_shape(bindings).expect("sizes");
    let mut buffers: Vec<Buffer> = args.iter().map(|t| Buffer::from_bytes(t.dtype, t.to_bytes())).collect();
    buffers.push(Buffer::uninit(result.dtype, shape.iter().product()));
    assert!(kernel.params.last().is_some_and(|p| p.access == Access::Write));
    let mut emulated = buffers.clone();
    run(kernel, bindings, &mut buffers).unwrap_or_else(|e| panic!("{e}\n{kernel}"));
    let code = compile(kernel, &way.processor, false).unwrap_or_else(|e| panic!("{e}\n{kernel}"));
    let ptx = String::from_utf8_lossy(&code.code);
    assert!(ptx.contains(way.instruction), "{ptx}");
    gpu::assemble(&ptx);
    gpu::run(&code, kernel, bindings, &mut emulated, &Options::default()).unwrap_or_else(|e| panic!("{e}\n{kernel}"));
    let (expected, found) = (buffers.pop().expect("a result"), emulated.pop().expect("a result"));
    assert!(found.bytes == expected.bytes, "the emulator has other bits\n{}\n{kernel}", made.schedule);
    Tensor::from_bytes(result.dtype, &shape, &found.bytes).expect("a tensor")
}

fn check(way: Way, func: &Func, t: i64) {
    let made = way.of(func);
    let bindings = call(t, 0);
    let length = *func.ty(func.params[0]).eval_shape(&bindings).expect("sizes").last().expect("rows");
    for exact in [true, false] {
        let args = arguments(func, &bindings, exact);
        let found = found(way, func, &made, &args, &bindings);
        let expected = &interpret::eval_func(func, &args, &bindings).expect("it runs")[0];
        for i in 0..expected.len() {
            let (f, e) = (found.at(i), expected.at(i));
            // Roundings of partial sums are as many as steps of sixteen elements.
            let bound = if exact { 0.0 } else { 2e-6 * (1.0 + e.abs()) * (length as f64 / 320.0).max(1.0) };
            assert!((f - e).abs() <= bound, "element {i}: {f} for {e}\n{}", made.schedule);
        }
    }
}

#[test]
fn rows_meet_columns() {
    for (x, w, sizes, t) in [
        (("bf16", None), ("bf16", None), [64, 64], 33),
        // Ragged either way, and narrow.
        (("bf16", None), ("bf16", None), [70, 32], 1),
        (("bf16", None), ("bf16", None), [5, 96], 47),
        // Rows that are no bf16.
        (("f32", None), ("bf16", None), [24, 160], 19),
        (("f32", None), ("f8e4m3", Some([1, 64])), [40, 128], 40),
        // Blocks of either side, which end in the middle.
        (("f8e4m3", Some(64)), ("f8e4m3", Some([64, 32])), [72, 96], 21),
        (("f8e4m3", Some(128)), ("f8e4m3", Some([128, 128])), [160, 320], 65),
        (("f32", None), ("i8", Some([1, 32])), [16, 64], 17),
        // Sums of any length, in whole groups and others.
        (("bf16", None), ("bf16", None), [24, 88], 18),
        (("f32", None), ("bf16", None), [33, 13], 35),
        (("bf16", None), ("f8e4m3", Some([16, 32])), [20, 75], 16),
        (("f8e4m3", Some(64)), ("f8e4m3", Some([128, 128])), [12, 203], 5),
    ] {
        check(TILES, &product(x, w, sizes), t);
    }
}

#[test]
fn warpgroups_multiply_what_others_bring() {
    for (x, w, sizes, t) in [
        (("bf16", None), ("bf16", None), [64, 64], 33),
        // Several tiles of rows and columns, more stages than there are places.
        (("bf16", None), ("bf16", None), [264, 640], 300),
        // Columns and ends of rows that are not there.
        (("bf16", None), ("bf16", None), [70, 200], 1),
        (("bf16", None), ("bf16", None), [9, 8], 130),
        // Sums of groups, of one stage and of several, the last of which is shorter.
        (("f8e4m3", Some(128)), ("f8e4m3", Some([128, 128])), [160, 656], 65),
        (("f8e4m3", Some(256)), ("f8e4m3", Some([1, 128])), [40, 528], 20),
        (("f8e4m3", None), ("f8e4m3", Some([16, 1024])), [24, 1600], 3),
        (("f8e4m3", None), ("f8e4m3", None), [136, 384], 129),
    ] {
        check(PIPELINE, &product(x, w, sizes), t);
    }
}

/// Heads are no letter of their own: their columns are those of one matrix.
#[test]
fn columns_of_heads_are_columns() {
    let func = heads([4, 192, 256]);
    let made = PIPELINE.of(&func);
    assert!(made.schedule.contains("128x128 strip 128") && made.schedule.contains("grid []"), "{}", made.schedule);
    check(PIPELINE, &func, 33);
    check(TILES, &heads([3, 40, 160]), 18);
}

#[test]
fn weights_may_be_stored_by_columns() {
    for (x, sizes, t) in [("bf16", [3, 64, 72], 35), ("f32", [2, 40, 24], 17), ("f32", [1, 64, 128], 32)] {
        check(TILES, &by_columns(x, sizes), t);
    }
}

#[test]
fn rows_meet_what_they_choose() {
    for (x, w, sizes, t) in
        [("bf16", "bf16", [6, 2, 40, 64], 37), ("f32", "bf16", [3, 1, 64, 32], 20), ("bf16", "bf16", [16, 4, 8, 32], 9)]
    {
        check(TILES, &experts(x, w, sizes), t);
    }
    // More rows of an expert than a tile has, and experts whom nobody chooses.
    check(PIPELINE, &experts("bf16", "bf16", [2, 1, 40, 192]), 300);
    check(PIPELINE, &experts("bf16", "bf16", [24, 3, 136, 64]), 21);
    check(PIPELINE, &scaled_experts([5, 2, 192, 384]), 150);
    check(TILES, &scaled_experts([3, 2, 64, 256]), 20);
}

/// Bits of a row do not depend on how many there are.
#[test]
fn a_row_has_the_same_bits_in_every_batch() {
    let func = product(("f32", None), ("bf16", None), [40, 96]);
    let made = tiles(&func);
    let all = arguments(&func, &call(70, 0), false);
    let together = found(TILES, &func, &made, &all, &call(70, 0));
    for (first, t) in [(0, 1), (3, 31), (17, 53)] {
        let rows = |a: &Tensor| match a.shape[0] {
            70 => {
                let width = a.len() / 70;
                let reals = a.reals()[first * width..(first + t) * width].to_vec();
                Tensor::real(a.dtype, &[t, width], reals)
            }
            _ => a.clone(),
        };
        let args: Vec<Tensor> = all.iter().map(rows).collect();
        let alone = found(TILES, &func, &made, &args, &call(t as i64, 0));
        assert_eq!(alone.reals()[..], together.reals()[first * 40..(first + t) * 40]);
    }
}

#[test]
fn a_barrier_that_is_missing_is_noticed() {
    let func = product(("f8e4m3", Some(64)), ("f8e4m3", Some([64, 32])), [72, 160]);
    let kernel = tiles(&func).kernel;
    let code = compile(&kernel, &Processor::SM_90A, false).unwrap_or_else(|e| panic!("{e}"));
    let ptx = String::from_utf8(code.code.clone()).expect("PTX is text");
    let barriers: Vec<usize> = ptx.match_indices("bar.warp.sync").map(|(at, _)| at).collect();
    assert!(barriers.len() >= 3, "{ptx}");
    for at in barriers {
        let mut without = ptx.clone();
        let end = at + without[at..].find(';').expect("a statement");
        without.replace_range(at..=end, "");
        let code = CompiledKernel { code: without.into_bytes(), ..code.clone() };
        let fault = (0..4).find_map(|seed| emulated(&kernel, &code, &func, &call(37, 0), seed).err());
        assert_eq!(fault, Some(FaultKind::Race), "without the one at {at}\n{ptx}");
    }
}

/// Each wait, arrival, fence and wait for copies or products, and the swizzle of copies, is needed.
#[test]
fn whatever_a_pipeline_leaves_out_is_noticed() {
    // More stages than there are places.
    let func = product(("f8e4m3", Some(128)), ("f8e4m3", Some([128, 128])), [128, 1408]);
    let (kernel, call) = (PIPELINE.of(&func).kernel, call(140, 0));
    let code = compile(&kernel, &Processor::SM_90A, false).unwrap_or_else(|e| panic!("{e}"));
    let expected = emulated_result(&kernel, &code, &func, &call, 0).expect("it runs");
    every_part_is_needed(&code, |code, seed| {
        emulated_result(&kernel, code, &func, &call, seed).is_ok_and(|y| y == expected)
    });
}

/// What tensor cores multiply, and what is read and written, are what the product takes, and no more.
#[test]
fn tiles_multiply_and_read_what_they_should() {
    let [t, n, k] = [96, 192, 256];
    for (x, terms, bytes) in [("bf16", 1, 2), ("f32", 3, 4)] {
        let func = product((x, None), ("bf16", None), [n, k]);
        let kernel = tiles(&func).kernel;
        let code = compile(&kernel, &Processor::SM_90A, false).unwrap_or_else(|e| panic!("{e}"));
        gpu::assemble(std::str::from_utf8(&code.code).expect("PTX is text"));
        let report = emulated(&kernel, &code, &func, &call(t, 0), 1).expect("it runs");
        let near = |found: f64, expected: i64| {
            assert!((found / expected as f64 - 1.0).abs() < 0.05, "{x}: {found} {expected}")
        };
        near(report.flops[&FlopKind::TensorHalf] as f64, 2 * t * n * k * terms);
        // A tile of 32 rows reads all columns, and one of 64 columns all rows; then sums are gated.
        near(report.global_read as f64, t / 32 * n * k * 2 + n / 64 * t * k * bytes + t * n * 4);
        near(report.global_written as f64, t * n * 4);
    }
}

/// The same of a pipeline: a block reads its rows and columns once, whatever is multiplied.
#[test]
fn pipelines_multiply_and_read_what_they_should() {
    let [t, n, k] = [256, 512, 512];
    for (x, group, scales, bytes) in [("bf16", None, None, 2), ("f8e4m3", Some(128), Some([128, 128]), 1)] {
        let func = product((x, group), (x, scales), [n, k]);
        let made = PIPELINE.of(&func);
        let code = compile(&made.kernel, &Processor::SM_90A, false).unwrap_or_else(|e| panic!("{e}"));
        gpu::assemble(std::str::from_utf8(&code.code).expect("PTX is text"));
        let report = emulated(&made.kernel, &code, &func, &call(t, 0), 1).expect("it runs");
        let near = |found: f64, expected: i64| {
            assert!((found / expected as f64 - 1.0).abs() < 0.05, "{x}: {found} {expected}")
        };
        let kind = if bytes == 2 { FlopKind::TensorHalf } else { FlopKind::TensorFp8 };
        near(report.flops[&kind] as f64, 2 * t * n * k);
        let width = if bytes == 2 { 256 } else { 128 };
        // Scales of rows are far apart: for each a sector of 32 bytes; one of columns for each warp of eight.
        let scales = if bytes == 2 { 0 } else { n / width * (t + t / 128 * 8) * k / 128 * 32 };
        near(report.global_read as f64, t / 128 * n * k * bytes + n / width * t * k * bytes + t * n * 4 + scales);
        near(report.global_written as f64, t * n * 4);
    }
}
