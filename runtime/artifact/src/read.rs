//! Finding the parts of a compiled file again, trusting nothing.
//!
//! Order of questions: is there a trailer (else: stripped, truncated or foreign); is it this version; do the parts lie
//! inside the file; are manifest, code and blobs the bytes that were written; does the manifest make sense, for the
//! machine at hand. The weights are not read, so this takes the same time for any size of model;
//! [`Artifact::verify_weights`] reads them.

use crate::format::{Envelope, HEAD_BYTES, HEAD_MAGIC, PAGE, TRAILER_BYTES, Trailer};
use crate::{ALIGN, Error, Manifest, Part, Target, checksum};
use std::ops::Range;

/// The parts of a compiled file, as ranges of its bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Artifact {
    /// The plan, checked.
    pub manifest: Manifest,
    /// Machine code.
    pub code: Range<usize>,
    /// Named blobs (see [`blob`](crate::blob)).
    pub blobs: Vec<(String, Range<usize>)>,
    /// Embedded weights.
    pub weights: Range<usize>,
    weights_checksum: u64,
}

impl Artifact {
    /// The bytes of the blob called `name` in `file`, the same bytes that were parsed.
    pub fn blob<'a>(&self, file: &'a [u8], name: &str) -> Option<&'a [u8]> {
        let (_, range) = self.blobs.iter().find(|(n, _)| n == name)?;
        file.get(range.clone())
    }

    /// Reads all embedded weights of `file`, the same bytes that were parsed, and compares their checksum.
    pub fn verify_weights(&self, file: &[u8]) -> Result<(), Error> {
        let section = file.get(self.weights.clone()).ok_or(Error::Bounds { part: Part::Weights })?;
        let matches = checksum(section) == self.weights_checksum;
        matches.then_some(()).ok_or(Error::Checksum { part: Part::Weights })
    }
}

/// Finds and checks the parts of a compiled file. Of code for several machines the first that is `usable` counts, or
/// the last if none is, which asks for least.
pub fn parse(file: &[u8], usable: &dyn Fn(&Target) -> bool) -> Result<Artifact, Error> {
    let split = file.len().checked_sub(TRAILER_BYTES).ok_or_else(|| no_trailer(file))?;
    let (body, tail) = file.split_at(split);
    let trailer = Trailer::decode(tail).ok_or_else(|| no_trailer(file))?;
    if trailer.version != crate::ABI_VERSION {
        return Err(Error::Version { found: trailer.version });
    }

    let manifest = range(trailer.manifest_offset, trailer.manifest_bytes, body.len(), Part::Manifest)?;
    if trailer.checksum != trailer.checksum_with(&body[manifest.clone()]) {
        return Err(Error::Checksum { part: Part::Manifest });
    }
    let (mut envelope, rest) =
        postcard::take_from_bytes::<Envelope>(&body[manifest.clone()]).map_err(|_| Error::Decode)?;
    if !rest.is_empty() {
        return Err(Error::Decode);
    }
    let chosen = envelope.manifest.targets().position(usable).unwrap_or(envelope.manifest.others.len());
    envelope.manifest.choose(chosen);

    let code = range(trailer.code_offset, envelope.code_bytes, manifest.start, Part::Code)?;
    let weights = range(trailer.weights_offset, envelope.weights_bytes, body.len(), Part::Weights)?;
    if weights.start % PAGE as usize != 0 || (weights.end as u64).next_multiple_of(ALIGN) != body.len() as u64 {
        return Err(Error::Bounds { part: Part::Weights });
    }
    if checksum(&body[code.clone()]) != envelope.code_checksum {
        return Err(Error::Checksum { part: Part::Code });
    }
    let mut blobs = Vec::new();
    let mut next = manifest.end as u64;
    for b in envelope.blobs {
        let part = || Part::Blob(b.name.clone());
        let r = range(next, b.bytes, weights.start, part())?;
        if checksum(&body[r.clone()]) != b.checksum {
            return Err(Error::Checksum { part: part() });
        }
        next = r.end as u64;
        blobs.push((b.name, r));
    }

    let faults = crate::check(&envelope.manifest, envelope.code_bytes, envelope.weights_bytes);
    if !faults.is_empty() {
        return Err(Error::Inconsistent { faults });
    }
    let weights_checksum = trailer.weights_checksum;
    Ok(Artifact { manifest: envelope.manifest, code, blobs, weights, weights_checksum })
}

/// `offset..offset + bytes`, where it ends by `limit`.
fn range(offset: u64, bytes: u64, limit: usize, part: Part) -> Result<Range<usize>, Error> {
    let end = offset.checked_add(bytes).filter(|end| *end <= limit as u64);
    end.map(|end| offset as usize..end as usize).ok_or(Error::Bounds { part })
}

/// Why there may be no trailer: where the head of a payload is found it tells how long the file should be.
fn no_trailer(file: &[u8]) -> Error {
    // Runners are a few megabytes; do not walk through a foreign file of any size.
    let pages = file.chunks(PAGE as usize).take(1024);
    let head = pages.filter(|p| p.len() >= HEAD_BYTES).find(|p| p.starts_with(&HEAD_MAGIC));
    let expected = head.and_then(|p| Some(u64::from_le_bytes(p[8..16].try_into().ok()?)));
    match expected {
        Some(expected) if expected != file.len() as u64 => Error::Truncated { len: file.len() as u64, expected },
        _ => Error::NoPayload { elf: file.starts_with(b"\x7fELF") },
    }
}
