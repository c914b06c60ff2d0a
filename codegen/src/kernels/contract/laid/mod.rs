//! The laid form: weights that are stored as panels, read where they lie.
//!
//! ```text
//! W[n, k]  is stored as  W'[n / 16, k / g, n % 16, k % g]
//! ```
//!
//! A panel is sixteen columns; a *line* of it, a register of weights, has `g` neighbouring summed elements of each: as
//! many as make up a word of 32 bits (`codes.rs` for those of four and eight bits). To a kernel function this is a
//! view: the parameter has the shape of `W'`, and a transpose and a reshape make `W` of it. Addresses are affine once
//! both letters are cut into digits ([`Desc::of`]), and the lanes of a vector are the lower digit of the columns.
//! Scales and offsets of columns are panels too, with `g = 1`; those that blocks of columns share are spread over the
//! lanes.
//!
//! A grid index has some panels. Rows pass in tiles whose sums are in registers: each line meets one factor, a pair or
//! four factors a row, spread over the lanes. Sums of lanes are never added to each other, and an element's products
//! are added in the order of the summed letter, whatever the number of rows is: a prompt, a step and a batch give the
//! same bits, and read the same bytes. A single row reads panels one after another, one stream from memory, or, where
//! they lie in a cache, several side by side, so that sums do not wait for each other; many rows meet so much of the
//! panels at a time that it stays in the second-level cache, and sums wait in memory meanwhile.
//!
//! What rows of bytes need besides is done once for all panels of a grid index, so prompts have many of these in one,
//! and some of the rows instead of all.
//!
//! **Scales.** The summed elements that share all scales, a *part*, are summed by themselves, unscaled; then their sum
//! is multiplied with the scales of both operands and added:
//!
//! ```text
//! sum += (Σ q·x) · (scale of w · scale of x) + (offset of w) · (Σ x · scale of x)
//! ```
//!
//! Where rows are bytes the inner sum is an exact integer: in i32 where there are products of bytes by fours, else in
//! f32. The instruction takes weights without a sign: they get a bias, whose share `bias · Σ x` is where a part's sums
//! begin. The sums of rows' parts are taken once for all panels of a grid index (`rows.rs`).

mod cell;
mod codes;
mod rows;

#[cfg(test)]
mod tests;

pub use cell::cell;

use super::desc::{Desc, Role};
use super::schedule::{Form, Schedule, tile_letters};
use super::view::{Access, Affine, Var, VarKind};
use crate::kernels::Target;
use hadal_ir::module::STEP;
use hadal_types::DType;

/// Columns of a panel.
const LANES: i64 = 16;

/// Rows of the tiles that many rows pass in, and few.
const MANY: &[i64] = &[12, 4, 3, 2, 1];
const FEW: &[i64] = &[8, 7, 6, 5, 4, 3, 2, 1];

/// The same where a part's sums are in registers beside those of all.
const MANY_SCALED: &[i64] = &[6, 4, 3, 2, 1];
const FEW_SCALED: &[i64] = &[6, 5, 4, 3, 2, 1];

/// The same where there are sixteen registers of four or eight lanes.
const NARROW: &[i64] = &[3, 2, 1];

/// Panels that lie side by side in a grid index at most, times their bytes: long streams, few starts.
const STREAM: i64 = 256 << 10;

/// Grid indices that there are at least, where one has more panels than a tile.
const SHARES: i64 = 32;

/// Rows of a grid index where they are in parts, a multiple of the heights of tiles, and panels of it at most.
const ROWS: i64 = 96;
const MOST: i64 = 16;

/// Elements of a part of bytes at most, so that sums of their products are exact in f32 where no instruction makes
/// integers.
const LONGEST: i64 = 512;

/// The letters of an operand that is laid out so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Laid {
    /// The panel.
    panel: Var,
    /// The column in it.
    lane: Var,
    /// The line.
    line: Var,
    /// The element in a column's word; `None` where that is one.
    within: Option<Var>,
    /// Elements of such a word.
    word: i64,
    /// Lines.
    lines: i64,
    /// Summed elements that share all scales, where there are any.
    part: Option<i64>,
}

