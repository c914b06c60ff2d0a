//! `config.json` of `DeepseekV4ForCausalLM`, as published, as transformers writes it, and in the spelling of the
//! repository's own code.

use crate::blocks::assembly::Frame;
use crate::blocks::drafts::Drafter;
use crate::blocks::kept::Narrow;
use crate::blocks::mhc::Hyper;
use crate::blocks::moe::{Moe, Score};
use crate::blocks::rope::Scaling;
use crate::blocks::selection::Selection;
use crate::blocks::shared_kv::SharedKv;
use crate::blocks::streams::Trunk;
use crate::config_reader::{Object, Spelling};
use crate::error::Result;
use crate::formats::{Own, Plan, SHORT_NAMES};
use hadal_types::DType;

/// What the repository's own code takes for granted.
static OWN: Own = Own { dtype: "fp8", block: 128, fp4: false, scheme: &SHORT_NAMES, eps: 1e-6, max_position: 1 << 20 };

/// How rows are rounded of which so many channels turn; eight bytes hold the scales of one.
fn still(turning: usize) -> Narrow {
    Narrow { values: DType::F8E4M3, block: 64, scales: DType::F8E8M0, aligned: 8, rest: turning }
}

/// A DeepSeek-V4 model.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    pub(super) trunk: Trunk,
    /// Of layers whose compressed rows overlap.
    pub(super) selection: Option<Selection>,
}

/// The ratio of layers that select among their compressed rows, which overlap; others see all of them.
pub(super) const SELECTED: usize = 4;

/// Whether `o` is a configuration of the repository's own code.
pub(crate) fn is_reference(o: &Object<'_>) -> bool {
    ["dim", "n_layers", "compress_ratios", "n_hash_layers"].iter().all(|k| o.has(k)) && !o.has("kv_source_layers")
}

impl Config {
    /// Reads it strictly.
    pub fn read(o: &Object<'_>) -> Result<Config> {
        // Copies of one release disagree; entries of `compress_ratios` behind the last layer count.
        o.ignore(&["num_nextn_predict_layers", "router_jitter_noise"]);
        if o.bool_or("mlp_bias", false)? {
            return Err(o.error("mlp_bias", "false"));
        }
        let frame = Frame { plan: Plan::read_with(o, &SHORT_NAMES)?, ..Frame::read_sizes(o)? };
        let stretch = stretch(o)?;
        stretch.ignore(&["rope_theta", "partial_rotary_factor"]);
        Config::sizes(o, Spelling::Published, frame, Scaling::only_yarn(&stretch)?)
    }

    /// Reads a configuration of the repository's own code.
    pub(crate) fn read_reference(o: &Object<'_>) -> Result<Config> {
        Config::sizes(o, Spelling::Own, Frame::read_own(o, &OWN)?, Scaling::own_yarn(o)?)
    }

    /// Reads what both forms have.
    fn sizes(o: &Object<'_>, spelling: Spelling, frame: Frame, stretch: Scaling) -> Result<Config> {
        let attention = SharedKv::read(o, spelling, frame.eps, true, still, stretch)?;
        let ratios = ratios(o, frame.layers)?;
        let moe = Moe::read_everywhere(o, spelling)?;
        if !moe.normalise {
            return Err(o.error("norm_topk_prob", "true, as the weights of chosen experts are divided by their sum"));
        }
        // Those of a softmax are shares already.
        let moe = Moe { normalise: moe.score != Score::Softmax, ..moe };
        Ok(Config {
            selection: match ratios.contains(&SELECTED) {
                false => None,
                true => Some(Selection::read(o, attention.far.dim, true)?),
            },
            trunk: Trunk {
                hyper: Hyper::read(o, frame.eps, false)?,
                hashed: hashed(o, spelling.key("num_hash_layers", "n_hash_layers"), frame.layers)?,
                drafter: drafter(o, &frame, &moe, &ratios[frame.layers..], spelling)?,
                memory: None,
                attention,
                ratios,
                moe,
                frame,
            },
        })
    }
}

