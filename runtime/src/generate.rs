//! A prompt in chunks, then token by token, or several at a time with drafts.
//!
//! Entries are found by name: `prefill` and `decode` take `tokens`, an `i32[T]`. `prefill` gives `logits`, an `f32[1,
//! V]` of the last token; `decode` the same, or the logits of each token where it takes several. Tokens go through the
//! model lazily: a token that was drawn is run when the next one is wanted, so the last one costs nothing.
//!
//! Where a program drafts ([`Generator::draft`]), `decode` also gives `hidden`, a row for each token, and so does
//! `prefill`, or `prefill_hidden` in its place.

use crate::speculate::{Acceptance, Depth, Drafter, Drafts, LONGEST, Unseen, drafter, elements, most};
use crate::{Error, Rng, Sampler, Sampling, Session};
use hadal_artifact::Entry;
use hadal_types::{DType, Sym};
use std::time::Instant;

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
    vocab: usize,
    /// The entry that reads prompts, and most tokens of a call.
    prefill: Option<(usize, usize)>,
    decode: usize,
    tokens: Vec<i32>,
    /// A row for each token of the last step.
    logits: Vec<f32>,
    /// The same, where entries give it.
    hidden: Vec<f32>,
    width: usize,
    /// Tokens drawn in the last step, and how many of them were handed out. All but the last are run.
    drawn: Vec<Drawn>,
    given: usize,
    /// Handed out but not yet run.
    pending: Option<u32>,
    ready: bool,
    stopped: Option<Stop>,
    stop: Vec<u32>,
    speculation: Option<Speculation>,
}

/// A token, and the random numbers after it.
struct Drawn {
    token: u32,
    rng: Rng,
}

struct Speculation {
    drafter: Box<dyn Drafter>,
    depth: Depth,
    unseen: Unseen,
    drafted: Vec<i32>,
    /// Most tokens of a step.
    most: usize,
    /// Where another version of `decode` begins, by tokens held. A step does not reach beyond, as its tokens
    /// would not have the bits that they have alone.
    borders: Vec<u64>,
    acceptance: Acceptance,
}

impl Generator {
    /// A generator on `session`, which may already hold tokens.
    pub fn new(session: Session, sampling: Sampling) -> Result<Generator, Error> {
        let m = session.program().manifest();
        let vocab = m.model.vocab as usize;
        let decode = session.entry("decode")?;
        // With or without drafts the same one, as another may have other bits.
        let prefill = session.entry("prefill_hidden").or_else(|_| session.entry("prefill")).ok();
        let width = check_ports(&m.entries[decode], m.model.vocab)?;
        let reads = match prefill {
            Some(entry) => check_ports(&m.entries[entry], m.model.vocab)?,
            None => 0,
        };
        let largest = prefill.map_or(1, |e| most(&m.entries[e]));
        Ok(Generator {
            sampler: Sampler::new(sampling, vocab)?,
            vocab,
            prefill: prefill.map(|e| (e, largest)),
            decode,
            tokens: Vec::with_capacity(largest),
            logits: vec![0.0; vocab],
            hidden: vec![0.0; width.max(largest * reads)],
            width,
            drawn: Vec::with_capacity(LONGEST + 1),
            given: 0,
            pending: None,
            ready: false,
            stopped: None,
            stop: m.model.stop.clone(),
            speculation: None,
            session,
        })
    }

    /// Whether the program can draft.
    pub fn can_draft(&self) -> bool {
        self.width > 0 && drafter(&self.session, self.width).is_some()
    }

    /// Drafts from now on, or no longer; to be called before the prompt. The tokens stay the same. Where the program
    /// cannot draft this does nothing.
    pub fn draft(&mut self, drafts: Drafts) -> Result<(), Error> {
        self.speculation = None;
        let m = self.session.program().manifest();
        let drafter = match drafts {
            Drafts::Count(0) => None,
            _ if self.width == 0 => None,
            _ => drafter(&self.session, self.width),
        };
        let Some(drafter) = drafter else { return Ok(()) };
        let (read, chunk) = self.prefill.unwrap_or((self.decode, 1));
        if check_ports(&m.entries[read], m.model.vocab)? != self.width {
            return Err(Error::NoPort { entry: m.entries[read].name.clone(), port: "output `hidden` like `decode`'s" });
        }
        let decode = &m.entries[self.decode];
        let step = most(decode).min(LONGEST + 1);
        let lows = decode.versions.iter().flat_map(|v| &v.symbols).filter(|r| r.sym == Sym::P && r.lo > 0);
        let borders = lows.map(|r| r.lo as u64).collect();
        self.logits = vec![0.0; step * self.vocab];
        self.hidden = vec![0.0; chunk.max(step) * self.width];
        self.tokens.reserve(chunk.max(step));
        self.speculation = Some(Speculation {
            drafter,
            depth: Depth::new(drafts),
            unseen: Unseen::new(self.width, chunk + 2 * (LONGEST + 1)),
            drafted: Vec::with_capacity(step),
            most: step,
            borders,
            acceptance: Acceptance::default(),
        });
        Ok(())
    }