impl Laid {
    fn of(desc: &Desc, streamed: usize) -> Option<Laid> {
        let [w, x] = [&desc.operands[streamed], &desc.operands[1 - streamed]];
        let own = if streamed == 0 { Role::Left } else { Role::Right };
        let word = word(w)?;
        let moves = |a: &Access, v: Var, by: i64| desc.vars.stride(&a.at, v).is_some_and(|s| s.is(by));
        let sized = |v: Var, n: i64| desc.size(v).is(n);
        let lane = desc.of_role(own).find(|v| sized(*v, LANES) && moves(w, *v, word))?;
        let mut sums = desc.of_role(Role::Summed);
        let (line, within) = match (word, sums.next(), sums.next(), sums.next()) {
            (1, Some(line), None, None) => (line, None),
            (2.., Some(line), Some(within), None) if sized(within, word) => (line, Some(within)),
            _ => return None,
        };
        let first = within.is_none_or(|within| moves(w, within, 1) && moves(x, within, 1));
        let in_lines = moves(w, line, LANES * word) && moves(x, line, word) && first;
        let lines = desc.size(line).as_const()?;
        let panel = desc.of_role(own).find(|v| *v != lane && moves(w, *v, lines.saturating_mul(LANES * word)))?;
        let rows = match x.dtype {
            DType::I8 | DType::F8E4M3 => {
                w.scale.is_some() && x.scale.as_ref().is_some_and(|s| s.parts().next().is_none())
            }
            _ => x.scale.is_none() && !x.dtype.is_packed(),
        };
        (in_lines && rows && x.offset.is_none() && desc.size(panel).as_const().is_some()).then_some(())?;
        let laid = Laid { panel, lane, line, within, word, lines, part: None };
        let part = match w.scale {
            Some(_) => Some(laid.part_of(desc, w, x)?),
            None => None,
        };
        Some(Laid { part, ..laid })
    }

    /// Summed elements that share all scales; `None` where one of these is not read by columns, or not by whole words.
    fn part_of(&self, desc: &Desc, w: &Access, x: &Access) -> Option<i64> {
        let elements = self.lines.checked_mul(self.word)?;
        let mut sizes = Vec::new();
        let mut open: Vec<(&Access, bool)> =
            w.parts().map(|a| (a, true)).chain(x.parts().map(|a| (a, false))).collect();
        while let Some((access, columns)) = open.pop() {
            let along = desc.vars.stride(&access.at, self.lane)?;
            let readable = if columns { along.is(0) || along.is(1) } else { along.is(0) };
            let groups = Groups::of(desc, access, self)?;
            let of_words = self.within.is_none_or(|within| !desc.vars.depends(&access.at, within));
            (readable && of_words).then_some(())?;
            sizes.extend(groups.var.map(|_| groups.size));
            open.extend(access.parts().map(|a| (a, columns)));
        }
        let part = sizes.iter().copied().min().unwrap_or(elements);
        let even = sizes.iter().all(|size| size % part == 0) && part % self.word.max(16) == 0;
        let whole = x.scale.is_none() || elements % part == 0;
        (even && whole && (x.dtype != DType::I8 || part <= LONGEST)).then_some(part)
    }
}

/// Summed elements that share a scale.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Groups {
    /// What numbers them; `None` where there is one.
    var: Option<Var>,
    /// Elements.
    size: i64,
}

impl Groups {
    /// Those of a scale, which are counted from the first line on.
    fn of(desc: &Desc, scale: &Access, laid: &Laid) -> Option<Groups> {
        let size = |var: Var| {
            let (mut var, mut size) = (var, laid.word);
            while var != laid.line {
                let VarKind::Div(of, by) = &desc.vars.list[var].kind else { return None };
                let inner = of.terms.keys().next().copied()?;
                (*of == Affine::var(inner)).then_some(())?;
                (var, size) = (inner, size.checked_mul(*by)?);
            }
            Some(size)
        };
        let mut moving = scale.at.terms.keys().filter(|v| desc.vars.depends(&Affine::var(**v), laid.line));
        match (moving.next(), moving.next()) {
            (None, _) => Some(Groups { var: None, size: 0 }),
            (Some(var), None) => Some(Groups { var: Some(*var), size: size(*var)? }),
            _ => None,
        }
    }
}

