//! Checkpoints: named tensors in mapped safetensors files.
