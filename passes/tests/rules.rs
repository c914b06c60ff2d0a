//! Every law, on its example with random sizes: it fires, and both sides are equal.

use crate::common::*;
use hadal_ir::Op;
use hadal_passes::rule::{NumericClass, Rule, Term};
use hadal_passes::{canonicalise, rules};
use std::collections::BTreeSet;

fn hold(rule: &Rule) -> usize {
    let module = law::example(rule);
    let func = &module.funcs[0];
    let firings = law::firings(rule, func);
    for (value, term) in &firings {
        if let Err(reason) = law::check(rule, func, *value, term) {
            panic!("`{}`: {reason}", rule.name);
        }
    }
    firings.len()
}

#[test]
fn every_law_holds_and_fires_on_its_example() {
    for rule in rules::all() {
        assert!(hold(rule) > 0, "`{}` does not fire on its example", rule.name);
    }
}

/// In 64-bit integers nothing is rounded, so exact or not, both sides are the same.
#[test]
fn laws_hold_in_integers_where_their_ops_do() {
    let mut held = 0;
    for rule in rules::all() {
        let Some(module) = law::in_integers(rule) else { continue };
        let exact = Rule { class: NumericClass::Exact, ..*rule };
        for (value, term) in law::firings(rule, &module.funcs[0]) {
            if let Err(reason) = law::check(&exact, &module.funcs[0], value, &term) {
                panic!("`{}`: {reason}", rule.name);
            }
            held += 1;
        }
    }
    println!("{held} firings hold in integers");
    assert!(held > 20, "only {held}");
}

#[test]
fn names_are_unique_and_kebab_case() {
    let mut names = BTreeSet::new();
    for rule in rules::all() {
        assert!(names.insert(rule.name), "{}", rule.name);
        assert!(rule.name.chars().all(|c| c.is_ascii_lowercase() || c == '-'), "{}", rule.name);
        assert!(!rule.law.is_empty());
    }
}

#[test]
fn a_wrong_law_would_be_noticed() {
    let wrong = Rule {
        name: "wrong",
        law: "transpose(x) = reshape(x)",
        class: NumericClass::Exact,
        example: "func @f(%x: f32[A, A]) -> (y: f32[A, A]) {
            %0 = transpose %x {perm = [1, 0]} : f32[A, A]
            return %0 }",
        apply: |_, op, args| match op {
            Op::Transpose(_) => vec![Term::Old(args[0])],
            _ => vec![],
        },
    };
    assert!(std::panic::catch_unwind(|| hold(&wrong)).is_err());
}

#[test]
fn the_book_lists_every_pass_and_law() {
    let page = include_str!("../../docs/src/passes.md");
    let names = rules::all().map(|r| r.name).chain(hadal_passes::PASSES.iter().map(|p| p.name));
    for name in names {
        assert!(page.contains(&format!("`{name}`")), "docs/src/passes.md does not mention `{name}`");
    }
}

/// Joining two slices may show that they never fitted; the graph then stays as it was written.
#[test]
fn slices_that_cannot_be_joined_stay() {
    let module = parse(
        "symbols P in 0..9, T in 1..9
         func @f(%x: f32[4]) -> (y: f32[1]) {
           %0 = slice %x {axis = 0, start = P, len = T} : f32[T]
           %1 = slice %0 {axis = 0, start = 10-P, len = 1} : f32[1]
           return %1 }",
    );
    let (out, _) = canonicalise::run(&module, &Default::default());
    assert_eq!(out.funcs[0].insts.len(), 2);
}

/// How often a law fires on a function.
fn fires(name: &str, func: &str) -> usize {
    let rule = rules::all().find(|r| r.name == name).unwrap();
    let module = parse(&law::with_symbols(func));
    let firings = law::firings(rule, &module.funcs[0]);
    for (value, term) in &firings {
        law::check(rule, &module.funcs[0], *value, term).unwrap();
    }
    firings.len()
}

