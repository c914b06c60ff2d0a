//! Damage, truncation, contradiction and interruption, each on a small file.

use crate::format::{TRAILER_BYTES, Trailer};
use crate::*;
use hadal_types::{DType, Dim, Sym, TensorType};
use proptest::prelude::*;
use std::io::{self, Write};

fn sample() -> Manifest {
    let param = |name: &str, access, ty| Param { name: name.into(), access, ty };
    let f32s = |shape: &[Dim]| TensorType::new(DType::F32, shape.to_vec());
    let (t, s) = (Dim::from(Sym::T), Dim::from(Sym::T) + Sym::P);
    Manifest {
        producer: "hadal test".into(),
        target: Target { arch: "x86_64".into(), features: vec!["fma".into()] },
        model: Model {
            name: "toy".into(),
            architecture: "none".into(),
            vocab: 8,
            max_context: 32,
            max_chunk: 4,
            bos: Some(0),
            stop: vec![1],
            sampling: SamplingDefaults::default(),
        },
        kernels: vec![Kernel {
            name: "k".into(),
            offset: 64,
            bytes: 16,
            scratch_bytes: 128,
            block: None,
            symbols: vec![Sym::P, Sym::T],
            params: vec![
                param("x", Access::Read, f32s(&[t.clone(), Dim::from(4)])),
                param("w", Access::Read, f32s(&[Dim::from(4)])),
                param("rows", Access::ReadWrite, f32s(&[s.clone(), Dim::from(4)])),
                param("y", Access::Write, f32s(&[t.clone(), Dim::from(4)])),
            ],
            origin: "here".into(),
        }],
        weights: ["w0", "w1"]
            .map(|name| Weight {
                name: name.into(),
                dtype: DType::F32,
                shape: vec![5],
                bytes: 20,
                place: Place::Embedded { offset: if name == "w0" { 0 } else { 64 } },
                by_rows: false,
            })
            .into(),
        files: vec![],
        definitions: Default::default(),
        states: vec![State {
            name: "rows".into(),
            dtype: DType::F32,
            row_shape: vec![4],
            held: Sym::P.into(),
            rows: 32,
            page_rows: 32,
            bytes: 512,
        }],
        entries: vec![Entry {
            name: "prefill".into(),
            symbols: vec![SymbolRange { sym: Sym::T, lo: 1, hi: 4 }, SymbolRange { sym: Sym::P, lo: 0, hi: 31 }],
            inputs: vec![Port { name: "x".into(), ty: f32s(&[t.clone(), Dim::from(4)]) }],
            outputs: vec![Port { name: "y".into(), ty: f32s(&[t.clone(), Dim::from(4)]) }],
            versions: vec![version(1, 4, &t)],
        }],
        arena_bytes: 128,
        facts: vec![("rewrites".into(), "none".into())],
        others: Vec::new(),
    }
}

/// A version of the sample's entry for so many new tokens.
fn version(lo: i64, hi: i64, t: &Dim) -> Version {
    Version {
        symbols: vec![SymbolRange { sym: Sym::T, lo, hi }, SymbolRange { sym: Sym::P, lo: 0, hi: 31 }],
        launches: vec![
            Launch {
                kernel: 0,
                args: vec![
                    Arg::of(Space::Input(0)),
                    Arg { space: Space::Weight(0), offset: 4 },
                    Arg::of(Space::State(0)),
                    Arg::arena(64),
                ],
                grid: vec![t.clone(), Dim::from(2)],
                each: false,
            },
            Launch {
                kernel: 0,
                args: vec![
                    Arg::arena(64),
                    Arg::of(Space::Weight(1)),
                    Arg::of(Space::State(0)),
                    Arg::of(Space::Output(0)),
                ],
                grid: vec![t.clone()],
                each: false,
            },
        ],
        batches: false,
        weight_bytes_read: Some(40),
        flops: None,
    }
}

