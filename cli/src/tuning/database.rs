//! What was measured, in a JSON file that people can read and carry to another machine.

use crate::failure::{Failure, read_text};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The format of the file.
const FORMAT: u32 = 1;

/// All measurements of a file.
#[derive(Clone, PartialEq, Debug)]
pub struct Database {
    file: PathBuf,
    entries: Vec<Entry>,
}

/// What was measured of one function on one processor.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The processor, as its system calls it.
    pub processor: String,
    /// The level that code was made for.
    pub level: String,
    /// The function as text, its name aside.
    pub function: String,
    /// Values of the symbols.
    pub sizes: BTreeMap<String, i64>,
    /// The kernels, the one that is taken without measuring first.
    pub candidates: Vec<Candidate>,
}

/// A kernel's time.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidate {
    /// Its schedule, as text.
    pub schedule: String,
    /// Processor time of the best run.
    pub nanoseconds: u64,
}

impl Entry {
    /// The position of the fastest kernel, where it wins clearly; else the first.
    pub fn best(&self) -> usize {
        let best = (0..self.candidates.len()).min_by_key(|i| self.candidates[*i].nanoseconds).unwrap_or(0);
        let (own, least) = (self.seconds(0), self.seconds(best));
        let (factor, less) = super::CLEARLY;
        if least < (own * factor).min(own - less) { best } else { 0 }
    }

    /// Processor seconds of a candidate.
    pub fn seconds(&self, candidate: usize) -> f64 {
        self.candidates[candidate].nanoseconds as f64 * 1e-9
    }

    /// How many times as fast as the kernel that is taken without measuring.
    pub fn gain(&self) -> f64 {
        self.seconds(0) / self.seconds(self.best())
    }
}

/// The file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File<E> {
    format: u32,
    entries: E,
}

impl Database {
    /// Reads a file; one that does not exist is empty.
    pub fn open(path: &Path) -> Result<Database, Failure> {
        if !path.exists() {
            return Ok(Database { file: path.into(), entries: Vec::new() });
        }
        let wrong = |what: &str| {
            let help = "it was not written by this version of `hadal tune`; remove it, or name another with --tuning";
            Failure::input(format!("{}: no tuning database: {what}", path.display())).help(help)
        };
        let file: File<Vec<Entry>> = serde_json::from_str(&read_text(path)?).map_err(|e| wrong(&e.to_string()))?;
        if file.format != FORMAT {
            return Err(wrong(&format!("`format` is {}, not {FORMAT}", file.format)));
        }
        for (i, entry) in file.entries.iter().enumerate() {
            if entry.candidates.is_empty() {
                return Err(wrong(&format!("`entries[{i}].candidates` is empty")));
            }
            if let Some(c) = entry.candidates.iter().position(|c| c.nanoseconds == 0) {
                return Err(wrong(&format!("`entries[{i}].candidates[{c}].nanoseconds` is 0, which no run takes")));
            }
        }
        Ok(Database { file: path.into(), entries: file.entries })
    }

    /// Writes the file, whole or not at all.
    fn save(&self) -> Result<(), Failure> {
        let path = &self.file;
        let failed = |e: std::io::Error| Failure::failed(format!("{}: {e}", path.display()));
        let folder = path.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).map_err(failed)?;
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        let mut file = tempfile::Builder::new().permissions(readable).tempfile_in(folder).map_err(failed)?;
        let text = serde_json::to_string_pretty(&File { format: FORMAT, entries: &self.entries });
        let text = text.map_err(|e| Failure::internal("writing the tuning database", e))?;
        writeln!(file, "{text}").map_err(failed)?;
        file.persist(path).map_err(|e| failed(e.error))?;
        Ok(())
    }

    /// What is known of a function at these sizes, if it is of just these kernels: on this processor, or else on the
    /// one that stands first in the file.
    pub fn find(
        &self,
        level: &str,
        function: &str,
        sizes: &BTreeMap<String, i64>,
        schedules: &[&str],
    ) -> Option<Entry> {
        let fits = |e: &&Entry| {
            let same = e.candidates.iter().map(|c| c.schedule.as_str()).eq(schedules.iter().copied());
            e.level == level && e.function == function && e.sizes == *sizes && same
        };
        let here = crate::probe::processor();
        let mut all = self.entries.iter().filter(fits);
        let first = all.next()?;
        Some(std::iter::once(first).chain(all).find(|e| e.processor == here).unwrap_or(first).clone())
    }

    /// Adds what was measured, in place of what was known of the function at these sizes on this processor, and writes
    /// the file, so that nothing is measured again if it ends here.
    pub fn add(&mut self, entry: Entry) -> Result<(), Failure> {
        fn key(e: &Entry) -> (&str, &str, &str, &BTreeMap<String, i64>) {
            (&e.processor, &e.level, &e.function, &e.sizes)
        }
        self.entries.retain(|e| key(e) != key(&entry));
        self.entries.push(entry);
        self.save()
    }
}
