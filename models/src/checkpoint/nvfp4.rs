//! Weights in e2m1 with e4m3 scales for 16 columns, and one f32 for all of them, as two families of tools name them.
//!
//! | | codes, two a byte | scales | the f32 |
//! |---|---|---|---|
//! | ModelOpt | `NAME.weight` | `NAME.weight_scale` | `NAME.weight_scale_2`, a factor |
//! | compressed-tensors | `NAME.weight_packed` | `NAME.weight_scale` | `NAME.weight_global_scale`, a divisor |
//!
//! What they say of activations (`NAME.input_scale`, `NAME.input_global_scale`) is passed over: products read f32.

use super::packed::{Level, Over, Packed, Plane};
use super::recipe::{Layout, Matrix, Order, Recipe};
use super::{Located, Place};
use hadal_types::DType;
use std::collections::BTreeMap;

/// Columns that share a scale.
const GROUP: usize = 16;

/// Adds the planes of all such weights, and how they are packed.
pub(super) fn find(tensors: &mut BTreeMap<String, Located>) -> BTreeMap<String, Packed> {
    let mut packed = BTreeMap::new();
    let is_scale = |t: &Located| t.dtype == DType::F8E4M3 && t.shape.len() == 2;
    let stems: Vec<String> = tensors
        .iter()
        .filter(|(_, t)| is_scale(t))
        .filter_map(|(name, _)| Some(name.strip_suffix(".weight_scale")?.to_owned()))
        .collect();
    for stem in stems {
        if let Some((planes, how)) = weight(tensors, &stem) {
            let name = format!("{stem}.weight");
            for end in [
                "weight_packed",
                "weight_scale",
                "weight_scale_2",
                "weight_global_scale",
                "input_scale",
                "input_global_scale",
            ] {
                tensors.get_mut(&format!("{stem}.{end}")).into_iter().for_each(|t| t.of = Some(name.clone()));
            }
            for (plane, mut located) in planes {
                located.of = Some(name.clone());
                tensors.insert(format!("{name}{}", plane.suffix()), located);
            }
            packed.insert(name, how);
        }
    }
    packed
}

/// The planes of the weight whose parts' names begin with `stem`, if all are there and fit.
fn weight(tensors: &BTreeMap<String, Located>, stem: &str) -> Option<(Vec<(Plane, Located)>, Packed)> {
    let get = |end: &str| tensors.get(&format!("{stem}.{end}"));
    let codes = get("weight_packed").or(get("weight")).filter(|t| t.dtype == DType::U8)?;
    let scales = get("weight_scale")?;
    let [rows, bytes] = codes.shape[..] else { return None };
    let columns = bytes.checked_mul(2)?;
    let groups = [rows, columns.div_ceil(GROUP)];
    let single = |t: &Located| t.dtype == DType::F32 && t.shape.iter().all(|n| *n == 1);
    let (factor, divisor) = (get("weight_scale_2"), get("weight_global_scale"));
    // One that is there and cannot be read is not as good as none: it would be left out of the product.
    if scales.shape != groups || ![factor, divisor].into_iter().flatten().all(single) {
        return None;
    }
    let file = |t: &Located, dtype, shape: [usize; 2]| {
        let Place::File(file, range) = &t.place else { return None };
        Some(Located { dtype, shape: shape.into(), place: Place::File(*file, range.clone()), of: None })
    };
    let mut planes = vec![
        (Plane::Codes, file(codes, DType::F4E2M1, [rows, columns])?),
        (Plane::Scales, file(scales, DType::F8E4M3, groups)?),
    ];
    let over = match (factor, divisor) {
        (Some(t), _) => Some(file(t, DType::F32, [1, 1])?),
        (None, Some(t)) => {
            let Place::File(number, range) = &t.place else { return None };
            let (file, range, layout) = (*number, range.clone(), Layout::Plain(DType::F32));
            let one = Matrix { file, range, layout, rows: 1, columns: 1, order: Order::Kept };
            Some(Located { dtype: DType::F32, shape: vec![1, 1], place: Place::Made(Recipe::Inverse(one)), of: None })
        }
        (None, None) => None,
    };
    let level = Level { dtype: DType::F8E4M3, over: over.as_ref().map(|_| Over { dtype: DType::F32, block: groups }) };
    planes.extend(over.map(|t| (Plane::ScalesOver, t)));
    Some((planes, Packed { codes: DType::F4E2M1, group: GROUP, scales: level, offsets: None }))
}

