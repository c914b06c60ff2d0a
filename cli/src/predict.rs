//! What a model should take on a machine, for sets of contexts and batches: the figures behind `hadal predict` and the
//! curves of `hadal report`.
//!
//! For each context the graph is optimised anew, for calls of exactly those sizes and so many sequences: what is chosen
//! for a long context is not what is chosen for a short one, nor is it for one sequence what it is for a hundred.
//!
//! A whole prompt is the sum of its chunks. The graph is optimised for chunks at some places in it, each four times as
//! far in as the one before, and for the last; what is between two of them takes what lies between.

use crate::failure::Failure;
use crate::roofline::{Call, Step, state_elements, stored_bytes};
use hadal_ir::Sym;
use hadal_ir::module::{Entry, Range};
use hadal_ir::plan::Program;
use hadal_ir::target::Target;
use hadal_models::Model;
use hadal_types::DType;
use std::collections::BTreeMap;

/// What is asked.
#[derive(Clone, PartialEq, Debug)]
pub struct Question {
    /// Tokens in the context, the new ones included.
    pub contexts: Vec<usize>,
    /// Sequences at once.
    pub batches: Vec<usize>,
    /// Tokens of a prefill chunk; less where the context is shorter.
    pub chunk: usize,
    /// Tokens proposed ahead that one call checks; none where this is 0.
    pub drafts: usize,
    /// Machines that share the work and the memory evenly, at no cost.
    pub devices: usize,
}

/// What a call is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Phase {
    /// A prompt as long as the context, chunk by chunk: the time to the first token.
    Prompt,
    /// Its last full chunk, that ends at the context.
    Prefill,
    /// One token for each sequence.
    Decode,
    /// One token and the drafts after it, for each sequence.
    Verify,
    /// One draft by the model's own module for it, for each sequence.
    Draft,
}

impl Phase {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Prompt => "prompt",
            Phase::Prefill => "last chunk",
            Phase::Decode => "decode",
            Phase::Verify => "verify",
            Phase::Draft => "draft",
        }
    }

    /// Entries of the model that can do it, the best first.
    fn entries(self) -> &'static [&'static str] {
        match self {
            Phase::Prompt | Phase::Prefill => &["prefill"],
            Phase::Decode => &["decode"],
            Phase::Verify => &["logits", "prefill"],
            Phase::Draft => &["mtp", "mtp0"],
        }
    }

    /// What its entry is called in a program that is made for it.
    fn entry(self) -> &'static str {
        self.entries()[0]
    }
}

/// The answer.
#[derive(Clone, PartialEq, Debug)]
pub struct Prediction {
    /// The machines, taken together.
    pub target: Target,
    /// How many there are.
    pub devices: usize,
    /// By context.
    pub at: Vec<Context>,
}

/// The answer for one context.
#[derive(Clone, PartialEq, Debug)]
pub struct Context {
    /// Tokens in it.
    pub tokens: usize,
    /// State elements of one sequence, by compiled format.
    pub state: Vec<(DType, u64)>,
    /// The calls.
    pub calls: Vec<Predicted>,
}

/// One kind of call.
#[derive(Clone, PartialEq, Debug)]
pub struct Predicted {
    /// What it is for.
    pub phase: Phase,
    /// New tokens of each sequence.
    pub tokens: usize,
    /// Sequences.
    pub batch: usize,
    /// What it takes.
    pub step: Step,
    /// Bytes of weights, in the forms chosen for prompts and for so many sequences.
    pub stored_bytes: u64,
    /// Bytes of working memory, of all sequences; no less than a prompt needs.
    pub arena_bytes: u64,
}

impl Predicted {
    /// Operations per new token.
    pub fn flops_per_token(&self) -> f64 {
        self.step.flops / (self.tokens * self.batch) as f64
    }
}

impl Context {
    /// State bytes of one sequence, were all of it in `format`.
    pub fn state_in(&self, format: DType) -> u64 {
        format.bytes(self.state.iter().map(|(_, n)| n).sum())
    }

    /// State bytes of one sequence, as compiled.
    pub fn state_bytes(&self) -> u64 {
        self.state.iter().map(|(d, n)| d.bytes(*n)).sum()
    }

    /// Names of the compiled formats.
    pub fn formats(&self) -> String {
        self.state.iter().map(|(d, _)| d.name()).collect::<Vec<_>>().join(", ")
    }

