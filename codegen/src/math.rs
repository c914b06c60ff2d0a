//! Transcendental functions as polynomials of basic operations.
//!
//! One expansion for all back ends, so that results depend neither on the machine nor on a library. Errors, measured
//! by the test over all exponents, against the correctly rounded value: exp, exp2, log, sin, cos, tanh and erf ≤ 2 ulp; sin
//! and cos for |x| ≤ 2·10⁵ (their argument is reduced by three parts of π/2), beyond that they lose accuracy and NaN
//! comes out of infinities. exp overflows to infinity and underflows through the subnormals to 0. log of 0 is -∞, of
//! negative numbers NaN. NaN stays NaN. The sign of a zero is not kept.
//!
//! Integers are taken out of floats by adding 1.5·2²³, whose last place is 1: the sum's bits are the integer.

mod dot;

use hadal_ir::kernel::*;
use hadal_types::DType;
use std::collections::HashMap;

/// Replaces pow2_ceil, exp, exp2, log, sin, cos, tanh, erf and dot products by basic operations.
pub fn expand(kernel: &Kernel) -> Kernel {
    expand_but(kernel, Kept::default())
}

/// What a back end does by itself.
#[derive(Clone, Copy, Default)]
pub struct Kept {
    /// Formats of the second operand of dot products.
    pub dots: &'static [DType],
    /// Powers of two.
    pub exp2: bool,
}

/// As [`expand`], but for what is kept.
pub fn expand_but(kernel: &Kernel, kept: Kept) -> Kernel {
    let mut e =
        Expander { values: kernel.values.clone(), top: Vec::new(), constants: HashMap::new(), out: Vec::new(), kept };
    let body = e.block(&kernel.body);
    let mut expanded = Kernel { values: e.values, body, ..kernel.clone() };
    expanded.body.stmts.splice(0..0, e.top);
    expanded.renumber();
    expanded
}

struct Expander {
    values: Vec<ValueType>,
    /// Constants, before everything else.
    top: Vec<Stmt>,
    constants: HashMap<(Const, u32), Value>,
    /// The block being written.
    out: Vec<Stmt>,
    kept: Kept,
}

/// 1.5·2²³.
const SHIFTER: f32 = 12_582_912.0;
const LN2_HIGH: f32 = 0.693_145_75;
const LN2_LOW: f32 = 1.428_606_8e-6;
/// `2ʳ` for |r| ≤ ½: powers of ln 2, by factorials.
const EXP2: [f32; 8] = [
    1.0,
    std::f32::consts::LN_2,
    0.240_226_5,
    0.055_504_11,
    0.009_618_129,
    0.001_333_355_8,
    1.540_353e-4,
    1.525_273_4e-5,
];
/// π/2 in three parts.
const HALF_PI: [u32; 3] = [0x3fc9_0fdb, 0xb33b_bd2e, 0xa6f7_2ced];
/// `(ln(1+f) - f + f²/2) / f³` for 1+f between √½ and √2.
const LOG: [f32; 9] = [
    0.333_333_13,
    -0.250_000_1,
    0.200_021_19,
    -0.166_679_96,
    0.142_195_52,
    -0.124_055_89,
    0.118_881_63,
    -0.116_756_51,
    0.067_466_386,
];
/// `(tanh x - x) / x³` in x², for |x| up to 0.62.
const TANH: [f32; 5] = [-0.333_332_87, 0.133_315_49, -0.053_749_118, 0.020_671_485, -0.005_743_010_4];
/// `erf x / x - 1` in x², for |x| up to 1.
const ERF: [f32; 7] =
    [0.128_379_17, -0.376_126_26, 0.112_835_85, -0.026_853_812, 0.005_188_327_8, -8.010_194e-4, 7.853_863e-5];
/// `ln(1 - erf x)` for x from 1 to 4, the better the larger it is.
const LOG_ERFC: [f32; 8] = [
    1.880_365e-4,
    -1.129_578_4,
    -0.633_219_9,
    -0.108_418_55,
    0.025_208_238,
    -0.004_204_555_4,
    4.413_351_3e-4,
    -2.168_675e-5,
];

