//! The parts of a report, in the order in which they stand.

use super::chart::{Axis, Chart, Marks, Point, Series};
use super::curves;
use super::facts::{Facts, Version, live_bytes};
use super::graph;
use super::page::{charts, table};
use super::svg::escape;
use crate::units::{bytes, count, grouped, percent, seconds};
use hadal_ir::module::FuncKind;
use hadal_ir::{Func, InstKind, Module, Op, text};
use hadal_passes::egraph::Search;
use hadal_passes::rules;
use hadal_types::DType;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// Name of a section's anchor, heading, and what makes it.
type Section = (&'static str, &'static str, fn(&Facts) -> String);

/// All sections.
const SECTIONS: &[Section] = &[
    ("curves", "Against the context", predicted),
    ("entries", "Entries and versions", entries),
    ("graphs", "Graphs, before and after", graphs),
    ("rewrites", "Rewrites", rewrites),
    ("choices", "Choices, and what came second", choices),
    ("roofline", "Kernels on the roofline", roofline),
    ("memory", "Memory over time", memory),
    ("gap", "What the quick choice gives away", gap),
    ("time", "Compile time", times),
];

/// The report's body.
pub fn body(facts: &Facts) -> String {
    let mut out = header(facts);
    out += "<nav aria-label=\"Sections\">";
    for (id, heading, _) in SECTIONS {
        _ = write!(out, "<a href=\"#{id}\">{heading}</a>");
    }
    out += "</nav>\n";
    for (id, heading, make) in SECTIONS {
        _ = writeln!(out, "<section id=\"{id}\">\n<h2>{heading}</h2>\n{}</section>", make(facts));
    }
    out
}

fn header(f: &Facts) -> String {
    let mut out = format!("<h1>{} for {}</h1>\n", escape(&f.name), escape(&f.target.name));
    _ = writeln!(out, "<p class=\"quiet\">{} — {}</p>", escape(f.model.name), escape(&f.model.why));
    let longest = f.model.max_context as u64;
    let facts = [
        ("parameters, main model only", count(f.stats.main as f64)),
        ("of those read for a token", count(f.stats.active as f64)),
        ("weights, as packed", bytes(f.weight_bytes() as f64)),
        ("state a token, as compiled, with all modules", format!("{} B", grouped(f.state_bytes() / longest.max(1)))),
        (
            "state a token, in bf16, main model only",
            format!("{} B", grouped(f.stats.state_bytes_per_token(DType::BF16))),
        ),
        ("context compiled for", grouped(longest)),
        ("layers", f.model.layers.to_string()),
        ("kernels", f.program.module.funcs.iter().filter(|k| k.kind == FuncKind::Kernel).count().to_string()),
    ];
    out += "<dl class=\"facts\">\n";
    for (name, value) in facts {
        _ = writeln!(out, "<div><dt>{name}</dt><dd>{}</dd></div>", escape(&value));
    }
    let peaks = f.target.flops.list().into_iter().map(|(name, peak)| format!("{}FLOP/s in {name}", count(peak)));
    out += "</dl>\n";
    let peaks: Vec<String> = peaks.collect();
    let rates = format!(
        "{}; {}/s from memory, {}/s from {} of cache; {} a launch. {}.",
        peaks.join(", "),
        bytes(f.target.bandwidth),
        bytes(f.target.cache_bandwidth),
        bytes(f.target.cache_bytes as f64),
        seconds(f.target.launch_seconds),
        f.target.source
    );
    _ = writeln!(out, "<p class=\"quiet\">{}</p>", escape(&rates));
    out
}

fn predicted(f: &Facts) -> String {
    "<p class=\"quiet\">A roofline, not a measurement. For every context the graph is optimised anew, for calls of that \
     length.</p>\n"
        .to_owned()
        + &charts(&curves::charts(&f.prediction))
}

fn entries(f: &Facts) -> String {
    let row = |v: &Version| {
        let s = &v.step;
        vec![
            v.label.clone(),
            v.bindings.iter().map(|(s, n)| format!("{s} = {n}")).collect::<Vec<_>>().join(", "),
            s.launches.to_string(),
            seconds(s.seconds()),
            s.bound().to_owned(),
            count(s.flops),
            bytes(s.weight_bytes),
            bytes(s.state_bytes_read + s.state_bytes_written),
            bytes(s.activation_bytes),
            bytes(v.plan.arena_bytes as f64),
        ]
    };
    let head =
        ["entry", "costed at", "launches", "predicted", "bound by", "FLOP", "weights", "states", "handed on", "arena"];
    let rows: Vec<_> = f.versions().iter().map(row).collect();
    let sequences = if f.options.batch == 1 { "one sequence".into() } else { format!("{} sequences", f.options.batch) };
    table(
        &format!("Each version at sizes typical for it, {sequences}; steps of two tokens are as those of one"),
        2,
        &head,
        &rows,
    )
}

