//! Compiled programs against the outputs recorded of independent implementations: every fixture and the demo, through
//! prefill, decode with the cache and multi-token prediction. And that the comparison can fail.

use hadal::Options;
use hadal::golden::{Outcome, verify};
use hadal_tests::{copy_files, demo_folder, fixture};
use std::path::Path;

fn check(folder: &Path, tensors: &[&str], greedy: usize, unchecked: &[&str]) {
    let outcome = verify(folder, &Options::default(), 2).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    assert!(outcome.pass, "{outcome:#?}");
    let found: Vec<&str> = outcome.checks.iter().map(|c| c.tensor.as_str()).collect();
    assert_eq!(found, tensors, "{}", folder.display());
    assert!(outcome.checks.iter().all(|c| c.argmax_agree == c.rows), "{outcome:#?}");
    assert_eq!(outcome.greedy, Some((greedy, greedy)));
    assert_eq!(outcome.unchecked, unchecked);
}

macro_rules! fixtures {
    ($($test:ident $folder:literal $tensors:expr, $greedy:literal, $unchecked:expr;)+) => {
        $(#[test] fn $test() { check(&fixture($folder), &$tensors, $greedy, &$unchecked) })+
    };
}

fixtures! {
    llama_dense "llama-dense" ["logits", "greedy_logits"], 8, [];
    coder_linear_rope "coder-linear-rope" ["logits", "greedy_logits"], 8, [];
    r1_distill_llama "r1-distill-llama" ["logits", "greedy_logits"], 8, [];
    r1_distill_qwen "r1-distill-qwen" ["logits", "greedy_logits"], 8, [];
    r1_0528_qwen3 "r1-0528-qwen3" ["logits", "greedy_logits", "logits_attn_factor"], 8, [];
    deepseek_moe_16b "deepseek-moe-16b" ["logits", "greedy_logits"], 8, [];
    v2_lite "v2-lite" ["logits", "greedy_logits"], 8, [];
    v2 "v2" ["logits", "greedy_logits"], 8, [];
    v3 "v3" ["logits", "greedy_logits", "mtp_logits", "mtp_logits_prenorm"], 8, [];
    v3_fp8 "v3-fp8" ["logits", "greedy_logits", "mtp_logits", "logits_actquant", "mtp_logits_prenorm"], 8, [];
    v31_fp8_ue8m0 "v31-fp8-ue8m0" ["logits", "greedy_logits", "mtp_logits", "logits_actquant", "mtp_logits_prenorm"], 8, [];
    v32 "v32" ["logits", "greedy_logits", "mtp_logits", "mtp_logits_prenorm"], 8, [];
    v32_fp8 "variant-v32-fp8" ["logits", "greedy_logits", "mtp_logits", "logits_actquant", "mtp_logits_prenorm"], 8, [];
    v4 "v4-flash-like" ["logits", "greedy_logits", "mtp_logits"], 8, [];
    v4_fp4 "v4-fp4" ["logits", "greedy_logits", "mtp_logits", "logits_actquant"], 8, [];
    v41 "v41-like" [
        "logits", "compressed_lookup", "primes_1", "multipliers_1", "primes_3", "multipliers_3", "greedy_logits",
        "dspark_ids", "dspark_logits", "dspark_confidence", "hash_1", "engram_1", "kept_1", "hash_3", "engram_3", "kept_3",
        "kept_5", "candidates", "kept_7",
    ], 8, [];
    v41_fp8_fp4 "v41-fp8fp4-like" [
        "logits", "compressed_lookup", "primes_1", "multipliers_1", "greedy_logits", "dspark_ids", "dspark_logits",
        "dspark_confidence", "logits_cachequant", "logits_actquant", "hash_1", "engram_1", "kept_1", "kept_3", "candidates",
        "kept_5",
    ], 8, [];
    nsa "nsa" ["logits", "greedy_logits"], 8, [];
    nsa_uneven "variant-nsa-uneven" ["logits", "greedy_logits"], 8, [];
    nsa_gaps "variant-nsa-gaps" ["logits", "greedy_logits"], 8, [];
    nsa_short "variant-nsa-short" ["logits", "greedy_logits"], 8, [];
    engram "engram" [
        "logits", "compressed_lookup", "primes_1", "multipliers_1", "primes_3", "multipliers_3", "greedy_logits", "hash_1",
        "engram_1", "hash_3", "engram_3",
    ], 8, [];
    engram_4grams "variant-engram-4grams" [
        "logits", "compressed_lookup", "primes_0", "multipliers_0", "primes_2", "multipliers_2", "primes_5", "multipliers_5",
        "greedy_logits", "hash_0", "engram_0", "hash_2", "engram_2", "hash_5", "engram_5",
    ], 8, [];
    engram_one "variant-engram-one" [
        "logits", "compressed_lookup", "primes_2", "multipliers_2", "greedy_logits", "hash_2", "engram_2",
    ], 8, [];
}

#[test]
fn the_demo() {
    check(&demo_folder(), &["logits", "mtp_logits"], 64, &[]);
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
