//! `hadal bench`: what a compiled model takes, beside what the machine's limits, measured in the same run, would allow.

use crate::commands::compile::write;
use crate::driver::{Compiled, Options, compile, target};
use crate::failure::{Failure, read_text};
use crate::input::Input;
use crate::measure::{KernelRun, Limits, Measured, Meter, Rates};
use crate::options::{AdapterArgs, CompileArgs};
use crate::probe::{probe, processor};
use crate::random_checkpoint::write_for;
use crate::roofline::Step;
use crate::units::{self, bytes, count, percent, seconds};
use hadal_ir::target::{Target, TargetKind};
use hadal_models::stats::stats;
use hadal_runtime::{DeviceChoice, Program};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Measure a model against this machine.
///
/// Compiles for the processor at hand into a file in the temporary folder, measures what the machine can do, and then
/// what prompts and tokens take at each context. The limit of a call is its roofline: every launch takes the longer of
/// its operations at the peak of the formats it multiplies and its bytes at read bandwidth, which is measured between
/// calls where these read far more than caches hold. Without PATH it measures the model that comes with hadal.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  hadal bench\n  hadal bench DeepSeek-R1-Distill-Qwen-1.5B --contexts 128,2k,16k \
    --max-context 17k --threads 1,2\n  hadal bench deepseek-v2-lite/config.json --layers 6 --activations bf16\n  hadal bench CHECKPOINT --json > before.json; …; hadal bench CHECKPOINT --against \
    before.json\n\nContexts are not run but made up: what a call takes does not depend on what it remembers. For each \
    launch on a line of time, see `FILE bench --trace FILE`.")]
pub struct Args {
    /// A checkpoint folder or GGUF file, or a bare config.json, for which random weights are made in the temporary
    /// folder [default: the model that comes with hadal].
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
    /// What runs it: with `--target sm_90a` the first GPU, or the one of a number as `cuda:1`.
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    device: DeviceChoice,
    /// Also show where the time of one more run goes, by kernel, beside the limit of its launches.
    #[arg(long)]
    kernels: bool,
    /// A report of an earlier run (--json) of the same program on the same processor: fail where even the fastest run
    /// of a call reaches less of its limit than the `least_share` that the report has for it.
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
            "kernels": self.measured.kernels.iter().map(kernel_json).collect::<Vec<_>>(),
        })
    }

    fn place(&self) -> String {
        place(self.phase, self.threads, self.context, self.measured.tokens)
    }
}

fn kernel_json(kernel: &KernelRun) -> Value {
    json!({
        "name": kernel.name,
        "place": kernel.place,
        "launches": kernel.limit.launches,
        "seconds": kernel.seconds,
        "bytes": kernel.limit.bytes(),
        "flops": kernel.limit.flops,
        "limit_seconds": kernel.limit.seconds(),
    })
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    if cfg!(debug_assertions) {
        eprintln!("warning: this is a development build; `cargo build --release` measures what users get");
    }
    let before = args.against.as_deref().map(read_report).transpose()?;
    let mut input = match &args.path {
        Some(path) => Input::open(path)?,
        None => Input::demo()?,
    };
    let random = match &args.path {
        Some(path) if input.checkpoint.is_none() => Some(random_weights(path, args.layers)?),
        _ => None,
    };
    if let Some(path) = random.as_ref().map(tempfile::TempDir::path).or(args.path.as_deref()) {
        input = Input { name: input.name, ..args.adapter.open(path)? };
    }
    if let (Some(n), None) = (args.layers, &random) {
        return Err(Failure::usage(format!("--layers {n}: only for a bare configuration")));
    }
    let begun = Instant::now();
    let options = args.compile.options().here();
    let compiled = compile(&input, &options)?;
    args.compile.note(&compiled.model);
    let program = as_a_file(&compiled, &input, &args.device)?;
    let subject = subject(&input.name, &compiled, &program, &options);
    before.as_ref().map_or(Ok(()), |report| same_subject(report, &subject))?;
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
    if program.device().is_some() {
        threads = vec![1];
    } else if threads.is_empty() {
        threads.extend([1, cores]);
        threads.dedup();
    }

    let (mut machines, mut rows) = (Vec::new(), Vec::new());
    for threads in threads {
        let described = program.device().map(|_| target(&options.target)).transpose()?;
        let measured = if described.is_none() { Some(probe(threads.min(cores), &|_| {})?) } else { None };
        let Some(rates) = described.as_ref().map(Rates::Described).or(measured.as_ref().map(Rates::Measured)) else {
            continue;
        };
        let meter = Meter::new(program.clone(), threads, args.repeat).by_kernel(args.kernels);
        let limits = Limits { compiled: &compiled, rates };
        for context in contexts.iter().copied() {
            match program.device() {
                Some(device) => eprintln!("measuring {} at {context} tokens", device.name()),
                None => eprintln!("measuring {threads} threads at {context} tokens"),
            }
            let prompt = meter.prompt(context, args.prompt_len, &limits)?;
            rows.extend(prompt.map(|measured| Row { phase: "prompt", threads, context, measured }));
            let measured = meter.decode(context, args.n, &limits)?;
            rows.push(Row { phase: "decode", threads, context, measured });
        }
        machines.push(rates.target());
    }

    let compared = before.as_ref().map(|report| compare(report, &rows));
    let mut report: Map<String, Value> = subject.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let machine = |t: &Target| json!({"threads": t.threads, "read_bytes_per_second": t.bandwidth, "flops": t.flops});
    report.insert("machines".to_owned(), machines.iter().map(machine).collect());
    report.insert("rows".to_owned(), rows.iter().map(|r| r.json(args.tolerance)).collect());
    let slower = compared.as_ref().map(|c| c.slower.clone()).unwrap_or_default();
    report.insert("regressions".to_owned(), slower.into());
    match args.json {
        true => say!("{:#}", Value::Object(report))?,
        false => print(&machines, &rows)?,
    }
    compared.map_or(Ok(()), |c| c.outcome(rows.len()))
}

