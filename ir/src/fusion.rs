//! How a kernel function can be cut into independent rows.
//!
//! A *row* is one index of the leading axes of a kernel's results. Values inside the kernel are of two sorts:
//!
//! - *Free* values follow from the kernel's parameters through views, casts, `dequantize`, `gather`, constants and
//!   elementwise functions alone, so any single element can be computed where it is needed. Rows may read them, like
//!   the parameters themselves, at any index.
//! - *Held* values are all others: results of reductions, contractions, norms, `top_k`, and what follows from them.
//!   Their leading axes are the rows, and element `i` of those axes depends on other held values only at the same `i`.
//!
//! [`row_axes`] is the largest number of leading axes for which that is true. A worker can then compute all of a row,
//! with the held values of that row in its scratch, and no worker waits for another. 0 means that one worker computes
//! everything.
//!
//! `rms_norm`, `softmax`, `top_k` and `member` compute their last axis as a whole, so it is never one of the row axes.
//!
//! The result of `append %state, %rows` counts as having the rows of `%rows`: only those are computed. Nothing in the
//! same kernel can read it row by row.

use crate::module::{Func, InstKind, ValueId};
use crate::ops::Op;
use hadal_types::{Dim, TensorType};

/// What [`rows`] finds out about a kernel function.
#[derive(Clone, PartialEq, Debug)]
pub struct Rows {
    /// How many leading axes are parallel.
    pub axes: usize,
    /// Their sizes.
    pub shape: Vec<Dim>,
    /// By value: whether it is held (see the module documentation). Parameters are not.
    pub held: Vec<bool>,
}

/// How many leading axes of the kernel's results are independent rows.
pub fn row_axes(func: &Func) -> usize {
    rows(func).axes
}

/// Row analysis of a function without calls. One with calls has no rows.
pub fn rows(func: &Func) -> Rows {
    let mut held = vec![false; func.values.len()];
    let mut limit = usize::MAX;
    let mut appended = vec![false; func.values.len()];
    for inst in &func.insts {
        let InstKind::Op(op) = &inst.kind else {
            return Rows { axes: 0, shape: Vec::new(), held };
        };
        let result = inst.results[0];
        held[result.index()] = !is_elementwise_access(op) || inst.args.iter().any(|a| held[a.index()]);
        appended[result.index()] = matches!(op, Op::Append(_));
        if matches!(op, Op::RmsNorm(_) | Op::Softmax(_) | Op::TopK(_) | Op::Member(_)) {
            limit = limit.min(func.ty(result).rank() - 1);
        }
        if matches!(op, Op::Sinkhorn(_)) {
            limit = limit.min(func.ty(result).rank() - 2);
        }
        let args: Vec<&TensorType> = inst.args.iter().map(|a| func.ty(*a)).collect();
        for (k, a) in inst.args.iter().enumerate().filter(|(_, a)| held[a.index()]) {
            let aligned = if appended[a.index()] { 0 } else { aligned_axes(op, k, &args, func.ty(result)) };
            limit = limit.min(aligned);
        }
    }
    let definitions = func.definitions();
    let shape_of = |v: ValueId| match definitions[v.index()].map(|i| &func.insts[i]) {
        Some(inst) if appended[v.index()] => &func.ty(inst.args[1]).shape,
        _ => &func.ty(v).shape,
    };
    // Held values that no result depends on would not otherwise be tied to the rows.
    let tied = (0..func.values.len() as u32).map(ValueId).filter(|v| held[v.index()]);
    let mut shape: Option<Vec<Dim>> = None;
    for v in func.results.iter().map(|(_, v)| *v).chain(tied) {
        let mine = shape_of(v);
        let common = match &shape {
            None => mine.clone(),
            Some(known) => known.iter().zip(mine).take_while(|(a, b)| a == b).map(|(a, _)| a.clone()).collect(),
        };
        shape = Some(common);
    }
    let mut shape = shape.unwrap_or_default();
    shape.truncate(limit);
    Rows { axes: shape.len(), shape, held }
}

/// Whether each element of the result needs a fixed, small number of operand elements.
fn is_elementwise_access(op: &Op) -> bool {
    match op {
        Op::Map(_) | Op::Cast(_) | Op::Dequantize(_) | Op::Gather(_) | Op::Constant(_) | Op::Iota(_) => true,
        Op::Broadcast(_) | Op::Reshape(_) | Op::Transpose(_) | Op::Slice(_) | Op::Concat(_) | Op::CausalMask(_) => true,
        // Two operand elements per result element, but those at a distance: still computed where needed.
        Op::Rope(_) => true,
        Op::Contract(_)
        | Op::Reduce(_)
        | Op::TopK(_)
        | Op::Member(_)
        | Op::Append(_)
        | Op::RmsNorm(_)
        | Op::Softmax(_)
        | Op::Sinkhorn(_) => false,
        Op::Attention(_) => false,
    }
}

