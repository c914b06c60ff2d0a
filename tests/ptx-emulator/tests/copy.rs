//! Asynchronous copies: of words, in bulk, of tensors of every rank and swizzle, to several blocks.

mod support;

use ptx_emulator::{Element, FaultKind, Launch, Memory, Swizzle, TensorMap};
use support::{right, wrong};

/// Lanes copy sixteen bytes each and read those of their neighbour.
fn words(wait: &str, size: &str) -> String {
    format!(
        ".visible .entry k(.param .u64 in, .param .u64 out) {{
        .reg .b32 t, s, x, r<4>;
        .reg .b64 p, q, w;
        .shared .align 16 .b8 buffer[1024];
        ld.param.u64 p, [in]; ld.param.u64 q, [out];
        mov.u32 t, %tid.x; mul.wide.u32 w, t, 16;
        add.s64 p, p, w; add.s64 q, q, w;
        mov.u32 s, buffer; shl.b32 x, t, 4; add.s32 x, x, s;
        cp.async.cg.shared.global [x], [p], 16{size};
        {wait}
        xor.b32 t, t, 33; shl.b32 x, t, 4; add.s32 x, x, s;
        ld.shared.v4.b32 {{r0, r1, r2, r3}}, [x];
        st.global.v4.b32 [q], {{r0, r1, r2, r3}};
        ret;
    }}"
    )
}

#[test]
fn copies_of_words() {
    let mut memory = Memory::new();
    let data: Vec<u8> = (0..1024).map(|i| (i / 16) as u8).collect();
    let from = memory.upload(&data);
    let to = memory.allocate(1024);
    let with = Launch::new(1, 64).arg(from).arg(to);
    let group = "cp.async.commit_group; cp.async.wait_group 0;";
    for wait in [group, "cp.async.wait_all;"] {
        let mut after = right(&words(&format!("{wait} bar.sync 0;"), ""), &memory, &with);
        let found = after.read(to, 1024).unwrap();
        assert!((0..1024).all(|i| usize::from(found[i]) == (i / 16) ^ 33));
    }
    let mut after = right(&words(&format!("{group} bar.sync 0;"), ", 4"), &memory, &with);
    let found = after.read(to, 1024).unwrap();
    assert!((0..1024).all(|i| usize::from(found[i]) == if i % 16 < 4 { (i / 16) ^ 33 } else { 0 }));
    for bad in [
        group.to_owned(),
        "bar.sync 0;".into(),
        "cp.async.commit_group; bar.sync 0; cp.async.wait_group 0;".into(),
        "cp.async.wait_group 0; bar.sync 0;".into(),
        "cp.async.commit_group; cp.async.wait_group 1; bar.sync 0;".into(),
    ] {
        let kinds = [FaultKind::Race, FaultKind::Unfinished, FaultKind::UninitialisedMemory];
        wrong(&words(&bad, ""), &memory, &with, &kinds);
    }
    let barrier = |arrive: &str| {
        words(
            &format!(
                ".shared .align 8 .b8 bar[8]; .reg .pred d;
                setp.eq.u32 d, t, 0;
                @d mbarrier.init.shared.b64 [bar], 64;
                bar.sync 0;
                {arrive}
                wait: mbarrier.try_wait.parity.shared.b64 d, [bar], 0;
                @!d bra wait;"
            ),
            "",
        )
    };
    let after = right(&barrier("cp.async.mbarrier.arrive.noinc.shared.b64 [bar];"), &memory, &with).read(to, 1024);
    assert!((0..1024).all(|i| usize::from(after.as_ref().unwrap()[i]) == (i / 16) ^ 33));
    let counted = barrier("cp.async.mbarrier.arrive.shared.b64 [bar]; mbarrier.arrive.shared.b64 _, [bar];");
    right(&counted, &memory, &with);
    let unseen = barrier("mbarrier.arrive.shared.b64 _, [bar];");
    wrong(&unseen, &memory, &with, &[FaultKind::Race, FaultKind::Unfinished, FaultKind::UninitialisedMemory]);
}