#[cfg(test)]
mod tests {
    use crate::checkpoint::{Checkpoint, Plane};
    use hadal_ir::tensor::Tensor;
    use hadal_types::DType;
    use safetensors::tensor::{Dtype, TensorView, serialize};

    fn checkpoint(tensors: &[(&str, Dtype, &[usize], Vec<u8>)]) -> Checkpoint {
        let views = tensors.iter().map(|(n, d, s, b)| (*n, TensorView::new(*d, s.to_vec(), b).unwrap()));
        Checkpoint::from_memory([("m.safetensors".to_owned(), serialize(views, None).unwrap())]).unwrap()
    }

    fn real(c: &Checkpoint, name: &str) -> Tensor {
        let t = c.require(name).unwrap();
        Tensor::from_bytes(t.dtype, t.shape, &t.data().unwrap()).unwrap()
    }

    #[test]
    fn both_namings_have_planes() {
        let codes: Vec<u8> = (0..32).map(|i| i * 7).collect();
        // 1.0, 2.0, 0.5, 448 in e4m3.
        let scales = vec![0x38, 0x40, 0x30, 0x7e];
        let parts = |names: [&'static str; 3], x: f32| {
            checkpoint(&[
                (names[0], Dtype::U8, &[2, 16], codes.clone()),
                (names[1], Dtype::F8_E4M3, &[2, 2], scales.clone()),
                (names[2], Dtype::F32, &[1], x.to_le_bytes().to_vec()),
                ("a.input_scale", Dtype::F32, &[1], vec![0; 4]),
            ])
        };
        for c in [
            parts(["a.weight", "a.weight_scale", "a.weight_scale_2"], 0.25),
            parts(["a.weight_packed", "a.weight_scale", "a.weight_global_scale"], 4.0),
        ] {
            let packed = c.packed("a.weight").unwrap();
            assert_eq!((packed.codes, packed.group), (DType::F4E2M1, 16));
            let planes = packed.planes([2, 32]);
            assert_eq!(
                planes.iter().map(|p| (p.0, p.2)).collect::<Vec<_>>(),
                [(Plane::Codes, [2, 32]), (Plane::Scales, [2, 2]), (Plane::ScalesOver, [1, 1])]
            );
            assert_eq!(real(&c, "a.weight.scales.scales").reals(), [0.25]);
            assert_eq!(real(&c, "a.weight.scales").reals(), [1.0, 2.0, 0.5, 448.0]);
            // The low half of a byte comes first: 7 is the code of 6, 14 of -4.
            let codes = real(&c, "a.weight.codes");
            assert_eq!((codes.shape.clone(), codes.at(2), codes.at(4), codes.at(3)), (vec![2, 32], 6.0, -4.0, 0.0));
            assert!(c.tensors().all(|(n, _)| c.origin(n) == "a.weight"));
        }
    }

    #[test]
    fn what_does_not_fit_is_left_alone() {
        let odd = checkpoint(&[
            ("a.weight", Dtype::U8, &[2, 16], vec![0; 32]),
            ("a.weight_scale", Dtype::F8_E4M3, &[2, 3], vec![0; 6]),
        ]);
        assert!(odd.packed("a.weight").is_none() && odd.len() == 2);
        for (end, dtype, shape, bytes) in [
            ("weight_scale_2", Dtype::BF16, &[1][..], 2),
            ("weight_scale_2", Dtype::F32, &[2], 8),
            ("weight_global_scale", Dtype::BF16, &[1], 2),
            ("weight_global_scale", Dtype::F32, &[2], 8),
        ] {
            let odd = checkpoint(&[
                ("a.weight_packed", Dtype::U8, &[2, 16], vec![0; 32]),
                ("a.weight_scale", Dtype::F8_E4M3, &[2, 2], vec![0; 4]),
                (&format!("a.{end}"), dtype, shape, vec![1; bytes]),
            ]);
            assert!(odd.packed("a.weight").is_none() && odd.len() == 3, "{end} {dtype:?} {shape:?}");
        }
    }
}
