//! Measures a model as the peers in `tests/peers` are measured: the same options, the same lines of JSON.
//!
//! `hadal-bench MODEL --threads 1 --prefill 512 --ctx 128,2048` compiles for this machine and prints rates;
//! `hadal-bench MODEL --threads 1 --ttft 128` starts a compiled file, which is kept in the temporary folder, and ends
//! with its first token. `hadal-bench CONFIG --random FOLDER` writes the checkpoint that all are measured on.

use clap::Parser;
use hadal::measure::{Limits, Measured, Meter, Rates};
use hadal::probe::probe;
use hadal::{Input, Options, compile, random_checkpoint};
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
    /// A checkpoint folder or GGUF file, or a bare configuration for --random.
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
    /// Only compiles, weights and all, and prints how long that takes and where the file is.
    #[arg(long)]
    compile: bool,
    /// Only writes random weights into a new folder.
    #[arg(long, value_name = "FOLDER")]
    random: Option<PathBuf>,
    /// Layers, for --random.
    #[arg(long)]
    layers: Option<u32>,
}

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

/// What a line says besides its value: at how many tokens it was measured, and what the machine allowed meanwhile.
type At<'a> = Option<(&'a str, usize, f64)>;

fn line(metric: &str, value: f64, at: At) {
    let mut line = json!({"metric": metric, "value": value});
    if let Some((name, n, limit)) = at {
        line[name] = n.into();
        line["limit"] = limit.into();
    }
    println!("{line}");
}

fn main() -> Result {
    let begun = Instant::now();
    let args = Args::parse();
    if let Some(dir) = &args.random {
        random_checkpoint::write_for(&args.model, args.layers, dir)?;
        return Ok(());
    }
    let input = || args.input();
    let file = args.file()?;
    if args.compile {
        // Code that is there already would say nothing of what making it takes.
        let (input, options) = (input()?, Options { cache: None, ..args.options() });
        let compiled = compile(&input, &options)?;
        for (stage, took) in &compiled.times {
            line(&format!("compile_{stage}_s"), took.as_secs_f64(), None);
        }
        compiled.write(&input, &file, &mut |_| {})?;
        line("compile_s", begun.elapsed().as_secs_f64(), None);
        println!("{}", json!({"metric": "file", "value": file}));
        return Ok(());
    }
    if !file.exists() {
        let input = input()?;
        compile(&input, &args.options())?.write(&input, &file, &mut |_| {})?;
    }
    if args.ttft > 0 {
        // The same process goes on, so that whoever started it waits for all of it.
        let prompt = vec!["7"; args.ttft].join(",");
        let threads = args.threads.to_string();
        let words =
            ["generate", "--tokens", &prompt, "-n", "1", "--temperature", "0", "--ignore-stop", "--threads", &threads];
        return Err(Command::new(file).args(words).exec().into());
    }
    let opened = Instant::now();
    let meter = Meter::open(&file, args.threads, args.reps)?;
    line("load_s", opened.elapsed().as_secs_f64(), None);
    let (compiled, machine) = (compile(&input()?, &args.options())?, probe(args.threads, &|_| {})?);
    let limits = Limits { compiled: &compiled, rates: Rates::Measured(&machine) };
    let lines = |metric: &str, name: &str, n: usize, measured: Measured| {
        measured.runs.iter().for_each(|run| {
            let limit = measured.tokens as f64 / run.limit.seconds();
            line(metric, measured.tokens as f64 / run.seconds, Some((name, n, limit)));
        });
    };
    if args.prefill > 0
        && let Some(measured) = meter.prompt(args.prefill, args.prefill, &limits)?
    {
        lines("prefill_tps", "n", measured.tokens, measured);
    }
    for ctx in args.ctx.iter().copied().filter(|c| *c > 0) {
        lines("decode_tps", "ctx", ctx, meter.decode(ctx, args.tokens, &limits)?);
    }
    Ok(())
}

impl Args {
    fn input(&self) -> Result<Input> {
        let weights = match self.dtype.as_str() {
            "int8" | "q8_0" if self.model.is_dir() => Some(DType::I8),
            "int4" | "q4_k_m" | "q4_1" if self.model.is_dir() => Some(DType::I4),
            _ => None,
        };
        Ok(Input::open(&self.model)?.quantized(weights.map(|codes| WeightOnly { codes, group: 128 }.into()))?)
    }

    /// As files are compiled where nobody says otherwise: with their weights, laid out as kernels read them.
    fn options(&self) -> Options {
        let activations = match self.dtype.trim_start_matches("gguf:") {
            "f32" => Activations::F32,
            "bf16" | "f16" => Activations::Bf16,
            _ => Activations::Int8,
        };
        Options { activations, max_context: Some(self.longest()), ..Options::default() }.here()
    }

    fn longest(&self) -> usize {
        let contexts = self.ctx.iter().map(|c| c + self.tokens as usize);
        contexts.chain([self.prefill, self.ttft + 1, 1024]).max().unwrap_or(0).next_power_of_two()
    }

    /// Where the compiled file for these arguments is, or will be.
    fn file(&self) -> Result<PathBuf> {
        let program = std::env::current_exe()?;
        let stem = self.model.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let stamp = stamp(&self.model)?.max(stamp(&program)?);
        let dir = std::env::temp_dir().join("hadal-bench");
        std::fs::create_dir_all(&dir)?;
        let dtype = self.dtype.replace([':', '/'], "-");
        Ok(dir.join(format!("{stem}-{dtype}-{}-{stamp}", self.longest())))
    }
}

/// When a file, or the newest of a folder, was written.
fn stamp(path: &Path) -> Result<u64> {
    let newest = match path.is_dir() {
        true => std::fs::read_dir(path)?.filter_map(|e| e.ok()?.metadata().ok()?.modified().ok()).max(),
        false => Some(std::fs::metadata(path)?.modified()?),
    };
    Ok(newest.unwrap_or(SystemTime::UNIX_EPOCH).duration_since(SystemTime::UNIX_EPOCH)?.as_secs())
}
