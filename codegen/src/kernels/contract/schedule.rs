//! The choice: which letters are tiled, vectorised and run over the grid.
//!
//! *Dot form*: a summed letter is consecutive in both operands (activations `[T, K]`, weights `[N, K]`). Lanes hold
//! partial sums of every `lanes`-th product and are combined at the end. A tile of rows of one operand meets a tile of
//! rows of the other.
//!
//! *Outer form*: a result letter is consecutive in one operand and absent from the other (`[K, N]` weights). Lanes
//! are neighbouring results, products are added in the order of the summed letters.
//!
//! *Packed form*, for many rows where registers are wide and many: as the outer form, but a block of columns is first
//! converted and laid out as vectors of neighbouring columns, whichever way it is stored; rows meet it in register
//! tiles of final sums, which need no adding of lanes. Products are added in the order of the summed letter.
//!
//! *Laid form*: weights that are stored as panels, read where they lie by rows of any number (`laid.rs`). Products are
//! added in the order of the summed letter, in entries for steps too.
//!
//! *Tiles*, on GPUs for many rows: what tensor cores multiply (`tiles.rs`); *pipelines* where a block's warps share what is
//! brought to shared memory (`pipeline.rs`).
//!
//! An element's order of summation is a function of the form and its lanes only, not of tile, grid or `T`: so all
//! tile variants of one kernel agree to the last bit. Only in entries for steps (`STEP` new tokens at most) are there
//! more lanes, and another order: there reading weights decides, elsewhere multiply-adds do.

use super::desc::{Desc, Role};
use super::view::{Access, Affine, Var, VarKind};
use super::{laid, pipeline, tiles};
use crate::kernels::Target;
use crate::kernels::index::gcd;
use hadal_types::{DType, Dim};
use std::fmt;

/// What the lanes of a vector are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// Parts of one sum.
    Dot,
    /// Neighbouring results.
    Outer,
    /// Neighbouring results, of a block that was laid out so before.
    Packed,
    /// Neighbouring results, of weights that are stored so.
    Laid,
    /// What tensor cores take.
    Tiles,
    /// The same, brought to shared memory for all warps of a block.
    Pipeline,
}

/// How a product-sum is run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Schedule {
    /// What lanes are.
    pub form: Form,
    /// The streamed operand (weights, usually); the other one is reused from cache.
    pub streamed: usize,
    /// Lanes of a vector.
    pub lanes: u32,
    /// The letter along the lanes.
    pub lane: Var,
    /// Summed letters, innermost last.
    pub sums: Vec<Var>,
    /// The letter of tile rows, of the operand that is not streamed, looped over inside a grid index.
    pub rows: Option<Var>,
    /// The letter of tile columns, of the streamed operand.
    pub cols: Option<Var>,
    /// Rows and columns (dot) or vectors (outer) of the large tile.
    pub tile: (usize, usize),
    /// Columns or vectors of the tile of a single row.
    pub strip: usize,
    /// How far apart the columns of a strip are.
    pub apart: i64,
    /// Columns of one grid index; `None` where a grid index does all.
    pub block: Option<i64>,
    /// Rows of one grid index; `None` where a grid index does all.
    pub rows_block: Option<i64>,
    /// Number of rows from which on a block of the streamed operand is converted to f32 once, then reused.
    pub convert: Option<i64>,
    /// Whether the streamed operand's scales are multiplied into the rows instead, once for a block of columns.
    pub fold: bool,
    /// Whether it is for the rows of a step: one column after the other, which few rows share.
    pub step: bool,
    /// Most rows of a step that share what is read.
    pub shared: usize,
    /// Whether bf16 factors are multiplied in pairs, as they are.
    pub pairs: bool,
    /// Whether bytes are multiplied in fours, as they are.
    pub quads: bool,
    /// Whether small floats are looked up rather than computed.
    pub lookups: bool,
    /// f32 lanes of a register.
    pub register: u32,
    /// Summed elements that are packed at a time.
    pub depth: i64,
    /// Summed elements of packed pairs that share a scale, which multiplies the sum of their products; 0 where there is
    /// no scale, or packing multiplies with it.
    pub group: i64,
    /// Letters that are dimensions of the grid by themselves, slowest first; column blocks come last.
    pub grid: Vec<Var>,
}

