//! The problem: one attention, as addresses in parameters.

use crate::kernels::contract::desc::{Flat, flat_params};
use crate::kernels::contract::epilogue::{self, Epilogue, is_code, is_real};
use crate::kernels::contract::view::{Access, Affine, Tracer, Var, VarKind, Vars};
use hadal_ir::ops::Op;
use hadal_ir::ops::attention::{RowSet, Visible};
use hadal_ir::{Func, ValueId};
use hadal_types::{DType, Dim};
use std::collections::BTreeMap;
use std::fmt;

/// Scores of one kind: a query times keys. Keys that are joined from parts are a term for each.
#[derive(Clone, PartialEq, Debug)]
pub struct Term {
    /// The query.
    pub query: Access,
    /// The keys.
    pub key: Columns,
}

/// Columns of keys or values that are read in one place.
#[derive(Clone, PartialEq, Debug)]
pub struct Columns {
    /// Where, and their scale.
    pub at: Access,
    /// The letter of the column, consecutive. Columns that are the same in keys and in values have the same letter.
    pub column: Var,
    /// The first of them among all columns of the values.
    pub start: i64,
    /// How many.
    pub size: i64,
    /// How many columns share a scale, from the first one on; `None` where all do.
    pub block: Option<i64>,
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
    /// The values, column by column.
    pub values: Vec<Columns>,
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
        let columns = self.terms.iter().map(|t| &t.key).chain(&self.values).flat_map(|c| {
            let scale = c.at.scale.as_deref();
            [Some(&c.at), scale, scale.and_then(|s| s.scale.as_deref())].into_iter().flatten()
        });
        self.terms.iter().map(|t| &t.query).chain(columns).chain(seen).collect()
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
            !seen && !set.values.iter().chain(set.terms.iter().map(|t| &t.key)).any(|c| reads(&c.at))
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

/// The letter of so many columns.
fn columns(t: &mut Tracer<'_>, size: i64) -> Var {
    const NAME: char = '~';
    let size = Dim::from(size);
    let known = t.vars.list.iter().position(|v| v.kind == VarKind::Letter(NAME) && v.size == size);
    known.unwrap_or_else(|| t.vars.letter(NAME, size))
}

/// Where the columns of keys or values are: those with numbers `column`, of which there are `size`, from `start` on.
fn joined(
    t: &mut Tracer<'_>,
    value: ValueId,
    coords: Vec<Affine>,
    column: Var,
    (start, size): (i64, i64),
) -> Option<Vec<Columns>> {
    match t.def(value) {
        Some((Op::Concat(concat), inst)) => {
            // Which part a column is in follows from the column alone.
            let at = &coords[concat.axis];
            let offset = at.offset.as_const().filter(|_| *at == Affine::var(column).plus(&at.offset.clone().into()))?;
            let plain = coords.iter().all(|c| t.vars.stride(c, column).is_some());
            let (mut out, mut first) = (Vec::new(), 0);
            for arg in inst.args.iter().filter(|_| plain) {
                let width = t.ty(*arg).shape[concat.axis].as_const()?;
                let (lo, hi) = ((first - offset).max(0), (first + width - offset).min(size));
                if lo < hi {
                    let part = columns(t, hi - lo);
                    let mut coords: Vec<Affine> =
                        coords.iter().map(|c| renamed(c, column, part, lo)).collect::<Option<_>>()?;
                    coords[concat.axis] = coords[concat.axis].clone().plus(&Dim::from(-first).into());
                    out.extend(joined(t, *arg, coords, part, (start + lo, hi - lo))?);
                }
                first += width;
            }
            plain.then_some(out)
        }
        Some((Op::Broadcast(_) | Op::Reshape(_) | Op::Transpose(_) | Op::Slice(_), _)) => {
            let (op, inst) = t.def(value)?;
            let (from, coords) = t.step(op, &inst.args, &coords)?;
            joined(t, from, coords, column, (start, size))
        }
        Some((Op::Cast(c), inst)) if c.to == DType::F32 && t.ty(inst.args[0]).dtype.is_float() => {
            joined(t, inst.args[0], coords, column, (start, size))
        }
        _ => {
            let at = t.access(value, coords)?;
            let whole = t.vars.whole_bytes(&at, column) && at.offset.is_none();
            let unit = t.vars.stride(&at.at, column).is_some_and(|s| s.is(1));
            let block = scale_block(&t.vars, &at, column)?;
            // Packed elements are taken in vectors that share a scale.
            let aligned = !at.dtype.is_packed() || block.is_none_or(|n| n % 16 == 0);
            let known = if at.scale.is_some() { is_code(at.dtype) } else { is_real(at.dtype) };
            let good = whole && unit && aligned && known && t.vars.gathers(&at).is_empty();
            good.then(|| vec![Columns { at, column, start, size, block }])
        }
    }
}

/// `lo` more of `to` instead of `from`.
fn renamed(form: &Affine, from: Var, to: Var, lo: i64) -> Option<Affine> {
    let mut form = form.clone();
    let Some(k) = form.terms.remove(&from) else { return Some(form) };
    let moved = Affine::var(to).plus(&Dim::from(lo).into()).times(&k)?;
    Some(form.plus(&moved))
}

/// How many columns share a scale: `Some(None)` where all do, `None` where that is not known.
fn scale_block(vars: &Vars, access: &Access, column: Var) -> Option<Option<i64>> {
    let Some(scale) = &access.scale else { return Some(None) };
    if !vars.reads(scale, column) {
        return Some(None);
    }
    if scale.scale.as_ref().is_some_and(|s| vars.reads(s, column)) || scale.at.terms.contains_key(&column) {
        return None;
    }
    let mut block = None;
    for v in scale.at.terms.keys().filter(|v| vars.depends(&Affine::var(**v), column)) {
        match &vars.list[*v].kind {
            VarKind::Div(of, by) if *of == Affine::var(column) && block.is_none() => block = Some(*by),
            _ => return None,
        }
    }
    block.map(Some)
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
    let mut terms = Vec::new();
    for ((q, k), args) in set.terms.iter().zip(pairs.chunks(2)) {
        let size = t.ty(args[0]).shape.last()?.as_const()?;
        // Terms may use one letter with different sizes, so it is not among the names.
        let whole = columns(t, size);
        names.insert(q.chars().last()?, whole);
        let key = coordinates(&names, k)?;
        for key in joined(t, args[1], key, whole, (0, size))? {
            names.insert(q.chars().last()?, key.column);
            let at = coordinates(&names, q)?;
            let (last, first) = (at.len() - 1, Affine::from(Dim::from(key.start)));
            let at = at.into_iter().enumerate().map(|(i, a)| if i == last { a.plus(&first) } else { a }).collect();
            let query = t.access(args[0], at)?;
            if query.scale.is_some() || !t.vars.gathers(&query).is_empty() || !is_real(query.dtype) {
                return None;
            }
            t.vars.stride(&query.at, key.column).filter(|s| s.is(1))?;
            terms.push(Term { query, key });
        }
        names.remove(&q.chars().last()?);
    }
    let size = t.vars.size(element).as_const()?;
    let whole = columns(t, size);
    names.insert(set.value.chars().last()?, whole);
    let value = coordinates(&names, &set.value)?;
    let values = joined(t, rest[0], value, whole, (0, size))?;
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
    Some(Set { key, terms, values, rows })
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
                writeln!(f, "    term {} . {} over {} columns", show(&t.query), show(&t.key.at), t.key.size)?;
            }
            for v in &set.values {
                writeln!(f, "    values from {}: {} columns of {}", v.start, v.size, show(&v.at))?;
            }
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
