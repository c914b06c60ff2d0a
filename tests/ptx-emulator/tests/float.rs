//! Floating point: rounding, NaN and zeros, saturation, conversions; small formats exhaustively.

mod support;

use ptx_emulator::{bf16_to_f32, e4m3_to_f32, e5m2_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
use support::{Numbers, apply};

fn bits(value: f32) -> u64 {
    u64::from(value.to_bits())
}

fn one(instruction: &str, out: &str, ins: &[&str], row: &[u64]) -> u64 {
    apply(instruction, out, ins, &[row])[0]
}

const NAN: u64 = 0x7fff_ffff;

#[test]
fn roundings_of_f32() {
    // One and half of the last place, and a little more: every direction is told apart.
    let (big, tiny) = (bits(1.0), bits(f32::EPSILON / 4.0));
    let next = bits(1.0 + f32::EPSILON);
    let below = u64::from(1f32.to_bits() - 1);
    for (mode, up, down) in [("rn", big, big), ("rz", big, below), ("rm", big, below), ("rp", next, big)] {
        let found = one(&format!("add.{mode}.f32 d, a, b;"), "f32", &["f32", "f32"], &[big, tiny]);
        assert_eq!(found, up, "{mode}");
        let found = one(&format!("sub.{mode}.f32 d, a, b;"), "f32", &["f32", "f32"], &[big, bits(f32::EPSILON / 8.0)]);
        assert_eq!(found, down, "{mode}");
    }
    let third = [("rn", 0x3eaa_aaab), ("rz", 0x3eaa_aaaa), ("rm", 0x3eaa_aaaa), ("rp", 0x3eaa_aaab)];
    for (mode, wanted) in third {
        let row = [bits(1.0), bits(3.0)];
        assert_eq!(one(&format!("div.{mode}.f32 d, a, b;"), "f32", &["f32", "f32"], &row), wanted);
        assert_eq!(one(&format!("rcp.{mode}.f32 d, b;"), "f32", &["f32", "f32"], &row), wanted);
    }
    for (mode, wanted) in [("rn", 0x3fb5_04f3), ("rz", 0x3fb5_04f3), ("rp", 0x3fb5_04f4)] {
        assert_eq!(one(&format!("sqrt.{mode}.f32 d, a;"), "f32", &["f32"], &[bits(2.0)]), wanted);
    }
}

#[test]
fn fused_products_round_once() {
    let a = 1.0 + f32::EPSILON;
    let row = [bits(a), bits(a), bits(-(1.0 + 2.0 * f32::EPSILON))];
    assert_eq!(one("fma.rn.f32 d, a, b, c;", "f32", &["f32", "f32", "f32"], &row), bits(f32::EPSILON * f32::EPSILON));
    let mut numbers = Numbers(2);
    let rows: Vec<[u64; 3]> = (0..200).map(|_| [0, 0, 0].map(|_: u64| numbers.next() & 0xffff_ffff)).collect();
    let rows: Vec<&[u64]> = rows.iter().map(|r| &r[..]).collect();
    for (index, found) in apply("fma.rn.f32 d, a, b, c;", "f32", &["f32"; 3], &rows).into_iter().enumerate() {
        let [a, b, c] = [0, 1, 2].map(|i| f32::from_bits(rows[index][i] as u32));
        let wanted = a.mul_add(b, c);
        assert_eq!(found, if wanted.is_nan() { NAN } else { bits(wanted) });
    }
    // Directed rounding brackets the exact value.
    let ask = |mode: &str| apply(&format!("fma.{mode}.f32 d, a, b, c;"), "f32", &["f32"; 3], &rows);
    let (near, down, up) = (ask("rn"), ask("rm"), ask("rp"));
    for index in 0..rows.len() {
        let [near, down, up] = [near[index], down[index], up[index]].map(|b| f32::from_bits(b as u32));
        assert!(near.is_nan() || (down <= near && near <= up), "{down} {near} {up}");
        let [a, b, c] = [0, 1, 2].map(|i| f64::from(f32::from_bits(rows[index][i] as u32)));
        let exact = a * b + c;
        assert!(near.is_nan() || !(f64::from(up) < exact || f64::from(down) > exact) || !exact.is_finite());
    }
}

#[test]
fn double_precision() {
    let a = 1.0 + f64::EPSILON;
    let row = [a.to_bits(), a.to_bits(), (-(1.0 + 2.0 * f64::EPSILON)).to_bits()];
    let exact = (f64::EPSILON * f64::EPSILON).to_bits();
    for mode in ["rn", "rz", "rm", "rp"] {
        assert_eq!(one(&format!("fma.{mode}.f64 d, a, b, c;"), "f64", &["f64"; 3], &row), exact);
    }
    let row = [1f64.to_bits(), (f64::EPSILON / 4.0).to_bits()];
    assert_eq!(one("add.rp.f64 d, a, b;", "f64", &["f64"; 2], &row), 1f64.to_bits() + 1);
    assert_eq!(one("sub.rz.f64 d, a, b;", "f64", &["f64"; 2], &row), 1f64.to_bits() - 1);
    let row = [1f64.to_bits(), 3f64.to_bits()];
    assert_eq!(one("div.rp.f64 d, a, b;", "f64", &["f64"; 2], &row), (1.0f64 / 3.0).to_bits() + 1);
    assert_eq!(one("sqrt.rm.f64 d, b;", "f64", &["f64"; 2], &row), 3f64.sqrt().to_bits());
    assert_eq!(one("fma.rz.f64 d, a, b, a;", "f64", &["f64"; 2], &[1e300f64.to_bits(); 2]), f64::MAX.to_bits());
}

#[test]
fn small_numbers_and_flushing() {
    let small = u64::from(1u32 << 20);
    assert_eq!(one("add.rn.f32 d, a, a;", "f32", &["f32"], &[small]), 2 * small);
    assert_eq!(one("add.rn.ftz.f32 d, a, a;", "f32", &["f32"], &[small]), 0);
    assert_eq!(one("mul.rn.ftz.f32 d, a, b;", "f32", &["f32", "f32"], &[bits(-f32::MIN_POSITIVE), bits(0.5)]), 1 << 31);
    assert_eq!(one("setp.eq.ftz.f32 d, a, 0f00000000;", "pred", &["f32"], &[small]), 1);
    assert_eq!(one("fma.rn.sat.f32 d, a, a, a;", "f32", &["f32"], &[bits(0.9)]), bits(1.0));
    assert_eq!(one("add.sat.f32 d, a, a;", "f32", &["f32"], &[bits(-3.0)]), 0);
    assert_eq!(one("add.sat.f32 d, a, a;", "f32", &["f32"], &[NAN]), 0);
}

#[test]
fn extremes_and_signs() {
    let pair = ["f32", "f32"];
    assert_eq!(one("min.f32 d, a, b;", "f32", &pair, &[NAN, bits(2.0)]), bits(2.0));
    assert_eq!(one("max.NaN.f32 d, a, b;", "f32", &pair, &[NAN, bits(2.0)]), NAN);
    assert_eq!(one("min.f32 d, a, b;", "f32", &pair, &[0xffc0_0000, NAN]), NAN);
    assert_eq!(one("min.f32 d, a, b;", "f32", &pair, &[0, 1 << 31]), 1 << 31);
    assert_eq!(one("max.f32 d, a, b;", "f32", &pair, &[1 << 31, 0]), 0);
    assert_eq!(one("max.f32 d, a, b;", "f32", &pair, &[bits(-3.0), bits(-2.0)]), bits(-2.0));
    assert_eq!(one("neg.f32 d, a;", "f32", &["f32"], &[0]), 1 << 31);
    assert_eq!(one("abs.f32 d, a;", "f32", &["f32"], &[bits(-1.5)]), bits(1.5));
    assert_eq!(one("copysign.f32 d, a, b;", "f32", &pair, &[bits(-1.0), bits(4.0)]), bits(-4.0));
    let unordered = "setp.ltu.f32 d, a, b;";
    assert_eq!(apply(unordered, "pred", &pair, &[&[NAN, 0], &[0, bits(1.0)], &[bits(1.0), 0]]), [1, 1, 0]);
    assert_eq!(apply("setp.ne.f32 d, a, b;", "pred", &pair, &[&[NAN, 0], &[0, bits(1.0)]]), [0, 1]);
    assert_eq!(apply("setp.nan.f32 d, a, b;", "pred", &pair, &[&[NAN, 0], &[0, bits(1.0)]]), [1, 0]);
    // An exact zero of opposite signs.
    assert_eq!(one("add.rn.f32 d, a, b;", "f32", &pair, &[bits(1.0), bits(-1.0)]), 0);
    assert_eq!(one("add.rm.f32 d, a, b;", "f32", &pair, &[bits(1.0), bits(-1.0)]), 1 << 31);
}

#[test]
fn floats_to_integers() {
    let values = [2.5f32, -2.5, 3.5, 1e20, -1e20, f32::NAN, 0.4, -0.6];
    let rows: Vec<[u64; 1]> = values.iter().map(|v| [bits(*v)]).collect();
    let rows: Vec<&[u64]> = rows.iter().map(|r| &r[..]).collect();
    let (most, least) = (i32::MAX as u64, 0x8000_0000);
    let signed = |v: i32| u64::from(v as u32);
    let ask = |mode: &str| apply(&format!("cvt.{mode}.s32.f32 d, a;"), "b32", &["f32"], &rows);
    assert_eq!(ask("rni"), [2, signed(-2), 4, most, least, 0, 0, signed(-1)]);
    assert_eq!(ask("rzi"), [2, signed(-2), 3, most, least, 0, 0, 0]);
    assert_eq!(ask("rmi"), [2, signed(-3), 3, most, least, 0, 0, signed(-1)]);
    assert_eq!(ask("rpi"), [3, signed(-2), 4, most, least, 0, 1, 0]);
    let floors = apply("cvt.rmi.f32.f32 d, a;", "f32", &["f32"], &rows);
    assert_eq!(floors[1], bits(-3.0));
    assert_eq!(floors[3], bits(1e20));
    assert_eq!(apply("cvt.rzi.f32.f32 d, a;", "f32", &["f32"], &rows)[7], 1 << 31);
    assert_eq!(apply("cvt.rzi.u32.f32 d, a;", "b32", &["f32"], &rows[..2]), [2, 0]);
    assert_eq!(one("cvt.rn.f32.s32 d, a;", "f32", &["b32"], &[signed(-16777217)]), bits(-16777216.0));
    assert_eq!(one("cvt.rp.f32.u32 d, a;", "f32", &["b32"], &[16777217]), bits(16777218.0));
    assert_eq!(one("cvt.rn.f64.s64 d, a;", "f64", &["b64"], &[-3i64 as u64]), (-3f64).to_bits());
    assert_eq!(one("cvt.rn.f32.f64 d, a;", "f32", &["f64"], &[0.1f64.to_bits()]), bits(0.1));
    assert_eq!(one("cvt.f64.f32 d, a;", "f64", &["f32"], &[bits(0.1)]), f64::from(0.1f32).to_bits());
}

/// The nearest of all codes by distance, ties to the even code: how rounding is defined.
fn nearest(value: f32, codes: u32, of: impl Fn(u32) -> f32) -> u32 {
    let wide = f64::from(value.abs());
    (0..codes)
        .filter(|c| of(*c).is_finite())
        .min_by(|a, b| {
            let distance = |c: u32| (f64::from(of(c)) - wide).abs();
            distance(*a).total_cmp(&distance(*b)).then((a & 1).cmp(&(b & 1)))
        })
        .unwrap()
}

#[test]
fn eight_bit_floats() {
    assert_eq!((e4m3_to_f32(0x7e), e4m3_to_f32(0x01), e4m3_to_f32(0x38)), (448.0, 2f32.powi(-9), 1.0));
    assert_eq!((e5m2_to_f32(0x7b), e5m2_to_f32(0x01), e5m2_to_f32(0x3c)), (57344.0, 2f32.powi(-16), 1.0));
    assert!(e4m3_to_f32(0x7f).is_nan() && e5m2_to_f32(0x7c).is_infinite());
    let mut values: Vec<f32> = vec![0.0, 464.0, 465.0, 1e9, 2f32.powi(-10), 1.5 * 2f32.powi(-10), 2f32.powi(-17)];
    for code in 0..0x7fu8 {
        // Each number, and the middle to the next.
        values.push(e4m3_to_f32(code));
        values.push((e4m3_to_f32(code) + e4m3_to_f32(code.min(0x7d) + 1)) / 2.0);
        values.push(-e5m2_to_f32(code.min(0x7b)) * 1.0625);
    }
    for chunk in values.chunks(256) {
        let rows: Vec<[u64; 2]> = chunk.iter().map(|v| [bits(*v), bits(-*v)]).collect();
        let rows: Vec<&[u64]> = rows.iter().map(|r| &r[..]).collect();
        let pairs = ["f32", "f32"];
        let small = apply("cvt.rn.satfinite.e4m3x2.f32 d, a, b;", "b16", &pairs, &rows);
        let wide = apply("cvt.rn.satfinite.e5m2x2.f32 d, a, b;", "b16", &pairs, &rows);
        for (index, value) in chunk.iter().enumerate() {
            let sign = u64::from(value.is_sign_negative());
            let both = |code: u32| u64::from(code) | (1 - sign) << 7 | (u64::from(code) | sign << 7) << 8;
            assert_eq!(small[index], both(nearest(*value, 0x7f, |c| e4m3_to_f32(c as u8))), "e4m3 of {value}");
            assert_eq!(wide[index], both(nearest(*value, 0x7c, |c| e5m2_to_f32(c as u8))), "e5m2 of {value}");
        }
    }
    assert_eq!(one("cvt.rn.satfinite.e4m3x2.f32 d, a, a;", "b16", &["f32"], &[NAN]), 0x7f7f);
    assert_eq!(one("cvt.rn.satfinite.relu.e4m3x2.f32 d, a, a;", "b16", &["f32"], &[bits(-2.0)]), 0);
    let halves = u64::from(f32_to_f16(1.0)) | u64::from(f32_to_f16(-448.0)) << 16;
    assert_eq!(one("cvt.rn.satfinite.e4m3x2.f16x2 d, a;", "b16", &["b32"], &[halves]), 0xfe38);
    assert_eq!(one("cvt.rn.f16x2.e4m3x2 d, a;", "b32", &["b16"], &[0xfe38]), halves);
}

#[test]
fn halves() {
    for code in 0..=u16::MAX {
        let (half, brain) = (f16_to_f32(code), bf16_to_f32(code));
        assert!(half.is_nan() || f32_to_f16(half) == code, "{code:#x}");
        assert!(brain.is_nan() || f32_to_bf16(brain) == code, "{code:#x}");
    }
    assert_eq!(f32_to_f16(65519.99), 0x7bff);
    assert_eq!(f32_to_f16(65520.0), 0x7c00);
    assert_eq!(f32_to_f16(2f32.powi(-25)), 0);
    assert_eq!(f32_to_f16(1.5 * 2f32.powi(-25)), 1);
    assert_eq!(one("cvt.rn.bf16.f32 d, a;", "b16", &["f32"], &[0x3f80_8000]), 0x3f80);
    assert_eq!(one("cvt.rn.bf16.f32 d, a;", "b16", &["f32"], &[0x3f81_8000]), 0x3f82);
    assert_eq!(one("cvt.rz.bf16.f32 d, a;", "b16", &["f32"], &[0x3f81_ffff]), 0x3f81);
    assert_eq!(one("cvt.rn.bf16x2.f32 d, a, b;", "b32", &["f32", "f32"], &[bits(1.0), bits(2.0)]), 0x3f80_4000);
    assert_eq!(one("cvt.rn.f16x2.f32 d, a, b;", "b32", &["f32", "f32"], &[bits(1.0), bits(2.0)]), 0x3c00_4000);
    assert_eq!(one("cvt.f32.bf16 d, a;", "f32", &["b16"], &[0x4040]), bits(3.0));
    assert_eq!(one("cvt.rna.tf32.f32 d, a;", "b32", &["f32"], &[0x3f80_1000]), 0x3f80_2000);
    assert_eq!(
        one("fma.rn.bf16x2 d, a, b, c;", "b32", &["b32"; 3], &[0x4000_3f80, 0x4040_3f80, 0x3f80_3f80]),
        0x40e0_4000
    );
    assert_eq!(one("add.rn.f16x2 d, a, a;", "b32", &["b32"], &[0x3c00_0001]), 0x4000_0002);
    assert_eq!(one("fma.rn.relu.f16 d, a, a, b;", "b16", &["b16", "b16"], &[0x3c00, 0xc400]), 0);
    assert_eq!(one("max.bf16x2 d, a, b;", "b32", &["b32", "b32"], &[0x7fff_3f80, 0x4000_4000]), 0x4000_4000);
    assert_eq!(one("setp.gt.bf16 d, a, b;", "pred", &["b16", "b16"], &[0x4000, 0x3f80]), 1);
}

#[test]
fn approximate_functions_stand_in_rounded() {
    for (name, of) in [
        ("ex2", (|x: f64| x.exp2()) as fn(f64) -> f64),
        ("lg2", f64::log2),
        ("rcp", f64::recip),
        ("rsqrt", |x| 1.0 / x.sqrt()),
        ("sqrt", f64::sqrt),
        ("sin", f64::sin),
        ("tanh", f64::tanh),
    ] {
        let found = one(&format!("{name}.approx.f32 d, a;"), "f32", &["f32"], &[bits(0.7)]);
        assert_eq!(found, bits(of(f64::from(0.7f32)) as f32), "{name}");
    }
    assert_eq!(one("rsqrt.approx.ftz.f32 d, a;", "f32", &["f32"], &[1]), bits(f32::INFINITY));
    assert_eq!(one("div.full.f32 d, a, b;", "f32", &["f32", "f32"], &[bits(1.0), bits(3.0)]), bits(1.0 / 3.0));
}
