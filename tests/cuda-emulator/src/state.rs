//! What the driver knows.

use ptx_emulator::{Launch, Memory, Module, Options};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// What a call ends with, by CUDA's numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Code {
    Success = 0,
    InvalidValue = 1,
    OutOfMemory = 2,
    NotInitialized = 3,
    InvalidDevice = 101,
    InvalidContext = 201,
    InvalidPtx = 218,
    InvalidHandle = 400,
    NotFound = 500,
    IllegalAddress = 700,
    LaunchFailed = 719,
    CaptureUnsupported = 900,
}

impl Code {
    /// All but the first have a name and a sentence.
    pub fn texts(self) -> (&'static std::ffi::CStr, &'static std::ffi::CStr) {
        match self {
            Code::Success => (c"CUDA_SUCCESS", c"no error"),
            Code::InvalidValue => (c"CUDA_ERROR_INVALID_VALUE", c"invalid argument"),
            Code::OutOfMemory => (c"CUDA_ERROR_OUT_OF_MEMORY", c"out of memory"),
            Code::NotInitialized => (c"CUDA_ERROR_NOT_INITIALIZED", c"initialization error"),
            Code::InvalidDevice => (c"CUDA_ERROR_INVALID_DEVICE", c"invalid device ordinal"),
            Code::InvalidContext => (c"CUDA_ERROR_INVALID_CONTEXT", c"invalid device context"),
            Code::InvalidPtx => (c"CUDA_ERROR_INVALID_PTX", c"a PTX JIT compilation failed"),
            Code::InvalidHandle => (c"CUDA_ERROR_INVALID_HANDLE", c"invalid resource handle"),
            Code::NotFound => (c"CUDA_ERROR_NOT_FOUND", c"named symbol not found"),
            Code::IllegalAddress => (c"CUDA_ERROR_ILLEGAL_ADDRESS", c"an illegal memory access was encountered"),
            Code::LaunchFailed => (c"CUDA_ERROR_LAUNCH_FAILED", c"unspecified launch failure"),
            Code::CaptureUnsupported => {
                (c"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", c"operation not permitted when stream is capturing")
            }
        }
    }

    pub fn of(number: u32) -> Option<Code> {
        use Code::*;
        let all = [
            Success,
            InvalidValue,
            OutOfMemory,
            NotInitialized,
            InvalidDevice,
            InvalidContext,
            InvalidPtx,
            InvalidHandle,
            NotFound,
            IllegalAddress,
            LaunchFailed,
            CaptureUnsupported,
        ];
        all.into_iter().find(|c| *c as u32 == number)
    }
}

/// A launch that waits to be run, or is part of a graph.
#[derive(Clone)]
pub struct Work {
    pub function: usize,
    pub launch: Launch,
}

/// An entry of a module.
pub struct Function {
    pub module: usize,
    pub name: String,
    /// Dynamic shared memory that a block may have.
    pub most_shared: u32,
}

/// Multiprocessors: few, since warps without work take time here.
pub const MULTIPROCESSORS: u32 = 2;

/// Shared memory of a multiprocessor.
pub const SHARED: u32 = 227 << 10;

/// The driver. Handles are numbers that are never used twice.
pub struct State {
    next: usize,
    pub initialized: bool,
    /// What every call ends with since a kernel failed.
    pub lost: Option<Code>,
    pub memory: Memory,
    /// Bytes by address.
    pub allocations: BTreeMap<u64, usize>,
    pub room: usize,
    pub modules: HashMap<usize, Arc<Module>>,
    pub functions: HashMap<usize, Function>,
    /// What streams that are capturing hold so far.
    pub streams: HashMap<usize, Option<Vec<Work>>>,
    pub graphs: HashMap<usize, Vec<Work>>,
    pub executables: HashMap<usize, Vec<Work>>,
    pub events: HashMap<usize, Option<Instant>>,
    pub pinned: HashSet<usize>,
    pub launches: u64,
}

