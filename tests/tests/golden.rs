//! Comparing a compiled program with recorded outputs of independent implementations: that it can fail, and that
//! nothing recorded is passed over. That it holds for every fixture is the test of the status page.

use hadal::Options;
use hadal::golden::{Outcome, verify};
use hadal_tests::{copy_files, demo_folder, fixture};

/// What is looked at, by fixture: all kinds of tensors that are recorded.
const LOOKED_AT: [(&str, &[&str]); 3] = [
    ("v31-fp8-ue8m0", &["logits", "greedy_logits", "mtp_logits", "logits_actquant", "mtp_logits_prenorm"]),
    ("r1-0528-qwen3", &["logits", "greedy_logits", "logits_attn_factor"]),
    (
        "v41-fp8fp4-like",
        &[
            "logits",
            "compressed_lookup",
            "primes_1",
            "multipliers_1",
            "greedy_logits",
            "dspark_ids",
            "dspark_logits",
            "dspark_confidence",
            "logits_cachequant",
            "logits_actquant",
            "hash_1",
            "engram_1",
            "kept_1",
            "kept_3",
            "candidates",
            "kept_5",
        ],
    ),
];

#[test]
fn everything_recorded_is_looked_at() {
    for (name, tensors) in LOOKED_AT {
        let outcome = verify(&fixture(name), &Options::default(), 2).unwrap_or_else(|e| panic!("{name}: {e}"));
        let found: Vec<&str> = outcome.checks.iter().map(|c| c.tensor.as_str()).collect();
        assert_eq!(
            (found, outcome.greedy, &outcome.unchecked[..]),
            (tensors.to_vec(), Some((8, 8)), &[][..]),
            "{name}"
        );
    }
}

#[test]
fn the_demo_writes_what_was_recorded() {
    let outcome = verify(&demo_folder(), &Options::default(), 2).unwrap_or_else(|e| panic!("{e}"));
    assert!(outcome.pass && outcome.greedy == Some((64, 64)), "{outcome:#?}");
}

/// A copy of a fixture in which one number of a tensor's data has another value.
fn with_one_change(name: &str, tensor: &str) -> Outcome {
    let dir = tempfile::tempdir().expect("a folder");
    copy_files(&fixture(name), dir.path());
    let file = dir.path().join("model.safetensors");
    let mut bytes = std::fs::read(&file).expect("the weights");
    let header = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let entries: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).expect("a header");
    let offset = entries[tensor]["data_offsets"][0].as_u64().unwrap_or_else(|| panic!("{tensor} is not there"));
    assert_eq!(entries[tensor]["dtype"], "BF16");
    let at = 8 + header + offset as usize;
    bytes[at..at + 2].copy_from_slice(&0x4000u16.to_le_bytes()); // 2.0
    std::fs::write(&file, bytes).expect("written");
    verify(dir.path(), &Options::default(), 1).expect("still a model")
}

#[test]
fn one_wrong_weight_is_seen() {
    for (name, tensor) in [
        ("llama-dense", "model.layers.3.mlp.down_proj.weight"),
        ("v3", "model.layers.1.self_attn.kv_b_proj.weight"),
        ("v3", "model.layers.0.self_attn.o_proj.weight"),
    ] {
        let outcome = with_one_change(name, tensor);
        assert!(!outcome.pass, "{name}, {tensor}: {outcome:#?}");
        let logits = &outcome.checks[0];
        assert!(!logits.pass && logits.max_abs_error > logits.tolerance, "{logits:?}");
    }
}
