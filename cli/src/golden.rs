//! Comparison of a compiled program with golden tensors of an independent implementation.
//!
//! A golden folder holds a checkpoint, `golden.safetensors` and `golden.json`. What is understood:
//!
//! | tensor | compared with |
//! |---|---|
//! | `input_ids`, `logits` | entry `logits` on all of the input, at once and in pieces |
//! | any other output of that entry | the same |
//! | `hash_I`, `engram_I`, `kept_I`, `candidates` | the same, compiled to give out what layers compute on the way |
//! | `compressed_lookup`, `multipliers_I`, `primes_I` | what the model makes from its tokenizer; where that is not there, from the first of them |
//! | `greedy`, `greedy_logits` | entry `prefill`, then `decode` token by token through the cache |
//! | `mtp_logits` | entry `mtp` on the shifted input and the hidden states of `logits` |
//! | `dspark_ids`, `dspark_logits`, `dspark_confidence` | for every token of `greedy` entry `draft`, then `markov` row by row |
//! | `logits_attn_factor` | as `logits`, compiled with the other reading of `attn_factor` |
//! | `logits_cachequant`, `logits_actquant` | as `logits`, compiled with states in their published formats, and with activations in FP8 too |
//! | `mtp_logits_prenorm` | as `mtp_logits`, compiled with hidden states from before the final norm |
//!
//! Every other tensor is named as not checked.

use crate::driver::{Options, compile, target};
use crate::emulate::Emulator;
use crate::failure::Failure;
use crate::input::Input;
use bytemuck::cast_slice;
use hadal_ir::target::TargetKind;
use hadal_ir::{Bindings, Sym, Tensor};
use hadal_models::blocks::engram::{CLASSES, multipliers};
use hadal_models::checkpoint::Checkpoint;
use hadal_models::config_reader::Config;
use hadal_models::ngram::Classes;
use hadal_models::{Activations, AttnFactor, Model, MtpInput, Vocabulary};
use hadal_runtime::{Pool, Program, Session};
use hadal_types::DType;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

mod drafts;

/// Largest absolute error of logits where `golden.json` gives none: ten times what rounding in f32 does to the
/// reference itself on the fixtures (`measured.err_f32_vs_f64_max`, at most 2e-5).
pub const DEFAULT_TOLERANCE: f64 = 2e-4;

/// How far logits with rounded activations may be on the whole, as a part of what rounding does to them (both as root
/// mean squares). Rounding is discontinuous: a value that lies on an edge, but for the last bits of an f32, may fall to
/// the other side, and all that follows from it is another. That changes no largest element and leaves rows before that
/// token, and most of those behind, as they should be; a mistake in what is rounded, or how, shows in every row.
const FLIPS: f64 = 0.1;

/// The part of the rows, of so many, that must be within the tolerance where a value fell to the other side.
const UNTOUCHED: [usize; 2] = [3, 4];

/// How many tokens each piece of the input has where it is taken in pieces: a divisor of neither groups nor windows.
pub const PIECE: usize = 7;

/// The outcome for one golden tensor.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Check {
    /// The golden tensor.
    pub tensor: String,
    /// Largest absolute difference.
    pub max_abs_error: f64,
    /// What it may be.
    pub tolerance: f64,
    /// Where something is rounded on the way and a value fell to the other side: the error on the whole, and what it
    /// may be.
    pub rms: Option<[f64; 2]>,
    /// Rows whose largest element is the same one.
    pub argmax_agree: usize,
    /// Rows of which every element is within the tolerance.
    pub rows_within: usize,
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
    /// `logits` again, the input taken in pieces of [`PIECE`] tokens through the states.
    pub in_pieces: Option<Check>,
    /// Tokens of `greedy` that came out, and how many there are.
    pub greedy: Option<(usize, usize)>,
    /// Golden tensors nobody looked at.
    pub unchecked: Vec<String>,
    /// Whether all that was checked holds, and something was.
    pub pass: bool,
}

