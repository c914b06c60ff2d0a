//! Kernels used by tests, and tests of builder and text.

use super::interpret::{Buffer, RunFault};
use super::*;
use hadal_types::Bindings;

/// A small kernel with most kinds of statement.
pub(super) fn sample() -> Kernel {
    let mut b = Builder::new("sample");
    let x = b.param("x", DType::BF16, [Dim::from(Sym::T), Dim::from(20)], Access::Read);
    let y = b.param("y", DType::F32, [Dim::from(Sym::T)], Access::Write);
    let t = b.grid([Sym::T])[0];
    let tmp = b.alloc("tmp", DType::F32, [Dim::from(Sym::T) * 2 + 1]);
    let (zero, n, init) = (b.const_i64(0), b.const_i64(20), b.const_f32(-0.0));
    let acc = b.splat(init, 8);
    let sums = b.for_loop(zero, n, 8, LoopKind::Serial, &[acc], |b, i, c| {
        let mask = b.lanes_below(i, n, 8);
        let v = b.load_masked(x, &[t, i], mask, None);
        let v = b.cast(v, DType::F32);
        vec![b.fma(v, v, c[0])]
    });
    let sum = b.reduce_lanes(ReduceOp::Add, sums[0]);
    let limit = b.const_f32(4.0);
    let big = b.gt(sum, limit);
    let out = b.if_else(big, |b| vec![b.sqrt(sum)], |b| vec![b.exp(sum)]);
    b.store(tmp, &[t], out[0]);
    let out = b.load(tmp, &[t], 1);
    b.store(y, &[t], out);
    b.finish()
}

#[test]
fn sample_prints_and_parses() {
    let kernel = sample();
    let printed = kernel.to_string();
    let again = text::parse(&printed).unwrap();
    assert_eq!(again, kernel, "{printed}");
    assert_eq!(again.to_string(), printed);
    assert_eq!(kernel.scratch_bytes().unwrap().to_string(), "8*T+67");
}

fn faults(kernel: &Kernel) -> String {
    verify::verify(kernel).iter().map(|e| format!("{e}\n")).collect()
}

fn run(kernel: &Kernel, args: &mut [Buffer]) -> Result<(), RunFault> {
    interpret::run(kernel, &Bindings::from([(Sym::T, 2)]), args).map_err(|e| e.fault)
}

/// A kernel over `x: f32[4]`, read and written, and `y: f32[4]`, written, with a grid of T.
fn on_buffers(body: impl FnOnce(&mut Builder, Buf, Buf, Value)) -> Kernel {
    let mut b = Builder::new("k");
    let x = b.param("x", DType::F32, [4], Access::ReadWrite);
    let y = b.param("y", DType::F32, [4], Access::Write);
    let g = b.grid([Sym::T])[0];
    body(&mut b, x, y, g);
    b.finish()
}

fn run_on_buffers(body: impl FnOnce(&mut Builder, Buf, Buf, Value)) -> Result<(), RunFault> {
    let kernel = on_buffers(body);
    assert_eq!(faults(&kernel), "");
    run(&kernel, &mut [Buffer::from_f32(&[1.0, 2.0, 3.0, 4.0]), Buffer::uninit(DType::F32, 4)])
}

#[test]
fn sample_is_well_formed_and_runs() {
    let kernel = sample();
    assert_eq!(faults(&kernel), "");
    let x: Vec<u8> = (0..40).flat_map(|i| half::bf16::from_f32(i as f32 / 32.0).to_le_bytes()).collect();
    let mut args = [Buffer::from_bytes(DType::BF16, x), Buffer::uninit(DType::F32, 2)];
    run(&kernel, &mut args).unwrap();
    let squares = |lo: i32, hi: i32| (lo..hi).map(|i| (i as f32 / 32.0).powi(2)).sum::<f32>();
    assert_eq!(args[1].to_f32(), [squares(0, 20).exp(), squares(20, 40).sqrt()]);
}

#[test]
fn out_of_bounds_is_found_with_index_and_extent() {
    let fault = run_on_buffers(|b, x, y, g| {
        let three = b.const_i64(3);
        let at = b.add(g, three);
        let v = b.load(x, &[at], 1);
        b.store(y, &[g], v);
    });
    let expected = RunFault::OutOfBounds { buffer: "x".into(), at: vec![4], dim: 0, index: 4, extent: 4 };
    assert_eq!(fault, Err(expected));
}

#[test]
fn masked_lanes_touch_nothing() {
    let ok = run_on_buffers(|b, x, y, g| {
        let (two, four, fill) = (b.const_i64(2), b.const_i64(4), b.const_f32(9.0));
        let at = b.add(g, two);
        let mask = b.lanes_below(at, four, 4);
        let v = b.load_masked(x, &[at], mask, Some(fill));
        let v = b.extract(v, 3);
        b.store(y, &[g], v);
    });
    assert_eq!(ok, Ok(()));
}

