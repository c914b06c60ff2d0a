//! Printing.

use crate::module::*;
use hadal_types::Sym;
use std::collections::{BTreeMap, HashSet};
use std::fmt::Write;

/// The text of a module.
pub fn print_module(module: &Module) -> String {
    let mut out = String::new();
    if !module.symbols.is_empty() {
        let mut free = module.symbols.clone();
        free.retain(|s, _| !module.definitions.has(*s));
        let defined = module.definitions.iter().map(|(s, d)| format!("{s} = {d}"));
        let all: Vec<String> = (!free.is_empty()).then(|| ranges(&free)).into_iter().chain(defined).collect();
        let _ = writeln!(out, "symbols {}", all.join(", "));
    }
    for f in &module.funcs {
        out += &print_func(f);
    }
    for e in &module.entries {
        let _ = write!(out, "entry {} = @{}", e.name, e.func);
        if !e.ranges.is_empty() {
            let _ = write!(out, " where {}", ranges(&e.ranges));
        }
        out.push('\n');
    }
    out
}

fn ranges(ranges: &BTreeMap<Sym, Range>) -> String {
    let one = |(s, r): (&Sym, &Range)| match r.min == r.max {
        true => format!("{s} = {}", r.min),
        false => format!("{s} in {r}"),
    };
    ranges.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// The text of a function.
pub fn print_func(func: &Func) -> String {
    let names = value_names(func);
    let name = |v: ValueId| names[v.index()].as_str();
    let typed = |v: ValueId| format!("{}: {}", name(v), func.ty(v));
    let list = |items: Vec<String>| items.join(", ");
    let mut out = String::new();
    let params = list(func.params.iter().map(|p| typed(*p)).collect());
    let results = list(func.results.iter().map(|(n, v)| format!("{n}: {}", func.ty(*v))).collect());
    let _ = writeln!(out, "{} @{}({params}) -> ({results}) {{", func.kind.keyword(), func.name);
    for w in &func.weights {
        let _ = writeln!(out, "  weight {} = {:?} : {}", name(w.value), w.name, func.ty(w.value));
    }
    for s in &func.states {
        let _ = writeln!(out, "  state {} = {:?} : {}", name(s.value), s.name, func.ty(s.value));
    }
    for inst in &func.insts {
        let results = list(inst.results.iter().map(|r| name(*r).to_owned()).collect());
        let args = list(inst.args.iter().map(|a| name(*a).to_owned()).collect());
        let types = list(inst.results.iter().map(|r| func.ty(*r).to_string()).collect());
        match &inst.kind {
            InstKind::Op(op) => {
                let _ = write!(out, "  {results} = {}", op.mnemonic());
                if !args.is_empty() {
                    let _ = write!(out, " {args}");
                }
                let attrs = op.attrs();
                if !attrs.is_empty() {
                    let attrs = list(attrs.iter().map(|(n, a)| format!("{n} = {a}")).collect());
                    let _ = write!(out, " {{{attrs}}}");
                }
            }
            InstKind::Call(call) => {
                let equals = if results.is_empty() { String::new() } else { format!("{results} = ") };
                let _ = write!(out, "  {equals}call @{}({args})", call.func);
                if !call.prefix.is_empty() {
                    let _ = write!(out, " at {:?}", call.prefix);
                }
            }
        }
        if !types.is_empty() {
            let _ = write!(out, " : {types}");
        }
        if !inst.origin.is_empty() {
            let _ = write!(out, " from {}", list(inst.origin.iter().map(|o| format!("{o:?}")).collect()));
        }
        if !inst.laws.is_empty() {
            let _ = write!(out, " by {}", list(inst.laws.iter().map(|l| format!("{l:?}")).collect()));
        }
        out.push('\n');
    }
    for s in func.states.iter().filter(|s| s.next != s.value) {
        let _ = writeln!(out, "  next {} = {}", name(s.value), name(s.next));
    }
    let results = list(func.results.iter().map(|(_, v)| name(*v).to_owned()).collect());
    let _ = writeln!(out, "  return{}{results}\n}}", if results.is_empty() { "" } else { " " });
    out
}

/// Whether `name` reads back as a value's own name.
fn is_word(name: &str) -> bool {
    let mut chars = name.chars();
    let first = chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    first && chars.all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.')
}

/// A name for every value: its own where that is free, else a number in order of definition.
fn value_names(func: &Func) -> Vec<String> {
    let mut names = vec![String::new(); func.values.len()];
    let mut taken: HashSet<&str> = HashSet::new();
    let mut next = 0;
    let inputs = func.params.iter().copied();
    let inputs = inputs.chain(func.weights.iter().map(|w| w.value)).chain(func.states.iter().map(|s| s.value));
    for v in inputs.chain(func.insts.iter().flat_map(|i| i.results.iter().copied())) {
        let own = func.values[v.index()].name.as_deref().filter(|n| is_word(n) && taken.insert(n));
        names[v.index()] = match own {
            Some(n) => format!("%{n}"),
            None => {
                next += 1;
                format!("%{}", next - 1)
            }
        };
    }
    names
}
