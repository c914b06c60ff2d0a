//! Texts that are not PTX, or more than is understood: clear errors with lines, and never a panic.

mod support;
#[path = "support/gemm.rs"]
mod text;

use proptest::prelude::*;
use ptx_emulator::{Element, ErrorKind, FaultKind, Launch, Memory, Module, Options, Swizzle, TensorMap};
use support::{HEADER, launch, wrong};

fn error(body: &str) -> ptx_emulator::Error {
    let text = format!(
        "{HEADER}.visible .entry k(.param .u64 p) {{\n.reg .b32 a, b;\n.reg .b64 w;\n.reg .pred q;\n{body}\nret;\n}}\n"
    );
    Module::parse(&text).expect_err(body)
}

#[test]
fn errors_name_the_line_and_what_is_wrong() {
    let found = error("frobnicate.u32 a, b;");
    assert_eq!((found.line, &*found.text), (8, "frobnicate.u32 a, b;"));
    assert_eq!(found.to_string(), "line 8: frobnicate.u32 is not supported in `frobnicate.u32 a, b;`");
    let cases = [
        ("add.u32 a, b, c;", "`c` is not declared"),
        ("add.u32 a, b;", "expected at least 3, found 2"),
        ("add.u32 a, b, b, b;", "expected 3 operands, found 4"),
        ("add.u64 a, b, b;", "a: expected .u64, found .b32"),
        ("add.u32 q, a, b;", "expected .u32, found .pred"),
        ("add.rn.u32 a, a, b;", "add.rn.u32 is not supported"),
        ("bra nowhere;", "`nowhere` is not declared"),
        ("@a bra x; x:", "the guard: expected .pred, found .b32"),
        ("ld.global.u32 a, [b", "expected `]`"),
        ("mov.u32 a, %nonsense;", "`%nonsense` is not declared"),
        (".reg .b32 a;", "`a` is declared twice"),
        ("x: x:", "`x` is declared twice"),
        ("u32 a, b;", "u32 is not supported"),
        ("mbarrier;", "mbarrier is not supported"),
        ("fma.f32 a, a, a, a;", "fma.f32 without a rounding"),
        ("bar.arrive 0;", "without a number of threads"),
        ("cp.async.cg.shared.global [a], [w], 8;", "expected 4, 8 or 16"),
        ("wgmma.wait_group.sync.aligned 9;", "expected 0 to 7"),
        ("setmaxnreg.inc.sync.aligned.u32 30;", "a multiple of 8"),
        ("call (a), f, (b);", "`f` is not declared"),
        ("cvt.e4m3x2.f32 a, a, b;", "cvt.e4m3x2.f32 is not supported"),
        ("mov.u32 a, 99999999999999999999;", "a number"),
        ("/* open", "`*/`"),
        ("mov.u32 a, #;", "expected PTX"),
    ];
    for (body, wanted) in cases {
        let shown = error(body).to_string();
        assert!(shown.contains(wanted), "{body}: {shown}");
    }
}

#[test]
fn the_module_must_state_what_it_uses() {
    let text = |version: &str, target: &str, body: &str| {
        format!(
            ".version {version}\n.target {target}\n.address_size 64\n.visible .entry k() {{\n.reg .b64 w; .reg .b32 a; .reg .pred p;\n{body}\nret;\n}}\n"
        )
    };
    let needs = [
        ("wgmma.fence.sync.aligned;", "8.0", "sm_90", "PTX 8.0 and sm_90a"),
        ("setmaxnreg.inc.sync.aligned.u32 40;", "8.4", "sm_100a", "sm_90a"),
        ("cp.async.bulk.commit_group;", "7.8", "sm_90", "PTX 8.0"),
        ("cp.async.commit_group;", "8.4", "sm_75", "sm_80"),
        ("elect.sync _|p, -1;", "8.4", "sm_80", "sm_90"),
        ("redux.sync.add.u32 a, a, -1;", "6.5", "sm_80", "PTX 7.0"),
        ("fence.proxy.async;", "8.4", "sm_89", "sm_90"),
    ];
    for (body, version, target, wanted) in needs {
        let error = Module::parse(&text(version, target, body)).expect_err(body);
        assert!(matches!(error.kind, ErrorKind::TooNew { .. }), "{error}");
        assert!(error.to_string().contains(wanted), "{error}");
        Module::parse(&text("8.4", "sm_90a", body)).unwrap();
    }
    assert!(Module::parse(".target sm_90").is_err());
}

