//! What is PTX's own: what its text may say, that an assembler takes it, and that each barrier of a warp is needed.
//! That it computes what the interpreter does is tested with the other code generators.
#![cfg(feature = "llvm-backend")]

mod kernels;

use hadal_codegen::compile;
use hadal_codegen::kernels as generators;
use hadal_codegen::processor::{CompiledKernel, Processor};
use hadal_ir::kernel::interpret::Buffer;
use hadal_ir::kernel::*;
use hadal_types::{Bindings, DType, Dim, Sym};
use kernels::gpu;
use proptest::prelude::*;
use ptx_emulator::{FaultKind, Options};

fn text(kernel: &Kernel, target: &Processor) -> String {
    let compiled = compile(kernel, target, false).unwrap_or_else(|e| panic!("{e}\n{kernel}"));
    String::from_utf8(compiled.code).expect("PTX is text")
}

/// Instructions that round otherwise than the kernel IR: approximations, subnormals that become zero, and products and
/// sums that an assembler may join.
fn rounds_otherwise(ptx: &str) -> Option<&str> {
    ptx.lines().map(str::trim).find(|line| {
        let joined = ["add.f32", "sub.f32", "mul.f32", "mad.f32"].iter().any(|op| line.starts_with(op));
        let less = line.contains(".ftz") || line.contains(".approx") || line.contains(".full");
        // The one that the kernel IR has by name.
        joined || less && !line.starts_with("ex2.approx.ftz.f32")
    })
}

/// `y = max(x / √x, floor x · x - x)`, and its sums.
fn arithmetic() -> Kernel {
    let mut b = Builder::new("arithmetic");
    let x = b.param("x", DType::F32, [64], Access::Read);
    let y = b.param("y", DType::F32, [64], Access::Write);
    let sum = b.param("sum", DType::F32, [1], Access::Write);
    b.grid([1]);
    let zero = b.const_i64(0);
    let v = b.load(x, &[zero], 64);
    let (root, whole) = (b.sqrt(v), b.floor(v));
    let quotient = b.div(v, root);
    let product = b.mul(whole, v);
    let less = b.sub(product, v);
    let result = b.max(quotient, less);
    b.store(y, &[zero], result);
    let total = b.reduce_lanes(ReduceOp::Add, result);
    b.store(sum, &[zero], total);
    b.finish()
}

#[test]
fn everything_is_rounded_once() {
    let ptx = text(&arithmetic(), &Processor::SM_90A);
    assert_eq!(rounds_otherwise(&ptx), None, "{ptx}");
    assert!(ptx.contains("sqrt.rn.f32") && ptx.contains("div.rn.f32") && ptx.contains("add.rn.f32"), "{ptx}");
}

#[test]
fn every_gpu_has_its_own_text() {
    for (target, version) in Processor::GPUS.iter().zip(["7.8", "8.1", "8.4"]) {
        let ptx = text(&arithmetic(), target);
        assert!(ptx.contains(&format!(".target {}", target.name)), "{ptx}");
        assert!(ptx.contains(&format!(".version {version}")) && ptx.contains(".maxntid 256"), "{ptx}");
    }
}

/// Each row turned round through scratch: lanes read what others wrote. Then the number of each element among the row's
/// positive ones is written by scalars and read by vectors.
fn exchange(n: i64) -> Kernel {
    let mut b = Builder::new("exchange");
    let rows = Dim::from(Sym::T);
    let x = b.param("x", DType::F32, [rows.clone(), n.into()], Access::Read);
    let y = b.param("y", DType::F32, [rows.clone(), n.into()], Access::Write);
    let places = b.param("places", DType::I64, [rows.clone(), n.into()], Access::Write);
    let row = b.grid([rows])[0];
    let tmp = b.alloc("tmp", DType::F32, [n]);
    let list = b.alloc("list", DType::I64, [n]);
    let (zero, one, end) = (b.const_i64(0), b.const_i64(1), b.const_i64(n));
    b.for_each(zero, end, 32, LoopKind::Serial, |b, i| {
        let v = b.load(x, &[row, i], 32);
        let two = b.const_f32(2.0);
        let v = b.mul(v, two);
        b.store(tmp, &[i], v);
    });
    let none = b.const_f32(0.0);
    b.for_loop(zero, end, 1, LoopKind::Serial, &[zero], |b, i, count| {
        let last = b.sub(end, one);
        let from = b.sub(last, i);
        let v = b.load(tmp, &[from], 1);
        b.store(y, &[row, i], v);
        b.store(list, &[i], count[0]);
        let positive = b.gt(v, none);
        let more = b.add(count[0], one);
        vec![b.select(positive, more, count[0])]
    });
    b.for_each(zero, end, 32, LoopKind::Serial, |b, i| {
        let v = b.load(list, &[i], 32);
        b.store(places, &[row, i], v);
    });
    b.finish()
}

