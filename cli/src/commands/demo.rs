//! `hadal demo`: the embedded model, from checkpoint to a file that writes.

use crate::commands::compile::{report, write};
use crate::commands::run::generate;
use crate::driver::{Options, compile};
use crate::failure::Failure;
use crate::input::Input;
use crate::units;
use std::path::PathBuf;
use std::time::Instant;

/// Compile the small model that comes with hadal into one file, and let it write.
#[derive(clap::Args)]
#[command(after_help = "Example: hadal demo --output tales && ./tales generate --prompt \"In a great forest\" -n 100")]
pub struct Args {
    /// The file to write [default: hadal-demo in the folder for temporary files].
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// What the story begins with.
    #[arg(long, default_value = "Once upon a time there lived a king")]
    prompt: String,
    /// Tokens to write.
    #[arg(short, default_value_t = 120)]
    n: u32,
    /// Seed of the random choices.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    let start = Instant::now();
    let input = Input::demo()?;
    let output = args.output.clone().unwrap_or_else(|| std::env::temp_dir().join("hadal-demo"));
    say!("Compiling the embedded model, a small DeepSeek-V3 trained on fairy tales:")?;
    let compiled = compile(&input, &Options::default())?;
    say!("{}", report(&compiled).trim_end())?;
    let size = write(&compiled, &input, &output)?;
    let seconds = start.elapsed().as_secs_f64();
    say!("  file       {} ({}) in {}", output.display(), units::bytes(size as f64), units::seconds(seconds))?;
    say!("\n$ {} generate --prompt {:?} -n {} --seed {}", output.display(), args.prompt, args.n, args.seed)?;
    let n = args.n.to_string();
    let seed = args.seed.to_string();
    let words = ["--prompt", &args.prompt, "-n", &n, "--seed", &seed];
    generate(&output, &words.map(str::to_owned))
}
