//! A whole product with copies of tensors, barriers and products of warpgroups: right as it is, and found wrong
//! whatever is left out.

mod support;
#[path = "support/gemm.rs"]
mod text;

use ptx_emulator::{
    Element, Fault, FlopKind, Launch, Memory, Module, Options, Report, Swizzle, TensorMap, f32_to_bf16, f32_to_e4m3,
};
use support::{Numbers, launch, module};
use text::{Factors, SHARED, kernel};

struct Case {
    memory: Memory,
    with: Launch,
    out: u64,
    expected: Vec<f32>,
}

/// Three tiles of three blocks of `k` each: with more of those, stages that are used again would order the tiles.
const M: usize = 384;
const N: usize = 128;

/// A product of small integers, whose sums are exact.
fn case(factors: Factors, swizzles: [Swizzle; 2]) -> Case {
    let (element, k) = match factors {
        Factors::Bf16 => (Element::Bf16, 192),
        Factors::E4m3 => (Element::U8, 384),
    };
    let mut numbers = Numbers(3);
    let mut memory = Memory::new();
    let mut factor = |rows: usize| {
        let values: Vec<f32> = (0..rows * k).map(|_| numbers.small()).collect();
        let bytes: Vec<u8> = match factors {
            Factors::Bf16 => values.iter().flat_map(|v| f32_to_bf16(*v).to_le_bytes()).collect(),
            Factors::E4m3 => values.iter().map(|v| f32_to_e4m3(*v)).collect(),
        };
        (memory.upload(&bytes), values)
    };
    let (a, left) = factor(M);
    let (b, right) = factor(N);
    let out = memory.allocate(4 * M * N);
    let columns = 128 / element.bytes();
    let map = |base, rows: usize, swizzle| {
        TensorMap::matrix(base, element, rows as u64, k as u64, 128, columns).swizzled(swizzle)
    };
    let c = TensorMap::matrix(out, Element::F32, M as u64, N as u64, 64, 128);
    let with = Launch { dynamic_shared: SHARED, ..Launch::new(1, 384) }
        .arg(&map(a, M, swizzles[0]))
        .arg(&map(b, N, swizzles[1]))
        .arg(&c)
        .arg((M / 128) as u32)
        .arg((N / 128) as u32)
        .arg((k as u32 * element.bytes()) / 128);
    let mut expected = vec![0.0; M * N];
    for row in 0..M {
        for column in 0..N {
            expected[row * N + column] = (0..k).map(|i| left[row * k + i] * right[column * k + i]).sum();
        }
    }
    Case { memory, with, out, expected }
}

fn outcome(text: &str, case: &Case, seed: u64) -> Result<(bool, Report), Box<Fault>> {
    with_module(&module(text), case, seed)
}

fn with_module(module: &Module, case: &Case, seed: u64) -> Result<(bool, Report), Box<Fault>> {
    let mut memory = case.memory.clone();
    let options = Options { seed, max_steps: 1 << 22, ..Options::default() };
    let report = launch(module, &mut memory, &case.with, &options)?;
    let found = memory.read_f32(case.out, M * N);
    Ok((found.as_ref() == Some(&case.expected), report))
}

const PLAIN: [Swizzle; 2] = [Swizzle::B128; 2];

#[test]
fn it_is_right() {
    for factors in [Factors::Bf16, Factors::E4m3] {
        let case = case(factors, PLAIN);
        let module = module(&kernel(factors));
        for seed in 0..50 {
            let (equal, report) =
                with_module(&module, &case, seed).unwrap_or_else(|f| panic!("{factors:?} {seed}: {f}"));
            assert!(equal, "{factors:?} with seed {seed}");
            let k = if factors == Factors::Bf16 { 192 } else { 384 };
            let kind = if factors == Factors::Bf16 { FlopKind::TensorHalf } else { FlopKind::TensorFp8 };
            assert_eq!(report.flops[&kind], (2 * M * N * k) as u64);
            assert_eq!(report.global_written, (4 * M * N) as u64);
            assert_eq!(report.global_read, 384 * ((M + N * 3) as u64));
            assert_eq!(report.global_read_sectors * 32, report.global_read);
        }
    }
}

#[test]
fn whatever_is_left_out_is_found() {
    let factors = Factors::Bf16;
    let case = case(factors, PLAIN);
    let text = kernel(factors);
    let mut marks: Vec<&str> = text.lines().filter_map(|l| l.split_once("//@ ")).map(|l| l.1).collect();
    marks.dedup();
    marks.sort_unstable();
    marks.dedup();
    assert!(marks.len() > 18, "{marks:?}");
    for mark in marks {
        let tail = format!("//@ {mark}");
        let mutant: Vec<&str> = text.lines().filter(|l| !l.ends_with(&tail)).collect();
        let module = module(&mutant.join("\n"));
        for seed in 0..5 {
            match with_module(&module, &case, seed) {
                Ok((equal, _)) => panic!("without {mark} nothing is reported, equal: {equal}"),
                Err(fault) => println!("without {mark}: {:?}: {}", fault.kind, fault.place.text),
            }
        }
    }
}

#[test]
fn weaker_forms_are_found() {
    let case = case(Factors::Bf16, PLAIN);
    let text = kernel(Factors::Bf16);
    let forms = [
        ("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r20], 32768;", "mbarrier.arrive.shared::cta.b64 _, [%r20];"),
        ("[%r20], 32768;", "[%r20], 16384;"),
        ("wait_group.sync.aligned 1;", "wait_group.sync.aligned 2;"),
        ("xor.b32 %r16, %r15, 1;", "mov.b32 %r16, %r15;"),
        ("[%r20+8], 2;", "[%r20+8], 1;"),
        ("bulk.wait_group.read 0;", "bulk.wait_group.read 1;"),
        ("fence.proxy.async.shared::cta;", "fence.proxy.async.global;"),
        ("bar.sync %r47, 128; //@ staged", "bar.sync %r47, 256; //@ staged"),
        (".b64 %p5, [%r20], %r15;", ".b64 %p5, [%r20], 0;"),
    ];
    for (from, to) in forms {
        assert!(text.contains(from), "{from}");
        for seed in 0..2 {
            match outcome(&text.replace(from, to), &case, seed) {
                Ok((equal, _)) => panic!("{to} is not reported, equal: {equal}"),
                Err(fault) => println!("{to}: {:?}: {}", fault.kind, fault.place.text),
            }
        }
    }
}

#[test]
fn another_swizzle_is_another_result() {
    let text = kernel(Factors::Bf16);
    let case = case(Factors::Bf16, [Swizzle::B128, Swizzle::None]);
    assert!(!outcome(&text, &case, 0).unwrap().0);
    let other = text.replace("or.b64 %rd11, %rd11, 0x4000", "or.b64 %rd11, %rd11, 0x8000");
    let case = self::case(Factors::Bf16, PLAIN);
    match outcome(&other, &case, 0) {
        Ok((equal, _)) => assert!(!equal),
        Err(fault) => println!("{fault}"),
    }
}
