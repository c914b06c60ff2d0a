//! The measured search: it changes no result, what it wrote is used again, and a damaged database is refused.

use hadal_tests::{Ran, fixture, run};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

fn hadal(args: &[&str]) -> Ran {
    run(Command::new(env!("CARGO_BIN_EXE_hadal-under-test")).args(args))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

fn json(ran: Ran) -> Value {
    serde_json::from_str(&ran.ok()).expect("JSON")
}

#[test]
fn measured_once_used_again_and_the_same_results() {
    let folder = tempfile::tempdir().expect("a folder");
    let (database, model) = (folder.path().join("new/tuning.json"), fixture("llama-dense"));
    let with = ["--cpu", "here", "--tuning", text(&database), "--json"];
    let tune = || json(hadal(&[&["tune", text(&model)], &with[..]].concat()));
    let first = tune();
    let kernels = first["kernels"].as_array().expect("kernels");
    assert!(!kernels.is_empty(), "{first:#}");
    for kernel in kernels {
        let candidates = kernel["measured"]["candidates"].as_array().expect("candidates");
        assert!(candidates.len() > 1 && kernel["gain"].as_f64().is_some_and(|g| g >= 1.0), "{kernel:#}");
    }
    let entries: Vec<&str> =
        first["entries"].as_array().expect("entries").iter().flat_map(|e| e["entry"].as_str()).collect();
    assert!(entries.contains(&"decode") && entries.contains(&"prefill"), "{entries:?}");
    // Measured again it would have other times.
    let before = std::fs::read(&database).expect("written");
    assert!(tune() == first, "measured again");
    assert!(std::fs::read(&database).expect("there") == before, "nothing was to be added");

    // One other kernel is made the fastest by far, and is taken.
    let mut changed: Value = serde_json::from_slice(&before).expect("JSON");
    for entry in changed["entries"].as_array_mut().expect("entries") {
        let all = entry["candidates"].as_array_mut().expect("candidates");
        for (i, candidate) in all.iter_mut().rev().enumerate() {
            candidate["nanoseconds"] = if i == 0 { 1000 } else { 1_000_000 }.into();
        }
    }
    std::fs::write(&database, changed.to_string()).expect("written");
    let logits = |name: &str, more: &[&str]| {
        let file = folder.path().join(name);
        let made = [&["compile", text(&model), "--cpu", "here", "--json", "-o", text(&file)], more].concat();
        let report = json(hadal(&made));
        let out = folder.path().join("logits.safetensors");
        run(Command::new(&file).args(["logits", "--tokens", "5,6,7,8,9,10,11", "--out", text(&out)])).ok();
        (report, std::fs::read(out).expect("logits"))
    };
    let (_, plain) = logits("plain", &[]);
    let (report, tuned) = logits("tuned", &["--tune", "stored", "--tuning", text(&database)]);
    let gains = report["kernels"].as_array().expect("kernels").iter().filter_map(|k| k["tuned"]["gain"].as_f64());
    assert_eq!(gains.filter(|g| *g > 10.0).count(), kernels.len(), "{report:#}");
    assert!(plain == tuned, "tuned kernels have other bits");
}

#[test]
fn what_is_no_database_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("tuning.json");
    let entry = |candidates: &str| {
        format!(
            r#"{{"format": 1, "entries": [{{"processor": "p", "level": "l", "function": "f", "sizes": {{}}, "candidates": {candidates}}}]}}"#
        )
    };
    for (content, says) in [
        ("".to_owned(), "EOF"),
        ("[]".to_owned(), "no tuning database"),
        (r#"{"format": 2, "entries": []}"#.to_owned(), "`format` is 2, not 1"),
        (r#"{"format": 1, "entries": [], "more": 0}"#.to_owned(), "unknown field `more`"),
        (entry("[]"), "`entries[0].candidates` is empty"),
        (entry(r#"[{"schedule": "s", "nanoseconds": 0}]"#), "`entries[0].candidates[0].nanoseconds` is 0"),
        (entry(r#"[{"schedule": "s", "nanoseconds": -1}]"#), "invalid value: integer `-1`"),
        ("[".repeat(100_000), "no tuning database"),
    ] {
        std::fs::write(&file, &content).expect("written");
        let ran = hadal(&["compile", text(&fixture("llama-dense")), "--plan-only", "--tuning", text(&file)]);
        assert_eq!(ran.code, Some(3), "{content:.80}: {}", ran.stderr);
        assert!(ran.stderr.contains("tuning.json") && ran.stderr.contains(says), "{content:.80}: {}", ran.stderr);
        assert!(ran.stderr.contains("help: "), "{}", ran.stderr);
    }
    let ran =
        hadal(&["compile", text(&fixture("llama-dense")), "--plan-only", "--tune", "quick", "--tuning", "/proc/no/x"]);
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
}
