//! What one call of an entry should take on a machine: each launch of its plan takes the longer of its operations at
//! the machine's peak and its bytes at the machine's bandwidth, and a launch; launches follow one another.
//!
//! A kernel's bytes are those of its parameters that its ops touch, and of its results, each once a kernel: views,
//! casts and dequantisation read what their result needs of them, `append` writes the new rows only, and a gather of
//! weights reads the rows that are chosen. For `batch` sequences at once weights are read once, and everything else
//! once for each. What kernels hand on is in the machine's own format for that, and comes from the cache where it fits.

use hadal_ir::ops::Attention;
use hadal_ir::ops::attention::{Operand, Role};
use hadal_ir::plan::{Place, Plan, Program};
use hadal_ir::storage::{Known, Run, Storage, nested, runs};
use hadal_ir::target::Target;
use hadal_ir::{Bindings, DType, Func, InstKind, Op, ValueId};
use std::collections::BTreeSet;

/// One call of an entry.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Step {
    /// Seconds in launches that wait for arithmetic.
    pub compute_seconds: f64,
    /// Seconds in launches that wait for memory.
    pub memory_seconds: f64,
    /// Seconds that launching takes.
    pub launch_seconds: f64,
    /// Kernel launches.
    pub launches: usize,
    /// Floating-point operations, a multiply-add counting two.
    pub flops: f64,
    /// Bytes of weights read.
    pub weight_bytes: f64,
    /// Bytes of states read.
    pub state_bytes_read: f64,
    /// Bytes of states written.
    pub state_bytes_written: f64,
    /// Bytes of everything else read and written: inputs, outputs and what kernels hand on.
    pub activation_bytes: f64,
}

impl Step {
    /// How long it takes.
    pub fn seconds(&self) -> f64 {
        self.compute_seconds + self.memory_seconds + self.launch_seconds
    }

    /// What a call takes that lies between two others, so far from this one.
    pub fn towards(&self, other: &Step, share: f64) -> Step {
        let mix = |a: f64, b: f64| a + (b - a) * share;
        Step {
            compute_seconds: mix(self.compute_seconds, other.compute_seconds),
            memory_seconds: mix(self.memory_seconds, other.memory_seconds),
            launch_seconds: mix(self.launch_seconds, other.launch_seconds),
            launches: mix(self.launches as f64, other.launches as f64).round() as usize,
            flops: mix(self.flops, other.flops),
            weight_bytes: mix(self.weight_bytes, other.weight_bytes),
            state_bytes_read: mix(self.state_bytes_read, other.state_bytes_read),
            state_bytes_written: mix(self.state_bytes_written, other.state_bytes_written),
            activation_bytes: mix(self.activation_bytes, other.activation_bytes),
        }
    }

    /// All bytes moved.
    pub fn bytes(&self) -> f64 {
        self.weight_bytes + self.state_bytes_read + self.state_bytes_written + self.activation_bytes
    }

    /// What most of the time goes to.
    pub fn bound(&self) -> &'static str {
        let (compute, memory, launch) = (self.compute_seconds, self.memory_seconds, self.launch_seconds);
        match () {
            () if memory >= compute && memory >= launch => "memory",
            () if compute >= launch => "compute",
            () => "launches",
        }
    }
}

/// A call of an entry.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// The program.
    pub program: &'a Program,
    /// The plan of the entry's version.
    pub plan: &'a Plan,
    /// The machine.
    pub target: &'a Target,
    /// Sizes.
    pub bindings: &'a Bindings,
    /// Sequences at once.
    pub batch: usize,
}

impl Call<'_> {
    /// The whole call.
    pub fn step(&self) -> Step {
        self.launches().into_iter().sum()
    }

    /// Each launch of the plan, in order.
    pub fn launches(&self) -> Vec<Step> {
        self.plan.launches.iter().map(|l| self.launch(&l.kernel, &l.args)).collect()
    }

    fn launch(&self, kernel: &str, args: &[Place]) -> Step {
        let func = self.program.module.func(kernel).expect("plans launch kernels of their program");
        let kernel = Kernel { func, args, call: self };
        let mut one = kernel.step();
        let traffic = one.memory_seconds;
        // The longer of the two is what the launch waits for.
        match one.compute_seconds > traffic {
            true => one.memory_seconds = 0.0,
            false => one.compute_seconds = 0.0,
        }
        one.launch_seconds = self.target.launch_seconds;
        one.launches = 1;
        one
    }
}

