//! Builds the runner, the program that every compiled file begins with, so that it can be embedded here.
//!
//! The runner is a crate of this workspace, but cargo cannot yet make one crate's binary an input of another, so a
//! second cargo builds it, always with the small and fast `runner` profile, whatever profile the compiler itself has.
//! Its target folder is shared by all of them. `HADAL_RUNNER` names a finished runner to embed instead.

use std::path::{Path, PathBuf};
use std::process::{Command, exit};

fn main() {
    println!("cargo::rerun-if-env-changed=HADAL_RUNNER");
    for input in ["runtime", "ir/types", "Cargo.lock", "Cargo.toml"] {
        println!("cargo::rerun-if-changed=../{input}");
    }
    let out_dir = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let runner = match std::env::var_os("HADAL_RUNNER") {
        Some(path) => {
            println!("cargo::rerun-if-changed={}", Path::new(&path).display());
            PathBuf::from(path)
        }
        None => build(&out_dir),
    };
    if let Err(e) = std::fs::copy(&runner, out_dir.join("hadal-run")) {
        fail(&format!("cannot copy the runner {}: {e}", runner.display()));
    }
}

fn build(out_dir: &Path) -> PathBuf {
    // OUT_DIR is <target>/<profile>/build/<package>/out.
    let target = out_dir.ancestors().nth(4).expect("OUT_DIR is deep in the target folder").join("runner");
    let cargo = std::env::var_os("CARGO").expect("cargo sets CARGO");
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--locked", "--package", "hadal-runtime", "--bin", "hadal-run"]);
    command.args(["--profile", "runner", "--target-dir"]).arg(&target);
    // Lint and coverage wrappers belong to the outer build.
    for variable in ["RUSTC_WORKSPACE_WRAPPER", "RUSTC_WRAPPER", "CLIPPY_ARGS", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS"]
    {
        command.env_remove(variable);
    }
    match command.status() {
        Ok(status) if status.success() => target.join("runner/hadal-run"),
        Ok(status) => fail(&format!("building the runner failed ({status}); its messages stand above")),
        Err(e) => fail(&format!("cannot start cargo to build the runner: {e}")),
    }
}

fn fail(message: &str) -> ! {
    println!("cargo::error={message}");
    exit(1)
}
