//! What a checkpoint folder says: its configuration, its tensors, and the graph they make.

pub mod checkpoint;
pub mod config_reader;
mod error;
mod json;

pub use error::{Error, Result};
