//! The packed form: a block of columns laid out as vectors of neighbouring columns, which tiles of rows meet.
//!
//! A grid index has two vectors of columns. For every chunk of the summed letter it lays the block out (`panel`: one
//! line of vectors per summed element, or per pair of them), then takes tiles of rows through it. A tile has all its
//! sums in registers: for each summed element it loads the line and multiplies it with one factor a row, which the
//! processor spreads over the lanes as it loads. Sums wait in memory between chunks, and for the epilogue, which runs
//! over them in a loop of its own: tiles are long enough unrolled as they are.

use super::desc::Desc;
use super::emit::{Env, finish};
use super::epilogue::on_vectors;
use super::schedule::{Schedule, UNIT, plain, steps};
use super::view::{Access, Var};
use hadal_ir::kernel::{Buf, Builder, LoopKind, Value};
use hadal_types::DType;

/// Elements of a column that are laid out at a time: so many that a column is read in a stream.
const STRIPE: i64 = 256;

/// Words between columns of a stripe, which would share few places of the nearest cache otherwise.
const PAD: i64 = 16;

/// All columns and rows of one grid index.
pub fn cell(b: &mut Builder, desc: &Desc, s: &Schedule, env: &Env<'_>, (lo, hi): (Value, Value), total: Value) {
    let (Some(rows), Some(k)) = (s.rows, s.sums.last().copied()) else { return };
    let Some(size) = desc.size(k).as_const() else { return };
    let group = if s.pairs { 2 } else { 1 };
    let word = if s.pairs { DType::I32 } else { DType::F32 };
    let width = s.tile.1 as i64 * i64::from(s.lanes);
    let whole = desc.size(s.lane).as_const().is_some_and(|n| n % width == 0);
    let (depth, height) = (s.depth.min((size + UNIT - 1) / UNIT * UNIT), s.tile.0 as i64);
    let [w, x] = [&desc.operands[s.streamed], &desc.operands[1 - s.streamed]];
    let turned = desc.vars.stride(&w.at, k).is_some_and(|s| s.is(1));
    let panel = b.alloc("panel", word, [depth / group * width]);
    let stripe =
        turned.then(|| (b.alloc("stripe", word, [(STRIPE.min(depth) / group + PAD) * width]), STRIPE.min(depth)));
    let staged = (!s.pairs && !plain(desc, x)).then(|| b.alloc("rows", DType::F32, [height * depth]));
    let scales = (s.group > 0).then(|| b.alloc("scales", DType::F32, [(depth + s.group - 1) / s.group * width]));
    let sums = b.alloc("sums", DType::F32, [desc.size(rows).clone() * width]);
    let columns = (lo, hi);
    let cell = Cell {
        desc,
        s,
        env,
        w,
        x,
        rows,
        total,
        k,
        group,
        width,
        depth,
        whole,
        columns,
        panel,
        stripe,
        staged,
        scales,
        sums,
    };
    if s.block.is_some_and(|block| block <= width) {
        return cell.run(b, size);
    }
    b.for_each(lo, hi, width, LoopKind::Serial, |b, n| {
        let unit = b.const_i64(width);
        let end = b.add(n, unit);
        let end = if whole { end } else { b.min(end, hi) };
        Cell { columns: (n, end), ..cell }.run(b, size);
    });
}

#[derive(Clone, Copy)]
struct Cell<'e, 'a> {
    desc: &'a Desc,
    s: &'e Schedule,
    env: &'e Env<'a>,
    /// What is packed.
    w: &'a Access,
    /// What is not.
    x: &'a Access,
    rows: Var,
    /// How many rows there are.
    total: Value,
    k: Var,
    /// Summed elements of a word.
    group: i64,
    /// Columns.
    width: i64,
    /// Summed elements of a chunk.
    depth: i64,
    /// Whether all blocks have all columns.
    whole: bool,
    columns: (Value, Value),
    panel: Buf,
    /// So many elements of columns as they are stored, which are turned then.
    stripe: Option<(Buf, i64)>,
    /// A tile's rows in f32.
    staged: Option<Buf>,
    /// Scales of the columns, group by group, where they multiply sums.
    scales: Option<Buf>,
    /// Rows of `width` sums.
    sums: Buf,
}

