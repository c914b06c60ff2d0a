//! `share`: what calls have in common is computed once.
//!
//! ```text
//! func @layer(%x, %i) { … %a = cos %i …  }          func @layer(%x, %a) { … }
//! %1 = call @layer(%x, %i) at "0."             ->   %a = cos %i
//! %2 = call @layer(%1, %i) at "1."                  %1 = call @layer(%x, %a) at "0."
//!                                                   %2 = call @layer(%1, %a) at "1."
//! ```
//!
//! A function may compute values from its inputs alone, without weights and states. Where most of its calls get the
//! same value as some other call, of whatever function, the caller computes it and passes it on: tables of angles,
//! masks, a choice of rows. Values are compared by structure, over the caller's values. The function stays one template
//! for all its calls. Only work moves: views, constants and what follows from constants stay where they are, and so do
//! casts, which whoever reads a value does on the way.
//!
//! It comes after the search for alternatives, whose laws have to see a selection and its use in one function.
//!
//! Besides, two calls of one function without states, with the same weights and inputs, are one call; and a result that
//! is one of the function's inputs is that input in the caller. Exact.

use crate::edit::{Edit, Trail, mentions_symbols};
use hadal_ir::{Call, Func, FuncKind, Inst, InstKind, Module, Op, ValueId};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Most times that all is looked at again: what moved out of one level of calls may be common on the next.
const ROUNDS: usize = 4;

/// Shares in every function.
pub fn run(module: &Module) -> Module {
    let mut current = module.clone();
    for _ in 0..ROUNDS {
        let next = round(&current);
        if next == current {
            break;
        }
        current = next;
    }
    current
}

fn round(module: &Module) -> Module {
    let moved = common(module);
    let states = with_states(module);
    let mut out = Module { funcs: Vec::new(), ..module.clone() };
    for func in &module.funcs {
        let moves = moved.get(func.name.as_str()).map(Vec::as_slice).unwrap_or_default();
        out.funcs.push(Caller { module, moved: &moved, states: &states, func }.rewritten(moves));
    }
    out
}

/// Functions that have states, or call such.
fn with_states(module: &Module) -> BTreeSet<&str> {
    let mut out = BTreeSet::new();
    for f in &module.funcs {
        if !f.states.is_empty() || calls(f).any(|(c, _)| out.contains(c.func.as_str())) {
            out.insert(f.name.as_str());
        }
    }
    out
}

fn calls(func: &Func) -> impl Iterator<Item = (&Call, &Inst)> {
    func.insts.iter().filter_map(|i| match &i.kind {
        InstKind::Call(call) => Some((call, i)),
        InstKind::Op(_) => None,
    })
}

/// Values that can be computed from a function's inputs alone.
struct Pure<'a> {
    func: &'a Func,
    definitions: Vec<Option<usize>>,
    /// By value: it is such a value.
    pure: Vec<bool>,
    /// By value: it or something it is computed from is work, and does not follow from constants.
    work: Vec<bool>,
}

impl<'a> Pure<'a> {
    fn of(func: &'a Func) -> Self {
        let n = func.values.len();
        let (mut pure, mut moving, mut work) = (vec![false; n], vec![false; n], vec![false; n]);
        for p in &func.params {
            (pure[p.index()], moving[p.index()]) = (true, true);
        }
        for inst in &func.insts {
            let InstKind::Op(op) = &inst.kind else { continue };
            let r = inst.results[0].index();
            let any = |of: &[bool]| inst.args.iter().any(|a| of[a.index()]);
            pure[r] = inst.args.iter().all(|a| pure[a.index()]);
            moving[r] = mentions_symbols(op) || any(&moving);
            work[r] = moving[r] && is_work(op) || any(&work);
        }
        Pure { func, definitions: func.definitions(), pure, work }
    }

    fn inst(&self, v: ValueId) -> Option<(&'a Op, &'a Inst)> {
        let inst = &self.func.insts[self.definitions[v.index()]?];
        match &inst.kind {
            InstKind::Op(op) => Some((op, inst)),
            InstKind::Call(_) => None,
        }
    }

    fn moves(&self, v: ValueId) -> bool {
        self.pure[v.index()] && self.work[v.index()]
    }

