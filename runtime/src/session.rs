//! One sequence: its states, working memory, and calls of a program's entries.
//!
//! All addresses and all affine sizes are resolved when a session is made; a call only evaluates sizes for the current
//! `P` and `T`, takes the entry's version for them, patches in the caller's buffers, and hands the steps to the pool.
//! It allocates nothing.
//!
//! `P` comes from the states: an entry that writes states finds there how many tokens they hold, and adds `T` to it.
//! States that no other entry touches so keep their own count (a draft layer may lag behind the main model). Symbols
//! that follow from `P` and `T` are worked out here; the caller never sees them.
//!
//! A window, which keeps the last rows only, slides through its memory: kernels get the address of its oldest row, and
//! when the end comes near, its rows move back to the front. Some rows before it stay, so that a few tokens can be
//! taken back.

use crate::pool::{Pool, Scratch, Step};
use crate::program::{KernelFn, Program};
use crate::region::Region;
use crate::states::{Mark, States};
use crate::watch::Watch;
use crate::{Call as DeviceCall, Device, Error, Launch as DeviceLaunch, Recorded};
use hadal_artifact::{Entry, Kernel, Port, Space, Version};
use hadal_types::{Definition, Definitions, Dim, Sym, TensorType};
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

/// A step whose buffers together have fewer bytes than this is not worth sharing: waking another core's attention
/// takes about a microsecond, in which one core streams some tens of kilobytes.
pub(crate) const SMALL_STEP_BYTES: i64 = 32 * 1024;

/// Memory of one sequence, and the means to run entries on it.
pub struct Session {
    program: Arc<Program>,
    pool: Arc<Pool>,
    calls: Vec<Call>,
    states: States,
    scratch: ScratchRegion,
    watch: Option<Box<Watch>>,
    /// What the caller gives and gets, where the program runs on a device.
    ports: Ports,
    /// Referred to by address in `calls`.
    arena: Region,
}

/// An entry with its addresses.
struct Call {
    symbols: Vec<Sym>,
    /// Current value of each symbol.
    values: Vec<i64>,
    /// Which of them follow from others, and how.
    defined: Vec<(usize, Definition)>,
    inputs: Vec<Affines>,
    outputs: Vec<Affines>,
    /// States it advances, and from which it takes `P`.
    states: Vec<usize>,
    advances: bool,
    versions: Vec<VersionCall>,
}

/// A version with its addresses.
struct VersionCall {
    kernels: Vec<KernelCall>,
    launches: Vec<LaunchCall>,
    /// Grid indices of each launch at most, and the launches where a device has them ready.
    most: Vec<u64>,
    recorded: Option<Box<dyn Recorded>>,
    /// Made anew for each call, in the same memory.
    steps: Vec<Step>,
    /// Arguments of all launches, one after the other; `steps` points into it.
    args: Vec<*mut u8>,
    /// Which of `args` are the caller's buffers.
    patches: Vec<Patch>,
    /// Which of `args` lie in windows.
    windows: Vec<WindowArg>,
    /// Symbol values of all kernels; `steps` points into it.
    symbol_values: Vec<i64>,
}

struct KernelCall {
    /// Places in `symbol_values`.
    first_symbol: usize,
    symbols: Vec<usize>,
    params: Vec<Affines>,
    /// At the current values.
    bytes: i64,
}

struct LaunchCall {
    function: KernelFn,
    /// Of the program.
    number: usize,
    /// Place in [`VersionCall::kernels`].
    kernel: usize,
    /// Place of its first argument in [`VersionCall::args`].
    first_arg: usize,
    grid: Vec<Affine>,
}

struct WindowArg {
    arg: usize,
    state: usize,
    offset: usize,
}

struct Patch {
    arg: usize,
    output: bool,
    port: usize,
    offset: usize,
}

/// `constant + Σ k · values[i]`: a [`Dim`] whose symbols have been looked up.
pub(crate) struct Affine {
    constant: i64,
    terms: Vec<(usize, i64)>,
}

impl Affine {
    pub fn new(dim: &Dim, symbols: &[Sym]) -> Affine {
        let place =
            |s: &Sym| symbols.iter().position(|x| x == s).expect("the manifest was checked for unknown symbols");
        Affine { constant: dim.constant(), terms: dim.terms().iter().map(|(s, k)| (place(s), *k)).collect() }
    }