#[test]
fn uninitialised_reads_are_found() {
    let fault = run_on_buffers(|b, _, y, g| {
        let zero = b.const_i64(0);
        let tmp = b.alloc("tmp", DType::F32, [2]);
        let v = b.load(tmp, &[zero], 1);
        b.store(y, &[g], v);
    });
    assert_eq!(fault, Err(RunFault::Uninitialised { buffer: "tmp".into(), at: vec![0] }));
}

#[test]
fn grid_indices_must_not_meet() {
    let same = run_on_buffers(|b, _, y, _| {
        let (zero, v) = (b.const_i64(0), b.const_f32(1.0));
        b.store(y, &[zero], v);
    });
    assert!(matches!(same, Err(RunFault::Race { .. })), "{same:?}");
    let neighbour = run_on_buffers(|b, x, _, g| {
        let one = b.const_i64(1);
        let next = b.add(g, one);
        let v = b.load(x, &[next], 1);
        b.store(x, &[g], v);
    });
    assert!(matches!(neighbour, Err(RunFault::Race { .. })), "{neighbour:?}");
}

/// Four warps write an element of a tile each and read their neighbour's, after what `between` has them do.
fn neighbours(between: impl Fn(&mut Builder, Buf)) -> Result<(), RunFault> {
    run_on_buffers(|b, x, _, g| {
        let (zero, one, four) = (b.const_i64(0), b.const_i64(1), b.const_i64(4));
        let tile = b.alloc_in(Space::Shared, Swizzle::None, "tile", DType::F32, [4]);
        let met = b.barriers("met", 1, 4);
        let first = b.eq(g, zero);
        b.for_each(zero, four, 1, LoopKind::Warp, |b, t| {
            let v = b.load(x, &[t], 1);
            b.store(tile, &[t], v);
            between(b, met);
            let next = b.add(t, one);
            let next = b.rem(next, four);
            let v = b.load(tile, &[next], 1);
            b.if_then(first, |b| b.store(x, &[t], v));
        });
    })
}

#[test]
fn warps_need_barriers() {
    let none = neighbours(|_, _| {});
    assert!(matches!(none, Err(RunFault::Race { .. } | RunFault::Uninitialised { .. })), "{none:?}");
    let arrived = |b: &mut Builder, met: Buf| {
        let zero = b.const_i64(0);
        b.arrive(met, zero);
    };
    let unheard = neighbours(arrived);
    assert!(matches!(unheard, Err(RunFault::Race { .. } | RunFault::Uninitialised { .. })), "{unheard:?}");
    // The second grid index reads what the first wrote.
    let met = neighbours(|b, met| {
        arrived(b, met);
        let zero = b.const_i64(0);
        b.wait(met, zero, zero);
    });
    assert!(matches!(met, Err(RunFault::Race { ref buffer, .. }) if buffer == "x"), "{met:?}");
    // A phase that nobody begins.
    let never = neighbours(|b, met| {
        arrived(b, met);
        let (zero, one) = (b.const_i64(0), b.const_i64(1));
        b.wait(met, zero, zero);
        b.wait(met, zero, one);
    });
    let Err(RunFault::Deadlock { waiting }) = never else { panic!("{never:?}") };
    assert_eq!(waiting[3], "warp 3 waits for met[0] parity 1, where 0 of 4 have arrived");
}

/// Copies two runs of `x` to a shared tile and reads it, after `wait` did its part.
fn copied(counts: bool, wait: impl FnOnce(&mut Builder)) -> Result<Vec<f32>, RunFault> {
    let mut b = Builder::new("copy");
    let x = b.param("x", DType::F32, [8], Access::Read);
    let y = b.param("y", DType::F32, [8], Access::Write);
    b.grid([1]);
    let (zero, one, four) = (b.const_i64(0), b.const_i64(1), b.const_i64(4));
    let tile = b.alloc_in(Space::Shared, Swizzle::None, "tile", DType::F32, [8]);
    b.for_each(zero, one, 1, LoopKind::Warp, |b, _| {
        let runs = b.iota(DType::I64, 2);
        let apart = b.splat(four, 2);
        let runs = b.mul(runs, apart);
        let other = b.sub(apart, runs);
        let counts = counts.then(|| b.add(runs, runs));
        b.copy((tile, &[runs]), (x, &[other]), 8, counts);
        wait(b);
        let v = b.load(tile, &[zero], 8);
        b.store(y, &[zero], v);
    });
    let kernel = b.finish();
    assert_eq!(faults(&kernel), "");
    assert_eq!(text::parse(&kernel.to_string()).unwrap(), kernel);
    let x: Vec<f32> = (1..9).map(|i| i as f32).collect();
    let mut args = [Buffer::from_f32(&x), Buffer::uninit(DType::F32, 8)];
    run(&kernel, &mut args)?;
    Ok(args[1].to_f32())
}

