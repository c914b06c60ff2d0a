//! Index expressions: affine forms of loop variables with quotients and remainders where reshapes need them.
//!
//! Every view of a tensor is a change of index expressions, so views cost nothing when the expressions simplify:
//! splitting an axis and merging it again cancels, and a loop that is split at the block size of a reshape or of a
//! dequantisation sees no division inside. Values of expressions are never negative where they are used.

use hadal_types::{Dim, Sym};

/// A loop variable: an index into [`Space::extents`].
pub type Var = u32;

/// What an expression is made of besides constants.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Atom {
    /// A loop variable, from 0 to below its extent.
    Var(Var),
    /// A quotient, rounded down.
    Div(Box<Expr>, Dim),
    /// A remainder.
    Mod(Box<Expr>, Dim),
    /// An index computed from data (number, and the size it is below).
    Data(u32, Dim),
}

/// `constant + Σ coefficient · atom`, terms sorted by atom, no zero coefficients.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Expr {
    /// The constant term.
    pub constant: Dim,
    /// Atoms with their coefficients.
    pub terms: Vec<(Atom, Dim)>,
}

/// How far the loop variables run.
#[derive(Clone, Debug, Default)]
pub struct Space {
    /// The largest extent of each variable.
    pub extents: Vec<Dim>,
}

/// Whether `a ≤ b` for all values of the symbols, which are never negative.
pub fn at_most(a: &Dim, b: &Dim) -> bool {
    let gap = b.clone() - a.clone();
    gap.constant() >= 0 && gap.terms().iter().all(|(_, k)| *k >= 0)
}

/// Whether a size is at least 1 in every call: there is always a new token, though there may be no old one.
pub fn never_empty(size: &Dim) -> bool {
    size.lower(|s| Some((i64::from(s == Sym::T), i64::MAX))).is_some_and(|n| n >= 1)
}

impl Space {
    /// A new variable.
    pub fn var(&mut self, extent: Dim) -> Var {
        self.extents.push(extent);
        self.extents.len() as Var - 1
    }

    /// The largest value of an expression and the smallest; `None` where they are no affine forms.
    pub fn range(&self, e: &Expr) -> Option<(Dim, Dim)> {
        e.terms.iter().try_fold((e.constant.clone(), e.constant.clone()), |(lo, hi), (atom, k)| {
            let top = match atom {
                Atom::Var(v) => self.extents[*v as usize].clone() - 1i64,
                Atom::Mod(_, m) => m.clone() - 1i64,
                Atom::Data(_, size) => size.clone() - 1i64,
                Atom::Div(inner, m) => {
                    let (low, high) = self.range(inner)?;
                    let zero = Dim::from(0i64);
                    if !at_most(&zero, &low) {
                        return None;
                    }
                    match (high.as_const(), m.as_const()) {
                        (Some(high), Some(m)) if m > 0 => Dim::from(high / m),
                        // a·m + b with 0 ≤ b < m, over m
                        _ => match (high.clone() + 1i64).checked_div_by(m) {
                            Some(q) => q - 1i64,
                            None => high,
                        },
                    }
                }
            };
            let reach = top.checked_mul(k)?;
            let zero = Dim::from(0i64);
            match (at_most(&zero, k), at_most(k, &zero)) {
                (true, _) => Some((lo, hi + reach)),
                (_, true) => Some((lo + reach, hi)),
                _ => None,
            }
        })
    }

    /// Whether `e` is in `0..size` for certain.
    pub fn within(&self, e: &Expr, size: &Dim) -> bool {
        self.range(e).is_some_and(|(lo, hi)| at_most(&Dim::from(0i64), &lo) && at_most(&(hi + 1i64), size))
    }

