//! The list of passes, and running some of them by name.

use crate::bounds::Reached;
use crate::canonicalise::{self, Fired};
use crate::egraph::{self, Context, Search, Stop};
use crate::explain::Explanation;
use crate::versions::Split;
use crate::{Error, Options, elide, fuse, share, specialise, steps, versions};
use hadal_ir::target::Target;
use hadal_ir::{FuncKind, InstKind, Module, verify};
use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

/// One pass over a module.
pub struct Pass {
    /// Name on the command line.
    pub name: &'static str,
    /// What it does, in a line.
    pub summary: &'static str,
    run: fn(&Module, &Target, &Options) -> Outcome,
}

/// A new module, and what there is to say; or why there is none.
type Outcome = Result<(Module, Details), Error>;

/// What a pass has to say besides its result.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Details {
    /// How often each law fired, or added something new.
    pub fired: Fired,
    /// Where entries were split.
    pub splits: Vec<Split>,
    /// What searches for alternatives found.
    pub searches: Vec<Search>,
    /// Why they chose as they did, where the options ask for it.
    pub explanations: Vec<Explanation>,
}

/// What a pass did.
#[derive(Clone, PartialEq, Debug)]
pub struct PassReport {
    /// The pass.
    pub pass: &'static str,
    /// Ops and calls before.
    pub before: usize,
    /// Ops and calls after.
    pub after: usize,
    /// How long it took.
    pub time: Duration,
    /// What else there is to say.
    pub details: Details,
}

/// Every pass from module to module, in the order of the pipeline.
pub const PASSES: &[Pass] = &[
    Pass {
        name: "versions",
        summary: "split entries where the best form changes",
        run: |m, target, options| {
            let (module, splits) = versions::run(m, target, options);
            Ok((module, Details { splits, ..Details::default() }))
        },
    },
    Pass {
        name: "specialise",
        summary: "copy functions per entry and replace the symbols it fixes",
        run: |m, _, _| Ok((specialise::run(m), Details::default())),
    },
    Pass {
        name: "canonicalise",
        summary: "bring equal things to one form, and drop what nothing uses",
        run: |m, _, options| {
            let (module, fired) = canonicalise::run(m, options);
            Ok((module, Details { fired, ..Details::default() }))
        },
    },
    Pass {
        name: "elide",
        summary: "compute only the rows that somebody wants",
        run: |m, _, options| {
            let (module, fired) = elide::run(m, &options.laws);
            Ok((module, Details { fired, ..Details::default() }))
        },
    },
    Pass {
        name: "rewrite",
        summary: "find alternatives by law, and choose by cost for each entry's sizes",
        run: rewrite,
    },
    Pass {
        name: "steps",
        summary: "give entries for steps a version of one new token and one of two, in the same form",
        run: |m, _, _| Ok((steps::run(m), Details::default())),
    },
    Pass {
        name: "share",
        summary: "compute once, in the caller, what calls have in common",
        run: |m, _, _| Ok((share::run(m), Details::default())),
    },
    Pass {
        name: "fuse",
        summary: "cut functions into kernels, each one launch",
        run: |m, target, _| Ok((fuse::run(m, target), Details::default())),
    },
];

fn rewrite(module: &Module, target: &Target, options: &Options) -> Outcome {
    let mut details = Details::default();
    let room = room(module, target, options);
    let reached = Reached::of(module);
    let mut out = Module { funcs: Vec::new(), ..module.clone() };
    for func in &module.funcs {
        if func.kind != FuncKind::Graph {
            out.funcs.push(func.clone());
            continue;
        }
        let bindings = reached.typical(&func.name, options);
        let bounds = reached.bounds(&func.name, options);
        let context = Context { room, ..Context::of(target, &bounds, options) };
        let (func, search, explanation) = egraph::func(func, &context, &bindings, &mut details.fired)?;
        out.funcs.push(func);
        details.searches.push(search);
        details.explanations.extend(explanation);
    }
    Ok((out, details))
}

