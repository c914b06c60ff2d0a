//! `cargo xtask gpu`: what a bare machine with a GPU needs in one folder, and a page of what it found.
//!
//! The folder holds the compiler, with LLVM inside, so that everything is compiled where it runs: no cargo, CUDA
//! toolkit or network is needed there, only the driver. `run.sh` checks every fixture and measures some models, and
//! writes its results into a folder that `cargo xtask gpu --report FOLDER` makes `docs/perf/gpu.md` of.

use crate::{Result, root, step};
use serde_json::Value;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

/// What `run.sh` measures: a name, and the arguments of `hadal bench`.
const BENCHES: [(&str, &str); 4] = [
    ("demo", ""),
    ("r1-distill-qwen-1.5b-bf16", "configs/deepseek-r1-distill-qwen-1.5b.json --activations bf16"),
    ("r1-distill-qwen-1.5b-int8", "configs/deepseek-r1-distill-qwen-1.5b.json --quantize int8"),
    ("v2-lite-6-layers-bf16", "configs/deepseek-v2-lite.json --layers 6 --activations bf16"),
];

const SCRIPT: &str = r#"#!/bin/sh
# Checks and measures hadal on the GPU of this machine: ./run.sh [RESULTS]
# TARGET is the GPU's architecture (sm_90a), DEVICE which one (cuda:0), FIXTURES a pattern of what is checked (*),
# BENCHES what is measured (all).
cd "$(dirname "$0")" || exit 1
results=${1:-results}
target=${TARGET:-sm_90a}
device=${DEVICE:-cuda:0}
mkdir -p "$results"
export LD_LIBRARY_PATH="$PWD/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.mem --format=csv,noheader \
  > "$results/gpu.txt" 2> /dev/null || echo "unknown GPU" > "$results/gpu.txt"
date -u +%Y-%m-%d >> "$results/gpu.txt"
bad=0
# shellcheck disable=SC2086
./hadal verify fixtures/${FIXTURES:-*} --target "$target" --device "$device" --json \
  > "$results/verify.json" 2> "$results/verify.log" || { bad=1; echo "verify failed, see $results/verify.log"; }
bench() {
  name=$1; shift
  case " ${BENCHES:-$name} " in *" $name "*) ;; *) return ;; esac
  ./hadal bench "$@" --target "$target" --device "$device" --kernels --json \
    > "$results/bench-$name.json" 2> "$results/bench-$name.log" || { bad=1; echo "$name failed, see $results/bench-$name.log"; }
}
"#;

/// Builds the folder.
pub fn pack(out: &Path) -> Result {
    let root = root();
    let target = root.join("target/gpu-build");
    let shown = target.display().to_string();
    // Stripped, as it has to travel.
    let small = [("CARGO_PROFILE_RELEASE_STRIP", "symbols")];
    let build = ["build", "--release", "--locked", "--package", "hadal", "--features", "llvm-static", "--target-dir"];
    step("compiler with LLVM inside", "cargo", &[&build[..], &[&shown]].concat(), &small)?;
    let failed = |what: &Path| {
        let what = what.display().to_string();
        move |e: std::io::Error| format!("{what}: {e}")
    };
    if out.exists() {
        fs::remove_dir_all(out).map_err(failed(out))?;
    }
    fs::create_dir_all(out).map_err(failed(out))?;
    fs::copy(target.join("release/hadal"), out.join("hadal")).map_err(failed(out))?;
    let fixtures = root.join("tests/fixtures");
    let entries = fs::read_dir(&fixtures).map_err(failed(&fixtures))?.flatten().map(|e| e.path());
    for from in entries.filter(|p| p.join("golden.safetensors").exists()) {
        copy(&from, &out.join("fixtures").join(from.file_name().unwrap_or_default()))?;
    }
    copy(&fixtures.join("configs"), &out.join("configs"))?;
    let mut script = SCRIPT.to_owned();
    for (name, args) in BENCHES {
        let _ = writeln!(script, "bench {name} {args}");
    }
    script.push_str("exit $bad\n");
    let path = out.join("run.sh");
    fs::write(&path, script).map_err(failed(&path))?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).map_err(failed(&path))?;
    }
    libraries(&out.join("hadal"), &out.join("lib"))?;
    let archive = out.with_extension("tar.xz");
    let (folder, name) = (out.parent().unwrap_or(Path::new(".")), out.file_name().unwrap_or_default());
    let (folder, name) = (folder.display().to_string(), name.to_string_lossy());
    let shown = archive.display().to_string();
    step("archive", "tar", &["-C", &folder, "-cJf", &shown, &name], &[])?;
    println!("{shown}: {:.1} MB; there, ./run.sh", size(&archive) as f64 / 1e6);
    Ok(())
}

