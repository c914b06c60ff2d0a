//! The dense line: DeepSeek LLM, Coder, Math, Prover-7B and R1-Distill-Llama, all the Llama graph
//! (sheet `llama-dense`).

mod config;
mod graph;

pub use config::Config;
pub(crate) use config::attention;
