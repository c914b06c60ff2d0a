//! Kernel IR for an attention under a schedule: what happens once for each grid index and each set. What happens in a
//! block of keys is in `super::block`.

use super::block::{Block, Layout};
use super::desc::{Bound, Desc, Rows, Set};
use super::schedule::{KEYS, Schedule};
use crate::kernels::contract::emit::{Env, declare, finish, in_vectors};
use crate::kernels::contract::epilogue::on_vectors;
use hadal_ir::kernel::{Buf, Builder, Kernel, LoopKind, Value};
use hadal_types::DType;

/// The score of a key that a row must not see: far below all others, and finite, so that differences are numbers.
pub(super) const HIDDEN: f32 = -1e30;
/// The largest score of a row that has seen nothing: below all others, and so far above hidden ones that these weigh
/// nothing.
const NOTHING: f32 = -1e29;
/// Lanes of vectors that are not multiplied with keys.
pub(super) const WIDE: u32 = 8;

/// Emits `desc` under one of its candidate schedules.
pub fn emit(desc: &Desc, s: &Schedule) -> Kernel {
    let mut b = Builder::new(desc.name.clone());
    let bufs = declare(&mut b, &desc.params);
    let mut env = Env::new(&desc.vars, &bufs);
    for letter in &s.grid {
        let value = b.grid_dim(desc.size(*letter).clone());
        env = env.with(*letter, value);
    }
    let first_head = s.shared.map(|h| {
        let block = b.grid_dim(desc.size(h).as_const().unwrap_or(1) / s.heads);
        let unit = b.const_i64(s.heads);
        b.mul(block, unit)
    });
    let first_query = b.grid_dim(desc.size(desc.query).clone());
    let layouts: Vec<Layout<'_>> = desc.sets.iter().map(|set| Layout::new(set, s)).collect();
    let body = |b: &mut Builder| Cell::new(b, desc, s, &env, &layouts, (first_head, first_query)).run(b);
    if s.queries > 1 {
        // Extents of a grid are affine in the symbols, so there is an index for every query: the first of a block acts.
        let unit = b.const_i64(s.queries);
        let (at, zero) = (b.rem(first_query, unit), b.const_i64(0));
        let leads = b.eq(at, zero);
        b.if_then(leads, body);
    } else {
        body(&mut b);
    }
    b.finish()
}

/// One grid index: rows are its queries, each with its heads.
pub(super) struct Cell<'a> {
    pub desc: &'a Desc,
    pub s: &'a Schedule,
    pub env: &'a Env<'a>,
    first_head: Option<Value>,
    first_query: Value,
    /// Number of queries.
    queries: Value,
    /// Number of rows, rounded up to whole tiles: fewer than there is room for where queries end.
    pub rows: Value,
    /// Elements of an output row, with room for whole vectors.
    pub width: i64,
    /// Elements of a query row.
    pub query_width: i64,
    /// Queries of the current set, scaled.
    pub query: Buf,
    pub scores: Buf,
    /// Weights in all lanes of a vector each, where that is cheaper than to spread them at each use.
    pub spread: Option<Buf>,
    /// Largest score, sum of weights and last correction of each row.
    pub largest: Buf,
    pub total: Buf,
    pub correction: Buf,
    pub output: Buf,
    /// Numbers of a block's rows, where they are not consecutive.
    list: Option<Buf>,
    /// A block's keys and values in f32.
    pub staged: Option<Buf>,
    /// The columns of a block's keys.
    pub turned: Option<Buf>,
    layouts: &'a [Layout<'a>],
}

pub(super) fn padded(n: i64, to: i64) -> i64 {
    n.saturating_add(to - 1) / to * to
}

