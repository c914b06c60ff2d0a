//! `bench --batch`: tokens a second of several sequences that share steps.

use super::generate::rate;
use super::stdout_failed;
use super::{Failure, print_json};
use crate::{Batch, Error, Mark, Pool, Program, Rng, Sampler, Sampling, Session};
use serde_json::json;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What is measured.
pub(super) struct Plan<'a> {
    /// Numbers of sequences.
    pub sizes: &'a [usize],
    /// Tokens of each prompt.
    pub prompt_len: usize,
    /// Tokens to generate of each sequence.
    pub n: usize,
    /// Runs, of which the best counts.
    pub repeat: u32,
}

/// A sequence behind its prompt.
struct Row {
    session: Session,
    mark: Mark,
    first: u32,
}

pub(super) fn run(program: &Arc<Program>, pool: &Arc<Pool>, plan: &Plan, json: bool) -> Result<(), Failure> {
    let mut batch = Batch::new(program, pool)?;
    let model = &program.manifest().model;
    let vocab = model.vocab as usize;
    let most = plan.sizes.iter().copied().max().unwrap_or(1);
    let mut rng = Rng::new(1);
    let row = |_| -> Result<Row, Error> {
        let prompt: Vec<u32> = (0..plan.prompt_len).map(|_| (rng.next_u64() % model.vocab) as u32).collect();
        let mut generator = crate::Generator::new(Session::new(program.clone(), pool.clone())?, Sampling::greedy())?;
        generator.prompt(&prompt)?;
        let first =
            generator.logits().iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(i, _)| i as u32);
        let session = generator.into_session();
        let mark = session.mark()?;
        Ok(Row { session, mark, first })
    };
    let mut rows = (0..most).map(row).collect::<Result<Vec<Row>, Error>>()?;
    let mut sampler = Sampler::new(Sampling::greedy(), vocab)?;
    let mut logits = vec![0f32; most * vocab];
    let mut best = vec![Duration::MAX; plan.sizes.len()];
    // Sizes in turn, so that a machine that slows down does so for all.
    for _ in 0..plan.repeat {
        for (size, best) in plan.sizes.iter().zip(&mut best) {
            let (mut members, mut tokens) = (Vec::new(), Vec::new());
            for r in &mut rows[..*size] {
                r.session.rewind(&r.mark)?;
                tokens.push(r.first);
                members.push(&mut r.session);
            }
            let start = Instant::now();
            for _ in 0..plan.n {
                let logits = &mut logits[..size * vocab];
                batch.step(&mut members, &tokens, logits)?;
                for (token, row) in tokens.iter_mut().zip(logits.chunks(vocab)) {
                    *token = sampler.sample(row)?;
                }
            }
            *best = (*best).min(start.elapsed());
        }
    }
    let rates: Vec<f64> =
        plan.sizes.iter().zip(&best).map(|(size, best)| rate(size * plan.n, *best).unwrap_or(0.0)).collect();
    // Of one sequence, if that was measured.
    let one = plan.sizes.iter().position(|s| *s == 1).map(|i| rates[i]);
    let gains = || rates.iter().map(|r| one.map(|one| r / one));
    if json {
        let rows = plan.sizes.iter().zip(&rates).zip(gains()).map(|((size, rate), gain)| {
            json!({
                "sequences": size,
                "tokens_per_second": rate,
                "tokens_per_second_each": rate / *size as f64,
                "times_one": gain,
            })
        });
        return print_json(&json!({
            "model": model.name,
            "threads": pool.threads(),
            "prompt_tokens": plan.prompt_len,
            "generated_tokens": plan.n,
            "sequences_of_a_step": batch.most(),
            "batches": rows.collect::<Vec<_>>(),
        }));
    }
    let mut out = std::io::stdout().lock();
    let (name, threads, share) = (&model.name, pool.threads(), batch.most());
    writeln!(out, "model         {name}, {threads} threads; up to {share} sequences share a step")
        .map_err(stdout_failed)?;
    writeln!(out, "{:>9} {:>12} {:>12} {:>10}", "sequences", "tokens/s", "each", "times one").map_err(stdout_failed)?;
    for ((size, rate), gain) in plan.sizes.iter().zip(&rates).zip(gains()) {
        let gain = gain.map_or("-".to_owned(), |g| format!("{g:.2}"));
        writeln!(out, "{size:>9} {rate:>12.1} {:>12.1} {gain:>10}", rate / *size as f64).map_err(stdout_failed)?;
    }
    Ok(())
}
