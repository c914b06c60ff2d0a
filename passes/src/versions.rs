//! `versions`: entries are split where the best form changes.
//!
//! ```text
//! entry prefill = @main where T in 1..512   ->   entry prefill = @main where P in 0..4095, T in 1..170
//!                                                entry prefill = @main where P in 0..4095, T in 171..512
//! ```
//!
//! What is cheapest for one new token is not for five hundred, and a choice of 2048 rows is none among 2048. For every
//! entry the choice is made on a grid, powers of two of new tokens and of rows in all; between neighbours that choose
//! differently, bisection finds where the costs of the two choices cross. Sizes that laws ask for (how many rows are
//! chosen) are tried as well, with the ranges narrowed as the version would have them. Of these candidates the one that
//! gains most is taken, as long as it gains a percent of the entry's time somewhere on the grid, up to [`MOST`]. First
//! by new tokens, then each part by rows.
//!
//! Entries for steps ([`STEP`]) have one form for all numbers of new tokens, so they are split by rows only. Entries
//! with equal ranges are split alike, since they share their layers. Functions are looked at as `specialise` makes
//! them. What is already in several versions stays. Exact.

use crate::Options;
use crate::bounds::{Bounds, Reached};
use crate::canonicalise;
use crate::egraph::{Context, Preference, Preferences};
use crate::specialise;
use hadal_ir::module::STEP;
use hadal_ir::target::Target;
use hadal_ir::{Bindings, Dim, Entry, Func, FuncKind, InstKind, Module, Op, Range, Sym};
use std::collections::{BTreeMap, BTreeSet};

/// Most versions of an entry by new tokens, and of each of these by rows.
pub const MOST: [(Sym, usize); 2] = [(Sym::T, 2), (Sym::P, 3)];

/// The least share of an entry's time that a split has to gain somewhere.
pub const LEAST_GAIN: f64 = 0.01;

/// Where entries were split.
#[derive(Clone, PartialEq, Debug)]
pub struct Split {
    /// The entries.
    pub entries: Vec<String>,
    /// The values for which it holds that there are two versions: the ranges of the part that was split.
    pub within: BTreeMap<Sym, Range>,
    /// New tokens or rows held.
    pub sym: Sym,
    /// The largest value of the lower part.
    pub at: i64,
    /// The largest share of the entry's time that is gained at a size of the grid.
    pub gain: f64,
}

impl std::fmt::Display for Split {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let within: Vec<String> = self.within.iter().map(|(s, r)| format!("{s} in {r}")).collect();
        let (names, gain) = (self.entries.join(", "), self.gain * 100.0);
        write!(f, "{names} for {}: {} up to {} and beyond, {gain:.1} % gained", within.join(", "), self.sym, self.at)
    }
}

/// Of so many points of the grid one is looked at first, and those between only where neighbours choose differently.
const COARSE: usize = 3;

type Ranges = BTreeMap<Sym, Range>;

/// Splits entries.
pub fn run(module: &Module, target: &Target, options: &Options) -> (Module, Vec<Split>) {
    let mut splits = Vec::new();
    let mut parts: BTreeMap<Vec<(Sym, i64, i64)>, Vec<Ranges>> = BTreeMap::new();
    let mut entries = Vec::new();
    for entry in &module.entries {
        let mut ranges = module.ranges(entry);
        ranges.retain(|s, _| !module.definitions.has(*s));
        let key: Vec<(Sym, i64, i64)> = ranges.iter().map(|(s, r)| (*s, r.min, r.max)).collect();
        let whole = module.versions(&entry.name).count() == 1;
        let both = [Sym::P, Sym::T].iter().all(|s| ranges.get(s).is_some_and(|r| r.min <= r.max));
        if !(whole && both) {
            entries.push(entry.clone());
            continue;
        }
        let parts = parts.entry(key).or_insert_with(|| {
            let alike = |e: &&Entry| {
                let all = module.ranges(e);
                ranges.iter().all(|(s, r)| all.get(s) == Some(r)) && module.versions(&e.name).count() == 1
            };
            let group: Vec<Entry> = module.entries.iter().filter(alike).cloned().collect();
            split(&Module { entries: group, ..module.clone() }, &ranges, target, options, &mut splits)
        });
        match &parts[..] {
            [_] => entries.push(entry.clone()),
            parts => entries.extend(parts.iter().map(|r| Entry { ranges: r.clone(), ..entry.clone() })),
        }
    }
    (Module { entries, ..module.clone() }, splits)
}

