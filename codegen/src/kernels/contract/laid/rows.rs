//! Rows of a tile as the panels of a grid index want them, written once for all of these.
//!
//! Factors that are read as they lie in memory are not written: f32, pairs of bf16, and bytes that meet bytes. Others
//! become f32, and bytes that meet nibbles are put in the order of these, those of even elements before those of odd
//! ones. Beside them: for each part of a row where the sums of its products begin, and its sum of elements, scaled.

use super::super::emit::{Env, in_vectors, load_f32};
use super::super::schedule::plain;
use super::cell::Cell;
use super::{LANES, codes};
use hadal_ir::kernel::{Buf, Builder, LoopKind, ReduceOp, Value};
use hadal_types::DType;

/// Bytes that are put in order at a time.
const ORDERED: i64 = 64;

/// A buffer for the rows of a tile, and how far apart they are.
type Written = (Buf, i64);

/// Memory for the rows of a tile.
#[derive(Clone, Copy)]
pub struct Rows {
    factors: Option<Written>,
    starts: Option<Written>,
    totals: Option<Written>,
}

/// A row of a tile: where its factors begin in which buffer, those of the chunk; and what there is of its parts.
pub struct Row<'a> {
    env: Env<'a>,
    factors: Buf,
    base: Value,
    starts: Option<(Buf, Value)>,
    totals: Option<(Buf, Value)>,
}

impl Rows {
    /// For tiles of so many rows and `depth` summed elements.
    pub fn new(b: &mut Builder, cell: &Cell<'_, '_>, height: i64, depth: i64) -> Rows {
        let (s, w, x) = (cell.s, cell.w, cell.x);
        let parts = cell.laid.part.map_or(0, |part| (depth + part - 1) / part);
        let ordered = s.quads && w.dtype.is_packed();
        let mut of = |name: &str, dtype: DType, room: i64| (b.alloc(name, dtype, [height * room]), room);
        let room = |unit: i64| (depth + unit - 1) / unit * unit;
        let factors = match () {
            () if ordered => Some(of("rows", DType::I8, room(ORDERED))),
            () if s.quads || s.pairs && x.dtype == DType::BF16 || plain(cell.desc, x) => None,
            () if s.pairs => Some(of("rows", DType::BF16, room(LANES))),
            () => Some(of("rows", DType::F32, room(LANES))),
        };
        let starts = (s.quads && codes::bias(w.dtype) != 0).then(|| of("starts", DType::I32, parts));
        let totals = w.offset.is_some().then(|| of("totals", DType::F32, parts));
        Rows { factors, starts, totals }
    }

    /// Writes row `i` of a tile: `length` summed elements from line `from` on, of which part `part` is the first.
    pub fn write<'a>(
        self,
        b: &mut Builder,
        cell: &Cell<'_, 'a>,
        (i, env): (i64, Env<'a>),
        (from, part): (Value, Value),
        length: i64,
    ) -> Row<'a> {
        let x = cell.x;
        let (buf, base) = (env.bufs[x.param], env.with(cell.laid.line, from).at(b, &x.at));
        let place = |b: &mut Builder, written: Option<Written>| written.map(|(buf, room)| (buf, b.const_i64(i * room)));
        let (starts, totals) = (place(b, self.starts), place(b, self.totals));
        let row = match place(b, self.factors) {
            None => Row { env, factors: buf, base, starts, totals },
            Some((to, first)) => {
                match b.dtype(to) {
                    DType::F32 | DType::BF16 => convert(b, (buf, base), (to, first), length),
                    _ => order(b, (buf, base), (to, first), self.half(), length),
                }
                Row { env, factors: to, base: first, starts, totals }
            }
        };
        if let Some(size) = cell.laid.part.filter(|_| starts.is_some() || totals.is_some()) {
            let (zero, whole) = (b.const_i64(0), b.const_i64(length / size));
            let sum = |b: &mut Builder, at: Value, length: i64| {
                let offset = cell.times(b, at, size);
                let first = b.add(base, offset);
                row.sum(b, cell, (first, part, at), length);
            };
            b.for_each(zero, whole, 1, LoopKind::Serial, |b, at| sum(b, at, size));
            if length % size > 0 {
                sum(b, whole, length % size);
            }
        }
        row
    }

    /// How far the bytes of odd elements are behind those of even ones.
    fn half(self) -> i64 {
        self.factors.map_or(0, |(_, room)| room / 2)
    }

    /// The factors at a line of the chunk for one of its vectors.
    pub fn factor(self, b: &mut Builder, cell: &Cell<'_, '_>, row: &Row<'_>, line: Value, vector: i64) -> Value {
        let (lanes, word) = (LANES as u32, cell.laid.word);
        let ordered = cell.s.quads && word == 8;
        let at = cell.times(b, line, if ordered { 4 } else { word });
        let at = b.add(row.base, at);
        let together = match () {
            () if cell.s.quads => 4,
            () if cell.s.pairs => 2,
            () => 1,
        };
        let offset = b.const_i64(vector * if ordered { self.half() } else { together });
        let at = b.add(at, offset);
        let x = b.load(row.factors, &[at], together as u32);
        if together == 1 {
            return b.splat(x, lanes);
        }
        let (format, x) = (b.ty(x).elem, b.bitcast(x, DType::I32));
        let words = b.splat(x, lanes);
        b.bitcast(words, format)
    }
}

