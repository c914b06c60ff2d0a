//! Laws that move repetition outwards: what is done to every copy is done once, and the result is repeated.
//!
//! Quantising a token for each expert that it goes to is a chain of such functions, so these laws alone turn it into
//! quantising every token once.

use super::layout::{each, some};
use crate::rule::NumericClass::Exact;
use crate::rule::{Rule, Site, Term, V};
use hadal_ir::ops::reduce::ReduceKind;
use hadal_ir::ops::{Broadcast, Dequantize, Reduce, Reshape, Transpose};
use hadal_ir::{Dim, Op};
use std::ops::Range;

/// The laws of this file, all canonical.
pub const RULES: &[Rule] = &[
    Rule {
        name: "map-of-broadcast",
        law: "f(broadcast(x), broadcast(y)) = broadcast(f(x, y)), along the axes that both repeat",
        class: Exact,
        example: "func @f(%x: f32[A, 2], %y: f32[A]) -> (z: f32[A, B, 2]) {
            %0 = broadcast %x {shape = [A, B, 2], dims = [0, 2]} : f32[A, B, 2]
            %1 = broadcast %y {shape = [A, B, 2], dims = [0]} : f32[A, B, 2]
            %2 = sub %0, %1 : f32[A, B, 2]
            return %2 }",
        apply: |site, op, args| {
            let Op::Map(_) = op else { return vec![] };
            some(joint(site, op, args))
        },
    },
    Rule {
        name: "cast-of-broadcast",
        law: "cast(broadcast(x)) = broadcast(cast(x))",
        class: Exact,
        example: "func @f(%x: f32[A]) -> (y: bf16[A, B]) {
            %0 = broadcast %x {shape = [A, B], dims = [0]} : f32[A, B]
            %1 = cast %0 {to = bf16} : bf16[A, B]
            return %1 }",
        apply: |site, op, args| {
            let Op::Cast(_) = op else { return vec![] };
            some(joint(site, op, args))
        },
    },
    Rule {
        name: "dequantize-of-broadcast",
        law: "dequantize(broadcast(q), broadcast(s)) = broadcast(dequantize(q, s)), along the same axes",
        class: Exact,
        example: "func @f(%q: f8e4m3[3, 4], %s: f32[3, 2]) -> (y: f32[3, 5, 4]) {
            %0 = broadcast %q {shape = [3, 5, 4], dims = [0, 2]} : f8e4m3[3, 5, 4]
            %1 = broadcast %s {shape = [3, 5, 2], dims = [0, 2]} : f32[3, 5, 2]
            %2 = dequantize %0, %1 {block = [1, 1, 2]} : f32[3, 5, 4]
            return %2 }",
        apply: |site, op, args| {
            let (Op::Dequantize(d), [q, s, m @ ..]) = (op, args) else { return vec![] };
            let mut out = Vec::new();
            for (q, x) in broadcasts(site, *q) {
                for (s, y) in broadcasts(site, *s).into_iter().filter(|(s, _)| s.dims == q.dims) {
                    let alike = |m: &V| broadcasts(site, *m).into_iter().find(|(m, _)| m.dims == q.dims);
                    let Some(rest) = m.iter().map(|m| Some(alike(m)?.1)).collect::<Option<Vec<V>>>() else { continue };
                    let block = s.dims.iter().map(|a| d.block[*a]).collect();
                    let parts = [x, y].into_iter().chain(rest).map(Term::Old).collect::<Vec<_>>();
                    out.push(Term::new(q.clone(), [Term::new(Dequantize { block }, parts)]));
                }
            }
            out
        },
    },
    Rule {
        name: "reduce-of-broadcast",
        law: "reduce(broadcast(x)) = broadcast(reduce(x)), and the maximum of equal elements is any of them",
        class: Exact,
        example: "func @f(%x: f32[A, 2]) -> (y: f32[A, B]) {
            %0 = broadcast %x {shape = [A, B, 3, 2], dims = [0, 3]} : f32[A, B, 3, 2]
            %1 = reduce %0 {kind = max, axes = [2, 3]} : f32[A, B]
            return %1 }",
        apply: |site, op, args| {
            let Op::Reduce(r) = op else { return vec![] };
            broadcasts(site, args[0]).into_iter().filter_map(|(b, x)| reduced(r, &b, x)).collect()
        },
    },
    Rule {
        name: "reshape-of-broadcast",
        law: "reshape(broadcast(x)) = broadcast(reshape(x)), along repeated axes that stay by themselves",
        class: Exact,
        example: "func @f(%x: f32[A, 6]) -> (y: f32[A, B, 2, 12]) {
            %0 = broadcast %x {shape = [A, B, 6, 4], dims = [0, 2]} : f32[A, B, 6, 4]
            %1 = reshape %0 {shape = [A, B, 2, 12]} : f32[A, B, 2, 12]
            return %1 }",
        apply: |site, op, args| {
            let Op::Reshape(r) = op else { return vec![] };
            broadcasts(site, args[0]).into_iter().filter_map(|(b, x)| reshaped(r, &b, x)).collect()
        },
    },
    Rule {
        name: "transpose-of-broadcast",
        law: "transpose(broadcast(x)) = broadcast(transpose(x))",
        class: Exact,
        example: "func @f(%x: f32[A, 2]) -> (y: f32[2, B, A]) {
            %0 = broadcast %x {shape = [A, B, 2], dims = [0, 2]} : f32[A, B, 2]
            %1 = transpose %0 {perm = [2, 1, 0]} : f32[2, B, A]
            return %1 }",
        apply: |site, op, args| {
            let Op::Transpose(t) = op else { return vec![] };
            each(site, args[0], |inner, x| {
                let Op::Broadcast(b) = inner else { return None };
                let shape = t.perm.iter().map(|p| b.shape[*p].clone()).collect();
                let dims: Vec<usize> = (0..t.perm.len()).filter(|i| b.dims.contains(&t.perm[*i])).collect();
                let perm = dims.iter().map(|i| position(&b.dims, t.perm[*i])).collect::<Option<_>>()?;
                Some(Term::new(Broadcast { shape, dims }, [Term::new(Transpose { perm }, [Term::Old(x[0])])]))
            })
        },
    },
];

