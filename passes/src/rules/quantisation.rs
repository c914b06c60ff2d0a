//! Laws of rounding to narrow formats: before or after rows are gathered.
//!
//! Quantising is no op of its own but a chain of maps, one maximum, a cast and a reshape. Each of them acts on rows one
//! by one, and so does what is said here of a single op: `quantise(gather(x)) = gather(quantise(x))` follows link by
//! link. Rows outside the gathered axis are zeros, so what makes something else of a zero needs numbers that are
//! inside.

use super::elementwise::repeated;
use super::layout::some;
use crate::rule::NumericClass::Reassociating;
use crate::rule::{Rule, Site, Term, V};
use hadal_ir::ops::map::MapFn;
use hadal_ir::ops::{Broadcast, Dequantize, Gather, Reduce, Reshape};
use hadal_ir::{DType, Dim, Op};

/// The laws of this file.
pub const RULES: &[Rule] = &[
    Rule {
        name: "function-before-gather",
        law: "f(gather(x, i), gather(y, i)) = gather(f(x, y), i), row by row; where i was chosen by scores, for finite ones",
        class: Reassociating,
        example: "func @f(%x: f32[A, 4], %y: f32[A, 4], %i: i32[B, C]) -> (z: f32[B, C, 4]) {
            %0 = gather %x, %i {axis = 0} : f32[B, C, 4]
            %1 = gather %y, %i {axis = 0} : f32[B, C, 4]
            %2 = sub %0, %1 : f32[B, C, 4]
            return %2 }",
        apply: |site, op, args| some(before(site, op, args)),
    },
    Rule {
        name: "function-after-gather",
        law: "gather(f(x, y), i) = f(gather(x, i), gather(y, i)), row by row; where i was chosen by scores, for finite ones",
        class: Reassociating,
        example: "func @f(%x: f32[A, 4], %y: f32[A, 4], %i: i32[B, C]) -> (z: f32[B, C, 4]) {
            %0 = sub %x, %y : f32[A, 4]
            %1 = gather %0, %i {axis = 0} : f32[B, C, 4]
            return %1 }",
        apply: |site, op, args| {
            let Op::Gather(Gather { axis: 0, batch: 0 }) = op else { return vec![] };
            let forms = site.forms(args[0]).into_iter();
            forms.filter_map(|(inner, operands)| after(site, inner, &operands, args)).collect()
        },
    },
];

/// A gather of computed rows: what it gathers, and by which numbers.
fn gathered(site: &dyn Site, v: V) -> Option<(V, V)> {
    site.forms(v).into_iter().find_map(|(op, args)| match op {
        Op::Gather(Gather { axis: 0, batch: 0 }) if !site.constant(args[0]) => Some((args[0], args[1])),
        _ => None,
    })
}

fn before(site: &dyn Site, op: &Op, args: &[V]) -> Option<Term> {
    let (rows, numbers) = args.iter().find_map(|a| gathered(site, *a))?;
    let (from, to) = (&site.ty(numbers).shape, &site.ty(rows).shape[..1]);
    let outer = row_op(op, from, to)?;
    let operand = |a: &V| match gathered(site, *a) {
        Some((x, i)) => (i == numbers && site.ty(x).shape[0] == to[0]).then_some(Term::Old(x)),
        None => Some(constant_like(site, *a, to, &site.ty(*a).shape[from.len()..])?),
    };
    let operands = args.iter().map(operand).collect::<Option<Vec<Term>>>()?;
    total(site, op, args, numbers, &to[0])?;
    let gather = Gather { axis: 0, batch: 0 };
    Some(Term::new(gather, [Term::New(outer, operands), Term::Old(numbers)]))
}