fn graphs(f: &Facts) -> String {
    let mut out =
        "<p class=\"quiet\">Each distinct function: as the model wrote it, after rewriting, and cut into kernels. \
         Scroll or pinch to zoom, drag to move; point at a box for the whole of it. After a function's name: the entry, \
         .0, .1, … its versions by size, .part only the rows that are wanted.</p>\n<p class=\"key\">"
            .to_owned();
    for (class, name) in graph::LEGEND {
        _ = write!(
            out,
            "<span><svg viewBox=\"0 0 14 14\" aria-hidden=\"true\" class=\"graph\"><g class=\"{class}\"><rect x=\"1\" y=\"1\" width=\"12\" height=\"12\" rx=\"3\"/></g></svg> {name}</span> "
        );
    }
    out += "</p>\n<div class=\"tabs\">\n";
    let mut seen = BTreeSet::new();
    // What versions are copies of is drawn once: with a long layer that is a good part of the page.
    let mut drawn: BTreeMap<&str, &str> = BTreeMap::new();
    let functions = f.fused.optimised.funcs.iter().filter(|g| g.kind == FuncKind::Graph && !g.insts.is_empty());
    let shown_first = most_called(&f.fused.optimised, "decode");
    for after in functions.filter(|g| seen.insert(shape(g))) {
        let before = crate::explain::source(&f.model.module, &after.name);
        let cut = f.fused.module.func(&after.name);
        let mark = if Some(after.name.as_str()) == shown_first { " data-first" } else { "" };
        _ = writeln!(out, "<div class=\"tab\" data-name=\"{}\"{mark}><h3>@{0}</h3>", escape(&after.name));
        let first = before.map(|g| *drawn.entry(g.name.as_str()).or_insert(after.name.as_str()));
        let new = first == Some(after.name.as_str());
        if let Some(first) = first.filter(|_| !new) {
            _ = writeln!(out, "<p class=\"quiet\">As written: as drawn with @{}.</p>", escape(first));
        }
        let views = [
            ("as written", before.filter(|_| new).map(|g| (&f.model.module, g))),
            ("rewritten", Some((&f.fused.optimised, after))),
            ("as kernels", cut.map(|g| (&f.fused.module, g))),
        ];
        out += "<div class=\"graphs\">";
        for (caption, view) in views {
            let Some((module, func)) = view else { continue };
            let n = func.insts.len();
            _ = writeln!(
                out,
                "<figure class=\"zoom\"><figcaption><b>{caption}</b> <span>{n} ops</span></figcaption>{}</figure>",
                graph::svg(module, func)
            );
        }
        out += "</div></div>\n";
    }
    out + "</div>\n"
}

/// The function that an entry calls most often.
fn most_called<'m>(module: &'m Module, entry: &str) -> Option<&'m str> {
    let mut count: BTreeMap<&str, usize> = BTreeMap::new();
    for inst in &module.func(&module.entry(entry)?.func)?.insts {
        if let InstKind::Call(call) = &inst.kind {
            *count.entry(&call.func).or_default() += 1;
        }
    }
    count.into_iter().max_by_key(|(_, n)| *n).map(|(name, _)| name)
}

/// What a function does, whatever it and those it calls are named: copies for several entries are often the same.
fn shape(func: &Func) -> String {
    let mut anonymous = func.clone();
    anonymous.name = String::new();
    for inst in &mut anonymous.insts {
        if let InstKind::Call(call) = &mut inst.kind {
            call.func = call.func.split('.').next().unwrap_or_default().to_owned();
        }
    }
    text::print_func(&anonymous)
}

