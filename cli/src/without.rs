//! What laws are worth: the same versions of the same functions chosen again without them, against what was chosen.

use crate::explain::{explanations, sizes};
use crate::report::facts::{Optimised, Version};
use crate::roofline::Step;
use crate::units::{bytes, count, percent, seconds};
use hadal_ir::InstKind;
use hadal_passes::explain::{Explanation, Form};
use hadal_passes::{Error, run_passes};
use serde_json::{Value, json};
use std::fmt::Write as _;

/// The same model without some laws.
pub struct Without {
    laws: Vec<&'static str>,
    other: Optimised,
}

/// A function, both ways.
struct Row<'a> {
    /// The versions that share it.
    versions: Vec<&'a str>,
    function: &'a Explanation,
    chosen: Step,
    other: Step,
    /// Ops that are only in the choice.
    gone: Vec<&'a str>,
    /// Ops that are only in the other.
    instead: Vec<&'a str>,
}

impl Without {
    /// Chooses again; `None` where nothing would be left out that is there.
    pub fn of(optimised: &Optimised, laws: Vec<&'static str>) -> Result<Option<Without>, Error> {
        let has =
            |law: &&&str| optimised.fused.reports.iter().any(|r| r.details.fired.get(**law).is_some_and(|n| *n > 0));
        if laws.iter().filter(has).count() == 0 {
            return Ok(None);
        }
        // Entries stay split where they are.
        let source = &optimised.model.module;
        let split = optimised.options.versions.then_some("versions");
        let (module, _) = run_passes(source, split, &optimised.target, &optimised.options)?;
        let allowed = optimised.options.laws.clone().without(laws.iter().copied()).expect("names of laws");
        let options = hadal_passes::Options { laws: allowed, versions: false, ..optimised.options.clone() };
        let (fused, program) = hadal_passes::compile(&module, &optimised.target, &options)?;
        let (model, target) = (optimised.model.clone(), optimised.target.clone());
        Ok(Some(Without { laws, other: Optimised { model, target, options, fused, program, times: Vec::new() } }))
    }

    /// As text and as JSON; of the functions in `shown` only.
    pub fn answer(&self, optimised: &Optimised, shown: &[&Explanation]) -> (String, Value) {
        let (here, there) = (optimised.versions(), self.other.versions());
        let rows = self.rows(optimised, (&here, &there));
        let rows: Vec<&Row> = rows.iter().filter(|r| shown.iter().any(|e| std::ptr::eq(*e, r.function))).collect();
        let changed = |r: &&&Row| !r.gone.is_empty() || !r.instead.is_empty();
        let mut out = format!("chosen again without {}\n", self.laws.join(", "));
        for row in rows.iter().filter(changed) {
            let e = row.function;
            _ = writeln!(out, "  {} in {} ({})", e.func, together(&row.versions), sizes(e));
            let step =
                |s: &Step| format!("{:>9}  {:>9}FLOP  {:>9}", seconds(s.seconds()), count(s.flops), bytes(s.bytes()));
            _ = writeln!(out, "    as chosen  {}", step(&row.chosen));
            let more = percent(row.other.seconds() / row.chosen.seconds() - 1.0);
            _ = writeln!(out, "    without    {}  ({} of time)", step(&row.other), signed(&more));
            for (word, forms) in [("only as chosen", &row.gone), ("only without", &row.instead)] {
                const SHOWN: usize = 6;
                for form in forms.iter().take(SHOWN) {
                    _ = writeln!(out, "      {word}: {}", brief(form));
                }
                if forms.len() > SHOWN {
                    _ = writeln!(out, "      {word}: {} more", forms.len() - SHOWN);
                }
            }
        }
        if !rows.iter().any(|r| changed(&r)) {
            out += "  the same ops everywhere: what they make can be had without them, or is not used\n";
        }
        let borders = borders(optimised, (&here, &there));
        for border in &borders {
            _ = writeln!(out, "  {border}");
        }
        let row = |r: &&Row| {
            let step = |s: &Step| json!({"seconds": s.seconds(), "flops": s.flops, "bytes": s.bytes()});
            json!({
                "function": r.function.func,
                "versions": r.versions,
                "sizes": r.function.bindings.iter().map(|(s, n)| (s.to_string(), json!(n))).collect::<serde_json::Map<_, _>>(),
                "chosen": step(&r.chosen),
                "without": step(&r.other),
                "only_chosen": r.gone,
                "only_without": r.instead,
            })
        };
        let functions: Vec<Value> = rows.iter().map(row).collect();
        (out + "\n", json!({"laws": self.laws, "functions": functions, "borders": borders}))
    }

