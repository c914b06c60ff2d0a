//! In which element format each weight is stored: asked of the checkpoint, or planned from the configuration. And to
//! which format the inputs of products with such weights are rounded, where that is asked for.

use crate::checkpoint::{Checkpoint, Packed};
use crate::config_reader::Object;
use crate::error::Result;
use hadal_ir::module::expand_weight_name;
use hadal_types::DType;

/// Formats of a linear layer's weights that contractions read as they are.
pub const PLAIN: [DType; 3] = [DType::BF16, DType::F16, DType::F32];

/// Formats of the scales of a block-scaled weight.
pub const SCALES: [DType; 4] = [DType::F32, DType::F8E8M0, DType::BF16, DType::F16];

/// Columns of a weight in e2m1 that share a scale.
const FP4_BLOCK: usize = 32;

/// How a family stores what it quantises: parts of names, and how scales are called.
#[derive(PartialEq, Eq, Debug)]
pub struct Scheme {
    /// In names of weights in e4m3, where anything is quantised.
    pub fp8: &'static [&'static str],
    /// In names of those that are not, although the former are in them.
    pub not_fp8: &'static [&'static str],
    /// In names of weights in e2m1 with a scale for 32 columns of a row, unless the configuration says that they are in
    /// e4m3.
    pub fp4: &'static [&'static str],
    /// In names of weights that are f32 whatever the others are.
    pub wide: &'static [&'static str],
    /// In names of tables of 64-bit integers.
    pub integers: &'static [&'static str],
    /// What stands instead of `.weight` in the name of a weight's scales.
    pub scale: &'static str,
    /// Whether scales that are powers of two are stored as such.
    pub narrow_scales: bool,
}

/// The names of V2, V3 and most others.
pub static PROJECTIONS: Scheme = Scheme {
    fp8: &["_proj.weight", "_proj_with_mqa.weight", "indexer.wq_b.weight", "indexer.wk.weight"],
    not_fp8: &["eh_proj.weight", "indexer.weights_proj.weight"],
    fp4: &[],
    wide: &["e_score_correction_bias"],
    integers: &[],
    scale: ".weight_scale_inv",
    narrow_scales: false,
};

/// The names of V4 and V4.1.
pub static SHORT_NAMES: Scheme = Scheme {
    fp8: &[
        "attn.wq_a.",
        "attn.wq_b.",
        "attn.wkv.",
        "attn.wo_a.",
        "attn.wo_b.",
        "indexer.wq_b.",
        "shared_experts.",
        ".e_proj.",
        ".h_proj.",
        "main_proj.",
        "engram.wkv.",
        "engram.embed.",
    ],
    not_fp8: &[],
    fp4: &["ffn.experts."],
    wide: &["hc_", ".ape", "attn_sink", "gate.bias"],
    integers: &["tid2eid"],
    scale: ".scale",
    narrow_scales: true,
};

impl Scheme {
    /// The name of the scales of the weight `name`.
    pub fn scales_of(&self, name: &str) -> String {
        format!("{}{}", name.strip_suffix(".weight").unwrap_or(name), self.scale)
    }

    /// Whether `name` is that of scales.
    pub fn is_scale(&self, name: &str) -> bool {
        name.ends_with(self.scale)
    }
}

/// Answers in which format a tensor is stored.
pub trait DtypeOracle {
    /// The format of the stored tensor `name`, or `None` where there is no such tensor.
    fn dtype(&self, name: &str) -> Option<DType>;

    /// How the weight `name` is packed, where it is stored in few bits with scales for groups.
    fn packed(&self, _name: &str) -> Option<Packed> {
        None
    }

    /// Whether absence is an answer. Where it is not, formats are planned from the configuration.
    fn complete(&self) -> bool {
        true
    }
}

impl DtypeOracle for Checkpoint {
    fn dtype(&self, name: &str) -> Option<DType> {
        self.tensor(name).map(|t| t.dtype)
    }

