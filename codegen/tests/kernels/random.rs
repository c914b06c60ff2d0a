//! Random kernel functions, built op by op from what fits, with a bound on the rounding error of every value.
//!
//! Values made of small multiples of powers of two by additions and multiplications are exact in both interpreters;
//! only those may be compared, selected from or truncated, where the last bit would decide.

use super::Numbers;
use hadal_ir::attr::Real;
use hadal_ir::ops::map::MapFn;
use hadal_ir::ops::reduce::ReduceKind;
use hadal_ir::ops::*;
use hadal_ir::{Builder, DType, Dim, Func, FuncKind, Sym, TensorType, ValueId};

/// Largest values of the symbols that functions are checked with.
pub const MOST: [(Sym, i64); 2] = [(Sym::T, 6), (Sym::P, 7)];

#[derive(Clone, Copy)]
struct Known {
    id: ValueId,
    /// No element is larger.
    most: f64,
    /// Every element is a multiple of `2^-bits`; none where it is not exact.
    bits: Option<u32>,
    /// How far computed elements may be from the true ones.
    error: f64,
}

/// A function and the tolerance of each result.
pub fn function(seed: u64, steps: usize) -> (Func, Vec<f64>) {
    let mut g =
        Generator { n: Numbers(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) | 1), b: Builder::new("random"), all: vec![] };
    for i in 0..2 + g.n.below(2) {
        g.param(i);
    }
    for _ in 0..steps {
        g.step();
    }
    let params = g.all.len().min(2);
    let mut chosen = vec![g.all[g.all.len() - 1]];
    while g.n.below(3) == 0 {
        let at = params + g.n.below((g.all.len() - params) as u64) as usize;
        chosen.extend(g.all.get(at));
    }
    let mut tolerances = Vec::new();
    for (i, known) in chosen.iter().enumerate() {
        let mut id = known.id;
        // Small formats are read; what is written in them would be rounded coarsely, or wrap.
        if g.b.ty(id).dtype.bits() == 8 && g.b.ty(id).dtype != DType::Bool || g.b.ty(id).dtype.bits() < 8 {
            id = g.b.cast(id, DType::F32);
        }
        if g.n.below(5) == 0 {
            id = g.appended(id).unwrap_or(id);
        }
        g.b.result(&format!("y{i}"), id);
        tolerances.push(4.0 * known.error);
    }
    let mut func = g.b.finish().unwrap();
    func.kind = FuncKind::Kernel;
    (func, tolerances)
}

struct Generator {
    n: Numbers,
    b: Builder,
    all: Vec<Known>,
}

fn largest(d: &Dim) -> f64 {
    d.eval(&MOST.into_iter().collect()).unwrap() as f64
}

