//! The form of tiles: rows and columns that meet in the tensor cores of a warp.
//!
//! A grid index has a tile of columns, and one tile of rows after the other, so many apart. A lane reads sixteen bytes or
//! so of a row at a time, straight from memory: lanes hold elements of a row as [`matrix_place`] numbers them, whose
//! order in a sum is nobody's concern, so nothing is laid out before; where elements of a row are apart, as of weights that
//! are stored by columns, it reads them one by one. Warps of a block have the same columns and
//! neighbouring rows, and find in the first-level cache what another one has read.
//!
//! Factors are bf16 or become it exactly; rows of f32 are three bf16 each, which add up to them (but for what is beyond
//! the largest bf16, 3.39e38, and infinities, of which sums are no numbers). Where elements share scales, their products
//! are summed without, and the sum of a group is multiplied with its scales. Sums go through memory of the warp to the
//! epilogue, sixteen rows at a time.
//!
//! An element's order of summation depends on nothing but the length of a sum and its groups.
//!
//! [`matrix_place`]: hadal_ir::kernel::matrix_place

use super::desc::{Desc, Role};
use super::emit::{Env, finish};
use super::epilogue::on_vectors;
use super::schedule::{Form, Schedule, Steps, steps, tile_letters};
use super::view::{Access, Var};
use crate::kernels::index::gcd;
use hadal_ir::kernel::{Buf, Builder, LoopKind, MATRIX, Value};
use hadal_types::{DType, Dim};

/// Rows, columns and summed elements of one product.
pub const ROWS: i64 = 16;
pub const COLUMNS: i64 = 8;
const DEPTH: i64 = 32;

/// Neighbouring elements of a row of factors in a lane.
const RUN: u32 = 8;

/// Tiles of rows that are summed at once by different grid indices, at most.
const WALKERS: i64 = 64;

/// The schedule for a summed letter, where it fits; not for the few rows of a step.
pub fn schedule(desc: &Desc, streamed: usize, k: Var) -> Option<Schedule> {
    let [w, x] = [&desc.operands[streamed], &desc.operands[1 - streamed]];
    let known = |a: &Access| desc.vars.stride(&a.at, k).is_some();
    let plain = |a: &Access| desc.vars.gathers(a).is_empty() && a.offset.is_none();
    let size = desc.size(k).as_const().filter(|n| *n > 0)?;
    let exact = |d: DType| matches!(d, DType::BF16 | DType::F8E4M3 | DType::I8);
    let formats = exact(w.dtype) && (exact(x.dtype) || x.dtype == DType::F32);
    let alone = desc.of_role(Role::Summed).count() == 1;
    if desc.in_steps() || !alone || !formats || ![w, x].into_iter().all(|a| known(a) && plain(a)) {
        return None;
    }
    let mut group = size;
    for scale in [w, x].into_iter().filter_map(|a| a.scale.as_deref()) {
        if desc.vars.reads(scale, k) {
            let steps = steps(desc, scale, k, &[]).filter(|s| s.aligned && s.block % DEPTH == 0)?;
            group = if group == size { steps.block } else { gcd(group, steps.block) };
        }
    }
    let (rows, cols, grid) = tile_letters(desc, streamed, None);
    let (rows, cols) = (rows?, cols?);
    let columns = desc.size(cols).as_const().filter(|n| *n > 0)?;
    let scaled = w.scale.is_some() || x.scale.is_some();
    // Sums of groups take as many registers again, and so do rows in three parts beside them, places of elements that are
    // apart, and ends.
    let even = |n: i64| size % n == 0 && columns % 64 == 0;
    let near = [w, x].into_iter().all(|a| desc.vars.stride(&a.at, k).is_some_and(|s| s.is(1)));
    let most = match scaled {
        _ if !near => 16,
        false if even(DEPTH) => 64,
        true if even(group) && shares_scales(desc, w, cols, 64) && x.dtype != DType::F32 => 64,
        _ => 32,
    };
    let width = [8, 16, 32].into_iter().find(|n| columns <= *n).unwrap_or(most);
    (!desc.is_few(rows) || desc.grouped.is_some()).then_some(Schedule {
        form: Form::Tiles,
        streamed,
        lanes: DEPTH as u32,
        lane: k,
        sums: vec![k],
        rows: Some(rows),
        cols: Some(cols),
        tile: (32, width as usize),
        strip: width as usize,
        apart: 1,
        block: Some(width),
        rows_block: None,
        convert: None,
        fold: false,
        step: false,
        shared: 1,
        pairs: false,
        quads: false,
        lookups: false,
        register: DEPTH as u32,
        depth: 0,
        group: if scaled { group } else { 0 },
        grid,
    })
}

