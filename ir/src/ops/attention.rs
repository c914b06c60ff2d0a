//! `attention %q, %k, %v, .. {sets = ["tha,sa thb,sb sa causal"], output = "tha", scale = 0.1}`: softmax-weighted
//! values without a score matrix in memory. Made by passes only.
//!
//! One softmax runs over the rows of several *sets*. A set is written as its score terms, its value and what a query
//! sees of it. Scores are a sum of terms, each a contraction of a query with keys: `Σ_terms Σ q·k · scale`, over the
//! query letter (the first of the output), the head letters (those of the output but the first and last), and the
//! set's key letter (the first of its keys and value). Keys and values may lack some or all head letters: then heads
//! share them. That covers multi-head, grouped-query and latent attention in one form. Sets are independent of each
//! other: they may use the same key letter for different numbers of rows, and may have no rows.
//!
//! Operands stand in this order: for every set its query/key pairs, its value, then what its visibility needs.
//!
//! | visibility | operands | row `s` is seen by query `t` |
//! |---|---|---|
//! | `all` | | always |
//! | `causal` | | up to the query's own row, queries being the newest rows (see `causal_mask`) |
//! | `interval:t,th` | `lo`, `hi` (integers with those letters) | where `lo ≤ s < hi` |
//! | `masked:ts` | truth values | where true |
//! | `selected:tj` | row numbers | once for each place `j` that holds `s` |
//!
//! In a selection the last letter runs over its places, whose number has nothing to do with the number of rows; a
//! number that is no row's, -1 say, stands for nothing. Rows are read by number and never gathered in memory.
//!
//! With `sink = true` a last operand (letters: the heads) joins each row's maximum and sum, unscaled, and no value. A
//! query that sees nothing gives zeros. Rows that are not seen do not count, whatever they hold; only the
//! decomposition multiplies them with zero, so it differs where they hold infinities or NaN.
//!
//! - C1: there is a set and each has a term; as many operands as are listed above; letters as for `contract`.
//! - C2: all queries start with the query letter, a set's keys and value with its key letter, intervals, masks and
//!   selections with the query letter; masks and selections end with the key letter.
//! - C3: all other letters of an operand are head letters of the output, in its order where they say what is seen;
//!   then comes the term's own summed letter, or for values the output's last.
//! - C4: sizes agree. Queries, keys, values and sinks are reals, sinks f32, masks truth values, bounds and selections
//!   integers.

mod rows;

use super::*;
use crate::attr::Real;
use crate::ops::contract::Contract;
use crate::ops::map::MapFn;
use crate::ops::softmax::NOTHING;
use crate::tensor::position;
use hadal_types::{DType, Dim};
use rows::{Query, Rows};
use std::collections::BTreeMap;

/// See the module documentation.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Attention {
    /// What the softmax runs over.
    pub sets: Vec<RowSet>,
    /// Letters of the result.
    pub output: String,
    /// Multiplies the scores.
    pub scale: Real,
    /// Whether the last operand is a score of each head that stands for no row.
    pub sink: bool,
}

/// Rows with keys and values of their own.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RowSet {
    /// Letters of each query and key.
    pub terms: Vec<(String, String)>,
    /// Letters of the value.
    pub value: String,
    /// What a query sees.
    pub rows: Visible,
}

/// Which rows of a set a query sees; with the letters of the operands that say so.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Visible {
    /// Every row.
    All,
    /// Rows up to the query's own.
    Causal,
    /// From the first bound to below the second.
    Interval(String, String),
    /// Those for which a truth value says so.
    Masked(String),
    /// Those whose numbers are listed.
    Selected(String),
}

/// What an operand is to its set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Multiplied with keys.
    Query,
    /// One for each row.
    Key,
    /// What is weighted and summed.
    Value,
    /// The first row seen.
    Low,
    /// The end of the rows seen.
    High,
    /// Whether a row is seen.
    Mask,
    /// Numbers of rows seen.
    Selection,
    /// The score that stands for no row.
    Sink,
}

