//! The DeepSeek-V3.2 generation: V3.2-Exp, V3.2, V3.2-Speciale and Math-V2. V3 with an indexer in every layer, which
//! lets a query see its best keys only (sheet `deepseek-v32`).

mod config;
mod graph;

pub use config::Config;
