//! Tensors under other names than the releases': a checkpoint that transformers has written of DeepSeek-V4 has its own
//! name for every part, and the experts of a layer in three matrices (sheet `deepseek-v4`, "Tensors"). Which names
//! there are decides; whoever asks for the release's gets the same bytes.

use super::{Located, Place};
use std::collections::BTreeMap;

/// A name that only such checkpoints have.
const SIGN: &str = "model.hc_head.hc_fn";

/// Parts of names, those of transformers first. The first that is at the beginning of what is left counts.
const PARTS: &[(&str, &str)] = &[
    ("model.embed_tokens.", "embed."),
    ("model.hc_head.hc_", "hc_head_"),
    ("model.norm.", "norm."),
    ("lm_head.", "head."),
    ("model.layers.", "layers."),
    ("input_layernorm.", "attn_norm."),
    ("post_attention_layernorm.", "ffn_norm."),
    ("attn_hc.", "hc_attn_"),
    ("ffn_hc.", "hc_ffn_"),
    ("self_attn.sinks", "attn.attn_sink"),
    ("self_attn.compressor.indexer.scorer.weights_proj.", "attn.indexer.weights_proj."),
    ("self_attn.compressor.indexer.q_b_proj.", "attn.indexer.wq_b."),
    ("self_attn.compressor.indexer.", "attn.indexer.compressor."),
    ("self_attn.", "attn."),
    ("q_a_proj.", "wq_a."),
    ("q_a_norm.", "q_norm."),
    ("q_b_proj.", "wq_b."),
    ("o_a_proj.", "wo_a."),
    ("o_b_proj.", "wo_b."),
    ("compressor.", "compressor."),
    ("position_bias", "ape"),
    ("mlp.gate.e_score_correction_bias", "ffn.gate.bias"),
    ("mlp.shared_experts.gate_proj.", "ffn.shared_experts.w1."),
    ("mlp.shared_experts.up_proj.", "ffn.shared_experts.w3."),
    ("mlp.shared_experts.down_proj.", "ffn.shared_experts.w2."),
    ("mlp.", "ffn."),
];

/// Gives all tensors the release's names, if they have the others.
pub(super) fn recognise(tensors: &mut BTreeMap<String, Located>) {
    if !tensors.contains_key(SIGN) {
        return;
    }
    for (name, located) in std::mem::take(tensors) {
        match experts(&name, &located) {
            Some(parts) => tensors.extend(parts),
            None => {
                tensors.insert(official(&name), located);
            }
        }
    }
}

/// The release's name.
fn official(name: &str) -> String {
    let (mut rest, mut out) = (name, String::new());
    while !rest.is_empty() {
        if let Some((from, to)) = PARTS.iter().find(|(from, _)| rest.starts_with(from)) {
            out += to;
            rest = &rest[from.len()..];
        } else if rest.starts_with("kv_proj.") {
            out += "wkv.";
            rest = &rest["kv_proj.".len()..];
        } else if let Some(tail) = rest.strip_prefix("gate_proj.").filter(|_| out.contains("compressor.")) {
            out += "wgate.";
            rest = tail;
        } else if let Some(tail) = rest.strip_prefix("kv_norm.").filter(|_| out.contains("compressor.")) {
            out += "norm.";
            rest = tail;
        } else {
            let end = rest.find('.').map_or(rest.len(), |at| at + 1);
            out += &rest[..end];
            rest = &rest[end..];
        }
    }
    out
}

