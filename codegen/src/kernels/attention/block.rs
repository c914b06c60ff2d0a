//! What happens in a block of keys: scores, their softmax, the weighted sum of values.

use super::desc::{Columns, Set, Term};
use super::emit::{Cell, HIDDEN, padded};
use super::schedule::{KEYS, Schedule};
use crate::kernels::contract::emit::{Env, in_vectors, load_f32};
use hadal_ir::kernel::{Buf, Builder, LoopKind, ReduceOp, Value};
use hadal_types::DType;

/// Keys whose values are added in one go. Code generators that place sums where they are used compute one sum after the
/// other: more keys would be more registers.
const UNROLL: i64 = 2;

/// Bytes of a cache line.
const LINE: i64 = 64;

/// Where what a set reads is held.
pub(super) struct Layout<'a> {
    pub set: &'a Set,
    /// Where each term's query begins in a query row, and its key in a row of the block.
    pub terms: Vec<(i64, Option<i64>)>,
    /// Where each part of the values begins in a row of the block.
    values: Vec<Option<i64>>,
    /// What is converted, and where to.
    sources: Vec<(&'a Columns, i64)>,
    /// Elements of a row of the block.
    pub stride: i64,
    /// Elements of a row of queries.
    pub query_width: i64,
    /// Elements of a row of outputs.
    pub width: i64,
}

impl<'a> Layout<'a> {
    pub(super) fn new(set: &'a Set, s: &Schedule) -> Layout<'a> {
        let lanes = i64::from(s.tiles.lanes);
        let mut sources: Vec<(&Columns, i64)> = Vec::new();
        let mut end = 0;
        let mut place = |columns: &'a Columns| {
            let known = sources.iter().find(|(c, _)| c.at == columns.at && c.size == columns.size);
            if let Some((_, at)) = known {
                return Some(*at);
            }
            // Scales are multiplied once, and narrow formats cost more to convert than to multiply.
            let needed = columns.at.scale.is_some() || columns.at.dtype.bits() <= 8;
            if !s.staged && !needed {
                return None;
            }
            sources.push((columns, end));
            end += padded(columns.size, lanes);
            Some(end - padded(columns.size, lanes))
        };
        let mut query_width = 0;
        let mut terms = Vec::new();
        for term in &set.terms {
            terms.push((query_width, place(&term.key)));
            query_width += padded(term.key.size, lanes);
        }
        let values: Vec<Option<i64>> = set.values.iter().map(&mut place).collect();
        // An odd number of cache lines, so that rows do not all fall into the same few places of a cache.
        let stride = if end == 0 { 0 } else { padded(end + 16, 32) - 16 };
        let width = set.values.iter().map(|v| v.start + padded(v.size, lanes)).max().unwrap_or(0);
        Layout { set, terms, values, sources, stride, query_width, width }
    }
}

/// Some rows of a set.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    pub layout: &'a Layout<'a>,
    /// The first row, where they are consecutive.
    pub start: Value,
    /// How many.
    pub count: Value,
    /// Where their numbers are, where they are not.
    pub list: Option<Buf>,
    /// Rows before the first query's own, where queries do not see those after it.
    pub before: Option<Value>,
}

impl<'a> Cell<'a> {
    pub(super) fn block(&self, b: &mut Builder, block: Block<'a>) {
        let zero = b.const_i64(0);
        self.convert(b, block);
        match self.turned {
            Some(turned) => self.scores_by_column(b, turned, block),
            // A tile of keys meets all rows while it is near.
            None => b.for_each(zero, block.count, self.at.s.tiles.keys, LoopKind::Serial, |b, j| {
                b.for_each(zero, self.at.rows, self.at.s.tiles.rows, LoopKind::Serial, |b, r| {
                    self.score(b, (r, j), block)
                });
            }),
        }
        self.soften(b, block);
        for (part, columns) in block.layout.set.values.iter().enumerate() {
            self.accumulate(b, (part, columns), block);
        }
    }

