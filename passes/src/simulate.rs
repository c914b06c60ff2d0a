//! Runs a plan on simulated memory: every buffer is bytes in one arena, every kernel the graph interpreter.
//!
//! Proves that offsets, lives and places are right: a kernel that overwrote what is still needed would show. States
//! and buffers hold their formats' bits, so f32 results differ from the wide interpreter's by rounding.

use crate::plan::appended_param;
use hadal_ir::interpret::{EvalError, WeightSource, eval_func};
use hadal_ir::plan::{Place, Plan, Program};
use hadal_ir::{Bindings, Sym, Tensor, TensorType};

/// The states of one sequence.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    states: Vec<Vec<u8>>,
    arena: Vec<u8>,
}

/// Runs one entry. `bindings` gives `T`, and `P` as the rows the states hold already.
pub fn run(
    program: &Program,
    plan: &Plan,
    memory: &mut Memory,
    weights: &impl WeightSource,
    inputs: &[Tensor],
    bindings: &Bindings,
) -> Result<Vec<Tensor>, EvalError> {
    let bindings = &program.module.complete(bindings);
    memory.states.resize(program.states.len(), Vec::new());
    for (bytes, s) in memory.states.iter_mut().zip(&program.states) {
        let row = s.row.count(bindings).map_err(EvalError::Unbound)? as u64;
        bytes.resize(s.row.dtype.bytes(row * s.rows as u64) as usize, 0);
    }
    // Whatever an earlier call left behind must not matter.
    memory.arena.clear();
    memory.arena.resize(plan.arena_bytes as usize, 0xA5);
    let mut outputs: Vec<Option<Tensor>> = vec![None; plan.outputs.len()];
    let mut folds: Vec<Option<Tensor>> = vec![None; program.folds.len()];
    let sizes = |ty: &TensorType| ty.eval_shape(bindings).map_err(EvalError::Unbound);
    for launch in &plan.launches {
        let missing = || EvalError::NoFunction(launch.kernel.clone());
        let kernel = program.module.func(&launch.kernel).ok_or_else(missing)?;
        let mut args = Vec::new();
        for (place, p) in launch.args.iter().zip(&kernel.params) {
            let ty = kernel.ty(*p);
            let shape = sizes(ty)?;
            let length = ty.dtype.bytes(shape.iter().product::<usize>() as u64) as usize;
            let read = |bytes: &[u8], at: usize| {
                Tensor::from_bytes(ty.dtype, &shape, &bytes[at..at + length]).expect("as many bytes as the type needs")
            };
            let reshaped = |t: &Tensor| Tensor { shape: shape.clone(), ..t.clone() };
            args.push(match place {
                Place::Buffer(b) => read(&memory.arena, plan.buffers[*b].offset as usize),
                Place::State(s) => read(&memory.states[*s], 0),
                Place::Input(i) => reshaped(&inputs[*i]),
                Place::Output(o) => reshaped(outputs[*o].as_ref().expect("the plan was checked")),
                Place::Weight(w) => reshaped(&weight(program, weights, *w)?),
                Place::Fold(f) => reshaped(&fold(program, weights, &mut folds, *f)?),
            });
        }
        let results = eval_func(kernel, &args, bindings)?;
        let places = &launch.args[kernel.params.len()..];
        for ((place, result), (_, v)) in places.iter().zip(results).zip(&kernel.results) {
            match place {
                Place::Buffer(b) => {
                    let at = plan.buffers[*b].offset as usize;
                    let bytes = result.to_bytes();
                    memory.arena[at..at + bytes.len()].copy_from_slice(&bytes);
                }
                Place::State(s) => {
                    // Only the new rows are written, as kernels do.
                    let param = appended_param(kernel, *v).expect("the plan was checked");
                    let old = sizes(kernel.ty(kernel.params[param]))?.iter().product::<usize>();
                    let (from, bytes) = (result.dtype.bytes(old as u64) as usize, result.to_bytes());
                    memory.states[*s][from..bytes.len()].copy_from_slice(&bytes[from..]);
                }
                Place::Output(o) => outputs[*o] = Some(result),
                Place::Weight(_) | Place::Fold(_) | Place::Input(_) => unreachable!("the plan was checked"),
            }
        }
    }
    // A window's last rows move to its front.
    let new = bindings.get(&Sym::T).map_or(0, |t| *t) as u64;
    for s in plan.appended() {
        let state = &program.states[s];
        if let Some(window) = state.window() {
            let row = state.row.count(bindings).map_err(EvalError::Unbound)? as u64;
            let (from, kept) = (state.row.dtype.bytes(new * row), state.row.dtype.bytes(window as u64 * row));
            memory.states[s].copy_within(from as usize..(from + kept) as usize, 0);
        }
    }
    let shaped = |(o, port): (Option<Tensor>, &hadal_ir::plan::Port)| {
        let tensor = o.expect("the plan was checked");
        Ok(Tensor { shape: sizes(&port.ty)?, ..tensor })
    };
    outputs.into_iter().zip(&plan.outputs).map(shaped).collect()
}

fn weight(program: &Program, weights: &impl WeightSource, index: usize) -> Result<Tensor, EvalError> {
    let w = &program.weights[index];
    weights.weight(&w.name, &w.ty).map_err(|reason| EvalError::Weight { name: w.name.clone(), reason })
}

/// Evaluates a fold, and those it uses.
pub fn fold(
    program: &Program,
    weights: &impl WeightSource,
    known: &mut [Option<Tensor>],
    index: usize,
) -> Result<Tensor, EvalError> {
    if let Some(t) = &known[index] {
        return Ok(t.clone());
    }
    let f = &program.folds[index];
    let func = program.module.func(&f.func).ok_or_else(|| EvalError::NoFunction(f.func.clone()))?;
    let mut args = Vec::new();
    for (place, p) in f.args.iter().zip(&func.params) {
        let tensor = match place {
            Place::Fold(earlier) => fold(program, weights, known, *earlier)?,
            Place::Weight(w) => weight(program, weights, *w)?,
            _ => return Err(EvalError::NotPure(f.func.clone())),
        };
        let shape = func.ty(*p).eval_shape(&Bindings::new()).map_err(EvalError::Unbound)?;
        args.push(Tensor { shape, ..tensor });
    }
    let result = eval_func(func, &args, &Bindings::new())?.swap_remove(f.result);
    known[index] = Some(result.clone());
    Ok(result)
}

/// Bindings of a call: `p` rows held, `t` new ones.
pub fn call(p: i64, t: i64) -> Bindings {
    Bindings::from([(Sym::P, p), (Sym::T, t)])
}
