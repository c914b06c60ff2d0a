//! DeepSeekMoE 16B: the dense line's attention, experts chosen by softmax scores (sheet `deepseek-moe`).

mod config;
mod graph;

pub use config::Config;
