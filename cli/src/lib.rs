//! hadal as a library: compile a checkpoint and run it, in a few lines.
//!
//! ```no_run
//! use hadal::{Input, Options, compile};
//! # fn main() -> Result<(), hadal::Failure> {
//! let input = Input::open("DeepSeek-R1-Distill-Qwen-1.5B".as_ref())?;
//! let compiled = compile(&input, &Options::default())?;
//! compiled.write(&input, "r1".as_ref(), &mut |_| {})?;
//! # Ok(())
//! # }
//! ```
//!
//! `./r1 generate --chat "Why is the sky blue?"` then runs it, on any machine of that kind, with nothing installed.

pub mod commands;
pub mod driver;
pub mod failure;
pub mod golden;
pub mod input;
pub mod options;
pub mod units;

pub use driver::{Compiled, Options, compile};
pub use failure::Failure;
pub use input::Input;

/// Lets a closed pipe end the program quietly instead of as a panic in `println!`.
pub fn quiet_on_closed_pipe() {
    // SAFETY: sets a signal's disposition to the system's default before any other thread exists.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
}