/// The experts of a layer one by one, each its rows of what is stored: in `gate_up_proj` both halves of them.
fn experts(name: &str, located: &Located) -> Option<Vec<(String, Located)>> {
    let parts: &[&str] = match name.rsplit_once(".mlp.experts.")?.1 {
        "gate_up_proj" => &["w1", "w3"],
        "down_proj" => &["w2"],
        _ => return None,
    };
    let layer = name.rsplit_once(".mlp.experts.")?.0;
    let [count, rows, columns] = located.shape[..] else { return None };
    let Place::File(file, range) = &located.place else { return None };
    let pieces = count.checked_mul(parts.len())?;
    let whole = pieces > 0 && rows.is_multiple_of(parts.len()) && range.len().is_multiple_of(pieces);
    let size = whole.then(|| range.len() / pieces)?;
    let layer = official(&format!("{layer}."));
    let piece = |at: usize| {
        let start = range.start + at * size;
        let place = Place::File(*file, start..start + size);
        let name = format!("{layer}ffn.experts.{}.{}.weight", at / parts.len(), parts[at % parts.len()]);
        (name, Located { dtype: located.dtype, shape: vec![rows / parts.len(), columns], place, of: None })
    };
    Some((0..pieces).map(piece).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Checkpoint;
    use safetensors::tensor::{Dtype, TensorView, serialize};

    #[test]
    fn names_of_every_kind() {
        for (theirs, ours) in [
            ("model.embed_tokens.weight", "embed.weight"),
            ("lm_head.weight", "head.weight"),
            ("model.norm.weight", "norm.weight"),
            ("model.hc_head.hc_scale", "hc_head_scale"),
            ("model.layers.3.attn_hc.fn", "layers.3.hc_attn_fn"),
            ("model.layers.3.ffn_hc.base", "layers.3.hc_ffn_base"),
            ("model.layers.3.input_layernorm.weight", "layers.3.attn_norm.weight"),
            ("model.layers.3.post_attention_layernorm.weight", "layers.3.ffn_norm.weight"),
            ("model.layers.3.self_attn.sinks", "layers.3.attn.attn_sink"),
            ("model.layers.3.self_attn.q_a_proj.weight", "layers.3.attn.wq_a.weight"),
            ("model.layers.3.self_attn.q_a_norm.weight", "layers.3.attn.q_norm.weight"),
            ("model.layers.3.self_attn.q_b_proj.weight_scale_inv", "layers.3.attn.wq_b.weight_scale_inv"),
            ("model.layers.3.self_attn.kv_proj.weight", "layers.3.attn.wkv.weight"),
            ("model.layers.3.self_attn.kv_norm.weight", "layers.3.attn.kv_norm.weight"),
            ("model.layers.3.self_attn.o_a_proj.weight", "layers.3.attn.wo_a.weight"),
            ("model.layers.3.self_attn.o_b_proj.weight", "layers.3.attn.wo_b.weight"),
            ("model.layers.3.self_attn.compressor.kv_proj.weight", "layers.3.attn.compressor.wkv.weight"),
            ("model.layers.3.self_attn.compressor.gate_proj.weight", "layers.3.attn.compressor.wgate.weight"),
            ("model.layers.3.self_attn.compressor.position_bias", "layers.3.attn.compressor.ape"),
            ("model.layers.3.self_attn.compressor.kv_norm.weight", "layers.3.attn.compressor.norm.weight"),
            ("model.layers.3.self_attn.compressor.indexer.q_b_proj.weight", "layers.3.attn.indexer.wq_b.weight"),
            (
                "model.layers.3.self_attn.compressor.indexer.scorer.weights_proj.weight",
                "layers.3.attn.indexer.weights_proj.weight",
            ),
            (
                "model.layers.3.self_attn.compressor.indexer.kv_proj.weight",
                "layers.3.attn.indexer.compressor.wkv.weight",
            ),
            (
                "model.layers.3.self_attn.compressor.indexer.gate_proj.weight",
                "layers.3.attn.indexer.compressor.wgate.weight",
            ),
            (
                "model.layers.3.self_attn.compressor.indexer.kv_norm.weight",
                "layers.3.attn.indexer.compressor.norm.weight",
            ),
            ("model.layers.3.self_attn.compressor.indexer.position_bias", "layers.3.attn.indexer.compressor.ape"),
            ("model.layers.3.mlp.gate.weight", "layers.3.ffn.gate.weight"),
            ("model.layers.3.mlp.gate.tid2eid", "layers.3.ffn.gate.tid2eid"),
            ("model.layers.3.mlp.gate.e_score_correction_bias", "layers.3.ffn.gate.bias"),
            ("model.layers.3.mlp.shared_experts.up_proj.weight", "layers.3.ffn.shared_experts.w3.weight"),
        ] {
            assert_eq!(official(theirs), ours);
        }
    }

    #[test]
    fn experts_are_parts_of_matrices() {
        let bytes: Vec<u8> = (0..2 * 4 * 3).collect();
        let bytes: &'static [u8] = bytes.leak();
        let tensors = [
            (SIGN, TensorView::new(Dtype::U8, vec![1], &bytes[..1]).unwrap()),
            ("model.layers.1.mlp.experts.gate_up_proj", TensorView::new(Dtype::U8, vec![2, 4, 3], bytes).unwrap()),
            ("model.layers.1.mlp.experts.down_proj", TensorView::new(Dtype::U8, vec![2, 3, 2], &bytes[..12]).unwrap()),
        ];
        let checkpoint = Checkpoint::from_memory([("file", serialize(tensors, None).unwrap())]).unwrap();
        let part = |name: &str| {
            let t = checkpoint.require(&format!("layers.1.ffn.experts.{name}.weight")).unwrap();
            (t.shape.to_vec(), t.bytes[0])
        };
        assert_eq!((part("0.w1"), part("0.w3")), ((vec![2, 3], 0), (vec![2, 3], 6)));
        assert_eq!((part("1.w1"), part("1.w3")), ((vec![2, 3], 12), (vec![2, 3], 18)));
        assert_eq!((part("0.w2"), part("1.w2")), ((vec![3, 2], 0), (vec![3, 2], 6)));
        assert_eq!(checkpoint.len(), 7);
    }
}
