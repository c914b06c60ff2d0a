//! The compiled file as a user meets it: the real runner, a payload of real machine code, and every way to break it.
//!
//! The model is a table: the logits after a token are that token's row. Its three kernels were compiled from the C in
//! the comments (`cc -Os -fPIC`), so they exist for x86-64 only.

#![cfg(all(feature = "cli", target_arch = "x86_64"))]

use hadal_runtime::Program;
use hadal_runtime::artifact::*;
use hadal_types::{DType, Dim, Sym, TensorType};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::Duration;
use tempfile::TempDir;

const VOCAB: usize = 1792;
const CONTEXT: u64 = 100;

/// `for (i = lo; i < hi; i++) ((int*)a[1])[s[0] + i] = ((int*)a[0])[i];`
const APPEND: &[u8] = &[
    0x4c, 0x8b, 0x06, 0x48, 0x8b, 0x77, 0x08, 0x48, 0x8b, 0x07, 0x4a, 0x8d, 0x34, 0x86, 0x48, 0x39, 0xca, 0x7d, 0x0b,
    0x8b, 0x3c, 0x90, 0x89, 0x3c, 0x96, 0x48, 0xff, 0xc2, 0xeb, 0xf0, 0xc3,
];
/// `for (i = lo; i < hi; i++) ((float*)a[2])[i] = ((signed char*)a[1])[((int*)a[0])[s[0] - 1] * 1792 + i];`
const LAST: &[u8] = &[
    0x48, 0x8b, 0x36, 0x48, 0x89, 0xd0, 0x48, 0x8b, 0x17, 0x4c, 0x8b, 0x47, 0x08, 0x4c, 0x8b, 0x4f, 0x10, 0x48, 0x8d,
    0x74, 0xb2, 0xfc, 0x48, 0x39, 0xc8, 0x7d, 0x20, 0x48, 0x63, 0x16, 0x48, 0x69, 0xd2, 0x00, 0x07, 0x00, 0x00, 0x4c,
    0x01, 0xc2, 0x0f, 0xbe, 0x14, 0x02, 0xf3, 0x0f, 0x2a, 0xc2, 0xf3, 0x41, 0x0f, 0x11, 0x04, 0x81, 0x48, 0xff, 0xc0,
    0xeb, 0xdb, 0xc3,
];
/// `for (i = lo; i < hi; i++) ((float*)a[2])[i] = ((signed char*)a[1])[((int*)a[0])[i / 1792] * 1792 + i % 1792];`
const ALL: &[u8] = &[
    0x4c, 0x8b, 0x07, 0x4c, 0x8b, 0x4f, 0x08, 0x48, 0x89, 0xd6, 0x4c, 0x8b, 0x57, 0x10, 0xbf, 0x00, 0x07, 0x00, 0x00,
    0x48, 0x39, 0xce, 0x7d, 0x29, 0x48, 0x89, 0xf0, 0x48, 0x99, 0x48, 0xf7, 0xff, 0x49, 0x63, 0x04, 0x80, 0x48, 0x69,
    0xc0, 0x00, 0x07, 0x00, 0x00, 0x4c, 0x01, 0xc8, 0x0f, 0xbe, 0x04, 0x10, 0xf3, 0x0f, 0x2a, 0xc0, 0xf3, 0x41, 0x0f,
    0x11, 0x04, 0xb2, 0x48, 0xff, 0xc6, 0xeb, 0xd2, 0xc3,
];

/// After token `t` come, likeliest first, `3t + 7` and `5t + 1`; never a stop token.
fn table() -> Vec<u8> {
    let mut w = vec![0u8; VOCAB * VOCAB];
    for t in 0..VOCAB {
        w[t * VOCAB + (5 * t + 1).max(3) % VOCAB] = 9;
        w[t * VOCAB + next(t as u32) as usize] = 10;
        w[t * VOCAB + 1] = -100i8 as u8;
    }
    w
}

fn next(token: u32) -> u32 {
    ((3 * token + 7) % VOCAB as u32).max(3)
}

fn symbols(lo: i64, hi: i64) -> Vec<SymbolRange> {
    vec![SymbolRange { sym: Sym::T, lo, hi }, SymbolRange { sym: Sym::P, lo: 0, hi: CONTEXT as i64 }]
}

