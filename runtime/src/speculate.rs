//! Drafts: a small part of the model guesses tokens, which all of it then verifies in one call.
//!
//! Nothing depends on a guess but speed. The call gives logits for every drafted token, and from these the sampler
//! draws as it would have drawn without drafts: with the same logits to the bit (entries for steps see to that) and the
//! same random numbers. A draft is accepted as long as the token drawn is the one guessed. So the same seed gives the
//! same text, whatever is drafted and however much of it: not only the same distribution. Guesses are drawn from the
//! drafter's own logits with the random numbers that the sampler is about to use, so that where both distributions
//! agree, so do most draws; at temperature 0 both take the likeliest token.
//!
//! What a program offers is told by its entries, see [`Drafter`].

use crate::{Error, Session};
use hadal_artifact::Entry;
use hadal_types::{Sym, TensorType};

/// Most tokens of a draft.
pub const LONGEST: usize = 15;

/// How many tokens to draft.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drafts {
    /// As many as pay, by what is accepted and how long it takes.
    Auto,
    /// So many, where there is room; 0 for none.
    Count(usize),
}

/// What became of drafts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Acceptance {
    /// Calls of the main model.
    pub steps: u64,
    /// Tokens that came out of them.
    pub tokens: u64,
    /// How often there was a draft for the first token after the newest, the second, …
    pub offered: [u64; LONGEST],
    /// How often it and those before it were right.
    pub accepted: [u64; LONGEST],
}

impl Acceptance {
    /// Tokens a step gave.
    pub fn tokens_per_step(&self) -> f64 {
        self.tokens as f64 / self.steps.max(1) as f64
    }

    /// For each position that was drafted at all, the share of drafts that were right up to there.
    pub fn rates(&self) -> impl Iterator<Item = f64> + '_ {
        let all = self.accepted.iter().zip(&self.offered);
        all.take_while(|(_, offered)| **offered > 0).map(|(a, o)| *a as f64 / *o as f64)
    }
}

/// Rows of hidden states of tokens in a row, and the token after each.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub tokens: &'a [i32],
    pub hidden: &'a [f32],
}

/// Draws a token from logits, as the sampler will so many tokens from now.
pub(crate) type Choose<'a> = dyn FnMut(usize, &[f32]) -> Result<u32, Error> + 'a;

/// What guesses tokens, from rows that the main model gives for the tokens it has run (its output `hidden`).
///
/// | entries | |
/// |---|---|
/// | `draft_fill`, `draft` | [`Predictor`]: both take `tokens`, those after the rows, and `hidden`; `draft` gives the logits of the next one, and `next`, to be taken for its row |
/// | `draft_fill`, `draft`, `markov` | [`Blocks`]: `draft_fill` takes `hidden`; `draft` takes the newest token to `logits` and `states` of a block, and `markov` token, row and state to the row's final `logits` |
pub(crate) trait Drafter: Send {
    /// Takes in rows.
    fn fill(&mut self, session: &mut Session, rows: Rows<'_>) -> Result<(), Error>;

    /// Takes in rows, the last of which is that before the newest token, and guesses at most `most` tokens after it.
    fn draft(
        &mut self,
        session: &mut Session,
        rows: Rows<'_>,
        most: usize,
        choose: &mut Choose<'_>,
        out: &mut Vec<i32>,
    ) -> Result<(), Error>;

    /// Rows taken in.
    fn held(&self, session: &Session) -> u64;
}

/// The drafter of a program, if it has one that takes rows of so many elements.
pub(crate) fn drafter(session: &Session, width: usize) -> Option<Box<dyn Drafter>> {
    let entry = |name: &str| session.entry(name).ok();
    let (fill, draft) = (entry("draft_fill")?, entry("draft")?);
    let entries = &session.program().manifest().entries;
    let vocab = session.program().manifest().model.vocab as usize;
    let takes = |e: usize, name: &str| entries[e].inputs.iter().any(|p| p.name == name);
    let gives = |e: usize, name: &str| Some(elements(&entries[e].outputs.iter().find(|p| p.name == name)?.ty));
    let chunk = most(&entries[fill]);
    if let Some(markov) = entry("markov") {
        let (logits, states) = (gives(draft, "logits")?, gives(draft, "states")?);
        let block = logits / vocab;
        let fits = block > 0 && logits == block * vocab && gives(markov, "logits")? == vocab && states % block == 0;
        let (logits, states, row) = (vec![0.0; logits], vec![0.0; states], vec![0.0; vocab]);
        return fits.then(|| Box::new(Blocks { fill, draft, markov, width, chunk, block, logits, states, row }) as _);
    }
    let fits = takes(draft, "hidden") && gives(draft, "logits")? == vocab && gives(draft, "next")? == width;
    let (logits, next, before) = (vec![0.0; vocab], vec![0.0; width], vec![0.0; width]);
    let step = most(&entries[draft]);
    fits.then(|| Box::new(Predictor { fill, draft, width, chunk, step, logits, next, before }) as _)
}

/// Most new tokens of a call.
pub(crate) fn most(entry: &Entry) -> usize {
    entry.range(Sym::T).map_or(1, |r| r.hi.max(1) as usize)
}

/// Elements of a tensor whose sizes are known, or of one row of it where its rows are not.
pub(crate) fn elements(ty: &TensorType) -> usize {
    ty.shape.iter().filter_map(|d| d.as_const()).map(|n| n.max(0) as usize).product()
}

/// Multi-token prediction, applied again to what it gave.
struct Predictor {
    fill: usize,
    draft: usize,
    width: usize,
    /// Most rows of a call of `fill`, and of `draft`.
    chunk: usize,
    step: usize,
    logits: Vec<f32>,
    next: Vec<f32>,
    before: Vec<f32>,
}

impl Drafter for Predictor {
    fn fill(&mut self, session: &mut Session, rows: Rows<'_>) -> Result<(), Error> {
        for (tokens, hidden) in rows.tokens.chunks(self.chunk).zip(rows.hidden.chunks(self.chunk * self.width)) {
            session.run(self.fill, tokens.len(), &[bytes(tokens), bytes(hidden)], &mut [])?;
        }
        Ok(())
    }