/// Runs a text of the kernel on some rows; with every order of warps the same.
fn run(code: &CompiledKernel, kernel: &Kernel, seeds: u64) -> Result<Vec<Buffer>, FaultKind> {
    // More than there are warps, so that some compute several.
    let (rows, n) = (40usize, kernel.params[0].shape[1].as_const().unwrap_or(0) as usize);
    let x: Vec<f32> = (0..rows * n).map(|i| ((i * 37) % 101) as f32 - 50.0).collect();
    let args = [Buffer::from_f32(&x), Buffer::uninit(DType::F32, rows * n), Buffer::uninit(DType::I64, rows * n)];
    let mut last = args.to_vec();
    for seed in 0..seeds {
        last = args.to_vec();
        let options = Options { seed, ..Options::default() };
        let symbols = Bindings::from([(Sym::T, rows as i64)]);
        gpu::run(code, kernel, &symbols, &mut last, &options).map_err(|fault| fault.kind)?;
    }
    Ok(last)
}

#[test]
fn a_barrier_that_is_missing_is_noticed() {
    let kernel = exchange(96);
    let code = compile(&kernel, &Processor::SM_90A, false).unwrap_or_else(|e| panic!("{e}"));
    run(&code, &kernel, 8).unwrap_or_else(|fault| panic!("{fault:?}"));
    let ptx = String::from_utf8(code.code.clone()).expect("PTX is text");
    let barriers: Vec<usize> = ptx.match_indices("bar.warp.sync").map(|(at, _)| at).collect();
    assert!((2..=4).contains(&barriers.len()), "{ptx}");
    for at in &barriers {
        let at = *at;
        let mut without = ptx.clone();
        let end = at + without[at..].find(';').expect("a statement");
        without.replace_range(at..=end, "");
        let code = CompiledKernel { code: without.into_bytes(), ..code.clone() };
        let fault = run(&code, &kernel, 8).err();
        assert_eq!(fault, Some(FaultKind::Race), "without the one at {at} of {barriers:?}\n{ptx}");
    }
}

/// The sum of each row, of which every warp of a team adds a part, into memory of its own first.
fn row_sums(warps: i64, store_outside: bool) -> Kernel {
    let mut b = Builder::new("team");
    let (rows, n) = (Dim::from(Sym::T), 96 * warps);
    let x = b.param("x", DType::F32, [rows.clone(), n.into()], Access::Read);
    let y = b.param("y", DType::F32, [rows.clone()], Access::Write);
    let row = b.grid([rows])[0];
    let parts = b.alloc_in(Space::Shared, Swizzle::None, "parts", DType::F32, [warps]);
    let (zero, team, size) = (b.const_i64(0), b.const_i64(warps), b.const_i64(96));
    b.for_each(zero, team, 1, LoopKind::Warp, |b, w| {
        let own = b.alloc("own", DType::F32, [96]);
        let first = b.mul(w, size);
        b.for_each(zero, size, 32, LoopKind::Serial, |b, i| {
            let at = b.add(first, i);
            let v = b.load(x, &[row, at], 32);
            b.store(own, &[i], v);
        });
        let none = b.const_f32(0.0);
        let sum = b.for_loop(zero, size, 1, LoopKind::Serial, &[none], |b, i, sum| {
            let v = b.load(own, &[i], 1);
            vec![b.add(sum[0], v)]
        });
        b.store(parts, &[w], sum[0]);
    });
    let all = |b: &mut Builder| {
        let none = b.const_f32(0.0);
        let sum = b.for_loop(zero, team, 1, LoopKind::Serial, &[none], |b, w, sum| {
            let v = b.load(parts, &[w], 1);
            vec![b.add(sum[0], v)]
        });
        b.store(y, &[row], sum[0]);
    };
    if store_outside {
        all(&mut b);
    } else {
        b.for_each(zero, team, 1, LoopKind::Warp, |b, w| {
            let first = b.eq(w, zero);
            b.if_then(first, |b| all(b));
        });
    }
    b.finish()
}

