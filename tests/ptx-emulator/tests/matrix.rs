//! Fragments and products of warps and warpgroups: every shape and format, against sums of small integers.

mod support;

use std::fmt::Write;

use ptx_emulator::{FaultKind, Launch, Memory, f32_to_bf16, f32_to_e4m3, f32_to_e5m2, f32_to_f16};
use support::{Numbers, right, wrong};

/// The bytes of a value in a format.
fn code(kind: &str, value: f32) -> Vec<u8> {
    match kind {
        "bf16" => f32_to_bf16(value).to_le_bytes().to_vec(),
        "f16" => f32_to_f16(value).to_le_bytes().to_vec(),
        "tf32" => value.to_le_bytes().to_vec(),
        "e4m3" => vec![f32_to_e4m3(value)],
        "e5m2" => vec![f32_to_e5m2(value)],
        "s8" => vec![value as i8 as u8],
        _ => vec![value as u8],
    }
}

struct Factors {
    a: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
}

fn factors(m: usize, n: usize, k: usize, unsigned: bool) -> Factors {
    let mut numbers = Numbers(5);
    let mut some = |count: usize| -> Vec<f32> {
        (0..count).map(|_| if unsigned { numbers.small().abs() } else { numbers.small() }).collect()
    };
    Factors { a: some(m * k), b: some(k * n), c: some(m * n) }
}

fn expected(f: &Factors, m: usize, n: usize, k: usize) -> Vec<f32> {
    (0..m * n).map(|at| f.c[at] + (0..k).map(|i| f.a[at / n * k + i] * f.b[i * n + at % n]).sum::<f32>()).collect()
}

