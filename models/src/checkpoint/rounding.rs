//! Weights rounded to few bits when compiling (`--quantize`): symmetric, to the nearest, with a scale for each group of
//! neighbouring columns of a row.
//!
//! ```text
//! s = max |w| / 7 or 127,  rounded to f16;   q = round(w / s)
//! ```
//!
//! Codes go from -7 to 7 or -127 to 127: one value is left unused, so that the grid is symmetric and the largest magnitude of
//! a group is met on both sides. Where f16 is so coarse, near zero, that the largest would be half a step or more outside of
//! the grid, the next scale is taken. Magnitudes whose scale f16 cannot hold are refused while they are written.

use super::packed::{Level, Packed, Plane};
use super::recipe::{Layout, Matrix, Order, Reals, Recipe, push_codes};
use super::{Checkpoint, Located, Place};
use hadal_types::DType;
use std::collections::HashSet;
use std::io;

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

    /// The same with a group halved until it divides `columns`; where none does, the last group of a row is short. `None`
    /// where rows would not be whole bytes.
    pub fn fitting(self, columns: usize) -> Option<WeightOnly> {
        let halves = std::iter::successors(Some(self.group), |g| (g % 2 == 0 && g / 2 >= LEAST).then_some(g / 2));
        let group = halves.into_iter().find(|g| columns.is_multiple_of(*g)).unwrap_or(self.group);
        (columns as u64 * self.codes.bits()).is_multiple_of(8).then_some(WeightOnly { group, ..self })
    }

    fn largest(self) -> f32 {
        if self.codes == DType::I4 { 7.0 } else { 127.0 }
    }

    /// The scale of a group, if f16 has it.
    fn scale(self, group: &[f32]) -> io::Result<half::f16> {
        let refused = |what: String| Err(io::Error::new(io::ErrorKind::InvalidData, what));
        if group.iter().any(|w| !w.is_finite()) {
            return refused("an element that is no finite number cannot be rounded".into());
        }
        let most = group.iter().fold(0.0f32, |m, w| m.max(w.abs()));
        let nearest = half::f16::from_f32(most / self.largest());
        if nearest.is_infinite() {
            let limit = half::f16::MAX.to_f32() * self.largest();
            return refused(format!("an element of magnitude {most:e} cannot be rounded, as scales end at {limit:e}"));
        }
        let outside = most > (self.largest() + 0.5) * nearest.to_f32();
        Ok(if outside { half::f16::from_bits(nearest.to_bits() + 1) } else { nearest })
    }

    /// Appends what a row has in a plane.
    pub(super) fn round_row(self, row: &[f32], plane: Plane, out: &mut Vec<u8>) -> io::Result<()> {
        let mut codes = Vec::with_capacity(self.group);
        for group in row.chunks(self.group) {
            let scale = self.scale(group)?;
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
        Ok(())
    }
}

/// Which weights of a model are rounded, and to what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quantize {
    /// Matrices of products.
    pub matrices: WeightOnly,
    /// What has a row for every word: embeddings, of which a token takes one, and output heads, whose products decide
    /// between words. `None` where they stay as they are.
    pub words: Option<WeightOnly>,
}

impl From<WeightOnly> for Quantize {
    /// Words in eight bits, whatever the others have.
    fn from(matrices: WeightOnly) -> Quantize {
        Quantize { matrices, words: Some(WeightOnly { codes: DType::I8, ..matrices }) }
    }
}

/// What the scales of a weight in e4m3 may be called.
fn scales_of(name: &str) -> [String; 2] {
    [format!("{name}_scale_inv"), format!("{}.scale", name.strip_suffix(".weight").unwrap_or(name))]
}

/// Smallest group: smaller ones cost more scales than they save bits.
pub const LEAST: usize = 16;

