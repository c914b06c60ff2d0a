//! `hadal bench`: what a compiled model takes, beside what the machine's limits, measured in the same run, would allow.

use crate::commands::compile::write;
use crate::driver::{Compiled, compile};
use crate::failure::{Failure, read_text};
use crate::input::Input;
use crate::measure::{Limits, Measured, Meter};
use crate::options::{AdapterArgs, CompileArgs};
use crate::probe::probe;
use crate::random_checkpoint::write_for;
use crate::roofline::Step;
use crate::units::{self, bytes, count, percent, seconds};
use hadal_ir::target::Target;
use hadal_runtime::Program;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Measure a model against this machine.
///
/// Compiles for the processor at hand into a file in the temporary folder, measures what the machine can do, and then what prompts and tokens take at each
/// context. The limit of a call is its roofline: every launch takes the longer of its operations at the peak of the
/// formats it multiplies and its bytes at read bandwidth, which is measured between calls where these read far more than
/// caches hold. Without PATH it measures the model that comes with hadal.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  hadal bench\n  hadal bench DeepSeek-R1-Distill-Qwen-1.5B --contexts 128,2k,16k \
    --max-context 17k --threads 1,2\n  hadal bench deepseek-v2-lite/config.json --layers 6 --activations bf16\n  hadal bench CHECKPOINT --json > before.json; …; hadal bench CHECKPOINT --against \
    before.json\n\nContexts are not run but made up: what a call takes does not depend on what it remembers. For where the \
    time goes, by kernel, see `FILE bench --kernels --trace FILE`.")]
pub struct Args {
    /// A checkpoint folder or GGUF file, or a bare config.json, for which random weights are made in the temporary folder
    /// [default: the model that comes with hadal].
    path: Option<PathBuf>,
    /// Layers of a bare configuration, fewer than it says.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    layers: Option<u32>,
    #[command(flatten)]
    adapter: AdapterArgs,
    #[command(flatten)]
    compile: CompileArgs,
    /// Tokens that the model remembers, the new ones included [default: 128 and, as far as they fit, 2048 and 16384].
    #[arg(long, value_name = "TOKENS,…", value_delimiter = ',', value_parser = units::context)]
    contexts: Vec<u32>,
    /// New tokens of a prompt; less where the context is shorter.
    #[arg(long, value_name = "TOKENS", default_value_t = 512)]
    prompt_len: usize,
    /// Tokens to generate in a run.
    #[arg(short, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4096))]
    n: u32,
    /// Runs of each measurement; the one in the middle counts.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeat: u32,
    /// Numbers of threads [default: 1 and one for each core].
    #[arg(long, value_name = "N,…", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: Vec<u32>,
    /// A report of an earlier run (--json): fail where even the fastest run of a call reaches less of its limit than the
    /// `least_share` that the report has for it.
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// In reports: so many percent below what the slowest run reached lies `least_share`.
    #[arg(long, value_name = "PERCENT", default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..100))]
    tolerance: u32,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// A measured call.
struct Row {
    phase: &'static str,
    threads: usize,
    context: usize,
    measured: Measured,
}

impl Row {
    fn rate(&self) -> f64 {
        self.measured.tokens as f64 / self.measured.seconds().median()
    }

    /// What a call moves and computes, and its limit in the run in the middle.
    fn limit(&self) -> Step {
        let mut all: Vec<Step> = self.measured.runs.iter().map(|r| r.limit).collect();
        all.sort_by(|a, b| a.seconds().total_cmp(&b.seconds()));
        all.get(all.len() / 2).copied().unwrap_or_default()
    }

