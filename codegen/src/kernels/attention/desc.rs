//! The problem: one attention, as addresses in parameters.

use crate::kernels::contract::desc::{Flat, flat_params};
use crate::kernels::contract::epilogue::{self, Epilogue, is_real};
use crate::kernels::contract::view::{Access, Affine, Tracer, Var, Vars};
use hadal_ir::ops::Op;
use hadal_ir::ops::attention::{RowSet, Visible};
use hadal_ir::{Func, ValueId};
use hadal_types::Dim;
use std::collections::BTreeMap;
use std::fmt;

/// Scores of one kind: a query times keys.
#[derive(Clone, PartialEq, Debug)]
pub struct Term {
    /// The query.
    pub query: Access,
    /// The keys.
    pub key: Access,
    /// The summed letter, consecutive in both.
    pub sum: Var,
}

/// Which rows of a set a query sees.
#[derive(Clone, PartialEq, Debug)]
pub enum Rows {
    /// Every row.
    All,
    /// Rows up to the query's own.
    Causal,
    /// From the first bound to below the second.
    Interval(Bound, Bound),
    /// Those for which a truth value says so.
    Masked(Mask),
    /// Those whose numbers are listed, over the letter of places.
    Selected(Access, Var),
}

/// An integer for each query.
#[derive(Clone, PartialEq, Debug)]
pub enum Bound {
    /// In memory.
    Read(Access),
    /// Known from where the query stands.
    Known(Affine),
}

/// A truth value for each query and row. There are as many as the product of two sizes, which no flat buffer has, so
/// it is read by its axes.
#[derive(Clone, PartialEq, Debug)]
pub struct Mask {
    /// The parameter's position.
    pub param: usize,
    /// Where on each axis.
    pub at: Vec<Affine>,
}

/// Rows with keys and values of their own.
#[derive(Clone, PartialEq, Debug)]
pub struct Set {
    /// The letter of rows.
    pub key: Var,
    /// What scores are the sum of.
    pub terms: Vec<Term>,
    /// The values.
    pub value: Access,
    /// What a query sees.
    pub rows: Rows,
}

/// An attention with its epilogue.
#[derive(Clone, PartialEq, Debug)]
pub struct Desc {
    /// The kernel's name.
    pub name: String,
    /// Letters first, then derived variables.
    pub vars: Vars,
    /// The letter of queries.
    pub query: Var,
    /// Letters of heads.
    pub heads: Vec<Var>,
    /// The letter of the values' elements, consecutive in them.
    pub element: Var,
    /// What the softmax runs over.
    pub sets: Vec<Set>,
    /// The score of each head that stands for no row.
    pub sink: Option<Access>,
    /// Multiplies the scores.
    pub scale: f32,
    /// What happens to each element.
    pub epilogue: Epilogue,
    /// The kernel's buffers: the function's parameters, then its results.
    pub params: Vec<Flat>,
}

impl Rows {
    fn mask(&self) -> Option<&Mask> {
        match self {
            Rows::Masked(mask) => Some(mask),
            Rows::All | Rows::Causal | Rows::Interval(..) | Rows::Selected(..) => None,
        }
    }
}

impl Set {
    /// What is read of flat buffers.
    fn accesses(&self) -> Vec<&Access> {
        let seen: Vec<&Access> = match &self.rows {
            Rows::All | Rows::Causal | Rows::Masked(_) => vec![],
            Rows::Selected(ids, _) => vec![ids],
            Rows::Interval(lo, hi) => [lo, hi].into_iter().filter_map(Bound::access).collect(),
        };
        self.terms.iter().flat_map(|t| [&t.query, &t.key]).chain([&self.value]).chain(seen).collect()
    }
}

impl Bound {
    fn access(&self) -> Option<&Access> {
        match self {
            Bound::Read(access) => Some(access),
            Bound::Known(_) => None,
        }
    }
}

