//! Laws of masks: what a selection or a comparison of positions hides, said in the simplest way.
//!
//! Models say "hidden" by choosing -∞ for a score. What a mask is can be read off its ops: `member` of what `top_k`
//! chose, or positions compared with bounds.

use super::elementwise::repeated;
use super::layout::{each, some};
use super::quantisation::finite;
use super::repeats::broadcasts;
use crate::rule::NumericClass::{Exact, Reassociating};
use crate::rule::{Rule, Site, Term, V};
use hadal_ir::attr::Real;
use hadal_ir::ops::map::MapFn;
use hadal_ir::ops::{Broadcast, CausalMask, Constant, Iota, Map, Reshape};
use hadal_ir::{DType, Dim, Op};

/// The laws of this file, all canonical.
pub const RULES: &[Rule] = &[
    Rule {
        name: "selection-implies-causal",
        law: "select(member(top_k(causal_mask(y))), causal_mask(x), -∞) = select(member(…), x, -∞), and the same with the \
              masks the other way round",
        class: Exact,
        example: "func @f(%x: f32[2, T, P+T], %y: f32[T, P+T]) -> (z: f32[2, T, P+T]) {
            %0 = causal_mask %y {query = 0, key = 1} : f32[T, P+T]
            %1 = top_k %0 {k = 2} : i32[T, 2]
            %2 = member %1 {len = P+T} : bool[T, P+T]
            %3 = broadcast %2 {shape = [2, T, P+T], dims = [1, 2]} : bool[2, T, P+T]
            %4 = causal_mask %x {query = 1, key = 2} : f32[2, T, P+T]
            %5 = constant {value = -inf, dtype = f32} : f32[]
            %6 = broadcast %5 {shape = [2, T, P+T], dims = []} : f32[2, T, P+T]
            %7 = select %3, %4, %6 : f32[2, T, P+T]
            return %7 }",
        apply: |site, op, args| match op {
            Op::CausalMask(outer) => each(site, args[0], |inner, operands| {
                let (mask, _) = hidden(site, inner, operands)?;
                let implied = selections(site, mask).into_iter().any(|s| s.causal().any(|m| m == outer));
                implied.then_some(Term::Old(args[0]))
            }),
            _ => some(hidden(site, op, args).and_then(|(mask, scores)| {
                let known = selections(site, mask);
                let free = site.forms(scores).into_iter().find_map(|(inner, x)| match inner {
                    Op::CausalMask(m) if known.iter().any(|s| s.causal().any(|c| c == m)) => Some(x[0]),
                    _ => None,
                })?;
                Some(Term::new(op.clone(), [Term::Old(mask), Term::Old(free), Term::Old(args[2])]))
            })),
        },
    },
    Rule {
        name: "selection-of-everything",
        law: "select(member(top_k(mask(y), k)), x, -∞) = mask(x), where there are never more than k, for finite y under any \
              masks: causal ones, and select(m, y, -∞)",
        class: Reassociating,
        example: "func @f(%x: f32[2, T, P+T], %q: f32[T, 3], %k: f32[P+T, 3], %b: bool[T, P+T])
            -> (c: f32[2, T, P+T], z: f32[2, T, P+T]) {
            %y = contract %q, %k {spec = \"td,sd->ts\"} : f32[T, P+T]
            %n = constant {value = -inf, dtype = f32} : f32[]
            %no = broadcast %n {shape = [T, P+T], dims = []} : f32[T, P+T]
            %nos = broadcast %n {shape = [2, T, P+T], dims = []} : f32[2, T, P+T]
            %0 = causal_mask %y {query = 0, key = 1} : f32[T, P+T]
            %1 = top_k %0 {k = 18} : i32[T, 18]
            %2 = member %1 {len = P+T} : bool[T, P+T]
            %3 = broadcast %2 {shape = [2, T, P+T], dims = [1, 2]} : bool[2, T, P+T]
            %4 = select %3, %x, %nos : f32[2, T, P+T]
            %5 = select %b, %y, %no : f32[T, P+T]
            %6 = top_k %5 {k = 18} : i32[T, 18]
            %7 = member %6 {len = P+T} : bool[T, P+T]
            %8 = broadcast %7 {shape = [2, T, P+T], dims = [1, 2]} : bool[2, T, P+T]
            %9 = select %8, %x, %nos : f32[2, T, P+T]
            return %4, %9 }",
        apply: |site, op, args| some(hidden(site, op, args).and_then(|(mask, x)| everything(site, mask, x, args[2]))),
    },
    Rule {
        name: "causal-by-position",
        law: "select(s ≤ t + S - T, x, -∞) = causal_mask(x), for positions s of S keys and t of the last T of them",
        class: Exact,
        example: "func @f(%x: f32[T, P+T]) -> (z: f32[T, P+T]) {
            %0 = iota {len = P+T} : i32[P+T]
            %1 = broadcast %0 {shape = [T, P+T], dims = [1]} : i32[T, P+T]
            %2 = iota {len = T, start = P} : i32[T]
            %3 = broadcast %2 {shape = [T, P+T], dims = [0]} : i32[T, P+T]
            %4 = le %1, %3 : bool[T, P+T]
            %5 = constant {value = -inf, dtype = f32} : f32[]
            %6 = broadcast %5 {shape = [T, P+T], dims = []} : f32[T, P+T]
            %7 = select %4, %x, %6 : f32[T, P+T]
            return %7 }",
        apply: |site, op, args| {
            let Some((mask, x)) = hidden(site, op, args) else { return vec![] };
            let (mask, axes) = stripped(site, mask);
            let Some(key) = axes.len().checked_sub(1) else { return vec![] };
            let found = interval(site, mask, key).and_then(|i| i.causal(site, mask));
            some(found.map(|query| Term::new(CausalMask { query: axes[query], key: axes[key] }, [Term::Old(x)])))
        },
    },
];

