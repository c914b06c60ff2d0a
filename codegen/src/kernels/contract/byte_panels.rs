//! The packed form of rows of bytes: blocks of columns laid out as words of four neighbouring codes, which tiles of rows
//! meet.
//!
//! As [`packed`](super::packed) does, but a line of a panel has four summed elements, and a tile's sums are exact integers
//! for one group: the neighbours that share the scales of both operands. They become f32 and are multiplied then; where the
//! columns' groups are longer, with the row's scale alone, and their sum with the column's in the end.
//!
//! The instruction takes one operand without a sign. That is the row's, with a bias of 128: its share, 128 times the sum of a
//! column's codes, is where a group's sums begin, and is taken once for all rows. Offsets are multiplied with the sum of a
//! row's elements, taken once for all columns of a grid index, which therefore has several blocks where there are many.

use super::bytes::{Bytes, E2M1};
use super::desc::Desc;
use super::emit::{Env, finish, in_vectors};
use super::epilogue::on_vectors;
use super::schedule::Schedule;
use super::view::{Access, Var};
use hadal_ir::kernel::{Buf, Builder, LoopKind, ReduceOp, Value};
use hadal_types::DType;

/// Columns of a block: two vectors.
pub const WIDTH: i64 = 32;

/// Elements of a column that are laid out at a time; chunks are multiples of it.
pub const STRIPE: i64 = 64;

const LANES: u32 = 16;

/// Lines of a panel that are not a loop.
const UNROLLED: i64 = 8;

/// What flips the first bit of each byte, which adds 128 to it.
const SIGNS: i32 = 0x8080_8080_u32 as i32;

/// All columns and rows of one grid index.
pub fn cell(b: &mut Builder, desc: &Desc, s: &Schedule, env: &Env<'_>, columns: (Value, Value), total: Value) {
    let (Some(rows), Some(k)) = (s.rows, s.sums.last().copied()) else { return };
    let (Some(size), Some(bytes)) = (desc.size(k).as_const(), Bytes::of(desc, s.streamed, k)) else { return };
    let [w, x] = [&desc.operands[s.streamed], &desc.operands[1 - s.streamed]];
    let width = s.block.unwrap_or(WIDTH);
    let (depth, height) = (s.depth.min((size + STRIPE - 1) / STRIPE * STRIPE), s.tile.0 as i64);
    let fine = bytes.fine();
    let group = bytes.w.size.min(depth);
    let (groups, parts) = ((depth + group - 1) / group, depth / fine);
    let panel = b.alloc("panel", DType::I32, [depth / 4 * width]);
    let stripe = b.alloc("stripe", DType::I32, [STRIPE / 4 * WIDTH]);
    let staged = b.alloc("rows", DType::U8, [height * apart(depth)]);
    let row_scales = b.alloc("row_scales", DType::F32, [height * stride(depth / bytes.x.size)]);
    let scales = b.alloc("scales", DType::F32, [groups * width]);
    let starts = b.alloc("starts", DType::I32, [parts * width]);
    let offsets = bytes.offsets.then(|| {
        let offsets = b.alloc("offsets", DType::F32, [groups * width]);
        (offsets, b.alloc("row_sums", DType::F32, [height * parts]))
    });
    let partial = (group > fine).then(|| b.alloc("partial", DType::F32, [height * WIDTH]));
    let sums = b.alloc("sums", DType::F32, [desc.size(rows).clone() * width]);
    let whole = desc.size(s.lane).as_const().is_some_and(|n| n % width == 0);
    let cell = Cell {
        desc,
        s,
        env,
        w,
        x,
        rows,
        total,
        k,
        bytes,
        size,
        fine,
        group,
        width,
        depth,
        whole,
        columns,
        panel,
        stripe,
        staged,
        row_scales,
        scales,
        starts,
        offsets,
        partial,
        sums,
    };
    cell.run(b);
}

/// Room for so many, in whole vectors.
fn stride(count: i64) -> i64 {
    (count + i64::from(LANES) - 1) / i64::from(LANES) * i64::from(LANES)
}

