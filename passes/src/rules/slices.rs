//! Laws of parts: a part of a result is computed from parts of the operands.
//!
//! They are used where only that part is wanted (`crate::elide`), so each of them leaves out work; where the whole is
//! computed anyhow, a part of it is a view and costs nothing.

use super::layout::each;
use crate::rule::NumericClass::Exact;
use crate::rule::{Rule, Site, Term, V};
use hadal_ir::ops::{Broadcast, Iota, Reshape, Slice};
use hadal_ir::{Dim, Op};

/// The laws of this file.
pub const RULES: &[Rule] = &[
    Rule {
        name: "slice-of-map",
        law: "slice(f(x, y)) = f(slice(x), slice(y)), for elementwise f",
        class: Exact,
        example: "func @f(%x: f32[A, 4], %y: f32[A, 4]) -> (z: f32[A, 2]) {
            %0 = sub %x, %y : f32[A, 4]
            %1 = slice %0 {axis = 1, start = 1, len = 2} : f32[A, 2]
            return %1 }",
        apply: |site, op, args| {
            along(site, op, args, |s, op, x| {
                matches!(op, Op::Map(_) | Op::Cast(_)).then(|| vec![Some(s.axis); x.len()])
            })
        },
    },
    Rule {
        name: "slice-of-norm",
        law: "slice(rms_norm(x, w)) = rms_norm(slice(x), w), along another axis than the last",
        class: Exact,
        example: "func @f(%x: f32[A+1, 4], %w: f32[4]) -> (z: f32[1, 4]) {
            %0 = rms_norm %x, %w {eps = 0.001} : f32[A+1, 4]
            %1 = slice %0 {axis = 0, start = A, len = 1} : f32[1, 4]
            return %1 }",
        apply: |site, op, args| {
            along(site, op, args, |s, op, x| {
                (matches!(op, Op::RmsNorm(_)) && is_row(site, s, x)).then(|| vec![Some(s.axis), None])
            })
        },
    },
    Rule {
        name: "slice-of-softmax",
        law: "slice(softmax(x)) = softmax(slice(x)), along another axis than the last",
        class: Exact,
        example: "func @f(%x: f32[A+1, 4]) -> (z: f32[1, 4]) {
            %0 = softmax %x : f32[A+1, 4]
            %1 = slice %0 {axis = 0, start = A, len = 1} : f32[1, 4]
            return %1 }",
        apply: |site, op, args| {
            along(site, op, args, |s, op, x| {
                (matches!(op, Op::Softmax(_)) && is_row(site, s, x)).then(|| vec![Some(s.axis)])
            })
        },
    },
    Rule {
        name: "slice-of-choice",
        law: "slice(top_k(x)) = top_k(slice(x)), and so for member, along another axis than the last",
        class: Exact,
        example: "func @f(%x: f32[A+1, 4]) -> (z: i32[1, 2], m: bool[1, 4]) {
            %0 = top_k %x {k = 2} : i32[A+1, 2]
            %1 = slice %0 {axis = 0, start = A, len = 1} : i32[1, 2]
            %2 = member %0 {len = 4} : bool[A+1, 4]
            %3 = slice %2 {axis = 0, start = A, len = 1} : bool[1, 4]
            return %1, %3 }",
        apply: |site, op, args| {
            along(site, op, args, |s, op, x| {
                (matches!(op, Op::TopK(_) | Op::Member(_)) && is_row(site, s, x)).then(|| vec![Some(s.axis)])
            })
        },
    },
    Rule {
        name: "slice-of-rope",
        law: "slice(rope(x, cos, sin)) = rope(slice(x), slice(cos), slice(sin)); heads turn by the same angles",
        class: Exact,
        example:
            "func @f(%x: f32[A+1, 3, 4], %c: f32[A+1, 2], %s: f32[A+1, 2]) -> (y: f32[1, 3, 4], z: f32[A+1, 1, 4]) {
            %0 = rope %x, %c, %s {interleaved = true} : f32[A+1, 3, 4]
            %1 = slice %0 {axis = 0, start = A, len = 1} : f32[1, 3, 4]
            %2 = slice %0 {axis = 1, start = 1, len = 1} : f32[A+1, 1, 4]
            return %1, %2 }",
        apply: |site, op, args| {
            along(site, op, args, |s, op, x| {
                let table = (s.axis == 0).then_some(0);
                (matches!(op, Op::Rope(_)) && is_row(site, s, x)).then(|| vec![Some(s.axis), table, table])
            })
        },
    },
    Rule {
        name: "slice-of-mask",
        law: "slice(causal_mask(x)) = causal_mask(slice(x)), for the last queries or along an axis it does not look at",
        class: Exact,
        example: "func @f(%x: f32[2, A+2, B]) -> (y: f32[2, 2, B], z: f32[1, A+2, B]) {
            %0 = causal_mask %x {query = 1, key = 2} : f32[2, A+2, B]
            %1 = slice %0 {axis = 1, start = A, len = 2} : f32[2, 2, B]
            %2 = slice %0 {axis = 0, start = 1, len = 1} : f32[1, A+2, B]
            return %1, %2 }",
        apply: |site, op, args| {
            along(site, op, args, |s, op, x| {
                let Op::CausalMask(m) = op else { return None };
                let last = s.step == 1 && s.start.clone() + s.len.clone() == site.ty(x[0]).shape[s.axis];
                (s.axis != m.key && (s.axis != m.query || last)).then(|| vec![Some(s.axis)])
            })
        },
    },
    Rule {
        name: "slice-of-gather",
        law: "slice(gather(x, i)) = gather(x, slice(i)), or gather(slice(x), i), whichever has the axis",
        class: Exact,
        example: "func @f(%x: f32[A, 3, 5], %i: i32[A, 2]) -> (y: f32[A, 1, 5], z: f32[A, 2, 2], u: f32[1, 2, 5]) {
            %0 = gather %x, %i {axis = 1, batch = 1} : f32[A, 2, 5]
            %1 = slice %0 {axis = 1, start = 1, len = 1} : f32[A, 1, 5]
            %2 = slice %0 {axis = 2, start = 2, len = 2} : f32[A, 2, 2]
            %3 = slice %0 {axis = 0, start = A-1, len = 1} : f32[1, 2, 5]
            return %1, %2, %3 }",
        apply: |site, op, args| {
            along(site, op, args, |s, op, x| {
                let Op::Gather(g) = op else { return None };
                let chosen = site.ty(x[1]).rank() - g.batch;
                Some(match s.axis {
                    axis if axis < g.batch => vec![Some(axis), Some(axis)],
                    axis if axis < g.axis => vec![Some(axis), None],
                    axis if axis < g.axis + chosen => vec![None, Some(axis - g.axis + g.batch)],
                    axis => vec![Some(axis - chosen + 1), None],
                })
            })
        },
    },
    Rule {
        name: "slice-of-dequantize",
        law: "slice(dequantize(q, s)) = dequantize(slice(q), slice(s)), along an axis with a scale for each element",
        class: Exact,
        example: "func @f(%q: f8e4m3[A+1, 4], %s: f32[A+1, 2]) -> (y: f32[1, 4]) {
            %0 = dequantize %q, %s {block = [1, 2]} : f32[A+1, 4]
            %1 = slice %0 {axis = 0, start = A, len = 1} : f32[1, 4]
            return %1 }",
        apply: |site, op, args| {
            along(site, op, args, |s, op, x| {
                let Op::Dequantize(d) = op else { return None };
                (d.block[s.axis] == 1).then(|| vec![Some(s.axis); x.len()])
            })
        },
    },
    Rule {
        name: "slice-of-reduce",
        law: "slice(reduce(x)) = reduce(slice(x))",
        class: Exact,
        example: "func @f(%x: f32[2, A+1, 3, 4]) -> (y: f32[1, 4]) {
            %0 = reduce %x {kind = max, axes = [0, 2]} : f32[A+1, 4]
            %1 = slice %0 {axis = 0, start = A, len = 1} : f32[1, 4]
            return %1 }",
        apply: |site, op, args| {
            along(site, op, args, |s, op, x| {
                let Op::Reduce(r) = op else { return None };
                let mut kept = (0..site.ty(x[0]).rank()).filter(|a| !r.axes.contains(a));
                Some(vec![Some(kept.nth(s.axis)?)])
            })
        },
    },
    Rule {
        name: "slice-across-concat",
        law: "slice(concat(x, y)) = concat(slice(x), slice(y)), along another axis than the joined one",
        class: Exact,
        example: "func @f(%x: f32[A+1, 2], %y: f32[A+1, B]) -> (z: f32[1, B+2]) {
            %0 = concat %x, %y {axis = 1} : f32[A+1, B+2]
            %1 = slice %0 {axis = 0, start = A, len = 1} : f32[1, B+2]
            return %1 }",
        apply: |site, op, args| {
            along(site, op, args, |s, op, x| {
                let Op::Concat(c) = op else { return None };
                (c.axis != s.axis).then(|| vec![Some(s.axis); x.len()])
            })
        },
    },
    Rule {
        name: "slice-of-transpose",
        law: "slice(transpose(x)) = transpose(slice(x))",
        class: Exact,
        example: "func @f(%x: f32[2, A+1, 3]) -> (z: f32[3, 2, 1]) {
            %0 = transpose %x {perm = [2, 0, 1]} : f32[3, 2, A+1]
            %1 = slice %0 {axis = 2, start = A, len = 1} : f32[3, 2, 1]
            return %1 }",
        apply: |site, op, args| {
            along(site, op, args, |s, op, _| match op {
                Op::Transpose(t) => Some(vec![Some(t.perm[s.axis])]),
                _ => None,
            })
        },
    },
    Rule {
        name: "slice-of-reshape",
        law: "slice(reshape(x)) = reshape(slice(x)), along an axis that all before it or all behind it have in common",
        class: Exact,
        example: "func @f(%x: f32[A+1, 6, 2]) -> (y: f32[1, 2, 3, 2], z: f32[A+1, 2, 3, 1]) {
            %0 = reshape %x {shape = [A+1, 2, 3, 2]} : f32[A+1, 2, 3, 2]
            %1 = slice %0 {axis = 0, start = A, len = 1} : f32[1, 2, 3, 2]
            %2 = slice %0 {axis = 3, start = 1, len = 1} : f32[A+1, 2, 3, 1]
            return %1, %2 }",
        apply: |site, op, args| {
            changed(site, op, args, |s, op, x| {
                let Op::Reshape(r) = op else { return None };
                let from = &site.ty(x[0]).shape;
                let axis = kept_axis(from, &r.shape, s.axis)?;
                let mut shape = r.shape.clone();
                shape[s.axis] = s.len.clone();
                Some((Reshape { shape }.into(), vec![Some(axis)]))
            })
        },
    },
    Rule {
        name: "slice-of-repeated",
        law: "slice(broadcast(x)) = broadcast(slice(x)), along an axis of x",
        class: Exact,
        example: "func @f(%x: f32[A+1, 2]) -> (z: f32[1, 3, 2]) {
            %0 = broadcast %x {shape = [A+1, 3, 2], dims = [0, 2]} : f32[A+1, 3, 2]
            %1 = slice %0 {axis = 0, start = A, len = 1} : f32[1, 3, 2]
            return %1 }",
        apply: |site, op, args| {
            changed(site, op, args, |s, op, _| {
                let Op::Broadcast(b) = op else { return None };
                let axis = b.dims.iter().position(|d| *d == s.axis)?;
                let mut shape = b.shape.clone();
                shape[s.axis] = s.len.clone();
                Some((Broadcast { shape, dims: b.dims.clone() }.into(), vec![Some(axis)]))
            })
        },
    },
    Rule {
        name: "slice-of-iota",
        law: "slice(iota(n, from p)) = iota(m, from p + i), for m in a row from i on",
        class: Exact,
        example: "func @f() -> (z: i32[B]) {
            %0 = iota {len = B+3, start = P} : i32[B+3]
            %1 = slice %0 {axis = 0, start = 2, len = B} : i32[B]
            return %1 }",
        apply: |site, op, args| {
            changed(site, op, args, |s, op, _| {
                let Op::Iota(i) = op else { return None };
                let start = i.start.clone() + s.start.clone();
                (s.step == 1).then(|| (Iota { len: s.len.clone(), start }.into(), vec![]))
            })
        },
    },
];

