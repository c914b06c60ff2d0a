//! An ESFT-like adapter: full tensors of some experts over a base checkpoint. Compiling with it is compiling the merged
//! checkpoint.

use hadal_models::checkpoint::Checkpoint;
use hadal_tests::{fixture, run};
use safetensors::tensor::{Dtype, TensorView, serialize};
use std::path::Path;
use std::process::Command;

const EXPERT: &str = "model.layers.1.mlp.experts.3.down_proj.weight";

fn compile(args: &[&str]) -> hadal_tests::Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hadal-under-test"));
    command.arg("compile").args(args);
    run(&mut command)
}

/// Bytes of the compiled file's weights, by way of its own tokens.
fn logits(file: &Path) -> Vec<u8> {
    let out = file.with_extension("safetensors");
    let ran = run(Command::new(file).args(["logits", "--tokens", "1,5,9,2", "--out"]).arg(&out));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    std::fs::read(out).expect("written")
}

#[test]
fn an_adapter_replaces_experts() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let base = fixture("v2-lite");
    let stored = Checkpoint::open(&base).expect("a fixture");
    let expert = stored.require(EXPERT).expect("an expert");
    let changed: Vec<u8> = expert.bytes.iter().rev().copied().collect();
    let safe: Vec<u8> = changed.as_chunks::<2>().0.iter().flat_map(|b| [b[0], b[1] & 0xbf]).collect();
    let tensor = TensorView::new(Dtype::BF16, expert.shape.to_vec(), &safe).expect("as many bytes");
    let adapter = folder.path().join("adapter");
    std::fs::create_dir(&adapter).expect("created");
    // Older adapters leave out the leading `model.`.
    let bytes = serialize([(EXPERT.trim_start_matches("model."), tensor)], None).expect("serialises");
    std::fs::write(adapter.join("model.safetensors"), bytes).expect("written");

    let (plain, adapted) = (folder.path().join("plain"), folder.path().join("adapted"));
    let base = base.to_str().expect("a path");
    let ran = compile(&[base, "-o", plain.to_str().expect("a path")]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let ran = compile(&[base, "--adapter", adapter.to_str().expect("a path"), "-o", adapted.to_str().expect("a path")]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_ne!(logits(&plain), logits(&adapted));

    // The same as a checkpoint that holds the tensor itself.
    let merged = folder.path().join("merged");
    std::fs::create_dir(&merged).expect("created");
    std::fs::copy(Path::new(base).join("config.json"), merged.join("config.json")).expect("copied");
    let mut whole = std::fs::read(Path::new(base).join("model.safetensors")).expect("one shard");
    let at = expert.offset as usize;
    whole[at..at + safe.len()].copy_from_slice(&safe);
    std::fs::write(merged.join("model.safetensors"), whole).expect("written");
    let file = folder.path().join("merged-file");
    let ran = compile(&[merged.to_str().expect("a path"), "-o", file.to_str().expect("a path")]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_eq!(logits(&adapted), logits(&file));

    let ran = compile(&[base, "--adapter", &hadal_tests::fixture("llama-dense").display().to_string(), "-o", "x"]);
    assert!(ran.code == Some(3) && ran.stderr.contains("not an adapter"), "{}", ran.stderr);
}
