//! The DeepSeek-V3 generation: V3, R1, V3.1 and their kin. V2's attention, experts chosen by sigmoid scores with a
//! balancing bias, weights in block-scaled e4m3, and a layer that predicts one token more (sheet `deepseek-v3`).

mod config;
mod graph;
mod reference;

pub use config::Config;
pub(crate) use reference::is_reference;