#[test]
fn copies_are_waited_for() {
    let early = copied(false, |b| b.team_op(TeamOp::Commit));
    assert_eq!(early, Err(RunFault::Uninitialised { buffer: "tile".into(), at: vec![0] }));
    let uncommitted = copied(false, |b| b.team_op(TeamOp::AwaitCopies(0)));
    assert!(matches!(uncommitted, Err(RunFault::Uninitialised { .. })));
    let pending = copied(false, |b| {
        b.team_op(TeamOp::Commit);
        b.team_op(TeamOp::AwaitCopies(1));
    });
    assert!(matches!(pending, Err(RunFault::Uninitialised { .. })));
    let whole = |b: &mut Builder| {
        b.team_op(TeamOp::Commit);
        b.team_op(TeamOp::AwaitCopies(0));
    };
    assert_eq!(copied(false, whole), Ok(vec![5.0, 6.0, 7.0, 8.0, 1.0, 2.0, 3.0, 4.0]));
    // None of the first run, all of the second.
    assert_eq!(copied(true, whole), Ok(vec![0.0, 0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0]));
}

/// What may be left out of, or go wrong in, [`pipeline`].
#[derive(Clone, Copy, PartialEq, Debug)]
enum Fault {
    None,
    NoFull,
    NoEmpty,
    NoFence,
    LateFence,
    NoCopyWait,
    NoSettle,
    EarlyEmpty,
    WrongParity,
    LazyWarp,
}

const DEPTH: i64 = 64;
const STAGES: i64 = 2;

/// 64 rows of bf16 by 16 columns, `steps` times 64 elements: a warp brings tiles to shared memory, four multiply them.
fn pipeline(steps: i64, fault: Fault) -> Kernel {
    let mut b = Builder::new("pipeline");
    let x = b.param("x", DType::BF16, [64 * steps * DEPTH], Access::Read);
    let w = b.param("w", DType::BF16, [16 * steps * DEPTH], Access::Read);
    let y = b.param("y", DType::F32, [64 * 16], Access::Write);
    b.grid([1]);
    let tile = |b: &mut Builder, name: &str, rows: i64| {
        b.alloc_in(Space::Shared, Swizzle::B128, name, DType::BF16, [STAGES * rows * DEPTH])
    };
    let (a, c) = (tile(&mut b, "a", 64), tile(&mut b, "b", 16));
    let (full, empty) = (b.barriers("full", STAGES, 1), b.barriers("empty", STAGES, 4));
    let [zero, one, four, all, count, stages, depth] = [0, 1, 4, 8, steps, STAGES, DEPTH].map(|n| b.const_i64(n));
    b.for_each(zero, all, 1, LoopKind::Warp, |b, warp| {
        let (multiplies, brings) = (b.lt(warp, four), b.eq(warp, four));
        b.if_then(brings, |b| {
            b.for_each(zero, count, 1, LoopKind::Serial, |b, step| {
                let (stage, round) = (b.rem(step, stages), b.div(step, stages));
                if fault != Fault::NoEmpty {
                    let parity = if fault == Fault::WrongParity { round } else { b.add(round, one) };
                    b.wait(empty, stage, parity);
                }
                for (from, to, rows) in [(x, a, 64), (w, c, 16)] {
                    // Thirty-two runs of eight at a time: four rows.
                    let quads = b.const_i64(rows / 4);
                    b.for_each(zero, quads, 1, LoopKind::Serial, |b, quad| {
                        let runs = b.iota(DType::I64, 32);
                        let [three, seven, eight] = [3, 7, 8].map(|n| b.const_i64(n));
                        let [shift, low, each] = [three, seven, eight].map(|v| b.splat(v, 32));
                        let (row, column) = (b.ushr(runs, shift), b.and(runs, low));
                        let column = b.mul(column, each);
                        let first = b.mul(quad, four);
                        let first = b.splat(first, 32);
                        let row = b.add(first, row);
                        let pitch = b.const_i64(steps * DEPTH);
                        let pitch = b.splat(pitch, 32);
                        let start = b.mul(row, pitch);
                        let at = b.mul(step, depth);
                        let at = b.splat(at, 32);
                        let source = b.add(start, at);
                        let source = b.add(source, column);
                        let wide = b.splat(depth, 32);
                        let target = b.mul(row, wide);
                        let target = b.add(target, column);
                        let size = b.const_i64(rows * DEPTH);
                        let base = b.mul(stage, size);
                        let base = b.splat(base, 32);
                        let target = b.add(target, base);
                        b.copy((to, &[target]), (from, &[source]), 256, None);
                    });
                }
                b.team_op(TeamOp::Commit);
                if fault != Fault::NoCopyWait {
                    b.team_op(TeamOp::AwaitCopies(0));
                }
                if !matches!(fault, Fault::NoFence | Fault::LateFence) {
                    b.team_op(TeamOp::FenceAsync);
                }
                b.arrive(full, stage);
                if fault == Fault::LateFence {
                    b.team_op(TeamOp::FenceAsync);
                }
            });
        });
        b.if_then(multiplies, |b| {
            let none = b.const_f32(0.0);
            let none = [b.splat(none, 128); 2];
            let sums = b.for_loop(zero, count, 1, LoopKind::Serial, &none, |b, step, sums| {
                let (stage, round) = (b.rem(step, stages), b.div(step, stages));
                if fault != Fault::NoFull {
                    b.wait(full, stage, round);
                }
                let sizes = [64 * DEPTH, 16 * DEPTH].map(|n| b.const_i64(n));
                let [rows, columns] = sizes.map(|n| b.mul(stage, n));
                if fault == Fault::EarlyEmpty {
                    b.arrive(empty, stage);
                }
                let product = |b: &mut Builder| {
                    let open = b.wgmma((a, rows), (c, columns), DEPTH as u32, 16, Some(sums));
                    b.settle(&open, if fault == Fault::NoSettle { 1 } else { 0 })
                };
                let sums = if fault == Fault::LazyWarp {
                    let some = b.lt(warp, one);
                    b.if_else(some, product, |_| sums.to_vec())
                } else {
                    product(b)
                };
                if fault != Fault::EarlyEmpty {
                    b.arrive(empty, stage);
                }
                sums
            });
            for (i, sum) in sums.iter().enumerate() {
                let size = b.const_i64(256);
                let base = b.mul(warp, size);
                let offset = b.const_i64(i as i64 * 128);
                let at = b.add(base, offset);
                b.store(y, &[at], *sum);
            }
        });
    });
    b.finish()
}

