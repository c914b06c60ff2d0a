//! Where the time of a run goes: a table by kernel, and a trace of launches for a viewer.

use super::{Failure, stdout_failed};
use crate::artifact::Manifest;
use crate::{Error, Session, Watch, Watched};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

/// One kernel of an entry's version.
pub(super) struct Row<'a> {
    entry: String,
    kernel: &'a str,
    origin: &'a str,
    calls: usize,
    launches: usize,
    /// Of all its launches in a call: the sum of their medians, as others that use the machine disturb some calls.
    micros: f64,
    /// Of the time of its version.
    share: f64,
}

/// The kernels that ran while the session was watched: of each version those that took longest first.
pub(super) fn rows(session: &Session) -> Vec<Row<'_>> {
    let m = session.program().manifest();
    let mut versions: BTreeMap<(usize, usize), Vec<&Watched>> = BTreeMap::new();
    for call in session.watched().into_iter().flat_map(Watch::calls) {
        versions.entry((call.entry, call.version)).or_default().push(call);
    }
    let mut all = Vec::new();
    for ((entry, version), calls) in versions {
        let mut by_kernel: BTreeMap<u32, (usize, f64)> = BTreeMap::new();
        for (i, launch) in m.entries[entry].versions[version].launches.iter().enumerate() {
            let mut took: Vec<_> = calls.iter().map(|c| c.clock[i + 1] - c.clock[i]).collect();
            took.sort_unstable();
            let (launches, sum) = by_kernel.entry(launch.kernel).or_default();
            (*launches, *sum) = (*launches + 1, *sum + took[took.len() / 2].as_nanos() as f64 / 1e3);
        }
        let total: f64 = by_kernel.values().map(|(_, micros)| micros).sum();
        let row = |(kernel, (launches, micros)): (u32, (usize, f64))| {
            let kernel = &m.kernels[kernel as usize];
            let (entry, calls, share) = (label(m, entry, version), calls.len(), micros / total.max(1e-3));
            Row { entry, kernel: &kernel.name, origin: &kernel.origin, calls, launches, micros, share }
        };
        let mut rows: Vec<Row<'_>> = by_kernel.into_iter().map(row).collect();
        rows.sort_by(|a, b| b.micros.total_cmp(&a.micros).then(a.kernel.cmp(b.kernel)));
        all.extend(rows);
    }
    all
}

/// An entry's version, with the ranges that tell it from others.
fn label(m: &Manifest, entry: usize, version: usize) -> String {
    let entry = &m.entries[entry];
    match &entry.versions[..] {
        [_] => entry.name.clone(),
        all => format!("{} ({})", entry.name, m.free_ranges(&all[version].symbols).join(", ")),
    }
}

impl Row<'_> {
    pub(super) fn json(&self) -> Value {
        json!({
            "entry": self.entry,
            "calls": self.calls,
            "kernel": self.kernel,
            "origin": self.origin,
            "launches": self.launches,
            "microseconds": self.micros,
            "share": self.share,
        })
    }
}

/// Writes a table for each version, of the kernels that take at least a hundredth of its time.
pub(super) fn table(out: &mut dyn Write, rows: &[Row<'_>]) -> Result<(), Failure> {
    for version in rows.chunk_by(|a, b| a.entry == b.entry) {
        let total: f64 = version.iter().map(|r| r.micros).sum();
        let (entry, calls) = (&version[0].entry, version[0].calls);
        writeln!(out, "\n{entry}: {total:.1} \u{b5}s a call, {calls} calls").map_err(stdout_failed)?;
        let (shown, rest): (Vec<_>, Vec<_>) = version.iter().partition(|r| r.share >= 0.01);
        for r in shown {
            let (micros, share) = (r.micros, r.share * 100.0);
            let origin = r.origin.split(", ").next().unwrap_or_default();
            writeln!(out, "  {micros:>9.1} \u{b5}s {share:>5.1} %  {:>4}x  {:<40} {origin}", r.launches, r.kernel)
                .map_err(stdout_failed)?;
        }
        if !rest.is_empty() {
            let (micros, share) = rest.iter().fold((0.0, 0.0), |(m, s), r| (m + r.micros, s + r.share * 100.0));
            writeln!(out, "  {micros:>9.1} \u{b5}s {share:>5.1} %        {} more", rest.len())
                .map_err(stdout_failed)?;
        }
    }
    Ok(())
}

/// Writes the launches as events of the format that `chrome://tracing` and Perfetto open.
pub(super) fn trace(session: &Session, path: &Path) -> Result<(), Failure> {
    let m = session.program().manifest();
    let Some(watch) = session.watched() else { return Ok(()) };
    let mut events = Vec::new();
    let mut begun = None;
    for Watched { entry, version, clock } in watch.calls() {
        let zero = *begun.get_or_insert(clock[0]);
        let micros = |i: usize| clock[i].duration_since(zero).as_nanos() as f64 / 1e3;
        let event = |name: &str, origin: &str, thread: u32, from: usize, to: usize| {
            let args = json!({ "origin": origin });
            json!({ "name": name, "ph": "X", "pid": 1, "tid": thread, "ts": micros(from), "dur": micros(to) - micros(from),
                "args": args })
        };
        events.push(event(&label(m, *entry, *version), "", 1, 0, clock.len() - 1));
        for (i, launch) in m.entries[*entry].versions[*version].launches.iter().enumerate() {
            let kernel = &m.kernels[launch.kernel as usize];
            events.push(event(&kernel.name, &kernel.origin, 2, i, i + 1));
        }
    }
    let names = [(1, "calls"), (2, "launches")];
    events.extend(names.map(
        |(tid, name)| json!({ "name": "thread_name", "ph": "M", "pid": 1, "tid": tid, "args": { "name": name } }),
    ));
    let text = json!({ "traceEvents": events, "displayTimeUnit": "ns" }).to_string();
    std::fs::write(path, text).map_err(|source| Error::Io { path: path.to_path_buf(), source }.into())
}
