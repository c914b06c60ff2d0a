//! What runs a program: this processor, or a device.

use crate::{Device, Error, cpu, cuda};
use hadal_artifact::Target;
use std::cell::OnceCell;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// What is to run a program.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum DeviceChoice {
    /// The first of the program's levels that anything here runs: this processor, or the first GPU.
    #[default]
    Auto,
    /// This processor.
    Cpu,
    /// The GPU of that number.
    Cuda(u32),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<DeviceChoice, String> {
        let number = |text: &str| text.parse().map(DeviceChoice::Cuda).ok();
        let known = match text {
            "auto" => Some(DeviceChoice::Auto),
            "cpu" => Some(DeviceChoice::Cpu),
            "cuda" => Some(DeviceChoice::Cuda(0)),
            _ => text.strip_prefix("cuda:").and_then(number),
        };
        known.ok_or_else(|| "expected auto, cpu, cuda or a GPU by its number as cuda:1".to_owned())
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Auto => f.write_str("auto"),
            DeviceChoice::Cpu => f.write_str("cpu"),
            DeviceChoice::Cuda(n) => write!(f, "cuda:{n}"),
        }
    }
}

impl DeviceChoice {
    /// Ready to look at a program's levels.
    pub(crate) fn candidate(self) -> Candidate {
        Candidate { choice: self, gpu: OnceCell::new(), refused: OnceCell::new() }
    }
}

/// A choice while a program's levels are looked at. A GPU is opened when the first level asks for one.
pub(crate) struct Candidate {
    choice: DeviceChoice,
    gpu: OnceCell<Result<Arc<cuda::Gpu>, cuda::Missing>>,
    /// Why the GPU that is there does not run the first level for one.
    refused: OnceCell<String>,
}

impl Candidate {
    /// Whether what was chosen runs code for a target.
    pub fn runs(&self, target: &Target) -> bool {
        if !target.is_gpu() {
            return !matches!(self.choice, DeviceChoice::Cuda(_)) && cpu::runs(target);
        }
        if self.choice == DeviceChoice::Cpu {
            return false;
        }
        let why = match self.gpu() {
            Ok(gpu) => gpu.why_not(target),
            Err(missing) if missing.is_no_driver() => return false,
            Err(missing) => Some(missing.to_string()),
        };
        why.is_none_or(|why| {
            self.refused.get_or_init(|| why);
            false
        })
    }

    fn gpu(&self) -> Result<&Arc<cuda::Gpu>, &cuda::Missing> {
        let number = if let DeviceChoice::Cuda(n) = self.choice { n } else { 0 };
        self.gpu.get_or_init(|| cuda::Gpu::open(number)).as_ref()
    }

    /// The device for a level that was taken; `None` for this processor.
    pub fn device_for(&self, target: &Target) -> Result<Option<Arc<dyn Device>>, Error> {
        let refused = |reason: String| Err(Error::NoDevice { device: self.choice.to_string(), reason });
        match (target.is_gpu(), self.choice) {
            (true, DeviceChoice::Cpu) => refused("the program has code for GPUs only".to_owned()),
            (true, _) => match self.gpu() {
                Ok(gpu) => match gpu.why_not(target) {
                    None => Ok(Some(gpu.clone())),
                    Some(reason) => refused(reason),
                },
                Err(missing) => refused(missing.to_string()),
            },
            (false, DeviceChoice::Cuda(_)) => match (self.refused.get(), self.gpu.get()) {
                (Some(reason), _) => refused(reason.clone()),
                (None, Some(Err(missing))) => refused(missing.to_string()),
                _ => refused("the program has no code for GPUs; compile it with --target sm_90a,cpu".to_owned()),
            },
            (false, _) => Ok(None),
        }
    }

    /// Why a GPU that is there was not taken, where a level was for one.
    pub fn passed_over(&self) -> Option<String> {
        self.refused.get().cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read_as_they_are_written() {
        for choice in [DeviceChoice::Auto, DeviceChoice::Cpu, DeviceChoice::Cuda(0), DeviceChoice::Cuda(7)] {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        for bad in ["", "gpu", "cuda:", "cuda:-1", "cuda:x"] {
            assert!(bad.parse::<DeviceChoice>().unwrap_err().contains("cuda:1"), "{bad}");
        }
    }
}