fn blobs() -> Vec<(String, Vec<u8>)> {
    vec![(blob::TOKENIZER.into(), b"{}".to_vec()), ("empty".into(), vec![])]
}

fn twenty(i: usize, out: &mut dyn Write) -> io::Result<()> {
    out.write_all(&[i as u8 + 1; 20])
}

fn bytes_of(manifest: &Manifest) -> Result<Vec<u8>, Error> {
    let mut file = Vec::new();
    let parts = Parts { runner: b"\x7fELF runner", manifest, code: &[0xc3; 80], blobs: &blobs() };
    write_to(&mut file, &parts, &mut twenty)?;
    Ok(file)
}

fn read(file: &[u8]) -> Result<Artifact, Error> {
    parse(file, &|_| true)
}

#[test]
fn the_first_usable_code_counts() {
    let mut manifest = sample();
    let level = |arch: &str, kernels: Vec<Kernel>| Level {
        target: Target { arch: arch.into(), features: vec![] },
        kernels,
        entries: manifest.entries.clone(),
        arena_bytes: manifest.arena_bytes,
    };
    let renamed = |name: &str| Kernel { name: name.into(), ..manifest.kernels[0].clone() };
    let others = vec![level("second", vec![renamed("b")]), level("third", vec![renamed("c")])];
    let first = manifest.target.arch.clone();
    manifest.others = others;
    let file = bytes_of(&manifest).unwrap();
    for (usable, expected, kernel) in [
        (vec![first.as_str(), "third"], first.as_str(), manifest.kernels[0].name.as_str()),
        (vec!["second", "third"], "second", "b"),
        (vec!["third"], "third", "c"),
        (vec![], "third", "c"),
    ] {
        let found = parse(&file, &|t| usable.contains(&t.arch.as_str())).unwrap().manifest;
        assert_eq!((found.target.arch.as_str(), found.kernels[0].name.as_str()), (expected, kernel), "{usable:?}");
        assert_eq!(found.targets().count(), 3);
    }
    // All of it is checked before it is written.
    manifest.others[1].arena_bytes = 0;
    manifest.others[1].kernels[0].offset = 1 << 40;
    assert!(matches!(bytes_of(&manifest), Err(Error::Inconsistent { .. })));
}

#[test]
fn what_is_written_is_read() {
    let file = bytes_of(&sample()).unwrap();
    let a = read(&file).unwrap();
    assert_eq!(a.manifest, sample());
    assert_eq!(&file[a.code.clone()], &[0xc3; 80]);
    assert_eq!(a.blob(&file, blob::TOKENIZER), Some(&b"{}"[..]));
    assert_eq!(a.blob(&file, "empty"), Some(&b""[..]));
    assert_eq!(a.blob(&file, "other"), None);
    assert_eq!(&file[a.weights.clone()][64..], &[2; 20]);
    assert_eq!(a.weights.start % 65536, 0);
    a.verify_weights(&file).unwrap();
}

#[test]
fn damaged_weights_are_found_when_asked() {
    let mut file = bytes_of(&sample()).unwrap();
    let a = read(&file).unwrap();
    file[a.weights.start + 70] ^= 1;
    assert!(read(&file).is_ok());
    let error = a.verify_weights(&file).unwrap_err().to_string();
    assert_eq!(error, "the file is damaged: the checksum of the weights does not match");
}

#[test]
fn every_bit_of_the_parts_that_count_is_checked() {
    let file = bytes_of(&sample()).unwrap();
    let good = read(&file).unwrap();
    let trailer = file.len() - TRAILER_BYTES;
    let blobs = good.blobs.iter().map(|(_, r)| r.clone()).filter(|r| !r.is_empty());
    let manifest = good.code.end.next_multiple_of(64)..good.blobs[0].1.start;
    for byte in [good.code.clone(), manifest, trailer..file.len()].into_iter().chain(blobs).flatten() {
        for bit in 0..8 {
            let mut bad = file.clone();
            bad[byte] ^= 1 << bit;
            let result = read(&bad);
            // The weights' checksum in the trailer is itself covered by the trailer's.
            assert!(result.is_err(), "bit {bit} of byte {byte} went unnoticed");
        }
    }
}