/// Where the scale of an operand changes along the summed letter of the dot form.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Steps {
    /// Summed elements that share a scale.
    pub block: i64,
    /// What is added to the summed letter before dividing.
    pub rest: Affine,
    /// Whether the first block begins at zero for certain.
    pub aligned: bool,
}

/// f32 elements a converted block may have: half of a small second-level cache.
const CONVERTED: i64 = 64 * 1024;

/// Lanes of the rows of a step, four registers: sums of fewer wait for each other where there is one column at a time.
pub const STEP_LANES: u32 = 16;

/// Most rows of a step that meet one column at a time: so many times four sums fit into registers.
pub const STEP_ROWS: usize = 3;

/// Bytes that a stream of a step's columns has at least: so many that prefetching is worth its start.
const STREAM: i64 = 32 << 10;

/// Units of work that there are at least, where blocks are made longer: for that many processors, a few each.
const CELLS: i64 = 64;

/// Sums of several rows and columns that fit into 32 registers, beside what is multiplied.
pub const WIDE_SUMS: usize = 16;

/// Rows and vectors of the tile of the packed form: 24 sums, two vectors and a factor in 32 registers.
const PACKED_TILE: (usize, usize) = (12, 2);

/// Blocks of packed columns that meet rows which were listed once.
const LISTED: i64 = 4;

/// Chunks of the packed form are multiples of so many elements of a column.
pub const UNIT: i64 = 64;

/// All schedules that compute `desc`, the preferred one first. Empty where none fits.
pub fn candidates(desc: &Desc, target: &Target) -> Vec<Schedule> {
    let mut all = if target.is_warp() { warp(desc, target) } else { Vec::new() };
    if all.is_empty() {
        all = laid::candidates(desc, target);
    }
    if all.is_empty() && target.is_wide() {
        all = wide(desc, target);
    }
    // Also where scales change sooner than wide registers end.
    if all.is_empty() {
        all = narrow(desc);
    }
    // Listed rows are those of a tile.
    if let Some(grouped) = &desc.grouped {
        all.retain(|s| s.streamed == grouped.operand && s.rows == Some(grouped.rows));
    }
    let mut scored: Vec<_> = all.into_iter().map(|s| (score(desc, &s), s)).collect();
    scored.sort_by_key(|(score, _)| -score);
    scored.into_iter().map(|(_, s)| s).collect()
}

/// Bytes of weights that a lane of a warp reads at once.
const WORD: u32 = 16;

/// Tiles for many rows, where tensor cores take the formats; else lanes of a warp, of which each holds as many
/// neighbours as it reads at once, and all rows add in this one order.
fn warp(desc: &Desc, target: &Target) -> Vec<Schedule> {
    let mut all = Vec::new();
    for streamed in [1, 0] {
        let own = if streamed == 0 { Role::Left } else { Role::Right };
        let word = WORD * 8 / desc.operands[streamed].dtype.bits() as u32;
        for k in desc.of_role(Role::Summed) {
            all.extend(pipeline::schedule(desc, streamed, k).filter(|_| target.warpgroups));
            all.extend(tiles::schedule(desc, streamed, k));
            let lanes = [8, 4, 2, 1].into_iter().filter(|each| *each <= word).map(|each| each * WARP);
            let mut lanes = lanes.filter(|l| *l == WARP || fits(desc, k, i64::from(*l)));
            all.extend(lanes.find_map(|lanes| {
                let s = dot(desc, streamed, k, lanes, WARP)?;
                let each = (lanes / WARP) as usize;
                let many = s.cols.and_then(|n| desc.size(n).as_const()).is_some_and(|n| n >= MANY);
                // Registers of a lane: sums, a row's and a column's vectors, and what they are converted from.
                let (tile, strip) = match each {
                    8.. => ((2, 1), if many { 2 } else { 1 }),
                    _ => ((4, 2), 2),
                };
                let strip = if s.cols.is_some() { strip } else { 1 };
                Some(Schedule { tile, strip, block: s.block.map(|_| strip as i64), convert: None, ..s })
            }));
        }
        all.extend(desc.of_role(own).filter_map(|v| outer(desc, streamed, v, WARP, WARP)));
    }
    all
}

