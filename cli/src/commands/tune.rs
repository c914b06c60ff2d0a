//! `hadal tune`: which of the kernels that give the same bits is the fastest here.

use super::table;
use crate::driver::{Compiled, compile};
use crate::failure::Failure;
use crate::options::{AdapterArgs, CompileArgs, TuneArg};
use crate::tuning::Entry;
use crate::units;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Measure kernels on this machine and keep the fastest in a database.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  hadal tune DeepSeek-R1-Distill-Qwen-1.5B --activations bf16\n  \
    hadal compile DeepSeek-R1-Distill-Qwen-1.5B --activations bf16 --tune stored -o r1\n\n\
    Every kernel is run with other tiles and blocks than the generators' own choice, on one thread, on data of the sizes that \
    the model has. What is written must be equal to the last bit, so tuning changes no result. `hadal compile --tune quick` \
    does the same on the way.")]
pub struct Args {
    /// A checkpoint folder, a GGUF file or a bare config.json: weights are not read.
    path: PathBuf,
    #[command(flatten)]
    adapter: AdapterArgs,
    #[command(flatten)]
    compile: CompileArgs,
    /// Show all candidates of every kernel.
    #[arg(long)]
    all: bool,
    /// Write JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    let input = args.adapter.open(&args.path)?;
    let tune = args.compile.tune.or(Some(TuneArg::Quick));
    let options = CompileArgs { tune, ..args.compile.clone() }.options();
    let compiled = compile(&input, &options)?;
    let file = options.tuning.map(|t| t.file).unwrap_or_default();
    let measured = measured(&compiled);
    let entries = entries(&compiled, &measured);
    if args.json {
        let kernels =
            measured.iter().map(|(name, e)| json!({"name": name, "gain": e.gain(), "best": e.best(), "measured": e}));
        let entries = entries
            .iter()
            .map(|e| json!({"entry": e.name, "where": e.ranges, "seconds": e.own, "seconds_tuned": e.tuned}));
        let out = json!({
            "database": file, "kernels": kernels.collect::<Vec<_>>(), "entries": entries.collect::<Vec<_>>(),
        });
        return say!("{out:#}");
    }
    say!("{}\n", kernel_table(&measured, args.all))?;
    say!("{}\n", entry_table(&entries))?;
    let kept: usize = measured.values().filter(|e| e.best() == 0).count();
    say!("{} kernels measured, {kept} of them best as the generators choose them; {}", measured.len(), file.display())
}

/// What was measured of the first level that has measurements, by kernel.
fn measured(compiled: &Compiled) -> BTreeMap<&str, &Entry> {
    let level = compiled.levels.iter().find(|l| l.kernels.iter().any(|k| k.tuned.is_some()));
    let kernels = level.into_iter().flat_map(|l| &l.kernels);
    kernels.filter_map(|k| Some((k.func.as_str(), k.tuned.as_ref()?))).collect()
}

fn kernel_table(measured: &BTreeMap<&str, &Entry>, all: bool) -> String {
    let head = ["kernel", "sizes", "candidates", "own choice", "best", "gain"].map(str::to_owned);
    let mut rows = vec![head];
    let mut sorted: Vec<_> = measured.iter().collect();
    sorted.sort_by(|a, b| b.1.gain().total_cmp(&a.1.gain()));
    for (name, e) in sorted {
        let sizes: Vec<String> = e.sizes.iter().map(|(s, v)| format!("{s}={v}")).collect();
        let (own, best) = (e.seconds(0), e.seconds(e.best()));
        rows.push([
            (*name).to_owned(),
            sizes.join(" "),
            e.candidates.len().to_string(),
            units::seconds(own),
            units::seconds(best),
            format!("{:.2}x", e.gain()),
        ]);
        for (i, c) in e.candidates.iter().enumerate().filter(|_| all) {
            let blank = String::new;
            rows.push([format!("  {}", c.schedule), blank(), blank(), blank(), units::seconds(e.seconds(i)), blank()]);
        }
    }
    table(&rows)
}

/// Measured kernels of one version of an entry, together.
struct EntryTime {
    name: String,
    ranges: String,
    own: f64,
    tuned: f64,
}

fn entries(compiled: &Compiled, measured: &BTreeMap<&str, &Entry>) -> Vec<EntryTime> {
    let plans = compiled.program.plans.iter().map(|plan| {
        let entries = plan.launches.iter().filter_map(|l| measured.get(l.kernel.as_str()));
        let sum = |seconds: &dyn Fn(&Entry) -> f64| entries.clone().map(|e| seconds(e)).sum();
        let ranges: Vec<String> = plan.ranges.iter().map(|(s, r)| format!("{s} in {}..{}", r.min, r.max)).collect();
        EntryTime {
            name: plan.entry.clone(),
            ranges: ranges.join(", "),
            own: sum(&|e| e.seconds(0)),
            tuned: sum(&|e| e.seconds(e.best())),
        }
    });
    plans.filter(|e| e.own > 0.0).collect()
}

fn entry_table(entries: &[EntryTime]) -> String {
    let head = ["entry", "where", "own choice", "tuned", "gain"].map(str::to_owned);
    let row = |e: &EntryTime| {
        let gain = format!("{:.2}x", e.own / e.tuned);
        [e.name.clone(), e.ranges.clone(), units::seconds(e.own), units::seconds(e.tuned), gain]
    };
    table(&std::iter::once(head).chain(entries.iter().map(row)).collect::<Vec<_>>())
}
