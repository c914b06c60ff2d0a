//! Prompts by warpgroups: a block of warps, of which some bring keys and values to shared memory, and others multiply them.
//!
//! A grid index has 128 rows, queries with the heads that share their keys, 64 for each of two warpgroups, and one tile of
//! rows after the other, so many apart. Queries are laid out in shared memory once for a tile. Keys and values come in
//! blocks of 64 rows, in panels of 64 columns; what is both is brought once. Scores are products of two tiles; they stay in
//! registers, become weights there, and are the rows of the product with the values, whose columns lie across.
//!
//! **Numbers.** Keys and values are bf16, as they are in memory. What is f32, queries and weights, is multiplied as three
//! bf16 that add up to it: the sums are those of f32, in another order. Each block of 64 keys is weighed as in the other
//! form ([`super`]), from the first row that may be seen on, so a row has the same bits whatever else is in its tile. But a
//! hidden value is multiplied by zero: keys and values of later tokens have to be numbers.

use super::desc::{Columns, Desc, Rows, Set};
use super::emit::{HIDDEN, NOTHING};
use crate::kernels::contract::emit::{Env, declare, finish};
use crate::kernels::contract::epilogue::on_vectors;
use crate::kernels::contract::tiles::places;
use crate::kernels::contract::view::{Access, Var};
use crate::kernels::ring::{Ring, Turn};
use crate::kernels::{Ranges, Target};
use hadal_ir::kernel::{Buf, Builder, Kernel, LoopKind, MATRIX, ReduceOp, Space, Swizzle, TeamOp, Value};
use hadal_ir::module::STEP;
use hadal_types::{DType, Dim};
use std::f32::consts::LOG2_E;

/// Rows of a tile, sixteen for each warp that multiplies.
const HEIGHT: i64 = 128;

/// Warps that multiply, and warps that bring; and how many registers each of their threads has.
const MULTIPLY: i64 = HEIGHT / 16;
const BRING: i64 = 4;
const REGISTERS: [u32; 2] = [224, 56];

/// Keys of a block. Part of the meaning of the result's bits.
const KEYS: i64 = 64;

/// Columns of a panel: 128 bytes.
const PANEL: i64 = 64;

/// Columns of values that there are registers for.
const WIDEST: i64 = 128;

/// Columns of the result that go to the epilogue at once.
const CHUNK: i64 = 32;

/// Bytes of shared memory that a block may have, but for barriers.
const SHARED: i64 = 226 << 10;

/// Tiles of rows that are summed at once by different grid indices, at most.
const WALKERS: i64 = 64;

/// How an attention is run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Schedule {
    /// The letter of heads that a tile has several of, and how many; they share keys and values.
    shared: Option<(Var, i64)>,
    /// Queries of a tile.
    queries: i64,
    /// Grid indices that go through the tiles of rows together.
    walkers: i64,
    /// Letters that are dimensions of the grid by themselves.
    grid: Vec<Var>,
    /// Parts that a query is the sum of.
    parts: i64,
    /// Blocks of keys and values that there is shared memory for.
    places: i64,
}

impl Schedule {
    /// For people, with the letters of `desc`.
    pub fn show(&self, desc: &Desc) -> String {
        let grid: String = self.grid.iter().map(|v| desc.vars.name(*v)).collect();
        let (shared, heads) = self.shared.map_or(("-".into(), 1), |(v, n)| (desc.vars.name(v), n));
        format!(
            "pipeline {} queries x {heads} heads of {shared}, {} walkers, keys by {KEYS}, grid [{grid}], {} parts, {} \
             places, {MULTIPLY} warps and {BRING}",
            self.queries, self.walkers, self.parts, self.places
        )
    }
}

/// Panels of keys and values in a place, and of queries.
struct Layout<'a> {
    set: &'a Set,
    /// What is brought, and its first panel.
    sources: Vec<(&'a Columns, i64)>,
    /// For each term its keys' first panel, and its queries'.
    terms: Vec<(i64, i64)>,
    /// For each part of the values its first panel.
    values: Vec<i64>,
    /// Panels of a place.
    panels: i64,
    /// Panels of queries.
    query_panels: i64,
}