    fn packed(&self, name: &str) -> Option<Packed> {
        self.packed(name)
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

/// What the own code of a family's repository takes for granted.
#[derive(Clone, Copy, Debug)]
pub struct Own {
    /// `dtype`, where the configuration does not say.
    pub dtype: &'static str,
    /// Rows, and columns, that share a scale.
    pub block: usize,
    /// Whether weights that may be in e2m1 are, where `expert_dtype` does not say.
    pub fp4: bool,
    /// What is quantised, and the names of scales.
    pub scheme: &'static Scheme,
    /// `norm_eps`, where the configuration does not say.
    pub eps: f64,
    /// `max_seq_len`, where the configuration does not say.
    pub max_position: usize,
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
    /// Whether weights that may be in e2m1 are (`expert_dtype`).
    pub fp4: bool,
    /// What is quantised, and the names of scales.
    pub scheme: &'static Scheme,
}

impl Plan {
    /// Nothing is quantised.
    pub fn plain(dtype: DType) -> Plan {
        Plan { dtype, block: None, pow2: false, fp4: true, scheme: &PROJECTIONS }
    }

    /// The plan of a family that names what it quantises by `scheme`. `expert_dtype` may stand beside
    /// `quantization_config` or inside, or be left out where weights are in e2m1 all the same.
    pub fn read_with(o: &Object<'_>, scheme: &'static Scheme) -> Result<Plan> {
        let names = ["fp4", "fp8"];
        let beside = o.optional_str_in("expert_dtype", &names)?;
        let inside = match o.optional_object("quantization_config")? {
            Some(q) => q.optional_str_in("expert_dtype", &names)?,
            None => None,
        };
        Ok(Plan { fp4: inside.or(beside) != Some("fp8"), scheme, ..Plan::read(o)? })
    }

    /// The plan in the spelling of the repositories' own code.
    pub fn read_own(o: &Object<'_>, own: &Own) -> Result<Plan> {
        let expert = if own.scheme.fp4.is_empty() { None } else { o.optional_str_in("expert_dtype", &["fp4", "fp8"])? };
        Ok(Plan {
            block: (o.str_in_or("dtype", &["bf16", "fp8"], own.dtype)? == "fp8").then_some([own.block; 2]),
            pow2: o.optional_str_in("scale_fmt", &["ue8m0"])?.is_some(),
            fp4: expert.map_or(own.fp4, |e| e == "fp4"),
            scheme: own.scheme,
            ..Plan::plain(DType::BF16)
        })
    }

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
            return Ok(Plan::plain(dtype));
        };
        if q.require_str_in("quant_method", &["fp8", "modelopt", "compressed-tensors"])? != "fp8" {
            // Names and formats of the tensors say it all; what is not known among them, the check reports.
            q.ignore(&q.keys().collect::<Vec<_>>());
            return Ok(Plan::plain(dtype));
        }
        q.str_in_or("fmt", &["e4m3"], "e4m3")?;
        q.str_in_or("activation_scheme", &["dynamic"], "dynamic")?;
        let pow2 = q.optional_str_in("scale_fmt", &["ue8m0", "float"])? == Some("ue8m0");
        // What is not converted shows in the checkpoint itself.
        q.ignore(&["modules_to_not_convert", "ignored_layers"]);
        let sizes = q.usize_list("weight_block_size")?.unwrap_or_default();
        match sizes[..] {
            [rows @ 1..=65536, columns @ 1..=65536] => {
                Ok(Plan { block: Some([rows, columns]), pow2, ..Plan::plain(dtype) })
            }
            _ => Err(q.error("weight_block_size", "two sizes, [rows, columns], each from 1 to 65536")),
        }
    }

    /// The format announced for `name`.
    fn dtype(&self, name: &str) -> DType {
        let s = self.scheme;
        let has = |parts: &[&str]| parts.iter().any(|p| name.contains(p));
        let quantised = self.block.is_some() && !has(s.not_fp8);
        match () {
            _ if s.is_scale(name) && s.narrow_scales && self.pow2 => DType::F8E8M0,
            _ if s.is_scale(name) || has(s.wide) => DType::F32,
            _ if has(s.integers) => DType::I64,
            _ if quantised && self.fp4 && has(s.fp4) => DType::F4E2M1,
            _ if quantised && (has(s.fp8) || has(s.fp4)) => DType::F8E4M3,
            _ => self.dtype,
        }
    }
}

/// What is rounded besides the weights.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Activations {
    /// Nothing.
    #[default]
    F32,
    /// The inputs of products with narrow weights: to bf16, as engines do that compute in bf16. Where a processor has
    /// instructions for pairs of bf16, products run by them.
    Bf16,
    /// The same, but for products with weights of eight bits or four that have scales for groups of a row: their inputs
    /// are rounded to `i8`, with a scale for as many neighbours as the weights' scales have, from 32 to 128. Where a
    /// processor has instructions for bytes, products run by them.
    Int8,
    /// What states keep, where a release defines how: stored in those formats.
    Cache,
    /// That, and the inputs of products with block-scaled weights: to e4m3, with a scale for every row and block of
    /// channels chosen by the values there, as the releases' own code does and as such models were trained. Blocks and
    /// scales are those of `quantization_config`.
    Fp8,
}

