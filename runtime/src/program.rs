//! A compiled file in memory: mapped, checked, ready to call.
//!
//! The whole file is mapped read-only and private once, which is where weights and blobs are read from; the code is
//! mapped a second time, readable and executable. Nothing is copied, so loading takes the same time for any size.
//!
//! Opening a program means trusting it as much as running any other executable: it is machine code. The checks made on
//! the way keep damage and mistakes out, not malice.

use crate::error::WeightsDiffer;
use crate::{Device, Error, cpu};
use hadal_artifact::{Artifact, ExternalFile, Manifest, Place, Target};
use memmap2::{Mmap, MmapOptions};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A kernel: runs grid indices `lo..hi` with `args` in parameter order, `symbols` in the order of its symbol list, and
/// `scratch` memory of its own.
pub type KernelFn = unsafe extern "C" fn(args: *const *mut u8, symbols: *const i64, lo: i64, hi: i64, scratch: *mut u8);

/// A loaded program. Shared by all sessions that run it.
pub struct Program {
    manifest: Manifest,
    code: Code,
    /// First byte of each weight; kept alive by `memory`.
    weights: Vec<*const u8>,
    memory: Memory,
}

/// What runs.
enum Code {
    /// By this process's threads.
    Here(Vec<KernelFn>),
    /// By something else, which takes each kernel's code from the file.
    There(Box<dyn Device>),
}

/// What keeps code and weights alive.
enum Memory {
    Mapped(Box<Mapped>),
    Owned { _weights: Vec<Vec<u64>> },
}

struct Mapped {
    path: PathBuf,
    file: Mmap,
    artifact: Artifact,
    _code: Option<Mmap>,
    _external: Vec<Mmap>,
}

// SAFETY: code and weights are never written after loading, and the pointers lead into memory owned by `memory`.
unsafe impl Send for Program {}
// SAFETY: as above.
unsafe impl Sync for Program {}

impl Program {
    /// Loads the compiled file at `path`.
    pub fn open(path: &Path) -> Result<Arc<Program>, Error> {
        Self::from_file(path, open(path)?)
    }

    /// Loads the payload of the program that is running.
    pub fn of_this_executable() -> Result<Arc<Program>, Error> {
        let this = Path::new("/proc/self/exe");
        let path = std::env::current_exe().unwrap_or_else(|_| this.to_path_buf());
        // Opened by the link, which works even where the file was since renamed or replaced; named as people know it.
        let file = File::open(this).map_err(|source| Error::Io { path: path.clone(), source })?;
        Self::from_file(&path, file)
    }

    /// Loads a compiled file that is open already (it need not have a name any more); `path` is what errors call it,
    /// and what the paths of external weights are relative to.
    pub fn from_file(path: &Path, opened: File) -> Result<Arc<Program>, Error> {
        let at = |source| Error::Io { path: path.to_path_buf(), source };
        let (manifest, mut mapped, weights) = Self::map_all(path, &opened, &cpu::runs)?;
        if manifest.target.arch != cpu::ARCH {
            return Err(Error::Architecture { needed: manifest.target.arch, found: cpu::ARCH });
        }
        let missing = cpu::missing(&manifest.target.features);
        if !missing.is_empty() {
            return Err(Error::CpuFeatures { missing });
        }

        let artifact = &mapped.artifact;
        let code = if artifact.code.is_empty() { None } else { Some(map_code(&opened, artifact).map_err(at)?) };
        let start = code.as_ref().map_or(std::ptr::null(), |c| c.as_ptr());
        let kernels = manifest.kernels.iter().map(|k| {
            // SAFETY: `parse` checked that the kernel lies inside the code section, all of which is mapped executable,
            // and the manifest promises code of this signature there.
            unsafe { std::mem::transmute::<*const u8, KernelFn>(start.add(k.offset as usize)) }
        });
        let code_here = Code::Here(kernels.collect());
        mapped._code = code;
        Ok(Arc::new(Program { manifest, code: code_here, weights, memory: Memory::Mapped(Box::new(mapped)) }))
    }

    /// Loads the compiled file at `path` for a device, which takes the first of its levels that it can run.
    pub fn open_on(path: &Path, device: Box<dyn Device>) -> Result<Arc<Program>, Error> {
        let (manifest, mapped, weights) = Self::map_all(path, &open(path)?, &|target| device.runs(target))?;
        if !device.runs(&manifest.target) {
            return Err(Error::Architecture { needed: manifest.target.arch, found: "another device" });
        }
        let memory = Memory::Mapped(Box::new(mapped));
        Ok(Arc::new(Program { manifest, code: Code::There(device), weights, memory }))
    }

    /// A file with its weights, for what is usable.
    fn map_all(
        path: &Path,
        opened: &File,
        usable: &dyn Fn(&Target) -> bool,
    ) -> Result<(Manifest, Mapped, Vec<*const u8>), Error> {
        let at = |source| Error::Io { path: path.to_path_buf(), source };
        let file = map(opened).map_err(at)?;
        let refused = |source| Error::Artifact { path: path.to_path_buf(), source };
        let artifact = hadal_artifact::parse(&file, usable).map_err(refused)?;
        let manifest = artifact.manifest.clone();
        let folder = path.parent().unwrap_or(Path::new("."));
        let external = manifest.files.iter().map(|f| map_external(folder, f)).collect::<Result<Vec<_>, _>>()?;
        let embedded = &file[artifact.weights.clone()];
        let weights = manifest.weights.iter().map(|w| match w.place {
            Place::Embedded { offset } => embedded[offset as usize..].as_ptr(),
            Place::External { file, offset } => external[file as usize][offset as usize..].as_ptr(),
        });
        let weights = weights.collect();
        let mapped = Mapped { path: path.to_path_buf(), file, artifact, _code: None, _external: external };
        Ok((manifest, mapped, weights))
    }

