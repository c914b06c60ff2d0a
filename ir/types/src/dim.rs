//! Symbolic sizes: affine forms over named symbols.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Add, Mul, Sub};

/// A named size known only when a program runs: `T` new tokens, `P` tokens already held in the states, `B` sequences.
///
/// At most eight ASCII letters, digits or underscores, beginning with a letter, held inline so that it is `Copy`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Sym([u8; 8]);

impl Sym {
    /// New tokens of this call.
    pub const T: Sym = Sym(*b"T\0\0\0\0\0\0\0");
    /// Tokens already in the states before this call.
    pub const P: Sym = Sym(*b"P\0\0\0\0\0\0\0");
    /// Sequences in a batch.
    pub const B: Sym = Sym(*b"B\0\0\0\0\0\0\0");

    /// The symbol called `name`, or `None` where the name is empty, too long or has other characters.
    pub fn new(name: &str) -> Option<Sym> {
        let bytes = name.as_bytes();
        let ok = (1..=8).contains(&bytes.len())
            && bytes[0].is_ascii_alphabetic()
            && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_');
        let mut out = [0; 8];
        ok.then(|| {
            out[..bytes.len()].copy_from_slice(bytes);
            Sym(out)
        })
    }

    /// The name.
    pub fn name(&self) -> &str {
        let len = self.0.iter().position(|b| *b == 0).unwrap_or(8);
        std::str::from_utf8(&self.0[..len]).unwrap_or("?")
    }
}

impl fmt::Display for Sym {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Debug for Sym {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Values of symbols.
pub type Bindings = BTreeMap<Sym, i64>;

/// `constant + Σ coefficient · symbol`, kept sorted with no zero coefficients, so equal forms compare equal.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Dim {
    constant: i64,
    terms: Vec<(Sym, i64)>,
}

impl Dim {
    /// The constant term.
    pub fn constant(&self) -> i64 {
        self.constant
    }

    /// Symbols and their coefficients, sorted by symbol, none zero.
    pub fn terms(&self) -> &[(Sym, i64)] {
        &self.terms
    }

    /// The value, where no symbol is involved.
    pub fn as_const(&self) -> Option<i64> {
        self.terms.is_empty().then_some(self.constant)
    }

    /// Whether the form is the constant `n`.
    pub fn is(&self, n: i64) -> bool {
        self.as_const() == Some(n)
    }

    /// The value under `bindings`; `Err` names a symbol that has none. Saturates rather than overflows.
    pub fn eval(&self, bindings: &Bindings) -> Result<i64, Sym> {
        self.terms.iter().try_fold(self.constant, |sum, (sym, k)| {
            let value = bindings.get(sym).ok_or(*sym)?;
            Ok(sum.saturating_add(k.saturating_mul(*value)))
        })
    }

    /// The form with the symbols in `bindings` replaced by their values.
    pub fn substitute(&self, bindings: &Bindings) -> Dim {
        self.terms.iter().fold(Dim::from(self.constant), |sum, (sym, k)| match bindings.get(sym) {
            Some(value) => sum + k.saturating_mul(*value),
            None => sum + Dim::from(*sym) * *k,
        })
    }

    /// The largest value, where `range` gives the least and the largest value of each symbol; `None` where one has
    /// none.
    pub fn upper(&self, range: impl Fn(Sym) -> Option<(i64, i64)>) -> Option<i64> {
        self.extreme(|sym, k| range(sym).map(|(low, high)| if k > 0 { high } else { low }))
    }

    /// The least value, likewise.
    pub fn lower(&self, range: impl Fn(Sym) -> Option<(i64, i64)>) -> Option<i64> {
        self.extreme(|sym, k| range(sym).map(|(low, high)| if k > 0 { low } else { high }))
    }

    fn extreme(&self, at: impl Fn(Sym, i64) -> Option<i64>) -> Option<i64> {
        self.terms
            .iter()
            .try_fold(self.constant, |sum, (sym, k)| Some(sum.saturating_add(k.saturating_mul(at(*sym, *k)?))))
    }

    /// `self / n` where every coefficient is divisible and no quotient overflows, else `None`.
    pub fn div_exact(&self, n: i64) -> Option<Dim> {
        let div = |k: i64| if k.checked_rem(n)? == 0 { k.checked_div(n) } else { None };
        let terms: Option<_> = self.terms.iter().map(|(s, k)| Some((*s, div(*k)?))).collect();
        Some(Dim { constant: div(self.constant)?, terms: terms? })
    }