/// How far apart rows of so many bytes are: not a multiple of what all places in a cache are one of.
fn apart(depth: i64) -> i64 {
    depth + STRIPE
}

struct Cell<'e, 'a> {
    desc: &'a Desc,
    s: &'e Schedule,
    env: &'e Env<'a>,
    w: &'a Access,
    x: &'a Access,
    rows: Var,
    total: Value,
    k: Var,
    bytes: Bytes,
    size: i64,
    /// Summed elements that share all scales.
    fine: i64,
    /// Summed elements of a chunk that share the columns' scales.
    group: i64,
    /// Columns.
    width: i64,
    /// Summed elements of a chunk.
    depth: i64,
    /// Whether all grid indices have all columns.
    whole: bool,
    columns: (Value, Value),
    /// Blocks one after the other, of lines of words.
    panel: Buf,
    /// Columns as they are stored, which are turned then.
    stripe: Buf,
    /// A tile's rows, each byte 128 more.
    staged: Buf,
    row_scales: Buf,
    /// Blocks of lines: a scale for each column.
    scales: Buf,
    /// Blocks of lines: where sums begin.
    starts: Buf,
    /// As scales; and for each row the scaled sums of its elements.
    offsets: Option<(Buf, Buf)>,
    /// Sums with the scales of rows alone.
    partial: Option<Buf>,
    /// Rows of `width` sums.
    sums: Buf,
}