impl<'a> Layout<'a> {
    fn new(set: &'a Set) -> Layout<'a> {
        let (mut sources, mut panels): (Vec<(&Columns, i64)>, i64) = (Vec::new(), 0);
        let mut place = |columns: &'a Columns| {
            if let Some((_, first)) = sources.iter().find(|(c, _)| c.at == columns.at && c.size == columns.size) {
                return *first;
            }
            sources.push((columns, panels));
            panels += columns.size.div_euclid(PANEL) + i64::from(columns.size % PANEL > 0);
            sources[sources.len() - 1].1
        };
        let (mut terms, mut query_panels) = (Vec::new(), 0);
        for term in &set.terms {
            terms.push((place(&term.key), query_panels));
            query_panels += (term.key.size + PANEL - 1) / PANEL;
        }
        let values = set.values.iter().map(&mut place).collect();
        Layout { set, sources, terms, values, panels, query_panels }
    }
}

/// The schedule, where it fits: for prompts whose keys and values are bf16, in rows of whole units of 16 bytes.
pub fn schedule(desc: &Desc, ranges: &Ranges, target: &Target) -> Option<Schedule> {
    let range = |symbol| ranges.get(&symbol).map(|r| (r.min, r.max));
    let most = desc.size(desc.query).upper(range).unwrap_or(i64::MAX);
    let [set] = &desc.sets[..] else { return None };
    if !target.warpgroups || most <= STEP || !matches!(set.rows, Rows::All | Rows::Causal) {
        return None;
    }
    let whole = |a: &Access, column: Var| {
        let others = a.at.terms.iter().filter(|(v, _)| **v != column);
        let aligned = |n: &Dim| n.div_exact(8).is_some();
        others.into_iter().all(|(_, n)| aligned(n)) && aligned(&a.at.offset) && a.at.coefficient(column).is(1)
    };
    let fits = |c: &Columns| {
        let plain = c.at.dtype == DType::BF16 && c.at.scale.is_none() && c.at.offset.is_none();
        plain && c.size % 8 == 0 && c.start % 8 == 0 && whole(&c.at, c.column)
    };
    let shared = desc.heads.iter().copied().filter(|h| desc.shared(*h));
    let count = |v: &Var| desc.size(*v).as_const();
    let shared = shared.filter(|v| count(v).is_some()).max_by_key(|v| count(v));
    let shared = shared.and_then(|v| {
        let all = count(&v)?;
        (1..=all.min(HEIGHT)).rev().find(|n| all % n == 0).map(|n| (v, n))
    });
    let queries = |a: &Access| {
        let known = |v: Var| desc.vars.stride(&a.at, v).is_some();
        known(desc.query) && shared.is_none_or(|(v, _)| known(v))
    };
    let all = set.values.iter().chain(set.terms.iter().map(|t| &t.key));
    let width: i64 = set.values.iter().map(|c| c.size).sum();
    if !all.into_iter().all(fits) || !set.terms.iter().all(|t| queries(&t.query)) || width > WIDEST {
        return None;
    }
    let layout = Layout::new(set);
    let narrow = set.terms.iter().all(|t| t.query.dtype == DType::BF16);
    let parts = if narrow { 1 } else { 3 };
    let panel = |rows: i64| rows * PANEL * 2;
    let scratch = MULTIPLY * 16 * (CHUNK + 8) * 4;
    let room = SHARED - scratch - parts * layout.query_panels * panel(HEIGHT);
    let places = (room / (layout.panels * panel(KEYS))).min(4);
    let rows = HEIGHT / shared.map_or(1, |(_, n)| n);
    let tiles = most.saturating_add(rows - 1) / rows;
    let grid = desc.heads.iter().copied().filter(|h| shared.is_none_or(|(v, _)| v != *h)).collect();
    let schedule = Schedule { shared, queries: rows, walkers: tiles.min(WALKERS), grid, parts, places };
    (places >= 2).then_some(schedule)
}

