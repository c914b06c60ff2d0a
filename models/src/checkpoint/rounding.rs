//! Weights rounded to few bits when compiling (`--quantize`): symmetric, to the nearest, with a scale for each group of
//! neighbouring columns of a row.
//!
//! ```text
//! s = max |w| / 7 or 127,  rounded to f16;   q = round(w / s)
//! ```
//!
//! Codes go from -7 to 7 or -127 to 127: one value is left unused, so that the grid is symmetric and the largest magnitude of
//! a group is met on both sides.

use super::packed::{Level, Packed, Plane};
use super::recipe::{Layout, Matrix, Order, Reals, Recipe, push_codes};
use super::{Checkpoint, Located, Place};
use hadal_types::DType;

/// To what weights are rounded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WeightOnly {
    /// `I8` or `I4`.
    pub codes: DType,
    /// Columns that share a scale.
    pub group: usize,
}

impl WeightOnly {
    /// The planes of a weight so rounded.
    pub fn packed(self) -> Packed {
        let scales = Level { dtype: DType::F16, over: None };
        Packed { codes: self.codes, group: self.group, scales, offsets: None }
    }

    /// The same with the largest group of at most this size that divides `columns` and is a power of two times 16; `None`
    /// where there is none.
    pub fn fitting(self, columns: usize) -> Option<WeightOnly> {
        let halves = std::iter::successors(Some(self.group), |g| (g % 2 == 0 && g / 2 >= LEAST).then_some(g / 2));
        let group = halves.into_iter().find(|g| columns.is_multiple_of(*g))?;
        Some(WeightOnly { group, ..self })
    }

    fn largest(self) -> f32 {
        if self.codes == DType::I4 { 7.0 } else { 127.0 }
    }

    /// Appends what a row has in a plane.
    pub(super) fn round_row(self, row: &[f32], plane: Plane, out: &mut Vec<u8>) {
        let mut codes = Vec::with_capacity(self.group);
        for group in row.chunks(self.group) {
            let most = group.iter().fold(0.0f32, |m, w| m.max(w.abs()));
            let scale = half::f16::from_f32(most / self.largest());
            if plane == Plane::Scales {
                out.extend(scale.to_le_bytes());
                continue;
            }
            let scale = scale.to_f32();
            let limit = self.largest();
            let code = |w: &f32| if scale > 0.0 { (w / scale).round_ties_even().clamp(-limit, limit) as i8 } else { 0 };
            codes.clear();
            codes.extend(group.iter().map(code));
            push_codes(self.codes, &codes, out);
        }
    }
}

/// Smallest group: smaller ones cost more scales than they save bits.
pub const LEAST: usize = 16;

impl Checkpoint {
    /// This checkpoint with its matrices readable in the planes of `to`. Not those with as many rows as the vocabulary has
    /// words, which are looked up row by row or decide between words; nor what has fewer bits already. Scales that lie beside
    /// a matrix in e4m3 are for `block` rows and columns each.
    pub fn rounded(mut self, to: WeightOnly, vocab: Option<usize>, block: [usize; 2]) -> Checkpoint {
        let mut planes: Vec<(String, Located)> = Vec::new();
        for (name, t) in &self.tensors {
            let [rows, columns] = t.shape[..] else { continue };
            let (Some(to), false) = (to.fitting(columns), Some(rows) == vocab || name.contains("norm")) else {
                continue;
            };
            let scales = format!("{name}_scale_inv");
            let (Some(matrix), false) = (self.matrix(name), t.of.is_some()) else { continue };
            let scales = self.matrix(&scales).map(|m| (m, block));
            let wide = matches!(matrix.layout, Layout::Plain(DType::F32 | DType::BF16 | DType::F16));
            let scaled = scales.as_ref().is_some_and(|(s, [r, c])| {
                matrix.layout == Layout::Plain(DType::F8E4M3)
                    && [rows.div_ceil(*r), columns.div_ceil(*c)] == [s.rows, s.columns]
            });
            if !wide && !scaled {
                continue;
            }
            let reals = Reals { matrix, scales: scales.filter(|_| scaled) };
            for (plane, dtype, shape) in to.packed().planes([rows, columns]) {
                let place = Place::Made(Recipe::Rounded(reals.clone(), to, plane));
                let of = Some(name.clone());
                planes.push((format!("{name}{}", plane.suffix()), Located { dtype, shape: shape.into(), place, of }));
            }
            self.packed.insert(name.clone(), to.packed());
        }
        for name in self.packed.keys() {
            if let Some(scales) = self.tensors.get_mut(&format!("{name}_scale_inv")) {
                scales.of = Some(name.clone());
            }
        }
        self.tensors.extend(planes);
        self
    }

    /// A tensor as rows that can be read, if it is a matrix of numbers.
    fn matrix(&self, name: &str) -> Option<Matrix> {
        let t = self.tensors.get(name)?;
        let [rows, columns] = t.shape[..] else { return None };
        match &t.place {
            Place::File(file, range) => {
                let (file, range, layout) = (*file, range.clone(), Layout::Plain(t.dtype));
                Some(Matrix { file, range, layout, rows, columns, order: Order::Kept })
            }
            Place::Made(Recipe::Rows(m)) => Some(m.clone()),
            Place::Made(_) => None,
        }
    }
}