/// The largest `n` such that element `i` of the result's first `n` axes depends on operand `k` only at element `i` of
/// that operand's first `n` axes.
pub fn aligned_axes(op: &Op, k: usize, args: &[&TensorType], out: &TensorType) -> usize {
    let arg = args[k];
    match op {
        Op::Map(_) | Op::Cast(_) | Op::CausalMask(_) => out.rank(),
        Op::Softmax(_) | Op::TopK(_) | Op::Member(_) => out.rank() - 1,
        Op::Sinkhorn(_) => out.rank() - 2,
        Op::RmsNorm(_) if k == 0 => out.rank() - 1,
        Op::RmsNorm(_) => 0,
        Op::Rope(_) if k == 0 => out.rank() - 1,
        Op::Rope(_) => 1,
        Op::Reduce(r) => r.axes.first().copied().unwrap_or(out.rank()),
        Op::Broadcast(b) => b.dims.iter().enumerate().take_while(|(i, d)| i == *d).count(),
        Op::Reshape(_) => arg.shape.iter().zip(&out.shape).take_while(|(a, b)| a == b).count(),
        Op::Transpose(t) => t.perm.iter().enumerate().take_while(|(i, p)| i == *p).count(),
        Op::Slice(s) if s.start.is(0) && s.step == 1 && s.len == arg.shape[s.axis] => out.rank(),
        Op::Slice(s) => s.axis,
        Op::Concat(c) if args.len() > 1 => c.axis,
        Op::Concat(_) => out.rank(),
        Op::Dequantize(_) if k == 0 => out.rank(),
        Op::Dequantize(d) => d.block.iter().take_while(|b| **b == 1).count(),
        Op::Gather(g) if k == 0 => g.batch,
        Op::Gather(g) if g.axis == g.batch => arg.rank(),
        Op::Gather(g) => g.batch,
        Op::Append(_) if k == 1 => arg.rank(),
        Op::Append(_) => 0,
        Op::Contract(c) => common_prefix(&c.inputs[k], &c.output),
        // Keys and values begin with a letter that the result does not have.
        Op::Attention(a) => common_prefix(a.operands()[k].letters, &a.output).min(a.output.len() - 1),
        Op::Constant(_) | Op::Iota(_) => 0,
    }
}

fn common_prefix(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(x, y)| x == y).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::parse_module;

    fn axes(body: &str) -> usize {
        let text = format!("symbols P in 0..9, T in 1..9\n{body}");
        let module = parse_module(&text).unwrap();
        crate::verify::module(&module).unwrap();
        row_axes(&module.funcs[0])
    }

    #[test]
    fn elementwise_kernels_are_parallel_in_every_axis() {
        let n = axes(
            "kernel @k(%x: f32[T, 8], %w: bf16[8]) -> (y: f32[T, 8]) {
            %0 = cast %w {to = f32} : f32[8]
            %1 = broadcast %0 {shape = [T, 8], dims = [1]} : f32[T, 8]
            %2 = add %x, %1 : f32[T, 8]
            return %2 }",
        );
        assert_eq!(n, 2);
    }

    #[test]
    fn a_norm_keeps_its_row() {
        let n = axes(
            "kernel @k(%x: f32[T, 4, 8], %w: f32[8]) -> (y: f32[T, 4, 8]) {
            %0 = rms_norm %x, %w {eps = 1e-6} : f32[T, 4, 8]
            return %0 }",
        );
        assert_eq!(n, 2);
        let n = axes(
            "kernel @k(%x: f32[T, 4, 8], %w: f32[8]) -> (y: f32[T, 32]) {
            %0 = rms_norm %x, %w {eps = 1e-6} : f32[T, 4, 8]
            %1 = reshape %0 {shape = [T, 32]} : f32[T, 32]
            return %1 }",
        );
        assert_eq!(n, 1);
    }

    #[test]
    fn routing_is_one_row_per_token() {
        let n = axes(
            "kernel @k(%x: f32[T, 8]) -> (i: i32[T, 2], w: f32[T, 2]) {
            %0 = sigmoid %x : f32[T, 8]
            %1 = top_k %0 {k = 2} : i32[T, 2]
            %2 = gather %0, %1 {axis = 1, batch = 1} : f32[T, 2]
            return %1, %2 }",
        );
        assert_eq!(n, 1);
    }

    #[test]
    fn an_append_has_the_rows_it_writes() {
        let n = axes(
            "kernel @k(%s: f32[P, 8], %x: f32[T, 8], %w: f32[8]) -> (y: f32[P+T, 8]) {
            %0 = rms_norm %x, %w {eps = 1e-6} : f32[T, 8]
            %1 = append %s, %0 : f32[P+T, 8]
            return %1 }",
        );
        assert_eq!(n, 1);
        let read_back = axes(
            "kernel @k(%s: f32[P, 8], %x: f32[T, 8]) -> (y: f32[P+T]) {
            %1 = append %s, %x : f32[P+T, 8]
            %2 = reduce %1 {kind = sum, axes = [1]} : f32[P+T]
            return %2 }",
        );
        assert_eq!(read_back, 0);
    }

    #[test]
    fn rows_that_meet_are_no_rows() {
        let n = axes(
            "kernel @k(%x: f32[T, 8]) -> (y: f32[8, T]) {
            %0 = softmax %x : f32[T, 8]
            %1 = transpose %0 {perm = [1, 0]} : f32[8, T]
            return %1 }",
        );
        assert_eq!(n, 0);
        let n = axes(
            "kernel @k(%x: f32[T, 8], %w: f32[4, 8]) -> (y: f32[T, 4]) {
            %0 = contract %x, %w {spec = \"td,fd->tf\"} : f32[T, 4]
            %1 = softmax %0 : f32[T, 4]
            return %1 }",
        );
        assert_eq!(n, 1);
        let n = axes(
            "kernel @k(%x: f32[T, 8], %w: f32[4, 8]) -> (y: f32[T, 4]) {
            %0 = contract %x, %w {spec = \"td,fd->tf\"} : f32[T, 4]
            return %0 }",
        );
        assert_eq!(n, 2);
    }
}
