//! `info`: what is in a compiled file.

use super::{Failure, print_json, shortest, stdout_failed};
use crate::Program;
use clap::Args;
use hadal_artifact::{Manifest, Place};
use serde_json::{Value, json};
use std::io::Write;

/// Arguments of `info`.
#[derive(Args)]
#[command(after_help = "Examples:
  ./model info
  ./model info --verify
  ./model info --json | jq '.kernels[] | select(.bytes > 4096)'

Code, plan and tokenizer are verified at every start; --verify also reads all embedded weights.")]
pub struct InfoArgs {
    /// List every kernel with its origin
    #[arg(long)]
    kernels: bool,
    /// Read all embedded weights and compare their checksum
    #[arg(long)]
    verify: bool,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(program: &Program, args: &InfoArgs) -> Result<(), Failure> {
    if args.verify {
        program.verify_weights().map_err(Failure::File)?;
    }
    let facts = facts(program, args);
    if args.json {
        return print_json(&facts);
    }
    let mut out = std::io::stdout().lock();
    text(program.manifest(), &facts, args, &mut out).map_err(stdout_failed)
}

/// Everything as JSON.
fn facts(program: &Program, args: &InfoArgs) -> Value {
    let m = program.manifest();
    let (file_bytes, code_bytes) = program.file_sizes().unzip();
    let total = |external: bool| -> u64 {
        let here = m.weights.iter().filter(|w| matches!(w.place, Place::External { .. }) == external);
        here.map(|w| w.bytes).sum()
    };
    let sampling = &m.model.sampling;
    json!({
        "producer": m.producer,
        "format": hadal_artifact::ABI_VERSION,
        "target": { "arch": m.target.arch, "features": m.target.features },
        "other_targets": m.targets().skip(1).map(|t| json!({ "arch": t.arch, "features": t.features })).collect::<Vec<_>>(),
        "model": {
            "name": m.model.name,
            "architecture": m.model.architecture,
            "vocabulary": m.model.vocab,
            "max_context": m.model.max_context,
            "max_chunk": m.model.max_chunk,
            "bos": m.model.bos,
            "stop": m.model.stop,
            "sampling": {
                "temperature": sampling.temperature.map(shortest), "top_k": sampling.top_k,
                "top_p": sampling.top_p.map(shortest), "min_p": sampling.min_p.map(shortest),
            },
        },
        "bytes": {
            "file": file_bytes,
            "code": code_bytes,
            "weights_embedded": total(false),
            "weights_external": total(true),
            "arena": m.arena_bytes,
            "states": m.states.iter().map(|s| s.bytes).sum::<u64>(),
            "states_per_token": m.state_bytes_per_token(),
        },
        "device": program.device().map(|d| d.name()),
        "weights": m.weights.len(),
        "external_files": m.files.iter().map(|f| &f.path).collect::<Vec<_>>(),
        "states": m.states.iter().map(|s| json!({
            "name": s.name, "dtype": s.dtype.name(), "row": s.row_shape, "held": s.held.to_string(), "rows": s.rows, "bytes": s.bytes,
        })).collect::<Vec<_>>(),
        "entries": m.entries.iter().map(|e| json!({
            "name": e.name,
            "symbols": m.free_ranges(&e.symbols),
            "inputs": ports(&e.inputs),
            "outputs": ports(&e.outputs),
            "versions": e.versions.iter().map(|v| json!({
                "symbols": m.free_ranges(&v.symbols),
                "launches": v.launches.len(),
                "weight_bytes_read": v.weight_bytes_read,
                "flops": v.flops,
            })).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
        "kernels": m.kernels.iter().map(|k| json!({
            "name": k.name, "bytes": k.bytes, "scratch": k.scratch_bytes, "origin": k.origin,
        })).collect::<Vec<_>>(),
        "facts": m.facts.iter().map(|(k, v)| json!({ "name": k, "value": v })).collect::<Vec<_>>(),
        "weights_verified": args.verify,
    })
}

fn ports(ports: &[hadal_artifact::Port]) -> Vec<String> {
    ports.iter().map(|p| format!("{}: {}", p.name, p.ty)).collect()
}

fn text(m: &Manifest, facts: &Value, args: &InfoArgs, out: &mut dyn Write) -> std::io::Result<()> {
    let bytes = |key: &str| facts["bytes"][key].as_u64().map_or("-".to_string(), human);
    let mut line = |name: &str, value: String| writeln!(out, "{name:<14}{value}");
    line("model", format!("{} ({})", m.model.name, m.model.architecture))?;
    line("context", format!("{} tokens, chunks of at most {}", m.model.max_context, m.model.max_chunk))?;
    line("vocabulary", format!("{}, stop tokens {:?}", m.model.vocab, m.model.stop))?;
    line("compiled by", m.producer.clone())?;
    for (i, target) in m.targets().enumerate() {
        let what = if i == 0 { "for" } else { "also for" };
        line(what, format!("{} with {}", target.arch, target.features.join(", ")))?;
    }
    line("runs on", facts["device"].as_str().unwrap_or("this processor").to_owned())?;
    line("file", format!("{}, of which code {}", bytes("file"), bytes("code")))?;
    let verified = if args.verify { " (verified)" } else { "" };
    line(
        "weights",
        format!(
            "{} tensors, {} here{verified}, {} elsewhere",
            m.weights.len(),
            bytes("weights_embedded"),
            bytes("weights_external")
        ),
    )?;
    for f in &m.files {
        line("", f.path.clone())?;
    }
    line("states", format!("{} a token, {} in all", bytes("states_per_token"), bytes("states")))?;
    line("arena", bytes("arena"))?;
    line("kernels", format!("{}", m.kernels.len()))?;
    for e in &m.entries {
        let types = |ports: &[hadal_artifact::Port]| self::ports(ports).join(", ");
        let (inputs, outputs) = (types(&e.inputs), types(&e.outputs));
        match &e.versions[..] {
            [v] => line("entry", format!("{}({inputs}) -> ({outputs}), {} launches", e.name, v.launches.len()))?,
            versions => {
                line("entry", format!("{}({inputs}) -> ({outputs})", e.name))?;
                for v in versions {
                    line("", format!("  {}: {} launches", m.free_ranges(&v.symbols).join(", "), v.launches.len()))?;
                }
            }
        }
    }
    for (name, value) in &m.facts {
        line(name, value.clone())?;
    }
    if args.kernels {
        for k in &m.kernels {
            writeln!(out, "\n{} ({} bytes)\n  {}", k.name, k.bytes, k.origin)?;
        }
    }
    Ok(())
}

/// `1.5 MB`, in powers of 1000.
fn human(bytes: u64) -> String {
    let units = ["bytes", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} bytes") } else { format!("{value:.2} {}", units[unit]) }
}
