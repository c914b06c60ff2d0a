//! `hadal inspect`: what a model is, before or after compiling.

use crate::driver::{Options, build_model, target};
use crate::failure::Failure;
use crate::input::{Input, is_gguf};
use crate::options::CompileArgs;
use crate::units::{bytes, context, count, grouped};
use hadal_ir::Module;
use hadal_models::stats::{Cost, Stats, cost, stats};
use hadal_models::{Activations, Model};
use hadal_types::DType;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Say what a checkpoint, a configuration or a compiled file is: architecture and why, parameters, bytes, cost a token.
#[derive(clap::Args)]
#[command(after_help = "Example: hadal inspect tests/fixtures/configs/deepseek-r1.json")]
pub struct Args {
    /// A checkpoint folder, a GGUF file, a bare config.json, or a compiled file.
    path: PathBuf,
    #[command(flatten)]
    compile: CompileArgs,
    /// Tokens in the context, for the costs: of a token behind them, and of the chunk that ends there, as 4096 or 4k
    /// [default: the model's own limit, at most 4096].
    #[arg(long, value_name = "TOKENS", value_parser = context)]
    context: Option<u32>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    let json = args.path.extension().is_some_and(|e| e == "json");
    if args.path.is_file() && !json && !is_gguf(&args.path) {
        return compiled_file(&args.path, args.json);
    }
    let input = Input::open(&args.path)?;
    let mut options = args.compile.options();
    if let Some(asked) = args.context {
        // Built for so many tokens, or there would be nothing to count.
        options.max_context = options.max_context.max(Some(asked as usize));
    }
    let model = build_model(&input, &options)?;
    args.compile.note(&model);
    if let Some(asked) = args.context.filter(|n| *n as usize > model.max_position) {
        let limit = model.max_position;
        eprintln!("note: --context {asked} is beyond the {limit} tokens that the model was made for");
    }
    // What a token costs depends on the forms chosen for the machine.
    let fused = hadal_passes::optimise(&model.module, &target(&options.target)?, &options.passes(&model))
        .map_err(Failure::optimising)?;
    // Of a model that was asked for as it is, also what its states take in the formats of its release.
    let rounded = Options { activations: Activations::Cache, state_dtype: DType::BF16, ..options.clone() };
    let plain = options.activations == Activations::F32;
    let kept = if plain { build_model(&input, &rounded).ok() } else { None };
    let report = Report::new(
        &model,
        kept.as_ref(),
        &fused.optimised,
        args.context.map_or(model.max_position.min(4096), |n| n as usize),
    );
    match args.json {
        true => say!("{:#}", report.json(&model)),
        false => report.print(&model),
    }
}

/// A compiled file says for itself what it is.
fn compiled_file(path: &Path, json: bool) -> Result<(), Failure> {
    let program = hadal_runtime::Program::open(path).map_err(Failure::input)?;
    let m = program.manifest();
    let weights: u64 = m.weights.iter().map(|w| w.bytes).sum();
    let state = m.state_bytes_per_token();
    if json {
        let value = json!({
            "compiled": true,
            "name": m.model.name,
            "architecture": m.model.architecture,
            "producer": m.producer,
            "target": {"arch": m.target.arch, "features": m.target.features},
            "vocab": m.model.vocab,
            "max_context": m.model.max_context,
            "kernels": m.kernels.len(),
            "weight_bytes": weights,
            "state_bytes_per_token": state,
            "arena_bytes": m.arena_bytes,
        });
        return say!("{value:#}");
    }
    say!("{}: compiled by {}", m.model.name, m.producer)?;
    say!("  architecture  {}", m.model.architecture)?;
    say!("  target        {} with {}", m.target.arch, m.target.features.join(", "))?;
    say!("  kernels       {}", m.kernels.len())?;
    say!("  weights       {} in {} tensors", bytes(weights as f64), m.weights.len())?;
    say!("  states        {} a token, at most {} tokens", bytes(state as f64), m.model.max_context)?;
    say!("  for more, run the file: {} info", path.display())?;
    Ok(())
}

/// What `inspect` says of a model.
struct Report {
    stats: Stats,
    /// The same sizes where states are kept in the formats that the release keeps them in, if it has any.
    kept: Option<Stats>,
    context: usize,
    decode: Option<Cost>,
    prefill: Option<(usize, Cost)>,
}

impl Report {
    fn new(model: &Model, kept: Option<&Model>, optimised: &Module, context: usize) -> Report {
        let chunk = context.min(512);
        let stats = stats(model);
        let kept = kept.map(hadal_models::stats::stats).filter(|k| k.state_bytes != stats.state_bytes);
        Report {
            stats,
            kept,
            context,
            decode: cost(optimised, "decode", 1, context),
            prefill: cost(optimised, "prefill", chunk, context - chunk).map(|c| (chunk, c)),
        }
    }

