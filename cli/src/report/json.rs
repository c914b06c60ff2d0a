//! The report's figures as JSON.

use super::facts::{Facts, Kernel, Version, live_bytes};
use serde_json::{Value, json};

/// What the page shows, but for the drawings.
pub fn json(f: &Facts) -> Value {
    json!({
        "name": f.name,
        "architecture": f.model.name,
        "why": f.model.why,
        "target": f.target,
        "parameters": f.stats.main,
        "active_parameters": f.stats.active,
        "weight_bytes": f.weight_bytes(),
        "state_bytes": f.state_bytes(),
        "context": f.model.max_context,
        "entries": f.versions().iter().map(|v| version(f, v)).collect::<Vec<_>>(),
        "passes": f.fused.reports.iter().map(|r| json!({
            "pass": r.pass,
            "seconds": r.time.as_secs_f64(),
            "ops_before": r.before,
            "ops_after": r.after,
            "fired": r.details.fired,
            "searches": r.details.searches.iter().map(|s| json!({
                "function": s.func,
                "nodes": s.nodes,
                "classes": s.classes,
                "rounds": s.rounds,
                "stop": format!("{:?}", s.stop).to_lowercase(),
                "seconds_before": s.before,
                "seconds_after": s.after,
                "folded_bytes": s.folded_bytes,
                "phases": s.phases.iter().map(|p| json!({
                    "phase": p.phase,
                    "nodes": p.nodes,
                    "rounds": p.rounds,
                    "stop": format!("{:?}", p.stop).to_lowercase(),
                    "banned": p.banned,
                    "fired": p.fired,
                    "seconds": p.time.as_secs_f64(),
                })).collect::<Vec<_>>(),
            })).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
        "gaps": f.gaps.iter().map(|g| json!({
            "function": g.func,
            "quick": g.greedy,
            "exact": g.exact,
            "bound": g.bound,
            "proven": g.proven,
            "branches": g.explored,
        })).collect::<Vec<_>>(),
        "contexts": f.prediction.at.iter().map(|c| json!({
            "context": c.tokens,
            "state_bytes": c.state_bytes(),
            "calls": c.calls.iter().map(|p| json!({
                "phase": p.phase.name(),
                "tokens": p.tokens,
                "seconds": p.step.seconds(),
                "flops": p.step.flops,
                "bytes": p.step.bytes(),
            })).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
        "seconds": f.times.iter().map(|(n, t)| ((*n).to_owned(), json!(t.as_secs_f64()))).collect::<serde_json::Map<_, _>>(),
    })
}

fn version(f: &Facts, v: &Version) -> Value {
    let kernels = v.kernels(&f.program);
    json!({
        "entry": v.plan.entry,
        "version": v.label,
        "sizes": v.bindings.iter().map(|(s, n)| (s.to_string(), json!(n))).collect::<serde_json::Map<_, _>>(),
        "launches": v.step.launches,
        "seconds": v.step.seconds(),
        "bound": v.step.bound(),
        "flops": v.step.flops,
        "bytes": v.step.bytes(),
        "arena_bytes": v.plan.arena_bytes,
        "arena_peak": live_bytes(v.plan).into_iter().max(),
        "kernels": kernels.iter().map(kernel).collect::<Vec<_>>(),
    })
}

/// A kernel's figures.
pub fn kernel(k: &Kernel) -> Value {
    json!({
        "kernel": k.func.name,
        "launches": k.launches,
        "seconds": k.step.seconds(),
        "bound": k.step.bound(),
        "flops": k.step.flops,
        "bytes": k.step.bytes(),
        "ops": k.ops().map(|op| op.mnemonic()).collect::<Vec<_>>(),
        "origin": k.origin,
        "weights": k.weights,
        "laws": k.laws,
    })
}