/// The parts of the ranges that the entries of `module` share.
fn split(module: &Module, whole: &Ranges, target: &Target, options: &Options, splits: &mut Vec<Split>) -> Vec<Ranges> {
    let (module, _) = canonicalise::run(&specialise::run(module), options);
    if module.entries.is_empty() {
        return vec![whole.clone()];
    }
    let count = calls(&module);
    let reached = Reached::of(&module);
    let graphs = module.funcs.iter().filter(|f| f.kind == FuncKind::Graph);
    let bounds: Vec<(&Func, Bounds)> = graphs.map(|f| (f, reached.bounds(&f.name, options))).collect();
    let contexts: Vec<(&Func, Context)> = bounds.iter().map(|(f, b)| (*f, Context::of(target, b, options))).collect();
    let funcs = contexts.iter().filter_map(|(f, context)| {
        let chosen = chosen_of_many(f);
        let (calls, all) = (*count.get(f.name.as_str())?, Preferences::of(f, context)?);
        Some(Candidate { func: f, calls, all, chosen, choices: Vec::new() })
    });
    let rows = options.context(&module);
    let mut search = Search {
        module: &module,
        whole,
        target,
        options,
        rows,
        funcs: funcs.collect(),
        known: BTreeMap::new(),
        found: BTreeMap::new(),
        narrowed: BTreeMap::new(),
    };
    let mut parts = vec![whole.clone()];
    let step = whole.get(&Sym::T).is_some_and(|t| t.max <= STEP);
    for (sym, most) in MOST.into_iter().filter(|(sym, _)| !(step && *sym == Sym::T)) {
        parts = parts.into_iter().flat_map(|part| search.along(sym, most, part, splits)).collect();
    }
    parts
}

/// How often a call of an entry runs each function; the most of any entry.
fn calls(module: &Module) -> BTreeMap<&str, f64> {
    let mut most: BTreeMap<&str, f64> = BTreeMap::new();
    for entry in &module.entries {
        let mut count = BTreeMap::from([(entry.func.as_str(), 1.0)]);
        // Callees come before callers.
        for func in module.funcs.iter().rev() {
            let Some(n) = count.get(func.name.as_str()).copied() else { continue };
            for inst in &func.insts {
                if let InstKind::Call(call) = &inst.kind {
                    *count.entry(&call.func).or_default() += n;
                }
            }
        }
        for (name, n) in count {
            let known = most.entry(name).or_default();
            *known = known.max(n);
        }
    }
    most
}

/// How many elements are chosen, of how many where that is a symbol: where laws ask for sizes.
fn chosen_of_many(func: &Func) -> BTreeSet<(i64, Dim)> {
    let choices = func.insts.iter().filter_map(|i| match &i.kind {
        InstKind::Op(Op::TopK(t)) => {
            func.ty(i.args[0]).shape.last().filter(|d| d.as_const().is_none()).map(|of| (t.k as i64, of.clone()))
        }
        _ => None,
    });
    choices.collect()
}

/// A function that a call of an entry runs.
struct Candidate<'a> {
    func: &'a Func,
    calls: f64,
    /// Its forms, as far as they are there for all sizes.
    all: Preferences<'a>,
    /// How many it chooses of how many; there are more forms where there are no more than these.
    chosen: BTreeSet<(i64, Dim)>,
    /// What was chosen somewhere on the grid, each once.
    choices: Vec<Preference>,
}

/// Parts with one more border.
struct Cut {
    at: i64,
    /// Shares of the time gained at all points together, and the largest of them.
    sum: f64,
    gain: f64,
    parts: Vec<Ranges>,
    /// Seconds at each point.
    times: Vec<f64>,
}

/// The functions of entries with equal ranges.
struct Search<'a> {
    module: &'a Module,
    whole: &'a Ranges,
    target: &'a Target,
    options: &'a Options,
    rows: i64,
    funcs: Vec<Candidate<'a>>,
    /// Costs by function, choice and sizes.
    known: BTreeMap<(usize, u64, i64, i64), f64>,
    /// What the search found, by function and sizes.
    found: BTreeMap<(usize, i64, i64), Option<Preference>>,
    /// Costs of functions in forms that are there in a part only, at points.
    narrowed: BTreeMap<(FuncIn, Points), Vec<f64>>,
}

