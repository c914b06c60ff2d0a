//! Laws of elementwise functions, casts and masks.

use super::layout::{each, some};
use crate::rule::NumericClass::Exact;
use crate::rule::{Rule, Site, Term, V};
use hadal_ir::attr::Real;
use hadal_ir::ops::map::MapFn;
use hadal_ir::ops::{Cast, Constant, Gather, Slice};
use hadal_ir::{DType, Op};

/// The laws of this file.
pub const RULES: &[Rule] = &[
    Rule {
        name: "cast-same",
        law: "cast(x) = x, where the format is that of x",
        class: Exact,
        example: "func @f(%x: bf16[A]) -> (y: bf16[A]) {
            %0 = cast %x {to = bf16} : bf16[A]
            return %0 }",
        apply: |site, op, args| {
            let Op::Cast(c) = op else { return vec![] };
            some((site.ty(args[0]).dtype == c.to).then_some(Term::Old(args[0])))
        },
    },
    Rule {
        name: "cast-of-widened",
        law: "cast(widen(x)) = cast(x)",
        class: Exact,
        example: "func @f(%x: bf16[A]) -> (y: bf16[A]) {
            %0 = cast %x {to = f32} : f32[A]
            %1 = cast %0 {to = bf16} : bf16[A]
            return %1 }",
        apply: |site, op, args| {
            let Op::Cast(_) = op else { return vec![] };
            each(site, args[0], |inner, x| {
                let Op::Cast(inner) = inner else { return None };
                widens(site.ty(x[0]).dtype, inner.to).then(|| Term::new(op.clone(), [Term::Old(x[0])]))
            })
        },
    },
    Rule {
        name: "cast-after-gather",
        law: "gather(widen(x), i) = widen(gather(x, i))",
        class: Exact,
        example: "func @f(%x: bf16[A, 4], %i: i32[B]) -> (y: f32[B, 4]) {
            %0 = cast %x {to = f32} : f32[A, 4]
            %1 = gather %0, %i {axis = 0} : f32[B, 4]
            return %1 }",
        apply: |site, op, args| {
            let Op::Gather(Gather { .. }) = op else { return vec![] };
            each(site, args[0], |inner, x| {
                let Op::Cast(c) = inner else { return None };
                if !widens(site.ty(x[0]).dtype, c.to) {
                    return None;
                }
                let rows = Term::new(op.clone(), [Term::Old(x[0]), Term::Old(args[1])]);
                Some(Term::new(c.clone(), [rows]))
            })
        },
    },
    Rule {
        name: "cast-after-slice",
        law: "slice(cast(x)) = cast(slice(x))",
        class: Exact,
        example: "func @f(%x: bf16[A, 4]) -> (y: f32[A, 2]) {
            %0 = cast %x {to = f32} : f32[A, 4]
            %1 = slice %0 {axis = 1, start = 0, len = 2} : f32[A, 2]
            return %1 }",
        apply: |site, op, args| {
            let Op::Slice(Slice { .. }) = op else { return vec![] };
            each(site, args[0], |inner, x| {
                let Op::Cast(Cast { .. }) = inner else { return None };
                Some(Term::new(inner.clone(), [Term::new(op.clone(), [Term::Old(x[0])])]))
            })
        },
    },
    Rule {
        name: "fold-constants",
        law: "f(c, d) is a constant, where c and d are scalars",
        class: Exact,
        example: "func @f() -> (y: f32[]) {
            %0 = constant {value = 3.0, dtype = f32} : f32[]
            %1 = constant {value = 0.5, dtype = f32} : f32[]
            %2 = mul %0, %1 : f32[]
            return %2 }",
        apply: |site, op, args| {
            let Op::Map(m) = op else { return vec![] };
            let values: Option<Vec<(f64, DType)>> = args.iter().map(|a| scalar(site, *a)).collect();
            let Some(values) = values else { return vec![] };
            some(fold(m.f, &values).map(|c| Term::new(c, [])))
        },
    },
    Rule {
        name: "neutral-element",
        law: "x + 0 = x - 0 = x · 1 = x / 1 = x, up to the sign of a zero",
        class: Exact,
        example: "func @f(%x: f32[A]) -> (y: f32[A]) {
            %0 = constant {value = 1.0, dtype = f32} : f32[]
            %1 = broadcast %0 {shape = [A], dims = []} : f32[A]
            %2 = mul %x, %1 : f32[A]
            return %2 }",
        apply: |site, op, args| {
            let Op::Map(m) = op else { return vec![] };
            let (neutral, either) = match m.f {
                MapFn::Add => (0.0, true),
                MapFn::Sub => (0.0, false),
                MapFn::Mul => (1.0, true),
                MapFn::Div => (1.0, false),
                _ => return vec![],
            };
            let is = |v: V| repeated(site, v).is_some_and(|(c, _)| c == neutral);
            if is(args[1]) {
                vec![Term::Old(args[0])]
            } else {
                some((either && is(args[0])).then_some(Term::Old(args[1])))
            }
        },
    },
    Rule {
        name: "one-query-sees-all",
        law: "causal_mask(x) = x, where there is one query",
        class: Exact,
        example: "func @f(%x: f32[2, 1, P+1]) -> (y: f32[2, 1, P+1]) {
            %0 = causal_mask %x {query = 1, key = 2} : f32[2, 1, P+1]
            return %0 }",
        apply: |site, op, args| {
            let Op::CausalMask(m) = op else { return vec![] };
            some(site.ty(args[0]).shape[m.query].is(1).then_some(Term::Old(args[0])))
        },
    },
];

/// Whether every value of `from` is one of `to`.
pub(crate) fn widens(from: DType, to: DType) -> bool {
    use DType::*;
    let rank = |d| match d {
        F8E4M3 | F8E8M0 | F4E2M1 => Some(0),
        F16 | BF16 => Some(1),
        F32 => Some(2),
        F64 => Some(3),
        _ => None,
    };
    // An e8m0 reaches further than an f16.
    let fits = !(from == F8E8M0 && to == F16);
    from == to || (fits && matches!((rank(from), rank(to)), (Some(a), Some(b)) if a < b))
}

/// The value of a scalar constant.
fn scalar(site: &dyn Site, v: V) -> Option<(f64, DType)> {
    site.forms(v).into_iter().find_map(|(op, _)| match op {
        Op::Constant(c) if c.scalar => Some((c.values[0].0, c.dtype)),
        _ => None,
    })
}

/// The value of a scalar constant, repeated or not.
pub(crate) fn repeated(site: &dyn Site, v: V) -> Option<(f64, DType)> {
    let from_broadcast = |(op, args): (&Op, Vec<V>)| match op {
        Op::Broadcast(_) => scalar(site, args[0]),
        _ => None,
    };
    scalar(site, v).or_else(|| site.forms(v).into_iter().find_map(from_broadcast))
}

/// The function on constants, where the reals of f32 give an f32.
fn fold(f: MapFn, args: &[(f64, DType)]) -> Option<Constant> {
    let all = |d: DType| args.iter().all(|(_, a)| *a == d);
    if !all(DType::F32) || f.compares() || f == MapFn::Select || f.logical() {
        return None;
    }
    let value = f.real(args[0].0, args.get(1).map_or(0.0, |a| a.0));
    Some(Constant { values: vec![Real(value)], scalar: true, dtype: DType::F32 })
}
