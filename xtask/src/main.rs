//! Project commands: `cargo xtask <command>`.
//!
//! `test` is what CI runs and nothing else hides behind it. Every command here is a straight list of steps, so that a
//! step that fails can be run by hand.

mod assemble;
mod bless;
mod gpu;
mod runner;
mod setup;

use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Project commands")]
struct Args {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what the tests need and cargo does not bring (LLVM 19 and a linker), or say what to run.
    Setup {
        /// Do without LLVM.
        #[arg(long)]
        without_llvm: bool,
    },
    /// Formatting, lints, every test, the documentation and its examples. What CI runs.
    Test {
        /// Do without LLVM.
        #[arg(long)]
        without_llvm: bool,
        /// The number that random cases begin with, so that a run can be repeated; `cargo test` takes another each
        /// time.
        #[arg(long, default_value_t = 20)]
        seed: u64,
        /// Every fixture where otherwise a sample is taken (models on an emulated GPU): some ten minutes more.
        #[arg(long)]
        nightly: bool,
    },
    /// All but the tests: formatting, generated files, lints, documentation.
    Check,
    /// Rewrite what is generated: formatting, op pages, status page, snapshots. Read the diff.
    Bless {
        /// Only the op pages.
        #[arg(long)]
        pages: bool,
    },
    /// Build the program that compiled files for another architecture begin with (`hadal compile --runner`).
    Runner {
        /// As Rust calls it: `aarch64`, `x86_64`.
        arch: String,
    },
    /// Put all that a bare machine with a GPU needs into a folder: the compiler, fixtures, and a script that checks and
    /// measures; or write docs/perf/gpu.md of what the script found.
    Gpu {
        /// The folder to write.
        #[arg(long, default_value = "target/gpu")]
        out: PathBuf,
        /// A folder of results: write the page.
        #[arg(long, value_name = "FOLDER")]
        report: Option<PathBuf>,
    },
    /// Compare what ptxas makes of the kernels of published models with docs/perf/registers.md.
    Assemble {
        /// An assembler; several may be given [default: what PTXAS names, or on the PATH].
        #[arg(long, value_name = "FILE")]
        ptxas: Vec<PathBuf>,
        /// Write the page.
        #[arg(long)]
        bless: bool,
    },
    /// Measure decode and prefill speed of the demo model and of a random 1.5B checkpoint; see docs/perf/.
    Bench {
        /// Leave out the 1.5B checkpoint (3.5 GB on disk).
        #[arg(long)]
        demo_only: bool,
    },
}

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Task::Setup { without_llvm } => setup::run(without_llvm),
        Task::Test { without_llvm, seed, nightly } => test(without_llvm, seed, nightly),
        Task::Check => check(),
        Task::Bless { pages: true } => bless::pages(),
        Task::Bless { pages: false } => bless::run(),
        Task::Runner { arch } => runner::build(&arch, false).map(|path| println!("{}", path.display())),
        Task::Gpu { report: Some(results), .. } => gpu::report(&results),
        Task::Gpu { report: None, out } => gpu::pack(&out),
        Task::Assemble { ptxas, bless } => assemble::run(ptxas, bless),
        Task::Bench { demo_only } => bench(demo_only),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("\nxtask: {message}");
            ExitCode::FAILURE
        }
    }
}

type Result<T = ()> = std::result::Result<T, String>;

/// The repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace").to_path_buf()
}

/// Runs one step, showing it and how long it took.
fn step(title: &str, program: &str, args: &[&str], environment: &[(&str, &str)]) -> Result {
    println!("== {title}: {program} {}", args.join(" "));
    let start = Instant::now();
    let mut command = Command::new(program);
    command.args(args).current_dir(root()).envs(environment.iter().copied());
    let status = command.status().map_err(|e| format!("cannot start {program}: {e}"))?;
    println!("== {title}: {:.1} s", start.elapsed().as_secs_f64());
    if status.success() { Ok(()) } else { Err(format!("{title} failed ({status})")) }
}

fn check() -> Result {
    step("formatting", "cargo", &["fmt", "--all", "--check"], &[])?;
    bless::check_generated()?;
    step("lints", "cargo", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"], &[])?;
    let strictly = [("RUSTDOCFLAGS", "-D warnings")];
    step("documentation", "cargo", &["doc", "--workspace", "--no-deps", "--quiet"], &strictly)
}

fn test(without_llvm: bool, seed: u64, nightly: bool) -> Result {
    setup::run(without_llvm)?;
    check()?;
    let seed = seed.to_string();
    let mut environment = vec![("INSTA_UPDATE", "no"), ("PROPTEST_RNG_SEED", seed.as_str())];
    if nightly {
        environment.push(("HADAL_NIGHTLY", "1"));
    }
    step("tests", "cargo", &["test", "--workspace", "--no-fail-fast"], &environment)?;
    if !without_llvm {
        // The same packages as before, so that what they depend on has the same features and is not built again.
        let wide = ["test", "--workspace", "--features", "llvm", "--no-fail-fast"];
        let kernels =
            ["cranelift", "llvm", "ptx", "tiles", "prompts", "loops", "math"].map(|test| ["--test", test]).concat();
        let models = ["--test", "all", "--", "golden::", "splits::", "arm::", "gpu::", "cuda::"];
        let runner = runner::build("aarch64", true)?.display().to_string();
        let environment = [&environment[..], &[("HADAL_ARM_RUNNER", runner.as_str())]].concat();
        step("tests of code by LLVM", "cargo", &[&wide[..], &["--lib"], &kernels].concat(), &environment)?;
        step("tests of models by LLVM", "cargo", &[&wide[..], &models].concat(), &environment)?;
    }
    if nightly && !without_llvm {
        match assemble::found() {
            Some(ptxas) => assemble::run(vec![ptxas], false)?,
            None => println!("== registers: left out, as there is no ptxas (PTXAS, or on the PATH)"),
        }
    }
    Ok(())
}

fn bench(demo_only: bool) -> Result {
    let hadal = ["run", "--release", "--features", "llvm", "--package", "hadal", "--", "bench"];
    step("benchmark of the demo", "cargo", &hadal, &[])?;
    if demo_only {
        return Ok(());
    }
    let config = "tests/fixtures/configs/deepseek-r1-distill-qwen-1.5b.json";
    let large = [&hadal[..], &[config, "--activations", "bf16"]].concat();
    step("benchmark of a large model with random weights", "cargo", &large, &[])
}
