//! What a model should take on a machine, for sets of contexts and batches: the figures behind `hadal predict` and the
//! curves of `hadal report`.
//!
//! For each context the graph is optimised anew, for calls of exactly those sizes: what is chosen for a long context is
//! not what is chosen for a short one.

use crate::driver::pass_options;
use crate::failure::Failure;
use crate::roofline::{Call, Step, state_elements, stored_bytes};
use hadal_ir::module::{Entry, Range};
use hadal_ir::plan::Program;
use hadal_ir::target::Target;
use hadal_ir::{Bindings, Module, Sym};
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
    /// Bytes of weights, in the forms chosen.
    pub weight_bytes: u64,
    /// Bytes of working memory for one sequence.
    pub arena_bytes: u64,
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

    /// Bytes that so many sequences need.
    pub fn bytes(&self, batch: usize) -> u64 {
        self.weight_bytes + (self.state_bytes() + self.arena_bytes) * batch as u64
    }

    /// Machines of one's memory that hold so many sequences.
    pub fn machines(&self, one: &Target, batch: usize) -> u64 {
        self.bytes(batch).div_ceil(one.memory_bytes)
    }

    /// The calls of a phase.
    pub fn phase(&self, phase: Phase) -> impl Iterator<Item = &Predicted> {
        self.calls.iter().filter(move |c| c.phase == phase)
    }
}

/// Answers `question` for a model built for at least its longest context.
pub fn predict(model: &Model, one: &Target, question: &Question) -> Result<Prediction, Failure> {
    let target = one.several(question.devices as u32);
    let at = question.contexts.iter().map(|n| at_context(model, &target, question, *n));
    Ok(Prediction { at: at.collect::<Result<_, _>>()?, target: target.clone(), devices: question.devices })
}

/// The program for calls of exactly these sizes, one entry per phase that the model has.
pub fn program_for(
    model: &Model,
    target: &Target,
    context: usize,
    calls: &[(Phase, usize)],
) -> Result<(Module, Program), Failure> {
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
    let options = hadal_passes::Options { typical_context: context as i64, ..pass_options(model) };
    let (_, program) =
        hadal_passes::compile(&module, &target, &options).map_err(|e| Failure::internal("optimising", e))?;
    Ok((module, program))
}

fn at_context(model: &Model, target: &Target, question: &Question, context: usize) -> Result<Context, Failure> {
    let mut calls = vec![(Phase::Prefill, question.chunk.min(context)), (Phase::Decode, 1)];
    if question.drafts > 0 && question.drafts < context {
        calls.extend([(Phase::Verify, 1 + question.drafts), (Phase::Draft, 1)]);
    }
    let (_, program) = program_for(model, target, context, &calls)?;
    let mut out = Vec::new();
    for (phase, tokens) in calls {
        let bindings: Bindings = [(Sym::T, tokens as i64), (Sym::P, (context - tokens) as i64)].into();
        let Some(plan) = program.plan_for(phase.name(), &bindings) else { continue };
        let batches: &[usize] = if phase == Phase::Prefill { &[1] } else { &question.batches };
        for batch in batches {
            let call = Call { program: &program, plan, target, bindings: &bindings, batch: *batch };
            out.push(Predicted { phase, tokens, batch: *batch, step: call.step() });
        }
    }
    Ok(Context {
        tokens: context,
        state: state_elements(&program, Phase::Decode.name(), context),
        weight_bytes: stored_bytes(&program),
        arena_bytes: program.arena_bytes(),
        calls: out,
    })
}
