//! Any bytes as a GGUF file: refused with its name, or every tensor can be written as exactly its bytes, and the graph
//! that the metadata describe can be built or is refused.
//!
//! Half of the inputs get the beginning of a file in front, as a random one is nearly always refused at once.
#![no_main]

use hadal_models::checkpoint::check;
use hadal_models::{BuildOptions, build, gguf};
use libfuzzer_sys::fuzz_target;

/// Bytes that one input may unpack to: formats of few bits grow 16-fold.
const MOST: u64 = 1 << 24;

fn read(file: Vec<u8>) {
    let model = match gguf::from_bytes("m.gguf", file) {
        Ok(model) => model,
        Err(error) => {
            return assert!(error.to_string().starts_with("m.gguf: ") || error.to_string().starts_with("tensor "));
        }
    };
    for (_, t) in model.checkpoint.tensors() {
        let size = t.dtype.bytes(t.count() as u64);
        if size <= MOST {
            assert_eq!(t.data().unwrap().len() as u64, size);
        }
    }
    let options = BuildOptions { max_context: Some(64), max_chunk: 8, ..BuildOptions::default() };
    if let Ok(built) = build(&model.config, &model.checkpoint, &options) {
        let _ = check(&model.checkpoint, &built.expected_tensors());
    }
}

fuzz_target!(|data: &[u8]| {
    read(data.to_vec());
    let head = [&b"GGUF"[..], &3u32.to_le_bytes(), &2u64.to_le_bytes(), &8u64.to_le_bytes()].concat();
    read([&head, data].concat());
});