fn manifest() -> Manifest {
    let (t, s, v) = (Dim::from(Sym::T), Dim::from(Sym::P) + Sym::T, Dim::from(VOCAB));
    let ty = |dtype, shape: &[&Dim]| TensorType::new(dtype, shape.iter().map(|d| (*d).clone()));
    let param = |name: &str, access, ty| Param { name: name.into(), access, ty };
    let kernel = |name: &str, offset, code: &[u8], symbols: &[Sym], params| Kernel {
        name: name.into(),
        offset,
        bytes: code.len() as u64,
        scratch_bytes: 0,
        block: None,
        symbols: symbols.into(),
        params,
        origin: format!("made by hand: {name}"),
    };
    let head = |rows: &Dim| {
        vec![
            param("tokens", Access::Read, ty(DType::I32, &[&t])),
            param("table", Access::Read, ty(DType::I8, &[&v, &v])),
            param("logits", Access::Write, ty(DType::F32, &[rows, &v])),
        ]
    };
    let entry = |name: &str, most, head, rows: &Dim| Entry {
        name: name.into(),
        symbols: symbols(1, most),
        inputs: vec![Port { name: "tokens".into(), ty: ty(DType::I32, &[&t]) }],
        outputs: vec![Port { name: "logits".into(), ty: ty(DType::F32, &[rows, &v]) }],
        versions: vec![Version {
            symbols: symbols(1, most),
            launches: vec![
                Launch {
                    kernel: 0,
                    args: vec![Arg::of(Space::Input(0)), Arg::of(Space::State(0))],
                    grid: vec![t.clone()],
                    each: false,
                },
                Launch {
                    kernel: head,
                    args: vec![Arg::of(Space::Input(0)), Arg::of(Space::Weight(0)), Arg::of(Space::Output(0))],
                    grid: vec![rows.clone(), v.clone()],
                    each: false,
                },
            ],
            batches: false,
            weight_bytes_read: Some(VOCAB as u64),
            flops: Some(0),
        }],
    };
    let one = Dim::from(1);
    let rows = vec![
        param("tokens", Access::Read, ty(DType::I32, &[&t])),
        param("rows", Access::ReadWrite, ty(DType::I32, &[&s])),
    ];
    Manifest {
        producer: "hadal test".into(),
        target: Target { arch: "x86_64".into(), features: vec!["sse2".into()] },
        model: Model {
            name: "table".into(),
            architecture: "a table".into(),
            vocab: VOCAB as u64,
            max_context: CONTEXT,
            max_chunk: 8,
            bos: Some(0),
            stop: vec![1],
            sampling: SamplingDefaults { temperature: Some(0.0), ..Default::default() },
        },
        kernels: vec![
            kernel("append", 0, APPEND, &[Sym::P], rows),
            kernel("last", 64, LAST, &[Sym::T], head(&one)),
            kernel("all", 128, ALL, &[], head(&t)),
        ],
        weights: vec![Weight {
            name: "table".into(),
            dtype: DType::I8,
            shape: vec![VOCAB as u64; 2],
            bytes: (VOCAB * VOCAB) as u64,
            place: Place::Embedded { offset: 0 },
            by_rows: false,
        }],
        files: vec![],
        definitions: Default::default(),
        states: vec![State {
            name: "rows".into(),
            dtype: DType::I32,
            row_shape: vec![],
            held: Sym::P.into(),
            rows: CONTEXT,
            page_rows: CONTEXT,
            bytes: 4 * CONTEXT,
        }],
        entries: vec![entry("prefill", 8, 1, &one), entry("decode", 1, 1, &one), entry("logits", 8, 2, &t)],
        arena_bytes: 0,
        facts: vec![("made".into(), "by hand".into())],
        others: Vec::new(),
    }
}

fn demo(file: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo").join(file)).unwrap()
}

/// A folder with the model in it.
struct Compiled {
    folder: TempDir,
    path: PathBuf,
}

impl Compiled {
    fn new() -> Compiled {
        Compiled::with(|_, _| {})
    }

    fn with(change: impl FnOnce(&mut Manifest, &Path)) -> Compiled {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model");
        let mut code = vec![0xcc; 256];
        for (at, kernel) in [(0, APPEND), (64, LAST), (128, ALL)] {
            code[at..at + kernel.len()].copy_from_slice(kernel);
        }
        let mut manifest = manifest();
        change(&mut manifest, folder.path());
        let runner = std::fs::read(env!("CARGO_BIN_EXE_hadal-run")).unwrap();
        let blobs = [blob::TOKENIZER, blob::TOKENIZER_CONFIG].map(|name| (name.to_string(), demo(name)));
        let parts = Parts { runner: &runner, manifest: &manifest, code: &code, blobs: &blobs };
        write(&path, &parts, &mut |_, out| out.write_all(&table())).unwrap();
        Compiled { folder, path }
    }

