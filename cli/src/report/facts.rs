//! What a report says, gathered once: the model, what became of it, and what that should cost.

use crate::driver::{DEFAULT_CONTEXT, Options, build_model, target};
use crate::failure::Failure;
use crate::input::Input;
use crate::predict::{Prediction, Question, predict};
use crate::roofline::{Call, Step, stored_bytes};
use crate::units::{self, bytes};
use hadal_ir::plan::{Place, Plan, Program};
use hadal_ir::target::Target;
use hadal_ir::{Bindings, Func, InstKind, Module, Op, Sym};
use hadal_models::Model;
use hadal_models::stats::{Stats, stats};
use hadal_passes::{Fused, Gap};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Everything a report says.
pub struct Facts {
    /// The input's name.
    pub name: String,
    /// The graph as built.
    pub model: Model,
    /// Its sizes.
    pub stats: Stats,
    /// The machine.
    pub target: Target,
    /// What passes were told.
    pub options: hadal_passes::Options,
    /// What became of the graph.
    pub fused: Fused,
    /// Kernels, memory and launches.
    pub program: Program,
    /// How far each function's choice is from the best.
    pub gaps: Vec<Gap>,
    /// Against the context.
    pub prediction: Prediction,
    /// How long building the graph, the passes with planning, the exact search and the prediction took.
    pub times: Vec<(&'static str, Duration)>,
}

/// One version of an entry, at sizes typical for it.
pub struct Version<'a> {
    /// Its plan.
    pub plan: &'a Plan,
    /// Entry and sizes, as text.
    pub label: String,
    /// The sizes that costs are for.
    pub bindings: Bindings,
    /// Each launch's kernel and cost.
    pub launches: Vec<(&'a str, Step)>,
    /// All of them.
    pub step: Step,
}

/// A kernel, over all its launches in one version.
pub struct Kernel<'a> {
    /// Its function.
    pub func: &'a Func,
    /// Launches.
    pub launches: usize,
    /// Their cost.
    pub step: Step,
    /// Places in the model it came from.
    pub origin: Vec<&'a str>,
    /// Checkpoint tensors that its launches read, also through folds.
    pub weights: Vec<&'a str>,
    /// Laws that made its ops, in the order of the ops.
    pub laws: Vec<&'a str>,
}

impl Kernel<'_> {
    /// Its ops, in order.
    pub fn ops(&self) -> impl Iterator<Item = &Op> {
        self.func.insts.iter().filter_map(|i| match &i.kind {
            InstKind::Op(op) => Some(op),
            InstKind::Call(_) => None,
        })
    }
}

/// The sizes and machines that choices are costed for.
#[derive(clap::Args, Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sizes {
    /// Tokens in the context that calls are costed at, the new ones included, as 4096 or 4k [default: 4k, or what
    /// fits].
    #[arg(long, value_name = "TOKENS", value_parser = units::context)]
    context: Option<u32>,
    /// Machines that share the work and the memory, as if talking cost nothing.
    #[arg(long, value_name = "MACHINES", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65536))]
    devices: u32,
    /// Sequences that calls are costed for; the curves' prompts are of one.
    #[arg(long, value_name = "SEQUENCES", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=65536))]
    batch: u64,
}

impl Sizes {
    /// With room for the context, and for so many sequences.
    fn options(self, options: &Options) -> Options {
        let asked = self.context.map(|n| n as usize);
        let known = options.max_context.unwrap_or(DEFAULT_CONTEXT);
        let max_context = asked.filter(|n| *n > known).or(options.max_context);
        Options { max_context, batch: self.batch, ..options.clone() }
    }
}

