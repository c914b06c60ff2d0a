//! Compiled files on a GPU, with CUDA's driver upon the PTX emulator in place of the one that machines with GPUs have.
#![cfg(feature = "llvm")]

use hadal::{Options, compile};
use hadal_tests::open;
use safetensors::SafeTensors;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// A folder that holds nothing but `libcuda.so.1`.
fn driver() -> &'static Path {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let made = || {
        let built = std::env::current_exe().expect("a test").with_file_name("libcuda_emulator.so");
        let folder = tempfile::tempdir().expect("a folder");
        std::os::unix::fs::symlink(&built, folder.path().join("libcuda.so.1")).expect("a link");
        assert!(built.exists(), "{} is built along with the tests", built.display());
        folder
    };
    FOLDER.get_or_init(made).path()
}

/// A compiled file, and the folder that it lies in.
struct Compiled {
    file: PathBuf,
    folder: tempfile::TempDir,
}

impl Compiled {
    fn new(fixture: &str, target: &str) -> Compiled {
        let options = Options { target: target.into(), max_context: Some(64), ..Options::default() };
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("model");
        let input = open(fixture);
        compile(&input, &options)
            .and_then(|c| c.write(&input, &file, &mut |_| {}))
            .unwrap_or_else(|e| panic!("{fixture}: {e}"));
        Compiled { file, folder }
    }

    /// Runs it with a GPU that the environment describes.
    fn run(&self, args: &[&str], gpu: &[(&str, &str)]) -> Output {
        let mut command = Command::new(&self.file);
        command.args(args).env("LD_LIBRARY_PATH", driver()).envs(gpu.iter().copied());
        command.output().expect("it starts")
    }

