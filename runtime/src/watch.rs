//! How long each launch takes: what is added up while a session is watched.

use hadal_artifact::Manifest;
use std::time::Instant;

/// Time by launch, since a session has been watched.
#[derive(Debug)]
pub struct Watch {
    /// When a call began, and when each of its launches ended; made anew for each call in the same memory.
    clock: Vec<Instant>,
    versions: Vec<Watched>,
    /// Where an entry's versions begin in `versions`.
    first: Vec<usize>,
    calls: Vec<(usize, Vec<Instant>)>,
}

/// A version of an entry that was called, and the time that its launches took.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Watched {
    /// Position of the entry in the manifest.
    pub entry: usize,
    /// Position of the version in the entry.
    pub version: usize,
    /// How often it was called.
    pub calls: u64,
    /// Nanoseconds of each launch, of all calls together.
    pub nanos: Vec<u64>,
}

impl Watch {
    pub(crate) fn new(m: &Manifest) -> Watch {
        let (mut versions, mut first) = (Vec::new(), Vec::new());
        for (entry, e) in m.entries.iter().enumerate() {
            first.push(versions.len());
            let of = |(version, v): (usize, &hadal_artifact::Version)| {
                let nanos = vec![0; v.launches.len()];
                Watched { entry, version, calls: 0, nanos }
            };
            versions.extend(e.versions.iter().enumerate().map(of));
        }
        Watch { clock: Vec::new(), versions, first, calls: Vec::new() }
    }

    /// A clock for a call with so many launches.
    pub(crate) fn start(&mut self, launches: usize) -> &mut [Instant] {
        self.clock.clear();
        self.clock.resize(launches + 1, Instant::now());
        &mut self.clock
    }

    /// Adds the call that the clock was running for.
    pub(crate) fn add(&mut self, entry: usize, version: usize) {
        let number = self.first[entry] + version;
        let of = &mut self.versions[number];
        of.calls += 1;
        for (sum, ends) in of.nanos.iter_mut().zip(self.clock.windows(2)) {
            *sum += (ends[1] - ends[0]).as_nanos() as u64;
        }
        self.calls.push((number, self.clock.clone()));
    }

    /// The versions that were called.
    pub fn versions(&self) -> impl Iterator<Item = &Watched> {
        self.versions.iter().filter(|v| v.calls > 0)
    }

    /// Every call in order: its version, when it began, and when each of its launches ended.
    pub fn calls(&self) -> impl Iterator<Item = (&Watched, &[Instant])> {
        self.calls.iter().map(|(number, clock)| (&self.versions[*number], &clock[..]))
    }
}
