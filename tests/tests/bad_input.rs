//! Everything that can be wrong with what a user gives: each is tried on the command itself, which must say what is
//! wrong with which file, end with the documented code, and leave nothing behind.

use hadal_tests::{Ran, copy_files, fixture, run};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;
use tempfile::TempDir;

const HADAL: &str = env!("CARGO_BIN_EXE_hadal-under-test");

fn hadal(args: &[&str]) -> Ran {
    run(Command::new(HADAL).args(args))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

/// A copy of a fixture that may be damaged.
struct Copy {
    dir: TempDir,
}

impl Copy {
    fn of(name: &str) -> Copy {
        let dir = tempfile::tempdir().expect("a folder");
        copy_files(&fixture(name), &dir.path().join("model"));
        Copy { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("model").join(name)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).expect("there")
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), bytes).expect("written");
    }

    /// The header's entries and the data of the weights.
    fn weights(&self) -> (Map<String, Value>, Vec<u8>) {
        let bytes = self.read("model.safetensors");
        let n = u64::from_le_bytes(bytes[..8].try_into().expect("eight")) as usize;
        (serde_json::from_slice(&bytes[8..8 + n]).expect("a header"), bytes[8 + n..].to_vec())
    }

    fn put(&self, header: &Map<String, Value>, data: &[u8]) {
        self.write("model.safetensors", safetensors(header, data));
    }

    fn config(&self, change: impl FnOnce(&mut Map<String, Value>)) {
        let mut config: Map<String, Value> = serde_json::from_slice(&self.read("config.json")).expect("JSON");
        change(&mut config);
        self.write("config.json", serde_json::to_vec(&config).expect("JSON"));
    }

    /// Every command that reads it refuses it with the same words, and compiling leaves nothing.
    #[track_caller]
    fn refused(&self, words: &[&str]) {
        let model = self.dir.path().join("model");
        let target = self.dir.path().join("out/file");
        std::fs::create_dir_all(target.parent().expect("a folder")).expect("made");
        let out = hadal(&["compile", text(&model), "-o", text(&target)]);
        complains(&out, 3, words);
        assert_eq!(std::fs::read_dir(self.dir.path().join("out")).expect("there").count(), 0, "something was left");
        complains(&hadal(&["run", text(&model), "--tokens", "1", "-n", "1"]), 3, words);
        complains(&hadal(&["inspect", text(&model)]), 3, words);
    }
}

fn safetensors(header: &Map<String, Value>, data: &[u8]) -> Vec<u8> {
    let header = serde_json::to_vec(header).expect("JSON");
    [&(header.len() as u64).to_le_bytes()[..], &header, data].concat()
}

#[track_caller]
fn complains(out: &Ran, code: i32, words: &[&str]) {
    assert_eq!(out.code, Some(code), "{out:?}");
    assert!(!out.stderr.contains("panicked") && !out.stderr.contains("RUST_BACKTRACE"), "{}", out.stderr);
    for word in words {
        assert!(out.stderr.contains(word), "`{word}` is not in: {}", out.stderr);
    }
}

#[test]
fn damaged_weights() {
    let c = Copy::of("llama-dense");
    let whole = c.read("model.safetensors");
    for n in [0, 3, 8, 100, whole.len() / 2, whole.len() - 1] {
        c.write("model.safetensors", &whole[..n]);
        c.refused(&["model.safetensors"]);
    }
    c.write("model.safetensors", [&whole[..], b"more"].concat());
    c.refused(&["model.safetensors"]);
    for length in [0u64, 1, 1 << 20, 1 << 40, u64::MAX, u64::MAX - 7] {
        c.write("model.safetensors", [&length.to_le_bytes()[..], &whole[8..]].concat());
        c.refused(&["model.safetensors"]);
    }
    // Bits of the header, one at a time: any answer but a crash, and a refusal that names the file. (Bits of the data
    // are other weights, which nothing can know; names and sizes are covered by the checks of tensors.)
    let header = u64::from_le_bytes(whole[..8].try_into().expect("eight")) as usize;
    for i in 0..24 {
        let mut bytes = whole.clone();
        bytes[8 + i * header / 24] ^= 1 << (i % 8);
        c.write("model.safetensors", &bytes);
        let out = hadal(&["inspect", text(&c.dir.path().join("model"))]);
        if out.code != Some(0) {
            complains(&out, 3, &["model"]);
        }
    }
}

