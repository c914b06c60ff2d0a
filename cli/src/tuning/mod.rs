//! A measured search for the fastest of the kernels that give the same bits.
//!
//! The generators' own choice comes from what is known of levels of processors. Here the kernels it could have been
//! (other tiles, blocks and chunks, never another order of a sum) run on this machine, one thread, on data of the sizes
//! that the model has; what they write must be equal to the last bit, and the fastest is taken where it wins clearly.
//! What was measured is kept in a [database](Database) by processor, level and function, so that it is measured once.

mod database;
mod measure;

pub use database::{Candidate, Database, Entry};

use crate::failure::Failure;
use hadal_codegen::kernels::{self, Generated};
use hadal_codegen::processor::{CompiledKernel, Processor};
use hadal_ir::module::FuncKind;
use hadal_ir::plan::Program;
use hadal_ir::storage::length;
use hadal_ir::text::print_func;
use hadal_ir::{Bindings, Func, Sym};
use indicatif::{ProgressBar, ProgressStyle};
use measure::Bench;
use std::path::PathBuf;

/// What to do about tuning.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tuning {
    /// The database.
    pub file: PathBuf,
    /// Whether what it does not hold is measured and added.
    pub measure: bool,
}

/// How much less time another kernel must take before it is preferred, and how many seconds less: what is nearer is
/// noise.
const CLEARLY: (f64, f64) = (0.97, 3e-7);

/// Context that is measured with, where the model has so much.
const CONTEXT: i64 = 1024;

/// A kernel function with the kernels that it may become.
pub struct Choice {
    /// The function's name.
    pub func: String,
    /// The kernels, the one that is taken without measuring first.
    pub kernels: Vec<Generated>,
    /// What was measured, by kernel; empty where nothing was.
    pub entry: Option<Entry>,
}

impl Choice {
    /// Without measurements.
    pub fn first(func: &Func, program: &Program, target: &kernels::Target) -> Result<Choice, Failure> {
        let generated = kernels::select(func, &program.ranges(&func.name), target);
        let generated = generated.map_err(|e| Failure::internal("generating a kernel", e))?;
        Ok(Choice { func: func.name.clone(), kernels: vec![generated], entry: None })
    }

    /// The kernel to take.
    pub fn best(&self) -> &Generated {
        &self.kernels[self.entry.as_ref().map_or(0, Entry::best)]
    }
}

/// The choice for each kernel function of a program, in the module's order: from the database, and measured where that
/// is asked for.
pub fn choose(
    program: &Program,
    cpu: &Processor,
    database: &mut Database,
    measure: bool,
) -> Result<Vec<Choice>, Failure> {
    let funcs: Vec<&Func> = program.module.funcs.iter().filter(|f| f.kind == FuncKind::Kernel).collect();
    let bar = if measure { ProgressBar::new(funcs.len() as u64) } else { ProgressBar::hidden() };
    let style = ProgressStyle::with_template("  tuning     {bar:32} {pos}/{len} kernels, {eta} left");
    bar.set_style(style.expect("a well-formed template"));
    let one = |func: &&Func| {
        let choice = one(func, program, cpu, database, measure);
        bar.inc(1);
        choice
    };
    let chosen = funcs.iter().map(one).collect();
    bar.finish_and_clear();
    chosen
}

fn one(
    func: &Func,
    program: &Program,
    cpu: &Processor,
    database: &mut Database,
    measure: bool,
) -> Result<Choice, Failure> {
    let ranges = program.ranges(&func.name);
    let kernels = kernels::variants(func, &ranges, &kernels::Target::of(cpu));
    let mut kernels = kernels.map_err(|e| Failure::internal("generating a kernel", e))?;
    // Two schedules can come to the same code.
    let mut i = 0;
    while i < kernels.len() {
        match kernels[..i].iter().any(|k| k.kernel == kernels[i].kernel) {
            true => drop(kernels.remove(i)),
            false => i += 1,
        }
    }
    let choice = |kernels, entry| Choice { func: func.name.clone(), kernels, entry };
    if kernels.len() < 2 {
        return Ok(choice(kernels, None));
    }
    let sizes = sizes(program, &ranges);
    let function = print_func(&Func { name: "k".into(), ..func.clone() });
    let names: Vec<&str> = kernels.iter().map(|k| k.schedule.as_str()).collect();
    let named = sizes.iter().map(|(s, v)| (s.to_string(), *v)).collect();
    if let Some(known) = database.find(cpu.name, &function, &named, &names) {
        return Ok(choice(kernels, Some(known)));
    }
    if !measure {
        return Ok(choice(kernels, None));
    }
    let compiled = compile_all(&kernels, cpu)?;
    let candidates = kernels.iter().zip(&compiled).map(|(k, c)| (&k.kernel, c));
    let between = program.weights.iter().map(|w| length(&w.ty)).sum();
    let Some(seconds) = Bench::new(candidates.collect(), &sizes, between)?.map(Bench::seconds) else {
        return Ok(choice(kernels, None));
    };
    let candidates = kernels.iter().zip(seconds).map(|(k, seconds)| match seconds {
        Some(seconds) => {
            let nanoseconds = ((seconds * 1e9).round() as u64).max(1);
            Ok(Candidate { schedule: k.schedule.clone(), nanoseconds })
        }
        None => {
            let what = format!("@{}: {} writes other bits than {}", func.name, k.schedule, kernels[0].schedule);
            Err(Failure::internal("tuning", what))
        }
    });
    let candidates = candidates.collect::<Result<Vec<_>, Failure>>()?;
    let entry =
        Entry { processor: crate::probe::processor(), level: cpu.name.into(), function, sizes: named, candidates };
    database.add(entry.clone())?;
    Ok(choice(kernels, Some(entry)))
}

/// The sizes to measure with: as many new tokens as there may be, and some context.
fn sizes(program: &Program, ranges: &kernels::Ranges) -> Bindings {
    let free = ranges.iter().filter(|(s, _)| !program.module.definitions.has(**s));
    let value = |s: &Sym, r: &hadal_ir::Range| if *s == Sym::T { r.max } else { CONTEXT.clamp(r.min, r.max) };
    program.module.definitions.complete(&free.map(|(s, r)| (*s, value(s, r))).collect())
}

/// Machine code of all, on all cores.
fn compile_all(kernels: &[Generated], cpu: &Processor) -> Result<Vec<CompiledKernel>, Failure> {
    let one = |k: &Generated| {
        hadal_codegen::compile(&k.kernel, cpu, false).map_err(|e| Failure::internal("compiling a kernel", e))
    };
    crate::driver::on_all_cores(kernels, one)
}

/// Where the database is if nobody says.
pub fn default_file() -> PathBuf {
    crate::cache::folder().map_or_else(|| "hadal-tuning.json".into(), |c| c.join("tuning.json"))
}
