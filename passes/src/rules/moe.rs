//! Laws of routed experts: where their weights are applied, what the choice among them depends on, and that an expert
//! which every token takes is one more of them ([`super::shared_expert`]).

use super::elementwise::{repeated, widens};
use super::layout::{each, some};
use super::quantisation::finite;
use super::shared_expert::{among_routed, function_of_rows, product_of_rows};
use crate::rule::NumericClass::{Exact, Reassociating};
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
        law: "top_k(f(x)) = top_k(x), for f that grows strictly and finite x; where f rounds two scores to one, the \
              choice between them may change",
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
    Rule {
        name: "shared-expert-among-routed",
        law: "Σ_k w_k · h_k W[i_k] + h V = Σ over one k more, of joined rows h, weights w with a 1, numbers i with the last \
              one, and a stack W with V at its end",
        class: Reassociating,
        example: "func @f(%h: f32[A, 2, 3], %g: f32[A, 6], %w: f32[A, 2], %p: f32[A, 4]) -> (y: f32[A, 5]) {
            weight %d = \"d\" : bf16[4, 5, 3]
            weight %v = \"v\" : bf16[5, 6]
            %i = top_k %p {k = 2} : i32[A, 2]
            %0 = gather %d, %i {axis = 0} : bf16[A, 2, 5, 3]
            %1 = contract %h, %0 {spec = \"tkf,tkdf->tkd\"} : f32[A, 2, 5]
            %2 = contract %1, %w {spec = \"tkd,tk->td\"} : f32[A, 5]
            %3 = contract %g, %v {spec = \"tf,df->td\"} : f32[A, 5]
            %4 = add %2, %3 : f32[A, 5]
            return %4 }",
        apply: |site, op, args| some(among_routed(site, op, args)),
    },
    Rule {
        name: "function-of-joined-rows",
        law: "concat(f(x), f(y)) = f(concat(x, y)), row by row",
        class: Exact,
        example: "func @f(%x: f32[A, 2, 4], %y: f32[A, 4], %u: f32[A, 2, 4], %v: f32[A, 4]) -> (z: f32[A, 3, 4]) {
            %0 = mul %x, %u : f32[A, 2, 4]
            %1 = sub %x, %0 : f32[A, 2, 4]
            %2 = mul %y, %v : f32[A, 4]
            %3 = sub %y, %2 : f32[A, 4]
            %4 = reshape %3 {shape = [A, 1, 4]} : f32[A, 1, 4]
            %5 = concat %1, %4 {axis = 1} : f32[A, 3, 4]
            return %5 }",
        apply: |site, op, args| some(function_of_rows(site, op, args)),
    },
    Rule {
        name: "product-of-joined-rows",
        law: "concat(x W[i], x V) = x U[concat(i, n, …)], where the stack U is W with V at its end, from n on",
        class: Exact,
        example: "func @f(%x: f32[A, 4], %p: f32[A, 4]) -> (y: f32[A, 4, 3]) {
            weight %q = \"q\" : f8e4m3[4, 3, 4]
            weight %s = \"s\" : f32[4, 1, 2]
            weight %r = \"r\" : f8e4m3[6, 4]
            weight %u = \"u\" : f32[2, 2]
            %d = dequantize %q, %s {block = [1, 3, 2]} : f32[4, 3, 4]
            %v = dequantize %r, %u {block = [3, 2]} : f32[6, 4]
            %i = top_k %p {k = 2} : i32[A, 2]
            %0 = gather %d, %i {axis = 0} : f32[A, 2, 3, 4]
            %1 = contract %x, %0 {spec = \"td,tkfd->tkf\"} : f32[A, 2, 3]
            %2 = contract %x, %v {spec = \"td,fd->tf\"} : f32[A, 6]
            %3 = reshape %2 {shape = [A, 2, 3]} : f32[A, 2, 3]
            %4 = concat %1, %3 {axis = 1} : f32[A, 4, 3]
            return %4 }",
        apply: |site, op, args| some(product_of_rows(site, op, args)),
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

/// Constants up to here, and factors down to its inverse, leave scores apart: 1e30 added makes all of them one.
const MODERATE: f64 = 1e6;

/// What a function that grows strictly along the last axis is applied to.
fn grows(site: &dyn Site, op: &Op, args: &[V]) -> Option<V> {
    let constant = |v: V| repeated(site, v).map(|(c, _)| c);
    let addend = |v: V| constant(v).is_some_and(|c| c.abs() <= MODERATE);
    let factor = |v: V| constant(v).is_some_and(|c| (1.0 / MODERATE..=MODERATE).contains(&c));
    match op {
        Op::Softmax(_) => Some(args[0]),
        Op::Cast(c) if widens(site.ty(args[0]).dtype, c.to) => Some(args[0]),
        Op::Map(m) => match (m.f, args) {
            (MapFn::Sigmoid | MapFn::Exp | MapFn::Tanh, [x]) => Some(*x),
            (MapFn::Add, [x, c]) if addend(*c) => Some(*x),
            (MapFn::Add, [c, x]) if addend(*c) => Some(*x),
            (MapFn::Sub, [x, c]) if addend(*c) => Some(*x),
            (MapFn::Mul | MapFn::Div, [x, c]) if factor(*c) => Some(*x),
            (MapFn::Mul, [c, x]) if factor(*c) => Some(*x),
            _ => None,
        },
        _ => None,
    }
}