    fn rows<'a>(&'a self, optimised: &'a Optimised, (here, there): (&'a [Version], &[Version])) -> Vec<Row<'a>> {
        let others = explanations(&self.other);
        let mut out = Vec::new();
        for e in explanations(optimised) {
            let Some(other) = others.iter().find(|o| o.func == e.func) else { continue };
            let uses = |v: &&Version| {
                let module = &optimised.fused.optimised;
                let entries = module.entries.iter();
                let entries = entries.filter(|e| e.name == v.plan.entry && module.ranges(e) == v.plan.ranges);
                module.reached(entries).contains(e.func.as_str())
            };
            let versions: Vec<&Version> = here.iter().filter(uses).collect();
            let Some(first) = versions.first() else { continue };
            let Some(same) = there.iter().find(|v| v.label == first.label) else { continue };
            out.push(Row {
                versions: versions.iter().map(|v| v.label.as_str()).collect(),
                function: e,
                chosen: own(optimised, first, &e.func),
                other: own(&self.other, same, &e.func),
                gone: only(&e.forms, &other.forms),
                instead: only(&other.forms, &e.forms),
            });
        }
        out
    }
}

/// What the kernels of one call of a function take.
fn own(optimised: &Optimised, version: &Version, func: &str) -> Step {
    let insts = optimised.fused.module.func(func).map(|f| f.insts.as_slice()).unwrap_or_default();
    let kernels = insts.iter().filter_map(|i| match &i.kind {
        InstKind::Call(c) => version.launches.iter().find(|(name, _)| *name == c.func),
        InstKind::Op(_) => None,
    });
    kernels.map(|(_, step)| *step).sum()
}

/// Ops of `these` that are not among `those`, whatever letters their axes have.
fn only<'a>(these: &'a [Form], those: &[Form]) -> Vec<&'a str> {
    let mut left: Vec<String> = those.iter().map(|f| brief(&f.text)).collect();
    let mut out = Vec::new();
    for form in these {
        match left.iter().position(|l| *l == brief(&form.text)) {
            Some(i) => _ = left.swap_remove(i),
            None => out.push(form.text.as_str()),
        }
    }
    out
}

/// Where entries were split, and the laws are worth something on one side only.
fn borders(optimised: &Optimised, (here, there): (&[Version], &[Version])) -> Vec<String> {
    const WORTH: f64 = 1e-3;
    let splits = optimised.fused.reports.iter().flat_map(|r| &r.details.splits);
    let worth = |entry: &str, of: &dyn Fn(&Version) -> bool| {
        let v = here.iter().find(|v| v.plan.entry == entry && of(v))?;
        let other = there.iter().find(|o| o.label == v.label)?;
        Some(other.step.seconds() / v.step.seconds() - 1.0)
    };
    let mut out = Vec::new();
    for split in splits {
        let Some(entry) = split.entries.first() else { continue };
        let inside = |v: &Version| {
            let all = split.within.iter();
            all.filter(|(s, _)| **s != split.sym)
                .all(|(s, w)| v.plan.ranges.get(s).is_none_or(|r| r.min <= w.max && w.min <= r.max))
        };
        let range = |v: &Version| v.plan.ranges.get(&split.sym).copied();
        let low = worth(entry, &|v| inside(v) && range(v).is_some_and(|r| r.max == split.at));
        let high = worth(entry, &|v| inside(v) && range(v).is_some_and(|r| r.min == split.at + 1));
        let (Some(low), Some(high)) = (low, high) else { continue };
        if (low > WORTH) != (high > WORTH) {
            let say = |x: f64| match x > WORTH {
                true => format!("they save {} of the call", percent(x / (1.0 + x))),
                false => "nothing".to_owned(),
            };
            let within: Vec<String> =
                split.within.iter().filter(|(s, _)| **s != split.sym).map(|(s, r)| format!("{s} {r}")).collect();
            out.push(format!(
                "{} for {}: the choice changes at {} = {}; up to there {}, beyond {}",
                split.entries.join(", "),
                within.join(", "),
                split.sym,
                split.at,
                say(low),
                say(high)
            ));
        }
    }
    out
}

fn signed(percent: &str) -> String {
    if percent.starts_with('-') { percent.to_owned() } else { format!("+{percent}") }
}

/// Versions that share a function have the same ranges, which are said once.
pub fn together(labels: &[&str]) -> String {
    let names: Vec<&str> = labels.iter().map(|l| l.split(" (").next().unwrap_or(l)).collect();
    let ranges = labels.first().and_then(|l| l.split_once(" (")).map_or(String::new(), |(_, r)| format!(" ({r}"));
    names.join(", ") + &ranges
}

/// An op with the types of its operands and result, without attributes.
pub fn brief(text: &str) -> String {
    let out = text.rsplit_once(" : ").map_or("", |(_, ty)| ty);
    format!("{} : {out}", text.split(" {").next().unwrap_or(text))
}
