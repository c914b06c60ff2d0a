//! Kernels on a GPU, and their launches.
//!
//! A kernel takes three addresses: of its buffers' addresses, of its symbols' values, of scratch memory. The first two
//! lie in tables of the GPU that all launches of a version share, so that the launches themselves never change and are a
//! graph.

use super::Context;
use super::driver::{check, message};
use crate::{Call, Launch, Loaded, Recorded};
use cudarc::driver::sys::CUfunction_attribute_enum as Attribute;
use cudarc::driver::{result, sys};
use hadal_artifact::Kernel;
use std::ffi::c_void;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The name of every kernel's entry.
const ENTRY: &std::ffi::CStr = c"kernel";

/// Scratch memory of all warps of a launch at most; beyond it launches have fewer blocks.
const SCRATCH: u64 = 1 << 30;

/// Shared memory that a block has without being asked.
const SHARED: u32 = 48 << 10;

/// The kernels of a program.
pub(super) struct Kernels {
    loaded: Arc<[Ready]>,
    scratch: Arc<Memory>,
    context: Arc<Context>,
}

/// A kernel that can be launched.
struct Ready {
    name: String,
    module: sys::CUmodule,
    function: sys::CUfunction,
    warps: u32,
    /// Grid indices that a block computes at a time.
    indices: u32,
    shared_bytes: u32,
    /// Blocks that run at once.
    blocks: u32,
    arguments: usize,
    symbols: usize,
    context: Arc<Context>,
}

// SAFETY: handles of the driver; see `Context`.
unsafe impl Send for Ready {}
// SAFETY: as above.
unsafe impl Sync for Ready {}

impl Drop for Ready {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: whoever launches it holds this.
            let _ = unsafe { result::module::unload(self.module) };
        }
    }
}

/// Memory of the GPU.
struct Memory {
    address: u64,
    context: Arc<Context>,
}

