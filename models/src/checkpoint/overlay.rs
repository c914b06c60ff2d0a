//! Adapters that are sets of full tensors, as ESFT publishes them: files with the usual names that replace tensors of a
//! base checkpoint (sheet `deepseek-moe`, "ESFT"; deepseek-ai/ESFT `esft.py`).

use super::{Checkpoint, Place};
use crate::error::{Error, Result};

impl Checkpoint {
    /// This checkpoint with the tensors of `adapter` instead of its own of the same names. Older adapters leave out the
    /// leading `model.`. Formats may differ (trained experts are sometimes f32); shapes may not.
    ///
    /// All tensors that do not fit are reported together.
    pub fn with_adapter(mut self, adapter: Checkpoint) -> Result<Checkpoint> {
        let first = self.files.len();
        let (mut unknown, mut misshapen, mut replaced) = (Vec::new(), Vec::new(), Vec::new());
        for (name, mut located) in adapter.tensors {
            let full = if self.tensors.contains_key(&name) { name.clone() } else { format!("model.{name}") };
            match self.tensors.get_mut(&full) {
                None => unknown.push(name),
                Some(base) if base.shape != located.shape => {
                    misshapen.push(format!("{name} is {:?}, in the base {:?}", located.shape, base.shape));
                }
                Some(base) => {
                    match &mut located.place {
                        Place::File(file, _) => *file += first,
                        Place::Made(recipe) => recipe.matrices().for_each(|m| m.file += first),
                    }
                    *base = located;
                    replaced.push(full);
                }
            }
        }
        if !unknown.is_empty() || !misshapen.is_empty() {
            return Err(Error::Adapter { dir: adapter.place, base: self.place, unknown, misshapen });
        }
        // What was read of the base in planes is now read as it is.
        self.packed.retain(|name, _| !replaced.contains(name));
        self.files.extend(adapter.files);
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::{Dtype, TensorView, serialize};

    fn checkpoint(file: &str, tensors: &[(&str, &[usize], f32)]) -> Checkpoint {
        let bytes: Vec<(&str, &[usize], Vec<u8>)> =
            tensors.iter().map(|(n, shape, v)| (*n, *shape, v.to_le_bytes().repeat(shape.iter().product()))).collect();
        let views = bytes.iter().map(|(n, s, b)| (*n, TensorView::new(Dtype::F32, s.to_vec(), b).unwrap()));
        let file = [(file.to_owned(), serialize(views, None).unwrap())];
        Checkpoint::from_memory(file).unwrap()
    }

    #[test]
    fn tensors_are_replaced_by_name() {
        let base = checkpoint("base", &[("model.layers.1.a", &[2], 1.0), ("model.layers.1.b", &[2], 2.0)]);
        let adapter = checkpoint("adapter", &[("layers.1.b", &[2], 5.0)]);
        let merged = base.with_adapter(adapter).unwrap();
        assert_eq!(merged.len(), 2);
        assert_eq!(merged.require("model.layers.1.a").unwrap().bytes[..4], 1f32.to_le_bytes());
        let b = merged.require("model.layers.1.b").unwrap();
        assert_eq!((b.bytes[..4].to_vec(), b.file.to_str()), (5f32.to_le_bytes().to_vec(), Some("adapter")));
    }

    #[test]
    fn all_that_does_not_fit_is_reported() {
        let base = checkpoint("base", &[("model.a", &[2], 1.0)]);
        let adapter = checkpoint("adapter", &[("a", &[3], 5.0), ("c", &[1], 5.0)]);
        let error = base.with_adapter(adapter).unwrap_err().to_string();
        assert!(error.contains("c") && error.contains("a is [3], in the base [2]"), "{error}");
    }
}
