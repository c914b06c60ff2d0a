//! The choice: which letters are tiled, vectorised and run over the grid.
//!
//! *Dot form*: a summed letter is consecutive in both operands (activations `[T, K]`, weights `[N, K]`). Lanes hold
//! partial sums of every `lanes`-th product and are combined at the end. A tile of rows of one operand meets a tile of
//! rows of the other.
//!
//! *Outer form*: a result letter is consecutive in one operand and absent from the other (`[K, N]` weights). Lanes
//! are neighbouring results, products are added in the order of the summed letters.
//!
//! An element's order of summation is a function of the form and its lanes only, not of tile, grid or `T`: so all
//! tile variants of one kernel agree to the last bit. Only in entries for steps (`STEP` new tokens at most) are there
//! more lanes, and another order: there reading weights decides, elsewhere multiply-adds do.

use super::desc::{Desc, Role};
use super::view::{Access, Affine, Var, VarKind};
use hadal_types::{DType, Dim};
use std::fmt;

/// What the lanes of a vector are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// Parts of one sum.
    Dot,
    /// Neighbouring results.
    Outer,
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
    /// Columns of one grid index; `None` where a grid index does all.
    pub block: Option<i64>,
    /// Number of rows from which on a block of the streamed operand is converted to f32 once, then reused.
    pub convert: Option<i64>,
    /// Whether the streamed operand's scales are multiplied into the rows instead, once for a block of columns.
    pub fold: bool,
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

/// All schedules that compute `desc`, the preferred one first. Empty where neither form fits.
pub fn candidates(desc: &Desc) -> Vec<Schedule> {
    let mut out: Vec<(i64, Schedule)> = Vec::new();
    for streamed in [1, 0] {
        for lanes in [4, 8] {
            for k in desc.of_role(Role::Summed) {
                out.extend(dot(desc, streamed, k, lanes).map(|s| (score(desc, &s), s)));
            }
            if lanes == 4 {
                out.extend(
                    desc.of_role(Role::Summed).filter_map(|k| step(desc, streamed, k)).map(|s| (score(desc, &s), s)),
                );
            }
            let own = if streamed == 0 { Role::Left } else { Role::Right };
            for v in desc.of_role(own) {
                out.extend(outer(desc, streamed, v, lanes).map(|s| (score(desc, &s), s)));
            }
        }
    }
    out.sort_by_key(|(score, _)| -score);
    out.into_iter().map(|(_, s)| s).collect()
}

/// The preferred schedule.
pub fn select(desc: &Desc) -> Option<Schedule> {
    candidates(desc).into_iter().next()
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
    // Four lanes: one vector register, largest tiles. Eight in the outer form halve the scalar loads.
    score += match (s.form, s.lanes) {
        (Form::Dot, 4) | (Form::Outer, 8) => 2,
        // One column at a time, from end to end: worth it where columns are long, but not so long that the row no longer
        // stays in the nearest cache from one to the next. Bytes are bound by their conversion, which this makes cheaper.
        (Form::Dot, STEP_LANES) if constant(s.lane).is_some_and(|n| long.contains(&n)) => 6,
        (Form::Dot, STEP_LANES) => -20,
        _ => 0,
    };
    score + i64::from(s.form == Form::Outer)
}