    fn draft(
        &mut self,
        session: &mut Session,
        rows: Rows<'_>,
        most: usize,
        choose: &mut Choose<'_>,
        out: &mut Vec<i32>,
    ) -> Result<(), Error> {
        let early = rows.tokens.len().saturating_sub(self.step);
        let (first, tokens) = rows.tokens.split_at(early);
        let (before, hidden) = rows.hidden.split_at(early * self.width);
        self.fill(session, Rows { tokens: first, hidden: before })?;
        let held = self.held(session) + tokens.len() as u64;
        let outputs = &mut [bytes_mut(&mut self.logits), bytes_mut(&mut self.next)];
        session.run(self.draft, tokens.len(), &[bytes(tokens), bytes(hidden)], outputs)?;
        loop {
            out.push(choose(out.len(), &self.logits)? as i32);
            if out.len() >= most {
                break;
            }
            std::mem::swap(&mut self.next, &mut self.before);
            let outputs = &mut [bytes_mut(&mut self.logits), bytes_mut(&mut self.next)];
            session.run(self.draft, 1, &[bytes(&out[out.len() - 1..]), bytes(&self.before)], outputs)?;
        }
        // What it guessed from its own guesses is forgotten.
        session.truncate_for(self.draft, held)
    }

    fn held(&self, session: &Session) -> u64 {
        session.held(self.draft)
    }
}

/// A block of tokens at once, each row of which is corrected by the token before it.
struct Blocks {
    fill: usize,
    draft: usize,
    markov: usize,
    width: usize,
    /// Most rows of a call of `fill`.
    chunk: usize,
    block: usize,
    logits: Vec<f32>,
    states: Vec<f32>,
    row: Vec<f32>,
}

impl Drafter for Blocks {
    fn fill(&mut self, session: &mut Session, rows: Rows<'_>) -> Result<(), Error> {
        for hidden in rows.hidden.chunks(self.chunk * self.width) {
            session.run(self.fill, hidden.len() / self.width, &[bytes(hidden)], &mut [])?;
        }
        Ok(())
    }

    fn draft(
        &mut self,
        session: &mut Session,
        rows: Rows<'_>,
        most: usize,
        choose: &mut Choose<'_>,
        out: &mut Vec<i32>,
    ) -> Result<(), Error> {
        self.fill(session, rows)?;
        let Some(newest) = rows.tokens.last() else { return Ok(()) };
        let outputs = &mut [bytes_mut(&mut self.logits), bytes_mut(&mut self.states)];
        session.run(self.draft, 1, &[bytes(std::slice::from_ref(newest))], outputs)?;
        let (vocab, width) = (self.row.len(), self.states.len() / self.block);
        let all = self.logits.chunks(vocab).zip(self.states.chunks(width));
        let (mut before, mut confidence) = (*newest, [0f32]);
        for (i, (logits, state)) in all.take(most).enumerate() {
            let inputs = [bytes(std::slice::from_ref(&before)), bytes(logits), bytes(state)];
            session.run(self.markov, 1, &inputs, &mut [bytes_mut(&mut self.row), bytes_mut(&mut confidence)])?;
            before = choose(i, &self.row)? as i32;
            out.push(before);
        }
        Ok(())
    }

