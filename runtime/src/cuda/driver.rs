//! Whether there is a driver that can be used, and what its errors mean.

use cudarc::driver::{result, sys};

/// Why no GPU can be used.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Missing {
    /// The driver's library is not there.
    #[error("no NVIDIA driver: its library libcuda.so.1 was not found")]
    NoDriver,
    /// The library lacks something.
    #[error("the NVIDIA driver is too old: it has no {0}; update the driver")]
    Lacks(&'static str),
    /// The driver refuses.
    #[error("the NVIDIA driver cannot be used: {0}")]
    Failed(String),
    /// Fewer GPUs.
    #[error("there is no GPU {number}: the driver knows {count}")]
    NoSuchGpu {
        /// Asked for.
        number: u32,
        /// How many there are.
        count: u32,
    },
}

impl Missing {
    /// Whether nothing speaks for a GPU being there.
    pub fn is_no_driver(&self) -> bool {
        matches!(self, Missing::NoDriver)
    }
}

/// Functions that are called, by the names in the library.
const FUNCTIONS: [&str; 40] = [
    "cuInit",
    "cuDriverGetVersion",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceGetAttribute",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxSetCurrent",
    "cuStreamCreate",
    "cuStreamSynchronize",
    "cuStreamDestroy_v2",
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuEventElapsedTime",
    "cuEventDestroy_v2",
    "cuMemGetInfo_v2",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuMemsetD8Async",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuModuleLoadDataEx",
    "cuModuleGetFunction",
    "cuModuleUnload",
    "cuFuncSetAttribute",
    "cuOccupancyMaxActiveBlocksPerMultiprocessor",
    "cuLaunchKernel",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
];

/// Opens the driver; the version of CUDA that it knows.
pub(super) fn open() -> Result<i32, Missing> {
    // SAFETY: opening the driver's library runs its initialisers, as for every program that uses a GPU.
    let library = match unsafe { sys::is_culib_present() } {
        // SAFETY: as above.
        true => unsafe { sys::culib() },
        false => return Err(Missing::NoDriver),
    };
    // Found out here, since calling what is not there panics.
    // SAFETY: the addresses are only looked up.
    let lacks = |name: &&&str| unsafe { library.get::<unsafe extern "C" fn()>(name.as_bytes()) }.is_err();
    if let Some(name) = FUNCTIONS.iter().find(lacks) {
        return Err(Missing::Lacks(name));
    }
    result::init().map_err(|e| Missing::Failed(message(e)))?;
    let mut version = 0;
    // SAFETY: it writes a number.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(|e| Missing::Failed(message(e)))?;
    Ok(version)
}

/// The version of CUDA (12040 for 12.4) whose driver knows a version of PTX (84 for 8.4).
pub(super) fn for_ptx(version: i32) -> i32 {
    // PTX 7.x and 8.x came with CUDA 11.x and 12.x, until 8.5 came with two of them.
    let (major, minor) = (version / 10 + 4, version % 10);
    let skipped = i32::from(version > 85 && version < 90);
    1000 * major + 10 * (minor + skipped)
}

/// An error's name and what the driver says of it.
pub(super) fn message(error: result::DriverError) -> String {
    let text = |c: Result<&std::ffi::CStr, result::DriverError>| c.ok().map(|c| c.to_string_lossy().into_owned());
    match (text(error.error_name()), text(error.error_string())) {
        (Some(name), Some(what)) => format!("{what} ({name})"),
        _ => format!("{:?}", error.0),
    }
}

/// A result with the message as its error.
pub(super) fn check<T>(result: Result<T, result::DriverError>) -> Result<T, String> {
    result.map_err(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_ptx_came_with_versions_of_cuda() {
        for (ptx, cuda) in [(70, 11000), (78, 11080), (81, 12010), (84, 12040), (85, 12050), (86, 12070), (88, 12090)] {
            assert_eq!(for_ptx(ptx), cuda, "{ptx}");
        }
        assert_eq!(for_ptx(90), 13000);
    }
}
