//! Casts between formats, exact and rounded as the kernel IR says, without tables or calls.
//!
//! Small floats widen by moving their bits into place under f32's exponent and multiplying by the difference of the
//! biases, which is exact for subnormals too. They narrow by adding the rounding constant to the bits; results that
//! are subnormal come from adding a power of two whose last bit is the unit wanted. Scalars take the vector path in
//! the lowest lane.

use super::lanes::{register, scalar};
use super::lower::Lower;
use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::types::*;
use cranelift_codegen::ir::{InstBuilder, Type, Value as V};
use hadal_ir::kernel::ValueType;
use hadal_types::DType;

/// How an f32 becomes a small float.
struct Narrow {
    /// Mantissa bits lost.
    drop: u32,
    /// Difference of exponent biases.
    bias: u32,
    /// Bits of the smallest normal number.
    smallest_normal: u32,
    /// Bits of the power of two whose last place is the format's smallest step.
    magic: u32,
    /// Bits of the largest magnitude looked at: the largest finite number, or what rounds to infinity.
    largest: u32,
    /// Code of NaN.
    nan: u32,
    /// How far the sign moves down.
    sign: u32,
}

const F16: Narrow = Narrow {
    drop: 13,
    bias: 112,
    smallest_normal: 0x3880_0000,
    magic: 0x3f00_0000,
    largest: 0x4780_0000,
    nan: 0x7e00,
    sign: 16,
};
const E4M3: Narrow = Narrow {
    drop: 20,
    bias: 120,
    smallest_normal: 0x3c80_0000,
    magic: 0x4680_0000,
    largest: 0x43e0_0000,
    nan: 0x7f,
    sign: 24,
};
const E2M1: Narrow = Narrow {
    drop: 22,
    bias: 126,
    smallest_normal: 0x3f80_0000,
    magic: 0x4a80_0000,
    largest: 0x40c0_0000,
    nan: 7,
    sign: 28,
};

impl Lower<'_, '_> {
    /// A cast that the verifier allows.
    pub(super) fn cast(&mut self, from: ValueType, to: DType, regs: &[V]) -> Vec<V> {
        if from.elem == to {
            return regs.to_vec();
        }
        if from.lanes == 1 {
            return vec![self.cast_scalar(from.elem, to, regs[0])];
        }
        let result = from.with_elem(to);
        match (from.elem, to) {
            (elem, DType::F32) => self.widen_to_f32(elem, from.lanes, regs),
            (DType::F32, _) => self.narrow_from_f32(to, from.lanes, regs),
            (DType::Bool, DType::I32) => {
                let one = self.splat32(I32X4, 1);
                regs.iter().map(|m| self.b.ins().band(*m, one)).collect()
            }
            (DType::I32, DType::Bool) => {
                let zero = self.splat32(I32X4, 0);
                regs.iter().map(|x| self.b.ins().icmp(IntCC::NotEqual, *x, zero)).collect()
            }
            (DType::U8 | DType::I8, DType::I32) => self.widen_bytes(from.elem == DType::I8, from.lanes, regs),
            (DType::I32, DType::I64) => {
                let halves: Vec<V> =
                    regs.iter().flat_map(|x| [self.b.ins().swiden_low(*x), self.b.ins().swiden_high(*x)]).collect();
                halves.into_iter().take(from.lanes.div_ceil(2) as usize).collect()
            }
            (elem, _) => self.by_lane(from, result, &[regs], &mut |this, x| this.cast_scalar(elem, to, x[0])),
        }
    }

