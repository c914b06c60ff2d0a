//! Laws of routed experts: where their weights are applied, and what the choice among them depends on.

use super::elementwise::{repeated, widens};
use super::layout::each;
use super::quantisation::finite;
use crate::rule::NumericClass::Reassociating;
use crate::rule::{Rule, Site, Term, V};
use hadal_ir::ops::map::MapFn;
use hadal_ir::ops::{Broadcast, Contract, Map};
use hadal_ir::{DType, Op};

/// The laws of this file.
pub const RULES: &[Rule] = &[
    Rule {
        name: "weigh-before-product",
        law: "contract(x, W, w) = contract(x · w, W), where w has no axis that x lacks",
        class: Reassociating,
        example: "func @f(%x: f32[A, B, C], %w: f32[A, B, D, C], %k: f32[A, B]) -> (y: f32[A, D]) {
            %0 = contract %x, %w, %k {spec = \"tkf,tkdf,tk->td\"} : f32[A, D]
            return %0 }",
        apply: weigh,
    },
    Rule {
        name: "top-k-of-monotone",
        law: "top_k(f(x)) = top_k(x), for f that grows strictly; where f rounds two scores to one, the choice between \
              them may change",
        class: Reassociating,
        example: "func @f(%x: f32[A, B], %y: f32[8, B]) -> (i: i32[A, 2]) {
            %0 = contract %x, %y {spec = \"td,ed->te\"} : f32[A, 8]
            %1 = sigmoid %0 : f32[A, 8]
            %2 = top_k %1 {k = 2} : i32[A, 2]
            return %2 }",
        apply: |site, op, args| {
            let Op::TopK(_) = op else { return vec![] };
            each(site, args[0], |inner, operands| {
                let x = grows(site, inner, operands)?;
                if !finite(site, x) {
                    site.miss(&|| {
                        "scores may be -∞, which is never chosen, and the function makes numbers of them".into()
                    });
                    return None;
                }
                Some(Term::new(op.clone(), [Term::Old(x)]))
            })
        },
    },
];

fn weigh(site: &dyn Site, op: &Op, args: &[V]) -> Vec<Term> {
    let Op::Contract(c) = op else { return vec![] };
    if args.len() != 3 {
        return vec![];
    }
    let mut out = Vec::new();
    for (x, w, weight) in [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)] {
        let (letters, others, own) = (&c.inputs[x], &c.inputs[w], &c.inputs[weight]);
        let dims: Option<Vec<usize>> = own.chars().map(|l| letters.find(l)).collect();
        let Some(dims) = dims.filter(|d| d.is_sorted() && d.len() < letters.len()) else { continue };
        // The larger operand is left alone, and nothing may be lost of the smaller one.
        let larger = others.chars().any(|l| !letters.contains(l));
        let kept = letters.chars().all(|l| others.contains(l) || c.output.contains(l));
        let real = |v: usize| site.ty(args[v]).dtype == DType::F32 && !site.constant(args[v]);
        if !larger || !kept || !real(x) || !real(weight) {
            continue;
        }
        let repeated = Broadcast { shape: site.ty(args[x]).shape.clone(), dims };
        let repeated = Term::new(repeated, [Term::Old(args[weight])]);
        let weighed = Term::new(Map { f: MapFn::Mul }, [Term::Old(args[x]), repeated]);
        // Whichever stood first stays first.
        let (inputs, operands) = match x < w {
            true => (vec![letters.clone(), others.clone()], [weighed, Term::Old(args[w])]),
            false => (vec![others.clone(), letters.clone()], [Term::Old(args[w]), weighed]),
        };
        out.push(Term::new(Contract { inputs, output: c.output.clone() }, operands));
    }
    out
}

/// What a function that grows strictly along the last axis is applied to.
fn grows(site: &dyn Site, op: &Op, args: &[V]) -> Option<V> {
    let constant = |v: V| repeated(site, v).map(|(c, _)| c);
    match op {
        Op::Softmax(_) => Some(args[0]),
        Op::Cast(c) if widens(site.ty(args[0]).dtype, c.to) => Some(args[0]),
        Op::Map(m) => match (m.f, args) {
            (MapFn::Sigmoid | MapFn::Exp | MapFn::Tanh, [x]) => Some(*x),
            (MapFn::Add, [x, c]) if constant(*c).is_some() => Some(*x),
            (MapFn::Add, [c, x]) if constant(*c).is_some() => Some(*x),
            (MapFn::Sub, [x, c]) if constant(*c).is_some() => Some(*x),
            (MapFn::Mul, [x, c]) if constant(*c).is_some_and(|c| c > 0.0) => Some(*x),
            (MapFn::Mul, [c, x]) if constant(*c).is_some_and(|c| c > 0.0) => Some(*x),
            (MapFn::Div, [x, c]) if constant(*c).is_some_and(|c| c > 0.0) => Some(*x),
            _ => None,
        },
        _ => None,
    }
}
