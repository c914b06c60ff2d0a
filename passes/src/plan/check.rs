//! The plan verifier.

use super::appended_param;
use crate::Error;
use hadal_ir::plan::*;
use std::collections::BTreeMap;

/// Checks a plan against its program: every argument exists and has the kernel's type but for its shape; buffers are
/// written before they are read, once, within their lives; those that live at the same time share no bytes; appends go
/// to states; every output is written.
pub fn check(program: &Program, plan: &Plan) -> Result<(), Error> {
    let wrong = |what: String| Error::BadPlan { entry: plan.entry.clone(), what };
    let mut written: BTreeMap<Place, usize> = BTreeMap::new();
    for (i, l) in plan.launches.iter().enumerate() {
        let kernel = program.module.func(&l.kernel).ok_or_else(|| wrong(format!("no kernel @{}", l.kernel)))?;
        let n = kernel.params.len();
        if l.args.len() != n + kernel.results.len() {
            return Err(wrong(format!("launch {i} has {} arguments", l.args.len())));
        }
        for (place, p) in l.args.iter().zip(&kernel.params) {
            let dtype = dtype_at(program, plan, *place).ok_or_else(|| wrong(format!("{place} does not exist")))?;
            if dtype != kernel.ty(*p).dtype {
                return Err(wrong(format!("launch {i} reads {place} as {}", kernel.ty(*p).dtype)));
            }
            let computed = matches!(place, Place::Buffer(_) | Place::Output(_));
            if computed && written.get(place).is_none_or(|w| *w >= i) {
                return Err(wrong(format!("launch {i} reads {place} before it is written")));
            }
            if let Place::Buffer(b) = place
                && plan.buffers[*b].last < i
            {
                return Err(wrong(format!("launch {i} reads {place} after its life")));
            }
        }
        for (place, (_, r)) in l.args[n..].iter().zip(&kernel.results) {
            match (appended_param(kernel, *r), place) {
                (Some(param), Place::State(_)) if l.args[param] == *place => continue,
                (None, Place::Buffer(b)) if plan.buffers.get(*b).is_some_and(|b| b.first == i) => {}
                (None, Place::Output(o)) if *o < plan.outputs.len() => {}
                _ => return Err(wrong(format!("launch {i} writes {place}"))),
            }
            if written.insert(*place, i).is_some() {
                return Err(wrong(format!("{place} is written twice")));
            }
        }
    }
    for o in 0..plan.outputs.len() {
        if !written.contains_key(&Place::Output(o)) {
            return Err(wrong(format!("out{o} is not written")));
        }
    }
    for (i, a) in plan.buffers.iter().enumerate() {
        if !a.offset.is_multiple_of(ALIGN) || a.offset + a.bytes > plan.arena_bytes || a.last < a.first {
            return Err(wrong(format!("b{i} lies badly")));
        }
        let clash = |b: &Buffer| a.overlaps_in_time(b) && a.overlaps_in_space(b);
        if let Some(j) = plan.buffers[..i].iter().position(clash) {
            return Err(wrong(format!("b{i} and b{j} share bytes at one time")));
        }
    }
    Ok(())
}

fn dtype_at(program: &Program, plan: &Plan, place: Place) -> Option<hadal_ir::DType> {
    Some(match place {
        Place::Buffer(i) => plan.buffers.get(i)?.ty.dtype,
        Place::Weight(i) => program.weights.get(i)?.ty.dtype,
        Place::Fold(i) => program.folds.get(i)?.ty.dtype,
        Place::State(i) => program.states.get(i)?.row.dtype,
        Place::Input(i) => plan.inputs.get(i)?.ty.dtype,
        Place::Output(i) => plan.outputs.get(i)?.ty.dtype,
    })
}
