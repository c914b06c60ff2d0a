//! Laws that simplify contractions: views of operands become letters.

use super::elementwise::widens;
use super::layout::each;
use crate::rule::NumericClass::Exact;
use crate::rule::{Rule, Site, Term, V};
use hadal_ir::ops::{Broadcast, Cast, Contract, Transpose};
use hadal_ir::{DType, Op};

/// The laws of this file.
pub const RULES: &[Rule] = &[
    Rule {
        name: "contract-of-transposed",
        law: "contract(transpose(x), y) = contract(x, y), with the letters of x in its order",
        class: Exact,
        example: "func @f(%x: f32[A, B], %y: f32[C, A]) -> (z: f32[B, C]) {
            %0 = transpose %x {perm = [1, 0]} : f32[B, A]
            %1 = contract %0, %y {spec = \"td,fd->tf\"} : f32[B, C]
            return %1 }",
        apply: |site, op, args| {
            per_operand(site, op, args, |c, i, inner, x| {
                let Op::Transpose(t) = inner else { return None };
                let mut letters = vec![' '; t.perm.len()];
                t.perm.iter().zip(c.inputs[i].chars()).for_each(|(p, l)| letters[*p] = l);
                Some((letters.into_iter().collect(), x[0]))
            })
        },
    },
    Rule {
        name: "contract-of-broadcast",
        law: "contract(broadcast(x), y) = contract(x, y), where y has the letters that x loses",
        class: Exact,
        example: "func @f(%x: f32[A], %y: f32[B, A]) -> (z: f32[B, A]) {
            %0 = broadcast %x {shape = [B, A], dims = [1]} : f32[B, A]
            %1 = contract %0, %y {spec = \"td,td->td\"} : f32[B, A]
            return %1 }",
        apply: |site, op, args| {
            per_operand(site, op, args, |c, i, inner, x| {
                let Op::Broadcast(Broadcast { dims, .. }) = inner else { return None };
                let letters: Vec<char> = c.inputs[i].chars().collect();
                let elsewhere = |l: char| c.inputs.iter().enumerate().any(|(j, s)| j != i && s.contains(l));
                let lost = (0..letters.len()).filter(|a| !dims.contains(a));
                let all_elsewhere = lost.map(|a| letters[a]).all(elsewhere);
                all_elsewhere.then(|| (dims.iter().map(|d| letters[*d]).collect(), x[0]))
            })
        },
    },
    Rule {
        name: "contract-of-widened",
        law: "contract(widen(x), y) = contract(x, y)",
        class: Exact,
        example: "func @f(%x: f32[A, B], %y: bf16[C, B]) -> (z: f32[A, C]) {
            %0 = cast %y {to = f32} : f32[C, B]
            %1 = contract %x, %0 {spec = \"td,fd->tf\"} : f32[A, C]
            return %1 }",
        apply: |site, op, args| {
            per_operand(site, op, args, |c, i, inner, x| {
                let Op::Cast(Cast { to }) = inner else { return None };
                let from = site.ty(x[0]).dtype;
                (widens(from, *to) && *to != DType::F64).then(|| (c.inputs[i].clone(), x[0]))
            })
        },
    },
    Rule {
        name: "transposed-contract",
        law: "transpose(contract(x, y)) = contract(x, y), with the result's letters in its order",
        class: Exact,
        example: "func @f(%x: f32[A, B], %y: f32[C, B]) -> (z: f32[C, A]) {
            %0 = contract %x, %y {spec = \"td,fd->tf\"} : f32[A, C]
            %1 = transpose %0 {perm = [1, 0]} : f32[C, A]
            return %1 }",
        apply: |site, op, args| {
            let Op::Transpose(Transpose { perm }) = op else { return vec![] };
            each(site, args[0], |inner, operands| {
                let Op::Contract(c) = inner else { return None };
                let letters: Vec<char> = c.output.chars().collect();
                let output = perm.iter().map(|p| letters[*p]).collect();
                let c = Contract { inputs: c.inputs.clone(), output };
                Some(Term::new(c, operands.iter().map(|v| Term::Old(*v))))
            })
        },
    },
];

/// The contractions that arise by replacing one operand by what stands behind it, with other letters.
fn per_operand(
    site: &dyn Site,
    op: &Op,
    args: &[V],
    f: impl Fn(&Contract, usize, &Op, &[V]) -> Option<(String, V)>,
) -> Vec<Term> {
    let Op::Contract(c) = op else { return vec![] };
    let mut out = Vec::new();
    for (i, a) in args.iter().enumerate() {
        for (inner, x) in site.forms(*a) {
            if let Some((letters, replacement)) = f(c, i, inner, &x) {
                let mut c = c.clone();
                c.inputs[i] = letters;
                let operands = args.iter().enumerate().map(|(j, v)| Term::Old(if j == i { replacement } else { *v }));
                out.push(Term::new(c, operands));
            }
        }
    }
    out
}