    fn at(&self, values: &[i64]) -> i64 {
        self.terms.iter().fold(self.constant, |sum, (i, k)| sum.saturating_add(k.saturating_mul(values[*i]))).max(0)
    }
}

/// A tensor type whose symbols have been looked up.
pub(crate) struct Affines {
    bits: i64,
    shape: Vec<Affine>,
}

impl Affines {
    pub fn new(ty: &TensorType, symbols: &[Sym]) -> Affines {
        Affines { bits: ty.dtype.bits() as i64, shape: ty.shape.iter().map(|d| Affine::new(d, symbols)).collect() }
    }

    pub fn bytes(&self, values: &[i64]) -> i64 {
        let count = product(&self.shape, values);
        count.saturating_mul(self.bits).saturating_add(7) / 8
    }
}

pub(crate) fn product(dims: &[Affine], values: &[i64]) -> i64 {
    dims.iter().fold(1, |n, d| n.saturating_mul(d.at(values)))
}

// SAFETY: the raw pointers lead into regions this session owns, the program it keeps alive, or (while a call runs) the
// caller's buffers.
unsafe impl Send for Session {}

impl Session {
    /// Memory for one sequence of `program`, to be run by `pool`.
    pub fn new(program: Arc<Program>, pool: Arc<Pool>) -> Result<Session, Error> {
        let m = program.manifest();
        if let Some(s) = m.states.iter().find(|s| s.page_rows != s.rows) {
            return Err(Error::Paged { name: s.name.clone() });
        }
        let device = program.device();
        let states = States::new(&m.states, device)?;
        let arena = Region::on(device, "working space", m.arena_bytes)?;
        // A device has scratch memory of its own.
        let scratch = ScratchRegion::new(if device.is_some() { &[] } else { &m.kernels }, &pool)?;

        let place = |space: Space, offset: u64| match space {
            Space::Arena | Space::Own => arena.start().wrapping_add(offset as usize),
            Space::Weight(i) => program.weight(i as usize).cast_mut().wrapping_add(offset as usize),
            Space::State(i) => states.start(i as usize).wrapping_add(offset as usize),
            Space::Input(_) | Space::Output(_) => std::ptr::null_mut(),
        };
        let calls = m.entries.iter().map(|e| Call::new(&program, e, &place)).collect();
        Ok(Session { program, pool, calls, states, scratch, watch: None, ports: Ports::default(), arena })
    }

    /// The program.
    pub fn program(&self) -> &Arc<Program> {
        &self.program
    }

    /// The threads.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// The position of the entry called `name`.
    pub fn entry(&self, name: &str) -> Result<usize, Error> {
        let entries = &self.program.manifest().entries;
        entries.iter().position(|e| e.name == name).ok_or_else(|| Error::NoEntry {
            name: name.to_string(),
            has: entries.iter().map(|e| e.name.clone()).collect(),
        })
    }

    /// Tokens already held for `entry`: its `P` at the next call.
    pub fn held(&self, entry: usize) -> u64 {
        self.calls[entry].states.first().map_or(0, |s| self.states.tokens(*s))
    }

    /// Forgets all but the first `tokens` tokens in every state. What follows is as if the others had never been there.
    ///
    /// Windows no longer have what left them long ago: of the last tokens at least [`TAKE_BACK`](crate::TAKE_BACK) can
    /// be taken back, or all. For more, see [`Session::mark`]. Nothing is changed where that is refused.
    pub fn truncate(&mut self, tokens: u64) -> Result<(), Error> {
        self.states.truncate(0..self.program.manifest().states.len(), tokens)
    }

    /// Forgets all but the first `tokens` tokens in the states that `entry` works on.
    pub fn truncate_for(&mut self, entry: usize, tokens: u64) -> Result<(), Error> {
        self.states.truncate(self.calls[entry].states.iter().copied(), tokens)
    }

    /// What is held now, to come back to it with [`Session::rewind`].
    pub fn mark(&self) -> Result<Mark, Error> {
        self.states.mark()
    }

    /// Goes back to what was held at `mark`, which must be of this session and not of tokens that were truncated since.
    pub fn rewind(&mut self, mark: &Mark) -> Result<(), Error> {
        self.states.rewind(mark)
    }

