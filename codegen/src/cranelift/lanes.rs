//! How values of the kernel IR lie in registers.
//!
//! | lanes of | vector register | scalar |
//! |---|---|---|
//! | f32 | F32X4 | F32 |
//! | i32 | I32X4 | I32 |
//! | bool | I32X4, all ones or zero | I8, 0 or 1 |
//! | i64, f64 | I64X2, F64X2 | I64, F64 |
//! | bf16, f16 | I16X8 | I16 |
//! | u8, i8, f8, f4 (a nibble a byte) | I8X16 | I8 |
//!
//! A vector of fewer lanes than a register has occupies the low ones; the rest hold anything.

use super::lower::Lower;
use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::types::*;
use cranelift_codegen::ir::{ConstantData, Endianness, InstBuilder, MemFlagsData, Type, Value as V};
use hadal_ir::kernel::{BinaryOp, CompareOp, ReduceOp, ValueType};
use hadal_types::DType;

/// The register type of vectors of `elem` and its lanes.
pub(super) fn register(elem: DType) -> (Type, u32) {
    match elem {
        DType::F32 => (F32X4, 4),
        DType::I32 | DType::Bool => (I32X4, 4),
        DType::I64 => (I64X2, 2),
        DType::F64 => (F64X2, 2),
        DType::BF16 | DType::F16 => (I16X8, 8),
        DType::U8 | DType::I8 | DType::F8E4M3 | DType::F8E8M0 | DType::F4E2M1 | DType::U4 | DType::I4 => (I8X16, 16),
    }
}

/// The type of a scalar of `elem`.
pub(super) fn scalar(elem: DType) -> Type {
    match elem {
        DType::F32 => F32,
        DType::I32 => I32,
        DType::I64 => I64,
        DType::F64 => F64,
        DType::BF16 | DType::F16 => I16,
        DType::Bool | DType::U8 | DType::I8 | DType::F8E4M3 | DType::F8E8M0 | DType::F4E2M1 | DType::U4 | DType::I4 => {
            I8
        }
    }
}

/// The types of the registers that hold a value.
pub(super) fn parts(ty: ValueType) -> Vec<Type> {
    if ty.lanes == 1 {
        return vec![scalar(ty.elem)];
    }
    let (register, lanes) = register(ty.elem);
    vec![register; ty.lanes.div_ceil(lanes) as usize]
}

impl Lower<'_, '_> {
    /// The same bits as another type.
    pub(super) fn bits(&mut self, v: V, ty: Type) -> V {
        if self.b.func.dfg.value_type(v) == ty {
            return v;
        }
        self.b.ins().bitcast(ty, MemFlagsData::new().with_endianness(Endianness::Little), v)
    }

    /// A vector constant from its 16 bytes.
    pub(super) fn vector_const(&mut self, ty: Type, bytes: [u8; 16]) -> V {
        let data = self.b.func.dfg.constants.insert(ConstantData::from(&bytes[..]));
        self.b.ins().vconst(ty, data)
    }

    /// Four equal 32-bit lanes.
    pub(super) fn splat32(&mut self, ty: Type, bits: u32) -> V {
        let mut bytes = [0; 16];
        bytes.chunks_exact_mut(4).for_each(|c| c.copy_from_slice(&bits.to_le_bytes()));
        self.vector_const(ty, bytes)
    }

    /// Bytes of two vectors in a new order, as a vector of type `ty`.
    pub(super) fn shuffle(&mut self, ty: Type, a: V, b: V, order: [u8; 16]) -> V {
        let (a, b) = (self.bits(a, I8X16), self.bits(b, I8X16));
        let order = self.b.func.dfg.immediates.push(ConstantData::from(&order[..]));
        let v = self.b.ins().shuffle(a, b, order);
        self.bits(v, ty)
    }

    /// A register with the scalar in its lowest lane.
    pub(super) fn low_lane(&mut self, elem: DType, v: V) -> V {
        let register = register(elem).0;
        let v = match elem {
            DType::Bool => {
                let wide = self.b.ins().uextend(I32, v);
                self.b.ins().ineg(wide)
            }
            DType::BF16 | DType::F16 => self.b.ins().uextend(I32, v),
            DType::U8 | DType::I8 | DType::F8E4M3 | DType::F8E8M0 | DType::F4E2M1 | DType::U4 | DType::I4 => {
                self.b.ins().uextend(I32, v)
            }
            DType::F32 | DType::I32 | DType::I64 | DType::F64 => v,
        };
        let vector = match self.b.func.dfg.value_type(v) {
            F32 => F32X4,
            I64 => I64X2,
            F64 => F64X2,
            _ => I32X4,
        };
        let v = self.b.ins().scalar_to_vector(vector, v);
        self.bits(v, register)
    }

