//! Machines beside this processor, with memory of their own: GPUs, and what stands for one.
//!
//! Addresses there are carried as pointers, which nothing but the device follows.

use hadal_artifact::{Kernel, Target};
use std::sync::Arc;
use std::time::Instant;

/// Memory, and what runs kernels on it. What it says where something failed is for people.
pub trait Device: Send + Sync {
    /// What it is, for people.
    fn name(&self) -> String;

    /// Whether it runs code for a target.
    fn runs(&self, target: &Target) -> bool;

    /// So many bytes, all zero, at an address that suits every format.
    fn allocate(&self, bytes: usize) -> Result<*mut u8, String>;

    /// Gives back what was allocated.
    ///
    /// # Safety
    ///
    /// It was allocated here with so many bytes, and nothing uses it any more.
    unsafe fn free(&self, address: *mut u8, bytes: usize);

    /// Bytes to the device, behind all that was asked of it before.
    ///
    /// # Safety
    ///
    /// They lie within one allocation of this device.
    unsafe fn write(&self, to: *mut u8, bytes: &[u8]) -> Result<(), String>;

    /// Bytes from the device, when all that was asked of it before is done.
    ///
    /// # Safety
    ///
    /// As for [`Device::write`].
    unsafe fn read(&self, from: *const u8, into: &mut [u8]) -> Result<(), String>;

    /// Bytes from one place on the device to another, behind all that was asked of it before.
    ///
    /// # Safety
    ///
    /// Each lies within one allocation of this device, and they do not overlap.
    unsafe fn copy(&self, from: *const u8, to: *mut u8, bytes: usize) -> Result<(), String>;

    /// Makes kernels ready, given with their code.
    fn load(&self, kernels: &[(&Kernel, &[u8])]) -> Result<Arc<dyn Loaded>, String>;
}

/// Kernels that a device has ready.
pub trait Loaded: Send + Sync {
    /// Launches to be run as often as wanted, in this order.
    fn record(&self, launches: &[Launch]) -> Result<Box<dyn Recorded>, String>;
}

/// One launch of several. Its arguments and symbols are parts of lists that all of them share.
#[derive(Clone, Copy, Debug)]
pub struct Launch {
    /// Which of the kernels loaded.
    pub kernel: usize,
    /// Where its arguments begin.
    pub arguments: usize,
    /// Where the values of its symbols begin.
    pub symbols: usize,
    /// Grid indices at most.
    pub grid: u64,
}

/// Launches that a device has ready.
pub trait Recorded: Send {
    /// Runs all, behind what was asked of the device before.
    ///
    /// # Safety
    ///
    /// Every argument is memory of the device, as large as its kernel's parameter is for these symbols, and nothing
    /// that a kernel writes is used otherwise before all is done.
    unsafe fn run(&mut self, call: Call<'_>) -> Result<(), String>;
}

/// What differs from one run of recorded launches to the next.
pub struct Call<'a> {
    /// Addresses of all launches' buffers.
    pub arguments: &'a [*mut u8],
    /// Values of all launches' symbols.
    pub symbols: &'a [i64],
    /// Bytes of a launch's argument, by the numbers of both.
    pub bytes: &'a dyn Fn(usize, usize) -> usize,
    /// Where it is wanted, when it began and when each launch ended; each is then waited for.
    pub clock: Option<&'a mut [Instant]>,
}
