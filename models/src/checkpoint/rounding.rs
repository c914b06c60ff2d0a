//! Weights rounded to few bits when compiling (`--quantize`): to the nearest, with a scale for each group of
//! neighbouring columns of a row.
//!
//! ```text
//! s = -w* / e,  rounded to f16;   q = round(w / s)       w*: the element of the largest magnitude
//! ```
//!
//! Codes of eight bits go from -127 to 127 and `e` is 127: one value is left unused, so that the grid is symmetric. Of
//! four bits all sixteen values are used, from -8 to 7, and `w*` lies on the longer side; `e` is what leaves the least
//! sum of squares of those in [`ENDS`], as a finer grid is worth more to most groups than its largest element (a third
//! less than with codes from -7 to 7 and `e = 7`, on weights of a real model and on normal ones).
//!
//! Codes in e4m3 go from -448 to 448, `e` is 448, and `q` is the nearest of them.
//!
//! Where f16 is so coarse, near zero, that the largest would be half a step or more outside of the grid, the next scale
//! is taken. Magnitudes whose scale f16 cannot hold are refused while they are written.

use super::packed::{Level, Packed};
use super::recipe::{KeptScales, Layout, Matrix, Order, Reals, Recipe, push_codes};
use super::{Checkpoint, Located, Place};
use hadal_types::DType;
use hadal_types::minifloat::e4m3_from_f32;
use std::collections::HashSet;
use std::io;

/// To what weights are rounded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WeightOnly {
    /// `I8`, `I4` or `F8E4M3`.
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

    /// The same with a group halved until it divides `columns`; where none does, the last group of a row is short.
    /// `None` where rows would not be whole bytes.
    pub fn fitting(self, columns: usize) -> Option<WeightOnly> {
        let halves = std::iter::successors(Some(self.group), |g| (g % 2 == 0 && g / 2 >= LEAST).then_some(g / 2));
        let group = halves.into_iter().find(|g| columns.is_multiple_of(*g)).unwrap_or(self.group);
        (columns as u64 * self.codes.bits()).is_multiple_of(8).then_some(WeightOnly { group, ..self })
    }

    /// Where the largest magnitude of a group may lie, in steps.
    fn ends(self) -> &'static [f32] {
        match self.codes {
            DType::I4 => &ENDS,
            DType::F8E4M3 => &[448.0],
            _ => &[127.0],
        }
    }

    /// The least and the largest code.
    fn codes(self) -> [f32; 2] {
        match self.codes {
            DType::I4 => [-8.0, 7.0],
            DType::F8E4M3 => [-448.0, 448.0],
            _ => [-127.0, 127.0],
        }
    }

    /// Half of the last step of the grid.
    fn half_step(self) -> f32 {
        if self.codes == DType::F8E4M3 { 16.0 } else { 0.5 }
    }

    /// The scale of a group, if f16 has it.
    fn scale(self, group: &[f32]) -> io::Result<half::f16> {
        let refused = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        let Some(far) = farthest(group) else {
            return Err(refused("an element that is no finite number cannot be rounded".into()));
        };
        let mut best: Option<(f32, half::f16)> = None;
        for end in self.ends() {
            let nearest = half::f16::from_f32(-far / end);
            let outside = far.abs() > (end + self.half_step()) * nearest.to_f32().abs();
            let scale = if outside { half::f16::from_bits(nearest.to_bits() + 1) } else { nearest };
            let off = if self.ends().len() > 1 { squares(group, scale.to_f32(), self.codes()) } else { 0.0 };
            if scale.is_finite() && best.is_none_or(|(least, _)| off < least) {
                best = Some((off, scale));
            }
        }
        best.map(|(_, scale)| scale).ok_or_else(|| {
            let limit = half::f16::MAX.to_f32() * self.ends().iter().fold(0.0f32, |m, e| m.max(*e));
            let most = far.abs();
            refused(format!("an element of magnitude {most:e} cannot be rounded, as scales end at {limit:e}"))
        })
    }

    /// Appends the scales of a row.
    pub(super) fn scales_of_row(self, row: &[f32], out: &mut Vec<half::f16>) -> io::Result<()> {
        row.chunks(self.group).try_for_each(|group| {
            out.push(self.scale(group)?);
            Ok(())
        })
    }

    /// Appends the codes of a row that has these scales.
    pub(super) fn codes_of_row(self, row: &[f32], scales: &[half::f16], out: &mut Vec<u8>) {
        let [least, most] = self.codes();
        let mut codes = Vec::with_capacity(self.group);
        for (group, scale) in row.chunks(self.group).zip(scales) {
            let scale = scale.to_f32();
            let code = |w: &f32| match self.codes {
                DType::F8E4M3 => e4m3_from_f32(w / scale) as i8,
                _ => integer((w / scale).clamp(least, most)),
            };
            codes.clear();
            match scale == 0.0 {
                true => codes.resize(group.len(), 0),
                false => codes.extend(group.iter().map(code)),
            }
            push_codes(self.codes, &codes, out);
        }
    }
}

