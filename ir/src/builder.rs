//! Building functions op by op, with types inferred on the way.
//!
//! The first broken constraint is remembered and returned by [`Builder::finish`]; until then every method works, so
//! that model code reads as formulas without error handling in between.

use crate::attr::Real;
use crate::module::*;
use crate::ops::map::MapFn;
use crate::ops::reduce::ReduceKind;
use crate::ops::*;
use hadal_types::{DType, Dim, TensorType};

/// A function under construction.
#[derive(Debug, Clone)]
pub struct Builder {
    func: Func,
    scope: Vec<String>,
    error: Option<BuildError>,
}

/// The first op whose operands break a constraint.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
#[error("in @{func}{place}: `{op}` of {operands}: {violation}")]
pub struct BuildError {
    /// The function under construction.
    pub func: String,
    /// Where in the model.
    pub place: String,
    /// The op's name.
    pub op: &'static str,
    /// Operand types.
    pub operands: String,
    /// What is wrong.
    pub violation: Violation,
}

impl Builder {
    /// Starts a function.
    pub fn new(name: &str) -> Builder {
        Builder { func: Func { name: name.into(), ..Func::default() }, scope: Vec::new(), error: None }
    }

    /// Runs `f` with `place` added to the origin of every op it makes.
    pub fn scoped<R>(&mut self, place: &str, f: impl FnOnce(&mut Builder) -> R) -> R {
        self.scope.push(place.to_owned());
        let result = f(self);
        self.scope.pop();
        result
    }

    /// Adds `place` to the origin of the ops made from here to the matching [`Builder::leave`].
    pub fn enter(&mut self, place: &str) {
        self.scope.push(place.to_owned());
    }

    /// Ends what the last [`Builder::enter`] began.
    pub fn leave(&mut self) {
        self.scope.pop();
    }

    /// The type of a value.
    pub fn ty(&self, value: ValueId) -> &TensorType {
        self.func.ty(value)
    }

    /// The shape of a value.
    pub fn shape(&self, value: ValueId) -> &[Dim] {
        &self.func.ty(value).shape
    }

    /// An input.
    pub fn param(&mut self, name: &str, ty: TensorType) -> ValueId {
        let value = self.func.add_value(ty, Some(name.to_owned()));
        self.func.params.push(value);
        value
    }

    /// A checkpoint tensor, by its name relative to the caller's prefix. Asking twice gives the same value.
    pub fn weight(&mut self, name: &str, ty: TensorType) -> ValueId {
        if let Some(known) = self.func.weights.iter().find(|w| w.name == name) {
            return known.value;
        }
        let value = self.func.add_value(ty, None);
        self.func.weights.push(Weight { value, name: name.to_owned() });
        value
    }

    /// The rows a state holds before this call. Until [`Builder::set_state`] it stays as it is.
    pub fn state(&mut self, name: &str, ty: TensorType) -> ValueId {
        let value = self.func.add_value(ty, None);
        self.func.states.push(State { value, name: name.to_owned(), next: value });
        value
    }

    /// Says what a state holds after this call.
    pub fn set_state(&mut self, state: ValueId, next: ValueId) {
        let state = self.func.states.iter_mut().find(|s| s.value == state).expect("declared by `state`");
        state.next = next;
    }

    /// A state with `rows` written behind what it held; returns all rows.
    pub fn append(&mut self, name: &str, rows: ValueId, dtype: DType) -> ValueId {
        self.append_to(name, hadal_types::Sym::P, rows, dtype)
    }

    /// The same for a state of `held` rows: groups of tokens that are complete, or a number, which makes a window of
    /// the last ones.
    pub fn append_to(&mut self, name: &str, held: impl Into<Dim>, rows: ValueId, dtype: DType) -> ValueId {
        let mut ty = self.ty(rows).with_dtype(dtype);
        ty.shape[0] = held.into();
        let old = self.state(name, ty);
        let all = self.op(Append, &[old, rows]);
        self.set_state(old, all);
        all
    }

    /// Adds an op.
    pub fn op(&mut self, op: impl Into<Op>, args: &[ValueId]) -> ValueId {
        let origin = if self.scope.is_empty() { vec![] } else { vec![self.scope.join(".")] };
        self.op_from(op.into(), args, origin, Vec::new())
    }

