//! `hadal run`: compile in memory and generate.

use crate::driver::compile;
use crate::failure::{Code, Failure};
use crate::options::{AdapterArgs, CompileArgs};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Compile in memory and generate text.
///
/// The same as `hadal compile` followed by `FILE generate`, without a file: tensors stay in the checkpoint's own files
/// where they need no change.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  hadal run DeepSeek-R1-Distill-Qwen-1.5B --prompt \"The sea is\" -n 64\n  hadal run \
    DeepSeek-R1-Distill-Qwen-1.5B --chat \"Why is the sky blue?\" -n 256 --temperature 0.6 --max-context 1024\n\nSampling settings that are not given are \
    taken from the checkpoint."
)]
pub struct Args {
    /// A checkpoint folder.
    path: PathBuf,
    #[command(flatten)]
    adapter: AdapterArgs,
    #[command(flatten)]
    compile: CompileArgs,
    #[command(flatten)]
    generate: GenerateArgs,
}

/// What is handed on to the compiled program, which looks at the values again.
#[derive(clap::Args)]
#[command(next_help_heading = "Generating")]
struct GenerateArgs {
    #[command(flatten)]
    prompt: Prompt,
    /// System message before --chat.
    #[arg(long, value_name = "TEXT", requires = "chat", conflicts_with_all = ["prompt", "prompt_file", "tokens"])]
    system: Option<String>,
    /// Most tokens to generate.
    #[arg(short, long, value_name = "N", default_value_t = 256, allow_negative_numbers = true)]
    n: u32,
    /// 0 always takes the likeliest token.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    temperature: Option<f32>,
    /// Keep the N likeliest tokens, 0 for all.
    #[arg(long, value_name = "N")]
    top_k: Option<u32>,
    /// Keep the likeliest tokens that together reach this probability.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    top_p: Option<f32>,
    /// Keep tokens at least this fraction as likely as the likeliest.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    min_p: Option<f32>,
    /// Seed of the random numbers; a new one each time unless given.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Tokens to draft for a step, where the model can; auto for as many as pay, 0 for none. The text stays the same.
    #[arg(long, value_name = "N")]
    draft: Option<String>,
    /// Threads, 0 for one per core.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1024))]
    threads: Option<u32>,
    /// Do not end at the model's stop tokens.
    #[arg(long)]
    ignore_stop: bool,
    /// Print one JSON object at the end instead of text.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Prompt {
    /// Text to continue.
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// File with the text to continue.
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<String>,
    /// Message to answer, put into the model's chat template.
    #[arg(long, value_name = "TEXT")]
    chat: Option<String>,
    /// Token ids to continue, separated by commas.
    #[arg(long, value_name = "IDS")]
    tokens: Option<String>,
}

impl GenerateArgs {
    /// As words of a command line.
    fn words(&self) -> Vec<String> {
        fn word(name: &str, value: &Option<impl ToString>) -> Option<String> {
            value.as_ref().map(|v| format!("--{name}={}", v.to_string()))
        }
        let flag = |name: &str, set: bool| set.then(|| format!("--{name}"));
        let words = [
            word("prompt", &self.prompt.prompt),
            word("prompt-file", &self.prompt.prompt_file),
            word("chat", &self.prompt.chat),
            word("tokens", &self.prompt.tokens),
            word("system", &self.system),
            word("n", &Some(self.n)),
            word("temperature", &self.temperature),
            word("top-k", &self.top_k),
            word("top-p", &self.top_p),
            word("min-p", &self.min_p),
            word("seed", &self.seed),
            word("draft", &self.draft),
            word("threads", &self.threads),
            flag("ignore-stop", self.ignore_stop),
            flag("json", self.json),
        ];
        words.into_iter().flatten().collect()
    }
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    let input = args.adapter.open(&args.path)?;
    if input.checkpoint.is_none() {
        let help = "give the folder with the weights";
        return Err(Failure::input(format!("{}: a configuration without weights", args.path.display())).help(help));
    }
    let options = crate::Options { external_weights: true, ..args.compile.options().here() };
    let compiled = compile(&input, &options)?;
    args.compile.note(&compiled.model);
    let (_file, path) = compiled.in_memory(&input)?;
    generate(&path, &args.generate.words())
}

/// Starts a compiled file's `generate` and waits for it.
pub fn generate(program: &Path, args: &[String]) -> Result<(), Failure> {
    // Its own complaints name it so.
    let status = Command::new(program).arg0("model").arg("generate").args(args).status();
    let status = status.map_err(|e| Failure::failed(format!("cannot start the compiled program: {e}")))?;
    match status.code() {
        Some(0) => Ok(()),
        // The program has said what is wrong.
        Some(code @ 1..=3) => {
            let code = [Code::Failed, Code::Usage, Code::BadInput][code as usize - 1];
            Err(Failure { code, message: "the compiled program stopped, see above".into(), help: None })
        }
        None => Err(Failure::failed(format!("the compiled program was ended: {status}"))),
        _ => Err(Failure::internal("running the compiled program", status)),
    }
}
