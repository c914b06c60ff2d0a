//! Folds that only move elements, done on bytes: joining, cutting and reordering weights in the format they have.
//!
//! The interpreter holds elements wide, which is right for arithmetic and far too much for joining two matrices of a
//! hundred million elements. Nothing here looks at an element, so every format is kept to the bit, and no size is too
//! large.

use crate::module::{Func, InstKind, ValueId};
use crate::ops::Op;
use crate::tensor::strides;
use hadal_types::{Bindings, Dim, TensorType};
use std::collections::BTreeMap;
use std::ops::Range;

/// Whether [`eval`] can do it: a function of nothing but concat, slice, reshape and transpose, of elements that are
/// whole bytes.
pub fn is_layout(func: &Func) -> bool {
    let moves = |op: &Op| matches!(op, Op::Concat(_) | Op::Slice(_) | Op::Reshape(_) | Op::Transpose(_));
    let ops = func.insts.iter().all(|i| matches!(&i.kind, InstKind::Op(op) if moves(op)));
    let known = |ty: &TensorType| ty.dtype.bits().is_multiple_of(8) && ty.shape.iter().all(|d| d.as_const().is_some());
    ops && func.weights.is_empty() && func.states.is_empty() && func.values.iter().all(|v| known(&v.ty))
}

/// Bytes that lie together in something larger.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Piece<L> {
    /// In what.
    pub of: L,
    /// Which of its bytes.
    pub bytes: Range<u64>,
}

impl<L> Piece<L> {
    /// How many.
    pub fn length(&self) -> u64 {
        self.bytes.end - self.bytes.start
    }
}

/// The result at position `result` as pieces of the parameters' bytes, end to end: where a function only joins and cuts
/// along axes that nothing larger stands before. Elements may be smaller than bytes, pieces may not begin or end inside
/// one.
pub fn pieces(func: &Func, result: usize) -> Option<Vec<Piece<usize>>> {
    let bytes = |ty: &TensorType, shape: &[Dim]| {
        let count = shape.iter().try_fold(1u64, |n, d| n.checked_mul(u64::try_from(d.as_const()?).ok()?))?;
        let bits = count.checked_mul(ty.dtype.bits())?;
        bits.is_multiple_of(8).then_some(bits / 8)
    };
    let outermost = |ty: &TensorType, axis: usize| ty.shape[..axis].iter().all(|d| d.as_const() == Some(1));
    let mut values: BTreeMap<ValueId, Vec<Piece<usize>>> = BTreeMap::new();
    for (i, p) in func.params.iter().enumerate() {
        let ty = func.ty(*p);
        values.insert(*p, vec![Piece { of: i, bytes: 0..bytes(ty, &ty.shape)? }]);
    }
    for inst in &func.insts {
        let InstKind::Op(op) = &inst.kind else { return None };
        let ty = func.ty(inst.results[0]);
        let mut parts = inst.args.iter().map(|a| values.get(a).cloned()).collect::<Option<Vec<_>>>()?;
        let made = match op {
            Op::Reshape(_) => parts.swap_remove(0),
            Op::Concat(c) if outermost(ty, c.axis) => parts.concat(),
            Op::Slice(s) if outermost(ty, s.axis) && s.step == 1 => {
                let row = &ty.shape[s.axis + 1..];
                let with = |n: &Dim| bytes(ty, &[std::slice::from_ref(n), row].concat());
                let start = with(&s.start)?;
                cut(&parts[0], start..start.checked_add(with(&s.len)?)?)?
            }
            _ => return None,
        };
        values.insert(inst.results[0], made);
    }
    values.remove(&func.results.get(result)?.1)
}

/// The bytes `wanted` of what pieces make up, if they have them all.
pub fn cut<L: Clone>(pieces: &[Piece<L>], wanted: Range<u64>) -> Option<Vec<Piece<L>>> {
    let mut at = 0;
    let mut out = Vec::new();
    for piece in pieces {
        let end = at + piece.length();
        let (from, to) = (wanted.start.max(at), wanted.end.min(end));
        if from < to {
            let first = piece.bytes.start + (from - at);
            out.push(Piece { of: piece.of.clone(), bytes: first..first + (to - from) });
        }
        at = end;
    }
    (wanted.end <= at).then_some(out)
}

