//! Which layer leaves compressed rows and selections among them for which others.
//!
//! Few layers compress the text into rows and choose among them; the others read what the last of these left. Two lists
//! of the configuration say which: sources of rows (with their index keys), and layers that select. From one of the
//! latter on, selections stay within candidate blocks.

use crate::config_reader::{Object, Spelling};
use crate::error::Result;

/// What a layer with compressed rows reads of which layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shared {
    /// The layer that makes the rows, at most this one.
    pub rows: usize,
    /// The layer that selects among them, at most this one.
    pub selection: usize,
    /// Its part in choosing candidate blocks, where it selects.
    pub candidates: Candidates,
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

/// Reads what the layers with these ratios share; 0 is that of layers without rows.
pub fn read(o: &Object<'_>, spelling: Spelling, ratios: &[usize]) -> Result<Vec<Option<Shared>>> {
    let [of_sources, of_selecting, of_chooser] = [
        spelling.key("kv_source_layer_ids", "kv_source_layers"),
        spelling.key("index_source_layer_ids", "index_source_layers"),
        spelling.key("candidate_source_layer_id", "candidate_source_layer"),
    ];
    let [sources, selecting] = [of_sources, of_selecting].map(|key| {
        let layers = o.rising(key, ratios.len())?;
        match layers.iter().all(|l| ratios[*l] > 0) {
            true => Ok(layers),
            false => Err(o.error(key, "layers that have a ratio in compress_ratios")),
        }
    });
    let (sources, selecting) = (sources?, selecting?);
    // Some configurations say -1 for none.
    let chooser = match o.optional_f64(of_chooser)?.filter(|n| *n >= 0.0) {
        None => None,
        Some(n) => match selecting.iter().find(|l| **l as f64 == n) {
            Some(layer) => Some(*layer),
            None => return Err(o.error(of_chooser, format!("one of {of_selecting}"))),
        },
    };
    let last = |of: &[usize], layer: usize| of.iter().rev().find(|l| **l <= layer).copied();
    let shared = |layer: usize| {
        let Some(rows) = last(&sources, layer).filter(|l| ratios[*l] == ratios[layer]) else {
            let ratio = ratios[layer];
            return Err(o.error(of_sources, format!("for layer {layer} a source before it, of ratio {ratio} too")));
        };
        let Some(selection) = last(&selecting, layer).filter(|l| *l >= rows) else {
            return Err(o.error(of_selecting, format!("for layer {layer} one from its source, {rows}, on")));
        };
        let candidates = match chooser.filter(|c| *c <= layer && selection == layer) {
            None => Candidates::Apart,
            Some(c) if c == layer => Candidates::Chosen,
            Some(c) if last(&sources, c) == Some(rows) => Candidates::Kept,
            Some(_) => {
                return Err(o.error(of_chooser, format!("a layer with the source of layer {layer}, {rows}")));
            }
        };
        Ok(Shared { rows, selection, candidates })
    };
    (0..ratios.len()).map(|l| (ratios[l] > 0).then(|| shared(l)).transpose()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config_reader::Config;
    use serde_json::{Value, json};

    fn plan(value: &Value, ratios: &[usize]) -> Result<Vec<Option<Shared>>> {
        let config = Config::parse("config.json", value.to_string().as_bytes()).unwrap();
        read(&config.object(), Spelling::Published, ratios)
    }

    #[test]
    fn the_release() {
        let ratios: Vec<usize> = [vec![0; 2], vec![2; 18], vec![1; 20]].concat();
        let (sources, selecting) = ([2, 8, 14, 20], [2, 8, 14, 20, 24, 28, 32, 36]);
        let mut value = json!({
            "kv_source_layer_ids": sources,
            "index_source_layer_ids": selecting,
            "candidate_source_layer_id": 20,
        });
        let found = plan(&value, &ratios).unwrap();
        assert_eq!(found[..2], [None, None]);
        for (layer, of) in found.iter().enumerate().skip(2) {
            let last = |of: &[usize]| of.iter().rev().find(|s| **s <= layer).copied().unwrap();
            let candidates = match layer {
                20 => Candidates::Chosen,
                24 | 28 | 32 | 36 => Candidates::Kept,
                _ => Candidates::Apart,
            };
            let expected = Shared { rows: last(&sources), selection: last(&selecting), candidates };
            assert_eq!(*of, Some(expected), "{layer}");
        }
        value["candidate_source_layer_id"] = json!(-1);
        let apart = |l: &Shared| l.candidates == Candidates::Apart;
        assert!(plan(&value, &ratios).unwrap().iter().flatten().all(apart));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let listed = json!({
            "kv_source_layer_ids": [1, 3],
            "index_source_layer_ids": [1, 3, 4],
            "candidate_source_layer_id": 3,
        });
        assert_eq!(plan(&listed, &[0, 2, 2, 1, 1]).unwrap().len(), 5);
        let error = plan(&listed, &[0, 2, 4, 1, 1]).unwrap_err().to_string();
        assert!(error.contains("for layer 2 a source before it, of ratio 4 too"), "{error}");
        for (key, change, expected) in [
            ("kv_source_layer_ids", json!([3]), "for layer 1 a source before it"),
            ("kv_source_layer_ids", json!([0, 1, 3]), "layers that have a ratio"),
            ("kv_source_layer_ids", json!([1, 5]), "rising numbers of layers below 5"),
            ("index_source_layer_ids", json!([1, 4]), "one of index_source_layer_ids"),
            ("index_source_layer_ids", json!([1, 4, 3]), "rising numbers"),
            ("index_source_layer_ids", json!([1]), "one of index_source_layer_ids"),
            ("candidate_source_layer_id", json!(2), "one of index_source_layer_ids"),
            ("candidate_source_layer_id", json!(1), "a layer with the source of layer 3, 3"),
        ] {
            let mut value = listed.clone();
            value[key] = change;
            let error = plan(&value, &[0, 2, 2, 1, 1]).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let unselected = json!({ "kv_source_layer_ids": [0, 1], "index_source_layer_ids": [0] });
        let error = plan(&unselected, &[2, 1]).unwrap_err().to_string();
        assert!(error.contains("for layer 1 one from its source, 1, on"), "{error}");
    }
}