    /// Bytes of weights, states and working memory that a call needs.
    pub fn bytes(&self, call: &Predicted) -> u64 {
        call.stored_bytes + call.arena_bytes + self.state_bytes() * call.batch as u64
    }

    /// Machines of one's memory that hold as much.
    pub fn machines(&self, one: &Target, call: &Predicted) -> u64 {
        self.bytes(call).div_ceil(one.memory_bytes)
    }

    /// Bytes of weights for the smallest batch that was asked about.
    pub fn weight_bytes(&self) -> u64 {
        self.phase(Phase::Decode).next().map_or(0, |c| c.stored_bytes)
    }

    /// Tokens a second that a call gains. Of checked drafts it takes knowing how often one is right when those before
    /// it are: then each check gains the drafts up to the first wrong one and one token more, for its own time and that
    /// of the model's own drafts. A draft alone gains none.
    pub fn rate(&self, call: &Predicted, acceptance: Option<f64>) -> Option<f64> {
        let (tokens, seconds) = match call.phase {
            Phase::Prompt | Phase::Prefill | Phase::Decode => (call.tokens as f64, call.step.seconds()),
            Phase::Verify => {
                (expected_tokens(call.tokens, acceptance?), call.step.seconds() + self.draft_seconds(call))
            }
            Phase::Draft => return None,
        };
        Some(tokens * call.batch as f64 / seconds)
    }

    /// Seconds of the drafts that a call checks, by the model's own module; none where it has no such module.
    pub fn draft_seconds(&self, call: &Predicted) -> f64 {
        let draft = self.phase(Phase::Draft).find(|d| d.batch == call.batch);
        draft.map_or(0.0, |d| (call.tokens - 1) as f64 * d.step.seconds())
    }

    /// The calls of a phase.
    pub fn phase(&self, phase: Phase) -> impl Iterator<Item = &Predicted> {
        self.calls.iter().filter(move |c| c.phase == phase)
    }
}

/// Tokens that a check of all but one of `tokens` gains: the drafts that are right up to the first that is not, and
/// one.
pub fn expected_tokens(tokens: usize, acceptance: f64) -> f64 {
    std::iter::successors(Some(1.0), |p| Some(p * acceptance)).take(tokens).sum()
}

/// Answers `question` for a model built for at least its longest context, with `passes` told to each compilation.
pub fn predict(
    model: &Model,
    one: &Target,
    passes: &hadal_passes::Options,
    question: &Question,
) -> Result<Prediction, Failure> {
    let target = one.several(question.devices as u32);
    let mut prompts = Prompts { model, target: &target, passes, known: BTreeMap::new() };
    let at = question.contexts.iter().map(|n| at_context(&mut prompts, question, *n));
    Ok(Prediction { at: at.collect::<Result<_, _>>()?, target: target.clone(), devices: question.devices })
}

/// The program for calls of exactly these sizes, one entry per phase that the model has.
fn program_for(
    model: &Model,
    target: &Target,
    passes: &hadal_passes::Options,
    context: usize,
    calls: &[(Phase, usize)],
) -> Result<Program, Failure> {
    let mut module = model.module.clone();
    module.entries.clear();
    for (phase, tokens) in calls {
        let found = phase.entries().iter().find_map(|name| model.module.entry(name));
        let Some(entry) = found else { continue };
        let (tokens, past) = (*tokens as i64, context.saturating_sub(*tokens) as i64);
        let mut ranges = entry.ranges.clone();
        // The past keeps its symbol, by which states grow: as narrow a range as a symbol can have.
        ranges.insert(Sym::T, Range { min: tokens, max: tokens });
        ranges.insert(Sym::P, Range { min: (past - 1).max(0), max: past.max(1) });
        module.entries.push(Entry { name: phase.entry().to_owned(), func: entry.func.clone(), ranges });
    }
    // What does not fit is answered by how many machines it takes, not by other forms.
    let target = Target { memory_bytes: 1 << 60, ..target.clone() };
    // There is one size of each call, so there is nothing to split.
    let options = hadal_passes::Options { typical_context: context as i64, versions: false, ..passes.clone() };
    let (_, program) = hadal_passes::compile(&module, &target, &options).map_err(Failure::optimising)?;
    Ok(program)
}

/// Chunks of prompts.
struct Prompts<'a> {
    model: &'a Model,
    target: &'a Target,
    passes: &'a hadal_passes::Options,
    /// By tokens of the chunk and before it.
    known: BTreeMap<(usize, usize), Step>,
}

