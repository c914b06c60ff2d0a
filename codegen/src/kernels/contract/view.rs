//! Chains of views as affine addresses: from "element at these coordinates of that value" to "element number so and so
//! of that parameter".
//!
//! Coordinates are affine forms over *variables*: the letters of a contraction or attention and, derived from them, an
//! index read from memory (`gather`), and quotients and remainders by constants (blocks of scales; reshapes that cut
//! across axes). What depends on a letter only through a derived variable has no stride along it, so a schedule can
//! ask for the strides it needs and refuse.

use crate::kernels::index::never_empty;
use hadal_ir::module::{Func, Inst, InstKind, ValueId};
use hadal_ir::ops::Op;
use hadal_types::{DType, Dim, TensorType};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A variable, by its position in [`Vars`].
pub type Var = usize;

/// `offset + Σ coefficient · variable`, without zero coefficients.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Affine {
    /// What remains where all variables are zero.
    pub offset: Dim,
    /// Coefficient of each variable.
    pub terms: BTreeMap<Var, Dim>,
}

impl Affine {
    /// A variable.
    pub fn var(var: Var) -> Affine {
        Affine { offset: Dim::default(), terms: BTreeMap::from([(var, 1i64.into())]) }
    }

    /// The sum.
    pub fn plus(mut self, other: &Affine) -> Affine {
        self.offset = self.offset + other.offset.clone();
        for (var, k) in &other.terms {
            let sum = self.terms.remove(var).unwrap_or_default() + k.clone();
            if !sum.is(0) {
                self.terms.insert(*var, sum);
            }
        }
        self
    }

    /// The product with a size, where it is affine in the symbols.
    pub fn times(&self, k: &Dim) -> Option<Affine> {
        let mut out = Affine { offset: self.offset.checked_mul(k)?, terms: BTreeMap::new() };
        for (var, c) in &self.terms {
            let c = c.checked_mul(k)?;
            if !c.is(0) {
                out.terms.insert(*var, c);
            }
        }
        Some(out)
    }

    /// The coefficient of a variable.
    pub fn coefficient(&self, var: Var) -> Dim {
        self.terms.get(&var).cloned().unwrap_or_default()
    }
}

impl From<Dim> for Affine {
    fn from(offset: Dim) -> Affine {
        Affine { offset, terms: BTreeMap::new() }
    }
}

/// What a variable is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum VarKind {
    /// Runs over its size: a letter.
    Letter(char),
    /// An integer read from memory, clamped to what the gathered axis holds, so that it is an address. What is read
    /// there counts as zero where the integer is outside.
    Gather {
        /// Where the index is.
        index: Box<Access>,
        /// The last element of the axis.
        last: Dim,
    },
    /// The quotient by a constant.
    Div(Affine, i64),
    /// The remainder by a constant.
    Rem(Affine, i64),
    /// The entry, at a letter, of the list of rows that a kernel makes.
    Listed(Var),
}

/// A variable: its meaning and its exclusive upper bound; all are at least zero.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VarInfo {
    /// What it is.
    pub kind: VarKind,
    /// Exclusive upper bound.
    pub size: Dim,
}

/// An element of a parameter, read at affine coordinates.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Access {
    /// The parameter's position.
    pub param: usize,
    /// How it is stored.
    pub dtype: DType,
    /// Row-major element number.
    pub at: Affine,
    /// What it is multiplied with, where it is block-scaled.
    pub scale: Option<Box<Access>>,
    /// What is added then: an element of the same block.
    pub offset: Option<Box<Access>>,
}

impl Access {
    /// Scale and offset.
    pub fn parts(&self) -> impl Iterator<Item = &Access> {
        self.scale.iter().chain(&self.offset).map(|a| &**a)
    }

    /// Whether all that is read passes `test`, the element's own format first.
    pub fn all(&self, test: &impl Fn(&Access) -> bool) -> bool {
        test(self) && self.parts().all(|p| p.all(test))
    }
}

/// All variables of one kernel.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Vars {
    /// In order of creation: letters, then derived ones after what they depend on.
    pub list: Vec<VarInfo>,
}

impl Vars {
    /// A letter.
    pub fn letter(&mut self, name: char, size: Dim) -> Var {
        self.list.push(VarInfo { kind: VarKind::Letter(name), size });
        self.list.len() - 1
    }

    /// A size.
    pub fn size(&self, var: Var) -> &Dim {
        &self.list[var].size
    }

    pub(super) fn derived(&mut self, kind: VarKind, size: Dim) -> Var {
        if let Some(known) = self.list.iter().position(|v| v.kind == kind) {
            return known;
        }
        self.list.push(VarInfo { kind, size });
        self.list.len() - 1
    }

