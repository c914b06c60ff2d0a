//! The Engram demonstration: tables of n-grams as a building block, in a model whose attention and experts do nothing
//! (sheet `engram`, "demo"; no weights were released).

mod config;
mod graph;

pub use config::Config;
