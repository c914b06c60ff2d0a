//! Lanes that part and meet, loops, calls, shared memory, barriers, shuffles, atomics.

mod support;

use ptx_emulator::{FaultKind, Launch, Memory, Options};
use support::{launch, module, right, wrong};

fn words(values: impl IntoIterator<Item = u32>) -> Vec<u8> {
    values.into_iter().flat_map(u32::to_le_bytes).collect()
}

/// A reduction of a block in shared memory, with a barrier in each round.
fn block_sum(barrier: &str) -> String {
    format!(
        ".visible .entry sum(.param .u64 data, .param .u64 out) {{
        .reg .b32 %r<12>;
        .reg .b64 %rd<6>;
        .reg .pred %p<4>;
        .shared .align 4 .b8 buffer[1024];
        ld.param.u64 %rd1, [data];
        mov.u32 %r1, %tid.x;
        mul.wide.u32 %rd2, %r1, 4;
        add.s64 %rd3, %rd1, %rd2;
        ld.global.u32 %r2, [%rd3];
        mov.u32 %r3, buffer;
        shl.b32 %r4, %r1, 2;
        add.s32 %r5, %r3, %r4;
        st.shared.u32 [%r5], %r2;
        mov.u32 %r6, 128;
    round:
        {barrier}
        setp.ge.u32 %p1, %r1, %r6;
        @%p1 bra skip;
        shl.b32 %r7, %r6, 2;
        add.s32 %r8, %r5, %r7;
        ld.shared.u32 %r9, [%r8];
        ld.shared.u32 %r10, [%r5];
        add.s32 %r10, %r10, %r9;
        st.shared.u32 [%r5], %r10;
    skip:
        shr.u32 %r6, %r6, 1;
        setp.ne.u32 %p2, %r6, 0;
        @%p2 bra round;
        setp.ne.u32 %p3, %r1, 0;
        @%p3 bra done;
        ld.param.u64 %rd4, [out];
        ld.shared.u32 %r11, [buffer];
        st.global.u32 [%rd4], %r11;
    done:
        ret;
    }}"
    )
}

#[test]
fn a_sum_of_a_block() {
    let mut memory = Memory::new();
    let data = memory.upload(&words(0..256));
    let out = memory.allocate(4);
    let with = Launch::new(1, 256).arg(data).arg(out);
    let mut after = right(&block_sum("bar.sync 0;"), &memory, &with);
    assert_eq!(after.read_u32(out, 1), Some(vec![255 * 128]));
    let fault = wrong(&block_sum(""), &memory, &with, &[FaultKind::Race, FaultKind::UninitialisedMemory]);
    assert!(fault.place.text.contains("shared"), "{fault}");
}

#[test]
fn lanes_are_not_in_step() {
    let text = |between: &str| {
        format!(
            ".visible .entry k(.param .u64 out) {{
            .reg .b32 t, a, v;
            .reg .b64 o, w;
            .shared .align 4 .b8 buffer[128];
            mov.u32 t, %tid.x;
            shl.b32 a, t, 2;
            st.shared.u32 [buffer], t;
            mov.u32 v, buffer;
            add.s32 a, a, v;
            st.shared.u32 [a], t;
            {between}
            xor.b32 a, a, 4;
            ld.shared.u32 v, [a];
            ld.param.u64 o, [out];
            mul.wide.u32 w, t, 4;
            add.s64 o, o, w;
            st.global.u32 [o], v;
            ret;
        }}"
        )
        .replace("st.shared.u32 [buffer], t;", "")
    };
    let mut memory = Memory::new();
    let out = memory.allocate(128);
    let with = Launch::new(1, 32).arg(out);
    let mut after = right(&text("bar.warp.sync -1;"), &memory, &with);
    assert_eq!(after.read_u32(out, 32), Some((0..32).map(|l| l ^ 1).collect()));
    let fault = wrong(&text(""), &memory, &with, &[FaultKind::Race]);
    assert!(fault.other.is_some_and(|o| o.place.text.contains("st.shared") && o.who.contains("warp 0 lane")));
    // A shuffle brings lanes together and orders nothing.
    let shuffled = "{ .reg .b32 x; shfl.sync.bfly.b32 x, t, 1, 31, -1; }";
    wrong(&text(shuffled), &memory, &with, &[FaultKind::Race]);
}

