//! Arguments that several commands share.

use crate::cache::Cache;
use crate::driver::Options;
use crate::failure::Failure;
use crate::input::Input;
use crate::tuning::{self, Tuning};
use crate::units;
use hadal_codegen::processor::Processor;
use hadal_models::checkpoint::{Checkpoint, Quantize, WeightOnly};
use hadal_models::{Activations, AttnFactor, Model};
use hadal_passes::{LawSet, rules};
use hadal_types::DType;
use std::path::{Path, PathBuf};

/// What to compile for.
#[derive(clap::Args, Clone, Debug)]
pub struct CompileArgs {
    /// The machine, or the architecture of a GPU, or several of them for one file: `sm_90a,cpu`. Costs are counted for
    /// the first; what the machine at hand has is taken when the file starts, GPUs first.
    #[arg(long, default_value = "cpu", value_name = "TARGET,…")]
    pub target: String,
    /// Most tokens a sequence can hold, as 4096 or 4k [default: the model's own limit, at most 4096].
    #[arg(long, value_name = "TOKENS", value_parser = units::context)]
    pub max_context: Option<u32>,
    /// Most tokens of a prompt that are run at once.
    #[arg(long, value_name = "TOKENS", default_value_t = 512, value_parser = units::chunk)]
    pub max_chunk: u32,
    /// How to read a non-standard `rope_scaling.attn_factor` (R1-0528-Qwen3).
    #[arg(long, value_enum, default_value_t = AttnFactorArg::Ignore)]
    pub attn_factor: AttnFactorArg,
    /// What products read; `cache` rounds what states keep instead.
    #[arg(long, value_enum, default_value_t = ActivationsArg::F32)]
    pub activations: ActivationsArg,
    /// In what format states (keys, values, latent rows) are kept.
    #[arg(long, value_enum, default_value_t = StateArg::F32)]
    pub state_dtype: StateArg,
    /// Processors to make code for: `all` that this build knows of this machine's architecture, `here` for the best
    /// level of this machine only, or names as `x86-64-v3`. The best one that a processor has is taken when the file
    /// starts.
    #[arg(long, value_name = "LEVEL,…", value_delimiter = ',', default_value = "all", value_parser = levels)]
    pub cpu: Vec<Levels>,
    /// Choose among kernels that give the same bits by measurements: `quick` takes those that are missing on this
    /// machine, a minute or so, `stored` takes what the database has [default: the generators' own choice].
    #[arg(long, value_enum)]
    pub tune: Option<TuneArg>,
    /// The database of measurements; by itself it means `--tune stored` [default: hadal/tuning.json in the user's cache
    /// folder].
    #[arg(long, value_name = "FILE")]
    pub tuning: Option<PathBuf>,
    /// Make all machine code anew instead of taking it from the cache (see `hadal cache`).
    #[arg(long)]
    pub no_cache: bool,
    /// Which laws may be used.
    #[command(flatten)]
    pub laws: LawArgs,
}

/// Where measurements come from.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum TuneArg {
    /// What the database does not hold is measured.
    Quick,
    /// Only the database.
    Stored,
}

/// Levels of processors that go by one name.
pub type Levels = Vec<Processor>;

fn levels(name: &str) -> Result<Levels, String> {
    let all = hadal_codegen::levels();
    match name {
        "all" => Ok(Options::default().levels),
        "here" => Ok(Options::default().here().levels),
        _ => all.iter().find(|l| l.name == name).map(|l| vec![*l]).ok_or_else(|| {
            let names: Vec<&str> = all.iter().map(|l| l.name).collect();
            let more = if Processor::LEVELS.iter().any(|l| l.name == name) {
                "; this one needs a build with `--features llvm`"
            } else {
                ""
            };
            format!("there is `all`, `here`, {}{more}", names.join(", "))
        }),
    }
}

/// Which laws the optimiser may use.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct LawArgs {
    /// A law that the optimiser must do without. May be given several times.
    #[arg(long, value_name = "LAW", value_parser = law)]
    pub without_law: Vec<&'static str>,
}

impl LawArgs {
    /// The laws.
    pub fn set(&self) -> LawSet {
        LawSet::default().without(self.without_law.iter().copied()).expect("names of laws")
    }
}

