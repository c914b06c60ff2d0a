//! Any bytes as a safetensors file: refused, or every tensor has exactly its bytes.
//!
//! Half of the inputs get a fitting length in front, as a random one is nearly always refused at once.
#![no_main]

use hadal_models::checkpoint::Checkpoint;
use libfuzzer_sys::fuzz_target;

fn read(file: Vec<u8>) {
    let size = file.len();
    match Checkpoint::from_memory([("m.safetensors", file)]) {
        Ok(checkpoint) => {
            let total: usize = checkpoint
                .tensors()
                .map(|(_, t)| {
                    assert_eq!(t.dtype.bytes(t.count() as u64), t.bytes.len() as u64);
                    t.bytes.len()
                })
                .sum();
            assert!(total <= size);
        }
        Err(error) => assert!(error.to_string().starts_with("m.safetensors: ")),
    }
}

fuzz_target!(|data: &[u8]| {
    read(data.to_vec());
    let header = data.iter().rposition(|b| *b == b'}').map_or(data.len(), |at| at + 1);
    read([&(header as u64).to_le_bytes(), data].concat());
});
