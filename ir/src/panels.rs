//! Panels: matrices stored so that sixteen columns lie side by side.
//!
//! ```text
//! W[.., n, k]  is stored as  W'[.., n / 16, k / g, n % 16, k % g]
//! ```
//!
//! with some neighbours `g` along `k` kept together: as many as make up a word of 32 bits, of what is multiplied; one,
//! of scales and the like. This is no format: what is stored is a tensor of two more axes, and a function that had `W`
//! for a parameter has `W'` and begins by transposing and reshaping it. Who knows panels reads them in place
//! (`contract/laid/` of the code generators); for everybody else nothing has changed.

use crate::module::{Func, FuncKind, Inst, InstKind, ValueId};
use crate::ops::{Op, Reshape, Transpose};
use hadal_types::{Dim, TensorType};
use std::io::{self, Write};

/// Columns of a panel.
pub const COLUMNS: i64 = 16;

/// A parameter of which a kernel can read panels in place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wish {
    /// Its position.
    pub param: usize,
    /// Neighbours that are kept together.
    pub group: i64,
    /// Whether they are read faster than rows, rather than as well.
    pub pays: bool,
}

/// The type of a tensor's panels with so many neighbours together; `None` where its last two axes have none: columns
/// are whole pairs of panels, so that no reader meets a half of what it takes at a time, and what is kept together is
/// whole bytes.
pub fn stored(ty: &TensorType, group: i64) -> Option<TensorType> {
    let [outer @ .., n, k] = &ty.shape[..] else { return None };
    let (n, k) = (n.as_const()?, k.as_const()?);
    let whole = group > 0 && (ty.dtype.bits() as i64).checked_mul(group)? % 8 == 0;
    if !(whole && n > 0 && n % (2 * COLUMNS) == 0 && k > 0 && k % group == 0) {
        return None;
    }
    let inner = [n / COLUMNS, k / group, COLUMNS, group].map(Dim::from);
    Some(TensorType { dtype: ty.dtype, shape: outer.iter().cloned().chain(inner).collect() })
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

/// Bytes of a row, and of what is kept together of it, where a function is a [`fold`]: sixteen rows, one after the
/// other, become one panel in their place.
pub fn rows(func: &Func) -> Option<(usize, usize)> {
    let from = func.ty(*func.params.first()?);
    let [.., group] = &func.ty(func.results.first()?.1).shape[..] else { return None };
    (*func == fold(&func.name, from, group.as_const()?)?).then_some(())?;
    let bytes = |n: &Dim| Some(usize::try_from(n.as_const()?).ok()?.checked_mul(from.dtype.bits() as usize)? / 8);
    Some((bytes(from.shape.last()?)?, bytes(group)?))
}

/// Takes a tensor's bytes as rows and passes them on as panels. Sixteen rows become one panel, so no more are held.
pub struct Writer<'a> {
    out: &'a mut dyn Write,
    /// Rows of a panel, not all of them yet.
    rows: Vec<u8>,
    panel: Vec<u8>,
    /// Bytes of a row, and of what is kept together of it.
    row: usize,
    word: usize,
}

impl<'a> Writer<'a> {
    /// For a function that is a [`fold`]; `None` for others.
    pub fn new(func: &Func, out: &'a mut dyn Write) -> Option<Writer<'a>> {
        let (row, word) = rows(func)?;
        let panel = vec![0; row * COLUMNS as usize];
        Some(Writer { out, rows: Vec::with_capacity(panel.len()), panel, row, word })
    }

    fn pass_on(&mut self) -> io::Result<()> {
        fn turn<const N: usize>(rows: &[u8], panel: &mut [u8], row: usize) {
            for (line, words) in panel.chunks_exact_mut(N * COLUMNS as usize).enumerate() {
                for (column, word) in words.chunks_exact_mut(N).enumerate() {
                    let from = column * row + line * N;
                    word.copy_from_slice(&rows[from..from + N]);
                }
            }
        }
        match self.word {
            4 => turn::<4>(&self.rows, &mut self.panel, self.row),
            word => {
                for (i, to) in self.panel.chunks_exact_mut(word).enumerate() {
                    let from = i % COLUMNS as usize * self.row + i / COLUMNS as usize * word;
                    to.copy_from_slice(&self.rows[from..from + word]);
                }
            }
        }
        self.rows.clear();
        self.out.write_all(&self.panel)
    }
}

impl Write for Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(self.panel.len() - self.rows.len());
        self.rows.extend_from_slice(&bytes[..taken]);
        if self.rows.len() == self.panel.len() {
            self.pass_on()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
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
    fn writing_rows_gives_the_panels_of_the_fold() {
        let ty = |dtype, shape: &[i64]| TensorType { dtype, shape: shape.iter().map(|n| Dim::from(*n)).collect() };
        for (dtype, shape, group) in [
            (DType::BF16, &[2, 64, 6][..], 2),
            (DType::F32, &[32, 5], 1),
            (DType::I8, &[3, 32, 8], 4),
            (DType::F16, &[32, 3], 1),
            (DType::I4, &[64, 24], 8),
            (DType::F4E2M1, &[2, 32, 4], 2),
        ] {
            let ty = ty(dtype, shape);
            let func = fold("lay", &ty, group).unwrap();
            let count = shape.iter().product::<i64>() * dtype.bits() as i64 / 8;
            let bytes: Vec<u8> = (0..count).map(|i| (i * 89 % 251) as u8).collect();
            let mut found = Vec::new();
            let mut writer = Writer::new(&func, &mut found).unwrap();
            bytes.chunks(37).for_each(|part| writer.write_all(part).unwrap());
            let shape: Vec<usize> = shape.iter().map(|n| *n as usize).collect();
            let panels = eval_func(&func, &[Tensor::from_bytes(dtype, &shape, &bytes).unwrap()], &Bindings::new());
            assert_eq!(found, panels.unwrap()[0].to_bytes(), "{ty}");
            if !dtype.is_packed() {
                assert_eq!(found, crate::layout_fold::eval(&func, vec![bytes], 0).unwrap(), "{ty}");
            }
            let other = Func { insts: func.insts[..1].to_vec(), ..func.clone() };
            assert!(Writer::new(&other, &mut Vec::new()).is_none());
        }
    }

    #[test]
    fn what_has_no_panels_is_refused() {
        let ty = |dtype, shape: &[i64]| TensorType { dtype, shape: shape.iter().map(|n| Dim::from(*n)).collect() };
        for (dtype, shape, group) in [
            (DType::BF16, &[48, 6][..], 2),
            (DType::BF16, &[32, 5], 2),
            (DType::BF16, &[32], 2),
            (DType::BF16, &[32, 6], 0),
            (DType::I4, &[32, 8], 1),
            (DType::I8, &[32, 6], 4),
            (DType::F32, &[0, 6], 1),
        ] {
            assert!(stored(&ty(dtype, shape), group).is_none(), "{dtype} {shape:?}");
        }
        assert!(stored(&ty(DType::F32, &[32, 5]), 1).is_some());
    }
}