#[test]
fn wrong_tensors_are_all_named() {
    let c = Copy::of("v3-fp8");
    let (header, data) = c.weights();
    let (missing, misshapen, extra) =
        ("model.layers.1.mlp.experts.3.up_proj.weight", "model.norm.weight", "model.layers.0.mlp.bonus.weight");
    let mut changed = header.clone();
    // Data has to be without holes, so a tensor goes missing by another name.
    let moved = changed.remove(missing).expect("there");
    changed.insert(extra.into(), moved);
    let size = changed[misshapen]["shape"][0].as_u64().expect("a size");
    changed[misshapen]["shape"] = json!([2, size / 2]);
    // In the order of the data, as the format wants it.
    let mut entries: Vec<_> = changed.into_iter().collect();
    entries.sort_by_key(|(_, v)| v["data_offsets"][0].as_u64());
    c.put(&entries.into_iter().collect(), &data);
    c.refused(&[missing, misshapen, extra]);

    let mut changed = header.clone();
    let entry = &mut changed["model.norm.weight"];
    (entry["dtype"], entry["shape"]) = (json!("I8"), json!([size * 2]));
    c.put(&changed, &data);
    c.refused(&["model.norm.weight", "i8"]);

    let mut changed = header.clone();
    changed["lm_head.weight"]["dtype"] = json!("Q4_K");
    c.put(&changed, &data);
    c.refused(&["model.safetensors", "lm_head.weight", "Q4_K"]);

    let mut changed = header.clone();
    changed["model.norm.weight"]["data_offsets"] = json!([u64::MAX - 1, u64::MAX]);
    c.put(&changed, &data);
    c.refused(&["model.safetensors: tensor `model."]);
}

#[test]
fn a_missing_shard() {
    let dir = tempfile::tempdir().expect("a folder");
    let c = Copy { dir };
    copy_files(&hadal_tests::demo_folder(), &c.dir.path().join("model"));
    std::fs::remove_file(c.path("model-00002-of-000002.safetensors")).expect("removed");
    c.refused(&["model-00002-of-000002.safetensors", "missing"]);
    std::fs::remove_file(c.path("model.safetensors.index.json")).expect("removed");
    c.refused(&["model-00002-of-000002.safetensors"]);
    std::fs::remove_file(c.path("model-00001-of-000002.safetensors")).expect("removed");
    std::fs::remove_file(c.path("golden.safetensors")).expect("removed");
    c.refused(&["no safetensors file"]);
}

#[test]
fn files_beside_the_weights() {
    let dir = tempfile::tempdir().expect("a folder");
    let c = Copy { dir };
    copy_files(&hadal_tests::demo_folder(), &c.dir.path().join("model"));
    let broken = [
        ("tokenizer.json", "{\"version\": \"1.0\", ", "JSON"),
        ("generation_config.json", "{\"temperature\": \"hot\"}", "temperature"),
        ("generation_config.json", "{\"eos_token_id\": -1}", "eos_token_id"),
        ("model.safetensors.index.json", "{\"weight_map\": ", "JSON"),
        ("model.safetensors.index.json", "{\"weight_map\": {\"a\": \"../../etc/passwd\"}}", "passwd"),
        ("model.safetensors.index.json", "{\"weight_map\": {\"a\": 7}}", "`a`"),
    ];
    for (name, content, word) in broken {
        let whole = c.read(name);
        c.write(name, content);
        c.refused(&[name, word]);
        c.write(name, whole);
    }
}

/// A GGUF file is known by its first bytes as well as by its name.
#[test]
fn gguf_files_are_inspected() {
    let model = fixture("gguf-llama").join("model.gguf");
    let named = hadal(&["inspect", text(&model)]);
    assert_eq!(named.code, Some(0), "{}", named.stderr);
    assert!(named.stdout.contains("architecture  llama"), "{}", named.stdout);
    let dir = tempfile::tempdir().expect("a folder");
    let other = dir.path().join("model");
    std::fs::copy(&model, &other).expect("copied");
    assert_eq!(hadal(&["inspect", text(&other)]).stdout, named.stdout);
    std::fs::write(&other, &std::fs::read(&model).expect("there")[..100]).expect("written");
    complains(&hadal(&["inspect", text(&other)]), 3, &[text(&other), "a number of tensors that fits into the file"]);
}