    /// Whether the form changes with `var`, derived variables included.
    pub fn depends(&self, at: &Affine, var: Var) -> bool {
        at.terms.keys().any(|v| {
            *v == var
                || match &self.list[*v].kind {
                    VarKind::Letter(_) => false,
                    VarKind::Gather { index, .. } => self.reads(index, var),
                    VarKind::Div(of, _) | VarKind::Rem(of, _) => self.depends(of, var),
                    VarKind::Listed(of) => *of == var,
                }
        })
    }

    /// Whether what is read changes with `var`.
    pub fn reads(&self, access: &Access, var: Var) -> bool {
        self.depends(&access.at, var) || access.parts().any(|p| self.reads(p, var))
    }

    /// The gathers that decide where an access reads.
    pub fn gathers(&self, access: &Access) -> Vec<Var> {
        fn visit(vars: &Vars, at: &Affine, out: &mut Vec<Var>) {
            for v in at.terms.keys().filter(|v| !out.contains(v)).copied().collect::<Vec<_>>() {
                match &vars.list[v].kind {
                    VarKind::Letter(_) | VarKind::Listed(_) => {}
                    VarKind::Gather { .. } => out.push(v),
                    VarKind::Div(of, _) | VarKind::Rem(of, _) => visit(vars, of, out),
                }
            }
        }
        fn all(vars: &Vars, access: &Access, out: &mut Vec<Var>) {
            visit(vars, &access.at, out);
            access.parts().for_each(|p| all(vars, p, out));
        }
        let mut out = Vec::new();
        all(self, access, &mut out);
        out
    }

    /// How far one step of `var` moves; `None` where that is not constant.
    pub fn stride(&self, at: &Affine, var: Var) -> Option<Dim> {
        let derived = at.terms.keys().any(|v| *v != var && self.depends(&Affine::var(*v), var));
        (!derived).then(|| at.coefficient(var))
    }

    /// Whether vectors along `var` that begin at an even one begin at whole bytes.
    pub fn whole_bytes(&self, access: &Access, var: Var) -> bool {
        let even = |d: &Dim| d.constant() % 2 == 0 && d.terms().iter().all(|(_, k)| k % 2 == 0);
        let others = access.at.terms.iter().filter(|(v, _)| **v != var);
        !access.dtype.is_packed() || even(&access.at.offset) && others.map(|(_, k)| k).all(even)
    }

    /// The largest value of a form, where all its coefficients are known not to be negative.
    fn largest(&self, at: &Affine) -> Option<Dim> {
        at.terms.iter().try_fold(at.offset.clone(), |sum, (v, k)| {
            let room = self.list[*v].size.clone() - 1i64;
            nonnegative(k).then(|| room.checked_mul(k)).flatten().map(|m| sum + m)
        })
    }

    /// Quotient and remainder of a form by a size.
    pub(super) fn split(&mut self, at: &Affine, by: &Dim) -> Option<(Affine, Affine)> {
        if by.is(1) {
            return Some((at.clone(), Affine::default()));
        }
        let quotient = |k: &Dim| match by.as_const() {
            Some(n) => k.div_exact(n),
            None => (k == by).then(|| Dim::from(1i64)),
        };
        let (mut high, mut low) = (Affine::default(), Affine::default());
        for (v, k) in &at.terms {
            match quotient(k) {
                Some(q) => high.terms.insert(*v, q),
                None => low.terms.insert(*v, k.clone()),
            };
        }
        match (quotient(&at.offset), at.offset.as_const(), by.as_const()) {
            (Some(q), ..) => high.offset = q,
            (None, Some(o), Some(n)) => {
                (high.offset, low.offset) = (o.div_euclid(n).into(), o.rem_euclid(n).into());
            }
            _ => low.offset = at.offset.clone(),
        }
        if self.largest(&low).is_some_and(|max| nonnegative(&(by.clone() - 1i64 - max))) {
            return Some((high, low));
        }
        let n = by.as_const()?;
        // What moves by whole units of which the divisor is a multiple is divided in these units; the rest does not
        // matter.
        let units = low.terms.values().filter_map(Dim::as_const).filter(|c| *c > 1 && n % c == 0);
        for unit in units.collect::<BTreeSet<i64>>().into_iter().rev() {
            let Some((coarse, fine)) = self.split(&low, &unit.into()).filter(|_| unit < n) else { continue };
            if coarse.terms.len() + fine.terms.len() == low.terms.len() {
                let (quotient, rest) = self.split(&coarse, &(n / unit).into())?;
                return Some((high.plus(&quotient), rest.times(&unit.into())?.plus(&fine)));
            }
        }
        let size = self.largest(&low)?;
        let blocks = size.as_const().map_or(size.clone(), |m| Dim::from(m.div_euclid(n))) + 1i64;
        let div = self.derived(VarKind::Div(low.clone(), n), blocks);
        let rem = self.derived(VarKind::Rem(low, n), by.clone());
        Some((high.plus(&Affine::var(div)), Affine::var(rem)))
    }

