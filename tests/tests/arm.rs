//! A file compiled here for 64-bit ARM, run in an emulator. `cargo xtask test` builds the runner and names it
//! (`HADAL_ARM_RUNNER`); without one or without LLVM there is nothing to run.
#![cfg(all(feature = "llvm", target_os = "linux"))]

use hadal::runner::Runner;
use hadal::{Input, Options, compile};
use hadal_codegen::processor::Processor;
use hadal_tests::{demo_folder, run};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

const EMULATOR: &str = "qemu-aarch64";

#[test]
fn a_file_for_arm_writes_what_the_reference_writes() {
    let Some(runner) = std::env::var_os("HADAL_ARM_RUNNER") else {
        eprintln!("HADAL_ARM_RUNNER is not set: nothing is tested");
        return;
    };
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("compiled-for-arm");
    let input = Input::demo().expect("embedded");
    let runner = Runner::open(Path::new(&runner)).expect("a runner");
    let options = Options { levels: vec![Processor::AARCH64_NEON], runner, ..Options::default() };
    compile(&input, &options).expect("compiles").write(&input, &file, &mut |_| {}).expect("written");

    let facts = std::fs::read(demo_folder().join("golden.json")).expect("there");
    let facts: Value = serde_json::from_slice(&facts).expect("JSON");
    let (prompt, expected) = (facts["prompt"].as_str().expect("text"), facts["greedy_text"].as_str().expect("text"));
    for threads in ["1", "3"] {
        let args =
            ["generate", "--prompt", prompt, "--temperature", "0", "-n", "24", "--ignore-stop", "--threads", threads];
        let out = run(Command::new(EMULATOR).arg(&file).args(args)).ok();
        let out = out.trim_end_matches('\n');
        assert!(out.len() > 60 && expected.starts_with(out), "{threads} threads: {out:?}");
    }
}
