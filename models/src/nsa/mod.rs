//! Native sparse attention: compressed blocks, selected blocks and a window, each with keys and values of its own,
//! mixed by gates (sheet `native-sparse-attention`; no weights were released).

mod branches;
mod config;
mod graph;

pub use config::Config;