/// Whether columns have the same scales, so many from each multiple of so many on.
pub fn shares_scales(desc: &Desc, w: &Access, cols: Var, width: i64) -> bool {
    let shared = |scale: &Access| {
        let multiple = |n: &Dim| n.div_exact(width).is_some();
        let whole = |s: &Steps| s.block % width == 0 && multiple(&s.rest.offset) && s.rest.terms.values().all(multiple);
        !desc.vars.reads(scale, cols) || steps(desc, scale, cols, &[]).is_some_and(|s| whole(&s))
    };
    w.parts().all(|scale| shared(scale) && scale.parts().next().is_none())
}

/// How many tiles of rows there are at most, as far as is known: as many grid indices share them.
pub fn walkers(desc: &Desc, s: &Schedule) -> i64 {
    let Some(rows) = s.rows else { return 1 };
    let range = |symbol| desc.ranges.get(&symbol).map(|r| (r.min, r.max));
    let most = desc.size(rows).upper(range).unwrap_or(i64::MAX);
    let height = s.tile.0 as i64;
    (most.saturating_add(height - 1) / height).clamp(1, WALKERS)
}

/// The tiles of these columns: that number `first` of rows, and each `step`th from there.
pub fn cell(
    b: &mut Builder,
    desc: &Desc,
    s: &Schedule,
    env: &Env<'_>,
    (columns, total): ((Value, Value), Value),
    (first, step): (Value, i64),
) {
    // Rows do not meet in banks.
    let line = s.tile.1 as i64 + 8;
    let sums = b.alloc("sums", DType::F32, [ROWS * line]);
    let Some(cell) = Cell::new(desc, s, env, (columns, total), (sums, line)) else { return };
    let height = s.tile.0 as i64;
    let unit = b.const_i64(height);
    let from = b.mul(first, unit);
    b.for_each(from, total, height * step, LoopKind::Serial, |b, m| cell.tile(b, m));
}

pub struct Cell<'e, 'a> {
    desc: &'a Desc,
    pub s: &'e Schedule,
    pub env: &'e Env<'a>,
    /// What has the columns.
    w: &'a Access,
    /// What has the rows.
    pub x: &'a Access,
    rows: Var,
    cols: Var,
    /// Length of a sum.
    pub size: i64,
    pub columns: (Value, Value),
    pub total: Value,
    /// Whether all tiles have all columns.
    whole: bool,
    /// Sixteen rows of sums, `line` apart.
    sums: Buf,
    pub line: i64,
}

impl<'e, 'a> Cell<'e, 'a> {
    pub fn new(
        desc: &'a Desc,
        s: &'e Schedule,
        env: &'e Env<'a>,
        (columns, total): ((Value, Value), Value),
        (sums, line): (Buf, i64),
    ) -> Option<Cell<'e, 'a>> {
        let (rows, cols, size) = (s.rows?, s.cols?, desc.size(s.lane).as_const()?);
        let [w, x] = [&desc.operands[s.streamed], &desc.operands[1 - s.streamed]];
        let whole = desc.size(cols).as_const().is_some_and(|n| n % s.tile.1 as i64 == 0);
        Some(Cell { desc, s, env, w, x, rows, cols, size, columns, total, whole, sums, line })
    }