fn law(name: &str) -> Result<&'static str, String> {
    rules::law(name).map(|r| r.name).ok_or_else(|| match &near_laws(name)[..] {
        [] => "there is no such law; the book lists them all".to_owned(),
        near => format!("there is no such law; near are {}", near.join(", ")),
    })
}

/// Laws with names like `name`: those that hold it, or else those that share the most words with it.
pub fn near_laws(name: &str) -> Vec<&'static str> {
    let all = || rules::all().map(|r| r.name);
    let hold: Vec<&str> = all().filter(|law| law.contains(name)).collect();
    if !hold.is_empty() && !name.is_empty() {
        return hold;
    }
    let shared = |law: &str| name.split('-').filter(|w| w.len() > 2 && law.split('-').any(|l| l == *w)).count();
    let most = all().map(shared).max().filter(|most| *most > 0);
    all().filter(|law| most == Some(shared(law))).collect()
}

/// Which tensors to compile.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct AdapterArgs {
    /// A folder with tensors that replace those of the checkpoint by name, as ESFT publishes its experts.
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// How weights are rounded.
    #[command(flatten)]
    pub rounding: QuantizeArgs,
}

/// How weights are rounded.
#[derive(clap::Args, Clone, Copy, Debug, Default)]
pub struct QuantizeArgs {
    /// Round the weights of products to int8, int4 or fp8 (e4m3), with a scale for every GROUP neighbours of a row.
    /// Embeddings and output heads are rounded to eight bits with any of them; norms and routers stay as they are.
    #[arg(long, value_name = "int8|int4|fp8[:GROUP]", value_parser = weight_only)]
    pub quantize: Option<WeightOnly>,
    /// With --quantize: embeddings and output heads stay as they are.
    #[arg(long, requires = "quantize")]
    pub keep_embeddings: bool,
}

impl QuantizeArgs {
    /// What is rounded, if anything is.
    pub fn choice(&self) -> Option<Quantize> {
        let all = Quantize::from(self.quantize?);
        Some(if self.keep_embeddings { Quantize { words: None, ..all } } else { all })
    }
}

/// Neighbours that share a scale where nobody says.
const GROUP: usize = 128;

fn weight_only(text: &str) -> Result<WeightOnly, String> {
    let (format, group) = text.split_once(':').map_or((text, None), |(f, g)| (f, Some(g)));
    let codes = match format {
        "int8" => DType::I8,
        "int4" => DType::I4,
        "fp8" => DType::F8E4M3,
        _ => return Err("expected int8, int4 or fp8, perhaps with a group: int4:64".into()),
    };
    let usable = |g: &usize| (16..=4096).contains(g) && g.is_power_of_two();
    let group = group.map(|g| g.parse().ok().filter(usable).ok_or("a group is a power of two from 16 to 4096"));
    Ok(WeightOnly { codes, group: group.transpose()?.unwrap_or(GROUP) })
}

impl AdapterArgs {
    /// Opens `path`, with the adapter's tensors in place where one is given, and weights rounded where asked for.
    pub fn open(&self, path: &Path) -> Result<Input, Failure> {
        let input = Input::open(path)?;
        let Some(folder) = &self.adapter else { return input.quantized(self.rounding.choice()) };
        let Some(checkpoint) = input.checkpoint else {
            return Err(Failure::usage(format!("--adapter needs a checkpoint, and {} has no weights", path.display())));
        };
        let checkpoint = checkpoint.with_adapter(Checkpoint::open(folder)?)?;
        Input { checkpoint: Some(checkpoint), ..input }.quantized(self.rounding.choice())
    }
}

/// The two readings in use.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum AttnFactorArg {
    /// As transformers does: the key is not known, the magnitude is 0.1·ln(factor) + 1.
    Ignore,
    /// As it was meant: it multiplies that magnitude (to 1.0 in the one release that has it).
    Apply,
}

impl ActivationsArg {
    /// The choice as the models' builder takes it.
    pub fn activations(self) -> Activations {
        match self {
            ActivationsArg::F32 => Activations::F32,
            ActivationsArg::Bf16 => Activations::Bf16,
            ActivationsArg::Int8 => Activations::Int8,
            ActivationsArg::Cache => Activations::Cache,
            ActivationsArg::Fp8 => Activations::Fp8,
        }
    }
}

