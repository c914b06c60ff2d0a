//! Measures products with experts' weights against dense products of as many rows.
//!
//! `cargo run --release -p hadal-codegen --features llvm --example bench_experts [-- FILTER]`; `HADAL_BACKEND` as for
//! `bench_kernels`. Experts are chosen at random, as many for each token as said; with `HADAL_ALIKE` all tokens choose
//! the same. `HADAL_ALL` measures all schedules, with rows grouped and not; with
//! `HADAL_PANELS` weights that can be are stored as panels.

mod runner;

use hadal_codegen::kernels::{Ranges, Target, contract};
use hadal_ir::kernel::Kernel;
use hadal_ir::module::STEP;
use hadal_ir::{Bindings, DType, Func, Range, Sym, text};
use runner::{Backend, Runner};

fn function(params: &str, body: &str, result: &str) -> Func {
    let source = format!("symbols T in 1..4096\nkernel @k({params}) -> (y: {result}) {{\n{body}\n  return %y\n}}\n");
    text::parse_module(&source).expect("well formed").funcs.remove(0)
}

/// Weights in a format, of so many experts or just one matrix: parameters, and what makes `%w` of them.
fn weights(format: &str, experts: Option<i64>, n: i64, k: i64) -> (String, String) {
    let shape = |block: [i64; 2]| {
        let sizes = [n, k].into_iter().zip(block).map(|(size, block)| (size + block - 1) / block);
        experts.into_iter().chain(sizes).map(|n| n.to_string()).collect::<Vec<_>>().join(", ")
    };
    let all = shape([1, 1]);
    let (scales, block) = match format {
        "bf16" => return (format!("%w: bf16[{all}]"), String::new()),
        "f8e4m3" => ("f32", [128, 128]),
        "f4e2m1" => ("f8e8m0", [1, 32]),
        _ => ("f16", [1, 32]),
    };
    let blocks = if experts.is_some() {
        format!("1, {}, {}", block[0], block[1])
    } else {
        format!("{}, {}", block[0], block[1])
    };
    (
        format!("%q: {format}[{all}], %s: {scales}[{}]", shape(block)),
        format!("  %w = dequantize %q, %s {{block = [{blocks}]}} : f32[{all}]\n"),
    )
}

/// The function that is given panels where it wants them, if that was asked for.
fn in_panels(func: &Func, ranges: &Ranges, target: &Target) -> Func {
    let asked = std::env::var_os("HADAL_PANELS").is_some();
    let wanted = if asked { contract::panels(func, ranges, target) } else { Vec::new() };
    let reading =
        |f: Func, (p, group): &(usize, i64)| hadal_ir::panels::reading(&f, *p, *group).expect("it was asked for");
    wanted.iter().fold(func.clone(), reading)
}

/// Experts of each token: different ones, at random.
fn choices(tokens: i64, experts: i64, per_token: i64) -> Vec<u8> {
    let mut state = 1u64;
    let mut bytes = Vec::new();
    let alike = std::env::var_os("HADAL_ALIKE").is_some();
    for _ in 0..tokens {
        if alike {
            state = 1;
        }
        let mut chosen: Vec<i32> = Vec::new();
        while (chosen.len() as i64) < per_token {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let e = ((state >> 33) % experts as u64) as i32;
            if !chosen.contains(&e) {
                chosen.push(e);
            }
        }
        bytes.extend(chosen.iter().flat_map(|e| e.to_le_bytes()));
    }
    bytes
}

