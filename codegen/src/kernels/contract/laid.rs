//! The laid form: weights that are stored as panels, read where they lie.
//!
//! ```text
//! W[n, k]  is stored as  W'[n / 16, k / g, n % 16, k % g]
//! ```
//!
//! A panel is sixteen columns; a *line* of it, a register of weights, has `g` neighbouring summed elements of each (two of
//! bf16, which are multiplied in pairs). To a kernel function this is a view: the parameter has the shape of `W'`, and a
//! transpose and a reshape make `W` of it. Addresses are affine once both letters are cut into digits ([`Desc::of`]), and the
//! lanes of a vector are the lower digit of the columns.
//!
//! A grid index has some panels. Rows pass in tiles whose sums are in registers: each line meets one factor, or pair of
//! factors, a row, spread over the lanes. Sums of lanes are never added to each other, and an element's products are added
//! in the order of the summed letter, whatever the number of rows is: a prompt, a step and a batch give the same bits, and
//! read the same bytes. A single row has several panels side by side, so that sums do not wait for each other; many rows meet
//! so much of the panels at a time that it stays in the second-level cache, and sums wait in memory meanwhile.

use super::desc::{Desc, Role};
use super::emit::{Env, finish, load_f32};
use super::epilogue::on_vectors;
use super::schedule::{Form, Schedule, plain, tile_letters};
use super::view::{Access, Var};
use crate::kernels::Target;
use hadal_ir::kernel::{Buf, Builder, LoopKind, Value};
use hadal_types::DType;

/// Columns of a panel.
const LANES: i64 = 16;

/// Rows of the tiles that many rows pass in, and few.
const MANY: [i64; 5] = [12, 4, 3, 2, 1];
const FEW: [i64; 8] = [8, 7, 6, 5, 4, 3, 2, 1];

/// The same where there are sixteen registers of four or eight lanes.
const NARROW: [i64; 3] = [3, 2, 1];

/// Panels that lie side by side in a grid index at most, times their bytes: long streams, few starts.
const STREAM: i64 = 256 << 10;

/// Grid indices that there are at least, where one has more panels than a tile.
const SHARES: i64 = 32;

/// The letters of an operand that is laid out so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Laid {
    /// The panel.
    panel: Var,
    /// The column in it.
    lane: Var,
    /// The line.
    line: Var,
    /// The element in a column's part of a line; `None` where that is one.
    part: Option<Var>,
    /// Elements of such a part.
    group: i64,
}

impl Laid {
    fn of(desc: &Desc, streamed: usize) -> Option<Laid> {
        let [w, x] = [&desc.operands[streamed], &desc.operands[1 - streamed]];
        let own = if streamed == 0 { Role::Left } else { Role::Right };
        let group = group(w.dtype)?;
        let moves = |a: &Access, v: Var, by: i64| desc.vars.stride(&a.at, v).is_some_and(|s| s.is(by));
        let sized = |v: Var, n: i64| desc.size(v).is(n);
        let lane = desc.of_role(own).find(|v| sized(*v, LANES) && moves(w, *v, group))?;
        let mut sums = desc.of_role(Role::Summed);
        let (line, part) = match (group, sums.next(), sums.next(), sums.next()) {
            (1, Some(line), None, None) => (line, None),
            (2, Some(line), Some(part), None) if sized(part, group) => (line, Some(part)),
            _ => return None,
        };
        let first = part.is_none_or(|part| moves(w, part, 1) && moves(x, part, 1));
        let in_lines = moves(w, line, LANES * group) && moves(x, line, group) && first;
        let lines = desc.size(line).as_const()?;
        let panel = desc.of_role(own).find(|v| *v != lane && moves(w, *v, lines.saturating_mul(LANES * group)))?;
        let plain_w = w.parts().next().is_none();
        let readable = x.parts().next().is_none() && !x.dtype.is_packed() && plain_w && in_lines;
        (readable && desc.size(panel).as_const().is_some()).then_some(Laid { panel, lane, line, part, group })
    }
}