/// A product of one warp whose lanes gather their fragments from global memory, element by element, by the tables of
/// the PTX manual.
fn mma(k: usize, a: &str, b: &str, sum: &str) {
    let (m, n) = (16, 8);
    let size = code(a, 0.0).len();
    let each = 4 / size;
    let (ra, rb) = (m * k * size / 128, n * k * size / 128);
    let mut t = String::from(
        ".visible .entry k(.param .u64 a, .param .u64 b, .param .u64 c, .param .u64 d) {
        .reg .b32 a<8>, b<8>, c<8>, d<8>, lane, g, t, x, y;
        .reg .b64 pa, pb, pc, pd, w;
        .reg .f32 fa<8>, fd<8>;
        ld.param.u64 pa, [a]; ld.param.u64 pb, [b]; ld.param.u64 pc, [c]; ld.param.u64 pd, [d];
        mov.u32 lane, %laneid; shr.u32 g, lane, 2; and.b32 t, lane, 3;\n",
    );
    // `b` lies by columns, so that a register's elements are neighbours.
    for r in 0..ra {
        let (row, column) = (8 * (r % 2), 4 * each * (r / 2));
        writeln!(t, "add.u32 x, g, {row}; mul.lo.u32 x, x, {}; mad.lo.u32 x, t, 4, x;", k * size).unwrap();
        writeln!(t, "cvt.u64.u32 w, x; add.s64 w, w, pa; ld.global.b32 a{r}, [w+{}];", column * size).unwrap();
    }
    for r in 0..rb {
        writeln!(t, "mul.lo.u32 x, g, {}; mad.lo.u32 x, t, 4, x;", k * size).unwrap();
        writeln!(t, "cvt.u64.u32 w, x; add.s64 w, w, pb; ld.global.b32 b{r}, [w+{}];", 16 * r).unwrap();
    }
    let bytes = if sum == "f16" { 2 } else { 4 };
    let registers = if sum == "f16" { 2 } else { 4 };
    for r in 0..registers {
        let (row, column) = if sum == "f16" { (8 * r, 0) } else { (8 * (r / 2), r % 2) };
        writeln!(t, "add.u32 x, g, {row}; mul.lo.u32 x, x, {}; mad.lo.u32 x, t, {}, x;", 8 * bytes, 2 * bytes).unwrap();
        writeln!(t, "cvt.u64.u32 w, x; add.s64 w, w, pc; ld.global.b32 c{r}, [w+{}];", column * bytes).unwrap();
        if sum == "f32" {
            writeln!(t, "mov.b32 fa{r}, c{r};").unwrap();
        }
    }
    let list = |name: &str, count: usize| {
        let all: Vec<String> = (0..count).map(|i| format!("{name}{i}")).collect();
        format!("{{{}}}", all.join(", "))
    };
    let (d, c) = if sum == "f32" { ("fd", "fa") } else { ("d", "c") };
    writeln!(
        t,
        "mma.sync.aligned.m16n8k{k}.row.col.{sum}.{a}.{b}.{sum} {}, {}, {}, {};",
        list(d, registers),
        list("a", ra),
        list("b", rb),
        list(c, registers)
    )
    .unwrap();
    for r in 0..registers {
        if sum == "f32" {
            writeln!(t, "mov.b32 d{r}, fd{r};").unwrap();
        }
        let (row, column) = if sum == "f16" { (8 * r, 0) } else { (8 * (r / 2), r % 2) };
        writeln!(t, "add.u32 x, g, {row}; mul.lo.u32 x, x, {}; mad.lo.u32 x, t, {}, x;", 8 * bytes, 2 * bytes).unwrap();
        writeln!(t, "cvt.u64.u32 w, x; add.s64 w, w, pd; st.global.b32 [w+{}], d{r};", column * bytes).unwrap();
    }
    t += "ret;\n}\n";
    let f = factors(m, n, k, a == "u8" || b == "u8");
    let mut memory = Memory::new();
    let pack =
        |kind: &str, values: &mut dyn Iterator<Item = f32>| values.flat_map(|v| code(kind, v)).collect::<Vec<u8>>();
    let pa = memory.upload(&pack(a, &mut f.a.iter().copied()));
    let pb = memory.upload(&pack(b, &mut (0..n * k).map(|i| f.b[i % k * n + i / k])));
    let sums = |v: f32| match sum {
        "s32" => (v as i32).to_le_bytes().to_vec(),
        "f16" => code("f16", v),
        _ => v.to_le_bytes().to_vec(),
    };
    let pc = memory.upload(&f.c.iter().flat_map(|v| sums(*v)).collect::<Vec<u8>>());
    let pd = memory.allocate(m * n * bytes);
    let with = Launch::new(1, 32).arg(pa).arg(pb).arg(pc).arg(pd);
    let mut after = right(&t, &memory, &with);
    let wanted: Vec<u8> = expected(&f, m, n, k).into_iter().flat_map(sums).collect();
    assert_eq!(after.read(pd, m * n * bytes), Some(wanted), "k{k} {a} {b} {sum}");
}

#[test]
fn products_of_a_warp() {
    for k in [8, 16] {
        mma(k, "bf16", "bf16", "f32");
        mma(k, "f16", "f16", "f32");
        mma(k, "f16", "f16", "f16");
    }
    mma(4, "tf32", "tf32", "f32");
    mma(8, "tf32", "tf32", "f32");
    for k in [16, 32] {
        mma(k, "s8", "s8", "s32");
        mma(k, "u8", "s8", "s32");
    }
    for (a, b) in [("e4m3", "e4m3"), ("e5m2", "e4m3"), ("e5m2", "e5m2")] {
        mma(32, a, b, "f32");
    }
}

