//! Checkpoints good and bad: each kind of damage is refused with a message that says what and where.

use hadal_models::Error;
use hadal_models::checkpoint::{Checkpoint, Entry, Expected, check, parse_header};
use hadal_types::DType;
use proptest::prelude::*;
use safetensors::SafeTensors;
use serde_json::json;
use std::collections::HashSet;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// A file with this header text and this many bytes of data, each its own offset.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    out.extend((0..data).map(|i| i as u8));
    out
}

/// A file with these tensors one after another, in bf16.
fn tensors(list: &[(&str, &[usize])]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut at = 0;
    for (name, shape) in list {
        let end = at + 2 * shape.iter().product::<usize>();
        header.insert(name.to_string(), json!({"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}));
        at = end;
    }
    file(&serde_json::Value::Object(header).to_string(), at)
}

fn folder(files: &[(&str, Vec<u8>)]) -> TempDir {
    let dir = TempDir::new().expect("a temporary folder");
    for (name, bytes) in files {
        fs::write(dir.path().join(name), bytes).expect("written");
    }
    dir
}

fn index(places: &[(&str, &str)]) -> Vec<u8> {
    let map: serde_json::Map<_, _> = places.iter().map(|(t, s)| (t.to_string(), json!(s))).collect();
    json!({"metadata": {"total_size": 0}, "weight_map": map}).to_string().into_bytes()
}

/// The refusal to open `dir`, with the folder's own name removed.
fn refusal(dir: &TempDir) -> String {
    let message = Checkpoint::open(dir.path()).expect_err("must be refused").to_string();
    message.replace(&format!("{}/", dir.path().display()), "").replace(&dir.path().display().to_string(), "DIR")
}

fn header_refusal(bytes: &[u8]) -> String {
    parse_header(Path::new("m.safetensors"), bytes).expect_err("must be refused").to_string()
}

#[test]
fn the_fixtures_open_and_agree_with_the_reference_reader() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
    let mut seen = HashSet::new();
    for name in ["llama-dense", "v3", "v3-fp8", "v31-fp8-ue8m0"] {
        let path = fixtures.join(name);
        let checkpoint = Checkpoint::open(&path).expect(name);
        let bytes = fs::read(path.join("model.safetensors")).expect(name);
        let reference = SafeTensors::deserialize(&bytes).expect(name);
        assert_eq!(checkpoint.len(), reference.len());
        for (tensor, view) in reference.tensors() {
            let ours = checkpoint.require(&tensor).expect("same names");
            assert_eq!((ours.shape, ours.bytes), (view.shape(), view.data()));
            assert_eq!(ours.bytes, &bytes[ours.offset as usize..][..ours.bytes.len()]);
            assert_eq!(ours.dtype.bytes(ours.count() as u64), ours.bytes.len() as u64);
            seen.insert(ours.dtype);
        }
    }
    for dtype in [DType::BF16, DType::F32, DType::F8E4M3] {
        assert!(seen.contains(&dtype), "{dtype}");
    }
    let demo = Checkpoint::open(fixtures.join("../../models/demo")).expect("two shards and an index");
    assert_eq!(demo.files().len(), 2);
    let golden = Checkpoint::open(fixtures.join("v3/golden.safetensors")).expect("one file by its path");
    assert!(golden.tensor("logits").is_some());
}

#[test]
fn every_supported_format_is_read() {
    let sizes =
        [("F64", 8), ("F32", 4), ("F16", 2), ("BF16", 2), ("F8_E4M3", 1), ("F8_E8M0", 1), ("I64", 8), ("I32", 4)];
    for (format, size) in sizes.into_iter().chain([("I8", 1), ("U8", 1), ("BOOL", 1)]) {
        let end = 3 * size;
        let header = json!({"x": {"dtype": format, "shape": [3], "data_offsets": [0, end]}}).to_string();
        assert_eq!(parse_header(Path::new("m"), &file(&header, end)).expect(format)[0].shape, [3]);
    }
    let packed = |n| json!({"x": {"dtype": "F4", "shape": [n], "data_offsets": [0, 2]}}).to_string();
    assert_eq!(parse_header(Path::new("m"), &file(&packed(4), 2)).expect("two a byte")[0].dtype, DType::F4E2M1);
    assert!(header_refusal(&file(&packed(3), 2)).contains("whole bytes"));
}

#[test]
fn damaged_headers_are_refused_with_the_reason() {
    let entry = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#"{{"x":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    let good = file(&entry("F32", "[2]", "[0,8]"), 8);
    assert!(parse_header(Path::new("m"), &good).is_ok());
    let absurd = [&u64::MAX.to_le_bytes()[..], b"{}"].concat();
    let over = [&100_000_001u64.to_le_bytes()[..], b"{}"].concat();
    let long = [&99_999_999u64.to_le_bytes()[..], b"{}"].concat();
    let two = r#"{"x":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"y":{"dtype":"U8","shape":[2],"data_offsets":"#;
    let cases: Vec<(Vec<u8>, &[&str])> = vec![
        (vec![], &["header's length", "an empty file"]),
        (vec![1, 2, 3], &["header's length", "a file of 3 bytes"]),
        (absurd, &["18446744073709551615", "up to 100000000"]),
        (over, &["100000001"]),
        (long, &["a header of 99999999 bytes", "a file of 10 bytes"]),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n".to_vec(), &["Git LFS pointer"]),
        (file("no json", 0), &["a JSON object as header", "line 1"]),
        (file("[]", 0), &["an object of tensors"]),
        (file("", 0), &["a JSON object as header"]),
        ([&4u64.to_le_bytes()[..], b"{\"\xff\"}"].concat(), &["no text"]),
        (file(&format!("{{\"x\":{}", "[".repeat(1000)), 0), &["tensor `x`"]),
        (file(r#"{"x":{"dtype":"F32","shape":[2]}}"#, 8), &["tensor `x`", "missing field `data_offsets`"]),
        (file(&entry("F32", "[-2]", "[0,8]"), 8), &["tensor `x`", "-2"]),
        (file(&entry("F32", "\"2\"", "[0,8]"), 8), &["tensor `x`", "expected a sequence"]),
        (file(&entry("F32", "[2]", "[0,8,9]"), 8), &["JSON object as header"]),
        (file(&entry("F32", "[2]", "[8,0]"), 8), &["tensor `x`", "bytes in order", "bytes 8..0"]),
        (file(&entry("F32", "[4]", "[0,16]"), 8), &["tensor `x`", "within the data (0..8)", "bytes 0..16"]),
        (file(&entry("F32", "[2]", "[0,18446744073709551615]"), 8), &["within the data"]),
        (file(&entry("F32", "[3]", "[0,8]"), 8), &["tensor `x`", "12 bytes for f32[3]", "found 8 bytes"]),
        (
            file(&entry("F32", "[4294967296,4294967296]", "[0,8]"), 8),
            &["tensor `x`", "a size that fits in memory", "[4294967296, 4294967296]"],
        ),
        (file(&entry("F32", "[2]", "[0,8]"), 7), &["within the data (0..7)"]),
        (file(&entry("F32", "[2]", "[0,8]"), 9), &["8 bytes of data", "found 9 bytes"]),
        (file(&entry("F8_E5M2", "[8]", "[0,8]"), 8), &["tensor `x`", "F8_E5M2", "not supported", "BF16"]),
        (file(&format!("{two}[1,3]}}}}"), 3), &["tensor `y`", "at byte 2", "at byte 1"]),
        (file(&format!("{two}[4,6]}}}}"), 6), &["tensor `y`", "at byte 2", "at byte 4"]),
        (file(&format!("{two}[2,4]}}}}").replace("\"y\"", "\"x\""), 4), &["tensor `x`", "each name once"]),
    ];
    for (bytes, parts) in cases {
        let message = header_refusal(&bytes);
        for part in ["m.safetensors"].iter().chain(parts) {
            assert!(message.contains(part), "`{part}` is not in: {message}");
        }
    }
}

#[test]
fn messages_show_no_control_characters_and_no_novels() {
    let name = format!("\\u001b[31m{}", "n".repeat(100_000));
    let header = format!(r#"{{"{name}":{{"dtype":"F99","shape":[],"data_offsets":[0,0]}}}}"#);
    let message = header_refusal(&file(&header, 0));
    assert!(message.len() < 600 && !message.chars().any(char::is_control), "{message}");
}

#[test]
fn empty_tensors_and_scalars_are_fine() {
    let header = r#"{"__metadata__":{"format":"pt"},"e":{"dtype":"F32","shape":[0,7],"data_offsets":[0,0]},
        "s":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}  "#;
    let entries = parse_header(Path::new("m"), &file(header, 4)).expect("valid");
    assert_eq!(entries.iter().map(|e| e.name.as_str()).collect::<Vec<_>>(), ["e", "s"]);
}

#[test]
fn folders_are_searched_for_shards() {
    let (a, b) = (tensors(&[("a", &[2, 3])]), tensors(&[("b", &[4])]));
    let one = folder(&[("model.safetensors", a.clone()), ("golden.safetensors", b.clone()), ("x.txt", vec![])]);
    assert_eq!(Checkpoint::open(one.path()).unwrap().len(), 1);
    let loose = folder(&[("one.safetensors", a.clone()), ("two.safetensors", b.clone())]);
    assert_eq!(Checkpoint::open(loose.path()).unwrap().len(), 2);
    let names = index(&[("a", "s1.safetensors"), ("b", "s2.safetensors")]);
    let sharded = folder(&[
        ("model.safetensors.index.json", names),
        ("s1.safetensors", a.clone()),
        ("s2.safetensors", b.clone()),
        ("consolidated.safetensors", a.clone()),
    ]);
    let checkpoint = Checkpoint::open(sharded.path()).unwrap();
    assert_eq!(checkpoint.files().len(), 2);
    let t = checkpoint.require("b").unwrap();
    assert!(t.file.ends_with("s2.safetensors") && t.describe() == "bf16[4]");
    assert!(checkpoint.require("c").unwrap_err().to_string().contains("no tensor `c`"));
    let held = Checkpoint::from_memory([("s1", a), ("s2", b)]).unwrap();
    assert_eq!(held.tensors().map(|(n, t)| (n.to_owned(), t.bytes.to_vec())).collect::<Vec<_>>(), {
        checkpoint.tensors().map(|(n, t)| (n.to_owned(), t.bytes.to_vec())).collect::<Vec<_>>()
    });
}

#[test]
fn bad_sets_of_files_are_refused() {
    let (a, b) = (tensors(&[("a", &[2])]), tensors(&[("b", &[4])]));
    let names = |places: &[(&str, &str)]| ("model.safetensors.index.json", index(places));
    let cases: Vec<(TempDir, &[&str])> = vec![
        (folder(&[]), &["DIR: no safetensors file here (found nothing)"]),
        (folder(&[("pytorch_model.bin", vec![1])]), &["found pytorch_model.bin", "convert"]),
        (folder(&[("model.safetensors", vec![])]), &["model.safetensors: expected 8 bytes", "an empty file"]),
        (
            folder(&[("model-00001-of-00003.safetensors", a.clone())]),
            &["2 of 3 shards missing", "model-00002-of-00003.safetensors, model-00003-of-00003.safetensors"],
        ),
        (
            folder(&[names(&[("a", "s1.safetensors"), ("b", "s2.safetensors")]), ("s1.safetensors", a.clone())]),
            &["1 of 2 shards missing: s2.safetensors", "download"],
        ),
        (
            folder(&[names(&[("a", "s1.safetensors"), ("z", "s1.safetensors")]), ("s1.safetensors", a.clone())]),
            &["1 tensors are not in the shard named for them: z in s1.safetensors"],
        ),
        (
            folder(&[
                names(&[("a", "s2.safetensors"), ("b", "s1.safetensors")]),
                ("s1.safetensors", a.clone()),
                ("s2.safetensors", b),
            ]),
            &["2 tensors are not in the shard", "a in s2.safetensors"],
        ),
        (
            folder(&[("one.safetensors", a.clone()), ("two.safetensors", a.clone())]),
            &["tensor `a` is both in one.safetensors and in two.safetensors"],
        ),
        (folder(&[names(&[("a", "../s1.safetensors")])]), &["`a`: expected the name of a file in the same folder"]),
        (folder(&[names(&[("a", "/etc/passwd")])]), &["found \"/etc/passwd\""]),
        (folder(&[("model.safetensors.index.json", b"{".to_vec())]), &["index.json: not a valid JSON object"]),
        (folder(&[("model.safetensors.index.json", b"{}".to_vec())]), &["`weight_map`", "no such key"]),
        (
            folder(&[("model.safetensors.index.json", br#"{"weight_map": {"a": "x", "a": "y"}}"#.to_vec())]),
            &["\"a\" appears twice"],
        ),
        (folder(&[("model.safetensors.index.json", br#"{"weight_map": {"a": 3}}"#.to_vec())]), &["`a`", "found 3"]),
        (folder(&[("model.safetensors", a[..a.len() - 1].to_vec())]), &["model.safetensors: tensor `a`", "0..3"]),
    ];
    for (dir, parts) in cases {
        let message = refusal(&dir);
        for part in parts {
            assert!(message.contains(part), "`{part}` is not in: {message}");
        }
    }
    let absent = Checkpoint::open("/nonexistent/model").unwrap_err().to_string();
    assert!(absent.starts_with("/nonexistent/model: listing failed"), "{absent}");
}

#[test]
fn stacks_stream_their_parts_in_order() {
    let bytes = tensors(&[("e.0", &[2, 3]), ("e.1", &[2, 3]), ("odd", &[3, 2]), ("e.2", &[2, 3])]);
    let checkpoint = Checkpoint::from_memory([("m", bytes)]).unwrap();
    let stack = checkpoint.stack(["e.2", "e.0", "e.1"]).unwrap();
    assert_eq!((stack.shape(), stack.dtype(), stack.byte_len()), (&[3, 2, 3][..], DType::BF16, 36));
    let mut whole = Vec::new();
    stack.write_to(&mut whole).unwrap();
    let part = |name| checkpoint.require(name).unwrap().bytes;
    assert_eq!(whole, [part("e.2"), part("e.0"), part("e.1")].concat());
    for (offset, len) in [(0, 36), (0, 100), (5, 20), (11, 2), (12, 12), (35, 5), (36, 1), (u64::MAX, 4)] {
        let mut out = vec![0xaa; len];
        let n = stack.read_at(offset, &mut out);
        let expected = whole.get(offset as usize..).unwrap_or(&[]);
        assert_eq!(&out[..n], &expected[..len.min(expected.len())], "{offset} {len}");
    }
    assert!(stack.contiguous().is_none());
    assert_eq!(checkpoint.source("odd").unwrap().contiguous(), Some(part("odd")));
    let counted = checkpoint.weight("e.{1..3}").unwrap();
    assert_eq!((counted.shape(), counted.parts()[0].bytes), (&[2, 2, 3][..], part("e.1")));
    assert_eq!(checkpoint.weight("e.{0..1}").unwrap().shape(), [1, 2, 3]);
    assert_eq!(checkpoint.weight("odd").unwrap().shape(), [3, 2]);
    assert!(checkpoint.weight("e.{0..18446744073709551615}").unwrap_err().to_string().contains("no tensor `e.3`"));
    let error = checkpoint.stack(["e.0", "odd"]).unwrap_err().to_string();
    assert!(
        error.contains("tensor `odd`: expected bf16[2, 3] like the first of its stack, found bf16[3, 2]"),
        "{error}"
    );
    assert!(checkpoint.stack(["e.0", "e.9"]).unwrap_err().to_string().contains("no tensor `e.9`"));
    assert!(checkpoint.stack([""; 0]).is_err());
}

#[test]
fn all_differences_are_reported_together() {
    let bytes = tensors(&[
        ("good", &[2]),
        ("turned", &[2, 3]),
        ("format", &[4]),
        ("surprise", &[1]),
        ("layers.0.self_attn.rotary_emb.inv_freq", &[4]),
    ]);
    let checkpoint = Checkpoint::from_memory([("m", bytes)]).unwrap();
    let floats = [DType::BF16, DType::F32];
    let mut wants = vec![
        Expected::required("good", &[2], &floats),
        Expected::required("turned", &[3, 2], &floats),
        Expected::required("format", &[4], &[DType::F32, DType::F16]),
        Expected::required("lm_head.weight", &[5, 2], &floats),
        Expected::optional("maybe", &[5], &floats),
    ];
    let Err(Error::Mismatch(report)) = check(&checkpoint, &wants) else { panic!("must differ") };
    assert_eq!((report.matched, report.bytes), (1, 4));
    assert_eq!((report.absent.as_slice(), report.ignored.len()), (&["maybe".to_owned()][..], 1));
    let text = report.to_string();
    for part in [
        "1 missing, 1 extra, 1 misshapen, 1 of a wrong format (1 as expected)",
        "missing: lm_head.weight: bf16|f32[5, 2]",
        "extra: surprise: bf16[1] in m",
        "misshapen: turned: expected bf16|f32[3, 2], found bf16[2, 3] in m",
        "wrong format: format: expected f32|f16[4], found bf16[4] in m",
        "tie_word_embeddings",
        "transposed",
    ] {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
    wants.truncate(1);
    wants.extend(["turned", "format", "surprise"].map(|n| {
        let shape = checkpoint.require(n).unwrap().shape;
        Expected::required(n, shape, &floats)
    }));
    let report = check(&checkpoint, &wants).expect("all as wanted");
    assert!(report.to_string().contains("all 4 tensors as expected"), "{report}");
}

#[test]
fn patterns_of_differences_give_hints() {
    let hint = |held: &[&str], wanted: &[&str]| {
        let shaped: Vec<(&str, &[usize])> = held.iter().map(|n| (*n, &[1usize][..])).collect();
        let checkpoint = Checkpoint::from_memory([("m", tensors(&shaped))]).unwrap();
        let wants: Vec<_> = wanted.iter().map(|n| Expected::required(*n, &[1], &[DType::BF16])).collect();
        check(&checkpoint, &wants).expect_err("must differ").to_string()
    };
    assert!(hint(&["language.model.n"], &["model.n"]).contains("begin with `language.`"));
    assert!(hint(&["n.w"], &["model.n.w"]).contains("lack the prefix `model.`"));
    let layers = ["layers.0.w", "layers.1.w", "layers.2.w", "layers.3.w"];
    assert!(hint(&layers[..2], &layers).contains("no tensor of layers 2-3"));
    assert!(hint(&layers, &layers[..3]).contains("describes no layers 3:"));
    assert!(hint(&["w", "lm_head.weight"], &["w"]).contains("shared"));
    assert!(hint(&["w", "a.weight_scale_inv"], &["w"]).contains("declares none (quantization_config)"));
    assert!(hint(&["w"], &["w", "a.weight_scale_inv"]).contains("scales are missing"));
    let many: Vec<String> = (0..1000).map(|i| format!("layers.0.experts.{i}.w")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let text = hint(&["layers.0.w"], &many);
    assert!(text.contains("1000 missing") && text.contains("missing: … and 980 more"), "{text}");
    assert!(text.lines().count() < 30);
}

/// A small valid file of several formats, made by the reference implementation.
fn sample() -> Vec<u8> {
    let data: Vec<u8> = (0..64).collect();
    let view = |dtype, shape: &[usize], bytes: usize| {
        safetensors::tensor::TensorView::new(dtype, shape.to_vec(), &data[..bytes]).expect("sizes agree")
    };
    use safetensors::Dtype as D;
    let list = [
        ("model.norm.weight", view(D::BF16, &[4], 8)),
        ("model.w.weight", view(D::F8_E4M3, &[4, 4], 16)),
        ("model.w.weight_scale_inv", view(D::F32, &[1, 1], 4)),
        ("ids", view(D::I64, &[2], 16)),
        ("flag", view(D::BOOL, &[1], 1)),
        ("none", view(D::F16, &[0, 3], 0)),
    ];
    safetensors::serialize(list, None).expect("serialises")
}

/// What a reader sees of each tensor.
type Seen = Vec<(String, Vec<usize>, Vec<u8>)>;

/// Ours, or `None` where refused.
fn read(bytes: &[u8]) -> Option<Seen> {
    let entries = parse_header(Path::new("m"), bytes).ok()?;
    let see = |e: Entry| (e.name, e.shape, bytes[e.range].to_vec());
    let mut seen: Seen = entries.into_iter().map(see).collect();
    seen.sort();
    Some(seen)
}

/// The reference implementation's.
fn reference(bytes: &[u8]) -> Option<Seen> {
    let file = SafeTensors::deserialize(bytes).ok()?;
    let see = |(name, v): (String, safetensors::tensor::TensorView<'_>)| (name, v.shape().to_vec(), v.data().to_vec());
    let mut seen: Seen = file.tensors().into_iter().map(see).collect();
    seen.sort();
    Some(seen)
}

#[test]
fn every_truncation_is_refused() {
    let whole = sample();
    assert_eq!(read(&whole), reference(&whole));
    for n in 0..whole.len() {
        assert!(parse_header(Path::new("m"), &whole[..n]).is_err(), "{n} of {} bytes", whole.len());
    }
}

#[test]
fn every_single_flipped_bit_is_refused_or_read_as_the_reference_reads_it() {
    let whole = sample();
    for bit in 0..whole.len() * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        if let Some(ours) = read(&bytes) {
            // `__metadata__` is not read here, so a fault inside it is only the reference's business.
            assert_eq!(Some(ours), reference(&bytes), "bit {bit}");
        }
    }
}

proptest! {
    #[test]
    fn damaged_files_never_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = sample();
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Some(ours) = read(&bytes) {
            prop_assert_eq!(Some(ours), reference(&bytes));
        }
    }

    #[test]
    fn arbitrary_headers_never_panic(header in "[{}\\[\\]\":,a-z0-9_ ]{0,80}", data in 0usize..64) {
        let bytes = file(&header, data);
        if let Some(ours) = read(&bytes) {
            prop_assert_eq!(Some(ours), reference(&bytes));
        }
    }

    #[test]
    fn arbitrary_entries_are_read_only_where_the_reference_does(
        list in prop::collection::vec(
            ("[xyz]", prop::sample::select(vec!["F32", "BF16", "U8", "F4", "F8_E5M2", "F0"]),
             prop::collection::vec(prop_oneof![0u64..5, any::<u64>()], 0..3), 0u64..20, 0u64..40),
            0..4,
        ),
        data in 0usize..40,
    ) {
        let entries: Vec<String> = list
            .iter()
            .map(|(name, dtype, shape, from, to)| {
                format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{from},{to}]}}"#)
            })
            .collect();
        let bytes = file(&format!("{{{}}}", entries.join(",")), data);
        if let Some(ours) = read(&bytes) {
            prop_assert_eq!(Some(ours), reference(&bytes));
        }
    }
}
