//! `cargo xtask assemble`: what an assembler makes of the kernels of published models, and a page of it.
//!
//! Every kernel for `sm_90a` goes through `ptxas`, which says how many registers a thread has and what it keeps in
//! memory for lack of them. `docs/perf/registers.md` is the table that this is compared with: no kernel may need more than
//! its row says, and none may spill. `--bless` writes the table anew. No GPU is needed, only `ptxas`: of a CUDA toolkit, or
//! of the package `nvidia-cuda-nvcc-cu12`.

use crate::{Result, root};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Configurations under `tests/fixtures/configs`, each with the formats of activations and of states.
const MODELS: [(&str, &str, &str); 8] = [
    ("deepseek-r1-distill-qwen-1.5b", "f32", "f32"),
    ("deepseek-r1-distill-qwen-1.5b", "bf16", "bf16"),
    ("deepseek-llm-7b-chat", "bf16", "bf16"),
    ("deepseek-v2-lite", "bf16", "bf16"),
    ("deepseek-r1", "fp8", "bf16"),
    ("deepseek-v3.2", "f32", "f32"),
    ("deepseek-v3.2", "fp8", "bf16"),
    ("deepseek-v4-flash", "fp8", "bf16"),
];

const PAGE: &str = "docs/perf/registers.md";

const HEAD: &str = "# Registers of GPU code

What `ptxas` makes of every kernel of some published models for `sm_90a`: `cargo xtask assemble` compares with this table and \
fails where a kernel needs more registers than its row says, or keeps any in memory; `--bless` writes it. A thread has \
255 at most, 168 in a block of twelve warps, 128 in one of sixteen.

";

/// What a row of the table counts.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
struct Row {
    kernels: u32,
    registers: u32,
    spilled: u32,
}

/// A model with the formats of its activations and states, and a generator with its form.
type Key = (String, String);

/// Compares with the table, or writes it.
pub fn run(mut ptxas: Vec<PathBuf>, bless: bool) -> Result {
    if ptxas.is_empty() {
        ptxas.extend(found());
    }
    if ptxas.is_empty() {
        return Err("no ptxas: set PTXAS or give --ptxas; it comes with a CUDA toolkit, or with \
                    `pip download nvidia-cuda-nvcc-cu12`"
            .into());
    }
    let versions = ptxas.iter().map(|p| version(p)).collect::<Result<Vec<_>>>()?.join(" and ");
    let hadal = built()?;
    let mut rows: BTreeMap<Key, Row> = BTreeMap::new();
    for (config, activations, states) in MODELS {
        eprintln!("{config}, activations in {activations}, states in {states}");
        let text = dumped(&hadal, config, activations, states)?;
        let model = format!("{config}, {activations}, {states}");
        for assembler in &ptxas {
            for (key, found) in assembled(assembler, &model, &kernels(&text))? {
                let row = rows.entry(key).or_default();
                row.kernels = found.kernels;
                row.registers = row.registers.max(found.registers);
                row.spilled = row.spilled.max(found.spilled);
            }
        }
    }
    let page = page(&versions, &rows);
    let path = root().join(PAGE);
    if bless {
        return std::fs::write(&path, page).map_err(|e| format!("{}: {e}", path.display()));
    }
    let known = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}; --bless writes it", path.display()))?;
    let mut worse = Vec::new();
    let known = read(&known);
    for (key, row) in &rows {
        let limit = known.get(key).copied().unwrap_or_default();
        if row.spilled > 0 || row.registers > limit.registers {
            worse.push(format!("{}, {}: {row:?}, the table has {limit:?}", key.0, key.1));
        }
    }
    println!("{} kernels of {} models, {versions}", rows.values().map(|r| r.kernels).sum::<u32>(), MODELS.len());
    if worse.is_empty() { Ok(()) } else { Err(format!("registers:\n{}", worse.join("\n"))) }
}

/// Where `PTXAS` says, or on the path.
pub fn found() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("PTXAS") {
        return Some(path.into());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join("ptxas")).find(|p| p.is_file())
}

