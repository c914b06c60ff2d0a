//! The choice: which rows one grid index computes, and in which tiles.

use super::desc::Desc;
use crate::kernels::contract::view::Var;
use crate::kernels::{Ranges, Target};
use hadal_ir::module::STEP;
use hadal_types::Dim;

/// Keys of a block. Part of the meaning of the result's bits, so it does not depend on anything.
pub const KEYS: i64 = 32;

/// Rows from which on arithmetic takes so long that rows of keys come in time.
const AHEAD: i64 = 16;

/// Warps that share a grid index in steps, on GPUs: half of those that a block may have, so that each has registers
/// enough.
const TEAM: i64 = 16;

/// How an attention is run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Schedule {
    /// The letter of heads that a grid index has several of; they share keys and values.
    pub shared: Option<Var>,
    /// How many of them; divides their number.
    pub heads: i64,
    /// Queries of a grid index.
    pub queries: i64,
    /// Warps that share a grid index, each of which takes every so many blocks of keys. Part of the meaning of the result's
    /// bits.
    pub team: i64,
    /// Letters that are dimensions of the grid by themselves.
    pub grid: Vec<Var>,
    /// Whether a block's keys and values are converted to f32 in one place before they are used.
    pub staged: bool,
    /// Whether the keys of a block are turned, so that lanes of scores are keys. Part of the meaning of the result's
    /// bits, so the same in all schedules of an attention.
    pub turned: bool,
    /// Registers and what they hold.
    pub tiles: Tiles,
}

/// Register tiles. Only `lanes` decides bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tiles {
    /// f32 lanes of a register; scores are summed in so many lanes.
    pub lanes: u32,
    /// Lanes of vectors that are not multiplied with keys.
    pub wide: u32,
    /// Rows of a tile.
    pub rows: i64,
    /// Keys of a tile of scores.
    pub keys: i64,
    /// Registers of values of a tile of outputs.
    pub vectors: i64,
    /// Whether weights are kept in all lanes of a vector. Narrow registers meet a weight often, and Cranelift makes a
    /// spread load an operand only where it has one use; wide ones take a spread operand as it is.
    pub spread: bool,
    /// Whether the next block is asked for while one is computed. For few rows memory is what takes long, and rows of
    /// several heads that lie side by side are no stream that processors foresee.
    pub ahead: bool,
}

impl Tiles {
    /// For so many rows. A tile has eight chains of multiply-adds or more where there are as many rows and keys, so
    /// that none waits for the one before it; what is left are operands.
    fn of(rows: i64, turned: bool, target: &Target) -> Tiles {
        // Padding costs as many multiply-adds as rows; low tiles cost loads.
        let cost = |height: i64| (rows + height - 1) / height * (height * 12 + 6);
        let ahead = rows <= AHEAD && !turned;
        let best = |most: i64| (1..=most).rev().min_by_key(|h| cost(*h)).unwrap_or(1);
        if target.is_warp() {
            // A lane has two elements of a vector, and the others of the warp read its line too.
            let rows = best(4);
            let (keys, vectors) = if rows > 2 { (2, 2) } else { (4, 4) };
            return Tiles { lanes: 64, wide: 32, rows, keys, vectors, spread: false, ahead: false };
        }
        if target.is_wide() {
            // 24 sums, what they are made of, and some to spare.
            let rows = best(6);
            let (keys, vectors) = if rows > 2 { (4, 4) } else { (8, 8) };
            return Tiles { lanes: 16, wide: 8, rows, keys, vectors, spread: false, ahead };
        }
        let rows = best(4);
        let keys = [8, 4, 3, 2][rows as usize - 1];
        Tiles { lanes: 4, wide: 8, rows, keys, vectors: keys.min(4), spread: rows > 1, ahead }
    }
}