    /// As if `tokens` tokens had been run: states hold rows of small random numbers. For measuring what a call takes
    /// after so many, which does not depend on what they were.
    pub fn pretend(&mut self, tokens: u64) -> Result<(), Error> {
        let manifest = self.program.manifest();
        let max = manifest.model.max_context;
        if tokens > max {
            return Err(Error::Context { held: 0, new: tokens, max });
        }
        self.states.pretend(tokens, &manifest.states, &manifest.definitions)
    }

    /// Bytes of the states, and of working memory.
    pub fn memory(&self) -> (usize, usize) {
        (self.states.bytes(), self.arena.bytes + self.scratch.region.bytes)
    }

    /// The rows that state `index` holds, as bytes; of a window those it keeps.
    pub fn state(&self, index: usize) -> Result<Cow<'_, [u8]>, Error> {
        let definitions = &self.program.manifest().definitions;
        self.states.rows(index, definitions)
    }

    /// From now on keeps when each launch of each call ended, which allocates; what was kept before is forgotten.
    pub fn watch(&mut self) {
        self.watch = Some(Box::new(Watch::new()));
    }

    /// What was kept, where the session is watched.
    pub fn watched(&self) -> Option<&Watch> {
        self.watch.as_deref()
    }

    /// Calls entry number `entry` for `new_tokens` tokens with one buffer per input and output, in order. The states it
    /// writes then hold that many tokens more. Nothing is changed where the call is refused.
    pub fn run(
        &mut self,
        entry: usize,
        new_tokens: usize,
        inputs: &[&[u8]],
        outputs: &mut [&mut [u8]],
    ) -> Result<(), Error> {
        let number = self.bind(entry, new_tokens)?;
        let described = &self.program.manifest().entries[entry];
        let call = &mut self.calls[entry];
        let given = inputs.iter().map(|b| (b.as_ptr().cast_mut(), b.len()));
        check_buffers(described, &described.inputs, &call.inputs, &call.values, given)?;
        let given = outputs.iter_mut().map(|b| (b.as_mut_ptr(), b.len()));
        check_buffers(described, &described.outputs, &call.outputs, &call.values, given)?;
        let version = &mut call.versions[number];
        for w in &version.windows {
            let start = self.states.front(w.state, new_tokens as u64)?;
            version.args[w.arg] = start.wrapping_add(w.offset);
        }
        if let Some(device) = self.program.device() {
            self.ports.take(device, inputs, outputs)?;
            version.patch(&|port| self.ports.inputs[port].start(), &|port| self.ports.outputs[port].start());
            version.prepare(&call.values);
            let clock = self.watch.as_mut().map(|w| w.start(version.launches.len()));
            // SAFETY: as below.
            unsafe { version.run_on_device(&self.program, &call.values, clock) }?;
            self.ports.give(outputs)?;
        } else {
            let result = |port: usize| outputs[port].as_ptr().cast_mut();
            version.patch(&|port| inputs[port].as_ptr().cast_mut(), &result);
            version.prepare(&call.values);
            let scratch = self.scratch.place();
            let clock = self.watch.as_mut().map(|w| w.start(version.steps.len()));
            // SAFETY: the manifest was checked: every argument is a buffer at least as large as its kernel's parameter
            // at all values of the symbols for which `bind` gives this version, and none that is written is read-only.
            // The buffers of the caller were checked above. Kernels keep to their description, which is what loading a
            // program means to trust.
            unsafe { self.pool.run(&version.steps, scratch, clock) };
        }
        if let Some(watch) = &mut self.watch {
            watch.add(entry, number);
        }
        self.advance(entry, new_tokens);
        Ok(())
    }

    /// Gives the symbols of an entry their values for a call, which [`Session::values`] then has, and tells the version
    /// to run.
    pub(crate) fn bind(&mut self, entry: usize, new_tokens: usize) -> Result<usize, Error> {
        let manifest = self.program.manifest();
        let described = &manifest.entries[entry];
        let held = self.held(entry);
        let call = &mut self.calls[entry];
        if call.states.iter().any(|s| self.states.tokens(*s) != held) {
            return Err(Error::Uneven { entry: described.name.clone() });
        }
        let max = manifest.model.max_context;
        if held.saturating_add(new_tokens as u64) > max {
            return Err(Error::Context { held, new: new_tokens as u64, max });
        }
        call.bind(described, &manifest.definitions, held, new_tokens)
    }

    /// Values of the entry's symbols, in its order, at the last call.
    pub(crate) fn values(&self, entry: usize) -> &[i64] {
        &self.calls[entry].values
    }

    /// Where a state's rows are, with room behind them for `new_tokens` more.
    pub(crate) fn rows(&mut self, state: usize, new_tokens: usize) -> Result<*mut u8, Error> {
        self.states.front(state, new_tokens as u64)
    }

    /// The first byte of working memory.
    pub(crate) fn arena(&self) -> *mut u8 {
        self.arena.start()
    }

    /// Counts the tokens of a call in the states that the entry writes.
    pub(crate) fn advance(&mut self, entry: usize, new_tokens: usize) {
        let call = &self.calls[entry];
        if call.advances {
            call.states.iter().for_each(|s| self.states.advance(*s, new_tokens as u64));
        }
    }
}

