//! The subcommands, one file each with its arguments, its work and its printing, and the command line over them.

/// `println!` that returns its error.
macro_rules! say {
    ($($text:tt)*) => {
        $crate::commands::write_line(format_args!($($text)*))
    };
}

pub mod bench;
pub mod cache;
pub mod compile;
pub mod demo;
pub mod dump;
pub mod eval;
pub mod explain;
pub mod inspect;
pub mod opt;
pub mod predict;
pub mod report;
pub mod run;
pub mod target;
pub mod tune;
pub mod verify;

use crate::failure::Failure;
use clap::{Parser, Subcommand};
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
    Demo(demo::Args),
    Inspect(inspect::Args),
    Predict(predict::Args),
    Explain(explain::Args),
    Report(report::Args),
    Target(target::Args),
    Compile(compile::Args),
    Tune(tune::Args),
    Cache(cache::Args),
    Bench(bench::Args),
    Run(run::Args),
    Verify(verify::Args),
    Dump(dump::Args),
    Opt(opt::Args),
    Eval(eval::Args),
}

/// The `hadal` command: does what this process's arguments ask.
pub fn main() -> ExitCode {
    plain_signals();
    let result = match Args::parse().command {
        Command::Demo(args) => demo::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Predict(args) => predict::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Target(args) => target::run(&args),
        Command::Compile(args) => compile::run(&args),
        Command::Tune(args) => tune::run(&args),
        Command::Cache(args) => cache::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Run(args) => run::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Dump(args) => dump::run(&args),
        Command::Opt(args) => opt::run(&args),
        Command::Eval(args) => eval::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::from(failure.code as u8)
        }
    }
}

/// Writes a line to standard output. That the disk behind it is full is an error like any other.
pub fn write_line(text: impl std::fmt::Display) -> Result<(), Failure> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    let written = writeln!(out, "{text}").and_then(|()| out.flush());
    written.map_err(|e| Failure::failed(format!("standard output: {e}")))
}

/// Rows of cells as text: the first column to the left, numbers to the right.
pub(crate) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |i: usize| rows.iter().map(|r| r[i].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |row: &[String; N]| {
        let cell = |(i, (text, w)): (usize, (&String, &usize))| match i {
            0 => format!("{text:<w$}"),
            _ => format!("{text:>w$}"),
        };
        row.iter().zip(&widths).enumerate().map(cell).collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A closed pipe (`hadal dump … | head`) ends the program quietly, as it does any other, instead of as a panic in
/// `println!`; a file that may not grow further (`ulimit -f`) is an error of the write like any other.
fn plain_signals() {
    // SAFETY: sets signals' dispositions to the system's own before any other thread exists.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}