#[test]
fn limits_hold() {
    let deep = format!("{HEADER}.entry k() {{ {} }}", "{".repeat(100_000));
    assert!(matches!(Module::parse(&deep).unwrap_err().kind, ErrorKind::Limit { .. }));
    let many = format!("{HEADER}.entry k() {{ .reg .b32 %r<4000000000>; }}");
    assert!(matches!(Module::parse(&many).unwrap_err().kind, ErrorKind::Limit { .. }));
    let large = format!("{HEADER}.global .b64 x[99999999999];");
    assert!(matches!(Module::parse(&large).unwrap_err().kind, ErrorKind::Limit { .. }));
    let chain = format!(
        "{HEADER}.func a() {{ call b, (); ret; }} .func b() {{ call a, (); ret; }} .entry k() {{ call a, (); ret; }}"
    );
    assert!(matches!(Module::parse(&chain).unwrap_err().kind, ErrorKind::Recursion { .. }));
}

#[test]
fn launches_are_checked() {
    let text = ".visible .entry k(.param .u64 p) .reqntid 32, 1, 1 { ret; }";
    let module = support::module(text);
    let run = |with: Launch| launch(&module, &mut Memory::new(), &with, &Options::default());
    run(Launch::new(1, 32).arg(0u64)).unwrap();
    for with in [
        Launch::new(1, 64).arg(0u64),
        Launch::new(1, 2048).arg(0u64),
        Launch::new(0, 32).arg(0u64),
        Launch::new(1, 32),
        Launch::new(1, 32).arg(0u32),
        Launch { dynamic_shared: 1 << 20, ..Launch::new(1, 32).arg(0u64) },
        Launch { cluster: [2, 1, 1], ..Launch::new(3, 32).arg(0u64) },
    ] {
        assert_eq!(run(with).unwrap_err().kind, FaultKind::Launch);
    }
}

#[test]
fn accesses_are_checked() {
    let kernel = |body: &str| {
        format!(
            ".visible .entry k(.param .u64 p) {{ .reg .b32 a, b, t; .reg .b64 w, v; .reg .pred q; .reg .f32 f; .shared .align 4 .b8 s[16]; ld.param.u64 w, [p]; mov.u32 t, %tid.x; {body} ret; }}"
        )
    };
    let mut memory = Memory::new();
    let data = memory.upload(&[0; 64]);
    memory.allocate(64);
    let unwritten = data + 65536 + 256;
    let with = Launch::new(1, 1).arg(data);
    let cases = [
        ("ld.global.u32 a, [w+64];", FaultKind::OutOfBounds),
        ("ld.global.u32 a, [w+-4];", FaultKind::OutOfBounds),
        ("ld.global.u32 a, [w+2];", FaultKind::Misaligned),
        ("ld.global.v4.u32 {a, a, a, a}, [w+4];", FaultKind::Misaligned),
        ("st.shared.u32 [s+16], t;", FaultKind::OutOfBounds),
        ("ld.shared.u32 a, [s];", FaultKind::UninitialisedMemory),
        ("ld.u32 a, [w+4096];", FaultKind::OutOfBounds),
        ("add.u32 a, b, b;", FaultKind::UninitialisedRegister),
        ("@q mov.u32 a, 1;", FaultKind::UninitialisedRegister),
        ("mov.u32 a, b; st.global.u32 [w], a;", FaultKind::UninitialisedRegister),
        ("trap;", FaultKind::Trap),
        ("x: bra x;", FaultKind::StepLimit),
        ("cvta.to.shared.u64 v, w;", FaultKind::OutOfBounds),
    ];
    for (body, kind) in cases {
        let module = support::module(&kernel(body));
        let options = Options { max_steps: 1000, ..Options::default() };
        let fault = launch(&module, &mut memory.clone(), &with, &options).expect_err(body);
        assert_eq!(fault.kind, kind, "{fault}");
        assert!(body.contains(fault.place.text.trim_end_matches("ret; }").trim()) || fault.place.text.contains(body));
    }
    wrong(
        &kernel("ld.global.u32 a, [w];"),
        &memory,
        &Launch::new(1, 1).arg(unwritten),
        &[FaultKind::UninitialisedMemory],
    );
    // Lanes that write different values to one place race; equal ones do not.
    let every = Launch::new(1, 32).arg(data);
    wrong(&kernel("st.global.u32 [w], t;"), &memory, &every, &[FaultKind::Race]);
    support::right(&kernel("mov.u32 a, 7; st.global.u32 [w], a;"), &memory, &every);
    let uniform = Options { uniform_branches: true, ..Options::default() };
    let module = support::module(&kernel("setp.lt.u32 q, t, 3; @q bra x; mov.u32 a, 1; x:"));
    let fault = launch(&module, &mut memory.clone(), &every, &uniform).unwrap_err();
    assert_eq!((fault.kind, fault.lanes), (FaultKind::Divergence, 7));
    launch(&module, &mut memory.clone(), &every, &Options::default()).unwrap();
}