#[test]
fn reasons_are_told_apart() {
    let file = bytes_of(&sample()).unwrap();
    let reason = |bytes: &[u8]| read(bytes).unwrap_err().to_string();
    assert!(reason(b"").starts_with("not a compiled model"));
    assert!(reason(&[7; 5000]).starts_with("not a compiled model"));
    let stripped = reason(&file[..65536]);
    assert!(stripped.contains("`strip`"), "{stripped}");
    let cut = file.len() - 1;
    let len = file.len();
    assert_eq!(reason(&file[..cut]), format!("the file is truncated: {cut} bytes, {len} when it was written"));
    let long = [&file[..], b"\n"].concat();
    assert_eq!(reason(&long), format!("the file goes on after its end: {} bytes, {len} when it was written", len + 1));
    let with_version = |v: u32| {
        let mut other = file.clone();
        let at = file.len() - TRAILER_BYTES + 8;
        other[at..at + 4].copy_from_slice(&v.to_le_bytes());
        reason(&other)
    };
    assert!(with_version(ABI_VERSION + 1).contains("newer"));
    assert!(with_version(0).contains("older"));
}

proptest! {
    #[test]
    fn damage_is_refused_or_harmless(flips in prop::collection::vec((any::<prop::sample::Index>(), 0..8u8), 1..4)) {
        let file = bytes_of(&sample()).unwrap();
        let mut bad = file.clone();
        for (at, bit) in flips {
            bad[at.index(file.len())] ^= 1 << bit;
        }
        if let Ok(found) = read(&bad) {
            prop_assert_eq!(found, read(&file).unwrap());
        }
    }

    #[test]
    fn every_truncation_is_refused(keep in any::<prop::sample::Index>()) {
        let file = bytes_of(&sample()).unwrap();
        prop_assert!(read(&file[..keep.index(file.len())]).is_err());
    }

    /// Damage with checksums made to fit again, as a hostile author would.
    #[test]
    fn forged_manifests_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        words in prop::collection::vec((0..5usize, any::<u64>()), 0..2),
    ) {
        let mut file = bytes_of(&sample()).unwrap();
        let split = file.len() - TRAILER_BYTES;
        let mut trailer = Trailer::decode(&file[split..]).unwrap();
        let (start, len) = (trailer.manifest_offset as usize, trailer.manifest_bytes as usize);
        for (at, value) in changes {
            file[start + at.index(len)] = value;
        }
        for (which, value) in words {
            let fields = [&mut trailer.code_offset, &mut trailer.manifest_offset, &mut trailer.manifest_bytes,
                &mut trailer.weights_offset, &mut trailer.weights_checksum];
            *fields.into_iter().nth(which).unwrap() = value;
        }
        let (at, len) = (trailer.manifest_offset, trailer.manifest_bytes);
        let manifest = at.checked_add(len).filter(|end| *end <= split as u64).map(|end| at as usize..end as usize);
        trailer.checksum = manifest.map_or(0, |m| trailer.checksum_with(&file[m]));
        file[split..].copy_from_slice(&trailer.encode());
        let _ = read(&file);
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(read(&bytes).is_err());
    }
}

/// Changes the sample and expects exactly this complaint, from writer and (by the same function) reader.
fn complaint(change: impl FnOnce(&mut Manifest)) -> String {
    let mut manifest = sample();
    change(&mut manifest);
    match bytes_of(&manifest) {
        Err(Error::Inconsistent { faults }) => faults[0].to_string(),
        other => panic!("expected a fault, found {other:?}"),
    }
}