    /// The logits of some tokens.
    fn logits(&self, device: &str, gpu: &[(&str, &str)]) -> Vec<f32> {
        let out = self.folder.path().join("logits.safetensors");
        let path = out.to_str().expect("a path");
        let tokens = "3,14,15,9,26,5,35,8,9,7,9,3,23,8,46,26,4,33";
        let output = self.run(&["logits", "--tokens", tokens, "--out", path, "--device", device], gpu);
        assert!(output.status.success(), "{}", said(&output));
        let bytes = std::fs::read(&out).expect("it was written");
        let all = SafeTensors::deserialize(&bytes).expect("tensors");
        let logits = all.tensor("logits").expect("logits");
        logits.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Ends with a status, and says all of these.
fn refused(output: &Output, status: i32, words: &[&str]) {
    let said = said(output);
    assert_eq!(output.status.code(), Some(status), "{said}");
    words.iter().for_each(|w| assert!(said.contains(w), "`{w}` in {said}"));
}

const GENERATE: [&str; 7] = ["generate", "--tokens", "1,2,3,4,5", "-n", "12", "--draft", "0"];

fn on(device: &'static str) -> Vec<&'static str> {
    [&GENERATE[..], &["--device", device]].concat()
}

#[test]
fn what_a_gpu_computes_is_what_a_processor_does() {
    // Dense; windows and compressed states, which move.
    for name in ["variant-llama-bias", "variant-v4-dspark"] {
        let file = Compiled::new(name, "sm_90a,cpu");
        let (gpu, cpu) = (file.logits("cuda", &[]), file.logits("cpu", &[]));
        let scale = cpu.iter().fold(0f32, |m, x| m.max(x.abs()));
        let far = gpu.iter().zip(&cpu).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(gpu.len() == cpu.len() && far <= 1e-4 * scale, "{name}: {far} of {scale}");
        let text = |device| {
            let output = file.run(&on(device), &[]);
            assert!(output.status.success(), "{name}: {}", said(&output));
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        assert_eq!(text("cuda"), text("cpu"), "{name}");
        // Waiting behind each launch changes nothing.
        assert_eq!(file.logits("cuda", &[("HADAL_CUDA_SYNC", "1")]), gpu, "{name}");
    }
}

#[test]
fn drafts_and_several_sequences_run_on_a_gpu() {
    let file = Compiled::new("variant-v3-mtp2", "sm_90a,cpu");
    let text = |draft: &str| {
        let args = ["generate", "--tokens", "1,2,3,4,5", "-n", "12", "--device", "cuda", "--draft", draft];
        let output = file.run(&args, &[]);
        assert!(output.status.success(), "{}", said(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert_eq!(text("2"), text("0"));
    let args = ["bench", "--batch", "1,2", "--prompt-len", "4", "-n", "3", "--repeat", "1", "--json"];
    let output = file.run(&[&args[..], &["--device", "cuda"]].concat(), &[]);
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn the_first_level_that_something_runs_is_taken() {
    let both = Compiled::new("variant-llama-bias", "sm_90a,cpu");
    let info = |gpu: &[(&str, &str)]| said(&both.run(&["info"], gpu));
    assert!(info(&[]).contains("Emulated GPU"), "{}", info(&[]));
    // A library folder without a driver.
    let nothing = [("LD_LIBRARY_PATH", "/nonexistent")];
    assert!(!info(&nothing).contains("Emulated GPU") && !info(&nothing).contains("note:"), "{}", info(&nothing));
    for (why, gpu) in [
        ("update the driver", ("CUDA_EMULATOR_DRIVER", "12030")),
        ("does not run code for sm_90a", ("CUDA_EMULATOR_CAPABILITY", "100")),
        ("there is no GPU 0", ("CUDA_EMULATOR_GPUS", "0")),
    ] {
        let said = info(&[gpu]);
        assert!(said.contains("note: running on the processor") && said.contains(why), "{said}");
        refused(&both.run(&on("cuda"), &[gpu]), 3, &[why]);
    }
    refused(&both.run(&on("cuda"), &nothing), 3, &["libcuda"]);
    refused(&both.run(&on("cuda:3"), &[]), 3, &["there is no GPU 3"]);
    refused(&both.run(&on("gpu"), &[]), 2, &["cuda:1"]);

    let gpu = Compiled::new("variant-llama-bias", "sm_80");
    assert!(gpu.run(&GENERATE, &[("CUDA_EMULATOR_CAPABILITY", "120")]).status.success());
    refused(&gpu.run(&GENERATE, &nothing), 3, &["libcuda"]);
    refused(&gpu.run(&on("cpu"), &[]), 3, &["for GPUs only"]);
    let cpu = Compiled::new("variant-llama-bias", "cpu");
    refused(&cpu.run(&on("cuda"), &[]), 3, &["no code for GPUs", "--target"]);
}

#[test]
fn what_goes_wrong_on_a_gpu_is_said() {
    let file = Compiled::new("variant-llama-bias", "sm_90a,cpu");
    let run = |gpu: (&str, &str)| file.run(&GENERATE, &[gpu]);
    // Ever more memory, until all have some: each is refused in its turn.
    let mut wanting = std::collections::BTreeSet::new();
    let sizes = (0..64).map(|n| format!("{}", (50_000.0 * 1.1f64.powi(n)) as u64));
    let enough = sizes.into_iter().find(|bytes| {
        let output = run(("CUDA_EMULATOR_MEMORY", bytes));
        let said = said(&output);
        let Some((_, what)) = said.split_once("no memory for ") else {
            assert!(output.status.success(), "{said}");
            return true;
        };
        let what = what.split_once(" bytes of ").expect(&said).1.split([' ', ':']).next().expect(&said).to_owned();
        let status = if what == "weights" { 3 } else { 1 };
        refused(&output, status, &["bytes free"]);
        wanting.insert(what);
        false
    });
    assert!(enough.is_some(), "{wanting:?}");
    assert!(["states", "weights", "working"].iter().all(|w| wanting.contains(*w)), "{wanting:?}");
    refused(&run(("CUDA_EMULATOR_REFUSES", ".entry")), 3, &["kernel @", "the driver refuses its code", "`.entry`"]);
    let faulty = run(("CUDA_EMULATOR_FAILS", "40"));
    refused(&faulty, 1, &["illegal memory access"]);
    let sync = [("CUDA_EMULATOR_FAILS", "40"), ("HADAL_CUDA_SYNC", "1")];
    refused(&file.run(&GENERATE, &sync), 1, &["kernel @", "illegal memory access"]);
}

#[test]
fn kernels_are_timed_on_a_gpu() {
    let file = Compiled::new("variant-llama-bias", "sm_90a");
    let output = file.run(&["bench", "--prompt-len", "8", "-n", "4", "--repeat", "1", "--kernels", "--json"], &[]);
    assert!(output.status.success(), "{}", said(&output));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(!report["kernels"].as_array().expect("a list").is_empty());
}