/// One thread loads a box and copies it back to another tensor.
fn boxes(rank: usize) -> String {
    let at: Vec<String> = (0..rank).map(|i| format!("c{i}")).collect();
    let list = at.join(", ");
    let loads: String = (0..rank).map(|i| format!("ld.param.s32 c{i}, [at+{}];", 4 * i)).collect();
    format!(
        ".visible .entry k(.param .align 64 .b8 from[128], .param .align 4 .b8 at[20], .param .u32 bytes, .param .u64 out) {{
        .reg .b32 s, t, n, c<5>, v, i, b;
        .reg .b64 m, q, w;
        .reg .pred p;
        .shared .align 1024 .b8 buffer[16384];
        .shared .align 8 .b8 bar[8];
        {loads}
        mov.u32 t, %tid.x; mov.u32 s, buffer; mov.u32 b, bar;
        ld.param.u32 n, [bytes]; ld.param.u64 q, [out];
        mov.u64 m, from; cvta.param.u64 m, m;
        setp.ne.u32 p, t, 0;
        @p bra made;
        mbarrier.init.shared::cta.b64 [b], 1;
        fence.proxy.async.shared::cta;
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [b], n;
        cp.async.bulk.tensor.{rank}d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [s], [m, {{{list}}}], [b];
    made:
        bar.sync 0;
    wait:
        mbarrier.try_wait.parity.shared::cta.b64 p, [b], 0;
        @!p bra wait;
        shl.b32 i, t, 2;
    copy:
        setp.ge.u32 p, i, n;
        @p bra done;
        add.u32 v, s, i;
        ld.shared.u32 v, [v];
        cvt.u64.u32 w, i; add.s64 w, w, q;
        st.global.u32 [w], v;
        add.u32 i, i, 128;
        bra copy;
    done:
        ret;
    }}"
    )
}

fn coordinates(at: &[i32]) -> Vec<u8> {
    (0..5).flat_map(|i| at.get(i).copied().unwrap_or(0).to_le_bytes()).collect()
}