fn after(site: &dyn Site, inner: &Op, operands: &[V], args: &[V]) -> Option<Term> {
    let (rows, numbers) = (args[0], args[1]);
    if site.constant(rows) || operands.is_empty() {
        return None;
    }
    let (from, to) = (&site.ty(rows).shape[..1], &site.ty(numbers).shape);
    let outer = row_op(inner, from, to)?;
    let mut gathers = 0;
    let mut operand = |v: &V| match constant_like(site, *v, to, site.ty(*v).shape.get(1..)?) {
        Some(term) => Some(term),
        None if site.ty(*v).shape.first() == from.first() => {
            gathers += 1;
            Some(Term::new(Gather { axis: 0, batch: 0 }, [Term::Old(*v), Term::Old(numbers)]))
        }
        None => None,
    };
    let new = operands.iter().map(&mut operand).collect::<Option<Vec<Term>>>()?;
    if gathers == 0 {
        return None;
    }
    total(site, inner, operands, numbers, &from[0])?;
    Some(Term::New(outer, new))
}

/// A repeated constant with other leading axes.
fn constant_like(site: &dyn Site, v: V, leading: &[Dim], rest: &[Dim]) -> Option<Term> {
    repeated(site, v)?;
    let scalar = site.forms(v).into_iter().find_map(|(op, args)| match op {
        Op::Broadcast(b) if b.dims.is_empty() => Some(args[0]),
        _ => None,
    })?;
    let shape = leading.iter().chain(rest).cloned().collect();
    Some(Term::new(Broadcast { shape, dims: vec![] }, [Term::Old(scalar)]))
}

/// The same op with the leading axes `from` replaced by `to`, where it treats each of them on its own.
pub(super) fn row_op(op: &Op, from: &[Dim], to: &[Dim]) -> Option<Op> {
    let n = from.len();
    let moved = |axis: usize| axis.checked_sub(n).map(|a| a + to.len());
    let replaced = |shape: &[Dim]| shape.strip_prefix(from).map(|rest| [to, rest].concat());
    Some(match op {
        Op::Map(_) | Op::Cast(_) => op.clone(),
        Op::Reduce(r) => {
            let axes = r.axes.iter().map(|a| moved(*a)).collect::<Option<_>>()?;
            Reduce { kind: r.kind, axes }.into()
        }
        Op::Reshape(r) => Reshape { shape: replaced(&r.shape)? }.into(),
        Op::Broadcast(b) => {
            let kept = b.dims.len() >= n && b.dims[..n].iter().copied().eq(0..n);
            let dims = (0..to.len()).map(Some).chain(b.dims[n.min(b.dims.len())..].iter().map(|d| moved(*d)));
            let broadcast = Broadcast { shape: replaced(&b.shape)?, dims: dims.collect::<Option<_>>()? };
            kept.then_some(broadcast)?.into()
        }
        Op::Dequantize(d) => {
            let single = d.block.len() >= n && d.block[..n].iter().all(|b| *b == 1);
            let block = single.then(|| [&vec![1; to.len()], &d.block[n..]].concat())?;
            Dequantize { block }.into()
        }
        _ => return None,
    })
}

/// `Some` where both sides agree for every number: `f` keeps zeros, or the numbers are rows of `len`.
fn total(site: &dyn Site, op: &Op, args: &[V], numbers: V, len: &Dim) -> Option<()> {
    if keeps_zero(site, op, args) || inside(site, numbers, len) {
        return Some(());
    }
    site.miss(&|| {
        format!("`{}` of zero may not be zero, and row numbers may lie outside the {len} rows", op.mnemonic())
    });
    None
}

/// Whether the op makes zeros of zeros. Some formats have none.
fn keeps_zero(site: &dyn Site, op: &Op, args: &[V]) -> bool {
    use MapFn::*;
    let has_zero = |d: DType| d.round(0.0) == 0.0;
    if !args.iter().all(|a| has_zero(site.ty(*a).dtype)) {
        return false;
    }
    match op {
        Op::Map(m) => match m.f {
            Neg | Abs | Sqrt | Sin | Tanh | Erf | Floor => true,
            Add | Sub | Max | Min => args.iter().all(|a| repeated(site, *a).is_none_or(|(c, _)| c == 0.0)),
            Mul => args.iter().all(|a| repeated(site, *a).is_none_or(|(c, _)| c.is_finite())),
            _ => false,
        },
        Op::Reduce(r) => {
            let shape = &site.ty(args[0]).shape;
            r.axes.iter().all(|a| site.lower(&shape[*a]).is_some_and(|n| n >= 1))
        }
        Op::Cast(c) => has_zero(c.to),
        Op::Dequantize(_) => args.len() == 2,
        _ => true,
    }
}

