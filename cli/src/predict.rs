//! What a model should take on a machine, for sets of contexts and batches: the figures behind `hadal predict` and the
//! curves of `hadal report`.
//!
//! For each context the graph is optimised anew, for calls of exactly those sizes and so many sequences: what is chosen
//! for a long context is not what is chosen for a short one, nor is it for one sequence what it is for a hundred.

use crate::failure::Failure;
use crate::roofline::{Call, Step, state_elements, stored_bytes};
use hadal_ir::module::{Entry, Range};
use hadal_ir::plan::Program;
use hadal_ir::target::Target;
use hadal_ir::{Bindings, Sym};
use hadal_models::Model;
use hadal_types::DType;

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
    /// One chunk of a prompt, that ends at the context.
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
            Phase::Prefill => "prefill",
            Phase::Decode => "decode",
            Phase::Verify => "verify",
            Phase::Draft => "draft",
        }
    }

    /// Entries of the model that can do it, the best first.
    fn entries(self) -> &'static [&'static str] {
        match self {
            Phase::Prefill => &["prefill"],
            Phase::Decode => &["decode"],
            Phase::Verify => &["logits", "prefill"],
            Phase::Draft => &["mtp", "mtp0"],
        }
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
    /// Tokens a second; for drafts that are checked, the most there can be: all of them are right.
    pub fn rate(&self) -> f64 {
        (self.tokens * self.batch) as f64 / self.step.seconds()
    }

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

    /// The calls of a phase.
    pub fn phase(&self, phase: Phase) -> impl Iterator<Item = &Predicted> {
        self.calls.iter().filter(move |c| c.phase == phase)
    }
}

/// Answers `question` for a model built for at least its longest context, with `passes` told to each compilation.
pub fn predict(
    model: &Model,
    one: &Target,
    passes: &hadal_passes::Options,
    question: &Question,
) -> Result<Prediction, Failure> {
    let target = one.several(question.devices as u32);
    let at = question.contexts.iter().map(|n| at_context(model, &target, passes, question, *n));
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
        module.entries.push(Entry { name: phase.name().to_owned(), func: entry.func.clone(), ranges });
    }
    // What does not fit is answered by how many machines it takes, not by other forms.
    let target = Target { memory_bytes: 1 << 60, ..target.clone() };
    // There is one size of each call, so there is nothing to split.
    let options = hadal_passes::Options { typical_context: context as i64, versions: false, ..passes.clone() };
    let (_, program) =
        hadal_passes::compile(&module, &target, &options).map_err(|e| Failure::internal("optimising", e))?;
    Ok(program)
}

fn at_context(
    model: &Model,
    target: &Target,
    passes: &hadal_passes::Options,
    question: &Question,
    context: usize,
) -> Result<Context, Failure> {
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
    for batch in &question.batches {
        let program = of(*batch, &steps)?;
        state = state_elements(&program, Phase::Decode.name(), context);
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
        let bindings: Bindings = [(Sym::T, *tokens as i64), (Sym::P, (context - tokens) as i64)].into();
        let plan = program.plan_for(phase.name(), &bindings)?;
        let step = Call { program, plan, target, bindings: &bindings, batch }.step();
        Some(Predicted { phase: *phase, tokens: *tokens, batch, step, stored_bytes, arena_bytes })
    };
    calls.iter().filter_map(one).collect()
}
