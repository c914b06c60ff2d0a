//! Making a function from another, op by op, sharing equal ops.

use crate::bounds::Bounds;
use crate::rule::{Site, V};
use hadal_ir::attr::Attr;
use hadal_ir::module::{State, Weight};
use hadal_ir::{Dim, Func, Inst, InstKind, Op, TensorType, ValueId};
use std::collections::HashMap;

/// What an op remembers of how it came to be.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Trail<'a> {
    /// Places in the model.
    pub origin: &'a [String],
    /// The laws behind it.
    pub laws: &'a [String],
}

/// A function under construction in which every op occurs once per operands.
pub(crate) struct Edit {
    pub func: Func,
    /// What laws may know of sizes.
    pub bounds: Bounds,
    definitions: Vec<Option<usize>>,
    constant: Vec<bool>,
    known: HashMap<(Op, Vec<ValueId>), ValueId>,
}

impl Edit {
    /// Begins with the inputs of `old`; also where each old value is now.
    pub fn like(old: &Func) -> (Edit, Vec<Option<ValueId>>) {
        let mut func = Func { kind: old.kind, name: old.name.clone(), ..Func::default() };
        let mut map = vec![None; old.values.len()];
        let mut copy = |func: &mut Func, v: ValueId| {
            let new = func.add_value(old.ty(v).clone(), old.values[v.index()].name.clone());
            map[v.index()] = Some(new);
            new
        };
        for p in &old.params {
            let value = copy(&mut func, *p);
            func.params.push(value);
        }
        for w in &old.weights {
            let value = copy(&mut func, w.value);
            func.weights.push(Weight { value, name: w.name.clone() });
        }
        for s in &old.states {
            let value = copy(&mut func, s.value);
            func.states.push(State { value, name: s.name.clone(), next: value });
        }
        let definitions = vec![None; func.values.len()];
        let mut constant = vec![false; func.values.len()];
        func.weights.iter().for_each(|w| constant[w.value.index()] = true);
        (Edit { func, bounds: Bounds::default(), definitions, constant, known: HashMap::new() }, map)
    }

    /// Adds an op, or finds it. `name` is given to a new value. Operands must suit the op.
    pub fn op(&mut self, op: Op, args: Vec<ValueId>, trail: &Trail, name: Option<&str>) -> ValueId {
        let Trail { origin, laws } = *trail;
        let key = (op, args);
        if let Some(known) = self.known.get(&key) {
            if let Some(at) = self.definitions[known.index()] {
                unite(&mut self.func.insts[at].origin, origin);
            }
            return *known;
        }
        let types: Vec<TensorType> = key.1.iter().map(|a| self.func.ty(*a).clone()).collect();
        let ty = key.0.infer(&types).unwrap_or_else(|v| panic!("a pass made `{}` of {types:?}: {v}", key.0.mnemonic()));
        let result = self.func.add_value(ty, name.map(str::to_owned));
        self.definitions.push(Some(self.func.insts.len()));
        self.constant.push(!mentions_symbols(&key.0) && key.1.iter().all(|a| self.constant[a.index()]));
        let mut sorted = origin.to_vec();
        sorted.sort();
        let kind = InstKind::Op(key.0.clone());
        self.func.insts.push(Inst {
            kind,
            args: key.1.clone(),
            results: vec![result],
            origin: sorted,
            laws: laws.to_vec(),
        });
        self.known.insert(key, result);
        result
    }

    /// Adds an input behind those there are.
    pub fn param(&mut self, ty: TensorType, name: Option<String>) -> ValueId {
        let value = self.func.add_value(ty, name);
        self.func.params.push(value);
        self.definitions.push(None);
        self.constant.push(false);
        value
    }

    /// Adds a copy of a call, with its operands replaced.
    pub fn call(&mut self, old: &Func, inst: &Inst, args: Vec<ValueId>) -> Vec<ValueId> {
        let results: Vec<ValueId> = inst
            .results
            .iter()
            .map(|r| self.func.add_value(old.ty(*r).clone(), old.values[r.index()].name.clone()))
            .collect();
        self.definitions.extend(results.iter().map(|_| Some(self.func.insts.len())));
        self.constant.extend(results.iter().map(|_| false));
        self.func.insts.push(Inst { args, results: results.clone(), ..inst.clone() });
        results
    }

    /// The laws behind a value.
    pub fn laws_of(&self, v: ValueId) -> &[String] {
        self.definitions[v.index()].map_or(&[], |at| &self.func.insts[at].laws)
    }

    /// Ends with the results and states of `old`, and without dead code.
    pub fn finish(mut self, old: &Func, map: &[Option<ValueId>]) -> Func {
        let at = |v: ValueId| map[v.index()].expect("defined before use");
        self.func.results = old.results.iter().map(|(n, v)| (n.clone(), at(*v))).collect();
        for (new, old) in self.func.states.iter_mut().zip(&old.states) {
            new.next = at(old.next);
        }
        without_dead_code(&self.func)
    }
}