/// Emits `desc`.
pub fn emit(desc: &Desc, s: &Schedule) -> Kernel {
    let mut b = Builder::new(desc.name.clone());
    let bufs = declare(&mut b, &desc.params);
    let mut env = Env::new(&desc.vars, &bufs);
    for letter in &s.grid {
        let value = b.grid_dim(desc.size(*letter).clone());
        env = env.with(*letter, value);
    }
    let first_head = s.shared.map(|(letter, heads)| {
        let block = b.grid_dim(desc.size(letter).as_const().unwrap_or(1) / heads);
        let unit = b.const_i64(heads);
        b.mul(block, unit)
    });
    let walker = b.grid_dim(s.walkers);
    let unit = b.const_i64(s.queries);
    let first = b.mul(walker, unit);
    let layout = Layout::new(&desc.sets[0]);
    let bf16 = |b: &mut Builder, name: &str, n: i64| b.alloc_in(Space::Shared, Swizzle::B128, name, DType::BF16, [n]);
    let query = bf16(&mut b, "queries", s.parts * layout.query_panels * HEIGHT * PANEL);
    let keys = bf16(&mut b, "keys", s.places * layout.panels * KEYS * PANEL);
    let sums = b.alloc_in(Space::Shared, Swizzle::None, "sums", DType::F32, [MULTIPLY * 16 * (CHUNK + 8)]);
    let ring = Ring::new(&mut b, s.places, BRING, MULTIPLY);
    let laid = b.barriers("laid", MULTIPLY / 4, 4);
    let (queries, all) = (b.dim(desc.size(desc.query)), b.dim(desc.size(layout.set.key)));
    let before = b.sub(all, queries);
    let p = Pipeline { desc, s, env, layout, first_head, first, queries, all, before, query, keys, sums, ring, laid };
    let [zero, multiply, warps] = [0, MULTIPLY, MULTIPLY + BRING].map(|n| b.const_i64(n));
    b.for_each(zero, warps, 1, LoopKind::Warp, |b, warp| {
        let multiplies = b.lt(warp, multiply);
        b.if_else(
            multiplies,
            |b| {
                b.team_op(TeamOp::Registers(REGISTERS[0]));
                p.multiply(b, warp);
                Vec::new()
            },
            |b| {
                b.team_op(TeamOp::Registers(REGISTERS[1]));
                let number = b.sub(warp, multiply);
                p.bring(b, number);
                Vec::new()
            },
        );
    });
    b.finish()
}

struct Pipeline<'a> {
    desc: &'a Desc,
    s: &'a Schedule,
    env: Env<'a>,
    layout: Layout<'a>,
    first_head: Option<Value>,
    /// The first query of this grid index.
    first: Value,
    /// Number of queries, of keys, and of keys before the first query's own.
    queries: Value,
    all: Value,
    before: Value,
    /// Tiles of queries, and of keys and values.
    query: Buf,
    keys: Buf,
    /// Sixteen rows of some columns of each warp's results.
    sums: Buf,
    ring: Ring,
    /// What the warps of a warpgroup have laid out.
    laid: Buf,
}

/// Rows of a warp, in each lane of a tile of sums.
struct RowLanes {
    /// The number of keys that a row sees.
    limit: Value,
    /// As many keys as all rows see.
    least: Value,
    /// The head's number among those that share keys.
    head: Value,
}

fn lanes_of(b: &mut Builder, n: i64, lanes: u32) -> Value {
    let n = b.const_i64(n);
    b.splat(n, lanes)
}

