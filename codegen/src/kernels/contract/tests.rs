use super::schedule::{Form, candidates};
use super::variants::variants;
use super::{Desc, emit};
use crate::cranelift::jit::run_compiled;
use crate::kernels::{Ranges, Target};
use crate::processor::{CompiledKernel, Processor};
use hadal_ir::kernel::Kernel;
use hadal_ir::kernel::interpret::{Buffer, run};
use hadal_ir::module::STEP;
use hadal_ir::ops::{Dequantize, Gather, Transpose};
use hadal_ir::{Bindings, Func, Range, Tensor, interpret};
use hadal_types::{DType, Dim, Sym, TensorType};
use proptest::prelude::*;

/// Deterministic elements in the given format, the small numbers that all formats can tell apart.
fn tensor(dtype: DType, shape: &[usize], seed: u64) -> Tensor {
    let n: usize = shape.iter().product();
    let next = |i: usize| {
        let x = (seed.wrapping_mul(0x9E37_79B9) + i as u64).wrapping_mul(0xD134_2543_DE82_EF95).rotate_left(23);
        (x.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 40) as f64 / (1u64 << 24) as f64
    };
    match dtype {
        DType::I32 | DType::I64 => Tensor::int(dtype, shape, (0..n).map(|i| (next(i) * 8.0) as i64 - 1).collect()),
        DType::Bool => Tensor::int(dtype, shape, (0..n).map(|i| i64::from(next(i) > 0.6)).collect()),
        DType::U4 | DType::U8 => Tensor::int(dtype, shape, (0..n).map(|i| (next(i) * 16.0) as i64).collect()),
        DType::I4 | DType::I8 => Tensor::int(dtype, shape, (0..n).map(|i| (next(i) * 16.0) as i64 - 8).collect()),
        DType::F8E8M0 => Tensor::real(dtype, shape, (0..n).map(|i| (next(i) * 6.0 - 3.0).floor().exp2()).collect()),
        _ => Tensor::real(dtype, shape, (0..n).map(|i| dtype.round(next(i) * 2.0 - 1.0)).collect()),
    }
}

/// The function's parameters with these symbols.
pub(crate) fn arguments(func: &Func, bindings: &Bindings, seed: u64) -> Vec<Tensor> {
    let shape = |v| func.ty(v).eval_shape(bindings).unwrap();
    func.params.iter().zip(0..).map(|(p, i)| tensor(func.ty(*p).dtype, &shape(*p), seed * 31 + i)).collect()
}

/// Runs the kernel in the interpreter; results in order.
pub(crate) fn interpreted(kernel: &Kernel, func: &Func, args: &[Tensor], bindings: &Bindings) -> Vec<Buffer> {
    let mut buffers: Vec<Buffer> = args.iter().map(|t| Buffer::from_bytes(t.dtype, t.to_bytes())).collect();
    for (_, r) in &func.results {
        let ty = func.ty(*r);
        buffers.push(Buffer::uninit(ty.dtype, ty.eval_shape(bindings).unwrap().iter().product()));
    }
    run(kernel, bindings, &mut buffers).unwrap_or_else(|e| panic!("{e}\n{kernel}"));
    buffers.split_off(args.len())
}

/// All candidate schedules agree with the graph interpreter, and (compiled) with the kernel interpreter bit for bit.
fn check(text: &str, bindings: &[(Sym, i64)], tolerance: f64) -> Vec<String> {
    let func = function(text);
    let bindings: Bindings = bindings.iter().copied().collect();
    check_func(&func, &bindings, tolerance, 7)
}

