//! What numbers of elements are multiples of, as far as a kernel's text tells.

use hadal_ir::kernel::*;
use std::collections::HashMap;

/// Of i64 values of a kernel what they are multiples of; 0 of zero.
pub(super) struct Multiples(HashMap<Value, u64>);

impl Multiples {
    /// Those of all values.
    pub fn of(kernel: &Kernel) -> Multiples {
        let mut all = Multiples(HashMap::new());
        all.block(&kernel.body);
        all
    }

    fn block(&mut self, block: &Block) {
        for stmt in &block.stmts {
            match stmt {
                Stmt::Let(value, op) => {
                    let multiple = self.of_op(op);
                    self.0.insert(*value, multiple);
                }
                Stmt::For(l) => {
                    let start = self.get(l.lo);
                    self.0.insert(l.var, gcd(start, l.step.unsigned_abs()));
                    self.block(&l.body);
                }
                Stmt::If(c) => {
                    self.block(&c.then);
                    self.block(&c.otherwise);
                }
                _ => {}
            }
        }
    }

    fn get(&self, value: Value) -> u64 {
        self.0.get(&value).copied().unwrap_or(1)
    }

    fn of_op(&self, op: &Op) -> u64 {
        match op {
            Op::Const(Const::I64(x)) => x.unsigned_abs(),
            Op::Binary(BinaryOp::Add | BinaryOp::Sub | BinaryOp::Min | BinaryOp::Max, a, b) | Op::Select(_, a, b) => {
                gcd(self.get(*a), self.get(*b))
            }
            // What wraps stays a multiple of a power of two only.
            Op::Binary(BinaryOp::Mul, a, b) => self.get(*a).checked_mul(self.get(*b)).unwrap_or(1),
            _ => 1,
        }
    }

    /// What the number of the first element of an access is a multiple of; 0 where it is the first of its buffer.
    pub fn flat(&self, kernel: &Kernel, place: &Place) -> u64 {
        let (_, _, shape) = kernel.buffer(place.buf);
        let (mut stride, mut flat) = (1u64, 0);
        for (index, extent) in place.index.iter().zip(shape).rev() {
            flat = gcd(flat, stride.checked_mul(self.get(*index)).unwrap_or(1));
            // Of an unknown size the stride is a multiple of what it was.
            let size = extent.as_const().map_or(1, |n| n.unsigned_abs());
            stride = stride.checked_mul(size).unwrap_or(1);
        }
        flat
    }
}

/// The greatest common divisor, of which 0 has all.
pub(super) fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
