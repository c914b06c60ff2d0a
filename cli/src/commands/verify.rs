//! `hadal verify`: compiled programs against golden tensors.

use crate::driver::Options;
use crate::failure::Failure;
use crate::golden::{self, Outcome, PIECE};
use crate::options::{CompileArgs, QuantizeArgs};
use hadal_runtime::DeviceChoice;
use std::path::PathBuf;

/// Compile checkpoints and compare what they compute with golden tensors of an independent implementation.
#[derive(clap::Args)]
#[command(after_help = "Example: hadal verify tests/fixtures/v3 tests/fixtures/llama-dense\n\nEach folder holds a \
    checkpoint, golden.safetensors and, for the tolerance, golden.json. Exit code 0 only if everything checked holds. \
    With --quantize errors are told, not judged.")]
pub struct Args {
    /// Folders with a checkpoint and golden.safetensors.
    #[arg(required = true)]
    folders: Vec<PathBuf>,
    #[command(flatten)]
    compile: CompileArgs,
    #[command(flatten)]
    rounding: QuantizeArgs,
    /// Run the code of a GPU (`--target sm_90a`) on an emulator, which also finds races and memory faults.
    #[arg(long)]
    emulate: bool,
    /// What runs the code: `auto`, `cpu`, or a GPU as `cuda:0`.
    #[arg(long, default_value = "auto", value_name = "DEVICE", conflicts_with = "emulate")]
    device: DeviceChoice,
    /// Threads, 0 for one per core.
    #[arg(long, default_value_t = 0, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(0..=1024))]
    threads: usize,
    /// Print JSON, one array over all folders.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    let mut outcomes = Vec::new();
    let mut failure = None;
    let options = Options {
        quantize: args.rounding.choice(),
        emulate: args.emulate,
        device: args.device,
        ..args.compile.options()
    };
    for folder in &args.folders {
        match golden::verify(folder, &options, args.threads) {
            Ok(outcome) => {
                if !args.json {
                    print(&outcome)?;
                }
                outcomes.push(outcome);
            }
            // One folder that cannot be read does not hide what the others say.
            Err(e) => {
                eprintln!("{}: error: {e}", folder.display());
                failure = Some(e);
            }
        }
    }
    if args.json {
        say!("{}", serde_json::to_string_pretty(&outcomes).expect("plain data"))?;
    }
    if let Some(e) = failure {
        return Err(Failure { message: "not every folder could be verified".into(), help: None, code: e.code });
    }
    let failed = outcomes.iter().filter(|o| !o.pass).count();
    match failed {
        0 => Ok(()),
        n => Err(Failure::failed(format!("{n} of {} folders do not agree with their golden tensors", outcomes.len()))),
    }
}

fn print(o: &Outcome) -> Result<(), Failure> {
    say!("{}: {}  [{}]", o.path, if o.pass { "ok" } else { "FAILED" }, o.architecture)?;
    for c in &o.checks {
        let verdict = if c.pass { "" } else { "  FAILED" };
        let mut allowed =
            if c.tolerance.is_finite() { format!(" of {:.2e} allowed", c.tolerance) } else { String::new() };
        if let Some([error, most]) = c.rms {
            let (within, rows) = (c.rows_within, c.rows);
            allowed += &format!(
                " in {within}/{rows} rows; a value fell to the other side, rms error {error:.2e} of {most:.2e} allowed"
            );
        }
        say!(
            "  {:<20} max abs error {:.2e}{allowed}, arg-max agrees in {}/{} rows{verdict}",
            c.tensor,
            c.max_abs_error,
            c.argmax_agree,
            c.rows
        )?;
    }
    if let Some(c) = &o.in_pieces {
        let verdict = if c.pass { "" } else { "  FAILED" };
        say!("  {:<20} max abs error {:.2e} in calls of {PIECE} tokens{verdict}", c.tensor, c.max_abs_error)?;
    }
    if let Some((hits, of)) = o.greedy {
        say!("  {:<20} {hits}/{of} tokens{}", "greedy", if hits == of || o.pass { "" } else { "  FAILED" })?;
    }
    if !o.unchecked.is_empty() {
        say!("  not checked: {}", o.unchecked.join(", "))?;
    }
    Ok(())
}
