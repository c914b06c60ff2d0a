//! How long each launch takes: what is kept while a session is watched.

use std::time::Instant;

/// The calls since a session has been watched.
#[derive(Debug)]
pub struct Watch {
    /// When a call began, and when each of its launches ended; made anew for each call in the same memory.
    clock: Vec<Instant>,
    calls: Vec<Watched>,
}

/// A call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Watched {
    /// Position of the entry in the manifest.
    pub entry: usize,
    /// Position of the version in the entry.
    pub version: usize,
    /// When it began, and when each of its launches ended.
    pub clock: Vec<Instant>,
}

impl Watch {
    pub(crate) fn new() -> Watch {
        Watch { clock: Vec::new(), calls: Vec::new() }
    }

    /// A clock for a call with so many launches.
    pub(crate) fn start(&mut self, launches: usize) -> &mut [Instant] {
        self.clock.clear();
        self.clock.resize(launches + 1, Instant::now());
        &mut self.clock
    }

    /// Keeps the call that the clock was running for.
    pub(crate) fn add(&mut self, entry: usize, version: usize) {
        self.calls.push(Watched { entry, version, clock: self.clock.clone() });
    }

    /// Every call in order.
    pub fn calls(&self) -> &[Watched] {
        &self.calls
    }
}
