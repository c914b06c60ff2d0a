//! `elide`: what nobody looks at is not computed.
//!
//! ```text
//! %h = call @layer(%x) : f32[T, 8]                      %1 = call @layer.part(%x) : f32[1, 8]
//! %1 = slice %h {axis = 0, start = T-1, len = 1}   ->
//! ```
//!
//! Where all that is wanted of a value is one and the same slice, its op is done on slices of its operands, by the laws
//! of [`rules::PARTS`] and the canonical ones, and so on upwards. A call whose result is wanted in part is one of a
//! copy of the function that returns this part. What is also wanted whole, or in two different parts, is computed
//! whole, so nothing is computed twice.
//!
//! In the prefill of a model whose logits are wanted of the last token alone, the last layer so runs its queries, its
//! output projection and its feed-forward part for one row; rows of states are all needed and stay. The price is one
//! more copy of that layer. There are no more than `MAX_PARTS` such copies of a function; a call that wants yet another
//! part stays whole.
//!
//! Before, calls lose the results that nobody wants at all (`unwanted`).
//!
//! Exact but for products, whose kernels may sum in another order for one row than for many.

mod unwanted;

use crate::canonicalise::Fired;
use crate::edit::{Edit, Trail, forms_of};
use crate::rule::{Rule, Site, Term, V};
use crate::rules::{self, LawSet};
use hadal_ir::ops::Slice;
use hadal_ir::{Call, Dim, Func, FuncKind, Inst, InstKind, Module, Op, TensorType, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// Copies of a function for parts of its results: enough for models, too few for calls of calls to multiply.
const MAX_PARTS: usize = 4;

/// Elides in every function, and tells how often each law was used. Functions that are no longer called are left out.
pub fn run(module: &Module, laws: &LawSet) -> (Module, Fired) {
    let module = &unwanted::run(module);
    let of_slices = rules::CANONICAL.iter().chain(rules::PARTS).flat_map(|theme| theme.rules);
    let rules = of_slices.chain(rules::law("slice-through-contract")).filter(|r| laws.allows(r)).collect();
    let out = Module { funcs: Vec::new(), ..module.clone() };
    let funcs: BTreeMap<&str, &Func> = module.funcs.iter().map(|f| (f.name.as_str(), f)).collect();
    let names = funcs.keys().map(|n| (*n).to_owned()).collect();
    let mut pass =
        Elide { funcs, rules, out, made: BTreeMap::new(), parts: BTreeMap::new(), names, fired: Fired::new() };
    let called: BTreeSet<&str> = module.funcs.iter().flat_map(callees).collect();
    let entries: BTreeSet<&str> = module.entries.iter().map(|e| e.func.as_str()).collect();
    for func in &module.funcs {
        if entries.contains(func.name.as_str()) || !called.contains(func.name.as_str()) {
            pass.copy(&func.name, &vec![None; func.results.len()]);
        }
    }
    (pass.out, pass.fired)
}

fn callees(func: &Func) -> impl Iterator<Item = &str> {
    func.insts.iter().filter_map(|i| match &i.kind {
        InstKind::Call(call) => Some(call.func.as_str()),
        InstKind::Op(_) => None,
    })
}

struct Elide<'a> {
    funcs: BTreeMap<&'a str, &'a Func>,
    rules: Vec<&'static Rule>,
    out: Module,
    /// Copies, by function and the part of each result that they return.
    made: BTreeMap<(String, Vec<Option<Slice>>), String>,
    /// How many copies of a function return parts.
    parts: BTreeMap<String, usize>,
    /// Names that are taken.
    names: BTreeSet<String>,
    fired: Fired,
}