    fn cast_scalar(&mut self, from: DType, to: DType, x: V) -> V {
        let whole = |d: DType| d.is_int() || d == DType::Bool;
        let int = scalar(to);
        match (from, to) {
            (DType::F32, DType::F64) => self.b.ins().fpromote(F64, x),
            (DType::F64, DType::F32) => self.b.ins().fdemote(F32, x),
            (DType::I32 | DType::I64, DType::F32) => self.b.ins().fcvt_from_sint(F32, x),
            (DType::F32, DType::I32 | DType::I64) => self.b.ins().fcvt_to_sint_sat(int, x),
            (DType::F32, DType::Bool) => {
                let zero = self.b.ins().f32const(0.0);
                self.b.ins().fcmp(FloatCC::NotEqual, x, zero)
            }
            (_, DType::Bool) => self.b.ins().icmp_imm_s(IntCC::NotEqual, x, 0),
            (DType::I4, _) => {
                let byte = self.sign_nibble(x);
                self.cast_scalar(DType::I8, to, byte)
            }
            (DType::U4, _) => self.cast_scalar(DType::U8, to, x),
            (DType::Bool | DType::U8, DType::F32) => {
                let wide = self.b.ins().uextend(I32, x);
                self.b.ins().fcvt_from_sint(F32, wide)
            }
            (DType::I8, DType::F32) => {
                let wide = self.b.ins().sextend(I32, x);
                self.b.ins().fcvt_from_sint(F32, wide)
            }
            (DType::BF16, DType::F32) => {
                let wide = self.b.ins().uextend(I32, x);
                let bits = self.b.ins().ishl_imm_u(wide, 16);
                self.bits(bits, F32)
            }
            (a, b) if whole(a) && whole(b) => {
                let have = scalar(from);
                match (have.bits(), int.bits()) {
                    (h, w) if h > w => self.b.ins().ireduce(int, x),
                    (h, w) if h == w => x,
                    _ if matches!(from, DType::Bool | DType::U8) => self.b.ins().uextend(int, x),
                    _ => self.b.ins().sextend(int, x),
                }
            }
            (elem, _) => {
                let low = self.low_lane(elem, x);
                let out = self.cast(ValueType::vector(elem, 2), to, &[low]);
                self.extract(to, &out, 0)
            }
        }
    }

    /// Interleaves with zeros below: each unit of `bytes` bytes moves to the top of a unit twice as wide.
    fn raise(&mut self, ty: Type, bytes: u8, high: bool, x: V) -> V {
        let zero = self.vector_const(I8X16, [0; 16]);
        let start = if high { 8 } else { 0 };
        let order = std::array::from_fn(|i| {
            let (unit, byte) = (i as u8 / bytes, i as u8 % bytes);
            start + unit / 2 * bytes + byte + 16 * (unit % 2)
        });
        self.shuffle(ty, zero, x, order)
    }

    /// 16-bit lanes moved to the top of 32-bit lanes.
    fn raise_halves(&mut self, lanes: u32, regs: &[V]) -> Vec<V> {
        let all: Vec<(V, bool)> = regs.iter().flat_map(|x| [(*x, false), (*x, true)]).collect();
        let needed = lanes.div_ceil(4) as usize;
        all.into_iter().take(needed).map(|(x, high)| self.raise(I32X4, 2, high, x)).collect()
    }

    /// 8-bit lanes moved to the top of 32-bit lanes.
    fn raise_bytes(&mut self, lanes: u32, regs: &[V]) -> Vec<V> {
        let all: Vec<(V, bool)> = regs.iter().flat_map(|x| [(*x, false), (*x, true)]).collect();
        let needed = lanes.div_ceil(8) as usize;
        let halves: Vec<V> = all.into_iter().take(needed).map(|(x, high)| self.raise(I16X8, 1, high, x)).collect();
        self.raise_halves(lanes, &halves)
    }

    fn widen_bytes(&mut self, signed: bool, lanes: u32, regs: &[V]) -> Vec<V> {
        let top = self.raise_bytes(lanes, regs);
        let shift = |this: &mut Self, x: V| match signed {
            true => this.b.ins().sshr_imm_u(x, 24),
            false => this.b.ins().ushr_imm_u(x, 24),
        };
        top.into_iter().map(|x| shift(self, x)).collect()
    }