/// Opens the checkpoint of a golden folder. Where a model needs a tokenizer that is not there, what is recorded of it
/// will do.
pub fn open(dir: &Path) -> Result<Input, Failure> {
    let mut input = Input::open(dir)?;
    let file = dir.join("golden.safetensors");
    if input.vocabulary.is_none() && file.exists() {
        let golden = Checkpoint::open(file)?;
        if golden.tensor("compressed_lookup").is_some() {
            let classes = Classes::new(tokens(&golden, "compressed_lookup")?);
            input.vocabulary = Some(Vocabulary::Classes(classes));
        }
    }
    Ok(input)
}

/// Compiles the checkpoint in `dir` and compares.
pub fn verify(dir: &Path, options: &Options, threads: usize) -> Result<Outcome, Failure> {
    if options.emulate && target(&options.target)?.kind == TargetKind::Cpu {
        return Err(Failure::usage("--emulate runs the code of a GPU: add --target sm_90a"));
    }
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
    // What rounding weights does to a model is not for us to judge.
    let tolerance = if options.quantize.is_some() { f64::INFINITY } else { tolerance(dir)? };
    let input = open(dir)?.quantized(options.quantize)?;
    let needed = ids.len() + greedy.len() + 1;
    let options = Options { max_context: Some(options.max_context.unwrap_or(0).max(needed)), ..options.clone() };

    let (model, program) = load(&input, &options)?;
    let mut run = Run { program, threads, ids, golden: &golden, dir: dir.into(), tolerance, checks: Vec::new() };
    let rows = run.all_rows()?;
    run.check_all(&rows)?;
    let in_pieces = run.in_pieces()?;
    run.made(&model)?;
    let greedy_hits = run.greedy_rows(&greedy)?;
    run.mtp_rows("mtp_logits", &rows)?;
    run.drafts(&greedy, &rows)?;
    let architecture = run.program.manifest().model.architecture.clone();
    // The other readings, each compiled where there is something to compare it with.
    if golden.tensor("logits_attn_factor").is_some() {
        let attn_factor = match options.attn_factor {
            AttnFactor::Ignore => AttnFactor::Apply,
            AttnFactor::Apply => AttnFactor::Ignore,
        };
        run.logits_of("logits_attn_factor", &input, Options { attn_factor, ..options.clone() })?;
    }
    for (name, activations) in [("logits_cachequant", Activations::Cache), ("logits_actquant", Activations::Fp8)] {
        run.logits_of(name, &input, Options { activations, ..options.clone() })?;
    }
    if golden.tensor("mtp_logits_prenorm").is_some() {
        run.program = load(&input, &Options { mtp_input: MtpInput::Raw, ..options.clone() })?.1;
        let rows = run.all_rows()?;
        run.mtp_rows("mtp_logits_prenorm", &rows)?;
    }
    if golden.tensors().any(|(n, _)| n.starts_with("kept_") || n.starts_with("engram_")) {
        let max_chunk = options.max_chunk.max(run.ids.len());
        run.program = load(&input, &Options { inner: true, max_chunk, ..options.clone() })?.1;
        let mut rows = run.all_rows()?;
        rows.retain(|(n, _)| run.checks.iter().all(|c| c.tensor != *n));
        run.check_all(&rows)?;
    }
    let checks = run.checks;
    let known = |n: &str| ["input_ids", "greedy"].contains(&n) || checks.iter().any(|c| c.tensor == n);
    let unchecked = golden.tensors().map(|(n, _)| n.to_owned()).filter(|n| !known(n)).collect();
    let greedy = (!greedy.is_empty()).then_some((greedy_hits, greedy.len()));
    let told = greedy.is_none_or(|(hits, of)| hits == of || options.quantize.is_some());
    let pass = !checks.is_empty() && checks.iter().chain(&in_pieces).all(|c| c.pass) && told;
    Ok(Outcome { path: dir.display().to_string(), architecture, checks, in_pieces, greedy, unchecked, pass })
}