    fn print(&self, model: &Model) -> Result<(), Failure> {
        let s = &self.stats;
        say!("architecture  {} ({})", model.name, model.why)?;
        say!("layers        {}, hidden size {}, vocabulary {}", model.layers, model.hidden, model.vocab)?;
        say!("parameters    {} ({})", grouped(s.main), count(s.main as f64))?;
        if s.tables > 0 {
            let rest = s.main - s.tables;
            say!(
                "  of which    {} ({}) in tables of n-grams, {} ({}) elsewhere",
                grouped(s.tables),
                count(s.tables as f64),
                grouped(rest),
                count(rest as f64)
            )?;
        }
        say!("  active      {} a token", grouped(s.active))?;
        if s.mtp > 0 {
            say!(
                "  MTP         {} more, and {} in copies of embedding and head",
                grouped(s.mtp),
                grouped(s.mtp_copies)
            )?;
        }
        let formats: Vec<String> = s.bytes.iter().map(|(d, n)| format!("{} in {d}", bytes(*n as f64))).collect();
        say!("stored        {} ({})", bytes(s.total_bytes() as f64), formats.join(", "))?;
        say!(
            "  in          {} tensors of {} elements, scales among them",
            grouped(s.tensors),
            grouped(s.stored_elements())
        )?;
        let (bf16, f32) = (s.state_bytes_per_token(DType::BF16), s.state_bytes_per_token(DType::F32));
        match s.state_bytes == f32 {
            true => say!(
                "state         {} elements a token: {} B in bf16, {} B in f32",
                grouped(s.state_elements),
                grouped(bf16),
                grouped(f32)
            )?,
            // Some have a format of their own.
            false => {
                say!("state         {} elements a token, {} B", grouped(s.state_elements), grouped(s.state_bytes))?
            }
        }
        if s.window_bytes > 0 {
            say!("  windows     {} B a sequence, of any length", grouped(s.window_bytes))?;
        }
        if let Some(k) = &self.kept {
            let (a_token, windows) = (grouped(k.state_bytes), grouped(k.window_bytes));
            say!("  as released {a_token} B a token, windows {windows} B (--activations cache --state-dtype bf16)")?;
        }
        if let Some(c) = &self.decode {
            say!("decode        {}FLOP and {} a token at context {}", spaced(c.flops), bytes(c.bytes()), self.context)?;
        }
        if let Some((chunk, c)) = &self.prefill {
            let n = *chunk as f64;
            let (flops, moved) = (spaced(c.flops / n), bytes(c.bytes() / n));
            say!("prefill       {flops}FLOP and {moved} a token, the last {chunk} at once of {}", self.context)?;
        }
        if !model.unread.is_empty() {
            say!("not used      {}", model.unread.join(", "))?;
        }
        Ok(())
    }

    fn json(&self, model: &Model) -> Value {
        let s = &self.stats;
        let costs = |c: &Cost| json!({"flops": c.flops, "weight_bytes": c.weight_bytes, "bytes": c.bytes()});
        let shared = |c: &Cost, n: f64| json!({"flops": c.flops / n, "weight_bytes": c.weight_bytes / n, "bytes": c.bytes() / n});
        json!({
            "architecture": model.name,
            "why": model.why,
            "layers": model.layers,
            "hidden_size": model.hidden,
            "vocab": model.vocab,
            "max_position": model.max_position,
            "parameters": {"main": s.main, "tables": s.tables, "active": s.active, "mtp": s.mtp, "mtp_copies": s.mtp_copies},
            "stored": {"tensors": s.tensors, "elements": s.stored_elements()},
            "bytes": s.bytes.iter().map(|(d, n)| (d.name().to_owned(), json!(n))).collect::<serde_json::Map<_, _>>(),
            "state": {
                "elements_per_token": s.state_elements,
                "bytes_per_token_bf16": s.state_bytes_per_token(DType::BF16),
                "bytes_per_token_f32": s.state_bytes_per_token(DType::F32),
                "bytes_per_token_as_built": s.state_bytes,
                "window_bytes": s.window_bytes,
                "bytes_per_token_as_released": self.kept.as_ref().map(|k| k.state_bytes),
                "window_bytes_as_released": self.kept.as_ref().map(|k| k.window_bytes),
            },
            "decode": self.decode.as_ref().map(|c| json!({"context": self.context, "per_token": costs(c)})),
            "prefill": self.prefill.as_ref().map(|(n, c)| json!({"context": self.context, "tokens": n, "total": costs(c), "per_token": shared(c, *n as f64)})),
            "unused_keys": model.unread,
        })
    }
}

fn spaced(n: f64) -> String {
    let text = count(n);
    if text.ends_with(|c: char| c.is_ascii_digit()) { text + " " } else { text }
}