/// Optimises and plans, without what only a report wants.
pub struct Optimised {
    /// The graph as built.
    pub model: Model,
    /// The machine.
    pub target: Target,
    /// What passes were told.
    pub options: hadal_passes::Options,
    /// What became of the graph.
    pub fused: Fused,
    /// Kernels, memory and launches.
    pub program: Program,
    /// How long it took.
    pub times: Vec<(&'static str, Duration)>,
}

impl Optimised {
    /// Does so, and keeps what explanations need where they are asked for.
    pub fn of(input: &Input, options: &Options, sizes: Sizes, explain: bool) -> Result<Optimised, Failure> {
        let target = target(&options.target)?.several(sizes.devices);
        let options = &sizes.options(options);
        let start = Instant::now();
        let model = build_model(input, options)?;
        let built = start.elapsed();
        let mut passes = hadal_passes::Options { explain, ..options.passes(&model) };
        passes.typical_context = sizes.context.map_or(passes.typical_context, i64::from);
        // Whether everything fits is for `predict` to say, which knows of several machines.
        let roomy = Target { memory_bytes: 1 << 60, ..target.clone() };
        let start = Instant::now();
        let (fused, program) = hadal_passes::compile(&model.module, &roomy, &passes).map_err(Failure::optimising)?;
        let times = vec![("graph", built), ("passes and plan", start.elapsed())];
        let kept = stored_bytes(&[&program]) + options.batch * state_bytes(&program);
        let machines = kept.div_ceil((target.memory_bytes / u64::from(sizes.devices)).max(1));
        if machines > u64::from(sizes.devices) {
            eprintln!(
                "note: {} of weights and states are more than the {} here; {machines} × {} hold them (--devices {machines})",
                bytes(kept as f64),
                bytes(target.memory_bytes as f64),
                options.target
            );
        }
        Ok(Optimised { model, target: roomy, options: passes, fused, program, times })
    }

    /// Every version of every entry.
    pub fn versions(&self) -> Vec<Version<'_>> {
        versions(&self.program, &self.fused.optimised, &self.target, &self.options)
    }
}

fn versions<'a>(
    program: &'a Program,
    optimised: &Module,
    target: &Target,
    options: &hadal_passes::Options,
) -> Vec<Version<'a>> {
    let one = |plan: &'a Plan| {
        // The sizes that its choices were costed at.
        let entry = optimised.entries.iter().find(|e| e.name == plan.entry && optimised.ranges(e) == plan.ranges);
        let bindings = entry.map_or_else(Bindings::new, |e| options.typical(optimised, &e.func));
        let call = Call { program, plan, target, bindings: &bindings, batch: options.batch as usize };
        let steps = call.launches();
        let step = steps.iter().copied().sum();
        let launches = plan.launches.iter().map(|l| l.kernel.as_str()).zip(steps).collect();
        Version { plan, label: label(program, plan), bindings, launches, step }
    };
    program.plans.iter().map(one).collect()
}

/// The entry, and the sizes that tell its version from others.
fn label(program: &Program, plan: &Plan) -> String {
    if program.versions(&plan.entry).count() == 1 {
        return plan.entry.clone();
    }
    let ranges: Vec<String> = plan.ranges.iter().map(|(s, r)| format!("{s} {r}")).collect();
    format!("{} ({})", plan.entry, ranges.join(", "))
}

impl Version<'_> {
    /// Its kernels, those that take longest first.
    pub fn kernels<'a>(&'a self, program: &'a Program) -> Vec<Kernel<'a>> {
        let mut by_name: BTreeMap<&str, Kernel<'a>> = BTreeMap::new();
        for (launch, (name, step)) in self.plan.launches.iter().zip(&self.launches) {
            let Some(func) = program.module.func(name) else { continue };
            let kernel = by_name.entry(name).or_insert_with(|| Kernel {
                func,
                launches: 0,
                step: Step::default(),
                origin: Vec::new(),
                weights: Vec::new(),
                laws: laws(func),
            });
            kernel.launches += 1;
            kernel.step = [kernel.step, *step].into_iter().sum();
            for origin in &launch.origin {
                if !kernel.origin.contains(&origin.as_str()) {
                    kernel.origin.push(origin);
                }
            }
            for place in &launch.args {
                weights(program, *place, &mut kernel.weights);
            }
        }
        let mut all: Vec<Kernel<'a>> = by_name.into_values().collect();
        all.sort_by(|a, b| b.step.seconds().total_cmp(&a.step.seconds()).then_with(|| a.func.name.cmp(&b.func.name)));
        all
    }
}

