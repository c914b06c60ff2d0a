//! A function of the graph IR as a drawing: ops as boxes, inputs and states as rounded ones, weights inside the box
//! that reads them.

use super::layout::{Drawing, Size, layers};
use super::svg::{at, escape, width_of};
use hadal_ir::module::FuncKind;
use hadal_ir::{Func, Inst, InstKind, Module, Op, ValueId};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// A box.
struct Node {
    class: &'static str,
    lines: Vec<String>,
    tip: String,
}

/// Boxes and arrows, sources before targets.
#[derive(Default)]
struct Picture {
    nodes: Vec<Node>,
    edges: Vec<(usize, usize)>,
}

/// A function as an `<svg>` element.
pub fn svg(module: &Module, func: &Func) -> String {
    Picture::of(module, func).svg(&func.name)
}

/// Longest line in a box.
const LINE: usize = 30;

fn short(text: &str) -> String {
    match text.char_indices().nth(LINE - 1) {
        Some((i, _)) => text[..i].to_owned() + "…",
        None => text.to_owned(),
    }
}

/// Like [`short`], but the end is what tells names apart.
fn short_name(text: &str) -> String {
    let n = text.chars().count();
    if n <= LINE { text.to_owned() } else { "…".to_owned() + &text.chars().skip(n + 1 - LINE).collect::<String>() }
}

impl Picture {
    fn of(module: &Module, func: &Func) -> Picture {
        let mut this = Picture::default();
        // Box of each value.
        let mut home: BTreeMap<ValueId, usize> = BTreeMap::new();
        let name = |v: ValueId| func.values[v.index()].name.clone().unwrap_or_else(|| format!("{}", v.0));
        for p in &func.params {
            let lines = vec![short(&name(*p)), short(&func.ty(*p).to_string())];
            home.insert(*p, this.add("input", lines, format!("input %{} : {}", name(*p), func.ty(*p))));
        }
        for s in &func.states {
            let lines = vec![short_name(&s.name), short(&func.ty(s.value).to_string())];
            home.insert(s.value, this.add("state", lines, format!("state {} : {}", s.name, func.ty(s.value))));
        }
        let weights: BTreeMap<ValueId, &str> = func.weights.iter().map(|w| (w.value, w.name.as_str())).collect();
        let made = made_of_weights(func);
        let mut i = 0;
        while i < func.insts.len() {
            let run = same_calls(func, i);
            let (first, last) = (&func.insts[i], &func.insts[i + run - 1]);
            i += run;
            // What follows from weights alone is part of the weight.
            if first.results.iter().all(|r| made[r.index()].is_some()) && matches!(first.kind, InstKind::Op(_)) {
                continue;
            }
            let node = this.inst(module, func, first, run, &|v| {
                weights.get(&v).map(|w| vec![*w]).or_else(|| made[v.index()].clone())
            });
            for from in first.args.iter().filter_map(|a| home.get(a)) {
                if !this.edges.contains(&(*from, node)) {
                    this.edges.push((*from, node));
                }
            }
            for r in first.results.iter().chain(&last.results) {
                home.insert(*r, node);
            }
        }
        let mut results: Vec<(String, ValueId)> = func.results.clone();
        results.extend(func.states.iter().filter(|s| s.next != s.value).map(|s| (format!("next {}", s.name), s.next)));
        for (name, v) in results {
            let node = this.add("output", vec![short_name(&name)], format!("result {name} : {}", func.ty(v)));
            if let Some(from) = home.get(&v) {
                this.edges.push((*from, node));
            }
        }
        this
    }

    fn add(&mut self, class: &'static str, lines: Vec<String>, tip: String) -> usize {
        self.nodes.push(Node { class, lines, tip });
        self.nodes.len() - 1
    }

