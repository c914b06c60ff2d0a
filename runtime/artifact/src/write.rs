//! Putting a compiled file together.
//!
//! Weights are streamed, so a file of any size is written with a few hundred kilobytes of memory. The file has no name
//! until it is complete and on disk (`O_TMPFILE`; where the file system cannot do that, a hidden name that is removed
//! on error), then it replaces the target in one step: an interrupted compile leaves what was there before.

use crate::format::{BlobHead, Envelope, HEAD_BYTES, HEAD_MAGIC, PAGE, TRAILER_BYTES, Trailer};
use crate::{ABI_VERSION, ALIGN, Error, Manifest, Part, Place, checksum};
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3Default;

/// What goes into a file, except the weights.
#[derive(Clone, Copy)]
pub struct Parts<'a> {
    /// The runner's program, to which the rest is appended; may be empty where the file is only to be read.
    pub runner: &'a [u8],
    /// The plan.
    pub manifest: &'a Manifest,
    /// Machine code of all kernels.
    pub code: &'a [u8],
    /// Names and bytes (see [`blob`](crate::blob)).
    pub blobs: &'a [(String, Vec<u8>)],
}

/// Writes the bytes of the weight with the given index; called once per embedded weight, in order of their offsets.
pub type WeightWriter<'a> = dyn FnMut(usize, &mut dyn Write) -> io::Result<()> + 'a;

/// Writes a compiled file to `path`, executable, replacing what is there only once it is complete. Returns its length.
pub fn write(path: &Path, parts: &Parts, weights: &mut WeightWriter) -> Result<u64, Error> {
    let plan = Plan::new(parts)?;
    let needed = plan.file_bytes;
    let at = |source: io::Error| match source.kind() {
        io::ErrorKind::StorageFull => Error::DiskFull { path: path.to_path_buf(), needed },
        _ => Error::Io { path: path.to_path_buf(), source },
    };
    // A link is written through, as by any other program; a device or folder is not replaced.
    let target = if path.is_symlink() { path.canonicalize().map_err(at)? } else { path.to_path_buf() };
    if target.exists() && !target.is_file() {
        return Err(Error::NotAFile { path: target });
    }
    let mut pending = Pending::create(&target).map_err(at)?;
    match rustix::fs::fallocate(&pending.file, rustix::fs::FallocateFlags::empty(), 0, needed) {
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) | Ok(()) => {}
        Err(e) => return Err(at(e.into())),
    }
    let mut out = BufWriter::with_capacity(1 << 18, &mut pending.file);
    plan.write(parts, weights, &mut out).map_err(|e| e.into_error(at))?;
    out.flush().map_err(at)?;
    drop(out);
    pending.commit(&target).map_err(at)?;
    Ok(needed)
}

/// Writes a compiled file to any stream. Returns its length.
pub fn write_to(out: &mut dyn Write, parts: &Parts, weights: &mut WeightWriter) -> Result<u64, Error> {
    let plan = Plan::new(parts)?;
    let at = |source| Error::Io { path: PathBuf::from("(stream)"), source };
    plan.write(parts, weights, out).map_err(|e| e.into_error(at))?;
    Ok(plan.file_bytes)
}

/// Where everything goes; all is known before the first byte is written, except the checksum of the weights.
struct Plan {
    head_offset: u64,
    manifest: Vec<u8>,
    manifest_offset: u64,
    weights_offset: u64,
    weights_bytes: u64,
    file_bytes: u64,
}

/// Failure while streaming: the stream's, or ours.
enum Failure {
    Io(io::Error),
    Ours(Error),
}

impl Failure {
    fn into_error(self, io: impl FnOnce(io::Error) -> Error) -> Error {
        match self {
            Failure::Io(e) => io(e),
            Failure::Ours(e) => e,
        }
    }
}

impl From<io::Error> for Failure {
    fn from(e: io::Error) -> Self {
        Failure::Io(e)
    }
}

impl Plan {
    fn new(parts: &Parts) -> Result<Plan, Error> {
        let weights_bytes = parts.manifest.embedded_bytes();
        let code_bytes = parts.code.len() as u64;
        for number in 0..parts.manifest.targets().count() {
            let mut manifest = parts.manifest.clone();
            manifest.choose(number);
            let faults = crate::check(&manifest, code_bytes, weights_bytes);
            if !faults.is_empty() {
                return Err(Error::Inconsistent { faults });
            }
        }
        let blobs = parts.blobs.iter().map(|(name, bytes)| BlobHead {
            name: name.clone(),
            bytes: bytes.len() as u64,
            checksum: checksum(bytes),
        });
        let envelope = Envelope {
            code_bytes,
            code_checksum: checksum(parts.code),
            blobs: blobs.collect(),
            weights_bytes,
            manifest: parts.manifest.clone(),
        };
        let manifest = postcard::to_stdvec(&envelope).expect("plain data in growing memory always serialises");
        let head_offset = (parts.runner.len() as u64).next_multiple_of(PAGE);
        let manifest_offset = (head_offset + HEAD_BYTES as u64 + code_bytes).next_multiple_of(ALIGN);
        let blob_bytes: u64 = envelope.blobs.iter().map(|b| b.bytes).sum();
        let weights_offset = (manifest_offset + manifest.len() as u64 + blob_bytes).next_multiple_of(PAGE);
        let end = (weights_offset + weights_bytes).next_multiple_of(ALIGN);
        let file_bytes = end + TRAILER_BYTES as u64;
        Ok(Plan { head_offset, manifest, manifest_offset, weights_offset, weights_bytes, file_bytes })
    }