impl Memory {
    fn new(context: &Arc<Context>, bytes: u64) -> Result<Memory, String> {
        let address = context.allocate(bytes.max(8) as usize)?;
        Ok(Memory { address, context: context.clone() })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: whoever uses it holds this.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

impl Kernels {
    /// Has the driver assemble what is text, several at a time.
    pub fn load(context: &Arc<Context>, all: &[(&Kernel, &[u8])]) -> Result<Kernels, String> {
        context.enter()?;
        let workers = std::thread::available_parallelism().map_or(1, |n| n.get()).min(8);
        let share = all.len().div_ceil(workers).max(1);
        let load = |part: &[(&Kernel, &[u8])]| -> Result<Vec<Ready>, String> {
            context.enter()?;
            part.iter().map(|(kernel, code)| Ready::load(context, kernel, code)).collect()
        };
        let parts: Vec<Result<Vec<Ready>, String>> = std::thread::scope(|scope| {
            let handles: Vec<_> = all.chunks(share).map(|part| scope.spawn(|| load(part))).collect();
            handles.into_iter().map(|h| h.join().unwrap_or_else(|_| Err("a thread panicked".to_owned()))).collect()
        });
        let mut loaded = Vec::with_capacity(all.len());
        for part in parts {
            loaded.extend(part?);
        }
        let scratch = all
            .iter()
            .zip(&loaded)
            .map(|((k, _), r)| k.scratch_bytes.saturating_mul(u64::from(r.indices) * u64::from(r.blocks)))
            .max();
        let bytes = scratch.unwrap_or(0);
        let scratch =
            Memory::new(context, bytes).map_err(|e| format!("no memory for {bytes} bytes of scratch: {e}"))?;
        Ok(Kernels { loaded: loaded.into(), scratch: Arc::new(scratch), context: context.clone() })
    }
}

impl Ready {
    fn load(context: &Arc<Context>, kernel: &Kernel, code: &[u8]) -> Result<Ready, String> {
        let failed = |e: String| format!("kernel @{}: {e}", kernel.name);
        let block = kernel.block.ok_or_else(|| failed("it says nothing of blocks".to_owned()))?;
        let module = module(code).map_err(failed)?;
        let mut ready = Ready {
            name: kernel.name.clone(),
            module,
            function: std::ptr::null_mut(),
            warps: block.warps,
            indices: block.indices,
            shared_bytes: block.shared_bytes.saturating_mul(block.indices),
            blocks: 1,
            arguments: kernel.params.len(),
            symbols: kernel.symbols.len(),
            context: context.clone(),
        };
        // SAFETY: the module was just loaded.
        ready.function = check(unsafe { result::module::get_function(module, ENTRY.to_owned()) }).map_err(failed)?;
        if ready.shared_bytes > SHARED {
            let what = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: as above.
            let set =
                unsafe { result::function::set_function_attribute(ready.function, what, ready.shared_bytes as i32) };
            check(set).map_err(failed)?;
        }
        let (threads, shared) = ((32 * block.warps) as i32, ready.shared_bytes as usize);
        // SAFETY: as above.
        let each = unsafe { result::occupancy::max_active_block_per_multiprocessor(ready.function, threads, shared) };
        let each = check(each).map_err(failed)?;
        if each < 1 {
            let (warps, bytes) = (block.warps, ready.shared_bytes);
            return Err(failed(format!("no multiprocessor holds a block of {warps} warps with {bytes} shared bytes")));
        }
        let blocks = each as u32 * context.multiprocessors;
        let scratch = (SCRATCH / kernel.scratch_bytes.saturating_mul(block.indices.into()).max(1)).max(1);
        ready.blocks = blocks.min(scratch.min(u64::from(u32::MAX)) as u32);
        Ok(ready)
    }
}

/// A module of PTX, or of what an assembler made of it.
fn module(code: &[u8]) -> Result<sys::CUmodule, String> {
    let text;
    let image = match code.starts_with(b"\x7fELF") {
        true => code.as_ptr().cast::<c_void>(),
        false => {
            text = std::ffi::CString::new(code).map_err(|_| "its code is neither text nor an object")?;
            text.as_ptr().cast()
        }
    };
    let mut log = [0u8; 4096];
    let mut options =
        [sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER, sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    let mut values: [*mut c_void; 2] = [log.as_mut_ptr().cast(), std::ptr::without_provenance_mut(log.len())];
    let mut module = std::ptr::null_mut();
    // SAFETY: the image is whole (text ends in zero, objects say how long they are), the log as long as it is said.
    let done = unsafe { sys::cuModuleLoadDataEx(&mut module, image, 2, options.as_mut_ptr(), values.as_mut_ptr()) };
    done.result().map_err(|e| {
        let said = log.split(|b| *b == 0).next().unwrap_or_default();
        let said = String::from_utf8_lossy(said);
        let first = said.lines().find(|l| !l.trim().is_empty()).unwrap_or_default().trim().to_owned();
        format!("the driver refuses its code: {}{}{first}", message(e), if first.is_empty() { "" } else { ": " })
    })?;
    Ok(module)
}

impl Loaded for Kernels {
    fn record(&self, launches: &[Launch]) -> Result<Box<dyn Recorded>, String> {
        self.context.enter()?;
        let (mut arguments, mut symbols) = (0, 0);
        for l in launches {
            arguments = arguments.max(l.arguments + self.loaded[l.kernel].arguments);
            symbols = symbols.max(l.symbols + self.loaded[l.kernel].symbols);
        }
        let table = |words: usize| {
            let bytes = 8 * words as u64;
            Memory::new(&self.context, bytes).map_err(|e| format!("no memory for {bytes} bytes of arguments: {e}"))
        };
        let (argument_table, symbol_table) = (table(arguments)?, table(symbols)?);
        let launches = launches.iter().map(|l| {
            let kernel = &self.loaded[l.kernel];
            let blocks = l.grid.div_ceil(u64::from(kernel.indices)).clamp(1, u64::from(kernel.blocks)) as u32;
            let addresses =
                [argument_table.address + 8 * l.arguments as u64, symbol_table.address + 8 * l.symbols as u64];
            Recording { kernel: l.kernel, blocks, addresses: [addresses[0], addresses[1], self.scratch.address] }
        });
        let mut version = Version {
            launches: launches.collect(),
            graph: std::ptr::null_mut(),
            known: Vec::new(),
            argument_table,
            symbol_table,
            one_by_one: std::env::var_os("HADAL_CUDA_SYNC").is_some_and(|v| v != "0"),
            loaded: self.loaded.clone(),
            context: self.context.clone(),
            _scratch: self.scratch.clone(),
        };
        version.graph = version.record()?;
        Ok(Box::new(version))
    }
}

/// The launches of a version.
struct Version {
    launches: Vec<Recording>,
    graph: sys::CUgraphExec,
    /// What the table of arguments holds.
    known: Vec<*mut u8>,
    argument_table: Memory,
    symbol_table: Memory,
    one_by_one: bool,
    loaded: Arc<[Ready]>,
    context: Arc<Context>,
    _scratch: Arc<Memory>,
}

/// A launch.
struct Recording {
    kernel: usize,
    blocks: u32,
    addresses: [u64; 3],
}

// SAFETY: handles of the driver, and addresses that nobody follows here.
unsafe impl Send for Version {}

impl Drop for Version {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: it is not used any more.
            let _ = unsafe { result::graph::exec_destroy(self.graph) };
        }
    }
}

impl Version {
    /// All launches as a graph.
    fn record(&self) -> Result<sys::CUgraphExec, String> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let stream = check(result::stream::create(result::stream::StreamKind::NonBlocking))?;
        // SAFETY: a stream of our own, on which launches are only recorded.
        let recorded = unsafe {
            let recorded = result::stream::begin_capture(stream, mode).map_err(message).and_then(|()| {
                let all = self.launches.iter().try_for_each(|l| self.launch(l, stream));
                let graph = check(result::stream::end_capture(stream));
                all.and(graph)
            });
            let _ = result::stream::destroy(stream);
            recorded?
        };
        // SAFETY: the graph was just made.
        unsafe {
            let ready = result::graph::instantiate(recorded, sys::CUgraphInstantiate_flags(0));
            let _ = result::graph::destroy(recorded);
            check(ready)
        }
    }

