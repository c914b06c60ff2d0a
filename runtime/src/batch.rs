//! Several sequences in one step: a new token for each, and weights are read once for all of them.
//!
//! The program says of each launch whether it runs once, row `b` being that of sequence `b`, or for each sequence alone
//! with its own states and numbers (`docs/src/design/batching.md`). Launches stay in order, one for all sequences
//! before the next. So sequences of different lengths share a step, they join it and leave it between any two steps,
//! and each gets the bits it would get alone.
//!
//! Like a session, a batch allocates nothing once it has run.

use crate::Error;
use crate::generate::check_ports;
use crate::pool::{Pool, Step};
use crate::program::{KernelFn, Program};
use crate::region::Region;
use crate::session::{Affine, Affines, SMALL_STEP_BYTES, ScratchRegion, Session, product};
use hadal_artifact::{Launch, Space, SymbolRange, Version, row_bytes};
use hadal_types::Sym;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Working memory that sequences share, and the means to run steps of them.
pub struct Batch {
    program: Arc<Program>,
    pool: Arc<Pool>,
    /// Number of `decode`.
    entry: usize,
    vocab: usize,
    /// Sequences of one step.
    most: usize,
    /// One for each version that runs for batches, by its number.
    versions: BTreeMap<usize, Shared>,
    scratch: ScratchRegion,
    /// Symbols of the entry, where all but the number of tokens have no value.
    together: Vec<i64>,
    /// Which of them that number is.
    tokens_at: usize,
    /// By sequence: the version it runs in.
    numbers: Vec<Option<usize>>,
    /// Sequences of the current step.
    members: Vec<usize>,
    tokens: Vec<i32>,
    /// Of sequences that do not stand next to each other.
    logits: Vec<f32>,
    /// What the entry gives besides logits.
    hidden: Vec<f32>,
    /// Elements of it for one sequence.
    hidden_width: usize,
    /// What the steps handed to the pool point into.
    args: Vec<*mut u8>,
    symbols: Vec<i64>,
    steps: Vec<Step>,
    /// By member and state.
    rows: Vec<*mut u8>,
    /// Referred to by address in `versions`.
    _arena: Region,
}

/// A version with what is known of its addresses.
struct Shared {
    launches: Vec<SharedLaunch>,
    kernels: Vec<KernelNumbers>,
    /// States that it touches.
    states: Vec<usize>,
}

struct SharedLaunch {
    function: KernelFn,
    each: bool,
    /// Place in [`Shared::kernels`].
    kernel: usize,
    args: Vec<Address>,
    grid: Vec<Affine>,
}

/// What a kernel is told of sizes, for all sequences together or for each.
struct KernelNumbers {
    each: bool,
    /// Places in the entry's symbols.
    symbols: Vec<usize>,
    params: Vec<Affines>,
    /// Of the current step: where its symbols begin, and the bytes it touches for all sequences.
    first: usize,
    bytes: i64,
}

/// Where an argument lies for sequence `b`.
enum Address {
    /// Anywhere, `stride` bytes further for each sequence.
    Row { start: *mut u8, stride: usize },
    /// In what the sequence has for itself.
    Own { offset: usize },
    /// In a state of it.
    State { state: usize, offset: usize },
    /// In the tokens, or what is computed of them.
    Port { port: Port, offset: usize, stride: usize },
}

#[derive(Clone, Copy)]
enum Port {
    Tokens,
    Logits,
    Hidden,
}

// SAFETY: the raw pointers lead into a region this batch owns, the program it keeps alive, or (while a step runs) into
// its vectors and the sessions given.
unsafe impl Send for Batch {}

