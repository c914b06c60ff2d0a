//! Rows of bytes by weights of eight or four bits, as one row after the other reads them: the dot form in groups of four.
//!
//! The rows come rounded to `i8`, with a scale for each group of neighbours; so are the weights, whose groups may be others.
//! Products of four neighbouring bytes are added into the 32 bits of a lane, exactly; a vector's lanes then become f32, are
//! multiplied with the scales of both operands and added to the lanes of an f32 sum:
//!
//! ```text
//! sum += f32(Σ u·x - bias·Σ x) · (scale of x) · (scale of w)  + (scale of x)·(Σ x) · (offset of w)
//! ```
//!
//! The instruction takes weights without a sign: signed ones are read with a bias (`u = w + bias`), whose share is where a
//! sum begins. What is the same for all columns is written once for those of a grid index ([`Rows::write`]): a row's bytes in
//! the order in which weights come out of a register (of four-bit codes all low nibbles, then all high ones), where each
//! lane begins, its scale, and its sum of elements.
//!
//! A register has 64 weights or 128. A group that is as long as a register or longer multiplies its vectors' sum with one
//! scale. Of shorter groups sixteen are taken at a time: their scales are one vector, which zips spread over the lanes.
//! Where registers do not divide a row, the last ones end with it: what they have in common with the one before is zero
//! in the row of bytes.

use super::desc::Desc;
use super::env::Env;
use super::schedule::Schedule;
use super::view::{Access, Affine, Var, VarKind};
use hadal_ir::kernel::{Buf, Builder, Half, LoopKind, ReduceOp, Value};
use hadal_types::{DType, Dim};

/// Lanes of a sum.
const LANES: i64 = 16;

/// Vectors of a group that are not a loop.
const UNROLLED: i64 = 4;

/// A product of bytes along a summed letter: how operands are stored, and where their scales change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bytes {
    /// The summed letter and its size.
    k: Var,
    size: i64,
    /// Format of the streamed codes.
    codes: DType,
    /// Groups of the rows.
    pub x: Groups,
    /// Groups of the streamed operand.
    pub w: Groups,
    /// Groups of its scales, and of its offsets, where these have scales themselves: the variable and summed elements.
    over: [Option<Groups>; 2],
    /// Whether it has offsets.
    pub offsets: bool,
}

/// Summed elements that share a scale: the variable that numbers them, where there are several, and how many they are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Groups {
    var: Option<Var>,
    /// Elements.
    pub size: i64,
}

impl Groups {
    /// The groups of a scale along `k`, which are counted from its beginning.
    fn of(desc: &Desc, scale: &Access, k: Var, size: i64) -> Option<Groups> {
        let mut moving = scale.at.terms.iter().filter(|(v, _)| desc.vars.depends(&Affine::var(**v), k));
        let Some((var, step)) = moving.next() else { return Some(Groups { var: None, size }) };
        let VarKind::Div(of, by) = &desc.vars.list[*var].kind else { return None };
        (moving.next().is_none() && *of == Affine::var(k) && step.is(1))
            .then_some(Groups { var: Some(*var), size: *by })
    }

    /// The groups of the scales of scales that change by `self`.
    fn over(self, desc: &Desc, scale: &Access, size: i64) -> Option<Groups> {
        let Some(inner) = self.var else { return Some(Groups { var: None, size }) };
        let mut moving = scale.at.terms.iter().filter(|(v, _)| desc.vars.depends(&Affine::var(**v), inner));
        let Some((var, _)) = moving.next() else { return Some(Groups { var: None, size }) };
        let VarKind::Div(of, by) = &desc.vars.list[*var].kind else { return None };
        let own = moving.next().is_none() && *of == Affine::var(inner);
        own.then_some(Groups { var: Some(*var), size: by * self.size })
    }

    /// With the letter and what numbers groups at the beginning of group `at`.
    pub fn bind<'a>(&self, b: &mut Builder, env: &Env<'a>, k: Var, at: Value) -> Env<'a> {
        let size = b.const_i64(self.size);
        let first = b.mul(at, size);
        let env = env.with(k, first);
        self.var.map_or(env.clone(), |var| env.with(var, at))
    }
}