/// Lanes of a warp.
const WARP: u32 = 32;

/// Columns from which on a warp takes two at once: there are warps enough, and it has more to wait for.
const MANY: i64 = 8192;

/// For sixteen registers of four lanes.
fn narrow(desc: &Desc) -> Vec<Schedule> {
    let mut all = Vec::new();
    for streamed in [1, 0] {
        let own = if streamed == 0 { Role::Left } else { Role::Right };
        for lanes in [4, 8] {
            all.extend(desc.of_role(Role::Summed).filter_map(|k| dot(desc, streamed, k, lanes, 4)));
            if lanes == 4 {
                all.extend(desc.of_role(Role::Summed).filter_map(|k| step(desc, streamed, k, STEP_LANES, 4, 1)));
            }
            all.extend(desc.of_role(own).filter_map(|v| outer(desc, streamed, v, lanes, 4)));
        }
    }
    all
}

/// For 32 registers of sixteen lanes.
fn wide(desc: &Desc, target: &Target) -> Vec<Schedule> {
    let (mut all, register) = (Vec::new(), 16);
    for streamed in [1, 0] {
        let own = if streamed == 0 { Role::Left } else { Role::Right };
        // Bytes are converted a whole register at a time, but where scales change sooner.
        let bytes = desc.operands[streamed].dtype.bits() <= 8;
        let lanes: &[u32] = match pairs(desc, streamed, target) {
            _ if bytes => &[64, 32, 16],
            true => &[32, 16],
            false => &[16],
        };
        for k in desc.of_role(Role::Summed) {
            all.extend(dot(desc, streamed, k, register, register));
            let lanes = lanes.iter().filter(|l| **l == register || fits(desc, k, i64::from(**l)));
            let mut lanes = lanes.filter(|l| dot(desc, streamed, k, **l, register).is_some());
            if let Some(lanes) = lanes.next() {
                let strips = match (lanes, desc.operands[streamed].dtype) {
                    (16 | 32, DType::BF16 | DType::F16) => [8, 4],
                    (16 | 32, _) => [4, 8],
                    _ => [2, 4],
                };
                let steps = strips.into_iter().filter_map(|strip| step(desc, streamed, k, *lanes, register, strip));
                if pairs(desc, streamed, target) {
                    all.extend(steps.clone().map(|s| Schedule { pairs: true, fold: false, ..s }));
                }
                all.extend(steps);
            }
            all.extend(desc.of_role(own).filter_map(|n| packed(desc, streamed, k, n, target)));
        }
        all.extend(desc.of_role(own).filter_map(|v| outer(desc, streamed, v, register, register)));
    }
    all
}

/// Whether both operands are bf16, or become it by a look-up, and there are instructions for pairs. Integers are
/// converted to f32 more cheaply.
fn pairs(desc: &Desc, streamed: usize, target: &Target) -> bool {
    let [w, x] = [&desc.operands[streamed], &desc.operands[1 - streamed]];
    let fits = matches!(w.dtype, DType::BF16 | DType::F8E4M3 | DType::F4E2M1);
    target.dots && fits && x.dtype == DType::BF16 && x.parts().next().is_none()
}

