//! The DeepSeek-V2 generation: V2, V2-Lite, V2.5, Coder-V2 and ESFT. Latent attention, and experts chosen by softmax
//! scores, within the best groups in the large models (sheet `deepseek-v2`).

mod config;
mod graph;

pub use config::Config;
