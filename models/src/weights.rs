//! Weights of a checkpoint as a graph wants them: stacks put together, formats widened where the graph has one for all.

use crate::checkpoint::Checkpoint;
use hadal_ir::interpret::WeightSource;
use hadal_ir::module::expand_weight_name;
use hadal_ir::tensor::{Data, Tensor};
use hadal_types::{Bindings, DType, TensorType};
use std::collections::BTreeMap;
use std::io::Write;

/// A checkpoint as the source of a graph's weights.
#[derive(Clone, Copy, Debug)]
pub struct CheckpointWeights<'a>(pub &'a Checkpoint);

impl CheckpointWeights<'_> {
    /// Writes the weight `name` in the format of `ty`, little-endian and row-major, one stored tensor after another.
    pub fn write_to(&self, name: &str, ty: &TensorType, out: &mut impl Write) -> Result<(), String> {
        let parts = expand_weight_name(name);
        for part in &parts {
            let failed = |e: std::io::Error| match e.kind() {
                std::io::ErrorKind::InvalidData => format!("`{part}`: {e}"),
                _ => format!("writing failed: {e}"),
            };
            let stored = self.part(part, ty, parts.len())?;
            if stored.dtype == ty.dtype {
                stored.write_to(out).map_err(failed)?;
            } else {
                let mut tensor = self.decode(part, ty, parts.len())?;
                tensor.dtype = ty.dtype;
                out.write_all(&tensor.to_bytes()).map_err(failed)?;
            }
        }
        Ok(())
    }

    fn part(&self, name: &str, ty: &TensorType, of: usize) -> Result<crate::checkpoint::TensorRef<'_>, String> {
        let stored = self.0.tensor(name).ok_or_else(|| format!("no tensor `{name}` in the checkpoint"))?;
        let wanted = ty.count(&Bindings::new()).map_err(|s| format!("its size depends on {s}"))?;
        if stored.count() as f64 * of as f64 != wanted {
            return Err(format!("`{name}` is {}, which does not make {ty}", stored.describe()));
        }
        match widens(stored.dtype, ty.dtype) {
            true => Ok(stored),
            false => Err(format!("`{name}` is stored as {}, which {} cannot hold", stored.dtype, ty.dtype)),
        }
    }

    fn decode(&self, name: &str, ty: &TensorType, of: usize) -> Result<Tensor, String> {
        let stored = self.part(name, ty, of)?;
        let data = stored.data().map_err(|e| format!("`{name}`: {e}"))?;
        Tensor::from_bytes(stored.dtype, stored.shape, &data).ok_or_else(|| format!("`{name}` is damaged"))
    }
}

/// Weights that a model makes for itself, by name: tables that follow from its configuration and its tokenizer. Where
/// that is not at hand, as when only planning, they have no values yet.
pub type Made = BTreeMap<String, Option<Tensor>>;

/// All weights of a model: those that it makes, else those of a checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct ModelWeights<'a> {
    pub(crate) made: &'a Made,
    pub(crate) stored: CheckpointWeights<'a>,
}

impl ModelWeights<'_> {
    /// Writes the weight `name` in the format of `ty`, little-endian and row-major.
    pub fn write_to(&self, name: &str, ty: &TensorType, out: &mut impl Write) -> Result<(), String> {
        match self.made.contains_key(name) {
            true => out.write_all(&self.weight(name, ty)?.to_bytes()).map_err(|e| format!("writing failed: {e}")),
            false => self.stored.write_to(name, ty, out),
        }
    }
}

impl WeightSource for ModelWeights<'_> {
    fn weight(&self, name: &str, ty: &TensorType) -> Result<Tensor, String> {
        let Some(made) = self.made.get(name) else { return self.stored.weight(name, ty) };
        let made = made.as_ref().ok_or_else(|| format!("`{name}` is made from a tokenizer, and there is none"))?;
        let shape = ty.eval_shape(&Bindings::new()).map_err(|s| format!("its size depends on {s}"))?;
        match made.dtype == ty.dtype && made.shape == shape {
            true => Ok(made.clone()),
            false => Err(format!("`{name}` is made as {}{:?}, not {ty}", made.dtype, made.shape)),
        }
    }
}

/// Whether every value of `from` is one of `to`.
fn widens(from: DType, to: DType) -> bool {
    from == to || to == DType::F32 && matches!(from, DType::BF16 | DType::F16 | DType::F8E4M3 | DType::F8E8M0)
}

impl WeightSource for CheckpointWeights<'_> {
    fn weight(&self, name: &str, ty: &TensorType) -> Result<Tensor, String> {
        let shape = ty.eval_shape(&Bindings::new()).map_err(|s| format!("its size depends on {s}"))?;
        let parts = expand_weight_name(name);
        let (mut reals, mut ints) = (Vec::new(), Vec::new());
        for part in &parts {
            match self.decode(part, ty, parts.len())?.data {
                Data::Real(values) => reals.extend(values),
                Data::Int(values) => ints.extend(values),
            }
        }
        Ok(match ty.dtype.is_float() {
            true => Tensor::real(ty.dtype, &shape, reals),
            false => Tensor::int(ty.dtype, &shape, ints),
        })
    }
}