fn version(ptxas: &Path) -> Result<String> {
    let output = Command::new(ptxas).arg("--version").output();
    let output = output.map_err(|e| format!("{}: {e}", ptxas.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let release = text.lines().find_map(|l| l.split("release ").nth(1)).unwrap_or("of no version");
    Ok(format!("ptxas {}", release.split(',').next().unwrap_or(release)))
}

/// The compiler, with LLVM.
fn built() -> Result<PathBuf> {
    crate::step("compiler", "cargo", &["build", "--release", "--features", "llvm", "--package", "hadal"], &[])?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    Ok(target.join("release/hadal"))
}

fn dumped(hadal: &Path, config: &str, activations: &str, states: &str) -> Result<String> {
    let config = root().join("tests/fixtures/configs").join(format!("{config}.json"));
    let mut command = Command::new(hadal);
    command.arg("dump").arg(&config).args(["--target", "sm_90a", "--stage", "asm", "--activations", activations]);
    command.args(["--state-dtype", states]);
    let output = command.output().map_err(|e| format!("{}: {e}", hadal.display()))?;
    if !output.status.success() {
        return Err(format!("{}: {}", config.display(), String::from_utf8_lossy(&output.stderr)));
    }
    String::from_utf8(output.stdout).map_err(|e| format!("{}: {e}", config.display()))
}

/// The kernels of a dump: name, generator with its form, text.
fn kernels(dump: &str) -> Vec<(String, String, &str)> {
    let mut out = Vec::new();
    // A head is a comment of ours before LLVM's own.
    for part in dump.split("\n; ").map(|p| p.trim_start_matches("; ")) {
        let Some((head, text)) = part.split_once('\n') else { continue };
        let Some((name, made)) = head.split_once(" (") else { continue };
        let mut words = made.split([':', ' ']).filter(|w| !w.is_empty());
        let (generator, form) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let form = match generator {
            "contract" => format!("{generator} {form}"),
            _ if made.contains("shared by") => format!("{generator} of teams"),
            _ => generator.to_string(),
        };
        out.push((name.to_string(), form, text));
    }
    out
}

/// What the assembler says of each kernel, on all cores.
fn assembled(ptxas: &Path, model: &str, kernels: &[(String, String, &str)]) -> Result<BTreeMap<Key, Row>> {
    let folder = root().join("target/assemble");
    std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut rows: BTreeMap<Key, Row> = BTreeMap::new();
    let parts: Vec<Result<Vec<(usize, Row)>>> = std::thread::scope(|scope| {
        let work = |core: usize| {
            let file = folder.join(format!("{core}.ptx"));
            move || (core..kernels.len()).step_by(cores).map(|i| Ok((i, one(ptxas, &file, &kernels[i])?))).collect()
        };
        let threads: Vec<_> = (0..cores).map(|core| scope.spawn(work(core))).collect();
        threads.into_iter().map(|t| t.join().expect("no panics")).collect()
    });
    for part in parts {
        for (i, found) in part? {
            let row = rows.entry((model.to_string(), kernels[i].1.clone())).or_default();
            row.kernels += 1;
            row.registers = row.registers.max(found.registers);
            row.spilled += found.spilled;
            if found.spilled > 0 {
                eprintln!("{}: {} bytes spilled", kernels[i].0, found.spilled);
            }
        }
    }
    Ok(rows)
}

fn one(ptxas: &Path, file: &Path, (name, _, text): &(String, String, &str)) -> Result<Row> {
    std::fs::write(file, text).map_err(|e| format!("{}: {e}", file.display()))?;
    let mut command = Command::new(ptxas);
    command.args(["-v", "-arch=sm_90a", "-o", "/dev/null"]).arg(file);
    let output = command.output().map_err(|e| format!("{}: {e}", ptxas.display()))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let number = |before: &str, after: &str| -> Option<u32> {
        let end = said.find(after)?;
        said[..end].rsplit(before).next()?.trim().parse().ok()
    };
    // A warning would be that products are one after the other, or that registers are not handed on.
    if !output.status.success() || said.contains("warning") {
        return Err(format!("{name}: {said}"));
    }
    let registers = number("Used ", " registers").ok_or_else(|| format!("{name}: {said}"))?;
    let spilled = number("frame, ", " bytes spill stores").unwrap_or(0);
    Ok(Row { kernels: 1, registers, spilled })
}

fn page(versions: &str, rows: &BTreeMap<Key, Row>) -> String {
    let mut out = format!("{HEAD}By {versions}, the larger number where they differ.\n\n");
    out += "| model, activations, states | made by | kernels | registers at most | bytes spilled |\n|---|---|---|---|---|\n";
    for ((model, form), row) in rows {
        let _ = writeln!(out, "| {model} | {form} | {} | {} | {} |", row.kernels, row.registers, row.spilled);
    }
    out
}

fn read(page: &str) -> BTreeMap<Key, Row> {
    let row = |line: &str| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [model, form, kernels, registers, spilled] = cells[..] else { return None };
        let row =
            Row { kernels: kernels.parse().ok()?, registers: registers.parse().ok()?, spilled: spilled.parse().ok()? };
        Some(((model.to_string(), form.to_string()), row))
    };
    page.lines().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_say_what_made_a_kernel() {
        let dump = "; mul_2 (loops: 1 axes in the grid)\n//\n.version 8.4\n\n; c (contract: pipeline stream 1)\n//\n.version\n; a \
                    (attention: flash 1 queries, shared by 16 warps)\nx\n";
        let found: Vec<(String, String)> = kernels(dump).into_iter().map(|(name, form, _)| (name, form)).collect();
        let expected = [("mul_2", "loops"), ("c", "contract pipeline"), ("a", "attention of teams")];
        assert_eq!(found, expected.map(|(a, b)| (a.to_string(), b.to_string())));
        assert_eq!(kernels(dump)[1].2, "//\n.version");
    }

    #[test]
    fn a_page_reads_back() {
        let rows =
            BTreeMap::from([(("m, bf16".into(), "loops".into()), Row { kernels: 3, registers: 40, spilled: 0 })]);
        assert_eq!(read(&page("ptxas 12.9", &rows)), rows);
    }
}
