//! The functions, by the names and with the arguments that they have in `libcuda`.
//!
//! All are unsafe to call as any C function is: pointers must lead where CUDA says they do.

use crate::state::{Code, Function, Locked, MULTIPROCESSORS, SHARED, Work, locked, setting};
use ptx_emulator::{Launch, Module, Param};
use std::ffi::{CStr, c_char, c_void};
use std::sync::Arc;
use std::time::Instant;

/// Runs a call and gives its code.
fn call(body: impl FnOnce(&mut Locked) -> Result<(), Code>) -> u32 {
    let mut state = locked();
    let done = state.ready().and_then(|()| body(&mut state));
    done.err().unwrap_or(Code::Success) as u32
}

/// Defines functions that `libcuda` has, whose bodies are given the driver.
macro_rules! functions {
    ($($(#[$about:meta])* $name:ident($($arg:ident: $ty:ty),* $(,)?) |$state:ident| $body:block)*) => { $(
        $(#[$about])*
        ///
        /// # Safety
        ///
        /// As in CUDA.
        #[unsafe(no_mangle)]
        #[allow(non_snake_case)]
        pub unsafe extern "C" fn $name($($arg: $ty),*) -> u32 {
            // SAFETY: pointers are the caller's, as the documentation of CUDA asks for.
            #[allow(unused_unsafe, unreachable_code)]
            call(|$state| unsafe { $body; Ok(()) })
        }
    )* };
}

/// Begins.
///
/// # Safety
///
/// None is needed.
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
pub unsafe extern "C" fn cuInit(_flags: u32) -> u32 {
    locked().initialized = true;
    Code::Success as u32
}

/// The name of a code, also after a failure.
///
/// # Safety
///
/// As in CUDA.
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
pub unsafe extern "C" fn cuGetErrorName(code: u32, name: *mut *const c_char) -> u32 {
    let Some(known) = Code::of(code) else { return Code::InvalidValue as u32 };
    // SAFETY: the caller's pointer.
    unsafe { *name = known.texts().0.as_ptr() };
    Code::Success as u32
}

/// What a code means.
///
/// # Safety
///
/// As in CUDA.
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
pub unsafe extern "C" fn cuGetErrorString(code: u32, text: *mut *const c_char) -> u32 {
    let Some(known) = Code::of(code) else { return Code::InvalidValue as u32 };
    // SAFETY: the caller's pointer.
    unsafe { *text = known.texts().1.as_ptr() };
    Code::Success as u32
}

functions! {
    /// The version of CUDA.
    cuDriverGetVersion(version: *mut i32) |_s| {
        *version = setting("CUDA_EMULATOR_DRIVER", 12080) as i32;
    }
    /// How many GPUs there are.
    cuDeviceGetCount(count: *mut i32) |_s| {
        *count = setting("CUDA_EMULATOR_GPUS", 1) as i32;
    }
    /// A GPU.
    cuDeviceGet(device: *mut i32, number: i32) |_s| {
        if !(0..setting("CUDA_EMULATOR_GPUS", 1) as i32).contains(&number) {
            return Err(Code::InvalidDevice);
        }
        *device = number;
    }
    /// Its name.
    cuDeviceGetName(name: *mut c_char, room: i32, _device: i32) |_s| {
        let text = c"Emulated GPU".to_bytes_with_nul();
        if (room as usize) < text.len() {
            return Err(Code::InvalidValue);
        }
        std::ptr::copy_nonoverlapping(text.as_ptr().cast(), name, text.len());
    }
    /// What it is like: multiprocessors and compute capability.
    cuDeviceGetAttribute(value: *mut i32, attribute: u32, _device: i32) |_s| {
        let capability = setting("CUDA_EMULATOR_CAPABILITY", 90) as i32;
        *value = match attribute {
            16 => MULTIPROCESSORS as i32,
            75 => capability / 10,
            76 => capability % 10,
            _ => return Err(Code::InvalidValue),
        };
    }
    /// The context, which is the same for everybody.
    cuDevicePrimaryCtxRetain(context: *mut usize, _device: i32) |_s| {
        *context = 1;
    }
    /// One user less.
    cuDevicePrimaryCtxRelease_v2(_device: i32) |_s| {}
    /// Makes it that of the thread.
    cuCtxSetCurrent(context: usize) |_s| {
        if context != 1 {
            return Err(Code::InvalidContext);
        }
    }
    /// A stream.
    cuStreamCreate(stream: *mut usize, _flags: u32) |s| {
        *stream = s.handle();
        s.streams.insert(*stream, None);
    }
    /// Waits.
    cuStreamSynchronize(stream: usize) |s| {
        s.streams.get(&stream).ok_or(Code::InvalidHandle)?;
    }
    /// Ends a stream.
    cuStreamDestroy_v2(stream: usize) |s| {
        s.streams.remove(&stream).ok_or(Code::InvalidHandle)?;
    }
    /// From now on launches are recorded only.
    cuStreamBeginCapture_v2(stream: usize, _mode: u32) |s| {
        let capturing = s.streams.get_mut(&stream).ok_or(Code::InvalidHandle)?;
        if capturing.replace(Vec::new()).is_some() {
            return Err(Code::CaptureUnsupported);
        }
    }
    /// What was recorded.
    cuStreamEndCapture(stream: usize, graph: *mut usize) |s| {
        let work = s.streams.get_mut(&stream).ok_or(Code::InvalidHandle)?.take().ok_or(Code::InvalidValue)?;
        *graph = s.handle();
        s.graphs.insert(*graph, work);
    }
    /// A graph to be launched.
    cuGraphInstantiateWithFlags(executable: *mut usize, graph: usize, _flags: u64) |s| {
        let work = s.graphs.get(&graph).ok_or(Code::InvalidHandle)?.clone();
        *executable = s.handle();
        s.executables.insert(*executable, work);
    }
    /// Launches all of it.
    cuGraphLaunch(executable: usize, stream: usize) |s| {
        let work = s.executables.get(&executable).ok_or(Code::InvalidHandle)?.clone();
        for w in work {
            s.submit(stream, w)?;
            if s.lost.is_some() {
                break;
            }
        }
    }
    /// Ends a graph.
    cuGraphDestroy(graph: usize) |s| {
        s.graphs.remove(&graph).ok_or(Code::InvalidHandle)?;
    }
    /// Ends one that could be launched.
    cuGraphExecDestroy(executable: usize) |s| {
        s.executables.remove(&executable).ok_or(Code::InvalidHandle)?;
    }
    /// An event.
    cuEventCreate(event: *mut usize, _flags: u32) |s| {
        *event = s.handle();
        s.events.insert(*event, None);
    }
    /// Notes when it is.
    cuEventRecord(event: usize, stream: usize) |s| {
        s.streams.get(&stream).ok_or(Code::InvalidHandle)?;
        *s.events.get_mut(&event).ok_or(Code::InvalidHandle)? = Some(Instant::now());
    }
    /// Waits for it.
    cuEventSynchronize(event: usize) |s| {
        s.events.get(&event).ok_or(Code::InvalidHandle)?;
    }
    /// Milliseconds from one to the other.
    cuEventElapsedTime(milliseconds: *mut f32, start: usize, end: usize) |s| {
        let at = |e: usize| s.events.get(&e).copied().flatten().ok_or(Code::InvalidHandle);
        *milliseconds = at(end)?.saturating_duration_since(at(start)?).as_secs_f32() * 1e3;
    }
    /// Ends an event.
    cuEventDestroy_v2(event: usize) |s| {
        s.events.remove(&event).ok_or(Code::InvalidHandle)?;
    }
    /// Free bytes and all.
    cuMemGetInfo_v2(free: *mut usize, all: *mut usize) |s| {
        *free = s.room - s.allocations.values().sum::<usize>();
        *all = s.room;
    }
    /// Memory of the GPU.
    cuMemAlloc_v2(address: *mut u64, bytes: usize) |s| {
        *address = s.allocate(bytes)?;
    }
    /// Gives it back.
    cuMemFree_v2(address: u64) |s| {
        s.allocations.remove(&address).ok_or(Code::InvalidValue)?;
        s.memory.free(address);
    }
    /// Memory of the process that the GPU reads.
    cuMemHostAlloc(address: *mut *mut c_void, bytes: usize, _flags: u32) |s| {
        let words = vec![0u64; bytes.div_ceil(8)].into_boxed_slice();
        *address = Box::leak(words).as_mut_ptr().cast();
        s.pinned.insert((*address).addr());
    }
    /// Gives it back; here the process has it until it ends.
    cuMemFreeHost(address: *mut c_void) |s| {
        if !s.pinned.remove(&address.addr()) {
            return Err(Code::InvalidValue);
        }
    }
    /// Fills memory.
    cuMemsetD8Async(address: u64, value: u8, bytes: usize, _stream: usize) |s| {
        s.inside(address, bytes)?;
        s.memory.write(address, &vec![value; bytes]);
    }
    /// To the GPU.
    cuMemcpyHtoDAsync_v2(to: u64, from: *const u8, bytes: usize, _stream: usize) |s| {
        s.inside(to, bytes)?;
        s.memory.write(to, std::slice::from_raw_parts(from, bytes));
    }
    /// From the GPU.
    cuMemcpyDtoHAsync_v2(to: *mut u8, from: u64, bytes: usize, _stream: usize) |s| {
        s.inside(from, bytes)?;
        let found = s.memory.read(from, bytes).ok_or(Code::InvalidValue)?;
        std::ptr::copy_nonoverlapping(found.as_ptr(), to, bytes);
    }
    /// On the GPU, from one place to another that does not overlap it.
    cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, _stream: usize) |s| {
        s.inside(to, bytes)?;
        s.inside(from, bytes)?;
        if to < from + bytes as u64 && from < to + bytes as u64 {
            eprintln!("cuda-emulator: a copy of {bytes} bytes from {from:#x} to {to:#x} overlaps");
            return Err(Code::InvalidValue);
        }
        let found = s.memory.read(from, bytes).ok_or(Code::InvalidValue)?;
        s.memory.write(to, &found);
    }
    /// Reads PTX. Of the options only those for a log of errors are known.
    cuModuleLoadDataEx(
        module: *mut usize, image: *const c_char, count: u32, options: *const u32, values: *const *mut c_void,
    ) |s| {
        let text = CStr::from_ptr(image).to_string_lossy().into_owned();
        let refused = std::env::var("CUDA_EMULATOR_REFUSES").ok().filter(|word| text.contains(word.as_str()));
        let parsed = match refused {
            Some(word) => Err(format!("ptxas application ptx input, line 1; fatal : `{word}` is not supported")),
            None => Module::parse(&text).map_err(|e| e.to_string()),
        };
        let parsed = match parsed {
            Ok(parsed) => parsed,
            Err(message) => {
                let given = |wanted: u32| (0..count as usize).find(|i| *options.add(*i) == wanted);
                if let (Some(log), Some(size)) = (given(5), given(6)) {
                    let room = (*values.add(size)).addr().saturating_sub(1).min(message.len());
                    let log = (*values.add(log)).cast::<u8>();
                    std::ptr::copy_nonoverlapping(message.as_ptr(), log, room);
                    *log.add(room) = 0;
                }
                return Err(Code::InvalidPtx);
            }
        };
        *module = s.handle();
        s.modules.insert(*module, Arc::new(parsed));
    }
    /// An entry of it.
    cuModuleGetFunction(function: *mut usize, module: usize, name: *const c_char) |s| {
        let name = CStr::from_ptr(name).to_string_lossy().into_owned();
        s.modules.get(&module).ok_or(Code::InvalidHandle)?.kernel(&name).ok_or(Code::NotFound)?;
        *function = s.handle();
        s.functions.insert(*function, Function { module, name, most_shared: 48 << 10 });
    }
    /// Forgets it.
    cuModuleUnload(module: usize) |s| {
        s.modules.remove(&module).ok_or(Code::InvalidHandle)?;
    }
    /// How much shared memory a block may ask for.
    cuFuncSetAttribute(function: usize, attribute: u32, value: i32) |s| {
        if attribute != 8 || !(0..=SHARED as i32).contains(&value) {
            return Err(Code::InvalidValue);
        }
        s.functions.get_mut(&function).ok_or(Code::InvalidHandle)?.most_shared = value as u32;
    }
    /// Blocks that a multiprocessor holds.
    cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks: *mut i32, function: usize, threads: i32, shared: usize) |s| {
        s.functions.get(&function).ok_or(Code::InvalidHandle)?;
        let by_shared = SHARED as usize / shared.max(1);
        *blocks = (2048 / threads.max(1)).min(by_shared as i32).min(2);
    }
    /// Launches a kernel, or records that.
    cuLaunchKernel(
        function: usize,
        gx: u32, gy: u32, gz: u32,
        bx: u32, by: u32, bz: u32,
        shared: u32,
        stream: usize,
        parameters: *const *const u8,
        _extra: *const *const c_void,
    ) |s| {
        let known = s.functions.get(&function).ok_or(Code::InvalidHandle)?;
        if shared > known.most_shared || bx * by * bz > 1024 {
            return Err(Code::InvalidValue);
        }
        let module = s.modules.get(&known.module).ok_or(Code::InvalidHandle)?;
        let kernel = module.kernel(&known.name).ok_or(Code::InvalidHandle)?;
        let bytes = |(i, (_, size, _)): (usize, &(u32, u32, u32))| {
            Param::from(std::slice::from_raw_parts(*parameters.add(i), *size as usize).to_vec())
        };
        let params = kernel.params().iter().enumerate().map(bytes).collect();
        let launch = Launch {
            grid: [gx, gy, gz],
            cluster: [1; 3],
            block: [bx, by, bz],
            dynamic_shared: shared,
            params,
        };
        s.submit(stream, Work { function, launch })?;
    }
}