fn rewrites(f: &Facts) -> String {
    let mut fired: BTreeMap<&str, BTreeMap<&str, usize>> = BTreeMap::new();
    for report in &f.fused.reports {
        for (law, n) in report.details.fired.iter().filter(|(_, n)| **n > 0) {
            *fired.entry(law).or_default().entry(report.pass).or_default() += n;
        }
    }
    let mut rows = Vec::new();
    for theme in rules::themes() {
        for law in theme.rules {
            let Some(n) = fired.get(law.name) else { continue };
            let times = n.iter().map(|(pass, n)| format!("{pass} {n}")).collect::<Vec<_>>().join(", ");
            let row = vec![
                theme.name.to_owned(),
                law.name.to_owned(),
                law.law.to_owned(),
                format!("{:?}", law.class).to_lowercase(),
                times,
            ];
            if !rows.contains(&row) {
                rows.push(row);
            }
        }
    }
    let mut out = table(
        "Laws that fired, and how often something new came of it",
        5,
        &["theme", "law", "it says", "class", "fired"],
        &rows,
    );
    let searches: Vec<_> = f.fused.reports.iter().flat_map(|r| &r.details.searches).collect();
    let row = |s: &&Search| {
        vec![
            format!("@{}", s.func),
            sizes(&s.bindings),
            s.nodes.to_string(),
            s.classes.to_string(),
            s.rounds.to_string(),
            format!("{:?}", s.stop).to_lowercase(),
            seconds(s.before),
            seconds(s.after),
            percent(1.0 - s.after / s.before),
            bytes(s.folded_bytes),
            f.gaps.iter().find(|g| g.func == s.func).map_or_else(String::new, |g| percent(g.greedy / g.exact - 1.0)),
        ]
    };
    let head = [
        "function",
        "costed at",
        "nodes",
        "classes",
        "rounds",
        "ended",
        "as written",
        "chosen",
        "saved",
        "folded",
        "gap",
    ];
    out += &table("Searches", 2, &head, &searches.iter().map(row).collect::<Vec<_>>());
    let phases = searches.iter().flat_map(|s| s.phases.iter().map(move |p| (s, p)));
    let row = |(s, p): (&&Search, &hadal_passes::egraph::PhaseReport)| {
        let fired: Vec<String> = p.fired.iter().map(|(law, n)| format!("{law} {n}")).collect();
        vec![
            format!("@{}", s.func),
            p.phase.to_owned(),
            fired.join(", "),
            p.banned.join(", "),
            p.nodes.to_string(),
            p.rounds.to_string(),
            format!("{:?}", p.stop).to_lowercase(),
            seconds(p.time.as_secs_f64()),
        ]
    };
    let rows: Vec<_> = phases.map(row).collect();
    let head = ["function", "phase", "fired", "banned", "nodes", "rounds", "ended", "time"];
    let all =
        table("Each phase keeps what those before it found; a law that matches too often is banned", 4, &head, &rows);
    _ = writeln!(out, "<details><summary>Phases of each search</summary>{all}</details>");
    out
}

fn sizes(bindings: &hadal_ir::Bindings) -> String {
    bindings.iter().map(|(s, n)| format!("{s} = {n}")).collect::<Vec<_>>().join(", ")
}

/// Ops that are work of their own, the laws behind them, and the best choice without them.
fn choices(f: &Facts) -> String {
    let mut out =
        "<p class=\"quiet\">What an op's absence would cost its function: the best choice without it. Most of \
                   the time that is another form of the same value.</p>\n"
            .to_owned();
    for e in f.fused.reports.iter().flat_map(|r| &r.details.explanations) {
        let row = |form: &hadal_passes::explain::Form| {
            let second = crate::explain::runner_up(form);
            vec![
                form.text.clone(),
                form.origin.join(", "),
                if form.laws.is_empty() { "as written".to_owned() } else { form.laws.join(", ") },
                second.map_or_else(|| "nothing else".to_owned(), |r| r.text.clone()),
                seconds(form.own),
                second.map_or_else(String::new, |r| seconds(r.cost - e.cost)),
                second.map_or_else(String::new, |r| percent(r.cost / e.cost - 1.0)),
            ]
        };
        let rows: Vec<_> = e.forms.iter().map(row).collect();
        if rows.is_empty() {
            continue;
        }
        let head = ["op", "from", "laws", "runner-up", "alone", "runner-up adds", "to all"];
        let caption = format!("{} as chosen", seconds(e.cost));
        let name = escape(&crate::explain::at(e));
        _ = writeln!(out, "<details><summary>{name}</summary>{}</details>", table(&caption, 4, &head, &rows));
    }
    out
}

