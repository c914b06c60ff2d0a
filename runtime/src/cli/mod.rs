//! The commands of a compiled file: `generate`, `logits`, `perplexity`, `bench`, `info`.
//!
//! Results go to standard output, timings and complaints to standard error, and the exit status tells what kind of
//! failure it was (see [`Failure`]). The compiler's own `run` uses the same commands on a program in memory.

mod batch;
mod bench;
mod generate;
mod info;
mod kernels;
mod logits;
mod perplexity;

pub use bench::BenchArgs;
pub use generate::{GenerateArgs, SamplingArgs};
pub use info::InfoArgs;
pub use logits::LogitsArgs;
pub use perplexity::PerplexityArgs;

use crate::{DeviceChoice, Error, Program};
use clap::{CommandFactory, Parser, Subcommand};
use std::fmt;
use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

/// A compiled language model in one file.
#[derive(Parser)]
#[command(
    version,
    about = "A compiled language model: this file holds the machine code, the weights and the tokenizer.",
    after_help = "Examples:
  ./model generate --prompt 'Once upon a time' -n 64
  ./model generate --chat 'Why is the sky blue?' --temperature 0.6 --seed 1
  ./model logits --tokens 0,17,42 --out logits.safetensors
  ./model perplexity book.txt
  ./model bench --prompt-len 128 -n 64 --json
  ./model info --verify
  ./model generate --device cpu --prompt 'Once upon a time'

Exit status: 0 success, 1 failure while running, 2 wrong usage, 3 this file, its weights file or a file given cannot
be used.",
    subcommand_required = true,
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// What runs it: `auto` for the first that this file holds code for and that is there, `cpu`, `cuda`, or a GPU by
    /// its number as `cuda:1`
    #[arg(long, global = true, default_value = "auto", value_name = "DEVICE")]
    device: DeviceChoice,
}

/// What to do with a compiled model.
#[derive(Subcommand)]
pub enum Command {
    /// Continue a text or answer a message, writing as it goes
    Generate(GenerateArgs),
    /// Write the logits of every token of a sequence to a safetensors file
    Logits(LogitsArgs),
    /// Say how well the model foresees a text
    Perplexity(PerplexityArgs),
    /// Measure the speed of prompts and of generation
    Bench(BenchArgs),
    /// Say what is in this file
    Info(InfoArgs),
}

/// Why a command failed; decides the exit status.
#[derive(Debug)]
pub enum Failure {
    /// Something went wrong while running: status 1.
    Run(Error),
    /// A file that was given cannot be used: status 3.
    Input {
        /// The file.
        file: std::path::PathBuf,
        /// Why not.
        reason: String,
    },
    /// A stream or file could not be written: status 1.
    Io {
        /// The file, or the stream's name.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// Arguments that do not go together, or with this model: status 2.
    Usage(String),
    /// The compiled file cannot be used: status 3.
    File(Error),
}

impl Failure {
    /// The exit status.
    pub fn status(&self) -> u8 {
        match self {
            Failure::Run(_) | Failure::Io { .. } => 1,
            Failure::Usage(_) => 2,
            Failure::File(_) | Failure::Input { .. } => 3,
        }
    }

    /// Nobody reads our output any more (`model generate | head`), which is no error.
    fn is_closed_pipe(&self) -> bool {
        matches!(self, Failure::Io { source, .. } if source.kind() == io::ErrorKind::BrokenPipe)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Run(e) | Failure::File(e) => write!(f, "{e}"),
            Failure::Io { what, source } => write!(f, "{what}: {source}"),
            Failure::Input { file, reason } => write!(f, "{}: {reason}", file.display()),
            Failure::Usage(message) => f.write_str(message),
        }
    }
}

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        match e {
            Error::Setting { .. } | Error::EmptyPrompt | Error::Token { .. } | Error::NoEntry { .. } => {
                Failure::Usage(e.to_string())
            }
            e => Failure::Run(e),
        }
    }
}