    fn inst<'f>(
        &mut self,
        module: &Module,
        func: &Func,
        inst: &Inst,
        run: usize,
        weights: &dyn Fn(ValueId) -> Option<Vec<&'f str>>,
    ) -> usize {
        let mut read: Vec<&str> = inst.args.iter().filter_map(|a| weights(*a)).flatten().collect();
        read.dedup();
        let types: Vec<String> = inst.results.iter().map(|r| func.ty(*r).to_string()).collect();
        let mut tip = String::new();
        let (class, title) = match &inst.kind {
            InstKind::Op(op) => {
                let attrs: Vec<String> = op.attrs().iter().map(|(n, a)| format!("{n} = {a}")).collect();
                _ = write!(tip, "{} {{{}}}", op.mnemonic(), attrs.join(", "));
                (class(op), headline(op))
            }
            InstKind::Call(call) => {
                let callee = module.func(&call.func);
                let kernel = callee.is_some_and(|f| f.kind == FuncKind::Kernel);
                _ = write!(tip, "@{} at {:?}", call.func, call.prefix);
                if let Some(f) = callee.filter(|_| kernel) {
                    let ops = f.insts.iter().filter_map(|i| match &i.kind {
                        InstKind::Op(op) => Some(op.mnemonic()),
                        InstKind::Call(_) => None,
                    });
                    let ops: Vec<&str> = ops.collect();
                    _ = write!(tip, "\n{}", ops.join(" → "));
                }
                let times = if run > 1 { format!(" ×{run}") } else { String::new() };
                (if kernel { "kernel" } else { "call" }, format!("@{}{times}", call.func))
            }
        };
        _ = write!(tip, "\n: {}", types.join(", "));
        let mut lines = vec![short(&title), short(&types.join(", "))];
        if let Some(first) = read.first() {
            let more = if read.len() > 1 { format!(" +{}", read.len() - 1) } else { String::new() };
            lines.push(short_name(first.trim_end_matches(".weight")) + &more);
            _ = write!(tip, "\nreads {}", read.join(", "));
        }
        if !inst.origin.is_empty() {
            _ = write!(tip, "\nfrom {}", inst.origin.join(", "));
        }
        if !inst.laws.is_empty() {
            _ = write!(tip, "\nby {}", inst.laws.join(", "));
        }
        let class = match (inst.laws.is_empty(), class) {
            (false, "product") => "product lawful",
            (false, "rows") => "rows lawful",
            (false, "map") => "map lawful",
            (false, "view") => "view lawful",
            (_, class) => class,
        };
        self.add(class, lines, tip)
    }

    fn svg(&self, name: &str) -> String {
        const LINE_HEIGHT: f64 = 14.0;
        let size = |n: &Node| Size {
            width: n.lines.iter().map(|l| width_of(l)).fold(30.0, f64::max) + 16.0,
            height: n.lines.len() as f64 * LINE_HEIGHT + 8.0,
        };
        let sizes: Vec<Size> = self.nodes.iter().map(size).collect();
        let Drawing { nodes, edges, width, height } = layers(&sizes, &self.edges);
        let mut out = format!(
            "<svg class=\"graph\" viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"graph of {}, {} boxes\">\n<path class=\"e\" d=\"",
            at(width),
            at(height),
            escape(name),
            self.nodes.len()
        );
        edges.iter().for_each(|e| curve(&mut out, e));
        out += "\"/>\n";
        for ((node, size), (x, y)) in self.nodes.iter().zip(&sizes).zip(nodes) {
            let (left, top) = (x - size.width / 2.0, y - size.height / 2.0);
            _ = write!(out, "<g class=\"{}\"><title>{}</title>", node.class, escape(&node.tip));
            let round = if matches!(node.class, "input" | "state" | "output") { size.height / 2.0 } else { 4.0 };
            _ = write!(
                out,
                "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" rx=\"{}\"/>",
                at(left),
                at(top),
                at(size.width),
                at(size.height),
                at(round)
            );
            for (i, line) in node.lines.iter().enumerate() {
                let (weight, base) = (if i == 0 { " class=\"b\"" } else { "" }, top + 15.0 + LINE_HEIGHT * i as f64);
                _ = write!(out, "<text{weight} x=\"{}\" y=\"{}\">{}</text>", at(x), at(base), escape(line));
            }
            out += "</g>\n";
        }
        out + "</svg>\n"
    }
}

/// A line that leaves and arrives upright.
fn curve(out: &mut String, points: &[(f64, f64)]) {
    for pair in points.windows(2) {
        let ((ax, ay), (bx, by)) = (pair[0], pair[1]);
        if (ax - bx).abs() < 0.5 {
            _ = write!(out, "M{} {}V{}", at(ax), at(ay), at(by));
        } else {
            let mid = at((ay + by) / 2.0);
            _ = write!(out, "M{} {}C{} {mid} {} {mid} {} {}", at(ax), at(ay), at(ax), at(bx), at(bx), at(by));
        }
    }
}

