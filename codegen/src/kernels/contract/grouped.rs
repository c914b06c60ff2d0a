//! Rows that share what an index chooses: the rows of an expert meet its weights together.
//!
//! ```text
//! y[t, k, f] = Σ_d x[t, d] · w[e[t, k], f, d]
//! ```
//!
//! Read as it stands every `(t, k)` reads the matrix of its expert by itself. Grouped, `(t, k)` are numbered as *rows*, a
//! grid index is one value `G` of the gathered axis with a block of columns, and it begins with listing the rows whose
//! index is `G`. What follows is a product of two matrices as any other, of so many rows as the list is long, whose
//! variables [`VarKind::Listed`] say where a row is. Nothing is copied or sorted in memory, and no launch is added.
//!
//! A step has few rows and often more experts than rows. There a grid index belongs to a row, and has work if the row is
//! the first that chose its expert; the order of work in memory stays that of single rows.
//!
//! A row whose index is outside the axis is listed where it would be clamped to, and its sum is zero.
//!
//! **Cost.** Listing looks at every index once for each grid index; blocks of columns are long enough for that.

use super::desc::{Desc, Role};
use super::env::Env;
use super::epilogue::{Epilogue, Node, Output};
use super::view::{Access, Affine, Var, VarKind, Vars};
use hadal_ir::kernel::{Builder, LoopKind, Value};
use hadal_types::{DType, Dim};

/// What is listed.
#[derive(Clone, PartialEq, Debug)]
pub struct Grouped {
    /// The operand whose elements an index chooses.
    pub operand: usize,
    /// The letter of the gathered axis.
    pub group: Var,
    /// The letter of the listed rows: as many as there are of them, at most all.
    pub rows: Var,
    /// The number of a listed row among all.
    pub row: Var,
    /// The largest number of rows that can be expected to share a group.
    pub shared: Dim,
    /// Whether a grid index belongs to a row, rather than to a group.
    pub each_row: bool,
    /// The index of a row.
    pub index: Access,
    /// The last element of the gathered axis.
    pub last: Dim,
}

impl Desc {
    /// The same product with rows grouped by what an index chooses for them; `None` where there is no such index or
    /// only one token: its own choices differ.
    pub fn grouped(&self) -> Option<Desc> {
        [1, 0].into_iter().find_map(|operand| self.grouped_by(operand))
    }

    fn grouped_by(&self, operand: usize) -> Option<Desc> {
        let old = &self.vars;
        let [chosen] = old.gathers(&self.operands[operand])[..] else { return None };
        let VarKind::Gather { index, last } = &old.list[chosen].kind else { return None };
        let letters = 0..self.roles.len();
        let (own, others): (Vec<Var>, Vec<Var>) = letters.partition(|v| old.reads(index, *v));
        let (first, rest) = own.split_first()?;
        let single = old.size(*first).is(1) || own.iter().any(|v| self.roles[*v] == Role::Summed);
        if single || !rest.iter().all(|v| old.size(*v).as_const().is_some_and(|n| n > 0)) {
            return None;
        }
        let mut vars = Vars::default();
        let group = vars.letter('G', last.clone() + 1i64);
        let all = own.iter().try_fold(Dim::from(1i64), |n, v| n.checked_mul(old.size(*v)))?;
        let rows = vars.letter('R', all.clone());
        let mut map = vec![Affine::default(); old.list.len()];
        for v in others {
            let VarKind::Letter(name) = old.list[v].kind else { return None };
            map[v] = Affine::var(vars.letter(name, old.size(v).clone()));
        }
        let letters = vars.list.len();
        let row = vars.derived(VarKind::Listed(rows), all);
        let mut number = Affine::var(row);
        for v in rest.iter().rev() {
            (number, map[*v]) = vars.split(&number, old.size(*v))?;
        }
        map[*first] = number;
        // The gather stays what it is for all but the operand that is grouped by it.
        vars.substitute(old, &mut map, self.roles.len(), None)?;
        let mut grouped = map.clone();
        vars.substitute(old, &mut grouped, self.roles.len(), Some((chosen, group)))?;
        let mut operands = self.operands.clone();
        for (i, a) in operands.iter_mut().enumerate() {
            *a = vars.substituted(a, if i == operand { &grouped } else { &map })?;
        }
        let index = vars.substituted(index, &map)?;
        let epilogue = self.epilogue.substituted(&vars, &map, (&index, last))?;
        if vars.reads(&operands[operand], rows) {
            return None;
        }
        let summed = letters - self.of_role(Role::Summed).count();
        let roles = (0..letters).map(|v| match (vars.reads(&operands[0], v), vars.reads(&operands[1], v)) {
            _ if v == group => Role::Batch,
            _ if v >= summed => Role::Summed,
            (true, true) => Role::Batch,
            (true, false) => Role::Left,
            (false, true) => Role::Right,
            (false, false) => Role::Repeat,
        });
        let roles = roles.collect();
        let (shared, each_row) = (old.size(*first).clone(), self.in_steps());
        let grouped = Grouped { operand, group, rows, row, shared, each_row, index, last: last.clone() };
        let (name, params, ranges) = (self.name.clone(), self.params.clone(), self.ranges.clone());
        Some(Desc { name, vars, roles, operands, epilogue, params, ranges, grouped: Some(grouped) })
    }
}

