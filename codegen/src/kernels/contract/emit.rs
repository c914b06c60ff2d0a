//! Kernel IR for a product-sum under a schedule.

use super::desc::Desc;
pub use super::env::{Env, Step, declare, in_vectors, load_f32};
pub use super::epilogue::finish;
use super::epilogue::on_vectors;
use super::schedule::{Form, Schedule, WIDE_SUMS, steps};
use super::view::{Access, Var};
use super::{laid, packed, pipeline, tiles};
use hadal_ir::kernel::{Buf, Builder, Kernel, LoopKind, ReduceOp, Value};
use hadal_types::{DType, Dim};

/// Emits `desc` under one of its candidate schedules.
pub fn emit(desc: &Desc, s: &Schedule) -> Kernel {
    let mut b = Builder::new(desc.name.clone());
    let bufs = declare(&mut b, &desc.params);
    let env = Env::new(&desc.vars, &bufs);
    // All groups take part in a block of columns before the next one, so that parts of the grid are alike however rows
    // are spread over groups.
    let (last, first): (Vec<Var>, Vec<Var>) =
        s.grid.iter().partition(|v| desc.grouped.as_ref().is_some_and(|g| !g.each_row && g.group == **v));
    let dimension = |b: &mut Builder, letter: Var| {
        let groups = desc.grouped.as_ref().filter(|g| g.group == letter);
        b.grid_dim(groups.map_or(desc.size(letter), |g| g.extent(&desc.vars)).clone())
    };
    let env = first.iter().fold(env, |env, letter| env.with(*letter, dimension(&mut b, *letter)));
    let size = |n: Var| desc.size(n).as_const();
    let (lo, hi) = match (s.cols, s.block) {
        (None, _) => (b.const_i64(0), b.const_i64(1)),
        (Some(n), None) => (b.const_i64(0), b.dim(desc.size(n))),
        (Some(n), Some(block)) => {
            let count = size(n).unwrap_or(0);
            let cell = b.grid_dim(count.saturating_add(block - 1) / block);
            let (unit, end) = (b.const_i64(block), b.const_i64(count));
            let lo = b.mul(cell, unit);
            let hi = b.add(lo, unit);
            (lo, if count % block == 0 { hi } else { b.min(hi, end) })
        }
    };
    let env = last.iter().fold(env, |env, letter| env.with(*letter, dimension(&mut b, *letter)));
    let all = s.rows.map_or(Dim::from(1i64), |m| desc.size(m).clone());
    match &desc.grouped {
        None if matches!(s.form, Form::Tiles | Form::Pipeline) => {
            let walkers = tiles::walkers(desc, s);
            let (first, total) = (b.grid_dim(walkers), b.dim(&all));
            match s.form {
                Form::Tiles => tiles::cell(&mut b, desc, s, &env, ((lo, hi), total), (first, walkers)),
                _ => {
                    pipeline::cell(&mut b, desc, s, &env, (lo, hi), pipeline::Rows::All { total, first, step: walkers })
                }
            }
        }
        None if s.rows_block.is_some() => {
            // Extents of a grid are affine in the symbols, so there is an index for every row: the first of a block
            // acts.
            let first = b.grid_dim(all.clone());
            let (unit, zero, total) = (b.const_i64(s.rows_block.unwrap_or(1)), b.const_i64(0), b.dim(&all));
            let place = b.rem(first, unit);
            let leads = b.eq(place, zero);
            b.if_then(leads, |b| {
                let left = b.sub(total, first);
                let count = b.min(left, unit);
                laid::cell(b, desc, s, &env, (lo, hi), (first, count));
            });
        }
        None => {
            let total = b.dim(&all);
            cell(&mut b, desc, s, &env, (lo, hi), total);
        }
        Some(grouped) if s.form == Form::Pipeline => {
            pipeline::cell(&mut b, desc, s, &env, (lo, hi), pipeline::Rows::Listed(grouped));
        }
        Some(grouped) => {
            let (env, total) = match s.form {
                Form::Tiles => grouped.list_by_lanes(&mut b, &env),
                _ => grouped.list(&mut b, &env),
            };
            let zero = b.const_i64(0);
            let any = b.gt(total, zero);
            b.if_then(any, |b| cell(b, desc, s, &env, (lo, hi), total));
        }
    }
    b.finish()
}