/// The first of the elements with the largest magnitude, zero where all are; `None` where one is no finite number. In
/// lanes, so that vectors are made of it.
fn farthest(group: &[f32]) -> Option<f32> {
    let (eights, rest) = group.as_chunks::<8>();
    let (mut most, mut finite) = ([0.0f32; 8], [true; 8]);
    for eight in eights {
        for i in 0..8 {
            let w = eight[i].abs();
            most[i] = if w > most[i] { w } else { most[i] };
            finite[i] &= w < f32::INFINITY;
        }
    }
    let most = rest.iter().map(|w| w.abs()).chain(most).fold(0.0f32, f32::max);
    let finite = finite == [true; 8] && rest.iter().all(|w| w.is_finite());
    finite.then(|| group.iter().copied().find(|w| w.abs() == most && most > 0.0).unwrap_or(0.0))
}

/// Where the largest magnitude of a group may lie on a grid of four bits. The first of equally good ones is taken.
const ENDS: [f32; 6] = [8.0, 7.0, 7.5, 8.5, 9.0, 10.0];

/// From here on there are no numbers but integers, which stand in the low bits.
const INTEGERS: f32 = 1.5 * (1 << 23) as f32;

/// The nearest integer of a small number, of two the even one, without a call: so that vectors are made of it.
fn nearest(x: f32) -> f32 {
    (x + INTEGERS) - INTEGERS
}

/// The same where eight bits hold it.
fn integer(x: f32) -> i8 {
    (x + INTEGERS).to_bits() as i8
}

