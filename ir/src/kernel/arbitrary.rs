//! Kernels made of bytes, for property tests and fuzzing: any bytes give a well-formed kernel that runs without fault
//! on the buffers of [`arguments`], so code generators can be compared with the interpreter on it.

use super::interpret::Buffer;
use super::*;

/// Rows of the outputs, which is what the grid runs over when `T` is this.
pub const ROWS: i64 = 3;
const WIDTH: i64 = 64;
const INPUTS: [DType; 8] =
    [DType::F32, DType::I32, DType::I64, DType::BF16, DType::F16, DType::F8E4M3, DType::U8, DType::F4E2M1];
const OUTPUTS: [DType; 5] = [DType::F32, DType::I32, DType::I64, DType::BF16, DType::F16];

/// The kernel that `bytes` describe.
pub fn kernel(bytes: &[u8]) -> Kernel {
    let mut b = Builder::new("arbitrary");
    let inputs = INPUTS.map(|d| b.param(format!("in_{d}"), d, [WIDTH], Access::Read));
    let rows = Dim::from(Sym::T);
    let outputs = OUTPUTS.map(|d| b.param(format!("out_{d}"), d, [rows.clone(), Dim::from(WIDTH)], Access::ReadWrite));
    let row = b.grid([rows, Dim::from(1)])[0];
    let scratch = b.alloc("scratch", DType::F32, [Dim::from(Sym::T) + WIDTH]);
    let zero = b.const_f32(0.0);
    let start = b.const_i64(0);
    let zeros = b.splat(zero, WIDTH as u32);
    b.store(scratch, &[start], zeros);
    let mut g = Generator { bytes, at: 0, inputs, outputs, scratch, row, counters: Vec::new() };
    let mut pool = vec![zero, start, row];
    g.block(&mut b, &mut pool, 0);
    b.finish()
}

/// Buffers for a kernel of [`kernel`], with finite numbers that depend on `seed`; `T` is [`ROWS`].
pub fn arguments(seed: u64) -> Vec<Buffer> {
    let mut state = seed | 1;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut element = |d: DType| -> Vec<u8> {
        match d {
            DType::F32 => ((random() % 4001) as f32 / 100.0 - 20.0).to_le_bytes().to_vec(),
            DType::I32 => (random() as i32 >> (random() % 32)).to_le_bytes().to_vec(),
            DType::BF16 => ((random() % 4) as u16 * 0x4000 + 0x1f00 + (random() % 0x200) as u16).to_le_bytes().to_vec(),
            DType::F16 => ((random() % 2) as u16 * 0x8000 + (random() % 0x5000) as u16).to_le_bytes().to_vec(),
            d => (random() >> (random() % 40)).to_le_bytes()[..d.bits().div_ceil(8) as usize].to_vec(),
        }
    };
    let mut fill = |d: DType, n: i64| {
        let n = if d.bits() == 4 { n / 2 } else { n };
        Buffer::from_bytes(d, (0..n).flat_map(|_| element(d)).collect())
    };
    let inputs: Vec<Buffer> = INPUTS.iter().map(|d| fill(*d, WIDTH)).collect();
    inputs.into_iter().chain(OUTPUTS.iter().map(|d| fill(*d, WIDTH * ROWS)).collect::<Vec<_>>()).collect()
}

struct Generator<'a> {
    bytes: &'a [u8],
    at: usize,
    inputs: [Buf; INPUTS.len()],
    outputs: [Buf; OUTPUTS.len()],
    scratch: Buf,
    row: Value,
    /// Counters of the open loops; all stay below 16.
    counters: Vec<Value>,
}