    /// The product, where at most one side has symbols.
    pub fn checked_mul(&self, other: &Dim) -> Option<Dim> {
        match (self.as_const(), other.as_const()) {
            (Some(k), _) => Some(other.clone() * k),
            (_, Some(k)) => Some(self.clone() * k),
            _ => None,
        }
    }
}

impl From<i64> for Dim {
    fn from(constant: i64) -> Self {
        Dim { constant, terms: Vec::new() }
    }
}

impl From<i32> for Dim {
    fn from(n: i32) -> Self {
        Dim::from(n as i64)
    }
}

impl From<usize> for Dim {
    fn from(n: usize) -> Self {
        Dim::from(i64::try_from(n).unwrap_or(i64::MAX))
    }
}

impl From<Sym> for Dim {
    fn from(sym: Sym) -> Self {
        Dim { constant: 0, terms: vec![(sym, 1)] }
    }
}

impl<D: Into<Dim>> Add<D> for Dim {
    type Output = Dim;
    fn add(self, other: D) -> Dim {
        let other = other.into();
        let mut terms: BTreeMap<Sym, i64> = self.terms.into_iter().collect();
        for (sym, k) in other.terms {
            let sum = terms.entry(sym).or_default();
            *sum = sum.saturating_add(k);
        }
        Dim {
            constant: self.constant.saturating_add(other.constant),
            terms: terms.into_iter().filter(|(_, k)| *k != 0).collect(),
        }
    }
}

impl<D: Into<Dim>> Sub<D> for Dim {
    type Output = Dim;
    fn sub(self, other: D) -> Dim {
        self + other.into() * -1
    }
}

impl Mul<i64> for Dim {
    type Output = Dim;
    fn mul(self, k: i64) -> Dim {
        if k == 0 {
            return Dim::default();
        }
        Dim {
            constant: self.constant.saturating_mul(k),
            terms: self.terms.into_iter().map(|(s, c)| (s, c.saturating_mul(k))).collect(),
        }
    }
}

/// Prints `P+T`, `2*T+1`, `128`; symbols first, in order of name.
impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.terms.is_empty() {
            return write!(f, "{}", self.constant);
        }
        for (i, (sym, k)) in self.terms.iter().enumerate() {
            let sign = match (i, *k < 0) {
                (0, false) => "",
                (_, false) => "+",
                (_, true) => "-",
            };
            match k.unsigned_abs() {
                1 => write!(f, "{sign}{sym}")?,
                k => write!(f, "{sign}{k}*{sym}")?,
            }
        }
        match self.constant {
            0 => Ok(()),
            c => write!(f, "{c:+}"),
        }
    }
}

impl fmt::Debug for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_is_canonical() {
        let s = Dim::from(Sym::P) + Sym::T;
        assert_eq!(s, Dim::from(Sym::T) + Sym::P);
        assert_eq!((s.clone() - Sym::P).to_string(), "T");
        assert_eq!((s.clone() * 2 + 1).to_string(), "2*P+2*T+1");
        assert_eq!((Dim::from(3i64) - Sym::T).to_string(), "-T+3");
        assert!((s.clone() - s).is(0));
    }

    #[test]
    fn eval_names_the_missing_symbol() {
        let bindings = Bindings::from([(Sym::T, 3)]);
        assert_eq!((Dim::from(Sym::T) * 4 + 1).eval(&bindings), Ok(13));
        assert_eq!((Dim::from(Sym::T) + Sym::P).eval(&bindings), Err(Sym::P));
        assert_eq!((Dim::from(Sym::T) + Sym::P).substitute(&bindings).to_string(), "P+3");
    }

    #[test]
    fn bounds_take_each_symbol_at_its_end() {
        let range = |sym| if sym == Sym::T { Some((1, 4)) } else { (sym == Sym::P).then_some((0, 10)) };
        let d = Dim::from(Sym::P) * 2 - Sym::T + 3;
        assert_eq!((d.lower(range), d.upper(range)), (Some(-1), Some(22)));
        assert_eq!((d + Sym::B).upper(range), None);
        assert_eq!(Dim::from(7).lower(range), Some(7));
    }

    #[test]
    fn division_is_exact_or_none() {
        let d = Dim::from(Sym::P) * 6 - 4;
        assert_eq!(d.div_exact(2), Some(Dim::from(Sym::P) * 3 - 2));
        assert_eq!((d.div_exact(3), d.div_exact(0)), (None, None));
        let least = Dim::from(i64::MIN);
        assert_eq!((least.div_exact(-1), (Dim::from(Sym::P) * i64::MIN).div_exact(-1)), (None, None));
        assert_eq!(least.div_exact(2), Some(Dim::from(i64::MIN / 2)));
    }

    #[test]
    fn names_are_checked() {
        assert!(Sym::new("").is_none() && Sym::new("2a").is_none() && Sym::new("ninechars").is_none());
        assert_eq!(Sym::new("T"), Some(Sym::T));
    }
}