/// The parameters behind an operand that would be laid out, and how many neighbours each keeps together.
pub fn wanted(w: &Access) -> Option<Vec<(usize, i64)>> {
    let group = group(w.dtype)?;
    w.parts().next().is_none().then(|| vec![(w.param, group)])
}

/// Summed elements of a column that are multiplied together.
fn group(dtype: DType) -> Option<i64> {
    match dtype {
        DType::F32 => Some(1),
        DType::BF16 => Some(2),
        _ => None,
    }
}

/// Schedules for weights that are laid out so; none for others.
pub fn candidates(desc: &Desc, target: &Target) -> Vec<Schedule> {
    let of = |streamed| Laid::of(desc, streamed).map(|laid| (streamed, laid));
    let Some((streamed, laid)) = [1, 0].into_iter().find_map(of) else { return Vec::new() };
    let vectors: &[i64] = match (target.is_wide(), rows_of(desc, streamed, laid)) {
        (true, Some(1)) => &[4, 8, 2],
        (true, Some(2..=4)) => &[4, 2],
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

/// How many rows meet each other at most, where they are few.
fn rows_of(desc: &Desc, streamed: usize, laid: Laid) -> Option<i64> {
    let Some(rows) = tile_letters(desc, streamed, Some(laid.panel)).0 else { return Some(1) };
    match desc.known(rows) {
        Some(n) if n <= 8 => Some(n),
        _ => (desc.in_steps() && desc.is_few(rows)).then_some(8),
    }
}

fn schedule(desc: &Desc, target: &Target, streamed: usize, laid: Laid, vectors: i64) -> Option<Schedule> {
    let [w, x] = [&desc.operands[streamed], &desc.operands[1 - streamed]];
    let (rows, cols, grid) = tile_letters(desc, streamed, Some(laid.panel));
    let (panels, lines) = (desc.size(laid.panel).as_const()?, desc.size(laid.line).as_const()?);
    if panels % vectors != 0 {
        return None;
    }
    let line = LANES * laid.group * w.dtype.bits() as i64 / 8;
    let few = rows_of(desc, streamed, laid);
    let height = match few {
        Some(n) if target.is_wide() => n,
        Some(n) => n.min(NARROW[0]),
        None if target.is_wide() => MANY[0],
        None => NARROW[0],
    };
    // More panels for a grid index: long streams for few rows, as long as there are enough grid indices; and where rows are
    // listed first, so that this is done for several.
    let listed = desc.grouped.is_some() && few.is_none();
    let longer = |block: &i64| {
        let enough = panels / block >= SHARES && block * lines * line <= STREAM;
        panels % block == 0 && (listed || few.is_some() && enough)
    };
    let block = [8, 4, 2].map(|n| n * vectors).into_iter().find(longer).unwrap_or(vectors);
    let most = (target.cache / 2 / (vectors * line)).max(1);
    let chunks = if few.is_some() { 1 } else { (lines + most - 1) / most };
    let depth = (lines + chunks - 1) / chunks;
    Some(Schedule {
        form: Form::Laid,
        streamed,
        lanes: LANES as u32,
        lane: laid.lane,
        sums: [laid.line].into_iter().chain(laid.part).collect(),
        rows,
        cols,
        tile: (height as usize, vectors as usize),
        strip: vectors as usize,
        apart: 1,
        block: Some(block),
        convert: None,
        fold: false,
        step: few.is_some(),
        shared: 1,
        pairs: target.dots && laid.group == 2 && x.dtype == DType::BF16,
        quads: false,
        register: target.lanes.min(LANES as u32),
        depth: depth * laid.group,
        group: 0,
        grid: grid.into_iter().filter(|v| *v != laid.lane).collect(),
    })
}

/// All columns and rows of one grid index.
pub fn cell(b: &mut Builder, desc: &Desc, s: &Schedule, env: &Env<'_>, (lo, hi): (Value, Value), total: Value) {
    let Some(laid) = Laid::of(desc, s.streamed) else { return };
    let Some(lines) = desc.size(laid.line).as_const() else { return };
    let x = &desc.operands[1 - s.streamed];
    let rows = s.rows.map_or(1i64.into(), |m| desc.size(m).clone());
    let width = s.strip as i64 * LANES;
    let staged = !s.pairs && !plain(desc, x);
    let room = (s.depth + LANES - 1) / LANES * LANES;
    let staged = staged.then(|| (b.alloc("rows", DType::F32, [s.tile.0 as i64 * room]), room));
    let sums = b.alloc("sums", DType::F32, [rows * width]);
    let cell = Cell { desc, s, laid, env, w: &desc.operands[s.streamed], x, total, width, staged, sums };
    b.for_each(lo, hi, s.strip as i64, LoopKind::Serial, |b, panel| cell.run(b, panel, lines));
}

struct Cell<'e, 'a> {
    desc: &'a Desc,
    s: &'e Schedule,
    laid: Laid,
    env: &'e Env<'a>,
    /// What is laid out.
    w: &'a Access,
    /// What is not.
    x: &'a Access,
    /// How many rows there are.
    total: Value,
    /// Columns of a tile.
    width: i64,
    /// A tile's rows in f32, where they are not, and the room of one.
    staged: Option<(Buf, i64)>,
    /// Rows of `width` sums.
    sums: Buf,
}

/// One row of a tile: where its factors begin in which buffer, those of the chunk.
struct Row {
    buf: Buf,
    base: Value,
}

impl<'a> Cell<'_, 'a> {
    /// Some panels, from this one on.
    fn run(&self, b: &mut Builder, panel: Value, lines: i64) {
        let depth = self.s.depth / self.laid.group;
        let (whole, rest) = (lines / depth * depth, lines % depth);
        let zero = b.const_i64(0);
        if lines > depth {
            let (none, end) = (self.zero(b), self.times(b, self.total, self.width));
            b.for_each(zero, end, LANES, LoopKind::Serial, |b, at| b.store(self.sums, &[at], none));
        }
        let end = b.const_i64(whole);
        b.for_each(zero, end, depth, LoopKind::Serial, |b, from| {
            self.chunk(b, panel, from, depth, depth == lines);
        });
        if rest > 0 {
            self.chunk(b, panel, end, rest, false);
        }
        self.epilogue(b, panel);
    }

    /// All rows by so many lines.
    fn chunk(&self, b: &mut Builder, panel: Value, from: Value, length: i64, only: bool) {
        let known = self.s.rows.map_or(Some(1), |m| self.desc.known(m));
        let heights: &[i64] = match () {
            () if self.s.tile.0 as i64 == MANY[0] => &MANY,
            () if !self.wide() => &NARROW,
            () => &FEW,
        };
        let (mut first, mut left) = (b.const_i64(0), known);
        for height in heights.iter().copied().filter(|h| *h <= self.s.tile.0 as i64) {
            let tiles = left.map(|n| n / height);
            left = left.map(|n| n % height);
            if tiles == Some(0) {
                continue;
            }
            if tiles == Some(1) {
                self.tile(b, panel, (first, height), (from, length), only);
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
                self.tile(b, panel, (m, height), (from, length), only);
            });
            first = end;
        }
    }

    fn wide(&self) -> bool {
        i64::from(self.s.register) == LANES
    }

    /// Adds the products of `length` lines to the sums of `height` rows.
    fn tile(
        &self,
        b: &mut Builder,
        panel: Value,
        (first, height): (Value, i64),
        (from, length): (Value, i64),
        only: bool,
    ) {
        let (laid, vectors) = (self.laid, self.s.strip as i64);
        let envs: Vec<Env<'a>> = (0..height)
            .map(|i| {
                let i = b.const_i64(i);
                let m = b.add(first, i);
                self.s.rows.map_or(self.env.clone(), |rows| self.env.row(b, rows, m))
            })
            .collect();
        let rows = self.factors(b, &envs, from, length);
        let places: Vec<Value> = (0..height * vectors)
            .map(|i| {
                let offset = b.const_i64(i * LANES);
                let at = self.times(b, first, self.width);
                b.add(at, offset)
            })
            .collect();
        let lines: Vec<Value> = (0..vectors)
            .map(|v| {
                let v = b.const_i64(v);
                let panel = b.add(panel, v);
                self.env.with(laid.panel, panel).with(laid.line, from).at(b, &self.w.at)
            })
            .collect();
        let buf = self.env.bufs[self.w.param];
        let none = self.zero(b);
        let init: Vec<Value> = match only {
            true => vec![none; places.len()],
            false => places.iter().map(|at| b.load(self.sums, &[*at], LANES as u32)).collect(),
        };
        let (zero, end) = (b.const_i64(0), b.const_i64(length));
        let sums = b.for_loop(zero, end, 1, LoopKind::Serial, &init, |b, i, sums| {
            let at = self.times(b, i, LANES * laid.group);
            let lines: Vec<Vec<Value>> = lines
                .iter()
                .map(|base| {
                    let at = b.add(*base, at);
                    let w = b.load(buf, &[at], (LANES * laid.group) as u32);
                    self.parts(b, w)
                })
                .collect();
            let mut sums = sums.to_vec();
            for (row, sums) in rows.iter().zip(sums.chunks_mut(vectors as usize)) {
                let at = self.times(b, i, laid.group);
                let at = b.add(row.base, at);
                for part in 0..lines[0].len() as i64 {
                    let x = self.factor(b, row, at, part);
                    for (sum, w) in sums.iter_mut().zip(&lines) {
                        *sum = match self.s.pairs {
                            true => b.dot(x, w[part as usize], *sum),
                            false => b.fma(x, w[part as usize], *sum),
                        };
                    }
                }
            }
            sums
        });
        places.iter().zip(sums).for_each(|(at, sum)| b.store(self.sums, &[*at], sum));
    }

    /// A line as what is multiplied: pairs as they are, or the elements of each part in f32.
    fn parts(&self, b: &mut Builder, line: Value) -> Vec<Value> {
        if self.s.pairs || self.laid.group == 1 {
            return vec![line];
        }
        // Two bf16 to a word: f32 is the upper half of each, with zeros below.
        let words = b.bitcast(line, DType::I32);
        let (half, upper) = (b.const_i32(16), b.const_i32(0xffff_0000_u32 as i32));
        let (half, upper) = (b.splat(half, LANES as u32), b.splat(upper, LANES as u32));
        let (low, high) = (b.shl(words, half), b.and(words, upper));
        vec![b.bitcast(low, DType::F32), b.bitcast(high, DType::F32)]
    }

    /// Where the factors of a tile's rows are; written in f32 first, where they are something else.
    fn factors(&self, b: &mut Builder, rows: &[Env<'a>], from: Value, length: i64) -> Vec<Row> {
        let length = length * self.laid.group;
        let mut all = Vec::with_capacity(rows.len());
        for (row, env) in rows.iter().enumerate() {
            let (buf, base) = (env.bufs[self.x.param], env.with(self.laid.line, from).at(b, &self.x.at));
            let Some((staged, room)) = self.staged else {
                all.push(Row { buf, base });
                continue;
            };
            let line = b.const_i64(row as i64 * room);
            let step = |b: &mut Builder, at: Value, mask: Option<Value>| {
                let k = b.add(base, at);
                let x = load_f32(b, buf, k, LANES as u32, mask);
                let to = b.add(line, at);
                b.store(staged, &[to], x);
            };
            let (zero, whole) = (b.const_i64(0), b.const_i64(length / LANES * LANES));
            b.for_each(zero, whole, LANES, LoopKind::Serial, |b, at| step(b, at, None));
            if length % LANES > 0 {
                let end = b.const_i64(length);
                let mask = b.lanes_below(whole, end, LANES as u32);
                step(b, whole, Some(mask));
            }
            all.push(Row { buf: staged, base: line });
        }
        all
    }

    /// The factor, or pair of factors, at this place of a row.
    fn factor(&self, b: &mut Builder, row: &Row, at: Value, part: i64) -> Value {
        let lanes = LANES as u32;
        if !self.s.pairs {
            let part = b.const_i64(part);
            let at = b.add(at, part);
            let x = b.load(row.buf, &[at], 1);
            return b.splat(x, lanes);
        }
        let pair = b.load(row.buf, &[at], 2);
        let word = b.bitcast(pair, DType::I32);
        let words = b.splat(word, lanes);
        b.bitcast(words, DType::BF16)
    }

    /// From the sums to memory.
    fn epilogue(&self, b: &mut Builder, panel: Value) {
        let (epilogue, lane, lanes) = (&self.desc.epilogue, self.laid.lane, LANES as u32);
        let vectors = on_vectors(&self.desc.vars, epilogue, lane);
        let zero = b.const_i64(0);
        b.for_each(zero, self.total, 1, LoopKind::Serial, |b, m| {
            let env = self.s.rows.map_or(self.env.clone(), |rows| self.env.row(b, rows, m));
            let line = self.times(b, m, self.width);
            // Gathers do not run along lanes.
            let there = match (env.found(b, self.x), env.found(b, self.w)) {
                (Some(x), Some(w)) => Some(b.and(x, w)),
                (x, w) => x.or(w),
            };
            for v in 0..self.s.strip as i64 {
                let (v, offset) = (b.const_i64(v), b.const_i64(v * LANES));
                let panel = b.add(panel, v);
                let (env, at) = (env.with(self.laid.panel, panel), b.add(line, offset));
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
                if vectors {
                    write(b, &env, at, lanes);
                    continue;
                }
                let end = b.const_i64(LANES);
                b.for_each(zero, end, 1, LoopKind::Serial, |b, c| {
                    let at = b.add(at, c);
                    write(b, &env.with(lane, c), at, 1);
                });
            }
        });
    }

    fn zero(&self, b: &mut Builder) -> Value {
        let zero = b.const_f32(0.0);
        b.splat(zero, LANES as u32)
    }

    fn times(&self, b: &mut Builder, x: Value, by: i64) -> Value {
        let by = b.const_i64(by);
        b.mul(x, by)
    }
}

#[cfg(test)]
mod tests {
    use super::super::schedule::candidates;
    use super::super::tests::{arguments, close, compiled, function, interpreted, kernel};
    use super::super::{Desc, emit, generate};
    use super::*;
    use crate::kernels::Ranges;
    use hadal_ir::{Bindings, Func, Range, Tensor, interpret, panels};
    use hadal_types::Sym;

    const WIDE: Target = Target { lanes: 16, registers: 32, dots: true, cache: 4 * 32 * 64 };
    const NO_DOTS: Target = Target { dots: false, ..WIDE };

    /// The function that reads panels of all parameters of which it wants them, and how to lay out its arguments.
    fn reading(func: &Func, target: &Target) -> (Func, impl Fn(&[Tensor]) -> Vec<Tensor>) {
        let wanted = super::super::panels(func, &Ranges::new(), target);
        assert!(!wanted.is_empty());
        let reading = wanted.iter().fold(func.clone(), |f, (p, group)| panels::reading(&f, *p, *group).unwrap());
        let func = func.clone();
        let lay_out = move |args: &[Tensor]| {
            let mut args = args.to_vec();
            for (p, group) in &wanted {
                let fold = panels::fold("lay", func.ty(func.params[*p]), *group).unwrap();
                args[*p] = interpret::eval_func(&fold, &args[*p..=*p], &Bindings::new()).unwrap().remove(0);
            }
            args
        };
        (reading, lay_out)
    }

    /// Every schedule of every target is the laid form and gives what the graph interpreter gives of weights as they were;
    /// and those of one target agree to the bit, whatever the ranges.
    fn check(text: &str, tokens: &[i64], tolerance: f64) {
        let func = function(text);
        let step = Ranges::from([(Sym::T, Range { min: 1, max: 8 })]);
        for (t, target) in tokens.iter().flat_map(|t| [Target::default(), WIDE, NO_DOTS].map(|target| (*t, target))) {
            let bindings = Bindings::from([(Sym::T, t)]);
            let args = arguments(&func, &bindings, 7 + t as u64);
            let expected = interpret::eval_func(&func, &args, &bindings).unwrap();
            let (reading, lay_out) = reading(&func, &target);
            let args = lay_out(&args);
            let desc = Desc::of(&reading).expect("a product-sum");
            let stepped = desc.clone().within(&step);
            let mut descs = vec![desc.grouped(), Some(desc)];
            if t <= 8 {
                descs.extend([stepped.grouped(), Some(stepped)]);
            }
            let mut bits: Option<Vec<u8>> = None;
            for desc in descs.iter().flatten() {
                let all = candidates(desc, &target);
                assert!(!all.is_empty(), "no schedule for\n{desc}");
                for s in all {
                    assert_eq!(s.form, Form::Laid, "{desc}");
                    let made = emit::emit(desc, &s);
                    let errors = hadal_ir::kernel::verify::verify(&made);
                    assert!(errors.is_empty(), "{errors:?}\n{made}");
                    let found = interpreted(&made, &reading, &args, &bindings);
                    let shown = || format!("T = {t}: {}\n{desc}\n{made}", s.show(desc));
                    assert!(found[0].initialised.iter().all(|i| *i), "{}", shown());
                    close(&found[0], &expected[0], tolerance, &shown);
                    compiled(&made, &reading, &args, &bindings, &found, desc.epilogue.is_heavy());
                    let first = bits.get_or_insert_with(|| found[0].bytes.clone());
                    assert_eq!(*first, found[0].bytes, "{}", shown());
                }
            }
        }
    }

    fn dense(x: &str, w: &str, n: i64, k: i64) -> String {
        let body = format!(
            "  %0 = contract %x, %w {{spec = \"td,fd->tf\"}} : f32[T, {n}]
  %1 = sigmoid %0 : f32[T, {n}]
  %y = mul %1, %b : f32[T, {n}]"
        );
        let params = format!("%x: {x}[T, {k}], %w: {w}[{n}, {k}], %b: f32[T, {n}]");
        kernel(&params, &body, &format!("f32[T, {n}]"))
    }

    #[test]
    fn rows_meet_panels() {
        for (x, w, n, k) in [
            ("bf16", "bf16", 32, 70),
            ("bf16", "bf16", 96, 34),
            ("f32", "bf16", 64, 130),
            ("f16", "bf16", 32, 6),
            ("f32", "f32", 64, 35),
            ("bf16", "f32", 32, 17),
        ] {
            check(&dense(x, w, n, k), &[1, 2, 3, 8, 13, 33], 1e-5);
        }
    }

    #[test]
    fn rows_meet_panels_of_experts() {
        for (x, own) in [("bf16", false), ("f32", true)] {
            let (e, k, f, d) = (5, 3, 64, 34);
            let (given, spec) = match own {
                true => (format!("T, {k}, {d}"), "tkd,tkfd->tkf"),
                false => (format!("T, {d}"), "td,tkfd->tkf"),
            };
            let body = format!(
                "  %1 = gather %w, %e {{axis = 0}} : bf16[T, {k}, {f}, {d}]
  %2 = contract %x, %1 {{spec = \"{spec}\"}} : f32[T, {k}, {f}]
  %y = mul %2, %g : f32[T, {k}, {f}]"
            );
            let params = format!("%x: {x}[{given}], %w: bf16[{e}, {f}, {d}], %e: i32[T, {k}], %g: f32[T, {k}, {f}]");
            check(&kernel(&params, &body, &format!("f32[T, {k}, {f}]")), &[1, 2, 7, 14], 1e-5);
        }
    }

    /// Rows of heads, and a result whose columns are split and turned.
    #[test]
    fn columns_may_become_several_axes() {
        let body = "  %0 = contract %x, %w {spec = \"td,fd->tf\"} : f32[T, 96]
  %1 = reshape %0 {shape = [T, 3, 32]} : f32[T, 3, 32]
  %2 = transpose %1 {perm = [1, 0, 2]} : f32[3, T, 32]
  %y = mul %2, %b : f32[3, T, 32]";
        let params = "%x: bf16[T, 34], %w: bf16[96, 34], %b: f32[3, T, 32]";
        check(&kernel(params, body, "f32[3, T, 32]"), &[1, 5, 14], 1e-5);
    }

    /// Some columns of each of several heads.
    #[test]
    fn panels_may_be_of_a_part_of_the_columns() {
        let body = "  %0 = reshape %w {shape = [3, 96, 34]} : bf16[3, 96, 34]
  %1 = slice %0 {axis = 1, start = 64, len = 32} : bf16[3, 32, 34]
  %y = contract %x, %1 {spec = \"td,hfd->thf\"} : f32[T, 3, 32]";
        check(&kernel("%x: bf16[T, 34], %w: bf16[288, 34]", body, "f32[T, 3, 32]"), &[1, 5, 14], 1e-5);
    }

    /// The first row has the same bits alone, as an entry for one token has it, as among others.
    #[test]
    fn a_row_has_the_same_bits_in_every_company() {
        let step = Ranges::from([(Sym::T, Range { min: 1, max: 8 })]);
        for (x, target) in [("bf16", WIDE), ("bf16", NO_DOTS), ("f32", WIDE), ("bf16", Target::default())] {
            let text = dense(x, "bf16", 64, 134);
            let run = |text: &str, ranges: &Ranges, args: &dyn Fn(&Func) -> Vec<Tensor>, t: i64| {
                let func = function(text);
                let (reading, lay_out) = reading(&func, &target);
                let made = generate(&reading, ranges, &target).unwrap().next().unwrap();
                assert!(made.schedule.starts_with("laid"), "{}", made.schedule);
                let bindings = Bindings::from([(Sym::T, t)]);
                interpreted(&made.kernel, &reading, &lay_out(&args(&func)), &bindings).remove(0).bytes
            };
            let all = |func: &Func| arguments(func, &Bindings::from([(Sym::T, 29)]), 3);
            let many = run(&text, &Ranges::new(), &all, 29);
            for t in [1, 2, 5, 8] {
                let firsts = |func: &Func| {
                    let bindings = Bindings::from([(Sym::T, t)]);
                    let cut = |(a, p): (&Tensor, &hadal_ir::ValueId)| {
                        let shape = func.ty(*p).eval_shape(&bindings).unwrap();
                        let n = shape.iter().product();
                        Tensor::real(a.dtype, &shape, a.reals()[..n].to_vec())
                    };
                    all(&function(&text)).iter().zip(&func.params).map(cut).collect()
                };
                let few = run(&text, &step, &firsts, t);
                assert_eq!(few, many[..few.len()], "{t} {x}");
                let known = text.replace("[T", &format!("[{t}"));
                assert_eq!(run(&known, &step, &firsts, t), few, "{t} {x}");
            }
        }
    }
}