impl<'a> Cell<'_, 'a> {
    fn run(&self, b: &mut Builder, size: i64) {
        let zero = b.const_i64(0);
        let (whole, rest) = (size / self.depth * self.depth, size % self.depth);
        if size > self.depth || self.scales.is_some() {
            let none = self.zero(b);
            let (end, lanes) = (self.times(b, self.total, self.width), i64::from(self.s.lanes));
            b.for_each(zero, end, lanes, LoopKind::Serial, |b, at| b.store(self.sums, &[at], none));
        }
        let end = b.const_i64(whole);
        b.for_each(zero, end, self.depth, LoopKind::Serial, |b, from| self.chunk(b, from, self.depth, size));
        if rest > 0 {
            self.chunk(b, end, rest, size);
        }
        self.epilogue(b);
    }

    /// So many summed elements.
    fn chunk(&self, b: &mut Builder, from: Value, length: i64, size: i64) {
        let zero = b.const_i64(0);
        if let Some((_, stripe)) = self.stripe {
            let (whole, rest) = (length / stripe * stripe, length % stripe);
            let end = b.const_i64(whole);
            b.for_each(zero, end, stripe, LoopKind::Serial, |b, at| self.pack_turned(b, from, at, stripe));
            if rest > 0 {
                self.pack_turned(b, from, end, rest);
            }
        } else {
            self.pack(b, from, length);
        }
        self.lay_scales(b, from, length);
        let mut first = zero;
        // Fewer than four rows wait for their sums, so one tile takes all that are left.
        for height in [self.s.tile.0 as i64, 4, 3, 2, 1] {
            let left = b.sub(self.total, first);
            let unit = b.const_i64(height);
            let tiles = b.div(left, unit);
            let count = b.mul(tiles, unit);
            let end = b.add(first, count);
            b.for_each(first, end, height, LoopKind::Serial, |b, m| {
                self.tile(b, m, height, from, length, length == size);
            });
            first = end;
        }
    }

    /// Lays out columns that are stored one after the other: converts a stripe of each, then turns it.
    fn pack_turned(&self, b: &mut Builder, from: Value, at: Value, length: i64) {
        let Some((stripe, most)) = self.stripe else { return };
        let block = self.w.scale.as_deref().and_then(|scale| {
            self.desc.vars.reads(scale, self.k).then(|| steps(self.desc, scale, self.k, &[])).flatten()
        });
        let lanes = [64, 32].into_iter().find(|l| block.as_ref().is_none_or(|s| s.block % l == 0)).unwrap_or(16);
        let (zero, width) = (b.const_i64(0), b.const_i64(self.width));
        let start = b.add(from, at);
        let line = most / self.group + PAD;
        b.for_each(zero, width, 1, LoopKind::Serial, |b, c| {
            let n = b.add(self.columns.0, c);
            let n = self.column(b, n);
            let to = self.times(b, c, line);
            for j in (0..length).step_by(lanes as usize) {
                let offset = b.const_i64(j);
                let k = b.add(start, offset);
                let mask = (j + lanes > length).then(|| {
                    let left = b.const_i64(length);
                    let stop = b.add(start, left);
                    b.lanes_below(k, stop, lanes as u32)
                });
                let env = self.env.with(self.s.lane, n).with(self.k, k);
                let x = if self.s.pairs {
                    let x = self.halves(b, &env, lanes as u32, mask);
                    b.bitcast(x, DType::I32)
                } else {
                    let x = env.load(b, self.w, lanes as u32, mask);
                    let x = env.scaled(b, self.w, x);
                    env.or_zero(b, self.w, x)
                };
                let offset = b.const_i64(j / self.group);
                let to = b.add(to, offset);
                // Lanes beyond the end are written and never read.
                b.store(stripe, &[to], x);
            }
        });
        // Squares of words are turned in registers.
        let side = i64::from(self.s.lanes);
        let words = (length / self.group + side - 1) / side * side;
        let (words, place) = (b.const_i64(words), self.word(b, at));
        b.for_each(zero, words, side, LoopKind::Serial, |b, i| {
            for v in 0..self.s.tile.1 as i64 {
                let columns = (0..side).map(|c| {
                    let column = b.const_i64((v * side + c) * line);
                    let from = b.add(column, i);
                    b.load(stripe, &[from], self.s.lanes)
                });
                let columns = columns.collect();
                for (j, x) in b.transpose(columns).into_iter().enumerate() {
                    let j = b.const_i64(j as i64);
                    let to = b.add(i, j);
                    let to = b.add(place, to);
                    let (to, offset) = (self.times(b, to, self.width), b.const_i64(v * side));
                    let to = b.add(to, offset);
                    b.store(self.panel, &[to], x);
                }
            }
        });
    }

    /// Lays out columns that are stored side by side.
    fn pack(&self, b: &mut Builder, from: Value, length: i64) {
        let (zero, end) = (b.const_i64(0), b.const_i64(length));
        b.for_each(zero, end, 1, LoopKind::Serial, |b, i| {
            let k = b.add(from, i);
            let to = self.times(b, i, self.width);
            for v in 0..self.s.tile.1 {
                let (n, offset) = self.vector(b, v);
                let mask = self.mask(b, n);
                let env = self.env.with(self.s.lane, n).with(self.k, k);
                let x = env.load(b, self.w, self.s.lanes, mask);
                // What all lanes share is that of a column that there is, also where no lane is one.
                let n = self.column(b, n);
                let env = env.with(self.s.lane, n);
                let x = env.scaled(b, self.w, x);
                let x = env.or_zero(b, self.w, x);
                let to = b.add(to, offset);
                b.store(self.panel, &[to], x);
            }
        });
    }

    /// Adds the chunk's products to the sums of `height` rows.
    fn tile(&self, b: &mut Builder, first: Value, height: i64, from: Value, length: i64, only: bool) {
        let rows: Vec<Value> = (0..height)
            .map(|i| {
                let i = b.const_i64(i);
                b.add(first, i)
            })
            .collect();
        let envs: Vec<Env<'a>> = rows.iter().map(|m| self.env.row(b, self.rows, *m)).collect();
        self.stage(b, &envs, from, length);
        let lanes = self.s.lanes;
        let places: Vec<Value> = rows
            .iter()
            .flat_map(|m| (0..self.s.tile.1 as i64).map(|v| (*m, v * i64::from(lanes))).collect::<Vec<_>>())
            .map(|(m, offset)| {
                let (at, offset) = (self.times(b, m, self.width), b.const_i64(offset));
                b.add(at, offset)
            })
            .collect();
        let (none, zero) = (self.zero(b), b.const_i64(0));
        let before = |b: &mut Builder| places.iter().map(|at| b.load(self.sums, &[*at], lanes)).collect::<Vec<_>>();
        let Some(scales) = self.scales else {
            let init = if only { vec![none; places.len()] } else { before(b) };
            let sums = self.products(b, &envs, from, (zero, length), init);
            places.iter().zip(sums).for_each(|(at, sum)| b.store(self.sums, &[*at], sum));
            return;
        };
        let group = self.s.group;
        let scaled = |b: &mut Builder, g: Value, length: i64| {
            let (at, line) = (self.times(b, g, group), self.times(b, g, self.width));
            let parts = self.products(b, &envs, from, (at, length), vec![none; places.len()]);
            let vectors = self.s.tile.1;
            let by: Vec<Value> = (0..vectors as i64)
                .map(|v| {
                    let offset = b.const_i64(v * i64::from(lanes));
                    let at = b.add(line, offset);
                    b.load(scales, &[at], lanes)
                })
                .collect();
            let sums = before(b);
            for (i, (part, sum)) in parts.into_iter().zip(sums).enumerate() {
                let sum = b.fma(part, by[i % vectors], sum);
                b.store(self.sums, &[places[i]], sum);
            }
        };
        let whole = b.const_i64(length / group);
        b.for_each(zero, whole, 1, LoopKind::Serial, |b, g| scaled(b, g, group));
        if length % group > 0 {
            scaled(b, whole, length % group);
        }
    }

    /// Adds the products of so many summed elements of the chunk to the sums of a tile.
    fn products(
        &self,
        b: &mut Builder,
        rows: &[Env<'a>],
        from: Value,
        (at, length): (Value, i64),
        init: Vec<Value>,
    ) -> Vec<Value> {
        let lanes = self.s.lanes;
        let (first, words) = (self.word(b, at), b.const_i64(length / self.group));
        let end = b.add(first, words);
        b.for_loop(first, end, 1, LoopKind::Serial, &init, |b, i, sums| {
            let line = self.times(b, i, self.width);
            let line: Vec<Value> = (0..self.s.tile.1 as i64)
                .map(|v| {
                    let offset = b.const_i64(v * i64::from(lanes));
                    let at = b.add(line, offset);
                    let w = b.load(self.panel, &[at], lanes);
                    if self.s.pairs { b.bitcast(w, DType::BF16) } else { w }
                })
                .collect();
            let mut next = Vec::with_capacity(sums.len());
            for (row, sums) in sums.chunks(line.len()).enumerate() {
                let x = self.factor(b, &rows[row], row as i64, from, i);
                next.extend(sums.iter().zip(&line).map(|(sum, w)| match self.s.pairs {
                    true => b.dot(x, *w, *sum),
                    false => b.fma(x, *w, *sum),
                }));
            }
            next
        })
    }

    /// Converts a tile's rows where they are not f32 as they are.
    fn stage(&self, b: &mut Builder, rows: &[Env<'a>], from: Value, length: i64) {
        let Some(staged) = self.staged else { return };
        let (zero, lanes) = (b.const_i64(0), self.s.lanes);
        for (row, env) in rows.iter().enumerate() {
            let line = b.const_i64(row as i64 * self.depth);
            let step = |b: &mut Builder, at: Value, mask: Option<Value>| {
                let k = b.add(from, at);
                let env = env.with(self.k, k);
                let x = env.load(b, self.x, lanes, mask);
                let x = env.scaled(b, self.x, x);
                let x = env.or_zero(b, self.x, x);
                let to = b.add(line, at);
                // There is room for lanes beyond the end: chunks are counted in stripes.
                b.store(staged, &[to], x);
            };
            let whole = b.const_i64(length / i64::from(lanes) * i64::from(lanes));
            b.for_each(zero, whole, i64::from(lanes), LoopKind::Serial, |b, at| step(b, at, None));
            if length % i64::from(lanes) > 0 {
                let end = b.const_i64(length);
                let mask = b.lanes_below(whole, end, lanes);
                step(b, whole, Some(mask));
            }
        }
    }

    /// The factor, or pair of factors, of a row that a line of the panel is multiplied with.
    fn factor(&self, b: &mut Builder, row_env: &Env<'a>, row: i64, from: Value, i: Value) -> Value {
        if let Some(staged) = self.staged {
            let line = b.const_i64(row * self.depth);
            let at = b.add(line, i);
            let x = b.load(staged, &[at], 1);
            return b.splat(x, self.s.lanes);
        }
        let offset = self.times(b, i, self.group);
        let k = b.add(from, offset);
        let env = row_env.with(self.k, k);
        if !self.s.pairs {
            let x = env.read(b, self.x, None, None);
            return b.splat(x, self.s.lanes);
        }
        let at = env.at(b, &self.x.at);
        let pair = b.load(env.bufs[self.x.param], &[at], 2);
        let word = b.bitcast(pair, DType::I32);
        let words = b.splat(word, self.s.lanes);
        b.bitcast(words, DType::BF16)
    }

    /// From the sums to memory.
    fn epilogue(&self, b: &mut Builder) {
        let epilogue = &self.desc.epilogue;
        let (zero, lanes, n) = (b.const_i64(0), self.s.lanes, self.s.lane);
        let vectors = on_vectors(&self.desc.vars, epilogue, n);
        b.for_each(zero, self.total, 1, LoopKind::Serial, |b, m| {
            let env = self.env.row(b, self.rows, m);
            let line = self.times(b, m, self.width);
            if !vectors {
                let count = b.sub(self.columns.1, self.columns.0);
                return b.for_each(zero, count, 1, LoopKind::Serial, |b, c| {
                    let (at, column) = (b.add(line, c), b.add(self.columns.0, c));
                    let sum = b.load(self.sums, &[at], 1);
                    finish(b, epilogue, &env.with(n, column), sum, None, None);
                });
            }
            for v in 0..self.s.tile.1 {
                let (column, offset) = self.vector(b, v);
                let mask = self.mask(b, column);
                let at = b.add(line, offset);
                let sum = b.load(self.sums, &[at], lanes);
                finish(b, epilogue, &env.with(n, column), sum, Some((n, lanes)), mask);
            }
        });
    }

    /// A vector of the block: its first column, and where it is in the block.
    fn vector(&self, b: &mut Builder, v: usize) -> (Value, Value) {
        let offset = b.const_i64(v as i64 * i64::from(self.s.lanes));
        (b.add(self.columns.0, offset), offset)
    }

    /// A column of the block, or the last that there is.
    fn column(&self, b: &mut Builder, n: Value) -> Value {
        if self.whole {
            return n;
        }
        let one = b.const_i64(1);
        let last = b.sub(self.columns.1, one);
        b.min(n, last)
    }

    /// The columns that there are, where some may be missing.
    fn mask(&self, b: &mut Builder, n: Value) -> Option<Value> {
        (!self.whole).then(|| b.lanes_below(n, self.columns.1, self.s.lanes))
    }

    /// What is packed as bf16, which it fits.
    fn halves(&self, b: &mut Builder, env: &Env<'_>, lanes: u32, mask: Option<Value>) -> Value {
        let at = env.at(b, &self.w.at);
        let buf = env.bufs[self.w.param];
        let x = match mask {
            Some(mask) => b.load_masked(buf, &[at], mask, None),
            None => b.load(buf, &[at], lanes),
        };
        if self.w.dtype == DType::BF16 {
            return x;
        }
        let x = b.cast(x, DType::F32);
        b.cast(x, DType::BF16)
    }

    /// Looks up the chunk's scales: a line of columns for each group.
    fn lay_scales(&self, b: &mut Builder, from: Value, length: i64) {
        let Some(scales) = self.scales else { return };
        let (zero, group) = (b.const_i64(0), self.s.group);
        let (count, end) = (b.const_i64((length + group - 1) / group), b.const_i64(self.width));
        b.for_each(zero, count, 1, LoopKind::Serial, |b, g| {
            let (at, line) = (self.times(b, g, group), self.times(b, g, self.width));
            let k = b.add(from, at);
            b.for_each(zero, end, 1, LoopKind::Serial, |b, c| {
                let n = b.add(self.columns.0, c);
                let n = self.column(b, n);
                let env = self.env.with(self.s.lane, n).with(self.k, k);
                if let Some(scale) = env.scale(b, self.w) {
                    let to = b.add(line, c);
                    b.store(scales, &[to], scale);
                }
            });
        });
    }

    /// The word of a summed element.
    fn word(&self, b: &mut Builder, k: Value) -> Value {
        let group = b.const_i64(self.group);
        if self.group == 1 { k } else { b.div(k, group) }
    }

    fn zero(&self, b: &mut Builder) -> Value {
        let zero = b.const_f32(0.0);
        b.splat(zero, self.s.lanes)
    }

    fn times(&self, b: &mut Builder, x: Value, by: i64) -> Value {
        let by = b.const_i64(by);
        b.mul(x, by)
    }
}