/// The draft head, if there is one, with a stage for each ratio `behind` the last layer. It reads what its target
/// layers leave.
fn drafter(o: &Object<'_>, frame: &Frame, moe: &Moe, behind: &[usize], spelling: Spelling) -> Result<Option<Drafter>> {
    if !o.has("dspark_block_size") || behind.is_empty() {
        return Ok(None);
    }
    let drafter = Drafter::read(o, frame, moe, behind, spelling)?;
    Ok(Some(Drafter {
        before: drafter.before.iter().map(|layer| layer + 1).collect(),
        experts: Moe { normalise: moe.normalise, ..drafter.experts },
        markov: ["markov_w1", "markov_w2"],
        ..drafter
    }))
}

/// Where the stretch of compressed rows is: `rope_scaling`, or what transformers makes of it.
fn stretch<'a>(o: &Object<'a>) -> Result<Object<'a>> {
    if o.has("rope_scaling") {
        return o.require_object("rope_scaling");
    }
    let parameters = o.require_object("rope_parameters")?;
    parameters.ignore(&["main"]);
    Ok(parameters.optional_object("compress")?.unwrap_or(parameters))
}

/// `compress_ratios`; or, as transformers has it, the kind of each layer and the ratio of each kind. Where there are
/// both, they say the same.
fn ratios(o: &Object<'_>, layers: usize) -> Result<Vec<usize>> {
    const KINDS: [&str; 3] = ["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"];
    let by_kind: Option<Vec<usize>> = match o.str_list("layer_types")? {
        None => None,
        Some(kinds) => {
            let rates = o.optional_object("compress_rates")?;
            let rate = |kind, default| rates.as_ref().map_or(Ok(default), |r| r.usize_or(kind, default));
            let known = [0, rate(KINDS[1], SELECTED)?, rate(KINDS[2], 128)?];
            // Layers are told apart by their ratios from here on.
            let refused = |kind, expected| Err(rates.as_ref().unwrap_or(o).error(kind, expected));
            if known[1] != SELECTED {
                return refused(KINDS[1], "4, the only ratio at which rows overlap and are selected");
            }
            if [0, SELECTED].contains(&known[2]) {
                return refused(KINDS[2], "a ratio but 0 and 4, which other kinds of layers have");
            }
            let of = |kind: &str| KINDS.iter().position(|k| *k == kind).map(|i| known[i]);
            let Some(ratios) = kinds.iter().map(|kind| of(kind)).collect() else {
                return Err(o.error("layer_types", format!("a list of {}", KINDS.join(", "))));
            };
            Some(ratios)
        }
    };
    let (key, ratios) = match (o.usize_list("compress_ratios")?, by_kind) {
        (Some(ratios), Some(by_kind)) if by_kind.iter().take(layers).ne(ratios.iter().take(layers)) => {
            let expected = format!("{by_kind:?}, as layer_types and compress_rates say");
            return Err(o.error("compress_ratios", expected));
        }
        (Some(ratios), _) => ("compress_ratios", ratios),
        (None, by_kind) => ("layer_types", by_kind.unwrap_or_default()),
    };
    if !(layers..=layers + 8).contains(&ratios.len()) || ratios.iter().any(|r| *r > 1 << 20) {
        let expected = format!("a ratio for each of {layers} layers, and for those that predict further tokens");
        return Err(o.error(key, expected));
    }
    Ok(ratios)
}

/// How many of the first layers choose experts by token.
fn hashed(o: &Object<'_>, key: &str, layers: usize) -> Result<usize> {
    let Some(kinds) = o.str_list("mlp_layer_types")?.filter(|_| !o.has(key)) else {
        return o.require_usize_in(key, 0..=layers);
    };
    let hashed = kinds.iter().take_while(|k| **k == "hash_moe").count();
    if kinds.len() != layers || kinds[hashed..].iter().any(|k| *k != "moe") {
        let expected = format!("\"hash_moe\" for the first of {layers} layers, then \"moe\"");
        return Err(o.error("mlp_layer_types", expected));
    }
    Ok(hashed)
}
