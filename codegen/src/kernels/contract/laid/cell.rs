//! What a grid index of the laid form computes.

use super::super::desc::Desc;
use super::super::emit::{Env, finish};
use super::super::epilogue::on_vectors;
use super::super::schedule::Schedule;
use super::super::view::Access;
use super::codes::{self, Line};
use super::rows::{Row, Rows};
use super::{Groups, LANES, Laid, heights};
use hadal_ir::kernel::{Buf, Builder, LoopKind, Value};
use hadal_types::{DType, Dim};

/// Lines that are no loop where a part has no more, and at a time where it has.
const UNROLLED: i64 = 8;

/// Sums of integers that grow side by side, at least.
const CHAINS: usize = 4;

/// Rows of a step's tile above which lines are asked for ahead of time, and how many lines: a page. With so many
/// products for each line a processor does not look far enough ahead by itself, and what foresees streams for it stops
/// at the ends of pages.
const ASKING: usize = 4;
const AHEAD: i64 = 64;

/// Some columns of so many rows from the first one on: a grid index.
pub fn cell(
    b: &mut Builder,
    desc: &Desc,
    s: &Schedule,
    env: &Env<'_>,
    (lo, hi): (Value, Value),
    (first, total): (Value, Value),
) {
    let Some(laid) = Laid::of(desc, s.streamed) else { return };
    let [w, x] = [&desc.operands[s.streamed], &desc.operands[1 - s.streamed]];
    let rows = s.rows.map_or(1i64.into(), |m| desc.size(m).clone());
    let rows = s.rows_block.map_or(rows, Dim::from);
    // What is written of rows is for all panels of the grid index.
    let together = if laid.part.is_some() { s.block.unwrap_or(s.strip as i64) } else { s.strip as i64 };
    let width = together * LANES;
    let sums = b.alloc("sums", DType::F32, [rows * width]);
    let [x_scale, scale, offset] =
        [&x.scale, &w.scale, &w.offset].map(|a| a.as_deref().and_then(|a| Scale::of(desc, a, &laid)));
    let scales = [scale, offset];
    let decoded = s.convert.map(|_| {
        let lines = together * s.depth.min(laid.lines * laid.word) / laid.word;
        let (dtype, each) = if s.pairs { (DType::BF16, 2) } else { (DType::F32, 1) };
        let line = codes::vectors(w, s.quads, s.pairs) * each * LANES;
        Decoded { buf: b.alloc("panel", dtype, [lines * line]), line, vector: each * LANES }
    });
    let cell = Cell { desc, s, laid, env, w, x, x_scale, scales, first, total, together, width, sums, decoded };
    let written = Rows::new(b, &cell, s.tile.0 as i64, s.depth.min(laid.lines * laid.word));
    b.for_each(lo, hi, together, LoopKind::Serial, |b, panel| cell.run(b, panel, written));
}

/// A grid index.
pub struct Cell<'e, 'a> {
    pub desc: &'a Desc,
    pub s: &'e Schedule,
    pub laid: Laid,
    env: &'e Env<'a>,
    /// What is laid out.
    pub w: &'a Access,
    /// What is not.
    pub x: &'a Access,
    /// The scale of rows.
    pub x_scale: Option<Scale<'a>>,
    /// Scale and offset of columns.
    scales: [Option<Scale<'a>>; 2],
    /// The first row, and how many there are.
    first: Value,
    total: Value,
    /// Panels that rows are written for at a time, and their columns.
    together: i64,
    width: i64,
    /// Rows of `width` sums.
    sums: Buf,
    /// The lines of a chunk as they are multiplied, where many rows meet them.
    decoded: Option<Decoded>,
}

/// Memory for lines of codes as they are multiplied.
#[derive(Clone, Copy)]
struct Decoded {
    buf: Buf,
    /// Elements of a line, and of a vector of it.
    line: i64,
    vector: i64,
}

/// A scale or an offset: which of it belongs to a part.
pub struct Scale<'a> {
    access: &'a Access,
    groups: Groups,
    /// Sixteen, of neighbouring columns, or one.
    lanes: u32,
    over: Option<Box<Scale<'a>>>,
}

