//! `generate`: continue a prompt or answer a message.

use super::{Failure, print_json, shortest, stdout_failed};
use crate::text::{Message, Stream, Text};
use crate::{Acceptance, Drafts, Generator, Pool, Program, Sampling, Session, Stop};
use clap::Args;
use serde_json::json;
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Arguments of `generate`.
#[derive(Args)]
#[command(after_help = "Examples:
  ./model generate --prompt 'Once upon a time' -n 64
  ./model generate --prompt-file letter.txt --temperature 0
  ./model generate --chat 'Why is the sky blue?' --system 'Answer in one sentence.'

Sampling settings that are not given are taken from the checkpoint. The same seed gives the same text, with any number
of threads.")]
pub struct GenerateArgs {
    #[command(flatten)]
    input: Input,
    /// System message before --chat
    #[arg(long, value_name = "TEXT", requires = "chat", conflicts_with_all = ["prompt", "prompt_file", "tokens"])]
    system: Option<String>,
    /// Most tokens to generate
    #[arg(short, long, value_name = "N", default_value_t = 256, allow_negative_numbers = true)]
    n: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Tokens to draft for a step, where the model can; auto for as many as pay, 0 for none. The text stays the same
    #[arg(long, value_name = "N", default_value = "auto", value_parser = parse_drafts)]
    draft: Drafts,
    /// Threads, 0 for one per core
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = super::threads())]
    threads: usize,
    /// Do not end at the model's stop tokens
    #[arg(long)]
    ignore_stop: bool,
    /// Write one JSON object at the end instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Input {
    /// Text to continue
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// File with the text to continue
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<std::path::PathBuf>,
    /// Message to answer, put into the model's chat template
    #[arg(long, value_name = "TEXT")]
    chat: Option<String>,
    /// Token ids to continue, as they are
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    tokens: Option<Vec<u32>>,
}

/// How to sample; what is not given comes from the checkpoint.
#[derive(Args)]
pub struct SamplingArgs {
    /// 0 always takes the likeliest token
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    temperature: Option<f32>,
    /// Keep the N likeliest tokens, 0 for all
    #[arg(long, value_name = "N")]
    top_k: Option<u32>,
    /// Keep the likeliest tokens that together reach this probability
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    top_p: Option<f32>,
    /// Keep tokens at least this fraction as likely as the likeliest
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    min_p: Option<f32>,
    /// Seed of the random numbers; a new one each time unless given
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

impl SamplingArgs {
    /// With the program's defaults.
    pub fn resolve(&self, program: &Program) -> Sampling {
        let d = &program.manifest().model.sampling;
        Sampling {
            temperature: self.temperature.or(d.temperature).unwrap_or(0.0),
            top_k: self.top_k.or(d.top_k).unwrap_or(0),
            top_p: self.top_p.or(d.top_p).unwrap_or(1.0),
            min_p: self.min_p.or(d.min_p).unwrap_or(0.0),
            seed: self.seed.unwrap_or_else(fresh_seed),
        }
    }
}

/// Small enough to be typed again.
fn fresh_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    crate::Rng::new(now.as_nanos() as u64 ^ (std::process::id() as u64) << 40).next_u64() >> 32
}

pub(super) fn run(program: Arc<Program>, args: &GenerateArgs, started: Instant) -> Result<(), Failure> {
    let sampling = args.sampling.resolve(&program);
    sampling.check()?;
    let (text, prompt) = tokens(&program, args)?;

    let session = Session::new(program, Pool::new(args.threads))?;
    let mut generator = Generator::new(session, sampling)?;
    generator.draft(args.draft)?;
    match text.as_ref().and_then(Text::end) {
        _ if args.ignore_stop => generator.ignore_stop_tokens(),
        Some(end) => generator.also_stop_at(end),
        None => {}
    }
    let ready = Instant::now();
    generator.prompt(&prompt)?;
    let prefilled = Instant::now();

    let mut out = std::io::stdout().lock();
    let mut stream = text.as_ref().map(Stream::new);
    let mut write = |piece: &str, end: bool| -> Result<(), Failure> {
        if args.json || (piece.is_empty() && !end) {
            return Ok(());
        }
        write!(out, "{piece}{}", if end { "\n" } else { "" }).and_then(|()| out.flush()).map_err(stdout_failed)
    };
    let mut tokens = Vec::with_capacity(args.n.min(1 << 20));
    let mut first = None;
    while tokens.len() < args.n {
        let Some(token) = generator.next_token()? else { break };
        first.get_or_insert_with(Instant::now);
        match &mut stream {
            Some(stream) => write(stream.push(token), false)?,
            None => write(&format!("{}{token}", if tokens.is_empty() { "" } else { "," }), false)?,
        }
        tokens.push(token);
    }
    write(stream.as_mut().map_or("", |s| s.finish()), true)?;

    let done = Instant::now();
    let first = first.unwrap_or(done);
    let timing = Timing {
        load: ready - started,
        prefill: prefilled - ready,
        prompt_tokens: prompt.len(),
        first: first - started,
        // The first token comes out of the prompt's run.
        decode: done - first,
        decoded: tokens.len().saturating_sub(1),
        drafts: generator.acceptance().copied().filter(|a| a.offered[0] > 0),
    };
    let ended = match generator.stopped() {
        Some(Stop::Token(_)) => "stop",
        Some(Stop::Context) => "context",
        None => "length",
    };
    if args.json {
        return print_json(&json!({
            "prompt_tokens": prompt,
            "tokens": tokens,
            "text": text.as_ref().map(|t| t.decode(&tokens)),
            "ended_by": ended,
            "sampling": {
                "temperature": shortest(sampling.temperature), "top_k": sampling.top_k,
                "top_p": shortest(sampling.top_p), "min_p": shortest(sampling.min_p), "seed": sampling.seed,
            },
            "threads": generator.session().pool().threads(),
            "seconds": {
                "load": timing.load.as_secs_f64(), "prefill": timing.prefill.as_secs_f64(),
                "first_token": timing.first.as_secs_f64(), "decode": timing.decode.as_secs_f64(),
            },
            "prefill_tokens_per_second": rate(timing.prompt_tokens, timing.prefill),
            "decode_tokens_per_second": rate(timing.decoded, timing.decode),
            "drafts": timing.drafts.map(|d| json!({
                "tokens_per_step": d.tokens_per_step(), "acceptance": d.rates().collect::<Vec<_>>(),
            })),
        }));
    }
    eprintln!("{}", timing.sentence(tokens.len(), ended, &sampling));
    Ok(())
}

