//! The runner: the program that a compiled file begins with. What it runs is appended to it.

use std::process::ExitCode;

fn main() -> ExitCode {
    hadal_runtime::cli::main()
}