/// Whether a slice is along another axis than the last of the first operand.
fn is_row(site: &dyn Site, s: &Slice, x: &[V]) -> bool {
    s.axis + 1 < site.ty(x[0]).rank()
}

/// What a slice of each form of its operand is, where `axes` says along which axis each operand is cut (or not at all)
/// for the op to give that part.
fn along(
    site: &dyn Site,
    op: &Op,
    args: &[V],
    axes: impl Fn(&Slice, &Op, &[V]) -> Option<Vec<Option<usize>>>,
) -> Vec<Term> {
    changed(site, op, args, |s, op, x| Some((op.clone(), axes(s, op, x)?)))
}

/// The same where the op changes too.
fn changed(
    site: &dyn Site,
    op: &Op,
    args: &[V],
    part: impl Fn(&Slice, &Op, &[V]) -> Option<(Op, Vec<Option<usize>>)>,
) -> Vec<Term> {
    let Op::Slice(s) = op else { return vec![] };
    each(site, args[0], |inner, operands| {
        let (op, axes) = part(s, inner, operands)?;
        let cut = |(v, axis): (&V, Option<usize>)| match axis {
            Some(axis) => Term::new(Slice { axis, ..s.clone() }, [Term::Old(*v)]),
            None => Term::Old(*v),
        };
        Some(Term::new(op, operands.iter().zip(axes).map(cut)))
    })
}

/// The axis of `from` that is `axis` of `to`, where the two have all axes up to it, or all from it on, in common.
fn kept_axis(from: &[Dim], to: &[Dim], axis: usize) -> Option<usize> {
    if from.get(..=axis) == Some(&to[..=axis]) {
        return Some(axis);
    }
    let behind = to.len() - axis;
    let at = from.len().checked_sub(behind)?;
    (from[at..] == to[axis..]).then_some(at)
}
