//! The law that finds attention: a softmax of scores over one or several sets of rows, and the sum of values it
//! weights.
//!
//! Scores are read from the softmax downwards. A set's scores may be masked and scaled in any order before the sum of
//! products is reached; several sets are scores joined along the keys; a sink is a column of scores that is cut off
//! after the softmax. What a mask shows, other laws say ([`super::sparsity`]).

use super::elementwise::repeated;
use super::layout::at_most;
use super::masks::{hidden, stripped};
use crate::rule::NumericClass::Reassociating;
use crate::rule::{Rule, Site, Term, V};
use hadal_ir::attr::Real;
use hadal_ir::ops::attention::{RowSet, Visible};
use hadal_ir::ops::map::MapFn;
use hadal_ir::ops::{Attention, Broadcast, Contract, Iota, Map, Reshape, Slice, Transpose};
use hadal_ir::{Dim, Op};

/// Most terms in a sum of scores.
const TERMS: usize = 3;
/// Most masks and scales on a set's scores.
const LAYERS: usize = 4;
/// Most ways to see all sets that are looked at.
const WAYS: usize = 64;

/// The laws of this file.
pub const RULES: &[Rule] = &[
    Rule {
        name: "select-attention",
        law: "contract(softmax(mask((contract(q, k) + …) · scale)), v) = attention(q, k, …, v)",
        class: Reassociating,
        example: "func @f(%q: f32[T, 2, A], %k: f32[P+T, A], %r: f32[T, 2, B], %s: f32[P+T, 2, B], %v: f32[P+T, 2, C])
            -> (o: f32[2, T, C]) {
            %0 = contract %q, %k {spec = \"thd,sd->hts\"} : f32[2, T, P+T]
            %1 = contract %s, %r {spec = \"shd,thd->hts\"} : f32[2, T, P+T]
            %2 = add %0, %1 : f32[2, T, P+T]
            %3 = constant {value = 0.3, dtype = f32} : f32[]
            %4 = broadcast %3 {shape = [2, T, P+T], dims = []} : f32[2, T, P+T]
            %5 = mul %2, %4 : f32[2, T, P+T]
            %6 = causal_mask %5 {query = 1, key = 2} : f32[2, T, P+T]
            %7 = softmax %6 : f32[2, T, P+T]
            %8 = contract %7, %v {spec = \"hts,shd->htd\"} : f32[2, T, C]
            return %8 }",
        apply: select,
    },
    Rule {
        name: "select-attention-with-sink",
        law: "contract(softmax(concat(scores, …, sink)) without its last column, v) = attention(…, sink)",
        class: Reassociating,
        example: "func @f(%q: f32[T, 2, A], %k: f32[P, A], %r: f32[B, A], %v: f32[P, C], %w: f32[B, C],
                %m: bool[T, B], %n: f32[2]) -> (o: f32[T, 2, C]) {
            %0 = contract %q, %k {spec = \"thd,sd->ths\"} : f32[T, 2, P]
            %1 = contract %q, %r {spec = \"thd,sd->ths\"} : f32[T, 2, B]
            %2 = broadcast %m {shape = [T, 2, B], dims = [0, 2]} : bool[T, 2, B]
            %3 = constant {value = -inf, dtype = f32} : f32[]
            %4 = broadcast %3 {shape = [T, 2, B], dims = []} : f32[T, 2, B]
            %5 = select %2, %1, %4 : f32[T, 2, B]
            %6 = broadcast %n {shape = [T, 2, 1], dims = [1]} : f32[T, 2, 1]
            %7 = concat %0, %5, %6 {axis = 2} : f32[T, 2, B+P+1]
            %8 = softmax %7 : f32[T, 2, B+P+1]
            %9 = slice %8 {axis = 2, start = 0, len = B+P} : f32[T, 2, B+P]
            %x = concat %v, %w {axis = 0} : f32[B+P, C]
            %y = contract %9, %x {spec = \"ths,sd->thd\"} : f32[T, 2, C]
            return %y }",
        apply: select_with_sink,
    },
];

fn select(site: &dyn Site, op: &Op, args: &[V]) -> Vec<Term> {
    let found = |weights: &Weights, w: V, value: V| {
        let mut out = Vec::new();
        for (inner, x) in site.forms(w) {
            if let Op::Softmax(_) = inner {
                out.extend(weights.over(site, &parts(site, x[0]), value, None));
            }
        }
        out
    };
    with_weights(op, args, found)
}

fn select_with_sink(site: &dyn Site, op: &Op, args: &[V]) -> Vec<Term> {
    let found = |weights: &Weights, w: V, value: V| {
        let mut out = Vec::new();
        let last = weights.letters.len().saturating_sub(1);
        for (inner, p) in site.forms(w) {
            let Op::Slice(Slice { axis, start, step: 1, .. }) = inner else { continue };
            if *axis != last || !start.is(0) {
                continue;
            }
            for (softmax, x) in site.forms(p[0]) {
                if !matches!(softmax, Op::Softmax(_)) {
                    continue;
                }
                for mut columns in joined(site, x[0], last) {
                    let sink = columns.pop().filter(|c| site.ty(*c).shape[last].is(1) && !columns.is_empty());
                    let rows = columns.iter().fold(Dim::default(), |n, c| n + site.ty(*c).shape[last].clone());
                    if let Some(sink) = sink.filter(|_| rows == site.ty(w).shape[last]) {
                        out.extend(weights.over(site, &columns, value, Some(sink)));
                    }
                }
            }
        }
        out
    };
    with_weights(op, args, found)
}

/// What `f` makes of either operand of a contraction as weights and the other as the value.
fn with_weights(op: &Op, args: &[V], f: impl Fn(&Weights, V, V) -> Vec<Term>) -> Vec<Term> {
    let (Op::Contract(root), [_, _]) = (op, args) else { return vec![] };
    let mut out = Vec::new();
    for (w, v) in [(0, 1), (1, 0)] {
        let (letters, value, output) = (root.inputs[w].clone(), root.inputs[v].clone(), root.output.clone());
        out.extend(f(&Weights { letters, value, output }, args[w], args[v]));
    }
    out
}

/// The parts of a concat along `axis`.
fn joined(site: &dyn Site, x: V, axis: usize) -> Vec<Vec<V>> {
    let of = |(op, args): (&Op, Vec<V>)| matches!(op, Op::Concat(c) if c.axis == axis).then_some(args);
    site.forms(x).into_iter().filter_map(of).collect()
}

/// Scores as those of one set or of several.
fn parts(site: &dyn Site, x: V) -> Vec<V> {
    let last = site.ty(x).rank().saturating_sub(1);
    joined(site, x, last).into_iter().next().unwrap_or_else(|| vec![x])
}

/// The letters of a contraction over keys: of the softmax's result, of the value, of the result.
struct Weights {
    letters: String,
    value: String,
    output: String,
}

/// Letters of a query and of its keys.
type Letters = (String, String);

/// One contraction of a sum of scores: query and key with their letters.
type ScoreTerm = (V, String, V, String);

/// The scores of a set, seen through masks and scales.
#[derive(Clone)]
struct Scores {
    terms: Vec<ScoreTerm>,
    scale: f64,
    /// The axes of query and key of a causal mask.
    causal: Option<(usize, usize)>,
    /// Truth values with the shape of the scores.
    masks: Vec<V>,
}

impl Weights {
    /// Every attention over these scores, set by set, with a value for the rows of all.
    fn over(&self, site: &dyn Site, scores: &[V], value: V, sink: Option<V>) -> Vec<Term> {
        let seen: Vec<Vec<Scores>> = scores.iter().map(|x| peeled(site, *x, &self.letters, LAYERS)).collect();
        let mut ways: Vec<Vec<&Scores>> = vec![vec![]];
        for set in &seen {
            ways = ways.iter().flat_map(|w| set.iter().map(|s| [&w[..], &[s]].concat())).take(WAYS).collect();
        }
        ways.iter().filter_map(|way| self.attention(site, way, value, sink)).collect()
    }

    fn attention(&self, site: &dyn Site, sets: &[&Scores], value: V, sink: Option<V>) -> Option<Term> {
        // The softmax runs over the last axis, so that is the one of the keys.
        let key = self.letters.chars().last().filter(|k| !self.output.contains(*k) && self.value.contains(*k))?;
        let scale = sets.first()?.scale;
        if sets.iter().any(|s| s.scale != scale) {
            site.miss(&|| "the sets' scores have different scales".to_owned());
            return None;
        }
        let query = self.query(site, sets)?;
        let result = only(self.value.chars().filter(|l| !self.letters.contains(*l)))?;
        let heads: String = self.output.chars().filter(|l| *l != query && *l != result).collect();
        let others = &self.letters[..self.letters.len() - 1];
        let all_there = others.chars().all(|l| l == query || heads.contains(l)) && !self.value.contains(query);
        let carried = heads.chars().all(|l| others.contains(l));
        let framed = self.output.contains(query) && self.output.contains(result);
        let known = self.value.chars().all(|l| l == key || l == result || heads.contains(l));
        if !all_there || !carried || !framed || !known {
            return None;
        }
        let frame = Frame { site, letters: &self.letters, query, key, heads: &heads };
        let (mut operands, mut rows) = (Vec::new(), Vec::new());
        for (scores, value) in sets.iter().zip(self.values(site, sets.len(), value, key, &frame, sets)?) {
            let (set, of_set) = frame.set(scores, &format!("{}{}", self.letters, self.value))?;
            let (value_letters, value) = framed_by(key, result, &self.value, value);
            operands.extend(set);
            operands.push(value);
            let (visible, shown) = frame.visible(scores)?;
            operands.extend(shown);
            rows.push(RowSet { terms: of_set, value: value_letters, rows: visible });
        }
        operands.extend(match sink {
            Some(sink) => Some(frame.sink(sink)?),
            None => None,
        });
        let own = format!("{query}{heads}{result}");
        let attention = Attention { sets: rows, output: own.clone(), scale: Real(scale), sink: sink.is_some() };
        let attention = Term::new(attention, operands);
        if own == self.output {
            return Some(attention);
        }
        let perm = self.output.chars().map(|l| own.find(l)).collect::<Option<Vec<usize>>>()?;
        Some(Term::new(Transpose { perm }, [attention]))
    }

    /// The letter of queries: that of a causal mask, else one that no keys have, if possible one that masks do.
    fn query(&self, site: &dyn Site, sets: &[&Scores]) -> Option<char> {
        let letter = |axis: usize| self.letters.chars().nth(axis);
        let last = self.letters.len() - 1;
        let mut causal = sets.iter().filter_map(|s| s.causal);
        if let Some((query, key)) = causal.next() {
            let same = key == last && causal.all(|c| c == (query, key));
            return letter(query).filter(|_| same);
        }
        let of_keys = |l: char| self.value.contains(l) || sets.iter().any(|s| s.terms.iter().any(|t| t.3.contains(l)));
        let free: Vec<char> = self.letters[..last].chars().filter(|l| !of_keys(*l)).collect();
        let masks = sets.iter().flat_map(|s| &s.masks).flat_map(|m| stripped(site, *m).1);
        let masked: Vec<char> = masks.filter_map(letter).collect();
        let in_query = |l: &char| sets.iter().all(|s| s.terms[0].1.contains(*l));
        free.iter().copied().find(|l| masked.contains(l)).or_else(|| free.into_iter().find(in_query))
    }

    /// The value of each set.
    fn values(
        &self,
        site: &dyn Site,
        n: usize,
        value: V,
        key: char,
        frame: &Frame<'_>,
        sets: &[&Scores],
    ) -> Option<Vec<Term>> {
        if n == 1 {
            return Some(vec![Term::Old(value)]);
        }
        let axis = self.value.find(key)?;
        let sizes: Vec<Dim> = sets.iter().map(|s| frame.rows(s)).collect::<Option<_>>()?;
        let fits = |parts: &Vec<V>| parts.iter().map(|p| &site.ty(*p).shape[axis]).eq(sizes.iter());
        if let Some(parts) = joined(site, value, axis).into_iter().find(fits) {
            return Some(parts.into_iter().map(Term::Old).collect());
        }
        let mut start = Dim::default();
        let part = |len: &Dim| {
            let slice = Slice { axis, start: start.clone(), len: len.clone(), step: 1 };
            start = start.clone() + len.clone();
            Term::new(slice, [Term::Old(value)])
        };
        let parts: Vec<Term> = sizes.iter().map(part).collect();
        at_most(&start, &site.ty(value).shape[axis]).then_some(parts)
    }
}

/// What the letters of the scores stand for.
struct Frame<'a> {
    site: &'a dyn Site,
    letters: &'a str,
    query: char,
    key: char,
    heads: &'a str,
}

impl Frame<'_> {
    /// How many rows a set has.
    fn rows(&self, scores: &Scores) -> Option<Dim> {
        let (_, _, k, letters) = scores.terms.first()?;
        Some(self.site.ty(*k).shape[letters.find(self.key)?].clone())
    }

    /// The queries and keys of a set, and their letters.
    fn set(&self, scores: &Scores, used: &str) -> Option<(Vec<Term>, Vec<Letters>)> {
        let (mut operands, mut letters) = (Vec::new(), Vec::new());
        let mut free = ('a'..='z').chain('A'..='Z').filter(|l| !used.contains(*l));
        for (q, q_letters, k, k_letters) in &scores.terms {
            let summed = only(q_letters.chars().filter(|l| !self.letters.contains(*l)))?;
            let has_all = self.heads.chars().all(|h| q_letters.contains(h) || k_letters.contains(h));
            let framed = q_letters.contains(self.query) && k_letters.contains(self.key) && k_letters.contains(summed);
            let only_known =
                |s: &str, first: char| s.chars().all(|l| l == first || l == summed || self.heads.contains(l));
            if !has_all || !framed || !only_known(q_letters, self.query) || !only_known(k_letters, self.key) {
                return None;
            }
            let letter = free.next()?;
            let named = |s: &str| s.replace(summed, &letter.to_string());
            let (q_letters, q) = framed_by(self.query, letter, &named(q_letters), Term::Old(*q));
            let (k_letters, k) = framed_by(self.key, letter, &named(k_letters), Term::Old(*k));
            operands.extend([q, k]);
            letters.push((q_letters, k_letters));
        }
        Some((operands, letters))
    }

    /// What a query sees of a set, and the operands that say so.
    fn visible(&self, scores: &Scores) -> Option<(Visible, Vec<Term>)> {
        let Some((first, more)) = scores.masks.split_first() else {
            let causal = scores.causal.is_some();
            return Some((if causal { Visible::Causal } else { Visible::All }, vec![]));
        };
        let queries = self.size(self.query, scores)?;
        let rows = self.rows(scores)?;
        let mut masks: Vec<(Term, String)> = Vec::new();
        for mask in [first].into_iter().chain(more) {
            let (inner, axes) = stripped(self.site, *mask);
            let letters: String = axes.iter().filter_map(|a| self.letters.chars().nth(*a)).collect();
            masks.push((Term::Old(inner), letters));
        }
        if scores.causal.is_some() {
            let position = |len: &Dim, start: Dim, axis: usize| {
                let iota = Term::new(Iota { len: len.clone(), start }, []);
                Term::new(Broadcast { shape: vec![queries.clone(), rows.clone()], dims: vec![axis] }, [iota])
            };
            let (s, t) = (position(&rows, Dim::default(), 1), position(&queries, rows.clone() - queries.clone(), 0));
            masks.push((Term::new(Map { f: MapFn::Le }, [s, t]), format!("{}{}", self.query, self.key)));
        }
        // One mask of all, with the letters of all in order.
        let inner = self.heads.chars().filter(|h| masks.iter().any(|(_, l)| l.contains(*h)));
        let letters: String = [self.query].into_iter().chain(inner).chain([self.key]).collect();
        let shape = letters.chars().map(|l| self.size(l, scores)).collect::<Option<Vec<Dim>>>()?;
        let mut whole: Option<Term> = None;
        for (mask, own) in masks {
            let ordered: String = letters.chars().filter(|l| own.contains(*l)).collect();
            let perm = ordered.chars().map(|l| own.find(l)).collect::<Option<Vec<usize>>>()?;
            let mask = if perm.is_sorted() { mask } else { Term::new(Transpose { perm }, [mask]) };
            let dims: Vec<usize> = ordered.chars().filter_map(|l| letters.find(l)).collect();
            let mask = match dims.len() == shape.len() {
                true => mask,
                false => Term::new(Broadcast { shape: shape.clone(), dims }, [mask]),
            };
            whole = Some(match whole {
                None => mask,
                Some(before) => Term::new(Map { f: MapFn::And }, [before, mask]),
            });
        }
        Some((Visible::Masked(letters), vec![whole?]))
    }

    /// The size of a letter of a set's scores.
    fn size(&self, letter: char, scores: &Scores) -> Option<Dim> {
        let operands = scores.terms.iter().flat_map(|(q, ql, k, kl)| [(*q, ql), (*k, kl)]);
        operands.into_iter().find_map(|(v, l)| Some(self.site.ty(v).shape[l.find(letter)?].clone()))
    }

    /// The sink of each head, from a column of scores.
    fn sink(&self, column: V) -> Option<Term> {
        let (inner, axes) = stripped(self.site, column);
        let ty = self.site.ty(inner);
        let mut kept = Vec::new();
        for (i, axis) in axes.iter().enumerate() {
            let letter = self.letters.chars().nth(*axis)?;
            if self.heads.contains(letter) {
                kept.push((self.heads.find(letter)?, i));
            } else if !ty.shape[i].is(1) {
                self.site.miss(&|| "the sink depends on the query".to_owned());
                return None;
            }
        }
        let sizes: Vec<Dim> = kept.iter().map(|(_, i)| ty.shape[*i].clone()).collect();
        let plain = match sizes == ty.shape {
            true => Term::Old(inner),
            false => Term::new(Reshape { shape: sizes }, [Term::Old(inner)]),
        };
        let whole = self.heads.chars().map(|h| {
            let axis = self.letters.find(h)?;
            Some(self.site.ty(column).shape[axis].clone())
        });
        let whole = whole.collect::<Option<Vec<Dim>>>()?;
        let dims: Vec<usize> = kept.iter().map(|(h, _)| *h).collect();
        if !dims.is_sorted() {
            return None;
        }
        Some(match dims.len() == whole.len() {
            true => plain,
            false => Term::new(Broadcast { shape: whole, dims }, [plain]),
        })
    }
}

/// The only element.
fn only<T>(mut items: impl Iterator<Item = T>) -> Option<T> {
    let first = items.next()?;
    items.next().is_none().then_some(first)
}

/// An operand with its axes reordered so that `first` and `last` frame the others.
fn framed_by(first: char, last: char, letters: &str, operand: Term) -> (String, Term) {
    let inner: String = letters.chars().filter(|l| *l != first && *l != last).collect();
    let wanted = format!("{first}{inner}{last}");
    if wanted == letters {
        return (wanted, operand);
    }
    let perm = wanted.chars().map(|l| letters.find(l).expect("the same letters")).collect();
    (wanted, Term::new(Transpose { perm }, [operand]))
}

/// The ways to see scores as masked, scaled sums of contractions.
fn peeled(site: &dyn Site, x: V, letters: &str, layers: usize) -> Vec<Scores> {
    let plain = sums(site, x, letters, TERMS).into_iter();
    let mut out: Vec<Scores> = plain.map(|terms| Scores { terms, scale: 1.0, causal: None, masks: vec![] }).collect();
    if layers == 0 {
        return out;
    }
    for (op, args) in site.forms(x) {
        if let Op::CausalMask(m) = op {
            let same = |s: &Scores| s.causal.is_none_or(|c| c == (m.query, m.key));
            let below = peeled(site, args[0], letters, layers - 1).into_iter().filter(same);
            out.extend(below.map(|s| Scores { causal: Some((m.query, m.key)), ..s }));
        }
        if let Some((mask, scores)) = hidden(site, op, &args) {
            out.extend(peeled(site, scores, letters, layers - 1).into_iter().map(|mut s| {
                s.masks.insert(0, mask);
                s
            }));
        }
        if matches!(op, Op::Map(m) if m.f == MapFn::Mul) {
            for (a, b) in [(0, 1), (1, 0)] {
                let Some((scale, _)) = repeated(site, args[b]) else { continue };
                // What is hidden stays hidden only under a positive factor.
                let stays = |s: &Scores| scale > 0.0 || (s.causal.is_none() && s.masks.is_empty());
                let below = peeled(site, args[a], letters, layers - 1).into_iter().filter(stays);
                out.extend(below.map(|s| Scores { scale: s.scale * scale, ..s }));
            }
        }
    }
    out.truncate(WAYS);
    out
}

/// The ways to see scores as a sum of contractions, with letters as the softmax's result has them.
fn sums(site: &dyn Site, scores: V, letters: &str, most: usize) -> Vec<Vec<ScoreTerm>> {
    let mut out = Vec::new();
    for (op, args) in site.forms(scores) {
        match op {
            Op::Contract(c) if args.len() == 2 => out.extend(score_terms(c, &args, letters).map(|t| vec![t])),
            Op::Map(m) if m.f == MapFn::Add && most >= 2 => {
                for left in sums(site, args[0], letters, most - 1) {
                    for right in sums(site, args[1], letters, most - left.len()) {
                        out.push(left.iter().chain(&right).cloned().collect());
                    }
                }
            }
            _ => {}
        }
    }
    out
}

/// A contraction as query and key: the key is the operand that has the last axis of the scores.
fn score_terms(c: &Contract, args: &[V], letters: &str) -> Option<ScoreTerm> {
    // Summed letters are digits for now, which no contraction uses.
    let names: Vec<(char, char)> =
        c.output.chars().zip(letters.chars()).chain(c.summed().chars().zip('0'..='9')).collect();
    let renamed = |s: &str| -> String {
        s.chars().filter_map(|l| names.iter().find(|(from, _)| *from == l).map(|n| n.1)).collect()
    };
    let (x, y) = (renamed(&c.inputs[0]), renamed(&c.inputs[1]));
    let key = letters.chars().last()?;
    match (x.contains(key), y.contains(key)) {
        (false, true) => Some((args[0], x, args[1], y)),
        (true, false) => Some((args[1], y, args[0], x)),
        _ => None,
    }
}