    /// Adds an op with a given origin and the laws that made it.
    pub fn op_from(&mut self, op: Op, args: &[ValueId], origin: Vec<String>, laws: Vec<String>) -> ValueId {
        let types: Vec<TensorType> = args.iter().map(|a| self.ty(*a).clone()).collect();
        let ty = op.infer(&types).unwrap_or_else(|violation| {
            let place = origin.first().map(|o| format!(" ({o})")).unwrap_or_default();
            let operands = types.iter().map(|t| t.to_string()).collect::<Vec<_>>().join(", ");
            let func = self.func.name.clone();
            self.error.get_or_insert(BuildError { func, place, op: op.mnemonic(), operands, violation });
            types.first().cloned().unwrap_or_else(|| TensorType::new(DType::F32, [1]))
        });
        let result = self.func.add_value(ty, None);
        let kind = InstKind::Op(op);
        self.func.insts.push(Inst { kind, args: args.to_vec(), results: vec![result], origin, laws });
        result
    }

    /// Calls `callee`, putting `prefix` before its weights' and states' names.
    pub fn call(&mut self, callee: &Func, prefix: &str, args: &[ValueId]) -> Vec<ValueId> {
        let results: Vec<ValueId> =
            callee.results.iter().map(|(_, r)| self.func.add_value(callee.ty(*r).clone(), None)).collect();
        let kind = InstKind::Call(Call { func: callee.name.clone(), prefix: prefix.to_owned() });
        self.func.insts.push(Inst {
            kind,
            args: args.to_vec(),
            results: results.clone(),
            origin: vec![],
            laws: vec![],
        });
        results
    }

    /// Names a value in the text form.
    pub fn name(&mut self, value: ValueId, name: &str) {
        self.func.values[value.index()].name = Some(name.to_owned());
    }

    /// Adds a named result.
    pub fn result(&mut self, name: &str, value: ValueId) {
        self.func.results.push((name.to_owned(), value));
    }

    /// The function, or the first broken constraint.
    pub fn finish(self) -> Result<Func, Box<BuildError>> {
        match self.error {
            Some(error) => Err(Box::new(error)),
            None => Ok(self.func),
        }
    }

    /// An elementwise function of operands with one shape.
    pub fn map(&mut self, f: MapFn, args: &[ValueId]) -> ValueId {
        self.op(Map { f }, args)
    }

    /// `a + b`.
    pub fn add(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.map(MapFn::Add, &[a, b])
    }

    /// `a · b`.
    pub fn mul(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.map(MapFn::Mul, &[a, b])
    }

    /// A scalar f32.
    pub fn scalar(&mut self, value: f64) -> ValueId {
        self.op(Constant::scalar(value, DType::F32), &[])
    }

    /// `a + value`, elementwise.
    pub fn add_scalar(&mut self, a: ValueId, value: f64) -> ValueId {
        let value = self.scalar_like(a, value);
        self.add(a, value)
    }

    /// `a · value`, elementwise.
    pub fn mul_scalar(&mut self, a: ValueId, value: f64) -> ValueId {
        let value = self.scalar_like(a, value);
        self.mul(a, value)
    }

    /// `value` in the format of `a`, repeated to its shape.
    pub fn scalar_like(&mut self, a: ValueId, value: f64) -> ValueId {
        let ty = self.ty(a).clone();
        let value = self.op(Constant::scalar(value, ty.dtype), &[]);
        self.broadcast(value, &ty.shape, &[])
    }

    /// Product-sum in index notation; `spec` is a literal such as `"td,fd->tf"`.
    pub fn contract(&mut self, spec: &str, args: &[ValueId]) -> ValueId {
        let op = Contract::parse(spec).unwrap_or_else(|| panic!("malformed contraction `{spec}` in the source"));
        self.op(op, args)
    }

    /// Sum, maximum or minimum over axes.
    pub fn reduce(&mut self, kind: ReduceKind, axes: &[usize], x: ValueId) -> ValueId {
        self.op(Reduce { kind, axes: axes.to_vec() }, &[x])
    }

    /// Repeats `x` to `shape`, its axes becoming `dims`. Nothing is added where it has that shape already.
    pub fn broadcast(&mut self, x: ValueId, shape: &[Dim], dims: &[usize]) -> ValueId {
        if self.shape(x) == shape && dims.iter().copied().eq(0..shape.len()) {
            return x;
        }
        self.op(Broadcast { shape: shape.to_vec(), dims: dims.to_vec() }, &[x])
    }

    /// Another shape of the same elements. Nothing is added where it has that shape already.
    pub fn reshape(&mut self, x: ValueId, shape: &[Dim]) -> ValueId {
        if self.shape(x) == shape { x } else { self.op(Reshape { shape: shape.to_vec() }, &[x]) }
    }

    /// Every `step`-th of one axis from `start`, `len` of them.
    pub fn slice(
        &mut self,
        x: ValueId,
        axis: usize,
        start: impl Into<Dim>,
        len: impl Into<Dim>,
        step: usize,
    ) -> ValueId {
        self.op(Slice { axis, start: start.into(), len: len.into(), step }, &[x])
    }