impl<'a> Scale<'a> {
    fn of(desc: &Desc, access: &'a Access, laid: &Laid) -> Option<Scale<'a>> {
        let groups = Groups::of(desc, access, laid)?;
        let lanes = if desc.vars.stride(&access.at, laid.lane)?.is(0) { 1 } else { LANES as u32 };
        let over = access.scale.as_deref().map(|over| Scale::of(desc, over, laid)).map(|o| o.map(Box::new));
        Some(Scale { access, groups, lanes, over: over.unwrap_or_default() })
    }

    /// Where those of the first part are.
    pub fn base(&self, b: &mut Builder, env: &Env<'a>) -> Vec<Value> {
        let zero = b.const_i64(0);
        let first = self.groups.var.map_or(env.clone(), |var| env.with(var, zero)).at(b, &self.access.at);
        let over = self.over.as_ref().map(|over| over.base(b, env));
        [first].into_iter().chain(over.into_iter().flatten()).collect()
    }

    /// Those of a part, as f32.
    pub fn value(&self, b: &mut Builder, cell: &Cell<'_, 'a>, base: &[Value], part: Value) -> Value {
        let mut at = base[0];
        if let Some(var) = self.groups.var {
            let by = self.groups.size / cell.laid.part.unwrap_or(self.groups.size);
            let number = if by == 1 {
                part
            } else {
                let by = b.const_i64(by);
                b.div(part, by)
            };
            let step = b.dim(&self.access.at.coefficient(var));
            let offset = b.mul(number, step);
            at = b.add(at, offset);
        }
        let x = b.load(cell.env.bufs[self.access.param], &[at], self.lanes);
        let x = b.cast(x, DType::F32);
        match &self.over {
            Some(over) => {
                let over = over.value(b, cell, &base[1..], part);
                b.mul(x, over)
            }
            None => x,
        }
    }
}

/// Some panels side by side: where their lines begin, those of the chunk, and their scales and offsets.
struct Strip {
    lines: Vec<Value>,
    scales: Vec<[Vec<Value>; 2]>,
}

/// What is summed: from which line and part on.
#[derive(Clone, Copy)]
struct Chunk {
    from: Value,
    part: Value,
    /// Lines.
    length: i64,
}

impl<'a> Cell<'_, 'a> {
    /// Some panels, from this one on.
    fn run(&self, b: &mut Builder, panel: Value, written: Rows) {
        let (lines, depth) = (self.laid.lines, self.s.depth / self.laid.word);
        let (whole, rest) = (lines / depth * depth, lines % depth);
        let zero = b.const_i64(0);
        if lines > depth {
            let (none, end) = (self.zero(b), self.times(b, self.total, self.width));
            b.for_each(zero, end, LANES, LoopKind::Serial, |b, at| b.store(self.sums, &[at], none));
        }
        let chunk = |b: &mut Builder, from: Value, length: i64| {
            let unit = b.const_i64(self.part_lines());
            let part = b.div(from, unit);
            self.chunk(b, panel, Chunk { from, part, length }, written);
        };
        let end = b.const_i64(whole);
        if whole > 0 {
            b.for_each(zero, end, depth, LoopKind::Serial, |b, from| chunk(b, from, depth));
        }
        if rest > 0 {
            chunk(b, end, rest);
        }
        self.epilogue(b, panel);
    }

    /// Lines of a part.
    fn part_lines(&self) -> i64 {
        self.laid.part.map_or(1, |part| part / self.laid.word)
    }

    /// All rows by so many lines.
    fn chunk(&self, b: &mut Builder, panel: Value, chunk: Chunk, written: Rows) {
        if let Some(decoded) = self.decoded {
            self.decode(b, panel, chunk, decoded);
        }
        let known = match (self.s.rows, self.s.rows_block) {
            (None, _) => Some(1),
            (Some(m), None) => self.desc.known(m),
            (Some(_), Some(_)) => None,
        };
        let heights = heights(self.laid, i64::from(self.s.register) == LANES, self.s.step);
        let (mut first, mut left) = (b.const_i64(0), known);
        for height in heights.iter().copied().filter(|h| *h <= self.s.tile.0 as i64) {
            let tiles = left.map(|n| n / height);
            left = left.map(|n| n % height);
            if tiles == Some(0) {
                continue;
            }
            if tiles == Some(1) {
                self.rows(b, panel, (first, height), chunk, written);
                let unit = b.const_i64(height);
                first = b.add(first, unit);
                continue;
            }
            let rest = b.sub(self.total, first);
            let unit = b.const_i64(height);
            let tiles = b.div(rest, unit);
            let count = b.mul(tiles, unit);
            let end = b.add(first, count);
            b.for_each(first, end, height, LoopKind::Serial, |b, m| {
                self.rows(b, panel, (m, height), chunk, written);
            });
            first = end;
        }
    }

