//! Every law, on its example with random sizes: it fires, and both sides are equal.

mod common;

use common::*;
use hadal_ir::interpret::eval_func;
use hadal_ir::{Bindings, Builder, Func, Inst, InstKind, Op, Sym, Tensor, TensorType, ValueId};
use hadal_passes::rule::{NumericClass, Rule, Site, Term, V};
use hadal_passes::{canonicalise, rules};
use std::collections::BTreeSet;

struct View<'a>(&'a Func);

impl Site for View<'_> {
    fn ty(&self, v: V) -> &TensorType {
        self.0.ty(ValueId(v.0))
    }

    fn forms(&self, v: V) -> Vec<(&Op, Vec<V>)> {
        let inst = self.0.insts.iter().find(|i| i.results.contains(&ValueId(v.0)));
        match inst {
            Some(Inst { kind: InstKind::Op(op), args, .. }) => vec![(op, args.iter().map(|a| V(a.0)).collect())],
            _ => vec![],
        }
    }
}

/// A function that returns the value and the term for it.
fn both(func: &Func, value: ValueId, term: &Term) -> Func {
    let mut b = Builder::new("both");
    let mut map = std::collections::BTreeMap::new();
    for p in &func.params {
        map.insert(*p, b.param("p", func.ty(*p).clone()));
    }
    for inst in &func.insts {
        let InstKind::Op(op) = &inst.kind else { panic!("examples do not call") };
        let args: Vec<ValueId> = inst.args.iter().map(|a| map[a]).collect();
        map.insert(inst.results[0], b.op(op.clone(), &args));
    }
    fn add(b: &mut Builder, map: &std::collections::BTreeMap<ValueId, ValueId>, term: &Term) -> ValueId {
        match term {
            Term::Old(v) => map[&ValueId(v.0)],
            Term::New(op, args) => {
                let args: Vec<ValueId> = args.iter().map(|a| add(b, map, a)).collect();
                b.op(op.clone(), &args)
            }
        }
    }
    let other = add(&mut b, &map, term);
    b.result("one", map[&value]);
    b.result("other", other);
    b.finish().unwrap()
}

fn hold(rule: &Rule) -> usize {
    let module =
        parse(&format!("symbols A in 1..9, B in 1..9, C in 1..9, D in 1..9, P in 0..9, T in 1..9\n{}", rule.example));
    let func = &module.funcs[0];
    let mut fired = 0;
    for inst in &func.insts {
        let InstKind::Op(op) = &inst.kind else { continue };
        let args: Vec<V> = inst.args.iter().map(|a| V(a.0)).collect();
        for term in (rule.apply)(&View(func), op, &args) {
            fired += 1;
            let value = inst.results[0];
            assert_eq!(term.ty(&View(func)).as_ref(), Some(func.ty(value)), "{}", rule.name);
            let sides = both(func, value, &term);
            for seed in 0..16u64 {
                let size = |i: u64| 1 + ((seed * 2654435761 + i * 40503) >> 3) as i64 % 5;
                let names = ["A", "B", "C", "D", "P", "T"];
                let bindings: Bindings = names.iter().zip(0..).map(|(n, i)| (Sym::new(n).unwrap(), size(i))).collect();
                let args: Vec<Tensor> = sides
                    .params
                    .iter()
                    .zip(0..)
                    .map(|(p, i)| noise(sides.ty(*p).dtype, &sides.ty(*p).eval_shape(&bindings).unwrap(), seed + i))
                    .collect();
                let results = eval_func(&sides, &args, &bindings).unwrap();
                let tolerance = if rule.class == NumericClass::Exact { 0.0 } else { 1e-9 };
                assert_close(&results[0], &results[1], tolerance, rule.name);
            }
        }
    }
    fired
}

#[test]
fn every_law_holds_and_fires_on_its_example() {
    for rule in rules::all() {
        assert!(hold(rule) > 0, "`{}` does not fire on its example", rule.name);
    }
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
    let (out, _) = canonicalise::run(&module);
    assert_eq!(out.funcs[0].insts.len(), 2);
}