    /// One lane as a scalar.
    pub(super) fn extract(&mut self, elem: DType, regs: &[V], lane: u32) -> V {
        let per = register(elem).1;
        let v = self.b.ins().extractlane(regs[(lane / per) as usize], (lane % per) as u8);
        match elem {
            DType::Bool => {
                let low = self.b.ins().ireduce(I8, v);
                self.b.ins().band_imm_u(low, 1)
            }
            _ => v,
        }
    }

    /// The registers with one lane replaced by a scalar.
    pub(super) fn insert(&mut self, elem: DType, regs: &mut [V], lane: u32, v: V) {
        let per = register(elem).1;
        let v = match elem {
            DType::Bool => {
                let wide = self.b.ins().uextend(I32, v);
                self.b.ins().ineg(wide)
            }
            _ => v,
        };
        let reg = &mut regs[(lane / per) as usize];
        *reg = self.b.ins().insertlane(*reg, v, (lane % per) as u8);
    }

    /// Registers of zeros.
    pub(super) fn zeros(&mut self, ty: ValueType) -> Vec<V> {
        parts(ty).into_iter().map(|t| self.zero(t)).collect()
    }

    fn zero(&mut self, ty: Type) -> V {
        match ty {
            F32 => self.b.ins().f32const(0.0),
            F64 => self.b.ins().f64const(0.0),
            t if t.is_vector() => self.vector_const(t, [0; 16]),
            t => self.b.ins().iconst(t, 0),
        }
    }

    /// The scalar in every lane.
    pub(super) fn splat(&mut self, ty: ValueType, v: V) -> Vec<V> {
        let (register, _) = register(ty.elem);
        let v = if ty.elem == DType::Bool {
            let wide = self.b.ins().uextend(I32, v);
            self.b.ins().ineg(wide)
        } else {
            v
        };
        let reg = self.b.ins().splat(register, v);
        vec![reg; parts(ty).len()]
    }

    /// Applies `f` to each lane as scalars, where there is no vector instruction.
    pub(super) fn by_lane(
        &mut self,
        from: ValueType,
        to: ValueType,
        operands: &[&[V]],
        f: &mut dyn FnMut(&mut Self, &[V]) -> V,
    ) -> Vec<V> {
        let mut out = self.zeros(to);
        for lane in 0..from.lanes {
            let xs: Vec<V> = operands.iter().map(|regs| self.extract(from.elem, regs, lane)).collect();
            let y = f(self, &xs);
            self.insert(to.elem, &mut out, lane, y);
        }
        out
    }

    /// One binary operation on one register or scalar of `elem`; shifts and integer divisions on vectors are not
    /// done here.
    pub(super) fn binary_reg(&mut self, op: BinaryOp, elem: DType, x: V, y: V) -> V {
        let float = elem == DType::F32;
        let i = self.b.ins();
        match op {
            BinaryOp::Add if float => i.fadd(x, y),
            BinaryOp::Sub if float => i.fsub(x, y),
            BinaryOp::Mul if float => i.fmul(x, y),
            BinaryOp::Div if float => i.fdiv(x, y),
            BinaryOp::Add => i.iadd(x, y),
            BinaryOp::Sub => i.isub(x, y),
            BinaryOp::Mul => i.imul(x, y),
            BinaryOp::And => i.band(x, y),
            BinaryOp::Or => i.bor(x, y),
            BinaryOp::Xor => i.bxor(x, y),
            BinaryOp::Min => self.choose(CompareOp::Lt, elem, x, y, x, y),
            // `y < x` rather than `x > y`: the form that is matched to one instruction.
            BinaryOp::Max => self.choose(CompareOp::Lt, elem, y, x, x, y),
            BinaryOp::Shl => i.ishl(x, y),
            BinaryOp::Shr => i.sshr(x, y),
            BinaryOp::Ushr => i.ushr(x, y),
            BinaryOp::Div => self.divide(x, y, false),
            BinaryOp::Rem => self.divide(x, y, true),
        }
    }