fn main() {
    let filter = std::env::args().nth(1).unwrap_or_default();
    let backend = Backend::chosen();
    let target = if backend.llvm { Target::of(&backend.target) } else { Target::default() };
    let step = Ranges::from([(Sym::T, Range { min: 1, max: STEP })]);
    println!("{:46} {:>10} {:>9} {:>9}", "kernel", "µs", "GFLOP/s", "GB/s");
    let report = |name: String, func: &Func, ids: Option<Vec<u8>>, t: i64, flops: f64, bytes: f64| {
        if !format!("{name} ").contains(&filter) {
            return;
        }
        let bindings = Bindings::from([(Sym::T, t)]);
        let ranges = if t <= STEP { step.clone() } else { Ranges::new() };
        let func = &in_panels(func, &ranges, &target);
        let time = |kernel: &Kernel| {
            let mut runner = Runner::new(&backend, kernel, &bindings);
            ids.iter().for_each(|ids| runner.set(DType::I32, ids));
            runner.time()
        };
        if std::env::var_os("HADAL_ALL").is_some() {
            let desc = contract::Desc::of(func).map(|d| d.within(&ranges)).expect("a product");
            for desc in [desc.grouped(), Some(desc)].iter().flatten() {
                for s in contract::schedule::candidates(desc, &target) {
                    let seconds = time(&contract::emit::emit(desc, &s));
                    println!("  {:10.1} µs {:9.1} GFLOP/s {}", seconds * 1e6, flops / seconds / 1e9, s.show(desc));
                }
            }
        }
        let generated = hadal_codegen::kernels::select(func, &ranges, &target).expect("emits");
        let seconds = time(&generated.kernel);
        println!("{name:46} {:10.1} {:9.1} {:9.1}", seconds * 1e6, flops / seconds / 1e9, bytes / seconds / 1e9);
        if std::env::var_os("HADAL_SCHEDULE").is_some() {
            println!("    {}", generated.schedule);
        }
    };
    // Experts, of which each token has some, and sizes: of a 16B model, and of one that fits into the cache.
    for (name, e, chosen, f, d) in [("64", 64i64, 6i64, 1408i64, 2048i64), ("small 64", 64, 2, 64, 256)] {
        for x in ["f32", "bf16"] {
            for format in ["bf16", "f8e4m3", "f4e2m1", "i8", "i4"] {
                for t in [512i64, 64, 16, 1, 2, 3, 4] {
                    let width = match format {
                        "bf16" => 2.0,
                        "i4" | "f4e2m1" => 0.5,
                        _ => 1.0,
                    };
                    let flops = 2.0 * (t * chosen * f * d) as f64;
                    let streamed = (t * chosen).min(e) as f64 * (f * d) as f64 * width;
                    let tokens = if t > STEP { "T".to_owned() } else { t.to_string() };
                    let ids = choices(t, e, chosen);
                    for (what, n, k, spec) in [("up", f, d, "td,tkfd->tkf"), ("down", d, f, "tkd,tkfd->tkf")] {
                        if what == "down" && (format != "bf16" || t != 512) {
                            continue;
                        }
                        let (params, made) = weights(format, Some(e), n, k);
                        let given =
                            if what == "up" { format!("{tokens}, {k}") } else { format!("{tokens}, {chosen}, {k}") };
                        let made_type = if made.is_empty() { "bf16" } else { "f32" };
                        let body = format!(
                            "{made}  %1 = gather %w, %e {{axis = 0}} : {made_type}[{tokens}, {chosen}, {n}, {k}]\n  %y = contract %x, %1 {{spec = \"{spec}\"}} : f32[{tokens}, {chosen}, {n}]"
                        );
                        let func = function(
                            &format!("%x: {x}[{given}], {params}, %e: i32[{tokens}, {chosen}]"),
                            &body,
                            &format!("f32[{tokens}, {chosen}, {n}]"),
                        );
                        report(
                            format!("experts {name} {what} {x} by {format} T={t}"),
                            &func,
                            Some(ids.clone()),
                            t,
                            flops,
                            streamed,
                        );
                    }
                    // All weights, for as many rows as an expert has on average.
                    let rows = t * chosen / e;
                    if t > STEP && rows > 0 {
                        let (params, made) = weights(format, None, e * f, d);
                        let body = format!("{made}  %y = contract %x, %w {{spec = \"td,fd->tf\"}} : f32[T, {}]", e * f);
                        let func =
                            function(&format!("%x: {x}[T, {d}], {params}"), &body, &format!("f32[T, {}]", e * f));
                        let name = format!("dense {name} {x} by {format} rows={rows}");
                        report(name, &func, None, rows, 2.0 * (rows * e * f * d) as f64, (e * f * d) as f64 * width);
                    }
                }
            }
        }
    }
}