    /// Starts it. Another test's thread may be starting a program just when our file was open for writing, and hold it
    /// open for a moment; the system then calls it busy.
    fn start(&self, args: &[&str]) -> Child {
        loop {
            match Command::new(&self.path).args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn() {
                Err(e) if e.kind() == ErrorKind::ExecutableFileBusy => sleep(Duration::from_millis(5)),
                result => return result.unwrap(),
            }
        }
    }

    fn run(&self, args: &[&str]) -> Output {
        self.start(args).wait_with_output().unwrap()
    }

    /// Standard output of a run that succeeds.
    fn says(&self, args: &[&str]) -> String {
        let out = self.run(args);
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    fn json(&self, args: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.says(args)).unwrap()
    }

    /// Status and complaint of a run that fails, which writes nothing to standard output.
    fn complains(&self, args: &[&str]) -> (i32, String) {
        let out = self.run(args);
        assert_eq!(String::from_utf8_lossy(&out.stdout), "");
        (out.status.code().unwrap(), String::from_utf8(out.stderr).unwrap())
    }

    fn damage(&self, change: impl FnOnce(&mut Vec<u8>)) -> (i32, String) {
        let mut bytes = std::fs::read(&self.path).unwrap();
        change(&mut bytes);
        std::fs::write(&self.path, bytes).unwrap();
        self.complains(&["info"])
    }
}

#[test]
fn it_generates() {
    let m = Compiled::new();
    let ids = m.says(&["generate", "--tokens", "0,5", "-n", "4", "--json"]);
    let record: serde_json::Value = serde_json::from_str(&ids).unwrap();
    let expected: Vec<u32> = std::iter::successors(Some(next(5)), |t| Some(next(*t))).take(4).collect();
    assert_eq!(record["tokens"], serde_json::json!(expected));
    assert_eq!(record["ended_by"], "length");

    let prompt = "Once upon a time there lived a king, who had a daughter.";
    let out = m.run(&["generate", "--prompt", prompt, "-n", "12"]);
    let record = m.json(&["generate", "--prompt", prompt, "-n", "12", "--json"]);
    assert_eq!(record["prompt_tokens"][0], 0);
    assert_eq!(String::from_utf8_lossy(&out.stdout), format!("{}\n", record["text"].as_str().unwrap()));
    let timing = String::from_utf8(out.stderr).unwrap();
    assert!(timing.starts_with("[prompt: ") && timing.contains("generated 12, ended by length"), "{timing}");

    let chat = m.json(&["generate", "--chat", "Hello", "--system", "Be brief.", "-n", "1", "--json"]);
    assert!(chat["prompt_tokens"].as_array().unwrap().len() > 4);
    let file = m.folder.path().join("prompt");
    std::fs::write(&file, prompt).unwrap();
    let from_file = m.json(&["generate", "--prompt-file", file.to_str().unwrap(), "-n", "12", "--json"]);
    assert_eq!(from_file["tokens"], record["tokens"]);
}

#[test]
fn seeds_reproduce_with_any_number_of_threads() {
    let m = Compiled::new();
    let draw = |seed: &str, threads: &str| {
        let sampling = ["--temperature", "0.8", "--top-k", "50", "--top-p", "0.9", "--min-p", "0.01"];
        let args = ["generate", "--tokens", "0", "-n", "30", "--json", "--seed", seed, "--threads", threads];
        m.json(&[&args[..], &sampling].concat())["tokens"].clone()
    };
    assert_eq!(draw("7", "1"), draw("7", "2"));
    assert_eq!(draw("7", "1"), draw("7", "5"));
    assert_ne!(draw("7", "1"), draw("8", "1"));
}