#[test]
fn matrices_are_loaded_and_stored() {
    // What `ldmatrix` gathers `stmatrix` scatters; a transposed load gives neighbours of a column.
    let text = |load: &str, store: &str| {
        format!(
            ".visible .entry k(.param .u64 in, .param .u64 out) {{
            .reg .b32 l, s, x, r<4>, v;
            .reg .b64 p, q, w;
            .shared .align 16 .b8 from[512], to[512];
            ld.param.u64 p, [in]; ld.param.u64 q, [out];
            mov.u32 l, %laneid; mul.wide.u32 w, l, 16;
            add.s64 p, p, w; add.s64 q, q, w;
            ld.global.v4.b32 {{r0, r1, r2, r3}}, [p];
            shl.b32 x, l, 4;
            mov.u32 s, from; add.s32 s, s, x;
            st.shared.v4.b32 [s], {{r0, r1, r2, r3}};
            bar.warp.sync -1;
            ldmatrix.sync.aligned.m8n8.x4{load}.shared.b16 {{r0, r1, r2, r3}}, [s];
            mov.u32 s, to; add.s32 s, s, x;
            stmatrix.sync.aligned.m8n8.x4{store}.shared.b16 [s], {{r0, r1, r2, r3}};
            bar.warp.sync -1;
            ld.shared.v4.b32 {{r0, r1, r2, r3}}, [s];
            st.global.v4.b32 [q], {{r0, r1, r2, r3}};
            ret;
        }}"
        )
    };
    let data: Vec<u8> = (0..256u16).flat_map(|v| v.to_le_bytes()).collect();
    let mut memory = Memory::new();
    let from = memory.upload(&data);
    let to = memory.allocate(512);
    let with = Launch::new(1, 32).arg(from).arg(to);
    for (load, store, turned) in
        [("", "", false), (".trans", ".trans", false), (".trans", "", true), ("", ".trans", true)]
    {
        let mut after = right(&text(load, store), &memory, &with);
        let found = after.read(to, 512).unwrap();
        for at in 0..256usize {
            let (matrix, row, column) = (at / 64, at / 8 % 8, at % 8);
            let wanted = if turned { matrix * 64 + column * 8 + row } else { at };
            assert_eq!(usize::from(u16::from_le_bytes([found[2 * at], found[2 * at + 1]])), wanted);
        }
    }
    let bare = text("", "").replacen("bar.warp.sync -1;", "", 1);
    wrong(&bare, &memory, &with, &[FaultKind::Race]);
    let odd = text("", "").replacen("[s];", "[s+8];", 1);
    wrong(&odd, &memory, &with, &[FaultKind::Misaligned]);
    // The layout itself: lane 5 holds the second row's elements 2 and 3 of each matrix.
    let direct = text("", "").replace("stmatrix.sync.aligned.m8n8.x4.shared.b16 [s]", "st.shared.v4.b32 [s]");
    let found = right(&direct, &memory, &with).read(to, 512).unwrap();
    let half = |at: usize| u16::from_le_bytes([found[at], found[at + 1]]);
    assert_eq!([half(80), half(82), half(84), half(86)], [10, 11, 74, 75]);
}

/// A product of a warpgroup whose factors are put into shared memory by ordinary stores, by a table of where each
/// byte goes that is made here.
struct Grouped<'a> {
    n: usize,
    kind: &'a str,
    sum: &'a str,
    swizzle: u64,
    across: [bool; 2],
    from_registers: bool,
}

