//! Laws of norms, rotations and scales around products.
//!
//! A constant factor, a norm's weight and a rotation by the query's own angles are linear, so they may stand on either
//! side of a product: in the weights, on the smaller of operand and result, or where attention looks for its scale.

use super::elementwise::repeated;
use super::layout::each;
use crate::rule::NumericClass::Reassociating;
use crate::rule::{Rule, Site, Term, V};
use hadal_ir::attr::Real;
use hadal_ir::ops::map::MapFn;
use hadal_ir::ops::{Broadcast, Constant, Contract, Map, RmsNorm};
use hadal_ir::{DType, Dim, Op};

/// The laws of this file.
pub const RULES: &[Rule] = &[
    Rule {
        name: "norm-weight-into-product",
        law: "contract(rms_norm(x, g), W) = contract(rms_norm(x, 1), W · g), with W · g computed when compiling",
        class: Reassociating,
        example: "func @f(%x: f32[A, 4]) -> (y: f32[A, 3]) {
            weight %g = \"g\" : bf16[4]
            weight %w = \"w\" : bf16[3, 4]
            %0 = rms_norm %x, %g {eps = 0.1} : f32[A, 4]
            %1 = contract %0, %w {spec = \"td,fd->tf\"} : f32[A, 3]
            return %1 }",
        apply: fold_norm,
    },
    Rule {
        name: "scale-out-of-product",
        law: "contract(x · c, y) = contract(x, y) · c, for a constant c",
        class: Reassociating,
        example: "func @f(%x: f32[A, B], %y: f32[C, B]) -> (z: f32[A, C]) {
            %0 = constant {value = 0.3, dtype = f32} : f32[]
            %1 = broadcast %0 {shape = [A, B], dims = []} : f32[A, B]
            %2 = mul %x, %1 : f32[A, B]
            %3 = contract %2, %y {spec = \"td,fd->tf\"} : f32[A, C]
            return %3 }",
        apply: |site, op, args| {
            let Op::Contract(c) = op else { return vec![] };
            let mut out = Vec::new();
            for (i, a) in args.iter().enumerate() {
                for (x, factor) in scaled(site, *a) {
                    let operand = |(j, v): (usize, &V)| Term::Old(if i == j { x } else { *v });
                    let product = Term::new(c.clone(), args.iter().enumerate().map(operand));
                    out.extend(times(site, product, factor));
                }
            }
            out
        },
    },
    Rule {
        name: "scale-into-product",
        law: "contract(x, y) · c = contract(x · c, y), for a constant c",
        class: Reassociating,
        example: "func @f(%x: f32[A, B], %y: f32[C, B]) -> (z: f32[A, C]) {
            %0 = contract %x, %y {spec = \"td,fd->tf\"} : f32[A, C]
            %1 = constant {value = 0.3, dtype = f32} : f32[]
            %2 = broadcast %1 {shape = [A, C], dims = []} : f32[A, C]
            %3 = mul %0, %2 : f32[A, C]
            return %3 }",
        apply: |site, op, args| {
            let mut out = Vec::new();
            for (product, factor) in scaled_by(site, op, args) {
                for (inner, operands) in site.forms(product) {
                    let Op::Contract(c) = inner else { continue };
                    for i in 0..operands.len() {
                        let operand = |(j, v): (usize, &V)| match i == j {
                            true => times(site, Term::Old(*v), factor),
                            false => Some(Term::Old(*v)),
                        };
                        let operands: Option<Vec<Term>> = operands.iter().enumerate().map(operand).collect();
                        out.extend(operands.map(|o| Term::new(c.clone(), o)));
                    }
                }
            }
            out
        },
    },
    Rule {
        name: "scale-through-view",
        law: "view(x · c) = view(x) · c, for a constant c",
        class: Reassociating,
        example: "func @f(%x: f32[A, 4]) -> (y: f32[A, 2, 2]) {
            %0 = constant {value = 0.3, dtype = f32} : f32[]
            %1 = broadcast %0 {shape = [A, 4], dims = []} : f32[A, 4]
            %2 = mul %x, %1 : f32[A, 4]
            %3 = reshape %2 {shape = [A, 2, 2]} : f32[A, 2, 2]
            return %3 }",
        apply: |site, op, args| {
            let (Op::Reshape(_) | Op::Transpose(_) | Op::Slice(_)) = op else { return vec![] };
            let of = |(x, factor)| times(site, Term::new(op.clone(), [Term::Old(x)]), factor);
            scaled(site, args[0]).into_iter().filter_map(of).collect()
        },
    },
    Rule {
        name: "scale-out-of-concat",
        law: "concat(x · c, y · c) = concat(x, y) · c, for a constant c",
        class: Reassociating,
        example: "func @f(%x: f32[A, 2], %y: f32[A, B]) -> (z: f32[A, B+2]) {
            %0 = constant {value = 0.3, dtype = f32} : f32[]
            %1 = broadcast %0 {shape = [A, 2], dims = []} : f32[A, 2]
            %2 = mul %x, %1 : f32[A, 2]
            %3 = broadcast %0 {shape = [A, B], dims = []} : f32[A, B]
            %4 = mul %y, %3 : f32[A, B]
            %5 = concat %2, %4 {axis = 1} : f32[A, B+2]
            return %5 }",
        apply: |site, op, args| {
            let Op::Concat(_) = op else { return vec![] };
            let mut out = Vec::new();
            for (_, factor) in scaled(site, args[0]) {
                let part = |v: &V| scaled(site, *v).into_iter().find(|(_, c)| *c == factor).map(|(x, _)| Term::Old(x));
                let parts: Option<Vec<Term>> = args.iter().map(part).collect();
                out.extend(parts.and_then(|p| times(site, Term::new(op.clone(), p), factor)));
            }
            out
        },
    },
    Rule {
        name: "scale-through-rope",
        law: "rope(x · c) = rope(x) · c, for a constant c, both ways",
        class: Reassociating,
        example: "func @f(%x: f32[A, 4], %c: f32[A, 2], %s: f32[A, 2]) -> (y: f32[A, 4]) {
            %0 = constant {value = 0.3, dtype = f32} : f32[]
            %1 = broadcast %0 {shape = [A, 4], dims = []} : f32[A, 4]
            %2 = mul %x, %1 : f32[A, 4]
            %3 = rope %2, %c, %s {interleaved = true} : f32[A, 4]
            %4 = mul %3, %1 : f32[A, 4]
            return %4 }",
        apply: |site, op, args| {
            if let Op::Rope(_) = op {
                let rope = |x| Term::new(op.clone(), [Term::Old(x), Term::Old(args[1]), Term::Old(args[2])]);
                let of = |(x, factor)| times(site, rope(x), factor);
                return scaled(site, args[0]).into_iter().filter_map(of).collect();
            }
            let mut out = Vec::new();
            for (turned, factor) in scaled_by(site, op, args) {
                out.extend(each(site, turned, |inner, operands| {
                    let Op::Rope(r) = inner else { return None };
                    let x = times(site, Term::Old(operands[0]), factor)?;
                    Some(Term::new(r.clone(), [x, Term::Old(operands[1]), Term::Old(operands[2])]))
                }));
            }
            out
        },
    },
    Rule {
        name: "rope-through-product",
        law: "Σ_s p[t, s] · rope(y)[t, s, :] = rope(Σ_s p[t, s] · y[t, s, :]), turned by the angles of t, both ways",
        class: Reassociating,
        example: "func @f(%p: f32[T, A, B], %y: f32[T, B, 4], %c: f32[T, 2], %s: f32[T, 2]) -> (z: f32[T, A, 4]) {
            %0 = rope %y, %c, %s {interleaved = true} : f32[T, B, 4]
            %1 = contract %p, %0 {spec = \"ths,tsd->thd\"} : f32[T, A, 4]
            return %1 }",
        apply: |site, op, args| match op {
            Op::Contract(c) => turn_after(site, c, args),
            Op::Rope(_) => each(site, args[0], |inner, operands| turn_before(op, inner, operands, args)),
            _ => vec![],
        },
    },
];

