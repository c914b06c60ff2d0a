//! Integer and bit instructions against values worked out here.

mod support;

use support::{Numbers, apply};

const EDGES: [u32; 10] = [0, 1, 2, 31, 32, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 0x1234_5678, 0xdead_beef];

fn pairs() -> Vec<Vec<u64>> {
    let mut rows = Vec::new();
    for a in EDGES {
        for b in EDGES {
            rows.push(vec![u64::from(a), u64::from(b)]);
        }
    }
    let mut numbers = Numbers(1);
    for _ in 0..50 {
        rows.push(vec![numbers.next() & 0xffff_ffff, numbers.next() & 0xffff_ffff]);
    }
    rows
}

fn check2(instruction: &str, ty: &str, expected: impl Fn(u32, u32) -> u32) {
    let rows = pairs();
    let rows: Vec<&[u64]> = rows.iter().map(|r| &r[..]).collect();
    let found = apply(instruction, ty, &[ty, ty], &rows);
    for (row, found) in rows.iter().zip(found) {
        let wanted = expected(row[0] as u32, row[1] as u32);
        assert_eq!(found as u32, wanted, "{instruction} of {:#x} and {:#x}", row[0], row[1]);
    }
}

#[test]
fn arithmetic_of_32_bits() {
    check2("add.s32 d, a, b;", "b32", u32::wrapping_add);
    check2("sub.s32 d, a, b;", "b32", u32::wrapping_sub);
    check2("mul.lo.s32 d, a, b;", "b32", u32::wrapping_mul);
    check2("mul.hi.u32 d, a, b;", "b32", |a, b| ((u64::from(a) * u64::from(b)) >> 32) as u32);
    check2("mul.hi.s32 d, a, b;", "b32", |a, b| ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32);
    check2("min.s32 d, a, b;", "b32", |a, b| (a as i32).min(b as i32) as u32);
    check2("max.u32 d, a, b;", "b32", u32::max);
    check2("add.sat.s32 d, a, b;", "b32", |a, b| (a as i32).saturating_add(b as i32) as u32);
    check2("sub.sat.s32 d, a, b;", "b32", |a, b| (a as i32).saturating_sub(b as i32) as u32);
    check2("sad.u32 d, a, b, 7;", "b32", |a, b| a.abs_diff(b).wrapping_add(7));
    check2("mad.lo.u32 d, a, b, 9;", "b32", |a, b| a.wrapping_mul(b).wrapping_add(9));
    check2("mad.hi.u32 d, a, b, 9;", "b32", |a, b| (((u64::from(a) * u64::from(b)) >> 32) as u32).wrapping_add(9));
    check2("{ .reg .b32 m; or.b32 m, b, 1; div.u32 d, a, m; }", "b32", |a, b| a / (b | 1));
    check2("{ .reg .b32 m; or.b32 m, b, 1; rem.s32 d, a, m; }", "b32", |a, b| {
        (a as i32).wrapping_rem(b as i32 | 1) as u32
    });
}

