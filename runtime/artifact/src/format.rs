//! The fixed byte layouts: head, trailer, and the envelope around the manifest.

use crate::Manifest;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3Default;

/// Code and weights start at multiples of this, the largest page size in use on machines we may meet.
pub(crate) const PAGE: u64 = 64 * 1024;

/// First bytes of the payload, where the runner ends. Followed by the file's length; only there to tell a truncated
/// file from a stripped one.
pub(crate) const HEAD_MAGIC: [u8; 8] = *b"hadal\x1a\r\n";
/// Length of the head.
pub(crate) const HEAD_BYTES: usize = 64;

/// First bytes of the trailer.
const TRAILER_MAGIC: [u8; 8] = *b"\x1ahadal\r\n";
/// Length of the trailer, the last bytes of the file.
pub(crate) const TRAILER_BYTES: usize = 64;

/// The last 64 bytes: `magic, version, reserved, code offset, manifest offset, manifest length, weights offset, weights
/// checksum, checksum`, little-endian. Magic and version stay where they are in every future version.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Trailer {
    pub version: u32,
    /// Zero in this version.
    pub reserved: u32,
    pub code_offset: u64,
    pub manifest_offset: u64,
    pub manifest_bytes: u64,
    pub weights_offset: u64,
    pub weights_checksum: u64,
    /// Over the bytes of the trailer before it and the manifest.
    pub checksum: u64,
}

impl Trailer {
    /// The trailer's bytes, the checksum as it stands.
    pub fn encode(&self) -> [u8; TRAILER_BYTES] {
        let mut out = [0; TRAILER_BYTES];
        out[..8].copy_from_slice(&TRAILER_MAGIC);
        out[8..12].copy_from_slice(&self.version.to_le_bytes());
        out[12..16].copy_from_slice(&self.reserved.to_le_bytes());
        let words = [
            self.code_offset,
            self.manifest_offset,
            self.manifest_bytes,
            self.weights_offset,
            self.weights_checksum,
            self.checksum,
        ];
        for (slot, word) in out[16..].chunks_exact_mut(8).zip(words) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        out
    }

    /// The trailer in `bytes`, if they are one.
    pub fn decode(bytes: &[u8]) -> Option<Trailer> {
        if bytes.len() != TRAILER_BYTES || !bytes.starts_with(&TRAILER_MAGIC) {
            return None;
        }
        let word = |i: usize| bytes[16 + 8 * i..][..8].try_into().map(u64::from_le_bytes).ok();
        Some(Trailer {
            version: u32::from_le_bytes(bytes[8..12].try_into().ok()?),
            reserved: u32::from_le_bytes(bytes[12..16].try_into().ok()?),
            code_offset: word(0)?,
            manifest_offset: word(1)?,
            manifest_bytes: word(2)?,
            weights_offset: word(3)?,
            weights_checksum: word(4)?,
            checksum: word(5)?,
        })
    }

    /// What [`Trailer::checksum`] should be.
    pub fn checksum_with(&self, manifest: &[u8]) -> u64 {
        let mut hash = Xxh3Default::new();
        hash.update(&self.encode()[..TRAILER_BYTES - 8]);
        hash.update(manifest);
        hash.digest()
    }
}

/// The manifest, and what the writer knows about the sections around it.
#[derive(Serialize, Deserialize)]
pub(crate) struct Envelope {
    pub code_bytes: u64,
    pub code_checksum: u64,
    pub blobs: Vec<BlobHead>,
    pub weights_bytes: u64,
    pub manifest: Manifest,
}

/// A blob; their bytes follow the manifest one after the other.
#[derive(Serialize, Deserialize)]
pub(crate) struct BlobHead {
    pub name: String,
    pub bytes: u64,
    pub checksum: u64,
}