impl<'a> Cell<'a> {
    fn new(
        b: &mut Builder,
        desc: &'a Desc,
        s: &'a Schedule,
        env: &'a Env<'a>,
        layouts: &'a [Layout<'a>],
        (first_head, first_query): (Option<Value>, Value),
    ) -> Cell<'a> {
        let room = padded(s.rows(), s.tiles.rows);
        let most = |f: fn(&Layout<'_>) -> i64| layouts.iter().map(f).max().unwrap_or(0);
        let (width, query_width, stride) = (
            padded(most(|l| l.width), i64::from(s.tiles.lanes.max(WIDE))),
            most(|l| l.query_width),
            most(|l| l.stride),
        );
        let queries = b.dim(desc.size(desc.query));
        let rows = if s.queries == 1 {
            b.const_i64(room)
        } else {
            let (heads, unit, full) = (b.const_i64(s.heads), b.const_i64(s.tiles.rows), b.const_i64(s.queries));
            let left = b.sub(queries, first_query);
            let left = b.min(left, full);
            let live = b.mul(left, heads);
            let more = b.const_i64(s.tiles.rows - 1);
            let up = b.add(live, more);
            let tiles = b.div(up, unit);
            b.mul(tiles, unit)
        };
        let staged = (stride > 0).then(|| b.alloc("keys", DType::F32, [stride.saturating_mul(KEYS)]));
        let listed = desc.sets.iter().any(|set| matches!(set.rows, Rows::Masked(_) | Rows::Selected(..)));
        let list = listed.then(|| b.alloc("list", DType::I64, [KEYS]));
        let turned = s.turned.then(|| b.alloc("columns", DType::F32, [query_width.saturating_mul(KEYS)]));
        let spread = s.tiles.spread.then(|| {
            let n = s.scores().saturating_mul(room).saturating_mul(i64::from(s.tiles.lanes));
            b.alloc("weights", DType::F32, [n])
        });
        let mut alloc = |name: &str, n: i64| b.alloc(name, DType::F32, [n]);
        let of_rows = padded(room, i64::from(WIDE));
        Cell {
            desc,
            s,
            env,
            first_head,
            first_query,
            queries,
            rows,
            width,
            query_width,
            query: alloc("queries", query_width.saturating_mul(room)),
            scores: alloc("scores", s.scores().saturating_mul(room)),
            spread,
            largest: alloc("largest", of_rows),
            total: alloc("total", of_rows),
            correction: alloc("correction", of_rows),
            output: alloc("output", width.saturating_mul(room)),
            list,
            staged,
            turned,
            layouts,
        }
    }

    fn run(&self, b: &mut Builder) {
        let zero = b.const_i64(0);
        self.clear(b);
        if let Some(sink) = &self.desc.sink {
            // A row that has seen nothing yet but the sink.
            b.for_each(zero, self.rows, 1, LoopKind::Serial, |b, row| {
                let nothing = b.const_f32(NOTHING);
                let sink = self.row(b, row).load(b, sink, 1, None);
                let largest = b.max(nothing, sink);
                let rest = b.sub(sink, largest);
                let total = b.exp(rest);
                b.store(self.largest, &[row], largest);
                b.store(self.total, &[row], total);
            });
        }
        for layout in self.layouts {
            b.for_each(zero, self.rows, 1, LoopKind::Serial, |b, r| self.load_query(b, r, layout));
            self.set(b, layout);
        }
        let heads = b.const_i64(self.s.heads);
        let left = b.sub(self.queries, self.first_query);
        let full = b.const_i64(self.s.queries);
        let left = if self.s.queries == 1 { full } else { b.min(left, full) };
        let live = b.mul(left, heads);
        b.for_each(zero, live, 1, LoopKind::Serial, |b, r| self.finish_row(b, r));
    }

    /// Rows that have seen nothing. All of them, so that vectors across rows find numbers everywhere.
    fn clear(&self, b: &mut Builder) {
        let (zero, step) = (b.const_i64(0), i64::from(WIDE));
        let room = padded(self.s.rows(), self.s.tiles.rows);
        let (nothing, none) = (b.const_f32(NOTHING), b.const_f32(0.0));
        let (nothing, none) = (b.splat(nothing, WIDE), b.splat(none, WIDE));
        let end = b.const_i64(padded(room, step));
        b.for_each(zero, end, step, LoopKind::Serial, |b, i| {
            b.store(self.largest, &[i], nothing);
            b.store(self.total, &[i], none);
            b.store(self.correction, &[i], none);
        });
        let width = b.const_i64(self.width);
        let all = b.mul(self.rows, width);
        let lanes = self.s.tiles.lanes;
        let none = b.const_f32(0.0);
        let none = b.splat(none, lanes);
        b.for_each(zero, all, i64::from(lanes), LoopKind::Serial, |b, i| b.store(self.output, &[i], none));
    }

    /// The query of a row, scaled, its terms one after the other and each filled up with zeros.
    fn load_query(&self, b: &mut Builder, row: Value, layout: &Layout<'a>) {
        let env = self.row(b, row);
        let (zero, width) = (b.const_i64(0), b.const_i64(self.query_width));
        let base = b.mul(row, width);
        let scale = b.const_f32(self.desc.scale);
        let lanes = self.s.tiles.lanes;
        for (term, (at, _)) in layout.set.terms.iter().zip(&layout.terms) {
            let (size, at) = (term.key.size, b.const_i64(*at));
            let (end, to) = (b.const_i64(size), b.add(base, at));
            in_vectors(b, lanes, (zero, end, Some(size)), Vec::new(), &|b, k, mask, _| {
                let x = env.with(term.key.column, k).load(b, &term.query, lanes, mask);
                let (x, to) = (b.mul(x, scale), b.add(to, k));
                b.store(self.query, &[to], x);
                Vec::new()
            });
        }
    }

    /// All blocks of a set, from the first row that a query sees.
    fn set(&self, b: &mut Builder, layout: &'a Layout<'a>) {
        let set: &Set = layout.set;
        let (zero, all) = (b.const_i64(0), b.dim(self.desc.size(set.key)));
        let block = Block { layout, start: zero, count: zero, list: None, before: None };
        // Where what is seen is in memory there is one query.
        let env = self.env.with(self.desc.query, self.first_query);
        match &set.rows {
            Rows::All => self.consecutive(b, zero, all, block),
            Rows::Causal => {
                let before = b.sub(all, self.queries);
                let unit = b.const_i64(self.s.queries);
                let last = b.add(self.first_query, unit);
                let last = b.min(last, self.queries);
                let seen = b.add(last, before);
                let seen = b.min(seen, all);
                self.consecutive(b, zero, seen, Block { before: Some(before), ..block });
            }
            Rows::Interval(lo, hi) => {
                let read = |b: &mut Builder, bound: &Bound| match bound {
                    Bound::Read(access) => env.index(b, access),
                    Bound::Known(at) => env.at(b, at),
                };
                let (lo, hi) = (read(b, lo), read(b, hi));
                let lo = b.max(lo, zero);
                let hi = b.min(hi, all);
                let hi = b.max(hi, lo);
                self.consecutive(b, lo, hi, block);
            }
            Rows::Masked(mask) => self.listed(b, all, block, |b, s| {
                let env = env.with(set.key, s);
                let at: Vec<Value> = mask.at.iter().map(|at| env.at(b, at)).collect();
                (s, b.load(env.bufs[mask.param], &at, 1))
            }),
            Rows::Selected(ids, place) => {
                let places = b.dim(self.desc.size(*place));
                self.listed(b, places, block, |b, j| {
                    let row = env.with(*place, j).index(b, ids);
                    let (first, last) = (b.ge(row, zero), b.lt(row, all));
                    (row, b.and(first, last))
                });
            }
        }
    }

    /// Blocks of the rows from `lo` to below `hi`.
    fn consecutive(&self, b: &mut Builder, lo: Value, hi: Value, block: Block<'a>) {
        let keys = b.const_i64(KEYS);
        b.for_each(lo, hi, KEYS, LoopKind::Serial, |b, start| {
            let end = b.add(start, keys);
            let end = b.min(end, hi);
            let count = b.sub(end, start);
            self.block(b, Block { start, count, ..block });
        });
    }

    /// Blocks of those of `size` places that are seen, in order; `row` gives the row at a place, and whether it is.
    fn listed(
        &self,
        b: &mut Builder,
        size: Value,
        block: Block<'a>,
        row: impl Fn(&mut Builder, Value) -> (Value, Value),
    ) {
        let Some(list) = self.list else { return };
        let (zero, one, keys) = (b.const_i64(0), b.const_i64(1), b.const_i64(KEYS));
        b.for_each(zero, size, KEYS, LoopKind::Serial, |b, start| {
            let end = b.add(start, keys);
            let end = b.min(end, size);
            let count = b.for_loop(start, end, 1, LoopKind::Serial, &[zero], |b, j, count| {
                let (row, seen) = row(b, j);
                // What is not seen is overwritten by the next one.
                b.store(list, &[count[0]], row);
                let more = b.select(seen, one, zero);
                vec![b.add(count[0], more)]
            });
            let any = b.gt(count[0], zero);
            b.if_then(any, |b| self.block(b, Block { count: count[0], list: Some(list), ..block }));
        });
    }

    /// The query of a row; beyond the last one it is the last one.
    pub(super) fn query(&self, b: &mut Builder, row: Value) -> Value {
        if self.s.queries == 1 {
            return self.first_query;
        }
        let (heads, one) = (b.const_i64(self.s.heads), b.const_i64(1));
        let i = b.div(row, heads);
        let (q, last) = (b.add(self.first_query, i), b.sub(self.queries, one));
        b.min(q, last)
    }

    /// Letters of a row. Rows that fill up a tile are like others.
    fn row(&self, b: &mut Builder, row: Value) -> Env<'a> {
        let query = self.query(b, row);
        let env = self.env.with(self.desc.query, query);
        let (Some(letter), Some(first)) = (self.s.shared, self.first_head) else { return env };
        let heads = b.const_i64(self.s.heads);
        let i = b.rem(row, heads);
        let head = b.add(first, i);
        env.with(letter, head)
    }

    fn finish_row(&self, b: &mut Builder, row: Value) {
        let env = self.row(b, row);
        let (width, one) = (b.const_i64(self.width), b.const_f32(1.0));
        let total = b.load(self.total, &[row], 1);
        // At least one wherever something is seen. The order of operands keeps what is not a number.
        let total = b.max(one, total);
        let inverse = b.div(one, total);
        let base = b.mul(row, width);
        let desc = self.desc;
        let (zero, size) = (b.const_i64(0), desc.size(desc.element).as_const());
        let end = b.const_i64(size.unwrap_or(0));
        if !on_vectors(&desc.vars, &desc.epilogue, desc.element) {
            return b.for_each(zero, end, 1, LoopKind::Serial, |b, e| {
                let at = b.add(base, e);
                let x = b.load(self.output, &[at], 1);
                let x = b.mul(x, inverse);
                finish(b, &desc.epilogue, &env.with(desc.element, e), x, None, None);
            });
        }
        in_vectors(b, WIDE, (zero, end, size), Vec::new(), &|b, e, mask, _| {
            let at = b.add(base, e);
            let x = b.load(self.output, &[at], WIDE);
            let x = b.mul(x, inverse);
            finish(b, &desc.epilogue, &env.with(desc.element, e), x, Some((desc.element, WIDE)), mask);
            Vec::new()
        });
    }
}