impl Desc {
    /// Reads a kernel function; `None` where it is anything but an attention of plain views of parameters.
    pub fn of(func: &Func) -> Option<Desc> {
        let mut t = Tracer::new(func)?;
        let found = func.insts.iter().filter_map(|i| match t.def(i.results[0])? {
            (Op::Attention(a), inst) => Some((a, inst)),
            _ => None,
        });
        let [(attention, inst)] = found.collect::<Vec<_>>()[..] else { return None };
        let mut names = Names::new();
        let out: Vec<char> = attention.output.chars().collect();
        let root = inst.results[0];
        for (c, size) in out.iter().zip(&t.ty(root).shape) {
            names.insert(*c, t.vars.letter(*c, size.clone()));
        }
        let (query, element) = (names[&out[0]], names[out.last()?]);
        let sets = attention.sets.iter().zip(attention.split(&inst.args));
        let sets = sets.map(|(set, args)| trace(&mut t, set, args, &names, element)).collect::<Option<Vec<Set>>>()?;
        let sink = match attention.sink {
            true => Some(plain(&mut t, *inst.args.last()?, &names, attention.heads())?),
            false => None,
        };
        let epilogue = epilogue::trace(&mut t, root, coordinates(&names, &attention.output)?)?;
        if t.vars.size(element).as_const().is_none() || !epilogue.loads().all(|a| is_real(a.dtype)) {
            return None;
        }
        let masks: Vec<usize> = sets.iter().filter_map(|s| s.rows.mask()).map(|m| m.param).collect();
        let params = flat_params(func, &masks)?;
        // No buffer is both.
        let flat = sets.iter().flat_map(Set::accesses).chain(&sink).chain(epilogue.loads());
        if flat.map(|a| a.param).any(|p| masks.contains(&p)) {
            return None;
        }
        Some(Desc {
            name: func.name.clone(),
            query,
            heads: out[1..out.len() - 1].iter().map(|c| names[c]).collect(),
            element,
            sets,
            sink,
            scale: attention.scale.0 as f32,
            epilogue,
            params,
            vars: t.vars,
        })
    }

    /// The size of a letter.
    pub fn size(&self, var: Var) -> &Dim {
        self.vars.size(var)
    }

    /// Whether keys, values and what is seen of them are the same along this letter of heads.
    pub fn shared(&self, head: Var) -> bool {
        let reads = |a: &Access| self.vars.reads(a, head);
        self.sets.iter().all(|set| {
            let seen = match &set.rows {
                Rows::All | Rows::Causal => false,
                Rows::Interval(lo, hi) => [lo, hi].into_iter().any(|b| match b {
                    Bound::Read(a) => reads(a),
                    Bound::Known(at) => self.vars.depends(at, head),
                }),
                Rows::Masked(mask) => mask.at.iter().any(|at| self.vars.depends(at, head)),
                Rows::Selected(a, _) => reads(a),
            };
            !seen && !reads(&set.value) && !set.terms.iter().any(|t| reads(&t.key))
        })
    }

    /// Whether what a query sees is read from memory.
    pub fn listed(&self) -> bool {
        self.sets.iter().any(|s| !matches!(s.rows, Rows::All | Rows::Causal))
    }
}

/// Letters that stand for variables.
type Names = BTreeMap<char, Var>;

fn coordinates(names: &Names, letters: &str) -> Option<Vec<Affine>> {
    letters.chars().map(|c| names.get(&c).map(|v| Affine::var(*v))).collect()
}

/// An operand without scales whose rows are where the letters say, not where other memory does.
fn traced(t: &mut Tracer<'_>, value: ValueId, names: &Names, letters: &str) -> Option<Access> {
    let access = t.access(value, coordinates(names, letters)?)?;
    (access.scale.is_none() && t.vars.gathers(&access).is_empty()).then_some(access)
}

/// Such an operand of reals.
fn plain(t: &mut Tracer<'_>, value: ValueId, names: &Names, letters: &str) -> Option<Access> {
    traced(t, value, names, letters).filter(|a| is_real(a.dtype))
}

fn mask(t: &mut Tracer<'_>, value: ValueId, coords: Vec<Affine>) -> Option<Mask> {
    let Some((op, inst)) = t.def(value) else {
        let param = t.func.params.iter().position(|p| *p == value)?;
        return Some(Mask { param, at: coords });
    };
    let (from, coords) = match op {
        Op::Broadcast(_) | Op::Reshape(_) | Op::Transpose(_) | Op::Slice(_) => t.step(op, &inst.args, &coords)?,
        _ => return None,
    };
    mask(t, from, coords)
}