    pub(super) fn widen_to_f32(&mut self, elem: DType, lanes: u32, regs: &[V]) -> Vec<V> {
        match elem {
            DType::BF16 => {
                let top = self.raise_halves(lanes, regs);
                top.into_iter().map(|x| self.bits(x, F32X4)).collect()
            }
            DType::F16 => {
                let top = self.raise_halves(lanes, regs);
                // Infinities and NaNs come out as 65536 and more: give them the largest exponent.
                top.into_iter().map(|x| self.widen(x, 3, 0x8fff_e000, 112, Some((65536.0, 0x7f80_0000)))).collect()
            }
            DType::F8E4M3 => {
                let halves = self.e4m3_halves(lanes, regs);
                let top = self.raise_halves(lanes, &halves);
                let scale = self.splat32(F32X4, (120 + 127) << 23);
                let small: Vec<V> = top.into_iter().map(|x| self.bits(x, F32X4)).collect();
                small.into_iter().map(|x| self.b.ins().fmul(x, scale)).collect()
            }
            DType::F4E2M1 => {
                let top = self.raise_bytes(lanes, regs);
                let moved: Vec<V> = top.into_iter().map(|x| self.b.ins().ishl_imm_u(x, 4)).collect();
                moved.into_iter().map(|x| self.widen(x, 6, 0x81c0_0000, 126, None)).collect()
            }
            DType::F8E8M0 => {
                let top = self.raise_bytes(lanes, regs);
                top.into_iter().map(|x| self.widen_e8m0(x)).collect()
            }
            DType::U4 => self.widen_to_f32(DType::U8, lanes, regs),
            DType::I4 => {
                let bytes: Vec<V> = regs.iter().map(|x| self.sign_nibbles(*x)).collect();
                self.widen_to_f32(DType::I8, lanes, &bytes)
            }
            DType::U8 | DType::I8 => {
                let wide = self.widen_bytes(elem == DType::I8, lanes, regs);
                wide.into_iter().map(|x| self.b.ins().fcvt_from_sint(F32X4, x)).collect()
            }
            DType::I32 => regs.iter().map(|x| self.b.ins().fcvt_from_sint(F32X4, *x)).collect(),
            DType::Bool => {
                let one = self.splat32(I32X4, 1f32.to_bits());
                let ones: Vec<V> = regs.iter().map(|m| self.b.ins().band(*m, one)).collect();
                ones.into_iter().map(|x| self.bits(x, F32X4)).collect()
            }
            DType::I64 | DType::F64 => {
                let (from, to) = (ValueType::vector(elem, lanes), ValueType::vector(DType::F32, lanes));
                self.by_lane(from, to, &[regs], &mut |this, x| this.cast_scalar(elem, DType::F32, x[0]))
            }
            DType::F32 => regs.to_vec(),
        }
    }

    /// Codes in two's complement of four bits, as bytes: with their sign turned over, less eight.
    fn sign_nibbles(&mut self, codes: V) -> V {
        let eight = self.vector_const(I8X16, [8; 16]);
        let turned = self.b.ins().bxor(codes, eight);
        self.b.ins().isub(turned, eight)
    }

    fn sign_nibble(&mut self, code: V) -> V {
        let turned = self.b.ins().bxor_imm_u(code, 8);
        self.b.ins().iadd_imm_s(turned, -8)
    }

    /// The upper halves of f32 numbers that are the values divided by 2^120, or NaN. In 16-bit lanes, so that it
    /// takes half the instructions.
    fn e4m3_halves(&mut self, lanes: u32, regs: &[V]) -> Vec<V> {
        let all: Vec<(V, bool)> = regs.iter().flat_map(|x| [(*x, false), (*x, true)]).collect();
        let needed = lanes.div_ceil(8) as usize;
        let half = |this: &mut Self, (x, high)| {
            let top = this.raise(I16X8, 1, high, x);
            let moved = this.b.ins().sshr_imm_u(top, 4);
            let keep = this.vector_const(I16X8, std::array::from_fn(|i| if i % 2 == 0 { 0xf0 } else { 0x87 }));
            let value = this.b.ins().band(moved, keep);
            // The sign falls out; what is left of a NaN is all ones.
            let magnitude = this.b.ins().iadd(top, top);
            let largest = this.vector_const(I16X8, std::array::from_fn(|i| if i % 2 == 0 { 0 } else { 0xfe }));
            let nan = this.b.ins().icmp(IntCC::Equal, magnitude, largest);
            this.b.ins().bor(value, nan)
        };
        all.into_iter().take(needed).map(|x| half(self, x)).collect()
    }

    /// The sign and magnitude at the top of each lane, shifted under f32's exponent and scaled by 2^bias. Where the
    /// magnitude reaches `special.0` the bits `special.1` are set.
    fn widen(&mut self, top: V, shift: i64, keep: u32, bias: u32, special: Option<(f32, u32)>) -> V {
        let moved = self.b.ins().sshr_imm_u(top, shift);
        let keep = self.splat32(I32X4, keep);
        let moved = self.b.ins().band(moved, keep);
        let moved = self.bits(moved, F32X4);
        let scale = self.splat32(F32X4, (bias + 127) << 23);
        let value = self.b.ins().fmul(moved, scale);
        let Some((limit, set)) = special else { return value };
        let magnitude = self.b.ins().fabs(value);
        let limit = self.splat32(F32X4, limit.to_bits());
        let mask = self.b.ins().fcmp(FloatCC::GreaterThanOrEqual, magnitude, limit);
        let set = self.splat32(I32X4, set);
        let set = self.b.ins().band(mask, set);
        let bits = self.bits(value, I32X4);
        let bits = self.b.ins().bor(bits, set);
        self.bits(bits, F32X4)
    }

