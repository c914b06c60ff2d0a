//! Accuracy of the expansions, measured on compiled code over a stride of all f32 and near interesting points.

use hadal_codegen::cranelift::jit;
use hadal_ir::kernel::interpret::Buffer;
use hadal_ir::kernel::*;
use hadal_types::{Bindings, DType};
use std::f32::consts::{FRAC_1_SQRT_2, SQRT_2};

fn kernel(op: UnaryOp, n: usize) -> Kernel {
    let mut b = Builder::new(op.name());
    let x = b.param("x", DType::F32, [n], Access::Read);
    let y = b.param("y", DType::F32, [n], Access::Write);
    let g = b.grid([n / 8])[0];
    let eight = b.const_i64(8);
    let at = b.mul(g, eight);
    let v = b.load(x, &[at], 8);
    let v = b.unary(op, v);
    b.store(y, &[at], v);
    b.finish()
}

/// Distance in units in the last place of `want`, halves included; 0 where both are the same special value.
fn ulps(have: f32, want: f64) -> f64 {
    let rounded = want as f32;
    if have.is_nan() || rounded.is_nan() || have.is_infinite() || rounded.is_infinite() {
        return if have == rounded || (have.is_nan() && rounded.is_nan()) { 0.0 } else { f64::INFINITY };
    }
    let exponent = (want.abs().log2().floor() as i32).max(-126);
    let exponent = if want == 0.0 { -126 } else { exponent };
    (have as f64 - want).abs() / 2f64.powi(exponent - 23)
}

fn worst(op: UnaryOp, exact: fn(f64) -> f64, within: impl Fn(f32) -> bool) -> (f64, f32) {
    let mut inputs: Vec<f32> =
        (0..=u32::MAX).step_by(1009).map(f32::from_bits).filter(|x| x.is_nan() || within(*x)).collect();
    // Multiples of π/2 are added below.
    let near = [0.0f32, 1.0, 0.62, 88.72, -103.97, -87.33, 100_000.0, 1e-38, FRAC_1_SQRT_2, SQRT_2];
    for center in near.into_iter().chain((1..4000).map(|j| j as f32 * std::f32::consts::FRAC_PI_2)) {
        let around = (-40i32..40).map(|d| f32::from_bits((center.to_bits() as i32).wrapping_add(d) as u32));
        inputs.extend(around.flat_map(|x| [x, -x]).filter(|x| within(*x)));
    }
    inputs.extend([f32::INFINITY, f32::NEG_INFINITY].into_iter().filter(|x| within(*x)));
    inputs.resize(inputs.len().next_multiple_of(8), 1.0);
    let mut args = [Buffer::from_f32(&inputs), Buffer::uninit(DType::F32, inputs.len())];
    jit::run(&kernel(op, inputs.len()), &Bindings::new(), &mut args, &[]).unwrap_or_else(|e| panic!("{e}"));
    let results = args[1].to_f32();
    let errors = inputs.iter().zip(results).map(|(x, y)| (ulps(y, exact(*x as f64)), *x));
    errors.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((0.0, 0.0))
}

#[test]
fn functions_are_within_two_ulps() {
    /// The function, its exact form, and how far from zero it holds.
    type Case = (UnaryOp, fn(f64) -> f64, f32);
    let cases: [Case; 8] = [
        (UnaryOp::Pow2Ceil, hadal_ir::ops::map::pow2_ceil, f32::INFINITY),
        (UnaryOp::Exp, f64::exp, f32::INFINITY),
        (UnaryOp::Exp2, |x| if x < -126.0 { 0.0 } else { x.exp2() }, f32::INFINITY),
        (UnaryOp::Log, f64::ln, f32::INFINITY),
        (UnaryOp::Sin, f64::sin, 2e5),
        (UnaryOp::Cos, f64::cos, 2e5),
        (UnaryOp::Tanh, f64::tanh, f32::INFINITY),
        (UnaryOp::Erf, |x| hadal_ir::ops::map::MapFn::Erf.real(x, 0.0), f32::INFINITY),
    ];
    for (op, exact, limit) in cases {
        let (error, at) = worst(op, exact, |x| x.abs() <= limit);
        println!("{}: {error:.2} ulp at {at:e}", op.name());
        let allowed = if op == UnaryOp::Pow2Ceil { 0.0 } else { 2.0 };
        assert!(error <= allowed, "{}: {error} ulp at {at:e} ({:#x})", op.name(), at.to_bits());
    }
}