impl Expander {
    fn block(&mut self, block: &Block) -> Block {
        let outer = std::mem::take(&mut self.out);
        for stmt in &block.stmts {
            match stmt {
                Stmt::Let(value, Op::Unary(op, a)) => self.unary(*value, *op, *a),
                Stmt::Let(value, Op::Dot(a, b, c)) if !self.kept.dots.contains(&self.values[b.index()].elem) => {
                    self.dot(*a, *b, *c);
                    self.name_last(*value);
                }
                Stmt::For(l) => {
                    let body = self.block(&l.body);
                    self.out.push(Stmt::For(Box::new(For { body, ..(**l).clone() })));
                }
                Stmt::If(c) => {
                    let (then, otherwise) = (self.block(&c.then), self.block(&c.otherwise));
                    self.out.push(Stmt::If(Box::new(If { then, otherwise, ..(**c).clone() })));
                }
                Stmt::Let(..)
                | Stmt::Store { .. }
                | Stmt::Prefetch(_)
                | Stmt::Alloc(_)
                | Stmt::Team(_)
                | Stmt::Copy(_)
                | Stmt::Wgmma(_)
                | Stmt::Settle(_) => self.out.push(stmt.clone()),
            }
        }
        Block { stmts: std::mem::replace(&mut self.out, outer), yields: block.yields.clone() }
    }

    /// Emits what computes the operation, so that its last step defines `value`.
    fn unary(&mut self, value: Value, op: UnaryOp, a: Value) {
        match op {
            UnaryOp::Neg | UnaryOp::Abs | UnaryOp::Not | UnaryOp::Sqrt | UnaryOp::Floor => {
                return self.out.push(Stmt::Let(value, Op::Unary(op, a)));
            }
            UnaryOp::Exp2 if self.kept.exp2 => return self.out.push(Stmt::Let(value, Op::Unary(op, a))),
            UnaryOp::Exp2 => self.exp2(a),
            UnaryOp::Pow2Ceil => self.pow2_ceil(a),
            UnaryOp::Exp => self.exp(a),
            UnaryOp::Log => self.log(a),
            UnaryOp::Sin => self.sin(a, 0),
            UnaryOp::Cos => self.sin(a, 1),
            UnaryOp::Tanh => self.tanh(a),
            UnaryOp::Erf => self.erf(a),
        };
        self.name_last(value);
    }

    /// Lets the last step define `value`.
    fn name_last(&mut self, value: Value) {
        if let Some(Stmt::Let(last, _)) = self.out.last_mut() {
            *last = value;
        }
    }

    /// Rounds the mantissa's bits up into the exponent's.
    fn pow2_ceil(&mut self, x: Value) -> Value {
        let bits = self.bitcast(x, DType::I32);
        let (below, exponent) = (self.i(x, 0x007f_ffff), self.i(x, 0x7f80_0000));
        let up = self.binary(BinaryOp::Add, bits, below);
        let up = self.binary(BinaryOp::And, up, exponent);
        let up = self.bitcast(up, DType::F32);
        let (zero, nan) = (self.f(x, 0.0), self.f(x, f32::NAN));
        let counts = self.compare(CompareOp::Ge, x, zero);
        // A zero of either sign has no bits to round up.
        let sized = self.compare(CompareOp::Gt, x, zero);
        let up = self.select(sized, up, zero);
        self.select(counts, up, nan)
    }

    fn exp(&mut self, x: Value) -> Value {
        // Beyond these the result is infinite or zero. The order of operands keeps NaN.
        let (high, low) = (self.f(x, 89.0), self.f(x, -104.0));
        let x = self.binary(BinaryOp::Min, high, x);
        let x = self.binary(BinaryOp::Max, low, x);
        let shifter = self.f(x, SHIFTER);
        let log2e = self.f(x, std::f32::consts::LOG2_E);
        let shifted = self.fma(x, log2e, shifter);
        let n = self.binary(BinaryOp::Sub, shifted, shifter);
        let (high, low) = (self.f(x, -LN2_HIGH), self.f(x, -LN2_LOW));
        let r = self.fma(n, high, x);
        let r = self.fma(n, low, r);
        // Taylor's series to r⁷: |r| ≤ ½ ln 2.
        let p = self.poly(r, &[1.0, 1.0, 0.5, 1.0 / 6.0, 1.0 / 24.0, 1.0 / 120.0, 1.0 / 720.0, 1.0 / 5040.0]);
        self.scaled(p, shifted)
    }

