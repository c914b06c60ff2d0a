//! The DeepSeek-V4 generation: Flash and Pro. Four residual streams, windows beside compressed rows that are selected
//! or seen all, experts in FP4 (sheets `deepseek-v4`, `mhc`).

mod config;
mod graph;
mod mtp;

pub use config::Config;
pub(crate) use config::is_reference;