fn roofline(f: &Facts) -> String {
    let mut out = String::new();
    let mut all = Vec::new();
    let mut tables = String::new();
    for v in f.versions() {
        let kernels = v.kernels(&f.program);
        let total = v.step.seconds();
        let point = |k: &super::facts::Kernel| {
            let s = &k.step;
            let (intensity, rate) = (s.flops / s.bytes().max(1.0), s.flops / s.seconds());
            let share = s.seconds() / total;
            let tip = format!(
                "@{} ×{}\n{} of {}, {} of the time, bound by {}\n{}FLOP, {}\nfrom {}",
                k.func.name,
                k.launches,
                seconds(s.seconds()),
                v.label,
                percent(share),
                s.bound(),
                count(s.flops),
                bytes(s.bytes()),
                k.origin.iter().take(3).copied().collect::<Vec<_>>().join(", ")
            );
            Point { x: intensity, y: rate, size: 2.5 + 9.0 * share.sqrt(), tip, label: None }
        };
        // Those that take longest come first, so that small ones lie on top.
        let mut by_format: BTreeMap<String, Vec<Point>> = BTreeMap::new();
        const LABELLED: usize = 5;
        for (i, k) in kernels.iter().filter(|k| k.step.flops > 0.0).enumerate() {
            let label = (i < LABELLED).then(|| k.func.name.clone());
            by_format.entry(format(k.func)).or_default().push(Point { label, ..point(k) });
        }
        all.push(roof_chart(f, &v, by_format));
        let rows: Vec<_> = kernels.iter().map(|k| kernel_row(k, total)).collect();
        let head = ["kernel", "ops", "from", "laws", "launches", "time", "of all", "bound by", "FLOP", "bytes"];
        _ = writeln!(
            tables,
            "<details><summary>Kernels of {}</summary>{}</details>",
            escape(&v.label),
            table("Those that take longest first", 4, &head, &rows)
        );
    }
    out += "<p class=\"quiet\">Each circle is a kernel with all its launches, as large as its share of the time and \
            coloured by the narrowest format that it multiplies; under the roof by what launching costs. Circles that \
            would hide each other stand side by side.</p>\n";
    out + &charts(&all) + &tables
}

fn kernel_row(k: &super::facts::Kernel, total: f64) -> Vec<String> {
    let s = &k.step;
    let mut ops: Vec<String> = Vec::new();
    for op in k.ops().filter(|op| !op.is_view()) {
        if ops.last().is_none_or(|last| last != op.mnemonic()) {
            ops.push(op.mnemonic().to_owned());
        }
    }
    let few = |all: &[&str], n: usize| {
        let shown = all.iter().take(n).copied().collect::<Vec<_>>().join(", ");
        if all.len() > n { format!("{shown} and {} more", all.len() - n) } else { shown }
    };
    vec![
        format!("@{}", k.func.name),
        few(&ops.iter().map(String::as_str).collect::<Vec<_>>(), 8),
        few(&k.origin, 2),
        few(&k.laws, 6),
        k.launches.to_string(),
        seconds(s.seconds()),
        percent(s.seconds() / total),
        s.bound().to_owned(),
        count(s.flops),
        bytes(s.bytes()),
    ]
}

/// The narrowest format that a kernel multiplies.
fn format(func: &Func) -> String {
    let product = |i: &&hadal_ir::Inst| matches!(&i.kind, InstKind::Op(Op::Contract(_) | Op::Attention(_)));
    if func.insts.iter().find(product).is_none() {
        return "no product".into();
    }
    let given = func.params.iter().map(|p| func.ty(*p).dtype).filter(|d| d.is_float());
    given.min_by_key(|d| d.bits()).map_or_else(String::new, |d| d.name().to_owned())
}

fn roof_chart(f: &Facts, v: &Version, by_format: BTreeMap<String, Vec<Point>>) -> Chart {
    let reach = |f: fn(f64, f64) -> f64, start: f64| by_format.values().flatten().map(|p| p.x).fold(start, f);
    let (low, high) = (reach(f64::min, 0.1), reach(f64::max, 1000.0));
    let roof = |(name, peak): (&str, f64)| {
        let knee = peak / f.target.bandwidth;
        let at = |x: f64| Point::new(x, (x * f.target.bandwidth).min(peak), String::new());
        let mut xs = vec![low, knee, high];
        xs.retain(|x| (low..=high).contains(x));
        Series {
            name: format!("{name} {}FLOP/s", count(peak)),
            marks: Marks::Limit,
            points: xs.into_iter().map(at).collect(),
        }
    };
    let limits: Vec<Series> = f.target.flops.list().into_iter().filter(|(name, _)| *name != "i8").map(roof).collect();
    let dots = by_format.into_iter().map(|(name, points)| Series { name, marks: Marks::Dots, points });
    let series = dots.chain(limits).collect();
    Chart {
        title: v.label.clone(),
        summary: format!("{}: {} launches, {} in all", sizes(&v.bindings), v.step.launches, seconds(v.step.seconds())),
        x: Axis { label: "FLOP a byte", log: Some(10.0), show: |x| if x < 1.0 { format!("{x}") } else { count(x) } },
        y: Axis { label: "FLOP a second", log: Some(10.0), show: count },
        series,
    }
}

