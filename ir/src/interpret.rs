//! The graph interpreter: evaluates functions in wide precision, the reference for every later stage.

use crate::module::*;
use crate::ops::Op;
use crate::tensor::Tensor;
use hadal_types::{Bindings, Dim, Sym, TensorType};
use std::collections::BTreeMap;

/// Elements of the largest value that is evaluated: 512 MiB in the wide format.
pub const MAX_ELEMENTS: u64 = 1 << 26;

/// Why evaluation stopped.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum EvalError {
    /// A symbol has no value.
    #[error("symbol `{0}` has no value")]
    Unbound(Sym),
    /// An argument has another shape or format than declared.
    #[error("`{name}` should be {expected}, found {found}")]
    Argument {
        /// The input's, weight's or state's name.
        name: String,
        /// Declared type under the bindings.
        expected: TensorType,
        /// What was given.
        found: TensorType,
    },
    /// The number of arguments differs.
    #[error("@{func} takes {expected} argument(s), found {found}")]
    Count {
        /// The function.
        func: String,
        /// Declared.
        expected: usize,
        /// Given.
        found: usize,
    },
    /// A value with more elements than the interpreter will hold.
    #[error("{ty} has {elements} elements, and no value with more than {MAX_ELEMENTS} is evaluated")]
    TooLarge {
        /// Its type under the bindings.
        ty: TensorType,
        /// How many it has.
        elements: f64,
    },
    /// A slice leaves its operand.
    #[error("a slice from {start} to {end} leaves an axis of {size}")]
    Slice {
        /// First element.
        start: i64,
        /// Last element.
        end: i64,
        /// Elements there are.
        size: usize,
    },
    /// No such function.
    #[error("there is no function @{0}")]
    NoFunction(String),
    /// The weight source has no such tensor.
    #[error("weight `{name}`: {reason}")]
    Weight {
        /// Full name.
        name: String,
        /// Why.
        reason: String,
    },
    /// A function with weights or states where none can be.
    #[error("@{0} has weights, states or calls, so it needs a module and a weight source")]
    NotPure(String),
}

/// Where weights come from.
pub trait WeightSource {
    /// The tensor called `name` (with the prefix, and counters for stacks), as `ty` (symbols substituted).
    fn weight(&self, name: &str, ty: &TensorType) -> Result<Tensor, String>;
}

/// Weights held in a map.
impl WeightSource for BTreeMap<String, Tensor> {
    fn weight(&self, name: &str, _: &TensorType) -> Result<Tensor, String> {
        self.get(name).cloned().ok_or_else(|| "missing".to_owned())
    }
}

/// A module being evaluated, with the states of one sequence.
pub struct Interpreter<'a, W: WeightSource> {
    module: &'a Module,
    weights: &'a W,
    /// States by full name.
    pub states: BTreeMap<String, Tensor>,
    /// Is shown every op before it is evaluated.
    pub seen: Option<Seen<'a>>,
}

/// What is shown ops and what they are given.
pub type Seen<'a> = &'a mut dyn FnMut(&Op, &[&Tensor]);

impl<'a, W: WeightSource> Interpreter<'a, W> {
    /// Begins with empty states.
    pub fn new(module: &'a Module, weights: &'a W) -> Self {
        Interpreter { module, weights, states: BTreeMap::new(), seen: None }
    }