/// Row-major bytes with their shape.
#[derive(Clone)]
struct Bytes {
    shape: Vec<usize>,
    data: Vec<u8>,
}

/// The result at position `result` of a function that [`is_layout`], of arguments as bytes; `None` where these have
/// other sizes than declared, or a slice leaves its operand.
pub fn eval(func: &Func, args: Vec<Vec<u8>>, result: usize) -> Option<Vec<u8>> {
    if args.len() != func.params.len() || !is_layout(func) {
        return None;
    }
    let mut values: BTreeMap<ValueId, Bytes> = BTreeMap::new();
    let size = |v: ValueId| (func.ty(v).dtype.bits() / 8) as usize;
    for (p, data) in func.params.iter().zip(args) {
        let shape = func.ty(*p).eval_shape(&Bindings::new()).ok()?;
        let count = shape.iter().product::<usize>() * size(*p);
        values.insert(*p, (data.len() == count).then_some(Bytes { shape, data })?);
    }
    let (_, wanted) = func.results.get(result)?;
    for (at, inst) in func.insts.iter().enumerate() {
        let InstKind::Op(op) = &inst.kind else { return None };
        let to = inst.results[0];
        let shape = func.ty(to).eval_shape(&Bindings::new()).ok()?;
        let of = |i: usize| values.get(inst.args.get(i)?);
        let data = match op {
            Op::Concat(c) => {
                let parts = (0..inst.args.len()).map(of).collect::<Option<Vec<&Bytes>>>()?;
                concat(&parts, &shape, c.axis, size(to))
            }
            Op::Slice(s) => {
                let x = of(0)?;
                let start = usize::try_from(s.start.as_const()?).ok()?;
                let last = start + shape[s.axis].saturating_sub(1) * s.step;
                let base: usize = strides(&x.shape)[s.axis] * start;
                let mut steps = strides(&x.shape);
                steps[s.axis] *= s.step;
                let inside = shape[s.axis] == 0 || last < x.shape[s.axis];
                copied(inside.then_some(x)?, base, &shape, &steps, size(to))
            }
            Op::Transpose(t) => {
                let x = of(0)?;
                let from = strides(&x.shape);
                let steps: Vec<usize> = t.perm.iter().map(|p| from[*p]).collect();
                copied(x, 0, &shape, &steps, size(to))
            }
            Op::Reshape(_) => {
                let from = inst.args.first()?;
                let again = func.insts[at + 1..].iter().any(|i| i.args.contains(from)) || from == wanted;
                if again { of(0)?.data.clone() } else { values.remove(from)?.data }
            }
            _ => return None,
        };
        values.insert(to, Bytes { shape, data });
        // What nothing reads any more need not be kept.
        let rest = &func.insts[at + 1..];
        values.retain(|v, _| v == wanted || rest.iter().any(|i| i.args.contains(v)));
    }
    values.remove(wanted).map(|b| b.data)
}

/// Parts one after the other along `axis`.
fn concat(parts: &[&Bytes], shape: &[usize], axis: usize, size: usize) -> Vec<u8> {
    let outer: usize = shape[..axis].iter().product();
    let mut out = Vec::with_capacity(shape.iter().product::<usize>() * size);
    for i in 0..outer {
        for part in parts {
            let run = part.data.len() / outer;
            out.extend_from_slice(&part.data[i * run..(i + 1) * run]);
        }
    }
    out
}

