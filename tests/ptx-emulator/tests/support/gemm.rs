//! A product `c = a · bᵀ` as a persistent kernel with a producer, two consumers and four stages, written out.
#![allow(dead_code, reason = "each test takes what it needs")]

use std::fmt::Write;

/// What the factors are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Factors {
    Bf16,
    E4m3,
}

pub const STAGES: u32 = 4;
const STAGE: u32 = 32768;
const BARRIERS: u32 = STAGES * STAGE + 65536;
/// Dynamic shared memory.
pub const SHARED: u32 = BARRIERS + 16 * STAGES;

/// The kernel: tiles of 128 × 128, of 128 bytes of `k` at a time. Lines that a mutation may leave out end in `//@`.
pub fn kernel(factors: Factors) -> String {
    let (wide, shape, depth) = match factors {
        Factors::Bf16 => ("bf16", "m64n128k16", 64),
        Factors::E4m3 => ("e4m3", "m64n128k32", 128),
    };
    let across = if factors == Factors::Bf16 { ", 0, 0" } else { "" };
    let sums: Vec<String> = (0..64).map(|i| format!("%f{i}")).collect();
    let sums = sums.join(", ");
    let mut t = String::new();
    let full =
        |stage: &str| format!("add.s32 %r20, %r1, {BARRIERS}; shl.b32 %r21, {stage}, 4; add.s32 %r20, %r20, %r21;");
    writeln!(
        t,
        ".extern .shared .align 1024 .b8 pool[];
.visible .entry gemm(.param .align 64 .b8 a[128], .param .align 64 .b8 b[128], .param .align 64 .b8 c[128],
    .param .u32 tiles_m, .param .u32 tiles_n, .param .u32 blocks_k) .maxntid 384, 1, 1 {{
.reg .b32 %r<64>;
.reg .f32 %f<64>;
.reg .b64 %rd<32>;
.reg .pred %p<16>;
mov.u32 %r1, pool;
mov.u32 %r2, %tid.x;
shr.u32 %r3, %r2, 7;
ld.param.u32 %r4, [tiles_m];
ld.param.u32 %r5, [tiles_n];
mul.lo.u32 %r6, %r4, %r5;
ld.param.u32 %r7, [blocks_k];
mov.u64 %rd1, a; cvta.param.u64 %rd1, %rd1;
mov.u64 %rd2, b; cvta.param.u64 %rd2, %rd2;
mov.u64 %rd3, c; cvta.param.u64 %rd3, %rd3;
mov.u32 %r8, %ctaid.x;
mov.u32 %r9, %nctaid.x;
setp.ne.u32 %p1, %r2, 0;
@%p1 bra made;"
    )
    .unwrap();
    for stage in 0..STAGES {
        writeln!(t, "add.s32 %r20, %r1, {};", BARRIERS + 16 * stage).unwrap();
        writeln!(t, "mbarrier.init.shared::cta.b64 [%r20], 1; //@ full").unwrap();
        writeln!(t, "mbarrier.init.shared::cta.b64 [%r20+8], 2; //@ empty").unwrap();
    }
    writeln!(
        t,
        "fence.mbarrier_init.release.cluster; //@ visible
made:
bar.sync 0; //@ made
mov.u32 %r10, 0;
setp.ne.u32 %p2, %r3, 0;
@%p2 bra consumer;
setmaxnreg.dec.sync.aligned.u32 40; //@ dec
setp.ne.u32 %p3, %r2, 0;
@%p3 bra end;
next_load:
setp.ge.u32 %p4, %r8, %r6;
@%p4 bra end;
div.u32 %r11, %r8, %r5; rem.u32 %r12, %r8, %r5;
shl.b32 %r11, %r11, 7; shl.b32 %r12, %r12, 7;
mov.u32 %r13, 0;
load_k:
and.b32 %r14, %r10, {last}; shr.u32 %r15, %r10, {log}; and.b32 %r15, %r15, 1; xor.b32 %r16, %r15, 1;
{full}
wait_empty:
mbarrier.try_wait.parity.shared::cta.b64 %p5, [%r20+8], %r16; //@ wait-empty
@!%p5 bra wait_empty; //@ wait-empty
mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r20], {STAGE}; //@ expect
mul.lo.u32 %r22, %r14, {STAGE}; add.s32 %r22, %r1, %r22; add.s32 %r23, %r22, 16384;
mul.lo.u32 %r24, %r13, {depth};
cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r22], [%rd1, {{%r24, %r11}}], [%r20]; //@ copy-a
cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r23], [%rd2, {{%r24, %r12}}], [%r20]; //@ copy-b
add.u32 %r10, %r10, 1; add.u32 %r13, %r13, 1;
setp.lt.u32 %p6, %r13, %r7;
@%p6 bra load_k;
add.u32 %r8, %r8, %r9;
bra next_load;
consumer:
setmaxnreg.inc.sync.aligned.u32 232;
sub.u32 %r30, %r3, 1;
and.b32 %r31, %r2, 127;
setp.ne.u32 %p7, %r31, 0;
next_tile:
setp.ge.u32 %p4, %r8, %r6;
@%p4 bra end;
div.u32 %r11, %r8, %r5; rem.u32 %r12, %r8, %r5;
shl.b32 %r11, %r11, 7; shl.b32 %r12, %r12, 7;
mov.u32 %r13, 0;
product_k:
and.b32 %r14, %r10, {last}; shr.u32 %r15, %r10, {log}; and.b32 %r15, %r15, 1;
{full}
wait_full:
mbarrier.try_wait.parity.shared::cta.b64 %p5, [%r20], %r15; //@ wait-full
@!%p5 bra wait_full; //@ wait-full
mul.lo.u32 %r22, %r14, {STAGE}; add.s32 %r22, %r1, %r22; add.s32 %r23, %r22, 16384;
shl.b32 %r24, %r30, 13; add.s32 %r22, %r22, %r24;
cvt.u64.u32 %rd10, %r22; shr.u64 %rd10, %rd10, 4; or.b64 %rd10, %rd10, 0x4000004000010000;
cvt.u64.u32 %rd11, %r23; shr.u64 %rd11, %rd11, 4; or.b64 %rd11, %rd11, 0x4000004000010000;
wgmma.fence.sync.aligned; //@ wgmma-fence
setp.ne.u32 %p8, %r13, 0;",
        last = STAGES - 1,
        log = STAGES.ilog2(),
        full = full("%r14"),
    )
    .unwrap();
    for step in 0..4 {
        let scale = if step == 0 { "%p8" } else { "1" };
        writeln!(
            t,
            "wgmma.mma_async.sync.aligned.{shape}.f32.{wide}.{wide} {{{sums}}}, %rd10, %rd11, {scale}, 1, 1{across};"
        )
        .unwrap();
        writeln!(t, "add.s64 %rd10, %rd10, 2; add.s64 %rd11, %rd11, 2;").unwrap();
    }
    writeln!(
        t,
        "wgmma.commit_group.sync.aligned; //@ commit
wgmma.wait_group.sync.aligned 1; //@ wait-previous
setp.eq.u32 %p9, %r13, 0;
@%p9 bra first;
@%p7 bra first;
sub.u32 %r25, %r10, 1; and.b32 %r25, %r25, {last};
{previous}
mbarrier.arrive.shared::cta.b64 _, [%r20+8]; //@ arrive
first:
add.u32 %r10, %r10, 1; add.u32 %r13, %r13, 1;
setp.lt.u32 %p6, %r13, %r7;
@%p6 bra product_k;
wgmma.wait_group.sync.aligned 0; //@ wait-last
@%p7 bra released;
{full}
mbarrier.arrive.shared::cta.b64 _, [%r20+8]; //@ arrive-last
released:
and.b32 %r40, %r31, 31; shr.u32 %r41, %r31, 5;
shr.u32 %r42, %r40, 2; shl.b32 %r43, %r41, 4; add.s32 %r42, %r42, %r43;
and.b32 %r43, %r40, 3; shl.b32 %r43, %r43, 3;
shl.b32 %r44, %r42, 9; add.s32 %r44, %r44, %r43;
shl.b32 %r45, %r30, 15; add.s32 %r46, %r1, {staging}; add.s32 %r46, %r46, %r45; add.s32 %r44, %r44, %r46;",
        last = STAGES - 1,
        full = full("%r14"),
        previous = full("%r25"),
        staging = STAGES * STAGE,
    )
    .unwrap();
    for part in 0..32 {
        let (column, low) = (part / 2, part % 2);
        writeln!(
            t,
            "st.shared.v2.f32 [%r44+{}], {{%f{}, %f{}}};",
            column * 32 + low * 4096,
            4 * column + 2 * low,
            4 * column + 2 * low + 1
        )
        .unwrap();
    }
    writeln!(
        t,
        "fence.proxy.async.shared::cta; //@ fence-async
add.u32 %r47, %r30, 1;
bar.sync %r47, 128; //@ staged
@%p7 bra stored;
shl.b32 %r48, %r30, 6; add.u32 %r48, %r48, %r11;
cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%rd3, {{%r12, %r48}}], [%r46];
cp.async.bulk.commit_group; //@ bulk-commit
cp.async.bulk.wait_group.read 0; //@ bulk-wait
stored:
bar.sync %r47, 128; //@ read
add.u32 %r8, %r8, %r9;
bra next_tile;
end:
ret;
}}"
    )
    .unwrap();
    t
}