#[test]
fn bits() {
    check2("and.b32 d, a, b;", "b32", |a, b| a & b);
    check2("xor.b32 d, a, b;", "b32", |a, b| a ^ b);
    check2("not.b32 d, a;", "b32", |a, _| !a);
    check2("cnot.b32 d, a;", "b32", |a, _| u32::from(a == 0));
    check2("lop3.b32 d, a, b, 0x0f0f0f0f, 0xe8;", "b32", |a, b| {
        let c = 0x0f0f_0f0f;
        (a & b) | (b & c) | (a & c)
    });
    check2("shl.b32 d, a, b;", "b32", |a, b| if b > 31 { 0 } else { a << b });
    check2("shr.u32 d, a, b;", "b32", |a, b| if b > 31 { 0 } else { a >> b });
    check2("shr.s32 d, a, b;", "b32", |a, b| ((a as i32) >> b.min(31)) as u32);
    check2("shf.l.wrap.b32 d, a, b, 5;", "b32", |a, b| b << 5 | a >> 27);
    check2("shf.r.clamp.b32 d, a, b, 40;", "b32", |_, b| b);
    check2("shf.l.clamp.b32 d, a, b, 32;", "b32", |a, _| a);
    check2("shf.l.wrap.b32 d, a, a, b;", "b32", |a, b| a.rotate_left(b & 31));
    check2("popc.b32 d, a;", "b32", |a, _| a.count_ones());
    check2("clz.b32 d, a;", "b32", |a, _| a.leading_zeros());
    check2("brev.b32 d, a;", "b32", |a, _| a.reverse_bits());
    check2("bfind.u32 d, a;", "b32", |a, _| if a == 0 { u32::MAX } else { 31 - a.leading_zeros() });
    check2("bfind.s32 d, a;", "b32", |a, _| {
        let a = if (a as i32) < 0 { !a } else { a };
        if a == 0 { u32::MAX } else { 31 - a.leading_zeros() }
    });
    check2("bfe.u32 d, a, 4, 8;", "b32", |a, _| a >> 4 & 0xff);
    check2("bfe.s32 d, a, 28, 8;", "b32", |a, _| ((a as i32) >> 28) as u32);
    check2("bfe.s32 d, a, 4, 8;", "b32", |a, _| (((a << 20) as i32) >> 24) as u32);
    check2("bfi.b32 d, a, b, 4, 8;", "b32", |a, b| (b & !0xff0) | (a << 4 & 0xff0));
    check2("prmt.b32 d, a, b, 0x7610;", "b32", |a, b| (a & 0xffff) | (b & 0xffff_0000));
    check2("prmt.b32 d, a, b, 0xba98;", "b32", |a, _| {
        (0..4).map(|i| if a >> (8 * i + 7) & 1 == 1 { 0xffu32 << (8 * i) } else { 0 }).sum()
    });
    check2("prmt.b32.rc8 d, a, b, 2;", "b32", |a, _| (a >> 16 & 0xff) * 0x0101_0101);
    check2("bmsk.clamp.b32 d, 4, 8;", "b32", |_, _| 0xff0);
    check2("szext.wrap.s32 d, a, 8;", "b32", |a, _| a as i8 as i32 as u32);
}

#[test]
fn dot_products_of_bytes() {
    check2("dp4a.s32.s32 d, a, b, 100;", "b32", |a, b| {
        let (a, b) = (a.to_le_bytes(), b.to_le_bytes());
        let sum: i32 = (0..4).map(|i| i32::from(a[i] as i8) * i32::from(b[i] as i8)).sum();
        (100 + sum) as u32
    });
    check2("dp4a.u32.s32 d, a, b, 100;", "b32", |a, b| {
        let (a, b) = (a.to_le_bytes(), b.to_le_bytes());
        let sum: i32 = (0..4).map(|i| i32::from(a[i]) * i32::from(b[i] as i8)).sum();
        (100 + sum) as u32
    });
    check2("dp2a.hi.s32.s32 d, a, b, 3;", "b32", |a, b| {
        let b = b.to_le_bytes();
        let halves = [a as i16, (a >> 16) as i16];
        (3 + i32::from(halves[0]) * i32::from(b[2] as i8) + i32::from(halves[1]) * i32::from(b[3] as i8)) as u32
    });
}

#[test]
fn widths_of_16_and_64_bits() {
    let rows: [&[u64]; 3] = [&[0xffff, 2], &[0x8000, 0x8000], &[300, 300]];
    assert_eq!(apply("mul.wide.u16 d, a, b;", "b32", &["b16", "b16"], &rows), [0x1fffe, 0x4000_0000, 90000]);
    assert_eq!(apply("mul.wide.s16 d, a, b;", "b32", &["b16", "b16"], &rows), [0xffff_fffe, 0x4000_0000, 90000]);
    assert_eq!(apply("add.s16 d, a, b;", "b16", &["b16", "b16"], &rows), [1, 0, 600]);
    let rows: [&[u64]; 3] = [&[u64::MAX, 3], &[1 << 63, 63], &[0x0123_4567_89ab_cdef, 8]];
    let products: Vec<u64> = rows.iter().map(|r| ((u128::from(r[0]) * u128::from(r[1])) >> 64) as u64).collect();
    assert_eq!(apply("mul.hi.u64 d, a, b;", "b64", &["b64", "b64"], &rows), products);
    let shifts: Vec<u64> = rows.iter().map(|r| ((r[0] as i64) >> r[1]) as u64).collect();
    assert_eq!(apply("{ .reg .b32 n; cvt.u32.u64 n, b; shr.s64 d, a, n; }", "b64", &["b64", "b64"], &rows), shifts);
    let carried: [&[u64]; 2] = [&[u64::MAX, 1], &[5, 6]];
    let body = "{ .reg .b64 low; add.cc.u64 low, a, b; addc.u64 d, 10, 0; }";
    assert_eq!(apply(body, "b64", &["b64", "b64"], &carried), [11, 10]);
    let body = "{ .reg .b64 low; sub.cc.u64 low, a, b; subc.u64 d, 10, 0; }";
    assert_eq!(apply(body, "b64", &["b64", "b64"], &[&[5, 6], &[6, 5]]), [9, 10]);
    assert_eq!(apply("mad.wide.s32 d, a, b, 5;", "b64", &["b32", "b32"], &[&[0xffff_ffff, 7]]), [-2i64 as u64]);
}

