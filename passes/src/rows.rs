//! Whether a kernel treats the tokens of a call apart: row `t` of all it writes follows from row `t` of what it reads.
//!
//! Where it does, tokens of several sequences can be computed in one launch, and each has the bits that it has alone,
//! since kernels add in an order that does not depend on the number of tokens. See `docs/src/design/batching.md`.
//!
//! The *token axis* of a value is told from its type: the one axis whose size mentions `T`, and is `k·T`: then there
//! are `k` rows for each token, one after the other. Of a value whose type does not mention `T` every token sees the
//! same. So it is enough that each op keeps to that: it leaves rows of different tokens apart, and makes nothing of
//! their positions. Composite ops are looked at through their decomposition.
//!
//! What is not recognised is refused, which costs speed and no bits: masks between tokens, positions, anything that
//! mentions another symbol, states, two axes of tokens.

use hadal_ir::builder::decompose_func;
use hadal_ir::ops::Contract;
use hadal_ir::{Dim, Func, InstKind, Op, Sym, TensorType};

/// Whether all rows of what `kernel` computes follow from rows of the same token alone, besides values that have no
/// tokens.
pub fn are_apart(kernel: &Func) -> bool {
    // Types first: most kernels that are refused mention another symbol, and need not be taken apart.
    let known = |func: &Func| func.values.iter().all(|v| token_axis(&v.ty).is_ok());
    if !known(kernel) {
        return false;
    }
    let func = decompose_func(kernel, |_| true);
    known(&func)
        && func.insts.iter().all(|inst| {
            let InstKind::Op(op) = &inst.kind else { return false };
            let args: Vec<&TensorType> = inst.args.iter().map(|a| func.ty(*a)).collect();
            keeps_apart(op, &args, func.ty(inst.results[0]))
        })
}

/// Where a value has its tokens, and how many rows each; `None` where it has none.
///
/// Refuses types that mention another symbol than `T`, or tokens on two axes.
pub fn token_axis(ty: &TensorType) -> Result<Option<(usize, i64)>, Unknown> {
    let mut found = None;
    for (axis, size) in ty.shape.iter().enumerate() {
        match (size.terms(), size.constant()) {
            ([], _) => {}
            ([(Sym::T, k)], 0) if *k > 0 && found.is_none() => found = Some((axis, *k)),
            _ => return Err(Unknown),
        }
    }
    Ok(found)
}

