//! `hadal explain`: why kernels are as they are, and why others are not there.

use crate::explain::{
    Choice, Place, Topic, Verdict, at, by_version, explanations, forms_of, in_layer, is_at, kernel_text, kernels, more,
    role, runner_up, sizes, theme, topic, uses, verdict,
};
use crate::failure::Failure;
use crate::options::{AdapterArgs, CompileArgs, near_laws};
use crate::report::facts::{Kernel, Optimised, Sizes, Version};
use crate::report::json;
use crate::units::{bytes, count, percent, seconds};
use crate::without::{Without, brief, together};
use hadal_passes::explain::{Explanation, Form, LawUse, RunnerUp};
use hadal_passes::rule::{NumericClass, Rule};
use hadal_passes::rules;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::PathBuf;

/// Say why a model's kernels are as they are: the laws behind them, what else was there, and what that would cost.
///
/// Without options: each entry's kernels and the choices that made them. Costs are those of --target, for the sizes in
/// brackets.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    hadal explain tests/fixtures/configs/deepseek-r1.json --target h200 --entry decode\n  \
    hadal explain CHECKPOINT --why absorb\n  \
    hadal explain CHECKPOINT --why-not gather-contractions --entry prefill\n  \
    hadal explain CHECKPOINT --kernel attention")]
pub struct Args {
    /// A checkpoint folder or a bare config.json.
    path: PathBuf,
    /// A kernel, or part of the names of some: its ops, its laws from the source graph on, its tensors, its cost.
    #[arg(long, group = "question", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    kernel: Option<String>,
    /// A law, a theme, a place in the model, a kernel, or a word such as `absorb`: what came of it, and why.
    #[arg(long, value_name = "LAW|WORD", group = "question")]
    #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
    why: Option<String>,
    /// A law: why it made nothing that was chosen.
    #[arg(long, value_name = "LAW", group = "question")]
    why_not: Option<String>,
    /// Only this entry (prefill, decode, …).
    #[arg(long)]
    entry: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sizes: Sizes,
    #[command(flatten)]
    adapter: AdapterArgs,
    #[command(flatten)]
    compile: CompileArgs,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    if let Some(law) = &args.why_not
        && rules::law(law).is_none()
    {
        return Err(unknown_law(law));
    }
    let input = args.adapter.open(&args.path)?;
    let options = args.compile.options();
    let optimised = Optimised::of(&input, &options, args.sizes, true)?;
    args.compile.note(&optimised.model);
    let session = Session::new(&optimised, args.entry.as_deref())?;
    let (text, value) = match (&args.kernel, &args.why, &args.why_not) {
        (Some(name), _, _) => session.kernels(name)?,
        (_, Some(word), _) => session.why(word)?,
        (_, _, Some(law)) => session.why_not(rules::law(law).ok_or_else(|| unknown_law(law))?),
        _ => session.summary(),
    };
    match args.json {
        true => say!("{value:#}"),
        false => say!("{}", text.trim_end()),
    }
}

fn unknown_law(law: &str) -> Failure {
    let near = near_laws(law);
    let failure = Failure::usage(format!("there is no law `{law}`"));
    match near.is_empty() {
        true => {
            failure.help("`hadal explain PATH --why WORD` finds laws by theme and by word; the book lists them all")
        }
        false => failure.help(format!("near are {}", near.join(", "))),
    }
}

/// An answer, as text and as JSON.
type Answer = (String, Value);

struct Session<'a> {
    optimised: &'a Optimised,
    versions: Vec<Version<'a>>,
    explanations: Vec<&'a Explanation>,
}