pub(crate) fn function(text: &str) -> Func {
    let module = hadal_ir::text::parse_module(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    hadal_ir::verify::module(&module).unwrap();
    module.funcs[0].clone()
}

/// Registers of 512 bits and dot products, with a cache so small that sums of everyday length are cut into chunks.
fn wide() -> Target {
    Target { lanes: 16, registers: 32, dots: true, warpgroups: false, cache: 4 * 32 * 64 }
}

/// Lanes of a warp.
fn warp() -> Target {
    Target { lanes: 128, registers: 32, dots: false, ..wide() }
}

fn check_func(func: &Func, bindings: &Bindings, tolerance: f64, seed: u64) -> Vec<String> {
    let args = arguments(func, bindings, seed);
    let expected = interpret::eval_func(func, &args, bindings).unwrap();
    let desc = Desc::of(func).expect("a product-sum");
    let schedules = candidates(&desc, &Target::default());
    assert!(!schedules.is_empty(), "no schedule for\n{desc}");
    assert!(!candidates(&desc, &wide()).is_empty(), "no schedule for\n{desc}");
    let step = Ranges::from([(Sym::T, Range { min: 1, max: STEP })]);
    let grouped = [desc.grouped(), desc.clone().within(&step).grouped()];
    for desc in grouped.iter().flatten().chain([&desc]) {
        for s in [Target::default(), wide(), warp()].iter().flat_map(|target| candidates(desc, target)) {
            let kernel = emit::emit(desc, &s);
            let errors = hadal_ir::kernel::verify::verify(&kernel);
            assert!(errors.is_empty(), "{errors:?}\n{kernel}");
            let results = interpreted(&kernel, func, &args, bindings);
            for (buffer, expected) in results.iter().zip(&expected) {
                close(buffer, expected, tolerance, &|| format!("{}\n{desc}\n{kernel}", s.show(desc)));
            }
            compiled(&kernel, func, &args, bindings, &results, (desc.epilogue.is_heavy(), s.register > 8));
        }
        for target in [Target::default(), wide(), warp()] {
            let all = candidates(desc, &target);
            let Some(chosen) = all.first() else { continue };
            let mut variants = variants(desc, chosen, &target);
            // Of many, another few each time.
            while variants.len() > 2 {
                variants.swap_remove(seed as usize % variants.len());
            }
            let expected = interpreted(&emit::emit(desc, chosen), func, &args, bindings);
            for s in variants {
                let kernel = emit::emit(desc, &s);
                let errors = hadal_ir::kernel::verify::verify(&kernel);
                assert!(errors.is_empty(), "{errors:?}\n{kernel}");
                let results = interpreted(&kernel, func, &args, bindings);
                let same = results.iter().zip(&expected).all(|(a, b)| a.bytes == b.bytes);
                assert!(same, "{} has other bits than {}\n{desc}\n{kernel}", s.show(desc), chosen.show(desc));
                compiled(&kernel, func, &args, bindings, &results, (desc.epilogue.is_heavy(), s.register > 8));
            }
        }
    }
    schedules.iter().map(|s| s.show(&desc)).collect()
}

/// What was written is what was expected, up to `tolerance` and the rounding of the result's format.
pub(crate) fn close(buffer: &Buffer, expected: &Tensor, tolerance: f64, what: &dyn Fn() -> String) {
    let found = Tensor::from_bytes(expected.dtype, &expected.shape, &buffer.bytes).unwrap();
    let step = match expected.dtype {
        DType::F32 => 0.0,
        DType::BF16 => 1.0 / 128.0,
        _ => 1.0 / 8.0,
    };
    let written = || (0..expected.len()).filter(|i| buffer.initialised[*i]);
    for i in written() {
        let (e, f) = (expected.at(i), found.at(i));
        let near = (e - f).abs() <= tolerance * (1.0 + e.abs()) + step * e.abs();
        assert!(near, "element {i}: {e} expected, {f} found, {}", what());
    }
    assert!(written().count() > 0 || expected.is_empty());
}

/// Machine code writes the same bits (but for transcendental functions) as the interpreter, with the grid cut or whole.
pub(crate) fn compiled(
    kernel: &Kernel,
    func: &Func,
    args: &[Tensor],
    bindings: &Bindings,
    expected: &[Buffer],
    (approximate, wide): (bool, bool),
) {
    let mut buffers: Vec<Buffer> = args.iter().map(|t| Buffer::from_bytes(t.dtype, t.to_bytes())).collect();
    for (_, r) in &func.results {
        let ty = func.ty(*r);
        buffers.push(Buffer::uninit(ty.dtype, ty.eval_shape(bindings).unwrap().iter().product()));
    }
    if let Some(code) = code(kernel, wide) {
        let mut buffers = buffers.clone();
        run_compiled(kernel, &code, bindings, &mut buffers, &[1, 3]).unwrap();
        for (found, expected) in buffers[args.len()..].iter().zip(expected) {
            // Transcendental functions are correctly rounded in the interpreter and within 2 ulp in code.
            let close = || {
                let (a, b) = (found.to_f32(), expected.to_f32());
                approximate && a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 1e-6 * (1.0 + b.abs()))
            };
            assert!(found.bytes == expected.bytes || close(), "code differs from the interpreter\n{kernel}");
        }
    }
}

/// Code by LLVM for the best level that this machine has, where this build has it; else by Cranelift, but not of what
/// is for wide registers: nobody runs that through it, and it takes minutes for what needs so many. Not of what is for
/// warps, which the emulator runs in tests of their own.
fn code(kernel: &Kernel, wide: bool) -> Option<CompiledKernel> {
    if kernel.is_for_warps() {
        return None;
    }
    #[cfg(feature = "llvm-backend")]
    if let Some(best) = Processor::LEVELS.iter().rfind(|level| level.is_here()) {
        return Some(crate::llvm::compile(kernel, best, crate::llvm::Options::default()).unwrap());
    }
    (!wide).then(|| crate::cranelift::compile(kernel, &Processor::X86_64_V3).unwrap())
}

/// One kernel function: parameters, body, result type.
pub(crate) fn kernel(params: &str, body: &str, result: &str) -> String {
    format!("symbols P in 0..64, T in 1..64\nkernel @k({params}) -> (y: {result}) {{\n{body}\n  return %y\n}}\n")
}

fn rows(x: &str, w: &str, n: usize) -> String {
    let body = format!("  %y = contract %x, %w {{spec = \"td,fd->tf\"}} : f32[T, {n}]");
    kernel(&format!("%x: {x}, %w: {w}"), &body, &format!("f32[T, {n}]"))
}