/// The ways to see a value as another times a constant.
fn scaled(site: &dyn Site, v: V) -> Vec<(V, f64)> {
    site.forms(v).into_iter().flat_map(|(op, args)| scaled_by(site, op, &args)).collect()
}

/// The same for an op.
fn scaled_by(site: &dyn Site, op: &Op, args: &[V]) -> Vec<(V, f64)> {
    if !matches!(op, Op::Map(m) if m.f == MapFn::Mul) {
        return vec![];
    }
    let of = |(x, c): (usize, usize)| {
        let (factor, dtype) = repeated(site, args[c])?;
        (dtype == DType::F32 && repeated(site, args[x]).is_none()).then_some((args[x], factor))
    };
    [(0, 1), (1, 0)].into_iter().filter_map(of).collect()
}

/// A term times a constant; `None` for what is not f32.
fn times(site: &dyn Site, x: Term, factor: f64) -> Option<Term> {
    let ty = x.ty(site)?;
    let scalar = Constant { values: vec![Real(factor)], scalar: true, dtype: DType::F32 };
    let factor = Term::new(Broadcast { shape: ty.shape.clone(), dims: vec![] }, [Term::new(scalar, [])]);
    (ty.dtype == DType::F32).then(|| Term::new(Map { f: MapFn::Mul }, [x, factor]))
}