impl From<crate::text::TextError> for Failure {
    fn from(e: crate::text::TextError) -> Self {
        Failure::Run(e.into())
    }
}

/// The program of a compiled file: runs the command on its command line.
pub fn main() -> ExitCode {
    let started = Instant::now();
    if let Some(refused) = Program::why_bare() {
        // Arguments mean nothing without a model, except those about the program itself.
        let asked = std::env::args().nth(1).is_some_and(|a| ["--help", "-h", "--version", "-V"].contains(&a.as_str()));
        if !asked {
            eprintln!("{refused}\n\n{BARE}");
            return ExitCode::from(3);
        }
        let _ = Cli::parse();
        return ExitCode::SUCCESS;
    }
    let Cli { command, device } = Cli::parse();
    let program = Program::of_this_executable(&device, &mut Loading::new().progress());
    if let Ok(Some(why)) = program.as_ref().map(|p| p.passed_over()) {
        eprintln!("note: running on the processor: {why}");
    }
    report(program.map_err(Failure::File).and_then(|p| execute(p, command, started)))
}

/// Says on a terminal how much of the weights a device has, where that takes long.
struct Loading {
    started: Instant,
    said: u64,
}

impl Loading {
    fn new() -> Loading {
        Loading { started: Instant::now(), said: 0 }
    }

    fn progress(mut self) -> impl FnMut(u64, u64) {
        use std::io::IsTerminal;
        let shown = io::stderr().is_terminal();
        move |done, all| {
            let percent = 100 * done / all.max(1);
            let due = percent > self.said && self.started.elapsed().as_millis() > 500;
            if shown && (due || done == all && self.said > 0) {
                self.said = percent;
                let (done, all) = (done as f64 / 1e9, all as f64 / 1e9);
                let end = if percent == 100 { "\n" } else { "" };
                eprint!("\rweights: {percent:3} %, {done:.1} of {all:.1} GB{end}");
            }
        }
    }
}

const BARE: &str = "This is hadal's runner, the part of a compiled file that maps and runs the rest. \
`hadal compile CHECKPOINT -o model` appends a model to a copy of it; run that file instead.";

/// Runs one command on a program that was loaded already; `started` is when the user began to wait.
pub fn execute(program: Arc<Program>, command: Command, started: Instant) -> Result<(), Failure> {
    match command {
        Command::Generate(args) => generate::run(program, &args, started),
        Command::Logits(args) => logits::run(program, &args),
        Command::Perplexity(args) => perplexity::run(program, &args),
        Command::Bench(args) => bench::run(program, &args, started),
        Command::Info(args) => info::run(&program, &args),
    }
}

fn report(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) if e.is_closed_pipe() => ExitCode::SUCCESS,
        Err(e @ Failure::Usage(_)) => {
            let name = std::env::args_os().next().map(std::path::PathBuf::from);
            let name = name.as_deref().and_then(|p| p.file_name()?.to_str()).unwrap_or("model");
            let mut command = Cli::command().bin_name(name);
            let _ = command.error(clap::error::ErrorKind::ValueValidation, &e).print();
            ExitCode::from(e.status())
        }
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::from(e.status())
        }
    }
}

/// Reads `--threads`: each has a stack and working space of its own, so that absurd numbers end in no memory.
fn threads() -> clap::builder::RangedU64ValueParser<usize> {
    clap::builder::RangedU64ValueParser::new().range(0..=1024)
}

/// The shortest decimal that stands for `x`, as a number for JSON: 0.7 and not 0.699999988079071.
fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(x as f64)
}

fn stdout_failed(source: io::Error) -> Failure {
    Failure::Io { what: "standard output".to_string(), source }
}

/// Prints `value` as indented JSON.
fn print_json(value: &serde_json::Value) -> Result<(), Failure> {
    use io::Write;
    writeln!(io::stdout(), "{value:#}").map_err(stdout_failed)
}