fn run_pipeline(steps: i64, fault: Fault, seed: u64) -> Result<Vec<f32>, RunFault> {
    let kernel = pipeline(steps, fault);
    assert_eq!(faults(&kernel), "");
    assert_eq!(text::parse(&kernel.to_string()).unwrap(), kernel);
    let small = |n: i64, unit: i64| -> Buffer {
        let value = |i: i64| half::bf16::from_f32((i * unit % 7 - 3) as f32).to_le_bytes();
        Buffer::from_bytes(DType::BF16, (0..n).flat_map(value).collect())
    };
    let args = [small(64 * steps * DEPTH, 5), small(16 * steps * DEPTH, 3), Buffer::uninit(DType::F32, 64 * 16)];
    let mut args = args;
    interpret::run_seeded(&kernel, &Bindings::new(), &mut args, (0..1, interpret::DEFAULT_STEPS), seed)
        .map_err(|e| e.fault)?;
    Ok(args[2].to_f32())
}

#[test]
fn pipelines_multiply_in_any_order_of_warps() {
    let steps = 5;
    let value = |i: i64, unit: i64| (i * unit % 7 - 3) as f32;
    let length = steps * DEPTH;
    for seed in [0, 1, 2, 77] {
        let found = run_pipeline(steps, Fault::None, seed).unwrap();
        for (i, found) in found.into_iter().enumerate() {
            let (warp, half, lane) = (i / 256, i / 128 % 2, i as u32 % 128);
            let (row, column) = matrix_place(2, lane);
            let (row, column) = (16 * warp as i64 + i64::from(row), 8 * half as i64 + i64::from(column));
            let sum: f32 = (0..length).map(|k| value(row * length + k, 5) * value(column * length + k, 3)).sum();
            assert_eq!(found, sum, "row {row}, column {column}");
        }
    }
}

#[test]
fn whatever_a_pipeline_leaves_out_is_found() {
    let found = |fault: Fault| run_pipeline(5, fault, 3).map(|_| ()).unwrap_err();
    let races = |fault: Fault| {
        let found = found(fault);
        assert!(matches!(found, RunFault::Race { .. } | RunFault::Uninitialised { .. }), "{fault:?}: {found}");
    };
    [Fault::NoFull, Fault::NoCopyWait, Fault::EarlyEmpty].into_iter().for_each(races);
    // What comes two rounds early is taken for what came before.
    assert!(matches!(found(Fault::NoEmpty), RunFault::Race { .. } | RunFault::Deadlock { .. }));
    assert_eq!(found(Fault::NoFence), RunFault::NoFence { buffer: "a".into(), at: vec![0] });
    assert_eq!(found(Fault::LateFence), RunFault::NoFence { buffer: "a".into(), at: vec![0] });
    assert_eq!(found(Fault::NoSettle), RunFault::OpenSum);
    assert!(matches!(found(Fault::WrongParity), RunFault::Deadlock { .. }));
    assert!(matches!(found(Fault::LazyWarp), RunFault::Diverges { .. }));
}

