//! Measures the special CPU kernels against what this machine can do: read bandwidth and the 128-bit multiply-add
//! rate, both measured in the same run.
//!
//! `cargo run --release -p hadal-codegen --example bench_kernels [-- FILTER]`, with `--features llvm` and
//! `HADAL_BACKEND=llvm` through LLVM for the best level that the machine has; with `HADAL_PANELS` weights that can be
//! are stored as panels, with `HADAL_COLD` nothing is in caches when a kernel begins.

mod runner;

use hadal_codegen::kernels::{Ranges, Target, attention, contract, limits};
use hadal_ir::kernel::Kernel;
use hadal_ir::module::STEP;
use hadal_ir::{Bindings, Func, Range, Sym, text};
use runner::{Backend, Runner};

fn function(params: &str, body: &str, result: &str) -> Func {
    let source = format!(
        "symbols P in 0..16384, T in 1..4096\nkernel @k({params}) -> (y: {result}) {{\n{body}\n  return %y\n}}\n"
    );
    text::parse_module(&source).expect("well formed").funcs.remove(0)
}

/// The function for so many new tokens: through its text, since attributes hold sizes too.
fn with_tokens(func: &Func, t: i64) -> Func {
    let source = text::print_func(func).replace("P+T", &format!("P+{t}")).replace("[T", &format!("[{t}"));
    text::parse_module(&format!("symbols P in 0..16384\n{source}")).expect("well formed").funcs.remove(0)
}

fn rows(w: &str, n: i64, k: i64) -> Func {
    let body = format!("  %y = contract %x, %w {{spec = \"td,fd->tf\"}} : f32[T, {n}]");
    function(&format!("%x: f32[T, {k}], %w: {w}[{n}, {k}]"), &body, &format!("f32[T, {n}]"))
}