/// The mask and the scores of `select(mask, scores, -∞)`.
pub(crate) fn hidden(site: &dyn Site, op: &Op, args: &[V]) -> Option<(V, V)> {
    let selects = matches!(op, Op::Map(m) if m.f == MapFn::Select);
    let nothing = |v: V| repeated(site, v).is_some_and(|(c, d)| c == f64::NEG_INFINITY && d == DType::F32);
    (selects && nothing(args[2])).then(|| (args[0], args[1]))
}

/// A value without its repetition, and which axis of the whole each of its axes is.
pub(crate) fn stripped(site: &dyn Site, v: V) -> (V, Vec<usize>) {
    let least = broadcasts(site, v).into_iter().min_by_key(|(b, x)| (b.dims.len(), *x));
    least.map_or_else(|| (v, (0..site.ty(v).rank()).collect()), |(b, x)| (x, b.dims))
}

/// A mask that shows what `top_k` chose.
struct Selection {
    /// The numbers chosen.
    k: usize,
    /// Of how many.
    of: Dim,
    /// What hides some of those chosen among, the outermost first.
    hiding: Vec<Hiding>,
    /// Whether none of those is -∞ but for that.
    finite: bool,
}

impl Selection {
    fn causal(&self) -> impl Iterator<Item = &CausalMask> {
        self.hiding.iter().filter_map(|h| match h {
            Hiding::Causal(mask) => Some(mask),
            Hiding::Where(..) => None,
        })
    }
}

/// What hides scores, in axes of the whole mask.
#[derive(Clone)]
enum Hiding {
    /// As by the op.
    Causal(CausalMask),
    /// Where a value is false, which repeats along all axes but these.
    Where(V, Vec<usize>),
}

/// Masks around scores that are looked through.
const MASKS: usize = 3;

/// The ways to see a mask as a selection.
fn selections(site: &dyn Site, mask: V) -> Vec<Selection> {
    let (inner, axes) = stripped(site, mask);
    let mut out = Vec::new();
    for (op, numbers) in site.forms(inner) {
        let Op::Member(member) = op else { continue };
        for (op, ranked) in site.forms(numbers[0]) {
            let Op::TopK(top) = op else { continue };
            if site.ty(ranked[0]).shape.last() == Some(&member.len) {
                let found = unmasked(site, ranked[0], &axes, MASKS);
                out.extend(found.into_iter().map(|(hiding, scores)| Selection {
                    k: top.k,
                    of: member.len.clone(),
                    hiding,
                    finite: finite(site, scores),
                }));
            }
        }
    }
    out
}