fn bound(t: &mut Tracer<'_>, value: ValueId, coords: Vec<Affine>) -> Option<Bound> {
    match t.def(value) {
        Some((Op::Iota(iota), _)) => Some(Bound::Known(coords.first()?.clone().plus(&iota.start.clone().into()))),
        Some((Op::Constant(c), _)) => match c.values.as_slice() {
            [x] => Some(Bound::Known(Dim::from(x.0 as i64).into())),
            _ => None,
        },
        Some((op, inst)) => {
            let (from, coords) = t.step(op, &inst.args, &coords)?;
            bound(t, from, coords)
        }
        None => {
            let access = t.access(value, coords)?;
            t.vars.gathers(&access).is_empty().then_some(Bound::Read(access))
        }
    }
}

fn trace(t: &mut Tracer<'_>, set: &RowSet, args: &[ValueId], names: &Names, element: Var) -> Option<Set> {
    let (pairs, rest) = args.split_at(2 * set.terms.len());
    let mut names = names.clone();
    let letter = set.key().chars().next()?;
    let key = t.vars.letter(letter, t.ty(rest[0]).shape.first()?.clone());
    names.insert(letter, key);
    let unit = |t: &Tracer<'_>, a: &Access, v: Var| t.vars.stride(&a.at, v).is_some_and(|s| s.is(1));
    let mut terms = Vec::new();
    for ((q, k), args) in set.terms.iter().zip(pairs.chunks(2)) {
        // Terms may use one letter with different sizes, so each has a variable of its own.
        let last = q.chars().last()?;
        let sum = t.vars.letter(last, t.ty(args[0]).shape.last()?.clone());
        let mut names = names.clone();
        names.insert(last, sum);
        let (query, key) = (plain(t, args[0], &names, q)?, plain(t, args[1], &names, k)?);
        if !unit(t, &query, sum) || !unit(t, &key, sum) || t.vars.size(sum).as_const().is_none() {
            return None;
        }
        terms.push(Term { query, key, sum });
    }
    let value = plain(t, rest[0], &names, &set.value)?;
    if !unit(t, &value, element) {
        return None;
    }
    let rows = match &set.rows {
        Visible::All => Rows::All,
        Visible::Causal => Rows::Causal,
        Visible::Interval(lo, hi) => {
            let (lo, hi) = (coordinates(&names, lo)?, coordinates(&names, hi)?);
            Rows::Interval(bound(t, rest[1], lo)?, bound(t, rest[2], hi)?)
        }
        Visible::Masked(letters) => Rows::Masked(mask(t, rest[1], coordinates(&names, letters)?)?),
        Visible::Selected(letters) => {
            let place = t.vars.letter(letter, t.ty(rest[1]).shape.last()?.clone());
            names.insert(letter, place);
            Rows::Selected(traced(t, rest[1], &names, letters)?, place)
        }
    };
    Some(Set { key, terms, value, rows })
}

impl fmt::Display for Desc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "attention @{} scale {}", self.name, self.scale)?;
        write!(f, "{}", self.vars)?;
        let show = |a: &Access| self.vars.show_access(a);
        for set in &self.sets {
            let seen = match &set.rows {
                Rows::All => "all".to_owned(),
                Rows::Causal => "causal".to_owned(),
                Rows::Interval(lo, hi) => {
                    let show = |b: &Bound| match b {
                        Bound::Read(a) => show(a),
                        Bound::Known(at) => self.vars.show(at),
                    };
                    format!("from {} to {}", show(lo), show(hi))
                }
                Rows::Masked(mask) => {
                    let at: Vec<String> = mask.at.iter().map(|at| self.vars.show(at)).collect();
                    format!("where p{}[{}]", mask.param, at.join(", "))
                }
                Rows::Selected(ids, place) => format!("{} over {}", show(ids), self.vars.name(*place)),
            };
            writeln!(f, "  rows {} < {}: {seen}", self.vars.name(set.key), self.size(set.key))?;
            for t in &set.terms {
                writeln!(f, "    term {} . {} over {}", show(&t.query), show(&t.key), self.vars.name(t.sum))?;
            }
            writeln!(f, "    value {}", show(&set.value))?;
        }
        if let Some(sink) = &self.sink {
            writeln!(f, "  sink {}", show(sink))?;
        }
        for o in &self.epilogue.outputs {
            writeln!(f, "  store e{} to {}:p{}[{}]", o.node, o.dtype, o.param, self.vars.show(&o.at))?;
        }
        Ok(())
    }
}