    fn exp2(&mut self, x: Value) -> Value {
        let (high, low) = (self.f(x, 129.0), self.f(x, -150.0));
        let x = self.binary(BinaryOp::Min, high, x);
        let x = self.binary(BinaryOp::Max, low, x);
        let shifter = self.f(x, SHIFTER);
        let shifted = self.binary(BinaryOp::Add, x, shifter);
        let n = self.binary(BinaryOp::Sub, shifted, shifter);
        let r = self.binary(BinaryOp::Sub, x, n);
        let p = self.poly(r, &EXP2);
        let y = self.scaled(p, shifted);
        let (least, zero) = (self.f(x, -126.0), self.f(x, 0.0));
        let small = self.compare(CompareOp::Lt, x, least);
        self.select(small, zero, y)
    }

    /// `p` times two to the integer that was added to the shifter: in two factors, each of them a normal number.
    fn scaled(&mut self, p: Value, shifted: Value) -> Value {
        let bits = self.bitcast(shifted, DType::I32);
        let bias = self.i(p, SHIFTER.to_bits() as i32);
        let n = self.binary(BinaryOp::Sub, bits, bias);
        let one = self.i(p, 1);
        let half = self.binary(BinaryOp::Shr, n, one);
        let rest = self.binary(BinaryOp::Sub, n, half);
        let (half, rest) = (self.power_of_two(half), self.power_of_two(rest));
        let p = self.binary(BinaryOp::Mul, p, half);
        self.binary(BinaryOp::Mul, p, rest)
    }

    fn power_of_two(&mut self, n: Value) -> Value {
        let (bias, mantissa) = (self.i(n, 127), self.i(n, 23));
        let exponent = self.binary(BinaryOp::Add, n, bias);
        let bits = self.binary(BinaryOp::Shl, exponent, mantissa);
        self.bitcast(bits, DType::F32)
    }

    fn log(&mut self, x: Value) -> Value {
        // Subnormal numbers are scaled up by 2²³ first.
        let (smallest, scale) = (self.f(x, f32::MIN_POSITIVE), self.f(x, 8_388_608.0));
        let small = self.compare(CompareOp::Lt, x, smallest);
        let scaled = self.binary(BinaryOp::Mul, x, scale);
        let y = self.select(small, scaled, x);
        let (minus_23, zero) = (self.f(x, -23.0), self.f(x, 0.0));
        let lift = self.select(small, minus_23, zero);
        // y = 2ᵉ · m with m between √½ and √2.
        let bits = self.bitcast(y, DType::I32);
        let (root, mantissa) = (self.i(x, std::f32::consts::FRAC_1_SQRT_2.to_bits() as i32), self.i(x, 23));
        let above = self.binary(BinaryOp::Sub, bits, root);
        let e = self.binary(BinaryOp::Shr, above, mantissa);
        let exponent = self.binary(BinaryOp::Shl, e, mantissa);
        let m = self.binary(BinaryOp::Sub, bits, exponent);
        let m = self.bitcast(m, DType::F32);
        let e = self.let_(Op::Cast(e), DType::F32, e);
        let e = self.binary(BinaryOp::Add, e, lift);
        let one = self.f(x, 1.0);
        let f = self.binary(BinaryOp::Sub, m, one);
        let p = self.poly(f, &LOG);
        let z = self.binary(BinaryOp::Mul, f, f);
        let cube = self.binary(BinaryOp::Mul, f, z);
        let (high, low, half) = (self.f(x, LN2_HIGH), self.f(x, LN2_LOW), self.f(x, -0.5));
        let r = self.binary(BinaryOp::Mul, e, low);
        let r = self.fma(cube, p, r);
        let r = self.fma(half, z, r);
        let r = self.binary(BinaryOp::Add, f, r);
        let r = self.fma(e, high, r);
        // Zero, negative numbers, infinity and NaN.
        let (infinity, lowest, nan) = (self.f(x, f32::INFINITY), self.f(x, f32::NEG_INFINITY), self.f(x, f32::NAN));
        let is_zero = self.compare(CompareOp::Eq, x, zero);
        let is_positive = self.compare(CompareOp::Gt, x, zero);
        let is_finite = self.compare(CompareOp::Lt, x, infinity);
        let odd = self.select(is_zero, lowest, nan);
        let positive = self.select(is_finite, r, x);
        self.select(is_positive, positive, odd)
    }