/// Bytes of memory that weights and states at their largest leave for values; all of it where they need several
/// machines.
fn room(module: &Module, target: &Target, options: &Options) -> f64 {
    let mut kept: BTreeMap<String, f64> = BTreeMap::new();
    let reached = Reached::of(module);
    for entry in &module.entries {
        let sizes = reached.bounds(&entry.func, options).largest();
        let mut open = vec![(entry.func.as_str(), String::new())];
        while let Some((name, prefix)) = open.pop() {
            let Some(func) = module.func(name) else { continue };
            let weights = func.weights.iter().map(|w| (&w.name, w.value, 1));
            let states = func.states.iter().map(|s| (&s.name, s.value, options.batch));
            for (name, value, times) in weights.chain(states) {
                let ty = func.ty(value);
                let bytes = times as f64 * ty.count(&sizes).unwrap_or(0.0) * ty.dtype.bits() as f64 / 8.0;
                let known = kept.entry(format!("{prefix}{name}")).or_default();
                *known = known.max(bytes);
            }
            for inst in &func.insts {
                if let InstKind::Call(call) = &inst.kind {
                    open.push((&call.func, format!("{prefix}{}", call.prefix)));
                }
            }
        }
    }
    let (all, kept) = (target.memory_bytes as f64, kept.values().sum::<f64>());
    if kept < all { all - kept } else { all }
}

/// Runs one pass, with the verifier after it.
pub(crate) fn run_pass(
    pass: &Pass,
    module: &Module,
    target: &Target,
    options: &Options,
) -> Result<(Module, PassReport), Error> {
    let start = Instant::now();
    let (out, details) = (pass.run)(module, target, options)?;
    let time = start.elapsed();
    verify::module(&out).map_err(|faults| Error::Broken { pass: pass.name, faults })?;
    let report = PassReport { pass: pass.name, before: ops(module), after: ops(&out), time, details };
    Ok((out, report))
}

/// Runs passes by name, in the order given.
pub fn run_passes<'n>(
    module: &Module,
    names: impl IntoIterator<Item = &'n str>,
    target: &Target,
    options: &Options,
) -> Result<(Module, Vec<PassReport>), Error> {
    verify::module(module).map_err(Error::Malformed)?;
    let mut module = module.clone();
    let mut reports = Vec::new();
    for name in names {
        let pass = PASSES.iter().find(|p| p.name == name).ok_or_else(|| Error::UnknownPass(name.to_owned()))?;
        let (next, report) = run_pass(pass, &module, target, options)?;
        module = next;
        reports.push(report);
    }
    Ok((module, reports))
}

fn ops(module: &Module) -> usize {
    let kinds = module.funcs.iter().flat_map(|f| &f.insts).map(|i| &i.kind);
    kinds.filter(|k| matches!(k, InstKind::Op(_) | InstKind::Call(_))).count()
}

impl fmt::Display for PassReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} -> {} ops in {:.1} ms", self.pass, self.before, self.after, self.time.as_secs_f64() * 1e3)?;
        let fired: BTreeMap<_, _> = self.details.fired.iter().filter(|(_, n)| **n > 0).collect();
        for (i, (name, n)) in fired.into_iter().enumerate() {
            write!(f, "{} {name} {n}", if i > 0 { "," } else { ";" })?;
        }
        for s in &self.details.splits {
            write!(f, "\n  {s}")?;
        }
        for s in &self.details.searches {
            let (before, after) = (s.before * 1e6, s.after * 1e6);
            write!(
                f,
                "\n  @{}: {} nodes in {} classes, {} rounds, {:?}",
                s.func, s.nodes, s.classes, s.rounds, s.stop
            )?;
            write!(f, "; {before:.1} -> {after:.1} us")?;
            for p in s.phases.iter().filter(|p| p.stop != Stop::Saturated || !p.banned.is_empty()) {
                write!(f, "\n    {}: {:?} after {} rounds and {} nodes", p.phase, p.stop, p.rounds, p.nodes)?;
                if !p.banned.is_empty() {
                    write!(f, ", without {}", p.banned.join(", "))?;
                }
            }
            for value in &s.too_large {
                write!(f, "\n    too large for memory: {value}")?;
            }
        }
        Ok(())
    }
}
