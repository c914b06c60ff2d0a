//! The form of pipelines: a block of warps, of which some bring tiles of both factors to shared memory and others multiply
//! them as warpgroups.
//!
//! A grid index has a tile of columns, and one tile of rows after the other, so many apart. Both are brought in *stages*
//! of 128 bytes of each row, into as many places of a ring (`kernels::ring`) as there is shared memory for. So copies
//! of several stages are under way while others are multiplied, across tiles of rows too, and the epilogue of one tile runs
//! while the next one is brought.
//!
//! Factors are bf16 or e4m3, of the same format, as they are in memory. Where elements share scales, the products of a
//! group are summed without, and the sum is multiplied with its scales (two levels of sums). An element's order of
//! summation depends on nothing but the length of a sum and its groups.

use super::desc::Desc;
use super::emit::Env;
use super::grouped::Grouped;
use super::schedule::{Form, Schedule};
use super::tiles::{self, COLUMNS, Cell, ROWS};
use super::view::{Access, Var};
use crate::kernels::ring::{Ring, Turn};
use hadal_ir::kernel::{Buf, Builder, LoopKind, MATRIX, Space, Swizzle, Value};
use hadal_types::DType;

/// Bytes of a row in a stage.
const LINE: i64 = 128;

/// Rows of a tile, sixteen for each warp that multiplies.
const HEIGHT: i64 = 128;

/// Warps that multiply, and warps that bring.
const MULTIPLY: i64 = HEIGHT / ROWS;
const BRING: i64 = 4;

/// Bytes of shared memory for places of stages.
const PLACES: i64 = 192 << 10;

/// Blocks that there are at least, where tiles are made wider: about as many as multiprocessors.
const BLOCKS: i64 = 128;

/// Columns whose sums go to the epilogue at once.
const CHUNK: i64 = 32;

/// The schedule for a summed letter, where it fits.
pub fn schedule(desc: &Desc, streamed: usize, k: Var) -> Option<Schedule> {
    let s = tiles::schedule(desc, streamed, k)?;
    let [w, x] = [&desc.operands[streamed], &desc.operands[1 - streamed]];
    // Sixteen bytes of a row are copied at once.
    let each = 128 / x.dtype.bits() as i64;
    let aligned = |a: &Access| {
        let others = a.at.terms.iter().filter(|(v, _)| **v != k);
        desc.vars.stride(&a.at, k).is_some_and(|n| n.is(1))
            && a.at.coefficient(k).is(1)
            && others.into_iter().all(|(_, n)| n.div_exact(each).is_some())
            && a.at.offset.div_exact(each).is_some()
    };
    let formats = w.dtype == x.dtype && matches!(x.dtype, DType::BF16 | DType::F8E4M3);
    let whole = s.group % line(x) == 0 || Some(s.group) == desc.size(k).as_const();
    let cols = s.cols?;
    let columns = desc.size(cols).as_const()?;
    if !formats || !whole || ![w, x].into_iter().all(aligned) || columns < COLUMNS {
        return None;
    }
    // Sums in groups take as many registers again, scales of single columns more than that, and what is done with sums
    // at the end some.
    let most = match s.group {
        0 if !desc.epilogue.is_heavy() => 256,
        0 if columns % 192 == 0 => 192,
        0 => 128,
        _ => [128, 64].into_iter().find(|n| tiles::shares_scales(desc, w, cols, *n)).unwrap_or(32),
    };
    let of = |width: i64| {
        let (size, stages) = (width as usize, PLACES / ((HEIGHT + width) * LINE));
        let (tile, strip, block) = ((HEIGHT as usize, size), size, Some(width));
        Schedule { form: Form::Pipeline, tile, strip, block, depth: stages.min(8), ..s.clone() }
    };
    // As wide as there are tiles for all multiprocessors.
    let others = s.grid.iter().fold(1i64, |n, v| n.saturating_mul(desc.size(*v).as_const().unwrap_or(1)));
    let tiles = |s: &Schedule| others.saturating_mul((columns + s.strip as i64 - 1) / s.strip as i64);
    let full = |s: &Schedule| tiles(s).saturating_mul(tiles::walkers(desc, s)) >= BLOCKS;
    let least = [8, 16, 32, 64].into_iter().find(|n| columns <= *n).unwrap_or(64).min(most);
    let widths = [most, 128, 64].into_iter().filter(|n| (least + 1..=most).contains(n));
    Some(widths.map(of).find(full).unwrap_or_else(|| of(least)))
}

/// Elements of a row in a stage.
fn line(a: &Access) -> i64 {
    8 * LINE / a.dtype.bits() as i64
}

/// Which rows these columns meet.
pub enum Rows<'a> {
    /// Of all, in tiles: that number `first`, and each `step`th from there.
    All { total: Value, first: Value, step: i64 },
    /// Those of a group.
    Listed(&'a Grouped),
}