/// The ways to see scores as others that are hidden by masks, which have these axes of the whole: those without a mask
/// last.
fn unmasked(site: &dyn Site, scores: V, axes: &[usize], depth: usize) -> Vec<(Vec<Hiding>, V)> {
    let mut out = Vec::new();
    for (op, args) in site.forms(scores).into_iter().filter(|_| depth > 0) {
        let (outer, inner) = match op {
            Op::CausalMask(m) if m.key + 1 == axes.len() => {
                (Hiding::Causal(CausalMask { query: axes[m.query], key: axes[m.key] }), args[0])
            }
            _ => match hidden(site, op, &args) {
                Some((mask, inner)) => (Hiding::Where(mask, axes.to_vec()), inner),
                None => continue,
            },
        };
        let within = unmasked(site, inner, axes, depth - 1).into_iter();
        out.extend(within.map(|(more, v)| ([vec![outer.clone()], more].concat(), v)));
    }
    out.push((vec![], scores));
    out
}

fn everything(site: &dyn Site, mask: V, x: V, nothing: V) -> Option<Term> {
    let known = selections(site, mask);
    let enough = |s: &&Selection| site.upper(&s.of).is_some_and(|n| n <= s.k as i64);
    if let Some(s) = known.first().filter(|s| !enough(s)) {
        let most = site.upper(&s.of).map_or("any number of".to_owned(), |n| format!("up to {n}"));
        site.miss(&|| format!("{} are chosen of {most} rows", s.k));
    }
    let s = known.into_iter().find(|s| s.finite && enough(&s))?;
    let whole = &site.ty(mask).shape;
    let hide = |x: Term, by: &Hiding| match by {
        Hiding::Causal(mask) => Term::new(mask.clone(), [x]),
        Hiding::Where(seen, axes) => {
            let seen = Term::Old(*seen);
            let seen = match axes.len() == whole.len() {
                true => seen,
                false => Term::new(Broadcast { shape: whole.clone(), dims: axes.clone() }, [seen]),
            };
            Term::new(Map { f: MapFn::Select }, [seen, x, Term::Old(nothing)])
        }
    };
    Some(s.hiding.iter().rev().fold(Term::Old(x), hide))
}

/// A value that does not depend on the key: without repetition, and the axes of the mask that it has.
#[derive(Clone, Debug)]
pub(crate) struct Bound {
    value: V,
    /// Axes of the mask.
    pub axes: Vec<usize>,
    /// Added to the value.
    offset: Dim,
}

impl Bound {
    /// The bound as an op.
    pub fn term(&self, site: &dyn Site) -> Term {
        if self.offset.is(0) {
            return Term::Old(self.value);
        }
        if let Some(iota) = self.iota(site) {
            return Term::new(iota, []);
        }
        let scalar = match self.offset.as_const() {
            Some(n) => Term::new(Constant { values: vec![Real(n as f64)], scalar: true, dtype: DType::I32 }, []),
            None => {
                let one = Term::new(Iota { len: 1.into(), start: self.offset.clone() }, []);
                Term::new(Reshape { shape: vec![] }, [one])
            }
        };
        let shape = site.ty(self.value).shape.clone();
        let repeated = Term::new(Broadcast { shape, dims: vec![] }, [scalar]);
        Term::new(Map { f: MapFn::Add }, [Term::Old(self.value), repeated])
    }

    /// Consecutive numbers, where the bound is.
    fn iota(&self, site: &dyn Site) -> Option<Iota> {
        site.forms(self.value).into_iter().find_map(|(op, _)| match op {
            Op::Iota(i) => Some(Iota { start: i.start.clone() + self.offset.clone(), ..i.clone() }),
            _ => None,
        })
    }
}

/// Keys from `lo` on and before `hi`, where there are such bounds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Interval {
    pub lo: Option<Bound>,
    pub hi: Option<Bound>,
}

impl Interval {
    fn and(self, other: Interval) -> Option<Interval> {
        let both = |a: Option<Bound>, b: Option<Bound>| match (a, b) {
            (Some(_), Some(_)) => None,
            (a, b) => Some(a.or(b)),
        };
        Some(Interval { lo: both(self.lo, other.lo)?, hi: both(self.hi, other.hi)? })
    }

    /// The axis of queries, where each of the last positions sees all up to its own.
    pub fn causal(&self, site: &dyn Site, mask: V) -> Option<usize> {
        let (None, Some(hi)) = (&self.lo, &self.hi) else { return None };
        let [query] = hi.axes[..] else { return None };
        let (queries, keys) = (&site.ty(mask).shape[query], site.ty(mask).shape.last()?);
        let first = keys.clone() - queries.clone() + 1i64;
        hi.iota(site).filter(|i| i.start == first && i.len == *queries).map(|_| query)
    }
}

