//! A compiled file in memory: mapped, checked, ready to call.
//!
//! The whole file is mapped read-only and private once, which is where weights and blobs are read from; the code is
//! mapped a second time, readable and executable. Nothing is copied, so loading takes the same time for any size.
//!
//! Opening a program means trusting it as much as running any other executable: it is machine code. The checks made on
//! the way keep damage and mistakes out, not malice.

use crate::error::WeightsDiffer;
use crate::region::Region;
use crate::{Device, DeviceChoice, Error, Loaded, cpu};
use hadal_artifact::{ALIGN, Artifact, ExternalFile, Manifest, Place, Target};
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
    /// First byte of each weight; kept alive by `memory`, or by `code` where a device has them.
    weights: Vec<*const u8>,
    memory: Memory,
    /// Why a level that is preferred to this one is not run, where something about a device speaks against it.
    passed_over: Option<String>,
}

/// Bytes of weights that go to a device at once: progress is told after each.
const UPLOAD: usize = 32 << 20;

/// Bytes that are mapped ahead at once.
const AHEAD: usize = 16 << 20;

/// What runs.
enum Code {
    /// By this process's threads.
    Here(Vec<KernelFn>),
    /// By a device, which has the weights too.
    There { device: Arc<dyn Device>, loaded: Arc<dyn Loaded>, _weights: Region },
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
    /// Loads the compiled file at `path` for this processor.
    pub fn open(path: &Path) -> Result<Arc<Program>, Error> {
        Self::open_for(path, &DeviceChoice::Cpu, &mut |_, _| {})
    }

