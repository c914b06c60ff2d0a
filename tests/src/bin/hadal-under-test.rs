//! The `hadal` command once more, so that the tests of this crate have cargo build it and know where it lies.

use std::process::ExitCode;

fn main() -> ExitCode {
    hadal::commands::main()
}