#[test]
fn matrix_times_rows() {
    for t in [1, 3, 4, 9, 13] {
        let schedules = check(&rows("f32[T, 37]", "bf16[21, 37]", 21), &[(Sym::T, t)], 1e-5);
        assert!(schedules[0].contains("convert Some(4)"), "{schedules:?}");
        check(&rows("f32[T, 64]", "f32[32, 64]", 32), &[(Sym::T, t)], 1e-5);
        check(&rows("bf16[T, 16]", "f16[5, 16]", 5), &[(Sym::T, t)], 1e-5);
        check(&rows("f32[T, 3]", "f8e4m3[40, 3]", 40), &[(Sym::T, t)], 1e-5);
    }
}

#[test]
fn a_row_has_the_same_bits_in_every_batch() {
    for (w, n) in [("bf16[21, 37]", 21), ("f32[32, 37]", 32)] {
        let func = function(&rows("f32[T, 37]", w, n));
        let desc = Desc::of(&func).unwrap();
        for s in [Target::default(), wide()].iter().flat_map(|t| candidates(&desc, t)) {
            let kernel = emit::emit(&desc, &s);
            let run = |t: i64| {
                let bindings = Bindings::from([(Sym::T, t)]);
                let all = arguments(&func, &Bindings::from([(Sym::T, 13)]), 3);
                let x = Tensor::real(DType::F32, &[t as usize, 37], all[0].reals()[..t as usize * 37].to_vec());
                interpreted(&kernel, &func, &[x, all[1].clone()], &bindings).remove(0).bytes
            };
            let all = run(13);
            for t in [1, 3, 7, 8] {
                let some = run(t);
                assert_eq!(all[..some.len()], some, "{}", s.show(&desc));
            }
        }
    }
}