impl std::iter::Sum for Step {
    fn sum<I: Iterator<Item = Step>>(all: I) -> Step {
        all.fold(Step::default(), |a, b| Step {
            compute_seconds: a.compute_seconds + b.compute_seconds,
            memory_seconds: a.memory_seconds + b.memory_seconds,
            launch_seconds: a.launch_seconds + b.launch_seconds,
            launches: a.launches + b.launches,
            flops: a.flops + b.flops,
            weight_bytes: a.weight_bytes + b.weight_bytes,
            state_bytes_read: a.state_bytes_read + b.state_bytes_read,
            state_bytes_written: a.state_bytes_written + b.state_bytes_written,
            activation_bytes: a.activation_bytes + b.activation_bytes,
        })
    }
}

/// Elements of the states that `entry` uses, for one sequence of `rows` tokens, by format.
pub fn state_elements(program: &Program, entry: &str, rows: usize) -> Vec<(DType, u64)> {
    let launches = program.plan(entry).map(|p| p.launches.as_slice()).unwrap_or_default();
    let used: BTreeSet<usize> = launches
        .iter()
        .flat_map(|l| &l.args)
        .filter_map(|place| match place {
            Place::State(i) => Some(*i),
            _ => None,
        })
        .collect();
    let mut out: Vec<(DType, u64)> = Vec::new();
    for state in used.into_iter().map(|i| &program.states[i]) {
        let row = state.row.count(&Bindings::new()).unwrap_or(0.0) as u64;
        let tokens = program.module.complete(&[(hadal_ir::Sym::P, rows as i64)].into());
        let held = state.held.eval(&tokens).unwrap_or(0).clamp(0, state.rows.max(0));
        let elements = row * held as u64;
        match out.iter_mut().find(|(d, _)| *d == state.row.dtype) {
            Some((_, n)) => *n += elements,
            None => out.push((state.row.dtype, elements)),
        }
    }
    out
}

/// Bytes of the weights and folds that any launch of any plan reads: what has to be kept. What several programs of one
/// model read alike, or as part of something larger, is there once.
pub fn stored_bytes(programs: &[&Program]) -> u64 {
    let known: Known<'_> = &str::to_owned;
    let kept = programs.iter().flat_map(|p| Storage::of(p, known).kept.into_iter().map(|at| runs(p, known, at)));
    let kept: Vec<Vec<Run>> = kept.collect();
    let alone = nested(&kept).into_iter().zip(&kept).filter(|(inside, _)| inside.is_none());
    alone.flat_map(|(_, runs)| runs).map(Run::length).sum()
}

/// A kernel as one launch uses it.
struct Kernel<'a> {
    func: &'a Func,
    /// Memory of its parameters, then of its results.
    args: &'a [Place],
    call: &'a Call<'a>,
}