impl Bytes {
    /// Where rows are bytes with scales and the streamed operand has eight bits or four.
    pub fn of(desc: &Desc, streamed: usize, k: Var) -> Option<Bytes> {
        let [w, x] = [&desc.operands[streamed], &desc.operands[1 - streamed]];
        let size = desc.size(k).as_const()?;
        let codes = matches!(w.dtype, DType::I8 | DType::U8 | DType::I4 | DType::U4 | DType::F4E2M1);
        let unit = |a: &Access| desc.vars.stride(&a.at, k).is_some_and(|s| s.is(1)) && desc.vars.whole_bytes(a, k);
        let simple = x.dtype == DType::I8 && x.offset.is_none() && codes && unit(x) && unit(w);
        let x_scale = x.scale.as_deref().filter(|s| simple && s.parts().next().is_none())?;
        let scale = w.scale.as_deref()?;
        let groups = Groups::of(desc, scale, k, size)?;
        let over = |part: &Access| match part.scale.as_deref() {
            Some(over) if over.parts().next().is_none() => groups.over(desc, over, size).map(Some),
            Some(_) => None,
            None => Some(None),
        };
        let offset = w.offset.as_deref();
        let alike = offset.is_none_or(|m| Groups::of(desc, m, k, size) == Some(groups));
        let over = [over(scale)?, offset.map_or(Some(None), over)?];
        let x = Groups::of(desc, x_scale, k, size)?;
        let bytes = Bytes { k, size, codes: w.dtype, x, w: groups, over, offsets: offset.is_some() };
        let whole = x.size % 16 == 0 && size % x.size == 0 && groups.size % 16 == 0 && size % 4 == 0;
        (whole && alike).then_some(bytes)
    }

    /// Whether vectors of the dot form can be taken along the letter.
    pub fn in_vectors(&self) -> bool {
        let (v, run) = (self.vector(), LANES * self.w.size);
        let over = self.over.iter().flatten().all(|o| run % o.size == 0 && self.size % o.size == 0);
        let by_x = self.x.size % (v / LANES) == 0 && (self.x.size % v == 0 || v % self.x.size == 0);
        // Vectors that end with the row begin with a group of it.
        let groups = self.size % self.x.size.min(v) == 0;
        let by_w = match self.w.size {
            n if n == self.size => true,
            n if n >= v => n % v == 0,
            n => v % n == 0 && self.size % n == 0 && over && (self.size >= run || self.size % v == 0),
        };
        self.size >= v && by_x && groups && by_w
    }

    /// Summed elements that share all scales.
    pub fn fine(&self) -> i64 {
        self.x.size.min(self.w.size)
    }

    /// Whether panels of them can be laid out: groups begin where others do, and codes are bytes with a sign.
    pub fn in_panels(&self) -> bool {
        let (fine, most) = (self.fine(), self.x.size.max(self.w.size));
        let whole = most % fine == 0 && self.size % fine == 0 && fine % 16 == 0;
        whole && self.codes != DType::U8 && (!self.offsets || self.w.size == fine)
    }

    /// Weights of a register.
    fn vector(&self) -> i64 {
        if self.codes.is_packed() { 8 * LANES } else { 4 * LANES }
    }

    /// What is added to a code, so that it has no sign.
    pub fn bias(&self) -> i32 {
        match self.codes {
            DType::I8 => 128,
            DType::I4 => 8,
            DType::F4E2M1 => 12,
            _ => 0,
        }
    }

    /// What a code of this many units stands for is so many times less.
    pub fn unit(&self) -> f32 {
        if self.codes == DType::F4E2M1 { 0.5 } else { 1.0 }
    }

    /// Elements whose vectors have their places one after the other from the first on. The rest is in vectors that end
    /// with the row.
    fn main(&self) -> i64 {
        let v = self.vector();
        let unit = match self.w.size {
            n if n == self.size => v,
            n if n >= v => n,
            n => n * LANES,
        };
        self.size / unit * unit
    }

    /// Vectors that end with the row.
    fn rest(&self) -> i64 {
        (self.size - self.main() + self.vector() - 1) / self.vector()
    }

    fn vectors(&self) -> i64 {
        self.main() / self.vector() + self.rest()
    }

