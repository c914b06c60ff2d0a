//! In which element format each weight is stored: asked of the checkpoint, or planned from the configuration. And to
//! which format the inputs of products with such weights are rounded, where that is asked for.

use crate::checkpoint::Checkpoint;
use crate::config_reader::Object;
use crate::error::Result;
use hadal_ir::module::expand_weight_name;
use hadal_types::DType;

/// Formats of a linear layer's weights that contractions read as they are.
pub const PLAIN: [DType; 3] = [DType::BF16, DType::F16, DType::F32];

/// Formats of the scales of a block-scaled weight.
pub const SCALES: [DType; 4] = [DType::F32, DType::F8E8M0, DType::BF16, DType::F16];

/// End of the name of the scales of a block-scaled weight, after the weight's own name.
pub const SCALE: &str = "_scale_inv";

/// Answers in which format a tensor is stored.
pub trait DtypeOracle {
    /// The format of the stored tensor `name`, or `None` where there is no such tensor.
    fn dtype(&self, name: &str) -> Option<DType>;

    /// Whether absence is an answer. Where it is not, formats are planned from the configuration.
    fn complete(&self) -> bool {
        true
    }
}

impl DtypeOracle for Checkpoint {
    fn dtype(&self, name: &str) -> Option<DType> {
        self.tensor(name).map(|t| t.dtype)
    }
}

/// No checkpoint at hand: all formats are those that the configuration announces.
#[derive(Clone, Copy, Debug)]
pub struct Planned;

impl DtypeOracle for Planned {
    fn dtype(&self, _: &str) -> Option<DType> {
        None
    }
    fn complete(&self) -> bool {
        false
    }
}

/// The formats a configuration announces.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Plan {
    /// `torch_dtype`: the format of whatever is not quantised.
    pub dtype: DType,
    /// Rows and columns that share a scale, where linear layers are stored in e4m3 (`quantization_config`).
    pub block: Option<[usize; 2]>,
    /// Whether scales are powers of two (`scale_fmt`): those of weights as stored, those of activations rounded up.
    pub pow2: bool,
}

impl Plan {
    /// Reads `torch_dtype` (or `dtype`) and `quantization_config`.
    pub fn read(o: &Object<'_>) -> Result<Plan> {
        let names = ["bfloat16", "float16", "float32", "float8_e4m3fn"];
        let key = if o.has("torch_dtype") { "torch_dtype" } else { "dtype" };
        let dtype = match o.str_in_or(key, &names, "bfloat16")? {
            "float16" => DType::F16,
            "float32" => DType::F32,
            _ => DType::BF16,
        };
        let Some(q) = o.optional_object("quantization_config")? else {
            return Ok(Plan { dtype, block: None, pow2: false });
        };
        q.require_str_in("quant_method", &["fp8"])?;
        q.str_in_or("fmt", &["e4m3"], "e4m3")?;
        q.str_in_or("activation_scheme", &["dynamic"], "dynamic")?;
        let pow2 = q.optional_str_in("scale_fmt", &["ue8m0", "float"])? == Some("ue8m0");
        // What is not converted shows in the checkpoint itself.
        q.ignore(&["modules_to_not_convert", "ignored_layers"]);
        let sizes = q.usize_list("weight_block_size")?.unwrap_or_default();
        match sizes[..] {
            [rows @ 1..=65536, columns @ 1..=65536] => Ok(Plan { dtype, block: Some([rows, columns]), pow2 }),
            _ => Err(q.error("weight_block_size", "two sizes, [rows, columns], each from 1 to 65536")),
        }
    }

    /// The format announced for `name`: linear layers of the blocks are quantised; embeddings, heads, norms, routers,
    /// the weights of an indexer's heads and the projection that begins an MTP layer are not.
    fn dtype(&self, name: &str) -> DType {
        let ends = |with: &[&str]| with.iter().any(|end| name.ends_with(end));
        let linear = ends(&["_proj.weight", "_proj_with_mqa.weight", "indexer.wq_b.weight", "indexer.wk.weight"]);
        if name.ends_with(SCALE) || name.ends_with("e_score_correction_bias") {
            DType::F32
        } else if self.block.is_some() && linear && !ends(&["eh_proj.weight", "indexer.weights_proj.weight"]) {
            DType::F8E4M3
        } else {
            self.dtype
        }
    }
}

/// What products with block-scaled weights read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Activations {
    /// Their inputs as they are.
    #[default]
    F32,
    /// Their inputs rounded to e4m3, with a scale for every row and block of channels chosen by the values there: what
    /// the releases' own code does, and what such models were trained with. Blocks and scales are those of
    /// `quantization_config`.
    Fp8,
}

/// How a row is rounded to e4m3.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rounding {
    /// Neighbours that share a scale.
    pub block: usize,
    /// Whether scales are rounded up to powers of two.
    pub pow2: bool,
}

/// The formats of a model's weights: the oracle's answers, completed by the plan. And of what they are multiplied with.
#[derive(Clone, Copy)]
pub struct Formats<'a> {
    /// What is stored.
    pub oracle: &'a dyn DtypeOracle,
    /// What was announced.
    pub plan: Plan,
    /// What is multiplied with block-scaled weights.
    pub activations: Activations,
}

impl Formats<'_> {
    /// The format of the weight `name`. For a stack it is that of its tensors where they agree, else f32, which holds
    /// them all. Tensors that are absent, or stored in a format that cannot be a weight, count with the announced
    /// format, so that the comparison with the checkpoint reports them.
    pub fn of(&self, name: &str) -> DType {
        if !self.oracle.complete() {
            return self.plan.dtype(name);
        }
        let usable = |d: &DType| match name.ends_with(SCALE) {
            true => SCALES.contains(d),
            false => PLAIN.contains(d) || *d == DType::F8E4M3,
        };
        let names = expand_weight_name(name);
        let mut formats = names.iter().map(|n| self.oracle.dtype(n).filter(usable).unwrap_or(self.plan.dtype(n)));
        let first = formats.next().unwrap_or(self.plan.dtype);
        if formats.all(|d| d == first) { first } else { DType::F32 }
    }

    /// Whether `name` is stored, or would be where there is no checkpoint to ask.
    pub fn has(&self, name: &str) -> bool {
        !self.oracle.complete() || self.oracle.dtype(name).is_some()
    }

    /// The block that shares a scale in the weight `name`: where scales are stored beside it, or where it is in e4m3
    /// and the configuration says that there should be scales.
    pub fn block(&self, name: &str) -> Option<[usize; 2]> {
        let stored = |n: String| self.oracle.dtype(&format!("{n}{SCALE}")).is_some();
        if self.oracle.complete() && expand_weight_name(name).into_iter().any(stored) {
            return Some(self.plan.block.unwrap_or([128, 128]));
        }
        self.plan.block.filter(|_| self.of(name) == DType::F8E4M3)
    }

    /// How the input of products with the weight `name` is rounded, where it is.
    pub fn rounding(&self, name: &str) -> Option<Rounding> {
        let [_, block] = self.block(name).filter(|_| self.activations == Activations::Fp8)?;
        Some(Rounding { block, pow2: self.plan.pow2 })
    }
}
