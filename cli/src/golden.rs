//! Comparison of a compiled program with golden tensors of an independent implementation.
//!
//! A golden folder holds a checkpoint, `golden.safetensors` and `golden.json`. What is understood:
//!
//! | tensor | compared with |
//! |---|---|
//! | `input_ids`, `logits` | entry `logits` on all of the input |
//! | `greedy`, `greedy_logits` | entry `prefill`, then `decode` token by token through the cache |
//! | `mtp_logits` | entry `mtp` on the shifted input and the hidden states of `logits` |
//! | `logits_attn_factor` | as `logits`, compiled with the other reading of `attn_factor` |
//! | `logits_actquant` | as `logits`, compiled with activations in FP8 |
//! | `mtp_logits_prenorm` | as `mtp_logits`, compiled with hidden states from before the final norm |
//!
//! Every other tensor is named as not checked.

use crate::driver::{Options, compile};
use crate::failure::Failure;
use crate::input::Input;
use bytemuck::{bytes_of, cast_slice, cast_slice_mut};
use hadal_models::checkpoint::{Checkpoint, TensorRef};
use hadal_models::config_reader::Config;
use hadal_models::{Activations, AttnFactor, MtpInput};
use hadal_runtime::{Pool, Program, Session};
use hadal_types::DType;
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;

/// Largest absolute error of logits where `golden.json` gives none: ten times what rounding in f32 does to the
/// reference itself on the fixtures (`measured.err_f32_vs_f64_max`, at most 2e-5).
pub const DEFAULT_TOLERANCE: f64 = 2e-4;

/// The outcome for one golden tensor.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Check {
    /// The golden tensor.
    pub tensor: String,
    /// Largest absolute difference.
    pub max_abs_error: f64,
    /// What it may be.
    pub tolerance: f64,
    /// Rows whose largest element is the same one.
    pub argmax_agree: usize,
    /// Rows.
    pub rows: usize,
    /// Whether it holds.
    pub pass: bool,
}

/// The outcome for one folder.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Outcome {
    /// The folder.
    pub path: String,
    /// The architecture recognised.
    pub architecture: String,
    /// One for each golden tensor checked.
    pub checks: Vec<Check>,
    /// Tokens of `greedy` that came out, and how many there are.
    pub greedy: Option<(usize, usize)>,
    /// Golden tensors nobody looked at.
    pub unchecked: Vec<String>,
    /// Whether all that was checked holds, and something was.
    pub pass: bool,
}

/// Compiles the checkpoint in `dir` and compares.
pub fn verify(dir: &Path, options: &Options, threads: usize) -> Result<Outcome, Failure> {
    let path = dir.join("golden.safetensors");
    if !path.exists() {
        let help = "a folder to verify holds a checkpoint, golden.safetensors and golden.json";
        return Err(Failure::input(format!("{}: no such file", path.display())).help(help));
    }
    let golden = Checkpoint::open(path)?;
    let ids = tokens(&golden, "input_ids")?;
    let greedy = match golden.tensor("greedy") {
        Some(_) => tokens(&golden, "greedy")?,
        None => Vec::new(),
    };
    let tolerance = tolerance(dir)?;
    let input = Input::open(dir)?;
    let needed = ids.len() + greedy.len() + 1;
    let options = Options { max_context: Some(options.max_context.unwrap_or(0).max(needed)), ..options.clone() };

    let program = load(&input, &options)?;
    let vocab = program.manifest().model.vocab as usize;
    let mut run = Run { program, threads, ids, vocab, golden: &golden, tolerance, checks: Vec::new() };
    let (rows, hidden) = run.all_rows()?;
    run.check("logits", &rows, run.ids.len())?;
    let greedy_hits = run.greedy_rows(&greedy)?;
    run.mtp_rows("mtp_logits", &hidden)?;
    let architecture = run.program.manifest().model.architecture.clone();
    // The other readings, each compiled where there is something to compare it with.
    if golden.tensor("logits_attn_factor").is_some() {
        let attn_factor = match options.attn_factor {
            AttnFactor::Ignore => AttnFactor::Apply,
            AttnFactor::Apply => AttnFactor::Ignore,
        };
        run.program = load(&input, &Options { attn_factor, ..options.clone() })?;
        let (rows, _) = run.all_rows()?;
        run.check("logits_attn_factor", &rows, run.ids.len())?;
    }
    if golden.tensor("logits_actquant").is_some() {
        run.program = load(&input, &Options { activations: Activations::Fp8, ..options.clone() })?;
        let (rows, _) = run.all_rows()?;
        run.check("logits_actquant", &rows, run.ids.len())?;
    }
    if golden.tensor("mtp_logits_prenorm").is_some() {
        run.program = load(&input, &Options { mtp_input: MtpInput::Raw, ..options.clone() })?;
        let (_, hidden) = run.all_rows()?;
        run.mtp_rows("mtp_logits_prenorm", &hidden)?;
    }
    let checks = run.checks;
    let known = |n: &str| ["input_ids", "greedy"].contains(&n) || checks.iter().any(|c| c.tensor == n);
    let unchecked = golden.tensors().map(|(n, _)| n.to_owned()).filter(|n| !known(n)).collect();
    let greedy = (!greedy.is_empty()).then_some((greedy_hits, greedy.len()));
    let pass = !checks.is_empty() && checks.iter().all(|c| c.pass) && greedy.is_none_or(|(hits, of)| hits == of);
    Ok(Outcome { path: dir.display().to_string(), architecture, checks, greedy, unchecked, pass })
}