fn scaled(n: i64, k: i64) -> Func {
    let body = format!(
        "  %1 = dequantize %q, %s {{block = [128, 128]}} : f32[{n}, {k}]
  %y = contract %x, %1 {{spec = \"td,fd->tf\"}} : f32[T, {n}]"
    );
    let (sn, sk) = ((n + 127) / 128, (k + 127) / 128);
    let params = format!("%x: f32[T, {k}], %q: f8e4m3[{n}, {k}], %s: f32[{sn}, {sk}]");
    function(&params, &body, &format!("f32[T, {n}]"))
}

/// Codes in groups of 32 along the columns with scales, and offsets where they have them.
fn grouped(x: &str, codes: &str, scales: &str, offsets: bool, n: i64, k: i64) -> Func {
    let groups = k / 32;
    let (param, operand) =
        if offsets { (format!(", %m: {scales}[{n}, {groups}]"), ", %m") } else { (String::new(), "") };
    let params = format!("%x: {x}[T, {k}], %q: {codes}[{n}, {k}], %s: {scales}[{n}, {groups}]{param}");
    let body = format!(
        "  %1 = dequantize %q, %s{operand} {{block = [1, 32]}} : f32[{n}, {k}]
  %y = contract %x, %1 {{spec = \"td,fd->tf\"}} : f32[T, {n}]"
    );
    function(&params, &body, &format!("f32[T, {n}]"))
}

/// Rows of bytes by codes, both with a scale for `group` of them.
fn of_bytes(codes: &str, group: i64, offsets: bool, n: i64, k: i64) -> Func {
    let groups = k / group;
    let (param, operand) = if offsets { (format!(", %m: f16[{n}, {groups}]"), ", %m") } else { (String::new(), "") };
    let params =
        format!("%x: i8[T, {k}], %xs: f32[T, {}], %q: {codes}[{n}, {k}], %s: f16[{n}, {groups}]{param}", groups);
    let body = format!(
        "  %0 = dequantize %x, %xs {{block = [1, {group}]}} : f32[T, {k}]
  %1 = dequantize %q, %s{operand} {{block = [1, {group}]}} : f32[{n}, {k}]
  %y = contract %0, %1 {{spec = \"td,fd->tf\"}} : f32[T, {n}]"
    );
    function(&params, &body, &format!("f32[T, {n}]"))
}

/// The same with the rows in bf16.
fn in_bf16(func: &Func) -> Func {
    let source = text::print_func(func).replacen(": f32", ": bf16", 1);
    text::parse_module(&format!("symbols P in 0..16384, T in 1..4096\n{source}")).expect("well formed").funcs.remove(0)
}

fn main() {
    let filter = std::env::args().nth(1).unwrap_or_default();
    let backend = Backend::chosen();
    let steps = 4_000_000;
    let lanes = if backend.llvm { backend.target.vector_bits() / 32 } else { 4 };
    let time = |kernel: &Kernel| Runner::new(&backend, kernel, &Bindings::new()).time();
    let peak = steps as f64 * limits::step_flops(lanes) / time(&limits::multiply_adds(steps, lanes));
    let bandwidth = (256i64 << 20) as f64 / time(&limits::read(64 << 20, 1, lanes));
    println!(
        "f32 multiply-add peak {:.1} GFLOP/s ({} bits), read {:.1} GB/s (one thread)",
        peak / 1e9,
        32 * lanes,
        bandwidth / 1e9
    );
    println!(
        "{:38} {:>10} {:>9} {:>7} {:>9} {:>7} {:>11}",
        "kernel", "µs", "GFLOP/s", "peak", "GB/s", "read", "compile ms"
    );

    // Entries for steps know that there are few new tokens.
    let step = Ranges::from([(Sym::T, Range { min: 1, max: STEP })]);
    let report = |name: &str, func: &Func, t: i64, p: i64, flops: f64, bytes: f64| {
        if !name.contains(&filter) {
            return;
        }
        // As in an entry for decoding, where T is one for good, or in a step of two.
        let mut func = func.clone();
        if t == 1 || t == 2 {
            func = with_tokens(&func, t);
        }
        let bindings = Bindings::from([(Sym::T, t), (Sym::P, p)]);
        let target = if backend.llvm { Target::of(&backend.target) } else { Target::default() };
        let ranges = if t == 1 || name.starts_with("step") && t <= STEP { step.clone() } else { Ranges::new() };
        if std::env::var_os("HADAL_PANELS").is_some() {
            for (param, group) in contract::panels(&func, &ranges, &target) {
                func = hadal_ir::panels::reading(&func, param, group).expect("it was asked for");
            }
        }
        let contraction = contract::Desc::of(&func).map(|d| d.within(&ranges));
        if std::env::var_os("HADAL_ALL").is_some() {
            for (desc, s) in contraction
                .iter()
                .flat_map(|d| contract::schedule::candidates(d, &target).into_iter().map(move |s| (d, s)))
            {
                let seconds = Runner::new(&backend, &contract::emit::emit(desc, &s), &bindings).time();
                println!("    {:10.1} µs {:9.1} GFLOP/s  {}", seconds * 1e6, flops / seconds / 1e9, s.show(desc));
            }
        }
        if std::env::var_os("HADAL_ALL").is_some()
            && let Some(desc) = attention::Desc::of(&func)
        {
            for s in attention::schedule::candidates(&desc, &ranges, &target) {
                let seconds = Runner::new(&backend, &attention::emit::emit(&desc, &s), &bindings).time();
                println!("    {:10.1} µs {:9.1} GFLOP/s  {}", seconds * 1e6, flops / seconds / 1e9, s.show(&desc));
            }
        }
        let generated = hadal_codegen::kernels::select(&func, &ranges, &target).expect("emits");
        let mut runner = Runner::new(&backend, &generated.kernel, &bindings);
        let seconds = runner.time();
        let (flops, bytes) = (flops / seconds, bytes / seconds);
        println!(
            "{name:38} {:10.1} {:9.1} {:7.2} {:9.1} {:7.2} {:11.1}",
            seconds * 1e6,
            flops / 1e9,
            flops / peak,
            bytes / 1e9,
            bytes / bandwidth,
            runner.compile_seconds * 1e3
        );
        if std::env::var_os("HADAL_SCHEDULE").is_some() {
            println!("    {}", generated.schedule);
        }
    };

    // Weights larger than the caches, so that a single row reads memory.
    for (n, k) in [(8960i64, 1536i64), (1536, 8960), (65536, 1536), (16384, 8192)] {
        for (dtype, size) in [("bf16", 2.0), ("f32", 4.0)] {
            if n * k > 40_000_000 && dtype == "f32" && n == 16384 {
                continue;
            }
            let (nk, name) = ((n * k) as f64, format!("rows T=1 {dtype} {n}x{k}"));
            report(&name, &rows(dtype, n, k), 1, 0, 2.0 * nk, nk * size);
        }
        let nk = (n * k) as f64;
        report(&format!("rows T=1 f8e4m3+scale {n}x{k}"), &scaled(n, k), 1, 0, 2.0 * nk, nk);
    }
    // Tokens of a step: one, and drafts after it.
    for t in 1..=5i64 {
        for (n, k) in [(8960i64, 1536i64), (512, 256), (8960, 256)] {
            let flops = 2.0 * (t * n * k) as f64;
            for (dtype, size) in [("f32", 4.0), ("bf16", 2.0)] {
                report(&format!("step T={t} {dtype} {n}x{k}"), &rows(dtype, n, k), t, 0, flops, (n * k) as f64 * size);
            }
            report(&format!("step T={t} f8e4m3+scale {n}x{k}"), &scaled(n, k), t, 0, flops, (n * k) as f64);
        }
    }
    for t in [4i64, 16, 512] {
        for (n, k) in [(8960i64, 1536i64), (1536, 8960)] {
            let flops = 2.0 * (t * n * k) as f64;
            for (dtype, size) in [("f32", 4.0), ("bf16", 2.0)] {
                report(&format!("rows T={t} {dtype} {n}x{k}"), &rows(dtype, n, k), t, 0, flops, (n * k) as f64 * size);
            }
            report(&format!("rows T={t} f8e4m3+scale {n}x{k}"), &scaled(n, k), t, 0, flops, (n * k) as f64);
        }
    }
    // Rows in bf16, for instructions on pairs; and formats of eight and four bits in groups.
    for t in [1i64, 2, 4, 8, 16, 512] {
        for (n, k) in [(65536i64, 1536i64), (8960, 1536), (1536, 8960), (1408, 2048)] {
            if t > 1 && n == 65536 {
                continue;
            }
            let (flops, nk) = (2.0 * (t * n * k) as f64, (n * k) as f64);
            report(&format!("step halves T={t} bf16 {n}x{k}"), &in_bf16(&rows("bf16", n, k)), t, 0, flops, nk * 2.0);
            report(&format!("step halves T={t} f8e4m3+scale {n}x{k}"), &in_bf16(&scaled(n, k)), t, 0, flops, nk);
            for (codes, scales, offsets) in [("i8", "f16", false), ("u4", "f16", true), ("f4e2m1", "f8e8m0", false)] {
                let bytes = nk * if codes == "i8" { 1.0625 } else { 0.53125 } + if offsets { nk / 16.0 } else { 0.0 };
                let func = grouped("f32", codes, scales, offsets, n, k);
                report(&format!("step T={t} {codes}+{scales} {n}x{k}"), &func, t, 0, flops, bytes);
                report(&format!("step halves T={t} {codes}+{scales} {n}x{k}"), &in_bf16(&func), t, 0, flops, bytes);
            }
            for (codes, group, offsets) in
                [("i8", 128, false), ("i8", 32, false), ("i4", 128, false), ("i4", 32, false), ("u4", 32, true)]
            {
                let scales = if offsets { 4.0 } else { 2.0 };
                let bytes = nk * if codes == "i8" { 1.0 } else { 0.5 } + nk / group as f64 * scales;
                let func = of_bytes(codes, group, offsets, n, k);
                report(&format!("step bytes T={t} {codes}:{group} {n}x{k}"), &func, t, 0, flops, bytes);
            }
        }
    }
    for t in [1i64, 128] {
        let absorbed = function(
            "%x: f32[T, 16, 128], %w: bf16[4096, 512]",
            "  %1 = reshape %w {shape = [16, 256, 512]} : bf16[16, 256, 512]
  %2 = slice %1 {axis = 1, start = 0, len = 128} : bf16[16, 128, 512]
  %y = contract %x, %2 {spec = \"thd,hdc->thc\"} : f32[T, 16, 512]",
            "f32[T, 16, 512]",
        );
        let elements = 16.0 * 128.0 * 512.0;
        report(&format!("absorbed T={t} bf16 16x128x512"), &absorbed, t, 0, 2.0 * elements * t as f64, elements * 2.0);
        let experts = function(
            "%x: f32[T, 2048], %w: bf16[16, 1408, 2048], %e: i32[T, 6]",
            "  %1 = gather %w, %e {axis = 0} : bf16[T, 6, 1408, 2048]
  %y = contract %x, %1 {spec = \"td,tkfd->tkf\"} : f32[T, 6, 1408]",
            "f32[T, 6, 1408]",
        );
        let elements = 6.0 * 1408.0 * 2048.0 * t as f64;
        report(&format!("experts T={t} bf16 6 of 16x1408x2048"), &experts, t, 0, 2.0 * elements, elements * 2.0);
    }
    for (p, name) in [(99i64, "demo"), (399, "demo")] {
        for t in [1i64, 2, 3, 4, 8] {
            let latent = function(
                "%q: f32[T, 4, 128], %r: f32[T, 4, 64], %c: bf16[P+T, 128], %k: bf16[P+T, 64]",
                "  %y = attention %q, %c, %r, %k, %c {sets = [\"tha,sa thb,sb sa causal\"], output = \"tha\", scale = 0.1} : f32[T, 4, 128]",
                "f32[T, 4, 128]",
            );
            let keys: f64 = (0..t).map(|i| (p + i + 1) as f64).sum();
            let (flops, bytes) = (2.0 * keys * 4.0 * 320.0, 192.0 * 2.0 * (t + p) as f64);
            report(&format!("step attention {name} T={t} P={p}"), &latent, t, p, flops, bytes);
        }
    }
    let calls = [(1i64, 2047i64), (1, 16_383), (512, 0), (128, 1920)];
    for (t, p, kv, width) in
        calls.into_iter().flat_map(|(t, p)| [("bf16", 2.0), ("f32", 4.0)].map(|(d, w)| (t, p, d, w)))
    {
        let keys = |d: f64| -> f64 { (0..t).map(|i| (p + i + 1) as f64).sum::<f64>() * d };
        let scale = "scale = 0.1";
        let heads = function(
            &format!("%q: f32[T, 16, 128], %k: {kv}[P+T, 16, 128], %v: {kv}[P+T, 16, 128]"),
            &format!(
                "  %y = attention %q, %k, %v {{sets = [\"thd,shd she causal\"], output = \"the\", {scale}}} : f32[T, 16, 128]"
            ),
            "f32[T, 16, 128]",
        );
        let bytes = 16.0 * 256.0 * width * (t + p) as f64;
        report(&format!("attention heads {kv} T={t} S={}", t + p), &heads, t, p, 2.0 * keys(16.0 * 256.0), bytes);
        let groups = function(
            &format!("%q: f32[T, 2, 6, 128], %k: {kv}[P+T, 2, 128], %v: {kv}[P+T, 2, 128]"),
            &format!(
                "  %y = attention %q, %k, %v {{sets = [\"tgrd,sgd sge causal\"], output = \"tgre\", {scale}}} : f32[T, 2, 6, 128]"
            ),
            "f32[T, 2, 6, 128]",
        );
        let bytes = 2.0 * 256.0 * width * (t + p) as f64;
        report(&format!("attention groups {kv} T={t} S={}", t + p), &groups, t, p, 2.0 * keys(12.0 * 256.0), bytes);
        let latent = function(
            &format!("%q: f32[T, 16, 512], %r: f32[T, 16, 64], %c: {kv}[P+T, 512], %k: {kv}[P+T, 64]"),
            &format!(
                "  %y = attention %q, %c, %r, %k, %c {{sets = [\"tha,sa thb,sb sa causal\"], output = \"tha\", {scale}}} : f32[T, 16, 512]"
            ),
            "f32[T, 16, 512]",
        );
        let bytes = 576.0 * width * (t + p) as f64;
        report(&format!("attention latent {kv} T={t} S={}", t + p), &latent, t, p, 2.0 * keys(16.0 * 1088.0), bytes);
    }
    for (k, n) in [(8i64, 256i64), (256, 8192), (2048, 8192), (2048, 131_072)] {
        let body = format!("  %y = top_k %x {{k = {k}}} : i32[T, {k}]");
        let func = function(&format!("%x: f32[T, {n}]"), &body, &format!("i32[T, {k}]"));
        report(&format!("top_k {k} of {n}"), &func, 1, 0, n as f64, 4.0 * n as f64);
        let body = format!("  %y = member %i {{len = {n}}} : bool[T, {n}]");
        let func = function(&format!("%i: i32[T, {k}]"), &body, &format!("bool[T, {n}]"));
        report(&format!("member {k} of {n}"), &func, 1, 0, n as f64, n as f64);
    }
    // As many rows: all there are, or chosen among many.
    for (t, dtype, width) in [(1i64, "f32", 4.0), (1, "bf16", 2.0), (8, "f32", 4.0)] {
        for (name, rows, seen) in [("dense", 2048, "all"), ("chosen", 32_768, "selected:ts")] {
            let chosen = seen != "all";
            let (param, operand) = if chosen { (", %i: i64[T, 2048]", ", %i") } else { ("", "") };
            let params = format!(
                "%q: f32[T, 128, 512], %r: f32[T, 128, 64], %c: {dtype}[{rows}, 512], %k: {dtype}[{rows}, 64]{param}"
            );
            let sets = format!("{{sets = [\"tha,sa thb,sb sa {seen}\"], output = \"tha\", scale = 0.1}}");
            let body = format!("  %y = attention %q, %c, %r, %k, %c{operand} {sets} : f32[T, 128, 512]");
            let func = function(&params, &body, "f32[T, 128, 512]");
            let flops = 2.0 * (t * 2048 * 128) as f64 * 1088.0;
            let bytes = (t * 2048 * 576) as f64 * width;
            report(&format!("attention 2048 {name} {dtype} T={t}"), &func, t, 0, flops, bytes);
        }
    }
}
