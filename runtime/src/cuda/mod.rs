//! NVIDIA's GPUs, by the driver's library, which is opened when a program first asks for one.
//!
//! Nothing else of CUDA is needed. All work of a process on a GPU is in one stream, so that whatever is asked for comes
//! after what was asked for before. What a kernel did wrong shows when somebody waits; the driver then refuses
//! everything else, and so do we, with the first message.
//!
//! | module | what |
//! |---|---|
//! | `driver` | whether there is a driver, and what its errors mean |
//! | `kernels` | modules, launches, graphs |

mod driver;
mod kernels;

pub(crate) use driver::Missing;

use crate::{Device, Loaded};
use cudarc::driver::sys::CUdevice_attribute_enum as Attribute;
use cudarc::driver::{result, sys};
use driver::{check, message};
use hadal_artifact::{Kernel, Target};
use std::sync::{Arc, Mutex, PoisonError};

/// A GPU.
pub(crate) struct Gpu {
    context: Arc<Context>,
    name: String,
    /// Compute capability: 90 for 9.0.
    capability: u32,
    /// Version of CUDA that the driver knows: 12040 for 12.4.
    driver: i32,
    staging: Mutex<Option<Staging>>,
}

/// What everything on a GPU needs and keeps alive.
struct Context {
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    multiprocessors: u32,
    /// The first failure that the driver does not recover from.
    lost: Mutex<Option<String>>,
}

// SAFETY: handles of the driver, which may be used from any thread that has made the context its own (`enter`).
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Drop for Context {
    fn drop(&mut self) {
        if self.enter().is_ok() {
            // SAFETY: made by `open`; whoever uses them holds this.
            unsafe {
                let _ = result::stream::destroy(self.stream);
                let _ = result::primary_ctx::release(self.device);
            }
        }
    }
}

impl Context {
    /// Makes the calling thread use the GPU, unless it is lost.
    fn enter(&self) -> Result<(), String> {
        if let Some(message) = &*self.lost.lock().unwrap_or_else(PoisonError::into_inner) {
            return Err(message.clone());
        }
        // SAFETY: the context lives as long as this.
        unsafe { result::ctx::set_current(self.context) }.map_err(message)
    }

    /// Memory of the GPU, to be freed by who asks for it.
    fn allocate(&self, bytes: usize) -> Result<u64, String> {
        // SAFETY: it allocates.
        unsafe { result::malloc_sync(bytes) }.map_err(|e| match result::mem_get_info() {
            Ok((free, all)) if e.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                format!("the GPU has {free} of its {all} bytes free")
            }
            _ => message(e),
        })
    }

    /// Waits for all that was asked for. What fails now failed for good; `what` was running.
    fn wait(&self, what: &str) -> Result<(), String> {
        // SAFETY: the stream lives as long as this.
        unsafe { result::stream::synchronize(self.stream) }.map_err(|e| self.lose(e, what))
    }

    /// Notes a failure after which the driver does nothing more.
    fn lose(&self, error: result::DriverError, what: &str) -> String {
        let text = format!("{what}: {}", message(error));
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        lost.get_or_insert(text).clone()
    }
}

/// Memory that the GPU reads by itself: two pieces in turn, one of which is filled while the other is read.
struct Staging {
    pieces: [Piece; 2],
    next: usize,
    context: Arc<Context>,
}

struct Piece {
    memory: *mut u8,
    read: sys::CUevent,
}

// SAFETY: memory of the process and handles of the driver, used by one thread at a time.
unsafe impl Send for Staging {}

/// Bytes of a piece.
const PIECE: usize = 32 << 20;

/// Copies of fewer bytes than these are left to the driver's own buffers.
const LARGE: usize = 1 << 20;

impl Staging {
    fn new(context: &Arc<Context>) -> Result<Staging, String> {
        let piece = || -> Result<Piece, result::DriverError> {
            // SAFETY: freed below.
            let memory = unsafe { result::malloc_host(PIECE, 0) }?.cast();
            let read = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)?;
            Ok(Piece { memory, read })
        };
        Ok(Staging {
            pieces: [piece().map_err(message)?, piece().map_err(message)?],
            next: 0,
            context: context.clone(),
        })
    }

    /// Copies to `to`, behind what was asked for before.
    fn write(&mut self, to: u64, bytes: &[u8]) -> Result<(), result::DriverError> {
        for (i, part) in bytes.chunks(PIECE).enumerate() {
            let piece = &self.pieces[self.next];
            self.next = 1 - self.next;
            // SAFETY: the event says when the GPU has read what the piece held; the piece is as large as the part; the
            // caller's allocation is as large as all parts.
            unsafe {
                result::event::synchronize(piece.read)?;
                let staged = std::slice::from_raw_parts_mut(piece.memory, part.len());
                staged.copy_from_slice(part);
                result::memcpy_htod_async(to + (i * PIECE) as u64, staged, self.context.stream)?;
                result::event::record(piece.read, self.context.stream)?;
            }
        }
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if self.context.enter().is_err() {
            return;
        }
        for piece in &self.pieces {
            // SAFETY: made by `new`; the event says when it is not read any more.
            unsafe {
                let _ = result::event::synchronize(piece.read);
                let _ = result::event::destroy(piece.read);
                let _ = result::free_host(piece.memory.cast());
            }
        }
    }
}