/// A mask as an interval of keys, which are its axis `key`.
pub(crate) fn interval(site: &dyn Site, mask: V, key: usize) -> Option<Interval> {
    interval_within(site, mask, key, 4)
}

fn interval_within(site: &dyn Site, mask: V, key: usize, depth: usize) -> Option<Interval> {
    site.forms(mask).into_iter().find_map(|(op, args)| match op {
        Op::Map(m) if m.f == MapFn::And && depth > 0 => {
            let part = |v: V| interval_within(site, v, key, depth - 1);
            part(args[0])?.and(part(args[1])?)
        }
        Op::Broadcast(b) if depth > 0 => {
            let inner = b.dims.iter().position(|d| *d == key)?;
            let mut found = interval_within(site, args[0], inner, depth - 1)?;
            for bound in found.lo.iter_mut().chain(&mut found.hi) {
                bound.axes.iter_mut().for_each(|a| *a = b.dims[*a]);
            }
            Some(found)
        }
        Op::Map(m) if matches!(m.f, MapFn::Lt | MapFn::Le) => {
            let or_equal = i64::from(m.f == MapFn::Le);
            match (positions(site, args[0], key), positions(site, args[1], key)) {
                (Some(start), None) => {
                    Some(Interval { hi: Some(bound(site, args[1], key, start * -1 + or_equal)?), lo: None })
                }
                (None, Some(start)) => {
                    Some(Interval { lo: Some(bound(site, args[0], key, start * -1 + (1 - or_equal))?), hi: None })
                }
                _ => None,
            }
        }
        _ => None,
    })
}

/// Where positions along the axis `key` start, for a value that is these positions.
fn positions(site: &dyn Site, v: V, key: usize) -> Option<Dim> {
    let (inner, axes) = stripped(site, v);
    let found = site.forms(inner).into_iter().find_map(|(op, _)| match op {
        Op::Iota(i) => Some(i.start.clone()),
        _ => None,
    });
    found.filter(|_| axes == [key])
}

/// An integer that does not depend on the key, where its sum with the offset is known to be one too.
fn bound(site: &dyn Site, v: V, key: usize, offset: Dim) -> Option<Bound> {
    let (value, axes) = stripped(site, v);
    if axes.contains(&key) || site.ty(value).dtype != DType::I32 {
        return None;
    }
    let bound = Bound { value, axes, offset };
    let (least, most) = (i64::from(i32::MIN), i64::from(i32::MAX));
    let sum_fits = || {
        let (low, high) = extent(site, value, DEPTH)?;
        let low = low.checked_add(site.lower(&bound.offset)?)?;
        let high = high.checked_add(site.upper(&bound.offset)?)?;
        Some(least <= low && high <= most)
    };
    if bound.offset.is(0) || bound.iota(site).is_some() || sum_fits() == Some(true) {
        return Some(bound);
    }
    site.miss(&|| format!("a bound of keys and {} may be no 32-bit integer together", bound.offset));
    None
}

/// Ops that are looked through for what integers there may be.
const DEPTH: usize = 6;

/// The least and the largest integer that a value may hold, as far as that is known; nothing wraps on the way.
fn extent(site: &dyn Site, v: V, depth: usize) -> Option<(i64, i64)> {
    let depth = depth.checked_sub(1)?;
    let known = site.forms(v).into_iter().find_map(|(op, args)| match op {
        Op::Constant(c) => {
            let values = c.values.iter().map(|c| c.0 as i64);
            Some((values.clone().min()?, values.max()?))
        }
        Op::Iota(i) => Some((site.lower(&i.start)?, site.upper(&(i.start.clone() + i.len.clone()))? - 1)),
        Op::Map(m) if matches!(m.f, MapFn::Add | MapFn::Sub | MapFn::Max | MapFn::Min) => {
            let ((a, b), (c, d)) = (extent(site, args[0], depth)?, extent(site, args[1], depth)?);
            match m.f {
                MapFn::Add => Some((a.checked_add(c)?, b.checked_add(d)?)),
                MapFn::Sub => Some((a.checked_sub(d)?, b.checked_sub(c)?)),
                MapFn::Max => Some((a.max(c), b.max(d))),
                _ => Some((a.min(c), b.min(d))),
            }
        }
        op if op.is_view() && args.len() == 1 => extent(site, args[0], depth),
        _ => None,
    });
    known.filter(|(low, high)| i32::try_from(*low).is_ok() && i32::try_from(*high).is_ok())
}