const SEED: &str = ".visible .entry k(.param .u64 p, .param .align 64 .b8 m[128]) .maxntid 128, 1, 1 {
    .reg .b32 %r<9>; .reg .b64 %rd<5>; .reg .pred %p<3>; .reg .f32 %f<9>;
    .shared .align 128 .b8 s[1024];
    ld.param.u64 %rd1, [p];
    { .reg .b32 t; mov.u32 t, %tid.x; mul.wide.u32 %rd2, t, 4; }
    add.s64 %rd3, %rd1, %rd2;
    ld.global.u32 %r1, [%rd3+16];
    setp.lt.and.s32 %p1|%p2, %r1, 5, !%p1;
    @!%p1 bra L;
    fma.rn.f32 %f1, 0f3F800000, %f2, %f3;
    mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%f1,%f2,%f3,%f4}, {%r1,%r2}, {%r3}, {%f1,%f2,%f3,%f4};
    cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%rd1, {%r2, %r3}], [%r4];
    L: shfl.sync.bfly.b32 %r2|%p1, %r1, 1, 31, -1;
    ret;
}";

/// A text cut between words and marks.
fn parts(text: &str) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    for character in text.chars() {
        match parts.last_mut() {
            Some(last) if character.is_alphanumeric() && last.chars().all(char::is_alphanumeric) => {
                last.push(character)
            }
            _ => parts.push(character.to_string()),
        }
    }
    parts
}

/// Parts taken away, doubled, exchanged or replaced.
fn change(parts: &mut Vec<String>, changes: &[(u16, u16, u8)]) {
    for &(at, other, what) in changes {
        let (at, other) = (usize::from(at) % parts.len(), usize::from(other) % parts.len());
        match what {
            0 => drop(parts.remove(at)),
            1 => parts.insert(at, parts[other].clone()),
            2 => parts.swap(at, other),
            _ => parts[at] = ["9", "4294967295", "-1", "x", "%r99", "{"][other % 6].to_owned(),
        }
    }
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "[ -~\\n]{0,200}") {
        let _ = Module::parse(&text);
        let _ = Module::parse(&format!("{HEADER}.visible .entry k() {{\n{text}\n}}"));
    }

    /// Tokens of a right text, some of them taken away, doubled or exchanged: what still parses may run.
    #[test]
    fn no_change_of_a_text_makes_it_panic(changes in prop::collection::vec((any::<u16>(), any::<u16>(), 0..4u8), 1..6)) {
        let mut parts = parts(SEED);
        change(&mut parts, &changes);
        if let Ok(module) = Module::parse(&format!("{HEADER}{}", parts.concat())) {
            let mut memory = Memory::new();
            let data = memory.upload(&[0; 1024]);
            let with = Launch::new(1, 32).arg(data).arg(vec![0; 128]);
            let options = Options { max_steps: 10_000, ..Options::default() };
            if module.kernels().next().is_some() {
                let _ = launch(&module, &mut memory, &with, &options);
            }
        }
    }

    /// The same of a kernel with everything in it, which runs until it faults.
    #[test]
    fn no_change_of_a_product_makes_it_panic(changes in prop::collection::vec((any::<u16>(), any::<u16>(), 0..4u8), 1..3)) {
        let mut parts = parts(&text::kernel(text::Factors::Bf16));
        change(&mut parts, &changes);
        if let Ok(module) = Module::parse(&format!("{HEADER}{}", parts.concat())) {
            let mut memory = Memory::new();
            let factor = memory.upload(&[0; 128 * 128 * 2]);
            let out = memory.allocate(4 * 128 * 128);
            let map = TensorMap::matrix(factor, Element::Bf16, 128, 128, 128, 64).swizzled(Swizzle::B128);
            let sums = TensorMap::matrix(out, Element::F32, 128, 128, 64, 128);
            let with = Launch { dynamic_shared: text::SHARED, ..Launch::new(1, 384) }
                .arg(&map).arg(&map).arg(&sums).arg(1u32).arg(1u32).arg(2u32);
            let options = Options { max_steps: 20_000, ..Options::default() };
            if module.kernels().next().is_some() {
                let _ = launch(&module, &mut memory, &with, &options);
            }
        }
    }
}