impl Batch {
    /// Memory for steps of `program`'s entry `decode`, to be run by `pool`.
    pub fn new(program: &Arc<Program>, pool: &Arc<Pool>) -> Result<Batch, Error> {
        let m = program.manifest();
        let no_entry =
            || Error::NoEntry { name: "decode".to_owned(), has: m.entries.iter().map(|e| e.name.clone()).collect() };
        let entry = m.entries.iter().position(|e| e.name == "decode").ok_or_else(no_entry)?;
        let described = &m.entries[entry];
        let hidden_width = check_ports(described, m.model.vocab)?;
        let versions = || described.versions.iter().enumerate().filter(|(_, v)| v.batches);
        let new_tokens = |symbols: &[SymbolRange]| symbols.iter().find(|r| r.sym == Sym::T).map_or(1, |r| r.hi);
        let most = versions().map(|(_, v)| new_tokens(&v.symbols) as usize).min();
        let tokens_at = described.symbols.iter().position(|r| r.sym == Sym::T);
        let Some((most, tokens_at)) = most.zip(tokens_at) else {
            return Err(Error::NoBatch { entry: described.name.clone() });
        };

        let arena = Region::new("working space", m.arena_bytes)?;
        let symbols: Vec<Sym> = described.symbols.iter().map(|r| r.sym).collect();
        let versions: BTreeMap<usize, Shared> =
            versions().map(|(i, v)| (i, Shared::new(program, v, &symbols, &arena))).collect();
        let largest = |of: &dyn Fn(&Shared) -> usize| versions.values().map(of).max().unwrap_or(0);
        let times = |each: bool| if each { most } else { 1 };
        let args = largest(&|v| v.launches.iter().map(|l| l.args.len() * times(l.each)).sum());
        let numbers = largest(&|v| v.kernels.iter().map(|k| k.symbols.len() * times(k.each)).sum());
        let steps = largest(&|v| v.launches.iter().map(|l| times(l.each)).sum());
        let vocab = m.model.vocab as usize;
        Ok(Batch {
            entry,
            vocab,
            most,
            scratch: ScratchRegion::new(&m.kernels, pool)?,
            together: vec![0; symbols.len()],
            tokens_at,
            numbers: Vec::new(),
            members: Vec::with_capacity(most),
            tokens: Vec::with_capacity(most),
            logits: vec![0.0; most * vocab],
            hidden: vec![0.0; most * hidden_width],
            hidden_width,
            args: Vec::with_capacity(args),
            symbols: Vec::with_capacity(numbers),
            steps: Vec::with_capacity(steps),
            rows: Vec::with_capacity(most * m.states.len()),
            versions,
            program: program.clone(),
            pool: pool.clone(),
            _arena: arena,
        })
    }

    /// Most sequences that share a step; more are cut into several.
    pub fn most(&self) -> usize {
        self.most
    }

    /// Gives each sequence its token, and `logits` a row for each, those of the token after it. Sequences must hold
    /// their prompts, and need not be those of other steps. Nothing is changed where that is refused.
    pub fn step(&mut self, sessions: &mut [&mut Session], tokens: &[u32], logits: &mut [f32]) -> Result<(), Error> {
        let vocab = self.vocab;
        if tokens.len() != sessions.len() || logits.len() != sessions.len() * vocab {
            let (sequences, tokens, logits) = (sessions.len(), tokens.len(), logits.len());
            return Err(Error::Batch { sequences, tokens, logits, vocab });
        }
        if let Some(token) = tokens.iter().find(|t| **t as usize >= vocab) {
            return Err(Error::Token { token: *token as i64, vocab: vocab as u64 });
        }
        self.numbers.clear();
        for (number, s) in sessions.iter_mut().enumerate() {
            if !Arc::ptr_eq(s.program(), &self.program) {
                return Err(Error::OtherProgram { number });
            }
            let alone = s.bind(self.entry, 1)?;
            let version = self.version(alone);
            self.numbers.push(version);
        }
        for i in 0..sessions.len() {
            // Those in front of it with the same version have taken it along.
            let Some(version) = self.numbers[i] else {
                self.alone(sessions[i], tokens[i], &mut logits[i * vocab..][..vocab])?;
                continue;
            };
            if self.numbers[i] == Some(DONE) {
                continue;
            }
            self.members.clear();
            let alike = (i..sessions.len()).filter(|j| self.numbers[*j] == Some(version));
            self.members.extend(alike.take(self.most));
            self.members.iter().for_each(|j| self.numbers[*j] = Some(DONE));
            match self.members.len() {
                1 => self.alone(sessions[i], tokens[i], &mut logits[i * vocab..][..vocab])?,
                _ => self.together(version, sessions, tokens, logits)?,
            }
        }
        Ok(())
    }