/// The ways to see a value as repeated.
pub(crate) fn broadcasts(site: &dyn Site, v: V) -> Vec<(Broadcast, V)> {
    let of = |(op, args): (&Op, Vec<V>)| match op {
        Op::Broadcast(b) => Some((b.clone(), args[0])),
        _ => None,
    };
    site.forms(v).into_iter().filter_map(of).collect()
}

fn position(dims: &[usize], axis: usize) -> Option<usize> {
    dims.iter().position(|d| *d == axis)
}

/// An elementwise op of operands that all repeat along some axes, with these left to the result.
fn joint(site: &dyn Site, op: &Op, args: &[V]) -> Option<Term> {
    let shape = &site.ty(args[0]).shape;
    let operands: Vec<(Broadcast, V)> = args
        .iter()
        .map(|a| broadcasts(site, *a).into_iter().min_by_key(|(b, v)| (b.dims.len(), *v)))
        .collect::<Option<_>>()?;
    let kept: Vec<usize> = (0..shape.len()).filter(|i| operands.iter().any(|(b, _)| b.dims.contains(i))).collect();
    if kept.len() == shape.len() {
        return None;
    }
    let small: Vec<Dim> = kept.iter().map(|i| shape[*i].clone()).collect();
    let operand = |(b, x): &(Broadcast, V)| {
        let dims: Option<Vec<usize>> = b.dims.iter().map(|d| position(&kept, *d)).collect();
        Some(match dims? {
            dims if dims.len() == kept.len() => Term::Old(*x),
            dims => Term::new(Broadcast { shape: small.clone(), dims }, [Term::Old(*x)]),
        })
    };
    let inner = operands.iter().map(operand).collect::<Option<Vec<Term>>>()?;
    Some(Term::new(Broadcast { shape: shape.clone(), dims: kept }, [Term::new(op.clone(), inner)]))
}

fn reduced(r: &Reduce, b: &Broadcast, x: V) -> Option<Term> {
    let (below, beside): (Vec<usize>, Vec<usize>) = r.axes.iter().partition(|a| b.dims.contains(a));
    // Equal elements are their own maximum and minimum, if there is one at all.
    let some_are = |a: &usize| b.shape[*a].as_const().is_some_and(|n| n >= 1);
    if !beside.is_empty() && (r.kind == ReduceKind::Sum || !beside.iter().all(some_are)) {
        return None;
    }
    let axes: Vec<usize> = below.iter().map(|a| position(&b.dims, *a)).collect::<Option<_>>()?;
    let inner = match axes.is_empty() {
        true => Term::Old(x),
        false => Term::new(Reduce { kind: r.kind, axes }, [Term::Old(x)]),
    };
    let left: Vec<usize> = (0..b.shape.len()).filter(|i| !r.axes.contains(i)).collect();
    let shape = left.iter().map(|i| b.shape[*i].clone()).collect();
    let dims = (0..left.len()).filter(|i| b.dims.contains(&left[*i])).collect();
    Some(Term::new(Broadcast { shape, dims }, [inner]))
}