#[test]
fn loops_of_different_length_meet_again() {
    let text = ".visible .entry k(.param .u64 out) {
        .reg .b32 t, n, s, all;
        .reg .b64 o, w;
        .reg .pred p;
        mov.u32 t, %laneid;
        mov.u32 n, t;
        mov.u32 s, 0;
    again:
        add.s32 s, s, n;
        sub.s32 n, n, 1;
        setp.gt.s32 p, n, 0;
        @p bra again;
        shfl.sync.idx.b32 all, s, 31, 31, 0xffffffff;
        ld.param.u64 o, [out];
        mul.wide.u32 w, t, 8;
        add.s64 o, o, w;
        st.global.v2.u32 [o], {s, all};
        ret;
    }";
    let mut memory = Memory::new();
    let out = memory.allocate(256);
    let mut after = right(text, &memory, &Launch::new(1, 32).arg(out));
    let found = after.read_u32(out, 64).unwrap();
    for lane in 0..32 {
        assert_eq!(found[2 * lane], (lane * (lane + 1) / 2) as u32);
        assert_eq!(found[2 * lane + 1], 496);
    }
}

#[test]
fn shuffles() {
    let text = |mode: &str| {
        format!(
            ".visible .entry k(.param .u64 out) {{
            .reg .b32 t, v, f;
            .reg .b64 o, w;
            .reg .pred p;
            mov.u32 t, %laneid;
            {mode}
            selp.b32 f, 1, 0, p;
            ld.param.u64 o, [out];
            mul.wide.u32 w, t, 8;
            add.s64 o, o, w;
            st.global.v2.u32 [o], {{v, f}};
            ret;
        }}"
        )
    };
    let check = |mode: &str, expected: &dyn Fn(u32) -> (u32, u32)| {
        let mut memory = Memory::new();
        let out = memory.allocate(256);
        let mut after = right(&text(mode), &memory, &Launch::new(1, 32).arg(out));
        let found = after.read_u32(out, 64).unwrap();
        for lane in 0..32u32 {
            let pair = (found[2 * lane as usize], found[2 * lane as usize + 1]);
            assert_eq!(pair, expected(lane), "{mode} lane {lane}");
        }
    };
    check("shfl.sync.up.b32 v|p, t, 3, 0, -1;", &|l| if l >= 3 { (l - 3, 1) } else { (l, 0) });
    check("shfl.sync.down.b32 v|p, t, 3, 31, -1;", &|l| if l < 29 { (l + 3, 1) } else { (l, 0) });
    check("shfl.sync.bfly.b32 v|p, t, 16, 31, -1;", &|l| (l ^ 16, 1));
    check("shfl.sync.idx.b32 v|p, t, 5, 31, -1;", &|_| (5, 1));
    // Segments of eight lanes: the upper bits of the lane stay.
    check("shfl.sync.idx.b32 v|p, t, 5, 0x181f, -1;", &|l| ((l & 24) | 5, 1));
    check("shfl.sync.down.b32 v|p, t, 3, 0x1807, -1;", &|l| if l % 8 < 5 { (l + 3, 1) } else { (l, 0) });
    check("vote.sync.ballot.b32 v, p, -1;".replace("vote", "setp.lt.u32 p, t, 7; vote").as_str(), &|l| {
        (0x7f, u32::from(l < 7))
    });
    check("setp.lt.u32 p, t, 7; redux.sync.add.u32 v, t, -1;", &|l| (496, u32::from(l < 7)));
    check("setp.lt.u32 p, t, 7; redux.sync.max.s32 v, t, -1;", &|l| (31, u32::from(l < 7)));
    check("{.reg .b32 h; and.b32 h, t, 3; match.any.sync.b32 v, h, -1; setp.eq.u32 p, h, 1;}", &|l| {
        (0x1111_1111 << (l % 4), u32::from(l % 4 == 1))
    });
    check("elect.sync v|p, -1;", &|l| (0, u32::from(l == 0)));
    check("setp.ge.u32 p, t, 4; mov.u32 v, 0; @p activemask.b32 v;", &|l| {
        if l >= 4 { (0xffff_fff0, 1) } else { (0, 0) }
    });
    check("setp.ge.u32 p, t, 0; mov.u32 v, %lanemask_lt;", &|l| ((1u64 << l) as u32 - 1, 1));
}

#[test]
fn calls_and_local_memory() {
    let text = ".func (.param .b32 result) third(.param .align 16 .b8 v[16], .param .b32 add) {
        .reg .b32 %r<4>;
        ld.param.u32 %r1, [v+8];
        ld.param.u32 %r2, [add];
        add.s32 %r3, %r1, %r2;
        st.param.b32 [result], %r3;
        ret;
    }
    .visible .entry k(.param .u64 out) {
        .local .align 16 .b8 stack[64];
        .reg .b32 %r<8>;
        .reg .b64 %rd<8>;
        mov.u32 %r1, %tid.x;
        mov.u64 %rd1, stack;
        cvta.local.u64 %rd2, %rd1;
        st.local.u32 [stack+4], %r1;
        ld.u32 %r2, [%rd2+4];
        {
            .param .align 16 .b8 p0[16];
            .param .b32 p1;
            .param .b32 r0;
            st.param.v4.b32 [p0], {%r1, %r1, %r2, %r1};
            st.param.b32 [p1], 100;
            call.uni (r0), third, (p0, p1);
            ld.param.b32 %r3, [r0];
        }
        ld.param.u64 %rd3, [out];
        mul.wide.u32 %rd4, %r1, 4;
        add.s64 %rd5, %rd3, %rd4;
        st.global.u32 [%rd5], %r3;
        ret;
    }";
    let mut memory = Memory::new();
    let out = memory.allocate(256);
    let mut after = right(text, &memory, &Launch::new(1, 64).arg(out));
    assert_eq!(after.read_u32(out, 64), Some((100..164).collect()));
    let uninitialised = text.replace("st.local.u32 [stack+4], %r1;", "");
    wrong(&uninitialised, &memory, &Launch::new(1, 64).arg(out), &[FaultKind::UninitialisedMemory]);
}

