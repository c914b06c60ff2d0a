//! Models on an emulated GPU against what independent implementations compute: a sample, or with `HADAL_NIGHTLY` every
//! fixture.
#![cfg(feature = "llvm")]

use hadal::golden::verify;
use hadal::{Options, compile};
use hadal_runtime::DeviceChoice;
use hadal_tests::{fixture, on_all_cores, open, root};
use std::io::Write as _;
use std::process::{Command, Stdio};

/// Dense, experts with latent attention, sparse and compressed attention, convolutions, codes of few bits: short ones.
const SAMPLE: [&str; 6] =
    ["variant-llama-bias", "variant-v3-k1", "variant-nsa-short", "engram", "gguf-deepseek-v3", "variant-v4-dspark"];

fn options() -> Options {
    Options { target: "sm_90a".into(), ..Options::default() }
}

fn fixtures() -> Vec<String> {
    if std::env::var_os("HADAL_NIGHTLY").is_none() {
        return SAMPLE.map(str::to_owned).to_vec();
    }
    let folders = std::fs::read_dir(root().join("tests/fixtures")).expect("there").flatten().map(|f| f.path());
    let recorded = folders.filter(|f| f.join("golden.safetensors").exists());
    let mut names: Vec<String> = recorded.filter_map(|f| Some(f.file_name()?.to_str()?.to_owned())).collect();
    names.sort();
    names
}

#[test]
fn models_compute_on_a_gpu_what_they_should() {
    let failed = on_all_cores(fixtures(), |name| {
        let outcome = verify(&fixture(&name), &Options { emulate: true, ..options() }, 1);
        match outcome {
            Ok(outcome) if outcome.pass => None,
            Ok(outcome) => Some(format!("{name}: {outcome:#?}")),
            Err(e) => Some(format!("{name}: {e}")),
        }
    });
    let failed: Vec<String> = failed.into_iter().flatten().collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn an_assembler_takes_every_kernel_and_spills_nothing() {
    let Some(ptxas) = std::env::var_os("PTXAS") else {
        eprintln!("PTXAS names no assembler: nothing is tested");
        return;
    };
    let mut texts: Vec<(String, String)> = Vec::new();
    for name in fixtures() {
        let compiled = compile(&open(&name), &options()).unwrap_or_else(|e| panic!("{name}: {e}"));
        texts.extend(compiled.kernels().iter().map(|k| {
            let ptx = String::from_utf8(k.compiled.code.clone()).expect("PTX is text");
            (format!("{name} @{}", k.func), ptx)
        }));
    }
    let faults = on_all_cores(texts, |(name, ptx)| {
        let mut command = Command::new(&ptxas);
        command.args(["-v", "-arch=sm_90a", "-o", "/dev/null", "-"]);
        let started = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut started = started.unwrap_or_else(|e| panic!("{}: {e}", ptxas.display()));
        started.stdin.take().expect("piped").write_all(ptx.as_bytes()).expect("ptxas reads");
        let output = started.wait_with_output().expect("ptxas ends");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let clean = said.contains("0 bytes spill stores, 0 bytes spill loads");
        (!output.status.success() || !clean).then(|| format!("{name}: {said}"))
    });
    let faults: Vec<String> = faults.into_iter().flatten().collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn what_nothing_runs_is_said() {
    let dir = fixture("variant-llama-bias");
    let said = |options: &Options| verify(&dir, options, 1).expect_err("refused").to_string();
    assert!(said(&Options { emulate: true, ..Options::default() }).contains("--target"));
    // Where there is no GPU, or none that runs it.
    assert!(said(&Options { device: DeviceChoice::Cuda(99), ..options() }).contains("cuda:99"));
    assert!(said(&Options { target: "b200".into(), ..options() }).contains("sm_90a"));
}