/// One operand: the position of its set, its role in it, its letters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Operand<'a> {
    /// The set; of sinks, the number of sets.
    pub set: usize,
    /// What it is.
    pub role: Role,
    /// Its letters.
    pub letters: &'a str,
}

impl Visible {
    fn operands(&self) -> Vec<(Role, &str)> {
        match self {
            Visible::All | Visible::Causal => vec![],
            Visible::Interval(lo, hi) => vec![(Role::Low, lo), (Role::High, hi)],
            Visible::Masked(l) => vec![(Role::Mask, l)],
            Visible::Selected(l) => vec![(Role::Selection, l)],
        }
    }

    /// The same with other letters.
    pub fn renamed(&self, rename: impl Fn(&str) -> String) -> Visible {
        match self {
            Visible::All => Visible::All,
            Visible::Causal => Visible::Causal,
            Visible::Interval(lo, hi) => Visible::Interval(rename(lo), rename(hi)),
            Visible::Masked(l) => Visible::Masked(rename(l)),
            Visible::Selected(l) => Visible::Selected(rename(l)),
        }
    }
}

impl fmt::Display for Visible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Visible::All => f.write_str("all"),
            Visible::Causal => f.write_str("causal"),
            Visible::Interval(lo, hi) => write!(f, "interval:{lo},{hi}"),
            Visible::Masked(l) => write!(f, "masked:{l}"),
            Visible::Selected(l) => write!(f, "selected:{l}"),
        }
    }
}

impl fmt::Display for RowSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.terms.iter().try_for_each(|(q, k)| write!(f, "{q},{k} "))?;
        write!(f, "{} {}", self.value, self.rows)
    }
}

impl std::str::FromStr for RowSet {
    type Err = ();

    fn from_str(text: &str) -> Result<RowSet, ()> {
        let letters = |s: &str| match !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphabetic()) {
            true => Ok(s.to_owned()),
            false => Err(()),
        };
        let pair = |s: &str| s.split_once(',').ok_or(()).and_then(|(a, b)| Ok((letters(a)?, letters(b)?)));
        let words: Vec<&str> = text.split(' ').collect();
        let [terms @ .., value, rows] = &words[..] else { return Err(()) };
        let (kind, given) = rows.split_once(':').map_or((*rows, None), |(kind, given)| (kind, Some(given)));
        let rows = match (kind, given) {
            ("all", None) => Visible::All,
            ("causal", None) => Visible::Causal,
            ("interval", Some(given)) => pair(given).map(|(lo, hi)| Visible::Interval(lo, hi))?,
            ("masked", Some(given)) => Visible::Masked(letters(given)?),
            ("selected", Some(given)) => Visible::Selected(letters(given)?),
            _ => return Err(()),
        };
        let terms = terms.iter().map(|t| pair(t)).collect::<Result<_, ()>>()?;
        Ok(RowSet { terms, value: letters(value)?, rows })
    }
}

impl RowSet {
    /// The letter of rows, or of a selection's places.
    pub fn key(&self) -> &str {
        &self.value[..1]
    }

    /// How many operands the set has.
    pub fn arity(&self) -> usize {
        2 * self.terms.len() + 1 + self.rows.operands().len()
    }
}

impl Attention {
    /// The letter of queries.
    pub fn query(&self) -> &str {
        &self.output[..1]
    }

    /// The head letters, in the output's order.
    pub fn heads(&self) -> &str {
        &self.output[1..self.output.len() - 1]
    }

