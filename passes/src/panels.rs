//! `panels`: weights are stored as the kernels that read them want them.
//!
//! ```text
//! %y = call @product(%x, %w)        ->    %p = call @panels0(%w)
//!                                         %y = call @product(%x, %p)
//! ```
//!
//! Some kernels read a matrix faster where it lies as [panels](hadal_ir::panels::stored). A file holds each tensor
//! once, so it is stored so if *all* kernels that any launch gives it to know panels, in all versions of all entries,
//! and one of them is faster with them. A kernel serves many launches, of each layer: tensors and the kernels'
//! parameters that they are given to are decided together as far as they hang together. Who decides is asked (code
//! generators do not exist here) with the kernel as it would be.
//!
//! Needs a fused module and its plan; gives both anew, with folds that lay tensors out when compiling. Exact: a view of
//! the same elements, whoever reads them.

use crate::{Error, Fused, plan};
use hadal_ir::module::{Call, Func, FuncKind, Inst, InstKind, Module, Range, ValueId};
use hadal_ir::panels::Wish;
use hadal_ir::plan::{Place, Program, Weight};
use hadal_ir::{Sym, TensorType, panels};
use std::collections::{BTreeMap, BTreeSet};

/// A kernel's parameter.
type Reader = (String, usize);

/// The parameters of which a kernel, launched with these values of the symbols, reads panels as well as rows, if it is
/// given panels of all of them.
pub type Wants<'a> = &'a dyn Fn(&Func, &BTreeMap<Sym, Range>) -> Vec<Wish>;

/// Lays out what all readers want so, but for weights that stay where they are: those of which `fixed` says so.
pub fn run(
    fused: Fused,
    program: Program,
    max_context: i64,
    wants: Wants<'_>,
    fixed: &dyn Fn(&Weight) -> bool,
) -> Result<(Fused, Program), Error> {
    let chosen = choose(&program, wants, fixed);
    if chosen.is_empty() {
        return Ok((fused, program));
    }
    let fused = Fused { module: apply(&fused.module, &chosen), ..fused };
    let program = plan::run(&fused.module, max_context)?;
    Ok((fused, program))
}

/// The parameters that are given panels, and of how many neighbours.
fn choose(program: &Program, wants: Wants<'_>, fixed: &dyn Fn(&Weight) -> bool) -> BTreeMap<Reader, i64> {
    let mut readers: BTreeMap<Place, BTreeSet<Reader>> = BTreeMap::new();
    let mut given: BTreeMap<Reader, BTreeSet<Place>> = BTreeMap::new();
    let mut wanted: BTreeMap<&str, BTreeMap<usize, Wish>> = BTreeMap::new();
    // What is given something that cannot be stored anew, by any launch.
    let mut stuck: BTreeSet<Reader> = BTreeSet::new();
    for launch in program.plans.iter().flat_map(|p| &p.launches) {
        wanted.entry(&launch.kernel).or_insert_with(|| {
            let func = program.module.func(&launch.kernel);
            let wishes = func.map(|f| wants(f, &program.ranges(&launch.kernel))).unwrap_or_default();
            wishes.into_iter().map(|wish| (wish.param, wish)).collect()
        });
        for (i, place) in launch.args.iter().enumerate() {
            let constant = match place {
                Place::Weight(w) => !fixed(&program.weights[*w]),
                Place::Fold(_) => true,
                _ => false,
            };
            let reader = (launch.kernel.clone(), i);
            if !constant {
                stuck.insert(reader);
            } else {
                readers.entry(*place).or_default().insert(reader.clone());
                given.entry(reader).or_default().insert(*place);
            }
        }
    }
    let mut chosen = BTreeMap::new();
    while let Some((first, _)) = given.first_key_value() {
        let (mut together, mut groups) = (BTreeMap::new(), BTreeMap::new());
        let (mut open, mut all, mut pays) = (vec![first.clone()], true, false);
        while let Some(reader) = open.pop() {
            let Some(places) = given.remove(&reader) else {
                // Seen before, or not a constant, or one that stays where it is.
                all &= together.contains_key(&reader);
                continue;
            };
            let siblings = &wanted[reader.0.as_str()];
            let wish = siblings.get(&reader.1);
            let group = wish.map(|wish| wish.group);
            all &= group.is_some() && !stuck.contains(&reader);
            pays |= wish.is_some_and(|wish| wish.pays);
            for place in places {
                open.extend(readers.remove(&place).into_iter().flatten());
                all &= *groups.entry(place).or_insert(group) == group;
            }
            if group.is_some() {
                open.extend(siblings.keys().map(|i| (reader.0.clone(), *i)));
            }
            together.insert(reader, group.unwrap_or_default());
        }
        if all && pays {
            chosen.append(&mut together);
        }
    }
    chosen
}

/// The module with panels for these parameters.
fn apply(module: &Module, chosen: &BTreeMap<Reader, i64>) -> Module {
    let mut out = module.clone();
    let mut folds: Vec<Func> = Vec::new();
    for func in &mut out.funcs {
        if func.kind == FuncKind::Kernel {
            for param in 0..func.params.len() {
                if let Some(group) = chosen.get(&(func.name.clone(), param)) {
                    *func = panels::reading(func, param, *group).expect("it was asked for");
                }
            }
            continue;
        }
        let mut laid: BTreeMap<ValueId, ValueId> = BTreeMap::new();
        for mut inst in std::mem::take(&mut func.insts) {
            if let InstKind::Call(call) = &inst.kind {
                for i in 0..inst.args.len() {
                    let Some(group) = chosen.get(&(call.func.clone(), i)) else { continue };
                    let arg = inst.args[i];
                    inst.args[i] = *laid.entry(arg).or_insert_with(|| {
                        let fold = fold(&mut folds, module, func.ty(arg), *group);
                        lay_out(func, arg, fold, &inst)
                    });
                }
            }
            func.insts.push(inst);
        }
    }
    folds.append(&mut out.funcs);
    Module { funcs: folds, ..out }
}

/// The fold for tensors of a type: its name, and the type of what it gives.
fn fold(folds: &mut Vec<Func>, module: &Module, ty: &TensorType, group: i64) -> (String, TensorType) {
    let to = panels::stored(ty, group).expect("a type with panels");
    if let Some(known) = folds.iter().find(|f| f.ty(f.params[0]) == ty && *f.ty(f.results[0].1) == to) {
        return (known.name.clone(), to);
    }
    let taken = |name: &String| module.func(name).is_some() || folds.iter().any(|f| f.name == *name);
    let name = (0..).map(|i| format!("panels{i}")).find(|n| !taken(n)).expect("numbers do not end");
    folds.push(panels::fold(&name, ty, group).expect("a type with panels"));
    (name, to)
}

/// Calls the fold.
fn lay_out(func: &mut Func, arg: ValueId, (fold, ty): (String, TensorType), at: &Inst) -> ValueId {
    let to = func.add_value(ty, None);
    let kind = InstKind::Call(Call { func: fold, prefix: String::new() });
    func.insts.push(Inst { kind, args: vec![arg], results: vec![to], origin: at.origin.clone(), laws: Vec::new() });
    to
}
