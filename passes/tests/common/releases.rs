//! The graphs of the published configurations, without weights.

use hadal_ir::Module;
use hadal_models::config_reader::Config;
use hadal_models::{BuildOptions, Planned, build};
use std::path::PathBuf;

/// Every configuration that some model is known for, with its graph; and the names of the others.
pub fn all() -> (Vec<(String, Module)>, Vec<String>) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/configs");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "json"));
    files.sort();
    let (mut known, mut others) = (Vec::new(), Vec::new());
    for file in files {
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        let config = Config::parse("config.json", &std::fs::read(&file).unwrap()).unwrap();
        match build(&config, &Planned, &BuildOptions::default()) {
            Ok(model) => known.push((name, model.module)),
            Err(_) => others.push(name),
        }
    }
    assert!(known.len() >= 9, "only {known:?} are known", known = known.iter().map(|k| &k.0).collect::<Vec<_>>());
    (known, others)
}
