//! A runner for another architecture: linked statically, by the linker that comes with Rust, so no other tools are
//! needed.

use crate::{Result, root, step};
use std::path::PathBuf;
use std::process::Command;

/// Builds it and returns where it is; `quick`ly for tests, where it is neither small nor fast.
pub fn build(arch: &str, quick: bool) -> Result<PathBuf> {
    let (profile, folder_of_profile) = if quick { ("dev", "debug") } else { ("runner", "runner") };
    let triple = format!("{arch}-unknown-linux-musl");
    let there = Command::new("rustc").args(["--print", "target-libdir", "--target", &triple]).output();
    let folder = there.ok().filter(|o| o.status.success()).and_then(|o| String::from_utf8(o.stdout).ok());
    let Some(folder) = folder else { return Err(format!("rustc knows no {triple}; try aarch64 or x86_64")) };
    if !PathBuf::from(folder.trim()).is_dir() {
        step("standard library", "rustup", &["target", "add", &triple], &[])?;
    }
    let target = root().join("target/runner");
    let linker = format!("CARGO_TARGET_{}_LINKER", triple.to_uppercase().replace('-', "_"));
    let shown = target.display().to_string();
    let mut args = vec!["build", "--locked", "--package", "hadal-runtime", "--bin", "hadal-run"];
    args.extend(["--profile", profile, "--target", &triple, "--target-dir", &shown]);
    // For the profile `dev` alone.
    let unoptimised = [("CARGO_PROFILE_DEV_OPT_LEVEL", "0"), ("CARGO_PROFILE_DEV_DEBUG", "false")];
    step("runner", "cargo", &args, &[&[(linker.as_str(), "rust-lld")], &unoptimised[..]].concat())?;
    Ok(target.join(&triple).join(folder_of_profile).join("hadal-run"))
}