/// Formats that states are compiled in.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum StateArg {
    /// Four bytes an element.
    F32,
    /// Two: half the memory, and half of what attention reads.
    Bf16,
}

/// Formats that states are costed in.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum StateDtypeArg {
    /// Four bytes an element.
    F32,
    /// Two.
    Bf16,
    /// One, scales not counted.
    Fp8,
}

impl StateDtypeArg {
    /// The format.
    pub fn dtype(self) -> DType {
        match self {
            StateDtypeArg::F32 => DType::F32,
            StateDtypeArg::Bf16 => DType::BF16,
            StateDtypeArg::Fp8 => DType::F8E4M3,
        }
    }
}

/// Formats that inputs of products can have.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum ActivationsArg {
    /// As they are.
    F32,
    /// Inputs of products with narrow weights are rounded to bf16, which processors with such instructions multiply
    /// faster.
    Bf16,
    /// Inputs of products with weights of eight bits or four (--quantize, GGUF) are rounded to integers of eight bits
    /// with a scale for each 32 to 128 neighbours, which processors with such instructions multiply faster; of others,
    /// as with bf16.
    Int8,
    /// What states keep is kept in the formats of the release, where it has any.
    Cache,
    /// Rounded to e4m3 with a scale for each row and block, as the releases' own code does.
    Fp8,
}

impl CompileArgs {
    /// Says on standard error where more is asked for than the model was made for.
    pub fn note(&self, model: &Model) {
        if let Some(asked) = self.max_context.filter(|n| *n as usize > model.max_position) {
            let limit = model.max_position;
            eprintln!("note: --max-context {asked} is beyond the {limit} tokens that the model was made for");
        }
    }

    /// The levels asked for, those to be preferred first, each once.
    fn levels(&self) -> Vec<Processor> {
        let asked = |l: &Processor| self.cpu.iter().flatten().any(|a| a == l);
        hadal_codegen::levels().into_iter().filter(asked).collect()
    }

    /// The driver's options.
    pub fn options(&self) -> Options {
        Options {
            max_context: self.max_context.map(|n| n as usize),
            max_chunk: self.max_chunk as usize,
            target: self.target.clone(),
            attn_factor: match self.attn_factor {
                AttnFactorArg::Ignore => AttnFactor::Ignore,
                AttnFactorArg::Apply => AttnFactor::Apply,
            },
            activations: self.activations.activations(),
            state_dtype: match self.state_dtype {
                StateArg::F32 => DType::F32,
                StateArg::Bf16 => DType::BF16,
            },
            laws: self.laws.set(),
            levels: self.levels(),
            tuning: (self.tune.is_some() || self.tuning.is_some()).then(|| Tuning {
                file: self.tuning.clone().unwrap_or_else(tuning::default_file),
                measure: self.tune == Some(TuneArg::Quick),
            }),
            cache: if self.no_cache { None } else { Cache::of_user() },
            ..Options::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_of_few_bits() {
        assert_eq!(weight_only("int8"), Ok(WeightOnly { codes: DType::I8, group: 128 }));
        assert_eq!(weight_only("int4:32"), Ok(WeightOnly { codes: DType::I4, group: 32 }));
        assert_eq!(weight_only("fp8:64"), Ok(WeightOnly { codes: DType::F8E4M3, group: 64 }));
        assert!(weight_only("int3").unwrap_err().contains("int8, int4 or fp8"));
        for bad in ["int4:", "int4:8", "int4:100", "int4:-1"] {
            assert!(weight_only(bad).unwrap_err().contains("power of two"));
        }
    }

    #[test]
    fn laws_are_named_in_full_and_near_ones_are_known() {
        assert_eq!(law("nest-contractions"), Ok("nest-contractions"));
        assert!(law("nest").unwrap_err().contains("nest-contractions"));
        assert!(law("nested-contractions").unwrap_err().contains("nest-contractions"));
        assert!(near_laws("").is_empty() && near_laws("no-such-thing").is_empty());
        let args = LawArgs { without_law: vec!["nest-contractions"] };
        assert_eq!(args.set().with(["nest-contractions"]).unwrap(), LawSet::default());
    }
}