    /// Evaluates `func`. States that do not exist yet hold no rows, or zeros where their size is fixed.
    pub fn run(
        &mut self,
        func: &str,
        prefix: &str,
        args: &[Tensor],
        bindings: &Bindings,
    ) -> Result<Vec<Tensor>, EvalError> {
        let func = self.module.func(func).ok_or_else(|| EvalError::NoFunction(func.to_owned()))?;
        let bindings = &self.module.complete(bindings);
        let mut values = bind_params(func, args, bindings)?;
        for w in &func.weights {
            let name = format!("{prefix}{}", w.name);
            let ty = func.ty(w.value).substitute(bindings);
            let tensor =
                self.weights.weight(&name, &ty).map_err(|reason| EvalError::Weight { name: name.clone(), reason })?;
            check(&name, &ty, &tensor, bindings)?;
            values[w.value.index()] = Some(tensor);
        }
        for s in &func.states {
            let name = format!("{prefix}{}", s.name);
            let ty = func.ty(s.value);
            let tensor = match self.states.get(&name) {
                Some(held) => held.clone(),
                None => empty_state(&name, ty, bindings)?,
            };
            check(&name, ty, &tensor, bindings)?;
            values[s.value.index()] = Some(tensor);
        }
        for inst in &func.insts {
            let args: Vec<&Tensor> = inst.args.iter().map(|a| values[a.index()].as_ref().expect("verified")).collect();
            match &inst.kind {
                InstKind::Op(op) => {
                    if let Some(seen) = &mut self.seen {
                        seen(op, &args);
                    }
                    let result = eval_op(op, &args, func.ty(inst.results[0]), bindings)?;
                    values[inst.results[0].index()] = Some(result);
                }
                InstKind::Call(call) => {
                    let args: Vec<Tensor> = args.into_iter().cloned().collect();
                    let results = self.run(&call.func, &format!("{prefix}{}", call.prefix), &args, bindings)?;
                    for (id, tensor) in inst.results.iter().zip(results) {
                        values[id.index()] = Some(tensor);
                    }
                }
            }
        }
        for s in &func.states {
            let next = values[s.next.index()].as_ref().expect("verified");
            let next = match func.ty(s.value).shape.first().and_then(Dim::as_const) {
                Some(window) => last_rows(next, window as usize),
                None => next.clone(),
            };
            self.states.insert(format!("{prefix}{}", s.name), next);
        }
        Ok(func.results.iter().map(|(_, v)| values[v.index()].clone().expect("verified")).collect())
    }
}

/// The last rows of a tensor that has at least as many.
fn last_rows(x: &Tensor, rows: usize) -> Tensor {
    let mut shape = x.shape.clone();
    let (all, row) = (shape[0], shape[1..].iter().product::<usize>());
    shape[0] = rows;
    let dropped = all.saturating_sub(rows) * row;
    x.pick(&shape, |i| i + dropped)
}

/// What a state holds before anything was written: no rows, or zeros where its size is fixed.
fn empty_state(name: &str, ty: &TensorType, bindings: &Bindings) -> Result<Tensor, EvalError> {
    let shape = shape_of(ty, bindings)?;
    let fixed = ty.shape.first().is_none_or(|d| d.as_const().is_some());
    if !fixed && shape[0] != 0 {
        let rows = std::iter::once(Dim::from(0)).chain(ty.shape[1..].iter().cloned());
        let found = TensorType { dtype: ty.dtype, shape: rows.collect() };
        return Err(EvalError::Argument { name: name.to_owned(), expected: ty.substitute(bindings), found });
    }
    let n = shape.iter().product();
    Ok(match ty.dtype.is_float() {
        true => Tensor::real(ty.dtype, &shape, vec![0.0; n]),
        false => Tensor::int(ty.dtype, &shape, vec![0; n]),
    })
}

/// Evaluates a function that has no weights, states or calls.
pub fn eval_func(func: &Func, args: &[Tensor], bindings: &Bindings) -> Result<Vec<Tensor>, EvalError> {
    let calls = func.insts.iter().any(|i| matches!(i.kind, InstKind::Call(_)));
    if calls || !func.weights.is_empty() || !func.states.is_empty() {
        return Err(EvalError::NotPure(func.name.clone()));
    }
    let mut values = bind_params(func, args, bindings)?;
    for inst in &func.insts {
        let InstKind::Op(op) = &inst.kind else { unreachable!("no calls") };
        let args: Vec<&Tensor> = inst.args.iter().map(|a| values[a.index()].as_ref().expect("verified")).collect();
        values[inst.results[0].index()] = Some(eval_op(op, &args, func.ty(inst.results[0]), bindings)?);
    }
    Ok(func.results.iter().map(|(_, v)| values[v.index()].clone().expect("verified")).collect())
}

fn eval_op(op: &Op, args: &[&Tensor], ty: &TensorType, bindings: &Bindings) -> Result<Tensor, EvalError> {
    // The one thing that types with symbols cannot exclude.
    if let Op::Slice(slice) = op {
        let (start, len) = (slice.start.eval(bindings), slice.len.eval(bindings));
        let (start, len) = (start.map_err(EvalError::Unbound)?, len.map_err(EvalError::Unbound)?);
        let end = start.saturating_add((len - 1).saturating_mul(slice.step as i64));
        let size = args[0].shape[slice.axis];
        if len > 0 && (start < 0 || end >= size as i64) {
            return Err(EvalError::Slice { start, end, size });
        }
    }
    Ok(op.eval(args, ty, bindings))
}

