//! Kernel IR for an attention under a schedule: what happens once for each grid index and each set. What happens in a
//! block of keys is in `super::block`.

use super::block::{Block, Layout};
use super::desc::{Bound, Desc, Rows, Set};
use super::schedule::{KEYS, Schedule};
use crate::kernels::contract::emit::{Env, declare, finish, in_vectors};
use crate::kernels::contract::epilogue::on_vectors;
use hadal_ir::kernel::{Buf, Builder, Kernel, LoopKind, Space, Swizzle, Value};
use hadal_types::DType;

/// The score of a key that a row must not see: far below all others, and finite, so that differences are numbers.
pub(super) const HIDDEN: f32 = -1e30;
/// The largest score of a row that has seen nothing: below all others, and so far above hidden ones that these weigh
/// nothing.
pub(super) const NOTHING: f32 = -1e29;

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
    let at = At::new(&mut b, desc, s, &env, &layouts, (first_head, first_query));
    let body = |b: &mut Builder| match s.team {
        1 => {
            let cell = Cell::new(b, at, &layouts, None);
            cell.see(b);
            at.finish(b, (cell.total, cell.output));
        }
        team => shared(b, at, &layouts, team),
    };
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

/// Where a grid index is: rows are its queries, each with its heads.
#[derive(Clone, Copy)]
pub(super) struct At<'a> {
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
}

/// What a grid index, or one of the warps that share it, has seen.
pub(super) struct Cell<'a> {
    pub at: At<'a>,
    /// Which warp it is of those that share the keys.
    share: Option<Value>,
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

/// The largest of a size of all layouts.
fn most(layouts: &[Layout<'_>], size: impl Fn(&Layout<'_>) -> i64) -> i64 {
    layouts.iter().map(size).max().unwrap_or(0)
}

/// A grid index whose keys so many warps share: each keeps what it has seen, then rows are joined and finished.
fn shared(b: &mut Builder, at: At<'_>, layouts: &[Layout<'_>], team: i64) {
    let (room, wide) = (at.room(), at.s.tiles.wide);
    let mut parts =
        |name: &str, n: i64| b.alloc_in(Space::Shared, Swizzle::None, name, DType::F32, [n.saturating_mul(team)]);
    let (largest, total) = (parts("all_largest", room), parts("all_totals", room));
    let output = parts("all_outputs", room.saturating_mul(at.width));
    let (zero, end, rows) = (b.const_i64(0), b.const_i64(team), b.const_i64(room));
    let (step, width) = (i64::from(wide), b.const_i64(at.width));
    b.for_each(zero, end, 1, LoopKind::Warp, |b, w| {
        let cell = Cell::new(b, at, layouts, Some(w));
        cell.see(b);
        let first = b.mul(w, rows);
        b.for_each(zero, at.rows, 1, LoopKind::Serial, |b, r| {
            let to = b.add(first, r);
            for (from, part) in [(cell.largest, largest), (cell.total, total)] {
                let x = b.load(from, &[r], 1);
                b.store(part, &[to], x);
            }
        });
        let (first, all) = (b.mul(first, width), b.mul(at.rows, width));
        b.for_each(zero, all, step, LoopKind::Serial, |b, i| {
            let x = b.load(cell.output, &[i], wide);
            let to = b.add(first, i);
            b.store(output, &[to], x);
        });
    });
    b.for_each(zero, end, 1, LoopKind::Warp, |b, w| {
        let weights = b.alloc("weights_of_parts", DType::F32, [team]);
        let live = at.live(b);
        b.for_each(w, live, team, LoopKind::Serial, |b, r| {
            let part = |b: &mut Builder, i: Value| {
                let first = b.mul(i, rows);
                b.add(first, r)
            };
            let nothing = b.const_f32(NOTHING);
            let most = b.for_loop(zero, end, 1, LoopKind::Serial, &[nothing], |b, i, most| {
                let from = part(b, i);
                let x = b.load(largest, &[from], 1);
                vec![b.max(most[0], x)]
            });
            let none = b.const_f32(0.0);
            let sum = b.for_loop(zero, end, 1, LoopKind::Serial, &[none], |b, i, sum| {
                let from = part(b, i);
                let (x, own) = (b.load(largest, &[from], 1), b.load(total, &[from], 1));
                let change = b.sub(x, most[0]);
                let weight = b.exp(change);
                b.store(weights, &[i], weight);
                vec![b.fma(own, weight, sum[0])]
            });
            // Into the place of the first part, which nobody else reads of this row.
            b.for_each(zero, width, step, LoopKind::Serial, |b, e| {
                let none = b.splat(none, wide);
                let x = b.for_loop(zero, end, 1, LoopKind::Serial, &[none], |b, i, sum| {
                    let row = part(b, i);
                    let from = b.mul(row, width);
                    let from = b.add(from, e);
                    let (x, weight) = (b.load(output, &[from], wide), b.load(weights, &[i], 1));
                    vec![b.fma(x, weight, sum[0])]
                });
                let to = b.mul(r, width);
                let to = b.add(to, e);
                b.store(output, &[to], x[0]);
            });
            b.store(total, &[r], sum[0]);
            at.finish_row(b, r, (total, output));
        });
    });
}