impl Pipeline<'_> {
    fn heads(&self) -> i64 {
        self.s.shared.map_or(1, |(_, n)| n)
    }

    /// Goes through the tiles of rows: `f` gets the first query and the number of keys that some row sees.
    fn tiles(
        &self,
        b: &mut Builder,
        init: &[Value],
        mut f: impl FnMut(&mut Builder, (Value, Value), &[Value]) -> Vec<Value>,
    ) -> Vec<Value> {
        let step = self.s.queries * self.s.walkers;
        b.for_loop(self.first, self.queries, step, LoopKind::Serial, init, |b, first, at| {
            let seen = match self.layout.set.rows {
                Rows::Causal => {
                    let unit = b.const_i64(self.s.queries);
                    let last = b.add(first, unit);
                    let last = b.min(last, self.queries);
                    let seen = b.add(last, self.before);
                    b.min(seen, self.all)
                }
                _ => self.all,
            };
            f(b, (first, seen), at)
        })
    }

    /// What a warp brings: its rows of all blocks of all tiles.
    fn bring(&self, b: &mut Builder, number: Value) {
        let (zero, start) = (b.const_i64(0), self.ring.start(b));
        let all = self.tiles(b, &start, |b, (_, seen), at| {
            b.for_loop(zero, seen, KEYS, LoopKind::Serial, at, |b, first, at| {
                self.ring.fill(b, at, |b, place| {
                    for (columns, panel) in &self.layout.sources {
                        self.copy(b, (columns, *panel), (first, seen, number), place);
                    }
                })
            })
        });
        self.ring.finish(b, &all);
    }

    /// Copies a warp's rows of some columns for a block of keys: four at once, of what is not there the last that is.
    fn copy(
        &self,
        b: &mut Builder,
        (columns, panel): (&Columns, i64),
        (first, seen, number): (Value, Value, Value),
        place: Value,
    ) {
        let lanes = 32;
        let iota = b.iota(DType::I64, lanes);
        let [three, seven, eight, line] = [3, 7, 8, PANEL].map(|n| lanes_of(b, n, lanes));
        let (row, piece) = (b.ushr(iota, three), b.and(iota, seven));
        let piece = b.mul(piece, eight);
        let (four, end, one) = (b.const_i64(4), b.const_i64(KEYS), b.const_i64(1));
        let last = b.sub(seen, one);
        let last = b.splat(last, lanes);
        let from = b.mul(number, four);
        let (size, offset) = (b.const_i64(self.layout.panels * KEYS * PANEL), b.const_i64(panel * KEYS * PANEL));
        let base = b.mul(place, size);
        let base = b.add(base, offset);
        let zero = b.const_i64(0);
        let env = self.env.with(columns.column, zero);
        b.for_each(from, end, 4 * BRING, LoopKind::Serial, |b, at| {
            let at = b.splat(at, lanes);
            let within = b.add(at, row);
            let key = b.splat(first, lanes);
            let key = b.add(key, within);
            let key = b.min(key, last);
            let start = env.lanes_at(b, &columns.at.at, (self.layout.set.key, key));
            let start = b.add(start, piece);
            let to = b.mul(within, line);
            let to = b.add(to, piece);
            let base = b.splat(base, lanes);
            let to = b.add(to, base);
            for number in 0..(columns.size + PANEL - 1) / PANEL {
                let left = columns.size - number * PANEL;
                let counts = (left < PANEL).then(|| {
                    let left = lanes_of(b, left, lanes);
                    b.sub(left, piece)
                });
                let [down, along] = [number * KEYS * PANEL, number * PANEL].map(|n| lanes_of(b, n, lanes));
                let (to, start) = (b.add(to, down), b.add(start, along));
                b.copy((self.keys, &[to]), (env.bufs[columns.at.param], &[start]), lanes * 8, counts);
            }
        });
    }

    /// Query and head of rows, from a tile's first query on; beyond the last query it is the last one.
    fn places_of(&self, b: &mut Builder, first: Value, rows: Value) -> (Value, Value) {
        let lanes = b.ty(rows).lanes;
        let heads = lanes_of(b, self.heads(), lanes);
        let (query, head) = (b.div(rows, heads), b.rem(rows, heads));
        let one = b.const_i64(1);
        let last = b.sub(self.queries, one);
        let (first, last) = (b.splat(first, lanes), b.splat(last, lanes));
        let query = b.add(first, query);
        (b.min(query, last), head)
    }

    /// What a warp multiplies: its sixteen rows of all tiles.
    fn multiply(&self, b: &mut Builder, warp: Value) {
        let (sixteen, four) = (b.const_i64(16), b.const_i64(4));
        let own = b.mul(warp, sixteen);
        let group = b.div(warp, four);
        let turn = Turn::start(b).values();
        let start = [turn[0], turn[1], b.const_i64(0)];
        self.tiles(b, &start, |b, (first, seen), at| {
            self.lay(b, (first, at[2]), own, group);
            let rows = self.row_lanes(b, (first, seen), own);
            let mut state = self.nothing(b, &rows);
            let count = state.len();
            state.extend_from_slice(&at[..2]);
            let zero = b.const_i64(0);
            let mut state = b.for_loop(zero, seen, KEYS, LoopKind::Serial, &state, |b, start, state| {
                let turn = Turn::of(&state[count..]);
                let mut next = self.block(b, (start, group), &rows, &state[..count], turn);
                next.extend(self.ring.next(b, turn).values());
                next
            });
            let mut next = state.split_off(count);
            self.finish(b, (first, own, warp), &state);
            let one = b.const_i64(1);
            next.push(b.add(at[2], one));
            next
        });
    }

    /// Lays out a warp's queries of a tile of some number, in parts that add up to them. Those of the last tile are done
    /// with: the warpgroup's products with them are settled.
    fn lay(&self, b: &mut Builder, (first, number): (Value, Value), own: Value, group: Value) {
        let (zero, lanes) = (b.const_i64(0), 32);
        let iota = b.iota(DType::I64, lanes);
        let [three, seven, eight, line] = [3, 7, 8, PANEL].map(|n| lanes_of(b, n, lanes));
        let (row, piece) = (b.ushr(iota, three), b.and(iota, seven));
        let piece = b.mul(piece, eight);
        let sixteen = b.const_i64(16);
        b.for_each(zero, sixteen, 4, LoopKind::Serial, |b, at| {
            let at = b.add(own, at);
            let at = b.splat(at, lanes);
            let row = b.add(at, row);
            let (query, head) = self.places_of(b, first, row);
            let to = b.mul(row, line);
            let to = b.add(to, piece);
            for (term, (_, panel)) in self.layout.set.terms.iter().zip(&self.layout.terms) {
                let access = &term.query;
                let mut env = self.env.with(self.desc.query, zero).with(term.key.column, zero);
                let mut moved = vec![(self.desc.query, query)];
                if let (Some((letter, _)), Some(first)) = (self.s.shared, self.first_head) {
                    env = env.with(letter, first);
                    moved.push((letter, head));
                }
                let start = env.at(b, &access.at);
                let mut start = b.splat(start, lanes);
                for (letter, n) in moved {
                    let stride = self.desc.vars.stride(&access.at, letter).unwrap_or_default();
                    let stride = b.dim(&stride);
                    let stride = b.splat(stride, lanes);
                    let n = b.mul(n, stride);
                    start = b.add(start, n);
                }
                for number in 0..(term.key.size + PANEL - 1) / PANEL {
                    let left = term.key.size - number * PANEL;
                    let column = match left < PANEL {
                        true => {
                            let last = lanes_of(b, left - 8, lanes);
                            b.min(piece, last)
                        }
                        false => piece,
                    };
                    let along = lanes_of(b, number * PANEL, lanes);
                    let from = b.add(start, column);
                    let from = b.add(from, along);
                    let mut x = b.load(env.bufs[access.param], &[from], 8 * lanes);
                    if left < PANEL {
                        let iota = b.iota(DType::I64, 8 * lanes);
                        let within = lanes_of(b, PANEL - 1, 8 * lanes);
                        let (within, left) = (b.and(iota, within), lanes_of(b, left, 8 * lanes));
                        let there = b.lt(within, left);
                        let none = b.const_f32(0.0);
                        let none = b.splat(none, 8 * lanes);
                        let none = b.cast(none, access.dtype);
                        x = b.select(there, x, none);
                    }
                    for (part, x) in parts(b, x, self.s.parts).into_iter().enumerate() {
                        let panel = part as i64 * self.layout.query_panels + panel + number;
                        let down = lanes_of(b, panel * HEIGHT * PANEL, lanes);
                        let to = b.add(to, down);
                        b.store(self.query, &[to], x);
                    }
                }
            }
        });
        b.team_op(TeamOp::FenceAsync);
        b.arrive(self.laid, group);
        b.wait(self.laid, group, number);
    }

    fn row_lanes(&self, b: &mut Builder, (first, seen): (Value, Value), own: Value) -> RowLanes {
        let lanes = MATRIX[2].lanes;
        let (row, _) = places(b, 2, 1);
        let start = b.splat(own, lanes);
        let row = b.add(start, row);
        let (query, head) = self.places_of(b, first, row);
        if self.layout.set.rows == Rows::All {
            return RowLanes { limit: b.splat(seen, lanes), least: seen, head };
        }
        let (one, all) = (b.const_i64(1), b.splat(seen, lanes));
        let after = b.add(self.before, one);
        let more = b.splat(after, lanes);
        let limit = b.add(query, more);
        let limit = b.min(limit, all);
        // The first row sees no more than the others.
        let heads = b.const_i64(self.heads());
        let skipped = b.div(own, heads);
        let query = b.add(first, skipped);
        let least = b.add(query, after);
        RowLanes { limit, least: b.min(least, seen), head }
    }

    /// Largest score, each lane's sum of weights, and sums of values of rows that have seen nothing but the sink.
    fn nothing(&self, b: &mut Builder, rows: &RowLanes) -> Vec<Value> {
        let lanes = MATRIX[2].lanes;
        let (nothing, none) = (b.const_f32(NOTHING), b.const_f32(0.0));
        let (mut largest, none) = (b.splat(nothing, lanes), b.splat(none, lanes));
        let mut total = none;
        if let Some(sink) = &self.desc.sink {
            let at = match (self.s.shared, self.first_head) {
                (Some((letter, _)), Some(first)) => {
                    let first = b.splat(first, lanes);
                    let head = b.add(first, rows.head);
                    self.env.lanes_at(b, &sink.at, (letter, head))
                }
                _ => {
                    let at = self.env.at(b, &sink.at);
                    b.splat(at, lanes)
                }
            };
            let sink = b.load(self.env.bufs[sink.param], &[at], lanes);
            let sink = b.cast(sink, DType::F32);
            let log2e = b.const_f32(LOG2_E);
            let log2e = b.splat(log2e, lanes);
            let sink = b.mul(sink, log2e);
            largest = b.max(largest, sink);
            let rest = b.sub(sink, largest);
            let weight = b.exp2(rest);
            // Each of a row's eight elements has its part.
            let eighth = b.const_f32(0.125);
            let eighth = b.splat(eighth, lanes);
            total = b.mul(weight, eighth);
        }
        let width: i64 = self.layout.set.values.iter().map(|c| c.size).sum();
        [largest, total].into_iter().chain(vec![none; width as usize / 8]).collect()
    }

    /// A block of keys: scores, weights, sums.
    fn block(
        &self,
        b: &mut Builder,
        (start, group): (Value, Value),
        rows: &RowLanes,
        state: &[Value],
        turn: Turn,
    ) -> Vec<Value> {
        let lanes = MATRIX[2].lanes;
        self.ring.wait(b, turn);
        let size = b.const_i64(self.layout.panels * KEYS * PANEL);
        let place = b.mul(turn.place, size);
        let scores = self.scores(b, place, group);
        let scores = self.hide(b, start, rows, scores);
        let (mut largest, mut sums) = (scores[0], state[2..].to_vec());
        for x in &scores[1..] {
            largest = b.max(largest, *x);
        }
        let largest = b.rows(ReduceOp::Max, largest);
        let largest = b.max(state[0], largest);
        let change = b.sub(state[0], largest);
        let correction = b.exp2(change);
        let mut total = b.mul(state[1], correction);
        let weights: Vec<Value> = scores
            .into_iter()
            .map(|x| {
                let x = b.sub(x, largest);
                b.exp2(x)
            })
            .collect();
        for x in &weights {
            total = b.add(total, *x);
        }
        for sum in &mut sums {
            *sum = b.mul(*sum, correction);
        }
        debug_assert_eq!(b.ty(total).lanes, lanes);
        // One after the other, so that few are held at once.
        let all: Vec<Vec<Value>> = weights.into_iter().map(|x| parts(b, x, 3)).collect();
        let mut open = sums;
        for part in 0..3 {
            let rows: Vec<Value> = all.iter().map(|x| x[part]).collect();
            let mut next = Vec::new();
            for (columns, panel) in self.layout.set.values.iter().zip(&self.layout.values) {
                let offset = b.const_i64(panel * KEYS * PANEL);
                let at = b.add(place, offset);
                let count = columns.size as usize / 8;
                let sums = &open[next.len()..next.len() + count];
                let tile = (self.keys, at, (KEYS * PANEL) as u32);
                next.extend(b.wgmma_across(&rows, tile, columns.size as usize, Some(sums)));
            }
            open = next;
        }
        let sums = b.settle(&open, 0);
        self.ring.free(b, turn.place);
        [largest, total].into_iter().chain(sums).collect()
    }

    /// Scores of a block, scaled: their weights are powers of two.
    fn scores(&self, b: &mut Builder, place: Value, group: Value) -> Vec<Value> {
        let size = b.const_i64(64 * PANEL);
        let group = b.mul(group, size);
        let mut sums: Option<Vec<Value>> = None;
        for (term, (key, query)) in self.layout.set.terms.iter().zip(&self.layout.terms) {
            for number in 0..(term.key.size + PANEL - 1) / PANEL {
                let depth = (term.key.size - number * PANEL).min(PANEL);
                let depth = (depth + 15) / 16 * 16;
                let offset = b.const_i64((key + number) * KEYS * PANEL);
                let keys = b.add(place, offset);
                for part in 0..self.s.parts {
                    let panel = part * self.layout.query_panels + query + number;
                    let offset = b.const_i64(panel * HEIGHT * PANEL);
                    let rows = b.add(group, offset);
                    let factors = ((self.query, rows), (self.keys, keys));
                    sums = Some(b.wgmma(factors.0, factors.1, depth as u32, KEYS as usize, sums.as_deref()));
                }
            }
        }
        let scores = b.settle(&sums.unwrap_or_default(), 0);
        let scale = b.const_f32(self.desc.scale * LOG2_E);
        let scale = b.splat(scale, MATRIX[2].lanes);
        scores.into_iter().map(|x| b.mul(x, scale)).collect()
    }

    /// Hides the keys of a block that rows do not see.
    fn hide(&self, b: &mut Builder, start: Value, rows: &RowLanes, scores: Vec<Value>) -> Vec<Value> {
        let keys = b.const_i64(KEYS);
        let end = b.add(start, keys);
        let some = b.gt(end, rows.least);
        b.if_else(
            some,
            |b| {
                let lanes = MATRIX[2].lanes;
                let (_, column) = places(b, 2, 1);
                let start = b.splat(start, lanes);
                let key = b.add(start, column);
                let hidden = b.const_f32(HIDDEN);
                let hidden = b.splat(hidden, lanes);
                let hide = |(i, x): (usize, &Value)| {
                    let offset = lanes_of(b, 8 * i as i64, lanes);
                    let key = b.add(key, offset);
                    let seen = b.lt(key, rows.limit);
                    b.select(seen, *x, hidden)
                };
                scores.iter().enumerate().map(hide).collect()
            },
            |_| scores.clone(),
        )
    }

    /// A warp's rows through the epilogue.
    fn finish(&self, b: &mut Builder, (first, own, warp): (Value, Value, Value), state: &[Value]) {
        let (lanes, line) = (MATRIX[2].lanes, CHUNK + 8);
        let one = b.const_f32(1.0);
        let one = b.splat(one, lanes);
        let total = b.rows(ReduceOp::Add, state[1]);
        // The order of operands keeps what is not a number.
        let total = b.max(one, total);
        let inverse = b.div(one, total);
        let size = b.const_i64(16 * line);
        let base = b.mul(warp, size);
        let (row, pair) = places(b, 2, 2);
        let across = lanes_of(b, line, b.ty(row).lanes);
        let at = b.mul(row, across);
        let at = b.add(at, pair);
        let start = b.splat(base, b.ty(row).lanes);
        let at = b.add(at, start);
        let [zero, sixteen, heads, unit] = [0, 16, self.heads(), self.s.queries].map(|n| b.const_i64(n));
        let left = b.sub(self.queries, first);
        let left = b.min(left, unit);
        let left = b.mul(left, heads);
        let left = b.sub(left, own);
        let live = b.min(left, sixteen);
        let (epilogue, element) = (&self.desc.epilogue, self.desc.element);
        let vectors = on_vectors(&self.desc.vars, epilogue, element);
        let mut sums = &state[2..];
        let mut column = 0i64;
        while !sums.is_empty() {
            let most = sums.len().min(CHUNK as usize / 8);
            let count = (0..).map(|i| 1usize << i).take_while(|n| *n <= most).last().unwrap_or(1);
            let (chunk, rest) = sums.split_at(count);
            for (i, sum) in chunk.iter().enumerate() {
                let x = b.mul(*sum, inverse);
                let offset = lanes_of(b, 8 * i as i64, b.ty(at).lanes);
                let at = b.add(at, offset);
                b.store(self.sums, &[at], x);
            }
            let width = 8 * count as u32;
            b.for_each(zero, live, 1, LoopKind::Serial, |b, i| {
                let row = b.add(own, i);
                let query = b.div(row, heads);
                let query = b.add(first, query);
                let mut env = self.env.with(self.desc.query, query);
                if let (Some((letter, _)), Some(first)) = (self.s.shared, self.first_head) {
                    let head = b.rem(row, heads);
                    let head = b.add(first, head);
                    env = env.with(letter, head);
                }
                let line = b.const_i64(line);
                let from = b.mul(i, line);
                let from = b.add(base, from);
                let start = b.const_i64(column);
                if vectors {
                    let x = b.load(self.sums, &[from], width);
                    return finish(b, epilogue, &env.with(element, start), x, Some((element, width)), None);
                }
                let end = b.const_i64(width.into());
                b.for_each(zero, end, 1, LoopKind::Serial, |b, e| {
                    let (from, e) = (b.add(from, e), b.add(start, e));
                    let x = b.load(self.sums, &[from], 1);
                    finish(b, epilogue, &env.with(element, e), x, None, None);
                });
            });
            column += i64::from(width);
            sums = rest;
        }
    }
}

/// Elements as so many bf16 that add up to them, the smallest first.
fn parts(b: &mut Builder, x: Value, count: i64) -> Vec<Value> {
    if b.ty(x).elem == DType::BF16 {
        return vec![x];
    }
    let mut rest = x;
    let mut out = Vec::new();
    for part in 0..count {
        if part > 0 {
            let known = b.cast(out[part as usize - 1], DType::F32);
            rest = b.sub(rest, known);
        }
        out.push(b.cast(rest, DType::BF16));
    }
    out.reverse();
    out
}