/// Rows held and new tokens of some calls.
type Points = Vec<(i64, i64)>;

/// A function by number, and the ranges of a part.
type FuncIn = (usize, Vec<(Sym, i64, i64)>);

impl Search<'_> {
    /// Splits a part along one symbol.
    fn along(&mut self, sym: Sym, most: usize, part: Ranges, splits: &mut Vec<Split>) -> Vec<Ranges> {
        let range = part[&sym];
        // Of two values one version would be left with a single one on both sides, and no size would be a symbol.
        if range.max - range.min < 2 {
            return vec![part];
        }
        let points: Vec<Bindings> = grid(range).into_iter().map(|x| self.at(&part, sym, x)).collect();
        let (candidates, asked) = self.candidates(&part, sym, &points);
        if candidates.is_empty() {
            return vec![part];
        }
        let mut parts = vec![part.clone()];
        let mut times = self.times(&parts, &points, By::Search);
        while parts.len() < most {
            // Most borders are ruled out by what is known already; the search is asked about the best of them.
            let known = self.times(&parts, &points, By::Known);
            let mut ranked = Vec::new();
            for at in &candidates {
                let Some(cut_parts) = cut(&parts, sym, *at) else { continue };
                let (sum, _) = gained(&known, &self.times(&cut_parts, &points, By::Known));
                ranked.push((sum, *at, cut_parts));
            }
            // Sizes that laws ask for always; what changes there is not known yet. Of equal ones the last come first,
            // as below.
            let first = |at: &i64| !asked.contains(at);
            ranked.sort_by(|a, b| first(&a.1).cmp(&first(&b.1)).then(b.0.total_cmp(&a.0)).then(b.1.cmp(&a.1)));
            ranked.truncate(asked.len().min(LOOKED_AT) + LOOKED_AT);
            ranked.sort_by_key(|(_, at, _)| *at);
            let mut best: Option<Cut> = None;
            for (_, at, cut_parts) in ranked {
                let new = self.times(&cut_parts, &points, By::Search);
                let (sum, gain) = gained(&times, &new);
                // Of candidates that the grid does not tell apart the last: a choice of 128 rows is none up to 128.
                let better = best.as_ref().is_none_or(|b| sum >= b.sum * (1.0 - 1e-9));
                if gain >= LEAST_GAIN && sum > 0.0 && better {
                    best = Some(Cut { at, sum, gain, parts: cut_parts, times: new });
                }
            }
            let Some(best) = best else { break };
            let entries = self.module.entries.iter().map(|e| e.name.clone()).collect();
            splits.push(Split { entries, within: part.clone(), sym, at: best.at, gain: best.gain });
            (parts, times) = (best.parts, best.times);
        }
        parts
    }

    /// Values behind which another form may be better, and those of them that laws ask for.
    fn candidates(&mut self, part: &Ranges, sym: Sym, points: &[Bindings]) -> (Vec<i64>, BTreeSet<i64>) {
        let (mut out, mut asked) = (BTreeSet::new(), BTreeSet::new());
        for f in 0..self.funcs.len() {
            let mut best: Vec<Option<Option<Preference>>> = vec![None; points.len()];
            let coarse: Vec<usize> = (0..points.len()).step_by(COARSE).chain([points.len() - 1]).collect();
            for ends in coarse.windows(2) {
                self.between(f, part, sym, points, (ends[0], ends[1]), &mut best, &mut out);
            }
            if sym == Sym::P {
                // So many rows at most, whatever the new tokens.
                asked.extend(self.funcs[f].chosen.iter().filter_map(|(k, of)| self.last_with(part, of, *k)));
            }
        }
        out.extend(&asked);
        (out.into_iter().filter(|at| divides(sym, part[&sym], *at)).collect(), asked)
    }

    /// Adds where the choice changes between two points of the grid that choose differently.
    #[allow(clippy::too_many_arguments, reason = "a recursion with its memory")]
    fn between(
        &mut self,
        f: usize,
        part: &Ranges,
        sym: Sym,
        points: &[Bindings],
        (i, j): (usize, usize),
        best: &mut [Option<Option<Preference>>],
        out: &mut BTreeSet<i64>,
    ) {
        for at in [i, j] {
            if best[at].is_none() {
                let choice = self.searched(f, &points[at]);
                let known = &mut self.funcs[f].choices;
                let new: Vec<Preference> =
                    choice.iter().filter(|c| known.iter().all(|k| k.id != c.id)).cloned().collect();
                known.extend(new);
                best[at] = Some(choice);
            }
        }
        let (Some(Some(a)), Some(Some(b))) = (best[i].clone(), best[j].clone()) else { return };
        if a.id == b.id {
            return;
        }
        if j - i > 1 {
            let middle = i + (j - i) / 2;
            self.between(f, part, sym, points, (i, middle), best, out);
            return self.between(f, part, sym, points, (middle, j), best, out);
        }
        let (mut low, mut high) = (points[i][&sym], points[j][&sym]);
        while high - low > 1 {
            let x = low + (high - low) / 2;
            let at = self.at(part, sym, x);
            match self.cost(f, &a, &at) <= self.cost(f, &b, &at) {
                true => low = x,
                false => high = x,
            }
        }
        out.insert(low);
    }

    /// Seconds that a call takes at some sizes, each in the part that it falls into.
    fn times(&mut self, parts: &[Ranges], points: &[Bindings], by: By) -> Vec<f64> {
        let mut out = vec![0.0; points.len()];
        for part in parts {
            let here: Vec<usize> = (0..points.len()).filter(|i| hadal_ir::module::within(part, &points[*i])).collect();
            if here.is_empty() {
                continue;
            }
            for f in 0..self.funcs.len() {
                let costs = self.costs(f, part, here.iter().map(|i| &points[*i]), by);
                here.iter().zip(costs).for_each(|(i, seconds)| out[*i] += seconds * self.funcs[f].calls);
            }
        }
        out
    }

    /// Seconds of one function in the form that a version for `part` has.
    fn costs<'b>(&mut self, f: usize, part: &Ranges, points: impl Iterator<Item = &'b Bindings>, by: By) -> Vec<f64> {
        let typical = self.module.complete(&self.options.typical_of(part, self.whole, self.rows));
        let candidate = &self.funcs[f];
        // Forms that are there for all sizes are known; others come where a choice becomes one of everything.
        let fewer = |(k, of): &(i64, Dim)| {
            let all_of = |ranges: &Ranges| self.most(ranges, of).is_some_and(|most| most <= *k);
            all_of(part) && !all_of(self.whole)
        };
        if by == By::Known || !candidate.chosen.iter().any(fewer) {
            let choice = match by {
                By::Search => self.searched(f, &typical),
                By::Known => self.chosen_for(f, &typical),
            };
            let Some(choice) = choice else { return points.map(|_| 0.0).collect() };
            return points.map(|b| self.cost(f, &choice, b)).collect();
        }
        let key = (f, part.iter().map(|(s, r)| (*s, r.min, r.max)).collect::<Vec<_>>());
        let points: Vec<&Bindings> = points.collect();
        let key = (key, points.iter().map(|b| (b[&Sym::P], b[&Sym::T])).collect::<Vec<_>>());
        if let Some(known) = self.narrowed.get(&key) {
            return known.clone();
        }
        let narrowed = |e: &Entry| Entry { ranges: part.clone(), ..e.clone() };
        let entries = self.module.entries.iter().map(narrowed).collect();
        let module = Module { entries, ..self.module.clone() };
        let bounds = Bounds::of(&module, &candidate.func.name, self.options);
        let context = Context::of(self.target, &bounds, self.options);
        let func = canonicalise::within(candidate.func, &bounds, self.options);
        let all = Preferences::of(&func, &context);
        let Some((all, choice)) = all.and_then(|all| Some((all.best(&typical)?, all)).map(|(c, a)| (a, c))) else {
            return vec![0.0; points.len()];
        };
        let costs: Vec<f64> = points.iter().map(|b| all.cost(&choice, b)).collect();
        self.narrowed.insert(key, costs.clone());
        costs
    }

    /// What the search finds at some sizes, where all forms are there.
    fn searched(&mut self, f: usize, at: &Bindings) -> Option<Preference> {
        let key = (f, at[&Sym::P], at[&Sym::T]);
        if let Some(known) = self.found.get(&key) {
            return known.clone();
        }
        let choice = self.funcs[f].all.best(at);
        self.found.insert(key, choice.clone());
        choice
    }

    /// The best of what is chosen on the grid, which is looked at before any cost is asked for.
    fn chosen_for(&mut self, f: usize, at: &Bindings) -> Option<Preference> {
        let choices = self.funcs[f].choices.clone();
        let cost = |c: &Preference| (self.cost(f, c, at), c.clone());
        choices.iter().map(cost).min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, c)| c)
    }

    fn cost(&mut self, f: usize, choice: &Preference, at: &Bindings) -> f64 {
        let key = (f, choice.id, at[&Sym::P], at[&Sym::T]);
        if let Some(known) = self.known.get(&key) {
            return *known;
        }
        let cost = self.funcs[f].all.cost(choice, at);
        self.known.insert(key, cost);
        cost
    }

    /// The sizes of a call with `sym` at `x` and the other as is usual in this part.
    fn at(&self, part: &Ranges, sym: Sym, x: i64) -> Bindings {
        let mut out = self.options.typical_of(part, self.whole, self.rows);
        let rows = out[&Sym::P].saturating_add(out[&Sym::T]);
        out.insert(sym, x);
        if sym == Sym::T {
            let held = part[&Sym::P];
            out.insert(Sym::P, (rows - x).clamp(held.min, held.max));
        }
        self.module.complete(&out)
    }

    /// The most that a size can be in a part.
    fn most(&self, part: &Ranges, size: &Dim) -> Option<i64> {
        Bounds::within(self.module, part.clone(), self.rows).upper(size)
    }

    /// The largest number of rows held up to which a size is at most `k`, whatever the new tokens.
    fn last_with(&self, part: &Ranges, size: &Dim, k: i64) -> Option<i64> {
        let range = part[&Sym::P];
        let fits = |max: i64| {
            let up_to = Range { min: range.min, max };
            let part = part.iter().map(|(s, r)| (*s, *r)).chain([(Sym::P, up_to)]).collect();
            self.most(&part, size).is_some_and(|most| most <= k)
        };
        let (mut low, mut high) = (range.min, range.max);
        if !fits(low) {
            return None;
        }
        while low < high {
            let middle = low + (high - low + 1) / 2;
            match fits(middle) {
                true => low = middle,
                false => high = middle - 1,
            }
        }
        Some(low)
    }
}