impl Generator<'_> {
    /// A number below `n`; 0 when the bytes are used up.
    fn pick(&mut self, n: usize) -> usize {
        let byte = self.bytes.get(self.at).copied().unwrap_or(0);
        self.at += 1;
        byte as usize % n
    }

    fn done(&self) -> bool {
        self.at >= self.bytes.len()
    }

    fn lanes(&mut self) -> u32 {
        [1, 1, 2, 4, 8, 16][self.pick(6)]
    }

    /// An index at which `lanes` elements of a row fit.
    fn index(&mut self, b: &mut Builder, lanes: u32) -> Value {
        let base = self.pick(16) as i64 * 2;
        let base = b.const_i64(base);
        match self.pick(self.counters.len() + 1) {
            0 => base,
            n => {
                // Twice a counter, so that packed elements begin at whole bytes.
                let two = b.const_i64(if lanes > 1 { 2 } else { 1 });
                let counter = b.mul(self.counters[n - 1], two);
                // At most 30 + 2 · 15 + 16 is too much for a row: keep the base small.
                let two = b.const_i64(2);
                let base = b.as_const(base).unwrap_or(0) % 16;
                let base = b.const_i64(base);
                let base = b.div(base, two);
                let base = b.mul(base, two);
                b.add(base, counter)
            }
        }
    }

    fn value(&mut self, pool: &[Value]) -> Value {
        pool[self.pick(pool.len())]
    }

    /// A value of the pool of this type, or a conversion of another one, or a constant.
    fn of_type(&mut self, b: &mut Builder, pool: &[Value], ty: ValueType) -> Value {
        let have: Vec<Value> = pool.iter().copied().filter(|v| b.ty(*v) == ty).collect();
        if !have.is_empty() && self.pick(8) > 0 {
            return have[self.pick(have.len())];
        }
        let scalar = match ty.elem {
            DType::Bool => b.const_bool(self.pick(2) == 1),
            DType::I32 => b.const_i32(self.pick(256) as i32 - 128),
            DType::I64 => b.const_i64(self.pick(256) as i64 - 128),
            _ => {
                let c = b.const_f32(self.pick(256) as f32 / 16.0 - 8.0);
                b.cast(c, ty.elem)
            }
        };
        b.splat(scalar, ty.lanes)
    }

    fn block(&mut self, b: &mut Builder, pool: &mut Vec<Value>, depth: usize) {
        for _ in 0..=self.pick(12) {
            if self.done() {
                break;
            }
            self.stmt(b, pool, depth);
        }
        // Whatever was computed last is stored, so that it matters.
        let candidates: Vec<Value> = pool.iter().rev().take(3).copied().collect();
        for v in candidates {
            self.store(b, v);
        }
    }

    fn store(&mut self, b: &mut Builder, v: Value) {
        let ty = b.ty(v);
        let out = OUTPUTS.iter().position(|d| *d == ty.elem);
        let out = self.outputs[out.unwrap_or(0)];
        let index = self.index(b, ty.lanes);
        b.store(out, &[self.row, index], v);
    }

    fn stmt(&mut self, b: &mut Builder, pool: &mut Vec<Value>, depth: usize) {
        let arithmetic = [DType::F32, DType::F32, DType::I32, DType::I64];
        let kind = self.pick(if depth < 3 { 16 } else { 13 });
        let lanes = self.lanes();
        let elem = arithmetic[self.pick(arithmetic.len())];
        let ty = ValueType::vector(elem, lanes);
        let value = match kind {
            0..=2 => {
                let input = self.inputs[self.pick(INPUTS.len())];
                let index = self.index(b, lanes);
                let v = b.load(input, &[index], lanes);
                match b.dtype(input) {
                    DType::I32 | DType::I64 => v,
                    _ => b.cast(v, DType::F32),
                }
            }
            3..=4 => {
                let (x, y) = (self.of_type(b, pool, ty), self.of_type(b, pool, ty));
                self.binary(b, elem, x, y)
            }
            5 => {
                let (x, mut ops) = (self.of_type(b, pool, ty), vec![UnaryOp::Neg, UnaryOp::Abs]);
                ops.extend(if elem == DType::F32 { &UnaryOp::ALL[3..] } else { &[UnaryOp::Not] });
                b.unary(ops[self.pick(ops.len())], x)
            }
            6 if self.pick(4) == 0 => {
                // bf16 halves of anything.
                let float = ValueType::vector(DType::F32, lanes);
                let [x, y, z] = [0; 3].map(|_| self.of_type(b, pool, float));
                let [x, y] = [x, y].map(|v| b.bitcast(v, DType::BF16));
                b.dot(x, y, z)
            }
            6 if lanes > 1 && self.pick(6) == 0 => {
                let word = ValueType::vector([DType::F32, DType::I32][self.pick(2)], lanes);
                let (x, y) = (self.of_type(b, pool, word), self.of_type(b, pool, word));
                b.zip([Half::Low, Half::High][self.pick(2)], x, y)
            }
            6 if self.pick(6) == 0 => {
                // Nibbles of anything as bytes, four of them summed by a dot product.
                let int = ValueType::vector(DType::I32, lanes);
                let (x, sum) = (self.of_type(b, pool, int), self.of_type(b, pool, int));
                let codes = b.bitcast(x, DType::U8);
                let table = std::array::from_fn(|_| self.pick(256) as u8);
                let [u, i] = [DType::U8, DType::I8].map(|elem| b.lookup(table, codes, elem));
                b.dot(u, i, sum)
            }
            6 => {
                let float = ValueType::vector(DType::F32, lanes);
                let [x, y, z] = [0; 3].map(|_| self.of_type(b, pool, float));
                b.fma(x, y, z)
            }
            7 => {
                let (x, y) = (self.of_type(b, pool, ty), self.of_type(b, pool, ty));
                let mask = b.compare(CompareOp::ALL[self.pick(6)], x, y);
                let mask = if self.pick(3) == 0 { b.not(mask) } else { mask };
                let other = self.of_type(b, pool, ty);
                b.select(mask, x, other)
            }
            8 => {
                let x = self.value(pool);
                let to = [DType::F32, DType::I32, DType::I64, DType::Bool, DType::BF16, DType::I8][self.pick(6)];
                let y = b.cast(x, to);
                b.cast(y, elem)
            }
            9 => {
                let x = self.of_type(b, pool, ty);
                match self.pick(3) {
                    0 => b.extract(x, lanes - 1),
                    1 => b.reduce_lanes(ReduceOp::ALL[self.pick(4)], x),
                    _ => b.iota(DType::I32, lanes),
                }
            }
            10 => {
                // A masked update of the output.
                let (x, y) = (self.of_type(b, pool, ty), self.of_type(b, pool, ty));
                let mask = b.lt(x, y);
                let out = self.outputs[OUTPUTS.iter().position(|d| *d == elem).unwrap_or(0)];
                let index = self.index(b, lanes);
                let fill = (self.pick(2) == 0).then_some(x);
                let old = b.load_masked(out, &[self.row, index], mask, fill);
                let index = self.index(b, lanes);
                b.store_masked(out, &[self.row, index], y, mask);
                old
            }
            11 => {
                let x = self.of_type(b, pool, ValueType::vector(DType::F32, lanes));
                let index = self.index(b, lanes);
                b.store(self.scratch, &[index], x);
                let index = self.index(b, lanes);
                b.load(self.scratch, &[index], lanes)
            }
            12 => {
                let v = self.value(pool);
                return self.store(b, v);
            }
            13..=14 => {
                let kind = [LoopKind::Serial, LoopKind::Unroll][self.pick(2)];
                let lo = b.const_i64(self.pick(3) as i64);
                let hi = match self.pick(3) {
                    // A bound the code generator does not know, from 0 to 3.
                    0 if kind == LoopKind::Serial => self.row,
                    _ => b.const_i64(self.pick(7) as i64),
                };
                let step = 1 + self.pick(3) as i64;
                let init = self.of_type(b, pool, ty);
                let inner_pool = pool.clone();
                let results = b.for_loop(lo, hi, step, kind, &[init], |b, i, carried| {
                    let mut pool = inner_pool;
                    pool.extend([i, carried[0]]);
                    self.counters.push(i);
                    self.block(b, &mut pool, depth + 1);
                    self.counters.pop();
                    let last = self.of_type(b, &pool, ty);
                    vec![self.binary(b, elem, last, carried[0])]
                });
                results[0]
            }
            _ => {
                let one = ValueType::scalar(elem);
                let (x, y) = (self.of_type(b, pool, one), self.of_type(b, pool, one));
                let cond = b.compare(CompareOp::ALL[self.pick(6)], x, y);
                let (mut yes, mut no) = (pool.clone(), pool.clone());
                let state = std::cell::RefCell::new(self);
                let branch = |b: &mut Builder, pool: &mut Vec<Value>| {
                    let mut this = state.borrow_mut();
                    this.block(b, pool, depth + 1);
                    vec![this.of_type(b, pool, ty)]
                };
                b.if_else(cond, |b| branch(b, &mut yes), |b| branch(b, &mut no))[0]
            }
        };
        pool.push(value);
    }

    fn binary(&mut self, b: &mut Builder, elem: DType, x: Value, y: Value) -> Value {
        use BinaryOp::*;
        let float = [Add, Sub, Mul, Div, Min, Max];
        let int = [Add, Sub, Mul, Div, Rem, Min, Max, And, Or, Xor, Shl, Shr, Ushr];
        let op = if elem == DType::F32 { float[self.pick(float.len())] } else { int[self.pick(int.len())] };
        let y = match op {
            // Odd numbers are not zero.
            Div | Rem if elem != DType::F32 => {
                let one = if elem == DType::I32 { b.const_i32(1) } else { b.const_i64(1) };
                b.or(y, one)
            }
            Shl | Shr | Ushr if self.pick(2) == 0 => {
                let count = self.pick(32);
                let count = if elem == DType::I32 { b.const_i32(count as i32) } else { b.const_i64(count as i64) };
                b.splat(count, b.ty(x).lanes)
            }
            _ => y,
        };
        b.binary(op, x, y)
    }
}
