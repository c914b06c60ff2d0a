//! GGUF files: blocks against an independent decoder, whole models against llama.cpp, and files that lie.

use hadal_ir::interpret::{Interpreter, WeightSource};
use hadal_ir::tensor::Data;
use hadal_ir::{Bindings, Sym, Tensor};
use hadal_models::checkpoint::{BlockFormat, Checkpoint, Plane, check};
use hadal_models::gguf::{self, Gguf};
use hadal_models::{BuildOptions, CheckpointWeights, build};
use hadal_types::{DType, TensorType};
use std::path::{Path, PathBuf};

const FIXTURES: [&str; 5] = ["gguf-llama", "gguf-qwen3", "gguf-deepseek-moe", "gguf-deepseek-v2", "gguf-deepseek-v3"];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

fn open(name: &str) -> Gguf {
    gguf::open(&folder(name).join("model.gguf")).unwrap_or_else(|e| panic!("{e}"))
}

fn tensor(of: &Checkpoint, name: &str) -> Tensor {
    let t = of.require(name).unwrap();
    Tensor::from_bytes(t.dtype, t.shape, &t.data().unwrap()).unwrap()
}

/// Random blocks of every format, and their values by the `gguf` package (0.19.0): equal, but for the sign
/// of zeros in e2m1.
#[test]
fn blocks_are_decoded_as_elsewhere() {
    use BlockFormat::*;
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/gguf_blocks.safetensors");
    let vectors = Checkpoint::open(file).unwrap();
    for format in [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, MXFP4] {
        let blocks = vectors.require(&format!("{format:?}.blocks")).unwrap().bytes;
        let values = vectors.require(&format!("{format:?}.values")).unwrap().bytes;
        assert_eq!(blocks.len() % format.shape().bytes, 0);
        let mut found = Vec::new();
        format.decode(blocks, &mut found);
        let expected: Vec<f32> = values.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        assert!(found == expected, "{format:?}");
    }
}

/// What a graph makes of the planes is what the tensor of reals holds, to the bit.
#[test]
fn planes_make_the_same_values() {
    let mut formats = Vec::new();
    for name in FIXTURES {
        let checkpoint = open(name).checkpoint;
        let names: Vec<String> = checkpoint.tensors().map(|(n, _)| n.to_owned()).collect();
        for name in names {
            let Some(packed) = checkpoint.packed(&name) else { continue };
            let values = tensor(&checkpoint, &name);
            let [rows, columns] = values.shape[..] else { panic!("packed weights are matrices") };
            let planes = packed.planes([rows, columns]);
            let plane = |p: Plane| {
                planes.iter().any(|(q, ..)| *q == p).then(|| tensor(&checkpoint, &format!("{name}{}", p.suffix())))
            };
            let over = |small: Plane, large: Plane| {
                let of = plane(small)?;
                let Some(by) = plane(large) else {
                    return Some((of.shape[1], (0..of.len()).map(|i| of.at(i) as f32).collect()));
                };
                let per = of.shape[1] / by.shape[1];
                let product =
                    |i: usize| of.at(i) as f32 * by.at(i / of.shape[1] * by.shape[1] + i % of.shape[1] / per) as f32;
                Some((of.shape[1], (0..of.len()).map(product).collect::<Vec<f32>>()))
            };
            let codes = plane(Plane::Codes).unwrap();
            let (groups, scales) = over(Plane::Scales, Plane::ScalesOver).unwrap();
            let offsets = over(Plane::Offsets, Plane::OffsetsOver);
            for i in 0..codes.len() {
                let group = i / columns * groups + i % columns / packed.group;
                let scaled = codes.at(i) as f32 * scales[group];
                let found = offsets.as_ref().map_or(scaled, |(_, o)| scaled + o[group]);
                assert_eq!(found, values.at(i) as f32, "{name} element {i}, {packed:?}");
            }
            if !formats.contains(&packed) {
                formats.push(packed);
            }
        }
    }
    // Formats of equal planes count once: Q5_0, Q8_0 and IQ4_NL.
    assert_eq!(formats.len(), 11, "{formats:#?}");
}