impl Epilogue {
    /// In other variables, where sums count as zero if this index is outside its axis.
    fn substituted(&self, vars: &Vars, map: &[Affine], (index, last): (&Access, &Dim)) -> Option<Epilogue> {
        let node = |n: &Node| match n {
            Node::Load(a) => vars.substituted(a, map).map(Node::Load),
            Node::Sum => Some(Node::SumInside(Box::new(index.clone()), last.clone())),
            _ => Some(n.clone()),
        };
        let output = |o: &Output| Some(Output { at: vars.substitute_in(&o.at, map)?, ..o.clone() });
        Some(Epilogue {
            nodes: self.nodes.iter().map(node).collect::<Option<_>>()?,
            outputs: self.outputs.iter().map(output).collect::<Option<_>>()?,
        })
    }
}

impl Vars {
    /// Completes `map`, which says what the letters of `old` are here, for its derived variables, of which one may have
    /// become a letter.
    fn substitute(&mut self, old: &Vars, map: &mut [Affine], letters: usize, one: Option<(Var, Var)>) -> Option<()> {
        for (v, info) in old.list.iter().enumerate().skip(letters) {
            let kind = match &info.kind {
                _ if one.is_some_and(|(was, _)| was == v) => {
                    map[v] = one.map(|(_, is)| Affine::var(is))?;
                    continue;
                }
                VarKind::Letter(_) | VarKind::Listed(_) => return None,
                VarKind::Gather { index, last } => {
                    VarKind::Gather { index: Box::new(self.substituted(index, map)?), last: last.clone() }
                }
                VarKind::Div(of, by) => VarKind::Div(self.substitute_in(of, map)?, *by),
                VarKind::Rem(of, by) => VarKind::Rem(self.substitute_in(of, map)?, *by),
            };
            map[v] = Affine::var(self.derived(kind, info.size.clone()));
        }
        Some(())
    }

    fn substitute_in(&self, at: &Affine, map: &[Affine]) -> Option<Affine> {
        let start = Affine::from(at.offset.clone());
        let sum = at.terms.iter().try_fold(start, |sum, (v, k)| Some(sum.plus(&map[*v].times(k)?)))?;
        self.rejoin(sum)
    }

    fn substituted(&self, a: &Access, map: &[Affine]) -> Option<Access> {
        let part = |p: &Option<Box<Access>>| match p {
            Some(p) => self.substituted(p, map).map(|p| Some(Box::new(p))),
            None => Some(None),
        };
        let at = self.substitute_in(&a.at, map)?;
        Some(Access { param: a.param, dtype: a.dtype, at, scale: part(&a.scale)?, offset: part(&a.offset)? })
    }
}

impl Grouped {
    /// Lists the rows of a grid index, which is bound to the letter of groups, and binds that letter to the group; and says
    /// how many they are.
    pub fn list<'a>(&self, b: &mut Builder, env: &Env<'a>) -> (Env<'a>, Value) {
        let all = self.all(env.vars);
        let list = b.alloc("listed", DType::I32, [all.clone()]);
        let own = env.bound[self.group].unwrap_or_else(|| b.const_i64(0));
        let (zero, one, end) = (b.const_i64(0), b.const_i64(1), b.dim(all));
        let group_of = |b: &mut Builder, row: Value| env.with(self.row, row).clamped(b, &self.index, &self.last);
        let group = if self.each_row { group_of(b, own) } else { own };
        let count = b.for_loop(zero, end, 1, LoopKind::Serial, &[zero], |b, row, count| {
            let other = group_of(b, row);
            // Written in any case and counted if it is one: there is room for as many as have been looked at.
            let number = b.cast(row, DType::I32);
            b.store(list, &[count[0]], number);
            let (same, more) = (b.eq(other, group), b.add(count[0], one));
            vec![b.select(same, more, count[0])]
        });
        let mut count = count[0];
        if self.each_row {
            let first = b.load(list, &[zero], 1);
            let first = b.cast(first, DType::I64);
            let leads = b.eq(first, own);
            count = b.select(leads, count, zero);
        }
        let mut env = env.with(self.group, group);
        env.listed = Some((self.rows, list));
        (env, count)
    }

    /// How many rows there are in all groups.
    fn all<'v>(&self, vars: &'v Vars) -> &'v Dim {
        vars.size(self.rows)
    }

    /// The size of the grid's dimension of groups.
    pub fn extent<'v>(&self, vars: &'v Vars) -> &'v Dim {
        if self.each_row { self.all(vars) } else { vars.size(self.group) }
    }
}