    /// Of what has the rows, or the columns: the operand, the letter, the end, whether there are always as many, and how
    /// many are in a tile.
    pub fn operand(&self, number: usize) -> (&'a Access, Var, Value, bool, i64) {
        match number {
            0 => (self.x, self.rows, self.total, false, self.s.tile.0 as i64),
            _ => (self.w, self.cols, self.columns.1, self.whole, self.s.tile.1 as i64),
        }
    }
}

/// The first of each `unit` of `count` times as many, from one on.
pub fn firsts(b: &mut Builder, from: Value, count: i64, unit: i64) -> Vec<Value> {
    let firsts = (0..count).map(|i| {
        let offset = b.const_i64(i * unit);
        b.add(from, offset)
    });
    firsts.collect()
}

/// Row and place in the row of each `run`th lane of an operand, as `matrix_place` has them.
pub(in crate::kernels) fn places(b: &mut Builder, operand: usize, run: u32) -> (Value, Value) {
    let lanes = MATRIX[operand].lanes / run;
    let iota = b.iota(DType::I64, lanes);
    let mut constant = |n: i64| {
        let n = b.const_i64(n);
        b.splat(n, lanes)
    };
    // Neighbours are in a quarter of a row, which is a lane's, and where there are two, the second row's follow.
    let (neighbours, seconds) = [(3, 1), (3, 0), (1, 1)][operand];
    let [two, three, eight, unit] = [2, 3, 8, i64::from(run)].map(&mut constant);
    let [bits, within, lane] = [neighbours, (1 << neighbours) - 1, neighbours + seconds].map(&mut constant);
    let width = constant(1 << neighbours);
    let element = b.mul(iota, unit);
    let quarter = b.ushr(element, lane);
    let (mut row, quarter) = (b.ushr(quarter, two), b.and(quarter, three));
    if seconds > 0 {
        let (half, one) = (b.ushr(element, bits), b.const_i64(1));
        let one = b.splat(one, lanes);
        let second = b.and(half, one);
        let lower = b.mul(second, eight);
        row = b.add(row, lower);
    }
    let mut place = b.mul(quarter, width);
    if run < 1 << neighbours {
        let within = b.and(element, within);
        place = b.add(place, within);
    }
    (row, place)
}

/// Rows of an operand of a product.
struct Runs {
    operand: usize,
    access: (Buf, DType),
    /// The first element of every run.
    starts: Value,
    /// Elements from one summed element to the next.
    stride: Dim,
}

impl Cell<'_, '_> {
    /// All columns of the rows from `m` on.
    fn tile(&self, b: &mut Builder, m: Value) {
        let (height, width) = (self.s.tile.0 as i64 / ROWS, self.s.tile.1 as i64 / COLUMNS);
        let rows = firsts(b, m, height, ROWS);
        let cols = firsts(b, self.columns.0, width, COLUMNS);
        let a: Vec<Runs> = rows.iter().map(|m| self.runs(b, 0, *m)).collect();
        let w: Vec<Runs> = cols.iter().map(|n| self.runs(b, 1, *n)).collect();
        let zero = b.const_f32(0.0);
        let none = vec![b.splat(zero, MATRIX[2].lanes); rows.len() * cols.len()];
        let zero = b.const_i64(0);
        let sums = match self.s.group {
            0 => self.products(b, (&a, &w), (zero, self.size), none),
            group => {
                let group = group.min(self.size);
                let (whole, rest) = (self.size / group * group, self.size % group);
                let part = |b: &mut Builder, k: Value, length: i64, sums: &[Value]| {
                    let parts = self.products(b, (&a, &w), (k, length), none.clone());
                    self.scaled(b, k, (&rows, &cols), parts, sums)
                };
                let end = b.const_i64(whole);
                let sums = b.for_loop(zero, end, group, LoopKind::Serial, &none, |b, k, sums| part(b, k, group, sums));
                if rest > 0 { part(b, end, rest, &sums) } else { sums }
            }
        };
        for (m, sums) in rows.iter().zip(sums.chunks(cols.len())) {
            self.epilogue(b, *m, sums, self.columns, zero);
        }
    }