/// What a grid index computes.
pub fn cell(b: &mut Builder, desc: &Desc, s: &Schedule, env: &Env<'_>, columns: (Value, Value), of: Rows<'_>) {
    let chunk = CHUNK.min(s.tile.1 as i64);
    let warps = MULTIPLY + BRING;
    let x = &desc.operands[1 - s.streamed];
    let sums = b.alloc_in(Space::Shared, Swizzle::None, "sums", DType::F32, [MULTIPLY * ROWS * (chunk + 8)]);
    let (width, line) = (s.tile.1 as i64, line(x));
    let mut place =
        |name: &str, rows: i64| b.alloc_in(Space::Shared, Swizzle::B128, name, x.dtype, [s.depth * rows * line]);
    let (rows, cols) = (place("rows", HEIGHT), place("columns", width));
    let ring = Ring::new(b, s.depth, BRING, MULTIPLY);
    let (zero, all, multiply, unit) = (b.const_i64(0), b.const_i64(warps), b.const_i64(MULTIPLY), b.const_i64(HEIGHT));
    let (env, listed) = match of {
        Rows::All { .. } => (env.clone(), None),
        Rows::Listed(grouped) => {
            let (env, listed) = grouped.list_by_warps(b, env, warps);
            (env, Some(listed))
        }
    };
    b.for_each(zero, all, 1, LoopKind::Warp, |b, warp| {
        let (total, first, step) = match (&of, listed) {
            (Rows::All { total, first, step }, _) => (*total, b.mul(*first, unit), HEIGHT * step),
            (_, listed) => (listed.map_or(zero, |l| l.total(b)), zero, HEIGHT),
        };
        let Some(cell) = Cell::new(desc, s, &env, (columns, total), (sums, chunk + 8)) else { return };
        let p = Pipeline { cell, rows, cols, ring, line, chunk, first, step };
        let multiplies = b.lt(warp, multiply);
        b.if_else(
            multiplies,
            |b| {
                p.multiply(b, warp);
                Vec::new()
            },
            |b| {
                let number = b.sub(warp, multiply);
                p.bring(b, number);
                Vec::new()
            },
        );
    });
}

struct Pipeline<'e, 'a> {
    cell: Cell<'e, 'a>,
    /// Stages of either factor.
    rows: Buf,
    cols: Buf,
    ring: Ring,
    /// Elements of a row in a stage.
    line: i64,
    /// Columns whose sums go to the epilogue at once.
    chunk: i64,
    /// The first row, and how far the next tile of rows is.
    first: Value,
    step: i64,
}

impl Pipeline<'_, '_> {
    /// What a warp brings: its rows of all stages of all tiles.
    fn bring(&self, b: &mut Builder, number: Value) {
        let cell = &self.cell;
        let (zero, size) = (b.const_i64(0), b.const_i64(cell.size));
        let start = self.ring.start(b);
        let all = b.for_loop(self.first, cell.total, self.step, LoopKind::Serial, &start, |b, m, at| {
            b.for_loop(zero, size, self.line, LoopKind::Serial, at, |b, k, at| {
                self.ring.fill(b, at, |b, place| {
                    for (operand, first) in [(0, m), (1, cell.columns.0)] {
                        self.copy(b, operand, (first, number), k, place);
                    }
                })
            })
        });
        self.ring.finish(b, &all);
    }

    /// Copies a warp's rows of a factor, from one on, for a stage to a place: four at once, of what is not there the last
    /// that is. In a loop, as addresses of all would not fit into registers.
    fn copy(&self, b: &mut Builder, operand: usize, (first, number): (Value, Value), k: Value, place: Value) {
        let (access, letter, end, all, height) = self.cell.operand(operand);
        let (buf, lanes) = (if operand == 0 { self.rows } else { self.cols }, 32);
        let each = 128 / access.dtype.bits() as i64;
        let mut splat = |n: i64| {
            let n = b.const_i64(n);
            b.splat(n, lanes)
        };
        let [three, seven, piece, line] = [3, 7, each, self.line].map(&mut splat);
        let iota = b.iota(DType::I64, lanes);
        let (row, column) = (b.ushr(iota, three), b.and(iota, seven));
        let column = b.mul(column, piece);
        let counts = (self.cell.size % self.line != 0).then(|| {
            let size = b.const_i64(self.cell.size);
            let left = b.sub(size, k);
            let left = b.splat(left, lanes);
            b.sub(left, column)
        });
        let (four, step) = (b.const_i64(4), 4 * BRING);
        let (room, height) = (b.const_i64(height * self.line), b.const_i64(height));
        let base = b.mul(place, room);
        let from = b.mul(number, four);
        b.for_each(from, height, step, LoopKind::Serial, |b, at| {
            let at = b.splat(at, lanes);
            let within = b.add(at, row);
            let to = b.mul(within, line);
            let base = b.splat(base, lanes);
            let to = b.add(to, base);
            let to = b.add(to, column);
            let first = b.splat(first, lanes);
            let mut row = b.add(first, within);
            if !all {
                let one = b.const_i64(1);
                let last = b.sub(end, one);
                let last = b.splat(last, lanes);
                row = b.min(row, last);
            }
            let from = self.cell.env.lanes_at(b, &access.at, (letter, row));
            let k = b.splat(k, lanes);
            let from = b.add(from, k);
            let from = b.add(from, column);
            b.copy((buf, &[to]), (self.cell.env.bufs[access.param], &[from]), lanes * each as u32, counts);
        });
    }