/// Tiles of twelve rows, of four and of one; chunks; columns that are missing in the last block; rows in bf16.
#[test]
fn many_rows_meet_packed_columns() {
    for (x, w, n, k) in [("f32", "bf16", 40, 84), ("bf16", "bf16", 33, 70), ("bf16", "f16", 64, 40)] {
        let text = rows(&format!("{x}[T, {k}]"), &format!("{w}[{n}, {k}]"), n);
        let func = function(&text);
        let preferred = &candidates(&Desc::of(&func).unwrap(), &wide())[0];
        assert_eq!((preferred.form, preferred.pairs), (Form::Packed, x == w), "{preferred:?}");
        check(&text, &[(Sym::T, 29)], 1e-5);
    }
    let scaled = "  %1 = dequantize %q, %s {block = [4, 16]} : f32[10, 150]
  %y = contract %x, %1 {spec = \"td,fd->tf\"} : f32[T, 10]";
    let scaled = kernel("%x: bf16[T, 150], %q: f8e4m3[10, 150], %s: f32[3, 10]", scaled, "f32[T, 10]");
    check(&scaled, &[(Sym::T, 17)], 1e-5);
    for (codes, scales, group) in [("f4e2m1", "f8e8m0", 32), ("i8", "f16", 48), ("f8e4m3", "f32", 128)] {
        let body = format!(
            "  %1 = dequantize %q, %s {{block = [1, {group}]}} : f32[42, 150]
  %y = contract %x, %1 {{spec = \"td,fd->tf\"}} : f32[T, 42]"
        );
        let groups = (150 + group - 1) / group;
        let params = format!("%x: bf16[T, 150], %q: {codes}[42, 150], %s: {scales}[42, {groups}]");
        let text = kernel(&params, &body, "f32[T, 42]");
        let preferred = &candidates(&Desc::of(&function(&text)).unwrap(), &wide())[0];
        assert!(preferred.form == Form::Packed && preferred.pairs && preferred.group == group, "{preferred:?}");
        check(&text, &[(Sym::T, 17)], 1e-5);
    }
}

/// Codes, elements that share a scale, those that share a scale of scales, and whether there are offsets.
pub(crate) type Codes = (&'static str, usize, Option<usize>, bool);

/// A product of rows of bytes, of which `block` share a scale, by codes.
pub(crate) fn of_bytes((codes, group, over, offsets): Codes, n: usize, k: usize, block: usize) -> String {
    let groups = k.div_ceil(group);
    let mut params = format!("%x: i8[T, {k}], %xs: f32[T, {}], %q: {codes}[{n}, {k}]", k / block);
    let mut body = format!("  %0 = dequantize %x, %xs {{block = [1, {block}]}} : f32[T, {k}]\n");
    let mut part = |name: &str| {
        let Some(over) = over else {
            params += &format!(", %{name}: f16[{n}, {groups}]");
            return format!("%{name}");
        };
        params += &format!(", %{name}: u8[{n}, {groups}], %{name}d: f16[{n}, {}]", k.div_ceil(over));
        let block = over / group;
        body += &format!("  %{name}s = dequantize %{name}, %{name}d {{block = [1, {block}]}} : f32[{n}, {groups}]\n");
        format!("%{name}s")
    };
    let scales = part("s");
    let offsets = if offsets { format!(", {}", part("m")) } else { String::new() };
    body += &format!("  %w = dequantize %q, {scales}{offsets} {{block = [1, {group}]}} : f32[{n}, {k}]\n");
    body += &format!("  %y = contract %0, %w {{spec = \"td,fd->tf\"}} : f32[T, {n}]");
    kernel(&params, &body, &format!("f32[T, {n}]"))
}

/// Forms that sum in f32 add up to a thousand products of magnitudes up to 64.
pub(crate) const OF_BYTES_TOLERANCE: f64 = 1e-3;

/// Formats of weights, with widths of rows, and how many elements of a row share a scale.
pub(crate) const OF_BYTES: [(Codes, &[[usize; 2]]); 12] = [
    (("i8", 128, None, false), &[[256, 128], [320, 32]]),
    (("i8", 64, None, false), &[[64, 64], [160, 32]]),
    (("i8", 32, None, false), &[[128, 32], [544, 32]]),
    (("i8", 16, Some(256), false), &[[256, 32]]),
    (("i8", 576, None, false), &[[576, 64]]),
    (("i4", 128, None, false), &[[384, 128], [224, 32]]),
    (("i4", 64, None, false), &[[1088, 64], [256, 32]]),
    (("i4", 32, None, false), &[[256, 32], [576, 32]]),
    (("u4", 32, None, true), &[[128, 32], [672, 32]]),
    (("u4", 32, Some(256), true), &[[768, 32]]),
    (("f4e2m1", 32, None, false), &[[544, 32]]),
    (("i4", 16, None, true), &[[256, 32], [320, 64]]),
];

#[test]
fn rows_of_bytes_meet_codes_that_are_stored_as_rows() {
    for (i, (codes, widths)) in OF_BYTES.into_iter().enumerate() {
        let [k, block] = widths[i % widths.len()];
        check(&of_bytes(codes, [42, 64][i % 2], k, block), &[(Sym::T, 11)], OF_BYTES_TOLERANCE);
    }
}

/// A step's rows have the same bits whatever their number, in streams of columns and in pairs of bf16.
#[test]
fn rows_of_a_step_have_the_same_bits() {
    let step = Ranges::from([(Sym::T, Range { min: 1, max: STEP })]);
    for (x, params, body) in [
        ("f32", "%w: bf16[71, 84]", "%w"),
        ("bf16", "%w: bf16[71, 84]", "%w"),
        ("bf16", "%q: f8e4m3[71, 84], %s: f32[18, 2]", "block = [4, 64]"),
        ("bf16", "%q: f4e2m1[71, 84], %s: f8e8m0[71, 3]", "block = [1, 32]"),
        ("f32", "%q: i8[71, 84], %s: f16[71, 3]", "block = [1, 32]"),
    ] {
        let dequantize = match body.strip_prefix("block") {
            Some(_) => format!("%1 = dequantize %q, %s {{{body}}} : f32[71, 84]\n"),
            None => String::new(),
        };
        let w = if dequantize.is_empty() { "%w" } else { "%1" };
        let body = format!("{dequantize}  %y = contract %x, {w} {{spec = \"td,fd->tf\"}} : f32[T, 71]");
        let func = function(&kernel(&format!("%x: {x}[T, 84], {params}"), &body, "f32[T, 71]"));
        let desc = Desc::of(&func).unwrap().within(&step);
        in_every_step(&func, &desc, 1e-5);
        let preferred = &candidates(&desc, &wide())[0];
        assert!(preferred.step && preferred.pairs == (x == "bf16"), "{}", preferred.show(&desc));
    }
}

/// All steps of up to eight rows agree with the graph interpreter, and to the last bit with each other.
fn in_every_step(func: &Func, desc: &Desc, tolerance: f64) {
    for s in candidates(desc, &wide()).into_iter().filter(|s| s.step) {
        let made = emit::emit(desc, &s);
        let errors = hadal_ir::kernel::verify::verify(&made);
        assert!(errors.is_empty(), "{errors:?}\n{made}");
        let run = |t: usize| {
            let bindings = Bindings::from([(Sym::T, t as i64)]);
            let mut args = arguments(func, &Bindings::from([(Sym::T, 8)]), 3);
            for (arg, param) in args.iter_mut().zip(&func.params) {
                if func.ty(*param).shape[0] == Dim::from(Sym::T) {
                    let (shape, bytes) = ([&[t], &arg.shape[1..]].concat(), arg.to_bytes());
                    *arg = Tensor::from_bytes(arg.dtype, &shape, &bytes[..bytes.len() / 8 * t]).unwrap();
                }
            }
            let found = interpreted(&made, func, &args, &bindings);
            let expected = interpret::eval_func(func, &args, &bindings).unwrap();
            close(&found[0], &expected[0], tolerance, &|| s.show(desc));
            if t == 8 {
                compiled(&made, func, &args, &bindings, &found, (false, s.register > 8));
            }
            found[0].bytes.clone()
        };
        let all = run(8);
        for t in [1, 3] {
            let some = run(t);
            assert_eq!(all[..some.len()], some, "{}", s.show(desc));
        }
    }
}

#[test]
fn block_scales_ragged_and_shifted() {
    let body = |spec: &str| {
        format!(
            "  %1 = dequantize %q, %s {{block = [4, 8]}} : f32[10, 20]
  %2 = slice %1 {{axis = 0, start = 3, len = 6}} : f32[6, 20]
  %3 = slice %2 {{axis = 1, start = 5, len = 13}} : f32[6, 13]
  %y = contract %x, %3 {{spec = \"{spec}\"}} : f32[T, 6]"
        )
    };
    for t in [1, 9] {
        let text = kernel("%x: f32[T, 13], %q: f8e4m3[10, 20], %s: f32[3, 3]", &body("td,fd->tf"), "f32[T, 6]");
        check(&text, &[(Sym::T, t)], 1e-5);
        let whole = "  %1 = dequantize %q, %s {block = [4, 8]} : f32[10, 20]
  %y = contract %x, %1 {spec = \"td,fd->tf\"} : f32[T, 10]";
        let text = kernel("%x: f32[T, 20], %q: f8e4m3[10, 20], %s: f8e8m0[3, 3]", whole, "f32[T, 10]");
        let schedules = check(&text, &[(Sym::T, t)], 1e-5);
        assert!(schedules[0].starts_with("dot") && schedules[0].contains("convert Some"), "{schedules:?}");
        // The other way round: the summed letter is the blocks' first axis.
        let turned = "  %1 = dequantize %q, %s {block = [4, 8]} : f32[10, 20]
  %y = contract %x, %1 {spec = \"td,df->tf\"} : f32[T, 20]";
        let text = kernel("%x: f32[T, 10], %q: f8e4m3[10, 20], %s: f32[3, 3]", turned, "f32[T, 20]");
        assert!(check(&text, &[(Sym::T, t)], 1e-5)[0].starts_with("outer"));
    }
}

#[test]
fn codes_with_offsets_and_scales_of_scales() {
    let params = |q: &str, more: &str, t: i64| {
        let scales = "%s: u8[6, 4], %d: f16[6, 2], %m: f16[6, 4]";
        (format!("%x: f32[T, 32], %q: {q}[6, 32], {scales}{more}"), [(Sym::T, t)])
    };
    let nested = "  %0 = dequantize %s, %d {block = [1, 2]} : f32[6, 4]\n";
    let whole = "  %1 = dequantize %q, %0, %m {block = [1, 8]} : f32[6, 32]
  %y = contract %x, %1 {spec = \"td,fd->tf\"} : f32[T, 6]";
    // The same along the other axis, and a part of it in vectors that do not divide it.
    let turned = "  %1 = dequantize %q, %0, %m {block = [1, 8]} : f32[6, 32]
  %2 = slice %x {axis = 1, start = 0, len = 6} : f32[T, 6]
  %y = contract %2, %1 {spec = \"td,df->tf\"} : f32[T, 32]";
    let part = "  %1 = dequantize %q, %0, %m {block = [1, 8]} : f32[6, 32]
  %2 = slice %1 {axis = 1, start = 8, len = 22} : f32[6, 22]
  %3 = slice %x {axis = 1, start = 0, len = 22} : f32[T, 22]
  %y = contract %3, %2 {spec = \"td,fd->tf\"} : f32[T, 6]";
    for q in ["u4", "i4", "u8", "i8", "f4e2m1"] {
        for t in [1, 5] {
            let (params, bindings) = params(q, "", t);
            let schedules = check(&kernel(&params, &format!("{nested}{whole}"), "f32[T, 6]"), &bindings, 1e-5);
            assert!(schedules[0].starts_with("dot"), "{schedules:?}");
            assert!(
                check(&kernel(&params, &format!("{nested}{turned}"), "f32[T, 32]"), &bindings, 1e-5)[0]
                    .starts_with("outer")
            );
            check(&kernel(&params, &format!("{nested}{part}"), "f32[T, 6]"), &bindings, 1e-5);
        }
    }
    // Experts, chosen by numbers of which one does not exist.
    let experts = "  %1 = dequantize %q, %s, %m {block = [1, 1, 8]} : f32[5, 6, 16]
  %2 = gather %1, %e {axis = 0} : f32[T, 2, 6, 16]
  %y = contract %x, %2 {spec = \"td,tkfd->tkf\"} : f32[T, 2, 6]";
    let text = kernel(
        "%x: f32[T, 16], %q: u4[5, 6, 16], %s: f16[5, 6, 2], %m: f16[5, 6, 2], %e: i32[T, 2]",
        experts,
        "f32[T, 2, 6]",
    );
    check(&text, &[(Sym::T, 3)], 1e-5);
    // Rows of four-bit codes that begin inside a byte have no vectors.
    let odd = "  %1 = dequantize %q, %s {block = [1, 8]} : f32[6, 15]
  %y = contract %x, %1 {spec = \"td,fd->tf\"} : f32[T, 6]";
    let odd = function(&kernel("%x: f32[T, 15], %q: i4[6, 15], %s: f16[6, 2]", odd, "f32[T, 6]"));
    assert!(candidates(&Desc::of(&odd).unwrap(), &Target::default()).is_empty());
}

#[test]
fn absorbed_weights_are_slices_of_a_reshape() {
    let body = "  %1 = dequantize %q, %s {block = [4, 8]} : f32[14, 16]
  %2 = reshape %1 {shape = [2, 7, 16]} : f32[2, 7, 16]
  %3 = slice %2 {axis = 1, start = 0, len = 3} : f32[2, 3, 16]
  %y = contract %x, %3 {spec = \"thd,hdc->thc\"} : f32[T, 2, 16]";
    let text = kernel("%x: f32[T, 2, 3], %q: f8e4m3[14, 16], %s: f32[4, 2]", body, "f32[T, 2, 16]");
    let out = "  %1 = reshape %w {shape = [2, 7, 16]} : bf16[2, 7, 16]
  %2 = slice %1 {axis = 1, start = 3, len = 4} : bf16[2, 4, 16]
  %3 = contract %x, %2 {spec = \"thc,hdc->thd\"} : f32[T, 2, 4]
  %y = reshape %3 {shape = [T, 8]} : f32[T, 8]";
    let out = kernel("%x: f32[T, 2, 16], %w: bf16[14, 16]", out, "f32[T, 8]");
    for t in [1, 5, 9] {
        check(&text, &[(Sym::T, t)], 1e-5);
        check(&out, &[(Sym::T, t)], 1e-5);
    }
}

#[test]
fn merged_heads_are_one_summed_letter() {
    let body = "  %1 = reshape %x {shape = [T, 12]} : f32[T, 12]
  %y = contract %1, %w {spec = \"td,fd->tf\"} : f32[T, 9]";
    check(&kernel("%x: f32[T, 3, 4], %w: f32[9, 12]", body, "f32[T, 9]"), &[(Sym::T, 6)], 1e-5);
}

#[test]
fn experts_chosen_by_indices() {
    let body = "  %1 = dequantize %q, %s {block = [1, 4, 8]} : f32[5, 10, 12]
  %2 = gather %1, %e {axis = 0} : f32[T, 2, 10, 12]
  %3 = contract %x, %2 {spec = \"td,tkfd->tkf\"} : f32[T, 2, 10]
  %4 = broadcast %p {shape = [T, 2, 10], dims = [0, 1]} : f32[T, 2, 10]
  %y = mul %3, %4 : f32[T, 2, 10]";
    let params = "%x: f32[T, 12], %q: f8e4m3[5, 10, 12], %s: f32[5, 3, 2], %e: i32[T, 2], %p: f32[T, 2]";
    let up = kernel(params, body, "f32[T, 2, 10]");
    let down = "  %1 = gather %w, %e {axis = 0} : bf16[T, 2, 6, 10]
  %y = contract %x, %1 {spec = \"tkf,tkdf->td\"} : f32[T, 6]";
    let down = kernel("%x: f32[T, 2, 10], %w: bf16[5, 6, 10], %e: i64[T, 2]", down, "f32[T, 6]");
    let weighted = kernel(
        "%x: f32[T, 2, 10], %p: f32[T, 2]",
        "  %y = contract %x, %p {spec = \"tkd,tk->td\"} : f32[T, 10]",
        "f32[T, 10]",
    );
    for t in [1, 4] {
        check(&up, &[(Sym::T, t)], 1e-5);
        check(&down, &[(Sym::T, t)], 1e-5);
        check(&weighted, &[(Sym::T, t)], 1e-5);
    }
}

#[test]
fn epilogues_and_appends() {
    let body = "  %1 = contract %x, %w {spec = \"td,fd->tf\"} : f32[T, 12]
  %2 = cast %b {to = f32} : f32[12]
  %3 = broadcast %2 {shape = [T, 12], dims = [1]} : f32[T, 12]
  %4 = add %1, %3 : f32[T, 12]
  %5 = sigmoid %4 : f32[T, 12]
  %6 = mul %4, %5 : f32[T, 12]
  %y = add %6, %r : f32[T, 12]";
    let bias = kernel("%x: f32[T, 8], %w: bf16[12, 8], %b: bf16[12], %r: f32[T, 12]", body, "f32[T, 12]");
    let rows = "  %1 = contract %x, %w {spec = \"td,fd->tf\"} : f32[T, 12]
  %2 = reshape %1 {shape = [T, 3, 4]} : f32[T, 3, 4]
  %y = append %k, %2 : bf16[P+T, 3, 4]";
    let rows = kernel("%x: f32[T, 8], %w: f32[12, 8], %k: bf16[P, 3, 4]", rows, "bf16[P+T, 3, 4]");
    let turned = "  %1 = contract %x, %w {spec = \"td,fd->tf\"} : f32[T, 12]
  %y = transpose %1 {perm = [1, 0]} : f32[12, T]";
    let turned = kernel("%x: f32[T, 8], %w: f32[12, 8]", turned, "f32[12, T]");
    for t in [1, 5, 8] {
        check(&bias, &[(Sym::T, t)], 1e-5);
        check(&turned, &[(Sym::T, t)], 1e-5);
        for p in [0, 3] {
            check(&rows, &[(Sym::T, t), (Sym::P, p)], 1e-5);
        }
    }
}

#[test]
fn symbolic_columns_and_sums() {
    let keys = kernel(
        "%q: f32[T, 3, 8], %k: bf16[P+T, 3, 8]",
        "  %y = contract %q, %k {spec = \"thd,shd->ths\"} : f32[T, 3, P+T]",
        "f32[T, 3, P+T]",
    );
    // A product of symbols has no affine size, so one of the two is fixed here.
    let one = keys.replace("[T, 3", "[2, 3");
    let weighted = kernel(
        "%w: f32[2, 3, P+T], %v: bf16[P+T, 3, 12]",
        "  %y = contract %w, %v {spec = \"ths,shc->thc\"} : f32[2, 3, 12]",
        "f32[2, 3, 12]",
    );
    assert!(Desc::of(&function(&keys)).is_none());
    for (t, p) in [(1, 0), (5, 2), (3, 9)] {
        check(&one, &[(Sym::T, t), (Sym::P, p)], 1e-5);
        check(&weighted, &[(Sym::T, t), (Sym::P, p)], 1e-5);
    }
}

#[test]
fn other_functions_are_refused() {
    let refused = |params: &str, body: &str, result: &str| {
        let func = function(&kernel(params, body, result));
        assert!(Desc::of(&func).and_then(|d| super::schedule::select(&d, &Target::default())).is_none(), "{body}");
    };
    refused("%x: f32[4]", "  %y = exp %x : f32[4]", "f32[4]");
    refused(
        "%x: f32[T, 8], %w: f32[6, 8]",
        "  %1 = contract %x, %w {spec = \"td,fd->tf\"} : f32[T, 6]\n  %y = reduce %1 {kind = sum, axes = [1]} : f32[T]",
        "f32[T]",
    );
    refused(
        "%x: f32[T, 8], %w: f32[6, 8]",
        "  %1 = exp %x : f32[T, 8]\n  %y = contract %1, %w {spec = \"td,fd->tf\"} : f32[T, 6]",
        "f32[T, 6]",
    );
    // A truth value made real, and the whole of an appended state.
    refused(
        "%x: f32[T, 8], %w: f32[6, 8], %z: f32[T, 6]",
        "  %1 = contract %x, %w {spec = \"td,fd->tf\"} : f32[T, 6]\n  %2 = lt %1, %z : bool[T, 6]\n  %y = cast %2 {to = \
         f32} : f32[T, 6]",
        "f32[T, 6]",
    );
    refused(
        "%x: f32[T, 8], %w: f32[6, 8], %s: f32[P, 6]",
        "  %1 = contract %x, %w {spec = \"td,fd->tf\"} : f32[T, 6]\n  %2 = append %s, %1 : f32[P+T, 6]\n  %y = neg %2 : \
         f32[P+T, 6]",
        "f32[P+T, 6]",
    );
    refused("%x: f32[8, 4], %w: f32[4, 8]", "  %y = contract %x, %w {spec = \"ab,bc->\"} : f32[]", "f32[]");
}

/// A random product-sum: how the second operand is stored and reached, and what happens to the sums.
#[derive(Clone, Debug)]
struct Case {
    sizes: [i64; 4],
    offsets: [i64; 2],
    formats: [DType; 2],
    turned: bool,
    batched: bool,
    chosen: bool,
    blocks: Option<[usize; 2]>,
    epilogue: u8,
}

impl Case {
    fn func(&self) -> Func {
        let [_, n, k, h] = self.sizes;
        let [skip_n, skip_k] = self.offsets;
        let t = Dim::from(Sym::T);
        let mut b = hadal_ir::Builder::new("k");
        let leading = |first: Option<Dim>, batch: bool| -> Vec<Dim> {
            first.into_iter().chain(batch.then(|| h.into())).collect()
        };
        let mut x_shape = leading(Some(t.clone()), self.batched);
        x_shape.push(k.into());
        let x = b.param("x", TensorType { dtype: self.formats[0], shape: x_shape });
        // The second operand: experts, heads, then columns and summed elements in either order, with a margin.
        let mut shape = leading(self.chosen.then(|| 5.into()), self.batched);
        let outer = shape.len();
        let (rows, columns) = (n + skip_n + 1, k + skip_k + 1);
        shape.extend(if self.turned { [columns.into(), rows.into()] } else { [Dim::from(rows), columns.into()] });
        let mut w = b.param("w", TensorType { dtype: self.formats[1], shape: shape.clone() });
        if let Some(blocks) = self.blocks {
            let block: Vec<usize> = vec![1; outer].into_iter().chain(blocks).collect();
            let count = |d: &Dim, b: &usize| (d.as_const().unwrap_or(1) + *b as i64 - 1) / *b as i64;
            let scales = shape.iter().zip(&block).map(|(d, b)| count(d, b));
            let s = b.param("s", TensorType::new(DType::F32, scales.collect::<Vec<_>>()));
            w = b.op(Dequantize { block }, &[w, s]);
        }
        if self.turned {
            let perm = (0..outer).chain([outer + 1, outer]).collect();
            w = b.op(Transpose { perm }, &[w]);
        }
        w = b.slice(w, outer, skip_n, n, 1);
        w = b.slice(w, outer + 1, skip_k, k, 1);
        let (mut letters, mut out) = (String::new(), "t".to_owned());
        if self.chosen {
            let index = b.param("e", TensorType::new(DType::I32, [t.clone(), 2.into()]));
            w = b.op(Gather { axis: 0, batch: 0 }, &[w, index]);
            letters += "te";
            out += "e";
        }
        let head = if self.batched { "h" } else { "" };
        let spec = format!("t{head}d,{letters}{head}fd->{out}{head}f");
        let mut y = b.contract(&spec, &[x, w]);
        let shape = b.shape(y).to_vec();
        let last = shape.len() - 1;
        if self.epilogue & 1 != 0 {
            let bias = b.param("bias", TensorType::new(DType::BF16, [n]));
            let bias = b.cast(bias, DType::F32);
            let bias = b.broadcast(bias, &shape, &[last]);
            y = b.add(y, bias);
        }
        if self.epilogue & 2 != 0 {
            let gate = b.map(hadal_ir::ops::map::MapFn::Sigmoid, &[y]);
            let scale = b.param("scale", TensorType::new(DType::F32, [t.clone()]));
            let scale = b.broadcast(scale, &shape, &[0]);
            let gate = b.mul(gate, scale);
            y = b.mul(y, gate);
        }
        if self.epilogue & 4 != 0 {
            let perm = (0..last).rev().chain([last]).collect();
            y = b.op(Transpose { perm }, &[y]);
        }
        if self.epilogue & 8 != 0 {
            y = b.cast(y, DType::BF16);
        }
        b.result("y", y);
        b.finish().expect("well formed")
    }
}

fn cases() -> impl Strategy<Value = Case> {
    let formats = || prop::sample::select(vec![DType::F32, DType::BF16, DType::F16, DType::F8E4M3]);
    let blocks = prop::option::of(prop::array::uniform2(prop::sample::select(vec![3usize, 4, 8, 16, 32])));
    (
        (1i64..14, 1i64..40, 1i64..50, 1i64..4),
        [0i64..5, 0i64..5],
        (formats(), formats()),
        any::<[bool; 3]>(),
        blocks,
        0u8..16,
    )
        .prop_map(|((t, n, k, h), offsets, formats, [turned, batched, chosen], blocks, epilogue)| Case {
            sizes: [t, n, k, h],
            offsets,
            formats: [formats.0, formats.1],
            turned,
            batched,
            chosen,
            blocks,
            epilogue,
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_product_sums(case in cases(), seed in 0u64..1000) {
        let func = case.func();
        let bindings = Bindings::from([(Sym::T, case.sizes[0])]);
        let desc = Desc::of(&func).expect("a product-sum");
        // Blocks that do not fit vectors are left to the loop generator; nothing else is.
        if candidates(&desc, &Target::default()).is_empty() {
            prop_assert!(case.blocks.is_some(), "{}", desc);
            return Ok(());
        }
        check_func(&func, &bindings, 2e-5, seed);
    }
}

/// Heads of grouped queries lie in another order than the weights want them: the summed letter is cut into digits, the
/// last of which is consecutive in both. The sum is that of rows in the weights' order, to the bit but where a scale is
/// shared by several values of a higher digit: it then multiplies the sum of each.
#[test]
fn heads_in_another_order() {
    for (weights, dequantize, bits) in [
        ("%w: bf16[20, 96]", "", "%w"),
        ("%w: f8e4m3[20, 96], %s: f32[2, 2]", "%3 = dequantize %w, %s {block = [16, 48]} : f32[20, 96]", "%3"),
    ] {
        let function = |params: &str, exchange: &str| {
            function(&format!(
                "kernel @k({params}, {weights}) -> (y: f32[1, 20]) {{
                   {exchange}
                   %2 = reshape %1 {{shape = [1, 96]}} : f32[1, 96]
                   {dequantize}
                   %4 = contract %2, {bits} {{spec = \"td,fd->tf\"}} : f32[1, 20]
                   return %4
                 }}"
            ))
        };
        let exchanged = function("%x: f32[3, 1, 2, 16]", "%1 = transpose %x {perm = [1, 2, 0, 3]} : f32[1, 2, 3, 16]");
        let shown = check_func(&exchanged, &Bindings::new(), 1e-4, 7);
        assert!(shown[0].starts_with("dot stream 1") && shown[0].ends_with("sum [ddd]"), "{shown:?}");
        if !dequantize.is_empty() {
            continue;
        }
        let straight = function("%x: f32[1, 2, 3, 16]", "%1 = reshape %x {shape = [1, 2, 3, 16]} : f32[1, 2, 3, 16]");
        let mut args = arguments(&exchanged, &Bindings::new(), 7);
        let results = |func: &Func, args: &[Tensor]| {
            let desc = Desc::of(func).unwrap();
            let dot =
                candidates(&desc, &Target::default()).into_iter().find(|s| s.streamed == 1 && s.lanes == 4).unwrap();
            interpreted(&emit::emit(&desc, &dot), func, args, &Bindings::new())[0].bytes.clone()
        };
        let found = results(&exchanged, &args);
        let x = &args[0];
        let at = |i: usize| x.at((i / 16 % 3) * 32 + i / 48 * 16 + i % 16);
        args[0] = Tensor::real(DType::F32, &[1, 2, 3, 16], (0..96).map(at).collect());
        assert_eq!(found, results(&straight, &args), "{weights}");
    }
}
