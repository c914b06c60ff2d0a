//! Runs compiled files: maps one, launches its kernels on a pool of threads, samples, and turns tokens into text.
//!
//! The runtime knows no op. A [`Program`] is a mapped file whose manifest lists kernels and launches; a [`Session`] is
//! the memory of one sequence and calls the program's entries; a [`Generator`] feeds a session with a prompt and draws
//! tokens. Tokenizer and chat template (feature `text`) and the commands of a compiled file (feature `cli`) sit on top.
//!
//! | module | what |
//! |---|---|
//! | `program` | map a file, check the machine, find kernels and weights |
//! | `pool` | persistent threads that share out the grid of each launch |
//! | `device` | what runs kernels that are not for this processor |
//! | `cuda` | NVIDIA's GPUs |
//! | `choice` | which of a program's levels runs, and on what |
//! | `topology` | cores and memory nodes, and how threads are shared out to them |
//! | `session` | states, arena and scratch of one sequence; one call of an entry |
//! | `batch` | one token for each of several sequences, in one step |
//! | `sample` | temperature, top-k, top-p, min-p, and a generator of random numbers that is the same everywhere |
//! | `generate` | prompt in chunks, then token by token |
//! | `text` | tokens to text and back, chat templates |
//! | `cli` | `generate`, `logits`, `bench`, `info` |
//!
//! ```no_run
//! use hadal_runtime::{Generator, Pool, Program, Sampling, Session};
//! # fn main() -> Result<(), hadal_runtime::Error> {
//! let program = Program::open("model".as_ref())?;
//! let session = Session::new(program, Pool::new(0))?;
//! let mut generator = Generator::new(session, Sampling::greedy())?;
//! generator.prompt(&[0, 17, 42])?;
//! while let Some(token) = generator.next_token()? {
//!     println!("{token}");
//! }
//! # Ok(())
//! # }
//! ```

mod batch;
mod choice;
#[cfg(feature = "cli")]
pub mod cli;
mod cpu;
mod cuda;
mod device;
mod error;
mod generate;
mod pool;
mod program;
mod region;
mod sample;
mod session;
mod speculate;
mod states;
#[cfg(feature = "text")]
pub mod text;
mod topology;
mod watch;

pub use batch::Batch;
pub use choice::DeviceChoice;
pub use device::{Call, Device, Launch, Loaded, Recorded};
pub use error::Error;
pub use generate::{Generator, Stop};
pub use hadal_artifact as artifact;
pub use pool::Pool;
pub use program::{KernelFn, Program};
pub use sample::{Rng, Sampler, Sampling};
pub use session::Session;
pub use speculate::{Acceptance, Drafts};
pub use states::{Mark, TAKE_BACK};
pub use topology::Topology;
pub use watch::{Watch, Watched};