#[test]
fn warps_share_a_grid_index() {
    for warps in [1, 4, 32] {
        let kernel = row_sums(warps, false);
        let code = compile(&kernel, &Processor::SM_90A, false).unwrap_or_else(|e| panic!("{e}"));
        let block = code.block.expect("a block");
        // Each warp has 96 elements of its own.
        let bytes = (warps * 4).max(64) + warps * 384;
        assert_eq!((block.warps, block.indices, block.shared_bytes), (warps as u32, 1, bytes as u32));
        let (rows, n) = (5, 96 * warps as usize);
        let x: Vec<f32> = (0..rows * n).map(|i| ((i * 31) % 64) as f32 - 30.0).collect();
        let sums: Vec<f32> = x.chunks(n).map(|row| row.iter().sum()).collect();
        let args = [Buffer::from_f32(&x), Buffer::uninit(DType::F32, rows)];
        let symbols = Bindings::from([(Sym::T, rows as i64)]);
        let mut interpreted = args.to_vec();
        interpret::run(&kernel, &symbols, &mut interpreted).unwrap_or_else(|e| panic!("{e}\n{kernel}"));
        assert_eq!(interpreted[1].to_f32(), sums);
        let run = |code: &CompiledKernel, seed: u64| {
            let mut buffers = args.to_vec();
            let options = Options { seed, ..Options::default() };
            gpu::run(code, &kernel, &symbols, &mut buffers, &options).map_err(|fault| fault.kind)?;
            Ok::<_, FaultKind>(buffers.remove(1))
        };
        for seed in 0..4 {
            assert_eq!(run(&code, seed).unwrap_or_else(|e| panic!("{e:?}")).to_f32(), sums);
        }
        let ptx = String::from_utf8(code.code.clone()).expect("PTX is text");
        gpu::assemble(&ptx);
        let barriers: Vec<usize> =
            ["bar.sync", "bar.warp.sync"].iter().flat_map(|b| ptx.match_indices(b)).map(|(at, _)| at).collect();
        assert!(barriers.len() >= 3, "{ptx}");
        for at in barriers.into_iter().filter(|_| warps > 1) {
            let mut without = ptx.clone();
            let end = at + without[at..].find(';').expect("a statement");
            without.replace_range(at..=end, "");
            let code = CompiledKernel { code: without.into_bytes(), ..code.clone() };
            let fault = (0..8).find_map(|seed| run(&code, seed).err());
            assert_eq!(fault, Some(FaultKind::Race), "{warps} warps without the one at {at}\n{ptx}");
        }
    }
    let refused = compile(&row_sums(4, true), &Processor::SM_90A, false).expect_err("stores of all warps at once");
    assert!(refused.to_string().contains("beside loops over warps"), "{refused}");
}