/// How a row is rounded, with a scale for each few neighbours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rounding {
    /// Neighbours that share a scale.
    pub block: usize,
    /// To what.
    pub to: Code,
}

/// What elements are rounded to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Code {
    /// e4m3.
    E4M3 {
        /// Whether scales are rounded up to powers of two.
        pow2: bool,
    },
    /// Integers from -127 to 127.
    I8,
}

/// Neighbours that share a scale in rows of integers, where weights have other groups: fewer cost more than they gain,
/// of more one is too often much larger than the others.
const INT8_BLOCKS: [usize; 2] = [32, 128];

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
        let usable = |d: &DType| match self.plan.scheme.is_scale(name) {
            true => SCALES.contains(d),
            false => PLAIN.contains(d) || matches!(d, DType::F8E4M3 | DType::F4E2M1),
        };
        let names = expand_weight_name(name);
        let mut formats = names.iter().map(|n| self.oracle.dtype(n).filter(usable).unwrap_or(self.plan.dtype(n)));
        let first = formats.next().unwrap_or(self.plan.dtype);
        if formats.all(|d| d == first) { first } else { DType::F32 }
    }

    /// How the weight `name` is packed: a stack only where all of it is packed alike.
    pub fn packed(&self, name: &str) -> Option<Packed> {
        let names = expand_weight_name(name);
        let mut all = names.iter().map(|n| self.oracle.packed(n));
        let first = all.next()??;
        all.all(|p| p == Some(first)).then_some(first)
    }

    /// Whether `name` is stored, or would be where there is no checkpoint to ask.
    pub fn has(&self, name: &str) -> bool {
        !self.oracle.complete() || self.oracle.dtype(name).is_some()
    }

    /// The name of the scales of the weight `name`: that of its family, unless scales lie beside it under another's.
    pub fn scales_of(&self, name: &str) -> String {
        let own = self.plan.scheme.scales_of(name);
        let other = PROJECTIONS.scales_of(name);
        let stored = |n: &str| expand_weight_name(n).iter().any(|n| self.oracle.dtype(n).is_some());
        if own != other && !stored(&own) && stored(&other) { other } else { own }
    }

    /// The block that shares a scale in the weight `name`: where scales are stored beside it, or where it is in a
    /// narrow format and the configuration says that there should be scales.
    pub fn block(&self, name: &str) -> Option<[usize; 2]> {
        let dtype = self.of(name);
        let stored = |n: &String| self.oracle.dtype(n).is_some();
        let scales = self.oracle.complete() && expand_weight_name(&self.scales_of(name)).iter().any(stored);
        match dtype {
            DType::F4E2M1 => Some([1, FP4_BLOCK]),
            _ if scales => Some(self.plan.block.unwrap_or([128, 128])),
            _ => self.plan.block.filter(|_| dtype == DType::F8E4M3),
        }
    }

    /// Whether the input of products with the weight `name` is rounded to bf16.
    pub fn halves(&self, name: &str) -> bool {
        let narrow = || self.packed(name).is_some() || self.of(name) != DType::F32;
        matches!(self.activations, Activations::Bf16 | Activations::Int8) && narrow()
    }

    /// How the input of products with the weight `name` is rounded in blocks, where it is.
    pub fn rounding(&self, name: &str) -> Option<Rounding> {
        match self.activations {
            Activations::Fp8 => {
                self.block(name)?;
                let [_, block] = self.plan.block.unwrap_or([128, 128]);
                Some(Rounding { block, to: Code::E4M3 { pow2: self.plan.pow2 } })
            }
            Activations::Int8 => {
                let planes = self.packed(name).map(|packed| (packed.codes, packed.group));
                let (codes, group) = planes.unwrap_or((self.of(name), FP4_BLOCK));
                let few = matches!(codes, DType::I8 | DType::U8 | DType::I4 | DType::U4 | DType::F4E2M1);
                let [least, most] = INT8_BLOCKS;
                few.then_some(Rounding { block: group.clamp(least, most), to: Code::I8 })
            }
            _ => None,
        }
    }
}