#[test]
fn boxes_of_tensors() {
    let sizes: [&[u64]; 5] = [&[40], &[40, 9], &[40, 5, 4], &[32, 3, 3, 3], &[16, 3, 2, 2, 3]];
    for sizes in sizes {
        let rank = sizes.len();
        let total: u64 = sizes.iter().product();
        let mut memory = Memory::new();
        let base = memory.upload(&(1..=total as u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>());
        let out = memory.allocate(16384);
        let mut strides = vec![4 * sizes[0]];
        for size in &sizes[1..] {
            strides.push(strides[strides.len() - 1] * size);
        }
        strides.truncate(rank - 1);
        let box_sizes: Vec<u32> = (0..rank).map(|i| if i == 0 { 8 } else { 2 }).collect();
        let map = |element_strides: Vec<u32>| TensorMap {
            base,
            element: Element::U32,
            sizes: sizes.to_vec(),
            strides: strides.clone(),
            box_sizes: box_sizes.clone(),
            element_strides,
            swizzle: Swizzle::None,
            nan_outside: false,
        };
        let starts: [Vec<i32>; 3] = [
            vec![4; rank].iter().enumerate().map(|(i, v)| if i == 0 { *v } else { 1 }).collect(),
            vec![-1; rank],
            (0..rank).map(|i| sizes[i] as i32 - 1).collect(),
        ];
        for start in starts {
            for every in [1, 2] {
                let map = map((0..rank).map(|i| if i == 0 { every } else { 1 }).collect());
                map.check().unwrap();
                let with = Launch::new(1, 32).arg(&map).arg(coordinates(&start)).arg(map.box_bytes()).arg(out);
                let mut after = right(&boxes(rank), &memory, &with);
                let found = after.read_u32(out, map.box_bytes() as usize / 4).unwrap();
                let copied = map.copied();
                for (index, value) in found.into_iter().enumerate() {
                    let (mut rest, mut at, mut inside, mut step) = (index as u32, 0, true, 1);
                    for dim in 0..rank {
                        let place = start[dim] + (rest % copied[dim] * map.element_strides[dim]) as i32;
                        rest /= copied[dim];
                        inside &= place >= 0 && (place as u64) < sizes[dim];
                        at += i64::from(place) * step;
                        step *= sizes[dim] as i64;
                    }
                    assert_eq!(
                        value,
                        if inside { at as u32 + 1 } else { 0 },
                        "{sizes:?} at {start:?}, element {index}"
                    );
                }
            }
        }
    }
}

#[test]
fn swizzles_of_tensors() {
    for (swizzle, span) in [(Swizzle::B32, 32), (Swizzle::B64, 64), (Swizzle::B128, 128)] {
        let columns = span / 2;
        let mut memory = Memory::new();
        let base = memory.upload(&(0..columns as u16 * 64).flat_map(u16::to_le_bytes).collect::<Vec<u8>>());
        let out = memory.allocate(16384);
        let map = TensorMap::matrix(base, Element::F16, 64, columns as u64, 64, columns as u32).swizzled(swizzle);
        let with = Launch::new(1, 32).arg(&map).arg(coordinates(&[0, 0])).arg(map.box_bytes()).arg(out);
        let found = right(&boxes(2), &memory, &with).read(out, map.box_bytes() as usize).unwrap();
        for row in 0..64 {
            for chunk in 0..span / 16 {
                // Piece `chunk` of a row is exchanged by the number of its line of 128 bytes.
                let line = row * span / 128;
                let to = row * span + (chunk ^ (line % (span / 16))) * 16;
                let value = u16::from_le_bytes([found[to], found[to + 1]]);
                assert_eq!(usize::from(value), row * columns + chunk * 8, "{swizzle:?} row {row} piece {chunk}");
            }
        }
    }
}

#[test]
fn bulk_copies_there_and_back() {
    let text = |fence: &str, read: &str| {
        format!(
            ".visible .entry k(.param .u64 in, .param .u64 out) {{
            .reg .b32 t, s, b, v;
            .reg .b64 p, q;
            .reg .pred done, first;
            .shared .align 128 .b8 buffer[512];
            .shared .align 8 .b8 bar[8];
            mov.u32 t, %tid.x; mov.u32 s, buffer; mov.u32 b, bar;
            ld.param.u64 p, [in]; ld.param.u64 q, [out];
            setp.eq.u32 first, t, 0;
            @first mbarrier.init.shared::cta.b64 [b], 1;
            @first fence.mbarrier_init.release.cluster;
            bar.sync 0;
            @first mbarrier.arrive.expect_tx.shared::cta.b64 _, [b], 512;
            @first cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [s], [p], 512, [b];
        wait:
            mbarrier.try_wait.parity.shared::cta.b64 done, [b], 0;
            @!done bra wait;
            shl.b32 t, t, 2; add.u32 t, t, s;
            ld.shared.u32 v, [t]; add.u32 v, v, 1; st.shared.u32 [t], v;
            {fence}
            bar.sync 0;
            @first cp.async.bulk.global.shared::cta.bulk_group [q], [s], 512;
            @first cp.async.bulk.commit_group;
            {read}
            ret;
        }}"
        )
    };
    let mut memory = Memory::new();
    let from = memory.upload(&(0..128u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>());
    let to = memory.upload(&[0; 512]);
    let with = Launch::new(1, 128).arg(from).arg(to);
    let (fence, read) = ("fence.proxy.async.shared::cta;", "cp.async.bulk.wait_group.read 0;");
    let mut after = right(&text(fence, read), &memory, &with);
    assert_eq!(after.read_u32(to, 128), Some((1..129).collect()));
    wrong(&text("", read), &memory, &with, &[FaultKind::MissingProxyFence]);
    wrong(&text(fence, ""), &memory, &with, &[FaultKind::Unfinished]);
    let again = "cp.async.bulk.wait_group.read 0; @first ld.global.u32 v, [q];";
    wrong(&text(fence, again), &memory, &with, &[FaultKind::Race]);
    right(&text(fence, &again.replace(".read", "")), &memory, &with);
    let reduced = text(fence, "cp.async.bulk.wait_group 0;").replace(
        "cp.async.bulk.global.shared::cta.bulk_group",
        "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.u32",
    );
    let mut after = right(&reduced, &memory, &with);
    assert_eq!(after.read_u32(to, 128), Some((1..129).collect()));
    let shared = text(fence, read).replace("@first fence.mbarrier_init.release.cluster;", "");
    wrong(&shared, &memory, &with, &[FaultKind::MissingProxyFence]);
}

