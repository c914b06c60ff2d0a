//! Laws of views: what only renames, repeats or leaves out elements.

use crate::rule::NumericClass::Exact;
use crate::rule::{Rule, Site, Term, V};
use hadal_ir::ops::{Broadcast, Concat, Reshape, Slice, Transpose};
use hadal_ir::{Dim, Op};

/// The laws of this file.
pub const RULES: &[Rule] = &[
    Rule {
        name: "reshape-same",
        law: "reshape(x) = x, where the shape is that of x",
        class: Exact,
        example: "func @f(%x: f32[A, 2]) -> (y: f32[A, 2]) {
            %0 = reshape %x {shape = [A, 2]} : f32[A, 2]
            return %0 }",
        apply: |site, op, args| {
            let Op::Reshape(r) = op else { return vec![] };
            some((site.ty(args[0]).shape == r.shape).then_some(Term::Old(args[0])))
        },
    },
    Rule {
        name: "reshape-reshape",
        law: "reshape(reshape(x)) = reshape(x)",
        class: Exact,
        example: "func @f(%x: f32[A, 4]) -> (y: f32[2, A, 2]) {
            %0 = reshape %x {shape = [A, 2, 2]} : f32[A, 2, 2]
            %1 = reshape %0 {shape = [2, A, 2]} : f32[2, A, 2]
            return %1 }",
        apply: |site, op, args| {
            let Op::Reshape(_) = op else { return vec![] };
            each(site, args[0], |inner, x| {
                matches!(inner, Op::Reshape(_)).then(|| Term::new(op.clone(), [Term::Old(x[0])]))
            })
        },
    },
    Rule {
        name: "transpose-same",
        law: "transpose(x) = x, where the order stays",
        class: Exact,
        example: "func @f(%x: f32[A, 2]) -> (y: f32[A, 2]) {
            %0 = transpose %x {perm = [0, 1]} : f32[A, 2]
            return %0 }",
        apply: |_, op, args| {
            let Op::Transpose(t) = op else { return vec![] };
            some(t.perm.is_sorted().then_some(Term::Old(args[0])))
        },
    },
    Rule {
        name: "transpose-transpose",
        law: "transpose(transpose(x)) = transpose(x)",
        class: Exact,
        example: "func @f(%x: f32[A, B, 2]) -> (y: f32[2, B, A]) {
            %0 = transpose %x {perm = [1, 2, 0]} : f32[B, 2, A]
            %1 = transpose %0 {perm = [1, 0, 2]} : f32[2, B, A]
            return %1 }",
        apply: |site, op, args| {
            let Op::Transpose(outer) = op else { return vec![] };
            each(site, args[0], |inner, x| {
                let Op::Transpose(inner) = inner else { return None };
                let perm = outer.perm.iter().map(|p| inner.perm[*p]).collect();
                Some(Term::new(Transpose { perm }, [Term::Old(x[0])]))
            })
        },
    },
    Rule {
        name: "transpose-of-units",
        law: "transpose(x) = reshape(x), where only axes of size 1 move",
        class: Exact,
        example: "func @f(%x: f32[1, A, 2]) -> (y: f32[A, 1, 2]) {
            %0 = transpose %x {perm = [1, 0, 2]} : f32[A, 1, 2]
            return %0 }",
        apply: |site, op, args| {
            let Op::Transpose(t) = op else { return vec![] };
            let shape = &site.ty(args[0]).shape;
            let moved: Vec<usize> = t.perm.iter().copied().filter(|p| !shape[*p].is(1)).collect();
            let reshape = Reshape { shape: t.perm.iter().map(|p| shape[*p].clone()).collect() };
            some((moved.is_sorted() && !t.perm.is_sorted()).then(|| Term::new(reshape, [Term::Old(args[0])])))
        },
    },
    Rule {
        name: "broadcast-same",
        law: "broadcast(x) = x, where the shape is that of x",
        class: Exact,
        example: "func @f(%x: f32[A, 2]) -> (y: f32[A, 2]) {
            %0 = broadcast %x {shape = [A, 2], dims = [0, 1]} : f32[A, 2]
            return %0 }",
        apply: |_, op, args| {
            let Op::Broadcast(b) = op else { return vec![] };
            some((b.dims.len() == b.shape.len()).then_some(Term::Old(args[0])))
        },
    },
    Rule {
        name: "broadcast-broadcast",
        law: "broadcast(broadcast(x)) = broadcast(x)",
        class: Exact,
        example: "func @f(%x: f32[A]) -> (y: f32[B, 2, A]) {
            %0 = broadcast %x {shape = [B, A], dims = [1]} : f32[B, A]
            %1 = broadcast %0 {shape = [B, 2, A], dims = [0, 2]} : f32[B, 2, A]
            return %1 }",
        apply: |site, op, args| {
            let Op::Broadcast(outer) = op else { return vec![] };
            each(site, args[0], |inner, x| {
                let Op::Broadcast(inner) = inner else { return None };
                let dims = inner.dims.iter().map(|d| outer.dims[*d]).collect();
                Some(Term::new(Broadcast { shape: outer.shape.clone(), dims }, [Term::Old(x[0])]))
            })
        },
    },
    Rule {
        name: "broadcast-along-units",
        law: "broadcast(x) = reshape(x), where only axes of size 1 are added",
        class: Exact,
        example: "func @f(%x: f32[A]) -> (y: f32[1, A]) {
            %0 = broadcast %x {shape = [1, A], dims = [1]} : f32[1, A]
            return %0 }",
        apply: |_, op, args| {
            let Op::Broadcast(b) = op else { return vec![] };
            let added_are_units = (0..b.shape.len()).all(|i| b.dims.contains(&i) || b.shape[i].is(1));
            let changes = b.dims.len() < b.shape.len();
            let reshape = Reshape { shape: b.shape.clone() };
            some((added_are_units && changes).then(|| Term::new(reshape, [Term::Old(args[0])])))
        },
    },
    Rule {
        name: "slice-all",
        law: "slice(x) = x, where everything is taken",
        class: Exact,
        example: "func @f(%x: f32[A, 2]) -> (y: f32[A, 2]) {
            %0 = slice %x {axis = 0, start = 0, len = A} : f32[A, 2]
            return %0 }",
        apply: |site, op, args| {
            let Op::Slice(s) = op else { return vec![] };
            let all = s.start.is(0) && s.step == 1 && s.len == site.ty(args[0]).shape[s.axis];
            some(all.then_some(Term::Old(args[0])))
        },
    },
    Rule {
        name: "slice-slice",
        law: "slice(slice(x)) = slice(x), along one axis",
        class: Exact,
        example: "func @f(%x: f32[A, 12]) -> (y: f32[A, 2]) {
            %0 = slice %x {axis = 1, start = 2, len = 5, step = 2} : f32[A, 5]
            %1 = slice %0 {axis = 1, start = 1, len = 2, step = 2} : f32[A, 2]
            return %1 }",
        apply: |site, op, args| {
            let Op::Slice(outer) = op else { return vec![] };
            each(site, args[0], |inner, x| {
                let Op::Slice(inner) = inner else { return None };
                let step = i64::try_from(inner.step).ok().filter(|_| inner.axis == outer.axis)?;
                let start = inner.start.clone() + outer.start.clone() * step;
                let step = inner.step.checked_mul(outer.step)?;
                Some(Term::new(Slice { start, step, ..outer.clone() }, [Term::Old(x[0])]))
            })
        },
    },
    Rule {
        name: "slice-of-concat",
        law: "slice(concat(.., x, ..)) = slice(x), where the part lies in x",
        class: Exact,
        example: "func @f(%x: f32[A, 2], %y: f32[A, B]) -> (z: f32[A, B]) {
            %0 = concat %x, %y {axis = 1} : f32[A, B+2]
            %1 = slice %0 {axis = 1, start = 2, len = B} : f32[A, B]
            return %1 }",
        apply: |site, op, args| {
            let Op::Slice(s) = op else { return vec![] };
            each(site, args[0], |inner, parts| {
                let Op::Concat(c) = inner else { return None };
                let step = i64::try_from(s.step).ok().filter(|_| c.axis == s.axis)?;
                let last = s.start.clone() + (s.len.clone() - 1i64) * step;
                let mut begin = Dim::default();
                for part in parts {
                    let end = begin.clone() + site.ty(*part).shape[c.axis].clone();
                    let starts = at_most(&begin, &s.start);
                    if starts && at_most(&(last.clone() + 1i64), &end) {
                        let start = s.start.clone() - begin;
                        return Some(Term::new(Slice { start, ..s.clone() }, [Term::Old(*part)]));
                    }
                    begin = end;
                }
                None
            })
        },
    },
    Rule {
        name: "slice-of-broadcast",
        law: "slice(broadcast(x)) = broadcast(x), along a repeated axis",
        class: Exact,
        example: "func @f(%x: f32[A]) -> (y: f32[A, 2]) {
            %0 = broadcast %x {shape = [A, 8], dims = [0]} : f32[A, 8]
            %1 = slice %0 {axis = 1, start = 3, len = 2} : f32[A, 2]
            return %1 }",
        apply: |site, op, args| {
            let Op::Slice(s) = op else { return vec![] };
            each(site, args[0], |inner, x| {
                let Op::Broadcast(b) = inner else { return None };
                let mut b = b.clone();
                b.shape[s.axis] = s.len.clone();
                (!b.dims.contains(&s.axis)).then(|| Term::new(b, [Term::Old(x[0])]))
            })
        },
    },
    Rule {
        name: "concat-of-one",
        law: "concat(x) = x",
        class: Exact,
        example: "func @f(%x: f32[A]) -> (y: f32[A]) {
            %0 = concat %x {axis = 0} : f32[A]
            return %0 }",
        apply: |_, op, args| some((matches!(op, Op::Concat(_)) && args.len() == 1).then(|| Term::Old(args[0]))),
    },
    Rule {
        name: "concat-concat",
        law: "concat(concat(x, y), z) = concat(x, y, z), along one axis",
        class: Exact,
        example: "func @f(%x: f32[A], %y: f32[B]) -> (z: f32[A+2*B]) {
            %0 = concat %x, %y {axis = 0} : f32[A+B]
            %1 = concat %0, %y {axis = 0} : f32[A+2*B]
            return %1 }",
        apply: |site, op, args| {
            let Op::Concat(outer) = op else { return vec![] };
            for (i, a) in args.iter().enumerate() {
                for (inner, parts) in site.forms(*a) {
                    if inner == op {
                        let all = args[..i].iter().chain(&parts).chain(&args[i + 1..]);
                        return vec![Term::new(outer.clone(), all.map(|v| Term::Old(*v)))];
                    }
                }
            }
            vec![]
        },
    },
    Rule {
        name: "concat-of-slices",
        law: "concat(slice(x), slice(x)) = slice(x), where one part follows the other",
        class: Exact,
        example: "func @f(%x: f32[A, 8]) -> (y: f32[A, 5]) {
            %0 = slice %x {axis = 1, start = 1, len = 2} : f32[A, 2]
            %1 = slice %x {axis = 1, start = 3, len = 3} : f32[A, 3]
            %2 = concat %0, %1 {axis = 1} : f32[A, 5]
            return %2 }",
        apply: |site, op, args| {
            let Op::Concat(c) = op else { return vec![] };
            let part = |v: V| -> Option<(Slice, V)> {
                site.forms(v).into_iter().find_map(|(op, x)| match op {
                    Op::Slice(s) if s.axis == c.axis && s.step == 1 => Some((s.clone(), x[0])),
                    _ => None,
                })
            };
            for i in 1..args.len() {
                let (Some((a, x)), Some((b, y))) = (part(args[i - 1]), part(args[i])) else { continue };
                if x == y && a.start.clone() + a.len.clone() == b.start {
                    let joined = Slice { len: a.len.clone() + b.len, ..a };
                    let mut parts: Vec<Term> = args.iter().map(|v| Term::Old(*v)).collect();
                    parts.splice(i - 1..=i, [Term::new(joined, [Term::Old(x)])]);
                    return vec![Term::new(Concat { axis: c.axis }, parts)];
                }
            }
            vec![]
        },
    },
];

/// At most one term.
pub(crate) fn some(term: Option<Term>) -> Vec<Term> {
    term.into_iter().collect()
}

/// What `f` makes of each form of `v`.
pub(crate) fn each(site: &dyn Site, v: V, f: impl Fn(&Op, &[V]) -> Option<Term>) -> Vec<Term> {
    site.forms(v).into_iter().filter_map(|(op, args)| f(op, &args)).collect()
}

/// Whether `a ≤ b` for every value of the symbols, none of which is negative.
pub(crate) fn at_most(a: &Dim, b: &Dim) -> bool {
    let room = b.clone() - a.clone();
    room.constant() >= 0 && room.terms().iter().all(|(_, k)| *k >= 0)
}
