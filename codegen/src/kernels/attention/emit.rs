//! Kernel IR for an attention under a schedule.

use super::desc::{Bound, Desc, Rows, Set};
use super::schedule::{KEYS, Schedule};
use crate::kernels::contract::emit::{Env, declare, finish, in_vectors, load_f32};
use crate::kernels::contract::epilogue::on_vectors;
use hadal_ir::kernel::{Buf, Builder, Kernel, LoopKind, ReduceOp, Value};
use hadal_types::DType;

/// The score of a key that a row must not see: far below all others, and finite, so that differences are numbers.
const HIDDEN: f32 = -1e30;
/// Lanes of the dot products and of all other vectors.
const DOT: u32 = 4;
const WIDE: u32 = 8;

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
    let body = |b: &mut Builder| {
        let cell = Cell::new(b, desc, s, &env, first_head, first_query);
        cell.run(b);
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

/// One grid index.
struct Cell<'a> {
    desc: &'a Desc,
    s: &'a Schedule,
    env: &'a Env<'a>,
    first_head: Option<Value>,
    first_query: Value,
    /// Number of queries.
    queries: Value,
    /// Rows of a register tile.
    height: i64,
    /// Elements of an output row, padded to whole vectors.
    width: i64,
    scores: Buf,
    /// Largest score, sum of weights and last correction of each row.
    largest: Buf,
    total: Buf,
    correction: Buf,
    output: Buf,
    /// Numbers of a block's rows, where they are not consecutive.
    list: Option<Buf>,
    /// A block's keys in f32, for each term of each set where that pays.
    converted: Vec<Vec<Option<(Buf, i64)>>>,
}

/// Some rows of a set.
#[derive(Clone, Copy)]
struct Block<'a> {
    set: &'a Set,
    converted: &'a [Option<(Buf, i64)>],
    /// The first row, where they are consecutive.
    start: Value,
    /// How many.
    count: Value,
    /// Where their numbers are, where they are not.
    list: Option<Buf>,
    /// Rows before the first query's own, where queries do not see those after it.
    before: Option<Value>,
}

fn padded(n: i64, to: u32) -> i64 {
    n.saturating_add(i64::from(to) - 1) / i64::from(to) * i64::from(to)
}

