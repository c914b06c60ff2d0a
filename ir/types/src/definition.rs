//! Symbols whose values follow from others.
//!
//! Sizes are affine, so that they can be compared and added without a theorem prover. What is not affine in the tokens
//! held and the new ones (rows of which there is one for every four tokens) becomes a symbol of its own with a
//! definition.

use crate::{Bindings, Dim, Sym};
use serde::{Deserialize, Serialize};
use std::fmt;

/// How a symbol's value follows from `P`, `T` and symbols defined before it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Definition {
    /// `⌊of / by⌋`.
    Quotient {
        /// What is divided.
        of: Dim,
        /// By how much; at least 1.
        by: i64,
    },
    /// By how much a quotient of `P` grows in this call: its value at `P + T`, less that at `P`.
    Growth {
        /// The quotient.
        of: Sym,
    },
}

/// Definitions in order: each mentions only symbols that are free or defined before it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Definitions(Vec<(Sym, Definition)>);

/// Why a definition does not make sense where it stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Misdefined {
    /// Defined twice, or `P` or `T`.
    Twice,
    /// The divisor is below 1.
    Divisor,
    /// A growth of what is not a quotient of `P` alone with a coefficient that is not negative.
    Growth,
    /// It mentions a symbol that is defined later, or itself.
    Order,
    /// One more than there may be.
    Many,
}

/// Definitions there may be; models have one or two for each rate at which they compress.
const MAX: usize = 64;

impl fmt::Display for Misdefined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Misdefined::Twice => "is defined twice, or is the caller's to give",
            Misdefined::Divisor => "is divided by less than 1",
            Misdefined::Growth => "is the growth of what is not a quotient of P",
            Misdefined::Order => "is defined by a symbol that is defined after it",
            Misdefined::Many => "is one definition too many",
        })
    }
}

