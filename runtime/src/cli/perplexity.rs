//! `perplexity`: how well the model foresees a text, which is what rounding its weights costs.

use super::logits::evaluate;
use super::{Failure, print_json, stdout_failed};
use crate::text::Text;
use crate::{Error, Pool, Program, Session};
use clap::Args;
use hadal_types::{DType, Sym};
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

/// Arguments of `perplexity`.
#[derive(Args)]
#[command(after_help = "Example:
  ./model perplexity book.txt --window 512

The text is cut into windows, each of which begins anew; of each the first token is given and all others are foreseen.
Perplexity is e to the mean of -ln p of the tokens that come. Bits per byte also compares models with other tokenizers.")]
pub struct PerplexityArgs {
    /// The text
    text: PathBuf,
    /// Tokens of a window [default: 512, or the context where that is shorter]
    #[arg(long, value_name = "N")]
    window: Option<usize>,
    /// Threads, 0 for one per core
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = super::threads())]
    threads: usize,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// Most rows of logits at a time.
const ROWS: usize = 64;

pub(super) fn run(program: Arc<Program>, args: &PerplexityArgs) -> Result<(), Failure> {
    let m = &program.manifest().model;
    let (max, vocab) = (m.max_context as usize, m.vocab as usize);
    let window = args.window.unwrap_or(512.min(max));
    if !(2..=max).contains(&window) {
        return Err(Failure::Usage(format!("--window {window}: expected 2 to {max} tokens, which is the context")));
    }
    let unreadable = |reason: String| Failure::Input { file: args.text.clone(), reason };
    let text = std::fs::read_to_string(&args.text).map_err(|e| unreadable(e.to_string()))?;
    let words = Text::of(&program)?;
    let tokens = words.encode(&text)?;
    if let Some(token) = tokens.iter().find(|t| **t as usize >= vocab) {
        return Err(Error::Token { token: *token as i64, vocab: m.vocab }.into());
    }
    if tokens.len() < 2 {
        return Err(unreadable(format!("{} tokens, expected at least 2", tokens.len())));
    }
    let mut session = Session::new(program.clone(), Pool::new(args.threads))?;
    let described = &program.manifest().entries[session.entry("logits")?];
    if !described.outputs.first().is_some_and(|p| p.ty.dtype == DType::F32 && p.ty.shape[0] == Sym::T.into()) {
        let entry = described.name.clone();
        return Err(Error::NoPort { entry, port: "output `logits` of type f32[T, V]" }.into());
    }
    let (mut nats, mut foreseen, mut bytes) = (0.0, 0usize, 0usize);
    for window in tokens.chunks(window) {
        session.truncate(0)?;
        // What the last token of a window would foresee is in the next one.
        let given = &window[..window.len() - 1];
        for (rows, next) in given.chunks(ROWS).zip(window[1..].chunks(ROWS)) {
            let outputs = evaluate(&mut session, "logits", rows)?;
            let logits = outputs[0].bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            let logits: Vec<f32> = logits.collect();
            for (row, token) in logits.chunks_exact(vocab).zip(next) {
                nats += surprise(row, *token as usize);
                foreseen += 1;
                bytes += words.bytes(*token).len();
            }
        }
    }
    let mean = nats / foreseen.max(1) as f64;
    let bits = nats / std::f64::consts::LN_2 / bytes.max(1) as f64;
    if args.json {
        return print_json(&json!({
            "tokens": foreseen, "bytes": bytes, "window": window, "nats_per_token": mean, "perplexity": mean.exp(),
            "bits_per_byte": bits,
        }));
    }
    let line =
        format!("perplexity {:.4} over {foreseen} tokens in windows of {window}; {bits:.4} bits per byte", mean.exp());
    writeln!(std::io::stdout(), "{line}").map_err(stdout_failed)
}

/// -ln of the probability that a row of logits gives a token.
fn surprise(row: &[f32], token: usize) -> f64 {
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
    let sum: f64 = row.iter().map(|x| (*x as f64 - most).exp()).sum();
    sum.ln() + most - row[token] as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn surprise_is_minus_the_logarithm_of_the_softmax() {
        let row = [1.0f32, 2.0, 4.0, -1.0];
        let all: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
        for (i, x) in row.iter().enumerate() {
            assert!((surprise(&row, i) + (f64::from(*x).exp() / all).ln()).abs() < 1e-12);
        }
        // Large logits do not overflow.
        assert!((surprise(&[1000.0, 1000.0], 0) - 2f64.ln()).abs() < 1e-12);
    }
}