    /// As many rows, or columns, as a product takes: of what is not there the last that is.
    fn runs(&self, b: &mut Builder, operand: usize, first: Value) -> Runs {
        let (access, letter, end, all, _) = self.operand(operand);
        let stride = self.desc.vars.stride(&access.at, self.s.lane).unwrap_or_default();
        let run = if stride.is(1) { RUN } else { 1 };
        let lanes = MATRIX[operand].lanes / run;
        let (row, place) = places(b, operand, run);
        let first = b.splat(first, lanes);
        let mut row = b.add(first, row);
        if !all {
            let one = b.const_i64(1);
            let last = b.sub(end, one);
            let last = b.splat(last, lanes);
            row = b.min(row, last);
        }
        let at = self.env.lanes_at(b, &access.at, (letter, row));
        let apart = b.dim(&stride);
        let apart = b.splat(apart, lanes);
        let place = if stride.is(1) { place } else { b.mul(place, apart) };
        let starts = b.add(at, place);
        Runs { operand, access: (self.env.bufs[access.param], access.dtype), starts, stride }
    }

    /// Adds the products of so many summed elements to the sums.
    fn products(
        &self,
        b: &mut Builder,
        (rows, cols): (&[Runs], &[Runs]),
        (from, length): (Value, i64),
        sums: Vec<Value>,
    ) -> Vec<Value> {
        let step = |b: &mut Builder, k: Value, left: Option<i64>, sums: &[Value]| {
            let rows: Vec<Vec<Value>> = rows.iter().map(|r| self.factors(b, r, k, left)).collect();
            let cols: Vec<Value> = cols.iter().flat_map(|c| self.factors(b, c, k, left)).collect();
            let mut sums = sums.to_vec();
            for (i, sum) in sums.iter_mut().enumerate() {
                for factor in &rows[i / cols.len()] {
                    *sum = b.matrix(*factor, cols[i % cols.len()], *sum);
                }
            }
            sums
        };
        let (whole, rest) = (length / DEPTH * DEPTH, length % DEPTH);
        let to = b.const_i64(whole);
        let to = b.add(from, to);
        let sums = match whole {
            0 => sums,
            _ => b.for_loop(from, to, DEPTH, LoopKind::Serial, &sums, |b, k, sums| step(b, k, None, sums)),
        };
        if rest > 0 { step(b, to, Some(rest), &sums) } else { sums }
    }

    /// Elements from a summed one on, of which there may be so few left, in bf16: as several that add up to them where
    /// one is not enough, the smallest first.
    fn factors(&self, b: &mut Builder, runs: &Runs, k: Value, left: Option<i64>) -> Vec<Value> {
        let apart = b.dim(&runs.stride);
        let k = b.mul(k, apart);
        let k = b.splat(k, b.ty(runs.starts).lanes);
        let at = b.add(runs.starts, k);
        let ((buf, dtype), lanes) = (runs.access, MATRIX[runs.operand].lanes);
        let x = match left {
            None => b.load(buf, &[at], lanes),
            Some(left) => {
                let (_, place) = places(b, runs.operand, 1);
                let left = b.const_i64(left);
                let left = b.splat(left, lanes);
                let mask = b.lt(place, left);
                b.load_masked(buf, &[at], mask, None)
            }
        };
        if dtype == DType::BF16 {
            return vec![x];
        }
        let x = b.cast(x, DType::F32);
        let mut rest = x;
        let mut parts = Vec::new();
        for part in 0..if dtype == DType::F32 { 3 } else { 1 } {
            if part > 0 {
                let known = b.cast(parts[part - 1], DType::F32);
                rest = b.sub(rest, known);
            }
            parts.push(b.cast(rest, DType::BF16));
        }
        parts.reverse();
        parts
    }