    /// Writes the lines of a chunk as they are multiplied.
    fn decode(&self, b: &mut Builder, panel: Value, chunk: Chunk, to: Decoded) {
        let (zero, panels) = (b.const_i64(0), b.const_i64(self.together));
        b.for_each(zero, panels, 1, LoopKind::Serial, |b, v| {
            let panel = b.add(panel, v);
            let env = self.env.with(self.laid.panel, panel).with(self.laid.line, chunk.from);
            let (from, to_here) = (env.at(b, &self.w.at), self.times(b, v, chunk.length * to.line));
            let lines = b.const_i64(chunk.length);
            b.for_each(zero, lines, 1, LoopKind::Serial, |b, i| {
                let (line, offset) = (self.load(b, from, i), self.times(b, i, to.line));
                let at = b.add(to_here, offset);
                for vector in 0..to.line / to.vector {
                    let (x, offset) = (line.vector(b, vector), b.const_i64(vector * to.vector));
                    let at = b.add(at, offset);
                    b.store(to.buf, &[at], x);
                }
            });
        });
    }

    /// Asks for the line that is so far behind this one.
    fn prefetch(&self, b: &mut Builder, base: Value, i: Value) {
        let ahead = b.const_i64(AHEAD);
        let i = b.add(i, ahead);
        let at = self.times(b, i, LANES * self.laid.word);
        let at = b.add(base, at);
        b.prefetch(self.env.bufs[self.w.param], &[at]);
    }

    /// A line, counted from where a panel's begin.
    fn load(&self, b: &mut Builder, base: Value, i: Value) -> Line {
        let elements = LANES * self.laid.word;
        let at = self.times(b, i, elements);
        let at = b.add(base, at);
        let loaded = b.load(self.env.bufs[self.w.param], &[at], elements as u32);
        Line::new(b, self.s, loaded)
    }

    /// `height` rows by all panels.
    fn rows(&self, b: &mut Builder, panel: Value, (first, height): (Value, i64), chunk: Chunk, written: Rows) {
        let rows: Vec<Row<'a>> = (0..height)
            .map(|i| {
                let offset = b.const_i64(i);
                let m = b.add(first, offset);
                let m = b.add(self.first, m);
                let env = self.s.rows.map_or(self.env.clone(), |rows| self.env.row(b, rows, m));
                written.write(b, self, (i, env), (chunk.from, chunk.part), chunk.length * self.laid.word)
            })
            .collect();
        let sums = self.times(b, first, self.width);
        let strip = |b: &mut Builder, v: Value| {
            let column = self.times(b, v, LANES);
            let sums = b.add(sums, column);
            self.tile(b, (panel, v), &rows, sums, chunk, written);
        };
        let zero = b.const_i64(0);
        if self.together == self.s.strip as i64 {
            return strip(b, zero);
        }
        let end = b.const_i64(self.together);
        b.for_each(zero, end, self.s.strip as i64, LoopKind::Serial, strip);
    }