#[test]
fn wrong_configurations() {
    let c = Copy::of("v3");
    let original = c.read("config.json");
    let refused = |words: &[&str], change: &dyn Fn(&mut Map<String, Value>)| {
        c.write("config.json", &original);
        c.config(change);
        c.refused(&[&["config.json"], words].concat());
    };
    for key in ["hidden_size", "kv_lora_rank", "vocab_size", "moe_intermediate_size", "num_attention_heads"] {
        refused(&[key, "no such key"], &|o| drop(o.remove(key)));
        refused(&[key, "a whole number", "\"many\""], &|o| drop(o.insert(key.into(), json!("many"))));
        refused(&[key], &|o| drop(o.insert(key.into(), json!(1u64 << 50))));
        refused(&[key], &|o| drop(o.insert(key.into(), json!(-3))));
        refused(&[key], &|o| drop(o.insert(key.into(), json!([1]))));
    }
    refused(&["architectures", "MambaForCausalLM"], &|o| {
        drop(o.insert("architectures".into(), json!(["MambaForCausalLM"])))
    });
    refused(&["scoring_func", "gaussian"], &|o| drop(o.insert("scoring_func".into(), json!("gaussian"))));
    refused(&["rope_scaling"], &|o| drop(o.insert("rope_scaling".into(), json!(7))));
    for broken in ["", "{", "[]", "null", "{\"a\": 1e999}", "{\"a\": 1, \"a\": 2}", "\u{0}\u{1}"] {
        c.write("config.json", broken);
        c.refused(&["config.json"]);
    }
    c.write("config.json", format!("{{\"a\": {}", "[".repeat(100_000)));
    c.refused(&["config.json"]);
    c.write("config.json", [0xff, 0xfe, 0x00]);
    c.refused(&["config.json"]);
    std::fs::remove_file(c.path("config.json")).expect("removed");
    c.refused(&["config.json"]);
}

/// Sizes that are each allowed but absurd together end in an error or a plan, not in a crash, nor in minutes.
#[test]
fn absurd_sizes() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("config.json");
    let original: Map<String, Value> =
        serde_json::from_slice(&std::fs::read(fixture("v3/config.json")).expect("there")).expect("JSON");
    for changes in [
        vec![("hidden_size", 1u64 << 18), ("intermediate_size", 1 << 20), ("vocab_size", 1 << 24)],
        vec![("num_hidden_layers", 1024), ("max_position_embeddings", 1 << 30)],
        vec![("num_attention_heads", 4096), ("v_head_dim", 1 << 14), ("qk_nope_head_dim", 1 << 14)],
        vec![("hidden_size", 1), ("kv_lora_rank", 1), ("v_head_dim", 1), ("qk_nope_head_dim", 1), ("vocab_size", 1)],
    ] {
        let mut config = original.clone();
        config.extend(changes.iter().map(|(k, v)| ((*k).to_owned(), json!(v))));
        std::fs::write(&file, serde_json::to_vec(&config).expect("JSON")).expect("written");
        let out = hadal(&["compile", text(&file), "--plan-only", "--max-context", "16777216", "--max-chunk", "65536"]);
        assert!(matches!(out.code, Some(0 | 3)), "{changes:?}: {out:?}");
        assert!(!out.stderr.contains("panicked"), "{}", out.stderr);
    }
}