    /// With the row of keys and values bound that is the `j`-th of a block.
    pub(super) fn key(&self, b: &mut Builder, block: Block<'a>, j: Value) -> Env<'a> {
        let row = match block.list {
            Some(list) => b.load(list, &[j], 1),
            None => b.add(block.start, j),
        };
        self.at.env.with(block.layout.set.key, row)
    }

    /// Where the `j`-th row of a block holds the keys of a term: in what is staged, or where they lie.
    pub(super) fn place(
        &self,
        b: &mut Builder,
        block: Block<'a>,
        (term, staged): (&Term, Option<i64>),
        j: Value,
    ) -> (Buf, Value) {
        match (staged, self.staged) {
            (Some(at), Some(buf)) => {
                let (stride, at) = (b.const_i64(block.layout.stride), b.const_i64(at));
                let row = b.mul(j, stride);
                (buf, b.add(row, at))
            }
            _ => {
                let key = self.key(b, block, j);
                (key.bufs[term.key.at.param], key.at(b, &term.key.at.at))
            }
        }
    }

    /// Asks for the place of column `from` a block further on than the `j`-th row. It is done one by one between
    /// multiply-adds, that memory has something to do all the time: what is asked for in a burst holds up all loads
    /// after it.
    fn prefetch(&self, b: &mut Builder, (j, from): (Value, Value), columns: &Columns, block: Block<'a>) {
        let keys = b.const_i64(KEYS);
        let next = b.add(j, keys);
        let key = self.key(b, block, next).with(columns.column, from);
        let at = key.at(b, &columns.at.at);
        b.prefetch(key.bufs[columns.at.param], &[at]);
    }

    /// Whether the next block is asked for.
    fn asks(&self, block: Block<'a>) -> bool {
        self.at.s.tiles.ahead && block.list.is_none()
    }

    /// Of `n` things to ask for the first that falls to a tile of rows, and how many do; tiles of one query share them.
    fn turn(&self, b: &mut Builder, row: Value, n: i64) -> (Value, i64) {
        if n == 0 {
            return (row, 0);
        }
        let tiles = (self.at.s.heads + self.at.s.tiles.rows - 1) / self.at.s.tiles.rows;
        let each = (n + tiles - 1) / tiles;
        let (unit, count) = (b.const_i64(self.at.s.tiles.rows), b.const_i64(each));
        let tile = b.div(row, unit);
        (b.mul(tile, count), each)
    }

    /// Brings a block's keys and values together in f32, with their scales, each filled up with zeros.
    fn convert(&self, b: &mut Builder, block: Block<'a>) {
        let Some(staged) = self.staged.filter(|_| !block.layout.sources.is_empty()) else { return };
        let (zero, stride) = (b.const_i64(0), b.const_i64(block.layout.stride));
        b.for_each(zero, block.count, 1, LoopKind::Serial, |b, j| {
            let (key, row) = (self.key(b, block, j), b.mul(j, stride));
            for (columns, at) in &block.layout.sources {
                let at = b.const_i64(*at);
                let to = b.add(row, at);
                self.convert_row(b, columns, (&key, j), (staged, to), block);
            }
        });
    }

    fn convert_row(
        &self,
        b: &mut Builder,
        columns: &Columns,
        (key, j): (&Env<'a>, Value),
        (staged, to): (Buf, Value),
        block: Block<'a>,
    ) {
        let Columns { at, column, size, .. } = columns;
        let buf = key.bufs[at.param];
        let from = key.at(b, &at.at);
        let copy =
            |b: &mut Builder, lanes: u32, (lo, hi): (Value, Value), length: Option<i64>, scale: Option<Value>| {
                in_vectors(b, lanes, (lo, hi, length), Vec::new(), &|b, k, mask, _| {
                    if self.asks(block) {
                        self.prefetch(b, (j, k), columns, block);
                    }
                    let at = b.add(from, k);
                    let x = load_f32(b, buf, at, lanes, mask);
                    let x = scale.map_or(x, |s| b.mul(x, s));
                    let to = b.add(to, k);
                    b.store(staged, &[to], x);
                    Vec::new()
                });
            };
        let (zero, end) = (b.const_i64(0), b.const_i64(*size));
        // Bytes are converted in whole registers.
        let wide = self.at.s.tiles.lanes.max(if at.dtype.bits() <= 8 { 16 } else { 8 });
        let lanes = if size % i64::from(wide) == 0 { wide } else { self.at.s.tiles.lanes };
        match columns.block.filter(|n| n < size) {
            None => {
                let scale = key.scale(b, at);
                copy(b, lanes, (zero, end), Some(*size), scale);
            }
            Some(n) => {
                let lanes = [lanes, 32, 16].into_iter().find(|l| *l <= lanes && n % i64::from(*l) == 0).unwrap_or(1);
                b.for_each(zero, end, n, LoopKind::Serial, |b, lo| {
                    let scale = key.with(*column, lo).scale(b, at);
                    let unit = b.const_i64(n);
                    let hi = b.add(lo, unit);
                    let hi = if size % n == 0 { hi } else { b.min(hi, end) };
                    copy(b, lanes, (lo, hi), (size % n == 0).then_some(n), scale);
                });
                // Vectors of one lane leave the last whole one to be filled up.
                let filled = padded(*size, i64::from(self.at.s.tiles.lanes));
                let (none, filled) = (b.const_f32(0.0), b.const_i64(filled));
                b.for_each(end, filled, 1, LoopKind::Serial, |b, k| {
                    let to = b.add(to, k);
                    b.store(staged, &[to], none);
                });
            }
        }
    }

    /// Scores of a tile of rows and of keys.
    fn score(&self, b: &mut Builder, (first, j): (Value, Value), block: Block<'a>) {
        let tiles = self.at.s.tiles;
        let (zero, one, none) = (b.const_i64(0), b.const_i64(1), b.const_f32(0.0));
        let none = b.splat(none, tiles.lanes);
        let last = b.sub(block.count, one);
        let at = |b: &mut Builder, i: i64, first: Value, stride: i64| {
            let (i, stride) = (b.const_i64(i), b.const_i64(stride));
            let i = b.add(first, i);
            b.mul(i, stride)
        };
        let queries: Vec<Value> = (0..tiles.rows).map(|i| at(b, i, first, self.query_width)).collect();
        // Beyond the last key there is only room for scores.
        let keys: Vec<Value> = (0..tiles.keys)
            .map(|i| {
                let i = b.const_i64(i);
                let j = b.add(j, i);
                if tiles.keys == 1 { j } else { b.min(j, last) }
            })
            .collect();
        let (turn, each) = self.turn(b, first, if self.asks(block) { tiles.keys } else { 0 });
        let next = b.add(j, turn);
        let mut sums = vec![none; queries.len() * keys.len()];
        let mut terms = block.layout.set.terms.iter().zip(&block.layout.terms).peekable();
        while let Some((term, (query, staged))) = terms.next() {
            let mut size = term.key.size;
            // Staged terms that follow each other are one.
            while let (Some(at), Some((more, (_, next)))) = (staged, terms.peek()) {
                if *next != Some(at + padded(size, i64::from(tiles.lanes))) {
                    break;
                }
                size = padded(size, i64::from(tiles.lanes)) + more.key.size;
                terms.next();
            }
            let start = b.const_i64(*query);
            let mut parts: Vec<(Buf, Value)> = Vec::new();
            for q in &queries {
                parts.push((self.query, b.add(*q, start)));
            }
            for j in &keys {
                parts.push(self.place(b, block, (term, *staged), *j));
            }
            // Both are filled up with zeros, but for keys where they lie.
            let size = if staged.is_some() { padded(size, i64::from(tiles.lanes)) } else { size };
            let end = b.const_i64(size);
            sums = in_vectors(b, tiles.lanes, (zero, end, Some(size)), sums, &|b, k, mask, sums| {
                let load = |b: &mut Builder, (i, (buf, base)): (usize, &(Buf, Value))| {
                    let at = b.add(*base, k);
                    load_f32(b, *buf, at, tiles.lanes, mask.filter(|_| i >= queries.len()))
                };
                for i in (0..each).filter(|_| staged.is_none()) {
                    let i = b.const_i64(i);
                    let next = b.add(next, i);
                    self.prefetch(b, (next, k), &term.key, block);
                }
                let x: Vec<Value> = parts.iter().enumerate().map(|p| load(b, p)).collect();
                let (q, k) = x.split_at(queries.len());
                sums.iter().enumerate().map(|(i, sum)| b.fma(q[i / k.len()], k[i % k.len()], *sum)).collect()
            });
        }
        self.store_scores(b, (first, j), &sums);
    }

    /// Stores the scores of a tile, the lanes of a vector each: as many of them as there are lanes become one vector.
    fn store_scores(&self, b: &mut Builder, (first, j): (Value, Value), sums: &[Value]) {
        let (lanes, keys) = (self.at.s.tiles.lanes as usize, self.at.s.tiles.keys as usize);
        let warp = lanes >= 32;
        let at = |b: &mut Builder, i: usize| {
            let row = b.const_i64((i / keys) as i64);
            let row = b.add(first, row);
            self.score_at(b, row, j, (i % keys) as i64)
        };
        if warp {
            // Lanes of a warp exchange what they add.
            for (i, sum) in sums.iter().enumerate() {
                let (at, score) = (at(b, i), b.reduce_lanes(ReduceOp::Add, *sum));
                b.store(self.scores, &[at], score);
            }
            return;
        }
        for (n, group) in sums.chunks(lanes).enumerate() {
            let start = n * lanes;
            // What fills up a vector is not stored.
            let mut rows = group.to_vec();
            rows.resize(lanes, group[0]);
            let scores = b.sum_each(rows);
            // Neighbours of a row are stored at once.
            let mut i = start;
            while i < start + group.len() {
                let end = (i / keys * keys + keys).min(start + group.len());
                let (lane, count) = (i - start, end - i);
                if count == lanes {
                    let at = at(b, i);
                    b.store(self.scores, &[at], scores);
                } else if lanes < 16 {
                    for k in i..end {
                        let (at, score) = (at(b, k), b.extract(scores, (k - start) as u32));
                        b.store(self.scores, &[at], score);
                    }
                } else {
                    let number = b.iota(DType::I32, lanes as u32);
                    let [from, to] = [lane, lane + count].map(|k| {
                        let k = b.const_i32(k as i32);
                        b.splat(k, lanes as u32)
                    });
                    let (after, before) = (b.ge(number, from), b.lt(number, to));
                    let mask = b.and(after, before);
                    let (at, back) = (at(b, i), b.const_i64(lane as i64));
                    let at = b.sub(at, back);
                    b.store_masked(self.scores, &[at], scores, mask);
                }
                i = end;
            }
        }
    }

    pub(super) fn score_at(&self, b: &mut Builder, row: Value, key: Value, offset: i64) -> Value {
        let (width, offset) = (b.const_i64(self.at.s.scores()), b.const_i64(offset));
        let row = b.mul(row, width);
        let at = b.add(row, key);
        b.add(at, offset)
    }

    /// How many of a block's keys a row sees: the first ones.
    fn visible(&self, b: &mut Builder, row: Value, block: Block<'a>) -> Value {
        let Some(before) = block.before else { return block.count };
        let (zero, one) = (b.const_i64(0), b.const_i64(1));
        let query = self.at.query(b, row);
        let seen = b.add(query, before);
        let seen = b.add(seen, one);
        let here = b.sub(seen, block.start);
        let here = b.max(here, zero);
        b.min(here, block.count)
    }

    /// Scores to weights, and what that does to the sums of each row.
    fn soften(&self, b: &mut Builder, block: Block<'a>) {
        let (zero, keys, step) = (b.const_i64(0), b.const_i64(KEYS), i64::from(self.at.s.tiles.wide));
        let (hidden, wide) = (b.const_f32(HIDDEN), self.at.s.tiles.wide);
        let scores = |b: &mut Builder, row: Value, i: i64| {
            let at = self.score_at(b, row, zero, i * step);
            (at, b.load(self.scores, &[at], wide))
        };
        let vectors = KEYS / step;
        // The largest one of each row, for now in the place of its correction.
        b.for_each(zero, self.at.rows, 1, LoopKind::Serial, |b, row| {
            let visible = self.visible(b, row, block);
            b.for_each(visible, keys, 1, LoopKind::Serial, |b, j| {
                let at = self.score_at(b, row, j, 0);
                b.store(self.scores, &[at], hidden);
            });
            let all: Vec<Value> = (0..vectors).map(|i| scores(b, row, i).1).collect();
            let most = all.into_iter().reduce(|a, c| b.max(a, c)).unwrap_or(hidden);
            let most = b.reduce_lanes(ReduceOp::Max, most);
            b.store(self.correction, &[row], most);
        });
        // Vectors of rows: there is room for whole ones.
        b.for_each(zero, self.at.rows, step, LoopKind::Serial, |b, row| {
            let (here, before) = (b.load(self.correction, &[row], wide), b.load(self.largest, &[row], wide));
            let most = b.max(here, before);
            let change = b.sub(before, most);
            let correction = b.exp(change);
            let total = b.load(self.total, &[row], wide);
            let total = b.mul(total, correction);
            b.store(self.largest, &[row], most);
            b.store(self.correction, &[row], correction);
            b.store(self.total, &[row], total);
        });
        b.for_each(zero, self.at.rows, 1, LoopKind::Serial, |b, row| {
            let (most, none) = (b.load(self.largest, &[row], 1), b.const_f32(0.0));
            let none = b.splat(none, wide);
            let sums = b.for_loop(zero, keys, step, LoopKind::Serial, &[none], |b, j, sums| {
                let at = self.score_at(b, row, j, 0);
                let x = b.load(self.scores, &[at], wide);
                let x = b.sub(x, most);
                let p = b.exp(x);
                b.store(self.scores, &[at], p);
                vec![b.add(sums[0], p)]
            });
            let sum = b.reduce_lanes(ReduceOp::Add, sums[0]);
            let total = b.load(self.total, &[row], 1);
            let total = b.add(total, sum);
            b.store(self.total, &[row], total);
            let Some(spread) = self.spread else { return };
            b.for_each(zero, block.count, 1, LoopKind::Serial, |b, j| {
                let at = self.score_at(b, row, j, 0);
                let p = b.load(self.scores, &[at], 1);
                let (p, lanes) = (b.splat(p, self.at.s.tiles.lanes), b.const_i64(i64::from(self.at.s.tiles.lanes)));
                let to = b.mul(at, lanes);
                b.store(spread, &[to], p);
            });
        });
    }

    /// The weight of a key for a row.
    fn weight(&self, b: &mut Builder, row: Value, j: Value) -> Value {
        let at = self.score_at(b, row, j, 0);
        let Some(spread) = self.spread else { return b.load(self.scores, &[at], 1) };
        let lanes = b.const_i64(i64::from(self.at.s.tiles.lanes));
        let at = b.mul(at, lanes);
        b.load(spread, &[at], self.at.s.tiles.lanes)
    }

    /// Adds a part of the block's values, weighted, to all rows: a tile of columns meets all rows while it is near.
    fn accumulate(&self, b: &mut Builder, (part, columns): (usize, &'a Columns), block: Block<'a>) {
        let (tiles, size) = (self.at.s.tiles, columns.size);
        let step = i64::from(tiles.lanes);
        let zero = b.const_i64(0);
        let at = block.layout.values[part];
        let known = at.is_some() || block.layout.set.terms.iter().any(|t| t.key.at == columns.at);
        // Where rows and block have room for it the last vector is a whole one.
        let room = at.is_some() && columns.start + padded(size, step) <= self.at.width;
        let last = block.layout.set.values.iter().all(|v| v.start <= columns.start);
        let size = if room && last { padded(size, step) } else { size };
        let (unit, end) = (tiles.vectors * step, b.const_i64(size));
        let (whole, wide) = (size / unit * unit, size / step * step);
        let (end_whole, end_wide) = (b.const_i64(whole), b.const_i64(wide));
        let all = |b: &mut Builder, e: Value, vectors: i64, mask: Option<Value>| {
            b.for_each(zero, self.at.rows, tiles.rows, LoopKind::Serial, |b, r| {
                self.weigh(b, (r, e), &Part { columns, at, vectors, mask, known }, block);
            });
        };
        if whole > 0 {
            b.for_each(zero, end_whole, unit, LoopKind::Serial, |b, e| all(b, e, tiles.vectors, None));
        }
        if wide > whole {
            b.for_each(end_whole, end_wide, step, LoopKind::Serial, |b, e| all(b, e, 1, None));
        }
        if size > wide {
            let mask = b.lanes_below(end_wide, end, tiles.lanes);
            all(b, end_wide, 1, Some(mask));
        }
    }

    /// The same for a tile of rows and of columns from `e` on.
    fn weigh(&self, b: &mut Builder, (first, e): (Value, Value), part: &Part<'a>, block: Block<'a>) {
        let lanes = self.at.s.tiles.lanes;
        let zero = b.const_i64(0);
        let rows: Vec<Value> = (0..self.at.s.tiles.rows)
            .map(|i| {
                let i = b.const_i64(i);
                b.add(first, i)
            })
            .collect();
        let elements: Vec<Value> = (0..part.vectors)
            .map(|i| {
                let i = b.const_i64(i * i64::from(lanes));
                b.add(e, i)
            })
            .collect();
        let (mut places, mut sums) = (Vec::new(), Vec::new());
        for r in &rows {
            let correction = b.load(self.correction, &[*r], 1);
            let (width, start) = (b.const_i64(self.at.width), b.const_i64(part.columns.start));
            let base = b.mul(*r, width);
            let base = b.add(base, start);
            for e in &elements {
                let at = b.add(base, *e);
                let old = match part.mask {
                    Some(mask) => b.load_masked(self.output, &[at], mask, None),
                    None => b.load(self.output, &[at], lanes),
                };
                sums.push(b.mul(old, correction));
                places.push(at);
            }
        }
        let visible: Vec<Value> = match block.before {
            Some(_) if self.at.s.queries > 1 && self.at.s.heads % self.at.s.tiles.rows != 0 => {
                rows.iter().map(|r| self.visible(b, *r, block)).collect()
            }
            _ => vec![self.visible(b, first, block)],
        };
        let line = 8 * LINE / part.columns.at.dtype.bits() as i64;
        let lines = (part.vectors * i64::from(lanes) + line - 1) / line;
        let (turn, each) = self.turn(b, first, if part.known || !self.asks(block) { 0 } else { lines });
        let add = |b: &mut Builder, j: Value, sums: &[Value], partly: bool| -> Vec<Value> {
            let key = (part.at.is_none()).then(|| self.key(b, block, j));
            for i in 0..each {
                let (i, line) = (b.const_i64(i), b.const_i64(line));
                let i = b.add(turn, i);
                let further = b.mul(i, line);
                let e = b.add(e, further);
                self.prefetch(b, (j, e), part.columns, block);
            }
            let v: Vec<Value> = elements.iter().map(|e| self.value(b, (j, *e), key.as_ref(), part, block)).collect();
            let mut out = Vec::new();
            for (i, r) in rows.iter().enumerate() {
                let p = self.weight(b, *r, j);
                let seen = partly.then(|| b.lt(j, visible[i]));
                for (v, sum) in v.iter().zip(&sums[i * v.len()..]) {
                    let more = b.fma(p, *v, *sum);
                    out.push(match seen {
                        // A value times zero is no zero where the value is no number.
                        Some(seen) => {
                            let seen = b.splat(seen, lanes);
                            b.select(seen, more, *sum)
                        }
                        None => more,
                    });
                }
            }
            out
        };
        // Queries see ever more: the first row of a tile sees least.
        let (common, most) = (visible[0], visible[visible.len() - 1]);
        let unit = b.const_i64(UNROLL);
        let rounds = b.div(common, unit);
        let whole = b.mul(rounds, unit);
        sums = b.for_loop(zero, whole, UNROLL, LoopKind::Serial, &sums, |b, j, sums| {
            (0..UNROLL).fold(sums.to_vec(), |sums, i| {
                let i = b.const_i64(i);
                let j = b.add(j, i);
                add(b, j, &sums, false)
            })
        });
        sums = b.for_loop(whole, common, 1, LoopKind::Serial, &sums, |b, j, sums| add(b, j, sums, false));
        if visible.len() > 1 {
            sums = b.for_loop(common, most, 1, LoopKind::Serial, &sums, |b, j, sums| add(b, j, sums, true));
        }
        for (at, sum) in places.iter().zip(sums) {
            match part.mask {
                Some(mask) => b.store_masked(self.output, &[*at], sum, mask),
                None => b.store(self.output, &[*at], sum),
            }
        }
    }

    /// A vector of values from column `e` on, of the block's `j`-th row.
    fn value(
        &self,
        b: &mut Builder,
        (j, e): (Value, Value),
        key: Option<&Env<'a>>,
        part: &Part<'a>,
        block: Block<'a>,
    ) -> Value {
        let lanes = self.at.s.tiles.lanes;
        match (key, part.at, self.staged) {
            (None, Some(at), Some(buf)) => {
                let (stride, at) = (b.const_i64(block.layout.stride), b.const_i64(at));
                let row = b.mul(j, stride);
                let at = b.add(row, at);
                let at = b.add(at, e);
                b.load(buf, &[at], lanes)
            }
            (key, ..) => {
                let key = key.unwrap_or(self.at.env).with(part.columns.column, e);
                key.load(b, &part.columns.at, lanes, part.mask)
            }
        }
    }
}

/// Columns of values that a tile takes.
struct Part<'a> {
    columns: &'a Columns,
    /// Where they begin in a row of the block, if they are held there.
    at: Option<i64>,
    vectors: i64,
    mask: Option<Value>,
    /// Whether they have been asked for, as keys or to be held.
    known: bool,
}
