//! Which files of a folder make the checkpoint.

use super::Checkpoint;
use crate::error::{Error, Result};
use crate::json;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

const INDEX: &str = "model.safetensors.index.json";

/// Longest accepted index: the largest published one (about ninety thousand tensors) has nine megabytes.
const MAX_INDEX: u64 = 32 << 20;

/// Files that hold a test's expectations rather than weights.
const NOT_WEIGHTS: [&str; 1] = ["golden.safetensors"];

/// The files of a checkpoint, and what the index says about them.
pub(super) struct Files {
    /// Names in the folder, sorted.
    pub files: Vec<String>,
    index: Option<Index>,
}

struct Index {
    path: PathBuf,
    /// Tensor and shard.
    places: Vec<(String, String)>,
}

/// Finds the checkpoint's files in `dir`; all of them exist.
pub(super) fn locate(dir: &Path) -> Result<Files> {
    let present = list(dir)?;
    let index = match present.iter().any(|name| name == INDEX) {
        true => Some(read_index(&dir.join(INDEX))?),
        false => None,
    };
    let named: BTreeSet<String> = match &index {
        Some(index) => index.places.iter().map(|(_, shard)| shard.clone()).collect(),
        None => {
            let weights = |n: &&String| n.ends_with(".safetensors") && !NOT_WEIGHTS.contains(&n.as_str());
            present.iter().filter(weights).flat_map(|name| siblings(name)).collect()
        }
    };
    if named.is_empty() {
        let found = if present.is_empty() { "nothing".into() } else { crate::error::listed(&present) };
        return Err(Error::NoTensors { dir: dir.into(), found });
    }
    let missing: Vec<String> = named.iter().filter(|name| !dir.join(name).is_file()).cloned().collect();
    if !missing.is_empty() {
        return Err(Error::ShardsMissing { dir: dir.into(), missing, total: named.len() });
    }
    Ok(Files { files: named.into_iter().collect(), index })
}

impl Files {
    /// Checks that every tensor is in the shard that the index gives for it.
    pub fn confirm(&self, checkpoint: &Checkpoint) -> Result<()> {
        let Some(index) = &self.index else { return Ok(()) };
        let held = |tensor: &str, shard: &str| checkpoint.tensor(tensor).is_some_and(|t| t.file.ends_with(shard));
        let misplaced: Vec<String> = index
            .places
            .iter()
            .filter(|(tensor, shard)| !held(tensor, shard))
            .map(|(tensor, shard)| format!("{tensor} in {shard}"))
            .collect();
        match misplaced.is_empty() {
            true => Ok(()),
            false => Err(Error::Misplaced { index: index.path.clone(), misplaced }),
        }
    }
}

fn list(dir: &Path) -> Result<Vec<String>> {
    let failed = |source| Error::Io { file: dir.into(), doing: "listing", source };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        // A name that is not Unicode cannot be one of ours.
        names.extend(entry.map_err(failed)?.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

fn read_index(path: &Path) -> Result<Index> {
    let root = json::parse_object(path, &json::read_limited(path, MAX_INDEX)?)?;
    let wrong = |found| Error::ConfigKey {
        file: path.into(),
        key: "weight_map".into(),
        expected: "an object from tensor to file".into(),
        found,
    };
    let map = match root.get("weight_map") {
        Some(Value::Object(map)) => map,
        Some(other) => return Err(wrong(json::shown(other))),
        None => return Err(wrong("no such key".into())),
    };
    let place = |(tensor, shard): (&String, &Value)| match shard.as_str().filter(|name| is_file_name(name)) {
        Some(shard) => Ok((tensor.clone(), shard.to_owned())),
        None => Err(Error::IndexEntry { index: path.into(), tensor: tensor.clone(), found: json::shown(shard) }),
    };
    Ok(Index { path: path.into(), places: map.iter().map(place).collect::<Result<_>>()? })
}

/// Whether `name` is a file of the folder itself, so that an index cannot lead elsewhere.
fn is_file_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(only)), None) if only == name)
}

/// Every shard of the set that `name` says it belongs to (`model-00002-of-00004.safetensors`), or itself.
fn siblings(name: &str) -> Vec<String> {
    let parse = || {
        let (head, total) = name.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
        let (head, number) = head.rsplit_once('-')?;
        let digits = |s: &str| s.len() <= 6 && s.bytes().all(|b| b.is_ascii_digit());
        let count: usize = total.parse().ok().filter(|_| digits(total) && digits(number))?;
        let (width, own) = (number.len(), number.parse::<usize>().ok()?);
        // Shards count from one; a set numbered otherwise, or absurdly large, is taken as it lies there.
        (1..=count).contains(&own).then_some(())?;
        (count <= 10_000).then(|| (1..=count).map(|i| format!("{head}-{i:0width$}-of-{total}.safetensors")).collect())
    };
    parse().unwrap_or_else(|| vec![name.to_owned()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbered_shards_name_their_set() {
        assert_eq!(
            siblings("m-00002-of-000002.safetensors"),
            ["m-00001-of-000002.safetensors", "m-00002-of-000002.safetensors"]
        );
        for alone in ["model.safetensors", "m-3-of-2.safetensors", "m-0-of-2.safetensors", "m-1-of-999999.safetensors"]
        {
            assert_eq!(siblings(alone), [alone]);
        }
    }

    #[test]
    fn an_index_cannot_lead_out_of_its_folder() {
        assert!(is_file_name("model-00001-of-00002.safetensors"));
        for bad in ["", ".", "..", "../x", "/etc/passwd", "a/b", "a/", "./a"] {
            assert!(!is_file_name(bad), "{bad}");
        }
    }
}