    /// Quotient and remainder of an expression that is not negative.
    pub fn div_mod(&self, e: &Expr, by: &Dim) -> (Expr, Expr) {
        if by.is(1) {
            return (e.clone(), Expr::default());
        }
        let (mut whole, mut rest) = (Expr::default(), Expr::default());
        for (atom, k) in &e.terms {
            let (q, r) = split(k, by);
            whole = whole.plus(&Expr::term(atom.clone(), q));
            rest = rest.plus(&Expr::term(atom.clone(), r));
        }
        let (q, r) = split(&e.constant, by);
        (whole.constant, rest.constant) = (q, r);
        if self.within(&rest, by) {
            return (whole, rest);
        }
        let not_negative = self.range(&rest).is_some_and(|(lo, _)| at_most(&Dim::from(0i64), &lo));
        if !not_negative {
            (whole, rest) = (Expr::default(), e.clone());
        }
        // (g·x + y) / (g·m) is x / m where 0 ≤ y < g.
        if let Some(by) = by.as_const() {
            let coefficient = |k: &Dim| k.as_const().filter(|k| *k > 0 && k % by != 0).map(|k| gcd(k, by));
            let factors = rest.terms.iter().filter_map(|(_, k)| coefficient(k));
            if let Some(g) = factors.filter(|g| *g > 1).max() {
                let (mut coarse, mut fine) = (Expr::default(), Expr::default());
                for (atom, k) in &rest.terms {
                    match k.div_exact(g) {
                        Some(q) => coarse = coarse.plus(&Expr::term(atom.clone(), q)),
                        None => fine = fine.plus(&Expr::term(atom.clone(), k.clone())),
                    }
                }
                let (q, r) = split(&rest.constant, &Dim::from(g));
                (coarse.constant, fine.constant) = (q, r);
                if self.within(&fine, &Dim::from(g)) && !coarse.terms.is_empty() {
                    let (q, r) = self.div_mod(&coarse, &Dim::from(by / g));
                    return (whole.plus(&q), r.times(&Dim::from(g)).plus(&fine));
                }
            }
        }
        // A remainder by a multiple of `by`, of the same thing.
        if let [(Atom::Mod(inner, m), k)] = &rest.terms[..]
            && k.is(1)
            && rest.constant.is(0)
            && m.checked_div_by(by).is_some()
        {
            let (_, r) = self.div_mod(inner, by);
            let q = Atom::Div(Box::new(rest.clone()), by.clone());
            return (whole.plus(&Expr::term(q, 1.into())), r);
        }
        let q = Atom::Div(Box::new(rest.clone()), by.clone());
        let r = Atom::Mod(Box::new(rest), by.clone());
        (whole.plus(&Expr::term(q, 1.into())), Expr::term(r, 1.into()))
    }
}

/// `k = q · by + r` with constants in `0..by` left over where that is possible.
fn split(k: &Dim, by: &Dim) -> (Dim, Dim) {
    if let Some(q) = k.checked_div_by(by) {
        return (q, 0.into());
    }
    match (k.as_const(), by.as_const()) {
        (Some(k), Some(by)) => (k.div_euclid(by).into(), k.rem_euclid(by).into()),
        _ => (0.into(), k.clone()),
    }
}

/// Greatest common divisor of numbers that are not negative.
pub fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Exact division of affine forms.
trait DivBy {
    /// `self / by` where that is a constant multiple or exact by a constant.
    fn checked_div_by(&self, by: &Dim) -> Option<Dim>;
}

impl DivBy for Dim {
    fn checked_div_by(&self, by: &Dim) -> Option<Dim> {
        if let Some(by) = by.as_const() {
            return self.div_exact(by);
        }
        if self.is(0) {
            return Some(0.into());
        }
        let (sym, k) = by.terms().first()?;
        let own = self.terms().iter().find(|(s, _)| s == sym)?.1;
        (own % k == 0 && by.clone() * (own / k) == *self).then(|| Dim::from(own / k))
    }
}

impl Expr {
    /// A variable.
    pub fn var(v: Var) -> Expr {
        Expr::term(Atom::Var(v), 1.into())
    }

    /// A coefficient times an atom.
    pub fn term(atom: Atom, k: Dim) -> Expr {
        Expr { constant: 0.into(), terms: if k.is(0) { vec![] } else { vec![(atom, k)] } }
    }

