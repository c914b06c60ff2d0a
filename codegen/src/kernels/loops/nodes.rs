//! Scalar programs: what one element of a value is, as a graph of operations on elements of buffers.
//!
//! [`Nodes::eval`] walks from a value at some index expressions back to buffers. Views only change indices; equal
//! operations on equal operands are one node. A node knows which loop variables it depends on, which later decides
//! how far out of the loops it is computed and whether it can be computed for several elements at once.
//!
//! Where an index expression does not simplify because a loop crosses a border (two joined tensors, blocks of a
//! reshape), a [`Wish`] is noted, and [`Nodes::nest`] cuts the loop there and tries again.

use super::super::Error;
use super::super::index::{Atom, Expr, Space, Var, at_most, never_empty, reshape};
use hadal_ir::kernel::{BinaryOp, CompareOp, Const, UnaryOp};
use hadal_ir::ops::map::MapFn;
use hadal_ir::ops::reduce::ReduceKind;
use hadal_ir::ops::*;
use hadal_ir::{Func, InstKind, ValueId};
use hadal_types::{DType, Dim};
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

/// A node, by number. Operands come before what uses them.
pub type Id = u32;

/// Where elements are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Source {
    /// A parameter of the function, by position.
    Param(usize),
    /// A value held in scratch memory.
    Held(ValueId),
}

/// One operation on elements.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Node {
    /// A constant.
    Const(Const),
    /// An index as a number.
    Index(Expr),
    /// An element; where the guard is false memory is not touched.
    Load {
        /// Which buffer.
        from: Source,
        /// One index per axis of the value.
        index: Vec<Expr>,
        /// Whether to read at all.
        guard: Option<Id>,
    },
    /// One operand.
    Unary(UnaryOp, Id),
    /// Two operands.
    Binary(BinaryOp, Id, Id),
    /// A comparison.
    Compare(CompareOp, Id, Id),
    /// The second operand where the first is true, else the third.
    Select(Id, Id, Id),
    /// Another format.
    Cast(Id, DType),
    /// The body combined over all values of loop variables, in order.
    Reduce {
        /// How.
        kind: ReduceKind,
        /// Loops, outermost first.
        vars: Vec<Var>,
        /// What is combined.
        body: Id,
    },
}

/// A loop that should be cut so that an index expression simplifies.
#[derive(Clone, PartialEq, Debug)]
pub enum Wish {
    /// Into what is below a point and the rest.
    Break(Var, Dim),
    /// Into blocks.
    Split(Var, i64),
}

/// A part of a loop nest: the loops that remain, outermost first, and what was built for them.
#[derive(Clone, Debug)]
pub struct Part<R> {
    /// Loop variables.
    pub vars: Vec<Var>,
    /// What was built.
    pub built: R,
}

/// The graph under construction.
pub struct Nodes<'a> {
    func: &'a Func,
    defs: Vec<Option<usize>>,
    params: HashMap<ValueId, usize>,
    /// Values that are read from scratch.
    held: &'a BTreeSet<ValueId>,
    /// Loop variables.
    pub space: Space,
    /// Variables that stand for the grid, and are not cut.
    pub fixed: BTreeSet<Var>,
    nodes: Vec<Node>,
    types: Vec<DType>,
    deps: Vec<Rc<BTreeSet<Var>>>,
    origins: Vec<ValueId>,
    known: HashMap<Node, Id>,
    memo: HashMap<(ValueId, Vec<Expr>, Option<Id>), Id>,
    /// Cuts that would help, of any loop.
    pub wishes: Vec<Wish>,
    /// The first thing that cannot be expressed.
    pub error: Option<Error>,
    origin: ValueId,
}

/// Parts and nested cuts one loop nest may have; beyond them indices stay as they are.
const MAX_CUTS: usize = 12;

/// The format computed in.
pub fn working(dtype: DType) -> DType {
    match dtype {
        DType::Bool => DType::Bool,
        d if d.is_int() => DType::I64,
        _ => DType::F32,
    }
}

