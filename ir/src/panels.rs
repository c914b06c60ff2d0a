//! Panels: matrices stored so that sixteen columns lie side by side.
//!
//! ```text
//! W[.., n, k]  is stored as  W'[.., n / 16, k / g, n % 16, k % g]
//! ```
//!
//! with some neighbours `g` along `k` kept together: as many as make up a word of 32 bits, of what is multiplied; one, of
//! scales and the like. This is no format: what is stored is a tensor of two
//! more axes, and a function that had `W` for a parameter has `W'` and begins by transposing and reshaping it. Who knows
//! panels reads them in place (`contract/laid.rs` of the code generators); for everybody else nothing has changed.

use crate::module::{Func, FuncKind, Inst, InstKind, ValueId};
use crate::ops::{Op, Reshape, Transpose};
use hadal_types::{Dim, TensorType};

/// Columns of a panel.
pub const COLUMNS: i64 = 16;

/// The type of a tensor's panels with so many neighbours together; `None` where its last two axes have none: columns are
/// whole pairs of panels, so that no reader meets a half of what it takes at a time.
pub fn stored(ty: &TensorType, group: i64) -> Option<TensorType> {
    let [outer @ .., n, k] = &ty.shape[..] else { return None };
    let (n, k) = (n.as_const()?, k.as_const()?);
    let whole = ty.dtype.bits() % 8 == 0 && group > 0;
    let fits = whole && n > 0 && n % (2 * COLUMNS) == 0 && k > 0 && k % group == 0;
    let inner = [n / COLUMNS, k / group, COLUMNS, group].map(Dim::from);
    fits.then(|| TensorType { dtype: ty.dtype, shape: outer.iter().cloned().chain(inner).collect() })
}

/// Exchanges the axes of lines and of columns, of so many in all.
fn exchange(rank: usize) -> Op {
    let mut perm: Vec<usize> = (0..rank).collect();
    perm.swap(rank - 3, rank - 2);
    Op::Transpose(Transpose { perm })
}

fn push(func: &mut Func, op: Op, arg: ValueId, ty: TensorType) -> ValueId {
    let to = func.add_value(ty, None);
    let (origin, laws) = (Vec::new(), Vec::new());
    func.insts.push(Inst { kind: InstKind::Op(op), args: vec![arg], results: vec![to], origin, laws });
    to
}

fn turned(ty: &TensorType) -> TensorType {
    let mut out = ty.clone();
    let rank = out.shape.len();
    out.shape.swap(rank - 3, rank - 2);
    out
}

/// The fold that lays a tensor out; `None` where it has no panels.
pub fn fold(name: &str, ty: &TensorType, group: i64) -> Option<Func> {
    let to = stored(ty, group)?;
    let mut func = Func { kind: FuncKind::Fold, name: name.to_owned(), ..Func::default() };
    let x = func.add_value(ty.clone(), Some("w".to_owned()));
    func.params.push(x);
    let cut = turned(&to);
    let x = push(&mut func, Op::Reshape(Reshape { shape: cut.shape.clone() }), x, cut.clone());
    let x = push(&mut func, exchange(cut.shape.len()), x, to);
    func.results.push(("panels".to_owned(), x));
    Some(func)
}

/// A function that is given panels for its parameter at this position; `None` where that has none.
pub fn reading(func: &Func, param: usize, group: i64) -> Option<Func> {
    let (mut out, old) = (func.clone(), *func.params.get(param)?);
    let ty = func.ty(old).clone();
    let from = stored(&ty, group)?;
    let name = out.values[old.index()].name.take();
    let mut insts = std::mem::take(&mut out.insts);
    let x = out.add_value(from.clone(), name);
    out.params[param] = x;
    let x = push(&mut out, exchange(from.shape.len()), x, turned(&from));
    let shape = ty.shape.clone();
    let (origin, laws) = (Vec::new(), Vec::new());
    let kind = InstKind::Op(Op::Reshape(Reshape { shape }));
    out.insts.push(Inst { kind, args: vec![x], results: vec![old], origin, laws });
    out.insts.append(&mut insts);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interpret::eval_func;
    use crate::tensor::Tensor;
    use crate::text::parse_module;
    use hadal_types::{Bindings, DType};

    #[test]
    fn reading_what_was_laid_out_changes_nothing() {
        let text = "kernel @f(%x: f32[3, 6], %w: bf16[2, 32, 6]) -> (y: f32[3, 2, 32]) {
              %y = contract %x, %w {spec = \"td,efd->tef\"} : f32[3, 2, 32]
              return %y }";
        let func = parse_module(text).unwrap().funcs.remove(0);
        let wave = |dtype: DType, shape: &[usize]| {
            let n: usize = shape.iter().product();
            Tensor::real(dtype, shape, (0..n).map(|i| dtype.round((i * 37 % 101) as f64 / 50.0 - 1.0)).collect())
        };
        let (x, w) = (wave(DType::F32, &[3, 6]), wave(DType::BF16, &[2, 32, 6]));
        let laying = fold("lay", func.ty(func.params[1]), 2).unwrap();
        assert!(crate::layout_fold::is_layout(&laying));
        let panels = eval_func(&laying, std::slice::from_ref(&w), &Bindings::new()).unwrap().remove(0);
        assert_eq!(panels.shape, [2, 2, 3, 16, 2]);
        assert_eq!(panels.at(2 * 2 + 1), w.at(2 * 6 + 1), "column 2 of the first line");
        let reading = reading(&func, 1, 2).unwrap();
        let text = crate::text::print_func(&reading);
        crate::verify::module(&parse_module(&text).unwrap()).unwrap();
        let plain = eval_func(&func, &[x.clone(), w], &Bindings::new()).unwrap();
        assert_eq!(eval_func(&reading, &[x, panels], &Bindings::new()).unwrap()[0].to_bytes(), plain[0].to_bytes());
    }

    #[test]
    fn what_has_no_panels_is_refused() {
        let ty = |dtype, shape: &[i64]| TensorType { dtype, shape: shape.iter().map(|n| Dim::from(*n)).collect() };
        for (dtype, shape, group) in [
            (DType::BF16, &[48, 6][..], 2),
            (DType::BF16, &[32, 5], 2),
            (DType::BF16, &[32], 2),
            (DType::BF16, &[32, 6], 0),
            (DType::I4, &[32, 8], 8),
            (DType::I8, &[32, 6], 4),
            (DType::F32, &[0, 6], 1),
        ] {
            assert!(stored(&ty(dtype, shape), group).is_none(), "{dtype} {shape:?}");
        }
        assert!(stored(&ty(DType::F32, &[32, 5]), 1).is_some());
    }
}