impl<'a> Row<'a> {
    /// Sums a part's elements, for where sums of products begin and what offsets are multiplied with.
    fn sum(&self, b: &mut Builder, cell: &Cell<'_, 'a>, (first, part, at): (Value, Value, Value), size: i64) {
        let x = cell.x;
        let buf = self.env.bufs[x.param];
        let put = |b: &mut Builder, to: Option<(Buf, Value)>, sum: Value| {
            if let Some((buf, line)) = to {
                let to = b.add(line, at);
                b.store(buf, &[to], sum);
            }
        };
        let (zero, end) = (b.const_i64(0), b.const_i64(size));
        let total = if cell.s.quads {
            let lanes = [64u32, 32, 16, 8].into_iter().find(|n| size % i64::from(*n) == 0).unwrap_or(4);
            let (ones, none) = (b.const_i32(0x0101_0101), b.const_i32(0));
            let (ones, none) = (b.splat(ones, lanes / 4), b.splat(none, lanes / 4));
            let ones = b.bitcast(ones, DType::U8);
            let sums = in_vectors(b, lanes, (zero, end, Some(size)), vec![none], &|b, k, _, sum| {
                let k = b.add(first, k);
                let x = b.load(buf, &[k], lanes);
                vec![b.dot(ones, x, sum[0])]
            });
            let total = b.reduce_lanes(ReduceOp::Add, sums[0]);
            let bias = b.const_i32(-codes::bias(cell.w.dtype));
            let start = b.mul(total, bias);
            put(b, self.starts, start);
            if self.totals.is_none() {
                return;
            }
            b.cast(total, DType::F32)
        } else {
            let none = cell.zero(b);
            let sums = in_vectors(b, LANES as u32, (zero, end, Some(size)), vec![none], &|b, k, mask, sum| {
                let k = b.add(first, k);
                let x = load_f32(b, buf, k, LANES as u32, mask);
                vec![b.add(sum[0], x)]
            });
            b.reduce_lanes(ReduceOp::Add, sums[0])
        };
        let number = b.add(part, at);
        let total = match self.scale(b, cell, number) {
            Some(scale) => b.mul(total, scale),
            None => total,
        };
        put(b, self.totals, total);
    }

    /// The scale of a part of the row.
    pub fn scale(&self, b: &mut Builder, cell: &Cell<'_, 'a>, part: Value) -> Option<Value> {
        let scale = cell.x_scale.as_ref()?;
        let base = scale.base(b, &self.env);
        Some(scale.value(b, cell, &base, part))
    }

    /// Where the sums of a part begin, and its scaled sum of elements, by its number in the chunk.
    pub fn of_part(&self, b: &mut Builder, at: Value) -> (Option<Value>, Option<Value>) {
        let load = |b: &mut Builder, from: Option<(Buf, Value)>| {
            from.map(|(buf, line)| {
                let at = b.add(line, at);
                b.load(buf, &[at], 1)
            })
        };
        (load(b, self.starts), load(b, self.totals))
    }
}

/// Consecutive elements as f32, or as bf16 where that holds them.
fn convert(b: &mut Builder, from: (Buf, Value), to: (Buf, Value), length: i64) {
    let lanes = LANES as u32;
    let step = |b: &mut Builder, at: Value, mask: Option<Value>| {
        let k = b.add(from.1, at);
        let x = load_f32(b, from.0, k, lanes, mask);
        let (at, format) = (b.add(to.1, at), b.dtype(to.0));
        let x = b.cast(x, format);
        // There is room for lanes beyond the end.
        b.store(to.0, &[at], x);
    };
    let (zero, whole) = (b.const_i64(0), b.const_i64(length / LANES * LANES));
    b.for_each(zero, whole, LANES, LoopKind::Serial, |b, at| step(b, at, None));
    if length % LANES > 0 {
        let end = b.const_i64(length);
        let mask = b.lanes_below(whole, end, lanes);
        step(b, whole, Some(mask));
    }
}

/// Consecutive bytes, those of even elements and, `half` behind, those of odd ones.
fn order(b: &mut Builder, from: (Buf, Value), to: (Buf, Value), half: i64, length: i64) {
    let lanes = ORDERED as u32;
    let step = |b: &mut Builder, at: Value, mask: Option<Value>| {
        let k = b.add(from.1, at);
        let x = match mask {
            Some(mask) => b.load_masked(from.0, &[k], mask, None),
            None => b.load(from.0, &[k], lanes),
        };
        let words = b.bitcast(x, DType::I64);
        let two = b.const_i64(2);
        let at = b.div(at, two);
        let at = b.add(to.1, at);
        for (i, bytes) in even_and_odd(b, words).into_iter().enumerate() {
            let offset = b.const_i64(i as i64 * half);
            let to_here = b.add(at, offset);
            let bytes = b.bitcast(bytes, DType::I8);
            b.store(to.0, &[to_here], bytes);
        }
    };
    let (zero, whole) = (b.const_i64(0), b.const_i64(length / ORDERED * ORDERED));
    b.for_each(zero, whole, ORDERED, LoopKind::Serial, |b, at| step(b, at, None));
    if length % ORDERED > 0 {
        let end = b.const_i64(length);
        let mask = b.lanes_below(whole, end, lanes);
        step(b, whole, Some(mask));
    }
}

/// The bytes of words of eight: four times those at even places, and those at odd ones.
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
