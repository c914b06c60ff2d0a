//! `panels`: weights are stored as the kernels that read them want them.
//!
//! ```text
//! %y = call @product(%x, %w)        ->    %p = call @panels0(%w)
//!                                         %y = call @product(%x, %p)
//! ```
//!
//! Some kernels read a matrix faster where it lies as [panels](hadal_ir::panels). A file holds each tensor once, so it is
//! stored so if *all* kernels that any launch gives it to know panels, in all versions of all entries. A kernel serves
//! many launches, of each layer: tensors and the kernels' parameters that they are given to are decided together as far as
//! they hang together. Who decides is asked (code generators do not exist here) with the kernel as it would be.
//!
//! Needs a fused module and its plan; gives both anew, with folds that lay tensors out when compiling. Exact: a view of
//! the same elements, whoever reads them.

use crate::{Error, Fused, plan};
use hadal_ir::module::{Call, Func, FuncKind, Inst, InstKind, Module, Range, ValueId};
use hadal_ir::plan::{Place, Program};
use hadal_ir::{Sym, TensorType, panels};
use std::collections::{BTreeMap, BTreeSet};

/// A kernel's parameter.
type Reader = (String, usize);

/// Whether a kernel that is given panels, launched with these values of the symbols, reads them as well as rows.
pub type Reads<'a> = &'a dyn Fn(&Func, &BTreeMap<Sym, Range>) -> bool;

/// Lays out what all readers want so.
pub fn run(fused: Fused, program: Program, max_context: i64, reads: Reads<'_>) -> Result<(Fused, Program), Error> {
    let chosen = choose(&program, reads);
    if chosen.is_empty() {
        return Ok((fused, program));
    }
    let fused = Fused { module: apply(&fused.module, &chosen), ..fused };
    let program = plan::run(&fused.module, max_context)?;
    Ok((fused, program))
}

/// The parameters that are given panels.
fn choose(program: &Program, reads: Reads<'_>) -> BTreeSet<Reader> {
    let mut readers: BTreeMap<Place, BTreeSet<Reader>> = BTreeMap::new();
    let mut given: BTreeMap<Reader, BTreeSet<Place>> = BTreeMap::new();
    for launch in program.plans.iter().flat_map(|p| &p.launches) {
        for (i, place) in launch.args.iter().enumerate() {
            if matches!(place, Place::Weight(_) | Place::Fold(_)) {
                let reader = (launch.kernel.clone(), i);
                readers.entry(*place).or_default().insert(reader.clone());
                given.entry(reader).or_default().insert(*place);
            }
        }
    }
    let mut chosen = BTreeSet::new();
    while let Some((first, _)) = given.first_key_value() {
        let (mut together, mut open) = (BTreeSet::new(), vec![first.clone()]);
        while let Some(reader) = open.pop() {
            let places = given.remove(&reader).unwrap_or_default();
            open.extend(places.iter().filter_map(|p| readers.remove(p)).flatten());
            together.insert(reader);
        }
        let knows = |(kernel, param): &Reader| {
            let func = program.module.func(kernel).and_then(|f| panels::reading(f, *param));
            func.is_some_and(|f| reads(&f, &program.ranges(kernel)))
        };
        if together.iter().all(knows) {
            chosen.append(&mut together);
        }
    }
    chosen
}

/// The module with panels for these parameters.
fn apply(module: &Module, chosen: &BTreeSet<Reader>) -> Module {
    let mut out = module.clone();
    let mut folds: Vec<Func> = Vec::new();
    for func in &mut out.funcs {
        if func.kind == FuncKind::Kernel {
            for param in 0..func.params.len() {
                if chosen.contains(&(func.name.clone(), param)) {
                    *func = panels::reading(func, param).expect("it was asked for");
                }
            }
            continue;
        }
        let mut laid: BTreeMap<ValueId, ValueId> = BTreeMap::new();
        for mut inst in std::mem::take(&mut func.insts) {
            if let InstKind::Call(call) = &inst.kind {
                for i in 0..inst.args.len() {
                    if !chosen.contains(&(call.func.clone(), i)) {
                        continue;
                    }
                    let arg = inst.args[i];
                    inst.args[i] = *laid.entry(arg).or_insert_with(|| {
                        let name = fold(&mut folds, module, func.ty(arg));
                        lay_out(func, arg, name, &inst)
                    });
                }
            }
            func.insts.push(inst);
        }
    }
    folds.append(&mut out.funcs);
    Module { funcs: folds, ..out }
}

/// The fold for tensors of a type: its name.
fn fold(folds: &mut Vec<Func>, module: &Module, ty: &TensorType) -> String {
    if let Some(known) = folds.iter().find(|f| f.ty(f.params[0]) == ty) {
        return known.name.clone();
    }
    let taken = |name: &String| module.func(name).is_some() || folds.iter().any(|f| f.name == *name);
    let name = (0..).map(|i| format!("panels{i}")).find(|n| !taken(n)).expect("numbers do not end");
    folds.push(panels::fold(&name, ty).expect("a type with panels"));
    name
}

/// Calls the fold.
fn lay_out(func: &mut Func, arg: ValueId, fold: String, at: &Inst) -> ValueId {
    let ty = panels::stored(func.ty(arg)).expect("a type with panels");
    let to = func.add_value(ty, None);
    let kind = InstKind::Call(Call { func: fold, prefix: String::new() });
    func.insts.push(Inst { kind, args: vec![arg], results: vec![to], origin: at.origin.clone(), laws: Vec::new() });
    to
}