#[test]
fn each_contradiction_is_named() {
    let arg = "entry `prefill`, launch 0, argument ";
    assert_eq!(complaint(|m| m.model.stop = vec![8]), "the model's special token is 8");
    assert_eq!(complaint(|m| m.model.max_chunk = 33), "the model's largest chunk is 33");
    assert_eq!(complaint(|m| m.kernels[0].bytes = 17), "kernel `k` does not fit where it is placed");
    assert_eq!(complaint(|m| m.kernels[0].offset = 8), "kernel `k` does not fit where it is placed");
    assert_eq!(complaint(|m| m.weights[1].bytes = 16), "weight `w1` does not fit where it is placed");
    assert_eq!(complaint(|m| m.weights[1].shape = vec![u64::MAX, 2]), "weight `w1` does not fit where it is placed");
    assert_eq!(
        complaint(|m| m.weights[1].place = Place::External { file: 0, offset: 0 }),
        "weight `w1` does not fit where it is placed"
    );
    assert_eq!(complaint(|m| m.weights[1].name = "w0".into()), "two weights are called `w0`");
    assert_eq!(complaint(|m| m.states[0].bytes = 511), "state `rows` does not fit where it is placed");
    assert_eq!(complaint(|m| m.states[0].page_rows = 0), "state `rows` does not fit where it is placed");
    assert_eq!(
        complaint(|m| m.states[0].held = Dim::from(Sym::P) * 1000),
        "state `rows` does not fit where it is placed"
    );
    assert_eq!(complaint(|m| m.states[0].held = Dim::from(40)), "state `rows` does not fit where it is placed");
    assert_eq!(complaint(|m| m.states[0].held = Sym::B.into()), "state `rows` does not fit where it is placed");
    // A window lies anywhere in its memory, so a kernel may touch what it keeps and the new rows, not all there is.
    assert_eq!(
        complaint(|m| m.states[0].held = Dim::from(4)),
        format!("{arg}2: the kernel would reach past the end of the buffer")
    );
    // Largest between the ends of P.
    assert_eq!(
        complaint(|m| m.kernels[0].params[3].ty.shape = vec![Sym::P.into(), Dim::from(31) - Sym::P]),
        format!("{arg}3: the kernel would reach past the end of the buffer")
    );
    assert_eq!(
        complaint(|m| m.entries[0].symbols[0].lo = 5),
        "entry `prefill`: the ranges of its symbols are not usable"
    );
    assert_eq!(
        complaint(|m| m.kernels[0].symbols.push(Sym::B)),
        "entry `prefill`: k uses a symbol the entry does not have"
    );
    assert_eq!(
        complaint(|m| m.entries[0].versions[0].launches[0].grid[0] = Dim::from(Sym::B)),
        "entry `prefill`: the grid of `k` uses a symbol the entry does not have"
    );
    assert_eq!(
        complaint(|m| m.entries[0].versions[0].launches[0].kernel = 9),
        "entry `prefill`, launch 0: there is no kernel 9"
    );
    assert_eq!(
        complaint(|m| m.entries[0].versions[0].launches[0].args.truncate(3)),
        "entry `prefill`, launch 0: 3 arguments for 4 parameters"
    );
    let with_arg = |i: usize, space, offset| {
        complaint(move |m| m.entries[0].versions[0].launches[0].args[i] = Arg { space, offset })
    };
    assert_eq!(with_arg(1, Space::Weight(2), 0), format!("{arg}1: there is no such buffer"));
    assert_eq!(with_arg(1, Space::Weight(0), 8), format!("{arg}1: the kernel would reach past the end of the buffer"));
    assert_eq!(with_arg(1, Space::Weight(0), 2), format!("{arg}1: the offset is not aligned to the element"));
    assert_eq!(with_arg(3, Space::Input(0), 0), format!("{arg}3: the kernel would write to read-only memory"));
    assert_eq!(with_arg(3, Space::Arena, 68), format!("{arg}3: the kernel would reach past the end of the buffer"));
    assert_eq!(with_arg(2, Space::State(0), 4), format!("{arg}2: the kernel would reach past the end of the buffer"));
}

