//! `bench`: how fast prompts are read and tokens written, and how near that is to what the memory can do.

use super::generate::rate;
use super::{Failure, print_json, stdout_failed};
use crate::{Generator, Pool, Program, Rng, Sampling, Session};
use clap::Args;
use hadal_types::Sym;
use serde_json::json;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Arguments of `bench`.
#[derive(Args)]
#[command(after_help = "Example:
  ./model bench --prompt-len 128 -n 64 --threads 2 --json

The prompt is random tokens. Each figure is the best of --repeat runs. The share of read bandwidth compares the weight
bytes a token needs with a plain sum over memory, by as many threads, measured just before.")]
pub struct BenchArgs {
    /// Tokens of the prompt
    #[arg(long, value_name = "N", default_value_t = 128)]
    prompt_len: usize,
    /// Tokens to generate
    #[arg(short, long, value_name = "N", default_value_t = 64)]
    n: usize,
    /// Runs, of which the best counts
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,
    /// Threads, 0 for one per core
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = super::threads())]
    threads: usize,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(program: Arc<Program>, args: &BenchArgs, started: Instant) -> Result<(), Failure> {
    let model = program.manifest().model.clone();
    if args.prompt_len == 0 || args.prompt_len as u64 + args.n as u64 > model.max_context {
        let max = model.max_context;
        return Err(Failure::Usage(format!("--prompt-len (at least 1) and -n must fit the context of {max} together")));
    }
    let pool = Pool::new(args.threads);
    let threads = pool.threads();
    let loaded = started.elapsed();
    let bandwidth = read_bandwidth(threads);

    let mut generator = Generator::new(Session::new(program.clone(), pool)?, Sampling::greedy())?;
    generator.ignore_stop_tokens();
    let mut rng = Rng::new(1);
    let prompt: Vec<u32> = (0..args.prompt_len).map(|_| (rng.next_u64() % model.vocab) as u32).collect();
    let (mut prefill, mut first, mut decode) = (Duration::MAX, Duration::MAX, Duration::MAX);
    let mut cold = None;
    for _ in 0..args.repeat {
        generator.rewind(0)?;
        let start = Instant::now();
        generator.prompt(&prompt)?;
        prefill = prefill.min(start.elapsed());
        generator.next_token()?;
        first = first.min(start.elapsed());
        cold.get_or_insert(start.elapsed());
        let start = Instant::now();
        for _ in 1..args.n {
            generator.next_token()?;
        }
        decode = decode.min(start.elapsed());
    }

    let decoded = args.n.saturating_sub(1);
    let decode_rate = rate(decoded, decode);
    // The version that the first decoded token takes.
    let entry = program.manifest().entry("decode");
    let at = |sym: Sym| if sym == Sym::P { args.prompt_len as i64 } else { 1 };
    let values = entry.map(|e| e.symbols.iter().map(|r| at(r.sym)).collect::<Vec<_>>());
    let version = entry.zip(values).and_then(|(e, v)| Some(&e.versions[e.version_for(&v)?]));
    let bytes = version.and_then(|e| e.weight_bytes_read);
    let weights_rate = bytes.zip(decode_rate).map(|(b, r)| b as f64 * r);
    let share = weights_rate.map(|r| r / bandwidth);
    let flops_rate = version.and_then(|e| e.flops).zip(decode_rate).map(|(f, r)| f as f64 * r);
    if args.json {
        return print_json(&json!({
            "model": model.name,
            "threads": threads,
            "prompt_tokens": args.prompt_len,
            "generated_tokens": args.n,
            "load_seconds": loaded.as_secs_f64(),
            "prefill_seconds": prefill.as_secs_f64(),
            "prefill_tokens_per_second": rate(args.prompt_len, prefill),
            "first_token_seconds": first.as_secs_f64(),
            "first_token_seconds_cold": cold.unwrap_or_default().as_secs_f64(),
            "decode_tokens_per_second": decode_rate,
            "decode_flops_per_second": flops_rate,
            "weight_bytes_per_token": bytes,
            "weight_bytes_per_second": weights_rate,
            "read_bandwidth": bandwidth,
            "share_of_read_bandwidth": share,
        }));
    }
    let mut out = std::io::stdout().lock();
    let show = |x: Option<f64>| x.map_or("-".to_string(), |x| format!("{x:.1}"));
    let ms = |d: Duration| d.as_secs_f64() * 1e3;
    let gb = |x: Option<f64>| x.map_or("-".to_string(), |x| format!("{:.2} GB/s", x / 1e9));
    let lines = [
        ("model", format!("{}, {threads} threads", model.name)),
        (
            "prefill",
            format!(
                "{} tokens/s ({} tokens in {:.2} ms)",
                show(rate(args.prompt_len, prefill)),
                args.prompt_len,
                ms(prefill)
            ),
        ),
        (
            "first token",
            format!(
                "{:.2} ms after the prompt is given ({:.2} ms the first time)",
                ms(first),
                ms(cold.unwrap_or_default())
            ),
        ),
        ("decode", format!("{} tokens/s ({decoded} tokens in {:.2} ms)", show(decode_rate), ms(decode))),
        (
            "weights read",
            format!("{} bytes a token, {}", bytes.map_or("-".to_string(), |b| b.to_string()), gb(weights_rate)),
        ),
        (
            "bandwidth",
            format!("{} by {threads} threads, of which {} % used", gb(Some(bandwidth)), show(share.map(|s| s * 100.0))),
        ),
    ];
    for (name, value) in lines {
        writeln!(out, "{name:<14}{value}").map_err(stdout_failed)?;
    }
    Ok(())
}

/// Bytes a second that `threads` threads can read from memory: the best of several sums over buffers larger than any
/// cache.
fn read_bandwidth(threads: usize) -> f64 {
    const WORDS: usize = (256 << 20) / 8;
    let each = (WORDS / threads).max(1 << 20);
    let gate = std::sync::Barrier::new(threads);
    let gate = &gate;
    let best = std::thread::scope(|scope| {
        let sum_up = move || {
            let words: Vec<u64> = (0..each as u64).collect();
            let mut best = Duration::MAX;
            for _ in 0..4 {
                gate.wait();
                let start = Instant::now();
                // Eight sums side by side, so that additions do not wait for each other.
                let mut sums = [0u64; 8];
                for chunk in words.chunks_exact(8) {
                    sums.iter_mut().zip(chunk).for_each(|(s, w)| *s = s.wrapping_add(*w));
                }
                std::hint::black_box(sums);
                gate.wait();
                best = best.min(start.elapsed());
            }
            best
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(sum_up)).collect();
        workers.into_iter().filter_map(|w| w.join().ok()).max().unwrap_or(Duration::MAX)
    });
    (each * 8 * threads) as f64 / best.as_secs_f64()
}