impl<'a> Cell<'_, 'a> {
    fn run(&self, b: &mut Builder) {
        let zero = b.const_i64(0);
        let none = self.zero(b);
        let end = self.times(b, self.total, self.width);
        b.for_each(zero, end, i64::from(LANES), LoopKind::Serial, |b, at| b.store(self.sums, &[at], none));
        let (whole, rest) = (self.size / self.depth * self.depth, self.size % self.depth);
        let end = b.const_i64(whole);
        b.for_each(zero, end, self.depth, LoopKind::Serial, |b, from| self.chunk(b, from, self.depth));
        if rest > 0 {
            self.chunk(b, end, rest);
        }
        self.epilogue(b);
    }

    /// Calls `f` with the number of each block's first column among those of the grid index.
    fn blocks(&self, b: &mut Builder, f: impl Fn(&mut Builder, Value)) {
        let zero = b.const_i64(0);
        if self.width == WIDTH {
            return f(b, zero);
        }
        let end = b.sub(self.columns.1, self.columns.0);
        b.for_each(zero, end, WIDTH, LoopKind::Serial, f);
    }

    /// So many summed elements.
    fn chunk(&self, b: &mut Builder, from: Value, length: i64) {
        self.blocks(b, |b, block| {
            self.pack(b, block, from, length);
            self.begin(b, block, length);
            self.lay_scales(b, block, from, length);
        });
        let mut first = b.const_i64(0);
        for height in [self.s.tile.0 as i64, 4, 1] {
            let left = b.sub(self.total, first);
            let unit = b.const_i64(height);
            let tiles = b.div(left, unit);
            let count = b.mul(tiles, unit);
            let end = b.add(first, count);
            b.for_each(first, end, height, LoopKind::Serial, |b, m| {
                for i in 0..height {
                    let row = b.const_i64(i);
                    let m = b.add(m, row);
                    let env = self.env.row(b, self.rows, m);
                    self.stage(b, &env, i, from, length);
                }
                self.blocks(b, |b, block| self.tile(b, m, height, block, length));
            });
            first = end;
        }
    }

    /// Lays out a block: converts a stripe of each column to bytes, then turns it.
    fn pack(&self, b: &mut Builder, block: Value, from: Value, length: i64) {
        let (whole, rest) = (length / STRIPE * STRIPE, length % STRIPE);
        let (zero, end) = (b.const_i64(0), b.const_i64(whole));
        b.for_each(zero, end, STRIPE, LoopKind::Serial, |b, at| self.pack_stripe(b, block, from, at, STRIPE));
        if rest > 0 {
            self.pack_stripe(b, block, from, end, rest);
        }
    }

    fn pack_stripe(&self, b: &mut Builder, block: Value, from: Value, at: Value, length: i64) {
        let (zero, width, lanes) = (b.const_i64(0), b.const_i64(WIDTH), STRIPE as u32);
        let k = b.add(from, at);
        let first = b.add(self.columns.0, block);
        b.for_each(zero, width, 1, LoopKind::Serial, |b, c| {
            let n = b.add(first, c);
            let n = self.column(b, n);
            let env = self.env.with(self.s.lane, n).with(self.k, k);
            let place = env.at(b, &self.w.at);
            let buf = env.bufs[self.w.param];
            let codes = if length == STRIPE {
                b.load(buf, &[place], lanes)
            } else {
                let stop = b.const_i64(length);
                let mask = b.lanes_below(zero, stop, lanes);
                b.load_masked(buf, &[place], mask, None)
            };
            let codes = match self.w.dtype {
                DType::F4E2M1 => b.lookup(E2M1.map(|x| x.wrapping_sub(12)), codes, DType::I8),
                _ => b.cast(codes, DType::I8),
            };
            let words = b.bitcast(codes, DType::I32);
            let to = self.times(b, c, STRIPE / 4);
            b.store(self.stripe, &[to], words);
        });
        // Squares of words are turned in registers.
        let side = i64::from(LANES);
        let line = self.line(b, block, self.depth / 4);
        let four = b.const_i64(4);
        let words = b.div(at, four);
        for v in 0..WIDTH / side {
            let columns = (0..side).map(|c| {
                let from = b.const_i64((v * side + c) * (STRIPE / 4));
                b.load(self.stripe, &[from], LANES)
            });
            let columns = columns.collect();
            for (j, x) in b.transpose(columns).into_iter().enumerate().take((length / 4) as usize) {
                let j = b.const_i64(j as i64);
                let to = b.add(words, j);
                let to = b.add(line, to);
                let (to, offset) = (self.times(b, to, WIDTH), b.const_i64(v * side));
                let to = b.add(to, offset);
                b.store(self.panel, &[to], x);
            }
        }
    }

    /// The number of a block's first line, of so many to a block.
    fn line(&self, b: &mut Builder, block: Value, lines: i64) -> Value {
        if self.width == WIDTH {
            return b.const_i64(0);
        }
        let width = b.const_i64(WIDTH);
        let number = b.div(block, width);
        self.times(b, number, lines)
    }

    /// Where the sums of a block begin: with what the rows' bias adds, taken off.
    fn begin(&self, b: &mut Builder, block: Value, length: i64) {
        let (zero, count) = (b.const_i64(0), b.const_i64(length / self.fine));
        let from = self.line(b, block, self.depth / 4);
        let to = self.line(b, block, self.depth / self.fine);
        let bias = b.const_i32(SIGNS);
        let bias = b.splat(bias, LANES);
        let (bias, none) = (b.bitcast(bias, DType::U8), b.const_i32(0));
        let none = b.splat(none, LANES);
        b.for_each(zero, count, 1, LoopKind::Serial, |b, g| {
            let first = self.times(b, g, self.fine / 4);
            let first = b.add(from, first);
            let line = b.add(to, g);
            for v in 0..WIDTH / i64::from(LANES) {
                let offset = b.const_i64(v * i64::from(LANES));
                let (zero, end) = (b.const_i64(0), b.const_i64(self.fine / 4));
                let share = b.for_loop(zero, end, 1, LoopKind::Serial, &[none], |b, i, sum| {
                    let at = b.add(first, i);
                    let at = self.times(b, at, WIDTH);
                    let at = b.add(at, offset);
                    let codes = b.load(self.panel, &[at], LANES);
                    let codes = b.bitcast(codes, DType::I8);
                    vec![b.dot(bias, codes, sum[0])]
                });
                let start = b.sub(none, share[0]);
                let to = self.times(b, line, WIDTH);
                let to = b.add(to, offset);
                b.store(self.starts, &[to], start);
            }
        });
    }

    /// Looks up a block's scales and offsets: a line of columns for each group.
    fn lay_scales(&self, b: &mut Builder, block: Value, from: Value, length: i64) {
        let zero = b.const_i64(0);
        let (count, end) = (b.const_i64((length + self.group - 1) / self.group), b.const_i64(WIDTH));
        let line = self.line(b, block, (self.depth + self.group - 1) / self.group);
        let first = b.add(self.columns.0, block);
        b.for_each(zero, count, 1, LoopKind::Serial, |b, g| {
            let at = self.times(b, g, self.group);
            let line = b.add(line, g);
            let line = self.times(b, line, WIDTH);
            let k = b.add(from, at);
            b.for_each(zero, end, 1, LoopKind::Serial, |b, c| {
                let n = b.add(first, c);
                let n = self.column(b, n);
                let env = self.env.with(self.s.lane, n).with(self.k, k);
                let to = b.add(line, c);
                if let Some(scale) = env.scale(b, self.w) {
                    let unit = b.const_f32(self.bytes.unit());
                    let scale = if self.bytes.unit() == 1.0 { scale } else { b.mul(scale, unit) };
                    b.store(self.scales, &[to], scale);
                }
                if let (Some((offsets, _)), Some(offset)) = (self.offsets, env.offset(b, self.w)) {
                    b.store(offsets, &[to], offset);
                }
            });
        });
    }

    /// Writes a row of a tile as it is multiplied, and its scales.
    fn stage(&self, b: &mut Builder, env: &Env<'a>, row: i64, from: Value, length: i64) {
        let (zero, end) = (b.const_i64(0), b.const_i64(length));
        let start = b.const_i64(row * apart(self.depth));
        let buf = env.bufs[self.x.param];
        in_vectors(b, STRIPE as u32, (zero, end, Some(length)), Vec::new(), &|b, at, mask, _| {
            let k = b.add(from, at);
            let place = env.with(self.k, k).at(b, &self.x.at);
            let x = match mask {
                Some(mask) => b.load_masked(buf, &[place], mask, None),
                None => b.load(buf, &[place], STRIPE as u32),
            };
            let words = b.bitcast(x, DType::I32);
            let signs = b.const_i32(SIGNS);
            let signs = b.splat(signs, LANES);
            let words = b.xor(words, signs);
            let x = b.bitcast(words, DType::U8);
            let to = b.add(start, at);
            // There is room for lanes beyond the end: chunks are counted in stripes.
            b.store(self.staged, &[to], x);
            Vec::new()
        });
        let Some(scale) = self.x.scale.as_deref() else { return };
        let each = self.bytes.x.size;
        let count = length / each;
        let stop = b.const_i64(count);
        let start = b.const_i64(row * stride(self.depth / each));
        let unit = b.const_i64(each);
        let before = b.div(from, unit);
        in_vectors(b, LANES, (zero, stop, Some(count)), Vec::new(), &|b, g, mask, _| {
            let number = b.add(before, g);
            let env = self.bytes.x.bind(b, env, self.k, number);
            let x = env.load(b, scale, LANES, mask);
            let to = b.add(start, g);
            b.store(self.row_scales, &[to], x);
            Vec::new()
        });
        let Some((_, row_sums)) = self.offsets else { return };
        let count = b.const_i64(length / self.fine);
        b.for_each(zero, count, 1, LoopKind::Serial, |b, g| {
            let at = self.times(b, g, self.fine);
            let k = b.add(from, at);
            let place = env.with(self.k, k).at(b, &self.x.at);
            let x = b.load(buf, &[place], self.fine as u32);
            let (ones, none) = (b.const_i32(0x0101_0101), b.const_i32(0));
            let (ones, none) = (b.splat(ones, self.fine as u32 / 4), b.splat(none, self.fine as u32 / 4));
            let ones = b.bitcast(ones, DType::U8);
            let total = b.dot(ones, x, none);
            let total = b.reduce_lanes(ReduceOp::Add, total);
            let total = b.cast(total, DType::F32);
            let scale = self.row_scale(b, row, g);
            let total = b.mul(total, scale);
            let offset = b.const_i64(row * (self.depth / self.fine));
            let to = b.add(offset, g);
            b.store(row_sums, &[to], total);
        });
    }

    /// The scale of a row's part.
    fn row_scale(&self, b: &mut Builder, row: i64, part: Value) -> Value {
        let each = self.bytes.x.size;
        let by = b.const_i64(each / self.fine);
        let group = if each == self.fine { part } else { b.div(part, by) };
        let start = b.const_i64(row * stride(self.depth / each));
        let at = b.add(start, group);
        b.load(self.row_scales, &[at], 1)
    }

    /// Adds the products of a chunk to the sums of a block and `height` rows from `first` on.
    fn tile(&self, b: &mut Builder, first: Value, height: i64, block: Value, length: i64) {
        let vectors = WIDTH / i64::from(LANES);
        let places: Vec<Value> = (0..height * vectors)
            .map(|i| {
                let row = b.const_i64(i / vectors);
                let m = b.add(first, row);
                let (at, offset) = (self.times(b, m, self.width), b.const_i64(i % vectors * i64::from(LANES)));
                let at = b.add(at, block);
                b.add(at, offset)
            })
            .collect();
        let (parts, groups) = (self.depth / self.fine, (self.depth + self.group - 1) / self.group);
        let (start, line) = (self.line(b, block, parts), self.line(b, block, groups));
        let zero = b.const_i64(0);
        let load_line = |b: &mut Builder, buf: Buf, line: Value| -> Vec<Value> {
            let at = self.times(b, line, WIDTH);
            let vectors = (0..vectors).map(|v| {
                let offset = b.const_i64(v * i64::from(LANES));
                let at = b.add(at, offset);
                b.load(buf, &[at], LANES)
            });
            vectors.collect()
        };
        let per = self.group / self.fine;
        let group = |b: &mut Builder, g: Value, count: i64| {
            let number = b.add(line, g);
            let part = self.times(b, g, per);
            if let Some(partial) = self.partial {
                let none = self.zero(b);
                let place = |b: &mut Builder, i: usize| b.const_i64(i as i64 * i64::from(LANES));
                for i in 0..places.len() {
                    let at = place(b, i);
                    b.store(partial, &[at], none);
                }
                let end = b.const_i64(count);
                b.for_each(zero, end, 1, LoopKind::Serial, |b, h| {
                    let part = b.add(part, h);
                    let line = b.add(start, part);
                    let begin = load_line(b, self.starts, line);
                    let products = self.products(b, height, block, part, &begin);
                    for row in 0..height {
                        let scale = self.row_scale(b, row, part);
                        for v in 0..vectors {
                            let i = (row * vectors + v) as usize;
                            let at = place(b, i);
                            let before = b.load(partial, &[at], LANES);
                            let sum = b.fma(products[i], scale, before);
                            b.store(partial, &[at], sum);
                        }
                    }
                });
                let scales = load_line(b, self.scales, number);
                for (i, to) in places.iter().enumerate() {
                    let (at, before) = (place(b, i), b.load(self.sums, &[*to], LANES));
                    let part = b.load(partial, &[at], LANES);
                    let sum = b.fma(part, scales[i % vectors as usize], before);
                    b.store(self.sums, &[*to], sum);
                }
                return;
            }
            let at = b.add(start, part);
            let begin = load_line(b, self.starts, at);
            let products = self.products(b, height, block, part, &begin);
            let scales = load_line(b, self.scales, number);
            let offsets = self.offsets.map(|(offsets, sums)| (load_line(b, offsets, number), sums));
            for row in 0..height {
                let scale = self.row_scale(b, row, part);
                let total = offsets.as_ref().map(|(_, sums)| {
                    let offset = b.const_i64(row * (self.depth / self.fine));
                    let at = b.add(offset, part);
                    b.load(*sums, &[at], 1)
                });
                for v in 0..vectors as usize {
                    let i = row as usize * vectors as usize + v;
                    let before = b.load(self.sums, &[places[i]], LANES);
                    let by = b.mul(scales[v], scale);
                    let mut sum = b.fma(products[i], by, before);
                    if let (Some((offsets, _)), Some(total)) = (&offsets, total) {
                        sum = b.fma(offsets[v], total, sum);
                    }
                    b.store(self.sums, &[places[i]], sum);
                }
            }
        };
        let whole = b.const_i64(length / self.group);
        b.for_each(zero, whole, 1, LoopKind::Serial, |b, g| group(b, g, per));
        if length % self.group > 0 {
            group(b, whole, length % self.group / self.fine);
        }
    }

    /// The sums of one part's products, from where they begin, as f32.
    fn products(&self, b: &mut Builder, height: i64, block: Value, part: Value, begin: &[Value]) -> Vec<Value> {
        let words = self.fine / 4;
        let first = self.times(b, part, words);
        let line = self.line(b, block, self.depth / 4);
        let line = b.add(line, first);
        let init: Vec<Value> = (0..height as usize * begin.len()).map(|i| begin[i % begin.len()]).collect();
        let word = |b: &mut Builder, i: Value, sums: &[Value]| -> Vec<Value> {
            let at = b.add(line, i);
            let at = self.times(b, at, WIDTH);
            let columns: Vec<Value> = (0..begin.len() as i64)
                .map(|v| {
                    let offset = b.const_i64(v * i64::from(LANES));
                    let at = b.add(at, offset);
                    let codes = b.load(self.panel, &[at], LANES);
                    b.bitcast(codes, DType::I8)
                })
                .collect();
            let at = b.add(first, i);
            let at = self.times(b, at, 4);
            let mut next = Vec::with_capacity(sums.len());
            for (row, sums) in sums.chunks(columns.len()).enumerate() {
                let offset = b.const_i64(row as i64 * apart(self.depth));
                let at = b.add(at, offset);
                let x = b.load(self.staged, &[at], 4);
                let x = b.bitcast(x, DType::I32);
                let x = b.splat(x, LANES);
                let x = b.bitcast(x, DType::U8);
                next.extend(sums.iter().zip(&columns).map(|(sum, w)| b.dot(x, *w, *sum)));
            }
            next
        };
        let sums = (0..words.min(UNROLLED)).fold(init, |sums, i| {
            let i = b.const_i64(i);
            word(b, i, &sums)
        });
        let (from, end) = (b.const_i64(words.min(UNROLLED)), b.const_i64(words));
        let sums = if words > UNROLLED {
            b.for_loop(from, end, UNROLLED, LoopKind::Serial, &sums, |b, i, sums| {
                (0..UNROLLED).fold(sums.to_vec(), |sums, j| {
                    let j = b.const_i64(j);
                    let i = b.add(i, j);
                    word(b, i, &sums)
                })
            })
        } else {
            sums
        };
        sums.into_iter().map(|sum| b.cast(sum, DType::F32)).collect()
    }

    /// From the sums to memory.
    fn epilogue(&self, b: &mut Builder) {
        let epilogue = &self.desc.epilogue;
        let (zero, lanes, n) = (b.const_i64(0), LANES, self.s.lane);
        let vectors = on_vectors(&self.desc.vars, epilogue, n);
        let count = b.sub(self.columns.1, self.columns.0);
        b.for_each(zero, self.total, 1, LoopKind::Serial, |b, m| {
            let env = self.env.row(b, self.rows, m);
            let line = self.times(b, m, self.width);
            let (step, lanes) = if vectors { (i64::from(lanes), lanes) } else { (1, 1) };
            b.for_each(zero, count, step, LoopKind::Serial, |b, c| {
                let (at, column) = (b.add(line, c), b.add(self.columns.0, c));
                let sum = b.load(self.sums, &[at], lanes);
                let env = env.with(n, column);
                if !vectors {
                    return finish(b, epilogue, &env, sum, None, None);
                }
                let mask = (!self.whole).then(|| b.lanes_below(column, self.columns.1, lanes));
                finish(b, epilogue, &env, sum, Some((n, lanes)), mask);
            });
        });
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

    fn zero(&self, b: &mut Builder) -> Value {
        let zero = b.const_f32(0.0);
        b.splat(zero, LANES)
    }

    fn times(&self, b: &mut Builder, x: Value, by: i64) -> Value {
        let by = b.const_i64(by);
        b.mul(x, by)
    }
}
