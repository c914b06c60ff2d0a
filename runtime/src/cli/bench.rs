//! `bench`: how fast prompts are read and tokens written, and how near that is to what the memory can do.

use super::generate::{parse_drafts, rate};
use super::{Failure, batch, kernels, print_json, stdout_failed};
use crate::text::Text;
use crate::{Acceptance, Drafts, Error, Generator, Pool, Program, Rng, Sampling, Session};
use clap::Args;
use hadal_types::Sym;
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Arguments of `bench`.
#[derive(Args)]
#[command(after_help = "Example:
  ./model bench --prompt-len 128 -n 64 --threads 2 --json

The prompt is random tokens, unless --prompt gives one, by which the share of drafts that are right can be told. Each figure is the best of --repeat runs. The share of read bandwidth compares the weight
bytes a token needs with a plain sum over memory, by as many threads, measured just before. Where the model drafts, the same
tokens are generated with drafts too, in turn with plain decoding. With --batch several sequences, each behind a prompt
of its own, get a token in every step, for which weights are read once.")]
pub struct BenchArgs {
    /// Tokens of the prompt
    #[arg(long, value_name = "N", default_value_t = 128)]
    prompt_len: usize,
    /// Text to continue, in place of random tokens
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["prompt_len", "batch"])]
    prompt: Option<String>,
    /// Tokens to generate
    #[arg(short, long, value_name = "N", default_value_t = 64)]
    n: usize,
    /// Tokens to draft for a step, or auto for as many as pay; 0 measures plain decoding alone
    #[arg(long, value_name = "N", default_value = "auto", value_parser = parse_drafts)]
    draft: Drafts,
    /// Runs, of which the best counts
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,
    /// Measure these numbers of sequences that share steps instead: 1,2,4,8,16
    #[arg(long, value_name = "N,…", value_delimiter = ',', conflicts_with_all = ["draft", "kernels", "trace"],
        value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1024))]
    batch: Vec<usize>,
    /// Threads, 0 for one per core
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = super::threads())]
    threads: usize,
    /// Also show where the time goes, by kernel, in one more run
    #[arg(long)]
    kernels: bool,
    /// Also write the launches of one more run to a file that Perfetto (ui.perfetto.dev) opens
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(program: Arc<Program>, args: &BenchArgs, started: Instant) -> Result<(), Failure> {
    let model = program.manifest().model.clone();
    let prompt: Vec<u32> = match &args.prompt {
        Some(text) => Text::of(&program)?.encode(text)?,
        // Longer ones are refused below.
        None => {
            let mut rng = Rng::new(1);
            let len = args.prompt_len.min(model.max_context as usize + 1);
            (0..len).map(|_| (rng.next_u64() % model.vocab) as u32).collect()
        }
    };
    let max = model.max_context;
    if prompt.is_empty() || prompt.len() as u64 + args.n as u64 > max {
        return Err(Failure::Usage(format!(
            "the prompt (at least 1 token) and -n must fit the context of {max} together"
        )));
    }
    let pool = Pool::new(args.threads);
    if !args.batch.is_empty() {
        let (sizes, prompt_len, n, repeat) = (&args.batch[..], args.prompt_len, args.n, args.repeat);
        return batch::run(&program, &pool, &batch::Plan { sizes, prompt_len, n, repeat }, args.json);
    }
    let threads = pool.threads();
    let loaded = started.elapsed();
    let bandwidth = read_bandwidth(threads);

    let make = |drafts: Drafts| -> Result<Generator, Error> {
        let mut generator = Generator::new(Session::new(program.clone(), pool.clone())?, Sampling::greedy())?;
        generator.ignore_stop_tokens();
        generator.draft(drafts)?;
        Ok(generator)
    };
    let mut generator = make(Drafts::Count(0))?;
    let mut drafting = match args.draft {
        Drafts::Count(0) => None,
        _ if !generator.can_draft() => None,
        drafts => Some(make(drafts)?),
    };
    let (mut plain, mut drafted) = (Measured::default(), Measured::default());
    for _ in 0..args.repeat {
        plain.run(&mut generator, &prompt, args.n)?;
        if let Some(generator) = &mut drafting {
            drafted.run(generator, &prompt, args.n)?;
        }
    }
    let drafts = drafting.as_ref().and_then(Generator::acceptance).map(|a| Drafted::new(a, &plain, &drafted));
    // Once more, by kernel; with drafts where they were asked for, which has plain steps too.
    let watched = drafting.as_mut().unwrap_or(&mut generator);
    if args.kernels || args.trace.is_some() {
        watched.watch();
        Measured::default().run(watched, &prompt, args.n)?;
    }
    let by_kernel = kernels::rows(watched.session());
    if let Some(path) = &args.trace {
        kernels::trace(watched.session(), path)?;
    }
    let by_kernel = if args.kernels { by_kernel } else { Vec::new() };
    let Measured { prefill, first, decode, cold, .. } = plain;

    let decoded = args.n.saturating_sub(1);
    let decode_rate = rate(decoded, decode);
    // The version that the first decoded token takes.
    let m = program.manifest();
    let at = [(Sym::P, prompt.len() as i64), (Sym::T, 1)].into();
    let at = m.definitions.complete(&at);
    let version = m.entry("decode").and_then(|e| {
        let values: Vec<i64> = e.symbols.iter().map(|r| at.get(&r.sym).copied().unwrap_or(r.lo)).collect();
        Some(&e.versions[e.version_for(&values)?])
    });
    let bytes = version.and_then(|e| e.weight_bytes_read);
    let weights_rate = bytes.zip(decode_rate).map(|(b, r)| b as f64 * r);
    let share = weights_rate.map(|r| r / bandwidth);
    let flops_rate = version.and_then(|e| e.flops).zip(decode_rate).map(|(f, r)| f as f64 * r);
    if args.json {
        return print_json(&json!({
            "model": model.name,
            "threads": threads,
            "prompt_tokens": prompt.len(),
            "generated_tokens": args.n,
            "load_seconds": loaded.as_secs_f64(),
            "prefill_seconds": prefill.as_secs_f64(),
            "prefill_tokens_per_second": rate(prompt.len(), prefill),
            "first_token_seconds": first.as_secs_f64(),
            "first_token_seconds_cold": cold.unwrap_or_default().as_secs_f64(),
            "decode_tokens_per_second": decode_rate,
            "decode_flops_per_second": flops_rate,
            "weight_bytes_per_token": bytes,
            "weight_bytes_per_second": weights_rate,
            "read_bandwidth": bandwidth,
            "share_of_read_bandwidth": share,
            "drafts": drafts.as_ref().map(Drafted::json),
            "kernels": by_kernel.iter().map(kernels::Row::json).collect::<Vec<_>>(),
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
                show(rate(prompt.len(), prefill)),
                prompt.len(),
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
    for (name, value) in lines.into_iter().chain(drafts.map(|d| ("drafts", d.sentence()))) {
        writeln!(out, "{name:<14}{value}").map_err(stdout_failed)?;
    }
    kernels::table(&mut out, &by_kernel)
}

/// The best of several runs.
struct Measured {
    prefill: Duration,
    first: Duration,
    decode: Duration,
    cold: Option<Duration>,
    /// What was generated.
    tokens: Vec<u32>,
}

impl Default for Measured {
    fn default() -> Measured {
        let never = Duration::MAX;
        Measured { prefill: never, first: never, decode: never, cold: None, tokens: Vec::new() }
    }
}

impl Measured {
    /// Generates `n` tokens after `prompt`, from the beginning.
    fn run(&mut self, generator: &mut Generator, prompt: &[u32], n: usize) -> Result<(), Error> {
        self.tokens.clear();
        self.tokens.reserve(n);
        generator.rewind(0)?;
        let start = Instant::now();
        generator.prompt(prompt)?;
        self.prefill = self.prefill.min(start.elapsed());
        self.tokens.extend(generator.next_token()?);
        self.first = self.first.min(start.elapsed());
        self.cold.get_or_insert(start.elapsed());
        let start = Instant::now();
        for _ in 1..n {
            self.tokens.extend(generator.next_token()?);
        }
        self.decode = self.decode.min(start.elapsed());
        Ok(())
    }
}

/// Decoding with drafts, beside decoding without.
struct Drafted {
    rate: Option<f64>,
    gain: Option<f64>,
    tokens_per_step: f64,
    acceptance: Vec<f64>,
    same: bool,
}

impl Drafted {
    fn new(acceptance: &Acceptance, plain: &Measured, drafted: &Measured) -> Drafted {
        let of = |m: &Measured| rate(m.tokens.len().saturating_sub(1), m.decode);
        Drafted {
            rate: of(drafted),
            gain: of(drafted).zip(of(plain)).map(|(a, b)| a / b),
            tokens_per_step: acceptance.tokens_per_step(),
            acceptance: acceptance.rates().collect(),
            same: plain.tokens == drafted.tokens,
        }
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "decode_tokens_per_second": self.rate,
            "speedup": self.gain,
            "tokens_per_step": self.tokens_per_step,
            "acceptance": self.acceptance,
            "same_tokens": self.same,
        })
    }

    fn sentence(&self) -> String {
        let show = |x: Option<f64>, digits: usize| x.map_or("-".to_string(), |x| format!("{x:.digits$}"));
        let accepted: Vec<String> = self.acceptance.iter().map(|a| format!("{:.0} %", a * 100.0)).collect();
        let accepted = if accepted.is_empty() { "nothing drafted".to_string() } else { accepted.join(", ") };
        let same = if self.same { "the same tokens" } else { "OTHER TOKENS, which is a bug" };
        format!(
            "{} tokens/s, {} times as fast: {:.2} tokens a step, right by position: {accepted}; {same}",
            show(self.rate, 1),
            show(self.gain, 2),
            self.tokens_per_step
        )
    }
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
                // A word of each cache line: memory is waited for, not additions.
                std::hint::black_box(words.iter().step_by(8).fold(0u64, |sum, word| sum.wrapping_add(*word)));
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