#[test]
fn paths_that_lead_nowhere() {
    complains(&hadal(&["inspect", "/nowhere/model"]), 3, &["/nowhere/model", "no such"]);
    complains(&hadal(&["compile", "/nowhere", "-o", "/tmp/x"]), 3, &["/nowhere"]);
    complains(&hadal(&["opt", "/nowhere.hir", "--passes", "rewrite"]), 3, &["/nowhere.hir"]);
    complains(&hadal(&["eval", "/nowhere.hir"]), 3, &["/nowhere.hir"]);
    complains(&hadal(&["verify", "/nowhere"]), 3, &["/nowhere"]);
    let dir = tempfile::tempdir().expect("a folder");
    complains(&hadal(&["inspect", text(dir.path())]), 3, &[text(dir.path())]);
    let model = fixture("llama-dense");
    let target = dir.path().join("no/such/folder/file");
    complains(&hadal(&["compile", text(&model), "-o", text(&target)]), 1, &[text(&target)]);
    complains(&hadal(&["compile", text(&model), "-o", text(dir.path())]), 2, &[text(dir.path())]);
    complains(&hadal(&["compile", text(&model), "-o", "/dev/null"]), 2, &["/dev/null"]);
    let config = fixture("configs/deepseek-v2-lite.json");
    complains(&hadal(&["compile", text(&config), "-o", text(&dir.path().join("x"))]), 3, &["deepseek-v2-lite.json"]);
    complains(
        &hadal(&["compile", text(&model), "--target", "tpu", "-o", text(&dir.path().join("x"))]),
        2,
        &["tpu", "cpu"],
    );
    complains(&hadal(&["dump", text(&config), "--stage", "plan", "--entry", "train"]), 2, &["train", "prefill"]);
    assert_eq!(std::fs::read_dir(dir.path()).expect("there").count(), 0);
}

#[test]
fn golden_tensors_that_do_not_fit() {
    let c = Copy::of("llama-dense");
    let model = c.dir.path().join("model");
    let refused = |words: &[&str]| complains(&hadal(&["verify", text(&model)]), 3, words);
    let one = |name: &str, dtype: &str, shape: Value, bytes: usize| {
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [0, bytes]});
        c.write("golden.safetensors", safetensors(&Map::from_iter([(name.to_owned(), entry)]), &vec![0; bytes]));
    };
    one("logits", "F32", json!([1, 4]), 16);
    refused(&["input_ids"]);
    one("input_ids", "F32", json!([4]), 16);
    refused(&["input_ids", "i64"]);
    one("input_ids", "I64", json!([0]), 0);
    refused(&["input_ids"]);
    // Nothing to compare is no success.
    one("input_ids", "I64", json!([2]), 16);
    complains(&hadal(&["verify", text(&model)]), 1, &["do not agree"]);
    std::fs::write(c.path("golden.json"), "{\"tolerance\": 3}").expect("written");
    refused(&["golden.json", "tolerance"]);
}

const HIR: &str = r#"symbols P in 0..511, T in 1..512
func @block(%x: f32[T, 8]) -> (y: f32[T, 8]) {
  weight %w = "w" : bf16[8, 8]
  state %k = "k" : f32[P, 8]
  %1 = append %k, %x : f32[P+T, 8]
  %2 = contract %x, %w {spec = "td,fd->tf"} : f32[T, 8]
  next %k = %1
  return %2
}
entry decode = @block where T = 1
"#;