    /// The values to pass in so that nothing for which `common` holds is computed: those that something else uses.
    /// Views of them are done by the function itself.
    fn frontier(&self, common: &dyn Fn(ValueId) -> bool) -> Vec<ValueId> {
        let mut used: BTreeSet<ValueId> = self.func.results.iter().map(|(_, v)| *v).collect();
        used.extend(self.func.states.iter().map(|s| s.next));
        for inst in &self.func.insts {
            if !(matches!(inst.kind, InstKind::Op(_)) && common(inst.results[0])) {
                used.extend(&inst.args);
            }
        }
        let mut out = BTreeSet::new();
        let mut open: Vec<ValueId> = used.into_iter().filter(|v| common(*v)).collect();
        while let Some(v) = open.pop() {
            match self.inst(v) {
                Some((op, inst)) if !is_work(op) => open.extend(inst.args.iter().filter(|a| common(**a))),
                _ => _ = out.insert(v),
            }
        }
        out.into_iter().collect()
    }
}

fn is_work(op: &Op) -> bool {
    !op.is_view() && !matches!(op, Op::Constant(_) | Op::Iota(_) | Op::Cast(_) | Op::Dequantize(_))
}

/// Values of all calls in one function by structure: equal numbers are equal values.
#[derive(Default)]
struct Numbers {
    known: HashMap<(Option<Op>, Vec<usize>), usize>,
}

impl Numbers {
    fn number(&mut self, op: Option<Op>, args: Vec<usize>) -> usize {
        let next = self.known.len();
        *self.known.entry((op, args)).or_insert(next)
    }

    /// The numbers of the values of `pure` in a call with these arguments.
    fn of(&mut self, pure: &Pure, args: &[ValueId]) -> BTreeMap<ValueId, usize> {
        let mut out = BTreeMap::new();
        for (p, a) in pure.func.params.iter().zip(args) {
            // A caller's value has itself for a number, which no op has as its only operand.
            out.insert(*p, self.number(None, vec![a.index()]));
        }
        for inst in &pure.func.insts {
            let InstKind::Op(op) = &inst.kind else { continue };
            if pure.pure[inst.results[0].index()] {
                let args = inst.args.iter().map(|a| out[a]).collect();
                out.insert(inst.results[0], self.number(Some(op.clone()), args));
            }
        }
        out
    }
}

/// The values of each function that its callers compute from now on.
fn common(module: &Module) -> BTreeMap<&str, Vec<ValueId>> {
    let entries: BTreeSet<&str> = module.entries.iter().map(|e| e.func.as_str()).collect();
    let inner = |f: &&Func| f.kind == FuncKind::Graph && !entries.contains(f.name.as_str());
    let pure: BTreeMap<&str, Pure> =
        module.funcs.iter().filter(inner).map(|f| (f.name.as_str(), Pure::of(f))).collect();
    // By function and value: calls, and calls in which another call has the same value.
    let mut counts: BTreeMap<(&str, ValueId), (usize, usize)> = BTreeMap::new();
    for caller in module.funcs.iter().filter(|f| f.kind == FuncKind::Graph) {
        let mut numbers = Numbers::default();
        let mut found = Vec::new();
        let mut calls_with: BTreeMap<usize, usize> = BTreeMap::new();
        for (call, inst) in calls(caller) {
            let Some(pure) = pure.get(call.func.as_str()) else { continue };
            let values = numbers.of(pure, &inst.args);
            let moving: Vec<(ValueId, usize)> = values.into_iter().filter(|(v, _)| pure.moves(*v)).collect();
            let distinct: BTreeSet<usize> = moving.iter().map(|(_, n)| *n).collect();
            distinct.into_iter().for_each(|n| *calls_with.entry(n).or_default() += 1);
            found.extend(moving.into_iter().map(|(v, n)| (pure.func.name.as_str(), v, n)));
        }
        for (name, v, number) in found {
            let (calls, shared) = counts.entry((name, v)).or_default();
            *calls += 1;
            *shared += usize::from(calls_with[&number] > 1);
        }
    }
    let mut out = BTreeMap::new();
    for (name, pure) in &pure {
        let most = |v| counts.get(&(*name, v)).is_some_and(|(calls, shared)| 2 * shared > *calls);
        let frontier = pure.frontier(&most);
        if !frontier.is_empty() {
            out.insert(*name, frontier);
        }
    }
    out
}