    fn widen_e8m0(&mut self, top: V) -> V {
        let value = self.b.ins().ushr_imm_u(top, 1);
        let (zero, nan) = (self.splat32(I32X4, 0), self.splat32(I32X4, 0x7f80_0000));
        let (subnormal, quiet) = (self.splat32(I32X4, 0x0040_0000), self.splat32(I32X4, 0x7fc0_0000));
        let is_zero = self.b.ins().icmp(IntCC::Equal, value, zero);
        let is_nan = self.b.ins().icmp(IntCC::Equal, value, nan);
        let value = self.b.ins().bitselect(is_zero, subnormal, value);
        let value = self.b.ins().bitselect(is_nan, quiet, value);
        self.bits(value, F32X4)
    }

    fn narrow_from_f32(&mut self, to: DType, lanes: u32, regs: &[V]) -> Vec<V> {
        match to {
            DType::BF16 => {
                let wide: Vec<V> = regs.iter().map(|x| self.narrow_bf16(*x)).collect();
                self.pack_halves(&wide)
            }
            DType::F16 => {
                let wide: Vec<V> = regs.iter().map(|x| self.narrow(&F16, *x)).collect();
                self.pack_halves(&wide)
            }
            DType::F8E4M3 | DType::F4E2M1 => {
                let format = if to == DType::F8E4M3 { &E4M3 } else { &E2M1 };
                let wide: Vec<V> = regs.iter().map(|x| self.narrow(format, *x)).collect();
                self.pack_bytes(&wide)
            }
            DType::F8E8M0 => {
                let wide: Vec<V> = regs.iter().map(|x| self.narrow_e8m0(*x)).collect();
                self.pack_bytes(&wide)
            }
            DType::I32 => regs.iter().map(|x| self.b.ins().fcvt_to_sint_sat(I32X4, *x)).collect(),
            DType::U8 | DType::I8 => {
                // Each narrowing saturates, and so does their sequence.
                let ints: Vec<V> = regs.iter().map(|x| self.b.ins().fcvt_to_sint_sat(I32X4, *x)).collect();
                let halves = self.pack(&ints, |this, a, b| this.b.ins().snarrow(a, b));
                self.pack(&halves, |this, a, b| match to {
                    DType::U8 => this.b.ins().unarrow(a, b),
                    _ => this.b.ins().snarrow(a, b),
                })
            }
            DType::Bool => {
                let zero = self.splat32(F32X4, 0);
                regs.iter().map(|x| self.b.ins().fcmp(FloatCC::NotEqual, *x, zero)).collect()
            }
            DType::I64 | DType::F64 => {
                let (from, result) = (ValueType::vector(DType::F32, lanes), ValueType::vector(to, lanes));
                self.by_lane(from, result, &[regs], &mut |this, x| this.cast_scalar(DType::F32, to, x[0]))
            }
            DType::U4 | DType::I4 => unreachable!("nothing is cast to them"),
            DType::F32 => regs.to_vec(),
        }
    }

    fn pack(&mut self, regs: &[V], f: impl Fn(&mut Self, V, V) -> V) -> Vec<V> {
        regs.chunks(2).map(|c| f(self, c[0], c[c.len() - 1])).collect()
    }

    /// Codes of at most 16 bits in 32-bit lanes, packed.
    fn pack_halves(&mut self, wide: &[V]) -> Vec<V> {
        self.pack(wide, |this, a, b| this.b.ins().unarrow(a, b))
    }

    /// Codes of at most 8 bits in 32-bit lanes, packed.
    pub(super) fn pack_bytes(&mut self, wide: &[V]) -> Vec<V> {
        let halves = self.pack_halves(wide);
        self.pack(&halves, |this, a, b| this.b.ins().unarrow(a, b))
    }