/// `dot` of the given lanes.
fn dotted(formats: [DType; 3], a: Vec<u8>, b: Vec<u8>, c: u32) -> u32 {
    let n = a.len() as u64 * 8 / formats[0].bits();
    let mut k = Builder::new("dot");
    let x = k.param("x", formats[0], [n as i64], Access::Read);
    let w = k.param("w", formats[1], [n as i64], Access::Read);
    let y = k.param("y", formats[2], [1i64], Access::ReadWrite);
    k.grid([1i64]);
    let zero = k.const_i64(0);
    let (xs, ws, sum) = (k.load(x, &[zero], n as u32), k.load(w, &[zero], n as u32), k.load(y, &[zero], 1));
    let sum = k.dot(xs, ws, sum);
    k.store(y, &[zero], sum);
    let kernel = k.finish();
    assert_eq!(faults(&kernel), "");
    assert_eq!(text::parse(&kernel.to_string()).unwrap(), kernel);
    let args = [(formats[0], a), (formats[1], b), (formats[2], c.to_le_bytes().to_vec())];
    let mut args = args.map(|(dtype, bytes)| Buffer::from_bytes(dtype, bytes));
    interpret::run(&kernel, &Bindings::new(), &mut args).unwrap();
    args[2].to_i32()[0] as u32
}

#[test]
fn dot_products_wrap_and_flush() {
    let bytes = [DType::U8, DType::I8, DType::I32];
    let sum = dotted(bytes, vec![255, 2, 3, 4], vec![0x80, 1, 1, 0xff], i32::MIN as u32) as i32;
    assert_eq!(sum, i32::MIN.wrapping_add(-255 * 128 + 2 + 3 - 4));
    let halves = |x: [f32; 2]| x.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect::<Vec<u8>>();
    let dot = |a, b, c: f32| {
        f32::from_bits(dotted([DType::BF16, DType::BF16, DType::F32], halves(a), halves(b), c.to_bits()))
    };
    // The odd lane first: it takes the sum to where the even one is below its last place.
    assert_eq!(dot([1.0, 1.0], [1.0, 33_554_432.0], -33_554_432.0), 1.0);
    assert_eq!(dot([33_554_432.0, 1.0], [1.0, 1.0], -33_554_432.0), 0.0);
    // Subnormal operands and results are zero of their sign.
    let tiny = f32::MIN_POSITIVE;
    assert_eq!(dot([1.0, 0.0], [tiny / 2.0, 0.0], 0.0).to_bits(), 0);
    assert_eq!(dot([-0.5, 0.0], [tiny, 0.0], -0.0).to_bits(), (-0.0f32).to_bits());
    assert_eq!(dot([0.0; 2], [0.0; 2], tiny / 2.0), 0.0);
    // One that is rounded up to the smallest normal number was below it.
    assert_eq!(dot([-(2f32.powi(-75)), 0.0], [2f32.powi(-76), 0.0], tiny), tiny);
    assert_eq!(dot([-(2f32.powi(-75)), 0.0], [1.5 * 2f32.powi(-76), 0.0], tiny), 0.0);
    assert_eq!(dot([-(2f32.powi(-75)), 0.0], [2f32.powi(-77), 0.0], tiny), tiny);
}

#[test]
fn endless_work_and_division_by_zero_stop() {
    let fault = run_on_buffers(|b, _, _, g| {
        let zero = b.const_i64(0);
        b.div(g, zero);
    });
    assert_eq!(fault, Err(RunFault::DivisionByZero));
    let kernel = on_buffers(|b, _, _, g| {
        let end = b.const_i64(i64::MAX);
        b.for_each(g, end, 1, LoopKind::Serial, |_, _| {});
    });
    let mut args = [Buffer::from_f32(&[0.0; 4]), Buffer::uninit(DType::F32, 4)];
    let error = interpret::run_range(&kernel, &Bindings::from([(Sym::T, 1)]), &mut args, 0..1, 1000).unwrap_err();
    assert_eq!(error.fault, RunFault::Steps { limit: 1000 });
}

#[test]
fn all_mistakes_are_found_at_once() {
    let kernel = on_buffers(|b, x, y, g| {
        let (one, whole) = (b.const_f32(1.0), b.const_i32(1));
        b.op(Op::Binary(BinaryOp::Add, one, whole), ValueType::scalar(DType::F32));
        b.load(y, &[g], 1);
        b.load(x, &[g, g], 1);
        b.op(Op::GridIndex(7), ValueType::INDEX);
        b.for_each(g, g, 0, LoopKind::Unroll, |_, _| {});
        b.stmt(Stmt::Store { place: Place { buf: x, index: vec![g] }, value: whole, mask: None });
        b.op(Op::Unary(UnaryOp::Neg, Value(3)), ValueType::vector(DType::F32, 3));
    });
    let found = faults(&kernel);
    for part in [
        "operand %2 has type i32, expected f32",
        "y is write",
        "x has 1 dimensions, indexed with 2",
        "the grid has 1 dimensions, not a number 7",
        "stride 0 is not positive",
        "x holds f32, not i32",
        "f32x3 is not a type",
    ] {
        assert!(found.contains(part), "{part}:\n{found}");
    }
    let mut broken = sample();
    broken.body.stmts.remove(0);
    assert!(faults(&broken).contains("is not defined here"), "{}", faults(&broken));
}