impl<'a> Nodes<'a> {
    /// An empty graph for a function of primitives.
    pub fn new(func: &'a Func, held: &'a BTreeSet<ValueId>) -> Self {
        Nodes {
            func,
            defs: func.definitions(),
            params: func.params.iter().enumerate().map(|(i, p)| (*p, i)).collect(),
            held,
            space: Space::default(),
            fixed: BTreeSet::new(),
            nodes: Vec::new(),
            types: Vec::new(),
            deps: Vec::new(),
            origins: Vec::new(),
            known: HashMap::new(),
            memo: HashMap::new(),
            wishes: Vec::new(),
            error: None,
            origin: ValueId(0),
        }
    }

    /// A node.
    pub fn node(&self, id: Id) -> &Node {
        &self.nodes[id as usize]
    }

    /// Its format.
    pub fn ty(&self, id: Id) -> DType {
        self.types[id as usize]
    }

    /// The loop variables it depends on.
    pub fn deps(&self, id: Id) -> &BTreeSet<Var> {
        &self.deps[id as usize]
    }

    /// The value it was first made for.
    pub fn origin(&self, id: Id) -> ValueId {
        self.origins[id as usize]
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Format of a buffer.
    pub fn format(&self, from: Source) -> DType {
        match from {
            Source::Param(i) => self.func.ty(self.func.params[i]).dtype,
            Source::Held(v) => working(self.func.ty(v).dtype),
        }
    }

    /// Nodes an operation reads directly, index data included.
    pub fn operands(&self, id: Id) -> Vec<Id> {
        let data = |exprs: &[Expr], out: &mut Vec<Id>| {
            let mut note = |a: &Atom| {
                if let Atom::Data(n, _) = a {
                    out.push(*n);
                }
            };
            exprs.iter().for_each(|e| e.visit(&mut note));
        };
        let mut out = Vec::new();
        match self.node(id) {
            Node::Const(_) => {}
            Node::Index(e) => data(std::slice::from_ref(e), &mut out),
            Node::Load { index, guard, .. } => {
                data(index, &mut out);
                out.extend(guard);
            }
            Node::Unary(_, a) | Node::Cast(a, _) => out.push(*a),
            Node::Binary(_, a, b) | Node::Compare(_, a, b) => out.extend([*a, *b]),
            Node::Select(a, b, c) => out.extend([*a, *b, *c]),
            Node::Reduce { body, .. } => out.push(*body),
        }
        out
    }

    /// Everything that the roots need, themselves included, in order of numbers.
    pub fn reachable(&self, roots: &[Id]) -> Vec<Id> {
        let mut seen = BTreeSet::new();
        let mut open = roots.to_vec();
        while let Some(id) = open.pop() {
            if seen.insert(id) {
                open.extend(self.operands(id));
            }
        }
        seen.into_iter().collect()
    }

    /// The loop variables of index expressions, through data too.
    pub fn index_deps(&self, exprs: &[Expr]) -> BTreeSet<Var> {
        let mut deps = BTreeSet::new();
        for e in exprs {
            e.visit(&mut |a| match a {
                Atom::Var(v) => {
                    deps.insert(*v);
                }
                Atom::Data(n, _) => deps.extend(self.deps(*n)),
                Atom::Div(..) | Atom::Mod(..) => {}
            });
        }
        deps
    }

    /// Adds a node, or finds it.
    pub fn add(&mut self, node: Node, ty: DType) -> Id {
        if let Node::Cast(a, to) = node {
            if self.ty(a) == to {
                return a;
            }
            // Widening loses nothing, so narrowing again gives back the same.
            if let Node::Cast(inner, wide) = *self.node(a)
                && self.ty(inner) == to
                && (wide == DType::F32 && to.is_float() || wide == DType::I64 && to.is_int())
            {
                return inner;
            }
            // Small integers are reals as they are.
            if let Node::Cast(inner, DType::I64) = *self.node(a)
                && to == DType::F32
                && matches!(self.ty(inner), DType::U8 | DType::I8 | DType::U4 | DType::I4)
            {
                return self.add(Node::Cast(inner, to), ty);
            }
        }
        if let Some(id) = self.known.get(&node) {
            return *id;
        }
        let mut deps = match &node {
            Node::Index(e) => self.index_deps(std::slice::from_ref(e)),
            Node::Load { index, .. } => self.index_deps(index),
            _ => BTreeSet::new(),
        };
        self.nodes.push(node.clone());
        let id = self.nodes.len() as Id - 1;
        for o in self.operands(id) {
            deps.extend(self.deps(o));
        }
        if let Node::Reduce { vars, .. } = &node {
            vars.iter().for_each(|v| {
                deps.remove(v);
            });
        }
        self.types.push(ty);
        self.deps.push(Rc::new(deps));
        self.origins.push(self.origin);
        self.known.insert(node, id);
        id
    }

    fn cast(&mut self, a: Id, to: DType) -> Id {
        self.add(Node::Cast(a, to), to)
    }

    pub(super) fn binary(&mut self, op: BinaryOp, a: Id, b: Id) -> Id {
        self.add(Node::Binary(op, a, b), self.ty(a))
    }

    pub(super) fn compare(&mut self, op: CompareOp, a: Id, b: Id) -> Id {
        self.add(Node::Compare(op, a, b), DType::Bool)
    }

    pub(super) fn unary(&mut self, op: UnaryOp, a: Id) -> Id {
        self.add(Node::Unary(op, a), self.ty(a))
    }

    pub(super) fn select(&mut self, c: Id, a: Id, b: Id) -> Id {
        self.add(Node::Select(c, a, b), self.ty(a))
    }

    /// A constant.
    pub fn number(&mut self, value: f64, ty: DType) -> Id {
        let c = match ty {
            DType::F32 => Const::F32((value as f32).to_bits()),
            DType::Bool => Const::Bool(value != 0.0),
            _ => Const::I64(value as i64),
        };
        self.add(Node::Const(c), ty)
    }

    fn index(&mut self, e: Expr) -> Id {
        self.wish(std::slice::from_ref(&e));
        match e.as_dim().and_then(Dim::as_const) {
            Some(n) => self.add(Node::Const(Const::I64(n)), DType::I64),
            None => self.add(Node::Index(e), DType::I64),
        }
    }

    // ---- cutting loops ----

    /// Notes the cuts that would remove quotients and remainders of loop variables.
    fn wish(&mut self, exprs: &[Expr]) {
        for e in exprs {
            let mut wishes = Vec::new();
            e.visit(&mut |a| {
                if let Atom::Div(inner, by) | Atom::Mod(inner, by) = a
                    && let Some(by) = by.as_const()
                {
                    wishes.extend(self.cut_for(inner, by));
                }
            });
            self.wishes.extend(wishes);
        }
    }

    fn cut_for(&self, inner: &Expr, by: i64) -> Option<Wish> {
        let loops = inner.terms.iter().filter_map(|(a, k)| match a {
            Atom::Var(v) if !self.fixed.contains(v) => Some((*v, k.as_const()?)),
            _ => None,
        });
        // The innermost variable first: cutting it makes the others' quotients exact.
        let (v, k) = loops.filter(|(_, k)| *k > 0 && by % k == 0).min_by_key(|(_, k)| *k)?;
        let (block, extent) = (by / k, self.space.extents[v as usize].as_const());
        let start = inner.constant.as_const().unwrap_or(0).rem_euclid(by);
        if start % k != 0 || block <= 1 {
            return None;
        }
        let head = (block - start / k) % block;
        match extent {
            Some(n) if head > 0 && head < n => Some(Wish::Break(v, head.into())),
            Some(n) if n > block && n % block == 0 => Some(Wish::Split(v, block)),
            Some(n) if n > block => Some(Wish::Break(v, (n / block * block).into())),
            _ => None,
        }
    }

    /// Builds something for every element of `axes`, cutting loops where that simplifies indices.
    pub fn nest<R>(
        &mut self,
        axes: &[Expr],
        vars: Vec<Var>,
        mut build: impl FnMut(&mut Self, &[Expr]) -> R,
    ) -> Vec<Part<R>> {
        let mut parts = Vec::new();
        let mut open = vec![(axes.to_vec(), vars, 0)];
        while let Some((index, vars, depth)) = open.pop() {
            let first = self.wishes.len();
            let built = build(self, &index);
            let own = |w: &&Wish| match w {
                Wish::Break(v, _) | Wish::Split(v, _) => vars.contains(v),
            };
            let mut wishes: Vec<&Wish> = self.wishes[first..].iter().filter(own).collect();
            wishes.sort_by_key(|w| match w {
                Wish::Break(..) => 0,
                Wish::Split(_, n) => *n,
            });
            let Some(wish) = wishes.first().filter(|_| depth + parts.len() + open.len() < MAX_CUTS).copied() else {
                parts.push(Part { vars, built });
                continue;
            };
            match wish.clone() {
                Wish::Split(v, block) => {
                    let extent = self.space.extents[v as usize].as_const().unwrap_or(0);
                    let (q, outer) = self.loop_over((extent / block).into());
                    let (r, inner) = self.loop_over(block.into());
                    let with = q.checked_times(&block.into()).unwrap_or_default().plus(&r);
                    open.push((substitute(&index, v, &with), replace(&vars, v, &[outer, inner].concat()), depth + 1));
                }
                Wish::Break(v, point) => {
                    let rest = self.space.extents[v as usize].clone() - point.clone();
                    let (high, second) = self.loop_over(rest);
                    let (low, first) = self.loop_over(point.clone());
                    let high = high.offset(&point);
                    open.push((substitute(&index, v, &high), replace(&vars, v, &second), depth + 1));
                    open.push((substitute(&index, v, &low), replace(&vars, v, &first), depth + 1));
                }
            }
        }
        parts
    }

    /// A loop from 0 to below `extent`: its index, and its variable unless there is one iteration only.
    pub fn loop_over(&mut self, extent: Dim) -> (Expr, Vec<Var>) {
        if extent.is(1) {
            return (Expr::default(), vec![]);
        }
        let v = self.space.var(extent);
        (Expr::var(v), vec![v])
    }

    /// Loops over all of `shape`.
    pub fn loops_over(&mut self, shape: &[Dim]) -> (Vec<Expr>, Vec<Var>) {
        let (index, vars): (Vec<_>, Vec<_>) = shape.iter().map(|d| self.loop_over(d.clone())).unzip();
        (index, vars.concat())
    }

    fn reduce(&mut self, kind: ReduceKind, shape: &[Dim], mut body: impl FnMut(&mut Self, &[Expr]) -> Id) -> Id {
        let (index, vars) = self.loops_over(shape);
        let parts = self.nest(&index, vars, &mut body);
        let mut all = None;
        for Part { vars, built: body } in parts {
            let ty = self.ty(body);
            let part = if vars.is_empty() { body } else { self.add(Node::Reduce { kind, vars, body }, ty) };
            all = Some(match all {
                None => part,
                Some(sum) => self.binary(combine(kind, ty), sum, part),
            });
        }
        all.unwrap_or(0)
    }

    // ---- values ----

    /// The element of `v` at `at`. Where `guard` is false the result does not matter and memory is not touched.
    pub fn eval(&mut self, v: ValueId, at: &[Expr], guard: Option<Id>) -> Id {
        let key = (v, at.to_vec(), guard);
        if let Some(id) = self.memo.get(&key) {
            return *id;
        }
        let outer = std::mem::replace(&mut self.origin, v);
        let id = match self.params.get(&v) {
            Some(i) => self.load(Source::Param(*i), at, guard),
            None if self.held.contains(&v) => self.load(Source::Held(v), at, guard),
            None => self.define(v, at, guard),
        };
        self.origin = outer;
        self.memo.insert(key, id);
        id
    }

    fn load(&mut self, from: Source, at: &[Expr], guard: Option<Id>) -> Id {
        self.wish(at);
        let ty = self.format(from);
        let id = self.add(Node::Load { from, index: at.to_vec(), guard }, ty);
        self.cast(id, working(ty))
    }

    /// The element of `v` computed by the op that defines it, even where `v` is held.
    pub fn define(&mut self, v: ValueId, at: &[Expr], guard: Option<Id>) -> Id {
        let func = self.func;
        let inst = &func.insts[self.defs[v.index()].expect("neither parameter nor result of an instruction")];
        let InstKind::Op(op) = &inst.kind else { unreachable!("checked at the start") };
        let args = &inst.args;
        let shape = |i: usize| &func.ty(args[i]).shape;
        match op {
            Op::Map(map) => {
                let values: Vec<Id> = args.iter().map(|a| self.eval(*a, at, guard)).collect();
                let y = self.map(map.f, &values);
                let overflows =
                    matches!(map.f, MapFn::Neg | MapFn::Abs | MapFn::Add | MapFn::Sub | MapFn::Mul | MapFn::Div);
                let dtype = func.ty(v).dtype;
                if overflows && dtype.is_int() { self.round(y, dtype) } else { y }
            }
            Op::Cast(_) => {
                let a = self.eval(args[0], at, guard);
                self.round(a, func.ty(v).dtype)
            }
            Op::Broadcast(op) => {
                let at: Vec<Expr> = op.dims.iter().map(|d| at[*d].clone()).collect();
                self.eval(args[0], &at, guard)
            }
            Op::Transpose(op) => {
                let mut from = vec![Expr::default(); at.len()];
                op.perm.iter().zip(at).for_each(|(p, e)| from[*p] = e.clone());
                self.eval(args[0], &from, guard)
            }
            Op::Slice(op) => {
                let mut at = at.to_vec();
                let scaled = at[op.axis].checked_times(&Dim::from(op.step));
                at[op.axis] = scaled.unwrap_or_default().offset(&op.start);
                self.eval(args[0], &at, guard)
            }
            Op::Reshape(op) => match reshape(&self.space, shape(0), &op.shape, at) {
                Some(at) => self.eval(args[0], &at, guard),
                None => {
                    let (from, to) = (shape(0).clone(), op.shape.clone());
                    self.error.get_or_insert(Error::SymbolProduct { func: func.name.clone(), from, to });
                    self.number(0.0, working(func.ty(v).dtype))
                }
            },
            Op::Concat(op) => self.concat(args, op.axis, at, guard, None),
            Op::Append(_) => self.concat(args, 0, at, guard, Some(func.ty(v).dtype)),
            Op::Dequantize(op) => {
                let q = self.eval(args[0], at, guard);
                let q = self.cast(q, DType::F32);
                let blocks = at.iter().zip(&op.block).map(|(e, b)| self.space.div_mod(e, &Dim::from(*b)).0);
                let blocks: Vec<Expr> = blocks.collect();
                let s = self.eval(args[1], &blocks, guard);
                let scaled = self.binary(BinaryOp::Mul, q, s);
                let Some(offset) = args.get(2) else { return scaled };
                let m = self.eval(*offset, &blocks, guard);
                self.binary(BinaryOp::Add, scaled, m)
            }
            Op::Gather(op) => {
                let chosen = shape(1).len() - op.batch;
                let where_: Vec<Expr> = at[..op.batch].iter().chain(&at[op.axis..op.axis + chosen]).cloned().collect();
                let row = self.eval(args[1], &where_, guard);
                let size = shape(0)[op.axis].clone();
                let (zero, count) = (self.number(0.0, DType::I64), self.index(size.clone().into()));
                let (after, below) = (self.compare(CompareOp::Ge, row, zero), self.compare(CompareOp::Lt, row, count));
                let there = self.binary(BinaryOp::And, after, below);
                let mut at = at.to_vec();
                let x = if never_empty(&size) {
                    // Read from the nearest row that exists, so that memory is read plainly.
                    let last = self.index((size.clone() - 1i64).into());
                    let row = self.binary(BinaryOp::Min, row, last);
                    let row = self.binary(BinaryOp::Max, row, zero);
                    at.splice(op.axis..op.axis + chosen, [Expr::term(Atom::Data(row, size), 1.into())]);
                    self.eval(args[0], &at, guard)
                } else {
                    at.splice(op.axis..op.axis + chosen, [Expr::term(Atom::Data(row, size), 1.into())]);
                    let guard = guard.map_or(there, |g| self.binary(BinaryOp::And, g, there));
                    self.eval(args[0], &at, Some(guard))
                };
                let nothing = self.number(0.0, self.ty(x));
                self.select(there, x, nothing)
            }
            Op::Iota(op) => self.index(at[0].offset(&op.start)),
            Op::Constant(op) => {
                let ty = working(op.dtype);
                let i = at.first().and_then(|e| e.as_dim()?.as_const()).unwrap_or(0);
                let value = op.values.get(usize::try_from(i).unwrap_or(0)).map_or(0.0, |x| x.0);
                self.number(value, ty)
            }
            Op::Reduce(op) => {
                let shape = shape(0);
                let sizes: Vec<Dim> = op.axes.iter().map(|a| shape[*a].clone()).collect();
                let rank = shape.len();
                self.reduce(op.kind, &sizes, |this, inner| {
                    let (mut outer, mut inner) = (at.iter(), inner.iter());
                    let axis = |a| if op.axes.contains(&a) { inner.next() } else { outer.next() };
                    let at: Vec<Expr> = (0..rank).filter_map(axis).cloned().collect();
                    this.eval(args[0], &at, guard)
                })
            }
            Op::Contract(op) => {
                let types: Vec<_> = args.iter().map(|a| func.ty(*a).clone()).collect();
                let sizes = op.sizes(&types);
                let summed = op.summed();
                let shape: Vec<Dim> = summed.chars().map(|c| sizes[&c].clone()).collect();
                self.reduce(ReduceKind::Sum, &shape, |this, inner| {
                    let place: HashMap<char, &Expr> =
                        op.output.chars().zip(at).chain(summed.chars().zip(inner)).collect();
                    let factors = op.inputs.iter().zip(args).map(|(letters, a)| {
                        let at: Vec<Expr> = letters.chars().map(|c| place[&c].clone()).collect();
                        this.eval(*a, &at, guard)
                    });
                    let factors: Vec<Id> = factors.collect();
                    let (first, rest) = factors.split_first().expect("a contraction has an operand");
                    rest.iter().fold(*first, |product, f| this.binary(BinaryOp::Mul, product, *f))
                })
            }
            // Held always: see `held`.
            Op::TopK(_) | Op::Member(_) => self.number(0.0, DType::I64),
            Op::RmsNorm(_) | Op::Softmax(_) | Op::Rope(_) | Op::Sinkhorn(_) | Op::CausalMask(_) | Op::Attention(_) => {
                unreachable!("only primitives are left")
            }
        }
    }

    /// `a` in another format of the graph, in the format computed in.
    fn round(&mut self, a: Id, to: DType) -> Id {
        let narrow = match to {
            DType::F16 | DType::BF16 | DType::F8E4M3 | DType::F8E8M0 | DType::F4E2M1 => {
                let wide = self.cast(a, DType::F32);
                self.cast(wide, to)
            }
            DType::U8 | DType::I8 | DType::I32 => self.cast(a, to),
            // Nothing is rounded to them: they are read as they are.
            DType::U4 | DType::I4 => a,
            DType::Bool | DType::I64 | DType::F32 | DType::F64 => a,
        };
        self.cast(narrow, working(to))
    }

    /// `a` as an element of a buffer of that format. What is rounded to it already is not rounded again.
    pub fn stored(&mut self, a: Id, format: DType) -> Id {
        self.cast(a, format)
    }

    /// One of `args` joined along `axis`; with `append` the second operand is rounded to that format.
    fn concat(&mut self, args: &[ValueId], axis: usize, at: &[Expr], guard: Option<Id>, append: Option<DType>) -> Id {
        let func = self.func;
        let e = &at[axis];
        let mut start = Dim::from(0i64);
        let mut pieces = Vec::new();
        for (i, a) in args.iter().enumerate() {
            let size = func.ty(*a).shape[axis].clone();
            let inside = e.offset(&(start.clone() * -1));
            pieces.push((*a, start.clone(), inside.clone(), append.filter(|_| i > 0)));
            if self.space.within(&inside, &size) {
                let last = pieces.split_off(i);
                pieces = last;
                break;
            }
            start = start + size;
        }
        let one = |this: &mut Self, piece: &(ValueId, Dim, Expr, Option<DType>), guard| {
            let mut at = at.to_vec();
            at[axis] = piece.2.clone();
            let x = this.eval(piece.0, &at, guard);
            piece.3.map_or(x, |to| this.round(x, to))
        };
        let inside = pieces.last().expect("a concatenation has an operand");
        if self.space.within(&inside.2, &func.ty(inside.0).shape[axis]) {
            return one(self, inside, guard);
        }
        self.wish(std::slice::from_ref(e));
        for (_, start, ..) in &pieces[1..] {
            self.border(e, start);
        }
        // Decided element by element; only the chosen one touches memory.
        let here = self.index(e.clone());
        let mut result: Option<Id> = None;
        let mut before: Option<Id> = None;
        for (i, piece) in pieces.iter().enumerate() {
            let below = match pieces.get(i + 1) {
                Some(next) => {
                    let end = self.index(next.1.clone().into());
                    Some(self.compare(CompareOp::Lt, here, end))
                }
                None => None,
            };
            let above = before.map(|b| self.unary(UnaryOp::Not, b));
            let chosen = [guard, above, below].into_iter().flatten().reduce(|a, b| self.binary(BinaryOp::And, a, b));
            let x = one(self, piece, chosen);
            result = Some(match (result, before) {
                (Some(r), Some(b)) => self.select(b, r, x),
                _ => x,
            });
            before = below;
        }
        result.unwrap_or(0)
    }

    /// Wishes for a cut where `e` crosses `point`, if that is between two iterations of a loop.
    fn border(&mut self, e: &Expr, point: &Dim) {
        let Some((atom, k)) = e.terms.iter().max_by_key(|(_, k)| k.as_const()) else { return };
        let (Atom::Var(v), Some(k)) = (atom, k.as_const()) else { return };
        // Inner loops stay within one iteration of this one.
        let mut inner = e.clone();
        inner.terms.retain(|(a, _)| a != atom);
        inner.constant = 0.into();
        if k < 1 || !self.space.within(&inner, &k.into()) {
            return;
        }
        let Some(at) = (point.clone() - e.constant.clone()).div_exact(k) else { return };
        let extent = &self.space.extents[*v as usize];
        if at_most(&0.into(), &at) && at_most(&at, extent) && !at.is(0) && at != *extent {
            self.wishes.push(Wish::Break(*v, at));
        }
    }
}

/// The operation that combines two elements of a reduction.
pub fn combine(kind: ReduceKind, ty: DType) -> BinaryOp {
    match (kind, ty) {
        (ReduceKind::Max, DType::Bool) => BinaryOp::Or,
        (ReduceKind::Min, DType::Bool) => BinaryOp::And,
        (ReduceKind::Sum, _) => BinaryOp::Add,
        (ReduceKind::Max, _) => BinaryOp::Max,
        (ReduceKind::Min, _) => BinaryOp::Min,
    }
}

fn substitute(index: &[Expr], v: Var, with: &Expr) -> Vec<Expr> {
    let one = |e: &Expr| {
        let k = e.coefficient(v);
        let mut rest = e.clone();
        rest.terms.retain(|(a, _)| *a != Atom::Var(v));
        with.checked_times(&k).unwrap_or_default().plus(&rest)
    };
    index.iter().map(one).collect()
}

fn replace(vars: &[Var], v: Var, with: &[Var]) -> Vec<Var> {
    vars.iter().flat_map(|o| if *o == v { with.to_vec() } else { vec![*o] }).collect()
}
