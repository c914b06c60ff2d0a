//! Whether a manifest is consistent: every index exists, every buffer is as large as the kernels that touch it need for
//! all values of the symbols, nothing read-only is written, each call fits one version. Done by the writer, so that a
//! compiler's mistake is found before a file exists, and by the reader, so that nothing has to be checked again per
//! launch.

mod batch;

use crate::manifest::{byte_count, tensor_bytes};
use crate::{ALIGN, ArgFault, Entry, Fault, Launch, Manifest, Place, Space, State, SymbolRange, Version, VersionFault};
use hadal_types::{Bindings, Definitions, Dim, Sym, TensorType};
use std::collections::{BTreeSet, HashMap, HashSet};

/// Symbols an entry may have, and those among them that do not follow from others: sizes are checked at the corners of
/// their ranges, of which there are `2^n`.
const MAX_SYMBOLS: usize = 68;
const MAX_FREE: usize = 4;

/// Warps that a block of any GPU can have, and bytes of its shared memory.
const MAX_WARPS: u32 = 32;
const MAX_SHARED: u32 = 1 << 20;

/// Versions an entry may have; each call looks through them.
const MAX_VERSIONS: usize = 64;

/// All contradictions in `manifest`, given the sizes of the sections it describes; stops after [`Fault::MAX`].
pub fn check(manifest: &Manifest, code_bytes: u64, weights_bytes: u64) -> Vec<Fault> {
    let mut faults = Vec::new();
    check_model(manifest, &mut faults);
    check_memory(manifest, code_bytes, weights_bytes, &mut faults);
    if manifest.definitions.check().is_err() {
        faults.push(Fault::Definitions);
    }
    duplicates("entries", manifest.entries.iter().map(|e| &e.name), &mut faults);
    for entry in &manifest.entries {
        if faults.len() < Fault::MAX {
            check_entry(manifest, entry, &mut faults);
        }
    }
    faults.truncate(Fault::MAX);
    faults
}

fn check_model(manifest: &Manifest, faults: &mut Vec<Fault>) {
    let m = &manifest.model;
    let mut require = |ok: bool, field, value| {
        if !ok {
            faults.push(Fault::Model { field, value });
        }
    };
    require((1..=i32::MAX as u64).contains(&m.vocab), "vocabulary size", m.vocab);
    require((1..=i32::MAX as u64).contains(&m.max_context), "context", m.max_context);
    require((1..=m.max_context).contains(&m.max_chunk), "largest chunk", m.max_chunk);
    for id in m.bos.iter().chain(&m.stop) {
        require((*id as u64) < m.vocab, "special token", *id as u64);
    }
}

fn check_memory(manifest: &Manifest, code_bytes: u64, weights_bytes: u64, faults: &mut Vec<Fault>) {
    let fits = |offset: u64, bytes: u64, room: u64| offset.checked_add(bytes).is_some_and(|end| end <= room);
    let mut require = |ok: bool, kind, name: &String| {
        if !ok && faults.len() < Fault::MAX {
            faults.push(Fault::Placement { kind, name: name.clone() });
        }
    };
    for k in &manifest.kernels {
        let block = k.block.is_none_or(|b| {
            let shared = b.indices.checked_mul(b.shared_bytes).is_some_and(|n| n <= MAX_SHARED);
            (1..=MAX_WARPS).contains(&b.warps) && (1..=b.warps).contains(&b.indices) && shared
        });
        let ok = k.bytes > 0 && k.offset % ALIGN == 0 && fits(k.offset, k.bytes, code_bytes) && block;
        require(ok, "kernel", &k.name);
    }
    for w in &manifest.weights {
        let long_enough = byte_count(w.dtype, &w.shape).is_some_and(|n| n <= w.bytes);
        let placed = match w.place {
            Place::Embedded { offset } => offset % ALIGN == 0 && fits(offset, w.bytes, weights_bytes),
            Place::External { file, offset } => {
                let aligned = offset % w.dtype.bits().div_ceil(8) == 0;
                aligned && manifest.files.get(file as usize).is_some_and(|f| fits(offset, w.bytes, f.bytes))
            }
        };
        require(long_enough && placed, "weight", &w.name);
    }
    for f in &manifest.files {
        require(f.header_bytes <= f.bytes, "header of", &f.path);
    }
    for s in &manifest.states {
        let pages = s.page_rows > 0 && s.rows % s.page_rows == 0;
        let room = s.row_bytes().and_then(|row| row.checked_mul(s.rows)).is_some_and(|n| n <= s.bytes);
        // The first row of a window lies anywhere, and its bytes are copied.
        let whole = s.row_shape.iter().try_fold(s.dtype.bits(), |n, d| n.checked_mul(*d)).is_some_and(|n| n % 8 == 0);
        let window = s.held.as_const().is_none_or(|n| 0 <= n && n as u64 <= s.rows && whole);
        require(pages && room && window && holds(manifest, s), "state", &s.name);
    }
    duplicates("kernels", manifest.kernels.iter().map(|k| &k.name), faults);
    duplicates("weights", manifest.weights.iter().map(|w| &w.name), faults);
    duplicates("states", manifest.states.iter().map(|s| &s.name), faults);
}

