//! Where the time of a run goes: a table by kernel, and a trace of launches for a viewer.

use super::{Failure, stdout_failed};
use crate::artifact::Manifest;
use crate::{Error, Session, Watched};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

/// One kernel of an entry's version.
pub(super) struct Row<'a> {
    entry: String,
    kernel: &'a str,
    origin: &'a str,
    calls: u64,
    launches: usize,
    nanos: u64,
    /// Of the time of its version.
    share: f64,
}

/// The kernels that ran while the session was watched: of each version those that took longest first.
pub(super) fn rows(session: &Session) -> Vec<Row<'_>> {
    let m = session.program().manifest();
    let mut all = Vec::new();
    for w in session.watched().into_iter().flat_map(crate::Watch::versions) {
        let total: u64 = w.nanos.iter().sum();
        let mut by_kernel: BTreeMap<u32, (usize, u64)> = BTreeMap::new();
        for (launch, nanos) in m.entries[w.entry].versions[w.version].launches.iter().zip(&w.nanos) {
            let (launches, sum) = by_kernel.entry(launch.kernel).or_default();
            (*launches, *sum) = (*launches + 1, *sum + nanos);
        }
        let row = |(kernel, (launches, nanos)): (u32, (usize, u64))| {
            let kernel = &m.kernels[kernel as usize];
            let share = nanos as f64 / total.max(1) as f64;
            let (entry, calls) = (label(m, w), w.calls);
            Row { entry, kernel: &kernel.name, origin: &kernel.origin, calls, launches, nanos, share }
        };
        let mut rows: Vec<Row<'_>> = by_kernel.into_iter().map(row).collect();
        rows.sort_by(|a, b| b.nanos.cmp(&a.nanos).then(a.kernel.cmp(b.kernel)));
        all.extend(rows);
    }
    all
}

/// An entry's version, with the ranges that tell it from others.
fn label(m: &Manifest, w: &Watched) -> String {
    let entry = &m.entries[w.entry];
    match &entry.versions[..] {
        [_] => entry.name.clone(),
        all => format!("{} ({})", entry.name, m.free_ranges(&all[w.version].symbols).join(", ")),
    }
}

impl Row<'_> {
    /// Microseconds of one call of its version.
    fn micros(&self) -> f64 {
        self.nanos as f64 / 1e3 / self.calls as f64
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "entry": self.entry,
            "calls": self.calls,
            "kernel": self.kernel,
            "origin": self.origin,
            "launches": self.launches,
            "microseconds": self.micros(),
            "share": self.share,
        })
    }
}

/// Writes a table for each version, of the kernels that take at least a hundredth of its time.
pub(super) fn table(out: &mut dyn Write, rows: &[Row<'_>]) -> Result<(), Failure> {
    for version in rows.chunk_by(|a, b| a.entry == b.entry) {
        let total: f64 = version.iter().map(Row::micros).sum();
        let (entry, calls) = (&version[0].entry, version[0].calls);
        writeln!(out, "\n{entry}: {total:.1} \u{b5}s a call, {calls} calls").map_err(stdout_failed)?;
        let (shown, rest): (Vec<_>, Vec<_>) = version.iter().partition(|r| r.share >= 0.01);
        for r in shown {
            let (micros, share) = (r.micros(), r.share * 100.0);
            let origin = r.origin.split(", ").next().unwrap_or_default();
            writeln!(out, "  {micros:>9.1} \u{b5}s {share:>5.1} %  {:>4}x  {:<40} {origin}", r.launches, r.kernel)
                .map_err(stdout_failed)?;
        }
        if !rest.is_empty() {
            let (micros, share) = rest.iter().fold((0.0, 0.0), |(m, s), r| (m + r.micros(), s + r.share * 100.0));
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
    for (w, clock) in watch.calls() {
        let zero = *begun.get_or_insert(clock[0]);
        let micros = |i: usize| clock[i].duration_since(zero).as_nanos() as f64 / 1e3;
        let event = |name: &str, origin: &str, thread: u32, from: usize, to: usize| {
            let args = json!({ "origin": origin });
            json!({ "name": name, "ph": "X", "pid": 1, "tid": thread, "ts": micros(from), "dur": micros(to) - micros(from),
                "args": args })
        };
        events.push(event(&label(m, w), "", 1, 0, clock.len() - 1));
        for (i, launch) in m.entries[w.entry].versions[w.version].launches.iter().enumerate() {
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
