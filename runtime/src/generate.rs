//! A prompt in chunks, then token by token.
//!
//! Entries are found by name: `prefill` and `decode` take `tokens`, an `i32[T]`, and give `logits`, an `f32[1, V]` of
//! the last token. Tokens go through the model lazily: a token that was drawn is run when the next one is wanted, so the
//! last one costs nothing.

use crate::{Error, Sampler, Sampling, Session};
use hadal_artifact::Entry;
use hadal_types::{DType, Sym};

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The model said so, with this token.
    Token(u32),
    /// The context is full.
    Context,
}

/// Draws tokens that continue a prompt.
pub struct Generator {
    session: Session,
    sampler: Sampler,
    prefill: Option<usize>,
    decode: usize,
    largest_chunk: usize,
    tokens: Vec<i32>,
    logits: Vec<f32>,
    /// Drawn but not yet run.
    pending: Option<u32>,
    ready: bool,
    stopped: Option<Stop>,
    stop: Vec<u32>,
}

impl Generator {
    /// A generator on `session`, which may already hold tokens.
    pub fn new(session: Session, sampling: Sampling) -> Result<Generator, Error> {
        let m = session.program().manifest();
        let vocab = m.model.vocab as usize;
        let decode = session.entry("decode")?;
        let prefill = session.entry("prefill").ok();
        for entry in prefill.iter().chain([&decode]) {
            check_ports(&m.entries[*entry], m.model.vocab)?;
        }
        let range = prefill.and_then(|e| m.entries[e].range(Sym::T));
        let largest_chunk = range.map_or(1, |r| r.hi.max(1) as usize);
        Ok(Generator {
            sampler: Sampler::new(sampling, vocab)?,
            prefill,
            decode,
            largest_chunk,
            tokens: Vec::with_capacity(largest_chunk),
            logits: vec![0.0; vocab],
            pending: None,
            ready: false,
            stopped: None,
            stop: m.model.stop.clone(),
            session,
        })
    }

    /// Goes on past stop tokens, as golden continuations and benchmarks want it.
    pub fn ignore_stop_tokens(&mut self) {
        self.stop.clear();
    }

    /// Ends at `token` as well.
    pub fn also_stop_at(&mut self, token: u32) {
        if !self.stop.contains(&token) {
            self.stop.push(token);
        }
    }

    /// The session.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Logits of the last token that was run.
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// Why [`Generator::next_token`] gave none.
    pub fn stopped(&self) -> Option<Stop> {
        self.stopped
    }

    /// Starts anew with the first `rows` tokens that were run; see [`Session::truncate`] for how far back that can be.
    pub fn rewind(&mut self, rows: u64) -> Result<(), Error> {
        self.session.truncate(rows)?;
        (self.pending, self.ready, self.stopped) = (None, false, None);
        Ok(())
    }

    /// Runs `prompt` after what is already held.
    pub fn prompt(&mut self, prompt: &[u32]) -> Result<(), Error> {
        let m = &self.session.program().manifest().model;
        let (vocab, max) = (m.vocab, m.max_context);
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        if let Some(token) = prompt.iter().find(|t| **t as u64 >= vocab) {
            return Err(Error::Token { token: *token as i64, vocab });
        }
        let held = self.session.held(self.decode) + self.pending.is_some() as u64;
        let new = prompt.len() as u64;
        if held + new > max {
            return Err(Error::Context { held, new, max });
        }
        if let Some(token) = self.pending.take() {
            self.run(&[token])?;
        }
        for chunk in prompt.chunks(self.largest_chunk) {
            self.run(chunk)?;
        }
        self.stopped = None;
        Ok(())
    }

    /// The next token, or `None` at a stop token or where the context is full.
    pub fn next_token(&mut self) -> Result<Option<u32>, Error> {
        if self.stopped.is_some() {
            return Ok(None);
        }
        if let Some(token) = self.pending {
            if self.session.held(self.decode) >= self.session.program().manifest().model.max_context {
                self.stopped = Some(Stop::Context);
                return Ok(None);
            }
            self.run(&[token])?;
            self.pending = None;
        }
        if !self.ready {
            return Err(Error::EmptyPrompt);
        }
        let token = self.sampler.sample(&self.logits)?;
        if self.stop.contains(&token) {
            self.stopped = Some(Stop::Token(token));
            return Ok(None);
        }
        self.pending = Some(token);
        Ok(Some(token))
    }

    fn run(&mut self, tokens: &[u32]) -> Result<(), Error> {
        self.tokens.clear();
        self.tokens.extend(tokens.iter().map(|t| *t as i32));
        let entry = match (tokens.len(), self.prefill) {
            (1, _) | (_, None) => self.decode,
            (_, Some(prefill)) => prefill,
        };
        let logits = bytemuck::cast_slice_mut(&mut self.logits);
        self.session.run(entry, tokens.len(), &[bytemuck::cast_slice(&self.tokens)], &mut [logits])?;
        self.ready = true;
        Ok(())
    }
}

fn check_ports(entry: &Entry, vocab: u64) -> Result<(), Error> {
    let refuse = |port| Error::NoPort { entry: entry.name.clone(), port };
    let tokens = entry.inputs.len() == 1 && entry.inputs[0].ty.dtype == DType::I32;
    let shape = |ty: &hadal_types::TensorType| ty.rank() == 2 && ty.shape[0].is(1) && ty.shape[1].is(vocab as i64);
    let logits = entry.outputs.len() == 1 && entry.outputs[0].ty.dtype == DType::F32 && shape(&entry.outputs[0].ty);
    if !tokens {
        return Err(refuse("single input `tokens` of type i32[T]"));
    }
    if !logits {
        return Err(refuse("single output `logits` of type f32[1, V]"));
    }
    Ok(())
}