/// What a grid index computes: `total` rows of these columns.
fn cell(b: &mut Builder, desc: &Desc, s: &Schedule, env: &Env<'_>, (lo, hi): (Value, Value), total: Value) {
    if s.form == Form::Laid {
        let first = b.const_i64(0);
        return laid::cell(b, desc, s, env, (lo, hi), (first, total));
    }
    if s.form == Form::Tiles {
        let first = b.const_i64(0);
        return tiles::cell(b, desc, s, env, ((lo, hi), total), (first, 1));
    }
    if s.form == Form::Packed {
        return packed::cell(b, desc, s, env, (lo, hi), total);
    }
    let size = |n: Var| desc.size(n).as_const();
    let lanes = if s.form == Form::Outer { s.lanes as i64 } else { 1 };
    let fits = |width: usize| {
        let width = width as i64 * lanes;
        s.cols.is_none_or(|n| size(n).is_some_and(|n| n % width == 0) && s.block.is_none_or(|block| block % width == 0))
    };
    // Columns that are apart overhang wherever a block is not whole.
    let torn = s.apart > 1 && s.cols.and_then(size).zip(s.block).is_none_or(|(n, block)| n % block != 0);
    let ragged = torn || !fits(s.strip) || (s.rows.is_some() && !fits(s.tile.1));
    let staged = s.form == Form::Dot
        && s.strip > 1
        && s.apart == 1
        && s.cols.is_some_and(|n| on_vectors(&desc.vars, &desc.epilogue, n));
    let stage = staged.then(|| b.alloc("sums", DType::F32, [(s.tile.0 * s.strip) as i64]));
    let folded = desc.size(s.lane).as_const().filter(|_| s.fold).map(|k| {
        let rows = s.rows.map_or(Dim::from(1i64), |m| desc.size(m).clone());
        let register = i64::from(s.register);
        let stride = k.saturating_add(register - 1) / register * register;
        Rows { buf: b.alloc("rows", DType::F32, [rows * stride]), stride }
    });
    Emitter { desc, s, lo, hi, total, ragged, stage, folded }.cell(b, env);
}

struct Emitter<'a> {
    desc: &'a Desc,
    s: &'a Schedule,
    /// Columns of this grid index.
    lo: Value,
    hi: Value,
    /// How many rows there are.
    total: Value,
    /// Whether tiles may overhang the columns.
    ragged: bool,
    /// Where the sums of a dot tile meet, `strip` columns for every row, so that the epilogue runs on vectors.
    stage: Option<Buf>,
    /// The other operand's rows, scaled.
    folded: Option<Rows>,
}

/// Rows of an operand in f32, whose elements are consecutive: a block of the streamed one, or all of the other.
#[derive(Clone, Copy)]
struct Rows {
    buf: Buf,
    /// Elements from one row to the next.
    stride: i64,
}

/// One row of an operand in the innermost loop of the dot form.
struct Row<'a> {
    buf: Buf,
    base: Value,
    /// Where to look up its scale.
    scaled: Option<(Env<'a>, &'a Access)>,
}

impl Row<'_> {
    /// The vector at `k`, unscaled.
    fn load(&self, b: &mut Builder, k: Value, lanes: u32, mask: Option<Value>) -> Value {
        let at = b.add(self.base, k);
        load_f32(b, self.buf, at, lanes, mask)
    }

    /// The vector at `k` in bf16, which it fits.
    fn load_bf16(&self, b: &mut Builder, k: Value, lanes: u32, mask: Option<Value>) -> Value {
        let at = b.add(self.base, k);
        let x = match mask {
            Some(mask) => b.load_masked(self.buf, &[at], mask, None),
            None => b.load(self.buf, &[at], lanes),
        };
        if b.ty(x).elem == DType::BF16 {
            return x;
        }
        let x = b.cast(x, DType::F32);
        b.cast(x, DType::BF16)
    }
}

/// What runs inside the outer summed letters: gets their values and what is carried.
type Innermost<'f> = &'f dyn Fn(&mut Builder, &[(Var, Value)], Vec<Value>) -> Vec<Value>;