    /// The row-major element number of `coords` in `shape`.
    pub fn linear(&self, coords: &[Affine], shape: &[Dim]) -> Option<Affine> {
        let mut step = Dim::from(1i64);
        let mut sum = Affine::default();
        for (i, (c, n)) in coords.iter().zip(shape).enumerate().rev() {
            sum = sum.plus(&c.times(&step)?);
            if i > 0 && !n.is(1) {
                step = step.checked_mul(n)?;
            }
        }
        self.rejoin(sum)
    }

    /// `c·n·(x div n) + c·(x mod n)` as `c·x`: axes that a reshape cut are whole again in the element number.
    pub(super) fn rejoin(&self, mut at: Affine) -> Option<Affine> {
        for (div, info) in self.list.iter().enumerate().rev() {
            let VarKind::Div(of, by) = &info.kind else { continue };
            let rem = self.list.iter().position(|v| v.kind == VarKind::Rem(of.clone(), *by));
            let Some(rem) = rem.filter(|r| at.terms.contains_key(r)) else { continue };
            let c = at.coefficient(rem);
            if c.clone() * *by == at.coefficient(div) {
                at.terms.remove(&div);
                at.terms.remove(&rem);
                at = at.plus(&of.times(&c)?);
            }
        }
        Some(at)
    }

    /// Coordinates in shape `to` of the element at `coords` in shape `from`: axes are matched in groups of equal
    /// products, and a group is renumbered through its element number.
    pub fn reshape(&mut self, coords: &[Affine], from: &[Dim], to: &[Dim]) -> Option<Vec<Affine>> {
        let many = |shape: &[Dim]| -> Vec<usize> { (0..shape.len()).filter(|i| !shape[*i].is(1)).collect() };
        let (old, new) = (many(from), many(to));
        let mut out = vec![Affine::default(); to.len()];
        let (mut i, mut j) = (0, 0);
        while i < old.len() || j < new.len() {
            let (i0, j0) = (i, j);
            let mut sizes = [Dim::from(1i64), Dim::from(1i64)];
            loop {
                let take_old = i == i0 || (j > j0 && sample(&sizes[0]) < sample(&sizes[1]));
                if take_old && i < old.len() {
                    sizes[0] = sizes[0].checked_mul(&from[old[i]])?;
                    i += 1;
                } else if j < new.len() {
                    sizes[1] = sizes[1].checked_mul(&to[new[j]])?;
                    j += 1;
                } else {
                    return None;
                }
                if i > i0 && j > j0 && sizes[0] == sizes[1] {
                    break;
                }
            }
            let group: Vec<Affine> = old[i0..i].iter().map(|a| coords[*a].clone()).collect();
            let shape: Vec<Dim> = old[i0..i].iter().map(|a| from[*a].clone()).collect();
            let mut rest = self.linear(&group, &shape)?;
            for axis in new[j0 + 1..j].iter().rev() {
                let (high, low) = self.split(&rest, &to[*axis])?;
                out[*axis] = low;
                rest = high;
            }
            out[new[j0]] = rest;
        }
        Some(out)
    }
}

fn nonnegative(d: &Dim) -> bool {
    d.constant() >= 0 && d.terms().iter().all(|(_, k)| *k >= 0)
}

/// A number that orders sizes as they mostly are at run time.
fn sample(d: &Dim) -> i64 {
    d.terms().iter().fold(d.constant(), |sum, (_, k)| sum.saturating_add(k.saturating_mul(1_000_003)))
}

/// A kernel function being read backwards.
pub struct Tracer<'a> {
    /// The function.
    pub func: &'a Func,
    /// Where each value is defined.
    defs: Vec<Option<usize>>,
    /// Variables found so far.
    pub vars: Vars,
}

impl<'a> Tracer<'a> {
    /// Begins with no variables. `None` where the function has weights, states or calls.
    pub fn new(func: &'a Func) -> Option<Tracer<'a>> {
        let ops_only = func.insts.iter().all(|i| matches!(i.kind, InstKind::Op(_)));
        let pure = ops_only && func.weights.is_empty() && func.states.is_empty();
        pure.then(|| Tracer { func, defs: func.definitions(), vars: Vars::default() })
    }

    /// The type of a value.
    pub fn ty(&self, value: ValueId) -> &'a TensorType {
        self.func.ty(value)
    }