impl<'a> Cell<'a> {
    fn new(
        b: &mut Builder,
        desc: &'a Desc,
        s: &'a Schedule,
        env: &'a Env<'a>,
        first_head: Option<Value>,
        first_query: Value,
    ) -> Cell<'a> {
        let rows = s.rows();
        let size = |v| desc.size(v).as_const().unwrap_or(0);
        let width = padded(size(desc.element), WIDE);
        let queries = b.dim(desc.size(desc.query));
        let mut converted = Vec::new();
        for (n, set) in desc.sets.iter().enumerate() {
            let of_terms = set.terms.iter().enumerate().map(|(i, term)| {
                let stride = padded(size(term.sum), DOT);
                let pays = term.key.dtype != DType::F32 && rows >= 4;
                pays.then(|| (b.alloc(format!("keys{n}_{i}"), DType::F32, [stride.saturating_mul(KEYS)]), stride))
            });
            converted.push(of_terms.collect());
        }
        let listed = desc.sets.iter().any(|set| matches!(set.rows, Rows::Masked(_) | Rows::Selected(..)));
        let list = listed.then(|| b.alloc("list", DType::I64, [KEYS]));
        let mut row = |name: &str, n: i64| b.alloc(name, DType::F32, [n.saturating_mul(rows)]);
        Cell {
            desc,
            s,
            env,
            first_head,
            first_query,
            queries,
            height: [4, 2, 1].into_iter().find(|h| rows % h == 0).unwrap_or(1),
            width,
            scores: row("scores", KEYS),
            largest: row("largest", 1),
            total: row("total", 1),
            correction: row("correction", 1),
            output: row("output", width),
            list,
            converted,
        }
    }

    fn run(&self, b: &mut Builder) {
        let (zero, rows) = (b.const_i64(0), b.const_i64(self.s.rows()));
        let none = b.const_f32(0.0);
        let none = b.splat(none, WIDE);
        b.for_each(zero, rows, 1, LoopKind::Serial, |b, r| self.start_row(b, r));
        let all = b.const_i64(self.width.saturating_mul(self.s.rows()));
        b.for_each(zero, all, i64::from(WIDE), LoopKind::Serial, |b, i| b.store(self.output, &[i], none));
        for (set, converted) in self.desc.sets.iter().zip(&self.converted) {
            self.set(b, set, converted);
        }
        b.for_each(zero, rows, 1, LoopKind::Serial, |b, r| self.finish_row(b, r));
    }

    /// A row that has seen nothing yet but the sink.
    fn start_row(&self, b: &mut Builder, row: Value) {
        let (hidden, none) = (b.const_f32(HIDDEN), b.const_f32(0.0));
        let (largest, total) = match &self.desc.sink {
            None => (hidden, none),
            Some(sink) => {
                let sink = self.row(b, row).load(b, sink, 1, None);
                let largest = b.max(hidden, sink);
                let rest = b.sub(sink, largest);
                (largest, b.exp(rest))
            }
        };
        b.store(self.largest, &[row], largest);
        b.store(self.total, &[row], total);
    }

    /// All blocks of a set, from the first row that a query sees.
    fn set(&self, b: &mut Builder, set: &'a Set, converted: &'a [Option<(Buf, i64)>]) {
        let (zero, all) = (b.const_i64(0), b.dim(self.desc.size(set.key)));
        let block = Block { set, converted, start: zero, count: zero, list: None, before: None };
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

    fn block(&self, b: &mut Builder, block: Block<'a>) {
        let (zero, rows, tile) = (b.const_i64(0), b.const_i64(self.s.rows()), self.height);
        self.convert(b, block);
        b.for_each(zero, rows, tile, LoopKind::Serial, |b, r| self.score(b, r, block));
        b.for_each(zero, rows, 1, LoopKind::Serial, |b, r| self.soften(b, r, block));
        b.for_each(zero, rows, tile, LoopKind::Serial, |b, r| self.accumulate(b, r, block));
    }

    /// With the row of keys and values bound that is the `j`-th of a block.
    fn key(&self, b: &mut Builder, block: Block<'a>, j: Value) -> Env<'a> {
        let row = match block.list {
            Some(list) => b.load(list, &[j], 1),
            None => b.add(block.start, j),
        };
        self.env.with(block.set.key, row)
    }

    /// The query of a row; beyond the last one it is the last one.
    fn query(&self, b: &mut Builder, row: Value) -> Value {
        if self.s.queries == 1 {
            return self.first_query;
        }
        let (heads, one) = (b.const_i64(self.s.heads), b.const_i64(1));
        let i = b.div(row, heads);
        let (q, last) = (b.add(self.first_query, i), b.sub(self.queries, one));
        b.min(q, last)
    }

    /// Letters of a row.
    fn row(&self, b: &mut Builder, row: Value) -> Env<'a> {
        let query = self.query(b, row);
        let env = self.env.with(self.desc.query, query);
        let (Some(letter), Some(first)) = (self.s.shared, self.first_head) else { return env };
        let heads = b.const_i64(self.s.heads);
        let i = if self.s.queries == 1 { row } else { b.rem(row, heads) };
        let head = b.add(first, i);
        env.with(letter, head)
    }

    fn rows(&self, b: &mut Builder, first: Value) -> Vec<(Value, Env<'a>)> {
        (0..self.height)
            .map(|i| {
                let i = b.const_i64(i);
                let r = b.add(first, i);
                (r, self.row(b, r))
            })
            .collect()
    }

    fn convert(&self, b: &mut Builder, block: Block<'a>) {
        for (term, converted) in block.set.terms.iter().zip(block.converted) {
            let Some((buf, stride)) = converted else { continue };
            let zero = b.const_i64(0);
            b.for_each(zero, block.count, 1, LoopKind::Serial, |b, j| {
                let (key, stride) = (self.key(b, block, j), b.const_i64(*stride));
                let (from, to) = (key.at(b, &term.key.at), b.mul(j, stride));
                let size = self.desc.size(term.sum).as_const();
                let end = b.const_i64(size.unwrap_or(0));
                in_vectors(b, DOT, (zero, end, size), Vec::new(), &|b, k, mask, _| {
                    let at = b.add(from, k);
                    let x = load_f32(b, self.env.bufs[term.key.param], at, DOT, mask);
                    let to = b.add(to, k);
                    b.store(*buf, &[to], x);
                    Vec::new()
                });
            });
        }
    }

    /// Scores of a tile of rows and all keys of the block, unscaled.
    fn score(&self, b: &mut Builder, first: Value, block: Block<'a>) {
        let rows = self.rows(b, first);
        let columns = 8 / self.height;
        let (zero, one, none) = (b.const_i64(0), b.const_i64(1), b.const_f32(0.0));
        let none = b.splat(none, DOT);
        let last = b.sub(block.count, one);
        b.for_each(zero, block.count, columns, LoopKind::Serial, |b, j| {
            let keys: Vec<Value> = (0..columns)
                .map(|i| {
                    let i = b.const_i64(i);
                    let j = b.add(j, i);
                    if columns == 1 { j } else { b.min(j, last) }
                })
                .collect();
            let mut sums = vec![none; rows.len() * keys.len()];
            for (term, converted) in block.set.terms.iter().zip(block.converted) {
                let mut parts: Vec<(Buf, Value)> = Vec::new();
                for (_, env) in &rows {
                    parts.push((env.bufs[term.query.param], env.at(b, &term.query.at)));
                }
                for j in &keys {
                    parts.push(match converted {
                        Some((buf, stride)) => {
                            let stride = b.const_i64(*stride);
                            (*buf, b.mul(*j, stride))
                        }
                        None => {
                            let key = self.key(b, block, *j);
                            (self.env.bufs[term.key.param], key.at(b, &term.key.at))
                        }
                    });
                }
                let size = self.desc.size(term.sum).as_const();
                let end = b.const_i64(size.unwrap_or(0));
                sums = in_vectors(b, DOT, (zero, end, size), sums, &|b, k, mask, sums| {
                    let x: Vec<Value> = parts
                        .iter()
                        .map(|(buf, base)| {
                            let at = b.add(*base, k);
                            load_f32(b, *buf, at, DOT, mask)
                        })
                        .collect();
                    let (q, k) = x.split_at(rows.len());
                    sums.iter().enumerate().map(|(i, sum)| b.fma(q[i / k.len()], k[i % k.len()], *sum)).collect()
                });
            }
            for (i, sum) in sums.iter().enumerate() {
                let sum = b.reduce_lanes(ReduceOp::Add, *sum);
                let (r, _) = rows[i / keys.len()];
                let at = self.score_at(b, r, j, (i % keys.len()) as i64);
                b.store(self.scores, &[at], sum);
            }
        });
    }

    fn score_at(&self, b: &mut Builder, row: Value, key: Value, offset: i64) -> Value {
        let (block, offset) = (b.const_i64(KEYS), b.const_i64(offset));
        let row = b.mul(row, block);
        let at = b.add(row, key);
        b.add(at, offset)
    }

    /// How many of a block's rows a row sees: the first ones.
    fn visible(&self, b: &mut Builder, row: Value, block: Block<'a>) -> Value {
        let Some(before) = block.before else { return block.count };
        let one = b.const_i64(1);
        let query = self.query(b, row);
        let seen = b.add(query, before);
        let seen = b.add(seen, one);
        let here = b.sub(seen, block.start);
        b.min(here, block.count)
    }

    /// Scores of a row to weights, and what that does to its sums.
    fn soften(&self, b: &mut Builder, row: Value, block: Block<'a>) {
        let (zero, end) = (b.const_i64(0), b.const_i64(KEYS));
        let visible = self.visible(b, row, block);
        let hidden = b.const_f32(HIDDEN);
        let none = b.const_f32(0.0);
        let (hidden, none) = (b.splat(hidden, WIDE), b.splat(none, WIDE));
        let scale = b.const_f32(self.desc.scale);
        let scaled = |b: &mut Builder, j: Value| {
            let mask = b.lanes_below(j, visible, WIDE);
            let at = self.score_at(b, row, j, 0);
            let x = b.load_masked(self.scores, &[at], mask, None);
            let x = b.mul(x, scale);
            (mask, b.select(mask, x, hidden))
        };
        let step = i64::from(WIDE);
        let most = b.for_loop(zero, end, step, LoopKind::Serial, &[hidden], |b, j, most| {
            let (_, x) = scaled(b, j);
            vec![b.max(x, most[0])]
        });
        let most = b.reduce_lanes(ReduceOp::Max, most[0]);
        let before = b.load(self.largest, &[row], 1);
        let most = b.max(most, before);
        let change = b.sub(before, most);
        let correction = b.exp(change);
        b.store(self.largest, &[row], most);
        b.store(self.correction, &[row], correction);
        let sums = b.for_loop(zero, end, step, LoopKind::Serial, &[none], |b, j, sums| {
            let (mask, x) = scaled(b, j);
            let x = b.sub(x, most);
            let p = b.exp(x);
            let p = b.select(mask, p, none);
            let at = self.score_at(b, row, j, 0);
            b.store(self.scores, &[at], p);
            vec![b.add(sums[0], p)]
        });
        let sum = b.reduce_lanes(ReduceOp::Add, sums[0]);
        let total = b.load(self.total, &[row], 1);
        let total = b.fma(total, correction, sum);
        b.store(self.total, &[row], total);
    }

    /// Adds the block's weighted values to a tile of rows.
    fn accumulate(&self, b: &mut Builder, first: Value, block: Block<'a>) {
        let rows = self.rows(b, first);
        let before = block.before.filter(|_| self.s.queries > 1);
        let Some(before) = before else { return self.weigh(b, &rows, block, false) };
        // A value times zero is no zero where the value is no number: rows that do not see it must not meet it.
        let (whole, query) = (b.add(block.start, block.count), self.query(b, first));
        let last = b.add(query, before);
        let one = b.const_i64(1);
        let own = b.add(last, one);
        let common = b.gt(whole, own);
        b.if_else(
            common,
            |b| {
                self.weigh(b, &rows, block, true);
                Vec::new()
            },
            |b| {
                self.weigh(b, &rows, block, false);
                Vec::new()
            },
        );
    }

    /// The same; with `partly`, some rows do not see all of the block.
    fn weigh(&self, b: &mut Builder, rows: &[(Value, Env<'a>)], block: Block<'a>, partly: bool) {
        let visible: Vec<Value> = match partly {
            true => rows.iter().map(|(r, _)| self.visible(b, *r, block)).collect(),
            false => Vec::new(),
        };
        let size = self.desc.size(self.desc.element).as_const().unwrap_or(0);
        let vectors = 4 / self.height;
        let step = i64::from(WIDE);
        let zero = b.const_i64(0);
        let tile = |b: &mut Builder, e: Value, vectors: i64, mask: Option<Value>| {
            let elements: Vec<Value> = (0..vectors)
                .map(|i| {
                    let i = b.const_i64(i * step);
                    b.add(e, i)
                })
                .collect();
            let mut places = Vec::new();
            let mut init = Vec::new();
            for (r, _) in rows {
                let correction = b.load(self.correction, &[*r], 1);
                let width = b.const_i64(self.width);
                let base = b.mul(*r, width);
                for e in &elements {
                    let at = b.add(base, *e);
                    let old = b.load(self.output, &[at], WIDE);
                    init.push(b.mul(old, correction));
                    places.push(at);
                }
            }
            let sums = b.for_loop(zero, block.count, 1, LoopKind::Serial, &init, |b, j, sums| {
                let env = self.key(b, block, j);
                let v: Vec<Value> = elements
                    .iter()
                    .map(|e| env.with(self.desc.element, *e).load(b, &block.set.value, WIDE, mask))
                    .collect();
                let p: Vec<Value> = rows
                    .iter()
                    .map(|(r, _)| {
                        let at = self.score_at(b, *r, j, 0);
                        b.load(self.scores, &[at], 1)
                    })
                    .collect();
                let seen: Vec<Value> = visible.iter().map(|n| b.lt(j, *n)).collect();
                let sums = sums.iter().enumerate().map(|(i, sum)| {
                    let more = b.fma(p[i / v.len()], v[i % v.len()], *sum);
                    let Some(seen) = seen.get(i / v.len()) else { return more };
                    let seen = b.splat(*seen, WIDE);
                    b.select(seen, more, *sum)
                });
                sums.collect()
            });
            for (at, sum) in places.iter().zip(sums) {
                b.store(self.output, &[*at], sum);
            }
        };
        let (whole, wide) = (size / (vectors * step) * (vectors * step), size / step * step);
        let (end_whole, end_wide, end) = (b.const_i64(whole), b.const_i64(wide), b.const_i64(size));
        if whole > 0 {
            b.for_each(zero, end_whole, vectors * step, LoopKind::Serial, |b, e| tile(b, e, vectors, None));
        }
        if wide > whole {
            b.for_each(end_whole, end_wide, step, LoopKind::Serial, |b, e| tile(b, e, 1, None));
        }
        if size > wide {
            let mask = b.lanes_below(end_wide, end, WIDE);
            tile(b, end_wide, 1, Some(mask));
        }
    }

    fn finish_row(&self, b: &mut Builder, row: Value) {
        let env = self.row(b, row);
        let emit = |b: &mut Builder| {
            let (desc, step) = (self.desc, i64::from(WIDE));
            let size = desc.size(desc.element).as_const().unwrap_or(0);
            let (zero, end, width, one) =
                (b.const_i64(0), b.const_i64(size), b.const_i64(self.width), b.const_f32(1.0));
            let total = b.load(self.total, &[row], 1);
            // At least one wherever something is seen. The order of operands keeps what is not a number.
            let total = b.max(one, total);
            let inverse = b.div(one, total);
            let base = b.mul(row, width);
            if !on_vectors(&desc.vars, &desc.epilogue, desc.element) {
                return b.for_each(zero, end, 1, LoopKind::Serial, |b, e| {
                    let at = b.add(base, e);
                    let x = b.load(self.output, &[at], 1);
                    let x = b.mul(x, inverse);
                    finish(b, &desc.epilogue, &env.with(desc.element, e), x, None, None);
                });
            }
            let vector = |b: &mut Builder, e: Value, mask: Option<Value>| {
                let at = b.add(base, e);
                let x = b.load(self.output, &[at], WIDE);
                let x = b.mul(x, inverse);
                finish(b, &desc.epilogue, &env.with(desc.element, e), x, Some((desc.element, WIDE)), mask);
            };
            let whole = b.const_i64(size / step * step);
            if size >= step {
                b.for_each(zero, whole, step, LoopKind::Serial, |b, e| vector(b, e, None));
            }
            if size % step != 0 {
                let mask = b.lanes_below(whole, end, WIDE);
                vector(b, whole, Some(mask));
            }
        };
        if self.s.queries == 1 {
            return emit(b);
        }
        let heads = b.const_i64(self.s.heads);
        let i = b.div(row, heads);
        let query = b.add(self.first_query, i);
        let exists = b.lt(query, self.queries);
        b.if_then(exists, emit);
    }
}