#[test]
fn conversions_between_integers() {
    let rows: [&[u64]; 4] = [&[0x180], &[0x7f], &[0xffff_ff80], &[0xffff_ffff]];
    assert_eq!(apply("cvt.s32.s8 d, a;", "b32", &["b32"], &rows), [0xffff_ff80, 0x7f, 0xffff_ff80, 0xffff_ffff]);
    assert_eq!(apply("cvt.u32.u8 d, a;", "b32", &["b32"], &rows), [0x80, 0x7f, 0x80, 0xff]);
    assert_eq!(apply("cvt.sat.s8.s32 d, a;", "b32", &["b32"], &rows), [0x7f, 0x7f, 0xffff_ff80, 0xffff_ffff]);
    assert_eq!(apply("cvt.sat.u8.s32 d, a;", "b32", &["b32"], &rows), [0xff, 0x7f, 0, 0]);
    assert_eq!(apply("cvt.s64.s32 d, a;", "b64", &["b32"], &rows[2..]), [-128i64 as u64, u64::MAX]);
    assert_eq!(apply("cvt.u16.u32 d, a;", "b16", &["b32"], &rows), [0x180, 0x7f, 0xff80, 0xffff]);
}

#[test]
fn comparisons_and_selections() {
    let rows: [&[u64]; 3] = [&[1, 0xffff_ffff], &[5, 5], &[0xffff_ffff, 1]];
    assert_eq!(apply("setp.lt.s32 d, a, b;", "pred", &["b32", "b32"], &rows), [0, 0, 1]);
    assert_eq!(apply("setp.lt.u32 d, a, b;", "pred", &["b32", "b32"], &rows), [1, 0, 0]);
    assert_eq!(apply("setp.hs.u32 d, a, b;", "pred", &["b32", "b32"], &rows), [0, 1, 1]);
    let joined = "{ .reg .pred p; setp.eq.s32 p, a, 5; setp.ne.or.s32 d, b, 1, p; }";
    assert_eq!(apply(joined, "pred", &["b32", "b32"], &rows), [1, 1, 0]);
    let both = "{ .reg .pred p, q; setp.lt.s32 p|q, a, b; and.pred p, p, q; not.pred d, p; }";
    assert_eq!(apply(both, "pred", &["b32", "b32"], &rows), [1, 1, 1]);
    assert_eq!(apply("set.eq.u32.s32 d, a, b;", "b32", &["b32", "b32"], &rows), [0, 0xffff_ffff, 0]);
    assert_eq!(apply("selp.b32 d, a, 9, c;", "b32", &["b32", "b32", "pred"], &[&[1, 2, 1], &[3, 4, 0]]), [1, 9]);
    let negated = "{ .reg .pred p; setp.eq.s32 p, a, 5; mov.b32 d, 1; @!p mov.b32 d, 2; }";
    assert_eq!(apply(negated, "b32", &["b32", "b32"], &rows), [2, 1, 2]);
}

#[test]
fn halves_of_registers() {
    let body = "{ .reg .b16 x, y; mov.b32 {x, y}, a; mov.b32 d, {y, x}; }";
    assert_eq!(apply(body, "b32", &["b32"], &[&[0x1234_5678]]), [0x5678_1234]);
    let body = "{ .reg .b32 x; mov.b64 {_, x}, a; mov.b64 d, {x, x}; }";
    assert_eq!(apply(body, "b64", &["b64"], &[&[0x1111_1111_2222_2222]]), [0x1111_1111_1111_1111]);
}