fn load(input: &Input, options: &Options) -> Result<(Model, Arc<Program>), Failure> {
    let compiled = compile(input, &options.clone().here())?;
    let (_file, path) = compiled.in_memory(input)?;
    let program = match options.emulate {
        true => Program::open_on(&path, Arc::new(Emulator))?,
        false => Program::open_for(&path, &options.device, &mut |_, _| {})?,
    };
    Ok((compiled.model, program))
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

/// What rounding does to the logits of the golden tensor `name`, where that was measured.
fn rounding_effect(dir: &Path, name: &str) -> Result<Option<f64>, Failure> {
    let path = dir.join("golden.json");
    if !path.exists() {
        return Ok(None);
    }
    let config = Config::read(&path)?;
    let Some(measured) = config.object().optional_object("measured")? else { return Ok(None) };
    Ok(measured.optional_positive(&format!("{}_vs_plain_rms", name.trim_start_matches("logits_")))?)
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

/// Reads a golden tensor that should be like `ours`.
fn golden_like(golden: &Checkpoint, name: &str, ours: &Tensor) -> Result<Option<Tensor>, Failure> {
    let Some(t) = golden.tensor(name) else { return Ok(None) };
    let wide = |d: DType| if d.is_float() { d == DType::F32 } else { true };
    let fits = t.shape == ours.shape && t.dtype.is_float() == ours.dtype.is_float() && wide(t.dtype);
    match Tensor::from_bytes(t.dtype, t.shape, t.bytes).filter(|_| fits) {
        Some(tensor) => Ok(Some(tensor)),
        None => {
            let (expected, found) = (format!("{}{:?}", ours.dtype, ours.shape), t.describe());
            Err(Failure::input(format!("golden tensor `{name}`: expected {expected}, found {found}")))
        }
    }
}

fn argmax(row: &[f64]) -> usize {
    (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best })
}

/// Integers have to be the same.
fn compare(tensor: &str, ours: &Tensor, golden: &Tensor, tolerance: f64) -> Check {
    let tolerance = if golden.dtype.is_float() { tolerance } else { 0.0 };
    let values = |t: &Tensor| (0..t.len()).map(|i| t.at(i)).collect::<Vec<f64>>();
    let width = golden.shape.last().copied().unwrap_or(1).max(1);
    let (ours, golden) = (values(ours), values(golden));
    let error = |(a, b): (&f64, &f64)| if a == b { 0.0 } else { (a - b).abs() };
    // A NaN must fail, so it counts as infinitely far.
    let worst = |max: f64, e: f64| if e.is_nan() { f64::INFINITY } else { max.max(e) };
    let farthest = |a: &[f64], b: &[f64]| a.iter().zip(b).map(error).fold(0.0, worst);
    let max_abs_error = farthest(&ours, &golden);
    let rows = || ours.chunks(width).zip(golden.chunks(width));
    let pass = max_abs_error <= tolerance && ours.len() == golden.len();
    Check {
        tensor: tensor.to_owned(),
        max_abs_error,
        tolerance,
        rms: None,
        argmax_agree: rows().filter(|(a, b)| argmax(a) == argmax(b)).count(),
        rows_within: rows().filter(|(a, b)| farthest(a, b) <= tolerance).count(),
        rows: golden.len() / width,
        pass,
    }
}

/// What an entry gave, by name.
type Given = Vec<(String, Tensor)>;

fn of<'a>(given: &'a Given, name: &str) -> Option<&'a Tensor> {
    given.iter().find(|(n, _)| n == name).map(|(_, t)| t)
}

/// Rows of reals as the buffer of an input.
fn floats(t: &Tensor) -> Vec<f32> {
    t.reals().iter().map(|v| *v as f32).collect()
}

