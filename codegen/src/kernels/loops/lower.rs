//! From nests of loops to kernel IR.
//!
//! Each node is emitted in the outermost loop where what it depends on is known. The innermost loop of a nest, or of
//! a reduction, runs over several elements at once where every buffer it touches is read in order along it or not at
//! all; what is left over runs in narrower steps behind it.

use super::super::Target;
use super::super::index::{Atom, Expr, Var};
use super::largest::Choice;
use super::nodes::{Id, Node, Nodes, Part, Source, combine};
use super::{Dest, Draft, Sink, Work};
use hadal_ir::ValueId;
use hadal_ir::kernel::{
    Access, BinaryOp, Buf, Builder, CompareOp, Const, Kernel, LoopKind, ReduceOp, Value, ValueType,
};
use hadal_ir::ops::reduce::ReduceKind;
use hadal_types::{DType, Dim};
use std::collections::{BTreeMap, BTreeSet};

/// The kernel of a draft; none where packed elements would have to be stored one by one.
pub fn lower(draft: &Draft, sinks: &[Sink], target: &Target) -> Option<Kernel> {
    let func = draft.func;
    let mut b = Builder::new(&func.name);
    let mut names = BTreeSet::new();
    let mut name = |given: Option<&str>, or: String| {
        let ok = |s: &&str| {
            s.starts_with(|c: char| c.is_ascii_alphabetic())
                && s.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_')
        };
        let mut name = given.filter(ok).map_or(or, str::to_owned);
        while !names.insert(name.clone()) {
            name.push('_');
        }
        name
    };
    let params = func.params.iter().enumerate().map(|(i, p)| {
        let ty = func.ty(*p);
        let name = name(func.values[p.index()].name.as_deref(), format!("in{i}"));
        b.param(name, ty.dtype, ty.shape.clone(), Access::Read)
    });
    let params: Vec<Buf> = params.collect();
    let results = func.results.iter().enumerate().map(|(i, (given, v))| {
        let ty = func.ty(*v);
        b.param(name(Some(given), format!("out{i}")), ty.dtype, ty.shape.clone(), Access::Write)
    });
    let results: Vec<Buf> = results.collect();
    let coordinates = b.grid(draft.grid.iter().map(|d| d.extent.clone()));
    let vars = draft.grid.iter().zip(coordinates).filter_map(|(d, c)| Some((d.var?, c))).collect();
    let held = draft.scratch.iter().map(|(v, s)| {
        let shape = if s.shape.is_empty() { vec![Dim::from(1i64)] } else { s.shape.clone() };
        let buf = b.alloc(name(None, format!("t{}", v.0)), draft.nodes.format(Source::Held(*v)), shape);
        (*v, buf)
    });
    let held = held.collect();
    let mut lower = Lower {
        draft,
        nodes: &draft.nodes,
        params,
        held,
        vars,
        values: vec![None; draft.nodes.len()],
        trail: Vec::new(),
        lanes: None,
        width: target.lanes.max(1),
        refused: false,
    };
    for nest in &draft.nests {
        let place = |index: &[Expr]| match nest.dest {
            Dest::Result(i) => {
                let mut index = index.to_vec();
                if let Some(first) = index.first_mut() {
                    *first = first.offset(&sinks[i].skip);
                }
                (results[i], index)
            }
            Dest::Held(v) => (lower.held[&v], draft.kept(v, index)),
        };
        let placed: Vec<_> = nest
            .parts
            .iter()
            .map(|part| match &part.built {
                Work::Element { index, .. } | Work::Largest { index, .. } | Work::Mark { index, .. } => place(index),
            })
            .collect();
        for (part, (buf, index)) in nest.parts.iter().zip(placed) {
            lower.part(&mut b, part, buf, &index);
        }
    }
    (!lower.refused).then(|| b.finish())
}