fn reshaped(r: &Reshape, b: &Broadcast, x: V) -> Option<Term> {
    // Axes of the reshape that are not repeated as a whole, and the old ones that they are made of.
    let (mut dims, mut inner) = (Vec::new(), Vec::new());
    for (old, new) in segments(&b.shape, &r.shape)? {
        // Axes of size 1 may count as either.
        let repeats = old.clone().any(|i| !b.dims.contains(&i) && !b.shape[i].is(1));
        let keeps = old.clone().any(|i| b.dims.contains(&i));
        if keeps || !repeats {
            dims.extend(new);
            inner.extend(old);
        }
    }
    if dims.len() == r.shape.len() {
        return None;
    }
    let sizes = |axes: &[usize], of: &[Dim]| axes.iter().map(|i| of[*i].clone()).collect::<Vec<Dim>>();
    let partly = Broadcast {
        shape: sizes(&inner, &b.shape),
        dims: b.dims.iter().map(|d| position(&inner, *d)).collect::<Option<_>>()?,
    };
    let below = if partly.dims.len() == inner.len() { Term::Old(x) } else { Term::new(partly, [Term::Old(x)]) };
    let below = Term::new(Reshape { shape: sizes(&dims, &r.shape) }, [below]);
    Some(Term::new(Broadcast { shape: r.shape.clone(), dims }, [below]))
}

/// Cuts two shapes of one size into the shortest runs of axes that have equal sizes.
pub(crate) fn segments(from: &[Dim], to: &[Dim]) -> Option<Vec<(Range<usize>, Range<usize>)>> {
    let mut out: Vec<(Range<usize>, Range<usize>)> = Vec::new();
    let (mut i, mut j) = (0, 0);
    while i < from.len() && j < to.len() {
        let (start, begin) = (i, j);
        let (mut a, mut b) = (from[i].clone(), to[j].clone());
        (i, j) = (i + 1, j + 1);
        while a != b {
            // The shorter run grows; which one that is a guess will do for, since only equality ends the run.
            if about(&a) < about(&b) {
                a = a.checked_mul(from.get(i)?)?;
                i += 1;
            } else {
                b = b.checked_mul(to.get(j)?)?;
                j += 1;
            }
        }
        out.push((start..i, begin..j));
    }
    // Units may be left over at the end of either.
    let units = from[i..].iter().chain(&to[j..]).all(|d| d.is(1));
    match out.last_mut() {
        Some(last) if units => *last = (last.0.start..from.len(), last.1.start..to.len()),
        _ if i < from.len() || j < to.len() => return None,
        _ => {}
    }
    Some(out)
}

/// A size with a large prime for each symbol.
fn about(d: &Dim) -> i64 {
    d.terms().iter().fold(d.constant(), |sum, (_, k)| sum.saturating_add(k.saturating_mul(1_000_003)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hadal_ir::Sym;

    #[test]
    fn shapes_are_cut_where_their_sizes_meet() {
        let t = Dim::from(Sym::T);
        let shape = |sizes: &[Dim]| sizes.to_vec();
        let cut = |a: &[Dim], b: &[Dim]| segments(a, b);
        let (from, to) = (shape(&[t.clone(), 6.into(), 4.into()]), shape(&[t.clone(), 2.into(), 3.into(), 4.into()]));
        assert_eq!(cut(&from, &to), Some(vec![(0..1, 0..1), (1..2, 1..3), (2..3, 3..4)]));
        assert_eq!(cut(&[t.clone(), 6.into()], &[t.clone() * 2, 3.into()]), Some(vec![(0..2, 0..2)]));
        assert_eq!(cut(&[t.clone(), 1.into()], std::slice::from_ref(&t)), Some(vec![(0..2, 0..1)]));
        assert_eq!(cut(std::slice::from_ref(&t), &[1.into(), t.clone()]), Some(vec![(0..1, 0..2)]));
        assert_eq!(cut(&[t.clone(), 6.into()], &[t, 5.into()]), None);
    }
}