    /// Codes of four bits, or bytes, without sign: the registers of one load.
    fn unsigned(&self, b: &mut Builder, x: Value) -> Vec<Value> {
        let word = |b: &mut Builder, x: i32| {
            let x = b.const_i32(x);
            b.splat(x, LANES as u32)
        };
        let mut words = b.bitcast(x, DType::I32);
        let flip = match self.codes {
            DType::I8 => 0x8080_8080_u32,
            DType::I4 => 0x8888_8888,
            _ => 0,
        };
        if flip != 0 {
            let flip = word(b, flip as i32);
            words = b.xor(words, flip);
        }
        if !self.codes.is_packed() {
            return vec![b.bitcast(words, DType::U8)];
        }
        let (low, four) = (word(b, 0x0f0f_0f0f), word(b, 4));
        let high = b.ushr(words, four);
        let halves = [words, high].map(|half| {
            let half = b.and(half, low);
            let codes = b.bitcast(half, DType::U8);
            if self.codes == DType::F4E2M1 { b.lookup(E2M1, codes, DType::U8) } else { codes }
        });
        halves.to_vec()
    }
}

/// Twice the value of each code of e2m1, and twelve.
pub const E2M1: [u8; 16] = [12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0];

/// The rows that a grid index reads, as its columns want them. Everything is in vectors, one after the other.
pub struct Rows<'a> {
    desc: &'a Desc,
    bytes: Bytes,
    streamed: usize,
    rows: Option<Var>,
    /// How many rows there are.
    total: Value,
    cols: Option<Var>,
    codes: Buf,
    /// The scale of each lane.
    scales: Buf,
    /// Where the sum of each lane begins.
    starts: Option<Buf>,
    /// The scaled sum of each lane's elements.
    sums: Option<Buf>,
}

impl<'a> Rows<'a> {
    /// Memory for all rows.
    pub fn new(b: &mut Builder, desc: &'a Desc, s: &Schedule, bytes: Bytes, total: Value) -> Rows<'a> {
        let rows = s.rows.map_or(Dim::from(1i64), |m| desc.size(m).clone());
        let count = rows * bytes.vectors();
        let mut lanes = |name: &str, dtype: DType| b.alloc(name, dtype, [count.clone() * LANES]);
        let (scales, starts) = (lanes("scales", DType::F32), (bytes.bias() != 0).then(|| lanes("starts", DType::I32)));
        let sums = bytes.offsets.then(|| lanes("sums_of_rows", DType::F32));
        let codes = b.alloc("codes", DType::I8, [count * bytes.vector()]);
        Rows { desc, bytes, streamed: s.streamed, rows: s.rows, total, cols: s.cols, codes, scales, starts, sums }
    }

    fn streamed(&self) -> &'a Access {
        &self.desc.operands[self.streamed]
    }