#[test]
fn sizes_are_taken_where_chunk_and_context_meet() {
    // P+T reaches 32 rows but never 31+4, so a state of 32 rows is enough.
    let corners = sample().entries[0].versions[0].corners(32, &Default::default());
    let rows = |b: &hadal_types::Bindings| b[&Sym::P] + b[&Sym::T];
    assert_eq!(corners.iter().map(rows).max(), Some(32));
    assert_eq!(corners.len(), 4);
}

#[test]
fn corners_of_long_contexts_lie_within_the_context() {
    let mut v = sample().entries.remove(0).versions.remove(0);
    v.symbols[1] = SymbolRange { sym: Sym::P, lo: 30, hi: 31 };
    let points: Vec<(i64, i64)> = v.corners(32, &Default::default()).iter().map(|b| (b[&Sym::P], b[&Sym::T])).collect();
    assert_eq!(points, [(30, 1), (30, 2), (31, 1)]);
    v.symbols[1].lo = 31;
    v.symbols[0].lo = 2;
    assert_eq!(v.corners(32, &Default::default()), []);
}

/// The sample with the entry cut at the version for two new tokens.
fn versions(change: impl FnOnce(&mut Vec<Version>)) -> impl FnOnce(&mut Manifest) {
    |m| {
        let t = Dim::from(Sym::T);
        m.entries[0].versions = vec![version(1, 2, &t), version(3, 4, &t)];
        change(&mut m.entries[0].versions);
    }
}

#[test]
fn versions_take_each_call_once() {
    let mut m = sample();
    versions(|_| {})(&mut m);
    bytes_of(&m).unwrap();
    assert_eq!([1, 2, 3, 4].map(|t| m.entries[0].version_for(&[t, 31])), [Some(0), Some(0), Some(1), Some(1)]);
    assert_eq!([[0, 0], [5, 0], [1, 32]].map(|v| m.entries[0].version_for(&v)), [None; 3]);
    let said = |change: fn(&mut Vec<Version>)| complaint(versions(change));
    assert_eq!(said(Vec::clear), "entry `prefill`: it has 0 versions");
    assert_eq!(said(|v| v[1].symbols[0].hi = 5), "entry `prefill`: the ranges of version 1 are not within its own");
    assert_eq!(said(|v| v[1].symbols.swap(0, 1)), "entry `prefill`: the ranges of version 1 are not within its own");
    assert_eq!(said(|v| v[1].symbols[0].lo = 5), "entry `prefill`: the ranges of version 1 are not within its own");
    assert_eq!(said(|v| v[1].symbols[0].lo = 2), "entry `prefill`: versions 0 and 1 are for the same sizes");
    assert_eq!(said(|v| v[1].symbols[0].lo = 4), "entry `prefill`: there are sizes that no version is for");
    assert_eq!(said(|v| v[1].launches.clear()), "entry `prefill`: version 1 writes other states than the first");
    assert_eq!(said(|v| *v = vec![v[0].clone(); 65]), "entry `prefill`: it has 65 versions");
    assert_eq!(
        said(|v| v[1].launches[0].args[3] = Arg::arena(68)),
        "entry `prefill`, launch 0, argument 3: the kernel would reach past the end of the buffer"
    );
    // What only the larger version would reach past is fine in the smaller.
    let mut m = sample();
    versions(|v| v[0].launches[0].args[3] = Arg::arena(96))(&mut m);
    bytes_of(&m).unwrap();
}