impl<'a> Session<'a> {
    fn new(optimised: &'a Optimised, entry: Option<&str>) -> Result<Session<'a>, Failure> {
        let mut versions = optimised.versions();
        let mut explanations = explanations(optimised);
        if let Some(name) = entry {
            let module = &optimised.fused.optimised;
            if module.entry(name).is_none() {
                let mut has: Vec<&str> = module.entries.iter().map(|e| e.name.as_str()).collect();
                has.dedup();
                return Err(Failure::usage(format!("there is no entry `{name}`; this model has {}", has.join(", "))));
            }
            versions.retain(|v| v.plan.entry == name);
            let reached = module.reached(module.versions(name));
            explanations.retain(|e| reached.contains(e.func.as_str()));
        }
        Ok(Session { optimised, versions, explanations })
    }

    fn summary(&self) -> Answer {
        let o = self.optimised;
        let mut out = format!("{} on {}", o.model.name, o.target.name);
        if o.options.batch > 1 {
            _ = write!(out, ", {} sequences at once", o.options.batch);
        }
        out.push('\n');
        for v in &self.versions {
            let kernels = v.kernels(&o.program);
            let total = v.step.seconds();
            _ = writeln!(
                out,
                "\n{}: {} predicted at {}, {} launches of {} kernels, bound by {}",
                v.label,
                seconds(total),
                bound(&v.bindings),
                v.step.launches,
                kernels.len(),
                v.step.bound()
            );
            const SHOWN: usize = 12;
            for k in kernels.iter().take(SHOWN) {
                let share = percent(k.step.seconds() / total);
                let time = seconds(k.step.seconds());
                _ = writeln!(
                    out,
                    "  {time:>8} {share:>6}  @{} ×{}  from {}",
                    k.func.name,
                    k.launches,
                    few(&k.origin, 2)
                );
                if !k.laws.is_empty() {
                    _ = writeln!(out, "                   by {}", k.laws.join(", "));
                }
            }
            if kernels.len() > SHOWN {
                let rest: f64 = kernels[SHOWN..].iter().map(|k| k.step.seconds()).sum();
                _ = writeln!(
                    out,
                    "  {:>8} {:>6}  {} more",
                    seconds(rest),
                    percent(rest / total),
                    kernels.len() - SHOWN
                );
            }
        }
        out += "\nChoices are costed before fusion, so they do not add up to the kernels' total.\n";
        for e in &self.explanations {
            let forms: Vec<&Form> = e.forms.iter().filter(|f| !f.laws.is_empty() || f.runner_up.is_some()).collect();
            if forms.is_empty() {
                continue;
            }
            _ = writeln!(out, "\nchoices in {}, {} as chosen", at(e), seconds(e.cost));
            forms.iter().for_each(|f| form(&mut out, e, f));
        }
        let value = json!({
            "architecture": o.model.name,
            "target": o.target.name,
            "batch": o.options.batch,
            "versions": self.versions.iter().map(|v| json!({
                "version": v.label,
                "seconds": v.step.seconds(),
                "launches": v.step.launches,
                "kernels": v.kernels(&o.program).iter().map(json::kernel).collect::<Vec<_>>(),
            })).collect::<Vec<_>>(),
            "functions": self.explanations.iter().map(|e| explanation_json(e)).collect::<Vec<_>>(),
        });
        (out, value)
    }

    fn kernels(&self, name: &str) -> Result<Answer, Failure> {
        let found = kernels(&self.versions, name);
        let used: Vec<_> = found.iter().map(|k| (*k, uses(self.optimised, &self.versions, k))).collect();
        if used.is_empty() {
            let help = "`hadal explain PATH` lists the kernels of every entry";
            return Err(Failure::usage(format!("there is no kernel `{name}`")).help(help));
        }
        const MANY: usize = 6;
        if used.len() > MANY {
            let names: Vec<String> = used.iter().map(|(k, _)| format!("@{k}")).collect();
            let list = names.join("\n");
            let text = format!("{} kernels have `{name}` in their names", used.len());
            return Err(Failure::usage(text).help(format!("choose one of these:\n{list}")));
        }
        let mut out = String::new();
        let mut values = Vec::new();
        for (name, uses) in &used {
            let Some((_, kernel)) = uses.first() else { continue };
            self.kernel(&mut out, name, uses, kernel);
            let mut value = json::kernel(kernel);
            value["chain"] = kernel.laws.iter().map(|l| law_json(l)).collect();
            value["versions"] = uses
                .iter()
                .map(|(v, k)| json!({"version": v.label, "launches": k.launches, "seconds": k.step.seconds()}))
                .collect();
            let forms = forms_of(self.optimised, kernel);
            value["choices"] = forms.iter().map(|(e, f)| json!({"in": at(e), "choice": form_json(e, f)})).collect();
            let by_version = by_version(self.optimised, &self.versions, kernel);
            table(&mut out, &by_version);
            value["by_version"] =
                by_version.iter().flat_map(|p| p.choices.iter().map(|c| row_json(p.function, c))).collect();
            values.push(value);
        }
        Ok((out, json!({"kernels": values})))
    }

    fn kernel(&self, out: &mut String, name: &str, uses: &[(&Version, Kernel)], kernel: &Kernel) {
        _ = writeln!(out, "@{name}\n");
        for line in kernel_text(kernel).trim_end().lines() {
            _ = writeln!(out, "  {line}");
        }
        _ = writeln!(out, "\ncomes from {}", few(&kernel.origin, 6));
        if !kernel.weights.is_empty() {
            _ = writeln!(out, "reads {}", few(&kernel.weights, 6));
        }
        match kernel.laws.is_empty() {
            true => _ = writeln!(out, "\nno law: its ops are as the model wrote them"),
            false => _ = writeln!(out, "\nlaws, from the source graph on"),
        }
        for law in &kernel.laws {
            _ = writeln!(out, "  {}", law_line(law));
        }
        _ = writeln!(out, "\ncosts");
        for (v, k) in uses {
            let s = &k.step;
            _ = writeln!(
                out,
                "  {}: {} in {} launches, {} of the entry; {}FLOP, {}, bound by {}",
                v.label,
                seconds(s.seconds()),
                k.launches,
                percent(s.seconds() / v.step.seconds()),
                count(s.flops),
                bytes(s.bytes()),
                s.bound()
            );
        }
        let forms = forms_of(self.optimised, kernel);
        if !forms.is_empty() {
            _ = writeln!(out, "\nchoices");
        }
        for (e, f) in forms {
            _ = writeln!(out, "  in {}, {} as chosen", at(e), seconds(e.cost));
            form(out, e, f);
        }
        out.push('\n');
    }

    fn why(&self, word: &str) -> Result<Answer, Failure> {
        let Topic { meaning, laws, kernels } = topic(self.optimised, word);
        if laws.is_empty() && kernels.is_empty() || word.trim_matches(['@', ' ']).is_empty() {
            let words: Vec<&str> = rules::words::WORDS.iter().map(|w| w.word).collect();
            let themes: Vec<&str> = rules::themes().map(|t| t.name).collect();
            let help = format!(
                "ask for a law, a theme ({}), a word ({}), a kernel or a place in the model",
                themes.join(", "),
                words.join(", ")
            );
            return Err(Failure::usage(format!("nothing here is called `{word}`")).help(help));
        }
        let mut out = String::new();
        if let Some(m) = meaning {
            _ = writeln!(out, "{}: {}\n", m.word, m.meaning);
        }
        let names: Vec<&'static str> = laws.iter().map(|r| r.name).collect();
        let mut without = Value::Null;
        match Without::of(self.optimised, names) {
            Ok(Some(other)) => {
                let (text, value) = other.answer(self.optimised, &self.explanations);
                (out, without) = (out + &text, value);
            }
            Ok(None) => {}
            Err(e) => _ = writeln!(out, "without these laws nothing can be chosen: {e}\n"),
        }
        let mut values = Vec::new();
        for law in &laws {
            let functions = self.law(&mut out, law);
            let mut value = law_json(law.name);
            value["functions"] = functions;
            values.push(value);
        }
        let with: Vec<&String> = kernels
            .iter()
            .filter(|k| self.versions.iter().any(|v| v.plan.launches.iter().any(|l| l.kernel == **k)))
            .collect();
        if !with.is_empty() {
            _ = writeln!(out, "kernels");
        }
        for name in &with {
            for (v, k) in uses(self.optimised, &self.versions, name) {
                let time = seconds(k.step.seconds());
                _ = writeln!(
                    out,
                    "  @{name} in {}: {time} in {} launches, from {}",
                    v.label,
                    k.launches,
                    few(&k.origin, 2)
                );
            }
        }
        // Of a place: what is chosen there.
        let there = in_layer(word);
        let at_place = |f: &&Form| laws.is_empty() && f.origin.iter().any(|o| is_at(o, there));
        let mut choices = Vec::new();
        for e in &self.explanations {
            let forms: Vec<&Form> = e.forms.iter().filter(at_place).collect();
            if !forms.is_empty() {
                _ = writeln!(out, "\nchoices in {}, {} as chosen", at(e), seconds(e.cost));
            }
            for f in forms {
                form(&mut out, e, f);
                choices.push(json!({"in": at(e), "choice": form_json(e, f)}));
            }
        }
        let value = json!({
            "choices": choices,
            "word": word,
            "meaning": meaning.map(|m| m.meaning),
            "without": without,
            "laws": values,
            "kernels": with,
        });
        Ok((out, value))
    }

    fn why_not(&self, law: &'static Rule) -> Answer {
        let mut out = String::new();
        let functions = self.law(&mut out, law);
        let mut value = law_json(law.name);
        value["functions"] = functions;
        (out, value)
    }

    /// What came of a law in every function.
    fn law(&self, out: &mut String, law: &Rule) -> Value {
        _ = writeln!(out, "{}\n  {}", law_line(law.name), role(law.name));
        let fired: usize = self.optimised.fused.reports.iter().filter_map(|r| r.details.fired.get(law.name)).sum();
        let canonical = !self.explanations.iter().any(|e| e.laws.iter().any(|u| u.law == law.name));
        let mut values = Vec::new();
        if canonical && law.class == NumericClass::Approximate && fired == 0 {
            _ = writeln!(out, "  not allowed: it is approximate, and was not asked for by name");
        } else if canonical {
            _ = writeln!(out, "  fired {fired} times");
        }
        for e in self.explanations.iter().filter(|_| !canonical) {
            let (text, value) = verdict_of(e, law.name);
            _ = writeln!(out, "  {}: {text}", at(e));
            values.push(value);
        }
        out.push('\n');
        json!(values)
    }
}

fn verdict_of(e: &Explanation, law: &str) -> Answer {
    let verdict = verdict(e, law);
    let base = |what: &str, u: Option<&LawUse>| {
        json!({
            "function": e.func,
            "sizes": e.bindings.iter().map(|(s, n)| (s.to_string(), json!(n))).collect::<serde_json::Map<_, _>>(),
            "verdict": what,
            "fired": u.map_or(0, |u| u.fired),
            "places": u.map(|u| &u.places),
            "chosen": u.map_or(0, |u| u.chosen),
            "seconds": e.cost,
            "lost": u.and_then(|u| u.lost.as_ref()).map(|r| runner_up_json(e, r)),
            "misses": u.map(|u| u.misses.iter().map(|m| json!({"origin": m.origin, "reason": m.reason})).collect::<Vec<_>>()),
        })
    };
    match verdict {
        Verdict::Chosen(u) => {
            let mut text = format!("fired {} times, behind {} ops that were chosen", u.fired, u.chosen);
            let forms = e.forms.iter().filter(|f| f.laws.iter().any(|l| l == law));
            for f in forms.take(3) {
                _ = write!(text, "\n      {}", clip(&f.text));
            }
            (text, base("chosen", Some(u)))
        }
        Verdict::Lost(u) => {
            let mut text = format!("fired {} times, lost by cost", u.fired);
            if let Some(r) = &u.lost {
                let (by, part) = more(e, r.cost);
                text += &match part < 1e-9 {
                    true => format!(": as much, {}, and ties go to what was written", seconds(e.cost)),
                    false => {
                        format!(": {} more than the {} as chosen (+{})", seconds(by), seconds(e.cost), finely(part))
                    }
                };
                _ = write!(text, "\n      {}", clip(&r.text));
            }
            (text, base("lost", Some(u)))
        }
        Verdict::Failed(u) => {
            let mut text = "its pattern is there, but a side condition failed".to_owned();
            for m in u.misses.iter().take(4) {
                _ = write!(text, "\n      {} ({})", m.reason, m.origin.join(", "));
            }
            if u.misses.len() > 4 {
                _ = write!(text, "\n      and {} more", u.misses.len() - 4);
            }
            (text, base("side condition failed", Some(u)))
        }
        Verdict::Idle(u) => {
            let text = format!("fired {} times, on the way to nothing that the result could be made of", u.fired);
            (text, base("idle", Some(u)))
        }
        Verdict::NotMatched => ("its pattern is not there".to_owned(), base("not matched", None)),
    }
}

fn form(out: &mut String, e: &Explanation, f: &Form) {
    _ = writeln!(out, "  {}", clip(&f.text));
    _ = writeln!(out, "    {} alone, from {}", seconds(f.own), f.origin.join(", "));
    if !f.laws.is_empty() {
        _ = writeln!(out, "    by {}", f.laws.join(", "));
    }
    if let Some(r) = runner_up(f) {
        let (by, part) = more(e, r.cost);
        if part < 1e-9 {
            _ = writeln!(out, "    as good: {}", clip(&r.text));
            return;
        }
        let laws = if r.laws.is_empty() { "as written".to_owned() } else { format!("by {}", r.laws.join(", ")) };
        _ = writeln!(out, "    runner-up {} more (+{}), {laws}: {}", seconds(by), finely(part), clip(&r.text));
    }
}

/// What is chosen at a kernel's places in every version, and what came second.
fn table(out: &mut String, by_version: &[Place]) {
    for Place { function, origin, choices } in by_version {
        let origin: Vec<&str> = origin.iter().map(String::as_str).collect();
        _ = writeln!(out, "in every version of @{function}, at {}", few(&origin, 3));
        let head =
            ["version", "costed at", "alone", "in all", "runner-up", "", "function", "op"].map(str::to_owned).to_vec();
        let mut lines = vec![head];
        for Choice { versions, function: e, form } in choices {
            let (second, by) = match &form.runner_up {
                None => ("nothing else".to_owned(), String::new()),
                Some(r) if more(e, r.cost).1 < 1e-9 => ("as good".to_owned(), String::new()),
                Some(r) => (seconds(r.cost), format!("+{}", percent(more(e, r.cost).1))),
            };
            let (name, op) = (format!("@{}", e.func), brief(&form.text));
            let (alone, all) = (seconds(form.own), seconds(e.cost));
            lines.push(vec![together(versions), sizes(e), alone, all, second, by, name, op]);
        }
        let width = |i: usize| lines.iter().map(|l| l[i].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..lines[0].len()).map(width).collect();
        for line in &lines {
            let cells: Vec<String> = line.iter().zip(&widths).map(|(cell, w)| format!("{cell:<w$}")).collect();
            _ = writeln!(out, "  {}", cells.join("  ").trim_end());
        }
        out.push('\n');
    }
}

fn row_json(function: &str, c: &Choice) -> Value {
    json!({
        "source": function,
        "versions": c.versions,
        "in": at(c.function),
        "function_seconds": c.function.cost,
        "choice": form_json(c.function, c.form),
    })
}

fn law_line(name: &str) -> String {
    match rules::law(name) {
        Some(r) => format!("{name} ({}, {}): {}", theme(name), format!("{:?}", r.class).to_lowercase(), r.law),
        // Passes with laws of their own are named in chains too.
        None => name.to_owned(),
    }
}

fn law_json(name: &str) -> Value {
    let rule = rules::law(name);
    json!({
        "law": name,
        "says": rule.map(|r| r.law),
        "class": rule.map(|r| format!("{:?}", r.class).to_lowercase()),
        "theme": theme(name),
        "use": role(name),
    })
}

fn runner_up_json(e: &Explanation, r: &RunnerUp) -> Value {
    json!({"form": r.text, "laws": r.laws, "seconds": r.cost, "more": more(e, r.cost).0})
}

fn form_json(e: &Explanation, f: &Form) -> Value {
    json!({
        "form": f.text,
        "origin": f.origin,
        "laws": f.laws,
        "seconds": f.own,
        "runner_up": f.runner_up.as_ref().map(|r| runner_up_json(e, r)),
    })
}

fn explanation_json(e: &Explanation) -> Value {
    json!({
        "function": e.func,
        "sizes": e.bindings.iter().map(|(s, n)| (s.to_string(), json!(n))).collect::<serde_json::Map<_, _>>(),
        "batch": e.batch,
        "seconds": e.cost,
        "choices": e.forms.iter().map(|f| form_json(e, f)).collect::<Vec<_>>(),
        "laws": e.laws.iter().map(|u| verdict_of(e, u.law).1).collect::<Vec<_>>(),
    })
}

/// The first few of some names, and how many more there are.
fn few(all: &[&str], n: usize) -> String {
    let shown = all.iter().take(n).copied().collect::<Vec<_>>().join(", ");
    if all.len() > n { format!("{shown} and {} more", all.len() - n) } else { shown }
}

/// Sizes as text.
fn bound(bindings: &hadal_ir::Bindings) -> String {
    bindings.iter().map(|(s, n)| format!("{s} = {n}")).collect::<Vec<_>>().join(", ")
}

/// A part in as many digits as tell it from nothing.
fn finely(part: f64) -> String {
    match part.abs() {
        x if x >= 1e-3 => percent(part),
        x if x >= 1e-5 => format!("{:.3} %", 100.0 * part),
        _ => "less than 0.001 %".to_owned(),
    }
}

/// A line of a terminal.
fn clip(text: &str) -> String {
    const WIDE: usize = 150;
    match text.char_indices().nth(WIDE) {
        Some((i, _)) => format!("{}…", &text[..i]),
        None => text.to_owned(),
    }
}