impl Kernel<'_> {
    /// Work and traffic, both times as if it were alone.
    fn step(&self) -> Step {
        let (func, Call { target, bindings, .. }) = (self.func, *self.call);
        let batch = self.call.batch as f64;
        let of_weights = self.made_of_weights();
        let touched = self.touched(&of_weights, batch);
        let formats = self.formats();
        let mut out = Step::default();
        for inst in &func.insts {
            let (InstKind::Op(op), result) = (&inst.kind, inst.results[0]) else { continue };
            if !of_weights[result.index()] {
                let types: Vec<_> = inst.args.iter().map(|a| func.ty(*a).clone()).collect();
                let flops = batch * op.flops(&types, func.ty(result), bindings);
                let multiplied: Vec<DType> = match op {
                    Op::Contract(_) => inst.args.iter().map(|a| formats[a.index()]).collect(),
                    // What says which rows are seen is not multiplied.
                    Op::Attention(a) => {
                        let factor = |r: Role| matches!(r, Role::Query | Role::Key | Role::Value);
                        let operands = a.operands().into_iter().zip(&inst.args).filter(|(o, _)| factor(o.role));
                        operands.map(|(_, a)| formats[a.index()]).collect()
                    }
                    _ => Vec::new(),
                };
                out.flops += flops;
                out.compute_seconds += flops / target.peak(&multiplied);
            }
        }
        let mut cached = 0.0;
        let values = func.params.iter().chain(func.results.iter().map(|(_, v)| v));
        for (i, (value, place)) in values.zip(self.args).enumerate() {
            let dtype = func.ty(*value).dtype;
            let bits = |format: DType| format.bits() as f64 / 8.0;
            let handed_on = if dtype == DType::F32 { target.activations.dtype() } else { dtype };
            let n = touched[value.index()];
            match place {
                Place::Weight(_) | Place::Fold(_) => out.weight_bytes += n * bits(dtype),
                Place::State(_) if i < func.params.len() => out.state_bytes_read += batch * n * bits(dtype),
                Place::State(_) => out.state_bytes_written += batch * n * bits(dtype),
                Place::Buffer(_) | Place::Input(_) | Place::Output(_) => {
                    let bytes = batch * n * bits(handed_on);
                    out.activation_bytes += bytes;
                    if matches!(place, Place::Buffer(_)) && bytes <= target.cache_bytes as f64 {
                        cached += bytes;
                    }
                }
            }
        }
        out.memory_seconds = target.traffic(out.bytes() - cached, cached);
        out
    }

    /// By value: the format its elements come in, which for a copy of narrower ones is theirs.
    fn formats(&self) -> Vec<DType> {
        let func = self.func;
        let mut out: Vec<DType> = func.values.iter().map(|v| v.ty.dtype).collect();
        for inst in &func.insts {
            let (InstKind::Op(op), result) = (&inst.kind, inst.results[0].index()) else { continue };
            let carried = op.is_view() || matches!(op, Op::Cast(_) | Op::Dequantize(_) | Op::Gather(_));
            let Some(source) = inst.args.first().filter(|_| carried).map(|a| out[a.index()]) else { continue };
            // Codes of few bits are numbers too; wider integers are of rows.
            let number = source.is_float() || source.bits() <= 8 && source != DType::Bool;
            if number && source.bits() < out[result].bits() {
                out[result] = source;
            }
        }
        out
    }

    /// For keys and values of selected rows: how many places the selection has.
    fn selected(&self, op: &Attention, args: &[ValueId], n: usize) -> Option<f64> {
        let operands = op.operands();
        let Operand { set, role, .. } = *operands.get(n)?;
        let chosen = operands.iter().position(|o| o.set == set && o.role == Role::Selection)?;
        matches!(role, Role::Key | Role::Value).then(|| self.count(args[chosen]))
    }

    /// Whether an earlier operand of the same set is the same value.
    fn read_before(&self, op: &Attention, args: &[ValueId], n: usize) -> bool {
        let operands = op.operands();
        (0..n.min(operands.len())).any(|o| operands[o].set == operands[n].set && args[o] == args[n])
    }

    /// Elements of one row.
    fn row(&self, value: ValueId) -> f64 {
        let rows = self.func.ty(value).shape.first().and_then(|d| d.eval(self.call.bindings).ok());
        self.count(value) / (rows.unwrap_or(1).max(1) as f64)
    }

    fn count(&self, value: ValueId) -> f64 {
        self.func.ty(value).count(self.call.bindings).unwrap_or(f64::INFINITY)
    }

    /// By value: whether it is weights, in whatever form and whichever rows of them. Making it is part of reading them.
    fn made_of_weights(&self) -> Vec<bool> {
        let mut out = vec![false; self.func.values.len()];
        for (param, place) in self.func.params.iter().zip(self.args) {
            out[param.index()] = matches!(place, Place::Weight(_) | Place::Fold(_));
        }
        for inst in &self.func.insts {
            let made = |i: usize| inst.args.get(i).is_some_and(|a| out[a.index()]);
            let all = !inst.args.is_empty() && (0..inst.args.len()).all(made);
            let chosen = matches!(inst.kind, InstKind::Op(Op::Gather(_) | Op::Dequantize(_))) && made(0);
            out[inst.results[0].index()] = all || chosen;
        }
        out
    }

    /// By value: how many of its elements are read, or written for a result.
    fn touched(&self, of_weights: &[bool], batch: f64) -> Vec<f64> {
        let func = self.func;
        let mut out = vec![0.0_f64; func.values.len()];
        func.results.iter().for_each(|(_, v)| out[v.index()] = self.count(*v));
        for inst in func.insts.iter().rev() {
            let (InstKind::Op(op), result) = (&inst.kind, inst.results[0]) else { continue };
            let needed = out[result.index()];
            let part = needed / self.count(result).max(1.0);
            let all = |n: usize| self.count(inst.args[n]);
            for (n, arg) in inst.args.iter().enumerate() {
                let more = match op {
                    // Keys that are values too are read once for a set.
                    Op::Attention(a) if self.read_before(a, &inst.args, n) => 0.0,
                    Op::Append(_) if n == 0 => 0.0,
                    Op::Gather(g) if n == 0 && g.batch == 0 && of_weights[arg.index()] => {
                        let rows = func.ty(*arg).shape[g.axis].eval(self.call.bindings).map_or(1.0, |r| r as f64);
                        let indices = func.ty(inst.args[1]);
                        let last = indices.shape.last().filter(|_| indices.rank() > 1);
                        let each = last.and_then(|d| d.eval(self.call.bindings).ok()).map_or(1.0, |k| k as f64);
                        let choices = batch * all(1) / each.max(1.0);
                        part * all(0) * distinct(rows, each, choices) / rows.max(1.0)
                    }
                    Op::Concat(_) | Op::Dequantize(_) => part * all(n),
                    // Of a set of selected rows only those, at most each once.
                    Op::Attention(a) => match self.selected(a, &inst.args, n) {
                        Some(places) => all(n).min(places * self.row(*arg)),
                        None => all(n),
                    },
                    Op::Gather(_) if n == 0 => needed,
                    Op::Cast(_) => needed,
                    op if op.is_view() => needed,
                    _ => all(n),
                };
                let known = &mut out[arg.index()];
                *known = (*known + more).min(all(n));
            }
            // Only the new rows are written.
            if matches!(op, Op::Append(_)) {
                out[result.index()] = all(1);
            }
        }
        out
    }
}