/// The sample with a version for three and four tokens that runs for batches: a launch for each sequence, into memory
/// of its own, and one for all of them, of another kernel.
fn batched(change: impl FnOnce(&mut Manifest)) -> impl FnOnce(&mut Manifest) {
    |m| {
        let t = Dim::from(Sym::T);
        let rows = |name: &str, access| Param {
            name: name.into(),
            access,
            ty: TensorType::new(DType::F32, [t.clone(), Dim::from(4)]),
        };
        m.kernels.push(Kernel {
            name: "shared".into(),
            symbols: vec![Sym::T],
            params: vec![rows("x", Access::Read), rows("y", Access::Write)],
            ..m.kernels[0].clone()
        });
        m.kernels.push(Kernel { name: "each".into(), ..m.kernels[0].clone() });
        let mut last = version(3, 4, &t);
        last.batches = true;
        last.launches[1].each = true;
        last.launches[1].args[0] = Arg::own(64);
        last.launches[0].args[3] = Arg::own(64);
        (last.launches[0].each, last.launches[0].kernel) = (true, 2);
        last.launches.push(Launch {
            kernel: 1,
            args: vec![Arg::of(Space::Input(0)), Arg::arena(0)],
            grid: vec![t.clone()],
            each: false,
        });
        m.entries[0].versions = vec![version(1, 2, &t), last];
        change(m);
    }
}

#[test]
fn what_sequences_share_is_rows_and_nothing_else() {
    let mut m = sample();
    batched(|_| {})(&mut m);
    bytes_of(&m).unwrap();
    let at = |what: &str| format!("entry `prefill`, version 1{what}");
    let version = |m: &mut Manifest, f: fn(&mut Version)| f(&mut m.entries[0].versions[1]);
    let said = |f: fn(&mut Version)| complaint(batched(move |m| version(m, f)));
    let shared = "a launch for all sequences uses what each has for itself";
    assert_eq!(
        said(|v| v.batches = false),
        at(", launch 0: something is each sequence's, but it does not run for batches")
    );
    assert_eq!(said(|v| v.launches[0].each = false), at(&format!(", launch 0: {shared}")));
    assert_eq!(said(|v| v.launches[2].args[1] = Arg::own(0)), at(&format!(", launch 2: {shared}")));
    assert_eq!(said(|v| v.launches[2].grid.push(Sym::P.into())), at(&format!(", launch 2: {shared}")));
    assert_eq!(complaint(batched(|m| m.kernels[1].symbols.push(Sym::P))), at(&format!(", launch 2: {shared}")));
    let rows = "what sequences share is not a row for each";
    let whole = |m: &mut Manifest, i: usize, n: i64| m.kernels[1].params[i].ty.shape[0] = Dim::from(n);
    assert_eq!(complaint(batched(|m| whole(m, 1, 1))), at(&format!(", launch 2: {rows}")));
    let more = |m: &mut Manifest| m.kernels[1].params[1].ty.shape[0] = Dim::from(Sym::T) + 1;
    assert_eq!(complaint(batched(more)), at(&format!(", launch 2: {rows}")));
    // Half a byte has no address.
    let nibbles = |m: &mut Manifest| {
        m.kernels[1].params[1].ty = TensorType::new(DType::F4E2M1, [Dim::from(Sym::T), Dim::from(3)]);
    };
    assert_eq!(complaint(batched(nibbles)), at(&format!(", launch 2: {rows}")));
    // Every row of a batch must be there, and one token's rows in a sequence's own memory; of states, those of one
    // token too.
    assert_eq!(
        said(|v| v.launches[2].args[1] = Arg::arena(68)),
        "entry `prefill`, launch 2, argument 1: the kernel would reach past the end of the buffer"
    );
    let held = |m: &mut Manifest| m.kernels[2].params[2].ty.shape[0] = Dim::from(Sym::P) + 3;
    assert_eq!(
        complaint(batched(held)),
        "entry `prefill`, launch 0, argument 2: the kernel would reach past the end of the buffer",
        "31 tokens held and one more are a call of a batch"
    );
    let mut plain = sample();
    batched(held)(&mut plain);
    let version = &mut plain.entries[0].versions[1];
    version.batches = false;
    for l in &mut version.launches {
        l.each = false;
        l.args.iter_mut().filter(|a| a.space == Space::Own).for_each(|a| a.space = Space::Arena);
    }
    bytes_of(&plain).unwrap();
}

