//! Rules about the sources that no lint knows.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the workspace exists")
}

/// Every file below `folder` with one of `extensions`, except build output and copied data.
fn files(folder: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a readable folder") {
            let path = entry.expect("a readable entry").path();
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
            if path.is_dir() {
                let skipped =
                    name.starts_with('.') || ["target", "fixtures", "snapshots", "train", "book"].contains(&name);
                if !skipped {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|e| extensions.iter().any(|x| e == *x)) {
                found.push(path);
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no files below {}", folder.display());
    found
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn every_module_says_what_it_is_for() {
    for path in files(&root(), &["rs"]) {
        let is_test = path.components().any(|c| c.as_os_str() == "tests.rs" || c.as_os_str() == "tests");
        let documented = text(&path).lines().next().is_some_and(|l| l.starts_with("//!"));
        assert!(is_test || documented, "{} has no module documentation", path.display());
    }
}

#[test]
fn no_file_is_a_heap() {
    for path in files(&root(), &["rs"]) {
        let lines = text(&path).lines().count();
        assert!(lines <= 900, "{} has {lines} lines: it has more than one subject", path.display());
    }
}

#[test]
fn nothing_is_left_for_later() {
    // Spelt apart so that this file does not find itself.
    let marks = [concat!("to", "do!("), concat!("un", "implemented!("), concat!("FIX", "ME"), concat!("db", "g!(")];
    for path in files(&root(), &["rs"]) {
        let text = text(&path);
        for mark in marks {
            assert!(!text.contains(mark), "{} holds `{mark}`", path.display());
        }
    }
}

#[test]
fn stages_after_the_model_know_no_architecture() {
    let names = ["deepseek", "llama", "qwen", "janus"];
    for folder in ["passes/src", "codegen/src", "runtime/src", "runtime/artifact/src", "ir/src"] {
        for path in files(&root().join(folder), &["rs"]) {
            // Documentation may cite a paper; code, and the strings in it, may not know a name.
            let body = text(&path);
            let code: Vec<&str> = body.lines().filter(|l| !l.trim_start().starts_with("//")).collect();
            let before_tests = code.iter().take_while(|l| !l.contains("#[cfg(test)]"));
            for line in before_tests {
                let lower = line.to_lowercase();
                let found = names.iter().find(|n| lower.contains(*n));
                assert!(found.is_none() || path.ends_with("tests.rs"), "{}: `{line}`", path.display());
            }
        }
    }
}

#[test]
fn every_op_has_a_page_and_tests() {
    let page = text(&root().join("docs/src/ops.md"));
    for path in files(&root().join("ir/src/ops"), &["rs"]) {
        let name = path.file_stem().and_then(|s| s.to_str()).expect("a file name");
        // A folder holds parts of the op of its name.
        if name == "mod" || path.parent().is_some_and(|p| !p.ends_with("ops")) {
            continue;
        }
        assert!(page.contains(&format!("\n## {name}\n")), "op `{name}` has no page: run `cargo xtask bless`");
        assert!(text(&path).contains("#[cfg(test)]"), "op `{name}` has no tests");
    }
}

#[test]
fn every_file_of_tests_is_run() {
    for folder in ["tests/tests", "passes/tests"] {
        let listed = text(&root().join(folder).join("all.rs"));
        let manifest = text(&root().join(folder).join("../Cargo.toml"));
        for path in fs::read_dir(root().join(folder)).expect("a folder of tests").map(|e| e.expect("an entry").path()) {
            let name = path.file_stem().and_then(|n| n.to_str()).expect("a name of plain text").to_owned();
            let run = listed.contains(&format!("\nmod {name};")) || manifest.contains(&format!("/{name}.rs\""));
            assert!(run || path.extension().is_none_or(|e| e != "rs"), "{}: not in all.rs", path.display());
        }
    }
}