/// Ops that are looked through for what is known of a value; classes may contain themselves.
const DEPTH: usize = 8;

/// Whether all numbers are known to be rows among `len`.
pub(crate) fn inside(site: &dyn Site, numbers: V, len: &Dim) -> bool {
    within(site, numbers, len, DEPTH)
}

fn within(site: &dyn Site, numbers: V, len: &Dim, depth: usize) -> bool {
    let fits = |n: &Dim| site.lower(&(len.clone() - n.clone())).is_some_and(|room| room >= 0);
    depth > 0
        && site.forms(numbers).into_iter().any(|(op, args)| match op {
            Op::Iota(i) => site.lower(&i.start).is_some_and(|s| s >= 0) && fits(&(i.start.clone() + i.len.clone())),
            Op::TopK(t) => {
                let of = site.ty(args[0]).shape.last();
                let enough = of.is_some_and(|n| fits(n) && site.lower(n).is_some_and(|n| n >= t.k as i64));
                enough && finite(site, args[0])
            }
            Op::Reshape(_) | Op::Broadcast(_) | Op::Slice(_) | Op::Transpose(_) => {
                within(site, args[0], len, depth - 1)
            }
            _ => false,
        })
}

/// Whether no element is -∞, so that a choice among them is always filled. Weights are real numbers, and so is what is
/// computed of inputs, unless an infinity is written there: a sum that overflows is taken for none.
pub(crate) fn finite(site: &dyn Site, v: V) -> bool {
    is_finite(site, v, DEPTH)
}

fn is_finite(site: &dyn Site, v: V, depth: usize) -> bool {
    use MapFn::*;
    let forms = site.forms(v);
    if depth == 0 || forms.is_empty() {
        return depth > 0 && site.constant(v);
    }
    let all = |args: &[V]| args.iter().all(|a| is_finite(site, *a, depth - 1));
    forms.into_iter().any(|(op, args)| match op {
        Op::Softmax(_) => true,
        Op::Contract(_) | Op::RmsNorm(_) | Op::Dequantize(_) => !args.iter().any(|a| is_masked(site, *a, MASKED_DEPTH)),
        Op::Map(m) => match m.f {
            Sigmoid | Tanh | Erf | Sin | Cos => true,
            Neg | Abs | Add | Sub | Mul | Max | Min => all(&args),
            Select => all(&args[1..]),
            _ => false,
        },
        Op::Constant(c) => c.values.iter().all(|c| c.0.is_finite()),
        Op::Cast(_) | Op::Rope(_) => all(&args[..1]),
        op if op.is_view() => all(&args),
        _ => false,
    })
}

/// Ops that are looked through for infinities that are written there.
const MASKED_DEPTH: usize = 5;

/// Whether an infinity was written where the value comes from: by a mask, or as a constant. One form of a class is
/// enough to see it, since all are equal.
fn is_masked(site: &dyn Site, v: V, depth: usize) -> bool {
    let Some((op, args)) = site.forms(v).into_iter().next().filter(|_| depth > 0) else { return false };
    let some = || args.iter().any(|a| is_masked(site, *a, depth - 1));
    match op {
        Op::CausalMask(_) => true,
        Op::Constant(c) => c.values.iter().any(|c| !c.0.is_finite()),
        Op::Map(m) => !matches!(m.f, MapFn::Sigmoid | MapFn::Tanh | MapFn::Erf) && some(),
        Op::Cast(_) | Op::Rope(_) | Op::Contract(_) => some(),
        op if op.is_view() => some(),
        _ => false,
    }
}