    /// Adds the products of a chunk to the sums of some rows and panels, those from number `from` on.
    fn tile(
        &self,
        b: &mut Builder,
        (panel, from): (Value, Value),
        rows: &[Row<'a>],
        sums: Value,
        chunk: Chunk,
        written: Rows,
    ) {
        let vectors = self.s.strip as i64;
        let places: Vec<Value> = (0..rows.len() as i64 * vectors)
            .map(|i| {
                let offset = b.const_i64(i / vectors * self.width + i % vectors * LANES);
                b.add(sums, offset)
            })
            .collect();
        let mut strip = Strip { lines: Vec::new(), scales: Vec::new() };
        for v in 0..vectors {
            let v = b.const_i64(v);
            let v = b.add(from, v);
            let panel = b.add(panel, v);
            let env = self.env.with(self.laid.panel, panel);
            strip.lines.push(match self.decoded {
                Some(decoded) => self.times(b, v, chunk.length * decoded.line),
                None => env.with(self.laid.line, chunk.from).at(b, &self.w.at),
            });
            let scales = self.scales.each_ref().map(|scale| scale.as_ref().map(|scale| scale.base(b, &env)));
            strip.scales.push(scales.map(Option::unwrap_or_default));
        }
        let only = chunk.length == self.laid.lines;
        let none = self.zero(b);
        let init: Vec<Value> = match only {
            true => vec![none; places.len()],
            false => places.iter().map(|at| b.load(self.sums, &[*at], LANES as u32)).collect(),
        };
        let zero = b.const_i64(0);
        let sums = if self.laid.part.is_none() {
            self.products(b, &strip, rows, (zero, chunk.length), init, written)
        } else {
            let size = self.part_lines();
            let (whole, rest) = (b.const_i64(chunk.length / size), chunk.length % size);
            let part = |b: &mut Builder, at: Value, lines: i64, sums: &[Value]| {
                self.part(b, &strip, rows, (chunk.part, at, lines), sums, written)
            };
            let sums = b.for_loop(zero, whole, 1, LoopKind::Serial, &init, |b, at, sums| part(b, at, size, sums));
            if rest > 0 { part(b, whole, rest, &sums) } else { sums }
        };
        places.iter().zip(sums).for_each(|(at, sum)| b.store(self.sums, &[*at], sum));
    }

    /// Adds the scaled products of a part: that of number `at` of a chunk that begins with part `first`.
    fn part(
        &self,
        b: &mut Builder,
        strip: &Strip,
        rows: &[Row<'a>],
        (first, at, lines): (Value, Value, i64),
        sums: &[Value],
        written: Rows,
    ) -> Vec<Value> {
        let lanes = LANES as u32;
        let none = if self.s.quads { b.const_i32(0) } else { b.const_f32(0.0) };
        let (of_rows, vectors): (Vec<_>, _) = (rows.iter().map(|row| row.of_part(b, at)).collect(), strip.lines.len());
        let mut init = Vec::with_capacity(rows.len() * vectors);
        for (start, _) in &of_rows {
            let start = b.splat(start.unwrap_or(none), lanes);
            init.extend(vec![start; vectors]);
        }
        // Sums of integers are exact in any order: several of them, so that they do not wait for each other.
        let chains = if self.s.quads { (CHAINS / init.len()).max(1) } else { 1 };
        let none = b.splat(none, lanes);
        init.resize(init.len() * chains, none);
        let line = self.times(b, at, self.part_lines());
        let products = self.products(b, strip, rows, (line, lines), init, written);
        let products = (0..rows.len() * vectors).map(|i| {
            let chains = products.iter().skip(i).step_by(rows.len() * vectors).copied();
            chains.reduce(|sum, chain| b.add(sum, chain)).unwrap_or(none)
        });
        let products: Vec<Value> = products.collect();
        let part = b.add(first, at);
        let unit = codes::unit(self.w.dtype);
        let columns: Vec<[Option<Value>; 2]> = strip
            .scales
            .iter()
            .map(|bases| {
                let [scale, offset] = [0, 1].map(|i| {
                    let x = self.scales[i].as_ref()?.value(b, self, &bases[i], part);
                    Some(b.splat(x, lanes))
                });
                let scale = scale.map(|scale| {
                    let unit = b.const_f32(unit);
                    let unit = b.splat(unit, lanes);
                    if codes::unit(self.w.dtype) == 1.0 { scale } else { b.mul(scale, unit) }
                });
                [scale, offset]
            })
            .collect();
        let mut out = Vec::with_capacity(sums.len());
        for (i, row) in rows.iter().enumerate() {
            let scale = row.scale(b, self, part).map(|scale| b.splat(scale, lanes));
            let total = of_rows[i].1.map(|total| b.splat(total, lanes));
            for (v, [of_column, offset]) in columns.iter().enumerate() {
                let at = i * vectors + v;
                let by = match (*of_column, scale) {
                    (Some(a), Some(c)) => b.mul(a, c),
                    (a, c) => a.or(c).unwrap_or_else(|| self.zero(b)),
                };
                let product = b.cast(products[at], DType::F32);
                let mut sum = b.fma(product, by, sums[at]);
                if let (Some(offset), Some(total)) = (offset, total) {
                    sum = b.fma(*offset, total, sum);
                }
                out.push(sum);
            }
        }
        out
    }

    /// Adds the products of so many lines of the chunk.
    fn products(
        &self,
        b: &mut Builder,
        strip: &Strip,
        rows: &[Row<'a>],
        (first, count): (Value, i64),
        init: Vec<Value>,
        written: Rows,
    ) -> Vec<Value> {
        let line = |b: &mut Builder, i: (Value, i64), sums: &[Value]| self.line(b, strip, rows, i, sums, written);
        if self.laid.part.is_none() {
            let end = b.const_i64(count);
            return b.for_loop(first, end, 1, LoopKind::Serial, &init, |b, i, sums| line(b, (i, 0), sums));
        }
        let unit = if count <= UNROLLED { count } else { 4 };
        let many = |b: &mut Builder, from: Value, count: i64, sums: &[Value]| {
            (0..count).fold(sums.to_vec(), |sums, number| {
                let i = b.const_i64(number);
                let i = b.add(from, i);
                line(b, (i, number), &sums)
            })
        };
        if count == unit {
            return many(b, first, count, &init);
        }
        let whole = b.const_i64(count / unit * unit);
        let end = b.add(first, whole);
        let sums = b.for_loop(first, end, unit, LoopKind::Serial, &init, |b, i, sums| many(b, i, unit, sums));
        many(b, end, count % unit, &sums)
    }

    /// Adds the products of a line, the one of this number among those of a step.
    fn line(
        &self,
        b: &mut Builder,
        strip: &Strip,
        rows: &[Row<'a>],
        (i, number): (Value, i64),
        sums: &[Value],
        written: Rows,
    ) -> Vec<Value> {
        let s = self.s;
        let mut sums = sums.to_vec();
        let (count, tile) = (codes::vectors(self.w, s.quads, s.pairs), rows.len() * strip.lines.len());
        let chains = sums.len() / tile;
        let read: Vec<Line> = match self.decoded {
            Some(_) => Vec::new(),
            None => strip.lines.iter().map(|base| self.load(b, *base, i)).collect(),
        };
        if s.step && rows.len() > ASKING {
            strip.lines.iter().for_each(|base| self.prefetch(b, *base, i));
        }
        for vector in 0..count {
            let chain = (number * count + vector) as usize % chains;
            let sums = &mut sums[chain * tile..][..tile];
            let lines: Vec<Value> = match self.decoded {
                None => read.iter().map(|line| line.vector(b, vector)).collect(),
                Some(Decoded { buf, line, vector: lanes }) => {
                    let place = |base: &Value| {
                        let (at, offset) = (self.times(b, i, line), b.const_i64(vector * lanes));
                        let at = b.add(at, offset);
                        let at = b.add(*base, at);
                        b.load(buf, &[at], lanes as u32)
                    };
                    strip.lines.iter().map(place).collect()
                }
            };
            for (row, sums) in rows.iter().zip(sums.chunks_mut(lines.len())) {
                let x = written.factor(b, self, row, i, vector);
                for (sum, w) in sums.iter_mut().zip(&lines) {
                    *sum = match () {
                        () if s.quads => b.dot(*w, x, *sum),
                        () if s.pairs => b.dot(x, *w, *sum),
                        () => b.fma(x, *w, *sum),
                    };
                }
            }
        }
        sums
    }

    /// From the sums to memory.
    fn epilogue(&self, b: &mut Builder, panel: Value) {
        let (epilogue, lane, lanes) = (&self.desc.epilogue, self.laid.lane, LANES as u32);
        let vectors = on_vectors(&self.desc.vars, epilogue, lane);
        let zero = b.const_i64(0);
        b.for_each(zero, self.total, 1, LoopKind::Serial, |b, m| {
            let line = self.times(b, m, self.width);
            let m = b.add(self.first, m);
            let env = self.s.rows.map_or(self.env.clone(), |rows| self.env.row(b, rows, m));
            // Gathers do not run along lanes.
            let there = match (env.found(b, self.x), env.found(b, self.w)) {
                (Some(x), Some(w)) => Some(b.and(x, w)),
                (x, w) => x.or(w),
            };
            let write = |b: &mut Builder, env: &Env<'_>, at: Value, lanes: u32| {
                let sum = b.load(self.sums, &[at], lanes);
                let sum = match there {
                    None => sum,
                    Some(there) => {
                        let none = b.const_f32(0.0);
                        let (there, none) = (b.splat(there, lanes), b.splat(none, lanes));
                        b.select(there, sum, none)
                    }
                };
                finish(b, epilogue, env, sum, (lanes > 1).then_some((lane, lanes)), None);
            };
            let panels = |b: &mut Builder, v: Value| {
                let (offset, panel) = (self.times(b, v, LANES), b.add(panel, v));
                let (env, at) = (env.with(self.laid.panel, panel), b.add(line, offset));
                if vectors {
                    return write(b, &env, at, lanes);
                }
                let end = b.const_i64(LANES);
                b.for_each(zero, end, 1, LoopKind::Serial, |b, c| {
                    let at = b.add(at, c);
                    write(b, &env.with(lane, c), at, 1);
                });
            };
            if self.together <= 4 {
                for v in 0..self.together {
                    let v = b.const_i64(v);
                    panels(b, v);
                }
                return;
            }
            let end = b.const_i64(self.together);
            b.for_each(zero, end, 1, LoopKind::Serial, panels);
        });
    }

    pub fn zero(&self, b: &mut Builder) -> Value {
        let zero = b.const_f32(0.0);
        b.splat(zero, LANES as u32)
    }

    pub fn times(&self, b: &mut Builder, x: Value, by: i64) -> Value {
        let by = b.const_i64(by);
        b.mul(x, by)
    }
}