/// Whether a column has at least so many elements.
fn fits(desc: &Desc, k: Var, lanes: i64) -> bool {
    desc.size(k).as_const().is_none_or(|n| n >= lanes)
}

/// The preferred schedule.
pub fn select(desc: &Desc, target: &Target) -> Option<Schedule> {
    candidates(desc, target).into_iter().next()
}

/// Larger is better. Independent of whether `T` is a symbol or a number wherever the result's bits depend on it.
fn score(desc: &Desc, s: &Schedule) -> i64 {
    let constant = |v: Var| desc.size(v).as_const();
    let mut score = 0;
    // Long vectors: a lane letter shorter than the vector wastes lanes.
    let lanes = i64::from(s.lanes);
    score += match constant(s.lane) {
        Some(n) if n < lanes => -40,
        Some(n) if n % lanes != 0 => -4,
        _ => 0,
    };
    // Columns of known number make the grid; the streamed operand is the larger or the narrower one.
    score += match s.cols.map(constant) {
        Some(Some(n)) => 20 + i64::from(n.clamp(1, 4096).ilog2()),
        Some(None) => 5,
        None => 0,
    };
    score += i64::from(desc.operands[s.streamed].dtype != DType::F32) * 3;
    let bytes = desc.operands[s.streamed].dtype.bits() <= 8;
    let long = if bytes { 128..=i64::MAX } else { 256..=4096 };
    score += match (s.form, s.lanes) {
        (Form::Packed, _) => 12,
        (Form::Pipeline, _) => 60,
        // Better turned than with weights that lie apart.
        (Form::Tiles, _) if desc.vars.stride(&desc.operands[s.streamed].at, s.lane).is_some_and(|n| n.is(1)) => 48,
        (Form::Tiles, _) => 36,
        (Form::Dot, _) if s.step && s.register > 4 => 6,
        // Four lanes: one vector register, largest tiles. Eight in the outer form halve the scalar loads.
        (Form::Dot, 4) | (Form::Outer, 8) => 2,
        // One column at a time, from end to end: worth it where columns are long, but not so long that the row no
        // longer stays in the nearest cache from one to the next. Bytes are bound by their conversion, which this makes
        // cheaper.
        (Form::Dot, _) if s.step && constant(s.lane).is_some_and(|n| long.contains(&n)) => 6,
        (Form::Dot, _) if s.step => -20,
        _ => 0,
    };
    score + i64::from(s.form == Form::Outer)
}