/// Copies the libraries that a program needs and that not every machine has.
fn libraries(program: &Path, folder: &Path) -> Result {
    let failed = |e: std::io::Error| format!("{}: {e}", folder.display());
    fs::create_dir_all(folder).map_err(failed)?;
    let listed = Command::new("ldd").arg(program).output().map_err(|e| format!("ldd: {e}"))?;
    for line in String::from_utf8_lossy(&listed.stdout).lines() {
        let Some((name, rest)) = line.trim().split_once(" => ") else { continue };
        let Some(path) = rest.split_whitespace().next().filter(|p| p.starts_with('/')) else { continue };
        if ["libffi.", "libz.", "libzstd."].iter().any(|rare| name.starts_with(rare)) {
            fs::copy(path, folder.join(name)).map_err(failed)?;
        }
    }
    Ok(())
}

/// Copies a folder; links are followed, since what they lead to stays behind.
fn copy(from: &Path, to: &Path) -> Result {
    let failed = |e: std::io::Error| format!("{}: {e}", from.display());
    fs::create_dir_all(to).map_err(failed)?;
    for entry in fs::read_dir(from).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let target = to.join(path.file_name().unwrap_or_default());
        match path.is_dir() {
            true => copy(&path, &target)?,
            false => fs::copy(&path, &target).map(|_| ()).map_err(failed)?,
        }
    }
    Ok(())
}

fn size(path: &Path) -> u64 {
    match fs::read_dir(path) {
        Ok(entries) => entries.flatten().map(|e| size(&e.path())).sum(),
        Err(_) => fs::metadata(path).map_or(0, |m| m.len()),
    }
}

/// Writes `docs/perf/gpu.md` of a folder with results.
pub fn report(results: &Path) -> Result {
    let read = |name: &str| {
        let path = results.join(name);
        fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))
    };
    let gpu = read("gpu.txt")?;
    let verify = read("verify.json").and_then(|t| json("verify.json", &t))?;
    let mut benches = Vec::new();
    for (name, args) in BENCHES {
        let file = format!("bench-{name}.json");
        match read(&file) {
            Ok(text) if !text.trim().is_empty() => benches.push((name, args, json(&file, &text)?)),
            _ => println!("{name} was not measured"),
        }
    }
    let path = root().join("docs/perf/gpu.md");
    fs::write(&path, page(&gpu, &verify, &benches)).map_err(|e| format!("{}: {e}", path.display()))?;
    println!("{} written", path.display());
    Ok(())
}

fn json(name: &str, text: &str) -> Result<Value> {
    serde_json::from_str(text).map_err(|e| format!("{name}: {e}"))
}

fn page(gpu: &str, verify: &Value, benches: &[(&str, &str, Value)]) -> String {
    let mut out = String::from(
        "# On a GPU\n\nWritten by `cargo xtask gpu --report RESULTS` from what `run.sh` of `cargo xtask gpu` found on a \
         machine with one: ",
    );
    let mut lines = gpu.lines();
    let (name, date) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let _ = write!(out, "{name}; {date}.\n\n## Models against independent implementations\n\n");
    out.push_str("| fixture | architecture | tensors | largest error, of what it may be | |\n|---|---|---|---|---|\n");
    for folder in verify.as_array().into_iter().flatten() {
        let path = folder["path"].as_str().unwrap_or_default();
        let fixture = path.rsplit('/').next().unwrap_or(path);
        let checks: Vec<&Value> = folder["checks"].as_array().into_iter().flatten().collect();
        let share = |c: &&Value| {
            let (error, may) =
                (c["max_abs_error"].as_f64().unwrap_or(f64::NAN), c["tolerance"].as_f64().unwrap_or(0.0));
            if may > 0.0 { error / may } else { 0.0 }
        };
        let worst = checks.iter().map(share).fold(0.0, f64::max);
        let (architecture, count) = (folder["architecture"].as_str().unwrap_or_default(), checks.len());
        let pass = if folder["pass"] == true { "passed" } else { "**failed**" };
        let _ = writeln!(out, "| {fixture} | {architecture} | {count} | {worst:.2} | {pass} |");
    }
    out.push_str("\n## Speed\n\nShares are of the limits in the description of the machine (`hadal target show`).\n");
    for (name, args, report) in benches {
        let _ = write!(out, "\n### {name}\n\n`hadal bench {args}`\n\n");
        out.push_str("| | context | tokens a call | tokens/s | a call, ms | GB/s | TFLOP/s | of the limit |\n");
        out.push_str("|---|---|---|---|---|---|---|---|\n");
        let rows: Vec<&Value> = report["rows"].as_array().into_iter().flatten().collect();
        for row in &rows {
            let number = |v: &Value| v.as_f64().unwrap_or(f64::NAN);
            let seconds = number(&row["seconds"]["median"]);
            let _ = writeln!(
                out,
                "| {} | {} | {} | {:.1} | {:.3} | {:.0} | {:.2} | {:.0} % |",
                row["phase"].as_str().unwrap_or_default(),
                row["context"],
                row["tokens"],
                number(&row["tokens_per_second"]),
                seconds * 1e3,
                number(&row["bytes"]) / seconds / 1e9,
                number(&row["flops"]) / seconds / 1e12,
                100.0 * number(&row["share_of_limit"]),
            );
        }
        for row in rows {
            kernels(&mut out, row);
        }
    }
    out
}