#[test]
fn it_writes_logits() {
    let m = Compiled::new();
    let path = m.folder.path().join("logits.safetensors");
    let tokens: Vec<u32> = (0..20).map(|i| i * 37 % VOCAB as u32).collect();
    let list: Vec<String> = tokens.iter().map(u32::to_string).collect();
    m.says(&["logits", "--tokens", &list.join(","), "--out", path.to_str().unwrap()]);
    let bytes = std::fs::read(&path).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let logits = tensors.tensor("logits").unwrap();
    assert_eq!(logits.shape(), [20, VOCAB]);
    let table = table();
    let rows = tokens.iter().flat_map(|t| &table[*t as usize * VOCAB..][..VOCAB]);
    let expected: Vec<u8> = rows.flat_map(|w| (*w as i8 as f32).to_le_bytes()).collect();
    assert!(logits.data() == expected);
    assert_eq!(tensors.tensor("input_ids").unwrap().shape(), [20]);

    m.says(&["logits", "--tokens", "3,4", "--entry", "prefill", "--out", path.to_str().unwrap()]);
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(safetensors::SafeTensors::deserialize(&bytes).unwrap().tensor("logits").unwrap().shape(), [1, VOCAB]);
}

#[test]
fn it_says_what_it_is_and_how_fast() {
    let m = Compiled::new();
    let info = m.json(&["info", "--json", "--verify"]);
    assert_eq!(info["model"]["name"], "table");
    assert_eq!(info["bytes"]["weights_embedded"], VOCAB * VOCAB);
    assert_eq!(info["kernels"][1]["origin"], "made by hand: last");
    assert_eq!(info["entries"][0]["outputs"][0], "logits: f32[1, 1792]");
    let text = m.says(&["info", "--kernels"]);
    assert!(text.contains("made          by hand") && text.contains("append (31 bytes)"), "{text}");

    let bench = m.json(&["bench", "--prompt-len", "20", "-n", "5", "--threads", "2", "--json"]);
    assert!(bench["decode_tokens_per_second"].as_f64().unwrap() > 0.0);
    assert!(bench["share_of_read_bandwidth"].as_f64().unwrap() > 0.0);
    assert!(m.says(&["--help"]).contains("./model generate --prompt"));
    for command in ["generate", "logits", "bench", "info"] {
        assert!(m.says(&[command, "--help"]).contains("Example"), "{command}");
    }
}

#[test]
fn wrong_usage_is_status_2() {
    let m = Compiled::new();
    for args in [
        &["generate"][..],
        &["generate", "--prompt", "a", "--chat", "b"],
        &["generate", "--prompt", "a", "--temperature", "-1"],
        &["generate", "--prompt", "a", "--top-p", "0"],
        &["generate", "--tokens", "99999"],
        &["logits", "--tokens", "1,x", "--out", "/dev/null"],
        &["bench", "--prompt-len", "90", "-n", "20"],
        &["bench", "--repeat", "0"],
        &["bench", "--prompt", "a", "--prompt-len", "3"],
        &["sing"],
    ] {
        let (status, complaint) = m.complains(args);
        assert_eq!(status, 2, "{args:?}: {complaint}");
        assert!(complaint.starts_with("error: "), "{complaint}");
    }
    let (status, complaint) = m.complains(&["logits", "--tokens", "1", "--entry", "mtp", "--out", "x"]);
    assert_eq!((status, complaint.contains("it has prefill, decode, logits")), (2, true), "{complaint}");
    let (status, complaint) = m.complains(&["generate", "--prompt-file", "/no/such/file"]);
    assert_eq!((status, complaint.contains("/no/such/file")), (3, true), "{complaint}");
}

#[test]
fn failures_while_running_are_status_1() {
    let m = Compiled::new();
    let long = vec!["5"; 101].join(",");
    let (status, complaint) = m.complains(&["generate", "--tokens", &long]);
    assert_eq!(status, 1);
    assert!(complaint.contains("0 tokens held and 101 new ones exceed the context of 100"), "{complaint}");
    let (status, complaint) = m.complains(&["logits", "--tokens", "1", "--out", "/no/such/folder/x"]);
    assert_eq!((status, complaint.contains("/no/such/folder/x")), (1, true), "{complaint}");
    // Exactly full is fine.
    let record = m.json(&["generate", "--tokens", &vec!["5"; 98].join(","), "-n", "50", "--json"]);
    assert_eq!((record["ended_by"].as_str(), record["tokens"].as_array().map(Vec::len)), (Some("context"), Some(3)));
}

