//! The pipeline, from a model's module to a program.

use crate::bounds::reaches;
use crate::egraph::Limits;
use crate::pass::{PassReport, run_passes};
use crate::{Error, LawSet, plan};
use hadal_ir::plan::Program;
use hadal_ir::target::Target;
use hadal_ir::{Bindings, Module, Sym};

/// Choices that a user can make.
#[derive(Clone, PartialEq, Debug)]
pub struct Options {
    /// Most rows a state can hold: `P + T` never exceeds it. `None`: as the ranges of `P` and `T` allow.
    pub max_context: Option<i64>,
    /// Whether to look for cheaper forms.
    pub rewrite: bool,
    /// When that search stops.
    pub limits: Limits,
    /// The laws that may be used.
    pub laws: LawSet,
    /// Whether to keep what an explanation of the choice needs: see [`crate::explain`].
    pub explain: bool,
    /// Keys that a typical call looks at, for costs; less where the context is shorter.
    pub typical_context: i64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            max_context: None,
            rewrite: true,
            limits: Limits::default(),
            laws: LawSet::default(),
            explain: false,
            typical_context: 4096,
        }
    }
}

impl Options {
    /// Most rows a state can hold.
    pub fn context(&self, module: &Module) -> i64 {
        let most = |s: Sym| module.symbols.get(&s).map_or(0, |r| r.max);
        self.max_context.unwrap_or_else(|| most(Sym::P).saturating_add(most(Sym::T)))
    }

    /// Sizes to cost a function for: those of the first entry that reaches it, with the most new tokens it takes and a
    /// context of some thousands.
    pub fn typical(&self, module: &Module, func: &str) -> Bindings {
        let entry = module.entries.iter().find(|e| reaches(module, &e.func, func));
        let ranges = entry.map_or_else(|| module.symbols.clone(), |e| module.ranges(e));
        let mut out: Bindings = ranges.iter().map(|(s, r)| (*s, r.max)).collect();
        if let (Some(p), Some(t)) = (ranges.get(&Sym::P), ranges.get(&Sym::T)) {
            let rows = self.context(module).min(self.typical_context);
            let at_t = t.max.min(rows).max(t.min);
            out.extend([(Sym::T, at_t), (Sym::P, (rows - at_t).clamp(p.min, p.max))]);
        }
        out
    }
}

/// A module cut into kernels, and how it came to be.
#[derive(Clone, PartialEq, Debug)]
pub struct Fused {
    /// The graph after rewriting, one copy of each function per binding.
    pub optimised: Module,
    /// The same cut into kernels.
    pub module: Module,
    /// What each pass did.
    pub reports: Vec<PassReport>,
}

/// Rewrites a model's module for a machine and cuts it into kernels.
pub fn optimise(module: &Module, target: &Target, options: &Options) -> Result<Fused, Error> {
    let rewriting: &[&str] =
        if options.rewrite { &["elide", "canonicalise", "rewrite", "canonicalise", "share"] } else { &[] };
    let steps = ["specialise", "canonicalise"].iter().chain(rewriting).copied();
    let (optimised, mut reports) = run_passes(module, steps, target, options)?;
    let (fused, more) = run_passes(&optimised, ["fuse"], target, options)?;
    reports.extend(more);
    Ok(Fused { optimised, module: fused, reports })
}

/// [`optimise`], then memory and launches for every entry.
pub fn compile(module: &Module, target: &Target, options: &Options) -> Result<(Fused, Program), Error> {
    let fused = optimise(module, target, options)?;
    let program = plan::run(&fused.module, options.context(module))?;
    Ok((fused, program))
}