    /// Scalar integer division, where the smallest number by -1 wraps instead of faulting.
    fn divide(&mut self, x: V, y: V, remainder: bool) -> V {
        let minus_one = self.b.ins().icmp_imm_s(IntCC::Equal, y, -1);
        let ty = self.b.func.dfg.value_type(y);
        let one = self.b.ins().iconst(ty, 1);
        let safe = self.b.ins().select(minus_one, one, y);
        if remainder {
            return self.b.ins().srem(x, safe);
        }
        let quotient = self.b.ins().sdiv(x, safe);
        let negated = self.b.ins().ineg(x);
        self.b.ins().select(minus_one, negated, quotient)
    }

    /// `a op b ? yes : no` on one register or scalar.
    fn choose(&mut self, op: CompareOp, elem: DType, a: V, b: V, yes: V, no: V) -> V {
        let mask = self.compare_reg(op, elem, a, b);
        let ty = self.b.func.dfg.value_type(yes);
        if !ty.is_vector() {
            return self.b.ins().select(mask, yes, no);
        }
        let mask = self.bits(mask, ty);
        self.b.ins().bitselect(mask, yes, no)
    }

    /// A comparison of one register (lanes of ones or zeros, as wide as the operands') or scalar.
    pub(super) fn compare_reg(&mut self, op: CompareOp, elem: DType, x: V, y: V) -> V {
        if elem == DType::F32 {
            let cc = match op {
                CompareOp::Eq => FloatCC::Equal,
                CompareOp::Ne => FloatCC::NotEqual,
                CompareOp::Lt => FloatCC::LessThan,
                CompareOp::Le => FloatCC::LessThanOrEqual,
                CompareOp::Gt => FloatCC::GreaterThan,
                CompareOp::Ge => FloatCC::GreaterThanOrEqual,
            };
            return self.b.ins().fcmp(cc, x, y);
        }
        let cc = match op {
            CompareOp::Eq => IntCC::Equal,
            CompareOp::Ne => IntCC::NotEqual,
            CompareOp::Lt => IntCC::SignedLessThan,
            CompareOp::Le => IntCC::SignedLessThanOrEqual,
            CompareOp::Gt => IntCC::SignedGreaterThan,
            CompareOp::Ge => IntCC::SignedGreaterThanOrEqual,
        };
        self.b.ins().icmp(cc, x, y)
    }

    /// Masks of 32-bit lanes from masks of 64-bit lanes.
    pub(super) fn narrow_masks(&mut self, wide: &[V]) -> Vec<V> {
        // The even 32-bit units of both, in order.
        let order = [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27];
        wide.chunks(2).map(|c| self.shuffle(I32X4, c[0], c[c.len() - 1], order)).collect()
    }

    /// Masks as wide as the lanes of `elem` from masks of 32-bit lanes.
    pub(super) fn masks_for(&mut self, elem: DType, masks: &[V], registers: usize) -> Vec<V> {
        let ty = register(elem).0;
        let last = masks.len() - 1;
        let masks: Vec<V> = match register(elem).1 {
            4 => masks.to_vec(),
            2 => {
                let low = [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7];
                let halves = masks.iter().flat_map(|m| [(*m, low), (*m, low.map(|b| b + 8))]);
                halves.map(|(m, order)| self.shuffle(I64X2, m, m, order)).collect()
            }
            8 => (0..registers).map(|i| self.b.ins().snarrow(masks[2 * i], masks[last.min(2 * i + 1)])).collect(),
            _ => (0..registers)
                .map(|i| {
                    let at = |j: usize| masks[last.min(4 * i + j)];
                    let low = self.b.ins().snarrow(at(0), at(1));
                    let high = self.b.ins().snarrow(at(2), at(3));
                    self.b.ins().snarrow(low, high)
                })
                .collect(),
        };
        masks.into_iter().take(registers).map(|m| self.bits(m, ty)).collect()
    }

    /// Combines all lanes by halves into a scalar.
    pub(super) fn reduce(&mut self, op: ReduceOp, ty: ValueType, regs: &[V]) -> V {
        let (register, per) = register(ty.elem);
        let mut regs = regs.to_vec();
        while regs.len() > 1 {
            let upper = regs.split_off(regs.len() / 2);
            regs = regs.iter().zip(upper).map(|(x, y)| self.binary_reg(op.binary(), ty.elem, *x, y)).collect();
        }
        let mut lanes = ty.lanes.min(per) as u8;
        let mut v = regs[0];
        while lanes > 1 {
            lanes /= 2;
            let distance = lanes * (16 / per as u8);
            let order = std::array::from_fn(|i| (i as u8 + distance) % 16);
            let upper = self.shuffle(register, v, v, order);
            v = self.binary_reg(op.binary(), ty.elem, v, upper);
        }
        self.b.ins().extractlane(v, 0)
    }
}
