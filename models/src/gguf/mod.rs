//! GGUF files: weights, configuration and tokenizer in one, as llama.cpp reads them.
//!
//! A file is translated once, when it is opened, into what a checkpoint folder holds: a configuration in the words of
//! `config.json`, tensors under the names that models read, and the tokenizer's files. Nothing behind knows that it was
//! another format. Tensors stay in the mapped file; those in blocks are taken apart while they are written
//! (`checkpoint/blocks.rs`), and what converters did to rows and experts is undone (`tensors.rs`).

mod config;
mod read;
mod tensors;
mod tokenizer;

pub use tokenizer::Texts;

use crate::checkpoint::{Bytes, Checkpoint, Store, map};
use crate::config_reader::Config;
use crate::error::{Error, Result};
use read::{Head, Value};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A model in a GGUF file.
#[derive(Debug)]
pub struct Gguf {
    /// Its configuration.
    pub config: Config,
    /// Its tensors.
    pub checkpoint: Checkpoint,
    /// Its tokenizer, if it has one.
    pub texts: Option<Texts>,
}

/// Opens the file `path`, or all files of the set that it is the first of (`…-00001-of-00003.gguf`).
pub fn open(path: &Path) -> Result<Gguf> {
    let mut stores = vec![map(path)?];
    let head = read::read_head(path, &stores[0].bytes)?;
    let more = match head.metadata.get("split.count") {
        Some(Value::Int(n)) if *n > 1 => siblings(path, *n)?,
        _ => Vec::new(),
    };
    for path in &more {
        stores.push(map(path)?);
    }
    translate(path, stores, head)
}

/// The model in a file in memory; `name` is for messages.
pub fn from_bytes(name: impl Into<PathBuf>, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Gguf> {
    let store = Store { path: name.into(), bytes: Bytes::Held(bytes.into()) };
    let head = read::read_head(&store.path, &store.bytes)?;
    let path = store.path.clone();
    translate(&path, vec![store], head)
}

fn translate(path: &Path, stores: Vec<Store>, mut head: Head) -> Result<Gguf> {
    let mut heads = vec![std::mem::take(&mut head.tensors)];
    for store in &stores[1..] {
        heads.push(read::read_head(&store.path, &store.bytes)?.tensors);
    }
    head.tensors = heads.iter().flatten().cloned().collect();
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    for (file, t) in heads.iter().enumerate().flat_map(|(file, all)| all.iter().map(move |t| (file, t))) {
        if let Some(first) = places.insert(&t.name, file) {
            let (first, second) = (stores[first].path.clone(), stores[file].path.clone());
            return Err(Error::Repeated { tensor: t.name.clone(), first, second });
        }
    }
    let (json, layout) = config::translate(path, &head)?;
    let mut tensors = tensors::Tensors::default();
    for (file, declared) in heads.iter().enumerate() {
        for t in declared {
            tensors.add(file, t, &layout).map_err(|[expected, found]| {
                let (file, tensor) = (stores[file].path.clone(), Some(read::shown(&t.name)));
                Error::Damaged { file, tensor, expected, found }
            })?;
        }
    }
    tensors.finish(&layout);
    let texts = tokenizer::translate(path, &head)?;
    let text = serde_json::Value::Object(json).to_string();
    let config = Config::parse(path, text.as_bytes())?;
    let checkpoint = Checkpoint::of_parts(path, stores, tensors.located, tensors.packed);
    Ok(Gguf { config, checkpoint, texts })
}

/// The other files of a set of `count`.
fn siblings(path: &Path, count: i128) -> Result<Vec<PathBuf>> {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let end = format!("-00001-of-{count:05}.gguf");
    let Some(stem) = name.strip_suffix(&end).filter(|_| count <= 10_000) else {
        let expected = format!("the first file of {count}, whose name ends with {end}");
        return Err(Error::ConfigKey {
            file: path.into(),
            key: "split.count".into(),
            expected,
            found: "another name".into(),
        });
    };
    let dir = path.parent().unwrap_or(Path::new("."));
    let names: Vec<String> = (2..=count).map(|i| format!("{stem}-{i:05}-of-{count:05}.gguf")).collect();
    let missing: Vec<String> = names.iter().filter(|n| !dir.join(n).is_file()).cloned().collect();
    if !missing.is_empty() {
        return Err(Error::ShardsMissing { dir: dir.into(), missing, total: count as usize });
    }
    Ok(names.into_iter().map(|n| dir.join(n)).collect())
}