impl<'a> At<'a> {
    fn new(
        b: &mut Builder,
        desc: &'a Desc,
        s: &'a Schedule,
        env: &'a Env<'a>,
        layouts: &[Layout<'_>],
        (first_head, first_query): (Option<Value>, Value),
    ) -> At<'a> {
        let queries = b.dim(desc.size(desc.query));
        let width = padded(most(layouts, |l| l.width), i64::from(s.tiles.lanes.max(s.tiles.wide)));
        let mut at = At { desc, s, env, first_head, first_query, queries, rows: queries, width };
        at.rows = if s.queries == 1 {
            b.const_i64(at.room())
        } else {
            let live = at.live(b);
            let (unit, more) = (b.const_i64(s.tiles.rows), b.const_i64(s.tiles.rows - 1));
            let up = b.add(live, more);
            let tiles = b.div(up, unit);
            b.mul(tiles, unit)
        };
        at
    }

    /// Rows that there is room for.
    fn room(&self) -> i64 {
        padded(self.s.rows(), self.s.tiles.rows)
    }

    /// Rows that there are.
    fn live(&self, b: &mut Builder) -> Value {
        let (heads, full) = (b.const_i64(self.s.heads), b.const_i64(self.s.queries));
        let left = b.sub(self.queries, self.first_query);
        let left = if self.s.queries == 1 { full } else { b.min(left, full) };
        b.mul(left, heads)
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

    /// All rows through the epilogue.
    fn finish(&self, b: &mut Builder, sums: (Buf, Buf)) {
        let (zero, live) = (b.const_i64(0), self.live(b));
        b.for_each(zero, live, 1, LoopKind::Serial, |b, r| self.finish_row(b, r, sums));
    }

    /// A row through the epilogue, from its sum of weights and its weighted sum of values.
    fn finish_row(&self, b: &mut Builder, row: Value, (total, output): (Buf, Buf)) {
        let env = self.row(b, row);
        let (width, one) = (b.const_i64(self.width), b.const_f32(1.0));
        let total = b.load(total, &[row], 1);
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
                let x = b.load(output, &[at], 1);
                let x = b.mul(x, inverse);
                finish(b, &desc.epilogue, &env.with(desc.element, e), x, None, None);
            });
        }
        let wide = self.s.tiles.wide;
        in_vectors(b, wide, (zero, end, size), Vec::new(), &|b, e, mask, _| {
            let at = b.add(base, e);
            let x = b.load(output, &[at], wide);
            let x = b.mul(x, inverse);
            finish(b, &desc.epilogue, &env.with(desc.element, e), x, Some((desc.element, wide)), mask);
            Vec::new()
        });
    }
}

