//! Speed of compiled models: tokens a second of prefill and decode, and how near that is to what the machine can do.
//!
//! `cargo run --release -p hadal-tests --bin bench-models` measures the demo and a checkpoint of random numbers in the shape
//! of R1-Distill-Qwen-1.5B, which is written to a temporary folder (3.6 GB) and deleted afterwards. Decode is held
//! against the bytes a second that memory can be read at, prefill against the multiplications that 128-bit vectors can
//! do; both are measured in the same run, by as many threads.

use clap::Parser;
use hadal::driver::build_model;
use hadal::{Input, Options};
use hadal_models::stats::cost;
use hadal_runtime::{Generator, Program, Sampling};
use hadal_tests::machine::{fma_peak, read_bandwidth};
use hadal_tests::random_checkpoint::{Stored, write};
use hadal_tests::{Numbers, fixture, load, session};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

#[derive(Parser)]
#[command(
    about = "Measures compiled models against the machine",
    after_help = "Example: bench-models --demo-only --json"
)]
struct Args {
    /// Leave out the large model.
    #[arg(long)]
    demo_only: bool,
    /// Measure the checkpoint in this folder instead.
    #[arg(long)]
    checkpoint: Option<PathBuf>,
    /// Tokens of the prompt.
    #[arg(long, default_value_t = 256)]
    prompt_len: usize,
    /// Tokens to generate.
    #[arg(short, default_value_t = 32)]
    n: usize,
    /// Runs, of which the one in the middle counts.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Numbers of threads.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2])]
    threads: Vec<usize>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// What the machine can do with a number of threads.
struct Machine {
    threads: usize,
    bandwidth: f64,
    flops: f64,
}

fn main() -> Result<()> {
    let args = Args::parse();
    if cfg!(debug_assertions) {
        eprintln!("this is a development build: machine peaks and the runtime are slower than in a release build");
    }
    let of = |threads: &usize| Machine {
        threads: *threads,
        bandwidth: read_bandwidth(*threads, args.runs),
        flops: fma_peak(*threads, args.runs),
    };
    let machines: Vec<Machine> = args.threads.iter().map(of).collect();
    let mut rows = Vec::new();
    match &args.checkpoint {
        Some(folder) => rows.extend(measure(&Input::open(folder)?, &args, &machines)?),
        None => {
            rows.extend(measure(&Input::demo()?, &args, &machines)?);
            if !args.demo_only {
                let dir = tempfile::tempdir()?;
                rows.extend(measure(&random_model(dir.path(), "deepseek-r1-distill-qwen-1.5b")?, &args, &machines)?);
            }
        }
    }
    match args.json {
        true => {
            println!("{:#}", json!({"machine": machines.iter().map(of_machine).collect::<Vec<_>>(), "models": rows}))
        }
        false => print(&machines, &rows),
    }
    Ok(())
}

fn of_machine(m: &Machine) -> Value {
    json!({"threads": m.threads, "read_bytes_per_second": m.bandwidth, "fma128_flops_per_second": m.flops})
}

/// Random numbers in the shape of a published configuration.
fn random_model(dir: &Path, name: &str) -> Result<Input> {
    let config = std::fs::read(fixture("configs").join(format!("{name}.json")))?;
    let folder = dir.join(format!("random-{name}"));
    let bytes = write(&folder, &serde_json::from_slice(&config)?, Stored::Announced, 1)?;
    eprintln!("wrote {:.2} GB of random weights", bytes as f64 / 1e9);
    Ok(Input::open(&folder)?)
}

fn measure(input: &Input, args: &Args, machines: &[Machine]) -> Result<Vec<Value>> {
    let options = Options { external_weights: true, ..Options::default() };
    let model = build_model(input, &options)?;
    let start = Instant::now();
    let program = load(input, &options)?;
    eprintln!("compiled {} in {:.1} s", input.name, start.elapsed().as_secs_f64());
    let chunk = args.prompt_len.min(program.manifest().model.max_chunk as usize);
    let decode = cost(&model.module, "decode", 1, args.prompt_len + args.n / 2).ok_or("no decode")?;
    let prefill = cost(&model.module, "prefill", chunk, 0).ok_or("no prefill")?;
    machines
        .iter()
        .map(|m| {
            let (prefill_rate, decode_rate) = rates(&program, args, m.threads)?;
            Ok(json!({
                "model": input.name,
                "threads": m.threads,
                "prompt_tokens": args.prompt_len,
                "prefill_tokens_per_second": prefill_rate,
                "prefill_flops_per_token": prefill.flops / chunk as f64,
                "prefill_share_of_fma128": prefill_rate * prefill.flops / chunk as f64 / m.flops,
                "decode_tokens_per_second": decode_rate,
                "decode_bytes_per_token": decode.bytes(),
                "decode_share_of_bandwidth": decode_rate * decode.bytes() / m.bandwidth,
            }))
        })
        .collect()
}

/// Tokens a second of prefill and decode, each the run in the middle.
fn rates(program: &Arc<Program>, args: &Args, threads: usize) -> Result<(f64, f64)> {
    let mut generator = Generator::new(session(program, threads), Sampling::greedy())?;
    generator.ignore_stop_tokens();
    let mut numbers = Numbers(1);
    let vocab = program.manifest().model.vocab as usize;
    let prompt: Vec<u32> = (0..args.prompt_len).map(|_| numbers.below(vocab) as u32).collect();
    let (mut prefill, mut decode) = (Vec::new(), Vec::new());
    // The first run reads the weights from disk.
    for run in 0..=args.runs {
        generator.rewind(0).expect("all can be taken back");
        let start = Instant::now();
        generator.prompt(&prompt)?;
        let prompted = start.elapsed().as_secs_f64();
        generator.next_token()?;
        let start = Instant::now();
        for _ in 0..args.n {
            generator.next_token()?;
        }
        if run > 0 {
            prefill.push(prompt.len() as f64 / prompted);
            decode.push(args.n as f64 / start.elapsed().as_secs_f64());
        }
    }
    let middle = |mut v: Vec<f64>| {
        v.sort_by(f64::total_cmp);
        v[v.len() / 2]
    };
    Ok((middle(prefill), middle(decode)))
}

fn print(machines: &[Machine], rows: &[Value]) {
    for m in machines {
        let (bandwidth, flops) = (m.bandwidth / 1e9, m.flops / 1e9);
        println!("{} threads: {bandwidth:.1} GB/s read, {flops:.1} GFLOP/s in 128-bit FMA", m.threads);
    }
    println!("\n| model | threads | prefill tok/s | of FMA peak | decode tok/s | of read bandwidth |");
    println!("|---|---|---|---|---|---|");
    for r in rows {
        let number = |key: &str| r[key].as_f64().unwrap_or(0.0);
        println!(
            "| {} | {} | {:.1} | {:.1} % | {:.1} | {:.1} % |",
            r["model"].as_str().unwrap_or(""),
            r["threads"],
            number("prefill_tokens_per_second"),
            100.0 * number("prefill_share_of_fma128"),
            number("decode_tokens_per_second"),
            100.0 * number("decode_share_of_bandwidth"),
        );
    }
}