    /// What defines a value; `None` for parameters.
    pub fn def(&self, value: ValueId) -> Option<(&'a Op, &'a Inst)> {
        let inst = &self.func.insts[self.defs[value.index()]?];
        match &inst.kind {
            InstKind::Op(op) => Some((op, inst)),
            InstKind::Call(_) => None,
        }
    }

    /// One step backwards through a view or gather: the operand and its coordinates. `None` for other ops and where
    /// the coordinates are no affine forms.
    pub fn step(&mut self, op: &Op, args: &[ValueId], coords: &[Affine]) -> Option<(ValueId, Vec<Affine>)> {
        let from = args.first().map(|a| self.ty(*a));
        let coords = match op {
            Op::Reshape(r) => self.vars.reshape(coords, &r.shape, &from?.shape)?,
            Op::Transpose(t) => {
                let mut out = vec![Affine::default(); coords.len()];
                t.perm.iter().zip(coords).for_each(|(p, c)| out[*p] = c.clone());
                out
            }
            Op::Slice(s) => {
                let mut out = coords.to_vec();
                let step = i64::try_from(s.step).ok()?;
                out[s.axis] = coords[s.axis].times(&step.into())?.plus(&s.start.clone().into());
                out
            }
            Op::Broadcast(b) => b.dims.iter().map(|d| coords[*d].clone()).collect(),
            Op::Gather(g) => {
                let (x, index) = (self.ty(args[0]), self.ty(args[1]));
                let chosen = index.rank() - g.batch;
                let at: Vec<Affine> =
                    coords[..g.batch].iter().chain(&coords[g.axis..g.axis + chosen]).cloned().collect();
                let index = self.access(args[1], at)?;
                // An index that is gathered itself is 0 where it is not there, which no address says.
                self.vars.gathers(&index).is_empty().then_some(())?;
                let size = x.shape[g.axis].clone();
                // An empty axis has no address to clamp to.
                never_empty(&size).then_some(())?;
                let row =
                    self.vars.derived(VarKind::Gather { index: Box::new(index), last: size.clone() - 1i64 }, size);
                let mut out = coords.to_vec();
                out.splice(g.axis..g.axis + chosen, [Affine::var(row)]);
                out
            }
            _ => return None,
        };
        Some((args[0], coords))
    }

    /// The parameter element behind an element of `value`, through views, gathers, casts to f32 and block scales,
    /// which may be scaled themselves.
    pub fn access(&mut self, mut value: ValueId, mut coords: Vec<Affine>) -> Option<Access> {
        let (mut scale, mut offset) = (None, None);
        loop {
            let Some((op, inst)) = self.def(value) else {
                let param = self.func.params.iter().position(|p| *p == value)?;
                let ty = self.ty(value);
                let at = self.vars.linear(&coords, &ty.shape)?;
                return Some(Access { param, dtype: ty.dtype, at, scale, offset });
            };
            match op {
                Op::Cast(c) if c.to == DType::F32 && self.ty(inst.args[0]).dtype.is_float() => value = inst.args[0],
                Op::Dequantize(d) if scale.is_none() => {
                    let blocks: Option<Vec<Affine>> = coords
                        .iter()
                        .zip(&d.block)
                        .map(|(c, b)| Some(self.vars.split(c, &i64::try_from(*b).ok()?.into())?.0))
                        .collect();
                    let blocks = blocks?;
                    let mut part = |value| {
                        let part = self.access(value, blocks.clone())?;
                        part.offset.is_none().then(|| Box::new(part))
                    };
                    scale = Some(part(inst.args[1])?);
                    if let Some(m) = inst.args.get(2) {
                        offset = Some(part(*m)?);
                    }
                    value = inst.args[0];
                }
                _ => (value, coords) = self.step(op, &inst.args, &coords)?,
            }
        }
    }
}

impl fmt::Display for Vars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, v) in self.list.iter().enumerate() {
            let name = self.name(i);
            match &v.kind {
                VarKind::Letter(_) => writeln!(f, "  {name} < {}", v.size)?,
                VarKind::Gather { index, last } => {
                    writeln!(f, "  {name} = clamp({}, {last})", self.show_access(index))?
                }
                VarKind::Div(of, by) => writeln!(f, "  {name} = ({}) / {by}", self.show(of))?,
                VarKind::Rem(of, by) => writeln!(f, "  {name} = ({}) % {by}", self.show(of))?,
                VarKind::Listed(of) => writeln!(f, "  {name} = listed[{}]", self.name(*of))?,
            }
        }
        Ok(())
    }
}