    /// What became of drafts; `None` where there are none.
    pub fn acceptance(&self) -> Option<&Acceptance> {
        self.speculation.as_ref().map(|s| &s.acceptance)
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

    /// Keeps from now on when each launch of each call ended; see [`Session::watch`].
    pub fn watch(&mut self) {
        self.session.watch();
    }

    /// The session.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The sequence itself, to go on with in another way: in a [`Batch`](crate::Batch) with others, say.
    pub fn into_session(self) -> Session {
        self.session
    }

    /// Logits of the last token that was run: those from which the last token was drawn, once there is one.
    pub fn logits(&self) -> &[f32] {
        &self.logits[self.given.saturating_sub(1) * self.vocab..][..self.vocab]
    }

    /// Why [`Generator::next_token`] gave none.
    pub fn stopped(&self) -> Option<Stop> {
        self.stopped
    }

    /// Starts anew with the first `rows` tokens that were run; see [`Session::truncate`] for how far back that can be.
    pub fn rewind(&mut self, rows: u64) -> Result<(), Error> {
        self.forget_undrawn()?;
        let seen = self.speculation.as_ref().map_or(0, |s| s.drafter.held(&self.session));
        self.session.truncate(rows)?;
        if let Some(s) = &mut self.speculation {
            let left = (rows.saturating_sub(seen) as usize).min(s.unseen.rows());
            s.unseen.keep(left, false);
        }
        (self.pending, self.ready, self.stopped) = (None, false, None);
        Ok(())
    }

    /// Takes back tokens that were drawn but never handed out.
    fn forget_undrawn(&mut self) -> Result<(), Error> {
        let more = self.drawn.len() - self.given;
        if more > 0 && self.given > 0 {
            let held = self.session.held(self.decode) - more as u64;
            self.session.truncate_for(self.decode, held)?;
            self.sampler.rng = self.drawn[self.given - 1].rng.clone();
            if let Some(s) = &mut self.speculation {
                s.unseen.keep(s.unseen.rows() - more, true);
            }
        }
        self.drawn.clear();
        self.given = 0;
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
        self.forget_undrawn()?;
        let held = self.session.held(self.decode) + self.pending.is_some() as u64;
        let new = prompt.len() as u64;
        if held + new > max {
            return Err(Error::Context { held, new, max });
        }
        if let (Some(s), Some(Stop::Token(_))) = (&mut self.speculation, self.stopped) {
            // Something else follows than the token that ended it.
            s.unseen.keep(s.unseen.rows(), false);
        }
        if let Some(token) = self.pending.take() {
            self.run(self.decode, [token].into_iter())?;
        }
        let (entry, most) = self.prefill.unwrap_or((self.decode, 1));
        for chunk in prompt.chunks(most) {
            self.run(entry, chunk.iter().copied())?;
            if let Some(s) = &mut self.speculation {
                s.unseen.take(|rows| s.drafter.fill(&mut self.session, rows))?;
            }
        }
        self.stopped = None;
        Ok(())
    }

    /// The next token, or `None` at a stop token or where the context is full.
    pub fn next_token(&mut self) -> Result<Option<u32>, Error> {
        if self.stopped.is_some() {
            return Ok(None);
        }
        if self.given == self.drawn.len() {
            if self.pending.is_some()
                && self.session.held(self.decode) >= self.session.program().manifest().model.max_context
            {
                self.stopped = Some(Stop::Context);
                return Ok(None);
            }
            self.step()?;
        }
        let token = self.drawn[self.given].token;
        self.given += 1;
        if self.stop.contains(&token) {
            (self.pending, self.stopped) = (None, Some(Stop::Token(token)));
            return Ok(None);
        }
        self.pending = Some(token);
        Ok(Some(token))
    }

    /// Draws one token or more.
    fn step(&mut self) -> Result<(), Error> {
        self.drawn.clear();
        self.given = 0;
        let begun = Instant::now();
        let newest = self.pending;
        self.guess()?;
        let guessed = Instant::now();
        let drafted = self.speculation.as_ref().map_or(0, |s| s.drafted.len());
        if let Some(token) = newest {
            let drafts = self.speculation.as_mut().map(|s| std::mem::take(&mut s.drafted)).unwrap_or_default();
            let ran = self.run(self.decode, [token].into_iter().chain(drafts.iter().map(|t| *t as u32)));
            if let Some(s) = &mut self.speculation {
                s.drafted = drafts;
            }
            ran?;
            self.pending = None;
        } else if !self.ready {
            return Err(Error::EmptyPrompt);
        }
        let verified = Instant::now();
        let held = self.session.held(self.decode);
        for row in 0..=drafted {
            let token = self.sampler.sample(&self.logits[row * self.vocab..][..self.vocab])?;
            self.drawn.push(Drawn { token, rng: self.sampler.rng.clone() });
            let guess = self.speculation.as_ref().and_then(|s| s.drafted.get(row));
            if guess != Some(&(token as i32)) || self.stop.contains(&token) {
                break;
            }
        }
        let Some(s) = &mut self.speculation else { return Ok(()) };
        let wrong = drafted + 1 - self.drawn.len();
        if wrong > 0 {
            self.session.truncate_for(self.decode, held - wrong as u64)?;
        }
        s.unseen.keep(s.unseen.rows() - wrong, false);
        if let Some(last) = self.drawn.last() {
            s.unseen.follows(last.token as i32);
        }
        if newest.is_some() {
            let accepted = self.drawn.len() - 1;
            let seconds = |from: Instant, to: Instant| (to - from).as_secs_f64();
            s.depth.learn(drafted, accepted, seconds(begun, guessed), seconds(guessed, verified));
            s.acceptance.steps += 1;
            s.acceptance.tokens += self.drawn.len() as u64;
            (0..drafted).for_each(|i| s.acceptance.offered[i] += 1);
            (0..accepted).for_each(|i| s.acceptance.accepted[i] += 1);
        }
        Ok(())
    }

    /// Drafts what may follow the newest token.
    fn guess(&mut self) -> Result<(), Error> {
        let Some(s) = &mut self.speculation else { return Ok(()) };
        s.drafted.clear();
        if self.pending.is_none() {
            return Ok(());
        }
        let held = self.session.held(self.decode);
        let max = self.session.program().manifest().model.max_context;
        let border = s.borders.iter().copied().filter(|b| *b > held).min().unwrap_or(u64::MAX);
        let room = (max.min(border) - held).min(s.most as u64) as usize - 1;
        let count = s.depth.choose(room);
        if count == 0 {
            // Rows wait for the next draft, as long as there is room.
            return match s.unseen.is_full() {
                true => s.unseen.take(|rows| s.drafter.fill(&mut self.session, rows)),
                false => Ok(()),
            };
        }
        let Speculation { drafter, unseen, drafted, .. } = s;
        let (session, sampler) = (&mut self.session, &mut self.sampler);
        let mut choose = |ahead: usize, logits: &[f32]| sampler.guess(ahead, logits);
        unseen.take(|rows| drafter.draft(session, rows, count, &mut choose, drafted))
    }

    fn run(&mut self, entry: usize, tokens: impl Iterator<Item = u32>) -> Result<(), Error> {
        self.tokens.clear();
        self.tokens.extend(tokens.map(|t| t as i32));
        let n = self.tokens.len();
        let outputs = &self.session.program().manifest().entries[entry].outputs;
        let rows = if outputs[0].ty.shape[0].is(1) { 1 } else { n };
        let (count, width) = (outputs.len(), outputs.get(1).map_or(0, |p| elements(&p.ty)));
        let logits = bytemuck::cast_slice_mut(&mut self.logits[..rows * self.vocab]);
        let hidden = bytemuck::cast_slice_mut(&mut self.hidden[..n * width]);
        let outputs = &mut [logits, hidden][..count];
        self.session.run(entry, n, &[bytemuck::cast_slice(&self.tokens)], outputs)?;
        if let Some(s) = &mut self.speculation {
            s.unseen.ran(&self.tokens, &self.hidden[..n * width]);
        }
        self.ready = true;
        Ok(())
    }
}

/// Checks that an entry takes tokens and gives logits, of the last one or of each; returns the elements of a row of
/// `hidden`, 0 where it has none.
pub(crate) fn check_ports(entry: &Entry, vocab: u64) -> Result<usize, Error> {
    let refuse = |port| Error::NoPort { entry: entry.name.clone(), port };
    let tokens = entry.inputs.len() == 1 && entry.inputs[0].ty.dtype == DType::I32;
    if !tokens {
        return Err(refuse("single input `tokens` of type i32[T]"));
    }
    let several = entry.range(Sym::T).is_some_and(|r| r.hi > 1);
    let of_each = |d: &hadal_types::Dim| *d == Sym::T.into();
    let logits = entry.outputs.first().is_some_and(|p| {
        let [rows, columns] = &p.ty.shape[..] else { return false };
        let each = of_each(rows) && (entry.name == "decode" || !several);
        p.ty.dtype == DType::F32 && (rows.is(1) || each) && columns.is(vocab as i64)
    });
    if !logits || (entry.name == "decode" && several && entry.outputs[0].ty.shape[0].is(1)) {
        return Err(refuse("output `logits` of type f32[1, V]"));
    }
    match &entry.outputs[1..] {
        [] => Ok(0),
        [hidden] if hidden.ty.dtype == DType::F32 && hidden.ty.shape.first().is_some_and(of_each) => {
            Ok(elements(&hidden.ty))
        }
        _ => Err(refuse("outputs but `logits` and `hidden` of type f32[T, …]")),
    }
}
