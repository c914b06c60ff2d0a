//! Rows that share what an index chooses: the rows of an expert meet its weights together.
//!
//! ```text
//! y[t, k, f] = Σ_d x[t, d] · w[e[t, k], f, d]
//! ```
//!
//! Read as it stands every `(t, k)` reads the matrix of its expert by itself. Grouped, `(t, k)` are numbered as *rows*,
//! a grid index is one value `G` of the gathered axis with a block of columns, and it begins with listing the rows
//! whose index is `G`. What follows is a product of two matrices as any other, of so many rows as the list is long,
//! whose variables [`VarKind::Listed`] say where a row is. Nothing is copied or sorted in memory, and no launch is
//! added.
//!
//! A step has few rows and often more experts than rows. There a grid index belongs to a row, and has work if the row
//! is the first that chose its expert; the order of work in memory stays that of single rows.
//!
//! A row whose index is outside the axis is listed where it would be clamped to, and its sum is zero.
//!
//! **Cost.** Listing looks at every index once for each grid index; blocks of columns are long enough for that.

use super::desc::{Desc, Role};
use super::env::Env;
use super::epilogue::{Epilogue, Node, Output};
use super::view::{Access, Affine, Var, VarKind, Vars};
use hadal_ir::kernel::{Buf, Builder, LoopKind, ReduceOp, Space, Swizzle, Value};
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
        // A row whose index is outside has no sum.
        let inside = Node::SumInside(Box::new(index.clone()), last.clone());
        let epilogue = self.epilogue.substituted(&vars, &map, &inside)?;
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
    /// In other variables, with something else as the sum.
    pub(super) fn substituted(&self, vars: &Vars, map: &[Affine], sum: &Node) -> Option<Epilogue> {
        let node = |n: &Node| match n {
            Node::Load(a) => vars.substituted(a, map).map(Node::Load),
            Node::Sum => Some(sum.clone()),
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
    pub(super) fn substitute(
        &mut self,
        old: &Vars,
        map: &mut [Affine],
        letters: usize,
        one: Option<(Var, Var)>,
    ) -> Option<()> {
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

    pub(super) fn substituted(&self, a: &Access, map: &[Affine]) -> Option<Access> {
        let part = |p: &Option<Box<Access>>| match p {
            Some(p) => self.substituted(p, map).map(|p| Some(Box::new(p))),
            None => Some(None),
        };
        let at = self.substitute_in(&a.at, map)?;
        Some(Access { param: a.param, dtype: a.dtype, at, scale: part(&a.scale)?, offset: part(&a.offset)? })
    }
}

impl Grouped {
    /// Lists the rows of a grid index, which is bound to the letter of groups, and binds that letter to the group; and
    /// says how many they are.
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

    /// The same where lanes are those of a warp, which look at as many rows at once.
    pub fn list_by_lanes<'a>(&self, b: &mut Builder, env: &Env<'a>) -> (Env<'a>, Value) {
        let all = self.all(env.vars);
        let list = b.alloc("listed", DType::I32, [all.clone()]);
        let (zero, end) = (b.const_i64(0), b.dim(all));
        let count = self.scan(b, env, (zero, end), Some((list, zero)));
        let mut env = env.clone();
        env.listed = Some((self.rows, list));
        (env, count)
    }

    /// The same by so many warps of a block, each of which lists a part of the rows behind what those before it list. Gives
    /// where the warps' numbers of rows are: their sum is known behind it.
    pub fn list_by_warps<'a>(&self, b: &mut Builder, env: &Env<'a>, warps: i64) -> (Env<'a>, Listed) {
        let all = self.all(env.vars);
        let list = b.alloc_in(Space::Shared, Swizzle::None, "listed", DType::I32, [all.clone()]);
        let counts = b.alloc_in(Space::Shared, Swizzle::None, "counted", DType::I64, [warps]);
        let (zero, end, count) = (b.const_i64(0), b.dim(all), b.const_i64(warps));
        let more = b.const_i64(warps - 1);
        let up = b.add(end, more);
        let part = b.div(up, count);
        let rows = |b: &mut Builder, warp: Value| {
            let from = b.mul(warp, part);
            let to = b.add(from, part);
            (from, b.min(to, end))
        };
        let listed = Listed { counts, warps };
        b.for_each(zero, count, 1, LoopKind::Warp, |b, warp| {
            let rows = rows(b, warp);
            let found = self.scan(b, env, rows, None);
            b.store(counts, &[warp], found);
        });
        b.for_each(zero, count, 1, LoopKind::Warp, |b, warp| {
            let (rows, before) = (rows(b, warp), listed.before(b, warp));
            self.scan(b, env, rows, Some((list, before)));
        });
        let mut env = env.clone();
        env.listed = Some((self.rows, list));
        (env, listed)
    }

    /// Counts the rows of a range that are of the group, and lists them from a place on.
    fn scan(&self, b: &mut Builder, env: &Env<'_>, (from, to): (Value, Value), list: Option<(Buf, Value)>) -> Value {
        let group = env.bound[self.group].unwrap_or_else(|| b.const_i64(0));
        let start = list.map_or_else(|| b.const_i64(0), |l| l.1);
        let (iota, last, zero) = (b.iota(DType::I64, SCANNED), b.dim(&self.last), b.const_i64(0));
        let splat = |b: &mut Builder, v: Value| b.splat(v, SCANNED);
        let count = b.for_loop(from, to, SCANNED.into(), LoopKind::Serial, &[start], |b, row, count| {
            let first = splat(b, row);
            let rows = b.add(first, iota);
            let end = splat(b, to);
            let inside = b.lt(rows, end);
            let at = env.lanes_at(b, &self.index.at, (self.row, rows));
            let chosen = b.load_masked(env.bufs[self.index.param], &[at], inside, None);
            let chosen = b.cast(chosen, DType::I64);
            let [zero, last, group] = [zero, last, group].map(|v| splat(b, v));
            let chosen = b.max(chosen, zero);
            let chosen = b.min(chosen, last);
            let same = b.eq(chosen, group);
            let same = b.and(same, inside);
            if let Some((list, _)) = list {
                let (rank, before) = (b.rank(same), splat(b, count[0]));
                let place = b.add(before, rank);
                let number = b.cast(rows, DType::I32);
                b.store_masked(list, &[place], number, same);
            }
            let ones = b.cast(same, DType::I32);
            let more = b.reduce_lanes(ReduceOp::Add, ones);
            let more = b.cast(more, DType::I64);
            vec![b.add(count[0], more)]
        });
        b.sub(count[0], start)
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

/// Rows that lanes look at at once.
const SCANNED: u32 = 128;

/// How many rows each warp has listed.
#[derive(Clone, Copy)]
pub struct Listed {
    counts: Buf,
    warps: i64,
}

impl Listed {
    /// All rows.
    pub fn total(self, b: &mut Builder) -> Value {
        let all = b.const_i64(self.warps);
        self.before(b, all)
    }

    /// Those of the warps before one.
    fn before(self, b: &mut Builder, warp: Value) -> Value {
        let zero = b.const_i64(0);
        (0..self.warps).fold(zero, |sum, other| {
            let other = b.const_i64(other);
            let (found, counts) = (b.load(self.counts, &[other], 1), b.lt(other, warp));
            let found = b.select(counts, found, zero);
            b.add(sum, found)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::schedule::{Form, candidates};
    use super::super::tests::{arguments, close, compiled, function, interpreted, kernel};
    use super::super::{Desc, emit};
    use crate::kernels::{Ranges, Target};
    use hadal_ir::module::STEP;
    use hadal_ir::{Bindings, Func, Range, Tensor, interpret};
    use hadal_types::{DType, Sym};

    const WIDE: Target = Target { lanes: 16, registers: 32, dots: true, warpgroups: false, cache: 4 * 32 * 64 };

    /// Which expert the n-th choice of all is, of so many.
    type Choice = fn(i64, i64) -> i64;

    /// Which experts rows choose.
    const CHOICES: [(&str, Choice); 6] = [
        ("all the same", |_, e| e / 2),
        ("none that is there", |i, e| if i % 2 == 0 { -1 } else { e + i }),
        ("each another", |i, e| i % e),
        ("most the first", |i, e| if i % 7 == 3 { i * 5 % e } else { 0 }),
        ("some nobody", |i, e| i * 11 % (e + 2) - 1),
        ("neighbours alike", |i, e| i / 5 % e),
    ];

    /// A format of weights, and the format and block of their scales.
    type Weights = (&'static str, Option<(&'static str, [i64; 2])>);

    const BF16: Weights = ("bf16", None);
    const F8: Weights = ("f8e4m3", Some(("f32", [16, 32])));
    const F4: Weights = ("f4e2m1", Some(("f8e8m0", [1, 32])));
    const I8: Weights = ("i8", Some(("f16", [1, 32])));
    const I4: Weights = ("i4", Some(("f16", [1, 32])));

    /// `y[t, k, f] = x w[e]` of rows and weights in these formats; each choice has a row of its own where `own` says
    /// so.
    fn experts(x: &str, (format, scales): Weights, own: bool, [e, k, f, d]: [i64; 4]) -> Func {
        let (given, spec) = match own {
            true => (format!("T, {k}, {d}"), "tkd,tkfd->tkf"),
            false => (format!("T, {d}"), "td,tkfd->tkf"),
        };
        let (stored, scaled) = if scales.is_some() { ("f32", "%0") } else { (format, "%w") };
        let (param, dequantize) = scales.map_or_else(Default::default, |(s, [m, n])| {
            (
                format!(", %s: {s}[{e}, {}, {}]", (f + m - 1) / m, (d + n - 1) / n),
                format!("  %0 = dequantize %w, %s {{block = [1, {m}, {n}]}} : f32[{e}, {f}, {d}]\n"),
            )
        });
        let body = format!(
            "{dequantize}  %1 = gather {scaled}, %e {{axis = 0}} : {stored}[T, {k}, {f}, {d}]
  %2 = contract %x, %1 {{spec = \"{spec}\"}} : f32[T, {k}, {f}]
  %3 = sigmoid %2 : f32[T, {k}, {f}]
  %y = mul %3, %g : f32[T, {k}, {f}]"
        );
        let params =
            format!("%x: {x}[{given}], %w: {format}[{e}, {f}, {d}]{param}, %e: i32[T, {k}], %g: f32[T, {k}, {f}]");
        function(&kernel(&params, &body, &format!("f32[T, {k}, {f}]")))
    }

    /// The function's arguments with these choices.
    fn chosen(func: &Func, t: i64, choose: impl Fn(i64) -> i64) -> Vec<Tensor> {
        let mut args = arguments(func, &Bindings::from([(Sym::T, t)]), 5);
        let e = args.iter().position(|a| a.dtype == DType::I32).unwrap();
        let shape = args[e].shape.clone();
        let count: usize = shape.iter().product();
        args[e] = Tensor::int(DType::I32, &shape, (0..count as i64).map(choose).collect());
        args
    }

    /// All grouped schedules give what the graph interpreter does, whoever chooses what.
    fn check(func: &Func, experts: i64, t: i64, step: bool) {
        let ranges = if step { Ranges::from([(Sym::T, Range { min: 1, max: STEP })]) } else { Ranges::new() };
        let desc = Desc::of(func).unwrap().within(&ranges);
        let desc = desc.grouped().expect("rows that can be grouped");
        let bindings = Bindings::from([(Sym::T, t)]);
        let all: Vec<_> = [Target::default(), WIDE].iter().flat_map(|target| candidates(&desc, target)).collect();
        assert!(!all.is_empty() && step == all.iter().any(|s| s.step));
        assert_eq!(!step, all.iter().any(|s| s.form == Form::Packed));
        for s in &all {
            let made = emit::emit(&desc, s);
            let errors = hadal_ir::kernel::verify::verify(&made);
            assert!(errors.is_empty(), "{errors:?}\n{made}");
            for (i, (what, choose)) in CHOICES.into_iter().enumerate() {
                let args = chosen(func, t, |i| choose(i, experts));
                let found = interpreted(&made, func, &args, &bindings);
                let expected = interpret::eval_func(func, &args, &bindings).unwrap();
                let written = found[0].initialised.iter().all(|i| *i);
                assert!(written, "{what}: rows are missing\n{}", s.show(&desc));
                close(&found[0], &expected[0], 1e-5, &|| format!("{what}: {}\n{desc}\n{made}", s.show(&desc)));
                // Code is made anew each time.
                if i + 2 == CHOICES.len() {
                    compiled(&made, func, &args, &bindings, &found, (true, s.register > 8));
                }
            }
        }
    }

    #[test]
    fn rows_meet_what_they_choose() {
        for (x, weights, own, t, sizes) in [
            ("f32", BF16, false, 13, [5, 3, 36, 70]),
            ("bf16", BF16, true, 9, [16, 2, 40, 64]),
            ("bf16", F8, false, 15, [1, 1, 40, 96]),
            ("f32", F4, true, 5, [3, 4, 33, 64]),
            ("bf16", I8, false, 40, [3, 1, 33, 64]),
            ("f32", I4, false, 1, [4, 2, 32, 64]),
            ("f32", BF16, false, 8, [128, 8, 4, 16]),
        ] {
            check(&experts(x, weights, own, sizes), sizes[0], t, false);
            check(&experts(x, weights, own, sizes), sizes[0], t.min(7), true);
        }
    }

    /// A row has the same bits alone and with others, whatever these choose, in steps and in chunks.
    #[test]
    fn a_row_has_the_same_bits_in_every_company() {
        let steps = Ranges::from([(Sym::T, Range { min: 1, max: STEP })]);
        for (x, weights, own) in [("f32", BF16, false), ("bf16", BF16, true), ("bf16", F8, false), ("f32", I8, false)] {
            let func = experts(x, weights, own, [4, 2, 36, 72]);
            for (target, ranges, t) in [
                (Target::default(), Ranges::new(), 19),
                (WIDE, Ranges::new(), 19),
                (Target::default(), steps.clone(), 8),
                (WIDE, steps.clone(), 8),
            ] {
                let run = |func: &Func, args: &[Tensor], t: i64| {
                    let generated = super::super::generate(func, &ranges, &target).unwrap().next().unwrap();
                    let bindings = Bindings::from([(Sym::T, t)]);
                    (interpreted(&generated.kernel, func, args, &bindings).remove(0).bytes, generated.schedule)
                };
                let all = chosen(&func, t, |i| i * i % 4);
                let (together, shown) = run(&func, &all, t);
                assert!(shown.contains("choose"), "{shown}");
                // The first token by itself, as an entry for one token has it.
                let text = hadal_ir::text::print_func(&func).replace("[T", "[1");
                let alone = function(&text);
                let first: Vec<Tensor> = all.iter().map(|a| first_token(a, t as usize)).collect();
                if ranges.is_empty() {
                    let (bits, _) = run(&func, &first, 1);
                    assert_eq!(together[..bits.len()], bits, "{shown}");
                } else {
                    let (bits, shown_alone) = run(&alone, &first, 1);
                    assert!(!shown_alone.contains("choose"), "{shown_alone}");
                    assert_eq!(together[..bits.len()], bits, "{shown}\n{shown_alone}");
                }
            }
        }
    }

    /// The part of the first of `t` tokens.
    fn first_token(a: &Tensor, t: usize) -> Tensor {
        if a.shape[0] != t {
            return a.clone();
        }
        let mut shape = a.shape.clone();
        shape[0] = 1;
        let count = shape.iter().product();
        match a.dtype {
            DType::I32 => Tensor::int(a.dtype, &shape, (0..count).map(|i| a.at(i) as i64).collect()),
            _ => Tensor::real(a.dtype, &shape, a.reals()[..count].to_vec()),
        }
    }
}