/// Elements in the order of `shape`, of which one step along each axis moves by `steps` elements of `x`.
fn copied(x: &Bytes, base: usize, shape: &[usize], steps: &[usize], size: usize) -> Vec<u8> {
    // Trailing axes that lie in one piece are copied as one.
    let mut rank = shape.len();
    let mut run = 1;
    while rank > 0 && steps[rank - 1] == run {
        run *= shape[rank - 1];
        rank -= 1;
    }
    let count: usize = shape.iter().product();
    let mut out = Vec::with_capacity(count * size);
    if count == 0 {
        return out;
    }
    // The last of the other axes is a loop of its own.
    let (times, step) = if rank > 0 { (shape[rank - 1], steps[rank - 1]) } else { (1, 0) };
    rank = rank.saturating_sub(1);
    let mut at = vec![0usize; rank];
    let (run, step) = (run * size, step * size);
    loop {
        let from = size * (base + at.iter().zip(steps).map(|(a, s)| a * s).sum::<usize>());
        let pieces = (0..times).map(|i| &x.data[from + i * step..from + i * step + run]);
        match run {
            4 => pieces.for_each(|p| out.extend_from_slice(&<[u8; 4]>::try_from(p).expect("four bytes"))),
            _ => pieces.for_each(|p| out.extend_from_slice(p)),
        }
        let Some(axis) = (0..rank).rev().find(|i| at[*i] + 1 < shape[*i]) else { return out };
        at[axis] += 1;
        at[axis + 1..].fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interpret::eval_func;
    use crate::tensor::Tensor;
    use crate::text::parse_module;

    fn func(text: &str) -> Func {
        parse_module(text).unwrap().funcs.remove(0)
    }

    /// Both evaluations agree on bytes that count up.
    #[track_caller]
    fn agrees(text: &str) {
        let func = func(text);
        assert!(is_layout(&func));
        let tensors: Vec<Tensor> = func
            .params
            .iter()
            .map(|p| {
                let shape = func.ty(*p).eval_shape(&Bindings::new()).unwrap();
                let n: usize = shape.iter().product();
                let values = (0..n).map(|i| func.ty(*p).dtype.round((i % 13) as f64 - 6.0));
                Tensor::real(func.ty(*p).dtype, &shape, values.collect())
            })
            .collect();
        let bytes = tensors.iter().map(Tensor::to_bytes).collect();
        let expected = eval_func(&func, &tensors, &Bindings::new()).unwrap();
        assert_eq!(eval(&func, bytes, 0).unwrap(), expected[0].to_bytes());
    }

    #[test]
    fn moving_bytes_is_evaluating() {
        agrees(
            "func @f(%x: f8e4m3[3, 4], %y: f8e4m3[2, 4]) -> (z: f8e4m3[5, 4]) {
              %0 = concat %x, %y {axis = 0} : f8e4m3[5, 4]
              return %0 }",
        );
        agrees(
            "func @f(%x: bf16[2, 6, 3], %y: bf16[2, 2, 3]) -> (z: bf16[3, 2, 2, 2]) {
              %0 = concat %x, %y {axis = 1} : bf16[2, 8, 3]
              %1 = slice %0 {axis = 1, start = 1, len = 4, step = 2} : bf16[2, 4, 3]
              %2 = transpose %1 {perm = [2, 0, 1]} : bf16[3, 2, 4]
              %3 = reshape %2 {shape = [3, 2, 2, 2]} : bf16[3, 2, 2, 2]
              return %3 }",
        );
        agrees(
            "func @f(%x: f32[2, 3]) -> (z: f32[3, 0]) {
              %0 = slice %x {axis = 0, start = 2, len = 0} : f32[0, 3]
              %1 = transpose %0 {perm = [1, 0]} : f32[3, 0]
              return %1 }",
        );
    }

    #[test]
    fn other_functions_are_refused() {
        let text = "func @f(%x: f32[2]) -> (z: f32[2]) {
              %0 = neg %x : f32[2]
              return %0 }";
        assert!(!is_layout(&func(text)));
        assert!(eval(&func(text), vec![vec![0; 8]], 0).is_none());
        let copy = func(
            "func @f(%x: f32[2]) -> (z: f32[2, 1]) {
              %0 = reshape %x {shape = [2, 1]} : f32[2, 1]
              return %0 }",
        );
        assert!(eval(&copy, vec![vec![0; 7]], 0).is_none());
        assert!(eval(&copy, vec![], 0).is_none());
        assert!(eval(&copy, vec![vec![1; 8]], 1).is_none());
        assert_eq!(eval(&copy, vec![vec![1; 8]], 0), Some(vec![1; 8]));
    }
}