/// Scratch memory for all threads of a pool.
pub(crate) struct ScratchRegion {
    region: Region,
    stride: usize,
}

impl ScratchRegion {
    /// As much as any of the kernels wants.
    pub fn new(kernels: &[Kernel], pool: &Pool) -> Result<ScratchRegion, Error> {
        // A worker's scratch ends on a cache line of its own.
        let stride = kernels.iter().map(|k| k.scratch_bytes).max().unwrap_or(0);
        let stride = stride.checked_next_multiple_of(128).unwrap_or(u64::MAX);
        let region = Region::new("scratch", stride.saturating_mul(pool.threads() as u64))?;
        Ok(ScratchRegion { region, stride: stride as usize })
    }

    /// Where it is.
    pub fn place(&self) -> Scratch {
        Scratch { start: self.region.start(), stride: self.stride }
    }
}

/// Memory of a device for what calls are given and give, which grows as it is asked for more.
#[derive(Default)]
struct Ports {
    inputs: Vec<Region>,
    outputs: Vec<Region>,
}

impl Ports {
    /// Makes room for a call's buffers, and brings its inputs there.
    fn take(&mut self, device: &Arc<dyn Device>, inputs: &[&[u8]], outputs: &[&mut [u8]]) -> Result<(), Error> {
        let room = |regions: &mut Vec<Region>, i: usize, bytes: usize| -> Result<(), Error> {
            if regions.len() <= i {
                regions.push(Region::on(Some(device), "inputs and outputs", 0)?);
            }
            if regions[i].bytes < bytes {
                // What was there goes first.
                regions[i] = Region::on(Some(device), "inputs and outputs", 0)?;
                regions[i] = Region::on(Some(device), "inputs and outputs", bytes as u64)?;
            }
            Ok(())
        };
        for (i, bytes) in outputs.iter().enumerate() {
            room(&mut self.outputs, i, bytes.len())?;
        }
        for (i, bytes) in inputs.iter().enumerate() {
            room(&mut self.inputs, i, bytes.len())?;
            self.inputs[i].write(0, bytes)?;
        }
        Ok(())
    }

    /// Brings the outputs back when all is done.
    fn give(&self, outputs: &mut [&mut [u8]]) -> Result<(), Error> {
        self.outputs.iter().zip(outputs).try_for_each(|(region, bytes)| region.read_into(bytes))
    }
}

fn check_buffers(
    entry: &Entry,
    ports: &[Port],
    types: &[Affines],
    values: &[i64],
    mut given: impl Iterator<Item = (*mut u8, usize)>,
) -> Result<(), Error> {
    for (port, ty) in ports.iter().zip(types) {
        let expected = ty.bytes(values) as u64;
        let buffer = given.next();
        let aligned = |start: *mut u8| (start as usize).is_multiple_of(port.ty.dtype.bits().div_ceil(8) as usize);
        if !buffer.is_some_and(|(start, found)| found as u64 == expected && aligned(start)) {
            let (entry, port) = (entry.name.clone(), port.name.clone());
            return Err(Error::Buffer { entry, port, expected, found: buffer.map_or(0, |(_, n)| n as u64) });
        }
    }
    Ok(())
}