fn bind_params(func: &Func, args: &[Tensor], bindings: &Bindings) -> Result<Vec<Option<Tensor>>, EvalError> {
    if args.len() != func.params.len() {
        return Err(EvalError::Count { func: func.name.clone(), expected: func.params.len(), found: args.len() });
    }
    for v in &func.values {
        let elements = v.ty.count(bindings).map_err(EvalError::Unbound)?;
        if elements > MAX_ELEMENTS as f64 {
            return Err(EvalError::TooLarge { ty: v.ty.substitute(bindings), elements });
        }
    }
    let mut values = vec![None; func.values.len()];
    for (p, tensor) in func.params.iter().zip(args) {
        let name = func.values[p.index()].name.as_deref().unwrap_or("input");
        check(name, func.ty(*p), tensor, bindings)?;
        values[p.index()] = Some(tensor.clone());
    }
    Ok(values)
}

fn shape_of(ty: &TensorType, bindings: &Bindings) -> Result<Vec<usize>, EvalError> {
    ty.eval_shape(bindings).map_err(EvalError::Unbound)
}

fn check(name: &str, ty: &TensorType, tensor: &Tensor, bindings: &Bindings) -> Result<(), EvalError> {
    if shape_of(ty, bindings)? == tensor.shape && ty.dtype == tensor.dtype {
        return Ok(());
    }
    let found = TensorType { dtype: tensor.dtype, shape: tensor.shape.iter().map(|n| Dim::from(*n)).collect() };
    Err(EvalError::Argument { name: name.to_owned(), expected: ty.substitute(bindings), found })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::{parse_module, print_module};
    use crate::verify;
    use hadal_types::{DType, Sym};

    /// Sums of every three tokens' numbers, and the last two numbers before this call.
    const GROUPS: &str = "symbols P in 0..64, T in 1..16, C3 = P / 3, N3 = growth C3
func @main(%x: f32[T, 1]) -> (sums: f32[C3+N3, 1], window: f32[2, 1]) {
  state %0 = \"raw\" : f32[2, 1]
  state %1 = \"sums\" : f32[C3, 1]
  %2 = append %0, %x : f32[T+2, 1]
  %3 = slice %2 {axis = 0, start = 3*C3-P+2, len = 3*N3} : f32[3*N3, 1]
  %4 = reshape %3 {shape = [N3, 3, 1]} : f32[N3, 3, 1]
  %5 = reduce %4 {kind = sum, axes = [1]} : f32[N3, 1]
  %6 = append %1, %5 : f32[C3+N3, 1]
  next %0 = %2
  next %1 = %6
  return %6, %0
}
entry main = @main
";

    #[test]
    fn groups_and_windows_do_not_depend_on_how_tokens_come() {
        let module = parse_module(GROUPS).unwrap();
        verify::module(&module).unwrap();
        assert_eq!(parse_module(&print_module(&module)).unwrap(), module);
        for calls in [&[17][..], &[1; 17], &[2, 1, 7, 3, 4], &[16, 1]] {
            let weights = BTreeMap::<String, Tensor>::new();
            let mut interpreter = Interpreter::new(&module, &weights);
            let (mut past, mut out) = (0i64, vec![]);
            for n in calls {
                let x = (past..past + n).map(|i| (i * i) as f64).collect();
                let bindings = Bindings::from([(Sym::P, past), (Sym::T, *n)]);
                let args = [Tensor::real(DType::F32, &[*n as usize, 1], x)];
                let before = [past - 2, past - 1].map(|i| if i < 0 { 0.0 } else { (i * i) as f64 });
                out = interpreter.run("main", "", &args, &bindings).unwrap();
                assert_eq!(out[1].reals(), before);
                past += n;
            }
            let sums: Vec<f64> = (0..5).map(|g| (3 * g..3 * g + 3).map(|i| (i * i) as f64).sum()).collect();
            assert_eq!(out[0].reals(), sums);
        }
    }
}
