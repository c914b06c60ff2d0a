//! The pipeline, from a model's module to a program.

use crate::bounds::Reached;
use crate::egraph::Limits;
use crate::pass::{PassReport, run_passes};
use crate::plan::Ranges;
use crate::{Error, LawSet, plan};
use hadal_ir::module::STEP;
use hadal_ir::plan::Program;
use hadal_ir::target::Target;
use hadal_ir::{Bindings, Entry, Module, Range, Sym};

/// Choices that a user can make.
#[derive(Clone, PartialEq, Debug)]
pub struct Options {
    /// Most rows a state can hold: `P + T` never exceeds it. `None`: as the ranges of `P` and `T` allow.
    pub max_context: Option<i64>,
    /// Whether to look for cheaper forms.
    pub rewrite: bool,
    /// Whether to split entries into versions where the best form changes.
    pub versions: bool,
    /// When that search stops.
    pub limits: Limits,
    /// The laws that may be used.
    pub laws: LawSet,
    /// Whether to keep what an explanation of the choice needs: see [`crate::explain`].
    pub explain: bool,
    /// Keys that a typical call looks at, for costs; less where the context is shorter.
    pub typical_context: i64,
    /// Sequences that a call is costed for: weights are read once for all of them, everything else is there for each.
    pub batch: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            max_context: None,
            rewrite: true,
            versions: true,
            limits: Limits::default(),
            laws: LawSet::default(),
            explain: false,
            typical_context: 4096,
            batch: 1,
        }
    }
}

impl Options {
    /// Most rows a state can hold.
    pub fn context(&self, module: &Module) -> i64 {
        let most = |s: Sym| module.symbols.get(&s).map_or(0, |r| r.max);
        self.max_context.unwrap_or_else(|| most(Sym::P).saturating_add(most(Sym::T)))
    }

    /// Sizes to cost a function for: those usual for the first entry that reaches it.
    pub fn typical(&self, module: &Module, func: &str) -> Bindings {
        Reached::of(module).typical(func, self)
    }

    /// The sizes usual for an entry.
    pub(crate) fn typical_for(&self, module: &Module, entry: Option<&Entry>) -> Bindings {
        let Some(entry) = entry else {
            return module.complete(&self.typical_of(&module.symbols, &module.symbols, self.context(module)));
        };
        let mut whole = module.ranges(entry);
        for (sym, r) in module.versions(&entry.name).flat_map(|e| module.ranges(e)) {
            let known = whole.entry(sym).or_insert(r);
            *known = Range { min: known.min.min(r.min), max: known.max.max(r.max) };
        }
        module.complete(&self.typical_of(&module.ranges(entry), &whole, self.context(module)))
    }

    /// Usual sizes of a version for `part` of an entry's values: as many new tokens as it takes (of an entry for steps
    /// as few), and some thousands of rows in all. Where one of them lies beyond the part, its middle on a logarithmic
    /// scale, since near the border both forms cost the same.
    pub(crate) fn typical_of(&self, part: &Ranges, whole: &Ranges, context: i64) -> Bindings {
        let mut out: Bindings = part.iter().map(|(s, r)| (*s, r.max)).collect();
        if let (Some(p), Some(t)) = (part.get(&Sym::P), part.get(&Sym::T)) {
            let middle =
                |low: i64, high: i64| ((low.max(1) as f64 * high.max(1) as f64).sqrt() as i64).clamp(low, high);
            let beyond = |sym: Sym, r: &Range| whole.get(&sym).is_some_and(|w| r.max < w.max);
            let rows = context.min(self.typical_context);
            let at_t = match beyond(Sym::T, t) {
                _ if t.max <= STEP => t.min,
                true => middle(t.min, t.max),
                false => t.max.min(rows).max(t.min),
            };
            let least = p.min.saturating_add(at_t);
            let most = p.max.saturating_add(at_t).min(context).max(least);
            let at_rows = match () {
                () if rows > most && beyond(Sym::P, p) || rows < least => middle(least, most),
                () => rows.min(most),
            };
            out.extend([(Sym::T, at_t), (Sym::P, (at_rows - at_t).clamp(p.min, p.max))]);
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

/// The passes that a module goes through before the search.
pub(crate) fn before_rewrite(options: &Options) -> Vec<&'static str> {
    let versions = (options.rewrite && options.versions).then_some("versions");
    let parts: &[&str] = if options.rewrite { &["elide", "canonicalise"] } else { &[] };
    versions.into_iter().chain(["specialise", "canonicalise"]).chain(parts.iter().copied()).collect()
}

/// Rewrites a model's module for a machine and cuts it into kernels.
pub fn optimise(module: &Module, target: &Target, options: &Options) -> Result<Fused, Error> {
    let rewriting: &[&str] =
        if options.rewrite { &["rewrite", "steps", "canonicalise", "share"] } else { &["steps", "canonicalise"] };
    let steps = before_rewrite(options).into_iter().chain(rewriting.iter().copied());
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