    /// What each operand is, in order.
    pub fn operands(&self) -> Vec<Operand<'_>> {
        let mut out = Vec::new();
        for (set, rows) in self.sets.iter().enumerate() {
            for (q, k) in &rows.terms {
                out.push(Operand { set, role: Role::Query, letters: q });
                out.push(Operand { set, role: Role::Key, letters: k });
            }
            out.push(Operand { set, role: Role::Value, letters: &rows.value });
            out.extend(rows.rows.operands().into_iter().map(|(role, letters)| Operand { set, role, letters }));
        }
        if self.sink {
            out.push(Operand { set: self.sets.len(), role: Role::Sink, letters: self.heads() });
        }
        out
    }

    /// The operands of each set, of all that there are.
    pub fn split<'a, T>(&self, mut args: &'a [T]) -> Vec<&'a [T]> {
        let parts = self.sets.iter().map(|set| {
            let (own, rest) = args.split_at(set.arity());
            args = rest;
            own
        });
        parts.collect()
    }

    /// The same with other letters.
    pub fn renamed(&self, rename: impl Fn(&str) -> String) -> Attention {
        let set = |s: &RowSet| RowSet {
            terms: s.terms.iter().map(|(q, k)| (rename(q), rename(k))).collect(),
            value: rename(&s.value),
            rows: s.rows.renamed(&rename),
        };
        Attention { sets: self.sets.iter().map(set).collect(), output: rename(&self.output), ..self.clone() }
    }

    /// Letters of a set's scores: heads, query, key.
    fn scores(&self, set: &RowSet) -> String {
        format!("{}{}{}", self.heads(), self.query(), set.key())
    }
}

/// The attribute `sets`, for errors.
fn wrong_set(found: &str) -> AttrError {
    let expected = "terms, a value and a visibility, such as `tha,sa sa causal`";
    AttrError::Wrong { name: "sets", expected, found: format!("{found:?}") }
}

