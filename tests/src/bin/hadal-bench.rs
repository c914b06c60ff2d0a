//! Measures a model as the peers in `tests/peers` are measured: the same options, the same lines of JSON.
//!
//! `hadal-bench MODEL --threads 1 --prefill 512 --ctx 128,2048` compiles for this machine and prints rates;
//! `hadal-bench MODEL --threads 1 --ttft 128` starts a compiled file, which is kept in the temporary folder, and ends with
//! its first token.

use clap::Parser;
use hadal::measure::Meter;
use hadal::{Input, Options, compile};
use hadal_models::Activations;
use hadal_models::checkpoint::WeightOnly;
use hadal_types::DType;
use serde_json::json;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Instant, SystemTime};

#[derive(Parser)]
#[command(about = "Measures a model as tests/peers measures others")]
struct Args {
    /// A checkpoint folder or GGUF file.
    model: PathBuf,
    /// Threads.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// What products read, by the name that the formats of files have: f32 is exact, bf16 and f16 take activations of
    /// bf16, all others those of 8 bits; int8 and int4 round the weights of a folder.
    #[arg(long, default_value = "bf16")]
    dtype: String,
    /// Tokens of the prompt, 0 for none.
    #[arg(long, default_value_t = 512)]
    prefill: usize,
    /// Contexts at which tokens are generated.
    #[arg(long, value_delimiter = ',', default_value = "128,2048")]
    ctx: Vec<usize>,
    /// Tokens of a sample.
    #[arg(long = "gen", default_value_t = 16)]
    tokens: u32,
    /// Samples.
    #[arg(long, default_value_t = 3)]
    reps: u32,
    /// Starts a file instead, with a prompt of so many tokens.
    #[arg(long, default_value_t = 0)]
    ttft: usize,
}

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

fn line(metric: &str, value: f64, at: Option<(&str, usize)>) {
    let mut line = json!({"metric": metric, "value": value});
    if let Some((name, n)) = at {
        line[name] = n.into();
    }
    println!("{line}");
}

fn main() -> Result {
    let begun = Instant::now();
    let args = Args::parse();
    let file = compiled(&args)?;
    if args.ttft > 0 {
        // The same process goes on, so that whoever started it waits for all of it.
        let prompt = vec!["7"; args.ttft].join(",");
        let threads = args.threads.to_string();
        let words =
            ["generate", "--tokens", &prompt, "-n", "1", "--temperature", "0", "--ignore-stop", "--threads", &threads];
        return Err(Command::new(file).args(words).exec().into());
    }
    let meter = Meter::open(&file, args.threads, args.reps)?;
    line("load_s", begun.elapsed().as_secs_f64(), None);
    if args.prefill > 0
        && let Some((n, took)) = meter.prompt(args.prefill, args.prefill)?
    {
        took.runs().for_each(|s| line("prefill_tps", n as f64 / s, Some(("n", n))));
    }
    for ctx in args.ctx.iter().copied().filter(|c| *c > 0) {
        meter.decode(ctx, args.tokens)?.runs().for_each(|s| line("decode_tps", 1.0 / s, Some(("ctx", ctx))));
    }
    Ok(())
}

/// A compiled file for the arguments, made unless it is there. It reads the weights where they are.
fn compiled(args: &Args) -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let longest = args.ctx.iter().map(|c| c + args.tokens as usize).chain([args.prefill, args.ttft + 1]).max();
    let longest = longest.unwrap_or(0).next_power_of_two().max(1024);
    let stem = args.model.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let stamp = stamp(&args.model)?.max(stamp(&program)?);
    let dir = std::env::temp_dir().join("hadal-bench");
    let file = dir.join(format!("{stem}-{}-{longest}-{stamp}", args.dtype.replace([':', '/'], "-")));
    if file.exists() {
        return Ok(file);
    }
    std::fs::create_dir_all(&dir)?;
    let folder = args.model.is_dir();
    let (activations, weights) = match args.dtype.trim_start_matches("gguf:") {
        "f32" => (Activations::F32, None),
        "bf16" | "f16" => (Activations::Bf16, None),
        "int8" | "q8_0" if folder => (Activations::Int8, Some(DType::I8)),
        "int4" | "q4_k_m" | "q4_1" if folder => (Activations::Int8, Some(DType::I4)),
        _ => (Activations::Int8, None),
    };
    let input = Input::open(&args.model)?.quantized(weights.map(|codes| WeightOnly { codes, group: 128 }.into()))?;
    let options = Options { activations, external_weights: true, max_context: Some(longest), ..Options::default() };
    compile(&input, &options.here())?.write(&input, &file, &mut |_| {})?;
    Ok(file)
}

/// When a file, or the newest of a folder, was written.
fn stamp(path: &Path) -> Result<u64> {
    let newest = match path.is_dir() {
        true => std::fs::read_dir(path)?.filter_map(|e| e.ok()?.metadata().ok()?.modified().ok()).max(),
        false => Some(std::fs::metadata(path)?.modified()?),
    };
    Ok(newest.unwrap_or(SystemTime::UNIX_EPOCH).duration_since(SystemTime::UNIX_EPOCH)?.as_secs())
}