    fn json(&self, tolerance: u32) -> Value {
        let (seconds, share, limit) = (self.measured.seconds(), self.measured.share(), self.limit());
        json!({
            "phase": self.phase,
            "threads": self.threads,
            "context": self.context,
            "tokens": self.measured.tokens,
            "seconds": {"min": seconds.min(), "median": seconds.median(), "max": seconds.max()},
            "tokens_per_second": self.rate(),
            "bytes": limit.bytes(),
            "flops": limit.flops,
            "limit_seconds": limit.seconds(),
            "bound": limit.bound(),
            "share_of_limit": share.median(),
            "least_share": share.min() * (1.0 - f64::from(tolerance) / 100.0),
        })
    }
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    if cfg!(debug_assertions) {
        eprintln!("warning: this is a development build; `cargo build --release` measures what users get");
    }
    let before = args.against.as_deref().map(read_report).transpose()?;
    let mut input = match &args.path {
        Some(path) => args.adapter.open(path)?,
        None => Input::demo()?,
    };
    let random = match &args.path {
        Some(path) if input.checkpoint.is_none() => {
            let dir = random_weights(path, args.layers)?;
            input = args.adapter.open(dir.path())?;
            Some(dir)
        }
        _ => None,
    };
    if let (Some(n), None) = (args.layers, &random) {
        return Err(Failure::usage(format!("--layers {n}: only for a bare configuration")));
    }
    let begun = Instant::now();
    let compiled = compile(&input, &args.compile.options().here())?;
    args.compile.note(&compiled.model);
    let program = as_a_file(&compiled, &input)?;
    drop(random);
    let (model, level) = (&program.manifest().model, compiled.levels.first().map_or("", |l| l.cpu.name));
    eprintln!("{} compiled for {level} in {}", model.name, seconds(begun.elapsed().as_secs_f64()));

    let max = model.max_context as usize;
    let contexts: Vec<usize> = match &args.contexts[..] {
        [] => [128, 2048, 16384].into_iter().filter(|c| c + args.n as usize <= max).collect(),
        given => given.iter().map(|c| *c as usize).collect(),
    };
    if let Some(c) = contexts.iter().find(|c| **c + args.n as usize > max) {
        let help = "--max-context compiles for a longer one";
        let n = args.n;
        return Err(Failure::usage(format!("--contexts {c} and -n {n} exceed the context of {max}")).help(help));
    }
    let cores = hadal_runtime::Topology::here().cores();
    let mut threads: Vec<usize> = args.threads.iter().map(|n| *n as usize).collect();
    if threads.is_empty() {
        threads.extend([1, cores]);
        threads.dedup();
    }

    let (mut machines, mut rows) = (Vec::new(), Vec::new());
    for threads in threads {
        let machine = probe(threads.min(cores), &|_| {})?;
        let meter = Meter::new(program.clone(), threads, args.repeat);
        let limits = Limits { compiled: &compiled, machine: &machine };
        for context in contexts.iter().copied() {
            eprintln!("measuring {threads} threads at {context} tokens");
            let prompt = meter.prompt(context, args.prompt_len, &limits)?;
            rows.extend(prompt.map(|measured| Row { phase: "prompt", threads, context, measured }));
            let measured = meter.decode(context, args.n, &limits)?;
            rows.push(Row { phase: "decode", threads, context, measured });
        }
        let target = machine.target("here");
        machines.push((machine, target));
    }

