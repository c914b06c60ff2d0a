//! Laws of what attention sees: a mask becomes a list of rows or an interval, and rows that are joined become sets.

use super::elementwise::repeated;
use super::masks::{Interval, interval, stripped};
use crate::rule::NumericClass::Reassociating;
use crate::rule::{Rule, Site, Term, V};
use hadal_ir::ops::attention::{RowSet, Visible};
use hadal_ir::ops::map::MapFn;
use hadal_ir::ops::{Attention, Broadcast, Iota, Member, Reshape, Slice, TopK};
use hadal_ir::{Dim, Op};

/// The laws of this file.
pub const RULES: &[Rule] = &[
    Rule {
        name: "mask-by-selection",
        law: "attention masked by member(i) = attention over the rows i, for i of top_k, or of the blocks that it chose: no row is \
              listed twice",
        class: Reassociating,
        example: "func @f(%q: f32[T, 2, A], %k: f32[P+T, A], %v: f32[P+T, 2, C], %x: f32[T, P+T]) -> (o: f32[T, 2, C]) {
            %0 = top_k %x {k = 3} : i32[T, 3]
            %1 = member %0 {len = P+T} : bool[T, P+T]
            %2 = attention %q, %k, %v, %1
              {sets = [\"tha,sa shc masked:ts\"], output = \"thc\", scale = 0.3} : f32[T, 2, C]
            return %2 }",
        apply: |site, op, args| masked_sets(op, args, |set, own| select_rows(site, set, own)),
    },
    Rule {
        name: "mask-by-interval",
        law: "attention masked by lo ≤ s < hi = attention over that interval; up to the query's own row it is causal",
        class: Reassociating,
        example: "func @f(%q: f32[T, 2, A], %k: f32[P+T, A], %v: f32[P+T, 2, C], %l: i32[T]) -> (o: f32[T, 2, C]) {
            %0 = iota {len = P+T} : i32[P+T]
            %1 = broadcast %0 {shape = [T, P+T], dims = [1]} : i32[T, P+T]
            %2 = broadcast %l {shape = [T, P+T], dims = [0]} : i32[T, P+T]
            %3 = le %2, %1 : bool[T, P+T]
            %4 = iota {len = T, start = P} : i32[T]
            %5 = broadcast %4 {shape = [T, P+T], dims = [0]} : i32[T, P+T]
            %6 = lt %1, %5 : bool[T, P+T]
            %7 = and %3, %6 : bool[T, P+T]
            %8 = attention %q, %k, %v, %7
              {sets = [\"tha,sa shc masked:ts\"], output = \"thc\", scale = 0.3} : f32[T, 2, C]
            return %8 }",
        apply: |site, op, args| masked_sets(op, args, |set, own| show_interval(site, set, own)),
    },
    Rule {
        name: "sets-of-joined-rows",
        law: "attention over rows joined from parts = attention over these parts, each a set",
        class: Reassociating,
        example: "func @f(%q: f32[T, 2, A], %k: f32[P, A], %r: f32[T, A], %v: f32[P, C], %w: f32[T, C]) -> (o: f32[T, 2, C]) {
            %0 = concat %k, %r {axis = 0} : f32[P+T, A]
            %1 = concat %v, %w {axis = 0} : f32[P+T, C]
            %2 = attention %q, %0, %1 {sets = [\"tha,sa sc causal\"], output = \"thc\", scale = 0.3} : f32[T, 2, C]
            return %2 }",
        apply: |site, op, args| {
            let Op::Attention(a) = op else { return vec![] };
            let mut out = Vec::new();
            for (i, own) in a.split(args).into_iter().enumerate() {
                out.extend(joined(site, &a.sets[i], own).map(|(sets, operands)| replaced(a, args, i, sets, operands)));
            }
            out
        },
    },
];

/// A set and its operands.
type Shown = (RowSet, Vec<Term>);

/// The attention with one set replaced by others.
fn replaced(a: &Attention, args: &[V], at: usize, sets: Vec<RowSet>, operands: Vec<Term>) -> Term {
    let before: usize = a.sets[..at].iter().map(RowSet::arity).sum();
    let end = before + a.sets[at].arity();
    let mut all = a.clone();
    all.sets.splice(at..=at, sets);
    let old = |v: &V| Term::Old(*v);
    Term::new(all, args[..before].iter().map(old).chain(operands).chain(args[end..].iter().map(old)))
}

/// What `f` makes of each masked set and its operands, of which the mask is the last.
fn masked_sets(op: &Op, args: &[V], f: impl Fn(&RowSet, &[V]) -> Option<Shown>) -> Vec<Term> {
    let Op::Attention(a) = op else { return vec![] };
    let sets = a.split(args).into_iter().enumerate().filter(|(i, _)| matches!(a.sets[*i].rows, Visible::Masked(_)));
    sets.filter_map(|(i, own)| f(&a.sets[i], own).map(|(set, operands)| replaced(a, args, i, vec![set], operands)))
        .collect()
}

fn shown(set: &RowSet, own: &[V], rows: Visible, more: Vec<Term>) -> Shown {
    let kept = own[..2 * set.terms.len() + 1].iter().map(|v| Term::Old(*v));
    (RowSet { rows, ..set.clone() }, kept.chain(more).collect())
}

fn select_rows(site: &dyn Site, set: &RowSet, own: &[V]) -> Option<Shown> {
    let Visible::Masked(letters) = &set.rows else { return None };
    let numbers = site.forms(*own.last()?).into_iter().find_map(|(op, numbers)| match op {
        Op::Member(Member { .. }) => Some(numbers[0]),
        _ => None,
    })?;
    if !differ(site, numbers, 1, DEPTH) {
        site.miss(&|| "the rows of the mask are not from `top_k`, so one may be listed twice".to_owned());
        return None;
    }
    Some(shown(set, own, Visible::Selected(letters.clone()), vec![Term::Old(numbers)]))
}

/// Ops between `top_k` and the numbers of rows in blocks that it chose.
const DEPTH: usize = 6;

/// Whether no number that is not negative stands twice along the last `axes` axes: what `top_k` chose, also without
/// some of it, or wherever it did if they come from outside, and the rows of blocks `n · b + o`, with `0 ≤ o < n` or
/// fewer, that it chose.
fn differ(site: &dyn Site, numbers: V, axes: usize, depth: usize) -> bool {
    let Some(depth) = depth.checked_sub(1) else { return false };
    let shape = &site.ty(numbers).shape;
    if axes == 1 && site.chosen(numbers) {
        return true;
    }
    site.forms(numbers).into_iter().any(|(op, args)| match op {
        Op::TopK(TopK { .. }) => axes == 1,
        Op::Map(m) if m.f == MapFn::Select => {
            repeated(site, args[2]).is_some_and(|(c, _)| c < 0.0) && differ(site, args[1], axes, depth)
        }
        Op::Map(m) if m.f == MapFn::Add && axes == 2 => {
            let last = shape.len() - 1;
            let offsets = |v: V| {
                let (offsets, place) = stripped(site, v);
                let counts =
                    |(op, _): &(&Op, Vec<V>)| matches!(op, Op::Iota(i) if i.start.is(0) && i.len == shape[last]);
                place == [last] && site.forms(offsets).iter().any(counts)
            };
            let blocks = |v: V| {
                let (starts, place) = stripped(site, v);
                let size = shape[last].as_const();
                place.iter().copied().eq(0..last) && size.is_some_and(|n| multiple(site, starts, n, depth))
            };
            blocks(args[0]) && offsets(args[1]) || offsets(args[0]) && blocks(args[1])
        }
        Op::Reshape(_) if axes == 1 => {
            let inner = &site.ty(args[0]).shape;
            let merged = inner.len() == shape.len() + 1 && inner[..shape.len() - 1] == shape[..shape.len() - 1];
            merged && differ(site, args[0], 2, depth)
        }
        _ => false,
    })
}

/// Whether these are `n` times, or more, numbers that [`differ`].
fn multiple(site: &dyn Site, v: V, n: i64, depth: usize) -> bool {
    site.forms(v).into_iter().any(|(op, args)| {
        let times = matches!(op, Op::Map(m) if m.f == MapFn::Mul);
        let by = |a: V, b: V| repeated(site, a).is_some_and(|(c, _)| c >= n as f64) && differ(site, b, 1, depth);
        times && (by(args[1], args[0]) || by(args[0], args[1]))
    })
}

fn show_interval(site: &dyn Site, set: &RowSet, own: &[V]) -> Option<Shown> {
    let Visible::Masked(letters) = &set.rows else { return None };
    let mask = *own.last()?;
    let found = interval(site, mask, letters.len() - 1)?;
    if found.causal(site, mask) == Some(0) {
        return Some(shown(set, own, Visible::Causal, vec![]));
    }
    let Interval { lo, hi } = found;
    let shape = &site.ty(mask).shape;
    let queries = &shape[..1];
    // A bound that is not given is the first row, or the number of rows.
    let everywhere = |n: Dim| {
        let one = Term::new(Iota { len: 1.into(), start: n }, []);
        let scalar = Term::new(Reshape { shape: vec![] }, [one]);
        (Term::new(Broadcast { shape: queries.to_vec(), dims: vec![] }, [scalar]), letters[..1].to_owned())
    };
    let one = |bound: Option<super::masks::Bound>, otherwise: Dim| {
        let Some(bound) = bound else { return Some(everywhere(otherwise)) };
        let has_query = bound.axes.first() == Some(&0);
        if !has_query {
            // A bound for all queries, or for some heads.
            let axes: Vec<usize> = std::iter::once(0).chain(bound.axes.iter().copied()).collect();
            let all = axes.iter().map(|a| shape[*a].clone()).collect();
            let place = (1..axes.len()).collect();
            let repeated = Term::new(Broadcast { shape: all, dims: place }, [bound.term(site)]);
            return Some((repeated, axes.iter().map(|a| letters.chars().nth(*a)).collect::<Option<String>>()?));
        }
        let own = bound.axes.iter().map(|a| letters.chars().nth(*a)).collect::<Option<String>>()?;
        Some((bound.term(site), own))
    };
    let (lo, lo_letters) = one(lo, Dim::default())?;
    let (hi, hi_letters) = one(hi, shape.last()?.clone())?;
    Some(shown(set, own, Visible::Interval(lo_letters, hi_letters), vec![lo, hi]))
}

/// The parts of a value joined along its rows.
fn parts(site: &dyn Site, v: V) -> Option<Vec<V>> {
    site.forms(v).into_iter().find_map(|(op, args)| match op {
        Op::Concat(c) if c.axis == 0 && args.len() > 1 => Some(args),
        _ => None,
    })
}

/// The sets that rows are joined from: keys and values in the same parts.
fn joined(site: &dyn Site, set: &RowSet, own: &[V]) -> Option<(Vec<RowSet>, Vec<Term>)> {
    let n = set.terms.len();
    let values = parts(site, own[2 * n])?;
    let sizes: Vec<Dim> = values.iter().map(|v| site.ty(*v).shape[0].clone()).collect();
    let keys = (0..n).map(|i| {
        let found = parts(site, own[2 * i + 1])?;
        let alike = found.iter().map(|k| &site.ty(*k).shape[0]).eq(sizes.iter());
        alike.then_some(found)
    });
    let Some(keys) = keys.collect::<Option<Vec<Vec<V>>>>() else {
        site.miss(&|| "keys are not joined from the same parts as values".to_owned());
        return None;
    };
    let mut start = Dim::default();
    let (mut sets, mut operands) = (Vec::new(), Vec::new());
    for (p, len) in sizes.iter().enumerate() {
        for (i, key) in keys.iter().enumerate() {
            operands.extend([Term::Old(own[2 * i]), Term::Old(key[p])]);
        }
        operands.push(Term::Old(values[p]));
        let (rows, more) = match &set.rows {
            Visible::All => (Visible::All, None),
            // The last rows are the queries' own; before them every query sees all.
            Visible::Causal if p + 1 < sizes.len() => (Visible::All, None),
            Visible::Causal => (Visible::Causal, None),
            Visible::Masked(letters) => {
                let slice = Slice { axis: letters.len() - 1, start: start.clone(), len: len.clone(), step: 1 };
                (Visible::Masked(letters.clone()), Some(Term::new(slice, [Term::Old(*own.last()?)])))
            }
            Visible::Interval(..) | Visible::Selected(_) => return None,
        };
        operands.extend(more);
        sets.push(RowSet { rows, ..set.clone() });
        start = start + len.clone();
    }
    if set.rows == Visible::Causal {
        let queries = &site.ty(own[0]).shape[0];
        let last = sizes.last()?;
        if site.lower(&(last.clone() - queries.clone())).is_none_or(|room| room < 0) {
            site.miss(&|| {
                format!("the last of the joined parts has {last} rows, and {queries} queries see others' ends")
            });
            return None;
        }
    }
    Some((sets, operands))
}
