//! What a checkpoint folder says: its configuration, its tensors, and the graph they make.
//!
//! ```
//! # use hadal_models::{BuildOptions, Planned, build, config_reader::Config};
//! let text = br#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
//!     "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
//!     "intermediate_size": 64, "max_position_embeddings": 128}"#;
//! let config = Config::parse("config.json", text)?;
//! let model = build(&config, &Planned, &BuildOptions::default())?;
//! assert_eq!(model.name, "llama");
//! assert_eq!(model.module.funcs.iter().map(|f| f.name.as_str()).collect::<Vec<_>>(), ["layer", "main_all", "main"]);
//! # Ok::<(), hadal_models::Error>(())
//! ```

pub mod blocks;
pub mod checkpoint;
pub mod config_reader;
pub mod deepseek_moe;
pub mod deepseek_v2;
pub mod deepseek_v3;
pub mod deepseek_v32;
pub mod deepseek_v4;
pub mod deepseek_v41;
pub mod engram;
mod error;
pub mod formats;
pub mod gguf;
mod json;
pub mod llama;
mod model;
pub mod ngram;
pub mod nsa;
pub mod qwen;
mod registry;
pub mod stats;
mod weights;

pub use blocks::assembly::{Architecture, Assembly, Frame, MtpInput};
pub use blocks::rope::AttnFactor;
pub use error::{Error, Result};
pub use formats::{Activations, DtypeOracle, Planned};
pub use model::{BuildOptions, Model, Param, build, params};
pub use ngram::Vocabulary;
pub use registry::{Recognised, recognise};
pub use weights::{CheckpointWeights, Made, ModelWeights};