#[test]
fn files_appear_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    let listed = || std::fs::read_dir(folder.path()).unwrap().count();
    let (manifest, blobs) = (sample(), blobs());
    let parts = Parts { runner: b"run", manifest: &manifest, code: &[0xc3; 80], blobs: &blobs };
    let length = write(&path, &parts, &mut twenty).unwrap();
    let first = std::fs::read(&path).unwrap();
    assert_eq!(first.len() as u64, length);
    assert_eq!(first, {
        let mut f = Vec::new();
        write_to(&mut f, &parts, &mut twenty).unwrap();
        f
    });
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o700, 0o700);

    let mut interrupted = |i: usize, out: &mut dyn Write| match i {
        0 => twenty(i, out),
        _ => Err(io::Error::from(io::ErrorKind::Interrupted)),
    };
    assert!(matches!(write(&path, &parts, &mut interrupted), Err(Error::Io { .. })));
    let mut full = |_: usize, _: &mut dyn Write| Err(io::Error::from(io::ErrorKind::StorageFull));
    let error = write(&path, &parts, &mut full).unwrap_err().to_string();
    assert_eq!(error, format!("no space left for {}: it needs {length} bytes", path.display()));
    let mut short = |_: usize, out: &mut dyn Write| out.write_all(&[1; 19]);
    let error = write(&path, &parts, &mut short).unwrap_err().to_string();
    assert_eq!(error, "weight `w0` has 19 bytes where the manifest promises 20");
    assert_eq!(std::fs::read(&path).unwrap(), first, "a failed write leaves the old file");
    assert_eq!(listed(), 1, "and nothing beside it");

    write(&path, &Parts { runner: b"other", ..parts }, &mut twenty).unwrap();
    assert!(std::fs::read(&path).unwrap().starts_with(b"other"));
    assert_eq!(listed(), 1);
    assert!(matches!(write(folder.path(), &parts, &mut twenty), Err(Error::NotAFile { .. })));
    let nowhere = folder.path().join("no/such/folder");
    assert!(matches!(write(&nowhere, &parts, &mut twenty), Err(Error::Io { .. })));
}

#[test]
fn a_file_larger_than_the_disk_is_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let mut manifest = sample();
    manifest.weights[1].bytes = 1 << 55;
    manifest.weights[1].shape = vec![1 << 53];
    let parts = Parts { runner: b"", manifest: &manifest, code: &[0xc3; 80], blobs: &[] };
    let mut never = |_: usize, _: &mut dyn Write| panic!("the weights were asked for");
    let error = write(&folder.path().join("huge"), &parts, &mut never);
    assert!(matches!(error, Err(Error::DiskFull { .. } | Error::Io { .. })), "{error:?}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// Not a test by itself: writes a file and never ends, to be killed by the test below.
#[test]
#[ignore = "run by a_killed_writer_leaves_nothing"]
fn endless_writer() {
    let folder = std::path::PathBuf::from(std::env::var_os(ENDLESS).unwrap());
    let manifest = sample();
    let parts = Parts { runner: b"run", manifest: &manifest, code: &[0xc3; 80], blobs: &blobs() };
    let mut endless = |i: usize, out: &mut dyn Write| {
        twenty(i, out)?;
        std::fs::write(folder.join("begun"), [])?;
        std::thread::sleep(std::time::Duration::from_secs(60));
        Err(io::Error::from(io::ErrorKind::TimedOut))
    };
    write(&folder.join("model"), &parts, &mut endless).unwrap();
}

const ENDLESS: &str = "HADAL_TEST_ENDLESS_WRITER";

#[test]
fn a_killed_writer_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "tests::endless_writer"])
        .env(ENDLESS, folder.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    while !folder.path().join("begun").exists() {
        assert!(child.try_wait().unwrap().is_none(), "the writer ended by itself");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let left = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name());
    assert_eq!(left.collect::<Vec<_>>(), ["begun"]);
}