fn dot(desc: &Desc, streamed: usize, k: Var, lanes: u32, register: u32) -> Option<Schedule> {
    let [w, x] = [&desc.operands[streamed], &desc.operands[1 - streamed]];
    let unit = |a: &Access| desc.vars.stride(&a.at, k).is_some_and(|s| s.is(1));
    // What offsets are multiplied with is summed for a row of the other operand once.
    if !unit(w) || !unit(x) || x.offset.is_some() {
        return None;
    }
    let (rows, cols, grid) = tile_letters(desc, streamed, None);
    let (mut stepped, mut even) = (Vec::new(), true);
    for a in [w, x] {
        let scale = a.scale.as_deref().filter(|s| desc.vars.reads(s, k));
        let steps = match scale {
            Some(scale) => Some(steps(desc, scale, k, &[rows, cols])?),
            None => None,
        };
        if steps.as_ref().is_some_and(|s| s.block < i64::from(lanes)) {
            return None;
        }
        even &= steps.as_ref().is_none_or(|s| s.aligned && s.block % 2 == 0);
        stepped.extend(steps);
        let offset_steps = a.offset.as_ref().is_none_or(|m| scale.is_some() || !desc.vars.reads(m, k));
        if !desc.vars.whole_bytes(a, k) || !offset_steps {
            return None;
        }
    }
    if !even && [w, x].iter().any(|a| a.dtype.is_packed()) {
        return None;
    }
    // Where both change, the one does so whenever the other does.
    if let [a, c] = &stepped[..] {
        let (most, least) = (a.block.max(c.block), a.block.min(c.block));
        (a.aligned && c.aligned && most % least == 0).then_some(())?;
    }
    let vectors = (lanes / register) as usize;
    let sums = sums(desc, k);
    // A block of columns should stay in the second-level cache.
    let long = desc.size(k).as_const().is_some_and(|k| k.saturating_mul(16) > CONVERTED);
    let block = cols.and_then(|n| block(desc, n, if long { 8 } else { 16 }));
    // Converting costs a write and a read of the second-level cache; bytes take long to convert, and are converted
    // fastest in whole registers, so for them it always pays.
    let known = desc.size(k).as_const().filter(|k| sums.len() == 1 && k.saturating_mul(16) <= CONVERTED * 4);
    let least = match w.dtype {
        DType::F32 => None,
        d if d.bits() <= 8 => Some(1),
        _ => rows.filter(|m| desc.size(*m).as_const().is_none_or(|m| m >= 4)).map(|_| 4),
    };
    let convert = least.filter(|_| known.is_some() && block.is_some());
    Some(Schedule {
        form: Form::Dot,
        streamed,
        lanes,
        lane: k,
        sums,
        rows,
        cols,
        tile: match (register, vectors) {
            (4, 1) => (4, 2),
            (4, _) => (2, 2),
            _ => (4, 4),
        },
        strip: if cols.is_some() { 8 / vectors.min(8) } else { 1 },
        apart: 1,
        rows_block: None,
        block,
        convert,
        fold: false,
        step: false,
        shared: 1,
        pairs: false,
        quads: false,
        lookups: false,
        register,
        depth: 0,
        group: 0,
        grid,
    })
}

/// The dot form for the rows of a step: one column after the other, as they lie in memory. A strip of columns side by
/// side reads as many streams at once, which prefetching follows less well where each ends with its column. Where there
/// are registers for it a block's columns are read in a few streams that go on from one column to the next: a quarter
/// of the block each. A few rows share each vector of a column.
fn step(desc: &Desc, streamed: usize, k: Var, lanes: u32, register: u32, strip: u32) -> Option<Schedule> {
    let s = dot(desc, streamed, k, lanes, register)?;
    let other = if streamed == 0 { Role::Right } else { Role::Left };
    // All letters of rows, so that the answer is the same where the tokens' letter is gone because it is one.
    // One row of bytes is always one: there is no call in which it is among others.
    let single = desc.operands[1 - streamed].dtype == DType::I8 && desc.of_role(other).all(|m| desc.size(m).is(1));
    let few = s.rows.is_none() || single || desc.in_steps() && desc.of_role(other).all(|m| desc.is_few(m));
    if !few || strip > 1 && s.block.is_none() {
        return None;
    }
    let most = if register > 4 { 4 } else { STEP_ROWS };
    let sharing = s.rows.map(|m| desc.grouped.as_ref().map_or(desc.size(m), |g| &g.shared));
    let shared = sharing.map_or(Some(1), Dim::as_const).map_or(most, |n| most.min(n as usize));
    let mut s = Schedule { tile: (shared, 1), strip: 1, convert: None, step: true, shared, ..s };
    if let Some(n) = s.cols.filter(|_| register > 4).and_then(|n| desc.size(n).as_const()) {
        let bits = desc.operands[streamed].dtype.bits() as i64;
        let column = desc.size(k).as_const().map_or(STREAM, |k| k.saturating_mul(bits) / 8).max(1);
        let mut each = 16 / i64::from(strip);
        while each * column < STREAM && each * 2 * i64::from(strip) * CELLS <= n && each * i64::from(strip) < 128 {
            each *= 2;
        }
        s.block = Some(each * i64::from(strip));
        s.apart = if strip > 1 { each } else { 1 };
        (s.strip, s.tile.1) = (strip as usize, strip as usize);
    }
    s.fold = folds(desc, &s);
    Some(s)
}