impl Elide<'_> {
    /// The name of the copy of a function that returns these parts of its results; it and what it calls are made if
    /// they are not there yet. `None` where there are too many already.
    fn copy(&mut self, name: &str, parts: &[Option<Slice>]) -> Option<String> {
        let key = (name.to_owned(), parts.to_vec());
        if let Some(known) = self.made.get(&key) {
            return Some(known.clone());
        }
        let Some(func) = self.funcs.get(name) else { return Some(name.to_owned()) };
        let mut new = returning(func, parts);
        if parts.iter().any(Option::is_some) {
            let count = self.parts.entry(name.to_owned()).or_default();
            if *count == MAX_PARTS {
                return None;
            }
            *count += 1;
            new.name = format!("{name}.part");
            while !self.names.insert(new.name.clone()) {
                new.name.push('_');
            }
        }
        self.made.insert(key, new.name.clone());
        let name = new.name.clone();
        let new = if new.kind == FuncKind::Graph { self.func(&new) } else { new };
        self.out.funcs.push(new);
        Some(name)
    }

    fn func(&mut self, old: &Func) -> Func {
        let graph = Graph::of(old);
        let demand =
            graph.demand(&self.rules, &|callee| self.funcs.get(callee).is_some_and(|f| f.kind == FuncKind::Graph));
        let mut typed = old.clone();
        let (edit, map) = Edit::like(old);
        let parts = BTreeMap::new();
        let mut copy = Copy { graph: &graph, demand: &demand, rules: self.rules.clone(), edit, map, parts };
        for inst in &old.insts {
            match &inst.kind {
                InstKind::Call(call) => {
                    let wanted: Vec<_> = inst.results.iter().map(|r| demand.part.get(r).cloned()).collect();
                    let whole = vec![None; wanted.len()];
                    let made = self.copy(&call.func, &wanted).map(|name| (name, &wanted));
                    let made = made.or_else(|| Some((self.copy(&call.func, &whole)?, &whole)));
                    let (func, given) = made.expect("whole functions are not counted");
                    for (r, part) in inst.results.iter().zip(given) {
                        let ty = old.ty(*r);
                        typed.values[r.index()].ty = part.as_ref().map_or_else(|| ty.clone(), |p| sliced(ty, p));
                    }
                    let call = InstKind::Call(Call { func, prefix: call.prefix.clone() });
                    copy.call(&typed, &Inst { kind: call, ..inst.clone() }, &wanted, given);
                }
                InstKind::Op(op) if demand.whole.contains(&inst.results[0]) => copy.op(op, inst),
                // Made here rather than by its readers, whose recursion would be as deep as the function is long.
                InstKind::Op(_) => copy.wanted_part(inst.results[0], &mut self.fired),
            }
        }
        copy.edit.finish(old, &copy.map)
    }
}

/// The function with slices of its results instead of these.
fn returning(func: &Func, parts: &[Option<Slice>]) -> Func {
    let mut out = func.clone();
    let definitions = func.definitions();
    for (i, part) in parts.iter().enumerate() {
        let Some(part) = part else { continue };
        let whole = func.results[i].1;
        let ty = sliced(func.ty(whole), part);
        let value = out.add_value(ty, func.values[whole.index()].name.clone());
        let origin = definitions[whole.index()].map_or_else(Vec::new, |at| func.insts[at].origin.clone());
        let kind = InstKind::Op(part.clone().into());
        out.insts.push(Inst { kind, args: vec![whole], results: vec![value], origin, laws: vec![] });
        out.results[i].1 = value;
    }
    out
}

fn sliced(ty: &TensorType, part: &Slice) -> TensorType {
    let mut ty = ty.clone();
    ty.shape[part.axis] = part.len.clone();
    ty
}

/// What is wanted of the values of a function.
#[derive(Default)]
struct Demand {
    /// Values that are wanted whole.
    whole: BTreeSet<ValueId>,
    /// Values of which one part is wanted and nothing else.
    part: BTreeMap<ValueId, Slice>,
}

/// A function as laws see it.
struct Graph<'a> {
    func: &'a Func,
    definitions: Vec<Option<usize>>,
}

impl<'a> Graph<'a> {
    fn of(func: &'a Func) -> Self {
        Graph { func, definitions: func.definitions() }
    }