/// Attention of a few queries: warps share the keys of each head.
#[test]
fn warps_share_keys() {
    let heads = "%q: f32[T, 2, 3, 40], %k: f32[P+T, 2, 40], %v: f32[P+T, 2, 24]";
    let sunk = "%q: f32[T, 4, 72], %k: bf16[P+T, 72], %v: bf16[P+T, 72], %s: f32[4]";
    for (params, body, shape) in [
        (
            heads,
            "attention %q, %k, %v {sets = [\"tghd,sgd sge causal\"], output = \"tghe\", scale = 0.3}",
            "f32[T, 2, 3, 24]",
        ),
        (
            sunk,
            "attention %q, %k, %v, %s {sets = [\"thd,sd se causal\"], output = \"the\", sink = true, scale = 0.1}",
            "f32[T, 4, 72]",
        ),
    ] {
        let text = format!(
            "symbols P in 0..4096, T in 1..64\nkernel @k({params}) -> (y: {shape}) {{\n  %y = {body} : {shape}\n  return %y\n}}\n"
        );
        let module = hadal_ir::text::parse_module(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        let func = &module.funcs[0];
        let step = generators::Ranges::from([(Sym::T, hadal_ir::Range { min: 1, max: hadal_ir::module::STEP })]);
        let target = generators::Target::of(&Processor::SM_90A);
        let made = generators::select(func, &step, &target).expect("an attention");
        assert!(made.schedule.contains("shared by 16 warps"), "{}", made.schedule);
        let kernel = gpu::aligned(&made.kernel);
        // Fewer blocks of keys than warps, and more.
        for (t, p) in [(1, 0), (3, 100), (2, 600)] {
            let symbols = Bindings::from([(Sym::T, t), (Sym::P, p)]);
            let args: Vec<Buffer> = kernel
                .params
                .iter()
                .zip(0..)
                .map(|(param, seed)| {
                    let count = param.shape.iter().map(|d| d.eval(&symbols).expect("a size") as usize).product();
                    match param.access {
                        Access::Write => Buffer::uninit(param.dtype, count),
                        _ => {
                            let x: Vec<f32> =
                                (0..count).map(|i| ((i * 37 + seed * 11) % 64) as f32 / 32.0 - 1.0).collect();
                            match param.dtype {
                                DType::F32 => Buffer::from_f32(&x),
                                // The upper half of such numbers has all that is not zero.
                                d => Buffer::from_bytes(
                                    d,
                                    x.iter().flat_map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes()).collect(),
                                ),
                            }
                        }
                    }
                })
                .collect();
            let mut expected = args.clone();
            interpret::run(&kernel, &symbols, &mut expected).unwrap_or_else(|e| panic!("{e}\n{kernel}"));
            let found = gpu::emulated(&kernel, &symbols, &args);
            let (found, expected) = (found.last().expect("y").to_f32(), expected.last().expect("y").to_f32());
            // Powers are rounded correctly there, and to two units here.
            let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-6 * (1.0 + b.abs());
            assert!(found.iter().zip(&expected).all(near), "{t} after {p}: {found:?}\n{expected:?}");
        }
    }
}

/// A copy through scratch, so many elements at a time there and back.
fn through_scratch(there: u32, back: u32) -> Kernel {
    let mut b = Builder::new("own");
    let x = b.param("x", DType::F32, [128], Access::Read);
    let y = b.param("y", DType::F32, [128], Access::Write);
    b.grid([1]);
    let tmp = b.alloc("tmp", DType::F32, [128]);
    let (zero, end) = (b.const_i64(0), b.const_i64(128));
    for _ in 0..2 {
        b.for_each(zero, end, there.into(), LoopKind::Serial, |b, i| {
            let v = b.load(x, &[i], there);
            b.store(tmp, &[i], v);
        });
        b.for_each(zero, end, back.into(), LoopKind::Serial, |b, i| {
            let v = b.load(tmp, &[i], back);
            b.store(y, &[i], v);
        });
    }
    b.finish()
}

#[test]
fn lanes_that_keep_to_their_own_do_not_wait() {
    // Of 64 elements a lane holds two neighbours, of 32 one.
    for (there, back) in [(32, 32), (64, 64), (64, 32), (32, 128)] {
        let kernel = through_scratch(there, back);
        let ptx = text(&kernel, &Processor::SM_90A);
        assert_eq!(ptx.contains("bar.warp.sync"), there != back, "{there} and {back}: {ptx}");
        let x: Vec<f32> = (0..128).map(|i| i as f32).collect();
        let args = [Buffer::from_f32(&x), Buffer::uninit(DType::F32, 128)];
        assert_eq!(gpu::emulated(&kernel, &Bindings::new(), &args)[1].to_f32(), x);
    }
}

