//! Which inputs of functions always hold what `top_k` chose.
//!
//! ```text
//! func @choose(…) -> (s: i32[T, 8]) { %s = top_k … }
//! func @read(…, %s: i32[T, 8]) …                            no number that is not negative stands twice in a row of %s
//! %1 = call @choose(…);   %2 = call @read(…, %1)
//! ```
//!
//! Laws look at one function, and a layer that reads rows by number need not be the one that chose them. An input is
//! known if every call gives it a choice: what `top_k` makes, a part of that, an input that is known, or a result that
//! is one of these. Inputs of entries are whatever a user gives.
//!
//! It is a fact about values, so what is rewritten because of it stays right however its producer is rewritten later.

use hadal_ir::{Func, InstKind, Module, Op};
use std::collections::{BTreeMap, BTreeSet};

/// By function, the places of such inputs.
pub(crate) fn params(module: &Module) -> BTreeMap<&str, BTreeSet<usize>> {
    let entries: BTreeSet<&str> = module.entries.iter().map(|e| e.func.as_str()).collect();
    // All of which nothing else is known; then those are taken out, again and again, that a call gives something else.
    let mut known: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
    for call in module.funcs.iter().flat_map(|f| &f.insts) {
        if let InstKind::Call(c) = &call.kind
            && !entries.contains(c.func.as_str())
            && let Some(callee) = module.func(&c.func)
        {
            let whole = (0..callee.params.len()).filter(|p| callee.ty(callee.params[*p]).dtype.is_int());
            known.insert(&callee.name, whole.collect());
        }
    }
    loop {
        let before: usize = known.values().map(BTreeSet::len).sum();
        let mut results: BTreeMap<&str, Vec<bool>> = BTreeMap::new();
        for func in &module.funcs {
            let chosen = values(func, known.get(func.name.as_str()), &results);
            results.insert(&func.name, func.results.iter().map(|(_, v)| chosen[v.index()]).collect());
            for inst in &func.insts {
                if let InstKind::Call(c) = &inst.kind
                    && let Some(params) = known.get_mut(c.func.as_str())
                {
                    params.retain(|p| inst.args.get(*p).is_some_and(|a| chosen[a.index()]));
                }
            }
        }
        if known.values().map(BTreeSet::len).sum::<usize>() == before {
            return known;
        }
    }
}

/// By value of a function, whether it is a choice, if these inputs are and these results of functions before it.
fn values(func: &Func, params: Option<&BTreeSet<usize>>, results: &BTreeMap<&str, Vec<bool>>) -> Vec<bool> {
    let mut chosen = vec![false; func.values.len()];
    for p in params.into_iter().flatten() {
        chosen[func.params[*p].index()] = true;
    }
    for inst in &func.insts {
        match &inst.kind {
            InstKind::Op(op) => {
                let part = matches!(op, Op::Slice(_)) && chosen[inst.args[0].index()];
                chosen[inst.results[0].index()] = part || matches!(op, Op::TopK(_));
            }
            InstKind::Call(c) => {
                for (r, known) in inst.results.iter().zip(results.get(c.func.as_str()).into_iter().flatten()) {
                    chosen[r.index()] = *known;
                }
            }
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use hadal_ir::text::parse_module;

    fn known(main: &str) -> Vec<(String, Vec<usize>)> {
        let module = parse_module(&format!(
            "symbols P in 0..7, T in 1..8
            func @choose(%x: f32[T, 9]) -> (s: i32[T, 2], n: i32[T, 2]) {{
              %0 = top_k %x {{k = 2}} : i32[T, 2]
              %1 = add %0, %0 : i32[T, 2]
              return %0, %1 }}
            func @on(%y: f32[T, 9], %s: i32[T, 2]) -> (s: i32[T, 2]) {{ return %s }}
            func @one(%s: i32[1, 2]) -> (s: i32[1, 2]) {{ return %s }}
            func @alone(%s: i32[T, 2]) -> (s: i32[T, 2]) {{ return %s }}
            func @main(%x: f32[T, 9], %u: i32[T, 2]) -> (y: i32[T, 2]) {{
              %s, %n = call @choose(%x) : i32[T, 2], i32[T, 2]
              {main} }}
            entry main = @main"
        ));
        let module = module.unwrap_or_else(|e| panic!("{e}"));
        hadal_ir::verify::module(&module).unwrap();
        let all = params(&module).into_iter().map(|(f, p)| (f.to_owned(), p.into_iter().collect()));
        all.filter(|(_, p): &(String, Vec<usize>)| !p.is_empty()).collect()
    }

    #[test]
    fn choices_are_followed_through_calls() {
        let both = [("on".to_owned(), vec![1]), ("one".to_owned(), vec![0])];
        let through = "%1 = call @on(%x, %s) at \"a.\" : i32[T, 2]
            %2 = call @on(%x, %1) at \"b.\" : i32[T, 2]
            %3 = slice %2 {axis = 0, start = T-1, len = 1} : i32[1, 2]
            %4 = call @one(%3) : i32[1, 2]
            return %2";
        assert_eq!(known(through), both);
        // One call that gives something else is enough, directly or by what a function passes on.
        for other in ["n", "u"] {
            let also = format!(
                "%1 = call @on(%x, %s) at \"a.\" : i32[T, 2]
                %2 = call @on(%x, %{other}) at \"b.\" : i32[T, 2]
                %3 = slice %1 {{axis = 0, start = T-1, len = 1}} : i32[1, 2]
                %4 = call @one(%3) : i32[1, 2]
                return %2"
            );
            assert_eq!(known(&also), [], "{other}");
        }
    }

    #[test]
    fn a_user_may_give_anything() {
        let module = parse_module(
            "symbols P in 0..7, T in 1..8
            func @read(%s: i32[T, 2]) -> (s: i32[T, 2]) { return %s }
            func @main(%x: f32[T, 9]) -> (y: i32[T, 2]) {
              %0 = top_k %x {k = 2} : i32[T, 2]
              %1 = call @read(%0) : i32[T, 2]
              return %1 }
            entry main = @main
            entry read = @read",
        );
        assert!(params(&module.unwrap()).is_empty());
    }
}