/// A program being compared.
struct Run<'a> {
    program: Arc<Program>,
    threads: usize,
    ids: Vec<u32>,
    golden: &'a Checkpoint,
    dir: PathBuf,
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

    /// Calls the entry `name` for `new` tokens.
    fn call(&self, session: &mut Session, name: &str, new: usize, inputs: &[&[u8]]) -> Result<Given, Failure> {
        let entry = session.entry(name)?;
        let manifest = self.program.manifest();
        let bindings = Bindings::from([(Sym::P, session.held(entry) as i64), (Sym::T, new as i64)]);
        let bindings = manifest.definitions.complete(&bindings);
        let shapes: Vec<Vec<usize>> = manifest.entries[entry]
            .outputs
            .iter()
            .map(|p| p.ty.eval_shape(&bindings))
            .collect::<Result<_, _>>()
            .map_err(|s| Failure::internal("comparing", format!("an output of `{name}` has a size of {s}")))?;
        let ports = || manifest.entries[entry].outputs.iter().zip(&shapes);
        let bytes = ports().map(|(p, shape)| p.ty.dtype.bytes(shape.iter().product::<usize>() as u64) as usize);
        // In words, so that they are aligned.
        let mut buffers: Vec<(usize, Vec<u64>)> = bytes.map(|n| (n, vec![0; n.div_ceil(8)])).collect();
        let mut outputs: Vec<&mut [u8]> =
            buffers.iter_mut().map(|(n, b)| &mut bytemuck::cast_slice_mut::<u64, u8>(b)[..*n]).collect();
        session.run(entry, new, inputs, &mut outputs)?;
        let decoded = ports().zip(&buffers).map(|((p, shape), (n, b))| {
            let tensor = Tensor::from_bytes(p.ty.dtype, shape, &cast_slice::<u64, u8>(b)[..*n]);
            (p.name.clone(), tensor.expect("the buffer has its size"))
        });
        Ok(decoded.collect())
    }

    /// Compares with the golden tensor `name`, if there is one.
    fn check(&mut self, name: &str, ours: &Tensor) -> Result<(), Failure> {
        if let Some(golden) = golden_like(self.golden, name, ours)? {
            self.checks.push(compare(name, ours, &golden, self.tolerance));
        }
        Ok(())
    }

    fn check_all(&mut self, given: &Given) -> Result<(), Failure> {
        given.iter().try_for_each(|(name, ours)| self.check(name, ours))
    }

    /// Runs entry `logits` over the input: all its outputs, of all rows.
    fn all_rows(&self) -> Result<Given, Failure> {
        self.rows_by(self.chunk())
    }

    /// The same in calls of `size` tokens.
    fn rows_by(&self, size: usize) -> Result<Given, Failure> {
        let mut session = self.session()?;
        let mut all = Given::new();
        for chunk in self.ids.chunks(size) {
            let given = self.call(&mut session, "logits", chunk.len(), &[cast_slice(chunk)])?;
            match all.is_empty() {
                true => all = given,
                false => all.iter_mut().zip(given).for_each(|((_, whole), (_, part))| join(whole, part)),
            }
        }
        Ok(all)
    }

    /// Compares `logits` of the input in pieces with the golden ones of the whole.
    fn in_pieces(&self) -> Result<Option<Check>, Failure> {
        let rows = self.rows_by(PIECE.min(self.chunk()))?;
        let Some(logits) = of(&rows, "logits") else { return Ok(None) };
        let golden = golden_like(self.golden, "logits", logits)?;
        Ok(golden.map(|golden| compare("logits", logits, &golden, self.tolerance)))
    }

    /// Compares `logits`, compiled with other options, with the golden tensor `name`, if there is one.
    fn logits_of(&mut self, name: &str, input: &Input, options: Options) -> Result<(), Failure> {
        if self.golden.tensor(name).is_none() {
            return Ok(());
        }
        self.program = load(input, &options)?.1;
        let rows = self.all_rows()?;
        let Some(logits) = of(&rows, "logits") else { return Ok(()) };
        self.check(name, logits)?;
        if let (Some(check), Some(effect)) =
            (self.checks.last_mut().filter(|c| !c.pass), rounding_effect(&self.dir, name)?)
            && let Some(golden) = golden_like(self.golden, name, logits)?
        {
            let squares = logits.reals().iter().zip(golden.reals()).map(|(a, b)| (a - b).powi(2));
            let error = (squares.sum::<f64>() / golden.len().max(1) as f64).sqrt();
            check.rms = Some([error, FLIPS * effect]);
            let untouched = check.rows_within * UNTOUCHED[1] >= check.rows * UNTOUCHED[0];
            check.pass = error <= FLIPS * effect && check.argmax_agree == check.rows && untouched;
        }
        Ok(())
    }

    /// Compares what the model makes for itself: classes of tokens, multipliers and primes.
    fn made(&mut self, model: &Model) -> Result<(), Failure> {
        let Some(hashing) = &model.hashing else { return Ok(()) };
        if let Some(Some(classes)) = model.made.get(CLASSES) {
            self.check("compressed_lookup", classes)?;
        }
        for (layer, primes) in hashing.layers.iter().zip(hashing.primes()) {
            let shape = [hashing.sizes.len(), hashing.heads];
            let primes = Tensor::int(DType::I64, &shape, primes.into_iter().map(|p| p as i64).collect());
            self.check(&format!("primes_{layer}"), &primes)?;
            if let Some(Some(drawn)) = model.made.get(&multipliers(*layer)) {
                self.check(&format!("multipliers_{layer}"), drawn)?;
            }
        }
        Ok(())
    }

    /// Runs the input, then the golden continuation token by token; returns how many of its tokens came out on top.
    fn greedy_rows(&mut self, greedy: &[u32]) -> Result<usize, Failure> {
        if greedy.is_empty() {
            return Ok(0);
        }
        let mut session = self.session()?;
        let mut last = Given::new();
        for chunk in self.ids.chunks(self.chunk()) {
            last = self.call(&mut session, "prefill", chunk.len(), &[cast_slice(chunk)])?;
        }
        let mut all: Option<Tensor> = None;
        let mut hits = 0;
        for (i, token) in greedy.iter().enumerate() {
            if i > 0 {
                last = self.call(&mut session, "decode", 1, &[cast_slice(&greedy[i - 1..i])])?;
            }
            let Some(row) = of(&last, "logits") else { return Ok(0) };
            hits += usize::from(argmax(row.reals()) == *token as usize);
            match &mut all {
                None => all = Some(row.clone()),
                Some(all) => join(all, row.clone()),
            }
        }
        all.map_or(Ok(()), |all| self.check("greedy_logits", &all))?;
        Ok(hits)
    }

    /// Runs entry `mtp` on the input shifted by one and the main model's hidden states, and compares with `name`.
    fn mtp_rows(&mut self, name: &str, rows: &Given) -> Result<(), Failure> {
        let mut session = self.session()?;
        let (Some(_), Ok(_), Some(hidden)) = (self.golden.tensor(name), session.entry("mtp"), of(rows, "hidden"))
        else {
            return Ok(());
        };
        let hidden = floats(hidden);
        let width = hidden.len() / self.ids.len();
        let chunk = self.chunk();
        let mut all: Option<Tensor> = None;
        for (ids, hidden) in self.ids[1..].chunks(chunk).zip(hidden.chunks(chunk * width)) {
            let rows = &hidden[..ids.len() * width];
            let given = self.call(&mut session, "mtp", ids.len(), &[cast_slice(ids), cast_slice(rows)])?;
            match (&mut all, of(&given, "logits")) {
                (Some(all), Some(part)) => join(all, part.clone()),
                (_, part) => all = part.cloned(),
            }
        }
        all.map_or(Ok(()), |all| self.check(name, &all))
    }
}

