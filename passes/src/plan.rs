//! `plan`: flattens the entries of a fused module into launches over planned memory.
//!
//! Each version of an entry has a plan of its own; weights, folds and states are those of the program. Working memory
//! is one arena, as large as the largest plan needs. Every kernel result gets a buffer of its largest size, alive from
//! the launch that writes it to the last one that reads it, and buffers share bytes only if their lives do not meet.
//! Large buffers are placed first, each at the lowest offset that is free for its whole life. The result of `append` is
//! the state's own memory. [`check`] proves all that again from the finished plan, and `crate::simulate` runs it.

mod batch;
mod check;
mod size;

pub use batch::{Batching, batching};
pub use check::check;
pub use size::{largest, largest_bytes};

use crate::Error;
use hadal_ir::ops::Broadcast;
use hadal_ir::plan::*;
use hadal_ir::{Builder, Dim, Entry, Func, FuncKind, Inst, InstKind, Module, Op, Range, Sym, TensorType, ValueId};
use std::collections::BTreeMap;

/// Plans every entry of a fused module. `P + T` never exceeds `max_context`.
pub fn run(module: &Module, max_context: i64) -> Result<Program, Error> {
    let mut program = Program { module: module.clone(), ..Program::default() };
    for entry in &module.entries {
        let plan = Planner::new(module, &mut program, entry, max_context).run()?;
        program.plans.push(plan);
    }
    for plan in &program.plans {
        check(&program, plan)?;
    }
    Ok(program)
}

/// Where a value lies.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Loc {
    place: Place,
    /// Of a state: whether this value has the new rows.
    appended: bool,
}

impl Loc {
    fn at(place: Place) -> Loc {
        Loc { place, appended: false }
    }
}

struct Planner<'a> {
    module: &'a Module,
    program: &'a mut Program,
    entry: &'a Entry,
    plan: Plan,
    /// Values of symbols that there must be room for.
    sizes: Ranges,
    /// States that this entry has appended to.
    appended: BTreeMap<usize, usize>,
    /// Buffers whose memory the caller provides.
    given: BTreeMap<usize, Place>,
}

impl<'a> Planner<'a> {
    fn new(module: &'a Module, program: &'a mut Program, entry: &'a Entry, max_context: i64) -> Self {
        let plan = Plan {
            entry: entry.name.clone(),
            ranges: module.ranges(entry),
            max_context,
            inputs: vec![],
            outputs: vec![],
            buffers: vec![],
            arena_bytes: 0,
            lower_bound: 0,
            launches: vec![],
        };
        let sizes = hadal_ir::module::sizes(&module.definitions, &plan.ranges);
        Planner { module, program, entry, plan, sizes, appended: BTreeMap::new(), given: BTreeMap::new() }
    }

    fn run(mut self) -> Result<Plan, Error> {
        let func = self.module.func(&self.entry.func).ok_or_else(|| Error::NotFused(self.entry.func.clone()))?;
        let mut args = Vec::new();
        for (i, p) in func.params.iter().enumerate() {
            let name = func.values[p.index()].name.clone().unwrap_or_else(|| format!("in{i}"));
            self.plan.inputs.push(Port { name, ty: func.ty(*p).clone() });
            args.push(Loc::at(Place::Input(i)));
        }
        let results = self.func(func, "", &args)?;
        for ((name, v), loc) in func.results.iter().zip(results) {
            self.output(name, func.ty(*v), loc);
        }
        self.give();
        place(&mut self.plan.buffers);
        self.plan.arena_bytes = self.plan.buffers.iter().map(|b| b.offset + b.bytes).max().unwrap_or(0);
        let live = |at: usize| {
            let alive = self.plan.buffers.iter().filter(|b| b.first <= at && at <= b.last);
            alive.map(|b| b.bytes).sum::<u64>()
        };
        self.plan.lower_bound = (0..self.plan.launches.len()).map(live).max().unwrap_or(0);
        Ok(self.plan)
    }

