//! The runner: the program that a compiled file begins with. What it runs is appended to it.

use std::process::ExitCode;

/// By which the compiler knows a runner.
static MARK: [u8; 32] = hadal_artifact::runner_mark();

fn main() -> ExitCode {
    std::hint::black_box(&MARK);
    hadal_runtime::cli::main()
}