fn laws(func: &Func) -> Vec<&str> {
    let mut out: Vec<&str> = Vec::new();
    for law in func.insts.iter().flat_map(|i| &i.laws) {
        if !out.contains(&law.as_str()) {
            out.push(law);
        }
    }
    out
}

fn weights<'a>(program: &'a Program, place: Place, out: &mut Vec<&'a str>) {
    match place {
        Place::Weight(i) => {
            let name = program.weights[i].name.as_str();
            if !out.contains(&name) {
                out.push(name);
            }
        }
        Place::Fold(i) => program.folds[i].args.iter().for_each(|p| weights(program, *p, out)),
        _ => {}
    }
}

impl Facts {
    /// Gathers them.
    pub fn of(input: &Input, options: &Options, sizes: Sizes) -> Result<Facts, Failure> {
        let Optimised { model, target, options: passes, fused, program, mut times } =
            Optimised::of(input, options, sizes, true)?;
        let start = Instant::now();
        let gaps = hadal_passes::gap(&model.module, &target, &passes).map_err(Failure::optimising)?;
        times.push(("exact choice, to compare", start.elapsed()));
        let start = Instant::now();
        // From a few tokens to the model's own limit.
        let longest = model.max_position.clamp(1, 1 << 20);
        let first = (longest / 512).next_power_of_two().clamp(16, 1024).min(longest);
        let mut contexts: Vec<usize> =
            std::iter::successors(Some(first), |n| Some(n * 2)).take_while(|n| *n < longest).collect();
        contexts.push(longest);
        let drafts = usize::from(model.module.entry("mtp").is_some());
        let question =
            Question { contexts, batches: vec![options.batch as usize], chunk: options.max_chunk, drafts, devices: 1 };
        let question = Question { devices: sizes.devices as usize, ..question };
        let long = build_model(input, &Options { max_context: Some(longest), ..options.clone() })?;
        let prediction = predict(&long, &target, &options.passes(&long), &question)?;
        times.push(("curves", start.elapsed()));
        let stats = stats(&model);
        // As described, whatever room the passes were given.
        let target = crate::driver::target(&options.target)?.several(sizes.devices);
        let name = input.name.clone();
        Ok(Facts { name, model, stats, target, options: passes, fused, program, gaps, prediction, times })
    }

    /// Every version of every entry, but those for steps of two tokens, which have the forms of those for one.
    pub fn versions(&self) -> Vec<Version<'_>> {
        let mut all = versions(&self.program, &self.fused.optimised, &self.target, &self.options);
        let tokens = |v: &Version<'_>| v.plan.ranges.get(&Sym::T).map(|t| (t.min, t.max));
        let one: BTreeSet<&str> =
            all.iter().filter(|v| tokens(v) == Some((1, 1))).map(|v| v.plan.entry.as_str()).collect();
        all.retain(|v| tokens(v) != Some((2, 2)) || !one.contains(v.plan.entry.as_str()));
        all
    }

    /// Bytes of weights in the forms chosen.
    pub fn weight_bytes(&self) -> u64 {
        stored_bytes(&[&self.program])
    }

    /// Bytes of the states of one sequence, at the longest context compiled for.
    pub fn state_bytes(&self) -> u64 {
        state_bytes(&self.program)
    }
}

/// Bytes of the states of one sequence at the longest context.
fn state_bytes(program: &Program) -> u64 {
    let bytes = |s: &hadal_ir::plan::State| {
        let row = s.row.count(&Bindings::new()).unwrap_or(0.0) as u64;
        s.row.dtype.bytes(row * s.rows.max(0) as u64)
    };
    program.states.iter().map(bytes).sum()
}

/// Bytes alive in the arena during each launch, at the largest sizes.
pub fn live_bytes(plan: &Plan) -> Vec<u64> {
    let mut change = vec![0i64; plan.launches.len() + 1];
    for b in &plan.buffers {
        change[b.first.min(plan.launches.len())] += b.bytes as i64;
        change[(b.last + 1).min(plan.launches.len())] -= b.bytes as i64;
    }
    let mut live = 0;
    let sums = change.iter().map(|c| {
        live += c;
        live.max(0) as u64
    });
    sums.take(plan.launches.len()).collect()
}