fn load(input: &Input, options: &Options) -> Result<Arc<Program>, Failure> {
    let compiled = compile(input, options)?;
    let (_file, path) = compiled.in_memory(input)?;
    Ok(Program::open(&path)?)
}

fn tolerance(dir: &Path) -> Result<f64, Failure> {
    let path = dir.join("golden.json");
    if !path.exists() {
        return Ok(DEFAULT_TOLERANCE);
    }
    let config = Config::read(&path)?;
    let Some(tolerance) = config.object().optional_object("tolerance")? else { return Ok(DEFAULT_TOLERANCE) };
    Ok(tolerance.positive_or("atol_f32", DEFAULT_TOLERANCE)?)
}

/// Reads a golden tensor of token ids.
fn tokens(golden: &Checkpoint, name: &str) -> Result<Vec<u32>, Failure> {
    let t = golden.require(name)?;
    let wrong =
        || Failure::input(format!("golden tensor `{name}`: expected token ids, i64 [n], found {}", t.describe()));
    if t.dtype != DType::I64 || t.shape.len() != 1 || t.shape[0] == 0 {
        return Err(wrong());
    }
    t.bytes.as_chunks::<8>().0.iter().map(|b| u32::try_from(i64::from_le_bytes(*b)).map_err(|_| wrong())).collect()
}

/// Reads a golden tensor of logits with `rows` rows.
fn logits(t: TensorRef<'_>, name: &str, rows: usize, vocab: usize) -> Result<Vec<f32>, Failure> {
    if t.dtype != DType::F32 || t.shape != [rows, vocab] {
        let found = t.describe();
        return Err(Failure::input(format!("golden tensor `{name}`: expected f32 [{rows}, {vocab}], found {found}")));
    }
    Ok(t.bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

fn argmax(row: &[f32]) -> usize {
    (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best })
}

fn compare(tensor: &str, ours: &[f32], golden: &[f32], vocab: usize, tolerance: f64) -> Check {
    let error = |(a, b): (&f32, &f32)| if a == b { 0.0 } else { (*a as f64 - *b as f64).abs() };
    // A NaN must fail, so it counts as infinitely far.
    let worst = |max: f64, e: f64| if e.is_nan() { f64::INFINITY } else { max.max(e) };
    let max_abs_error = ours.iter().zip(golden).map(error).fold(0.0, worst);
    let rows = golden.len() / vocab;
    let agree = ours.chunks(vocab).zip(golden.chunks(vocab)).filter(|(a, b)| argmax(a) == argmax(b)).count();
    let pass = max_abs_error <= tolerance && ours.len() == golden.len();
    Check { tensor: tensor.to_owned(), max_abs_error, tolerance, argmax_agree: agree, rows, pass }
}

/// A program being compared.
struct Run<'a> {
    program: Arc<Program>,
    threads: usize,
    ids: Vec<u32>,
    vocab: usize,
    golden: &'a Checkpoint,
    tolerance: f64,
    checks: Vec<Check>,
}