    /// Launches of one function; gives where its results lie.
    fn func(&mut self, func: &Func, prefix: &str, args: &[Loc]) -> Result<Vec<Loc>, Error> {
        let mut locs: Vec<Option<Loc>> = vec![None; func.values.len()];
        for (p, loc) in func.params.iter().zip(args) {
            locs[p.index()] = Some(*loc);
        }
        for w in &func.weights {
            let index = self.weight(format!("{prefix}{}", w.name), func.ty(w.value))?;
            locs[w.value.index()] = Some(Loc::at(Place::Weight(index)));
        }
        for s in &func.states {
            let index = self.state(format!("{prefix}{}", s.name), func.ty(s.value))?;
            locs[s.value.index()] = Some(Loc::at(Place::State(index)));
        }
        for inst in &func.insts {
            let args: Vec<Loc> = inst.args.iter().map(|a| locs[a.index()].expect("verified")).collect();
            let results = match &inst.kind {
                InstKind::Op(Op::Reshape(_)) => args,
                InstKind::Op(_) => return Err(Error::NotFused(func.name.clone())),
                InstKind::Call(call) => {
                    let callee = self.module.func(&call.func).ok_or_else(|| Error::NotFused(call.func.clone()))?;
                    match callee.kind {
                        FuncKind::Graph => self.func(callee, &format!("{prefix}{}", call.prefix), &args)?,
                        FuncKind::Kernel => self.launch(callee, inst, prefix, &args)?,
                        FuncKind::Fold => self.fold(callee, &args)?,
                    }
                }
            };
            for (r, loc) in inst.results.iter().zip(results) {
                locs[r.index()] = Some(loc);
            }
        }
        let at = |v: ValueId| locs[v.index()].expect("verified");
        for s in &func.states {
            let (old, new) = (at(s.value), at(s.next));
            if s.next != s.value && (new.place != old.place || !new.appended) {
                return Err(Error::NotAppended(format!("{prefix}{}", s.name)));
            }
        }
        Ok(func.results.iter().map(|(_, v)| at(*v)).collect())
    }

    fn launch(&mut self, kernel: &Func, inst: &Inst, prefix: &str, args: &[Loc]) -> Result<Vec<Loc>, Error> {
        let index = self.plan.launches.len();
        for loc in args {
            match loc.place {
                Place::State(s) if !loc.appended && self.appended.contains_key(&s) => {
                    let state = self.program.states[s].name.clone();
                    return Err(Error::ReadAfterAppend { state, kernel: kernel.name.clone() });
                }
                Place::Buffer(b) => self.plan.buffers[b].last = index,
                _ => {}
            }
        }
        let mut results = Vec::new();
        for (_, r) in &kernel.results {
            let loc = match appended_param(kernel, *r) {
                Some(param) => {
                    let Place::State(s) = args[param].place else {
                        return Err(Error::AppendedElsewhere(kernel.name.clone()));
                    };
                    if self.appended.insert(s, index).is_some() {
                        let state = self.program.states[s].name.clone();
                        return Err(Error::AppendedTwice { state, entry: self.plan.entry.clone() });
                    }
                    Loc { place: Place::State(s), appended: true }
                }
                None => Loc::at(self.buffer(kernel.ty(*r), index)?),
            };
            results.push(loc);
        }
        let origin = match inst.origin.is_empty() {
            true if prefix.is_empty() => vec![],
            true => vec![prefix.trim_end_matches('.').to_owned()],
            false => inst.origin.iter().map(|o| format!("{prefix}{o}")).collect(),
        };
        let places = args.iter().chain(&results).map(|l| l.place).collect();
        self.plan.launches.push(Launch { kernel: kernel.name.clone(), args: places, origin });
        Ok(results)
    }

    fn fold(&mut self, func: &Func, args: &[Loc]) -> Result<Vec<Loc>, Error> {
        if args.iter().any(|a| !matches!(a.place, Place::Weight(_) | Place::Fold(_))) {
            return Err(Error::FoldOfValues(func.name.clone()));
        }
        let args: Vec<Place> = args.iter().map(|a| a.place).collect();
        let mut out = Vec::new();
        for (result, (_, v)) in func.results.iter().enumerate() {
            let fold = Fold { func: func.name.clone(), result, args: args.clone(), ty: func.ty(*v).clone() };
            let folds = &mut self.program.folds;
            let index = folds.iter().position(|f| *f == fold).unwrap_or_else(|| {
                folds.push(fold);
                folds.len() - 1
            });
            out.push(Loc::at(Place::Fold(index)));
        }
        Ok(out)
    }

    fn buffer(&mut self, ty: &TensorType, launch: usize) -> Result<Place, Error> {
        let bytes = largest_bytes(ty, &self.sizes, self.plan.max_context)?;
        self.plan.buffers.push(Buffer { ty: ty.clone(), offset: 0, bytes, first: launch, last: launch });
        Ok(Place::Buffer(self.plan.buffers.len() - 1))
    }

    fn weight(&mut self, name: String, ty: &TensorType) -> Result<usize, Error> {
        if ty.shape.iter().any(|d| d.as_const().is_none()) {
            return Err(Error::Symbolic { name, ty: ty.clone() });
        }
        let weights = &mut self.program.weights;
        if let Some(i) = weights.iter().position(|w| w.name == name) {
            return match weights[i].ty == *ty {
                true => Ok(i),
                false => Err(Error::Disagree { name, first: weights[i].ty.clone(), second: ty.clone() }),
            };
        }
        weights.push(Weight { name, ty: ty.clone() });
        Ok(weights.len() - 1)
    }

