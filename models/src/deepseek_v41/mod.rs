//! DeepSeek-V4.1: few layers compress the text and select from it for all others, residual streams are mixed in one
//! pass, n-grams of the text are looked up in large tables, and blocks of tokens are drafted (sheet `deepseek-v41`).

mod attention;
mod config;
mod graph;

pub use config::Config;
pub(crate) use config::is_reference;