    let regressions = before.map(|b| regressions(&b, &rows)).unwrap_or_default();
    let report = json!({
        "model": model.name,
        "level": level,
        "machines": machines.iter().map(|(m, t)| json!({
            "processor": m.processor, "threads": m.threads, "read_bytes_per_second": t.bandwidth, "flops": t.flops,
        })).collect::<Vec<_>>(),
        "rows": rows.iter().map(|r| r.json(args.tolerance)).collect::<Vec<_>>(),
        "regressions": regressions,
    });
    match args.json {
        true => say!("{report:#}")?,
        false => print(&machines.iter().map(|(_, t)| t).collect::<Vec<_>>(), &rows)?,
    }
    match &regressions[..] {
        [] => Ok(()),
        all => Err(Failure::failed(format!("slower than before: {}", all.join("; ")))),
    }
}

fn print(machines: &[&Target], rows: &[Row]) -> Result<(), Failure> {
    for t in machines {
        let peaks: Vec<String> = t.flops.list().iter().map(|(name, x)| format!("{name} {}", count(*x))).collect();
        say!("{} threads: reads {}/s, multiplies {} FLOP/s", t.threads, bytes(t.bandwidth), peaks.join(", "))?;
    }
    let head = ["", "threads", "context", "tokens/s", "a call", "bytes/s", "FLOP/s", "bound by", "of the limit"];
    let mut lines = vec![head.map(str::to_owned)];
    lines.extend(rows.iter().map(|r| {
        let (median, limit) = (r.measured.seconds().median(), r.limit());
        [
            r.phase.to_owned(),
            r.threads.to_string(),
            r.context.to_string(),
            format!("{:.1}", r.rate()),
            seconds(median),
            format!("{}/s", bytes(limit.bytes() / median)),
            count(limit.flops / median),
            limit.bound().to_owned(),
            percent(r.measured.share().median()),
        ]
    }));
    say!("{}", super::table(&lines))
}

/// The program in a compiled file, weights laid out as its users have them. The file is mapped and needs no name any more.
fn as_a_file(compiled: &Compiled, input: &Input) -> Result<Arc<Program>, Failure> {
    let folder = tempfile::tempdir().map_err(no_folder)?;
    let path = folder.path().join("model");
    write(compiled, input, &path)?;
    Ok(Program::open(&path)?)
}

fn no_folder(e: std::io::Error) -> Failure {
    Failure::failed(format!("no temporary folder: {e}")).help("TMPDIR names another one")
}

/// A folder with random weights for a configuration.
fn random_weights(path: &Path, layers: Option<u32>) -> Result<tempfile::TempDir, Failure> {
    let dir = tempfile::tempdir().map_err(no_folder)?;
    eprintln!("writing random weights into {}", dir.path().display());
    let bytes = write_for(path, layers, dir.path())?;
    eprintln!("{} written", units::bytes(bytes as f64));
    Ok(dir)
}

fn read_report(path: &Path) -> Result<Value, Failure> {
    let fault = |e: String| Failure::input(format!("{}: {e}", path.display()));
    let text = read_text(path)?;
    let report: Value = serde_json::from_str(&text).map_err(|e| fault(e.to_string()))?;
    let expected = "expected what `hadal bench --json` prints";
    let rows = report["rows"].as_array().ok_or_else(|| fault(format!("`rows` is no list, {expected}")))?;
    match rows.iter().position(|r| !r["least_share"].is_number()) {
        None => Ok(report),
        Some(i) => Err(fault(format!("`rows[{i}].least_share` is no number, {expected}"))),
    }
}

/// Calls that are slower than in an earlier report. Shares are compared, as the machine's limits differ from run to run, and
/// so do the times; and the best of now with the least of then, as both are noisy.
fn regressions(before: &Value, rows: &[Row]) -> Vec<String> {
    let known = |r: &Row| {
        let all = before["rows"].as_array()?;
        let same = |b: &&Value| {
            b["phase"] == r.phase
                && b["threads"] == r.threads
                && b["context"] == r.context
                && b["tokens"] == r.measured.tokens
        };
        all.iter().find(same)?["least_share"].as_f64()
    };
    let worse = |r: &Row| {
        let (least, best) = (known(r)?, r.measured.share().max());
        let place = format!("{} by {} threads at {} tokens", r.phase, r.threads, r.context);
        (best < least).then(|| format!("{place}: {}, expected at least {}", percent(best), percent(least)))
    };
    rows.iter().filter_map(worse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Run;

    fn noisy(seconds: &[f64]) -> Row {
        let limit = Step { memory_seconds: 1.0, ..Step::default() };
        let runs = seconds.iter().map(|s| Run { seconds: *s, limit }).collect();
        Row { phase: "decode", threads: 1, context: 128, measured: Measured { tokens: 1, runs } }
    }

    fn row(seconds: f64) -> Row {
        noisy(&[seconds])
    }

    #[test]
    fn a_smaller_share_is_a_regression() {
        let before = json!({"rows": [row(2.0).json(10)]});
        assert!(regressions(&before, &[row(2.1)]).is_empty());
        assert_eq!(regressions(&before, &[row(3.0)]).len(), 1);
        let other = Row { context: 256, ..row(9.0) };
        assert!(regressions(&before, &[other]).is_empty());
    }

    #[test]
    fn noise_is_none() {
        let before = json!({"rows": [noisy(&[2.0, 2.1, 3.0]).json(0)]});
        assert!(regressions(&before, &[noisy(&[2.9, 4.0, 5.0])]).is_empty());
        assert_eq!(regressions(&before, &[noisy(&[3.1, 4.0, 5.0])]).len(), 1);
    }

    #[test]
    fn reports_that_are_none_are_refused() {
        for (text, field) in [("{\"rows\": 1}", "`rows`"), ("{\"rows\": [{}]}", "`rows[0].least_share`"), ("[", "EOF")]
        {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), text).unwrap();
            let refused = read_report(file.path()).unwrap_err().to_string();
            assert!(refused.contains(field), "{refused}");
        }
    }
}
