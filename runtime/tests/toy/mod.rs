//! A toy language model made of Rust functions, so that sessions, pool and generation are tested without a compiler.
//!
//! State `rows` keeps the tokens. `mix` turns each new position into a number that depends on every token so far, in
//! order; `head` turns the last of them into logits. Both are large enough to be shared among threads.

#![allow(dead_code, reason = "not every test uses all of it")]

use hadal_runtime::artifact::*;
use hadal_runtime::{KernelFn, Pool, Program, Session};
use hadal_types::{DType, Dim, Sym, TensorType};
use std::sync::Arc;

pub const VOCAB: usize = 16384;
pub const CONTEXT: u64 = 64;
pub const CHUNK: i64 = 8;

/// `rows[P + i] = tokens[i]`
unsafe extern "C" fn append(args: *const *mut u8, symbols: *const i64, lo: i64, hi: i64, _: *mut u8) {
    // SAFETY: called with the buffers of the manifest below.
    unsafe {
        let (tokens, rows, p) = ((*args).cast::<i32>(), (*args.add(1)).cast::<i32>(), *symbols);
        for i in lo..hi {
            *rows.add((p + i) as usize) = *tokens.add(i as usize);
        }
    }
}

/// `x[i] = hash(rows[0..=P + i])`
unsafe extern "C" fn mix(args: *const *mut u8, symbols: *const i64, lo: i64, hi: i64, _: *mut u8) {
    // SAFETY: as above.
    unsafe {
        let (rows, x, p) = ((*args).cast::<i32>(), (*args.add(1)).cast::<i64>(), *symbols);
        for i in lo..hi {
            let so_far = (0..=p + i).map(|j| *rows.add(j as usize) as i64);
            *x.add(i as usize) = so_far.fold(17, |h, t| (h * 31 + t) % 1_000_003);
        }
    }
}

/// `logits[r, v] = w[v] · noise(x[T - R + r], v)`, where `R` rows are wanted.
unsafe fn head(args: *const *mut u8, first_row: i64, lo: i64, hi: i64, scratch: *mut u8) {
    // SAFETY: as above; scratch has 64 bytes.
    unsafe {
        let (x, w, y) = ((*args).cast::<i64>(), (*args.add(1)).cast::<f32>(), (*args.add(2)).cast::<f32>());
        let s = scratch.cast::<i64>();
        for i in lo..hi {
            let (r, v) = (i / VOCAB as i64, i % VOCAB as i64);
            s.write(*x.add((first_row + r) as usize) * 7919 + v * 104_729);
            *y.add(i as usize) = *w.add(v as usize) * (s.read() % 10_007) as f32 / 1000.0;
        }
    }
}

unsafe extern "C" fn last(args: *const *mut u8, symbols: *const i64, lo: i64, hi: i64, scratch: *mut u8) {
    // SAFETY: as above.
    unsafe { head(args, *symbols - 1, lo, hi, scratch) }
}

unsafe extern "C" fn all(args: *const *mut u8, _: *const i64, lo: i64, hi: i64, scratch: *mut u8) {
    // SAFETY: as above.
    unsafe { head(args, 0, lo, hi, scratch) }
}

pub fn symbols(lo: i64, hi: i64) -> Vec<SymbolRange> {
    vec![SymbolRange { sym: Sym::T, lo, hi }, SymbolRange { sym: Sym::P, lo: 0, hi: CONTEXT as i64 - 1 }]
}

