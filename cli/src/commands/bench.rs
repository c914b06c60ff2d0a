//! `hadal bench`: what a compiled model takes, beside what the machine's limits, measured in the same run, would allow.

use crate::commands::compile::write;
use crate::driver::{Compiled, compile};
use crate::failure::{Failure, read_text};
use crate::input::Input;
use crate::measure::{Meter, limit};
use crate::options::{AdapterArgs, CompileArgs};
use crate::probe::{Sample, probe};
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
/// formats it multiplies and its bytes at read bandwidth. Without PATH it measures the model that comes with hadal.
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
    /// New tokens of a call.
    tokens: usize,
    /// Seconds of a call.
    seconds: Sample,
    /// What its launches would take at the machine's limits.
    limit: Step,
}

impl Row {
    fn rate(&self) -> f64 {
        self.tokens as f64 / self.seconds.median()
    }

    /// Of what the machine allows.
    fn share(&self) -> f64 {
        self.limit.seconds() / self.seconds.median()
    }

    fn json(&self, tolerance: u32) -> Value {
        let least = self.limit.seconds() / self.seconds.max() * (1.0 - f64::from(tolerance) / 100.0);
        json!({
            "phase": self.phase,
            "threads": self.threads,
            "context": self.context,
            "tokens": self.tokens,
            "seconds": {"min": self.seconds.min(), "median": self.seconds.median(), "max": self.seconds.max()},
            "tokens_per_second": self.rate(),
            "bytes": self.limit.bytes(),
            "flops": self.limit.flops,
            "limit_seconds": self.limit.seconds(),
            "bound": self.limit.bound(),
            "share_of_limit": self.share(),
            "least_share": least,
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
        let target = machine.target("here");
        let meter = Meter::new(program.clone(), threads, args.repeat);
        for context in contexts.iter().copied() {
            eprintln!("measuring {threads} threads at {context} tokens");
            if let Some((tokens, seconds)) = meter.prompt(context, args.prompt_len)? {
                let limit = limit(&compiled, &target, "prefill", context, tokens)?;
                rows.push(Row { phase: "prompt", threads, context, tokens, seconds, limit });
            }
            let seconds = meter.decode(context, args.n)?;
            let limit = limit(&compiled, &target, "decode", context, 1)?;
            rows.push(Row { phase: "decode", threads, context, tokens: 1, seconds, limit });
        }
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
        let median = r.seconds.median();
        [
            r.phase.to_owned(),
            r.threads.to_string(),
            r.context.to_string(),
            format!("{:.1}", r.rate()),
            seconds(median),
            format!("{}/s", bytes(r.limit.bytes() / median)),
            count(r.limit.flops / median),
            r.limit.bound().to_owned(),
            percent(r.share()),
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
            b["phase"] == r.phase && b["threads"] == r.threads && b["context"] == r.context && b["tokens"] == r.tokens
        };
        all.iter().find(same)?["least_share"].as_f64()
    };
    let worse = |r: &Row| {
        let (least, best) = (known(r)?, r.limit.seconds() / r.seconds.min());
        let place = format!("{} by {} threads at {} tokens", r.phase, r.threads, r.context);
        (best < least).then(|| format!("{place}: {}, expected at least {}", percent(best), percent(least)))
    };
    rows.iter().filter_map(worse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(seconds: f64) -> Row {
        let limit = Step { memory_seconds: 1.0, ..Step::default() };
        Row { phase: "decode", threads: 1, context: 128, tokens: 1, seconds: Sample::new(vec![seconds]), limit }
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
        let noisy = |seconds: Vec<f64>| Row { seconds: Sample::new(seconds), ..row(1.0) };
        let before = json!({"rows": [noisy(vec![2.0, 2.1, 3.0]).json(0)]});
        assert!(regressions(&before, &[noisy(vec![2.9, 4.0, 5.0])]).is_empty());
        assert_eq!(regressions(&before, &[noisy(vec![3.1, 4.0, 5.0])]).len(), 1);
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