    fn inst(&self, v: ValueId) -> Option<&'a Inst> {
        self.definitions[v.index()].map(|i| &self.func.insts[i])
    }

    /// The function whose call gives `v`.
    fn call(&self, v: ValueId) -> Option<&'a str> {
        match &self.inst(v)?.kind {
            InstKind::Call(call) => Some(&call.func),
            InstKind::Op(_) => None,
        }
    }

    /// A part of `v` by a law, from parts of what it is computed from.
    fn law(&self, rules: &[&'static Rule], v: ValueId, part: &Slice) -> Option<(&'static Rule, Term)> {
        let op = Op::from(part.clone());
        let apply = |r: &&'static Rule| (r.apply)(self, &op, &[V(v.0)]).into_iter().find(|t| t.ty(self).is_some());
        rules.iter().find_map(|r| Some((*r, apply(r)?)))
    }

    /// What results, next states and calls want, directly and of what it is computed from. `in_part` says of which
    /// functions a part can be called for.
    fn demand(&self, rules: &[&'static Rule], in_part: &dyn Fn(&str) -> bool) -> Demand {
        let calls = self.func.insts.iter().filter(|i| matches!(i.kind, InstKind::Call(_)));
        let mut roots: Vec<ValueId> = calls.flat_map(|i| i.args.iter().copied()).collect();
        roots.extend(self.func.results.iter().map(|(_, v)| *v));
        roots.extend(self.func.states.iter().map(|s| s.next));
        // What turns out to be wanted whole may have been taken for wanted in part before, so then all begins anew.
        let mut whole: BTreeSet<ValueId> = roots.into_iter().collect();
        loop {
            let mut demand = Demand { whole: whole.clone(), part: BTreeMap::new() };
            let mut open: Vec<ValueId> = whole.iter().copied().collect();
            let mut parts: Vec<(ValueId, Slice)> = Vec::new();
            loop {
                if let Some(v) = open.pop() {
                    match self.inst(v).map(|i| (&i.kind, &i.args)) {
                        Some((InstKind::Op(Op::Slice(s)), args)) => parts.push((args[0], s.clone())),
                        Some((InstKind::Op(_), args)) => {
                            open.extend(args.iter().filter(|a| demand.whole.insert(**a)));
                        }
                        Some((InstKind::Call(_), _)) | None => {}
                    }
                } else if let Some((v, part)) = parts.pop() {
                    if demand.whole.contains(&v) || demand.part.get(&v) == Some(&part) {
                        continue;
                    }
                    let other = demand.part.insert(v, part.clone()).is_some();
                    let term = match self.call(v) {
                        Some(callee) if in_part(callee) && !other => continue,
                        _ if other => None,
                        _ => self.law(rules, v, &part),
                    };
                    match term {
                        Some((_, term)) => wanted(&term, &mut |a, part| match part {
                            Some(part) => parts.push((a, part.clone())),
                            None => open.extend(demand.whole.insert(a).then_some(a)),
                        }),
                        None => open.extend(demand.whole.insert(v).then_some(v)),
                    }
                } else {
                    break;
                }
            }
            if demand.whole == whole {
                return demand;
            }
            whole = demand.whole;
        }
    }
}

/// The values that a term is made of, with the part of each that it uses.
fn wanted(term: &Term, found: &mut dyn FnMut(ValueId, Option<&Slice>)) {
    match term {
        Term::Old(v) => found(ValueId(v.0), None),
        Term::New(Op::Slice(s), args) if matches!(args[0], Term::Old(_)) => {
            let Term::Old(v) = &args[0] else { return };
            found(ValueId(v.0), Some(s));
        }
        Term::New(_, args) => args.iter().for_each(|a| wanted(a, found)),
    }
}

impl Site for Graph<'_> {
    fn ty(&self, v: V) -> &TensorType {
        self.func.ty(ValueId(v.0))
    }

    fn forms(&self, v: V) -> Vec<(&Op, Vec<V>)> {
        forms_of(self.func, self.definitions[v.0 as usize])
    }

    fn readers(&self, v: V) -> Vec<(V, &Op, Vec<V>)> {
        let of = |i: &'_ Inst| i.args.iter().map(|a| V(a.0)).collect();
        let readers = self.func.insts.iter().filter(|i| i.args.contains(&ValueId(v.0)));
        let ops = readers.filter_map(|i| match &i.kind {
            InstKind::Op(op) => Some((V(i.results[0].0), op, of(i))),
            InstKind::Call(_) => None,
        });
        ops.collect()
    }

    fn constant(&self, _: V) -> bool {
        false
    }

    fn upper(&self, size: &Dim) -> Option<i64> {
        size.as_const()
    }

    fn lower(&self, size: &Dim) -> Option<i64> {
        size.as_const()
    }
}

