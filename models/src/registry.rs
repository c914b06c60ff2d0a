//! Which model a configuration describes: decided by its own keys, never by the name of its folder.

use crate::blocks::assembly::Architecture;
use crate::blocks::rope::AttnFactor;
use crate::config_reader::{Config, Object};
use crate::error::{Error, Result};
use crate::{
    deepseek_moe, deepseek_v2, deepseek_v3, deepseek_v4, deepseek_v32, deepseek_v41, engram, llama, nsa, qwen,
};

/// What a configuration describes, and how that shows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recognised {
    /// The family's name.
    pub name: &'static str,
    /// The keys that decided.
    pub why: String,
}

type Read = fn(&Object<'_>, AttnFactor) -> Result<Box<dyn Architecture>>;

/// A kind of model: its name, the names it has in configurations, and its reader.
struct Family {
    name: &'static str,
    model_type: &'static str,
    architecture: &'static str,
    read: Read,
}

const FAMILIES: &[Family] = &[
    Family {
        name: "llama",
        model_type: "llama",
        architecture: "LlamaForCausalLM",
        read: |o, a| Ok(Box::new(llama::Config::read(o, a)?)),
    },
    Family {
        name: "qwen2",
        model_type: "qwen2",
        architecture: "Qwen2ForCausalLM",
        read: |o, a| Ok(Box::new(qwen::Config::read(o, a, qwen::Generation::Second)?)),
    },
    Family {
        name: "qwen3",
        model_type: "qwen3",
        architecture: "Qwen3ForCausalLM",
        read: |o, a| Ok(Box::new(qwen::Config::read(o, a, qwen::Generation::Third)?)),
    },
    Family {
        name: "deepseek-moe",
        model_type: "deepseek",
        architecture: "DeepseekForCausalLM",
        read: |o, a| Ok(Box::new(deepseek_moe::Config::read(o, a)?)),
    },
    Family {
        name: "deepseek-v2",
        model_type: "deepseek_v2",
        architecture: "DeepseekV2ForCausalLM",
        read: |o, a| Ok(Box::new(deepseek_v2::Config::read(o, a)?)),
    },
    Family {
        name: "deepseek-v3",
        model_type: "deepseek_v3",
        architecture: "DeepseekV3ForCausalLM",
        read: |o, a| Ok(Box::new(deepseek_v3::Config::read(o, a)?)),
    },
    Family {
        name: "deepseek-v3.2",
        model_type: "deepseek_v32",
        architecture: "DeepseekV32ForCausalLM",
        read: |o, a| Ok(Box::new(deepseek_v32::Config::read(o, a)?)),
    },
    Family {
        name: "deepseek-v4",
        model_type: "deepseek_v4",
        architecture: "DeepseekV4ForCausalLM",
        read: |o, _| Ok(Box::new(deepseek_v4::Config::read(o)?)),
    },
    Family {
        name: "deepseek-v4.1",
        model_type: "deepseek_v41",
        architecture: "DeepseekV41ForCausalLM",
        read: |o, _| Ok(Box::new(deepseek_v41::Config::read(o)?)),
    },
    Family {
        name: "nsa",
        model_type: "nsa",
        architecture: "NSAForCausalLM",
        read: |o, a| Ok(Box::new(nsa::Config::read(o, a)?)),
    },
    Family {
        name: "engram-demo",
        model_type: "engram_demo",
        architecture: "EngramDemo",
        read: |o, _| Ok(Box::new(engram::Config::read(o)?)),
    },
];

/// The repositories' own form of configuration, which has neither `architectures` nor `model_type`.
const REFERENCE: Family = Family {
    name: "deepseek-v3",
    model_type: "",
    architecture: "",
    read: |o, _| Ok(Box::new(deepseek_v3::Config::read_reference(o)?)),
};

/// The same with an indexer.
const SPARSE_REFERENCE: Family =
    Family { name: "deepseek-v3.2", read: |o, _| Ok(Box::new(deepseek_v32::Config::read_reference(o)?)), ..REFERENCE };

/// V4 in its repository's form.
const STREAMS_REFERENCE: Family =
    Family { name: "deepseek-v4", read: |o, _| Ok(Box::new(deepseek_v4::Config::read_reference(o)?)), ..REFERENCE };

/// V4.1 in its repository's form.
const SHARING_REFERENCE: Family =
    Family { name: "deepseek-v4.1", read: |o, _| Ok(Box::new(deepseek_v41::Config::read_reference(o)?)), ..REFERENCE };

/// Says which model `config` describes.
pub fn recognise(config: &Config) -> Result<Recognised> {
    find(config).map(|(recognised, _)| recognised)
}

/// Reads `config` as the model that it describes.
pub fn read(config: &Config, attn_factor: AttnFactor) -> Result<(Recognised, Box<dyn Architecture>)> {
    let (recognised, family) = find(config)?;
    let architecture = (family.read)(&config.object(), attn_factor)?;
    Ok((recognised, architecture))
}

fn find(config: &Config) -> Result<(Recognised, &'static Family)> {
    let o = config.object();
    let architecture = o.str_list("architectures")?.and_then(|a| a.first().copied());
    let model_type = o.optional_str("model_type")?;
    let known = |key: &str, name: fn(&Family) -> &'static str| {
        let names: Vec<String> = FAMILIES.iter().map(|f| format!("{:?}", name(f))).collect();
        o.error(key, format!("one of {}", names.join(", ")))
    };
    let family = match (architecture, model_type) {
        (Some(a), _) => {
            FAMILIES.iter().find(|f| f.architecture == a).ok_or_else(|| known("architectures", |f| f.architecture))?
        }
        (None, Some(m)) => {
            FAMILIES.iter().find(|f| f.model_type == m).ok_or_else(|| known("model_type", |f| f.model_type))?
        }
        (None, None) if deepseek_v41::is_reference(&o) => {
            let why = "the keys of the V4.1 repository's inference configurations (dim, n_layers, kv_source_layers)";
            return Ok((Recognised { name: SHARING_REFERENCE.name, why: why.into() }, &SHARING_REFERENCE));
        }
        (None, None) if deepseek_v4::is_reference(&o) => {
            let why = "the keys of the V4 repository's inference configurations (dim, n_layers, compress_ratios)";
            return Ok((Recognised { name: STREAMS_REFERENCE.name, why: why.into() }, &STREAMS_REFERENCE));
        }
        (None, None) if deepseek_v3::is_reference(&o) => {
            let (family, keys) = match o.has("index_topk") {
                true => (&SPARSE_REFERENCE, "V3.2 repository's inference configurations (dim, n_layers, index_topk)"),
                false => (&REFERENCE, "V3 repository's inference configurations (dim, n_layers, kv_lora_rank)"),
            };
            return Ok((Recognised { name: family.name, why: format!("the keys of the {keys}") }, family));
        }
        (None, None) => return Err(known("architectures", |f| f.architecture)),
    };
    if model_type.is_some_and(|m| m != family.model_type) {
        return Err(o.error("model_type", format!("{:?}, which {:?} has", family.model_type, family.architecture)));
    }
    let mut why = Vec::new();
    why.extend(architecture.map(|a| format!("architectures = [{a:?}]")));
    why.extend(model_type.map(|m| format!("model_type = {m:?}")));
    Ok((Recognised { name: family.name, why: why.join(", ") }, family))
}

/// The error that the sizes of `config` do not fit together.
pub(crate) fn graph_error(config: &Config, source: Box<hadal_ir::builder::BuildError>) -> Error {
    Error::Graph { file: config.file().into(), source }
}