#[test]
fn mistakes_in_graph_text() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("a.hir");
    // What is changed into what, and the line that is to blame (0: the whole).
    let mistakes: &[(&str, &str, usize)] = &[
        ("append", "apend", 5),
        ("%k, %x", "%k, %nobody", 5),
        ("%k, %x :", "%k :", 5),
        ("f32[P+T, 8]", "f32[P+T, 9]", 5),
        ("f32[P+T, 8]", "f32[P*T, 8]", 5),
        ("f32[P+T, 8]", "f99[P+T, 8]", 5),
        ("td,fd->tf", "td,df", 6),
        ("td,fd->tf", "td,fd->tx", 6),
        ("spec =", "speck =", 6),
        ("%2 =", "%1 =", 6),
        ("next %k", "next %w", 7),
        ("return %2", "return", 9),
        ("return %2", "return %1", 0),
        ("@block where", "@main where", 0),
        ("T = 1", "T = 0x", 10),
        ("T in 1..512", "T in 512..1", 1),
        ("symbols", "symbol", 1),
        ("\"w\"", "\"w", 3),
        ("}\nentry", "entry", 0),
    ];
    for (from, to, line) in mistakes {
        assert!(HIR.contains(from), "{from}");
        std::fs::write(&file, HIR.replacen(from, to, 1)).expect("written");
        for out in [hadal(&["opt", text(&file), "--passes", "canonicalise"]), hadal(&["eval", text(&file)])] {
            complains(&out, 3, &["a.hir"]);
            if *line > 0 {
                complains(&out, 3, &[&format!("{line}")]);
            }
        }
    }
    std::fs::write(&file, b"\xff\xfe").expect("written");
    complains(&hadal(&["eval", text(&file)]), 3, &["a.hir"]);
    std::fs::write(&file, "").expect("written");
    complains(&hadal(&["eval", text(&file)]), 3, &["a.hir"]);

    std::fs::write(&file, HIR).expect("written");
    hadal(&["eval", text(&file)]).ok();
    complains(&hadal(&["eval", text(&file), "--func", "nobody"]), 2, &["nobody", "block"]);
    complains(&hadal(&["eval", text(&file), "--bind", "T"]), 2, &["SYMBOL=NUMBER"]);
    complains(&hadal(&["eval", text(&file), "--bind", "T=99999999999,P=0"]), 2, &["T is from 1 to"]);
    complains(&hadal(&["eval", text(&file), "--bind", "T=-1"]), 2, &["T is from"]);
    complains(&hadal(&["eval", text(&file), "--bind", "Q=1"]), 2, &["Q"]);
    complains(&hadal(&["eval", text(&file), "--func", "block", "--bind", "P=511,T=512"]), 0, &[]);
    complains(&hadal(&["eval", text(&file), "--func", "block", "--bind", "P=512"]), 2, &["P is from 0 to 511"]);
    complains(&hadal(&["opt", text(&file), "--passes", "fold-everything"]), 2, &["fold-everything", "--list"]);
}

/// A small compiled file.
fn compiled(dir: &Path) -> PathBuf {
    let file = dir.join("compiled");
    hadal(&["compile", text(&fixture("llama-dense")), "-o", text(&file)]).ok();
    file
}

fn executable(path: &Path, bytes: &[u8]) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, bytes).expect("written");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("executable");
}

#[test]
fn damaged_compiled_files() {
    let dir = tempfile::tempdir().expect("a folder");
    let whole = std::fs::read(compiled(dir.path())).expect("there");
    let file = dir.path().join("damaged");
    let refused = |bytes: &[u8], words: &[&str]| {
        executable(&file, bytes);
        complains(&run(Command::new(&file).args(["info"])), 3, words);
        complains(&run(Command::new(&file).args(["generate", "--tokens", "1", "-n", "1"])), 3, words);
        complains(&hadal(&["inspect", text(&file)]), 3, &[&["damaged"], words].concat());
    };
    let runner = hadal::runner::EMBEDDED.len();
    refused(&whole[..whole.len() - 1], &["truncated"]);
    refused(&whole[..whole.len() - 4096], &["truncated"]);
    refused(&whole[..runner], &["no compiled model", "strip"]);
    refused(&[&whole[..], b"\n"].concat(), &["goes on after its end"]);
    // The trailer keeps its version in the same place for ever.
    let version = whole.len() - 64 + 8;
    for (step, word) in [(1u32, "newer"), (u32::MAX, "older")] {
        let mut bytes = whole.clone();
        let changed = u32::from_le_bytes(bytes[version..version + 4].try_into().expect("four")).wrapping_add(step);
        bytes[version..version + 4].copy_from_slice(&changed.to_le_bytes());
        refused(&bytes, &["version", word]);
    }

    let out = run(Command::new(dir.path().join("compiled")).args(["info", "--json"])).ok();
    let info: Value = serde_json::from_str(&out).expect("JSON");
    let size = |what: &str| info["bytes"][what].as_u64().expect("a number") as usize;
    let (code, weights) = (size("code"), size("weights_embedded"));
    // Bits of the code, of the manifest behind it, and of the trailer. Weights are checked on request.
    let start = runner.next_multiple_of(1 << 16) + 64;
    let manifest = (start + code).next_multiple_of(64);
    let places = [start, start + code / 2, start + code - 1, manifest, manifest + 1000];
    for at in places.into_iter().chain((whole.len() - 64..whole.len()).step_by(7)) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        refused(&bytes, &[]);
    }
    let mut bytes = whole.clone();
    let at = whole.len() - weights / 2;
    bytes[at] ^= 1;
    executable(&file, &bytes);
    complains(&run(Command::new(&file).args(["info", "--verify"])), 3, &["weights"]);

    // Other programs and files.
    complains(&hadal(&["inspect", HADAL]), 3, &["no compiled model"]);
    std::fs::write(&file, "a letter").expect("written");
    complains(&hadal(&["inspect", text(&file)]), 3, &["damaged"]);
    std::fs::write(&file, "").expect("written");
    complains(&hadal(&["inspect", text(&file)]), 3, &["damaged"]);
}