/// All sensible schedules, the preferred one first.
pub fn candidates(desc: &Desc, ranges: &Ranges, target: &Target) -> Vec<Schedule> {
    let constant = |v: &Var| desc.size(*v).as_const();
    let shared: Option<Var> =
        desc.heads.iter().copied().filter(|h| desc.shared(*h) && constant(h).is_some()).max_by_key(constant);
    let grid: Vec<Var> = desc.heads.iter().copied().filter(|h| Some(*h) != shared).collect();
    let count = shared.as_ref().and_then(constant).unwrap_or(1).max(1);
    let fitting = |most: i64| (1..=most).rev().find(|n| count % n == 0).unwrap_or(1);
    let tokens = most(desc.size(desc.query), ranges);
    // Queries that see different rows have nothing to share.
    let single = tokens == Some(1) || desc.listed();
    let step = tokens.is_some_and(|n| n <= STEP);
    // Many rows share what turning costs.
    let turned = target.is_wide() && !target.is_warp() && !step;
    // Few rows are too few warps, so several share the keys of one.
    let team = if target.is_warp() && step { TEAM } else { 1 };
    // Rows of a grid index share what is loaded and converted. With one query there are no others to share the work of
    // a grid with, so heads are not taken all together.
    let wanted: &[i64] = match (desc.listed(), step) {
        (_, true) if team > 1 => &[1],
        (true, true) => &[16, 8, 1],
        (true, false) => &[32, 8, 1],
        (false, true) if single => {
            if count >= 64 {
                &[16, 4, 1]
            } else {
                &[8, 4, 1]
            }
        }
        (false, true) => &[16, 4, 1],
        (false, false) if turned => &[48, 8, 1],
        (false, false) => &[32, 8, 1],
    };
    let mut out = Vec::new();
    for rows in wanted.iter().copied() {
        let heads = fitting(rows);
        // Whole tiles of four where that takes few queries less.
        let most = if single { 1 } else { (rows / heads).clamp(1, tokens.unwrap_or(rows).max(1)) };
        let queries = (most * 3 / 4..=most).rev().find(|q| *q > 0 && heads * q % 4 == 0).unwrap_or(most);
        let mut tiles = Tiles::of(heads * queries, turned, target);
        if team > 1 && desc.sets.len() > 1 {
            // Each thread of so many warps has 128 registers, and what several sets need beside sums is more.
            (tiles.keys, tiles.vectors) = (2, 2);
        }
        // Wide registers convert bf16 while they multiply.
        let pays = heads * queries >= 8 && !target.is_wide();
        for staged in [pays, !pays] {
            let schedule = Schedule { shared, heads, queries, team, grid: grid.clone(), staged, turned, tiles };
            if !out.contains(&schedule) {
                out.push(schedule);
            }
        }
    }
    out
}

/// The largest value of a size, where it is known.
fn most(size: &Dim, ranges: &Ranges) -> Option<i64> {
    size.terms().iter().try_fold(size.constant(), |sum, (sym, k)| {
        let range = ranges.get(sym)?;
        let (a, b) = (range.min.checked_mul(*k)?, range.max.checked_mul(*k)?);
        sum.checked_add(a.max(b))
    })
}

impl Schedule {
    /// Rows of a grid index.
    pub fn rows(&self) -> i64 {
        self.heads * self.queries
    }

    /// Room for a row's scores: whole tiles of keys.
    pub fn scores(&self) -> i64 {
        (KEYS + self.tiles.keys - 1) / self.tiles.keys * self.tiles.keys
    }

    /// For people, with the letters of `desc`.
    pub fn show(&self, desc: &Desc) -> String {
        let grid: String = self.grid.iter().map(|v| desc.vars.name(*v)).collect();
        let shared = self.shared.map_or("-".into(), |v| desc.vars.name(v));
        let Tiles { lanes, rows, keys, vectors, .. } = self.tiles;
        let staged = if self.staged { ", staged" } else { "" };
        let turned = if self.turned { ", keys turned" } else { "" };
        let team = if self.team > 1 { format!(", shared by {} warps", self.team) } else { String::new() };
        format!(
            "flash {} queries x {} heads of {shared}, keys by {KEYS}, grid [{grid}], {lanes} lanes, tiles {rows}x{keys} and \
             {rows}x{vectors}{staged}{turned}{team}",
            self.queries, self.heads
        )
    }
}