/// A function being made anew.
struct Caller<'a> {
    module: &'a Module,
    moved: &'a BTreeMap<&'a str, Vec<ValueId>>,
    states: &'a BTreeSet<&'a str>,
    func: &'a Func,
}

impl Caller<'_> {
    /// The function with `moves` as further inputs, and its calls with what their functions want.
    fn rewritten(&self, moves: &[ValueId]) -> Func {
        let old = self.func;
        if old.kind != FuncKind::Graph {
            return old.clone();
        }
        let (mut edit, mut map) = Edit::like(old);
        let mut known: Vec<(Call, Vec<ValueId>, Vec<ValueId>)> = Vec::new();
        for v in moves {
            map[v.index()] = Some(edit.param(old.ty(*v).clone(), old.values[v.index()].name.clone()));
        }
        for inst in &old.insts {
            if moves.contains(&inst.results.first().copied().unwrap_or(ValueId(u32::MAX))) {
                continue;
            }
            let mut args: Vec<ValueId> =
                inst.args.iter().map(|a| map[a.index()].expect("defined before use")).collect();
            match &inst.kind {
                InstKind::Op(op) => {
                    let result = inst.results[0];
                    let name = old.values[result.index()].name.as_deref();
                    let trail = Trail { origin: &inst.origin, laws: &inst.laws };
                    map[result.index()] = Some(edit.op(op.clone(), args, &trail, name));
                }
                InstKind::Call(call) => {
                    let callee = self.module.func(&call.func).filter(|f| f.kind == FuncKind::Graph);
                    let moved = self.moved.get(call.func.as_str()).map(Vec::as_slice).unwrap_or_default();
                    let more = callee.map(|f| instance(f, &call.prefix, moved, &args, &mut edit)).unwrap_or_default();
                    args.extend(more);
                    // Without weights, the place does not matter.
                    let mut place = call.clone();
                    if callee.is_some_and(|f| f.weights.is_empty() && calls(f).next().is_none()) {
                        place.prefix.clear();
                    }
                    let again = known.iter().find(|(c, a, _)| (c, a) == (&place, &args));
                    let results = match again {
                        Some((_, _, results)) => results.clone(),
                        None => edit.call(old, inst, args.clone()),
                    };
                    if again.is_none() && !self.states.contains(call.func.as_str()) {
                        known.push((place, args.clone(), results.clone()));
                    }
                    let results_of = callee.map(|f| f.results.as_slice()).unwrap_or_default();
                    for (i, (r, new)) in inst.results.iter().zip(results).enumerate() {
                        let passed = callee.zip(results_of.get(i)).and_then(|(f, (_, v))| {
                            let inputs = f.params.iter().chain(moved);
                            args.get(inputs.into_iter().position(|p| p == v)?)
                        });
                        map[r.index()] = Some(passed.copied().unwrap_or(new));
                    }
                }
            }
        }
        edit.finish(old, &map)
    }
}

/// Computes values of `func` for a call with these arguments; gives where they are.
fn instance(func: &Func, prefix: &str, values: &[ValueId], args: &[ValueId], edit: &mut Edit) -> Vec<ValueId> {
    let mut wanted: BTreeSet<ValueId> = values.iter().copied().collect();
    for inst in func.insts.iter().rev() {
        if wanted.contains(&inst.results.first().copied().unwrap_or(ValueId(u32::MAX))) {
            wanted.extend(&inst.args);
        }
    }
    let mut map: BTreeMap<ValueId, ValueId> = func.params.iter().copied().zip(args.iter().copied()).collect();
    for inst in &func.insts {
        if let InstKind::Op(op) = &inst.kind
            && wanted.contains(&inst.results[0])
        {
            let origin: Vec<String> = inst.origin.iter().map(|o| format!("{prefix}{o}")).collect();
            let name = func.values[inst.results[0].index()].name.as_deref();
            let operands = inst.args.iter().map(|a| map[a]).collect();
            let trail = Trail { origin: &origin, laws: &inst.laws };
            map.insert(inst.results[0], edit.op(op.clone(), operands, &trail, name));
        }
    }
    values.iter().map(|v| map[v]).collect()
}
