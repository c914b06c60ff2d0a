//! `hadal run`: compile in memory and generate.

use crate::driver::compile;
use crate::failure::{Code, Failure};
use crate::input::Input;
use crate::options::CompileArgs;
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
    DeepSeek-R1-Distill-Qwen-1.5B --chat \"Why is the sky blue?\" -n 256 --temperature 0.6\n\nOptions after the path \
    that are not listed here go to `generate`; see `FILE generate --help`."
)]
pub struct Args {
    /// A checkpoint folder.
    path: PathBuf,
    #[command(flatten)]
    compile: CompileArgs,
    /// Arguments of `generate`: --prompt TEXT or --chat TEXT, -n N, --temperature, --seed, --threads, …
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true, value_name = "GENERATE OPTIONS")]
    generate: Vec<String>,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    let input = Input::open(&args.path)?;
    if input.checkpoint.is_none() {
        let help = "give the folder with the weights";
        return Err(Failure::input(format!("{}: a configuration without weights", args.path.display())).help(help));
    }
    let options = crate::Options { external_weights: true, ..args.compile.options() };
    let compiled = compile(&input, &options)?;
    let (_file, path) = compiled.in_memory(&input)?;
    generate(&path, &args.generate)
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
            let help = "options of the compiler, such as --max-context, stand before those of `generate`".to_owned();
            let help = (code == Code::Usage).then_some(help);
            Err(Failure { code, message: "the compiled program stopped, see above".into(), help })
        }
        None => Err(Failure::failed(format!("the compiled program was ended: {status}"))),
        _ => Err(Failure::internal("running the compiled program", status)),
    }
}