#[test]
fn tables_have_sixteen_bytes() {
    let mut b = Builder::new("k");
    let x = b.const_i32(1);
    let wide = b.splat(x, 4);
    let codes = b.bitcast(wide, DType::U8);
    b.lookup(std::array::from_fn(|i| i as u8 * 16), codes, DType::I8);
    let kernel = b.finish();
    assert_eq!(faults(&kernel), "");
    let printed = kernel.to_string();
    assert!(printed.contains("lookup x00102030405060708090a0b0c0d0e0f0, %2 : i8x16"), "{printed}");
    assert_eq!(text::parse(&printed).unwrap(), kernel);
    for wrong in ["x0010", "x00102030405060708090a0b0c0d0e0fg", "00102030405060708090a0b0c0d0e0f0"] {
        let error = text::parse(&printed.replace("x00102030405060708090a0b0c0d0e0f0", wrong)).unwrap_err();
        assert_eq!(error.expected, "a table: x and 32 hexadecimal digits");
    }
    let other = text::parse(&printed.replace("i8x16", "f8e4m3x16")).unwrap();
    assert!(faults(&other).contains("expected u8 or i8 lanes"), "{}", faults(&other));
    let wide = text::parse(&printed.replace("f0, %2 : i8x16", "f0, %1 : i8x4")).unwrap();
    assert!(faults(&wide).contains("operand %1 has type i32x4"), "{}", faults(&wide));
}

#[test]
fn sums_of_several_vectors_are_those_of_each() {
    for n in [2u32, 4, 16] {
        let mut b = Builder::new("k");
        let x = b.param("x", DType::F32, [i64::from(n * n)], Access::Read);
        let [y, z] = ["y", "z"].map(|name| b.param(name, DType::F32, [i64::from(n)], Access::Write));
        let zero = b.const_i64(0);
        // Beyond the end: a hint reads nothing.
        let beyond = b.const_i64(i64::from(n * n) + 1000);
        b.prefetch(x, &[beyond]);
        let rows = (0..n).map(|i| {
            let at = b.const_i64(i64::from(i * n));
            b.load(x, &[at], n)
        });
        let rows: Vec<Value> = rows.collect();
        for (i, row) in rows.iter().enumerate() {
            let (sum, at) = (b.reduce_lanes(ReduceOp::Add, *row), b.const_i64(i as i64));
            b.store(y, &[at], sum);
        }
        let all = b.sum_each(rows);
        b.store(z, &[zero], all);
        let kernel = b.finish();
        assert_eq!(faults(&kernel), "");
        assert_eq!(text::parse(&kernel.to_string()).unwrap(), kernel);
        // Sums in another order would differ.
        let x: Vec<u8> =
            (0..n * n).flat_map(|i| (0.1 * (i * i % 37) as f32 + 1e3 * (i % 3) as f32).to_le_bytes()).collect();
        let uninit = || Buffer::uninit(DType::F32, n as usize);
        let mut args = [Buffer::from_bytes(DType::F32, x), uninit(), uninit()];
        run(&kernel, &mut args).unwrap();
        assert_eq!(args[1].bytes, args[2].bytes);
    }
}

#[test]
fn rounds_of_zips_turn_a_square() {
    for n in [2u32, 4, 16] {
        let mut b = Builder::new("k");
        let x = b.param("x", DType::I32, [i64::from(n * n)], Access::Read);
        let y = b.param("y", DType::I32, [i64::from(n * n)], Access::Write);
        let at = |b: &mut Builder, i: u32| b.const_i64(i64::from(i * n));
        let rows = (0..n).map(|i| {
            let at = at(&mut b, i);
            b.load(x, &[at], n)
        });
        let rows = rows.collect();
        for (i, row) in b.transpose(rows).into_iter().enumerate() {
            let at = at(&mut b, i as u32);
            b.store(y, &[at], row);
        }
        let kernel = b.finish();
        assert_eq!(faults(&kernel), "");
        assert_eq!(text::parse(&kernel.to_string()).unwrap(), kernel);
        let x: Vec<u8> = (0..n * n).flat_map(u32::to_le_bytes).collect();
        let mut args = [Buffer::from_bytes(DType::I32, x), Buffer::uninit(DType::I32, (n * n) as usize)];
        run(&kernel, &mut args).unwrap();
        let turned: Vec<u8> = (0..n * n).flat_map(|i| (i % n * n + i / n).to_le_bytes()).collect();
        assert_eq!(args[1].bytes, turned);
    }
    let mut b = Builder::new("k");
    let one = b.const_f32(1.0);
    b.zip(Half::High, one, one);
    assert!(faults(&b.finish()).contains("two lanes or more"));
}