    /// What a warp multiplies: its sixteen rows of all tiles.
    fn multiply(&self, b: &mut Builder, warp: Value) {
        let cell = &self.cell;
        let sixteen = b.const_i64(ROWS);
        let own = b.mul(warp, sixteen);
        let line = b.const_i64(cell.line);
        let base = b.mul(own, line);
        let turn = Turn::start(b);
        b.for_loop(self.first, cell.total, self.step, LoopKind::Serial, &turn.values(), |b, m, at| {
            let m = b.add(m, own);
            let (sums, turn) = self.tile(b, m, warp, Turn::of(at));
            let each = (self.chunk / COLUMNS) as usize;
            for (i, sums) in sums.chunks(each).enumerate() {
                let offset = b.const_i64(i as i64 * self.chunk);
                let from = b.add(cell.columns.0, offset);
                cell.epilogue(b, m, sums, (from, cell.columns.1), base);
            }
            turn.values().to_vec()
        });
    }

    /// The sums of a tile's columns of sixteen rows from `m` on.
    fn tile(&self, b: &mut Builder, m: Value, warp: Value, turn: Turn) -> (Vec<Value>, Turn) {
        let cell = &self.cell;
        let count = cell.s.tile.1 / COLUMNS as usize;
        let zero = b.const_i64(0);
        let group = cell.s.group;
        if group == 0 {
            return self.products(b, warp, cell.size, turn);
        }
        let cols = tiles::firsts(b, cell.columns.0, count as i64, COLUMNS);
        let none = b.const_f32(0.0);
        let none = vec![b.splat(none, MATRIX[2].lanes); count];
        let part = |b: &mut Builder, k: Value, length: i64, sums: &[Value], turn: Turn| {
            let (parts, turn) = self.products(b, warp, length, turn);
            let mut sums = cell.scaled(b, k, (&[m], &cols), parts, sums);
            sums.extend(turn.values());
            sums
        };
        let (whole, rest) = (cell.size / group * group, cell.size % group);
        let end = b.const_i64(whole);
        let start: Vec<Value> = none.into_iter().chain(turn.values()).collect();
        let mut all = b.for_loop(zero, end, group, LoopKind::Serial, &start, |b, k, all| {
            part(b, k, group, &all[..count], Turn::of(&all[count..]))
        });
        if rest > 0 {
            all = part(b, end, rest, &all[..count], Turn::of(&all[count..]));
        }
        let turn = Turn::of(&all[count..]);
        all.truncate(count);
        (all, turn)
    }

    /// The sums of so many elements' products, from the stage on that comes next.
    fn products(&self, b: &mut Builder, warp: Value, length: i64, turn: Turn) -> (Vec<Value>, Turn) {
        let columns = self.cell.s.tile.1;
        let start = |b: &mut Builder, turn: Turn, sums: Option<&[Value]>| {
            self.ring.wait(b, turn);
            let [rows, cols, tile, four] =
                [HEIGHT * self.line, columns as i64 * self.line, 4 * ROWS * self.line, 4].map(|n| b.const_i64(n));
            let warpgroup = b.div(warp, four);
            let (rows, cols, tile) = (b.mul(turn.place, rows), b.mul(turn.place, cols), b.mul(warpgroup, tile));
            let rows = b.add(rows, tile);
            b.wgmma((self.rows, rows), (self.cols, cols), self.line as u32, columns, sums)
        };
        if length <= self.line {
            let open = start(b, turn, None);
            let sums = b.settle(&open, 0);
            self.ring.free(b, turn.place);
            return (sums, self.ring.next(b, turn));
        }
        // A stage is multiplied while the next one's products begin.
        let open = start(b, turn, None);
        let next = self.ring.next(b, turn);
        let init: Vec<Value> = open.into_iter().chain(next.values()).chain([turn.place]).collect();
        let (from, to) = (b.const_i64(self.line), b.const_i64(length));
        let count = columns / COLUMNS as usize;
        let all = b.for_loop(from, to, self.line, LoopKind::Serial, &init, |b, _, all| {
            let (turn, before) = (Turn::of(&all[count..]), all[count + 2]);
            let mut open = start(b, turn, Some(&all[..count]));
            b.settle(&[], 1);
            self.ring.free(b, before);
            open.extend(self.ring.next(b, turn).values());
            open.push(turn.place);
            open
        });
        let sums = b.settle(&all[..count], 0);
        self.ring.free(b, all[count + 2]);
        (sums, Turn::of(&all[count..]))
    }
}
