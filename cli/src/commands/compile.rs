//! `hadal compile`: a checkpoint becomes one executable file.

use crate::commands::dump;
use crate::driver::{self, Compiled, compile};
use crate::failure::Failure;
use crate::input::Input;
use crate::options::{AdapterArgs, CompileArgs};
use crate::runner::Runner;
use crate::units;
use hadal_artifact::blob;
use hadal_ir::panels;
use hadal_ir::plan::Fold;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Compile a checkpoint into one executable file.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  hadal compile DeepSeek-R1-Distill-Qwen-1.5B -o r1\n  ./r1 generate --chat \
    \"Why is the sky blue?\"\n  hadal compile DeepSeek-V2-Lite --target sm_90a,cpu -o lite\n  hadal compile config.json --plan-only --emit plan=dumps")]
pub struct Args {
    /// A checkpoint folder, or with --plan-only a bare config.json.
    path: PathBuf,
    /// The file to write.
    #[arg(short, long, required_unless_present = "plan_only")]
    output: Option<PathBuf>,
    #[command(flatten)]
    adapter: AdapterArgs,
    #[command(flatten)]
    compile: CompileArgs,
    /// Also write the text of a stage (graph, optimized, kernels, plan, clif, asm) into a folder [default: beside the
    /// output]. May be given several times.
    #[arg(long, value_name = "STAGE[=DIR]")]
    emit: Vec<String>,
    /// Do everything but write weights; needs no checkpoint.
    #[arg(long)]
    plan_only: bool,
    /// `embedded` copies the weights into the file; `external` leaves those that need no change in the checkpoint's
    /// files, which must then stay where they are.
    #[arg(long, value_enum, default_value_t = Weights::Embedded)]
    weights: Weights,
    /// The program that the file begins with, where that is not to be the one for machines like this: for files that
    /// run on another architecture (`--cpu aarch64-neon`).
    #[arg(long, value_name = "FILE")]
    runner: Option<PathBuf>,
    /// Print a report as JSON.
    #[arg(long)]
    json: bool,
}

/// Where weights go.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Weights {
    /// Into the compiled file.
    Embedded,
    /// They stay in the checkpoint.
    External,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    let start = Instant::now();
    let emits = args.emit.iter().map(|e| dump::parse_emit(e)).collect::<Result<Vec<_>, _>>()?;
    let input = args.adapter.open(&args.path)?;
    if input.checkpoint.is_none() && !args.plan_only {
        let help = "give the folder with the weights, or --plan-only";
        return Err(Failure::input(format!("{}: a configuration without weights", args.path.display())).help(help));
    }
    let folder = args.output.as_ref().and_then(|o| o.parent()).filter(|f| !f.as_os_str().is_empty() && !f.is_dir());
    if let (Some(folder), Some(output)) = (folder, &args.output) {
        return Err(Failure::failed(format!("{}: there is no folder {}", output.display(), folder.display())));
    }
    let mut options = args.compile.options();
    driver::targets(&options.target)?;
    options.external_weights = args.weights == Weights::External;
    if let Some(file) = &args.runner {
        options.runner = Runner::open(file)?;
    }
    if !args.plan_only {
        options.runner.for_levels(options.levels.iter())?;
    }
    options.disassembly = emits.iter().any(|(stage, _)| *stage == dump::Stage::Asm);
    let compiled = compile(&input, &options)?;
    args.compile.note(&compiled.model);
    if input.checkpoint.is_some() && !input.blobs.iter().any(|(name, _)| name == blob::TOKENIZER) {
        eprintln!("note: {} has no tokenizer.json; `generate` will need --tokens", args.path.display());
    }
    for (stage, folder) in &emits {
        let folder = folder.clone().or_else(|| Some(args.output.as_ref()?.parent()?.to_path_buf()));
        dump::write(&compiled, *stage, &folder.unwrap_or_default())?;
    }
    let mut size = None;
    if let (false, Some(output)) = (args.plan_only, &args.output) {
        size = Some(write(&compiled, &input, output)?);
    }
    if args.json {
        say!("{:#}", report_json(&compiled, size, start.elapsed().as_secs_f64()))?;
    } else {
        eprint!("{}", report(&compiled));
        match (size, &args.output) {
            (Some(size), Some(output)) => {
                let (size, time) = (units::bytes(size as f64), units::seconds(start.elapsed().as_secs_f64()));
                eprintln!("  file       {} ({size}) in {time}", output.display());
            }
            _ => eprintln!("  planned in {}", units::seconds(start.elapsed().as_secs_f64())),
        }
    }
    Ok(())
}

/// Writes the compiled file with a progress bar.
pub fn write(compiled: &Compiled, input: &Input, output: &Path) -> Result<u64, Failure> {
    let bar = ProgressBar::new(compiled.manifest.embedded_bytes());
    let style = ProgressStyle::with_template("  weights    {bar:32} {bytes}/{total_bytes} {bytes_per_sec}")
        .expect("a well-formed template");
    bar.set_style(style);
    let size = compiled.write(input, output, &mut |n| bar.inc(n));
    bar.finish_and_clear();
    size
}

