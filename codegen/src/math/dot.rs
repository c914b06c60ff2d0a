//! Dot products of neighbouring lanes, for processors without an instruction: right, not fast. Generators take other
//! forms for them.
//!
//! A group of lanes is read as one lane of 32 bits, out of which each of them comes by a shift.

use super::Expander;
use hadal_ir::kernel::*;
use hadal_types::DType;

/// 2^64: what lifts a sum near the smallest normal number to where nothing is subnormal.
const LIFT: f32 = 18_446_744_073_709_551_616.0;

impl Expander {
    /// The last statement defines the result.
    pub(super) fn dot(&mut self, a: Value, b: Value, sum: Value) -> Value {
        let elems = [a, b].map(|v| self.values[v.index()].elem);
        let groups = [a, b].map(|v| self.let_(Op::Bitcast(v), DType::I32, sum));
        if elems[1] == DType::BF16 {
            let mut sum = self.flushed(sum);
            for odd in [true, false] {
                let [x, y] = groups.map(|g| self.half(g, odd));
                sum = self.dot_step(x, y, sum);
            }
            return sum;
        }
        let mut sum = sum;
        for i in (0..4).rev() {
            let [x, y] = std::array::from_fn(|o| self.byte(groups[o], i, elems[o] == DType::I8));
            let product = self.binary(BinaryOp::Mul, x, y);
            sum = self.binary(BinaryOp::Add, sum, product);
        }
        sum
    }

    /// Byte `i` of each lane.
    fn byte(&mut self, group: Value, i: i32, signed: bool) -> Value {
        let (up, down) = (self.i(group, 24 - 8 * i), self.i(group, 24));
        let top = self.binary(BinaryOp::Shl, group, up);
        self.binary(if signed { BinaryOp::Shr } else { BinaryOp::Ushr }, top, down)
    }

    /// The upper or lower half of each lane, a bf16, as f32; zero where it is subnormal.
    fn half(&mut self, group: Value, odd: bool) -> Value {
        let bits = if odd {
            let upper = self.i(group, 0xffff_0000u32 as i32);
            self.binary(BinaryOp::And, group, upper)
        } else {
            let sixteen = self.i(group, 16);
            self.binary(BinaryOp::Shl, group, sixteen)
        };
        let x = self.bitcast(bits, DType::F32);
        self.flushed(x)
    }

    /// Zero of the same sign where the magnitude is below the smallest normal number.
    fn flushed(&mut self, x: Value) -> Value {
        let smallest = self.f(x, f32::MIN_POSITIVE);
        let small = self.is_below(x, smallest);
        self.zero_where(small, x)
    }

    fn magnitude(&mut self, x: Value) -> Value {
        self.let_(Op::Unary(UnaryOp::Abs, x), DType::F32, x)
    }

    fn is_below(&mut self, x: Value, limit: Value) -> Value {
        let magnitude = self.magnitude(x);
        self.compare(CompareOp::Lt, magnitude, limit)
    }

    /// Zero of the same sign where `mask`, `x` elsewhere.
    fn zero_where(&mut self, mask: Value, x: Value) -> Value {
        let (bits, sign) = (self.bitcast(x, DType::I32), self.i(x, i32::MIN));
        let zero = self.binary(BinaryOp::And, bits, sign);
        let zero = self.bitcast(zero, DType::F32);
        self.select(mask, zero, x)
    }

    /// `x · y + sum`, rounded once; a result that is below the smallest normal number, seen as if exponents had no
    /// limit, is zero.
    fn dot_step(&mut self, x: Value, y: Value, sum: Value) -> Value {
        let result = self.fma(x, y, sum);
        // The smaller factor and the sum lifted: nothing is subnormal where the result is near the limit.
        let (lift, limit) = (self.f(x, LIFT), self.f(x, LIFT * f32::MIN_POSITIVE));
        let y_magnitude = self.magnitude(y);
        let is_smaller = self.is_below(x, y_magnitude);
        let (small, large) = (self.select(is_smaller, x, y), self.select(is_smaller, y, x));
        let (small, lifted) = (self.binary(BinaryOp::Mul, small, lift), self.binary(BinaryOp::Mul, sum, lift));
        let lifted = self.fma(small, large, lifted);
        let was_small = self.is_below(lifted, limit);
        let smallest = self.f(x, f32::MIN_POSITIVE);
        let magnitude = self.magnitude(result);
        let is_at_limit = self.compare(CompareOp::Eq, magnitude, smallest);
        let rounded_up = self.binary(BinaryOp::And, was_small, is_at_limit);
        let is_small = self.compare(CompareOp::Lt, magnitude, smallest);
        let vanishes = self.binary(BinaryOp::Or, rounded_up, is_small);
        self.zero_where(vanishes, result)
    }
}
