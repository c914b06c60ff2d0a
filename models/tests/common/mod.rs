//! What the tests against recorded tensors share: a fixture as a model with its weights, and the graph interpreter on
//! it.

use hadal_ir::interpret::Interpreter;
use hadal_ir::{Bindings, Sym, Tensor};
use hadal_models::checkpoint::{Checkpoint, check};
use hadal_models::config_reader::Config;
use hadal_models::{BuildOptions, Model, ModelWeights, Vocabulary, build};
use hadal_types::DType;
use std::ops::Index;
use std::path::{Path, PathBuf};

/// An interpreter of a fixture's graph.
pub type Running<'a> = Interpreter<'a, ModelWeights<'a>>;

/// A checkpoint, what was recorded of it, and the model that it is.
pub struct Fixture {
    pub checkpoint: Checkpoint,
    pub golden: Checkpoint,
    pub model: Model,
    pub tolerance: f64,
}

/// The folder of a fixture.
pub fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

/// A recorded tensor.
pub fn recorded(golden: &Checkpoint, name: &str) -> Tensor {
    let t = golden.require(name).unwrap();
    Tensor::from_bytes(t.dtype, t.shape, t.bytes).unwrap()
}

impl Fixture {
    /// Builds the model as `options` say, with the fixture's tokenizer where they have none, and checks it.
    pub fn open(name: &str, options: BuildOptions) -> Fixture {
        let dir = folder(name);
        let tokenizer = std::fs::read(dir.join("tokenizer.json")).ok();
        let tokenizer = tokenizer.map(|json| Vocabulary::Tokenizer(json.into()));
        let options = BuildOptions { vocabulary: options.vocabulary.or(tokenizer), ..options };
        let (config, checkpoint) = (Config::read(&dir).unwrap(), Checkpoint::open(&dir).unwrap());
        let model = build(&config, &checkpoint, &options).unwrap();
        hadal_ir::verify::module(&model.module).unwrap();
        check(&checkpoint, &model.expected_tensors()).unwrap();
        assert!(model.unread.is_empty(), "{:?}", model.unread);
        let golden = Checkpoint::open(dir.join("golden.safetensors")).unwrap();
        let facts = std::fs::read(dir.join("golden.json")).unwrap();
        let facts: serde_json::Value = serde_json::from_slice(&facts).unwrap();
        // The demo's expectations name no bound of their own: take the fixtures'.
        let tolerance = facts["tolerance"]["atol_f32"].as_f64().unwrap_or(2e-4);
        Fixture { checkpoint, golden, model, tolerance }
    }

    /// A recorded tensor.
    pub fn golden(&self, name: &str) -> Tensor {
        recorded(&self.golden, name)
    }

    /// Recorded tokens.
    pub fn tokens(&self, name: &str) -> Vec<i64> {
        self.golden(name).ints().to_vec()
    }

    #[track_caller]
    pub fn compare(&self, what: &str, found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len(), "{what}");
        let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(worst <= self.tolerance, "{what}: off by {worst:e}, allowed {:e}", self.tolerance);
    }

    /// The weights that an interpreter reads.
    pub fn weights(&self) -> ModelWeights<'_> {
        self.model.weights(&self.checkpoint)
    }

    /// An interpreter with empty states.
    pub fn start<'a>(&'a self, weights: &'a ModelWeights<'a>) -> Running<'a> {
        Interpreter::new(&self.model.module, weights)
    }

    /// Runs an entry for `new` tokens after `past` others.
    pub fn run(&self, it: &mut Running<'_>, entry: &str, [past, new]: [usize; 2], args: &[Tensor]) -> Results {
        let bindings: Bindings = [(Sym::T, new as i64), (Sym::P, past as i64)].into();
        let func = &self.model.module.entry(entry).unwrap().func;
        let names = self.model.module.func(func).unwrap().results.iter().map(|(n, _)| n.clone());
        Results(names.zip(it.run(func, "", args, &bindings).unwrap()).collect())
    }

    /// Runs an entry on `tokens` alone.
    pub fn read(&self, it: &mut Running<'_>, entry: &str, past: usize, tokens: &[i64]) -> Results {
        self.run(it, entry, [past, tokens.len()], &[ids(tokens)])
    }
}

/// What an entry gave, by name.
pub struct Results(pub Vec<(String, Tensor)>);

impl Index<&str> for Results {
    type Output = Tensor;
    fn index(&self, name: &str) -> &Tensor {
        &self.0.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("no result {name}")).1
    }
}

/// Tokens as they are passed.
pub fn ids(tokens: &[i64]) -> Tensor {
    Tensor::int(DType::I32, &[tokens.len()], tokens.to_vec())
}

/// The place of the largest.
pub fn argmax(row: &[f64]) -> i64 {
    (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap() as i64
}
