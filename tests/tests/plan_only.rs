//! Every published text configuration of these generations is compiled, weights aside, up to machine code: in seconds,
//! in little memory, and in a time that does not follow the number of layers.

use hadal_tests::{fixture, run};
use serde_json::{Value, json};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

const HADAL: &str = env!("CARGO_BIN_EXE_hadal-under-test");

/// The text models, the dearest to plan first.
const TEXT: [&str; 20] = [
    "deepseek-v4.1-flash",
    "deepseek-v4-pro",
    "deepseek-v4-pro.inference",
    "deepseek-v4-flash",
    "deepseek-v4-flash.inference",
    "deepseek-v3.2",
    "deepseek-v3.2-exp.inference",
    "deepseek-r1",
    "deepseek-v3-repo-inference-config_16b",
    "deepseek-v3-repo-inference-config_236b",
    "deepseek-v3-repo-inference-config_671b",
    "deepseek-v3-repo-inference-config_v3.1",
    "deepseek-v2",
    "deepseek-v2-lite",
    "deepseek-v2.5",
    "deepseek-moe-16b",
    "deepseek-llm-7b-chat",
    "deepseek-coder-1.3b-instruct",
    "deepseek-r1-distill-qwen-1.5b",
    "deepseek-r1-0528-qwen3-8b",
];

/// Models that see or draw, which are refused, and what their configurations call them.
const REFUSED: [(&str, &str); 7] = [
    ("deepseek-ocr", "[\"DeepseekOCRForCausalLM\"]"),
    ("deepseek-ocr-2", "[\"DeepseekOCR2ForCausalLM\"]"),
    ("deepseek-vl2", "\"deepseek_vl_v2\""),
    ("deepseek-vl2-small.partial", "no such key"),
    ("deepseek-vl2-tiny.partial", "no such key"),
    ("janus-pro-7b.partial", "[\"MultiModalityCausalLM\"]"),
    ("janusflow-1.3b.partial", "[\"MultiModalityCausalLM\"]"),
];

/// What was asked for, in seconds of processor time (which other tests that run meanwhile leave alone) and bytes.
/// Development builds are several times slower than released ones.
const SECONDS: f64 = if cfg!(debug_assertions) { 90.0 } else { 30.0 };
const BYTES: i64 = 2 << 30;

fn config(name: &str) -> PathBuf {
    fixture("configs").join(format!("{name}.json"))
}

/// What a process took.
struct Taken {
    seconds: f64,
    bytes: i64,
}

/// Plans, and says what that took.
fn plan_measured(path: &Path) -> (Value, Taken) {
    let mut command = Command::new(HADAL);
    command.args(["compile", "--plan-only", "--json"]).arg(path).stdin(Stdio::null()).stdout(Stdio::piped());
    #[allow(clippy::zombie_processes, reason = "waited for below, with what it took")]
    let mut child = command.spawn().expect("started");
    let mut out = String::new();
    child.stdout.take().expect("piped").read_to_string(&mut out).expect("text");
    let mut status = 0;
    // SAFETY: waits for a child that nobody else waits for, and fills in a plain structure.
    let usage = unsafe {
        let mut usage = std::mem::zeroed();
        assert_eq!(libc::wait4(child.id() as i32, &raw mut status, 0, &raw mut usage), child.id() as i32);
        usage
    };
    assert_eq!(status, 0, "{}: {out}", path.display());
    let seconds = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 * 1e-6;
    let taken = Taken { seconds: seconds(usage.ru_utime) + seconds(usage.ru_stime), bytes: usage.ru_maxrss * 1024 };
    (serde_json::from_str(&out).expect("JSON"), taken)
}

fn check(name: &str) {
    let (report, taken) = plan_measured(&config(name));
    println!("{name}: {:.1} s, {} kernels, {} MB", taken.seconds, count(&report), taken.bytes >> 20);
    assert!(taken.seconds < SECONDS, "{name} took {} s", taken.seconds);
    assert!(taken.bytes < BYTES, "{name} took {} bytes of memory", taken.bytes);
    assert!(report["code_bytes"].as_u64().is_some_and(|n| n > 1000), "{name}: {report}");
    let entries: Vec<&str> =
        report["entries"].as_array().expect("a list").iter().filter_map(|e| e["name"].as_str()).collect();
    assert!(["prefill", "decode", "logits"].iter().all(|e| entries.contains(e)), "{name}: {entries:?}");
}

#[test]
fn every_published_configuration_is_compiled() {
    let waiting = Mutex::new(TEXT.iter());
    let next = || waiting.lock().expect("nobody panics while holding it").next();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from).min(4) {
            scope.spawn(|| {
                while let Some(name) = next() {
                    check(name)
                }
            });
        }
    });
}

#[test]
fn what_is_not_text_is_refused_by_name() {
    for (name, found) in REFUSED {
        let out = run(Command::new(HADAL).args(["compile", "--plan-only"]).arg(config(name)));
        assert_eq!(out.code, Some(3), "{name}: {}", out.stderr);
        let told = [&format!("{name}.json: `"), "expected one of", &format!("found {found}")];
        assert!(told.iter().all(|part| out.stderr.contains(*part)), "{name}: {}", out.stderr);
    }
}

#[test]
fn no_configuration_is_left_out() {
    let mut known: Vec<String> =
        TEXT.iter().chain(REFUSED.iter().map(|(n, _)| n)).map(|n| format!("{n}.json")).collect();
    let files = std::fs::read_dir(fixture("configs")).expect("there").map(|e| e.expect("readable").file_name());
    let mut found: Vec<String> = files.map(|n| n.to_string_lossy().into_owned()).collect();
    // What prepares images has sizes of its own and is no model.
    found.retain(|n| n.ends_with(".json") && !n.ends_with("processor_config.json"));
    known.sort();
    found.sort();
    assert_eq!(found, known);
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
        let (report, first) = plan_measured(path);
        (0..2).fold((first.seconds, report), |(best, report), _| (best.min(plan_measured(path).1.seconds), report))
    };
    let (few, of_few) = best(&file);
    let (many, of_many) = best(&config("deepseek-r1"));
    println!("5 layers: {few:.2} s, 61 layers: {many:.2} s");
    assert_eq!((of_few["layers"].clone(), of_many["layers"].clone()), (json!(5), json!(61)));
    assert_eq!(count(&of_few), count(&of_many), "the same kernels");
    assert_eq!(of_few["code_bytes"], of_many["code_bytes"]);
    assert!(many < 2.0 * few, "5 layers take {few} s, 61 take {many} s");
}