fn print(machines: &[Target], rows: &[Row]) -> Result<(), Failure> {
    for t in machines {
        let peaks: Vec<String> = t.flops.list().iter().map(|(name, x)| format!("{name} {}", count(*x))).collect();
        let who = match t.kind {
            TargetKind::Cpu => format!("{} threads", t.threads),
            _ => format!("{}, as described", t.name),
        };
        say!("{who}: reads {}/s, multiplies {} FLOP/s", bytes(t.bandwidth), peaks.join(", "))?;
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
    say!("{}", super::table(&lines))?;
    for row in rows.iter().filter(|r| !r.measured.kernels.is_empty()) {
        say!("\n{}:\n{}", row.place(), kernel_table(&row.measured.kernels))?;
    }
    Ok(())
}

/// The kernels of a call; those that take less than a hundredth of it together.
fn kernel_table(kernels: &[KernelRun]) -> String {
    let total: f64 = kernels.iter().map(|k| k.seconds).sum();
    let (shown, rest): (Vec<_>, Vec<_>) = kernels.iter().partition(|k| k.seconds >= 0.01 * total);
    let together = KernelRun {
        name: format!("{} more", rest.len()),
        place: String::new(),
        seconds: rest.iter().map(|k| k.seconds).sum(),
        limit: rest.iter().map(|k| k.limit).sum(),
    };
    let head = ["a call", "", "launches", "GB/s", "GFLOP/s", "of the limit"].map(str::to_owned);
    let mut lines = vec![head];
    let mut names = vec![("kernel", "place")];
    for k in shown.into_iter().chain((!rest.is_empty()).then_some(&together)) {
        names.push((&k.name, &k.place));
        lines.push([
            seconds(k.seconds),
            percent(k.seconds / total),
            k.limit.launches.to_string(),
            format!("{:.2}", k.limit.bytes() / k.seconds / 1e9),
            format!("{:.2}", k.limit.flops / k.seconds / 1e9),
            percent(k.limit.seconds() / k.seconds),
        ]);
    }
    let width = names.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let numbers = super::table(&lines);
    let joined = numbers.lines().zip(names).map(|(line, (name, place))| format!("  {line}  {name:<width$}  {place}"));
    joined.map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// The program in a compiled file, weights laid out as its users have them. The file is mapped and needs no name any
/// more.
fn as_a_file(compiled: &Compiled, input: &Input, device: &DeviceChoice) -> Result<Arc<Program>, Failure> {
    let folder = tempfile::tempdir().map_err(no_folder)?;
    let path = folder.path().join("model");
    write(compiled, input, &path)?;
    Ok(Program::open_for(&path, device, &mut |_, _| {})?)
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

/// A report of an earlier run, whose rows say what is asked of them.
fn read_report(path: &Path) -> Result<Value, Failure> {
    let fault = |e: String| Failure::input(format!("{}: {e}", path.display()));
    let text = read_text(path)?;
    let report: Value = serde_json::from_str(&text).map_err(|e| fault(e.to_string()))?;
    let expected = "expected what `hadal bench --json` prints";
    let rows = report["rows"].as_array().ok_or_else(|| fault(format!("`rows` is no list, {expected}")))?;
    let fields = |i: usize| ["threads", "context", "tokens", "least_share"].map(|field| (i, field));
    match (0..rows.len()).flat_map(fields).find(|(i, field)| !rows[*i][*field].is_number()) {
        None => Ok(report),
        Some((i, field)) => Err(fault(format!("`rows[{i}].{field}` is no number, {expected}"))),
    }
}

/// What a report is of. Shares of limits compare for the same program on the same processor.
type Subject = [(&'static str, Value); 6];

fn subject(name: &str, compiled: &Compiled, program: &Program, options: &Options) -> Subject {
    [
        ("model", json!(name)),
        ("weight_bytes", json!(stats(&compiled.model).total_bytes())),
        ("activations", json!(format!("{:?}", options.activations).to_lowercase())),
        ("states", json!(options.state_dtype.to_string())),
        ("level", json!(compiled.levels.first().map_or("", |l| l.cpu.name))),
        ("processor", json!(program.device().map_or_else(processor, |d| d.name()))),
    ]
}

fn same_subject(before: &Value, now: &Subject) -> Result<(), Failure> {
    let other = |(name, now): &(&str, Value)| {
        (before[*name] != *now).then(|| match &before[*name] {
            Value::Null => format!("it does not say its `{name}`"),
            then => format!("`{name}` was {then} and is {now}"),
        })
    };
    match &now.iter().filter_map(other).collect::<Vec<_>>()[..] {
        [] => Ok(()),
        all => Err(Failure::input(format!("the report given by --against is of something else: {}", all.join("; ")))
            .help("shares of limits compare for the same program on the same processor")),
    }
}

/// An earlier report beside what is measured now, call by call.
#[derive(Default)]
struct Compared {
    /// Calls that are slower. Shares are compared, as the machine's limits differ from run to run, and so do the times;
    /// and the best of now with the least of then, as both are noisy.
    slower: Vec<String>,
    /// Calls that the report does not have.
    new: Vec<String>,
    /// Calls that only the report has.
    gone: Vec<String>,
}

fn compare(before: &Value, rows: &[Row]) -> Compared {
    let mut out = Compared::default();
    let size = |row: &Value, field: &str| row[field].as_u64().unwrap_or(0) as usize;
    let known = |row: &Value| {
        let phase = row["phase"].as_str().unwrap_or_default();
        let place = place(phase, size(row, "threads"), size(row, "context"), size(row, "tokens"));
        (place, row["least_share"].as_f64().unwrap_or(f64::NAN))
    };
    let mut then: BTreeMap<String, f64> = before["rows"].as_array().into_iter().flatten().map(known).collect();
    for row in rows {
        let (place, best) = (row.place(), row.measured.share().max());
        match then.remove(&place) {
            None => out.new.push(place),
            Some(least) if best >= least => {}
            Some(least) => {
                out.slower.push(format!("{place}: {}, expected at least {}", percent(best), percent(least)));
            }
        }
    }
    out.gone.extend(then.into_keys());
    out
}

impl Compared {
    /// Says what could not be compared of so many calls, and fails where one is slower.
    fn outcome(&self, calls: usize) -> Result<(), Failure> {
        for (what, calls) in [("not in the report", &self.new), ("in the report only", &self.gone)] {
            if !calls.is_empty() {
                eprintln!("note: {what}, so not compared: {}", calls.join("; "));
            }
        }
        match &self.slower[..] {
            [] if self.new.len() == calls => {
                Err(Failure::failed("the report given by --against has none of these calls"))
            }
            [] => Ok(()),
            all => Err(Failure::failed(format!("slower than before: {}", all.join("; ")))),
        }
    }
}

/// Which call it is, for people.
fn place(phase: &str, threads: usize, context: usize, tokens: usize) -> String {
    let threads = if threads == 1 { "1 thread".to_owned() } else { format!("{threads} threads") };
    match phase {
        "decode" => format!("decode by {threads} at {context} tokens"),
        _ => format!("{phase} of {tokens} by {threads} at {context} tokens"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Run;

    fn noisy(seconds: &[f64]) -> Row {
        let limit = Step { memory_seconds: 1.0, ..Step::default() };
        let runs = seconds.iter().map(|s| Run { seconds: *s, limit }).collect();
        Row { phase: "decode", threads: 1, context: 128, measured: Measured { tokens: 1, runs, kernels: vec![] } }
    }

    fn row(seconds: f64) -> Row {
        noisy(&[seconds])
    }

    #[test]
    fn a_smaller_share_is_a_regression() {
        let before = json!({"rows": [row(2.0).json(10)]});
        assert!(compare(&before, &[row(2.1)]).slower.is_empty());
        let compared = compare(&before, &[row(3.0)]);
        assert_eq!(compared.slower, ["decode by 1 thread at 128 tokens: 33 %, expected at least 45 %"]);
        let failure = compared.outcome(1).unwrap_err();
        assert_eq!(failure.code, crate::failure::Code::Failed);
        assert!(failure.to_string().contains("decode by 1 thread at 128 tokens"));
    }

    #[test]
    fn calls_that_only_one_report_has_are_told() {
        let before = json!({"rows": [row(2.0).json(10)]});
        let other = || Row { context: 256, ..row(9.0) };
        let compared = compare(&before, &[other()]);
        assert!(compared.slower.is_empty() && compared.outcome(1).is_err());
        assert_eq!(compared.new, ["decode by 1 thread at 256 tokens"]);
        assert_eq!(compared.gone, ["decode by 1 thread at 128 tokens"]);
        let compared = compare(&before, &[row(2.0), other()]);
        assert!(compared.outcome(2).is_ok() && compared.gone.is_empty());
        let threads = Row { threads: 2, ..row(2.0) };
        assert_eq!(compare(&before, &[threads]).new, ["decode by 2 threads at 128 tokens"]);
    }

    #[test]
    fn a_report_of_something_else_is_refused() {
        let input = Input::demo().unwrap();
        let options = Options::default().here();
        let compiled = compile(&input, &options).unwrap();
        let program = as_a_file(&compiled, &input, &DeviceChoice::Cpu).unwrap();
        let subject = subject(&input.name, &compiled, &program, &options);
        let report: Map<String, Value> =
            subject.iter().map(|(name, value)| (name.to_string(), value.clone())).collect();
        same_subject(&report.clone().into(), &subject).unwrap();
        for (name, _) in &subject {
            let mut other = report.clone();
            other.insert(name.to_string(), json!("another"));
            let refused = same_subject(&other.clone().into(), &subject).unwrap_err();
            assert_eq!(refused.code, crate::failure::Code::BadInput);
            assert!(refused.to_string().contains(&format!("`{name}` was \"another\"")), "{refused}");
            other.remove(*name);
            assert!(same_subject(&other.into(), &subject).is_err());
        }
    }

    #[test]
    fn noise_is_none() {
        let before = json!({"rows": [noisy(&[2.0, 2.1, 3.0]).json(0)]});
        assert!(compare(&before, &[noisy(&[2.9, 4.0, 5.0])]).slower.is_empty());
        assert_eq!(compare(&before, &[noisy(&[3.1, 4.0, 5.0])]).slower.len(), 1);
    }

    #[test]
    fn kernels_that_take_little_are_one_row() {
        let kernel = |name: &str, seconds| {
            let limit = Step { memory_seconds: 0.5, weight_bytes: 2e9, flops: 1e9, launches: 1, ..Step::default() };
            KernelRun { name: name.to_owned(), place: "layers.0".to_owned(), seconds, limit }
        };
        let table = kernel_table(&[kernel("large", 1.0), kernel("small", 1e-3), kernel("tiny", 1e-4)]);
        let rows: Vec<Vec<&str>> = table.lines().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(rows.len(), 3, "{table}");
        assert_eq!(rows[1], ["1.00", "s", "100", "%", "1", "2.00", "1.00", "50", "%", "large", "layers.0"]);
        assert_eq!((rows[2][4], &rows[2][9..]), ("2", &["2", "more"][..]), "{table}");
    }

    #[test]
    fn reports_that_are_none_are_refused() {
        for (text, field) in [("{\"rows\": 1}", "`rows`"), ("{\"rows\": [{}]}", "`rows[0].threads`"), ("[", "EOF")] {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), text).unwrap();
            let refused = read_report(file.path()).unwrap_err().to_string();
            assert!(refused.contains(field), "{refused}");
        }
    }
}
