//! Which layer leaves what for which others.
//!
//! Few layers compress the text into rows and choose among them; the others read what the last of these left. Two lists
//! of the configuration say which: sources of rows (with their index keys), and layers that select. From one of the
//! latter on, selections stay within candidate blocks.

use crate::config_reader::Object;
use crate::error::Result;

/// How a layer attends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Layer {
    /// To its window only.
    Window,
    /// To its window, and to rows that each stand for `ratio` tokens.
    Compressed {
        /// Tokens per row.
        ratio: usize,
        /// The layer that makes the rows, at most this one.
        rows: usize,
        /// The layer that selects among them, at most this one.
        selection: usize,
        /// Its part in choosing candidate blocks, where it selects.
        candidates: Candidates,
    },
}

/// The part of a selecting layer in the two levels of selection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Candidates {
    /// None: it selects among all rows.
    Apart,
    /// It selects among all rows, and chooses the blocks for the layers after it.
    Chosen,
    /// It selects within the blocks chosen before.
    Kept,
}

impl Layer {
    /// What functions of layers like this one, which is number `layer`, are called.
    pub fn kind(&self, layer: usize) -> String {
        match self {
            Layer::Window => "window_layer".into(),
            Layer::Compressed { ratio, rows, .. } if *rows == layer => format!("source_layer_by_{ratio}"),
            Layer::Compressed { ratio, selection, .. } if *selection == layer => format!("selecting_layer_by_{ratio}"),
            Layer::Compressed { ratio, .. } => format!("reading_layer_by_{ratio}"),
        }
    }

    /// Tokens per row; 0 where there are none.
    pub fn ratio(&self) -> usize {
        match self {
            Layer::Window => 0,
            Layer::Compressed { ratio, .. } => *ratio,
        }
    }
}

/// The three keys, as the configuration at hand spells them.
#[derive(Clone, Copy, Debug)]
pub struct Keys {
    /// Of the list of ratios.
    pub ratios: &'static str,
    /// Of the list of sources.
    pub sources: &'static str,
    /// Of the list of layers that select.
    pub selecting: &'static str,
    /// Of the layer that chooses candidate blocks.
    pub candidates: &'static str,
}

