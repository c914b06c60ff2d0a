//! `hadal opt`: passes on a text file.

use crate::failure::{Failure, read_text};
use crate::options::LawArgs;
use hadal_ir::{text, verify};
use std::path::PathBuf;

/// Run passes on a graph file and print the result.
#[derive(clap::Args)]
#[command(after_help = "Example: hadal opt layer.hir --passes canonicalise,rewrite")]
pub struct Args {
    /// A file in the graph IR's text form.
    #[arg(required_unless_present = "list")]
    file: Option<PathBuf>,
    /// Passes, in order.
    #[arg(long, value_delimiter = ',', required_unless_present = "list")]
    passes: Vec<String>,
    /// The machine that costs are for; any that `hadal` knows, also where it generates no code.
    #[arg(long, default_value = "cpu")]
    target: String,
    /// List the passes instead.
    #[arg(long)]
    list: bool,
    /// Say on standard error what each pass did.
    #[arg(long)]
    report: bool,
    /// Sequences that a call is costed for.
    #[arg(long, value_name = "SEQUENCES", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=65536))]
    batch: u64,
    #[command(flatten)]
    laws: LawArgs,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    if args.list {
        let line = |p: &hadal_passes::Pass| format!("{:<20} {}", p.name, p.summary);
        return super::write_line(hadal_passes::PASSES.iter().map(line).collect::<Vec<_>>().join("\n"));
    }
    let Some(file) = &args.file else { return Err(Failure::usage("a file is needed")) };
    let at = |e: &dyn std::fmt::Display| Failure::input(format!("{}: {e}", file.display()));
    let module = text::parse_module(&read_text(file)?).map_err(|e| at(&e))?;
    verify::module(&module).map_err(|e| at(&e))?;
    let target = crate::driver::target(&args.target)?;
    let names = args.passes.iter().map(String::as_str);
    let options = hadal_passes::Options { laws: args.laws.set(), batch: args.batch, ..Default::default() };
    let (module, reports) = hadal_passes::run_passes(&module, names, &target, &options).map_err(|e| match e {
        hadal_passes::Error::UnknownPass(_) => Failure::usage(e).help("`hadal opt --list` lists the passes"),
        e => at(&e),
    })?;
    if args.report {
        reports.iter().for_each(|r| eprintln!("{r}"));
    }
    super::write_line(text::print_module(&module).trim_end())
}