impl Generator {
    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.n.below(from.len() as u64) as usize].clone()
    }

    fn size(&mut self) -> Dim {
        let t = Dim::from(Sym::T);
        let sizes: Vec<Dim> = [1i64, 2, 3, 4, 8, 12, 20, 35].map(Dim::from).to_vec();
        match self.n.below(6) {
            0 => t,
            1 if self.n.below(2) == 0 => t + Sym::P,
            _ => self.pick(&sizes),
        }
    }

    fn param(&mut self, i: u64) {
        let mut shape: Vec<Dim> = (0..1 + self.n.below(3)).map(|_| self.size()).collect();
        if self.n.below(2) == 0 {
            shape.insert(0, Sym::T.into());
        }
        while shape.iter().map(largest).product::<f64>() > 3000.0 {
            shape.pop();
        }
        let dtypes = [DType::F32, DType::F32, DType::F32, DType::BF16, DType::F16, DType::I32, DType::I64];
        let dtype = self.pick(&dtypes);
        self.input(&format!("p{i}"), dtype, shape);
    }

    fn input(&mut self, name: &str, dtype: DType, shape: Vec<Dim>) -> Known {
        let id = self.b.param(name, TensorType { dtype, shape });
        let (most, bits) = if dtype.is_float() { (2.0, 3) } else { (8.0, 0) };
        let known = Known { id, most, bits: Some(bits), error: 0.0 };
        self.all.push(known);
        known
    }

    /// Adds a value computed in f32, unless it is too large or too inexact to go on with.
    fn push(&mut self, id: ValueId, most: f64, bits: Option<u32>, error: f64) -> bool {
        let fits = |b: &u32| most * 2f64.powi(*b as i32) < 16_000_000.0;
        let bits = bits.filter(fits);
        let error = if bits.is_some() { 0.0 } else { error + most * 2e-7 };
        let small = self.b.shape(id).iter().map(largest).product::<f64>() <= 4000.0;
        let narrow = self.b.ty(id).dtype.is_int() && self.b.ty(id).dtype.bits() == 8;
        let good = most < if narrow { 127.0 } else { 1e5 } && error < 1e-2 && small && self.b.shape(id).len() <= 5;
        if good {
            self.all.push(Known { id, most, bits, error });
        }
        good
    }

    fn float(&mut self, x: Known) -> Known {
        let id = self.b.cast(x.id, DType::F32);
        if id == x.id { x } else { Known { id, ..x } }
    }

    /// A value of the same shape and format.
    fn partner(&mut self, x: Known) -> Known {
        let ty = self.b.ty(x.id).clone();
        let same = self.all.iter().filter(|k| *self.b.ty(k.id) == ty).copied();
        let same: Vec<Known> = same.chain([x]).collect();
        match self.n.below(3) {
            0 => {
                let value = self.n.below(7) as f64 - 3.0;
                Known { id: self.b.scalar_like(x.id, value), most: 3.0, bits: Some(0), error: 0.0 }
            }
            1 => {
                // Something smaller, repeated.
                let mut options = Vec::new();
                for k in &self.all {
                    let (shape, rank) = (self.b.shape(k.id).to_vec(), ty.shape.len());
                    for axis in 0..rank {
                        if shape.len() == 1 && shape[0] == ty.shape[axis] && self.b.ty(k.id).dtype == ty.dtype {
                            options.push((*k, axis));
                        }
                    }
                }
                if options.is_empty() {
                    return self.pick(&same);
                }
                let (k, axis) = self.pick(&options);
                Known { id: self.b.broadcast(k.id, &ty.shape, &[axis]), ..k }
            }
            _ => self.pick(&same),
        }
    }

    fn step(&mut self) {
        let recent = self.all.len().saturating_sub(4);
        let from = if self.n.below(3) == 0 { 0 } else { recent };
        let options = self.all[from..].to_vec();
        let x = self.pick(&options);
        let ty = self.b.ty(x.id).clone();
        let rank = ty.shape.len();
        if ty.dtype == DType::Bool {
            return self.choose(x);
        }
        match self.n.below(20) {
            0..=4 => self.map(x),
            5 | 6 if rank > 0 => self.reduce(x),
            7 => self.reshape(x),
            8 if rank > 1 => {
                let mut perm: Vec<usize> = (0..rank).collect();
                let (i, j) = (self.n.below(rank as u64) as usize, self.n.below(rank as u64) as usize);
                perm.swap(i, j);
                let y = self.b.op(Transpose { perm }, &[x.id]);
                self.push(y, x.most, x.bits, x.error);
            }
            9 if rank > 0 => self.slice(x),
            10 if rank > 0 => {
                let axis = self.n.below(rank as u64) as usize;
                let fits = |k: &&Known| {
                    let other = self.b.ty(k.id);
                    let same = |a: usize| a == axis || other.shape[a] == ty.shape[a];
                    other.dtype == ty.dtype && other.shape.len() == rank && (0..rank).all(same)
                };
                let others: Vec<Known> = self.all.iter().filter(fits).copied().collect();
                let other = self.pick(&others);
                let y = self.b.concat(&[x.id, other.id], axis);
                let bits = x.bits.and_then(|a| Some(a.max(other.bits?)));
                self.push(y, x.most.max(other.most), bits, x.error.max(other.error));
            }
            11 => {
                let (mut shape, size) = (ty.shape.clone(), self.size());
                let at = self.n.below(rank as u64 + 1) as usize;
                shape.insert(at, size);
                let dims: Vec<usize> = (0..rank).map(|a| a + (a >= at) as usize).collect();
                let y = self.b.broadcast(x.id, &shape, &dims);
                self.push(y, x.most, x.bits, x.error);
            }
            12 if x.bits.is_some() => {
                let to = self.pick(&[DType::BF16, DType::F16, DType::F32, DType::I32, DType::F8E4M3]);
                let y = self.b.cast(x.id, to);
                let bits = if to.is_float() { x.bits } else { Some(0) };
                self.push(y, x.most * 1.1, bits, x.error);
            }
            13 | 14 => self.gather(x),
            15 if x.bits.is_some() && rank > 0 => self.top_k(x),
            16 | 17 if rank > 0 => self.contract(x),
            18 if rank > 0 && ty.dtype.is_float() => self.softmax(x),
            19 => self.dequantize(),
            _ => self.map(x),
        }
    }

    fn map(&mut self, x: Known) {
        let x = if self.n.below(2) == 0 { self.float(x) } else { x };
        let real = self.b.ty(x.id).dtype.is_float();
        let y = self.partner(x);
        let join = |a: u32| Some(a.max(y.bits?));
        let both = x.bits.and_then(join);
        let sum = (x.most + y.most, both, x.error + y.error);
        let one = |this: &mut Self, f, x: Known, most, error| {
            let id = this.b.map(f, &[x.id]);
            this.push(id, most, None, error);
        };
        match self.n.below(if real { 16 } else { 7 }) {
            0 => {
                let id = self.b.add(x.id, y.id);
                self.push(id, sum.0, sum.1, sum.2);
            }
            1 => {
                let id = self.b.map(MapFn::Sub, &[x.id, y.id]);
                self.push(id, sum.0, sum.1, sum.2);
            }
            2 => {
                let id = self.b.mul(x.id, y.id);
                let bits = x.bits.and_then(|a| Some(a + y.bits?));
                self.push(id, x.most * y.most, bits, x.most * y.error + y.most * x.error);
            }
            3 => {
                let f = self.pick(&[MapFn::Max, MapFn::Min]);
                let id = self.b.map(f, &[x.id, y.id]);
                self.push(id, x.most.max(y.most), both, x.error.max(y.error));
            }
            4 => {
                let f = self.pick(&[MapFn::Neg, MapFn::Abs]);
                let id = self.b.map(f, &[x.id]);
                self.push(id, x.most, x.bits, x.error);
            }
            5 | 6 if both.is_some() => {
                let f = self.pick(&[MapFn::Lt, MapFn::Le, MapFn::Eq]);
                let id = self.b.map(f, &[x.id, y.id]);
                self.push(id, 1.0, Some(0), 0.0);
            }
            7 | 8 if x.most < 6.0 => one(self, MapFn::Exp, x, x.most.exp(), x.most.exp() * (x.error + 4e-7)),
            9 if x.most < 64.0 => {
                let f = self.pick(&[MapFn::Sin, MapFn::Cos]);
                one(self, f, x, 1.0, x.error + 4e-7);
            }
            10 => {
                let f = self.pick(&[MapFn::Tanh, MapFn::Erf]);
                one(self, f, x, 1.0, 1.2 * x.error + 4e-7);
            }
            11 => one(self, MapFn::Sigmoid, x, 1.0, x.error + 4e-7),
            12 if x.bits.is_some() => match self.n.below(2) {
                0 => {
                    let id = self.b.map(MapFn::Floor, &[x.id]);
                    self.push(id, x.most + 1.0, Some(0), 0.0);
                }
                _ => {
                    let size = self.b.map(MapFn::Abs, &[x.id]);
                    let id = self.b.map(MapFn::Pow2Ceil, &[size]);
                    self.push(id, 2.0 * x.most, x.bits, 0.0);
                }
            },
            13 | 14 => {
                let size = self.b.map(MapFn::Abs, &[x.id]);
                let shifted = self.b.add_scalar(size, 1.0);
                let f = self.pick(&[MapFn::Log, MapFn::Log1p, MapFn::Sqrt, MapFn::Rsqrt]);
                let x = Known { id: shifted, ..x };
                one(self, f, x, x.most + 1.0, x.error + 4e-7);
            }
            15 => {
                let size = self.b.map(MapFn::Abs, &[y.id]);
                let shifted = self.b.add_scalar(size, 1.0);
                let id = self.b.map(MapFn::Div, &[x.id, shifted]);
                self.push(id, x.most, None, x.error + x.most * y.error);
            }
            _ if !real => {
                let f = self.pick(&[MapFn::Div, MapFn::Rem, MapFn::Xor]);
                let id = self.b.map(f, &[x.id, y.id]);
                self.push(id, if f == MapFn::Xor { 2.0 * x.most.max(y.most) } else { x.most }, both, 0.0);
            }
            _ => {}
        }
    }

    fn choose(&mut self, condition: Known) {
        let shape = self.b.shape(condition.id).to_vec();
        let same: Vec<Known> = self
            .all
            .iter()
            .filter(|k| self.b.shape(k.id) == shape && self.b.ty(k.id).dtype != DType::Bool)
            .copied()
            .collect();
        if same.is_empty() || self.n.below(4) == 0 {
            let id = match self.n.below(3) {
                0 => self.b.map(MapFn::Not, &[condition.id]),
                1 => self.b.cast(condition.id, DType::F32),
                _ if !shape.is_empty() => self.b.reduce(ReduceKind::Max, &[shape.len() - 1], condition.id),
                _ => return,
            };
            self.push(id, 1.0, Some(0), 0.0);
            return;
        }
        let x = self.pick(&same);
        let y = self.partner(x);
        let id = self.b.map(MapFn::Select, &[condition.id, x.id, y.id]);
        let bits = x.bits.and_then(|a| Some(a.max(y.bits?)));
        self.push(id, x.most.max(y.most), bits, x.error.max(y.error));
    }

    fn reduce(&mut self, x: Known) {
        let shape = self.b.shape(x.id).to_vec();
        let mut axes = vec![self.n.below(shape.len() as u64) as usize];
        if shape.len() > 1 && self.n.below(3) == 0 {
            axes = vec![0, shape.len() - 1];
        }
        let count: f64 = axes.iter().map(|a| largest(&shape[*a])).product();
        let kind = self.pick(&[ReduceKind::Sum, ReduceKind::Max, ReduceKind::Min]);
        if kind != ReduceKind::Sum
            && axes
                .iter()
                .any(|a| shape[*a].as_const().is_none() && shape[*a].eval(&[(Sym::T, 1), (Sym::P, 0)].into()) != Ok(1))
        {
            return;
        }
        let id = self.b.reduce(kind, &axes, x.id);
        let n = if kind == ReduceKind::Sum { count } else { 1.0 };
        self.push(id, x.most * n, x.bits, x.error * n + x.most * n * n * 6e-8);
    }

    fn reshape(&mut self, x: Known) {
        let mut shape = self.b.shape(x.id).to_vec();
        let rank = shape.len();
        match self.n.below(3) {
            0 if rank > 1 => {
                let at = self.n.below(rank as u64 - 1) as usize;
                let Some(merged) = shape[at].checked_mul(&shape[at + 1]) else { return };
                shape.splice(at..at + 2, [merged]);
            }
            1 if rank > 0 => {
                let at = self.n.below(rank as u64) as usize;
                let by = self.pick(&[2, 3, 4, 5]);
                let Some(rest) = shape[at].div_exact(by) else { return };
                let pair = if self.n.below(2) == 0 { [by.into(), rest] } else { [rest, by.into()] };
                shape.splice(at..at + 1, pair);
            }
            _ => {
                let consts: Option<Vec<i64>> = shape.iter().map(Dim::as_const).collect();
                match consts {
                    Some(sizes) if rank > 1 => shape = sizes.iter().rev().map(|n| Dim::from(*n)).collect(),
                    _ => shape.insert(0, 1.into()),
                }
            }
        }
        let id = self.b.reshape(x.id, &shape);
        self.push(id, x.most, x.bits, x.error);
    }

    fn slice(&mut self, x: Known) {
        let shape = self.b.shape(x.id).to_vec();
        let axis = self.n.below(shape.len() as u64) as usize;
        let op = match shape[axis].as_const() {
            Some(n) if n > 1 => {
                let start = self.n.below(n as u64 - 1) as i64;
                let step = 1 + self.n.below(2) as i64;
                let len = ((n - start + step - 1) / step).max(1);
                Slice { axis, start: start.into(), len: len.into(), step: step as usize }
            }
            None if shape[axis] == Dim::from(Sym::P) + Sym::T => {
                Slice { axis, start: Sym::P.into(), len: Sym::T.into(), step: 1 }
            }
            _ => return,
        };
        let id = self.b.op(op, &[x.id]);
        self.push(id, x.most, x.bits, x.error);
    }

    fn gather(&mut self, x: Known) {
        let shape = self.b.shape(x.id).to_vec();
        let int = |k: &&Known| self.b.ty(k.id).dtype.is_int();
        let mut ids: Vec<Known> = self.all.iter().filter(int).copied().collect();
        if shape.is_empty() || self.n.below(3) == 0 {
            let (len, start) = (self.size(), self.pick(&[Dim::from(0i64), Sym::P.into()]));
            let id = self.b.iota(len, start);
            self.push(id, 20.0, Some(0), 0.0);
            return;
        }
        if ids.is_empty() {
            let at = self.all.len() as u64;
            self.param(at + 10);
            ids = self.all.iter().filter(|k| self.b.ty(k.id).dtype.is_int()).copied().collect();
        }
        if ids.is_empty() {
            return;
        }
        let i = self.pick(&ids);
        let indices = self.b.shape(i.id).to_vec();
        let common = shape.iter().zip(&indices).take_while(|(a, b)| a == b).count().min(shape.len() - 1);
        let batch = self.n.below(common as u64 + 1) as usize;
        let axis = batch + self.n.below((shape.len() - batch) as u64) as usize;
        let id = self.b.op(Gather { axis, batch }, &[x.id, i.id]);
        self.push(id, x.most, x.bits, x.error);
    }

    fn top_k(&mut self, x: Known) {
        let shape = self.b.shape(x.id).to_vec();
        let last = shape[shape.len() - 1].clone();
        let k = 1 + self.n.below(5) as usize;
        let id = self.b.top_k(x.id, k);
        if !self.push(id, largest(&last), Some(0), 0.0) {
            return;
        }
        match self.n.below(3) {
            0 => {
                let id = self.b.gather(x.id, id, shape.len() - 1, shape.len() - 1);
                self.push(id, x.most, x.bits, x.error);
            }
            1 => {
                let id = self.b.member(id, last);
                self.push(id, 1.0, Some(0), 0.0);
            }
            _ => {}
        }
    }

    fn contract(&mut self, x: Known) {
        let x = self.float(x);
        let shape = self.b.shape(x.id).to_vec();
        let rank = shape.len();
        let summed = self.n.below(rank as u64) as usize;
        let (letters, f): (String, Dim) = ("abcde"[..rank].to_string(), self.size());
        let s = letters[summed..=summed].to_string();
        let kept: String = letters.chars().filter(|c| *c != s.chars().next().unwrap()).collect();
        let turned = self.n.below(2) == 0;
        let mut weight = vec![f, shape[summed].clone()];
        let mut spec = format!("f{s}");
        if turned {
            weight.reverse();
            spec = format!("{s}f");
        }
        if largest(&weight[0]) * largest(&weight[1]) > 2000.0 {
            return;
        }
        let name = format!("w{}", self.all.len());
        let dtype = self.pick(&[DType::F32, DType::BF16, DType::F8E4M3]);
        let w = self.input(&name, dtype, weight);
        let id = self.b.contract(&format!("{letters},{spec}->{kept}f"), &[x.id, w.id]);
        let n = largest(&shape[summed]);
        let bits = x.bits.map(|b| b + 3);
        self.push(id, 2.0 * x.most * n, bits, 2.0 * n * (x.error + x.most * n * 6e-8));
    }

    fn softmax(&mut self, x: Known) {
        if x.most > 6.0 || x.error > 1e-4 {
            return;
        }
        let x = self.float(x);
        let shape = self.b.shape(x.id).to_vec();
        if self.n.below(2) == 0 {
            let id = self.b.op(Softmax, &[x.id]);
            self.push(id, 1.0, None, 4.0 * x.error + 2e-6);
            return;
        }
        let last = shape[shape.len() - 1].clone();
        if last.as_const().is_none() {
            return;
        }
        let w = self.input(&format!("w{}", self.all.len()), DType::BF16, vec![last]);
        let id = self.b.op(RmsNorm { eps: Real(0.25) }, &[x.id, w.id]);
        self.push(id, 4.0 * x.most, None, 16.0 * (x.most + 1.0) * x.error + 4e-6 * x.most);
    }

    fn dequantize(&mut self) {
        let (rows, columns) = (self.pick(&[3i64, 8, 12]), self.pick(&[20i64, 32, 35]));
        let (a, c) = (self.pick(&[2i64, 4, 8]), self.pick(&[8i64, 16]));
        let dtype = self.pick(&[DType::F8E4M3, DType::I8, DType::F4E2M1]);
        let columns = if dtype == DType::F4E2M1 { columns / 2 * 2 } else { columns };
        let scales = vec![(rows as u64).div_ceil(a as u64), (columns as u64).div_ceil(c as u64)];
        let scales: Vec<Dim> = scales.into_iter().map(|n| Dim::from(n as i64)).collect();
        let at = self.all.len();
        let q = self.input(&format!("q{at}"), dtype, vec![rows.into(), columns.into()]);
        let s = self.input(&format!("s{at}"), DType::F8E8M0, scales);
        let id = self.b.op(Dequantize { block: vec![a as usize, c as usize] }, &[q.id, s.id]);
        self.push(id, 2.0 * q.most, Some(4), 0.0);
    }

    /// The value written behind a state, where its rows are the new tokens.
    fn appended(&mut self, rows: ValueId) -> Option<ValueId> {
        let ty = self.b.ty(rows).clone();
        if ty.shape.first() != Some(&Dim::from(Sym::T)) || ty.dtype != DType::F32 {
            return None;
        }
        let mut old = ty;
        old.shape[0] = Sym::P.into();
        let state = self.b.param(&format!("state{}", rows.0), old);
        Some(self.b.op(Append, &[state, rows]))
    }
}