    /// The version to run for several sequences of which each alone would run the version `alone`.
    ///
    /// On devices there is none yet: recorded launches are those of one sequence.
    fn version(&self, alone: usize) -> Option<usize> {
        if self.program.device().is_some() {
            return None;
        }
        let manifest = self.program.manifest();
        let versions = &manifest.entries[self.entry].versions;
        let held = |v: &Version| -> Option<SymbolRange> { v.symbols.iter().copied().find(|r| r.sym == Sym::P) };
        let same = |number: &usize| match (held(&versions[*number]), held(&versions[alone])) {
            (Some(all), Some(one)) => all.lo <= one.lo && one.hi <= all.hi,
            (all, one) => all.is_none() && one.is_none(),
        };
        self.versions.keys().copied().find(same)
    }

    /// One sequence, as without a batch.
    fn alone(&mut self, session: &mut Session, token: u32, logits: &mut [f32]) -> Result<(), Error> {
        let hidden = &mut self.hidden[..self.hidden_width];
        let outputs = &mut [bytemuck::cast_slice_mut(logits), bytemuck::cast_slice_mut(hidden)];
        let count = if self.hidden_width == 0 { 1 } else { 2 };
        session.run(self.entry, 1, &[bytemuck::bytes_of(&(token as i32))], &mut outputs[..count])
    }

    /// The sequences `members`, whose symbols are bound.
    fn together(
        &mut self,
        version: usize,
        sessions: &mut [&mut Session],
        tokens: &[u32],
        logits: &mut [f32],
    ) -> Result<(), Error> {
        let Batch { members, vocab, entry, .. } = self;
        let (count, vocab, entry) = (members.len(), *vocab, *entry);
        self.tokens.clear();
        self.tokens.extend(members.iter().map(|i| tokens[*i] as i32));
        self.together[self.tokens_at] = count as i64;
        let first = members[0];
        let in_a_row = members.iter().enumerate().all(|(b, i)| *i == first + b);
        let given = match in_a_row {
            true => logits[first * vocab..].as_mut_ptr(),
            false => self.logits.as_mut_ptr(),
        };
        let port = |port: Port| -> *mut u8 {
            match port {
                Port::Tokens => self.tokens.as_ptr().cast_mut().cast(),
                Port::Logits => given.cast(),
                Port::Hidden => self.hidden.as_ptr().cast_mut().cast(),
            }
        };
        let shared = self.versions.get_mut(&version).expect("versions were looked up");
        let states = self.program.manifest().states.len();
        self.rows.clear();
        self.rows.resize(count * states, std::ptr::null_mut());
        for (b, i) in members.iter().enumerate() {
            for s in &shared.states {
                self.rows[b * states + s] = sessions[*i].rows(*s, 1)?;
            }
        }
        let values = |b: usize| sessions[members[b]].values(entry);

        self.symbols.clear();
        for k in &mut shared.kernels {
            k.first = self.symbols.len();
            k.bytes = 0;
            for b in 0..if k.each { count } else { 1 } {
                let values = if k.each { values(b) } else { &self.together };
                self.symbols.extend(k.symbols.iter().map(|s| values[*s]));
                k.bytes = k.params.iter().fold(k.bytes, |n, p| n.saturating_add(p.bytes(values)));
            }
        }
        self.args.clear();
        for l in &shared.launches {
            for b in 0..if l.each { count } else { 1 } {
                let arena = sessions[members[b]].arena();
                self.args.extend(l.args.iter().map(|a| match *a {
                    Address::Row { start, stride } => start.wrapping_add(b * stride),
                    Address::Own { offset } => arena.wrapping_add(offset),
                    Address::State { state, offset } => self.rows[b * states + state].wrapping_add(offset),
                    Address::Port { port: p, offset, stride } => port(p).wrapping_add(offset + b * stride),
                }));
            }
        }
        self.steps.clear();
        let (mut args, symbols) = (self.args.as_ptr(), self.symbols.as_ptr());
        for l in &shared.launches {
            let k = &shared.kernels[l.kernel];
            for b in 0..if l.each { count } else { 1 } {
                let values = if l.each { values(b) } else { &self.together };
                self.steps.push(Step {
                    kernel: l.function,
                    args,
                    symbols: symbols.wrapping_add(k.first + b * k.symbols.len()),
                    grid: product(&l.grid, values),
                    large: k.bytes >= SMALL_STEP_BYTES,
                    more: if l.each && b == 0 { count as u16 - 1 } else { 0 },
                });
                args = args.wrapping_add(l.args.len());
            }
        }
        // SAFETY: as in a session's call. The manifest was checked for one token and as many as there are sequences at
        // most: what sequences share is rows, so that each sequence's end where the next one's begin, and `each`
        // launches of different sequences write to different memory: their own, and their rows. `bind` found room in
        // every session.
        unsafe { self.pool.run(&self.steps, self.scratch.place(), None) };
        if !in_a_row {
            for (b, i) in members.iter().enumerate() {
                logits[i * vocab..][..vocab].copy_from_slice(&self.logits[b * vocab..][..vocab]);
            }
        }
        members.iter().for_each(|i| sessions[*i].advance(entry, 1));
        Ok(())
    }
}