impl Call {
    fn new(program: &Program, entry: &Entry, place: &dyn Fn(Space, u64) -> *mut u8) -> Call {
        let symbols: Vec<Sym> = entry.symbols.iter().map(|r| r.sym).collect();
        let types = |ports: &[Port]| ports.iter().map(|p| Affines::new(&p.ty, &symbols)).collect();
        let (mut written, mut read) = (Vec::new(), Vec::new());
        let kernels = &program.manifest().kernels;
        for l in entry.versions.iter().flat_map(|v| &v.launches) {
            for (arg, param) in l.args.iter().zip(&kernels[l.kernel as usize].params) {
                match arg.space {
                    Space::State(i) if param.access.writes() => written.push(i as usize),
                    Space::State(i) => read.push(i as usize),
                    Space::Arena | Space::Own | Space::Weight(_) | Space::Input(_) | Space::Output(_) => {}
                }
            }
        }
        let advances = !written.is_empty();
        let mut states = if advances { written } else { read };
        states.sort_unstable();
        states.dedup();
        let place_of = |sym: Sym| symbols.iter().position(|s| *s == sym);
        let defined =
            program.manifest().definitions.iter().filter_map(|(s, d)| Some((place_of(*s)?, d.clone()))).collect();
        Call {
            values: vec![0; symbols.len()],
            defined,
            inputs: types(&entry.inputs),
            outputs: types(&entry.outputs),
            versions: entry.versions.iter().map(|v| VersionCall::new(program, v, &symbols, place)).collect(),
            symbols,
            states,
            advances,
        }
    }

    /// Gives the symbols their values, and the version to run for them.
    fn bind(&mut self, entry: &Entry, definitions: &Definitions, held: u64, new_tokens: usize) -> Result<usize, Error> {
        // Those that follow from others come after them.
        for ((sym, value), range) in self.symbols.iter().zip(&mut self.values).zip(&entry.symbols) {
            *value = match *sym {
                Sym::P => held as i64,
                Sym::T => new_tokens as i64,
                _ => range.lo,
            };
            if *sym == Sym::P && *value > range.hi {
                return Err(Error::Context { held, new: new_tokens as u64, max: range.hi as u64 });
            }
        }
        for (i, definition) in &self.defined {
            let at = |sym| self.symbols.iter().position(|s| *s == sym).map(|i| self.values[i]);
            let value = definitions.value(definition, &at);
            self.values[*i] = value.unwrap_or(entry.symbols[*i].lo);
        }
        let (lo, hi) = entry.range(Sym::T).map_or((1, 1), |r| (r.lo, r.hi));
        if !(lo..=hi).contains(&(new_tokens as i64)) {
            return Err(Error::Tokens { entry: entry.name.clone(), lo, hi, found: new_tokens });
        }
        // Versions cover all that the entry takes, as was checked, so what is left to be wrong is that too little is
        // held.
        entry.version_for(&self.values).ok_or_else(|| {
            let least = entry.range(Sym::P).map_or(0, |r| r.lo as u64);
            Error::Held { entry: entry.name.clone(), least, held }
        })
    }
}

