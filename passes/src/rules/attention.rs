//! The law that finds attention.

use crate::rule::NumericClass::Reassociating;
use crate::rule::{Rule, Site, Term, V};
use crate::rules::elementwise::repeated;
use hadal_ir::Op;
use hadal_ir::attr::Real;
use hadal_ir::ops::map::MapFn;
use hadal_ir::ops::attention::{RowSet, Visible};
use hadal_ir::ops::{Attention, CausalMask, Contract, Transpose};

/// Most terms in a sum of scores.
const TERMS: usize = 3;

/// The laws of this file.
pub const RULES: &[Rule] = &[Rule {
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
}];

/// One contraction of a sum of scores: query and key with their letters.
type ScoreTerm = (V, String, V, String);

fn select(site: &dyn Site, op: &Op, args: &[V]) -> Vec<Term> {
    let Op::Contract(root) = op else { return vec![] };
    if args.len() != 2 {
        return vec![];
    }
    let mut out = Vec::new();
    for (w, v) in [(0, 1), (1, 0)] {
        for (inner, x) in site.forms(args[w]) {
            if let Op::Softmax(_) = inner {
                let weights = Weights { letters: root.inputs[w].clone(), value: root.inputs[v].clone() };
                out.extend(weights.below(site, x[0], args[v], &root.output));
            }
        }
    }
    out
}

/// The softmax's result and the value, by the letters of the contraction over keys.
struct Weights {
    letters: String,
    value: String,
}

impl Weights {
    /// Every attention that the value `x` under the softmax gives rise to.
    fn below(&self, site: &dyn Site, x: V, value: V, output: &str) -> Vec<Term> {
        let mut out = Vec::new();
        for (mask, scaled) in masks(site, x) {
            for (scale, scores) in scales(site, scaled) {
                for terms in sums(site, scores, &self.letters, TERMS) {
                    out.extend(self.attention(mask.as_ref(), scale, &terms, value, output));
                }
            }
        }
        out
    }

    fn attention(
        &self,
        mask: Option<&CausalMask>,
        scale: f64,
        terms: &[ScoreTerm],
        value: V,
        output: &str,
    ) -> Option<Term> {
        // The softmax runs over the last axis, so that is the one of the keys.
        let key = self.letters.chars().last().filter(|k| !output.contains(*k) && self.value.contains(*k))?;
        let others = &self.letters[..self.letters.len() - 1];
        let of_keys = |l: char| self.value.contains(l) || terms.iter().any(|t| t.3.contains(l));
        let query = match mask {
            Some(m) if m.key == self.letters.len() - 1 => self.letters.chars().nth(m.query)?,
            Some(_) => return None,
            // Without a mask any axis that keys do not have may play the part of the query.
            None => terms[0].1.chars().find(|l| others.contains(*l) && !of_keys(*l))?,
        };
        let result = only(self.value.chars().filter(|l| !self.letters.contains(*l)))?;
        let heads: String = output.chars().filter(|l| *l != query && *l != result).collect();
        let all_there = others.chars().all(|l| l == query || heads.contains(l)) && !of_keys(query);
        let carried = heads.chars().all(|l| others.contains(l)) && output.contains(query) && output.contains(result);
        if !all_there || !carried {
            return None;
        }
        let mut operands = Vec::new();
        let mut letters = Vec::new();
        let used = format!("{}{}", self.letters, self.value);
        let mut free = ('a'..='z').chain('A'..='Z').filter(|l| !used.contains(*l));
        for (q, q_letters, k, k_letters) in terms {
            let summed = only(q_letters.chars().filter(|l| !self.letters.contains(*l)))?;
            let has_all = heads.chars().all(|h| q_letters.contains(h) || k_letters.contains(h));
            let framed = q_letters.contains(query) && k_letters.contains(key) && k_letters.contains(summed);
            let only_known = |s: &str, first: char| s.chars().all(|l| l == first || l == summed || heads.contains(l));
            if !has_all || !framed || !only_known(q_letters, query) || !only_known(k_letters, key) {
                return None;
            }
            let letter = free.next()?;
            let named = |s: &str| s.replace(summed, &letter.to_string());
            let (q_letters, q) = framed_by(query, letter, &named(q_letters), *q);
            let (k_letters, k) = framed_by(key, letter, &named(k_letters), *k);
            operands.extend([q, k]);
            letters.push((q_letters, k_letters));
        }
        if !self.value.chars().all(|l| l == key || l == result || heads.contains(l)) {
            return None;
        }
        let (value_letters, value) = framed_by(key, result, &self.value, value);
        operands.push(value);
        let own = format!("{query}{heads}{result}");
        let rows = if mask.is_some() { Visible::Causal } else { Visible::All };
        let sets = vec![RowSet { terms: letters, value: value_letters, rows }];
        let attention = Attention { sets, output: own.clone(), scale: Real(scale), sink: false };
        let attention = Term::new(attention, operands);
        if own == output {
            return Some(attention);
        }
        let perm = output.chars().map(|l| own.find(l)).collect::<Option<Vec<usize>>>()?;
        Some(Term::new(Transpose { perm }, [attention]))
    }
}

/// The only element.
fn only<T>(mut items: impl Iterator<Item = T>) -> Option<T> {
    let first = items.next()?;
    items.next().is_none().then_some(first)
}

/// An operand with its axes reordered so that `first` and `last` frame the others.
fn framed_by(first: char, last: char, letters: &str, operand: V) -> (String, Term) {
    let inner: String = letters.chars().filter(|l| *l != first && *l != last).collect();
    let wanted = format!("{first}{inner}{last}");
    if wanted == letters {
        return (wanted, Term::Old(operand));
    }
    let perm = wanted.chars().map(|l| letters.find(l).expect("the same letters")).collect();
    (wanted, Term::new(Transpose { perm }, [Term::Old(operand)]))
}

/// What is under a mask, or the value itself.
fn masks(site: &dyn Site, x: V) -> Vec<(Option<CausalMask>, V)> {
    let mut out = vec![(None, x)];
    for (op, args) in site.forms(x) {
        if let Op::CausalMask(m) = op {
            out.push((Some(m.clone()), args[0]));
        }
    }
    out
}

/// What is multiplied by a constant, or the value itself.
fn scales(site: &dyn Site, x: V) -> Vec<(f64, V)> {
    let mut out = vec![(1.0, x)];
    for (op, args) in site.forms(x) {
        if !matches!(op, Op::Map(m) if m.f == MapFn::Mul) {
            continue;
        }
        for (a, b) in [(0, 1), (1, 0)] {
            out.extend(repeated(site, args[b]).map(|(scale, _)| (scale, args[a])));
        }
    }
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