/// The sum of squares of what rounding with this scale leaves of a group.
fn squares(group: &[f32], scale: f32, [least, most]: [f32; 2]) -> f32 {
    if scale == 0.0 {
        return group.iter().map(|w| w * w).sum();
    }
    let inverse = scale.recip();
    let off = |w: &f32| {
        let code = nearest((w * inverse).clamp(least, most));
        let off = w - code * scale;
        off * off
    };
    let (eights, rest) = group.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for eight in eights {
        sums.iter_mut().zip(eight).for_each(|(sum, w)| *sum += off(w));
    }
    sums.iter().sum::<f32>() + rest.iter().map(off).sum::<f32>()
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
    /// This checkpoint with its matrices readable in the planes of `to`. What has as many rows as the vocabulary has
    /// words is for words. What has fewer bits already stays as it is. Scales that lie beside a matrix in e4m3 are for
    /// `block` rows and columns each. With the number of matrices that this concerns.
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
            if !wide && !scaled || matrix.layout == Layout::Plain(to.codes) {
                continue;
            }
            let reals = Reals { matrix, scales: scales.filter(|_| scaled) };
            let kept = KeptScales::default();
            for (plane, dtype, shape) in to.packed().planes([rows, columns]) {
                let place = Place::Made(Recipe::Rounded(reals.clone(), to, plane, kept.clone()));
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
    fn every_weight_is_within_half_a_step_or_at_an_end_of_the_grid() {
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
                    let end = q.dtype == DType::I4 && [-8.0, 7.0].contains(&q.at(i));
                    assert!(off <= step.abs() * 0.57 || end, "{name} {i}: off by {off}, step {step}");
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
            let round = |row: &[f32]| {
                let (mut scales, mut codes) = (Vec::new(), Vec::new());
                to.scales_of_row(row, &mut scales).map_err(|e| e.to_string())?;
                to.codes_of_row(row, &scales, &mut codes);
                Ok::<_, String>((scales[0].to_f32(), codes))
            };
            let largest = if to.codes == DType::I4 { 10.0 } else { 127.0 };
            // All the groups with scales of few bits, some between two of them, and those without any.
            for most in (1..4000).map(|n| tiny * n as f32 * largest / 37.0).chain([0.0, 1e-30]) {
                let row = [most, -most, most / 3.0, 0.0];
                let (scale, bytes) = round(&row).unwrap();
                assert_eq!(scale != 0.0, most > 0.0, "{to:?} {most:e}");
                let codes = Tensor::from_bytes(to.codes, &[4], &bytes).unwrap();
                for (i, w) in row.iter().enumerate() {
                    let off = (codes.at(i) as f32 * scale - w).abs();
                    let end = to.codes == DType::I4 && [-8.0, 7.0].contains(&codes.at(i));
                    assert!(off <= scale.abs() * 0.5001 || end, "{to:?} {w:e}: off by {off:e}, step {scale:e}");
                }
            }
            let limit = 65504.0 * largest;
            assert!(round(&[limit, 0.0, 0.0, 0.0]).is_ok());
            let error = round(&[0.0, limit * 1.001, 0.0, 0.0]).unwrap_err();
            assert!(error.contains("scales end at"), "{error}");
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                assert!(round(&[1.0, bad]).unwrap_err().contains("no finite number"));
            }
        }
    }

    #[test]
    fn eight_bits_may_be_a_float() {
        let to = WeightOnly { codes: DType::F8E4M3, group: 64 };
        let (c, count) = checkpoint().rounded(to.into(), Some(7), [2, 16]);
        // What is e4m3 with scales stays so.
        assert!(count == 3 && c.packed("b.weight").is_none());
        assert_eq!(c.packed("embed.weight").map(|p| p.codes), Some(DType::I8));
        let [w, q, s] = ["", ".codes", ".scales"].map(|plane| read(&c, &format!("a.weight{plane}")));
        let group = c.packed("a.weight").unwrap().group;
        assert_eq!([q.dtype, s.dtype, w.dtype], [DType::F8E4M3, DType::F16, DType::BF16]);
        for i in 0..w.len() {
            let scale = s.at(i / 96 * 96_usize.div_ceil(group) + i % 96 / group) as f32;
            let nearest = DType::F8E4M3.round((w.at(i) as f32 / scale).into());
            assert_eq!(q.at(i), nearest, "{i}: {} by {scale}", w.at(i));
        }
        assert!((0..q.len()).any(|i| q.at(i).abs() == 448.0));
    }

    /// What is left of `w`, rounded in groups of 32, as a sum of squares.
    fn left(w: &[f32], to: WeightOnly) -> f32 {
        let (mut scales, mut codes) = (Vec::new(), Vec::new());
        to.scales_of_row(w, &mut scales).unwrap();
        to.codes_of_row(w, &scales, &mut codes);
        let codes = Tensor::from_bytes(to.codes, &[w.len()], &codes).unwrap();
        let off = |i: usize| codes.at(i) as f32 * scales[i / to.group].to_f32() - w[i];
        (0..w.len()).map(|i| off(i).powi(2)).sum()
    }

    #[test]
    fn four_bits_leave_least_where_the_largest_may_lie_off_the_grid() {
        let to = WeightOnly { codes: DType::I4, group: 32 };
        // Sums of several waves are spread much as weights are.
        let at = |i: usize| [0.37, 0.91, 1.73, 2.57].map(|k| ((i * i) as f32 * k).sin()).iter().sum::<f32>();
        let w: Vec<f32> = (0..32 * 64).map(at).collect();
        let (mut symmetric, mut whole) = (0.0, 0.0);
        for group in w.chunks(32) {
            let far = group.iter().fold(0.0f32, |m, w| if w.abs() > m.abs() { *w } else { m });
            let at = |end: f32| squares(group, half::f16::from_f32(-far / end).to_f32(), to.codes());
            let least = ENDS.map(at).into_iter().fold(f32::INFINITY, f32::min);
            let found = left(group, to);
            assert!((found - least).abs() <= 1e-3 * least, "{found} left, could be {least}");
            (symmetric, whole) = (symmetric + at(7.0), whole + found);
        }
        assert!(whole < 0.9 * symmetric, "{whole} of {symmetric}");
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

    #[test]
    fn the_farthest_is_the_first_of_those_as_far() {
        let mut group: Vec<f32> = (0..37).map(|i| (i % 7) as f32 - 3.0).collect();
        assert_eq!(farthest(&group), Some(-3.0));
        for at in [0, 5, 8, 31, 36] {
            for far in [3.0f32, -4.0, f32::NAN, f32::NEG_INFINITY] {
                let kept = std::mem::replace(&mut group[at], far);
                let plain = group.iter().fold(0.0f32, |m, w| if w.abs() > m.abs() { *w } else { m });
                assert_eq!(farthest(&group), group.iter().all(|w| w.is_finite()).then_some(plain), "{at} {far}");
                group[at] = kept;
            }
        }
        assert_eq!(farthest(&[-0.0; 9]).map(f32::to_bits), Some(0));
    }

    #[test]
    fn planes_are_the_same_in_any_order_and_however_often_they_are_written() {
        let plane = |c: &Checkpoint, name: &str| c.require(name).unwrap().data().unwrap().into_owned();
        for codes in [DType::I8, DType::I4] {
            let rounded = || checkpoint().rounded(WeightOnly { codes, group: 32 }.into(), Some(7), [2, 16]).0;
            for name in ["a.weight", "b.weight", "embed.weight"] {
                let [codes, scales] = ["codes", "scales"].map(|p| format!("{name}.{p}"));
                let (alone, c) = ((plane(&rounded(), &codes), plane(&rounded(), &scales)), rounded());
                for order in [[&codes, &scales], [&scales, &codes], [&codes, &codes], [&scales, &scales]] {
                    for name in order {
                        assert_eq!(plane(&c, name), if *name == codes { &alone.0 } else { &alone.1 }[..], "{order:?}");
                    }
                }
            }
        }
    }
}