/// The packed form: columns of number `n`, laid out along it.
fn packed(desc: &Desc, streamed: usize, k: Var, n: Var, target: &Target) -> Option<Schedule> {
    let [w, x] = [&desc.operands[streamed], &desc.operands[1 - streamed]];
    let unit = |a: &Access, v: Var| desc.vars.stride(&a.at, v).is_some_and(|s| s.is(1));
    let (rows, cols, grid) = tile_letters(desc, streamed, Some(n));
    let (m, size, sums) = (rows?, desc.size(k).as_const()?, sums(desc, k));
    let lanes = 16;
    // Few rows do not pay for it.
    if desc.is_few(m) || desc.in_steps() || sums.len() != 1 {
        return None;
    }
    // Stored along `k`, elements that are converted together share a scale; stored along the columns, vectors do.
    let along = if unit(w, k) { k } else { n };
    let shared = |a: &Access, v: Var, most: i64| {
        a.scale
            .as_deref()
            .filter(|s| desc.vars.reads(s, v))
            .is_none_or(|s| steps(desc, s, v, &[]).is_some_and(|s| s.aligned && s.block % most == 0))
    };
    let offsets = |a: &Access, v: Var| a.offset.as_ref().is_none_or(|o| a.scale.is_some() || !desc.vars.reads(o, v));
    let readable = unit(w, along) && desc.vars.whole_bytes(w, along) && shared(w, along, lanes) && offsets(w, along);
    let rows_readable = plain(desc, x) || unit(x, k) && desc.vars.whole_bytes(x, k) && shared(x, k, lanes);
    if !readable || !rows_readable || x.offset.is_some() {
        return None;
    }
    // Pairs are not scaled before they are multiplied, so a scale must be one for many of them.
    let codes = matches!(w.dtype, DType::F8E4M3 | DType::F4E2M1 | DType::I8 | DType::U8 | DType::I4 | DType::U4);
    let whole = x.dtype == DType::BF16 && unit(x, k) && along == k && size % 2 == 0;
    let alone = x.parts().next().is_none() && [w, x].iter().all(|a| desc.vars.gathers(a).is_empty());
    let group = match w.scale.as_deref() {
        None => Some(0),
        Some(s) if !desc.vars.reads(s, k) => Some(size),
        Some(s) => steps(desc, s, k, &[]).map(|s| s.block),
    };
    let group = group.filter(|g| g % 16 == 0 && w.offset.is_none() && (codes || w.dtype == DType::BF16));
    let pairs = target.dots && whole && alone && group.is_some();
    let group = group.filter(|_| pairs).unwrap_or(0);
    let width = PACKED_TILE.1 as i64 * lanes;
    // A chunk takes half of the second-level cache, rows pass by. Groups are not cut.
    let unit = if group > 0 && group < size { UNIT * group / gcd(UNIT, group) } else { UNIT };
    let most = target.cache / 2 / (width * if pairs { 2 } else { 4 });
    let chunks = if group == size { 1 } else { (size + most - 1) / most };
    let depth = ((size + chunks - 1) / chunks + unit - 1) / unit * unit;
    Some(Schedule {
        form: Form::Packed,
        streamed,
        lanes: lanes as u32,
        lane: n,
        sums,
        rows,
        cols,
        tile: PACKED_TILE,
        strip: PACKED_TILE.1,
        apart: 1,
        rows_block: None,
        block: desc.size(n).as_const().map(|_| if desc.grouped.is_some() { width * LISTED } else { width }),
        convert: None,
        fold: false,
        step: false,
        shared: 1,
        pairs,
        quads: false,
        lookups: false,
        register: lanes as u32,
        depth,
        group,
        grid,
    })
    .filter(|s| s.block.is_some())
}