/// Blocks that add into one word each, and the last of them sums up.
fn last_block(fence: &str) -> String {
    format!(
        ".visible .entry k(.param .u64 parts, .param .u64 counter, .param .u64 out) {{
        .reg .b32 t, b, v, s, i, n;
        .reg .b64 p, q, c, o;
        .reg .pred first, last, more;
        mov.u32 t, %tid.x;
        setp.ne.u32 first, t, 0;
        @first bra done;
        mov.u32 b, %ctaid.x;
        ld.param.u64 p, [parts];
        mul.wide.u32 q, b, 4;
        add.s64 q, p, q;
        add.s32 v, b, 10;
        st.global.u32 [q], v;
        {fence}
        ld.param.u64 c, [counter];
        atom.global.add.u32 v, [c], 1;
        mov.u32 n, %nctaid.x;
        sub.s32 s, n, 1;
        setp.ne.u32 last, v, s;
        @last bra done;
        {fence}
        mov.u32 s, 0;
        mov.u32 i, 0;
    sum:
        ld.global.u32 v, [p];
        add.s32 s, s, v;
        add.s64 p, p, 4;
        add.s32 i, i, 1;
        setp.lt.u32 more, i, n;
        @more bra sum;
        ld.param.u64 o, [out];
        st.global.u32 [o], s;
    done:
        ret;
    }}"
    )
}

#[test]
fn the_last_block_sums_up() {
    let mut memory = Memory::new();
    let parts = memory.allocate(32);
    let counter = memory.upload(&[0; 4]);
    let out = memory.allocate(4);
    let with = Launch::new(8, 32).arg(parts).arg(counter).arg(out);
    for fence in ["membar.gl;", "fence.acq_rel.gpu;", "fence.sc.gpu;"] {
        let mut after = right(&last_block(fence), &memory, &with);
        assert_eq!(after.read_u32(out, 1), Some(vec![8 * 10 + 28]));
    }
    wrong(&last_block(""), &memory, &with, &[FaultKind::Race]);
    // A fence for the block alone orders nothing between blocks.
    wrong(&last_block("membar.cta;"), &memory, &with, &[FaultKind::Race]);
    let released = last_block("").replace("atom.global.add", "atom.acq_rel.gpu.global.add");
    right(&released, &memory, &with);
    wrong(&released.replace(".gpu", ".cta"), &memory, &with, &[FaultKind::Race]);
}

#[test]
fn blocks_that_wait_for_each_other_need_to_be_resident() {
    let text = ".visible .entry k(.param .u64 flag) {
        .reg .b32 b, v;
        .reg .b64 f;
        .reg .pred p;
        ld.param.u64 f, [flag];
        mov.u32 b, %ctaid.x;
        setp.eq.u32 p, b, 1;
        @p bra set;
    wait:
        ld.acquire.gpu.global.u32 v, [f];
        setp.eq.u32 p, v, 0;
        @p bra wait;
        ret;
    set:
        mov.u32 v, 1;
        st.release.gpu.global.u32 [f], v;
        ret;
    }";
    let module = module(text);
    let mut memory = Memory::new();
    let flag = memory.upload(&[0; 4]);
    let with = Launch::new(2, 1).arg(flag);
    let options = Options { resident: 2, ..Options::default() };
    launch(&module, &mut memory.clone(), &with, &options).unwrap();
    let options = Options { max_steps: 10_000, ..Options::default() };
    let fault = launch(&module, &mut memory, &with, &options).unwrap_err();
    assert_eq!(fault.kind, FaultKind::StepLimit, "{fault}");
}