    fn held(&self, session: &Session) -> u64 {
        session.held(self.fill)
    }
}

fn bytes<T: bytemuck::NoUninit>(values: &[T]) -> &[u8] {
    bytemuck::cast_slice(values)
}

fn bytes_mut(values: &mut [f32]) -> &mut [u8] {
    bytemuck::cast_slice_mut(values)
}

/// Chooses how many tokens to draft: the number by which most tokens come out a second.
///
/// A step of one token takes `one` seconds, each further one adds `more`, and drafting it takes `draft`. All are
/// running means, as is how often the draft at each position is right when those before it are. What is not known, or
/// was not looked at for a while, is tried: drafts where they do not pay, steps without them where they do. The first
/// steps of all do not count, as what they touch is not in the caches yet.
pub(crate) struct Depth {
    choice: Drafts,
    one: Mean,
    more: Mean,
    draft: Mean,
    right: [Mean; LONGEST],
    /// Steps in all, since something was drafted, and since nothing was.
    steps: u32,
    idle: u32,
    busy: u32,
}

/// A mean in which what was long ago counts less and less.
#[derive(Clone, Copy, Default)]
struct Mean {
    sum: f64,
    weight: f64,
}

impl Mean {
    fn add(&mut self, x: f64) {
        self.sum = 0.95 * self.sum + x;
        self.weight = 0.95 * self.weight + 1.0;
    }

    fn known(&self) -> Option<f64> {
        (self.weight > 0.0).then(|| self.sum / self.weight)
    }
}

/// Steps in one way after which the other is tried.
const WHILE: u32 = 64;

/// Steps that do not count, and those that tell what one token costs.
const COLD: u32 = 2;
const FIRST: u32 = 8;

impl Depth {
    pub fn new(choice: Drafts) -> Depth {
        Depth {
            choice,
            one: Mean::default(),
            more: Mean::default(),
            draft: Mean::default(),
            right: [Mean::default(); LONGEST],
            steps: 0,
            idle: 0,
            busy: 0,
        }
    }

    /// How many to draft, `room` at most.
    pub fn choose(&self, room: usize) -> usize {
        if let Drafts::Count(n) = self.choice {
            return n.min(room);
        }
        let Some(one) = self.one.known().filter(|_| self.steps >= FIRST && self.busy < WHILE) else { return 0 };
        let Some((more, draft)) = self.more.known().zip(self.draft.known()) else { return room.min(1) };
        let (mut best, mut rate) = (0, 1.0 / one);
        let (mut tokens, mut chance) = (1.0, 1.0);
        // One position more than what is known, as if it were as good as the one before.
        let mut guess = None;
        for n in 1..=room.min(LONGEST) {
            let known = self.right[n - 1].known();
            let Some(right) = known.or(guess.take()) else { break };
            chance *= right;
            tokens += chance;
            let now = tokens / (one + n as f64 * (more.max(0.0) + draft));
            if now > rate {
                (best, rate) = (n, now);
            }
            guess = known;
        }
        if best == 0 && self.idle >= WHILE { room.min(1) } else { best }
    }

    /// Learns from a step for which `drafted` tokens were drafted in `draft` seconds and `accepted` were right.
    pub fn learn(&mut self, drafted: usize, accepted: usize, draft: f64, step: f64) {
        self.steps = self.steps.saturating_add(1);
        if self.steps <= COLD {
            return;
        }
        if drafted == 0 {
            self.one.add(step);
            (self.idle, self.busy) = (self.idle.saturating_add(1), 0);
            return;
        }
        (self.idle, self.busy) = (0, self.busy.saturating_add(1));
        self.draft.add(draft / drafted as f64);
        if let Some(one) = self.one.known() {
            self.more.add((step - one) / drafted as f64);
        }
        for i in 0..drafted.min(accepted + 1).min(LONGEST) {
            self.right[i].add(if i < accepted { 1.0 } else { 0.0 });
        }
    }
}

/// Rows that the drafter has not been given yet.
pub(crate) struct Unseen {
    width: usize,
    /// How many there is room for.
    room: usize,
    /// The token after each row; that after the last one may not be known yet.
    tokens: Vec<i32>,
    hidden: Vec<f32>,
}

impl Unseen {
    /// Room for `rows` rows of `width` elements.
    pub fn new(width: usize, rows: usize) -> Unseen {
        Unseen { width, room: rows, tokens: Vec::with_capacity(rows), hidden: Vec::with_capacity(rows * width) }
    }