impl Site for Edit {
    fn ty(&self, v: V) -> &TensorType {
        self.func.ty(ValueId(v.0))
    }

    fn forms(&self, v: V) -> Vec<(&Op, Vec<V>)> {
        forms_of(&self.func, self.definitions[v.0 as usize])
    }

    fn readers(&self, v: V) -> Vec<(V, &Op, Vec<V>)> {
        let readers = self.func.insts.iter().filter(|i| i.args.contains(&ValueId(v.0)));
        let of = |i: &'_ Inst| i.args.iter().map(|a| V(a.0)).collect();
        let ops = readers.filter_map(|i| match &i.kind {
            InstKind::Op(op) => Some((V(i.results[0].0), op, of(i))),
            InstKind::Call(_) => None,
        });
        ops.collect()
    }

    fn constant(&self, v: V) -> bool {
        self.constant[v.0 as usize]
    }

    fn upper(&self, size: &Dim) -> Option<i64> {
        self.bounds.upper(size)
    }

    fn lower(&self, size: &Dim) -> Option<i64> {
        self.bounds.lower(size)
    }

    fn chosen(&self, v: V) -> bool {
        self.func.params.iter().position(|p| p.0 == v.0).is_some_and(|p| self.bounds.chosen(p))
    }
}

/// The op at instruction `at` as a form.
pub(crate) fn forms_of(func: &Func, at: Option<usize>) -> Vec<(&Op, Vec<V>)> {
    match at.map(|i| &func.insts[i]) {
        Some(Inst { kind: InstKind::Op(op), args, .. }) => vec![(op, args.iter().map(|a| V(a.0)).collect())],
        _ => Vec::new(),
    }
}

/// Adds to a sorted list of places.
pub(crate) fn unite(origin: &mut Vec<String>, more: &[String]) {
    if more.iter().any(|m| !origin.contains(m)) {
        origin.extend(more.iter().cloned());
        origin.sort();
        origin.dedup();
    }
}

/// A copy without instructions that nothing uses, calls that keep no state aside, and with values renumbered.
///
/// Calls always stay: their callee may have states.
pub(crate) fn without_dead_code(func: &Func) -> Func {
    let mut live = vec![false; func.values.len()];
    for v in func.results.iter().map(|(_, v)| *v).chain(func.states.iter().map(|s| s.next)) {
        live[v.index()] = true;
    }
    for inst in func.insts.iter().rev() {
        let keep = matches!(inst.kind, InstKind::Call(_)) || inst.results.iter().any(|r| live[r.index()]);
        if keep {
            inst.args.iter().chain(&inst.results).for_each(|a| live[a.index()] = true);
        }
    }
    let mut out = Func { values: Vec::new(), insts: Vec::new(), ..func.clone() };
    let mut map = vec![ValueId(u32::MAX); func.values.len()];
    let mut keep = |out: &mut Func, v: ValueId| {
        let old = &func.values[v.index()];
        map[v.index()] = out.add_value(old.ty.clone(), old.name.clone());
        map[v.index()]
    };
    out.params = func.params.iter().map(|p| keep(&mut out, *p)).collect();
    let weights = func.weights.iter().filter(|w| live[w.value.index()]);
    out.weights = weights.map(|w| Weight { value: keep(&mut out, w.value), name: w.name.clone() }).collect();
    let states: Vec<ValueId> = func.states.iter().map(|s| keep(&mut out, s.value)).collect();
    for inst in &func.insts {
        if matches!(inst.kind, InstKind::Call(_)) || live[inst.results[0].index()] {
            let results = inst.results.iter().map(|r| keep(&mut out, *r)).collect();
            out.insts.push(Inst { results, ..inst.clone() });
        }
    }
    for inst in &mut out.insts {
        inst.args.iter_mut().for_each(|a| *a = map[a.index()]);
    }
    out.results.iter_mut().for_each(|(_, v)| *v = map[v.index()]);
    for (s, value) in out.states.iter_mut().zip(states) {
        *s = State { value, name: s.name.clone(), next: map[s.next.index()] };
    }
    out
}

/// Whether an op's attributes depend on symbols.
pub(crate) fn mentions_symbols(op: &Op) -> bool {
    fn symbolic(attr: &Attr) -> bool {
        match attr {
            Attr::Dim(d) => d.as_const().is_none(),
            Attr::List(items) => items.iter().any(symbolic),
            Attr::Real(_) | Attr::Str(_) | Attr::Word(_) => false,
        }
    }
    op.attrs().iter().any(|(_, a)| symbolic(a))
}