impl Grouped<'_> {
    /// Offset of element (row, k) and the two distances of the descriptor.
    fn place(&self, row: usize, k: usize, rows: usize, size: usize, across: bool) -> usize {
        let span = [16, 128, 64, 32][self.swizzle as usize];
        let (fast, slow) = if across { (row * size, k) } else { (k * size, row) };
        let groups_fast = if across { rows * size / span } else { (32 / span).max(1) };
        // Eight slow indices of a span each are together; then spans, then groups of eight.
        let line = (slow / 8 * groups_fast + fast / span) * 8 * span + slow % 8 * span + fast % span;
        let bits = span / 16 - 1;
        line ^ ((line >> 7 & bits) << 4)
    }

    fn descriptor(&self, rows: usize, size: usize, across: bool) -> u64 {
        let span = [16, 128, 64, 32][self.swizzle as usize];
        let spans = if across { rows * size / span } else { (32 / span).max(1) };
        let (next, group) = ((8 * span) as u64, (8 * span * spans) as u64);
        // Without a swizzle the two distances change their roles for a factor that lies across.
        let (leading, stride) = if self.swizzle == 0 && across { (group, next) } else { (next, group) };
        (leading >> 4) << 16 | (stride >> 4) << 32 | self.swizzle << 62
    }

    fn check(&self) {
        let n = self.n;
        let size = code(self.kind, 0.0).len();
        let (m, k) = (64, 32 / size);
        let f = factors(m, n, k, self.kind == "u8");
        let (mut a, mut b) = (vec![0u8; m * 32], vec![0u8; n * 32]);
        for row in 0..m {
            for i in 0..k {
                let at = self.place(row, i, m, size, self.across[0]);
                a[at..at + size].copy_from_slice(&code(self.kind, f.a[row * k + i]));
            }
        }
        for column in 0..n {
            for i in 0..k {
                let at = self.place(column, i, n, size, self.across[1]);
                b[at..at + size].copy_from_slice(&code(self.kind, f.b[i * n + column]));
            }
        }
        let count = if self.sum == "f16" { n / 4 } else { n / 2 };
        let ty = match self.sum {
            "f32" => "f32",
            "s32" => "s32",
            _ => "b32",
        };
        let list: Vec<String> = (0..count).map(|i| format!("d{i}")).collect();
        let list = list.join(", ");
        let mut t = format!(
            ".visible .entry k(.param .u64 a, .param .u64 b, .param .u64 c, .param .u64 d, .param .u64 rows) .maxntid 128, 1, 1 {{
            .shared .align 1024 .b8 sa[{}];
            .shared .align 1024 .b8 sb[{}];
            .reg .{ty} d<{count}>;
            .reg .b32 t, x, y, r<4>, lane, warp;
            .reg .b64 p, q, w, da, db;
            .reg .pred more, scale;
            mov.u32 t, %tid.x; and.b32 lane, t, 31; shr.u32 warp, t, 5;
            ld.param.u64 p, [a];
            mul.wide.u32 w, t, 16; add.s64 w, w, p;
            ld.global.v4.b32 {{r0, r1, r2, r3}}, [w];
            mov.u32 x, sa; shl.b32 y, t, 4; add.s32 x, x, y;
            st.shared.v4.b32 [x], {{r0, r1, r2, r3}};
            ld.param.u64 p, [b];
            mov.u32 x, t;
        fill:
            setp.ge.u32 more, x, {};
            @more bra filled;
            mul.wide.u32 w, x, 16; add.s64 w, w, p;
            ld.global.v4.b32 {{r0, r1, r2, r3}}, [w];
            mov.u32 lane, sb; shl.b32 y, x, 4; add.s32 lane, lane, y;
            st.shared.v4.b32 [lane], {{r0, r1, r2, r3}};
            add.u32 x, x, 128;
            bra fill;
        filled:
            fence.proxy.async.shared::cta;
            bar.sync 0;
            and.b32 lane, t, 31;
            ld.param.u64 p, [c];
            shr.u32 x, lane, 2; shl.b32 y, warp, 4; add.u32 x, x, y;\n",
            m * 32,
            n * 32,
            n * 2
        );
        let bytes = if self.sum == "f16" { 2 } else { 4 };
        let half = self.sum == "f16";
        let each = |t: &mut String, op: &dyn Fn(usize, usize) -> String| {
            for r in 0..count {
                let (row, column) =
                    if half { (8 * (r % 2), 8 * (r / 2)) } else { (8 * (r / 2 % 2), 8 * (r / 4) + r % 2) };
                t.push_str(&op(r, (row * n + column) * bytes));
            }
        };
        let load = format!(
            "mul.lo.u32 x, x, {}; and.b32 y, lane, 3; mad.lo.u32 x, y, {}, x; cvt.u64.u32 w, x;\n",
            n * bytes,
            2 * bytes
        );
        t += &load;
        t += "add.s64 p, p, w;\n";
        each(&mut t, &|r, at| format!("ld.global.{ty} d{r}, [p+{at}];\n"));
        if self.from_registers {
            // The rows as they lie, for fragments.
            t += "ld.param.u64 p, [rows];\n";
            for r in 0..4 {
                let (row, column) = (8 * (r % 2), 16 * (r / 2));
                writeln!(t, "shr.u32 x, lane, 2; shl.b32 y, warp, 4; add.u32 x, x, y; add.u32 x, x, {row};").unwrap();
                writeln!(t, "shl.b32 x, x, 5; and.b32 y, lane, 3; mad.lo.u32 x, y, 4, x; cvt.u64.u32 da, x;").unwrap();
                writeln!(t, "add.s64 da, da, p; ld.global.b32 r{r}, [da+{column}];").unwrap();
            }
        }
        writeln!(
            t,
            "mov.u32 x, sa; shr.u32 x, x, 4; cvt.u64.u32 da, x; or.b64 da, da, {};",
            self.descriptor(m, size, self.across[0]) as i64
        )
        .unwrap();
        writeln!(
            t,
            "mov.u32 x, sb; shr.u32 x, x, 4; cvt.u64.u32 db, x; or.b64 db, db, {};",
            self.descriptor(n, size, self.across[1]) as i64
        )
        .unwrap();
        let left = if self.from_registers { "{r0, r1, r2, r3}" } else { "da" };
        let mut tail = String::from(", 1");
        if self.sum != "s32" {
            tail += ", 1, 1";
        }
        if size == 2 {
            if !self.from_registers {
                write!(tail, ", {}", u8::from(self.across[0])).unwrap();
            }
            write!(tail, ", {}", u8::from(self.across[1])).unwrap();
        }
        let kinds = format!("{0}.{0}", self.kind);
        writeln!(t, "wgmma.fence.sync.aligned;\nwgmma.mma_async.sync.aligned.m64n{n}k{k}.{}.{kinds} {{{list}}}, {left}, db{tail};", self.sum).unwrap();
        t += "wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\nld.param.u64 q, [d];\nadd.s64 q, q, w;\n";
        each(&mut t, &|r, at| format!("st.global.{ty} [q+{at}], d{r};\n"));
        t += "ret;\n}\n";
        let mut memory = Memory::new();
        let rows: Vec<u8> = f.a.iter().flat_map(|v| code(self.kind, *v)).collect();
        let sums = |v: f32| match self.sum {
            "s32" => (v as i32).to_le_bytes().to_vec(),
            "f16" => code("f16", v),
            _ => v.to_le_bytes().to_vec(),
        };
        let (pa, pb, rows) = (memory.upload(&a), memory.upload(&b), memory.upload(&rows));
        let pc = memory.upload(&f.c.iter().flat_map(|v| sums(*v)).collect::<Vec<u8>>());
        let pd = memory.allocate(m * n * bytes);
        let with = Launch::new(1, 128).arg(pa).arg(pb).arg(pc).arg(pd).arg(rows);
        let module = support::module(&t);
        support::launch(&module, &mut memory, &with, &ptx_emulator::Options::default())
            .unwrap_or_else(|f| panic!("{f}"));
        let wanted: Vec<u8> = expected(&f, m, n, k).into_iter().flat_map(sums).collect();
        let what = format!("n{n} {} {} swizzle {} {:?}", self.kind, self.sum, self.swizzle, self.across);
        assert!(memory.read(pd, m * n * bytes) == Some(wanted), "{what}");
    }
}

#[test]
fn products_of_a_warpgroup() {
    let plain = Grouped { n: 64, kind: "bf16", sum: "f32", swizzle: 0, across: [false; 2], from_registers: false };
    for swizzle in [0, 3] {
        for n in [8, 24, 64] {
            Grouped { n, swizzle, ..plain }.check();
            Grouped { n, swizzle, kind: "e4m3", ..plain }.check();
        }
        for (kind, sum) in
            [("f16", "f32"), ("f16", "f16"), ("tf32", "f32"), ("e5m2", "f32"), ("s8", "s32"), ("u8", "s32")]
        {
            Grouped { swizzle, kind, sum, ..plain }.check();
            Grouped { swizzle, kind, sum, from_registers: true, ..plain }.check();
        }
    }
    for swizzle in 0..4 {
        for across in [[true, false], [false, true], [true, true]] {
            // Factors that do not lie across are 32 bytes wide here, so wide swizzles are for those that do.
            if swizzle == 0 || swizzle == 3 || across == [true, true] {
                Grouped { swizzle, across, ..plain }.check();
                Grouped { n: 128, swizzle, across, kind: "f16", ..plain }.check();
            }
        }
    }
}