impl OpDef for Attention {
    const MNEMONICS: &'static [&'static str] = &["attention"];
    const TIER: Tier = Tier::Fused;

    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        let mut attrs = vec![
            ("sets", Attr::List(self.sets.iter().map(|s| Attr::Str(s.to_string())).collect())),
            ("output", Attr::Str(self.output.clone())),
            ("scale", self.scale.into()),
        ];
        if self.sink {
            attrs.push(("sink", self.sink.into()));
        }
        attrs
    }

    fn from_attrs(_: &str, attrs: &mut Attrs) -> Result<Self, AttrError> {
        let texts: Vec<String> = attrs.get("sets")?;
        let sets = texts.iter().map(|s| s.parse().map_err(|()| wrong_set(s))).collect::<Result<_, _>>()?;
        let output: String = attrs.get("output")?;
        if output.len() < 2 || !output.bytes().all(|b| b.is_ascii_alphabetic()) {
            return Err(AttrError::Wrong { name: "output", expected: "letters", found: format!("{output:?}") });
        }
        Ok(Attention { sets, output, scale: attrs.get("scale")?, sink: attrs.get_or("sink", false)? })
    }

    fn infer(&self, args: &[TensorType]) -> Result<TensorType, Violation> {
        ensure!(!self.sets.is_empty() && self.sets.iter().all(|s| !s.terms.is_empty()), "C1", "a set has no terms");
        let operands = self.operands();
        ensure!(args.len() == operands.len(), "C1", "{} operands, {} needed", args.len(), operands.len());
        let (heads, last) = (self.heads(), &self.output[self.output.len() - 1..]);
        let distinct = self.output.chars().enumerate().all(|(i, c)| !self.output[..i].contains(c));
        ensure!(distinct, "C2", "`{}` has a letter twice", self.output);
        let mut sizes: BTreeMap<(Option<usize>, char), Dim> = BTreeMap::new();
        for (i, (operand, ty)) in operands.iter().zip(args).enumerate() {
            let Operand { role, letters, set } = *operand;
            ensure!(letters.len() == ty.rank(), "C1", "`{letters}` for {ty}");
            let fits = match role {
                Role::Query | Role::Key | Role::Value => ty.dtype.is_float(),
                Role::Low | Role::High | Role::Selection => ty.dtype.is_int(),
                Role::Mask => ty.dtype == DType::Bool,
                Role::Sink => ty.dtype == DType::F32,
            };
            ensure!(fits, "C4", "{} as {role:?}", ty.dtype);
            let key = self.sets.get(set).map_or("", RowSet::key);
            let summed = match role {
                Role::Query => &letters[letters.len() - 1..],
                Role::Key => {
                    let query = operands[i - 1].letters;
                    &query[query.len() - 1..]
                }
                _ => last,
            };
            // What the letters begin and end with; the rest are heads.
            let (first, end) = match role {
                Role::Query => (self.query(), summed),
                Role::Key | Role::Value => (key, summed),
                Role::Low | Role::High => (self.query(), ""),
                Role::Mask | Role::Selection => (self.query(), key),
                Role::Sink => ("", ""),
            };
            ensure!(key != self.query() && !self.output.contains(key) || key.is_empty(), "C2", "key letter `{key}`");
            let framed =
                letters.len() >= first.len() + end.len() && letters.starts_with(first) && letters.ends_with(end);
            ensure!(framed, "C2", "`{letters}` should run from `{first}` to `{end}`");
            let clash =
                matches!(role, Role::Query) && (heads.contains(summed) || summed == self.query() || summed == key);
            ensure!(!clash, "C3", "`{letters}` has no letter of its own to sum over");
            let inner = &letters[first.len()..letters.len() - end.len()];
            let from_heads = inner.chars().enumerate().all(|(i, c)| heads.contains(c) && !inner[..i].contains(c));
            ensure!(from_heads, "C3", "`{letters}` has letters besides the heads `{heads}`");
            let ordered = matches!(role, Role::Query | Role::Key | Role::Value) || {
                let places: Vec<Option<usize>> = inner.chars().map(|c| heads.find(c)).collect();
                places.is_sorted()
            };
            ensure!(ordered, "C3", "`{letters}` has heads in another order than `{}`", self.output);
            let by_number = matches!(self.sets.get(set).map(|s| &s.rows), Some(Visible::Selected(_)));
            for (c, d) in letters.chars().zip(&ty.shape) {
                // Key letters belong to their set, those of selected rows are not those of places, and summed letters
                // belong to their term.
                let is_summed = matches!(role, Role::Query | Role::Key) && summed.contains(c);
                let scope = if is_summed {
                    Some(usize::MAX - (i - usize::from(role == Role::Key)))
                } else if key.contains(c) {
                    Some(2 * set + usize::from(by_number && role == Role::Selection))
                } else {
                    None
                };
                let known = sizes.entry((scope, c)).or_insert_with(|| d.clone());
                ensure!(known == d, "C4", "`{c}` is {known} and {d}");
            }
        }
        for pair in operands.windows(2).filter(|w| w[1].role == Role::Key) {
            let all = heads.chars().all(|h| pair[0].letters.contains(h) || pair[1].letters.contains(h));
            ensure!(all, "C3", "`{},{}` lacks some of the heads `{heads}`", pair[0].letters, pair[1].letters);
        }
        let shape: Option<Vec<Dim>> = self.output.chars().map(|c| sizes.get(&(None, c)).cloned()).collect();
        // The output's last letter is that of the value, and of no other.
        let Some(shape) = shape else {
            return Err(Violation { constraint: "C3", message: format!("`{}` has an unknown letter", self.output) });
        };
        Ok(TensorType { dtype: DType::F32, shape })
    }

    fn eval(&self, args: &[&Tensor], out: &TensorType, shape: &[usize], _: &Bindings) -> Tensor {
        let sets: Vec<Rows<'_>> =
            self.sets.iter().zip(self.split(args)).map(|(set, args)| Rows { set, args }).collect();
        let (last, width) = (shape.len() - 1, shape[shape.len() - 1]);
        let mut values = vec![0.0; shape.iter().product()];
        let mut at = Vec::new();
        for (row, result) in values.chunks_mut(width.max(1)).enumerate() {
            crate::tensor::coordinates(&shape[..last], row, &mut at);
            let query = Query {
                at: at[0],
                of: shape[0],
                places: self.output.chars().zip(at.iter().copied()).collect::<BTreeMap<char, usize>>(),
            };
            let seen = sets.iter().flat_map(|set| set.seen(&query).into_iter().map(move |s| (set, s)));
            let seen: Vec<_> = seen.map(|(set, s)| (set, s, set.score(&query, s) * self.scale.0)).collect();
            let sink = args.last().filter(|_| self.sink).map(|t| t.at(position(&t.shape, &at[1..])));
            // As in `softmax`.
            let max = seen.iter().map(|(.., score)| *score).chain(sink).fold(NOTHING, f64::max);
            let weight = |score: f64| libm::exp(score - max);
            let sum: f64 = seen.iter().map(|(.., score)| weight(*score)).chain(sink.map(weight)).sum();
            let sum = if 1.0 > sum { 1.0 } else { sum };
            for (set, s, score) in &seen {
                let weight = weight(*score) / sum;
                result.iter_mut().zip(set.value(&query, *s)).for_each(|(y, v)| *y += weight * v);
            }
        }
        Tensor::real(out.dtype, shape, values)
    }

    fn decompose(&self, b: &mut Builder, args: &[ValueId]) -> Option<ValueId> {
        let parts = self.split(args);
        let mut scores = Vec::new();
        let mut values = Vec::new();
        for (set, args) in self.sets.iter().zip(&parts) {
            let (s, v) = self.set_scores(b, set, args);
            scores.push(s);
            values.push(v);
        }
        let axis = self.heads().len() + 1;
        let sizes: Vec<Dim> = scores.iter().map(|s| b.shape(*s)[axis].clone()).collect();
        if self.sink {
            let mut shape = b.shape(scores[0]).to_vec();
            shape[axis] = 1.into();
            let heads: Vec<usize> = (0..axis - 1).collect();
            scores.push(b.broadcast(*args.last()?, &shape, &heads));
        }
        let joined = if scores.len() == 1 { scores[0] } else { b.concat(&scores, axis) };
        let weights = b.op(Softmax, &[joined]);
        let mut start = Dim::from(0);
        let mut sum = None;
        for ((set, size), (value, letters)) in self.sets.iter().zip(sizes).zip(values) {
            let own = if scores.len() == 1 { weights } else { b.slice(weights, axis, start.clone(), size.clone(), 1) };
            let weighted = Contract { inputs: vec![self.scores(set), letters], output: self.output.clone() };
            let part = b.op(weighted, &[own, value]);
            sum = Some(match sum {
                None => part,
                Some(sum) => b.add(sum, part),
            });
            start = start + size;
        }
        sum
    }

    fn flops(&self, args: &[TensorType], out: &TensorType, bindings: &Bindings) -> f64 {
        let size = |d: &Dim| d.eval(bindings).unwrap_or(0).max(0) as f64;
        let queries: f64 = out.shape[..out.rank() - 1].iter().map(size).product();
        let sets = self.sets.iter().zip(self.split(args)).map(|(set, args)| {
            let (pairs, rest) = args.split_at(2 * set.terms.len());
            let rows = match &set.rows {
                Visible::Selected(_) => rest[1].shape.last(),
                _ => rest[0].shape.first(),
            };
            let summed: f64 = pairs.iter().step_by(2).filter_map(|q| q.shape.last()).map(size).sum();
            let value = out.shape.last().map_or(0.0, size);
            // Six for mask and softmax; the scale may as well be in the queries.
            queries * rows.map_or(0.0, size) * (2.0 * summed + 6.0 + 2.0 * value)
        });
        sets.sum()
    }
}