/// Stands for a version once a sequence has had its step.
const DONE: usize = usize::MAX;

impl Shared {
    fn new(program: &Program, version: &Version, symbols: &[Sym], arena: &Region) -> Shared {
        let m = program.manifest();
        let mut numbers: BTreeMap<(u32, bool), usize> = BTreeMap::new();
        let mut kernels = Vec::new();
        let mut states = BTreeSet::new();
        let launches = version.launches.iter().map(|l| {
            let kernel = *numbers.entry((l.kernel, l.each)).or_insert_with(|| {
                let k = &m.kernels[l.kernel as usize];
                let places = k.symbols.iter().filter_map(|s| symbols.iter().position(|x| x == s)).collect();
                let params = k.params.iter().map(|p| Affines::new(&p.ty, symbols)).collect();
                kernels.push(KernelNumbers { each: l.each, symbols: places, params, first: 0, bytes: 0 });
                kernels.len() - 1
            });
            states.extend(l.args.iter().filter_map(|a| match a.space {
                Space::State(i) => Some(i as usize),
                _ => None,
            }));
            SharedLaunch {
                function: program.kernel(l.kernel as usize),
                each: l.each,
                kernel,
                args: addresses(program, l, arena),
                grid: l.grid.iter().map(|d| Affine::new(d, symbols)).collect(),
            }
        });
        let launches = launches.collect();
        Shared { launches, kernels, states: states.into_iter().collect() }
    }
}

fn addresses(program: &Program, launch: &Launch, arena: &Region) -> Vec<Address> {
    let params = &program.manifest().kernels[launch.kernel as usize].params;
    let address = |(arg, param): (&hadal_artifact::Arg, &hadal_artifact::Param)| {
        let offset = arg.offset as usize;
        let stride = row_bytes(&param.ty).unwrap_or(0) as usize;
        let port = |port: Port| Address::Port { port, offset, stride };
        match arg.space {
            Space::Arena => Address::Row { start: arena.start().wrapping_add(offset), stride },
            Space::Weight(i) => {
                Address::Row { start: program.weight(i as usize).cast_mut().wrapping_add(offset), stride: 0 }
            }
            Space::Own => Address::Own { offset },
            Space::State(i) => Address::State { state: i as usize, offset },
            Space::Input(_) => port(Port::Tokens),
            Space::Output(0) => port(Port::Logits),
            Space::Output(_) => port(Port::Hidden),
        }
    };
    launch.args.iter().zip(params).map(address).collect()
}