/// The kernels that take longest in a call.
fn kernels(out: &mut String, row: &Value) {
    let all: Vec<&Value> = row["kernels"].as_array().into_iter().flatten().collect();
    let seconds = |k: &Value| k["seconds"].as_f64().unwrap_or(0.0);
    let total: f64 = all.iter().map(|k| seconds(k)).sum();
    if total <= 0.0 {
        return;
    }
    let (phase, context) = (row["phase"].as_str().unwrap_or_default(), &row["context"]);
    let _ = write!(out, "\nKernels of {phase} at {context}, one after the other {:.3} ms:\n\n", total * 1e3);
    out.push_str(
        "| kernel | place | launches | share | GB/s | TFLOP/s | of the limit |\n|---|---|---|---|---|---|---|\n",
    );
    for k in all.iter().take(8) {
        let of = |field: &str, unit: f64| k[field].as_f64().unwrap_or(0.0) / seconds(k) / unit;
        let _ = writeln!(
            out,
            "| `{}` | {} | {} | {:.0} % | {:.0} | {:.2} | {:.0} % |",
            k["name"].as_str().unwrap_or_default(),
            k["place"].as_str().unwrap_or_default(),
            k["launches"],
            100.0 * seconds(k) / total,
            of("bytes", 1e9),
            of("flops", 1e12),
            100.0 * of("limit_seconds", 1.0),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_page_has_what_was_found() {
        let verify = json!([
            {"path": "fixtures/v3", "architecture": "deepseek_v3", "pass": true,
             "checks": [{"max_abs_error": 1e-5, "tolerance": 1e-4}, {"max_abs_error": 0.0, "tolerance": 0.0}]},
            {"path": "fixtures/v4", "architecture": "deepseek_v4", "pass": false, "checks": []},
        ]);
        let kernel = json!({"name": "k", "place": "layers.0", "launches": 2, "seconds": 1e-3, "bytes": 2e9, "flops": 1e9,
                            "limit_seconds": 5e-4});
        let row = json!({"phase": "decode", "context": 128, "tokens": 1, "tokens_per_second": 500.0, "bytes": 4e9,
                         "flops": 2e9, "share_of_limit": 0.25, "seconds": {"median": 2e-3}, "kernels": [kernel]});
        let page = page("NVIDIA H200, 570\n2026-11-24\n", &verify, &[("demo", "", json!({"rows": [row]}))]);
        for line in [
            "NVIDIA H200, 570; 2026-11-24.",
            "| v3 | deepseek_v3 | 2 | 0.10 | passed |",
            "| v4 | deepseek_v4 | 0 | 0.00 | **failed** |",
            "| decode | 128 | 1 | 500.0 | 2.000 | 2000 | 1.00 | 25 % |",
            "| `k` | layers.0 | 2 | 100 % | 2000 | 1.00 | 50 % |",
        ] {
            assert!(page.contains(line), "{line} in {page}");
        }
    }

    #[test]
    fn the_script_measures_everything() {
        for (name, args) in BENCHES {
            let config = args.split_whitespace().next().filter(|a| a.starts_with("configs/"));
            assert!(config.is_none_or(|c| root().join("tests/fixtures").join(c).exists()), "{name}");
        }
    }
}