/// How many calls from `start` on are of one function, each of what the one before it gave.
fn same_calls(func: &Func, start: usize) -> usize {
    let InstKind::Call(first) = &func.insts[start].kind else { return 1 };
    let follows = |i: &usize| {
        let (before, this) = (&func.insts[i - 1], &func.insts[*i]);
        matches!(&this.kind, InstKind::Call(c) if c.func == first.func)
            && this.args.first().is_some_and(|a| before.results.contains(a))
    };
    1 + (start + 1..func.insts.len()).take_while(follows).count()
}

/// By value: the weights that it is made of and nothing else.
fn made_of_weights(func: &Func) -> Vec<Option<Vec<&str>>> {
    let mut made: Vec<Option<Vec<&str>>> = vec![None; func.values.len()];
    for w in &func.weights {
        made[w.value.index()] = Some(vec![&w.name]);
    }
    for inst in func.insts.iter().filter(|i| matches!(i.kind, InstKind::Op(_))) {
        let parts: Option<Vec<_>> = inst.args.iter().map(|a| made[a.index()].clone()).collect();
        made[inst.results[0].index()] = parts.map(|p| p.concat());
    }
    made
}

fn headline(op: &Op) -> String {
    match op {
        Op::Contract(c) => format!("contract {}→{}", c.inputs.join(","), c.output),
        op => op.mnemonic().to_owned(),
    }
}

/// What kind of work it is, for colours.
fn class(op: &Op) -> &'static str {
    match op {
        Op::Contract(_) | Op::Attention(_) => "product",
        Op::Map(_) | Op::Cast(_) | Op::CausalMask(_) => "map",
        op if op.is_view() => "view",
        _ => "rows",
    }
}

/// Names of the classes, for a legend.
pub const LEGEND: [(&str, &str); 7] = [
    ("product", "products"),
    ("rows", "over rows: norms, softmax, choices"),
    ("map", "elementwise"),
    ("view", "views"),
    ("kernel", "kernels"),
    ("state", "states"),
    ("map lawful", "thick border: made by a law"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use hadal_ir::text::parse_module;

    #[test]
    fn weights_stand_in_the_box_that_reads_them_and_runs_of_calls_are_one() {
        let module = parse_module(
            "symbols T in 1..8
            func @layer(%x: f32[T, 8]) -> (y: f32[T, 8]) {
              weight %w = \"proj.weight\" : f32[8, 8]
              %0 = transpose %w {perm = [1, 0]} : f32[8, 8]
              %1 = contract %x, %0 {spec = \"td,fd->tf\"} : f32[T, 8]
              return %1 }
            func @main(%x: f32[T, 8]) -> (y: f32[T, 8]) {
              %0 = call @layer(%x) at \"a.\" : f32[T, 8]
              %1 = call @layer(%0) at \"b.\" : f32[T, 8]
              return %1 }
            entry e = @main where T in 1..8",
        )
        .unwrap();
        let layer = Picture::of(&module, module.func("layer").unwrap());
        let names: Vec<&str> = layer.nodes.iter().map(|n| n.lines[0].as_str()).collect();
        assert_eq!(names, ["x", "contract td,fd→tf", "y"]);
        assert_eq!(layer.nodes[1].lines[2], "proj");
        assert_eq!(layer.edges, [(0, 1), (1, 2)]);
        let main = Picture::of(&module, module.func("main").unwrap());
        assert_eq!(main.nodes[1].lines[0], "@layer ×2");
        assert!(main.svg("main").contains("aria-label=\"graph of main, 3 boxes\""));
    }

    #[test]
    fn long_names_keep_their_end() {
        let name = short_name("model.layers.0.self_attn.kv_a_proj_with_mqa");
        assert!(
            name.starts_with('…') && name.ends_with("kv_a_proj_with_mqa") && name.chars().count() == LINE,
            "{name}"
        );
        assert_eq!(short(&"x".repeat(40)).chars().count(), LINE);
    }
}