/// How the form of a function is found.
#[derive(Clone, Copy, PartialEq)]
enum By {
    /// As `rewrite` will.
    Search,
    /// The best of those chosen on the grid.
    Known,
}

/// Borders that the search is asked about, of all that there may be.
const LOOKED_AT: usize = 2;

/// Parts with one more border.
fn cut(parts: &[Ranges], sym: Sym, at: i64) -> Option<Vec<Ranges>> {
    let of = parts.iter().position(|p| divides(sym, p[&sym], at))?;
    let mut out = parts.to_vec();
    let mut upper = out[of].clone();
    let limits = upper[&sym];
    out[of].insert(sym, Range { min: limits.min, max: at });
    upper.insert(sym, Range { min: at + 1, max: limits.max });
    out.insert(of + 1, upper);
    Some(out)
}

/// Shares of times that are gained, in sum and the largest.
fn gained(before: &[f64], after: &[f64]) -> (f64, f64) {
    let gains = before.iter().zip(after).map(|(a, b)| if *a > 0.0 { (a - b) / a } else { 0.0 });
    gains.fold((0.0, 0.0), |(sum, most), gain| (sum + gain, f64::max(most, gain)))
}

/// Whether a range can be divided behind `at`. A state of one size could not be told from one that keeps its size, so
/// both sides are left with two sizes held.
fn divides(sym: Sym, range: Range, at: i64) -> bool {
    let more = i64::from(sym == Sym::P);
    at.checked_sub(more).is_some_and(|x| range.min <= x) && at.checked_add(more).is_some_and(|x| x < range.max)
}

/// Powers of two in a range, and its ends.
fn grid(range: Range) -> Vec<i64> {
    let powers = (0..62).map(|i| 1i64 << i).filter(|x| range.min < *x && *x < range.max);
    [range.min].into_iter().chain(powers).chain([range.max]).collect()
}
