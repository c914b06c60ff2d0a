//! The Qwen bases of R1's distillations: Qwen2 (R1-Distill-Qwen) and Qwen3 (R1-0528-Qwen3-8B), both the Llama graph
//! with one change (sheet `qwen-distill`).

mod config;
mod graph;

pub use config::{Config, Generation};
