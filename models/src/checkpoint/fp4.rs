//! Weights in e2m1 that files declare as bytes: two elements in one, the even one in the low half, and a scale
//! `NAME.scale` in e8m0 for every 32 elements of a row of `NAME.weight` (sheet `deepseek-v4`, "Quantised form"). The
//! formats and the two shapes together say so; nothing else has them.

use super::Located;
use hadal_types::DType;
use std::collections::BTreeMap;

/// Elements that share a scale.
const BLOCK: usize = 32;

/// Gives such tensors the format and the shape that they stand for. Their bytes are those of the format as they are.
pub(super) fn recognise(tensors: &mut BTreeMap<String, Located>) {
    let packed = |(name, t): (&String, &Located)| {
        let [rows, bytes] = t.shape[..] else { return None };
        let scales = tensors.get(&format!("{}.scale", name.strip_suffix(".weight")?))?;
        let columns = bytes.checked_mul(2)?;
        let fits = matches!(t.dtype, DType::I8 | DType::U8)
            && scales.dtype == DType::F8E8M0
            && scales.shape == [rows, columns.div_ceil(BLOCK)];
        fits.then(|| name.clone())
    };
    let names: Vec<String> = tensors.iter().filter_map(packed).collect();
    for name in names {
        let t = tensors.get_mut(&name).expect("it was just found");
        t.dtype = DType::F4E2M1;
        t.shape[1] *= 2;
    }
}

#[cfg(test)]
mod tests {
    use crate::checkpoint::Checkpoint;
    use hadal_types::DType;
    use safetensors::tensor::{Dtype, TensorView, serialize};

    #[test]
    fn only_bytes_with_scales_of_32_are_pairs() {
        let (weights, scales) = (vec![0x2fu8; 2 * 32], vec![127u8; 4]);
        let tensor =
            |dtype, shape: &[usize], bytes: &'static [u8]| TensorView::new(dtype, shape.to_vec(), bytes).unwrap();
        let (weights, scales): (&'static [u8], &'static [u8]) = (weights.leak(), scales.leak());
        let tensors = [
            ("a.weight", tensor(Dtype::I8, &[2, 32], weights)),
            ("a.scale", tensor(Dtype::F8_E8M0, &[2, 2], scales)),
            ("b.weight", tensor(Dtype::I8, &[2, 32], weights)),
            ("b.scale", tensor(Dtype::F8_E8M0, &[4, 1], scales)),
            ("c.weight", tensor(Dtype::I8, &[2, 32], weights)),
        ];
        let checkpoint = Checkpoint::from_memory([("file", serialize(tensors, None).unwrap())]).unwrap();
        let a = checkpoint.require("a.weight").unwrap();
        assert_eq!((a.dtype, a.shape, a.bytes.len()), (DType::F4E2M1, &[2, 64][..], 64));
        for name in ["b.weight", "c.weight"] {
            assert_eq!(checkpoint.require(name).unwrap().dtype, DType::I8, "{name}");
        }
    }
}