    /// `bits` plus what rounds them to nearest even when the lowest `drop` bits are cut off.
    fn round_bits(&mut self, bits: V, drop: u32) -> V {
        let odd = self.b.ins().ushr_imm_u(bits, drop as i64);
        let one = self.splat32(I32X4, 1);
        let odd = self.b.ins().band(odd, one);
        let half = self.splat32(I32X4, (1 << (drop - 1)) - 1);
        let sum = self.b.ins().iadd(bits, odd);
        self.b.ins().iadd(sum, half)
    }

    fn narrow_bf16(&mut self, x: V) -> V {
        let bits = self.bits(x, I32X4);
        let rounded = self.round_bits(bits, 16);
        let quiet = self.splat32(I32X4, 0x0040_0000);
        let nan = self.b.ins().bor(bits, quiet);
        let is_nan = self.b.ins().fcmp(FloatCC::Unordered, x, x);
        let bits = self.b.ins().bitselect(is_nan, nan, rounded);
        self.b.ins().ushr_imm_u(bits, 16)
    }

    /// The codes of `format` in 32-bit lanes.
    fn narrow(&mut self, format: &Narrow, x: V) -> V {
        let bits = self.bits(x, I32X4);
        let magnitude_mask = self.splat32(I32X4, 0x7fff_ffff);
        let magnitude = self.b.ins().band(bits, magnitude_mask);
        let largest = self.splat32(I32X4, format.largest);
        let clamped = self.b.ins().smin(magnitude, largest);
        let rebased = {
            let bias = self.splat32(I32X4, format.bias << 23);
            let rounded = self.round_bits(clamped, format.drop);
            let rebased = self.b.ins().isub(rounded, bias);
            self.b.ins().ushr_imm_u(rebased, format.drop as i64)
        };
        let subnormal = {
            let magic = self.splat32(F32X4, format.magic);
            let value = self.bits(clamped, F32X4);
            let sum = self.b.ins().fadd(value, magic);
            let (sum, magic) = (self.bits(sum, I32X4), self.bits(magic, I32X4));
            self.b.ins().isub(sum, magic)
        };
        let smallest = self.splat32(I32X4, format.smallest_normal);
        let is_small = self.b.ins().icmp(IntCC::SignedLessThan, clamped, smallest);
        let code = self.b.ins().bitselect(is_small, subnormal, rebased);
        let nan = self.splat32(I32X4, format.nan);
        let is_nan = self.b.ins().fcmp(FloatCC::Unordered, x, x);
        let code = self.b.ins().bitselect(is_nan, nan, code);
        let sign = self.b.ins().ushr_imm_u(bits, format.sign as i64);
        let sign_mask = self.splat32(I32X4, 1 << (31 - format.sign));
        let sign = self.b.ins().band(sign, sign_mask);
        self.b.ins().bor(code, sign)
    }

    /// The nearest power of two's exponent byte; 255 for NaN and negative numbers.
    fn narrow_e8m0(&mut self, x: V) -> V {
        let bits = self.bits(x, I32X4);
        let rounded = self.round_bits(bits, 23);
        let normal = self.b.ins().ushr_imm_u(rounded, 23);
        let top = self.splat32(I32X4, 254);
        let normal = self.b.ins().smin(normal, top);
        // Below 2^-126 only 2^-127 is left, and their middle is 0x600000.
        let middle = self.splat32(I32X4, 0x0060_0000);
        let above = self.b.ins().icmp(IntCC::SignedGreaterThan, bits, middle);
        let small = self.b.ins().ushr_imm_u(above, 31);
        let smallest = self.splat32(I32X4, 0x0080_0000);
        let is_small = self.b.ins().icmp(IntCC::SignedLessThan, bits, smallest);
        let code = self.b.ins().bitselect(is_small, small, normal);
        let zero = self.splat32(F32X4, 0);
        let is_bad = self.b.ins().fcmp(FloatCC::UnorderedOrLessThan, x, zero);
        let nan = self.splat32(I32X4, 255);
        let code = self.b.ins().bitselect(is_bad, nan, code);
        // Minus zero is zero.
        let is_zero = self.b.ins().fcmp(FloatCC::Equal, x, zero);
        let nothing = self.splat32(I32X4, 0);
        let code = self.b.ins().bitselect(is_zero, nothing, code);
        debug_assert_eq!(register(DType::F8E8M0).1, 16);
        code
    }
}
