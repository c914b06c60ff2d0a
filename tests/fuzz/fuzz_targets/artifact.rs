//! Any bytes as a compiled file, and any bytes as the manifest in one.
//!
//! Checksums stop nearly every random file early, so the bytes are also decoded as a manifest: where it is found
//! consistent, a file with it is written and must read back equal.
#![no_main]

use hadal_artifact::{Manifest, Parts, check, parse, write_to};
use libfuzzer_sys::fuzz_target;

/// Bytes of code, and most bytes of weights, in the files written here.
const SECTION: usize = 4096;

fuzz_target!(|data: &[u8]| {
    if let Ok(artifact) = parse(data, &|_| true) {
        assert!(artifact.code.end <= data.len() && artifact.weights.end <= data.len());
    }
    let Ok(manifest) = postcard::from_bytes::<Manifest>(data) else { return };
    let faults = check(&manifest, SECTION as u64, manifest.embedded_bytes());
    if !faults.is_empty() || manifest.embedded_bytes() > SECTION as u64 {
        assert!(faults.iter().all(|fault| !fault.to_string().is_empty()));
        return;
    }
    let parts = Parts { runner: &[], manifest: &manifest, code: &[0; SECTION], blobs: &[] };
    let mut file = Vec::new();
    let mut weight =
        |i: usize, out: &mut dyn std::io::Write| out.write_all(&vec![0; manifest.weights[i].bytes as usize]);
    write_to(&mut file, &parts, &mut weight).expect("a consistent manifest can be written");
    let read = parse(&file, &|_| true).expect("what was written can be read");
    // As bytes, because a NaN is not equal to itself.
    let bytes = |m: &Manifest| postcard::to_stdvec(m).expect("plain data serialises");
    assert_eq!(bytes(&read.manifest), bytes(&manifest));
    read.verify_weights(&file).expect("the weights are as written");
});
