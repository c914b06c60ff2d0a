//! What numbers of elements are multiples of, and which they are where that is known, as far as a kernel's text tells.

use hadal_ir::kernel::*;
use hadal_types::DType;
use std::collections::HashMap;

/// Of i64 values of a kernel what they, or all of their lanes, are multiples of; 0 of zero.
pub(super) struct Multiples {
    of: HashMap<Value, u64>,
    /// Lanes that are constants.
    constants: HashMap<Value, Vec<i64>>,
}

impl Multiples {
    /// Those of all values.
    pub fn of(kernel: &Kernel) -> Multiples {
        let mut all = Multiples { of: HashMap::new(), constants: HashMap::new() };
        all.block(kernel, &kernel.body);
        all
    }

    fn block(&mut self, kernel: &Kernel, block: &Block) {
        for stmt in &block.stmts {
            match stmt {
                Stmt::Let(value, op) => {
                    let multiple = self.of_op(op);
                    self.of.insert(*value, multiple);
                    if kernel.ty(*value).elem == DType::I64
                        && let Some(lanes) = self.lanes_of(op, kernel.ty(*value).lanes as usize)
                    {
                        self.constants.insert(*value, lanes);
                    }
                }
                Stmt::For(l) => {
                    let start = self.get(l.lo);
                    self.of.insert(l.var, gcd(start, l.step.unsigned_abs()));
                    self.block(kernel, &l.body);
                }
                Stmt::If(c) => {
                    self.block(kernel, &c.then);
                    self.block(kernel, &c.otherwise);
                }
                _ => {}
            }
        }
    }

    /// The lanes of a value, where they are constants.
    pub fn constants(&self, value: Value) -> Option<&[i64]> {
        self.constants.get(&value).map(|lanes| &lanes[..])
    }

    fn lanes_of(&self, op: &Op, lanes: usize) -> Option<Vec<i64>> {
        Some(match op {
            Op::Const(Const::I64(x)) => vec![*x],
            Op::Iota => (0..lanes as i64).collect(),
            Op::Splat(a) => vec![self.constants(*a)?[0]; lanes],
            Op::Binary(op, a, b) => {
                let of = match op {
                    BinaryOp::Add => i64::wrapping_add,
                    BinaryOp::Mul => i64::wrapping_mul,
                    BinaryOp::And => |a, b| a & b,
                    BinaryOp::Ushr => |a: i64, b: i64| (a as u64).wrapping_shr(b as u32) as i64,
                    _ => return None,
                };
                self.constants(*a)?.iter().zip(self.constants(*b)?).map(|(a, b)| of(*a, *b)).collect()
            }
            _ => return None,
        })
    }

    fn get(&self, value: Value) -> u64 {
        self.of.get(&value).copied().unwrap_or(1)
    }

    fn of_op(&self, op: &Op) -> u64 {
        match op {
            Op::Const(Const::I64(x)) => x.unsigned_abs(),
            Op::Binary(BinaryOp::Add | BinaryOp::Sub | BinaryOp::Min | BinaryOp::Max, a, b) | Op::Select(_, a, b) => {
                gcd(self.get(*a), self.get(*b))
            }
            // What wraps stays a multiple of a power of two only.
            Op::Splat(a) => self.get(*a),
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
