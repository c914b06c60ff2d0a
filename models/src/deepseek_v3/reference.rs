//! The configurations in the DeepSeek-V3 repository's `inference/configs`, which have the reference code's own keys and
//! defaults and describe V2, V3 and, with the indexer's keys, V3.2 sizes alike. Weights are expected under the
//! published names all the same.

use super::Config;
use crate::blocks::assembly::Frame;
use crate::blocks::mla::Mla;
use crate::blocks::moe::{Choice, FeedForward, Groups, MLP, Moe, Score};
use crate::blocks::rope::{Rope, Scaling, mscale};
use crate::config_reader::Object;
use crate::error::Result;
use crate::formats::{Own, PROJECTIONS};

/// What that code takes for granted.
static OWN: Own = Own { dtype: "bf16", block: 128, fp4: true, scheme: &PROJECTIONS, eps: 1e-6, max_position: 16384 };

/// Keys of later generations of that code, which change the graph.
const FOREIGN: [&str; 2] = ["n_hash_layers", "compress_ratios"];

/// Whether the keys are the reference code's, which also has V3.2's form of them.
pub(crate) fn is_reference(o: &Object<'_>) -> bool {
    ["dim", "n_layers", "inter_dim", "kv_lora_rank"].iter().all(|k| o.has(k)) && !FOREIGN.iter().any(|k| o.has(k))
}

impl Config {
    /// Reads such a configuration. Expert layers count from `n_dense_layers`; only the balancing bias tells V3's
    /// routing from V2's, and only the released V3 has one.
    pub(crate) fn read_reference(o: &Object<'_>) -> Result<Config> {
        let frame = Frame::read_own(o, &OWN)?;

        // YaRN acts only where contexts longer than the original one are asked for.
        let original = o.usize_or("original_seq_len", 4096)?;
        let factor = o.positive_or("rope_factor", 40.0)?;
        let stretched = frame.max_position > original;
        let scaling = Scaling::yarn(o, factor, original)?;
        let turning = o.require_usize_in("qk_rope_head_dim", 2..=1 << 14)?;
        if !turning.is_multiple_of(2) {
            return Err(o.error("qk_rope_head_dim", "an even size, which rotation needs"));
        }
        let theta = o.positive_or("rope_theta", 10000.0)?;
        if theta <= 1.0 {
            return Err(o.error("rope_theta", "a number greater than 1, which yarn needs"));
        }
        let nope = o.require_usize_in("qk_nope_head_dim", 1..=1 << 14)?;
        let magnitude = mscale(factor, o.f64_or("mscale", 1.0)?);
        let attention = Mla {
            heads: o.require_usize_in("n_heads", 1..=1 << 12)?,
            q_rank: o.optional_usize_in("q_lora_rank", 0..=1 << 18)?.filter(|n| *n > 0),
            kv_rank: o.require_usize_in("kv_lora_rank", 1..=1 << 18)?,
            nope,
            value: o.require_usize_in("v_head_dim", 1..=1 << 14)?,
            bias: false,
            scale: ((nope + turning) as f64).powf(-0.5) * if stretched { magnitude.powi(2) } else { 1.0 },
            rope: Rope {
                dim: turning,
                theta,
                scaling: if stretched { scaling } else { Scaling::None },
                interleaved: true,
            },
        };

        let sigmoid = o.str_in_or("score_func", &["softmax", "sigmoid"], "softmax")? == "sigmoid";
        let experts = o.require_usize_in("n_routed_experts", 1..=4096)?;
        let per_token = o.require_usize_in("n_activated_experts", 1..=experts)?;
        let count = o.usize_or("n_expert_groups", 1)?;
        let kept = o.usize_or("n_limited_groups", 1)?;
        let size = experts / count;
        if !experts.is_multiple_of(count) || sigmoid && size < 2 {
            return Err(o.error("n_expert_groups", format!("a divisor of n_routed_experts ({experts})")));
        }
        if kept > count || kept * size < per_token {
            return Err(o.error("n_limited_groups", format!("enough groups for {per_token} experts, at most {count}")));
        }
        let groups = Groups { count, kept };
        let width = o.require_usize_in("moe_inter_dim", 1..=1 << 20)?;
        let moe = Moe {
            experts,
            per_token,
            width,
            shared_width: width * o.optional_usize_in("n_shared_experts", 0..=1024)?.unwrap_or(0),
            parts: MLP,
            score: if sigmoid { Score::Sigmoid } else { Score::Softmax },
            choice: if sigmoid { Choice::Biased(groups) } else { Choice::BestOfGroups(groups) },
            normalise: sigmoid && per_token > 1,
            factor: o.f64_or("route_scale", 1.0)?,
            first: o.count_or("n_dense_layers", 1)?,
            every: 1,
        };
        let dense_width = o.require_usize_in("inter_dim", 1..=1 << 20)?;
        let feed_forward = FeedForward { dense_width, moe: Some(moe) };
        Ok(Config { frame, attention, feed_forward, mtp_layers: 0 })
    }
}