/// The parameters behind an operand that would be laid out, and how many neighbours each keeps together.
pub fn wanted(desc: &Desc, streamed: usize, target: &Target) -> Option<Vec<(usize, i64)>> {
    let w = &desc.operands[streamed];
    let own = if streamed == 0 { Role::Left } else { Role::Right };
    // Narrow registers are faster with small floats in the order of memory, in which their casts share most operations.
    if w.dtype == DType::F8E4M3 && !target.is_wide() {
        return None;
    }
    let stride = |v: &Var| desc.vars.stride(&w.at, *v).and_then(|s| s.as_const()).filter(|s| *s > 0);
    let column = desc.of_role(own).filter(|v| stride(v).is_some()).min_by_key(|v| stride(v))?;
    let mut all = vec![(w.param, word(w)?)];
    let mut open: Vec<&Access> = w.parts().collect();
    while let Some(access) = open.pop() {
        // What blocks of columns share is left as it is.
        if desc.vars.stride(&access.at, column).is_some_and(|s| !s.is(0)) {
            all.push((access.param, 1));
        }
        open.extend(access.parts());
    }
    Some(all)
}

/// Summed elements of a column that make up a word.
fn word(w: &Access) -> Option<i64> {
    match w.dtype {
        DType::F32 if w.scale.is_none() => Some(1),
        DType::BF16 if w.scale.is_none() => Some(2),
        _ if w.scale.is_some() => codes::word(w.dtype),
        _ => None,
    }
}

/// Schedules for weights that are laid out so; none for others.
pub fn candidates(desc: &Desc, target: &Target) -> Vec<Schedule> {
    let of = |streamed| Laid::of(desc, streamed).map(|laid| (streamed, laid));
    let Some((streamed, laid)) = [1, 0].into_iter().find_map(of) else { return Vec::new() };
    // What comes from memory is best one stream, which processors foresee, as long as sums of one panel do not wait for
    // each other longer than for that; what lies in a cache is several streams side by side.
    let w = &desc.operands[streamed];
    let bytes = desc.size(laid.panel).as_const().map_or(0, |n| n.saturating_mul(laid.lines * line_bytes(w, laid)));
    let steps = match products(desc, target, streamed) {
        (true, _) => 1,
        (_, pairs) => codes::vectors(w, false, pairs),
    };
    let vectors: &[i64] = match (target.is_wide(), rows_of(desc, streamed, laid)) {
        (true, Some(1..=2)) if bytes >= target.cache / 4 && steps == 1 => &[1, 2, 4],
        (true, Some(1..=2)) if bytes >= target.cache / 4 && steps == 2 && laid.part.is_none() => &[2, 1, 4],
        (true, Some(1)) => &[4, 8, 2],
        (true, Some(2)) => &[4, 2],
        (true, Some(3..=4)) if laid.part.is_none() => &[4, 2],
        (true, _) => &[2],
        (false, Some(1)) => &[2, 1],
        (false, _) => &[1],
    };
    let mut all: Vec<Schedule> = vectors.iter().filter_map(|v| schedule(desc, target, streamed, laid, *v)).collect();
    // Those with work for several processors first, the widest of these first.
    let indices = |s: &Schedule| desc.size(laid.panel).as_const().zip(s.block).map_or(0, |(n, block)| n / block);
    all.sort_by_key(|s| indices(s) < SHARES / 4);
    all
}

/// Whether products are of bytes by fours, and of bf16 in pairs.
fn products(desc: &Desc, target: &Target, streamed: usize) -> (bool, bool) {
    let x = desc.operands[1 - streamed].dtype;
    let pairs = match desc.operands[streamed].dtype {
        DType::BF16 => x == DType::BF16,
        DType::F8E4M3 => matches!(x, DType::BF16 | DType::F8E4M3),
        _ => false,
    };
    let quads = x == DType::I8 && desc.operands[streamed].dtype != DType::F8E4M3;
    (target.dots && quads, target.dots && pairs)
}