    fn write(&self, parts: &Parts, weights: &mut WeightWriter, out: &mut dyn Write) -> Result<(), Failure> {
        let mut out = Counted { out, written: 0, hash: None };
        out.write_all(parts.runner)?;
        out.pad_to(self.head_offset)?;
        let mut head = [0; HEAD_BYTES];
        head[..8].copy_from_slice(&HEAD_MAGIC);
        head[8..16].copy_from_slice(&self.file_bytes.to_le_bytes());
        out.write_all(&head)?;
        out.write_all(parts.code)?;
        out.pad_to(self.manifest_offset)?;
        out.write_all(&self.manifest)?;
        for (_, bytes) in parts.blobs {
            out.write_all(bytes)?;
        }
        out.pad_to(self.weights_offset)?;

        out.hash = Some(Box::new(Xxh3Default::new()));
        let embedded = parts.manifest.weights.iter().enumerate().filter_map(|(i, w)| match w.place {
            Place::Embedded { offset } => Some((offset, i)),
            Place::External { .. } => None,
        });
        let mut embedded: Vec<_> = embedded.collect();
        embedded.sort();
        for (offset, i) in embedded {
            let weight = &parts.manifest.weights[i];
            let part = || Part::Weight(weight.name.clone());
            if out.written > self.weights_offset + offset {
                return Err(Failure::Ours(Error::Bounds { part: part() }));
            }
            out.pad_to(self.weights_offset + offset)?;
            let start = out.written;
            weights(i, &mut out)?;
            let (expected, found) = (weight.bytes, out.written - start);
            if expected != found {
                return Err(Failure::Ours(Error::Length { part: part(), expected, found }));
            }
        }
        let weights_checksum = out.hash.take().map_or(0, |h| h.digest());
        out.pad_to((self.weights_offset + self.weights_bytes).next_multiple_of(ALIGN))?;

        let mut trailer = Trailer {
            version: ABI_VERSION,
            reserved: 0,
            code_offset: self.head_offset + HEAD_BYTES as u64,
            manifest_offset: self.manifest_offset,
            manifest_bytes: self.manifest.len() as u64,
            weights_offset: self.weights_offset,
            weights_checksum,
            checksum: 0,
        };
        trailer.checksum = trailer.checksum_with(&self.manifest);
        out.write_all(&trailer.encode())?;
        Ok(())
    }
}

/// A stream that counts, and hashes where asked to.
struct Counted<'a> {
    out: &'a mut dyn Write,
    written: u64,
    hash: Option<Box<Xxh3Default>>,
}

impl Counted<'_> {
    fn pad_to(&mut self, offset: u64) -> io::Result<()> {
        const ZEROS: [u8; 4096] = [0; 4096];
        while self.written < offset {
            let n = (offset - self.written).min(ZEROS.len() as u64) as usize;
            self.write_all(&ZEROS[..n])?;
        }
        Ok(())
    }
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        if let Some(hash) = &mut self.hash {
            hash.update(&bytes[..n]);
        }
        self.written += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A file on its way to a name. Whatever name it has meanwhile goes when this is dropped.
struct Pending {
    file: File,
    temporary: Option<PathBuf>,
}

impl Pending {
    fn create(target: &Path) -> io::Result<Pending> {
        let folder = folder_of(target);
        let unnamed = rustix::fs::OFlags::TMPFILE.bits() as i32;
        let mut options = OpenOptions::new();
        options.write(true).mode(0o777);
        if let Ok(file) = options.clone().custom_flags(unnamed).open(folder) {
            return Ok(Pending { file, temporary: None });
        }
        let name = temporary_name(target);
        let file = options.create_new(true).open(&name)?;
        Ok(Pending { file, temporary: Some(name) })
    }

    fn commit(mut self, target: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        if self.temporary.is_none() {
            // Naming an unnamed file cannot replace another, so it gets a passing name first.
            use rustix::fs::{AtFlags, CWD, linkat};
            let name = temporary_name(target);
            let itself = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            linkat(CWD, itself, CWD, &name, AtFlags::SYMLINK_FOLLOW)?;
            self.temporary = Some(name);
        }
        if let Some(name) = &self.temporary {
            std::fs::rename(name, target)?;
            self.temporary = None;
        }
        // The new name is on disk once its folder is; file systems that cannot sync folders need no help.
        let _ = File::open(folder_of(target)).and_then(|f| f.sync_all());
        Ok(())
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(name) = &self.temporary {
            let _ = std::fs::remove_file(name);
        }
    }
}

fn folder_of(target: &Path) -> &Path {
    target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A hidden name beside the target that no other writer uses.
fn temporary_name(target: &Path) -> PathBuf {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    folder_of(target).join(format!(".{name}.{}-{n}.part", std::process::id()))
}