#[test]
fn neighbours_are_loaded_together() {
    let accesses = |align: u32, dtype: DType, lanes: u32| {
        let mut b = Builder::new("copy");
        let x = b.param("x", dtype, [4096], Access::Read);
        let y = b.param("y", dtype, [4096], Access::Write);
        let row = b.grid([4096 / i64::from(lanes)])[0];
        let size = b.const_i64(lanes.into());
        let first = b.mul(row, size);
        let v = b.load(x, &[first], lanes);
        b.store(y, &[first], v);
        let mut kernel = b.finish();
        kernel.params.iter_mut().for_each(|p| p.align = align);
        let ptx = text(&kernel, &Processor::SM_90A);
        let count = |op: &str| ptx.lines().filter(|l| l.trim().starts_with(op)).count();
        (count("ld.global.nc"), count("st.global"))
    };
    // The table of arguments is read by other loads than `.nc` ones of the buffer; both count here.
    let [none, words, all] = [1, 4, 16].map(|align| accesses(align, DType::F32, 128).1);
    assert_eq!([none, words, all], [4, 4, 1]);
    let [none, words, all] = [1, 4, 16].map(|align| accesses(align, DType::BF16, 256).1);
    assert_eq!([none, words, all], [8, 4, 1]);
    let [none, words, all] = [1, 4, 16].map(|align| accesses(align, DType::U4, 1024).1);
    assert_eq!([none, words, all], [16, 4, 1]);
    assert!(accesses(16, DType::I8, 512).0 < accesses(1, DType::I8, 512).0);
}