/// Whether there is room for the rows of a whole context.
fn holds(manifest: &Manifest, state: &State) -> bool {
    let tokens = Bindings::from([(Sym::P, i64::try_from(manifest.model.max_context).unwrap_or(i64::MAX))]);
    let grows = state.held.constant() >= 0 && state.held.terms().iter().all(|(_, k)| *k > 0);
    let rows = state.held.eval(&manifest.definitions.complete(&tokens));
    grows && rows.is_ok_and(|n| n >= 0 && n as u64 <= state.rows)
}

fn duplicates<'a>(kind: &'static str, names: impl Iterator<Item = &'a String>, faults: &mut Vec<Fault>) {
    let mut seen = HashSet::new();
    for name in names {
        if !seen.insert(name) && faults.len() < Fault::MAX {
            faults.push(Fault::Duplicate { kind, name: name.clone() });
        }
    }
}

fn check_entry(manifest: &Manifest, entry: &Entry, faults: &mut Vec<Fault>) {
    let named = || entry.name.clone();
    let distinct: HashSet<_> = entry.symbols.iter().map(|r| r.sym).collect();
    let free = entry.symbols.iter().filter(|r| !manifest.definitions.has(r.sym)).count();
    let usable = entry.symbols.len() <= MAX_SYMBOLS
        && free <= MAX_FREE
        && distinct.len() == entry.symbols.len()
        && entry.symbols.iter().all(|r| 0 <= r.lo && r.lo <= r.hi && r.hi <= i32::MAX as i64);
    if !usable {
        return faults.push(Fault::Symbols { entry: named() });
    }
    let known = |dims: &[Dim]| dims.iter().all(|d| d.terms().iter().all(|(s, _)| distinct.contains(s)));
    duplicates("ports of an entry", entry.inputs.iter().chain(&entry.outputs).map(|p| &p.name), faults);
    for port in entry.inputs.iter().chain(&entry.outputs) {
        if !known(&port.ty.shape) {
            faults.push(Fault::UnknownSymbol { entry: named(), place: port.name.clone() });
        }
    }
    if let Some(what) = check_versions(manifest, entry) {
        return faults.push(Fault::Versions { entry: named(), what });
    }
    for (number, version) in entry.versions.iter().enumerate() {
        if let Some((launch, what)) = batch::check(manifest, entry, version) {
            faults.push(Fault::Batch { entry: named(), version: number, launch, what });
        }
        check_launches(manifest, entry, version, &known, faults);
    }
}

/// Whether each call fits exactly one version, and all of them leave the same states with new rows.
fn check_versions(manifest: &Manifest, entry: &Entry) -> Option<VersionFault> {
    let versions = &entry.versions;
    if versions.is_empty() || versions.len() > MAX_VERSIONS {
        return Some(VersionFault::Count(versions.len()));
    }
    let values = |ranges: &[SymbolRange]| -> u128 { ranges.iter().map(|r| r.hi as u128 - r.lo as u128 + 1).product() };
    // Those that follow from others do not tell versions apart. At most 2^31 values of each of 3 symbols, and 64
    // versions.
    let free = |ranges: &[SymbolRange]| -> Vec<SymbolRange> {
        ranges.iter().filter(|r| !manifest.definitions.has(r.sym)).copied().collect()
    };
    if free(&entry.symbols).len() > 3 {
        return Some(VersionFault::Range(0));
    }
    let mut covered = 0u128;
    for (i, v) in versions.iter().enumerate() {
        let within =
            |(r, of): (&SymbolRange, &SymbolRange)| r.sym == of.sym && of.lo <= r.lo && r.lo <= r.hi && r.hi <= of.hi;
        if v.symbols.len() != entry.symbols.len() || !v.symbols.iter().zip(&entry.symbols).all(within) {
            return Some(VersionFault::Range(i));
        }
        if !follows(&manifest.definitions, &v.symbols) {
            return Some(VersionFault::Range(i));
        }
        let own = free(&v.symbols);
        let meet = |other: &Version| own.iter().zip(&free(&other.symbols)).all(|(a, b)| a.lo <= b.hi && b.lo <= a.hi);
        if let Some(other) = versions[..i].iter().position(meet) {
            return Some(VersionFault::Overlap(other, i));
        }
        covered += values(&own);
    }
    // Parts that do not meet cover the whole if they have as many values.
    if covered != values(&free(&entry.symbols)) {
        return Some(VersionFault::Gap);
    }
    let written =
        |v: &Version| -> BTreeSet<u32> { v.launches.iter().flat_map(|l| states_written(manifest, l)).collect() };
    let first = written(&versions[0]);
    versions.iter().position(|v| written(v) != first).map(VersionFault::States)
}