#[test]
fn a_stripped_file_says_so() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = compiled(dir.path());
    let Ok(out) = Command::new("strip").arg(&file).stderr(Stdio::null()).status() else { return };
    if out.success() {
        complains(&run(Command::new(&file).arg("info")), 3, &["strip"]);
    }
}

#[test]
fn no_room_for_the_file() {
    let dir = tempfile::tempdir().expect("a folder");
    let target = dir.path().join("file");
    std::fs::write(&target, "before").expect("written");
    // No file may grow beyond 1 MB here.
    let line = format!(
        "ulimit -f 1000; exec '{HADAL}' compile '{}' -o '{}'",
        fixture("llama-dense").display(),
        target.display()
    );
    let out = run(Command::new("bash").args(["-c", &line]));
    complains(&out, 1, &[text(&target)]);
    assert_eq!(std::fs::read(&target).expect("still there"), b"before");
    assert_eq!(std::fs::read_dir(dir.path()).expect("there").count(), 1, "something was left");
}

/// A file system with too little room, where this process may make one.
#[test]
fn a_full_disk() {
    let dir = tempfile::tempdir().expect("a folder");
    let script = format!(
        "mount -t tmpfs -o size=2m none '{0}' 2>/dev/null || exit 77; '{HADAL}' compile '{1}' -o '{0}/file'; code=$?; \
         ls -A '{0}' >&2; umount '{0}'; exit $code",
        dir.path().display(),
        fixture("llama-dense").display()
    );
    let out = run(Command::new("unshare").args(["--mount", "sh", "-c", &script]));
    if out.code == Some(77) || out.code.is_none() || out.stderr.contains("unshare") {
        println!("skipped: this process may not mount a file system");
        return;
    }
    complains(&out, 1, &["no space left", "/file"]);
    assert!(!out.stderr.trim_end().ends_with("/file\nfile"), "{}", out.stderr);
}

/// Killed at any moment, a compile leaves what was there before, and nothing else.
#[test]
fn interruption() {
    let dir = tempfile::tempdir().expect("a folder");
    let target = dir.path().join("file");
    std::fs::write(&target, "before").expect("written");
    let model = hadal_tests::demo_folder();
    let start = Instant::now();
    hadal(&["compile", text(&model), "-o", text(&target)]).ok();
    let whole = start.elapsed();
    std::fs::write(&target, "before").expect("written");
    for (i, signal) in [libc::SIGKILL, libc::SIGINT, libc::SIGTERM].into_iter().cycle().take(12).enumerate() {
        let mut child = Command::new(HADAL)
            .args(["compile", text(&model), "-o", text(&target)])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        std::thread::sleep(whole * (i as u32 + 1) / 12);
        // SAFETY: the child has not been waited for, so the number is still its own.
        unsafe { libc::kill(child.id() as i32, signal) };
        let ended = child.wait().expect("ends");
        let left: Vec<_> =
            std::fs::read_dir(dir.path()).expect("there").map(|e| e.expect("there").file_name()).collect();
        assert_eq!(left, ["file"], "after signal {signal}");
        match ended.success() {
            // It was faster: the file is whole.
            true => {
                run(Command::new(&target).arg("info")).ok();
                std::fs::write(&target, "before").expect("written");
            }
            false => {
                // Complete or untouched, nothing between.
                let bytes = std::fs::read(&target).expect("there");
                assert!(bytes == b"before" || run(Command::new(&target).arg("info")).code == Some(0));
                std::fs::write(&target, "before").expect("written");
            }
        }
    }
}