impl Definitions {
    /// None.
    pub const fn new() -> Definitions {
        Definitions(Vec::new())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each symbol with its definition, in order.
    pub fn iter(&self) -> impl Iterator<Item = &(Sym, Definition)> {
        self.0.iter()
    }

    /// How `sym` is defined, if it is.
    pub fn get(&self, sym: Sym) -> Option<&Definition> {
        self.0.iter().find(|(s, _)| *s == sym).map(|(_, d)| d)
    }

    /// Whether `sym` is defined, and so not the caller's to give.
    pub fn has(&self, sym: Sym) -> bool {
        self.get(sym).is_some()
    }

    /// Adds one that holds for what is there. The same one twice is there once.
    pub fn add(&mut self, sym: Sym, definition: Definition) -> Result<(), Misdefined> {
        if self.get(sym) == Some(&definition) {
            return Ok(());
        }
        self.0.push((sym, definition));
        let fault = self.fault(self.0.len() - 1);
        if fault.is_some() {
            self.0.pop();
        }
        fault.map_or(Ok(()), Err)
    }

    /// What is wrong with the first definition that something is wrong with.
    pub fn check(&self) -> Result<(), (Sym, Misdefined)> {
        (0..self.0.len().min(MAX + 1)).try_for_each(|i| self.fault(i).map_or(Ok(()), |fault| Err((self.0[i].0, fault))))
    }

    fn fault(&self, index: usize) -> Option<Misdefined> {
        let (sym, definition) = &self.0[index];
        if index >= MAX {
            return Some(Misdefined::Many);
        }
        if [Sym::P, Sym::T].contains(sym) || self.0[..index].iter().any(|(s, _)| s == sym) {
            return Some(Misdefined::Twice);
        }
        match definition {
            Definition::Quotient { by, .. } if *by < 1 => Some(Misdefined::Divisor),
            Definition::Quotient { of, .. } => {
                let later = |s: &Sym| self.0[index..].iter().any(|(l, _)| l == s);
                of.terms().iter().any(|(s, _)| later(s)).then_some(Misdefined::Order)
            }
            Definition::Growth { of } => {
                let quotient = self.0[..index].iter().find(|(s, _)| s == of).map(|(_, d)| d);
                let alone = |d: &Dim| matches!(d.terms(), [(s, k)] if *s == Sym::P && *k > 0);
                let ok = matches!(quotient, Some(Definition::Quotient { of, .. }) if alone(of));
                (!ok).then_some(Misdefined::Growth)
            }
        }
    }

    /// By what `sym` grows in a call where it counts something: `T` where it is `P`, the symbol that is its growth
    /// where it is a quotient.
    pub fn growth(&self, sym: Sym) -> Option<Sym> {
        if sym == Sym::P {
            return Some(Sym::T);
        }
        self.0.iter().find(|(_, d)| matches!(d, Definition::Growth { of } if *of == sym)).map(|(s, _)| *s)
    }

    /// By how much `size` grows with every token held, on average.
    pub fn per_token(&self, size: &Dim) -> f64 {
        let mut rates = std::collections::BTreeMap::from([(Sym::P, 1.0)]);
        let of = |size: &Dim, rates: &std::collections::BTreeMap<Sym, f64>| -> f64 {
            size.terms().iter().map(|(sym, k)| *k as f64 * rates.get(sym).copied().unwrap_or(0.0)).sum()
        };
        // Each mentions only those before it.
        for (sym, definition) in &self.0 {
            if let Definition::Quotient { of: what, by } = definition {
                rates.insert(*sym, of(what, &rates) / *by as f64);
            }
        }
        of(size, &rates)
    }

    /// The value of every defined symbol whose own symbols have values.
    pub fn values<'a>(&'a self, bindings: &'a Bindings) -> impl Iterator<Item = (Sym, i64)> + 'a {
        let mut known = bindings.clone();
        self.0.iter().filter_map(move |(sym, definition)| {
            let value = self.value(definition, &|s| known.get(&s).copied())?;
            known.insert(*sym, value);
            Some((*sym, value))
        })
    }

    /// `bindings` with the values of all defined symbols that follow from it.
    pub fn complete(&self, bindings: &Bindings) -> Bindings {
        let mut out = bindings.clone();
        out.extend(self.values(bindings));
        out
    }

    /// The value of one definition, where `at` gives those of other symbols.
    pub fn value(&self, definition: &Definition, at: &dyn Fn(Sym) -> Option<i64>) -> Option<i64> {
        let eval = |of: &Dim, at: &dyn Fn(Sym) -> Option<i64>| {
            of.terms().iter().try_fold(of.constant(), |sum, (s, k)| Some(sum.saturating_add(k.saturating_mul(at(*s)?))))
        };
        match definition {
            Definition::Quotient { of, by } => Some(eval(of, at)?.div_euclid(*by)),
            Definition::Growth { of } => {
                let Some(Definition::Quotient { of, by }) = self.get(*of) else { return None };
                let after = |s: Sym| if s == Sym::P { Some(at(Sym::P)?.saturating_add(at(Sym::T)?)) } else { at(s) };
                Some(eval(of, &after)?.div_euclid(*by).saturating_sub(eval(of, at)?.div_euclid(*by)))
            }
        }
    }

    /// The least and the largest value of one definition, where `range` gives those of other symbols.
    pub fn range(&self, definition: &Definition, range: impl Fn(Sym) -> Option<(i64, i64)>) -> Option<(i64, i64)> {
        match definition {
            Definition::Quotient { of, by } => {
                Some((of.lower(&range)?.div_euclid(*by), of.upper(&range)?.div_euclid(*by)))
            }
            Definition::Growth { of } => {
                let Some(Definition::Quotient { of, by }) = self.get(*of) else { return None };
                let k = of.terms().iter().find(|(s, _)| *s == Sym::P).map_or(0, |(_, k)| *k);
                let (least, most) = range(Sym::T)?;
                // Between the quotient of the growth rounded down, and up.
                let most = most.saturating_mul(k).saturating_add(by - 1);
                Some((least.saturating_mul(k).div_euclid(*by), most.div_euclid(*by)))
            }
        }
    }
}

impl FromIterator<(Sym, Definition)> for Definitions {
    /// Unchecked; see [`Definitions::check`].
    fn from_iter<I: IntoIterator<Item = (Sym, Definition)>>(items: I) -> Self {
        Definitions(items.into_iter().collect())
    }
}

/// `P / 4`, `(P+T+7) / 8`, `growth C4`.
impl fmt::Display for Definition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Definition::Quotient { of, by } if of.terms().len() == 1 && of.constant() == 0 => write!(f, "{of} / {by}"),
            Definition::Quotient { of, by } => write!(f, "({of}) / {by}"),
            Definition::Growth { of } => write!(f, "growth {of}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sym(name: &str) -> Sym {
        Sym::new(name).unwrap()
    }