/// Whether elements of an operand are f32 that need nothing done to them.
pub fn plain(desc: &Desc, a: &Access) -> bool {
    a.dtype == DType::F32 && a.parts().next().is_none() && desc.vars.gathers(a).is_empty()
}

/// Whether all columns of a grid index have the same scales, which change at known places, so that a row can be
/// multiplied with them before it meets the columns.
pub fn folds(desc: &Desc, s: &Schedule) -> bool {
    let [w, x] = [&desc.operands[s.streamed], &desc.operands[1 - s.streamed]];
    let Some(scale) = w.scale.as_deref().filter(|scale| scale.parts().next().is_none()) else { return false };
    let shared = |v: Var, block: i64| {
        let unit = steps(desc, scale, v, &[]).filter(|steps| steps.aligned && steps.block % block == 0);
        !desc.vars.reads(scale, v) || unit.is_some()
    };
    let plain = w.offset.is_none() && x.parts().next().is_none() && s.sums.len() == 1;
    let columns = s.cols.is_none_or(|n| s.block.is_some_and(|block| shared(n, block)));
    plain && desc.size(s.lane).as_const().is_some() && columns && shared(s.lane, 1)
}

fn outer(desc: &Desc, streamed: usize, v: Var, lanes: u32, register: u32) -> Option<Schedule> {
    let [w, x] = [&desc.operands[streamed], &desc.operands[1 - streamed]];
    let unit = desc.vars.stride(&w.at, v).is_some_and(|s| s.is(1));
    // A scale along the lanes must be one per vector: blocks are whole vectors and begin on a multiple.
    let one_scale = match w.scale.as_deref().filter(|s| desc.vars.reads(s, v)) {
        Some(s) => steps(desc, s, v, &[]).is_some_and(|s| s.aligned && s.block % i64::from(lanes) == 0),
        None => w.offset.as_ref().is_none_or(|m| !desc.vars.reads(m, v)),
    };
    if !unit || !one_scale || !desc.vars.whole_bytes(w, v) || desc.vars.reads(x, v) {
        return None;
    }
    let (rows, _, grid) = tile_letters(desc, streamed, Some(v));
    let vectors = (lanes / register) as usize;
    let strip = if register > 4 { 4 } else { 8 / vectors };
    let inner = desc.of_role(Role::Summed).max_by_key(|k| {
        let unit = desc.vars.stride(&x.at, *k).is_some_and(|s| s.is(1));
        (unit, desc.size(*k).as_const().unwrap_or(i64::MAX))
    });
    Some(Schedule {
        form: Form::Outer,
        streamed,
        lanes,
        lane: v,
        sums: inner.map_or_else(Vec::new, |k| sums(desc, k)),
        rows,
        cols: Some(v),
        tile: (4, 2 / vectors),
        strip,
        apart: 1,
        rows_block: None,
        block: block(desc, v, if register > 4 { 64 } else { 32 }),
        convert: None,
        fold: false,
        step: false,
        shared: if register > 4 { 4 } else { STEP_ROWS },
        pairs: false,
        quads: false,
        lookups: false,
        register,
        depth: 0,
        group: 0,
        grid,
    })
}

/// Summed letters with `k` last.
fn sums(desc: &Desc, k: Var) -> Vec<Var> {
    desc.of_role(Role::Summed).filter(|s| *s != k).chain([k]).collect()
}

/// The letters of rows and columns, and the rest of the result's letters. Rows are looped over inside a grid index
/// only where columns of known number make the grid.
pub(super) fn tile_letters(desc: &Desc, streamed: usize, cols: Option<Var>) -> (Option<Var>, Option<Var>, Vec<Var>) {
    let (own, other) = if streamed == 0 { (Role::Left, Role::Right) } else { (Role::Right, Role::Left) };
    let largest = |role: Role| desc.of_role(role).max_by_key(|v| desc.size(*v).as_const().unwrap_or(i64::MAX));
    let constant = desc.of_role(own).filter(|v| desc.size(*v).as_const().is_some());
    let cols = cols.or_else(|| constant.max_by_key(|v| desc.size(*v).as_const())).or_else(|| largest(own));
    let gridded = cols.is_some_and(|n| desc.size(n).as_const().is_some());
    let rows = largest(other).filter(|_| gridded);
    let rest = (0..desc.roles.len()).filter(|v| desc.roles[*v] != Role::Summed && Some(*v) != rows && Some(*v) != cols);
    (rows, cols, rest.collect())
}