/// One more than the largest integer would be the smallest, and rows that are all seen would all be hidden.
#[test]
fn bounds_of_keys_do_not_wrap() {
    let masked = |bound: &str| {
        format!(
            "func @f(%q: f32[T, 2, A], %k: f32[P+T, A], %v: f32[P+T, 2, C], %l: i32[T]) -> (o: f32[T, 2, C]) {{
               %0 = iota {{len = P+T}} : i32[P+T]
               %1 = broadcast %0 {{shape = [T, P+T], dims = [1]}} : i32[T, P+T]
               {bound}
               %3 = le %1, %2 : bool[T, P+T]
               %4 = attention %q, %k, %v, %3
                 {{sets = [\"tha,sa shc masked:ts\"], output = \"thc\", scale = 0.3}} : f32[T, 2, C]
               return %4 }}"
        )
    };
    let constant = |n: i64| {
        let repeated = "%2 = broadcast %c {shape = [T, P+T], dims = []} : i32[T, P+T]";
        masked(&format!("%c = constant {{value = {n}, dtype = i32}} : i32[]\n{repeated}"))
    };
    let repeated = "%2 = broadcast %n {shape = [T, P+T], dims = [0]} : i32[T, P+T]";
    let computed = "%p = iota {len = T, start = P} : i32[T]
                    %c = constant {value = 3, dtype = i32} : i32[]
                    %w = broadcast %c {shape = [T], dims = []} : i32[T]
                    %n = sub %p, %w : i32[T]";
    for (expected, func) in [
        (1, constant(5)),
        (1, constant(i64::from(i32::MAX) - 1)),
        (0, constant(i64::from(i32::MAX))),
        (1, masked(&format!("{computed}\n{repeated}"))),
        (0, masked(&repeated.replace("%n", "%l"))),
    ] {
        assert_eq!(fires("mask-by-interval", &func), expected, "{func}");
    }
}

/// Rows of blocks that were chosen differ where blocks do not overlap, whatever is left out of them.
#[test]
fn rows_of_chosen_blocks_are_a_selection() {
    let blocks = |times: i64, start: i64, without: &str| {
        format!(
            "func @f(%q: f32[T, 2, A], %k: f32[P+T, A], %v: f32[P+T, 2, C], %x: f32[T, D], %m: bool[T, 2, 3])
                -> (o: f32[T, 2, C]) {{
               %0 = top_k %x {{k = 2}} : i32[T, 2]
               %c = constant {{value = {times}, dtype = i32}} : i32[]
               %1 = broadcast %c {{shape = [T, 2], dims = []}} : i32[T, 2]
               %2 = mul %0, %1 : i32[T, 2]
               %3 = broadcast %2 {{shape = [T, 2, 3], dims = [0, 1]}} : i32[T, 2, 3]
               %4 = iota {{len = 3, start = {start}}} : i32[3]
               %5 = broadcast %4 {{shape = [T, 2, 3], dims = [2]}} : i32[T, 2, 3]
               %6 = add %3, %5 : i32[T, 2, 3]
               %w = constant {{value = {without}, dtype = i32}} : i32[]
               %7 = broadcast %w {{shape = [T, 2, 3], dims = []}} : i32[T, 2, 3]
               %8 = select %m, %6, %7 : i32[T, 2, 3]
               %9 = reshape %8 {{shape = [T, 6]}} : i32[T, 6]
               %10 = member %9 {{len = P+T}} : bool[T, P+T]
               %11 = attention %q, %k, %v, %10
                 {{sets = [\"tha,sa shc masked:ts\"], output = \"thc\", scale = 0.3}} : f32[T, 2, C]
               return %11 }}"
        )
    };
    for (expected, times, start, without) in
        [(1, 3, 0, "-1"), (1, 5, 0, "-7"), (0, 2, 0, "-1"), (0, 3, 1, "-1"), (0, 3, 0, "0"), (0, -3, 0, "-1")]
    {
        assert_eq!(fires("mask-by-selection", &blocks(times, start, without)), expected, "{times} {start} {without}");
    }
}

/// What makes one score of all of them, or none, leaves no choice that the scores before it would give.
#[test]
fn scores_are_kept_apart_by_moderate_constants() {
    for (expected, f, c) in [
        (1, "add", "0.5"),
        (1, "sub", "-3.0"),
        (1, "mul", "2.5"),
        (1, "div", "4.0"),
        (0, "mul", "-1.0"),
        (0, "mul", "1e-30"),
        (0, "mul", "inf"),
        (0, "div", "inf"),
        (0, "add", "-inf"),
        (0, "sub", "inf"),
        (0, "add", "1e30"),
    ] {
        let func = format!(
            "func @f(%x: f32[A, B], %y: f32[8, B]) -> (i: i32[A, 2]) {{
               %0 = contract %x, %y {{spec = \"td,ed->te\"}} : f32[A, 8]
               %1 = constant {{value = {c}, dtype = f32}} : f32[]
               %2 = broadcast %1 {{shape = [A, 8], dims = []}} : f32[A, 8]
               %3 = {f} %0, %2 : f32[A, 8]
               %4 = top_k %3 {{k = 2}} : i32[A, 2]
               return %4 }}"
        );
        assert_eq!(fires("top-k-of-monotone", &func), expected, "{f} {c}");
    }
}

/// A product of what was masked is not taken for finite.
#[test]
fn infinities_that_are_written_are_seen_through_products() {
    let chosen = |value: &str| {
        format!(
            "func @f(%m: bool[A, B], %x: f32[A, B], %y: f32[8, B]) -> (i: i32[A, 2]) {{
               %0 = constant {{value = {value}, dtype = f32}} : f32[]
               %1 = broadcast %0 {{shape = [A, B], dims = []}} : f32[A, B]
               %2 = select %m, %x, %1 : f32[A, B]
               %3 = contract %2, %y {{spec = \"td,ed->te\"}} : f32[A, 8]
               %4 = sigmoid %3 : f32[A, 8]
               %5 = top_k %4 {{k = 2}} : i32[A, 2]
               return %5 }}"
        )
    };
    assert_eq!(fires("top-k-of-monotone", &chosen("0.0")), 1);
    assert_eq!(fires("top-k-of-monotone", &chosen("-inf")), 0);
}

/// Rows outside are zeros, which a format of powers of two does not have.
#[test]
fn rows_outside_are_zeros_only_in_formats_that_have_one() {
    let cast = |to: &str| {
        format!(
            "func @f(%x: f32[A, 4], %i: i32[B]) -> (z: {to}[B, 4]) {{
               %0 = gather %x, %i {{axis = 0}} : f32[B, 4]
               %1 = cast %0 {{to = {to}}} : {to}[B, 4]
               return %1 }}"
        )
    };
    assert_eq!(fires("function-before-gather", &cast("f8e4m3")), 1);
    assert_eq!(fires("function-before-gather", &cast("f8e8m0")), 0);
}

/// Each merged product states the whole: what thousands of products of one input would take is not tried.
#[test]
fn only_so_many_products_are_merged() {
    for (n, expected) in [(64, 64), (65, 0)] {
        let list = |f: &dyn Fn(usize) -> String, by: &str| (0..n).map(f).collect::<Vec<_>>().join(by);
        let func = format!(
            "func @f(%x: f32[A, 4]) -> ({}) {{\n{}\n{}\nreturn {} }}",
            list(&|i| format!("y{i}: f32[A, 2]"), ", "),
            list(&|i| format!("weight %w{i} = \"w{i}\" : bf16[2, 4]"), "\n"),
            list(&|i| format!("%y{i} = contract %x, %w{i} {{spec = \"td,fd->tf\"}} : f32[A, 2]"), "\n"),
            list(&|i| format!("%y{i}"), ", "),
        );
        let module = parse(&law::with_symbols(&func));
        let rule = rules::all().find(|r| r.name == "merge-products").unwrap();
        assert_eq!(law::firings(rule, &module.funcs[0]).len(), expected);
    }
}
