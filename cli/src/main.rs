//! The `hadal` command; all of it is in the library, so that tests can build the same command.

use std::process::ExitCode;

fn main() -> ExitCode {
    hadal::commands::main()
}
