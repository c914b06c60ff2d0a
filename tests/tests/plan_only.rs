//! Every published text configuration of these generations is compiled, weights aside, up to machine code: in seconds, in
//! little memory, and in a time that does not follow the number of layers.

use hadal_tests::{fixture, run};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;

const HADAL: &str = env!("CARGO_BIN_EXE_hadal-under-test");

const CONFIGS: [&str; 13] = [
    "deepseek-llm-7b-chat",
    "deepseek-coder-1.3b-instruct",
    "deepseek-moe-16b",
    "deepseek-r1-distill-qwen-1.5b",
    "deepseek-r1-0528-qwen3-8b",
    "deepseek-v2-lite",
    "deepseek-v2",
    "deepseek-v2.5",
    "deepseek-r1",
    "deepseek-v3-repo-inference-config_16b",
    "deepseek-v3-repo-inference-config_236b",
    "deepseek-v3-repo-inference-config_671b",
    "deepseek-v3-repo-inference-config_v3.1",
];

/// What was asked for, in seconds and bytes. Development builds are several times slower than released ones, and other
/// tests run meanwhile, so it is asserted with that much room in seconds only there.
const SECONDS: f64 = if cfg!(debug_assertions) { 60.0 } else { 20.0 };
const BYTES: i64 = 2 << 30;

fn config(name: &str) -> PathBuf {
    fixture("configs").join(format!("{name}.json"))
}

fn plan(path: &Path) -> Value {
    let out = run(Command::new(HADAL).args(["compile", "--plan-only", "--json"]).arg(path)).ok();
    serde_json::from_str(&out).expect("JSON")
}

/// Most memory that any process started and ended by this one has had.
fn peak_of_children() -> i64 {
    // SAFETY: fills in a plain structure.
    let usage = unsafe {
        let mut usage = std::mem::zeroed();
        assert_eq!(libc::getrusage(libc::RUSAGE_CHILDREN, &mut usage), 0);
        usage
    };
    usage.ru_maxrss * 1024
}

#[test]
fn every_published_configuration_is_compiled() {
    for name in CONFIGS {
        let report = plan(&config(name));
        let seconds = report["seconds"].as_f64().expect("a number");
        let peak = peak_of_children();
        println!("{name}: {seconds:.1} s, {} kernels, peak so far {} MB", count(&report), peak >> 20);
        assert!(seconds < SECONDS, "{name} took {seconds} s");
        assert!(peak < BYTES, "{name} took {peak} bytes of memory");
        assert!(report["code_bytes"].as_u64().is_some_and(|n| n > 1000), "{name}: {report}");
        let entries: Vec<&str> =
            report["entries"].as_array().expect("a list").iter().filter_map(|e| e["name"].as_str()).collect();
        assert!(["prefill", "decode", "logits"].iter().all(|e| entries.contains(e)), "{name}: {entries:?}");
    }
}

fn count(report: &Value) -> usize {
    report["kernels"].as_array().expect("a list").len()
}

/// 5 layers of V3 (three dense, two of experts) and all 61.
#[test]
fn time_follows_kinds_of_layers_not_their_number() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut shallow: Value =
        serde_json::from_slice(&std::fs::read(config("deepseek-r1")).expect("there")).expect("JSON");
    shallow["num_hidden_layers"] = json!(5);
    let file = dir.path().join("config.json");
    std::fs::write(&file, shallow.to_string()).expect("written");
    let best = |path: &Path| {
        let reports: Vec<Value> = (0..3).map(|_| plan(path)).collect();
        let seconds = reports.iter().filter_map(|r| r["seconds"].as_f64()).fold(f64::INFINITY, f64::min);
        (seconds, reports[0].clone())
    };
    let (few, of_few) = best(&file);
    let (many, of_many) = best(&config("deepseek-r1"));
    println!("5 layers: {few:.2} s, 61 layers: {many:.2} s");
    assert_eq!((of_few["layers"].clone(), of_many["layers"].clone()), (json!(5), json!(61)));
    assert_eq!(count(&of_few), count(&of_many), "the same kernels");
    assert_eq!(of_few["code_bytes"], of_many["code_bytes"]);
    assert!(many < 2.0 * few, "5 layers take {few} s, 61 take {many} s");
}