    fn sample() -> Definitions {
        let mut d = Definitions::new();
        let s = Dim::from(Sym::P) + Sym::T;
        d.add(sym("C"), Definition::Quotient { of: Sym::P.into(), by: 4 }).unwrap();
        d.add(sym("N"), Definition::Growth { of: sym("C") }).unwrap();
        d.add(sym("K"), Definition::Quotient { of: s + 7, by: 8 }).unwrap();
        d.add(sym("M"), Definition::Quotient { of: Dim::from(sym("C")) + sym("N") + 2, by: 3 }).unwrap();
        d
    }

    #[test]
    fn values_follow() {
        let at = |p, t| {
            let all = sample().complete(&Bindings::from([(Sym::P, p), (Sym::T, t)]));
            ["C", "N", "K", "M"].map(|s| all[&sym(s)])
        };
        assert_eq!(at(0, 1), [0, 0, 1, 0]);
        assert_eq!(at(3, 1), [0, 1, 1, 1]);
        assert_eq!(at(5, 8), [1, 2, 2, 1]);
        let part = sample().complete(&Bindings::from([(Sym::P, 9)]));
        assert_eq!((part.get(&sym("C")), part.get(&sym("N"))), (Some(&2), None));
    }

    #[test]
    fn sizes_grow_with_tokens() {
        let of = |s: &str| Dim::from(sym(s));
        let d = sample();
        assert_eq!(d.per_token(&(of("C") * 6 + Sym::P + Sym::T + 9)), 2.5);
        assert_eq!(d.per_token(&of("M")), 0.25 / 3.0);
        assert_eq!(d.per_token(&of("K")), 0.125);
        assert_eq!(d.per_token(&Dim::from(128)), 0.0);
    }

    #[test]
    fn values_stay_in_their_ranges() {
        let d = sample();
        let (ps, ts) = ((3, 21), (2, 9));
        let mut ranges = std::collections::BTreeMap::from([(Sym::P, ps), (Sym::T, ts)]);
        for (s, definition) in d.iter() {
            let range = d.range(definition, |s| ranges.get(&s).copied()).unwrap();
            ranges.insert(*s, range);
        }
        for (p, t) in (ps.0..=ps.1).flat_map(|p| (ts.0..=ts.1).map(move |t| (p, t))) {
            for (s, v) in d.complete(&Bindings::from([(Sym::P, p), (Sym::T, t)])) {
                assert!((ranges[&s].0..=ranges[&s].1).contains(&v), "{s} = {v} is not in {:?}", ranges[&s]);
            }
        }
        assert_eq!(ranges[&sym("N")], (0, 3));
    }

    #[test]
    fn senseless_ones_are_refused() {
        let of = |s: &str| Dim::from(sym(s));
        let mut d = sample();
        let quotient = |of: Dim, by| Definition::Quotient { of, by };
        assert_eq!(d.add(sym("C"), quotient(of("P"), 4)), Ok(()));
        assert_eq!(d.add(sym("C"), quotient(of("P"), 5)), Err(Misdefined::Twice));
        assert_eq!(d.add(Sym::T, quotient(of("P"), 5)), Err(Misdefined::Twice));
        assert_eq!(d.add(sym("X"), quotient(of("P"), 0)), Err(Misdefined::Divisor));
        assert_eq!(d.add(sym("X"), quotient(of("X"), 2)), Err(Misdefined::Order));
        assert_eq!(d.add(sym("X"), Definition::Growth { of: sym("K") }), Err(Misdefined::Growth));
        assert_eq!(d.add(sym("X"), Definition::Growth { of: sym("N") }), Err(Misdefined::Growth));
        assert_eq!(d, sample());
        let many = (0..70).map(|i| (sym(&format!("X{i}")), quotient(of("P"), 2)));
        assert_eq!(many.collect::<Definitions>().check(), Err((sym("X64"), Misdefined::Many)));
        let wrong: Definitions =
            [(sym("X"), quotient(of("Y"), 2)), (sym("Y"), quotient(of("P"), 2))].into_iter().collect();
        assert_eq!(wrong.check(), Err((sym("X"), Misdefined::Order)));
    }
}
