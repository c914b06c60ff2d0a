//! Installing what cargo does not bring.
//!
//! Cargo brings every Rust crate. Beyond that a C linker is needed to build at all, and LLVM 19 for the optional
//! feature `llvm`, with an emulator of ARM processors for its tests. Where apt-get and the right to use it are at hand
//! they are installed; elsewhere the line to run is printed.

use crate::Result;
use std::process::{Command, Stdio};

const PACKAGES: [&str; 4] = ["llvm-19-dev", "libpolly-19-dev", "zlib1g-dev", "libzstd-dev"];

/// Runs code for ARM in the tests of the LLVM code generator.
const EMULATOR: &str = "qemu-aarch64";

/// Installs what is missing, or says how to.
pub fn run(without_llvm: bool) -> Result {
    if !works("cc", &["--version"]) {
        install(&["gcc", "libc6-dev"], "a C compiler, which links Rust programs")?;
    }
    if without_llvm {
        println!("== setup: without LLVM");
        return Ok(());
    }
    let found = works("llvm-config-19", &["--version"]) || works("/usr/lib/llvm-19/bin/llvm-config", &["--version"]);
    if found {
        println!("== setup: LLVM 19 is installed");
    } else {
        install(&PACKAGES, "LLVM 19, for the feature `llvm`")?;
    }
    if works(EMULATOR, &["--version"]) {
        println!("== setup: {EMULATOR} is installed");
        return Ok(());
    }
    install(&["qemu-user"], "an emulator, for tests of code for ARM")
}

fn works(program: &str, args: &[&str]) -> bool {
    let status = Command::new(program).args(args).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|s| s.success())
}

fn install(packages: &[&str], what: &str) -> Result {
    let line = format!("apt-get install -y --no-install-recommends {}", packages.join(" "));
    let root = output("id", &["-u"]).is_some_and(|u| u.trim() == "0");
    let sudo = !root && works("sudo", &["-n", "true"]);
    if !works("apt-get", &["--version"]) || !(root || sudo) {
        let prefix = if root { "" } else { "sudo " };
        return Err(format!(
            "{what} is missing, and cannot be installed from here. Run\n\n    {prefix}{line}\n\nor its equivalent on \
             this system, then try again (or pass --without-llvm if only LLVM is missing)."
        ));
    }
    println!("== setup: installing {what}");
    let apt = |args: &[&str]| {
        let mut all: Vec<&str> = if sudo { vec!["sudo", "-n", "apt-get"] } else { vec!["apt-get"] };
        all.extend(args);
        let mut command = Command::new(all[0]);
        command.args(&all[1..]).env("DEBIAN_FRONTEND", "noninteractive");
        command.status().is_ok_and(|s| s.success())
    };
    let mut args = vec!["install", "-y", "-q", "--no-install-recommends"];
    args.extend(packages);
    if apt(&["update", "-q"]) && apt(&args) {
        return Ok(());
    }
    Err(format!("{what} could not be installed. Run\n\n    {line}\n\nread its messages, then try again."))
}

fn output(program: &str, args: &[&str]) -> Option<String> {
    let out = Command::new(program).args(args).output().ok()?;
    String::from_utf8(out.stdout).ok()
}