impl VersionCall {
    fn new(
        program: &Program,
        version: &Version,
        symbols: &[Sym],
        place: &dyn Fn(Space, u64) -> *mut u8,
    ) -> VersionCall {
        let m = program.manifest();
        let (mut args, mut patches, mut windows) = (Vec::new(), Vec::new(), Vec::new());
        let (mut kernels, mut launches) = (Vec::<KernelCall>::new(), Vec::new());
        let mut numbers = std::collections::BTreeMap::new();
        let mut symbol_count = 0;
        for l in &version.launches {
            let kernel = &m.kernels[l.kernel as usize];
            let number = *numbers.entry(l.kernel).or_insert_with(|| {
                let first_symbol = symbol_count;
                symbol_count += kernel.symbols.len();
                let places = kernel.symbols.iter().filter_map(|s| symbols.iter().position(|x| x == s)).collect();
                let params = kernel.params.iter().map(|p| Affines::new(&p.ty, symbols)).collect();
                kernels.push(KernelCall { first_symbol, symbols: places, params, bytes: 0 });
                kernels.len() - 1
            });
            let first_arg = args.len();
            for arg in &l.args {
                if let Space::Input(i) | Space::Output(i) = arg.space {
                    let output = matches!(arg.space, Space::Output(_));
                    patches.push(Patch { arg: args.len(), output, port: i as usize, offset: arg.offset as usize });
                }
                if let Space::State(i) = arg.space
                    && m.states[i as usize].window().is_some()
                {
                    windows.push(WindowArg { arg: args.len(), state: i as usize, offset: arg.offset as usize });
                }
                args.push(place(arg.space, arg.offset));
            }
            let grid = l.grid.iter().map(|d| Affine::new(d, symbols)).collect();
            let function = program.kernel(l.kernel as usize);
            launches.push(LaunchCall { function, number: l.kernel as usize, kernel: number, first_arg, grid });
        }
        let steps = Vec::with_capacity(launches.len());
        let range = |sym| version.symbols.iter().find(|r| r.sym == sym).map(|r| (r.lo, r.hi));
        let most = |l: &hadal_artifact::Launch| {
            let extents = l.grid.iter().map(|d| d.upper(range).map_or(u64::MAX, |n| n.max(0) as u64));
            extents.fold(1, u64::saturating_mul)
        };
        let most = version.launches.iter().map(most).collect();
        VersionCall {
            kernels,
            launches,
            most,
            recorded: None,
            steps,
            args,
            patches,
            windows,
            symbol_values: vec![0; symbol_count],
        }
    }

    /// Gives the arguments that are the caller's buffers their addresses.
    fn patch(&mut self, input: &dyn Fn(usize) -> *mut u8, output: &dyn Fn(usize) -> *mut u8) {
        for p in &self.patches {
            let start = if p.output { output(p.port) } else { input(p.port) };
            self.args[p.arg] = start.wrapping_add(p.offset);
        }
    }

    /// Runs all launches on the program's device, one after the other, which the first call makes ready.
    ///
    /// # Safety
    ///
    /// Arguments are buffers at least as large as their kernels' parameters at these values of the entry's symbols.
    unsafe fn run_on_device(
        &mut self,
        program: &Program,
        values: &[i64],
        clock: Option<&mut [Instant]>,
    ) -> Result<(), Error> {
        let Some(loaded) = program.loaded() else { return Ok(()) };
        if self.recorded.is_none() {
            let launches: Vec<DeviceLaunch> = std::iter::zip(&self.launches, &self.most)
                .map(|(l, grid)| DeviceLaunch {
                    kernel: l.number,
                    arguments: l.first_arg,
                    symbols: self.kernels[l.kernel].first_symbol,
                    grid: *grid,
                })
                .collect();
            self.recorded = Some(loaded.record(&launches).map_err(Error::Device)?);
        }
        let Some(recorded) = &mut self.recorded else { return Ok(()) };
        let (launches, kernels) = (&self.launches, &self.kernels);
        let bytes = |launch: usize, arg: usize| kernels[launches[launch].kernel].params[arg].bytes(values) as usize;
        let call = DeviceCall { arguments: &self.args, symbols: &self.symbol_values, bytes: &bytes, clock };
        // SAFETY: promised by the caller; sessions run one call at a time.
        unsafe { recorded.run(call) }.map_err(Error::Device)
    }

    /// Lists the steps for these values of the entry's symbols.
    fn prepare(&mut self, values: &[i64]) {
        for k in &mut self.kernels {
            for (slot, i) in self.symbol_values[k.first_symbol..].iter_mut().zip(&k.symbols) {
                *slot = values[*i];
            }
            k.bytes = k.params.iter().fold(0, |n: i64, p| n.saturating_add(p.bytes(values)));
        }
        let (args, symbols) = (self.args.as_ptr(), self.symbol_values.as_ptr());
        self.steps.clear();
        self.steps.extend(self.launches.iter().map(|l| {
            let kernel = &self.kernels[l.kernel];
            Step {
                kernel: l.function,
                args: args.wrapping_add(l.first_arg),
                symbols: symbols.wrapping_add(kernel.first_symbol),
                grid: product(&l.grid, values),
                large: kernel.bytes >= SMALL_STEP_BYTES,
                more: 0,
            }
        }));
    }
}
