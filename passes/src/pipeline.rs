//! The pipeline, from a model's module to a program.

use crate::pass::{PassReport, run_passes};
use crate::{Error, plan};
use hadal_ir::plan::Program;
use hadal_ir::target::Target;
use hadal_ir::{Module, Sym};

/// Choices that a user can make.
#[derive(Clone, PartialEq, Debug)]
pub struct Options {
    /// Most rows a state can hold: `P + T` never exceeds it. `None`: as the ranges of `P` and `T` allow.
    pub max_context: Option<i64>,
}

impl Default for Options {
    fn default() -> Self {
        Options { max_context: None }
    }
}

impl Options {
    /// Most rows a state can hold.
    pub fn context(&self, module: &Module) -> i64 {
        let most = |s: Sym| module.symbols.get(&s).map_or(0, |r| r.max);
        self.max_context.unwrap_or_else(|| most(Sym::P).saturating_add(most(Sym::T)))
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
    let (optimised, mut reports) = run_passes(module, ["specialise", "canonicalise"], target, options)?;
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
