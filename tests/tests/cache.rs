//! Machine code from the cache: the same file as without, whatever is in the folder.

use hadal_tests::{Ran, fixture, run};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

fn hadal(cache: &Path, args: &[&str]) -> Ran {
    run(Command::new(env!("CARGO_BIN_EXE_hadal-under-test")).args(args).env("HADAL_CACHE", cache))
}

fn json(ran: Ran) -> Value {
    serde_json::from_str(&ran.ok()).expect("JSON")
}

/// The compiled file, and how many of how many kernels came from the cache.
fn compile(cache: &Path, more: &[&str]) -> (Vec<u8>, [usize; 2]) {
    let folder = tempfile::tempdir().expect("a folder");
    let (model, file) = (fixture("llama-dense"), folder.path().join("model"));
    let [model, path] = [&model, &file].map(|p| p.to_str().expect("a plain path"));
    let report = json(hadal(cache, &[&["compile", model, "--cpu", "here", "--json", "-o", path], more].concat()));
    let kernels = report["kernels"].as_array().expect("kernels");
    let cached = kernels.iter().filter(|k| k["cached"] == true).count();
    (std::fs::read(file).expect("written"), [cached, kernels.len()])
}

fn entries(cache: &Path) -> Vec<PathBuf> {
    let folder = std::fs::read_dir(cache.join("code")).expect("entries");
    let mut all: Vec<PathBuf> = folder.map(|f| f.expect("readable").path()).collect();
    all.sort();
    all
}

#[test]
fn files_are_the_same_with_and_without_and_whatever_became_of_entries() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = folder.path().join("cache");
    let (plain, [cached, of]) = compile(&cache, &["--no-cache"]);
    assert!(cached == 0 && of > 0 && !cache.exists());
    let (first, [cached, _]) = compile(&cache, &[]);
    // Kernels that differ in their name alone share code.
    assert!(first == plain && cached < of / 2, "{cached} of {of}");
    let (second, [cached, _]) = compile(&cache, &[]);
    assert!(second == plain && cached == of, "{cached} of {of}");

    let other = std::fs::read(&entries(&cache)[3]).expect("an entry");
    for (i, entry) in entries(&cache).iter().enumerate() {
        let mut bytes = std::fs::read(entry).expect("an entry");
        match i % 4 {
            0 => bytes.truncate(i % 60),
            1 => bytes[40] ^= 1,
            // Whole, but of another kernel.
            2 => bytes.clone_from(&other),
            _ => continue,
        }
        std::fs::write(entry, bytes).expect("written");
    }
    let (third, [cached, _]) = compile(&cache, &[]);
    assert!(third == plain && 0 < cached && cached < of, "{cached} of {of}");
    assert_eq!(compile(&cache, &[]).1, [of, of]);
}

#[test]
fn the_command_shows_and_clears_and_touches_nothing_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = folder.path().join("cache");
    let show = |more: &[&str]| json(hadal(&cache, &[&["cache", "--json"], more].concat()));
    assert_eq!(show(&[])["entries"], 0);
    compile(&cache, &[]);
    let others = [cache.join("tuning.json"), cache.join("code/notes.txt")];
    others.iter().for_each(|f| std::fs::write(f, "mine").expect("written"));
    let count = entries(&cache).len() - 1;
    let shown = show(&[]);
    assert_eq!((&shown["entries"], &shown["usable"]), (&count.into(), &true.into()), "{shown:#}");
    assert!(shown["bytes"].as_u64().is_some_and(|n| 0 < n && n <= shown["limit"].as_u64().expect("a limit")));
    let cleared = show(&["--clear"]);
    assert_eq!((&cleared["entries"], &cleared["removed"]["entries"]), (&0.into(), &count.into()), "{cleared:#}");
    assert!(others.iter().all(|f| f.exists()));
    let said = hadal(&cache, &["cache"]).ok();
    assert!(said.contains("0 kernels") && said.contains(cache.to_str().expect("a plain path")), "{said}");
}

#[test]
fn a_place_that_cannot_be_written_to_is_no_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    std::fs::write(&file, "").expect("written");
    assert_eq!(compile(&file, &[]).1[0], 0);
    assert_eq!(json(hadal(&file, &["cache", "--json"]))["entries"], 0);
}