#[test]
fn one_copy_to_all_blocks_of_a_cluster() {
    let text = |mask: u32| {
        format!(
            ".visible .entry k(.param .u64 in, .param .u64 out) .explicitcluster .reqnctapercluster 4, 1, 1 {{
            .reg .b32 t, s, b, v, r;
            .reg .b16 m;
            .reg .b64 p, q, w;
            .reg .pred done, first, leader;
            .shared .align 128 .b8 buffer[128];
            .shared .align 8 .b8 bar[8];
            mov.u32 t, %tid.x; mov.u32 r, %cluster_ctarank; mov.u32 s, buffer; mov.u32 b, bar;
            ld.param.u64 p, [in]; ld.param.u64 q, [out];
            setp.eq.u32 first, t, 0;
            setp.eq.and.u32 leader, r, 2, first;
            @first mbarrier.init.shared::cta.b64 [b], 1;
            @first fence.mbarrier_init.release.cluster;
            @first mbarrier.arrive.expect_tx.shared::cta.b64 _, [b], 128;
            barrier.cluster.arrive.aligned;
            barrier.cluster.wait.aligned;
            mov.u16 m, {mask};
            @leader cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [s], [p], 128, [b], m;
        wait:
            mbarrier.try_wait.parity.shared::cta.b64 done, [b], 0;
            @!done bra wait;
            shl.b32 v, t, 2; add.u32 s, s, v;
            ld.shared.u32 v, [s];
            mad.lo.u32 r, r, 32, t; mul.wide.u32 w, r, 4; add.s64 q, q, w;
            st.global.u32 [q], v;
            barrier.cluster.arrive.aligned;
            barrier.cluster.wait.aligned;
            ret;
        }}"
        )
    };
    let mut memory = Memory::new();
    let from = memory.upload(&(7..39u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>());
    let to = memory.allocate(512);
    let with = Launch { cluster: [4, 1, 1], ..Launch::new(4, 32) }.arg(from).arg(to);
    let mut after = right(&text(15), &memory, &with);
    assert_eq!(after.read_u32(to, 128), Some((0..4).flat_map(|_| 7..39).collect()));
    wrong(&text(7), &memory, &with, &[FaultKind::Deadlock]);
    wrong(&text(31), &memory, &with, &[FaultKind::OutOfBounds]);
}

#[test]
fn bad_maps_and_addresses() {
    let mut memory = Memory::new();
    let base = memory.upload(&[0; 4096]);
    let out = memory.allocate(4096);
    let map = TensorMap::matrix(base, Element::F32, 16, 64, 4, 32);
    let run = |map: &TensorMap, bytes: Vec<u8>| {
        let with = Launch::new(1, 32).arg(bytes).arg(coordinates(&[0, 0])).arg(map.box_bytes()).arg(out);
        wrong(&boxes(2), &memory, &with, &[FaultKind::Descriptor, FaultKind::OutOfBounds])
    };
    assert_eq!(run(&map, vec![1; 128]).kind, FaultKind::Descriptor);
    let large = TensorMap { sizes: vec![64, 17], ..map.clone() };
    let far = TensorMap { strides: vec![2048], ..large };
    assert_eq!(run(&far, far.encode().to_vec()).kind, FaultKind::OutOfBounds);
    assert!(TensorMap { strides: vec![24], ..map.clone() }.check().is_err());
    assert!(TensorMap { box_sizes: vec![64, 8], ..map.clone() }.swizzled(Swizzle::B128).check().is_err());
    assert!(TensorMap { base: base + 8, ..map.clone() }.check().is_err());
    assert_eq!(TensorMap::decode(&map.encode()), Ok(map));
}