    /// The sum.
    pub fn plus(&self, other: &Expr) -> Expr {
        let mut terms = self.terms.clone();
        for (atom, k) in &other.terms {
            match terms.binary_search_by(|(a, _)| a.cmp(atom)) {
                Ok(i) => {
                    terms[i].1 = terms[i].1.clone() + k.clone();
                    if terms[i].1.is(0) {
                        terms.remove(i);
                    }
                }
                Err(i) => terms.insert(i, (atom.clone(), k.clone())),
            }
        }
        Expr { constant: self.constant.clone() + other.constant.clone(), terms }
    }

    /// The sum with a constant.
    pub fn offset(&self, by: &Dim) -> Expr {
        Expr { constant: self.constant.clone() + by.clone(), terms: self.terms.clone() }
    }

    /// The product; `None` where a coefficient is no affine form.
    pub fn checked_times(&self, k: &Dim) -> Option<Expr> {
        if k.is(0) {
            return Some(Expr::default());
        }
        let terms = self.terms.iter().map(|(a, c)| Some((a.clone(), c.checked_mul(k)?))).collect::<Option<_>>()?;
        Some(Expr { constant: self.constant.checked_mul(k)?, terms })
    }

    fn times(&self, k: &Dim) -> Expr {
        self.checked_times(k).unwrap_or_default()
    }

    /// The constant value, where there is no atom.
    pub fn as_dim(&self) -> Option<&Dim> {
        self.terms.is_empty().then_some(&self.constant)
    }

    /// The coefficient of a variable outside quotients and remainders.
    pub fn coefficient(&self, v: Var) -> Dim {
        self.terms.iter().find(|(a, _)| *a == Atom::Var(v)).map_or(0.into(), |(_, k)| k.clone())
    }

    /// Calls `f` with every variable and `data` with every data atom, inside quotients too.
    pub fn visit(&self, f: &mut impl FnMut(&Atom)) {
        for (atom, _) in &self.terms {
            f(atom);
            match atom {
                Atom::Div(inner, _) | Atom::Mod(inner, _) => inner.visit(f),
                Atom::Var(_) | Atom::Data(..) => {}
            }
        }
    }
}

impl From<Dim> for Expr {
    fn from(constant: Dim) -> Expr {
        Expr { constant, terms: vec![] }
    }
}

/// Indices of the same element before a reshape: `to` are the indices in shape `after`, the result those in `before`.
/// `None` where products of symbols would be needed.
pub fn reshape(space: &Space, before: &[Dim], after: &[Dim], to: &[Expr]) -> Option<Vec<Expr>> {
    let mut out = vec![Expr::default(); before.len()];
    let mut old: Vec<usize> = (0..before.len()).filter(|i| !before[*i].is(1)).rev().collect();
    let mut new: Vec<usize> = (0..after.len()).filter(|i| !after[*i].is(1)).rev().collect();
    while !old.is_empty() || !new.is_empty() {
        // The smallest groups of leading axes with equal products.
        let (mut a, mut b) = (vec![], vec![]);
        a.extend(old.pop());
        b.extend(new.pop());
        loop {
            let (pa, pb) = (Product::of(before, &a), Product::of(after, &b));
            if pa == pb {
                break;
            }
            match (pa.divides(&pb), pb.divides(&pa)) {
                (true, _) if !old.is_empty() => a.extend(old.pop()),
                (_, true) if !new.is_empty() => b.extend(new.pop()),
                _ if old.is_empty() && new.is_empty() => break,
                _ => {
                    a.extend(old.pop());
                    b.extend(new.pop());
                }
            }
        }
        let mut flat = Expr::default();
        for i in &b {
            flat = flat.checked_times(&after[*i])?.plus(&to[*i]);
        }
        for (n, i) in a.iter().enumerate().rev() {
            if n == 0 {
                out[*i] = flat;
                break;
            }
            let (q, r) = space.div_mod(&flat, &before[*i]);
            (flat, out[*i]) = (q, r);
        }
    }
    Some(out)
}

/// A product of sizes: its constant factor and the symbolic ones.
#[derive(PartialEq)]
struct Product(i128, Vec<Dim>);

