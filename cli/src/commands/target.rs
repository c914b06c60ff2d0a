//! `hadal target`: descriptions of machines, those that come with hadal and the one at hand.

use crate::failure::Failure;
use crate::probe::{Probe, Sample, probe};
use crate::units::{bytes, count, seconds};
use hadal_ir::target::{Target, check_name};
use serde_json::json;
use std::path::PathBuf;

/// Describe machines: list and show the known ones, or measure the one at hand.
#[derive(clap::Args)]
#[command(after_help = "Example: hadal target probe -o here.toml && hadal predict CHECKPOINT --target here.toml")]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// List the machines that hadal knows.
    #[command(after_help = "Example: hadal target list --json")]
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print a description: of a known machine, or of a file after checking it.
    #[command(after_help = "Examples:\n  hadal target show h200 > mine.toml\n  hadal target show mine.toml --json")]
    Show {
        /// A machine's name, or a file.
        name: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Measure this machine with kernels of hadal's own making, in some seconds.
    ///
    /// Each figure is the best of several runs; the median and the worst are printed beside it, and where they are far
    /// off, something else was using the machine.
    #[command(after_help = "Examples:\n  hadal target probe\n  hadal target probe -o here.toml --threads 4")]
    Probe {
        /// Write the description here.
        #[arg(short, long, value_name = "FILE.toml")]
        output: Option<PathBuf>,
        /// Measure with so many threads, at most as many as there are cores [default: all].
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
        threads: Option<u16>,
        /// The description's name [default: the file's, else `here`].
        #[arg(long)]
        name: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    match &args.what {
        What::List { json: true } => say!("{:#}", json!(Target::all())),
        What::List { json: false } => say!("{}", list()),
        What::Show { name, json } => {
            let target = crate::driver::target(name)?;
            match json {
                true => say!("{:#}", json!(target)),
                false => say!("{}", target.to_text().trim_end()),
            }
        }
        What::Probe { output, threads, name, json } => {
            let offered = std::thread::available_parallelism().map_or(1, |n| n.get());
            let stem = output.as_ref().and_then(|p| p.file_stem()).map(|s| s.to_string_lossy().into_owned());
            let name = name.clone().or(stem).unwrap_or_else(|| "here".into());
            check_name(&name).map_err(|e| Failure::usage(e.to_string()))?;
            let threads = threads.map_or(offered, usize::from);
            if threads > offered {
                let more =
                    format!("--threads {threads}: this machine runs {offered} at once, expected at most as many");
                return Err(Failure::usage(more));
            }
            let found = probe(threads, &|what| eprintln!("measuring {what}"))?;
            for (name, s, _) in figures(&found) {
                if let Some(times) = spread(s) {
                    eprintln!("warning: {name}: best and worst are {times:.1} times apart; was the machine busy?");
                }
            }
            let target = found.target(&name);
            if let Some(path) = output {
                std::fs::write(path, target.to_text())
                    .map_err(|e| Failure::failed(format!("{}: {e}", path.display())))?;
            }
            match (json, output) {
                (true, _) => say!("{:#}", as_json(&found, &target)),
                (false, Some(path)) => say!("{}\nwritten to {}", table(&found), path.display()),
                (false, None) => say!("{}\n\n{}", table(&found), target.to_text().trim_end()),
            }
        }
    }
}

fn list() -> String {
    let head = ["name", "arch", "memory", "bandwidth", "peak f32", "bf16", "f8", "f4"].map(str::to_owned);
    let row = |t: Target| {
        let peak = |p: Option<f64>| p.map_or_else(|| "-".to_owned(), |p| format!("{}FLOP/s", count(p)));
        let rates = [Some(t.flops.f32), t.flops.bf16, t.flops.f8, t.flops.f4].map(peak);
        let [f32, bf16, f8, f4] = rates;
        [t.name, t.arch, bytes(t.memory_bytes as f64), format!("{}/s", bytes(t.bandwidth)), f32, bf16, f8, f4]
    };
    super::table(&std::iter::once(head).chain(Target::all().into_iter().map(row)).collect::<Vec<_>>())
}

/// Name, figures and their unit, in a fixed order.
fn figures(found: &Probe) -> Vec<(&'static str, &Sample, &'static str)> {
    let mut all = vec![("f32 multiply-add", &found.flops, "FLOP/s")];
    all.extend(found.bf16.as_ref().map(|s| ("bf16 dot products", s, "FLOP/s")));
    all.extend(found.i8.as_ref().map(|s| ("byte dot products", s, "OP/s")));
    all.extend([
        ("memory, one thread", &found.bandwidth_of_one, "B/s"),
        ("memory, all threads", &found.bandwidth, "B/s"),
        ("own cache", &found.cache_bandwidth, "B/s"),
        ("launch", &found.launch, "s"),
    ]);
    all
}

/// How far the runs of a measurement are apart, where that is too far to believe them.
fn spread(sample: &Sample) -> Option<f64> {
    let times = sample.max() / sample.min();
    (times > 2.0).then_some(times)
}

fn table(found: &Probe) -> String {
    let mut rows = vec![["", "min", "median", "max"].map(str::to_owned)];
    for (name, sample, unit) in figures(found) {
        let show = |x: f64| match unit {
            "s" => seconds(x),
            "B/s" => format!("{}/s", bytes(x)),
            _ => format!("{}{unit}", count(x)),
        };
        rows.push([name.to_owned(), show(sample.min()), show(sample.median()), show(sample.max())]);
    }
    let sizes =
        [("own caches", found.cache_bytes), ("all caches", found.all_cache_bytes), ("memory", found.memory_bytes)];
    let sizes: Vec<String> = sizes.iter().map(|(name, n)| format!("{name} {}", bytes(*n as f64))).collect();
    format!(
        "{}, {} threads, {}\n{}\n{}",
        found.processor,
        found.threads,
        found.level,
        super::table(&rows),
        sizes.join(", ")
    )
}

fn as_json(found: &Probe, target: &Target) -> serde_json::Value {
    let one = |(name, s, unit): (&str, &Sample, &str)| {
        let figures = json!({"min": s.min(), "median": s.median(), "max": s.max(), "unit": unit});
        (name.to_owned(), figures)
    };
    let measured: serde_json::Map<_, _> = figures(found).into_iter().map(one).collect();
    json!({"processor": found.processor, "threads": found.threads, "level": found.level, "measured": measured, "target": target})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measurements_far_apart_are_told() {
        assert_eq!(spread(&Sample::new(vec![2.0, 1.0, 1.5])), None);
        assert_eq!(spread(&Sample::new(vec![1.0, 1.1, 3.0])), Some(3.0));
    }
}