/// Puts the rows of `part` behind those of `whole`.
fn join(whole: &mut Tensor, part: Tensor) {
    use hadal_ir::tensor::Data;
    whole.shape[0] += part.shape[0];
    match (&mut whole.data, part.data) {
        (Data::Real(whole), Data::Real(part)) => whole.extend(part),
        (Data::Int(whole), Data::Int(part)) => whole.extend(part),
        _ => unreachable!("outputs of one entry"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_seen() {
        let tensor = |values: &[f64]| Tensor::real(DType::F32, &[values.len() / 3, 3], values.to_vec());
        let golden = [0.0, 1.0, 2.0, 5.0, 4.0, 3.0];
        let same = compare("x", &tensor(&golden), &tensor(&golden), 1e-4);
        assert!(same.pass && same.argmax_agree == 2 && same.max_abs_error == 0.0);
        let mut other = golden;
        other[2] = 0.5;
        let check = compare("x", &tensor(&other), &tensor(&golden), 1e-4);
        assert!(!check.pass && check.argmax_agree == 1 && check.max_abs_error == 1.5);
        other[2] = f64::NAN;
        assert!(!compare("x", &tensor(&other), &tensor(&golden), 1e9).pass);
        assert!(!compare("x", &tensor(&golden[..3]), &tensor(&golden), 1e9).pass);
        let ints = |values: &[i64]| Tensor::int(DType::I64, &[values.len()], values.to_vec());
        assert!(compare("x", &ints(&[1, 2]), &ints(&[1, 2]), 9.0).pass);
        assert!(!compare("x", &ints(&[1, 2]), &ints(&[1, 3]), 9.0).pass);
    }
}