impl Product {
    fn of(shape: &[Dim], axes: &[usize]) -> Product {
        let mut product = Product(1, vec![]);
        for d in axes.iter().map(|i| &shape[*i]) {
            match d.as_const() {
                Some(n) => product.0 = product.0.saturating_mul(n as i128),
                None => {
                    let content = d.terms().iter().map(|(_, k)| k.abs()).fold(d.constant().abs(), gcd);
                    product.0 = product.0.saturating_mul(content as i128);
                    product.1.extend(d.div_exact(content));
                }
            }
        }
        product.1.sort();
        product
    }

    fn divides(&self, other: &Product) -> bool {
        let mut rest = other.1.clone();
        let symbols = self.1.iter().all(|d| rest.iter().position(|r| r == d).map(|i| rest.remove(i)).is_some());
        symbols && self.0 != 0 && other.0 % self.0 == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hadal_types::Sym;

    fn dims(sizes: &[i64]) -> Vec<Dim> {
        sizes.iter().map(|n| Dim::from(*n)).collect()
    }

    #[test]
    fn splitting_and_merging_cancels() {
        let mut space = Space::default();
        let t = Dim::from(Sym::T);
        let (flat, split) = (vec![t.clone(), 64.into()], vec![t.clone(), 4.into(), 16.into()]);
        let vars: Vec<Expr> = split.iter().map(|d| Expr::var(space.var(d.clone()))).collect();
        let merged = reshape(&space, &flat, &split, &vars).unwrap();
        assert_eq!(merged[1].coefficient(1), 16.into());
        assert_eq!(reshape(&space, &split, &flat, &merged).unwrap(), vars);
        let rows = vec![t * 4, 16.into()];
        let merged = reshape(&space, &rows, &split, &vars).unwrap();
        assert_eq!(merged[1], vars[2]);
        assert_eq!(reshape(&space, &split, &rows, &merged).unwrap(), vars);
    }

    #[test]
    fn coarser_quotients_need_no_fine_index() {
        let mut space = Space::default();
        let (a, b) = (space.var(8.into()), space.var(64.into()));
        let e = Expr::term(Atom::Var(a), 64.into()).plus(&Expr::var(b));
        let (q, r) = space.div_mod(&e, &128.into());
        let (aq, ar) = space.div_mod(&Expr::var(a), &2.into());
        assert_eq!((q, r), (aq, ar.times(&64.into()).plus(&Expr::var(b))));
        let (q, _) = space.div_mod(&e, &32.into());
        assert_eq!(q.coefficient(a), 2.into());
    }

    /// Every simplification is compared with plain arithmetic.
    #[test]
    fn reshapes_agree_with_counting() {
        let shapes = [[2, 6, 4], [12, 1, 4], [3, 4, 4], [4, 12, 1], [1, 1, 48], [8, 3, 2]];
        for before in &shapes {
            for after in &shapes {
                let mut space = Space::default();
                let vars: Vec<Expr> = dims(after).into_iter().map(|d| Expr::var(space.var(d))).collect();
                let from = reshape(&space, &dims(before), &dims(after), &vars).unwrap();
                for n in 0..48 {
                    let at = [n / (after[1] * after[2]), n / after[2] % after[1], n % after[2]];
                    let got: Vec<i64> = from.iter().map(|e| value(e, &at)).collect();
                    let want = [n / (before[1] * before[2]), n / before[2] % before[1], n % before[2]];
                    assert_eq!(got, want, "{before:?} {after:?} {n}");
                }
            }
        }
    }

    fn value(e: &Expr, at: &[i64]) -> i64 {
        let number = |d: &Dim| d.as_const().unwrap();
        let atom = |a: &Atom| match a {
            Atom::Var(v) => at[*v as usize],
            Atom::Div(e, m) => value(e, at) / number(m),
            Atom::Mod(e, m) => value(e, at) % number(m),
            Atom::Data(..) => 0,
        };
        number(&e.constant) + e.terms.iter().map(|(a, k)| atom(a) * number(k)).sum::<i64>()
    }
}
