//! What a user points at: a checkpoint folder, a GGUF file, a bare `config.json`, or the embedded demo.

use crate::failure::Failure;
use hadal_artifact::{SamplingDefaults, blob};
use hadal_models::Vocabulary;
use hadal_models::checkpoint::{Checkpoint, Quantize};
use hadal_models::config_reader::{Config, Object};
use hadal_models::gguf::{self, Gguf};
use std::io::Read;
use std::path::{Path, PathBuf};

/// A model on disk or in memory, not yet compiled.
pub struct Input {
    /// The folder's name.
    pub name: String,
    /// Its configuration.
    pub config: Config,
    /// Its tensors; a bare configuration has none.
    pub checkpoint: Option<Checkpoint>,
    /// Tokenizer, template and the like, as they are.
    pub blobs: Vec<(String, Vec<u8>)>,
    /// How it asks to be sampled.
    pub sampling: SamplingDefaults,
    /// Tokens that end generation, where `generation_config.json` says.
    pub stop: Vec<u32>,
    /// Its tokenizer, for models that depend on it.
    pub vocabulary: Option<Vocabulary>,
}

/// Files carried along unchanged.
const BLOBS: [&str; 4] = [blob::TOKENIZER, blob::TOKENIZER_CONFIG, blob::CHAT_TEMPLATE, blob::GENERATION_CONFIG];
/// Longest file carried along: the largest published tokenizer has 20 MB.
const MAX_BLOB: u64 = 256 << 20;

impl Input {
    /// Opens a folder with a checkpoint, a GGUF file, or a configuration alone.
    pub fn open(path: &Path) -> Result<Input, Failure> {
        if !path.exists() {
            return Err(Failure::input(format!("{}: no such file or folder", path.display())));
        }
        if path.is_file() {
            if is_gguf(path) {
                return Input::open_gguf(path);
            }
            let json = path.extension().is_some_and(|e| e == "json");
            if !json {
                let help =
                    "give the folder that holds config.json and the safetensors files, a GGUF file, or a config.json";
                return Err(Failure::input(format!("{}: not a checkpoint folder", path.display())).help(help));
            }
            let name = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
            return Input::new(name, path, Config::read(path)?, None, Vec::new());
        }
        if let Some(file) = only_gguf(path) {
            return Input::open_gguf(&file);
        }
        let config = Config::read(path)?;
        let checkpoint = Checkpoint::open(path)?;
        let mut blobs = Vec::new();
        for name in BLOBS {
            let file = path.join(name);
            let Ok(metadata) = file.metadata() else { continue };
            if metadata.len() > MAX_BLOB {
                return Err(Failure::input(format!("{}: {} bytes is too long", file.display(), metadata.len())));
            }
            let bytes = std::fs::read(&file).map_err(|e| Failure::input(format!("{}: {e}", file.display())))?;
            blobs.push((name.to_owned(), bytes));
        }
        let name = path.canonicalize().ok().and_then(|p| Some(p.file_name()?.to_string_lossy().into_owned()));
        Input::new(name.unwrap_or_else(|| "model".into()), path, config, Some(checkpoint), blobs)
    }

    fn open_gguf(path: &Path) -> Result<Input, Failure> {
        let Gguf { config, checkpoint, texts } = gguf::open(path)?;
        let blobs = texts.map_or_else(Vec::new, |t| {
            vec![(blob::TOKENIZER.to_owned(), t.tokenizer), (blob::TOKENIZER_CONFIG.to_owned(), t.config)]
        });
        let name = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        Input::new(name, path, config, Some(checkpoint), blobs)
    }

    /// This model with its matrices rounded to few bits, where asked for.
    pub fn quantized(self, to: Option<Quantize>) -> Result<Input, Failure> {
        let Some(to) = to else { return Ok(self) };
        let Some(checkpoint) = self.checkpoint else {
            return Err(Failure::usage("--quantize needs a checkpoint, and a configuration has no weights"));
        };
        let o = self.config.object();
        let vocab = o.optional_usize("vocab_size").ok().flatten();
        let block = o.optional_object("quantization_config")?.map(|q| q.usize_list("weight_block_size")).transpose()?;
        let block = block.flatten().and_then(|b| <[usize; 2]>::try_from(b).ok()).unwrap_or([128, 128]);
        let (checkpoint, count) = checkpoint.rounded(to, vocab, block.map(|b| b.max(1)));
        if count == 0 {
            let help = "formats that can be rounded are f32, bf16, f16 and block-scaled e4m3, with rows of whole bytes";
            return Err(Failure::input(format!("{}: no weight to quantise", self.name)).help(help));
        }
        Ok(Input { checkpoint: Some(checkpoint), ..self })
    }