/// How many of `rows` are chosen by at least one of `choices`, each of `each` different rows, all equally likely.
fn distinct(rows: f64, each: f64, choices: f64) -> f64 {
    if each >= rows { rows } else { rows * (1.0 - (1.0 - each / rows).powf(choices)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_tokens_choose_different_experts_and_many_choose_all() {
        assert!((distinct(256.0, 8.0, 1.0) - 8.0).abs() < 1e-9);
        assert!((distinct(256.0, 8.0, 2.0) - 15.75).abs() < 1e-9);
        assert!((distinct(256.0, 8.0, 4096.0) - 256.0).abs() < 1e-9);
        assert_eq!(distinct(4.0, 8.0, 1.0), 4.0);
    }

    /// Row numbers do not slow the products that they choose rows for, and rows that are keys and values are read once:
    /// as the search counts it.
    #[test]
    fn selected_rows_are_multiplied_in_their_own_format_and_read_once() {
        use crate::driver::{Options, build_model};
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/configs/deepseek-v3.2.json");
        let input = crate::input::Input::open(std::path::Path::new(path)).unwrap();
        let options = Options { max_context: Some(65_536), ..Options::default() };
        let mut model = build_model(&input, &options).unwrap();
        model.module.entries.retain(|e| e.name == "decode");
        let target = Target { memory_bytes: 1 << 60, ..Target::by_name("h200").unwrap() };
        let passes = hadal_passes::Options { typical_context: 65_536, versions: false, ..options.passes(&model) };
        let (_, program) = hadal_passes::compile(&model.module, &target, &passes).unwrap();
        let bindings: Bindings = [(hadal_ir::Sym::T, 1), (hadal_ir::Sym::P, 65_535)].into();
        let plan = program.plan_for("decode", &bindings).unwrap();
        let call = Call { program: &program, plan, target: &target, bindings: &bindings, batch: 1 };
        let selects = |name: &str| {
            let insts = program.module.func(name).into_iter().flat_map(|f| &f.insts);
            insts.filter(|i| matches!(&i.kind, InstKind::Op(Op::Attention(_)))).count() > 0
        };
        let launches = plan.launches.iter().zip(call.launches());
        let found: Vec<Step> = launches.filter(|(l, _)| selects(&l.kernel)).map(|(_, step)| step).collect();
        assert_eq!(found.len(), 61);
        for step in found {
            assert_eq!(step.state_bytes_read, 2048.0 * (512.0 + 64.0) * 4.0);
            let (work, moved) = (step.flops / target.peak(&[DType::F32]), step.bytes() / target.bandwidth);
            assert!(step.seconds() - step.launch_seconds <= 1.05 * work.max(moved), "{step:?}");
        }
    }
}