impl<'a> Cell<'a> {
    fn new(b: &mut Builder, at: At<'a>, layouts: &'a [Layout<'a>], share: Option<Value>) -> Cell<'a> {
        let (desc, s) = (at.desc, at.s);
        let room = at.room();
        let (query_width, stride) = (most(layouts, |l| l.query_width), most(layouts, |l| l.stride));
        let staged = (stride > 0).then(|| b.alloc("keys", DType::F32, [stride.saturating_mul(KEYS)]));
        let listed = desc.sets.iter().any(|set| matches!(set.rows, Rows::Masked(_) | Rows::Selected(..)));
        let list = listed.then(|| b.alloc("list", DType::I64, [KEYS]));
        let turned = s.turned.then(|| b.alloc("columns", DType::F32, [query_width.saturating_mul(KEYS)]));
        let spread = s.tiles.spread.then(|| {
            let n = s.scores().saturating_mul(room).saturating_mul(i64::from(s.tiles.lanes));
            b.alloc("weights", DType::F32, [n])
        });
        let mut alloc = |name: &str, n: i64| b.alloc(name, DType::F32, [n]);
        let of_rows = padded(room, i64::from(s.tiles.wide));
        Cell {
            at,
            share,
            query_width,
            query: alloc("queries", query_width.saturating_mul(room)),
            scores: alloc("scores", s.scores().saturating_mul(room)),
            spread,
            largest: alloc("largest", of_rows),
            total: alloc("total", of_rows),
            correction: alloc("correction", of_rows),
            output: alloc("output", at.width.saturating_mul(room)),
            list,
            staged,
            turned,
            layouts,
        }
    }

    /// All rows of all sets, or this warp's share of them.
    fn see(&self, b: &mut Builder) {
        let zero = b.const_i64(0);
        self.clear(b);
        if let Some(sink) = &self.at.desc.sink {
            // A row that has seen nothing yet but the sink, which is the first warp's.
            let own = self.share.map(|w| b.eq(w, zero));
            b.for_each(zero, self.at.rows, 1, LoopKind::Serial, |b, row| {
                let (nothing, none) = (b.const_f32(NOTHING), b.const_f32(0.0));
                let sink = self.at.row(b, row).load(b, sink, 1, None);
                let largest = b.max(nothing, sink);
                let rest = b.sub(sink, largest);
                let total = b.exp(rest);
                let mut or = |x: Value, other: Value| own.map_or(x, |own| b.select(own, x, other));
                let (largest, total) = (or(largest, nothing), or(total, none));
                b.store(self.largest, &[row], largest);
                b.store(self.total, &[row], total);
            });
        }
        for layout in self.layouts {
            b.for_each(zero, self.at.rows, 1, LoopKind::Serial, |b, r| self.load_query(b, r, layout));
            self.set(b, layout);
        }
    }

    /// The first place of blocks from `lo` on, and how far one is from the next.
    fn blocks(&self, b: &mut Builder, lo: Value) -> (Value, i64) {
        let Some(share) = self.share else { return (lo, KEYS) };
        let keys = b.const_i64(KEYS);
        let skipped = b.mul(share, keys);
        (b.add(lo, skipped), KEYS * self.at.s.team)
    }

    /// Rows that have seen nothing. All of them, so that vectors across rows find numbers everywhere.
    fn clear(&self, b: &mut Builder) {
        let (zero, step) = (b.const_i64(0), i64::from(self.at.s.tiles.wide));
        let room = self.at.room();
        let (nothing, none) = (b.const_f32(NOTHING), b.const_f32(0.0));
        let (nothing, none) = (b.splat(nothing, step as u32), b.splat(none, step as u32));
        let end = b.const_i64(padded(room, step));
        b.for_each(zero, end, step, LoopKind::Serial, |b, i| {
            b.store(self.largest, &[i], nothing);
            b.store(self.total, &[i], none);
            b.store(self.correction, &[i], none);
        });
        let width = b.const_i64(self.at.width);
        let all = b.mul(self.at.rows, width);
        let lanes = self.at.s.tiles.lanes;
        let none = b.const_f32(0.0);
        let none = b.splat(none, lanes);
        b.for_each(zero, all, i64::from(lanes), LoopKind::Serial, |b, i| b.store(self.output, &[i], none));
    }

    /// The query of a row, scaled, its terms one after the other and each filled up with zeros.
    fn load_query(&self, b: &mut Builder, row: Value, layout: &Layout<'a>) {
        let env = self.at.row(b, row);
        let (zero, width) = (b.const_i64(0), b.const_i64(self.query_width));
        let base = b.mul(row, width);
        let scale = b.const_f32(self.at.desc.scale);
        let lanes = self.at.s.tiles.lanes;
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
        let (zero, all) = (b.const_i64(0), b.dim(self.at.desc.size(set.key)));
        let block = Block { layout, start: zero, count: zero, list: None, before: None };
        // Where what is seen is in memory there is one query.
        let env = self.at.env.with(self.at.desc.query, self.at.first_query);
        match &set.rows {
            Rows::All => self.consecutive(b, zero, all, block),
            Rows::Causal => {
                let before = b.sub(all, self.at.queries);
                let unit = b.const_i64(self.at.s.queries);
                let last = b.add(self.at.first_query, unit);
                let last = b.min(last, self.at.queries);
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
                let places = b.dim(self.at.desc.size(*place));
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
        let (lo, step) = self.blocks(b, lo);
        b.for_each(lo, hi, step, LoopKind::Serial, |b, start| {
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
        let (first, step) = self.blocks(b, zero);
        b.for_each(first, size, step, LoopKind::Serial, |b, start| {
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
}
