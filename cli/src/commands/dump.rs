//! `hadal dump`: the text of any stage.

use crate::driver::{BuiltKernel, Compiled, compile};
use crate::failure::Failure;
use crate::options::{AdapterArgs, CompileArgs};
use hadal_codegen::cranelift::{Processor, clif_text};
use hadal_ir::{Module, text};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Print the text of a stage: what a model looks like between checkpoint and machine code.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  hadal dump DeepSeek-V3 --stage optimized --entry decode\n  hadal dump config.json \
    --stage kernels\n\nThe text of `graph` and `optimized` can be read back by `hadal opt` and `hadal eval`."
)]
pub struct Args {
    /// A checkpoint folder or a bare config.json.
    path: PathBuf,
    /// The stage.
    #[arg(long, value_enum)]
    stage: Stage,
    /// Only what this entry (prefill, decode, …) needs.
    #[arg(long)]
    entry: Option<String>,
    #[command(flatten)]
    adapter: AdapterArgs,
    #[command(flatten)]
    compile: CompileArgs,
}

/// What can be shown.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// The graph as the model file builds it.
    Graph,
    /// After rewriting, before fusion.
    Optimized,
    /// Kernel functions, then the kernel IR made of each.
    Kernels,
    /// Buffers and launches.
    Plan,
    /// Cranelift's input.
    Clif,
    /// Assembler.
    Asm,
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Stage::Graph => "graph",
            Stage::Optimized => "optimized",
            Stage::Kernels => "kernels",
            Stage::Plan => "plan",
            Stage::Clif => "clif",
            Stage::Asm => "asm",
        }
    }

    fn file_name(self) -> &'static str {
        match self {
            Stage::Graph => "01-graph.hir",
            Stage::Optimized => "02-optimized.hir",
            Stage::Kernels => "03-kernels.hir",
            Stage::Plan => "04-plan.txt",
            Stage::Clif => "05-clif.txt",
            Stage::Asm => "06-asm.txt",
        }
    }
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    let input = args.adapter.open(&args.path)?;
    let mut options = args.compile.options();
    options.disassembly = args.stage == Stage::Asm;
    let compiled = compile(&input, &options)?;
    if let Some(entry) = &args.entry
        && compiled.program.plan(entry).is_none()
    {
        let has: Vec<&str> = compiled.program.plans.iter().map(|p| p.entry.as_str()).collect();
        return Err(Failure::usage(format!("there is no entry `{entry}`; this model has {}", has.join(", "))));
    }
    super::write_line(stage_text(&compiled, args.stage, args.entry.as_deref())?.trim_end())
}

/// Reads `STAGE` or `STAGE=DIR`.
pub fn parse_emit(text: &str) -> Result<(Stage, Option<PathBuf>), Failure> {
    let (stage, folder) = match text.split_once('=') {
        Some((stage, folder)) => (stage, Some(PathBuf::from(folder))),
        None => (text, None),
    };
    let all = <Stage as clap::ValueEnum>::value_variants();
    let known = all.iter().find(|s| s.name() == stage).copied();
    let names: Vec<&str> = all.iter().map(|s| s.name()).collect();
    let stage = known.ok_or_else(|| Failure::usage(format!("--emit {text}: stages are {}", names.join(", "))))?;
    Ok((stage, folder))
}

/// Writes a stage's text into `folder`.
pub fn write(compiled: &Compiled, stage: Stage, folder: &Path) -> Result<(), Failure> {
    let at = |e: std::io::Error| Failure::failed(format!("{}: {e}", folder.display()));
    if !folder.as_os_str().is_empty() {
        std::fs::create_dir_all(folder).map_err(at)?;
    }
    std::fs::write(folder.join(stage.file_name()), stage_text(compiled, stage, None)?).map_err(at)
}

/// The text of a stage, of one entry or of all.
pub fn stage_text(c: &Compiled, stage: Stage, entry: Option<&str>) -> Result<String, Failure> {
    let kernels = || {
        let used: Option<BTreeSet<&str>> = entry.map(|e| {
            let launches = c.program.versions(e).flat_map(|plan| &plan.launches);
            launches.map(|l| l.kernel.as_str()).collect()
        });
        c.kernels().iter().filter(move |k| used.as_ref().is_none_or(|u| u.contains(k.func.as_str())))
    };
    Ok(match stage {
        Stage::Graph => text::print_module(&reachable(&c.model.module, entry)),
        Stage::Optimized => text::print_module(&reachable(&c.optimised, entry)),
        Stage::Kernels => {
            let mut out = text::print_module(&reachable(&c.program.module, entry));
            for k in kernels() {
                out += &format!("\n// {}: {}\n", k.generated.generator, k.generated.schedule);
                out += &k.generated.kernel.to_string();
            }
            out
        }
        Stage::Plan => match entry {
            Some(entry) => c.program.versions(entry).map(|plan| plan.to_string()).collect(),
            None => c.program.to_string(),
        },
        Stage::Clif => {
            let mut out = String::new();
            for k in kernels() {
                let clif = clif_text(&k.generated.kernel, &Processor::X86_64_V3);
                out += &format!("; {}\n{}\n", k.func, clif.map_err(|e| Failure::internal("lowering a kernel", e))?);
            }
            out
        }
        Stage::Asm => {
            let text = |k: &BuiltKernel| k.compiled.disassembly.clone().unwrap_or_default();
            let head = |k: &BuiltKernel| format!("; {} ({}: {})", k.func, k.generated.generator, k.generated.schedule);
            kernels().map(|k| format!("{}\n{}\n", head(k), text(k))).collect()
        }
    })
}

/// The part of a module that `entry` needs.
fn reachable(module: &Module, entry: Option<&str>) -> Module {
    let Some(entry) = entry else { return module.clone() };
    let needed = module.reached(module.versions(entry));
    Module {
        symbols: module.symbols.clone(),
        definitions: module.definitions.clone(),
        funcs: module.funcs.iter().filter(|f| needed.contains(f.name.as_str())).cloned().collect(),
        entries: module.versions(entry).cloned().collect(),
    }
}