    /// A program from functions of this process and weights in memory, for tests and embedding. The places of the
    /// weights and the code offsets in the manifest are not used.
    ///
    /// # Safety
    ///
    /// Each function must keep to its kernel's description: touch only its arguments within their described sizes,
    /// write only what it may, and not unwind.
    pub unsafe fn from_parts(
        manifest: Manifest,
        kernels: Vec<KernelFn>,
        weights: &[&[u8]],
    ) -> Result<Arc<Program>, Error> {
        let refuse = |what, expected, found| {
            if expected == found { Ok(()) } else { Err(Error::Parts { what, expected, found }) }
        };
        refuse("kernels", manifest.kernels.len(), kernels.len())?;
        refuse("weights", manifest.weights.len(), weights.len())?;
        let faults = hadal_artifact::check(&manifest, u64::MAX, u64::MAX);
        if !faults.is_empty() {
            let source = hadal_artifact::Error::Inconsistent { faults };
            return Err(Error::Artifact { path: "(memory)".into(), source });
        }
        // Held as u64 for alignment.
        let copy = |bytes: &[u8]| {
            let mut words = vec![0u64; bytes.len().div_ceil(8)];
            bytemuck::cast_slice_mut(&mut words)[..bytes.len()].copy_from_slice(bytes);
            words
        };
        for (w, bytes) in manifest.weights.iter().zip(weights) {
            refuse("bytes in a weight", w.bytes as usize, bytes.len())?;
        }
        let owned: Vec<Vec<u64>> = weights.iter().map(|b| copy(b)).collect();
        let weights = owned.iter().map(|w| w.as_ptr().cast()).collect();
        let code = Code::Here(kernels);
        Ok(Arc::new(Program { manifest, code, weights, memory: Memory::Owned { _weights: owned } }))
    }

    /// The plan.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// A blob of the file, for instance its tokenizer.
    pub fn blob(&self, name: &str) -> Option<&[u8]> {
        self.mapped().and_then(|m| m.artifact.blob(&m.file, name))
    }

    /// Bytes of the file and of its code, where there is a file.
    pub fn file_sizes(&self) -> Option<(u64, u64)> {
        self.mapped().map(|m| (m.file.len() as u64, m.artifact.code.len() as u64))
    }

    /// Reads all embedded weights and compares their checksum with the one taken when they were written.
    pub fn verify_weights(&self) -> Result<(), Error> {
        let Some(m) = self.mapped() else { return Ok(()) };
        m.artifact.verify_weights(&m.file).map_err(|source| Error::Artifact { path: m.path.clone(), source })
    }

    fn mapped(&self) -> Option<&Mapped> {
        match &self.memory {
            Memory::Mapped(m) => Some(m),
            Memory::Owned { .. } => None,
        }
    }

    /// What runs it, where that is not this processor.
    pub(crate) fn device(&self) -> Option<&dyn Device> {
        match &self.code {
            Code::Here(_) => None,
            Code::There(device) => Some(&**device),
        }
    }

    /// A kernel's code in the file; empty where there is none.
    pub(crate) fn code_of(&self, index: usize) -> &[u8] {
        let Some(mapped) = self.mapped() else { return &[] };
        let (kernel, section) = (&self.manifest.kernels[index], &mapped.file[mapped.artifact.code.clone()]);
        &section[kernel.offset as usize..][..kernel.bytes as usize]
    }

    /// A kernel to be called by threads of this process, where it is for them.
    pub(crate) fn kernel(&self, index: usize) -> KernelFn {
        match &self.code {
            Code::Here(kernels) => kernels[index],
            Code::There(_) => elsewhere,
        }
    }

    pub(crate) fn weight(&self, index: usize) -> *const u8 {
        self.weights[index]
    }
}

/// Stands for the kernels of programs that run elsewhere, whose steps are not given to threads.
unsafe extern "C" fn elsewhere(_: *const *mut u8, _: *const i64, _: i64, _: i64, _: *mut u8) {
    unreachable!("a kernel for another device");
}

fn open(path: &Path) -> Result<File, Error> {
    let at = |source| Error::Io { path: path.to_path_buf(), source };
    let file = File::open(path).map_err(at)?;
    match file.metadata().map_err(at)?.is_file() {
        true => Ok(file),
        false => Err(at(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))),
    }
}

fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: a private read-only mapping. Another process that truncates the file while it is mapped would stop us
    // with SIGBUS; we accept that, as every program mapped from a file does.
    unsafe { MmapOptions::new().map_copy_read_only(file) }
}

fn map_code(file: &File, artifact: &Artifact) -> io::Result<Mmap> {
    let mut options = MmapOptions::new();
    options.offset(artifact.code.start as u64).len(artifact.code.len());
    // SAFETY: as in `map`; the range was found inside the file. Private pages, never written, then made executable.
    unsafe { options.map_copy(file) }?.make_exec()
}

fn map_external(folder: &Path, expected: &ExternalFile) -> Result<Mmap, Error> {
    let path = folder.join(&expected.path);
    let file = map(&open(&path)?).map_err(|source| Error::Io { path: path.clone(), source })?;
    let found = file.len() as u64;
    if found != expected.bytes {
        let what = WeightsDiffer::Size { expected: expected.bytes, found };
        return Err(Error::OtherWeights { path, what });
    }
    let header = file.get(..expected.header_bytes as usize).map(hadal_artifact::checksum);
    if header != Some(expected.header_checksum) {
        return Err(Error::OtherWeights { path, what: WeightsDiffer::Header });
    }
    Ok(file)
}