/// Logits of the graph, interpreted, against those of llama.cpp on the same file, decoded to f32.
#[test]
fn models_agree_with_another_engine() {
    for name in FIXTURES {
        let model = open(name);
        let built = build(&model.config, &model.checkpoint, &BuildOptions::default()).unwrap();
        check(&model.checkpoint, &built.expected_tensors()).unwrap_or_else(|e| panic!("{e}"));
        assert!(built.unread.is_empty(), "{name}: {:?}", built.unread);
        let golden = Checkpoint::open(folder(name).join("golden.safetensors")).unwrap();
        let (ids, expected) = (tensor(&golden, "input_ids"), tensor(&golden, "logits"));
        let tokens = Tensor::int(DType::I32, &ids.shape, ids.ints().to_vec());
        let weights = built.weights(&model.checkpoint);
        let mut it = Interpreter::new(&built.module, &weights);
        let bindings: Bindings = [(Sym::T, ids.len() as i64), (Sym::P, 0)].into();
        let func = &built.module.entry("logits").unwrap().func;
        let logits = it.run(func, "", &[tokens], &bindings).unwrap();
        let worst = logits[0].reals().iter().zip(expected.reals()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(worst <= 2e-4, "{name}: off by {worst:e}");
    }
}

/// A stack whose tensors are packed differently is read as reals.
#[test]
fn stacks_of_one_format_are_read_in_planes() {
    let model = open("gguf-deepseek-v2");
    let weights = CheckpointWeights(&model.checkpoint);
    let name = "model.layers.1.mlp.experts.{0..8}.gate_proj.weight.codes";
    let codes = weights.weight(name, &TensorType::new(DType::I4, [8usize, 32, 64])).unwrap();
    assert!(matches!(codes.data, Data::Int(_)));
    assert!(weights.weight(name, &TensorType::new(DType::I4, [8usize, 32, 32])).is_err());
}

/// A file made by hand.
#[derive(Clone)]
struct File {
    keys: Vec<(&'static str, Vec<u8>)>,
    tensors: Vec<(&'static str, Vec<u64>, u32, u64)>,
    data: usize,
    version: u32,
}

fn text(s: &str) -> Vec<u8> {
    [&(s.len() as u64).to_le_bytes(), s.as_bytes()].concat()
}

fn value(kind: u32, bytes: impl AsRef<[u8]>) -> Vec<u8> {
    [&kind.to_le_bytes(), bytes.as_ref()].concat()
}

fn number(n: u32) -> Vec<u8> {
    value(4, n.to_le_bytes())
}

impl File {
    fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            out.extend(text(key));
            out.extend(value);
        }
        for (name, sizes, format, offset) in &self.tensors {
            out.extend(text(name));
            out.extend((sizes.len() as u32).to_le_bytes());
            sizes.iter().for_each(|n| out.extend(n.to_le_bytes()));
            out.extend(format.to_le_bytes());
            out.extend(offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(32) + self.data, 0);
        out
    }

    fn error(&self) -> String {
        gguf::from_bytes("m.gguf", self.bytes()).expect_err("a bad file").to_string()
    }
}

fn small() -> File {
    let real = |x: f32| value(6, x.to_le_bytes());
    File {
        keys: vec![
            ("general.architecture", value(8, text("llama"))),
            ("llama.block_count", number(1)),
            ("llama.context_length", number(64)),
            ("llama.embedding_length", number(8)),
            ("llama.feed_forward_length", number(32)),
            ("llama.attention.head_count", number(2)),
            ("llama.attention.layer_norm_rms_epsilon", real(1e-5)),
        ],
        tensors: vec![("token_embd.weight", vec![8, 10], 0, 0), ("output_norm.weight", vec![8], 0, 320)],
        data: 352,
        version: 3,
    }
}

#[test]
fn what_is_read_is_in_the_words_of_a_configuration() {
    let model = gguf::from_bytes("m.gguf", small().bytes()).unwrap();
    let o = model.config.object();
    assert_eq!(o.require_usize("vocab_size").unwrap(), 10);
    assert_eq!(o.require_f64("rms_norm_eps").unwrap(), 1e-5);
    assert!(o.bool_or("tie_word_embeddings", false).unwrap() && model.texts.is_none());
    assert_eq!(model.checkpoint.require("model.embed_tokens.weight").unwrap().shape, [10, 8]);
    let mut more = small();
    more.keys.push(("llama.something.new", number(1)));
    let model = gguf::from_bytes("m.gguf", more.bytes()).unwrap();
    let built = build(&model.config, &model.checkpoint, &BuildOptions::default()).unwrap();
    assert_eq!(built.unread, ["llama.something.new"]);
}

#[test]
fn files_that_lie_are_refused_by_name() {
    let with = |change: &dyn Fn(&mut File)| {
        let mut file = small();
        change(&mut file);
        file.error()
    };
    let huge = (u64::MAX / 2).to_le_bytes();
    let cases: [(&str, String); 23] = [
        ("version 2 or 3", with(&|f| f.version = 1)),
        ("big-endian", with(&|f| f.version = 3u32.swap_bytes())),
        ("each key once", with(&|f| f.keys.push(("llama.block_count", number(1))))),
        ("`general.alignment`", with(&|f| f.keys.push(("general.alignment", number(7))))),
        ("the length of `x`", with(&|f| f.keys.push(("x", value(9, [&8u32.to_le_bytes()[..], &huge].concat()))))),
        ("the value of `x`", with(&|f| f.keys.push(("x", value(8, huge))))),
        ("a type for `x`", with(&|f| f.keys.push(("x", number(0).iter().map(|_| 77).collect())))),
        (
            "a type for `x`, found 9",
            with(&|f| {
                f.keys.push(("x", value(9, [9u32.to_le_bytes(), [1, 0, 0, 0], [0; 4], [0; 4], [0; 4]].concat())))
            }),
        ),
        ("tensor `output_norm.weight`: expected each name once", with(&|f| f.tensors.push(f.tensors[1].clone()))),
        ("tensor `output_norm.weight`: expected its bytes within the 352", with(&|f| f.tensors[1].3 = 352)),
        ("tensor `output_norm.weight`: expected its bytes within", with(&|f| f.tensors[1].3 = u64::MAX - 7)),
        ("aligned to 32", with(&|f| f.tensors[1].3 = 316)),
        ("tensor `output_norm.weight`: expected sizes", with(&|f| f.tensors[1].1 = vec![0])),
        ("tensor `output_norm.weight`: expected a size that fits", with(&|f| f.tensors[1].1 = vec![1 << 30; 3])),
        ("1 to 4 axes", with(&|f| f.tensors[1].1 = vec![1; 5])),
        ("rows of whole blocks", with(&|f| f.tensors[1].2 = 12)),
        (
            "tensor `output_norm.weight`: expected bytes of its own, found some that `token_embd.weight` has",
            with(&|f| f.tensors[1].3 = 288),
        ),
        ("`a.weight`: expected bytes of its own", with(&|f| f.tensors.push(("a.weight", vec![8], 0, 320)))),
        (
            "tensor `blk.1.attn_norm.weight`: expected one of 1 layers, found layer 1",
            with(&|f| f.tensors[1].0 = "blk.1.attn_norm.weight"),
        ),
        (
            "tensor `rope_freqs.weight`: expected bytes of its own",
            with(&|f| f.tensors.push(("rope_freqs.weight", vec![2], 0, 0))),
        ),
        (
            "tensor `blk.0.ffn_up_exps.weight`: expected at most 1048576 tensors",
            with(&|f| {
                f.tensors.push(("blk.0.ffn_up_exps.weight", vec![1, 1, 1 << 18], 24, 352));
                f.data += 1 << 18;
            }),
        ),
        ("ggml's format number 16", with(&|f| f.tensors[1].2 = 16)),
        ("`general.architecture`: expected one of llama, qwen2", with(&|f| f.keys[0].1 = value(8, text("gpt2")))),
    ];
    for (wanted, error) in cases {
        assert!(error.contains(wanted) && error.starts_with("m.gguf: "), "{wanted}: {error}");
    }
    let error = with(&|f| f.keys[1].1 = value(8, text("four")));
    assert!(error.contains("`llama.block_count`: expected a whole number, found \"four\""), "{error}");
}

/// A tensor is taken for those of experts where the metadata has so many.
#[test]
fn experts_are_as_many_as_the_metadata_says() {
    let with = |count: u32| {
        let mut file = small();
        file.keys[0].1 = value(8, text("deepseek"));
        file.keys.iter_mut().for_each(|(key, _)| {
            *key = match key.strip_prefix("llama") {
                Some(rest) => format!("deepseek{rest}").leak(),
                None => key,
            };
        });
        for (key, n) in [("expert_count", count), ("expert_used_count", 1), ("expert_feed_forward_length", 1)] {
            file.keys.push((format!("deepseek.{key}").leak(), number(n)));
        }
        file.tensors.push(("blk.0.ffn_up_exps.weight", vec![8, 1, 3], 0, 352));
        file.data += 96;
        let model = gguf::from_bytes("m.gguf", file.bytes()).unwrap_or_else(|e| panic!("{e}"));
        model.checkpoint.tensors().filter(|(name, _)| name.contains(".mlp.experts.")).count()
    };
    assert_eq!([with(3), with(4)], [3, 0]);
}

/// Whether and how frequencies are stretched.
#[test]
fn scaling_is_what_the_type_says() {
    let real = |x: f32| value(6, x.to_le_bytes());
    let with = |kind: Option<&str>, factor: Option<f32>, table: bool| {
        let mut file = small();
        kind.into_iter().for_each(|k| file.keys.push(("llama.rope.scaling.type", value(8, text(k)))));
        factor.into_iter().for_each(|f| file.keys.push(("llama.rope.scaling.factor", real(f))));
        if table {
            // All zeros, which is no known table: what is asked here is seen before.
            file.tensors.push(("rope_freqs.weight", vec![2], 0, 352));
            file.data += 32;
        }
        let model = gguf::from_bytes("m.gguf", file.bytes()).map_err(|e| e.to_string())?;
        let scaling = model.config.object().optional_object("rope_scaling").unwrap();
        Ok::<_, String>(scaling.map(|o| (o.require_str("type").unwrap().to_owned(), o.require_f64("factor").unwrap())))
    };
    let linear = Ok(Some(("linear".into(), 4.0)));
    assert_eq!(with(Some("none"), Some(4.0), false), Ok(None));
    assert_eq!(with(Some("linear"), Some(4.0), false), linear);
    assert_eq!(with(None, Some(4.0), false), linear);
    for factor in [None, Some(0.0), Some(1.0)] {
        assert_eq!(with(Some("linear"), factor, false), Ok(None));
    }
    for (kind, factor, table, words) in [
        (Some("linear"), Some(-4.0), false, "`llama.rope.scaling.factor`: expected a number greater than 0"),
        (Some("longrope"), Some(4.0), false, "`llama.rope.scaling.type`: expected none, linear or yarn"),
        (Some("linear"), Some(4.0), true, "`llama.rope.scaling.factor`: expected 1, as there is a tensor of divisors"),
        (None, Some(4.0), true, "`llama.rope.scaling.factor`: expected 1"),
        (Some("yarn"), None, true, "`llama.rope.scaling.type`: expected none or linear"),
        (Some("none"), Some(4.0), true, "`rope_freqs.weight`"),
        (Some("linear"), Some(1.0), true, "`rope_freqs.weight`"),
    ] {
        let error = with(kind, factor, table).expect_err(words);
        assert!(error.contains(words), "{words}: {error}");
    }
}

#[test]
fn no_part_of_a_file_is_a_file() {
    let whole = small().bytes();
    for n in 0..whole.len() {
        assert!(gguf::from_bytes("m.gguf", whole[..n].to_vec()).is_err(), "{n} of {}", whole.len());
    }
    // Any one byte of the head may be another: refused or read, but never worse.
    for at in 0..whole.len() - 352 {
        for byte in [0, 1, 0x7f, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] = byte;
            if let Ok(model) = gguf::from_bytes("m.gguf", bytes) {
                let _ = build(&model.config, &model.checkpoint, &BuildOptions::default());
            }
        }
    }
}