impl Gpu {
    /// Opens the GPU of that number.
    pub fn open(number: u32) -> Result<Arc<Gpu>, Missing> {
        let driver = driver::open()?;
        let failed = |e| Missing::Failed(message(e));
        let count = result::device::get_count().map_err(failed)?;
        if number >= count as u32 {
            return Err(Missing::NoSuchGpu { number, count: count as u32 });
        }
        let device = result::device::get(number as i32).map_err(failed)?;
        let name = result::device::get_name(device).map_err(failed)?;
        // SAFETY: the device was just found.
        let ask = |what| unsafe { result::device::get_attribute(device, what) }.map_err(failed);
        let major = ask(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = ask(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let multiprocessors = ask(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?.max(1) as u32;
        // SAFETY: as above; given back when the context is dropped.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(failed)?;
        // SAFETY: just made.
        unsafe { result::ctx::set_current(context) }.map_err(failed)?;
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking).map_err(failed)?;
        let context = Context { device, context, stream, multiprocessors, lost: Mutex::default() };
        let capability = (10 * major + minor) as u32;
        let name = format!("{name} (cuda:{number}, compute capability {major}.{minor})");
        Ok(Arc::new(Gpu { context: Arc::new(context), name, capability, driver, staging: Mutex::default() }))
    }

    /// Why this GPU cannot run code for a target, if it cannot.
    pub fn why_not(&self, target: &Target) -> Option<String> {
        if !target.is_gpu() {
            return Some(format!("the code is for {}", target.arch));
        }
        let wanted = target.features.iter().find_map(|f| f.strip_prefix("sm_"));
        let Some(wanted) = wanted else { return Some("the code does not say for which GPUs it is".to_owned()) };
        // What ends in a letter is for one architecture only.
        let number = wanted.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let exact = number.len() < wanted.len();
        let runs = number.parse().is_ok_and(|n: u32| if exact { n == self.capability } else { n <= self.capability });
        if !runs {
            return Some(format!("{} does not run code for sm_{wanted}", self.name));
        }
        let language = target.features.iter().find_map(|f| f.strip_prefix("ptx")?.parse::<i32>().ok());
        match language.map(driver::for_ptx) {
            Some(needed) if needed <= self.driver => None,
            Some(needed) => {
                let version = |v: i32| format!("{}.{}", v / 1000, v % 1000 / 10);
                let (found, needed) = (version(self.driver), version(needed));
                Some(format!("the driver knows CUDA {found}, the code needs one for {needed}: update the driver"))
            }
            None => Some("the code does not say which version of PTX it is".to_owned()),
        }
    }
}

impl Device for Gpu {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn runs(&self, target: &Target) -> bool {
        self.why_not(target).is_none()
    }

    fn allocate(&self, bytes: usize) -> Result<*mut u8, String> {
        self.context.enter()?;
        // Cleared before anybody has it.
        let address = self.context.allocate(bytes)?;
        // SAFETY: just allocated.
        let cleared = unsafe { result::memset_d8_async(address, 0, bytes, self.context.stream) };
        match cleared {
            Ok(()) => Ok(pointer(address)),
            Err(e) => {
                // SAFETY: nobody has it.
                let _ = unsafe { result::free_sync(address) };
                Err(message(e))
            }
        }
    }

    unsafe fn free(&self, address: *mut u8, _: usize) {
        if self.context.enter().is_ok() {
            // SAFETY: the caller's promise. The driver waits for what is running.
            let _ = unsafe { result::free_sync(number(address)) };
        }
    }

    unsafe fn write(&self, to: *mut u8, bytes: &[u8]) -> Result<(), String> {
        self.context.enter()?;
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        if bytes.len() < LARGE {
            // All weights are there, and nothing else is as large.
            *staging = None;
            // SAFETY: the caller's promise; the driver has copied what can change when it returns, as nothing of this
            // process is pinned here.
            return check(unsafe { result::memcpy_htod_async(number(to), bytes, self.context.stream) });
        }
        if staging.is_none() {
            *staging = Some(Staging::new(&self.context)?);
        }
        staging.as_mut().map_or(Ok(()), |s| check(s.write(number(to), bytes)))
    }

    unsafe fn read(&self, from: *const u8, into: &mut [u8]) -> Result<(), String> {
        self.context.enter()?;
        // SAFETY: the caller's promise; we wait before anybody looks.
        unsafe { result::memcpy_dtoh_async(into, number(from), self.context.stream) }
            .map_err(|e| self.context.lose(e, "reading from the GPU"))?;
        self.context.wait("running on the GPU")
    }

    unsafe fn copy(&self, from: *const u8, to: *mut u8, bytes: usize) -> Result<(), String> {
        self.context.enter()?;
        // SAFETY: the caller's promise.
        check(unsafe { result::memcpy_dtod_async(number(to), number(from), bytes, self.context.stream) })
    }

    fn load(&self, all: &[(&Kernel, &[u8])]) -> Result<Arc<dyn Loaded>, String> {
        Ok(Arc::new(kernels::Kernels::load(&self.context, all)?))
    }
}

fn pointer(address: u64) -> *mut u8 {
    std::ptr::without_provenance_mut(address as usize)
}

fn number(address: *const u8) -> u64 {
    address.addr() as u64
}
