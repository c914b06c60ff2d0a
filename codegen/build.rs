//! A number for the sources of the code generators: what they made is known by it, together with the kernel's text.
//!
//! Kernel generators are left out: they make the text. What is read besides are the kernel IR, number formats and
//! sizes, and the versions of libraries.

use std::hash::Hasher;
use std::path::{Path, PathBuf};

fn main() {
    let mut hash = xxhash_rust::xxh3::Xxh3Default::new();
    for input in ["src", "../ir/src/kernel", "../ir/types/src", "../Cargo.lock"] {
        println!("cargo::rerun-if-changed={input}");
        let mut files = Vec::new();
        collect(Path::new(input), &mut files);
        files.sort();
        for file in files.iter().filter(|f| !f.starts_with("src/kernels")) {
            let text = std::fs::read(file).unwrap_or_else(|e| fail(file, &e));
            hash.write(file.to_string_lossy().as_bytes());
            hash.write(&(text.len() as u64).to_le_bytes());
            hash.write(&text);
        }
    }
    println!("cargo::rustc-env=HADAL_CODEGEN_SOURCES={:032x}", hash.digest128());
}

/// The files at `path`, at any depth.
fn collect(path: &Path, files: &mut Vec<PathBuf>) {
    if path.is_file() {
        files.push(path.into());
        return;
    }
    for entry in std::fs::read_dir(path).unwrap_or_else(|e| fail(path, &e)) {
        collect(&entry.unwrap_or_else(|e| fail(path, &e)).path(), files);
    }
}

fn fail(path: &Path, e: &std::io::Error) -> ! {
    println!("cargo::error=cannot read {}: {e}", path.display());
    std::process::exit(1)
}