impl Prompts<'_> {
    fn chunk(&mut self, tokens: usize, past: usize) -> Result<Step, Failure> {
        if let Some(known) = self.known.get(&(tokens, past)) {
            return Ok(*known);
        }
        let passes = hadal_passes::Options { batch: 1, ..self.passes.clone() };
        let (context, calls) = (past + tokens, [(Phase::Prefill, tokens)]);
        let program = program_for(self.model, self.target, &passes, context, &calls)?;
        let step = predicted(&[&program], self.target, context, 1, &calls).first().map_or(Step::default(), |c| c.step);
        self.known.insert((tokens, past), step);
        Ok(step)
    }

    /// A prompt of so many tokens in chunks of `chunk`, the last of them shorter where that is left.
    fn whole(&mut self, tokens: usize, chunk: usize) -> Result<Step, Failure> {
        let (full, rest) = (tokens / chunk, tokens % chunk);
        let mut steps = Vec::new();
        if rest > 0 {
            steps.push(self.chunk(rest, tokens - rest)?);
        }
        let apart = std::iter::successors(Some(1), |n| Some(n * 4)).take_while(|n| *n < full);
        let mut knots: Vec<usize> = [0].into_iter().chain(apart).collect();
        if full > 1 && !knots.contains(&(full - 1)) {
            knots.push(full - 1);
        }
        for pair in knots.windows(2) {
            let (a, b) = (self.chunk(chunk, pair[0] * chunk)?, self.chunk(chunk, pair[1] * chunk)?);
            let between = pair[1] - pair[0];
            steps.extend((0..between).map(|n| a.towards(&b, n as f64 / between as f64)));
        }
        if let Some(last) = knots.last() {
            steps.push(self.chunk(chunk, last * chunk)?);
        }
        Ok(steps.into_iter().sum())
    }
}

fn at_context(prompts: &mut Prompts, question: &Question, context: usize) -> Result<Context, Failure> {
    let Prompts { model, target, passes, .. } = *prompts;
    let of = |batch: usize, calls: &[(Phase, usize)]| {
        let passes = hadal_passes::Options { batch: batch as u64, ..passes.clone() };
        program_for(model, target, &passes, context, calls)
    };
    let chunk = [(Phase::Prefill, question.chunk.min(context))];
    let mut steps = vec![(Phase::Decode, 1)];
    if question.drafts > 0 && question.drafts < context {
        steps.extend([(Phase::Verify, 1 + question.drafts), (Phase::Draft, 1)]);
    }
    // A prompt is one sequence, whatever is decoded together.
    let prompt = of(1, &chunk)?;
    let mut state = Vec::new();
    let mut calls = predicted(&[&prompt], target, context, 1, &chunk);
    if let Some(last) = calls.first().cloned() {
        prompts.known.insert((last.tokens, context - last.tokens), last.step);
        let step = prompts.whole(context, last.tokens)?;
        calls.push(Predicted { phase: Phase::Prompt, tokens: context, step, ..last });
    }
    for batch in &question.batches {
        let program = of(*batch, &steps)?;
        state = state_elements(&program, Phase::Decode.entry(), context);
        calls.extend(predicted(&[&program, &prompt], target, context, *batch, &steps));
    }
    // By phase, then by batch.
    calls.sort_by_key(|c| (c.phase, c.batch));
    Ok(Context { tokens: context, state, calls })
}

/// What calls of the first of some programs take, which are kept together.
fn predicted(
    programs: &[&Program],
    target: &Target,
    context: usize,
    batch: usize,
    calls: &[(Phase, usize)],
) -> Vec<Predicted> {
    let Some((program, others)) = programs.split_first() else { return Vec::new() };
    let arena = |p: &Program, batch: usize| p.arena_bytes().saturating_mul(batch as u64);
    let arena_bytes = others.iter().map(|p| arena(p, 1)).fold(arena(program, batch), u64::max);
    let stored_bytes = stored_bytes(programs);
    let one = |(phase, tokens): &(Phase, usize)| {
        let call = [(Sym::T, *tokens as i64), (Sym::P, (context - tokens) as i64)].into();
        let bindings = program.module.complete(&call);
        let plan = program.plan_for(phase.entry(), &bindings)?;
        let step = Call { program, plan, target, bindings: &bindings, batch }.step();
        Some(Predicted { phase: *phase, tokens: *tokens, batch, step, stored_bytes, arena_bytes })
    };
    calls.iter().filter_map(one).collect()
}
