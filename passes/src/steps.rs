//! `steps`: entries for steps get a version for one new token, and one for two.
//!
//! ```text
//! entry decode = @main.decode where T in 1..8   ->   entry decode = @main.decode.one where T = 1
//!                                                    entry decode = @main.decode.two where T = 2
//!                                                    entry decode = @main.decode where T in 3..8
//! ```
//!
//! Most steps have one token, or one and a guess, for which kernels are simpler: there is no number of tokens to ask
//! for. What is left keeps the number as a symbol, for which the sizes of inputs and results stand. It comes after the
//! choice of forms, so that all versions have the same one: with kernels whose order of summation does not depend on
//! `T`, a token has the same bits alone and among drafts. For that reason nothing but canonical laws may follow.
//! Functions that no entry reaches afterwards are left out. Exact.

use crate::specialise::{Copier, Key, Made};
use hadal_ir::{Bindings, Entry, Module, Range, Sym};
use std::collections::BTreeSet;

/// See the module documentation.
pub fn run(module: &Module) -> Module {
    let mut out = Module { entries: Vec::new(), ..module.clone() };
    let mut made = Made::new();
    for entry in &module.entries {
        let ranges = module.ranges(entry);
        let several = |t: &&Range| t.min == 1 && t.max > 1 && module.is_step(entry);
        let Some(tokens) = ranges.get(&Sym::T).filter(several) else {
            out.entries.push(entry.clone());
            continue;
        };
        let with = |range: Range, func: String| {
            let mut ranges = entry.ranges.clone();
            ranges.insert(Sym::T, range);
            Entry { name: entry.name.clone(), func, ranges }
        };
        let mut next = 1;
        for suffix in ["one", "two"].into_iter().take(tokens.max as usize - 1) {
            let range = Range { min: next, max: next };
            let key: Key = module.ranges(&with(range, String::new())).iter().map(|(s, r)| (*s, r.min, r.max)).collect();
            let fixed = Bindings::from([(Sym::T, next)]);
            let func = Copier { module, out: &mut out, made: &mut made, key, fixed, suffix }.copy(&entry.func);
            out.entries.push(with(range, func));
            next += 1;
        }
        out.entries.push(with(Range { min: next, max: tokens.max }, entry.func.clone()));
    }
    let reached: BTreeSet<String> = out.reached(&out.entries).into_iter().map(str::to_owned).collect();
    out.funcs.retain(|f| reached.contains(&f.name));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use hadal_ir::text::{parse_module, print_module};

    #[test]
    fn one_token_and_two_are_versions_of_their_own() {
        let module = parse_module(
            "symbols P in 0..7, T in 1..64
            func @layer(%x: f32[T, 8]) -> (y: f32[T, 8]) { return %x }
            func @main(%x: f32[T, 8]) -> (y: f32[T, 8]) {
              %0 = call @layer(%x) at \"a.\" : f32[T, 8]
              return %0 }
            entry prefill = @main
            entry decode = @main where T in 1..4, P in 0..3
            entry decode = @main where T in 1..4, P in 4..7
            entry draft = @main where T = 1",
        )
        .unwrap();
        let out = run(&module);
        hadal_ir::verify::module(&out).unwrap();
        let text = print_module(&out);
        assert!(text.contains("func @main.one(%x: f32[1, 8]) -> (y: f32[1, 8])"), "{text}");
        assert!(text.contains("func @main.two(%x: f32[2, 8]) -> (y: f32[2, 8])"), "{text}");
        let found: Vec<(&str, &str, i64)> =
            out.entries.iter().map(|e| (e.name.as_str(), e.func.as_str(), out.ranges(e)[&Sym::T].max)).collect();
        let decode = |func, most| ("decode", func, most);
        let expected = [
            ("prefill", "main", 64),
            decode("main.one", 1),
            decode("main.two", 2),
            decode("main", 4),
            decode("main.one_", 1),
            decode("main.two_", 2),
            decode("main", 4),
            ("draft", "main", 1),
        ];
        assert_eq!(found, expected);
        assert_eq!(run(&out), out, "nothing is left to be done");
    }

    #[test]
    fn what_is_left_keeps_the_symbol() {
        let module = parse_module(
            "symbols P in 0..7, T in 1..2
            func @unused(%x: f32[T, 8]) -> (y: f32[T, 8]) { return %x }
            func @layer(%x: f32[T, 8]) -> (y: f32[T, 8]) { return %x }
            func @main(%x: f32[T, 8]) -> (y: f32[T, 8]) {
              %0 = call @layer(%x) at \"a.\" : f32[T, 8]
              return %0 }
            entry decode = @main",
        )
        .unwrap();
        let out = run(&module);
        let names: Vec<&str> = out.funcs.iter().map(|f| f.name.as_str()).collect();
        assert_eq!(names, ["layer", "main", "layer.one", "main.one"]);
        let text = print_module(&out);
        assert!(
            text.contains("func @main(%x: f32[T, 8])") && text.contains("entry decode = @main where T = 2"),
            "{text}"
        );
    }
}
