//! Every law, on its example with random sizes: it fires, and both sides are equal.

mod common;

use common::*;
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