    /// The small trained model that comes with hadal.
    pub fn demo() -> Result<Input, Failure> {
        macro_rules! file {
            ($name:literal) => {
                include_bytes!(concat!("../../models/demo/", $name)).as_slice()
            };
        }
        let config = Config::parse("config.json (embedded)", file!("config.json"))?;
        let checkpoint = Checkpoint::from_memory([
            ("model-00001-of-000002.safetensors", file!("model-00001-of-000002.safetensors")),
            ("model-00002-of-000002.safetensors", file!("model-00002-of-000002.safetensors")),
        ])?;
        let blobs = vec![
            (blob::TOKENIZER.to_owned(), file!("tokenizer.json").to_vec()),
            (blob::TOKENIZER_CONFIG.to_owned(), file!("tokenizer_config.json").to_vec()),
            (blob::GENERATION_CONFIG.to_owned(), file!("generation_config.json").to_vec()),
        ];
        Input::new("hadal-demo".into(), Path::new("(embedded)"), config, Some(checkpoint), blobs)
    }

    /// `place` is for messages.
    fn new(
        name: String,
        place: &Path,
        config: Config,
        checkpoint: Option<Checkpoint>,
        blobs: Vec<(String, Vec<u8>)>,
    ) -> Result<Input, Failure> {
        let (mut sampling, mut stop) = (SamplingDefaults::default(), Vec::new());
        for (file, bytes) in blobs.iter().filter(|(n, _)| n.ends_with(".json")) {
            let path = place.join(file);
            // What is in them is used when the compiled file runs; that it can be is seen now, as far as is simple.
            match file.as_str() {
                blob::TOKENIZER => {
                    Config::parse_within(path, bytes, MAX_BLOB)?.object().require_object("model")?;
                }
                blob::GENERATION_CONFIG => {
                    // Where there is none that can be read, the model's own reader says so.
                    let vocab = config.object().optional_usize("vocab_size").ok().flatten();
                    (sampling, stop) = generation_defaults(&Config::parse(path, bytes)?.object(), vocab)?;
                }
                _ => drop(Config::parse(path, bytes)?),
            }
        }
        let tokenizer = blobs.iter().find(|(n, _)| n == blob::TOKENIZER);
        let vocabulary = tokenizer.map(|(_, bytes)| Vocabulary::Tokenizer(bytes.as_slice().into()));
        Ok(Input { name, config, checkpoint, blobs, sampling, stop, vocabulary })
    }
}

/// Whether a file is called a GGUF file, or begins like one, whatever it is called.
pub fn is_gguf(path: &Path) -> bool {
    let begins = || {
        let mut first = [0; 4];
        std::fs::File::open(path).and_then(|mut f| f.read_exact(&mut first)).is_ok() && &first == b"GGUF"
    };
    path.extension().is_some_and(|e| e == "gguf") || begins()
}

/// The GGUF file of a folder that holds one, or the first of a set, and no configuration.
fn only_gguf(dir: &Path) -> Option<PathBuf> {
    let all = std::fs::read_dir(dir).ok()?.filter_map(|e| Some(e.ok()?.path()));
    let mut found: Vec<PathBuf> = all.filter(|p| p.extension().is_some_and(|e| e == "gguf")).collect();
    found.sort();
    let name = |p: &PathBuf| p.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let single = found.len() == 1 || found.first().is_some_and(|p| name(p).contains("-00001-of-"));
    found.into_iter().next().filter(|_| single && !dir.join("config.json").exists())
}

/// Reads `generation_config.json`: `do_sample: false` means greedy whatever else it says.
fn generation_defaults(o: &Object, vocab: Option<usize>) -> Result<(SamplingDefaults, Vec<u32>), Failure> {
    let real = |key, expected: &str, usable: &dyn Fn(f32) -> bool| -> Result<Option<f32>, Failure> {
        let value = o.optional_f64(key)?.map(|v| v as f32);
        if value.is_none_or(usable) { Ok(value) } else { Err(o.error(key, expected).into()) }
    };
    let mut sampling = SamplingDefaults {
        temperature: real("temperature", "a number from 0", &|t| t.is_finite() && t >= 0.0)?,
        top_k: o.optional_usize_in("top_k", 0..=u32::MAX as usize)?.map(|k| k as u32).filter(|k| *k > 0),
        top_p: real("top_p", "a number above 0 and at most 1", &|p| p > 0.0 && p <= 1.0)?,
        min_p: real("min_p", "a number from 0 to 1", &|p| (0.0..=1.0).contains(&p))?,
    };
    if !o.bool_or("do_sample", sampling.temperature.is_some())? {
        sampling = SamplingDefaults { temperature: Some(0.0), ..SamplingDefaults::default() };
    }
    let stop = o.token_ids("eos_token_id", vocab.unwrap_or(u32::MAX as usize))?.unwrap_or_default();
    Ok((sampling, stop.into_iter().map(|id| id as u32).collect()))
}