    pub fn rows(&self) -> usize {
        self.hidden.len() / self.width
    }

    /// Whether there is no room for the rows of another step.
    pub fn is_full(&self) -> bool {
        self.rows() + LONGEST + 1 > self.room
    }

    /// Whether the token after the last row is missing.
    fn open(&self) -> bool {
        self.tokens.len() < self.rows()
    }

    /// Tokens were run, whose rows these are.
    pub fn ran(&mut self, tokens: &[i32], hidden: &[f32]) {
        let Some((first, rest)) = tokens.split_first() else { return };
        if self.open() {
            self.tokens.push(*first);
        }
        self.tokens.extend(rest);
        self.hidden.extend(hidden);
    }

    /// A token follows the last row.
    pub fn follows(&mut self, token: i32) {
        if self.open() {
            self.tokens.push(token);
        }
    }

    /// Keeps the first rows, and knows what follows the last of them only if `known`.
    pub fn keep(&mut self, rows: usize, known: bool) {
        self.hidden.truncate(rows * self.width);
        self.tokens.truncate(if known { rows } else { rows.saturating_sub(1) });
    }

    /// The rows whose next token is known; they count as seen.
    pub fn take(&mut self, with: impl FnOnce(Rows<'_>) -> Result<(), Error>) -> Result<(), Error> {
        let known = self.tokens.len().min(self.rows());
        let result = with(Rows { tokens: &self.tokens[..known], hidden: &self.hidden[..known * self.width] });
        self.tokens.drain(..known);
        self.hidden.drain(..known * self.width);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_as_pay_are_drafted() {
        let mut depth = Depth::new(Drafts::Auto);
        assert_eq!(depth.choose(7), 0, "nothing is known");
        depth.learn(0, 0, 0.0, 9.0);
        (1..FIRST).for_each(|_| depth.learn(0, 0, 0.0, 1.0));
        assert_eq!(depth.choose(7), 1, "what a draft costs is not known");
        // A draft costs a fifth of a step, a further token a tenth.
        (0..50).for_each(|_| depth.learn(1, 1, 0.2, 1.1));
        assert_eq!(depth.choose(7), 2, "one more, as if it were as good");
        depth.learn(0, 0, 0.0, 1.0);
        (0..50).for_each(|i| depth.learn(7, [7, 2, 1, 1][i % 4], 1.4, 1.7));
        assert_eq!(depth.choose(7), 2);
        assert_eq!(depth.choose(0), 0);
        (0..WHILE).for_each(|_| depth.learn(1, 0, 0.2, 1.1));
        assert_eq!(depth.choose(7), 0, "never right");
        (0..WHILE).for_each(|_| depth.learn(0, 0, 0.0, 1.0));
        assert_eq!(depth.choose(7), 1, "but maybe now");
        assert_eq!(Depth::new(Drafts::Count(3)).choose(2), 2);
    }

    #[test]
    fn rows_wait_for_the_token_after_them() {
        let mut unseen = Unseen::new(2, 32);
        let mut seen: Vec<(Vec<i32>, Vec<f32>)> = Vec::new();
        let mut take = |u: &mut Unseen| {
            u.take(|r| {
                seen.push((r.tokens.to_vec(), r.hidden.to_vec()));
                Ok(())
            })
            .unwrap();
        };
        unseen.ran(&[5, 6, 7], &[0.5, 0.0, 0.6, 0.0, 0.7, 0.0]);
        take(&mut unseen);
        assert_eq!(unseen.rows(), 1);
        unseen.follows(8);
        unseen.follows(9);
        unseen.ran(&[8, 1, 2], &[0.8, 0.0, 0.1, 0.0, 0.2, 0.0]);
        // The drafts 1 and 2 were wrong; 3 came instead.
        unseen.keep(2, false);
        unseen.follows(3);
        take(&mut unseen);
        assert_eq!(seen[0], (vec![6, 7], vec![0.5, 0.0, 0.6, 0.0]));
        assert_eq!(seen[1], (vec![8, 3], vec![0.7, 0.0, 0.8, 0.0]));
        assert_eq!(unseen.rows(), 0);
    }
}