#[test]
fn a_product_reads_each_weight_once_and_as_much_at_a_time_as_there_can_be() {
    let (n, k) = (64, 2048);
    for (dtype, bytes) in [("bf16", 2), ("f32", 4), ("i8", 1)] {
        let scale = if dtype == "i8" { format!(", %s: f32[{n}, 1]") } else { String::new() };
        let read = if dtype == "i8" {
            format!("  %q = dequantize %w, %s {{block = [1, {k}]}} : f32[{n}, {k}]\n")
        } else {
            String::new()
        };
        let of = if dtype == "i8" { "%q" } else { "%w" };
        let text = format!(
            "symbols P in 0..64, T in 1..64\nkernel @k(%x: f32[1, {k}], %w: {dtype}[{n}, {k}]{scale}) -> (y: f32[1, {n}]) \
             {{\n{read}  %y = contract %x, {of} {{spec = \"td,fd->tf\"}} : f32[1, {n}]\n  return %y\n}}\n"
        );
        let module = hadal_ir::text::parse_module(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        let target = generators::Target::of(&Processor::SM_90A);
        let kernel =
            generators::select(&module.funcs[0], &generators::Ranges::new(), &target).expect("a product").kernel;
        let kernel = gpu::aligned(&kernel);
        let code = compile(&kernel, &Processor::SM_90A, false).expect("it compiles");
        let mut buffers: Vec<Buffer> = kernel
            .params
            .iter()
            .map(|p| {
                let count = p.shape.iter().map(|d| d.as_const().expect("a number") as usize).product();
                match p.access {
                    Access::Read => Buffer::from_bytes(p.dtype, vec![0; count * p.dtype.bits() as usize / 8]),
                    _ => Buffer::uninit(p.dtype, count),
                }
            })
            .collect();
        let report = gpu::run(&code, &kernel, &Bindings::new(), &mut buffers, &Options::default()).expect("it runs");
        let (n, k) = (n as u64, k as u64);
        // Each column is read by a warp of its own or two share one, which then share the row.
        let columns = if kernel.grid[0].is(n as i64) { 1 } else { 2 };
        let weights = n * k * bytes;
        let expected = weights + n / columns * k * 4;
        let found = report.global_read as f64;
        assert!((found / expected as f64 - 1.0).abs() < 0.05, "{dtype}: {found} bytes for {expected}");
        let flops = report.flops[&ptx_emulator::FlopKind::F32] as f64;
        // Sums of lanes are the rest.
        assert!((flops / (2 * n * k) as f64 - 1.0).abs() < 0.25, "{dtype}: {flops} operations");
        let ptx = String::from_utf8_lossy(&code.code).into_owned();
        let loads: Vec<&str> = ptx.lines().map(str::trim).filter(|l| l.starts_with("ld.global.nc")).collect();
        let of = |op: &str| loads.iter().filter(|l| l.starts_with(op)).count();
        // Addresses, and with them rows of the longest words; bytes come with 8 a lane, and have scales.
        let words = if bytes == 1 { of("ld.global.nc.v2.u32") } else { of("ld.global.nc.v4") };
        assert!(words > 0 && of("ld.global.nc.v4") > 0, "{dtype}: {loads:?}");
        let others = loads.len() - of("ld.global.nc.v") - of("ld.global.nc.u64");
        assert_eq!(others, usize::from(bytes == 1), "{dtype}: {loads:?}");
    }
}

#[test]
fn scratch_of_any_size_has_a_place() {
    for n in [96, 96 * 400] {
        let kernel = exchange(n);
        let code = compile(&kernel, &Processor::SM_90A, false).unwrap_or_else(|e| panic!("{e}"));
        let block = code.block.expect("a block");
        assert_eq!(block.shared_bytes > 0, code.scratch_bytes.is(0), "in shared memory or in scratch");
        assert_eq!(n > 96, block.shared_bytes == 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn arbitrary_kernels_round_once_and_run_in_any_order(bytes in prop::collection::vec(0u8.., 0..300), seed in 0u64..) {
        let kernel = arbitrary::kernel(&bytes);
        let kernel = if seed % 2 == 0 { gpu::aligned(&kernel) } else { kernel };
        let code = compile(&kernel, &Processor::SM_90A, false).unwrap_or_else(|e| panic!("{e}\n{kernel}"));
        let ptx = String::from_utf8_lossy(&code.code).into_owned();
        prop_assert_eq!(rounds_otherwise(&ptx), None);
        gpu::assemble(&ptx);
        let mut found: Option<Vec<Buffer>> = None;
        for order in 0..3 {
            let mut buffers = arbitrary::arguments(seed);
            let symbols = Bindings::from([(Sym::T, arbitrary::ROWS)]);
            let options = Options { seed: order, ..Options::default() };
            let ran = gpu::run(&code, &kernel, &symbols, &mut buffers, &options);
            ran.unwrap_or_else(|fault| panic!("{fault}\n{kernel}\n{ptx}"));
            let same = found.as_ref().is_none_or(|f| f.iter().zip(&buffers).all(|(a, b)| a.bytes == b.bytes));
            prop_assert!(same, "{}", kernel);
            found = Some(buffers);
        }
    }
}

/// Lanes that are true are put side by side, by vectors of any length.
#[test]
fn what_is_true_is_ranked() {
    for n in [2u32, 8, 32, 64, 256] {
        let mut b = Builder::new("rank");
        let rows = Dim::from(Sym::T);
        let shape = || [rows.clone(), i64::from(n).into()];
        let x = b.param("x", DType::F32, shape(), Access::Read);
        let y = b.param("y", DType::I64, shape(), Access::Write);
        let row = b.grid([rows.clone()])[0];
        let (zero, none) = (b.const_i64(0), b.const_f32(0.0));
        let v = b.load(x, &[row, zero], n);
        let none = b.splat(none, n);
        let mask = b.gt(v, none);
        let rank = b.rank(mask);
        b.store(y, &[row, zero], rank);
        let kernel = gpu::aligned(&b.finish());
        assert_eq!(hadal_ir::kernel::text::parse(&kernel.to_string()).as_ref(), Ok(&kernel));
        let x: Vec<f32> = (0..40 * n).map(|i| ((i * 37) % 101) as f32 - 50.0).collect();
        let mut args = [Buffer::from_f32(&x), Buffer::uninit(DType::I64, x.len())];
        let symbols = Bindings::from([(Sym::T, 40)]);
        let found = gpu::emulated(&kernel, &symbols, &args).pop();
        interpret::run(&kernel, &symbols, &mut args).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(found.map(|b| b.bytes).as_ref(), args.last().map(|b| &b.bytes), "{n} lanes");
    }
}

/// Two warpgroups take registers that a third gives up; then each warp hands its number to the next one.
#[test]
fn roles_have_registers_and_meet_at_barriers() {
    let mut b = Builder::new("roles");
    let y = b.param("y", DType::F32, [Dim::from(Sym::T), 12.into()], Access::Write);
    let row = b.grid([Dim::from(Sym::T)])[0];
    let (zero, eight, all, one) = (b.const_i64(0), b.const_i64(8), b.const_i64(12), b.const_i64(1));
    let tile = b.alloc_in(Space::Shared, Swizzle::None, "tile", DType::F32, [12]);
    let met = b.barriers("met", 1, 12);
    b.for_each(zero, all, 1, LoopKind::Warp, |b, warp| {
        let first = b.lt(warp, eight);
        let role = |b: &mut Builder, registers: u32| {
            b.team_op(TeamOp::Registers(registers));
            Vec::new()
        };
        b.if_else(first, |b| role(b, 208), |b| role(b, 88));
        let number = b.cast(warp, DType::F32);
        b.store(tile, &[warp], number);
        b.arrive(met, zero);
        b.wait(met, zero, zero);
        let next = b.add(warp, one);
        let next = b.rem(next, all);
        let v = b.load(tile, &[next], 1);
        b.store(y, &[row, warp], v);
    });
    let kernel = b.finish();
    assert_eq!(hadal_ir::kernel::text::parse(&kernel.to_string()).as_ref(), Ok(&kernel));
    let code = compile(&kernel, &Processor::SM_90A, false).unwrap_or_else(|e| panic!("{e}"));
    let ptx = String::from_utf8(code.code.clone()).expect("PTX is text");
    assert!(ptx.contains("setmaxnreg.inc.sync.aligned.u32 208") && ptx.contains("setmaxnreg.dec.sync.aligned.u32 88"));
    gpu::assemble(&ptx);
    let symbols = Bindings::from([(Sym::T, 5)]);
    let mut args = [Buffer::uninit(DType::F32, 60)];
    let found = gpu::emulated(&kernel, &symbols, &args).pop();
    interpret::run(&kernel, &symbols, &mut args).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(found.map(|b| b.bytes).as_ref(), args.last().map(|b| &b.bytes));
}

/// Rows of four warps in registers, by columns that lie across in panels; and what the rows of the sums are combined to.
fn across(depth: usize, columns: usize) -> Kernel {
    let mut b = Builder::new("across");
    let rows = b.param("rows", DType::F32, [64 * depth], Access::Read);
    let tall = b.param("columns", DType::BF16, [depth * columns], Access::Read);
    let y = b.param("y", DType::F32, [3 * 64 * columns], Access::Write);
    b.grid([1i64]);
    let apart = 64 * depth as i64;
    let panels = columns.div_ceil(64) as i64;
    let tile = b.alloc_in(Space::Shared, Swizzle::B128, "tile", DType::BF16, [panels * apart]);
    let full = b.barriers("full", 1, 1);
    let (zero, four, all) = (b.const_i64(0), b.const_i64(4), b.const_i64(8));
    let pieces = columns as i64 / 8;
    b.for_each(zero, all, 1, LoopKind::Warp, |b, warp| {
        let lanes = |b: &mut Builder, n: i64, count: u32| {
            let n = b.const_i64(n);
            b.splat(n, count)
        };
        let brings = b.eq(warp, four);
        b.if_then(brings, |b| {
            let end = b.const_i64(depth as i64 * pieces);
            b.for_each(zero, end, 32, LoopKind::Serial, |b, first| {
                let (first, iota) = (b.splat(first, 32), b.iota(DType::I64, 32));
                let piece = b.add(first, iota);
                let [pieces, eight, line, apart] = [pieces, 8, 64, apart].map(|n| lanes(b, n, 32));
                let (row, piece) = (b.div(piece, pieces), b.rem(piece, pieces));
                let (panel, within) = (b.div(piece, eight), b.rem(piece, eight));
                let (panel, line, within) = (b.mul(panel, apart), b.mul(row, line), b.mul(within, eight));
                let to = b.add(panel, line);
                let to = b.add(to, within);
                let wide = b.mul(pieces, eight);
                let (from, piece) = (b.mul(row, wide), b.mul(piece, eight));
                let from = b.add(from, piece);
                b.copy((tile, &[to]), (tall, &[from]), 256, None);
            });
            b.team_op(TeamOp::Commit);
            b.team_op(TeamOp::AwaitCopies(0));
            b.team_op(TeamOp::FenceAsync);
            b.arrive(full, zero);
        });
        let multiplies = b.lt(warp, four);
        b.if_then(multiplies, |b| {
            // Row and column of each pair of neighbours of a tile of sums.
            let (iota, one) = (b.iota(DType::I64, 64), lanes(b, 1, 64));
            let [two, three, eight] = [2, 3, 8].map(|n| lanes(b, n, 64));
            let (group, second) = (b.ushr(iota, one), b.and(iota, one));
            let (row, quarter) = (b.ushr(group, two), b.and(group, three));
            let second = b.mul(second, eight);
            let row = b.add(row, second);
            let column = b.mul(quarter, two);
            let sixteen = b.const_i64(16);
            let own = b.mul(warp, sixteen);
            let own = b.splat(own, 64);
            let row = b.add(own, row);
            let place = |b: &mut Builder, line: usize, first: usize| {
                let (line, first) = (lanes(b, line as i64, 64), lanes(b, first as i64, 64));
                let at = b.mul(row, line);
                let at = b.add(at, first);
                b.add(at, column)
            };
            let values: Vec<Value> = (0..depth / 8)
                .map(|i| {
                    let at = place(b, depth, 8 * i);
                    let x = b.load(rows, &[at], 128);
                    b.cast(x, DType::BF16)
                })
                .collect();
            b.wait(full, zero, zero);
            let open = b.wgmma_across(&values, (tile, zero, apart as u32), columns, None);
            let sums = b.settle(&open, 0);
            for (i, sum) in sums.into_iter().enumerate() {
                let of = [ReduceOp::Max, ReduceOp::Add].map(|op| b.rows(op, sum));
                for (number, x) in [sum].into_iter().chain(of).enumerate() {
                    let at = place(b, columns, 8 * i + number * 64 * columns);
                    b.store(y, &[at], x);
                }
            }
        });
    });
    b.finish()
}

#[test]
fn columns_lie_across() {
    for (depth, columns) in [(16, 16), (32, 80), (64, 256), (128, 136)] {
        let kernel = gpu::aligned(&across(depth, columns));
        assert_eq!(hadal_ir::kernel::text::parse(&kernel.to_string()).as_ref(), Ok(&kernel));
        let rows: Vec<f32> = (0..64 * depth).map(|i| (i * 37 % 23) as f32 - 11.0).collect();
        let tall: Vec<f32> = (0..depth * columns).map(|i| (i * 29 % 31) as f32 / 4.0 - 3.5).collect();
        let bytes = tall.iter().flat_map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes()).collect();
        let mut args = [
            Buffer::from_bytes(DType::F32, rows.iter().flat_map(|x| x.to_le_bytes()).collect()),
            Buffer::from_bytes(DType::BF16, bytes),
            Buffer::uninit(DType::F32, 3 * 64 * columns),
        ];
        let code = compile(&kernel, &Processor::SM_90A, false).unwrap_or_else(|e| panic!("{e}"));
        gpu::assemble(&String::from_utf8(code.code).expect("PTX is text"));
        let found = gpu::emulated(&kernel, &Bindings::default(), &args).pop();
        interpret::run(&kernel, &Bindings::default(), &mut args).unwrap_or_else(|e| panic!("{e}"));
        let sums = args[2].to_f32();
        assert_eq!(found.map(|b| b.bytes).as_ref(), args.last().map(|b| &b.bytes), "{depth} by {columns}");
        for (i, sum) in sums[..64 * columns].iter().enumerate() {
            let (row, column) = (i / columns, i % columns);
            let expected: f32 = (0..depth).map(|k| rows[row * depth + k] * tall[k * columns + column]).sum();
            assert_eq!(*sum, expected);
            let eight = &sums[i - column % 8..][..8];
            assert_eq!(sums[64 * columns + i], eight.iter().copied().fold(f32::MIN, f32::max));
            assert_eq!(sums[2 * 64 * columns + i], eight.iter().sum::<f32>());
        }
    }
}
