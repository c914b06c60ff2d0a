//! Which tensor of a GGUF file is which of a checkpoint, and what its makers did to it.
//!
//! Three things are undone. Heads that turn are stored for pairs of neighbours in two architectures: rows of queries
//! and keys are put back so that pairs are half a head apart. Experts lie in one tensor a layer: each becomes a tensor.
//! And the projection from latent rows to keys and values is stored in two, that of keys transposed: it is put together
//! again.

use super::read::Declared;
use crate::checkpoint::recipe::{Layout, Matrix, Order, Recipe};
use crate::checkpoint::{BlockFormat, Located, Place};
use crate::checkpoint::{Level, Over, Packed};
use hadal_types::DType;
use std::collections::BTreeMap;

/// Parts of layers: the name in the file, and in a checkpoint.
const PARTS: [(&str, &str); 21] = [
    ("attn_norm", "input_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("attn_q_a", "self_attn.q_a_proj"),
    ("attn_q_a_norm", "self_attn.q_a_layernorm"),
    ("attn_q_b", "self_attn.q_b_proj"),
    ("attn_kv_a_mqa", "self_attn.kv_a_proj_with_mqa"),
    ("attn_kv_a_norm", "self_attn.kv_a_layernorm"),
    ("attn_kv_b", "self_attn.kv_b_proj"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("ffn_gate_inp", "mlp.gate"),
    ("ffn_gate_shexp", "mlp.shared_experts.gate_proj"),
    ("ffn_up_shexp", "mlp.shared_experts.up_proj"),
    ("ffn_down_shexp", "mlp.shared_experts.down_proj"),
];

/// Tensors of experts: the name in the file, and what follows the expert's number in a checkpoint.
const EXPERTS: [(&str, &str); 3] =
    [("ffn_gate_exps", "gate_proj"), ("ffn_up_exps", "up_proj"), ("ffn_down_exps", "down_proj")];

/// Most tensors and planes in all: the largest published models have less than half as many.
const MAX_TENSORS: usize = 1 << 20;

/// Most tensors that a matrix becomes: its values, codes, and two levels of scales and offsets each.
const MOST_OF_ONE: usize = 6;

/// What names depend on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Heads {
    /// Whether queries and keys are stored for pairs of neighbours, in heads of so many rows.
    pub neighbours: Option<usize>,
    /// Query heads.
    pub count: usize,
    /// Layers.
    pub layers: usize,
    /// Experts of a layer, 0 where there are none.
    pub experts: usize,
}

/// The tensors of a checkpoint.
#[derive(Default)]
pub struct Tensors {
    pub located: BTreeMap<String, Located>,
    pub packed: BTreeMap<String, Packed>,
    /// By layer: the projection from latent rows to keys, and to values.
    halves: BTreeMap<usize, [Option<Matrix>; 2]>,
}

impl Tensors {
    /// Adds a tensor of the file with this number; or says what was expected of it, and what was found.
    pub fn add(&mut self, file: usize, t: &Declared, heads: &Heads) -> Result<(), [String; 2]> {
        if let Some((layer, ..)) = layer_part(&t.name).filter(|(layer, ..)| *layer >= heads.layers) {
            return Err([format!("one of {} layers", heads.layers), format!("layer {layer}")]);
        }
        let made = MOST_OF_ONE * if t.shape.len() == 3 { t.shape[0] } else { 1 };
        if self.located.len().saturating_add(made) > MAX_TENSORS {
            return Err([format!("at most {MAX_TENSORS} tensors, those of experts apart"), "more".into()]);
        }
        self.add_checked(file, t, heads);
        Ok(())
    }

    fn add_checked(&mut self, file: usize, t: &Declared, heads: &Heads) {
        let matrix = |order| Matrix {
            file,
            range: t.range.clone(),
            layout: t.layout,
            rows: t.rows(),
            columns: t.columns(),
            order,
        };
        let whole = match t.name.as_str() {
            "token_embd.weight" => Some("model.embed_tokens.weight"),
            "output_norm.weight" => Some("model.norm.weight"),
            "output.weight" => Some("lm_head.weight"),
            _ => None,
        };
        if let Some(name) = whole {
            return self.insert(name.into(), &t.shape, matrix(Order::Kept));
        }
        let Some((layer, part, end)) = layer_part(&t.name) else {
            return self.insert(t.name.clone(), &t.shape, matrix(Order::Kept));
        };
        let prefix = format!("model.layers.{layer}.");
        if (part, end) == ("exp_probs_b", "bias") {
            return self.insert(format!("{prefix}mlp.gate.e_score_correction_bias"), &t.shape, matrix(Order::Kept));
        }
        if let (Some((_, name)), [experts, rows, columns]) = (EXPERTS.iter().find(|(n, _)| *n == part), &t.shape[..])
            && *experts == heads.experts
        {
            let size = t.range.len() / experts;
            for e in 0..*experts {
                let start = t.range.start + e * size;
                let one = Matrix { range: start..start + size, rows: *rows, ..matrix(Order::Kept) };
                self.insert(format!("{prefix}mlp.experts.{e}.{name}.{end}"), &[*rows, *columns], one);
            }
            return;
        }
        if let Some(half) = ["attn_k_b", "attn_v_b"].iter().position(|n| *n == part).filter(|_| end == "weight") {
            self.halves.entry(layer).or_default()[half] = Some(matrix(Order::Kept));
            return;
        }
        let Some((_, name)) = PARTS.iter().find(|(n, _)| *n == part) else {
            return self.insert(t.name.clone(), &t.shape, matrix(Order::Kept));
        };
        // A bias has a row for each of its elements.
        let rows = if t.shape.len() == 1 { t.columns() } else { t.rows() };
        let whole = |head: &usize| *head > 0 && head.is_multiple_of(2) && rows.is_multiple_of(*head);
        let turned = heads.neighbours.filter(|_| matches!(part, "attn_q" | "attn_k")).filter(whole);
        let m = match (turned.map(Order::EvenFirst), t.shape.len()) {
            (None, _) => matrix(Order::Kept),
            (Some(order), 1) => Matrix { rows, columns: 1, ..matrix(order) },
            (Some(order), _) => matrix(order),
        };
        self.insert(format!("{prefix}{name}.{end}"), &t.shape, m);
    }

    /// Puts together what came in two tensors.
    pub fn finish(&mut self, heads: &Heads) {
        for (layer, halves) in std::mem::take(&mut self.halves) {
            let prefix = format!("model.layers.{layer}.self_attn.");
            match halves {
                [Some(keys), Some(values)] if fit(&keys, &values, heads.count) => {
                    let shape = [keys.columns * heads.count + values.rows, values.columns];
                    let recipe = Recipe::KeysAndValues { keys, values, heads: heads.count };
                    let name = format!("{prefix}kv_b_proj.weight");
                    self.located.insert(name, made(DType::F32, &shape, recipe, None));
                }
                [keys, values] => {
                    let found = [("k_b", keys), ("v_b", values)];
                    for (name, m) in found.into_iter().filter_map(|(n, m)| Some((n, m?))) {
                        let shape = [m.rows, m.columns];
                        self.insert(format!("{prefix}{name}.weight"), &shape, m);
                    }
                }
            }
        }
    }

    fn insert(&mut self, name: String, shape: &[usize], m: Matrix) {
        let format = match m.layout {
            Layout::Plain(dtype) => {
                let place = match m.order {
                    Order::Kept => Place::File(m.file, m.range),
                    Order::EvenFirst(_) => Place::Made(Recipe::Rows(m)),
                };
                self.located.insert(name, Located { dtype, shape: shape.into(), place, of: None });
                return;
            }
            Layout::Blocks(format) => format,
        };
        if shape.len() == 2 {
            let packed = packed(format);
            for (plane, dtype, shape) in packed.planes([m.rows, m.columns]) {
                let recipe = Recipe::Plane(m.clone(), format, plane);
                self.located
                    .insert(format!("{name}{}", plane.suffix()), made(dtype, &shape, recipe, Some(name.clone())));
            }
            self.packed.insert(name.clone(), packed);
        }
        self.located.insert(name, made(DType::F32, shape, Recipe::Values(m), None));
    }
}

fn made(dtype: DType, shape: &[usize], recipe: Recipe, of: Option<String>) -> Located {
    Located { dtype, shape: shape.into(), place: Place::Made(recipe), of }
}

/// Whether both are for so many heads and latent rows of one size.
fn fit(keys: &Matrix, values: &Matrix, heads: usize) -> bool {
    heads > 0 && keys.rows == heads * values.columns && values.rows.is_multiple_of(heads)
}

/// `blk.7.attn_q.weight` as layer, part and end.
fn layer_part(name: &str) -> Option<(usize, &str, &str)> {
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let (part, end) = rest.split_once('.')?;
    let plain =
        layer.len() <= 5 && layer.bytes().all(|b| b.is_ascii_digit()) && (layer == "0" || !layer.starts_with('0'));
    Some((layer.parse().ok().filter(|_| plain)?, part, end))
}

/// The planes of a block format.
fn packed(format: BlockFormat) -> Packed {
    let shape = format.shape();
    let level = || match shape.inner {
        None => Level { dtype: shape.scale, over: None },
        Some(inner) => {
            let over = Over { dtype: shape.scale, block: [1, shape.elements / shape.group] };
            Level { dtype: inner, over: Some(over) }
        }
    };
    let offsets = shape.offsets.then(level);
    Packed { codes: shape.codes, group: shape.group, scales: level(), offsets }
}