/// A function being made anew.
struct Copy<'a> {
    graph: &'a Graph<'a>,
    demand: &'a Demand,
    rules: Vec<&'static Rule>,
    edit: Edit,
    /// Where each value that is there whole is.
    map: Vec<Option<ValueId>>,
    parts: BTreeMap<ValueId, ValueId>,
}

impl Copy<'_> {
    /// A call of a function that gives the parts of its results that are wanted, or the whole of them.
    fn call(&mut self, typed: &Func, inst: &Inst, wanted: &[Option<Slice>], given: &[Option<Slice>]) {
        let args = inst.args.iter().map(|a| self.whole(*a)).collect();
        let results = self.edit.call(typed, inst, args);
        for (i, new) in results.into_iter().enumerate() {
            let old = inst.results[i];
            let part = match (&wanted[i], &given[i]) {
                (Some(part), None) => self.edit.op(part.clone().into(), vec![new], &trail(inst), None),
                _ => new,
            };
            match wanted[i] {
                Some(_) => _ = self.parts.insert(old, part),
                None => self.map[old.index()] = Some(new),
            }
        }
    }

    fn op(&mut self, op: &Op, inst: &Inst) {
        let result = inst.results[0];
        let name = self.graph.func.values[result.index()].name.as_deref();
        let new = match op {
            Op::Slice(s) => self.part(inst.args[0], s, &trail(inst)),
            op => {
                let args = inst.args.iter().map(|a| self.whole(*a)).collect();
                self.edit.op(op.clone(), args, &trail(inst), name)
            }
        };
        self.map[result.index()] = Some(new);
    }

    fn whole(&self, v: ValueId) -> ValueId {
        self.map[v.index()].expect("what is wanted whole is made before it is used")
    }

    /// A part of a value: a slice of it where it is there whole.
    fn part(&mut self, v: ValueId, part: &Slice, reader: &Trail) -> ValueId {
        if self.demand.part.get(&v) != Some(part) || self.demand.whole.contains(&v) {
            let whole = self.whole(v);
            return self.edit.op(part.clone().into(), vec![whole], reader, None);
        }
        self.parts[&v]
    }

    /// The part that is wanted of a value, by a law, from parts of values before it; nothing where none is.
    fn wanted_part(&mut self, v: ValueId, fired: &mut Fired) {
        let Some(part) = self.demand.part.get(&v) else { return };
        let (rule, term) = self.graph.law(&self.rules, v, part).expect("a part was wanted because there is a law");
        *fired.entry(rule.name).or_default() += 1;
        let inst = self.graph.inst(v).expect("a law looked at the op");
        let mut laws = inst.laws.clone();
        if laws.last().is_none_or(|l| l != rule.name) {
            laws.push(rule.name.to_owned());
        }
        let new = self.term(&term, &Trail { origin: &inst.origin, laws: &laws });
        self.parts.insert(v, new);
    }

    fn term(&mut self, term: &Term, trail: &Trail) -> ValueId {
        match term {
            Term::Old(v) => self.whole(ValueId(v.0)),
            Term::New(Op::Slice(s), args) if matches!(args[0], Term::Old(_)) => {
                let Term::Old(v) = &args[0] else { unreachable!("just matched") };
                self.part(ValueId(v.0), s, trail)
            }
            Term::New(op, args) => {
                let args = args.iter().map(|a| self.term(a, trail)).collect();
                self.edit.op(op.clone(), args, trail, None)
            }
        }
    }
}

fn trail(inst: &Inst) -> Trail<'_> {
    Trail { origin: &inst.origin, laws: &inst.laws }
}