    /// sin(x + quarter · π/2).
    fn sin(&mut self, x: Value, quarter: i32) -> Value {
        let (shifter, inverse) = (self.f(x, SHIFTER), self.f(x, std::f32::consts::FRAC_2_PI));
        let shifted = self.fma(x, inverse, shifter);
        let j = self.binary(BinaryOp::Sub, shifted, shifter);
        let mut r = x;
        for part in HALF_PI {
            let part = self.f(x, -f32::from_bits(part));
            r = self.fma(j, part, r);
        }
        let bits = self.bitcast(shifted, DType::I32);
        let quarter = self.i(x, quarter);
        let q = self.binary(BinaryOp::Add, bits, quarter);
        let z = self.binary(BinaryOp::Mul, r, r);
        // Taylor's series: |r| ≤ π/4.
        let s = self.poly(z, &[-1.0 / 6.0, 1.0 / 120.0, -1.0 / 5040.0, 1.0 / 362_880.0]);
        let cube = self.binary(BinaryOp::Mul, r, z);
        let sin = self.fma(cube, s, r);
        let c = self.poly(z, &[1.0 / 24.0, -1.0 / 720.0, 1.0 / 40_320.0, -1.0 / 3_628_800.0]);
        let square = self.binary(BinaryOp::Mul, z, z);
        let (half, one) = (self.f(x, -0.5), self.f(x, 1.0));
        let head = self.fma(half, z, one);
        let cos = self.fma(square, c, head);
        let (one, two, zero, thirty) = (self.i(x, 1), self.i(x, 2), self.i(x, 0), self.i(x, 30));
        let odd = self.binary(BinaryOp::And, q, one);
        let is_even = self.compare(CompareOp::Eq, odd, zero);
        let value = self.select(is_even, sin, cos);
        // Bit 1 of the quarter is the sign.
        let sign = self.binary(BinaryOp::And, q, two);
        let sign = self.binary(BinaryOp::Shl, sign, thirty);
        let bits = self.bitcast(value, DType::I32);
        let bits = self.binary(BinaryOp::Xor, bits, sign);
        self.bitcast(bits, DType::F32)
    }

    fn tanh(&mut self, x: Value) -> Value {
        let z = self.binary(BinaryOp::Mul, x, x);
        let p = self.poly(z, &TANH);
        let cube = self.binary(BinaryOp::Mul, x, z);
        let small = self.fma(cube, p, x);
        // 1 - 2 / (exp(2|x|) + 1)
        let a = self.let_(Op::Unary(UnaryOp::Abs, x), DType::F32, x);
        let twice = self.binary(BinaryOp::Add, a, a);
        let e = self.exp(twice);
        let (one, two) = (self.f(x, 1.0), self.f(x, 2.0));
        let denominator = self.binary(BinaryOp::Add, e, one);
        let quotient = self.binary(BinaryOp::Div, two, denominator);
        let large = self.signed_rest(x, quotient);
        let limit = self.f(x, 0.62);
        let is_small = self.compare(CompareOp::Lt, a, limit);
        self.select(is_small, small, large)
    }