impl Attention {
    /// The scaled scores of a set, hidden rows at -∞; and its value with the letters it then has.
    fn set_scores(&self, b: &mut Builder, set: &RowSet, args: &[ValueId]) -> (ValueId, (ValueId, String)) {
        let (pairs, rest) = args.split_at(2 * set.terms.len());
        let selection = match &set.rows {
            Visible::Selected(letters) => Some((rest[1], letters.as_str())),
            _ => None,
        };
        let rows = |b: &mut Builder, x: ValueId, letters: &str| match selection {
            Some((ids, chosen)) => gathered(b, x, letters, ids, chosen),
            None => (x, letters.to_owned()),
        };
        let mut scores = None;
        for ((q, k), args) in set.terms.iter().zip(pairs.chunks(2)) {
            let (keys, k) = rows(b, args[1], k);
            let term = b.op(Contract { inputs: vec![q.clone(), k], output: self.scores(set) }, &[args[0], keys]);
            scores = Some(match scores {
                None => term,
                Some(sum) => b.add(sum, term),
            });
        }
        let scores = b.mul_scalar(scores.expect("a set has a term"), self.scale.0);
        let n = self.heads().len();
        let shape = b.shape(scores).to_vec();
        let spread = |b: &mut Builder, x: ValueId, letters: &str| {
            let places: Vec<usize> = letters.chars().map(|c| self.scores(set).find(c).expect("a letter")).collect();
            // Letters come as query, heads, key; broadcast wants them ascending.
            let mut order: Vec<usize> = (0..places.len()).collect();
            order.sort_by_key(|i| places[*i]);
            let x = if order.is_sorted() { x } else { b.op(Transpose { perm: order.clone() }, &[x]) };
            let dims: Vec<usize> = order.iter().map(|i| places[*i]).collect();
            b.broadcast(x, &shape, &dims)
        };
        let visible = match &set.rows {
            Visible::All => None,
            Visible::Causal => {
                return (b.op(CausalMask { query: n, key: n + 1 }, &[scores]), (rest[0], set.value.clone()));
            }
            Visible::Masked(letters) => Some(spread(b, rest[1], letters)),
            Visible::Interval(lo, hi) => {
                let place = b.iota(shape[n + 1].clone(), 0);
                let (lo_ty, hi_ty) = (b.ty(rest[1]).dtype, b.ty(rest[2]).dtype);
                let (for_lo, for_hi) = (b.cast(place, lo_ty), b.cast(place, hi_ty));
                let (for_lo, for_hi) = (b.broadcast(for_lo, &shape, &[n + 1]), b.broadcast(for_hi, &shape, &[n + 1]));
                let (lo, hi) = (spread(b, rest[1], lo), spread(b, rest[2], hi));
                let (after, before) = (b.map(MapFn::Le, &[lo, for_lo]), b.map(MapFn::Lt, &[for_hi, hi]));
                Some(b.map(MapFn::And, &[after, before]))
            }
            Visible::Selected(letters) => {
                let rows = b.shape(rest[0])[0].clone();
                let ids = spread(b, rest[1], letters);
                let ids = b.cast(ids, DType::I64);
                let first = b.scalar_like(ids, 0.0);
                let end = b.iota(1, rows);
                let end = b.cast(end, DType::I64);
                let end = b.reshape(end, &[]);
                let end = b.broadcast(end, &shape, &[]);
                let (after, before) = (b.map(MapFn::Le, &[first, ids]), b.map(MapFn::Lt, &[ids, end]));
                Some(b.map(MapFn::And, &[after, before]))
            }
        };
        let scores = match visible {
            None => scores,
            Some(visible) => {
                let hidden = b.scalar_like(scores, f64::NEG_INFINITY);
                b.map(MapFn::Select, &[visible, scores, hidden])
            }
        };
        let value = rows(b, rest[0], &set.value);
        (scores, value)
    }
}