/// Columns of one grid index: `unit` of them, more where there are very many.
fn block(desc: &Desc, n: Var, unit: i64) -> Option<i64> {
    let n = desc.size(n).as_const()?;
    Some(unit * (n / (unit * 512)).clamp(1, 2))
}

/// Where `scale` changes along `k`, if it does so in blocks that all elements of a tile share.
pub fn steps(desc: &Desc, scale: &Access, k: Var, tile: &[Option<Var>]) -> Option<Steps> {
    let mut moving = scale.at.terms.keys().filter(|v| desc.vars.depends(&Affine::var(**v), k));
    let (Some(div), None) = (moving.next(), moving.next()) else { return None };
    let VarKind::Div(of, block) = &desc.vars.list[*div].kind else {
        // The letter itself: a scale for every element.
        let own = *div == k && scale.at.coefficient(k).as_const().is_some();
        return own.then(|| Steps { block: 1, rest: Affine::default(), aligned: true });
    };
    if !of.coefficient(k).is(1) {
        return None;
    }
    let mut rest = of.clone();
    rest.terms.remove(&k);
    let multiple = |d: &Dim| d.div_exact(*block).is_some();
    let depends_on_k = desc.vars.depends(&rest, k);
    let shared = tile.iter().flatten().all(|t| {
        let via_derived = rest.terms.keys().any(|v| v != t && desc.vars.depends(&Affine::var(*v), *t));
        multiple(&rest.coefficient(*t)) && !via_derived
    });
    let aligned = multiple(&rest.offset) && rest.terms.values().all(multiple);
    (!depends_on_k && shared).then_some(Steps { block: *block, rest, aligned })
}

impl Schedule {
    /// Lanes of a sum.
    pub fn sum_lanes(&self) -> u32 {
        match self.form {
            Form::Dot if self.pairs => self.lanes / 2,
            _ => self.lanes,
        }
    }

    /// For people, with the letters of `desc`.
    pub fn show(&self, desc: &Desc) -> String {
        let name = |v: Option<Var>| v.map_or("-".into(), |v| desc.vars.name(v));
        let list = |vs: &[Var]| vs.iter().map(|v| desc.vars.name(*v)).collect::<String>();
        format!(
            "{} stream {} {}x{} rows {}{}{} cols {} tile {}x{} strip {} block {:?} convert {:?}{}{}{} grid [{}] sum [{}]",
            self.form,
            self.streamed,
            name(Some(self.lane)),
            self.lanes,
            name(self.rows),
            self.rows_block.map_or(String::new(), |n| format!(" by {n}")),
            match &desc.grouped {
                None => "",
                Some(g) if g.each_row => " that share what the first of them chooses",
                Some(_) => " that choose the same",
            },
            name(self.cols),
            self.tile.0,
            self.tile.1,
            self.strip,
            self.block,
            self.convert,
            if self.fold { " fold" } else { "" },
            if self.quads {
                " quads"
            } else if self.pairs {
                " pairs"
            } else {
                ""
            },
            if self.depth > 0 { format!(" depth {}", self.depth) } else { String::new() },
            list(&self.grid),
            list(&self.sums),
        )
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Form::Dot => "dot",
            Form::Outer => "outer",
            Form::Packed => "packed",
            Form::Laid => "laid",
            Form::Tiles => "tiles",
            Form::Pipeline => "pipeline",
        })
    }
}
