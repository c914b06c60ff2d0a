//! Elementwise functions as operations on elements.

use super::nodes::{Id, Nodes};
use hadal_ir::kernel::{BinaryOp, CompareOp, UnaryOp};
use hadal_ir::ops::map::MapFn;
use hadal_types::DType;

impl Nodes<'_> {
    /// `f` of elements.
    pub(super) fn map(&mut self, f: MapFn, x: &[Id]) -> Id {
        let ty = self.ty(x[0]);
        let int = ty == DType::I64;
        match f {
            MapFn::Neg => self.unary(UnaryOp::Neg, x[0]),
            MapFn::Abs => self.unary(UnaryOp::Abs, x[0]),
            MapFn::Exp => self.unary(UnaryOp::Exp, x[0]),
            MapFn::Log => self.unary(UnaryOp::Log, x[0]),
            MapFn::Sqrt => self.unary(UnaryOp::Sqrt, x[0]),
            MapFn::Sin => self.unary(UnaryOp::Sin, x[0]),
            MapFn::Cos => self.unary(UnaryOp::Cos, x[0]),
            MapFn::Tanh => self.unary(UnaryOp::Tanh, x[0]),
            MapFn::Erf => self.unary(UnaryOp::Erf, x[0]),
            MapFn::Pow2Ceil => self.unary(UnaryOp::Pow2Ceil, x[0]),
            MapFn::Log1p => {
                // ln u · x / (u - 1) with u the rounded 1 + x: the quotient corrects the rounding.
                let one = self.number(1.0, ty);
                let u = self.binary(BinaryOp::Add, one, x[0]);
                let rest = self.binary(BinaryOp::Sub, u, one);
                let log = self.unary(UnaryOp::Log, u);
                let ratio = self.binary(BinaryOp::Div, x[0], rest);
                let corrected = self.binary(BinaryOp::Mul, log, ratio);
                let same = self.compare(CompareOp::Eq, u, one);
                // Infinity over itself is not a number.
                let large = self.number(f64::from(f32::MAX), ty);
                let huge = self.compare(CompareOp::Lt, large, u);
                let y = self.select(huge, log, corrected);
                self.select(same, x[0], y)
            }
            MapFn::Floor => self.unary(UnaryOp::Floor, x[0]),
            MapFn::Not => self.unary(UnaryOp::Not, x[0]),
            MapFn::Rsqrt => {
                let root = self.unary(UnaryOp::Sqrt, x[0]);
                let one = self.number(1.0, ty);
                self.binary(BinaryOp::Div, one, root)
            }
            MapFn::Sigmoid => {
                let minus = self.unary(UnaryOp::Neg, x[0]);
                let e = self.unary(UnaryOp::Exp, minus);
                let one = self.number(1.0, ty);
                let sum = self.binary(BinaryOp::Add, one, e);
                self.binary(BinaryOp::Div, one, sum)
            }
            MapFn::Add => self.binary(BinaryOp::Add, x[0], x[1]),
            MapFn::Sub => self.binary(BinaryOp::Sub, x[0], x[1]),
            MapFn::Mul => self.binary(BinaryOp::Mul, x[0], x[1]),
            MapFn::Div if int => {
                // By zero gives zero; by -1 is a negation, which cannot overflow into a trap.
                let [zero, one, minus] = [0.0, 1.0, -1.0].map(|n| self.number(n, ty));
                let by_zero = self.compare(CompareOp::Eq, x[1], zero);
                let by_minus = self.compare(CompareOp::Eq, x[1], minus);
                let odd = self.binary(BinaryOp::Or, by_zero, by_minus);
                let by = self.select(odd, one, x[1]);
                let quotient = self.binary(BinaryOp::Div, x[0], by);
                let negated = self.unary(UnaryOp::Neg, x[0]);
                let quotient = self.select(by_minus, negated, quotient);
                self.select(by_zero, zero, quotient)
            }
            MapFn::Div => self.binary(BinaryOp::Div, x[0], x[1]),
            MapFn::Max => self.binary(BinaryOp::Max, x[0], x[1]),
            MapFn::Min => self.binary(BinaryOp::Min, x[0], x[1]),
            MapFn::Lt => self.compare(CompareOp::Lt, x[0], x[1]),
            MapFn::Le => self.compare(CompareOp::Le, x[0], x[1]),
            MapFn::Eq => self.compare(CompareOp::Eq, x[0], x[1]),
            MapFn::And => self.binary(BinaryOp::And, x[0], x[1]),
            MapFn::Or => self.binary(BinaryOp::Or, x[0], x[1]),
            MapFn::Xor => self.binary(BinaryOp::Xor, x[0], x[1]),
            MapFn::Rem => {
                // By zero gives zero; by -1 too, and is not tried, as it may overflow into a trap.
                let [zero, one, minus] = [0.0, 1.0, -1.0].map(|n| self.number(n, ty));
                let by_zero = self.compare(CompareOp::Eq, x[1], zero);
                let by_minus = self.compare(CompareOp::Eq, x[1], minus);
                let odd = self.binary(BinaryOp::Or, by_zero, by_minus);
                let by = self.select(odd, one, x[1]);
                self.binary(BinaryOp::Rem, x[0], by)
            }
            MapFn::Select => self.select(x[0], x[1], x[2]),
        }
    }
}