/// A few lines: what happened at each stage.
pub fn report(c: &Compiled) -> String {
    let m = &c.manifest;
    let time = |stage: &str| {
        let t = c.times.iter().find(|(s, _)| *s == stage).map_or(0.0, |(_, t)| t.as_secs_f64());
        units::seconds(t)
    };
    let ops: usize = c.model.module.funcs.iter().map(|f| f.insts.len()).sum();
    let mut out = format!(
        "  graph      {}: {} functions, {ops} steps for {} layers ({})\n",
        m.model.architecture,
        c.model.module.funcs.len(),
        c.model.layers,
        time("graph")
    );
    let found: Vec<String> = rules_fired(c).into_iter().map(|(rule, n)| format!("{rule} ×{n}")).collect();
    out += &format!(
        "  rewrites   {} ({})\n",
        if found.is_empty() { "none".into() } else { found.join(", ") },
        time("passes")
    );
    let count = |generator: &str| c.kernels().iter().filter(|k| k.generated.generator == generator).count();
    let mut generators: Vec<&str> = c.kernels().iter().map(|k| k.generated.generator).collect();
    generators.sort_unstable();
    generators.dedup();
    let cached = c.levels.iter().flat_map(|l| &l.kernels).filter(|k| k.cached).count();
    let from_cache = if cached > 0 { format!(", {cached} from the cache") } else { String::new() };
    let kinds: Vec<String> = generators.iter().map(|g| format!("{} {g}", count(g))).collect();
    out += &format!(
        "  kernels    {} distinct ({}), {} of code ({}{from_cache})\n",
        c.kernels().len(),
        kinds.join(", "),
        units::bytes(c.code.len() as f64),
        time("code")
    );
    let tuned: Vec<_> = c.levels.iter().flat_map(|l| &l.kernels).filter_map(|k| k.tuned.as_ref()).collect();
    if !tuned.is_empty() {
        let others = tuned.iter().filter(|e| e.best() > 0).count();
        out += &format!(
            "  tuning     {others} of {} kernels measured are others than the generators choose ({})\n",
            tuned.len(),
            time("tuning")
        );
    }
    for e in &m.entries {
        for v in &e.versions {
            let ranges = m.free_ranges(&v.symbols);
            let of = if e.versions.len() > 1 { format!(" where {}", ranges.join(", ")) } else { String::new() };
            out += &format!("  entry      {:<8} {} launches{of}\n", e.name, v.launches.len());
        }
    }
    let windows = match m.window_bytes() {
        0 => String::new(),
        n => format!(" and {} for any", units::bytes(n as f64)),
    };
    out += &format!(
        "  memory     {} working, {} per token of context{windows}, at most {} tokens\n",
        units::bytes(m.arena_bytes as f64),
        units::bytes(m.state_bytes_per_token() as f64),
        m.model.max_context
    );
    let weights: f64 = m.weights.iter().map(|w| w.bytes as f64).sum();
    let as_panels = match panels_of(c) {
        0 => String::new(),
        n => format!("; {n} matrices are laid out as panels"),
    };
    out += &format!("  weights    {} in {} tensors{as_panels}\n", units::bytes(weights), m.weights.len());
    if !c.model.unread.is_empty() {
        out += &format!("  not used   {} of config.json\n", c.model.unread.join(", "));
    }
    out
}

/// Matrices that are stored as panels, parts of others among them.
fn panels_of(c: &Compiled) -> usize {
    let laid = |f: &&Fold| c.program.module.func(&f.func).is_some_and(|func| panels::rows(func).is_some());
    c.program.folds.iter().filter(laid).count()
}

/// Rules of the e-graph whose result was chosen or applied, with how often.
pub fn rules_fired(c: &Compiled) -> Vec<(String, usize)> {
    let mut all: std::collections::BTreeMap<String, usize> = Default::default();
    for (rule, n) in c.passes.iter().flat_map(|p| &p.details.fired) {
        *all.entry((*rule).to_owned()).or_default() += n;
    }
    all.into_iter().collect()
}

fn report_json(c: &Compiled, size: Option<u64>, seconds: f64) -> serde_json::Value {
    let m = &c.manifest;
    json!({
        "architecture": m.model.architecture,
        "layers": c.model.layers,
        "functions": c.model.module.funcs.len(),
        "rules": rules_fired(c).into_iter().collect::<std::collections::BTreeMap<_, _>>(),
        "kernels": c.kernels().iter().map(|k| json!({
            "name": k.func,
            "generator": k.generated.generator,
            "schedule": k.generated.schedule,
            "code_bytes": k.compiled.code.len(),
            "cached": k.cached,
            "tuned": k.tuned.as_ref().map(|e| json!({"gain": e.gain(), "candidates": e.candidates.len()})),
        })).collect::<Vec<_>>(),
        "entries": m.entries.iter().map(|e| json!({
            "name": e.name,
            "versions": e.versions.iter().map(|v| json!({
                "symbols": m.free_ranges(&v.symbols),
                "launches": v.launches.len(),
            })).collect::<Vec<_>>(),
        }))
            .collect::<Vec<_>>(),
        "code_bytes": c.code.len(),
        "arena_bytes": m.arena_bytes,
        "state_bytes_per_token": m.state_bytes_per_token(),
        "window_bytes": m.window_bytes(),
        "weight_bytes": m.weights.iter().map(|w| w.bytes).sum::<u64>(),
        "panels": panels_of(c),
        "max_context": m.model.max_context,
        "stage_seconds": c.times.iter().map(|(s, t)| ((*s).to_owned(), t.as_secs_f64()))
            .collect::<std::collections::BTreeMap<_, _>>(),
        "file_bytes": size,
        "seconds": seconds,
    })
}
