//! `specialise`: every entry gets its own copies of the functions it reaches, with the symbols it fixes replaced.
//!
//! ```text
//! entry decode = @main where T = 1        entry decode = @main.decode where T = 1
//! func @main(%x: f32[T, 8])          ->   func @main.decode(%x: f32[1, 8])
//! ```
//!
//! So does each version of an entry, numbered from 1. Entries with equal ranges share their copies, so a layer is there
//! once per distinct binding however many entries or calls reach it. Afterwards no function is shared between bindings,
//! so each can be rewritten for its own.
//!
//! Symbols that states have in their sizes stay, also where they are fixed: a state is one thing for all entries. So do
//! symbols that are defined by those: a number in place of one of them would say nothing of the other.

use hadal_ir::attr::{Attr, Attrs};
use hadal_ir::{Bindings, Definition, Dim, Func, InstKind, Module, Op, Sym};
use std::collections::{BTreeMap, BTreeSet};

/// See the module documentation. Functions that no entry reaches are left out.
pub fn run(module: &Module) -> Module {
    let (symbols, definitions) = (module.symbols.clone(), module.definitions.clone());
    let mut out = Module { symbols, definitions, ..Module::default() };
    let mut made = Made::new();
    let states = module.funcs.iter().flat_map(|f| f.states.iter().map(|s| f.ty(s.value)));
    let mut kept: BTreeSet<Sym> = states.flat_map(|ty| &ty.shape).flat_map(Dim::terms).map(|(s, _)| *s).collect();
    for (sym, definition) in module.definitions.iter() {
        let of = match definition {
            Definition::Quotient { of, .. } => of.clone(),
            Definition::Growth { of } => Dim::from(*of),
        };
        if of.terms().iter().any(|(s, _)| kept.contains(s)) {
            kept.insert(*sym);
        }
    }
    for (i, entry) in module.entries.iter().enumerate() {
        let ranges = module.ranges(entry);
        let key: Key = ranges.iter().map(|(s, r)| (*s, r.min, r.max)).collect();
        let fixed = ranges.iter().filter(|(s, r)| r.min == r.max && !kept.contains(s));
        let fixed: Bindings = fixed.map(|(s, r)| (*s, r.min)).collect();
        let number = module.entries[..=i].iter().filter(|e| e.name == entry.name).count();
        let suffix = match module.versions(&entry.name).count() {
            1 => entry.name.clone(),
            _ => format!("{}.{number}", entry.name),
        };
        let mut copier = Copier { module, out: &mut out, made: &mut made, key, fixed, suffix: &suffix };
        let func = copier.copy(&entry.func);
        out.entries.push(hadal_ir::Entry { func, ..entry.clone() });
    }
    out
}

/// Ranges of all symbols.
pub(crate) type Key = Vec<(Sym, i64, i64)>;

/// The copies made: function and ranges to name.
pub(crate) type Made = BTreeMap<(String, Key), String>;

/// Copies functions of a module into another.
pub(crate) struct Copier<'a> {
    pub module: &'a Module,
    pub out: &'a mut Module,
    pub made: &'a mut Made,
    /// What the copies are for.
    pub key: Key,
    /// Symbols to be replaced.
    pub fixed: Bindings,
    /// What is put behind names.
    pub suffix: &'a str,
}

impl Copier<'_> {
    /// The copy of the function `name`, which is made if there is none yet, and of what it calls.
    pub fn copy(&mut self, name: &str) -> String {
        let key = (name.to_owned(), self.key.clone());
        if let Some(known) = self.made.get(&key) {
            return known.clone();
        }
        let Some(func) = self.module.func(name) else { return name.to_owned() };
        let mut copy = substitute(func, &self.fixed);
        for inst in &mut copy.insts {
            if let InstKind::Call(call) = &mut inst.kind {
                call.func = self.copy(&call.func);
            }
        }
        let taken = |out: &Module, n: &str| out.func(n).is_some();
        let mut fresh = format!("{name}.{}", self.suffix);
        while taken(self.out, &fresh) {
            fresh.push('_');
        }
        copy.name = fresh.clone();
        self.out.funcs.push(copy);
        self.made.insert(key, fresh.clone());
        fresh
    }
}

/// A copy of `func` with the symbols in `bindings` replaced by their values.
pub fn substitute(func: &Func, bindings: &Bindings) -> Func {
    let mut out = func.clone();
    out.values.iter_mut().for_each(|v| v.ty = v.ty.substitute(bindings));
    for inst in &mut out.insts {
        if let InstKind::Op(op) = &mut inst.kind {
            *op = substitute_op(op, bindings);
        }
    }
    out
}