pub fn manifest() -> Manifest {
    let (t, s) = (Dim::from(Sym::T), Dim::from(Sym::P) + Sym::T);
    let vocab = Dim::from(VOCAB);
    let ty = |dtype, shape: &[&Dim]| TensorType::new(dtype, shape.iter().map(|d| (*d).clone()));
    let param = |name: &str, access, ty| Param { name: name.into(), access, ty };
    let one = Dim::from(1);
    let kernel = |name: &str, symbols: &[Sym], params: Vec<Param>| Kernel {
        name: name.into(),
        offset: 0,
        bytes: 1,
        scratch_bytes: 64,
        block: None,
        symbols: symbols.into(),
        params,
        origin: String::new(),
    };
    let head = |rows: &Dim| {
        vec![
            param("x", Access::Read, ty(DType::I64, &[&t])),
            param("w", Access::Read, ty(DType::F32, &[&vocab])),
            param("y", Access::Write, ty(DType::F32, &[rows, &vocab])),
        ]
    };
    let entry = |name: &str, most: i64, head: u32, rows: &Dim| Entry {
        name: name.into(),
        symbols: symbols(1, most),
        inputs: vec![Port { name: "tokens".into(), ty: ty(DType::I32, &[&t]) }],
        outputs: vec![Port { name: "logits".into(), ty: ty(DType::F32, &[rows, &vocab]) }],
        versions: vec![Version {
            symbols: symbols(1, most),
            launches: vec![
                Launch {
                    kernel: 0,
                    args: vec![Arg::of(Space::Input(0)), Arg::of(Space::State(0))],
                    grid: vec![t.clone()],
                    each: false,
                },
                Launch {
                    kernel: 1,
                    args: vec![Arg::of(Space::State(0)), Arg::arena(0)],
                    grid: vec![t.clone()],
                    each: false,
                },
                Launch {
                    kernel: head,
                    args: vec![Arg::arena(0), Arg::of(Space::Weight(0)), Arg::of(Space::Output(0))],
                    grid: vec![rows.clone(), vocab.clone()],
                    each: false,
                },
            ],
            batches: false,
            weight_bytes_read: Some(4 * VOCAB as u64),
            flops: None,
        }],
    };
    Manifest {
        producer: "toy".into(),
        target: Target { arch: std::env::consts::ARCH.into(), features: vec![] },
        model: Model {
            name: "toy".into(),
            architecture: "hash".into(),
            vocab: VOCAB as u64,
            max_context: CONTEXT,
            max_chunk: CHUNK as u64,
            bos: Some(0),
            stop: vec![1],
            sampling: SamplingDefaults::default(),
        },
        kernels: vec![
            kernel(
                "append",
                &[Sym::P],
                vec![
                    param("tokens", Access::Read, ty(DType::I32, &[&t])),
                    param("rows", Access::ReadWrite, ty(DType::I32, &[&s])),
                ],
            ),
            kernel(
                "mix",
                &[Sym::P],
                vec![
                    param("rows", Access::Read, ty(DType::I32, &[&s])),
                    param("x", Access::Write, ty(DType::I64, &[&t])),
                ],
            ),
            kernel("last", &[Sym::T], head(&one)),
            kernel("all", &[], head(&t)),
        ],
        weights: vec![Weight {
            name: "w".into(),
            dtype: DType::F32,
            shape: vec![VOCAB as u64],
            bytes: 4 * VOCAB as u64,
            place: Place::Embedded { offset: 0 },
            by_rows: false,
        }],
        files: vec![],
        definitions: Default::default(),
        states: vec![State {
            name: "rows".into(),
            dtype: DType::I32,
            row_shape: vec![],
            held: Sym::P.into(),
            rows: CONTEXT,
            page_rows: CONTEXT,
            bytes: 4 * CONTEXT,
        }],
        entries: vec![entry("prefill", CHUNK, 2, &one), entry("decode", 1, 2, &one), entry("logits", CHUNK, 3, &t)],
        arena_bytes: 64,
        facts: vec![],
        others: vec![],
    }
}

pub fn program() -> Arc<Program> {
    with(|_| {})
}

pub fn with(change: impl FnOnce(&mut Manifest)) -> Arc<Program> {
    let mut m = manifest();
    change(&mut m);
    let functions: Vec<KernelFn> = vec![append, mix, last, all];
    let weights: Vec<u8> = (0..VOCAB).flat_map(|v| (1.0 + (v % 97) as f32 / 97.0).to_le_bytes()).collect();
    assert_eq!(check(&m, 64, m.embedded_bytes()), []);
    // SAFETY: the functions do what the manifest says.
    unsafe { Program::from_parts(m, functions, &[&weights]) }.unwrap()
}

pub fn session(threads: usize) -> Session {
    Session::new(program(), Pool::new(threads)).unwrap()
}