#[test]
fn named_barriers_and_deadlock() {
    let text = |count: &str| {
        format!(
            ".visible .entry k(.param .u64 out) {{
            .reg .b32 t, v;
            .reg .b64 o;
            .reg .pred p;
            .shared .align 4 .b8 word[4];
            mov.u32 t, %tid.x;
            setp.ge.u32 p, t, 32;
            @p bra consumer;
            setp.ne.u32 p, t, 0;
            @!p st.shared.u32 [word], 77;
            bar.warp.sync -1;
            bar.arrive 3, {count};
            ret;
        consumer:
            bar.sync 3, {count};
            ld.shared.u32 v, [word];
            ld.param.u64 o, [out];
            st.global.u32 [o], v;
            ret;
        }}"
        )
        .replace("[word], 77", "[word], t")
    };
    let mut memory = Memory::new();
    let out = memory.allocate(4);
    let with = Launch::new(1, 64).arg(out);
    right(&text("64"), &memory, &with);
    let fault = wrong(&text("96"), &memory, &with, &[FaultKind::Deadlock]);
    assert!(fault.message.contains("barrier 3, where 64 of 96 threads are"), "{fault}");
}

#[test]
fn clusters_read_each_other() {
    let text = |second: &str| {
        format!(
            ".visible .entry k(.param .u64 out) .explicitcluster .reqnctapercluster 2, 1, 1 {{
            .reg .b32 r, a, v, o32;
            .reg .b64 o, w;
            .shared .align 4 .b8 word[4];
            mov.u32 r, %cluster_ctarank;
            add.s32 v, r, 40;
            mov.u32 a, word;
            st.shared.u32 [a], v;
            barrier.cluster.arrive.aligned;
            barrier.cluster.wait.aligned;
            xor.b32 o32, r, 1;
            mapa.shared::cluster.u32 a, a, o32;
            ld.shared::cluster.u32 v, [a];
            {second}
            ld.param.u64 o, [out];
            mul.wide.u32 w, r, 4;
            add.s64 o, o, w;
            st.global.u32 [o], v;
            ret;
        }}"
        )
    };
    let mut memory = Memory::new();
    let out = memory.allocate(8);
    let with = Launch { cluster: [2, 1, 1], ..Launch::new(2, 1).arg(out) };
    let both = "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;";
    let mut after = right(&text(both), &memory, &with);
    assert_eq!(after.read_u32(out, 2), Some(vec![41, 40]));
    let early = text(both).replacen(both.split_at(31).0, "", 1).replacen("barrier.cluster.wait.aligned;", "", 1);
    wrong(&early, &memory, &with, &[FaultKind::Race, FaultKind::UninitialisedMemory, FaultKind::Barrier]);
}

/// One block of a cluster writes into another and arrives at its barrier.
fn remote(release: &str, made: &str) -> String {
    format!(
        ".visible .entry k(.param .u64 out) .explicitcluster .reqnctapercluster 2, 1, 1 {{
        .reg .b32 t, r, w, b, v, one;
        .reg .b64 o, x;
        .reg .pred first, sender, done;
        .shared .align 8 .b8 words[128];
        .shared .align 8 .b8 bar[8];
        mov.u32 t, %tid.x; mov.u32 r, %cluster_ctarank; mov.u32 one, 0;
        setp.eq.u32 first, t, 0; setp.eq.u32 sender, r, 1;
        mov.u32 w, words; mov.u32 b, bar;
        @first mbarrier.init.shared::cta.b64 [b], 32;
        @first fence.mbarrier_init.release.cluster;
        {made}
        @!sender bra wait;
        mad.lo.u32 w, t, 4, w;
        mapa.shared::cluster.u32 w, w, one;
        mapa.shared::cluster.u32 b, b, one;
        add.u32 v, t, 5;
        st.shared::cluster.u32 [w], v;
        mbarrier.arrive{release}.shared::cluster.b64 _, [b];
        bra end;
    wait:
        mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [b], 0;
        @!done bra wait;
        xor.b32 v, t, 3; mad.lo.u32 w, v, 4, w;
        ld.shared.u32 v, [w];
        ld.param.u64 o, [out]; mul.wide.u32 x, t, 4; add.s64 o, o, x;
        st.global.u32 [o], v;
    end:
        barrier.cluster.arrive; barrier.cluster.wait;
        ret;
    }}"
    )
}

#[test]
fn a_block_arrives_at_the_barrier_of_another() {
    let mut memory = Memory::new();
    let out = memory.allocate(128);
    let with = Launch { cluster: [2, 1, 1], ..Launch::new(2, 32).arg(out) };
    let expected: Vec<u32> = (0..32).map(|t| (t ^ 3) + 5).collect();
    for made in [
        "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;",
        "barrier.cluster.arrive.relaxed.aligned; barrier.cluster.wait.acquire.aligned;",
    ] {
        let mut after = right(&remote(".release.cluster", made), &memory, &with);
        assert_eq!(after.read_u32(out, 32), Some(expected.clone()));
    }
    let kinds = [FaultKind::Race, FaultKind::Barrier, FaultKind::UninitialisedMemory, FaultKind::OutOfBounds];
    wrong(&remote(".release.cluster", "bar.sync 0;"), &memory, &with, &kinds);
}