impl Run<'_> {
    fn session(&self) -> Result<Session, Failure> {
        Ok(Session::new(self.program.clone(), Pool::new(self.threads))?)
    }

    fn chunk(&self) -> usize {
        self.program.manifest().model.max_chunk as usize
    }

    /// Compares with the golden tensor `name`, if there is one.
    fn check(&mut self, name: &str, ours: &[f32], rows: usize) -> Result<(), Failure> {
        if let Some(t) = self.golden.tensor(name) {
            let golden = logits(t, name, rows, self.vocab)?;
            self.checks.push(compare(name, ours, &golden, self.vocab, self.tolerance));
        }
        Ok(())
    }

    /// Runs entry `logits` over the input; returns the logits and hidden states of every row.
    fn all_rows(&self) -> Result<(Vec<f32>, Vec<f32>), Failure> {
        let mut session = self.session()?;
        let entry = session.entry("logits")?;
        let outputs = &self.program.manifest().entries[entry].outputs;
        let width = outputs.get(1).and_then(|p| p.ty.shape.last()?.as_const()).unwrap_or(0) as usize;
        let (mut all, mut hidden) = (Vec::<f32>::new(), Vec::<f32>::new());
        for chunk in self.ids.chunks(self.chunk()) {
            let mut out = vec![0f32; chunk.len() * self.vocab];
            let mut rows = vec![0f32; chunk.len() * width];
            session.run(
                entry,
                chunk.len(),
                &[cast_slice(chunk)],
                &mut [cast_slice_mut(&mut out), cast_slice_mut(&mut rows)],
            )?;
            all.extend(out);
            hidden.extend(rows);
        }
        Ok((all, hidden))
    }

    /// Runs the input, then the golden continuation token by token; returns how many of its tokens came out on top.
    fn greedy_rows(&mut self, greedy: &[u32]) -> Result<usize, Failure> {
        if greedy.is_empty() {
            return Ok(0);
        }
        let mut session = self.session()?;
        let (prefill, decode) = (session.entry("prefill")?, session.entry("decode")?);
        let mut row = vec![0f32; self.vocab];
        for chunk in self.ids.chunks(self.chunk()) {
            session.run(prefill, chunk.len(), &[cast_slice(chunk)], &mut [cast_slice_mut(&mut row)])?;
        }
        let mut all = row.clone();
        for token in &greedy[..greedy.len() - 1] {
            session.run(decode, 1, &[bytes_of(token)], &mut [cast_slice_mut(&mut row)])?;
            all.extend(&row);
        }
        self.check("greedy_logits", &all, greedy.len())?;
        Ok(all.chunks(self.vocab).zip(greedy).filter(|(row, token)| argmax(row) == **token as usize).count())
    }

    /// Runs entry `mtp` on the input shifted by one and the main model's hidden states, and compares with `name`.
    fn mtp_rows(&mut self, name: &str, hidden: &[f32]) -> Result<(), Failure> {
        let mut session = self.session()?;
        let (Some(_), Ok(entry)) = (self.golden.tensor(name), session.entry("mtp")) else { return Ok(()) };
        let width = hidden.len() / self.ids.len();
        let chunk = self.chunk();
        let mut all = Vec::<f32>::new();
        for (ids, hidden) in self.ids[1..].chunks(chunk).zip(hidden.chunks(chunk * width)) {
            let rows = &hidden[..ids.len() * width];
            let mut out = vec![0f32; ids.len() * self.vocab];
            session.run(entry, ids.len(), &[cast_slice(ids), cast_slice(rows)], &mut [cast_slice_mut(&mut out)])?;
            all.extend(out);
        }
        self.check(name, &all, self.ids.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_seen() {
        let golden = [0.0, 1.0, 2.0, 5.0, 4.0, 3.0];
        let same = compare("x", &golden, &golden, 3, 1e-4);
        assert!(same.pass && same.argmax_agree == 2 && same.max_abs_error == 0.0);
        let mut other = golden;
        other[2] = 0.5;
        let check = compare("x", &other, &golden, 3, 1e-4);
        assert!(!check.pass && check.argmax_agree == 1 && check.max_abs_error == 1.5);
        other[2] = f32::NAN;
        assert!(!compare("x", &other, &golden, 3, 1e9).pass);
        assert!(!compare("x", &golden[..3], &golden, 3, 1e9).pass);
    }
}
