//! Kernels used by tests, and tests of builder and text.

use super::*;

/// A small kernel with most kinds of statement.
pub(super) fn sample() -> Kernel {
    let mut b = Builder::new("sample");
    let x = b.param("x", DType::BF16, [Dim::from(Sym::T), Dim::from(20)], Access::Read);
    let y = b.param("y", DType::F32, [Dim::from(Sym::T)], Access::Write);
    let t = b.grid([Sym::T])[0];
    let tmp = b.alloc("tmp", DType::F32, [Dim::from(Sym::T) * 2 + 1]);
    let (zero, n, init) = (b.const_i64(0), b.const_i64(20), b.const_f32(-0.0));
    let acc = b.splat(init, 8);
    let sums = b.for_loop(zero, n, 8, LoopKind::Serial, &[acc], |b, i, c| {
        let mask = b.lanes_below(i, n, 8);
        let v = b.load_masked(x, &[t, i], mask, None);
        let v = b.cast(v, DType::F32);
        vec![b.fma(v, v, c[0])]
    });
    let sum = b.reduce_lanes(ReduceOp::Add, sums[0]);
    let limit = b.const_f32(4.0);
    let big = b.gt(sum, limit);
    let out = b.if_else(big, |b| vec![b.sqrt(sum)], |b| vec![b.exp(sum)]);
    b.store(tmp, &[t], out[0]);
    let out = b.load(tmp, &[t], 1);
    b.store(y, &[t], out);
    b.finish()
}

#[test]
fn sample_prints_and_parses() {
    let kernel = sample();
    let printed = kernel.to_string();
    let again = text::parse(&printed).unwrap();
    assert_eq!(again, kernel, "{printed}");
    assert_eq!(again.to_string(), printed);
    assert_eq!(kernel.scratch_bytes().unwrap().to_string(), "8*T+67");
}