impl<'a> Emitter<'a> {
    fn streamed(&self) -> &'a Access {
        &self.desc.operands[self.s.streamed]
    }

    fn reused(&self) -> &'a Access {
        &self.desc.operands[1 - self.s.streamed]
    }

    /// All columns and rows of one grid index.
    fn cell(&self, b: &mut Builder, env: &Env<'a>) {
        let rows = self.s.rows;
        if let Some(folded) = self.folded {
            self.fold(b, env, folded);
        }
        let all = |b: &mut Builder, converted: Option<Rows>| match rows {
            Some(rows) => self.row_tiles(b, env, rows, converted),
            None => self.columns(b, |b, n| self.chunk(b, std::slice::from_ref(env), n, self.s.strip, converted)),
        };
        let known = rows.map_or(Some(1), |m| self.desc.known(m));
        match (self.s.convert, rows) {
            (None, _) => all(b, None),
            (Some(least), _) if least <= 1 || known.is_some_and(|n| n >= least) => self.convert(b, env, &all),
            (Some(_), None) => all(b, None),
            (Some(least), Some(rows)) => {
                let (least, first) = (b.const_i64(least), b.const_i64(0));
                let many = b.ge(self.total, least);
                b.if_else(
                    many,
                    |b| {
                        self.convert(b, env, &all);
                        Vec::new()
                    },
                    |b| {
                        self.single_rows(b, env, rows, first, None);
                        Vec::new()
                    },
                );
            }
        }
    }

    /// Converts the block's columns to f32, then runs all rows on them.
    fn convert(&self, b: &mut Builder, env: &Env<'a>, all: &dyn Fn(&mut Builder, Option<Rows>)) {
        let (s, desc) = (self.s, self.desc);
        let (Some(cols), Some(block), Some(k)) = (s.cols, s.block, desc.size(s.lane).as_const()) else { return };
        // As many lanes as one register holds in the stored format.
        let lanes = (32 * self.s.register / self.streamed().dtype.bits() as u32).min(64);
        let stride = (k + i64::from(lanes) - 1) / i64::from(lanes) * i64::from(lanes);
        let buf = b.alloc("block", DType::F32, [block * stride]);
        b.for_each(self.lo, self.hi, 1, LoopKind::Serial, |b, n| {
            let from = self.row(b, env.with(cols, n), self.streamed());
            let (column, stride) = (b.sub(n, self.lo), b.const_i64(stride));
            let to = b.mul(column, stride);
            let (zero, end) = (b.const_i64(0), b.const_i64(k));
            in_vectors(b, lanes, (zero, end, Some(k)), Vec::new(), &|b, k, mask, _| {
                let x = from.load(b, k, lanes, mask);
                let to = b.add(to, k);
                // Masked-off lanes are zero, and there is room for them.
                b.store(buf, &[to], x);
                Vec::new()
            });
        });
        all(b, Some(Rows { buf, stride }));
    }

    /// Writes all rows of the other operand, multiplied with the scales that this block's columns share.
    fn fold(&self, b: &mut Builder, env: &Env<'a>, folded: Rows) {
        let (desc, k, streamed) = (self.desc, self.s.lane, self.streamed());
        let Some(size) = desc.size(k).as_const() else { return };
        let env = self.s.cols.map_or(env.clone(), |cols| env.with(cols, self.lo));
        let zero = b.const_i64(0);
        let steps = streamed.scale.as_deref().and_then(|scale| steps(desc, scale, k, &[]));
        let block = steps.map_or(size, |steps| steps.block.min(size));
        b.for_each(zero, self.total, 1, LoopKind::Serial, |b, m| {
            let env = self.s.rows.map_or(env.clone(), |rows| env.row(b, rows, m));
            let from = self.row(b, env.clone(), self.reused());
            let stride = b.const_i64(folded.stride);
            let to = b.mul(m, stride);
            let part = |b: &mut Builder, lo: Value, length: i64| {
                let scale = env.with(k, lo).scale(b, streamed);
                let length_value = b.const_i64(length);
                let hi = b.add(lo, length_value);
                in_vectors(b, self.s.register, (lo, hi, Some(length)), Vec::new(), &|b, k, mask, _| {
                    let x = from.load(b, k, self.s.register, mask);
                    let x = scale.map_or(x, |scale| b.mul(x, scale));
                    let to = b.add(to, k);
                    // Masked-off lanes are zero, and there is room for them.
                    b.store(folded.buf, &[to], x);
                    Vec::new()
                });
            };
            let (whole, rest) = (b.const_i64(size / block * block), size % block);
            b.for_each(zero, whole, block, LoopKind::Serial, |b, lo| part(b, lo, block));
            if rest > 0 {
                part(b, whole, rest);
            }
        });
    }

    /// All rows, in tiles and then one by one.
    fn row_tiles(&self, b: &mut Builder, env: &Env<'a>, rows: Var, converted: Option<Rows>) {
        let (height, width) = self.s.tile;
        let known = self.desc.known(rows);
        let zero = b.const_i64(0);
        let outer = self.s.form == Form::Outer && self.desc.in_steps() && self.desc.is_few(rows);
        if (self.s.step || outer) && known != Some(1) {
            return self.step_rows(b, env, rows);
        }
        if known.is_some_and(|n| n < height as i64) {
            return self.single_rows(b, env, rows, zero, converted);
        }
        let unit = b.const_i64(height as i64);
        let tiles = b.div(self.total, unit);
        let end = b.mul(tiles, unit);
        b.for_each(zero, end, height as i64, LoopKind::Serial, |b, m| {
            let envs: Vec<Env<'a>> = (0..height as i64)
                .map(|i| {
                    let i = b.const_i64(i);
                    let m = b.add(m, i);
                    env.row(b, rows, m)
                })
                .collect();
            self.columns(b, |b, n| self.chunk(b, &envs, n, width, converted));
        });
        if known.is_none_or(|n| n % height as i64 != 0) {
            self.single_rows(b, env, rows, end, converted);
        }
    }

    /// The rows of a step for one strip of columns after the other: in tiles, the largest first. Taller tiles are
    /// narrower, so that their sums are in registers.
    fn step_rows(&self, b: &mut Builder, env: &Env<'a>, rows: Var) {
        let tile = |b: &mut Builder, m: Value, height: i64, n: Value| {
            let rows = (0..height).map(|i| {
                let i = b.const_i64(i);
                let m = b.add(m, i);
                env.row(b, rows, m)
            });
            let rows: Vec<Env<'a>> = rows.collect();
            let width = if self.s.apart > 1 {
                let vectors = (self.s.sum_lanes() / self.s.register).max(1) as usize;
                let most = WIDE_SUMS / (height as usize * vectors).next_power_of_two();
                self.s.strip.min(most.max(1))
            } else {
                (self.s.strip / height as usize).max(1)
            };
            self.chunk(b, &rows, n, width, None);
        };
        self.columns(b, |b, n| {
            let mut left = self.desc.known(rows);
            let mut first = b.const_i64(0);
            for height in (1..=self.s.shared as i64).rev() {
                let known = left.map(|n| n / height);
                left = left.map(|n| n % height);
                if known == Some(0) {
                    continue;
                }
                let unit = b.const_i64(height);
                if known == Some(1) {
                    tile(b, first, height, n);
                    first = b.add(first, unit);
                    continue;
                }
                let left = b.sub(self.total, first);
                let tiles = b.div(left, unit);
                let tiled = b.mul(tiles, unit);
                let end = b.add(first, tiled);
                b.for_each(first, end, height, LoopKind::Serial, |b, m| tile(b, m, height, n));
                first = end;
            }
        });
    }

    /// Rows from `first` on, one by one: a strip of columns stays in the nearest cache for all of them.
    fn single_rows(&self, b: &mut Builder, env: &Env<'a>, rows: Var, first: Value, converted: Option<Rows>) {
        let strip = self.s.strip;
        if self.desc.known(rows) == Some(1) {
            let rows = [env.row(b, rows, first)];
            return self.columns(b, |b, n| self.chunk(b, &rows, n, strip, converted));
        }
        self.columns(b, |b, n| {
            b.for_each(first, self.total, 1, LoopKind::Serial, |b, m| {
                let row = env.row(b, rows, m);
                self.chunk(b, &[row], n, strip, converted);
            });
        });
    }

    /// Calls `f` with the first column of every strip.
    fn columns(&self, b: &mut Builder, f: impl Fn(&mut Builder, Value)) {
        if self.s.cols.is_none() {
            return f(b, self.lo);
        }
        if self.s.apart > 1 {
            let apart = b.const_i64(self.s.apart);
            let end = b.add(self.lo, apart);
            return b.for_each(self.lo, end, 1, LoopKind::Serial, |b, n| f(b, n));
        }
        let unit = if self.s.form == Form::Outer { i64::from(self.s.lanes) } else { 1 };
        b.for_each(self.lo, self.hi, self.s.strip as i64 * unit, LoopKind::Serial, |b, n| f(b, n));
    }

    /// A strip of columns for some rows, in tiles of `width` columns or vectors.
    fn chunk(&self, b: &mut Builder, rows: &[Env<'a>], n: Value, width: usize, converted: Option<Rows>) {
        match self.s.form {
            Form::Dot => self.dot_chunk(b, rows, n, width, converted),
            Form::Outer => self.outer_chunk(b, rows, n, width),
            // Its cells are its own.
            Form::Packed | Form::Laid | Form::Tiles | Form::Pipeline => {}
        }
    }

    // ---- dot form ----

    fn dot_chunk(&self, b: &mut Builder, rows: &[Env<'a>], first: Value, width: usize, converted: Option<Rows>) {
        let strip = self.s.strip;
        let (zero, end) = (b.const_i64(0), b.const_i64(strip as i64));
        let apart = b.const_i64(self.s.apart);
        let tile = |b: &mut Builder, offset: Value| {
            let distance = b.mul(offset, apart);
            let n = b.add(first, distance);
            let sums = self.dot_tile(b, rows, n, width, converted);
            for (r, env) in rows.iter().enumerate() {
                for j in 0..width {
                    let (sum, step) = (sums[r * width + j], b.const_i64(j as i64 * self.s.apart));
                    if let Some(stage) = self.stage {
                        let row = b.const_i64((r * strip + j) as i64);
                        let to = b.add(offset, row);
                        b.store(stage, &[to], sum);
                        continue;
                    }
                    let Some(cols) = self.s.cols else {
                        finish(b, &self.desc.epilogue, env, sum, None, None);
                        continue;
                    };
                    let n = b.add(n, step);
                    let env = env.with(cols, n);
                    if self.ragged {
                        let inside = b.lt(n, self.hi);
                        b.if_then(inside, |b| finish(b, &self.desc.epilogue, &env, sum, None, None));
                    } else {
                        finish(b, &self.desc.epilogue, &env, sum, None, None);
                    }
                }
            }
        };
        if width == strip {
            tile(b, zero);
        } else {
            b.for_each(zero, end, width as i64, LoopKind::Serial, tile);
        }
        if let (Some(stage), Some(cols)) = (self.stage, self.s.cols) {
            let mask = self.ragged.then(|| b.lanes_below(first, self.hi, strip as u32));
            for (r, env) in rows.iter().enumerate() {
                let from = b.const_i64((r * strip) as i64);
                let sums = b.load(stage, &[from], strip as u32);
                finish(b, &self.desc.epilogue, &env.with(cols, first), sums, Some((cols, strip as u32)), mask);
            }
        }
    }

    /// The sums of `rows` and `width` columns from `n` on. Columns that overhang repeat the last one.
    fn dot_tile(
        &self,
        b: &mut Builder,
        rows: &[Env<'a>],
        n: Value,
        width: usize,
        converted: Option<Rows>,
    ) -> Vec<Value> {
        let one = b.const_i64(1);
        let last = b.sub(self.hi, one);
        let columns: Vec<Value> = (0..width as i64)
            .map(|j| {
                let j = b.const_i64(j * self.s.apart);
                let n = b.add(n, j);
                if self.ragged { b.min(n, last) } else { n }
            })
            .collect();
        let zero = b.const_f32(0.0);
        let zero = b.splat(zero, self.s.sum_lanes());
        let init = vec![zero; rows.len() * width];
        let sums = self.nest(b, &mut Vec::new(), init, &|b, outer, sums| {
            let bind = |env: &Env<'a>| outer.iter().fold(env.clone(), |env, (var, value)| env.with(*var, *value));
            let mut all: Vec<Row<'a>> = rows.iter().map(|env| self.reused_row(b, bind(env))).collect();
            for n in &columns {
                let env = bind(&rows[0]);
                let env = self.s.cols.map_or(env.clone(), |cols| env.with(cols, *n));
                let row = self.row(b, env, self.streamed());
                all.push(match converted {
                    Some(c) => {
                        let (column, stride) = (b.sub(*n, self.lo), b.const_i64(c.stride));
                        Row { buf: c.buf, base: b.mul(column, stride), ..row }
                    }
                    None if self.folded.is_some() => Row { scaled: None, ..row },
                    None => row,
                });
            }
            let (x, w) = all.split_at(rows.len());
            let after = self.segments(b, x, w, sums.clone());
            // Gathers do not run along lanes: products with what is not there are left out as a whole.
            let there = |b: &mut Builder, i: usize| {
                let streamed = self.s.cols.map_or(bind(&rows[0]), |cols| bind(&rows[0]).with(cols, columns[i % width]));
                let reused = bind(&rows[i / width]).found(b, self.reused());
                match (reused, streamed.found(b, self.streamed())) {
                    (Some(x), Some(w)) => Some(b.and(x, w)),
                    (x, w) => x.or(w),
                }
            };
            let sums = after.into_iter().zip(sums).enumerate().map(|(i, (after, before))| match there(b, i) {
                Some(there) => {
                    let there = b.splat(there, self.s.sum_lanes());
                    b.select(there, after, before)
                }
                None => after,
            });
            sums.collect()
        });
        sums.into_iter().map(|sum| b.reduce_lanes(ReduceOp::Add, sum)).collect()
    }

    fn row(&self, b: &mut Builder, env: Env<'a>, access: &'a Access) -> Row<'a> {
        let base = env.at(b, &access.at);
        Row { buf: env.bufs[access.param], base, scaled: access.scale.is_some().then_some((env, access)) }
    }

    /// A row of the operand that is not streamed.
    fn reused_row(&self, b: &mut Builder, env: Env<'a>) -> Row<'a> {
        let Some(folded) = self.folded else { return self.row(b, env, self.reused()) };
        let number = self.s.rows.and_then(|rows| env.bound[rows]).unwrap_or_else(|| b.const_i64(0));
        let stride = b.const_i64(folded.stride);
        Row { buf: folded.buf, base: b.mul(number, stride), scaled: None }
    }

    /// Loops over the summed letters but the innermost.
    fn nest(
        &self,
        b: &mut Builder,
        outer: &mut Vec<(Var, Value)>,
        carried: Vec<Value>,
        inner: Innermost<'_>,
    ) -> Vec<Value> {
        if outer.len() + 1 >= self.s.sums.len() {
            return inner(b, outer, carried);
        }
        let var = self.s.sums[outer.len()];
        let (zero, end) = (b.const_i64(0), b.dim(self.desc.size(var)));
        b.for_loop(zero, end, 1, LoopKind::Serial, &carried, |b, value, carried| {
            outer.push((var, value));
            let next = self.nest(b, outer, carried.to_vec(), inner);
            outer.pop();
            next
        })
    }

    /// Adds `x · w` for all pairs over the innermost summed letter. Where there are scales, products of unscaled
    /// elements are summed while the scales last, then the sum is scaled and added. Where there are offsets, elements
    /// of `x` are summed meanwhile, once for all columns.
    fn segments(&self, b: &mut Builder, x: &[Row<'a>], w: &[Row<'a>], init: Vec<Value>) -> Vec<Value> {
        let (desc, k, lanes) = (self.desc, self.s.lane, self.s.lanes);
        let products = |b: &mut Builder, range: (Value, Value, Option<i64>), init: Vec<Value>| {
            in_vectors(b, lanes, range, init, &|b, k, mask, sums| {
                let pairs = self.s.pairs;
                let load = if pairs { Row::load_bf16 } else { Row::load };
                let x: Vec<Value> = x.iter().map(|row| load(row, b, k, lanes, mask)).collect();
                let w: Vec<Value> = w.iter().map(|row| load(row, b, k, lanes, mask)).collect();
                let (products, plain) = sums.split_at(x.len() * w.len());
                let products = products.iter().enumerate();
                let mut multiply = |w: Value, x: Value, sum: Value| match pairs {
                    true => b.dot(w, x, sum),
                    false => b.fma(w, x, sum),
                };
                let mut next: Vec<Value> =
                    products.map(|(i, sum)| multiply(w[i % w.len()], x[i / w.len()], *sum)).collect();
                for (sum, x) in plain.iter().zip(&x) {
                    next.push(match pairs {
                        true => {
                            let one = b.const_f32(1.0);
                            let one = b.cast(one, DType::BF16);
                            let ones = b.splat(one, lanes);
                            b.dot(*x, ones, *sum)
                        }
                        false => b.add(*sum, *x),
                    });
                }
                next
            })
        };
        let size = desc.size(k);
        let (zero, end) = (b.const_i64(0), b.dim(size));
        let scaled = |rows: &[Row<'a>]| rows.iter().find_map(|r| r.scaled.clone());
        if scaled(x).is_none() && scaled(w).is_none() {
            return products(b, (zero, end, size.as_const()), init);
        }
        let segment = |b: &mut Builder, (lo, hi, length): (Value, Value, Option<i64>), sums: &[Value]| {
            let none = b.const_f32(0.0);
            let none = b.splat(none, self.s.sum_lanes());
            type Part<'e> = fn(&Env<'e>, &mut Builder, &Access) -> Option<Value>;
            let mut parts_of = |rows: &[Row<'a>], part: Part<'a>| -> Vec<Option<Value>> {
                let value = |r: &Row<'a>| r.scaled.as_ref().and_then(|(env, a)| part(&env.with(k, lo), b, a));
                rows.iter().map(value).collect()
            };
            let (of_x, of_w) = (parts_of(x, Env::scale), parts_of(w, Env::scale));
            let offsets = parts_of(w, Env::offset);
            let plain = if offsets.iter().any(Option::is_some) { x.len() } else { 0 };
            let mut parts = products(b, (lo, hi, length), vec![none; sums.len() + plain]);
            let plain = parts.split_off(sums.len());
            let mut scaled = |part: Value, by: [Option<Value>; 2], sum: Value| {
                let scale = match by {
                    [Some(a), Some(c)] => b.mul(a, c),
                    [Some(scale), None] | [None, Some(scale)] => scale,
                    [None, None] => return b.add(part, sum),
                };
                b.fma(part, scale, sum)
            };
            let pairs = parts.into_iter().zip(sums).enumerate().map(|(i, (part, sum))| {
                let (row, column) = (i / w.len(), i % w.len());
                let sum = scaled(part, [of_x[row], of_w[column]], *sum);
                match offsets[column] {
                    Some(_) => scaled(plain[row], [of_x[row], offsets[column]], sum),
                    None => sum,
                }
            });
            pairs.collect::<Vec<_>>()
        };
        let stepped = scaled(x).into_iter().chain(scaled(w)).filter_map(|(env, access)| {
            let scale = access.scale.as_deref().filter(|s| desc.vars.reads(s, k))?;
            Some((env, steps(desc, scale, k, &[])?))
        });
        // The one that changes more often.
        let stepped = stepped.min_by_key(|(_, steps)| steps.block);
        let Some((env, steps)) = stepped else {
            return segment(b, (zero, end, size.as_const()), &init);
        };
        let block = b.const_i64(steps.block);
        if let (true, Some(n)) = (steps.aligned, size.as_const()) {
            let (whole, rest) = (b.const_i64(n / steps.block * steps.block), n % steps.block);
            let mut sums = init;
            if n >= steps.block {
                sums = b.for_loop(zero, whole, steps.block, LoopKind::Serial, &sums, |b, lo, sums| {
                    let hi = b.add(lo, block);
                    segment(b, (lo, hi, Some(steps.block)), sums)
                });
            }
            return if rest > 0 { segment(b, (whole, end, Some(rest)), &sums) } else { sums };
        }
        // The first block may have begun before zero.
        let rest = env.at(b, &steps.rest);
        let gone = b.rem(rest, block);
        let first = b.sub(zero, gone);
        b.for_loop(first, end, steps.block, LoopKind::Serial, &init, |b, start, sums| {
            let next = b.add(start, block);
            let (lo, hi) = (b.max(start, zero), b.min(next, end));
            segment(b, (lo, hi, None), sums)
        })
    }

    // ---- outer form ----

    fn outer_chunk(&self, b: &mut Builder, rows: &[Env<'a>], first: Value, width: usize) {
        let lanes = i64::from(self.s.lanes);
        let end = b.const_i64(self.s.strip as i64 * lanes);
        let end = b.add(first, end);
        let whole = |b: &mut Builder| {
            if width == self.s.strip {
                return self.outer_tile(b, rows, first, width, None);
            }
            b.for_each(first, end, width as i64 * lanes, LoopKind::Serial, |b, n| {
                self.outer_tile(b, rows, n, width, None);
            });
        };
        if !self.ragged {
            return whole(b);
        }
        let fits = b.le(end, self.hi);
        b.if_else(
            fits,
            |b| {
                whole(b);
                Vec::new()
            },
            |b| {
                b.for_each(first, self.hi, lanes, LoopKind::Serial, |b, n| {
                    let mask = b.lanes_below(n, self.hi, self.s.lanes);
                    self.outer_tile(b, rows, n, 1, Some(mask));
                });
                Vec::new()
            },
        );
    }

    /// Results of `rows` and `width` vectors of columns from `n` on.
    fn outer_tile(&self, b: &mut Builder, rows: &[Env<'a>], n: Value, width: usize, mask: Option<Value>) {
        let (s, lanes) = (self.s, self.s.lanes);
        let columns: Vec<Value> = (0..width as i64)
            .map(|j| {
                let j = b.const_i64(j * i64::from(lanes));
                b.add(n, j)
            })
            .collect();
        let zero = b.const_f32(0.0);
        let zero = b.splat(zero, lanes);
        let step = |b: &mut Builder, outer: &[(Var, Value)], sums: &[Value]| {
            let bind = |env: &Env<'a>| outer.iter().fold(env.clone(), |env, (var, value)| env.with(*var, *value));
            let w: Vec<Value> = columns
                .iter()
                .map(|n| {
                    let env = bind(&rows[0]).with(s.lane, *n);
                    let w = env.load(b, self.streamed(), lanes, mask);
                    let w = env.scaled(b, self.streamed(), w);
                    env.or_zero(b, self.streamed(), w)
                })
                .collect();
            let x: Vec<Value> = rows.iter().map(|env| bind(env).read(b, self.reused(), None, None)).collect();
            sums.iter().enumerate().map(|(i, sum)| b.fma(x[i / width], w[i % width], *sum)).collect::<Vec<_>>()
        };
        let init = vec![zero; rows.len() * width];
        let sums = match s.sums.last() {
            None => step(b, &[], &init),
            Some(k) => self.nest(b, &mut Vec::new(), init, &|b, outer, sums| {
                let (zero, end) = (b.const_i64(0), b.dim(self.desc.size(*k)));
                b.for_loop(zero, end, 1, LoopKind::Serial, &sums, |b, value, sums| {
                    let mut outer = outer.to_vec();
                    outer.push((*k, value));
                    step(b, &outer, sums)
                })
            }),
        };
        let vectors = on_vectors(&self.desc.vars, &self.desc.epilogue, s.lane);
        for (i, sum) in sums.into_iter().enumerate() {
            let (env, n) = (&rows[i / width], columns[i % width]);
            if vectors {
                finish(b, &self.desc.epilogue, &env.with(s.lane, n), sum, Some((s.lane, lanes)), mask);
                continue;
            }
            for lane in 0..lanes {
                let (sum, step) = (b.extract(sum, lane), b.const_i64(i64::from(lane)));
                let n = b.add(n, step);
                let env = env.with(s.lane, n);
                if mask.is_some() {
                    let inside = b.lt(n, self.hi);
                    b.if_then(inside, |b| finish(b, &self.desc.epilogue, &env, sum, None, None));
                } else {
                    finish(b, &self.desc.epilogue, &env, sum, None, None);
                }
            }
        }
    }
}