#[test]
fn dot_products_have_their_formats() {
    let mut b = Builder::new("k");
    let x = b.const_i32(1);
    let (v, w) = (b.splat(x, 8), b.splat(x, 4));
    let halves = b.bitcast(v, DType::BF16);
    let short = b.bitcast(w, DType::BF16);
    b.dot(halves, halves, v);
    let sums = b.bitcast(v, DType::F32);
    b.dot(halves, short, sums);
    b.dot(halves, halves, sums);
    let found = faults(&b.finish());
    assert_eq!(found.lines().count(), 2, "{found}");
    assert!(found.contains("no dot product of bf16x16 and bf16x16 into i32x8"), "{found}");
    assert!(found.contains("no dot product of bf16x16 and bf16x8 into f32x8"), "{found}");
}

#[test]
fn parse_errors_say_where_and_what() {
    let head = "kernel @k\nparam x : f32[4] read\ngrid 4\n{\n  %0 = grid 0 : i64\n";
    for (text, line, column, expected) in [
        ("kernel k".to_string(), 1, 8, "`@`"),
        ("kernel @k\nparam x : f33[4] read".into(), 2, 11, "a format such as f32 or bf16"),
        ("kernel @k\nparam x : f32[4] maybe".into(), 2, 18, "read, write or read_write"),
        (format!("{head}  %1 = load y[%0] : f32"), 6, 13, "the name of a buffer"),
        (format!("{head}  %1 = neg %7 : f32"), 6, 12, "a value defined above"),
        (format!("{head}  %1 = frob %0 : f32"), 6, 8, "an operation"),
        (format!("{head}  %1 = const 1.5 : i64"), 6, 14, "a constant of a type that has them (i64)"),
        (format!("{head}  %1 = const 1 : f32x1"), 6, 18, "a type such as f32 or i64x4"),
        (head.to_string(), 6, 1, "a statement"),
    ] {
        let error = text::parse(&text).unwrap_err();
        assert_eq!((error.line, error.column), (line, column), "{error}\n{text}");
        assert!(error.expected.starts_with(expected), "{error}");
    }
    let deep = format!("{head}{}", "if %0 {".repeat(100_000));
    assert_eq!(text::parse(&deep).unwrap_err().expected, "at most 64 nested blocks");
}

proptest::proptest! {
    #[test]
    fn arbitrary_kernels_print_parse_and_run(bytes in proptest::collection::vec(0u8.., 0..300)) {
        let kernel = arbitrary::kernel(&bytes);
        assert_eq!(faults(&kernel), "", "{kernel}");
        let printed = kernel.to_string();
        let again = text::parse(&printed).unwrap_or_else(|e| panic!("{e}\n{printed}"));
        assert_eq!(again.to_string(), printed);
        assert!(again == kernel, "{printed}");
        let symbols = Bindings::from([(Sym::T, arbitrary::ROWS)]);
        interpret::run(&kernel, &symbols, &mut arbitrary::arguments(1)).unwrap_or_else(|e| panic!("{e}\n{kernel}"));
    }

    #[test]
    fn damaged_text_gives_no_panic(bytes in proptest::collection::vec(0u8.., 0..60), at in 0usize..4000, with in ".{0,3}") {
        let mut printed = arbitrary::kernel(&bytes).to_string();
        let at = at % printed.len();
        if printed.is_char_boundary(at) {
            printed.replace_range(at..at + 1, &with);
        }
        if let Ok(kernel) = text::parse(&printed) {
            verify::verify(&kernel);
            assert_eq!(text::parse(&kernel.to_string()).unwrap(), kernel);
        }
    }
}