fn memory(f: &Facts) -> String {
    let mut all = Vec::new();
    for v in f.versions() {
        let live = live_bytes(v.plan);
        let kernels: Vec<&str> = v.plan.launches.iter().map(|l| l.kernel.as_str()).collect();
        let mut points: Vec<Point> = Vec::new();
        let mut drawn = 0;
        for Run { first, length, times } in runs(&kernels) {
            for i in 0..length {
                let alive = (0..times).map(|n| live[first + n * length + i]).max().unwrap_or(0) as f64;
                let label = (i == 0 && times > 1).then(|| format!("×{times}"));
                let after = (i == 0 && points.iter().any(|p| p.label.is_some())).then(String::new);
                if label.is_some() || after.is_some() || points.last().is_none_or(|p| p.y != alive) {
                    points.push(Point { label: label.or(after), ..Point::new(drawn as f64, alive, String::new()) });
                }
                drawn += 1;
            }
        }
        let peak = live.iter().max().copied().unwrap_or(0);
        let least = v.plan.lower_bound;
        all.push(Chart {
            title: v.label.clone(),
            summary: format!(
                "arena {}, at most {} alive at once, no plan needs less than {}",
                bytes(v.plan.arena_bytes as f64),
                bytes(peak as f64),
                bytes(least as f64)
            ),
            x: Axis { label: "launch, those of repeated layers once", log: None, show: |x| x.to_string() },
            y: Axis { label: "bytes alive", log: None, show: bytes },
            series: vec![Series { name: "alive".into(), marks: Marks::Area, points }],
        });
    }
    let text = format!(
        "<p>Beside the arena: weights {}, states {} at the longest context compiled for.</p>\n",
        bytes(f.weight_bytes() as f64),
        bytes(f.state_bytes() as f64)
    );
    text + &charts(&all)
}

/// Launches that come several times, one run after the other.
struct Run {
    first: usize,
    length: usize,
    times: usize,
}

/// Cuts launches into runs: from the start on, whatever repeats over most launches.
fn runs(kernels: &[&str]) -> Vec<Run> {
    let mut out: Vec<Run> = Vec::new();
    let mut first = 0;
    while first < kernels.len() {
        let rest = &kernels[first..];
        let times = |length: usize| rest.chunks(length).take_while(|c| *c == &rest[..length]).count();
        let best = (2..=rest.len() / 2).map(|length| (length, times(length))).filter(|(_, n)| *n > 1);
        let best = best.max_by_key(|(length, n)| (length * n, std::cmp::Reverse(*length)));
        let alone = Run { first, length: 1, times: 1 };
        let run = best.map_or(alone, |(length, times)| Run { first, length, times });
        first += run.length * run.times;
        match out.last_mut() {
            Some(last) if last.times == 1 && run.times == 1 => last.length += 1,
            _ => out.push(run),
        }
    }
    out
}

fn gap(f: &Facts) -> String {
    let searches: Vec<&Search> = f.fused.reports.iter().flat_map(|r| &r.details.searches).collect();
    let row = |g: &hadal_passes::Gap| {
        vec![
            format!("@{}", g.func),
            seconds(g.greedy),
            searches.iter().find(|s| s.func == g.func).map_or_else(String::new, |s| seconds(s.after)),
            seconds(g.exact),
            percent(g.greedy / g.exact - 1.0),
            if g.proven { "yes".into() } else { format!("no, nothing is below {}", seconds(g.bound)) },
            g.explored.to_string(),
            g.classes.to_string(),
        ]
    };
    let head = ["function", "quick", "then merged", "best found", "gap", "proven", "branches", "classes"];
    table(
        "The pipeline's choice against branch and bound, both before merging, which is a second search",
        1,
        &head,
        &f.gaps.iter().map(row).collect::<Vec<_>>(),
    )
}

fn times(f: &Facts) -> String {
    let mut rows: Vec<Vec<String>> = f
        .fused
        .reports
        .iter()
        .map(|r| vec![r.pass.to_owned(), seconds(r.time.as_secs_f64()), r.before.to_string(), r.after.to_string()])
        .collect();
    let stage = |(name, time): &(&str, std::time::Duration)| {
        vec![format!("{name} (all of it)"), seconds(time.as_secs_f64()), String::new(), String::new()]
    };
    rows.extend(f.times.iter().map(stage));
    table("Passes, in order; then whole stages", 1, &["pass", "time", "ops before", "ops after"], &rows)
}