/// Bytes of a line.
fn line_bytes(w: &Access, laid: Laid) -> i64 {
    LANES * laid.word * w.dtype.bits() as i64 / 8
}

/// How many rows meet each other at most, where they are few.
fn rows_of(desc: &Desc, streamed: usize, laid: Laid) -> Option<i64> {
    let Some(rows) = tile_letters(desc, streamed, Some(laid.panel)).0 else { return Some(1) };
    match desc.known(rows) {
        Some(n) if n <= STEP => Some(n),
        _ => (desc.in_steps() && desc.is_few(rows)).then_some(STEP),
    }
}

/// The heights of tiles, the tallest first.
fn heights(laid: Laid, wide: bool, few: bool) -> &'static [i64] {
    match (wide, laid.part, few) {
        (true, Some(_), true) => FEW_SCALED,
        (true, Some(_), false) => MANY_SCALED,
        (true, None, true) => FEW,
        (true, None, false) => MANY,
        (false, Some(_), _) => &NARROW[1..],
        (false, None, _) => NARROW,
    }
}

fn schedule(desc: &Desc, target: &Target, streamed: usize, laid: Laid, vectors: i64) -> Option<Schedule> {
    let w = &desc.operands[streamed];
    let (rows, cols, grid) = tile_letters(desc, streamed, Some(laid.panel));
    let panels = desc.size(laid.panel).as_const()?;
    if panels % vectors != 0 {
        return None;
    }
    let line = line_bytes(w, laid);
    let (quads, pairs) = products(desc, target, streamed);
    let few = rows_of(desc, streamed, laid);
    let tallest = heights(laid, target.is_wide(), few.is_some())[0];
    let height = few.map_or(tallest, |n| n.min(tallest));
    // More panels for a grid index: long streams for few rows, as long as there are enough grid indices; where rows are
    // listed first, so that this is done for several; and where something is written of each row.
    // Many rows meet codes as they are multiplied, which are written once for all of these.
    let convert = (laid.part.is_some() && few.is_none() && !quads).then_some(1);
    let line = if convert.is_some() { LANES * laid.word * if pairs { 2 } else { 4 } } else { line };
    let (listed, written) = (desc.grouped.is_some() && few.is_none(), laid.part.is_some() && few.is_none());
    let longer = |block: &i64| {
        let enough = panels / block >= SHARES && block * laid.lines * line <= STREAM;
        let shared = written && block * LANES <= 128 && panels / block >= SHARES / 2;
        panels % block == 0 && (listed && (!written || block * LANES <= 128) || few.is_some() && enough || shared)
    };
    // Bytes are put in order and summed for all panels of a grid index, which costs as much as some of these: many of
    // them, and rows in parts, so that there are indices for many processors all the same.
    let rows_block = (written && quads && !listed && rows.is_some()).then_some(ROWS);
    let many = |block: &i64| rows_block.is_some() && panels % block == 0;
    let block = (1..=MOST / vectors).rev().map(|n| n * vectors).find(many);
    let block = block.or_else(|| [8, 4, 2].map(|n| n * vectors).into_iter().find(longer)).unwrap_or(vectors);
    let unit = laid.part.map_or(1, |part| part / laid.word);
    let together = if laid.part.is_some() { block } else { vectors };
    let most = (target.cache / 2 / (together * line)).max(unit);
    let chunks = if few.is_some() { 1 } else { (laid.lines + most - 1) / most };
    let depth = ((laid.lines + chunks - 1) / chunks + unit - 1) / unit * unit;
    Some(Schedule {
        form: Form::Laid,
        streamed,
        lanes: LANES as u32,
        lane: laid.lane,
        sums: [laid.line].into_iter().chain(laid.within).collect(),
        rows,
        cols,
        tile: (height as usize, vectors as usize),
        strip: vectors as usize,
        apart: 1,
        rows_block,
        block: Some(block),
        convert,
        fold: false,
        step: few.is_some(),
        shared: 1,
        pairs,
        quads,
        lookups: target.dots,
        register: target.lanes.min(LANES as u32),
        depth: depth * laid.word,
        group: laid.part.unwrap_or(0),
        grid: grid.into_iter().filter(|v| *v != laid.lane).collect(),
    })
}