/// The bytes of each token, where a tensor of this type is nothing but the rows of its tokens, one after the other.
pub fn token_bytes(ty: &TensorType) -> Option<u64> {
    let (axis, _) = token_axis(ty).ok()??;
    if !ty.shape[..axis].iter().all(|d| d.is(1)) {
        return None;
    }
    let one = ty.substitute(&[(Sym::T, 1)].into());
    let count = one.shape.iter().try_fold(1u64, |n, d| n.checked_mul(u64::try_from(d.as_const()?).ok()?))?;
    let bits = count.checked_mul(ty.dtype.bits())?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

/// A type of which nothing is known here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unknown;

/// Whether a primitive keeps tokens apart. Types were found to have at most one axis of tokens each.
fn keeps_apart(op: &Op, args: &[&TensorType], out: &TensorType) -> bool {
    let axis = |ty: &TensorType| token_axis(ty).ok().flatten().map(|(axis, _)| axis);
    let (from, to): (Vec<Option<usize>>, _) = (args.iter().map(|a| axis(a)).collect(), axis(out));
    let fixed = |d: &Dim| d.as_const().is_some();
    match (from.iter().flatten().next(), to, op) {
        // The same for every token. What there is as many times as tokens, and not by repetition, is made of their
        // positions.
        (None, None, Op::Slice(s)) => fixed(&s.start),
        (None, None, Op::Iota(i)) => fixed(&i.start),
        (None, None, _) | (None, Some(_), Op::Broadcast(_)) => true,
        (None, Some(_), _) | (Some(_), None, _) => false,
        (Some(first), Some(to), op) => {
            let everywhere = |at: usize| from.iter().all(|a| a.is_none_or(|a| a == at));
            match op {
                Op::Map(_) | Op::Cast(_) | Op::Dequantize(_) => everywhere(to),
                Op::Broadcast(b) => b.dims[*first] == to,
                Op::Transpose(t) => t.perm[to] == *first,
                Op::Reshape(_) => {
                    let before = |ty: &TensorType, n: usize| {
                        ty.shape[..n].iter().try_fold(1i64, |n, d| n.checked_mul(d.as_const()?))
                    };
                    let (a, b) = (before(args[0], *first), before(out, to));
                    a.is_some() && a == b
                }
                Op::Slice(s) => s.axis != to && fixed(&s.start) || s.len == args[0].shape[s.axis] && s.start.is(0),
                Op::Concat(c) => c.axis != to && everywhere(to) && from.iter().all(Option::is_some) || args.len() == 1,
                // Rows of their own, or what is the same for all, chosen by each.
                Op::Gather(g) => match (from[0], from[1]) {
                    (Some(x), Some(_)) => x < g.batch && everywhere(x),
                    (Some(x), None) => x != g.axis,
                    (None, _) => true,
                },
                Op::Reduce(r) => !r.axes.contains(first),
                Op::TopK(_) | Op::Member(_) => *first + 1 != args[0].rank() && to == *first,
                Op::Contract(c) => one_letter(c, &from, to),
                // Composites were taken apart; positions are made of nothing that has tokens.
                Op::Softmax(_)
                | Op::RmsNorm(_)
                | Op::Rope(_)
                | Op::Sinkhorn(_)
                | Op::CausalMask(_)
                | Op::Attention(_)
                | Op::Append(_)
                | Op::Iota(_)
                | Op::Constant(_) => false,
            }
        }
    }
}

/// Whether a product has its tokens under one letter, which the result keeps.
fn one_letter(c: &Contract, from: &[Option<usize>], to: usize) -> bool {
    let letter = c.output.as_bytes()[to];
    c.inputs.iter().zip(from).all(|(letters, axis)| axis.is_none_or(|a| letters.as_bytes()[a] == letter))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hadal_ir::text::parse_module;
    use hadal_ir::{DType, verify};

    #[track_caller]
    fn apart(body: &str) -> bool {
        let text = format!("symbols P in 0..9, T in 1..9\nkernel @k{body}");
        let module = parse_module(&text).unwrap();
        verify::module(&module).unwrap();
        are_apart(&module.funcs[0])
    }

    #[test]
    fn layers_without_states_are_apart() {
        assert!(apart(
            "(%x: f32[T, 8], %w: bf16[6, 8], %g: f32[8]) -> (y: f32[T, 6]) {
            %0 = rms_norm %x, %g {eps = 1e-6} : f32[T, 8]
            %1 = contract %0, %w {spec = \"td,fd->tf\"} : f32[T, 6]
            %2 = softmax %1 : f32[T, 6]
            return %2 }"
        ));
        assert!(apart(
            "(%x: f32[T, 8], %w: f32[4, 6, 8]) -> (y: f32[T, 2, 6]) {
            %0 = top_k %x {k = 2} : i32[T, 2]
            %1 = gather %w, %0 {axis = 0} : f32[T, 2, 6, 8]
            %2 = contract %x, %1 {spec = \"td,tkfd->tkf\"} : f32[T, 2, 6]
            %3 = gather %x, %0 {axis = 1, batch = 1} : f32[T, 2]
            %4 = broadcast %3 {shape = [T, 2, 6], dims = [0, 1]} : f32[T, 2, 6]
            %5 = mul %2, %4 : f32[T, 2, 6]
            return %5 }"
        ));
        assert!(apart(
            "(%x: f32[T, 8]) -> (y: f32[4, 2*T]) {
            %0 = reshape %x {shape = [2*T, 4]} : f32[2*T, 4]
            %1 = transpose %0 {perm = [1, 0]} : f32[4, 2*T]
            return %1 }"
        ));
        assert!(apart(
            "(%x: f32[T, 8], %c: f32[T, 2], %s: f32[T, 2]) -> (y: f32[T, 8]) {
            %0 = slice %x {axis = 1, start = 0, len = 4} : f32[T, 4]
            %1 = rope %0, %c, %s {interleaved = false} : f32[T, 4]
            %2 = slice %x {axis = 1, start = 4, len = 4} : f32[T, 4]
            %3 = concat %1, %2 {axis = 1} : f32[T, 8]
            return %3 }"
        ));
    }

    #[test]
    fn what_mixes_tokens_or_asks_where_they_stand_is_not() {
        let refused = [
            // Sums, orders and choices along tokens.
            "(%x: f32[T, 8]) -> (y: f32[8]) {
            %0 = reduce %x {kind = sum, axes = [0]} : f32[8]
            return %0 }",
            "(%x: f32[8, T]) -> (y: f32[8, T]) {
            %0 = softmax %x : f32[8, T]
            return %0 }",
            "(%x: f32[T, 8], %y: f32[T, 8]) -> (y: f32[8, 8]) {
            %0 = contract %x, %y {spec = \"ta,tb->ab\"} : f32[8, 8]
            return %0 }",
            "(%x: f32[T, 8], %y: f32[T, 8]) -> (y: f32[T, T]) {
            %0 = contract %x, %y {spec = \"ta,sa->ts\"} : f32[T, T]
            return %0 }",
            "(%x: f32[T, 8], %i: i32[T]) -> (y: f32[T, 8]) {
            %0 = gather %x, %i {axis = 0} : f32[T, 8]
            return %0 }",
            // Positions.
            "(%x: f32[T]) -> (y: f32[T]) {
            %0 = iota {start = 0, len = T} : i32[T]
            %1 = cast %0 {to = f32} : f32[T]
            %2 = add %x, %1 : f32[T]
            return %2 }",
            "(%x: f32[T, 8]) -> (y: f32[T, 8]) {
            %0 = slice %x {axis = 0, start = T-1, len = 1} : f32[1, 8]
            %1 = broadcast %0 {shape = [1, 8], dims = [0, 1]} : f32[1, 8]
            %2 = reshape %1 {shape = [8]} : f32[8]
            %3 = broadcast %2 {shape = [T, 8], dims = [1]} : f32[T, 8]
            return %3 }",
            "(%w: f32[16, 8]) -> (y: f32[T, 8]) {
            %0 = slice %w {axis = 0, start = 0, len = T} : f32[T, 8]
            return %0 }",
            "(%x: f32[T, 8], %w: f32[16, 8]) -> (y: f32[T, 8]) {
            %0 = slice %w {axis = 0, start = T, len = 1} : f32[1, 8]
            %1 = reshape %0 {shape = [8]} : f32[8]
            %2 = broadcast %1 {shape = [T, 8], dims = [1]} : f32[T, 8]
            %3 = add %x, %2 : f32[T, 8]
            return %3 }",
            // Rows of several tokens in one.
            "(%x: f32[T, 6]) -> (y: f32[6, T]) {
            %0 = reshape %x {shape = [6, T]} : f32[6, T]
            return %0 }",
            // States and other symbols.
            "(%s: f32[P, 8], %x: f32[T, 8]) -> (y: f32[P+T, 8]) {
            %0 = append %s, %x : f32[P+T, 8]
            return %0 }",
            "(%s: f32[4, 8], %x: f32[T, 8]) -> (y: f32[T+4, 8]) {
            %0 = append %s, %x : f32[T+4, 8]
            return %0 }",
            "(%q: f32[T, 2, 8], %k: f32[T, 8], %v: f32[T, 8]) -> (y: f32[T, 2, 8]) {
            %0 = attention %q, %k, %v {sets = [\"tha,sa sb causal\"], output = \"thb\", scale = 1.0} : f32[T, 2, 8]
            return %0 }",
        ];
        for body in refused {
            assert!(!apart(body), "{body}");
        }
    }

    #[test]
    fn a_token_takes_its_bytes_where_its_rows_come_first() {
        let t = |k: i64| Dim::from(Sym::T) * k;
        let bytes = |dtype, shape: &[Dim]| token_bytes(&TensorType { dtype, shape: shape.to_vec() });
        assert_eq!(bytes(DType::F32, &[t(1), 8.into()]), Some(32));
        assert_eq!(bytes(DType::BF16, &[1.into(), t(3), 8.into()]), Some(48));
        assert_eq!(bytes(DType::F32, &[2.into(), t(1)]), None);
        assert_eq!(bytes(DType::F32, &[2.into()]), None);
        assert_eq!(bytes(DType::F4E2M1, &[t(1), 3.into()]), None);
        assert_eq!(bytes(DType::F32, &[t(1) + 1, 8.into()]), None);
        assert_eq!(bytes(DType::F32, &[t(1), Sym::P.into()]), None);
    }
}