fn substitute_op(op: &Op, bindings: &Bindings) -> Op {
    fn attr(a: Attr, bindings: &Bindings) -> Attr {
        match a {
            Attr::Dim(d) => Attr::Dim(d.substitute(bindings)),
            Attr::List(items) => Attr::List(items.into_iter().map(|a| attr(a, bindings)).collect()),
            other => other,
        }
    }
    let attrs = op.attrs().into_iter().map(|(n, a)| (n.to_owned(), attr(a, bindings))).collect();
    let again = Op::from_text(op.mnemonic(), Attrs(attrs));
    again.and_then(Result::ok).expect("an op's own attributes make it again")
}

#[cfg(test)]
mod tests {
    use super::*;
    use hadal_ir::text::{parse_module, print_module};

    #[test]
    fn one_copy_per_binding() {
        let module = parse_module(
            "symbols P in 0..7, T in 1..8
            func @layer(%x: f32[T, 8]) -> (y: i32[T]) {
              %0 = iota {len = T, start = P} : i32[T]
              return %0 }
            func @main(%x: f32[T, 8]) -> (y: i32[T]) {
              %0 = call @layer(%x) at \"a.\" : i32[T]
              %1 = call @layer(%x) at \"b.\" : i32[T]
              return %1 }
            entry decode = @main where T = 1
            entry prefill = @main where T in 1..8
            entry logits = @layer where T in 1..8",
        )
        .unwrap();
        let out = run(&module);
        hadal_ir::verify::module(&out).unwrap();
        let names: Vec<&str> = out.funcs.iter().map(|f| f.name.as_str()).collect();
        assert_eq!(names, ["layer.decode", "main.decode", "layer.prefill", "main.prefill"]);
        assert!(print_module(&out).contains("%0 = iota {len = 1, start = P} : i32[1]"));
        assert_eq!(out.entry("logits").unwrap().func, "layer.prefill");
    }

    #[test]
    fn sizes_of_states_stay() {
        let module = parse_module(
            "symbols P in 0..7, T in 1..8
            func @layer(%x: f32[T, 8]) -> (y: f32[P+T, 8]) {
              state %s = \"s\" : f32[P, 8]
              %0 = append %s, %x : f32[P+T, 8]
              next %s = %0
              return %0 }
            func @main(%x: f32[T, 8]) -> (y: f32[P+T, 8]) {
              %0 = call @layer(%x) : f32[P+T, 8]
              return %0 }
            entry prefill = @main where P = 3, T = 2
            entry decode = @main where T = 1",
        )
        .unwrap();
        let out = run(&module);
        hadal_ir::verify::module(&out).unwrap();
        let types = |name: &str| {
            let f = out.func(name).unwrap();
            (f.ty(f.states[0].value).to_string(), f.ty(f.states[0].next).to_string())
        };
        assert_eq!(types("layer.prefill"), ("f32[P, 8]".into(), "f32[P+2, 8]".into()));
        assert_eq!(types("layer.decode"), ("f32[P, 8]".into(), "f32[P+1, 8]".into()));
    }

    #[test]
    fn versions_are_numbered() {
        let module = parse_module(
            "symbols P in 0..7, T in 1..8
            func @main(%x: f32[T, 8]) -> (y: f32[T, 8]) { return %x }
            entry prefill = @main where T = 1
            entry prefill = @main where T in 2..8
            entry decode = @main where T = 1",
        )
        .unwrap();
        let out = run(&module);
        hadal_ir::verify::module(&out).unwrap();
        let funcs: Vec<&str> = out.entries.iter().map(|e| e.func.as_str()).collect();
        assert_eq!(funcs, ["main.prefill.1", "main.prefill.2", "main.prefill.1"]);
        assert_eq!(parse_module(&print_module(&out)).unwrap(), out);
    }

    #[test]
    fn what_is_defined_by_the_size_of_a_state_stays_with_it() {
        let module = parse_module(
            "symbols P in 0..7, T in 1..8, K4 = (P+T+3) / 4
            func @main(%x: f32[T, 8]) -> (y: f32[4*K4, 8]) {
              state %s = \"s\" : f32[P, 8]
              %0 = append %s, %x : f32[P+T, 8]
              %1 = constant {value = 0.0, dtype = f32} : f32[]
              %2 = broadcast %1 {shape = [4*K4-P-T, 8], dims = []} : f32[4*K4-P-T, 8]
              %3 = concat %0, %2 {axis = 0} : f32[4*K4, 8]
              next %s = %0
              return %3 }
            entry point = @main where P = 3, T = 1",
        )
        .unwrap();
        let out = run(&module);
        hadal_ir::verify::module(&out).unwrap();
        assert!(print_module(&out).contains("f32[4*K4-P-1, 8]"), "{}", print_module(&out));
    }
}