    /// The same for what was chosen; `progress` is told how many bytes of how many a device has.
    pub fn open_for(
        path: &Path,
        choice: &DeviceChoice,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Arc<Program>, Error> {
        Self::from_file(path, open(path)?, choice, progress)
    }

    /// Why the program that is running holds no compiled model, if it holds none.
    pub fn why_bare() -> Option<Error> {
        let path = Path::new("/proc/self/exe");
        let file = File::open(path).and_then(|f| map(&f)).ok()?;
        if hadal_artifact::is_compiled(&file) {
            return None;
        }
        match hadal_artifact::parse(&file, &|_| false).err()? {
            source @ hadal_artifact::Error::NoPayload { .. } => {
                let path = std::env::current_exe().unwrap_or_else(|_| path.to_path_buf());
                Some(Error::Artifact { path, source })
            }
            _ => None,
        }
    }

    /// Loads the payload of the program that is running, for what was chosen; `progress` is told how many bytes of how
    /// many a device has.
    pub fn of_this_executable(
        choice: &DeviceChoice,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Arc<Program>, Error> {
        let this = Path::new("/proc/self/exe");
        let path = std::env::current_exe().unwrap_or_else(|_| this.to_path_buf());
        // Opened by the link, which works even where the file was since renamed or replaced; named as people know it.
        let file = File::open(this).map_err(|source| Error::Io { path: path.clone(), source })?;
        Self::from_file(&path, file, choice, progress)
    }

    /// Loads a compiled file that is open already (it need not have a name any more) for what was chosen; `path` is what
    /// errors call it, and what the paths of external weights are relative to.
    pub fn from_file(
        path: &Path,
        opened: File,
        choice: &DeviceChoice,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Arc<Program>, Error> {
        let candidate = choice.candidate();
        let (manifest, mapped, weights) = Self::map_all(path, &opened, &|target| candidate.runs(target))?;
        let device = candidate.device_for(&manifest.target)?;
        let passed_over = candidate.passed_over();
        match device {
            Some(device) => Self::on_device(manifest, mapped, &weights, device, progress),
            None => Self::on_processor(path, &opened, (manifest, mapped, weights), passed_over),
        }
    }

    /// Loads the compiled file at `path` for a device, which takes the first of its levels that it can run.
    pub fn open_on(path: &Path, device: Arc<dyn Device>) -> Result<Arc<Program>, Error> {
        let (manifest, mapped, weights) = Self::map_all(path, &open(path)?, &|target| device.runs(target))?;
        if !device.runs(&manifest.target) {
            return Err(Error::Architecture { needed: manifest.target.arch, found: "another device" });
        }
        Self::on_device(manifest, mapped, &weights, device, &mut |_, _| {})
    }

    /// For the threads of this process.
    fn on_processor(
        path: &Path,
        opened: &File,
        (manifest, mut mapped, weights): (Manifest, Mapped, Vec<*const u8>),
        passed_over: Option<String>,
    ) -> Result<Arc<Program>, Error> {
        if manifest.target.arch != cpu::ARCH {
            return Err(Error::Architecture { needed: manifest.target.arch, found: cpu::ARCH });
        }
        let missing = cpu::missing(&manifest.target.features);
        if !missing.is_empty() {
            return Err(Error::CpuFeatures { missing });
        }

        let at = |source| Error::Io { path: path.to_path_buf(), source };
        let artifact = &mapped.artifact;
        let code = if artifact.code.is_empty() { None } else { Some(map_code(opened, artifact).map_err(at)?) };
        let start = code.as_ref().map_or(std::ptr::null(), |c| c.as_ptr());
        let kernels = manifest.kernels.iter().map(|k| {
            // SAFETY: `parse` checked that the kernel lies inside the code section, all of which is mapped executable,
            // and the manifest promises code of this signature there.
            unsafe { std::mem::transmute::<*const u8, KernelFn>(start.add(k.offset as usize)) }
        });
        let code_here = Code::Here(kernels.collect());
        mapped._code = code;
        let memory = Memory::Mapped(Box::new(mapped));
        let program = Arc::new(Program { manifest, code: code_here, weights, memory, passed_over });
        Self::map_ahead(&program);
        Ok(program)
    }

    /// Has the system map the weights before somebody waits for them page by page, which takes a first prompt a third
    /// longer. Weights that memory hardly holds are left to come as they are needed.
    fn map_ahead(program: &Arc<Program>) {
        let bytes = program.mapped().map_or(0, |m| m.artifact.weights.len() as u64);
        if bytes == 0 || bytes > memory_bytes() / 2 {
            return;
        }
        let program = program.clone();
        let _ = std::thread::Builder::new().name("hadal-pages".to_owned()).spawn(move || {
            let Some(mapped) = program.mapped() else { return };
            let all = mapped.artifact.weights.clone();
            let read = program.manifest.weights.iter().filter(|w| !w.by_rows).filter_map(|w| match w.place {
                Place::Embedded { offset } => {
                    Some(all.start + offset as usize..all.start + (offset + w.bytes) as usize)
                }
                Place::External { .. } => None,
            });
            let pieces =
                read.flat_map(|r| r.clone().step_by(AHEAD).map(move |first| (first, AHEAD.min(r.end - first))));
            for (first, length) in pieces {
                if Arc::strong_count(&program) == 1
                    || mapped.file.advise_range(memmap2::Advice::PopulateRead, first, length).is_err()
                {
                    return;
                }
            }
        });
    }

    /// For a device, which gets the weights.
    fn on_device(
        manifest: Manifest,
        mapped: Mapped,
        weights: &[*const u8],
        device: Arc<dyn Device>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Arc<Program>, Error> {
        let section = &mapped.file[mapped.artifact.code.clone()];
        let code = manifest.kernels.iter().map(|k| (k, &section[k.offset as usize..][..k.bytes as usize]));
        let loaded = device.load(&code.collect::<Vec<_>>()).map_err(Error::Device)?;
        let mut offsets = Vec::with_capacity(weights.len());
        let mut total = 0u64;
        for w in &manifest.weights {
            offsets.push(total as usize);
            total = total.saturating_add(w.bytes).checked_next_multiple_of(ALIGN).unwrap_or(u64::MAX);
        }
        let mut there = Region::on(Some(&device), "weights", total)?;
        for ((w, start), offset) in manifest.weights.iter().zip(weights).zip(&offsets) {
            // SAFETY: it was found inside of what is mapped.
            let bytes = unsafe { std::slice::from_raw_parts(*start, w.bytes as usize) };
            for (i, piece) in bytes.chunks(UPLOAD).enumerate() {
                there.write(offset + i * UPLOAD, piece)?;
                progress((offset + i * UPLOAD + piece.len()) as u64, total);
            }
        }
        let weights = offsets.iter().map(|o| there.start().wrapping_add(*o).cast_const()).collect();
        let code = Code::There { device, loaded, _weights: there };
        let memory = Memory::Mapped(Box::new(mapped));
        Ok(Arc::new(Program { manifest, code, weights, memory, passed_over: None }))
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
        let (code, memory) = (Code::Here(kernels), Memory::Owned { _weights: owned });
        Ok(Arc::new(Program { manifest, code, weights, memory, passed_over: None }))
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
    pub fn device(&self) -> Option<&Arc<dyn Device>> {
        match &self.code {
            Code::Here(_) => None,
            Code::There { device, .. } => Some(device),
        }
    }

    /// Why a level that the file prefers is not what runs, where a device is there that could not run it.
    pub fn passed_over(&self) -> Option<&str> {
        self.passed_over.as_deref()
    }

    /// The kernels on the device.
    pub(crate) fn loaded(&self) -> Option<&dyn Loaded> {
        match &self.code {
            Code::Here(_) => None,
            Code::There { loaded, .. } => Some(&**loaded),
        }
    }

    /// A kernel to be called by threads of this process, where it is for them.
    pub(crate) fn kernel(&self, index: usize) -> KernelFn {
        match &self.code {
            Code::Here(kernels) => kernels[index],
            Code::There { .. } => elsewhere,
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

/// Bytes of this machine's memory.
#[cfg(target_os = "linux")]
fn memory_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    (info.totalram as u64).saturating_mul(u64::from(info.mem_unit))
}

#[cfg(not(target_os = "linux"))]
fn memory_bytes() -> u64 {
    0
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