/// The prompt, and the tokenizer unless token ids were given to a model that has none.
fn tokens(program: &Program, args: &GenerateArgs) -> Result<(Option<Text>, Vec<u32>), Failure> {
    if let Some(tokens) = &args.input.tokens {
        return Ok((Text::of(program).ok(), tokens.clone()));
    }
    let text = Text::of(program)?;
    let prompt = match &args.input {
        Input { chat: Some(message), .. } => {
            let system = args.system.iter().map(|s| Message::new("system", s));
            let turns: Vec<Message> = system.chain([Message::new("user", message)]).collect();
            text.encode_chat(&turns)?
        }
        Input { prompt_file: Some(path), .. } => text.encode(&read_prompt(path)?)?,
        input => text.encode(input.prompt.as_deref().unwrap_or_default())?,
    };
    Ok((Some(text), prompt))
}

/// Reads a prompt, of which no context has use for more than this.
fn read_prompt(path: &std::path::Path) -> Result<String, Failure> {
    const LIMIT: u64 = 64 << 20;
    let at = |reason: String| Failure::Input { file: path.into(), reason };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|e| at(e.to_string()))?;
    file.take(LIMIT + 1).read_to_end(&mut bytes).map_err(|e| at(e.to_string()))?;
    if bytes.len() as u64 > LIMIT {
        return Err(at(format!("longer than {LIMIT} bytes, which no context holds")));
    }
    String::from_utf8(bytes).map_err(|e| at(format!("not UTF-8 text: {e}")))
}

struct Timing {
    load: Duration,
    prefill: Duration,
    prompt_tokens: usize,
    first: Duration,
    decode: Duration,
    decoded: usize,
    drafts: Option<Acceptance>,
}

impl Timing {
    fn sentence(&self, tokens: usize, ended: &str, sampling: &Sampling) -> String {
        let ms = |d: Duration| format!("{:.1} ms", d.as_secs_f64() * 1e3);
        let speed = |n, d| rate(n, d).map_or(String::new(), |r| format!(" ({r:.0} tokens/s)"));
        let seed = match sampling.temperature {
            0.0 => String::new(),
            _ => format!(", seed {}", sampling.seed),
        };
        let drafts = self.drafts.map_or(String::new(), |d| format!(", {:.2} tokens a step", d.tokens_per_step()));
        format!(
            "[prompt: {} tokens in {}{}; generated {tokens}, ended by {ended}{seed}, {}{}{drafts}; first token {} after start]",
            self.prompt_tokens,
            ms(self.prefill),
            speed(self.prompt_tokens, self.prefill),
            ms(self.decode),
            speed(self.decoded, self.decode),
            ms(self.first),
        )
    }
}

/// Reads how many tokens to draft.
pub(super) fn parse_drafts(text: &str) -> Result<Drafts, String> {
    match text {
        "auto" => Ok(Drafts::Auto),
        _ => text.parse().map(Drafts::Count).map_err(|_| "must be `auto` or a number".to_string()),
    }
}

/// Per second, where there is anything to divide.
pub(super) fn rate(n: usize, time: Duration) -> Option<f64> {
    (n > 0 && !time.is_zero()).then(|| n as f64 / time.as_secs_f64())
}
