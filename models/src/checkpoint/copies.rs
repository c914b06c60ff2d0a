//! Tensors that a checkpoint holds under several names. Published multi-token prediction has copies of embedding and
//! head, of gigabytes each; files need not hold them twice.

use super::{Checkpoint, Place};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

/// Smaller ones are not worth a look.
const LEAST: usize = 1024;

/// What is read of a tensor before it is compared in full.
const BEGINNING: usize = 64;

/// A file by position, and bytes of it.
type Bytes = (usize, Range<usize>);

impl Checkpoint {
    /// Names of tensors with the elements of another one, whose name it gives: the first of them all. Made ones, the
    /// planes of rounded weights above all, are the same where they are made alike of the same.
    pub fn copies(&self) -> BTreeMap<&str, &str> {
        let first = self.equal_bytes();
        let known = |file: usize, range: &Range<usize>| -> Bytes {
            first.get(&(file, range.clone())).cloned().unwrap_or((file, range.clone()))
        };
        let mut names: HashMap<String, &str> = HashMap::new();
        let mut out = BTreeMap::new();
        for (name, t) in &self.tensors {
            let of = match &t.place {
                Place::File(file, range) => format!("{:?}", known(*file, range)),
                Place::Made(recipe) => {
                    let mut recipe = recipe.clone();
                    recipe.matrices().for_each(|m| (m.file, m.range) = known(m.file, &m.range));
                    format!("{recipe:?}")
                }
            };
            let key = format!("{}{:?} {of}", t.dtype, t.shape);
            let known = *names.entry(key).or_insert(name);
            if known != name {
                out.insert(name.as_str(), known);
            }
        }
        out
    }

    /// Ranges of files with the bytes of an earlier one, and that one.
    fn equal_bytes(&self) -> HashMap<Bytes, Bytes> {
        let mut groups: HashMap<(usize, &[u8]), Vec<Bytes>> = HashMap::new();
        let mut out = HashMap::new();
        let bytes = |(file, range): &Bytes| &self.files[*file].bytes[range.clone()];
        for t in self.tensors.values() {
            let Place::File(file, range) = &t.place else { continue };
            let own = (*file, range.clone());
            if range.len() < LEAST {
                continue;
            }
            let group = groups.entry((range.len(), &bytes(&own)[..BEGINNING])).or_default();
            match group.iter().find(|other| bytes(other) == bytes(&own)) {
                Some(other) if *other != own => drop(out.insert(own, other.clone())),
                Some(_) => {}
                None => group.push(own),
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::WeightOnly;
    use hadal_types::DType;
    use safetensors::tensor::{Dtype, TensorView, serialize};

    #[test]
    fn copies_are_known_by_their_bytes_and_so_are_their_planes() {
        let values = |seed: u32| (0..512u32).flat_map(|i| ((i * seed) as f32).sin().to_le_bytes()).collect::<Vec<u8>>();
        let mut late = values(3);
        late[2047] ^= 1;
        let cases: [(&str, &[usize], Vec<u8>); 5] = [
            ("a.weight", &[16, 32], values(3)),
            ("b.weight", &[16, 32], values(3)),
            ("c.weight", &[32, 16], values(3)),
            ("d.weight", &[16, 32], values(5)),
            ("e.weight", &[16, 32], late),
        ];
        let views = cases.iter().map(|(n, s, b)| (*n, TensorView::new(Dtype::F32, s.to_vec(), b).unwrap()));
        let file = [("m.safetensors".to_owned(), serialize(views, None).unwrap())];
        let checkpoint = Checkpoint::from_memory(file).unwrap();
        assert_eq!(checkpoint.copies(), [("b.weight", "a.weight")].into());
        let to = WeightOnly { codes: DType::I8, group: 16 };
        let (rounded, _) = checkpoint.rounded(to.into(), None, [128, 128]);
        let expected = ["", ".codes", ".scales"].map(|plane| (format!("b.weight{plane}"), format!("a.weight{plane}")));
        let found = rounded.copies().into_iter().map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(found.collect::<Vec<_>>(), expected);
    }
}