fn dot(desc: &Desc, streamed: usize, k: Var, lanes: u32) -> Option<Schedule> {
    let [w, x] = [&desc.operands[streamed], &desc.operands[1 - streamed]];
    let unit = |a: &Access| desc.vars.stride(&a.at, k).is_some_and(|s| s.is(1));
    // What offsets are multiplied with is summed for a row of the other operand once.
    if !unit(w) || !unit(x) || x.offset.is_some() {
        return None;
    }
    let (rows, cols, grid) = tile_letters(desc, streamed, None);
    let (mut stepped, mut even) = (0, true);
    for a in [w, x] {
        let scale = a.scale.as_deref().filter(|s| desc.vars.reads(s, k));
        let steps = scale.map(|s| steps(desc, s, k, &[rows, cols]));
        if let Some(steps) = &steps {
            if steps.as_ref()?.block < i64::from(lanes) {
                return None;
            }
            stepped += 1;
        }
        even &= steps.flatten().is_none_or(|s| s.aligned && s.block % 2 == 0);
        let offset_steps = a.offset.as_ref().is_none_or(|m| scale.is_some() || !desc.vars.reads(m, k));
        if !desc.vars.whole_bytes(a, k) || !offset_steps {
            return None;
        }
    }
    if !even && [w, x].iter().any(|a| a.dtype.is_packed()) {
        return None;
    }
    if stepped > 1 {
        return None;
    }
    let vectors = lanes as usize / 4;
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
        tile: if vectors == 1 { (4, 2) } else { (2, 2) },
        strip: if cols.is_some() { 8 / vectors } else { 1 },
        block,
        convert,
        fold: false,
        grid,
    })
}

/// The dot form for the rows of a step: one column after the other, as they lie in memory. A strip of columns side by
/// side reads as many streams at once, which prefetching follows less well. A few rows share each vector of a column.
fn step(desc: &Desc, streamed: usize, k: Var) -> Option<Schedule> {
    let s = dot(desc, streamed, k, STEP_LANES)?;
    let other = if streamed == 0 { Role::Right } else { Role::Left };
    // All letters of rows, so that the answer is the same where the tokens' letter is gone because it is one.
    let few = s.rows.is_none() || desc.in_steps() && desc.of_role(other).all(|m| desc.is_few(m));
    let height = s.rows.map_or(Some(1), |m| desc.size(m).as_const()).map_or(STEP_ROWS, |n| STEP_ROWS.min(n as usize));
    few.then_some(Schedule { tile: (height, 1), strip: 1, convert: None, fold: folds(desc, &s), ..s })
}

/// Whether all columns of a grid index have the same scales, which change at known places, so that a row can be multiplied
/// with them before it meets the columns.
fn folds(desc: &Desc, s: &Schedule) -> bool {
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

fn outer(desc: &Desc, streamed: usize, v: Var, lanes: u32) -> Option<Schedule> {
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
    let vectors = lanes as usize / 4;
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
        strip: 8 / vectors,
        block: block(desc, v, 32),
        convert: None,
        fold: false,
        grid,
    })
}

/// Summed letters with `k` last.
fn sums(desc: &Desc, k: Var) -> Vec<Var> {
    desc.of_role(Role::Summed).filter(|s| *s != k).chain([k]).collect()
}

/// The letters of rows and columns, and the rest of the result's letters. Rows are looped over inside a grid index
/// only where columns of known number make the grid.
fn tile_letters(desc: &Desc, streamed: usize, cols: Option<Var>) -> (Option<Var>, Option<Var>, Vec<Var>) {
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
    /// Whether it is the one for the rows of a step.
    pub fn is_step(&self) -> bool {
        self.form == Form::Dot && self.lanes == STEP_LANES
    }

    /// For people, with the letters of `desc`.
    pub fn show(&self, desc: &Desc) -> String {
        let name = |v: Option<Var>| v.map_or("-".into(), |v| desc.vars.name(v));
        let list = |vs: &[Var]| vs.iter().map(|v| desc.vars.name(*v)).collect::<String>();
        format!(
            "{} stream {} {}x{} rows {} cols {} tile {}x{} strip {} block {:?} convert {:?}{} grid [{}] sum [{}]",
            self.form,
            self.streamed,
            name(Some(self.lane)),
            self.lanes,
            name(self.rows),
            name(self.cols),
            self.tile.0,
            self.tile.1,
            self.strip,
            self.block,
            self.convert,
            if self.fold { " fold" } else { "" },
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
        })
    }
}