    /// Joins along an axis.
    pub fn concat(&mut self, args: &[ValueId], axis: usize) -> ValueId {
        self.op(Concat { axis }, args)
    }

    /// Another element format. Nothing is added where it has that format already.
    pub fn cast(&mut self, x: ValueId, to: DType) -> ValueId {
        if self.ty(x).dtype == to { x } else { self.op(Cast { to }, &[x]) }
    }

    /// `start, start+1, …`.
    pub fn iota(&mut self, len: impl Into<Dim>, start: impl Into<Dim>) -> ValueId {
        self.op(Iota { len: len.into(), start: start.into() }, &[])
    }

    /// Indices of the `k` largest elements of the last axis, -1 where fewer can be chosen.
    pub fn top_k(&mut self, x: ValueId, k: usize) -> ValueId {
        self.op(TopK { k }, &[x])
    }

    /// Whether each of `len` positions occurs in a row of indices.
    pub fn member(&mut self, indices: ValueId, len: impl Into<Dim>) -> ValueId {
        self.op(Member { len: len.into() }, &[indices])
    }

    /// Elements or rows of one axis, chosen by indices; zeros where an index is outside.
    pub fn gather(&mut self, x: ValueId, indices: ValueId, axis: usize, batch: usize) -> ValueId {
        self.op(Gather { axis, batch }, &[x, indices])
    }

    /// Root-mean-square normalisation over the last axis.
    pub fn rms_norm(&mut self, x: ValueId, weight: ValueId, eps: f64) -> ValueId {
        self.op(RmsNorm { eps: Real(eps) }, &[x, weight])
    }
}

/// A copy of `func` in which every op that `choose` picks is replaced by its decomposition, repeatedly.
pub fn decompose_func(func: &Func, choose: impl Fn(&Op) -> bool) -> Func {
    let mut b = Builder::new(&func.name);
    b.func.kind = func.kind;
    let mut map: Vec<Option<ValueId>> = vec![None; func.values.len()];
    for p in &func.params {
        let value = b.func.add_value(func.ty(*p).clone(), func.values[p.index()].name.clone());
        b.func.params.push(value);
        map[p.index()] = Some(value);
    }
    for w in &func.weights {
        map[w.value.index()] = Some(b.weight(&w.name, func.ty(w.value).clone()));
    }
    for s in &func.states {
        map[s.value.index()] = Some(b.state(&s.name, func.ty(s.value).clone()));
    }
    for inst in &func.insts {
        let args: Vec<ValueId> = inst.args.iter().map(|a| map[a.index()].expect("defined before use")).collect();
        match &inst.kind {
            InstKind::Op(op) => {
                let result = decompose_op(&mut b, op, &args, inst, &choose);
                map[inst.results[0].index()] = Some(result);
            }
            InstKind::Call(_) => {
                let results: Vec<ValueId> =
                    inst.results.iter().map(|r| b.func.add_value(func.ty(*r).clone(), None)).collect();
                for (old, new) in inst.results.iter().zip(&results) {
                    map[old.index()] = Some(*new);
                }
                b.func.insts.push(Inst { args, results, ..inst.clone() });
            }
        }
    }
    let at = |v: ValueId| map[v.index()].expect("defined before use");
    for (s, new) in func.states.iter().zip(0..) {
        let state: &mut State = &mut b.func.states[new as usize];
        state.next = at(s.next);
    }
    b.func.results = func.results.iter().map(|(n, v)| (n.clone(), at(*v))).collect();
    b.finish().expect("decompositions preserve types")
}

/// Adds `op`, or its decomposition, on behalf of `from`.
fn decompose_op(b: &mut Builder, op: &Op, args: &[ValueId], from: &Inst, choose: &impl Fn(&Op) -> bool) -> ValueId {
    if !choose(op) {
        return b.op_from(op.clone(), args, from.origin.clone(), from.laws.clone());
    }
    let start = b.func.insts.len();
    let Some(result) = op.decompose(b, args) else {
        return b.op_from(op.clone(), args, from.origin.clone(), from.laws.clone());
    };
    // The decomposition may use composites itself: take its instructions back and decompose them in turn.
    let added: Vec<Inst> = b.func.insts.drain(start..).collect();
    let mut map: std::collections::BTreeMap<ValueId, ValueId> = Default::default();
    for inst in added {
        let args: Vec<ValueId> = inst.args.iter().map(|a| *map.get(a).unwrap_or(a)).collect();
        let InstKind::Op(op) = &inst.kind else { unreachable!("decompositions do not call") };
        let new = decompose_op(b, op, &args, from, choose);
        map.insert(inst.results[0], new);
    }
    *map.get(&result).unwrap_or(&result)
}