    fn state(&mut self, name: String, ty: &TensorType) -> Result<usize, Error> {
        let row = TensorType { dtype: ty.dtype, shape: ty.shape.get(1..).unwrap_or_default().to_vec() };
        if row.shape.iter().any(|d| d.as_const().is_none()) {
            return Err(Error::Symbolic { name, ty: row });
        }
        let held = ty.shape.first().cloned().unwrap_or_default();
        let rows = self.rows(&held).ok_or_else(|| Error::TooLarge { ty: ty.clone() })?;
        let states = &mut self.program.states;
        if let Some(i) = states.iter().position(|s| s.name == name) {
            return match states[i].row == row && states[i].held == held {
                true => Ok(i),
                false => Err(Error::Disagree { name, first: states[i].row.clone(), second: row }),
            };
        }
        states.push(State { name, row, held, rows });
        Ok(states.len() - 1)
    }

    /// The most rows of a state of `held` rows and the new ones of a call, over all entries: a row for each token of
    /// the context, as many groups as can be complete, or a window and the new tokens.
    fn rows(&self, held: &Dim) -> Option<i64> {
        let symbols = &self.module.symbols;
        let most = |s: Sym| symbols.get(&s).map_or(0, |r| r.max);
        if let Some(window) = held.as_const() {
            return window.checked_add(most(Sym::T).min(self.plan.max_context));
        }
        held.terms().iter().try_fold(held.constant(), |sum, (s, k)| {
            let rows = match self.module.definitions.growth(*s) {
                Some(growth) if *s != Sym::P => most(*s).checked_add(most(growth))?,
                _ => self.plan.max_context,
            };
            sum.checked_add(rows.checked_mul(*k)?)
        })
    }

    /// Makes a value an output: its buffer becomes the caller's, or it is copied there.
    fn output(&mut self, name: &str, ty: &TensorType, loc: Loc) {
        let output = Place::Output(self.plan.outputs.len());
        self.plan.outputs.push(Port { name: name.to_owned(), ty: ty.clone() });
        match loc.place {
            Place::Buffer(b) if !self.given.contains_key(&b) => {
                self.given.insert(b, output);
            }
            place => {
                let kernel = self.copy_kernel(ty);
                if let Place::Buffer(b) = place {
                    self.plan.buffers[b].last = self.plan.launches.len();
                }
                self.plan.launches.push(Launch { kernel, args: vec![place, output], origin: vec![] });
            }
        }
    }

    /// Takes the buffers out of the plan whose memory is the caller's.
    fn give(&mut self) {
        let mut places = Vec::new();
        let mut kept = 0;
        for b in 0..self.plan.buffers.len() {
            places.push(self.given.get(&b).copied().unwrap_or(Place::Buffer(kept)));
            kept += usize::from(!self.given.contains_key(&b));
        }
        for place in self.plan.launches.iter_mut().flat_map(|l| &mut l.args) {
            if let Place::Buffer(b) = place {
                *place = places[*b];
            }
        }
        let mut b = 0..;
        self.plan.buffers.retain(|_| !self.given.contains_key(&b.next().expect("endless")));
    }

    fn copy_kernel(&mut self, ty: &TensorType) -> String {
        let mut name = format!("copy_{}", ty.dtype);
        for d in &ty.shape {
            name += &format!("_{d}").replace(['+', '*', '-'], "_");
        }
        if self.program.module.func(&name).is_none() {
            let mut b = Builder::new(&name);
            let x = b.param("p0", ty.clone());
            let dims = (0..ty.rank()).collect();
            let y = b.op(Broadcast { shape: ty.shape.clone(), dims }, &[x]);
            b.result("out", y);
            let mut func = b.finish().expect("a copy has the type of what it copies");
            func.kind = FuncKind::Kernel;
            self.program.module.funcs.insert(0, func);
        }
        name
    }
}

/// The parameter whose memory result `value` of a kernel extends, if it is an `append`.
pub(crate) fn appended_param(kernel: &Func, value: ValueId) -> Option<usize> {
    let inst = kernel.insts.iter().find(|i| i.results.contains(&value))?;
    match &inst.kind {
        InstKind::Op(Op::Append(_)) => kernel.params.iter().position(|p| *p == inst.args[0]),
        _ => None,
    }
}

/// Gives every buffer the lowest offset that is free for its whole life, large ones first.
fn place(buffers: &mut [Buffer]) {
    let mut order: Vec<usize> = (0..buffers.len()).collect();
    order.sort_by_key(|i| (std::cmp::Reverse(buffers[*i].bytes), buffers[*i].first, *i));
    let mut placed: Vec<usize> = Vec::new();
    for i in order {
        let meets = placed.iter().filter(|j| buffers[i].overlaps_in_time(&buffers[**j]));
        let mut taken: Vec<(u64, u64)> = meets.map(|j| (buffers[*j].offset, buffers[*j].bytes)).collect();
        taken.sort_unstable();
        let mut offset = 0;
        for (start, bytes) in taken {
            if offset + buffers[i].bytes <= start {
                break;
            }
            offset = offset.max((start + bytes).next_multiple_of(ALIGN));
        }
        buffers[i].offset = offset;
        placed.push(i);
    }
}

/// Ranges of symbols.
pub(crate) type Ranges = BTreeMap<Sym, Range>;
