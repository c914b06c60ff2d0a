//! What a run can be asked for beside being right: worse functions, worse sums, counts.

mod support;

use ptx_emulator::{FlopKind, Launch, Memory, Options, f32_to_e4m3};
use support::{launch, module};

#[test]
fn approximate_functions_move_within_their_error() {
    let module = module(
        ".visible .entry k(.param .u64 out) {
        .reg .b32 t; .reg .b64 o, w; .reg .f32 f;
        mov.u32 t, %tid.x; cvt.rn.f32.u32 f, t; ex2.approx.f32 f, f;
        ld.param.u64 o, [out]; mul.wide.u32 w, t, 4; add.s64 o, o, w;
        st.global.f32 [o], f; ret;
    }",
    );
    let mut different = 0;
    for seed in 0..8 {
        let mut memory = Memory::new();
        let out = memory.allocate(128);
        let options = Options { seed, perturb: true, ..Options::default() };
        launch(&module, &mut memory, &Launch::new(1, 32).arg(out), &options).unwrap();
        for (power, value) in memory.read_f32(out, 32).unwrap().into_iter().enumerate() {
            let exact = 2f32.powi(power as i32);
            assert!((value / exact - 1.0).abs() <= 2.0 * f32::EPSILON);
            different += u32::from(value != exact);
        }
    }
    assert!(different > 100);
}

#[test]
fn sums_of_eight_bit_products_can_be_truncated() {
    let module = module(
        ".visible .entry k(.param .u64 out, .param .u32 a) {
        .reg .b32 x, y; .reg .b64 o; .reg .f32 f<4>; .reg .pred p;
        ld.param.u32 x, [a]; mov.u32 y, %laneid;
        mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {f0, f1, f2, f3}, {x, x, 0, 0}, {x, 0}, {0f46000000, 0f46000000, 0f46000000, 0f46000000};
        setp.ne.u32 p, y, 0;
        @p ret;
        ld.param.u64 o, [out]; st.global.f32 [o], f0; ret;
    }"
        .replace("{x, x, 0, 0}, {x, 0}", "{x, x, z, z}, {x, z}")
        .replace(".reg .b64 o;", ".reg .b64 o; .reg .b32 z;")
        .replace("mov.u32 y", "mov.u32 z, 0; mov.u32 y")
        .replace("{0f46000000, 0f46000000, 0f46000000, 0f46000000}", "{g, g, g, g}")
        .replace(".reg .f32 f<4>;", ".reg .f32 f<4>, g;")
        .replace("mov.u32 z, 0;", "mov.u32 z, 0; mov.f32 g, 0f46000000;")
        .as_str(),
    );
    // 8192 and four lanes of four products of a quarter.
    let half = u32::from(f32_to_e4m3(0.5)) * 0x0101_0101;
    for (bits, wanted) in [(None, 8196.0), (Some(13), 8192.0), (Some(15), 8196.0)] {
        let mut memory = Memory::new();
        let out = memory.allocate(4);
        let options = Options { fp8_accumulation_bits: bits, ..Options::default() };
        let report = launch(&module, &mut memory, &Launch::new(1, 32).arg(out).arg(half), &options).unwrap();
        assert_eq!(memory.read_f32(out, 1), Some(vec![wanted]), "{bits:?}");
        assert_eq!(report.flops[&FlopKind::TensorFp8], 2 * 16 * 8 * 32);
    }
}

#[test]
fn accesses_are_counted() {
    let text = |stride: u32| {
        format!(
            ".visible .entry k(.param .u64 in, .param .u64 out) {{
            .reg .b32 t, v, s; .reg .b64 p, q, w; .reg .f32 f;
            .shared .align 4 .b8 buffer[8192];
            mov.u32 t, %tid.x; ld.param.u64 p, [in]; ld.param.u64 q, [out];
            mul.wide.u32 w, t, {stride}; add.s64 p, p, w;
            ld.global.u32 v, [p];
            mov.u32 s, buffer; mad.lo.u32 s, t, {stride}, s;
            st.shared.u32 [s], v;
            ld.shared.f32 f, [s];
            fma.rn.f32 f, f, f, f; add.rn.f32 f, f, f;
            mul.wide.u32 w, t, 4; add.s64 q, q, w;
            st.global.f32 [q], f;
            ret;
        }}"
        )
    };
    for (stride, sectors, conflicts) in [(4, 4, 0), (8, 8, 2), (128, 32, 62), (132, 32, 0)] {
        let module = module(&text(stride));
        let mut memory = Memory::new();
        let from = memory.upload(&[0; 8192]);
        let to = memory.allocate(128);
        let with = Launch::new(1, 32).arg(from).arg(to);
        let report = launch(&module, &mut memory, &with, &Options::default()).unwrap();
        assert_eq!((report.global_read, report.global_written), (128, 128));
        assert_eq!((report.global_read_sectors, report.global_written_sectors), (sectors, 4), "stride {stride}");
        assert_eq!((report.shared_read, report.shared_written), (128, 128));
        assert_eq!(report.bank_conflicts, conflicts, "stride {stride}");
        assert_eq!(report.flops[&FlopKind::F32], 96);
        assert_eq!(report.instructions["ld.global.u32"], 1);
        assert_eq!((report.blocks, report.shared_bytes), (1, 8192));
        assert_eq!(report.lane_instructions, 32 * report.warp_instructions);
    }
}