impl Vars {
    /// A variable's name: its letter, or `#` and its number.
    pub fn name(&self, var: Var) -> String {
        match self.list[var].kind {
            VarKind::Letter(c) => c.to_string(),
            _ => format!("#{var}"),
        }
    }

    /// A form for people.
    pub fn show(&self, at: &Affine) -> String {
        let mut parts: Vec<String> = at
            .terms
            .iter()
            .map(|(v, k)| match (k.is(1), k.as_const()) {
                (true, _) => self.name(*v),
                (_, Some(k)) => format!("{k}{}", self.name(*v)),
                (_, None) => format!("({k}){}", self.name(*v)),
            })
            .collect();
        if !at.offset.is(0) || parts.is_empty() {
            parts.push(at.offset.to_string());
        }
        parts.join(" + ")
    }

    /// An access for people.
    pub fn show_access(&self, a: &Access) -> String {
        let scale = a.scale.as_ref().map(|s| format!(" * {}", self.show_access(s))).unwrap_or_default();
        let offset = a.offset.as_ref().map(|s| format!(" + {}", self.show_access(s))).unwrap_or_default();
        format!("{}:p{}[{}]{scale}{offset}", a.dtype, a.param, self.show(&a.at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reshapes_split_merge_and_cut_across() {
        let mut vars = Vars::default();
        let (h, d) = (vars.letter('h', 3.into()), vars.letter('d', 4.into()));
        let (h, d) = (Affine::var(h), Affine::var(d));
        let dims = |s: &[i64]| -> Vec<Dim> { s.iter().map(|n| Dim::from(*n)).collect() };
        let merged = vars.reshape(&[h.clone(), d.clone()], &dims(&[3, 4]), &dims(&[12])).unwrap();
        assert_eq!(vars.show(&merged[0]), "4h + d");
        assert_eq!(vars.reshape(&merged, &dims(&[12]), &dims(&[3, 1, 4])).unwrap(), [h, Affine::default(), d]);
        let across = vars.reshape(&merged, &dims(&[12]), &dims(&[2, 6])).unwrap();
        assert_eq!(across.iter().map(|a| vars.show(a)).collect::<Vec<_>>(), ["#2", "#3"]);
        assert!(vars.stride(&across[0], 1).is_none() && vars.depends(&across[0], 1));
    }

    #[test]
    fn whole_units_are_divided_by_themselves() {
        let mut vars = Vars::default();
        let (h, d) = (vars.letter('h', 16.into()), vars.letter('d', 64.into()));
        // Column 128 + d of head h, of 192 each: of which panel, and where in it.
        let at = Affine::var(h).times(&192.into()).unwrap().plus(&Affine::var(d)).plus(&Dim::from(128i64).into());
        let (panel, column) = vars.split(&at, &16.into()).unwrap();
        assert_eq!((vars.show(&panel), vars.show(&column)), ("12h + #2 + 8".into(), "#3".into()));
        assert_eq!(vars.list[2].kind, VarKind::Div(Affine::var(d), 16));
        // Element 4k + j of a column, of 32 to a scale.
        let (k, j) = (vars.letter('k', 40.into()), vars.letter('j', 4.into()));
        let at = Affine::var(k).times(&4.into()).unwrap().plus(&Affine::var(j));
        let (group, inside) = vars.split(&at, &32.into()).unwrap();
        let names: Vec<_> = (6..8).map(|v| vars.list[v].kind.clone()).collect();
        assert_eq!(names, [VarKind::Div(Affine::var(k), 8), VarKind::Rem(Affine::var(k), 8)]);
        assert_eq!((vars.show(&group), vars.show(&inside)), ("#6".into(), "j + 4#7".into()));
    }

    #[test]
    fn symbolic_axes_keep_their_own() {
        let mut vars = Vars::default();
        let t = vars.letter('t', hadal_types::Sym::T.into());
        let k = vars.letter('k', 12.into());
        let (from, to) =
            ([Dim::from(hadal_types::Sym::T), 12.into()], [hadal_types::Sym::T.into(), 3.into(), 4.into()]);
        let c = vars.reshape(&[Affine::var(t), Affine::var(k)], &from, &to).unwrap();
        assert_eq!(vars.show(&c[0]), "t");
        assert!(vars.stride(&c[1], k).is_none(), "a cut letter has no stride");
        let back = vars.linear(&c, &to).unwrap();
        assert_eq!(vars.stride(&back, k), Some(1.into()), "{}", vars.show(&back));
    }
}