fn fold_norm(site: &dyn Site, op: &Op, args: &[V]) -> Vec<Term> {
    let Op::Contract(c) = op else { return vec![] };
    let ([a, b], [x, w]) = (&c.inputs[..], args) else { return vec![] };
    let mut out = Vec::new();
    for (norm, norm_letters, weight, weight_letters, swapped) in [(*x, a, *w, b, false), (*w, b, *x, a, true)] {
        let Some(last) = norm_letters.chars().last().filter(|l| weight_letters.contains(*l)) else { continue };
        for (inner, operands) in site.forms(norm) {
            let Op::RmsNorm(RmsNorm { eps }) = inner else { continue };
            if site.constant(norm) || repeated(site, operands[1]).is_some() {
                continue;
            }
            if !site.constant(weight) || !site.constant(operands[1]) {
                site.miss(&|| "the other operand of the product does not follow from weights alone".to_owned());
                continue;
            }
            let size = site.ty(norm).shape.last().cloned().into_iter().collect::<Vec<Dim>>();
            let one = Constant { values: vec![Real(1.0)], scalar: true, dtype: DType::F32 };
            let ones = Term::new(Broadcast { shape: size, dims: vec![] }, [Term::new(one, [])]);
            let plain = Term::new(RmsNorm { eps: *eps }, [Term::Old(operands[0]), ones]);
            let inputs = vec![weight_letters.clone(), last.to_string()];
            let folded = Contract { inputs, output: weight_letters.clone() };
            let folded = Term::new(folded, [Term::Old(weight), Term::Old(operands[1])]);
            out.push(Term::new(c.clone(), if swapped { [folded, plain] } else { [plain, folded] }));
        }
    }
    out
}

/// Whether rotating the operand with these letters is rotating the result: one row of angles for each of the first
/// axis, pairs along the last, and neither is summed or shared out otherwise.
fn turns_alike(c: &Contract, i: usize) -> bool {
    let (letters, output) = (&c.inputs[i], &c.output);
    let ends = |s: &str| (s.chars().next(), s.chars().last());
    let elsewhere = |l: char| c.inputs.iter().enumerate().any(|(j, s)| j != i && s.contains(l));
    letters.len() >= 2 && ends(letters) == ends(output) && ends(letters).1.is_some_and(|l| !elsewhere(l))
}

fn turn_after(site: &dyn Site, c: &Contract, args: &[V]) -> Vec<Term> {
    let mut out = Vec::new();
    for (i, a) in args.iter().enumerate().filter(|(i, _)| turns_alike(c, *i)) {
        out.extend(each(site, *a, |inner, operands| {
            let Op::Rope(rope) = inner else { return None };
            let operand = |(j, v): (usize, &V)| Term::Old(if i == j { operands[0] } else { *v });
            let product = Term::new(c.clone(), args.iter().enumerate().map(operand));
            Some(Term::new(rope.clone(), [product, Term::Old(operands[1]), Term::Old(operands[2])]))
        }));
    }
    out
}

fn turn_before(op: &Op, inner: &Op, operands: &[V], args: &[V]) -> Option<Term> {
    let Op::Contract(c) = inner else { return None };
    let i = (0..operands.len()).find(|i| turns_alike(c, *i))?;
    let operand = |(j, v): (usize, &V)| match i == j {
        true => Term::new(op.clone(), [Term::Old(*v), Term::Old(args[1]), Term::Old(args[2])]),
        false => Term::Old(*v),
    };
    Some(Term::new(c.clone(), operands.iter().enumerate().map(operand)))
}