    fn reused(&self) -> &'a Access {
        &self.desc.operands[1 - self.streamed]
    }

    /// Writes them all.
    pub fn write(&self, b: &mut Builder, env: &Env<'a>) {
        let zero = b.const_i64(0);
        let (v, main, rest) = (self.bytes.vector(), self.bytes.main(), self.bytes.rest());
        b.for_each(zero, self.total, 1, LoopKind::Serial, |b, m| {
            let env = self.rows.map_or(env.clone(), |rows| env.row(b, rows, m));
            let first = self.first(b, m);
            let whole = b.const_i64(main / v);
            b.for_each(zero, whole, 1, LoopKind::Serial, |b, i| {
                let (slot, size) = (b.add(first, i), b.const_i64(v));
                let at = b.mul(i, size);
                self.write_vector(b, &env, slot, at, 0);
            });
            for i in 0..rest {
                let at = self.bytes.size - (rest - i) * v;
                let (offset, at_value) = (b.const_i64(main / v + i), b.const_i64(at));
                let slot = b.add(first, offset);
                self.write_vector(b, &env, slot, at_value, main - at);
            }
        });
    }

    /// The vector that begins at an element, but for the elements that come before.
    fn write_vector(&self, b: &mut Builder, env: &Env<'a>, slot: Value, at: Value, before: i64) {
        let (v, lanes, x) = (self.bytes.vector(), LANES as u32, self.reused());
        let lane = v / LANES;
        let packed = self.bytes.codes.is_packed();
        let word = if packed { DType::I64 } else { DType::I32 };
        let place = env.with(self.bytes.k, at).at(b, &x.at);
        let loaded = b.load(env.bufs[x.param], &[place], v as u32);
        let mut words = b.bitcast(loaded, word);
        let number = b.iota(DType::I64, lanes);
        if before > 0 {
            let (first, zero) = (b.const_i64(before / lane), b.const_i64(0));
            let none = if packed { zero } else { b.const_i32(0) };
            let (first, none) = (b.splat(first, lanes), b.splat(none, lanes));
            let new = b.ge(number, first);
            words = b.select(new, words, none);
        }
        let halves = if packed { even_and_odd(b, words).to_vec() } else { vec![words] };
        let halves: Vec<Value> = halves.into_iter().map(|half| b.bitcast(half, DType::I8)).collect();
        let start = self.times(b, slot, v);
        for (i, half) in halves.iter().enumerate() {
            let offset = b.const_i64(i as i64 * 4 * LANES);
            let to = b.add(start, offset);
            b.store(self.codes, &[to], *half);
        }
        let to = self.times(b, slot, LANES);
        let total = |b: &mut Builder, by: i32| {
            let (by, none) = (b.const_i32(i32::from_ne_bytes([by as u8; 4])), b.const_i32(0));
            let by = b.splat(by, lanes);
            let (by, none) = (b.bitcast(by, DType::U8), b.splat(none, lanes));
            (halves.iter().fold(none, |sum, half| b.dot(by, *half, sum)), none)
        };
        if let Some(starts) = self.starts {
            let (share, none) = total(b, self.bytes.bias());
            let start = b.sub(none, share);
            b.store(starts, &[to], start);
        }
        // One scale after the other, each from the lane on where its group begins.
        let groups = &self.bytes.x;
        let mut scales = None;
        for j in 0..(v / groups.size).max(1) {
            let (offset, size) = (b.const_i64(j * groups.size), b.const_i64(groups.size));
            let first = b.add(at, offset);
            let group = b.div(first, size);
            let env = env.with(self.bytes.k, first);
            let env = groups.var.map_or(env.clone(), |var| env.with(var, group));
            let Some(scale) = env.scale(b, x) else { continue };
            let scale = b.splat(scale, lanes);
            scales = Some(match scales {
                None => scale,
                Some(before) => {
                    let from = b.const_i64(j * groups.size / lane);
                    let from = b.splat(from, lanes);
                    let reached = b.ge(number, from);
                    b.select(reached, scale, before)
                }
            });
        }
        let Some(scales) = scales else { return };
        if let Some(sums) = self.sums {
            let (total, _) = total(b, 1);
            let total = b.cast(total, DType::F32);
            let total = b.mul(total, scales);
            b.store(sums, &[to], total);
        }
        let unit = b.const_f32(self.bytes.unit());
        let unit = b.splat(unit, lanes);
        let scales = if self.bytes.unit() == 1.0 { scales } else { b.mul(scales, unit) };
        b.store(self.scales, &[to], scales);
    }

    /// The number of a row's first vector.
    fn first(&self, b: &mut Builder, m: Value) -> Value {
        self.times(b, m, self.bytes.vectors())
    }

    fn times(&self, b: &mut Builder, x: Value, by: i64) -> Value {
        let by = b.const_i64(by);
        b.mul(x, by)
    }

    /// The sums of some rows and columns.
    pub fn tile(&self, b: &mut Builder, rows: &[Env<'a>], columns: &[Value]) -> Vec<Value> {
        let zero = b.const_f32(0.0);
        let none = b.splat(zero, LANES as u32);
        let firsts: Vec<Value> = rows
            .iter()
            .map(|env| {
                let m = self.rows.and_then(|rows| env.bound[rows]).unwrap_or_else(|| b.const_i64(0));
                self.first(b, m)
            })
            .collect();
        let columns: Vec<Env<'a>> =
            columns.iter().map(|n| self.cols.map_or(rows[0].clone(), |cols| rows[0].with(cols, *n))).collect();
        let init = vec![none; rows.len() * columns.len()];
        let sums = if self.bytes.w.size >= self.bytes.vector() {
            self.long_groups(b, &firsts, &columns, init)
        } else {
            self.short_groups(b, &firsts, &columns, init)
        };
        let sums: Vec<Value> = sums.into_iter().map(|sum| b.reduce_lanes(ReduceOp::Add, sum)).collect();
        // What is not there gives nothing.
        let there = |b: &mut Builder, i: usize| {
            let reused = rows[i / columns.len()].found(b, self.reused());
            match (reused, columns[i % columns.len()].found(b, self.streamed())) {
                (Some(x), Some(w)) => Some(b.and(x, w)),
                (x, w) => x.or(w),
            }
        };
        let sums = sums.into_iter().enumerate().map(|(i, sum)| match there(b, i) {
            Some(there) => b.select(there, sum, zero),
            None => sum,
        });
        sums.collect()
    }

    /// Groups of whole registers: each vector's lanes are summed with the rows' scales, then multiplied by the group's.
    fn long_groups(&self, b: &mut Builder, rows: &[Value], columns: &[Env<'a>], mut sums: Vec<Value>) -> Vec<Value> {
        let bytes = &self.bytes;
        let (v, main, rest, groups) = (bytes.vector(), bytes.main(), bytes.rest(), bytes.w);
        let zero = b.const_i64(0);
        let single = groups.size == bytes.size;
        let each = if single { main / v } else { groups.size / v };
        let group = |b: &mut Builder, g: Value, (place, at): (Value, Value), count: i64, sums: &[Value]| {
            let mut next = sums.to_vec();
            let totals: Vec<Value> = rows.iter().filter_map(|row| self.total(b, *row, place, count)).collect();
            for (c, env) in columns.iter().enumerate() {
                let parts = self.parts(b, rows, env, (place, at), count);
                let by = groups.bind(b, env, bytes.k, g);
                let (scale, offset) = (by.scale(b, self.streamed()), by.offset(b, self.streamed()));
                for (r, part) in parts.into_iter().enumerate() {
                    let i = r * columns.len() + c;
                    if let Some(scale) = scale {
                        next[i] = b.fma(part, scale, next[i]);
                    }
                    if let (Some(offset), Some(total)) = (offset, totals.get(r)) {
                        next[i] = b.fma(*total, offset, next[i]);
                    }
                }
            }
            next
        };
        if main > 0 {
            let count = b.const_i64(if single { 1 } else { main / groups.size });
            sums = b.for_loop(zero, count, 1, LoopKind::Serial, &sums, |b, g, sums| {
                let (place, at) = (self.times(b, g, each), self.times(b, g, groups.size));
                group(b, g, (place, at), each, sums)
            });
        }
        if rest > 0 {
            let (place, at) = (b.const_i64(main / v), b.const_i64(bytes.size - rest * v));
            let last = b.const_i64((bytes.size - 1) / groups.size);
            sums = group(b, last, (place, at), rest, &sums);
        }
        sums
    }

    /// Groups of which a register has several: the scales of sixteen are spread over the lanes of as many vectors as they
    /// have.
    fn short_groups(&self, b: &mut Builder, rows: &[Value], columns: &[Env<'a>], mut sums: Vec<Value>) -> Vec<Value> {
        let bytes = &self.bytes;
        let (v, main, rest, groups) = (bytes.vector(), bytes.main(), bytes.rest(), bytes.w.size);
        let run = groups * LANES;
        let each = run / v;
        let zero = b.const_i64(0);
        // So many vectors from `skip` on of the sixteen groups that begin with number `g`.
        let all = |b: &mut Builder, (g, at, place): (Value, Value, Value), skip: i64, sums: &[Value]| {
            let mut next = sums.to_vec();
            for (c, env) in columns.iter().enumerate() {
                let [scales, offsets] = [0, 1].map(|part| self.spread(b, env, (g, at), part, None));
                for j in skip..each {
                    let (slot, offset) = (b.const_i64(j - skip), b.const_i64(j * v));
                    let (slot, k) = (b.add(place, slot), b.add(at, offset));
                    let parts = self.parts(b, rows, env, (slot, k), 1);
                    for (r, row) in rows.iter().enumerate() {
                        let i = r * columns.len() + c;
                        next[i] = b.fma(parts[r], scales[j as usize], next[i]);
                        if let (Some(m), Some(total)) = (offsets.get(j as usize), self.total(b, *row, slot, 1)) {
                            next[i] = b.fma(total, *m, next[i]);
                        }
                    }
                }
            }
            next
        };
        if main > 0 {
            let count = b.const_i64(main / run);
            sums = b.for_loop(zero, count, 1, LoopKind::Serial, &sums, |b, r, sums| {
                let (g, at, place) = (self.times(b, r, LANES), self.times(b, r, run), self.times(b, r, each));
                all(b, (g, at, place), 0, sums)
            });
        }
        if rest > 0 {
            let place = b.const_i64(main / v);
            if bytes.size >= run {
                let (g, at) = (b.const_i64(bytes.size / groups - LANES), b.const_i64(bytes.size - run));
                sums = all(b, (g, at, place), each - rest, &sums);
            } else {
                // Fewer than sixteen groups: vectors begin with the row.
                let count = b.const_i64(bytes.size / groups);
                let mask = b.lanes_below(zero, count, LANES as u32);
                sums = self.few(b, rows, columns, (zero, mask), sums);
            }
        }
        sums
    }

    /// A row of fewer than sixteen groups.
    fn few(
        &self,
        b: &mut Builder,
        rows: &[Value],
        columns: &[Env<'a>],
        (zero, mask): (Value, Value),
        mut sums: Vec<Value>,
    ) -> Vec<Value> {
        let v = self.bytes.vector();
        for (c, env) in columns.iter().enumerate() {
            let [scales, offsets] = [0, 1].map(|part| self.spread(b, env, (zero, zero), part, Some(mask)));
            for j in 0..self.bytes.rest() {
                let (slot, k) = (b.const_i64(j), b.const_i64(j * v));
                let parts = self.parts(b, rows, env, (slot, k), 1);
                for (r, row) in rows.iter().enumerate() {
                    let i = r * columns.len() + c;
                    sums[i] = b.fma(parts[r], scales[j as usize], sums[i]);
                    if let (Some(m), Some(total)) = (offsets.get(j as usize), self.total(b, *row, slot, 1)) {
                        sums[i] = b.fma(total, *m, sums[i]);
                    }
                }
            }
        }
        sums
    }

    /// The scales of sixteen groups from number `g` on, or their offsets, one vector for every vector of these groups.
    fn spread(
        &self,
        b: &mut Builder,
        env: &Env<'a>,
        (g, at): (Value, Value),
        part: usize,
        mask: Option<Value>,
    ) -> Vec<Value> {
        let (bytes, w, lanes) = (&self.bytes, self.streamed(), LANES as u32);
        let Some(access) = [&w.scale, &w.offset][part].as_deref() else { return Vec::new() };
        let env = bytes.w.bind(b, &env.with(bytes.k, at), bytes.k, g);
        let mut all = env.load(b, access, lanes, mask);
        if let (Some(over), Some(scale)) = (bytes.over[part], access.scale.as_deref()) {
            let run = LANES * bytes.w.size;
            let (number, unit) = (b.iota(DType::I64, lanes), b.const_i64(over.size));
            let first = b.div(at, unit);
            let mut by: Option<Value> = None;
            for j in 0..(run / over.size).max(1) {
                let offset = b.const_i64(j);
                let number_of = b.add(first, offset);
                // Past the end there is nothing, and nothing is multiplied with it.
                let count = b.const_i64(bytes.size / over.size - 1);
                let number_of = b.min(number_of, count);
                let env = over.var.map_or(env.clone(), |var| env.with(var, number_of));
                let x = env.load(b, scale, 1, None);
                let x = b.splat(x, lanes);
                by = Some(match by {
                    None => x,
                    Some(before) => {
                        let from = b.const_i64(j * over.size / bytes.w.size);
                        let from = b.splat(from, lanes);
                        let reached = b.ge(number, from);
                        b.select(reached, x, before)
                    }
                });
            }
            all = by.map_or(all, |by| b.mul(all, by));
        }
        let mut vectors = vec![all];
        while (vectors.len() as i64) < LANES * bytes.w.size / bytes.vector() {
            vectors = vectors.iter().flat_map(|v| [Half::Low, Half::High].map(|half| b.zip(half, *v, *v))).collect();
        }
        vectors
    }

    /// For each row the products of so many vectors of a column, with the row's scales.
    fn parts(
        &self,
        b: &mut Builder,
        rows: &[Value],
        column: &Env<'a>,
        (place, at): (Value, Value),
        count: i64,
    ) -> Vec<Value> {
        let zero = b.const_f32(0.0);
        let none = vec![b.splat(zero, LANES as u32); rows.len()];
        let (first, end) = (b.const_i64(0), b.const_i64(count));
        if count > UNROLLED {
            return b.for_loop(first, end, 1, LoopKind::Serial, &none, |b, i, sums| {
                let (place, at) = self.vector(b, (place, at), i);
                self.part(b, rows, column, (place, at), Some(sums))
            });
        }
        (0..count).fold(Vec::new(), |sums, i| {
            let i = b.const_i64(i);
            let (place, at) = self.vector(b, (place, at), i);
            self.part(b, rows, column, (place, at), (!sums.is_empty()).then_some(&sums))
        })
    }

    /// One vector of a column.
    fn part(
        &self,
        b: &mut Builder,
        rows: &[Value],
        column: &Env<'a>,
        (place, at): (Value, Value),
        sums: Option<&[Value]>,
    ) -> Vec<Value> {
        let (bytes, w, lanes) = (&self.bytes, self.streamed(), LANES as u32);
        let from = column.with(bytes.k, at).at(b, &w.at);
        let codes = b.load(column.bufs[w.param], &[from], bytes.vector() as u32);
        let codes = bytes.unsigned(b, codes);
        let products = rows.iter().enumerate().map(|(r, row)| {
            let slot = b.add(*row, place);
            let at = self.times(b, slot, LANES);
            let mut sum = match self.starts {
                Some(starts) => b.load(starts, &[at], lanes),
                None => {
                    let none = b.const_i32(0);
                    b.splat(none, lanes)
                }
            };
            let start = self.times(b, slot, bytes.vector());
            for (i, codes) in codes.iter().enumerate() {
                let offset = b.const_i64(i as i64 * 4 * LANES);
                let from = b.add(start, offset);
                let x = b.load(self.codes, &[from], 4 * lanes);
                sum = b.dot(*codes, x, sum);
            }
            let (part, scales) = (b.cast(sum, DType::F32), b.load(self.scales, &[at], lanes));
            match sums {
                Some(sums) => b.fma(part, scales, sums[r]),
                None => b.mul(part, scales),
            }
        });
        products.collect()
    }

    /// The scaled sum of a row's elements in so many vectors, where offsets are multiplied with it.
    fn total(&self, b: &mut Builder, row: Value, place: Value, count: i64) -> Option<Value> {
        let sums = self.sums?;
        let slot = b.add(row, place);
        let at = self.times(b, slot, LANES);
        let (lanes, step) = (LANES as u32, b.const_i64(LANES));
        let first = b.load(sums, &[at], lanes);
        let (next, end) = (b.add(at, step), self.times(b, slot, LANES));
        let length = b.const_i64(count * LANES);
        let end = b.add(end, length);
        Some(
            b.for_loop(next, end, LANES, LoopKind::Serial, &[first], |b, at, sum| {
                let more = b.load(sums, &[at], lanes);
                vec![b.add(sum[0], more)]
            })[0],
        )
    }

    fn vector(&self, b: &mut Builder, (place, at): (Value, Value), i: Value) -> (Value, Value) {
        let offset = self.times(b, i, self.bytes.vector());
        (b.add(place, i), b.add(at, offset))
    }
}

/// The even bytes of words of eight, and the odd ones, four to a word of half the size.
fn even_and_odd(b: &mut Builder, words: Value) -> [Value; 2] {
    let lanes = b.ty(words).lanes;
    let constant = |b: &mut Builder, x: i64| {
        let x = b.const_i64(x);
        b.splat(x, lanes)
    };
    [0, 8].map(|first| {
        let by = constant(b, first);
        let mut x = if first == 0 { words } else { b.ushr(words, by) };
        for (shift, keep) in [(0, 0x00ff_00ff_00ff_00ff), (8, 0x0000_ffff_0000_ffff), (16, 0xffff_ffff)] {
            if shift > 0 {
                let by = constant(b, shift);
                let moved = b.ushr(x, by);
                x = b.or(x, moved);
            }
            let keep = constant(b, keep);
            x = b.and(x, keep);
        }
        b.cast(x, DType::I32)
    })
}