    /// Adds the sums of a group, times its scales, to others.
    pub fn scaled(
        &self,
        b: &mut Builder,
        k: Value,
        (rows, cols): (&[Value], &[Value]),
        parts: Vec<Value>,
        sums: &[Value],
    ) -> Vec<Value> {
        let lanes = MATRIX[2].lanes;
        let env = self.env.with(self.s.lane, k);
        let scales = |b: &mut Builder, operand: usize, first: Value| {
            let (access, letter, end, ..) = self.operand(operand);
            let scale = access.scale.as_deref()?;
            let (row, column) = places(b, 2, 1);
            let place = if operand == 0 { row } else { column };
            let first = b.splat(first, lanes);
            let at = b.add(first, place);
            let one = b.const_i64(1);
            let last = b.sub(end, one);
            let last = b.splat(last, lanes);
            let at = b.min(at, last);
            let scale = env.read_lanes(b, scale, (letter, at));
            Some(b.splat(scale, lanes))
        };
        let of_rows: Vec<Option<Value>> = rows.iter().map(|m| scales(b, 0, *m)).collect();
        let of_cols: Vec<Option<Value>> = if shares_scales(self.desc, self.w, self.cols, self.s.tile.1 as i64) {
            let scale = env.with(self.cols, self.columns.0).scale(b, self.w);
            vec![scale.map(|scale| b.splat(scale, lanes)); cols.len()]
        } else {
            cols.iter().map(|n| scales(b, 1, *n)).collect()
        };
        let both = parts.into_iter().zip(sums).enumerate();
        both.map(|(i, (part, sum))| {
            let scale = match (of_rows[i / cols.len()], of_cols[i % cols.len()]) {
                (Some(a), Some(c)) => b.mul(a, c),
                (Some(one), None) | (None, Some(one)) => one,
                (None, None) => return b.add(part, *sum),
            };
            b.fma(part, scale, *sum)
        })
        .collect()
    }

    /// From the sums of sixteen rows and some columns to memory, through what begins at `base`.
    pub fn epilogue(&self, b: &mut Builder, m: Value, sums: &[Value], (from, to): (Value, Value), base: Value) {
        let (row, place) = places(b, 2, 2);
        let lanes = b.ty(row).lanes;
        let line = b.const_i64(self.line);
        let line = b.splat(line, lanes);
        let row = b.mul(row, line);
        let at = b.add(row, place);
        let start = b.splat(base, lanes);
        let at = if b.as_const(base) == Some(0) { at } else { b.add(at, start) };
        for (i, sum) in sums.iter().enumerate() {
            let offset = b.const_i64(i as i64 * COLUMNS);
            let offset = b.splat(offset, lanes);
            let at = b.add(at, offset);
            b.store(self.sums, &[at], *sum);
        }
        let (zero, sixteen) = (b.const_i64(0), b.const_i64(ROWS));
        let left = b.sub(self.total, m);
        let count = b.min(left, sixteen);
        let (epilogue, width) = (&self.desc.epilogue, sums.len() as u32 * COLUMNS as u32);
        let vectors = on_vectors(&self.desc.vars, epilogue, self.cols);
        b.for_each(zero, count, 1, LoopKind::Serial, |b, i| {
            let row = b.add(m, i);
            let env = self.env.row(b, self.rows, row);
            let line = b.const_i64(self.line);
            let line = b.mul(i, line);
            let line = b.add(line, base);
            if !vectors {
                let (columns, most) = (b.sub(to, from), b.const_i64(width.into()));
                let columns = b.min(columns, most);
                return b.for_each(zero, columns, 1, LoopKind::Serial, |b, c| {
                    let (at, column) = (b.add(line, c), b.add(from, c));
                    let sum = b.load(self.sums, &[at], 1);
                    finish(b, epilogue, &env.with(self.cols, column), sum, None, None);
                });
            }
            let mask = (!self.whole).then(|| b.lanes_below(from, to, width));
            let sum = b.load(self.sums, &[line], width);
            finish(b, epilogue, &env.with(self.cols, from), sum, Some((self.cols, width)), mask);
        });
    }
}
