//! `config.json` of `DeepseekV41ForCausalLM`, which has the model of text inside `text_config`; and the flat
//! configuration of the repository's own code, which spells many keys in another way.

use crate::blocks::assembly::Frame;
use crate::blocks::drafts::Drafter;
use crate::blocks::engram::Tables;
use crate::blocks::kept::Narrow;
use crate::blocks::mhc::Hyper;
use crate::blocks::moe::Moe;
use crate::blocks::rope::Scaling;
use crate::blocks::selection::{Blocks, Selection};
use crate::blocks::shared_kv::SharedKv;
use crate::blocks::sharing::{self, Candidates, Shared};
use crate::blocks::streams::Trunk;
use crate::config_reader::{Object, Spelling};
use crate::error::Result;
use crate::formats::{Own, Plan, SHORT_NAMES};
use hadal_types::DType;

/// What the repository's own code takes for granted.
static OWN: Own = Own { dtype: "fp8", block: 32, fp4: true, scheme: &SHORT_NAMES, eps: 1e-20, max_position: 1 << 20 };

/// How rows of windows are rounded.
const WINDOW: Narrow = Narrow { values: DType::F8E4M3, block: 32, scales: DType::F8E8M0, aligned: 1, rest: 0 };

/// A DeepSeek-V4.1 model.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    pub(super) trunk: Trunk,
    pub(super) selection: Selection,
    /// Candidate blocks, where there are any.
    pub(super) blocks: Option<Blocks>,
    /// What each layer with compressed rows reads of which others.
    pub(super) shared: Vec<Option<Shared>>,
}

/// Whether `o` is a configuration of the repository's own code.
pub(crate) fn is_reference(o: &Object<'_>) -> bool {
    ["dim", "n_layers", "compress_ratios", "kv_source_layers"].iter().all(|k| o.has(k))
}

impl Config {
    /// Reads it strictly. What concerns images only is passed over.
    pub fn read(o: &Object<'_>) -> Result<Config> {
        o.ignore(&["transformers_version", "pad_token_id", "image_token_id", "vision_config"]);
        let text = o.require_object("text_config")?;
        text.optional_str_in("model_type", &["deepseek_v41_text"])?;
        let sizes = Frame::read_sizes(&text)?;
        let frame = Frame {
            bos: o.token_ids("bos_token_id", sizes.vocab)?.and_then(|ids| ids.first().copied()).or(sizes.bos),
            eos: o.token_ids("eos_token_id", sizes.vocab)?.unwrap_or(sizes.eos),
            plan: Plan::read_with(o, &SHORT_NAMES)?,
            ..sizes
        };
        let stretch = Scaling::only_yarn(&text.require_object("rope_scaling")?)?;
        Config::sizes(&text, Spelling::Published, frame, stretch)
    }

    /// Reads a configuration of the repository's own code.
    pub(crate) fn read_reference(o: &Object<'_>) -> Result<Config> {
        if o.optional_f64("gate_temp")?.is_some_and(|t| t != 1.0) {
            return Err(o.error("gate_temp", "1, as no release divides its scores"));
        }
        Config::sizes(o, Spelling::Own, Frame::read_own(o, &OWN)?, Scaling::own_yarn(o)?)
    }

    /// Reads what both forms have.
    fn sizes(o: &Object<'_>, spelling: Spelling, frame: Frame, stretch: Scaling) -> Result<Config> {
        let attention = SharedKv::read(o, spelling, frame.eps, false, |_| WINDOW, stretch)?;
        let moe = Moe::read_everywhere(o, spelling)?;
        let stages = spelling.key("num_nextn_predict_layers", "n_mtp_layers");
        let stages = o.optional_usize_in(stages, 0..=16)?.unwrap_or(0);
        let ratios = o.usize_list("compress_ratios")?.unwrap_or_default();
        if ratios.len() != frame.layers + stages || ratios.iter().any(|m| *m > 1024) {
            let expected =
                format!("{} ratios of at most 1024, then one for each of {stages} draft stages", frame.layers);
            return Err(o.error("compress_ratios", expected));
        }
        let shared = sharing::read(o, spelling, &ratios[..frame.layers])?;
        let blocks = Blocks::read(o)?;
        if blocks.is_none() && shared.iter().flatten().any(|l| l.candidates != Candidates::Apart) {
            return Err(o.error("candidate_block_size", "a size, as there is a layer that chooses candidates"));
        }
        Ok(Config {
            selection: Selection::read(o, attention.far.dim, false)?,
            blocks,
            shared,
            trunk: Trunk {
                hyper: Hyper::read(o, frame.eps, true)?,
                memory: Tables::read(o, &frame, spelling)?,
                drafter: match stages {
                    0 => None,
                    _ => Some(Drafter::read(o, &frame, &moe, &ratios[frame.layers..], spelling)?),
                },
                moe: moe.among(moe.experts, moe.per_token),
                hashed: 0,
                attention,
                ratios,
                frame,
            },
        })
    }
}