impl Draft<'_> {
    /// The indices of a held value's element in its scratch.
    fn kept(&self, v: ValueId, index: &[Expr]) -> Vec<Expr> {
        let scratch = &self.scratch[&v];
        let kept: Vec<Expr> = index.iter().zip(&scratch.kept).filter(|(_, k)| **k).map(|(e, _)| e.clone()).collect();
        if kept.is_empty() { vec![Expr::default()] } else { kept }
    }
}

pub(super) struct Lower<'a> {
    draft: &'a Draft<'a>,
    pub(super) nodes: &'a Nodes<'a>,
    params: Vec<Buf>,
    held: BTreeMap<ValueId, Buf>,
    pub(super) vars: BTreeMap<Var, Value>,
    /// What is computed already, where the open blocks can use it.
    values: Vec<Option<Value>>,
    trail: Vec<Id>,
    /// The variable that several elements are taken of, and how many.
    pub(super) lanes: Option<(Var, u32)>,
    pub(super) width: u32,
    /// Whether packed elements would have to be stored one by one.
    refused: bool,
}

/// Steps of a loop: from where to where, how many elements at once.
pub(super) struct Segment {
    lo: Value,
    hi: Value,
    lanes: u32,
    /// Whether there is exactly one step.
    once: bool,
    /// Whether these are the elements after the last whole vector of a number that only the call knows. Sums take each
    /// into its lane of the vectors before, so that a sum's order is the same however many elements of it are zero.
    rest: bool,
}