#[test]
fn a_closed_pipe_is_no_error() {
    let m = Compiled::new();
    let mut child = m.start(&["generate", "--tokens", "3", "-n", "60"]);
    drop(child.stdout.take());
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn unusable_files_are_status_3() {
    let bare = Command::new(env!("CARGO_BIN_EXE_hadal-run")).arg("info").output().unwrap();
    let complaint = String::from_utf8_lossy(&bare.stderr).into_owned();
    assert_eq!(bare.status.code(), Some(3));
    assert!(complaint.contains("This is hadal's runner"), "{complaint}");

    let refused = |change: fn(&mut Vec<u8>), expected: &str| {
        let (status, complaint) = Compiled::new().damage(change);
        assert_eq!((status, complaint.contains(expected)), (3, true), "`{expected}` is not in: {complaint}");
    };
    refused(|b| b.truncate(b.len() - 1), "the file is truncated");
    let stripped: fn(&mut Vec<u8>) = |b| {
        let at = b.windows(8).rposition(|w| w == b"hadal\x1a\r\n").unwrap();
        b.truncate(at);
    };
    refused(stripped, "`strip`");
    refused(
        |b| {
            let n = b.len();
            b[n - 56] = 200
        },
        "newer than this program",
    );
    refused(
        |b| {
            let at = b.windows(LAST.len()).rposition(|w| w == LAST).unwrap();
            b[at] ^= 1;
        },
        "the checksum of the code does not match",
    );

    let m = Compiled::with(|m, _| m.target.features = vec!["sse2".into(), "warp".into(), "drive".into()]);
    let (status, complaint) = m.complains(&["info"]);
    assert_eq!((status, complaint.contains("warp, drive")), (3, true), "{complaint}");
    let m = Compiled::with(|m, _| m.target.arch = "riscv64".into());
    let (status, complaint) = m.complains(&["info"]);
    assert_eq!((status, complaint.contains("compiled for riscv64")), (3, true), "{complaint}");

    let m = Compiled::new();
    let weights = std::fs::metadata(&m.path).unwrap().len() as usize - 1000;
    let mut bytes = std::fs::read(&m.path).unwrap();
    bytes[weights] ^= 1;
    std::fs::write(&m.path, bytes).unwrap();
    m.says(&["info"]);
    let (status, complaint) = m.complains(&["info", "--verify"]);
    assert_eq!((status, complaint.contains("the checksum of the weights")), (3, true), "{complaint}");
}

#[test]
fn weights_may_lie_in_another_file() {
    let external = |m: &mut Manifest, folder: &Path| {
        let mut bytes = b"header..".to_vec();
        bytes.extend(table());
        std::fs::write(folder.join("weights"), &bytes).unwrap();
        m.files = vec![ExternalFile {
            path: "weights".into(),
            bytes: bytes.len() as u64,
            header_bytes: 8,
            header_checksum: checksum(b"header.."),
        }];
        m.weights[0].place = Place::External { file: 0, offset: 8 };
    };
    let m = Compiled::with(external);
    assert!(
        std::fs::metadata(&m.path).unwrap().len()
            < std::fs::metadata(env!("CARGO_BIN_EXE_hadal-run")).unwrap().len() + 500_000
    );
    let tokens = |m: &Compiled| m.json(&["generate", "--tokens", "5", "-n", "5", "--json"])["tokens"].clone();
    assert_eq!(tokens(&m), tokens(&Compiled::new()));

    let weights = m.folder.path().join("weights");
    let good = std::fs::read(&weights).unwrap();
    for (bytes, expected) in [
        (good[1..].to_vec(), "bytes instead of"),
        ([&b"Header.."[..], &good[8..]].concat(), "its header is another one"),
    ] {
        std::fs::write(&weights, bytes).unwrap();
        let (status, complaint) = m.complains(&["info"]);
        assert_eq!((status, complaint.contains(expected)), (3, true), "{complaint}");
    }
    std::fs::remove_file(&weights).unwrap();
    let (status, complaint) = m.complains(&["info"]);
    assert_eq!((status, complaint.contains("weights: No such file")), (3, true), "{complaint}");
}

#[test]
fn the_library_opens_it_too() {
    let m = Compiled::new();
    let program = Program::open(&m.path).unwrap();
    assert_eq!(program.manifest(), &manifest());
    assert_eq!(program.blob(blob::TOKENIZER).unwrap(), demo("tokenizer.json"));
    program.verify_weights().unwrap();
    assert!(Program::open(m.folder.path()).is_err(), "a folder is not a program");
    assert!(Program::open(&m.folder.path().join("nothing")).is_err());
}
