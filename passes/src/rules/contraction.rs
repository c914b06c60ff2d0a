//! Laws that move work between contractions. Each opens an alternative; the cost model chooses.

use super::layout::each;
use crate::rule::NumericClass::Reassociating;
use crate::rule::{Rule, Site, Term, V};
use hadal_ir::ops::map::MapFn;
use hadal_ir::ops::{Contract, Map, Reshape, Slice};
use hadal_ir::{Dim, Op};
use std::collections::BTreeMap;

/// Most operands that nested contractions are gathered to.
const GATHERED: usize = 3;

/// The laws of this file.
pub const RULES: &[Rule] = &[
    Rule {
        name: "distribute-over-concat",
        law: "Σ_d concat(x, y)[d] · z[d] = Σ_d x[d] · z[..][d] + Σ_d y[d] · z[..][d]",
        class: Reassociating,
        example: "func @f(%x: f32[A, 2], %y: f32[A, B], %z: f32[C, B+2]) -> (w: f32[A, C]) {
            %0 = concat %x, %y {axis = 1} : f32[A, B+2]
            %1 = contract %0, %z {spec = \"td,sd->ts\"} : f32[A, C]
            return %1 }",
        apply: distribute,
    },
    Rule {
        name: "slice-through-contract",
        law: "slice(contract(x, y)) = contract(slice(x), y)",
        class: Reassociating,
        example: "func @f(%x: f32[A, B], %y: f32[8, B]) -> (z: f32[A, 3]) {
            %0 = contract %x, %y {spec = \"td,fd->tf\"} : f32[A, 8]
            %1 = slice %0 {axis = 1, start = 2, len = 3} : f32[A, 3]
            return %1 }",
        apply: |site, op, args| {
            let Op::Slice(s) = op else { return vec![] };
            each(site, args[0], |inner, operands| {
                let Op::Contract(c) = inner else { return None };
                let letter = c.output.chars().nth(s.axis)?;
                let part = |(v, letters): (&V, &String)| match letters.find(letter) {
                    Some(axis) => Term::new(Slice { axis, ..s.clone() }, [Term::Old(*v)]),
                    None => Term::Old(*v),
                };
                Some(Term::new(c.clone(), operands.iter().zip(&c.inputs).map(part)))
            })
        },
    },
    Rule {
        name: "split-through-contract",
        law: "reshape(contract(x, y)) = contract(reshape(x), y), where axes are split",
        class: Reassociating,
        example: "func @f(%x: f32[A, B], %y: f32[4*C, B]) -> (z: f32[A, 2, 2*C]) {
            %0 = contract %x, %y {spec = \"td,fd->tf\"} : f32[A, 4*C]
            %1 = reshape %0 {shape = [A, 2, 2*C]} : f32[A, 2, 2*C]
            return %1 }",
        apply: |site, op, args| {
            let Op::Reshape(r) = op else { return vec![] };
            let Some(parts) = splits(&site.ty(args[0]).shape, &r.shape) else { return vec![] };
            each(site, args[0], |inner, operands| {
                let Op::Contract(c) = inner else { return None };
                split_letters(site, c, operands, &parts)
            })
        },
    },
    Rule {
        name: "gather-contractions",
        law: "contract(x, contract(y, z)) = contract(x, y, z)",
        class: Reassociating,
        example: "func @f(%x: f32[A, B], %y: f32[C, B], %z: f32[D, C]) -> (w: f32[A, D]) {
            %0 = contract %x, %y {spec = \"td,fd->tf\"} : f32[A, C]
            %1 = contract %0, %z {spec = \"td,fd->tf\"} : f32[A, D]
            return %1 }",
        apply: gather,
    },
    Rule {
        name: "nest-contractions",
        law: "contract(x, y, z) = contract(contract(x, y), z), where the inner one sums something",
        class: Reassociating,
        example: "func @f(%x: f32[A, B], %y: f32[B, C], %z: f32[C, D]) -> (w: f32[A, D]) {
            %0 = contract %x, %y, %z {spec = \"ij,jk,kl->il\"} : f32[A, D]
            return %0 }",
        apply: nest,
    },
];

fn distribute(site: &dyn Site, op: &Op, args: &[V]) -> Vec<Term> {
    let Op::Contract(c) = op else { return vec![] };
    let mut out = Vec::new();
    for (i, a) in args.iter().enumerate() {
        for (inner, parts) in site.forms(*a) {
            let Op::Concat(concat) = inner else { continue };
            let Some(letter) = c.inputs[i].chars().nth(concat.axis).filter(|l| !c.output.contains(*l)) else {
                continue;
            };
            let mut start = Dim::default();
            let mut sum: Option<Term> = None;
            for part in &parts {
                let len = site.ty(*part).shape[concat.axis].clone();
                let operand = |(j, v): (usize, &V)| match c.inputs[j].find(letter) {
                    _ if j == i => Term::Old(*part),
                    Some(axis) => {
                        let slice = Slice { axis, start: start.clone(), len: len.clone(), step: 1 };
                        Term::new(slice, [Term::Old(*v)])
                    }
                    None => Term::Old(*v),
                };
                let term = Term::new(c.clone(), args.iter().enumerate().map(operand));
                sum = Some(match sum {
                    None => term,
                    Some(sum) => Term::new(Map { f: MapFn::Add }, [sum, term]),
                });
                start = start + len;
            }
            out.extend(sum.filter(|_| parts.len() > 1));
        }
    }
    out
}

/// For each axis of `from`, the sizes in `to` that it is split into; `None` where axes are merged.
fn splits(from: &[Dim], to: &[Dim]) -> Option<Vec<Vec<Dim>>> {
    let mut rest = to;
    let mut out = Vec::new();
    for size in from {
        let mut part = vec![rest.first()?.clone()];
        rest = &rest[1..];
        let mut product = part[0].clone();
        while product != *size {
            let (next, after) = rest.split_first()?;
            product = product.checked_mul(next)?;
            part.push(next.clone());
            rest = after;
        }
        out.push(part);
    }
    (rest.is_empty() && out.iter().any(|p| p.len() > 1)).then_some(out)
}

fn split_letters(site: &dyn Site, c: &Contract, operands: &[V], parts: &[Vec<Dim>]) -> Option<Term> {
    let mut free = unused(c);
    let mut new: BTreeMap<char, (String, &Vec<Dim>)> = BTreeMap::new();
    for (letter, part) in c.output.chars().zip(parts) {
        let letters = match part.len() {
            1 => letter.to_string(),
            n => (0..n).map(|_| free.next()).collect::<Option<String>>()?,
        };
        new.insert(letter, (letters, part));
    }
    let spelled = |letters: &str| -> String {
        letters.chars().map(|l| new.get(&l).map_or_else(|| l.to_string(), |(s, _)| s.clone())).collect()
    };
    let operand = |(v, letters): (&V, &String)| {
        if letters.chars().all(|l| new.get(&l).is_none_or(|(s, _)| s.len() == 1)) {
            return Term::Old(*v);
        }
        let sizes = letters.chars().zip(&site.ty(*v).shape);
        let shape = sizes.flat_map(|(l, size)| match new.get(&l) {
            Some((_, part)) => part.to_vec(),
            None => vec![size.clone()],
        });
        Term::new(Reshape { shape: shape.collect() }, [Term::Old(*v)])
    };
    let split = Contract { inputs: c.inputs.iter().map(|i| spelled(i)).collect(), output: spelled(&c.output) };
    Some(Term::new(split, operands.iter().zip(&c.inputs).map(operand)))
}

fn gather(site: &dyn Site, op: &Op, args: &[V]) -> Vec<Term> {
    let Op::Contract(outer) = op else { return vec![] };
    let mut out = Vec::new();
    for (i, a) in args.iter().enumerate() {
        for (inner, operands) in site.forms(*a) {
            let Op::Contract(inner) = inner else { continue };
            if args.len() - 1 + operands.len() > GATHERED {
                continue;
            }
            // The inner result's letters become the outer ones; those summed inside get fresh ones.
            let mut free = unused(outer);
            let mut names: BTreeMap<char, char> = inner.output.chars().zip(outer.inputs[i].chars()).collect();
            for l in inner.summed().chars() {
                let Some(fresh) = free.next() else { return out };
                names.insert(l, fresh);
            }
            let renamed = inner.inputs.iter().map(|s| s.chars().map(|l| names[&l]).collect::<String>());
            let mut inputs = outer.inputs.clone();
            inputs.splice(i..=i, renamed);
            let all = args[..i].iter().chain(&operands).chain(&args[i + 1..]);
            let c = Contract { inputs, output: outer.output.clone() };
            out.push(Term::new(c, all.map(|v| Term::Old(*v))));
        }
    }
    out
}

fn nest(_: &dyn Site, op: &Op, args: &[V]) -> Vec<Term> {
    let Op::Contract(c) = op else { return vec![] };
    if args.len() != 3 {
        return vec![];
    }
    let mut out = Vec::new();
    for (i, j, k) in [(0, 1, 2), (0, 2, 1), (1, 2, 0)] {
        let (x, y, z) = (&c.inputs[i], &c.inputs[j], &c.inputs[k]);
        let mut kept = String::new();
        let mut sums = false;
        for l in x.chars().chain(y.chars()) {
            if !c.output.contains(l) && !z.contains(l) {
                sums = true;
            } else if !kept.contains(l) {
                kept.push(l);
            }
        }
        if sums {
            let inner = Contract { inputs: vec![x.clone(), y.clone()], output: kept.clone() };
            let inner = Term::new(inner, [Term::Old(args[i]), Term::Old(args[j])]);
            // Whichever stood first stays first.
            let (inputs, operands) = match k {
                0 => (vec![z.clone(), kept], vec![Term::Old(args[k]), inner]),
                _ => (vec![kept, z.clone()], vec![inner, Term::Old(args[k])]),
            };
            out.push(Term::new(Contract { inputs, output: c.output.clone() }, operands));
        }
    }
    out
}

/// Letters that a contraction does not use.
fn unused(c: &Contract) -> impl Iterator<Item = char> + use<> {
    let used = c.inputs.concat();
    ('a'..='z').chain('A'..='Z').filter(move |l| !used.contains(*l))
}
