//! The `hadal` command: one file per subcommand in `commands/`, each with its arguments, its work and its printing.

use clap::{Parser, Subcommand};
use hadal::commands as c;
use std::process::ExitCode;

#[derive(Parser)]
#[command(
    name = "hadal",
    version,
    about = "Compiles DeepSeek checkpoints into single executable files",
    after_help = "Begin with `hadal demo`. Exit codes: 0 success, 1 a check or run failed, 2 usage, 3 bad input file, \
                  4 a bug in hadal."
)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Demo(c::demo::Args),
    Inspect(c::inspect::Args),
    Compile(c::compile::Args),
    Run(c::run::Args),
    Verify(c::verify::Args),
    Dump(c::dump::Args),
    Opt(c::opt::Args),
    Eval(c::eval::Args),
}

fn main() -> ExitCode {
    // A closed pipe (`hadal dump … | head`) ends the program quietly, as it does any other.
    hadal::quiet_on_closed_pipe();
    let result = match Args::parse().command {
        Command::Demo(args) => c::demo::run(&args),
        Command::Inspect(args) => c::inspect::run(&args),
        Command::Compile(args) => c::compile::run(&args),
        Command::Run(args) => c::run::run(&args),
        Command::Verify(args) => c::verify::run(&args),
        Command::Dump(args) => c::dump::run(&args),
        Command::Opt(args) => c::opt::run(&args),
        Command::Eval(args) => c::eval::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::from(failure.code as u8)
        }
    }
}
