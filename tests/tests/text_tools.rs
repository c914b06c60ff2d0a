//! `dump`, `opt` and `eval` together: the text of a whole model goes through every pass by hand, and the interpreter
//! finds the same numbers after each of them.

use hadal_tests::{fixture, root, run};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

const HADAL: &str = env!("CARGO_BIN_EXE_hadal-under-test");
const PASSES: [&str; 8] = ["versions", "specialise", "canonicalise", "elide", "rewrite", "steps", "share", "fuse"];

fn hadal(args: &[&str], file: &Path) -> String {
    run(Command::new(HADAL).arg(args[0]).arg(file).args(&args[1..])).ok()
}

/// The first rows of what an entry gives.
fn values(file: &Path, entry: &str, bind: &str) -> Vec<f64> {
    let out = hadal(&["eval", "--func", entry, "--bind", bind, "--seed", "3", "--json"], file);
    let all: Value = serde_json::from_str(&out).expect("JSON");
    let values: Vec<f64> =
        all[0]["values"].as_array().expect("a list").iter().map(|v| v.as_f64().expect("a number")).collect();
    assert!(values.len() == 64 && values.iter().any(|v| *v != 0.0), "{out}");
    values
}

fn keeps_its_meaning(config: &Path) {
    let dir = tempfile::tempdir().expect("a folder");
    let file = |name: &str| -> PathBuf { dir.path().join(name) };
    let graph = file("graph.hir");
    std::fs::write(&graph, hadal(&["dump", "--stage", "graph"], config)).expect("written");
    let calls = [("decode", "P=5"), ("prefill", "P=2,T=3"), ("logits", "P=0,T=4")];
    let expected = calls.map(|(entry, bind)| values(&graph, entry, bind));
    let mut before = graph;
    for pass in PASSES {
        let after = file(&format!("{pass}.hir"));
        std::fs::write(&after, hadal(&["opt", "--passes", pass], &before)).expect("written");
        for ((entry, bind), expected) in calls.iter().zip(&expected) {
            for (i, (a, b)) in values(&after, entry, bind).iter().zip(expected).enumerate() {
                // Fixed sizes of states lose nothing in wide arithmetic; f32 constants may be folded in another order.
                assert!((a - b).abs() <= 1e-6 * (1.0 + b.abs()), "{pass}, {entry}, element {i}: {a} and {b}");
            }
        }
        before = after;
    }
    // One pass after another, or all in one go.
    let all = hadal(&["opt", "--passes", &PASSES.join(",")], &file("graph.hir"));
    assert_eq!(all, std::fs::read_to_string(before).expect("there"));
}

#[test]
fn latent_attention_and_experts() {
    keeps_its_meaning(&root().join("tests/tests/data/tiny-v3/config.json"));
}

#[test]
fn grouped_heads_and_biases() {
    keeps_its_meaning(&fixture("r1-distill-qwen").join("config.json"));
}

#[test]
fn groups_of_experts() {
    keeps_its_meaning(&fixture("v2").join("config.json"));
}

#[test]
fn every_pass_is_known() {
    let out = run(Command::new(HADAL).args(["opt", "--list"])).ok();
    let listed: Vec<&str> = out.lines().filter_map(|l| l.split_whitespace().next()).collect();
    assert_eq!(listed, PASSES, "a pass was added: try it here");
}

#[test]
fn dumps_are_files_with_numbers() {
    let dir = tempfile::tempdir().expect("a folder");
    let config = root().join("tests/tests/data/tiny-v3/config.json");
    let stages = ["graph", "optimized", "kernels", "plan", "clif", "asm"];
    let mut command = Command::new(HADAL);
    command.arg("compile").arg(&config).arg("--plan-only");
    for stage in stages {
        command.arg("--emit").arg(format!("{stage}={}", dir.path().display()));
    }
    run(&mut command).ok();
    let mut files: Vec<String> = std::fs::read_dir(dir.path())
        .expect("there")
        .map(|e| e.expect("readable").file_name().into_string().expect("plain"))
        .collect();
    files.sort();
    assert_eq!(files.len(), stages.len());
    for (stage, file) in stages.iter().zip(&files) {
        assert!(file.contains(stage), "{file} should be {stage}");
        let text = std::fs::read_to_string(dir.path().join(file)).expect("text");
        assert!(text.trim_end() == hadal(&["dump", "--stage", stage], &config).trim_end(), "{stage}");
        assert!(text.lines().count() > 50, "{stage}: {text}");
    }
}