/// Reads the plan for `layers` layers and the `stages` of a draft head behind them, which have windows only.
pub fn read(o: &Object<'_>, keys: Keys, layers: usize, stages: usize) -> Result<Vec<Layer>> {
    let list = |key: &str| Ok(o.usize_list(key)?.unwrap_or_default());
    let ratios = list(keys.ratios)?;
    if ratios.len() != layers + stages || ratios[layers..].iter().any(|m| *m != 0) || ratios.iter().any(|m| *m > 1024) {
        let expected = format!("{layers} ratios of at most 1024, then 0 for each of {stages} draft stages");
        return Err(o.error(keys.ratios, expected));
    }
    let (sources, selecting) = (list(keys.sources)?, list(keys.selecting)?);
    for (key, listed) in [(keys.sources, &sources), (keys.selecting, &selecting)] {
        if !listed.is_sorted_by(|a, b| a < b) || listed.iter().any(|l| *l >= layers || ratios[*l] == 0) {
            return Err(o.error(key, "rising numbers of layers that have a ratio in compress_ratios"));
        }
    }
    // Some configurations say -1 for none.
    let chooser = match o.optional_f64(keys.candidates)? {
        None => None,
        Some(n) if n < 0.0 => None,
        Some(n) => match selecting.iter().find(|l| **l as f64 == n) {
            Some(layer) => Some(*layer),
            None => return Err(o.error(keys.candidates, format!("one of {}", keys.selecting))),
        },
    };
    let last = |of: &[usize], layer: usize| of.iter().rev().find(|l| **l <= layer).copied();
    let mut plan: Vec<Layer> = Vec::with_capacity(layers);
    for (layer, ratio) in ratios[..layers].iter().copied().enumerate() {
        if ratio == 0 {
            plan.push(Layer::Window);
            continue;
        }
        let Some(rows) = last(&sources, layer).filter(|l| ratios[*l] == ratio) else {
            return Err(o.error(keys.sources, format!("for layer {layer} a source before it, of ratio {ratio} too")));
        };
        let Some(selection) = last(&selecting, layer).filter(|l| *l >= rows) else {
            return Err(o.error(keys.selecting, format!("for layer {layer} one from its source, {rows}, on")));
        };
        let candidates = match chooser {
            Some(c) if c == layer => Candidates::Chosen,
            Some(c)
                if c < layer
                    && selection == layer
                    && !matches!(plan[c], Layer::Compressed { rows: r, .. } if r == rows) =>
            {
                return Err(o.error(keys.candidates, format!("a layer with the source of layer {layer}, {rows}")));
            }
            Some(c) if c < layer && selection == layer => Candidates::Kept,
            _ => Candidates::Apart,
        };
        plan.push(Layer::Compressed { ratio, rows, selection, candidates });
    }
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config_reader::Config;
    use serde_json::{Value, json};

    const KEYS: Keys = Keys {
        ratios: "compress_ratios",
        sources: "kv_source_layer_ids",
        selecting: "index_source_layer_ids",
        candidates: "candidate_source_layer_id",
    };

    fn plan(value: &Value, layers: usize, stages: usize) -> Result<Vec<Layer>> {
        let config = Config::parse("config.json", value.to_string().as_bytes()).unwrap();
        read(&config.object(), KEYS, layers, stages)
    }

    #[test]
    fn the_release() {
        let ratios: Vec<usize> = [vec![0; 2], vec![2; 18], vec![1; 20], vec![0; 3]].concat();
        let mut value = json!({
            "compress_ratios": ratios,
            "kv_source_layer_ids": [2, 8, 14, 20],
            "index_source_layer_ids": [2, 8, 14, 20, 24, 28, 32, 36],
            "candidate_source_layer_id": 20,
        });
        let found = plan(&value, 40, 3).unwrap();
        assert_eq!(found[..2], [Layer::Window, Layer::Window]);
        for (layer, of) in found.iter().enumerate().skip(2) {
            let source = [2, 8, 14, 20].into_iter().rev().find(|s| *s <= layer).unwrap();
            let selecting = [2, 8, 14, 20, 24, 28, 32, 36].into_iter().rev().find(|s| *s <= layer).unwrap();
            let candidates = match layer {
                20 => Candidates::Chosen,
                24 | 28 | 32 | 36 => Candidates::Kept,
                _ => Candidates::Apart,
            };
            let ratio = if layer < 20 { 2 } else { 1 };
            assert_eq!(*of, Layer::Compressed { ratio, rows: source, selection: selecting, candidates }, "{layer}");
        }
        let mut kinds: Vec<String> = found.iter().enumerate().map(|(l, of)| of.kind(l)).collect();
        kinds.sort();
        kinds.dedup();
        let expected = [
            "reading_layer_by_1",
            "reading_layer_by_2",
            "selecting_layer_by_1",
            "source_layer_by_1",
            "source_layer_by_2",
            "window_layer",
        ];
        assert_eq!(kinds, expected);

        value["candidate_source_layer_id"] = json!(-1);
        let apart = |l: &Layer| !matches!(l, Layer::Compressed { candidates, .. } if *candidates != Candidates::Apart);
        assert!(plan(&value, 40, 3).unwrap().iter().all(apart));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let with = |key: &str, change: Value| {
            let mut value = json!({
                "compress_ratios": [0, 2, 2, 1, 1, 0],
                "kv_source_layer_ids": [1, 3],
                "index_source_layer_ids": [1, 3, 4],
                "candidate_source_layer_id": 3,
            });
            value[key] = change;
            plan(&value, 5, 1).map_err(|e| e.to_string())
        };
        assert_eq!(with("other", Value::Null).unwrap().len(), 5);
        for (key, change, expected) in [
            ("compress_ratios", json!([0, 2, 2, 1, 1]), "5 ratios of at most 1024, then 0"),
            ("compress_ratios", json!([0, 2, 2, 1, 1, 2]), "5 ratios of at most 1024, then 0"),
            ("compress_ratios", json!([0, 2, 4, 1, 1, 0]), "for layer 2 a source before it, of ratio 4 too"),
            ("kv_source_layer_ids", json!([3]), "for layer 1 a source before it"),
            ("kv_source_layer_ids", json!([0, 1, 3]), "rising numbers of layers that have a ratio"),
            ("index_source_layer_ids", json!([1, 4]), "one of index_source_layer_ids"),
            ("index_source_layer_ids", json!([1, 4, 3]), "rising numbers"),
            ("candidate_source_layer_id", json!(2), "one of index_source_layer_ids"),
            ("candidate_source_layer_id", json!(1), "a layer with the source of layer 3, 3"),
        ] {
            let error = with(key, change).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        let unselected = json!({
            "compress_ratios": [2, 1],
            "kv_source_layer_ids": [0, 1],
            "index_source_layer_ids": [0],
        });
        let error = plan(&unselected, 2, 0).unwrap_err().to_string();
        assert!(error.contains("for layer 1 one from its source, 1, on"), "{error}");
    }
}
