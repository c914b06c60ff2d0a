//! The workspace is what `ARCHITECTURE.md` draws: which crate may depend on which, and which crate alone may know a
//! foreign library. A new arrow is a decision, so it needs a change here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

/// Crate, and the crates of ours that it may depend on outside tests.
const ARROWS: &[(&str, &[&str])] = &[
    ("hadal-types", &[]),
    ("hadal-ir", &["hadal-types"]),
    ("hadal-models", &["hadal-ir", "hadal-types"]),
    ("hadal-passes", &["hadal-ir", "hadal-types"]),
    ("hadal-artifact", &["hadal-types"]),
    ("hadal-codegen", &["hadal-artifact", "hadal-ir", "hadal-types"]),
    ("hadal-runtime", &["hadal-artifact", "hadal-types"]),
    (
        "hadal",
        &[
            "hadal-artifact",
            "hadal-codegen",
            "hadal-ir",
            "hadal-models",
            "hadal-passes",
            "hadal-runtime",
            "hadal-types",
            "ptx-emulator",
        ],
    ),
    (
        "hadal-tests",
        &[
            "hadal",
            "hadal-artifact",
            "hadal-codegen",
            "hadal-ir",
            "hadal-models",
            "hadal-passes",
            "hadal-runtime",
            "hadal-types",
        ],
    ),
    ("xtask", &[]),
    ("ptx-emulator", &[]),
    ("cuda-emulator", &["ptx-emulator"]),
];

/// Foreign crates (by the beginning of their name) that only one crate of ours may know.
const HOMES: &[(&str, &str)] = &[
    ("egg", "hadal-passes"),
    ("cranelift", "hadal-codegen"),
    ("inkwell", "hadal-codegen"),
    ("cudarc", "hadal-runtime"),
    ("tokenizers", "hadal-runtime"),
    ("minijinja", "hadal-runtime"),
];

/// Every crate of ours with the names of what it depends on outside tests.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let out = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root)
        .output()
        .expect("cargo runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&out.stdout).expect("cargo prints JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let normal = |d: &&serde_json::Value| d["kind"].is_null();
    let name = |v: &serde_json::Value| v["name"].as_str().expect("name").to_owned();
    let of =
        |p: &serde_json::Value| p["dependencies"].as_array().expect("list").iter().filter(normal).map(name).collect();
    packages.iter().map(|p| (name(p), of(p))).collect()
}

#[test]
fn crates_depend_only_along_the_arrows() {
    let found = dependencies();
    let ours: BTreeSet<&String> = found.keys().collect();
    let listed: BTreeSet<String> = ARROWS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(ours, listed.iter().collect(), "a crate was added or removed: draw its arrows");
    for (name, allowed) in ARROWS {
        for dependency in found[*name].iter().filter(|d| ours.contains(d)) {
            assert!(allowed.contains(&dependency.as_str()), "{name} must not know {dependency}");
        }
    }
}

#[test]
fn foreign_libraries_have_one_home() {
    for (name, dependencies) in dependencies() {
        for (library, home) in HOMES {
            let knows = dependencies.iter().any(|d| d == library || d.starts_with(&format!("{library}-")));
            assert!(!knows || name == *home, "{name} must not know {library}: it belongs to {home}");
        }
    }
}