impl Checkpoint {
    /// This checkpoint with its matrices readable in the planes of `to`. What has as many rows as the vocabulary has words
    /// is for words. What has fewer bits already stays as it is. Scales that lie beside a matrix in e4m3 are for `block` rows
    /// and columns each. With the number of matrices that this concerns.
    pub fn rounded(mut self, to: Quantize, vocab: Option<usize>, block: [usize; 2]) -> (Checkpoint, usize) {
        let before = self.packed.len();
        let mut planes: Vec<(String, Located)> = Vec::new();
        let scales: HashSet<String> = self.tensors.keys().flat_map(|name| scales_of(name)).collect();
        for (name, t) in self.tensors.iter().filter(|(name, _)| !scales.contains(*name)) {
            let [rows, columns] = t.shape[..] else { continue };
            let to = if Some(rows) == vocab { to.words } else { Some(to.matrices) };
            let (Some(to), false) = (to.and_then(|to| to.fitting(columns)), name.contains("norm")) else { continue };
            let (Some(matrix), false) = (self.matrix(name), t.of.is_some()) else { continue };
            let scales = scales_of(name).iter().find_map(|s| self.matrix(s)).map(|m| (m, block));
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
            for scales in scales_of(name) {
                self.tensors.get_mut(&scales).into_iter().for_each(|s| s.of = Some(name.clone()));
            }
        }
        self.tensors.extend(planes);
        let count = self.packed.len() - before;
        (self, count)
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

#[cfg(test)]
mod tests {
    use super::*;
    use hadal_ir::tensor::Tensor;
    use safetensors::tensor::{Dtype, TensorView, serialize};

    fn wave(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * i) as f32 * 0.37).sin() * (1.0 + (i / 32) as f32)).collect()
    }

    fn checkpoint() -> Checkpoint {
        let bf16 = |n| wave(n).into_iter().flat_map(|x| half::bf16::from_f32(x).to_le_bytes()).collect::<Vec<u8>>();
        let fp8 = Tensor::real(DType::F8E4M3, &[4, 48], wave(192).into_iter().map(f64::from).collect()).to_bytes();
        let scales: Vec<u8> = [0.5f32, 2.0, 3.0, 0.25, 1.5, 8.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        let tensors: [(&str, Dtype, &[usize], Vec<u8>); 6] = [
            ("a.weight", Dtype::BF16, &[3, 96], bf16(288)),
            ("b.weight", Dtype::F8_E4M3, &[4, 48], fp8),
            ("b.weight_scale_inv", Dtype::F32, &[2, 3], scales),
            ("c.weight", Dtype::BF16, &[2, 21], bf16(42)),
            ("embed.weight", Dtype::BF16, &[7, 32], bf16(224)),
            ("norm.weight", Dtype::BF16, &[1, 32], bf16(32)),
        ];
        let views = tensors.iter().map(|(n, d, s, b)| (*n, TensorView::new(*d, s.to_vec(), b).unwrap()));
        Checkpoint::from_memory([("m.safetensors".to_owned(), serialize(views, None).unwrap())]).unwrap()
    }

    fn read(c: &Checkpoint, name: &str) -> Tensor {
        let t = c.require(name).unwrap();
        Tensor::from_bytes(t.dtype, t.shape, &t.data().unwrap()).unwrap()
    }

    #[test]
    fn every_weight_is_within_half_a_step() {
        for (codes, names) in [(DType::I8, &["a", "b", "c", "embed"][..]), (DType::I4, &["a", "b", "embed"])] {
            let (c, count) = checkpoint().rounded(WeightOnly { codes, group: 64 }.into(), Some(7), [2, 16]);
            assert_eq!(count, names.len());
            for name in names {
                let name = format!("{name}.weight");
                let packed = c.packed(&name).unwrap();
                let (w, q, s) =
                    (read(&c, &name), read(&c, &format!("{name}.codes")), read(&c, &format!("{name}.scales")));
                let [rows, columns] = w.shape[..] else { panic!("a matrix") };
                assert_eq!(s.shape, [rows, columns.div_ceil(packed.group)]);
                for i in 0..w.len() {
                    let (row, column) = (i / columns, i % columns);
                    let by = if name == "b.weight" {
                        read(&c, "b.weight_scale_inv").at(row / 2 * 3 + column / 16)
                    } else {
                        1.0
                    };
                    let step = s.at(row * s.shape[1] + column / packed.group);
                    let off = (q.at(i) * step - w.at(i) * by).abs();
                    // A scale that was rounded down leaves the largest a little outside.
                    assert!(off <= step * 0.57, "{name} {i}: off by {off}, step {step}");
                }
            }
            assert!(c.packed("norm.weight").is_none());
            assert_eq!(c.packed("embed.weight").map(|p| p.codes), Some(DType::I8));
            assert_eq!(c.origin("b.weight_scale_inv"), "b.weight");
        }
    }

    #[test]
    fn words_may_stay_as_they_are() {
        let to = Quantize { words: None, ..WeightOnly { codes: DType::I8, group: 64 }.into() };
        let (c, count) = checkpoint().rounded(to, Some(7), [2, 16]);
        assert!(count == 3 && c.packed("embed.weight").is_none());
    }

    #[test]
    fn small_weights_keep_what_scales_can_say_and_large_ones_are_refused() {
        let tiny = half::f16::from_bits(1).to_f32();
        for to in [WeightOnly { codes: DType::I8, group: 4 }, WeightOnly { codes: DType::I4, group: 4 }] {
            let round = |row: &[f32], plane| {
                let mut out = Vec::new();
                to.round_row(row, plane, &mut out).map(|()| out).map_err(|e| e.to_string())
            };
            // All the groups with scales of few bits, some between two of them, and those without any.
            for most in (1..4000).map(|n| tiny * n as f32 * to.largest() / 37.0).chain([0.0, 1e-30]) {
                let row = [most, -most, most / 3.0, 0.0];
                let scale = round(&row, Plane::Scales).unwrap();
                let scale = half::f16::from_le_bytes([scale[0], scale[1]]).to_f32();
                assert_eq!(scale > 0.0, most > 0.0, "{to:?} {most:e}");
                let bytes = round(&row, Plane::Codes).unwrap();
                let codes = Tensor::from_bytes(to.codes, &[4], &bytes).unwrap();
                for (i, w) in row.iter().enumerate() {
                    let off = (codes.at(i) as f32 * scale - w).abs();
                    assert!(off <= scale * 0.5001, "{to:?} {w:e}: off by {off:e}, step {scale:e}");
                }
            }
            let limit = 65504.0 * to.largest();
            assert!(round(&[limit, 0.0, 0.0, 0.0], Plane::Scales).is_ok());
            for plane in [Plane::Codes, Plane::Scales] {
                let error = round(&[0.0, limit * 1.001, 0.0, 0.0], plane).unwrap_err();
                assert!(error.contains("scales end at"), "{error}");
                for bad in [f32::NAN, f32::INFINITY] {
                    assert!(round(&[1.0, bad], plane).unwrap_err().contains("no finite number"));
                }
            }
        }
    }

    #[test]
    fn groups_divide_rows_where_they_can() {
        let group = |codes, columns| WeightOnly { codes, group: 128 }.fitting(columns).map(|w| w.group);
        assert_eq!(
            [group(DType::I4, 256), group(DType::I4, 96), group(DType::I8, 90)],
            [Some(128), Some(32), Some(128)]
        );
        assert_eq!([group(DType::I8, 21), group(DType::I4, 21)], [Some(128), None]);
    }
}