/// A number that the environment gives.
pub fn setting(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(otherwise)
}

static STATE: Mutex<Option<State>> = Mutex::new(None);

/// The driver, for one call.
pub fn locked() -> Locked {
    let mut guard = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    guard.get_or_insert_with(|| State {
        next: 0x1000,
        initialized: false,
        lost: None,
        memory: Memory::new(),
        allocations: BTreeMap::new(),
        room: setting("CUDA_EMULATOR_MEMORY", 1 << 32) as usize,
        modules: HashMap::new(),
        functions: HashMap::new(),
        streams: HashMap::new(),
        graphs: HashMap::new(),
        executables: HashMap::new(),
        events: HashMap::new(),
        pinned: HashSet::new(),
        launches: 0,
    });
    Locked(guard)
}

/// The driver, held by one call.
pub struct Locked(MutexGuard<'static, Option<State>>);

impl std::ops::Deref for Locked {
    type Target = State;
    fn deref(&self) -> &State {
        self.0.as_ref().expect("made when it was locked")
    }
}

impl std::ops::DerefMut for Locked {
    fn deref_mut(&mut self) -> &mut State {
        self.0.as_mut().expect("made when it was locked")
    }
}

impl State {
    /// A new handle.
    pub fn handle(&mut self) -> usize {
        self.next += 16;
        self.next
    }

    /// Whether there is a driver to work with.
    pub fn ready(&self) -> Result<(), Code> {
        match (self.initialized, self.lost) {
            (false, _) => Err(Code::NotInitialized),
            (_, Some(code)) => Err(code),
            _ => Ok(()),
        }
    }

    /// Whether bytes lie within one allocation.
    pub fn inside(&self, address: u64, bytes: usize) -> Result<(), Code> {
        let found = self.allocations.range(..=address).next_back();
        let inside = found.is_some_and(|(base, size)| address - base + bytes as u64 <= *size as u64);
        if inside || bytes == 0 {
            return Ok(());
        }
        eprintln!("cuda-emulator: {bytes} bytes at {address:#x} do not lie within one allocation");
        Err(Code::InvalidValue)
    }

    /// Takes memory.
    pub fn allocate(&mut self, bytes: usize) -> Result<u64, Code> {
        let used: usize = self.allocations.values().sum();
        if bytes == 0 {
            return Err(Code::InvalidValue);
        }
        if used.saturating_add(bytes) > self.room {
            return Err(Code::OutOfMemory);
        }
        let address = self.memory.allocate(bytes);
        self.allocations.insert(address, bytes);
        Ok(address)
    }

    /// Launches a kernel on a stream, which may be capturing.
    pub fn submit(&mut self, stream: usize, work: Work) -> Result<(), Code> {
        match self.streams.get_mut(&stream).ok_or(Code::InvalidHandle)? {
            Some(captured) => {
                captured.push(work);
                Ok(())
            }
            None => self.run(&work),
        }
    }

    /// Runs a launch. What fails stays so.
    pub fn run(&mut self, work: &Work) -> Result<(), Code> {
        self.launches += 1;
        let function = self.functions.get(&work.function).ok_or(Code::InvalidHandle)?;
        let module = self.modules.get(&function.module).ok_or(Code::InvalidHandle)?.clone();
        let kernel = module.kernel(&function.name).ok_or(Code::InvalidHandle)?;
        let fails = setting("CUDA_EMULATOR_FAILS", 0) == self.launches;
        let outcome = ptx_emulator::run(kernel, &work.launch, &mut self.memory, &Options::default());
        let code = match outcome {
            Err(fault) => {
                eprintln!("cuda-emulator: {fault}");
                Code::LaunchFailed
            }
            Ok(_) if fails => Code::IllegalAddress,
            Ok(_) => return Ok(()),
        };
        // As on a GPU, nobody learns of it before somebody waits.
        self.lost = Some(code);
        Ok(())
    }
}