/// Whether the ranges of symbols that follow from others hold all values these give them.
fn follows(definitions: &Definitions, ranges: &[SymbolRange]) -> bool {
    let of = |sym| ranges.iter().find(|r| r.sym == sym).map(|r| (r.lo, r.hi));
    definitions
        .iter()
        .filter_map(|(sym, d)| Some((of(*sym)?, d)))
        .all(|((lo, hi), d)| definitions.range(d, of).is_some_and(|(least, most)| lo <= least && most <= hi))
}

fn states_written(manifest: &Manifest, launch: &Launch) -> Vec<u32> {
    let params = manifest.kernels.get(launch.kernel as usize).map(|k| k.params.as_slice()).unwrap_or_default();
    let state = |(arg, param): (&crate::Arg, &crate::Param)| match arg.space {
        Space::State(i) if param.access.writes() => Some(i),
        _ => None,
    };
    launch.args.iter().zip(params).filter_map(state).collect()
}

fn check_launches(
    manifest: &Manifest,
    entry: &Entry,
    version: &Version,
    known: &dyn Fn(&[Dim]) -> bool,
    faults: &mut Vec<Fault>,
) {
    let named = || entry.name.clone();
    let corners = version.corners(manifest.model.max_context, &manifest.definitions);
    let ranges = version.sizes(&manifest.definitions);
    let sizes = Sizes::new(manifest, entry, &ranges, &corners);
    // Kernels are few and launches many, so what depends on the kernel alone is worked out once.
    let mut params: HashMap<u32, Vec<Option<Vec<u64>>>> = HashMap::new();
    for (launch, l) in version.launches.iter().enumerate() {
        if faults.len() >= Fault::MAX {
            return;
        }
        let Some(kernel) = manifest.kernels.get(l.kernel as usize) else {
            faults.push(Fault::NoKernel { entry: named(), launch, kernel: l.kernel });
            continue;
        };
        if l.args.len() != kernel.params.len() {
            let (expected, found) = (kernel.params.len(), l.args.len());
            faults.push(Fault::ArgCount { entry: named(), launch, expected, found });
            continue;
        }
        let needs = params.entry(l.kernel).or_insert_with(|| {
            let symbols: Vec<Dim> = kernel.symbols.iter().map(|s| Dim::from(*s)).collect();
            if !known(&symbols) || !kernel.params.iter().all(|p| known(&p.ty.shape)) {
                faults.push(Fault::UnknownSymbol { entry: named(), place: kernel.name.clone() });
            }
            kernel.params.iter().map(|p| most_bytes(&p.ty, &ranges, &corners)).collect()
        });
        if !known(&l.grid) {
            faults.push(Fault::UnknownSymbol { entry: named(), place: format!("the grid of `{}`", kernel.name) });
        }
        for (arg, need) in needs.iter().enumerate() {
            if let Some(what) = check_arg(&sizes, l, arg, &kernel.params[arg], need.as_deref()) {
                faults.push(Fault::Arg { entry: named(), launch, arg, what });
            }
        }
    }
}

fn check_arg(
    sizes: &Sizes,
    launch: &Launch,
    arg: usize,
    param: &crate::Param,
    need: Option<&[u64]>,
) -> Option<ArgFault> {
    let a = launch.args[arg];
    let Some(room) = sizes.of(a.space) else {
        return Some(ArgFault::NoSuchBuffer);
    };
    let whole =
        sizes.port(a.space).is_some_and(|ty| a.offset == 0 && ty.dtype == param.ty.dtype && alike(ty, &param.ty));
    if param.access.writes() && matches!(a.space, Space::Weight(_) | Space::Input(_)) {
        return Some(ArgFault::ReadOnly);
    }
    if !a.offset.is_multiple_of(param.ty.dtype.bits().div_ceil(8)) {
        return Some(ArgFault::Misaligned);
    }
    let fits = need.is_some_and(|need| {
        need.iter().enumerate().all(|(i, n)| a.offset.checked_add(*n).is_some_and(|end| end <= room.at(i)))
    });
    (!fits && !whole).then_some(ArgFault::OutOfBounds)
}