    fn erf(&mut self, x: Value) -> Value {
        let z = self.binary(BinaryOp::Mul, x, x);
        let p = self.poly(z, &ERF);
        let small = self.fma(x, p, x);
        // From 4 on it is 1 in f32. The order of operands keeps NaN.
        let a = self.let_(Op::Unary(UnaryOp::Abs, x), DType::F32, x);
        let four = self.f(x, 4.0);
        let near = self.binary(BinaryOp::Min, four, a);
        let rest = self.poly(near, &LOG_ERFC);
        let rest = self.exp(rest);
        let large = self.signed_rest(x, rest);
        let one = self.f(x, 1.0);
        let is_small = self.compare(CompareOp::Lt, a, one);
        self.select(is_small, small, large)
    }

    /// `1 - rest` with the sign of `x`.
    fn signed_rest(&mut self, x: Value, rest: Value) -> Value {
        let (one, zero) = (self.f(x, 1.0), self.f(x, 0.0));
        let large = self.binary(BinaryOp::Sub, one, rest);
        let negative = self.compare(CompareOp::Lt, x, zero);
        let minus = self.let_(Op::Unary(UnaryOp::Neg, large), DType::F32, x);
        self.select(negative, minus, large)
    }

    /// `c[0] + c[1] x + c[2] x² + …`
    fn poly(&mut self, x: Value, c: &[f32]) -> Value {
        let mut terms = c.iter().rev();
        let mut sum = self.f(x, terms.next().copied().unwrap_or(0.0));
        for c in terms {
            let c = self.f(x, *c);
            sum = self.fma(sum, x, c);
        }
        sum
    }

    // ---- one operation each; the result has as many lanes as the last argument ----

    fn let_(&mut self, op: Op, elem: DType, like: Value) -> Value {
        let value = self.define(self.values[like.index()].with_elem(elem));
        self.out.push(Stmt::Let(value, op));
        value
    }

    fn define(&mut self, ty: ValueType) -> Value {
        self.values.push(ty);
        Value(self.values.len() as u32 - 1)
    }

    fn binary(&mut self, op: BinaryOp, a: Value, b: Value) -> Value {
        let elem = self.values[a.index()].elem;
        self.let_(Op::Binary(op, a, b), elem, a)
    }

    fn compare(&mut self, op: CompareOp, a: Value, b: Value) -> Value {
        self.let_(Op::Compare(op, a, b), DType::Bool, a)
    }

    fn select(&mut self, c: Value, a: Value, b: Value) -> Value {
        let elem = self.values[a.index()].elem;
        self.let_(Op::Select(c, a, b), elem, a)
    }

    fn fma(&mut self, a: Value, b: Value, c: Value) -> Value {
        self.let_(Op::Fma(a, b, c), DType::F32, a)
    }

    fn bitcast(&mut self, a: Value, elem: DType) -> Value {
        self.let_(Op::Bitcast(a), elem, a)
    }

    fn f(&mut self, like: Value, x: f32) -> Value {
        self.constant(Const::F32(x.to_bits()), like)
    }

    fn i(&mut self, like: Value, x: i32) -> Value {
        self.constant(Const::I32(x), like)
    }

    /// A constant in as many lanes as `like` has.
    fn constant(&mut self, c: Const, like: Value) -> Value {
        let lanes = self.values[like.index()].lanes;
        if let Some(value) = self.constants.get(&(c, lanes)) {
            return *value;
        }
        let (value, op) = if lanes == 1 {
            (self.define(ValueType::scalar(c.dtype())), Op::Const(c))
        } else {
            let one = self.constant_scalar(c);
            (self.define(ValueType::vector(c.dtype(), lanes)), Op::Splat(one))
        };
        self.top.push(Stmt::Let(value, op));
        self.constants.insert((c, lanes), value);
        value
    }

    fn constant_scalar(&mut self, c: Const) -> Value {
        if let Some(value) = self.constants.get(&(c, 1)) {
            return *value;
        }
        let value = self.define(ValueType::scalar(c.dtype()));
        self.top.push(Stmt::Let(value, Op::Const(c)));
        self.constants.insert((c, 1), value);
        value
    }
}