    fn launch(&self, l: &Recording, stream: sys::CUstream) -> Result<(), String> {
        let kernel = &self.loaded[l.kernel];
        let mut addresses = l.addresses;
        let mut parameters = addresses.each_mut().map(|a| std::ptr::from_mut(a).cast::<c_void>());
        let block = (32 * kernel.warps, 1, 1);
        // SAFETY: three addresses are what entries take, and they are copied by the call.
        let launched = unsafe {
            result::launch_kernel(
                kernel.function,
                (l.blocks, 1, 1),
                block,
                kernel.shared_bytes,
                stream,
                &mut parameters,
            )
        };
        launched.map_err(|e| format!("kernel @{}: {}", kernel.name, message(e)))
    }

    /// Launches and waits, one after the other; the clock gets the time that each took on the GPU.
    fn run_one_by_one(&self, mut clock: Option<&mut [Instant]>) -> Result<(), String> {
        let event = || Event::new(&self.context);
        let (before, after) = (event()?, event()?);
        for (i, l) in self.launches.iter().enumerate() {
            let name = format!("kernel @{}", self.loaded[l.kernel].name);
            check(before.record())?;
            self.launch(l, self.context.stream)?;
            // What is wrong may show as soon as this.
            after.record().map_err(|e| self.context.lose(e, &name))?;
            self.context.wait(&name)?;
            if let Some(clock) = &mut clock {
                // SAFETY: both were recorded and waited for.
                let milliseconds = check(unsafe { result::event::elapsed(before.event, after.event) })?;
                clock[i + 1] = clock[i] + Duration::from_secs_f32(milliseconds.max(0.0) / 1e3);
            }
        }
        Ok(())
    }
}

impl Recorded for Version {
    unsafe fn run(&mut self, call: Call<'_>) -> Result<(), String> {
        self.context.enter()?;
        let stream = self.context.stream;
        // SAFETY: the tables are as long as the lists; the driver has copied them when it returns.
        unsafe {
            if self.known != call.arguments {
                check(result::memcpy_htod_async(self.argument_table.address, call.arguments, stream))?;
                self.known.clear();
                self.known.extend(call.arguments);
            }
            if !call.symbols.is_empty() {
                check(result::memcpy_htod_async(self.symbol_table.address, call.symbols, stream))?;
            }
        }
        if self.one_by_one || call.clock.is_some() {
            return self.run_one_by_one(call.clock);
        }
        // SAFETY: recorded for these tables.
        unsafe { result::graph::launch(self.graph, stream) }.map_err(|e| self.context.lose(e, "running on the GPU"))
    }
}

/// A moment on the GPU.
struct Event<'a> {
    event: sys::CUevent,
    context: &'a Context,
}

impl<'a> Event<'a> {
    fn new(context: &'a Context) -> Result<Event<'a>, String> {
        let event = check(result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT))?;
        Ok(Event { event, context })
    }

    fn record(&self) -> Result<(), result::DriverError> {
        // SAFETY: both live.
        unsafe { result::event::record(self.event, self.context.stream) }
    }
}

impl Drop for Event<'_> {
    fn drop(&mut self) {
        // SAFETY: it is not used any more.
        let _ = unsafe { result::event::destroy(self.event) };
    }
}