/// Bytes of `ty` at each corner, or as many at all of them as it can have anywhere: only a size that grows with every
/// symbol is largest at a corner.
fn most_bytes(ty: &TensorType, ranges: &[SymbolRange], corners: &[Bindings]) -> Option<Vec<u64>> {
    if grows(ty) {
        return bytes_at(ty, corners);
    }
    let range = |sym| ranges.iter().find(|r| r.sym == sym).map(|r| (r.lo, r.hi));
    let most = ty.shape.iter().map(|d| d.upper(range).map(|n| n.max(0) as u64)).collect::<Option<Vec<u64>>>()?;
    byte_count(ty.dtype, &most).map(|n| vec![n; corners.len()])
}

/// Whether two types have as many elements whatever the symbols.
fn alike(a: &TensorType, b: &TensorType) -> bool {
    let factors = |ty: &TensorType| {
        let mut out: Vec<Dim> = ty.shape.iter().filter(|d| !d.is(1)).cloned().collect();
        out.sort();
        out
    };
    factors(a) == factors(b)
}

fn grows(ty: &TensorType) -> bool {
    ty.shape.iter().all(|d| d.terms().iter().all(|(_, k)| *k > 0))
}

/// Bytes of `ty` at each corner.
fn bytes_at(ty: &TensorType, corners: &[Bindings]) -> Option<Vec<u64>> {
    corners.iter().map(|c| tensor_bytes(ty, c)).collect()
}

/// Sizes of the buffers an entry can use.
struct Sizes<'a> {
    manifest: &'a Manifest,
    entry: &'a Entry,
    inputs: Vec<Option<Vec<u64>>>,
    outputs: Vec<Option<Vec<u64>>>,
    /// Of windows, which lie anywhere in their memory: the rows kept and the new ones.
    windows: Vec<Option<Vec<u64>>>,
}

/// Bytes of a buffer, which for ports depend on the symbols.
enum Room<'a> {
    Fixed(u64),
    AtCorners(&'a [u64]),
}

impl Room<'_> {
    fn at(&self, corner: usize) -> u64 {
        match self {
            Room::Fixed(n) => *n,
            Room::AtCorners(sizes) => sizes[corner],
        }
    }
}

impl<'a> Sizes<'a> {
    fn new(manifest: &'a Manifest, entry: &'a Entry, symbols: &[SymbolRange], corners: &[Bindings]) -> Self {
        // Of a port as little as it can be, where symbols follow from others and are at their largest in corners.
        let least = |c: &Bindings| -> Bindings {
            let low = |s: &Sym| symbols.iter().find(|r| r.sym == *s).map(|r| r.lo);
            let at = |(s, v): (&Sym, &i64)| match manifest.definitions.has(*s) {
                true => (*s, low(s).unwrap_or(*v)),
                false => (*s, *v),
            };
            c.iter().map(at).collect()
        };
        let low: Vec<Bindings> = corners.iter().map(least).collect();
        let at = |p: &crate::Port| bytes_at(&p.ty, &low).filter(|_| grows(&p.ty));
        let all = |ports: &[crate::Port]| ports.iter().map(at).collect();
        let most_new = symbols.iter().find(|r| r.sym == Sym::T).map_or(1, |r| r.hi.max(0) as u64);
        let window = |s: &State| {
            let (kept, row) = (s.window()?, s.row_bytes().unwrap_or(0));
            // Room for nothing where a call's rows would not fit behind those kept.
            let fits = kept.checked_add(most_new).is_some_and(|rows| rows <= s.rows);
            let bytes = |c: &Bindings| {
                let new = c.get(&Sym::T).map_or(1, |t| (*t).max(0) as u64);
                if fits { (kept + new).saturating_mul(row) } else { 0 }
            };
            Some(corners.iter().map(bytes).collect())
        };
        let windows = manifest.states.iter().map(window).collect();
        Sizes { manifest, entry, inputs: all(&entry.inputs), outputs: all(&entry.outputs), windows }
    }

    /// The type of an input or output.
    fn port(&self, space: Space) -> Option<&TensorType> {
        let port = match space {
            Space::Input(i) => self.entry.inputs.get(i as usize)?,
            Space::Output(i) => self.entry.outputs.get(i as usize)?,
            _ => return None,
        };
        Some(&port.ty)
    }

    fn of(&self, space: Space) -> Option<Room<'_>> {
        match space {
            Space::Arena | Space::Own => Some(Room::Fixed(self.manifest.arena_bytes)),
            Space::Weight(i) => self.manifest.weights.get(i as usize).map(|w| Room::Fixed(w.bytes)),
            Space::State(i) => match self.windows.get(i as usize)? {
                Some(rows) => Some(Room::AtCorners(rows)),
                None => Some(Room::Fixed(self.manifest.states[i as usize].bytes)),
            },
            Space::Input(i) => self.inputs.get(i as usize)?.as_deref().map(Room::AtCorners),
            Space::Output(i) => self.outputs.get(i as usize)?.as_deref().map(Room::AtCorners),
        }
    }
}