impl Lower<'_> {
    fn part(&mut self, b: &mut Builder, part: &Part<Work>, buf: Buf, index: &[Expr]) {
        match &part.built {
            Work::Element { root, .. } => {
                let needed = self.nodes.reachable(&[*root]);
                let lanes = part
                    .vars
                    .last()
                    .copied()
                    .filter(|v| self.in_order(*v, index, b.dtype(buf)) && self.vectors(*v, &needed));
                if b.dtype(buf).is_packed() {
                    let even = |v: &Var| self.nodes.space.extents[*v as usize].as_const().is_some_and(|n| n % 2 == 0);
                    self.refused |= self.width < 2 || !lanes.is_some_and(|v| even(&v));
                }
                self.element(b, &part.vars, lanes, &needed, *root, buf, index);
            }
            Work::Largest { root, var, n, k, .. } => {
                let needed = self.nodes.reachable(&[*root]);
                let choice = Choice { needed: &needed, root: *root, var: *var, n, k: *k, buf, at: index };
                self.outer_loops(b, &part.vars, &needed, &mut |this, b| this.largest(b, &choice));
            }
            Work::Mark { root, var, len, .. } => {
                let needed = self.nodes.reachable(&[*root]);
                self.outer_loops(b, &part.vars, &needed, &mut |this, b| {
                    this.mark(b, &needed, *root, *var, len, buf, index)
                });
            }
        }
    }

    /// Loops around the store of an element.
    #[allow(clippy::too_many_arguments, reason = "one call and itself")]
    fn element(
        &mut self,
        b: &mut Builder,
        vars: &[Var],
        lanes: Option<Var>,
        needed: &[Id],
        root: Id,
        buf: Buf,
        index: &[Expr],
    ) {
        self.ready(b, needed);
        let Some((var, rest)) = vars.split_first() else {
            let value = self.value(root);
            let at: Vec<Value> = index.iter().map(|e| self.expr(b, e)).collect();
            let value = match self.lanes {
                Some((_, lanes)) => b.splat(value, lanes),
                None => value,
            };
            return b.store(buf, &at, value);
        };
        let width = if lanes == Some(*var) { self.width } else { 1 };
        let least = if b.dtype(buf).is_packed() { 2 } else { 1 };
        for segment in self.segments_of(b, *var, width, least) {
            self.step(b, *var, &segment, &[], |this, b, _| {
                this.element(b, rest, lanes, needed, root, buf, index);
                vec![]
            });
        }
    }

    fn outer_loops(
        &mut self,
        b: &mut Builder,
        vars: &[Var],
        needed: &[Id],
        inner: &mut dyn FnMut(&mut Self, &mut Builder),
    ) {
        self.ready(b, needed);
        let Some((var, rest)) = vars.split_first() else { return inner(self, b) };
        for segment in self.segments(b, *var, 1) {
            self.step(b, *var, &segment, &[], |this, b, _| {
                this.outer_loops(b, rest, needed, inner);
                vec![]
            });
        }
    }

    /// Stores truth at each of the positions that `root` gives.
    #[allow(clippy::too_many_arguments, reason = "the fields of one kind of work")]
    fn mark(&mut self, b: &mut Builder, needed: &[Id], root: Id, var: Var, len: &Dim, buf: Buf, at: &[Expr]) {
        let base: Vec<Value> = at.iter().map(|e| self.expr(b, e)).collect();
        let (zero, end, yes) = (b.const_i64(0), b.dim(len), b.constant(Const::Bool(true)));
        for segment in self.segments(b, var, 1) {
            self.step(b, var, &segment, &[], |this, b, _| {
                this.ready(b, needed);
                let position = this.value(root);
                let (first, last) = (b.ge(position, zero), b.lt(position, end));
                let inside = b.and(first, last);
                b.if_then(inside, |b| {
                    let mut base = base.clone();
                    if let Some(last) = base.last_mut() {
                        *last = position;
                    }
                    b.store(buf, &base, yes);
                });
                vec![]
            });
        }
    }

    /// One reduction over one loop, several elements at once.
    pub(super) fn fold(
        &mut self,
        b: &mut Builder,
        var: Var,
        width: u32,
        op: ReduceOp,
        init: Value,
        mut body: impl FnMut(&mut Self, &mut Builder, Value, Value) -> Value,
    ) -> Value {
        let mut all = None;
        for segment in self.segments(b, var, width) {
            let start = b.splat(init, segment.lanes);
            let part = self.step(b, var, &segment, &[start], |this, b, acc| {
                let i = this.vars[&var];
                vec![body(this, b, i, acc[0])]
            });
            let part = b.reduce_lanes(op, part[0]);
            all = Some(match all {
                None => part,
                Some(x) => b.binary(op.binary(), x, part),
            });
        }
        all.unwrap_or(init)
    }

    // ---- loops ----

    /// How a loop is walked with `width` elements at once.
    pub(super) fn segments(&mut self, b: &mut Builder, var: Var, width: u32) -> Vec<Segment> {
        self.segments_of(b, var, width, 1)
    }

    /// The same, where steps of two elements are taken only if there are none of one: it takes `least` at least.
    fn segments_of(&mut self, b: &mut Builder, var: Var, width: u32, least: u32) -> Vec<Segment> {
        let extent = self.nodes.space.extents[var as usize].clone();
        let zero = b.const_i64(0);
        let limit = self.draft.limits.get(&var);
        let (Some(n), None) = (extent.as_const(), limit) else {
            let mut hi = b.dim(&extent);
            if let Some(left) = limit {
                let left = self.expr(b, left);
                hi = b.min(hi, left);
            }
            if width == 1 {
                return vec![Segment { lo: zero, hi, lanes: 1, once: false, rest: false }];
            }
            let mask = b.const_i64(-(width as i64));
            let main = b.and(hi, mask);
            return vec![
                Segment { lo: zero, hi: main, lanes: width, once: false, rest: false },
                Segment { lo: main, hi, lanes: 1, once: false, rest: true },
            ];
        };
        let mut segments = Vec::new();
        let mut done = 0;
        let mut lanes = width as i64;
        while lanes > 0 {
            let end = done + (n - done).max(0) / lanes * lanes;
            if end > done && (lanes != 2 || width == 2 || least == 2) {
                let (lo, hi) = (b.const_i64(done), b.const_i64(end));
                let once = end - done == lanes;
                segments.push(Segment { lo, hi, lanes: lanes as u32, once, rest: false });
                done = end;
            }
            lanes /= 2;
        }
        if segments.is_empty() {
            segments.push(Segment { lo: zero, hi: zero, lanes: 1, once: false, rest: false });
        }
        segments
    }

    /// Runs one segment of a loop; what is computed inside is forgotten afterwards.
    pub(super) fn step(
        &mut self,
        b: &mut Builder,
        var: Var,
        segment: &Segment,
        init: &[Value],
        body: impl FnOnce(&mut Self, &mut Builder, &[Value]) -> Vec<Value>,
    ) -> Vec<Value> {
        let mark = self.trail.len();
        let outer = self.lanes;
        if segment.lanes > 1 {
            self.lanes = Some((var, segment.lanes));
        }
        let results = if segment.once {
            self.vars.insert(var, segment.lo);
            body(self, b, init)
        } else {
            b.for_loop(segment.lo, segment.hi, segment.lanes as i64, LoopKind::Serial, init, |b, i, carried| {
                self.vars.insert(var, i);
                body(self, b, carried)
            })
        };
        self.vars.remove(&var);
        self.lanes = outer;
        for id in self.trail.drain(mark..) {
            self.values[id as usize] = None;
        }
        results
    }

    /// Computes everything that can be computed here.
    pub(super) fn ready(&mut self, b: &mut Builder, needed: &[Id]) {
        for id in needed {
            if self.values[*id as usize].is_none() && self.nodes.deps(*id).iter().all(|v| self.vars.contains_key(v)) {
                let value = self.node(b, *id);
                self.values[*id as usize] = Some(value);
                self.trail.push(*id);
            }
        }
    }

    pub(super) fn value(&self, id: Id) -> Value {
        self.values[id as usize].expect("operands are computed before what uses them")
    }

    /// How many elements of a node are computed at once.
    fn lanes_of(&self, id: Id) -> u32 {
        self.lanes.filter(|(v, _)| self.nodes.deps(id).contains(v)).map_or(1, |(_, lanes)| lanes)
    }

    fn node(&mut self, b: &mut Builder, id: Id) -> Value {
        match self.nodes.node(id) {
            Node::Const(c) => b.constant(*c),
            Node::Index(e) => {
                let base = self.expr(b, e);
                match self.lanes.filter(|_| self.lanes_of(id) > 1) {
                    None => base,
                    Some((v, lanes)) => {
                        let iota = b.iota(DType::I64, lanes);
                        let k = b.dim(&e.coefficient(v));
                        let steps = match b.as_const(k) {
                            Some(1) => iota,
                            _ => b.mul(iota, k),
                        };
                        b.add(steps, base)
                    }
                }
            }
            Node::Load { from, index, guard } => {
                let (buf, index) = match from {
                    Source::Param(i) => (self.params[*i], index.clone()),
                    Source::Held(v) => (self.held[v], self.draft.kept(*v, index)),
                };
                let lanes = self.lanes_of(id);
                let at: Vec<Value> = index.iter().map(|e| self.expr(b, e)).collect();
                match guard {
                    None => b.load(buf, &at, lanes),
                    Some(g) => {
                        let mask = self.value(*g);
                        let mask = b.splat(mask, lanes);
                        b.load_masked(buf, &at, mask, None)
                    }
                }
            }
            Node::Unary(op, a) => b.unary(*op, self.value(*a)),
            Node::Binary(op, x, y) => b.binary(*op, self.value(*x), self.value(*y)),
            Node::Compare(op, x, y) => b.compare(*op, self.value(*x), self.value(*y)),
            Node::Select(c, x, y) => b.select(self.value(*c), self.value(*x), self.value(*y)),
            Node::Cast(a, to) => b.cast(self.value(*a), *to),
            Node::Reduce { kind, vars, body } => self.reduce(b, id, *kind, vars, *body),
        }
    }

    // ---- reductions ----

    fn reduce(&mut self, b: &mut Builder, id: Id, kind: ReduceKind, vars: &[Var], body: Id) -> Value {
        let ty = self.nodes.ty(body);
        // A product that is summed is multiplied and added in one operation.
        let factors = match self.nodes.node(body) {
            Node::Binary(BinaryOp::Mul, x, y) if kind == ReduceKind::Sum && ty == DType::F32 => Some((*x, *y)),
            _ => None,
        };
        let roots = factors.map_or(vec![body], |(x, y)| vec![x, y]);
        let needed = self.nodes.reachable(&roots);
        let outer = self.lanes_of(id);
        let mut order = vars.to_vec();
        let mut width = 1;
        if outer == 1 && ty != DType::Bool {
            let fits = |v: &Var| self.vectors(*v, &needed) && self.reads_along(*v, &needed);
            if let Some(at) = order.iter().rposition(fits) {
                let v = order.remove(at);
                order.push(v);
                width = self.width;
            }
        }
        let innermost = order.last().copied();
        // One partial result for each number of elements taken at once.
        let widths: Vec<u32> = match innermost {
            Some(v) if width > 1 => self.segments(b, v, width).iter().filter(|s| !s.rest).map(|s| s.lanes).collect(),
            _ => vec![outer],
        };
        let identity = b.constant(identity(kind, ty));
        let init: Vec<Value> = widths.iter().map(|w| b.splat(identity, *w)).collect();
        let sums = self.reduce_loops(b, &order, width, &needed, &init, &mut |this, b, acc| match factors {
            Some((x, y)) => b.fma(this.value(x), this.value(y), acc),
            None => b.binary(combine(kind, ty), this.value(body), acc),
        });
        let lane_op = match kind {
            ReduceKind::Sum => ReduceOp::Add,
            ReduceKind::Max => ReduceOp::Max,
            ReduceKind::Min => ReduceOp::Min,
        };
        let parts: Vec<Value> =
            sums.into_iter().map(|s| if outer == 1 { b.reduce_lanes(lane_op, s) } else { s }).collect();
        parts.into_iter().reduce(|x, y| b.binary(combine(kind, ty), x, y)).unwrap_or(identity)
    }

    fn reduce_loops(
        &mut self,
        b: &mut Builder,
        vars: &[Var],
        width: u32,
        needed: &[Id],
        sums: &[Value],
        combine: &mut dyn FnMut(&mut Self, &mut Builder, Value) -> Value,
    ) -> Vec<Value> {
        self.ready(b, needed);
        let Some((var, rest)) = vars.split_first() else {
            return sums.iter().map(|s| combine(self, b, *s)).collect();
        };
        if !rest.is_empty() || width == 1 {
            let mut sums = sums.to_vec();
            for segment in self.segments(b, *var, 1) {
                sums = self.step(b, *var, &segment, &sums, |this, b, sums| {
                    this.reduce_loops(b, rest, width, needed, sums, combine)
                });
            }
            return sums;
        }
        let mut all = sums.iter();
        let mut sums: Vec<Value> = Vec::new();
        for segment in self.segments(b, *var, width) {
            let before = if segment.rest { sums.pop() } else { all.next().copied() };
            let before = before.expect("a sum for each segment, and vectors before the rest");
            let sum = self.step(b, *var, &segment, &[before], |this, b, sum| {
                let added = this.reduce_loops(b, rest, width, needed, sum, combine);
                if !segment.rest {
                    return added;
                }
                let at = b.sub(this.vars[var], segment.lo);
                let lanes = b.iota(DType::I64, width);
                let here = b.compare(CompareOp::Eq, lanes, at);
                vec![b.select(here, added[0], sum[0])]
            });
            sums.push(sum[0]);
        }
        sums
    }

    // ---- which loops can take several elements at once ----

    /// Whether all nodes that depend on `v` can be computed for consecutive values of it.
    pub(super) fn vectors(&self, v: Var, needed: &[Id]) -> bool {
        needed.iter().filter(|id| self.nodes.deps(**id).contains(&v)).all(|id| match self.nodes.node(*id) {
            Node::Load { from, index, .. } => {
                let index = match from {
                    Source::Param(_) => index.clone(),
                    Source::Held(h) => self.draft.kept(*h, index),
                };
                // Also where only the guard depends on it: a masked load is of consecutive elements.
                self.in_order(v, &index, self.nodes.format(*from))
            }
            Node::Index(e) => self.linear(v, e),
            Node::Const(_)
            | Node::Unary(..)
            | Node::Binary(..)
            | Node::Compare(..)
            | Node::Select(..)
            | Node::Cast(..)
            | Node::Reduce { .. } => true,
        })
    }

    /// Whether some buffer is read along `v`.
    fn reads_along(&self, v: Var, needed: &[Id]) -> bool {
        needed.iter().any(|id| {
            let node = self.nodes.node(*id);
            self.nodes.deps(*id).contains(&v) && matches!(node, Node::Load { .. } | Node::Index(_))
        })
    }

    /// Whether `v` stands in `e` as a summand only.
    fn linear(&self, v: Var, e: &Expr) -> bool {
        e.terms.iter().all(|(atom, k)| match atom {
            Atom::Var(_) => true,
            other => !self.nodes.index_deps(&[Expr::term(other.clone(), k.clone())]).contains(&v),
        })
    }

    /// Whether consecutive values of `v` are consecutive elements of a buffer.
    fn in_order(&self, v: Var, index: &[Expr], format: DType) -> bool {
        let Some((last, outer)) = index.split_last() else { return false };
        let even = |d: &Dim| d.constant() % 2 == 0 && d.terms().iter().all(|(_, k)| k % 2 == 0);
        // Two packed elements share a byte, and vectors begin at bytes.
        let whole = !format.is_packed()
            || (even(&last.constant) && last.terms.iter().all(|(a, k)| *a == Atom::Var(v) || even(k)));
        last.coefficient(v).is(1) && self.linear(v, last) && !self.nodes.index_deps(outer).contains(&v) && whole
    }

    // ---- indices ----

    /// The value of an index expression, of the first element where several are taken.
    pub(super) fn expr(&mut self, b: &mut Builder, e: &Expr) -> Value {
        let mut sum = b.dim(&e.constant);
        for (atom, k) in &e.terms {
            let x = match atom {
                Atom::Var(v) => self.vars[v],
                Atom::Data(id, _) => self.value(*id),
                Atom::Div(inner, by) | Atom::Mod(inner, by) => {
                    let x = self.expr(b, inner);
                    let quotient = matches!(atom, Atom::Div(..));
                    match by.as_const().filter(|n| n.count_ones() == 1 && *n > 0) {
                        // Never negative, so bits will do.
                        Some(n) => {
                            let by = b.const_i64(if quotient { n.trailing_zeros() as i64 } else { n - 1 });
                            if quotient { b.shr(x, by) } else { b.and(x, by) }
                        }
                        None => {
                            let by = b.dim(by);
                            if quotient { b.div(x, by) } else { b.rem(x, by) }
                        }
                    }
                }
            };
            let k = b.dim(k);
            let term = b.mul(x, k);
            sum = b.add(sum, term);
        }
        debug_assert_eq!(b.ty(sum), ValueType::INDEX);
        sum
    }
}

/// What a reduction of nothing gives.
fn identity(kind: ReduceKind, ty: DType) -> Const {
    match (kind, ty) {
        (ReduceKind::Sum, DType::F32) => Const::F32(0f32.to_bits()),
        (ReduceKind::Max, DType::F32) => Const::F32(f32::NEG_INFINITY.to_bits()),
        (ReduceKind::Min, DType::F32) => Const::F32(f32::INFINITY.to_bits()),
        (ReduceKind::Max, DType::Bool) => Const::Bool(false),
        (ReduceKind::Min, DType::Bool) => Const::Bool(true),
        (ReduceKind::Sum, _) => Const::I64(0),
        (ReduceKind::Max, _) => Const::I64(i64::MIN),
        (ReduceKind::Min, _) => Const::I64(i64::MAX),
    }
}
