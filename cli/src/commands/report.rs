//! `hadal report`: what became of a model and what it should cost, on one page.

use crate::failure::Failure;
use crate::options::{AdapterArgs, CompileArgs};
use crate::report::facts::{Facts, Sizes};
use crate::report::{json, page, sections};
use std::path::{Path, PathBuf};

/// Show what became of a model, on one page: graphs before and after, laws, kernels, memory, predictions.
///
/// The page is one file that needs nothing else, in light or dark as the reader has it. Costs are predictions for
/// --target, which need not be this machine.
#[derive(clap::Args)]
#[command(after_help = "Example: hadal report tests/fixtures/configs/deepseek-r1.json --target h200 -o report.html")]
pub struct Args {
    /// A checkpoint folder or a bare config.json.
    path: PathBuf,
    /// Where the page goes.
    #[arg(short, long, value_name = "FILE.html", required_unless_present = "json")]
    output: Option<PathBuf>,
    /// Print the figures as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sizes: Sizes,
    #[command(flatten)]
    adapter: AdapterArgs,
    #[command(flatten)]
    compile: CompileArgs,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    if let Some(folder) =
        args.output.as_deref().and_then(Path::parent).filter(|f| !f.as_os_str().is_empty() && !f.is_dir())
    {
        return Err(Failure::usage(format!("there is no folder {}", folder.display())));
    }
    let input = args.adapter.open(&args.path)?;
    let options = args.compile.options();
    let facts = Facts::of(&input, &options, args.sizes)?;
    args.compile.note(&facts.model);
    if let Some(path) = &args.output {
        let title = format!("{} for {}", facts.name, facts.target.name);
        let text = page::page(&title, &sections::body(&facts));
        std::fs::write(path, text).map_err(|e| Failure::failed(format!("{}: {e}", path.display())))?;
        eprintln!("written to {}", path.display());
    }
    match args.json {
        true => say!("{:#}", json::json(&facts)),
        false => Ok(()),
    }
}
