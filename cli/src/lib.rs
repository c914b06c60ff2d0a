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

pub mod cache;
pub mod commands;
pub mod driver;
pub mod emulate;
pub mod explain;
pub mod failure;
pub mod golden;
pub mod input;
pub mod measure;
pub mod options;
pub mod predict;
pub mod probe;
pub mod random_checkpoint;
pub mod report;
pub mod roofline;
pub mod runner;
pub mod tuning;
pub mod units;
pub mod without;

pub use cache::Cache;
pub use driver::{Compiled, Options, compile};
pub use failure::Failure;
pub use input::Input;