/// Rows are read through their places, multiplied, and written through those of the sums: a product of matrices.
#[test]
fn runs_and_matrices() {
    let mut b = Builder::new("matrix");
    let a = b.param("a", DType::BF16, [16 * 32i64], Access::Read);
    let w = b.param("w", DType::BF16, [8 * 32i64], Access::Read);
    let y = b.param("y", DType::F32, [16 * 8i64], Access::Write);
    let places = |b: &mut Builder, name: &str, runs: usize| b.param(name, DType::I64, [runs], Access::Read);
    let [pa, pw, py] = [("pa", 64), ("pw", 32), ("py", 64)].map(|(name, runs)| places(&mut b, name, runs));
    b.grid([1i64]);
    let zero = b.const_i64(0);
    let [at_a, at_w, at_y] = [(pa, 64), (pw, 32), (py, 64)].map(|(buf, runs)| b.load(buf, &[zero], runs));
    let (rows, columns, none) = (b.load(a, &[at_a], 512), b.load(w, &[at_w], 256), b.const_f32(0.5));
    let none = b.splat(none, 128);
    let sums = b.matrix(rows, columns, none);
    b.store(y, &[at_y], sums);
    let kernel = b.finish();
    assert_eq!(faults(&kernel), "");
    assert!(kernel.is_for_warps() && !sample().is_for_warps());
    assert_eq!(text::parse(&kernel.to_string()).unwrap(), kernel);
    // Where each run begins, as the numbering of lanes says.
    let starts = |operand: usize, run: u32, width: i64| -> Vec<i64> {
        let lanes = (0..MATRIX[operand].lanes).step_by(run as usize);
        lanes.map(|lane| matrix_place(operand, lane)).map(|(r, c)| i64::from(r) * width + i64::from(c)).collect()
    };
    let (left, right) = (|i: usize| (i % 11) as f32 - 5.0, |i: usize| (i % 7) as f32 - 2.0);
    let bf16 = |n: usize, f: &dyn Fn(usize) -> f32| -> Vec<u8> {
        (0..n).flat_map(|i| half::bf16::from_f32(f(i)).to_le_bytes()).collect()
    };
    let numbers = |x: Vec<i64>| Buffer::from_bytes(DType::I64, x.into_iter().flat_map(i64::to_le_bytes).collect());
    let mut args = [
        Buffer::from_bytes(DType::BF16, bf16(512, &left)),
        Buffer::from_bytes(DType::BF16, bf16(256, &right)),
        Buffer::uninit(DType::F32, 128),
        numbers(starts(0, 8, 32)),
        numbers(starts(1, 8, 32)),
        numbers(starts(2, 2, 8)),
    ];
    run(&kernel, &mut args).unwrap();
    let expected = |i: usize| 0.5 + (0..32).map(|k| left(i / 8 * 32 + k) * right(i % 8 * 32 + k)).sum::<f32>();
    assert_eq!(args[2].to_f32(), (0..128).map(expected).collect::<Vec<_>>());
    // A run that ends outside of its buffer.
    args[3] = numbers(vec![505; 64]);
    assert!(matches!(run(&kernel, &mut args), Err(RunFault::OutOfBounds { .. })));

    let refused = |from: &str, to: &str| {
        let text = kernel.to_string();
        assert!(text.contains(from), "{text}");
        faults(&text::parse(&text.replacen(from, to, 1)).unwrap())
    };
    let found = refused(": bf16x512", ": bf16x32");
    assert!(found.contains("a vector of 64 indices for bf16x32"), "{found}");
    let found = refused(": bf16x256", ": bf16x512");
    assert!(found.contains("expected bf16x256"), "{found}");
}

#[test]
fn products_of_values_have_their_shapes() {
    let mut b = Builder::new("across");
    let tile = b.alloc_in(Space::Shared, Swizzle::B128, "tile", DType::BF16, [2048]);
    let (zero, four, none) = (b.const_i64(0), b.const_i64(4), b.const_f32(0.0));
    b.for_each(zero, four, 1, LoopKind::Warp, |b, _| {
        let none = b.splat(none, 128);
        let [rows, other] = [b.cast(none, DType::BF16), b.cast(none, DType::BF16)];
        let open = b.wgmma_across(&[rows, other], (tile, zero, 1024), 16, None);
        let sums = b.settle(&open, 0);
        b.rows(ReduceOp::Add, sums[0]);
    });
    let kernel = b.finish();
    assert_eq!(faults(&kernel), "");
    let text = kernel.to_string();
    assert_eq!(text::parse(&text).unwrap(), kernel);
    for (from, to, what) in [
        ("panels 1024", "panels 1000", "no product by bf16 of depth 16, panels Some(1000)"),
        ("panels 1024", "panels 512", "no product by bf16 of depth 16, panels Some(512)"),
        ("depth 16", "depth 32", "no product by bf16 of depth 32"),
        (", %6 by", " by", "no product by bf16 of depth 16"),
        ("swizzle 128", "swizzle 64", "tile is no shared allocation"),
        ("rows add %9", "rows add %5", "expected f32x128"),
    ] {
        assert!(text.contains(from), "{from}\n{text}");
        let found = faults(&text::parse(&text.replacen(from, to, 1)).unwrap());
        assert!(found.contains(what), "{found}\n{text}");
    }
    // What nobody wrote cannot be multiplied.
    let found = run(&kernel, &mut []);
    assert!(matches!(&found, Err(RunFault::Uninitialised { buffer, .. }) if buffer == "tile"), "{found:?}");
}
