//! Results of calls that nobody wants.
//!
//! ```text
//! %y, %c = call @layer(%x)          %y = call @layer.less(%x)
//! return %y                    ->   return %y
//! ```
//!
//! The call becomes one of a copy of the function without them, and so on downwards. What a layer keeps in its states
//! it still keeps: of a call for that alone nothing else is left, and a call that is for nothing is none. Exact.

use crate::edit::without_dead_code;
use hadal_ir::{Call, Func, FuncKind, InstKind, Module};
use std::collections::{BTreeMap, BTreeSet};

/// See the module documentation.
pub(super) fn run(module: &Module) -> Module {
    let funcs: BTreeMap<&str, &Func> = module.funcs.iter().map(|f| (f.name.as_str(), f)).collect();
    let called: BTreeSet<&str> = module.funcs.iter().flat_map(super::callees).collect();
    let entries: BTreeSet<&str> = module.entries.iter().map(|e| e.func.as_str()).collect();
    let names = funcs.keys().map(|n| (*n).to_owned()).collect();
    let out = Module { funcs: Vec::new(), ..module.clone() };
    let mut pass = Unwanted { funcs, out, made: BTreeMap::new(), names };
    for func in &module.funcs {
        if entries.contains(func.name.as_str()) || !called.contains(func.name.as_str()) {
            pass.copy(&func.name, vec![true; func.results.len()]);
        }
    }
    // Without such results everything stays in its order.
    if pass.names.len() == module.funcs.len() { module.clone() } else { pass.out }
}

struct Unwanted<'a> {
    funcs: BTreeMap<&'a str, &'a Func>,
    out: Module,
    /// Copies, by function and which of its results they have; of what is for nothing there is none.
    made: BTreeMap<(String, Vec<bool>), Option<String>>,
    /// Names that are taken.
    names: BTreeSet<String>,
}

impl Unwanted<'_> {
    /// The name of the copy of a function that has the results that are wanted, if it does anything.
    fn copy(&mut self, name: &str, wanted: Vec<bool>) -> Option<String> {
        let key = (name.to_owned(), wanted);
        if let Some(known) = self.made.get(&key) {
            return known.clone();
        }
        let Some(func) = self.funcs.get(name) else { return Some(name.to_owned()) };
        let mut new = (*func).clone();
        if new.kind == FuncKind::Graph {
            let mut wanted = key.1.iter();
            new.results.retain(|_| wanted.next().is_none_or(|w| *w));
            new = self.calls(without_dead_code(&new));
        }
        if key.1.contains(&false) {
            new.name = format!("{name}.less");
            while !self.names.insert(new.name.clone()) {
                new.name.push('_');
            }
        }
        let idle = key.1.contains(&false) && new.results.is_empty() && new.states.is_empty() && new.insts.is_empty();
        let fresh = (!idle).then(|| new.name.clone());
        self.made.insert(key, fresh.clone());
        if !idle {
            self.out.funcs.push(new);
        }
        fresh
    }

    /// A function whose calls are of such copies.
    fn calls(&mut self, mut func: Func) -> Func {
        let uses = func.use_counts();
        func.insts.retain_mut(|inst| {
            let InstKind::Call(call) = &inst.kind else { return true };
            if self.funcs.get(call.func.as_str()).is_none_or(|f| f.kind != FuncKind::Graph) {
                return true;
            }
            let wanted: Vec<bool> = inst.results.iter().map(|r| uses[r.index()] > 0).collect();
            let Some(func) = self.copy(&call.func, wanted) else { return false };
            inst.results.retain(|r| uses[r.index()] > 0);
            inst.kind = InstKind::Call(Call { func, prefix: call.prefix.clone() });
            true
        });
        // Arguments that only such calls had.
        without_dead_code(&func)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hadal_ir::text::{parse_module, print_module};

    #[test]
    fn only_what_is_kept_is_computed() {
        let module = parse_module(
            "symbols P in 0..7, T in 1..8
            func @plain(%x: f32[T, 8]) -> (y: f32[T, 8]) {
              %0 = exp %x : f32[T, 8]
              return %0 }
            func @layer(%x: f32[T, 8]) -> (y: f32[T, 8], z: f32[T, 8]) {
              state %s = \"s\" : f32[P, 8]
              %0 = append %s, %x : f32[P+T, 8]
              next %s = %0
              %1 = sin %x : f32[T, 8]
              %2 = cos %x : f32[T, 8]
              %3 = call @plain(%2) : f32[T, 8]
              return %1, %3 }
            func @fill(%x: f32[T, 8]) -> () {
              %0, %1 = call @layer(%x) at \"a.\" : f32[T, 8], f32[T, 8]
              return }
            func @main(%x: f32[T, 8]) -> (y: f32[T, 8]) {
              %0, %1 = call @layer(%x) at \"a.\" : f32[T, 8], f32[T, 8]
              return %0 }
            entry fill = @fill
            entry main = @main",
        );
        let module = module.unwrap_or_else(|e| panic!("{e}"));
        let out = run(&module);
        hadal_ir::verify::module(&out).unwrap();
        let text = print_module(&out);
        assert!(!text.contains("cos") && !text.contains("@plain"), "{text}");
        assert_eq!(text.matches("sin").count(), 1, "{text}");
        assert_eq!(text.matches("append").count(), 2, "{text}");
        assert_eq!(run(&out), out, "nothing is left to be done");
    }
}