/// The rows of `x` that a selection lists, with their letters: those of the selection, then what `x` has besides.
fn gathered(b: &mut Builder, x: ValueId, letters: &str, ids: ValueId, chosen: &str) -> (ValueId, String) {
    // Letters that both have go first.
    let common: String = chosen.chars().filter(|c| letters[1..].contains(*c) && !chosen.ends_with(*c)).collect();
    let order = |letters: &str, then: &str| -> (Vec<usize>, String) {
        let rest: String = then.chars().filter(|c| !common.contains(*c)).collect();
        let wanted = format!("{common}{rest}");
        (wanted.chars().map(|c| letters.find(c).expect("the same letters")).collect(), wanted)
    };
    let turned = |b: &mut Builder, x: ValueId, perm: Vec<usize>| match perm.is_sorted() {
        true => x,
        false => b.op(Transpose { perm }, &[x]),
    };
    let (of_x, x_letters) = order(letters, letters);
    let (of_ids, id_letters) = order(chosen, chosen);
    let (x, ids) = (turned(b, x, of_x), turned(b, ids, of_ids));
    let n = common.len();
    let rows = b.gather(x, ids, n, n);
    (rows, format!("{id_letters}{}", &x_letters[n + 1..]))
}

#[cfg(test)]
mod tests;
